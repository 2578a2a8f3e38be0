//! `user list`: all users.

use clap::Args;

use super::Listed;
use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::Exit;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage user list
  storage --json user list

Prints NAME<TAB>enabled or disabled<TAB>when its password was set, a line for each.";

/// Prints the users
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct List {}

impl List {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let answer = Api::open(app).await?.ask(&api::path(&["users"])).await?;
        for user in api::list(&answer, "users")? {
            if app.json() {
                out.line(&escape::json_value(user))?;
                continue;
            }
            let user: Listed = api::read(user)?;
            let state = if user.disabled { "disabled" } else { "enabled" };
            let (name, set) = (
                escape::text(user.name.as_bytes()),
                api::date(user.password_set / 1000),
            );
            out.line(&format!("{name}\t{state}\t{set}"))?;
        }
        Ok(Exit::Done)
    }
}

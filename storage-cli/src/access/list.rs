//! `access list`: all rules, of the configuration and stored, and what is odd about them.

use clap::Args;

use super::Listed;
use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::Exit;
use crate::output::Output;
use crate::warnings;

const EXAMPLES: &str = "\
Examples:
  storage access list
  storage --json access list

Prints NAME<TAB>PRINCIPAL<TAB>KEYSPACE[:PREFIX]<TAB>PERMISSIONS lines. A rule of the configuration has no name, and is changed
there. Rules that give nothing, or less than they seem to, are told on stderr. The members of roles: `storage role list`.";

/// Prints the rules
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct List {}

impl List {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let api = Api::open(app).await?;
        let answer = api.ask(&api::path(&["rules"])).await?;
        for rule in api::list(&answer, "rules")? {
            match app.json() {
                true => out.line(&escape::json_value(rule))?,
                false => out.line(&api::read::<Listed>(rule)?.line())?,
            }
        }
        out.flush()?;
        warnings::tell_all(&answer);
        Ok(Exit::Done)
    }
}

//! `whoami`: as whom the server takes these credentials.

use clap::Args;
use serde::Deserialize;

use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::Exit;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage whoami
  storage whoami --token-file ci.token --ca certs/dev/alice/ca.pem
  storage --json whoami";

/// Tells as whom the server knows you
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Whoami {}

#[derive(Deserialize)]
struct Answer {
    principal: String,
    by: String,
    expires: Option<u64>,
    administrator: bool,
}

impl Whoami {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let answer = Api::open(app).await?.ask(&api::path(&["whoami"])).await?;
        if app.json() {
            out.line(&escape::json_value(&answer))?;
            return Ok(Exit::Done);
        }
        let who: Answer = api::read(&answer)?;
        out.line(&format!(
            "principal: {}",
            escape::text(who.principal.as_bytes())
        ))?;
        out.line(&format!("by: {}", escape::text(who.by.as_bytes())))?;
        if let Some(expires) = who.expires {
            out.line(&format!("until: {}", api::date(expires)))?;
        }
        let administrator = if who.administrator { "yes" } else { "no" };
        out.line(&format!("administrator: {administrator}"))?;
        Ok(Exit::Done)
    }
}

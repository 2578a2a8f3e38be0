//! `access explain`: whether somebody may do something, and why.

use std::ffi::OsString;

use clap::Args;
use serde::Deserialize;

use super::{Permission, Rule};
use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::Exit;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage access explain user:ann models robots/7 write
  storage access explain cert:boss system '' admin
  storage access explain user:ann models a read > /dev/null && echo yes

Prints allowed or denied, the reason, and the rule that allows it; denied exits with 1. What a token may is further bounded by
its grants.";

/// Tells whether a principal may do something, and why
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Explain {
    /// Who: cert:NAME, user:NAME or anonymous
    principal: String,
    /// Where
    keyspace: String,
    /// Which key (text, @FILE or -; with --hex any bytes); for admin it does not matter
    #[arg(allow_negative_numbers = true)]
    key: OsString,
    /// What
    #[arg(value_enum)]
    permission: Permission,
}

#[derive(Deserialize)]
struct Answer {
    allowed: bool,
    reason: String,
    origin: Option<String>,
    rule: Option<Rule>,
}

impl Explain {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let key = app.form().arguments().bytes("KEY", &self.key)?;
        let query = [
            ("principal", self.principal.as_bytes()),
            ("keyspace", self.keyspace.as_bytes()),
            ("key", &key),
            ("permission", self.permission.word().as_bytes()),
        ];
        let api = Api::open(app).await?;
        let answer = api
            .ask(&api::with_query(&api::path(&["explain"]), &query))
            .await?;
        let explained: Answer = api::read(&answer)?;
        if app.json() {
            out.line(&escape::json_value(&answer))?;
        } else {
            out.line(if explained.allowed {
                "allowed"
            } else {
                "denied"
            })?;
            out.line(&format!("reason: {}", escape::message(&explained.reason)))?;
            if let Some(rule) = &explained.rule {
                let origin = explained.origin.as_deref().unwrap_or_default();
                let (origin, rule) = (escape::message(origin), rule.shown());
                out.line(&format!("rule: {origin}\t{rule}"))?;
            }
        }
        Ok(match explained.allowed {
            true => Exit::Done,
            false => Exit::Refused,
        })
    }
}

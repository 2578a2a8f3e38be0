//! `access explain`: whether somebody may do something, and why.

use std::ffi::OsString;

use clap::Args;
use serde::Deserialize;

use super::{Permission, Rule};
use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::output::Output;
use crate::{tell, user};

const EXAMPLES: &str = "\
Examples:
  storage access explain user:ann models robots/7 write
  storage access explain cert:boss system '' admin
  storage access explain user:ann models a read > /dev/null && echo yes

Prints allowed or denied, the reason, and the rule that allows it; denied exits with 1. Of a user who cannot log in, because it
is disabled or there is none, a note says so (with --json on stderr): the rules say what it might. What a token may is further
bounded by its grants.";

/// Tells whether a principal may do something, and why
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Explain {
    /// Who: cert:NAME, user:NAME or anonymous; no role and no pattern
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
        check_principal(&self.principal)?;
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
        let note = match self.principal.strip_prefix("user:") {
            Some(user) => note_of_user(&api, user).await,
            None => None,
        };
        if app.json() {
            out.line(&escape::json_value(&answer))?;
            if let Some(note) = note {
                out.flush()?;
                tell(note);
            }
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
            if let Some(note) = note {
                out.line(&note)?;
            }
        }
        Ok(match explained.allowed {
            true => Exit::Done,
            false => Exit::Refused,
        })
    }
}

/// The server answers for any text, and of what nobody can be that would mislead.
fn check_principal(principal: &str) -> anyhow::Result<()> {
    let is_one = match principal.split_once(':') {
        None => principal == "anonymous",
        Some(("cert" | "user", name)) => !name.is_empty() && !name.contains('*'),
        Some(_) => false,
    };
    match is_one {
        true => Ok(()),
        false => Err(usage(format!(
            "{principal:?} is no principal; they are cert:NAME, user:NAME and anonymous. Of a role or a pattern, name one \
             that it stands for"
        ))),
    }
}

/// That a user cannot log in, whatever the rules say. Only administrators may see that; without it the explanation holds
/// as well.
async fn note_of_user(api: &Api, name: &str) -> Option<String> {
    let shown = escape::text(name.as_bytes());
    match user::is_disabled(api, name).await.ok()? {
        Some(true) => Some(format!("note: user:{shown} is disabled, and cannot log in")),
        Some(false) => None,
        None => Some(format!("note: there is no user {shown}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_be_somebody_is_a_principal() {
        for good in ["anonymous", "cert:a", "user:ann", "user:Zoë M.", "cert:a:b"] {
            check_principal(good).unwrap();
        }
        for bad in [
            "", "bob", "role:x", "cert:", "user:", "cert:a-*", "*", "Cert:a",
        ] {
            let error = check_principal(bad).unwrap_err().to_string();
            assert!(
                error.contains("cert:NAME, user:NAME and anonymous"),
                "{error}"
            );
        }
    }
}

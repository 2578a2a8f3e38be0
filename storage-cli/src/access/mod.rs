//! `access`: who may do what. One file per sub-command; here: what they share, rules as the server lists them.

mod explain;
mod grant;
mod list;
mod revoke;
mod scope;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::output::Output;

pub(crate) use scope::{Permission, Permissions, Scope};

const EXAMPLES: &str = "\
Examples:
  storage access grant user:ann models read,write,watch
  storage access grant 'cert:robot-*' models:robots/ write
  storage access explain user:ann models robots/7 write

Rules only allow; without one, nothing is allowed. Needs admin of the keyspace \"system\", to which the URL need not lead.";

/// Shows and changes who may do what
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Access {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Grant(grant::Grant),
    Revoke(revoke::Revoke),
    Explain(explain::Explain),
}

impl Access {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        match self.command {
            Command::List(list) => list.run(app, out).await,
            Command::Grant(grant) => grant.run(app, out).await,
            Command::Revoke(revoke) => revoke.run(app).await,
            Command::Explain(explain) => explain.run(app, out).await,
        }
    }
}

/// A prefix of a rule or of a grant is text, whatever --hex makes of keys.
pub(crate) fn check_prefix_form(app: &App, what: &str) -> anyhow::Result<()> {
    match app.form().hex {
        false => Ok(()),
        true => Err(usage(format!(
            "--hex: the prefix of a {what} is UTF-8 text, which is never given in hexadecimal; leave --hex out"
        ))),
    }
}

/// Where a rule or a role comes from.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// The configuration, of which it is this one.
    Config(u64),
    /// The store, under this name.
    Name(String),
}

/// What a rule says.
#[derive(Debug, Deserialize)]
pub(crate) struct Rule {
    principal: String,
    keyspace: String,
    #[serde(default)]
    prefix: String,
    allow: Vec<String>,
}

impl Rule {
    fn is_for(&self, principal: &str, scope: &Scope) -> bool {
        self.principal == principal
            && self.keyspace == scope.keyspace
            && self.prefix == scope.prefix
    }

    /// For a line: PRINCIPAL, KEYSPACE[:PREFIX] and PERMISSIONS, with tabs between.
    fn shown(&self) -> String {
        format!(
            "{}\t{}",
            escape::text(self.principal.as_bytes()),
            self.given()
        )
    }

    /// The same without the principal.
    fn given(&self) -> String {
        let scope = match self.prefix.as_str() {
            "" => self.keyspace.clone(),
            prefix => format!("{}:{prefix}", self.keyspace),
        };
        let (scope, allow) = (escape::text(scope.as_bytes()), self.allow.join(","));
        format!("{scope}\t{}", escape::text(allow.as_bytes()))
    }

    /// A grant of a token, as it is written there: KEYSPACE[:PREFIX]:PERMISSIONS.
    pub(crate) fn as_grant(&self) -> String {
        let prefix = match self.prefix.as_str() {
            "" => String::new(),
            prefix => format!(":{prefix}"),
        };
        format!("{}{prefix}:{}", self.keyspace, self.allow.join(","))
    }
}

#[derive(Debug, Deserialize)]
struct Listed {
    from: Origin,
    rule: Rule,
}

impl Listed {
    /// The name under which it is stored.
    fn stored(&self) -> Option<&str> {
        match &self.from {
            Origin::Name(name) => Some(name),
            Origin::Config(_) => None,
        }
    }

    fn line(&self) -> String {
        line(&self.from, &self.rule)
    }
}

/// A rule on a line, its name in front: in quotes where that has spaces, which tells it from what is no name.
fn line(from: &Origin, rule: &Rule) -> String {
    let name = match from {
        Origin::Config(place) => format!("rule[{place}] of the configuration"),
        Origin::Name(name) => escape::field(name.as_bytes(), false).into_owned(),
    };
    format!("{name}\t{}", rule.shown())
}

/// All rules.
async fn rules(api: &Api) -> anyhow::Result<Vec<Listed>> {
    let answer = api.ask(&api::path(&["rules"])).await?;
    let listed = api::list(&answer, "rules")?.iter().map(api::read);
    Ok(listed.collect::<Result<_, _>>()?)
}

/// A rule as the server takes it.
fn record(principal: &str, scope: &Scope, allow: &[&str]) -> Value {
    json!({
        "principal": principal,
        "keyspace": scope.keyspace,
        "prefix": scope.prefix,
        "allow": allow,
    })
}

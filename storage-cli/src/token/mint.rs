//! `token mint`: a token of whoever asks, printed or put into a file that only its owner may read.
//!
//! It cannot be had again: where it cannot be told, its id is, so that it can be revoked.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use storage_client::http::Method;

use crate::access::{Permissions, Scope, check_prefix_form};
use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::Exit;
use crate::output::Output;
use crate::target::Target;
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage token mint > my.token
  storage token mint --ttl 12h --name ci --grant models:ci/:read,write --out ci.token
  curl --header \"Authorization: Bearer $(storage token mint --ttl 5m)\" ...
  storage --json token mint                             # {\"expires\":...,\"id\":...,\"principal\":...,\"token\":...}

Prints the token and nothing else. Its bearer is you, and may what you may, or of that what the grants say. It ends with what it
was minted with: the certificate, the user's password, the token.";

/// Mints a token
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Mint {
    /// How long it is good, such as 15m or 12h [default: as the server has it, 1h]
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// What it is for, to be told by `token list`
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// All that it may, of what you may: KEYSPACE:read,write or KEYSPACE:PREFIX:read (the prefix is UTF-8 text, no --hex); may
    /// be given several times
    #[arg(long = "grant", value_name = "KEYSPACE[:PREFIX]:PERMISSIONS")]
    grants: Vec<Grant>,
    /// Write the token to this file (mode 0600), which is replaced; --json then prints the rest
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A rule for the token's bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    scope: Scope,
    permissions: Permissions,
}

impl FromStr for Grant {
    type Err = String;

    /// A prefix may have colons, so the permissions are behind the last.
    fn from_str(text: &str) -> Result<Self, String> {
        let (scope, permissions) = text.rsplit_once(':').ok_or_else(|| {
            "expected KEYSPACE:PERMISSIONS or KEYSPACE:PREFIX:PERMISSIONS".to_owned()
        })?;
        Ok(Self {
            scope: scope.parse()?,
            permissions: permissions.parse()?,
        })
    }
}

impl Grant {
    fn record(&self) -> Value {
        json!({
            "keyspace": self.scope.keyspace,
            "prefix": self.scope.prefix,
            "allow": self.permissions.words(),
        })
    }
}

#[derive(Deserialize)]
struct Minted {
    id: String,
    token: String,
    principal: String,
    expires: u64,
}

impl Mint {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        if !self.grants.is_empty() {
            check_prefix_form(app, "grant")?;
        }
        let api = Api::open(app).await?;
        let file = self.out.as_deref().filter(|path| *path != Path::new("-"));
        // Before there is a token that could not be written.
        let target = file.map(Target::open_private).transpose()?;
        let answer = api
            .change(Method::POST, &api::path(&["tokens"]), Some(&self.wanted()))
            .await?;
        let minted: Minted = api::read_changed(&answer)?;
        let id = escape::text(minted.id.as_bytes()).into_owned();
        let told = match target {
            Some(target) => to_file(app, out, target, answer, &minted),
            None if app.json() => out.line(&escape::json_value(&answer)),
            None => out.line(&escape::text(minted.token.as_bytes())),
        };
        let told = told.and_then(|()| out.flush());
        told.with_context(|| {
            format!("a token was minted, which `storage token revoke {id}` ends")
        })?;
        Ok(Exit::Done)
    }

    fn wanted(&self) -> Value {
        let mut wanted = serde_json::Map::new();
        if let Some(ttl) = self.ttl {
            let ttl = humantime::format_duration(ttl).to_string();
            wanted.insert("ttl".to_owned(), ttl.into());
        }
        if let Some(name) = &self.name {
            wanted.insert("name".to_owned(), name.as_str().into());
        }
        if !self.grants.is_empty() {
            let grants = self.grants.iter().map(Grant::record).collect();
            wanted.insert("grants".to_owned(), Value::Array(grants));
        }
        Value::Object(wanted)
    }
}

/// The token to the file, and what else there is to know to people or machines.
fn to_file(
    app: &App,
    out: &mut Output,
    mut target: Target,
    mut answer: Value,
    minted: &Minted,
) -> anyhow::Result<()> {
    target.output().line(&minted.token)?;
    target.finish()?;
    if app.json() {
        if let Some(fields) = answer.as_object_mut() {
            fields.remove("token");
        }
        return out.line(&escape::json_value(&answer));
    }
    let id = escape::text(minted.id.as_bytes());
    let principal = escape::text(minted.principal.as_bytes());
    tell(format_args!(
        "token {id} of {principal}, good until {}",
        api::date(minted.expires)
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_split_at_the_first_colon_and_the_last() {
        for (text, keyspace, prefix, words) in [
            ("models:read", "models", "", &["read"][..]),
            ("models::read", "models", "", &["read"]),
            ("m*:a:b/:watch,read", "m*", "a:b/", &["read", "watch"]),
            ("m:read:read", "m", "read", &["read"]),
        ] {
            let grant: Grant = text.parse().unwrap();
            let expected = json!({ "keyspace": keyspace, "prefix": prefix, "allow": words });
            assert_eq!(grant.record(), expected, "{text}");
        }
        for (bad, why) in [
            ("models", "expected KEYSPACE:PERMISSIONS"),
            (":read", "no keyspace"),
            ("models:a/", "is no permission"),
            ("models:", "is no permission"),
        ] {
            let error = bad.parse::<Grant>().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}

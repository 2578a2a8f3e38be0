//! `access grant`: stores a rule. There is one for each principal, keyspace and prefix, unless somebody named more.

use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use storage_client::http::Method;

use super::{Origin, Permissions, Rule, Scope, check_prefix_form, line, record, rules};
use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::Exit;
use crate::output::Output;
use crate::tell;
use crate::warnings;

const EXAMPLES: &str = "\
Examples:
  storage access grant user:ann models read,write,watch
  storage access grant 'cert:robot-*' models:robots/ write
  storage access grant role:operators 'model*' read --name operators-read
  storage access grant cert:boss system admin            # an administrator of users, tokens and rules

Where a rule is stored for the same principal, keyspace and prefix, the permissions are added to it, under its name, unless
--name asks for another; `access revoke` takes some away. Prints the rule as `access list` does, and on stderr what is odd
about it: that it gives nothing, say.";

/// The longest readable part of a name that is made from a rule, in bytes.
const SLUG_BYTES_MAX: usize = 48;

/// Allows a principal to do something
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Grant {
    /// Who: cert:NAME, user:NAME, anonymous, or role:NAME; * stands for any characters (not in role:NAME)
    principal: String,
    /// Keys that begin with PREFIX (UTF-8 text, no --hex), or all; * stands for any characters in KEYSPACE, but for those of "system"
    #[arg(value_name = "KEYSPACE[:PREFIX]")]
    scope: Scope,
    /// What: read,write,watch,admin or some of them
    permissions: Permissions,
    /// Name of the rule [default: that of the rule which is stored for the same, or made from principal, keyspace and prefix]
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// Also if nobody could change the rules afterwards
    #[arg(long)]
    force: bool,
}

/// What is to be stored, and where.
struct Plan {
    name: String,
    allow: Permissions,
    /// What the rule under this name allowed before.
    before: Option<Vec<String>>,
}

impl Grant {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        check_prefix_form(app, "rule")?;
        let api = Api::open(app).await?;
        let Some(plan) = self.plan(&api).await? else {
            return Ok(Exit::Refused);
        };
        let rule = record(&self.principal, &self.scope, &plan.allow.words());
        let is_there = plan
            .before
            .as_ref()
            .is_some_and(|before| *before == plan.allow.words());
        if !is_there {
            let path = api::path(&["rules", &plan.name]);
            api.change_access(Method::PUT, path, Some(&rule), self.force)
                .await?;
        }
        if let Some(before) = plan.before.filter(|before| *before != plan.allow.words()) {
            let before = before.join(",");
            tell(format_args!("it was {before} before"));
        }
        match app.json() {
            true => {
                let from = json!({ "name": plan.name });
                out.line(&escape::json_value(&json!({ "from": from, "rule": rule })))?;
            }
            false => {
                let rule: Rule = api::read(&rule)?;
                out.line(&line(&Origin::Name(plan.name.clone()), &rule))?;
            }
        }
        out.flush()?;
        warnings::tell_of(&api, "rules", "rule", &plan.name).await;
        Ok(Exit::Done)
    }

    /// `None`: the name is taken, which was told.
    async fn plan(&self, api: &Api) -> anyhow::Result<Option<Plan>> {
        let name = self.name.clone();
        let name = name.unwrap_or_else(|| name_of(&self.principal, &self.scope));
        let listed = rules(api).await?;
        let stored = listed
            .iter()
            .filter_map(|listed| Some((listed.stored()?, &listed.rule)));
        let is_same = |rule: &Rule| rule.is_for(&self.principal, &self.scope);
        let allow = self.permissions.clone();
        match stored.clone().find(|(stored, _)| *stored == name) {
            Some((_, rule)) if is_same(rule) => {
                return Ok(Some(Plan {
                    name,
                    allow: allow.and(&rule.allow),
                    before: Some(rule.allow.clone()),
                }));
            }
            Some((_, rule)) => {
                tell(format_args!(
                    "there is a rule {} for something else: {}; revoke it, or give this one another --name",
                    escape::field(name.as_bytes(), false),
                    rule.shown().replace('\t', " ")
                ));
                return Ok(None);
            }
            None => {}
        }
        // Who asks for a name gets a rule of that name, for instance to be left when another one is revoked.
        let other = match self.name {
            Some(_) => None,
            None => stored.clone().find(|(_, rule)| is_same(rule)),
        };
        Ok(Some(match other {
            Some((name, rule)) => Plan {
                name: name.to_owned(),
                allow: allow.and(&rule.allow),
                before: Some(rule.allow.clone()),
            },
            None => Plan {
                name,
                allow,
                before: None,
            },
        }))
    }
}

/// A name that is always the same for the same, and can be read.
fn name_of(principal: &str, scope: &Scope) -> String {
    let text = format!("{principal} {} {}", scope.keyspace, scope.prefix);
    let mut slug = String::new();
    for c in text.chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '.' | '_') => slug.push(c),
            '*' => slug.push_str("any"),
            _ if slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    slug.truncate(SLUG_BYTES_MAX);
    // None of the parts before the last has a character 0.
    let whole = format!("{principal}\0{}\0{}", scope.keyspace, scope.prefix);
    let hash = hex::encode(&Sha256::digest(whole)[..4]);
    format!("{}-{hash}", slug.trim_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(principal: &str, scope: &str) -> String {
        name_of(principal, &scope.parse().unwrap())
    }

    #[test]
    fn names_are_readable_and_those_of_different_rules_differ() {
        assert_eq!(name("user:ann", "models"), "user-ann-models-cfc3b7d8");
        assert!(name("cert:Robot-*", "m*:Ä/b c/").starts_with("cert-robot-any-many-b-c-"));
        let names = [
            name("a", "b:c"),
            name("a", "b"),
            name("a b", "c"),
            name("A", "b:c"),
            name("a", "b:C"),
            name("a", "b:*"),
            name("a", "b:any"),
        ];
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        let long = name(&"x".repeat(256), &format!("k:{}", "é".repeat(2048)));
        assert_eq!(long.len(), SLUG_BYTES_MAX + 9);
    }
}

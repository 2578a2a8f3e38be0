//! `role`: names for groups of principals, to which rules can be given.
//!
//! The server stores a role as a whole: its members are read, changed and written. Of two who do that at once the later
//! one counts.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;
use storage_client::http::Method;

use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::output::Output;
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage role add operators user:ann 'cert:ops-*'
  storage access grant role:operators 'model*' read,watch
  storage role rm operators user:ann
  storage role rm operators";

/// Shows and changes roles
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Role {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Adds members to a role, which need not be there yet
    Add {
        /// Role, without "role:"
        name: String,
        /// Principals: cert:NAME, user:NAME; * stands for any characters
        #[arg(value_name = "MEMBER")]
        members: Vec<String>,
    },
    /// Removes members of a role, or the role if none is named
    Rm {
        /// Role, without "role:"
        name: String,
        /// Members as `role list` has them
        #[arg(value_name = "MEMBER")]
        members: Vec<String>,
        /// Also if nobody could change the rules afterwards
        #[arg(long)]
        force: bool,
    },
    /// Prints NAME<TAB>MEMBER MEMBER... lines
    List,
}

/// A role with all members that it has anywhere, the configuration included.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    members: BTreeSet<String>,
}

impl Role {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        match self.command {
            Command::Add { name, members } => {
                check_name(&name)?;
                let api = Api::open(app).await?;
                let role = add(&api, &name, &members).await?;
                show(app, out, &role)?;
                Ok(Exit::Done)
            }
            Command::Rm {
                name,
                members,
                force,
            } => {
                check_name(&name)?;
                let api = Api::open(app).await?;
                remove(&api, &name, &members, force).await
            }
            Command::List => {
                for role in roles(&Api::open(app).await?).await? {
                    show(app, out, &role)?;
                }
                Ok(Exit::Done)
            }
        }
    }
}

/// What the server takes as a name, to be said before anything is changed.
pub(crate) fn check_name(name: &str) -> anyhow::Result<()> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_good = name.bytes().next().is_some_and(is_plain)
        && name.len() <= 63
        && name.bytes().all(|b| is_plain(b) || b"._-".contains(&b));
    match is_good {
        true => Ok(()),
        false => Err(usage(format!(
            "{name:?} is no name of a role; they are of the form [a-z0-9][a-z0-9._-]{{0,62}}, without \"role:\""
        ))),
    }
}

fn show(app: &App, out: &mut Output, role: &Listed) -> anyhow::Result<()> {
    if app.json() {
        let role = json!({ "name": role.name, "members": role.members });
        return out.line(&escape::json_value(&role));
    }
    let members = role.members.iter();
    let members: Vec<_> = members
        .map(|member| escape::field(member.as_bytes(), false))
        .collect();
    let name = escape::text(role.name.as_bytes());
    out.line(&format!("{name}\t{}", members.join(" ")))
}

async fn roles(api: &Api) -> anyhow::Result<Vec<Listed>> {
    let answer = api.ask(&api::path(&["rules"])).await?;
    let listed = api::list(&answer, "roles")?.iter().map(api::read);
    Ok(listed.collect::<Result<_, _>>()?)
}

async fn role(api: &Api, name: &str) -> anyhow::Result<Option<Listed>> {
    Ok(roles(api).await?.into_iter().find(|role| role.name == name))
}

async fn put(api: &Api, role: &Listed, force: bool) -> anyhow::Result<()> {
    let path = api::forced(api::path(&["roles", &role.name]), force);
    let body = json!({ "members": role.members });
    api.change(Method::PUT, &path, Some(&body)).await?;
    Ok(())
}

/// Adds members; the role as it is then.
pub(crate) async fn add_member(api: &Api, name: &str, member: &str) -> anyhow::Result<()> {
    add(api, name, &[member.to_owned()]).await.map(drop)
}

async fn add(api: &Api, name: &str, members: &[String]) -> anyhow::Result<Listed> {
    let known = role(api, name).await?;
    let is_new = known.is_none();
    let mut role = known.unwrap_or_else(|| Listed {
        name: name.to_owned(),
        members: BTreeSet::new(),
    });
    let before = role.members.len();
    role.members.extend(members.iter().cloned());
    if is_new || role.members.len() > before {
        put(api, &role, false).await?;
    }
    Ok(role)
}

async fn remove(api: &Api, name: &str, members: &[String], force: bool) -> anyhow::Result<Exit> {
    if members.is_empty() {
        let path = api::forced(api::path(&["roles", name]), force);
        api.change(Method::DELETE, &path, None).await?;
        return Ok(Exit::Done);
    }
    let Some(mut role) = role(api, name).await? else {
        tell(format_args!("there is no role {name}"));
        return Ok(Exit::Refused);
    };
    let mut exit = Exit::Done;
    let before = role.members.len();
    for member in members {
        if !role.members.remove(member) {
            let member = escape::text(member.as_bytes());
            tell(format_args!("{member} is no member of {name}"));
            exit = Exit::Refused;
        }
    }
    if role.members.len() < before {
        put(api, &role, force).await?;
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_roles() {
        for good in ["a", "0", "ops.night_2-x", &"x".repeat(63)] {
            check_name(good).unwrap();
        }
        for bad in ["", "role:a", "A", "-a", ".a", "a b", "ä", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}

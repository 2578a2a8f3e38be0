//! `role`: names for groups of principals, to which rules can be given.
//!
//! The server stores a role as a whole: its members are read, changed and written. Of two who do that at once the later
//! one counts.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;
use storage_client::http::Method;

use crate::access::Origin;
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
    /// Prints NAME<TAB>MEMBER MEMBER...<TAB>ORIGIN lines; a role of the configuration and one that is stored have their
    /// members together
    List,
}

/// A role as the configuration or the store has it; both may have one of a name.
#[derive(Debug, Deserialize)]
struct Listed {
    from: Origin,
    name: String,
    members: BTreeSet<String>,
}

impl Listed {
    fn is_stored(&self) -> bool {
        matches!(self.from, Origin::Name(_))
    }

    /// A role that is to be stored.
    fn new(name: &str) -> Self {
        Self {
            from: Origin::Name(name.to_owned()),
            name: name.to_owned(),
            members: BTreeSet::new(),
        }
    }
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
        let role = json!({ "from": role.from, "name": role.name, "members": role.members });
        return out.line(&escape::json_value(&role));
    }
    let members = role.members.iter();
    let members: Vec<_> = members
        .map(|member| escape::field(member.as_bytes(), false))
        .collect();
    let name = escape::text(role.name.as_bytes());
    let origin = match role.is_stored() {
        true => "stored",
        false => "configuration",
    };
    out.line(&format!("{name}\t{}\t{origin}", members.join(" ")))
}

async fn roles(api: &Api) -> anyhow::Result<Vec<Listed>> {
    let answer = api.ask(&api::path(&["rules"])).await?;
    let listed = api::list(&answer, "roles")?.iter().map(api::read);
    Ok(listed.collect::<Result<_, _>>()?)
}

/// The one that is stored under this name, and the members that the configuration gives it; `None`: it has none.
async fn role(api: &Api, name: &str) -> anyhow::Result<(Option<Listed>, Option<BTreeSet<String>>)> {
    let (stored, configured): (Vec<_>, Vec<_>) = roles(api)
        .await?
        .into_iter()
        .filter(|role| role.name == name)
        .partition(Listed::is_stored);
    let configured = configured.into_iter().map(|role| role.members);
    let configured = configured.reduce(|all, members| all.into_iter().chain(members).collect());
    Ok((stored.into_iter().next(), configured))
}

async fn put(api: &Api, role: &Listed, force: bool) -> anyhow::Result<()> {
    let path = api::path(&["roles", &role.name]);
    let body = json!({ "members": role.members });
    api.change_access(Method::PUT, path, Some(&body), force)
        .await?;
    Ok(())
}

/// Adds members; the role as it is then.
pub(crate) async fn add_member(api: &Api, name: &str, member: &str) -> anyhow::Result<()> {
    add(api, name, &[member.to_owned()]).await.map(drop)
}

async fn add(api: &Api, name: &str, members: &[String]) -> anyhow::Result<Listed> {
    let (stored, configured) = role(api, name).await?;
    let is_new = stored.is_none() && configured.is_none();
    let configured = configured.unwrap_or_default();
    let mut role = stored.unwrap_or_else(|| Listed::new(name));
    let before = role.members.len();
    let others = members
        .iter()
        .filter(|member| !configured.contains(*member));
    role.members.extend(others.cloned());
    if is_new || role.members.len() > before {
        put(api, &role, false).await?;
    }
    Ok(role)
}

async fn remove(api: &Api, name: &str, members: &[String], force: bool) -> anyhow::Result<Exit> {
    if members.is_empty() {
        let path = api::path(&["roles", name]);
        api.change_access(Method::DELETE, path, None, force).await?;
        return Ok(Exit::Done);
    }
    let (stored, configured) = role(api, name).await?;
    if stored.is_none() && configured.is_none() {
        tell(format_args!("there is no role {name}"));
        return Ok(Exit::Refused);
    }
    let configured = configured.unwrap_or_default();
    let mut role = stored.unwrap_or_else(|| Listed::new(name));
    let mut exit = Exit::Done;
    let before = role.members.len();
    for member in members {
        let was_stored = role.members.remove(member);
        let shown = escape::text(member.as_bytes());
        if configured.contains(member) {
            tell(format_args!(
                "still there, to be removed by hand: {shown} is a member of {name} by the configuration"
            ));
            exit = Exit::Refused;
        } else if !was_stored {
            tell(format_args!("{shown} is no member of {name}"));
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

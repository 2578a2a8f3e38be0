//! `user`: who may log in with a password. One file per sub-command that has something to it; here: the others, and what
//! they share.

mod add;
mod list;
mod passwd;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};
use storage_client::http::{Method, StatusCode};

use crate::api::{self, Api, Refused};
use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::output::Output;
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage user add ann --role operators
  storage user passwd ann
  storage --user ann --ca ca.pem whoami

A user may nothing until a rule says so: `storage access grant user:ann ...`. All but a change of one's own password is for
administrators.";

/// Shows and changes who may log in with a password
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct User {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(add::Add),
    Passwd(passwd::Passwd),
    /// Lets a user log in no more; its connections and tokens end for good, its password stays
    Disable {
        /// User
        name: String,
        /// Also if nobody could change the access rules afterwards
        #[arg(long)]
        force: bool,
    },
    /// Lets a user log in again
    Enable {
        /// User
        name: String,
    },
    /// Removes a user; its connections and tokens end, rules and roles that name it stay
    Rm {
        /// User
        name: String,
        /// Also if nobody could change the access rules afterwards
        #[arg(long)]
        force: bool,
    },
    List(list::List),
}

impl User {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        match self.command {
            Command::Add(add) => add.run(app).await,
            Command::Passwd(passwd) => passwd.run(app).await,
            Command::Disable { name, force } => disable(app, &name, true, force).await,
            Command::Enable { name } => disable(app, &name, false, false).await,
            Command::Rm { name, force } => {
                check_name(&name)?;
                let api = Api::open(app).await?;
                let path = api::path(&["users", &name]);
                api.change_access(Method::DELETE, path, None, force).await?;
                Ok(Exit::Done)
            }
            Command::List(list) => list.run(app, out).await,
        }
    }
}

/// A user as the server lists it.
#[derive(Deserialize)]
struct Listed {
    name: String,
    disabled: bool,
    /// In ms since 1970.
    password_set: u64,
}

/// What the server takes as a name, as far as it is easily mistaken.
fn check_name(name: &str) -> anyhow::Result<()> {
    match name.strip_prefix("user:") {
        Some(plain) => Err(usage(format!(
            "the user's name is {plain:?}, without \"user:\""
        ))),
        None if name.is_empty() => Err(usage("a user's name is not empty")),
        None if name.contains(':') => Err(usage(format!("{name:?}: a user's name has no colon"))),
        None if name.contains('/') => Err(usage(format!("{name:?}: a user's name has no \"/\""))),
        None => Ok(()),
    }
}

async fn put(api: &Api, name: &str, body: &Value) -> anyhow::Result<()> {
    api.change(Method::PUT, &api::path(&["users", name]), Some(body))
        .await?;
    Ok(())
}

async fn disable(app: &App, name: &str, disabled: bool, force: bool) -> anyhow::Result<Exit> {
    check_name(name)?;
    let api = Api::open(app).await?;
    if is_missing(&api, name).await? {
        return Ok(Exit::Refused);
    }
    let (path, body) = (api::path(&["users", name]), json!({ "disabled": disabled }));
    api.change_access(Method::PUT, path, Some(&body), force)
        .await?;
    Ok(Exit::Done)
}

/// Whether there is no such user, which is told then, before a password is asked for; the server refuses it too. Who may
/// not see the users is told no: it may change no other's.
async fn is_missing(api: &Api, name: &str) -> anyhow::Result<bool> {
    let found = match is_disabled(api, name).await {
        Err(error) if is_forbidden(&error) => return Ok(false),
        answer => answer?,
    };
    if found.is_some() {
        return Ok(false);
    }
    tell(format_args!(
        "there is no user {}",
        escape::text(name.as_bytes())
    ));
    Ok(true)
}

/// `None`: there is no such user.
pub(crate) async fn is_disabled(api: &Api, name: &str) -> anyhow::Result<Option<bool>> {
    let answer = api.ask(&api::path(&["users"])).await?;
    for user in api::list(&answer, "users")? {
        let user: Listed = api::read(user)?;
        if user.name == name {
            return Ok(Some(user.disabled));
        }
    }
    Ok(None)
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<Refused>();
    refused.is_some_and(|refused| refused.status() == StatusCode::FORBIDDEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_users_have_no_colon_and_no_slash() {
        for good in ["ann", "Zoë M.", "a@b"] {
            check_name(good).unwrap();
        }
        for (bad, why) in [
            ("", "empty"),
            ("user:ann", "is \"ann\""),
            ("a:b", "no colon"),
            ("a/b", "no \"/\""),
        ] {
            let error = check_name(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

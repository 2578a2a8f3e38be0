//! `user add`: a new user with a password, and with roles.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::{check_name, put};
use crate::api::Api;
use crate::app::App;
use crate::failure::{Exit, usage};
use crate::{role, secret};

const EXAMPLES: &str = "\
Examples:
  storage user add ann
  storage user add ann --role operators --role readers
  pwgen --secure 20 1 | tee ann.password | storage user add ann
  storage user add ann --new-password-file ann.password

The password has 1 to 1,024 bytes, on one line. It is asked for twice on a terminal; otherwise it is stdin or the file, of which
a newline at the end is cut. A user that is there
already is left as it is, and makes the exit code 1.";

/// Adds a user
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Add {
    /// User
    name: String,
    /// Role that it becomes a member of; may be given several times
    #[arg(long = "role", value_name = "R")]
    roles: Vec<String>,
    /// File with the password of the new user
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
}

impl Add {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<Exit> {
        let name = &self.name;
        check_name(name)?;
        for role in &self.roles {
            role::check_name(role)?;
        }
        if !self.roles.is_empty() && name.contains('*') {
            return Err(usage(format!(
                "{name:?}: in a role, * would stand for any characters, so for other users too"
            )));
        }
        let api = Api::open(app).await?;
        let password = secret::new_password(name, self.new_password_file.as_deref()).await?;
        put(&api, name, &json!({ "password": password, "new": true })).await?;
        for role in &self.roles {
            let added = role::add_member(&api, role, &format!("user:{name}")).await;
            added.with_context(|| format!("the user was added, but not to the role {role}"))?;
        }
        Ok(Exit::Done)
    }
}

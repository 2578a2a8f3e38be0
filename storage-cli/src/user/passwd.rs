//! `user passwd`: another password, one's own or, for administrators, anybody's.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{check_name, is_missing, put};
use crate::api::Api;
use crate::app::App;
use crate::failure::Exit;
use crate::secret;

const EXAMPLES: &str = "\
Examples:
  storage --user ann --ca ca.pem user passwd ann        # one's own: asks for the present one first
  storage user passwd ann --new-password-file ann.password

The new password has 1 to 1,024 bytes, on one line. It is asked for twice on a terminal; otherwise it is stdin or the file, of
which a newline at the end is cut. Connections that the user has by the old one end, and tokens that were minted before.";

/// Sets a password
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Passwd {
    /// User
    name: String,
    /// File with the new password
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
}

impl Passwd {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<Exit> {
        check_name(&self.name)?;
        let api = Api::open(app).await?;
        if is_missing(&api, &self.name).await? {
            return Ok(Exit::Refused);
        }
        let password = secret::new_password(&self.name, self.new_password_file.as_deref()).await?;
        put(&api, &self.name, &json!({ "password": password })).await?;
        Ok(Exit::Done)
    }
}

//! `token`: what programs log in with. One file per sub-command that has something to it.

mod list;
mod mint;

use clap::{Args, Subcommand};
use serde::Deserialize;
use storage_client::http::Method;

use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::output::Output;
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage token mint --ttl 12h --name ci --grant models:ci/:read,write --out ci.token
  storage --token-file ci.token --ca ca.pem get ci/last
  storage token list
  storage token revoke ID
  storage token revoke --all                            # of everybody: after a restored backup";

/// Mints, lists and revokes tokens
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mint(mint::Mint),
    List(list::List),
    /// Revokes a token, and those that were minted with it; their connections end
    Revoke {
        /// Its id, as `token list` has it
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// All tokens of everybody, with the keys that they are signed with: after a backup was restored, or its keys may
        /// have been read. For administrators
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
    /// Signs with a new key from now on; tokens that are out stay good. For administrators
    RotateKeys,
}

impl Token {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        match self.command {
            Command::Mint(mint) => mint.run(app, out).await,
            Command::List(list) => list.run(app, out).await,
            Command::Revoke { id: None, .. } => {
                let path = api::path(&["tokens"]);
                let api = Api::open(app).await?;
                let answer = api.change(Method::DELETE, &path, None).await?;
                let Revoked { revoked } = api::read_changed(&answer)?;
                match app.json() {
                    true => out.line(&escape::json_value(&answer))?,
                    false => tell(format_args!("revoked {revoked} tokens")),
                }
                Ok(Exit::Done)
            }
            Command::Revoke { id: Some(id), .. } if id.is_empty() => {
                Err(usage("which token? Its id is empty"))
            }
            Command::Revoke { id: Some(id), .. } => {
                change(app, Method::DELETE, &api::path(&["tokens", &id])).await
            }
            Command::RotateKeys => change(app, Method::POST, &api::path(&["keys"])).await,
        }
    }
}

/// How many tokens have ended.
#[derive(Deserialize)]
struct Revoked {
    revoked: u64,
}

async fn change(app: &App, method: Method, path: &str) -> anyhow::Result<Exit> {
    Api::open(app).await?.change(method, path, None).await?;
    Ok(Exit::Done)
}

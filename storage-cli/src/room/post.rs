//! `room post`.

use std::ffi::OsString;

use anyhow::Context;
use clap::Args;
use storage_protocol::rooms::Draft;

use super::{Which, connect, show};
use crate::app::App;
use crate::failure::{Exit, usage};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage room post NODE n-1 hello
  storage room post NODE n-1 @minutes.txt --author robot
  date | storage room post GLOBAL '' -

Makes the room where it is missing. Prints the message as it is stored. A text is stored as it is; of its markup the gateway shows
to browsers what is harmless.";

/// Posts a message
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Post {
    #[command(flatten)]
    which: Which,
    /// Text: UTF-8, @FILE (the file's bytes; @@ for a literal @) or - (stdin)
    text: OsString,
    /// Who says it [default: who you are, as whoami tells, without "user:"]
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
    /// What the room is called if it is made
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
}

impl Post {
    pub(super) async fn run(
        self,
        app: &App,
        out: &mut Output,
        prefix: String,
    ) -> anyhow::Result<Exit> {
        let key = self.which.key()?;
        // Texts are no keys or values: --hex does not make them other ones.
        let mut arguments = crate::text::Form { hex: false }.arguments();
        let text = arguments.bytes("TEXT", &self.text)?;
        let text = String::from_utf8(text.into()).map_err(|_| usage("TEXT is not UTF-8"))?;
        let rooms = connect(app, prefix).await?;
        let author = self.author.unwrap_or_else(|| {
            let principal = rooms.storage().principal();
            let name = principal.strip_prefix("user:").map(str::to_owned);
            name.unwrap_or(principal)
        });
        let draft = Draft::new(author, text).context("--author")?;
        app.writing();
        let (room, _) = rooms.open_or_create(&key, &self.label).await?;
        let message = rooms.post(&room, &draft).await?;
        app.written();
        out.line(&show(app, &message))?;
        Ok(Exit::Done)
    }
}

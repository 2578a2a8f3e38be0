//! `put`: one value under one key.
//!
//! The position it prints is what `watch --after` takes. Writing begins with the connection: an interruption behind
//! that leaves the outcome unknown, and says so.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use storage_protocol::{Batch, CommitOptions, Lifetime, Position, Storage};

use crate::app::App;
use crate::failure::Exit;
use crate::json::Object;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage put greeting hello
  storage put weights/1 @weights.bin --ttl 1h
  date | storage put now -
  storage --hex put 00ff 68656c6c6f

Prints the commit's position, EPOCH:REVISION.";

/// Puts a value
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Put {
    /// Key (text, @FILE or -)
    #[arg(allow_negative_numbers = true)]
    key: OsString,
    /// Value (text, @FILE or -)
    #[arg(allow_negative_numbers = true)]
    value: OsString,
    /// How long it lives, such as 500ms or 1h [default: until it is removed]
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
}

impl Put {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let mut arguments = app.form().arguments();
        let key = arguments.bytes("KEY", &self.key)?;
        let value = arguments.bytes("VALUE", &self.value)?;
        let lifetime = self.ttl.map_or(Lifetime::Forever, Lifetime::TimeToLive);
        let batch = Batch::new().put_with(key, value, lifetime);
        commit(app, out, batch).await
    }
}

/// Commits and prints the position.
pub(crate) async fn commit(app: &App, out: &mut Output, batch: Batch) -> anyhow::Result<Exit> {
    let storage = app.connect().await?;
    app.writing();
    let done = storage.commit(batch, CommitOptions::default()).await;
    app.written();
    let position: Position = done?;
    let text = match app.json() {
        true => Object::new().position(position).finish(),
        false => position.to_string(),
    };
    // Where the position cannot be told there, it is told here: the commit is done.
    let told = out.line(&text).and_then(|()| out.flush());
    told.with_context(|| format!("committed at {position}"))?;
    Ok(Exit::Done)
}

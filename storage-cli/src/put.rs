//! `put`: one value under one key; a file, or what comes from stdin, may have any size.
//!
//! What is longer than one part of an object is written as one: in parts, which are sent while they are read, and shown by
//! one commit. The position it prints is what `watch --after` takes. An interruption before that commit leaves nothing;
//! behind it the outcome is unknown, and that is said.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use storage_client::RemoteStorage;
use storage_protocol::objects::{ObjectOptions, ObjectWriter, parts_range};
use storage_protocol::{
    Batch, CommitOptions, Key, Lifetime, Position, Storage, StorageError, StorageExt,
};

use crate::app::App;
use crate::content::{Content, Rest};
use crate::failure::{Exit, storage_words};
use crate::json::Object;
use crate::output::{Output, progress};
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage put greeting hello
  storage put weights/1 @weights.bin --ttl 1h
  storage put model @model.tar          # of any size
  date | storage put now -
  storage --hex put 00ff 68656c6c6f

A file, or stdin, of more than 1 MiB becomes an object: its bytes are in parts under keys that begin with KEY, which `get` and
`rm` take together. With --ttl it stays one value, and has at most what the server takes for one.
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
        let content = arguments.content("VALUE", &self.value)?;
        let content = match self.ttl {
            Some(_) => Content::Whole(content.whole()?),
            None => content,
        };
        match content {
            Content::Whole(value) => {
                let lifetime = self.ttl.map_or(Lifetime::Forever, Lifetime::TimeToLive);
                let batch = Batch::new().put_with(key.clone(), value, lifetime);
                commit(app, out, batch, &[key]).await
            }
            Content::Long(head, rest) => {
                let storage = app.connect().await?;
                let options = ObjectOptions {
                    wait: Some(|duration| Box::pin(tokio::time::sleep(duration))),
                    ..ObjectOptions::default()
                };
                let mut writer = ObjectWriter::new(storage, key, options).await?;
                writer.write(head).await?;
                if let Err(error) = write(&mut writer, rest).await {
                    // Best effort: what is left, the server removes when the session ends.
                    let _ = writer.abort().await;
                    return Err(error);
                }
                app.writing();
                let done = writer.finish().await;
                app.written();
                print(app, out, done?.info.written)
            }
        }
    }
}

async fn write(writer: &mut ObjectWriter<'_>, rest: Rest) -> anyhow::Result<()> {
    let bar = progress(rest.total);
    bar.set_position(writer.size());
    let mut chunks = rest.chunks();
    while let Some(chunk) = chunks.next().await? {
        writer.write(chunk).await?;
        bar.set_position(writer.size());
    }
    bar.finish_and_clear();
    Ok(())
}

/// Commits and prints the position. Then removes what is left of objects that were at these keys before.
pub(crate) async fn commit(
    app: &App,
    out: &mut Output,
    batch: Batch,
    keys: &[Key],
) -> anyhow::Result<Exit> {
    let storage = app.connect().await?;
    app.writing();
    let done = storage.commit(batch, CommitOptions::default()).await;
    app.written();
    let exit = print(app, out, done?)?;
    remove_parts(app, &storage, keys).await;
    Ok(exit)
}

pub(crate) fn print(app: &App, out: &mut Output, position: Position) -> anyhow::Result<Exit> {
    let text = match app.json() {
        true => Object::new().position(position).finish(),
        false => position.to_string(),
    };
    // Where the position cannot be told there, it is told here: the commit is done.
    let told = out.line(&text).and_then(|()| out.flush());
    told.with_context(|| format!("committed at {position}"))?;
    Ok(Exit::Done)
}

/// What was asked for is done already, so that a failure here is told and no more.
pub(crate) async fn remove_parts(app: &App, storage: &RemoteStorage, keys: &[Key]) {
    let mut failed = Vec::new();
    let mut why = None;
    for key in keys {
        match storage.sweep_objects(parts_range(key)).await {
            // A key of the greatest length has no parts.
            Ok(_) | Err(StorageError::LimitExceeded { .. }) => {}
            Err(error) => {
                failed.push(key);
                why.get_or_insert(error);
            }
        }
    }
    let (Some(first), Some(why)) = (failed.first(), why) else {
        return;
    };
    let first = app.form().show(first);
    let which = match failed.len() {
        1 => first.into_owned(),
        count => format!("{first} (and {} more)", count - 1),
    };
    let why = storage_words(&why);
    tell(format_args!(
        "warning: it is done, but if there was an object at {which} before, some of its parts may be left: {why}. `storage sweep` \
         of who may read and write there removes them"
    ));
}

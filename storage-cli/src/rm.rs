//! `rm`: removes keys, all of them in one commit, and then the parts of those that were objects.
//!
//! The commit says of an object's parts that they are to go, so the server removes what a client that is gone has left.
//!
//! A key that is absent already is no failure.

use std::ffi::OsString;

use clap::Args;
use storage_client::RemoteStorage;
use storage_protocol::objects::{parts_range, remove_objects_with};
use storage_protocol::{Batch, CommitOptions, Key, Result, ScanOptions, Storage, StorageError};

use crate::app::App;
use crate::failure::Exit;
use crate::output::Output;
use crate::put;

const EXAMPLES: &str = "\
Examples:
  storage rm greeting
  storage rm weights/1 weights/2

All keys go in one commit; an absent one is no failure. Prints the commit's position, EPOCH:REVISION.";

/// Removes keys
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Rm {
    /// Keys (text, @FILE or -)
    #[arg(value_name = "KEY", required = true, allow_negative_numbers = true)]
    keys: Vec<OsString>,
}

impl Rm {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let mut arguments = app.form().arguments();
        let keys = self.keys.iter().map(|key| arguments.bytes("KEY", key));
        let mut keys: Vec<Key> = keys.collect::<anyhow::Result<_>>()?;
        keys.sort_unstable();
        let storage = app.connect().await?;
        let (mut objects, mut others) = (Vec::new(), Vec::new());
        for key in keys {
            match has_parts(&storage, &key).await? {
                true => objects.push(key),
                false => others.push(key),
            }
        }
        let batch = others.iter().cloned().fold(Batch::new(), Batch::remove);
        if objects.is_empty() {
            return put::commit(app, out, batch, &others).await;
        }
        app.writing();
        let done = remove_objects_with(&storage, &objects, batch, CommitOptions::default()).await;
        app.written();
        let exit = put::print(app, out, done?)?;
        put::remove_parts(app, &storage, &others).await;
        Ok(exit)
    }
}

/// Whether there is an object at a key, or was one: what has no parts is removed without being read.
async fn has_parts(storage: &RemoteStorage, key: &Key) -> Result<bool> {
    let options = ScanOptions {
        keys_only: true,
        limit: Some(1),
        ..ScanOptions::default()
    };
    match storage.scan(parts_range(key), options).await {
        Ok(mut scan) => Ok(scan.next_page().await?.is_some()),
        // Who may write and not read has no way to look, and is told so behind the commit. A key of the greatest length has
        // no parts.
        Err(StorageError::AccessDenied { .. } | StorageError::LimitExceeded { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

//! `rm`: removes keys, all of them in one commit, and then the parts of those that were objects.
//!
//! A key that is absent already is no failure.

use std::ffi::OsString;

use clap::Args;
use storage_protocol::{Batch, Key};

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
        let keys: Vec<Key> = keys.collect::<Result<_, _>>()?;
        let batch = keys.iter().cloned().fold(Batch::new(), Batch::remove);
        put::commit(app, out, batch, &keys).await
    }
}

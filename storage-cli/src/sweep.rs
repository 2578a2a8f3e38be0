//! `sweep`: removes parts of objects that belong to none.

use std::ffi::OsString;

use clap::Args;
use storage_protocol::StorageExt;

use crate::app::App;
use crate::failure::Exit;
use crate::json::Object;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage sweep
  storage sweep --prefix models/

What a plain put, remove or import over an object leaves. Objects, and those that are being written, are not touched. Prints
how many parts it removed, and of how many objects.";

/// Removes parts of objects that are there no more
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Sweep {
    /// Keys that begin with this [default: all]
    #[arg(long, value_name = "P")]
    prefix: Option<OsString>,
}

impl Sweep {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let range = app.form().arguments().prefix(self.prefix.as_deref())?;
        let storage = app.connect().await?;
        // A part of the work that was done stays done, and doing it again does no harm.
        let swept = storage.sweep_objects(range).await?;
        out.line(&match app.json() {
            true => Object::new()
                .number("parts", swept.parts)
                .number("objects", swept.objects)
                .finish(),
            false => format!("{} parts of {} objects", swept.parts, swept.objects),
        })?;
        Ok(Exit::Done)
    }
}

//! `job follow`: what becomes of a job, as it happens, until it has ended.

use clap::Args;
use storage_protocol::deliveries::{DeliveryError, StateKind};
use storage_protocol::{Storage, StorageError, WatchEvent, WatchOptions};

use super::{error, id_of, show};
use crate::app::App;
use crate::failure::Exit;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage job follow order-7
  storage job follow order-7 --json && echo done

Prints a line for each change, as `job list` does. Exit code 0 when it is done, 1 when it has failed or was cancelled. A
recurring job goes on until somebody cancels it.";

/// Prints what becomes of a job, until it has ended
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Follow {
    /// Its id
    id: String,
}

impl Follow {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let id = id_of(&self.id)?;
        let storage = app.connect().await?;
        let deliveries =
            storage_protocol::deliveries::Deliveries::new(std::sync::Arc::new(storage.clone()));
        // Attached before the first look, so that no change is missed in between.
        let options = WatchOptions::default();
        let mut watch = storage.watch(deliveries.record_range(&id), options).await?;
        app.tell_outages();
        let mut shown = None;
        loop {
            let found = deliveries.get(&id).await.map_err(error)?;
            let Some(stored) = found else {
                return Err(error(DeliveryError::NoJob(id)));
            };
            if shown != Some(stored.revision) {
                shown = Some(stored.revision);
                out.line(&show(app, &stored))?;
                out.flush()?;
            }
            match stored.job.state.kind() {
                StateKind::Done => return Ok(Exit::Done),
                StateKind::Failed | StateKind::Cancelled => return Ok(Exit::Refused),
                _ => {}
            }
            loop {
                match watch.next().await {
                    Ok(Some(WatchEvent::Progress { .. })) => {}
                    Ok(Some(_)) => break,
                    Ok(None) => return Ok(Exit::Refused),
                    Err(StorageError::Compacted { .. } | StorageError::AccessChanged) => {
                        watch = storage.watch(deliveries.record_range(&id), options).await?;
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

//! The task that writes a replica to its folder: at most once per interval, and at the end.
//!
//! Each write takes what changed since the last one together with the position of the state, under one lock, so that
//! the folder always holds a coherent state. A write that fails is the last one: the replica goes on in memory, and its
//! status shows the error.

use std::sync::Arc;
use std::time::Duration;

use storage_protocol::Position;
use tokio_util::sync::CancellationToken;

use super::disk::Disk;
use super::error::ReplicaError;
use super::shared::Shared;
use crate::sync::lock;

/// How often the position is written if nothing changed: often enough that the compacted revision does not pass it.
const QUIET_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Saver {
    disk: Arc<Disk>,
    shared: Arc<Shared>,
    /// Cancelled when nothing more will change.
    ended: CancellationToken,
}

impl Saver {
    pub(super) fn new(disk: Disk, shared: Arc<Shared>, ended: CancellationToken) -> Self {
        Self {
            disk: Arc::new(disk),
            shared,
            ended,
        }
    }

    /// Runs until the end of the replica; the folder is free when this returns.
    pub(super) async fn run(self) {
        loop {
            tokio::select! {
                () = self.ended.cancelled() => break,
                () = self.shared.save_wanted.notified() => {}
                () = tokio::time::sleep(QUIET_INTERVAL) => {}
            }
            if !self.save().await {
                return;
            }
            tokio::select! {
                () = self.ended.cancelled() => break,
                () = tokio::time::sleep(self.shared.options.save_interval) => {}
            }
        }
        self.save().await;
    }

    /// Writes what changed; false if nothing more is to be written.
    async fn save(&self) -> bool {
        let Some((position, rows)) = self.shared.take_unsaved() else {
            return true;
        };
        if rows.is_empty() && lock(&self.shared.facts).saved == Some(position) {
            return true;
        }
        let disk = self.disk.clone();
        let write = tokio::task::spawn_blocking(move || disk.write(position, &rows));
        let written: Result<(), ReplicaError> = match write.await {
            Ok(written) => written,
            // Only the end of the runtime, or a panic in redb, leads here.
            Err(error) => Err(ReplicaError::Folder {
                folder: Default::default(),
                what: format!("the write was given up: {error}"),
            }),
        };
        self.note(position, written)
    }

    fn note(&self, position: Position, written: Result<(), ReplicaError>) -> bool {
        match written {
            Ok(()) => {
                lock(&self.shared.facts).saved = Some(position);
                true
            }
            Err(error) => {
                tracing::error!(%error, "a replica is not kept on disk any more");
                self.shared.give_up_saving(&error);
                false
            }
        }
    }
}

//! Writes to the folder, beside everything else: at most once per interval, and at the end.
//!
//! Each write takes what changed since the last one together with the position it stands at, under one lock, so that the
//! folder goes from the state at one mark to the state at a later one. A write that fails is the last one: the replica
//! goes on in memory, and its status tells.

use std::sync::Arc;
use std::time::Duration;

use storage_protocol::Position;
use tokio_util::sync::CancellationToken;

use super::disk::Disk;
use super::error::ReplicaError;
use super::shared::Shared;
use crate::sync::lock;

/// How often the position is written where nothing changed: often enough that the tombstones' horizon does not pass it.
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

    /// Until the end; the folder is free when this returns.
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

    /// Whether it may be tried again.
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
            // Only the end of the runtime, or a panic in redb, comes here.
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

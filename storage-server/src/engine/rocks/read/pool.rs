//! The read pool: work that may wait for the disk, on a bounded number of blocking threads.

use std::sync::Arc;

use storage_protocol::{Outcome, Result, StorageError};
use tokio::task::JoinHandle;

use crate::blocking;
use crate::engine::rocks::{EngineShared, closed};

/// Ends a task that nobody waits for any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl EngineShared {
    /// Runs a read that may block, on the read pool. If the future is dropped before the read has a thread, the read
    /// never begins.
    pub(crate) async fn on_pool<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut reading = AbortOnDrop(self.begin_on_pool(read));
        (&mut reading.0).await.unwrap_or_else(read_failed)
    }

    /// The same for work that must be done even if its caller no longer waits for it.
    pub(crate) async fn on_pool_to_the_end<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.begin_on_pool(work).await.unwrap_or_else(read_failed)
    }

    fn begin_on_pool<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let shared = self.clone();
        // On a task of its own: the task waits for the permit and gives it back, so that it is never held by a caller
        // that is not polled (a parked session, a watch dropped from a `select!`).
        tokio::spawn(async move {
            let place = shared.readers.clone().acquire_owned().await;
            let place = place.map_err(|_| closed())?;
            let read = move || {
                let _place = place;
                read(&shared)
            };
            blocking::read(read).await.unwrap_or_else(read_failed)
        })
    }
}

pub(crate) fn read_failed<T>(error: tokio::task::JoinError) -> Result<T> {
    Err(StorageError::Internal {
        message: format!("a read failed: {error}"),
        outcome: Outcome::NotExecuted,
    })
}

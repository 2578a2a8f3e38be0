//! A commit that is sent again while the server has no room for it.

use std::time::Duration;

use super::Wait;
use crate::{Batch, CommitOptions, Position, Result, Storage, StorageError};

/// The first wait; each one is twice as long as the one before, up to the longest.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// All waits of one commit together.
const PATIENCE: Duration = Duration::from_secs(30);

/// Commits, and again while it is refused as `Overloaded` (which means that it was not executed), if there is a way to wait.
pub(super) async fn commit(
    storage: &dyn Storage,
    batch: Batch,
    options: CommitOptions,
    wait: Option<Wait>,
) -> Result<Position> {
    let Some(wait) = wait else {
        return storage.commit(batch, options).await;
    };
    let (mut waited, mut next) = (Duration::ZERO, SHORTEST);
    loop {
        let done = storage.commit(batch.clone(), options.clone()).await;
        let Err(StorageError::Overloaded { .. }) = done else {
            return done;
        };
        if waited >= PATIENCE {
            return done;
        }
        wait(next).await;
        waited += next;
        next = LONGEST.min(2 * next);
    }
}

//! Calls that wait for a progress event: for a position, for a proof, for a re-read.
//!
//! None of them waits for the next periodic probe: each asks the follower for one of its own.

use std::time::Duration;

use storage_protocol::{
    Batch, CommitOptions, Key, Position, Result as StorageResult, ScanOptions, Storage,
    StorageError,
};

use super::clock::Moment;
use super::reload::Verdict;
use super::shared::Shared;
use super::{Committed, Proof, Reloaded, Replica, ReplicaError};
use crate::sync::lock;

impl Replica {
    /// Waits until the state holds everything up to `position`: with the position of a commit, reads see what it wrote,
    /// or what replaced that. Cancel-safe.
    ///
    /// A position of another epoch than the state's is never compared by its revision; the server is asked whether its
    /// present history holds it.
    ///
    /// # Errors
    /// `TimedOut`; `Stopped`; `EpochChanged` where the present history does not hold the position.
    pub async fn wait_for(
        &self,
        position: Position,
        timeout: Duration,
    ) -> Result<Proof, ReplicaError> {
        let reached = tokio::time::timeout(timeout, self.reach(position)).await;
        reached.unwrap_or(Err(ReplicaError::TimedOut { timeout }))
    }

    async fn reach(&self, mut wanted: Position) -> Result<Proof, ReplicaError> {
        let mut marks = self.shared.marks.subscribe();
        let mut asked_at = None;
        self.shared.probe_wanted.notify_one();
        loop {
            marks.borrow_and_update();
            match self.proof() {
                Ok(proof) if proof.position.epoch == wanted.epoch => {
                    if proof.position.revision >= wanted.revision {
                        return Ok(proof);
                    }
                }
                // Asked once for each epoch that the state reaches.
                Ok(proof) if asked_at != Some(proof.position.epoch) => {
                    match self.in_present_history(wanted).await {
                        Ok(same) => {
                            wanted = same;
                            asked_at = Some(proof.position.epoch);
                            self.shared.probe_wanted.notify_one();
                            continue;
                        }
                        Err(error @ StorageError::EpochChanged { .. }) => return Err(error.into()),
                        // The server did not answer. It is asked again at the next progress event, which shows that it
                        // is back.
                        Err(_) => {}
                    }
                }
                Ok(_) | Err(ReplicaError::NotReady) => {}
                Err(error) => return Err(error),
            }
            let _ = marks.changed().await;
        }
    }

    /// Proves the state anew: waits until it holds every commit that was acknowledged, to anyone, before this call.
    /// Cancel-safe.
    ///
    /// # Errors
    /// `TimedOut`, `Stopped`.
    pub async fn sync(&self, timeout: Duration) -> Result<Proof, ReplicaError> {
        let called = Moment::now();
        let proven = async {
            let mut marks = self.shared.marks.subscribe();
            loop {
                marks.borrow_and_update();
                {
                    let held = self.shared.held();
                    match self.shared.proof(&held) {
                        Ok(proof) if held.proven >= Some(called) => return Ok(proof),
                        Ok(_) | Err(ReplicaError::NotReady) => {}
                        Err(error) => return Err(error),
                    }
                }
                // In each round: the answer that arrived may be that of a probe sent before the call.
                self.shared.probe_wanted.notify_one();
                let _ = marks.changed().await;
            }
        };
        let proven = tokio::time::timeout(timeout, proven).await;
        proven.unwrap_or(Err(ReplicaError::TimedOut { timeout }))
    }

    /// A position of the server's present history that holds everything up to `position`.
    async fn in_present_history(&self, position: Position) -> StorageResult<Position> {
        let storage = &self.shared.storage;
        let options = ScanOptions {
            keys_only: true,
            limit: Some(1),
            newer_than: Some(position),
            ..ScanOptions::default()
        };
        match storage.scan(self.shared.range.clone(), options).await {
            Ok(scan) => Ok(scan.position()),
            // The position is in this history, only too old for a scan of the changes since.
            Err(StorageError::Compacted { .. }) => Ok(storage.get(&[]).await?.position),
            Err(error) => Err(error),
        }
    }

    /// Commits through the storage, then waits until the replica shows the commit: read your writes. Not cancel-safe,
    /// as [`Storage::commit`] is not.
    ///
    /// # Errors
    /// As [`Storage::commit`]. If the replica did not show it in time, [`Committed::seen`] says so.
    pub async fn commit_and_wait(
        &self,
        batch: Batch,
        options: CommitOptions,
        timeout: Duration,
    ) -> StorageResult<Committed> {
        let position = self.shared.storage.commit(batch, options).await?;
        let seen = self.wait_for(position, timeout).await;
        Ok(Committed { position, seen })
    }

    /// Reads these keys from the server and repairs the copy where it differs, at a progress event no older than that
    /// read: the state stays coherent and never goes back. Waits for that progress event, so for a connection too.
    /// Cancel-safe.
    ///
    /// # Errors
    /// `OutOfRange`; as [`Storage::get`]; `Stopped`.
    pub async fn reload(&self, keys: &[Key]) -> Result<Reloaded, ReplicaError> {
        keys.iter().try_for_each(|key| self.check_key(key))?;
        loop {
            let registered = Registered::new(&self.shared, keys)?;
            let reading = self.shared.storage.get(keys).await?;
            let verdict = lock(&self.shared.reloads).read(registered.id, keys, reading);
            self.shared.probe_wanted.notify_one();
            match verdict.await {
                Ok(Verdict::Judged { position, repaired }) => {
                    return Ok(Reloaded { position, repaired });
                }
                Ok(Verdict::Stale) => {}
                // The replica stopped; the next round returns that error.
                Err(_) => {}
            }
        }
    }
}

/// A registered re-read; dropping it removes it.
struct Registered<'a> {
    shared: &'a Shared,
    id: u64,
}

impl<'a> Registered<'a> {
    fn new(shared: &'a Shared, keys: &[Key]) -> Result<Self, ReplicaError> {
        let held = shared.held();
        if let Some(why) = &held.stopped {
            return Err(ReplicaError::Stopped(why.clone()));
        }
        // Under the state's lock: everything that is applied after this state is noted.
        let id = lock(&shared.reloads).register(keys, held.position);
        Ok(Self { shared, id })
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(&self.shared.reloads).forget(self.id);
    }
}

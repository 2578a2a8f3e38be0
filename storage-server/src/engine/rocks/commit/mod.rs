//! Group commit: the one writer of the store, on a thread of its own.
//!
//! The committer takes what is queued, evaluates each commit's checks against the store and the group's earlier commits
//! (the overlay), writes one batch with one synced write, publishes to the feed, and then answers all requests of the
//! group, refused ones included: nobody learns of a commit that is not durable. The feed delivers to the watches on a
//! thread of its own.
//!
//! Invariants: nothing else writes to the database, so the sequence numbers that RocksDB will give are known in
//! advance; a commit's record is the last of its rows, and its sequence number is the commit's revision; the log holds
//! puts and deletes only.

mod apply;
mod compact;
mod group;
mod plan;
mod queue;
mod replaced;
mod task;
mod upkeep;
mod usage;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rocksdb::{WriteBatch, WriteOptions};
use storage_protocol::{Outcome, Revision, StorageError};

pub(crate) use self::compact::compact;
pub(crate) use self::group::Group;
use self::group::Left;
use self::group::Overlaid;
pub(crate) use self::queue::{Queue, Taken};
#[cfg(test)]
pub(crate) use self::task::Work;
pub(crate) use self::task::{Sweep, Task, submit};
use crate::engine::rocks::EngineShared;
use crate::engine::rocks::options::Durability;
use crate::engine::rocks::store::{CachedEntry, EntryCache};

/// Runs until the queue is closed and drained.
pub(crate) fn run(shared: &EngineShared) {
    // Also when the committer panics: the feed's thread must not wait for ever.
    let _close = CloseFeed(shared);
    let mut sync = WriteOptions::default();
    sync.set_sync(shared.store.options.durability == Durability::Sync);
    let mut committer = Committer {
        shared,
        sync,
        writes: VecDeque::with_capacity(WRITES_KEPT),
        left: Left::default(),
    };
    // What was written until here was written while the store was opened.
    shared.store.entry_cache.start(shared.store.revision());
    while shared.queue.wait() {
        committer.commit();
    }
    committer.tidy();
}

/// So many writes tell what one costs.
const WRITES_KEPT: usize = 16;

struct CloseFeed<'a>(&'a EngineShared);

impl Drop for CloseFeed<'_> {
    fn drop(&mut self) {
        self.0.feed.close();
    }
}

struct Committer<'a> {
    shared: &'a EngineShared,
    sync: WriteOptions,
    /// How long the last writes took.
    writes: VecDeque<Duration>,
    left: Left,
}

impl Committer<'_> {
    /// Takes works, evaluates them, and writes them as one group, or as more where one is full.
    fn commit(&mut self) {
        let mut taken = Taken::new(Instant::now(), self.least_write());
        let mut group = None::<Group<'_>>;
        loop {
            let works = self.shared.queue.take_share(&mut taken);
            if works.is_empty() {
                break;
            }
            for work in works {
                if let Some(full) = group.take_if(|group| group.is_full()) {
                    self.write(full);
                }
                // Only once the group before is written: the next one's revisions follow on it.
                group
                    .get_or_insert_with(|| {
                        Group::begin(self.shared, std::mem::take(&mut self.left))
                    })
                    .take(work);
            }
        }
        if let Some(group) = group {
            self.write(group);
        }
    }

    /// Leaves nothing to be done, at the end.
    fn tidy(&mut self) {
        let left = std::mem::take(&mut self.left);
        if !left.replaced.is_empty() && self.shared.store.check_poison().is_ok() {
            let mut group = Group::begin(self.shared, left);
            group.delete_replaced();
            self.write(group);
        }
    }

    /// What a write costs, whatever it carries: the shortest of the last ones. Others took longer for their size, or
    /// because the processors had other work; groups by these would make the next ones larger still.
    fn least_write(&self) -> Duration {
        self.writes.iter().min().copied().unwrap_or_default()
    }

    /// Makes a group durable, then publishes it and answers.
    fn write(&mut self, group: Group<'_>) {
        let Group {
            mut batch,
            base,
            sequence_numbers,
            records,
            made,
            answers,
            dues,
            fenced,
            counted,
            overlay,
            replaced,
            ..
        } = group;
        let store = &self.shared.store;
        let count = answers.len();
        if sequence_numbers > 0 {
            let began = Instant::now();
            let bytes = batch.bytes();
            let counts = usage::bring_counts(&mut batch, &counted);
            let finished = counts.and_then(|()| batch.finish(sequence_numbers));
            // A large one is not held twice while it is written.
            batch = batch.reuse();
            // Ordering: before the write. Whoever sees a keyspace's first commit must find the keyspace. If the write
            // fails, the store is poisoned.
            for (keyspace, row) in made {
                keyspace.set_row(row);
            }
            if let Err(reason) = self.write_batch(finished, base + sequence_numbers) {
                store.poison(&reason);
                store.entry_cache.stop();
                self.shared.feed.wake_all_waiting();
                for (reply, _) in answers {
                    let error = StorageError::Internal {
                        message: "a write failed; the store takes no more until it is reopened"
                            .to_owned(),
                        outcome: Outcome::Unknown,
                    };
                    // A caller that is gone needs no answer.
                    let _ = reply.send(Err(error));
                }
                return;
            }
            self.shared
                .replaced_left
                .store(!replaced.is_empty(), Ordering::Relaxed);
            usage::publish(counted);
            cache(&store.entry_cache, overlay);
            store
                .entry_cache
                .set_current(Revision(base + sequence_numbers));
            let took = began.elapsed();
            if self.writes.len() == WRITES_KEPT {
                self.writes.pop_front();
            }
            self.writes.push_back(took);
            self.shared.metrics.wrote(count, bytes, took);
            self.shared.disk.wrote(bytes);
            if let Some(due) = dues.into_iter().min() {
                self.shared.expiry_timer.set(due);
            }
        }
        // Not after a failed write: the rows that it would have replaced are in use.
        self.left = Left { replaced, batch };
        // Ordering: durable, then published, then answered: a caller that has its answer finds the commit everywhere.
        // The feed's thread delivers it to the watches meanwhile.
        self.shared
            .feed
            .publish(records, Revision(base + sequence_numbers));
        // The fences first: the socket of a fenced handle is closed, and gets no answers any more; its successor asks
        // again.
        for before in fenced {
            before.cancel();
        }
        for (reply, answer) in answers {
            let _ = reply.send(answer);
        }
    }

    fn write_batch(
        &self,
        batch: std::result::Result<WriteBatch, String>,
        last: u64,
    ) -> std::result::Result<(), String> {
        let store = &self.shared.store;
        store
            .db
            .write_opt(batch?, &self.sync)
            .map_err(|error| error.to_string())?;
        let found = store.db.latest_sequence_number();
        if found != last {
            return Err(format!(
                "the write ended at number {found}, expected {last}: something else writes"
            ));
        }
        Ok(())
    }
}

/// Brings what a group has changed into the cache, once it can be read.
fn cache(cache: &EntryCache, overlay: impl IntoIterator<Item = (Vec<u8>, Overlaid)>) {
    for (row_key, row) in overlay {
        let entry = match row {
            Overlaid::Entry(entry) => Some(entry),
            Overlaid::Large { head, value } => Some(CachedEntry::Head {
                head,
                value_bytes: value.len(),
            }),
            Overlaid::Gone => None,
        };
        cache.set(row_key, entry);
    }
}

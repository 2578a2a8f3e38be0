//! The state that the handles, the follower and the saver of one replica share.
//!
//! Locks are taken in the order of the fields and never held over an `.await`. Everything that changes at a progress
//! event (state, position, queues of consumers, what is to be saved) changes under the write lock of `held`, so that a
//! holder of that lock sees all of it at the same position.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use storage_protocol::{
    Continuity, Key, KeyRange, Limit, Outcome, Position, Storage, StorageError,
};
use tokio::sync::{Notify, watch};

use super::Proof;
use super::changes::{ChangeBatch, Changes, Consumer, ReplicaEvent};
use super::clock::Moment;
use super::disk::Row;
use super::error::ReplicaError;
use super::held::{Held, Staging};
use super::options::ReplicaOptions;
use super::reload::Reloads;
use super::status::{ReplicaState, ReplicaStatus};
use crate::sync::lock;

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) range: KeyRange,
    pub(super) options: ReplicaOptions,
    held: RwLock<Held>,
    consumers: Mutex<Vec<Weak<Consumer>>>,
    pub(super) reloads: Mutex<Reloads>,
    unsaved: Mutex<Unsaved>,
    pub(super) facts: Mutex<Facts>,
    /// Bytes staged for the next progress event.
    pub(super) staged_bytes: AtomicUsize,
    /// Sent to at each progress event and at the end; the number means nothing.
    pub(super) marks: watch::Sender<u64>,
    /// A call waits for a progress event: a probe is to be sent now, or once the present one is answered.
    pub(super) probe_wanted: Notify,
    /// There is something for the folder.
    pub(super) save_wanted: Notify,
}

/// The fields of [`ReplicaStatus`] that are not part of the held state.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) state: ReplicaState,
    pub(super) full_passes: u64,
    pub(super) resumes: u64,
    pub(super) breaks: u64,
    pub(super) states_fetched: u64,
    pub(super) bytes_fetched: u64,
    pub(super) repaired: u64,
    pub(super) last_error: Option<StorageError>,
    pub(super) saved: Option<Position>,
    pub(super) save_error: Option<String>,
}

/// Keys that differ from what the folder holds.
#[derive(Debug, Default)]
struct Unsaved {
    /// Whether there is a folder, and it can be written to.
    wanted: bool,
    keys: BTreeSet<Key>,
}

/// A progress event to be applied.
pub(super) struct Mark {
    pub(super) position: Position,
    /// When the probe was sent that this event answers.
    pub(super) proven: Option<Moment>,
    /// The meaning of a break before it.
    pub(super) news: Option<Continuity>,
}

impl Shared {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        range: KeyRange,
        options: ReplicaOptions,
        held: Option<Held>,
    ) -> Self {
        let saved = held.as_ref().and_then(|held| held.position);
        Self {
            storage,
            range,
            unsaved: Mutex::new(Unsaved {
                wanted: options.folder.is_some(),
                keys: BTreeSet::new(),
            }),
            options,
            held: RwLock::new(held.unwrap_or_default()),
            consumers: Mutex::default(),
            reloads: Mutex::default(),
            facts: Mutex::new(Facts {
                state: ReplicaState::Starting,
                full_passes: 0,
                resumes: 0,
                breaks: 0,
                states_fetched: 0,
                bytes_fetched: 0,
                repaired: 0,
                last_error: None,
                saved,
                save_error: None,
            }),
            staged_bytes: AtomicUsize::new(0),
            marks: watch::Sender::new(0),
            probe_wanted: Notify::new(),
            save_wanted: Notify::new(),
        }
    }

    pub(super) fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The position of the held state and its age, however old it is.
    pub(super) fn proof(&self, held: &Held) -> Result<Proof, ReplicaError> {
        if let Some(why) = &held.stopped {
            return Err(ReplicaError::Stopped(why.clone()));
        }
        let position = held.position.ok_or(ReplicaError::NotReady)?;
        let age = held.proven.map(Moment::age);
        Ok(Proof { position, age })
    }

    /// The same, if it is fresh enough to read from.
    pub(super) fn fresh_proof(&self, held: &Held) -> Result<Proof, ReplicaError> {
        let proof = self.proof(held)?;
        match self.options.freshness_max {
            Some(freshness_max) if proof.age.is_none_or(|age| age > freshness_max) => {
                Err(ReplicaError::TooOld {
                    age: proof.age,
                    freshness_max,
                })
            }
            _ => Ok(proof),
        }
    }

    /// Makes the staged states visible, in one step, as the state at a progress event.
    ///
    /// # Errors
    /// The progress event lies before the state's position; or with repairs the state is over the memory bound.
    pub(super) fn apply(&self, staging: Staging, mark: Mark) -> Result<(), StorageError> {
        let mut held = self.held_mut();
        if let Some(at) = held.position
            && at.epoch == mark.position.epoch
            && mark.position.revision < at.revision
        {
            return Err(StorageError::PeerMisbehaved {
                message: format!("a mark went back from {at} to {}", mark.position),
                outcome: Outcome::NotExecuted,
            });
        }
        let whole = staging.whole;
        let mut changes = held.apply(staging, mark.position);
        let repaired =
            lock(&self.reloads).check_reload(&mut held, mark.position, whole, &mut changes);
        // The answer to a later probe may already have proven more.
        held.proven = held.proven.max(mark.proven);
        let mut wants_save = !changes.is_empty();
        {
            let mut unsaved = lock(&self.unsaved);
            if unsaved.wanted {
                let keys = changes.iter().map(|change| change.key.clone());
                unsaved.keys.extend(keys);
            } else {
                wants_save = false;
            }
        }
        let news = mark.news.map(ReplicaEvent::Continuity);
        let batch = (!changes.is_empty()).then(|| {
            ReplicaEvent::Changed(Arc::new(ChangeBatch {
                position: mark.position,
                changes,
            }))
        });
        lock(&self.consumers).retain(|consumer| {
            let Some(consumer) = consumer.upgrade() else {
                return false;
            };
            for event in news.iter().chain(&batch) {
                consumer.push(event.clone());
            }
            true
        });
        let bytes = held.bytes();
        drop(held);
        self.staged_bytes.store(0, Ordering::Relaxed);
        lock(&self.facts).repaired += repaired;
        if wants_save {
            self.save_wanted.notify_one();
        }
        self.marks.send_modify(|mark| *mark = mark.wrapping_add(1));
        self.check_memory(bytes)
    }

    /// # Errors
    /// So many bytes are over the bound.
    pub(super) fn check_memory(&self, bytes: usize) -> Result<(), StorageError> {
        let max = self.options.memory_bytes_max;
        if bytes > max {
            return Err(StorageError::limit(Limit::Memory, bytes, max));
        }
        Ok(())
    }

    /// Ends everything with `why`.
    pub(super) fn stop(&self, why: StorageError) {
        let mut held = self.held_mut();
        held.stop(why.clone());
        for consumer in lock(&self.consumers).drain(..) {
            if let Some(consumer) = consumer.upgrade() {
                consumer.end(&why);
            }
        }
        *lock(&self.reloads) = Reloads::default();
        drop(held);
        self.staged_bytes.store(0, Ordering::Relaxed);
        lock(&self.facts).state = ReplicaState::Stopped { why };
        self.marks.send_modify(|mark| *mark = mark.wrapping_add(1));
    }

    /// A consumer of the changes after `held`, which the caller has locked.
    pub(super) fn subscribe(&self, held: &Held) -> Changes {
        let consumer = Consumer::new(held.position, self.options.changes_bytes_max);
        let consumer = Arc::new(consumer);
        match &held.stopped {
            Some(why) => consumer.end(why),
            None => lock(&self.consumers).push(Arc::downgrade(&consumer)),
        }
        Changes::new(consumer)
    }

    /// The changes that the folder does not hold yet, and the position of the folder's state with them.
    pub(super) fn take_unsaved(&self) -> Option<(Position, Vec<Row>)> {
        let held = self.held();
        let position = held.position?;
        let mut unsaved = lock(&self.unsaved);
        if !unsaved.wanted {
            return None;
        }
        let keys = std::mem::take(&mut unsaved.keys);
        let rows = keys.into_iter().map(|key| {
            let entry = held.entries().get(&key).cloned();
            (key, entry)
        });
        Some((position, rows.collect()))
    }

    /// Nothing is saved from here on.
    pub(super) fn give_up_saving(&self, error: &ReplicaError) {
        *lock(&self.unsaved) = Unsaved::default();
        lock(&self.facts).save_error = Some(error.to_string());
    }

    pub(super) fn status(&self) -> ReplicaStatus {
        let held = self.held();
        let facts = lock(&self.facts);
        ReplicaStatus {
            state: facts.state.clone(),
            position: held.position,
            age: held.proven.map(Moment::age),
            entries: held.entries().len(),
            bytes: held.bytes() + self.staged_bytes.load(Ordering::Relaxed),
            full_passes: facts.full_passes,
            resumes: facts.resumes,
            breaks: facts.breaks,
            states_fetched: facts.states_fetched,
            bytes_fetched: facts.bytes_fetched,
            repaired: facts.repaired,
            last_error: facts.last_error.clone(),
            saved: facts.saved,
            save_error: facts.save_error.clone(),
        }
    }
}

/// The error of a replica that was closed.
pub(super) fn closed() -> StorageError {
    StorageError::Closed {
        reason: "the replica was closed".to_owned(),
        outcome: Outcome::NotExecuted,
    }
}

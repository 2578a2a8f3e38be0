//! The contract in executable form: a store in a `BTreeMap`, behind one lock.
//!
//! It is the specification, so it is simple and not fast: every commit is kept for ever, a scan copies what it will
//! tell, a watch looks through the whole history for its next event. What an engine does differently is a bug in one
//! of the two.
//!
//! Invariant: a commit is judged completely before anything is changed, and changed under one lock.

mod history;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, KeyState, Keyspace, Limit, Limits, Position,
    Reading, Result, Revision, Scan, ScanItem, ScanOptions, ScanSource, Storage, StorageError,
    UnixMillis, Watch, WatchMode, WatchOptions, WatchStart, begin_commit,
};

use history::{History, Writer};
use watch::{EveryWatch, LatestWatch, Subscription};

/// A whole store: keyspaces with one revision counter, one epoch and one log. Clones share it.
#[derive(Clone, Debug)]
pub struct ModelStore {
    history: Arc<Mutex<History>>,
}

impl Default for ModelStore {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelStore {
    /// An empty store with a random epoch, on the machine's clock.
    #[must_use]
    pub fn new() -> Self {
        Self {
            history: Arc::new(Mutex::new(History::new(None))),
        }
    }

    /// An empty store whose clock stands at `now` until [`ModelStore::expire_due`] moves it.
    #[must_use]
    pub fn with_manual_clock(now: UnixMillis) -> Self {
        Self {
            history: Arc::new(Mutex::new(History::new(Some(now)))),
        }
    }

    /// A handle on one keyspace, with a session of its own, as principal `server`.
    #[must_use]
    pub fn storage(&self, keyspace: &Keyspace) -> ModelStorage {
        self.storage_as("server", keyspace)
    }

    /// A handle on one keyspace, with a session of its own, as `principal`.
    #[must_use]
    pub fn storage_as(&self, principal: &str, keyspace: &Keyspace) -> ModelStorage {
        ModelStorage {
            history: self.history.clone(),
            writer: Writer {
                keyspace: keyspace.clone(),
                principal: principal.to_owned(),
                session: lock(&self.history).open_session(),
            },
            open_scans: Arc::default(),
            open_watches: Arc::default(),
        }
    }

    /// Sets a manual clock to `now` and removes every entry that is due by then, each by a commit labelled `expired`.
    pub fn expire_due(&self, now: UnixMillis) {
        lock(&self.history).expire_due(now);
    }

    /// Forgets the log up to `to`: a new watch `Every` from before it fails with `Compacted`.
    pub fn compact_log(&self, to: Revision) {
        lock(&self.history).compact_log(to);
    }

    /// Forgets the tombstones of a keyspace up to `to`, which becomes its horizon.
    pub fn drop_tombstones(&self, keyspace: &Keyspace, to: Revision) {
        lock(&self.history).drop_tombstones(keyspace, to);
    }
}

/// One keyspace of a [`ModelStore`], through one session. Clones share the session.
#[derive(Clone, Debug)]
pub struct ModelStorage {
    history: Arc<Mutex<History>>,
    writer: Writer,
    /// Scans of this session that are not dropped yet, at most [`Limits::scans_max`].
    open_scans: Arc<AtomicUsize>,
    /// Watches of this session that are not dropped yet, at most [`Limits::watches_max`].
    open_watches: Arc<AtomicUsize>,
}

impl ModelStorage {
    /// Ends the session: what it put with its lifetime, and nobody put since, is removed by a commit labelled
    /// `session ended`. Later commits of it are refused as `Closed`.
    pub fn end_session(&self) {
        lock(&self.history).end_session(&self.writer);
    }

    /// The keyspace as it was at `revision`, built by repeating its history.
    #[must_use]
    pub fn state_at(&self, revision: Revision) -> BTreeMap<Key, Entry> {
        lock(&self.history).state_at(&self.writer.keyspace, revision)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Storage for ModelStorage {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        let limits = Limits::default();
        check_max(Limit::KeysPerGet, keys.len(), limits.keys_per_get_max)?;
        for key in keys {
            check_max(Limit::Key, key.len(), limits.key_bytes_max)?;
        }
        let history = lock(&self.history);
        let value: Vec<_> = keys
            .iter()
            .map(|key| history.live(&self.writer.keyspace, key).cloned())
            .collect();
        let bytes = value.iter().flatten().map(|entry| entry.value.len()).sum();
        check_max(Limit::Message, bytes, limits.message_bytes_max)?;
        Ok(Reading {
            position: history.position(),
            value,
        })
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        let limits = Limits::default();
        range.check_bounds(limits.key_bytes_max)?;
        let permit = Permit::take(&self.open_scans, Limit::Scans, limits.scans_max)?;
        let history = lock(&self.history);
        let mut items = match options.newer_than {
            None => history.live_states(&self.writer.keyspace, &range),
            Some(position) => {
                let after = history.resolve(position)?;
                history.states_after(&self.writer.keyspace, &range, after)?
            }
        };
        if options.reverse {
            items.reverse();
        }
        if let Some(limit) = options.limit {
            items.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        if options.keys_only {
            items.iter_mut().for_each(drop_value);
        }
        let source = ModelScan {
            items: items.into_iter().peekable(),
            _permit: permit,
        };
        Ok(Scan::new(history.position(), Box::new(source)))
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        lock(&self.history).commit(&self.writer, &batch, options)
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        begin_commit(self, batch, options);
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        let limits = Limits::default();
        range.check_bounds(limits.key_bytes_max)?;
        let permit = Permit::take(&self.open_watches, Limit::Watches, limits.watches_max)?;
        let history = lock(&self.history);
        let start = match options.start {
            WatchStart::Now => history.position().revision,
            WatchStart::After(position) => history.resolve(position)?,
            WatchStart::Beginning => Revision::ZERO,
        };
        let subscription = Subscription {
            history: self.history.clone(),
            keyspace: self.writer.keyspace.clone(),
            range,
            cursor: start,
            _permit: permit,
        };
        let position = Position {
            revision: start,
            ..history.position()
        };
        match options.mode {
            WatchMode::Every => {
                history.check_log_reaches(start)?;
                Ok(Watch::new(
                    position,
                    Box::new(EveryWatch::new(subscription)),
                ))
            }
            // The interval is a matter of speed, not of what is told: the model makes a pass as soon as it is asked.
            WatchMode::Latest { min_interval: _ } => Ok(Watch::new(
                position,
                Box::new(LatestWatch::new(subscription)),
            )),
        }
    }

    async fn limits(&self) -> Result<Limits> {
        Ok(Limits::default())
    }
}

/// The pages of a scan: all was copied when it began.
#[derive(Debug)]
struct ModelScan {
    items: std::iter::Peekable<std::vec::IntoIter<ScanItem>>,
    _permit: Permit,
}

#[async_trait]
impl ScanSource for ModelScan {
    async fn next_page(&mut self) -> Result<Option<Vec<ScanItem>>> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        while let Some(item) = self
            .items
            .next_if(|item| page.is_empty() || bytes + item_bytes(item) <= Scan::PAGE_BYTES)
        {
            bytes += item_bytes(&item);
            page.push(item);
        }
        Ok((!page.is_empty()).then_some(page))
    }
}

fn item_bytes(item: &ScanItem) -> usize {
    let value = match &item.state {
        KeyState::Live(entry) => entry.value.len(),
        KeyState::Removed(_) => 0,
    };
    item.key.len() + value
}

fn drop_value(item: &mut ScanItem) {
    if let KeyState::Live(entry) = &mut item.state {
        entry.value.clear();
    }
}

fn check_max(limit: Limit, actual: usize, max: usize) -> Result<()> {
    if actual > max {
        return Err(StorageError::limit(limit, actual, max));
    }
    Ok(())
}

/// One open scan or watch of a session, given back by dropping it.
#[derive(Debug)]
struct Permit(Arc<AtomicUsize>);

impl Permit {
    fn take(open: &Arc<AtomicUsize>, limit: Limit, max: usize) -> Result<Self> {
        let permit = Self(open.clone());
        // Counted before it is judged, so that the drop of a refused permit takes back what it added.
        if open.fetch_add(1, Ordering::SeqCst) >= max {
            let max = max as u64;
            return Err(StorageError::Overloaded { limit, max });
        }
        Ok(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The lock; a case that panicked inside it has already failed, so what it left is still looked at.
fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use storage_protocol::Lifetime;

    use super::*;

    fn commit(storage: &ModelStorage, batch: Batch) -> Position {
        let done = storage.commit(batch, CommitOptions::default());
        done.now_or_never().unwrap().unwrap()
    }

    #[test]
    fn an_entry_expires_when_the_manual_clock_reaches_its_time() {
        let store = ModelStore::with_manual_clock(UnixMillis(1_000));
        let storage = store.storage(&Keyspace::new("a").unwrap());
        let lifetime = Lifetime::TimeToLive(Duration::from_millis(50));
        let put = commit(&storage, Batch::new().put_with("key", "x", lifetime));
        store.expire_due(UnixMillis(1_049));
        assert_eq!(storage.state_at(Revision(u64::MAX)).len(), 1);
        store.expire_due(UnixMillis(1_050));
        assert!(storage.state_at(Revision(u64::MAX)).is_empty());
        assert_eq!(storage.state_at(put.revision).len(), 1);
    }

    #[test]
    fn an_ended_session_takes_no_more_commits() {
        let store = ModelStore::new();
        let storage = store.storage(&Keyspace::new("a").unwrap());
        storage.end_session();
        let refused = storage.commit(Batch::new(), CommitOptions::default());
        let error = refused.now_or_never().unwrap().unwrap_err();
        assert!(matches!(error, StorageError::Closed { .. }));
    }
}

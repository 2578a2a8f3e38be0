//! Records of the directory: each is read once for all who go by it, and known to be out of date as soon as the hub has seen
//! its change.
//!
//! A record is known for as long as somebody holds it, so there are never more than sockets go by. Who holds one that is out of
//! date holds what it said: it is up to the holder to ask.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_util::future::try_join_all;
use storage_protocol::{Key, Result, Storage, StorageError, StorageExt, Value};
use tokio::sync::OnceCell;

/// So many are read at a time for one who asks for many.
const READS_AT_ONCE: usize = 64;
/// Those that nobody holds any more are looked for when there are so many places.
const PLACES_MIN: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Records {
    own: Arc<dyn Storage>,
    places: Mutex<Places>,
    /// Counts changes of records that somebody holds.
    version: AtomicU64,
}

#[derive(Debug)]
struct Places {
    known: HashMap<Key, Weak<Record>>,
    /// With so many those that nobody holds are looked for.
    full: usize,
}

/// Whether what failed may be done later: nothing follows from it then.
pub(super) fn may_pass(error: &StorageError) -> bool {
    !matches!(
        error,
        StorageError::CheckFailed { .. }
            | StorageError::LimitExceeded { .. }
            | StorageError::InvalidArgument { .. }
            | StorageError::QuotaExceeded { .. }
            | StorageError::AccessDenied { .. }
            | StorageError::Unsupported { .. }
    )
}

/// How a record is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// As the hub knows it: a change that was committed just now may be missing.
    AsSeen,
    /// As it is in the store.
    Fresh,
}

/// A record, or that there is none.
#[derive(Debug, Default)]
pub(super) struct Record {
    is_stale: AtomicBool,
    value: OnceCell<Option<Value>>,
}

impl Record {
    /// What it said when it was read.
    pub(super) fn value(&self) -> Option<&Value> {
        self.value.get()?.as_ref()
    }

    /// Whether it was changed since.
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Acquire)
    }
}

impl Records {
    /// `own`: the server's own storage of the keyspace.
    pub(super) fn new(own: Arc<dyn Storage>) -> Self {
        let places = Places {
            known: HashMap::new(),
            full: PLACES_MIN,
        };
        Self {
            own,
            places: Mutex::new(places),
            version: AtomicU64::new(0),
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rises when a record that somebody holds is out of date: whose version it still is has nothing to look at.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// A record. Unless it is to be fresh, it is read only where nobody holds it who has read it since its last change; of those
    /// who ask at once, one reads.
    ///
    /// # Errors
    /// As [`Storage::get`]; what it says is not known then.
    pub(super) async fn get(&self, key: Key, look: Look) -> Result<Arc<Record>> {
        // Ordering: it has its place before it is read, so that no change from here on is missed.
        let (record, is_new) = self.places().at(&key);
        if look == Look::Fresh && !is_new {
            return self.get_fresh(&key, record).await;
        }
        let reading = record.value.get_or_try_init(|| self.read(&key));
        reading.await?;
        Ok(record)
    }

    /// The same though others hold it: the hub may not have seen yet that it was changed.
    async fn get_fresh(&self, key: &Key, mut held: Arc<Record>) -> Result<Arc<Record>> {
        loop {
            let value = self.read(key).await?;
            let mut places = self.places();
            if held.is_stale() {
                // What was read may be older than that.
                held = places.at(key).0;
                continue;
            }
            if held.value.get() == Some(&value) {
                return Ok(held);
            }
            let record = Arc::new(Record {
                is_stale: AtomicBool::new(false),
                value: OnceCell::new_with(Some(value)),
            });
            places.known.insert(key.clone(), Arc::downgrade(&record));
            // Ordering: who sees the version sees this, too.
            held.is_stale.store(true, Ordering::Release);
            self.version.fetch_add(1, Ordering::AcqRel);
            return Ok(record);
        }
    }

    async fn read(&self, key: &Key) -> Result<Option<Value>> {
        match self.own.get_one(key.clone()).await {
            Ok(entry) => Ok(entry.map(|entry| entry.value)),
            // A name that no key can have.
            Err(StorageError::LimitExceeded { .. } | StorageError::InvalidArgument { .. }) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Records, in the order of their keys.
    ///
    /// # Errors
    /// As [`Records::get`].
    pub(super) async fn get_all(&self, keys: Vec<Key>, look: Look) -> Result<Vec<Arc<Record>>> {
        let mut records = Vec::with_capacity(keys.len());
        for keys in keys.chunks(READS_AT_ONCE) {
            let reading = keys.iter().map(|key| self.get(key.clone(), look));
            records.extend(try_join_all(reading).await?);
        }
        Ok(records)
    }

    /// Takes notice of a change.
    pub(super) fn changed(&self, key: &[u8]) {
        // Held to the end: who finds under this lock that a record is not out of date relies on it.
        let mut places = self.places();
        let record = places.known.remove(key);
        if let Some(record) = record.and_then(|record| record.upgrade()) {
            // Ordering: who sees the version sees this, too.
            record.is_stale.store(true, Ordering::Release);
            self.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes notice that any of them may have changed.
    pub(super) fn all_changed(&self) {
        let mut places = self.places();
        let known = std::mem::take(&mut places.known);
        for record in known.into_values().filter_map(|record| record.upgrade()) {
            record.is_stale.store(true, Ordering::Release);
        }
        self.version.fetch_add(1, Ordering::AcqRel);
    }
}

impl Places {
    /// The record that others hold, or a new one that has yet to be read; whether it is one.
    fn at(&mut self, key: &Key) -> (Arc<Record>, bool) {
        if let Some(record) = self.known.get(key).and_then(Weak::upgrade) {
            return (record, false);
        }
        if self.known.len() >= self.full {
            self.known.retain(|_, record| record.strong_count() > 0);
            self.full = PLACES_MIN.max(2 * self.known.len());
        }
        let record = Arc::new(Record::default());
        self.known.insert(key.clone(), Arc::downgrade(&record));
        (record, true)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::super::faulty::Faulty;
    use super::*;

    #[tokio::test]
    async fn a_record_is_read_once_for_all_who_hold_it_until_it_changes() {
        let own = Faulty::new();
        own.set("roles/team", "1").await;
        let records = Records::new(own.clone());
        let get = || records.get(Key::from("roles/team"), Look::AsSeen);
        let held = join_all((0..500).map(|_| get())).await;
        assert_eq!(own.reads(), 1);
        let looked = records.version();
        // What nobody holds concerns nobody.
        records.changed(b"roles/other");
        records.changed(b"node-ids/n-1");
        assert_eq!(records.version(), looked);
        own.set("roles/team", "2").await;
        records.changed(b"roles/team");
        assert_ne!(records.version(), looked);
        assert!(held.iter().flatten().all(|record| record.is_stale()));
        let new = get().await.unwrap();
        assert_eq!((new.value().unwrap().as_ref(), own.reads()), (&b"2"[..], 2));
        assert!(!new.is_stale());
        records.all_changed();
        assert!(new.is_stale());
    }

    #[tokio::test]
    async fn a_read_that_fails_is_no_record_and_is_tried_again() {
        let own = Faulty::new();
        let records = Records::new(own.clone());
        own.fail(true);
        let get = || records.get(Key::from("roles/team"), Look::AsSeen);
        let failed = get().await;
        assert!(matches!(failed, Err(StorageError::Overloaded { .. })));
        own.fail(false);
        let none = get().await.unwrap();
        assert_eq!(none.value(), None);
    }

    #[tokio::test]
    async fn a_fresh_one_has_what_the_hub_has_yet_to_see() {
        let own = Faulty::new();
        own.set("roles/team", "1").await;
        let records = Records::new(own.clone());
        let get = |look| records.get(Key::from("roles/team"), look);
        let held = get(Look::AsSeen).await.unwrap();
        assert!(Arc::ptr_eq(&held, &get(Look::Fresh).await.unwrap()));
        let looked = records.version();
        own.set("roles/team", "2").await;
        assert!(Arc::ptr_eq(&held, &get(Look::AsSeen).await.unwrap()));
        let fresh = get(Look::Fresh).await.unwrap();
        assert_eq!(fresh.value().unwrap().as_ref(), b"2");
        // Those who held what it was are told, and have the new one from now on.
        assert!(held.is_stale() && !fresh.is_stale());
        assert_ne!(records.version(), looked);
        assert!(Arc::ptr_eq(&fresh, &get(Look::AsSeen).await.unwrap()));
        records.changed(b"roles/team");
        assert!(fresh.is_stale());
    }

    #[tokio::test]
    async fn what_nobody_holds_takes_no_room() {
        let records = Records::new(Faulty::new());
        for n in 0..10 * PLACES_MIN {
            let key = Key::from(format!("users/{n}"));
            records.get(key, Look::AsSeen).await.unwrap();
        }
        assert!(records.places().known.len() <= PLACES_MIN);
    }
}

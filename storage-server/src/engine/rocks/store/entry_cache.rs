//! The entry cache: heads and values of entries that were read or written of late, as they were committed last.
//!
//! It is coherent: a reader that finds it current at the store's revision, and the store at that revision still when it
//! is done, has read what that revision has. The reasons:
//!
//! * The committer alone writes entries. It brings each entry that a group has changed into the cache after the group
//!   can be read in the store, and then says up to which revision the cache is current. In between readers read from the
//!   store.
//! * What a reader adds was read from the store after its place in the cache was taken. If the committer changes the
//!   entry meanwhile, it takes the place over, and what was read before is not added.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use quick_cache::sync::{Cache, DefaultLifecycle, GuardResult, PlaceholderGuard};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use storage_protocol::Revision;

use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{Damaged, Head};
use crate::engine::rocks::open::BLOB_BYTES_MIN;

/// What an entry costs beside its key and its value: measured with a million entries of 100 bytes.
const ENTRY_BYTES: usize = 250;

/// Of longer values only the heads are kept. RocksDB keeps those as blobs, and in a cache of its own; and a put has to
/// know the head of what it replaces, for which a whole blob would be read.
const VALUE_BYTES_MAX: usize = BLOB_BYTES_MIN;

/// One value, or one key, may take this part of the cache. What a shard has no room for must never come to it: a place in it
/// would outlast the change that it is to give way to.
const PART_MAX: usize = 256;

/// Each with a lock of its own.
const SHARDS: usize = 32;

/// The revision that no cache is current at, since the store never has it.
const NEVER: u64 = u64::MAX;

/// An entry, or a tombstone, in the cache.
#[derive(Clone, Debug)]
pub(crate) enum CachedEntry {
    /// The value of its row: head and value side by side, and beside them the number of those who have them, so that a
    /// small entry takes one place in the memory that the processor has to wait for.
    Row(Arc<[u8]>),
    /// Its value is not kept.
    Head {
        head: Head,
        /// Of the value.
        value_bytes: usize,
    },
}

impl CachedEntry {
    /// Head, length of the value, and the value if it is kept.
    ///
    /// # Errors
    /// None: only rows that were parsed, or written, are in the cache.
    pub(crate) fn parts(&self) -> Result<(Head, usize, Option<&[u8]>), Damaged> {
        match self {
            Self::Row(row) => {
                let (head, at) = layout::parse_entry_value(row)?;
                let value = row.get(at..).unwrap_or_default();
                Ok((head, value.len(), Some(value)))
            }
            Self::Head { head, value_bytes } => Ok((*head, *value_bytes, None)),
        }
    }
}

#[derive(Clone, Debug)]
struct Weigh;

impl Weighter<Vec<u8>, CachedEntry> for Weigh {
    fn weight(&self, row_key: &Vec<u8>, entry: &CachedEntry) -> u64 {
        let row = match entry {
            CachedEntry::Row(row) => row.len(),
            CachedEntry::Head { .. } => 0,
        };
        (ENTRY_BYTES + row_key.len() + row) as u64
    }
}

type Lifecycle = DefaultLifecycle<Vec<u8>, CachedEntry>;
type Guard<'a> = PlaceholderGuard<'a, Vec<u8>, CachedEntry, Weigh, DefaultHashBuilder, Lifecycle>;

/// See the module.
#[derive(Debug)]
pub(crate) struct EntryCache {
    entries: Cache<Vec<u8>, CachedEntry, Weigh>,
    /// The revision up to which the committer has brought it.
    current: AtomicU64,
    /// Of a value, and of a key.
    bytes_max: usize,
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
}

/// A place for an entry that is to be read from the store now.
#[derive(Debug)]
pub(crate) struct Place<'a>(Guard<'a>);

impl EntryCache {
    /// One for so many bytes. Nobody may use it before [`start`](Self::start).
    pub(crate) fn new(bytes: usize) -> Self {
        let options = OptionsBuilder::new()
            .shards(SHARDS)
            // About as many small ones as there is room for.
            .estimated_items_capacity(bytes / (2 * ENTRY_BYTES))
            .weight_capacity(bytes as u64)
            .build()
            .expect("both capacities are given");
        let hasher = DefaultHashBuilder::default();
        Self {
            entries: Cache::with_options(options, Weigh, hasher, Lifecycle::default()),
            current: AtomicU64::new(NEVER),
            bytes_max: VALUE_BYTES_MAX.min(bytes / PART_MAX),
            hits: Counter::default(),
            misses: Counter::default(),
        }
    }

    /// It is empty, and the store is at this revision. By the committer, before its first group.
    pub(crate) fn start(&self, at: Revision) {
        self.current.store(at.0, Ordering::Release);
    }

    /// A write failed, so what the store has is unknown: nobody uses the cache any more.
    pub(crate) fn stop(&self) {
        self.current.store(NEVER, Ordering::Release);
        self.entries.clear();
    }

    /// Whether it has all changes up to this revision, and none beyond it. Who then reads from it, or adds to it, looks
    /// at the store's revision afterwards: if that is another one by then, what was read is of several revisions.
    pub(crate) fn is_current(&self, at: Revision) -> bool {
        self.current.load(Ordering::Acquire) == at.0
    }

    /// The entry of this row. To the committer it is always current.
    pub(crate) fn get(&self, row_key: &[u8]) -> Option<CachedEntry> {
        self.entries.get(row_key)
    }

    /// The same; or a place for the entry, unless somebody else has it.
    pub(crate) fn get_or_place(&self, row_key: &[u8]) -> Result<CachedEntry, Option<Place<'_>>> {
        if row_key.len() > self.bytes_max {
            return Err(None);
        }
        match self
            .entries
            .get_value_or_guard(row_key, Some(Duration::ZERO))
        {
            GuardResult::Value(entry) => Ok(entry),
            GuardResult::Guard(guard) => Err(Some(Place(guard))),
            GuardResult::Timeout => Err(None),
        }
    }

    /// Whether values of this length are kept, and not only their heads.
    pub(crate) fn keeps(&self, value_bytes: usize) -> bool {
        value_bytes <= self.bytes_max
    }

    /// A row as the cache keeps it.
    ///
    /// # Errors
    /// It does not parse.
    pub(crate) fn entry(&self, row: &[u8]) -> Result<CachedEntry, Damaged> {
        let (head, at) = layout::parse_entry_value(row)?;
        let value_bytes = row.len() - at;
        Ok(match self.keeps(value_bytes) {
            true => CachedEntry::Row(row.into()),
            false => CachedEntry::Head { head, value_bytes },
        })
    }

    /// An entry as a group has left it; `None`: there is no row any more. By the committer, once the group can be read.
    pub(crate) fn set(&self, row_key: Vec<u8>, entry: Option<CachedEntry>) {
        match entry {
            Some(_) if row_key.len() > self.bytes_max => {}
            Some(entry) => self.entries.insert(row_key, entry),
            None => drop(self.entries.remove(&row_key)),
        }
    }

    /// All that was changed up to this revision was set.
    pub(crate) fn set_current(&self, at: Revision) {
        // Once it was stopped it stays so.
        if self.current.load(Ordering::Relaxed) != NEVER {
            self.current.store(at.0, Ordering::Release);
        }
    }

    /// Bytes in it, as they are counted.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.weight()
    }
}

impl Place<'_> {
    /// Adds what was read since the place was taken.
    pub(crate) fn fill(self, entry: CachedEntry) {
        // The committer, which has a newer one, may have taken the place.
        let _ = self.0.insert(entry);
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{UnixMillis, Value};

    use super::*;
    use crate::engine::rocks::layout::Stored;

    fn entry(revision: u64, value: &'static str) -> CachedEntry {
        let head = Head {
            revision: Revision(revision),
            stored: Stored::Forever,
        };
        let row = layout::entry_value(&head, value.as_bytes());
        EntryCache::new(1 << 20).entry(&row).unwrap()
    }

    fn value_of(cache: &EntryCache) -> Option<Value> {
        let entry = cache.get(b"k")?;
        let (.., value) = entry.parts().unwrap();
        value.map(Value::copy_from_slice)
    }

    #[test]
    fn what_was_read_before_a_change_is_not_added_after_it() {
        let cache = EntryCache::new(1 << 20);
        let place = || cache.get_or_place(b"k").unwrap_err().unwrap();
        let reading = place();
        assert!(
            matches!(cache.get_or_place(b"k"), Err(None)),
            "one reader has the place"
        );
        cache.set(b"k".to_vec(), Some(entry(2, "new")));
        reading.fill(entry(1, "old"));
        assert_eq!(value_of(&cache), Some("new".into()));
        // The same where the change took the row away.
        cache.set(b"k".to_vec(), None);
        let reading = place();
        cache.set(b"k".to_vec(), None);
        reading.fill(entry(2, "new"));
        assert_eq!(value_of(&cache), None);
        // And where the change is not in the cache any more.
        let reading = place();
        cache.set(b"k".to_vec(), Some(entry(3, "newer")));
        cache.set(b"k".to_vec(), None);
        reading.fill(entry(2, "new"));
        assert_eq!(value_of(&cache), None);
        // Else it is added; a place that is given up is free again.
        drop(place());
        place().fill(entry(4, "newest"));
        assert_eq!(value_of(&cache), Some("newest".into()));
    }

    #[test]
    fn it_is_current_at_one_revision() {
        let cache = EntryCache::new(1 << 20);
        assert!(!cache.is_current(Revision(0)), "it was not started");
        cache.start(Revision(7));
        assert!(cache.is_current(Revision(7)));
        assert!(
            !cache.is_current(Revision(8)),
            "the committer is to set more"
        );
        cache.set_current(Revision(8));
        assert!(cache.is_current(Revision(8)));
        cache.set(b"k".to_vec(), Some(entry(8, "v")));
        cache.stop();
        assert!(!cache.is_current(Revision(8)));
        cache.set_current(Revision(8));
        assert!(!cache.is_current(Revision(8)), "it was stopped");
        assert_eq!(value_of(&cache), None);
    }

    #[test]
    fn an_entry_comes_out_as_it_went_in() {
        let cache = EntryCache::new(64 << 20);
        for bytes in [0, 1, VALUE_BYTES_MAX, VALUE_BYTES_MAX + 1] {
            let head = Head {
                revision: Revision(7),
                stored: Stored::Until(UnixMillis(9)),
            };
            let value = vec![b'v'; bytes];
            let entry = cache.entry(&layout::entry_value(&head, &value)).unwrap();
            let (found, length, kept) = entry.parts().unwrap();
            assert_eq!((found, length), (head, bytes));
            let expected = (bytes <= VALUE_BYTES_MAX).then_some(&value[..]);
            assert_eq!(kept, expected);
        }
        assert!(cache.entry(b"no row").is_err());
    }

    #[test]
    fn an_entry_with_a_long_key_never_comes_in() {
        let cache = EntryCache::new(1 << 20);
        let longest = vec![b'k'; (1 << 20) / PART_MAX];
        let longer = [&longest[..], b"k"].concat();
        let value = "v".repeat(longest.len());
        let row = layout::entry_value(&entry(1, "").parts().unwrap().0, value.as_bytes());
        for (key, is_kept) in [(longest, true), (longer, false)] {
            assert_eq!(cache.get_or_place(&key).unwrap_err().is_some(), is_kept);
            cache.set(key.clone(), Some(cache.entry(&row).unwrap()));
            assert_eq!(cache.get(&key).is_some(), is_kept, "{} bytes", key.len());
        }
    }

    #[test]
    fn its_size_is_bounded_and_large_values_are_left_out() {
        const BYTES: usize = 1 << 20;
        let cache = EntryCache::new(BYTES);
        assert!(cache.keeps(BYTES / PART_MAX));
        assert!(!cache.keeps(BYTES / PART_MAX + 1));
        for n in 0..20_000u32 {
            let head = Head {
                revision: Revision(1),
                stored: Stored::Tombstone(UnixMillis(1)),
            };
            let tombstone = CachedEntry::Head {
                head,
                value_bytes: 0,
            };
            cache.set(n.to_be_bytes().to_vec(), Some(tombstone));
        }
        assert!(cache.bytes() <= BYTES as u64, "{}", cache.bytes());
        assert!(cache.bytes() > BYTES as u64 / 2, "{}", cache.bytes());
    }
}

//! What the engine counts, and what it tells of itself at a look.
//!
//! Metrics are asked for on the runtime, so nothing here reads the disk or takes a lock of RocksDB's: what only those tell
//! is kept from the housekeeper's last look.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::disk::Need;
use super::store::Store;
use super::{EngineShared as Shared, log};
use crate::metrics::Look;

/// Counters. Written by the committer, read by whoever asks.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    works: Counter,
    groups: Counter,
    bytes: Counter,
    write_micros: AtomicU64,
    resumed: Counter,
    repeated: Counter,
    numbers_reused: Counter,
    log_oldest: AtomicU64,
    memtable_bytes: AtomicU64,
    block_cache_bytes: AtomicU64,
}

impl Metrics {
    /// Looks how far the log reaches back. Blocks. What cannot be read stays as it was.
    pub(super) fn look_at_log(&self, store: &Store) {
        match log::oldest(store) {
            Ok(oldest) => self.log_oldest.store(oldest.0, Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "the log's oldest revision cannot be read"),
        }
    }

    /// Looks how much memory RocksDB has. Takes its lock.
    pub(super) fn look_at_memory(&self, store: &Store) {
        for (kept, property) in [
            (&self.memtable_bytes, "rocksdb.cur-size-all-mem-tables"),
            (&self.block_cache_bytes, "rocksdb.block-cache-usage"),
        ] {
            if let Ok(Some(bytes)) = store.db.property_int_value(property) {
                kept.store(bytes, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn resumed(&self) {
        self.resumed.inc();
    }

    pub(super) fn repeated(&self) {
        self.repeated.inc();
    }

    pub(super) fn number_reused(&self) {
        self.numbers_reused.inc();
    }

    pub(super) fn wrote(&self, works: usize, bytes: usize, took: Duration) {
        self.works.inc_by(works as u64);
        self.groups.inc();
        self.bytes.inc_by(bytes as u64);
        self.write_micros.fetch_add(
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

pub(super) fn register(shared: &Arc<Shared>, registry: &mut Registry) {
    let metrics = &shared.metrics;
    for (name, help, counter) in [
        (
            "storage_commits",
            "Commits and refusals that a write answered",
            &metrics.works,
        ),
        (
            "storage_commit_groups",
            "Synced writes; commits per group is their ratio",
            &metrics.groups,
        ),
        (
            "storage_commit_bytes",
            "Bytes written to the log",
            &metrics.bytes,
        ),
        (
            "storage_sessions_resumed",
            "Sessions that were resumed",
            &metrics.resumed,
        ),
        (
            "storage_commits_repeated",
            "Commits that came again and were answered with what they did the first time",
            &metrics.repeated,
        ),
        (
            "storage_commit_numbers_reused",
            "Commits refused because another one was executed under their number: two processes on one saved session",
            &metrics.numbers_reused,
        ),
    ] {
        registry.register(name, help, counter.clone());
    }
    let cache = &shared.store.entry_cache;
    for (name, help, counter) in [
        (
            "storage_entry_cache_hits",
            "Keys of gets that the entry cache had",
            &cache.hits,
        ),
        (
            "storage_entry_cache_misses",
            "Keys of gets that were read from RocksDB",
            &cache.misses,
        ),
    ] {
        registry.register(name, help, counter.clone());
    }
    registry.register_collector(Box::new(Figures(Arc::downgrade(shared))));
}

/// What is computed at a look. A registry may outlive the engine, whose folder is to be free then.
#[derive(Debug)]
struct Figures(Weak<Shared>);

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(shared) = self.0.upgrade() else {
            return Ok(());
        };
        let mut look = Look(encoder);
        shared.look_at_queues(&mut look)?;
        shared.look_at_feed(&mut look)?;
        shared.look_at_store(&mut look)
    }
}

impl Shared {
    fn look_at_queues(&self, look: &mut Look<'_>) -> fmt::Result {
        look.counter(
            "storage_commit_write_seconds",
            "Time spent in synced writes.",
            self.metrics.write_micros.load(Ordering::Relaxed) as f64 / 1e6,
        )?;
        look.gauge(
            "storage_commit_queue_bytes",
            "Bytes that wait for the committer.",
            self.queue.bytes(),
        )?;
        look.gauge(
            "storage_sessions_kept",
            "Sessions without a socket that can be resumed.",
            self.sessions.kept(),
        )?;
        look.gauge(
            "storage_snapshots",
            "Snapshots on loan to scans and watches.",
            self.snapshots.len(),
        )
    }

    fn look_at_feed(&self, look: &mut Look<'_>) -> fmt::Result {
        let feed = self.feed.figures();
        look.gauge(
            "storage_feed_watches",
            "Watches attached to the feed.",
            feed.watches,
        )?;
        look.gauge(
            "storage_feed_queued_bytes",
            "Bytes of commits that wait for live watches; one counts for each that has it.",
            feed.queued_bytes,
        )?;
        look.gauge(
            "storage_feed_untold_bytes",
            "Bytes of commits that are published and that watches are yet to be told of.",
            feed.untold_bytes,
        )?;
        look.gauge(
            "storage_feed_views_bytes",
            "Bytes of parts of large commits, kept for watches that see the same part.",
            feed.views_bytes,
        )?;
        look.gauge(
            "storage_latest_pages_bytes",
            "Bytes of pages, and of rests of passes, that were read for watches and that these have not taken yet.",
            self.pages.bytes() + self.rests.bytes(),
        )?;
        look.gauge(
            "storage_ring_bytes",
            "Bytes of recent commits in memory.",
            feed.ring_bytes,
        )?;
        look.gauge(
            "storage_ring_oldest_revision",
            "Watches resume in memory from here.",
            feed.ring_floor.0,
        )?;
        let catch_up = self.catch_up.figures();
        look.gauge(
            "storage_catch_up_waiting",
            "Watches that wait for a page of the log.",
            catch_up.waiting,
        )?;
        look.gauge(
            "storage_catch_up_bytes",
            "Bytes of log pages in memory.",
            catch_up.cache_bytes,
        )?;
        look.counter(
            "storage_catch_up_pages",
            "Pages read from the log for watches.",
            catch_up.pages_read,
        )?;
        look.counter(
            "storage_catch_up_places",
            "Places looked for in the log, each by reading a file from its start.",
            catch_up.places_found,
        )
    }

    fn look_at_store(&self, look: &mut Look<'_>) -> fmt::Result {
        let Metrics {
            log_oldest,
            memtable_bytes,
            block_cache_bytes,
            ..
        } = &self.metrics;
        look.gauge(
            "storage_log_oldest_revision",
            "Watches `Every` resume from here.",
            log_oldest.load(Ordering::Relaxed),
        )?;
        look.gauge(
            "storage_revision",
            "The last commit.",
            self.store.revision().0,
        )?;
        look.gauge(
            "storage_disk_available_bytes",
            "Free bytes seen.",
            self.disk.available(),
        )?;
        let machine = self.store.clock.machine_now().0;
        let ahead = self.store.now().0.saturating_sub(machine);
        look.gauge(
            "storage_clock_ahead_seconds",
            "How far the server's time is ahead of the machine's clock.",
            ahead as f64 / 1e3,
        )?;
        let writable = self.store.check_poison().is_ok() && self.disk.check(Need::Any, 0).is_ok();
        look.gauge(
            "storage_writable",
            "1 while writes are taken.",
            u64::from(writable),
        )?;
        look.gauge(
            "storage_memtable_bytes",
            "Bytes in memtables of the largest table.",
            memtable_bytes.load(Ordering::Relaxed),
        )?;
        look.gauge(
            "storage_block_cache_bytes",
            "Bytes in the shared cache.",
            block_cache_bytes.load(Ordering::Relaxed),
        )?;
        look.gauge(
            "storage_entry_cache_bytes",
            "Bytes in the entry cache, as they are counted against its bound.",
            self.store.entry_cache.bytes(),
        )
    }
}

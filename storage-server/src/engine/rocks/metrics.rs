//! What the engine counts, and how it reads in the Prometheus text format.
//!
//! Metrics are asked for on the runtime, so nothing here reads the disk or takes a lock of RocksDB's: what only those tell
//! is kept from the housekeeper's last look.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use storage_protocol::planted;

use super::disk::Need;
use super::store::Store;
use super::{EngineShared as Shared, log};

/// Counters. Written by the committer, read by whoever asks.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    works: AtomicU64,
    groups: AtomicU64,
    bytes: AtomicU64,
    write_micros: AtomicU64,
    resumed: AtomicU64,
    repeated: AtomicU64,
    numbers_reused: AtomicU64,
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
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn repeated(&self) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn number_reused(&self) {
        self.numbers_reused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn wrote(&self, works: usize, bytes: usize, took: Duration) {
        self.works.fetch_add(works as u64, Ordering::Relaxed);
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.write_micros.fetch_add(
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

pub(super) fn write(shared: &Shared, out: &mut String) {
    let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        );
    };
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let Metrics {
        works,
        groups,
        bytes,
        write_micros,
        resumed,
        repeated,
        numbers_reused,
        log_oldest,
        memtable_bytes,
        block_cache_bytes,
    } = &shared.metrics;
    metric(
        "storage_commits_total",
        "counter",
        "Commits and refusals that a write answered.",
        count(works),
    );
    metric(
        "storage_commit_groups_total",
        "counter",
        "Synced writes; commits per group is their ratio.",
        count(groups),
    );
    metric(
        "storage_commit_bytes_total",
        "counter",
        "Bytes written to the log.",
        count(bytes),
    );
    metric(
        "storage_commit_write_seconds_total",
        "counter",
        "Time spent in synced writes.",
        count(write_micros) / 1e6,
    );
    metric(
        "storage_commit_queue_bytes",
        "gauge",
        "Bytes that wait for the committer.",
        shared.queue.bytes() as f64,
    );
    metric(
        "storage_sessions_kept",
        "gauge",
        "Sessions without a socket that can be resumed.",
        shared.sessions.kept() as f64,
    );
    metric(
        "storage_sessions_resumed_total",
        "counter",
        "Sessions that were resumed.",
        count(resumed),
    );
    metric(
        "storage_commits_repeated_total",
        "counter",
        "Commits that came again and were answered with what they did the first time.",
        count(repeated),
    );
    metric(
        "storage_commit_numbers_reused_total",
        "counter",
        "Commits refused because another one was executed under their number: two processes on one saved session.",
        count(numbers_reused),
    );
    let feed = shared.feed.figures();
    metric(
        "storage_feed_watches",
        "gauge",
        "Watches attached to the feed.",
        feed.watches as f64,
    );
    metric(
        "storage_feed_queued_bytes",
        "gauge",
        "Bytes of commits that wait for live watches; one counts for each that has it.",
        feed.queued_bytes as f64,
    );
    metric(
        "storage_feed_untold_bytes",
        "gauge",
        "Bytes of commits that are published and that watches are yet to be told of.",
        feed.untold_bytes as f64,
    );
    metric(
        "storage_feed_views_bytes",
        "gauge",
        "Bytes of parts of large commits, kept for watches that see the same part.",
        feed.views_bytes as f64,
    );
    metric(
        "storage_latest_pages_bytes",
        "gauge",
        "Bytes of pages, and of rests of passes, that were read for watches and that these have not taken yet.",
        (shared.pages.bytes() + shared.rests.bytes()) as f64,
    );
    metric(
        "storage_ring_bytes",
        "gauge",
        "Bytes of recent commits in memory.",
        feed.ring_bytes as f64,
    );
    metric(
        "storage_ring_oldest_revision",
        "gauge",
        "Watches resume in memory from here.",
        feed.ring_floor.0 as f64,
    );
    let catch_up = shared.catch_up.figures();
    metric(
        "storage_catch_up_waiting",
        "gauge",
        "Watches that wait for a page of the log.",
        catch_up.waiting as f64,
    );
    metric(
        "storage_catch_up_bytes",
        "gauge",
        "Bytes of log pages in memory.",
        catch_up.cache_bytes as f64,
    );
    metric(
        "storage_catch_up_pages_total",
        "counter",
        "Pages read from the log for watches.",
        catch_up.pages_read as f64,
    );
    metric(
        "storage_catch_up_places_total",
        "counter",
        "Places looked for in the log, each by reading a file from its start.",
        catch_up.places_found as f64,
    );
    if planted("metrics-read-the-log") {
        let oldest = log::oldest(&shared.store).map_or(0, |oldest| oldest.0);
        log_oldest.store(oldest, Ordering::Relaxed);
    }
    metric(
        "storage_log_oldest_revision",
        "gauge",
        "Watches `Every` resume from here.",
        count(log_oldest),
    );
    metric(
        "storage_revision",
        "gauge",
        "The last commit.",
        shared.store.revision().0 as f64,
    );
    metric(
        "storage_snapshots",
        "gauge",
        "Snapshots on loan to scans and watches.",
        shared.leases.len() as f64,
    );
    metric(
        "storage_disk_available_bytes",
        "gauge",
        "Free bytes seen.",
        shared.disk.available() as f64,
    );
    let ahead = shared
        .store
        .now()
        .0
        .saturating_sub(shared.store.clock.machine_now().0);
    metric(
        "storage_clock_ahead_seconds",
        "gauge",
        "How far the server's time is ahead of the machine's clock.",
        ahead as f64 / 1e3,
    );
    let writable = shared.store.check_poison().is_ok() && shared.disk.check(Need::Any, 0).is_ok();
    metric(
        "storage_writable",
        "gauge",
        "1 while writes are taken.",
        f64::from(u8::from(writable)),
    );
    metric(
        "storage_memtable_bytes",
        "gauge",
        "Bytes in memtables of the largest table.",
        count(memtable_bytes),
    );
    metric(
        "storage_block_cache_bytes",
        "gauge",
        "Bytes in the shared cache.",
        count(block_cache_bytes),
    );
}

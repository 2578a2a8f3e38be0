//! What the server's memory comes to while a database of five times its budget is read and written in every way at once,
//! and whether it grows.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use storage_client::RemoteStorage;
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, ScanOptions, Storage, StorageExt, WatchMode, WatchOptions,
    WatchStart,
};
use storage_testkit::served::Served;

use super::value;
use crate::keys::Random;

/// The server's default budget (`memory_bytes_max`).
const BUDGET: u64 = 512 << 20;

/// Entries of 1 KiB: five times the budget.
const ENTRIES: u64 = 5 * BUDGET / 1024;

const VALUE_BYTES: usize = 1024;

/// Keys of a commit and of a get of many.
const TOGETHER: u64 = 64;

/// How long the mixed load goes on, unless told otherwise.
const MINUTES: u64 = 5;

fn key(n: u64) -> Key {
    Key::from(format!("bench/{:018}", n % ENTRIES))
}

/// Loads the database, then keeps all kinds of requests on their way for `minutes`, and prints the server's resident memory
/// at its highest in each minute.
pub(super) async fn memory(minutes: Option<u64>) {
    let minutes = minutes.unwrap_or(MINUTES);
    println!(
        "# memory: {ENTRIES} entries of 1 KiB, a budget of {} MiB, mixed load for {minutes} min",
        BUDGET >> 20
    );
    let served = Arc::new(Served::new(&["bench"], "durability = \"os\""));
    println!("at rest            {:>6} MiB", mib(&served));
    load(&served.connect("bench", "bench").await).await;
    println!("after the load     {:>6} MiB", mib(&served));

    let done = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    // Each with so many requests in flight.
    for (kind, lanes) in [
        (Kind::Get, 48),
        (Kind::GetMany, 4),
        (Kind::Put, 16),
        (Kind::Commit, 2),
        (Kind::Scan, 2),
    ] {
        let storage = served.connect("bench", "bench").await;
        for lane in 0..lanes {
            let lane = Lane {
                storage: storage.clone(),
                random: Random::new(lane + 1_000 * (kind as u64)),
                done: done.clone(),
                count: count.clone(),
            };
            tasks.push(tokio::spawn(lane.run(kind)));
        }
    }
    let latest = WatchMode::Latest {
        min_interval: Duration::ZERO,
    };
    for mode in [WatchMode::Every, latest] {
        let storage = served.connect("bench", "bench").await;
        let options = WatchOptions {
            mode,
            start: WatchStart::Now,
        };
        let watch = storage.watch(KeyRange::all(), options).await.unwrap();
        tasks.push(tokio::spawn(follow(watch, done.clone())));
    }
    tasks.push(tokio::spawn(come_and_go(served.clone(), done.clone())));

    let mut highest = Vec::new();
    for minute in 1..=minutes {
        let end = Instant::now() + Duration::from_secs(60);
        let mut most = 0;
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(500)).await;
            most = most.max(mib(&served));
        }
        println!(
            "minute {minute:>3}         {most:>6} MiB at most, {:>11} requests in all; {}",
            count.load(Ordering::Relaxed),
            parts(&served).await
        );
        highest.push(most);
    }
    done.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let bound = (BUDGET * 6 / 5) >> 20;
    let most = highest.iter().max().copied().unwrap_or_default();
    println!("the most           {most:>6} MiB; the budget and a fifth of it are {bound} MiB");
    if let [.., before, _, _, _, _, _] = highest.as_slice() {
        let last = highest.iter().rev().take(5).max().unwrap();
        println!(
            "of the last five minutes {last} MiB, of all before them {} MiB, of the one before them {before} MiB",
            highest.iter().rev().skip(5).max().unwrap()
        );
    }
}

fn mib(served: &Served) -> u64 {
    served.server.resident_bytes() >> 20
}

/// What the server itself says that it holds.
async fn parts(served: &Served) -> String {
    let mut text = String::new();
    for name in [
        "block_cache",
        "memtable",
        "entry_cache",
        "ring",
        "feed_queued",
        "feed_views",
        "catch_up",
        "commit_queue",
    ] {
        let bytes = served.metric(&format!("storage_{name}_bytes")).await;
        let _ = write!(text, "{name} {:.0}, ", bytes / f64::from(1 << 20));
    }
    text + "MiB"
}

async fn load(storage: &RemoteStorage) {
    const COMMIT: u64 = 256;
    let value = value(VALUE_BYTES);
    let mut commits = futures_util::stream::iter(0..ENTRIES / COMMIT)
        .map(|commit| {
            let mut batch = Batch::new();
            for n in 0..COMMIT {
                batch = batch.put(key(commit * COMMIT + n), value.clone());
            }
            storage.commit(batch, CommitOptions::default())
        })
        .buffer_unordered(8);
    while let Some(committed) = commits.next().await {
        committed.unwrap();
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Get,
    GetMany,
    Put,
    Commit,
    Scan,
}

struct Lane {
    storage: RemoteStorage,
    random: Random,
    done: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
}

impl Lane {
    async fn run(mut self, kind: Kind) {
        let value = value(VALUE_BYTES);
        while !self.done.load(Ordering::Relaxed) {
            let n = self.random.next() % ENTRIES;
            let storage = &self.storage;
            match kind {
                Kind::Get => drop(storage.get_one(key(n)).await.unwrap()),
                Kind::GetMany => {
                    let keys: Vec<_> = (n..n + TOGETHER).map(key).collect();
                    drop(storage.get(&keys).await.unwrap());
                }
                Kind::Put => drop(storage.put(key(n), value.clone()).await.unwrap()),
                Kind::Commit => {
                    let mut batch = Batch::new();
                    for n in n..n + TOGETHER {
                        batch = batch.put(key(n), value.clone());
                    }
                    let options = CommitOptions::default();
                    storage.commit(batch, options).await.unwrap();
                }
                Kind::Scan => {
                    let range = KeyRange {
                        start: key(n),
                        end: None,
                    };
                    let options = ScanOptions {
                        limit: Some(1_000),
                        ..ScanOptions::default()
                    };
                    let mut scan = storage.scan(range, options).await.unwrap();
                    while scan.next_page().await.unwrap().is_some() {}
                }
            }
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Takes what a watch tells.
async fn follow(mut watch: storage_protocol::Watch, done: Arc<AtomicBool>) {
    while !done.load(Ordering::Relaxed) {
        // Nothing for a moment is no fault.
        if let Ok(event) = tokio::time::timeout(Duration::from_secs(1), watch.next()).await {
            drop(event.unwrap().expect("a watch goes on"));
        }
    }
}

/// Connections that read one entry and go.
async fn come_and_go(served: Arc<Served>, done: Arc<AtomicBool>) {
    while !done.load(Ordering::Relaxed) {
        let storage = served.connect("bench", "bench").await;
        drop(storage.get_one(key(1)).await.unwrap());
        storage.close().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

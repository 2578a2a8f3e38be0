//! Much at once, and ends of ranges: what was tried on the engine and held.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Wake};
use std::time::{Duration, Instant};

use storage_protocol::{
    Batch, CommitOptions, Entry, EntryLifetime, Key, KeyRange, Keyspace, Lifetime, Revision,
    ScanOptions, Storage, StorageError, StorageExt, UnixMillis, WatchEvent, WatchOptions,
    WatchStart,
};

use super::commit::{Task, submit};
use super::layout::{self, Table};
use super::read::get;
use super::{Durability, EngineOptions, RocksEngine};
use crate::engine::{Engine, Unbounded};

const PATIENCE: Duration = Duration::from_secs(60);

fn options(folder: &Path) -> EngineOptions {
    EngineOptions {
        disk_reserve_bytes: 0,
        durability: Durability::Os,
        ..EngineOptions::new(folder.join("data"))
    }
}

fn keyspace(name: &str) -> Keyspace {
    Keyspace::new(name).unwrap()
}

async fn keys(storage: &dyn Storage) -> usize {
    let scan = storage.scan(KeyRange::all(), ScanOptions::default()).await;
    scan.unwrap().collect().await.unwrap().len()
}

/// Puts so many keys, ten thousand in a commit.
async fn put_many(storage: &dyn Storage, count: usize, lifetime: Lifetime) {
    let numbers: Vec<_> = (0..count).collect();
    for numbers in numbers.chunks(10_000) {
        let batch = numbers.iter().fold(Batch::new(), |batch, n| {
            batch.put_with(format!("{n:06}"), "value", lifetime)
        });
        let options = CommitOptions::default();
        storage.commit(batch, options).await.unwrap();
    }
}

#[tokio::test]
async fn a_hundred_thousand_entries_that_are_due_at_once_hold_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    let session = engine.open_session("cert:a", &keyspace("model")).storage();
    put_many(
        &*session,
        100_000,
        Lifetime::TimeToLive(Duration::from_secs(1)),
    )
    .await;
    let other = engine.open_session("cert:b", &keyspace("other")).storage();
    let (began, mut slowest) = (Instant::now(), Duration::ZERO);
    while keys(&*session).await > 0 {
        assert!(began.elapsed() < PATIENCE, "they stay");
        let put = Instant::now();
        other.put("a".into(), "b".into()).await.unwrap();
        slowest = slowest.max(put.elapsed());
    }
    // By the batches' size a put waits for one of them; a machine that is busy is no reason to fail.
    assert!(slowest < PATIENCE / 10, "{slowest:?}");
}

#[tokio::test]
async fn a_hundred_thousand_keys_of_one_session_go_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    let session = engine.open_session("cert:a", &keyspace("model"));
    let storage = session.clone().storage();
    put_many(&*storage, 100_000, Lifetime::Session).await;
    let reader = engine.open_session("cert:b", &keyspace("model")).storage();
    assert_eq!(keys(&*reader).await, 100_000);
    session.end().await.unwrap();
    assert_eq!(keys(&*reader).await, 0);
}

#[tokio::test]
async fn lifetimes_at_their_ends() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    let session = engine.open_session("cert:a", &keyspace("model")).storage();
    let longest = Duration::from_millis(u64::MAX);
    for (key, life) in [
        ("longest", longest),
        ("longer", Duration::MAX),
        ("shortest", Duration::from_millis(1)),
    ] {
        let batch = Batch::new().put_with(key, "value", Lifetime::TimeToLive(life));
        session
            .commit(batch, CommitOptions::default())
            .await
            .unwrap();
    }
    let began = Instant::now();
    while session.get_one("shortest".into()).await.unwrap().is_some() {
        assert!(began.elapsed() < PATIENCE, "it stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for key in ["longest", "longer"] {
        let entry = session.get_one(key.into()).await.unwrap().unwrap();
        assert_eq!(entry.lifetime, EntryLifetime::Until(UnixMillis(u64::MAX)));
    }
}

/// Panics when it is called.
struct Mine;

impl Wake for Mine {
    fn wake(self: Arc<Self>) {
        panic!("a planted panic of the feed's thread");
    }
}

#[tokio::test]
async fn watches_come_to_the_last_commit_although_the_feeds_thread_panicked() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    let session = engine.open_session("cert:a", &keyspace("model")).storage();
    let every = WatchOptions::every(WatchStart::Now);
    let latest = WatchOptions::latest(WatchStart::Now);
    let mut mined = session.watch(KeyRange::all(), every).await.unwrap();
    let mut watches = Vec::new();
    for options in [every, latest] {
        watches.push(session.watch(KeyRange::all(), options).await.unwrap());
    }
    // It rests, and is woken by the feed.
    let mine = Arc::new(Mine).into();
    let polled = std::pin::pin!(mined.next()).poll(&mut Context::from_waker(&mine));
    assert!(polled.is_pending());
    let last = session.put("key".into(), "value".into()).await.unwrap();
    watches.push(session.watch(KeyRange::all(), latest).await.unwrap());
    for (token, watch) in (1..).zip(&mut watches) {
        watch.request_progress(token);
        let to_the_mark = async {
            let mut told = false;
            loop {
                match watch.next().await.unwrap().unwrap() {
                    WatchEvent::Progress {
                        position,
                        token: Some(found),
                    } => {
                        assert_eq!((position, found), (last, token));
                        return told;
                    }
                    WatchEvent::Progress { .. } => {}
                    _ => told = true,
                }
            }
        };
        let told = tokio::time::timeout(PATIENCE, to_the_mark).await;
        let told = told.expect("the mark that was asked for comes");
        assert_eq!(told, token < 3, "the third begins behind the commit");
    }
    let error = session.put("more".into(), "v".into()).await.unwrap_err();
    assert!(matches!(error, StorageError::ReadOnly { .. }), "{error}");
}

/// How many rows the index of a keyspace has.
fn index_rows(engine: &RocksEngine, name: &str) -> usize {
    let store = &engine.shared.store;
    let id = store.keyspace(&keyspace(name)).id().unwrap();
    let (start, end) = (
        layout::index_key(id, Revision::ZERO, b""),
        layout::keyspace_end(Table::Index, id),
    );
    let mut rows = store.iterate(Table::Index, &start, Some(&end));
    let mut count = 0;
    while rows.key().is_some() {
        count += 1;
        rows.next();
    }
    rows.status().unwrap();
    count
}

#[tokio::test]
async fn rows_of_the_index_that_were_replaced_are_passed_over_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    let storage = engine.open_session("cert:a", &keyspace("model")).storage();
    let begin = storage.put("a".into(), "0".into()).await.unwrap();
    for n in 1..=3000 {
        storage.put("k".into(), n.to_string().into()).await.unwrap();
    }
    // Few are left at any time.
    let rows = index_rows(&engine, "model");
    assert!((2..2_000).contains(&rows), "{rows} rows");
    // Whoever asks the index is told of the key once, whatever rows it has left.
    let newer = ScanOptions {
        newer_than: Some(begin),
        ..ScanOptions::default()
    };
    let scan = storage.scan(KeyRange::all(), newer).await.unwrap();
    let found = scan.collect().await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let latest = WatchOptions::latest(WatchStart::Beginning);
    let mut watch = storage.watch(KeyRange::all(), latest).await.unwrap();
    let mut told = Vec::new();
    while told.last() != Some(&"k".into()) {
        match watch.next().await.unwrap().unwrap() {
            WatchEvent::State { key, .. } => told.push(key),
            WatchEvent::Progress { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, ["a", "k"]);
    // Within a second they go.
    let began = Instant::now();
    while index_rows(&engine, "model") > 2 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    storage.put("k".into(), "last".into()).await.unwrap();
    drop((watch, storage, engine));
    // And an orderly end.
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    assert_eq!(index_rows(&engine, "model"), 2);
}

#[tokio::test]
async fn a_large_commit_deletes_what_it_replaces_in_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    let storage = engine.open_session("cert:a", &keyspace("model")).storage();
    for _ in 0..2 {
        put_many(&*storage, 5_000, Lifetime::Forever).await;
        assert_eq!(index_rows(&engine, "model"), 5_000);
    }
}

#[tokio::test]
async fn once_poisoned_the_store_deletes_no_rows_of_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    let storage = engine.open_session("cert:a", &keyspace("model")).storage();
    let shared = &engine.shared;
    for _ in 0..10 {
        storage.put("k".into(), "v".into()).await.unwrap();
    }
    shared.store.poison("a write failed");
    let before = shared.store.revision();
    let session = shared.server_session(&shared.store.keyspace(&keyspace("model")));
    let look = submit(&shared.queue, &session, 0, Task::Look, 64).unwrap();
    look.await.unwrap().unwrap();
    assert_eq!(shared.store.revision(), before);
    assert_eq!(
        storage.get_one("k".into()).await.unwrap().unwrap().value,
        "v"
    );
}

/// Keys that are always put together, with one value; more than the cache has room for.
const TOGETHER: usize = 8;
const GROUPS: usize = 100;

fn of_group(group: usize) -> Vec<Key> {
    (0..TOGETHER)
        .map(|n| Key::from(format!("{group}/{n}")))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gets_are_of_one_revision_whatever_the_entry_cache_has_of_their_keys() {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions {
        // The cache has a quarter: 256 KiB of the 400 KiB that are read and written.
        memory_bytes: 1 << 20,
        ..options(folder.path())
    };
    let engine = RocksEngine::open(options).unwrap();
    let storage = engine.open_session("cert:a", &keyspace("model")).storage();
    let acknowledged: Arc<Vec<AtomicU64>> = Arc::new((0..GROUPS).map(|_| 0.into()).collect());
    let over = Arc::new(AtomicBool::new(false));
    let shared = engine.shared.clone();
    let store = &shared.store;
    let name = keyspace("model");
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            let (storage, acknowledged) = (storage.clone(), acknowledged.clone());
            let (over, store, name) = (over.clone(), store.clone(), name.clone());
            tokio::spawn(async move {
                let mut read = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let group = rand::random_range(0..GROUPS);
                    let least = acknowledged[group].load(Ordering::Acquire);
                    // Some as those do whose keys are not all in memory.
                    let reading = match store.keyspace(&name).id() {
                        Some(id) if reader == 0 => {
                            get(&store, id, &of_group(group), &Unbounded).unwrap()
                        }
                        _ => storage.get(&of_group(group)).await.unwrap(),
                    };
                    let numbers: Vec<u64> = reading
                        .value
                        .iter()
                        .map(|entry| entry.as_ref().map_or(0, number_of))
                        .collect();
                    assert!(
                        numbers.iter().all(|number| *number == numbers[0]),
                        "{numbers:?} at {}",
                        reading.position
                    );
                    // 0: removed, or not there yet.
                    assert!(
                        numbers[0] == 0 || numbers[0] >= least,
                        "{} was acknowledged, and {} read",
                        least,
                        numbers[0]
                    );
                    read.push((reading.position.revision, group, numbers[0]));
                }
                read
            })
        })
        .collect();
    let began = Instant::now();
    let mut number = 0u64;
    let mut written = vec![vec![(Revision::ZERO, 0)]; GROUPS];
    while began.elapsed() < Duration::from_secs(3) {
        number += 1;
        let group = rand::random_range(0..GROUPS);
        let is_removal = number.is_multiple_of(10);
        let value = format!("{number:0500}");
        let batch = of_group(group)
            .into_iter()
            .fold(Batch::new(), |batch, key| match is_removal {
                true => batch.remove(key),
                false => batch.put(key, value.clone()),
            });
        let options = CommitOptions::default();
        let position = storage.commit(batch, options).await.unwrap();
        written[group].push((position.revision, if is_removal { 0 } else { number }));
        let reading = storage.get(&of_group(group)).await.unwrap();
        let expected = (!is_removal).then_some(number);
        for entry in &reading.value {
            assert_eq!(entry.as_ref().map(number_of), expected, "its own commit");
        }
        acknowledged[group].store(number, Ordering::Release);
    }
    over.store(true, Ordering::Relaxed);
    for reader in readers {
        let read = reader.await.unwrap();
        assert!(!read.is_empty());
        // Each get has what its revision has, and neither what was before nor what came after.
        for (revision, group, number) in read {
            let after = written[group].partition_point(|(at, _)| *at <= revision);
            assert_eq!(
                written[group][after - 1].1,
                number,
                "group {group} at revision {revision}"
            );
        }
    }
    let cache = &engine.shared.store.entry_cache;
    assert!(cache.hits.get() > 0 && cache.misses.get() > 0, "{cache:?}");
}

fn number_of(entry: &Entry) -> u64 {
    String::from_utf8_lossy(&entry.value).parse().unwrap()
}

/// The feed counts what a commit changed, and keeps no more than that, whatever else stood in the commit.
#[tokio::test]
async fn a_change_keeps_nothing_of_what_was_no_change() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    let session = engine.open_session("cert:a", &keyspace("model")).storage();
    let all = WatchOptions::default();
    let mut watch = session.watch(KeyRange::all(), all).await.unwrap();
    let absent = |n: usize| vec![b'a' + u8::try_from(n).unwrap(); 4 * 1024];
    let many = |batch: Batch, count| (0..count).fold(batch, |batch, n| batch.remove(absent(n)));
    for removals in [3, 20] {
        let batch = many(Batch::new().put("k", "v"), removals);
        let options = CommitOptions::default();
        session.commit(batch, options).await.unwrap();
        let WatchEvent::Commit(record) = watch.next().await.unwrap().unwrap() else {
            panic!("no commit");
        };
        let [change] = &record.changes[..] else {
            panic!("{record:?}");
        };
        assert!(change.key.is_unique(), "with {removals}");
    }
}

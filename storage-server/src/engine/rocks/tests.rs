//! Much at once, and ends of ranges: what was tried on the engine and held.

use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Wake};
use std::time::{Duration, Instant};

use storage_protocol::{
    Batch, CommitOptions, EntryLifetime, KeyRange, Keyspace, Lifetime, ScanOptions, Storage,
    StorageError, StorageExt, UnixMillis, WatchEvent, WatchOptions, WatchStart,
};

use super::{Durability, EngineOptions, RocksEngine};
use crate::engine::Engine;

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

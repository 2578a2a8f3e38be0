//! Thousands of watches on one server: each is told its own commits, once and in order, live and after a restart.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use storage_protocol::{
    ChangeKind, Epoch, KeyRange, Keyspace, Position, Storage, StorageError, StorageExt, Watch,
    WatchEvent, WatchOptions, WatchStart,
};
use storage_server::engine::Engine;
use storage_server::engine::rocks::{Durability, EngineOptions, RocksEngine};
use storage_testkit::crowd::{Crowd, write};
use storage_testkit::served::Served;

const WATCHES: u64 = 2_000;
const PATIENCE: Duration = Duration::from_secs(25);

fn served(config: &str) -> Served {
    let config = format!("durability = \"os\"\n{config}");
    Served::new(&["crowd"], &config)
}

async fn session(fixture: &Served) -> Arc<dyn Storage> {
    Arc::new(fixture.connect("crowd", "shared").await)
}

async fn present_epoch(fixture: &Served) -> Epoch {
    session(fixture).await.sync().await.unwrap().epoch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_watches_are_told_exactly_their_commits_under_load() {
    const COMMITS: u64 = 20_000;
    let fixture = served("");
    let mut crowd = Crowd::new(WATCHES);
    let watchers = [session(&fixture).await, session(&fixture).await];
    crowd.watch(&watchers, None).await;
    let writer = session(&fixture).await;
    write(&writer, &crowd, 0..COMMITS, 100, 64, None).await;
    crowd.was_told(COMMITS, PATIENCE).await;
    // And nothing comes behind it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    crowd.was_told(COMMITS, PATIENCE).await;
}

/// Each member stands at a commit of its own when the server is killed, and much is committed before it comes back.
/// Tells how many pages of the log were read for them.
async fn resume_after_a_restart(config: &str) -> f64 {
    const BEFORE: u64 = 5_000;
    const AFTER: u64 = 10_000;
    let mut fixture = served(config);
    let mut crowd = Crowd::new(WATCHES);
    crowd.watch(&[session(&fixture).await], None).await;
    let writer = session(&fixture).await;
    write(&writer, &crowd, 0..BEFORE, 100, 64, None).await;
    crowd.was_told(BEFORE, PATIENCE).await;
    crowd.leave().await;
    write(&writer, &crowd, BEFORE..AFTER, 100, 64, None).await;
    let epoch = present_epoch(&fixture).await;
    fixture.server.restart();
    assert_eq!(present_epoch(&fixture).await, epoch);
    crowd.watch(&[session(&fixture).await], Some(epoch)).await;
    let writer = session(&fixture).await;
    // They catch up while more comes.
    write(&writer, &crowd, AFTER..AFTER + BEFORE, 100, 64, None).await;
    crowd.was_told(AFTER + BEFORE, PATIENCE).await;
    fixture.metric("storage_catch_up_pages_total").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_watches_resume_at_once_from_the_ring() {
    assert_eq!(resume_after_a_restart("").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_watches_resume_at_once_from_the_log() {
    let pages = resume_after_a_restart("[engine]\nring_bytes = \"64 KiB\"\n").await;
    // The log is a few pages; what comes meanwhile is read in small ones.
    assert!(
        (1.0..WATCHES as f64 / 4.0).contains(&pages),
        "{pages} pages of the log were read"
    );
}

/// The number in a commit of one put.
fn number(event: &WatchEvent) -> u64 {
    if let WatchEvent::Commit(commit) = event
        && let [change] = commit.changes.as_slice()
        && let ChangeKind::Put { value, .. } = &change.kind
    {
        return u64::from_be_bytes(*value.first_chunk().unwrap());
    }
    panic!("{event:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_paused_under_load_beyond_the_ring_catches_up_without_gap_or_double() {
    const PAUSED: u64 = 10_000;
    const COMMITS: u64 = 15_000;
    let fixture = served("[engine]\nring_bytes = \"256 KiB\"\n");
    let reader = session(&fixture).await;
    let mut paused = reader
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    // One member: its numbers count all commits.
    let crowd = Crowd::new(1);
    let writer = session(&fixture).await;
    // Ten times the credit of a watch and 40 times the ring.
    write(&writer, &crowd, 0..PAUSED, 1_000, 64, None).await;
    let writing = write(&writer, &crowd, PAUSED..COMMITS, 1_000, 64, None);
    let reading = async {
        let mut due = 0;
        while due < COMMITS {
            let event = tokio::time::timeout(PATIENCE, paused.next()).await.unwrap();
            let event = event.unwrap().unwrap();
            // A mark that says it has caught up.
            if !matches!(event, WatchEvent::Progress { token: None, .. }) {
                assert_eq!(number(&event), due);
                due += 1;
            }
        }
    };
    tokio::join!(writing, reading);
}

fn open(folder: &Path) -> Arc<RocksEngine> {
    RocksEngine::open(EngineOptions {
        disk_reserve_bytes: 0,
        durability: Durability::Os,
        memory_bytes: 64 << 20,
        ring_bytes: 0,
        ..EngineOptions::new(folder.join("data"))
    })
    .unwrap()
}

/// RocksDB purges by time and size alone; this takes away what it would, in its order.
fn archived(folder: &Path) -> BTreeSet<std::path::PathBuf> {
    let files = std::fs::read_dir(folder.join("data/db/archive")).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

/// Follows a watch to commit `end`: tells where the log ended for it, if it did. Each commit it is told is the next one.
async fn follow(watch: &mut Watch, mut due: u64, end: u64) -> Option<u64> {
    while due < end {
        let event = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
        match event {
            Ok(event) => assert_eq!(number(&event.unwrap()), due),
            Err(StorageError::Compacted { .. }) => return Some(due),
            Err(error) => panic!("{error}"),
        }
        due += 1;
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_stands_behind_while_the_log_is_purged_is_told_and_never_passes_a_gap() {
    const COMMITS: u64 = 1_500;
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let session = engine
        .open_session("cert:w", &Keyspace::new("shared").unwrap())
        .storage();
    let start = session.put("first".into(), "1".into()).await.unwrap();
    let after = |position| WatchOptions::every(WatchStart::After(position));
    let watch = |position| session.watch(KeyRange::all(), after(position));
    let mut parked = watch(start).await.unwrap();
    let mut positions: Vec<Position> = Vec::new();
    for n in 0..COMMITS {
        let mut value = n.to_be_bytes().to_vec();
        value.resize(64 << 10, b'v');
        let key = Bytes::from(format!("{}", n % 50));
        positions.push(session.put(key, value.into()).await.unwrap());
    }
    // One that is in the middle of the log, with a page in hand.
    let mut reading = watch(start).await.unwrap();
    assert_eq!(follow(&mut reading, 0, 10).await, None);
    let files = archived(folder.path());
    assert!(files.len() >= 2, "{} files: nothing to purge", files.len());
    let (present, last) = (*positions.last().unwrap(), COMMITS);
    // Watches begin at every place while the files go.
    let racing = (0..400_usize).map(|place| {
        let session = session.clone();
        let (first, position) = if place == 0 {
            (0, start)
        } else {
            (place as u64 * 3, positions[place * 3 - 1])
        };
        tokio::spawn(async move {
            match session.watch(KeyRange::all(), after(position)).await {
                Ok(mut watch) => follow(&mut watch, first, last).await.is_some(),
                Err(StorageError::Compacted { .. }) => true,
                Err(error) => panic!("{error}"),
            }
        })
    });
    let racing: Vec<_> = racing.collect();
    for file in &files {
        std::fs::remove_file(file).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut compacted = 0;
    for racing in racing {
        compacted += u32::from(racing.await.unwrap());
    }
    assert!(
        compacted > 0,
        "nobody was late: this test would show nothing"
    );
    // What is in memory may still be told, and then the truth.
    follow(&mut reading, 10, last).await;
    assert!(follow(&mut parked, 0, last).await.is_some());
    let refused = watch(start).await.unwrap_err();
    let StorageError::Compacted { oldest } = refused else {
        panic!("{refused:?}")
    };
    assert!(oldest > start.revision && oldest < present.revision);
    // What it says can be had, can be had.
    let from = Position {
        revision: oldest,
        ..start
    };
    let first = positions.partition_point(|position| position.revision <= oldest) as u64;
    let mut late = watch(from).await.unwrap();
    assert_eq!(follow(&mut late, first, last).await, None);
    drop((parked, reading, late, session));
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .unwrap();
}

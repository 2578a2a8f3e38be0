//! kill -9 of the server while producers push: every acknowledged commit is there afterwards, none is half there.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, KeyState, Outcome, Position, Revision, ScanOptions,
    Storage, StorageExt,
};
use storage_testkit::harness::{Certificates, ServerProcess, connect};

/// In one run, as the acceptance asks.
const KILLS: u32 = 50;

/// Commits in flight at once.
const WRITERS: u32 = 8;

/// How long the first acknowledgement of a round may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pushes pairs of keys until the connection is lost; gives what was acknowledged.
async fn push(
    storage: RemoteStorage,
    round: u32,
    writer: u32,
    under_way: Arc<AtomicBool>,
) -> Vec<(Key, Position)> {
    let mut acknowledged = Vec::new();
    for n in 0u32.. {
        let name = format!("{round:03}/{writer}/{n:06}");
        let value = vec![b'v'; 64 + (n as usize * 37) % 2000];
        let batch = Batch::new()
            .put(format!("{name}/a"), value.clone())
            .put(format!("{name}/b"), value);
        match storage.commit(batch, CommitOptions::default()).await {
            Ok(position) => {
                acknowledged.push((Key::from(name), position));
                under_way.store(true, Ordering::Relaxed);
            }
            Err(error) => {
                // Lost in flight, or not sent any more: never something else.
                assert!(
                    matches!(error.outcome(), Outcome::Unknown | Outcome::NotExecuted),
                    "{error}"
                );
                return acknowledged;
            }
        }
    }
    acknowledged
}

/// All pairs of a round: both keys, one revision.
async fn pairs(storage: &dyn Storage, round: u32) -> HashMap<Key, Revision> {
    let range = KeyRange::prefix(format!("{round:03}/"));
    let items = storage
        .scan(range, ScanOptions::default())
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let mut halves: HashMap<Key, Vec<Revision>> = HashMap::new();
    for item in items {
        let KeyState::Live(entry) = item.state else {
            panic!("a tombstone in a plain scan")
        };
        halves
            .entry(item.key.slice(..item.key.len() - 2))
            .or_default()
            .push(entry.revision);
    }
    let whole = |(name, halves): (Key, Vec<Revision>)| {
        assert!(
            halves.len() == 2 && halves[0] == halves[1],
            "half a commit: {name:?} {halves:?}"
        );
        (name, halves[0])
    };
    halves.into_iter().map(whole).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_commit_survives_fifty_kills() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(&["producer"]);
    let mut server = ServerProcess::mutual(&certificates, &folder.path().join("data"), &[]);
    let mut last = Position::default();
    let (mut acknowledged, mut unknown_but_there) = (0, 0);
    for round in 0..KILLS {
        // For whom a lost connection is final: else the push would go on behind the kill.
        let url = format!("{}/storage/model", server.url("storage"));
        let options = ConnectOptions::new(url)
            .credentials_dir(certificates.dir().join("producer"))
            .give_up_after(Duration::ZERO);
        let storage = RemoteStorage::connect(options).await.unwrap();
        let position = storage.sync().await.unwrap();
        assert!(
            round == 0 || position.epoch == last.epoch,
            "nothing was lost, so the epoch stays"
        );
        assert!(
            position.revision >= last.revision,
            "the revision never goes back"
        );
        let under_way = Arc::new(AtomicBool::new(false));
        let pushing: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(push(storage.clone(), round, writer, under_way.clone())))
            .collect();
        // At another moment each time, in the middle of the push: behind its first answer, however long that takes.
        let began = Instant::now();
        while !under_way.load(Ordering::Relaxed) && began.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(20 + u64::from(round * 37 % 120))).await;
        server.restart();
        let mut acks = Vec::new();
        for writer in pushing {
            acks.extend(writer.await.unwrap());
        }
        assert!(!acks.is_empty(), "the push was under way");
        let storage = connect(&server, &certificates, "producer", "model")
            .await
            .unwrap();
        let there = pairs(&storage, round).await;
        for (name, position) in &acks {
            assert_eq!(
                there.get(name),
                Some(&position.revision),
                "acknowledged and lost: {name:?}, kill {round}"
            );
        }
        last = acks
            .iter()
            .map(|(_, position)| *position)
            .max_by_key(|position| position.revision)
            .unwrap();
        acknowledged += acks.len();
        unknown_but_there += there.len() - acks.len();
        storage.close().await;
    }
    // All of them again, after all restarts.
    let storage = connect(&server, &certificates, "producer", "model")
        .await
        .unwrap();
    let mut total = 0;
    for round in 0..KILLS {
        total += pairs(&storage, round).await.len();
    }
    assert_eq!(total, acknowledged + unknown_but_there);
    println!(
        "{KILLS} kills, {acknowledged} acknowledged commits, all there; {unknown_but_there} more were executed unanswered"
    );
}

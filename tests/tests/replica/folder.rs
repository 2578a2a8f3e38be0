//! What a process leaves to the next one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use storage_client::replica::{Proof, ReplicaError, ReplicaEvent};
use storage_client::{Replica, ReplicaOptions};
use storage_protocol::{Continuity, Entry, Key, KeyRange, ResyncReason, Storage, StorageExt};
use storage_testkit::harness::{Certificates, ServerProcess, binary, connect};
use storage_testkit::model::ModelStore;

use crate::support::{
    Faulty, History, PATIENCE, keyspace, model, pairs, put, quick, replica_of, state_from, texts,
    until, write_at_random,
};

fn kept(folder: &Path) -> ReplicaOptions {
    quick().persist(folder.join("copy"), "copied")
}

#[tokio::test]
async fn a_restart_goes_on_from_the_saved_position() {
    let place = tempfile::tempdir().unwrap();
    let (_, storage) = model();
    for n in 0..100 {
        put(&*storage, &format!("k{n:02}"), "old").await;
    }
    let replica = replica_of(storage.clone(), kept(place.path())).await;
    let before = replica.sync(PATIENCE).await.unwrap();
    replica.close().await.unwrap();
    assert_eq!(replica.status().saved, Some(before.position));

    storage.remove("k07".into()).await.unwrap();
    let last = put(&*storage, "k08", "new").await;
    let faulty = Faulty::new(storage, 1);
    faulty.refuse(true);
    let replica = replica_of(faulty.clone(), kept(place.path())).await;
    // What was saved is there at once; nobody knows how old it is.
    let state = replica.scan(replica.range(), false, None).unwrap();
    assert_eq!(state.value.len(), 100);
    let position = before.position;
    assert_eq!(
        state.proof,
        Proof {
            position,
            age: None
        }
    );
    faulty.refuse(false);
    let state = state_from(&replica, last).await;
    assert_eq!(state.value.len(), 99);
    let status = replica.status();
    assert_eq!((status.states_fetched, status.full_passes), (2, 0));
    assert_eq!(status.resumes, 1);
    replica.sync(PATIENCE).await.unwrap();
    assert!(replica.proof().unwrap().age.is_some());
    replica.close().await.unwrap();

    // Under a bound on its age it is refused until it is proven.
    faulty.refuse(true);
    let options = kept(place.path()).freshness_max(Duration::from_secs(60));
    let replica = replica_of(faulty.clone(), options).await;
    let error = replica.get(b"k08").unwrap_err();
    assert!(matches!(error, ReplicaError::TooOld { age: None, .. }));
    faulty.refuse(false);
    replica.sync(PATIENCE).await.unwrap();
    replica.get(b"k08").unwrap();
}

#[tokio::test]
async fn a_store_of_another_history_replaces_the_copy() {
    let place = tempfile::tempdir().unwrap();
    let (_, storage) = model();
    put(&*storage, "old", "1").await;
    put(&*storage, "both", "1").await;
    let replica = replica_of(storage.clone(), kept(place.path())).await;
    replica.sync(PATIENCE).await.unwrap();
    replica.close().await.unwrap();
    let other = Arc::new(ModelStore::new().storage(&keyspace()));
    put(&*other, "both", "2").await;
    let last = put(&*other, "new", "2").await;
    let faulty = Faulty::new(other, 1);
    faulty.refuse(true);
    let replica = replica_of(faulty.clone(), kept(place.path())).await;
    let mut changes = replica.changes();
    faulty.refuse(false);
    // A position of the store that is there now is waited for, whatever its revision.
    let state = state_from(&replica, last).await;
    assert_eq!(texts(&state.value), pairs(&[("both", "2"), ("new", "2")]));
    assert_eq!(state.proof.position.epoch, last.epoch);
    let news = changes.next().await.unwrap().unwrap();
    assert!(
        matches!(
            news,
            ReplicaEvent::Continuity(Continuity::Resynced {
                why: ResyncReason::EpochChanged { .. }
            })
        ),
        "{news:?}"
    );
    replica.close().await.unwrap();
    // And so in the folder.
    faulty.refuse(true);
    let replica = replica_of(faulty, kept(place.path())).await;
    let state = replica.scan(replica.range(), false, None).unwrap();
    assert_eq!(texts(&state.value), pairs(&[("both", "2"), ("new", "2")]));
}

#[tokio::test]
async fn a_folder_of_something_else_or_in_use_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let (_, storage) = model();
    let replica = replica_of(storage.clone(), kept(place.path())).await;
    replica.ready().await.unwrap();
    let refused = |range: KeyRange, name: &'static str| {
        let options = quick().persist(place.path().join("copy"), name);
        let storage = storage.clone();
        async move {
            let refused = Replica::start(storage, range, options).await;
            refused.unwrap_err().to_string()
        }
    };
    let text = refused(KeyRange::all(), "copied").await;
    assert!(text.contains("in use by another replica"), "{text}");
    replica.close().await.unwrap();
    let text = refused(KeyRange::prefix("x"), "copied").await;
    assert!(text.contains("copy of the range [..)"), "{text}");
    let text = refused(KeyRange::all(), "other").await;
    assert!(text.contains("keyspace \"copied\""), "{text}");
}

#[tokio::test]
async fn a_damaged_folder_is_noticed_and_begun_anew() {
    let place = tempfile::tempdir().unwrap();
    let (_, storage) = model();
    for n in 0..20 {
        put(
            &*storage,
            &format!("k{n:02}"),
            &format!("the value of {n:02}"),
        )
        .await;
    }
    let replica = replica_of(storage.clone(), kept(place.path())).await;
    replica.sync(PATIENCE).await.unwrap();
    replica.close().await.unwrap();
    let file = place.path().join("copy/replica.redb");
    let saved = fs::read(&file).unwrap();
    let truth = texts(&scan(&replica_of(storage.clone(), quick()).await).await);
    let faulty = Faulty::new(storage, 1);
    let mut anew = 0;
    for n in (0..20).step_by(3) {
        let value = format!("the value of {n:02}");
        let mut damaged = saved.clone();
        // Wherever it stands: in the present page, and in those that were replaced.
        let value = value.as_bytes();
        let found: Vec<_> = (0..damaged.len() - value.len())
            .filter(|at| damaged[*at..].starts_with(value))
            .collect();
        assert!(!found.is_empty());
        for at in found {
            damaged[at + n % value.len()] ^= 1;
        }
        fs::write(&file, damaged).unwrap();
        faulty.refuse(true);
        let replica = replica_of(faulty.clone(), kept(place.path())).await;
        match replica.scan(replica.range(), false, None) {
            Ok(read) => assert_eq!(texts(&read.value), truth, "a wrong value is served"),
            Err(error) => {
                assert!(matches!(error, ReplicaError::NotReady), "{error:?}");
                anew += 1;
            }
        }
        // With a server it is right again, and so is what it leaves.
        faulty.refuse(false);
        assert_eq!(texts(&scan(&replica).await), truth);
        assert_eq!(replica.status().full_passes, 1);
        replica.close().await.unwrap();
        let replica = replica_of(faulty.clone(), kept(place.path())).await;
        assert_eq!(texts(&scan(&replica).await), truth);
        assert_eq!(replica.status().full_passes, 0);
        replica.close().await.unwrap();
    }
    assert_eq!(anew, 7);
}

/// Its entries, proven now.
async fn scan(replica: &Replica) -> Vec<(Key, Entry)> {
    replica.sync(PATIENCE).await.unwrap();
    replica.scan(replica.range(), false, None).unwrap().value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_state_saved_existed() {
    let place = tempfile::tempdir().unwrap();
    let (_, storage) = model();
    let end = Arc::new(AtomicBool::new(false));
    let (ended, writer) = (end.clone(), storage.clone());
    let writer = tokio::spawn(async move {
        while !ended.load(Ordering::SeqCst) {
            write_at_random(vec![writer.clone()], rand::random(), 5, Duration::ZERO).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut seen = Vec::new();
    for round in 0..10 {
        let replica = replica_of(storage.clone(), kept(place.path())).await;
        seen.push(
            replica
                .ready()
                .await
                .map(|_| replica.scan(replica.range(), false, None).unwrap())
                .unwrap(),
        );
        tokio::time::sleep(Duration::from_millis(round * 5)).await;
        replica.close().await.unwrap();
    }
    end.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    let positions = seen
        .windows(2)
        .filter(|two| two[0].proof.position != two[1].proof.position);
    assert!(positions.count() > 5);
    History::of(&*storage).await.check(&KeyRange::all(), seen);
}

/// `storage replica --dir`, killed when dropped.
struct Process(Child);

impl Process {
    fn start(server: &ServerProcess, certificates: &Certificates, dir: &Path) -> Self {
        let mut child = Command::new(binary("storage"))
            .arg("--url")
            .arg(format!("{}/storage/copied", server.url("storage")))
            .arg("--certs")
            .arg(certificates.dir())
            .args(["--identity", "tester", "--json", "replica", "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"ready\":"), "{line}");
        std::thread::spawn(move || lines.lines().count());
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Kill -9, and nothing else: it gets no chance to save.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kill_9_the_folder_holds_a_state_that_existed_and_goes_on_from_it() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("copy");
    let certificates = Certificates::issue(&["tester"]);
    let server = ServerProcess::mutual(&certificates, &place.path().join("data"), &[]);
    let storage = connect(&server, &certificates, "tester", "copied").await;
    let storage: Arc<dyn Storage> = Arc::new(storage.unwrap());
    put(&*storage, "in/first", "1").await;
    let end = Arc::new(AtomicBool::new(false));
    let (ended, writing) = (end.clone(), storage.clone());
    let writer = tokio::spawn(async move {
        while !ended.load(Ordering::SeqCst) {
            write_at_random(vec![writing.clone()], rand::random(), 10, Duration::ZERO).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let (mut seen, mut fetched_anew) = (Vec::new(), 0);
    for round in 0..12 {
        let process = Process::start(&server, &certificates, &dir);
        // Some before the first write to the folder, some within a later one.
        let time = rand::rng().random_range(0..if round % 3 == 0 { 30 } else { 2_500 });
        tokio::time::sleep(Duration::from_millis(time)).await;
        drop(process);
        let faulty = Faulty::new(storage.clone(), 1);
        faulty.refuse(true);
        let options = quick().persist(&dir, "copied");
        let replica = replica_of(faulty.clone(), options).await;
        match replica.scan(replica.range(), false, None) {
            Ok(state) => seen.push(state),
            Err(ReplicaError::NotReady) => fetched_anew += 1,
            Err(error) => panic!("{error}"),
        }
        replica.close().await.unwrap();
    }
    println!(
        "{} states were saved; {fetched_anew} kills came before the first",
        seen.len()
    );
    assert!(seen.len() >= 4);
    // The next one goes on from there.
    end.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    let replica = replica_of(storage.clone(), quick().persist(&dir, "copied")).await;
    replica.sync(PATIENCE).await.unwrap();
    assert_eq!(
        (replica.status().full_passes, replica.status().resumes),
        (0, 1)
    );
    seen.push(replica.scan(replica.range(), false, None).unwrap());
    History::of(&*storage).await.check(&KeyRange::all(), seen);
}

#[tokio::test]
async fn marks_are_saved_while_it_runs_and_not_each_on_its_own() {
    let place = tempfile::tempdir().unwrap();
    let (_, storage) = model();
    let options = kept(place.path()).save_interval(Duration::from_millis(200));
    let replica = replica_of(storage.clone(), options).await;
    let began = Instant::now();
    let (mut last, mut writes) = (None, 0);
    while began.elapsed() < Duration::from_secs(1) {
        put(&*storage, "k", "v").await;
        let saved = replica.status().saved;
        if saved != last {
            (last, writes) = (saved, writes + 1);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!((3..=7).contains(&writes), "{writes} writes");
    let position = put(&*storage, "k", "last").await;
    until("the last one is saved", || {
        replica
            .status()
            .saved
            .is_some_and(|saved| saved.revision >= position.revision)
    })
    .await;
}

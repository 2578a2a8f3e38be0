//! The client over the end of its server, planned and not: real processes over mutual TLS.
//!
//! What each message does is tested beside the client against a scripted server, and random faults in `histories.rs`;
//! here are the few ways that users will see.

#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "these tests wait for processes, beside clients that go on"
)]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use storage_client::{ConnectOptions, ConnectionState, RemoteStorage, SavedSession};
use storage_protocol::{
    Batch, ChangeKind, CommitOptions, Continuity, Key, KeyRange, KeyState, Outcome, ResyncReason,
    Revision, Storage, StorageError, StorageExt, Value, Watch, WatchEvent, WatchOptions,
    WatchStart,
};
use storage_testkit::fault_proxy::{Fault, FaultProxy, Scope};
use storage_testkit::harness::{Certificates, ServerProcess, binary, connect};
use tempfile::TempDir;

/// For each single wait.
const PATIENCE: Duration = Duration::from_secs(60);

struct House {
    server: ServerProcess,
    certificates: Certificates,
    folder: TempDir,
}

impl House {
    fn new() -> Self {
        Self::with(&[])
    }

    /// With more arguments for the server.
    fn with(more: &[&str]) -> Self {
        let certificates = Certificates::issue(&["alice", "bob"]);
        let folder = tempfile::tempdir().unwrap();
        let server = ServerProcess::mutual(&certificates, &folder.path().join("data"), more);
        Self {
            server,
            certificates,
            folder,
        }
    }

    async fn connect(&self, name: &str) -> RemoteStorage {
        connect(&self.server, &self.certificates, name, "model")
            .await
            .unwrap()
    }

    /// A network of its own, and how it is connected through. It comes back soon when it is healed.
    async fn proxy(&self, name: &str) -> (FaultProxy, ConnectOptions) {
        let (_, address) = self.server.url("storage").split_once("://").unwrap();
        let proxy = FaultProxy::start(address.parse().unwrap(), 1).await;
        let proxy = proxy.unwrap();
        let url = format!("wss://{}/storage/model", proxy.address());
        let options = ConnectOptions::new(url)
            .credentials_dir(self.certificates.dir().join(name))
            .backoff(Duration::from_millis(10), Duration::from_millis(100));
        (proxy, options)
    }

    /// Ends the server in order, and starts it again at the same address.
    fn restart_in_order(&mut self) {
        assert!(self.server.terminate().success());
        self.server.restart();
    }
}

/// How often each key was put, by the log.
async fn puts_by_key(storage: &RemoteStorage) -> HashMap<Key, u64> {
    let options = WatchOptions::every(WatchStart::Beginning);
    let mut watch = storage.watch(KeyRange::all(), options).await.unwrap();
    watch.request_progress(1);
    let mut puts = HashMap::new();
    loop {
        match next(&mut watch).await {
            WatchEvent::Commit(record) => {
                for change in &record.changes {
                    if matches!(change.kind, ChangeKind::Put { .. }) {
                        *puts.entry(change.key.clone()).or_default() += 1;
                    }
                }
            }
            WatchEvent::Progress { token: Some(1), .. } => return puts,
            _ => {}
        }
    }
}

async fn next(watch: &mut Watch) -> WatchEvent {
    let event = tokio::time::timeout(PATIENCE, watch.next()).await;
    event.expect("no event came").unwrap().expect("it ended")
}

/// Clients that put (each key once) and read without pause until they are told to stop. Gives how many keys were put.
async fn work(
    storage: RemoteStorage,
    name: u32,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let key: Key = format!("{name}/{count}").into();
        storage.put(key.clone(), "v".into()).await.unwrap();
        // It sees its own write, whatever server process it was acknowledged by.
        let found = storage.get_one(key).await.unwrap();
        assert!(found.is_some());
        count += 1;
        done.fetch_add(1, Ordering::Relaxed);
    }
    count
}

async fn calls_go_on_over(restart: impl Fn(&mut House)) {
    let mut house = House::new();
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let watcher = house.connect("bob").await;
    let mut watch = watcher
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    let mut workers = Vec::new();
    for name in 0..4 {
        let storage = house.connect("alice").await;
        workers.push(tokio::spawn(work(
            storage,
            name,
            stop.clone(),
            done.clone(),
        )));
    }
    for round in 0..3 {
        let before = done.load(Ordering::Relaxed);
        let began = Instant::now();
        while done.load(Ordering::Relaxed) < before + 50 {
            assert!(began.elapsed() < PATIENCE, "round {round}: nothing goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::task::block_in_place(|| restart(&mut house));
    }
    let before = done.load(Ordering::Relaxed);
    while done.load(Ordering::Relaxed) < before + 50 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut total = 0;
    for worker in workers {
        total += worker.await.unwrap();
    }
    let puts = puts_by_key(&watcher).await;
    assert_eq!(puts.len() as u64, total);
    assert!(
        puts.values().all(|count| *count == 1),
        "a put took effect twice"
    );
    // The watch was there all the time: it was told each of them once, and of each break.
    watch.request_progress(7);
    let (mut told, mut breaks) = (0, 0);
    loop {
        match next(&mut watch).await {
            WatchEvent::Commit(_) => told += 1,
            WatchEvent::Continuity(Continuity::Continuous) => breaks += 1,
            WatchEvent::Progress { token: Some(7), .. } => break,
            WatchEvent::Progress { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, total);
    // Two that lie close together may be one for a client that was still on its way back.
    assert!((1..=3).contains(&breaks), "{breaks} breaks were told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_over_planned_restarts() {
    calls_go_on_over(House::restart_in_order).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_commit_takes_effect_once_over_kills() {
    // `restart` kills with SIGKILL.
    calls_go_on_over(|house| house.server.restart()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reserved_prefix_is_kept_over_a_restart() {
    let mut house = House::new();
    let alice = house.connect("alice").await;
    assert_eq!(alice.reserve_prefix("p/".into()).await.unwrap(), 0);
    let mut info = alice.session_info();
    tokio::task::block_in_place(|| house.restart_in_order());
    info.wait_for(|info| info.reconnects == 1).await.unwrap();
    // Well within the grace: nobody else gets it.
    let bob = house.connect("bob").await;
    assert_eq!(bob.reserve_prefix("p/".into()).await.unwrap(), 1);
    assert_eq!((info.borrow().expirations, info.borrow().replaced), (0, 0));
    // With the session goes the prefix.
    alice.close().await;
    let began = Instant::now();
    while bob
        .get_one(Key::from_static(b"p/\0\0"))
        .await
        .unwrap()
        .is_some()
    {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_read_again_on_each_reconnect() {
    let mut house = House::new();
    let mine = house.folder.path().join("mine");
    let copy = |from: &str| {
        fs::create_dir_all(&mine).unwrap();
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            fs::copy(
                house.certificates.dir().join(from).join(name),
                mine.join(name),
            )
            .unwrap();
        }
    };
    copy("alice");
    let url = format!("{}/storage/model", house.server.url("storage"));
    let options = ConnectOptions::new(url).credentials_dir(&mine);
    let storage = RemoteStorage::connect(options).await.unwrap();
    assert_eq!(storage.principal(), "cert:alice");
    // A session that never committed has nothing that could be another's.
    storage.put("k".into(), "v".into()).await.unwrap();
    copy("bob");
    let mut info = storage.session_info();
    tokio::task::block_in_place(|| house.server.restart());
    info.wait_for(|info| info.reconnects == 1).await.unwrap();
    assert_eq!(storage.principal(), "cert:bob");
    // A session belongs to its principal.
    assert_eq!(info.borrow().replaced, 1);
    // Files that cannot be used leave those that were.
    fs::write(mine.join("cert.pem"), "nonsense").unwrap();
    tokio::task::block_in_place(|| house.server.restart());
    info.wait_for(|info| info.reconnects == 2).await.unwrap();
    assert_eq!(storage.principal(), "cert:bob");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_away_calls_wait_and_the_state_says_why() {
    let mut house = House::new();
    let url = format!("{}/storage/model", house.server.url("storage"));
    let options = ConnectOptions::new(url)
        .credentials_dir(house.certificates.dir().join("alice"))
        .request_timeout(Duration::from_millis(300));
    let storage = RemoteStorage::connect(options).await.unwrap();
    let mut state = storage.state();
    tokio::task::block_in_place(|| house.server.kill());
    state
        .wait_for(|state| matches!(state, ConnectionState::Disconnected { why, .. } if why.contains("refused")))
        .await
        .unwrap();
    let error = storage.put("k".into(), "v".into()).await.unwrap_err();
    assert!(
        matches!(error, StorageError::DeadlineExceeded { .. }),
        "{error:?}"
    );
    tokio::task::block_in_place(|| house.server.restart());
    state
        .wait_for(|state| *state == ConnectionState::Connected)
        .await
        .unwrap();
    storage.put("k".into(), "v".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_import_goes_on_and_no_row_takes_effect_twice() {
    const ROWS: usize = 20_000;
    let mut house = House::new();
    let file = house.folder.path().join("rows.jsonl");
    let rows: String = (0..ROWS)
        .map(|row| format!("{{\"put\":{{\"key\":\"row/{row}\",\"value\":\"v\"}}}}\n"))
        .collect();
    fs::write(&file, rows).unwrap();
    let session = house.folder.path().join("session");
    let command = |house: &House, file: &Path| {
        let mut command = Command::new(binary("storage"));
        command
            .args([
                "--url",
                &format!("{}/storage/model", house.server.url("storage")),
            ])
            .arg("--certs")
            .arg(house.certificates.dir())
            .args(["--identity", "alice", "import", "--batch", "10"])
            .arg("--session-file")
            .arg(&session)
            .arg(file)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let observer = house.connect("bob").await;
    let committed = async || {
        let scan = observer
            .scan(KeyRange::all(), storage_protocol::ScanOptions::default())
            .await
            .unwrap();
        scan.collect().await.unwrap().len()
    };
    let mut kills = 0;
    // Killed whenever it has done a little more, and once together with the server.
    for more in [500, 1_500, 4_000, 8_000, 12_000] {
        let mut import = command(&house, &file).spawn().unwrap();
        let began = Instant::now();
        while committed().await < more && import.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "the import does not go on");
        }
        if more == 4_000 {
            tokio::task::block_in_place(|| house.server.kill());
        }
        kills += usize::from(import.try_wait().unwrap().is_none());
        import.kill().unwrap();
        import.wait().unwrap();
        if more == 4_000 {
            tokio::task::block_in_place(|| house.server.restart());
        }
    }
    assert!(kills >= 3, "the import was too fast to be killed: {kills}");
    let ran = tokio::task::block_in_place(|| command(&house, &file).output().unwrap());
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(
        ran.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert!(text.contains("rows were committed before"), "{text}");
    let puts = puts_by_key(&observer).await;
    assert_eq!(puts.len(), ROWS);
    assert!(
        puts.values().all(|count| *count == 1),
        "a row took effect twice"
    );
    // Once more: there is nothing to do.
    let ran = tokio::task::block_in_place(|| command(&house, &file).output().unwrap());
    let text = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(
        ran.status.success() && text.contains("all 20000 rows were committed before"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_told_conflicts_once_conflicts_for_its_retry_too() {
    // A compare-and-set whose answer is lost must not fail against its own effect.
    let mut house = House::new();
    let storage = house.connect("alice").await;
    let first = storage.put("n".into(), "0".into()).await.unwrap();
    let mut revision = first.revision;
    for round in 0..5 {
        let batch = Batch::new()
            .check_revision("n", revision)
            .put("n", format!("{round}"));
        let commit = storage.commit(batch, CommitOptions::default());
        let kill = async {
            tokio::task::block_in_place(|| house.server.restart());
        };
        let (position, ()) = tokio::join!(commit, kill);
        revision = position.unwrap().revision;
        let found = storage.get_one("n".into()).await.unwrap().unwrap();
        assert_eq!(found.revision, revision);
    }
}

/// Cuts a client off until the heal, and waits until it knows.
async fn cut_off(proxy: &FaultProxy, storage: &RemoteStorage) {
    proxy.apply(Fault::Refuse { during: PATIENCE }, Scope::All);
    proxy.reset_all();
    let mut state = storage.state();
    let is_lost = |state: &ConnectionState| matches!(state, ConnectionState::Disconnected { .. });
    let lost = tokio::time::timeout(PATIENCE, state.wait_for(is_lost)).await;
    drop(lost.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_takes_effect_once() {
    const ROUNDS: u64 = 5;
    let house = House::new();
    let (proxy, options) = house.proxy("alice").await;
    let alice = RemoteStorage::connect(options).await.unwrap();
    for round in 0..ROUNDS {
        proxy.apply(Fault::CutBeforeAnswer, Scope::All);
        let key: Key = format!("{round}").into();
        alice.put(key, "v".into()).await.unwrap();
    }
    assert_eq!(alice.session_info().borrow().reconnects, ROUNDS);
    let puts = puts_by_key(&house.connect("bob").await).await;
    assert_eq!(puts.len() as u64, ROUNDS);
    assert!(
        puts.values().all(|count| *count == 1),
        "a put took effect twice: {puts:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_right_behind_what_it_was_told() {
    let house = House::new();
    let (proxy, options) = house.proxy("bob").await;
    let alice = house.connect("alice").await;
    let bob = RemoteStorage::connect(options).await.unwrap();
    let mut watch = bob
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    // A signal takes one revision: nothing lies between two of them.
    let signal = async |name: String| {
        let batch = Batch::new().signal("s", name);
        let options = CommitOptions::default();
        alice.commit(batch, options).await.unwrap().revision
    };
    let mut last = signal("first".to_owned()).await;
    let told = next(&mut watch).await;
    assert!(matches!(&told, WatchEvent::Commit(record) if record.revision == last));
    // The last time nothing happened meanwhile.
    for (token, missed) in (1..).zip([3, 1, 0]) {
        cut_off(&proxy, &bob).await;
        let mut expected = Vec::new();
        for number in 0..missed {
            let revision = signal(format!("{token}/{number}")).await;
            assert_eq!(revision.0, last.0 + 1, "a signal takes more revisions");
            last = revision;
            expected.push(revision);
        }
        proxy.heal();
        watch.request_progress(token);
        let mut told = Vec::new();
        loop {
            match next(&mut watch).await {
                WatchEvent::Commit(record) => told.push(record.revision),
                WatchEvent::Progress {
                    token: Some(came), ..
                } if came == token => break,
                WatchEvent::Progress { .. } => {}
                WatchEvent::Continuity(Continuity::Continuous) => assert!(told.is_empty()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(told, expected, "{missed} came while it was away");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_does_not_fence_the_process_that_resumed_its_session() {
    let house = House::new();
    let (proxy, options) = house.proxy("alice").await;
    let put = |key: &str| Batch::new().put(key.to_owned(), "v");
    let first = RemoteStorage::connect(options).await.unwrap();
    for number in 1..5 {
        let commit = first.commit(put(&format!("{number}")), CommitOptions::default());
        commit.await.unwrap();
    }
    // On its first socket it is cut off without a word; what it sends from here on comes nowhere.
    let info = *first.session_info().borrow();
    assert_eq!((info.incarnation, info.reconnects), (0, 0));
    proxy.apply(Fault::HalfOpen, Scope::All);
    let lost = tokio::spawn({
        let (first, batch) = (first.clone(), put("first's 5"));
        async move { first.commit(batch, CommitOptions::default()).await }
    });
    // Another process goes on with the saved session, under the same numbers.
    let saved = SavedSession {
        id: info.id,
        incarnation: info.incarnation,
        sent: 4,
        unanswered: Vec::new(),
    };
    let url = format!("{}/storage/model", house.server.url("storage"));
    let options = ConnectOptions::new(url)
        .credentials_dir(house.certificates.dir().join("alice"))
        .resume_session(saved);
    let second = RemoteStorage::connect(options).await.unwrap();
    assert_eq!(second.session(), info.id);
    let commit = second.commit_as(5, put("second's 5"), CommitOptions::default());
    let fifth = commit.await.unwrap();
    // The first one's link returns.
    proxy.heal();
    let mut state = first.state();
    let is_over = |state: &ConnectionState| matches!(state, ConnectionState::Closed { .. });
    let over = tokio::time::timeout(PATIENCE, state.wait_for(is_over)).await;
    let ConnectionState::Closed { why } = over.expect("it goes on").unwrap().clone() else {
        panic!("it is not over");
    };
    assert!(
        why.contains("another process holds this session") && why.contains("code 4003"),
        "{why}"
    );
    let lost = tokio::time::timeout(PATIENCE, lost).await.unwrap().unwrap();
    let error = lost.expect_err("it was told the other's revision");
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    // And the second goes on, on its one socket.
    let commit = second.commit_as(6, put("second's 6"), CommitOptions::default());
    assert!(commit.await.unwrap().revision > fifth.revision);
    assert_eq!(second.session_info().borrow().reconnects, 0);
    assert_eq!(*second.state().borrow(), ConnectionState::Connected);
    let puts = puts_by_key(&house.connect("bob").await).await;
    assert!(!puts.contains_key(&Key::from("first's 5")));
    assert_eq!(puts.len(), 6);
}

/// Follows a watch `Latest` from this state to its next mark; tells whether there was a `Reset`.
async fn to_the_mark(watch: &mut Watch, state: &mut BTreeMap<Key, Value>) -> bool {
    let mut reset = false;
    loop {
        match next(watch).await {
            WatchEvent::State { key, state: now } => {
                match now {
                    KeyState::Live(entry) => state.insert(key, entry.value),
                    KeyState::Removed(_) => state.remove(&key),
                };
            }
            WatchEvent::Reset => {
                state.clear();
                reset = true;
            }
            WatchEvent::Progress { .. } => return reset,
            WatchEvent::Continuity(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_pass_that_broke_leaves_nothing_that_is_gone() {
    let house = House::new();
    let (proxy, options) = house.proxy("bob").await;
    let alice = house.connect("alice").await;
    let value = Value::from(vec![b'v'; 100_000]);
    for key in 0..100 {
        let key: Key = format!("{key:03}").into();
        alice.put(key, value.clone()).await.unwrap();
    }
    // Credit for a small part of the pass, so that it is under way.
    let options = options.watch_credit_bytes(200_000);
    let bob = RemoteStorage::connect(options).await.unwrap();
    let options = WatchOptions::latest(WatchStart::Beginning);
    let mut watch = bob.watch(KeyRange::all(), options).await.unwrap();
    let WatchEvent::State {
        key: gone,
        state: KeyState::Live(entry),
    } = next(&mut watch).await
    else {
        panic!("a pass begins with a state");
    };
    cut_off(&proxy, &bob).await;
    alice.remove(gone.clone()).await.unwrap();
    proxy.heal();
    let mut state = BTreeMap::from([(gone.clone(), entry.value)]);
    to_the_mark(&mut watch, &mut state).await;
    assert!(!state.contains_key(&gone), "{gone:?} is gone, and stayed");
    assert_eq!(state.len(), 99);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_its_tail_is_no_continuation() {
    let mut house = House::with(&["--durability", "os"]);
    let alice = house.connect("alice").await;
    let mut every = alice
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    let options = WatchOptions::latest(WatchStart::Beginning);
    let mut latest = alice.watch(KeyRange::all(), options).await.unwrap();
    let mut state = BTreeMap::new();
    alice.put("a".into(), "1".into()).await.unwrap();
    assert!(matches!(next(&mut every).await, WatchEvent::Commit(_)));
    while state.is_empty() {
        to_the_mark(&mut latest, &mut state).await;
    }
    // As after a power cut: another boot, and what was synced ends before all that.
    tokio::task::block_in_place(|| house.server.kill());
    let mark = house.folder.path().join("data/SYNCED");
    fs::write(mark, "1 0 os running another-boot\n").unwrap();
    tokio::task::block_in_place(|| house.server.restart());
    for watch in [&mut every, &mut latest] {
        let told = next(watch).await;
        assert!(
            matches!(
                told,
                WatchEvent::Continuity(Continuity::Resynced {
                    why: ResyncReason::EpochChanged {
                        fork: Revision(1),
                        ..
                    }
                })
            ),
            "{told:?}"
        );
        let mut state = BTreeMap::from([("lost".into(), "x".into())]);
        assert!(to_the_mark(watch, &mut state).await, "no Reset");
        assert_eq!(state, BTreeMap::from([("a".into(), "1".into())]));
    }
    // And each goes on in its own mode.
    alice.put("b".into(), "2".into()).await.unwrap();
    while !matches!(next(&mut every).await, WatchEvent::Commit(_)) {}
    let mut state = BTreeMap::new();
    while state.is_empty() {
        to_the_mark(&mut latest, &mut state).await;
    }
    assert_eq!(state, BTreeMap::from([("b".into(), "2".into())]));
}

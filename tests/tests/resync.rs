//! What cannot be told step by step any more: a log that does not reach back, a history that ended, a link that is half
//! open. A real server, and the real client over mutual TLS through a proxy; the reference is what a direct reader sees.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]
#![expect(
    clippy::disallowed_methods,
    reason = "these tests wait for processes, beside clients that go on"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_client::replica::ReplicaEvent;
use storage_client::{ConnectOptions, ConnectionState, RemoteStorage, Replica, ReplicaOptions};
use storage_protocol::{
    Batch, ChangeKind, CommitOptions, Continuity, Entry, Key, KeyRange, KeyState, Position,
    ResyncReason, Revision, ScanOptions, Storage, StorageError, StorageExt, Value, Watch,
    WatchEvent, WatchOptions, WatchStart,
};
use storage_testkit::data_folder::{copy, set_boot};
use storage_testkit::fault_proxy::{Fault, FaultProxy, Scope};
use storage_testkit::harness::{Certificates, ServerProcess, connect};
use storage_testkit::raw::{in_time, metric_reaches};
use tempfile::TempDir;

/// For each single wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nothing of what is long ago is in memory.
const SMALL_RING: &str = "durability = \"os\"\n[engine]\nring_bytes = \"1 KiB\"\n";

const ADMIN: &str =
    "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\ngateways = [\"admin\"]\n";

type State = BTreeMap<Key, (Value, Revision)>;

struct House {
    server: ServerProcess,
    certificates: Certificates,
    folder: TempDir,
    proxy: FaultProxy,
}

impl House {
    async fn new(config: &str) -> Self {
        let certificates = Certificates::issue(&["worker"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("server.toml");
        fs::write(&file, format!("{config}\n{ADMIN}")).unwrap();
        let data = folder.path().join("data");
        let more = ["--config", &file.display().to_string()];
        let server =
            tokio::task::block_in_place(|| ServerProcess::mutual(&certificates, &data, &more));
        let (_, address) = server.url("storage").split_once("://").unwrap();
        let proxy = FaultProxy::start(address.parse().unwrap(), 1).await;
        Self {
            proxy: proxy.unwrap(),
            server,
            certificates,
            folder,
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    async fn direct(&self) -> RemoteStorage {
        let direct = connect(&self.server, &self.certificates, "worker", "model").await;
        direct.unwrap()
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions::new(format!("wss://{}/storage/model", self.proxy.address()))
            .credentials_dir(self.certificates.dir().join("worker"))
            .connect_timeout(Duration::from_secs(2))
            .backoff(Duration::from_millis(10), Duration::from_millis(100))
    }

    /// A client that is cut off when the proxy is.
    async fn through(&self) -> RemoteStorage {
        RemoteStorage::connect(self.options()).await.unwrap()
    }

    /// From here on nobody comes through, until the proxy heals.
    fn cut(&self) {
        let during = Duration::from_secs(3_600);
        self.proxy.apply(Fault::Refuse { during }, Scope::All);
        self.proxy.reset_all();
    }

    fn restart(&mut self) {
        tokio::task::block_in_place(|| self.server.restart());
    }

    /// Takes the log away, as age or size would: what was before the restart that this makes can not be told any more.
    async fn purge(&mut self) {
        tokio::task::block_in_place(|| assert!(self.server.terminate().success()));
        self.restart();
        let archive = self.data().join("db/archive");
        let began = Instant::now();
        loop {
            let files: Vec<_> = fs::read_dir(&archive).into_iter().flatten().collect();
            for file in &files {
                fs::remove_file(file.as_ref().unwrap().path()).unwrap();
            }
            if !files.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "nothing was archived");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn key(number: usize) -> Key {
    Key::from(format!("key/{number:06}"))
}

/// About a hundred bytes.
fn value(number: usize, round: usize) -> Value {
    Value::from(format!("{number:>50}{round:>50}"))
}

async fn put_all(storage: &impl Storage, numbers: std::ops::Range<usize>) -> Position {
    let numbers: Vec<_> = numbers.collect();
    let mut last = Position::default();
    for numbers in numbers.chunks(1_000) {
        let batch = numbers
            .iter()
            .fold(Batch::new(), |batch, n| batch.put(key(*n), value(*n, 0)));
        last = storage
            .commit(batch, CommitOptions::default())
            .await
            .unwrap();
    }
    last
}

/// Changes 100 keys of the first 10,000, and the last of them are gone: 60 overwritten (thrice), 20 removed, 20 new.
async fn change_a_hundred(storage: &impl Storage, new_from: usize) -> BTreeSet<Key> {
    let mut changed = BTreeSet::new();
    for round in 1..4 {
        for n in (0..600).step_by(10) {
            storage.put(key(n), value(n, round)).await.unwrap();
            changed.insert(key(n));
        }
    }
    for n in (605..805).step_by(10) {
        storage.remove(key(n)).await.unwrap();
        changed.insert(key(n));
    }
    for n in new_from..new_from + 20 {
        storage.put(key(n), value(n, 0)).await.unwrap();
        changed.insert(key(n));
    }
    assert_eq!(changed.len(), 100);
    changed
}

async fn state_of(storage: &impl Storage) -> State {
    let scan = storage.scan(KeyRange::all(), ScanOptions::default()).await;
    let items = scan.unwrap().collect().await.unwrap().into_iter();
    let live = items.filter_map(|item| match item.state {
        KeyState::Live(entry) => Some((item.key, (entry.value, entry.revision))),
        KeyState::Removed(_) => None,
    });
    live.collect()
}

fn copied(replica: &Replica) -> State {
    let read = replica.scan(replica.range(), false, None).unwrap();
    let entry = |(key, entry): (Key, Entry)| (key, (entry.value, entry.revision));
    read.value.into_iter().map(entry).collect()
}

async fn replica_of(storage: RemoteStorage) -> Replica {
    let options = ReplicaOptions::new().probe_interval(Duration::from_millis(50));
    Replica::start(Arc::new(storage), KeyRange::all(), options)
        .await
        .unwrap()
}

/// What one watch told, and the state that it adds up to.
#[derive(Default)]
struct Reader {
    state: State,
    words: Vec<Continuity>,
    resets: u32,
    commits: u32,
    states: Vec<Key>,
    marks: u64,
}

impl Reader {
    /// Reads up to a mark at or behind `to`.
    async fn follow(&mut self, watch: &mut Watch, to: Position) {
        self.marks += 1;
        watch.request_progress(self.marks);
        loop {
            let event = in_time("an event", watch.next()).await;
            match event.unwrap().expect("it ended") {
                WatchEvent::Commit(record) => {
                    self.commits += 1;
                    for change in &record.changes {
                        let put = match &change.kind {
                            ChangeKind::Put { value, .. } => Some(value),
                            _ => None,
                        };
                        self.take(&change.key, put, record.revision);
                    }
                }
                WatchEvent::State { key, state } => {
                    self.states.push(key.clone());
                    match &state {
                        KeyState::Live(entry) => {
                            self.take(&key, Some(&entry.value), entry.revision);
                        }
                        KeyState::Removed(revision) => self.take(&key, None, *revision),
                    }
                }
                WatchEvent::Reset => {
                    self.resets += 1;
                    self.state.clear();
                }
                WatchEvent::Continuity(word) => self.words.push(word),
                WatchEvent::Progress { position, .. } => {
                    if position.epoch == to.epoch && position.revision >= to.revision {
                        return;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn take(&mut self, key: &Key, value: Option<&Value>, revision: Revision) {
        match value {
            Some(value) => self.state.insert(key.clone(), (value.clone(), revision)),
            None => self.state.remove(key),
        };
    }
}

async fn watch_all(storage: &RemoteStorage) -> Watch {
    let options = WatchOptions::every(WatchStart::Beginning);
    storage.watch(KeyRange::all(), options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_log_a_watch_and_a_replica_get_what_changed_and_go_on() {
    let mut house = House::new(SMALL_RING).await;
    let direct = house.direct().await;
    let first = put_all(&direct, 0..1_000).await;
    let (watching, mut reader) = (house.through().await, Reader::default());
    let mut watch = watch_all(&watching).await;
    reader.follow(&mut watch, first).await;
    let replica = replica_of(house.through().await).await;
    replica.wait_for(first, PATIENCE).await.unwrap();
    let (commits, before) = (reader.commits, replica.status());
    assert_eq!(before.states_fetched, 1_000);
    house.cut();
    let changed = change_a_hundred(&direct, 5_000).await;
    house.purge().await;
    let last = direct.put(key(0), value(0, 9)).await.unwrap();
    let reference = state_of(&direct).await;
    house.proxy.heal();

    reader.follow(&mut watch, last).await;
    assert!(
        matches!(
            reader.words[..],
            [Continuity::Resynced { why: ResyncReason::Compacted { oldest } }]
                if oldest > first.revision
        ),
        "{:?}",
        reader.words
    );
    let told: BTreeSet<_> = reader.states.iter().cloned().collect();
    assert_eq!((told.len(), told), (reader.states.len(), changed));
    assert_eq!((reader.resets, reader.commits), (0, commits));
    assert_eq!(reader.state, reference);
    // It goes on with commits.
    let next = direct.put("next".into(), "1".into()).await.unwrap();
    reader.follow(&mut watch, next).await;
    assert_eq!((reader.commits, reader.words.len()), (commits + 1, 1));
    assert_eq!(reader.state, state_of(&direct).await);

    replica.wait_for(next, PATIENCE).await.unwrap();
    let after = replica.status();
    assert_eq!(after.states_fetched - before.states_fetched, 101);
    assert_eq!(after.full_passes, 1);
    assert_eq!(copied(&replica), reader.state);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_tail_watches_and_replicas_come_to_the_new_history() {
    let mut house = House::new("durability = \"os\"\n").await;
    let direct = house.direct().await;
    put_all(&direct, 0..1_000).await;
    // What the disk will have.
    tokio::task::block_in_place(|| house.server.kill());
    let kept = house.folder.path().join("kept");
    copy(&house.data(), &kept);
    house.restart();
    let (watching, mut reader) = (house.through().await, Reader::default());
    let mut watch = watch_all(&watching).await;
    let replica = replica_of(house.through().await).await;
    replica.ready().await.unwrap();
    let mut changes = replica.changes();
    // The tail, which clients see.
    change_a_hundred(&direct, 5_000).await;
    let lost = direct.put("lost".into(), "1".into()).await.unwrap();
    reader.follow(&mut watch, lost).await;
    replica.wait_for(lost, PATIENCE).await.unwrap();
    assert_eq!(copied(&replica), reader.state);
    let commits = reader.commits;
    house.cut();
    // The machine goes down, and comes up with what the disk had.
    tokio::task::block_in_place(|| house.server.kill());
    fs::remove_dir_all(house.data()).unwrap();
    copy(&kept, &house.data());
    set_boot(&house.data(), "another-boot");
    house.restart();
    let now = direct.put("after".into(), "1".into()).await.unwrap();
    assert_ne!(now.epoch, lost.epoch);
    let reference = state_of(&direct).await;
    assert_eq!(reference.len(), 1_001);
    house.proxy.heal();

    reader.follow(&mut watch, now).await;
    assert!(
        matches!(
            reader.words[..],
            [Continuity::Resynced { why: ResyncReason::EpochChanged { epoch, fork } }]
                if epoch == now.epoch && fork < lost.revision
        ),
        "{:?}",
        reader.words
    );
    assert_eq!((reader.resets, reader.commits), (1, commits));
    assert_eq!(reader.state, reference);
    let next = direct.put("next".into(), "1".into()).await.unwrap();
    reader.follow(&mut watch, next).await;
    assert_eq!((reader.commits, reader.words.len()), (commits + 1, 1));
    assert_eq!(reader.state, state_of(&direct).await);

    replica.wait_for(next, PATIENCE).await.unwrap();
    assert_eq!(copied(&replica), reader.state);
    // Who waited for what is lost is told so.
    let gone = replica.wait_for(lost, PATIENCE).await;
    assert!(gone.is_err(), "{gone:?}");
    loop {
        match in_time("a change", changes.next()).await.unwrap() {
            Some(ReplicaEvent::Continuity(Continuity::Resynced { why })) => {
                assert!(
                    matches!(why, ResyncReason::EpochChanged { epoch, .. } if epoch == now.epoch),
                    "{why:?}"
                );
                break;
            }
            Some(ReplicaEvent::Changed(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// What an operator does who restores: the server is stopped, and the whole folder is put back from a cold copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_folder_was_put_back_watches_and_replicas_come_to_its_history() {
    let mut house = House::new("").await;
    let direct = house.direct().await;
    put_all(&direct, 0..1_000).await;
    tokio::task::block_in_place(|| assert!(house.server.terminate().success()));
    let kept = house.folder.path().join("kept");
    copy(&house.data(), &kept);
    house.restart();
    let (watching, mut reader) = (house.through().await, Reader::default());
    let mut watch = watch_all(&watching).await;
    let replica = replica_of(house.through().await).await;
    change_a_hundred(&direct, 5_000).await;
    let lost = direct.put("lost".into(), "1".into()).await.unwrap();
    reader.follow(&mut watch, lost).await;
    replica.wait_for(lost, PATIENCE).await.unwrap();
    assert_eq!(copied(&replica), reader.state);
    let commits = reader.commits;
    house.cut();
    tokio::task::block_in_place(|| assert!(house.server.terminate().success()));
    fs::remove_dir_all(house.data()).unwrap();
    copy(&kept, &house.data());
    house.restart();
    // Other commits, and more of them, under the revisions that were told.
    let mut now = direct.put("after".into(), "1".into()).await.unwrap();
    assert_ne!(now.epoch, lost.epoch);
    while now.revision <= lost.revision {
        now = direct.put("more".into(), "1".into()).await.unwrap();
    }
    let reference = state_of(&direct).await;
    assert_eq!(reference.len(), 1_002);
    let after_lost = WatchOptions::every(WatchStart::After(lost));
    let refused = direct.watch(KeyRange::all(), after_lost).await.unwrap_err();
    assert!(
        matches!(refused, StorageError::EpochChanged { epoch, fork } if epoch == now.epoch && fork < lost.revision),
        "{refused:?}"
    );
    house.proxy.heal();

    reader.follow(&mut watch, now).await;
    assert!(
        matches!(
            reader.words[..],
            [Continuity::Resynced { why: ResyncReason::EpochChanged { epoch, .. } }] if epoch == now.epoch
        ),
        "{:?}",
        reader.words
    );
    assert_eq!((reader.resets, reader.commits), (1, commits));
    assert_eq!(reader.state, reference);
    let next = direct.put("next".into(), "1".into()).await.unwrap();
    replica.wait_for(next, PATIENCE).await.unwrap();
    assert_eq!(copied(&replica), state_of(&direct).await);
    assert_eq!(
        replica.status().full_passes,
        2,
        "nothing else proves it again"
    );
}

/// The figure that replicas are for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_100_000_entries_that_was_away_fetches_the_100_that_changed() {
    const ENTRIES: usize = 100_000;
    let mut house = House::new(SMALL_RING).await;
    let direct = house.direct().await;
    let first = put_all(&direct, 0..ENTRIES).await;
    let replica = replica_of(house.through().await).await;
    replica.wait_for(first, PATIENCE).await.unwrap();
    let (before, all_bytes) = (replica.status(), house.proxy.passed());
    assert_eq!(before.states_fetched, ENTRIES as u64);
    house.cut();
    change_a_hundred(&direct, ENTRIES).await;
    house.purge().await;
    let last = direct.put(key(0), value(0, 9)).await.unwrap();
    let passed = house.proxy.passed();
    house.proxy.heal();
    replica.wait_for(last, PATIENCE).await.unwrap();
    let bytes = house.proxy.passed() - passed;
    let after = replica.status();
    println!(
        "{ENTRIES} entries took {all_bytes} bytes; to come back took {bytes}, TLS and all, for {} states of {} bytes",
        after.states_fetched - before.states_fetched,
        after.bytes_fetched - before.bytes_fetched
    );
    assert_eq!(after.states_fetched - before.states_fetched, 100);
    assert!(bytes < 100_000, "{bytes} bytes");
    assert_eq!((after.full_passes, after.entries), (1, ENTRIES));
    assert_eq!(copied(&replica), state_of(&direct).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_link_is_found_by_both_sides_and_all_goes_on() {
    const SILENCE: Duration = Duration::from_millis(1_200);
    /// On a busy machine.
    const LATE: Duration = Duration::from_secs(3);
    let house = House::new("[timeouts]\nheartbeat = \"300ms\"\nsilence = \"1200ms\"\n").await;
    let (direct, storage) = (house.direct().await, house.through().await);
    assert_eq!(storage.welcome().silence, SILENCE);
    let mut watch = watch_all(&storage).await;
    let mut reader = Reader::default();
    let first = direct.put("a".into(), "1".into()).await.unwrap();
    reader.follow(&mut watch, first).await;
    // While the link is quiet and well, nobody leaves.
    tokio::time::sleep(2 * SILENCE).await;
    let mut state = storage.state();
    assert_eq!(*state.borrow(), ConnectionState::Connected);
    house.proxy.apply(Fault::HalfOpen, Scope::All);
    let began = Instant::now();
    let waiting = tokio::spawn({
        let storage = storage.clone();
        async move { storage.put("waited".into(), "1".into()).await }
    });
    direct.put("b".into(), "1".into()).await.unwrap();
    let by_client = async {
        let lost = |state: &ConnectionState| matches!(state, ConnectionState::Disconnected { why, .. } if why.contains("silent"));
        in_time("the end", state.wait_for(lost)).await.unwrap();
        began.elapsed()
    };
    let closed = "storage_sessions_closed_total{reason=\"silent\"}";
    let (by_client, by_server) =
        tokio::join!(by_client, metric_reaches(&house.server, closed, 1.0));
    println!("found after {by_client:?} by the client, after {by_server:?} by the server");
    assert!(by_client < SILENCE + LATE && by_server < SILENCE + LATE);
    house.proxy.heal();
    let waited = in_time("the put", waiting).await.unwrap().unwrap();
    let last = direct.put("c".into(), "1".into()).await.unwrap();
    assert!(last.revision > waited.revision);
    reader.follow(&mut watch, last).await;
    assert_eq!(
        (reader.commits, &reader.words[..]),
        (4, &[Continuity::Continuous][..])
    );
    assert_eq!(reader.state, state_of(&direct).await);
    let info = *storage.session_info().borrow();
    assert_eq!((info.reconnects, info.replaced), (1, 0));
}

/// For each event one get and one commit on the watch's own connection, awaited before the next is taken; up to the last
/// key. Gives how many there were.
async fn handle(storage: RemoteStorage, mut watch: Watch, name: &str) -> u64 {
    let mut handled = 0;
    loop {
        let event = in_time("an event", watch.next()).await;
        let keys: Vec<Key> = match event.unwrap().expect("it ended") {
            WatchEvent::Commit(record) => record
                .changes
                .iter()
                .map(|change| change.key.clone())
                .collect(),
            WatchEvent::State { key, .. } => vec![key],
            _ => continue,
        };
        for key in keys {
            let found = in_time("a get", storage.get_one(key.clone())).await;
            let value = found.unwrap().expect("nobody removes it").value;
            let out = Key::from(format!("out/{name}"));
            in_time("a commit", storage.put(out, value)).await.unwrap();
            handled += 1;
            if key == "in/last" {
                return handled;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_calls_its_own_connection_never_deadlocks() {
    const EVENTS: u64 = 400;
    let house = House::new("durability = \"os\"\n").await;
    // A window that each event is larger than.
    let options = house.options().watch_credit_bytes(64);
    let storage = RemoteStorage::connect(options).await.unwrap();
    let mut handlers = Vec::new();
    for (name, options) in [
        ("every", WatchOptions::every(WatchStart::Now)),
        ("every too", WatchOptions::every(WatchStart::Now)),
        ("latest", WatchOptions::latest(WatchStart::Now)),
    ] {
        let watch = storage.watch(KeyRange::prefix("in/"), options).await;
        let handling = handle(storage.clone(), watch.unwrap(), name);
        handlers.push((name, tokio::spawn(handling)));
    }
    // Others use the same connection, and large answers come over it.
    let load = (0..4).map(|_| {
        let storage = storage.clone();
        tokio::spawn(async move {
            loop {
                let scan = storage.scan(KeyRange::prefix("in/"), ScanOptions::default());
                scan.await.unwrap().collect().await.unwrap();
            }
        })
    });
    let load: Vec<_> = load.collect();
    let writer = house.direct().await;
    for n in 1..=EVENTS {
        let value = format!("{n:08}{:2000}", "");
        let key = Key::from(format!("in/{}", n % 50));
        writer.put(key, value.into()).await.unwrap();
    }
    writer.put("in/last".into(), "1".into()).await.unwrap();
    for (name, handler) in handlers {
        let handled = handler.await.unwrap();
        println!("{name}: {handled} events of {} commits", EVENTS + 1);
        assert!(
            handled == EVENTS + 1 || name == "latest",
            "{name}: {handled}"
        );
    }
    load.iter().for_each(tokio::task::JoinHandle::abort);
}

//! What keyspaces hold is counted exactly, whatever happens; and quotas are held.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use storage_protocol::{
    Batch, CommitOptions, KeyRange, KeyState, Keyspace, Lifetime, Limit, Outcome, Position, Result,
    ScanOptions, Storage, StorageError, StorageExt,
};
use tempfile::TempDir;

use crate::engine::rocks::commit::{Task, Work, submit};
use crate::engine::rocks::layout::{self, Table, UsageRow};
use crate::engine::rocks::open::SyncedFile;
use crate::engine::rocks::{Durability, EngineOptions, RocksEngine, TestClock, housekeeping};
use crate::engine::{Engine, Session, StoredLimits, StoredMax, Usage};

const PATIENCE: Duration = Duration::from_secs(60);

fn keyspace(name: &str) -> Keyspace {
    Keyspace::new(name).unwrap()
}

fn options(folder: &Path) -> EngineOptions {
    EngineOptions {
        disk_reserve_bytes: 0,
        durability: Durability::Os,
        tombstones_max: 0,
        session_grace: Duration::from_secs(3600),
        ..EngineOptions::new(folder.join("data"))
    }
}

fn fresh() -> (TempDir, Arc<RocksEngine>) {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    (folder, engine)
}

/// A copy of the folder as it is, which is the original from now on: after a crash, if the store is still open.
fn moved(folder: &TempDir) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let target = tempfile::tempdir().unwrap();
    let data = target.path().join("data");
    copy(&folder.path().join("data"), &data);
    let (mark, _) = SyncedFile::read(&data).unwrap().unwrap();
    mark.write(&data).unwrap();
    target
}

async fn put(storage: &dyn Storage, key: &str, bytes: usize) -> Result<Position> {
    let batch = Batch::new().put(key.to_owned(), vec![b'v'; bytes]);
    storage.commit(batch, CommitOptions::default()).await
}

async fn remove(storage: &dyn Storage, key: &str) -> Result<Position> {
    let batch = Batch::new().remove(key.to_owned());
    storage.commit(batch, CommitOptions::default()).await
}

/// What a reader finds in a keyspace.
async fn found(engine: &RocksEngine, name: &str) -> Usage {
    let storage = engine.storage(&keyspace(name));
    let scan = storage.scan(KeyRange::all(), ScanOptions::default());
    let items = scan.await.unwrap().collect().await.unwrap();
    let bytes = items.iter().map(|item| {
        let KeyState::Live(entry) = &item.state else {
            panic!("a scan of what is there has a tombstone");
        };
        (item.key.len() + entry.value.len()) as u64
    });
    Usage {
        entries: items.len() as u64,
        bytes: bytes.sum(),
    }
}

/// Waits until the committer has answered all that it was given before.
async fn committed(engine: &RocksEngine) {
    let shared = &engine.shared;
    let session = shared.server_session(&shared.store.keyspace(&keyspace("model")));
    let answer = submit(&shared.queue, &session, 0, Task::Look, 64).unwrap();
    answer.await.unwrap().unwrap();
}

/// What is counted is what a reader finds, at one position.
async fn check_counts(engine: &RocksEngine, after: &str) {
    for name in ["model", "other"] {
        loop {
            let position = engine.position();
            committed(engine).await;
            let counted = engine.usage(&keyspace(name)).unwrap();
            let found = found(engine, name).await;
            // Else the expirer was at work.
            if engine.position() == position {
                assert_eq!(counted, found, "of {name} after {after}");
                break;
            }
        }
    }
}

// ---- Histories ----

#[derive(Clone, Copy, Debug)]
enum Kind {
    Put,
    /// Expires within the history, if the clock is moved.
    PutForAWhile,
    PutOfSession,
    PutStamped,
    Remove,
    Signal,
}

#[derive(Clone, Debug)]
struct Write {
    keyspace: &'static str,
    operations: Vec<(u8, Kind, usize)>,
    checked: Option<u8>,
}

#[derive(Clone, Debug)]
enum Event {
    Commit(Write),
    /// These in one group.
    Together(Vec<Write>),
    ServerRemoves(u8),
    SessionEnds,
    SessionKeysExpire,
    TimePasses,
    ClockGoesBack,
    TombstonesAreForgotten,
    Restart,
    Crash,
}

fn write() -> impl Strategy<Value = Write> {
    let kind = prop_oneof![
        6 => Just(Kind::Put),
        2 => Just(Kind::PutForAWhile),
        3 => Just(Kind::PutOfSession),
        2 => Just(Kind::PutStamped),
        6 => Just(Kind::Remove),
        1 => Just(Kind::Signal),
    ];
    // Empty ones, and ones that RocksDB keeps in files of their own.
    let bytes = prop_oneof![Just(0), 1..100_usize, Just(5_000)];
    (
        prop_oneof![4 => Just("model"), 1 => Just("other")],
        vec((0..12_u8, kind, bytes), 1..5),
        proptest::option::weighted(0.2, 0..12_u8),
    )
        .prop_map(|(keyspace, operations, checked)| Write {
            keyspace,
            operations,
            checked,
        })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => write().prop_map(Event::Commit),
        6 => vec(write(), 2..6).prop_map(Event::Together),
        1 => (0..12_u8).prop_map(Event::ServerRemoves),
        2 => Just(Event::SessionEnds),
        2 => Just(Event::SessionKeysExpire),
        2 => Just(Event::TimePasses),
        1 => Just(Event::ClockGoesBack),
        1 => Just(Event::TombstonesAreForgotten),
        1 => Just(Event::Restart),
        1 => Just(Event::Crash),
    ]
}

/// A store whose clock the test moves, and a session in each of its keyspaces.
struct Run {
    folder: TempDir,
    clock: TestClock,
    offset_ms: i64,
    engine: Arc<RocksEngine>,
    sessions: HashMap<&'static str, Arc<dyn Session>>,
}

impl Run {
    async fn new() -> Self {
        let clock = TestClock::held_for(Duration::ZERO);
        let folder = tempfile::tempdir().unwrap();
        Self::open(folder, clock, 0).await
    }

    async fn open(folder: TempDir, clock: TestClock, offset_ms: i64) -> Self {
        let options = EngineOptions {
            clock: clock.clone(),
            ..options(folder.path())
        };
        let opening = tokio::task::spawn_blocking(|| RocksEngine::open(options));
        let engine = opening.await.unwrap().unwrap();
        let session = |name| engine.open_session("cert:a", &keyspace(name));
        let sessions = ["model", "other"].map(|name| (name, session(name)));
        Self {
            folder,
            clock,
            offset_ms,
            sessions: sessions.into(),
            engine,
        }
    }

    fn batch(write: &Write) -> Batch {
        let mut batch = Batch::new();
        let mut seen = Vec::new();
        for (number, kind, bytes) in &write.operations {
            if seen.contains(number) {
                continue;
            }
            seen.push(*number);
            let key = format!("{}{number}", "k".repeat(usize::from(*number) % 3 + 1));
            let value = vec![b'v'; *bytes];
            let a_while = Lifetime::TimeToLive(Duration::from_secs(600));
            batch = match kind {
                Kind::Put => batch.put(key, value),
                Kind::PutForAWhile => batch.put_with(key, value, a_while),
                Kind::PutOfSession => batch.put_with(key, value, Lifetime::Session),
                Kind::PutStamped => batch.put_stamped(key, value, Lifetime::Forever),
                Kind::Remove => batch.remove(key),
                Kind::Signal => batch.signal(key, value),
            };
        }
        match write.checked {
            Some(number) => batch.check_absent(format!("kk{number}")),
            None => batch,
        }
    }

    async fn happens(&mut self, event: &Event) {
        match event {
            Event::Commit(write) => {
                let storage = self.sessions[write.keyspace].clone().storage();
                let committed = storage.commit(Self::batch(write), CommitOptions::default());
                if let Err(error) = committed.await {
                    assert_eq!(error.outcome(), Outcome::Refused, "{error}");
                }
            }
            Event::Together(writes) => {
                let shared = &self.engine.shared;
                let mut answers = Vec::new();
                let works = writes.iter().map(|write| {
                    let keyspace = shared.store.keyspace(&keyspace(write.keyspace));
                    let (reply, answer) = tokio::sync::oneshot::channel();
                    answers.push(answer);
                    Work {
                        session: shared.server_session(&keyspace),
                        handle: 0,
                        task: Task::Commit {
                            number: 0,
                            fingerprint: None,
                            batch: Self::batch(write),
                            options: CommitOptions::default(),
                        },
                        bytes: 100,
                        reply,
                    }
                });
                shared.queue.push_together(works.collect());
                for answer in answers {
                    if let Err(error) = answer.await.unwrap() {
                        assert_eq!(error.outcome(), Outcome::Refused, "{error}");
                    }
                }
            }
            Event::ServerRemoves(number) => {
                let storage = self.engine.storage(&keyspace("model"));
                remove(&*storage, &format!("k{number}")).await.unwrap();
            }
            Event::SessionEnds => {
                let next = self.engine.open_session("cert:a", &keyspace("model"));
                let session = self.sessions.insert("model", next).unwrap();
                session.end().await.unwrap();
            }
            Event::SessionKeysExpire => {
                let next = self.engine.open_session("cert:a", &keyspace("model"));
                let session = self.sessions.insert("model", next).unwrap();
                let batch = Batch::new().put_with("of-the-lost", "v", Lifetime::Session);
                let options = CommitOptions::default();
                let number = session.executed() + 1;
                let storage = session.clone().storage();
                let put = storage.commit_numbered(number, batch, options).await;
                put.unwrap();
                session.lose();
                committed(&self.engine).await;
                let shared = self.engine.shared.clone();
                let expiring = move || {
                    let now = shared.store.now();
                    let lost = shared.sessions.with_keys(now, 10);
                    housekeeping::expire_keys(&shared, &lost)
                };
                tokio::task::spawn_blocking(expiring)
                    .await
                    .unwrap()
                    .unwrap();
            }
            Event::TimePasses => {
                self.offset_ms += 700_000;
                self.clock.set_offset(self.offset_ms);
                self.engine
                    .shared
                    .expiry_timer
                    .set(self.engine.shared.store.now());
                self.nothing_is_due().await;
            }
            Event::ClockGoesBack => {
                self.offset_ms -= 300_000;
                self.clock.set_offset(self.offset_ms);
                committed(&self.engine).await;
                committed(&self.engine).await;
            }
            Event::TombstonesAreForgotten => {
                let engine = self.engine.clone();
                let forgetting = move || engine.forget_tombstones(&keyspace("model"));
                tokio::task::spawn_blocking(forgetting)
                    .await
                    .unwrap()
                    .unwrap();
            }
            Event::Restart => {
                self.sessions.clear();
                let engine = self.engine.clone();
                let closing = tokio::task::spawn_blocking(move || engine.close());
                closing.await.unwrap();
                self.reopen().await;
            }
            Event::Crash => {
                // What was answered is in the log of RocksDB; its tables are whatever they are.
                self.reopen().await;
            }
        }
    }

    async fn reopen(&mut self) {
        // RocksDB leaves its files as they are from here on, so that they can be copied while it is open.
        let store = &self.engine.shared.store;
        store.db.cancel_all_background_work(true);
        let folder = moved(&self.folder);
        *self = Self::open(folder, self.clock.clone(), self.offset_ms).await;
    }

    async fn nothing_is_due(&self) {
        let began = std::time::Instant::now();
        while self.due() {
            assert!(began.elapsed() < PATIENCE, "what is due stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn due(&self) -> bool {
        let store = &self.engine.shared.store;
        let (start, end) = layout::LifetimeRow::due_range(store.now());
        store.iterate(Table::Lifetimes, &start, Some(&end)).valid()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn what_is_counted_is_what_is_there_after_any_history(events in vec(event(), 1..40)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut run = Run::new().await;
            for (place, event) in events.iter().enumerate() {
                run.happens(event).await;
                check_counts(&run.engine, &format!("event {place} of {events:?}")).await;
            }
            // Known from the rows alone, too.
            run.happens(&Event::Crash).await;
            check_counts(&run.engine, "all").await;
            run.happens(&Event::Restart).await;
            check_counts(&run.engine, "all").await;
        });
    }
}

#[tokio::test]
async fn a_group_writes_one_row_for_each_keyspace_that_it_changes() {
    let (folder, engine) = fresh();
    let shared = &engine.shared;
    let store = &shared.store;
    for name in ["model", "other"] {
        put(&*engine.storage(&keyspace(name)), "k", 1)
            .await
            .unwrap();
    }
    let before = store.revision();
    let mut answers = Vec::new();
    let works = [("model", 10), ("other", 20), ("model", 30), ("model", 5)].map(|(name, bytes)| {
        let (reply, answer) = tokio::sync::oneshot::channel();
        answers.push(answer);
        let batch = Batch::new().put("k", vec![b'v'; bytes]);
        let options = CommitOptions::default();
        let task = Task::Commit {
            number: 0,
            fingerprint: None,
            batch,
            options,
        };
        Work {
            session: shared.server_session(&store.keyspace(&keyspace(name))),
            handle: 0,
            task,
            bytes: 100,
            reply,
        }
    });
    shared.queue.push_together(works.into());
    let mut last = before;
    for answer in answers {
        let position = answer.await.unwrap().unwrap();
        assert!(position.revision > last, "in the order of the queue");
        last = position.revision;
    }
    assert_eq!(
        store.revision(),
        last,
        "the group's last row is a commit's record"
    );
    // Of each commit: the entry, its index row, the record.
    assert_eq!(last.0 - before.0, 4 * 3 + 2);
    let id = store.keyspace(&keyspace("model")).id().unwrap();
    let row = store.row(Table::Meta, &layout::usage_key(id)).unwrap();
    let row = UsageRow::decode(&row.unwrap()).unwrap();
    let usage = Usage {
        entries: 1,
        bytes: 6,
    };
    assert_eq!((row.usage, row.at), (usage, last));
    drop(engine);
    let engine = RocksEngine::open(options(folder.path())).unwrap();
    assert_eq!(engine.usage(&keyspace("model")).unwrap(), usage);
}

#[tokio::test]
async fn what_expires_is_not_counted_any_more() {
    let (_folder, engine) = fresh();
    let session = engine.open_session("cert:a", &keyspace("model"));
    let a_moment = Lifetime::TimeToLive(Duration::from_millis(1));
    let batch = Batch::new()
        .put("stays", "v")
        .put_with("expires", "value", a_moment)
        .put_with("of the session", "value", Lifetime::Session);
    let storage = session.clone().storage();
    storage
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
    let counted = || engine.usage(&keyspace("model")).unwrap();
    let began = std::time::Instant::now();
    while storage.get_one("expires".into()).await.unwrap().is_some() {
        assert!(began.elapsed() < PATIENCE, "it stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    committed(&engine).await;
    let usage = |entries, bytes| Usage { entries, bytes };
    assert_eq!(counted(), usage(2, 25));
    session.end().await.unwrap();
    committed(&engine).await;
    assert_eq!(counted(), usage(1, 6));
}

// ---- Stores of versions that did not count ----

/// The row of a keyspace, as it is.
fn usage_row(engine: &RocksEngine) -> (Vec<u8>, Vec<u8>) {
    let store = &engine.shared.store;
    let id = store.keyspace(&keyspace("model")).id().unwrap();
    let key = layout::usage_key(id);
    let row = store.row(Table::Meta, &key).unwrap().unwrap().to_vec();
    (key, row)
}

/// Writes into the store behind the back of its committer, which must not write afterwards.
fn write_row(engine: &RocksEngine, key: &[u8], row: Option<&[u8]>) {
    let store = &engine.shared.store;
    let meta = store.table(Table::Meta);
    match row {
        Some(row) => store.db.put_cf(meta, key, row).unwrap(),
        None => store.db.delete_cf(meta, key).unwrap(),
    }
}

fn reopened(folder: &TempDir, engine: Arc<RocksEngine>) -> Arc<RocksEngine> {
    engine.close();
    drop(engine);
    RocksEngine::open(options(folder.path())).unwrap()
}

#[tokio::test]
async fn a_store_without_counts_is_counted_once() {
    let (folder, engine) = fresh();
    let storage = engine.storage(&keyspace("model"));
    for (key, bytes) in [("a", 10), ("b", 5_000), ("c", 0)] {
        put(&*storage, key, bytes).await.unwrap();
    }
    remove(&*storage, "a").await.unwrap();
    drop(storage);
    let usage = Usage {
        entries: 2,
        bytes: 5_002,
    };
    let (key, _) = usage_row(&engine);
    write_row(&engine, &key, None);
    let engine = reopened(&folder, engine);
    assert_eq!(engine.usage(&keyspace("model")).unwrap(), usage);
    // From then on its row is believed.
    let (key, row) = usage_row(&engine);
    let mut row = UsageRow::decode(&row).unwrap();
    assert_eq!(row.usage, usage);
    row.usage.entries = 77;
    write_row(&engine, &key, Some(&row.encode()));
    let engine = reopened(&folder, engine);
    assert_eq!(engine.usage(&keyspace("model")).unwrap().entries, 77);
}

#[tokio::test]
async fn a_count_that_an_older_version_left_behind_is_not_believed() {
    for forget in [false, true] {
        let (folder, engine) = fresh();
        let storage = engine.storage(&keyspace("model"));
        for key in ["a", "b", "c"] {
            put(&*storage, key, 10).await.unwrap();
        }
        // An older version writes, and leaves the row as it is: in the end it may have left nothing but a tombstone, and
        // then not even that.
        let (key, row) = usage_row(&engine);
        put(&*storage, "b", 100).await.unwrap();
        remove(&*storage, "b").await.unwrap();
        drop(storage);
        if forget {
            let engine = engine.clone();
            let forgetting = move || engine.forget_tombstones(&keyspace("model"));
            tokio::task::spawn_blocking(forgetting)
                .await
                .unwrap()
                .unwrap();
        }
        write_row(&engine, &key, Some(&row));
        let engine = reopened(&folder, engine);
        let usage = Usage {
            entries: 2,
            bytes: 22,
        };
        assert_eq!(engine.usage(&keyspace("model")).unwrap(), usage);
    }
}

// ---- Quotas ----

/// The same limits for all keyspaces, and how often they were asked for.
#[derive(Debug, Default)]
struct Limits {
    max: StoredMax,
    asked: AtomicUsize,
}

impl StoredLimits for Limits {
    fn stored_max(&self, _: &Keyspace) -> StoredMax {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.max
    }
}

fn limit(engine: &RocksEngine, entries: Option<u64>, bytes: Option<u64>) {
    let max = StoredMax { entries, bytes };
    let asked = AtomicUsize::new(0);
    engine.set_stored_limits(Arc::new(Limits { max, asked }));
}

fn exceeded<T>(limit: Limit, max: u64) -> Result<T> {
    Err(StorageError::QuotaExceeded { limit, max })
}

#[tokio::test]
async fn a_commit_that_would_raise_a_keyspace_above_a_quota_is_refused_and_names_it() {
    let (_folder, engine) = fresh();
    let session = engine.open_session("cert:a", &keyspace("model"));
    let storage = session.storage();
    put(&*storage, "a", 9).await.unwrap();
    limit(&engine, Some(2), Some(20));
    assert_eq!(
        put(&*storage, "b", 10).await,
        exceeded(Limit::KeyspaceBytes, 20)
    );
    put(&*storage, "b", 9).await.expect("up to the quota");
    assert_eq!(
        put(&*storage, "c", 0).await,
        exceeded(Limit::KeyspaceEntries, 2)
    );
    assert_eq!(
        put(&*storage, "a", 10).await,
        exceeded(Limit::KeyspaceBytes, 20)
    );
    assert!(storage.get_one("c".into()).await.unwrap().is_none());
    // What it replaces is given back in the same commit.
    let batch = Batch::new().remove("a").put("c", vec![b'v'; 9]);
    let options = CommitOptions::default;
    storage.commit(batch, options()).await.unwrap();
    // A failed check is told first: it is what the caller can do something about.
    let batch = Batch::new().check_absent("b").put("d", "v");
    let error = storage.commit(batch, options()).await.unwrap_err();
    assert!(matches!(error, StorageError::CheckFailed { .. }), "{error}");
    // Stamped keys count with their stamps, and signals do not.
    remove(&*storage, "c").await.unwrap();
    let batch = Batch::new().put_stamped("s", "vv", Lifetime::Forever);
    assert_eq!(
        storage.commit(batch, options()).await,
        exceeded(Limit::KeyspaceBytes, 20)
    );
    let batch = Batch::new()
        .put_stamped("s", "v", Lifetime::Forever)
        .signal("t", "not stored");
    storage.commit(batch, options()).await.unwrap();
    let usage = Usage {
        entries: 2,
        bytes: 20,
    };
    assert_eq!(engine.usage(&keyspace("model")).unwrap(), usage);
    // Other keyspaces have their own; and the limits can be changed at any time.
    let other = engine.open_session("cert:a", &keyspace("other")).storage();
    put(&*other, "a", 9).await.unwrap();
    limit(&engine, None, None);
    put(&*storage, "c", 1_000).await.unwrap();
}

#[tokio::test]
async fn a_keyspace_above_its_quota_takes_what_does_not_raise_it() {
    let (_folder, engine) = fresh();
    let storage = engine.open_session("cert:a", &keyspace("model")).storage();
    for key in ["a", "b", "c", "d"] {
        put(&*storage, key, 100).await.unwrap();
    }
    limit(&engine, Some(1), Some(50));
    put(&*storage, "a", 100).await.expect("the same size");
    put(&*storage, "a", 99).await.expect("smaller");
    assert_eq!(
        put(&*storage, "a", 100).await,
        exceeded(Limit::KeyspaceBytes, 50)
    );
    // It has fewer bytes, and more entries.
    let batch = Batch::new().put("b", "v").put("e", "v");
    let added = storage.commit(batch, CommitOptions::default()).await;
    assert_eq!(added, exceeded(Limit::KeyspaceEntries, 1));
    let batch = Batch::new().remove("b").put("e", "v");
    let options = CommitOptions::default();
    storage
        .commit(batch, options)
        .await
        .expect("one for another");
    for key in ["a", "c", "d"] {
        remove(&*storage, key).await.unwrap();
    }
    put(&*storage, "e", 49).await.expect("it is below again");
}

#[tokio::test]
async fn the_servers_own_commits_and_keyspaces_have_no_quotas() {
    let (_folder, engine) = fresh();
    limit(&engine, Some(0), Some(0));
    put(&*engine.storage(&keyspace("model")), "a", 9)
        .await
        .unwrap();
    for name in ["system", "system.secrets"] {
        let storage = engine.open_session("cert:a", &keyspace(name)).storage();
        put(&*storage, "a", 9).await.unwrap();
    }
    for name in ["model", "systems"] {
        let storage = engine.open_session("cert:a", &keyspace(name)).storage();
        assert_eq!(
            put(&*storage, "b", 9).await,
            exceeded(Limit::KeyspaceEntries, 0)
        );
    }
}

#[tokio::test]
async fn of_two_commits_in_one_group_that_only_together_exceed_a_quota_the_second_is_refused() {
    let (_folder, engine) = fresh();
    let shared = &engine.shared;
    let store = &shared.store;
    limit(&engine, Some(2), Some(30));
    let (state, handle) = shared.sessions.open(store, "cert:a", &keyspace("model"));
    let mut answers = Vec::new();
    let mut work = |batch| {
        let (reply, answer) = tokio::sync::oneshot::channel();
        answers.push(answer);
        Work {
            session: state.clone(),
            handle: handle.number,
            task: Task::Commit {
                number: 0,
                fingerprint: None,
                batch,
                options: CommitOptions::default(),
            },
            bytes: 100,
            reply,
        }
    };
    let value = |bytes| vec![b'v'; bytes];
    let works = vec![
        work(Batch::new().put("a", value(15))),
        work(Batch::new().put("b", value(15))),
        work(Batch::new().put("b", value(13))),
        work(Batch::new().put("c", "")),
        work(Batch::new().remove("a")),
        work(Batch::new().put("c", value(15))),
    ];
    let before = store.revision();
    shared.queue.push_together(works);
    let mut told = Vec::new();
    for answer in answers {
        told.push(answer.await.unwrap().map(|_| ()));
    }
    assert_eq!(
        told,
        [
            Ok(()),
            exceeded(Limit::KeyspaceBytes, 30),
            Ok(()),
            exceeded(Limit::KeyspaceEntries, 2),
            Ok(()),
            Ok(()),
        ]
    );
    let usage = Usage {
        entries: 2,
        bytes: 30,
    };
    assert_eq!(engine.usage(&keyspace("model")).unwrap(), usage);
    assert_eq!(found(&engine, "model").await, usage);
    assert!(store.revision() > before);
}

#[tokio::test]
async fn a_commit_that_was_executed_is_answered_although_a_quota_is_used_up_since() {
    let (_folder, engine) = fresh();
    let session = engine.open_session("cert:a", &keyspace("model"));
    let storage = session.clone().storage();
    let options = CommitOptions::default;
    let numbered = |number, key: &'static str| {
        storage.commit_numbered(number, Batch::new().put(key, "v"), options())
    };
    let first = numbered(1, "a").await.unwrap();
    limit(&engine, Some(1), None);
    assert_eq!(numbered(2, "b").await, exceeded(Limit::KeyspaceEntries, 1));
    assert_eq!(numbered(1, "a").await, Ok(first));
    // The one that was refused was not executed: as its number is above all, it is judged anew.
    limit(&engine, None, None);
    numbered(2, "b").await.unwrap();
}

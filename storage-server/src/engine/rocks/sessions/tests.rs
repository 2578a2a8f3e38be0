//! Sessions on a store of their own, without a gateway.

mod expiry;
mod kept;
mod uploads;

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use storage_protocol::{
    Batch, CommitOptions, Keyspace, Lifetime, Outcome, Position, Result, SessionId, StorageError,
    StorageExt, UnixMillis,
};
use tempfile::TempDir;

use crate::engine::rocks::commit::{Group, Task, Work, submit};
use crate::engine::rocks::layout;
use crate::engine::rocks::open::SyncedFile;
use crate::engine::rocks::{EngineOptions, RocksEngine, housekeeping, log};
use crate::engine::{Engine, Resumed, Session, SessionStorage};

const PATIENCE: Duration = Duration::from_secs(20);

fn options(folder: &Path) -> EngineOptions {
    EngineOptions {
        disk_reserve_bytes: 0,
        session_grace: Duration::from_secs(3600),
        ..EngineOptions::new(folder.join("data"))
    }
}

fn fresh(change: impl FnOnce(&mut EngineOptions)) -> (TempDir, Arc<RocksEngine>) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    change(&mut options);
    let engine = RocksEngine::open(options).unwrap();
    (folder, engine)
}

/// Closes the store and gives its folder, copied: handles that are left keep the old one in use.
async fn closed(folder: &TempDir, engine: Arc<RocksEngine>) -> TempDir {
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .unwrap();
    let target = tempfile::tempdir().unwrap();
    let data = target.path().join("data");
    copy(&folder.path().join("data"), &data);
    // Nobody has another one: it is to be the same store.
    let (mark, _) = SyncedFile::read(&data).unwrap().unwrap();
    mark.write(&data).unwrap();
    target
}

async fn reopened(options: EngineOptions) -> Arc<RocksEngine> {
    let opening = tokio::task::spawn_blocking(|| RocksEngine::open(options));
    opening.await.unwrap().unwrap()
}

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

fn keyspace() -> Keyspace {
    Keyspace::new("model").unwrap()
}

/// A session, and its storage by the same name.
#[derive(Clone)]
struct Reopened {
    session: Arc<dyn Session>,
    storage: Arc<dyn SessionStorage>,
}

impl Reopened {
    fn of(session: Arc<dyn Session>) -> Self {
        let storage = session.clone().storage();
        Self { session, storage }
    }
}

impl Deref for Reopened {
    type Target = dyn Session;

    fn deref(&self) -> &Self::Target {
        &*self.session
    }
}

fn open(engine: &RocksEngine) -> Reopened {
    Reopened::of(engine.open_session("cert:a", &keyspace()))
}

async fn put(session: &Reopened, number: u64, key: &'static str) -> Result<Position> {
    let batch = Batch::new().put_with(key, "value", Lifetime::Session);
    let options = CommitOptions::default();
    session
        .storage
        .commit_numbered(number, batch, options)
        .await
}

async fn attempt(engine: &RocksEngine, id: SessionId, generation: u64) -> Resumed {
    let here = keyspace();
    let resumed = engine.resume_session("cert:a", &here, id, generation);
    resumed.await.unwrap()
}

async fn resume(engine: &RocksEngine, id: SessionId, generation: u64) -> Reopened {
    match attempt(engine, id, generation).await {
        Resumed::Session(session) => Reopened::of(session),
        other => panic!("not resumed: {other:?}"),
    }
}

async fn is_gone(engine: &RocksEngine, id: SessionId) -> bool {
    matches!(attempt(engine, id, 1000).await, Resumed::Gone)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn closed_with<T: std::fmt::Debug>(result: Result<T>, outcome: Outcome, why: &str) {
    match result {
        Err(StorageError::Closed {
            reason,
            outcome: found,
        }) => assert!(
            found == outcome && reason.contains(why),
            "{reason}: {found:?}"
        ),
        other => panic!("not closed: {other:?}"),
    }
}

#[tokio::test]
async fn both_copies_of_a_commit_in_one_group_have_one_effect() {
    let (_folder, engine) = fresh(|_| {});
    let shared = &engine.shared;
    let (state, handle) = shared.sessions.open(&shared.store, "cert:a", &keyspace());
    // A group of the test's own: it is never written.
    let mut group = Group::new(shared);
    let mut take = |number, fingerprint, value: &'static str| {
        let (reply, _answer) = tokio::sync::oneshot::channel();
        group.take(Work {
            session: state.clone(),
            handle: handle.number,
            task: Task::Commit {
                number,
                fingerprint,
                batch: Batch::new().put("a", value),
                options: CommitOptions::default(),
            },
            bytes: 100,
            reply,
        });
        let numbers = group.sequence_numbers;
        (numbers, group.last_answer())
    };
    let (before, first) = take(1, Some(7), "b");
    let (after, second) = take(1, Some(7), "b");
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(before, after, "the copy writes nothing");
    let (after, other) = take(1, Some(8), "c");
    let reused = Err(StorageError::NumberReused { number: 1 });
    assert_eq!(other, reused, "another commit under the number");
    assert_eq!(before, after, "nor does it write");
    let (later, third) = take(2, Some(9), "b");
    assert!(later > after);
    assert!(third.unwrap().revision.0 > before);
    // What the session's handle numbers itself is no copy of anything.
    assert!(take(1, None, "b").0 > later);
}

#[tokio::test]
async fn another_commit_under_an_executed_number_is_refused_also_after_a_restart() {
    let (folder, engine) = fresh(|_| {});
    let mut session = open(&engine);
    let id = session.id();
    let first = put(&session, 1, "a").await.unwrap();
    let last = put(&session, 2, "b").await.unwrap();
    let mut engine = engine;
    let mut folder = folder;
    for generation in [1, 2] {
        let reused = put(&session, 1, "x").await.unwrap_err();
        assert_eq!(reused, StorageError::NumberReused { number: 1 });
        assert_eq!(reused.outcome(), Outcome::NotExecuted);
        let of_other = session
            .storage
            .repeat_numbered(1, Some(1))
            .await
            .unwrap_err();
        assert_eq!(of_other, StorageError::NumberReused { number: 1 });
        closed_with(
            session.storage.repeat_numbered(1, None).await,
            Outcome::Unknown,
            "did not come whole",
        );
        assert_eq!(put(&session, 1, "a").await.unwrap(), first);
        assert_eq!(put(&session, 2, "b").await.unwrap(), last);
        assert!(session.storage.get_one("x".into()).await.unwrap().is_none());
        if generation == 1 {
            session.lose();
            folder = closed(&folder, engine).await;
            engine = reopened(options(folder.path())).await;
            session = resume(&engine, id, generation).await;
        }
    }
}

#[tokio::test]
async fn a_number_of_a_version_without_fingerprints_is_answered_with_what_it_did() {
    let (_folder, engine) = fresh(|_| {});
    let session = open(&engine);
    let first = put(&session, 1, "a").await.unwrap();
    let store = &engine.shared.store;
    let key = layout::session_key(session.id(), 1);
    let row = store.row(layout::Table::Commits, &key).unwrap().unwrap();
    let older = layout::CommitRow {
        fingerprint: None,
        ..layout::CommitRow::decode(&row).unwrap()
    };
    let table = store.table(layout::Table::Commits);
    store.db.put_cf(table, &key, older.encode()).unwrap();
    assert_eq!(put(&session, 1, "whatever").await.unwrap(), first);
}

#[tokio::test]
async fn a_higher_incarnation_fences_and_what_was_queued_counts() {
    let (_folder, engine) = fresh(|_| {});
    let old = open(&engine);
    let id = old.id();
    // Queued by the first poll, and not waited for.
    let queued: Vec<_> = (1..=50)
        .map(|number| {
            let old = old.clone();
            let commit = async move { put(&old, number, "a").await };
            let mut commit = futures_util::future::maybe_done(Box::pin(commit));
            let _ = futures_util::FutureExt::now_or_never(&mut commit);
            commit
        })
        .collect();
    let new = resume(&engine, id, 1).await;
    assert_eq!((new.id(), new.executed()), (id, 50));
    assert!(old.fenced().is_cancelled() && !new.fenced().is_cancelled());
    // Not "not executed": the new one may name it as unanswered, and send it again.
    closed_with(put(&old, 51, "a").await, Outcome::Unknown, "fenced");
    assert_eq!(new.executed(), 50, "final");
    for (number, mut commit) in (1..).zip(queued) {
        (&mut commit).await;
        let first = std::pin::Pin::new(&mut commit).take_output();
        let first = first.unwrap().unwrap();
        assert_eq!(put(&new, number, "a").await.unwrap(), first);
    }
    // An end or a loss of the old handle is none of the session.
    old.end().await.unwrap();
    old.lose();
    put(&new, 51, "a").await.unwrap();
    for generation in [0, 1] {
        let again = attempt(&engine, id, generation).await;
        assert!(matches!(again, Resumed::Fenced), "{again:?}");
    }
    put(&new, 52, "a").await.unwrap();
    assert!(new.storage.get_one("a".into()).await.unwrap().is_some());
}

#[tokio::test]
async fn an_attempt_that_is_given_up_leaves_the_session_lost() {
    let (_folder, engine) = fresh(|_| {});
    let old = open(&engine);
    put(&old, 1, "a").await.unwrap();
    let id = old.id();
    let space = keyspace();
    // Polled once, which queues it. If it is through already, what it gives is dropped at once.
    let given_up = engine.resume_session("cert:a", &space, id, 1);
    drop(futures_util::FutureExt::now_or_never(given_up));
    until("the session is lost", async || {
        engine.shared.sessions.kept() == 1
    })
    .await;
    let _again = resume(&engine, id, 2).await;
    assert_eq!(engine.shared.sessions.kept(), 0);
}

#[tokio::test]
async fn sessions_survive_the_store_and_their_numbers_too() {
    let (folder, engine) = fresh(|_| {});
    let session = open(&engine);
    let id = session.id();
    let idle = open(&engine).id();
    let first = put(&session, 1, "a").await.unwrap();
    let failing = Batch::new().check_absent("a");
    let refused = session
        .storage
        .commit_numbered(2, failing, CommitOptions::default());
    assert_eq!(refused.await.unwrap_err().outcome(), Outcome::Refused);
    for number in 3..=1100 {
        put(&session, number, "b").await.unwrap();
    }
    let unnumbered = Reopened::of(engine.open_session("cert:a", &keyspace()));
    unnumbered
        .storage
        .commit(
            Batch::new().put_with("c", "own", Lifetime::Session),
            CommitOptions::default(),
        )
        .await
        .unwrap();
    let of_unnumbered = unnumbered.id();
    session.lose();
    drop((session, unnumbered));
    let folder = closed(&folder, engine).await;

    let engine = reopened(options(folder.path())).await;
    assert_eq!(engine.shared.sessions.kept(), 1, "it counts as lost now");
    let session = resume(&engine, id, 1).await;
    assert_eq!(session.executed(), 1100);
    closed_with(put(&session, 1, "x").await, Outcome::Unknown, "too old");
    closed_with(put(&session, 76, "x").await, Outcome::Unknown, "too old");
    let repeated = put(&session, 77, "b").await.unwrap();
    assert!(repeated.revision > first.revision);
    put(&session, 1101, "x").await.unwrap();
    // Session keys of the one stay; those of one that numbers itself are gone, as before.
    assert!(session.storage.get_one("a".into()).await.unwrap().is_some());
    assert!(session.storage.get_one("c".into()).await.unwrap().is_none());
    let left = super::record_keys(&engine.shared.store, of_unnumbered);
    assert_eq!(left.unwrap().len(), 0, "and its records");
    assert_eq!(resume(&engine, idle, 1).await.executed(), 0);
}

#[tokio::test]
async fn a_refused_number_below_the_highest_is_never_executed() {
    let (_folder, engine) = fresh(|_| {});
    let session = open(&engine);
    put(&session, 1, "a").await.unwrap();
    let failing = || Batch::new().check_absent("a").put("z", "z");
    let options = CommitOptions::default;
    let refused = session
        .storage
        .commit_numbered(2, failing(), options())
        .await;
    assert_eq!(refused.unwrap_err().outcome(), Outcome::Refused);
    let session = resume(&engine, session.id(), 1).await;
    // Above the highest executed number it is as the first time.
    let refused = session
        .storage
        .commit_numbered(2, failing(), options())
        .await;
    assert_eq!(refused.unwrap_err().outcome(), Outcome::Refused);
    put(&session, 3, "b").await.unwrap();
    closed_with(
        put(&session, 2, "z").await,
        Outcome::NotExecuted,
        "refused before",
    );
    assert!(session.storage.get_one("z".into()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_repeated_commit_is_answered_whatever_holds_now() {
    let (folder, engine) = fresh(|_| {});
    let session = open(&engine);
    let first = put(&session, 1, "a").await.unwrap();
    let id = session.id();
    drop(session);
    engine.shared.store.poison("a test");
    let session = resume(&engine, id, 1).await;
    assert_eq!(put(&session, 1, "a").await.unwrap(), first);
    let error = put(&session, 2, "a").await.unwrap_err();
    assert!(matches!(error, StorageError::ReadOnly { .. }), "{error}");
    drop(session);
    let folder = closed(&folder, engine).await;
    let full = EngineOptions {
        disk_reserve_bytes: u64::MAX,
        ..options(folder.path())
    };
    let engine = reopened(full).await;
    let session = resume(&engine, id, 2).await;
    assert_eq!(put(&session, 1, "a").await.unwrap(), first);
    // What it holds is compared, and not validated.
    let invalid = Batch::new().put("", "");
    let repeated = session
        .storage
        .commit_numbered(1, invalid, CommitOptions::default());
    let reused = Err(StorageError::NumberReused { number: 1 });
    assert_eq!(repeated.await, reused);
    let error = put(&session, 2, "a").await.unwrap_err();
    assert!(matches!(error, StorageError::StorageFull { .. }), "{error}");
}

#[tokio::test]
async fn neither_a_full_nor_a_closed_queue_makes_an_executed_commit_look_refused() {
    let (_folder, engine) = fresh(|options| options.commit_queue_bytes = 1);
    let session = open(&engine);
    let first = put(&session, 1, "a").await.unwrap();
    let session = resume(&engine, session.id(), 1).await;
    let big = || Batch::new().put("big", vec![0; 1024]);
    let polled = |number, batch| {
        let session = session.clone();
        let commit = async move {
            let options = CommitOptions::default();
            session
                .storage
                .commit_numbered(number, batch, options)
                .await
        };
        let mut commit = Box::pin(commit);
        let now = futures_util::FutureExt::now_or_never(&mut commit);
        (commit, now)
    };
    let mut number = 2;
    for _ in 0..50 {
        let mut running = Vec::new();
        // Until the queue is full; what comes again right behind that is taken all the same.
        loop {
            let (commit, now) = polled(number, big());
            number += 1;
            match now {
                Some(Err(StorageError::Overloaded { .. })) => break,
                Some(other) => panic!("answered at once: {other:?}"),
                None => running.push(commit),
            }
        }
        let first_batch = Batch::new().put_with("a", "value", Lifetime::Session);
        let (again, now) = polled(1, first_batch);
        let answer = match now {
            Some(answer) => answer,
            None => again.await,
        };
        assert_eq!(answer.unwrap(), first);
        for commit in running {
            commit.await.unwrap();
        }
    }
    engine.shared.queue.close();
    closed_with(put(&session, 1, "a").await, Outcome::Unknown, "closed");
    let later = put(&session, number, "a").await;
    closed_with(later, Outcome::NotExecuted, "closing");
}

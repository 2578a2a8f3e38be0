//! Sessions on a store of their own, without a gateway.

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
use crate::engine::rocks::open::Mark;
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
    let (mark, _) = Mark::read(&data).unwrap().unwrap();
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
struct Opened {
    session: Arc<dyn Session>,
    storage: Arc<dyn SessionStorage>,
}

impl Opened {
    fn of(session: Arc<dyn Session>) -> Self {
        let storage = session.clone().storage();
        Self { session, storage }
    }
}

impl Deref for Opened {
    type Target = dyn Session;

    fn deref(&self) -> &Self::Target {
        &*self.session
    }
}

fn open(engine: &RocksEngine) -> Opened {
    Opened::of(engine.open_session("cert:a", &keyspace()))
}

async fn put(session: &Opened, number: u64, key: &'static str) -> Result<Position> {
    let batch = Batch::new().put_with(key, "value", Lifetime::Session);
    let options = CommitOptions::default();
    session
        .storage
        .commit_numbered(number, batch, options)
        .await
}

async fn attempt(engine: &RocksEngine, id: SessionId, incarnation: u64) -> Resumed {
    let here = keyspace();
    let resumed = engine.resume_session("cert:a", &here, id, incarnation);
    resumed.await.unwrap()
}

async fn resume(engine: &RocksEngine, id: SessionId, incarnation: u64) -> Opened {
    match attempt(engine, id, incarnation).await {
        Resumed::Session(session) => Opened::of(session),
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
        let numbers = group.numbers;
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
    for incarnation in [1, 2] {
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
        if incarnation == 1 {
            session.lose();
            folder = closed(&folder, engine).await;
            engine = reopened(options(folder.path())).await;
            session = resume(&engine, id, incarnation).await;
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
    let row = store.row(layout::Table::Sessions, &key).unwrap().unwrap();
    let older = layout::CommitRow {
        fingerprint: None,
        ..layout::CommitRow::decode(&row).unwrap()
    };
    let table = store.table(layout::Table::Sessions);
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
    for incarnation in [0, 1] {
        let again = attempt(&engine, id, incarnation).await;
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
    let unnumbered = Opened::of(engine.open_session("cert:a", &keyspace()));
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
    // What it holds is compared, and not judged.
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

#[tokio::test]
async fn the_longest_lost_are_forgotten_first_when_there_are_too_many() {
    let (folder, engine) = fresh(|options| {
        options.sessions_kept_max = 2;
        options.session_grace = Duration::from_millis(50);
    });
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let session = open(&engine);
        put(&session, 1, "a").await.unwrap();
        sessions.push(session.id());
        session.lose();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Opened before the last of the forgotten, and never committed: it is not told apart from those without a row.
    until("two are kept", async || engine.shared.sessions.kept() == 2).await;
    let records = |id| super::record_keys(&engine.shared.store, id).unwrap().len();
    until("their records go", async || {
        let left: Vec<_> = sessions.iter().map(|id| records(*id)).collect();
        left == [0, 0, 1, 1]
    })
    .await;
    assert!(is_gone(&engine, sessions[0]).await && is_gone(&engine, sessions[1]).await);
    let horizon = engine.shared.sessions.horizon();
    assert_eq!(horizon, layout::opened_at(sessions[1]));
    let folder = closed(&folder, engine).await;
    let engine = reopened(options(folder.path())).await;
    assert_eq!(engine.shared.sessions.horizon(), horizon);
    assert!(is_gone(&engine, sessions[1]).await, "after a start too");
    resume(&engine, sessions[2], 1).await;
}

#[tokio::test]
async fn the_surplus_is_of_who_has_the_most_and_of_nobody_within_the_grace() {
    let (_folder, engine) = fresh(|_| {});
    let sessions = &engine.shared.sessions;
    let mut lost = Vec::new();
    for principal in ["cert:few", "cert:a", "cert:a", "cert:b", "cert:a", "cert:b"] {
        let session = Opened::of(engine.open_session(principal, &keyspace()));
        put(&session, 1, "a").await.unwrap();
        session.lose();
        let id = session.id();
        until("it is lost", async || sessions.kept() == lost.len() + 1).await;
        lost.push((engine.shared.store.now(), id));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let overdue = |kept_max, grace, max| {
        let overdue = sessions.overdue(UnixMillis(0), kept_max, grace, max);
        let ids = overdue.into_iter().map(|(_, state)| state.id);
        ids.map(|id| lost.iter().position(|(_, lost)| *lost == id).unwrap())
            .collect::<Vec<_>>()
    };
    let (none, all) = (UnixMillis(0), UnixMillis(u64::MAX));
    assert_eq!(overdue(6, all, 9), [0; 0]);
    assert_eq!(overdue(5, all, 9), [1]);
    assert_eq!(
        overdue(3, all, 9),
        [1, 3, 2],
        "and not the longest lost of all"
    );
    assert_eq!(overdue(0, all, 2), [1, 3]);
    assert_eq!(overdue(0, all, 9).len(), 6);
    assert_eq!(overdue(0, none, 9), [0; 0], "all are within their grace");
    let grace = lost[2].0;
    assert_eq!(overdue(0, grace, 9), [1], "nobody pays for the others");
    let kept = sessions.overdue(lost[0].0, 9, none, 9);
    assert_eq!(kept.len(), 1, "kept long enough");
    // Who is resumed counts no more.
    let _session = resume(&engine, lost[1].1, 1).await;
    assert_eq!(overdue(4, all, 9), [3]);
}

#[tokio::test]
async fn an_id_that_cannot_be_proved_is_gone() {
    let (folder, engine) = fresh(|_| {});
    let session = open(&engine);
    put(&session, 1, "a").await.unwrap();
    let idle = open(&engine).id();
    let ended = open(&engine);
    put(&ended, 1, "b").await.unwrap();
    ended.end().await.unwrap();
    let ended_id = ended.id();
    assert!(is_gone(&engine, ended_id).await, "it ended");
    drop(ended);
    assert!(is_gone(&engine, ended_id).await, "and is remembered");
    let here = keyspace();
    let other = engine.resume_session("cert:b", &here, session.id(), 9);
    assert!(
        matches!(other.await.unwrap(), Resumed::Gone),
        "another principal"
    );
    let elsewhere = Keyspace::new("other").unwrap();
    let other = engine.resume_session("cert:a", &elsewhere, session.id(), 9);
    assert!(
        matches!(other.await.unwrap(), Resumed::Gone),
        "another keyspace"
    );
    assert!(!session.fenced().is_cancelled(), "and nobody was fenced");
    put(&session, 2, "a").await.unwrap();
    let now = engine.shared.store.now();
    let early = layout::new_session_id(UnixMillis(5));
    let late = layout::new_session_id(now.after(Duration::from_secs(60)));
    assert!(is_gone(&engine, early).await && is_gone(&engine, late).await);
    let id = session.id();
    drop(session);
    let folder = closed(&folder, engine).await;
    // The history forks: what was committed may be gone.
    std::fs::remove_file(folder.path().join("data/SYNCED")).unwrap();
    let forked = EngineOptions {
        accept_data_loss: true,
        ..options(folder.path())
    };
    let engine = reopened(forked).await;
    assert!(is_gone(&engine, id).await && is_gone(&engine, idle).await);
    assert_eq!(engine.shared.sessions.kept(), 0);
    let reader = open(&engine);
    assert!(
        reader.storage.get_one("a".into()).await.unwrap().is_none(),
        "its key went with it"
    );
}

#[tokio::test]
async fn an_ended_session_is_gone_after_a_start_too() {
    let (folder, engine) = fresh(|_| {});
    let before = open(&engine);
    put(&before, 1, "a").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let session = open(&engine);
    put(&session, 1, "b").await.unwrap();
    session.end().await.unwrap();
    let (id, before_id) = (session.id(), before.id());
    // One without a row leaves nothing to be remembered.
    let older = open(&engine);
    older.end().await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let idle = open(&engine).id();
    drop((session, before, older));
    let folder = closed(&folder, engine).await;
    let engine = reopened(options(folder.path())).await;
    assert!(is_gone(&engine, id).await);
    assert_eq!(resume(&engine, before_id, 1).await.executed(), 1);
    assert_eq!(resume(&engine, idle, 1).await.executed(), 0);
    // The older one ends later, and does not hide the newer one.
    let before = resume(&engine, before_id, 2).await;
    before.end().await.unwrap();
    drop(before);
    let folder = closed(&folder, engine).await;
    let engine = reopened(options(folder.path())).await;
    assert!(is_gone(&engine, id).await && is_gone(&engine, before_id).await);
}

#[tokio::test]
async fn what_is_put_after_a_resume_outlives_the_lapse_before_it() {
    let (folder, engine) = fresh(|options| options.session_grace = Duration::from_millis(300));
    let session = open(&engine);
    put(&session, 1, "a").await.unwrap();
    put(&session, 2, "b").await.unwrap();
    let id = session.id();
    session.lose();
    let reader = open(&engine);
    until("the keys go", async || {
        reader.storage.get_one("a".into()).await.unwrap().is_none()
    })
    .await;
    let session = resume(&engine, id, 1).await;
    assert!(session.lapsed());
    put(&session, 3, "a").await.unwrap();
    // Not heeded: the next incarnation is told as well. Nor is it forgotten with the server.
    let session = resume(&engine, id, 2).await;
    assert!(session.lapsed());
    session.heed();
    put(&session, 4, "b").await.unwrap();
    assert!(!resume(&engine, id, 3).await.lapsed(), "it was heeded");
    drop(session);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let folder = closed(&folder, engine).await;
    let engine = reopened(options(folder.path())).await;
    let session = resume(&engine, id, 4).await;
    assert!(!session.lapsed());
    for key in ["a", "b"] {
        assert!(
            session.storage.get_one(key.into()).await.unwrap().is_some(),
            "{key}"
        );
    }
}

#[tokio::test]
async fn a_lapse_that_was_cut_short_is_finished_at_the_next_start() {
    let (folder, engine) = fresh(|_| {});
    let session = open(&engine);
    put(&session, 1, "a").await.unwrap();
    let id = session.id();
    session.lose();
    let (since, state) = lost(&engine).await;
    let task = Task::Lapse { since };
    let answer = submit(&engine.shared.queue, &state, 0, task, 64).unwrap();
    answer.await.unwrap().unwrap();
    drop((session, state));
    let folder = closed(&folder, engine).await;
    let engine = reopened(options(folder.path())).await;
    let session = resume(&engine, id, 1).await;
    assert!(session.lapsed());
    assert!(session.storage.get_one("a".into()).await.unwrap().is_none());
}

/// The only lost session, and since when.
async fn lost(engine: &RocksEngine) -> (UnixMillis, Arc<super::SessionState>) {
    until("it is lost", async || engine.shared.sessions.kept() == 1).await;
    let sessions = &engine.shared.sessions;
    sessions.with_keys(UnixMillis(u64::MAX), 1).remove(0)
}

#[tokio::test]
async fn a_session_that_is_resumed_during_its_lapse_keeps_what_it_puts() {
    let (_folder, engine) = fresh(|_| {});
    let session = open(&engine);
    let id = session.id();
    put(&session, 1, "a").await.unwrap();
    put(&session, 2, "b").await.unwrap();
    session.lose();
    let (since, state) = lost(&engine).await;
    let lapse = async |since, state: &Arc<super::SessionState>| {
        let (shared, state) = (engine.shared.clone(), state.clone());
        let lapsing = move || housekeeping::lapse(&shared, &[(since, state)]);
        tokio::task::spawn_blocking(lapsing).await.unwrap().unwrap()
    };
    // Resumed between the look of the housekeeper and the lapse: nothing lapses.
    let session = resume(&engine, id, 1).await;
    lapse(since, &state).await;
    for key in ["a", "b"] {
        assert!(
            session.storage.get_one(key.into()).await.unwrap().is_some(),
            "{key}"
        );
    }
    session.lose();
    let (since, state) = lost(&engine).await;
    // Resumed between the lapse and the removal of the keys.
    let task = Task::Lapse { since };
    let answer = submit(&engine.shared.queue, &state, 0, task, 64).unwrap();
    answer.await.unwrap().unwrap();
    let session = resume(&engine, id, 2).await;
    assert!(session.lapsed());
    put(&session, 3, "a").await.unwrap();
    put(&session, 4, "c").await.unwrap();
    lapse(since, &state).await;
    let found = session
        .storage
        .get(&["a".into(), "b".into(), "c".into()])
        .await;
    let found: Vec<_> = found.unwrap().value.iter().map(Option::is_some).collect();
    assert_eq!(found, [true, false, true]);
}

#[tokio::test]
async fn a_store_with_a_lapse_that_was_cut_short_starts_at_a_full_disk() {
    // The housekeeper removes the key within a second, and may do so before the engine is closed: then once more.
    for attempt in 1.. {
        let (folder, engine) = fresh(|_| {});
        let session = open(&engine);
        put(&session, 1, "a").await.unwrap();
        session.lose();
        let (since, state) = lost(&engine).await;
        let task = Task::Lapse { since };
        let answer = submit(&engine.shared.queue, &state, 0, task, 64).unwrap();
        answer.await.unwrap().unwrap();
        drop((session, state));
        let folder = closed(&folder, engine).await;
        let full = EngineOptions {
            disk_reserve_bytes: u64::MAX,
            ..options(folder.path())
        };
        let engine = reopened(full).await;
        let reader = Opened::of(engine.open_session("cert:b", &keyspace()));
        if reader.storage.get_one("a".into()).await.unwrap().is_none() {
            assert!(attempt < 10, "the key does not stay");
            continue;
        }
        assert!(!engine.shared.old_sessions_ended.load(Ordering::Relaxed));
        drop(reader);
        let folder = closed(&folder, engine).await;
        let engine = reopened(options(folder.path())).await;
        let reader = Opened::of(engine.open_session("cert:b", &keyspace()));
        assert!(reader.storage.get_one("a".into()).await.unwrap().is_none());
        assert!(engine.shared.old_sessions_ended.load(Ordering::Relaxed));
        break;
    }
}

/// What the housekeeper does with the only lost session.
async fn lapse_of_lost(engine: &RocksEngine) -> Result<()> {
    let (shared, lost) = (engine.shared.clone(), lost(engine).await);
    let lapsing = move || housekeeping::lapse(&shared, &[lost]);
    tokio::task::spawn_blocking(lapsing).await.unwrap()
}

#[tokio::test]
async fn a_lapse_that_is_begun_is_not_begun_again() {
    let (_folder, engine) = fresh(|_| {});
    let session = open(&engine);
    put(&session, 1, "a").await.unwrap();
    session.lose();
    // Its keys could not be removed at once.
    let (since, state) = lost(&engine).await;
    let task = Task::Lapse { since };
    let answer = submit(&engine.shared.queue, &state, 0, task, 64).unwrap();
    answer.await.unwrap().unwrap();
    let begun = state.lapse();
    let other = Opened::of(engine.open_session("cert:b", &keyspace()));
    other.storage.put("other".into(), "v".into()).await.unwrap();
    lapse_of_lost(&engine).await.unwrap();
    assert_eq!(state.lapse(), begun);
    assert!(other.storage.get_one("a".into()).await.unwrap().is_none());
}

#[tokio::test]
async fn nothing_lapses_at_a_full_disk() {
    let (folder, engine) = fresh(|_| {});
    let session = open(&engine);
    put(&session, 1, "a").await.unwrap();
    session.lose();
    drop(session);
    let folder = closed(&folder, engine).await;
    let full = EngineOptions {
        disk_reserve_bytes: u64::MAX,
        ..options(folder.path())
    };
    let engine = reopened(full).await;
    let before = engine.position();
    let error = lapse_of_lost(&engine).await.unwrap_err();
    assert!(matches!(error, StorageError::StorageFull { .. }), "{error}");
    assert_eq!(engine.position(), before, "nothing was written");
}

#[tokio::test]
async fn a_lapse_is_finished_although_the_session_is_resumed_meanwhile() {
    const COMMITS: u64 = 36;
    const KEYS: u64 = 500;
    let (_folder, engine) = fresh(|options| options.session_grace = Duration::from_millis(1));
    let session = open(&engine);
    for number in 1..=COMMITS {
        let mut batch = Batch::new();
        for key in 0..KEYS {
            let key = format!("{number:02}/{key}");
            batch = batch.put_with(key, "value", Lifetime::Session);
        }
        let options = CommitOptions::default();
        session
            .storage
            .commit_numbered(number, batch, options)
            .await
            .unwrap();
    }
    let id = session.id();
    let reader = open(&engine);
    session.lose();
    let began = std::time::Instant::now();
    while reader
        .storage
        .get_one("01/0".into())
        .await
        .unwrap()
        .is_some()
    {
        assert!(began.elapsed() < PATIENCE, "nothing lapses");
        tokio::task::yield_now().await;
    }
    let session = resume(&engine, id, 1).await;
    put(&session, COMMITS + 1, "new").await.unwrap();
    let last = format!("{COMMITS:02}/{}", KEYS - 1);
    let first_of_last = format!("{COMMITS:02}/0");
    until("all of it goes", async || {
        let keys = [last.clone().into(), first_of_last.clone().into()];
        let found = reader.storage.get(&keys).await.unwrap().value;
        found.iter().all(Option::is_none)
    })
    .await;
    assert!(
        reader
            .storage
            .get_one("new".into())
            .await
            .unwrap()
            .is_some()
    );
    until("it is finished", async || {
        engine.shared.sessions.lapsing().is_empty()
    })
    .await;
}

#[tokio::test]
async fn many_sessions_lapse_together_and_each_at_once() {
    let (_folder, engine) = fresh(|_| {});
    let mut expected = 0;
    for keys in [1, 2, 500, 30, 1, 513] {
        let session = open(&engine);
        let mut batch = Batch::new();
        for key in 0..keys {
            let key = format!("{keys}/{expected}/{key}");
            batch = batch.put_with(key, "value", Lifetime::Session);
        }
        let options = CommitOptions::default();
        session
            .storage
            .commit_numbered(1, batch, options)
            .await
            .unwrap();
        session.lose();
        expected += 1;
    }
    until("they are lost", async || {
        engine.shared.sessions.kept() == expected
    })
    .await;
    let shared = engine.shared.clone();
    let before = shared.store.revision();
    let lapsing = move || {
        let lost = shared.sessions.with_keys(UnixMillis(u64::MAX), 100);
        housekeeping::lapse(&shared, &lost).unwrap();
        let page = log::read_after(&shared.store, before, 64 << 20);
        let commits = page.unwrap().into_commits().into_iter();
        commits.map(|(_, record)| record).collect::<Vec<_>>()
    };
    let commits = tokio::task::spawn_blocking(lapsing).await.unwrap();
    assert!(commits.len() <= 5, "{} commits", commits.len());
    let removed = commits.iter().map(|record| record.changes.len());
    assert_eq!(removed.sum::<usize>(), 1047);
    // No session's keys are in two commits, unless they are more than one takes.
    let mut seen = std::collections::HashMap::new();
    for (place, record) in commits.iter().enumerate() {
        assert_eq!(record.label.as_deref(), Some("session ended"));
        for change in &record.changes {
            let key = String::from_utf8(change.key.to_vec()).unwrap();
            let session = key.rsplit_once('/').unwrap().0.to_owned();
            if !session.starts_with("513/") {
                assert_eq!(*seen.entry(session).or_insert(place), place);
            }
        }
    }
    assert!(engine.shared.sessions.lapsing().is_empty());
}

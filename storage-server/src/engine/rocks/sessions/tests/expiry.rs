//! Keys of sessions that are without a socket for too long.

use super::*;
use crate::engine::rocks::sessions::SessionState;

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
    assert!(session.keys_expired());
    put(&session, 3, "a").await.unwrap();
    // Not heeded: the next generation is told as well. Nor is it forgotten with the server.
    let session = resume(&engine, id, 2).await;
    assert!(session.keys_expired());
    session.acknowledge_expiry();
    put(&session, 4, "b").await.unwrap();
    assert!(
        !resume(&engine, id, 3).await.keys_expired(),
        "it was heeded"
    );
    drop(session);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let folder = closed(&folder, engine).await;
    let engine = reopened(options(folder.path())).await;
    let session = resume(&engine, id, 4).await;
    assert!(!session.keys_expired());
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
    let task = Task::ExpireKeys { since };
    let answer = submit(&engine.shared.queue, &state, 0, task, 64).unwrap();
    answer.await.unwrap().unwrap();
    drop((session, state));
    let folder = closed(&folder, engine).await;
    let engine = reopened(options(folder.path())).await;
    let session = resume(&engine, id, 1).await;
    assert!(session.keys_expired());
    assert!(session.storage.get_one("a".into()).await.unwrap().is_none());
}

/// The only lost session, and since when.
async fn lost(engine: &RocksEngine) -> (UnixMillis, Arc<SessionState>) {
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
    let lapse = async |since, state: &Arc<SessionState>| {
        let (shared, state) = (engine.shared.clone(), state.clone());
        let expiring = move || housekeeping::expire_keys(&shared, &[(since, state)]);
        tokio::task::spawn_blocking(expiring)
            .await
            .unwrap()
            .unwrap()
    };
    // Resumed between the look of the housekeeper and the expiry: nothing expires.
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
    // Resumed between the expiry and the removal of the keys.
    let task = Task::ExpireKeys { since };
    let answer = submit(&engine.shared.queue, &state, 0, task, 64).unwrap();
    answer.await.unwrap().unwrap();
    let session = resume(&engine, id, 2).await;
    assert!(session.keys_expired());
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
        let task = Task::ExpireKeys { since };
        let answer = submit(&engine.shared.queue, &state, 0, task, 64).unwrap();
        answer.await.unwrap().unwrap();
        drop((session, state));
        let folder = closed(&folder, engine).await;
        let full = EngineOptions {
            disk_reserve_bytes: u64::MAX,
            ..options(folder.path())
        };
        let engine = reopened(full).await;
        let reader = Reopened::of(engine.open_session("cert:b", &keyspace()));
        if reader.storage.get_one("a".into()).await.unwrap().is_none() {
            assert!(attempt < 10, "the key does not stay");
            continue;
        }
        assert!(!engine.shared.old_sessions_ended.load(Ordering::Relaxed));
        drop(reader);
        let folder = closed(&folder, engine).await;
        let engine = reopened(options(folder.path())).await;
        let reader = Reopened::of(engine.open_session("cert:b", &keyspace()));
        assert!(reader.storage.get_one("a".into()).await.unwrap().is_none());
        assert!(engine.shared.old_sessions_ended.load(Ordering::Relaxed));
        break;
    }
}

/// What the housekeeper does with the only lost session.
async fn lapse_of_lost(engine: &RocksEngine) -> Result<()> {
    let (shared, lost) = (engine.shared.clone(), lost(engine).await);
    let expiring = move || housekeeping::expire_keys(&shared, &[lost]);
    tokio::task::spawn_blocking(expiring).await.unwrap()
}

#[tokio::test]
async fn a_lapse_that_is_begun_is_not_begun_again() {
    let (_folder, engine) = fresh(|_| {});
    let session = open(&engine);
    put(&session, 1, "a").await.unwrap();
    session.lose();
    // Its keys could not be removed at once.
    let (since, state) = lost(&engine).await;
    let task = Task::ExpireKeys { since };
    let answer = submit(&engine.shared.queue, &state, 0, task, 64).unwrap();
    answer.await.unwrap().unwrap();
    let begun = state.expired_up_to();
    let other = Reopened::of(engine.open_session("cert:b", &keyspace()));
    other.storage.put("other".into(), "v".into()).await.unwrap();
    lapse_of_lost(&engine).await.unwrap();
    assert_eq!(state.expired_up_to(), begun);
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
        assert!(began.elapsed() < PATIENCE, "nothing expires");
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
        engine.shared.sessions.expiring().is_empty()
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
    let expiring = move || {
        let lost = shared.sessions.with_keys(UnixMillis(u64::MAX), 100);
        housekeeping::expire_keys(&shared, &lost).unwrap();
        let page = log::read_after(&shared.store, before, 64 << 20);
        let commits = page.unwrap().into_commits().into_iter();
        commits.map(|(_, record)| record).collect::<Vec<_>>()
    };
    let commits = tokio::task::spawn_blocking(expiring).await.unwrap();
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
    assert!(engine.shared.sessions.expiring().is_empty());
}

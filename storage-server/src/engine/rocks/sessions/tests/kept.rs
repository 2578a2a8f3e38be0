//! Which sessions can be resumed, and which are forgotten.

use super::*;
use crate::engine::rocks::sessions::record_keys;

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
    let records = |id| record_keys(&engine.shared.store, id).unwrap().len();
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
        let session = Reopened::of(engine.open_session(principal, &keyspace()));
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

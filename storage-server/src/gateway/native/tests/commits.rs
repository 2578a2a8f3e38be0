//! Commits: their order, and that each is executed once.

use super::*;

#[tokio::test]
async fn a_commit_is_read_back() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    send(client, Some(1), commit(1, "a")).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
    send(client, Some(2), get("a")).await;
    let (id, ServerMessage::Values { entries, .. }) = receive(client).await else {
        panic!("no values")
    };
    assert_eq!(
        (id, entries[0].as_ref().unwrap().value.as_ref()),
        (Some(2), &b"value"[..])
    );
}

#[tokio::test]
async fn gets_overtake_a_commit_that_waits() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    send(client, Some(1), commit(1, "a")).await;
    send(client, Some(2), get("a")).await;
    assert!(matches!(
        receive(client).await,
        (Some(2), ServerMessage::Values { .. })
    ));
    running.engine.hold(Hold::Nothing);
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
}

#[tokio::test]
async fn a_started_commit_survives_its_socket() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Commits);
    send(&mut running.client, Some(1), commit(1, "a")).await;
    send(&mut running.client, Some(2), get("a")).await;
    receive(&mut running.client).await;
    drop(running.client);
    running.engine.hold(Hold::Nothing);
    running.session.await.unwrap();
    let inside = running
        .engine
        .open_session("server", &Keyspace::new(KEYSPACE).unwrap())
        .storage();
    assert!(inside.get_one("a".into()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_commit_that_comes_early_waits_for_its_turn() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    send(client, Some(2), commit(2, "a")).await;
    send(client, Some(3), get("a")).await;
    assert!(matches!(
        receive(client).await,
        (Some(3), ServerMessage::Values { .. })
    ));
    send(client, Some(1), commit(1, "a")).await;
    let (first, ServerMessage::Committed { revision: one }) = receive(client).await else {
        panic!("no answer")
    };
    let (_, ServerMessage::Committed { revision: two }) = receive(client).await else {
        panic!("no answer")
    };
    assert!(first == Some(1) && one < two);
}

#[tokio::test]
async fn no_bound_refuses_a_commit_that_comes_again() {
    let mut old = running(|_| {});
    open(&mut old).await;
    let engine = old.engine.clone();
    engine.executed.store(5, Ordering::Relaxed);
    let mut new = beside(&engine, |config| {
        config.limits.requests_in_flight_max = 1;
        config.limits.partial_messages_bytes_max = 100_000;
    });
    let client = &mut new.client;
    say_resume(client, 1, 7, &[3, 4, 5, 6]).await;
    assert_eq!(welcomed(client).await.executed, 5);
    engine.hold(Hold::Commits);
    for number in [3, 4] {
        send(client, Some(number), commit(u64::from(number), "again")).await;
    }
    // In parts, and too long for the bound.
    let batch = Batch::new().put("again", vec![7; 300_000]);
    let message = ClientMessage::Commit {
        number: 5,
        options: CommitOptions::default(),
        batch,
    };
    let mut outbox = storage_protocol::native::Outbox::new();
    outbox.push(
        storage_protocol::native::Class::Answer,
        message.encode(Some(5)),
    );
    while let Some(frame) = outbox.pop() {
        client.send(Message::Binary(frame)).await.unwrap();
    }
    // Nor does the shutdown. What was not executed before is refused by it.
    new.shared.drain.cancel();
    assert!(matches!(
        receive(client).await,
        (None, ServerMessage::GoAway { .. })
    ));
    send(client, Some(6), commit(6, "new")).await;
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("it was not refused")
    };
    assert_eq!(id, Some(6));
    assert!(error.to_string().contains("shuts down"), "{error}");
    engine.hold(Hold::Nothing);
    let mut answered = HashMap::new();
    for _ in 0..3 {
        let (Some(id), answer) = receive(client).await else {
            panic!("an answer without an id")
        };
        answered.insert(id, answer);
    }
    for id in [3, 4] {
        let answer = answered.remove(&id);
        let Some(ServerMessage::Committed { .. }) = answer else {
            panic!("not answered with what it did: {answer:?}")
        };
    }
    // Of what did not come whole nobody knows whether it is what was executed; certain is only that it may have been.
    let Some(ServerMessage::Error(error)) = answered.remove(&5) else {
        panic!("answered without having been read")
    };
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert_eq!(closed(client).await.0, 1001);
    let inside = engine
        .open_session("server", &Keyspace::new("test").unwrap())
        .storage();
    assert!(inside.get_one("again".into()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_commit_that_others_wait_for_is_let_in() {
    let mut running = running(|config| config.limits.requests_in_flight_max = 4);
    open(&mut running).await;
    let client = &mut running.client;
    for number in [2, 3, 4, 5, 1] {
        send(client, Some(number), commit(u64::from(number), "a")).await;
    }
    for _ in 0..5 {
        let (_, answer) = receive(client).await;
        assert!(
            matches!(answer, ServerMessage::Committed { .. }),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_missing_commit_ends_the_connection() {
    let mut running = running(|config| {
        config.timeouts.partial_message = Duration::from_millis(200);
    });
    open(&mut running).await;
    let client = &mut running.client;
    send(client, Some(1), commit(1, "a")).await;
    receive(client).await;
    for number in [3, 4] {
        send(client, Some(number), commit(u64::from(number), "a")).await;
    }
    let (code, reason) = closed(client).await;
    assert_eq!(code, 1002);
    assert!(
        reason.contains("commit number 2 is missing for 200ms"),
        "{reason}"
    );
}

//! Watches of a native session: what is said of them, in which order, and what bounds them.

use super::*;

fn probe(watch: RequestId, token: u64) -> ClientMessage {
    let watch = Some(watch);
    ClientMessage::Probe { watch, token }
}

#[tokio::test]
async fn done_is_the_last_that_is_said_of_a_watch_that_was_not_answered_yet() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Watches);
    let client = &mut running.client;
    send(client, Some(1), watch(1_000)).await;
    send(client, Some(2), ClientMessage::Unwatch { watch: 1 }).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Error(StorageError::Cancelled))
    ));
    assert!(matches!(
        receive(client).await,
        (Some(2), ServerMessage::Done)
    ));
    // Its id is free, and nothing else comes under it.
    send(client, Some(1), get("a")).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Values { .. })
    ));
}

#[tokio::test]
async fn an_unwatch_gives_up_no_other_request() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    send(client, Some(1), commit(1, "a")).await;
    send(client, Some(2), ClientMessage::Unwatch { watch: 1 }).await;
    assert!(matches!(
        receive(client).await,
        (Some(2), ServerMessage::Done)
    ));
    running.engine.hold(Hold::Nothing);
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
}

#[tokio::test]
async fn a_probe_of_a_watch_is_in_flight_until_its_mark_comes() {
    let mut running = running(|config| config.limits.requests_in_flight_max = 2);
    open(&mut running).await;
    let client = &mut running.client;
    send(client, Some(1), watch(0)).await;
    receive(client).await;
    send(client, Some(2), commit(1, "a")).await;
    receive(client).await;
    // An event is due and there is no credit for it: the progress events wait behind it.
    for id in 3..=5 {
        send(client, Some(id), probe(1, id.into())).await;
    }
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("no error")
    };
    assert_eq!(id, Some(5));
    assert!(
        error.to_string().contains("requests_in_flight_max"),
        "{error}"
    );
    send(client, Some(1), ClientMessage::Credit { bytes: 1 }).await;
    receive(client).await;
    for token in [3, 4] {
        assert!(matches!(
            receive(client).await,
            (Some(1), ServerMessage::Progress { token: Some(t), .. }) if t == token
        ));
    }
    // Their ids are free again, one at the end of the watch.
    send(client, Some(2), commit(2, "a")).await;
    receive(client).await;
    send(client, Some(3), probe(1, 7)).await;
    send(client, Some(4), ClientMessage::Unwatch { watch: 1 }).await;
    assert!(matches!(
        receive(client).await,
        (Some(4), ServerMessage::Done)
    ));
    send(client, Some(3), get("a")).await;
    assert!(matches!(
        receive(client).await,
        (Some(3), ServerMessage::Values { .. })
    ));
}

#[tokio::test]
async fn the_id_of_a_probe_whose_mark_is_due_is_taken() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    send(client, Some(1), watch(0)).await;
    receive(client).await;
    send(client, Some(2), commit(1, "a")).await;
    receive(client).await;
    send(client, Some(3), probe(1, 7)).await;
    send(client, Some(3), get("a")).await;
    let (code, reason) = closed(client).await;
    assert_eq!(code, 1002);
    assert!(reason.contains("id 3 is in flight"), "{reason}");
}

#[tokio::test]
async fn a_watch_on_a_quiet_range_is_told_how_far_the_store_is() {
    let mut running = running(|config| config.timeouts.idle_mark = Duration::from_millis(100));
    open(&mut running).await;
    let client = &mut running.client;
    let quiet = ClientMessage::Watch(WatchRequest {
        range: KeyRange::prefix("quiet/"),
        start: WatchStart::Now,
        mode: WatchMode::Every,
        credit: 1_000,
    });
    send(client, Some(1), quiet).await;
    receive(client).await;
    send(client, Some(2), commit(1, "busy")).await;
    let (_, ServerMessage::Committed { revision }) = receive(client).await else {
        panic!("no answer")
    };
    // Nobody asked for it, so it has no token.
    let (
        id,
        ServerMessage::Progress {
            revision: mark,
            token,
        },
    ) = receive(client).await
    else {
        panic!("no mark")
    };
    assert_eq!((id, mark, token), (Some(1), revision, None));
    // And nothing more, since the store does not go on.
    send(client, Some(2), commit(2, "quiet/a")).await;
    receive(client).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Changes { .. })
    ));
}

#[tokio::test]
async fn the_memory_of_watches_is_bounded_by_name() {
    let mut running = running(|config| {
        config.limits.watch_bytes_max = 10_000;
        config.limits.watch_bytes_total_max = 100_000;
    });
    open(&mut running).await;
    let client = &mut running.client;
    let watch = |bytes: usize| {
        ClientMessage::Watch(WatchRequest {
            range: KeyRange::prefix(vec![b'k'; bytes]),
            start: WatchStart::Now,
            mode: WatchMode::Every,
            credit: 0,
        })
    };
    let refused = async |client: &mut Client, id, bytes| {
        send(client, Some(id), watch(bytes)).await;
        match receive(client).await {
            (Some(answered), ServerMessage::Error(error)) if answered == id => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(client, 1, 4_098).await.contains("key_bytes_max"));
    // 2 KiB, and both bounds.
    send(client, Some(1), watch(3_000)).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Watching { .. })
    ));
    let reason = refused(client, 2, 3_000).await;
    assert!(
        reason.contains("watch_bytes_max is reached (10000)"),
        "{reason}"
    );
    send(client, Some(3), ClientMessage::Unwatch { watch: 1 }).await;
    receive(client).await;
    send(client, Some(2), watch(3_000)).await;
    assert!(matches!(
        receive(client).await,
        (Some(2), ServerMessage::Watching { .. })
    ));
}

#[tokio::test]
async fn one_unwatch_at_a_time_waits_for_an_opening() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Watches);
    let client = &mut running.client;
    send(client, Some(1), watch(1_000)).await;
    // All at once, so that they are taken before the opening is looked at again.
    for id in 2..=4 {
        let unwatch = ClientMessage::Unwatch { watch: 1 }.encode(Some(id));
        let message = Message::Binary(unwatch.to_frame());
        client.feed(message).await.unwrap();
    }
    client.flush().await.unwrap();
    for id in [3, 4] {
        assert_eq!(receive(client).await, (Some(id), ServerMessage::Done));
    }
    let cancelled = ServerMessage::Error(StorageError::Cancelled);
    assert_eq!(receive(client).await, (Some(1), cancelled));
    assert_eq!(receive(client).await, (Some(2), ServerMessage::Done));
    for id in 1..=4 {
        send(client, Some(id), get("a")).await;
        assert_eq!(receive(client).await.0, Some(id), "the id is free");
    }
}

/// Of two principals' outboxes, one's is full, and then all of the server's.
#[tokio::test]
async fn a_watch_sends_nothing_where_its_principal_has_no_room_unless_it_is_alone() {
    const ALL: usize = 500_000;
    let mut running = running(|config| {
        config.limits.outbox_bytes_total_max = ALL;
        config.limits.message_bytes_max = ALL / 2;
    });
    open(&mut running).await;
    let shared = running.shared.clone();
    let client = &mut running.client;
    send(client, Some(1), watch(1_000_000)).await;
    receive(client).await;
    // Another session of the principal has all there is.
    let another = shared.slots.take("anonymous").unwrap();
    let held = another.budgets().outbox.take(ALL / 2).unwrap();
    send(client, Some(2), commit(1, "a")).await;
    assert!(matches!(
        receive(client).await,
        (Some(2), ServerMessage::Committed { .. })
    ));
    ping(client, 3).await;
    expect_ping(client, 3).await;
    // Nothing but time tells the watch that there is room again.
    drop(held);
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Changes { .. })
    ));
    // What others have is no reason to say nothing at all.
    let _others = shared.budgets.outbox.take(ALL).unwrap();
    send(client, Some(2), commit(2, "a")).await;
    receive(client).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Changes { .. })
    ));
}

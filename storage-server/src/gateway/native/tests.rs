//! A native session over an in-memory stream, against the stub engine.

mod watching;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use storage_protocol::native::{
    ClientMessage, Hello, Packet, Reassembler, RequestId, ServerMessage, VERSION, WatchRequest,
    Welcome,
};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Keyspace, Outcome, ScanOptions, SessionId, StorageError,
    StorageExt, WatchMode, WatchStart,
};
use tokio_tungstenite::tungstenite::Message;

use super::Native;
use crate::config::ServerConfig;
use crate::engine::Engine;
use crate::metrics::encoded;
use crate::testing::{Client, Hold, KEYSPACE, MemoryEngine, Running, start};

fn running(change: impl FnOnce(&mut ServerConfig)) -> Running {
    start(MemoryEngine::new(), change, |shared, peer| {
        Native::new(shared, peer, Keyspace::new(KEYSPACE).unwrap())
    })
}

/// Another connection to an engine.
fn beside(engine: &Arc<MemoryEngine>, change: impl FnOnce(&mut ServerConfig)) -> Running {
    start(engine.clone(), change, |shared, peer| {
        Native::new(shared, peer, Keyspace::new(KEYSPACE).unwrap())
    })
}

/// Asks for the engine's first session.
async fn say_resume(client: &mut Client, incarnation: u64, sent: u64, unanswered: &[u64]) {
    let hello = Hello {
        session: Some(SessionId([1; 16])),
        incarnation,
        sent,
        unanswered: unanswered.to_vec(),
        ..Hello::new("test")
    };
    send(client, None, ClientMessage::Hello(hello)).await;
}

async fn welcomed(client: &mut Client) -> Welcome {
    match receive(client).await {
        (None, ServerMessage::Welcome(welcome)) => welcome,
        other => panic!("not Welcome: {other:?}"),
    }
}

async fn send(client: &mut Client, id: Option<RequestId>, message: ClientMessage) {
    client
        .send(Message::Binary(message.encode(id).to_frame()))
        .await
        .unwrap();
}

async fn receive(client: &mut Client) -> (Option<RequestId>, ServerMessage) {
    loop {
        match client.next().await.unwrap().unwrap() {
            Message::Binary(frame) => {
                let packet = Packet::from_frame(frame).unwrap();
                return (packet.id, ServerMessage::decode(packet).unwrap());
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The code and reason that the server closes with, whatever comes before.
async fn closed(client: &mut Client) -> (u16, String) {
    while let Some(Ok(message)) = client.next().await {
        if let Message::Close(Some(frame)) = message {
            return (frame.code.into(), frame.reason.to_string());
        }
    }
    panic!("the socket ended without a close frame");
}

fn hello(version: u64) -> ClientMessage {
    ClientMessage::Hello(Hello {
        version,
        ..Hello::new("test")
    })
}

async fn open(running: &mut Running) {
    send(&mut running.client, None, hello(VERSION)).await;
    let (id, welcome) = receive(&mut running.client).await;
    assert!(id.is_none());
    assert!(matches!(welcome, ServerMessage::Welcome(welcome) if welcome.principal == "anonymous"));
}

fn commit(number: u64, key: &'static str) -> ClientMessage {
    let batch = Batch::new().put(key, "value");
    ClientMessage::Commit {
        number,
        options: CommitOptions::default(),
        batch,
    }
}

fn get(key: &'static str) -> ClientMessage {
    ClientMessage::Get {
        keys: vec![key.into()],
    }
}

fn watch(credit: u64) -> ClientMessage {
    let range = KeyRange::all();
    ClientMessage::Watch(WatchRequest {
        range,
        start: WatchStart::Now,
        mode: WatchMode::Every,
        credit,
    })
}

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
async fn what_breaks_the_protocol_is_named() {
    let opened = |message: ClientMessage, id: Option<u32>| async move {
        let mut running = running(|_| {});
        open(&mut running).await;
        running.engine.hold(Hold::Commits);
        send(&mut running.client, Some(1), commit(1, "a")).await;
        send(&mut running.client, id, message).await;
        closed(&mut running.client).await
    };
    let (code, reason) = opened(get("a"), Some(1)).await;
    assert_eq!(code, 1002);
    assert!(reason.contains("id 1 is in flight"), "{reason}");
    let (_, reason) = opened(commit(1, "b"), Some(2)).await;
    assert!(reason.contains("commit number 1 came before"), "{reason}");
    let (_, reason) = opened(hello(VERSION), None).await;
    assert!(reason.contains("Hello was said"), "{reason}");

    let first = |message: Message| async move {
        let mut running = running(|_| {});
        running.client.send(message).await.unwrap();
        closed(&mut running.client).await
    };
    let (_, reason) = first(Message::Binary(get("a").encode(Some(1)).to_frame())).await;
    assert!(reason.contains("must be Hello"), "{reason}");
    let (_, reason) = first(Message::Binary(hello(9).encode(None).to_frame())).await;
    assert!(
        reason.contains("version 9") && reason.contains("speaks version 1"),
        "{reason}"
    );
    assert_eq!(first(Message::text("hi")).await.0, 1003);
    assert_eq!(
        first(Message::Binary(Bytes::from(vec![0; 300_000])))
            .await
            .0,
        1009
    );
    let (_, reason) = first(Message::Binary(Bytes::from_static(b"nonsense"))).await;
    assert!(reason.contains("without separator"), "{reason}");
}

#[tokio::test]
async fn no_hello_in_time_closes() {
    let mut running = running(|config| config.timeouts.handshake = Duration::from_millis(100));
    assert_eq!(closed(&mut running.client).await.0, 4000);
}

#[tokio::test]
async fn a_silent_peer_is_pinged_and_then_closed() {
    let mut running = running(|config| {
        config.timeouts.heartbeat = Duration::from_millis(50);
        config.timeouts.silence = Duration::from_millis(150);
    });
    open(&mut running).await;
    // The client's library answers pings only when it is polled, so its stream is read raw from here.
    let mut raw = Vec::new();
    let stream = running.client.get_mut();
    tokio::io::AsyncReadExt::read_to_end(stream, &mut raw)
        .await
        .unwrap();
    assert_eq!(raw[..2], [0x89, 0], "a ping");
    assert_eq!(raw[2], 0x88, "a close frame");
    assert_eq!(u16::from_be_bytes([raw[4], raw[5]]), 4001);
}

#[tokio::test]
async fn requests_over_the_bound_are_refused_by_its_name() {
    let mut running = running(|config| config.limits.requests_in_flight_max = 2);
    open(&mut running).await;
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    for (id, number) in (1..=3).zip(1..) {
        send(client, Some(id), commit(number, "a")).await;
    }
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("no error")
    };
    assert_eq!(id, Some(3));
    assert!(
        error
            .to_string()
            .contains("requests_in_flight_max is reached (2)"),
        "{error}"
    );
    running.engine.hold(Hold::Nothing);
    receive(client).await;
    receive(client).await;
    send(client, Some(3), commit(4, "b")).await;
    assert!(matches!(
        receive(client).await,
        (Some(3), ServerMessage::Committed { .. })
    ));
}

#[tokio::test]
async fn a_watch_stops_without_credit_and_goes_on_with_it() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    send(client, Some(1), watch(1)).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Watching { .. })
    ));
    send(client, Some(2), commit(1, "a")).await;
    receive(client).await;
    let (id, ServerMessage::Changes { commits }) = receive(client).await else {
        panic!("no changes")
    };
    assert_eq!((id, commits.len()), (Some(1), 1));
    for number in 2..=4 {
        send(client, Some(2), commit(number, "b")).await;
        assert!(matches!(
            receive(client).await,
            (Some(2), ServerMessage::Committed { .. })
        ));
    }
    send(client, Some(1), ClientMessage::Credit { bytes: 10_000 }).await;
    let (_, ServerMessage::Changes { commits }) = receive(client).await else {
        panic!("no changes")
    };
    assert_eq!(commits.len(), 3, "what waited comes in one message");
    assert!(
        matches!(
            receive(client).await,
            (Some(1), ServerMessage::Progress { token: None, .. })
        ),
        "and a mark says that it has caught up"
    );
    send(
        client,
        Some(3),
        ClientMessage::Probe {
            watch: Some(1),
            token: 9,
        },
    )
    .await;
    let (id, ServerMessage::Progress { token, .. }) = receive(client).await else {
        panic!("no mark")
    };
    assert_eq!((id, token), (Some(1), Some(9)));
    send(client, Some(3), ClientMessage::Unwatch { watch: 1 }).await;
    assert_eq!(receive(client).await, (Some(3), ServerMessage::Done));
    send(client, Some(1), get("a")).await;
    assert!(
        matches!(
            receive(client).await,
            (Some(1), ServerMessage::Values { .. })
        ),
        "the id is free"
    );
}

#[tokio::test]
async fn a_scan_ends_with_a_page_that_says_so() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    for (number, key) in (1..).zip(["a", "b", "c"]) {
        send(client, Some(1), commit(number, key)).await;
        receive(client).await;
    }
    let scan = ClientMessage::Scan {
        range: KeyRange::all(),
        options: ScanOptions::default(),
    };
    send(client, Some(1), scan).await;
    let mut keys = Vec::new();
    let mut next = 2;
    loop {
        let (_, ServerMessage::Page { scan, items, .. }) = receive(client).await else {
            panic!("no page")
        };
        keys.extend(items.into_iter().map(|item| item.key));
        let Some(scan) = scan else { break };
        send(client, Some(next), ClientMessage::ScanNext { scan }).await;
        next += 1;
    }
    assert_eq!(keys, ["a", "b", "c"]);
    send(client, Some(1), ClientMessage::ScanNext { scan: 0 }).await;
    assert_eq!(
        receive(client).await.1,
        ServerMessage::Error(StorageError::SnapshotExpired)
    );
}

#[tokio::test]
async fn parts_beyond_the_bound_are_refused_and_the_socket_goes_on() {
    let mut running = running(|config| config.limits.partial_messages_bytes_max = 100_000);
    open(&mut running).await;
    let client = &mut running.client;
    let batch = Batch::new().put("big", vec![7; 300_000]);
    let message = ClientMessage::Commit {
        number: 1,
        options: CommitOptions::default(),
        batch,
    };
    let mut outbox = storage_protocol::native::Outbox::new();
    outbox.push(
        storage_protocol::native::Class::Answer,
        message.encode(Some(1)),
    );
    let mut parts = 0;
    while let Some(frame) = outbox.pop() {
        parts += 1;
        client.send(Message::Binary(frame)).await.unwrap();
    }
    assert!(parts > 3);
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("no error")
    };
    assert_eq!(id, Some(1));
    assert!(
        error.to_string().contains("partial_messages_bytes_max"),
        "{error}"
    );
    send(client, Some(1), commit(2, "small")).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
    // Nothing is held of the parts that came behind the refusal.
    assert_eq!(running.shared.budgets.partial.used(), 0);
    send(client, Some(1), get("big")).await;
    let (_, ServerMessage::Values { entries, .. }) = receive(client).await else {
        panic!("no values")
    };
    assert_eq!(entries, [None]);
    send(client, Some(1), commit(1, "again")).await;
    let (_, reason) = closed(client).await;
    assert!(
        reason.contains("number 1 came before"),
        "the number is spent: {reason}"
    );
}

#[tokio::test]
async fn shutdown_lets_commits_finish() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    send(client, Some(1), commit(1, "a")).await;
    send(client, Some(2), get("a")).await;
    receive(client).await;
    running.shared.drain.cancel();
    assert!(matches!(
        receive(client).await,
        (None, ServerMessage::GoAway { .. })
    ));
    send(client, Some(2), get("a")).await;
    let (_, ServerMessage::Error(error)) = receive(client).await else {
        panic!("no error")
    };
    assert!(matches!(error, StorageError::Closed { .. }));
    running.engine.hold(Hold::Nothing);
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
    assert_eq!(closed(client).await.0, 1001);
}

#[tokio::test]
async fn a_mark_comes_without_credit_unless_events_are_before_it() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    send(client, Some(1), watch(0)).await;
    receive(client).await;
    send(
        client,
        Some(2),
        ClientMessage::Probe {
            watch: Some(1),
            token: 5,
        },
    )
    .await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Progress { token: Some(5), .. })
    ));
    send(client, Some(2), commit(1, "a")).await;
    receive(client).await;
    send(
        client,
        Some(3),
        ClientMessage::Probe {
            watch: Some(1),
            token: 6,
        },
    )
    .await;
    send(client, Some(4), get("a")).await;
    assert!(
        matches!(receive(client).await, (Some(4), _)),
        "no event and no mark before it"
    );
    send(client, Some(1), ClientMessage::Credit { bytes: 1 }).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Changes { .. })
    ));
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Progress { token: Some(6), .. })
    ));
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
async fn a_session_is_resumed_beside_the_heartbeat_and_fences_its_old_socket() {
    let mut old = running(|_| {});
    open(&mut old).await;
    let engine = old.engine.clone();
    engine.hold(Hold::Resumes);
    let mut new = beside(&engine, |config| {
        config.timeouts.heartbeat = Duration::from_millis(50);
    });
    say_resume(&mut new.client, 1, 0, &[]).await;
    let first = new.client.next().await.unwrap().unwrap();
    assert!(
        matches!(first, Message::Ping(_)),
        "{first:?} while it waits"
    );
    engine.hold(Hold::Nothing);
    let welcome = welcomed(&mut new.client).await;
    assert_eq!(welcome.session, SessionId([1; 16]));
    let (code, reason) = closed(&mut old.client).await;
    assert!(code == 4003 && reason.contains("newer"), "{reason}");
    send(&mut new.client, Some(1), commit(1, "a")).await;
    assert!(matches!(
        receive(&mut new.client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
    let mut late = beside(&engine, |_| {});
    say_resume(&mut late.client, 1, 0, &[]).await;
    let (code, reason) = closed(&mut late.client).await;
    assert!(code == 4003 && reason.contains("incarnation 1"), "{reason}");
}

#[tokio::test]
async fn nothing_is_taken_between_hello_and_welcome() {
    let mut old = running(|_| {});
    open(&mut old).await;
    let engine = old.engine.clone();
    engine.hold(Hold::Resumes);
    for (message, id, why) in [
        (get("a"), Some(1), "between Hello and Welcome"),
        (hello(VERSION), None, "Hello was said before"),
    ] {
        let mut new = beside(&engine, |_| {});
        say_resume(&mut new.client, 1, 0, &[]).await;
        send(&mut new.client, id, message).await;
        let (code, reason) = closed(&mut new.client).await;
        assert!(code == 1002 && reason.contains(why), "{code}: {reason}");
    }
    let mut new = beside(&engine, |config| {
        config.timeouts.handshake = Duration::from_millis(100);
    });
    say_resume(&mut new.client, 1, 0, &[]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    engine.hold(Hold::Nothing);
    let welcome = welcomed(&mut new.client).await;
    assert_eq!(welcome.session, SessionId([1; 16]), "however long it takes");
    engine.hold(Hold::Resumes);
    let mut new = beside(&engine, |config| {
        config.timeouts.heartbeat = Duration::from_millis(50);
        config.timeouts.silence = Duration::from_millis(150);
    });
    say_resume(&mut new.client, 2, 0, &[]).await;
    // The library answers pings only when it is polled.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(closed(&mut new.client).await.0, 4001, "but not in silence");
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
async fn a_small_outbox_closes_nobody_who_takes_his_answers() {
    let mut running = running(|config| config.limits.outbox_bytes_max = 64);
    open(&mut running).await;
    let client = &mut running.client;
    for number in 1..=100 {
        let message = commit(number, "a").encode(u32::try_from(number).ok());
        client
            .feed(Message::Binary(message.to_frame()))
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    for _ in 0..100 {
        let (_, ServerMessage::Committed { .. }) = receive(client).await else {
            panic!("not committed")
        };
    }
}

#[tokio::test]
async fn a_close_with_1000_before_welcome_ends_the_session_too() {
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    let mut old = running(|_| {});
    open(&mut old).await;
    let engine = old.engine.clone();
    engine.hold(Hold::Resumes);
    let mut new = beside(&engine, |_| {});
    say_resume(&mut new.client, 1, 0, &[]).await;
    let frame = CloseFrame {
        code: 1000.into(),
        reason: "".into(),
    };
    new.client.close(Some(frame)).await.unwrap();
    while let Some(Ok(_)) = new.client.next().await {}
    engine.hold(Hold::Nothing);
    new.session.await.unwrap();
    let mut again = beside(&engine, |_| {});
    say_resume(&mut again.client, 2, 0, &[]).await;
    assert_ne!(
        welcomed(&mut again.client).await.session,
        SessionId([1; 16])
    );
}

#[tokio::test]
async fn a_close_with_1000_ends_the_session_and_a_lost_socket_does_not() {
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    for (code, stays) in [(1000, false), (1001, true)] {
        let mut running = running(|_| {});
        open(&mut running).await;
        let frame = CloseFrame {
            code: code.into(),
            reason: "".into(),
        };
        running.client.close(Some(frame)).await.unwrap();
        running.session.await.unwrap();
        let mut again = beside(&running.engine, |_| {});
        say_resume(&mut again.client, 1, 0, &[]).await;
        let welcome = welcomed(&mut again.client).await;
        assert_eq!(welcome.session == SessionId([1; 16]), stays, "{code}");
    }
}

#[tokio::test]
async fn what_was_asked_before_a_close_is_answered_before_it_is() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    send(client, Some(1), watch(1 << 20)).await;
    send(client, Some(2), commit(1, "a")).await;
    // It waits for number 2, which never comes.
    send(client, Some(3), commit(3, "b")).await;
    client.close(None).await.unwrap();
    running.engine.hold(Hold::Nothing);
    let mut answered = Vec::new();
    let code = loop {
        match client.next().await.unwrap().unwrap() {
            Message::Binary(frame) => answered.push(Packet::from_frame(frame).unwrap().id),
            Message::Close(Some(frame)) => break u16::from(frame.code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((answered, code), (vec![Some(1), Some(2)], 1000));
    running.session.await.unwrap();
}

#[tokio::test]
async fn a_second_page_of_a_scan_is_refused_while_one_is_on_its_way() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    for (number, key) in (1..).zip(["a", "b", "c"]) {
        send(client, Some(1), commit(number, key)).await;
        receive(client).await;
    }
    let scan = ClientMessage::Scan {
        range: KeyRange::all(),
        options: ScanOptions::default(),
    };
    send(client, Some(1), scan).await;
    let (
        _,
        ServerMessage::Page {
            scan: Some(scan), ..
        },
    ) = receive(client).await
    else {
        panic!("no open scan")
    };
    running.engine.hold(Hold::Reads);
    for id in [2, 3] {
        send(client, Some(id), ClientMessage::ScanNext { scan }).await;
    }
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("not refused")
    };
    assert_eq!(id, Some(3));
    assert!(
        matches!(error, StorageError::InvalidArgument { .. }),
        "{error}"
    );
    running.engine.hold(Hold::Nothing);
    let (
        id,
        ServerMessage::Page {
            scan: Some(scan),
            items,
            ..
        },
    ) = receive(client).await
    else {
        panic!("the scan goes on")
    };
    assert_eq!((id, items[0].key.as_ref()), (Some(2), &b"b"[..]));
    send(client, Some(4), ClientMessage::ScanNext { scan }).await;
    assert!(matches!(
        receive(client).await,
        (Some(4), ServerMessage::Page { .. })
    ));
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

/// A part with these bytes, whatever they are.
fn part(inner: u8, id: Option<u32>, bytes: &[u8]) -> Message {
    let payload = [&[inner, 100, 0][..], bytes].concat().into();
    let packet = Packet {
        kind: storage_protocol::native::kind::PART,
        id,
        payload,
    };
    Message::Binary(packet.to_frame())
}

#[tokio::test]
async fn a_message_in_parts_is_judged_by_its_first() {
    use storage_protocol::native::kind;
    let begun = part(kind::GET, Some(5), b"x");
    let whole = |message: ClientMessage, id| Message::Binary(message.encode(Some(id)).to_frame());
    let number = |number: u8| [number, 0, 0];
    for (why, messages) in [
        ("unknown frame type 2", vec![part(2, Some(1), b"x")]),
        (
            "unknown frame type 19",
            vec![part(kind::VALUES, Some(1), b"x")],
        ),
        ("unknown frame type 35", vec![part(35, Some(1), b"x")]),
        ("unknown frame type 200", vec![part(200, Some(1), b"x")]),
        ("an id is missing", vec![part(kind::GET, None, b"x")]),
        ("do not come in parts", vec![part(kind::HELLO, None, b"x")]),
        ("id 5 is in flight", vec![begun.clone(), whole(get("a"), 5)]),
        (
            "id 5 is in flight",
            vec![begun, part(kind::COMMIT, Some(5), &number(1))],
        ),
        (
            "does not hold its number",
            vec![part(kind::COMMIT, Some(1), &[0x80])],
        ),
        (
            "commit number 1 came before",
            vec![
                part(kind::COMMIT, Some(1), &number(1)),
                whole(commit(1, "a"), 2),
            ],
        ),
        (
            "commit number 0",
            vec![part(kind::COMMIT, Some(1), &number(0))],
        ),
    ] {
        let mut running = running(|_| {});
        open(&mut running).await;
        for message in messages {
            running.client.send(message).await.unwrap();
        }
        let (code, reason) = closed(&mut running.client).await;
        assert_eq!(code, 1002, "{why}");
        assert!(reason.contains(why), "{reason:?} does not say {why:?}");
    }
}

fn large(number: u64, key: &'static str) -> ClientMessage {
    let batch = Batch::new().put(key, vec![7; 200_000]);
    ClientMessage::Commit {
        number,
        options: CommitOptions::default(),
        batch,
    }
}

/// Puts a value of 200,000 bytes and a small one.
async fn fill(running: &mut Running) {
    let client = &mut running.client;
    send(client, Some(1), large(1, "large")).await;
    send(client, Some(2), commit(2, "small")).await;
    for _ in 0..2 {
        receive(client).await;
    }
}

/// The next whole message, put together from its parts, and how many bytes came for it.
async fn receive_parts(
    client: &mut Client,
    reassembler: &mut Reassembler,
) -> (Option<RequestId>, ServerMessage, usize) {
    let mut bytes = 0;
    loop {
        let Message::Binary(frame) = client.next().await.unwrap().unwrap() else {
            continue;
        };
        bytes += frame.len();
        let now = std::time::Instant::now();
        if let Some(packet) = reassembler.accept(frame, now).unwrap() {
            let id = packet.id;
            return (id, ServerMessage::decode(packet).unwrap(), bytes);
        }
    }
}

#[tokio::test]
async fn a_small_answer_overtakes_large_ones_that_wait() {
    let mut running = running(|config| config.limits.outbox_bytes_max = 64 << 10);
    open(&mut running).await;
    fill(&mut running).await;
    let client = &mut running.client;
    for id in 0..20 {
        send(client, Some(id), get("large")).await;
    }
    send(client, Some(99), get("small")).await;
    let mut reassembler = Reassembler::new(256 << 10, 1 << 20);
    let (mut before, mut ids) = (0, Vec::new());
    loop {
        let (id, _, bytes) = receive_parts(client, &mut reassembler).await;
        ids.extend(id);
        if id == Some(99) {
            break;
        }
        before += bytes;
    }
    // What is in the socket and in the buffers above it, and one that had begun.
    assert!(before < 600_000, "{before} bytes came before it");
    while ids.len() < 21 {
        let (id, answer, _) = receive_parts(client, &mut reassembler).await;
        assert!(matches!(answer, ServerMessage::Values { .. }));
        ids.extend(id);
    }
    ids.sort_unstable();
    assert_eq!(ids[..20], (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_read_and_not_taken_is_counted_with_the_outbox() {
    const OUTBOX: usize = 300_000;
    let mut running = running(|config| config.limits.outbox_bytes_max = OUTBOX);
    open(&mut running).await;
    fill(&mut running).await;
    running.engine.hold(Hold::Reads);
    let client = &mut running.client;
    for id in 0..50 {
        send(client, Some(id), get("large")).await;
    }
    // All are read at once, and nobody takes them.
    running.engine.hold(Hold::Nothing);
    let outbox = running.shared.budgets.outbox.clone();
    let mut most = 0;
    for _ in 0..1_000 {
        most = most.max(outbox.used());
        tokio::task::yield_now().await;
    }
    assert!((200_000..OUTBOX + 210_000).contains(&most), "{most} bytes");
    let mut reassembler = Reassembler::new(256 << 10, 1 << 20);
    for _ in 0..50 {
        receive_parts(client, &mut reassembler).await;
        most = most.max(outbox.used());
    }
    assert!(most < OUTBOX + 210_000, "{most} bytes");
}

#[tokio::test]
async fn who_finds_the_others_room_full_waits_for_it() {
    let mut running = running(|config| {
        config.limits.outbox_bytes_total_max = 500_000;
        config.limits.message_bytes_max = 400_000;
    });
    open(&mut running).await;
    fill(&mut running).await;
    let others = running.shared.budgets.outbox.take(400_000).unwrap();
    let client = &mut running.client;
    send(client, Some(1), get("large")).await;
    // A small one does not wait.
    send(client, Some(2), get("small")).await;
    assert_eq!(receive(client).await.0, Some(2));
    drop(others);
    let mut reassembler = Reassembler::new(256 << 10, 1 << 20);
    let (id, answer, _) = receive_parts(client, &mut reassembler).await;
    assert_eq!(id, Some(1));
    assert!(matches!(answer, ServerMessage::Values { .. }));
}

/// What is answered at once, behind the answers that are there.
async fn ping(client: &mut Client, id: RequestId) {
    send(client, Some(id), ClientMessage::ScanClose { scan: 0 }).await;
}

async fn expect_ping(client: &mut Client, id: RequestId) {
    assert_eq!(receive(client).await, (Some(id), ServerMessage::Done));
}

fn removals(number: u64, count: usize) -> ClientMessage {
    let batch = (0..count).fold(Batch::new(), |batch, n| batch.remove(format!("{n:04}")));
    let options = CommitOptions::default();
    ClientMessage::Commit {
        number,
        options,
        batch,
    }
}

#[tokio::test]
async fn a_request_with_too_many_items_is_refused_before_it_waits() {
    let mut running = running(|config| {
        config.limits.keys_per_get_max = 3;
        config.limits.operations_per_commit_max = 3;
    });
    open(&mut running).await;
    running.engine.hold(Hold::Reads);
    let client = &mut running.client;
    let refused = async |client: &mut Client, id| match receive(client).await {
        (answered, ServerMessage::Error(error)) if answered == Some(id) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let keys = vec!["a".into(); 4];
    send(client, Some(1), ClientMessage::Get { keys }).await;
    ping(client, 9).await;
    let reason = refused(client, 1).await;
    assert!(reason.contains("keys_per_get_max is 3, this has 4"));
    expect_ping(client, 9).await;
    // Number 1 is not here yet, so these wait; or would.
    send(client, Some(2), removals(2, 4)).await;
    let checks = (0..4).fold(Batch::new(), |batch, n| batch.check_absent(format!("{n}")));
    let checking = ClientMessage::Commit {
        number: 3,
        options: CommitOptions::default(),
        batch: checks,
    };
    send(client, Some(3), checking).await;
    ping(client, 9).await;
    for id in [2, 3] {
        let reason = refused(client, id).await;
        assert!(reason.contains("operations_per_commit_max is 3, this has 4"));
    }
    expect_ping(client, 9).await;
    // Their numbers are spent.
    for number in [4, 1] {
        send(client, Some(number), removals(number.into(), 3)).await;
    }
    for id in [1, 4] {
        let (answered, answer) = receive(client).await;
        assert!(matches!(answer, ServerMessage::Committed { .. }));
        assert_eq!(answered, Some(id));
    }
}

#[tokio::test]
async fn what_waits_decoded_is_counted_at_what_it_takes() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Reads);
    let in_flight = running.shared.budgets.in_flight.clone();
    let client = &mut running.client;
    let keys = vec![Bytes::new(); 1_000];
    let get = ClientMessage::Get { keys };
    let payload = get.encode(Some(1)).payload.len();
    send(client, Some(1), get).await;
    ping(client, 9).await;
    expect_ping(client, 9).await;
    let keys = 1_000 * size_of::<storage_protocol::Key>();
    assert_eq!(in_flight.used(), payload + keys);
    // Number 1 is missing.
    let commit = removals(2, 100);
    let commit_payload = commit.encode(Some(2)).payload.len();
    send(client, Some(2), commit).await;
    ping(client, 9).await;
    expect_ping(client, 9).await;
    let operations = 100 * size_of::<storage_protocol::Operation>();
    let all = payload + keys + commit_payload + operations;
    assert_eq!(in_flight.used(), all);
    send(client, Some(3), removals(1, 1)).await;
    for _ in 0..2 {
        receive(client).await;
    }
    running.engine.hold(Hold::Nothing);
    receive(client).await;
    assert_eq!(in_flight.used(), 0);
}

#[tokio::test]
async fn one_message_of_many_items_fits_into_the_smallest_bounds() {
    const MESSAGE: usize = 4_000;
    let mut running = running(|config| {
        config.limits.message_bytes_max = MESSAGE;
        config.limits.bytes_in_flight_max = MESSAGE;
        config.limits.bytes_in_flight_total_max = 2 * MESSAGE;
    });
    open(&mut running).await;
    let client = &mut running.client;
    let commit = removals(1, 500);
    let payload = commit.encode(Some(1)).payload.len();
    assert!((3_000..MESSAGE).contains(&payload), "{payload}");
    send(client, Some(1), commit).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
}

#[tokio::test]
async fn a_small_get_does_not_wait_for_the_others_room_though_it_is_the_first() {
    let mut running = running(|config| {
        config.limits.outbox_bytes_total_max = 500_000;
        config.limits.message_bytes_max = 250_000;
    });
    open(&mut running).await;
    fill(&mut running).await;
    let others = running.shared.budgets.outbox.take(500_000).unwrap();
    let client = &mut running.client;
    send(client, Some(1), get("small")).await;
    ping(client, 2).await;
    assert_eq!(receive(client).await.0, Some(1));
    expect_ping(client, 2).await;
    // A large one waits.
    send(client, Some(3), get("large")).await;
    ping(client, 4).await;
    expect_ping(client, 4).await;
    drop(others);
    let mut reassembler = Reassembler::new(256 << 10, 1 << 20);
    let (id, answer, _) = receive_parts(client, &mut reassembler).await;
    assert_eq!(id, Some(3));
    assert!(matches!(answer, ServerMessage::Values { .. }));
}

/// A session whose principal has no room for answers left: other sessions of it have all.
struct Crowded {
    running: Running,
    _another: crate::limits::budget::SessionSlot,
    _held: crate::limits::budget::Permit,
    before: usize,
}

impl Crowded {
    async fn new() -> Self {
        const ALL: usize = 64 << 20;
        let mut running = running(|config| {
            config.limits.outbox_bytes_total_max = ALL;
            config.limits.message_bytes_max = ALL / 2;
        });
        open(&mut running).await;
        let another = running.shared.slots.take("anonymous").unwrap();
        let held = another.budgets().outbox.take(ALL / 2).unwrap();
        let before = running.shared.budgets.outbox.used();
        Self {
            running,
            _another: another,
            _held: held,
            before,
        }
    }

    /// What is counted for the session.
    fn used(&self) -> usize {
        self.running.shared.budgets.outbox.used() - self.before
    }

    /// Whether it was closed as slow.
    fn is_closed(&self) -> bool {
        let metrics = encoded(&self.running.shared.registry);
        metrics.contains("storage_sessions_closed_total{reason=\"slow\"} 1")
    }
}

/// What a session may hold that is counted and not in its outbox: what was handed to its socket.
const IN_THE_SOCKET: usize = 192 << 10;

#[tokio::test]
async fn who_takes_no_small_answers_is_closed_at_little_where_there_is_no_room() {
    let mut crowded = Crowded::new().await;
    let (mut asked, mut most) = (0_u32, 0);
    while !crowded.is_closed() {
        assert!(
            asked < 100_000,
            "{most} bytes are held, and it is not closed"
        );
        for _ in 0..100 {
            let probe = ClientMessage::Probe {
                watch: None,
                token: u64::MAX,
            };
            let message = Message::Binary(probe.encode(Some(asked)).to_frame());
            // Closed meanwhile.
            if crowded.running.client.feed(message).await.is_err() {
                break;
            }
            asked += 1;
        }
        if crowded.running.client.flush().await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
        most = most.max(crowded.used());
    }
    assert!(most < (64 << 10) + IN_THE_SOCKET, "{most} bytes");
}

#[tokio::test]
async fn who_takes_its_small_answers_is_not_closed_where_there_is_no_room() {
    let mut crowded = Crowded::new().await;
    let client = &mut crowded.running.client;
    for round in 0..20_u32 {
        let ids = 1_000 * round..1_000 * (round + 1);
        for id in ids.clone() {
            let ping = ClientMessage::ScanClose { scan: 0 }.encode(Some(id));
            let message = Message::Binary(ping.to_frame());
            client.feed(message).await.unwrap();
        }
        client.flush().await.unwrap();
        for id in ids {
            expect_ping(client, id).await;
        }
    }
}

#[tokio::test]
async fn a_late_part_of_a_refused_message_is_nobody_elses() {
    use storage_protocol::native::{Class, Outbox};
    let mut running = running(|config| {
        config.limits.partial_messages_bytes_max = 200_000;
        config.limits.message_bytes_max = 100_000;
    });
    open(&mut running).await;
    let partial = running.shared.budgets.partial.clone();
    let client = &mut running.client;
    let frames = |message: ClientMessage| {
        let mut outbox = Outbox::new();
        outbox.push(Class::Answer, message.encode(Some(1)));
        std::iter::from_fn(|| outbox.pop()).collect::<Vec<_>>()
    };
    let batch = Batch::new().put("late", vec![7; 80_000]);
    let commit_parts = frames(ClientMessage::Commit {
        number: 1,
        options: CommitOptions::default(),
        batch,
    });
    let keys = vec![vec![7; 80_000].into()];
    let get_parts = frames(ClientMessage::Get { keys });
    let [first, late] = &commit_parts[..] else {
        panic!("{} parts", commit_parts.len())
    };
    let say = async |client: &mut Client, frame: &Bytes| {
        client.send(Message::Binary(frame.clone())).await.unwrap();
    };
    // There is no room for the first part of the commit.
    let mut others = partial.count();
    others.resize(200_000);
    say(client, first).await;
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("not refused")
    };
    assert_eq!(id, Some(1));
    assert!(error.to_string().contains("partial_messages"), "{error}");
    // The id is free. While the get under it is on its way, the rest of the commit comes, and there is no room again.
    others.resize(0);
    say(client, &get_parts[0]).await;
    ping(client, 2).await;
    expect_ping(client, 2).await;
    others.resize(200_000);
    say(client, late).await;
    ping(client, 2).await;
    expect_ping(client, 2).await;
    others.resize(0);
    say(client, &get_parts[1]).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Values { .. })
    ));
    // Number 1 was spent once.
    send(client, Some(1), commit(2, "a")).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
}

#[tokio::test]
async fn an_unfinished_frame_is_counted_and_ends() {
    let mut running = running(|config| {
        config.timeouts.partial_message = Duration::from_millis(200);
    });
    open(&mut running).await;
    let stream = running.client.get_mut();
    // A masked binary frame of 200,000 bytes, of which 100,000 come.
    let mut bytes = vec![0x82, 0xff, 0, 0, 0, 0, 0, 3, 13, 64, 0, 0, 0, 0];
    bytes.resize(100_000, 7);
    tokio::io::AsyncWriteExt::write_all(stream, &bytes)
        .await
        .unwrap();
    let partial = &running.shared.budgets.partial;
    while partial.used() < 90_000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (code, reason) = closed(&mut running.client).await;
    assert_eq!(code, 4001);
    assert!(reason.contains("stands unfinished at"), "{reason}");
    drop(running.client);
    running.session.await.unwrap();
    assert_eq!(running.shared.budgets.partial.used(), 0);
}

/// A message that takes longer than the silence, and a part of another that takes longer than any may rest.
#[tokio::test]
async fn a_slow_link_is_no_silence() {
    let mut running = running(|config| {
        config.timeouts.heartbeat = Duration::from_millis(100);
        config.timeouts.silence = Duration::from_millis(400);
        config.timeouts.partial_message = Duration::from_millis(300);
    });
    open(&mut running).await;
    let client = &mut running.client;
    let packet = large(1, "slow").encode(Some(1));
    let mut outbox = storage_protocol::native::Outbox::new();
    outbox.push(storage_protocol::native::Class::Answer, packet);
    while let Some(frame) = outbox.pop() {
        // The WebSocket frame by hand, so that it can come in pieces: masked with zeros.
        let length = u16::try_from(frame.len()).ok();
        let mut bytes = match length {
            Some(length) => {
                let [high, low] = length.to_be_bytes();
                vec![0x82, 0xfe, high, low, 0, 0, 0, 0]
            }
            None => {
                let length = (frame.len() as u64).to_be_bytes();
                [&[0x82, 0xff][..], &length, &[0; 4]].concat()
            }
        };
        bytes.extend_from_slice(&frame);
        for piece in bytes.chunks(bytes.len().div_ceil(10)) {
            let stream = client.get_mut();
            tokio::io::AsyncWriteExt::write_all(stream, piece)
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
}

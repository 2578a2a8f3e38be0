//! A native session over an in-memory stream, against the stub engine.

mod watching;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use storage_protocol::native::{
    ClientMessage, Hello, Packet, RequestId, ServerMessage, VERSION, WatchRequest, Welcome,
};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Keyspace, ScanOptions, SessionId, StorageError, StorageExt,
    WatchMode, WatchStart,
};
use tokio_tungstenite::tungstenite::Message;

use super::Native;
use crate::config::ServerConfig;
use crate::engine::Engine;
use crate::testing::{Client, Hold, MemoryEngine, Running, start};

fn running(change: impl FnOnce(&mut ServerConfig)) -> Running {
    start(MemoryEngine::new(), change, |shared, peer| {
        Native::new(shared, peer)
    })
}

/// Another connection to an engine.
fn beside(engine: &Arc<MemoryEngine>, change: impl FnOnce(&mut ServerConfig)) -> Running {
    start(engine.clone(), change, |shared, peer| {
        Native::new(shared, peer)
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
        .open_session("server", &Keyspace::new("test").unwrap());
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
    let mut running = running(|config| config.limits.announced.requests_in_flight_max = 2);
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
    assert_eq!(running.shared.partial.used(), 0);
    send(client, Some(1), commit(2, "small")).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
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
        config.limits.announced.requests_in_flight_max = 1;
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
    let mut answered = Vec::new();
    for _ in 0..3 {
        let (id, ServerMessage::Committed { .. }) = receive(client).await else {
            panic!("not answered with what it did")
        };
        answered.extend(id);
    }
    answered.sort_unstable();
    assert_eq!(answered, [3, 4, 5]);
    assert_eq!(closed(client).await.0, 1001);
    let inside = engine.open_session("server", &Keyspace::new("test").unwrap());
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

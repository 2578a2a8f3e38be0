//! An mwDB connection over an in-memory stream, against the stub engine.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use prometheus_client::registry::Registry;
use storage_protocol::{Keyspace, StorageExt};
use tokio_tungstenite::tungstenite::Message;

use super::{Common, Mwdb, MwdbGateway};
use crate::auth::Identity;
use crate::config::ServerConfig;
use crate::engine::Engine;
use crate::gateway::Gateway;
use crate::metrics::encoded;
use crate::shared::Shared;
use crate::testing::{Client, Hold, KEYSPACE, MemoryEngine, Running, server, start, start_in};
use crate::ws::Peer;

/// A connection of a gateway that has others.
fn of(common: &Arc<Common>) -> impl FnOnce(&Arc<Shared>, &Peer) -> Mwdb {
    let keyspace = Keyspace::new(KEYSPACE).unwrap();
    move |shared, peer| Mwdb::new(shared, peer, &peer.identity, &keyspace, common)
}

fn alone(shared: &Arc<Shared>, peer: &Peer) -> Mwdb {
    of(&Arc::default())(shared, peer)
}

fn running() -> Running {
    start(MemoryEngine::new(), |_| {}, alone)
}

async fn send(client: &mut Client, message: &'static str) {
    client
        .send(Message::Binary(Bytes::from_static(message.as_bytes())))
        .await
        .unwrap();
}

async fn receive(client: &mut Client) -> String {
    match client.next().await.unwrap().unwrap() {
        Message::Binary(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn send_bytes(client: &mut Client, message: Vec<u8>) {
    client.send(Message::Binary(message.into())).await.unwrap();
}

/// What is answered to a message of about so many bytes that asks for keys that are not there.
fn long_get(bytes: usize) -> (Vec<u8>, String) {
    let keys = bytes / 90;
    let request = format!("{}\x00C", format!("{}#", "k".repeat(89)).repeat(keys));
    let answer = format!("{}\x01C", "#".repeat(keys));
    (request.into_bytes(), answer)
}

/// With room for two messages of one principal in flight, and for two that wait.
fn room_for_two(config: &mut ServerConfig) {
    config.limits.message_bytes_max = 100_000;
    config.limits.bytes_in_flight_total_max = 500_000;
    config.limits.partial_messages_bytes_max = 400_000;
}

async fn silence(client: &mut Client) {
    let heard = tokio::time::timeout(Duration::from_millis(100), client.next()).await;
    assert!(heard.is_err(), "{heard:?}");
}

/// Nothing comes, or the session is closed for want of room.
async fn silence_or_close(client: &mut Client) {
    match tokio::time::timeout(Duration::from_millis(100), client.next()).await {
        Err(_) => {}
        Ok(Some(Ok(Message::Close(Some(frame))))) => assert_eq!(u16::from(frame.code), 1013),
        Ok(heard) => panic!("{heard:?}"),
    }
}

#[tokio::test]
async fn what_was_put_is_got() {
    let mut running = running();
    let client = &mut running.client;
    send(client, "a#1#b#2#a#3#c#\x02C").await;
    assert_eq!(receive(client).await, "\x01#\x03C");
    send(client, "b#a##x#c#\x00E").await;
    assert_eq!(receive(client).await, "2#3####\x01E");
    send(client, "a#a##\x03G").await;
    assert_eq!(receive(client).await, "\x01#\x04G");
    send(client, "a#\x00").await;
    assert_eq!(receive(client).await, "#\x01");
}

#[tokio::test]
async fn reads_see_the_writes_before_them() {
    let mut running = running();
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    send(client, "a#1#\x02C").await;
    send(client, "a#\x00E").await;
    silence(client).await;
    running.engine.hold(Hold::Nothing);
    assert_eq!(receive(client).await, "\x01#\x03C");
    assert_eq!(receive(client).await, "1#\x01E");
}

#[tokio::test]
async fn malformed_messages_are_passed_over() {
    let gateway = MwdbGateway::default();
    let mut running = start(MemoryEngine::new(), |_| {}, of(&gateway.0));
    let client = &mut running.client;
    for message in ["", "#", "k##", "k#\x09A", "k#v#\x05"] {
        send(client, message).await;
    }
    client.send(Message::text("hi")).await.unwrap();
    send(client, "a#\x00C").await;
    assert_eq!(receive(client).await, "#\x01C");
    let mut registry = Registry::default();
    gateway.register_metrics(&mut registry);
    let metrics = encoded(&registry);
    assert!(
        metrics.contains("storage_mwdb_messages_ignored_total 6\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn prefixes_are_leased_and_given_back() {
    let engine = MemoryEngine::new();
    let session = |engine: &Arc<MemoryEngine>| start(engine.clone(), |_| {}, alone);
    let (mut one, mut two) = (session(&engine), session(&engine));
    send(&mut one.client, "\x06A").await;
    assert_eq!(receive(&mut one.client).await, "A#\x07A");
    send(&mut two.client, "#\x06A").await;
    assert_eq!(receive(&mut two.client).await, "C#\x07A");
    send(&mut one.client, "\x06C").await;
    assert_eq!(
        receive(&mut one.client).await,
        "A#\x07C",
        "the same when asked twice"
    );
    one.client.close(None).await.unwrap();
    assert!(matches!(
        one.client.next().await,
        Some(Ok(Message::Close(_)))
    ));
    one.session.await.unwrap();
    let mut three = session(&engine);
    send(&mut three.client, "\x06A").await;
    assert_eq!(receive(&mut three.client).await, "A#\x07A", "free again");
}

#[tokio::test]
async fn pushes_go_to_others_behind_the_prefix() {
    let mut running = running();
    let inside = running
        .engine
        .open_session("server", &Keyspace::new(KEYSPACE).unwrap())
        .storage();
    let client = &mut running.client;
    send(client, "x#\x00C").await;
    receive(client).await;
    running.engine.hold(Hold::Commits);
    // The prefix cannot be reserved yet, so its answer and the pushes behind it are held back.
    send(client, "\x06E").await;
    inside.put("early".into(), "e".into()).await.unwrap();
    silence(client).await;
    running.engine.hold(Hold::Nothing);
    assert_eq!(receive(client).await, "A#\x07E");
    assert_eq!(receive(client).await, "early#e#\x05");
    let batch = storage_protocol::Batch::new()
        .put("b", "2")
        .remove("x")
        .put("a", "1");
    storage_protocol::Storage::commit(&inside, batch, Default::default())
        .await
        .unwrap();
    assert_eq!(receive(client).await, "b#2#a#1#\x05");
    send(client, "own#1#\x02C").await;
    assert_eq!(receive(client).await, "\x01#\x03C");
    silence(client).await;
    inside.remove("a".into()).await.unwrap();
    silence(client).await;
}

#[tokio::test]
async fn no_push_while_a_request_with_id_zero_is_unanswered() {
    let mut running = running();
    let inside = running
        .engine
        .open_session("server", &Keyspace::new(KEYSPACE).unwrap())
        .storage();
    let client = &mut running.client;
    send(client, "\x06C").await;
    receive(client).await;
    running.engine.hold(Hold::Commits);
    send(client, "x#\x03A").await;
    inside.put("k".into(), "v".into()).await.unwrap();
    silence(client).await;
    running.engine.hold(Hold::Nothing);
    assert_eq!(receive(client).await, "\x01#\x04A");
    assert_eq!(receive(client).await, "k#v#\x05");
}

#[tokio::test]
async fn an_own_put_is_not_pushed_even_if_its_event_comes_before_its_answer() {
    let mut running = running();
    let inside = running
        .engine
        .open_session("server", &Keyspace::new(KEYSPACE).unwrap())
        .storage();
    let client = &mut running.client;
    send(client, "\x06C").await;
    receive(client).await;
    running.engine.hold(Hold::Answers);
    send(client, "own#1#\x02E").await;
    silence(client).await;
    inside.put("k".into(), "v".into()).await.unwrap();
    silence(client).await;
    running.engine.hold(Hold::Nothing);
    assert_eq!(receive(client).await, "\x01#\x03E");
    assert_eq!(receive(client).await, "k#v#\x05");
    silence(client).await;
}

#[tokio::test]
async fn what_was_asked_before_a_close_is_answered_before_it_is() {
    let mut running = running();
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    send(client, "a#1#\x02C").await;
    send(client, "a#\x00E").await;
    client.close(None).await.unwrap();
    running.engine.hold(Hold::Nothing);
    assert_eq!(receive(client).await, "\x01#\x03C");
    assert_eq!(receive(client).await, "1#\x01E");
    match client.next().await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1000),
        other => panic!("{other:?}"),
    }
    assert!(client.next().await.is_none());
    running.session.await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_answered_does_not_hold_up_a_close_for_ever() {
    let short = |config: &mut ServerConfig| config.timeouts.drain = Duration::from_millis(50);
    let mut running = start(MemoryEngine::new(), short, alone);
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    send(client, "a#1#\x02C").await;
    client.close(None).await.unwrap();
    assert!(matches!(client.next().await, Some(Ok(Message::Close(_)))));
    running.engine.hold(Hold::Nothing);
    running.session.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_we_do_not_read_is_not_silent() {
    let mut running = start(
        MemoryEngine::new(),
        |config| {
            config.timeouts.heartbeat = Duration::from_millis(50);
            config.timeouts.silence = Duration::from_millis(150);
            // One request fills it, and the socket is not read.
            config.limits.bytes_in_flight_total_max = 256;
        },
        alone,
    );
    running.engine.hold(Hold::Commits);
    send(&mut running.client, "a#1#\x02C").await;
    // Meanwhile its pings wait unread, or it sends none: in either case it is we who do not listen.
    tokio::time::sleep(Duration::from_millis(500)).await;
    running.engine.hold(Hold::Nothing);
    let answer = loop {
        match running.client.next().await.unwrap().unwrap() {
            Message::Ping(_) => {}
            other => break other,
        }
    };
    assert_eq!(answer, Message::Binary(Bytes::from_static(b"\x01#\x03C")));
}

#[tokio::test]
async fn answers_that_are_read_and_not_taken_are_counted() {
    const OUTBOX: usize = 300_000;
    const ANSWER: usize = 200_000;
    let mut running = start(
        MemoryEngine::new(),
        |config| config.limits.outbox_bytes_max = OUTBOX,
        alone,
    );
    let inside = running
        .engine
        .open_session("server", &Keyspace::new(KEYSPACE).unwrap())
        .storage();
    inside
        .put("large".into(), vec![b'v'; ANSWER].into())
        .await
        .unwrap();
    for _ in 0..50 {
        send(&mut running.client, "large#\x00C").await;
    }
    let outbox = running.shared.budgets.outbox.clone();
    let mut most = 0;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        most = most.max(outbox.used());
    }
    for _ in 0..50 {
        assert!(receive(&mut running.client).await.len() > ANSWER);
        most = most.max(outbox.used());
    }
    // The bound and one answer; and one that goes from the one to the other while it is encoded.
    assert!(most <= OUTBOX + 2 * ANSWER + 10_000, "{most} bytes");
    assert!(most >= ANSWER);
}

#[tokio::test]
async fn answers_to_prefix_that_are_not_taken_are_bounded_and_all_come() {
    const OUTBOX: usize = 100_000;
    const ID: usize = 10_000;
    const QUESTIONS: usize = 200;
    let mut running = start(
        MemoryEngine::new(),
        |config| config.limits.outbox_bytes_max = OUTBOX,
        alone,
    );
    let (outbox, in_flight) = {
        let budgets = &running.shared.budgets;
        (budgets.outbox.clone(), budgets.in_flight.clone())
    };
    let client = &mut running.client;
    send(client, "\x06A").await;
    receive(client).await;
    // An id may be as long as a message, and is echoed.
    let id = |n: usize| format!("{n:0ID$}");
    let mut most = 0;
    for n in 0..QUESTIONS {
        send_bytes(client, format!("\x06{}", id(n)).into_bytes()).await;
        most = most.max(outbox.used());
    }
    // What is not answered yet counts as asked: all but what is on its way, 64 KiB in either direction.
    assert!(outbox.used() + in_flight.used() > QUESTIONS * ID - 200_000);
    for n in 0..QUESTIONS {
        most = most.max(outbox.used());
        assert_eq!(receive(client).await, format!("A#\x07{}", id(n)));
    }
    // The bound and one answer, and what the WebSocket library collects.
    assert!(most <= OUTBOX + 2 * (ID + 3) + 64 * 1024, "{most} bytes");
    assert_eq!(in_flight.used(), 0);
}

#[tokio::test]
async fn questions_for_a_prefix_that_cannot_be_given_are_counted_by_their_ids() {
    const LEAST: usize = 256;
    let engine = MemoryEngine::new();
    engine.hold(Hold::Commits);
    let small = |config: &mut ServerConfig| config.limits.bytes_in_flight_total_max = 3 * LEAST;
    let mut running = start(engine.clone(), small, alone);
    let in_flight = running.shared.budgets.in_flight.clone();
    let client = &mut running.client;
    // A payload is not kept, however long.
    let message = format!("{}#\x06A", "x".repeat(LEAST * 2));
    send_bytes(client, message.into_bytes()).await;
    silence(client).await;
    assert_eq!(in_flight.used(), LEAST);
    for _ in 0..2_000 {
        send(client, "\x06C").await;
    }
    silence(client).await;
    assert_eq!(in_flight.used(), 3 * LEAST);
    engine.hold(Hold::Nothing);
    assert_eq!(receive(client).await, "A#\x07A");
    for _ in 0..2_000 {
        assert_eq!(receive(client).await, "A#\x07C");
    }
    assert_eq!(in_flight.used(), 0);
}

#[tokio::test]
async fn a_principal_that_queues_all_it_can_leaves_the_others_their_half() {
    const SESSIONS: usize = 6;
    /// Of its keys, decoded.
    const LIST: usize = 1_000 * size_of::<Bytes>();
    let engine = MemoryEngine::new();
    engine.hold(Hold::Reads);
    let shared = server(&engine, room_for_two);
    let (request, answer) = long_get(90_000);
    let (common, mut sessions) = (Arc::default(), Vec::new());
    for _ in 0..SESSIONS {
        let identity = Identity::anonymous();
        let mut running = start_in(shared.clone(), engine.clone(), identity, of(&common));
        send_bytes(&mut running.client, request.clone()).await;
        silence_or_close(&mut running.client).await;
        sessions.push(running);
    }
    let (in_flight, partial) = (&shared.budgets.in_flight, &shared.budgets.partial);
    assert_eq!(in_flight.used(), 2 * (request.len() + LIST));
    assert_eq!(partial.used(), 2 * request.len());
    let other = shared.slots.take("other").unwrap();
    other.budgets().in_flight.take(200_000).unwrap();
    engine.hold(Hold::Nothing);
    for (n, mut running) in sessions.into_iter().enumerate() {
        if n < 4 {
            assert_eq!(receive(&mut running.client).await, answer, "{n}");
        } else {
            drop(running.client);
            running.session.await.unwrap();
        }
    }
    assert_eq!((in_flight.used(), partial.used()), (0, 0));
}

#[tokio::test]
async fn a_request_of_short_parts_counts_what_the_list_of_them_takes() {
    let engine = MemoryEngine::new();
    engine.hold(Hold::Reads);
    let mut running = start(engine.clone(), |_| {}, alone);
    let in_flight = running.shared.budgets.in_flight.clone();
    let request = format!("{}\x00C", "k#".repeat(10_000));
    let bytes = request.len() + 10_000 * size_of::<Bytes>();
    send_bytes(&mut running.client, request.into_bytes()).await;
    silence(&mut running.client).await;
    assert_eq!(in_flight.used(), bytes);
}

#[tokio::test]
async fn who_is_alone_is_never_closed_for_want_of_room() {
    let engine = MemoryEngine::new();
    engine.hold(Hold::Reads);
    // Half of it is one message.
    let tight = |config: &mut ServerConfig| {
        room_for_two(config);
        config.limits.bytes_in_flight_total_max = 250_000;
        config.limits.partial_messages_bytes_max = 200_000;
    };
    let running = start(engine.clone(), tight, alone);
    let in_flight = running.shared.budgets.in_flight.clone();
    let (request, answer) = long_get(90_000);
    let (mut write, mut read) = running.client.split();
    let writing = tokio::spawn(async move {
        for _ in 0..5 {
            write
                .send(Message::Binary(b"a#\x00A".as_slice().into()))
                .await
                .unwrap();
            write
                .send(Message::Binary(request.clone().into()))
                .await
                .unwrap();
        }
    });
    let heard = tokio::time::timeout(Duration::from_millis(200), read.next()).await;
    assert!(heard.is_err(), "{heard:?}");
    assert!(in_flight.used() <= 125_000);
    engine.hold(Hold::Nothing);
    let mut answers = Vec::new();
    for _ in 0..10 {
        let message = read.next().await.unwrap().unwrap();
        answers.push(message.into_text().unwrap().to_string());
    }
    // Reads beside reads are answered in any order.
    answers.sort_by_key(String::len);
    let expected = [vec!["#\x01A".to_owned(); 5], vec![answer; 5]];
    assert_eq!(answers, expected.concat());
    writing.await.unwrap();
    drop(read);
    running.session.await.unwrap();
    assert_eq!(in_flight.used(), 0);
}

#[tokio::test]
async fn a_save_that_many_are_to_be_pushed_counts_once() {
    const SESSIONS: usize = 17;
    const PAIRS: usize = 64;
    const VALUE: usize = 500_000;
    let engine = MemoryEngine::new();
    let shared = server(&engine, |config| {
        // None is closed for what it did not take yet.
        config.limits.outbox_bytes_max = 64 << 20;
    });
    let (common, mut sessions) = (Arc::default(), Vec::new());
    for _ in 0..SESSIONS {
        let identity = Identity::anonymous();
        let mut running = start_in(shared.clone(), engine.clone(), identity, of(&common));
        send(&mut running.client, "\x06C").await;
        receive(&mut running.client).await;
        sessions.push(running);
    }
    let inside = engine
        .open_session("server", &Keyspace::new("test").unwrap())
        .storage();
    let value = Bytes::from(vec![b'v'; VALUE]);
    let put = |batch: storage_protocol::Batch, n: usize| batch.put(format!("{n}"), value.clone());
    let batch = (0..PAIRS).fold(storage_protocol::Batch::new(), put);
    storage_protocol::Storage::commit(&inside, batch, Default::default())
        .await
        .unwrap();
    // Each has it, and took some of it.
    let mut pushed = Vec::new();
    for running in &mut sessions {
        pushed.push(receive(&mut running.client).await.matches('#').count() / 2);
    }
    let outbox = &shared.budgets.outbox;
    // Beside it each has a message in the WebSocket library, and one that goes there next.
    let (save, each) = (PAIRS * VALUE, 2 << 20);
    assert!(outbox.used() >= save, "{}", outbox.used());
    assert!(outbox.used() < save + SESSIONS * each, "{}", outbox.used());
    for (running, mut pairs) in sessions.iter_mut().zip(pushed) {
        while pairs < PAIRS {
            pairs += receive(&mut running.client).await.matches('#').count() / 2;
        }
        assert_eq!(pairs, PAIRS);
    }
    drop(sessions);
    while outbox.used() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_push_waits_for_one_before_it_while_nobody_has_room() {
    let mut running = running();
    let inside = running
        .engine
        .open_session("server", &Keyspace::new(KEYSPACE).unwrap())
        .storage();
    let client = &mut running.client;
    send(client, "\x06C").await;
    receive(client).await;
    let outbox = running.shared.budgets.outbox.clone();
    let mut others = outbox.count();
    others.resize(usize::MAX / 2);
    running.engine.hold(Hold::Commits);
    // While it is unanswered no push goes out.
    send(client, "x#\x03A").await;
    silence(client).await;
    for key in ["one", "two", "three"] {
        inside.put(key.into(), "v".into()).await.unwrap();
    }
    silence(client).await;
    let one = outbox.used() - others.amount();
    others.resize(0);
    running.engine.hold(Hold::Nothing);
    assert_eq!(receive(client).await, "\x01#\x04A");
    for key in ["one", "two", "three"] {
        assert_eq!(receive(client).await, format!("{key}#v#\x05"));
    }
    assert!((1..600).contains(&one), "{one} bytes for one commit");
}

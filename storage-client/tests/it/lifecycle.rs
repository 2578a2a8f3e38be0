//! The end of a connection: silence, misbehaviour, closing.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use futures_util::future::join;
use storage_client::ConnectionState;
use storage_protocol::native::{ClientMessage, Packet, ServerMessage, kind};
use storage_protocol::{Outcome, Revision, StorageError, StorageExt};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::fake::{PATIENCE, connect, connect_with, entry, position, values, welcome};

#[tokio::test]
async fn a_silent_server_is_left_in_the_announced_time() {
    let mut hasty = welcome();
    hasty.heartbeat = Duration::from_millis(100);
    hasty.silence = Duration::from_millis(400);
    let (storage, mut peer) = connect_with(hasty, |options| options).await;
    // The server does not read, so the client's pings are not answered.
    let start = Instant::now();
    let error = tokio::time::timeout(PATIENCE, storage.put("k".into(), "v".into()));
    let error = error.await.unwrap().unwrap_err();
    assert!(
        start.elapsed() >= Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(error.to_string().contains("silent for 400ms"), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(u16::from(peer.closed().await.unwrap().code), 4001);
}

#[tokio::test]
async fn a_server_that_answers_pings_is_kept() {
    let mut hasty = welcome();
    hasty.heartbeat = Duration::from_millis(50);
    hasty.silence = Duration::from_millis(600);
    let (storage, mut peer) = connect_with(hasty, |options| options).await;
    let put = storage.put("k".into(), "v".into());
    let server = async {
        let (id, _) = peer.receive().await;
        // Only pings come, and reading answers them.
        let more = tokio::time::timeout(Duration::from_millis(1_500), peer.receive());
        assert!(more.await.is_err());
        let revision = Revision(101);
        peer.send(id, ServerMessage::Committed { revision }).await;
    };
    assert_eq!(join(put, server).await.0.unwrap(), position(101));
}

/// Sends the client something while a get is in flight; gives the get's error and the client's close code.
async fn misbehave(message: Message) -> (StorageError, u16) {
    let (storage, mut peer) = connect().await;
    let server = async {
        peer.receive().await;
        peer.ws.send(message).await.unwrap();
        u16::from(peer.closed().await.unwrap().code)
    };
    let (result, code) = join(storage.get_one("k".into()), server).await;
    let later = storage.get_one("k".into()).await.unwrap_err();
    assert!(matches!(later, StorageError::Closed { .. }), "{later:?}");
    (result.unwrap_err(), code)
}

fn frame(message: &ServerMessage, id: Option<u32>) -> Message {
    Message::Binary(message.encode(id).to_frame())
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_left_with_a_code() {
    let packet = |kind, id, payload: &'static [u8]| {
        let payload = Bytes::from_static(payload);
        Message::Binary(Packet { kind, id, payload }.to_frame())
    };
    let done = ServerMessage::Done;
    for (what, message, code) in [
        ("text", Message::text("hello"), 1003),
        (
            "no separator",
            Message::Binary(Bytes::from_static(b"xyz")),
            1002,
        ),
        ("unknown type", packet(99, Some(0), b""), 1002),
        (
            "garbage payload",
            packet(kind::VALUES, Some(0), &[0xff; 4]),
            1002,
        ),
        (
            "a client's message",
            packet(kind::CANCEL, Some(0), b""),
            1002,
        ),
        ("wrong answer", frame(&done, Some(0)), 1002),
        (
            "wrong number of values",
            frame(&values([None, None]), Some(0)),
            1002,
        ),
        ("an id never asked for", frame(&done, Some(77)), 1002),
        (
            "an event never asked for",
            frame(&ServerMessage::Reset, Some(77)),
            1002,
        ),
        (
            "second Welcome",
            frame(&ServerMessage::Welcome(welcome()), None),
            1002,
        ),
        (
            "long frame",
            Message::Binary(vec![0; 300 * 1024].into()),
            1009,
        ),
    ] {
        let (error, closed_with) = misbehave(message).await;
        assert!(
            matches!(error, StorageError::PeerMisbehaved { .. }),
            "{what}: {error:?}"
        );
        assert_eq!(error.outcome(), Outcome::NotExecuted, "{what}");
        assert_eq!(closed_with, code, "{what}: {error}");
    }
}

#[tokio::test]
async fn the_servers_close_code_and_reason_are_told() {
    let (storage, mut peer) = connect().await;
    let server = async {
        peer.receive().await;
        let frame = CloseFrame {
            code: 1008.into(),
            reason: "revoked".into(),
        };
        peer.ws.send(Message::Close(Some(frame))).await.unwrap();
    };
    let (result, ()) = join(storage.get_one("k".into()), server).await;
    let text = result.unwrap_err().to_string();
    assert!(text.contains("1008") && text.contains("revoked"), "{text}");
    let state = storage.state().borrow().clone();
    assert!(
        matches!(&state, ConnectionState::Closed { why } if why.contains("revoked")),
        "{state:?}"
    );
}

#[tokio::test]
async fn calls_go_on_after_go_away() {
    let (storage, mut peer) = connect().await;
    let goes = ServerMessage::GoAway {
        retry_after: Duration::from_secs(3),
        reason: "restart".into(),
    };
    peer.send_as(None, goes).await;
    let server = async {
        let (id, _) = peer.receive().await;
        peer.send(id, values([Some(entry("v"))])).await;
    };
    let (found, ()) = join(storage.get_one("k".into()), server).await;
    assert!(found.unwrap().is_some());
    let draining = ConnectionState::Draining {
        reason: "restart".into(),
        retry_after: Duration::from_secs(3),
    };
    assert_eq!(*storage.state().borrow(), draining);
}

#[tokio::test]
async fn closing_waits_for_calls_in_flight_and_takes_no_more() {
    let (storage, mut peer) = connect().await;
    let put = storage.put("k".into(), "v".into());
    let server = async {
        let (id, _) = peer.receive().await;
        let closer = storage.clone();
        let closing = tokio::spawn(async move { closer.close().await });
        // From now on nothing is taken; what is in flight is answered.
        let refused = loop {
            let get = storage.get_one("a".into());
            match tokio::time::timeout(Duration::from_millis(20), get).await {
                Ok(result) => break result.unwrap_err(),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert!(refused.to_string().contains("closing"), "{refused}");
        assert!(!closing.is_finished());
        let revision = Revision(101);
        peer.send(id, ServerMessage::Committed { revision }).await;
        let code = u16::from(peer.closed().await.unwrap().code);
        closing.await.unwrap();
        code
    };
    let (put, code) = join(put, server).await;
    assert_eq!(put.unwrap(), position(101));
    assert_eq!(code, 1000);
    // Closing twice is fine.
    storage.close().await;
    assert!(matches!(
        &*storage.state().borrow(),
        ConnectionState::Closed { .. }
    ));
}

#[tokio::test]
async fn closing_does_not_wait_for_ever() {
    let short = Duration::from_millis(200);
    let (storage, mut peer) = connect_with(welcome(), |options| options.close_timeout(short)).await;
    let put = storage.put("k".into(), "v".into());
    let client = async {
        let (_, message) = peer.receive().await;
        assert!(matches!(message, ClientMessage::Commit { .. }));
        // The server neither answers nor closes.
        tokio::time::timeout(PATIENCE, storage.close())
            .await
            .unwrap();
    };
    let (put, ()) = join(put, client).await;
    assert_eq!(put.unwrap_err().outcome(), Outcome::Unknown);
}

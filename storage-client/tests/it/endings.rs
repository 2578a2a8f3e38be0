//! What ends a connection for good, and what it says then: close codes that say not to repeat the same, another process
//! that holds the session, a server that breaks the protocol.

use std::time::Duration;

use futures_util::SinkExt;
use futures_util::future::join;
use storage_client::{ConnectionState, RemoteStorage};
use storage_protocol::native::{ClientMessage, ServerMessage};
use storage_protocol::{
    Continuity, KeyRange, Outcome, Position, Revision, ScanOptions, SessionId, Storage,
    StorageError, StorageExt, Watch, WatchEvent, WatchOptions,
};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::fake::{EPOCH, PATIENCE, Peer, Server, entry, values, welcome};

async fn close(peer: &mut Peer, code: u16, reason: &'static str) {
    let frame = CloseFrame {
        code: code.into(),
        reason: reason.into(),
    };
    // The client may be quicker to go.
    let _ = peer.ws.send(Message::Close(Some(frame))).await;
}

/// Waits for the end, and tells why it was.
async fn ended(storage: &RemoteStorage) -> String {
    let mut state = storage.state();
    let is_over = |state: &ConnectionState| matches!(state, ConnectionState::Closed { .. });
    let over = tokio::time::timeout(PATIENCE, state.wait_for(is_over)).await;
    match &*over.expect("it goes on").unwrap() {
        ConnectionState::Closed { why } => why.clone(),
        other => panic!("{other:?}"),
    }
}

async fn watching(storage: &RemoteStorage, peer: &mut Peer) -> Watch {
    let opened = storage.watch(KeyRange::all(), WatchOptions::default());
    let script = async {
        let (id, _) = peer.receive().await;
        let revision = Revision(100);
        peer.send(id, ServerMessage::Watching { revision }).await;
    };
    join(opened, script).await.0.unwrap()
}

/// What such a watch says last: it is where it began, and so is the server.
const LOST: WatchEvent = {
    let at = Position {
        epoch: EPOCH,
        revision: Revision(100),
    };
    WatchEvent::Continuity(Continuity::Lost { from: at, to: at })
};

#[tokio::test]
async fn a_reconnect_counts_its_incarnation_up_and_never_takes_the_clock() {
    // A process that resumes the session takes the clock; whoever merely reconnects must come back below it.
    let (server, storage, mut peer) = Server::connect(|options| options).await;
    for expected in 1..4 {
        drop(peer);
        let hello;
        (peer, hello) = server.accept(welcome()).await;
        assert_eq!(hello.session, Some(SessionId([7; 16])));
        assert_eq!(hello.incarnation, expected);
        let info = *storage.session_info().borrow();
        assert_eq!(info.incarnation, expected, "it is not what is to be saved");
    }
}

/// The clock is what a process takes that resumes the session: who merely comes back must not outrun it.
#[tokio::test]
async fn incarnations_rise_no_faster_than_the_clock() {
    let zero = Duration::ZERO;
    let (server, storage, peer) = Server::connect(|options| options.backoff(zero, zero)).await;
    let began = std::time::Instant::now();
    // Nobody listens there any more: each attempt is refused at once.
    drop((server, peer));
    let mut info = storage.session_info();
    let told = info.wait_for(|info| info.incarnation >= 100).await.unwrap();
    let (incarnation, elapsed) = (told.incarnation, began.elapsed());
    assert!(
        u128::from(incarnation) <= elapsed.as_millis() + 1,
        "{incarnation} within {elapsed:?}"
    );
}

#[tokio::test]
async fn codes_that_say_not_to_repeat_end_the_connection_and_say_why() {
    for code in [1002, 1003, 1007, 1008, 1009, 4003] {
        let (server, storage, mut peer) = Server::connect(|options| options).await;
        let mut watch = watching(&storage, &mut peer).await;
        let calls = join(
            storage.put("a".into(), "v".into()),
            storage.get_one("a".into()),
        );
        let script = async {
            for _ in 0..2 {
                peer.receive().await;
            }
            close(&mut peer, code, "that was\u{1b}[2J wrong").await;
        };
        let ((put, get), ()) = join(calls, script).await;
        assert_eq!(watch.next().await.unwrap(), Some(LOST), "{code}");
        for (error, outcome) in [
            (put.unwrap_err(), Outcome::Unknown),
            (get.unwrap_err(), Outcome::NotExecuted),
            (watch.next().await.unwrap_err(), Outcome::NotExecuted),
            (
                storage.get_one("b".into()).await.unwrap_err(),
                Outcome::NotExecuted,
            ),
        ] {
            let text = error.to_string();
            assert!(
                matches!(error, StorageError::Closed { .. }),
                "{code}: {error:?}"
            );
            assert_eq!(error.outcome(), outcome, "{code}: {error}");
            let code = format!("code {code}");
            assert!(
                text.contains(&code) && text.contains("that was\u{fffd}[2J wrong"),
                "{text}"
            );
        }
        ended(&storage).await;
        let again = tokio::time::timeout(Duration::from_millis(100), server.listener.accept_tcp());
        assert!(again.await.is_err(), "{code}: it came back");
    }
}

#[tokio::test]
async fn they_end_it_in_place_of_welcome_too() {
    for code in [1002, 1008, 4003] {
        let (server, storage, peer) = Server::connect(|options| options).await;
        drop(peer);
        let mut state = storage.state();
        let is_lost = |state: &_| matches!(state, ConnectionState::Disconnected { .. });
        state.wait_for(is_lost).await.unwrap();
        let put = storage.put("a".into(), "v".into());
        let script = async {
            let (mut peer, _) = Peer::accept(server.listener.accept_tcp().await).await;
            close(&mut peer, code, "not again").await;
        };
        let (put, ()) = join(put, script).await;
        let error = put.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotExecuted, "{error:?}");
        let why = ended(&storage).await;
        assert!(
            why.contains(&format!("code {code}, not again")) && error.to_string().contains(&why),
            "{why}"
        );
    }
}

#[tokio::test]
async fn all_other_ends_are_tried_again() {
    let (server, storage, mut peer) = Server::connect(|options| options).await;
    let codes = [1000, 1001, 1011, 1013, 4000, 4001, 4002, 4321];
    for (done, code) in (1..).zip(codes) {
        close(&mut peer, code, "come again").await;
        (peer, _) = server.accept(welcome()).await;
        let get = storage.get_one("k".into());
        let script = async {
            let (id, _) = peer.receive().await;
            peer.send(id, values([Some(entry("v"))])).await;
        };
        join(get, script).await.0.unwrap();
        let info = *storage.session_info().borrow();
        assert_eq!(info.reconnects, done, "{code}");
        assert!(info.last_outage.is_some_and(|outage| outage < PATIENCE));
    }
}

#[tokio::test]
async fn who_is_fenced_learns_that_another_process_holds_the_session() {
    let (_server, storage, mut peer) = Server::connect(|options| options).await;
    close(&mut peer, 4003, "a newer incarnation took over").await;
    let why = ended(&storage).await;
    assert!(
        why.contains("another process holds this session") && why.contains("newer incarnation"),
        "{why}"
    );
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_not_tried_again() {
    let (server, storage, mut peer) = Server::connect(|options| options).await;
    let mut watch = watching(&storage, &mut peer).await;
    let put = storage.put("a".into(), "v".into());
    let script = async {
        let (id, _) = peer.receive().await;
        peer.send(id, ServerMessage::Done).await;
        u16::from(peer.closed().await.unwrap().code)
    };
    let (put, code) = join(put, script).await;
    assert_eq!(code, 1002);
    assert_eq!(watch.next().await.unwrap(), Some(LOST));
    for (error, outcome) in [
        (put.unwrap_err(), Outcome::Unknown),
        (watch.next().await.unwrap_err(), Outcome::NotExecuted),
    ] {
        assert!(
            matches!(error, StorageError::PeerMisbehaved { .. }),
            "{error:?}"
        );
        assert_eq!(error.outcome(), outcome);
    }
    ended(&storage).await;
    let again = tokio::time::timeout(Duration::from_millis(100), server.listener.accept_tcp());
    assert!(again.await.is_err(), "it came back");
}

/// The same before Welcome as behind it: it would come again with each attempt.
#[tokio::test]
async fn what_is_no_websocket_ends_it_in_place_of_welcome_too() {
    let large = [&[0x82, 127][..], &(300u64 << 10).to_be_bytes()].concat();
    for (what, bytes, code) in [
        ("an opcode that there is not", vec![0x83, 0], 1002),
        ("a text that is no UTF-8", vec![0x81, 2, 0xff, 0xff], 1007),
        ("a frame over its maximum", large, 1009),
    ] {
        let (server, storage, peer) = Server::connect(|options| options).await;
        drop(peer);
        let (mut peer, _) = Peer::accept(server.listener.accept_tcp().await).await;
        peer.ws.get_mut().write_all(&bytes).await.unwrap();
        let close = peer.closed().await.unwrap();
        assert_eq!(u16::from(close.code), code, "{what}");
        let why = ended(&storage).await;
        assert!(
            why.contains("the server sent") || why.contains("a bad WebSocket frame"),
            "{why}"
        );
    }
}

/// Numbers of commits: a session that has just begun has none, and none is over 2^63-1.
#[tokio::test]
async fn a_welcome_with_numbers_that_cannot_be_is_answered_with_1002() {
    let mut far = welcome();
    far.executed = 1 << 63;
    let mut new = welcome();
    (new.session, new.executed) = (SessionId([8; 16]), 1);
    for (wrong, what) in [(far, "9223372036854775808"), (new, "a new session")] {
        let (server, storage, peer) = Server::connect(|options| options).await;
        drop(peer);
        let (mut peer, _) = server.accept(wrong.clone()).await;
        assert_eq!(u16::from(peer.closed().await.unwrap().code), 1002, "{what}");
        let why = ended(&storage).await;
        assert!(why.contains(what), "{why}");
    }
    // On the first connection each session is new.
    let server = Server {
        listener: crate::fake::Listener::bind().await,
    };
    let mut new = welcome();
    new.executed = 1;
    let connect = RemoteStorage::connect(server.listener.reconnecting());
    let script = async {
        let (mut peer, _) = server.accept(new).await;
        u16::from(peer.closed().await.unwrap().code)
    };
    let (connected, code) = join(connect, script).await;
    assert!(connected.unwrap_err().to_string().contains("a new session"));
    assert_eq!(code, 1002);
}

/// A Welcome that no server may say, on the first connection and on a later one.
#[tokio::test]
async fn a_welcome_outside_of_the_protocol_is_answered_with_1002() {
    let far = usize::MAX;
    type Change = (
        &'static str,
        fn(&mut storage_protocol::Limits, usize),
        usize,
    );
    let changes: [Change; 9] = [
        ("key_bytes_max", |l, n| l.key_bytes_max = n, 0),
        ("key_bytes_max", |l, n| l.key_bytes_max = n, far),
        ("value_bytes_max", |l, n| l.value_bytes_max = n, far),
        ("message_bytes_max", |l, n| l.message_bytes_max = n, 0),
        ("message_bytes_max", |l, n| l.message_bytes_max = n, far),
        ("frame_bytes_max", |l, n| l.frame_bytes_max = n, 0),
        ("frame_bytes_max", |l, n| l.frame_bytes_max = n, far),
        (
            "requests_in_flight_max",
            |l, n| l.requests_in_flight_max = n,
            0,
        ),
        ("bytes_in_flight_max", |l, n| l.bytes_in_flight_max = n, 0),
    ];
    for (name, change, value) in changes {
        let (server, storage, peer) = Server::connect(|options| options).await;
        drop(peer);
        let mut wrong = welcome();
        change(&mut wrong.limits, value);
        let (mut peer, _) = server.accept(wrong.clone()).await;
        assert_eq!(u16::from(peer.closed().await.unwrap().code), 1002, "{name}");
        let why = ended(&storage).await;
        assert!(why.contains(&format!("{name} of {value}")), "{why}");

        let options = server.listener.reconnecting();
        let connect = RemoteStorage::connect(options);
        let script = async {
            let (mut peer, _) = server.accept(wrong).await;
            u16::from(peer.closed().await.unwrap().code)
        };
        let (connected, code) = join(connect, script).await;
        let error = connected.unwrap_err();
        assert!(
            matches!(&error, StorageError::ConnectFailed { message } if message.contains(name)),
            "{error:?}"
        );
        assert_eq!(code, 1002);
    }
    // A limit of 0 that a server may have: it takes no scans, say.
    let mut few = welcome();
    (few.limits.scans_max, few.limits.watches_max) = (0, 0);
    few.limits.keys_per_get_max = far;
    let server = Server {
        listener: crate::fake::Listener::bind().await,
    };
    let connect = RemoteStorage::connect(server.listener.reconnecting());
    let (storage, _peer) = join(connect, server.accept(few)).await;
    let storage = storage.unwrap();
    let scan = storage.scan(KeyRange::all(), ScanOptions::default()).await;
    assert!(
        matches!(scan, Err(StorageError::Overloaded { max: 0, .. })),
        "{scan:?}"
    );
}

#[tokio::test]
async fn what_the_server_says_is_bounded_and_plain() {
    let (_server, storage, mut peer) = Server::connect(|options| options).await;
    let get = storage.get_one("k".into());
    let script = async {
        let (id, message) = peer.receive().await;
        assert!(matches!(message, ClientMessage::Get { .. }));
        let message = format!("no\u{1b}[31m\r\n{}", "x".repeat(1 << 20));
        let error = StorageError::AccessDenied { message };
        peer.send(id, ServerMessage::Error(error)).await;
    };
    let (found, ()) = join(get, script).await;
    let text = found.unwrap_err().to_string();
    assert!(text.contains("no\u{fffd}[31m  xxx"), "{text:.40}");
    assert!(text.len() < 1_000, "{} bytes", text.len());
}

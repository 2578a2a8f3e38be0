//! From socket to socket: what is asked again, what goes on, and what is said about it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::SinkExt;
use futures_util::future::join;
use storage_client::{ConnectOptions, ConnectionState, RemoteStorage, SavedSession};
use storage_protocol::native::{ClientMessage, RequestId, ServerMessage};
use storage_protocol::{
    Batch, Change, ChangeKind, CommitOptions, CommitRecord, Continuity, EntryLifetime, Epoch, Key,
    KeyRange, KeyState, Outcome, Position, ResyncReason, Revision, ScanItem, ScanOptions,
    SessionId, Storage, StorageError, StorageExt, UnixMillis, Watch, WatchEvent, WatchMode,
    WatchOptions, WatchStart, WatchState,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::fake::{Listener, PATIENCE, Peer, Server, entry, position, values, welcome};

async fn connect() -> (Server, RemoteStorage, Peer) {
    Server::connect(|options| options).await
}

fn number(message: &ClientMessage) -> u64 {
    match message {
        ClientMessage::Commit { number, .. } => *number,
        other => panic!("{other:?} is no commit"),
    }
}

async fn committed(peer: &mut Peer, id: RequestId, revision: u64) {
    let revision = Revision(revision);
    peer.send(id, ServerMessage::Committed { revision }).await;
}

#[tokio::test]
async fn a_read_is_asked_again_on_the_next_socket() {
    let (server, storage, mut peer) = connect().await;
    let get = storage.get_one("k".into());
    let script = async {
        let (_, first) = peer.receive().await;
        drop(peer);
        let (mut peer, hello) = server.accept(welcome()).await;
        assert_eq!(hello.session, Some(SessionId([7; 16])));
        assert!(hello.incarnation > 0);
        assert_eq!((hello.sent, hello.unanswered), (0, vec![]));
        let (id, again) = peer.receive().await;
        assert_eq!(first, again);
        peer.send(id, values([Some(entry("v"))])).await;
        peer
    };
    let (found, _peer) = join(get, script).await;
    assert!(found.unwrap().is_some());
    assert_eq!(storage.session_info().borrow().reconnects, 1);
}

#[tokio::test]
async fn commits_without_an_answer_come_again_under_their_numbers_before_new_ones() {
    let (server, storage, mut peer) = connect().await;
    let calls = async {
        let put = |key: &str| storage.put(Key::copy_from_slice(key.as_bytes()), "v".into());
        let before = join(put("a"), join(put("b"), put("c")));
        let (a, (b, c)) = before.await;
        let d = put("d").await;
        [a, b, c, d].map(Result::unwrap)
    };
    let script = async {
        let mut first = Vec::new();
        for _ in 0..3 {
            first.push(peer.receive().await);
        }
        assert_eq!(
            first.iter().map(|(_, m)| number(m)).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        // The second is answered, the others are not.
        committed(&mut peer, first[1].0, 102).await;
        // The answer is on its way; the socket's end comes behind it.
        drop(peer);
        let mut executed = welcome();
        executed.executed = 2;
        let (mut peer, hello) = server.accept(executed).await;
        assert_eq!(hello.sent, 3);
        assert_eq!(hello.unanswered, [1, 3]);
        let (id, one) = peer.receive().await;
        assert_eq!(one, first[0].1);
        committed(&mut peer, id, 101).await;
        let (id, three) = peer.receive().await;
        assert_eq!(three, first[2].1);
        committed(&mut peer, id, 103).await;
        let (id, four) = peer.receive().await;
        assert_eq!(number(&four), 4);
        committed(&mut peer, id, 104).await;
        peer
    };
    let (revisions, _peer) = join(calls, script).await;
    assert_eq!(revisions, [101, 102, 103, 104].map(position));
}

#[tokio::test]
async fn without_the_session_a_sent_commit_is_unknown_and_not_repeated() {
    let (server, storage, mut peer) = connect().await;
    let put = storage.put("a".into(), "v".into());
    let script = async {
        peer.receive().await;
        drop(peer);
        let mut other = welcome();
        other.session = SessionId([8; 16]);
        let (mut peer, _) = server.accept(other).await;
        let (id, next) = peer.receive().await;
        // Not the lost one: the session's numbers begin anew.
        assert_eq!(number(&next), 1);
        let ClientMessage::Commit { batch, .. } = next else {
            panic!("no commit")
        };
        assert_eq!(batch.operations[0].key(), "b");
        committed(&mut peer, id, 105).await;
        peer
    };
    let calls = async {
        let lost = put.await.unwrap_err();
        assert_eq!(lost.outcome(), Outcome::Unknown, "{lost:?}");
        storage.put("b".into(), "v".into()).await.unwrap()
    };
    let (next, _peer) = join(calls, script).await;
    assert_eq!(next, position(105));
    let info = *storage.session_info().borrow();
    assert_eq!((info.id, info.replaced), (SessionId([8; 16]), 1));
}

#[tokio::test]
async fn lapsed_session_keys_are_told() {
    let (server, storage, peer) = connect().await;
    let mut info = storage.session_info();
    drop(peer);
    let mut lapsed = welcome();
    lapsed.lapsed = true;
    let (_peer, _) = server.accept(lapsed).await;
    let told = info.wait_for(|info| info.reconnects == 1).await.unwrap();
    assert_eq!((told.expirations, told.replaced), (1, 0));
}

#[tokio::test]
async fn calls_wait_for_the_connection_within_their_deadline() {
    let (server, storage, peer) =
        Server::connect(|options| options.request_timeout(Duration::from_millis(200))).await;
    let mut state = storage.state();
    drop(peer);
    let told = state
        .wait_for(|state| matches!(state, ConnectionState::Disconnected { .. }))
        .await
        .unwrap()
        .clone();
    assert!(
        matches!(&told, ConnectionState::Disconnected { why, .. } if why.contains("server")),
        "{told:?}"
    );
    // Nobody accepts for now.
    let error = storage.put("k".into(), "v".into()).await.unwrap_err();
    assert!(
        matches!(error, StorageError::DeadlineExceeded { .. }),
        "{error:?}"
    );
    assert_eq!(error.outcome(), Outcome::NotExecuted);
    // A later call waits, and is served.
    let get = storage.get_one("k".into());
    let script = async {
        let (mut peer, hello) = server.accept(welcome()).await;
        assert!(hello.unanswered.is_empty());
        let (id, message) = peer.receive().await;
        assert!(matches!(message, ClientMessage::Get { .. }));
        peer.send(id, values([None])).await;
        peer
    };
    let (found, _peer) = join(get, script).await;
    assert_eq!(found.unwrap(), None);
    assert_eq!(*storage.state().borrow(), ConnectionState::Connected);
}

#[tokio::test]
async fn a_commit_that_was_given_up_is_not_repeated() {
    let (server, storage, mut peer) =
        Server::connect(|options| options.request_timeout(Duration::from_millis(200))).await;
    let put = storage.put("k".into(), "v".into());
    let script = async {
        peer.receive().await;
        drop(peer);
    };
    let (error, ()) = join(put, script).await;
    assert_eq!(error.unwrap_err().outcome(), Outcome::Unknown);
    let (mut peer, hello) = server.accept(welcome()).await;
    // Perhaps the dial was under way already when the deadline passed; then it comes again, as the server was told.
    let again = hello.unanswered.len();
    for _ in 0..again {
        let (id, message) = peer.receive().await;
        assert_eq!(number(&message), 1);
        committed(&mut peer, id, 101).await;
    }
    let put = storage.put("k".into(), "w".into());
    let script = async {
        let (id, message) = peer.receive().await;
        assert_eq!(number(&message), 2);
        committed(&mut peer, id, 102).await;
    };
    assert_eq!(join(put, script).await.0.unwrap(), position(102));
}

#[tokio::test]
async fn it_gives_up_only_where_it_was_asked_to() {
    let (server, storage, peer) =
        Server::connect(|options| options.give_up_after(Duration::from_millis(100))).await;
    drop((server, peer));
    let error = storage.get_one("k".into()).await.unwrap_err();
    assert!(
        error.to_string().contains("given up as asked for"),
        "{error}"
    );
    assert!(matches!(
        *storage.state().borrow(),
        ConnectionState::Closed { .. }
    ));
}

#[tokio::test]
async fn a_fenced_session_is_not_resumed() {
    let (server, storage, mut peer) = connect().await;
    let frame = CloseFrame {
        code: 4003.into(),
        reason: "a newer incarnation took over".into(),
    };
    peer.ws.send(Message::Close(Some(frame))).await.unwrap();
    let error = storage.get_one("k".into()).await.unwrap_err();
    assert!(error.to_string().contains("newer incarnation"), "{error}");
    assert!(matches!(
        *storage.state().borrow(),
        ConnectionState::Closed { .. }
    ));
    let again = tokio::time::timeout(Duration::from_millis(200), server.listener.accept_tcp());
    assert!(again.await.is_err());
}

#[tokio::test]
async fn the_next_of_several_servers_is_tried() {
    let (first, second) = (Listener::bind().await, Listener::bind().await);
    let options = first.reconnecting().also(second.url("ws"));
    let second = Server { listener: second };
    // The first answers nothing but a closed socket.
    let refuse = async { drop(first.accept_tcp().await) };
    let (storage, (), (mut peer, _)) = tokio::join!(
        RemoteStorage::connect(options),
        refuse,
        second.accept(welcome())
    );
    let storage = storage.unwrap();
    let ping = storage.ping();
    let script = async {
        let (id, _) = peer.receive().await;
        peer.probed(id).await;
    };
    join(ping, script).await.0.unwrap();
}

#[tokio::test]
async fn servers_of_two_keyspaces_are_refused() {
    let options = ConnectOptions::new("ws://localhost:1/storage/a")
        .also("ws://localhost:1/storage/b")
        .danger_plaintext();
    let error = RemoteStorage::connect(options)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("not that of the first URL"), "{error}");
}

#[tokio::test]
async fn a_planned_end_loses_no_call() {
    let (server, storage, mut peer) = connect().await;
    let goes = ServerMessage::GoAway {
        retry_after: Duration::from_millis(1),
        reason: "restart".into(),
    };
    let before = storage.put("a".into(), "v".into());
    let script = async {
        let (id, _) = peer.receive().await;
        peer.send_as(None, goes).await;
        let mut state = storage.state();
        state
            .wait_for(|state| matches!(state, ConnectionState::Draining { .. }))
            .await
            .unwrap();
        // This one is for the next server.
        let later = tokio::spawn({
            let storage = storage.clone();
            async move { storage.put("b".into(), "v".into()).await }
        });
        tokio::task::yield_now().await;
        committed(&mut peer, id, 101).await;
        let close = peer.closed().await.unwrap();
        assert_eq!(u16::from(close.code), 1001);
        let (mut peer, hello) = server.accept(welcome()).await;
        assert_eq!((hello.sent, hello.unanswered), (1, vec![]));
        let (id, message) = peer.receive().await;
        assert_eq!(number(&message), 2);
        committed(&mut peer, id, 102).await;
        (later.await.unwrap().unwrap(), peer)
    };
    let (first, (second, _peer)) = join(before, script).await;
    assert_eq!((first.unwrap(), second), (position(101), position(102)));
}

#[tokio::test]
async fn a_server_that_leaves_instead_of_a_welcome_is_left_alone_as_long_as_it_says() {
    let (server, storage, peer) = connect().await;
    drop(peer);
    let (mut peer, _) = Peer::accept(server.listener.accept_tcp().await).await;
    // Many times what the waits between two attempts come to otherwise.
    let retry_after = Duration::from_secs(2);
    let goes = ServerMessage::GoAway {
        retry_after,
        reason: "restart".into(),
    };
    peer.send_as(None, goes).await;
    drop(peer);
    let told = std::time::Instant::now();
    let (_peer, _) = server.accept(welcome()).await;
    assert!(told.elapsed() >= retry_after, "{:?}", told.elapsed());
    drop(storage);
}

#[tokio::test]
async fn what_a_leaving_server_refuses_goes_to_the_next_in_its_place() {
    let (server, storage, mut peer) = connect().await;
    let puts = async {
        let first = storage.put("k".into(), "1".into());
        let second = storage.put("k".into(), "2".into());
        let (first, second) = join(first, second).await;
        (first.unwrap(), second.unwrap())
    };
    let script = async {
        let (id, _) = peer.receive().await;
        let (_, unread) = peer.receive().await;
        assert_eq!(number(&unread), 2);
        let goes = ServerMessage::GoAway {
            retry_after: Duration::ZERO,
            reason: "restart".into(),
        };
        peer.send_as(None, goes).await;
        // The first crossed with that and is refused; the second is not even read any more.
        let error = StorageError::Closed {
            reason: "the server shuts down".into(),
            outcome: Outcome::NotExecuted,
        };
        peer.send(id, ServerMessage::Error(error)).await;
        drop(peer);
        let (mut peer, hello) = server.accept(welcome()).await;
        assert_eq!((hello.sent, hello.unanswered), (2, vec![1, 2]));
        for (expected, revision) in [(1, 101), (2, 102)] {
            let (id, message) = peer.receive().await;
            assert_eq!(number(&message), expected);
            committed(&mut peer, id, revision).await;
        }
        peer
    };
    let (revisions, _peer) = join(puts, script).await;
    assert_eq!(revisions, (position(101), position(102)));
}

/// The server goes away and reads nothing any more, so that the socket stays as long as the server likes.
#[tokio::test]
async fn what_a_leaving_server_refuses_fails_by_its_deadline() {
    let (_server, storage, mut peer) =
        Server::connect(|options| options.request_timeout(Duration::from_millis(500))).await;
    let value = vec![1; 16 << 20];
    let large = Batch::new()
        .put("a", value.clone())
        .put("b", value.clone())
        .put("c", value);
    let refused = join(
        storage.get_one("k".into()),
        storage.put("k".into(), "1".into()),
    );
    let calls = join(
        refused,
        // More than the socket's buffers take.
        storage.commit(large, CommitOptions::default()),
    );
    let script = async {
        let (get, put) = (peer.receive().await.0, peer.receive().await.0);
        let goes = ServerMessage::GoAway {
            retry_after: Duration::ZERO,
            reason: "restart".into(),
        };
        peer.send_as(None, goes).await;
        for id in [get, put] {
            let error = StorageError::Closed {
                reason: "the server shuts down".into(),
                outcome: Outcome::NotExecuted,
            };
            peer.send(id, ServerMessage::Error(error)).await;
        }
        peer
    };
    let results = tokio::time::timeout(PATIENCE, join(calls, script)).await;
    let (((get, put), large), _peer) = results.expect("a call waits for ever");
    let late = |outcome| StorageError::DeadlineExceeded { outcome };
    assert_eq!(get.unwrap_err(), late(Outcome::NotExecuted));
    // The server has said so, and it is not sent again.
    assert_eq!(put.unwrap_err(), late(Outcome::NotExecuted));
    assert_eq!(large.unwrap_err(), late(Outcome::Unknown));
}

#[tokio::test]
async fn a_promised_number_that_is_not_sent_again_is_unknown() {
    let server = Server {
        listener: Listener::bind().await,
    };
    let saved = SavedSession {
        id: SessionId([7; 16]),
        incarnation: 5,
        sent: 9,
        unanswered: vec![9],
    };
    let options = server
        .listener
        .reconnecting()
        .request_timeout(Duration::from_millis(100))
        .resume_session(saved);
    let (storage, (peer, first)) =
        tokio::join!(RemoteStorage::connect(options), server.accept(welcome()));
    let storage = storage.unwrap();
    let mut state = storage.state();
    drop(peer);
    state
        .wait_for(|state| matches!(state, ConnectionState::Disconnected { .. }))
        .await
        .unwrap();
    // It may have been executed when the earlier process sent it.
    let batch = Batch::new().put("k", "v");
    let error = storage.commit_as(9, batch, CommitOptions::default()).await;
    assert_eq!(error.unwrap_err().outcome(), Outcome::Unknown);
    // It is promised again.
    let (_peer, hello) = server.accept(welcome()).await;
    assert_eq!((hello.sent, hello.unanswered), (9, vec![9]));
    // It is not the clock that makes it higher: who was fenced must stay below who fenced it.
    assert_eq!(hello.incarnation, first.incarnation + 1);
}

#[tokio::test]
async fn a_saved_session_is_resumed_and_its_numbers_come_first() {
    let server = Server {
        listener: Listener::bind().await,
    };
    let saved = SavedSession {
        id: SessionId([7; 16]),
        incarnation: 5,
        sent: 9,
        unanswered: vec![8, 9],
    };
    let options = server.listener.reconnecting().resume_session(saved);
    let mut executed = welcome();
    executed.executed = 8;
    let (storage, (mut peer, hello)) =
        tokio::join!(RemoteStorage::connect(options), server.accept(executed));
    let storage = storage.unwrap();
    assert!(hello.incarnation > 5);
    assert_eq!((hello.sent, hello.unanswered), (9, vec![8, 9]));
    let batch = || Batch::new().put("k", "v");
    let commits = async {
        let options = CommitOptions::default;
        let eight = storage.commit_as(8, batch(), options());
        let nine = storage.commit_as(9, batch(), options());
        let ten = storage.commit_as(10, batch(), options());
        let (eight, (nine, ten)) = join(eight, join(nine, ten)).await;
        [eight, nine, ten].map(Result::unwrap)
    };
    let script = async {
        for (expected, revision) in [(8, 101), (9, 102), (10, 103)] {
            let (id, message) = peer.receive().await;
            assert_eq!(number(&message), expected);
            committed(&mut peer, id, revision).await;
        }
    };
    let (revisions, ()) = join(commits, script).await;
    assert_eq!(revisions, [101, 102, 103].map(position));
    assert_eq!(storage.session_info().borrow().replaced, 0);
}

#[tokio::test]
async fn a_saved_session_that_cannot_be_is_refused_by_name() {
    let saved = |incarnation, sent| SavedSession {
        id: SessionId([7; 16]),
        incarnation,
        sent,
        unanswered: vec![],
    };
    for (saved, what) in [
        (saved(u64::MAX, 9), "incarnation of 18446744073709551615"),
        (saved(5, 1 << 63), "sent of 9223372036854775808"),
    ] {
        let options = ConnectOptions::new("ws://localhost:1/storage/a")
            .danger_plaintext()
            .resume_session(saved);
        let error = RemoteStorage::connect(options).await.unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[tokio::test]
async fn a_scan_does_not_outlive_its_socket() {
    let (server, storage, mut peer) = connect().await;
    let scan = storage.scan(KeyRange::all(), ScanOptions::default());
    let script = async {
        let (id, _) = peer.receive().await;
        let items = vec![ScanItem {
            key: "a".into(),
            state: KeyState::Live(entry("v")),
        }];
        let page = ServerMessage::Page {
            revision: Revision(100),
            scan: Some(4),
            items,
        };
        peer.send(id, page).await;
    };
    let (scan, ()) = join(scan, script).await;
    let mut scan = scan.unwrap();
    assert_eq!(scan.next_page().await.unwrap().unwrap().len(), 1);
    drop(peer);
    let (_peer, _) = server.accept(welcome()).await;
    let error = scan.next_page().await.unwrap_err();
    assert_eq!(error, StorageError::SnapshotExpired);
}

// Watches.

fn commit(revision: u64) -> Arc<CommitRecord> {
    let kind = ChangeKind::Put {
        value: "v".into(),
        lifetime: EntryLifetime::Forever,
        previous: None,
    };
    let changes = vec![Change {
        key: "k".into(),
        kind,
    }];
    let record = CommitRecord::new(
        Revision(revision),
        UnixMillis(1),
        None,
        "cert:w".into(),
        changes,
    );
    Arc::new(record)
}

fn changes(revision: u64) -> ServerMessage {
    ServerMessage::Changes {
        commits: vec![commit(revision)],
    }
}

fn state(key: &'static str, revision: u64) -> (Key, KeyState) {
    let mut live = entry("v");
    live.revision = Revision(revision);
    (key.into(), KeyState::Live(live))
}

fn mark(revision: u64) -> ServerMessage {
    ServerMessage::Progress {
        revision: Revision(revision),
        token: None,
    }
}

async fn expect_watch(peer: &mut Peer) -> (RequestId, WatchStart, WatchMode) {
    let (id, message) = peer.receive().await;
    match message {
        ClientMessage::Watch(request) => (id, request.start, request.mode),
        other => panic!("{other:?} is no watch"),
    }
}

async fn watching(peer: &mut Peer, id: RequestId, revision: u64) {
    let revision = Revision(revision);
    peer.send(id, ServerMessage::Watching { revision }).await;
}

async fn watch(
    storage: &RemoteStorage,
    peer: &mut Peer,
    options: WatchOptions,
) -> (Watch, RequestId) {
    let opened = storage.watch(KeyRange::all(), options);
    let script = async {
        let (id, ..) = expect_watch(peer).await;
        let start = match options.start {
            WatchStart::Beginning => 0,
            _ => 100,
        };
        watching(peer, id, start).await;
        id
    };
    let (watch, id) = join(opened, script).await;
    (watch.unwrap(), id)
}

async fn next(watch: &mut Watch) -> WatchEvent {
    let event = tokio::time::timeout(PATIENCE, watch.next()).await;
    event.expect("no event").unwrap().expect("the watch ended")
}

const CONTINUOUS: WatchEvent = WatchEvent::Continuity(Continuity::Continuous);

#[tokio::test]
async fn every_goes_on_after_the_last_commit_and_says_so() {
    let (server, storage, mut peer) = connect().await;
    let (mut watch, id) = watch(&storage, &mut peer, WatchOptions::default()).await;
    peer.send(id, changes(101)).await;
    peer.send(id, changes(105)).await;
    // One is taken before the break, one is still in the queue.
    assert_eq!(next(&mut watch).await, WatchEvent::Commit(commit(101)));
    assert_eq!(watch.status().position, position(101));
    peer.send(id, mark(110)).await;
    drop(peer);
    let (mut peer, _) = server.accept(welcome()).await;
    let (id, start, mode) = expect_watch(&mut peer).await;
    assert_eq!(
        (start, mode),
        (WatchStart::After(position(110)), WatchMode::Every)
    );
    assert!(matches!(
        watch.status().state,
        WatchState::Disconnected { .. }
    ));
    watching(&mut peer, id, 110).await;
    peer.send(id, changes(111)).await;
    assert_eq!(next(&mut watch).await, WatchEvent::Commit(commit(105)));
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Progress { .. }
    ));
    assert_eq!(next(&mut watch).await, CONTINUOUS);
    assert_eq!(next(&mut watch).await, WatchEvent::Commit(commit(111)));
    assert_eq!(watch.status().state, WatchState::Live);
}

#[tokio::test]
async fn marks_that_were_asked_for_are_asked_for_again() {
    let (server, storage, mut peer) = connect().await;
    let (mut watch, _) = watch(&storage, &mut peer, WatchOptions::default()).await;
    watch.request_progress(9);
    let (_, probe) = peer.receive().await;
    assert!(matches!(probe, ClientMessage::Probe { token: 9, .. }));
    drop(peer);
    let (mut peer, _) = server.accept(welcome()).await;
    let (id, ..) = expect_watch(&mut peer).await;
    watching(&mut peer, id, 100).await;
    let (probe_id, probe) = peer.receive().await;
    let again = ClientMessage::Probe {
        watch: Some(id),
        token: 9,
    };
    assert_eq!(probe, again);
    let marked = ServerMessage::Progress {
        revision: Revision(120),
        token: Some(9),
    };
    peer.send(probe_id, marked).await;
    assert_eq!(next(&mut watch).await, CONTINUOUS);
    let expected = WatchEvent::Progress {
        position: position(120),
        token: Some(9),
    };
    assert_eq!(next(&mut watch).await, expected);
}

#[tokio::test]
async fn a_mark_asked_for_while_the_watch_comes_back_is_asked_for_once() {
    let (server, storage, mut peer) = connect().await;
    let (mut watch, _) = watch(&storage, &mut peer, WatchOptions::default()).await;
    drop(peer);
    let (mut peer, _) = server.accept(welcome()).await;
    let (id, ..) = expect_watch(&mut peer).await;
    // The answer and the application's wish meet.
    let revision = Revision(100);
    let watching = ServerMessage::Watching { revision };
    peer.send(id, watching).await;
    watch.request_progress(4);
    let (probe, message) = peer.receive().await;
    assert!(
        matches!(message, ClientMessage::Probe { token: 4, .. }),
        "{message:?}"
    );
    let ping = storage.ping();
    let script = async {
        // Nothing but the ping comes: no second probe for the mark.
        let (id, message) = peer.receive().await;
        assert!(
            matches!(message, ClientMessage::Probe { watch: None, .. }),
            "{message:?}"
        );
        peer.probed(id).await;
        let revision = Revision(120);
        let token = Some(4);
        peer.send(probe, ServerMessage::Progress { revision, token })
            .await;
    };
    join(ping, script).await.0.unwrap();
    assert_eq!(next(&mut watch).await, CONTINUOUS);
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Progress { token: Some(4), .. }
    ));
}

#[tokio::test]
async fn what_was_buffered_at_a_break_is_not_granted_beyond_the_window() {
    let (server, storage, mut peer) =
        Server::connect(|options| options.watch_credit_bytes(100)).await;
    let (mut watch, id) = watch(&storage, &mut peer, WatchOptions::default()).await;
    // One commit is larger than the window: it may overdraw.
    let kind = ChangeKind::Put {
        value: vec![1; 1_000].into(),
        lifetime: EntryLifetime::Forever,
        previous: None,
    };
    let key = "k".into();
    let record = CommitRecord::new(
        Revision(101),
        UnixMillis(1),
        None,
        "cert:w".into(),
        vec![Change { key, kind }],
    );
    let commits = vec![Arc::new(record)];
    peer.send(id, ServerMessage::Changes { commits }).await;
    let ping = storage.ping();
    let script = async {
        let (id, _) = peer.receive().await;
        peer.probed(id).await;
    };
    join(ping, script).await.0.unwrap();
    drop(peer);
    let (mut peer, _) = server.accept(welcome()).await;
    let (id, message) = peer.receive().await;
    let ClientMessage::Watch(request) = message else {
        panic!("no watch")
    };
    assert_eq!(request.credit, 0);
    watching(&mut peer, id, 101).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::Commit(_)));
    assert_eq!(next(&mut watch).await, CONTINUOUS);
    // The window, and not the thousand bytes of the commit.
    assert_eq!(
        peer.receive().await,
        (id, ClientMessage::Credit { bytes: 100 })
    );
}

#[tokio::test]
async fn every_beyond_the_log_is_repaired_by_latest_and_goes_on() {
    let (server, storage, mut peer) = connect().await;
    let (mut watch, id) = watch(&storage, &mut peer, WatchOptions::default()).await;
    peer.send(id, changes(101)).await;
    assert_eq!(next(&mut watch).await, WatchEvent::Commit(commit(101)));
    drop(peer);
    let (mut peer, _) = server.accept(welcome()).await;
    let (id, start, _) = expect_watch(&mut peer).await;
    assert_eq!(start, WatchStart::After(position(101)));
    let oldest = Revision(150);
    peer.send(id, ServerMessage::Error(StorageError::Compacted { oldest }))
        .await;
    let (repair, start, mode) = expect_watch(&mut peer).await;
    assert_eq!(start, WatchStart::After(position(101)));
    assert!(matches!(mode, WatchMode::Latest { .. }));
    watching(&mut peer, repair, 101).await;
    let states = vec![state("a", 120), state("b", 160)];
    peer.send(repair, ServerMessage::States { states }).await;
    peer.send(repair, mark(170)).await;
    let mut asked = Vec::new();
    for _ in 0..2 {
        asked.push(peer.receive().await);
    }
    let unwatched = asked
        .iter()
        .find(|(_, message)| *message == ClientMessage::Unwatch { watch: repair });
    let (unwatch, _) = unwatched.expect("the repair is ended");
    peer.send(*unwatch, ServerMessage::Done).await;
    let own = asked.iter().find_map(|(id, message)| match message {
        ClientMessage::Watch(request) => Some((*id, request.start, request.mode)),
        _ => None,
    });
    let (id, start, mode) = own.expect("the watch goes on");
    assert_eq!(
        (start, mode),
        (WatchStart::After(position(170)), WatchMode::Every)
    );
    watching(&mut peer, id, 170).await;
    peer.send(id, changes(171)).await;
    let why = ResyncReason::Compacted { oldest };
    assert_eq!(
        next(&mut watch).await,
        WatchEvent::Continuity(Continuity::Resynced { why })
    );
    for (key, revision) in [("a", 120), ("b", 160)] {
        let (key, state) = state(key, revision);
        assert_eq!(next(&mut watch).await, WatchEvent::State { key, state });
    }
    let closing = WatchEvent::Progress {
        position: position(170),
        token: None,
    };
    assert_eq!(next(&mut watch).await, closing);
    assert_eq!(next(&mut watch).await, WatchEvent::Commit(commit(171)));
}

#[tokio::test]
async fn another_history_is_told_and_everything_comes_anew() {
    let (server, storage, mut peer) = connect().await;
    let (mut watch, id) = watch(
        &storage,
        &mut peer,
        WatchOptions::latest(WatchStart::Beginning),
    )
    .await;
    let states = vec![state("a", 90)];
    peer.send(id, ServerMessage::States { states }).await;
    peer.send(id, mark(100)).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::State { .. }));
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Progress { .. }
    ));
    drop(peer);
    let epoch = Epoch(0xf);
    let mut forked = welcome();
    forked.position = Position {
        epoch,
        revision: Revision(95),
    };
    let (mut peer, _) = server.accept(forked).await;
    let (id, start, _) = expect_watch(&mut peer).await;
    assert_eq!(start, WatchStart::After(position(100)));
    let fork = Revision(95);
    peer.send(
        id,
        ServerMessage::Error(StorageError::EpochChanged { epoch, fork }),
    )
    .await;
    let (id, start, mode) = expect_watch(&mut peer).await;
    assert_eq!(start, WatchStart::Beginning);
    assert!(matches!(mode, WatchMode::Latest { .. }));
    watching(&mut peer, id, 0).await;
    peer.send(id, mark(96)).await;
    let why = ResyncReason::EpochChanged { epoch, fork };
    assert_eq!(
        next(&mut watch).await,
        WatchEvent::Continuity(Continuity::Resynced { why })
    );
    assert_eq!(next(&mut watch).await, WatchEvent::Reset);
    let revision = Revision(96);
    let position = Position { epoch, revision };
    assert_eq!(
        next(&mut watch).await,
        WatchEvent::Progress {
            position,
            token: None
        }
    );
}

#[tokio::test]
async fn latest_goes_on_from_its_last_mark_and_drops_what_comes_again() {
    let (server, storage, mut peer) = connect().await;
    let (mut watch, id) = watch(&storage, &mut peer, WatchOptions::latest(WatchStart::Now)).await;
    peer.send(id, mark(100)).await;
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Progress { .. }
    ));
    // A pass without its mark.
    let states = vec![state("a", 101)];
    peer.send(id, ServerMessage::States { states }).await;
    let synced = storage.ping();
    let script = async {
        let (id, _) = peer.receive().await;
        peer.probed(id).await;
    };
    join(synced, script).await.0.unwrap();
    drop(peer);
    let (mut peer, _) = server.accept(welcome()).await;
    let (id, start, _) = expect_watch(&mut peer).await;
    assert_eq!(start, WatchStart::After(position(100)));
    watching(&mut peer, id, 100).await;
    let states = vec![state("a", 103)];
    peer.send(id, ServerMessage::States { states }).await;
    peer.send(id, mark(104)).await;
    assert_eq!(next(&mut watch).await, CONTINUOUS);
    let (key, state) = state("a", 103);
    assert_eq!(next(&mut watch).await, WatchEvent::State { key, state });
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Progress { .. }
    ));
}

#[tokio::test]
async fn a_broken_first_pass_begins_anew_with_a_reset() {
    let (server, storage, mut peer) = connect().await;
    let (mut watch, id) = watch(
        &storage,
        &mut peer,
        WatchOptions::latest(WatchStart::Beginning),
    )
    .await;
    for key in ["a", "b"] {
        let states = vec![state(key, 50)];
        peer.send(id, ServerMessage::States { states }).await;
        // Within one pass nothing is reset.
        assert!(matches!(next(&mut watch).await, WatchEvent::State { .. }));
    }
    drop(peer);
    let (mut peer, _) = server.accept(welcome()).await;
    let (id, start, _) = expect_watch(&mut peer).await;
    assert_eq!(start, WatchStart::Beginning);
    watching(&mut peer, id, 0).await;
    peer.send(id, mark(100)).await;
    assert_eq!(next(&mut watch).await, CONTINUOUS);
    // "a" and "b" were removed meanwhile, and a pass from the beginning has no tombstones.
    assert_eq!(next(&mut watch).await, WatchEvent::Reset);
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Progress { .. }
    ));
}

#[tokio::test]
async fn a_watch_that_cannot_be_repaired_is_lost_and_says_from_where() {
    let (server, storage, mut peer) = connect().await;
    let (mut watch, _) = watch(&storage, &mut peer, WatchOptions::default()).await;
    drop(peer);
    let mut later = welcome();
    later.position = position(140);
    let (mut peer, _) = server.accept(later).await;
    let (id, ..) = expect_watch(&mut peer).await;
    let denied = StorageError::AccessDenied {
        message: "not any more".into(),
    };
    peer.send(id, ServerMessage::Error(denied.clone())).await;
    let (from, to) = (position(100), position(140));
    assert_eq!(
        next(&mut watch).await,
        WatchEvent::Continuity(Continuity::Lost { from, to })
    );
    assert_eq!(watch.next().await.unwrap_err(), denied);
    assert_eq!(watch.status().state, WatchState::Ended);
}

#[tokio::test]
async fn a_watch_dropped_while_there_is_no_connection_is_not_opened_again() {
    let (server, storage, mut peer) = connect().await;
    let (first, _) = watch(&storage, &mut peer, WatchOptions::default()).await;
    let (second, _) = watch(&storage, &mut peer, WatchOptions::latest(WatchStart::Now)).await;
    let mut state = storage.state();
    drop(peer);
    state
        .wait_for(|state| matches!(state, ConnectionState::Disconnected { .. }))
        .await
        .unwrap();
    drop(first);
    let (mut peer, _) = server.accept(welcome()).await;
    let (_, _, mode) = expect_watch(&mut peer).await;
    assert!(matches!(mode, WatchMode::Latest { .. }));
    let ping = storage.ping();
    let script = async {
        let (id, message) = peer.receive().await;
        assert!(
            matches!(message, ClientMessage::Probe { watch: None, .. }),
            "{message:?}"
        );
        peer.probed(id).await;
    };
    join(ping, script).await.0.unwrap();
    drop(second);
}

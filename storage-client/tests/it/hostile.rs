//! A server that breaks its promises: what it sends reaches no application, the connection ends with 1002, and the error
//! names what was wrong. And one that keeps sending: memory and deadlines hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join;
use futures_util::{SinkExt, StreamExt};
use storage_client::replica::ReplicaError;
use storage_client::{RemoteStorage, Replica, ReplicaOptions};
use storage_protocol::native::{ClientMessage, RequestId, ServerMessage};
use storage_protocol::{
    Change, ChangeKind, CommitRecord, Continuity, Entry, EntryLifetime, Epoch, Key, KeyRange,
    KeyState, Limit, Outcome, Position, Revision, Scan, ScanItem, ScanOptions, Storage,
    StorageError, StorageExt, UnixMillis, Watch, WatchEvent, WatchMode, WatchOptions, WatchStart,
};
use tokio_tungstenite::tungstenite::Message;

use crate::fake::{PATIENCE, Peer, Server, entry, position, values};

async fn connect() -> (Server, RemoteStorage, Peer) {
    Server::connect(|options| options).await
}

fn changes(revision: u64, keys: &[&'static str]) -> ServerMessage {
    let change = |key: &&'static str| Change {
        key: (*key).into(),
        kind: ChangeKind::Put {
            value: "v".into(),
            lifetime: EntryLifetime::Forever,
            previous: None,
        },
    };
    let changes = keys.iter().map(change).collect();
    let (revision, time) = (Revision(revision), UnixMillis(1));
    let record = CommitRecord::new(revision, time, None, "cert:w".into(), changes);
    let commits = vec![Arc::new(record)];
    ServerMessage::Changes { commits }
}

fn state(key: &'static str, revision: u64) -> (Key, KeyState) {
    let revision = Revision(revision);
    let live = Entry {
        revision,
        ..entry("v")
    };
    (key.into(), KeyState::Live(live))
}

fn states(told: &[(&'static str, u64)]) -> ServerMessage {
    let states = told.iter().map(|(key, revision)| state(key, *revision));
    let states = states.collect();
    ServerMessage::States { states }
}

fn mark(revision: u64) -> ServerMessage {
    let (revision, token) = (Revision(revision), None);
    ServerMessage::Progress { revision, token }
}

fn page(revision: u64, more: bool, items: &[(&'static str, u64)]) -> ServerMessage {
    let item = |(key, revision): &(&'static str, u64)| {
        let (key, state) = state(key, *revision);
        ScanItem { key, state }
    };
    ServerMessage::Page {
        revision: Revision(revision),
        scan: more.then_some(4),
        items: items.iter().map(item).collect(),
    }
}

/// A watch of the keys with `k`, attached at 60.
async fn watching(storage: &RemoteStorage, peer: &mut Peer, mode: WatchMode) -> (Watch, RequestId) {
    let start = WatchStart::After(position(60));
    let opened = storage.watch(KeyRange::prefix("k"), WatchOptions { start, mode });
    let script = async {
        let (id, _) = peer.receive().await;
        let revision = Revision(60);
        peer.send(id, ServerMessage::Watching { revision }).await;
        id
    };
    let (watch, id) = join(opened, script).await;
    (watch.unwrap(), id)
}

/// What it told, and the error that ended it.
async fn to_the_end(mut watch: Watch) -> (Vec<WatchEvent>, StorageError) {
    let mut told = Vec::new();
    loop {
        let event = tokio::time::timeout(PATIENCE, watch.next()).await;
        match event.expect("it does not end") {
            Ok(event) => told.push(event.expect("an error comes before the end")),
            Err(error) => return (told, error),
        }
    }
}

const EVERY: WatchMode = WatchMode::Every;
const LATEST: WatchMode = WatchMode::Latest {
    min_interval: Duration::ZERO,
};

#[tokio::test]
async fn a_watch_hands_over_nothing_that_its_protocol_forbids() {
    let reset = || ServerMessage::Reset;
    // Mode, messages that are taken, the one that is not, and what the error says.
    let cases = [
        (
            EVERY,
            vec![changes(70, &["k"])],
            changes(65, &["k"]),
            "revision 65 behind revision 70",
        ),
        (
            EVERY,
            vec![changes(70, &["k"])],
            changes(70, &["k"]),
            "revision 70 behind revision 70",
        ),
        (EVERY, vec![], changes(60, &["k"]), "behind revision 60"),
        (
            EVERY,
            vec![mark(80)],
            changes(80, &["k"]),
            "behind revision 80",
        ),
        (EVERY, vec![mark(80)], mark(79), "went back from 80 to 79"),
        (EVERY, vec![], mark(59), "went back from 60 to 59"),
        (EVERY, vec![], states(&[("k", 61)]), "on a watch Every"),
        (EVERY, vec![], reset(), "RESET on a watch Every"),
        (EVERY, vec![], changes(61, &["k", "x"]), "the key \"x\""),
        (LATEST, vec![], changes(61, &["k"]), "on a watch Latest"),
        (LATEST, vec![], states(&[("x", 61)]), "the key \"x\""),
        (LATEST, vec![], states(&[("k", 60)]), "up to 60 was told"),
        (
            LATEST,
            vec![states(&[("k1", 61)]), mark(70)],
            states(&[("k2", 70)]),
            "up to 70 was told",
        ),
        (
            LATEST,
            vec![states(&[("k1", 65)])],
            states(&[("k2", 64)]),
            "\"k2\" at 64 behind that of \"k1\" at 65",
        ),
        (
            LATEST,
            vec![states(&[("k1", 65)])],
            states(&[("k1", 65)]),
            "\"k1\" at 65 behind",
        ),
        (
            LATEST,
            vec![states(&[("k1", 65)])],
            mark(64),
            "went back from 65 to 64",
        ),
        (
            LATEST,
            vec![mark(70), reset(), states(&[("k1", 3)])],
            mark(69),
            "went back from 70 to 69",
        ),
    ];
    for (mode, taken, wrong, what) in cases {
        let (_server, storage, mut peer) = connect().await;
        let (watch, id) = watching(&storage, &mut peer, mode).await;
        let expected = taken.len();
        for message in taken {
            peer.send(id, message).await;
        }
        peer.send(id, wrong).await;
        let (mut told, error) = to_the_end(watch).await;
        let last = told.pop();
        let Some(WatchEvent::Continuity(Continuity::Lost { from, to })) = last else {
            panic!("{what}: {last:?} is not that it is lost");
        };
        assert!(from.revision <= to.revision, "{what}: {from} to {to}");
        assert_eq!(to, position(100), "{what}");
        assert_eq!(told.len(), expected, "{what}: {told:?}");
        assert!(
            matches!(&error, StorageError::PeerMisbehaved { message, .. } if message.contains(what)),
            "{what}: {error}"
        );
        let close = peer.closed().await.unwrap();
        assert_eq!(u16::from(close.code), 1002, "{what}");
        assert!(close.reason.contains("misbehaved in watch"), "{close:?}");
    }
}

/// The position of its Welcome may be behind what it has told since.
#[tokio::test]
async fn a_watch_is_not_lost_up_to_before_where_it_was() {
    let (_server, storage, mut peer) = connect().await;
    let (watch, id) = watching(&storage, &mut peer, EVERY).await;
    peer.send(id, mark(500)).await;
    peer.send(id, mark(499)).await;
    let (told, _) = to_the_end(watch).await;
    let (from, to) = (position(500), position(500));
    assert_eq!(
        told.last(),
        Some(&WatchEvent::Continuity(Continuity::Lost { from, to }))
    );
}

#[tokio::test]
async fn a_key_may_come_again_in_a_pass_at_a_higher_revision() {
    let (_server, storage, mut peer) = connect().await;
    let (mut watch, id) = watching(&storage, &mut peer, LATEST).await;
    peer.send(id, states(&[("k2", 61), ("k1", 62)])).await;
    peer.send(id, states(&[("k3", 62), ("k2", 90)])).await;
    peer.send(id, mark(95)).await;
    for _ in 0..4 {
        let event = watch.next().await.unwrap();
        assert!(matches!(event, Some(WatchEvent::State { .. })));
    }
    let event = watch.next().await.unwrap();
    assert!(matches!(event, Some(WatchEvent::Progress { .. })));
}

#[tokio::test]
async fn a_watch_begins_where_it_was_asked_to_and_with_its_answer() {
    let begins = async |options: WatchOptions, first: ServerMessage| {
        let (_server, storage, mut peer) = connect().await;
        let opened = storage.watch(KeyRange::all(), options);
        let script = async {
            let (id, _) = peer.receive().await;
            peer.send(id, first).await;
            u16::from(peer.closed().await.unwrap().code)
        };
        let (opened, code) = join(opened, script).await;
        assert_eq!(code, 1002);
        opened.unwrap_err().to_string()
    };
    let attached = |revision| ServerMessage::Watching {
        revision: Revision(revision),
    };
    let after = WatchStart::After(position(60));
    for options in [WatchOptions::every(after), WatchOptions::latest(after)] {
        for revision in [59, 61] {
            let text = begins(options, attached(revision)).await;
            let what = format!("after revision {revision} that was to begin after 60");
            assert!(text.contains(&what), "{text}");
        }
    }
    let options = WatchOptions::latest(WatchStart::Beginning);
    let text = begins(options, attached(50)).await;
    let what = "after revision 50 that was to begin after 0";
    assert!(text.contains(what), "{text}");
    let text = begins(WatchOptions::every(after), changes(61, &["k"])).await;
    assert!(text.contains("before WATCHING"), "{text}");
}

/// A resumed one, too: from a later start it would say that nothing is missing, and it is.
#[tokio::test]
async fn a_watch_goes_on_where_it_was_asked_to() {
    for (asked, attached) in [(None, 50), (Some(70), 69), (Some(70), 71)] {
        let (server, storage, mut peer) = connect().await;
        let options = WatchOptions::latest(WatchStart::Beginning);
        let opened = storage.watch(KeyRange::all(), options);
        let script = async {
            let (id, _) = peer.receive().await;
            let revision = Revision::ZERO;
            peer.send(id, ServerMessage::Watching { revision }).await;
            id
        };
        let (watch, id) = join(opened, script).await;
        let watch = watch.unwrap();
        if let Some(revision) = asked {
            peer.send(id, mark(revision)).await;
        }
        drop(peer);
        let (mut peer, _) = server.accept(crate::fake::welcome()).await;
        let (id, message) = peer.receive().await;
        let ClientMessage::Watch(request) = message else {
            panic!("{message:?} is no watch");
        };
        let start = asked.map_or(WatchStart::Beginning, |revision| {
            WatchStart::After(position(revision))
        });
        assert_eq!(request.start, start);
        let revision = Revision(attached);
        peer.send(id, ServerMessage::Watching { revision }).await;
        assert_eq!(u16::from(peer.closed().await.unwrap().code), 1002);
        let (_, error) = to_the_end(watch).await;
        let what = format!("after revision {attached} that was to begin");
        assert!(error.to_string().contains(&what), "{error}");
    }
}

/// Reads a scan to its end.
async fn scanned(
    storage: &RemoteStorage,
    range: KeyRange,
    options: ScanOptions,
) -> Result<usize, StorageError> {
    let scan = storage.scan(range, options).await?;
    scan.collect().await.map(|items| items.len())
}

#[tokio::test]
async fn a_scan_hands_over_nothing_that_its_protocol_forbids() {
    let newer_than = Some(position(7));
    let default = ScanOptions::default();
    let cases: [(&str, ScanOptions, Vec<ServerMessage>); 11] = [
        (
            "\"kb\" behind \"kc\"",
            default,
            vec![page(90, true, &[("kc", 1), ("kb", 1)])],
        ),
        (
            "\"ka\" behind \"ka\"",
            default,
            vec![page(90, true, &[("ka", 1)]), page(90, true, &[("ka", 1)])],
        ),
        (
            "\"kb\" behind \"ka\"",
            ScanOptions {
                reverse: true,
                ..default
            },
            vec![page(90, true, &[("ka", 1), ("kb", 1)])],
        ),
        (
            "the key \"x\"",
            default,
            vec![page(90, true, &[("k", 1), ("x", 1)])],
        ),
        (
            "at revision 91",
            default,
            vec![page(90, false, &[("k", 91)])],
        ),
        (
            "went on at revision 91",
            default,
            vec![page(90, true, &[("ka", 1)]), page(91, false, &[("kb", 1)])],
        ),
        (
            "at revision 7",
            ScanOptions {
                newer_than,
                ..default
            },
            vec![page(90, false, &[("k", 7)])],
        ),
        (
            "gave a value",
            ScanOptions {
                keys_only: true,
                ..default
            },
            vec![page(90, false, &[("k", 7)])],
        ),
        (
            "than its limit",
            ScanOptions {
                limit: Some(1),
                ..default
            },
            vec![page(90, false, &[("ka", 7), ("kb", 7)])],
        ),
        (
            "is empty, and not the last",
            default,
            vec![page(90, true, &[("ka", 1)]), page(90, true, &[])],
        ),
        (
            "a tombstone",
            default,
            vec![ServerMessage::Page {
                revision: Revision(90),
                scan: None,
                items: vec![ScanItem {
                    key: "k".into(),
                    state: KeyState::Removed(Revision(7)),
                }],
            }],
        ),
    ];
    for (what, options, pages) in cases {
        let (_server, storage, mut peer) = connect().await;
        let script = async {
            for page in pages {
                let (id, _) = peer.receive().await;
                peer.send(id, page).await;
            }
            // A scan that is given up may be closed before the connection is.
            loop {
                let message = peer.ws.next().await.unwrap().unwrap();
                if let Message::Close(Some(frame)) = message {
                    break frame;
                }
            }
        };
        let scan = scanned(&storage, KeyRange::prefix("k"), options);
        let (scan, close) = join(scan, script).await;
        let error = scan.unwrap_err();
        assert!(
            matches!(&error, StorageError::PeerMisbehaved { message, .. } if message.contains(what)),
            "{what}: {error}"
        );
        assert_eq!(u16::from(close.code), 1002, "{what}");
    }
}

#[tokio::test]
async fn a_page_far_beyond_its_bound_is_refused() {
    let (_server, storage, mut peer) = connect().await;
    let large = |key: &'static str| ScanItem {
        key: key.into(),
        state: KeyState::Live(entry(vec![1; 2 * Scan::PAGE_BYTES])),
    };
    let script = async {
        let (id, _) = peer.receive().await;
        let message = ServerMessage::Page {
            revision: Revision(90),
            scan: None,
            items: vec![large("a"), large("b")],
        };
        peer.send(id, message).await;
    };
    let scan = scanned(&storage, KeyRange::all(), ScanOptions::default());
    let error = join(scan, script).await.0.unwrap_err().to_string();
    assert!(error.contains("are too many"), "{error}");
}

#[tokio::test]
async fn a_read_is_no_newer_than_its_revision() {
    let (_server, storage, mut peer) = connect().await;
    let script = async {
        let (id, _) = peer.receive().await;
        let newer = Entry {
            revision: Revision(101),
            ..entry("v")
        };
        peer.send(id, values([Some(newer)])).await;
        u16::from(peer.closed().await.unwrap().code)
    };
    let (found, code) = join(storage.get_one("k".into()), script).await;
    let error = found.unwrap_err();
    assert!(error.to_string().contains("revision 101 at 100"), "{error}");
    assert_eq!(code, 1002);
}

#[tokio::test]
async fn revisions_of_a_sessions_commits_rise_with_their_numbers() {
    for (second, first, what) in [
        (
            120,
            120,
            "commit 1 with revision 120, and commit 2 with 120",
        ),
        (
            120,
            130,
            "commit 1 with revision 130, and commit 2 with 120",
        ),
    ] {
        let (_server, storage, mut peer) = connect().await;
        let puts = join(
            storage.put("a".into(), "v".into()),
            storage.put("b".into(), "v".into()),
        );
        let script = async {
            let (one, _) = peer.receive().await;
            let (two, _) = peer.receive().await;
            for (id, revision) in [(two, second), (one, first)] {
                let revision = Revision(revision);
                peer.send(id, ServerMessage::Committed { revision }).await;
            }
            u16::from(peer.closed().await.unwrap().code)
        };
        let ((one, two), code) = join(puts, script).await;
        assert_eq!(two.unwrap(), position(120));
        let error = one.unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert_eq!(code, 1002);
    }
}

// What keeps coming.

/// Resident bytes of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn marks_and_resets_that_nobody_takes_are_merged() {
    let (_server, storage, mut peer) = connect().await;
    let (mut watch, id) = watching(&storage, &mut peer, LATEST).await;
    for revision in 61..20_061 {
        peer.send(id, ServerMessage::Reset).await;
        peer.send(id, mark(revision)).await;
    }
    let ping = storage.ping();
    let script = async {
        let (id, _) = peer.receive().await;
        peer.probed(id).await;
    };
    join(ping, script).await.0.unwrap();
    // All of it says: there is nothing, at this revision.
    assert_eq!(watch.next().await.unwrap(), Some(WatchEvent::Reset));
    let last = WatchEvent::Progress {
        position: position(20_060),
        token: None,
    };
    assert_eq!(watch.next().await.unwrap(), Some(last));
}

#[tokio::test]
async fn histories_that_change_for_ever_cost_neither_memory_nor_a_busy_loop() {
    let (_server, storage, mut peer) = connect().await;
    let (watch, id) = watching(&storage, &mut peer, LATEST).await;
    let began = Instant::now();
    let mut id = id;
    // Each time in another history.
    for n in 0..6 {
        let changed = StorageError::EpochChanged {
            epoch: Epoch(n),
            fork: Revision(1),
        };
        peer.send(id, ServerMessage::Error(changed)).await;
        let message;
        (id, message) = peer.receive().await;
        assert!(matches!(message, ClientMessage::Watch(_)), "{message:?}");
    }
    assert!(
        began.elapsed() > Duration::from_millis(500),
        "it was asked again at once each time"
    );
    peer.send(
        id,
        ServerMessage::Error(StorageError::AccessDenied {
            message: "enough".into(),
        }),
    )
    .await;
    let (told, error) = to_the_end(watch).await;
    assert!(matches!(error, StorageError::AccessDenied { .. }));
    // The last history, and that the watch is lost.
    assert_eq!(told.len(), 2, "{told:?}");
}

/// Each repair goes well, and each time the log is gone again.
#[tokio::test]
async fn repairs_for_ever_are_no_busy_loop() {
    let (_server, storage, mut peer) = connect().await;
    let (_watch, mut id) = watching(&storage, &mut peer, EVERY).await;
    let began = Instant::now();
    for round in 0..6 {
        let oldest = Revision(1_000);
        peer.send(id, ServerMessage::Error(StorageError::Compacted { oldest }))
            .await;
        let (repair, message) = peer.receive().await;
        let ClientMessage::Watch(request) = message else {
            panic!("{message:?} is no watch");
        };
        assert_eq!(request.mode, LATEST);
        let WatchStart::After(Position { revision, .. }) = request.start else {
            panic!("{request:?} begins elsewhere");
        };
        peer.send(repair, ServerMessage::Watching { revision })
            .await;
        peer.send(repair, states(&[("k", 61 + round)])).await;
        peer.send(repair, mark(61 + round)).await;
        // The end of the repair is never answered.
        let mut asked = [peer.receive().await, peer.receive().await];
        asked.sort_by_key(|(_, message)| matches!(message, ClientMessage::Watch(_)));
        let [(_, unwatch), (own, message)] = asked;
        assert_eq!(unwatch, ClientMessage::Unwatch { watch: repair });
        assert!(
            matches!(&message, ClientMessage::Watch(request) if request.mode == EVERY),
            "{message:?}"
        );
        id = own;
    }
    assert!(
        began.elapsed() > Duration::from_millis(500),
        "it was asked again at once each time"
    );
}

/// What waits for answers that never come is bounded by us, not by what a server announces.
#[tokio::test]
async fn no_more_is_in_flight_than_the_protocol_has_room_for() {
    let mut endless = crate::fake::welcome();
    endless.limits.requests_in_flight_max = usize::MAX;
    let (storage, mut peer) = crate::fake::connect_with(endless, |options| options).await;
    let get = async |storage: RemoteStorage| storage.get_one("k".into()).await;
    let first = tokio::spawn(get(storage.clone()));
    let gets = (0..1_100).map(|_| get(storage.clone()));
    let others = tokio::spawn(futures_util::future::join_all(gets));
    for _ in 0..1_024 {
        let (_, message) = peer.receive().await;
        assert!(matches!(message, ClientMessage::Get { .. }), "{message:?}");
    }
    first.abort();
    // Behind whatever else went out.
    let (_, next) = peer.receive().await;
    assert_eq!(next, ClientMessage::Cancel);
    others.abort();
}

#[tokio::test]
async fn an_application_that_takes_no_marks_loses_its_watch_and_not_its_memory() {
    let (_server, storage, mut peer) = connect().await;
    let (mut watch, id) = watching(&storage, &mut peer, EVERY).await;
    // Each that it asked for stands for itself.
    for token in 0..4_096 {
        watch.request_progress(token);
        let (_, probe) = peer.receive().await;
        assert!(matches!(probe, ClientMessage::Probe { .. }), "{probe:?}");
        let (revision, token) = (Revision(100), Some(token));
        peer.send(id, ServerMessage::Progress { revision, token })
            .await;
    }
    peer.send(id, mark(101)).await;
    let ping = storage.ping();
    let script = async {
        let (id, _) = peer.receive().await;
        peer.probed(id).await;
    };
    join(ping, script).await.0.unwrap();
    let (told, error) = to_the_end(watch).await;
    assert_eq!(told.len(), 4_096);
    assert!(error.to_string().contains("4096 marks"), "{error}");
}

/// The server does not know that the watch is over: what it goes on to tell is as legal as before.
#[tokio::test]
async fn a_watch_that_ended_on_this_side_ends_nothing_else() {
    let (_server, storage, mut peer) = connect().await;
    let (mut watch, id) = watching(&storage, &mut peer, LATEST).await;
    peer.send(id, states(&[("k1", 65)])).await;
    peer.send(id, mark(70)).await;
    // One mark more than may be asked for at a time.
    for token in 0..=1_024 {
        watch.request_progress(token);
    }
    for _ in 0..1_024 {
        let (_, probe) = peer.receive().await;
        assert!(matches!(probe, ClientMessage::Probe { .. }), "{probe:?}");
    }
    peer.send(id, states(&[("k1", 75)])).await;
    peer.send(id, mark(80)).await;
    peer.send(id, ServerMessage::Reset).await;
    peer.send(id, states(&[("k2", 3)])).await;
    peer.send(id, mark(90)).await;
    let ping = storage.ping();
    let script = async {
        let (id, _) = peer.receive().await;
        peer.probed(id).await;
    };
    join(ping, script).await.0.unwrap();
    let (told, error) = to_the_end(watch).await;
    assert!(told.len() <= 2, "{told:?}");
    assert!(
        matches!(error, StorageError::Overloaded { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_without_a_mark_stops_the_replica_at_its_bound() {
    const MAX: usize = 32 << 20;
    let (_server, storage, mut peer) = connect().await;
    let options = ReplicaOptions::new().memory_bytes_max(MAX);
    let replica = Replica::start(Arc::new(storage), KeyRange::all(), options)
        .await
        .unwrap();
    let (id, message) = peer.receive().await;
    let ClientMessage::Watch(request) = message else {
        panic!("{message:?} is no watch");
    };
    let revision = Revision::ZERO;
    peer.send(id, ServerMessage::Watching { revision }).await;
    let before = resident();
    // As much as the replica grants, in a pass without an end.
    let flood = async {
        let mut balance = i64::try_from(request.credit).unwrap();
        for message in 0.. {
            while balance <= 0 {
                if let ClientMessage::Credit { bytes } = peer.receive().await.1 {
                    balance += i64::try_from(bytes).unwrap();
                }
            }
            let state = |n: u64| {
                let revision = Revision(1 + message * 100 + n);
                let live = Entry {
                    revision,
                    ..entry(vec![7; 1_000])
                };
                let key = Key::from(format!("{:020}", revision.0));
                (key, KeyState::Live(live))
            };
            let states = (0..100).map(state).collect();
            let packet = ServerMessage::States { states }.encode(Some(id));
            balance -= i64::try_from(packet.payload.len()).unwrap();
            for frame in frames(packet) {
                peer.ws.send(frame).await.unwrap();
            }
        }
    };
    let stopped = tokio::select! {
        () = flood => panic!("the flood ended"),
        stopped = tokio::time::timeout(PATIENCE, replica.ready()) => stopped.expect("no bound"),
    };
    let error = format!("{:?}", stopped.unwrap_err());
    assert!(
        error.contains(&format!("{:?}", Limit::Memory)) && error.contains(&MAX.to_string()),
        "{error}"
    );
    let grown = resident().saturating_sub(before);
    assert!(grown < 3 * MAX, "{grown} bytes");
}

fn frames(packet: storage_protocol::native::Packet) -> Vec<Message> {
    let mut outbox = storage_protocol::native::Outbox::new();
    outbox.push(storage_protocol::native::Class::Change, packet);
    std::iter::from_fn(|| outbox.pop())
        .map(Message::Binary)
        .collect()
}

/// What comes is more than can be read: deadlines are kept all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_holds_up_no_deadline() {
    let (_server, storage, mut peer) =
        Server::connect(|options| options.request_timeout(Duration::from_millis(300))).await;
    let (watch, id) = watching(&storage, &mut peer, EVERY).await;
    // The application let it go, and the server does not mind: what still comes is passed over, once it is decoded.
    drop(watch);
    assert!(matches!(
        peer.receive().await.1,
        ClientMessage::Unwatch { .. }
    ));
    let keys = vec!["k"; 20_000];
    let frame = frames(changes(61, &keys).encode(Some(id)));
    let storm = async {
        loop {
            for frame in frame.clone() {
                peer.ws.feed(frame).await.unwrap();
            }
        }
    };
    let call = tokio::time::timeout(PATIENCE, storage.put("a".into(), "v".into()));
    let answered = tokio::select! {
        () = storm => panic!("the storm ended"),
        answered = call => answered.expect("its deadline passed long ago"),
    };
    let error = answered.unwrap_err();
    assert!(
        matches!(error, StorageError::DeadlineExceeded { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_position_of_an_unknown_epoch_is_told_to_the_caller() {
    let (_server, storage, mut peer) = connect().await;
    let start = WatchStart::After(Position {
        epoch: Epoch(0xbad),
        revision: Revision(60),
    });
    let opened = storage.watch(KeyRange::all(), WatchOptions::every(start));
    let changed = StorageError::EpochChanged {
        epoch: Epoch(0xe),
        fork: Revision::ZERO,
    };
    let script = async {
        let (id, _) = peer.receive().await;
        peer.send(id, ServerMessage::Error(changed.clone())).await;
    };
    assert_eq!(join(opened, script).await.0.unwrap_err(), changed);
}

#[tokio::test]
async fn a_replica_that_is_never_answered_is_not_ready_in_time_and_can_be_closed() {
    let (_server, storage, mut peer) = connect().await;
    let replica = Replica::start(Arc::new(storage), KeyRange::all(), ReplicaOptions::new())
        .await
        .unwrap();
    let (_, message) = peer.receive().await;
    assert!(matches!(message, ClientMessage::Watch(_)), "{message:?}");
    let timeout = Duration::from_millis(50);
    let ready = tokio::time::timeout(PATIENCE, replica.ready_within(timeout)).await;
    let error = ready.unwrap().unwrap_err();
    assert!(matches!(error, ReplicaError::TimedOut { .. }), "{error:?}");
    tokio::time::timeout(PATIENCE, replica.close())
        .await
        .expect("it cannot be closed")
        .unwrap();
}

/// Many answers at a time in parts, each of which was asked for.
#[tokio::test]
async fn what_is_held_in_parts_is_bounded() {
    let mut small = crate::fake::welcome();
    small.limits.message_bytes_max = 1 << 20;
    let (storage, mut peer) = crate::fake::connect_with(small, |options| options).await;
    let gets = futures_util::future::join_all((0..20).map(|_| storage.get_one("k".into())));
    let script = async {
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(peer.receive().await.0);
        }
        let answer = |id| {
            let value = entry(vec![1; (1 << 20) - 100]);
            frames(values([Some(value)]).encode(Some(id)))
        };
        // All but the last part of each.
        let begun = ids.iter().flat_map(|id| {
            let mut parts = answer(*id);
            parts.pop();
            parts
        });
        for part in begun {
            if peer.ws.send(part).await.is_err() {
                break;
            }
        }
        u16::from(peer.closed().await.unwrap().code)
    };
    let (found, code) = join(gets, script).await;
    assert_eq!(code, 1009);
    for found in found {
        let error = found.unwrap_err().to_string();
        assert!(error.contains("too many messages in parts"), "{error}");
    }
}

/// On its own it would try again for ever.
#[tokio::test]
async fn a_replica_stops_when_its_connection_is_over_for_good() {
    let (_server, storage, mut peer) = connect().await;
    let replica = Replica::start(Arc::new(storage), KeyRange::all(), ReplicaOptions::new())
        .await
        .unwrap();
    let (id, _) = peer.receive().await;
    let revision = Revision::ZERO;
    peer.send(id, ServerMessage::Watching { revision }).await;
    peer.send(id, states(&[("b", 61)])).await;
    peer.send(id, states(&[("a", 60)])).await;
    let ready = tokio::time::timeout(PATIENCE, replica.ready()).await;
    let error = ready.expect("it tries for ever").unwrap_err();
    assert!(
        matches!(&error, ReplicaError::Stopped(why) if why.to_string().contains("\"a\" at 60")),
        "{error:?}"
    );
}

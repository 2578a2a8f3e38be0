//! What comes in great numbers, each of it allowed, costs a bounded amount and is answered like the first one.
//!
//! Each test does one thing some thousand times, beside a bound on the server's memory where something could pile up.
//! Peers that are slow or silent are in `slow_peers.rs`, what is not allowed is in `native_bad_input.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use storage_protocol::native::{ClientMessage, ServerMessage, WatchRequest, kind};
use storage_protocol::{
    Batch, ChangeKind, CommitOptions, Key, KeyRange, Keyspace, Lifetime, Limit, ScanOptions,
    Storage, StorageError, StorageExt, WatchEvent, WatchMode, WatchOptions, WatchStart,
};
use storage_server::engine::Engine;
use storage_server::engine::rocks::{Durability, EngineOptions, RocksEngine};
use storage_testkit::raw::{PATIENCE, Raw, Received, in_time, tls, until_closed};
use storage_testkit::served::Served;
use tokio_tungstenite::tungstenite::protocol::Message;

const MIB: u64 = 1 << 20;
fn served(config: &str) -> Served {
    Served::measured(&["many", "witness"], config)
}

fn grown(fixture: &Served, before: u64) -> u64 {
    fixture.server.peak_resident_bytes().saturating_sub(before) / MIB
}

fn get(keys: impl Iterator<Item = String>) -> ClientMessage {
    let keys = keys.map(Key::from).collect();
    ClientMessage::Get { keys }
}

fn commit(number: u64, batch: Batch) -> ClientMessage {
    ClientMessage::Commit {
        number,
        options: CommitOptions::default(),
        batch,
    }
}

/// A masked frame (by zeros) of less than 126 bytes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = 0x80 | u8::try_from(payload.len()).unwrap();
    [&[first, length, 0, 0, 0, 0][..], payload].concat()
}

const EMPTY_CONTINUATION: [u8; 6] = [0, 0x80, 0, 0, 0, 0];

#[tokio::test]
async fn pings_are_answered_and_unread_pongs_cost_bounded_memory() {
    const GROWTH_MAX: u64 = 32;
    let fixture = served("");
    let mut peer = fixture.native("many", "model").await;
    let before = fixture.server.resident_bytes();
    // 50 MB of pings, none of whose pongs is read meanwhile.
    let pings = frame(0x89, &[b'p'; 125]).repeat(4_000);
    for _ in 0..100 {
        peer.write_raw(&pings).await;
    }
    peer.send_message(Message::Ping(Bytes::from_static(b"last")))
        .await;
    let asked = get(["k".to_owned()].into_iter());
    peer.say(Some(1), &asked).await;
    let (mut last, mut answered) = (false, false);
    while !last || !answered {
        match peer.receive().await {
            Received::Pong(bytes) => last |= bytes == "last",
            Received::Binary(_) => answered = true,
            other => panic!("{other:?}"),
        }
    }
    let grown = grown(&fixture, before);
    assert!(grown < GROWTH_MAX, "{grown} MiB");
}

#[tokio::test]
async fn a_hundred_thousand_empty_fragments_are_one_message() {
    const GROWTH_MAX: u64 = 16;
    let fixture = served("");
    let mut native = fixture.native("many", "model").await;
    let mut mwdb = Raw::mwdb(&fixture.server, &fixture.certificates, "many").await;
    let before = fixture.server.resident_bytes();
    for (peer, message, answer) in [
        (
            &mut native,
            &b"\0#\x12C"[..],
            &[b'#', kind::VALUES, b'C'][..],
        ),
        (&mut mwdb, b"k#\0C", b"#\x01C"),
    ] {
        peer.write_raw(&frame(0x02, b"")).await;
        peer.write_raw(&EMPTY_CONTINUATION.repeat(100_000)).await;
        peer.write_raw(&frame(0x80, message)).await;
        let received = peer.binary().await;
        assert!(received.ends_with(answer), "{received:?}");
    }
    let grown = grown(&fixture, before);
    assert!(grown < GROWTH_MAX, "{grown} MiB");
}

#[tokio::test]
async fn gets_that_are_cancelled_at_once_are_answered_and_leave_nothing() {
    let fixture = served("");
    let mut peer = fixture.native("many", "model").await;
    // So many keys are read in the pool of readers, where a get can be given up.
    let asked = get((0..200).map(|n| format!("{n}")));
    for _ in 0..20 {
        for id in 0..500 {
            peer.say(Some(id), &asked).await;
            peer.say(Some(id), &ClientMessage::Cancel).await;
        }
        let mut answered = vec![false; 500];
        for _ in 0..500 {
            let (id, answer) = peer.hear().await;
            assert!(
                matches!(
                    answer,
                    ServerMessage::Values { .. }
                        | ServerMessage::Error(
                            StorageError::Cancelled | StorageError::Overloaded { .. }
                        )
                ),
                "{answer:?}"
            );
            let place = usize::try_from(id.unwrap()).unwrap();
            assert!(
                !std::mem::replace(&mut answered[place], true),
                "{id:?} twice"
            );
        }
    }
    let began = Instant::now();
    while !matches!(peer.ask(0, &asked).await, ServerMessage::Values { .. }) {
        assert!(began.elapsed() < PATIENCE, "its places do not come back");
    }
    let budget = "storage_budget_used_bytes{budget=\"bytes_in_flight\"}";
    fixture.comes_to_nothing(budget).await;
}

#[tokio::test]
async fn sessions_that_come_and_go_leave_nothing() {
    const GROWTH_MAX: u64 = 32;
    let fixture = served("[timeouts]\nsession_grace = \"100ms\"\nsession_kept = \"100ms\"");
    let mut before = 0;
    for n in 0..300 {
        let mut peer = fixture.native("many", "model").await;
        let mine = Batch::new().put_with("mine", "v", Lifetime::Session);
        peer.ask(0, &commit(1, mine)).await;
        // Two of three leave in order, the others are just gone.
        if n % 3 > 0 {
            peer.close().await;
        }
        if n == 100 {
            before = fixture.server.resident_bytes();
        }
    }
    let sessions = "storage_sessions{gateway=\"native\"}";
    fixture.comes_to_nothing(sessions).await;
    fixture.comes_to_nothing("storage_sessions_kept").await;
    let grown = grown(&fixture, before);
    assert!(grown < GROWTH_MAX, "{grown} MiB");
}

#[tokio::test]
async fn one_more_watch_than_the_limit_is_refused_and_one_that_ended_makes_room() {
    let fixture = served("[limits]\nwatches_max = 100");
    let mut peer = fixture.native("many", "model").await;
    let watch = ClientMessage::Watch(WatchRequest {
        range: KeyRange::all(),
        start: WatchStart::Now,
        mode: WatchMode::Every,
        credit: 1,
    });
    for id in 0..100 {
        let answer = peer.ask(id, &watch).await;
        assert!(matches!(answer, ServerMessage::Watching { .. }), "{id}");
    }
    let refused = |answer: ServerMessage| {
        let ServerMessage::Error(StorageError::Overloaded { limit, max }) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!((limit, max), (Limit::Watches, 100));
    };
    refused(peer.ask(100, &watch).await);
    assert_eq!(
        peer.ask(101, &ClientMessage::Unwatch { watch: 7 }).await,
        ServerMessage::Done
    );
    let again = peer.ask(7, &watch).await;
    assert!(matches!(again, ServerMessage::Watching { .. }), "{again:?}");
    refused(peer.ask(100, &watch).await);
}

/// How many removals with this label a watch tells, until there are so many.
async fn removals(watch: &mut storage_protocol::Watch, label: &str, count: usize) {
    let counting = async {
        let mut removed = 0;
        while removed < count {
            if let WatchEvent::Commit(record) = watch.next().await.unwrap().unwrap()
                && record.label.as_deref() == Some(label)
            {
                let is_removal = |kind: &ChangeKind| matches!(kind, ChangeKind::Removed { .. });
                removed += record
                    .changes
                    .iter()
                    .filter(|c| is_removal(&c.kind))
                    .count();
            }
        }
        assert_eq!(removed, count);
    };
    in_time(label, counting).await;
}

#[tokio::test]
async fn ten_thousand_entries_that_end_in_one_moment_are_all_removed_and_told() {
    const COUNT: usize = 10_000;
    let fixture = served("");
    let storage = fixture.connect("witness", "model").await;
    let every = WatchOptions::every(WatchStart::Now);
    let mut watch = storage.watch(KeyRange::all(), every).await.unwrap();
    let brief = Lifetime::TimeToLive(Duration::from_millis(500));
    let mut batch = Batch::new();
    for n in 0..COUNT {
        batch = batch.put_with(format!("brief/{n}"), "v", brief);
    }
    storage
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
    storage.put("stays".into(), "v".into()).await.unwrap();
    removals(&mut watch, "expired", COUNT).await;
    let left = storage.scan(KeyRange::all(), ScanOptions::default());
    assert_eq!(left.await.unwrap().collect().await.unwrap().len(), 1);
}

#[tokio::test]
async fn ten_thousand_keys_of_a_session_go_with_it() {
    const COUNT: usize = 10_000;
    let fixture = served("");
    let storage = fixture.connect("witness", "model").await;
    let every = WatchOptions::every(WatchStart::Now);
    let mut watch = storage.watch(KeyRange::all(), every).await.unwrap();
    let mut peer = fixture.native("many", "model").await;
    let mut batch = Batch::new().put("stays", "v");
    for n in 1..COUNT {
        batch = batch.put_with(format!("mine/{n}"), "v", Lifetime::Session);
    }
    let done = peer.ask(0, &commit(1, batch)).await;
    assert!(matches!(done, ServerMessage::Committed { .. }), "{done:?}");
    let normal = tokio_tungstenite::tungstenite::protocol::CloseFrame {
        code: 1000.into(),
        reason: "".into(),
    };
    peer.send_message(Message::Close(Some(normal))).await;
    removals(&mut watch, "session ended", COUNT - 1).await;
    let left = storage.scan(KeyRange::all(), ScanOptions::default());
    assert_eq!(left.await.unwrap().collect().await.unwrap().len(), 1);
}

#[tokio::test]
async fn thousands_of_keyspaces_keep_their_own_entries_over_a_restart() {
    const COUNT: u32 = 2_500;
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        RocksEngine::open(EngineOptions {
            disk_reserve_bytes: 0,
            durability: Durability::Os,
            ..EngineOptions::new(folder.path())
        })
        .unwrap()
    };
    let name = |n: u32| Keyspace::new(&format!("space-{n}")).unwrap();
    let engine = open();
    for n in 0..COUNT {
        let session = engine.open_session("cert:w", &name(n)).storage();
        session
            .put("k".into(), format!("{n}").into())
            .await
            .unwrap();
    }
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .unwrap();
    let engine = open();
    for n in 0..COUNT {
        let session = engine.open_session("cert:r", &name(n)).storage();
        let scan = session.scan(KeyRange::all(), ScanOptions::default());
        let items = scan.await.unwrap().collect().await.unwrap();
        assert_eq!(items.len(), 1, "{n}");
        let entry = session.get_one("k".into()).await.unwrap().unwrap();
        assert_eq!(entry.value, format!("{n}"));
    }
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .unwrap();
}

#[tokio::test]
async fn thirty_million_separators_close_with_1009_and_are_not_made_into_keys() {
    /// The message, and the copies of it on its way in; 30 million keys would take 960 MB.
    const GROWTH_MAX: u64 = 160;
    let fixture = served("");
    let before = fixture.server.resident_bytes();
    for kind in [0, 2, 3] {
        let peer = Raw::mwdb(&fixture.server, &fixture.certificates, "many").await;
        let mut message = vec![b'#'; 30_000_000];
        message.extend_from_slice(&[kind, b'C']);
        let message = Message::Binary(message.into());
        let (code, reason) = peer.send_until_closed(vec![message]).await;
        assert_eq!(code, 1009, "{reason}");
        assert!(reason.contains("at most 1000000"), "{reason}");
    }
    let grown = grown(&fixture, before);
    assert!(grown < GROWTH_MAX, "{grown} MiB");
}

#[tokio::test]
async fn headers_by_the_thousand_and_another_http_are_refused() {
    let fixture = served("");
    let many = "X-Header: value\r\n".repeat(1_000);
    for (case, request) in [
        (
            "1,000 headers",
            storage_testkit::raw::upgrade_request("/storage/a", &many),
        ),
        (
            "the preface of HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        ),
    ] {
        let mut stream = tls(&fixture.server, &fixture.certificates, "many").await;
        // The server need not take it to the end.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await;
        let (waited, said) = until_closed(&mut stream).await;
        assert!(waited < Duration::from_secs(8), "{case}: {waited:?}");
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(!said.starts_with("HTTP/1.1 101"), "{case}: {said}");
    }
}

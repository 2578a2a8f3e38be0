//! Peers that say nothing, read nothing or grant nothing cost the server little, and are closed when they overstay.
//!
//! The server runs with short time-outs from a configuration file, and one test with the defaults. How a session ended
//! is read from the metrics, since a peer that does not read cannot be told. Bounds on memory are stated as constants
//! and compared with what the same work costs without the slow peer.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use storage_client::RemoteStorage;
use storage_protocol::native::{ClientMessage, ServerMessage, WatchRequest, close_code};
use storage_protocol::{
    Batch, ChangeKind, CommitOptions, Key, KeyRange, Revision, Storage, StorageExt, WatchMode,
    WatchStart,
};
use storage_testkit::raw::{
    Raw, Received, hello, in_time, metric_reaches, tcp, tls, until_closed, upgrade_request,
};
use storage_testkit::served::Served;
use tokio::io::AsyncWriteExt;

const MIB: u64 = 1 << 20;
/// How much later than its limit the server may close, on a busy machine.
const LATE: Duration = Duration::from_secs(3);

fn served(config: &str) -> Served {
    Served::new(&["slow", "quick"], config)
}

async fn closed(fixture: &Served, reason: &str) -> f64 {
    let name = format!("storage_sessions_closed_total{{reason=\"{reason}\"}}");
    fixture.metric(&name).await
}

/// Closes within this limit, and not before.
fn assert_on_time(what: &str, waited: Duration, limit: Duration) {
    assert!(
        waited + Duration::from_millis(200) >= limit,
        "{what}: after {waited:?} already"
    );
    assert!(waited < limit + LATE, "{what}: only after {waited:?}");
}

/// All the ways to stop on the way to a session, each of them closed at the limit for the whole way.
async fn stop_on_the_way(fixture: &Served, limit: Duration) {
    let (server, certificates) = (&fixture.server, &fixture.certificates);
    let silent_tcp = async {
        let mut stream = tcp(server).await;
        let (waited, said) = until_closed(&mut stream).await;
        assert_on_time("TCP and nothing", waited, limit);
        assert!(said.is_empty());
    };
    let half_a_hello = async {
        let mut stream = tcp(server).await;
        stream.write_all(&[0x16, 3, 1, 0, 200, 1]).await.unwrap();
        let (waited, _) = until_closed(&mut stream).await;
        assert_on_time("half a TLS ClientHello", waited, limit);
    };
    let silent_tls = async {
        let mut stream = tls(server, certificates, "slow").await;
        let (waited, said) = until_closed(&mut stream).await;
        assert_on_time("TLS and nothing", waited, limit);
        assert!(said.is_empty());
    };
    let half_a_request = async {
        let mut stream = tls(server, certificates, "slow").await;
        stream
            .write_all(b"GET /storage/shared HTTP/1.1\r\nHost: ")
            .await
            .unwrap();
        let (waited, _) = until_closed(&mut stream).await;
        assert_on_time("half an HTTP request", waited, limit);
    };
    let drop_by_drop = async {
        let stream = tls(server, certificates, "slow").await;
        let (mut reading, mut writing) = tokio::io::split(stream);
        let request = upgrade_request("/storage/shared", "");
        let dripping = async {
            // Each byte is a sign of life, and none of them buys time.
            for byte in request.bytes().cycle() {
                if writing.write_all(&[byte.max(b' ')]).await.is_err()
                    || writing.flush().await.is_err()
                {
                    break;
                }
                tokio::time::sleep(limit / 100).await;
            }
            std::future::pending::<()>().await;
        };
        let (waited, _) = tokio::select! {
            closed = until_closed(&mut reading) => closed,
            () = dripping => unreachable!("it pends"),
        };
        assert_on_time("HTTP drop by drop", waited, limit);
    };
    let no_hello = async {
        let began = Instant::now();
        let mut peer = Raw::mute(server, certificates, "slow", "shared").await;
        let (code, reason) = peer.closed().await;
        assert_on_time("no Hello", began.elapsed(), limit);
        assert_eq!(
            (code, reason.as_str()),
            (close_code::HELLO_TIMEOUT, "no Hello in time")
        );
    };
    let served = async {
        let quick = fixture.connect("quick", "shared").await;
        let began = Instant::now();
        while began.elapsed() < limit {
            in_time("a put", quick.put("k".into(), "v".into()))
                .await
                .unwrap();
        }
    };
    tokio::join!(
        silent_tcp,
        half_a_hello,
        silent_tls,
        half_a_request,
        drop_by_drop,
        no_hello,
        served
    );
    // Who is past Hello by then stays.
    let mut stays = fixture.native("slow", "shared").await;
    let nothing = stays.receive_within(Duration::from_millis(300)).await;
    assert_eq!(nothing, None);
}

#[tokio::test]
async fn who_does_not_come_to_the_point_is_closed_at_the_configured_limit() {
    let fixture = served("[timeouts]\nhandshake = \"1500ms\"\n");
    Box::pin(stop_on_the_way(&fixture, Duration::from_millis(1500))).await;
}

#[tokio::test]
async fn who_does_not_come_to_the_point_is_closed_after_10_s_by_default() {
    let fixture = served("");
    Box::pin(stop_on_the_way(&fixture, Duration::from_secs(10))).await;
}

#[tokio::test]
async fn a_silent_peer_is_pinged_and_then_closed_with_4001() {
    let config = "[timeouts]\nheartbeat = \"500ms\"\nsilence = \"1500ms\"\n";
    let fixture = served(config);
    // One that reads, and so answers pings, stays; the library answers for it.
    let mut lives = fixture.native("slow", "shared").await;
    let mut dead = fixture.native("slow", "shared").await;
    let began = Instant::now();
    let mut pings = 0;
    while began.elapsed() < Duration::from_millis(1500) + LATE {
        match lives.receive_within(Duration::from_millis(100)).await {
            Some(Received::Ping) => pings += 1,
            None => {}
            Some(other) => panic!("{other:?}"),
        }
        if closed(&fixture, "silent").await > 0.0 {
            break;
        }
    }
    assert_on_time("silence", began.elapsed(), Duration::from_millis(1500));
    assert!(pings >= 2, "pinged {pings} times");
    assert_eq!(dead.receive().await, Received::Ping);
    let (code, reason) = dead.closed().await;
    assert_eq!(
        (code, reason.as_str()),
        (close_code::SILENT, "nothing was heard for 1s 500ms")
    );
    let answer = lives.ask(1, &ClientMessage::Get { keys: Vec::new() }).await;
    assert!(matches!(answer, ServerMessage::Values { .. }));
    // An mwDB peer is treated alike.
    let mut mwdb = Raw::mwdb(&fixture.server, &fixture.certificates, "slow").await;
    let name = "storage_sessions_closed_total{reason=\"silent\"}";
    let keep = async {
        loop {
            lives.receive_within(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        _ = metric_reaches(&fixture.server, name, 2.0) => {}
        () = keep => {}
    }
    assert_eq!(mwdb.closed().await.0, close_code::SILENT);
}

/// A peer asks for 1,000 answers of 4 MiB (4 GiB in all) and reads none.
#[tokio::test]
async fn a_peer_that_never_reads_is_closed_and_costs_bounded_memory() {
    /// Outbox (8 MiB), one answer more, a message in the socket's buffer, and the copies on their way.
    const GROWTH_MAX: u64 = 64 * MIB;
    const SLOW_PEER: Duration = Duration::from_secs(4);
    let fixture = served("[timeouts]\nslow_peer = \"4s\"\n");
    let quick = fixture.connect("quick", "shared").await;
    quick
        .put("large".into(), vec![b'v'; 4 << 20].into())
        .await
        .unwrap();
    // What the answers cost by themselves, caches included, is no matter of the slow peer.
    for _ in 0..10 {
        quick.get_one("large".into()).await.unwrap();
    }
    let before = fixture.server.resident_bytes();
    let mut slow = fixture.native("slow", "shared").await;
    let get = ClientMessage::Get {
        keys: vec!["large".into()],
    };
    for id in 0..1_000 {
        slow.say(Some(id), &get).await;
    }
    let began = Instant::now();
    let (mut most, mut slowest, mut puts) = (0, Duration::ZERO, 0);
    while closed(&fixture, "slow").await < 1.0 {
        assert!(
            began.elapsed() < SLOW_PEER + LATE,
            "the slow peer is not closed"
        );
        let asked = Instant::now();
        quick.put("small".into(), "v".into()).await.unwrap();
        slowest = slowest.max(asked.elapsed());
        puts += 1;
        most = most.max(fixture.server.resident_bytes());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_on_time("a peer that reads nothing", began.elapsed(), SLOW_PEER);
    // What was on its way comes, and behind it the reason.
    let (code, reason) = slow.closed().await;
    assert_eq!(
        (code, reason.as_str()),
        (close_code::SLOW, "nothing was taken for 4s")
    );
    let grown = most.saturating_sub(before);
    assert!(
        grown < GROWTH_MAX,
        "resident memory grew by {} MiB",
        grown / MIB
    );
    assert!(
        slowest < Duration::from_secs(1),
        "of {puts} puts one took {slowest:?}"
    );
}

/// A peer that reads, though slowly, is not closed.
#[tokio::test]
async fn a_peer_that_reads_slowly_is_left_alone() {
    let fixture = served("[timeouts]\nslow_peer = \"1s\"\n");
    let quick = fixture.connect("quick", "shared").await;
    quick
        .put("large".into(), vec![b'v'; 8 << 20].into())
        .await
        .unwrap();
    let mut slow = fixture.native("slow", "shared").await;
    let get = ClientMessage::Get {
        keys: vec!["large".into()],
    };
    for id in 0..4 {
        slow.say(Some(id), &get).await;
    }
    let began = Instant::now();
    let mut parts = 0;
    // 32 MiB in parts of 64 KiB, at about 10 MiB a second: more than three times its limit.
    while parts < 4 * 128 {
        slow.binary().await;
        parts += 1;
        tokio::time::sleep(Duration::from_millis(6)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(3));
    assert_eq!(closed(&fixture, "slow").await, 0.0);
}

const COMMITS: u64 = 200;

/// 50 MiB in commits of 256 KiB under `prefix`; the revision of each.
async fn write_50_mib(storage: &RemoteStorage, prefix: &str) -> Vec<Revision> {
    let mut revisions = Vec::new();
    for n in 0..COMMITS {
        let mut value = vec![b'v'; 256 << 10];
        value[..8].copy_from_slice(&n.to_be_bytes());
        let put = storage.put(format!("{prefix}{n:04}").into(), value.into());
        revisions.push(in_time("a put", put).await.unwrap().revision);
    }
    revisions
}

#[tokio::test]
async fn watches_without_credit_cost_nothing_and_miss_nothing() {
    /// Each of the watches keeping what it is not told would take 50 MiB.
    const WATCHES: u32 = 8;
    const GROWTH_MAX: u64 = 40 * MIB;
    // The ring is shorter than what is written, so the watches are caught up from the log on the disk.
    let config = "[limits]\nmemory_bytes_max = \"64 MiB\"\n[engine]\nring_bytes = \"4 MiB\"\n";
    let fixture = served(config);
    let quick = fixture.connect("quick", "shared").await;
    // The engine's own buffers are full before anything is measured.
    for round in 0..3 {
        write_50_mib(&quick, &format!("warm{round}/")).await;
    }
    let mut peer = fixture.native("slow", "shared").await;
    for id in 0..WATCHES {
        let watch = ClientMessage::Watch(WatchRequest {
            range: KeyRange::prefix("watched/"),
            start: WatchStart::Now,
            mode: WatchMode::Every,
            credit: 0,
        });
        let answer = peer.ask(id, &watch).await;
        assert!(
            matches!(answer, ServerMessage::Watching { .. }),
            "{answer:?}"
        );
    }
    let before = fixture.server.resident_bytes();
    let revisions = write_50_mib(&quick, "watched/").await;
    let after = fixture.server.resident_bytes();
    let silence = peer.receive_within(Duration::from_millis(300)).await;
    assert_eq!(silence, None, "nothing is told without credit");
    let grown = after.saturating_sub(before);
    assert!(
        grown < GROWTH_MAX,
        "resident memory grew by {} MiB",
        grown / MIB
    );

    // Credit for one watch, a little at a time: each commit once, in order, and the others rest.
    let grant = |bytes| ClientMessage::Credit { bytes };
    let mut told: Vec<(Revision, Key)> = Vec::new();
    peer.say(Some(3), &grant(1 << 20)).await;
    while told.len() < revisions.len() {
        let (id, message) = peer.hear().await;
        assert_eq!(id, Some(3), "only this one has credit");
        let commits = match message {
            ServerMessage::Changes { commits } => commits,
            ServerMessage::Progress { .. } => continue,
            other => panic!("{other:?}"),
        };
        for commit in commits {
            let [change] = &commit.changes[..] else {
                panic!("{:?}", commit.changes);
            };
            let ChangeKind::Put { value, .. } = &change.kind else {
                panic!("{:?}", change.kind);
            };
            assert_eq!(
                value[..8],
                (told.len() as u64).to_be_bytes(),
                "no gap, no double"
            );
            assert_eq!(value.len(), 256 << 10);
            told.push((commit.revision, change.key.clone()));
            peer.say(Some(3), &grant(value.len() as u64 + 200)).await;
        }
    }
    let expected: Vec<(Revision, Key)> = revisions
        .iter()
        .zip(0..)
        .map(|(revision, n): (_, u64)| (*revision, format!("watched/{n:04}").into()))
        .collect();
    assert_eq!(told, expected);
    // It goes on live: the next commit comes next.
    let batch = Batch::new().put("watched/next", "v");
    let next = quick.commit(batch, CommitOptions::default()).await.unwrap();
    peer.say(Some(3), &grant(1 << 20)).await;
    let live = loop {
        match peer.hear().await {
            (Some(3), ServerMessage::Changes { commits }) => break commits,
            (Some(3), ServerMessage::Progress { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].revision, next.revision);
}

/// An mwDB peer cannot park: its pushes are bounded, and over the bound it is closed after 10 s.
#[tokio::test]
async fn an_mwdb_peer_that_never_reads_its_pushes_is_closed() {
    const GROWTH_MAX: u64 = 96 * MIB;
    let fixture = served("[limits]\nmemory_bytes_max = \"64 MiB\"\n");
    let mut slow = Raw::mwdb(&fixture.server, &fixture.certificates, "slow").await;
    slow.send(Bytes::from_static(b"\x06A")).await;
    assert_eq!(slow.binary().await[..], *b"A#\x07A");
    let quick = fixture.connect("quick", "mwdb").await;
    // The engine's own buffers are full before anything is measured.
    let elsewhere = fixture.connect("quick", "shared").await;
    for round in 0..3 {
        write_50_mib(&elsewhere, &format!("warm{round}/")).await;
    }
    let before = fixture.server.resident_bytes();
    let began = Instant::now();
    let mut most = 0;
    while closed(&fixture, "slow").await < 1.0 {
        assert!(
            began.elapsed() < Duration::from_secs(10) + LATE,
            "it is not closed"
        );
        quick
            .put("k".into(), vec![b'v'; 256 << 10].into())
            .await
            .unwrap();
        most = most.max(fixture.server.resident_bytes());
    }
    let grown = most.saturating_sub(before);
    assert!(
        grown < GROWTH_MAX,
        "resident memory grew by {} MiB",
        grown / MIB
    );
    let (code, reason) = slow.closed().await;
    assert_eq!(code, close_code::POLICY, "{reason}");
    assert!(
        reason.contains("bytes of pushes waited for 10 s"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_late_but_timely_hello_is_welcome() {
    let fixture = served("[timeouts]\nhandshake = \"3s\"\n");
    let mut peer = Raw::mute(&fixture.server, &fixture.certificates, "slow", "shared").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    peer.say(None, &hello()).await;
    let (_, answer) = peer.hear().await;
    assert!(matches!(answer, ServerMessage::Welcome(_)), "{answer:?}");
    // And the limit is over with Welcome.
    assert_eq!(peer.receive_within(Duration::from_millis(2500)).await, None);
}

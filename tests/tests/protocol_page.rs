//! Sentences of `docs/protocol.md` that no other test holds: what a client in another language would have to guess.
//!
//! A server process of its own for each test, and a peer that says exactly what the test says. What breaks the protocol
//! is in `native_bad_input.rs`, sessions are in `sessions.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::time::Duration;

use bytes::Bytes;
use storage_protocol::native::{
    ClientMessage, Hello, SUBPROTOCOL, ServerMessage, WatchRequest, Welcome, kind,
};
use storage_protocol::{
    Batch, CommitOptions, EntryLifetime, Key, KeyRange, Lifetime, Position, Revision, ScanOptions,
    SessionId, StorageError, UnixMillis, WatchMode, WatchStart,
};
use storage_testkit::harness::{Certificates, ServerProcess};
use storage_testkit::raw::{Raw, upgrade_request};
use tempfile::TempDir;

struct Fixture {
    server: ServerProcess,
    certificates: Certificates,
    _folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::issue(&["stranger"]);
        let data = folder.path().join("data");
        let server = ServerProcess::mutual(&certificates, &data, &[]);
        Self {
            server,
            certificates,
            _folder: folder,
        }
    }

    async fn session(&self) -> (Raw, Welcome) {
        Raw::native(&self.server, &self.certificates, "stranger", "demo").await
    }

    async fn resume(&self, session: SessionId, incarnation: u64) -> (Raw, Welcome) {
        let hello = ClientMessage::Hello(Hello {
            session: Some(session),
            incarnation,
            ..Hello::new("raw/1")
        });
        let (server, certificates) = (&self.server, &self.certificates);
        let mut raw = Raw::mute(server, certificates, "stranger", "demo").await;
        raw.say(None, &hello).await;
        match raw.hear().await {
            (None, ServerMessage::Welcome(welcome)) => (raw, welcome),
            other => panic!("not Welcome: {other:?}"),
        }
    }
}

fn commit(number: u64, batch: Batch) -> ClientMessage {
    ClientMessage::Commit {
        number,
        options: CommitOptions::default(),
        batch,
    }
}

async fn done(raw: &mut Raw, id: u32, number: u64, batch: Batch) -> Revision {
    match raw.ask(id, &commit(number, batch)).await {
        ServerMessage::Committed { revision } => revision,
        other => panic!("not committed: {other:?}"),
    }
}

async fn refused(raw: &mut Raw, id: u32, message: &ClientMessage) -> StorageError {
    match raw.ask(id, message).await {
        ServerMessage::Error(error) => error,
        other => panic!("not refused: {other:?}"),
    }
}

async fn invalid(raw: &mut Raw, id: u32, message: &ClientMessage) {
    let error = refused(raw, id, message).await;
    assert!(
        matches!(error, StorageError::InvalidArgument { .. }),
        "{error:?}"
    );
}

fn watch(start: WatchStart, mode: WatchMode, credit: u64) -> ClientMessage {
    let range = KeyRange::all();
    ClientMessage::Watch(WatchRequest {
        range,
        start,
        mode,
        credit,
    })
}

/// The next message, past marks that nobody asked for.
async fn next(raw: &mut Raw) -> (Option<u32>, ServerMessage) {
    loop {
        match raw.hear().await {
            (_, ServerMessage::Progress { token: None, .. }) => {}
            other => return other,
        }
    }
}

fn frame(payload: &[u8], kind: u8, id: &[u8]) -> Bytes {
    [payload, b"#", &[kind][..], id].concat().into()
}

/// Section 2: a query behind the path.
#[tokio::test]
async fn a_query_behind_the_path_is_taken() {
    let fixture = Fixture::new();
    let protocol = format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n");
    let request = upgrade_request("/storage/demo?of=a%20proxy", &protocol);
    let (server, certificates) = (&fixture.server, &fixture.certificates);
    let mut raw = Raw::open(server, certificates, "stranger", &request)
        .await
        .unwrap();
    raw.say(None, &ClientMessage::Hello(Hello::new("raw/1")))
        .await;
    assert!(matches!(
        raw.hear().await,
        (None, ServerMessage::Welcome(_))
    ));
    done(&mut raw, 0, 1, Batch::new().put("k", "v")).await;
}

/// Section 1: revisions grow, not by one, and do not begin at 1.
#[tokio::test]
async fn a_fresh_store_is_not_at_0_and_its_revisions_have_gaps() {
    let fixture = Fixture::new();
    let (mut raw, welcome) = fixture.session().await;
    assert!(welcome.position.revision > Revision::ZERO);
    let first = done(&mut raw, 0, 1, Batch::new().put("a", "1")).await;
    let second = done(&mut raw, 0, 2, Batch::new().put("b", "2")).await;
    assert!(first > welcome.position.revision);
    assert!(second.0 > first.0 + 1, "{first} {second}");
    // A number between two commits stands for the earlier one.
    let between = Position {
        epoch: welcome.position.epoch,
        revision: Revision(second.0 - 1),
    };
    let every = watch(WatchStart::After(between), WatchMode::Every, 1 << 20);
    assert!(matches!(
        raw.ask(1, &every).await,
        ServerMessage::Watching { .. }
    ));
    let (_, ServerMessage::Changes { commits }) = next(&mut raw).await else {
        panic!("not CHANGES");
    };
    assert_eq!(commits.first().unwrap().revision, second);
}

/// Sections 5.2 and 5.4: no entry has an empty key; only operations refuse it.
#[tokio::test]
async fn an_empty_key_is_absent_to_a_get_and_a_check_and_refused_in_an_operation() {
    let fixture = Fixture::new();
    let (mut raw, _) = fixture.session().await;
    let keys = vec![Key::new()];
    match raw.ask(0, &ClientMessage::Get { keys }).await {
        ServerMessage::Values { entries, .. } => assert_eq!(entries, [None]),
        other => panic!("{other:?}"),
    }
    done(&mut raw, 0, 1, Batch::new().check_absent("").put("k", "v")).await;
    let present = Batch::new().check_revision("", Revision(1));
    let error = refused(&mut raw, 0, &commit(2, present)).await;
    assert!(
        matches!(error, StorageError::CheckFailed { actual: None, .. }),
        "{error:?}"
    );
    for (number, batch) in (3..).zip([Batch::new().put("", "v"), Batch::new().remove("")]) {
        invalid(&mut raw, 0, &commit(number, batch)).await;
    }
    // The empty prefix of a stamped key is a prefix like others: the key is the 8 bytes of the revision.
    let stamped = Batch::new().put_stamped("", "v", Lifetime::Forever);
    done(&mut raw, 0, 5, stamped).await;
}

/// Section 5.4: two puts stamped under one prefix would be one key.
#[tokio::test]
async fn one_prefix_is_stamped_once_in_a_commit() {
    let fixture = Fixture::new();
    let (mut raw, _) = fixture.session().await;
    let stamp =
        |batch: Batch, prefix: &'static str| batch.put_stamped(prefix, "v", Lifetime::Forever);
    let twice = stamp(stamp(Batch::new(), "log/"), "log/");
    invalid(&mut raw, 0, &commit(1, twice)).await;
    let apart = stamp(stamp(Batch::new(), "log/"), "log2/").put("log/", "v");
    done(&mut raw, 0, 2, apart).await;
}

/// Section 4: a lifetime that ends beyond the last time there is.
#[tokio::test]
async fn a_time_to_live_beyond_all_time_ends_at_the_last_one() {
    let fixture = Fixture::new();
    let (mut raw, _) = fixture.session().await;
    let longest = Lifetime::TimeToLive(Duration::from_millis(u64::MAX));
    done(&mut raw, 0, 1, Batch::new().put_with("k", "v", longest)).await;
    let keys = vec!["k".into()];
    match raw.ask(0, &ClientMessage::Get { keys }).await {
        ServerMessage::Values { entries, .. } => {
            let until = EntryLifetime::Until(UnixMillis(u64::MAX));
            assert_eq!(entries[0].as_ref().unwrap().lifetime, until);
        }
        other => panic!("{other:?}"),
    }
}

/// Section 5.3: a limit of 0.
#[tokio::test]
async fn a_scan_with_limit_0_is_one_empty_page() {
    let fixture = Fixture::new();
    let (mut raw, _) = fixture.session().await;
    done(&mut raw, 0, 1, Batch::new().put("k", "v")).await;
    let options = ScanOptions {
        limit: Some(0),
        ..ScanOptions::default()
    };
    let scan = ClientMessage::Scan {
        range: KeyRange::all(),
        options,
    };
    match raw.ask(0, &scan).await {
        ServerMessage::Page { scan, items, .. } => assert_eq!((scan, items), (None, Vec::new())),
        other => panic!("{other:?}"),
    }
}

/// Sections 5.3 and 5.5: a position that the store has not come to.
#[tokio::test]
async fn a_position_beyond_the_last_revision_is_refused() {
    let fixture = Fixture::new();
    let (mut raw, welcome) = fixture.session().await;
    let beyond = Position {
        epoch: welcome.position.epoch,
        revision: Revision(welcome.position.revision.0 + 1_000),
    };
    let latest = WatchMode::Latest {
        min_interval: Duration::ZERO,
    };
    for mode in [WatchMode::Every, latest] {
        invalid(&mut raw, 0, &watch(WatchStart::After(beyond), mode, 1)).await;
    }
    let options = ScanOptions {
        newer_than: Some(beyond),
        ..ScanOptions::default()
    };
    let scan = ClientMessage::Scan {
        range: KeyRange::all(),
        options,
    };
    invalid(&mut raw, 0, &scan).await;
}

/// Section 5.9: commits are never given up, those that wait for an earlier number neither.
#[tokio::test]
async fn a_commit_that_waits_for_an_earlier_number_is_not_cancelled() {
    let fixture = Fixture::new();
    let (mut raw, _) = fixture.session().await;
    raw.say(Some(2), &commit(2, Batch::new().put("b", "2")))
        .await;
    raw.say(Some(2), &ClientMessage::Cancel).await;
    // What is not in flight is passed over.
    raw.say(Some(77), &ClientMessage::Cancel).await;
    raw.say(Some(77), &ClientMessage::Credit { bytes: 5 }).await;
    raw.say(Some(1), &commit(1, Batch::new().put("a", "1")))
        .await;
    for expected in [1, 2] {
        let (id, answer) = raw.hear().await;
        assert!(
            id == Some(expected) && matches!(answer, ServerMessage::Committed { .. }),
            "{id:?} {answer:?}"
        );
    }
}

/// Section 6: a session that comes in place of another begins anew.
#[tokio::test]
async fn a_session_in_place_of_another_begins_at_number_1_and_incarnation_0() {
    let fixture = Fixture::new();
    let (mut raw, welcome) = fixture.resume(SessionId([7; 16]), 1_000).await;
    assert_ne!(welcome.session, SessionId([7; 16]));
    assert_eq!((welcome.executed, welcome.lapsed), (0, false));
    done(&mut raw, 0, 1, Batch::new().put("k", "v")).await;
    let (mut again, resumed) = fixture.resume(welcome.session, 1).await;
    assert_eq!(resumed.session, welcome.session);
    assert_eq!(resumed.executed, 1);
    // An incarnation is spent even if nothing was committed under it.
    let hello = ClientMessage::Hello(Hello {
        session: Some(welcome.session),
        incarnation: 1,
        ..Hello::new("raw/1")
    });
    let (server, certificates) = (&fixture.server, &fixture.certificates);
    let mut late = Raw::mute(server, certificates, "stranger", "demo").await;
    late.say(None, &hello).await;
    assert_eq!(late.closed().await.0, 4003);
    assert!(matches!(
        again.ask(0, &ClientMessage::Get { keys: Vec::new() }).await,
        ServerMessage::Values { .. }
    ));
}

/// Sections 5.5 and 5.10: UNWATCH takes the id, PROBE the id plus 1; both refuse what is no id.
#[tokio::test]
async fn unwatch_takes_the_id_and_probe_the_id_plus_1() {
    let fixture = Fixture::new();
    let (mut raw, _) = fixture.session().await;
    let every = watch(WatchStart::Now, WatchMode::Every, 1 << 20);
    assert!(matches!(
        raw.ask(7, &every).await,
        ServerMessage::Watching { .. }
    ));
    // Of the watch 7, written 8; the answer comes under the watch's id.
    raw.send(frame(b"\x08\xf4\x03", kind::PROBE, b"W")).await;
    let (id, mark) = next(&mut raw).await;
    assert_eq!(id, Some(7));
    assert!(
        matches!(
            mark,
            ServerMessage::Progress {
                token: Some(500),
                ..
            }
        ),
        "{mark:?}"
    );
    // Written 7 it is about the watch 6, which is not open.
    raw.send(frame(b"\x07\xf4\x03", kind::PROBE, b"W")).await;
    let (id, error) = next(&mut raw).await;
    assert_eq!(id, Some(11));
    let StorageError::InvalidArgument { message } = error_of(error) else {
        panic!("not InvalidArgument");
    };
    assert!(message.contains("there is no watch 6"), "{message}");
    // UNWATCH of 8 is of no watch, and answered all the same; of 7 it ends the watch.
    for watch in [b"\x08", b"\x07"] {
        raw.send(frame(watch, kind::UNWATCH, b"W")).await;
        assert_eq!(next(&mut raw).await, (Some(11), ServerMessage::Done));
    }
    for (payload, kind) in [
        (&b"\x80\x80\x80\x80\x08"[..], kind::UNWATCH),
        (b"\x81\x80\x80\x80\x08\x00", kind::PROBE),
    ] {
        let (mut raw, _) = fixture.session().await;
        raw.send(frame(payload, kind, b"W")).await;
        assert_eq!(raw.closed().await.0, 1002);
    }
}

fn error_of(message: ServerMessage) -> StorageError {
    match message {
        ServerMessage::Error(error) => error,
        other => panic!("not ERROR: {other:?}"),
    }
}

/// Section 5.10: a PROBE of a watch `Latest` does not wait for the interval of its passes.
#[tokio::test]
async fn a_probe_of_latest_begins_a_pass_at_once() {
    let fixture = Fixture::new();
    let (mut raw, _) = fixture.session().await;
    let min_interval = Duration::from_secs(24 * 60 * 60);
    let latest = watch(
        WatchStart::Beginning,
        WatchMode::Latest { min_interval },
        1 << 20,
    );
    assert!(matches!(
        raw.ask(7, &latest).await,
        ServerMessage::Watching { .. }
    ));
    // The first pass ends with its mark, though nothing is there.
    let (_, mark) = raw.hear().await;
    assert!(matches!(mark, ServerMessage::Progress { token: None, .. }));
    let probe = ClientMessage::Probe {
        watch: Some(7),
        token: 1,
    };
    raw.say(Some(8), &probe).await;
    let (id, mark) = next(&mut raw).await;
    assert_eq!(id, Some(7));
    assert!(matches!(
        mark,
        ServerMessage::Progress { token: Some(1), .. }
    ));
}

/// Section 7: `Every` from the beginning of a keyspace that is yet to be made.
#[tokio::test]
async fn a_keyspace_is_made_by_its_first_commit_and_watched_before() {
    let fixture = Fixture::new();
    let (mut raw, _) = fixture.session().await;
    let every = watch(WatchStart::Beginning, WatchMode::Every, 1 << 20);
    assert!(matches!(
        raw.ask(7, &every).await,
        ServerMessage::Watching { .. }
    ));
    let batch = Batch::new().put("k", "v");
    raw.say(Some(8), &commit(1, batch)).await;
    let mut heard = Vec::new();
    for _ in 0..2 {
        heard.push(next(&mut raw).await.0);
    }
    heard.sort();
    assert_eq!(heard, [Some(7), Some(8)]);
}

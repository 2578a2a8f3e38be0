//! Whatever a native peer sends, it is told what was wrong, and nobody else notices.
//!
//! Each case says the close code and the words of the reason, or the error that answers the request. A witness, with a
//! session of its own on the same server, goes on putting and reads back all that it ever put, between the cases. The
//! rules are those of `docs/protocol.md`, sections 2 to 5, 9 and 11.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage_client::RemoteStorage;
use storage_protocol::native::{ClientMessage, Hello, Packet, ServerMessage, WatchRequest, kind};
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, Limit, Outcome, ScanOptions, Storage, StorageError,
    StorageExt, WatchMode, WatchStart,
};
use storage_testkit::harness::{Certificates, ServerProcess, connect};
use storage_testkit::raw::{Raw, hello, http, in_time, tls, until_closed, upgrade_request};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::protocol::Message;

const FRAME_BYTES_MAX: usize = 256 << 10;
const MESSAGE_BYTES_MAX: usize = 64 << 20;

struct Fixture {
    server: ServerProcess,
    certificates: Certificates,
    witness: RemoteStorage,
    put: Vec<Key>,
    _folder: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self::with_config("").await
    }

    async fn with_config(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::issue(&["rude", "witness"]);
        let file = folder.path().join("server.toml");
        std::fs::write(&file, config).unwrap();
        let (file, data) = (file.display().to_string(), folder.path().join("data"));
        let server = ServerProcess::mutual(&certificates, &data, &["--config", &file]);
        let witness = connect(&server, &certificates, "witness", "shared")
            .await
            .unwrap();
        Self {
            server,
            certificates,
            witness,
            put: Vec::new(),
            _folder: folder,
        }
    }

    async fn session(&self) -> Raw {
        Raw::native(&self.server, &self.certificates, "rude", "shared")
            .await
            .0
    }

    async fn mute(&self) -> Raw {
        Raw::mute(&self.server, &self.certificates, "rude", "shared").await
    }

    /// Another session, opened before, is served, and all that it put is there.
    async fn others_are_unaffected(&mut self, case: &str) {
        let key = Key::from(format!("witness/{}", self.put.len()));
        let work = async {
            self.witness
                .put(key.clone(), key.clone())
                .await
                .expect(case);
            self.put.push(key);
            let read = self.witness.get(&self.put).await.expect(case);
            for (key, entry) in self.put.iter().zip(read.value) {
                assert_eq!(entry.expect(case).value, *key, "{case}");
            }
        };
        in_time(case, work).await;
    }

    /// Sends these frames in a session and compares how it is closed.
    async fn closes(&mut self, case: &str, frames: Vec<Bytes>, code: u16, reason: &str) {
        let mut peer = self.session().await;
        for frame in frames {
            peer.send(frame).await;
        }
        self.is_closed(case, &mut peer, code, reason).await;
    }

    async fn is_closed(&mut self, case: &str, peer: &mut Raw, code: u16, reason: &str) {
        let (said, why) = peer.closed().await;
        assert_eq!(said, code, "{case}: {why}");
        assert!(
            why.contains(reason),
            "{case}: {why:?} does not say {reason:?}"
        );
        self.others_are_unaffected(case).await;
    }
}

fn frame(payload: &[u8], kind: u8, id: &[u8]) -> Bytes {
    [payload, b"#", &[kind][..], id].concat().into()
}

fn number(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

fn part(inner: u8, total: u64, offset: u64, bytes: &[u8], id: &[u8]) -> Bytes {
    let payload = [&[inner][..], &number(total), &number(offset), bytes].concat();
    frame(&payload, kind::PART, id)
}

fn commit(number: u64, batch: Batch) -> ClientMessage {
    let options = CommitOptions::default();
    ClientMessage::Commit {
        number,
        options,
        batch,
    }
}

fn frame_of(message: &ClientMessage, id: u32) -> Bytes {
    message.encode(Some(id)).to_frame()
}

fn get(keys: &[&'static str]) -> ClientMessage {
    let keys = keys.iter().map(|key| Key::from(*key)).collect();
    ClientMessage::Get { keys }
}

#[tokio::test]
async fn a_frame_that_cannot_be_read_closes_with_1002_and_says_what_is_wrong() {
    let mut fixture = Fixture::new().await;
    let id = b"A";
    for (case, bytes, reason) in [
        (
            "no separator",
            Bytes::from_static(b"abc"),
            "a frame without separator",
        ),
        ("an empty frame", Bytes::new(), "a frame without separator"),
        (
            "no type",
            Bytes::from_static(b"abc#"),
            "a frame without a type",
        ),
        (
            "an unknown type",
            frame(b"", 200, id),
            "unknown frame type 200",
        ),
        ("a type of mwDB", frame(b"", 0, id), "unknown frame type 0"),
        (
            "a server's type",
            frame(b"", kind::VALUES, id),
            "unknown frame type 19",
        ),
        (
            "an id of the wrong alphabet",
            frame(b"\0", kind::GET, b"="),
            "a frame's id is unreadable",
        ),
        (
            "a leading zero",
            frame(b"\0", kind::GET, b"AC"),
            "a frame's id is unreadable",
        ),
        (
            "minus zero",
            frame(b"\0", kind::GET, b"B"),
            "a frame's id is unreadable",
        ),
        (
            "a negative id",
            frame(b"\0", kind::GET, b"D"),
            "a frame's id is unreadable",
        ),
        (
            "2^31",
            frame(b"\0", kind::GET, b"EAAAAA"),
            "a frame's id is unreadable",
        ),
        (
            "seven digits",
            frame(b"\0", kind::GET, b"CAAAAAA"),
            "a frame's id is unreadable",
        ),
        (
            "no id",
            frame(b"\0", kind::GET, b""),
            "frame type 18: an id is missing",
        ),
        (
            "an empty payload",
            frame(b"", kind::GET, id),
            "the payload ends inside",
        ),
        (
            "a scan cut short",
            frame(b"\0\0", kind::SCAN, id),
            "the payload ends inside",
        ),
        (
            "a length beyond the frame",
            frame(b"\x01\x05abc", kind::GET, id),
            "declares 5, 3 bytes are left",
        ),
        (
            "a count beyond the frame",
            frame(b"\x7f\x01a", kind::GET, id),
            "declares 127, 2 bytes are left",
        ),
        (
            "2^63 keys",
            frame(b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", kind::GET, id),
            "declares 9223372036854775808",
        ),
        (
            "a number longer than needed",
            frame(b"\x80\x00", kind::GET, id),
            "no canonical number",
        ),
        (
            "a number of eleven bytes",
            frame(&[0xff; 11], kind::GET, id),
            "no canonical number",
        ),
        (
            "trailing bytes",
            frame(b"\x01\x01aXY", kind::GET, id),
            "2 bytes behind the last field",
        ),
        (
            "an unknown operation",
            frame(b"\x01\0\0\x01\x09\x01k", kind::COMMIT, id),
            "unknown tag 9",
        ),
        (
            "an unknown flag",
            frame(b"\x01\x80\0\0", kind::COMMIT, id),
            "unknown",
        ),
        (
            "a label that is no UTF-8",
            frame(b"\x01\x02\x01\xff\0\0", kind::COMMIT, id),
            "is not UTF-8",
        ),
    ] {
        fixture.closes(case, vec![bytes], 1002, reason).await;
    }
}

#[tokio::test]
async fn a_text_message_closes_with_1003() {
    let mut fixture = Fixture::new().await;
    let mut peer = fixture.session().await;
    peer.send_message(Message::text("\u{0}#\u{12}A")).await;
    fixture
        .is_closed(
            "text",
            &mut peer,
            1003,
            "a text message; this protocol is binary",
        )
        .await;
    let mut peer = fixture.mute().await;
    peer.send_message(Message::text("hello")).await;
    fixture
        .is_closed("text before Hello", &mut peer, 1003, "a text message")
        .await;
}

#[tokio::test]
async fn text_that_is_not_utf_8_closes_with_1007() {
    let mut fixture = Fixture::new().await;
    for (case, frame) in [
        ("a text message", &b"\x81\x82\0\0\0\0\xff\xfe"[..]),
        ("the reason of a close", b"\x88\x84\0\0\0\0\x03\xe8\xff\xfe"),
    ] {
        let mut peer = fixture.session().await;
        peer.write_raw(frame).await;
        let reason = "is not UTF-8";
        fixture.is_closed(case, &mut peer, 1007, reason).await;
    }
}

#[tokio::test]
async fn an_id_in_flight_is_not_taken_twice() {
    let mut fixture = Fixture::new().await;
    // Number 2 waits for number 1, so its id stays in flight.
    let waiting = frame_of(&commit(2, Batch::new().put("never", "v")), 5);
    let watch = ClientMessage::Watch(WatchRequest {
        range: KeyRange::all(),
        start: WatchStart::Now,
        mode: WatchMode::Every,
        credit: 0,
    });
    for (case, first, second) in [
        ("a get", waiting.clone(), frame_of(&get(&["a"]), 5)),
        (
            "a commit",
            waiting,
            frame_of(&commit(1, Batch::new().put("never", "w")), 5),
        ),
        ("a watch", frame_of(&watch, 5), frame_of(&watch, 5)),
    ] {
        let reason = "request id 5 is in flight already";
        fixture
            .closes(case, vec![first, second], 1002, reason)
            .await;
    }
    // What waited for a number that never came had no effect.
    assert!(
        fixture
            .witness
            .get_one("never".into())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn commit_numbers_are_neither_repeated_nor_far_ahead() {
    let mut fixture = Fixture::new().await;
    let numbered = |number: u64, key: &'static str, id| {
        frame_of(&commit(number, Batch::new().put(key, "v")), id)
    };
    for (case, frames, reason) in [
        (
            "0",
            vec![numbered(0, "zero", 0)],
            "commit number 0 came before",
        ),
        (
            "a repetition",
            vec![numbered(1, "once", 0), numbered(1, "twice", 1)],
            "commit number 1 came before",
        ),
        (
            "a repetition of one that waits",
            vec![numbered(2, "early", 0), numbered(2, "twice", 1)],
            "commit number 2 came before",
        ),
        (
            "far ahead",
            vec![numbered(1025, "ahead", 0)],
            "commit number 1025 is too far ahead of 1",
        ),
    ] {
        fixture.closes(case, frames, 1002, reason).await;
    }
    // What was in order happened, though its session went down with the next message.
    let keys = ["once", "zero", "twice", "early", "ahead"].map(Key::from);
    let read = fixture.witness.get(&keys).await.unwrap().value;
    let there: Vec<bool> = read.iter().map(Option::is_some).collect();
    assert_eq!(there, [true, false, false, false, false]);
}

#[tokio::test]
async fn the_first_message_is_hello_of_version_1_and_comes_once() {
    let mut fixture = Fixture::new().await;
    let version = |version| {
        let hello = Hello {
            version,
            ..Hello::new("")
        };
        ClientMessage::Hello(hello).encode(None).to_frame()
    };
    for (case, bytes, reason) in [
        (
            "a get",
            frame_of(&get(&["a"]), 0),
            "the first message must be Hello",
        ),
        (
            "a part",
            part(kind::GET, 9, 0, b"x", b"A"),
            "the first message must be Hello",
        ),
        (
            "Hello with an id",
            frame(b"\x01\0\0\0", kind::HELLO, b"A"),
            "an id is not expected",
        ),
        ("version 0", version(0), "version 1"),
        ("version 2", version(2), "version 1"),
        (
            "version 2 with other fields",
            frame(b"\x02\xff\xff\xff", kind::HELLO, b""),
            "version 1",
        ),
    ] {
        let mut peer = fixture.mute().await;
        peer.send(bytes).await;
        fixture.is_closed(case, &mut peer, 1002, reason).await;
    }
    let again = hello().encode(None).to_frame();
    fixture
        .closes("Hello again", vec![again], 1002, "Hello was said before")
        .await;
}

#[tokio::test]
async fn frames_are_taken_to_256_kib_and_no_further() {
    let mut fixture = Fixture::new().await;
    let sized = |bytes: usize| {
        let empty = frame_of(&commit(1, Batch::new().put("k", "")), 0).len();
        // The value's length takes three bytes instead of one.
        let value = vec![b'v'; bytes - empty - 2];
        let frame = frame_of(&commit(1, Batch::new().put("k", value)), 0);
        assert_eq!(frame.len(), bytes);
        frame
    };
    let mut peer = fixture.session().await;
    peer.send(sized(FRAME_BYTES_MAX)).await;
    let (_, answer) = peer.hear().await;
    assert!(
        matches!(answer, ServerMessage::Committed { .. }),
        "{answer:?}"
    );

    let long = sized(FRAME_BYTES_MAX + 1);
    let reason = "262145";
    fixture
        .closes("a long frame", vec![long.clone()], 1009, reason)
        .await;
    // Cut into WebSocket fragments it is as long.
    let mut peer = fixture.session().await;
    let (first, second) = long.split_at(FRAME_BYTES_MAX / 2);
    peer.send_fragments(&[first, second]).await;
    fixture
        .is_closed("in fragments", &mut peer, 1009, "262144")
        .await;
}

#[tokio::test]
async fn parts_that_do_not_fit_close_the_connection() {
    let mut fixture = Fixture::new().await;
    let begun = part(kind::GET, 10, 0, b"abc", b"A");
    let over = (MESSAGE_BYTES_MAX + 1) as u64;
    for (case, frames, code, reason) in [
        (
            "more announced than a message may have",
            vec![part(kind::GET, over, 0, b"x", b"A")],
            1009,
            "message_bytes_max is 67108864, parts announce 67108865",
        ),
        (
            "2^63 announced",
            vec![part(kind::GET, 1 << 63, 0, b"x", b"A")],
            1009,
            "message_bytes_max",
        ),
        (
            "empty",
            vec![part(kind::GET, 10, 0, b"", b"A")],
            1002,
            "an empty part",
        ),
        (
            "a part of a part",
            vec![part(kind::PART, 10, 0, b"x", b"A")],
            1002,
            "a part of a part",
        ),
        (
            "no beginning",
            vec![part(kind::GET, 10, 3, b"x", b"A")],
            1002,
            "a part of a message that did not begin",
        ),
        (
            "a gap",
            vec![begun.clone(), part(kind::GET, 10, 4, b"x", b"A")],
            1002,
            "an offset that is not the end",
        ),
        (
            "another total",
            vec![begun.clone(), part(kind::GET, 11, 3, b"x", b"A")],
            1002,
            "the announced total changed",
        ),
        (
            "more than announced",
            vec![begun.clone(), part(kind::GET, 10, 3, b"12345678", b"A")],
            1002,
            "more bytes than announced",
        ),
        (
            "a second beginning",
            vec![begun.clone(), begun],
            1002,
            "a second message of this id",
        ),
        (
            "no header",
            vec![frame(b"\x12", kind::PART, b"A")],
            1002,
            "the payload ends inside",
        ),
        (
            "an unknown type inside",
            vec![part(200, 1, 0, b"x", b"A")],
            1002,
            "unknown frame type 200",
        ),
    ] {
        fixture.closes(case, frames, code, reason).await;
    }
    let flood: Vec<Bytes> = (0..16_385)
        .map(|id| Packet {
            kind: kind::PART,
            id: Some(id),
            payload: Bytes::from_static(b"\x12\x09\x00x"),
        })
        .map(|packet| packet.to_frame())
        .collect();
    fixture
        .closes(
            "too many begun",
            flood,
            1002,
            "16384 messages are on their way in parts",
        )
        .await;
}

/// Section 3.3: a request whose parts stop coming is answered, its id is free, its number is spent, its parts are
/// passed over.
#[tokio::test]
async fn parts_that_never_end_are_dropped_and_answered() {
    let mut fixture = Fixture::with_config("").await;
    let mut peer = fixture.session().await;
    let whole = frame_of(&commit(1, Batch::new().put("parts", vec![b'v'; 1000])), 3);
    let payload = whole.slice(..whole.len() - 3);
    let total = payload.len() as u64;
    let begun = Instant::now();
    peer.send(part(kind::COMMIT, total, 0, &payload[..100], b"G"))
        .await;
    // It is dropped for want of progress, not for its age: this part comes after five seconds.
    tokio::time::sleep(Duration::from_secs(5)).await;
    peer.send(part(kind::COMMIT, total, 100, &payload[100..200], b"G"))
        .await;
    let (id, answer) = peer.hear().await;
    let waited = begun.elapsed();
    let range = Duration::from_millis(14_500)..Duration::from_secs(20);
    assert!(
        range.contains(&waited),
        "10 s after the last part, not after {waited:?}"
    );
    assert_eq!(id, Some(3));
    let outcome = Outcome::NotExecuted;
    let late = ServerMessage::Error(StorageError::DeadlineExceeded { outcome });
    assert_eq!(answer, late);
    // The rest is passed over, the id is free, the number is spent.
    peer.send(part(kind::COMMIT, total, 200, &payload[200..], b"G"))
        .await;
    let next = peer
        .ask(3, &commit(2, Batch::new().put("after", "v")))
        .await;
    assert!(matches!(next, ServerMessage::Committed { .. }), "{next:?}");
    assert!(
        fixture
            .witness
            .get_one("parts".into())
            .await
            .unwrap()
            .is_none()
    );
    let spent = commit(1, Batch::new().put("parts", "v"));
    peer.say(Some(4), &spent).await;
    fixture
        .is_closed(
            "its number again",
            &mut peer,
            1002,
            "commit number 1 came before",
        )
        .await;
}

/// The error that answers a request, in a session that goes on.
async fn refused(peer: &mut Raw, id: u32, message: &ClientMessage) -> StorageError {
    match peer.ask(id, message).await {
        ServerMessage::Error(error) => {
            assert_eq!(error.outcome(), Outcome::NotExecuted, "{error:?}");
            error
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn requests_over_a_limit_are_answered_with_its_name_and_the_session_goes_on() {
    let mut fixture = Fixture::new().await;
    let (mut peer, welcome) =
        Raw::native(&fixture.server, &fixture.certificates, "rude", "shared").await;
    let limits = welcome.limits;
    let numbers = |count: usize| (0..count).map(|n| n.to_string());
    let keys = |count: usize| ClientMessage::Get {
        keys: numbers(count).map(Key::from).collect(),
    };
    let long_key = vec![b'k'; limits.key_bytes_max + 1];
    let puts = |count| numbers(count).fold(Batch::new(), |batch, key| batch.put(key, "v"));
    let checks = |count| numbers(count).fold(Batch::new(), |batch, key| batch.check_absent(key));
    let half = vec![b'v'; limits.value_bytes_max];
    // Its payload fits into a message; as section 5.4 measures it, it does not.
    let heavy = (0..4).fold(Batch::new(), |batch, n| {
        let value = vec![b'v'; limits.message_bytes_max / 4 - if n == 0 { 1_000 } else { 32 }];
        batch.put(format!("heavy{n}"), value)
    });
    let too_long_a_label = CommitOptions::labelled("l".repeat(257));
    let cases: Vec<(&str, ClientMessage, Limit, u64, u64)> = vec![
        ("keys", keys(10_001), Limit::KeysPerGet, 10_000, 10_001),
        (
            "a key in a get",
            ClientMessage::Get {
                keys: vec![long_key.clone().into()],
            },
            Limit::Key,
            4096,
            4097,
        ),
        (
            "a key",
            commit(1, Batch::new().put(long_key.clone(), "v")),
            Limit::Key,
            4096,
            4097,
        ),
        (
            "a checked key",
            commit(2, Batch::new().check_absent(long_key)),
            Limit::Key,
            4096,
            4097,
        ),
        (
            "a value",
            commit(3, Batch::new().put("k", vec![b'v'; (16 << 20) + 1])),
            Limit::Value,
            16 << 20,
            (16 << 20) + 1,
        ),
        (
            "operations",
            commit(4, puts(10_001)),
            Limit::OperationsPerCommit,
            10_000,
            10_001,
        ),
        (
            "checks",
            commit(5, checks(10_001)),
            Limit::OperationsPerCommit,
            10_000,
            10_001,
        ),
        (
            "a commit",
            commit(6, heavy.clone()),
            Limit::Message,
            64 << 20,
            heavy.bytes() as u64,
        ),
        (
            "a label",
            ClientMessage::Commit {
                number: 7,
                options: too_long_a_label,
                batch: Batch::new(),
            },
            Limit::Label,
            256,
            257,
        ),
    ];
    for (case, message, limit, max, actual) in cases {
        let error = refused(&mut peer, 1, &message).await;
        let expected = StorageError::LimitExceeded { limit, max, actual };
        assert_eq!(error, expected, "{case}");
        fixture.others_are_unaffected(case).await;
    }
    // At the limits they are taken.
    let largest = commit(8, Batch::new().put("largest", half));
    assert!(matches!(
        peer.ask(1, &largest).await,
        ServerMessage::Committed { .. }
    ));
    assert!(matches!(
        peer.ask(1, &commit(9, puts(10_000))).await,
        ServerMessage::Committed { .. }
    ));
    let ServerMessage::Values { entries, .. } = peer.ask(1, &keys(10_000)).await else {
        panic!("10,000 keys");
    };
    assert!(entries.iter().all(Option::is_some));
    // An answer can be over the message limit too.
    let error = refused(&mut peer, 1, &get(&["largest"; 4])).await;
    let StorageError::LimitExceeded { limit, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(limit, Limit::Message);
    fixture.others_are_unaffected("an answer").await;
}

#[tokio::test]
async fn a_batch_that_contradicts_itself_changes_nothing() {
    let mut fixture = Fixture::new().await;
    let mut peer = fixture.session().await;
    for (number, (batch, reason)) in (1..).zip([
        (
            Batch::new().put("k", "1").put("k", "2"),
            "key \"k\" stands twice in one commit",
        ),
        (
            Batch::new().put("a", "1").put("k", "1").remove("k"),
            "key \"k\" stands twice",
        ),
        (
            Batch::new().put("a", "1").put("", "1"),
            "a key has at least one byte",
        ),
    ]) {
        let error = refused(&mut peer, number, &commit(u64::from(number), batch)).await;
        assert!(
            matches!(error, StorageError::InvalidArgument { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(reason), "{error}");
        fixture.others_are_unaffected(reason).await;
    }
    let read = fixture
        .witness
        .get(&["k", "a"].map(Key::from))
        .await
        .unwrap();
    assert_eq!(read.value, [None, None]);
}

#[tokio::test]
async fn a_keyspace_that_cannot_be_is_refused_at_the_upgrade_with_the_rule() {
    let mut fixture = Fixture::new().await;
    let protocol = "Sec-WebSocket-Protocol: storage-sync.v1\r\n";
    let long = "k".repeat(300);
    let rule = "[a-z0-9][a-z0-9._-]{0,62}";
    for (name, reason) in [
        ("..", rule),
        (".", rule),
        ("", rule),
        ("a/b", rule),
        ("a/../b", rule),
        ("%2e%2e", rule),
        ("Upper", rule),
        ("-dash", rule),
        ("k%20s", rule),
        (&long, "keyspace_name_bytes_max is 63, this has 300"),
    ] {
        let mut stream = tls(&fixture.server, &fixture.certificates, "rude").await;
        let request = upgrade_request(&format!("/storage/{name}"), protocol);
        let answer = http(&mut stream, &request).await;
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert!(answer.text().contains(reason), "{name}: {answer:?}");
        fixture.others_are_unaffected(name).await;
    }
    let longest = "k".repeat(63);
    let (_, welcome) = Raw::native(&fixture.server, &fixture.certificates, "rude", &longest).await;
    assert_eq!(welcome.principal, "cert:rude");
}

#[tokio::test]
async fn an_upgrade_that_cannot_be_is_refused_in_words() {
    let mut fixture = Fixture::new().await;
    let without = |line: &str| {
        let request = upgrade_request("/storage/a", "Sec-WebSocket-Protocol: storage-sync.v1\r\n");
        request.replace(line, "")
    };
    for (case, request, status, reason) in [
        (
            "another subprotocol",
            upgrade_request(
                "/storage/a",
                "Sec-WebSocket-Protocol: storage-sync.v2, mqtt\r\n",
            ),
            400,
            "speaks the subprotocol storage-sync.v1",
        ),
        (
            "no subprotocol",
            upgrade_request("/storage/a", ""),
            400,
            "storage-sync.v1",
        ),
        (
            "a subprotocol for mwDB",
            upgrade_request("/", "Sec-WebSocket-Protocol: storage-sync.v1\r\n"),
            400,
            "without a subprotocol",
        ),
        (
            "another path",
            upgrade_request("/elsewhere", ""),
            404,
            "there is nothing here",
        ),
        (
            "no upgrade",
            without("Upgrade: websocket\r\n"),
            426,
            "this is a WebSocket endpoint",
        ),
        (
            "no connection",
            without("Connection: Upgrade\r\n"),
            400,
            "Connection",
        ),
        (
            "no version",
            without("Sec-WebSocket-Version: 13\r\n"),
            426,
            "Sec-WebSocket-Version",
        ),
        (
            "no key",
            without("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
            400,
            "Sec-WebSocket-Key",
        ),
    ] {
        let mut stream = tls(&fixture.server, &fixture.certificates, "rude").await;
        let answer = http(&mut stream, &request).await;
        assert_eq!(answer.status, status, "{case}: {answer:?}");
        assert!(answer.text().contains(reason), "{case}: {answer:?}");
        fixture.others_are_unaffected(case).await;
    }
    // What is no HTTP, and what is no end of a head, ends the connection.
    for (case, bytes) in [
        ("no HTTP", b"\x00\x01\x02 what is this\r\n\r\n".to_vec()),
        (
            "a head of 1 MiB",
            [b"GET / HTTP/1.1\r\nX: ", &[b'x'; 1 << 20][..]].concat(),
        ),
    ] {
        let mut stream = tls(&fixture.server, &fixture.certificates, "rude").await;
        // The server need not take it to the end.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await;
        let (waited, _) = until_closed(&mut stream).await;
        assert!(waited < Duration::from_secs(5), "{case}: {waited:?}");
        fixture.others_are_unaffected(case).await;
    }
}

#[tokio::test]
async fn garbage_behind_the_upgrade_closes_with_1002() {
    let mut fixture = Fixture::new().await;
    for (case, bytes, reason) in [
        ("no WebSocket at all", &b"GET / HTTP/1.1\r\n\r\n"[..], ""),
        ("a frame without mask", b"\x82\x01a", "mask"),
        ("reserved bits", b"\xf2\x81\0\0\0\0a", "eserved bits"),
        ("an unknown opcode", b"\x83\x81\0\0\0\0a", "opcode"),
        ("a continuation of nothing", b"\x80\x81\0\0\0\0a", "ontinu"),
        ("a fragmented ping", b"\x09\x80\0\0\0\0", "ragmented"),
    ] {
        let mut peer = fixture.session().await;
        peer.write_raw(bytes).await;
        fixture.is_closed(case, &mut peer, 1002, reason).await;
    }
    // A frame header that announces 2^62 bytes is refused before they come.
    let mut peer = fixture.session().await;
    peer.write_raw(b"\x82\xff\x40\0\0\0\0\0\0\0\0\0\0\0").await;
    fixture
        .is_closed("2^62 bytes", &mut peer, 1009, "at most 262144")
        .await;
}

/// One frame: of noise, of a valid frame with some bytes changed, or of a valid type with noise for a payload.
fn garbage(random: &mut StdRng, valid: &[Bytes]) -> Bytes {
    let noise = |random: &mut StdRng| -> Vec<u8> {
        let length = random.random_range(0..300);
        (0..length).map(|_| random.random()).collect()
    };
    match random.random_range(0..3) {
        0 => noise(random).into(),
        1 => {
            let mut bytes = valid[random.random_range(0..valid.len())].to_vec();
            for _ in 0..random.random_range(1..4) {
                let place = random.random_range(0..bytes.len());
                bytes[place] = random.random();
            }
            if random.random_ratio(1, 4) {
                bytes.truncate(random.random_range(0..bytes.len()));
            }
            bytes.into()
        }
        _ => {
            let kind = 16 + 2 * random.random_range(0..17u8);
            frame(&noise(random), kind, b"C")
        }
    }
}

#[tokio::test]
async fn two_thousand_garbage_frames_harm_nobody() {
    const SEED: u64 = 0x5eed;
    /// The server may keep so much more after the second thousand than after the first: nothing is kept for each.
    const GROWTH_MAX: u64 = 32 << 20;
    let mut fixture = Fixture::new().await;
    let mut random = StdRng::seed_from_u64(SEED);
    let scan = ClientMessage::Scan {
        range: KeyRange::all(),
        options: ScanOptions::default(),
    };
    let everything = Batch::new()
        .check_absent("n")
        .put("g", "v")
        .remove("old")
        .signal("bell", "ring");
    let watch = ClientMessage::Watch(WatchRequest {
        range: KeyRange::prefix("g"),
        start: WatchStart::Beginning,
        mode: WatchMode::Latest {
            min_interval: Duration::ZERO,
        },
        credit: 1 << 20,
    });
    let valid: Vec<Bytes> = [get(&["a", "b"]), scan, commit(1, everything), watch]
        .iter()
        .zip(0..)
        .map(|(message, id)| frame_of(message, id))
        .chain([part(kind::GET, 11, 0, b"\x02\x05colo", b"C")])
        .collect();
    let keyspace = "garbage";
    let mut peer = None;
    let (mut closed, mut settled) = (0, 0);
    for n in 0..2_000u32 {
        if n == 1_000 {
            settled = fixture.server.resident_bytes();
        }
        let mut session = match peer.take() {
            Some(session) => session,
            None => {
                Raw::native(&fixture.server, &fixture.certificates, "rude", keyspace)
                    .await
                    .0
            }
        };
        session.send(garbage(&mut random, &valid)).await;
        // Either it was a good frame after all, and this is answered, or the session is closed, and says why.
        let token = u64::from(n);
        let probe = ClientMessage::Probe { watch: None, token };
        session.send(frame_of(&probe, 1_000_000 + n)).await;
        let alive = loop {
            match session.receive().await {
                storage_testkit::raw::Received::Binary(bytes) => {
                    let packet = Packet::from_frame(bytes).unwrap();
                    if packet.kind == kind::PROBED && packet.id == Some(1_000_000 + n) {
                        break true;
                    }
                }
                storage_testkit::raw::Received::Close(code, reason) => {
                    assert!(matches!(code, 1002 | 1009), "frame {n}: {code} {reason}");
                    assert!(!reason.is_empty(), "frame {n}");
                    break false;
                }
                storage_testkit::raw::Received::Ended => panic!("frame {n}: no close frame"),
                _ => {}
            }
        };
        if alive {
            peer = Some(session);
        } else {
            closed += 1;
        }
        if n % 100 == 0 {
            fixture.others_are_unaffected("garbage").await;
        }
    }
    assert!(closed > 1_000, "only {closed} frames were garbage");
    let grown = fixture.server.resident_bytes().saturating_sub(settled);
    assert!(grown < GROWTH_MAX, "resident memory grew by {grown} bytes");
    fixture.others_are_unaffected("garbage").await;
}

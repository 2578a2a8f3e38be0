//! The native dialect, byte for byte: every message, every operation, every error, against `golden/native.jsonl` and
//! against `docs/protocol.md`, whose hex blocks are these very bytes.
//!
//! A difference means that the wire changed, and that peers in the field no longer understand each other. Where it is
//! meant, `UPDATE_GOLDEN=1 cargo test -p storage-protocol --test golden_native` rewrites the file and the blocks of the
//! document (each between `<!-- golden GROUP -->` and `<!-- /golden -->`); the text around them is for people to change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use std::{env, fs};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use storage_protocol::native::{
    ClientMessage, ErrorCode, Hello, Packet, Reassembler, RequestId, ServerMessage, VERSION,
    WatchRequest, Welcome, kind,
};
use storage_protocol::{
    Batch, Change, ChangeKind, CommitOptions, CommitRecord, Entry, EntryLifetime, Epoch, Expected,
    KeyRange, KeyState, Lifetime, Limit, Limits, Operation, Outcome, Position, Revision, ScanItem,
    ScanOptions, SessionId, StorageError, UnixMillis, WatchMode, WatchStart,
};

#[test]
fn the_bytes_are_the_golden_ones() {
    update_if_asked();
    let golden = fs::read_to_string(golden_path()).unwrap();
    for (line, case) in golden.lines().zip(cases()) {
        let line: Line = serde_json::from_str(line).unwrap();
        assert_eq!(line.hex, hex::encode(&case.frame), "{}", case.name);
        assert_eq!(line, case.line());
    }
    assert_eq!(golden.lines().count(), cases().len());
}

#[test]
fn the_bytes_decode_to_the_message() {
    for case in cases() {
        let packet = Packet::from_frame(case.frame.clone()).unwrap();
        assert_eq!(packet.to_frame(), case.frame, "{}", case.name);
        match &case.message {
            Message::Client(message) => {
                assert_eq!(ClientMessage::decode(packet).as_ref(), Ok(message));
            }
            Message::Server(message) => {
                assert_eq!(ServerMessage::decode(packet).as_ref(), Ok(message));
            }
            Message::Part => assert_eq!(packet.kind, kind::PART),
        }
    }
}

#[test]
fn golden_parts_make_the_golden_message() {
    let cases = cases();
    let frame = |name: &str| {
        cases
            .iter()
            .find(|case| case.name == name)
            .unwrap()
            .frame
            .clone()
    };
    let mut reassembler = Reassembler::new(Limits::FRAME_BYTES, 64 << 20);
    let mut accept = |name| reassembler.accept(frame(name), Instant::now()).unwrap();
    assert_eq!(accept("part/first"), None);
    // Whatever stands between two parts, they find together.
    assert!(accept("done/answer").is_some());
    let whole = accept("part/last").unwrap();
    assert_eq!(whole.to_frame(), frame("get/two-keys"));
}

#[test]
fn the_document_shows_these_bytes_and_no_others() {
    update_if_asked();
    let document = fs::read_to_string(document_path()).unwrap();
    assert!(
        document == with_golden_blocks(&document),
        "docs/protocol.md shows other bytes than the code writes; see the top of this file"
    );
    let blocks: Vec<_> = document.lines().filter_map(group_of_marker).collect();
    let groups: BTreeSet<_> = cases().iter().map(|case| case.group().to_owned()).collect();
    assert_eq!(blocks.len(), groups.len(), "each group stands there once");
    let blocks: BTreeSet<_> = blocks.into_iter().map(str::to_owned).collect();
    assert_eq!(blocks, groups);
    let elsewhere = document.matches("```hex").count();
    assert_eq!(
        elsewhere,
        groups.len(),
        "a hex block stands outside the markers"
    );
}

#[test]
fn names_are_unique() {
    let names: BTreeSet<_> = cases().into_iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases().len());
}

/// A new variant of any of these fails to compile here, and without a golden message it fails here.
#[test]
fn every_variant_has_a_golden_message() {
    let mut coverage = Coverage::default();
    for case in cases() {
        match &case.message {
            Message::Client(message) => coverage.client(message),
            Message::Server(message) => coverage.server(message),
            Message::Part => {}
        }
    }
    for (of, (seen, all)) in &coverage.0 {
        assert_eq!(seen, all, "{of}");
    }
    let covered: Vec<_> = coverage.0.keys().copied().collect();
    let expected = [
        "ChangeKind",
        "ClientMessage",
        "EntryLifetime",
        "Expected",
        "KeyState",
        "Lifetime",
        "Operation",
        "Outcome",
        "ServerMessage",
        "WatchMode",
        "WatchStart",
    ];
    assert_eq!(covered, expected);
}

#[test]
fn every_type_byte_and_every_error_code_has_a_golden_message() {
    let mut kinds = BTreeSet::new();
    let mut codes = BTreeSet::new();
    for case in cases() {
        let packet = Packet::from_frame(case.frame).unwrap();
        kinds.insert(packet.kind);
        if packet.kind == kind::ERROR {
            codes.insert(packet.payload[0]);
        }
    }
    assert_eq!(kinds, KINDS.into_iter().collect());
    assert_eq!(
        codes,
        ERROR_CODES.map(|code| code as u8).into_iter().collect()
    );
    assert_eq!(codes.len(), 19);
}

const KINDS: [u8; 25] = [
    kind::HELLO,
    kind::WELCOME,
    kind::GET,
    kind::VALUES,
    kind::SCAN,
    kind::PAGE,
    kind::SCAN_NEXT,
    kind::DONE,
    kind::SCAN_CLOSE,
    kind::COMMITTED,
    kind::COMMIT,
    kind::WATCHING,
    kind::WATCH,
    kind::CHANGES,
    kind::CREDIT,
    kind::STATES,
    kind::UNWATCH,
    kind::PROGRESS,
    kind::CANCEL,
    kind::PROBE,
    kind::RESET,
    kind::PROBED,
    kind::ERROR,
    kind::GO_AWAY,
    kind::PART,
];

// ---- The messages ----

enum Message {
    Client(ClientMessage),
    Server(ServerMessage),
    /// Travels both ways.
    Part,
}

struct Case {
    /// `GROUP/NAME`; a group is one block of the document.
    name: &'static str,
    description: &'static str,
    frame: Bytes,
    message: Message,
}

/// A line of the golden file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    name: String,
    direction: String,
    hex: String,
    description: String,
}

impl Case {
    fn group(&self) -> &'static str {
        self.name.split_once('/').expect("GROUP/NAME").0
    }

    fn direction(&self) -> &'static str {
        match self.message {
            Message::Client(_) => "client",
            Message::Server(_) => "server",
            Message::Part => "both",
        }
    }

    fn line(&self) -> Line {
        Line {
            name: self.name.to_owned(),
            direction: self.direction().to_owned(),
            hex: hex::encode(&self.frame),
            description: self.description.to_owned(),
        }
    }
}

fn client(
    name: &'static str,
    id: Option<RequestId>,
    message: ClientMessage,
    description: &'static str,
) -> Case {
    Case {
        name,
        description,
        frame: message.encode(id).to_frame(),
        message: Message::Client(message),
    }
}

fn server(
    name: &'static str,
    id: Option<RequestId>,
    message: ServerMessage,
    description: &'static str,
) -> Case {
    Case {
        name,
        description,
        frame: message.encode(id).to_frame(),
        message: Message::Server(message),
    }
}

/// One part of the message of `get/two-keys`.
fn part(name: &'static str, chunk: std::ops::Range<usize>, description: &'static str) -> Case {
    let whole = get_two_keys().encode(Some(1));
    let mut payload = BytesMut::new();
    payload.put_u8(whole.kind);
    payload.put_u8(u8::try_from(whole.payload.len()).expect("a small message"));
    payload.put_u8(u8::try_from(chunk.start).expect("a small message"));
    payload.put_slice(&whole.payload[chunk]);
    let packet = Packet {
        kind: kind::PART,
        id: whole.id,
        payload: payload.freeze(),
    };
    Case {
        name,
        description,
        frame: packet.to_frame(),
        message: Message::Part,
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(opening());
    cases.extend(reads());
    cases.extend(commits());
    cases.extend(watches());
    cases.extend(events());
    cases.extend(control());
    cases.extend(errors());
    cases.extend(session());
    cases
}

const EPOCH: Epoch = Epoch(0x0123_4567_89ab_cdef);
const TIME: UnixMillis = UnixMillis(1_700_000_000_000);

fn at(revision: u64) -> Position {
    Position {
        epoch: EPOCH,
        revision: Revision(revision),
    }
}

fn entry(value: &'static str, revision: u64, lifetime: EntryLifetime) -> Entry {
    Entry {
        value: value.into(),
        revision: Revision(revision),
        lifetime,
    }
}

fn opening() -> Vec<Case> {
    let hello = |session, incarnation, sent, unanswered: &[u64]| {
        ClientMessage::Hello(Hello {
            version: VERSION,
            session,
            incarnation,
            sent,
            unanswered: unanswered.to_vec(),
            agent: "demo/1".into(),
        })
    };
    let welcome = |executed, lapsed, limits| {
        ServerMessage::Welcome(Welcome {
            version: VERSION,
            position: at(40),
            session: SessionId(*b"0123456789abcdef"),
            executed,
            lapsed,
            principal: "cert:demo".into(),
            heartbeat: Duration::from_secs(15),
            silence: Duration::from_secs(45),
            grace: Duration::from_secs(60),
            kept: Duration::from_secs(86_400),
            limits,
        })
    };
    let small = Limits {
        key_bytes_max: 128,
        scans_max: 0,
        ..Limits::default()
    };
    vec![
        client(
            "hello/new",
            None,
            hello(None, 0, 0, &[]),
            "version 1, no session, incarnation 0, nothing sent, nothing unanswered, agent \"demo/1\"",
        ),
        client(
            "hello/resume",
            None,
            hello(
                Some(SessionId(*b"0123456789abcdef")),
                2,
                305,
                &[301, 304, 305],
            ),
            "the session whose id is the bytes \"0123456789abcdef\", incarnation 2; sent up to 305, of which 301, 304 and \
             305 are unanswered",
        ),
        server(
            "welcome/new",
            None,
            welcome(0, false, Limits::default()),
            "version 1, epoch 0123456789abcdef, revision 40, session \"0123456789abcdef\", executed 0, not lapsed, \
             principal \"cert:demo\", heartbeat 15,000 ms, silence 45,000 ms, grace 60,000 ms, kept 86,400,000 ms, the \
             ten limits with their defaults",
        ),
        server(
            "welcome/resumed",
            None,
            welcome(300, true, small),
            "executed 300, lapsed; key_bytes_max 128, scans_max 0",
        ),
    ]
}

fn get_two_keys() -> ClientMessage {
    ClientMessage::Get {
        keys: vec!["color".into(), "a#b".into()],
    }
}

fn reads() -> Vec<Case> {
    let scan = |range, options| ClientMessage::Scan { range, options };
    let everything = ScanOptions {
        reverse: true,
        keys_only: true,
        limit: Some(1000),
        newer_than: Some(at(40)),
    };
    let limited = ScanOptions {
        limit: Some(2),
        ..ScanOptions::default()
    };
    let item = |key: &'static str, state| ScanItem {
        key: key.into(),
        state,
    };
    vec![
        client(
            "get/no-key",
            Some(0),
            ClientMessage::Get { keys: vec![] },
            "id 0; no key: asks for the present revision only",
        ),
        client(
            "get/two-keys",
            Some(1),
            get_two_keys(),
            "id 1; keys \"color\" and \"a#b\" (a separator in a payload is an ordinary byte)",
        ),
        server(
            "values/none",
            Some(0),
            ServerMessage::Values {
                revision: Revision(300),
                entries: vec![],
            },
            "id 0; revision 300, no entry",
        ),
        server(
            "values/each-tag",
            Some(1),
            ServerMessage::Values {
                revision: Revision(41),
                entries: vec![
                    None,
                    Some(entry("blue", 41, EntryLifetime::Forever)),
                    Some(entry("", 7, EntryLifetime::Until(TIME))),
                    Some(entry("#", 8, EntryLifetime::Session)),
                ],
            },
            "id 1; revision 41; absent; \"blue\" of revision 41, for ever; \"\" of revision 7, until 1,700,000,000,000 ms; \
             \"#\" of revision 8, as long as its session",
        ),
        client(
            "scan/all",
            Some(2),
            scan(KeyRange::all(), ScanOptions::default()),
            "id 2; every key, no option",
        ),
        client(
            "scan/limited",
            Some(2),
            scan(KeyRange::between("a", "c"), limited),
            "id 2; from \"a\" to before \"c\", at most 2 items",
        ),
        client(
            "scan/every-option",
            Some(2),
            scan(KeyRange::prefix("co"), everything),
            "id 2; from \"co\" to before \"cp\"; reverse, keys only, at most 1000 items, newer than revision 40",
        ),
        client(
            "scan-next/first",
            Some(3),
            ClientMessage::ScanNext { scan: 0 },
            "id 3; scan 0",
        ),
        client(
            "scan-close/large",
            Some(4),
            ClientMessage::ScanClose { scan: 300 },
            "id 4; scan 300",
        ),
        server(
            "page/more",
            Some(2),
            ServerMessage::Page {
                revision: Revision(41),
                scan: Some(0),
                items: vec![
                    item(
                        "color",
                        KeyState::Live(entry("blue", 41, EntryLifetime::Forever)),
                    ),
                    item("cost", KeyState::Removed(Revision(39))),
                ],
            },
            "id 2; revision 41, scan 0 goes on; \"color\" is \"blue\" of revision 41, \"cost\" was removed by revision 39",
        ),
        server(
            "page/last-and-empty",
            Some(3),
            ServerMessage::Page {
                revision: Revision(41),
                scan: None,
                items: vec![],
            },
            "id 3; revision 41, the scan is over, no item",
        ),
        server("done/answer", Some(4), ServerMessage::Done, "id 4"),
    ]
}

fn commits() -> Vec<Case> {
    let commit = |number, options, batch| ClientMessage::Commit {
        number,
        options,
        batch,
    };
    let ttl = Lifetime::TimeToLive(Duration::from_millis(1500));
    let everything = Batch::new()
        .check_absent("n")
        .check_revision("color", Revision(300))
        .put("color", "red")
        .put_with("t", "", ttl)
        .put_with("s", "#", Lifetime::Session)
        .remove("old")
        .put_stamped("log/", "line", Lifetime::Forever)
        .signal("bell", "ring");
    vec![
        client(
            "commit/empty",
            Some(5),
            commit(1, CommitOptions::default(), Batch::new()),
            "id 5; number 1, nothing to check or to do",
        ),
        client(
            "commit/put",
            Some(5),
            commit(
                2,
                CommitOptions::default(),
                Batch::new().put("color", "blue"),
            ),
            "id 5; number 2; put \"color\" = \"blue\" for ever",
        ),
        client(
            "commit/everything",
            Some(6),
            commit(
                300,
                CommitOptions::labelled("nightly").with_previous(),
                everything,
            ),
            "id 6; number 300, with the values before, label \"nightly\"; checks: \"n\" absent, \"color\" at revision 300; \
             put \"color\" = \"red\" for ever, \"t\" = \"\" for 1500 ms, \"s\" = \"#\" with the session; remove \"old\"; put stamped \
             \"log/\" = \"line\" for ever; signal \"bell\" = \"ring\"",
        ),
        server(
            "committed/answer",
            Some(5),
            ServerMessage::Committed {
                revision: Revision(41),
            },
            "id 5; revision 41",
        ),
    ]
}

fn watches() -> Vec<Case> {
    let watch = |range, start, mode, credit| {
        ClientMessage::Watch(WatchRequest {
            range,
            start,
            mode,
            credit,
        })
    };
    let latest = |millis| WatchMode::Latest {
        min_interval: Duration::from_millis(millis),
    };
    vec![
        client(
            "watch/every-from-now",
            Some(7),
            watch(KeyRange::all(), WatchStart::Now, WatchMode::Every, 0),
            "id 7; every key, from now, mode Every, no credit yet",
        ),
        client(
            "watch/every-after",
            Some(7),
            watch(
                KeyRange::prefix("co"),
                WatchStart::After(at(40)),
                WatchMode::Every,
                1 << 20,
            ),
            "id 7; from \"co\" to before \"cp\", after revision 40, mode Every, credit 1,048,576",
        ),
        client(
            "watch/latest-from-the-beginning",
            Some(8),
            watch(
                KeyRange::single("color"),
                WatchStart::Beginning,
                latest(250),
                65_536,
            ),
            "id 8; from \"color\" to before \"color\\0\", from the beginning, mode Latest with 250 ms, credit 65,536",
        ),
        server(
            "watching/answer",
            Some(7),
            ServerMessage::Watching {
                revision: Revision(40),
            },
            "id 7; tells everything after revision 40",
        ),
        client(
            "credit/grant",
            Some(7),
            ClientMessage::Credit { bytes: 300 },
            "the watch with id 7 gets 300 bytes more",
        ),
        client(
            "unwatch/request",
            Some(9),
            ClientMessage::Unwatch { watch: 7 },
            "id 9; ends the watch with id 7",
        ),
    ]
}

fn put(key: &'static str, value: &'static str, lifetime: EntryLifetime) -> Change {
    let (value, previous) = (value.into(), None);
    Change {
        key: key.into(),
        kind: ChangeKind::Put {
            value,
            lifetime,
            previous,
        },
    }
}

fn events() -> Vec<Case> {
    let record = |revision, label: Option<&str>, principal: &str, changes| {
        Arc::new(CommitRecord::new(
            Revision(revision),
            TIME,
            label.map(str::to_owned),
            principal.into(),
            changes,
        ))
    };
    let everything = vec![
        Change {
            key: "color".into(),
            kind: ChangeKind::Put {
                value: "red".into(),
                lifetime: EntryLifetime::Forever,
                previous: Some("blue".into()),
            },
        },
        put("t", "", EntryLifetime::Until(TIME)),
        put("s", "#", EntryLifetime::Session),
        Change {
            key: "old".into(),
            kind: ChangeKind::Removed {
                previous: Some("".into()),
            },
        },
        Change {
            key: "bell".into(),
            kind: ChangeKind::Signalled {
                bytes: "ring".into(),
            },
        },
    ];
    let removed = Change {
        key: "t".into(),
        kind: ChangeKind::Removed { previous: None },
    };
    let one = record(
        41,
        None,
        "cert:demo",
        vec![put("color", "blue", EntryLifetime::Forever)],
    );
    let two = vec![
        record(342, Some("nightly"), "cert:demo", everything),
        record(343, Some("expired"), "server", vec![removed]),
    ];
    let states = vec![
        ("cost".into(), KeyState::Removed(Revision(39))),
        (
            "color".into(),
            KeyState::Live(entry("blue", 41, EntryLifetime::Forever)),
        ),
    ];
    vec![
        server(
            "changes/one-commit",
            Some(7),
            ServerMessage::Changes { commits: vec![one] },
            "id 7; revision 41 at 1,700,000,000,000 ms, no label, by \"cert:demo\": put \"color\" = \"blue\" for ever, no value \
             before",
        ),
        server(
            "changes/two-commits",
            Some(7),
            ServerMessage::Changes { commits: two },
            "id 7; revision 342, label \"nightly\", by \"cert:demo\": put \"color\" = \"red\" for ever, before it \"blue\"; put \
             \"t\" = \"\" until 1,700,000,000,000 ms; put \"s\" = \"#\" with its session; removed \"old\", before it \"\"; signal \"bell\" = \
             \"ring\"; then revision 343, label \"expired\", by \"server\": removed \"t\"",
        ),
        server(
            "states/two",
            Some(8),
            ServerMessage::States { states },
            "id 8; \"cost\" was removed by revision 39; \"color\" is \"blue\" of revision 41",
        ),
        server(
            "progress/mark",
            Some(7),
            ServerMessage::Progress {
                revision: Revision(41),
                token: None,
            },
            "id 7; everything up to revision 41 was told",
        ),
        server(
            "progress/answer-to-probe",
            Some(7),
            ServerMessage::Progress {
                revision: Revision(343),
                token: Some(500),
            },
            "id 7; everything up to revision 343 was told; answers the probe with token 500",
        ),
        server("reset/mark", Some(8), ServerMessage::Reset, "id 8"),
    ]
}

fn control() -> Vec<Case> {
    let probe = |watch, token| ClientMessage::Probe { watch, token };
    vec![
        client(
            "cancel/request",
            Some(6),
            ClientMessage::Cancel,
            "gives the request with id 6 up",
        ),
        client(
            "probe/server",
            Some(10),
            probe(None, 1),
            "id 10; of no watch, token 1",
        ),
        client(
            "probe/watch",
            Some(11),
            probe(Some(7), 500),
            "id 11; of the watch with id 7 (written 8), token 500",
        ),
        server(
            "probed/answer",
            Some(10),
            ServerMessage::Probed {
                revision: Revision(343),
                token: 1,
            },
            "id 10; revision 343, token 1",
        ),
        server(
            "go-away/shutdown",
            None,
            ServerMessage::GoAway {
                retry_after: Duration::from_secs(2),
                reason: "shutting down".into(),
            },
            "come back after 2000 ms; \"shutting down\"",
        ),
        part(
            "part/first",
            0..6,
            "the message get/two-keys, type 18, id 1, 11 bytes in all; bytes 0 to 5",
        ),
        part("part/last", 6..11, "its bytes 6 to 10, which complete it"),
    ]
}

#[rustfmt::skip] // A table.
fn errors() -> Vec<Case> {
    let error = |name, error, description| {
        server(name, Some(6), ServerMessage::Error(error), description)
    };
    let text = || "why".to_owned();
    vec![
        error("error/check-failed", StorageError::CheckFailed { key: "color".into(), actual: Some(Revision(41)) },
            "1, refused: \"color\" is at revision 41"),
        error("error/check-failed-absent", StorageError::CheckFailed { key: "color".into(), actual: None },
            "1, refused: \"color\" is absent"),
        error("error/limit-exceeded", StorageError::LimitExceeded { limit: Limit::Key, max: 4096, actual: 5000 },
            "2, not executed: limit 1 (key_bytes_max) is 4096, this has 5000"),
        error("error/invalid-argument", StorageError::InvalidArgument { message: text() }, "3, not executed"),
        error("error/compacted", StorageError::Compacted { oldest: Revision(300) },
            "4, not executed: the oldest revision is 300"),
        error("error/epoch-changed", StorageError::EpochChanged { epoch: EPOCH, fork: Revision(40) },
            "5, not executed: epoch 0123456789abcdef forked at revision 40"),
        error("error/snapshot-expired", StorageError::SnapshotExpired, "6, not executed"),
        error("error/overloaded", StorageError::Overloaded { limit: Limit::RequestsInFlight, max: 1024 },
            "7, not executed: limit 7 (requests_in_flight_max) is 1024"),
        error("error/storage-full", StorageError::StorageFull { available: 1000, reserve: 1 << 30 },
            "8, not executed: 1000 bytes are free, 1,073,741,824 are held in reserve"),
        error("error/read-only", StorageError::ReadOnly { reason: text() }, "9, not executed"),
        error("error/access-denied", StorageError::AccessDenied { message: text() }, "10, not executed"),
        error("error/cancelled", StorageError::Cancelled, "11, not executed"),
        error("error/deadline-exceeded", StorageError::DeadlineExceeded { outcome: Outcome::Unknown }, "12, outcome unknown"),
        error("error/closed", StorageError::Closed { reason: text(), outcome: Outcome::NotExecuted }, "13, not executed"),
        error("error/peer-misbehaved", StorageError::PeerMisbehaved { message: text(), outcome: Outcome::NotExecuted },
            "14, not executed"),
        error("error/unsupported", StorageError::Unsupported { what: text() }, "15, not executed"),
        error("error/internal", StorageError::Internal { message: text(), outcome: Outcome::Unknown }, "16, outcome unknown"),
        error("error/number-reused", StorageError::NumberReused { number: 300 },
            "17, not executed: commit number 300 was used for another commit"),
        error("error/access-changed", StorageError::AccessChanged, "18, not executed: of a watch that is attached"),
        error("error/quota-exceeded", StorageError::QuotaExceeded { limit: Limit::KeyspaceEntries, max: 1000 },
            "19, refused: limit 25 (quota_keyspace_entries_max) is 1000"),
    ]
}

/// The worked example of the document, in its order.
fn session() -> Vec<Case> {
    let hello = ClientMessage::Hello(Hello::new("demo/1"));
    let welcome = ServerMessage::Welcome(Welcome {
        version: VERSION,
        position: at(40),
        session: SessionId(*b"fedcba9876543210"),
        executed: 0,
        lapsed: false,
        principal: "cert:demo".into(),
        heartbeat: Duration::from_secs(15),
        silence: Duration::from_secs(45),
        grace: Duration::from_secs(60),
        kept: Duration::from_secs(86_400),
        limits: Limits::default(),
    });
    let commit = ClientMessage::Commit {
        number: 1,
        options: CommitOptions::labelled("first"),
        batch: Batch::new().check_absent("color").put("color", "blue"),
    };
    let get = ClientMessage::Get {
        keys: vec!["color".into(), "shape".into()],
    };
    let values = ServerMessage::Values {
        revision: Revision(41),
        entries: vec![Some(entry("blue", 41, EntryLifetime::Forever)), None],
    };
    let watch = ClientMessage::Watch(WatchRequest {
        range: KeyRange::prefix("co"),
        start: WatchStart::After(at(40)),
        mode: WatchMode::Every,
        credit: 1000,
    });
    let changes = ServerMessage::Changes {
        commits: vec![Arc::new(CommitRecord::new(
            Revision(41),
            TIME,
            Some("first".into()),
            "cert:demo".into(),
            vec![put("color", "blue", EntryLifetime::Forever)],
        ))],
    };
    let consumed = changes.encode(Some(2)).payload.len() as u64;
    assert_eq!(consumed, 39, "as the description below says");
    let progress = ServerMessage::Progress {
        revision: Revision(41),
        token: None,
    };
    vec![
        client("session/01-hello", None, hello, "opens a session"),
        server(
            "session/02-welcome",
            None,
            welcome,
            "the session is open at revision 40",
        ),
        client(
            "session/03-commit",
            Some(0),
            commit,
            "id 0; number 1, label \"first\": \"color\" must be absent, put \"color\" = \"blue\"",
        ),
        server(
            "session/04-committed",
            Some(0),
            ServerMessage::Committed {
                revision: Revision(41),
            },
            "id 0; revision 41: it is durable",
        ),
        client(
            "session/05-get",
            Some(1),
            get,
            "id 1; \"color\" and \"shape\"",
        ),
        server(
            "session/06-values",
            Some(1),
            values,
            "id 1; at revision 41: \"blue\" of revision 41; absent",
        ),
        client(
            "session/07-watch",
            Some(2),
            watch,
            "id 2; keys that begin with \"co\", after revision 40, Every, credit 1000",
        ),
        server(
            "session/08-watching",
            Some(2),
            ServerMessage::Watching {
                revision: Revision(40),
            },
            "id 2; tells everything after revision 40",
        ),
        server(
            "session/09-changes",
            Some(2),
            changes,
            "id 2; the commit of revision 41; the balance falls by the payload's 39 bytes to 961",
        ),
        server(
            "session/10-progress",
            Some(2),
            progress,
            "id 2; nothing else up to revision 41; free of charge",
        ),
        client(
            "session/11-credit",
            Some(2),
            ClientMessage::Credit { bytes: consumed },
            "id 2; the application consumed 39 bytes: the balance is 1000 again",
        ),
        client(
            "session/12-unwatch",
            Some(3),
            ClientMessage::Unwatch { watch: 2 },
            "id 3; ends the watch with id 2",
        ),
        server(
            "session/13-done",
            Some(3),
            ServerMessage::Done,
            "id 3; from here ids 2 and 3 are free",
        ),
    ]
}

// ---- Coverage ----

/// For each enum: the variants seen, and all there are.
#[derive(Default)]
struct Coverage(BTreeMap<&'static str, (BTreeSet<&'static str>, BTreeSet<&'static str>)>);

/// Notes which variant a value is. The match has no wildcard: a new variant must be named here to compile.
macro_rules! note {
    ($coverage:expr, $of:ident, $value:expr, [$($variant:ident),+ $(,)?]) => {
        let name = match $value {
            $($of::$variant { .. } => stringify!($variant),)+
        };
        let noted = $coverage.0.entry(stringify!($of)).or_default();
        noted.0.insert(name);
        noted.1.extend([$(stringify!($variant)),+]);
    };
}

impl Coverage {
    fn client(&mut self, message: &ClientMessage) {
        note!(
            self,
            ClientMessage,
            message,
            [
                Hello, Get, Scan, ScanNext, ScanClose, Commit, Watch, Credit, Unwatch, Cancel,
                Probe,
            ]
        );
        if let ClientMessage::Commit { batch, .. } = message {
            for check in &batch.checks {
                note!(self, Expected, check.expected, [Absent, At]);
            }
            for operation in &batch.operations {
                note!(
                    self,
                    Operation,
                    operation,
                    [Put, Remove, PutStamped, Signal]
                );
                if let Operation::Put { lifetime, .. } = operation {
                    note!(self, Lifetime, lifetime, [Forever, TimeToLive, Session]);
                }
            }
        }
        if let ClientMessage::Watch(request) = message {
            note!(self, WatchStart, request.start, [Now, After, Beginning]);
            note!(self, WatchMode, request.mode, [Every, Latest]);
        }
    }

    fn server(&mut self, message: &ServerMessage) {
        note!(
            self,
            ServerMessage,
            message,
            [
                Welcome, Values, Page, Done, Committed, Watching, Changes, States, Progress, Reset,
                Probed, Error, GoAway,
            ]
        );
        if let ServerMessage::Values { entries, .. } = message {
            for entry in entries.iter().flatten() {
                note!(
                    self,
                    EntryLifetime,
                    entry.lifetime,
                    [Forever, Until, Session]
                );
            }
        }
        if let ServerMessage::States { states } = message {
            for (_, state) in states {
                note!(self, KeyState, state, [Live, Removed]);
            }
        }
        if let ServerMessage::Changes { commits } = message {
            for change in commits.iter().flat_map(|commit| &commit.changes) {
                note!(self, ChangeKind, change.kind, [Put, Removed, Signalled]);
            }
        }
        if let ServerMessage::Error(error) = message {
            note!(
                self,
                Outcome,
                error.outcome(),
                [NotExecuted, Refused, Unknown]
            );
        }
    }
}

/// `StorageError` is open to new variants, its codes on the wire are not.
const ERROR_CODES: [ErrorCode; 19] = [
    ErrorCode::CheckFailed,
    ErrorCode::LimitExceeded,
    ErrorCode::InvalidArgument,
    ErrorCode::Compacted,
    ErrorCode::EpochChanged,
    ErrorCode::SnapshotExpired,
    ErrorCode::Overloaded,
    ErrorCode::StorageFull,
    ErrorCode::ReadOnly,
    ErrorCode::AccessDenied,
    ErrorCode::Cancelled,
    ErrorCode::DeadlineExceeded,
    ErrorCode::Closed,
    ErrorCode::PeerMisbehaved,
    ErrorCode::Unsupported,
    ErrorCode::Internal,
    ErrorCode::NumberReused,
    ErrorCode::AccessChanged,
    ErrorCode::QuotaExceeded,
];

// ---- The files ----

fn golden_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/native.jsonl")
}

fn document_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md")
}

fn group_of_marker(line: &str) -> Option<&str> {
    line.strip_prefix("<!-- golden ")?.strip_suffix(" -->")
}

fn update_if_asked() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if env::var_os("UPDATE_GOLDEN").is_none() {
            return;
        }
        let mut golden = String::new();
        for case in cases() {
            let line = serde_json::to_string(&case.line()).expect("plain text");
            writeln!(golden, "{line}").expect("a string takes all");
        }
        fs::write(golden_path(), golden).expect("write the golden file");
        let document = fs::read_to_string(document_path()).expect("read the document");
        let updated = with_golden_blocks(&document);
        fs::write(document_path(), &updated).expect("write the document");
        println!(
            "rewrote {} messages in golden/native.jsonl; docs/protocol.md: {}",
            cases().len(),
            match updated == document {
                true => "unchanged",
                false => "blocks changed, read the text around them",
            }
        );
    });
}

/// The document with what stands between its markers made anew.
fn with_golden_blocks(document: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for line in document.lines() {
        if line == "<!-- /golden -->" {
            inside = false;
        }
        if !inside {
            out.push_str(line);
            out.push('\n');
        }
        if let Some(group) = group_of_marker(line) {
            inside = true;
            out.push_str(&block(group));
        }
    }
    out
}

fn block(group: &str) -> String {
    let mut out = String::from("```hex\n");
    for case in cases().iter().filter(|case| case.group() == group) {
        let from = match case.message {
            Message::Client(_) => "client",
            Message::Server(_) => "server",
            Message::Part => "either",
        };
        let (_, name) = case.name.split_once('/').expect("GROUP/NAME");
        for (place, row) in wrapped(&format!("{from}, {name}: {}", case.description))
            .iter()
            .enumerate()
        {
            let indent = if place == 0 { "" } else { "  " };
            writeln!(out, "# {indent}{row}").expect("a string takes all");
        }
        for row in case.frame.chunks(32) {
            let row: Vec<_> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(out, "{}", row.join(" ")).expect("a string takes all");
        }
    }
    out.push_str("```\n");
    out
}

fn wrapped(text: &str) -> Vec<String> {
    let mut rows = vec![String::new()];
    for word in text.split(' ') {
        let row = rows.last_mut().expect("at least one");
        if row.is_empty() {
            row.push_str(word);
        } else if row.len() + word.len() < 100 {
            row.push(' ');
            row.push_str(word);
        } else {
            rows.push(word.to_owned());
        }
    }
    rows
}

//! Every message there and back, alone and through outbox and reassembly; and what is not a message.
//!
//! The two properties that the rest of the system leans on: `decode(encode(x)) == x` (and `encode(decode(b)) == b`,
//! where there is one encoding), and that no received bytes make a reader panic, read on, or take more memory than a
//! small multiple of what was received.

#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use std::time::Instant;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::welcome::{limit_field, limit_pairs};
use super::*;
use crate::native::VERSION;
use crate::native::{Class, ITEMS_MAX, Outbox, PART_BYTES, Reassembler};
use crate::number::ID_MAX;
use crate::{
    Change, ChangeKind, Check, EntryLifetime, Epoch, Expected, Lifetime, Limit, Operation, Outcome,
    UnixMillis,
};

fn id() -> impl Strategy<Value = RequestId> {
    prop_oneof![0..40u32, 0..=ID_MAX, Just(ID_MAX)]
}

/// Numbers of every length that the wire has for them.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64u32).prop_map(|(value, shift)| value >> shift)
}

fn bytes() -> impl Strategy<Value = Bytes> {
    // Separators and type bytes in payloads are what framing could stumble over.
    prop_oneof![
        vec(any::<u8>(), 0..20).prop_map(Bytes::from),
        vec(prop_oneof![Just(b'#'), Just(kind::PART), Just(b'A')], 0..6).prop_map(Bytes::from),
        vec(any::<u8>(), 120..140).prop_map(Bytes::from),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), ".{0,20}", "[#ä0€𝄞]{0,5}"]
}

/// Whole milliseconds: what the wire carries.
fn duration() -> impl Strategy<Value = Duration> {
    number().prop_map(Duration::from_millis)
}

fn revision() -> impl Strategy<Value = Revision> {
    number().prop_map(Revision)
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u64>(), revision()).prop_map(|(epoch, revision)| Position {
        epoch: Epoch(epoch),
        revision,
    })
}

fn range() -> impl Strategy<Value = KeyRange> {
    (bytes(), option::of(bytes())).prop_map(|(start, end)| KeyRange { start, end })
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<[u8; 16]>().prop_map(SessionId)
}

fn lifetime() -> impl Strategy<Value = Lifetime> {
    prop_oneof![
        Just(Lifetime::Forever),
        duration().prop_map(Lifetime::TimeToLive),
        Just(Lifetime::Session),
    ]
}

fn entry_lifetime() -> impl Strategy<Value = EntryLifetime> {
    prop_oneof![
        Just(EntryLifetime::Forever),
        number().prop_map(|time| EntryLifetime::Until(UnixMillis(time))),
        Just(EntryLifetime::Session),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (bytes(), revision(), entry_lifetime()).prop_map(|(value, revision, lifetime)| Entry {
        value,
        revision,
        lifetime,
    })
}

fn key_state() -> impl Strategy<Value = KeyState> {
    prop_oneof![
        entry().prop_map(KeyState::Live),
        revision().prop_map(KeyState::Removed),
    ]
}

fn check() -> impl Strategy<Value = Check> {
    let expected = prop_oneof![Just(Expected::Absent), revision().prop_map(Expected::At)];
    (bytes(), expected).prop_map(|(key, expected)| Check { key, expected })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (bytes(), bytes(), lifetime()).prop_map(|(key, value, lifetime)| Operation::Put {
            key,
            value,
            lifetime
        }),
        bytes().prop_map(|key| Operation::Remove { key }),
        (bytes(), bytes(), lifetime()).prop_map(|(prefix, value, lifetime)| {
            Operation::PutStamped {
                prefix,
                value,
                lifetime,
            }
        }),
        (bytes(), bytes()).prop_map(|(key, bytes)| Operation::Signal { key, bytes }),
    ]
}

fn commit() -> impl Strategy<Value = ClientMessage> {
    (
        number(),
        option::of(text()),
        any::<bool>(),
        vec(check(), 0..4),
        vec(operation(), 0..6),
    )
        .prop_map(
            |(number, label, with_previous, checks, operations)| ClientMessage::Commit {
                number,
                options: CommitOptions {
                    label,
                    with_previous,
                },
                batch: Batch { checks, operations },
            },
        )
}

fn scan() -> impl Strategy<Value = ClientMessage> {
    (
        range(),
        any::<bool>(),
        any::<bool>(),
        option::of(number()),
        option::of(position()),
    )
        .prop_map(|(range, reverse, keys_only, limit, newer_than)| {
            let options = ScanOptions {
                reverse,
                keys_only,
                limit,
                newer_than,
            };
            ClientMessage::Scan { range, options }
        })
}

fn watch() -> impl Strategy<Value = ClientMessage> {
    let start = prop_oneof![
        Just(WatchStart::Now),
        position().prop_map(WatchStart::After),
        Just(WatchStart::Beginning),
    ];
    let mode = prop_oneof![
        Just(WatchMode::Every),
        duration().prop_map(|min_interval| WatchMode::Latest { min_interval }),
    ];
    (range(), start, mode, number()).prop_map(|(range, start, mode, credit)| {
        ClientMessage::Watch(WatchRequest {
            range,
            start,
            mode,
            credit,
        })
    })
}

fn client_message() -> impl Strategy<Value = ClientMessage> {
    prop_oneof![
        (
            option::of(session()),
            number(),
            number(),
            proptest::collection::btree_set(number(), 0..8),
            text()
        )
            .prop_map(|(session, incarnation, sent, unanswered, agent)| {
                ClientMessage::Hello(Hello {
                    version: VERSION,
                    session,
                    incarnation,
                    sent,
                    unanswered: unanswered.into_iter().collect(),
                    agent,
                })
            }),
        vec(bytes(), 0..8).prop_map(|keys| ClientMessage::Get { keys }),
        scan(),
        number().prop_map(|scan| ClientMessage::ScanNext { scan }),
        number().prop_map(|scan| ClientMessage::ScanClose { scan }),
        commit(),
        watch(),
        number().prop_map(|bytes| ClientMessage::Credit { bytes }),
        id().prop_map(|watch| ClientMessage::Unwatch { watch }),
        Just(ClientMessage::Cancel),
        (option::of(id()), number())
            .prop_map(|(watch, token)| ClientMessage::Probe { watch, token }),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let kind = prop_oneof![
        (bytes(), entry_lifetime(), option::of(bytes())).prop_map(|(value, lifetime, previous)| {
            ChangeKind::Put {
                value,
                lifetime,
                previous,
            }
        }),
        option::of(bytes()).prop_map(|previous| ChangeKind::Removed { previous }),
        bytes().prop_map(|bytes| ChangeKind::Signalled { bytes }),
    ];
    (bytes(), kind).prop_map(|(key, kind)| Change { key, kind })
}

fn commit_record() -> impl Strategy<Value = Arc<CommitRecord>> {
    (
        revision(),
        number(),
        option::of(text()),
        text(),
        vec(change(), 0..5),
    )
        .prop_map(|(revision, time, label, principal, changes)| {
            let time = UnixMillis(time);
            Arc::new(CommitRecord::new(revision, time, label, principal, changes))
        })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::NotExecuted),
        Just(Outcome::Refused),
        Just(Outcome::Unknown),
    ]
}

fn limit() -> impl Strategy<Value = Limit> {
    (0..Limit::ALL.len()).prop_map(|place| Limit::ALL[place])
}

/// Every error that has a code of its own (`ConnectFailed` travels as `Closed`: see below).
fn error() -> impl Strategy<Value = StorageError> {
    let first = prop_oneof![
        (bytes(), option::of(revision()))
            .prop_map(|(key, actual)| StorageError::CheckFailed { key, actual }),
        (limit(), number(), number())
            .prop_map(|(limit, max, actual)| StorageError::LimitExceeded { limit, max, actual }),
        text().prop_map(|message| StorageError::InvalidArgument { message }),
        revision().prop_map(|oldest| StorageError::Compacted { oldest }),
        position().prop_map(|Position { epoch, revision }| StorageError::EpochChanged {
            epoch,
            fork: revision
        }),
        Just(StorageError::SnapshotExpired),
        (limit(), number()).prop_map(|(limit, max)| StorageError::Overloaded { limit, max }),
        (number(), number())
            .prop_map(|(available, reserve)| StorageError::StorageFull { available, reserve }),
    ];
    let second = prop_oneof![
        text().prop_map(|reason| StorageError::ReadOnly { reason }),
        text().prop_map(|message| StorageError::AccessDenied { message }),
        Just(StorageError::Cancelled),
        outcome().prop_map(|outcome| StorageError::DeadlineExceeded { outcome }),
        (text(), outcome()).prop_map(|(reason, outcome)| StorageError::Closed { reason, outcome }),
        (text(), outcome())
            .prop_map(|(message, outcome)| StorageError::PeerMisbehaved { message, outcome }),
        text().prop_map(|what| StorageError::Unsupported { what }),
        number().prop_map(|number| StorageError::NumberReused { number }),
        Just(StorageError::AccessChanged),
        (limit(), number()).prop_map(|(limit, max)| StorageError::QuotaExceeded { limit, max }),
        (text(), outcome())
            .prop_map(|(message, outcome)| StorageError::Internal { message, outcome }),
    ];
    prop_oneof![first, second]
}

fn limits() -> impl Strategy<Value = Limits> {
    any::<[usize; 10]>().prop_map(|values| {
        let mut limits = Limits::default();
        for ((limit, _), value) in limit_pairs(&Limits::default()).into_iter().zip(values) {
            *limit_field(&mut limits, limit).unwrap() = value;
        }
        limits
    })
}

fn welcome() -> impl Strategy<Value = ServerMessage> {
    (
        (number(), position(), session(), number(), any::<bool>()),
        (
            text(),
            [duration(), duration(), duration(), duration()],
            limits(),
        ),
    )
        .prop_map(|(session, rest)| {
            let (version, position, session, executed, lapsed) = session;
            let (principal, [heartbeat, silence, grace, kept], limits) = rest;
            ServerMessage::Welcome(Welcome {
                version,
                position,
                session,
                executed,
                lapsed,
                principal,
                heartbeat,
                silence,
                grace,
                kept,
                limits,
            })
        })
}

fn server_message() -> impl Strategy<Value = ServerMessage> {
    let answers = prop_oneof![
        welcome(),
        (revision(), vec(option::of(entry()), 0..6))
            .prop_map(|(revision, entries)| ServerMessage::Values { revision, entries }),
        (
            revision(),
            option::of(0..u64::MAX),
            vec((bytes(), key_state()), 0..6)
        )
            .prop_map(|(revision, scan, items)| {
                let item = |(key, state)| ScanItem { key, state };
                ServerMessage::Page {
                    revision,
                    scan,
                    items: items.into_iter().map(item).collect(),
                }
            }),
        Just(ServerMessage::Done),
        revision().prop_map(|revision| ServerMessage::Committed { revision }),
        revision().prop_map(|revision| ServerMessage::Watching { revision }),
        (revision(), number())
            .prop_map(|(revision, token)| ServerMessage::Probed { revision, token }),
        error().prop_map(ServerMessage::Error),
    ];
    let events = prop_oneof![
        vec(commit_record(), 1..4).prop_map(|commits| ServerMessage::Changes { commits }),
        vec((bytes(), key_state()), 0..6).prop_map(|states| ServerMessage::States { states }),
        (revision(), option::of(number()))
            .prop_map(|(revision, token)| ServerMessage::Progress { revision, token }),
        Just(ServerMessage::Reset),
        (duration(), text()).prop_map(|(retry_after, reason)| ServerMessage::GoAway {
            retry_after,
            reason
        }),
    ];
    prop_oneof![3 => answers, 2 => events]
}

fn client_packet() -> impl Strategy<Value = (ClientMessage, Packet)> {
    (client_message(), id()).prop_map(|(message, id)| {
        let id = (!matches!(message, ClientMessage::Hello(_))).then_some(id);
        let packet = message.encode(id);
        (message, packet)
    })
}

fn server_packet() -> impl Strategy<Value = (ServerMessage, Packet)> {
    (server_message(), id()).prop_map(|(message, id)| {
        let alone = matches!(
            message,
            ServerMessage::Welcome(_) | ServerMessage::GoAway { .. }
        );
        let packet = message.encode((!alone).then_some(id));
        (message, packet)
    })
}

fn with_payload(packet: &Packet, payload: Bytes) -> Packet {
    Packet {
        payload,
        ..packet.clone()
    }
}

/// How many things a decoded message holds in its lists.
fn client_items(message: &ClientMessage) -> usize {
    match message {
        ClientMessage::Get { keys } => keys.len(),
        ClientMessage::Commit { batch, .. } => batch.checks.len() + batch.operations.len(),
        ClientMessage::Hello(_)
        | ClientMessage::Scan { .. }
        | ClientMessage::ScanNext { .. }
        | ClientMessage::ScanClose { .. }
        | ClientMessage::Watch(_)
        | ClientMessage::Credit { .. }
        | ClientMessage::Unwatch { .. }
        | ClientMessage::Cancel
        | ClientMessage::Probe { .. } => 0,
    }
}

fn server_items(message: &ServerMessage) -> usize {
    match message {
        ServerMessage::Values { entries, .. } => entries.len(),
        ServerMessage::Page { items, .. } => items.len(),
        ServerMessage::States { states } => states.len(),
        ServerMessage::Changes { commits } => {
            commits.len()
                + commits
                    .iter()
                    .map(|commit| commit.changes.len())
                    .sum::<usize>()
        }
        ServerMessage::Welcome(_)
        | ServerMessage::Done
        | ServerMessage::Committed { .. }
        | ServerMessage::Watching { .. }
        | ServerMessage::Progress { .. }
        | ServerMessage::Reset
        | ServerMessage::Probed { .. }
        | ServerMessage::Error(_)
        | ServerMessage::GoAway { .. } => 0,
    }
}

/// Decodes as both sides would; what comes out is bounded by what went in, and stable.
fn judge(packet: &Packet) -> std::result::Result<(), TestCaseError> {
    let length = packet.payload.len();
    if let Ok(message) = ClientMessage::decode(packet.clone()) {
        prop_assert!(client_items(&message) <= length.min(ITEMS_MAX));
        // A client's messages have one encoding each.
        prop_assert_eq!(&message.encode(packet.id), packet);
    }
    if let Ok(message) = ServerMessage::decode(packet.clone()) {
        prop_assert!(server_items(&message) <= length.min(ITEMS_MAX));
        let again = message.encode(packet.id);
        // Welcome may name limits that are passed over here, an error's text is its sender's own.
        if !matches!(packet.kind, kind::WELCOME | kind::ERROR) {
            prop_assert_eq!(&again, packet);
        }
        prop_assert_eq!(ServerMessage::decode(again), Ok(message));
    }
    Ok(())
}

fn type_byte() -> impl Strategy<Value = u8> {
    prop_oneof![9 => kind::HELLO..=kind::PART, 1 => any::<u8>()]
}

proptest! {
    #[test]
    fn client_messages_come_back((message, packet) in client_packet()) {
        prop_assert!(packet.payload.len() <= message.size_hint() + 400, "size_hint is far off");
        let received = Packet::from_frame(packet.to_frame()).unwrap();
        prop_assert_eq!(&received, &packet);
        prop_assert_eq!(ClientMessage::decode(received), Ok(message));
    }

    #[test]
    fn server_messages_come_back((message, packet) in server_packet()) {
        let received = Packet::from_frame(packet.to_frame()).unwrap();
        prop_assert_eq!(&received, &packet);
        prop_assert_eq!(ServerMessage::decode(received), Ok(message));
    }

    #[test]
    fn each_side_refuses_what_only_the_other_says(
        (_, from_client) in client_packet(),
        (_, from_server) in server_packet(),
    ) {
        let kind = from_client.kind;
        prop_assert_eq!(ServerMessage::decode(from_client), Err(ProtocolError::UnknownType(kind)));
        let kind = from_server.kind;
        prop_assert_eq!(ClientMessage::decode(from_server), Err(ProtocolError::UnknownType(kind)));
    }

    #[test]
    fn an_id_belongs_or_does_not(
        (_, mut from_client) in client_packet(),
        (_, mut from_server) in server_packet(),
    ) {
        let flip = |id: Option<RequestId>| if id.is_some() { None } else { Some(1) };
        from_client.id = flip(from_client.id);
        let (kind, expected) = (from_client.kind, from_client.id.is_none());
        let mismatch = Err(ProtocolError::IdMismatch { kind, expected });
        prop_assert_eq!(ClientMessage::decode(from_client), mismatch);
        from_server.id = flip(from_server.id);
        let (kind, expected) = (from_server.kind, from_server.id.is_none());
        let mismatch = Err(ProtocolError::IdMismatch { kind, expected });
        prop_assert_eq!(ServerMessage::decode(from_server), mismatch);
    }

    #[test]
    fn a_payload_cut_short_is_an_error(
        (_, from_client) in client_packet(),
        (message, from_server) in server_packet(),
    ) {
        for length in 0..from_client.payload.len() {
            let cut = with_payload(&from_client, from_client.payload.slice(..length));
            prop_assert!(ClientMessage::decode(cut).is_err(), "{} bytes of {:?}", length, from_client);
        }
        for length in 0..from_server.payload.len() {
            let cut = with_payload(&from_server, from_server.payload.slice(..length));
            match (ServerMessage::decode(cut), &message) {
                (Err(_), _) => {}
                // A list without a count: where one commit ends, the message may end.
                (Ok(ServerMessage::Changes { commits: read }), ServerMessage::Changes { commits }) => {
                    prop_assert!(read.len() < commits.len());
                    prop_assert_eq!(&read[..], &commits[..read.len()]);
                }
                (Ok(read), _) => prop_assert!(false, "{} bytes were read as {:?}", length, read),
            }
        }
    }

    #[test]
    fn trailing_bytes_are_an_error(
        (_, from_client) in client_packet(),
        (_, from_server) in server_packet(),
        tail in vec(any::<u8>(), 1..4),
    ) {
        let longer = |packet: &Packet| {
            with_payload(packet, [&packet.payload[..], &tail[..]].concat().into())
        };
        let trailing = ProtocolError::TrailingBytes { bytes: tail.len() };
        prop_assert_eq!(ClientMessage::decode(longer(&from_client)), Err(trailing.clone()));
        if from_server.kind == kind::CHANGES {
            // Another commit may begin there; no commit has so few bytes.
            prop_assert!(ServerMessage::decode(longer(&from_server)).is_err());
        } else {
            prop_assert_eq!(ServerMessage::decode(longer(&from_server)), Err(trailing));
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(
        kind in type_byte(),
        id in option::of(id()),
        payload in vec(prop_oneof![any::<u8>(), 0..4u8], 0..80),
    ) {
        judge(&Packet { kind, id, payload: payload.into() })?;
    }

    #[test]
    fn any_frame_is_a_packet_or_an_error(frame in vec(prop_oneof![any::<u8>(), Just(b'#')], 0..60)) {
        let frame = Bytes::from(frame);
        if let Ok(packet) = Packet::from_frame(frame.clone()) {
            prop_assert_eq!(packet.to_frame(), frame, "a frame has one reading and one writing");
            judge(&packet)?;
        }
    }

    #[test]
    fn a_damaged_message_is_a_message_or_an_error(
        (_, from_client) in client_packet(),
        (_, from_server) in server_packet(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for packet in [from_client, from_server] {
            let mut payload = packet.payload.to_vec();
            for (place, byte) in &damage {
                if !payload.is_empty() {
                    let place = place.index(payload.len());
                    payload[place] = *byte;
                }
            }
            judge(&with_payload(&packet, payload.into()))?;
        }
    }

    #[test]
    fn declared_counts_beyond_the_payload_are_refused(count in 64..=u64::MAX, kind in type_byte()) {
        // A huge count where a list begins: nothing may be allocated for it.
        let mut payload = BytesMut::new();
        payload.number(count);
        payload.number(count);
        payload.put_bytes(1, 8);
        judge(&Packet { kind, id: Some(1), payload: payload.freeze() })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn with_any_bit_flipped_it_is_another_message_or_an_error(
        (_, from_client) in client_packet(),
        (_, from_server) in server_packet(),
    ) {
        for packet in [from_client, from_server] {
            for bit in 0..packet.payload.len() * 8 {
                let mut payload = packet.payload.to_vec();
                payload[bit / 8] ^= 1 << (bit % 8);
                judge(&with_payload(&packet, payload.into()))?;
            }
        }
    }

    #[test]
    fn messages_come_back_through_outbox_and_reassembly(
        sent in vec((client_packet(), any::<bool>(), 0..3usize), 1..10),
    ) {
        let classes = [Class::Control, Class::Answer, Class::Change];
        let mut outbox = Outbox::new();
        let mut waiting = Vec::new();
        for (place, ((message, _), long, class)) in sent.into_iter().enumerate() {
            // An id each, as for requests in flight; some are long enough to travel in parts.
            let id = RequestId::try_from(place).unwrap();
            let message = if matches!(message, ClientMessage::Hello(_)) || long {
                ClientMessage::Get {
                    keys: vec![Bytes::from(vec![b'#'; PART_BYTES]); place + 1],
                }
            } else {
                message
            };
            outbox.push(classes[class], message.encode(Some(id)));
            waiting.push((id, message));
        }
        let mut reassembler = Reassembler::new(Limits::FRAME_BYTES, 64 << 20);
        while let Some(frame) = outbox.pop() {
            prop_assert!(frame.len() <= PART_BYTES + 64);
            let held = reassembler.bytes();
            let got = frame.len();
            let Some(packet) = reassembler.accept(frame, Instant::now()).unwrap() else {
                prop_assert!(reassembler.bytes() <= held + got, "held grows by what came");
                continue;
            };
            let id = packet.id.unwrap();
            let place = waiting.iter().position(|(waits, _)| *waits == id);
            let (_, message) = waiting.remove(place.expect("it came once"));
            prop_assert_eq!(ClientMessage::decode(packet), Ok(message));
        }
        prop_assert!(outbox.is_empty());
        prop_assert!(waiting.is_empty(), "all came");
        prop_assert_eq!(reassembler.bytes(), 0);
    }

    #[test]
    fn parts_of_several_messages_alternate(
        messages in vec(server_packet(), 1..6),
        chunk in 1..40usize,
        turns in vec(any::<prop::sample::Index>(), 0..400),
    ) {
        // Ids of their own, since a type and id tell messages in parts apart.
        let mut waiting: Vec<_> = messages
            .into_iter()
            .enumerate()
            .map(|(place, (message, packet))| {
                let id = packet.id.map(|_| RequestId::try_from(place).unwrap());
                (message, Packet { id, ..packet }, 0)
            })
            .filter(|(_, packet, _)| !packet.payload.is_empty() && packet.id.is_some())
            .collect();
        let mut reassembler = Reassembler::new(256, 1 << 20);
        let mut turns = turns.into_iter();
        while !waiting.is_empty() {
            let place = turns.next().map_or(0, |turn| turn.index(waiting.len()));
            let (_, packet, sent) = &mut waiting[place];
            let length = chunk.min(packet.payload.len() - *sent);
            let frame = super::super::reassembly::part_frame(packet, *sent, length);
            *sent += length;
            let got = reassembler.accept(frame, Instant::now()).unwrap();
            let whole = *sent == packet.payload.len();
            prop_assert_eq!(got.is_some(), whole);
            if let Some(got) = got {
                let (message, packet, _) = waiting.remove(place);
                prop_assert_eq!(&got, &packet);
                prop_assert_eq!(ServerMessage::decode(got), Ok(message));
            }
            let held: usize = waiting.iter().map(|(_, _, sent)| sent).sum();
            prop_assert_eq!(reassembler.bytes(), held);
        }
    }
}

#[test]
fn a_message_of_too_many_items_is_refused() {
    let keys = |count: usize| {
        let keys = vec![Bytes::new(); count];
        ClientMessage::decode(ClientMessage::Get { keys }.encode(Some(1)))
    };
    assert!(keys(ITEMS_MAX).is_ok());
    assert_eq!(
        keys(ITEMS_MAX + 1),
        Err(ProtocolError::TooManyItems { max: ITEMS_MAX })
    );
    let record = CommitRecord::new(Revision(1), UnixMillis(0), None, String::new(), Vec::new());
    let record = Arc::new(record);
    let commits = std::iter::repeat_n(record, ITEMS_MAX + 1).collect();
    let changes = ServerMessage::Changes { commits }.encode(Some(1));
    assert_eq!(
        ServerMessage::decode(changes),
        Err(ProtocolError::TooManyItems { max: ITEMS_MAX })
    );
}

#[test]
fn a_commit_begins_with_its_number() {
    for number in [1, 300, u64::MAX] {
        let commit = ClientMessage::Commit {
            number,
            options: CommitOptions::default(),
            batch: Batch::new().put("k", "v"),
        };
        let payload = commit.encode(Some(1)).payload;
        let head = payload.get(..Reassembler::HEAD_BYTES).unwrap_or(&payload);
        assert_eq!(ClientMessage::commit_number(head), Some(number));
    }
    assert_eq!(ClientMessage::commit_number(&[0x80]), None);
}

#[test]
fn durations_travel_in_whole_milliseconds() {
    let lifetime = |duration| ClientMessage::Commit {
        number: 1,
        options: CommitOptions::default(),
        batch: Batch::new().put_with("k", "v", Lifetime::TimeToLive(duration)),
    };
    let travelled = |duration| ClientMessage::decode(lifetime(duration).encode(Some(1))).unwrap();
    let millis = Duration::from_millis;
    assert_eq!(travelled(Duration::from_micros(1_999)), lifetime(millis(1)));
    assert_eq!(travelled(Duration::MAX), lifetime(millis(u64::MAX)));
}

#[test]
fn another_version_of_hello_is_named_whatever_follows() {
    let packet = |payload: &'static [u8]| Packet {
        kind: kind::HELLO,
        id: None,
        payload: Bytes::from_static(payload),
    };
    for (payload, asked) in [(&b"\x02"[..], 2), (b"\x02\xff\xff\xff", 2), (b"\x00", 0)] {
        let error = ClientMessage::decode(packet(payload)).unwrap_err();
        assert_eq!(error, ProtocolError::UnknownVersion { asked, spoken: 1 });
        assert!(error.to_string().contains("version 1"), "{error}");
    }
}

#[test]
fn a_session_id_has_sixteen_bytes_or_none() {
    for length in 0..40u8 {
        let mut payload = BytesMut::new();
        payload.number(VERSION);
        payload.length_prefixed(&vec![7; usize::from(length)]);
        payload.number(0);
        payload.number(0);
        payload.number(0);
        payload.length_prefixed(b"");
        let packet = Packet {
            kind: kind::HELLO,
            id: None,
            payload: payload.freeze(),
        };
        let read = ClientMessage::decode(packet);
        assert_eq!(read.is_ok(), matches!(length, 0 | 16), "{length}: {read:?}");
    }
}

#[test]
fn unanswered_numbers_ascend_within_the_window() {
    let decode = |numbers: &[u64]| {
        let mut payload = BytesMut::new();
        payload.number(VERSION);
        payload.length_prefixed(&[7; 16]);
        payload.number(1);
        payload.number(9_999);
        payload.number(numbers.len() as u64);
        numbers.iter().for_each(|number| payload.number(*number));
        payload.length_prefixed(b"");
        ClientMessage::decode(Packet {
            kind: kind::HELLO,
            id: None,
            payload: payload.freeze(),
        })
    };
    assert!(decode(&[]).is_ok());
    assert!(decode(&[1, 2, 9]).is_ok());
    assert!(decode(&[1, 1]).is_err());
    assert!(decode(&[2, 1]).is_err());
    let window: Vec<u64> = (1..=super::super::COMMIT_WINDOW).collect();
    assert!(decode(&window).is_ok());
    let beyond: Vec<u64> = (1..=super::super::COMMIT_WINDOW + 1).collect();
    assert!(decode(&beyond).is_err());
}

#[test]
fn a_failed_connect_travels_as_closed() {
    let message = "the engine behind the server".to_owned();
    let sent = ServerMessage::Error(StorageError::ConnectFailed {
        message: message.clone(),
    });
    let received = StorageError::Closed {
        reason: message,
        outcome: Outcome::NotExecuted,
    };
    assert_eq!(
        ServerMessage::decode(sent.encode(Some(1))),
        Ok(ServerMessage::Error(received))
    );
}

#[test]
fn an_error_of_a_newer_server_keeps_its_outcome() {
    for (tag, outcome) in [
        (0, Outcome::NotExecuted),
        (1, Outcome::Refused),
        (2, Outcome::Unknown),
    ] {
        let mut payload = BytesMut::new();
        payload.number(99);
        payload.put_u8(tag);
        payload.length_prefixed(b"moon phase");
        payload.put_slice(b"what only the newer one can read");
        let packet = Packet {
            kind: kind::ERROR,
            id: Some(1),
            payload: payload.freeze(),
        };
        let message = "moon phase (error code 99)".to_owned();
        assert_eq!(
            ServerMessage::decode(packet),
            Ok(ServerMessage::Error(StorageError::Internal {
                message,
                outcome
            }))
        );
    }
}

#[test]
fn an_outcome_that_its_code_cannot_have_is_refused() {
    // "Overloaded, outcome unknown": were it read as Overloaded, a caller would repeat what may have happened.
    let mut payload = BytesMut::new();
    payload.number(ErrorCode::Overloaded as u64);
    payload.put_u8(2);
    payload.length_prefixed(b"");
    payload.number(7);
    payload.number(1024);
    let packet = Packet {
        kind: kind::ERROR,
        id: Some(1),
        payload: payload.freeze(),
    };
    assert!(matches!(
        ServerMessage::decode(packet),
        Err(ProtocolError::BadTag { tag: 2, .. })
    ));
}

#[test]
fn limits_that_this_version_does_not_know_are_passed_over() {
    let welcome = Welcome {
        version: VERSION,
        position: Position::default(),
        session: SessionId([7; 16]),
        executed: 0,
        lapsed: false,
        principal: String::new(),
        heartbeat: Duration::from_secs(15),
        silence: Duration::from_secs(45),
        grace: Duration::from_secs(60),
        kept: Duration::from_secs(86_400),
        limits: Limits {
            scans_max: 3,
            ..Limits::default()
        },
    };
    let packet = ServerMessage::Welcome(welcome.clone()).encode(None);
    let pairs = limit_pairs(&welcome.limits);
    let mut tail = BytesMut::new();
    for (limit, value) in pairs {
        tail.number(u64::from(limit.wire()));
        tail.number(value as u64);
    }
    // One more pair behind the ten, and the count raised by one.
    let before = packet.payload.len() - tail.len() - 1;
    let mut payload = BytesMut::from(&packet.payload[..before]);
    payload.number(11);
    payload.put_slice(&tail);
    payload.number(9_999);
    payload.number(1);
    let packet = with_payload(&packet, payload.freeze());
    assert_eq!(
        ServerMessage::decode(packet),
        Ok(ServerMessage::Welcome(welcome))
    );
}

//! Every row round trips, and what is cut short is damage.

use std::num::NonZeroU32;

use storage_protocol::{Epoch, Key, Revision, SessionId, UnixMillis, Value};

use super::*;
use crate::engine::Usage;
use crate::engine::rocks::KeyspaceRules;

#[test]
fn rows_round_trip() {
    let session = SessionId([7; 16]);
    for stored in [
        Stored::Forever,
        Stored::Until(UnixMillis(5)),
        Stored::Session(session),
        Stored::Tombstone(UnixMillis(9)),
    ] {
        let head = Head {
            revision: Revision(3),
            stored,
        };
        let row = entry_value(&head, b"value");
        let (parsed, at) = parse_entry_value(&row).unwrap();
        assert_eq!((parsed, &row[at..]), (head, b"value".as_slice()));
        for cut in 0..at {
            assert!(parse_entry_value(&row[..cut]).is_err());
        }
    }
    for row in [
        LifetimeRow::Due(UnixMillis(1), KeyspaceId(2), Key::from("k")),
        LifetimeRow::Session(session, KeyspaceId(2), Key::from("k")),
        LifetimeRow::Tombstone(KeyspaceId(2), Revision(8), Key::from("")),
    ] {
        assert_eq!(LifetimeRow::parse(&row.key()).unwrap(), row);
    }
    let row = CommitRow {
        number: 9,
        keyspace: KeyspaceId(1),
        revision: Revision(77),
        time: UnixMillis(5),
        principal: "cert:a".into(),
        label: Some("x".into()),
        signals: vec![(0, Key::from("s"), Value::from("t"))],
        previous: vec![(1, Value::from("p"))],
        fingerprint: Some(0x0123_4567_89ab_cdef),
    };
    let number_of = |row: &CommitRow| NumberRow {
        number: row.number,
        revision: row.revision,
        fingerprint: row.fingerprint,
    };
    let encoded = row.encode();
    assert_eq!(CommitRow::decode(&encoded).unwrap(), row);
    let number = CommitRow::decode_number(&encoded).unwrap();
    assert_eq!(number, number_of(&row));
    // Without its last 8 bytes it is one of a version that kept no fingerprint.
    let older = CommitRow {
        fingerprint: None,
        ..row
    };
    let whole = encoded.len() - 8;
    assert_eq!(older.encode(), &encoded[..whole]);
    assert_eq!(CommitRow::decode(&encoded[..whole]).unwrap(), older);
    let number = CommitRow::decode_number(&encoded[..whole]).unwrap();
    assert_eq!(number, number_of(&older));
    for cut in (0..encoded.len()).filter(|cut| *cut != whole) {
        assert!(CommitRow::decode(&encoded[..cut]).is_err(), "cut at {cut}");
        assert!(
            CommitRow::decode_number(&encoded[..cut]).is_err(),
            "cut at {cut}"
        );
    }
    let row = UsageRow {
        usage: Usage {
            entries: 3,
            bytes: u64::MAX,
        },
        at: Revision(7),
    };
    let encoded = row.encode();
    assert_eq!(UsageRow::decode(&encoded).unwrap(), row);
    assert!(UsageRow::decode(&encoded[1..]).is_err());
    assert!(UsageRow::decode(&[&encoded[..], &[0; 8]].concat()).is_err());
    let epochs = vec![(Epoch(1), Revision(0)), (Epoch(u64::MAX), Revision(9))];
    assert_eq!(decode_epochs(&encode_epochs(&epochs)).unwrap(), epochs);
}

#[test]
fn rows_sort_as_their_numbers() {
    let at = |revision| index_key(KeyspaceId(1), Revision(revision), b"zz");
    assert!(at(255) < at(256));
    assert!(at(u64::MAX) < keyspace_end(Table::Index, KeyspaceId(1)));
    assert!(entry_key(KeyspaceId(1), &[0xff; 9]) < keyspace_end(Table::Entries, KeyspaceId(1)));
    assert!(entry_key(KeyspaceId(2), b"") >= keyspace_end(Table::Entries, KeyspaceId(1)));
}

#[test]
fn the_rules_of_a_keyspace_are_read_as_they_were_written_by_this_version_and_the_first() {
    let rules = |forbidden_byte, items_max| KeyspaceRules {
        forbidden_byte,
        items_max: NonZeroU32::new(items_max),
    };
    let all = [
        rules(None, 0),
        rules(Some(b'#'), 1_000_000),
        rules(Some(0), 0),
        rules(None, u32::MAX),
    ];
    for rules in all {
        let row = KeyspaceRow {
            id: KeyspaceId(7),
            rules,
            made: Revision(9),
        };
        assert_eq!(KeyspaceRow::decode(&row.encode()).unwrap(), row);
    }
    // Written by hand after the layout of the first version: id, whether mwDB clients are served, made at.
    for (flag, rules) in [(0, all[0]), (1, all[1])] {
        let row = [&[0, 0, 0, 7, flag][..], &9_u64.to_be_bytes()].concat();
        let read = KeyspaceRow::decode(&row).unwrap();
        assert_eq!((read.id, read.made), (KeyspaceId(7), Revision(9)));
        assert_eq!(read.rules, rules);
    }
    let row = KeyspaceRow {
        id: KeyspaceId(7),
        rules: all[1],
        made: Revision(9),
    }
    .encode();
    for length in (0..13).chain(14..row.len()) {
        assert!(KeyspaceRow::decode(&row[..length]).is_err(), "{length}");
    }
}

//! The rows on disk: their keys, their values, and nothing else.
//!
//! Each column family's keys begin with a byte of their own, so that a reader of the write-ahead log can tell the
//! tables apart (the log names column families by numbers that the crate does not tell). Numbers in keys are
//! big-endian, so that rows sort as their numbers do. `docs/operations.md` describes the format; a change of it raises
//! [`FORMAT`].
//!
//! | table | key behind the first byte | value |
//! | --- | --- | --- |
//! | `entries` | keyspace u32, user key | revision u64, lifetime, value; or a tombstone |
//! | `index` | keyspace u32, revision u64, user key | empty: one row per live entry or tombstone |
//! | `lifetimes` | due time, or session, or tombstone's age: see [`LifetimeRow`] | revision u64 |
//! | `sessions` | session 16, slot u16 | the commit's record ([`CommitRow`]) |
//! | `meta` | `epochs`, `keyspace/NAME`, `horizon/KEYSPACE`, `session/ID`, `session-horizon`, `clock/REVISION` | see the functions |

mod session;
mod stretch;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use storage_protocol::{
    Entry, EntryLifetime, Epoch, Key, KeyState, Keyspace, Revision, SessionId, UnixMillis, Value,
    planted,
};

pub(crate) use self::session::{
    SESSION_ENDED_KEY, SESSION_HORIZON_KEY, SESSION_PREFIX, SessionHorizon, SessionRow,
    new_session_id, opened_at, parse_session_row_key, session_row_key,
};

pub(crate) use self::stretch::{STRETCH_PREFIX, decode_stretch, encode_stretch, stretch_key};

/// The version of all that is written here. A store of a higher one is refused.
pub(crate) const FORMAT: u32 = 1;

/// A row that does not parse: damage, since only this module writes rows.
#[derive(Debug, thiserror::Error)]
#[error("a damaged {table} row: {what}")]
pub(crate) struct Damaged {
    pub(crate) table: &'static str,
    pub(crate) what: &'static str,
}

/// The number of a keyspace in row keys. 0 is never given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KeyspaceId(pub(crate) u32);

/// A table: a column family and the first byte of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Entries,
    Index,
    Lifetimes,
    Sessions,
    Meta,
}

impl Table {
    pub(crate) const ALL: [Self; 5] = [
        Self::Entries,
        Self::Index,
        Self::Lifetimes,
        Self::Sessions,
        Self::Meta,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            // RocksDB insists on a column family of this name, so the largest table has it.
            Self::Entries => "default",
            Self::Index => "index",
            Self::Lifetimes => "lifetimes",
            Self::Sessions => "sessions",
            Self::Meta => "meta",
        }
    }

    pub(crate) fn tag(self) -> u8 {
        match self {
            Self::Entries => b'e',
            Self::Index => b'i',
            Self::Lifetimes => b'l',
            Self::Sessions => b's',
            Self::Meta => b'm',
        }
    }
}

/// How long a stored entry lives, with what only the engine may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Forever,
    Until(UnixMillis),
    Session(SessionId),
    /// Removed, at this time.
    Tombstone(UnixMillis),
}

/// The head of an `entries` row: all but the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) revision: Revision,
    pub(crate) stored: Stored,
}

impl Head {
    pub(crate) fn is_live(&self) -> bool {
        !matches!(self.stored, Stored::Tombstone(_))
    }
}

pub(crate) fn entry_key(keyspace: KeyspaceId, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + key.len());
    out.push(Table::Entries.tag());
    out.extend_from_slice(&keyspace.0.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// The first key behind all of a keyspace's rows, in a table whose keys begin with the keyspace.
pub(crate) fn keyspace_end(table: Table, keyspace: KeyspaceId) -> Vec<u8> {
    let mut out = vec![table.tag()];
    match keyspace.0.checked_add(1) {
        Some(next) => out.extend_from_slice(&next.to_be_bytes()),
        None => out = vec![table.tag() + 1],
    }
    out
}

/// Keyspace and user key of an `entries` key.
pub(crate) fn parse_entry_key(key: &[u8]) -> Result<(KeyspaceId, &[u8]), Damaged> {
    let damaged = Damaged {
        table: "entries",
        what: "a short key",
    };
    match key {
        [_, a, b, c, d, key @ ..] => Ok((KeyspaceId(u32::from_be_bytes([*a, *b, *c, *d])), key)),
        _ => Err(damaged),
    }
}

pub(crate) fn entry_value(head: &Head, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(25 + value.len());
    out.put_u64(head.revision.0);
    match head.stored {
        Stored::Forever => out.put_u8(0),
        Stored::Until(time) => {
            out.put_u8(1);
            out.put_u64(time.0);
        }
        Stored::Session(session) => {
            out.put_u8(2);
            out.put_slice(&session.0);
        }
        Stored::Tombstone(time) => {
            out.put_u8(3);
            out.put_u64(time.0);
        }
    }
    out.put_slice(value);
    out
}

/// The head of an `entries` value and where the user's value begins.
pub(crate) fn parse_entry_value(row: &[u8]) -> Result<(Head, usize), Damaged> {
    let short = || Damaged {
        table: "entries",
        what: "a short value",
    };
    let mut rest = row;
    let revision = Revision(rest.try_get_u64().map_err(|_| short())?);
    let stored = match rest.try_get_u8().map_err(|_| short())? {
        0 => Stored::Forever,
        1 => Stored::Until(UnixMillis(rest.try_get_u64().map_err(|_| short())?)),
        2 => {
            let id = rest.split_first_chunk::<16>().ok_or_else(short)?;
            rest = id.1;
            Stored::Session(SessionId(*id.0))
        }
        3 => Stored::Tombstone(UnixMillis(rest.try_get_u64().map_err(|_| short())?)),
        _ => {
            return Err(Damaged {
                table: "entries",
                what: "an unknown lifetime",
            });
        }
    };
    Ok((Head { revision, stored }, row.len() - rest.len()))
}

/// What readers get to see of an `entries` row.
pub(crate) fn state(head: Head, value: impl FnOnce() -> Value) -> KeyState {
    let lifetime = match head.stored {
        Stored::Tombstone(_) => return KeyState::Removed(head.revision),
        Stored::Forever => EntryLifetime::Forever,
        Stored::Until(time) => EntryLifetime::Until(time),
        Stored::Session(_) => EntryLifetime::Session,
    };
    KeyState::Live(Entry {
        value: value(),
        revision: head.revision,
        lifetime,
    })
}

pub(crate) fn index_key(keyspace: KeyspaceId, revision: Revision, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(13 + key.len());
    out.push(Table::Index.tag());
    out.extend_from_slice(&keyspace.0.to_be_bytes());
    out.extend_from_slice(&revision.0.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// Revision and user key of an `index` key.
pub(crate) fn parse_index_key(key: &[u8]) -> Result<(Revision, &[u8]), Damaged> {
    let damaged = Damaged {
        table: "index",
        what: "a short key",
    };
    let rest = key.get(5..).ok_or(damaged)?;
    match rest.split_first_chunk::<8>() {
        Some((revision, key)) => Ok((Revision(u64::from_be_bytes(*revision)), key)),
        None => Err(Damaged {
            table: "index",
            what: "a short key",
        }),
    }
}

/// A row that says when something is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LifetimeRow {
    /// An entry that expires at a time: sorted by time.
    Due(UnixMillis, KeyspaceId, Key),
    /// An entry of a session: sorted by session.
    Session(SessionId, KeyspaceId, Key),
    /// A tombstone: sorted by keyspace and revision.
    Tombstone(KeyspaceId, Revision, Key),
}

impl LifetimeRow {
    const DUE: u8 = 1;
    const SESSION: u8 = 2;
    const TOMBSTONE: u8 = 3;

    pub(crate) fn key(&self) -> Vec<u8> {
        let mut out = vec![Table::Lifetimes.tag()];
        match self {
            Self::Due(time, keyspace, key) => {
                out.put_u8(Self::DUE);
                out.put_u64(time.0);
                out.put_u32(keyspace.0);
                out.put_slice(key);
            }
            Self::Session(session, keyspace, key) => {
                out.put_u8(Self::SESSION);
                out.put_slice(&session.0);
                out.put_u32(keyspace.0);
                out.put_slice(key);
            }
            Self::Tombstone(keyspace, revision, key) => {
                out.put_u8(Self::TOMBSTONE);
                out.put_u32(keyspace.0);
                out.put_u64(revision.0);
                out.put_slice(key);
            }
        }
        out
    }

    /// Where the rows that are due begin and, for `now`, end.
    pub(crate) fn due_range(now: UnixMillis) -> (Vec<u8>, Vec<u8>) {
        let mut end = vec![Table::Lifetimes.tag(), Self::DUE];
        end.put_u64(now.0.saturating_add(1));
        (vec![Table::Lifetimes.tag(), Self::DUE], end)
    }

    /// Where the rows of a session begin; all of them begin with this.
    pub(crate) fn session_prefix(session: SessionId) -> Vec<u8> {
        let mut out = vec![Table::Lifetimes.tag(), Self::SESSION];
        out.put_slice(&session.0);
        out
    }

    /// What all rows of sessions begin with.
    pub(crate) fn sessions_prefix() -> Vec<u8> {
        vec![Table::Lifetimes.tag(), Self::SESSION]
    }

    /// What all rows of a keyspace's tombstones begin with.
    pub(crate) fn tombstone_prefix(keyspace: KeyspaceId) -> Vec<u8> {
        let mut out = vec![Table::Lifetimes.tag(), Self::TOMBSTONE];
        out.put_u32(keyspace.0);
        out
    }

    pub(crate) fn parse(row: &[u8]) -> Result<Self, Damaged> {
        let short = || Damaged {
            table: "lifetimes",
            what: "a short key",
        };
        let mut rest = row.get(1..).ok_or_else(short)?;
        Ok(match rest.try_get_u8().map_err(|_| short())? {
            Self::DUE => {
                let time = UnixMillis(rest.try_get_u64().map_err(|_| short())?);
                let keyspace = KeyspaceId(rest.try_get_u32().map_err(|_| short())?);
                Self::Due(time, keyspace, Key::copy_from_slice(rest))
            }
            Self::SESSION => {
                let (id, mut rest) = rest.split_first_chunk::<16>().ok_or_else(short)?;
                let keyspace = KeyspaceId(rest.try_get_u32().map_err(|_| short())?);
                Self::Session(SessionId(*id), keyspace, Key::copy_from_slice(rest))
            }
            Self::TOMBSTONE => {
                let keyspace = KeyspaceId(rest.try_get_u32().map_err(|_| short())?);
                let revision = Revision(rest.try_get_u64().map_err(|_| short())?);
                Self::Tombstone(keyspace, revision, Key::copy_from_slice(rest))
            }
            _ => {
                return Err(Damaged {
                    table: "lifetimes",
                    what: "an unknown kind",
                });
            }
        })
    }
}

/// How many numbers of a session have rows; a repeated commit within this window is answered from its row.
pub(crate) const SESSION_WINDOW: u64 = 1024;

pub(crate) fn session_key(session: SessionId, number: u64) -> Vec<u8> {
    let slot = u16::try_from(number % SESSION_WINDOW).unwrap_or_default();
    let mut out = Vec::with_capacity(19);
    out.push(Table::Sessions.tag());
    out.extend_from_slice(&session.0);
    out.extend_from_slice(&slot.to_be_bytes());
    out
}

/// Where the records of a session begin; all of them begin with this.
pub(crate) fn session_records(session: SessionId) -> Vec<u8> {
    let mut out = vec![Table::Sessions.tag()];
    out.extend_from_slice(&session.0);
    out
}

/// The session of a record's key.
pub(crate) fn parse_session_key(key: &[u8]) -> Result<SessionId, Damaged> {
    let id = key.get(1..).and_then(<[u8]>::split_first_chunk::<16>);
    id.map(|(id, _)| SessionId(*id)).ok_or(Damaged {
        table: "sessions",
        what: "a short key",
    })
}

/// A commit's record: the last row of its rows in the log, so that a replay finds where it ends. What the `entries`
/// rows before it cannot say stands here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommitRow {
    pub(crate) number: u64,
    pub(crate) keyspace: KeyspaceId,
    pub(crate) revision: Revision,
    pub(crate) time: UnixMillis,
    pub(crate) principal: String,
    pub(crate) label: Option<String>,
    /// Signals, each with its place among the changes.
    pub(crate) signals: Vec<(u32, Key, Value)>,
    /// Values before, each with its change's place among the changes.
    pub(crate) previous: Vec<(u32, Value)>,
    /// What its number is compared by when it comes again. The last 8 bytes of the row; versions before it was kept wrote
    /// none, and read past it.
    pub(crate) fingerprint: Option<u64>,
}

/// What the record of a number is asked for when the number comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NumberRow {
    pub(crate) number: u64,
    pub(crate) revision: Revision,
    pub(crate) fingerprint: Option<u64>,
}

impl CommitRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = BytesMut::with_capacity(64 + self.principal.len());
        out.put_u64(self.number);
        out.put_u32(self.keyspace.0);
        out.put_u64(self.revision.0);
        out.put_u64(self.time.0);
        put_bytes(&mut out, self.principal.as_bytes());
        out.put_u8(u8::from(self.label.is_some()));
        put_bytes(
            &mut out,
            self.label.as_deref().unwrap_or_default().as_bytes(),
        );
        put_count(&mut out, self.signals.len());
        for (place, key, bytes) in &self.signals {
            out.put_u32(*place);
            put_bytes(&mut out, key);
            put_bytes(&mut out, bytes);
        }
        put_count(&mut out, self.previous.len());
        for (place, value) in &self.previous {
            out.put_u32(*place);
            put_bytes(&mut out, value);
        }
        if let Some(fingerprint) = self.fingerprint
            && !planted("fingerprint-not-kept")
        {
            out.put_u64(fingerprint);
        }
        out.into()
    }

    /// What a number that comes again needs, without a copy of what may be large.
    pub(crate) fn decode_number(mut row: &[u8]) -> Result<NumberRow, Damaged> {
        fn skip(row: &mut &[u8]) -> Option<()> {
            let length = usize::try_from(row.try_get_u32().ok()?).ok()?;
            *row = row.get(length..)?;
            Some(())
        }
        let mut parse = || -> Option<NumberRow> {
            let number = row.try_get_u64().ok()?;
            row.try_get_u32().ok()?;
            let revision = Revision(row.try_get_u64().ok()?);
            row.try_get_u64().ok()?;
            skip(&mut row)?;
            row.try_get_u8().ok()?;
            skip(&mut row)?;
            for _ in 0..row.try_get_u32().ok()? {
                row.try_get_u32().ok()?;
                skip(&mut row)?;
                skip(&mut row)?;
            }
            for _ in 0..row.try_get_u32().ok()? {
                row.try_get_u32().ok()?;
                skip(&mut row)?;
            }
            Some(NumberRow {
                number,
                revision,
                fingerprint: get_fingerprint(&mut row)?,
            })
        };
        parse().ok_or(Damaged {
            table: "sessions",
            what: "a short record",
        })
    }

    pub(crate) fn decode(row: &[u8]) -> Result<Self, Damaged> {
        let mut from = Bytes::copy_from_slice(row);
        let parse = |from: &mut Bytes| -> Option<Self> {
            let number = from.try_get_u64().ok()?;
            let keyspace = KeyspaceId(from.try_get_u32().ok()?);
            let revision = Revision(from.try_get_u64().ok()?);
            let time = UnixMillis(from.try_get_u64().ok()?);
            let principal = String::from_utf8(get_bytes(from)?.into()).ok()?;
            let labelled = from.try_get_u8().ok()? == 1;
            let label = String::from_utf8(get_bytes(from)?.into()).ok()?;
            let mut signals = Vec::new();
            for _ in 0..from.try_get_u32().ok()? {
                signals.push((from.try_get_u32().ok()?, get_bytes(from)?, get_bytes(from)?));
            }
            let mut previous = Vec::new();
            for _ in 0..from.try_get_u32().ok()? {
                previous.push((from.try_get_u32().ok()?, get_bytes(from)?));
            }
            let label = labelled.then_some(label);
            let fingerprint = get_fingerprint(from)?;
            Some(Self {
                number,
                keyspace,
                revision,
                time,
                principal,
                label,
                signals,
                previous,
                fingerprint,
            })
        };
        parse(&mut from).ok_or(Damaged {
            table: "sessions",
            what: "a short record",
        })
    }
}

/// What is left of a record is its fingerprint, or nothing.
fn get_fingerprint(from: &mut impl Buf) -> Option<Option<u64>> {
    match from.has_remaining() {
        true => from.try_get_u64().ok().map(Some),
        false => Some(None),
    }
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32(u32::try_from(count).expect("a commit is bounded far below 4 Gi items"));
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}

fn get_bytes(from: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(from.try_get_u32().ok()?).ok()?;
    (length <= from.len()).then(|| from.split_to(length))
}

/// What the store knows of a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyspaceRow {
    pub(crate) id: KeyspaceId,
    /// Fixed when it is made: whether the mwDB dialect serves it, so that no `#` may stand in it.
    pub(crate) mwdb: bool,
    /// Before this revision it had nothing.
    pub(crate) made: Revision,
}

pub(crate) const KEYSPACE_PREFIX: &[u8] = b"mkeyspace/";

pub(crate) fn keyspace_key(name: &Keyspace) -> Vec<u8> {
    [KEYSPACE_PREFIX, name.as_str().as_bytes()].concat()
}

impl KeyspaceRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(13);
        out.put_u32(self.id.0);
        out.put_u8(u8::from(self.mwdb));
        out.put_u64(self.made.0);
        out
    }

    pub(crate) fn decode(mut row: &[u8]) -> Result<Self, Damaged> {
        let short = || Damaged {
            table: "meta",
            what: "a short keyspace",
        };
        Ok(Self {
            id: KeyspaceId(row.try_get_u32().map_err(|_| short())?),
            mwdb: row.try_get_u8().map_err(|_| short())? == 1,
            made: Revision(row.try_get_u64().map_err(|_| short())?),
        })
    }
}

/// The tombstones of a keyspace up to this revision may be gone.
pub(crate) fn horizon_key(keyspace: KeyspaceId) -> Vec<u8> {
    [b"mhorizon/".as_slice(), &keyspace.0.to_be_bytes()].concat()
}

pub(crate) fn encode_revision(revision: Revision) -> [u8; 8] {
    revision.0.to_be_bytes()
}

pub(crate) fn decode_revision(row: &[u8]) -> Result<Revision, Damaged> {
    match row.try_into() {
        Ok(bytes) => Ok(Revision(u64::from_be_bytes(bytes))),
        Err(_) => Err(Damaged {
            table: "meta",
            what: "a revision of another length",
        }),
    }
}

pub(crate) const EPOCHS_KEY: &[u8] = b"mepochs";

/// The store's histories, oldest first, each with the revision where it forked from the one before.
pub(crate) fn encode_epochs(epochs: &[(Epoch, Revision)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 * epochs.len());
    for (epoch, fork) in epochs {
        out.put_u64(epoch.0);
        out.put_u64(fork.0);
    }
    out
}

pub(crate) fn decode_epochs(row: &[u8]) -> Result<Vec<(Epoch, Revision)>, Damaged> {
    let (pairs, []) = row.as_chunks::<16>() else {
        return Err(Damaged {
            table: "meta",
            what: "epochs of an odd length",
        });
    };
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    Ok(pairs
        .iter()
        .map(|pair| (Epoch(number(&pair[..8])), Revision(number(&pair[8..]))))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

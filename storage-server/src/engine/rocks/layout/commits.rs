//! The table `sessions`: the records of the last commits of each session.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use storage_protocol::{Key, Revision, SessionId, UnixMillis, Value};

use super::{Damaged, KeyspaceId, Table, get_bytes, put_bytes, put_count};

/// How many numbers of a session have rows; a repeated commit within this window is answered from its row.
pub(crate) const SESSION_WINDOW: u64 = 1024;

pub(crate) fn session_key(session: SessionId, number: u64) -> Vec<u8> {
    let slot = u16::try_from(number % SESSION_WINDOW).unwrap_or_default();
    let mut out = Vec::with_capacity(19);
    out.push(Table::Commits.tag());
    out.extend_from_slice(&session.0);
    out.extend_from_slice(&slot.to_be_bytes());
    out
}

/// Where the records of a session begin; all of them begin with this.
pub(crate) fn session_records(session: SessionId) -> Vec<u8> {
    let mut out = vec![Table::Commits.tag()];
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
    /// What its number is compared by when it comes again. The last 8 bytes of the row; versions before it was kept
    /// wrote none, and read past it.
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
        if let Some(fingerprint) = self.fingerprint {
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

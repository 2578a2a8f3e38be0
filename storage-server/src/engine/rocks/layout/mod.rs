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
//! | `index` | keyspace u32, revision u64, user key | empty: one row per live entry or tombstone, and rows to be deleted |
//! | `lifetimes` | due time, or session, or tombstone's age: see [`LifetimeRow`] | revision u64 |
//! | `sessions` | session 16, slot u16 | the commit's record ([`CommitRow`]) |
//! | `meta` | `epochs`, `keyspace/NAME`, `horizon/KEYSPACE`, `usage/KEYSPACE`, `session/ID`, `session-horizon`, `clock/REVISION` | see the functions |

mod commits;
mod entries;
mod index;
mod lifetimes;
mod meta;
mod session;
mod stretch;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use storage_protocol::Revision;

pub(crate) use self::commits::{
    CommitRow, NumberRow, SESSION_WINDOW, parse_session_key, session_key, session_records,
};
#[cfg(test)]
pub(crate) use self::entries::entry_value;
pub(crate) use self::entries::{
    Head, Stored, entry_key, parse_entry_key, parse_entry_value, state, write_entry_head,
    write_entry_key,
};
pub(crate) use self::index::{index_key, parse_index_key, write_index_key};
pub(crate) use self::lifetimes::LifetimeRow;
pub(crate) use self::meta::{
    EPOCHS_KEY, KEYSPACE_PREFIX, KeyspaceRow, UsageRow, compacted_key, decode_epochs,
    encode_epochs, keyspace_key, usage_key,
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
    /// What numbered commits of sessions did; the name on disk is older.
    Commits,
    Meta,
}

impl Table {
    pub(crate) const ALL: [Self; 5] = [
        Self::Entries,
        Self::Index,
        Self::Lifetimes,
        Self::Commits,
        Self::Meta,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            // RocksDB insists on a column family of this name, so the largest table has it.
            Self::Entries => "default",
            Self::Index => "index",
            Self::Lifetimes => "lifetimes",
            Self::Commits => "sessions",
            Self::Meta => "meta",
        }
    }

    pub(crate) fn tag(self) -> u8 {
        match self {
            Self::Entries => b'e',
            Self::Index => b'i',
            Self::Lifetimes => b'l',
            Self::Commits => b's',
            Self::Meta => b'm',
        }
    }
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

#[cfg(test)]
mod tests;

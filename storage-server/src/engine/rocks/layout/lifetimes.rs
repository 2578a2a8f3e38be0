//! The table `lifetimes`: what is to go, and when.

use bytes::{Buf, BufMut};
use storage_protocol::{Key, Revision, SessionId, UnixMillis};

use super::{Damaged, KeyspaceId, Table};

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

//! The table `entries`: keyspace u32 and user key, to revision, lifetime and value; or a tombstone.

use bytes::{Buf, BufMut};
use storage_protocol::{Entry, EntryLifetime, KeyState, Revision, SessionId, UnixMillis, Value};

use super::{Damaged, KeyspaceId, Table};

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
    write_entry_key(&mut out, keyspace, key);
    out
}

/// The same into a buffer, whatever that had.
pub(crate) fn write_entry_key(out: &mut Vec<u8>, keyspace: KeyspaceId, key: &[u8]) {
    out.clear();
    out.push(Table::Entries.tag());
    out.extend_from_slice(&keyspace.0.to_be_bytes());
    out.extend_from_slice(key);
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

/// Writes what a row has before the user's value into a buffer, whatever that had.
pub(crate) fn write_entry_head(out: &mut Vec<u8>, head: &Head) {
    out.clear();
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
}

#[cfg(test)]
pub(crate) fn entry_value(head: &Head, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_entry_head(&mut out, head);
    out.extend_from_slice(value);
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

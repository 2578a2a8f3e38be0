//! A commit as watchers are told it: what a Changes message is a row of.

use bytes::{BufMut, Bytes, BytesMut};

use super::super::frame::ProtocolError;
use super::super::wire::{Reader, Writer};
use super::Result;
use super::fields::{
    put_entry_lifetime, put_flags, put_optional, read_entry_lifetime, read_flags, read_optional,
    read_revision,
};
use crate::{Change, ChangeKind, CommitRecord, Key, UnixMillis, Value};

mod change {
    pub(super) const PUT: u8 = 1;
    pub(super) const REMOVED: u8 = 2;
    pub(super) const SIGNALLED: u8 = 3;
}

/// The wire form of a commit record: what a `Changes` message is a row of.
#[must_use]
pub fn encode_commit_record(record: &CommitRecord) -> Bytes {
    let mut out = BytesMut::with_capacity(record.bytes());
    out.number(record.revision.0);
    out.number(record.time.0);
    put_flags(&mut out, [record.label.is_some()]);
    if let Some(label) = &record.label {
        out.length_prefixed(label.as_bytes());
    }
    out.length_prefixed(record.principal.as_bytes());
    out.number(record.changes.len() as u64);
    for Change { key, kind } in &record.changes {
        match kind {
            ChangeKind::Put {
                value,
                lifetime,
                previous,
            } => {
                out.put_u8(change::PUT);
                out.length_prefixed(key);
                put_entry_lifetime(&mut out, *lifetime);
                out.length_prefixed(value);
                put_optional(&mut out, previous.as_ref());
            }
            ChangeKind::Removed { previous } => {
                out.put_u8(change::REMOVED);
                out.length_prefixed(key);
                put_optional(&mut out, previous.as_ref());
            }
            ChangeKind::Signalled { bytes } => {
                out.put_u8(change::SIGNALLED);
                out.length_prefixed(key);
                out.length_prefixed(bytes);
            }
        }
    }
    out.freeze()
}

pub(super) fn read_commit_record(from: &mut Reader) -> Result<CommitRecord> {
    let revision = read_revision(from)?;
    let time = UnixMillis(from.number("a time")?);
    let [label] = read_flags(from, "a commit's flags")?;
    let label = if label {
        Some(from.text("the label")?)
    } else {
        None
    };
    let principal = from.text("the principal")?;
    let count = from.count(3, "the number of changes")?;
    let mut changes = Vec::with_capacity(count);
    for _ in 0..count {
        let tag = from.byte("a change")?;
        let key: Key = from.bytes("a key")?;
        let kind = match tag {
            change::PUT => {
                let tag = from.byte("a lifetime")?;
                let lifetime = read_entry_lifetime(from, tag)?;
                let value: Value = from.bytes("a value")?;
                let previous = read_optional(from, "the value before")?;
                ChangeKind::Put {
                    value,
                    lifetime,
                    previous,
                }
            }
            change::REMOVED => ChangeKind::Removed {
                previous: read_optional(from, "the value before")?,
            },
            change::SIGNALLED => ChangeKind::Signalled {
                bytes: from.bytes("a signal")?,
            },
            tag => {
                return Err(ProtocolError::BadTag {
                    what: "a change",
                    tag: tag.into(),
                });
            }
        };
        changes.push(Change { key, kind });
    }
    Ok(CommitRecord::new(revision, time, label, principal, changes))
}

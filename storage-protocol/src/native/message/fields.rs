//! The fields that several messages share: flags, positions, ranges, lifetimes, entries, states.
//!
//! Each `put_` has its `read_` beside it.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::super::frame::{ProtocolError, RequestId};
use super::super::wire::{Reader, Writer};
use super::super::{COMMIT_WINDOW, VERSION};
use super::Result;
use crate::{
    Entry, EntryLifetime, Epoch, Key, KeyRange, KeyState, Lifetime, Position, Revision, SessionId,
    UnixMillis,
};

pub(super) fn finish<T>(from: &mut Reader, message: T) -> Result<T> {
    std::mem::replace(from, Reader::new(Bytes::new())).finish()?;
    Ok(message)
}

pub(super) fn require_id(kind: u8, id: Option<RequestId>, expected: bool) -> Result<()> {
    if id.is_some() == expected {
        Ok(())
    } else {
        Err(ProtocolError::IdMismatch { kind, expected })
    }
}

pub(super) fn to_id(number: u64, what: &'static str) -> Result<RequestId> {
    match u32::try_from(number) {
        Ok(id) if id <= crate::number::ID_MAX => Ok(id),
        _ => Err(ProtocolError::BadNumber { what }),
    }
}

pub(super) fn read_id(from: &mut Reader, what: &'static str) -> Result<RequestId> {
    to_id(from.number(what)?, what)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Up to eight flags in one byte, the first lowest; a bit without a meaning is an error.
pub(super) fn put_flags<const N: usize>(out: &mut BytesMut, flags: [bool; N]) {
    out.put_u8(
        flags
            .into_iter()
            .rev()
            .fold(0, |byte, flag| byte << 1 | u8::from(flag)),
    );
}

pub(super) fn read_flags<const N: usize>(
    from: &mut Reader,
    what: &'static str,
) -> Result<[bool; N]> {
    let byte = from.byte(what)?;
    if u32::from(byte) >> N != 0 {
        return Err(ProtocolError::BadTag {
            what,
            tag: u64::from(byte),
        });
    }
    let mut place = 0;
    Ok([(); N].map(|()| {
        let flag = byte >> place & 1 == 1;
        place += 1;
        flag
    }))
}

pub(super) fn read_revision(from: &mut Reader) -> Result<Revision> {
    Ok(Revision(from.number("a revision")?))
}

pub(super) fn put_position(out: &mut BytesMut, position: Position) {
    out.put_u64(position.epoch.0);
    out.number(position.revision.0);
}

pub(super) fn read_position(from: &mut Reader) -> Result<Position> {
    let epoch = Epoch(u64::from_be_bytes(from.array("an epoch")?));
    Ok(Position {
        epoch,
        revision: read_revision(from)?,
    })
}

/// The version comes first in every version of Hello, so that another one is named before its fields are misread.
pub(super) fn read_version(from: &mut Reader) -> Result<u64> {
    match from.number("the version")? {
        VERSION => Ok(VERSION),
        asked => Err(ProtocolError::UnknownVersion {
            asked,
            spoken: VERSION,
        }),
    }
}

pub(super) fn read_session(from: &mut Reader) -> Result<Option<SessionId>> {
    let bytes = from.bytes("the session")?;
    if bytes.is_empty() {
        return Ok(None);
    }
    match <[u8; 16]>::try_from(bytes.as_ref()) {
        Ok(id) => Ok(Some(SessionId(id))),
        Err(_) => Err(ProtocolError::BadNumber {
            what: "the session's length",
        }),
    }
}

/// Ascending and within the window, so that a session's state is bounded by it.
pub(super) fn read_unanswered(from: &mut Reader) -> Result<Vec<u64>> {
    let what = "an unanswered number";
    let count = from.count(1, "the number of unanswered numbers")?;
    if count as u64 > COMMIT_WINDOW {
        return Err(ProtocolError::BadNumber { what });
    }
    let mut numbers = Vec::with_capacity(count);
    for _ in 0..count {
        let number = from.number(what)?;
        if numbers.last().is_some_and(|last| *last >= number) {
            return Err(ProtocolError::BadNumber { what });
        }
        numbers.push(number);
    }
    Ok(numbers)
}

pub(super) fn put_range(out: &mut BytesMut, range: &KeyRange) {
    out.length_prefixed(&range.start);
    put_optional(out, range.end.as_ref());
}

pub(super) fn read_range(from: &mut Reader) -> Result<KeyRange> {
    Ok(KeyRange {
        start: from.bytes("the range's start")?,
        end: read_optional(from, "the range's end")?,
    })
}

pub(super) fn put_optional(out: &mut BytesMut, bytes: Option<&Bytes>) {
    put_flags(out, [bytes.is_some()]);
    if let Some(bytes) = bytes {
        out.length_prefixed(bytes);
    }
}

pub(super) fn read_optional(from: &mut Reader, what: &'static str) -> Result<Option<Bytes>> {
    let [present] = read_flags(from, what)?;
    if present {
        Ok(Some(from.bytes(what)?))
    } else {
        Ok(None)
    }
}

// Entries: a tag (1 for ever, 2 until a time, 3 session; 0 where an entry may be absent), the time where there is
// one, revision, value.

pub(super) fn put_entry(out: &mut BytesMut, entry: &Entry) {
    put_entry_lifetime(out, entry.lifetime);
    out.number(entry.revision.0);
    out.length_prefixed(&entry.value);
}

pub(super) fn read_entry(from: &mut Reader, tag: u8) -> Result<Entry> {
    let lifetime = read_entry_lifetime(from, tag)?;
    Ok(Entry {
        lifetime,
        revision: read_revision(from)?,
        value: from.bytes("a value")?,
    })
}

pub(super) fn put_entry_lifetime(out: &mut BytesMut, lifetime: EntryLifetime) {
    match lifetime {
        EntryLifetime::Forever => out.put_u8(1),
        EntryLifetime::Until(time) => {
            out.put_u8(2);
            out.number(time.0);
        }
        EntryLifetime::Session => out.put_u8(3),
    }
}

pub(super) fn read_entry_lifetime(from: &mut Reader, tag: u8) -> Result<EntryLifetime> {
    match tag {
        1 => Ok(EntryLifetime::Forever),
        2 => Ok(EntryLifetime::Until(UnixMillis(from.number("a time")?))),
        3 => Ok(EntryLifetime::Session),
        tag => Err(ProtocolError::BadTag {
            what: "an entry",
            tag: tag.into(),
        }),
    }
}

pub(super) fn put_state(out: &mut BytesMut, key: &Key, state: &KeyState) {
    out.length_prefixed(key);
    match state {
        KeyState::Live(entry) => put_entry(out, entry),
        KeyState::Removed(revision) => {
            out.put_u8(0);
            out.number(revision.0);
        }
    }
}

pub(super) fn state_bytes(key: &Key, state: &KeyState) -> usize {
    let value = match state {
        KeyState::Live(entry) => entry.value.len(),
        KeyState::Removed(_) => 0,
    };
    key.len() + value + 32
}

pub(super) fn read_states(from: &mut Reader) -> Result<Vec<(Key, KeyState)>> {
    // A key's length, a tag and a revision: no state has fewer bytes.
    let count = from.count(3, "the number of states")?;
    let mut states = Vec::with_capacity(count);
    for _ in 0..count {
        let key = from.bytes("a key")?;
        let state = match from.byte("a state's tag")? {
            0 => KeyState::Removed(read_revision(from)?),
            tag => KeyState::Live(read_entry(from, tag)?),
        };
        states.push((key, state));
    }
    Ok(states)
}

pub(super) fn put_lifetime(out: &mut BytesMut, lifetime: Lifetime) {
    match lifetime {
        Lifetime::Forever => out.put_u8(1),
        Lifetime::TimeToLive(duration) => {
            out.put_u8(2);
            out.number(millis(duration));
        }
        Lifetime::Session => out.put_u8(3),
    }
}

pub(super) fn read_lifetime(from: &mut Reader) -> Result<Lifetime> {
    match from.byte("a lifetime")? {
        1 => Ok(Lifetime::Forever),
        2 => Ok(Lifetime::TimeToLive(Duration::from_millis(
            from.number("a time to live")?,
        ))),
        3 => Ok(Lifetime::Session),
        tag => Err(ProtocolError::BadTag {
            what: "a lifetime",
            tag: tag.into(),
        }),
    }
}

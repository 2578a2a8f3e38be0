//! The mwDB dialect: messages of `WSStorageClient` at mwDB commit 682ef027, without any I/O.
//!
//! A message is `payload '#' info`; info is one raw type byte and the id as text. Payloads are lists of items divided by
//! `#`, and nothing is escaped: what contains a `#` cannot be carried, and the encoders refuse it. Parsers cut slices out
//! of the message they are given and copy nothing, so a kept key, value or id keeps the whole message in memory.
//!
//! Here: framing and the rules both directions share. Requests are in `request`, what a server sends in `server`; both
//! are exported from here. Which answer follows which request, and when a push may be sent, is the gateway's matter.

mod request;
mod server;

use std::fmt;
use std::iter::FusedIterator;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::number::NumberError;

pub use request::{
    Request, RequestKind, connect_request, get_request, prefix_request, put_request, remove_request,
};
pub use server::{
    Answer, AnswerKind, ForceReload, ServerMessage, Values, force_reload, force_reload_verbatim,
    get_answer, prefix_answer, put_answer, remove_answer,
};

/// The byte between two items, and between payload and info.
pub const SEPARATOR: u8 = b'#';

/// Most keys of one message that a parser accepts by default.
///
/// A key costs its sender one byte and the reader 32 bytes (64 with a value) until the request is done, so the message
/// size alone would be a poor bound.
pub const KEYS_MAX: usize = 1_000_000;

/// The text of id 0. mwDB's client takes a FORCE_RELOAD for the answer to the request with this id.
pub const ID_ZERO: &[u8] = b"A";

/// Type bytes of messages from the client to the server.
pub mod to_server {
    /// Payload: keys.
    pub const GET: u8 = 0;
    /// Payload: key, value, key, value, ...
    pub const PUT: u8 = 2;
    /// Payload: keys. The same byte as [`super::to_client::PUT`]: only the direction tells them apart.
    pub const REMOVE: u8 = 3;
    /// No payload.
    pub const PREFIX: u8 = 6;
}

/// Type bytes of messages from the server to the client.
pub mod to_client {
    /// Answer to GET. Payload: one value for each key, in order.
    pub const GET: u8 = 1;
    /// Answer to PUT. Payload: one raw byte, 1 or 0. The same byte as [`super::to_server::REMOVE`].
    pub const PUT: u8 = 3;
    /// Answer to REMOVE. Payload: one raw byte, 1 or 0.
    pub const REMOVE: u8 = 4;
    /// Push after a PUT, without an id. Payload: that of the PUT.
    pub const FORCE_RELOAD: u8 = 5;
    /// Answer to PREFIX. Payload: the prefix as base-64 int.
    pub const PREFIX: u8 = 7;
}

/// Why a message of the peer cannot be understood. mwDB answers none of them and keeps the connection open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Malformed {
    /// No byte at all; mwDB's own server sends this to all but one of its clients in place of a push.
    #[error("the message is empty")]
    EmptyMessage,
    /// The last item is empty, so there is no type byte: `#`, or two separators at the end.
    #[error("the message has no type byte")]
    NoType,
    /// No message of this direction has the type.
    #[error("no message of this direction has type {0}")]
    UnknownType(u8),
    /// More keys than the reader accepts.
    #[error("the message has {keys} keys, at most {keys_max} are accepted")]
    TooManyKeys {
        /// Keys in the message.
        keys: usize,
        /// The limit.
        keys_max: usize,
    },
    /// An answer to GET has not one value for each key of its request.
    #[error("the answer does not hold one value for each of the {keys} keys")]
    ValueCount {
        /// Keys of the request.
        keys: usize,
        /// Values in the answer; an empty payload counts as one.
        values: usize,
    },
    /// The payload of an answer to PUT or REMOVE is not one byte, 0 or 1.
    #[error("the answer says neither done nor failed")]
    Status,
    /// The payload of an answer to PREFIX is not a number.
    #[error("the prefix cannot be read")]
    Prefix(#[source] NumberError),
    /// The prefix has more than 16 bits.
    #[error("prefix {0} does not fit in 16 bits")]
    PrefixOutOfRange(i32),
    /// A push has an id.
    #[error("a push has no id")]
    PushWithId,
}

/// Why something cannot be said in this dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unencodable {
    /// A key contains [`SEPARATOR`].
    #[error("a key contains '#', which this protocol cannot carry")]
    SeparatorInKey,
    /// A value contains [`SEPARATOR`].
    #[error("a value contains '#', which this protocol cannot carry")]
    SeparatorInValue,
}

/// The items of a message or payload, by mwDB's iteration rule, as slices of it.
///
/// While at least one byte is left, the next item is everything up to the next separator or the end. So an empty buffer
/// has no item, `#a` has two, and one separator at the very end opens no further item: `a#b#` has two, `a#b##` three.
#[derive(Clone)]
pub struct Items {
    rest: Bytes,
}

impl Items {
    /// Starts before the first byte of `buffer`.
    #[must_use]
    pub fn new(buffer: Bytes) -> Self {
        Self { rest: buffer }
    }

    /// How many items the iterator of `buffer` would give.
    #[must_use]
    pub fn count_in(buffer: &[u8]) -> usize {
        let unfinished = buffer.last().is_some_and(|last| *last != SEPARATOR);
        separators_in(buffer) + usize::from(unfinished)
    }
}

impl Iterator for Items {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(len) = self.rest.iter().position(|byte| *byte == SEPARATOR) else {
            return Some(std::mem::take(&mut self.rest));
        };
        let item = self.rest.split_to(len);
        self.rest.advance(1);
        Some(item)
    }
}

impl FusedIterator for Items {}

impl fmt::Debug for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Items")
            .field("rest_bytes", &self.rest.len())
            .finish()
    }
}

/// A message taken apart, its type not yet checked.
struct Frame {
    payload: Bytes,
    type_byte: u8,
    /// Verbatim; never contains a separator.
    id: Bytes,
    /// The message has no separator at all.
    is_bare: bool,
}

impl Frame {
    /// Finds info as mwDB does: it is the last item, and `length(info) + 1` bytes are cut off the end.
    ///
    /// The cut is by count, not by position. A separator after info is therefore left at the end of the payload in place
    /// of the one before info, where it opens no item. In a message that is info only the cut is one byte too long, and
    /// the payload is empty.
    fn cut(mut message: Bytes) -> Result<Self, Malformed> {
        if message.is_empty() {
            return Err(Malformed::EmptyMessage);
        }
        let ended = message.strip_suffix(&[SEPARATOR]).unwrap_or(&message);
        let info = ended.rsplit(|byte| *byte == SEPARATOR).next();
        let Some((&type_byte, id)) = info.and_then(<[u8]>::split_first) else {
            return Err(Malformed::NoType);
        };
        let cut_len = id.len() + 2;
        let id = message.slice_ref(id);
        let is_bare = cut_len > message.len();
        message.truncate(message.len().saturating_sub(cut_len));
        Ok(Self {
            payload: message,
            type_byte,
            id,
            is_bare,
        })
    }
}

/// The items of a key list; counted against the limit before anything is allocated.
fn keys_of(payload: Bytes, keys_max: usize) -> Result<Vec<Bytes>, Malformed> {
    let keys = Items::count_in(&payload);
    check_keys(keys, keys_max)?;
    let mut list = Vec::with_capacity(keys);
    list.extend(Items::new(payload));
    Ok(list)
}

/// The pairs of a PUT or a push; a last key without a value gets an empty one.
fn pairs_of(payload: Bytes, keys_max: usize) -> Result<Vec<(Bytes, Bytes)>, Malformed> {
    let keys = Items::count_in(&payload).div_ceil(2);
    check_keys(keys, keys_max)?;
    let mut list = Vec::with_capacity(keys);
    let mut items = Items::new(payload);
    while let Some(key) = items.next() {
        list.push((key, items.next().unwrap_or_default()));
    }
    Ok(list)
}

fn check_keys(keys: usize, keys_max: usize) -> Result<(), Malformed> {
    if keys > keys_max {
        return Err(Malformed::TooManyKeys { keys, keys_max });
    }
    Ok(())
}

fn separators_in(buffer: &[u8]) -> usize {
    buffer.iter().filter(|byte| **byte == SEPARATOR).count()
}

/// Whether a list of items gets a separator of its own at its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ListEnd {
    Bare,
    Separator,
}

/// Writes `item '#' item ... '#' type id`; none of the items may contain a separator.
fn message_of<'a>(
    items: impl Iterator<Item = &'a [u8]> + Clone,
    end: ListEnd,
    type_byte: u8,
    id: &[u8],
) -> Bytes {
    let items_len: usize = items.clone().map(|item| item.len() + 1).sum();
    // An empty list has no separator of its own: only the one before info is left.
    let extra_separator = items_len == 0 || end == ListEnd::Separator;
    let mut out = message_buffer(items_len + usize::from(extra_separator), id);
    for item in items {
        out.put_slice(item);
        out.put_u8(SEPARATOR);
    }
    if extra_separator {
        out.put_u8(SEPARATOR);
    }
    finish(out, type_byte, id)
}

/// Room for `body_len` bytes, payload and separator, and the info behind them.
fn message_buffer(body_len: usize, id: &[u8]) -> BytesMut {
    BytesMut::with_capacity(body_len + 1 + id.len())
}

fn finish(mut out: BytesMut, type_byte: u8, id: &[u8]) -> Bytes {
    debug_assert!(!id.contains(&SEPARATOR), "an id is one item");
    out.put_u8(type_byte);
    out.put_slice(id);
    out.freeze()
}

/// `pairs` as the flat list key, value, key, value, ...
fn flatten<'a>(
    pairs: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
) -> impl Iterator<Item = &'a [u8]> + Clone {
    pairs.flat_map(|(key, value)| [key, value])
}

fn check_keys_encodable<'a>(mut keys: impl Iterator<Item = &'a [u8]>) -> Result<(), Unencodable> {
    if keys.any(|key| key.contains(&SEPARATOR)) {
        return Err(Unencodable::SeparatorInKey);
    }
    Ok(())
}

fn check_values_encodable<'a>(
    mut values: impl Iterator<Item = &'a [u8]>,
) -> Result<(), Unencodable> {
    if values.any(|value| value.contains(&SEPARATOR)) {
        return Err(Unencodable::SeparatorInValue);
    }
    Ok(())
}

/// An id for `Debug`: escaped, and short even if the peer sent a long one.
struct IdText<'a>(&'a [u8]);

impl fmt::Debug for IdText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_BYTES_MAX: usize = 16;
        match self.0.get(..SHOWN_BYTES_MAX) {
            Some(start) => write!(
                f,
                "\"{}\"... ({} bytes)",
                start.escape_ascii(),
                self.0.len()
            ),
            None => write!(f, "\"{}\"", self.0.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(buffer: &'static str) -> Vec<Bytes> {
        let buffer = Bytes::from_static(buffer.as_bytes());
        let items: Vec<_> = Items::new(buffer.clone()).collect();
        assert_eq!(Items::count_in(&buffer), items.len(), "{buffer:?}");
        items
    }

    #[test]
    fn one_separator_at_the_end_opens_no_item() {
        for (buffer, expected) in [
            ("", &[][..]),
            ("#", &[""]),
            ("##", &["", ""]),
            ("a", &["a"]),
            ("a#", &["a"]),
            ("#a", &["", "a"]),
            ("a#b", &["a", "b"]),
            ("a##b", &["a", "", "b"]),
            ("a#b#", &["a", "b"]),
            ("a#b##", &["a", "b", ""]),
        ] {
            assert_eq!(items(buffer), expected, "{buffer:?}");
        }
    }

    #[test]
    fn items_stay_at_their_end() {
        let mut items = Items::new(Bytes::from_static(b"a#"));
        assert_eq!(items.next().unwrap(), "a");
        assert_eq!(items.next(), None);
        assert_eq!(items.next(), None);
    }

    #[test]
    fn items_are_slices_of_the_message() {
        let message = Bytes::from(b"ab#cd".to_vec());
        for item in Items::new(message.clone()) {
            assert!(message.as_ptr_range().contains(&item.as_ptr()));
        }
    }

    #[test]
    fn info_is_cut_off_by_count() {
        for (message, payload, id) in [
            ("\x06A", "", "A"),
            ("#\x06A", "", "A"),
            ("\x06A#", "", "A"),
            ("k#\x06A", "k", "A"),
            ("k##\x06A", "k#", "A"),
            ("k#\x06A#", "k#", "A"),
            ("k#\x06", "k", ""),
            ("\x06", "", ""),
        ] {
            let frame = Frame::cut(Bytes::from_static(message.as_bytes()))
                .ok()
                .unwrap();
            assert_eq!(frame.payload, payload, "{message:?}");
            assert_eq!(frame.type_byte, 6, "{message:?}");
            assert_eq!(frame.id, id, "{message:?}");
            assert_eq!(frame.is_bare, !message.contains('#'), "{message:?}");
        }
    }

    #[test]
    fn messages_without_info() {
        let cut = |message| Frame::cut(Bytes::from_static(message)).err();
        assert_eq!(cut(b""), Some(Malformed::EmptyMessage));
        assert_eq!(cut(b"#"), Some(Malformed::NoType));
        assert_eq!(cut(b"##"), Some(Malformed::NoType));
        assert_eq!(cut(b"k#\x00A##"), Some(Malformed::NoType));
    }

    #[test]
    fn debug_of_an_id_is_bounded() {
        assert_eq!(format!("{:?}", IdText(b"\x00A")), "\"\\x00A\"");
        assert!(format!("{:?}", IdText(&[0; 10_000])).len() < 100);
    }
}

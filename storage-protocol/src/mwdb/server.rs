//! What a server of the mwDB dialect sends: answers, and the push FORCE_RELOAD.
//!
//! Encoders are the gateway's side. Each computes the size of its message first and allocates once. Parsers are for
//! clients. The id of an answer is the one of its request, byte for byte: see [`super::Request::id`].

use std::fmt;

use bytes::{BufMut, Bytes};

use super::{
    Frame, IdText, Items, KEYS_MAX, ListEnd, Malformed, SEPARATOR, Unencodable,
    check_keys_encodable, check_values_encodable, finish, flatten, message_buffer, message_of,
    pairs_of, separators_in, to_client,
};
use crate::number::{INT_DIGITS_MAX, decode_int, encode_int};

/// Answers a GET: one value for each of its keys, in order; `None` for an absent one.
///
/// An empty value looks the same as an absent one, and a single absent value the same as no value at all.
///
/// # Errors
///
/// [`Unencodable::SeparatorInValue`].
pub fn get_answer<'a, I>(values: I, id: &[u8]) -> Result<Bytes, Unencodable>
where
    I: IntoIterator<Item = Option<&'a [u8]>, IntoIter: Clone>,
{
    let values = values.into_iter().map(Option::unwrap_or_default);
    check_values_encodable(values.clone())?;
    Ok(message_of(values, ListEnd::Bare, to_client::GET, id))
}

/// Answers a PUT; `done` is whether the pairs were stored.
#[must_use]
pub fn put_answer(done: bool, id: &[u8]) -> Bytes {
    status_answer(done, to_client::PUT, id)
}

/// Answers a REMOVE; `done` is whether the keys are gone.
///
/// mwDB's own server says `false` here even when it removed them. Say what is true: no client depends on that.
#[must_use]
pub fn remove_answer(done: bool, id: &[u8]) -> Bytes {
    status_answer(done, to_client::REMOVE, id)
}

/// Answers a PREFIX. mwDB's client takes -1, like any other number, for a prefix and writes under it.
#[must_use]
pub fn prefix_answer(prefix: i16, id: &[u8]) -> Bytes {
    let mut out = message_buffer(INT_DIGITS_MAX + 1, id);
    encode_int(i32::from(prefix), &mut out);
    out.put_u8(SEPARATOR);
    finish(out, to_client::PREFIX, id)
}

/// Announces that `pairs`, key and value, were stored. A push has no id.
///
/// # Errors
///
/// [`Unencodable::SeparatorInKey`] and [`Unencodable::SeparatorInValue`].
pub fn force_reload<'a, I>(pairs: I) -> Result<Bytes, Unencodable>
where
    I: IntoIterator<Item = (&'a [u8], &'a [u8]), IntoIter: Clone>,
{
    let pairs = pairs.into_iter();
    check_keys_encodable(pairs.clone().map(|(key, _)| key))?;
    check_values_encodable(pairs.clone().map(|(_, value)| value))?;
    let items = flatten(pairs);
    Ok(message_of(
        items,
        ListEnd::Bare,
        to_client::FORCE_RELOAD,
        b"",
    ))
}

/// Announces that the PUT with this payload was done, as mwDB's server does it: the payload is passed on as received.
#[must_use]
pub fn force_reload_verbatim(put_payload: &[u8]) -> Bytes {
    let mut out = message_buffer(put_payload.len() + 1, b"");
    out.put_slice(put_payload);
    out.put_u8(SEPARATOR);
    finish(out, to_client::FORCE_RELOAD, b"")
}

/// Any message of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerMessage {
    /// The answer to one request.
    Answer(Answer),
    /// Another client's PUT; belongs to no request.
    ForceReload(ForceReload),
}

/// An answer, its parts being slices of the message.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The id of the request.
    pub id: Bytes,
    /// What was answered.
    pub kind: AnswerKind,
}

/// What an [`Answer`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerKind {
    /// To GET.
    Get(Values),
    /// To PUT.
    Put {
        /// Whether the pairs were stored.
        done: bool,
    },
    /// To REMOVE. mwDB's own server says `false` although it removed.
    Remove {
        /// Whether the keys are gone.
        done: bool,
    },
    /// To PREFIX.
    Prefix {
        /// The prefix under which the client makes its ids.
        prefix: i16,
    },
}

/// The values of an answer to GET, still in one piece: only the request knows how many they are.
#[derive(Clone, PartialEq, Eq)]
pub struct Values {
    payload: Bytes,
}

/// The push FORCE_RELOAD, its parts being slices of the message.
#[derive(Clone, PartialEq, Eq)]
pub struct ForceReload {
    /// What was written: key and value.
    pub pairs: Vec<(Bytes, Bytes)>,
    /// The payload as received.
    pub payload: Bytes,
}

impl ServerMessage {
    /// Reads one whole message from a server; at most [`KEYS_MAX`] keys in a push.
    ///
    /// # Errors
    ///
    /// Any variant of [`Malformed`] but [`Malformed::ValueCount`].
    pub fn parse(message: Bytes) -> Result<Self, Malformed> {
        let frame = Frame::cut(message)?;
        if frame.type_byte == to_client::FORCE_RELOAD {
            return ForceReload::from_frame(frame).map(Self::ForceReload);
        }
        Answer::from_frame(frame).map(Self::Answer)
    }
}

impl Answer {
    /// Reads one whole message from a server that must be an answer; [`ServerMessage::parse`] reads pushes as well.
    ///
    /// # Errors
    ///
    /// Any variant of [`Malformed`] but [`Malformed::ValueCount`]; a push is [`Malformed::UnknownType`].
    pub fn parse(message: Bytes) -> Result<Self, Malformed> {
        Self::from_frame(Frame::cut(message)?)
    }

    fn from_frame(frame: Frame) -> Result<Self, Malformed> {
        let Frame {
            payload,
            type_byte,
            id,
            ..
        } = frame;
        let kind = match type_byte {
            to_client::GET => AnswerKind::Get(Values { payload }),
            to_client::PUT => AnswerKind::Put {
                done: status(&payload)?,
            },
            to_client::REMOVE => AnswerKind::Remove {
                done: status(&payload)?,
            },
            to_client::PREFIX => {
                let prefix = decode_int(&payload).map_err(Malformed::Prefix)?;
                AnswerKind::Prefix {
                    prefix: i16::try_from(prefix)
                        .map_err(|_| Malformed::PrefixOutOfRange(prefix))?,
                }
            }
            unknown => return Err(Malformed::UnknownType(unknown)),
        };
        Ok(Self { id, kind })
    }
}

impl Values {
    /// Splits the answer to a GET of `keys` keys: `None` for an absent, or empty, value.
    ///
    /// # Errors
    ///
    /// [`Malformed::ValueCount`] unless there is exactly one value for each key. mwDB's client takes missing values for
    /// absent ones instead.
    pub fn split(&self, keys: usize) -> Result<Vec<Option<Bytes>>, Malformed> {
        // n values have n - 1 separators; an empty payload is one absent value or none.
        let values = separators_in(&self.payload) + 1;
        if values != keys && !(keys == 0 && self.payload.is_empty()) {
            return Err(Malformed::ValueCount { keys, values });
        }
        let mut list = Vec::with_capacity(keys);
        list.extend(
            Items::new(self.payload.clone()).map(|item| Some(item).filter(|v| !v.is_empty())),
        );
        // An absent last value is no item.
        list.resize(keys, None);
        Ok(list)
    }
}

impl ForceReload {
    fn from_frame(frame: Frame) -> Result<Self, Malformed> {
        if !frame.id.is_empty() {
            return Err(Malformed::PushWithId);
        }
        Ok(Self {
            pairs: pairs_of(frame.payload.clone(), KEYS_MAX)?,
            payload: frame.payload,
        })
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("id", &IdText(&self.id))
            .field("kind", &self.kind)
            .finish()
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values")
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

impl fmt::Debug for ForceReload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForceReload")
            .field("pairs", &self.pairs.len())
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

fn status_answer(done: bool, type_byte: u8, id: &[u8]) -> Bytes {
    let mut out = message_buffer(2, id);
    out.put_slice(&[u8::from(done), SEPARATOR]);
    finish(out, type_byte, id)
}

fn status(payload: &[u8]) -> Result<bool, Malformed> {
    match payload {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Malformed::Status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(message: &'static [u8], keys: usize) -> Result<Vec<Option<Bytes>>, Malformed> {
        match Answer::parse(Bytes::from_static(message)).unwrap().kind {
            AnswerKind::Get(values) => values.split(keys),
            other @ (AnswerKind::Put { .. }
            | AnswerKind::Remove { .. }
            | AnswerKind::Prefix { .. }) => panic!("{other:?}"),
        }
    }

    #[test]
    fn absent_values_are_empty_items() {
        assert_eq!(get_answer([None; 4], b"C").unwrap(), "####\x01C");
        assert_eq!(get_answer([None], b"C").unwrap(), "#\x01C");
        assert_eq!(get_answer([], b"C").unwrap(), "#\x01C");
        let some = [None, Some(&b"v"[..]), None];
        assert_eq!(get_answer(some, b"C").unwrap(), "#v##\x01C");
    }

    #[test]
    fn values_are_counted_against_the_keys() {
        let v = || Some(Bytes::from_static(b"v"));
        assert_eq!(values(b"#\x01C", 0), Ok(vec![]));
        assert_eq!(values(b"#\x01C", 1), Ok(vec![None]));
        assert_eq!(values(b"####\x01C", 4), Ok(vec![None; 4]));
        assert_eq!(values(b"v##\x01C", 2), Ok(vec![v(), None]));
        assert_eq!(values(b"#v#\x01C", 2), Ok(vec![None, v()]));
        let count = |keys, values| Err(Malformed::ValueCount { keys, values });
        assert_eq!(values(b"v##\x01C", 1), count(1, 2));
        assert_eq!(values(b"v#\x01C", 2), count(2, 1));
        assert_eq!(values(b"v#\x01C", 0), count(0, 1));
        assert_eq!(values(b"#\x01C", 2), count(2, 1));
    }

    #[test]
    fn type_3_from_a_server_answers_put() {
        let answer = Answer::parse(Bytes::from_static(b"\x01#\x03A")).unwrap();
        assert_eq!(answer.kind, AnswerKind::Put { done: true });
        assert_eq!(put_answer(true, b"A"), "\x01#\x03A");
        assert_eq!(remove_answer(true, b"A"), "\x01#\x04A");
    }

    #[test]
    fn malformed_server_messages() {
        for (message, error) in [
            (&b""[..], Malformed::EmptyMessage),
            (b"#", Malformed::NoType),
            (b"k#\x00A", Malformed::UnknownType(0)),
            (b"\x02#\x03A", Malformed::Status),
            (b"#\x03A", Malformed::Status),
            (b"\x01\x01#\x04A", Malformed::Status),
            (
                b"#\x07A",
                Malformed::Prefix(crate::number::NumberError::Empty),
            ),
            (b"gAA#\x07A", Malformed::PrefixOutOfRange(65_536)),
            (b"k#v#\x05A", Malformed::PushWithId),
        ] {
            let parsed = ServerMessage::parse(Bytes::from_static(message));
            assert_eq!(parsed, Err(error), "{message:?}");
        }
        let push = Answer::parse(Bytes::from_static(b"k#v#\x05"));
        assert_eq!(push, Err(Malformed::UnknownType(5)));
    }

    #[test]
    fn push_carries_the_payload_of_the_put() {
        assert_eq!(force_reload([(&b"k"[..], &b"v"[..])]).unwrap(), "k#v#\x05");
        assert_eq!(force_reload([]).unwrap(), "#\x05");
        assert_eq!(force_reload_verbatim(b"k#v#"), "k#v##\x05");
        assert_eq!(force_reload_verbatim(b""), "#\x05");
    }

    #[test]
    fn separators_cannot_be_carried() {
        let value = Err(Unencodable::SeparatorInValue);
        assert_eq!(get_answer([Some(&b"a#"[..])], b"A"), value);
        assert_eq!(force_reload([(&b"k"[..], &b"#"[..])]), value);
        let key = Err(Unencodable::SeparatorInKey);
        assert_eq!(force_reload([(&b"#"[..], &b"v"[..])]), key);
    }

    #[test]
    fn ids_are_echoed_unread() {
        for id in [&b""[..], b"A", b"not a number ~ \xff"] {
            let answer = Answer::parse(put_answer(false, id)).unwrap();
            assert_eq!(answer.id, id);
        }
    }

    #[test]
    fn prefixes_at_their_bounds() {
        for prefix in [i16::MIN, -1, 0, i16::MAX] {
            let answer = Answer::parse(prefix_answer(prefix, b"A")).unwrap();
            assert_eq!(answer.kind, AnswerKind::Prefix { prefix });
        }
    }
}

//! Requests of the mwDB dialect: what a client sends.
//!
//! [`Request::parse`] is the gateway's entry. Encoders are for clients; they write what mwDB's own client writes for the
//! same keys and values.

use std::fmt;

use bytes::Bytes;

use super::{
    Frame, IdText, KEYS_MAX, ListEnd, Malformed, Unencodable, check_keys_encodable,
    check_values_encodable, flatten, keys_of, message_of, pairs_of, to_server,
};

/// A request, its parts being slices of the message.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The id exactly as received, to be echoed unread. Never contains a separator; can be empty or any other bytes.
    pub id: Bytes,
    /// What is asked for.
    pub kind: RequestKind,
}

/// What a [`Request`] asks for.
///
/// Keys and values are opaque and free of separators. Empty keys and repeated keys are kept where they stand, because a
/// GET is answered with one value for each of them.
#[derive(Clone, PartialEq, Eq)]
pub enum RequestKind {
    /// Read.
    Get {
        /// In the order of the values wanted.
        keys: Vec<Bytes>,
    },
    /// Write all pairs at once. Of two pairs with the same key the later counts.
    Put {
        /// Key and value. A last key without a value has an empty one.
        pairs: Vec<(Bytes, Bytes)>,
        /// The payload as received, for [`super::force_reload_verbatim`].
        payload: Bytes,
    },
    /// A PUT of type and id alone, without any separator. mwDB fails it, and no client sends it; a PUT of no pairs has a
    /// separator.
    PutWithoutSeparator,
    /// Delete.
    Remove {
        /// Present or not.
        keys: Vec<Bytes>,
    },
    /// Ask for an id prefix. A payload, which no client sends, is ignored.
    Prefix,
}

impl Request {
    /// Reads one whole message from a client; at most [`KEYS_MAX`] keys.
    ///
    /// A message without any separator has an empty payload: mwDB's client sends PREFIX that way.
    ///
    /// # Errors
    ///
    /// [`Malformed::EmptyMessage`], [`Malformed::NoType`], [`Malformed::UnknownType`] (FORCE_RELOAD and answers
    /// included) and [`Malformed::TooManyKeys`]. mwDB drops such messages and goes on.
    pub fn parse(message: Bytes) -> Result<Self, Malformed> {
        Self::parse_within(message, KEYS_MAX)
    }

    /// [`parse`](Self::parse) with a limit of one's own. A PUT has as many keys as pairs.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn parse_within(message: Bytes, keys_max: usize) -> Result<Self, Malformed> {
        let Frame {
            payload,
            type_byte,
            id,
            is_bare,
        } = Frame::cut(message)?;
        let kind = match type_byte {
            to_server::GET => RequestKind::Get {
                keys: keys_of(payload, keys_max)?,
            },
            to_server::PUT if is_bare => RequestKind::PutWithoutSeparator,
            to_server::PUT => RequestKind::Put {
                pairs: pairs_of(payload.clone(), keys_max)?,
                payload,
            },
            to_server::REMOVE => RequestKind::Remove {
                keys: keys_of(payload, keys_max)?,
            },
            to_server::PREFIX => RequestKind::Prefix,
            unknown => return Err(Malformed::UnknownType(unknown)),
        };
        Ok(Self { id, kind })
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("id", &IdText(&self.id))
            .field("kind", &self.kind)
            .finish()
    }
}

/// Counts instead of contents.
impl fmt::Debug for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get { keys } => f.debug_struct("Get").field("keys", &keys.len()).finish(),
            Self::Put { pairs, payload } => f
                .debug_struct("Put")
                .field("pairs", &pairs.len())
                .field("payload_bytes", &payload.len())
                .finish(),
            Self::PutWithoutSeparator => f.write_str("PutWithoutSeparator"),
            Self::Remove { keys } => f.debug_struct("Remove").field("keys", &keys.len()).finish(),
            Self::Prefix => f.write_str("Prefix"),
        }
    }
}

/// A GET of `keys`. `id` is one item: without separators.
///
/// # Errors
///
/// [`Unencodable::SeparatorInKey`].
pub fn get_request<'a, I>(keys: I, id: &[u8]) -> Result<Bytes, Unencodable>
where
    I: IntoIterator<Item = &'a [u8], IntoIter: Clone>,
{
    key_list(keys.into_iter(), ListEnd::Bare, to_server::GET, id)
}

/// A GET of `keys` whose list ends with a separator of its own, as mwDB's client writes the first GET of a connection.
///
/// It means the same as [`get_request`].
///
/// # Errors
///
/// [`Unencodable::SeparatorInKey`].
pub fn connect_request<'a, I>(keys: I, id: &[u8]) -> Result<Bytes, Unencodable>
where
    I: IntoIterator<Item = &'a [u8], IntoIter: Clone>,
{
    key_list(keys.into_iter(), ListEnd::Separator, to_server::GET, id)
}

/// A REMOVE of `keys`. `id` is one item: without separators.
///
/// # Errors
///
/// [`Unencodable::SeparatorInKey`].
pub fn remove_request<'a, I>(keys: I, id: &[u8]) -> Result<Bytes, Unencodable>
where
    I: IntoIterator<Item = &'a [u8], IntoIter: Clone>,
{
    key_list(keys.into_iter(), ListEnd::Bare, to_server::REMOVE, id)
}

/// A PUT of `pairs`, key and value. `id` is one item: without separators.
///
/// # Errors
///
/// [`Unencodable::SeparatorInKey`] and [`Unencodable::SeparatorInValue`].
pub fn put_request<'a, I>(pairs: I, id: &[u8]) -> Result<Bytes, Unencodable>
where
    I: IntoIterator<Item = (&'a [u8], &'a [u8]), IntoIter: Clone>,
{
    let pairs = pairs.into_iter();
    check_keys_encodable(pairs.clone().map(|(key, _)| key))?;
    check_values_encodable(pairs.clone().map(|(_, value)| value))?;
    // An empty value at the very end is no item, but then its key is the odd last one and gets an empty value.
    Ok(message_of(
        flatten(pairs),
        ListEnd::Bare,
        to_server::PUT,
        id,
    ))
}

/// A PREFIX, as mwDB's client writes it: type byte and id, no separator.
#[must_use]
pub fn prefix_request(id: &[u8]) -> Bytes {
    super::finish(super::message_buffer(0, id), to_server::PREFIX, id)
}

fn key_list<'a>(
    keys: impl Iterator<Item = &'a [u8]> + Clone,
    end: ListEnd,
    type_byte: u8,
    id: &[u8],
) -> Result<Bytes, Unencodable> {
    check_keys_encodable(keys.clone())?;
    // A separator is all there is to see of an empty last key.
    let last_is_empty = keys.clone().last().is_some_and(<[u8]>::is_empty);
    let end = if last_is_empty {
        ListEnd::Separator
    } else {
        end
    };
    Ok(message_of(keys, end, type_byte, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(message: &'static [u8]) -> Result<RequestKind, Malformed> {
        Request::parse(Bytes::from_static(message)).map(|request| request.kind)
    }

    fn get(keys: &[&'static str]) -> Result<RequestKind, Malformed> {
        let keys = keys
            .iter()
            .map(|key| Bytes::from_static(key.as_bytes()))
            .collect();
        Ok(RequestKind::Get { keys })
    }

    #[test]
    fn keys_are_counted_by_the_item_rule() {
        assert_eq!(parse(b"\x00A"), get(&[]));
        assert_eq!(parse(b"#\x00A"), get(&[]));
        assert_eq!(parse(b"##\x00A"), get(&[""]));
        assert_eq!(parse(b"a#\x00A"), get(&["a"]));
        assert_eq!(parse(b"a##\x00A"), get(&["a"]));
        assert_eq!(parse(b"a###\x00A"), get(&["a", ""]));
        assert_eq!(parse(b"#a#\x00A"), get(&["", "a"]));
        assert_eq!(parse(b"a##a#\x00A"), get(&["a", "", "a"]));
    }

    #[test]
    fn only_the_four_types_of_a_client_are_requests() {
        for type_byte in 0..=u8::MAX {
            let parsed = Request::parse(Bytes::copy_from_slice(&[b'#', type_byte, b'A']));
            match type_byte {
                0 | 2 | 3 | 6 => assert!(parsed.is_ok(), "{type_byte}"),
                // "##A": the separator in the place of the type byte makes `A` the type byte.
                b'#' => assert_eq!(parsed, Err(Malformed::UnknownType(b'A'))),
                _ => assert_eq!(parsed, Err(Malformed::UnknownType(type_byte))),
            }
        }
    }

    #[test]
    fn type_3_from_a_client_is_remove() {
        let keys = vec![Bytes::from_static(b"k")];
        assert_eq!(parse(b"k#\x03A"), Ok(RequestKind::Remove { keys }));
    }

    #[test]
    fn a_put_without_a_separator_is_not_one_of_no_pairs() {
        assert_eq!(parse(b"\x02A"), Ok(RequestKind::PutWithoutSeparator));
        for no_pairs in [&b"#\x02A"[..], b"\x02A#"] {
            let Ok(RequestKind::Put { pairs, .. }) = parse(no_pairs) else {
                panic!("{}", no_pairs.escape_ascii());
            };
            assert_eq!(pairs, []);
        }
    }

    #[test]
    fn odd_last_key_gets_an_empty_value_and_repeated_keys_stay() {
        let message = Bytes::from_static(b"k#v#k#w#k#\x02A");
        let Ok(RequestKind::Put { pairs, payload }) = Request::parse(message).map(|r| r.kind)
        else {
            panic!("not a PUT");
        };
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        assert_eq!(pairs, [(&b"k"[..], &b"v"[..]), (b"k", b"w"), (b"k", b"")]);
        assert_eq!(payload, "k#v#k#w#k");
    }

    #[test]
    fn limit_counts_keys_not_items() {
        let within = |message: &'static [u8], keys_max| {
            Request::parse_within(Bytes::from_static(message), keys_max).err()
        };
        let too_many = |keys, keys_max| Some(Malformed::TooManyKeys { keys, keys_max });
        assert_eq!(within(b"a#b#\x00A", 2), None);
        assert_eq!(within(b"a#b##\x00A", 2), None);
        assert_eq!(within(b"a#b###\x00A", 2), too_many(3, 2));
        assert_eq!(within(b"a#b#\x03A", 1), too_many(2, 1));
        assert_eq!(within(b"k#v#l#w#\x02A", 2), None);
        assert_eq!(within(b"k#v#l#w#m#\x02A", 2), too_many(3, 2));
        assert_eq!(within(b"#\x02A", 0), None);
        assert_eq!(within(b"\x06A", 0), None);
    }

    #[test]
    fn default_limit_holds() {
        let mut message = vec![b'#'; KEYS_MAX + 2];
        message.extend(b"\x00A");
        let keys = KEYS_MAX + 1;
        assert_eq!(
            Request::parse(message.into()),
            Err(Malformed::TooManyKeys {
                keys,
                keys_max: KEYS_MAX
            })
        );
    }

    #[test]
    fn empty_last_key_is_written_so_that_it_is_read() {
        let written = get_request([&b"a"[..], b""], b"A").unwrap();
        assert_eq!(written, "a###\0A");
        assert_eq!(remove_request([&b""[..]], b"A").unwrap(), "##\x03A");
        assert_eq!(get_request([], b"A").unwrap(), "#\0A");
        assert_eq!(connect_request([], b"A").unwrap(), "#\0A");
        assert_eq!(connect_request([&b"a"[..]], b"A").unwrap(), "a##\0A");
    }

    #[test]
    fn separators_cannot_be_carried() {
        let key = Err(Unencodable::SeparatorInKey);
        assert_eq!(get_request([&b"a#b"[..]], b"A"), key);
        assert_eq!(remove_request([&b"#"[..]], b"A"), key);
        assert_eq!(put_request([(&b"a#"[..], &b"v"[..])], b"A"), key);
        let value = Err(Unencodable::SeparatorInValue);
        assert_eq!(put_request([(&b"a"[..], &b"v#"[..])], b"A"), value);
    }

    #[test]
    fn debug_shows_no_contents() {
        let request = Request::parse(Bytes::from_static(b"secret#hidden#\x02A")).unwrap();
        let shown = format!("{request:?}");
        assert_eq!(
            shown,
            "Request { id: \"A\", kind: Put { pairs: 1, payload_bytes: 13 } }"
        );
    }
}

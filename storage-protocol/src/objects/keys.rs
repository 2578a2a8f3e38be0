//! The keys of parts and intents.

use bytes::Bytes;

use super::ObjectId;
use crate::{Key, KeyRange, Result, StorageError};

/// What stands between an object's key and the id in the keys of its parts.
const MARKER: &[u8] = b"\0part\0";

const ID_DIGITS: usize = 32;

const NUMBER_DIGITS: usize = 8;

/// How many bytes longer than its object's key the key of a part is.
const SUFFIX_BYTES: usize = MARKER.len() + ID_DIGITS + NUMBER_DIGITS;

/// The key of a part, or of the intent of an id: the object's key, `\0part\0`, the id as 32 lowercase hexadecimal digits, and
/// for a part its number as 8 of them, counted from 0. An intent sorts just before the parts of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartKey {
    /// The object's key.
    pub object: Key,
    /// Which writing of the object it belongs to.
    pub id: ObjectId,
    /// The number of the part; `None`: it is the intent.
    pub number: Option<u32>,
}

impl PartKey {
    /// The key of the intent of an id.
    #[must_use]
    pub fn intent(object: &[u8], id: ObjectId) -> Key {
        let id = id.to_string();
        [object, MARKER, id.as_bytes()].concat().into()
    }

    /// The key of a part.
    #[must_use]
    pub fn part(object: &[u8], id: ObjectId, number: u32) -> Key {
        let name = format!("{id}{number:08x}");
        [object, MARKER, name.as_bytes()].concat().into()
    }

    /// What a key is, if it is one of these.
    #[must_use]
    pub fn parse(key: &[u8]) -> Option<Self> {
        let parse = |digits: usize| {
            let at = key.len().checked_sub(MARKER.len() + digits)?;
            let (object, rest) = key.split_at_checked(at)?;
            let name = rest.strip_prefix(MARKER)?;
            let (id, number) = name.split_at_checked(ID_DIGITS)?;
            Some(Self {
                object: Bytes::copy_from_slice(object),
                id: id_of(id)?,
                number: match number.is_empty() {
                    true => None,
                    false => Some(number_of(number)?),
                },
            })
        };
        // At most one of them fits: the marker has bytes that no digit is.
        parse(ID_DIGITS)
            .or_else(|| parse(ID_DIGITS + NUMBER_DIGITS))
            .filter(|parsed| !parsed.object.is_empty())
    }
}

/// Whether a key is that of a part, or of an intent, and not that of an entry in its own right.
#[must_use]
pub fn is_part(key: &[u8]) -> bool {
    PartKey::parse(key).is_some()
}

/// The range of the keys of all parts and intents of the object at this key.
#[must_use]
pub fn parts_range(object: &[u8]) -> KeyRange {
    KeyRange::prefix([object, MARKER].concat())
}

/// The range of the parts of an id from one number on, without the intent.
pub(super) fn parts_from(object: &[u8], id: ObjectId, number: u32) -> KeyRange {
    KeyRange {
        start: PartKey::part(object, id, number),
        end: KeyRange::prefix(PartKey::intent(object, id)).end,
    }
}

/// Whether an object at this key can have parts.
pub(super) fn has_room(object: &[u8], key_bytes_max: usize) -> bool {
    object.len() + SUFFIX_BYTES <= key_bytes_max
}

pub(super) fn check_room(object: &[u8], key_bytes_max: usize) -> Result<()> {
    if has_room(object, key_bytes_max) {
        return Ok(());
    }
    Err(StorageError::invalid(format!(
        "the key of an object of several parts has at most {} bytes, this has {}: the keys of its parts are {SUFFIX_BYTES} bytes \
         longer, and key_bytes_max is {key_bytes_max}",
        key_bytes_max.saturating_sub(SUFFIX_BYTES),
        object.len()
    )))
}

fn id_of(digits: &[u8]) -> Option<ObjectId> {
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(number_of(pair)?).ok()?;
    }
    Some(ObjectId(id))
}

/// At most 8 digits; uppercase ones are none.
fn number_of(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((number << 4) | u32::from(value))
    })
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a panic is a failed test")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: ObjectId = ObjectId([0xab; 16]);

    #[test]
    fn keys_are_what_the_protocol_says() {
        let intent = PartKey::intent(b"models/a", ID);
        assert_eq!(&intent[..14], b"models/a\0part\0");
        assert_eq!(&intent[14..], "ab".repeat(16).as_bytes());
        let part = PartKey::part(b"models/a", ID, 0x1f);
        assert_eq!(&part[..], [&intent[..], b"0000001f"].concat());
    }

    #[test]
    fn an_intent_sorts_before_its_parts_and_all_of_them_behind_the_object() {
        let keys = [
            Key::from("k"),
            PartKey::intent(b"k", ID),
            PartKey::part(b"k", ID, 0),
            PartKey::part(b"k", ID, 9),
            PartKey::part(b"k", ID, 10),
            PartKey::part(b"k", ID, u32::MAX),
        ];
        assert!(keys.is_sorted());
        let range = parts_range(b"k");
        assert!(!range.contains(&keys[0]));
        assert!(keys[1..].iter().all(|key| range.contains(key)));
        assert!(parts_from(b"k", ID, 0).contains(&keys[5]));
        assert!(!parts_from(b"k", ID, 0).contains(&keys[1]));
    }

    #[test]
    fn what_looks_almost_like_a_part_is_none() {
        let part = PartKey::part(b"k", ID, 7);
        let upper = part.to_ascii_uppercase();
        let no_object = PartKey::part(b"", ID, 7);
        for other in [
            &b"k"[..],
            b"",
            b"k\0part\0",
            &part[..part.len() - 1],
            &[&part[..], b"0"].concat(),
            &upper,
            &no_object,
        ] {
            assert!(!is_part(other), "{:?}", other.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_key_without_room_is_refused_by_name() {
        assert!(check_room(&[b'k'; 4050], 4096).is_ok());
        let error = check_room(&[b'k'; 4051], 4096).unwrap_err().to_string();
        assert!(
            error.contains("at most 4050 bytes, this has 4051"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn keys_come_back(
            object in prop::collection::vec(any::<u8>(), 1..64),
            id: [u8; 16],
            number: Option<u32>,
        ) {
            let id = ObjectId(id);
            let key = match number {
                Some(number) => PartKey::part(&object, id, number),
                None => PartKey::intent(&object, id),
            };
            let object = Key::from(object);
            prop_assert_eq!(PartKey::parse(&key), Some(PartKey { object, id, number }));
        }

        #[test]
        fn any_key_is_parsed_as_what_it_would_be_written_as(key in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Some(PartKey { object, id, number }) = PartKey::parse(&key) {
                let again = match number {
                    Some(number) => PartKey::part(&object, id, number),
                    None => PartKey::intent(&object, id),
                };
                prop_assert_eq!(&again[..], &key[..]);
            }
        }
    }
}

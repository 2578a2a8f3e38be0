//! The manifest: the value of an object that has parts.
//!
//! The magic, then in lowercase hexadecimal digits: the version, the id (16 bytes), the size, the bytes of each part but the
//! last, the number of parts. Numbers are the protocol's varints. Digits, and not the bytes themselves, since keyspaces of
//! mwDB clients take no value with a `#` in it.

use bytes::{Bytes, BytesMut};

use super::ObjectId;
use crate::native::{ProtocolError, Reader, Writer};
use crate::{StorageError, Value};

/// What a manifest begins with, and no text does: 0xff is in no UTF-8.
pub const MAGIC: &[u8] = b"\xffobject\0";

/// The version that this writes, and the only one that it reads.
const VERSION: u64 = 1;

/// The longest manifest of any version, without its magic: bounds what is decoded.
const DIGITS_MAX: usize = 512;

/// What the value of an object with parts says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The id of the parts.
    pub id: ObjectId,
    /// Bytes of the object.
    pub size: u64,
    /// Bytes of each part but the last, which has what is left, at least one.
    pub part_bytes: u64,
}

/// Why a value that begins with the magic is no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// A newer one.
    #[error("manifest of version {0}")]
    Version(u64),
    /// Not the digits, or not the fields, that a manifest has.
    #[error("value that begins like a manifest: {0}")]
    Malformed(#[from] ProtocolError),
    /// No digits where digits must be, or too many.
    #[error("value that begins like a manifest, and goes on with other bytes than its digits")]
    NotDigits,
    /// The numbers do not fit together.
    #[error("manifest whose numbers of bytes and parts do not fit together")]
    Numbers,
}

impl From<ManifestError> for StorageError {
    fn from(error: ManifestError) -> Self {
        Self::Unsupported {
            what: error.to_string(),
        }
    }
}

impl Manifest {
    /// The number of parts: at most 2³² - 1.
    #[must_use]
    pub fn parts(&self) -> u32 {
        // A manifest that was decoded, or is written, has no more.
        u32::try_from(self.size.div_ceil(self.part_bytes.max(1))).unwrap_or(u32::MAX)
    }

    /// How many bytes a part has.
    #[must_use]
    pub fn part_len(&self, number: u32) -> u64 {
        let before = u64::from(number).saturating_mul(self.part_bytes);
        self.size.saturating_sub(before).min(self.part_bytes)
    }

    /// The value that stands for the object.
    #[must_use]
    pub fn encode(&self) -> Value {
        let mut fields = BytesMut::new();
        fields.number(VERSION);
        fields.extend_from_slice(&self.id.0);
        fields.number(self.size);
        fields.number(self.part_bytes);
        fields.number(u64::from(self.parts()));
        let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0') as u8;
        let digits = fields
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
        MAGIC.iter().copied().chain(digits).collect()
    }

    /// What a value says: `None` if it does not begin with the magic.
    ///
    /// # Errors
    /// [`ManifestError`] where it does, and is no manifest that this version knows.
    pub fn decode(value: &[u8]) -> Result<Option<Self>, ManifestError> {
        let Some(digits) = value.strip_prefix(MAGIC) else {
            return Ok(None);
        };
        let mut fields = Reader::new(bytes_of(digits).ok_or(ManifestError::NotDigits)?);
        match fields.number("the manifest's version")? {
            VERSION => {}
            version => return Err(ManifestError::Version(version)),
        }
        let manifest = Self {
            id: ObjectId(fields.array("the object's id")?),
            size: fields.number("the object's size")?,
            part_bytes: fields.number("the size of a part")?,
        };
        let parts = fields.number("the number of parts")?;
        fields.finish()?;
        let fits = manifest.part_bytes > 0
            && (1..=u64::from(u32::MAX)).contains(&parts)
            && manifest.size.div_ceil(manifest.part_bytes) == parts;
        match fits {
            true => Ok(Some(manifest)),
            false => Err(ManifestError::Numbers),
        }
    }
}

fn bytes_of(digits: &[u8]) -> Option<Bytes> {
    if digits.len() > DIGITS_MAX || digits.len() % 2 == 1 {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let pairs = digits.chunks_exact(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some((value(*high)? << 4) | value(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a panic is a failed test")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MANIFEST: Manifest = Manifest {
        id: ObjectId(*b"0123456789abcdef"),
        size: 35 << 20,
        part_bytes: 1 << 20,
    };

    #[test]
    fn it_is_what_the_protocol_says() {
        let value = MANIFEST.encode();
        let expected = [
            MAGIC,
            b"01",
            b"30313233343536373839616263646566",
            b"8080c011",
            b"808040",
            b"23",
        ]
        .concat();
        assert_eq!(
            value.escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
        assert_eq!(MANIFEST.parts(), 35);
        assert!(!value.contains(&b'#'), "35 as a byte would be one");
        assert!(std::str::from_utf8(&value).is_err());
    }

    #[test]
    fn parts_have_the_lengths_that_add_up() {
        let manifest = Manifest {
            size: 10,
            part_bytes: 4,
            ..MANIFEST
        };
        assert_eq!(manifest.parts(), 3);
        let lengths: Vec<_> = (0..4).map(|number| manifest.part_len(number)).collect();
        assert_eq!(lengths, [4, 4, 2, 0]);
    }

    #[test]
    fn what_is_no_manifest_is_told_apart() {
        assert_eq!(Manifest::decode(b"text"), Ok(None));
        assert_eq!(Manifest::decode(b""), Ok(None));
        assert_eq!(Manifest::decode(&MAGIC[..7]), Ok(None));
        let value = MANIFEST.encode();
        let other = |at: usize, byte: u8| {
            let mut value = value.to_vec();
            value[at] = byte;
            Manifest::decode(&value)
        };
        assert_eq!(other(9, b'2'), Err(ManifestError::Version(2)));
        assert_eq!(other(9, b'g'), Err(ManifestError::NotDigits));
        assert_eq!(other(9, b'#'), Err(ManifestError::NotDigits));
        let last = value.len() - 1;
        assert_eq!(other(last, b'4'), Err(ManifestError::Numbers));
        assert!(Manifest::decode(&value[..last]).is_err());
        let malformed = Manifest::decode(&value[..last - 1]).unwrap_err();
        assert!(matches!(malformed, ManifestError::Malformed(_)));
        let longer = [&value[..], b"00"].concat();
        let malformed = Manifest::decode(&longer).unwrap_err();
        assert!(matches!(malformed, ManifestError::Malformed(_)));
        let huge = [MAGIC, &[b'0'; DIGITS_MAX + 2]].concat();
        assert_eq!(Manifest::decode(&huge), Err(ManifestError::NotDigits));
        for (size, part_bytes) in [(0, 1), (1, 0), (1 << 40, 1)] {
            let manifest = Manifest {
                size,
                part_bytes,
                ..MANIFEST
            };
            assert!(
                Manifest::decode(&manifest.encode()).is_err(),
                "{manifest:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn manifests_come_back(id: [u8; 16], parts in 1..=u32::MAX, part_bytes in 1..=(1u64 << 24), less: u64) {
            let id = ObjectId(id);
            let size = u64::from(parts) * part_bytes - less % part_bytes;
            let manifest = Manifest { id, size, part_bytes };
            prop_assert_eq!(manifest.parts(), parts);
            prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(Some(manifest)));
        }

        #[test]
        fn whatever_is_taken_is_written_the_same(rest in "[0-9a-f]{0,80}") {
            let value = [MAGIC, rest.as_bytes()].concat();
            if let Ok(Some(manifest)) = Manifest::decode(&value) {
                prop_assert_eq!(&manifest.encode()[..], &value[..]);
            }
        }
    }
}

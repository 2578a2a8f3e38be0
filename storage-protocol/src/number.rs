//! Numbers as text: the variable-length base-64 code of mwDB.
//!
//! Not RFC 4648. The alphabet is `A-Z a-z 0-9 + /`, most significant digit first, no padding. The last digit holds the
//! five low bits of the magnitude and, in its lowest bit, the sign (1 = negative); every digit before it holds six bits.
//! Leading zero digits are not written: 0 = `A`, 1 = `C`, -1 = `D`, 32 = `BA`.
//!
//! Two readers share the code. mwDB's own is lenient, and [`decode_int`] and [`decode_long`] read what it reads. Request
//! ids of the native dialect have exactly one text each, and [`decode_id`] accepts no other.
//! Source: the code of mwDB at commit 682ef027, checked against vectors recorded from it.

use bytes::BufMut;
use thiserror::Error;

/// Most digits of an encoded `i32`.
pub const INT_DIGITS_MAX: usize = 6;

/// Most digits of an encoded `i64`: 53 bits of magnitude.
pub const LONG_DIGITS_MAX: usize = 9;

/// Largest request id, 2^31 - 1.
pub const ID_MAX: u32 = 0x7fff_ffff;

/// Most digits of an encoded request id.
pub const ID_DIGITS_MAX: usize = INT_DIGITS_MAX;

/// Bits of magnitude that survive [`encode_long`].
const LONG_MAGNITUDE_MASK: u64 = (1 << 53) - 1;

/// Bits that six digits hold next to the sign.
const INT_MAGNITUDE_MASK: u64 = (1 << 35) - 1;

/// Appends the text of `value`, 1 to [`INT_DIGITS_MAX`] bytes.
///
/// `i32::MIN` is written `8AAAAB`, as mwDB does; [`decode_int`] reads it back.
pub fn encode_int(value: i32, out: &mut impl BufMut) {
    // i32::MIN has no positive counterpart; mwDB writes the sign-extended bits of what its negation overflows to.
    let magnitude = i64::from(value.wrapping_abs()).cast_unsigned() & INT_MAGNITUDE_MASK;
    encode(magnitude, value < 0, out);
}

/// Appends the text of `value`, 1 to [`LONG_DIGITS_MAX`] bytes.
///
/// Only the low 53 bits of the magnitude are written. A value beyond ±(2^53 - 1) loses its upper bits without notice, as
/// in mwDB: 2^53 is written `A`, which is 0.
pub fn encode_long(value: i64, out: &mut impl BufMut) {
    encode(value.unsigned_abs() & LONG_MAGNITUDE_MASK, value < 0, out);
}

/// Appends the canonical text of a request id, 1 to [`ID_DIGITS_MAX`] bytes.
///
/// # Errors
///
/// [`IdError::OutOfRange`] for an id above [`ID_MAX`]; nothing is appended then.
pub fn encode_id(id: u32, out: &mut impl BufMut) -> Result<(), IdError> {
    if id > ID_MAX {
        return Err(IdError::OutOfRange);
    }
    encode(u64::from(id), false, out);
    Ok(())
}

/// Reads an `i32` as leniently as mwDB does.
///
/// Leading zero digits are skipped, `B` (minus zero) is 0, and every byte below 123 that is not in the alphabet is a
/// zero digit. Six digits can hold more than 32 bits; the bits above are dropped.
///
/// # Errors
///
/// See [`NumberError`].
pub fn decode_int(text: &[u8]) -> Result<i32, NumberError> {
    let (magnitude, negative) = decode(text, INT_DIGITS_MAX)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "mwDB's 32 bit arithmetic drops the same bits, and reads back i32::MIN by that"
    )]
    let magnitude = (magnitude as u32).cast_signed();
    Ok(if negative {
        magnitude.wrapping_neg()
    } else {
        magnitude
    })
}

/// Reads an `i64` as leniently as mwDB does; see [`decode_int`]. The magnitude has 53 bits at most.
///
/// # Errors
///
/// See [`NumberError`].
pub fn decode_long(text: &[u8]) -> Result<i64, NumberError> {
    let (magnitude, negative) = decode(text, LONG_DIGITS_MAX)?;
    let magnitude = magnitude.cast_signed();
    Ok(if negative { -magnitude } else { magnitude })
}

/// Reads a request id, accepting only the text that [`encode_id`] writes for it.
///
/// # Errors
///
/// One variant of [`IdError`] for each way in which a text is not canonical.
pub fn decode_id(text: &[u8]) -> Result<u32, IdError> {
    if text.len() > ID_DIGITS_MAX {
        return Err(IdError::TooLong { len: text.len() });
    }
    if let Some((at, &byte)) = text.iter().enumerate().find(|(_, b)| digit(**b).is_none()) {
        return Err(IdError::ForeignCharacter { byte, at });
    }
    if text.len() > 1 && text.starts_with(b"A") {
        return Err(IdError::LeadingZero);
    }
    // Only characters of the alphabet are left, and not too many of them.
    let (magnitude, negative) = decode(text, ID_DIGITS_MAX).map_err(|_| IdError::Empty)?;
    match (magnitude, negative) {
        (0, true) => Err(IdError::MinusZero),
        (_, true) => Err(IdError::Negative),
        (magnitude, false) => u32::try_from(magnitude)
            .ok()
            .filter(|id| *id <= ID_MAX)
            .ok_or(IdError::OutOfRange),
    }
}

/// Why a text is not a number even for a lenient reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NumberError {
    /// There is no digit.
    #[error("a number needs at least one digit")]
    Empty,
    /// A byte from 123 on, which mwDB's reader has no entry for.
    #[error("byte {byte:#04x} at position {at} cannot be part of a number")]
    Unreadable {
        /// The byte.
        byte: u8,
        /// Its index in the text.
        at: usize,
    },
    /// More digits than the type has room for, leading zeros not counted.
    #[error("a number of this type has at most {digits_max} digits")]
    TooLong {
        /// The most digits the type can have.
        digits_max: usize,
    },
}

/// Why a text is not a canonical request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdError {
    /// There is no digit.
    #[error("a request id needs at least one digit")]
    Empty,
    /// More bytes than any id has.
    #[error("a request id has at most {ID_DIGITS_MAX} digits, this one has {len}")]
    TooLong {
        /// The bytes of the text.
        len: usize,
    },
    /// A byte outside the alphabet.
    #[error("byte {byte:#04x} at position {at} of a request id is not a digit")]
    ForeignCharacter {
        /// The byte.
        byte: u8,
        /// Its index in the text.
        at: usize,
    },
    /// A leading `A` in a text of several digits.
    #[error("a request id is written without leading zeros (`A`)")]
    LeadingZero,
    /// The text `B`.
    #[error("minus zero (`B`) is not a request id")]
    MinusZero,
    /// The sign bit is set.
    #[error("a request id is not negative")]
    Negative,
    /// Above [`ID_MAX`].
    #[error("a request id is at most {ID_MAX}")]
    OutOfRange,
}

fn encode(magnitude: u64, negative: bool, out: &mut impl BufMut) {
    let upper = magnitude >> 5;
    let upper_digits = (u64::BITS - upper.leading_zeros()).div_ceil(6);
    for position in (0..upper_digits).rev() {
        out.put_u8(character(upper >> (6 * position)));
    }
    out.put_u8(character(magnitude << 1 | u64::from(negative)));
}

/// The magnitude and whether the sign bit is set; `digits_max` is at most [`LONG_DIGITS_MAX`].
fn decode(text: &[u8], digits_max: usize) -> Result<(u64, bool), NumberError> {
    let mut significant_digits = 0;
    let mut bits = 0_u64;
    for (at, &byte) in text.iter().enumerate() {
        let value = lenient_digit(byte).ok_or(NumberError::Unreadable { byte, at })?;
        if significant_digits > 0 || value != 0 {
            significant_digits += 1;
        }
        if significant_digits > digits_max {
            return Err(NumberError::TooLong { digits_max });
        }
        bits = bits << 6 | u64::from(value);
    }
    if text.is_empty() {
        return Err(NumberError::Empty);
    }
    Ok((bits >> 1, bits & 1 == 1))
}

/// The character of the low six bits of `bits`.
fn character(bits: u64) -> u8 {
    let value = (bits & 0x3f) as u8;
    match value {
        0..=25 => b'A' + value,
        26..=51 => b'a' + (value - 26),
        52..=61 => b'0' + (value - 52),
        62 => b'+',
        _ => b'/',
    }
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'A'..=b'Z' => Some(character - b'A'),
        b'a'..=b'z' => Some(character - b'a' + 26),
        b'0'..=b'9' => Some(character - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

fn lenient_digit(character: u8) -> Option<u8> {
    digit(character).or_else(|| (character <= b'z').then_some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_text(id: u32) -> Vec<u8> {
        let mut text = Vec::new();
        encode_id(id, &mut text).unwrap();
        text
    }

    #[test]
    fn smallest_int_is_written_as_mwdb_writes_it_and_comes_back() {
        let mut text = Vec::new();
        encode_int(i32::MIN, &mut text);
        assert_eq!(text, b"8AAAAB");
        assert_eq!(decode_int(&text), Ok(i32::MIN));
    }

    #[test]
    fn fixed_longs() {
        for (value, text) in [
            (-((1 << 53) - 2), "////////9"),
            ((1 << 53) - 2, "////////8"),
            ((1 << 53) - 1, "////////+"),
        ] {
            let mut written = Vec::new();
            encode_long(value, &mut written);
            assert_eq!(written, text.as_bytes());
            assert_eq!(decode_long(text.as_bytes()), Ok(value));
        }
    }

    #[test]
    fn encoders_append() {
        let mut out = b"id ".to_vec();
        encode_int(1, &mut out);
        encode_long(-1, &mut out);
        encode_id(32, &mut out).unwrap();
        assert_eq!(out, b"id CDBA");
    }

    #[test]
    fn digits_beyond_the_type_are_refused_unless_they_are_zero() {
        assert_eq!(
            decode_int(b"BAAAAAA"),
            Err(NumberError::TooLong { digits_max: 6 })
        );
        assert_eq!(decode_int(b"ABAAAAA"), Ok(1 << 29));
        assert_eq!(
            decode_long(b"BAAAAAAAAA"),
            Err(NumberError::TooLong { digits_max: 9 })
        );
        assert_eq!(decode_long(&[b'A'; 1000]), Ok(0));
    }

    #[test]
    fn bytes_beyond_the_table_of_mwdb_are_unreadable() {
        for byte in 123..=u8::MAX {
            let error = NumberError::Unreadable { byte, at: 1 };
            assert_eq!(decode_int(&[b'C', byte]), Err(error));
            assert_eq!(decode_long(&[b'C', byte]), Err(error));
        }
    }

    #[test]
    fn canonical_ids() {
        for (id, text) in [
            (0, "A"),
            (31, "+"),
            (32, "BA"),
            (1_000_000, "HoSA"),
            (ID_MAX, "D////+"),
        ] {
            assert_eq!(id_text(id), text.as_bytes());
            assert_eq!(decode_id(text.as_bytes()), Ok(id));
        }
    }

    #[test]
    fn other_texts_are_not_ids() {
        let foreign = |byte, at| IdError::ForeignCharacter { byte, at };
        for (text, error) in [
            ("", IdError::Empty),
            ("B", IdError::MinusZero),
            ("D", IdError::Negative),
            ("D/////", IdError::Negative),
            ("AA", IdError::LeadingZero),
            ("AC", IdError::LeadingZero),
            ("AB", IdError::LeadingZero),
            ("=", foreign(b'=', 0)),
            ("C ", foreign(b' ', 1)),
            ("A#", foreign(b'#', 1)),
            ("C~", foreign(b'~', 1)),
            ("EAAAAA", IdError::OutOfRange),
            ("/////+", IdError::OutOfRange),
            ("AAAAAAA", IdError::TooLong { len: 7 }),
        ] {
            assert_eq!(decode_id(text.as_bytes()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn id_above_the_range_is_not_written() {
        let mut out = Vec::new();
        assert_eq!(encode_id(ID_MAX + 1, &mut out), Err(IdError::OutOfRange));
        assert!(out.is_empty());
    }
}

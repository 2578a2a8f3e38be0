//! The cursor and the writer: unsigned LEB128 numbers and length-prefixed bytes.
//!
//! [`Reader`] hands out slices of the received message, never reads past it, and checks each length by what is left
//! before anything is allocated. Numbers are canonical: no longer than needed, at most 10 bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::ProtocolError;

/// The most items (keys, values, states, checks, operations, commits, changes, limits) of one message, all its lists
/// together. An item takes as little as one byte of the payload and some hundred bytes of the reader's memory, so the
/// length of a message alone would be a poor bound. No configuration allows more.
pub const ITEMS_MAX: usize = 1 << 20;

/// Reads a payload from front to back.
#[derive(Debug)]
pub(crate) struct Reader {
    rest: Bytes,
    /// How many of [`ITEMS_MAX`] the lists read so far have left.
    items_left: usize,
}

impl Reader {
    pub(crate) fn new(payload: Bytes) -> Self {
        Self {
            rest: payload,
            items_left: ITEMS_MAX,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn byte(&mut self, what: &'static str) -> Result<u8, ProtocolError> {
        let byte = *self.rest.first().ok_or(ProtocolError::Truncated { what })?;
        let _ = self.rest.split_to(1);
        Ok(byte)
    }

    pub(crate) fn number(&mut self, what: &'static str) -> Result<u64, ProtocolError> {
        let mut value = 0u64;
        for (place, byte) in self.rest.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * place;
            // The tenth byte has room for one bit only.
            if place == 9 && bits > 1 {
                return Err(ProtocolError::BadNumber { what });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if place > 0 && bits == 0 {
                    return Err(ProtocolError::BadNumber { what });
                }
                let _ = self.rest.split_to(place + 1);
                return Ok(value);
            }
        }
        if self.rest.len() < 10 {
            Err(ProtocolError::Truncated { what })
        } else {
            Err(ProtocolError::BadNumber { what })
        }
    }

    /// The number of items that follow, each of at least `item_bytes_min` bytes: bounded by what is left, and by
    /// [`ITEMS_MAX`] in the whole message.
    pub(crate) fn count(
        &mut self,
        item_bytes_min: usize,
        what: &'static str,
    ) -> Result<usize, ProtocolError> {
        let count = self.length(item_bytes_min, what)?;
        self.take_items(count)?;
        Ok(count)
    }

    /// Accounts for items of a list that has no count of its own.
    pub(super) fn take_items(&mut self, count: usize) -> Result<(), ProtocolError> {
        match self.items_left.checked_sub(count) {
            Some(left) => {
                self.items_left = left;
                Ok(())
            }
            None => Err(ProtocolError::TooManyItems { max: ITEMS_MAX }),
        }
    }

    pub(crate) fn bytes(&mut self, what: &'static str) -> Result<Bytes, ProtocolError> {
        let length = self.length(1, what)?;
        Ok(self.rest.split_to(length))
    }

    fn length(&mut self, unit_bytes: usize, what: &'static str) -> Result<usize, ProtocolError> {
        let declared = self.number(what)?;
        match usize::try_from(declared) {
            Ok(count) if count <= self.left() / unit_bytes.max(1) => Ok(count),
            _ => Err(ProtocolError::LengthBeyondFrame {
                what,
                declared,
                left: self.left(),
            }),
        }
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], ProtocolError> {
        let array = *self
            .rest
            .first_chunk::<N>()
            .ok_or(ProtocolError::Truncated { what })?;
        let _ = self.rest.split_to(N);
        Ok(array)
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<String, ProtocolError> {
        let bytes = self.bytes(what)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(ProtocolError::NotUtf8 { what }),
        }
    }

    pub(super) fn rest(self) -> Bytes {
        self.rest
    }

    pub(crate) fn finish(self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(ProtocolError::TrailingBytes { bytes }),
        }
    }
}

/// Writes a payload.
pub(crate) trait Writer {
    fn number(&mut self, value: u64);
    fn length_prefixed(&mut self, bytes: &[u8]);
}

/// How many bytes a number takes.
pub(super) fn number_len(value: u64) -> usize {
    (64 - value.leading_zeros()).div_ceil(7).max(1) as usize
}

impl Writer for BytesMut {
    fn number(&mut self, mut value: u64) {
        loop {
            let bits = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                return self.put_u8(bits);
            }
            self.put_u8(bits | 0x80);
        }
    }

    fn length_prefixed(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<u64, ProtocolError> {
        Reader::new(Bytes::copy_from_slice(bytes)).number("n")
    }

    #[test]
    fn numbers_are_canonical() {
        assert_eq!(read(&[0]).unwrap(), 0);
        assert_eq!(
            read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).unwrap(),
            u64::MAX
        );
        assert!(matches!(
            read(&[0x80, 0]),
            Err(ProtocolError::BadNumber { .. })
        ));
        assert!(matches!(
            read(&[0xff; 10]),
            Err(ProtocolError::BadNumber { .. })
        ));
        assert!(matches!(
            read(&[0xff; 9]),
            Err(ProtocolError::Truncated { .. })
        ));
        let two = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert!(matches!(read(&two), Err(ProtocolError::BadNumber { .. })));
    }

    #[test]
    fn a_count_is_bounded_by_what_is_left() {
        let mut reader = Reader::new(Bytes::from_static(&[3, 1, 2]));
        assert!(matches!(
            reader.count(1, "keys"),
            Err(ProtocolError::LengthBeyondFrame {
                declared: 3,
                left: 2,
                ..
            })
        ));
        let mut reader = Reader::new(Bytes::from_static(&[2, 1, 2, 3]));
        assert!(reader.count(2, "pairs").is_err());
    }

    #[test]
    fn items_are_bounded_in_the_whole_message() {
        let mut out = BytesMut::new();
        for _ in 0..2 {
            out.number(ITEMS_MAX as u64);
            out.put_bytes(0, ITEMS_MAX);
        }
        let mut reader = Reader::new(out.freeze());
        assert_eq!(reader.count(1, "keys").unwrap(), ITEMS_MAX);
        reader.rest.advance(ITEMS_MAX);
        assert_eq!(
            reader.count(1, "keys"),
            Err(ProtocolError::TooManyItems { max: ITEMS_MAX })
        );
        // A value's length is no number of items.
        let mut reader = Reader::new(Bytes::from(vec![0x81, 0x80, 0x40]));
        assert!(matches!(
            reader.bytes("a value"),
            Err(ProtocolError::LengthBeyondFrame { left: 0, .. })
        ));
    }

    proptest! {
        #[test]
        fn numbers_round_trip(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let mut out = BytesMut::new();
            out.number(value);
            prop_assert_eq!(read(&out).unwrap(), value);
        }
    }
}

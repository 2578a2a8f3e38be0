//! The cursor and the writer: unsigned LEB128 numbers and length-prefixed bytes.
//!
//! [`Reader`] hands out slices of the received message, never reads past it, and judges each length by what is left
//! before anything is allocated. Numbers are canonical: no longer than needed, at most 10 bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::ProtocolError;

/// Reads a payload from front to back.
#[derive(Debug)]
pub(super) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(super) fn new(payload: Bytes) -> Self {
        Self { rest: payload }
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

    pub(super) fn number(&mut self, what: &'static str) -> Result<u64, ProtocolError> {
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

    /// The number of items that follow, each of at least `item_bytes_min` bytes: bounded by what is left.
    pub(super) fn count(
        &mut self,
        item_bytes_min: usize,
        what: &'static str,
    ) -> Result<usize, ProtocolError> {
        let declared = self.number(what)?;
        match usize::try_from(declared) {
            Ok(count) if count <= self.left() / item_bytes_min.max(1) => Ok(count),
            _ => Err(ProtocolError::LengthBeyondFrame {
                what,
                declared,
                left: self.left(),
            }),
        }
    }

    pub(super) fn bytes(&mut self, what: &'static str) -> Result<Bytes, ProtocolError> {
        let length = self.count(1, what)?;
        Ok(self.rest.split_to(length))
    }

    pub(super) fn array<const N: usize>(
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

    pub(super) fn text(&mut self, what: &'static str) -> Result<String, ProtocolError> {
        let bytes = self.bytes(what)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(ProtocolError::NotUtf8 { what }),
        }
    }

    pub(super) fn rest(self) -> Bytes {
        self.rest
    }

    pub(super) fn finish(self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(ProtocolError::TrailingBytes { bytes }),
        }
    }
}

/// Writes a payload.
pub(super) trait Writer {
    fn number(&mut self, value: u64);
    fn length_prefixed(&mut self, bytes: &[u8]);
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

//! The rows of the table of entries, and the sum of their checksums.

use storage_protocol::{Entry, EntryLifetime, Key, Revision, UnixMillis};

/// Checksum, revision, lifetime's tag and number, before the value.
const HEAD_BYTES: usize = CHECKSUM_BYTES + 17;

/// CRC-32 of the key and of what follows.
pub(super) const CHECKSUM_BYTES: usize = 4;

/// The number of the entries and the sum of their checksums, which do not depend on the order in which entries are
/// added and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    entries: u64,
    checksums: u64,
}

impl Sum {
    pub(super) fn add(&mut self, key: &[u8], row: &[u8]) {
        self.entries = self.entries.wrapping_add(1);
        self.checksums = self.checksums.wrapping_add(row_checksum(key, row).into());
    }

    pub(super) fn subtract(&mut self, key: &[u8], row: &[u8]) {
        self.entries = self.entries.wrapping_sub(1);
        self.checksums = self.checksums.wrapping_sub(row_checksum(key, row).into());
    }

    pub(super) fn encode(self) -> Vec<u8> {
        [self.entries.to_be_bytes(), self.checksums.to_be_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (entries, checksums) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            entries: u64::from_be_bytes(*entries),
            checksums: u64::from_be_bytes(checksums.try_into().ok()?),
        })
    }
}

/// The checksum of a row's bytes, whatever checksum is stored in it.
fn row_checksum(key: &[u8], row: &[u8]) -> u32 {
    checksum(key, row.get(CHECKSUM_BYTES..).unwrap_or_default())
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize()
}

/// Encodes a row into the buffer, in place of what that holds.
pub(super) fn encode(key: &[u8], entry: &Entry, buffer: &mut Vec<u8>) {
    let (tag, number) = match entry.lifetime {
        EntryLifetime::Forever => (0, 0),
        EntryLifetime::Until(time) => (1, time.0),
        EntryLifetime::Session => (2, 0),
    };
    buffer.clear();
    buffer.extend([0; CHECKSUM_BYTES]);
    buffer.extend(entry.revision.0.to_be_bytes());
    buffer.push(tag);
    buffer.extend(number.to_be_bytes());
    buffer.extend(&entry.value);
    let checksum = row_checksum(key, buffer).to_be_bytes();
    buffer.splice(..CHECKSUM_BYTES, checksum);
}

/// The entry in a row. `None`: the row is not what was written.
pub(super) fn decode(key: &[u8], row: &[u8]) -> Option<Entry> {
    let (head, value) = row.split_at_checked(HEAD_BYTES)?;
    let (written, head) = head.split_first_chunk::<CHECKSUM_BYTES>()?;
    if row_checksum(key, row) != u32::from_be_bytes(*written) {
        return None;
    }
    let (revision, rest) = head.split_first_chunk::<8>()?;
    let (tag, number) = rest.split_first()?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    Some(Entry {
        value: Key::copy_from_slice(value),
        revision: Revision(u64::from_be_bytes(*revision)),
        lifetime: match tag {
            0 => EntryLifetime::Forever,
            1 => EntryLifetime::Until(UnixMillis(number)),
            2 => EntryLifetime::Session,
            _ => return None,
        },
    })
}

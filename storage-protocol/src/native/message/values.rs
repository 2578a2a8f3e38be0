//! How long an answer to a get is, before it is made.

use super::super::wire::number_len;
use crate::{EntryLifetime, Revision};

/// The length of the payload of VALUES, counted entry by entry: what an engine compares with `message_bytes_max` while it
/// reads, so that nothing is read in vain and nothing is refused that fits.
#[derive(Clone, Copy, Debug)]
pub struct ValuesLength(usize);

impl ValuesLength {
    /// That of an answer at this revision with so many entries, before any is counted.
    #[must_use]
    pub fn new(revision: Revision, entries: usize) -> Self {
        Self(number_len(revision.0) + number_len(entries as u64))
    }

    /// Counts an absent key.
    pub fn add_absent(&mut self) {
        self.0 += 1;
    }

    /// Counts an entry with a value of so many bytes; tells how many it takes.
    pub fn add(
        &mut self,
        revision: Revision,
        lifetime: EntryLifetime,
        value_bytes: usize,
    ) -> usize {
        let time = match lifetime {
            EntryLifetime::Until(time) => number_len(time.0),
            EntryLifetime::Forever | EntryLifetime::Session => 0,
        };
        let bytes =
            1 + time + number_len(revision.0) + number_len(value_bytes as u64) + value_bytes;
        self.0 = self.0.saturating_add(bytes);
        bytes
    }

    /// The length so far.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::native::ServerMessage;
    use crate::{Entry, UnixMillis};

    fn entries() -> impl Strategy<Value = Vec<Option<Entry>>> {
        let lifetime = prop_oneof![
            Just(EntryLifetime::Forever),
            Just(EntryLifetime::Session),
            any::<u64>().prop_map(|time| EntryLifetime::Until(UnixMillis(time))),
        ];
        let entry = (0..300_usize, any::<u64>(), 0..64_u32, lifetime);
        let entry = entry.prop_map(|(bytes, revision, shift, lifetime)| Entry {
            value: Bytes::from(vec![7; bytes]),
            revision: Revision(revision >> shift),
            lifetime,
        });
        prop::collection::vec(prop::option::of(entry), 0..200)
    }

    proptest! {
        #[test]
        fn it_is_the_length_that_is_sent(revision: u64, entries in entries()) {
            let revision = Revision(revision);
            let mut length = ValuesLength::new(revision, entries.len());
            for entry in &entries {
                match entry {
                    None => length.add_absent(),
                    Some(entry) => {
                        length.add(entry.revision, entry.lifetime, entry.value.len());
                    }
                }
            }
            let message = ServerMessage::Values { revision, entries };
            prop_assert_eq!(message.encode(Some(1)).payload.len(), length.bytes());
        }
    }
}

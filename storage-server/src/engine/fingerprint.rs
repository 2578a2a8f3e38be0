//! A short hash of what a commit says, kept with its number: a number that comes again is answered with what it did
//! only if it is the same commit.
//!
//! It tells honest mistakes apart (two processes on one saved session), not forgeries: whoever can send under a
//! session's number is its principal. It is kept on disk, so it must never change: what is hashed is written out here,
//! and XXH3 is the same on every platform.

use storage_protocol::{Batch, CommitOptions, Expected, Lifetime, Operation};
use xxhash_rust::xxh3::Xxh3;

/// The fingerprint of a commit: of its checks, its operations in their order, and its options. Never changes between
/// versions or platforms. Two different commits have the same one with a chance of 2^-64.
#[must_use]
pub fn fingerprint(batch: &Batch, options: &CommitOptions) -> u64 {
    let mut hash = Hasher(Xxh3::new());
    hash.byte(u8::from(options.with_previous));
    hash.byte(u8::from(options.label.is_some()));
    hash.bytes(options.label.as_deref().unwrap_or_default().as_bytes());
    hash.number(batch.checks.len() as u64);
    for check in &batch.checks {
        hash.bytes(&check.key);
        match check.expected {
            Expected::Absent => hash.byte(0),
            Expected::At(revision) => {
                hash.byte(1);
                hash.number(revision.0);
            }
        }
    }
    for operation in &batch.operations {
        let lifetime = match operation {
            Operation::Put { lifetime, .. } => {
                hash.byte(0);
                Some(*lifetime)
            }
            Operation::Remove { .. } => {
                hash.byte(1);
                None
            }
            Operation::PutStamped { lifetime, .. } => {
                hash.byte(2);
                Some(*lifetime)
            }
            Operation::Signal { .. } => {
                hash.byte(3);
                None
            }
        };
        hash.bytes(operation.key());
        hash.bytes(operation.value());
        if let Some(lifetime) = lifetime {
            hash.lifetime(lifetime);
        }
    }
    hash.0.digest()
}

struct Hasher(Xxh3);

impl Hasher {
    fn byte(&mut self, byte: u8) {
        self.0.update(&[byte]);
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    /// With their length, so that no two lists of bytes look the same.
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn lifetime(&mut self, lifetime: Lifetime) {
        match lifetime {
            Lifetime::Forever => self.byte(0),
            Lifetime::TimeToLive(duration) => {
                self.byte(1);
                // As it travels: in milliseconds.
                self.number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
            }
            Lifetime::Session => self.byte(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use storage_protocol::Revision;

    use super::*;

    fn of(batch: Batch) -> u64 {
        fingerprint(&batch, &CommitOptions::default())
    }

    #[test]
    fn every_part_of_a_commit_counts() {
        let second = Lifetime::TimeToLive(Duration::from_secs(1));
        let batches = [
            Batch::new(),
            Batch::new().put("a", "bc"),
            Batch::new().put("ab", "c"),
            Batch::new().put("a", "bd"),
            Batch::new().put_with("a", "bc", second),
            Batch::new().put_with("a", "bc", Lifetime::Session),
            Batch::new().put_stamped("a", "bc", Lifetime::Forever),
            Batch::new().signal("a", "bc"),
            Batch::new().remove("a"),
            Batch::new().check_absent("a"),
            Batch::new().check_revision("a", Revision(0)),
            Batch::new().check_revision("a", Revision(1)),
            Batch::new().put("a", "1").put("b", "2"),
            Batch::new().put("b", "2").put("a", "1"),
        ];
        let mut seen: HashSet<_> = batches.iter().cloned().map(of).collect();
        let labelled = |label: &str| CommitOptions::labelled(label);
        let with_previous = CommitOptions {
            with_previous: true,
            ..CommitOptions::default()
        };
        for options in [labelled(""), labelled("x"), with_previous] {
            seen.insert(fingerprint(&Batch::new(), &options));
        }
        assert_eq!(seen.len(), batches.len() + 3);
    }

    /// What is on disk is compared with what is computed by later versions, on other platforms. (The figures are of
    /// another implementation of XXH3.)
    #[test]
    fn it_is_what_it_always_was() {
        assert_eq!(of(Batch::new()), 18_408_500_714_112_733_216);
        let batch = Batch::new()
            .check_absent("n")
            .check_revision("o", Revision(41))
            .put("color", "blue")
            .put_with(
                "ttl",
                vec![7; 300],
                Lifetime::TimeToLive(Duration::from_millis(1500)),
            )
            .put_stamped("stamp/", "s", Lifetime::Session)
            .signal("bell", "ring")
            .remove("old");
        let options = CommitOptions {
            with_previous: true,
            ..CommitOptions::labelled("nightly")
        };
        assert_eq!(fingerprint(&batch, &options), 5_894_652_881_634_077_203);
    }
}

//! Small commits are copied out of the messages that they arrived in.
//!
//! What is received at once lies in one buffer, with one count of the references to it. The feed keeps what a commit
//! changed, and would keep all of the buffer; and the committer, which drops what was replaced, would wait for the
//! connection's thread, which goes on to receive, at the count.

use bytes::{Bytes, BytesMut};
use storage_protocol::{Batch, Operation};

/// A larger commit stays where it is: its message is most of its buffer.
pub(super) const COMPACT_BYTES_MAX: usize = 16 * 1024;

/// Gives the keys and values of a small commit's operations memory of their own. On the thread of whoever commits, since
/// the committer has work for all.
pub(super) fn compact(batch: &mut Batch) {
    let bytes = batch
        .operations
        .iter()
        .map(|operation| operation.key().len() + operation.value().len())
        .sum();
    if bytes > COMPACT_BYTES_MAX {
        return;
    }
    let mut all = BytesMut::with_capacity(bytes);
    for operation in &batch.operations {
        all.extend_from_slice(operation.key());
        all.extend_from_slice(operation.value());
    }
    let mut rest = all.freeze();
    let mut take = |bytes: &mut Bytes| *bytes = rest.split_to(bytes.len());
    for operation in &mut batch.operations {
        match operation {
            Operation::Put { key, value, .. } => {
                take(key);
                take(value);
            }
            Operation::PutStamped { prefix, value, .. } => {
                take(prefix);
                take(value);
            }
            Operation::Signal { key, bytes } => {
                take(key);
                take(bytes);
            }
            Operation::Remove { key } => take(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::Lifetime;

    use super::*;

    fn batch(message: &Bytes, value_bytes: usize) -> Batch {
        let key = |n: usize| message.slice(n..n + 3);
        let value = message.slice(10..10 + value_bytes);
        let lifetime = Lifetime::Forever;
        let mut batch = Batch::new();
        batch.operations = vec![
            Operation::Put {
                key: key(0),
                value: value.clone(),
                lifetime,
            },
            Operation::Remove { key: key(1) },
            Operation::PutStamped {
                prefix: key(2),
                value: Bytes::new(),
                lifetime,
            },
            Operation::Signal {
                key: key(3),
                bytes: value,
            },
        ];
        batch
    }

    #[test]
    fn a_small_commit_keeps_nothing_of_its_message() {
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(COMPACT_BYTES_MAX).collect();
        for (value_bytes, is_small) in [(0, true), (1000, true), (COMPACT_BYTES_MAX / 2, false)] {
            let message = Bytes::from(bytes.clone());
            let mut batch = batch(&message, value_bytes.min(message.len() - 10));
            let before = batch.clone();
            compact(&mut batch);
            assert_eq!(batch, before);
            drop(before);
            assert_eq!(message.is_unique(), is_small, "{value_bytes}");
        }
    }
}

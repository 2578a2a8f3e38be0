//! Commits are copied out of the messages that they arrived in, if they are small or their messages much larger.
//!
//! What is received at once lies in one buffer, with one count of the references to it. The feed keeps what a commit
//! changed, and would keep all of the buffer; and the committer, which drops keys and values, would wait at the count for
//! the connection's thread, which goes on to receive. The keys of checks stay where they are, since nobody keeps them.

use bytes::{Bytes, BytesMut};
use storage_protocol::{Batch, Operation};

/// What is longer stays where it is, if it is half of its message: that is most of its buffer then.
const SMALL_BYTES_MAX: usize = 16 * 1024;

/// Bytes of the keys and values of a batch's operations.
pub(super) fn content_bytes(batch: &Batch) -> usize {
    let operations = batch.operations.iter();
    operations
        .map(|operation| operation.key().len() + operation.value().len())
        .sum()
}

/// Gives the keys and values of a commit's operations memory of their own, in one piece, if it is small or not half of its
/// message of so many bytes. On the thread of whoever commits, since the committer has work for all.
pub(crate) fn compact(batch: &mut Batch, message_bytes: usize) {
    let bytes = content_bytes(batch);
    if bytes > SMALL_BYTES_MAX && bytes >= message_bytes / 2 {
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
    fn a_commit_that_is_small_or_little_of_its_message_keeps_nothing_of_it() {
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(SMALL_BYTES_MAX).collect();
        let half = SMALL_BYTES_MAX / 2;
        for (value_bytes, message_bytes, is_copied) in [
            (0, 100, true),
            (1000, 2100, true),
            (half, 2 * half + 100, false),
            (half, 5 * half, true),
        ] {
            let message = Bytes::from(bytes.clone());
            let mut batch = batch(&message, value_bytes);
            let before = batch.clone();
            compact(&mut batch, message_bytes);
            assert_eq!(batch, before);
            drop(before);
            assert_eq!(message.is_unique(), is_copied, "{value_bytes}");
        }
    }
}

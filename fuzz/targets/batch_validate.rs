//! A commit from the wire, judged: what passes keeps every limit, and what both sides measure agrees with the bytes.
#![no_main]

use std::collections::HashSet;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use storage_protocol::native::{ClientMessage, Packet, kind};
use storage_protocol::{Limits, Operation};

fuzz_target!(|input: &[u8]| {
    let packet = Packet {
        kind: kind::COMMIT,
        id: Some(0),
        payload: Bytes::copy_from_slice(input),
    };
    let Ok(ClientMessage::Commit { batch, options, .. }) = ClientMessage::decode(packet) else {
        return;
    };
    let limits = Limits {
        key_bytes_max: 12,
        value_bytes_max: 20,
        message_bytes_max: 200,
        operations_per_commit_max: 5,
        ..Limits::default()
    };
    if batch.validate(&options, &limits).is_err() {
        return;
    }
    assert!(batch.bytes() <= limits.message_bytes_max);
    assert!(batch.checks.len() <= 5 && batch.operations.len() <= 5);
    assert!(
        options
            .label
            .is_none_or(|label| label.len() <= Limits::LABEL_BYTES)
    );
    let mut keys = HashSet::new();
    for operation in &batch.operations {
        let stamped = matches!(operation, Operation::PutStamped { .. });
        let key_bytes = operation.key().len() + if stamped { 8 } else { 0 };
        assert!((1..=12).contains(&key_bytes));
        assert!(operation.value().len() <= 20);
        assert!(
            keys.insert((stamped, operation.key())),
            "a key stands twice"
        );
    }
});

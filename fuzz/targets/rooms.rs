//! Rooms: what any value is taken for, and that it is what it would be written as.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use storage_protocol::rooms::{MessageRecord, RoomRecord};

fuzz_target!(|input: &[u8]| {
    for value in [Bytes::copy_from_slice(input), [&[1], input].concat().into()] {
        if let Ok(record) = RoomRecord::decode(&value) {
            assert_eq!(record.encode(), value);
        }
        if let Ok(record) = MessageRecord::decode(&value) {
            assert_eq!(record.encode(), value);
        }
    }
});

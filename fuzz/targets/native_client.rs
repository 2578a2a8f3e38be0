//! A server's reader: one frame through the reassembler into a client's message, and back to the same bytes.
#![no_main]

use std::time::Instant;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use storage_protocol::Limits;
use storage_protocol::native::{ClientMessage, Reassembler};

fuzz_target!(|input: &[u8]| {
    let frame = Bytes::copy_from_slice(input);
    let mut reassembler = Reassembler::new(Limits::FRAME_BYTES, 1 << 20);
    let Ok(Some(packet)) = reassembler.accept(frame, Instant::now()) else {
        assert!(reassembler.bytes() <= input.len());
        return;
    };
    assert!(packet.payload.len() <= input.len());
    if let Ok(message) = ClientMessage::decode(packet.clone()) {
        // What a client says has one encoding.
        assert_eq!(message.encode(packet.id), packet);
    }
});

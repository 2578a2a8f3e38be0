//! A client's reader: one frame through the reassembler into a server's message, and back to the same message.
#![no_main]

use std::time::Instant;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use storage_protocol::Limits;
use storage_protocol::native::{Reassembler, ServerMessage, kind};

fuzz_target!(|input: &[u8]| {
    let frame = Bytes::copy_from_slice(input);
    let mut reassembler = Reassembler::new(Limits::FRAME_BYTES, 1 << 20);
    let Ok(Some(packet)) = reassembler.accept(frame, Instant::now()) else {
        return;
    };
    let Ok(message) = ServerMessage::decode(packet.clone()) else {
        return;
    };
    let again = message.encode(packet.id);
    // Welcome may name limits that this version passes over, and an error's text is its sender's own.
    if packet.kind != kind::WELCOME && packet.kind != kind::ERROR {
        assert_eq!(again, packet);
    }
    assert_eq!(ServerMessage::decode(again), Ok(message));
});

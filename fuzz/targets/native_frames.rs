//! A peer that sends whatever it likes: frames in sequence into one reassembler, with refusals and time between them.
//!
//! The input is a list of steps: an opcode byte, then what it needs. What the reassembler says it holds is checked
//! against a count of our own, and is never more than was received.
#![no_main]

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use storage_protocol::native::{Packet, Reassembler, kind};

const FRAME_BYTES_MAX: usize = 200;
const MESSAGE_BYTES_MAX: usize = 500;
const PATIENCE: Duration = Duration::from_secs(10);

fn take<'a>(input: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (head, rest) = input.split_at(length.min(input.len()));
    *input = rest;
    head
}

fn byte(input: &mut &[u8]) -> u8 {
    take(input, 1).first().copied().unwrap_or_default()
}

/// A part that is well formed as far as its bytes go: whether it fits is up to the numbers.
fn part(input: &mut &[u8]) -> Bytes {
    let [kind, id, total, offset, length] = [(); 5].map(|()| byte(input));
    let mut payload = BytesMut::new();
    payload.put_u8(kind % 4 + kind::GET);
    payload.put_u8(total & 0x7f);
    payload.put_u8(offset & 0x7f);
    payload.put_slice(take(input, usize::from(length & 0x3f)));
    let packet = Packet {
        kind: kind::PART,
        id: Some(u32::from(id % 4)),
        payload: payload.freeze(),
    };
    packet.to_frame()
}

fuzz_target!(|input: &[u8]| {
    let mut input = input;
    let mut reassembler = Reassembler::new(FRAME_BYTES_MAX, MESSAGE_BYTES_MAX);
    let mut now = Instant::now();
    let mut received = 0;
    while !input.is_empty() {
        let frame = match byte(&mut input) % 8 {
            0 => {
                let length = usize::from(byte(&mut input));
                Bytes::copy_from_slice(take(&mut input, length))
            }
            1 => {
                let (kind, id) = (byte(&mut input) % 4 + kind::GET, byte(&mut input) % 4);
                let held = reassembler.bytes();
                reassembler.discard(kind, Some(u32::from(id)));
                assert!(reassembler.bytes() <= held);
                continue;
            }
            2 => {
                now += Duration::from_secs(u64::from(byte(&mut input)));
                let waiting = reassembler.pending().count();
                let expired = reassembler.expire(now, PATIENCE).len();
                assert_eq!(reassembler.pending().count(), waiting - expired);
                continue;
            }
            _ => part(&mut input),
        };
        let frame_bytes = frame.len();
        received += frame_bytes;
        let held = reassembler.bytes();
        match reassembler.accept(frame, now) {
            // The connection is over.
            Err(_) => return,
            Ok(None) => assert!(reassembler.bytes() <= held + frame_bytes),
            Ok(Some(packet)) => {
                assert!(frame_bytes <= FRAME_BYTES_MAX);
                assert!(packet.payload.len() <= MESSAGE_BYTES_MAX);
                assert!(packet.payload.len() <= received);
                assert_ne!(packet.kind, kind::PART);
                assert!(reassembler.bytes() <= held);
            }
        }
        assert!(reassembler.bytes() <= received);
        if reassembler.pending().next().is_none() {
            assert_eq!(reassembler.bytes(), 0, "nothing is held of nothing");
        }
    }
});

//! Frames of robots. See `storage_server::fuzzing::robots`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| storage_server::fuzzing::robots::check(input));

//! Requests with targets that no URI has, in pieces. See `storage_server::fuzzing::targets`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| storage_server::fuzzing::targets::check(input));

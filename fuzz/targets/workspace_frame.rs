//! Messages of clients of the gateway `workspace`. See `storage_server::fuzzing::workspace`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| storage_server::fuzzing::workspace::check(input));

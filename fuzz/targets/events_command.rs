//! Commands of clients of the gateway `events`. See `storage_server::fuzzing::events`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| storage_server::fuzzing::events::check(input));

//! Bearer tokens: of all texts only those that were minted verify. See `storage_server::fuzzing::tokens`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| storage_server::fuzzing::tokens::check(input));

//! Multipart bodies, in pieces. See `storage_server::fuzzing::repository`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| storage_server::fuzzing::repository::check_multipart(input));

//! Access rules, roles, users and quotas, stored and configured, and what follows from them. See
//! `storage_server::fuzzing::rules`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| storage_server::fuzzing::rules::check(input));

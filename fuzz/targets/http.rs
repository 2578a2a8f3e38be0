//! A whole connection behind TLS: HTTP, the routes of all gateways, WebSockets. See `storage_server::fuzzing::http`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| storage_server::fuzzing::http::check(input));

//! What people and URLs write: names of keyspaces and positions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage_protocol::{Keyspace, Position};

fuzz_target!(|input: &str| {
    if let Ok(keyspace) = Keyspace::new(input) {
        assert_eq!(keyspace.as_str(), input);
        assert!((1..=Keyspace::NAME_BYTES_MAX).contains(&input.len()));
        // It stands in paths and file names as it is.
        assert!(!input.starts_with('.') && !input.contains(['/', '\\', '\0', '%', '?', '#']));
    }
    if let Ok(position) = input.parse::<Position>() {
        assert_eq!(position.to_string().parse::<Position>(), Ok(position));
    }
});

//! Commands of the gateway `events`: an input is a command, and behind NUL bytes the type, the action and the key of an event.

use storage_protocol::{Key, KeyRange};

use crate::gateway::events::filter::{COMMAND_BYTES_MAX, Command, Filter, parse_command};

/// As a server has it by default.
const KEY_BYTES_MAX: usize = 4096;

/// Whatever a client says is a command or an error, in time in proportion to it; and what its filter is for lies in the range
/// that is watched for it.
///
/// # Panics
/// If a promise does not hold.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut parts = text.split('\0');
    let said = parts.next().unwrap_or_default();
    let [kind, action, key] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let filter = match parse_command(said) {
        Ok(Command::Register { filter, .. } | Command::Deregister { filter }) => filter,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(said.len() <= COMMAND_BYTES_MAX);
    assert!(said.contains(filter.as_str()), "{said:?}: {filter:?}");
    // The same text is the same registration.
    let again = Filter::parse(filter.as_str()).expect("a filter that was read is one");
    assert_eq!(again, filter);
    let range = filter.range(KEY_BYTES_MAX);
    if let Some(range) = &range {
        let bounds = [Some(&range.start), range.end.as_ref()];
        let longest = bounds.into_iter().flatten().map(Key::len).max();
        assert!(longest.unwrap_or(0) <= KEY_BYTES_MAX + 1);
    }
    // A type is what stands before the first slash of a key, and a key has its bytes.
    let place = Key::from(format!("{kind}/{key}"));
    let is_possible = !kind.contains('/') && place.len() <= KEY_BYTES_MAX;
    if is_possible && filter.matches(kind, &[action], key) {
        assert!(range.is_some_and(|range| has(&range, &place)), "{filter:?}");
    }
}

fn has(range: &KeyRange, key: &Key) -> bool {
    range.start <= *key && range.end.as_ref().is_none_or(|end| key < end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::tests::seeds;

    #[test]
    fn the_seeds_hold_what_is_promised_and_are_what_their_names_say() {
        for (name, seed) in seeds("events_command") {
            check(&seed);
            let text = String::from_utf8(seed).unwrap();
            let command = parse_command(text.split('\0').next().unwrap());
            assert_eq!(command.is_err(), name.starts_with("bad"), "{name}");
        }
    }
}

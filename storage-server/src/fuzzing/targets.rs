//! Requests whose targets have characters that no URI has: an input is a byte that says in pieces of what size the rest arrives.

use crate::http::targets::encoded;

/// However the bytes arrive, the same comes of them; nothing is left out, and what is added stands for what was there.
///
/// # Panics
/// If a promise does not hold.
pub fn check(input: &[u8]) {
    let Some((size, bytes)) = input.split_first() else {
        return;
    };
    let whole = encoded(bytes, bytes.len().max(1));
    assert_eq!(encoded(bytes, usize::from(*size).max(1)), whole);
    // Each byte is there as it was, or as its escape.
    let mut rest = &whole[..];
    for byte in bytes {
        let escape = format!("%{byte:02X}");
        let kept = rest.strip_prefix(&[*byte]);
        let behind = kept.or_else(|| rest.strip_prefix(escape.as_bytes()));
        rest = behind.expect("what arrived, or what stands for it");
    }
    assert!(rest.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::tests::seeds;

    #[test]
    fn the_seeds_hold_what_is_promised_and_are_what_their_names_say() {
        for (name, seed) in seeds("request_target") {
            check(&seed);
            let (_, bytes) = seed.split_first().unwrap();
            let is_changed = encoded(bytes, bytes.len()) != bytes;
            assert_eq!(is_changed, name.starts_with("raw"), "{name}");
        }
    }
}

//! Messages of clients of the gateway `workspace`: an input is a message, and behind a NUL byte the text of a post.

use crate::gateway::workspace::frame::{Said, TEXT_BYTES_MAX, history_wish, parse};
use crate::gateway::workspace::html::sanitised;

/// Whatever a client says is something, nothing or no JSON; and no text has more markup behind it than is allowed.
///
/// # Panics
/// If a promise does not hold.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut parts = text.split('\0');
    let said = parts.next().unwrap_or_default();
    if let Ok(Said::Chat(command)) = parse(said) {
        assert!(!command.op.name().is_empty());
        if let Some(room) = &command.room {
            assert!(!room.kind.name().is_empty());
        }
        if let Some(message) = &command.message {
            let (_, limit) = history_wish(&message.text, 100);
            assert!((1..=100).contains(&limit));
        }
    }
    let posted = parts.next().unwrap_or_default();
    if posted.len() <= TEXT_BYTES_MAX {
        check_text(posted);
    }
}

/// Panics unless only tags that are kept are left.
fn check_text(text: &str) {
    let out = sanitised(text);
    assert!(
        out.len() <= 8 * text.len() + 1024,
        "{} of {}",
        out.len(),
        text.len()
    );
    for (at, _) in out.match_indices('<') {
        let tag = out.get(at + 1..).unwrap_or_default();
        let tag = tag.strip_prefix('/').unwrap_or(tag);
        let name: String = tag
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        let rest = tag.get(name.len()..).unwrap_or_default();
        let is_link = name == "a" && (rest.starts_with(" href=\"") || rest.starts_with(" rel=\""));
        assert!(rest.starts_with('>') || is_link, "{out:?}");
        assert!(
            !["script", "img", "style", "svg", "iframe", ""].contains(&name.as_str()),
            "{out:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::tests::seeds;

    #[test]
    fn the_seeds_hold_what_is_promised_and_are_what_their_names_say() {
        for (name, seed) in seeds("workspace_frame") {
            check(&seed);
            let text = String::from_utf8(seed).unwrap();
            let said = parse(text.split('\0').next().unwrap());
            assert_eq!(said.is_err(), name.starts_with("bad"), "{name}");
            let is_nothing = matches!(said, Ok(Said::Nothing));
            assert_eq!(is_nothing, name.starts_with("nothing"), "{name}");
        }
    }
}

//! How texts of others are shown in messages: escaped and short, so that neither a log nor a terminal is led astray by
//! them.

use std::time::{Duration, UNIX_EPOCH};

/// The longest part of a text that is shown, in characters.
const SHOWN_CHARS_MAX: usize = 80;
/// The longest part of a key that is shown, in bytes.
const SHOWN_BYTES_MAX: usize = 64;

/// A text in quotes: control characters and those that do not show are escaped; a long one ends with its length.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => {
            let shown = text.get(..end).unwrap_or_default();
            format!("{shown:?}… ({} bytes)", text.len())
        }
    }
}

/// A time in seconds since 1970 as a date.
pub(crate) fn date(seconds: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    // Neither certificates nor the text know a year after 9999.
    let time = time.filter(|_| seconds < 253_402_300_800);
    time.map_or_else(
        || "never".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}

/// A key in quotes, what is not ASCII as `\xff`; a long one ends with its length.
pub(crate) fn quoted_key(key: &[u8]) -> String {
    match key.get(..SHOWN_BYTES_MAX) {
        Some(shown) if key.len() > SHOWN_BYTES_MAX => {
            format!("\"{}\"… ({} bytes)", shown.escape_ascii(), key.len())
        }
        _ => format!("\"{}\"", key.escape_ascii()),
    }
}

/// A key without quotes, what is not ASCII as `\xff`, so that the sign of what is left out stands in no key; of at most
/// `bytes_max` bytes, and if it is longer with its length.
pub(crate) fn shown_key(key: &[u8], bytes_max: usize) -> String {
    match key.get(..bytes_max) {
        Some(shown) if key.len() > bytes_max => {
            format!("{}… ({} bytes)", shown.escape_ascii(), key.len())
        }
        _ => key.escape_ascii().to_string(),
    }
}

/// A message that may have texts of others in it, without quotes around it: escaped where it does not show, and of at
/// most `chars_max` characters.
pub(crate) fn escaped(message: &str, chars_max: usize) -> String {
    let mut shown = String::new();
    for (place, c) in message.chars().enumerate() {
        match c {
            _ if place == chars_max => {
                shown.push('…');
                break;
            }
            '"' | '\'' | '\\' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_are_escaped_and_shortened() {
        assert_eq!(quoted("Zoë *"), "\"Zoë *\"");
        assert_eq!(quoted("a\n\"\u{1b}"), r#""a\n\"\u{1b}""#);
        assert_eq!(quoted("\u{202e}\u{200b}"), r#""\u{202e}\u{200b}""#);
        assert_eq!(quoted(&"ä".repeat(80)), format!("\"{}\"", "ä".repeat(80)));
        let long = quoted(&"ä".repeat(81));
        assert_eq!(long, format!("\"{}\"… (162 bytes)", "ä".repeat(80)));
    }

    #[test]
    fn keys_are_escaped_and_shortened() {
        assert_eq!(quoted_key(b"a\x00\"\xff"), r#""a\x00\"\xff""#);
        assert_eq!(quoted_key(b""), "\"\"");
        assert_eq!(quoted_key(&[b'k'; 64]), format!("\"{}\"", "k".repeat(64)));
        let long = quoted_key(&[b'k'; 65]);
        assert_eq!(long, format!("\"{}\"… (65 bytes)", "k".repeat(64)));
    }

    #[test]
    fn messages_keep_their_quotes_and_lose_what_does_not_show() {
        assert_eq!(
            escaped("field `a\n\u{202e}`, \"b\"", 100),
            r#"field `a\n\u{202e}`, "b""#
        );
        assert_eq!(escaped("abc", 3), "abc");
        assert_eq!(escaped("abcd", 3), "abc…");
    }
}

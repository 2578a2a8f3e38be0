//! Text that comes from elsewhere, on its way to a terminal or into JSON: nothing in it moves a cursor, hides, or turns
//! the line around, and what was escaped can be told from what was there.
//!
//! Everything that the command prints goes through here, or is bytes that were asked for as they are. Invariant: [`text`]
//! maps different bytes to different texts, of printable characters only.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Bytes as text on one line. A backslash is doubled; `\n`, `\r`, `\t` and `\x1b` stand for control characters,
/// `\u{202e}` for other characters that do not show, `\xff` for bytes that are no UTF-8.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text)
            if text
                .chars()
                .enumerate()
                .all(|(n, c)| c != '\\' && shows(c, n == 0)) =>
        {
            text.into()
        }
        _ => escaped(bytes).into(),
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c => push(&mut out, c),
            }
        }
        for byte in chunk.invalid() {
            // A String takes everything.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// One field of several on a line, separated by spaces: in quotes where a space or a quote at its beginning would leave
/// it open where it ends. `name`: it ends at a `=`.
pub(crate) fn field(bytes: &[u8], name: bool) -> Cow<'_, str> {
    let text = text(bytes);
    let open = text.is_empty()
        || text.starts_with('"')
        || text.contains(' ')
        || (name && text.contains('='));
    match open {
        true => format!("\"{}\"", text.replace('"', "\\\"")).into(),
        false => text,
    }
}

/// A message for people, whoever's words are in it: what does not show is escaped; backslashes stay, since parts of it
/// may be escaped already.
pub(crate) fn message(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| shows(c, false)) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        push(&mut out, c);
    }
    out.into()
}

/// A JSON string, its quotes included. What does not show is escaped in JSON's own way, which every parser undoes.
pub(crate) fn json(text: &str) -> String {
    json_value(&serde_json::Value::from(text))
}

/// The same of any JSON, on one line: only in strings is there anything to escape.
pub(crate) fn json_value(value: &serde_json::Value) -> String {
    let quoted = value.to_string();
    if quoted.chars().all(|c| shows(c, false)) {
        return quoted;
    }
    let mut out = String::with_capacity(quoted.len() * 2);
    for c in quoted.chars() {
        if shows(c, false) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// Whether a terminal may be sent these bytes as they are: text whose lines and tabs are its own, and which does
/// nothing else to the terminal.
pub(crate) fn is_harmless(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let harmless = match c {
            '\n' | '\t' => true,
            '\r' => chars.peek() == Some(&'\n'),
            c => !c.is_control() && !turns(c),
        };
        if !harmless {
            return false;
        }
    }
    true
}

fn push(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if shows(c, out.is_empty()) => out.push(c),
        c if c.is_ascii() => {
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        }
        c => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
}

/// Whether a terminal shows this character as itself. `first`: with no letter before it that it could belong to.
fn shows(c: char, first: bool) -> bool {
    match c {
        ' '..='~' => true,
        c if c.is_ascii() || ignorable(c) => false,
        c if c.is_alphanumeric() => true,
        // The standard library has the table (control, format, private, unassigned, spaces but ' '); it takes a mark for
        // escapable only where nothing is in front.
        c => {
            let mut bytes = [b'a'; 5];
            let len = 1 + c.encode_utf8(&mut bytes[1..]).len();
            let text = str::from_utf8(&bytes[usize::from(first)..len]).unwrap_or_default();
            text.escape_debug().count() == text.chars().count()
        }
    }
}

/// Shown by nothing at all, and no format characters either (Unicode: Default_Ignorable_Code_Point, U+2800).
fn ignorable(c: char) -> bool {
    matches!(c, '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2800}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}')
}

/// Turns the writing direction of what follows.
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_stays_and_the_rest_is_escaped() {
        for (bytes, expected) in [
            (
                "grün {\"a\":1} 日本 नी e\u{301} 😀".as_bytes(),
                "grün {\"a\":1} 日本 नी e\u{301} 😀",
            ),
            (b"", ""),
            (b"a\tb\r\n", "a\\tb\\r\\n"),
            (b"\x00\x1b[31m\x7f", "\\x00\\x1b[31m\\x7f"),
            (&[0xff, b'a', 0xc3], "\\xffa\\xc3"),
            ("\u{85}\u{9b}".as_bytes(), "\\u{85}\\u{9b}"),
            (
                "\u{202e}\u{2066}\u{200b}\u{feff}".as_bytes(),
                "\\u{202e}\\u{2066}\\u{200b}\\u{feff}",
            ),
            (
                "\u{a0}\u{3000}\u{2028}".as_bytes(),
                "\\u{a0}\\u{3000}\\u{2028}",
            ),
            (
                "a\u{fe0f}\u{3164}\u{e000}".as_bytes(),
                "a\\u{fe0f}\\u{3164}\\u{e000}",
            ),
            // Where it would sit on the separator before it.
            ("\u{301}a".as_bytes(), "\\u{301}a"),
            (b"C:\\x00", "C:\\\\x00"),
        ] {
            assert_eq!(text(bytes), expected);
        }
    }

    #[test]
    fn different_bytes_are_different_texts() {
        let tricky: [&[u8]; 11] = [
            b"\x00",
            b"\\x00",
            b"\\\\x00",
            b"\xff",
            b"\\xff",
            b"\n",
            b"\\n",
            "\u{ff}".as_bytes(),
            b"\\u{ff}",
            "\u{202e}".as_bytes(),
            b"\\u{202e}",
        ];
        let texts: std::collections::BTreeSet<_> = tricky.iter().map(|bytes| text(bytes)).collect();
        assert_eq!(texts.len(), tricky.len());
    }

    #[test]
    fn a_field_ends_where_it_ends() {
        assert_eq!(field(b"a", true), "a");
        assert_eq!(field(b"{\"a\":1}", false), "{\"a\":1}");
        assert_eq!(field(b"1 remove other", false), "\"1 remove other\"");
        assert_eq!(field(b"a=b", true), "\"a=b\"");
        assert_eq!(field(b"a=b", false), "a=b");
        assert_eq!(field(b"", false), "\"\"");
        assert_eq!(field(b"\"q\" \\", false), "\"\\\"q\\\" \\\\\"");
    }

    #[test]
    fn json_is_read_back_as_it_was() {
        for text in [
            "",
            "plain ü",
            "\u{9b}\u{202e}\u{7f}\u{200b}",
            "\"\\\n\u{0}",
            "\u{e0101}\u{10ffff}",
        ] {
            let quoted = json(text);
            assert!(quoted.chars().all(|c| shows(c, false)), "{quoted}");
            assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
        }
        assert_eq!(json("\u{202e}\u{e0101}"), "\"\\u202e\\udb40\\udd01\"");
    }

    #[test]
    fn a_message_has_one_line_and_keeps_what_is_escaped() {
        assert_eq!(
            message("key \\x00: \u{1b}[2Jgone\nerror: no"),
            "key \\x00: \\x1b[2Jgone\\nerror: no"
        );
    }

    #[test]
    fn text_with_lines_is_harmless_and_what_moves_the_cursor_is_not() {
        for harmless in ["", "a\tb\r\nc\n", "👩\u{200d}👧 می\u{200c}خواهم"] {
            assert!(is_harmless(harmless.as_bytes()), "{harmless:?}");
        }
        for harmful in [
            &b"\x00"[..],
            b"\xff",
            b"\x1b[2J",
            "\u{9b}".as_bytes(),
            "\u{202e}".as_bytes(),
            b"\x08",
            b"a\rb",
        ] {
            assert!(!is_harmless(harmful), "{harmful:?}");
        }
    }
}

//! Texts of the server, before they stand in an error, a log or a terminal of ours.
//!
//! They are for people, of any wording, and come from whoever answered: without control characters and those that change
//! how a terminal shows what is around them, and of a bounded length.

use storage_protocol::StorageError;

/// The most characters of a text that are kept.
const CHARS_MAX: usize = 500;

/// The text on one line, with U+FFFD for what does not print.
pub(crate) fn plain(text: &str) -> String {
    let mut chars = text.chars();
    let mut plain: String = chars
        .by_ref()
        .take(CHARS_MAX)
        .map(|c| match c {
            '\t' | '\n' | '\r' => ' ',
            c if c.is_control() || is_format(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect();
    if chars.next().is_some() {
        plain.push_str(" ...");
    }
    plain
}

/// An error of the server, with its text made plain.
pub(crate) fn plain_error(mut error: StorageError) -> StorageError {
    if let StorageError::InvalidArgument { message: text }
    | StorageError::ReadOnly { reason: text }
    | StorageError::AccessDenied { message: text }
    | StorageError::Closed { reason: text, .. }
    | StorageError::ConnectFailed { message: text }
    | StorageError::PeerMisbehaved { message: text, .. }
    | StorageError::Unsupported { what: text }
    | StorageError::Internal { message: text, .. } = &mut error
    {
        *text = plain(text);
    }
    error
}

/// Unicode's separators of lines and its characters for formatting (Cf): they hide or turn round what is beside them.
fn is_format(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_reach_the_terminal_is_taken_out() {
        assert_eq!(plain("gone for good"), "gone for good");
        assert_eq!(
            plain("a\x1b[2J\nb\u{9b}\u{202e}c\u{200b}"),
            "a\u{fffd}[2J b\u{fffd}\u{fffd}c\u{fffd}"
        );
        let long = plain(&"é".repeat(100_000));
        assert!(long.ends_with("é ...") && long.chars().count() == CHARS_MAX + 4);
    }
}

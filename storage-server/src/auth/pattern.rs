//! Patterns: texts in which `*` stands for any run of characters.
//!
//! There is no other wildcard and no escape. A principal with a `*` in its name is matched by that text too, which also
//! matches others.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::text::quoted;

/// The wildcard.
const ANY: char = '*';

/// A text in which `*` stands for any run of characters, also none, and anything else for itself. At least one byte, at
/// most [`Pattern::BYTES_MAX`], without control characters. Written as text, in serde too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// A text is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{shown} is no pattern; allowed are 1 to {} bytes without control characters, * for any run of characters",
    Pattern::BYTES_MAX
)]
pub struct PatternError {
    /// The text as messages show it.
    shown: String,
}

impl Pattern {
    /// The longest pattern, in bytes: as long as the longest principal.
    pub const BYTES_MAX: usize = 256;

    /// Checks a text.
    ///
    /// # Errors
    /// [`PatternError`]: it is empty, longer than [`Pattern::BYTES_MAX`], or has control characters.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let is_good = !text.is_empty()
            && text.len() <= Self::BYTES_MAX
            && !text.chars().any(char::is_control);
        let error = || PatternError {
            shown: quoted(text),
        };
        is_good.then(|| Self(text.to_owned())).ok_or_else(error)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for this text, as a whole. Takes time in proportion to the two lengths together.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let Some((head, rest)) = self.0.split_once(ANY) else {
            return text == self.0;
        };
        let (pieces, tail) = rest.rsplit_once(ANY).unwrap_or(("", rest));
        let Some(between) = text
            .strip_prefix(head)
            .and_then(|text| text.strip_suffix(tail))
        else {
            return false;
        };
        // The leftmost place of a piece leaves the most to those behind it, so no other place has to be tried. No part
        // of the text is searched twice, and `find` takes linear time.
        let mut left = between;
        pieces.split(ANY).all(|piece| {
            let behind = left
                .find(piece)
                .and_then(|place| left.get(place + piece.len()..));
            left = behind.unwrap_or_default();
            behind.is_some()
        })
    }

    /// Whether a `*` is in it.
    #[must_use]
    pub fn has_wildcard(&self) -> bool {
        self.0.contains(ANY)
    }

    /// What stands before the first `*`: all of it, if there is none.
    #[must_use]
    pub fn head(&self) -> &str {
        self.0.split(ANY).next().unwrap_or_default()
    }

    /// Whether it stands for every text that `other` stands for.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        // Nothing but a `*` of this pattern can match a `*` in the text of the other, and that one takes whatever the
        // other's stands for.
        self.matches(&other.0)
    }

    /// The text that it stands for if the first `*` stands for `first`, and all others for nothing.
    #[must_use]
    pub fn filled(&self, first: &str) -> String {
        self.0.replacen(ANY, first, 1).replace(ANY, "")
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        Self::parse(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters_and_all_else_for_itself() {
        for (text, good, bad) in [
            (
                "cert:a",
                vec!["cert:a"],
                vec!["", "cert:", "cert:ab", "CERT:A", "xcert:a"],
            ),
            ("*", vec!["", "a", "cert:a", "**"], vec![]),
            ("**", vec!["", "a"], vec![]),
            ("a*", vec!["a", "ab", "a*"], vec!["", "ba"]),
            ("*a", vec!["a", "ba"], vec!["", "ab"]),
            ("a*a", vec!["aa", "aba", "aaa"], vec!["a", "ab", "aab"]),
            (
                "a*b*c",
                vec!["abc", "axbxc", "abbc", "abcbc"],
                vec!["ac", "acb", "abcx", "xabc"],
            ),
            ("*ab*ab*", vec!["abab", "xabxabx"], vec!["ab", "aba"]),
            ("ä*", vec!["ä", "äö"], vec!["a"]),
            // What other languages take for wildcards.
            ("a?c", vec!["a?c"], vec!["abc"]),
            ("[ab]", vec!["[ab]"], vec!["a"]),
            (r"\*", vec![r"\", r"\x"], vec!["*"]),
            (".*", vec![".", ".x"], vec!["x"]),
        ] {
            for name in good {
                assert!(pattern(text).matches(name), "{text} {name}");
            }
            for name in bad {
                assert!(!pattern(text).matches(name), "{text} {name}");
            }
        }
    }

    #[test]
    fn texts_that_are_no_pattern_are_refused_and_named() {
        for bad in ["", "a\nb", "\u{7f}", "\u{85}", "\0"] {
            let error = Pattern::parse(bad).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{bad:?} is no pattern")),
                "{error}"
            );
            assert!(error.contains("1 to 256 bytes"), "{error}");
        }
        assert!(Pattern::parse(&"x".repeat(256)).is_ok());
        assert!(Pattern::parse(&"ä".repeat(128)).is_ok());
        let error = Pattern::parse(&"ä".repeat(129)).unwrap_err().to_string();
        assert!(error.contains("(258 bytes)"), "{error}");
    }

    #[test]
    fn what_a_pattern_covers_another_matches_too() {
        let covers = |wide: &str, narrow: &str| pattern(wide).covers(&pattern(narrow));
        for (wide, narrow) in [
            ("*", "a"),
            ("*", "*"),
            ("a*", "a*b*"),
            ("*a*", "a*b"),
            ("a*", "a**"),
        ] {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in [
            ("a", "*"),
            ("a*", "*"),
            ("ab", "a*b"),
            ("a*b", "a*"),
            ("a", "b"),
        ] {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }

    #[test]
    fn parts_of_a_pattern() {
        assert_eq!(pattern("ab*c*").head(), "ab");
        assert_eq!(pattern("ab").head(), "ab");
        assert_eq!(pattern("*").head(), "");
        assert_eq!(pattern("a*c*d").filled("b"), "abcd");
        assert_eq!(pattern("abc").filled("x"), "abc");
        assert!(pattern("a*").has_wildcard() && !pattern("a").has_wildcard());
    }

    #[test]
    fn many_stars_take_no_long_time() {
        let text = "a".repeat(1 << 20);
        let start = Instant::now();
        assert!(pattern(&"a*".repeat(128)).matches(&text));
        assert!(!pattern(&format!("{}b", "*a".repeat(100))).matches(&text));
        assert!(!pattern(&format!("{}b*", "*aa".repeat(80))).matches(&text));
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn serde_has_it_as_text() {
        let parsed: Pattern = serde_json::from_str(r#""cert:*""#).unwrap();
        assert_eq!(parsed, pattern("cert:*"));
        assert_eq!(serde_json::to_string(&parsed).unwrap(), r#""cert:*""#);
        let error = serde_json::from_str::<Pattern>(r#""""#).unwrap_err();
        assert!(error.to_string().contains("is no pattern"), "{error}");
        assert!(serde_json::from_str::<Pattern>("3").is_err());
    }

    /// Tries each length of what a star stands for.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((&ANY, rest)) => (0..=text.len()).any(|taken| naive(rest, &text[taken..])),
            Some((c, rest)) => text.first() == Some(c) && naive(rest, &text[1..]),
        }
    }

    fn chars(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_pattern_matches_what_a_search_of_all_ways_finds(
            written in "[abä*]{1,8}",
            text in "[abä*]{0,10}",
        ) {
            let expected = naive(&chars(&written), &chars(&text));
            prop_assert_eq!(pattern(&written).matches(&text), expected);
        }

        #[test]
        fn what_is_covered_is_matched(
            wide in "[ab*]{1,5}",
            narrow in "[ab*]{1,5}",
            text in "[ab]{0,8}",
        ) {
            let (wide, narrow) = (pattern(&wide), pattern(&narrow));
            if wide.covers(&narrow) && narrow.matches(&text) {
                prop_assert!(wide.matches(&text));
            }
            prop_assert!(narrow.matches(&narrow.filled(&text)) || !narrow.has_wildcard());
        }

        #[test]
        fn any_text_is_refused_or_comes_back(text in any::<String>()) {
            if let Ok(parsed) = Pattern::parse(&text) {
                prop_assert_eq!(parsed.to_string().parse::<Pattern>().unwrap(), parsed.clone());
                prop_assert!(parsed.matches(&text) && parsed.covers(&parsed));
            }
        }
    }
}

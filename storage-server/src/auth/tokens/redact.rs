//! Keeps tokens and passwords out of logs.

use std::borrow::Cow;
use std::ops::Range;

use super::request::TOKEN_PARAMETERS;

/// The names of parameters that have a password, of clients of other protocols.
const PASSWORD_PARAMETERS: &[&str] = &["pw", "password"];

/// What stands in the place of a secret.
const MASK: &str = "***";

/// The same text, with `***` in the place of what looks like a credential. For URLs, request lines and headers, before
/// they are logged. It rather hides too much.
///
/// Hidden are: the values of the parameters `token`, `access_token`, `pw` and `password`, in any case and percent-encoded; what stands in
/// `Authorization`, behind `Bearer` and behind `Basic`; behind `bearer.` in a list of subprotocols; and anything that
/// has the form of a JWT, or of a token in the short form, wherever it stands.
#[must_use]
pub(crate) fn redact(text: &str) -> Cow<'_, str> {
    let mut redacted = String::new();
    let (mut at, mut copied) = (0, 0);
    while at < text.len() {
        let Some(secret) = secret_at(text, at) else {
            at += 1;
            continue;
        };
        redacted.push_str(&text[copied..secret.start]);
        redacted.push_str(MASK);
        copied = secret.end;
        at = secret.end;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    redacted.push_str(&text[copied..]);
    Cow::Owned(redacted)
}

/// Where the credential is that begins at `at`, or behind what is there. Never empty, and `at` at the earliest.
fn secret_at(text: &str, at: usize) -> Option<Range<usize>> {
    let secret = match text.as_bytes()[at] {
        b'=' => parameter(text, at),
        b'a' | b'A' => header(text, at),
        b'b' | b'B' => scheme(text, at),
        b'e' => jwt(text, at),
        b's' => short(text, at),
        _ => None,
    };
    secret.filter(|secret| !secret.is_empty())
}

/// The value behind a `=`, if the name before it is one of a token.
fn parameter(text: &str, equals: usize) -> Option<Range<usize>> {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_%-.~+".contains(byte);
    let before = text.as_bytes()[..equals].iter().rev();
    let length = before.take_while(|byte| is_name(byte)).count();
    let name = percent_encoding::percent_decode_str(&text[equals - length..equals]);
    let name = name.decode_utf8().ok()?;
    let mut secrets = TOKEN_PARAMETERS.iter().chain(PASSWORD_PARAMETERS);
    if !secrets.any(|secret| name.eq_ignore_ascii_case(secret)) {
        return None;
    }
    let is_end = |c: char| c.is_ascii_whitespace() || "&#\"'<>".contains(c);
    Some(until(text, equals + 1, is_end))
}

/// The value of `Authorization` or `Proxy-Authorization`, to the end of the line or of the quoted text. A scheme that
/// is known is kept.
fn header(text: &str, at: usize) -> Option<Range<usize>> {
    let rest = after_word(text, at, "authorization")?;
    let colon = skip(text, rest, |c| "\"' ".contains(c));
    let value = text[colon..].strip_prefix([':', '='])?;
    let value = skip(text, text.len() - value.len(), |c| "\"' \t".contains(c));
    let kept = ["bearer", "basic"]
        .iter()
        .find_map(|scheme| after_word(text, value, scheme));
    let value = kept.map_or(value, |behind| skip(text, behind, |c| " \t".contains(c)));
    Some(until(text, value, |c| "\r\n\"".contains(c)))
}

/// What is behind `Bearer` or `Basic` and spaces, or behind `bearer.`.
fn scheme(text: &str, at: usize) -> Option<Range<usize>> {
    let starts_word = at == 0 || !text.as_bytes()[at - 1].is_ascii_alphanumeric();
    if !starts_word {
        return None;
    }
    let is_end = |c: char| c.is_ascii_whitespace() || ",;\"'".contains(c);
    let bearer = after_word(text, at, "bearer");
    if let Some(behind) = bearer.filter(|behind| text[*behind..].starts_with('.')) {
        return Some(until(text, behind + 1, is_end));
    }
    let behind = bearer.or_else(|| after_word(text, at, "basic"))?;
    let value = skip(text, behind, |c| " \t".contains(c));
    (value > behind).then(|| until(text, value, is_end))
}

/// A text with the form of a JWT: `eyJ`, which is `{"` in base64, and two dots. It may follow a percent-encoded
/// character, as in an address within an address.
fn jwt(text: &str, at: usize) -> Option<Range<usize>> {
    let (before, rest) = text.split_at(at);
    // Not within a word: the rest of a long one is searched once, not from each `e` in it.
    let is_in_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    let is_escaped = at >= 3 && before.as_bytes()[at - 3] == b'%';
    let starts = !before.as_bytes().last().is_some_and(is_in_word) || is_escaped;
    if !starts || !rest.starts_with("eyJ") {
        return None;
    }
    let is_end = |c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c);
    let token = until(text, at, is_end);
    let dots = text[token.clone()].bytes().filter(|byte| *byte == b'.');
    (dots.take(2).count() == 2).then_some(token)
}

/// A token in the short form.
fn short(text: &str, at: usize) -> Option<Range<usize>> {
    let is_token = text[at..].starts_with(super::short::PREFIX);
    let is_end = |c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c);
    is_token.then(|| until(text, at, is_end))
}

/// What is behind `word`, in any case, if it stands at `at`.
fn after_word(text: &str, at: usize, word: &str) -> Option<usize> {
    let found = text.as_bytes().get(at..at + word.len())?;
    found
        .eq_ignore_ascii_case(word.as_bytes())
        .then_some(at + word.len())
}

/// The first place from `at` on where the text does not go on with such characters.
fn skip(text: &str, at: usize, skipped: impl Fn(char) -> bool) -> usize {
    text.len() - text[at..].trim_start_matches(skipped).len()
}

/// From `at` to the first such character, or to the end.
fn until(text: &str, at: usize, is_end: impl Fn(char) -> bool) -> Range<usize> {
    at..text[at..].find(is_end).map_or(text.len(), |end| at + end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJqdGkiOiIxIn0.c2lnbmF0dXJl-_";

    #[test]
    fn parameters_of_a_url() {
        let cases = [
            ("/a?token=XYZ", "/a?token=***"),
            ("/a?Token=XYZ", "/a?Token=***"),
            ("/a?TOKEN=XYZ&b=1", "/a?TOKEN=***&b=1"),
            ("/a?b=1&access_token=XYZ#top", "/a?b=1&access_token=***#top"),
            (
                "/?token=a&x=2&token=b&Access_Token=c",
                "/?token=***&x=2&token=***&Access_Token=***",
            ),
            ("/a?%74oken=XYZ", "/a?%74oken=***"),
            ("/a?access%5ftoken=XYZ", "/a?access%5ftoken=***"),
            (
                "/a?%61%63%63%65%73%73%5F%74%6F%6B%65%6E=XYZ",
                "/a?%61%63%63%65%73%73%5F%74%6F%6B%65%6E=***",
            ),
            ("token=XYZ", "token=***"),
            ("/login?email=a&pw=XYZ&x=1", "/login?email=a&pw=***&x=1"),
            ("/?token=X%20Y,Z;ä&b", "/?token=***&b"),
            (
                "GET /?token=XYZ HTTP/1.1\r\nHost: a",
                "GET /?token=*** HTTP/1.1\r\nHost: a",
            ),
            ("uri: \"/?token=XYZ\", more", "uri: \"/?token=***\", more"),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(text), expected, "{text}");
        }
    }

    #[test]
    fn headers() {
        let cases = [
            ("Bearer XYZ", "Bearer ***"),
            ("bearer \t XYZ", "bearer \t ***"),
            ("Basic YTpi", "Basic ***"),
            ("Authorization: Bearer XYZ", "Authorization: Bearer ***"),
            (
                "AUTHORIZATION:XYZ and more\r\nHost: a",
                "AUTHORIZATION:***\r\nHost: a",
            ),
            (
                "Proxy-Authorization: Basic a password",
                "Proxy-Authorization: Basic ***",
            ),
            (
                "{\"authorization\": \"Digest x, y\", \"host\": \"a\"}",
                "{\"authorization\": \"***\", \"host\": \"a\"}",
            ),
            (
                "Sec-WebSocket-Protocol: storage-sync.v1, bearer.XYZ, more",
                "Sec-WebSocket-Protocol: storage-sync.v1, bearer.***, more",
            ),
            (
                "[\"bearer.XYZ\", \"Bearer.ABC\"]",
                "[\"bearer.***\", \"Bearer.***\"]",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(text), expected, "{text}");
        }
    }

    #[test]
    fn a_jwt_wherever_it_stands() {
        for (before, after) in [
            ("", ""),
            ("Cookie: session=", "; a=b"),
            ("/?to=%2F%3Ftoken%3D", "%26x"),
        ] {
            let text = format!("{before}{JWT}{after}");
            assert_eq!(redact(&text), format!("{before}***{after}"));
        }
    }

    #[test]
    fn all_else_stays_as_it_is() {
        for text in [
            "",
            "/a?token",
            "/a?token&b=1",
            "/a?token=",
            "/a?token=&b=1",
            "/a?mytoken=1&tokens=2&to%6=3&token%3D4",
            "Bearer",
            "bearer.",
            "forbearer.XYZ basics",
            "the authorization of a",
            "eyJ.a",
            "EYJ.a.b",
            "keyJ.a.b",
            "/storage/flights?from=1=2",
            "täglich=ä",
        ] {
            assert!(
                matches!(redact(text), Cow::Borrowed(same) if same == text),
                "{text}"
            );
        }
    }

    /// Quadratic work would take minutes.
    #[test]
    fn long_texts_are_read_once() {
        for part in [
            "eyJ",
            ".eyJ%",
            "bearer",
            "token",
            "%74=",
            "authorization ",
            "=",
            "bearer. ",
        ] {
            let text = part.repeat(1_000_000 / part.len());
            let _ = redact(&text);
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_once_is_enough(text in concat!(
                "\\PC*|[a-zA-Z=&?%:. \"ä]*",
                "|(token=|Bearer |bearer\\.|eyJ|Authorization: |ä|\\.|=|&)*",
            )) {
            let once = redact(&text).into_owned();
            prop_assert_eq!(redact(&once), once.as_str());
        }

        #[test]
        fn no_token_is_left(before in "[a-z /?&=:,\"ä]{0,20}", form in 0..5_usize, after in "[ ,&\"].{0,20}") {
            let lead = ["?token=", "&Access_Token=", "Authorization: Bearer ", "bearer.", "bAsic "][form];
            let text = format!("{before}?{lead}Top5ecret_-{after}");
            let redacted = redact(&text);
            prop_assert!(!redacted.contains("Top5ecret"), "{}", redacted);
        }
    }
}

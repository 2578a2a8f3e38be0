//! Texts of messages, as other people's pages may show them.
//!
//! The result has no markup but what is built here: a few inline elements without attributes, and links to `http`, `https` and
//! `mailto`. Whatever else looks like markup stays as text. So nothing depends on how a browser reads what is not well formed,
//! and nobody's words are lost.

use std::fmt::Write;

/// Elements that are kept, without their attributes.
const ELEMENTS: [&str; 14] = [
    "b",
    "blockquote",
    "code",
    "del",
    "em",
    "i",
    "li",
    "ol",
    "p",
    "pre",
    "s",
    "strong",
    "u",
    "ul",
];
/// The deepest nesting that is kept.
const DEPTH_MAX: usize = 32;
const SCHEMES: [&str; 3] = ["http://", "https://", "mailto:"];

/// The text with only the markup that is allowed, and all of it closed. At most six times as long, and the end tags.
pub(crate) fn sanitised(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut open: Vec<&'static str> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['<', '>', '&', '"']) {
        let (plain, from) = rest.split_at(at);
        out.push_str(plain);
        let used = match from.as_bytes().first() {
            Some(b'<') => tag(from, &mut open, &mut out),
            Some(b'&') => entity(from)
                .inspect(|entity| out.push_str(entity))
                .map(str::len),
            _ => None,
        };
        let used = used.unwrap_or_else(|| {
            out.push_str(match from.as_bytes().first() {
                Some(b'<') => "&lt;",
                Some(b'>') => "&gt;",
                Some(b'&') => "&amp;",
                // Text is nowhere within an attribute; still, whoever puts it there is safe.
                _ => "&quot;",
            });
            1
        });
        rest = from.get(used..).unwrap_or_default();
    }
    out.push_str(rest);
    while let Some(name) = open.pop() {
        let _ = write!(out, "</{name}>");
    }
    out
}

/// Writes the tag that a text begins with, if it is one that is kept; how many bytes it had.
fn tag(from: &str, open: &mut Vec<&'static str>, out: &mut String) -> Option<usize> {
    let end = from.find('>')?;
    let inside = from.get(1..end)?;
    let used = Some(end + 1);
    if let Some(name) = inside.strip_prefix('/') {
        let name = name.trim_end().to_ascii_lowercase();
        let last = *open.last()?;
        // Only in their order: what closes something else is text.
        if last != name {
            return None;
        }
        open.pop();
        let _ = write!(out, "</{last}>");
        return used;
    }
    if inside.contains('<') {
        return None;
    }
    let inside = inside.strip_suffix('/').unwrap_or(inside).trim_end();
    let (name, attributes) = match inside.split_once(|c: char| c.is_ascii_whitespace()) {
        Some((name, attributes)) => (name, attributes),
        None => (inside, ""),
    };
    let name = name.to_ascii_lowercase();
    if name == "br" {
        out.push_str("<br>");
        return used;
    }
    if open.len() >= DEPTH_MAX {
        return None;
    }
    if name == "a" {
        let link = link(attributes)?;
        let _ = write!(
            out,
            "<a href=\"{link}\" rel=\"noopener noreferrer nofollow\">"
        );
        open.push("a");
        return used;
    }
    let kept = *ELEMENTS.iter().find(|element| **element == name)?;
    let _ = write!(out, "<{kept}>");
    open.push(kept);
    used
}

/// The address of a link, as it may stand between quotes.
fn link(attributes: &str) -> Option<String> {
    let at = attributes.to_ascii_lowercase().find("href=")?;
    let is_first = attributes
        .get(..at)?
        .chars()
        .next_back()
        .is_none_or(char::is_whitespace);
    let value = attributes.get(at + 5..)?;
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let address = value.get(1..)?.split(quote).next()?;
    let lower = address.to_ascii_lowercase();
    let has_scheme = SCHEMES.iter().any(|scheme| lower.starts_with(scheme));
    // What a browser would leave out of an address, or could end an attribute with.
    let is_plain = |c: char| c.is_alphanumeric() || "-._~:/?#[]@!$()*+,;=%&".contains(c);
    let is_good = is_first && has_scheme && address.chars().all(is_plain);
    is_good.then(|| address.replace("&amp;", "&").replace('&', "&amp;"))
}

/// The reference to a character that a text begins with, if it is one.
fn entity(from: &str) -> Option<&str> {
    let end = from.find(';').filter(|end| (2..=10).contains(end))?;
    let name = from.get(1..end)?;
    let is_good = match name.strip_prefix('#') {
        Some(number) => match number.strip_prefix(['x', 'X']) {
            Some(digits) => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()),
            None => !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()),
        },
        None => matches!(name, "amp" | "lt" | "gt" | "quot" | "apos" | "nbsp"),
    };
    is_good.then(|| from.get(..=end))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_words_stay_and_a_little_markup_too() {
        for same in [
            "hello",
            "it's ä \u{1f600}",
            "<b>bold</b> and <i>x</i>",
            "a &amp; b &lt;c&gt; &#39; &#x27;",
            "one<br>two",
        ] {
            assert_eq!(sanitised(same), same);
        }
        assert_eq!(sanitised("a < b > c & d"), "a &lt; b &gt; c &amp; d");
        assert_eq!(sanitised("<B CLASS=x onclick='y'>z</B >"), "<b>z</b>");
        assert_eq!(sanitised("<b>never closed"), "<b>never closed</b>");
        assert_eq!(sanitised("</div>"), "&lt;/div&gt;");
        assert_eq!(
            sanitised("<a href=\"https://e.org/?a=1&b=2\" onclick=x>e</a>"),
            "<a href=\"https://e.org/?a=1&amp;b=2\" rel=\"noopener noreferrer nofollow\">e</a>"
        );
    }

    #[test]
    fn what_could_do_something_is_text() {
        for bad in [
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "<a href='javascript:alert(1)'>x</a>",
            "<a href=\" javascript:alert(1)\">x</a>",
            "<a href=\"https://x\" onclick=\"y\nhref=\"z>x</a",
            "<a data-href=\"https://x\">x</a>",
            "<svg><style><!--</style><img src=x>-->",
            "<b<script>alert(1)</script>",
            "<!-- x --><iframe>",
            "<a href=https://x>x</a>",
            "&lt;script&gt;<script",
        ] {
            let out = sanitised(bad);
            assert_safe(&out);
            assert!(!out.contains("<script") && !out.contains("<img"), "{out}");
        }
    }

    /// Each `<` in it begins one of the tags that are built here.
    fn assert_safe(out: &str) {
        for (at, _) in out.match_indices('<') {
            let from = &out[at..];
            let end = from.find('>').unwrap_or_else(|| panic!("no end: {out}"));
            let inside = from[1..end].trim_start_matches('/');
            let is_known = inside == "br"
                || inside == "a"
                || ELEMENTS.contains(&inside)
                || inside.strip_prefix("a href=\"").is_some_and(|rest| {
                    let (address, rest) = rest.split_once('"').unwrap();
                    let is_link = SCHEMES
                        .iter()
                        .any(|s| address.to_ascii_lowercase().starts_with(s));
                    is_link && rest == " rel=\"noopener noreferrer nofollow\""
                });
            assert!(is_known, "{inside:?} of {out:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_what_is_built_here_is_markup(
            text in "(<|>|/|a|b| |href=|\"|'|https://x|javascript:|&|;|#|script|br|amp|\\n|[a-zé<>]){0,40}",
        ) {
            let out = sanitised(&text);
            assert_safe(&out);
            // Once is enough.
            prop_assert_eq!(sanitised(&out), out);
        }
    }
}

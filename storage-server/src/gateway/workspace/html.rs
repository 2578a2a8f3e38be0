//! Texts of messages, as other people's pages may show them.
//!
//! They are read as a browser reads them, by the crate ammonia, and written anew: with a few inline elements without attributes,
//! and links to `http`, `https` and `mailto`. Of other elements the words stay, but of scripts and styles.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use ammonia::{Builder, UrlRelative};

/// Elements that are kept, without their attributes; and `a`, with an address.
const ELEMENTS: [&str; 15] = [
    "b",
    "blockquote",
    "br",
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
const SCHEMES: [&str; 3] = ["http", "https", "mailto"];
const REL: &str = "noopener noreferrer nofollow";

/// The most tags that are read: some elements are repeated in each paragraph behind them, so the work grows with the square.
const TAGS_MAX: usize = 256;
/// The most bytes of a result for each byte of a text, and besides; a longer one is not worth its markup.
const GROWTH_MAX: usize = 8;
const BYTES_BESIDES: usize = 1024;

static CLEANER: LazyLock<Builder<'static>> = LazyLock::new(|| {
    let mut cleaner = Builder::empty();
    cleaner
        .tags(ELEMENTS.into_iter().chain(["a"]).collect())
        .clean_content_tags(HashSet::from(["script", "style"]))
        .generic_attributes(HashSet::new())
        .tag_attributes(HashMap::from([("a", HashSet::from(["href"]))]))
        .url_schemes(SCHEMES.into())
        .url_relative(UrlRelative::Deny)
        .link_rel(Some(REL));
    cleaner
});

/// The text with only the markup that is allowed, and all of it closed. One with too much markup is shown as what it is.
pub(crate) fn sanitised(text: &str) -> String {
    if text.matches('<').count() > TAGS_MAX {
        return escaped(text);
    }
    let clean = CLEANER.clean(text).to_string();
    match clean.len() <= GROWTH_MAX * text.len() + BYTES_BESIDES {
        true => clean,
        false => escaped(text),
    }
}

/// The text, without any markup.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
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
            "a &amp; b &lt;c&gt;",
            "one<br>two",
        ] {
            assert_eq!(sanitised(same), same);
        }
        assert_eq!(sanitised("a < b > c & d"), "a &lt; b &gt; c &amp; d");
        assert_eq!(sanitised("<B CLASS=x onclick='y'>z</B >"), "<b>z</b>");
        assert_eq!(sanitised("<b title=x lang=de>z"), "<b>z</b>");
        assert_eq!(sanitised("<b>never closed"), "<b>never closed</b>");
        assert_eq!(sanitised("<h1>words stay</h1>"), "words stay");
        assert_eq!(
            sanitised("<a href=\"https://e.org/?a=1&b=2\" onclick=x>e</a>"),
            "<a href=\"https://e.org/?a=1&amp;b=2\" rel=\"noopener noreferrer nofollow\">e</a>"
        );
        assert!(sanitised("<a href=mailto:a@e.org>e</a>").contains("mailto:a@e.org"));
    }

    #[test]
    fn what_could_do_something_is_gone() {
        for bad in [
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "<a href='javascript:alert(1)'>x</a>",
            "<a href=\" javascript:alert(1)\">x</a>",
            "<a href=\"java\nscript:alert(1)\">x</a>",
            "<a href=\"data:text/html,x\">x</a>",
            "<a href=\"/relative\">x</a>",
            "<a href=\"https://x\" onclick=\"y\nhref=\"z>x</a",
            "<a data-href=\"https://x\">x</a>",
            "<svg><style><!--</style><img src=x>-->",
            "<b<script>alert(1)</script>",
            "<!-- x --><iframe>",
            "&lt;script&gt;<script",
        ] {
            let out = sanitised(bad);
            assert_safe(&out);
            assert!(!out.contains("<script") && !out.contains("<img"), "{out}");
        }
    }

    #[test]
    fn markup_that_grows_is_shown_as_what_it_is() {
        let marks: String = (0..120).map(|n| format!("<b id={n}>")).collect();
        // A paragraph that begins within marks ends the one before, and repeats them.
        let text = format!("<p>{marks}{}", "<p>x".repeat(60));
        assert!(text.matches('<').count() <= TAGS_MAX);
        assert_eq!(sanitised(&text), escaped(&text));
        let many = "<p>".repeat(TAGS_MAX + 1);
        assert_eq!(sanitised(&many), "&lt;p&gt;".repeat(TAGS_MAX + 1));
    }

    /// Each `<` in it begins a tag that is kept, or ends one.
    fn assert_safe(out: &str) {
        for (at, _) in out.match_indices('<') {
            let from = &out[at..];
            let end = from.find('>').unwrap_or_else(|| panic!("no end: {out}"));
            let inside = from[1..end].trim_start_matches('/');
            let is_known = ELEMENTS.contains(&inside)
                || inside == "a"
                || inside == format!("a rel=\"{REL}\"")
                || inside.strip_prefix("a href=\"").is_some_and(|rest| {
                    let (address, rest) = rest.split_once('"').unwrap();
                    let is_link = SCHEMES.iter().any(|scheme| {
                        let address = address.to_ascii_lowercase();
                        address.starts_with(&format!("{scheme}:"))
                    });
                    is_link && rest == format!(" rel=\"{REL}\"")
                });
            assert!(is_known, "{inside:?} of {out:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_what_is_allowed_is_markup(
            text in "(<|>|/|a|b| |href=|\"|'|https:x|javascript:|&|;|#|script|br|amp|\\n|[a-zé<>]){0,40}",
        ) {
            let out = sanitised(&text);
            assert_safe(&out);
            assert_safe(&sanitised(&out));
        }
    }
}

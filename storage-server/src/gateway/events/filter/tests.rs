use proptest::prelude::*;
use storage_protocol::{Epoch, Revision};

use super::*;

fn filter(text: &str) -> Filter {
    Filter::parse(text).unwrap()
}

fn registered(text: &str) -> Filter {
    match parse_command(text) {
        Ok(Command::Register {
            filter,
            since: None,
        }) => filter,
        other => panic!("{text:?}: {other:?}"),
    }
}

#[test]
fn white_space_around_a_command_does_not_count_and_the_filter_stays_as_it_was_sent() {
    for text in [
        "register a.*.b",
        "  register a.*.b\r\n",
        "\tregister a.*.b  ",
    ] {
        assert_eq!(registered(text).as_str(), "a.*.b", "{text:?}");
    }
    // Split at the first blank: the others are the filter's.
    assert_eq!(registered("register  a.*.b c").as_str(), " a.*.b c");
    assert!(registered("register  a.*.b c").matches("a", &["save"], "b c"));
}

#[test]
fn what_is_no_command_is_named() {
    for (text, error) in [
        ("", CommandError::UnknownVerb),
        (" ", CommandError::UnknownVerb),
        ("hello", CommandError::UnknownVerb),
        ("Register a.b.c", CommandError::UnknownVerb),
        ("register\ta.b.c", CommandError::UnknownVerb),
        ("register", CommandError::NoFilter),
        ("register  ", CommandError::NoFilter),
        ("deregister", CommandError::NoFilter),
        ("register *", CommandError::ShortFilter),
        ("register a.b", CommandError::ShortFilter),
        ("deregister *", CommandError::ShortFilter),
        ("register a.b.c since=", CommandError::BadSince),
        ("register a.b.c since=-1", CommandError::BadSince),
        ("register a.b.c since=+1", CommandError::BadSince),
        (
            "register a.b.c since=99999999999999999999",
            CommandError::BadSince,
        ),
        (
            "deregister a.b.c since=5",
            CommandError::SinceWithoutRegister,
        ),
    ] {
        assert_eq!(parse_command(text), Err(error), "{text:?}");
    }
    let long = format!("register a.b.{}", "x".repeat(COMMAND_BYTES_MAX));
    assert_eq!(parse_command(&long), Err(CommandError::TooLong(long.len())));
    let longest = &long[..COMMAND_BYTES_MAX];
    assert!(parse_command(longest).is_ok());
}

#[test]
fn a_replay_begins_at_a_revision_or_a_position() {
    let since = |text: &str| match parse_command(text) {
        Ok(Command::Register { filter, since }) => (filter.as_str().to_owned(), since),
        other => panic!("{text:?}: {other:?}"),
    };
    let (text, place) = since("register a.*.b since=17");
    assert_eq!((text.as_str(), place), ("a.*.b", Some(Since::Revision(17))));
    let position = Position {
        epoch: Epoch(0xabc),
        revision: Revision(17),
    };
    let (text, place) = since("register a.*.b  since=0000000000000abc:17");
    assert_eq!(
        (text.as_str(), place),
        ("a.*.b", Some(Since::Position(position)))
    );
    // Not the last word, not a word of its own.
    for text in ["register a.*.b since=1 c", "register a.*.bsince=1"] {
        assert_eq!(since(text).1, None, "{text}");
    }
}

#[test]
fn keys_may_have_dots_and_lists_and_escapes_match() {
    assert!(filter("t.*.a.b.c").matches("t", &["save"], "a.b.c"));
    let lists = filter("profiles, params.create,delete.*");
    assert!(lists.matches("params", &["delete"], "any"));
    assert!(!lists.matches("params", &["update"], "any"));
    assert!(!lists.matches("params, profiles", &["delete"], "any"));
    let escaped = filter(r"a\1b.*.x\2y,\3");
    assert!(escaped.matches("a.b", &["save"], "x,y"));
    assert!(escaped.matches("a.b", &["save"], "*"));
    assert!(!escaped.matches("a.b", &["save"], "x"));
    assert!(filter(r"\4\.*.\").matches(r"\4\", &["save"], r"\"));
    assert!(!filter("PROFILES.*.*").matches("profiles", &["save"], "a"));
    assert!(filter("t.update.k").matches("t", &["save", "update"], "k"));
    // What an escape stands for is not read again.
    assert!(filter(r"t.*.\\1").matches("t", &["a"], r"\."));
}

#[test]
fn the_range_is_the_smallest_with_all_that_can_match() {
    let range = |text: &str| filter(text).range(64).unwrap();
    assert_eq!(range("a.*.b"), KeyRange::single("a/b"));
    assert_eq!(range("a.*.*"), KeyRange::prefix("a/"));
    assert_eq!(range("*.*.b"), KeyRange::all());
    assert_eq!(range("a,c.*.*"), KeyRange::between("a/", "c0"));
    assert_eq!(range("a.*.x,b,k"), KeyRange::between("a/b", "a/x\0"));
    assert_eq!(filter("a/b.*.*").range(64), None);
    // A key that is longer than any gives no bound that no watch takes.
    for keys in ["x".repeat(200), format!("{},y", "x".repeat(200))] {
        let range = range(&format!("a.*.{keys}"));
        range.check_bounds(64).unwrap();
    }
}

/// The same by the words of the specification, without a thought for time.
fn naive(filter: &str, kind: &str, action: &str, key: &str) -> Option<bool> {
    let first = filter.find('.')?;
    let second = first + 1 + filter[first + 1..].find('.')?;
    let parts = [
        (&filter[..first], kind),
        (&filter[first + 1..second], action),
        (&filter[second + 1..], key),
    ];
    Some(parts.iter().all(|(part, value)| {
        let mut names = part.split(',');
        names.any(|name| {
            let name = name.trim();
            let plain = name
                .replace("\\1", "\u{1}")
                .replace("\\2", "\u{2}")
                .replace("\\3", "\u{3}")
                .replace('\u{1}', ".")
                .replace('\u{2}', ",")
                .replace('\u{3}', "*");
            name == "*" || plain == *value
        })
    }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_filter_matches_as_the_naive_model(
        text in r"[ab*,\\123 ]{0,6}[.]?[ab*, ]{0,4}[.]?[ab*,.\\12]{0,6}",
        kind in r"[ab,*.]{0,2}",
        action in "[ab]{0,2}",
        key in r"[ab.,*]{0,3}",
    ) {
        let expected = naive(&text, &kind, &action, &key);
        match Filter::parse(&text) {
            Ok(filter) => prop_assert_eq!(Some(filter.matches(&kind, &[&action], &key)), expected),
            Err(_) => prop_assert_eq!(None, expected),
        }
    }

    #[test]
    fn what_matches_lies_in_the_range(
        text in r"[ab,]{1,4}[.][*][.][ab*,]{1,4}",
        kind in "[ab]{1,2}",
        key in "[ab]{0,40}",
        key_bytes_max in 16_usize..64,
    ) {
        let filter = Filter::parse(&text).unwrap();
        let stored = format!("{kind}/{key}");
        if filter.matches(&kind, &["save"], &key) && stored.len() <= key_bytes_max {
            prop_assert!(filter.range(key_bytes_max).unwrap().contains(stored.as_bytes()));
        }
        if let Some(range) = filter.range(key_bytes_max) {
            range.check_bounds(key_bytes_max).unwrap();
        }
    }

    #[test]
    fn no_text_is_too_odd(text in any::<String>(), verb in "(de)?register ") {
        let _ = parse_command(&text);
        if let Ok(Command::Register { filter, .. }) = parse_command(&(verb + &text)) {
            filter.matches("a", &["b"], "c");
            filter.range(4096);
        }
    }
}

//! Sets of prefixes, alone and against a model: a list that is searched from front to back.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use storage_protocol::{Key, KeyRange};

use super::*;

fn prefixes(texts: &[&str]) -> Prefixes {
    texts
        .iter()
        .map(|text| Key::copy_from_slice(text.as_bytes()))
        .collect()
}

fn between(start: &str, end: &str) -> KeyRange {
    KeyRange::between(start.to_owned(), end.to_owned())
}

#[test]
fn what_a_shorter_prefix_covers_is_left_out() {
    let set = prefixes(&["b", "ab", "a", "abc", "b", "ba"]);
    assert_eq!(set.as_slice(), ["a", "b"]);
    assert_eq!(set, prefixes(&["a", "b"]));
    assert_ne!(set, prefixes(&["a"]));
    assert!(prefixes(&["x", ""]).is_all() && prefixes(&["", "x"]) == Prefixes::all());
    assert!(prefixes(&[]).is_none() && prefixes(&[]) == Prefixes::none());
    assert!(!Prefixes::all().is_none() && !Prefixes::none().is_all() && !set.is_all());
}

#[test]
fn a_key_is_in_it_if_it_begins_with_one() {
    let set = prefixes(&["a/", "b"]);
    for (key, expected) in [("a/", true), ("a/x", true), ("b", true), ("bb", true)]
        .into_iter()
        .chain(["", "a", "a.", "a0", "c", "A/"].map(|key| (key, false)))
    {
        assert_eq!(set.contains(key.as_bytes()), expected, "{key}");
    }
    assert!(Prefixes::all().contains(b"") && Prefixes::all().contains(b"\xff"));
    assert!(!Prefixes::none().contains(b""));
}

#[test]
fn a_range_is_cut_to_the_prefixes() {
    let set = prefixes(&["b", "d"]);
    assert_eq!(set.cut(&between("e", "f")), Cut::Nothing);
    assert_eq!(set.cut(&between("c", "d")), Cut::Nothing);
    assert_eq!(
        set.cut(&KeyRange::prefix("bx")),
        Cut::One(KeyRange::prefix("bx"))
    );
    assert_eq!(set.cut(&between("a", "bb")), Cut::One(between("b", "bb")));
    assert_eq!(set.cut(&between("ba", "c0")), Cut::One(between("ba", "c")));
    let cut = set.cut(&KeyRange::all());
    let parts = vec![between("b", "c"), between("d", "e")];
    let hull = between("b", "e");
    assert_eq!(cut.hull(), Some(&hull));
    assert_eq!(cut.parts(), parts);
    assert_eq!(cut, Cut::Several { hull, parts });
    assert!(cut.contains(b"b") && cut.contains(b"d1") && !cut.contains(b"c") && !cut.contains(b""));
}

#[test]
fn all_leaves_a_range_as_it_is_and_none_leaves_nothing() {
    for range in [
        KeyRange::all(),
        between("a", "b"),
        KeyRange::single("x"),
        KeyRange::prefix(""),
    ] {
        assert_eq!(Prefixes::all().cut(&range), Cut::One(range.clone()));
        assert_eq!(Prefixes::none().cut(&range), Cut::Nothing);
    }
    assert_eq!(Cut::Nothing.hull(), None);
    assert!(Cut::Nothing.parts().is_empty() && !Cut::Nothing.contains(b""));
}

#[test]
fn empty_and_inverted_ranges_leave_nothing() {
    for range in [between("a", "a"), between("b", "a"), between("", "")] {
        assert_eq!(Prefixes::all().cut(&range), Cut::Nothing);
        assert_eq!(prefixes(&["a", "b"]).cut(&range), Cut::Nothing);
    }
}

#[test]
fn the_last_prefixes_reach_to_the_end_and_neighbours_are_joined() {
    let set: Prefixes = [&b"\xff"[..], b"\xfe\xff", b"a\xff", b"b"]
        .map(Key::from_static)
        .into_iter()
        .collect();
    let Cut::Several { hull, parts } = set.cut(&KeyRange::all()) else {
        panic!("{set:?}");
    };
    assert_eq!(hull.end, None);
    assert_eq!(parts.len(), 2);
    assert_eq!(parts[0], KeyRange::between(&b"a\xff"[..], "c"));
    assert_eq!(
        (&parts[1].start[..], &parts[1].end),
        (&b"\xfe\xff"[..], &None)
    );
    let single: Prefixes = [Key::from_static(b"\xff\xff")].into_iter().collect();
    let to_end = KeyRange {
        start: Key::from_static(b"\xff\xff"),
        end: None,
    };
    assert_eq!(single.cut(&KeyRange::all()), Cut::One(to_end));
}

#[test]
fn debug_shows_a_few() {
    assert_eq!(format!("{:?}", Prefixes::all()), "all");
    assert_eq!(format!("{:?}", Prefixes::none()), "[]");
    assert_eq!(format!("{:?}", prefixes(&["a", "b"])), r#"["a", "b"]"#);
    let many = prefixes(&["1", "2", "3", "4", "5", "6"]);
    assert_eq!(format!("{many:?}"), r#"["1", "2", "3", "4", and 2 more]"#);
}

#[test]
fn a_hundred_thousand_prefixes_are_made_and_asked_quickly() {
    let start = Instant::now();
    let set: Prefixes = (0..100_000u32)
        .rev()
        .map(|n| Key::from(format!("{n}")))
        .collect();
    assert_eq!(set.as_slice().len(), 10, "0 to 9 cover the rest");
    let set: Prefixes = (0..100_000u32)
        .rev()
        .map(|n| Key::from(format!("{n:06}/")))
        .collect();
    assert_eq!(set.intersect(&set), set);
    for n in 0..100_000u32 {
        assert!(set.contains(format!("{n:06}/x").as_bytes()));
        assert_eq!(
            set.cut(&KeyRange::prefix(format!("{n:06}/x")))
                .parts()
                .len(),
            1
        );
    }
    assert_eq!(set.cut(&KeyRange::all()).parts().len(), 100_000);
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// Of these, ends of prefixes touch the next, and overflow.
const LETTERS: [u8; 4] = [0x00, 0x01, 0xfe, 0xff];

fn key(bytes_max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(prop::sample::select(LETTERS.to_vec()), 0..=bytes_max)
}

fn range() -> impl Strategy<Value = KeyRange> {
    (key(3), prop::option::of(key(3))).prop_map(|(start, end)| KeyRange {
        start: start.into(),
        end: end.map(Key::from),
    })
}

/// Lists of up to eight prefixes, the empty one among them less often than the others.
fn lists() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let prefix =
        prop_oneof![1 => key(0), 30 => key(3).prop_filter("not empty", |key| !key.is_empty())];
    vec(prefix, 0..=8)
}

fn made(list: &[Vec<u8>]) -> Prefixes {
    list.iter()
        .map(|prefix| Key::copy_from_slice(prefix))
        .collect()
}

/// Every key of up to four letters.
fn all_keys() -> Vec<Vec<u8>> {
    let mut keys = vec![Vec::new()];
    let mut first = 0;
    for _ in 0..4 {
        let last = keys.len();
        for place in first..last {
            keys.extend(LETTERS.map(|letter| [&keys[place][..], &[letter]].concat()));
        }
        first = last;
    }
    keys
}

fn naive(list: &[Vec<u8>], key: &[u8]) -> bool {
    list.iter().any(|prefix| key.starts_with(prefix))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn prefixes_contain_what_a_search_of_the_list_finds(list in lists()) {
        let set = made(&list);
        for key in all_keys() {
            prop_assert_eq!(set.contains(&key), naive(&list, &key), "{:?} {:?}", set, key);
        }
        for pair in set.as_slice().windows(2) {
            prop_assert!(pair[0] < pair[1] && !pair[1].starts_with(&pair[0]));
        }
        prop_assert_eq!(set.is_all(), list.iter().any(Vec::is_empty));
        prop_assert_eq!(set.is_none(), list.is_empty());
    }

    #[test]
    fn a_cut_has_the_keys_of_the_range_that_are_allowed(list in lists(), range in range()) {
        let cut = made(&list).cut(&range);
        for key in all_keys() {
            let expected = naive(&list, &key) && range.contains(&key);
            let found = cut.parts().iter().filter(|part| part.contains(&key)).count();
            prop_assert_eq!(found, usize::from(expected), "{:?} {:?}", cut, key);
            prop_assert_eq!(cut.contains(&key), expected, "{:?} {:?}", cut, key);
            prop_assert!(!expected || cut.hull().unwrap().contains(&key));
        }
        prop_assert!(cut.parts().iter().all(|part| !part.is_empty()), "{:?}", cut);
        for pair in cut.parts().windows(2) {
            let end = pair[0].end.as_ref().unwrap();
            prop_assert!(*end < pair[1].start, "not in order, or not joined: {:?}", cut);
        }
        if let Cut::Several { hull, parts } = &cut {
            prop_assert!(parts.len() > 1);
            prop_assert_eq!(&hull.start, &parts[0].start);
            prop_assert_eq!(&hull.end, &parts[parts.len() - 1].end);
        }
        if list.iter().any(|prefix| prefix.is_empty()) && !range.is_empty() {
            prop_assert_eq!(cut, Cut::One(range));
        }
    }

    #[test]
    fn an_intersection_has_the_keys_of_both(ours in lists(), theirs in lists()) {
        let both = made(&ours).intersect(&made(&theirs));
        for key in all_keys() {
            let expected = naive(&ours, &key) && naive(&theirs, &key);
            prop_assert_eq!(both.contains(&key), expected, "{:?} {:?}", both, key);
        }
        prop_assert_eq!(&both, &made(&theirs).intersect(&made(&ours)));
        prop_assert_eq!(&both, &both.as_slice().iter().cloned().collect());
        prop_assert_eq!(made(&ours).intersect(&Prefixes::all()), made(&ours));
        prop_assert!(made(&ours).intersect(&Prefixes::none()).is_none());
    }

    #[test]
    fn sets_are_equal_if_they_have_the_same_keys(ours in lists(), theirs in lists()) {
        let same = all_keys().iter().all(|key| naive(&ours, key) == naive(&theirs, key));
        prop_assert_eq!(made(&ours) == made(&theirs), same);
    }
}

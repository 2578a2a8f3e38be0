//! Rules and roles that their authors can hardly have meant.

use std::time::{Duration, Instant};

use super::*;

fn texts(set: &RuleSet) -> Vec<String> {
    set.warnings().iter().map(Warning::to_string).collect()
}

/// The warnings of one rule, where it is the only one; there is a role `ops` with members.
fn of(short: Short<'_>) -> Vec<String> {
    texts(&set_with_roles(&[short], &[("ops", &["cert:a"])]))
}

#[track_caller]
fn assert_texts(found: &[String], expected: &[&str]) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (text, part) in found.iter().zip(expected) {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[test]
fn rules_that_give_something_are_not_warned_of() {
    for short in [
        ("*", "*", "", "read write watch admin"),
        ("role:ops", "model", "a", "read"),
        ("cert:a", "system", "", "admin"),
        ("cert:a", "system*", "", "admin read"),
        ("anonymous", "systems*", "x", "watch"),
        ("cert:a", "*system.secrets", "", "read"),
    ] {
        assert_texts(&of(short), &[]);
    }
}

#[test]
fn rules_for_nobody_are_warned_of() {
    let nobody =
        "rule[0] of the configuration: principal \"robot-*\" matches nobody: principals begin with";
    assert_texts(&of(("robot-*", "*", "", "read")), &[nobody]);
    let unknown = "rule[0] of the configuration: there is no role \"dev\", so it gives nothing";
    assert_texts(&of(("role:dev", "*", "", "read")), &[unknown]);
}

#[test]
fn roles_without_members_are_warned_of_and_rules_for_them() {
    let rules = [
        ("role:empty", "*", "", "read"),
        ("role:nobody", "*", "", "read"),
    ];
    let mut builder = RuleSet::builder();
    for (place, short) in rules.into_iter().enumerate() {
        builder.add_rule(Origin::Stored(format!("r{place}")), rule(short));
    }
    builder.add_role(Origin::Config(0), "empty".parse().unwrap(), &role(&[]));
    let stored = Origin::Stored("nobody".into());
    builder.add_role(stored.clone(), "nobody".parse().unwrap(), &role(&["ann"]));
    builder.add_role(stored, "some".parse().unwrap(), &role(&["cert:a", "bob"]));
    let set = builder.build();
    assert_texts(
        &texts(&set),
        &[
            "stored rule \"r0\": nobody has role \"empty\", so it gives nothing",
            "stored rule \"r1\": nobody has role \"nobody\", so it gives nothing",
            "role \"empty\" of the configuration: it has no members",
            "stored role \"nobody\": member \"ann\" matches nobody",
            "stored role \"some\": member \"bob\" matches nobody",
        ],
    );
    assert_eq!(set.warnings()[0].origin, Origin::Stored("r0".into()));
    assert_eq!(set.warnings()[2].origin, Origin::Config(0));
}

#[test]
fn rules_for_keyspaces_that_cannot_be_are_warned_of() {
    for keyspace in ["Model", "a/*", "-x"] {
        let expected = format!("keyspace {keyspace:?} matches none: their names are of the form");
        assert_texts(&of(("*", keyspace, "", "read")), &[&expected]);
    }
}

#[test]
fn rules_for_the_servers_own_keyspaces_are_warned_of() {
    let secrets = "system.secrets is open to nobody, so it gives nothing";
    assert_texts(&of(("*", "system.secrets", "", "admin")), &[secrets]);
    let wider = "\"system.secrets*\" does not open system.secrets";
    assert_texts(&of(("*", "system.secrets*", "", "admin")), &[wider]);
    let without = "read and write without admin gives nothing in the server's own keyspaces";
    assert_texts(&of(("*", "system", "", "read write")), &[without]);
    assert_texts(&of(("*", "system.*", "x", "write read")), &[without]);
    let part =
        "admin does not count with prefix \"rules/\", but for all keys only, so it gives nothing";
    assert_texts(&of(("*", "system", "rules/", "admin read")), &[part]);
    let both = "keyspace \"system*\" matches the server's own (system) too, where nothing is given without admin";
    assert_texts(&of(("*", "system*", "", "read")), &[both]);
}

#[test]
fn admin_on_a_part_of_the_keys_is_warned_of() {
    let nothing =
        "admin does not count with prefix \"x\", but for all keys only, so it gives nothing";
    assert_texts(&of(("*", "model", "x", "admin")), &[nothing]);
    let found = of(("*", "model", "x", "admin read"));
    assert_texts(
        &found,
        &["admin does not count with prefix \"x\", but for all keys only"],
    );
    assert!(found[0].ends_with("only"));
}

#[test]
fn of_the_same_rule_twice_the_later_one_is_warned_of() {
    let set = set(&[
        ("*", "model", "x", "read watch"),
        ("cert:a", "model", "x", "read watch"),
        ("*", "model", "x", "watch read"),
        ("*", "model", "x", "watch read admin"),
    ]);
    let first = "it gives the same as rule[0] of the configuration: \"*\" is allowed read and watch on keys";
    assert_texts(
        &texts(&set),
        &[
            &format!("rule[2] of the configuration: {first}"),
            "rule[3] of the configuration: admin does not count",
            &format!("rule[3] of the configuration: {first}"),
        ],
    );
}

#[test]
fn rules_within_a_wider_one_for_the_same_principals_are_warned_of() {
    let wide = ("role:ops", "model*", "a", "read write");
    let covered =
        "rule[0] of the configuration: it gives nothing beyond rule[1] of the configuration";
    for narrow in [
        ("role:ops", "model*", "a", "read"),
        ("role:ops", "model", "a", "read write"),
        ("role:ops", "model*x", "ab", "write"),
        ("role:ops", "model", "ab", "write admin"),
    ] {
        let set = set_with_roles(&[narrow, wide], &[("ops", &["cert:a"])]);
        let found = texts(&set);
        assert!(
            found.iter().any(|text| text.starts_with(covered)),
            "{found:?}"
        );
    }
    for other in [
        ("role:ops", "model*", "", "read"),
        ("role:ops", "model*", "b", "read"),
        ("role:ops", "m*", "a", "read"),
        ("role:ops", "model*", "a", "watch"),
        ("cert:a", "model*", "a", "read"),
    ] {
        let set = set_with_roles(&[other, wide], &[("ops", &["cert:a"])]);
        assert_texts(&texts(&set), &[]);
    }
}

#[test]
fn what_covers_in_the_servers_own_keyspaces_is_admin() {
    let found = set(&[
        ("*", "system", "", "admin read"),
        ("*", "system", "", "admin"),
    ])
    .warnings();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].text.contains("it gives the same as rule[0]"));
    let found = set(&[
        ("*", "system", "", "admin"),
        ("*", "*", "", "read write watch admin"),
    ]);
    assert_texts(&texts(&found), &[]);
    let found = set(&[
        ("*", "system.a", "", "read admin"),
        ("*", "system*", "", "admin"),
    ]);
    assert_texts(
        &texts(&found),
        &["rule[0] of the configuration: it gives nothing beyond rule[1]"],
    );
}

#[test]
fn a_rule_that_gives_nothing_covers_none_and_is_not_said_to_be_covered() {
    let found = set(&[("ann", "*", "", "read"), ("ann", "*", "", "read")]);
    assert_texts(&texts(&found), &["matches nobody", "matches nobody"]);
}

#[test]
fn rules_that_cannot_be_read_are_warned_of() {
    let mut builder = RuleSet::builder();
    let reason = format!("a\n{}", "x".repeat(10_000));
    builder.add_unreadable_rule(Origin::Stored("x".into()), reason);
    let found = builder.build().warnings();
    assert_eq!(found.len(), 1);
    let text = &found[0].text;
    assert!(text.starts_with("stored rule \"x\": it cannot be read and gives nothing: a\\nxxx"));
    assert!(text.len() < 500);
}

#[test]
fn rules_that_take_long_to_compare_are_not_all_compared() {
    let mut builder = RuleSet::builder();
    for place in 0..10_000 {
        let keyspace = format!("*{place:05}*");
        builder.add_rule(Origin::Config(place), rule(("*", &keyspace, "", "read")));
    }
    let set = builder.build();
    let start = Instant::now();
    assert_texts(&texts(&set), &[]);
    assert!(start.elapsed() < Duration::from_secs(10));
}

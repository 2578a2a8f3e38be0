//! What sets of rules allow.

use std::time::{Duration, Instant};

use super::Permission::{Admin, Read, Watch, Write};
use super::*;

#[test]
fn without_rules_all_may_do_everything_but_in_the_servers_own_keyspaces() {
    let set = set_with_roles(&[], &[("ops", &["cert:a"])]);
    assert!(!set.has_rules());
    for principal in ["cert:a", "user:ann", "anonymous"] {
        assert_eq!(grants(&set, principal, "model"), Grants::all());
        assert!(grants(&set, principal, "system.secrets").is_none());
    }
    for name in ["system", "system.rules"] {
        assert_eq!(grants(&set, "cert:a", name), Grants::all());
        assert_eq!(grants(&set, "anonymous", name), Grants::none());
    }
}

#[test]
fn with_any_rule_what_is_not_given_is_denied() {
    let set = set(&[("cert:a", "model", "x/", "read watch")]);
    assert!(set.has_rules());
    let a = grants(&set, "cert:a", "model");
    assert!(a.allows(Read, b"x/") && a.allows(Watch, b"x/1"));
    assert!(!a.allows(Read, b"x") && !a.allows(Write, b"x/1") && !a.allows(Admin, b"x/1"));
    assert!(grants(&set, "cert:b", "model").is_none());
    assert!(grants(&set, "cert:a", "models").is_none());
    assert!(grants(&set, "cert:a", "system").is_none());
}

#[test]
fn a_rule_that_cannot_be_read_closes_the_store_too() {
    let mut builder = RuleSet::builder();
    builder.add_unreadable_rule(Origin::Stored("x".into()), RuleError::NotObject);
    let set = builder.build();
    assert!(set.has_rules());
    assert!(grants(&set, "cert:a", "model").is_none());
    assert!(!set.has_system_admin());
}

#[test]
fn what_several_rules_give_is_united() {
    let set = set(&[
        ("cert:*", "model*", "b/", "read"),
        ("cert:a", "model", "a/", "read"),
        ("*", "model", "a/a/", "read write"),
    ]);
    let a = grants(&set, "cert:a", "model");
    let read = ["a/", "b/"].map(storage_protocol::Key::from);
    assert_eq!(a.read, read.into_iter().collect());
    assert_eq!(
        a.write,
        [storage_protocol::Key::from("a/a/")].into_iter().collect()
    );
    assert!(a.watch.is_none() && !a.admin && !a.is_none());
    assert!(grants(&set, "anonymous", "model").allows(Read, b"a/a/"));
    assert!(!grants(&set, "anonymous", "model").allows(Read, b"b/"));
}

#[test]
fn equal_grants_are_equal_however_they_were_given() {
    let parts = set(&[
        ("*", "k", "a", "read"),
        ("*", "k", "", "read"),
        ("*", "k", "b", "read"),
    ]);
    let whole = set(&[("*", "*", "", "read")]);
    assert_eq!(grants(&parts, "cert:a", "k"), grants(&whole, "cert:a", "k"));
    let less = set(&[("*", "k", "a", "read")]);
    assert_ne!(grants(&parts, "cert:a", "k"), grants(&less, "cert:a", "k"));
}

#[test]
fn admin_counts_for_all_keys_only() {
    let set = set(&[
        ("cert:a", "model", "", "admin"),
        ("cert:b", "model", "x", "admin read"),
    ]);
    let a = grants(&set, "cert:a", "model");
    assert!(a.allows(Admin, b"any") && !a.is_none());
    assert!(!a.allows(Read, b"any") && !a.allows(Write, b"any"));
    let b = grants(&set, "cert:b", "model");
    assert!(!b.allows(Admin, b"x") && b.allows(Read, b"x"));
}

#[test]
fn a_star_does_not_give_the_servers_own_keyspaces_away() {
    let set = set(&[("*", "*", "", "read write watch admin")]);
    for name in ["system", "system.rules", "system.secrets"] {
        assert!(grants(&set, "cert:a", name).is_none(), "{name}");
    }
    assert_eq!(grants(&set, "cert:a", "systems"), Grants::all());
    assert!(!set.has_system_admin());
}

#[test]
fn in_system_admin_is_all_that_counts() {
    let set = set(&[
        ("cert:root", "system", "", "admin"),
        ("cert:b", "system", "", "read write watch"),
        ("cert:c", "system", "rules/", "admin read"),
        ("cert:d", "system*", "", "admin"),
    ]);
    assert_eq!(grants(&set, "cert:root", "system"), Grants::all());
    assert!(grants(&set, "cert:root", "system.rules").is_none());
    assert!(grants(&set, "cert:b", "system").is_none());
    assert!(grants(&set, "cert:c", "system").is_none());
    assert_eq!(grants(&set, "cert:d", "system.rules"), Grants::all());
    let outside = grants(&set, "cert:d", "systems");
    assert!(outside.admin && outside.read.is_none());
}

#[test]
fn the_secrets_are_open_to_nobody() {
    let set = set(&[
        ("*", "system.secrets", "", "read write watch admin"),
        ("*", "system*", "", "admin"),
    ]);
    assert!(grants(&set, "cert:a", "system.secrets").is_none());
    assert_eq!(grants(&set, "cert:a", "system.secrets.old"), Grants::all());
}

#[test]
fn members_of_a_role_have_what_it_has_wherever_they_are_named() {
    let mut builder = RuleSet::builder();
    builder.add_role(
        Origin::Config(0),
        "ops".parse().unwrap(),
        &role(&["cert:a", "user:*"]),
    );
    builder.add_rule(Origin::Config(0), rule(("role:ops", "*", "", "read")));
    builder.add_rule(Origin::Config(1), rule(("role:none", "*", "", "write")));
    builder.add_rule(Origin::Config(2), rule(("role:dev", "*", "", "watch")));
    builder.add_role(
        Origin::Stored("ops".into()),
        "ops".parse().unwrap(),
        &role(&["cert:b"]),
    );
    builder.add_role(
        Origin::Stored("dev".into()),
        "dev".parse().unwrap(),
        &role(&["cert:b"]),
    );
    let set = builder.build();
    for (principal, read, watch) in [
        ("cert:a", true, false),
        ("user:ann", true, false),
        ("cert:b", true, true),
        ("cert:c", false, false),
        ("role:ops", false, false),
    ] {
        let grants = grants(&set, principal, "model");
        assert_eq!(grants.allows(Read, b"k"), read, "{principal}");
        assert_eq!(grants.allows(Watch, b"k"), watch, "{principal}");
        assert!(!grants.allows(Write, b"k"), "{principal}");
    }
}

#[test]
fn whether_anybody_may_administer_system() {
    assert!(set(&[]).has_system_admin());
    for (short, expected) in [
        (("cert:a", "system", "", "admin"), true),
        (("*", "system*", "", "admin read"), true),
        (("anonymous", "s*", "", "admin"), false),
        (("cert:a", "system.*", "", "admin"), false),
        (("cert:a", "*", "", "admin"), false),
        (("cert:a", "system", "x", "admin"), false),
        (("cert:a", "system", "", "read write watch"), false),
        (("robot-*", "system", "", "admin"), false),
        (("role:ops", "system", "", "admin"), true),
        (("role:empty", "system", "", "admin"), false),
        (("role:nobody", "system", "", "admin"), false),
        (("role:none", "system", "", "admin"), false),
    ] {
        let roles: [(&str, &[&str]); 3] = [
            ("ops", &["x", "cert:a"]),
            ("empty", &[]),
            ("nobody", &["robot-*"]),
        ];
        let set = set_with_roles(&[("cert:b", "model", "", "read"), short], &roles);
        assert_eq!(set.has_system_admin(), expected, "{short:?}");
    }
}

#[test]
fn debug_tells_no_more_than_counts() {
    let set = set(&[("cert:a", "model", "secret", "read")]);
    assert_eq!(
        format!("{set:?}"),
        "RuleSet { rules: 1, roles: 0, unreadable: 0 }"
    );
}

#[test]
fn ten_thousand_rules_take_milliseconds() {
    let mut builder = RuleSet::builder();
    for place in 0..10_000 {
        let prefix = format!("robots/{:04}/", place % 5_000);
        let keyspace = format!("m{}del*", "*".repeat(place / 5_000));
        builder.add_rule(
            Origin::Config(place),
            rule(("role:r", &keyspace, &prefix, "read")),
        );
    }
    let members: Vec<String> = (0..1_000).map(|n| format!("cert:*-{n}")).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    builder.add_role(Origin::Config(0), "r".parse().unwrap(), &role(&members));
    let set = builder.build();
    let start = Instant::now();
    let grants = grants(&set, "cert:robot-999", "mdel-1");
    assert_eq!(grants.read.as_slice().len(), 5_000);
    assert!(grants.allows(Read, b"robots/4999/x") && !grants.allows(Read, b"robots/5000/"));
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    let start = Instant::now();
    let warnings = set.warnings();
    assert!(!warnings.is_empty());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

//! What is said of decisions.

use super::Permission::{Admin, Read, Write};
use super::*;

fn reason(
    set: &RuleSet,
    principal: &str,
    name: &str,
    key: &[u8],
    permission: Permission,
) -> String {
    let explanation = set.explain(principal, &keyspace(name), key, permission);
    assert_eq!(
        explanation.allowed,
        grants(set, principal, name).allows(permission, key)
    );
    explanation.reason
}

#[test]
fn the_first_rule_that_allows_it_is_told() {
    let mut builder = RuleSet::builder();
    builder.add_rule(Origin::Config(0), rule(("cert:a", "model", "x/", "write")));
    builder.add_rule(
        Origin::Stored("ops\n1".into()),
        rule(("cert:*", "model*", "x/", "read")),
    );
    builder.add_rule(Origin::Config(1), rule(("*", "*", "", "read")));
    let set = builder.build();
    let explanation = set.explain("cert:a", &keyspace("model"), b"x/\xff", Read);
    assert!(explanation.allowed);
    let (origin, decides) = explanation.rule.unwrap();
    assert_eq!(origin, Origin::Stored("ops\n1".into()));
    assert_eq!(decides, rule(("cert:*", "model*", "x/", "read")));
    assert_eq!(
        explanation.reason,
        r#""cert:a" is allowed read on key "x/\xff" in keyspace "model": stored rule "ops\n1" says: "cert:*" is allowed read on keys with prefix "x/" in keyspace "model*""#
    );
}

#[test]
fn of_a_denial_the_three_closest_rules_are_told_the_closest_first() {
    let set = set(&[
        ("cert:a", "model", "robots/8", "read"),
        ("cert:a", "model", "zebras/", "write"),
        ("cert:a", "model", "robots/", "write"),
        ("*", "*", "robots/77/", "read watch"),
        ("cert:b", "model", "", "read"),
        ("cert:a", "models", "", "read"),
    ]);
    let explanation = set.explain("cert:a", &keyspace("model"), b"robots/7", Read);
    assert!(!explanation.allowed && explanation.rule.is_none());
    assert_eq!(
        explanation.reason,
        "\"cert:a\" is not allowed read on key \"robots/7\" in keyspace \"model\": no rule allows it; \
         rule[2] of the configuration allows only write; \
         rule[3] of the configuration allows read with prefix \"robots/77/\" only; \
         rule[0] of the configuration allows read with prefix \"robots/8\" only; \
         others for this principal and keyspace: 1"
    );
    let far = reason(&set, "cert:a", "model", b"x", Write);
    assert!(far.contains("rule[1] of the configuration allows write with prefix \"zebras/\" only"));
    let neither = reason(&set, "cert:a", "model", b"zebras", Permission::Watch);
    assert!(
        neither
            .contains("; rule[1] of the configuration allows only write, with prefix \"zebras/\"")
    );
}

#[test]
fn nobody_is_told_of_rules_for_others() {
    let set = set(&[("cert:b", "model", "", "read")]);
    assert_eq!(
        reason(&set, "cert:a\u{1b}", "model", b"k", Read),
        r#""cert:a\u{1b}" is not allowed read on key "k" in keyspace "model": no rule allows it; none is for this principal and keyspace"#
    );
}

#[test]
fn admin_is_explained_without_a_key() {
    let set = set(&[
        ("cert:a", "model", "x", "admin"),
        ("cert:a", "model", "", "read write"),
    ]);
    assert_eq!(
        reason(&set, "cert:a", "model", b"x", Admin),
        "\"cert:a\" is not allowed admin in keyspace \"model\": no rule allows it; \
         rule[1] of the configuration allows only read and write; \
         rule[0] of the configuration allows admin with prefix \"x\" only"
    );
}

#[test]
fn for_admin_no_prefix_is_closer_than_another() {
    let set = set(&[
        ("cert:a", "model", "x", "admin"),
        ("cert:a", "model", "xy", "admin"),
    ]);
    let text = reason(&set, "cert:a", "model", b"xy", Admin);
    assert!(text.find("rule[0]").unwrap() < text.find("rule[1]").unwrap());
}

#[test]
fn the_servers_own_keyspaces_are_explained() {
    let open = set(&[]);
    assert_eq!(
        reason(&open, "cert:a", "system", b"k", Read),
        r#""cert:a" is allowed read on key "k" in keyspace "system": there are no access rules"#
    );
    assert!(reason(&open, "anonymous", "system", b"k", Read).contains("closed to anonymous"));
    assert!(reason(&open, "cert:a", "system.secrets", b"k", Read).contains("open to nobody"));
    let set = set(&[
        ("*", "system*", "", "read"),
        ("*", "system*", "rules/", "admin"),
        ("cert:a", "system", "", "admin"),
    ]);
    assert_eq!(
        reason(&set, "cert:b", "system", b"rules/1", Read),
        "\"cert:b\" is not allowed read on key \"rules/1\" in keyspace \"system\": no rule allows it, which takes admin without a \
         prefix in the server's own keyspaces; rule[0] of the configuration allows only read; \
         rule[1] of the configuration allows admin with prefix \"rules/\" only"
    );
    assert!(
        reason(&set, "cert:a", "system", b"k", Write).contains("rule[2] of the configuration says")
    );
    let secrets = set.explain("cert:a", &keyspace("system.secrets"), b"k", Read);
    assert!(!secrets.allowed && secrets.reason.contains("open to nobody"));
}

#[test]
fn rules_that_cannot_be_read_are_counted() {
    let mut builder = RuleSet::builder();
    builder.add_unreadable_rule(Origin::Stored("x".into()), "broken");
    let text = reason(&builder.build(), "cert:a", "model", b"k", Read);
    assert!(text.ends_with("; rules that cannot be read: 1"), "{text}");
}

#[test]
fn long_keys_and_prefixes_make_no_long_sentences() {
    let prefix = "p".repeat(4096);
    let set = set(&[("cert:a", "model", prefix.as_str(), "read"); 5]);
    assert!(reason(&set, "cert:a", "model", &[0; 4096], Read).len() < 1500);
}

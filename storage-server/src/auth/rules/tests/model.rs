//! Sets of rules against a model: each rule is asked whether it matches.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::auth::rules::overlap::{Filed, covers};

const PRINCIPALS: [&str; 5] = ["cert:a", "cert:ab", "user:a", "user:b", "anonymous"];
const SUBJECTS: [&str; 12] = [
    "*",
    "cert:*",
    "cert:a",
    "cert:a*",
    "user:a",
    "*a",
    "anonymous",
    "role:r",
    "role:s",
    "role:none",
    "a",
    "cert:**",
];
const MEMBERS: [&str; 5] = ["*", "cert:a", "user:*", "anonymous", "b"];
const KEYSPACES: [&str; 7] = [
    "a",
    "ab",
    "system",
    "system.a",
    "system.secrets",
    "systems",
    "b.system",
];
const PATTERNS: [&str; 15] = [
    "*",
    "a*",
    "a",
    "*b",
    "ab",
    "a**",
    "system",
    "system*",
    "system.*",
    "system.secrets",
    "system.secrets*",
    "s*",
    "A",
    "*system",
    "systems",
];
const PREFIXES: [&str; 6] = ["", "", "a", "ab", "b", "ba"];
const KEYS: [&str; 9] = ["", "a", "b", "aa", "ab", "ba", "aba", "abb", "c"];

type Roles = [Vec<&'static str>; 2];

#[derive(Clone, Debug)]
struct Model {
    rules: Vec<(&'static str, &'static str, &'static str, Vec<Permission>)>,
    /// Of `r` and `s`.
    roles: Roles,
}

fn models(rules_max: usize) -> impl Strategy<Value = Model> {
    let select = |of: &[&'static str]| prop::sample::select(of.to_vec());
    let allow = prop::sample::subsequence(Permission::ALL.to_vec(), 1..=4);
    let rules = (
        select(&SUBJECTS),
        select(&PATTERNS),
        select(&PREFIXES),
        allow,
    );
    let role = || vec(select(&MEMBERS), 0..3);
    (vec(rules, 0..=rules_max), role(), role()).prop_map(|(rules, r, s)| Model {
        rules,
        roles: [r, s],
    })
}

/// Tries each length of what a star stands for.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|taken| glob(rest, &text[taken..])),
        Some((c, rest)) => text.first() == Some(c) && glob(rest, &text[1..]),
    }
}

impl Model {
    fn allows(&self, principal: &str, keyspace: &str, key: &str, permission: Permission) -> bool {
        let is_system = keyspace == "system" || keyspace.starts_with("system.");
        if keyspace == "system.secrets" {
            return false;
        }
        if self.rules.is_empty() {
            return !(is_system && principal == "anonymous");
        }
        self.rules.iter().any(|(subject, pattern, prefix, allow)| {
            let is_for = match *subject {
                "role:r" => self.has_role(0, principal),
                "role:s" => self.has_role(1, principal),
                "role:none" => false,
                pattern => glob(pattern.as_bytes(), principal.as_bytes()),
            };
            let is_there = glob(pattern.as_bytes(), keyspace.as_bytes())
                && (!is_system || pattern.starts_with("system"));
            let gives = if is_system || permission == Permission::Admin {
                allow.contains(&Permission::Admin) && prefix.is_empty()
            } else {
                allow.contains(&permission) && key.starts_with(prefix)
            };
            is_for && is_there && gives
        })
    }

    fn has_role(&self, place: usize, principal: &str) -> bool {
        let mut members = self.roles[place].iter();
        members.any(|member| glob(member.as_bytes(), principal.as_bytes()))
    }

    fn rule(&self, place: usize) -> Rule {
        let (subject, pattern, prefix, allow) = &self.rules[place];
        let allow = allow.iter().copied().collect();
        Rule::new(
            subject.parse().unwrap(),
            pattern.parse().unwrap(),
            prefix,
            allow,
        )
        .unwrap()
    }

    /// The set of all rules but those at `left_out`, half of them stored, and members in two places.
    fn set(&self, left_out: Option<usize>) -> RuleSet {
        let mut builder = RuleSet::builder();
        for place in (0..self.rules.len()).filter(|place| Some(*place) != left_out) {
            let origin = match place % 2 {
                0 => Origin::Config(place),
                _ => Origin::Stored(place.to_string()),
            };
            builder.add_rule(origin, self.rule(place));
        }
        for (name, members) in ["r", "s"].into_iter().zip(&self.roles) {
            let (some, others) = members.split_at(members.len() / 2);
            for members in [some, others] {
                builder.add_role(Origin::Config(0), name.parse().unwrap(), &role(members));
            }
        }
        builder.build()
    }
}

fn cases() -> impl Iterator<Item = (&'static str, &'static str)> {
    let of = |principal| {
        KEYSPACES
            .into_iter()
            .map(move |keyspace| (principal, keyspace))
    };
    PRINCIPALS.into_iter().flat_map(of)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn grants_and_explanations_are_those_of_the_model(model in models(5)) {
        let set = model.set(None);
        prop_assert_eq!(set.has_rules(), !model.rules.is_empty());
        for (principal, name) in cases() {
            let grants = grants(&set, principal, name);
            let mut any = false;
            for (key, permission) in KEYS.into_iter().flat_map(|key| Permission::ALL.map(|p| (key, p))) {
                let case = (principal, name, key, permission);
                let expected = model.allows(principal, name, key, permission);
                any |= expected;
                prop_assert_eq!(grants.allows(permission, key.as_bytes()), expected, "{:?}", case);
                let why = set.explain(principal, &keyspace(name), key.as_bytes(), permission);
                prop_assert_eq!(why.allowed, expected, "{:?}", case);
                prop_assert_eq!(why.reason.contains(" is not allowed "), !expected, "{}", why.reason);
                prop_assert_eq!(why.rule.is_some(), expected && set.has_rules());
                if let Some((origin, rule)) = why.rule {
                    let place = match origin {
                        Origin::Config(place) => place,
                        Origin::Stored(name) => name.parse().unwrap(),
                    };
                    prop_assert_eq!(&rule, &model.rule(place));
                    let alone = Model { rules: vec![model.rules[place].clone()], ..model.clone() };
                    prop_assert!(alone.allows(principal, name, key, permission), "{:?}", case);
                }
            }
            prop_assert_eq!(grants.is_none(), !any, "{} {}", principal, name);
        }
    }

    #[test]
    fn system_has_an_admin_if_one_of_the_principals_is_it(model in models(4)) {
        let is_admin = |principal: &&str| model.allows(principal, "system", "", Permission::Admin);
        prop_assert_eq!(model.set(None).has_system_admin(), PRINCIPALS.iter().any(is_admin));
    }

    #[test]
    fn without_a_rule_that_is_said_to_give_nothing_all_is_as_it_was(mut model in models(6)) {
        // So that there is a rule left.
        model.rules.push(("user:nobody-else", "no-such", "", vec![Permission::Read]));
        let whole = model.set(None);
        for warning in whole.warnings() {
            let place = match &warning.origin {
                // Of roles.
                _ if warning.text.starts_with("role") => continue,
                Origin::Config(place) => *place,
                Origin::Stored(name) => name.parse().unwrap(),
            };
            let said = ["gives nothing", "gives the same", "matches nobody", "matches none"];
            if !said.iter().any(|said| warning.text.contains(said)) {
                continue;
            }
            let rest = model.set(Some(place));
            for (principal, name) in cases() {
                prop_assert_eq!(grants(&whole, principal, name), grants(&rest, principal, name), "{}", warning);
            }
        }
    }

    #[test]
    fn overlaps_are_those_that_a_look_at_each_pair_finds(model in models(8)) {
        let rules: Vec<Rule> = (0..model.rules.len()).map(|place| model.rule(place)).collect();
        let filed = Filed::new(rules.iter().enumerate());
        for (place, rule) in rules.iter().enumerate() {
            let covered = rules.iter().enumerate().any(|(other, by)| {
                other != place
                    && by.principal() == rule.principal()
                    && covers(by, rule)
                    && (other < place || !covers(rule, by))
            });
            prop_assert_eq!(filed.overlap(place).is_some(), covered, "{}", rule);
        }
    }
}

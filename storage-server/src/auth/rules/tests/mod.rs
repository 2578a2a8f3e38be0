//! Tests of rules together. Those of single parts are with the parts.

mod decisions;
mod explanations;
mod model;
mod prefixes;
mod records;
mod warnings;

use storage_protocol::Keyspace;

use super::*;

/// A rule in short: principal, keyspace, prefix, and permissions with spaces between them.
type Short<'a> = (&'a str, &'a str, &'a str, &'a str);

fn rule((principal, keyspace, prefix, allow): Short<'_>) -> Rule {
    let allow: Result<Permissions, _> = allow.split_whitespace().map(str::parse).collect();
    Rule::new(
        principal.parse().unwrap(),
        keyspace.parse().unwrap(),
        prefix,
        allow.unwrap(),
    )
    .unwrap()
}

fn role(members: &[&str]) -> Role {
    Role::new(
        members
            .iter()
            .map(|member| member.parse().unwrap())
            .collect(),
    )
    .unwrap()
}

/// Rules of the configuration, and roles with their members.
fn set_with_roles(rules: &[Short<'_>], roles: &[(&str, &[&str])]) -> RuleSet {
    let mut builder = RuleSet::builder();
    for (place, short) in rules.iter().enumerate() {
        builder.add_rule(Origin::Config(place), rule(*short));
    }
    for (place, (name, members)) in roles.iter().enumerate() {
        let origin = Origin::Config(place);
        builder.add_role(origin, name.parse().unwrap(), &role(members));
    }
    builder.build()
}

fn set(rules: &[Short<'_>]) -> RuleSet {
    set_with_roles(rules, &[])
}

fn keyspace(name: &str) -> Keyspace {
    Keyspace::new(name).unwrap()
}

fn grants(set: &RuleSet, principal: &str, name: &str) -> Grants {
    set.grants(principal, &keyspace(name))
}

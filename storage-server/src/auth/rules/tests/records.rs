//! Records: none makes the parsers panic, and what they take they take again as they print it.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~]{0,8}",
        "(cert:|user:|role:)?[a-zA-Z*ä\u{200b}\n]{0,6}",
    ]
}

/// What comes of good records by the change of some bytes, or of their order.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let good = prop_oneof![
        Just(
            r#"{"principal":"role:ops","keyspace":"model*","prefix":"a","allow":["read","admin"]}"#
        ),
        Just(r#"{"members":["cert:a","user:*"]}"#),
    ];
    let changes = vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 0..4);
    (good, changes).prop_map(|(good, changes)| {
        let mut bytes = good.as_bytes().to_vec();
        for (place, byte, how) in changes {
            let place = place.index(bytes.len());
            match how {
                0 => bytes[place] = byte,
                1 => bytes.insert(place, byte),
                2 => bytes.truncate(place + 1),
                _ => bytes.rotate_left(place),
            }
        }
        bytes
    })
}

/// A record of a rule or a role. Here and there a field is missing, or unknown, or its value is of another kind.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let texts = || vec(text(), 0..3).prop_map(Value::from);
    let words = vec(
        prop_oneof![9 => "read|write|watch|admin", 1 => text()],
        0..3,
    );
    let rule = [
        field("principal", text().prop_map(Value::from)),
        field("keyspace", text().prop_map(Value::from)),
        field("prefix", text().prop_map(Value::from)),
        field("allow", words.prop_map(Value::from)),
    ];
    let role = [field("members", texts())];
    let fields = prop_oneof![rule.prop_map(Vec::from), role.prop_map(Vec::from)];
    let unknown = prop::option::weighted(0.05, (text(), texts()));
    (fields, unknown).prop_map(|(fields, unknown)| {
        let object: Map<String, Value> = fields.into_iter().flatten().chain(unknown).collect();
        serde_json::to_vec(&object).unwrap()
    })
}

fn field(
    name: &'static str,
    value: impl Strategy<Value = Value> + 'static,
) -> BoxedStrategy<Option<(String, Value)>> {
    let other = prop_oneof![
        any::<i64>().prop_map(Value::from),
        text().prop_map(Value::from),
        Just(json!(null)),
        Just(json!({"a": []})),
    ];
    let value = prop_oneof![20 => value, 1 => other];
    let field = value.prop_map(move |value| (name.to_owned(), value));
    prop::option::weighted(0.95, field).boxed()
}

#[track_caller]
fn check(bytes: &[u8]) {
    match Rule::from_json(bytes) {
        Ok(rule) => {
            let printed = serde_json::to_vec(&rule).unwrap();
            assert_eq!(Rule::from_json(&printed).unwrap(), rule);
        }
        Err(error) => assert_plain(&error.to_string()),
    }
    match Role::from_json(bytes) {
        Ok(role) => {
            let printed = serde_json::to_vec(&role).unwrap();
            assert_eq!(Role::from_json(&printed).unwrap(), role);
        }
        Err(error) => assert_plain(&error.to_string()),
    }
}

#[track_caller]
fn assert_plain(message: &str) {
    assert!(!message.is_empty() && message.len() < 2000, "{message:?}");
    assert!(!message.chars().any(char::is_control), "{message:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_bytes_are_refused_or_come_back(bytes in vec(any::<u8>(), 0..40)) {
        check(&bytes);
    }

    #[test]
    fn damaged_records_are_refused_or_come_back(bytes in damaged()) {
        check(&bytes);
    }

    #[test]
    fn records_of_anything_are_refused_or_come_back(bytes in record()) {
        check(&bytes);
    }

    #[test]
    fn rules_come_back_as_they_are_printed(
        principal in text(),
        keyspace in text(),
        prefix in any::<String>(),
        allow in prop::sample::subsequence(Permission::ALL.to_vec(), 1..=4),
    ) {
        let parsed = (principal.parse::<Subject>(), keyspace.parse::<KeyspacePattern>());
        if let (Ok(subject), Ok(pattern)) = &parsed {
            prop_assert_eq!(subject.to_string(), principal);
            prop_assert_eq!(pattern.to_string(), keyspace);
            let allow = allow.into_iter().collect();
            let rule = Rule::new(subject.clone(), pattern.clone(), &prefix, allow).unwrap();
            let json = serde_json::to_vec(&rule).unwrap();
            prop_assert_eq!(Rule::from_json(&json), Ok(rule.clone()));
            let toml = toml::to_string(&rule).unwrap();
            prop_assert_eq!(toml::from_str::<Rule>(&toml).unwrap(), rule);
        } else {
            for error in [parsed.0.err(), parsed.1.err().map(Into::into)].into_iter().flatten() {
                assert_plain(&error.to_string());
            }
        }
    }

    #[test]
    fn names_of_roles_come_back_as_they_are_printed(name in "[a-c0A*._ -]{0,4}") {
        if let Ok(parsed) = name.parse::<RoleName>() {
            prop_assert_eq!(parsed.to_string(), name.clone());
            prop_assert!(Keyspace::new(&name).is_ok(), "the same form");
        } else {
            prop_assert!(Keyspace::new(&name).is_err());
        }
    }
}

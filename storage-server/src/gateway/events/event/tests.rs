use proptest::prelude::*;
use serde_json::Value as Json;
use storage_protocol::{EntryLifetime, Key, Value};

use super::super::filter::Filter;
use super::*;

fn record(label: Option<&str>, principal: &str, changes: Vec<Change>) -> CommitRecord {
    let label = label.map(str::to_owned);
    CommitRecord::new(
        Revision(7),
        UnixMillis(1_714_816_803_120),
        label,
        principal.to_owned(),
        changes,
    )
}

fn put(value: &str, previous: Option<&str>) -> ChangeKind {
    ChangeKind::Put {
        value: Value::from(value.to_owned()),
        lifetime: EntryLifetime::Forever,
        previous: previous.map(|text| Value::from(text.to_owned())),
    }
}

fn removed(previous: Option<&str>) -> ChangeKind {
    ChangeKind::Removed {
        previous: previous.map(|text| Value::from(text.to_owned())),
    }
}

/// The frame of a change of the key `profiles/rack7`.
fn told(label: Option<&str>, kind: ChangeKind) -> String {
    let key = Key::from("profiles/rack7");
    let record = record(label, "user:ann", vec![Change { key, kind }]);
    Event::of(&record, &record.changes[0]).unwrap().to_json()
}

fn field(frame: &str, name: &str) -> Json {
    let event: Json = serde_json::from_str(frame).unwrap();
    event[name].clone()
}

#[test]
fn the_fields_come_in_the_order_that_clients_are_used_to() {
    let frame = told(
        Some("events: update"),
        put(
            r#"{"Name": "rack7"}"#,
            Some(r#"{"Name":"rack7","Params":{}}"#),
        ),
    );
    assert_eq!(
        frame,
        r#"{"Time":"2024-05-04T10:00:03.12Z","Type":"profiles","Action":"update","Key":"rack7","Principal":"user:ann","Object":{"Name":"rack7"},"Original":{"Name":"rack7","Params":{}}}"#
    );
    assert!(with_revision(&frame, Revision(9)).ends_with(r#"{}},"Revision":9}"#));
}

#[test]
fn the_action_is_what_this_gateway_noted_and_else_what_happened() {
    let action = |label, kind| field(&told(label, kind), "Action");
    assert_eq!(action(Some("events: create"), put("1", None)), "create");
    assert_eq!(action(Some("events: update"), put("1", None)), "update");
    assert_eq!(action(Some("events: save params"), put("1", None)), "save");
    let update = Some("events: update params");
    assert_eq!(action(update, put("1", None)), "update");
    assert_eq!(action(Some("events: delete"), removed(None)), "delete");
    // Others may label as they like.
    for label in [None, Some("update"), Some("create"), Some("events: delete")] {
        assert_eq!(action(label, put("1", None)), "save", "{label:?}");
    }
    for label in [
        None,
        Some("expired"),
        Some("session ended"),
        Some("events: create"),
    ] {
        assert_eq!(action(label, removed(None)), "delete", "{label:?}");
    }
    let signal = || ChangeKind::Signalled {
        bytes: Value::from_static(b"hello"),
    };
    assert_eq!(action(None, signal()), "signal");
    assert_eq!(action(Some("events: post"), signal()), "signal");
    assert_eq!(field(&told(None, signal()), "Object"), "hello");
}

#[test]
fn objects_are_those_after_and_before() {
    let objects = |frame: &str| (field(frame, "Object"), field(frame, "Original"));
    let null = Json::Null;
    let update = told(Some("events: update"), put("2", Some("1")));
    assert_eq!(objects(&update), (2.into(), 1.into()));
    let create = told(Some("events: create"), put("2", Some("1")));
    assert_eq!(objects(&create), (2.into(), null.clone()));
    let gone = told(Some("events: delete"), removed(Some("1")));
    assert_eq!(objects(&gone), (1.into(), null.clone()));
    assert_eq!(objects(&told(None, removed(None))), (null.clone(), null));
}

#[test]
fn a_posted_event_says_what_it_was_posted_with_but_not_who_posted_it() {
    let time = "2024-05-04T12:00:00+02:00";
    let bytes = posted(time, "created", r#"{"a": 1.50}"#, "null");
    let signal = ChangeKind::Signalled {
        bytes: Value::from(bytes),
    };
    let frame = told(Some("events: post"), signal.clone());
    assert_eq!(
        frame,
        r#"{"Time":"2024-05-04T12:00:00+02:00","Type":"profiles","Action":"created","Key":"rack7","Principal":"user:ann","Object":{"a":1.50},"Original":null}"#
    );
    // The same bytes of anybody else are its object.
    let other = told(Some("post"), signal);
    assert_eq!(field(&other, "Action"), "signal");
    assert_eq!(field(&other, "Object")["Action"], "created");
}

#[test]
fn filters_know_some_actions_by_two_words() {
    let is_for = |filter: &str, label, kind| {
        let key = Key::from("t/k");
        let record = record(Some(label), "user:ann", vec![Change { key, kind }]);
        let event = Event::of(&record, &record.changes[0]).unwrap();
        event.is_for(&Filter::parse(filter).unwrap())
    };
    assert!(is_for("t.destroy.k", "events: delete", removed(None)));
    assert!(is_for("t.delete.k", "events: delete", removed(None)));
    assert!(!is_for("t.save.k", "events: delete", removed(None)));
    assert!(is_for("t.update.k", "events: save params", put("1", None)));
    assert!(is_for("t.save.k", "events: save params", put("1", None)));
    // Of others' writes a save is a save.
    assert!(!is_for("t.update.k", "", put("1", None)));
    assert!(!is_for("t.save.k", "events: update", put("1", None)));
}

#[test]
fn keys_of_another_form_are_no_events() {
    for key in [
        &b"nothing"[..],
        b"t/\xff",
        b"\xff/k",
        b"websocket/register",
        b"",
    ] {
        let key = Key::copy_from_slice(key);
        let kind = put("1", None);
        let record = record(None, "p", vec![Change { key, kind }]);
        assert!(Event::of(&record, &record.changes[0]).is_none());
    }
    let key = Key::from("t/a/b.c");
    let kind = put("1", None);
    let record = record(None, "p", vec![Change { key, kind }]);
    let event = Event::of(&record, &record.changes[0]).unwrap();
    assert_eq!((event.kind(), event.key()), ("t", "a/b.c"));
}

#[test]
fn accounts_have_no_secrets_in_any_event() {
    let account = r#"{"Name":"ann","PasswordHash":"h4sh","Secret":"h4sh","Password":"h4sh"}"#;
    let signal = posted("2024-05-04T10:00:00Z", "created", account, account);
    for (label, kind) in [
        ("events: update", put(account, Some(account))),
        ("x", put(account, None)),
        ("events: delete", removed(Some(account))),
        (
            "events: post",
            ChangeKind::Signalled {
                bytes: signal.into(),
            },
        ),
        (
            "x",
            ChangeKind::Signalled {
                bytes: account.into(),
            },
        ),
    ] {
        let key = Key::from("users/ann");
        let record = record(Some(label), "user:ann", vec![Change { key, kind }]);
        let frame = Event::of(&record, &record.changes[0]).unwrap().to_json();
        assert!(!frame.contains("h4sh"), "{label}: {frame}");
        assert_eq!(field(&frame, "Object")["Name"], "ann", "{label}");
    }
}

#[test]
fn times_have_no_zeros_at_their_end() {
    for (millis, text) in [
        (1_714_816_800_000, "2024-05-04T10:00:00Z"),
        (1_714_816_800_500, "2024-05-04T10:00:00.5Z"),
        (1_714_816_800_001, "2024-05-04T10:00:00.001Z"),
        (0, "1970-01-01T00:00:00Z"),
    ] {
        assert_eq!(rfc3339(UnixMillis(millis)), text);
    }
    rfc3339(UnixMillis(u64::MAX));
}

#[test]
fn what_the_gateway_says_itself_is_an_event_too() {
    let ack = own("register", "a.*.\"b\"", "null");
    assert_eq!(field(&ack, "Type"), "websocket");
    assert_eq!(field(&ack, "Key"), "a.*.\"b\"");
    assert_eq!(field(&ack, "Principal"), "");
    assert!(ack.ends_with(r#""Object":null,"Original":null}"#));
}

proptest! {
    #[test]
    fn an_event_is_json_with_its_fields_in_order_whatever_is_in_it(
        key in ".{0,8}", kind in "[^/]{0,6}", principal in any::<String>(),
        label in "(events: )?(create|update|save params|delete|post|.{0,5})",
        value in any::<Vec<u8>>(), previous in proptest::option::of(any::<Vec<u8>>()),
        which in 0..3,
    ) {
        let previous = previous.map(Value::from);
        let change = match which {
            0 => ChangeKind::Put { value: value.into(), lifetime: EntryLifetime::Forever, previous },
            1 => ChangeKind::Removed { previous },
            _ => ChangeKind::Signalled { bytes: value.into() },
        };
        let stored = Key::from(format!("{kind}/{key}"));
        let record = record(Some(&label), &principal, vec![Change { key: stored, kind: change }]);
        let Some(event) = Event::of(&record, &record.changes[0]) else {
            prop_assert_eq!(kind, OWN_TYPE);
            return Ok(());
        };
        let frame = event.to_json();
        prop_assert_eq!(field(&frame, "Type"), Json::from(kind));
        prop_assert_eq!(field(&frame, "Key"), Json::from(key));
        prop_assert_eq!(field(&frame, "Principal"), Json::from(principal));
        prop_assert!(!frame.contains(['\n', '\r']));
        let fields = super::json::Fields::parse(frame.as_bytes()).unwrap();
        let names = fields.names();
        let expected = ["Time", "Type", "Action", "Key", "Principal", "Object", "Original"];
        prop_assert_eq!(names, expected);
    }
}

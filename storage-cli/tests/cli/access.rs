//! `access` and `role`: what is asked of the server, and what is printed.

use serde_json::json;

use crate::fake_http::HttpServer;
use crate::run::storage;

const RULES: &str = r#"{
    "rules": [
        {"from": {"config": 0}, "rule": {"principal": "cert:boss", "keyspace": "system", "allow": ["admin"]}},
        {"from": {"name": "ann"}, "rule": {"principal": "user:ann", "keyspace": "models", "prefix": "a:b/", "allow": ["read"]}},
        {"from": {"name": "rule[0] of the configuration"},
            "rule": {"principal": "x\u001b[2J", "keyspace": "k", "prefix": "\t\u202e", "allow": ["read", "later"]}}
    ],
    "roles": [
        {"from": {"config": 0}, "name": "ops", "members": ["cert:root"]},
        {"from": {"config": 1}, "name": "fixed", "members": ["cert:a"]},
        {"from": {"name": "ops"}, "name": "ops", "members": ["cert:ops-*", "user:ann"]},
        {"from": {"name": "strange"}, "name": "strange", "members": ["user:a b", "user:\u001b"]}
    ],
    "warnings": ["stored rule \"x\": it gives\u001b nothing"]
}"#;

fn server() -> HttpServer {
    HttpServer::with(&[("GET /-/auth/rules", 200, RULES)])
}

#[test]
fn rules_are_listed_with_what_is_odd_about_them() {
    let server = server();
    let ran = server.run(&["access", "list"]);
    assert_eq!(
        ran.lines(),
        [
            "rule[0] of the configuration\tcert:boss\tsystem\tadmin",
            "ann\tuser:ann\tmodels:a:b/\tread",
            "\"rule[0] of the configuration\"\tx\\x1b[2J\tk:\\t\\u{202e}\tread,later",
        ]
    );
    assert_eq!(
        ran.err,
        "warning: stored rule \"x\": it gives\\x1b nothing\n"
    );
    let ran = server.run(&["access", "list", "--json"]);
    let lines = ran.lines();
    assert_eq!(lines.len(), 3);
    let second: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
    assert_eq!(second["from"]["name"], "ann");
    assert!(
        lines[2].contains(r#""principal":"x\u001b[2J""#),
        "{lines:?}"
    );
    assert!(lines[2].contains(r#""prefix":"\t\u202e""#), "{lines:?}");
}

#[test]
fn a_grant_has_a_name_of_its_own_that_is_always_the_same() {
    let server = server();
    let name = "cert-robot-any-models-robots-b81b00dd";
    let put = format!("PUT /-/auth/rules/{name}");
    server.answer(&put, 204, "");
    let grant = [
        "access",
        "grant",
        "cert:robot-*",
        "models:robots/",
        "write,read",
    ];
    let rule = json!({
        "principal": "cert:robot-*", "keyspace": "models", "prefix": "robots/", "allow": ["read", "write"],
    });
    let ran = server.run(&grant);
    let line = format!("{name}\tcert:robot-*\tmodels:robots/\tread,write");
    assert_eq!(ran.lines(), [line.as_str()]);
    assert_eq!(server.changes(), [(put.clone(), rule.clone())]);
    let ran = server.run(&[&grant[..], &["--json"]].concat());
    let printed: serde_json::Value = serde_json::from_str(ran.lines()[0]).unwrap();
    assert_eq!(printed, json!({ "from": { "name": name }, "rule": rule }));
    server.asked();
    server.answer("PUT /-/auth/rules/a%2Fb?force=true", 204, "");
    let ran = server.run(&[&grant[..], &["--name", "a/b", "--force"]].concat());
    assert_eq!(ran.lines()[0].split('\t').next(), Some("a/b"));
}

#[test]
fn granted_again_it_is_added_to_what_is_there() {
    let server = server();
    server.answer("PUT /-/auth/rules/ann", 204, "");
    // Under its own name, or where no name is asked for.
    let grant = ["access", "grant", "user:ann", "models:a:b/", "write"];
    for options in [&["--name", "ann"][..], &[]] {
        let ran = server.run(&[&grant[..], options].concat());
        assert_eq!(ran.lines(), ["ann\tuser:ann\tmodels:a:b/\tread,write"]);
        assert_eq!(ran.err, "it was read before\n");
        let last = server.changes().pop().unwrap();
        assert_eq!(last.1["allow"], json!(["read", "write"]));
    }
    // What is there already is not written again.
    let again = ["access", "grant", "user:ann", "models:a:b/", "read"];
    let ran = server.run(&again);
    assert_eq!(ran.lines(), ["ann\tuser:ann\tmodels:a:b/\tread"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(server.changes(), []);
    // A rule of the configuration is no stored one.
    let ran = server.run(&["access", "grant", "cert:boss", "system", "admin"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        server.changes()[0]
            .0
            .starts_with("PUT /-/auth/rules/cert-boss-system-")
    );
    // What is there under the name stays.
    let ran = server.run(&[
        "access", "grant", "user:bob", "models", "read", "--name", "ann",
    ]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert!(
        ran.err
            .contains("a rule ann for something else: user:ann models:a:b/ read"),
        "{ran:?}"
    );
    assert_eq!(server.changes(), []);
}

#[test]
fn a_rule_is_stored_under_the_name_that_was_asked_for_though_another_says_the_same() {
    let rules = r#"{"roles": [], "rules": [
        {"from": {"name": "grant-admin"}, "rule": {"principal": "cert:boss", "keyspace": "system", "allow": ["admin"]}}
    ], "warnings": ["stored rule \"boss\": it gives the same as stored rule \"grant-admin\""]}"#;
    let server = HttpServer::with(&[
        ("GET /-/auth/rules", 200, rules),
        ("PUT /-/auth/rules/boss", 204, ""),
    ]);
    let grant = ["access", "grant", "cert:boss", "system", "admin"];
    let ran = server.run(&[&grant[..], &["--name", "boss"]].concat());
    assert_eq!(ran.lines(), ["boss\tcert:boss\tsystem\tadmin"]);
    assert_eq!(
        ran.err,
        "warning: stored rule \"boss\": it gives the same as stored rule \"grant-admin\"\n"
    );
    let rule = json!({
        "principal": "cert:boss", "keyspace": "system", "prefix": "", "allow": ["admin"],
    });
    assert_eq!(
        server.changes(),
        [("PUT /-/auth/rules/boss".to_owned(), rule)]
    );
    // Where no name was asked for there need not be two.
    assert_eq!(
        server.run(&grant).lines(),
        ["grant-admin\tcert:boss\tsystem\tadmin"]
    );
    assert_eq!(server.changes(), []);
}

#[test]
fn what_is_odd_about_a_rule_is_told_when_it_is_granted() {
    let rules = r#"{"roles": [], "rules": [], "warnings": [
        "stored rule \"bob2\": it gives nothing",
        "stored rule \"bob\": principal \"bob\" matches nobody\u001b",
        "rule[0] of the configuration: it gives nothing"
    ]}"#;
    let server = HttpServer::with(&[
        ("GET /-/auth/rules", 200, rules),
        ("PUT /-/auth/rules/bob", 204, ""),
    ]);
    let grant = ["access", "grant", "bob", "acme", "read", "--name", "bob"];
    let ran = server.run(&grant);
    assert_eq!(ran.lines(), ["bob\tbob\tacme\tread"]);
    assert_eq!(
        ran.err,
        "warning: stored rule \"bob\": principal \"bob\" matches nobody\\x1b\n"
    );
    let quotas = r#"{"quotas": [], "warnings": ["stored quota \"q\": it limits nothing", "stored quota \"p\": no"]}"#;
    server.answer("GET /-/auth/quotas", 200, quotas);
    server.answer("PUT /-/auth/quotas/q", 204, "");
    let set = ["quota", "set", "q", "--principal", "bob", "--sessions", "1"];
    let ran = server.run(&set);
    assert_eq!(ran.lines(), ["q\tbob\tsessions=1"]);
    assert_eq!(ran.err, "warning: stored quota \"q\": it limits nothing\n");
}

#[test]
fn what_would_lock_out_is_refused_by_the_server_and_told() {
    let server = server();
    let refused = r#"{"error":"with this commit nobody could change the access rules any more: first let a rule ..., or ask for it by force"}"#;
    let last = r#"{"error":"with this commit there would be no access rule any more, and every peer that is let in could do everything: leave one, or ask for it by force"}"#;
    server.answer("DELETE /-/auth/rules/ann", 400, refused);
    server.answer("DELETE /-/auth/rules/ann?force=true", 204, "");
    server.answer("DELETE /-/auth/roles/ops", 400, refused);
    server.answer("PUT /-/auth/rules/ann", 400, refused);
    server.answer("DELETE /-/auth/rules/last", 400, last);
    server.answer("DELETE /-/auth/users/ann", 400, refused);
    server.answer("DELETE /-/auth/users/ann?force=true", 204, "");
    for refused in [
        &["access", "revoke", "ann"][..],
        &["access", "revoke", "last"],
        &["role", "rm", "ops"],
        &["user", "rm", "ann"],
        &["access", "grant", "user:ann", "models:a:b/", "write"],
    ] {
        let ran = server.run(refused);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
        assert!(ran.err.contains("with this commit"), "{ran:?}");
        assert!(
            ran.err.ends_with("; --force makes it all the same\n"),
            "{ran:?}"
        );
    }
    let ran = server.run(&["access", "revoke", "ann", "--force"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, "removed ann\n"));
    assert_eq!(server.run(&["user", "rm", "ann", "--force"]).code, 0);
}

#[test]
fn where_a_record_is_wrong_is_no_place_in_what_nobody_wrote() {
    let server = server();
    server.answer(
        "PUT /-/auth/rules/r",
        400,
        r#"{"error":"the principal is empty at line 1 column 63"}"#,
    );
    let ran = server.run(&["access", "grant", "", "acme", "read", "--name", "r"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (2, "error: the principal is empty\n")
    );
}

#[test]
fn a_rule_is_revoked_by_its_name_or_by_what_it_says() {
    let server = server();
    server.answer("DELETE /-/auth/rules/ann", 204, "");
    let ran = server.run(&["access", "revoke", "user:ann", "models:a:b/"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "", "removed ann\n")
    );
    assert_eq!(
        server.changes(),
        [("DELETE /-/auth/rules/ann".to_owned(), json!(null))]
    );
    for (arguments, why) in [
        (
            ["user:ann", "models"],
            "there is no rule for user:ann and models\n",
        ),
        (
            ["cert:boss", "system"],
            "to be removed by hand: rule[0] of the configuration cert:boss system admin\n",
        ),
    ] {
        let ran = server.run(&[&["access", "revoke"], &arguments[..]].concat());
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
        assert!(ran.err.contains(why), "{ran:?}");
    }
    server.answer(
        "DELETE /-/auth/rules/gone",
        404,
        r#"{"error":"there is no such record"}"#,
    );
    // By its name it is told as well.
    let ran = server.run(&["access", "revoke", "ann"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "", "removed ann\n")
    );
    let ran = server.run(&["access", "revoke", "gone"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "error: there is no such record\n")
    );
}

#[test]
fn some_permissions_of_a_rule_are_revoked_and_the_others_stay() {
    let rules = r#"{"roles": [], "warnings": [], "rules": [
        {"from": {"name": "one"}, "rule": {"principal": "user:ann", "keyspace": "m", "allow": ["read", "write", "later"]}},
        {"from": {"name": "two"}, "rule": {"principal": "user:ann", "keyspace": "m", "allow": ["write"]}},
        {"from": {"config": 0}, "rule": {"principal": "user:ann", "keyspace": "m", "allow": ["watch"]}}
    ]}"#;
    let server = HttpServer::with(&[
        ("GET /-/auth/rules", 200, rules),
        ("PUT /-/auth/rules/one", 204, ""),
        ("DELETE /-/auth/rules/two", 204, ""),
    ]);
    let ran = server.run(&["access", "revoke", "user:ann", "m", "write,admin"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.err, "one gives read,later now\nremoved two\n");
    let rule = json!({
        "principal": "user:ann", "keyspace": "m", "prefix": "", "allow": ["read", "later"],
    });
    assert_eq!(
        server.changes(),
        [
            ("PUT /-/auth/rules/one".to_owned(), rule),
            ("DELETE /-/auth/rules/two".to_owned(), json!(null))
        ]
    );
    // Given by nobody, and by the configuration alone.
    let ran = server.run(&["access", "revoke", "user:ann", "m", "admin"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "no stored rule gave it\n")
    );
    let ran = server.run(&["access", "revoke", "user:ann", "m", "watch"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.err.contains("to be removed by hand: rule[0]"),
        "{ran:?}"
    );
    assert_eq!(server.changes(), []);
}

#[test]
fn an_explanation_exits_with_what_it_says() {
    let server = HttpServer::with(&[
        (
            "GET /-/auth/explain?principal=user%3Aann&keyspace=models&key=a%26b&permission=read",
            200,
            r#"{"allowed": true, "origin": "stored rule \"r\"", "reason": "since\u001b so",
                "rule": {"principal": "user:ann", "keyspace": "m*", "allow": ["read"]}}"#,
        ),
        (
            "GET /-/auth/explain?principal=user%3Aann&keyspace=models&key=&permission=admin",
            200,
            r#"{"allowed": false, "origin": null, "reason": "no rule allows it", "rule": null}"#,
        ),
    ]);
    let ran = server.run(&["access", "explain", "user:ann", "models", "a&b", "read"]);
    assert_eq!(
        ran.lines(),
        [
            "allowed",
            "reason: since\\x1b so",
            "rule: stored rule \"r\"\tuser:ann\tm*\tread"
        ]
    );
    let denied = ["access", "explain", "user:ann", "models", "", "admin"];
    let ran = server.run(&denied);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (1, "denied\nreason: no rule allows it\n")
    );
    let ran = server.run(&[&denied[..], &["--json"]].concat());
    assert_eq!(ran.code, 1);
    assert!(ran.out.starts_with("{\"allowed\":false,"), "{ran:?}");
    // A key that is no text.
    let path = "GET /-/auth/explain?principal=anonymous&keyspace=models&key=%00%FF&permission=read";
    let allowed = r#"{"allowed": true, "origin": null, "reason": "so", "rule": null}"#;
    server.answer(path, 200, allowed);
    let ran = server.run(&[
        "--hex",
        "access",
        "explain",
        "anonymous",
        "models",
        "00ff",
        "read",
    ]);
    assert_eq!(ran.lines(), ["allowed", "reason: so"], "{ran:?}");
}

#[test]
fn an_explanation_says_of_a_user_that_it_cannot_log_in() {
    let explain = |user: &str| {
        format!("GET /-/auth/explain?principal=user%3A{user}&keyspace=m&key=k&permission=read")
    };
    let allowed = r#"{"allowed": true, "origin": null, "reason": "so", "rule": null}"#;
    let server = HttpServer::with(&[
        (&explain("ann"), 200, allowed),
        (&explain("bob"), 200, allowed),
        (&explain("eve"), 200, allowed),
        (
            "GET /-/auth/users",
            200,
            r#"{"users": [{"name": "ann", "disabled": false, "password_set": 1},
                {"name": "bob", "disabled": true, "password_set": 1}]}"#,
        ),
    ]);
    let run = |user: &str, options: &[&str]| {
        let user = format!("user:{user}");
        server.run(&[&["access", "explain", &user, "m", "k", "read"], options].concat())
    };
    assert_eq!(run("ann", &[]).lines(), ["allowed", "reason: so"]);
    assert_eq!(
        run("bob", &[]).lines(),
        [
            "allowed",
            "reason: so",
            "note: user:bob is disabled, and cannot log in"
        ]
    );
    assert_eq!(
        run("eve", &[]).lines(),
        ["allowed", "reason: so", "note: there is no user eve"]
    );
    let ran = run("bob", &["--json"]);
    assert!(ran.lines()[0].starts_with("{\"allowed\":true,"), "{ran:?}");
    assert_eq!(ran.err, "note: user:bob is disabled, and cannot log in\n");
    // Who may not see the users may ask about itself all the same.
    server.answer("GET /-/auth/users", 403, r#"{"error":"no"}"#);
    let ran = run("bob", &[]);
    assert_eq!(ran.lines(), ["allowed", "reason: so"]);
    assert_eq!(ran.err, "");
}

#[test]
fn members_are_added_to_roles_and_removed() {
    let server = server();
    let ran = server.run(&["role", "list"]);
    assert_eq!(
        ran.lines(),
        [
            "ops\tcert:root\tconfiguration",
            "fixed\tcert:a\tconfiguration",
            "ops\tcert:ops-* user:ann\tstored",
            "strange\tuser:\\x1b \"user:a b\"\tstored"
        ]
    );
    let ran = server.run(&["role", "list", "--json"]);
    assert_eq!(
        [ran.lines()[0], ran.lines()[2]],
        [
            r#"{"from":{"config":0},"members":["cert:root"],"name":"ops"}"#,
            r#"{"from":{"name":"ops"},"members":["cert:ops-*","user:ann"],"name":"ops"}"#
        ]
    );
    for put in ["ops", "new"] {
        server.answer(&format!("PUT /-/auth/roles/{put}"), 204, "");
    }
    server.asked();
    let ran = server.run(&["role", "add", "ops", "user:bob", "user:ann"]);
    assert_eq!(ran.lines(), ["ops\tcert:ops-* user:ann user:bob\tstored"]);
    let ran = server.run(&["role", "add", "new"]);
    assert_eq!(ran.lines(), ["new\t\tstored"]);
    // They are there already, one by the configuration: that is not stored as well.
    for (role, member) in [
        ("ops", "user:ann"),
        ("ops", "cert:root"),
        ("fixed", "cert:a"),
    ] {
        assert_eq!(server.run(&["role", "add", role, member]).code, 0);
    }
    assert_eq!(server.run(&["role", "rm", "ops", "user:ann"]).code, 0);
    assert_eq!(
        server.changes(),
        [
            (
                "PUT /-/auth/roles/ops".to_owned(),
                json!({ "members": ["cert:ops-*", "user:ann", "user:bob"] })
            ),
            ("PUT /-/auth/roles/new".to_owned(), json!({ "members": [] })),
            (
                "PUT /-/auth/roles/ops".to_owned(),
                json!({ "members": ["cert:ops-*"] })
            ),
        ]
    );
    let ran = server.run(&["role", "rm", "ops", "user:bob"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "user:bob is no member of ops\n")
    );
    for (role, member) in [("ops", "cert:root"), ("fixed", "cert:a")] {
        let ran = server.run(&["role", "rm", role, member]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.err.contains("a member of"), "{ran:?}");
        assert!(ran.err.contains("by the configuration"), "{ran:?}");
    }
    let ran = server.run(&["role", "rm", "none", "user:bob"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "there is no role none\n"));
    assert_eq!(server.changes(), []);
    server.answer("DELETE /-/auth/roles/ops?force=true", 204, "");
    assert_eq!(server.run(&["role", "rm", "ops", "--force"]).code, 0);
}

#[test]
fn arguments_that_are_none_are_refused_before_anything_is_sent() {
    for (arguments, why) in [
        (
            &["access", "grant", "user:ann", "models", "reed"][..],
            "\"reed\" is no permission",
        ),
        (
            &["access", "grant", "user:ann", ":a", "read"],
            "no keyspace is named",
        ),
        (&["access", "grant", "user:ann", "models"], "PERMISSIONS"),
        (
            &["access", "explain", "user:ann", "models", "a", "reed"],
            "reed",
        ),
        (&["access", "revoke", ""], "Its name is empty"),
        (
            &["--hex", "access", "grant", "cert:x", "acme:ff", "read"],
            "--hex: the prefix of a rule is UTF-8 text",
        ),
        (
            &["--hex", "access", "revoke", "cert:x", "acme:ff"],
            "--hex: the prefix of a rule is UTF-8 text",
        ),
        (
            &["--hex", "token", "mint", "--grant", "acme:ff:read"],
            "--hex: the prefix of a grant is UTF-8 text",
        ),
        (
            &["access", "explain", "role:x", "models", "a", "read"],
            "\"role:x\" is no principal; they are cert:NAME, user:NAME and anonymous",
        ),
        (
            &["access", "explain", "cert:acme-*", "models", "a", "read"],
            "\"cert:acme-*\" is no principal",
        ),
        (
            &["access", "explain", "bob", "models", "a", "read"],
            "\"bob\" is no principal",
        ),
        (
            &["access", "explain", "user:", "models", "a", "read"],
            "\"user:\" is no principal",
        ),
        (&["role", "add", "role:ops"], "no name of a role"),
        (&["role", "rm", "Ops"], "no name of a role"),
        (&["user", "add", "user:ann"], "the user's name is \"ann\""),
        (&["user", "rm", "a:b"], "no colon"),
        (
            &["user", "add", "ann", "--role", "Ops"],
            "no name of a role",
        ),
        (
            &["user", "add", "a*", "--role", "ops"],
            "* would stand for any characters",
        ),
        (
            &["token", "mint", "--grant", "models"],
            "expected KEYSPACE:PERMISSIONS",
        ),
        (
            &["token", "mint", "--grant", "models:a/"],
            "is no permission",
        ),
        (&["token", "mint", "--ttl", "soon"], "--ttl"),
        (&["token", "revoke", ""], "Its id is empty"),
        (&["access"], "Usage"),
        (&["token"], "Usage"),
    ] {
        let ran = storage(&[arguments, &["--url", "wss://127.0.0.1:1/storage/models"]].concat());
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        assert!(ran.err.contains(why), "{why}: {ran:?}");
    }
}

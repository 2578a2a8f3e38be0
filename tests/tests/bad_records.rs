//! Rules, roles and users that are none: each is refused over HTTP and in a commit to the keyspace `system`, in words that
//! name what is wrong, and changes nothing.

#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]

mod entrance;

use entrance::{Door, House, ask};
use serde_json::{Value, json};
use storage_client::RemoteStorage;
use storage_client::http::{Method, request};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, ScanOptions, Storage, StorageError, StorageExt,
};

/// Records as they are stored, both ways to store one.
struct Ways {
    house: House,
    system: RemoteStorage,
}

impl Ways {
    async fn new() -> Self {
        let house = House::new(&["ann"]).await;
        let system = house.certified("boss", Door::Mutual, "system");
        let system = RemoteStorage::connect(system).await.unwrap();
        Self { house, system }
    }

    /// Puts these bytes, at `PATH/NAME` of HTTP and under the key `key`. Both are refused, in these words.
    async fn refuse(&self, path: &str, key: &[u8], record: &[u8], why: &str) {
        let boss = self.house.certified("boss", Door::Any, "model");
        let path = format!("/-/auth/{path}");
        let asked = request(&boss, Method::PUT, &path, Some(record.to_vec()));
        let (status, answer) = asked.await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let over_http = answer["error"].as_str().unwrap();
        println!("PUT {path} | {status}, {over_http}");
        assert_eq!(status.as_u16(), 400, "{path}: {over_http}");
        assert!(over_http.contains(why), "{path}: {over_http}");
        self.refuse_commit(key, record, why).await;
    }

    async fn refuse_commit(&self, key: &[u8], record: &[u8], why: &str) {
        let put = self.system.put(key.to_vec().into(), record.to_vec().into());
        let error = put.await.unwrap_err();
        println!("{} | {error}", key.escape_ascii());
        assert!(
            matches!(error, StorageError::InvalidArgument { .. }),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(text.contains(why), "{text}");
        // A commit may have many: it says which.
        let named = format!("key \"{}", key[..key.len().min(60)].escape_ascii());
        assert!(text.contains(&named), "{text}");
    }

    async fn nothing_is_stored(&self) {
        let scan = self.system.scan(KeyRange::all(), ScanOptions::default());
        let stored = scan.await.unwrap().collect().await.unwrap();
        assert_eq!(stored, []);
    }
}

#[tokio::test]
async fn a_rule_that_is_none_is_refused_in_words_that_name_what_is_wrong() {
    let ways = Ways::new().await;
    let good = r#"{"principal":"cert:ann","keyspace":"model","prefix":"open/","allow":["read"]}"#;
    let with = |part: &str, by: &[u8]| {
        let (before, behind) = good.split_once(part).unwrap();
        [before.as_bytes(), by, behind.as_bytes()].concat()
    };
    let long = "x".repeat(257);
    let long_prefix = "x".repeat(4097);
    for (record, why) in [
        (with("cert:ann", b""), "principal: \"\" is no pattern"),
        (
            with("cert:ann", b"a\\u0007"),
            r#"principal: "a\u{7}" is no pattern"#,
        ),
        (with("cert:ann", long.as_bytes()), "1 to 256 bytes"),
        (
            with("cert:ann", b"role:Big"),
            "\"Big\" is no name of a role",
        ),
        (with("model", b""), "keyspace: \"\" is no pattern"),
        (with("model", b"a\\nb"), r#"keyspace: "a\nb" is no pattern"#),
        (
            with("\"read\"", b"\"fly\""),
            "allow: \"fly\" is no permission",
        ),
        (
            with("\"read\"", b"\"READ\""),
            "allow: \"READ\" is no permission",
        ),
        (with("\"read\"", b""), "allow: [] gives nothing"),
        // A byte that no UTF-8 has, a letter cut in two, and half of a pair.
        (
            with("open/", b"a\xffb"),
            "the record is not UTF-8 text: byte 54",
        ),
        (
            with("open/", b"\xc3"),
            "the record is not UTF-8 text: byte 53",
        ),
        (with("open/", b"\\ud800"), "prefix: "),
        (
            with("open/", long_prefix.as_bytes()),
            "allowed are at most 4096 bytes",
        ),
        (
            with("\"open/\"", b"7"),
            "prefix: invalid type: integer `7`, expected a string",
        ),
        (with("\"allow\"", b"\"alow\""), "unknown field `alow`"),
        (b"[]".to_vec(), "the record is no object of JSON"),
        (b"{".to_vec(), "EOF"),
    ] {
        ways.refuse("rules/one", b"access/one", &record, why).await;
    }
    ways.nothing_is_stored().await;
    ways.system
        .put("access/one".into(), good.into())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_role_that_is_none_is_refused_in_words_that_name_what_is_wrong() {
    let ways = Ways::new().await;
    for (record, why) in [
        (r#"{"members":[""]}"#, "members: \"\" is no pattern"),
        (
            r#"{"members":["a\u0000"]}"#,
            r#"members: "a\0" is no pattern"#,
        ),
        (r#"{"members":["role:a"]}"#, "members: \"role:a\" is a role"),
        (r#"{"member":["a"]}"#, "unknown field `member`"),
        (r#"{}"#, "missing field `members`"),
    ] {
        ways.refuse("roles/ops", b"roles/ops", record.as_bytes(), why)
            .await;
    }
    let good = br#"{"members":["cert:ann"]}"#;
    for (path, key, why) in [
        ("Ops", "Ops", "\"Ops\" is no name of a role"),
        ("a%2Fb", "a/b", "\"a/b\" is no name of a role"),
        ("a%0Ab", "a\nb", r#""a\nb" is no name of a role"#),
    ] {
        let key = format!("roles/{key}");
        ways.refuse(&format!("roles/{path}"), key.as_bytes(), good, why)
            .await;
    }
    ways.nothing_is_stored().await;
}

#[tokio::test]
async fn a_user_that_is_none_is_refused_by_a_commit_in_words_that_name_what_is_wrong() {
    let ways = Ways::new().await;
    let good: &[u8] = b"{}";
    let long = "x".repeat(300);
    for (name, why) in [
        ("", "is empty"),
        ("a\nb", "control characters"),
        ("a\u{1b}[31mb", "control characters"),
        ("a\u{202e}b", "do not show"),
        (&long, "longer than 256 bytes"),
        ("a*", "stands for any characters"),
        ("..", "which paths leave out"),
    ] {
        let key = format!("users/{name}");
        ways.refuse_commit(key.as_bytes(), good, why).await;
    }
    for (record, why) in [
        // A password is given over HTTP alone: what is stored here can be read by every administrator.
        (
            &br#"{"password":"correct horse"}"#[..],
            "unknown field `password`",
        ),
        (br#"{"disabled":"yes"}"#, "invalid type: string"),
        (b"\xff", "no record of a user"),
        (b"", "no record of a user"),
    ] {
        ways.refuse_commit(b"users/eve", record, why).await;
    }
    ways.refuse_commit(b"tokens/0123", br#"{"principal":"cert:boss"}"#, "minted")
        .await;
    ways.nothing_is_stored().await;
}

/// A server whose rules are all stored.
async fn with_stored_rules() -> (storage_testkit::served::Served, RemoteStorage) {
    let served = storage_testkit::served::Served::new(&["boss", "ann"], "");
    let system = served.connect("boss", "system").await;
    let rules = Batch::new()
        .put(
            "access/boss",
            r#"{"principal":"role:ops","keyspace":"system","allow":["admin"]}"#,
        )
        .put("roles/ops", r#"{"members":["cert:boss"]}"#);
    system
        .commit(rules, CommitOptions::default())
        .await
        .unwrap();
    (served, system)
}

#[tokio::test]
async fn no_change_of_rules_or_roles_locks_all_administrators_out() {
    let (served, system) = with_stored_rules().await;
    let url = format!("{}/storage/model", served.server.url("storage"));
    let boss = storage_client::ConnectOptions::new(url)
        .credentials_dir(served.certificates.dir().join("boss"));
    let why = "nobody could change the access rules any more";
    let reader = r#"{"principal":"cert:ann","keyspace":"model","allow":["read"]}"#;
    let part =
        r#"{"principal":"role:ops","keyspace":"system","prefix":"access/","allow":["admin"]}"#;
    let elsewhere = r#"{"principal":"role:ops","keyspace":"*","allow":["admin"]}"#;
    let nobody = r#"{"principal":"boss","keyspace":"system","allow":["admin"]}"#;
    for (method, path, key, record) in [
        ("PUT", "rules/boss", "access/boss", Some(reader)),
        ("PUT", "rules/boss", "access/boss", Some(part)),
        ("PUT", "rules/boss", "access/boss", Some(elsewhere)),
        ("PUT", "rules/boss", "access/boss", Some(nobody)),
        ("PUT", "roles/ops", "roles/ops", Some(r#"{"members":[]}"#)),
        (
            "PUT",
            "roles/ops",
            "roles/ops",
            Some(r#"{"members":["boss"]}"#),
        ),
        ("DELETE", "roles/ops", "roles/ops", None),
    ] {
        let body = record.map_or(Value::Null, |record| serde_json::from_str(record).unwrap());
        let (status, answer) = ask(&boss, method, path, body).await;
        println!("{method} {path} {record:?} | {status}, {answer}");
        assert_eq!(status, 400, "{record:?}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(why), "{answer}");
        let batch = match record {
            Some(record) => Batch::new().put(key, record),
            None => Batch::new().remove(key),
        };
        let error = system
            .commit(batch, CommitOptions::default())
            .await
            .unwrap_err();
        assert!(
            matches!(error, StorageError::InvalidArgument { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(why), "{error}");
    }
    // Nobody was locked out, and what leaves an administrator is done.
    let another = json!({ "principal": "cert:ann", "keyspace": "system", "allow": ["admin"] });
    assert_eq!(ask(&boss, "PUT", "rules/ann", another).await.0, 204);
    assert_eq!(ask(&boss, "DELETE", "roles/ops", Value::Null).await.0, 204);
    assert_eq!(ask(&boss, "GET", "rules", Value::Null).await.0, 403);
}

#[tokio::test]
async fn the_last_rule_goes_by_force_alone() {
    let (served, system) = with_stored_rules().await;
    let boss = served.certified("boss", "model");
    let why = "there would be no access rule any more";
    let (status, answer) = ask(&boss, "DELETE", "rules/boss", Value::Null).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains(why), "{answer}");
    let both = Batch::new().remove("roles/ops").remove("access/boss");
    let error = system
        .commit(both, CommitOptions::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains(why), "{error}");
    // Nothing is open to others by either.
    let ann = served.certified("ann", "model");
    assert_eq!(ask(&ann, "GET", "rules", Value::Null).await.0, 403);
    let path = "rules/boss?force=true";
    assert_eq!(ask(&ann, "DELETE", path, Value::Null).await.0, 403);
    assert_eq!(ask(&boss, "DELETE", path, Value::Null).await.0, 204);
    assert_eq!(ask(&ann, "GET", "rules", Value::Null).await.0, 200);
}

#[tokio::test]
async fn an_administrator_that_nobody_could_log_in_as_is_none() {
    let config = storage_testkit::entrance::LISTENER;
    let served = storage_testkit::served::Served::new(&["boss"], config);
    let boss = served.certified("boss", "model");
    let ask = async |method, path, body| ask(&boss, method, path, body).await;
    let why = "nobody could change the access rules any more";
    let admin = |who: &str| json!({ "principal": who, "keyspace": "system", "allow": ["admin"] });
    let user = json!({ "password": "correct horse", "new": true });
    let refused = async |method, path, body| {
        let (status, answer) = ask(method, path, body).await;
        assert_eq!(status, 400, "{method} {path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(why), "{answer}");
    };
    refused("PUT", "rules/ann", admin("user:ann")).await;
    assert_eq!(ask("PUT", "users/ann", user.clone()).await.0, 204);
    let members = json!({ "members": ["user:ann", "user:gone"] });
    assert_eq!(ask("PUT", "roles/ops", members).await.0, 204);
    assert_eq!(ask("PUT", "rules/ops", admin("role:ops")).await.0, 204);
    // From now on it is ann alone who may.
    let ann = served.bare("model").password("ann", "correct horse");
    let by_ann = async |method, path, body| entrance::ask(&ann, method, path, body).await;
    for (method, path, body) in [
        ("PUT", "users/ann", json!({ "disabled": true })),
        (
            "PUT",
            "users/ann",
            json!({ "disabled": true, "password": "another" }),
        ),
        ("DELETE", "users/ann", Value::Null),
        ("PUT", "roles/ops", json!({ "members": ["user:gone"] })),
    ] {
        let (status, answer) = by_ann(method, path, body).await;
        assert_eq!(status, 400, "{method} {path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(why), "{answer}");
    }
    let system = served.bare("system").password("ann", "correct horse");
    let system = RemoteStorage::connect(system).await.unwrap();
    let error = system.remove("users/ann".into()).await.unwrap_err();
    assert!(error.to_string().contains(why), "{error}");
    // Each of them left all as it was, the password too. By force it is done.
    let disabled = json!({ "disabled": true });
    let done = by_ann("PUT", "users/ann?force=true", disabled).await;
    assert_eq!(done.0, 204, "{}", done.1);
    assert_eq!(by_ann("GET", "rules", Value::Null).await.0, 401);
}

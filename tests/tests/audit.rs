//! The audit log of a server as it is shipped: who did what, and what it must never say.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use storage_client::ConnectOptions;
use storage_client::http::request;
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Lifetime, ScanOptions, Storage, StorageExt, WatchOptions,
};
use storage_testkit::entrance::{Entrance, ask, mint_token};
use storage_testkit::harness::{Certificates, ServerProcess, binary};
use storage_testkit::raw::{http, tls_without_certificate, upgrade_request};

const PATIENCE: Duration = Duration::from_secs(30);

const ALL: &str =
    "[audit]\nevents = [\"denied\", \"admin\", \"session\", \"write\", \"read\", \"watch\"]\n";

struct House(Entrance);

impl Deref for House {
    type Target = Entrance;

    fn deref(&self) -> &Entrance {
        &self.0
    }
}

impl House {
    async fn new(audit: &str) -> Self {
        Self(Entrance::new(audit).await)
    }

    fn files(&self) -> Vec<PathBuf> {
        let folder = self.0.data().join("audit");
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn text(&self) -> String {
        let files = self.files();
        let text = files
            .iter()
            .map(|file| std::fs::read_to_string(file).unwrap());
        text.collect()
    }

    /// All whole records.
    fn records(&self) -> Vec<Value> {
        let text = self.text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The first record that has all of this, as soon as there is one.
    #[track_caller]
    fn record(&self, wanted: &Value) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let wanted = wanted.as_object().unwrap();
        loop {
            let records = self.records();
            let has = |record: &&Value| wanted.iter().all(|(key, value)| record[key] == *value);
            if let Some(record) = records.iter().find(has) {
                return record.clone();
            }
            assert!(
                Instant::now() < deadline,
                "{wanted:?} is not in {records:#?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What is known of whoever did something in a session.
#[track_caller]
fn is_of(record: &Value, principal: &str, by: &str) {
    assert_eq!(
        (&record["principal"], &record["by"]),
        (&principal.into(), &by.into())
    );
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    assert!(text("address").starts_with("127.0.0.1:"), "{record}");
    assert!(
        text("session").len() == 16 && text("time").ends_with('Z'),
        "{record}"
    );
    assert_eq!(record["keyspace"], "model");
}

#[tokio::test]
async fn what_is_not_allowed_is_written_with_who_wanted_it_and_the_keys() {
    let house = House::new("").await;
    let ann = house
        .connect(house.certified("ann", "model"))
        .await
        .unwrap();
    ann.get(&["open/a".into(), "closed/a".into()])
        .await
        .unwrap_err();
    ann.get_one("open/a".into()).await.unwrap();
    let closed = || KeyRange::prefix("closed/");
    ann.scan(closed(), ScanOptions::default())
        .await
        .map(drop)
        .unwrap_err();
    let batch = Batch::new().put("open/a", "x").remove("closed/a");
    ann.commit(batch, CommitOptions::default())
        .await
        .unwrap_err();
    ann.watch(closed(), WatchOptions::default())
        .await
        .map(drop)
        .unwrap_err();

    let denied = |operation: &str| {
        house.record(&json!({ "event": "denied", "operation": operation, "outcome": "denied" }))
    };
    let get = denied("get");
    is_of(&get, "cert:ann", "certificate");
    assert_eq!(get["keys"], json!(["open/a", "closed/a"]));
    assert_eq!(get["total"], 2);
    let why = get["reason"].as_str().unwrap();
    assert!(why.contains("may not read the key \"closed/a\""), "{why}");
    let scan = denied("scan");
    is_of(&scan, "cert:ann", "certificate");
    assert_eq!(
        (&scan["from"], &scan["to"]),
        (&"closed/".into(), &"closed0".into())
    );
    let commit = denied("commit");
    is_of(&commit, "cert:ann", "certificate");
    assert_eq!(commit["changes"], json!(["put open/a", "remove closed/a"]));
    let watch = denied("watch");
    is_of(&watch, "cert:ann", "certificate");
    assert_eq!(watch["from"], "closed/");
    for record in [&scan, &commit, &watch] {
        assert_eq!(record["session"], get["session"]);
    }
    // And what was allowed is not.
    assert!(
        house
            .records()
            .iter()
            .all(|record| record["outcome"] == "denied")
    );
}

#[tokio::test]
async fn who_is_not_let_in_is_written_with_what_was_shown() {
    let house = House::new("").await;
    let boss = house.certified("boss", "model");
    let eve = json!({ "password": "correct horse", "new": true });
    assert_eq!(ask(&boss, "PUT", "users/eve", eve).await.0, 204);
    let wrong = house.bare("model").password("eve", "hunter2-wrong");
    house.connect(wrong).await.unwrap_err();
    let wrong = house.record(&json!({ "operation": "log_in", "claimed": "user:eve" }));
    assert_eq!(
        (&wrong["event"], &wrong["by"]),
        (&"denied".into(), &"password".into())
    );
    assert!(
        wrong["address"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{wrong}"
    );
    assert!(
        wrong.get("principal").is_none(),
        "it is not known who that was"
    );
    // A name that nobody has may be a password in the wrong field.
    let mixed = house.bare("model").password("hunter2-as-name", "eve");
    house.connect(mixed).await.unwrap_err();

    let other = House::new("").await;
    let (_, foreign) = mint_token(&other.certified("ann", "model"), json!({})).await;
    house
        .connect(house.bare("model").token(&foreign))
        .await
        .unwrap_err();
    let foreign_record = house.record(&json!({ "operation": "log_in", "by": "token" }));
    assert_eq!(foreign_record["outcome"], "denied");

    house.connect(house.bare("model")).await.unwrap_err();
    house.record(&json!({ "operation": "log_in", "by": "nothing" }));

    // Of another authority.
    let strangers = Certificates::issue(&["ann"]);
    let folder = strangers.dir().join("ann");
    let ours = house.0.certificates.dir().join("ann/ca.pem");
    std::fs::copy(ours, folder.join("ca.pem")).unwrap();
    let stranger = ConnectOptions::new(house.url("model")).credentials_dir(folder);
    house.connect(stranger).await.unwrap_err();
    let stranger = house.record(&json!({ "operation": "log_in", "by": "certificate" }));
    assert!(
        stranger["reason"].as_str().unwrap().contains("TLS"),
        "{stranger}"
    );
    // Who it says to be, which anybody can say.
    assert_eq!(stranger["claimed"], "cert:ann");
    assert!(stranger.get("principal").is_none(), "{stranger}");

    // Over HTTP, of who is let in and is no administrator.
    let ann = house.certified("ann", "model");
    assert_eq!(ask(&ann, "GET", "rules", Value::Null).await.0, 403);
    let route = house.record(&json!({ "route": "GET /-/auth/rules" }));
    assert_eq!(
        (&route["event"], &route["principal"]),
        (&"denied".into(), &"cert:ann".into())
    );
    let rule = json!({ "principal": "cert:ann", "keyspace": "*", "allow": ["read"] });
    assert_eq!(ask(&ann, "PUT", "rules/mine", rule).await.0, 403);
    let rule = house.record(&json!({ "changes": ["put access/mine"] }));
    assert_eq!(
        (&rule["event"], &rule["keyspace"]),
        (&"denied".into(), &"system".into())
    );
    let (id, _) = mint_token(&boss, json!({})).await;
    let path = format!("tokens/{id}");
    assert_eq!(ask(&ann, "DELETE", &path, Value::Null).await.0, 404);
    let token = house.record(&json!({ "route": "DELETE /-/auth/tokens/{id}" }));
    assert_eq!(token["event"], "denied");

    // One that was revoked, with the number that tells which of its certificates it was.
    house.0.certificates.revoke("ann");
    let refused = async || {
        let connected = house.connect(house.certified("ann", "model")).await;
        connected.is_err()
    };
    let deadline = Instant::now() + PATIENCE;
    while !refused().await {
        assert!(Instant::now() < deadline, "still let in");
    }
    // That one may have been let in just before, and closed: this one is refused.
    assert!(refused().await);
    let file = house.0.certificates.dir().join("ann/cert.pem");
    let serial = storage_certs::Serial::of(&storage_certs::load_certificates(&file).unwrap()[0]);
    let serial = serial.unwrap().to_string();
    let revoked = house.record(&json!({ "operation": "log_in", "serial": serial }));
    assert_eq!(
        (&revoked["claimed"], &revoked["by"], &revoked["outcome"]),
        (&"cert:ann".into(), &"certificate".into(), &"denied".into())
    );
    assert!(revoked["reason"].as_str().unwrap().contains("evoked"));

    let text = house.text();
    for secret in ["hunter2", "correct horse", &foreign] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn administrative_acts_are_written_before_they_are_answered_and_survive_a_kill() {
    let mut house = House::new("").await;
    // By the command line, as an administrator does it.
    let mut grant = Command::new(binary("storage"));
    grant.args([
        "--url",
        &house.url("system"),
        "--identity",
        "boss",
        "--certs",
    ]);
    grant.arg(house.0.certificates.dir());
    grant.args(["access", "grant", "cert:ann", "model:ann/", "read,write"]);
    let granted = grant.output().unwrap();
    assert!(granted.status.success(), "{granted:?}");
    let boss = house.certified("boss", "model");
    let eve = json!({ "password": "correct horse", "new": true });
    assert_eq!(ask(&boss, "PUT", "users/eve", eve).await.0, 204);
    let eve = house.bare("model").password("eve", "correct horse");
    let (id, token) = mint_token(&eve, json!({})).await;
    let session = house
        .connect(house.bare("model").token(&token))
        .await
        .unwrap();
    session.get_one("closed/a".into()).await.unwrap_err();
    let revoked = ask(&eve, "DELETE", &format!("tokens/{id}"), Value::Null).await;
    assert_eq!(revoked.0, 204);
    let own = json!({ "password": "battery staple" });
    assert_eq!(ask(&eve, "PUT", "users/eve", own).await.0, 204);
    assert_eq!(ask(&boss, "POST", "keys", Value::Null).await.0, 204);
    assert_eq!(ask(&boss, "DELETE", "users/eve", Value::Null).await.0, 204);
    let system = house
        .connect(house.certified("boss", "system"))
        .await
        .unwrap();
    let rule = r#"{"principal":"cert:ann","keyspace":"x","allow":["read"]}"#;
    system
        .put("access/native".into(), rule.into())
        .await
        .unwrap();
    system
        .put("access/bad".into(), "{".into())
        .await
        .unwrap_err();
    let forced = json!({ "principal": "cert:boss", "keyspace": "system", "allow": ["admin"] });
    assert_eq!(
        ask(&boss, "PUT", "rules/forced?force=true", forced).await.0,
        204
    );
    // Each of them was answered: it is there, whatever happens now.
    house.0.server.kill();
    let records = house.records();
    let acts: Vec<_> = records
        .iter()
        .filter(|record| record["event"] == "admin")
        .map(|record| {
            let what = match record.get("changes") {
                Some(changes) => &changes[0],
                None => &record["keys"][0],
            };
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (
                text(&record["principal"]),
                text(&record["operation"]),
                text(what),
            )
        })
        .collect();
    let token = format!("tokens/{id}");
    let grant = &acts[0].2;
    assert!(grant.starts_with("put access/"), "{grant}");
    let expected = [
        ("cert:boss", "commit", grant.as_str()),
        ("cert:boss", "set password", "users/eve"),
        ("cert:boss", "commit", "put users/eve"),
        ("user:eve", "mint token", &token),
        ("user:eve", "revoke token", &token),
        ("user:eve", "set password", "users/eve"),
        ("user:eve", "commit", "put users/eve"),
        ("cert:boss", "rotate keys", "keys"),
        ("cert:boss", "commit", "remove users/eve"),
        ("cert:boss", "commit", "put access/native"),
        ("cert:boss", "commit", "put access/bad"),
        ("cert:boss", "commit by force", "put access/forced"),
    ];
    let expected = expected.map(|(who, what, key)| (who.into(), what.into(), key.into()));
    assert_eq!(acts, expected);
    for record in &records {
        assert!(record["address"].is_string(), "{record}");
        let is_change = record["event"] == "admin" && record["outcome"] == "allowed";
        let has_revision =
            record["operation"] != "set password" && record["operation"] != "rotate keys";
        assert_eq!(
            record["revision"].is_u64(),
            is_change && has_revision,
            "{record}"
        );
    }
    let bad = house.record(&json!({ "changes": ["put access/bad"] }));
    assert_eq!(
        (&bad["outcome"], &bad["session"].is_string()),
        (&"failed".into(), &true)
    );
    // As it was answered.
    let why = bad["reason"].as_str().unwrap();
    assert!(why.contains("key \"access/bad\": "), "{why}");
    // By the token: its id, and why its session was closed.
    let by_token = house.record(&json!({ "operation": "get", "by": "token" }));
    assert_eq!(
        (&by_token["token"], &by_token["principal"]),
        (&id.into(), &"user:eve".into())
    );
    let closed = house.record(&json!({ "operation": "close" }));
    assert_eq!(
        (&closed["reason"], &closed["event"]),
        (&"token revoked".into(), &"denied".into())
    );
    // A start goes on in the same file.
    let before = records.len();
    house.0.server.restart();
    assert_eq!(ask(&boss, "POST", "keys", Value::Null).await.0, 204);
    assert_eq!(house.records().len(), before + 1);
}

#[tokio::test]
async fn with_everything_on_each_call_is_written_with_its_revision() {
    let house = House::new(ALL).await;
    let ann = house
        .connect(house.certified("ann", "model"))
        .await
        .unwrap();
    let put = ann.put("open/b".into(), "1".into()).await.unwrap();
    let read = ann.get(&["open/b".into(), "open/c".into()]).await.unwrap();
    let open = || KeyRange::prefix("open/");
    let scan = ann.scan(open(), ScanOptions::default()).await.unwrap();
    let at = scan.position().revision.0;
    scan.collect().await.unwrap();
    let watch = ann.watch(open(), WatchOptions::default()).await.unwrap();
    let absent = Batch::new().check_absent("open/b").put("open/b", "2");
    ann.commit(absent, CommitOptions::default())
        .await
        .unwrap_err();
    drop(watch);
    let write = house.record(&json!({ "event": "write", "principal": "cert:ann" }));
    is_of(&write, "cert:ann", "certificate");
    assert_eq!(write["changes"], json!(["put open/b"]));
    assert_eq!(
        (&write["outcome"], &write["revision"]),
        (&"allowed".into(), &put.revision.0.into())
    );
    let get = house.record(&json!({ "operation": "get", "total": 2 }));
    is_of(&get, "cert:ann", "certificate");
    assert_eq!(get["revision"], read.position.revision.0);
    let scan = house.record(&json!({ "operation": "scan", "from": "open/" }));
    assert_eq!(
        (&scan["event"], &scan["revision"]),
        (&"read".into(), &at.into())
    );
    let watch = house.record(&json!({ "event": "watch" }));
    is_of(&watch, "cert:ann", "certificate");
    let failed = house.record(&json!({ "event": "write", "outcome": "failed" }));
    assert!(
        failed["reason"].as_str().unwrap().contains("check failed"),
        "{failed}"
    );
    // The session, from its certificate to its end.
    ann.close().await;
    for operation in ["open", "end"] {
        let session = write["session"].clone();
        house.record(&json!({ "event": "session", "operation": operation, "session": session }));
    }
    house.record(&json!({ "operation": "log_in", "principal": "cert:ann", "outcome": "allowed" }));
    // What is read over HTTP, too.
    let boss = house.certified("boss", "model");
    assert_eq!(ask(&boss, "GET", "users", Value::Null).await.0, 200);
    house.record(&json!({ "event": "read", "route": "GET /-/auth/users" }));
}

/// The marker is put wherever a peer can put something that is nobody's business.
#[tokio::test]
async fn no_value_token_password_query_or_id_of_a_session_is_ever_written() {
    const MARKER: &str = "marker-8f3e";
    let mut house = House::new(ALL).await;
    let boss = house.certified("boss", "model");
    let password = format!("{MARKER}-password");
    let user = json!({ "password": password, "new": true });
    assert_eq!(ask(&boss, "PUT", "users/eve", user).await.0, 204);
    let eve = house.bare("model").password("eve", &password);
    let (_, token) = mint_token(&eve, json!({})).await;
    let session = house
        .connect(house.bare("model").token(&token))
        .await
        .unwrap();
    let id = hex::encode(session.session().0);
    for _ in 0..20 {
        let batch = Batch::new()
            .put("open/a", MARKER)
            .signal("open/b", MARKER)
            .put_stamped("open/c/", MARKER, Lifetime::Session);
        let labelled = CommitOptions {
            label: Some(MARKER.to_owned()),
            ..CommitOptions::default()
        };
        session.commit(batch, labelled).await.unwrap();
        session.get_one("open/a".into()).await.unwrap();
        session
            .put("closed/a".into(), MARKER.into())
            .await
            .unwrap_err();
        let check = Batch::new().check_absent("open/a").put("open/a", MARKER);
        session
            .commit(check, CommitOptions::default())
            .await
            .unwrap_err();
    }
    // In credentials that are none, in each place of a request.
    for (user, password) in [("eve", MARKER), (MARKER, "x"), (MARKER, MARKER)] {
        house
            .connect(house.bare("model").password(user, password))
            .await
            .unwrap_err();
    }
    house
        .connect(house.bare("model").token(MARKER))
        .await
        .unwrap_err();
    let damaged = format!("{token}x");
    house
        .connect(house.bare("model").token(&damaged))
        .await
        .unwrap_err();
    for path in [
        format!("/storage/model?token={MARKER}"),
        format!("/-/auth/tokens/{MARKER}"),
        format!("/-/auth/tokens/{token}?token={token}"),
        format!("/-/auth/rules?access_token={MARKER}"),
    ] {
        for headers in [
            format!("Sec-WebSocket-Protocol: storage-sync.v1, bearer.{MARKER}\r\n"),
            format!("Authorization: {MARKER}\r\n"),
            format!("Authorization: Bearer {token}\r\n"),
            format!("Origin: https://{MARKER}\r\nAuthorization: Bearer {token}\r\n"),
        ] {
            let mut stream = tls_without_certificate(&house.0.server, &house.0.certificates).await;
            http(&mut stream, &upgrade_request(&path, &headers)).await;
        }
        let deleted = format!("/..{path}");
        let _ = request(&eve, "DELETE".parse().unwrap(), &path, None).await;
        let _ = request(&eve, "DELETE".parse().unwrap(), &deleted, None).await;
    }
    // In records of `system` that are none.
    let system = house
        .connect(house.certified("boss", "system"))
        .await
        .unwrap();
    let bad = format!("{{\"{MARKER}\":1}}");
    system
        .put("access/bad".into(), bad.clone().into())
        .await
        .unwrap_err();
    system
        .put("users/bad".into(), bad.into())
        .await
        .unwrap_err();
    let bad = json!({ "principal": MARKER, "keyspace": MARKER, "allow": [MARKER] }).to_string();
    system
        .put("access/bad".into(), bad.into())
        .await
        .unwrap_err();
    let named = json!({ "password": MARKER, MARKER: 1 });
    assert_eq!(ask(&boss, "PUT", "users/x", named).await.0, 400);
    drop(session);
    house.0.server.terminate();

    let records = house.records();
    let count = |event: &str| {
        records
            .iter()
            .filter(|record| record["event"] == event)
            .count()
    };
    assert!(
        count("write") >= 40 && count("read") >= 20 && count("denied") >= 10,
        "{records:#?}"
    );
    let text = house.text();
    let origin = format!("https://{MARKER}");
    for line in text.lines().filter(|line| !line.contains(&origin)) {
        assert!(!line.contains(MARKER), "{line}");
    }
    let signature = token.rsplit_once('.').unwrap().1;
    for secret in [token.as_str(), signature, &password, &hex::encode(MARKER)] {
        assert!(!text.contains(secret), "{secret}");
    }
    assert!(!text.contains(&id), "the id of a session");
}

#[tokio::test]
async fn a_flood_of_denials_is_bounded_and_counted() {
    let house = House::new("").await;
    let ann = house
        .connect(house.certified("ann", "model"))
        .await
        .unwrap();
    let began = Instant::now();
    for _ in 0..2000 {
        ann.get_one("closed/a".into()).await.unwrap_err();
    }
    let seconds = began.elapsed().as_secs() + 2;
    let deadline = Instant::now() + PATIENCE;
    let total = |records: &[Value]| -> u64 {
        let gets = records.iter().filter(|record| record["operation"] == "get");
        gets.map(|record| record["repeated"].as_u64().unwrap_or(1))
            .sum()
    };
    while total(&house.records()) < 2000 {
        assert!(Instant::now() < deadline, "{:#?}", house.records());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let records = house.records();
    assert_eq!(total(&records), 2000);
    assert!(
        records.len() as u64 <= 2 * seconds,
        "{} in {seconds} s",
        records.len()
    );
    let dropped = "storage_audit_records_dropped_total{reason=\"queue\"}";
    assert!(house.0.metric(dropped).await == 0.0);
    let written = house.0.metric("storage_audit_records_total").await;
    assert_eq!(written, f64::from(u32::try_from(records.len()).unwrap()));
}

#[tokio::test]
async fn without_events_there_is_no_log_and_a_folder_that_cannot_be_used_stops_the_start() {
    let house = House::new("[audit]\nevents = []").await;
    let ann = house
        .connect(house.certified("ann", "model"))
        .await
        .unwrap();
    ann.get_one("closed/a".into()).await.unwrap_err();
    assert!(!house.0.data().join("audit").exists());

    let certificates = Certificates::issue(&["ann"]);
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    std::fs::write(&taken, "a file").unwrap();
    let config = folder.path().join("server.toml");
    let text = format!("[audit]\nfolder = '{}'\n", taken.display());
    std::fs::write(&config, text).unwrap();
    let mut server = Command::new(binary("storage-server"));
    server.args(["serve", "--listen", "127.0.0.1:0", "--certs"]);
    server.arg(certificates.dir()).arg("--config").arg(&config);
    server.arg("--data").arg(folder.path().join("data"));
    let ended = server.output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        told.contains("audit log") && told.contains("taken"),
        "{told}"
    );

    // Elsewhere it is made, for its owner alone.
    let elsewhere = folder.path().join("logs/audit");
    let text = format!("[audit]\nfolder = '{}'\n", elsewhere.display());
    std::fs::write(&config, text).unwrap();
    let data = folder.path().join("data");
    let config = config.display().to_string();
    let mut server = ServerProcess::mutual(&certificates, &data, &["--config", &config]);
    assert!(elsewhere.is_dir() && !data.join("audit").exists());
    server.terminate();
}

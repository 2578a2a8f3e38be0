//! Quotas over real sockets: each kind is refused by its name, comes back, can be changed while it runs, and is nobody
//! else's.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

mod processes;

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use processes::{Ran, run};
use serde_json::{Value, json};
use storage_client::http::{Method, request};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::mwdb::{put_answer, put_request};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Limit, Outcome, Position, ScanOptions, Storage, StorageError,
    StorageExt, Watch, WatchEvent, WatchOptions,
};
use storage_testkit::harness::{binary, connect};
use storage_testkit::raw::{PATIENCE, Raw, upgrade_request};
use storage_testkit::served::Served;
use tokio_tungstenite::tungstenite::protocol::Message;

const CLIENTS: [&str; 3] = ["boss", "ann", "bob"];

fn served(config: &str) -> Served {
    Served::new(&CLIENTS, config)
}

/// Stores a quota; it holds with the answer.
async fn set(system: &RemoteStorage, name: &str, quota: &Value) {
    let batch = Batch::new().put(format!("quotas/{name}"), quota.to_string());
    system
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
}

async fn unset(system: &RemoteStorage, name: &str) {
    let batch = Batch::new().remove(format!("quotas/{name}"));
    system
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
}

#[track_caller]
fn overloaded<T: std::fmt::Debug>(result: Result<T, StorageError>, limit: Limit, max: u64) {
    let error = result.unwrap_err();
    assert_eq!(error, StorageError::Overloaded { limit, max });
    assert_eq!(error.outcome(), Outcome::NotExecuted);
    assert!(error.to_string().contains("quota_"), "{error}");
}

/// Commits that are all under way at once.
async fn burst(
    storage: &RemoteStorage,
    prefix: &str,
    count: usize,
) -> Vec<Result<Position, StorageError>> {
    let put = |n| storage.put(format!("{prefix}{n}").into(), "v".into());
    join_all((0..count).map(put)).await
}

/// Does it until it is not refused by a limit any more.
async fn until_it_is_taken<T>(mut attempt: impl AsyncFnMut() -> Result<T, StorageError>) -> T {
    let began = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(StorageError::Overloaded { .. } | StorageError::ConnectFailed { .. }) => {
                assert!(began.elapsed() < PATIENCE, "it does not come back");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn refusals(served: &Served, quota: &str) -> f64 {
    let name = format!("storage_quota_refused_total{{quota=\"{quota}\"}}");
    served.metric(&name).await
}

#[tokio::test]
async fn commits_beyond_a_principals_rate_are_refused_by_name_and_have_no_effect() {
    const RATE: u64 = 5;
    let served = served("");
    let system = served.connect("boss", "system").await;
    let (ann, bob) = (
        served.connect("ann", "model").await,
        served.connect("bob", "model").await,
    );
    // Two sessions of one principal have one rate.
    let again = served.connect("ann", "other").await;
    set(
        &system,
        "ann",
        &json!({"principal": "cert:ann", "commits_per_second": RATE}),
    )
    .await;
    let answers = burst(&ann, "ann/", 100).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(taken.len() >= 5, "a second's worth goes at once");
    assert!(refused.len() >= 50, "{} of 100", refused.len());
    let refused_len = refused.len();
    for answer in refused {
        overloaded(answer, Limit::CommitRate, RATE);
    }
    let stored = ann
        .scan(KeyRange::prefix("ann/"), ScanOptions::default())
        .await;
    assert_eq!(stored.unwrap().collect().await.unwrap().len(), taken.len());
    overloaded(
        again.put("k".into(), "v".into()).await,
        Limit::CommitRate,
        RATE,
    );
    // Reads are not counted, nor is anybody else.
    assert!(ann.get_one("ann/0".into()).await.unwrap().is_some());
    assert!(burst(&bob, "bob/", 100).await.iter().all(Result::is_ok));
    let counted = refusals(&served, "commits_per_second").await;
    assert!(counted > refused_len as f64, "{counted}");
    // Comes back by itself.
    until_it_is_taken(async || ann.put("k".into(), "v".into()).await).await;
    // Raised, and taken away.
    set(
        &system,
        "ann",
        &json!({"principal": "cert:ann", "commits_per_second": 1_000_000}),
    )
    .await;
    assert!(burst(&ann, "ann/", 100).await.iter().all(Result::is_ok));
    set(
        &system,
        "ann",
        &json!({"principal": "cert:ann", "commits_per_second": 1}),
    )
    .await;
    until_it_is_taken(async || ann.put("k".into(), "v".into()).await).await;
    unset(&system, "ann").await;
    assert!(burst(&ann, "ann/", 100).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_keyspace_takes_its_bytes_from_all_together_and_one_large_commit_always() {
    const RATE: u64 = 10_000;
    let served = served(
        "[[quota]]\nkeyspace = \"narrow*\"\nbytes_per_second = \"1 MiB\"\n\
         [[quota]]\nkeyspace = \"narrow\"\nbytes_per_second = 10000\n",
    );
    let (ann, bob) = (
        served.connect("ann", "narrow").await,
        served.connect("bob", "narrow").await,
    );
    // A hundred times what comes back in a second.
    let large = vec![7; 1_000_000];
    ann.put("large".into(), large.clone().into()).await.unwrap();
    overloaded(
        ann.put("k".into(), "v".into()).await,
        Limit::CommitByteRate,
        RATE,
    );
    overloaded(
        bob.put("k".into(), "v".into()).await,
        Limit::CommitByteRate,
        RATE,
    );
    let elsewhere = served.connect("ann", "wide").await;
    for n in 0..3 {
        let key = format!("large/{n}");
        elsewhere
            .put(key.into(), large.clone().into())
            .await
            .unwrap();
    }
    assert_eq!(refusals(&served, "commit_bytes_per_second").await, 2.0);
}

#[tokio::test]
async fn the_smallest_quota_of_those_that_match_holds() {
    let served = served(
        "[[role]]\nname = \"crew\"\nmembers = [\"cert:ann\", \"cert:b*\"]\n\
         [[quota]]\nprincipal = \"role:crew\"\nwatches = 2\n",
    );
    let system = served.connect("boss", "system").await;
    let ann = served.connect("ann", "model").await;
    set(&system, "all", &json!({"principal": "*", "watches": 3})).await;
    let watch = || ann.watch(KeyRange::all(), WatchOptions::default());
    let _held = (watch().await.unwrap(), watch().await.unwrap());
    overloaded(watch().await.map(drop), Limit::QuotaWatches, 2);
    set(&system, "all", &json!({"principal": "*", "watches": 1})).await;
    overloaded(watch().await.map(drop), Limit::QuotaWatches, 1);
}

async fn watch(storage: &RemoteStorage) -> Result<Watch, StorageError> {
    storage
        .watch(KeyRange::all(), WatchOptions::default())
        .await
}

#[tokio::test]
async fn watches_are_counted_over_sessions_and_one_that_ended_makes_room() {
    let served = served("");
    let system = served.connect("boss", "system").await;
    let (one, two) = (
        served.connect("ann", "model").await,
        served.connect("ann", "other").await,
    );
    let bob = served.connect("bob", "model").await;
    // What is there when a quota is set counts, and stays.
    let mut held = vec![
        watch(&one).await.unwrap(),
        watch(&two).await.unwrap(),
        watch(&two).await.unwrap(),
    ];
    set(
        &system,
        "ann",
        &json!({"principal": "cert:ann", "watches": 2}),
    )
    .await;
    overloaded(watch(&one).await.map(drop), Limit::QuotaWatches, 2);
    let put = one.put("k".into(), "v".into()).await.unwrap();
    let told = tokio::time::timeout(PATIENCE, held[0].next()).await;
    let Some(WatchEvent::Commit(told)) = told.unwrap().unwrap() else {
        panic!("not told");
    };
    assert_eq!(told.revision, put.revision);
    let mut of_bob = Vec::new();
    for _ in 0..3 {
        of_bob.push(watch(&bob).await.unwrap());
    }
    held.truncate(1);
    let again = until_it_is_taken(async || watch(&two).await).await;
    overloaded(watch(&two).await.map(drop), Limit::QuotaWatches, 2);
    // A session that is gone has no watches.
    two.close().await;
    drop((again, two));
    let third = served.connect("ann", "third").await;
    until_it_is_taken(async || watch(&third).await).await;
    // Of a keyspace, whoever watches it.
    set(
        &system,
        "third",
        &json!({"keyspace": "third", "watches": 1}),
    )
    .await;
    let beside = served.connect("bob", "third").await;
    let only = until_it_is_taken(async || watch(&beside).await).await;
    unset(&system, "ann").await;
    overloaded(watch(&third).await.map(drop), Limit::QuotaWatches, 1);
    of_bob.push(watch(&bob).await.unwrap());
    drop(only);
    until_it_is_taken(async || watch(&third).await).await;
    assert!(refusals(&served, "watches").await >= 3.0);
}

async fn attempt(
    served: &Served,
    client: &str,
    keyspace: &str,
) -> Result<RemoteStorage, StorageError> {
    connect(&served.server, &served.certificates, client, keyspace).await
}

#[tokio::test]
async fn sessions_beyond_a_quota_are_refused_at_the_door_and_those_inside_stay() {
    let served = served("");
    let system = served.connect("boss", "system").await;
    let (one, two) = (
        served.connect("ann", "a").await,
        served.connect("ann", "b").await,
    );
    set(
        &system,
        "ann",
        &json!({"principal": "cert:ann", "sessions": 2}),
    )
    .await;
    let refused = async |client, keyspace| {
        let error = attempt(&served, client, keyspace)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("503") && error.contains("quota_sessions_max"),
            "{error}"
        );
    };
    refused("ann", "a").await;
    let _other = served.connect("bob", "a").await;
    // Lowered, it closes nobody.
    set(
        &system,
        "ann",
        &json!({"principal": "cert:ann", "sessions": 1}),
    )
    .await;
    one.put("k".into(), "v".into()).await.unwrap();
    two.put("k".into(), "v".into()).await.unwrap();
    two.close().await;
    drop(two);
    refused("ann", "a").await;
    one.close().await;
    drop(one);
    let one = until_it_is_taken(async || attempt(&served, "ann", "a").await).await;
    unset(&system, "ann").await;
    // Of a keyspace: ann and bob are in it.
    set(&system, "a", &json!({"keyspace": "a", "sessions": 2})).await;
    refused("boss", "a").await;
    let _elsewhere = served.connect("boss", "b").await;
    one.close().await;
    drop(one);
    until_it_is_taken(async || attempt(&served, "boss", "a").await).await;
    let counted = refusals(&served, "sessions").await;
    assert!(counted >= 3.0, "{counted}");
    let refused = "storage_connections_refused_total{reason=\"quota_sessions_max\"}";
    assert_eq!(served.metric(refused).await, counted);
}

#[tokio::test]
async fn an_mwdb_client_is_answered_with_0_beyond_its_rate_and_counts_as_a_session_and_a_watch() {
    let served = served("[[quota]]\nkeyspace = \"mwdb\"\ncommits_per_second = 1\nwatches = 1\n");
    let system = served.connect("boss", "system").await;
    let mut peer = served.mwdb("ann").await;
    let put = put_request([(&b"k"[..], &b"v"[..])], b"C").unwrap();
    for _ in 0..20 {
        peer.feed(Message::Binary(put.clone())).await;
    }
    peer.flush().await;
    let mut refused = 0;
    for _ in 0..20 {
        refused += u32::from(peer.binary().await == put_answer(false, b"C"));
    }
    assert!((10..20).contains(&refused), "{refused} of 20");
    assert_eq!(
        refusals(&served, "commits_per_second").await,
        f64::from(refused)
    );
    // It watches for as long as it is there.
    let (code, reason) = served.mwdb("bob").await.closed().await;
    assert!(
        code == 1013 && reason.contains("quota_watches_max"),
        "{code} {reason}"
    );
    set(&system, "mwdb", &json!({"keyspace": "mwdb", "sessions": 1})).await;
    let (server, certificates) = (&served.server, &served.certificates);
    let refused = Raw::open(server, certificates, "bob", &upgrade_request("/", "")).await;
    let answer = refused.unwrap_err();
    assert!(
        answer.status == 503 && answer.text().contains("quota_sessions_max"),
        "{answer:?}"
    );
}

/// `storage`, as boss.
fn storage(served: &Served, arguments: &[&str]) -> Ran {
    let mut command = Command::new(binary("storage"));
    for name in ["STORAGE_URL", "STORAGE_CERTS", "STORAGE_IDENTITY"] {
        command.env_remove(name);
    }
    let url = format!("{}/storage/model", served.server.url("storage"));
    command
        .args(["--url", &url, "--identity", "boss", "--certs"])
        .arg(served.certificates.dir())
        .args(arguments);
    run(&mut command, b"")
}

#[tokio::test]
async fn quotas_are_set_listed_and_removed_by_the_command_line() {
    let served = served("[[quota]]\nprincipal = \"role:nobody\"\nsessions = 7\n");
    let set = [
        "quota",
        "set",
        "t a/1",
        "--keyspace",
        "model",
        "--bytes",
        "10GiB",
        "--entries",
        "5",
        "--watches",
        "2",
    ];
    let line = "t a/1\tkeyspace model\tbytes=10GiB entries=5 watches=2\n";
    let said = storage(&served, &set).expect(0);
    assert!(
        said.text().ends_with(&line["t a/1".len()..]),
        "{}",
        said.text()
    );
    let boss = served.connect("boss", "model").await;
    boss.put("key".into(), "value".into()).await.unwrap();
    let listed = storage(&served, &["quota", "list"]).expect(0);
    let lines: Vec<&str> = listed.text().lines().collect();
    assert_eq!(
        lines[0],
        "quota[0] of the configuration\trole:nobody\tsessions=7"
    );
    assert!(
        lines[1].contains("\tkeyspace model\tbytes=8/10GiB entries=1/5 watches=2"),
        "{lines:?}"
    );
    assert!(listed.stderr.contains("role:nobody"), "{}", listed.stderr);
    let listed = storage(&served, &["--json", "quota", "list"]).expect(0);
    let json: Value = serde_json::from_str(listed.text().lines().nth(1).unwrap()).unwrap();
    assert_eq!(json["from"], json!({"name": "t a/1"}));
    assert_eq!(json["quota"]["bytes"], json!(10u64 << 30));
    assert_eq!(json["usage"], json!({"bytes": 8, "entries": 1}));
    let usage = storage(&served, &["quota", "usage", "model"]).expect(0);
    assert_eq!(
        usage.text(),
        "bytes: 8 of 10737418240\nentries: 1 of 5\nwatches: at most 2\n"
    );
    // What is no quota is refused before anything is changed.
    storage(
        &served,
        &["quota", "set", "x", "--principal", "cert:a", "--bytes", "1"],
    )
    .expect(2);
    storage(
        &served,
        &["quota", "set", "x", "--keyspace", "a", "--sessions", "0"],
    )
    .expect(2);
    storage(
        &served,
        &["quota", "set", "", "--keyspace", "a", "--sessions", "1"],
    )
    .expect(2);
    storage(&served, &["quota", "rm", "none"])
        .expect(1)
        .says(&["there is no stored quota none"]);
    storage(&served, &["quota", "rm", "t a/1"]).expect(0);
    let listed = storage(&served, &["quota", "list"]).expect(0);
    assert_eq!(listed.text().lines().count(), 1);
}

#[tokio::test]
async fn quotas_are_for_administrators_and_hold_over_a_restart() {
    let mut served = served(
        "[[rule]]\nprincipal = \"cert:boss\"\nkeyspace = \"system\"\nallow = [\"admin\"]\n\
         [[rule]]\nprincipal = \"*\"\nkeyspace = \"model\"\nallow = [\"read\", \"write\", \"watch\", \"admin\"]\n",
    );
    let ask =
        async |served: &Served, client: &str, method: Method, path: &str, body: Option<Value>| {
            let url = format!("{}/storage/model", served.server.url("storage"));
            let folder = served.certificates.dir().join(client);
            let options = ConnectOptions::new(url).credentials_dir(folder);
            let body = body.map(|body| body.to_string().into_bytes());
            let path = format!("/-/auth/{path}");
            let (status, answer) = request(&options, method, &path, body).await.unwrap();
            (status.as_u16(), String::from_utf8(answer.to_vec()).unwrap())
        };
    let quota = json!({"principal": "cert:ann", "commits_per_second": 1});
    for (method, path, body) in [
        (Method::GET, "quotas", None),
        (Method::GET, "usage?keyspace=model", None),
        (Method::PUT, "quotas/x", Some(quota.clone())),
        (Method::DELETE, "quotas/x", None),
    ] {
        let (status, text) = ask(&served, "ann", method, path, body).await;
        assert_eq!(status, 403, "{path}: {text}");
    }
    let (status, text) = ask(
        &served,
        "boss",
        Method::PUT,
        "quotas/x",
        Some(json!({"principal": "a"})),
    )
    .await;
    assert!(
        status == 400 && text.contains("at least one of"),
        "{status} {text}"
    );
    let (status, text) = ask(&served, "boss", Method::PUT, "quotas/x", Some(quota)).await;
    assert_eq!(status, 204, "{text}");
    served.server.restart();
    let ann = served.connect("ann", "model").await;
    let answers = burst(&ann, "k", 20).await;
    let refused = answers.into_iter().filter(Result::is_err);
    assert!(refused.count() >= 10);
    // The server itself is not limited: nor, so, is what it does for the principal.
    let (status, text) = ask(&served, "ann", Method::POST, "tokens", Some(json!({}))).await;
    assert_eq!(status, 201, "{text}");
}

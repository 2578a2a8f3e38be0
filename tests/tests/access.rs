//! Access rules over real sockets: what a principal may do, what it learns, and what changes while it is there.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::time::Duration;

use storage_client::RemoteStorage;
use storage_protocol::{
    Batch, CommitOptions, Continuity, KeyRange, KeyState, Lifetime, ResyncReason, ScanItem,
    ScanOptions, Storage, StorageError, StorageExt, Watch, WatchEvent, WatchOptions, WatchStart,
};
use storage_testkit::entrance::BOSS;
use storage_testkit::served::Served;

const PATIENCE: Duration = Duration::from_secs(30);

fn served(rules: &str) -> Served {
    Served::new(&["boss", "ann", "bob"], &format!("{BOSS}\n{rules}"))
}

const ANN: &str = r#"
[[rule]]
principal = "role:readers"
keyspace = "model"
prefix = "a/"
allow = ["read", "watch"]

[[rule]]
principal = "cert:ann"
keyspace = "model"
prefix = "c/"
allow = ["read", "write", "watch"]

[[role]]
name = "readers"
members = ["cert:ann"]
"#;

async fn filled(served: &Served) -> RemoteStorage {
    let boss = served.connect("boss", "model").await;
    let batch = Batch::new()
        .put("a/1", "1")
        .put("b/1", "secret")
        .put("c/1", "3");
    boss.commit(batch, CommitOptions::default()).await.unwrap();
    boss
}

fn keys(items: &[ScanItem]) -> Vec<String> {
    let text = |item: &ScanItem| String::from_utf8(item.key.to_vec()).unwrap();
    items.iter().map(text).collect()
}

/// The denial's text.
#[track_caller]
fn denied<T: std::fmt::Debug>(result: Result<T, StorageError>) -> String {
    match result.unwrap_err() {
        StorageError::AccessDenied { message } => message,
        error => panic!("{error:?}"),
    }
}

async fn next(watch: &mut Watch) -> Option<WatchEvent> {
    let next = tokio::time::timeout(PATIENCE, watch.next()).await;
    next.expect("an event").unwrap()
}

#[tokio::test]
async fn calls_go_as_far_as_the_rules_and_tell_nothing_of_what_lies_behind() {
    let served = served(ANN);
    let boss = filled(&served).await;
    let ann = served.connect("ann", "model").await;
    let ok = CommitOptions::default;

    assert!(ann.get_one("a/1".into()).await.unwrap().is_some());
    // The same whether the key is there or not.
    let there = denied(ann.get(&["a/1".into(), "b/1".into()]).await);
    let missing = denied(ann.get(&["b/2".into()]).await);
    assert_eq!(there.replace("b/1", "b/2"), missing);
    assert!(there.contains("cert:ann may not read"), "{there}");

    let scanned = ann.scan(KeyRange::all(), ScanOptions::default()).await;
    let scanned = scanned.unwrap().collect().await.unwrap();
    assert_eq!(keys(&scanned), ["a/1", "c/1"]);
    let last = ScanOptions {
        reverse: true,
        limit: Some(1),
        ..ScanOptions::default()
    };
    let scanned = ann.scan(KeyRange::all(), last).await.unwrap();
    assert_eq!(keys(&scanned.collect().await.unwrap()), ["c/1"]);
    denied(
        ann.scan(KeyRange::prefix("b/"), ScanOptions::default())
            .await
            .map(|_| ()),
    );

    denied(ann.commit(Batch::new().put("a/1", "2"), ok()).await);
    denied(
        ann.commit(Batch::new().put("c/1", "4").remove("b/1"), ok())
            .await,
    );
    denied(ann.commit(Batch::new().signal("b/1", "!"), ok()).await);
    // A check tells whether a key is there, and a previous value what it was.
    denied(
        ann.commit(Batch::new().check_absent("b/2").put("c/1", "4"), ok())
            .await,
    );
    denied(
        ann.commit(Batch::new().put_stamped("c", "v", Lifetime::Forever), ok())
            .await,
    );
    let stamped = Batch::new().put_stamped("c/log/", "v", Lifetime::Forever);
    ann.commit(stamped, ok()).await.unwrap();
    ann.commit(Batch::new().check_absent("a/2").put("c/1", "4"), ok())
        .await
        .unwrap();
    assert_eq!(
        &boss.get_one("b/1".into()).await.unwrap().unwrap().value[..],
        b"secret"
    );

    // A keyspace is made by an administrator.
    let other = served.connect("ann", "other").await;
    assert!(denied(other.put("c/1".into(), "1".into()).await).contains("other"));
    let bob = served.connect("bob", "model").await;
    denied(bob.get(&["a/1".into()]).await);
    denied(
        bob.watch(KeyRange::all(), WatchOptions::default())
            .await
            .map(|_| ()),
    );
}

#[tokio::test]
async fn a_watch_tells_the_part_of_each_commit_that_may_be_seen() {
    let served = served(ANN);
    let boss = filled(&served).await;
    let ann = served.connect("ann", "model").await;
    let mut watch = ann
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    let hidden = Batch::new().put("b/1", "more").put("b/2", "more");
    boss.commit(hidden, CommitOptions::default()).await.unwrap();
    let batch = Batch::new().put("a/2", "1").put("b/3", "x").put("c/2", "2");
    let options = CommitOptions {
        with_previous: true,
        ..CommitOptions::default()
    };
    boss.commit(batch, options).await.unwrap();
    let Some(WatchEvent::Commit(commit)) = next(&mut watch).await else {
        panic!("no commit");
    };
    let told: Vec<_> = commit
        .changes
        .iter()
        .map(|change| change.key.clone())
        .collect();
    assert_eq!(told, ["a/2", "c/2"]);

    let latest = WatchOptions::latest(WatchStart::Beginning);
    let mut latest = ann.watch(KeyRange::all(), latest).await.unwrap();
    let mut seen = Vec::new();
    while let Some(WatchEvent::State { key, .. }) = next(&mut latest).await {
        seen.push(String::from_utf8(key.to_vec()).unwrap());
    }
    seen.sort();
    assert_eq!(seen, ["a/1", "a/2", "c/1", "c/2"]);
}

fn rule(json: &str) -> Batch {
    Batch::new().put("access/ann", json.to_owned())
}

#[tokio::test]
async fn a_live_watch_goes_on_under_new_grants_and_says_so() {
    let served = served(ANN);
    let boss = filled(&served).await;
    let system = served.connect("boss", "system").await;
    let ann = served.connect("ann", "model").await;
    let mut watch = ann
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    let mut other = ann
        .watch(KeyRange::prefix("a/"), WatchOptions::default())
        .await
        .unwrap();

    let grant = r#"{"principal":"cert:ann","keyspace":"model","prefix":"b/","allow":["watch"]}"#;
    system
        .commit(rule(grant), CommitOptions::default())
        .await
        .unwrap();
    // The rule holds with the answer: whoever commits next, the new watch has it.
    boss.put("b/9".into(), "9".into()).await.unwrap();
    let Some(WatchEvent::Continuity(Continuity::Resynced { why })) = next(&mut watch).await else {
        panic!("not told");
    };
    assert_eq!(why, ResyncReason::AccessChanged);
    let mut seen = Vec::new();
    loop {
        match next(&mut watch).await.unwrap() {
            WatchEvent::State {
                key,
                state: KeyState::Live(_),
            } => seen.push(key),
            WatchEvent::Progress { .. } => break,
            WatchEvent::Reset => {}
            event => panic!("{event:?}"),
        }
    }
    assert!(
        seen.contains(&"b/1".into()) && seen.contains(&"a/1".into()),
        "{seen:?}"
    );

    // Taken back: what is told from then on is of the rest. (What came before may still be on its way.)
    let back = Batch::new().remove("access/ann");
    let back = system.commit(back, CommitOptions::default()).await.unwrap();
    boss.put("b/1".into(), "hidden".into()).await.unwrap();
    let last = boss.put("a/1".into(), "shown".into()).await.unwrap();
    let is_hidden = |key: &[u8], revision| key.starts_with(b"b/") && revision > back.revision;
    loop {
        match next(&mut watch).await.unwrap() {
            WatchEvent::State { key, state } => assert!(!is_hidden(&key, state.revision())),
            WatchEvent::Commit(commit) => {
                for change in &commit.changes {
                    assert!(!is_hidden(&change.key, commit.revision), "{commit:?}");
                }
                if commit.revision == last.revision {
                    break;
                }
            }
            WatchEvent::Progress { position, .. } if position.revision >= last.revision => break,
            _ => {}
        }
    }
    // A watch that the change does not concern is not disturbed.
    let Some(WatchEvent::Commit(commit)) = next(&mut other).await else {
        panic!("disturbed");
    };
    assert_eq!(commit.changes[0].key, "a/1");
}

#[tokio::test]
async fn who_may_see_nothing_any_more_is_told_and_nothing_else() {
    let served = served(ANN);
    let boss = filled(&served).await;
    let system = served.connect("boss", "system").await;
    let grant = r#"{"principal":"cert:bob","keyspace":"model","allow":["read","watch"]}"#;
    system
        .commit(rule(grant), CommitOptions::default())
        .await
        .unwrap();
    let bob = served.connect("bob", "model").await;
    let mut watch = bob
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    let mut scan = {
        for n in 0..300 {
            let key = format!("big/{n:03}");
            boss.put(key.into(), vec![7; 4096].into()).await.unwrap();
        }
        bob.scan(KeyRange::prefix("big/"), ScanOptions::default())
            .await
            .unwrap()
    };
    scan.next_page().await.unwrap().unwrap();
    let back = Batch::new().remove("access/ann");
    system.commit(back, CommitOptions::default()).await.unwrap();
    boss.put("a/secret".into(), "1".into()).await.unwrap();
    assert_eq!(
        scan.next_page().await.unwrap_err(),
        StorageError::AccessChanged
    );
    loop {
        match tokio::time::timeout(PATIENCE, watch.next())
            .await
            .expect("an end")
        {
            Ok(Some(WatchEvent::Commit(commit))) => {
                assert!(commit.changes.iter().all(|change| change.key != "a/secret"));
            }
            Ok(Some(WatchEvent::Continuity(_) | WatchEvent::Reset)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                denied::<()>(Err(error));
                break;
            }
        }
    }
}

#[tokio::test]
async fn the_keyspace_of_the_rules_is_for_administrators_and_that_of_secrets_for_nobody() {
    let served = served(ANN);
    let ok = CommitOptions::default;
    let ann = served.connect("ann", "system").await;
    denied(ann.get(&["access/x".into()]).await);
    denied(ann.commit(rule("{}"), ok()).await);
    denied(
        ann.watch(KeyRange::all(), WatchOptions::default())
            .await
            .map(|_| ()),
    );
    for who in ["ann", "boss"] {
        let secrets = served.connect(who, "system.secrets").await;
        denied(secrets.get(&["keys".into()]).await);
        denied(secrets.put("keys".into(), "1".into()).await);
        denied(
            secrets
                .scan(KeyRange::all(), ScanOptions::default())
                .await
                .map(|_| ()),
        );
    }
    let boss = served.connect("boss", "system").await;
    let error = boss
        .commit(rule(r#"{"principal":"x"}"#), ok())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("access/ann"), "{error}");
    let error = boss.put("anything".into(), "1".into()).await.unwrap_err();
    assert!(
        matches!(error, StorageError::InvalidArgument { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn stored_rules_hold_over_a_restart_and_nobody_locks_all_out() {
    let mut served = Served::new(&["boss", "ann"], "");
    let boss = served.connect("boss", "system").await;
    let ok = CommitOptions::default;
    // Without a rule everybody may do everything; the first one must leave an administrator.
    let ann = served.connect("ann", "model").await;
    ann.put("k".into(), "v".into()).await.unwrap();
    let grant = r#"{"principal":"cert:ann","keyspace":"model","allow":["read"]}"#;
    let error = boss.commit(rule(grant), ok()).await.unwrap_err();
    assert!(error.to_string().contains("nobody could change"), "{error}");
    let admin = r#"{"principal":"cert:boss","keyspace":"system","allow":["admin"]}"#;
    let both = rule(grant).put("access/boss", admin);
    boss.commit(both, ok()).await.unwrap();
    denied(ann.put("k".into(), "w".into()).await);
    let error = boss
        .commit(Batch::new().remove("access/boss"), ok())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nobody could change"), "{error}");
    ann.close().await;
    boss.close().await;
    served.server.restart();
    let ann = served.connect("ann", "model").await;
    denied(ann.put("k".into(), "w".into()).await);
    assert!(ann.get_one("k".into()).await.unwrap().is_some());
    denied(
        served
            .connect("ann", "system")
            .await
            .get(&["access/boss".into()])
            .await,
    );
}

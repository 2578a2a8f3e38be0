//! What lifetimes promise: readable to their end, then removed by a commit like any other.
//!
//! The cases wait on a watch for that commit. Where one must *not* come, a second entry that is due later stands as
//! the sentinel: once it is gone, what has not come will not.

use std::sync::Arc;
use std::time::Duration;

use storage_protocol::{
    Batch, ChangeKind, CommitRecord, EntryLifetime, KeyRange, KeyState, Lifetime, StorageExt,
    Watch, WatchStart,
};

use super::support::{
    Handle, Mirror, assert_check_failed, bytes, commit, entry, newer_than, next_commit, put,
    refused, remove, scan, told, value, watch_every, watch_latest,
};
use super::{Context, cases};

cases!["lifetimes":
    an_expired_entry_is_removed_by_a_labelled_commit [Expiry],
    an_expired_entry_leaves_a_tombstone [Expiry],
    an_expired_entry_fails_its_check [Expiry],
    expiry_reaches_watches_of_the_latest [Expiry],
    all_that_is_due_expires [Expiry],
    a_stamped_entry_expires [Expiry],
    a_put_without_end_stops_the_expiry [Expiry],
    a_put_with_a_later_end_moves_the_expiry [Expiry],
    a_removed_entry_does_not_expire [Expiry],
    a_session_entry_is_seen_by_all,
    an_ended_session_removes_its_entries [EndSession],
    an_ended_session_leaves_other_entries [EndSession],
    an_entry_put_by_another_session_stays [EndSession],
    an_ended_session_reaches_watches_of_the_latest [EndSession],
];

const SHORT: Lifetime = Lifetime::TimeToLive(Duration::from_millis(50));

async fn watch_now(storage: &Handle) -> Watch {
    watch_every(storage, KeyRange::all(), WatchStart::Now).await
}

/// Takes commits up to the one that removes `key`.
async fn commits_until_removed(watch: &mut Watch, key: &str) -> Vec<Arc<CommitRecord>> {
    let removal = format!("remove {key}");
    let mut commits = Vec::new();
    loop {
        commits.push(next_commit(watch).await);
        if told(&commits[commits.len() - 1].changes).contains(&removal) {
            return commits;
        }
    }
}

fn removals(commits: &[Arc<CommitRecord>]) -> Vec<String> {
    let lines = commits.iter().flat_map(|commit| told(&commit.changes));
    lines.filter(|line| line.starts_with("remove")).collect()
}

async fn put_short(storage: &Handle, key: &str) {
    commit(storage, Batch::new().put_with(bytes(key), "x", SHORT)).await;
}

async fn an_expired_entry_is_removed_by_a_labelled_commit(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_now(&storage).await;
    let lifetime = Lifetime::TimeToLive(Duration::from_millis(500));
    let committed = commit(&storage, Batch::new().put_with("a", "x", lifetime)).await;
    assert_eq!(value(&storage, "a").await.as_deref(), Some("x"));
    let put = next_commit(&mut watch).await;
    let ChangeKind::Put {
        lifetime: EntryLifetime::Until(due),
        ..
    } = put.changes[0].kind
    else {
        panic!("a time to live is told as the time it is due");
    };
    let removal = next_commit(&mut watch).await;
    assert_eq!(put.revision, committed.revision);
    assert!(removal.revision > committed.revision);
    assert_eq!(told(&removal.changes), ["remove a"]);
    assert_eq!(removal.label.as_deref(), Some("expired"));
    assert_eq!(removal.principal, "server");
    assert!(removal.time >= due, "it was removed before it was due");
    assert_eq!(entry(&storage, "a").await, None);
}

async fn an_expired_entry_leaves_a_tombstone(context: Context) {
    let storage = context.open().await;
    let before = put(&storage, "b", "1").await;
    let mut watch = watch_now(&storage).await;
    put_short(&storage, "a").await;
    let commits = commits_until_removed(&mut watch, "a").await;
    let found = scan(&storage, KeyRange::all(), newer_than(before)).await;
    let revision = commits[commits.len() - 1].revision;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].state, KeyState::Removed(revision));
}

async fn an_expired_entry_fails_its_check(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_now(&storage).await;
    let batch = Batch::new().put_with("a", "x", SHORT);
    let committed = commit(&storage, batch).await;
    commits_until_removed(&mut watch, "a").await;
    let batch = Batch::new().check_revision("a", committed.revision);
    assert_check_failed(&refused(&storage, batch.put("a", "y")).await, "a", None);
    commit(&storage, Batch::new().check_absent("a").put("a", "y")).await;
}

async fn expiry_reaches_watches_of_the_latest(context: Context) {
    let storage = context.open().await;
    put_short(&storage, "a").await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, std::collections::BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    while !mirror.entries.is_empty() {
        mirror.until_next_mark(&mut watch).await;
    }
    assert_eq!(entry(&storage, "a").await, None);
}

async fn all_that_is_due_expires(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_now(&storage).await;
    let batch = (0..50).fold(Batch::new(), |batch, n| {
        batch.put_with(format!("{n:02}"), "x", SHORT)
    });
    commit(&storage, batch.put("stays", "x")).await;
    let mut gone = Vec::new();
    while gone.len() < 50 {
        gone.extend(removals(&[next_commit(&mut watch).await]));
    }
    gone.sort();
    let expected: Vec<String> = (0..50).map(|n| format!("remove {n:02}")).collect();
    assert_eq!(gone, expected);
    assert_eq!(value(&storage, "stays").await.as_deref(), Some("x"));
}

async fn a_stamped_entry_expires(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_now(&storage).await;
    commit(&storage, Batch::new().put_stamped("log/", "x", SHORT)).await;
    let put = next_commit(&mut watch).await;
    let removal = next_commit(&mut watch).await;
    assert_eq!(removal.changes[0].key, put.changes[0].key);
    assert_eq!(removal.label.as_deref(), Some("expired"));
}

async fn a_put_without_end_stops_the_expiry(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_now(&storage).await;
    put_short(&storage, "a").await;
    put(&storage, "a", "stays").await;
    put_short(&storage, "sentinel").await;
    let commits = commits_until_removed(&mut watch, "sentinel").await;
    let gone = removals(&commits);
    // The first life may have ended before the second began, if the machine was busy.
    assert!(gone == ["remove sentinel"] || gone.len() == 2, "{gone:?}");
    assert_eq!(value(&storage, "a").await.as_deref(), Some("stays"));
}

async fn a_put_with_a_later_end_moves_the_expiry(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_now(&storage).await;
    put_short(&storage, "a").await;
    let hour = Lifetime::TimeToLive(Duration::from_secs(3600));
    commit(&storage, Batch::new().put_with("a", "stays", hour)).await;
    put_short(&storage, "sentinel").await;
    commits_until_removed(&mut watch, "sentinel").await;
    assert_eq!(value(&storage, "a").await.as_deref(), Some("stays"));
}

async fn a_removed_entry_does_not_expire(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_now(&storage).await;
    put_short(&storage, "a").await;
    remove(&storage, "a").await;
    put_short(&storage, "sentinel").await;
    let commits = commits_until_removed(&mut watch, "sentinel").await;
    assert_eq!(removals(&commits), ["remove a", "remove sentinel"]);
}

async fn put_for_session(storage: &Handle, key: &str) {
    let batch = Batch::new().put_with(bytes(key), "session", Lifetime::Session);
    commit(storage, batch).await;
}

async fn a_session_entry_is_seen_by_all(context: Context) {
    let (one, other) = (context.open().await, context.open().await);
    put_for_session(&one, "a").await;
    let entry = other.get_one(bytes("a")).await.unwrap().unwrap();
    assert_eq!(entry.lifetime, EntryLifetime::Session);
    assert_eq!(&entry.value[..], b"session");
}

async fn an_ended_session_removes_its_entries(context: Context) {
    let (session, storage) = (context.session().await, context.open().await);
    let mut watch = watch_now(&storage).await;
    for key in ["a", "b", "c"] {
        put_for_session(&session.storage, key).await;
        next_commit(&mut watch).await;
    }
    remove(&session.storage, "c").await;
    next_commit(&mut watch).await;
    (session.end.unwrap())().await;
    let mut gone = Vec::new();
    while gone.len() < 2 {
        let record = next_commit(&mut watch).await;
        assert_eq!(record.label.as_deref(), Some("session ended"));
        assert_eq!(record.principal, "server");
        gone.extend(told(&record.changes));
    }
    gone.sort();
    assert_eq!(gone, ["remove a", "remove b"]);
    assert_eq!(value(&storage, "a").await, None);
}

async fn an_ended_session_leaves_other_entries(context: Context) {
    let (session, storage) = (context.session().await, context.open().await);
    let mut watch = watch_now(&storage).await;
    put(&session.storage, "for ever", "x").await;
    put_for_session(&storage, "of another").await;
    put_for_session(&session.storage, "sentinel").await;
    (session.end.unwrap())().await;
    commits_until_removed(&mut watch, "sentinel").await;
    assert!(entry(&storage, "for ever").await.is_some());
    assert!(entry(&storage, "of another").await.is_some());
}

async fn an_entry_put_by_another_session_stays(context: Context) {
    let (session, storage) = (context.session().await, context.open().await);
    let mut watch = watch_now(&storage).await;
    for key in ["a", "b", "c", "sentinel"] {
        put_for_session(&session.storage, key).await;
    }
    put(&storage, "a", "taken over").await;
    put_for_session(&storage, "b").await;
    put(&session.storage, "c", "for ever now").await;
    (session.end.unwrap())().await;
    let commits = commits_until_removed(&mut watch, "sentinel").await;
    assert_eq!(removals(&commits), ["remove sentinel"]);
    for key in ["a", "b", "c"] {
        assert!(entry(&storage, key).await.is_some(), "{key} is gone");
    }
}

async fn an_ended_session_reaches_watches_of_the_latest(context: Context) {
    let (session, storage) = (context.session().await, context.open().await);
    put_for_session(&session.storage, "a").await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, std::collections::BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    assert_eq!(mirror.entries.len(), 1);
    (session.end.unwrap())().await;
    while !mirror.entries.is_empty() {
        mirror.until_next_mark(&mut watch).await;
    }
    assert_eq!(entry(&storage, "a").await, None);
}

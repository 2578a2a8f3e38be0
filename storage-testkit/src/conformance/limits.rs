//! What is refused before it is looked at, each limit by its name, and what is just within.
//!
//! The numbers come from `limits()`, so an engine that takes less is held to what it says.

use std::time::Duration;

use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, Lifetime, Limit, Limits, ScanOptions, Storage,
    StorageError, StorageExt, WatchEvent, WatchOptions, WatchStart,
};

use super::support::{
    Handle, assert_invalid, assert_limit, bytes, commit, full_state, keys, plain, put, refused,
    value,
};
use super::{Context, cases};

cases!["limits":
    are_told_and_at_least_useful,
    of_keys_per_get,
    of_a_key_in_a_get,
    of_the_answer_to_a_get,
    of_a_key_in_a_commit,
    of_a_key_in_a_check,
    of_a_stamped_key,
    of_a_value,
    of_a_label,
    of_operations_per_commit,
    of_checks_per_commit,
    of_a_message,
    of_a_message_with_the_values_before,
    of_open_scans,
    of_a_range,
    a_key_stands_once_in_a_commit,
    a_stamped_prefix_stands_once_in_a_commit,
    a_key_has_at_least_one_byte,
    a_time_to_live_is_at_least_a_millisecond,
    what_is_refused_changes_nothing,
];

async fn limits_of(storage: &Handle) -> Limits {
    storage.limits().await.unwrap()
}

async fn are_told_and_at_least_useful(context: Context) {
    let limits = limits_of(&context.open().await).await;
    let largest = [limits.key_bytes_max, limits.value_bytes_max];
    assert!(largest.iter().all(|max| *max <= limits.message_bytes_max));
    assert!(limits.key_bytes_max >= 256 && limits.key_bytes_max <= Limits::KEY_BYTES_CEILING);
    assert!(limits.operations_per_commit_max >= 100 && limits.keys_per_get_max >= 100);
}

fn numbered(count: usize) -> Vec<Key> {
    (0..count).map(|n| bytes(&format!("{n:06}"))).collect()
}

async fn of_keys_per_get(context: Context) {
    let storage = context.open().await;
    put(&storage, "000000", "x").await;
    let max = limits_of(&storage).await.keys_per_get_max;
    let mut keys = numbered(max + 1);
    let error = storage.get(&keys).await.unwrap_err();
    assert_limit(&error, Limit::KeysPerGet, max);
    keys.pop();
    let reading = storage.get(&keys).await.unwrap();
    assert_eq!(reading.value.len(), max);
    assert!(reading.value[0].is_some());
}

async fn of_a_key_in_a_get(context: Context) {
    let storage = context.open().await;
    let max = limits_of(&storage).await.key_bytes_max;
    let key = Key::from(vec![b'k'; max + 1]);
    let error = storage.get(std::slice::from_ref(&key)).await.unwrap_err();
    assert_limit(&error, Limit::Key, max);
    assert_eq!(storage.get_one(key.slice(1..)).await.unwrap(), None);
}

/// One value of a few MiB, asked so often that the answer would be too long.
async fn of_the_answer_to_a_get(context: Context) {
    let storage = context.open().await;
    let limits = limits_of(&storage).await;
    let size = limits.value_bytes_max.min(4 << 20);
    storage.put(bytes("a"), vec![0; size].into()).await.unwrap();
    let times = limits.message_bytes_max / size + 1;
    if times > limits.keys_per_get_max {
        return;
    }
    let error = storage.get(&vec![bytes("a"); times]).await.unwrap_err();
    assert_limit(&error, Limit::Message, limits.message_bytes_max);
}

/// A bound may be one byte longer than a key: the end of the range of just the longest key is.
async fn of_a_range(context: Context) {
    let storage = context.open().await;
    let max = limits_of(&storage).await.key_bytes_max;
    let key = |bytes: usize| Key::from(vec![b'k'; bytes]);
    put(&storage, "k", "x").await;
    for range in [
        KeyRange::between(key(1), key(max + 2)),
        KeyRange::between(key(max + 2), bytes("l")),
    ] {
        let refused = storage.scan(range.clone(), ScanOptions::default()).await;
        assert_limit(&refused.unwrap_err(), Limit::Key, max + 1);
        let options = WatchOptions::every(WatchStart::Now);
        let refused = storage.watch(range, options).await;
        assert_limit(&refused.unwrap_err(), Limit::Key, max + 1);
    }
    let range = KeyRange::between(bytes("k"), key(max + 1));
    let found = storage.scan(range, ScanOptions::default()).await.unwrap();
    assert_eq!(found.collect().await.unwrap().len(), 1);
    let range = KeyRange::single(key(max));
    let options = WatchOptions::every(WatchStart::Now);
    let mut watch = storage.watch(range, options).await.unwrap();
    storage.put(key(max), bytes("x")).await.unwrap();
    let told = watch.next().await.unwrap();
    assert!(matches!(told, Some(WatchEvent::Commit(_))), "{told:?}");
}

async fn of_a_key_in_a_commit(context: Context) {
    let storage = context.open().await;
    let max = limits_of(&storage).await.key_bytes_max;
    let key = Key::from(vec![b'k'; max + 1]);
    for batch in [
        Batch::new().put(key.clone(), ""),
        Batch::new().remove(key.clone()),
        Batch::new().signal(key.clone(), ""),
    ] {
        assert_limit(&refused(&storage, batch).await, Limit::Key, max);
    }
    let longest = key.slice(1..);
    storage.put(longest.clone(), bytes("x")).await.unwrap();
    assert!(storage.get_one(longest).await.unwrap().is_some());
}

async fn of_a_key_in_a_check(context: Context) {
    let storage = context.open().await;
    let max = limits_of(&storage).await.key_bytes_max;
    let batch = Batch::new().check_absent(vec![b'k'; max + 1]).put("a", "");
    assert_limit(&refused(&storage, batch).await, Limit::Key, max);
}

async fn of_a_stamped_key(context: Context) {
    let storage = context.open().await;
    let max = limits_of(&storage).await.key_bytes_max;
    let stamped = |bytes| Batch::new().put_stamped(vec![b'k'; bytes], "", Lifetime::Forever);
    assert_limit(&refused(&storage, stamped(max - 7)).await, Limit::Key, max);
    commit(&storage, stamped(max - 8)).await;
}

async fn of_a_value(context: Context) {
    let storage = context.open().await;
    let max = limits_of(&storage).await.value_bytes_max;
    let value = Key::from(vec![b'v'; max + 1]);
    let batch = Batch::new().put("a", value.clone());
    assert_limit(&refused(&storage, batch).await, Limit::Value, max);
    let batch = Batch::new().signal("a", value.clone());
    assert_limit(&refused(&storage, batch).await, Limit::Value, max);
    commit(&storage, Batch::new().put("a", value.slice(1..))).await;
    let entry = storage.get_one(bytes("a")).await.unwrap().unwrap();
    assert_eq!(entry.value.len(), max);
}

async fn of_a_label(context: Context) {
    let storage = context.open().await;
    let labelled = async |bytes| {
        let options = CommitOptions::labelled("l".repeat(bytes));
        storage.commit(Batch::new().put("a", ""), options).await
    };
    let error = labelled(Limits::LABEL_BYTES + 1).await.unwrap_err();
    assert_limit(&error, Limit::Label, Limits::LABEL_BYTES);
    labelled(Limits::LABEL_BYTES).await.unwrap();
}

async fn of_operations_per_commit(context: Context) {
    let storage = context.open().await;
    let max = limits_of(&storage).await.operations_per_commit_max;
    let mut batch = numbered(max + 1)
        .into_iter()
        .fold(Batch::new(), |batch, key| batch.put(key, "x"));
    let error = refused(&storage, batch.clone()).await;
    assert_limit(&error, Limit::OperationsPerCommit, max);
    batch.operations.pop();
    let committed = commit(&storage, batch).await;
    let (_, state) = full_state(&storage).await;
    assert_eq!(state.len(), max);
    assert!(state.values().all(|e| e.revision == committed.revision));
}

async fn of_checks_per_commit(context: Context) {
    let storage = context.open().await;
    let max = limits_of(&storage).await.operations_per_commit_max;
    let mut batch = numbered(max + 1)
        .into_iter()
        .fold(Batch::new(), |batch, key| batch.check_absent(key));
    let error = refused(&storage, batch.clone()).await;
    assert_limit(&error, Limit::OperationsPerCommit, max);
    batch.checks.pop();
    commit(&storage, batch).await;
}

/// A few values within their limit that share one buffer, so that the case itself needs little memory.
fn values_of(total: usize, limits: &Limits) -> impl Iterator<Item = Key> + use<> {
    let value = Key::from(vec![b'v'; limits.value_bytes_max.min(8 << 20)]);
    let count = total / value.len() + 1;
    std::iter::repeat_n(value, count)
}

async fn of_a_message(context: Context) {
    let storage = context.open().await;
    let limits = limits_of(&storage).await;
    let values = values_of(limits.message_bytes_max, &limits).enumerate();
    let batch = values.fold(Batch::new(), |batch, (n, value)| {
        batch.put(n.to_string(), value)
    });
    let error = refused(&storage, batch).await;
    assert_limit(&error, Limit::Message, limits.message_bytes_max);
    assert!(full_state(&storage).await.1.is_empty());
}

async fn of_a_message_with_the_values_before(context: Context) {
    let storage = context.open().await;
    let limits = limits_of(&storage).await;
    let mut batch = Batch::new();
    for (n, value) in values_of(limits.message_bytes_max, &limits).enumerate() {
        storage.put(n.to_string().into(), value).await.unwrap();
        batch = batch.remove(n.to_string());
    }
    let options = CommitOptions::default().with_previous();
    let error = storage.commit(batch.clone(), options).await.unwrap_err();
    assert_limit(&error, Limit::Message, limits.message_bytes_max);
    assert!(storage.get_one(bytes("0")).await.unwrap().is_some());
    commit(&storage, batch).await;
    assert_eq!(storage.get_one(bytes("0")).await.unwrap(), None);
}

async fn of_open_scans(context: Context) {
    let storage = context.open().await;
    let max = limits_of(&storage).await.scans_max;
    // Several pages, so that none of the scans is done with its first.
    for n in 0..10 {
        let value = Key::from(vec![b'v'; 100_000]);
        storage.put(n.to_string().into(), value).await.unwrap();
    }
    let mut open = Vec::new();
    for _ in 0..max {
        let mut scan = storage.scan(KeyRange::all(), plain()).await.unwrap();
        scan.next_page().await.unwrap().unwrap();
        open.push(scan);
    }
    let error = storage.scan(KeyRange::all(), plain()).await.unwrap_err();
    let expected = StorageError::Overloaded {
        limit: Limit::Scans,
        max: max as u64,
    };
    assert_eq!(error, expected);
    drop(open);
    // A remote store hears of the drops a moment later.
    while storage.scan(KeyRange::all(), plain()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_key_stands_once_in_a_commit(context: Context) {
    let storage = context.open().await;
    for batch in [
        Batch::new().put("a", "1").put("a", "2"),
        Batch::new().put("a", "1").put("b", "1").remove("a"),
        Batch::new().remove("a").signal("a", "x"),
        Batch::new().signal("a", "x").signal("a", "y"),
    ] {
        assert_invalid(&refused(&storage, batch).await);
    }
    assert!(full_state(&storage).await.1.is_empty());
}

async fn a_stamped_prefix_stands_once_in_a_commit(context: Context) {
    let storage = context.open().await;
    let stamped = |batch: Batch| batch.put_stamped("p", "", Lifetime::Forever);
    assert_invalid(&refused(&storage, stamped(stamped(Batch::new()))).await);
    commit(&storage, stamped(Batch::new().put("p", "plain"))).await;
}

async fn a_key_has_at_least_one_byte(context: Context) {
    let storage = context.open().await;
    for batch in [
        Batch::new().put("", "1"),
        Batch::new().remove(""),
        Batch::new().signal("", "1"),
    ] {
        assert_invalid(&refused(&storage, batch).await);
    }
}

async fn a_time_to_live_is_at_least_a_millisecond(context: Context) {
    let storage = context.open().await;
    for duration in [Duration::ZERO, Duration::from_micros(999)] {
        let batch = Batch::new().put_with("a", "1", Lifetime::TimeToLive(duration));
        assert_invalid(&refused(&storage, batch).await);
    }
}

async fn what_is_refused_changes_nothing(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    refused(
        &storage,
        Batch::new().put("a", "2").put("b", "1").put("b", "2"),
    )
    .await;
    let max = limits_of(&storage).await.key_bytes_max;
    let long = vec![b'k'; max + 1];
    refused(&storage, Batch::new().put("a", "2").put(long, "")).await;
    assert_eq!(value(&storage, "a").await.as_deref(), Some("1"));
    let all = keys(&storage, KeyRange::all(), ScanOptions::default()).await;
    assert_eq!(all, ["a"]);
}

//! What `commit` promises: all or nothing, one revision, in the order sent, stamped keys.

use std::collections::BTreeSet;

use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, Lifetime, Revision, Storage, StorageExt,
};

use super::support::{
    assert_invalid, bytes, commit, entry, full_state, keys, pipeline, plain, put, refused, remove,
    scan, value,
};
use super::{Context, cases};

cases!["commits":
    all_keys_of_a_commit_have_its_revision,
    revisions_grow_with_each_commit,
    a_put_replaces_the_value,
    a_removed_key_is_gone,
    removing_an_absent_key_is_no_error,
    a_removed_key_may_be_put_again,
    one_commit_puts_and_removes,
    an_empty_batch_takes_a_revision,
    commits_apply_in_the_order_they_were_sent,
    concurrent_commits_have_distinct_revisions,
    put_if_absent_puts_once,
    a_stamped_key_is_prefix_and_revision,
    stamped_keys_are_ordered_by_commit,
    a_stamped_key_may_have_no_prefix,
    two_stamped_prefixes_in_one_commit,
    a_stamped_key_equal_to_an_explicit_one_is_refused,
    a_signal_stores_nothing,
];

async fn all_keys_of_a_commit_have_its_revision(context: Context) {
    let storage = context.open().await;
    put(&storage, "b", "0").await;
    let batch = Batch::new().put("a", "1").put("b", "2").put("c", "3");
    let committed = commit(&storage, batch).await;
    let (_, state) = full_state(&storage).await;
    assert_eq!(state.len(), 3);
    assert!(state.values().all(|e| e.revision == committed.revision));
}

async fn revisions_grow_with_each_commit(context: Context) {
    let storage = context.open().await;
    let mut last = Revision::ZERO;
    for _ in 0..20 {
        let committed = put(&storage, "a", "same").await;
        assert!(committed.revision > last);
        last = committed.revision;
    }
}

async fn a_put_replaces_the_value(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "a long value at first").await;
    put(&storage, "a", "short").await;
    assert_eq!(value(&storage, "a").await.as_deref(), Some("short"));
    assert_eq!(full_state(&storage).await.1.len(), 1);
}

async fn a_removed_key_is_gone(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    put(&storage, "b", "2").await;
    remove(&storage, "a").await;
    assert_eq!(value(&storage, "a").await, None);
    assert_eq!(keys(&storage, KeyRange::all(), plain()).await, ["b"]);
}

async fn removing_an_absent_key_is_no_error(context: Context) {
    let storage = context.open().await;
    let before = put(&storage, "b", "2").await;
    let after = remove(&storage, "a").await;
    assert!(after.revision > before.revision);
    assert_eq!(keys(&storage, KeyRange::all(), plain()).await, ["b"]);
}

async fn a_removed_key_may_be_put_again(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    let removed = remove(&storage, "a").await;
    let again = put(&storage, "a", "1").await;
    let entry = entry(&storage, "a").await.unwrap();
    assert_eq!(entry.revision, again.revision);
    assert!(entry.revision > removed.revision);
}

async fn one_commit_puts_and_removes(context: Context) {
    let storage = context.open().await;
    commit(&storage, Batch::new().put("a", "1").put("b", "1")).await;
    commit(
        &storage,
        Batch::new().remove("a").put("b", "2").put("c", "2"),
    )
    .await;
    assert_eq!(keys(&storage, KeyRange::all(), plain()).await, ["b", "c"]);
    assert_eq!(value(&storage, "b").await.as_deref(), Some("2"));
}

async fn an_empty_batch_takes_a_revision(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "a", "1").await;
    let second = commit(&storage, Batch::new()).await;
    let third = put(&storage, "a", "2").await;
    assert!(first.revision < second.revision && second.revision < third.revision);
}

async fn commits_apply_in_the_order_they_were_sent(context: Context) {
    let storage = context.open().await;
    let batches = (0..200).map(|n| {
        Batch::new()
            .put("last", n.to_string())
            .put(format!("{n:03}"), "")
    });
    let answers = pipeline(&storage, batches.collect()).await;
    let revisions: Vec<Revision> = answers.into_iter().map(|a| a.unwrap().revision).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    assert_eq!(value(&storage, "last").await.as_deref(), Some("199"));
    for (n, revision) in revisions.into_iter().enumerate() {
        let entry = entry(&storage, &format!("{n:03}")).await.unwrap();
        assert_eq!(entry.revision, revision, "answer {n} tells its own commit");
    }
}

async fn concurrent_commits_have_distinct_revisions(context: Context) {
    let mut tasks = Vec::new();
    for task in 0..8 {
        let storage = context.open().await;
        tasks.push(tokio::spawn(async move {
            let mut revisions = Vec::new();
            for n in 0..25 {
                let committed = put(&storage, &format!("{task}/{n}"), "").await;
                revisions.push(committed.revision);
            }
            revisions
        }));
    }
    let mut seen = BTreeSet::new();
    for task in tasks {
        for revision in task.await.unwrap() {
            assert!(seen.insert(revision), "{revision} was given twice");
        }
    }
    let (_, state) = full_state(&context.open().await).await;
    assert_eq!(state.len(), 200);
    let stored: BTreeSet<Revision> = state.values().map(|entry| entry.revision).collect();
    assert_eq!(stored, seen);
}

async fn put_if_absent_puts_once(context: Context) {
    let storage = context.open().await;
    let first = storage.put_if_absent(bytes("a"), bytes("1")).await.unwrap();
    let second = storage.put_if_absent(bytes("a"), bytes("2")).await;
    super::support::assert_check_failed(&second.unwrap_err(), "a", Some(first.revision));
    assert_eq!(value(&storage, "a").await.as_deref(), Some("1"));
}

fn stamped(prefix: &str, revision: Revision) -> Key {
    [prefix.as_bytes(), &revision.0.to_be_bytes()]
        .concat()
        .into()
}

async fn a_stamped_key_is_prefix_and_revision(context: Context) {
    let storage = context.open().await;
    let batch = Batch::new().put_stamped("log/", "line", Lifetime::Forever);
    let committed = commit(&storage, batch).await;
    let key = stamped("log/", committed.revision);
    let entry = storage.get_one(key).await.unwrap().unwrap();
    assert_eq!(&entry.value[..], b"line");
    assert_eq!(entry.revision, committed.revision);
    assert_eq!(full_state(&storage).await.1.len(), 1);
}

async fn stamped_keys_are_ordered_by_commit(context: Context) {
    let storage = context.open().await;
    let batches =
        (0..300).map(|n| Batch::new().put_stamped("log/", n.to_string(), Lifetime::Forever));
    for answer in pipeline(&storage, batches.collect()).await {
        answer.unwrap();
    }
    let items = scan(&storage, KeyRange::prefix("log/"), plain()).await;
    let mut lines = Vec::new();
    for item in items {
        let entry = storage.get_one(item.key).await.unwrap().unwrap();
        lines.push(String::from_utf8(entry.value.to_vec()).unwrap());
    }
    let expected: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    assert_eq!(lines, expected);
}

async fn a_stamped_key_may_have_no_prefix(context: Context) {
    let storage = context.open().await;
    let batch = Batch::new().put_stamped("", "x", Lifetime::Forever);
    let committed = commit(&storage, batch).await;
    let key = stamped("", committed.revision);
    assert!(storage.get_one(key).await.unwrap().is_some());
}

async fn two_stamped_prefixes_in_one_commit(context: Context) {
    let storage = context.open().await;
    let batch = Batch::new()
        .put_stamped("a/", "1", Lifetime::Forever)
        .put_stamped("b/", "2", Lifetime::Forever)
        .put("a/", "not stamped");
    let committed = commit(&storage, batch).await;
    let found = [
        stamped("a/", committed.revision),
        stamped("b/", committed.revision),
    ];
    let reading = storage.get(&found).await.unwrap();
    assert!(reading.value.iter().all(Option::is_some));
    assert_eq!(value(&storage, "a/").await.as_deref(), Some("not stamped"));
}

/// The next revision is not known, but it is one of the next few hundred.
async fn a_stamped_key_equal_to_an_explicit_one_is_refused(context: Context) {
    let storage = context.open().await;
    let last = put(&storage, "other", "").await.revision.0;
    // An engine may take one number for a commit, or one for each of its rows (two for a put).
    let guesses = (1..10)
        .chain(200..300)
        .map(|n| stamped("log/", Revision(last + n)));
    let batch = guesses.fold(Batch::new(), |batch, key| batch.put(key, "explicit"));
    let batch = batch.put_stamped("log/", "stamped", Lifetime::Forever);
    assert_invalid(&refused(&storage, batch).await);
    assert_eq!(keys(&storage, KeyRange::all(), plain()).await, ["other"]);
}

async fn a_signal_stores_nothing(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    let batch = Batch::new().signal("a", "ring").signal("b", "ring");
    let options = CommitOptions::default().with_previous();
    storage.commit(batch, options).await.unwrap();
    assert_eq!(value(&storage, "a").await.as_deref(), Some("1"));
    assert_eq!(keys(&storage, KeyRange::all(), plain()).await, ["a"]);
}

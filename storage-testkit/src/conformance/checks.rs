//! What the checks of a commit promise: judged against the state just before it, refused without any trace.

use std::time::Duration;

use storage_protocol::{
    Batch, Key, KeyRange, Revision, Storage, StorageError, StorageExt, WatchStart,
};

use super::support::{
    Handle, assert_check_failed, bytes, commit, commits_to_mark, entry, full_state, pipeline, put,
    refused, remove, told, value, watch_every,
};
use super::{Context, cases};

cases!["checks":
    absent_holds_for_an_absent_key,
    absent_fails_with_the_actual_revision,
    absent_holds_for_a_removed_key,
    a_revision_holds_for_the_key_it_wrote,
    a_stale_revision_fails_with_the_actual_one,
    a_revision_fails_for_an_absent_key,
    a_revision_fails_for_a_removed_key,
    the_same_value_put_again_is_another_revision,
    the_first_failing_check_is_named,
    a_check_may_look_at_a_key_that_is_not_written,
    a_batch_of_checks_only_tests_them,
    checks_see_the_state_before_the_commit,
    one_failing_check_stops_all_operations,
    a_refused_commit_reaches_no_watcher,
    two_checks_of_one_key_must_both_hold,
    checks_do_not_look_into_other_keyspaces,
    compare_and_set_has_one_winner,
    counting_with_compare_and_set_loses_nothing,
    a_check_sees_a_commit_sent_just_before,
    a_check_sees_a_removal_sent_just_before,
    a_refused_commit_is_invisible_to_the_next_one,
    a_stale_revision_fails_behind_a_commit_sent_just_before,
];

async fn absent_holds_for_an_absent_key(context: Context) {
    let storage = context.open().await;
    commit(&storage, Batch::new().check_absent("a").put("a", "1")).await;
    assert_eq!(value(&storage, "a").await.as_deref(), Some("1"));
}

async fn absent_fails_with_the_actual_revision(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "a", "1").await;
    put(&storage, "b", "1").await;
    let error = refused(&storage, Batch::new().check_absent("a").put("a", "2")).await;
    assert_check_failed(&error, "a", Some(first.revision));
    assert_eq!(value(&storage, "a").await.as_deref(), Some("1"));
}

async fn absent_holds_for_a_removed_key(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    remove(&storage, "a").await;
    commit(&storage, Batch::new().check_absent("a").put("a", "2")).await;
}

async fn a_revision_holds_for_the_key_it_wrote(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "a", "1").await;
    put(&storage, "b", "1").await;
    let batch = Batch::new()
        .check_revision("a", first.revision)
        .put("a", "2");
    let second = commit(&storage, batch).await;
    assert_eq!(
        entry(&storage, "a").await.unwrap().revision,
        second.revision
    );
}

async fn a_stale_revision_fails_with_the_actual_one(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "a", "1").await;
    let second = put(&storage, "a", "2").await;
    let batch = Batch::new()
        .check_revision("a", first.revision)
        .put("a", "3");
    assert_check_failed(&refused(&storage, batch).await, "a", Some(second.revision));
    let ahead = Revision(second.revision.0 + 1_000);
    let batch = Batch::new().check_revision("a", ahead).put("a", "3");
    assert_check_failed(&refused(&storage, batch).await, "a", Some(second.revision));
    assert_eq!(value(&storage, "a").await.as_deref(), Some("2"));
}

async fn a_revision_fails_for_an_absent_key(context: Context) {
    let storage = context.open().await;
    let other = put(&storage, "b", "1").await;
    for revision in [other.revision, Revision::ZERO] {
        let batch = Batch::new().check_revision("a", revision).put("a", "1");
        assert_check_failed(&refused(&storage, batch).await, "a", None);
    }
}

async fn a_revision_fails_for_a_removed_key(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "a", "1").await;
    let removed = remove(&storage, "a").await;
    for revision in [first.revision, removed.revision] {
        let batch = Batch::new().check_revision("a", revision).put("a", "2");
        assert_check_failed(&refused(&storage, batch).await, "a", None);
    }
}

async fn the_same_value_put_again_is_another_revision(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "a", "1").await;
    let second = put(&storage, "a", "1").await;
    let batch = Batch::new()
        .check_revision("a", first.revision)
        .put("a", "2");
    assert_check_failed(&refused(&storage, batch).await, "a", Some(second.revision));
}

async fn the_first_failing_check_is_named(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "z", "1").await;
    let second = put(&storage, "a", "1").await;
    let batch = Batch::new()
        .check_absent("free")
        .check_revision("z", second.revision)
        .check_absent("a")
        .put("new", "1");
    assert_check_failed(&refused(&storage, batch).await, "z", Some(first.revision));
}

async fn a_check_may_look_at_a_key_that_is_not_written(context: Context) {
    let storage = context.open().await;
    let guard = put(&storage, "guard", "1").await;
    let guarded = |key: &str| {
        let batch = Batch::new().check_revision("guard", guard.revision);
        batch.put(bytes(key), "x")
    };
    commit(&storage, guarded("a")).await;
    commit(&storage, guarded("b")).await;
    let moved = put(&storage, "guard", "2").await;
    let error = refused(&storage, guarded("c")).await;
    assert_check_failed(&error, "guard", Some(moved.revision));
    assert_eq!(value(&storage, "c").await, None);
}

async fn a_batch_of_checks_only_tests_them(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "a", "1").await;
    let holds = Batch::new()
        .check_revision("a", first.revision)
        .check_absent("b");
    let tested = commit(&storage, holds).await;
    assert!(tested.revision > first.revision, "it takes a revision");
    let error = refused(&storage, Batch::new().check_absent("a")).await;
    assert_check_failed(&error, "a", Some(first.revision));
    assert_eq!(full_state(&storage).await.1.len(), 1);
}

async fn checks_see_the_state_before_the_commit(context: Context) {
    let storage = context.open().await;
    let batch = Batch::new().check_absent("a").check_absent("b");
    let first = commit(&storage, batch.put("a", "1").put("b", "1")).await;
    let batch = Batch::new().check_revision("a", first.revision).remove("a");
    commit(&storage, batch).await;
    assert_eq!(value(&storage, "a").await, None);
}

async fn one_failing_check_stops_all_operations(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    put(&storage, "b", "1").await;
    let before = full_state(&storage).await.1;
    let batch = Batch::new()
        .check_absent("new")
        .check_absent("b")
        .put("new", "2")
        .remove("a")
        .put("b", "2");
    refused(&storage, batch).await;
    assert_eq!(full_state(&storage).await.1, before);
}

async fn a_refused_commit_reaches_no_watcher(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    let batch = Batch::new()
        .check_absent("a")
        .put("b", "2")
        .signal("c", "3");
    refused(&storage, batch).await;
    put(&storage, "d", "4").await;
    let (commits, _) = commits_to_mark(&mut watch, 1).await;
    assert_eq!(commits.len(), 1);
    assert_eq!(told(&commits[0].changes), ["put d=4"]);
}

async fn two_checks_of_one_key_must_both_hold(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "a", "1").await;
    let batch = Batch::new()
        .check_revision("a", first.revision)
        .check_absent("a")
        .put("b", "1");
    assert_check_failed(&refused(&storage, batch).await, "a", Some(first.revision));
}

async fn checks_do_not_look_into_other_keyspaces(context: Context) {
    let (one, other) = (context.open().await, context.open_other("x").await);
    let elsewhere = put(&other, "a", "1").await;
    let batch = Batch::new()
        .check_revision("a", elsewhere.revision)
        .put("b", "1");
    assert_check_failed(&refused(&one, batch).await, "a", None);
}

const RACERS: usize = 16;

async fn compare_and_set_has_one_winner(context: Context) {
    let mut racers = Vec::new();
    for _ in 0..RACERS {
        racers.push(context.open().await);
    }
    let storage = context.open().await;
    let mut revision = put(&storage, "prize", "").await.revision;
    for round in 0..20 {
        let tasks: Vec<_> = racers
            .iter()
            .enumerate()
            .map(|(n, racer)| tokio::spawn(race(racer.clone(), revision, n)))
            .collect();
        let mut winners = Vec::new();
        for (n, task) in tasks.into_iter().enumerate() {
            if let Some(won) = task.await.unwrap() {
                winners.push((n, won));
            }
        }
        assert_eq!(winners.len(), 1, "round {round} has winners {winners:?}");
        let entry = entry(&storage, "prize").await.unwrap();
        assert_eq!(entry.revision, winners[0].1);
        assert_eq!(entry.value, bytes(&winners[0].0.to_string()));
        revision = entry.revision;
    }
}

/// The revision of the commit, if this one won.
async fn race(storage: Handle, expected: Revision, racer: usize) -> Option<Revision> {
    let batch = Batch::new().check_revision("prize", expected);
    let batch = batch.put("prize", racer.to_string());
    match storage
        .commit(batch, storage_protocol::CommitOptions::default())
        .await
    {
        Ok(position) => Some(position.revision),
        Err(StorageError::CheckFailed { actual, .. }) => {
            assert!(actual > Some(expected), "who lost sees who won");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

async fn counting_with_compare_and_set_loses_nothing(context: Context) {
    let storage = context.open().await;
    put(&storage, "count", "0").await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(tokio::spawn(count_up(context.open().await, 15)));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(value(&storage, "count").await.as_deref(), Some("60"));
}

async fn count_up(storage: Handle, times: usize) {
    for _ in 0..times {
        loop {
            let entry = entry(&storage, "count").await.unwrap();
            let count: u32 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
            let batch = Batch::new().check_revision("count", entry.revision);
            let batch = batch.put("count", (count + 1).to_string());
            if pipeline(&storage, vec![batch]).await[0].is_ok() {
                break;
            }
            // Others are on the same key; let them finish.
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
}

async fn a_check_sees_a_commit_sent_just_before(context: Context) {
    let storage = context.open().await;
    for round in 0..20 {
        let key = format!("key{round}");
        let create = || Batch::new().check_absent(key.clone()).put(key.clone(), "1");
        let answers = pipeline(&storage, vec![create(), create(), create()]).await;
        let first = answers[0].as_ref().unwrap().revision;
        for late in &answers[1..] {
            assert_check_failed(late.as_ref().unwrap_err(), &key, Some(first));
        }
    }
}

async fn a_check_sees_a_removal_sent_just_before(context: Context) {
    let storage = context.open().await;
    for _ in 0..20 {
        put(&storage, "a", "1").await;
        let remove = Batch::new().remove("a");
        let create = Batch::new().check_absent("a").put("a", "2");
        for answer in pipeline(&storage, vec![remove, create]).await {
            answer.unwrap();
        }
        assert_eq!(value(&storage, "a").await.as_deref(), Some("2"));
    }
}

async fn a_refused_commit_is_invisible_to_the_next_one(context: Context) {
    let storage = context.open().await;
    put(&storage, "taken", "1").await;
    for round in 0..20 {
        let key = Key::from(format!("key{round}"));
        let fails = Batch::new()
            .check_absent("taken")
            .put(key.clone(), "refused");
        let holds = Batch::new()
            .check_absent(key.clone())
            .put(key.clone(), "held");
        let answers = pipeline(&storage, vec![fails, holds]).await;
        assert!(answers[0].is_err());
        assert!(answers[1].is_ok(), "{:?}", answers[1]);
        let entry = storage.get_one(key).await.unwrap().unwrap();
        assert_eq!(&entry.value[..], b"held");
    }
}

async fn a_stale_revision_fails_behind_a_commit_sent_just_before(context: Context) {
    let storage = context.open().await;
    for _ in 0..20 {
        let first = put(&storage, "a", "1").await.revision;
        let update = |value: &'static str| Batch::new().check_revision("a", first).put("a", value);
        let answers = pipeline(&storage, vec![update("2"), update("3")]).await;
        let second = answers[0].as_ref().unwrap().revision;
        assert_check_failed(answers[1].as_ref().unwrap_err(), "a", Some(second));
    }
}

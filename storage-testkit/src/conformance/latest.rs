//! What a watch in mode `Latest` promises: at each mark the reader's state is the state at the mark.
//!
//! What holds for every such watch (a key once between marks, revision order, nothing newer than the closing mark) is
//! judged by [`Mirror`] at each event of each case here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use storage_protocol::{
    Batch, Entry, EntryLifetime, Key, KeyRange, Position, Revision, Storage, StorageError,
    StorageExt, WatchMode, WatchOptions, WatchStart,
};

use super::support::{
    Handle, Mirror, assert_invalid, assert_unknown_epoch, beyond_head, bytes, commit, full_state,
    of_unknown_epoch, put, remove, text, watch_latest,
};
use super::{Context, cases};

cases!["latest":
    from_the_beginning_tells_the_state_and_a_mark,
    from_the_beginning_tells_no_tombstones,
    an_empty_set_is_told_by_a_mark,
    then_it_follows,
    from_now_tells_what_changes,
    from_each_position_arrives_at_the_present_state,
    from_a_position_tells_just_what_changed,
    tombstones_after_the_position_are_told,
    a_position_of_a_commit_elsewhere_counts_as_the_one_before,
    states_come_in_revision_order,
    only_the_range_is_told,
    a_slow_reader_is_told_the_present_only,
    what_was_put_and_removed_is_told_as_gone,
    marks_are_coherent_under_concurrent_commits,
    signals_and_empty_commits_are_not_told,
    a_mark_comes_when_asked,
    a_mark_is_a_position_to_resume_from,
    every_mark_resumes_to_the_present_state,
    lifetimes_are_told,
    an_interval_changes_no_state,
    a_large_state_is_told_whole,
    other_keyspaces_are_not_told,
    a_position_of_an_unknown_epoch_is_refused,
    a_position_beyond_the_last_commit_is_refused,
    below_the_log_it_goes_on [CompactLog],
    below_the_horizon_it_begins_anew [DropTombstones],
    from_the_beginning_needs_no_tombstones [DropTombstones],
];

async fn from_the_beginning_tells_the_state_and_a_mark(context: Context) {
    let storage = context.open().await;
    for n in 0..30 {
        put(&storage, &format!("{:02}", n % 10), &n.to_string()).await;
    }
    let (position, state) = full_state(&storage).await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    let mark = mirror.until_next_mark(&mut watch).await;
    assert_eq!(mirror.entries, state);
    assert_eq!((mirror.states, mirror.resets), (10, 0));
    assert!(mark.revision >= position.revision && mark.epoch == position.epoch);
}

async fn from_the_beginning_tells_no_tombstones(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    put(&storage, "b", "1").await;
    let last = remove(&storage, "a").await;
    let zero = Position {
        revision: Revision::ZERO,
        ..last
    };
    for start in [WatchStart::Beginning, WatchStart::After(zero)] {
        let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
        let mut mirror = Mirror::new(&watch, BTreeMap::new());
        mirror.until_next_mark(&mut watch).await;
        assert_eq!((mirror.states, mirror.tombstones), (1, 0));
    }
}

async fn an_empty_set_is_told_by_a_mark(context: Context) {
    let storage = context.open().await;
    put(&storage, "gone", "1").await;
    let last = remove(&storage, "gone").await;
    for start in [
        WatchStart::Beginning,
        WatchStart::Now,
        WatchStart::After(last),
    ] {
        let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
        let mut mirror = Mirror::new(&watch, BTreeMap::new());
        let mark = mirror.until_next_mark(&mut watch).await;
        assert_eq!(mirror.states, 0, "from {start:?}");
        assert!(mark.revision >= last.revision);
    }
}

async fn then_it_follows(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "0").await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    for n in 1..20 {
        let committed = put(&storage, &format!("key{}", n % 5), &n.to_string()).await;
        mirror.until_position(&mut watch, committed).await;
        assert_eq!(mirror.entries, full_state(&storage).await.1);
    }
    let removed = remove(&storage, "a").await;
    mirror.until_position(&mut watch, removed).await;
    assert!(!mirror.entries.contains_key(&bytes("a")));
    assert_eq!(mirror.entries, full_state(&storage).await.1);
}

async fn from_now_tells_what_changes(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    let before = put(&storage, "b", "1").await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Now).await;
    assert!(watch.start().revision >= before.revision);
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    let committed = put(&storage, "b", "2").await;
    mirror.until_position(&mut watch, committed).await;
    let keys: Vec<String> = mirror.entries.keys().map(|key| text(key)).collect();
    assert_eq!(keys, ["b"]);
}

/// Commits of all kinds, and the full state after each.
async fn write_states(storage: &Handle) -> Vec<(Position, BTreeMap<Key, Entry>)> {
    let mut states = Vec::new();
    for n in 0..40u32 {
        let key = |n: u32| format!("key{}", n * 7 % 9);
        let batch = match n % 4 {
            0 => Batch::new().put(key(n), n.to_string()),
            1 => Batch::new()
                .put(key(n), n.to_string())
                .put("all", n.to_string()),
            2 => Batch::new().remove(key(n)),
            _ => Batch::new().remove(key(n)).put(key(n + 1), n.to_string()),
        };
        commit(storage, batch).await;
        states.push(full_state(storage).await);
    }
    states
}

async fn from_each_position_arrives_at_the_present_state(context: Context) {
    let storage = context.open().await;
    let states = write_states(&storage).await;
    let present = full_state(&storage).await.1;
    for (position, state) in states {
        let start = WatchStart::After(position);
        let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
        assert_eq!(watch.start(), position);
        let mut mirror = Mirror::new(&watch, state);
        mirror.until_next_mark(&mut watch).await;
        assert_eq!(mirror.entries, present, "from {position}");
        assert_eq!(mirror.resets, 0);
    }
}

async fn from_a_position_tells_just_what_changed(context: Context) {
    let storage = context.open().await;
    for key in ["a", "b", "c", "d"] {
        put(&storage, key, "1").await;
    }
    let position = storage.sync().await.unwrap();
    put(&storage, "b", "2").await;
    put(&storage, "b", "3").await;
    let start = WatchStart::After(position);
    let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    assert_eq!(mirror.states, 1);
    assert_eq!(mirror.entries[&bytes("b")].value, bytes("3"));
}

async fn tombstones_after_the_position_are_told(context: Context) {
    let storage = context.open().await;
    put(&storage, "old", "1").await;
    remove(&storage, "old").await;
    put(&storage, "a", "1").await;
    let position = put(&storage, "b", "1").await;
    remove(&storage, "a").await;
    let start = WatchStart::After(position);
    let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    assert_eq!((mirror.states, mirror.tombstones), (1, 1));
}

async fn a_position_of_a_commit_elsewhere_counts_as_the_one_before(context: Context) {
    let (storage, other) = (context.open().await, context.open_other("x").await);
    put(&storage, "a", "1").await;
    let elsewhere = put(&other, "z", "1").await;
    put(&storage, "b", "1").await;
    let start = WatchStart::After(elsewhere);
    let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    assert!(mirror.entries.keys().eq([&bytes("b")]));
}

/// Later keys sort first, so key order is not revision order; the mirror judges it.
async fn states_come_in_revision_order(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "first", "").await;
    for n in (0..50).rev() {
        put(&storage, &format!("{n:02}"), "").await;
    }
    for start in [WatchStart::Beginning, WatchStart::After(first)] {
        let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
        let mut mirror = Mirror::new(&watch, BTreeMap::new());
        mirror.until_next_mark(&mut watch).await;
        assert!(mirror.states >= 50);
    }
}

async fn only_the_range_is_told(context: Context) {
    let storage = context.open().await;
    let range = KeyRange::between("b", "d");
    for key in ["a", "b", "c", "d"] {
        put(&storage, key, "1").await;
    }
    let mut watch = watch_latest(&storage, range.clone(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    assert!(mirror.entries.keys().eq([&bytes("b"), &bytes("c")]));
    for key in ["a", "b", "b\0", "cz", "d"] {
        put(&storage, key, "2").await;
    }
    remove(&storage, "d").await;
    remove(&storage, "c").await;
    mirror.until_mark(&mut watch, 1).await;
    let keys: Vec<String> = mirror.entries.keys().map(|key| text(key)).collect();
    assert_eq!(keys, ["b", "b\\x00", "cz"]);
    assert_eq!(mirror.tombstones, 1);
}

/// Conflation: bounded by the keys that changed, not by what happened. An engine may have a pass or two under way.
async fn a_slow_reader_is_told_the_present_only(context: Context) {
    let (storage, writer) = (context.open().await, context.open().await);
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    for round in 0..50 {
        let batches = (0..20).map(|n| {
            let value = format!("{round}/{n}/{}", "v".repeat(4 << 10));
            Batch::new().put("hot", value).put("warm", n.to_string())
        });
        for answer in super::support::pipeline(&writer, batches.collect()).await {
            answer.unwrap();
        }
    }
    mirror.until_mark(&mut watch, 1).await;
    assert_eq!(mirror.entries, full_state(&storage).await.1);
    assert!(
        mirror.states < 1_000,
        "1,000 commits to two keys were told as {} states to a reader that did not read",
        mirror.states
    );
}

async fn what_was_put_and_removed_is_told_as_gone(context: Context) {
    let storage = context.open().await;
    let position = put(&storage, "a", "1").await;
    put(&storage, "b", "1").await;
    remove(&storage, "b").await;
    remove(&storage, "a").await;
    put(&storage, "a", "2").await;
    let start = WatchStart::After(position);
    let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    assert_eq!(mirror.entries, full_state(&storage).await.1);
    assert!(mirror.entries.keys().eq([&bytes("a")]));
}

/// Each commit sets all keys to one number: a mark between two of them would show two numbers.
async fn marks_are_coherent_under_concurrent_commits(context: Context) {
    let (storage, writer) = (context.open().await, context.open().await);
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    let writing = tokio::spawn(async move {
        let mut last = Position::default();
        for round in 0..150 {
            let batch = (0..20).fold(Batch::new(), |batch, n| {
                batch.put(format!("key{n:02}"), round.to_string())
            });
            last = commit(&writer, batch).await;
        }
        last
    });
    while !writing.is_finished() {
        mirror.until_mark(&mut watch, 1).await;
        assert_one_commit(&mirror);
        tokio::task::yield_now().await;
    }
    let last = writing.await.unwrap();
    mirror.until_mark(&mut watch, 2).await;
    assert_one_commit(&mirror);
    assert!(mirror.mark >= last.revision);
    assert_eq!(mirror.entries, full_state(&storage).await.1);
}

fn assert_one_commit(mirror: &Mirror) {
    let entries = mirror.entries.values();
    let revisions: BTreeSet<Revision> = entries.map(|entry| entry.revision).collect();
    assert!(revisions.len() <= 1, "a mark shows commits {revisions:?}");
}

async fn signals_and_empty_commits_are_not_told(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Now).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    commit(&storage, Batch::new().signal("a", "ring").remove("never")).await;
    commit(&storage, Batch::new()).await;
    mirror.until_mark(&mut watch, 1).await;
    assert_eq!(mirror.states, 0);
}

async fn a_mark_comes_when_asked(context: Context) {
    let storage = context.open().await;
    let range = KeyRange::prefix("quiet");
    let mut watch = watch_latest(&storage, range, WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    for token in [0, 1, u64::MAX] {
        let committed = put(&storage, "busy", "1").await;
        let mark = mirror.until_mark(&mut watch, token).await;
        assert!(mark.revision >= committed.revision);
        assert_eq!(mark.epoch, committed.epoch);
    }
    let committed = put(&storage, "quiet", "1").await;
    let mark = mirror.until_mark(&mut watch, 4).await;
    assert!(mark.revision >= committed.revision);
    assert_eq!(mirror.entries.len(), 1);
}

async fn a_mark_is_a_position_to_resume_from(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    put(&storage, "b", "1").await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    let mark = mirror.until_next_mark(&mut watch).await;
    drop(watch);
    put(&storage, "c", "1").await;
    remove(&storage, "a").await;
    let start = WatchStart::After(mark);
    let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
    let mut resumed = Mirror::new(&watch, mirror.entries);
    resumed.until_next_mark(&mut watch).await;
    assert_eq!(resumed.states, 2);
    assert_eq!(resumed.entries, full_state(&storage).await.1);
}

async fn every_mark_resumes_to_the_present_state(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    let mut marks = Vec::new();
    for n in 0..30u32 {
        let key = format!("key{}", n % 7);
        if n % 3 == 2 {
            remove(&storage, &key).await;
        } else {
            put(&storage, &key, &n.to_string()).await;
        }
        let mark = mirror.until_mark(&mut watch, u64::from(n)).await;
        marks.push((mark, mirror.entries.clone()));
    }
    let present = full_state(&storage).await.1;
    for (mark, entries) in marks {
        let start = WatchStart::After(mark);
        let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
        let mut resumed = Mirror::new(&watch, entries);
        resumed.until_next_mark(&mut watch).await;
        assert_eq!(resumed.entries, present, "from the mark {mark}");
    }
}

async fn lifetimes_are_told(context: Context) {
    let storage = context.open().await;
    let hour = storage_protocol::Lifetime::TimeToLive(Duration::from_secs(3600));
    let batch = Batch::new().put("a", "").put_with("b", "", hour);
    commit(&storage, batch).await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    assert_eq!(mirror.entries, full_state(&storage).await.1);
    let lifetime = mirror.entries[&bytes("b")].lifetime;
    assert!(matches!(lifetime, EntryLifetime::Until(_)));
}

async fn an_interval_changes_no_state(context: Context) {
    let storage = context.open().await;
    let options = WatchOptions {
        start: WatchStart::Beginning,
        mode: WatchMode::Latest {
            min_interval: Duration::from_millis(30),
        },
    };
    let mut watch = storage.watch(KeyRange::all(), options).await.unwrap();
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    let mut last = Position::default();
    for n in 0..50 {
        last = put(&storage, &format!("key{}", n % 3), &n.to_string()).await;
    }
    mirror.until_position(&mut watch, last).await;
    assert_eq!(mirror.entries, full_state(&storage).await.1);
    let asked = put(&storage, "key0", "asked").await;
    let mark = mirror.until_mark(&mut watch, 1).await;
    assert!(mark.revision >= asked.revision);
}

async fn a_large_state_is_told_whole(context: Context) {
    let (storage, writer) = (context.open().await, context.open().await);
    for first in (0..2_000).step_by(200) {
        let batch = (first..first + 200).fold(Batch::new(), |batch, n| {
            batch.put(format!("{n:05}"), vec![b'v'; 1 << 10])
        });
        commit(&storage, batch).await;
    }
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    // Changes while the first pass is under way.
    for n in (0..2_000).step_by(100) {
        put(&writer, &format!("{n:05}"), "changed").await;
        remove(&writer, &format!("{:05}", n + 1)).await;
    }
    mirror.until_mark(&mut watch, 1).await;
    let state = full_state(&storage).await.1;
    assert_eq!(mirror.entries.len(), 1_980);
    assert!(mirror.entries == state, "the mirror differs from a scan");
}

async fn other_keyspaces_are_not_told(context: Context) {
    let (storage, other) = (context.open().await, context.open_other("x").await);
    put(&other, "a", "1").await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    put(&other, "b", "1").await;
    mirror.until_mark(&mut watch, 1).await;
    assert_eq!(mirror.states, 0);
}

async fn fails(storage: &Handle, start: WatchStart) -> StorageError {
    let options = WatchOptions::latest(start);
    storage.watch(KeyRange::all(), options).await.unwrap_err()
}

async fn a_position_of_an_unknown_epoch_is_refused(context: Context) {
    let storage = context.open().await;
    let position = put(&storage, "a", "1").await;
    let start = WatchStart::After(of_unknown_epoch(position));
    assert_unknown_epoch(&fails(&storage, start).await, position);
}

async fn a_position_beyond_the_last_commit_is_refused(context: Context) {
    let storage = context.open().await;
    let position = put(&storage, "a", "1").await;
    let start = WatchStart::After(beyond_head(position));
    assert_invalid(&fails(&storage, start).await);
}

async fn below_the_log_it_goes_on(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    let (position, state) = full_state(&storage).await;
    remove(&storage, "a").await;
    let last = put(&storage, "b", "1").await;
    context.fixture.compact_log(last).await;
    let start = WatchStart::After(position);
    let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
    let mut mirror = Mirror::new(&watch, state);
    mirror.until_next_mark(&mut watch).await;
    assert_eq!(mirror.entries, full_state(&storage).await.1);
    assert_eq!(mirror.resets, 0, "the tombstones are still there");
}

async fn below_the_horizon_it_begins_anew(context: Context) {
    let storage = context.open().await;
    put(&storage, "gone", "1").await;
    put(&storage, "old", "1").await;
    let (position, state) = full_state(&storage).await;
    let horizon = remove(&storage, "gone").await;
    let last = put(&storage, "new", "1").await;
    let fixture = &context.fixture;
    fixture.drop_tombstones(&context.keyspace, horizon).await;
    for (start, resets) in [(position, 1), (last, 0)] {
        let start = WatchStart::After(start);
        let mut watch = watch_latest(&storage, KeyRange::all(), start).await;
        let known = if resets == 1 {
            state.clone()
        } else {
            full_state(&storage).await.1
        };
        let mut mirror = Mirror::new(&watch, known);
        mirror.until_next_mark(&mut watch).await;
        assert_eq!(mirror.resets, resets);
        assert_eq!(mirror.entries, full_state(&storage).await.1);
    }
}

async fn from_the_beginning_needs_no_tombstones(context: Context) {
    let storage = context.open().await;
    put(&storage, "gone", "1").await;
    put(&storage, "old", "1").await;
    let horizon = remove(&storage, "gone").await;
    let fixture = &context.fixture;
    fixture.drop_tombstones(&context.keyspace, horizon).await;
    let mut watch = watch_latest(&storage, KeyRange::all(), WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    assert_eq!((mirror.states, mirror.resets), (1, 0));
}

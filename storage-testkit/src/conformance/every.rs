//! What a watch in mode `Every` promises: each commit that touches the range, unsplit, in order, exactly once.

use std::sync::Arc;

use futures_util::FutureExt;
use storage_protocol::{
    Batch, CommitOptions, CommitRecord, Key, KeyRange, Lifetime, Position, Revision, Storage,
    StorageError, StorageExt, UnixMillis, Watch, WatchEvent, WatchOptions, WatchStart,
};

use super::support::{
    Handle, assert_invalid, assert_unknown_epoch, beyond_head, bytes, commit, commits_to_mark,
    next_commit, of_unknown_epoch, previous, put, remove, told, watch_every,
};
use super::{Context, cases};

cases!["every":
    from_now_tells_what_comes,
    from_now_tells_nothing_older,
    its_start_is_no_older_than_the_call,
    from_each_position_tells_just_what_came_after,
    a_position_of_a_commit_elsewhere_counts_as_the_one_before,
    from_the_beginning_tells_all,
    a_commit_is_never_split,
    a_large_commit_is_one_event,
    changes_come_in_the_order_of_the_operations,
    only_the_range_is_told,
    a_commit_is_cut_to_the_range,
    an_empty_range_is_told_nothing,
    every_step_of_one_key_is_told,
    concurrent_commits_are_told_in_revision_order,
    two_watches_are_told_the_same,
    a_slow_reader_misses_nothing,
    a_watch_resumes_after_each_event,
    a_dropped_next_loses_no_event,
    dropped_watches_leave_the_others_alone,
    removals_are_told,
    removing_an_absent_key_is_not_told,
    a_commit_without_changes_is_not_told,
    signals_are_told_in_their_place,
    signals_are_told_from_the_log,
    a_stamped_key_is_told_whole,
    a_label_is_told,
    principal_and_time_are_told,
    the_values_before_are_told_if_asked,
    the_values_before_are_not_told_unasked,
    the_values_before_are_told_from_the_log,
    lifetimes_are_told_as_they_are_stored,
    other_keyspaces_are_not_told,
    a_mark_comes_when_asked,
    a_mark_stands_behind_what_is_due,
    a_mark_comes_on_a_quiet_range,
    marks_answer_in_order,
    a_mark_is_a_position_to_resume_from,
    a_position_of_an_unknown_epoch_is_refused,
    a_position_beyond_the_last_commit_is_refused,
    a_start_before_the_log_is_compacted [CompactLog],
];

/// All that a new watch tells from `start` up to now, one line a commit: `put a=1, remove b`.
async fn history(storage: &Handle, range: KeyRange, start: WatchStart) -> Vec<String> {
    let mut watch = watch_every(storage, range, start).await;
    told_to_mark(&mut watch).await
}

async fn told_to_mark(watch: &mut Watch) -> Vec<String> {
    let (commits, _) = commits_to_mark(watch, 77).await;
    commits.iter().map(line).collect()
}

fn line(commit: &Arc<CommitRecord>) -> String {
    assert!(!commit.changes.is_empty(), "an event has changes");
    told(&commit.changes).join(", ")
}

async fn from_now_tells_what_comes(context: Context) {
    let (storage, writer) = (context.open().await, context.open().await);
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    for n in 0..20 {
        let committed = put(&writer, "a", &n.to_string()).await;
        let record = next_commit(&mut watch).await;
        assert_eq!(record.revision, committed.revision);
        assert_eq!(line(&record), format!("put a={n}"));
    }
}

async fn from_now_tells_nothing_older(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "old").await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    put(&storage, "a", "new").await;
    assert_eq!(told_to_mark(&mut watch).await, ["put a=new"]);
}

async fn its_start_is_no_older_than_the_call(context: Context) {
    let (storage, writer) = (context.open().await, context.open().await);
    let before = put(&writer, "a", "1").await;
    let watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    let start = watch.start();
    let after = put(&writer, "a", "2").await;
    assert_eq!(start.epoch, before.epoch);
    assert!(start.revision >= before.revision && start.revision < after.revision);
    let again = watch_every(&storage, KeyRange::all(), WatchStart::After(before)).await;
    assert_eq!(again.start(), before);
}

/// Puts, removals and batches; the positions and what each commit is told as.
async fn write_history(storage: &Handle) -> Vec<(Position, String)> {
    let mut written = Vec::new();
    for n in 0..30u32 {
        let (batch, line) = match n % 5 {
            0..=2 => {
                let line = format!("put key{}={n}", n % 4);
                (
                    Batch::new().put(format!("key{}", n % 4), n.to_string()),
                    line,
                )
            }
            3 => {
                let batch = Batch::new().put("key9", n.to_string()).put("key0", "");
                (batch, format!("put key9={n}, put key0="))
            }
            _ => {
                let batch = Batch::new().remove("key9").put("z", n.to_string());
                (batch, format!("remove key9, put z={n}"))
            }
        };
        written.push((commit(storage, batch).await, line));
    }
    written
}

async fn from_each_position_tells_just_what_came_after(context: Context) {
    let storage = context.open().await;
    let written = write_history(&storage).await;
    let lines: Vec<&str> = written.iter().map(|(_, line)| line.as_str()).collect();
    for (n, (position, _)) in written.iter().enumerate() {
        let start = WatchStart::After(*position);
        let told = history(&storage, KeyRange::all(), start).await;
        assert_eq!(told, lines[n + 1..], "after commit {n}");
    }
}

async fn a_position_of_a_commit_elsewhere_counts_as_the_one_before(context: Context) {
    let (storage, other) = (context.open().await, context.open_other("x").await);
    put(&storage, "a", "1").await;
    let elsewhere = put(&other, "z", "1").await;
    put(&storage, "b", "1").await;
    let told = history(&storage, KeyRange::all(), WatchStart::After(elsewhere)).await;
    assert_eq!(told, ["put b=1"]);
}

async fn from_the_beginning_tells_all(context: Context) {
    let storage = context.open().await;
    let written = write_history(&storage).await;
    let lines: Vec<&str> = written.iter().map(|(_, line)| line.as_str()).collect();
    let told = history(&storage, KeyRange::all(), WatchStart::Beginning).await;
    assert_eq!(told, lines);
    let zero = Position {
        revision: Revision::ZERO,
        ..written[0].0
    };
    let told = history(&storage, KeyRange::all(), WatchStart::After(zero)).await;
    assert_eq!(told, lines);
}

async fn a_commit_is_never_split(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    let batch = Batch::new().put("c", "1").put("a", "1").put("b", "1");
    let committed = commit(&storage, batch).await;
    put(&storage, "d", "1").await;
    let record = next_commit(&mut watch).await;
    assert_eq!(record.revision, committed.revision);
    assert_eq!(line(&record), "put c=1, put a=1, put b=1");
    assert_eq!(line(&next_commit(&mut watch).await), "put d=1");
}

async fn a_large_commit_is_one_event(context: Context) {
    let storage = context.open().await;
    let count = storage.limits().await.unwrap().operations_per_commit_max;
    let mut live = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    let batch = (0..count).fold(Batch::new(), |batch, n| {
        batch.put(format!("{n:06}"), vec![b'v'; 100])
    });
    commit(&storage, batch).await;
    put(&storage, "last", "").await;
    let start = WatchStart::After(live.start());
    let mut resumed = watch_every(&storage, KeyRange::all(), start).await;
    for watch in [&mut live, &mut resumed] {
        let record = next_commit(watch).await;
        assert_eq!(record.changes.len(), count);
        assert!(record.changes.is_sorted_by(|a, b| a.key < b.key));
        assert_eq!(line(&next_commit(watch).await), "put last=");
    }
}

async fn changes_come_in_the_order_of_the_operations(context: Context) {
    let storage = context.open().await;
    put(&storage, "m", "1").await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    let start = watch.start();
    let batch = Batch::new()
        .put("z", "1")
        .remove("m")
        .signal("q", "1")
        .put("a", "1");
    commit(&storage, batch).await;
    let expected = "put z=1, remove m, signal q=1, put a=1";
    assert_eq!(line(&next_commit(&mut watch).await), expected);
    let again = history(&storage, KeyRange::all(), WatchStart::After(start)).await;
    assert_eq!(again, [expected]);
}

async fn only_the_range_is_told(context: Context) {
    let storage = context.open().await;
    let range = KeyRange::between("b", "d");
    let mut live = watch_every(&storage, range.clone(), WatchStart::Now).await;
    for key in ["a", "b", "b\0", "c", "cz", "d", "e"] {
        put(&storage, key, "1").await;
    }
    let expected = ["put b=1", "put b\\x00=1", "put c=1", "put cz=1"];
    assert_eq!(told_to_mark(&mut live).await, expected);
    let again = history(&storage, range, WatchStart::Beginning).await;
    assert_eq!(again, expected);
}

async fn a_commit_is_cut_to_the_range(context: Context) {
    let storage = context.open().await;
    let range = KeyRange::prefix("b");
    let mut live = watch_every(&storage, range.clone(), WatchStart::Now).await;
    let batch = Batch::new()
        .put("b2", "1")
        .put("a", "1")
        .signal("b1", "1")
        .put("c", "1");
    commit(&storage, batch).await;
    assert_eq!(told_to_mark(&mut live).await, ["put b2=1, signal b1=1"]);
    let again = history(&storage, range, WatchStart::Beginning).await;
    assert_eq!(again, ["put b2=1, signal b1=1"]);
}

async fn an_empty_range_is_told_nothing(context: Context) {
    let storage = context.open().await;
    let range = KeyRange::between("c", "a");
    let mut watch = watch_every(&storage, range, WatchStart::Now).await;
    put(&storage, "b", "1").await;
    assert!(told_to_mark(&mut watch).await.is_empty());
}

async fn every_step_of_one_key_is_told(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::single("a"), WatchStart::Now).await;
    let mut expected = Vec::new();
    for n in 0..200 {
        put(&storage, "a", &n.to_string()).await;
        expected.push(format!("put a={n}"));
    }
    assert_eq!(told_to_mark(&mut watch).await, expected);
}

async fn write_concurrently(context: &Context, tasks: usize, each: usize) {
    let mut running = Vec::new();
    for task in 0..tasks {
        let storage = context.open().await;
        running.push(tokio::spawn(async move {
            for n in 0..each {
                let batch = Batch::new().put(format!("{task}"), n.to_string());
                commit(&storage, batch.put("shared", format!("{task}/{n}"))).await;
            }
        }));
    }
    for task in running {
        task.await.unwrap();
    }
}

async fn concurrent_commits_are_told_in_revision_order(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    write_concurrently(&context, 8, 25).await;
    let (commits, mark) = commits_to_mark(&mut watch, 1).await;
    assert_eq!(commits.len(), 200);
    assert!(commits.is_sorted_by(|a, b| a.revision < b.revision));
    assert!(commits.iter().all(|commit| commit.changes.len() == 2));
    assert!(commits[199].revision <= mark.revision);
}

async fn two_watches_are_told_the_same(context: Context) {
    let (one, other) = (context.open().await, context.open().await);
    let mut first = watch_every(&one, KeyRange::all(), WatchStart::Now).await;
    let start = WatchStart::After(first.start());
    let mut second = watch_every(&other, KeyRange::all(), start).await;
    write_concurrently(&context, 4, 20).await;
    let (told_first, _) = commits_to_mark(&mut first, 1).await;
    let (told_second, _) = commits_to_mark(&mut second, 2).await;
    assert_eq!(told_first, told_second);
    let mut later = watch_every(&one, KeyRange::all(), start).await;
    let (told_later, _) = commits_to_mark(&mut later, 3).await;
    assert_eq!(told_first, told_later, "from the log as it was live");
}

async fn a_slow_reader_misses_nothing(context: Context) {
    let (storage, writer) = (context.open().await, context.open().await);
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    const COMMITS: usize = 1_000;
    for first in (0..COMMITS).step_by(100) {
        let batches = (first..first + 100).map(|n| {
            let value = Key::from(vec![b'v'; 4 << 10]);
            Batch::new().put(format!("{n:06}"), value)
        });
        for answer in super::support::pipeline(&writer, batches.collect()).await {
            answer.unwrap();
        }
    }
    for n in 0..COMMITS {
        let record = next_commit(&mut watch).await;
        assert_eq!(record.changes[0].key, bytes(&format!("{n:06}")));
    }
}

async fn a_watch_resumes_after_each_event(context: Context) {
    let storage = context.open().await;
    let written = write_history(&storage).await;
    let mut position = Position {
        revision: Revision::ZERO,
        ..written[0].0
    };
    for (_, expected) in &written {
        let start = WatchStart::After(position);
        let mut watch = watch_every(&storage, KeyRange::all(), start).await;
        let record = next_commit(&mut watch).await;
        assert_eq!(&line(&record), expected);
        position.revision = record.revision;
    }
}

/// `next` is polled once and dropped, at every moment of a commit's way.
async fn a_dropped_next_loses_no_event(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    let (mut seen, mut written) = (Vec::new(), Vec::new());
    for n in 0..100 {
        written.push(put(&storage, "a", &n.to_string()).await.revision);
        for _ in 0..3 {
            if let Some(event) = watch.next().now_or_never() {
                seen.extend(event.unwrap());
            }
            tokio::task::yield_now().await;
        }
    }
    let mut revisions: Vec<Revision> = Vec::new();
    for event in seen {
        match event {
            WatchEvent::Commit(record) => revisions.push(record.revision),
            other => panic!("expected a commit, got {other:?}"),
        }
    }
    let (rest, _) = commits_to_mark(&mut watch, 1).await;
    revisions.extend(rest.iter().map(|record| record.revision));
    assert_eq!(revisions, written);
}

async fn dropped_watches_leave_the_others_alone(context: Context) {
    let storage = context.open().await;
    let mut kept = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    for n in 0..50 {
        let start = WatchStart::After(kept.start());
        let mut dropped = watch_every(&storage, KeyRange::all(), start).await;
        put(&storage, "a", &n.to_string()).await;
        if n % 2 == 0 {
            next_commit(&mut dropped).await;
        }
    }
    assert_eq!(told_to_mark(&mut kept).await.len(), 50);
}

async fn removals_are_told(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    let removed = remove(&storage, "a").await;
    let record = next_commit(&mut watch).await;
    assert_eq!(record.revision, removed.revision);
    assert_eq!(line(&record), "remove a");
}

async fn removing_an_absent_key_is_not_told(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    remove(&storage, "never").await;
    commit(&storage, Batch::new().remove("never").put("a", "1")).await;
    remove(&storage, "a").await;
    remove(&storage, "a").await;
    let expected = ["put a=1", "remove a"];
    assert_eq!(told_to_mark(&mut watch).await, expected);
    let again = history(&storage, KeyRange::all(), WatchStart::Beginning).await;
    assert_eq!(again, expected);
}

async fn a_commit_without_changes_is_not_told(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    commit(&storage, Batch::new()).await;
    let last = commit(&storage, Batch::new().check_absent("a")).await;
    let (commits, mark) = commits_to_mark(&mut watch, 1).await;
    assert!(commits.is_empty());
    assert!(mark.revision >= last.revision);
}

async fn signals_are_told_in_their_place(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::prefix("s"), WatchStart::Now).await;
    commit(&storage, Batch::new().put("s", "1")).await;
    commit(&storage, Batch::new().signal("s", "ring").signal("t", "x")).await;
    commit(&storage, Batch::new().signal("t", "not here")).await;
    commit(&storage, Batch::new().put("s", "2")).await;
    let expected = ["put s=1", "signal s=ring", "put s=2"];
    assert_eq!(told_to_mark(&mut watch).await, expected);
}

async fn signals_are_told_from_the_log(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    commit(&storage, Batch::new().signal("a", "ring")).await;
    put(&storage, "a", "2").await;
    let told = history(&storage, KeyRange::all(), WatchStart::Beginning).await;
    assert_eq!(told, ["put a=1", "signal a=ring", "put a=2"]);
}

async fn a_stamped_key_is_told_whole(context: Context) {
    let storage = context.open().await;
    let range = KeyRange::prefix("log/");
    let mut watch = watch_every(&storage, range, WatchStart::Now).await;
    let batch = Batch::new().put_stamped("log/", "line", Lifetime::Forever);
    let committed = commit(&storage, batch).await;
    let record = next_commit(&mut watch).await;
    let stamp = committed.revision.0.to_be_bytes();
    let key = Key::from([b"log/".as_slice(), &stamp].concat());
    assert_eq!(record.changes[0].key, key);
    assert!(storage.get_one(key).await.unwrap().is_some());
}

async fn a_label_is_told(context: Context) {
    let storage = context.open().await;
    let mut live = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    for label in [Some("plain"), None, Some(""), Some("ä # \0 b")] {
        let options = CommitOptions {
            label: label.map(str::to_owned),
            with_previous: false,
        };
        let batch = Batch::new().put("a", "1");
        storage.commit(batch, options).await.unwrap();
        let record = next_commit(&mut live).await;
        assert_eq!(record.label.as_deref(), label);
        let before = Position {
            revision: Revision(record.revision.0 - 1),
            ..live.start()
        };
        let start = WatchStart::After(before);
        let mut logged = watch_every(&storage, KeyRange::all(), start).await;
        assert_eq!(next_commit(&mut logged).await.label.as_deref(), label);
    }
}

async fn principal_and_time_are_told(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    put(&storage, "a", "1").await;
    let record = next_commit(&mut watch).await;
    assert!(!record.principal.is_empty());
    let age = record.time.0.abs_diff(UnixMillis::now().0);
    assert!(age < 60_000, "committed {age} ms from now");
}

async fn commit_with_previous(storage: &Handle, batch: Batch) {
    let options = CommitOptions::default().with_previous();
    storage.commit(batch, options).await.unwrap();
}

async fn write_with_previous(storage: &Handle) {
    put(storage, "a", "1").await;
    put(storage, "b", "").await;
    let batch = Batch::new().put("a", "2").remove("b").put("new", "2");
    commit_with_previous(storage, batch.signal("s", "x").remove("never")).await;
    commit_with_previous(storage, Batch::new().remove("a").put("b", "3")).await;
}

fn assert_previous(commits: &[Arc<CommitRecord>]) {
    let before = |commit: &Arc<CommitRecord>| -> Vec<Option<Key>> {
        let changes = commit.changes.iter();
        changes.map(|change| previous(change).cloned()).collect()
    };
    let first = ["1", ""].map(|value| Some(bytes(value)));
    assert_eq!(before(&commits[0])[..2], first);
    assert_eq!(before(&commits[0])[2..], [None, None]);
    assert_eq!(before(&commits[1]), [Some(bytes("2")), None]);
}

async fn the_values_before_are_told_if_asked(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    write_with_previous(&storage).await;
    let (commits, _) = commits_to_mark(&mut watch, 1).await;
    assert_previous(&commits[2..]);
}

async fn the_values_before_are_not_told_unasked(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    put(&storage, "a", "1").await;
    put(&storage, "a", "2").await;
    remove(&storage, "a").await;
    let (commits, _) = commits_to_mark(&mut watch, 1).await;
    let mut changes = commits.iter().flat_map(|commit| &commit.changes);
    assert!(changes.all(|change| previous(change).is_none()));
}

async fn the_values_before_are_told_from_the_log(context: Context) {
    let storage = context.open().await;
    write_with_previous(&storage).await;
    put(&storage, "a", "later").await;
    put(&storage, "b", "later").await;
    let start = WatchStart::Beginning;
    let mut watch = watch_every(&storage, KeyRange::all(), start).await;
    let (commits, _) = commits_to_mark(&mut watch, 1).await;
    assert_previous(&commits[2..4]);
}

async fn lifetimes_are_told_as_they_are_stored(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    let hour = Lifetime::TimeToLive(std::time::Duration::from_secs(3600));
    let batch = Batch::new().put("a", "").put_with("b", "", hour);
    commit(&storage, batch.put_with("c", "", Lifetime::Session)).await;
    let record = next_commit(&mut watch).await;
    for change in &record.changes {
        let entry = storage.get_one(change.key.clone()).await.unwrap().unwrap();
        let storage_protocol::ChangeKind::Put { lifetime, .. } = &change.kind else {
            panic!("expected a put, got {change:?}");
        };
        assert_eq!(*lifetime, entry.lifetime);
    }
}

async fn other_keyspaces_are_not_told(context: Context) {
    let (storage, other) = (context.open().await, context.open_other("x").await);
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    put(&other, "a", "other").await;
    put(&storage, "a", "own").await;
    put(&other, "b", "other").await;
    assert_eq!(told_to_mark(&mut watch).await, ["put a=own"]);
}

async fn a_mark_comes_when_asked(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    for token in [0, 1, 77, u64::MAX] {
        let committed = put(&storage, "a", "1").await;
        let (commits, mark) = commits_to_mark(&mut watch, token).await;
        assert_eq!(commits.len(), 1);
        assert_eq!(mark.epoch, committed.epoch);
        assert!(mark.revision >= committed.revision);
    }
}

async fn a_mark_stands_behind_what_is_due(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    for round in 0..20u64 {
        for n in 0..10 {
            put(&storage, "a", &format!("{round}/{n}")).await;
        }
        let (commits, mark) = commits_to_mark(&mut watch, round).await;
        assert_eq!(commits.len(), 10, "round {round}");
        assert!(commits[9].revision <= mark.revision);
    }
}

async fn a_mark_comes_on_a_quiet_range(context: Context) {
    let storage = context.open().await;
    let range = KeyRange::prefix("quiet");
    let mut watch = watch_every(&storage, range, WatchStart::Now).await;
    let committed = put(&storage, "busy", "1").await;
    let (commits, mark) = commits_to_mark(&mut watch, 1).await;
    assert!(commits.is_empty());
    assert!(mark.revision >= committed.revision);
}

async fn marks_answer_in_order(context: Context) {
    let storage = context.open().await;
    let mut watch = watch_every(&storage, KeyRange::all(), WatchStart::Now).await;
    for token in 1..=5 {
        watch.request_progress(token);
    }
    let mut last = Revision::ZERO;
    for expected in 1..=5 {
        let event = super::support::next_event(&mut watch).await;
        let WatchEvent::Progress { position, token } = event else {
            panic!("expected a mark, got {event:?}");
        };
        assert_eq!(token, Some(expected));
        assert!(position.revision >= last);
        last = position.revision;
    }
}

async fn a_mark_is_a_position_to_resume_from(context: Context) {
    let storage = context.open().await;
    let range = KeyRange::prefix("a");
    let mut watch = watch_every(&storage, range.clone(), WatchStart::Now).await;
    put(&storage, "a", "before").await;
    put(&storage, "b", "before").await;
    let (_, mark) = commits_to_mark(&mut watch, 1).await;
    put(&storage, "a", "after").await;
    let told = history(&storage, range, WatchStart::After(mark)).await;
    assert_eq!(told, ["put a=after"]);
}

async fn fails(storage: &Handle, start: WatchStart) -> StorageError {
    let options = WatchOptions::every(start);
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

async fn a_start_before_the_log_is_compacted(context: Context) {
    let storage = context.open().await;
    let early = put(&storage, "a", "1").await;
    put(&storage, "a", "2").await;
    let horizon = put(&storage, "a", "3").await;
    put(&storage, "a", "4").await;
    context.fixture.compact_log(horizon).await;
    for start in [WatchStart::Beginning, WatchStart::After(early)] {
        let StorageError::Compacted { oldest } = fails(&storage, start).await else {
            panic!("expected it to be compacted");
        };
        assert!(oldest > early.revision && oldest <= horizon.revision);
    }
    let told = history(&storage, KeyRange::all(), WatchStart::After(horizon)).await;
    assert_eq!(told, ["put a=4"]);
}

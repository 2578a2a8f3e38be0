//! What `scan` promises: order, bounds, one snapshot for all pages, and `newer_than` with tombstones.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use storage_protocol::{
    Batch, Entry, Key, KeyRange, KeyState, Outcome, Position, Revision, Scan, ScanItem,
    ScanOptions, Storage, StorageError, StorageExt,
};

use super::support::{
    Handle, assert_invalid, assert_unknown_epoch, beyond_head, bytes, commit, full_state, keys,
    newer_than, of_unknown_epoch, plain, put, remove, scan, text,
};
use super::{Context, cases};

cases!["scans":
    keys_come_in_order,
    keys_come_in_reverse_order,
    a_limit_cuts_the_end,
    a_limit_cuts_the_end_in_reverse,
    keys_only_leaves_values_out,
    the_start_is_in_the_range_and_the_end_is_not,
    an_open_end_reaches_the_last_key,
    a_prefix_range_holds_just_the_prefix,
    a_prefix_of_ff_bytes_reaches_the_last_key,
    a_single_range_holds_just_its_key,
    an_empty_range_holds_nothing,
    entries_are_told_as_get_tells_them,
    a_scan_sees_every_acknowledged_commit,
    pages_are_bounded_and_never_empty,
    a_value_larger_than_a_page_is_one_page,
    all_pages_are_read_at_one_revision,
    reverse_pages_are_read_at_one_revision,
    a_scan_under_concurrent_commits_is_one_revision,
    a_dropped_call_for_a_page_ends_no_scan_in_silence,
    no_tombstones_unless_asked,
    newer_than_tells_entries_and_tombstones,
    newer_than_the_last_commit_is_nothing,
    newer_than_zero_is_everything,
    newer_than_a_commit_elsewhere_counts_as_the_one_before,
    newer_than_takes_range_reverse_limit_and_keys_only,
    a_key_put_again_has_no_tombstone,
    a_key_never_there_has_no_tombstone,
    every_difference_brings_its_reader_up_to_date,
    newer_than_of_an_unknown_epoch_is_refused,
    newer_than_beyond_the_last_commit_is_refused,
    newer_than_below_the_horizon_is_compacted [DropTombstones],
];

async fn filled(context: &Context, keys: &[&str]) -> Handle {
    let storage = context.open().await;
    let batch = keys.iter().fold(Batch::new(), |batch, key| {
        batch.put(bytes(key), format!("value of {key}"))
    });
    commit(&storage, batch).await;
    storage
}

fn reverse() -> ScanOptions {
    ScanOptions {
        reverse: true,
        ..ScanOptions::default()
    }
}

fn at_most(limit: u64) -> ScanOptions {
    ScanOptions {
        limit: Some(limit),
        ..ScanOptions::default()
    }
}

async fn keys_come_in_order(context: Context) {
    let storage = filled(&context, &["b", "a", "ab", "c", "B"]).await;
    let found = keys(&storage, KeyRange::all(), plain()).await;
    assert_eq!(found, ["B", "a", "ab", "b", "c"]);
}

async fn keys_come_in_reverse_order(context: Context) {
    let storage = filled(&context, &["b", "a", "ab", "c", "B"]).await;
    let found = keys(&storage, KeyRange::all(), reverse()).await;
    assert_eq!(found, ["c", "b", "ab", "a", "B"]);
}

async fn a_limit_cuts_the_end(context: Context) {
    let storage = filled(&context, &["a", "b", "c", "d"]).await;
    let all = KeyRange::all;
    assert!(keys(&storage, all(), at_most(0)).await.is_empty());
    assert_eq!(keys(&storage, all(), at_most(1)).await, ["a"]);
    assert_eq!(keys(&storage, all(), at_most(3)).await, ["a", "b", "c"]);
    assert_eq!(keys(&storage, all(), at_most(u64::MAX)).await.len(), 4);
    let from_b = KeyRange::between("b", "z");
    assert_eq!(keys(&storage, from_b, at_most(2)).await, ["b", "c"]);
}

async fn a_limit_cuts_the_end_in_reverse(context: Context) {
    let storage = filled(&context, &["a", "b", "c", "d"]).await;
    let options = ScanOptions {
        limit: Some(2),
        ..reverse()
    };
    assert_eq!(keys(&storage, KeyRange::all(), options).await, ["d", "c"]);
    let range = KeyRange::between("a", "c");
    assert_eq!(keys(&storage, range, options).await, ["b", "a"]);
}

async fn keys_only_leaves_values_out(context: Context) {
    let storage = filled(&context, &["a", "b"]).await;
    let options = ScanOptions {
        keys_only: true,
        ..ScanOptions::default()
    };
    let (_, full) = full_state(&storage).await;
    let bare = scan(&storage, KeyRange::all(), options).await;
    assert_eq!(bare.len(), 2);
    for item in bare {
        let entry = live(&item);
        assert!(entry.value.is_empty());
        assert_eq!(entry.revision, full[&item.key].revision);
    }
}

async fn the_start_is_in_the_range_and_the_end_is_not(context: Context) {
    let storage = filled(&context, &["a", "b", "b\0", "c", "d"]).await;
    let range = || KeyRange::between("b", "d");
    assert_eq!(keys(&storage, range(), plain()).await, ["b", "b\\x00", "c"]);
    assert_eq!(
        keys(&storage, range(), reverse()).await,
        ["c", "b\\x00", "b"]
    );
    let between_keys = KeyRange::between("aa", "bb");
    assert_eq!(keys(&storage, between_keys, plain()).await, ["b", "b\\x00"]);
}

async fn an_open_end_reaches_the_last_key(context: Context) {
    let storage = filled(&context, &["a", "b"]).await;
    storage
        .put(vec![0xff; 20].into(), Key::new())
        .await
        .unwrap();
    let range = KeyRange {
        start: bytes("b"),
        end: None,
    };
    assert_eq!(keys(&storage, range.clone(), plain()).await.len(), 2);
    let last = keys(&storage, range, reverse()).await;
    assert_eq!(last[0], text(&[0xff; 20]));
}

async fn a_prefix_range_holds_just_the_prefix(context: Context) {
    let storage = filled(&context, &["a", "a/", "a/1", "a/2", "a0", "b/1"]).await;
    let found = keys(&storage, KeyRange::prefix("a/"), plain()).await;
    assert_eq!(found, ["a/", "a/1", "a/2"]);
    let found = keys(&storage, KeyRange::prefix("a/"), reverse()).await;
    assert_eq!(found, ["a/2", "a/1", "a/"]);
}

async fn a_prefix_of_ff_bytes_reaches_the_last_key(context: Context) {
    let storage = context.open().await;
    let names: [&[u8]; 6] = [
        b"\xfe",
        b"\xfe\xff",
        b"\xfe\xff\xff",
        b"\xff",
        b"\xff\x01",
        b"\xff\xff",
    ];
    for name in names {
        storage
            .put(Key::from_static(name), Key::new())
            .await
            .unwrap();
    }
    let count = async |prefix: &'static [u8]| {
        let range = KeyRange::prefix(prefix);
        let forward = keys(&storage, range.clone(), plain()).await;
        let mut backward = keys(&storage, range, reverse()).await;
        backward.reverse();
        assert_eq!(forward, backward);
        forward.len()
    };
    assert_eq!(count(b"\xff").await, 3);
    assert_eq!(count(b"\xff\xff").await, 1);
    assert_eq!(count(b"\xfe\xff").await, 2);
    assert_eq!(count(b"").await, 6);
}

async fn a_single_range_holds_just_its_key(context: Context) {
    let storage = filled(&context, &["a", "a\0", "aa", "b"]).await;
    let found = keys(&storage, KeyRange::single("a"), plain()).await;
    assert_eq!(found, ["a"]);
    let none = keys(&storage, KeyRange::single("x"), plain()).await;
    assert!(none.is_empty());
}

async fn an_empty_range_holds_nothing(context: Context) {
    let storage = filled(&context, &["a", "b", "c"]).await;
    for range in [KeyRange::between("b", "b"), KeyRange::between("c", "a")] {
        assert!(keys(&storage, range.clone(), plain()).await.is_empty());
        assert!(keys(&storage, range, reverse()).await.is_empty());
    }
}

async fn entries_are_told_as_get_tells_them(context: Context) {
    let storage = filled(&context, &["a", "b", "c"]).await;
    put(&storage, "b", "").await;
    for item in scan(&storage, KeyRange::all(), plain()).await {
        let entry = storage.get_one(item.key.clone()).await.unwrap();
        assert_eq!(Some(live(&item)), entry.as_ref());
    }
}

fn live(item: &ScanItem) -> &Entry {
    match &item.state {
        KeyState::Live(entry) => entry,
        KeyState::Removed(at) => panic!("{:?} was removed at {at}", item.key),
    }
}

async fn a_scan_sees_every_acknowledged_commit(context: Context) {
    let (writer, reader) = (context.open().await, context.open().await);
    for round in 0..30 {
        let committed = put(&writer, &format!("{round:02}"), "").await;
        let (position, state) = full_state(&reader).await;
        assert_eq!(state.len(), round + 1);
        assert!(position.revision >= committed.revision);
        assert_eq!(position.epoch, committed.epoch);
    }
}

const PAGED_KEYS: usize = 100;

/// 100 values of 8 KiB: several pages.
async fn write_pages(storage: &Handle, filler: u8) {
    let batch = (0..PAGED_KEYS).fold(Batch::new(), |batch, n| {
        batch.put(format!("{n:03}"), vec![filler; 8 << 10])
    });
    commit(storage, batch).await;
}

async fn pages_are_bounded_and_never_empty(context: Context) {
    let storage = context.open().await;
    write_pages(&storage, 1).await;
    let mut scan = storage.scan(KeyRange::all(), plain()).await.unwrap();
    let (mut pages, mut items) = (0, 0);
    while let Some(page) = scan.next_page().await.unwrap() {
        let sizes = page.iter().map(|i| i.key.len() + live(i).value.len());
        let size: usize = sizes.sum();
        assert!(!page.is_empty(), "page {pages} is empty");
        assert!(size <= 256 << 10, "page {pages} has {size} bytes");
        pages += 1;
        items += page.len();
    }
    assert_eq!(items, PAGED_KEYS);
    assert!(pages >= 4, "800 KiB came in {pages} pages");
}

async fn a_value_larger_than_a_page_is_one_page(context: Context) {
    let storage = context.open().await;
    for key in ["a", "b", "c"] {
        let size = if key == "b" { 1 << 20 } else { 10 };
        storage.put(bytes(key), vec![7; size].into()).await.unwrap();
    }
    let items = scan(&storage, KeyRange::all(), plain()).await;
    let sizes: Vec<usize> = items.iter().map(|item| live(item).value.len()).collect();
    assert_eq!(sizes, [10, 1 << 20, 10]);
}

/// A page that was lost with its call leaves a hole: then there is no orderly end.
async fn a_dropped_call_for_a_page_ends_no_scan_in_silence(context: Context) {
    let storage = context.open().await;
    write_pages(&storage, 1).await;
    let mut scan = storage.scan(KeyRange::all(), plain()).await.unwrap();
    let mut items = scan.next_page().await.unwrap().unwrap().len();
    // Polled once, and dropped if it is not through.
    match scan.next_page().now_or_never() {
        Some(page) => items += page.unwrap().unwrap().len(),
        None => {
            for _ in 0..2 {
                let error = scan.next_page().await.unwrap_err();
                assert_eq!(error.outcome(), Outcome::NotExecuted, "{error:?}");
            }
            return;
        }
    }
    while let Some(page) = scan.next_page().await.unwrap() {
        items += page.len();
    }
    assert_eq!(items, PAGED_KEYS);
}

async fn all_pages_are_read_at_one_revision(context: Context) {
    snapshot_case(&context, plain()).await;
}

async fn reverse_pages_are_read_at_one_revision(context: Context) {
    snapshot_case(&context, reverse()).await;
}

/// Between the pages every key is overwritten, some are removed, others come in between.
async fn snapshot_case(context: &Context, options: ScanOptions) {
    let (storage, writer) = (context.open().await, context.open().await);
    write_pages(&storage, 1).await;
    let mut running = storage.scan(KeyRange::all(), options).await.unwrap();
    let mut items = running.next_page().await.unwrap().unwrap();
    assert!(
        items.len() < PAGED_KEYS,
        "it was meant to have several pages"
    );
    let mut round = 1;
    loop {
        round += 1;
        write_pages(&writer, round).await;
        let batch = (0..PAGED_KEYS).step_by(7).fold(Batch::new(), |batch, n| {
            batch
                .remove(format!("{n:03}"))
                .put(format!("{n:03}+"), "new")
        });
        commit(&writer, batch).await;
        match running.next_page().await.unwrap() {
            Some(page) => items.extend(page),
            None => break,
        }
    }
    let mut found: Vec<String> = items.iter().map(|item| text(&item.key)).collect();
    if options.reverse {
        found.reverse();
    }
    let expected: Vec<String> = (0..PAGED_KEYS).map(|n| format!("{n:03}")).collect();
    assert_eq!(found, expected);
    for item in &items {
        assert!(live(item).value.iter().all(|byte| *byte == 1));
        assert!(live(item).revision <= running.position().revision);
    }
}

async fn a_scan_under_concurrent_commits_is_one_revision(context: Context) {
    let (reader, writer) = (context.open().await, context.open().await);
    write_pages(&writer, 0).await;
    let writing = tokio::spawn(async move {
        for round in 1..30 {
            write_pages(&writer, round).await;
        }
    });
    let mut scans = 0;
    while !writing.is_finished() || scans < 3 {
        let (position, state) = full_state(&reader).await;
        let revisions: BTreeSet<Revision> = state.values().map(|e| e.revision).collect();
        assert_eq!(revisions.len(), 1, "one scan saw commits {revisions:?}");
        assert!(revisions.iter().all(|r| *r <= position.revision));
        scans += 1;
        // An implementation that is always ready would else keep the writer from its turn.
        tokio::task::yield_now().await;
    }
    writing.await.unwrap();
}

async fn no_tombstones_unless_asked(context: Context) {
    let storage = filled(&context, &["a", "b", "c"]).await;
    remove(&storage, "b").await;
    assert_eq!(keys(&storage, KeyRange::all(), plain()).await, ["a", "c"]);
    assert_eq!(keys(&storage, KeyRange::all(), reverse()).await, ["c", "a"]);
    assert_eq!(
        keys(&storage, KeyRange::all(), at_most(2)).await,
        ["a", "c"]
    );
}

/// What a scan with `newer_than` tells, as lines: `a=1`, or `b removed`.
async fn difference(storage: &Handle, after: Position) -> Vec<String> {
    let items = scan(storage, KeyRange::all(), newer_than(after)).await;
    lines(&items)
}

fn lines(items: &[ScanItem]) -> Vec<String> {
    let line = |item: &ScanItem| match &item.state {
        KeyState::Live(entry) => format!("{}={}", text(&item.key), text(&entry.value)),
        KeyState::Removed(_) => format!("{} removed", text(&item.key)),
    };
    items.iter().map(line).collect()
}

async fn newer_than_tells_entries_and_tombstones(context: Context) {
    let storage = context.open().await;
    put(&storage, "old", "1").await;
    put(&storage, "c", "1").await;
    let before = put(&storage, "gone", "1").await;
    let removed = remove(&storage, "gone").await;
    put(&storage, "c", "2").await;
    let last = put(&storage, "a", "1").await;
    let found = scan(&storage, KeyRange::all(), newer_than(before)).await;
    assert_eq!(lines(&found), ["a=1", "c=2", "gone removed"]);
    assert_eq!(found[0].state.revision(), last.revision);
    assert_eq!(found[2].state, KeyState::Removed(removed.revision));
    assert_eq!(difference(&storage, removed).await, ["a=1", "c=2"]);
}

async fn newer_than_the_last_commit_is_nothing(context: Context) {
    let storage = filled(&context, &["a", "b"]).await;
    let last = remove(&storage, "a").await;
    assert!(difference(&storage, last).await.is_empty());
    let head = storage.sync().await.unwrap();
    assert!(difference(&storage, head).await.is_empty());
}

async fn newer_than_zero_is_everything(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    put(&storage, "b", "1").await;
    let mut zero = remove(&storage, "b").await;
    zero.revision = Revision::ZERO;
    assert_eq!(difference(&storage, zero).await, ["a=1", "b removed"]);
}

async fn newer_than_a_commit_elsewhere_counts_as_the_one_before(context: Context) {
    let (storage, other) = (context.open().await, context.open_other("x").await);
    put(&storage, "a", "1").await;
    let elsewhere = put(&other, "z", "1").await;
    put(&storage, "b", "1").await;
    assert_eq!(difference(&storage, elsewhere).await, ["b=1"]);
}

async fn newer_than_takes_range_reverse_limit_and_keys_only(context: Context) {
    let storage = filled(&context, &["a", "b", "c", "d"]).await;
    let before = storage.sync().await.unwrap();
    let batch = Batch::new()
        .put("a", "2")
        .remove("b")
        .put("c", "2")
        .put("e", "2");
    commit(&storage, batch).await;
    let ask = async |range, options| lines(&scan(&storage, range, options).await);
    let newer = newer_than(before);
    let inner = KeyRange::between("b", "e");
    assert_eq!(ask(inner, newer).await, ["b removed", "c=2"]);
    let reversed = ScanOptions {
        reverse: true,
        ..newer
    };
    let expected = ["e=2", "c=2", "b removed", "a=2"];
    assert_eq!(ask(KeyRange::all(), reversed).await, expected);
    let two = ScanOptions {
        limit: Some(2),
        ..newer
    };
    assert_eq!(ask(KeyRange::all(), two).await, ["a=2", "b removed"]);
    let bare = ScanOptions {
        keys_only: true,
        ..newer
    };
    let expected = ["a=", "b removed", "c=", "e="];
    assert_eq!(ask(KeyRange::all(), bare).await, expected);
}

async fn a_key_put_again_has_no_tombstone(context: Context) {
    let storage = context.open().await;
    let before = put(&storage, "a", "1").await;
    remove(&storage, "a").await;
    put(&storage, "a", "2").await;
    assert_eq!(difference(&storage, before).await, ["a=2"]);
}

async fn a_key_never_there_has_no_tombstone(context: Context) {
    let storage = context.open().await;
    let before = put(&storage, "a", "1").await;
    commit(&storage, Batch::new().remove("never").remove("a")).await;
    let once = remove(&storage, "a").await;
    remove(&storage, "a").await;
    assert_eq!(difference(&storage, before).await, ["a removed"]);
    assert!(difference(&storage, once).await.is_empty());
}

/// From the state at every earlier position, the difference leads to the present state.
async fn every_difference_brings_its_reader_up_to_date(context: Context) {
    let storage = context.open().await;
    let mut states = Vec::new();
    for n in 0..40u32 {
        let key = (b'a' + u8::try_from(n * 7 % 10).unwrap()) as char;
        if n % 3 == 2 {
            remove(&storage, &key.to_string()).await;
        } else {
            put(&storage, &key.to_string(), &n.to_string()).await;
        }
        states.push(full_state(&storage).await);
    }
    let (_, present) = full_state(&storage).await;
    for (position, mut state) in states {
        for item in scan(&storage, KeyRange::all(), newer_than(position)).await {
            assert!(item.state.revision() > position.revision);
            match item.state {
                KeyState::Live(entry) => state.insert(item.key, entry),
                KeyState::Removed(_) => state.remove(&item.key),
            };
        }
        assert_eq!(state, present, "from {position}");
    }
}

async fn fails(storage: &Handle, after: Position) -> StorageError {
    let scan: Result<Scan, _> = storage.scan(KeyRange::all(), newer_than(after)).await;
    scan.unwrap_err()
}

async fn newer_than_of_an_unknown_epoch_is_refused(context: Context) {
    let storage = context.open().await;
    let position = put(&storage, "a", "1").await;
    let error = fails(&storage, of_unknown_epoch(position)).await;
    assert_unknown_epoch(&error, position);
}

async fn newer_than_beyond_the_last_commit_is_refused(context: Context) {
    let storage = context.open().await;
    let position = put(&storage, "a", "1").await;
    assert_invalid(&fails(&storage, beyond_head(position)).await);
}

async fn newer_than_below_the_horizon_is_compacted(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    let before = put(&storage, "b", "1").await;
    let horizon = remove(&storage, "a").await;
    put(&storage, "c", "1").await;
    context
        .fixture
        .drop_tombstones(&context.keyspace, horizon)
        .await;
    let StorageError::Compacted { oldest } = fails(&storage, before).await else {
        panic!("expected it to be compacted");
    };
    assert!(oldest > before.revision && oldest <= horizon.revision);
    assert_eq!(difference(&storage, horizon).await, ["c=1"]);
}

//! What is wrong with a data folder is found at the start and told; nothing is lost in silence.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_protocol::{
    Batch, CommitOptions, EntryLifetime, KeyRange, Keyspace, Lifetime, Position, Revision, Storage,
    StorageError, StorageExt, UnixMillis, WatchEvent, WatchOptions, WatchStart,
};
use storage_server::engine::rocks::{Durability, EngineOptions, OpenError, RocksEngine, TestClock};
use storage_server::engine::{Engine, SessionStorage};
use storage_testkit::data_folder::{copy, copy_as_original, set_boot, set_time};

/// How long anything may take that only has to happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn options(folder: &Path) -> EngineOptions {
    EngineOptions {
        disk_reserve_bytes: 0,
        ..EngineOptions::new(folder)
    }
}

fn keyspace() -> Keyspace {
    Keyspace::new("model").unwrap()
}

async fn put(engine: &Arc<RocksEngine>, count: u32) -> Position {
    let session = engine.open_session("cert:w", &keyspace()).storage();
    let mut last = Position::default();
    for n in 0..count {
        last = session
            .put(format!("{n}").into(), vec![b'v'; 1000].into())
            .await
            .unwrap();
    }
    last
}

async fn close(engine: Arc<RocksEngine>) {
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .unwrap();
}

/// The log files that hold something, oldest first.
fn logs(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_log = |path: &PathBuf| {
        path.extension().is_some_and(|e| e == "log") && path.metadata().unwrap().len() > 0
    };
    let mut logs: Vec<_> = files.filter(is_log).collect();
    logs.sort();
    logs
}

fn refusal(options: EngineOptions) -> String {
    RocksEngine::open(options)
        .map(|_| ())
        .unwrap_err()
        .to_string()
}

#[tokio::test]
async fn a_folder_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let engine = RocksEngine::open(options(&data)).unwrap();
    let text = refusal(options(&data));
    assert!(
        text.contains("in use by another process") && text.contains("data"),
        "{text}"
    );
    put(&engine, 1).await;
    close(engine).await;
}

#[test]
fn a_newer_format_is_refused_with_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("STORE"),
        "storage-sync store, format 999\n",
    )
    .unwrap();
    let text = refusal(options(folder.path()));
    assert!(
        text.contains("format 999") && text.contains("newer"),
        "{text}"
    );
}

#[test]
fn a_folder_of_something_else_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
    let text = refusal(options(folder.path()));
    assert!(text.contains("no storage-sync data folder"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_unreadable_folder_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    // A file where a folder should be: unreadable for root too, whom permissions do not stop.
    let text = refusal(options(&file.join("data")));
    assert!(text.contains("file"), "{text}");
    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(&locked).is_err() {
        assert!(refusal(options(&locked)).contains("locked"));
    }
}

#[tokio::test]
async fn a_log_damaged_in_its_middle_is_refused_then_accepted_under_a_new_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let engine = RocksEngine::open(options(&data)).unwrap();
    let early = put(&engine, 10).await;
    let last = put(&engine, 200).await;
    close(engine).await;
    // As after a crash, where the log is what recovery reads: one bit in its middle is flipped.
    let crashed = folder.path().join("crashed");
    copy_as_original(&data, &crashed);
    let log = logs(&crashed).pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&log, bytes).unwrap();

    let error = RocksEngine::open(options(&crashed)).unwrap_err();
    let OpenError::DataLost {
        synced, recovered, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert!(*synced >= last.revision && *recovered < last.revision);
    assert!(error.to_string().contains("--accept-data-loss"), "{error}");

    let engine = RocksEngine::open(EngineOptions {
        accept_data_loss: true,
        ..options(&crashed)
    })
    .unwrap();
    assert_ne!(engine.position().epoch, last.epoch);
    let session = engine.open_session("cert:r", &keyspace()).storage();
    let lost = session
        .watch(
            KeyRange::all(),
            WatchOptions::every(WatchStart::After(last)),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(lost, StorageError::EpochChanged { fork, .. } if fork < last.revision),
        "{lost:?}"
    );
    // A position from before the damage is still good.
    session
        .watch(
            KeyRange::all(),
            WatchOptions::latest(WatchStart::After(early)),
        )
        .await
        .unwrap();
    put(&engine, 1).await;
    close(engine).await;
}

#[tokio::test]
async fn a_store_that_lost_all_does_not_pass_for_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let engine = RocksEngine::open(options(&data)).unwrap();
    let last = put(&engine, 20).await;
    close(engine).await;
    // The very first record of the log: recovery then finds nothing at all.
    let first_record = folder.path().join("first");
    copy(&data, &first_record);
    let log = logs(&first_record).remove(0);
    let mut bytes = fs::read(&log).unwrap();
    bytes[20] ^= 1;
    fs::write(&log, bytes).unwrap();
    // And the database gone from beside its mark, as when a disk is not mounted.
    let unmounted = folder.path().join("unmounted");
    copy(&data, &unmounted);
    fs::remove_dir_all(unmounted.join("db")).unwrap();
    for lost in [first_record, unmounted] {
        let error = RocksEngine::open(options(&lost)).unwrap_err();
        let OpenError::DataLost { synced, .. } = &error else {
            panic!("{error}")
        };
        assert!(*synced >= last.revision);
        // Refused again: the evidence is still there.
        assert!(RocksEngine::open(options(&lost)).is_err());
    }
}

#[tokio::test]
async fn a_lost_tail_forks_after_another_boot_with_os_durability_and_only_then() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let os = |path: &Path| EngineOptions {
        durability: Durability::Os,
        ..options(path)
    };
    let engine = RocksEngine::open(os(&data)).unwrap();
    put(&engine, 50).await;
    // As a crash leaves it: the mark says "running".
    let same_boot = folder.path().join("same");
    copy_as_original(&data, &same_boot);
    let other_boot = folder.path().join("other");
    copy_as_original(&data, &other_boot);
    let clean_before = engine.position();
    close(engine).await;

    let engine = RocksEngine::open(os(&same_boot)).unwrap();
    let reopened = engine.position();
    assert_eq!(
        reopened.epoch, clean_before.epoch,
        "the same boot: nothing can be lost"
    );
    assert!(reopened.revision >= clean_before.revision);
    close(engine).await;

    let mark = fs::read_to_string(other_boot.join("SYNCED")).unwrap();
    let synced: u64 = mark.split(' ').next().unwrap().parse().unwrap();
    set_boot(&other_boot, "another-boot");
    let engine = RocksEngine::open(os(&other_boot)).unwrap();
    assert_ne!(engine.position().epoch, clean_before.epoch);
    let session = engine.open_session("cert:r", &keyspace()).storage();
    let seen = Position {
        epoch: clean_before.epoch,
        revision: Revision(synced + 1),
    };
    let error = session
        .watch(
            KeyRange::all(),
            WatchOptions::every(WatchStart::After(seen)),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(error, StorageError::EpochChanged { fork: Revision(fork), .. } if fork == synced),
        "{error:?}"
    );
    close(engine).await;

    let engine = RocksEngine::open(os(&data)).unwrap();
    assert_eq!(
        engine.position().epoch,
        clean_before.epoch,
        "closed in order: nothing can be lost"
    );
    close(engine).await;
}

#[tokio::test]
async fn a_missing_mark_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let engine = RocksEngine::open(options(&data)).unwrap();
    put(&engine, 1).await;
    close(engine).await;
    fs::remove_file(data.join("SYNCED")).unwrap();
    let text = refusal(options(&data));
    assert!(text.contains("SYNCED"), "{text}");
}

#[tokio::test]
async fn at_the_reserve_writes_are_refused_and_reads_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let engine = RocksEngine::open(options(&data)).unwrap();
    put(&engine, 1).await;
    close(engine).await;
    let full = EngineOptions {
        disk_reserve_bytes: u64::MAX,
        ..options(&data)
    };
    let engine = RocksEngine::open(full).unwrap();
    let session = engine.open_session("cert:w", &keyspace()).storage();
    let error = session.put("a".into(), "b".into()).await.unwrap_err();
    assert!(
        matches!(error, StorageError::StorageFull { .. }),
        "{error:?}"
    );
    assert!(session.get_one("0".into()).await.unwrap().is_some());
    assert!(engine.check_writable().is_err());
    close(engine).await;
}

#[tokio::test]
async fn revisions_grow_over_restarts_and_the_epoch_stays() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut last = Position::default();
    for round in 0..4 {
        let engine = RocksEngine::open(options(&data)).unwrap();
        let position = put(&engine, 3).await;
        assert!(position.revision > last.revision);
        assert!(round == 0 || position.epoch == last.epoch);
        last = position;
        close(engine).await;
    }
}

#[tokio::test]
async fn after_an_unclean_end_a_mark_is_no_older_than_what_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let engine = RocksEngine::open(options(&data)).unwrap();
    put(&engine, 5).await;
    let crashed = folder.path().join("crashed");
    copy_as_original(&data, &crashed);
    close(engine).await;
    // The start drops the records of dead sessions, which takes numbers that are no commit's.
    let engine = RocksEngine::open(options(&crashed)).unwrap();
    let session = engine.open_session("cert:r", &keyspace()).storage();
    let read = session.sync().await.unwrap();
    let watching = session
        .watch(KeyRange::all(), WatchOptions::default())
        .await;
    let mut watch = watching.unwrap();
    watch.request_progress(1);
    let Some(WatchEvent::Progress { position, .. }) = watch.next().await.unwrap() else {
        panic!("a mark was asked for, and nothing is due");
    };
    assert!(position.revision >= read.revision, "{position} < {read}");
    close(engine).await;
}

#[tokio::test]
async fn the_clock_is_never_behind_the_last_commit() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let engine = RocksEngine::open(options(&data)).unwrap();
    put(&engine, 1).await;
    close(engine).await;
    // The machine's clock was an hour ahead, and was set back while the server was down.
    let ahead = storage_protocol::UnixMillis::now().0 + 3_600_000;
    set_time(&data, ahead);
    let engine = RocksEngine::open(options(&data)).unwrap();
    put(&engine, 3).await;
    let crashed = folder.path().join("crashed");
    copy_as_original(&data, &crashed);
    close(engine).await;
    // The mark of a crash is older than the last commit.
    set_time(&crashed, 0);
    let engine = RocksEngine::open(options(&crashed)).unwrap();
    put(&engine, 1).await;
    let session = engine.open_session("cert:r", &keyspace()).storage();
    let from_the_beginning = WatchOptions::every(WatchStart::Beginning);
    let watching = session.watch(KeyRange::all(), from_the_beginning).await;
    let mut watch = watching.unwrap();
    let mut times = Vec::new();
    while times.len() < 5 {
        if let Some(WatchEvent::Commit(record)) = watch.next().await.unwrap() {
            times.push(record.time.0);
        }
    }
    assert!(times.is_sorted(), "{times:?}");
    assert!(times[1] >= ahead && times[4] >= ahead, "{times:?}");
    close(engine).await;
}

async fn opened(options: EngineOptions) -> Arc<RocksEngine> {
    let opening = tokio::task::spawn_blocking(|| RocksEngine::open(options));
    opening.await.unwrap().unwrap()
}

/// A store with some commits, closed; where it ended.
async fn closed_store(data: &Path) -> Position {
    let engine = opened(options(data)).await;
    put(&engine, 20).await;
    let end = engine.position();
    close(engine).await;
    end
}

/// Whether a position is still good.
async fn watch_after(engine: &Arc<RocksEngine>, position: Position) -> Result<(), StorageError> {
    let session = engine.open_session("cert:r", &keyspace()).storage();
    let options = WatchOptions::latest(WatchStart::After(position));
    session.watch(KeyRange::all(), options).await.map(|_| ())
}

#[tokio::test]
async fn each_start_of_a_copy_is_a_history_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let end = closed_store(&data).await;
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    copy(&data, &one);
    copy(&data, &two);
    // Both of them and the original, at the same time.
    let mut running = Vec::new();
    for path in [&data, &one, &two] {
        let engine = opened(options(path)).await;
        let here = put(&engine, 1).await;
        watch_after(&engine, end).await.unwrap();
        running.push((engine, here));
    }
    let epochs: Vec<_> = running.iter().map(|(_, here)| here.epoch).collect();
    assert_eq!(epochs[0], end.epoch, "the original goes on");
    assert!(epochs[1] != epochs[0] && epochs[2] != epochs[0] && epochs[1] != epochs[2]);
    // What one of them gave means nothing to another.
    for (engine, _) in &running {
        for (_, position) in running
            .iter()
            .filter(|(_, at)| at.epoch != engine.position().epoch)
        {
            let error = watch_after(engine, *position).await.unwrap_err();
            assert!(
                matches!(error, StorageError::EpochChanged { .. }),
                "{error:?}"
            );
        }
    }
    for (engine, _) in running {
        close(engine).await;
    }
    // Started again, each is what it was.
    for (path, epoch) in [&data, &one, &two].into_iter().zip(epochs) {
        let engine = opened(options(path)).await;
        assert_eq!(engine.position().epoch, epoch);
        close(engine).await;
    }
}

#[tokio::test]
async fn a_folder_that_was_put_back_forks_where_the_copy_ended() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let kept = folder.path().join("kept");
    let end = closed_store(&data).await;
    copy(&data, &kept);
    let engine = opened(options(&data)).await;
    let lost = put(&engine, 5).await;
    close(engine).await;
    // Twice: the second time it is put back, it forks again.
    let mut epochs = vec![end.epoch];
    for _ in 0..2 {
        fs::remove_dir_all(&data).unwrap();
        copy(&kept, &data);
        let engine = opened(options(&data)).await;
        // Beyond what the lost history gave.
        while put(&engine, 5).await.revision <= lost.revision {}
        let error = watch_after(&engine, lost).await.unwrap_err();
        let StorageError::EpochChanged { epoch, fork } = error else {
            panic!("{error:?}")
        };
        assert!(
            fork >= end.revision && fork < lost.revision,
            "{fork} of {end}"
        );
        assert!(!epochs.contains(&epoch));
        epochs.push(epoch);
        watch_after(&engine, end).await.unwrap();
        close(engine).await;
    }
}

#[tokio::test]
async fn a_copy_put_back_over_later_files_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let kept = folder.path().join("kept");
    closed_store(&data).await;
    copy(&data, &kept);
    for starts in 1..4 {
        let engine = opened(options(&data)).await;
        put(&engine, 5).await;
        close(engine).await;
        let mixed = folder.path().join(format!("mixed-{starts}"));
        copy(&data, &mixed);
        copy(&kept, &mixed);
        let text = refusal(options(&mixed));
        assert!(
            text.contains("later state") && text.contains("Empty the folder"),
            "{text}"
        );
        // As the text says.
        fs::remove_dir_all(&mixed).unwrap();
        copy(&kept, &mixed);
        close(opened(options(&mixed)).await).await;
    }
}

#[tokio::test]
async fn a_folder_that_was_moved_is_the_same_store() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let end = closed_store(&data).await;
    let moved = folder.path().join("elsewhere/moved");
    fs::create_dir(folder.path().join("elsewhere")).unwrap();
    fs::rename(&data, &moved).unwrap();
    let engine = opened(options(&moved)).await;
    assert_eq!(engine.position().epoch, end.epoch);
    close(engine).await;
}

#[tokio::test]
async fn a_new_epoch_is_made_by_hand_at_each_start_that_asks_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut epochs = vec![closed_store(&data).await.epoch];
    for (asked, count) in [(true, 2), (false, 2), (true, 3)] {
        let engine = opened(EngineOptions {
            new_epoch: asked,
            ..options(&data)
        })
        .await;
        let epoch = engine.position().epoch;
        if !epochs.contains(&epoch) {
            epochs.push(epoch);
        }
        assert_eq!(epochs.len(), count);
        close(engine).await;
    }
}

#[tokio::test]
async fn a_folder_of_a_version_that_did_not_name_the_mark_goes_on_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let end = closed_store(&data).await;
    let mark = fs::read_to_string(data.join("SYNCED")).unwrap();
    let older: Vec<_> = mark.trim_end().split(' ').take(5).collect();
    fs::write(data.join("SYNCED"), older.join(" ") + "\n").unwrap();
    for _ in 0..2 {
        let engine = opened(options(&data)).await;
        assert_eq!(engine.position().epoch, end.epoch);
        close(engine).await;
    }
    let copied = folder.path().join("copied");
    copy(&data, &copied);
    let engine = opened(options(&copied)).await;
    assert_ne!(
        engine.position().epoch,
        end.epoch,
        "from then on a copy is noticed"
    );
    close(engine).await;
}

/// An engine of its own clock, which is believed when it was behind for so long.
async fn with_clock(
    data: &Path,
    offset_ms: i64,
    held_for: Duration,
) -> (Arc<RocksEngine>, TestClock) {
    let clock = TestClock::held_for(held_for);
    clock.set_offset(offset_ms);
    let options = EngineOptions {
        clock: clock.clone(),
        ..options(data)
    };
    (opened(options).await, clock)
}

const HOUR: i64 = 3_600_000;
const YEAR: i64 = 365 * 24 * HOUR;

async fn put_for(engine: &Arc<RocksEngine>, key: &'static str, life: Duration) -> Position {
    let session = engine.open_session("cert:w", &keyspace()).storage();
    let batch = Batch::new().put_with(key, "value", Lifetime::TimeToLive(life));
    session
        .commit(batch, CommitOptions::default())
        .await
        .unwrap()
}

async fn due(engine: &Arc<RocksEngine>, key: &'static str) -> Option<i64> {
    let session = engine.open_session("cert:r", &keyspace()).storage();
    match session.get_one(key.into()).await.unwrap()?.lifetime {
        EntryLifetime::Until(due) => Some(i64::try_from(due.0).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn real_now() -> i64 {
    i64::try_from(UnixMillis::now().0).unwrap()
}

/// The times of all commits that the log has.
async fn times(engine: &Arc<RocksEngine>) -> Vec<(Revision, i64)> {
    let session = engine.open_session("cert:r", &keyspace()).storage();
    let last = session.sync().await.unwrap();
    let from_the_beginning = WatchOptions::every(WatchStart::Beginning);
    let watching = session.watch(KeyRange::all(), from_the_beginning).await;
    let mut watch = watching.unwrap();
    watch.request_progress(1);
    let mut times = Vec::new();
    loop {
        match watch.next().await.unwrap() {
            Some(WatchEvent::Commit(record)) => {
                times.push((record.revision, i64::try_from(record.time.0).unwrap()));
            }
            Some(WatchEvent::Progress { position, .. }) if position.revision >= last.revision => {
                return times;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn after_a_start_with_a_clock_a_year_ahead_times_and_lifetimes_come_back() {
    let hour = Duration::from_secs(3600);
    for also_before in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        if also_before {
            // An entry of the right clock, which is none of the wrong one.
            let (engine, _) = with_clock(&data, 0, Duration::ZERO).await;
            put_for(&engine, "right", 10_000 * hour).await;
            close(engine).await;
        }
        let before = if also_before {
            due(&reopened(&data).await, "right").await
        } else {
            None
        };
        let (engine, _) = with_clock(&data, YEAR, Duration::ZERO).await;
        let wrong = put_for(&engine, "wrong", hour).await;
        assert!(due(&engine, "wrong").await.unwrap() > real_now() + YEAR);
        close(engine).await;
        // Not believed at once.
        let (engine, _) = with_clock(&data, 0, Duration::from_secs(1000)).await;
        put_for(&engine, "held", hour).await;
        assert!(due(&engine, "held").await.unwrap() > real_now() + YEAR);
        close(engine).await;
        let (engine, _) = with_clock(&data, 0, Duration::ZERO).await;
        let began = Instant::now();
        for key in ["wrong", "held"] {
            while due(&engine, key).await.unwrap() > real_now() + 2 * HOUR {
                assert!(began.elapsed() < PATIENCE, "{key} stays");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let left = due(&engine, key).await.unwrap() - real_now();
            assert!(left > HOUR - 120_000 && left <= HOUR, "{key}: {left}");
        }
        let after = put_for(&engine, "after", hour).await;
        let times = times(&engine).await;
        let time_of = |position: Position| {
            let found = times
                .iter()
                .find(|(revision, _)| *revision == position.revision);
            found.unwrap().1
        };
        assert!(time_of(wrong) > real_now() + YEAR / 2, "as it was told");
        assert!(time_of(after) <= real_now());
        if also_before {
            assert_eq!(due(&engine, "right").await, before, "it was right");
        }
        close(engine).await;
        // Corrected once.
        let engine = reopened(&data).await;
        let last = engine.position().revision;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(engine.position().revision.0 <= last.0 + 1);
        let left = due(&engine, "wrong").await.unwrap() - real_now();
        assert!(left > HOUR - 120_000 && left <= HOUR, "{left}");
        close(engine).await;
    }
}

async fn reopened(data: &Path) -> Arc<RocksEngine> {
    opened(options(data)).await
}

#[tokio::test]
async fn time_that_the_machine_slept_counts() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (engine, clock) = with_clock(&data, 0, Duration::from_secs(1000)).await;
    put_for(&engine, "short", Duration::from_secs(3600)).await;
    put_for(&engine, "long", Duration::from_secs(3 * 3600)).await;
    // Two hours, of which the monotonic clock knows nothing.
    clock.set_offset(2 * HOUR);
    let began = Instant::now();
    while due(&engine, "short").await.is_some() {
        assert!(began.elapsed() < PATIENCE, "it stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(due(&engine, "long").await.is_some());
    let position = put(&engine, 1).await;
    let times = times(&engine).await;
    let (_, time) = times
        .iter()
        .find(|(revision, _)| *revision == position.revision)
        .unwrap();
    assert!(*time >= real_now() + 2 * HOUR - 60_000, "{time}");
    close(engine).await;
}

#[tokio::test]
async fn a_session_lost_under_a_wrong_clock_does_not_keep_its_keys_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let clock = TestClock::held_for(Duration::ZERO);
    let options = EngineOptions {
        clock: clock.clone(),
        session_grace: Duration::from_secs(2),
        ..options(&folder.path().join("data"))
    };
    let engine = opened(options).await;
    clock.set_offset(YEAR);
    let session = engine.open_session("cert:w", &keyspace());
    let batch = Batch::new().put_with("mine", "value", Lifetime::Session);
    let storage = session.clone().storage();
    storage
        .commit_numbered(1, batch, CommitOptions::default())
        .await
        .unwrap();
    session.lose();
    // Another commit stands behind the loss, so the loss is of the wrong time.
    put(&engine, 1).await;
    clock.set_offset(0);
    let reader = engine.open_session("cert:r", &keyspace()).storage();
    let began = Instant::now();
    while reader.get_one("mine".into()).await.unwrap().is_some() {
        assert!(began.elapsed() < PATIENCE, "it stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    close(engine).await;
}

/// A small file system of its own, gone at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where nobody may mount one (said in words; `STORAGE_TESTS_MOUNT=required` makes it a failure).
    fn mount(mebibytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        assert_ne!(
            std::env::var("STORAGE_TESTS_MOUNT").as_deref(),
            Ok("required")
        );
        eprintln!("SKIPPED: a file system cannot be mounted here, so no disk can be full");
        None
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn available(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.0.path()).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Somebody else takes all but so much.
    fn leave(&self, bytes: u64) {
        let path = self.0.path().join("somebody-else");
        // What it had before is free for this, too.
        let _ = fs::remove_file(&path);
        let file = fs::File::create(&path).unwrap();
        let length = self.available() - bytes;
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
    }

    /// And gives it back.
    fn give_back(&self) {
        fs::remove_file(self.0.path().join("somebody-else")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A handle that is left keeps it busy; it goes with that.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

const RESERVE: u64 = 32 << 20;

fn on(disk: &SmallDisk) -> EngineOptions {
    EngineOptions {
        disk_reserve_bytes: RESERVE,
        memory_bytes: 64 << 20,
        ..EngineOptions::new(disk.data())
    }
}

/// About a megabyte, over the same keys.
async fn overwrite(session: &Arc<dyn SessionStorage>) -> Result<Position, StorageError> {
    let mut batch = Batch::new();
    for n in 0..300 {
        batch = batch.put(format!("{n}"), vec![b'v'; 3_000]);
    }
    session.commit(batch, CommitOptions::default()).await
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn near_its_reserve_a_disk_keeps_the_data_and_drops_the_log() {
    let Some(disk) = SmallDisk::mount(192) else {
        return;
    };
    let engine = opened(on(&disk)).await;
    let session = engine.open_session("cert:w", &keyspace()).storage();
    let first = overwrite(&session).await.unwrap();
    let mut least = u64::MAX;
    for round in 0..250 {
        let written = overwrite(&session).await;
        written.unwrap_or_else(|error| panic!("round {round}: {error}"));
        least = least.min(disk.available());
    }
    assert!(least > RESERVE / 2, "{least}");
    let from_first = WatchOptions::every(WatchStart::After(first));
    let gone = session.watch(KeyRange::all(), from_first).await.map(|_| ());
    assert!(
        matches!(gone, Err(StorageError::Compacted { .. })),
        "{gone:?}"
    );
    assert!(session.get_one("0".into()).await.unwrap().is_some());
    drop(session);
    close(engine).await;
}

#[tokio::test]
async fn below_the_reserve_keys_can_be_removed_and_nothing_be_put() {
    let Some(disk) = SmallDisk::mount(192) else {
        return;
    };
    let engine = opened(on(&disk)).await;
    let session = engine.open_session("cert:w", &keyspace()).storage();
    overwrite(&session).await.unwrap();
    let full = |result: Result<Position, StorageError>| match result {
        Ok(_) => false,
        Err(StorageError::StorageFull { available, reserve }) => {
            assert!(available < reserve);
            true
        }
        Err(other) => panic!("{other:?}"),
    };
    let put = async || full(session.put("more".into(), "v".into()).await);
    let remove = async |key: &str| {
        let checked = Batch::new().check_absent("nobody").remove(key.to_owned());
        full(session.commit(checked, CommitOptions::default()).await)
    };
    disk.leave(RESERVE / 2);
    until("puts are refused", put).await;
    assert!(!remove("1").await && !remove("2").await);
    let gone = session
        .get(&["1".into(), "2".into(), "3".into()])
        .await
        .unwrap();
    let there: Vec<_> = gone.value.iter().map(Option::is_some).collect();
    assert_eq!(there, [false, false, true]);
    let also_puts = Batch::new().remove("3").put("more", "v");
    assert!(full(
        session.commit(also_puts, CommitOptions::default()).await
    ));
    let only_checks = Batch::new().check_absent("nobody");
    assert!(full(
        session.commit(only_checks, CommitOptions::default()).await
    ));
    assert!(engine.check_writable().is_err());
    disk.leave(RESERVE / 8);
    // Those before the next look are taken.
    until("removals are refused", async || remove("4").await).await;
    assert!(remove("3").await);
    assert!(
        session.get_one("3".into()).await.unwrap().is_some(),
        "reads go on"
    );
    disk.give_back();
    until("puts are taken again", async || !put().await).await;
    assert!(!remove("3").await && engine.check_writable().is_ok());
    drop(session);
    close(engine).await;
}

#[tokio::test]
async fn with_a_full_disk_a_store_starts_and_is_read() {
    let Some(disk) = SmallDisk::mount(192) else {
        return;
    };
    // Each start archives the log of the one before.
    let mut last = Position::default();
    for _ in 0..2 {
        let engine = opened(on(&disk)).await;
        let session = engine.open_session("cert:w", &keyspace()).storage();
        for _ in 0..10 {
            last = overwrite(&session).await.unwrap();
        }
        drop(session);
        close(engine).await;
    }
    disk.leave(0);
    let engine = opened(on(&disk)).await;
    assert_eq!(engine.position().epoch, last.epoch);
    let session = engine.open_session("cert:r", &keyspace()).storage();
    assert!(session.get_one("0".into()).await.unwrap().is_some());
    let error = session.put("more".into(), "v".into()).await.unwrap_err();
    assert!(
        matches!(error, StorageError::StorageFull { .. }),
        "{error:?}"
    );
    disk.give_back();
    until("puts are taken again", async || {
        session.put("more".into(), "v".into()).await.is_ok()
    })
    .await;
    drop(session);
    close(engine).await;
}

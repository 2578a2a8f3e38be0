//! The clock by itself, and an engine under a wrong one.

use std::time::{Duration, Instant};

use storage_protocol::{
    Batch, CommitOptions, EntryLifetime, Keyspace, Lifetime, Result, Revision, StorageError,
    StorageExt, UnixMillis,
};

use super::*;
use crate::engine::rocks::{EngineOptions, RocksEngine};
use crate::engine::{Engine, Resumed};

const MINUTE: u64 = 60_000;
const YEAR: u64 = 365 * 24 * 60 * MINUTE;
const T: u64 = 1_763_742_000_000;

fn at(last: u64) -> (ClockState, Instant) {
    let now = Instant::now();
    let state = ClockState {
        last: UnixMillis(last),
        seen: UnixMillis(last),
        looked: now,
        held: None,
        jump: None,
        stretches: Vec::new(),
    };
    (state, now)
}

#[test]
fn it_follows_forward_at_once_and_back_not_at_all_within_the_tolerance() {
    let (mut state, start) = at(T);
    let second = |n| start + Duration::from_secs(n);
    assert_eq!(state.look(UnixMillis(T + 1_000), second(1)).0, T + 1_000);
    assert_eq!(state.jump, None);
    // Two hours of sleep, of which the monotonic clock knows nothing.
    let awake = T + 120 * MINUTE;
    assert_eq!(state.look(UnixMillis(awake), second(2)).0, awake);
    let jump = state.jump.take().unwrap();
    assert_eq!((jump.before.0, jump.after.0), (T + 2_000, awake));
    // Corrected by less than a minute: it stands until the machine's clock has come up.
    assert_eq!(state.look(UnixMillis(awake - 50_000), second(3)).0, awake);
    assert_eq!(state.look(UnixMillis(awake - 1), second(53)).0, awake);
    assert_eq!(state.look(UnixMillis(awake + 5), second(54)).0, awake + 5);
    assert_eq!((state.jump, state.held), (None, None));
}

#[test]
fn a_clock_that_went_back_far_is_held_and_may_come_up_again() {
    let (mut state, start) = at(T);
    let second = |n| start + Duration::from_secs(n);
    // A machine without a clock of its own begins in 1970.
    assert_eq!(state.look(UnixMillis(5), second(0)).0, T);
    assert_eq!(
        state.look(UnixMillis(20_005), second(20)).0,
        T + 20_000,
        "it goes on"
    );
    assert!(state.held.is_some());
    // The network tells the time.
    assert_eq!(
        state.look(UnixMillis(T + 5 * MINUTE), second(30)).0,
        T + 5 * MINUTE
    );
    assert!(state.held.is_none());
}

fn engine_at(
    folder: &std::path::Path,
    offset_ms: i64,
    reserve: u64,
) -> std::sync::Arc<RocksEngine> {
    let clock = TestClock::held_for(Duration::ZERO);
    clock.set_offset(offset_ms);
    RocksEngine::open(EngineOptions {
        clock,
        disk_reserve_bytes: reserve,
        ..EngineOptions::new(folder.join("data"))
    })
    .unwrap()
}

async fn corrected(engine: &RocksEngine) -> Result<()> {
    let shared = engine.shared.clone();
    let correcting = tokio::task::spawn_blocking(move || correct(&shared));
    correcting.await.unwrap()
}

#[tokio::test]
async fn lifetimes_are_not_corrected_at_the_disks_reserve() {
    let folder = tempfile::tempdir().unwrap();
    let name = Keyspace::new("model").unwrap();
    let year = i64::try_from(YEAR).unwrap();
    let engine = engine_at(folder.path(), year, 0);
    let opened = engine.open_session("cert:a", &name);
    let (id, session) = (opened.id(), opened.storage());
    let life = Lifetime::TimeToLive(Duration::from_secs(3600));
    let batch = Batch::new().put_with("key", "value", life);
    let options = CommitOptions::default();
    session.commit_numbered(1, batch, options).await.unwrap();
    drop((session, engine));
    // The clock is right again, and the disk full. A resume lets the committer follow it.
    let engine = engine_at(folder.path(), 0, u64::MAX);
    let session = match engine.resume_session("cert:a", &name, id, 1).await {
        Ok(Resumed::Session(session)) => session.storage(),
        other => panic!("not resumed: {other:?}"),
    };
    let shared = &engine.shared;
    assert!(shared.store.clock.state().wrong().is_some(), "it went back");
    let result = corrected(&engine).await;
    assert!(
        matches!(result, Err(StorageError::StorageFull { .. })),
        "{result:?}"
    );
    let entry = session.get_one("key".into()).await.unwrap().unwrap();
    let EntryLifetime::Until(due) = entry.lifetime else {
        panic!("{entry:?}");
    };
    assert!(due.0 > UnixMillis::now().0 + YEAR / 2, "it was not written");
    drop((session, engine));
    // When there is room it is made up for.
    let engine = engine_at(folder.path(), 0, 0);
    corrected(&engine).await.unwrap();
    let session = engine.open_session("cert:a", &name).storage();
    let entry = session.get_one("key".into()).await.unwrap().unwrap();
    let EntryLifetime::Until(due) = entry.lifetime else {
        panic!("{entry:?}");
    };
    assert!(due.0 <= UnixMillis::now().0 + 60 * MINUTE);
}

#[test]
fn what_is_wrong_is_what_began_after_the_present() {
    let (mut state, _) = at(T);
    let stretch = |above, before, after| Stretch {
        above: Revision(above),
        jump: Jump {
            before: UnixMillis(before),
            after: UnixMillis(after),
        },
    };
    state.stretches = vec![
        stretch(0, 0, T),
        stretch(10, T + 5, T + YEAR),
        stretch(20, T + YEAR + 7, T + 2 * YEAR),
    ];
    assert_eq!(state.wrong(), None, "nothing went back");
    let back = stretch(30, T + 2 * YEAR + 9, T + 100);
    state.stretches.push(back);
    state.stretches.push(stretch(40, T + 200, T + 300_000));
    let (found, wrong) = state.wrong().unwrap();
    assert_eq!(found, back);
    let late: Vec<_> = wrong
        .iter()
        .map(|(stretch, last, late)| (stretch.above.0, last.0, late.as_millis()))
        .collect();
    let late_by = |end: u64| u128::from(end - (T + 100));
    assert_eq!(
        late,
        [
            (10, 20, late_by(T + YEAR + 7)),
            (20, 30, late_by(T + 2 * YEAR + 9))
        ]
    );
}

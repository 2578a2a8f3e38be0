//! The store's clock: what commit times, lifetimes and ages go by.
//!
//! It follows the machine's clock, looked at for each group of commits and each second, and is never behind the last time
//! it told, but for one case. Forward it follows at once, however far: time that passed while the machine slept, or the
//! server was down, counts. Back it does not follow: up to [`TOLERANCE`] it waits until the machine's clock has come up;
//! beyond that it goes on by the monotonic clock, and if the machine's clock is still behind after [`HELD_FOR`], it was
//! wrong before, and times come back.
//!
//! Entries that were put under the wrong clock are due too late then. Which ones is known by [`Stretch`]es: each jump
//! forward (a start after a downtime, too) has a row with the revision that it came behind. A stretch that begins in what
//! is the future now was told by a wrong clock; what is left of its entries' lives when it ended is what they get. A jump
//! back keeps its row when that is done: what was told before it is at least as old as the jump.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use storage_protocol::{Key, Result, Revision, UnixMillis, planted};

use super::Shared;
use super::committer::{Group, Task, submit};
use super::disk::Need;
use super::layout::{self, KeyspaceId, LifetimeRow, Table};
use super::store::{KeyspaceState, Store, internal};

/// A difference up to here is a clock's ordinary correction.
pub(super) const TOLERANCE: Duration = Duration::from_secs(60);

/// For so long a clock that went back further is not believed: a machine without a clock of its own gets its time from the
/// network soon after its start.
const HELD_FOR: Duration = Duration::from_secs(300);

/// Stretches that are remembered.
const STRETCHES_MAX: usize = 64;

/// The label of the commits that correct lifetimes.
const CORRECTED: &str = "clock corrected";

/// Entries, and bytes of them, in one commit that corrects lifetimes.
const BITE: usize = 512;
const BITE_BYTES: usize = 1 << 20;

/// A machine's clock that a test sets: an offset to the real one.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct TestClock {
    offset_ms: Arc<AtomicI64>,
    held_for: Option<Duration>,
}

impl TestClock {
    /// One that is believed when it was behind for so long.
    #[must_use]
    pub fn held_for(held_for: Duration) -> Self {
        Self {
            offset_ms: Arc::default(),
            held_for: Some(held_for),
        }
    }

    /// Sets it so far from the real one.
    pub fn set_offset(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::SeqCst);
    }

    fn now(&self) -> UnixMillis {
        let offset = self.offset_ms.load(Ordering::SeqCst);
        UnixMillis(UnixMillis::now().0.saturating_add_signed(offset))
    }
}

/// From one time to another at once. Back if `after` is before `before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) before: UnixMillis,
    pub(crate) after: UnixMillis,
}

impl Jump {
    fn is_back(&self) -> bool {
        self.after < self.before
    }
}

/// Commits above this revision came after this jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) above: Revision,
    pub(crate) jump: Jump,
}

#[derive(Debug)]
pub(super) struct Clock {
    machine: TestClock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The last time that was told.
    last: UnixMillis,
    /// The machine's clock when it was last looked at, and when that was.
    seen: UnixMillis,
    looked: Instant,
    /// Since when the machine's clock is too far behind, and the time then.
    held: Option<(Instant, UnixMillis)>,
    /// A jump forward that has no row yet.
    jump: Option<Jump>,
    /// Oldest first.
    stretches: Vec<Stretch>,
}

impl Clock {
    /// Of a store that was last told this time; zero for a new one.
    pub(super) fn new(machine: TestClock, last: UnixMillis) -> Self {
        let wall = machine.now();
        let is_new = last == UnixMillis::ZERO;
        let began = Jump {
            before: last,
            after: wall,
        };
        let last = if is_new { wall } else { last };
        let state = State {
            last,
            seen: last,
            looked: Instant::now(),
            held: None,
            jump: is_new.then_some(began),
            stretches: Vec::new(),
        };
        Self {
            machine,
            state: Mutex::new(state),
        }
    }

    /// It was told this time, too, before the start.
    pub(super) fn was_told(&self, time: UnixMillis) {
        let mut state = self.state();
        state.last = state.last.max(time);
        state.seen = state.last;
        state.looked = Instant::now();
        state.jump = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> UnixMillis {
        let mut state = self.state();
        let wall = self.machine.now();
        state.look(wall, Instant::now())
    }

    /// The machine's clock, without a conclusion from it.
    pub(super) fn machine_now(&self) -> UnixMillis {
        self.machine.now()
    }

    /// Whether the committer has something to write, or to conclude. That a store is new is told by its first commit.
    pub(super) fn has_news(&self) -> bool {
        let _now = self.now();
        let state = self.state();
        let jump = state.jump.filter(|jump| jump.before > UnixMillis::ZERO);
        jump.is_some() || self.is_over(&state)
    }

    /// Whether the machine's clock was behind for long enough.
    fn is_over(&self, state: &State) -> bool {
        let held_for = self.machine.held_for.unwrap_or(HELD_FOR);
        state
            .held
            .is_some_and(|(since, _)| since.elapsed() >= held_for)
    }

    /// A jump that has no row yet, behind this revision; of one back, times are back from here on. And the stretch that has
    /// to make room for it, if one has. For the committer.
    fn take_jump(&self, above: Revision) -> Option<(Stretch, Option<Stretch>)> {
        let now = self.now();
        let mut state = self.state();
        let jump = match state.jump.take() {
            Some(jump) => jump,
            None if !self.is_over(&state) || planted("clock-stays-ahead") => return None,
            None => {
                let after = self.machine.now();
                state.held = None;
                state.last = after;
                state.seen = after;
                state.looked = Instant::now();
                Jump { before: now, after }
            }
        };
        // Ordering: with the time itself, so that who sees times come back knows the jump.
        let stretch = Stretch { above, jump };
        state.stretches.push(stretch);
        let is_full = state.stretches.len() > STRETCHES_MAX;
        Some((stretch, is_full.then(|| state.stretches.remove(0))))
    }

    /// When a commit came that was told this time, or the earliest jump back behind it: it was before that. Where no jump is
    /// remembered for a time that is still to come, nobody knows how long ago it was: long.
    pub(super) fn no_later_than(&self, revision: Revision, told: UnixMillis) -> UnixMillis {
        let state = self.state();
        let behind = state
            .stretches
            .iter()
            .filter(|stretch| stretch.jump.is_back() && revision <= stretch.above);
        let time = behind
            .map(|stretch| stretch.jump.after)
            .fold(told, UnixMillis::min);
        if time > state.last {
            return UnixMillis::ZERO;
        }
        time
    }

    fn forget(&self, above: Revision) {
        self.state()
            .stretches
            .retain(|stretch| stretch.above != above);
    }
}

/// A stretch that a wrong clock ruled, the last revision of it, and by how much its lifetimes are too late.
type Wrong = (Stretch, Revision, Duration);

impl State {
    fn look(&mut self, wall: UnixMillis, now: Instant) -> UnixMillis {
        let passed = now.saturating_duration_since(self.looked);
        let expected = self.seen.after(passed);
        (self.seen, self.looked) = (wall, now);
        if let Some((since, from)) = self.held {
            let running = from.after(now.saturating_duration_since(since));
            if wall.after(TOLERANCE) < running {
                self.last = self.last.max(running);
                return self.last;
            }
            self.held = None;
            tracing::info!("the machine's clock has come up again");
        } else if wall.after(TOLERANCE) < self.last {
            tracing::warn!(
                machine_ms = wall.0,
                store_ms = self.last.0,
                "the machine's clock is behind the store's: times go on from there, and come back if it stays so"
            );
            self.held = Some((now, self.last));
            return self.last;
        }
        if wall > expected.after(TOLERANCE) && wall > self.last.after(TOLERANCE) {
            let before = self
                .jump
                .map_or_else(|| self.last.max(expected), |jump| jump.before);
            tracing::info!(
                before_ms = before.0,
                after_ms = wall.0,
                "the clock went forward: the server was down, the machine slept, or its clock was set"
            );
            self.jump = Some(Jump {
                before,
                after: wall,
            });
        }
        self.last = self.last.max(wall);
        self.last
    }

    /// What was told by a wrong clock: those stretches that begin after the present, which the last jump back gave, each
    /// with the revision it ends at and by how much its lifetimes are too late. And that jump.
    fn wrong(&self) -> Option<(Stretch, Vec<Wrong>)> {
        let (place, back) = self
            .stretches
            .iter()
            .enumerate()
            .rfind(|(_, stretch)| stretch.jump.is_back())?;
        let present = back.jump.after;
        let pairs = self.stretches[..=place].windows(2);
        let wrong = pairs.filter_map(|pair| {
            let [stretch, next] = pair else { return None };
            let late = next.jump.before.0.saturating_sub(present.0);
            (stretch.jump.after > present)
                .then(|| (*stretch, next.above, Duration::from_millis(late)))
        });
        Some((*back, wrong.collect()))
    }
}

/// Reads the stretches of a store. Before its committer runs.
///
/// # Errors
/// A damaged row, or the database's.
pub(super) fn load(store: &Store) -> Result<()> {
    let prefix = layout::STRETCH_PREFIX;
    let mut rows = store.iterate_prefix(Table::Meta, prefix, prefix);
    while let Some((key, value)) = rows.item() {
        let stretch = layout::decode_stretch(key, value)?;
        store.clock.state().stretches.push(stretch);
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of the clock's jumps", &error))
}

/// Lets the committer look at the clock, if there is something to conclude. For the housekeeper.
pub(super) fn look(shared: &Shared) {
    let store = &shared.store;
    if store.clock.has_news()
        && store.check_poison().is_ok()
        && shared.disk.check(Need::Any, 0).is_ok()
        && let Some(keyspace) = store.keyspaces().into_iter().next()
    {
        let session = shared.server_session(&keyspace);
        // A queue that is closed is that of a store which is; the next start sees the same.
        let _ = submit(&shared.queue, &session, 0, Task::Look, 64);
    }
}

impl Group<'_> {
    /// Gives a jump of the clock its row, before the commits that come after it; one back has its effects.
    pub(super) fn heed_clock(&mut self) {
        if self.store.check_poison().is_err() {
            return;
        }
        let above = Revision(self.base + self.numbers);
        let Some((stretch, oldest)) = self.store.clock.take_jump(above) else {
            return;
        };
        let jump = stretch.jump;
        self.put(
            Table::Meta,
            &layout::stretch_key(above),
            &layout::encode_stretch(&stretch),
        );
        if let Some(oldest) = oldest {
            self.delete(Table::Meta, &layout::stretch_key(oldest.above));
        }
        if jump.is_back() {
            tracing::warn!(
                before_ms = jump.before.0,
                after_ms = jump.after.0,
                "the machine's clock stays behind the store's: times come back, and lifetimes given by the wrong clock are corrected"
            );
            // Whoever was lost in what is the future now.
            let sessions = &self.shared.sessions;
            sessions.count_lost_from(UnixMillis(jump.after.0.saturating_add(1)), jump.after);
            self.shared.alarm.set(UnixMillis::ZERO);
        }
        self.now = self.store.now();
    }

    /// These stretches are corrected.
    pub(super) fn forget_stretches(&mut self, above: &[Revision]) {
        for revision in above {
            self.delete(Table::Meta, &layout::stretch_key(*revision));
            self.store.clock.forget(*revision);
        }
    }
}

/// An entry whose lifetime is to be corrected, if it still has this revision.
pub(super) type Late = (Key, Revision, UnixMillis);

/// Corrects the lifetimes that a wrong clock gave, if one did. Blocks.
///
/// # Errors
/// The database's, or as a commit's; `StorageFull` at the disk's reserve. It is repeated at the next round then.
pub(super) fn correct(shared: &Shared) -> Result<()> {
    let store = &shared.store;
    let found = store.clock.state().wrong();
    let Some((back, wrong)) = found else {
        return Ok(());
    };
    if wrong.is_empty() {
        return Ok(());
    }
    let mut corrected = 0;
    let (mut start, end) = LifetimeRow::due_range(UnixMillis(u64::MAX - 1));
    loop {
        // Each entry is written anew, with its value. A jump back may be followed at a full disk: it is seen by any work.
        if !planted("corrects-at-reserve") {
            shared.disk.check(Need::Any, 0)?;
        }
        let bite = late_entries(store, &back, &wrong, &mut start, &end)?;
        let count: usize = bite.iter().map(|(_, late)| late.len()).sum();
        if count == 0 {
            break;
        }
        corrected += count;
        let mut answers = Vec::new();
        for (keyspace, late) in bite {
            let session = shared.server_session(&keyspace);
            let bytes = late.iter().map(|(key, ..)| key.len() + 64).sum();
            let task = Task::Correct {
                label: CORRECTED,
                entries: late,
            };
            answers.push(submit(&shared.queue, &session, 0, task, bytes)?);
        }
        super::housekeeper::wait_for(answers)?;
    }
    let above = wrong.iter().map(|(stretch, ..)| stretch.above).collect();
    let Some(keyspace) = store.keyspaces().into_iter().next() else {
        return Ok(());
    };
    let session = shared.server_session(&keyspace);
    let task = Task::ForgetStretches { above };
    super::housekeeper::wait_for(vec![submit(&shared.queue, &session, 0, task, 64)?])?;
    tracing::info!(
        entries = corrected,
        "lifetimes that a wrong clock gave are corrected"
    );
    Ok(())
}

type LateOf = Vec<(Arc<KeyspaceState>, Vec<Late>)>;

/// A bite of the entries that are due too late, from `start` on, which is moved behind them.
fn late_entries(
    store: &Store,
    back: &Stretch,
    wrong: &[Wrong],
    start: &mut Vec<u8>,
    end: &[u8],
) -> Result<LateOf> {
    let (mut count, mut bytes) = (0, 0);
    let mut found: Vec<(KeyspaceId, Vec<Late>)> = Vec::new();
    let mut rows = store.iterate(Table::Lifetimes, start, Some(end));
    while let Some((row, value)) = rows.item()
        && count < BITE
        && bytes < BITE_BYTES
    {
        let LifetimeRow::Due(due, keyspace, key) = LifetimeRow::parse(row)? else {
            break;
        };
        let revision = layout::decode_revision(value)?;
        let late = wrong.iter().find(|(stretch, last, _)| {
            revision > stretch.above && revision <= *last && due > back.jump.after
        });
        if let Some((_, _, late)) = late {
            let late = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
            let due = UnixMillis(due.0.saturating_sub(late).max(back.jump.after.0));
            let entry = store.row(Table::Entries, &layout::entry_key(keyspace, &key))?;
            count += 1;
            bytes += entry.map_or(0, |entry| entry.len());
            match found.iter_mut().find(|(id, _)| *id == keyspace) {
                Some((_, entries)) => entries.push((key, revision, due)),
                None => found.push((keyspace, vec![(key, revision, due)])),
            }
        }
        *start = super::housekeeper::behind(row);
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of lifetimes", &error))?;
    let keyspaces = store.keyspaces();
    let named = found.into_iter().filter_map(|(id, entries)| {
        let keyspace = keyspaces.iter().find(|keyspace| keyspace.id() == Some(id));
        Some((keyspace?.clone(), entries))
    });
    Ok(named.collect())
}

#[cfg(test)]
mod tests {
    use storage_protocol::{
        Batch, CommitOptions, EntryLifetime, Keyspace, Lifetime, StorageError, StorageExt,
    };

    use super::super::{EngineOptions, RocksEngine};
    use super::*;
    use crate::engine::{Engine, Resumed};

    const MINUTE: u64 = 60_000;
    const YEAR: u64 = 365 * 24 * 60 * MINUTE;
    const T: u64 = 1_763_742_000_000;

    fn at(last: u64) -> (State, Instant) {
        let now = Instant::now();
        let state = State {
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
}

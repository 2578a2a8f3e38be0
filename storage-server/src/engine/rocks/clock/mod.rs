//! The store's clock: what commit times, lifetimes and ages go by.
//!
//! It follows the machine's clock, looked at for each group of commits and each second, and is never behind the last
//! time it gave out, but for one case. Forward it follows at once, however far: time that passed while the machine
//! slept, or the server was down, counts. Back it does not follow: up to [`TOLERANCE`] it waits until the machine's
//! clock has come up; beyond that it goes on by the monotonic clock, and if the machine's clock is still behind after
//! [`HELD_FOR`], it was wrong before, and times come back.
//!
//! Entries that were put under the wrong clock are due too late then. Which ones is known by [`Stretch`]es: each jump
//! forward (a start after a downtime, too) has a row with the revision that it came behind. A stretch that begins in
//! what is the future now is the work of a wrong clock: its entries get what was left of their time to live when it
//! ended. A jump back keeps its row when that is done: times from before it are at least as old as the jump.

mod correct;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use storage_protocol::{Revision, UnixMillis};

pub(crate) use self::correct::{Late, correct, load, look};

/// A difference up to here is a clock's ordinary correction.
pub(crate) const TOLERANCE: Duration = Duration::from_secs(60);

/// For so long a clock that went back further is not believed: a machine without a clock of its own gets its time from
/// the network soon after its start.
const HELD_FOR: Duration = Duration::from_secs(300);

/// Stretches that are remembered.
const STRETCHES_MAX: usize = 64;

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
pub(crate) struct Clock {
    machine: TestClock,
    state: Mutex<ClockState>,
}

#[derive(Debug)]
struct ClockState {
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
    pub(crate) fn new(machine: TestClock, last: UnixMillis) -> Self {
        let wall = machine.now();
        let is_new = last == UnixMillis::ZERO;
        let began = Jump {
            before: last,
            after: wall,
        };
        let last = if is_new { wall } else { last };
        let state = ClockState {
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
    pub(crate) fn was_told(&self, time: UnixMillis) {
        let mut state = self.state();
        state.last = state.last.max(time);
        state.seen = state.last;
        state.looked = Instant::now();
        state.jump = None;
    }

    fn state(&self) -> MutexGuard<'_, ClockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> UnixMillis {
        let mut state = self.state();
        let wall = self.machine.now();
        state.look(wall, Instant::now())
    }

    /// The machine's clock, without a conclusion from it.
    pub(crate) fn machine_now(&self) -> UnixMillis {
        self.machine.now()
    }

    /// Whether the committer has something to write, or to conclude. That a store is new is told by its first commit.
    pub(crate) fn has_news(&self) -> bool {
        let _now = self.now();
        let state = self.state();
        let jump = state.jump.filter(|jump| jump.before > UnixMillis::ZERO);
        jump.is_some() || self.is_over(&state)
    }

    /// Whether the machine's clock was behind for long enough.
    fn is_over(&self, state: &ClockState) -> bool {
        let held_for = self.machine.held_for.unwrap_or(HELD_FOR);
        state
            .held
            .is_some_and(|(since, _)| since.elapsed() >= held_for)
    }

    /// A jump that has no row yet, behind this revision; of one back, times are back from here on. And the stretch that
    /// has to make room for it, if one has. For the committer.
    fn take_jump(&self, above: Revision) -> Option<(Stretch, Option<Stretch>)> {
        let now = self.now();
        let mut state = self.state();
        let jump = match state.jump.take() {
            Some(jump) => jump,
            None if !self.is_over(&state) => return None,
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

    /// When a commit came that was told this time, or the earliest jump back behind it: it was before that. Where no
    /// jump is remembered for a time that is still to come, nobody knows how long ago it was: long.
    pub(crate) fn no_later_than(&self, revision: Revision, told: UnixMillis) -> UnixMillis {
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

impl ClockState {
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

    /// What was told by a wrong clock: those stretches that begin after the present, which the last jump back gave,
    /// each with the revision it ends at and by how much its lifetimes are too late. And that jump.
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

#[cfg(test)]
mod tests;

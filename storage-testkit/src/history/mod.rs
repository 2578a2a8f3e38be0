//! What concurrent clients did and saw, and the judges of it.
//!
//! A [`History`] holds every call of every client with its times and outcome ([`Call`]), what each watch told
//! ([`WatchStream`]), what replicas answered ([`ReplicaRead`]), and at the end of a run the store's own log of commits
//! ([`Logged`], read by a watch `Every` of the whole keyspace). [`judge`] compares them:
//!
//! * [`linear`]: the calls alone, per key, by a search for a linearization; the log is not asked.
//! * [`ledger`]: the calls against the log: exactly-once, atomic, at one revision, in the order of real time.
//! * [`watches`]: six validators, one per promise of a watch, against the log.
//! * [`replica`]: local reads against the log, value and age.
//!
//! Keys and values are texts here. Each commit has an [`OpId`], which is its label, and each value that it puts names
//! that commit and the key, so every value says where it comes from.
//!
//! The form in which a history is kept for other checkers (Porcupine, say) is described in [`jsonl`].

pub mod jsonl;
pub mod ledger;
pub mod linear;
pub mod reference;
pub mod replica;
#[cfg(test)]
mod simulated;
pub mod watches;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

pub use reference::Reference;
pub use replica::ReplicaRead;

/// Monotonic nanoseconds since the run began, the same clock for all clients.
pub type Nanos = u64;

/// Which call: a client and its count. Shown as `CLIENT.NUMBER`, which is the label of the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct OpId {
    /// The client: something that waits for each call before the next.
    pub client: u32,
    /// Its how-manieth call.
    pub number: u32,
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.client, self.number)
    }
}

/// What a commit expects of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// No value.
    Absent,
    /// The value of this revision.
    At(u64),
}

/// What a commit does to a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// Sets its value.
    Put(String),
    /// Removes it.
    Remove,
    /// Tells its watchers, and stores nothing.
    Signal(String),
}

/// A call as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Reads these keys at one revision.
    Get {
        /// In this order.
        keys: Vec<String>,
    },
    /// Reads a range at one revision.
    Scan {
        /// The range.
        range: Range,
    },
    /// Commits.
    Commit {
        /// What must hold.
        checks: Vec<(String, Expect)>,
        /// What is done, each key once.
        writes: Vec<(String, Write)>,
    },
}

/// A value that was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Seen {
    /// The value.
    pub value: String,
    /// The commit that put it.
    pub revision: u64,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A get, in the order asked, or a scan, where nothing absent is told.
    Read {
        /// The one revision.
        revision: u64,
        /// Each key.
        values: Vec<(String, Option<Seen>)>,
    },
    /// A commit.
    Committed {
        /// Its revision.
        revision: u64,
    },
    /// A commit whose check failed.
    Refused {
        /// Which key's.
        key: String,
        /// Its revision just before; none: absent.
        actual: Option<u64>,
    },
    /// It had no effect and never will.
    NotExecuted {
        /// Why.
        error: String,
    },
    /// Nobody knows.
    Unknown {
        /// Why.
        error: String,
    },
}

/// One call of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub id: OpId,
    /// What was asked.
    pub request: Request,
    /// When it was made.
    pub invoked: Nanos,
    /// When it was answered, or given up.
    pub returned: Nanos,
    /// What came of it.
    pub outcome: Outcome,
}

impl Call {
    /// The revision it was carried out at, as its answer tells.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        match &self.outcome {
            Outcome::Read { revision, .. } | Outcome::Committed { revision } => Some(*revision),
            Outcome::Refused { .. } | Outcome::NotExecuted { .. } | Outcome::Unknown { .. } => None,
        }
    }
}

/// One commit as the store's log tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Logged {
    /// Its revision.
    pub revision: u64,
    /// Its label: the text of an [`OpId`].
    pub label: String,
    /// What it changed, in its order.
    pub changes: Vec<(String, Write)>,
}

/// The keys from `from` up to, not including, `to`; without it to the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The first in it.
    pub from: String,
    /// The first behind it.
    pub to: Option<String>,
}

impl Range {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self::new("", None)
    }

    /// From here to there.
    #[must_use]
    pub fn new(from: &str, to: Option<&str>) -> Self {
        Self {
            from: from.to_owned(),
            to: to.map(str::to_owned),
        }
    }

    /// Whether it holds `key`.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        key >= self.from.as_str() && self.to.as_ref().is_none_or(|to| key < to.as_str())
    }
}

/// How a watch tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each commit.
    Every,
    /// The present state of what changed.
    Latest,
}

/// Where a watch was asked to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// With what comes.
    Now,
    /// After this revision.
    After(u64),
    /// With the first.
    Beginning,
}

/// What happened on a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// It was opened, by its application: at first, and again after [`Told::Broke`].
    Opened {
        /// As asked.
        start: Start,
        /// As the server said: everything after this is told.
        position: u64,
    },
    /// A commit (`Every`).
    Commit(Logged),
    /// A key's state (`Latest`, or behind a [`Told::Resynced`]).
    State {
        /// The key.
        key: String,
        /// Its value; none: removed.
        value: Option<String>,
        /// The commit that made it so.
        revision: u64,
    },
    /// The application asked for a mark with this token.
    Asked {
        /// The token.
        token: u64,
    },
    /// A mark.
    Mark {
        /// Everything up to here was told.
        revision: u64,
        /// Which request for a mark it answers.
        token: Option<u64>,
    },
    /// Keys that are not told before the next mark are gone.
    Reset,
    /// A break, and nothing was missed.
    Continuous,
    /// A break; steps are left out, the state follows.
    Resynced {
        /// Why.
        why: String,
    },
    /// A break that cannot be repaired.
    Lost {
        /// Everything up to here was told.
        from: u64,
        /// Where the server stood.
        to: u64,
    },
    /// It ended with an error.
    Broke {
        /// The error.
        error: String,
    },
}

/// All that one subscriber was told, over all its breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchStream {
    /// A name for messages.
    pub name: String,
    /// How it tells.
    pub mode: Mode,
    /// What of.
    pub range: Range,
    /// What happened, when.
    pub events: Vec<(Nanos, Told)>,
}

/// One run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What replays it.
    pub seed: u64,
    /// All calls, in any order.
    pub calls: Vec<Call>,
    /// All watches.
    pub watches: Vec<WatchStream>,
    /// What replicas answered.
    pub replica_reads: Vec<ReplicaRead>,
    /// The log of the store, read at the end, from the first commit on.
    pub log: Vec<Logged>,
    /// The revision up to which `log` is known to be complete.
    pub log_end: u64,
}

/// A promise, by whose name a violation is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Promise {
    /// There is one order of all calls on a key that explains each answer and keeps real time.
    Linearizable,
    /// Revisions keep the order of real time.
    RealTime,
    /// What is read is the state at the revision that is told.
    OneRevision,
    /// A commit is there as a whole.
    AtomicCommit,
    /// A commit has its effect once, if acknowledged; at most once, if unknown; never, if not executed.
    ExactlyOnce,
    /// A check is judged against the state just before.
    Checks,
    /// Watch: revisions grow.
    Ordered,
    /// Watch: nothing comes twice.
    Unique,
    /// Watch: nothing is left out.
    Reliable,
    /// Watch: a commit is not split, and is what was committed.
    Atomic,
    /// Watch: after a break it goes on where it was, or says that it cannot.
    Resumable,
    /// Watch: a mark is true.
    Bookmarkable,
    /// Replica: what is read is the state at the revision that is told.
    ReplicaState,
    /// Replica: the age is true.
    ReplicaAge,
    /// Replica: who waited for a position reads it, and one that is in reach is come to.
    ReplicaWait,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// What was seen.
    pub what: String,
}

impl Violation {
    /// One.
    #[must_use]
    pub fn new(promise: Promise, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { promise, what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)
    }
}

/// What the judges say.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What is broken.
    pub violations: Vec<Violation>,
    /// Keys whose search for a linearization was given up at its bound.
    pub undecided: usize,
}

/// Judges a history by all that is known of it.
#[must_use]
pub fn judge(history: &History) -> Verdict {
    let reference = Reference::new(&history.log, history.log_end);
    let mut verdict = linear::check(&history.calls);
    verdict
        .violations
        .extend(ledger::check(&history.calls, &reference));
    let acknowledged = Acknowledged::new(&history.calls);
    for stream in &history.watches {
        let found = watches::check(stream, &reference, &acknowledged);
        verdict.violations.extend(found);
    }
    for read in &history.replica_reads {
        let found = replica::check(read, &reference, &acknowledged);
        verdict.violations.extend(found);
    }
    verdict
}

/// The highest revision that anyone had been told by some moment.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    /// Moment and the highest revision told by then; both grow.
    steps: Vec<(Nanos, u64)>,
}

impl Acknowledged {
    /// From the answers of these calls.
    #[must_use]
    pub fn new(calls: &[Call]) -> Self {
        let told = |call: &Call| Some((call.returned, call.revision()?));
        let mut steps: Vec<_> = calls.iter().filter_map(told).collect();
        steps.sort_unstable();
        let mut highest = 0;
        for (_, revision) in &mut steps {
            highest = highest.max(*revision);
            *revision = highest;
        }
        Self { steps }
    }

    /// By just before this moment.
    #[must_use]
    pub fn before(&self, moment: Nanos) -> u64 {
        let count = self
            .steps
            .partition_point(|(returned, _)| *returned < moment);
        count
            .checked_sub(1)
            .and_then(|last| self.steps.get(last))
            .map_or(0, |(_, revision)| *revision)
    }
}

/// Collects the calls of one run. Shared by its clients.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    calls: Mutex<Vec<Call>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            calls: Mutex::default(),
        }
    }
}

impl Recorder {
    /// The clock of the run.
    #[must_use]
    pub fn now(&self) -> Nanos {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Keeps a call that is over.
    pub fn push(&self, call: Call) {
        self.lock().push(call);
    }

    /// How many are kept.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// All of them.
    #[must_use]
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The committer's queue: bounded in bytes, and fair by bytes among principals.
//!
//! Each principal has a line of its own; the committer takes from the lines in turn, a share of bytes each, so that a
//! principal which pushes without pause delays another's small commit by one share, not by its backlog. A commit that is
//! larger than the share is taken whole, and its line waits until every other one that has work was given as much: over
//! time all lines that are never empty get the same bytes, whatever the sizes of their commits (start-time fair queueing).
//! What a line was given is remembered after it ran empty, until the others have as much or nothing waits; who was idle
//! has saved up nothing. Within a line, and so within a session, order is kept. No line takes more than half of the queue,
//! or one commit if that is larger.
//!
//! The committer takes one share after another while it evaluates them, and writes them as one group. The larger a group,
//! the less a commit costs, and the longer its answer takes. So a group takes all there is while each principal in it has
//! more to commit. Where one of them has nothing more, that one only waits: such a group ends when its evaluation has taken
//! half as long as a write takes, so that neither the wait nor what a write costs each commit grows much. For a while
//! after that it is the same without such a principal, since one may come while a group is being written.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use storage_protocol::{Limit, Outcome, Result, StorageError};

use super::task::{Task, Work};

/// What is taken from one principal's line at its turn, in bytes; and the rest of the commit that reaches it.
const SHARE_BYTES: usize = 256 * 1024;

/// The same in works. A small commit takes the committer about 8 us.
const SHARE_WORKS: usize = 64;

/// Works of a group: bounds what one synced write carries.
const WORKS_MAX: usize = 4096;

/// Bytes of a group; the commit that reaches it is taken whole.
const BYTES_MAX: usize = 16 << 20;

/// So long after a principal with nothing more to commit was served beside one with more, others like it are expected.
const LIGHT_EXPECTED: Duration = Duration::from_secs(1);

/// So many lines that are empty may be left over, besides as many as wait.
const LINES_UNSWEPT: usize = 64;

#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<PrincipalQueues>,
    filled: Condvar,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct PrincipalQueues {
    /// Those that are not empty, and those that were given more than others that wait.
    lines: HashMap<Arc<str>, PrincipalQueue>,
    /// The principals whose lines are not empty, in the order of their turns: by what they were given, then by when they
    /// came.
    turns: BTreeMap<(u64, u64), Arc<str>>,
    /// How many turns were given out.
    turn: u64,
    /// What the line whose turn it was last had been given before: who comes anew begins here.
    given: u64,
    bytes: usize,
    /// When a peer's line last ran empty at its turn while another peer's had more.
    light: Option<Instant>,
    /// The committer waits, and nobody has woken it yet.
    waits: bool,
    closed: bool,
}

/// What one principal has queued.
#[derive(Debug, Default)]
struct PrincipalQueue {
    works: VecDeque<Work>,
    bytes: usize,
    /// Bytes that it was given, and more where others were while it was empty.
    given: u64,
}

/// What was taken for one group.
#[derive(Debug)]
pub(crate) struct Taken {
    works: usize,
    bytes: usize,
    principals: HashSet<Arc<str>>,
    /// A line of these ran empty while others had more.
    has_light: bool,
    /// So long its evaluation may take where somebody waits.
    until: Instant,
}

impl Taken {
    /// For a group whose evaluation begins now, where a write takes so long at least.
    pub(crate) fn new(now: Instant, least_write: Duration) -> Self {
        Self {
            works: 0,
            bytes: 0,
            principals: HashSet::new(),
            has_light: false,
            until: now + least_write / 2,
        }
    }

    /// Whether the group ends although this principal's line is the next. Each has one share at least.
    fn ends_before(&self, next: &Arc<str>, light: Option<Instant>, now: Instant) -> bool {
        if self.works >= WORKS_MAX || self.bytes >= BYTES_MAX {
            return true;
        }
        let lately = |since| now.saturating_duration_since(since) < LIGHT_EXPECTED;
        self.principals.contains(next)
            && now >= self.until
            && (self.has_light || light.is_some_and(lately))
    }
}

impl PrincipalQueues {
    /// Puts a line that is not empty in its place among the turns.
    fn queue(&mut self, principal: Arc<str>, given: u64) {
        self.turn += 1;
        self.turns.insert((given, self.turn), principal);
    }

    /// Takes the next share of a group; empty if the group ends here.
    fn take_share(&mut self, group: &mut Taken, now: Instant) -> Vec<Work> {
        let mut share = Vec::new();
        let Some((key, principal)) = self.turns.first_key_value() else {
            return share;
        };
        if group.ends_before(principal, self.light, now) {
            return share;
        }
        let (key, principal) = (*key, principal.clone());
        self.turns.remove(&key);
        self.given = key.0;
        let Some(line) = self.lines.get_mut(&principal) else {
            return share;
        };
        let works_max = SHARE_WORKS.min(WORKS_MAX - group.works);
        let mut bytes = 0;
        while bytes < SHARE_BYTES
            && share.len() < works_max
            && let Some(work) = line.works.pop_front()
        {
            bytes += work.bytes;
            share.push(work);
        }
        line.bytes -= bytes;
        line.given += bytes as u64;
        self.bytes -= bytes;
        let given = line.given;
        if !line.works.is_empty() {
            self.queue(principal.clone(), given);
        } else if share.iter().any(is_peers) && self.a_peer_waits() {
            self.light = Some(now);
            group.has_light = true;
        }
        self.sweep();
        group.works += share.len();
        group.bytes += bytes;
        group.principals.insert(principal);
        share
    }

    fn a_peer_waits(&self) -> bool {
        let mut lines = self.turns.values().map(|principal| &self.lines[principal]);
        lines.any(|line| line.works.front().is_some_and(is_peers))
    }

    /// Forgets empty lines that were given no more than others, if there are many.
    fn sweep(&mut self) {
        if self.turns.is_empty() {
            self.lines.clear();
            self.given = 0;
        } else if self.lines.len() >= 2 * self.turns.len() + LINES_UNSWEPT {
            let given = self.given;
            self.lines
                .retain(|_, line| !line.works.is_empty() || line.given > given);
        }
    }
}

/// Whether a peer waits for it, not the engine itself.
fn is_peers(work: &Work) -> bool {
    work.handle != 0
}

impl Queue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            filled: Condvar::new(),
            bytes_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, PrincipalQueues> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts work at the end of its principal's line.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, or its principal's half of it; `Closed` when the engine is.
    pub(crate) fn push(&self, work: Work) -> Result<()> {
        let mut lines = self.lock();
        self.push_into(&mut lines, work)?;
        let wakes = std::mem::take(&mut lines.waits);
        // Before it is woken, since it needs the lock first.
        drop(lines);
        // Not each time: to wake nobody is a system call as well.
        if wakes {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Puts all of these into one group, if they fit into one.
    #[cfg(test)]
    pub(crate) fn push_together(&self, works: Vec<Work>) {
        let mut lines = self.lock();
        for work in works {
            self.push_into(&mut lines, work).unwrap();
        }
        lines.waits = false;
        self.filled.notify_one();
    }

    fn push_into(&self, lines: &mut PrincipalQueues, work: Work) -> Result<()> {
        if lines.closed {
            return Err(StorageError::Closed {
                reason: "the store is closing".to_owned(),
                outcome: Outcome::NotExecuted,
            });
        }
        let principal = work.session.principal.clone();
        // What the engine itself queues is always admitted: it is little, and nobody would retry it.
        // So is a commit that is retried: refused here, it would look as if it had not been executed.
        if matches!(work.task, Task::Commit { .. }) {
            let own = lines.lines.get(&principal).map_or(0, |line| line.bytes);
            // A larger one is still admitted to an empty queue or line: the message limit bounds it.
            for (waiting, max) in [(own, self.bytes_max / 2), (lines.bytes, self.bytes_max)] {
                if waiting > 0 && waiting + work.bytes > max {
                    return Err(StorageError::Overloaded {
                        limit: Limit::CommitQueue,
                        max: max as u64,
                    });
                }
            }
        }
        lines.bytes += work.bytes;
        let begin = lines.given;
        let line = lines.lines.entry(principal.clone()).or_default();
        line.bytes += work.bytes;
        line.works.push_back(work);
        if line.works.len() == 1 {
            line.given = line.given.max(begin);
            let given = line.given;
            lines.queue(principal, given);
        }
        Ok(())
    }

    /// Waits for work; false only when the queue is closed and drained.
    pub(crate) fn wait(&self) -> bool {
        let mut lines = self.lock();
        while lines.turns.is_empty() && !lines.closed {
            lines.waits = true;
            lines = self
                .filled
                .wait(lines)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !lines.turns.is_empty()
    }

    /// Takes the next works for a group, of which these were taken before; empty: it is to be written now.
    pub(crate) fn take_share(&self, group: &mut Taken) -> Vec<Work> {
        self.lock().take_share(group, Instant::now())
    }

    /// Takes no more; what is queued is still committed.
    pub(crate) fn close(&self) {
        let mut lines = self.lock();
        lines.closed = true;
        lines.waits = false;
        drop(lines);
        self.filled.notify_all();
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Batch, CommitOptions, Keyspace, SessionId};

    use super::*;
    use crate::engine::rocks::sessions::{Handle, SessionState};
    use crate::engine::rocks::store::KeyspaceState;
    use crate::engine::rocks::{EngineOptions, RocksEngine};

    /// A queue that nobody but the test takes from, and what makes works for it.
    struct Fixture {
        queue: Queue,
        keyspace: Arc<KeyspaceState>,
        _engine: Arc<RocksEngine>,
        _folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new(bytes_max: usize) -> Self {
            let folder = tempfile::tempdir().unwrap();
            // For the keyspace of the works.
            let engine = RocksEngine::open(EngineOptions {
                disk_reserve_bytes: 0,
                ..EngineOptions::new(folder.path().join("data"))
            })
            .unwrap();
            Self {
                queue: Queue::new(bytes_max),
                keyspace: engine.shared.store.keyspace(&Keyspace::new("a").unwrap()),
                _engine: engine,
                _folder: folder,
            }
        }

        fn work(&self, principal: &str, bytes: usize, task: Task) -> Work {
            Work {
                session: Arc::new(SessionState::new(
                    SessionId([0; 16]),
                    principal,
                    self.keyspace.clone(),
                    Handle::engine(),
                )),
                handle: 1,
                task,
                bytes,
                reply: tokio::sync::oneshot::channel().0,
            }
        }

        fn commit(&self, principal: &str, bytes: usize) -> Work {
            let task = Task::Commit {
                number: 0,
                fingerprint: None,
                batch: Batch::new(),
                options: CommitOptions::default(),
            };
            self.work(principal, bytes, task)
        }

        fn push(&self, principal: &str, bytes: usize) {
            self.queue.push(self.commit(principal, bytes)).unwrap();
        }

        /// Whose works are taken next, and their bytes.
        fn take(&self) -> Vec<(String, usize)> {
            self.take_at(Instant::now())
        }

        fn take_at(&self, now: Instant) -> Vec<(String, usize)> {
            let (mut taken, mut works) = (Taken::new(now, Duration::ZERO), Vec::new());
            loop {
                let share = self.queue.lock().take_share(&mut taken, now);
                if share.is_empty() {
                    break;
                }
                works.extend(share);
            }
            works
                .into_iter()
                .map(|work| (work.session.principal.to_string(), work.bytes))
                .collect()
        }
    }

    #[test]
    fn lines_that_are_never_empty_get_the_same_bytes_whatever_the_sizes_of_their_commits() {
        const LARGEST: usize = 16 << 20;
        let sizes = [
            ("cert:huge", LARGEST),
            ("cert:large", 300 * 1024),
            ("cert:small", 16 * 1024),
            ("cert:odd", 257 * 1024),
        ];
        let fixture = Fixture::new(usize::MAX);
        let mut given: HashMap<String, usize> = HashMap::new();
        let mut waiting: HashMap<String, usize> = HashMap::new();
        for round in 0..200 {
            for (principal, bytes) in sizes {
                let waits = waiting.entry(principal.to_owned()).or_default();
                while *waits < 2 * LARGEST {
                    fixture.push(principal, bytes);
                    *waits += bytes;
                }
            }
            let mut taken = 0;
            for (principal, bytes) in fixture.take() {
                *given.entry(principal.clone()).or_default() += bytes;
                *waiting.get_mut(&principal).unwrap() -= bytes;
                taken += bytes;
            }
            assert!(taken >= BYTES_MAX, "the committer has all it can take");
            // At any time: nobody is ahead by more than a commit and a share.
            let most = given.values().max().copied().unwrap_or(0);
            for (principal, _) in sizes {
                let behind = most - given.get(principal).copied().unwrap_or(0);
                assert!(
                    behind <= LARGEST + SHARE_BYTES,
                    "{principal} is {behind} bytes behind in round {round}: {given:?}"
                );
            }
        }
    }

    #[test]
    fn a_line_that_ran_empty_after_a_large_commit_waits_as_if_it_had_not() {
        let fixture = Fixture::new(usize::MAX);
        let push_small =
            |count: usize| (0..count).for_each(|_| fixture.push("cert:small", 1 << 20));
        fixture.push("cert:huge", 16 << 20);
        push_small(40);
        let mut small_between = 0;
        let mut huge = 0;
        while huge < 4 {
            for (principal, bytes) in fixture.take() {
                match &*principal {
                    "cert:small" => small_between += bytes,
                    // Its next one comes when this one is answered, as of a client that waits.
                    _ => {
                        assert!(
                            huge == 0 || small_between >= 15 << 20,
                            "after {small_between}"
                        );
                        (huge, small_between) = (huge + 1, 0);
                        fixture.push("cert:huge", 16 << 20);
                    }
                }
            }
            push_small(16);
        }
    }

    #[test]
    fn a_small_commit_waits_for_one_share_of_a_backlog() {
        let fixture = Fixture::new(usize::MAX);
        for _ in 0..1_000 {
            fixture.push("cert:flood", 64 * 1024);
        }
        assert_eq!(
            fixture.take().len(),
            256,
            "who is alone has the whole group"
        );
        fixture.push("cert:small", 100);
        let taken = fixture.take();
        let place = taken
            .iter()
            .position(|(principal, _)| principal == "cert:small");
        assert!(place.unwrap() <= SHARE_BYTES / (64 * 1024), "{place:?}");
        // Idle in between, it has saved up nothing.
        for _ in 0..1_000 {
            fixture.push("cert:small", 64 * 1024);
        }
        let taken = fixture.take();
        let small = taken
            .iter()
            .filter(|(principal, _)| principal == "cert:small");
        let (small, all) = (small.count(), taken.len());
        assert!(small.abs_diff(all - small) <= 8, "{small} of {all}");
    }

    #[test]
    fn a_group_ends_soon_where_a_principal_waits_that_has_nothing_more_to_commit() {
        let fixture = Fixture::new(usize::MAX);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let taken = |millis| fixture.take_at(at(millis)).len();
        for _ in 0..3 * WORKS_MAX {
            fixture.push("cert:flood", 100);
        }
        assert_eq!(taken(0), WORKS_MAX, "nobody else is there");
        let own = Work {
            handle: 0,
            ..fixture.work("server", 100, Task::Look)
        };
        fixture.queue.push(own).unwrap();
        assert_eq!(
            taken(0),
            WORKS_MAX,
            "no peer waits for what the engine does"
        );
        fixture.push("cert:small", 100);
        let group = fixture.take_at(at(1));
        assert_eq!(group[0].0, "cert:small");
        assert_eq!(group.len(), 1 + SHARE_WORKS);
        assert_eq!(taken(2), SHARE_WORKS, "another may come");
        assert_eq!(taken(1_000), SHARE_WORKS);
        // It comes while a group is being evaluated, and where a write takes long more goes with it.
        let mut group = Taken::new(at(1_002), Duration::from_millis(10));
        let mut share = |millis| {
            fixture
                .queue
                .lock()
                .take_share(&mut group, at(millis))
                .len()
        };
        assert_eq!(share(1_002), SHARE_WORKS);
        fixture.push("cert:small", 100);
        assert_eq!(share(1_003), 1);
        assert_eq!(share(1_004), SHARE_WORKS);
        assert_eq!(share(1_007), 0, "half the time of a write");
        assert!(taken(2_004) > 2 * SHARE_WORKS, "nobody else came");
    }

    #[test]
    fn who_is_alone_beside_what_the_engine_does_has_large_groups() {
        let fixture = Fixture::new(usize::MAX);
        let now = Instant::now();
        for _ in 0..10 {
            // Its line runs empty while the engine's waits.
            (0..2 * SHARE_WORKS).for_each(|_| fixture.push("cert:bulk", 100));
            let own = Work {
                handle: 0,
                ..fixture.work("server", 100, Task::Look)
            };
            fixture.queue.push(own).unwrap();
            assert_eq!(fixture.take_at(now).len(), 2 * SHARE_WORKS + 1);
        }
    }

    #[test]
    fn a_group_goes_on_while_each_of_several_has_more_to_commit() {
        let fixture = Fixture::new(usize::MAX);
        for _ in 0..WORKS_MAX {
            fixture.push("cert:a", 100);
            fixture.push("cert:b", 100);
        }
        assert_eq!(fixture.take().len(), WORKS_MAX);
    }

    #[test]
    fn lines_that_are_empty_are_forgotten() {
        let fixture = Fixture::new(usize::MAX);
        for n in 0..1_000 {
            fixture.push("cert:flood", SHARE_BYTES);
            fixture.push("cert:flood", SHARE_BYTES);
            fixture.push(&format!("cert:{n}"), 100);
            fixture.take();
        }
        let lines = fixture.queue.lock().lines.len();
        assert!(lines <= 2 * LINES_UNSWEPT, "{lines} lines are left");
        while fixture.queue.bytes() > 0 {
            fixture.take();
        }
        assert_eq!(fixture.queue.lock().lines.len(), 0);
    }

    #[test]
    fn a_principal_has_half_of_the_queue() {
        let fixture = Fixture::new(100);
        let queue = &fixture.queue;
        let work = |principal, bytes, task| fixture.work(principal, bytes, task);
        let commit = |principal, bytes| fixture.commit(principal, bytes);
        let full = |max| {
            let limit = Limit::CommitQueue;
            Err(StorageError::Overloaded { limit, max })
        };
        queue.push(commit("cert:a", 40)).unwrap();
        assert_eq!(
            queue.push(commit("cert:a", 11)),
            full(50),
            "of another session, too"
        );
        queue.push(commit("cert:a", 10)).unwrap();
        assert_eq!(queue.push(commit("cert:a", 1)), full(50));
        queue
            .push(work("cert:a", 64, Task::Look))
            .expect("it is the engine's");
        queue
            .push(commit("cert:b", 30))
            .expect_err("all of it is full");
        assert_eq!(fixture.take().len(), 3);
        assert_eq!(queue.bytes(), 0);
        // One commit always fits, and nothing beside it.
        queue.push(commit("cert:a", 80)).unwrap();
        assert_eq!(queue.push(commit("cert:a", 1)), full(50));
        queue.push(commit("cert:b", 20)).unwrap();
        assert_eq!(queue.push(commit("cert:c", 1)), full(100));
    }
}

//! A storage with faults, and what a copy is compared with.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage_client::replica::Proven;
use storage_client::{Replica, ReplicaOptions};
use storage_protocol::{
    Batch, ChangeKind, CommitOptions, CommitRecord, Entry, Key, KeyRange, KeyState, Keyspace,
    Limits, Outcome, Position, Reading, Result, Revision, Scan, ScanOptions, Storage, StorageError,
    StorageExt, Value, Watch, WatchEvent, WatchOptions, WatchSource, WatchStart, WatchStatus,
    begin_commit,
};
use storage_testkit::model::{ModelStorage, ModelStore};

/// For each single wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn keyspace() -> Keyspace {
    Keyspace::new("copied").unwrap()
}

pub(crate) fn model() -> (ModelStore, Arc<ModelStorage>) {
    let store = ModelStore::new();
    let storage = store.storage(&keyspace());
    (store, Arc::new(storage))
}

/// Probes often, so that tests are quick.
pub(crate) fn quick() -> ReplicaOptions {
    ReplicaOptions::new()
        .probe_interval(Duration::from_millis(20))
        .backoff_max(Duration::from_millis(20))
        .save_interval(Duration::from_millis(10))
}

pub(crate) async fn replica_of(storage: Arc<dyn Storage>, options: ReplicaOptions) -> Replica {
    Replica::start(storage, KeyRange::all(), options)
        .await
        .unwrap()
}

pub(crate) async fn put(storage: &dyn Storage, key: &str, value: &str) -> Position {
    let (key, value) = (
        Key::copy_from_slice(key.as_bytes()),
        Value::copy_from_slice(value.as_bytes()),
    );
    storage.put(key, value).await.unwrap()
}

/// Waits for something that is looked at again and again.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until the replica stands at or behind `position`, and gives its state.
pub(crate) async fn state_from(replica: &Replica, position: Position) -> Proven<Vec<(Key, Entry)>> {
    replica.wait_for(position, PATIENCE).await.unwrap();
    replica.scan(replica.range(), false, None).unwrap()
}

/// Key and value of each entry, as text.
pub(crate) fn texts(entries: &[(Key, Entry)]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let texts = entries
        .iter()
        .map(|(key, entry)| (text(key), text(&entry.value)));
    texts.collect()
}

pub(crate) fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = expected
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    owned.collect()
}

// ---- the truth

/// Every commit of a keyspace, by which a state at any revision is known.
pub(crate) struct History(Vec<Arc<CommitRecord>>);

impl History {
    pub(crate) async fn of(storage: &dyn Storage) -> Self {
        let options = WatchOptions::every(WatchStart::Beginning);
        let mut watch = storage.watch(KeyRange::all(), options).await.unwrap();
        watch.request_progress(1);
        let mut commits = Vec::new();
        loop {
            match watch.next().await.unwrap().unwrap() {
                WatchEvent::Commit(commit) => commits.push(commit),
                WatchEvent::Progress { token: Some(1), .. } => return Self(commits),
                _ => {}
            }
        }
    }

    /// Judges states that were seen: each must be the one at its position.
    pub(crate) fn check(&self, range: &KeyRange, mut seen: Vec<Proven<Vec<(Key, Entry)>>>) {
        seen.sort_by_key(|state| state.proof.position.revision);
        let (mut truth, mut commits) = (BTreeMap::new(), self.0.iter().peekable());
        for state in seen {
            let at = state.proof.position.revision;
            while let Some(commit) = commits.next_if(|commit| commit.revision <= at) {
                repeat(&mut truth, commit, range);
            }
            let shown = state
                .value
                .into_iter()
                .map(|(key, entry)| (key, (entry.value, entry.revision)));
            let shown: BTreeMap<Key, (Value, Revision)> = shown.collect();
            assert_eq!(shown, truth, "there was no such state at revision {at}");
        }
    }
}

fn repeat(state: &mut BTreeMap<Key, (Value, Revision)>, commit: &CommitRecord, range: &KeyRange) {
    let inside = commit
        .changes
        .iter()
        .filter(|change| range.contains(&change.key));
    for change in inside {
        match &change.kind {
            ChangeKind::Put { value, .. } => {
                state.insert(change.key.clone(), (value.clone(), commit.revision));
            }
            ChangeKind::Removed { .. } => {
                state.remove(&change.key);
            }
            ChangeKind::Signalled { .. } => {}
        }
    }
}

/// Commits of several keys each, puts and removals, from a task for each storage; gives the last position.
pub(crate) async fn write_at_random(
    storages: Vec<Arc<dyn Storage>>,
    seed: u64,
    commits: u32,
    pause: Duration,
) -> Position {
    let writers = storages.into_iter().enumerate().map(|(writer, storage)| {
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed + writer as u64);
            let mut last = Position::default();
            for n in 0..commits {
                let mut batch = Batch::new();
                let mut keys: Vec<u32> = (0..4).map(|_| random.random_range(0..60)).collect();
                keys.sort_unstable();
                keys.dedup();
                for key in keys {
                    let key = format!("{}/{key:02}", if key % 5 == 0 { "out" } else { "in" });
                    batch = match random.random_range(0..4) {
                        0 => batch.remove(key),
                        _ => batch.put(key, format!("{writer}-{n}")),
                    };
                }
                last = storage
                    .commit(batch, CommitOptions::default())
                    .await
                    .unwrap();
                tokio::time::sleep(pause).await;
            }
            last
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut last = Position::default();
    for writer in writers {
        let position = writer.await.unwrap();
        if position.revision > last.revision {
            last = position;
        }
    }
    last
}

// ---- faults

/// What goes wrong, and what was counted.
#[derive(Debug)]
pub(crate) struct Faults {
    random: Mutex<StdRng>,
    /// Of 10,000 polls of a watch so many end it.
    pub(crate) breaks_per_10_000: AtomicU64,
    /// Watches that were broken.
    pub(crate) broken: AtomicU64,
    /// Watches that were asked for.
    pub(crate) watches: AtomicU64,
    /// States that were told.
    pub(crate) states: AtomicU64,
    /// No watch is given.
    pub(crate) refuse: AtomicBool,
    /// Marks with a token, and what follows, come so much later.
    pub(crate) delay: Mutex<Duration>,
    /// The states of this key are told with another value...
    pub(crate) tampered: Mutex<Option<Key>>,
    /// ... or not at all.
    pub(crate) withheld: Mutex<Option<Key>>,
}

/// A storage whose watches have [`Faults`]; its calls have none.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn Storage>,
    pub(crate) faults: Arc<Faults>,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn Storage>, seed: u64) -> Arc<Self> {
        let faults = Faults {
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            breaks_per_10_000: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            watches: AtomicU64::new(0),
            states: AtomicU64::new(0),
            refuse: AtomicBool::new(false),
            delay: Mutex::default(),
            tampered: Mutex::default(),
            withheld: Mutex::default(),
        };
        Arc::new(Self {
            inner,
            faults: Arc::new(faults),
        })
    }

    pub(crate) fn refuse(&self, refuse: bool) {
        self.faults.refuse.store(refuse, Ordering::SeqCst);
    }

    /// Ends every watch at its next poll, once.
    pub(crate) fn break_now(&self) {
        self.faults
            .breaks_per_10_000
            .store(10_000, Ordering::SeqCst);
    }
}

fn closed() -> StorageError {
    StorageError::Closed {
        reason: "a fault of the test".into(),
        outcome: Outcome::NotExecuted,
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Storage for Faulty {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        self.inner.get(keys).await
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        self.inner.scan(range, options).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        self.inner.commit(batch, options).await
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        begin_commit(self, batch, options);
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        self.faults.watches.fetch_add(1, Ordering::SeqCst);
        if self.faults.refuse.load(Ordering::SeqCst) {
            return Err(closed());
        }
        let inner = self.inner.watch(range, options).await?;
        let start = inner.start();
        let source = FaultyWatch {
            inner,
            faults: self.faults.clone(),
            late: VecDeque::new(),
            timer: None,
        };
        Ok(Watch::new(start, Box::new(source)))
    }

    async fn limits(&self) -> Result<Limits> {
        self.inner.limits().await
    }
}

struct FaultyWatch {
    inner: Watch,
    faults: Arc<Faults>,
    /// What is told at its time only.
    late: VecDeque<(Instant, WatchEvent)>,
    timer: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl FaultyWatch {
    /// Why it ends now, if it does.
    fn fault(&self) -> Option<StorageError> {
        let chance = self.faults.breaks_per_10_000.load(Ordering::SeqCst);
        let mut random = self.faults.random.lock().unwrap();
        if random.random_range(0..10_000) >= chance {
            return None;
        }
        if chance == 10_000 {
            self.faults.breaks_per_10_000.store(0, Ordering::SeqCst);
        }
        self.faults.broken.fetch_add(1, Ordering::SeqCst);
        Some(match random.random_range(0..10) {
            0 if chance < 10_000 => StorageError::Compacted {
                oldest: Revision(1),
            },
            1 if chance < 10_000 => StorageError::EpochChanged {
                epoch: self.inner.start().epoch,
                fork: Revision::ZERO,
            },
            2 => StorageError::SnapshotExpired,
            _ => closed(),
        })
    }

    /// The event as it is told, if it is.
    fn tamper(&self, event: WatchEvent) -> Option<WatchEvent> {
        let WatchEvent::State { key, mut state } = event else {
            return Some(event);
        };
        self.faults.states.fetch_add(1, Ordering::SeqCst);
        if self.faults.withheld.lock().unwrap().as_ref() == Some(&key) {
            return None;
        }
        if self.faults.tampered.lock().unwrap().as_ref() == Some(&key)
            && let KeyState::Live(entry) = &mut state
        {
            entry.value = "tampered".into();
        }
        Some(WatchEvent::State { key, state })
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<WatchEvent> {
        let Some(due) = self.late.front().map(|(due, _)| *due) else {
            return Poll::Pending;
        };
        if due > Instant::now() {
            let mut timer = Box::pin(tokio::time::sleep_until(due.into()));
            if timer.poll_unpin(cx).is_pending() {
                self.timer = Some(timer);
                return Poll::Pending;
            }
        }
        Poll::Ready(self.late.pop_front().unwrap().1)
    }
}

impl WatchSource for FaultyWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        if let Some(error) = self.fault() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            if let Poll::Ready(event) = self.poll_late(cx) {
                return Poll::Ready(Some(Ok(event)));
            }
            let Some(event) = ready!(self.inner.poll_next_unpin(cx)).transpose()? else {
                return Poll::Ready(None);
            };
            let Some(event) = self.tamper(event) else {
                continue;
            };
            let delay = *self.faults.delay.lock().unwrap();
            let is_answer = matches!(event, WatchEvent::Progress { token: Some(_), .. });
            if (is_answer && delay > Duration::ZERO) || !self.late.is_empty() {
                self.late.push_back((Instant::now() + delay, event));
                continue;
            }
            return Poll::Ready(Some(Ok(event)));
        }
    }

    fn request_progress(&mut self, token: u64) {
        self.inner.request_progress(token);
    }

    fn park(&mut self) {
        self.inner.park();
    }

    fn status(&self) -> WatchStatus {
        self.inner.status()
    }
}

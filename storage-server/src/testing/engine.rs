//! A small engine in memory for the tests of sessions: commits, gets, scans and live watches of one map.
//!
//! It keeps no history and checks no limits but quotas. Commits of peers wait while [`MemoryEngine::hold`] says so, before or
//! after they are applied, so that tests can see what a session does meanwhile; those of `server` never wait.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use storage_protocol::{
    Batch, Change, ChangeKind, CommitOptions, CommitRecord, Entry, EntryLifetime, Epoch, Expected,
    Key, KeyRange, KeyState, Keyspace, Lifetime, Limit, Limits, Operation, Outcome, Position,
    Reading, Result, Revision, Scan, ScanItem, ScanOptions, ScanSource, SessionId, Storage,
    StorageError, UnixMillis, Watch, WatchEvent, WatchMode, WatchOptions, WatchSource, WatchStart,
    WatchState, WatchStatus,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::{
    Engine, Resumed, Room, Session, SessionStorage, StoredLimits, StoredMax, Usage,
};

#[derive(Debug, Default)]
struct State {
    revision: u64,
    entries: BTreeMap<(Keyspace, Key), (Entry, Option<u64>)>,
    feeds: Vec<Arc<Mutex<FeedState>>>,
    sessions: u64,
    /// Of each session that did not end: whose it is, its incarnation, and how that is told that it was fenced.
    resumable: HashMap<SessionId, (String, u64, CancellationToken)>,
    limits: Option<Arc<dyn StoredLimits>>,
}

impl State {
    /// What a `Latest` watch is told of a key.
    fn event(&self, keyspace: &Keyspace, key: &Key) -> WatchEvent {
        let entry = self.entries.get(&(keyspace.clone(), key.clone()));
        let removed = || KeyState::Removed(Revision(self.revision));
        let state = entry.map_or_else(removed, |(entry, _)| KeyState::Live(entry.clone()));
        WatchEvent::State {
            key: key.clone(),
            state,
        }
    }

    fn progress(&self, token: Option<u64>) -> WatchEvent {
        let position = MemoryEngine::position_of(self);
        WatchEvent::Progress { position, token }
    }

    fn usage(&self, keyspace: &Keyspace) -> Usage {
        let mut usage = Usage::default();
        for ((name, key), (entry, _)) in &self.entries {
            if name == keyspace {
                usage.entries += 1;
                usage.bytes += (key.len() + entry.value.len()) as u64;
            }
        }
        usage
    }

    /// Refuses a batch that would raise what the keyspace holds above its quotas.
    fn check_quotas(&self, keyspace: &Keyspace, batch: &Batch) -> Result<()> {
        let Some(limits) = &self.limits else {
            return Ok(());
        };
        let before = self.usage(keyspace);
        let mut after = before;
        for operation in &batch.operations {
            let key = operation.key();
            if let Some((old, _)) = self.entries.get(&(keyspace.clone(), key.clone())) {
                after.entries -= 1;
                after.bytes -= (key.len() + old.value.len()) as u64;
            }
            if let Operation::Put { value, .. } = operation {
                after.entries += 1;
                after.bytes += (key.len() + value.len()) as u64;
            }
        }
        let StoredMax { entries, bytes } = limits.stored_max(keyspace);
        for (limit, before, after, max) in [
            (
                Limit::KeyspaceEntries,
                before.entries,
                after.entries,
                entries,
            ),
            (Limit::KeyspaceBytes, before.bytes, after.bytes, bytes),
        ] {
            if let Some(max) = max
                && after > before.max(max)
            {
                return Err(StorageError::QuotaExceeded { limit, max });
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct FeedState {
    keyspace: Keyspace,
    range: KeyRange,
    is_latest: bool,
    events: VecDeque<WatchEvent>,
    waker: Option<Waker>,
}

/// What waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Nothing,
    Commits,
    /// Watches are not opened.
    Watches,
    /// Nor are the server's own.
    OwnWatches,
    /// Commits happen and are told to watches, but not acknowledged.
    Answers,
    Reads,
    Resumes,
}

fn no_room() -> StorageError {
    StorageError::Overloaded {
        limit: Limit::Outbox,
        max: 0,
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MemoryEngine {
    state: Arc<Mutex<State>>,
    hold: watch::Sender<Hold>,
    /// What sessions that are resumed have executed.
    pub(crate) executed: AtomicU64,
}

impl MemoryEngine {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Arc::default(),
            hold: watch::Sender::new(Hold::Nothing),
            executed: AtomicU64::new(0),
        })
    }

    /// Lets commits of peers wait, or go on.
    pub(crate) fn hold(&self, hold: Hold) {
        self.hold.send_replace(hold);
    }

    fn position_of(state: &State) -> Position {
        Position {
            epoch: Epoch(7),
            revision: Revision(state.revision),
        }
    }
}

impl MemoryEngine {
    fn session(
        &self,
        principal: &str,
        keyspace: &Keyspace,
        (number, executed): (u64, u64),
        fence: &CancellationToken,
    ) -> Arc<MemorySession> {
        Arc::new(MemorySession {
            state: self.state.clone(),
            hold: self.hold.subscribe(),
            principal: principal.to_owned(),
            keyspace: keyspace.clone(),
            number,
            executed,
            fence: fence.clone(),
        })
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    fn open_session(&self, principal: &str, keyspace: &Keyspace) -> Arc<dyn Session> {
        let mut state = self.state.lock().unwrap();
        state.sessions += 1;
        let fence = CancellationToken::new();
        let session = self.session(principal, keyspace, (state.sessions, 0), &fence);
        let entry = (principal.to_owned(), 0, fence);
        state.resumable.insert(session.id(), entry);
        session
    }

    async fn resume_session(
        &self,
        principal: &str,
        keyspace: &Keyspace,
        id: SessionId,
        incarnation: u64,
    ) -> Result<Resumed> {
        let mut hold = self.hold.subscribe();
        let _ = hold.wait_for(|hold| *hold != Hold::Resumes).await;
        let mut state = self.state.lock().unwrap();
        let entry = state.resumable.get_mut(&id);
        let Some((_, last, fence)) = entry.filter(|(whose, ..)| whose == principal) else {
            return Ok(Resumed::Gone);
        };
        if incarnation <= *last {
            return Ok(Resumed::Fenced);
        }
        *last = incarnation;
        std::mem::replace(fence, CancellationToken::new()).cancel();
        let executed = self.executed.load(Ordering::Relaxed);
        let numbers = (u64::from(id.0[0]), executed);
        let session = self.session(principal, keyspace, numbers, fence);
        Ok(Resumed::Session(session))
    }

    fn position(&self) -> Position {
        Self::position_of(&self.state.lock().unwrap())
    }

    fn has_keyspace(&self, keyspace: &Keyspace) -> bool {
        let state = self.state.lock().unwrap();
        state.entries.keys().any(|(name, _)| name == keyspace)
    }

    fn usage(&self, keyspace: &Keyspace) -> Result<Usage> {
        Ok(self.state.lock().unwrap().usage(keyspace))
    }

    fn set_stored_limits(&self, limits: Arc<dyn StoredLimits>) {
        self.state.lock().unwrap().limits = Some(limits);
    }

    // A stub: what is lost stays for ever.
    fn serving(&self) {}

    fn check_writable(&self) -> std::result::Result<(), String> {
        if *self.hold.borrow() != Hold::Nothing {
            Err("commits are held".to_owned())
        } else {
            Ok(())
        }
    }

    fn register_metrics(&self, registry: &mut Registry) {
        registry.register("engine_metric", "A test's", ConstGauge::new(1));
    }
}

#[derive(Debug)]
struct MemorySession {
    state: Arc<Mutex<State>>,
    hold: watch::Receiver<Hold>,
    principal: String,
    keyspace: Keyspace,
    number: u64,
    executed: u64,
    fence: CancellationToken,
}

impl MemorySession {
    async fn passes(&self, gate: Hold) {
        if self.principal != "server" {
            let mut hold = self.hold.clone();
            let _ = hold.wait_for(|hold| *hold != gate).await;
        }
    }

    fn apply(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        let mut state = self.state.lock().unwrap();
        let at = |key: &Key| (self.keyspace.clone(), key.clone());
        for check in &batch.checks {
            let actual = state
                .entries
                .get(&at(&check.key))
                .map(|(entry, _)| entry.revision);
            let expected = match check.expected {
                Expected::Absent => None,
                Expected::At(revision) => Some(revision),
            };
            if actual != expected {
                return Err(StorageError::CheckFailed {
                    key: check.key.clone(),
                    actual,
                });
            }
        }
        let of_server = self.principal == "server" || self.keyspace.as_str() == "system";
        if !of_server {
            state.check_quotas(&self.keyspace, &batch)?;
        }
        state.revision += 1;
        let revision = Revision(state.revision);
        let mut changes = Vec::new();
        for operation in batch.operations {
            let operation = match operation {
                Operation::PutStamped {
                    prefix,
                    value,
                    lifetime,
                } => Operation::Put {
                    key: [&prefix[..], &revision.0.to_be_bytes()].concat().into(),
                    value,
                    lifetime,
                },
                operation => operation,
            };
            match operation {
                Operation::Put {
                    key,
                    value,
                    lifetime,
                } => {
                    let session = (lifetime == Lifetime::Session).then_some(self.number);
                    let lifetime = EntryLifetime::Forever;
                    let entry = Entry {
                        value: value.clone(),
                        revision,
                        lifetime,
                    };
                    state.entries.insert(at(&key), (entry, session));
                    changes.push(Change {
                        key,
                        kind: ChangeKind::Put {
                            value,
                            lifetime,
                            previous: None,
                        },
                    });
                }
                Operation::Remove { key } => {
                    if state.entries.remove(&at(&key)).is_some() {
                        changes.push(Change {
                            key,
                            kind: ChangeKind::Removed { previous: None },
                        });
                    }
                }
                _ => {
                    return Err(StorageError::Unsupported {
                        what: "not in this stub".to_owned(),
                    });
                }
            }
        }
        let record = CommitRecord::new(
            revision,
            UnixMillis(1),
            options.label,
            self.principal.clone(),
            changes,
        );
        let record = Arc::new(record);
        for feed in &state.feeds {
            let mut feed = feed.lock().unwrap();
            if feed.keyspace == self.keyspace
                && let Some(record) = record.cut(&feed.range)
            {
                if feed.is_latest {
                    let changes = record.changes.iter();
                    let changed = changes.map(|change| state.event(&self.keyspace, &change.key));
                    feed.events.extend(changed);
                    feed.events.push_back(state.progress(None));
                } else {
                    feed.events.push_back(WatchEvent::Commit(record));
                }
                feed.waker.take().inspect(|waker| waker.wake_by_ref());
            }
        }
        Ok(MemoryEngine::position_of(&state))
    }
}

impl MemorySession {
    fn scan_all(&self, ranges: &[KeyRange]) -> Scan {
        let state = self.state.lock().unwrap();
        let found = state.entries.iter().filter(|((keyspace, key), _)| {
            *keyspace == self.keyspace && ranges.iter().any(|range| range.contains(key))
        });
        let items = found.map(|((_, key), (entry, _))| ScanItem {
            key: key.clone(),
            state: KeyState::Live(entry.clone()),
        });
        Scan::new(
            MemoryEngine::position_of(&state),
            Box::new(Pages(items.collect(), self.hold.clone())),
        )
    }
}

#[async_trait]
impl Storage for MemorySession {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        let state = self.state.lock().unwrap();
        let find = |key: &Key| {
            state
                .entries
                .get(&(self.keyspace.clone(), key.clone()))
                .map(|(entry, _)| entry.clone())
        };
        Ok(Reading {
            position: MemoryEngine::position_of(&state),
            value: keys.iter().map(find).collect(),
        })
    }

    async fn scan(&self, range: KeyRange, _: ScanOptions) -> Result<Scan> {
        Ok(self.scan_all(&[range]))
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        self.passes(Hold::Commits).await;
        let result = self.apply(batch, options);
        self.passes(Hold::Answers).await;
        result
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        if self.principal != "server" {
            self.passes(Hold::Watches).await;
        }
        let mut hold = self.hold.clone();
        let _ = hold.wait_for(|hold| *hold != Hold::OwnWatches).await;
        let mut state = self.state.lock().unwrap();
        let is_latest = options.mode != WatchMode::Every;
        let mut events = VecDeque::new();
        if is_latest && options.start == WatchStart::Beginning {
            let keys = state.entries.keys();
            let keys = keys.filter(|(name, key)| *name == self.keyspace && range.contains(key));
            events.extend(keys.map(|(name, key)| state.event(name, key)));
        }
        if is_latest {
            events.push_back(state.progress(None));
        }
        let feed = FeedState {
            keyspace: self.keyspace.clone(),
            range,
            is_latest,
            events,
            waker: None,
        };
        let feed = Arc::new(Mutex::new(feed));
        state.feeds.push(feed.clone());
        Ok(Watch::new(
            MemoryEngine::position_of(&state),
            Box::new(Feed(feed, self.state.clone())),
        ))
    }

    async fn limits(&self) -> Result<Limits> {
        Ok(Limits::default())
    }
}

#[async_trait]
impl Session for MemorySession {
    fn id(&self) -> SessionId {
        SessionId([u8::try_from(self.number).unwrap_or(0); 16])
    }

    fn storage(self: Arc<Self>) -> Arc<dyn SessionStorage> {
        self
    }

    fn executed(&self) -> u64 {
        self.executed
    }

    fn keys_expired(&self) -> bool {
        false
    }

    // A stub: nothing expires here.
    fn acknowledge_expiry(&self) {}

    fn fenced(&self) -> CancellationToken {
        self.fence.clone()
    }

    // A stub: what is lost stays for ever.
    fn lose(&self) {}

    fn revoke(&self) {
        self.fence.cancel();
    }

    async fn end(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        state.resumable.remove(&self.id());
        state
            .entries
            .retain(|_, (_, session)| *session != Some(self.number));
        Ok(())
    }
}

#[async_trait]
impl SessionStorage for MemorySession {
    fn position(&self) -> Position {
        MemoryEngine::position_of(&self.state.lock().unwrap())
    }

    async fn get_into(
        &self,
        keys: &[Key],
        room: Arc<dyn Room>,
    ) -> Result<Reading<Vec<Option<Entry>>>> {
        self.passes(Hold::Reads).await;
        let reading = self.get(keys).await?;
        let bytes = reading.value.iter().flatten();
        let bytes = bytes.map(|entry| entry.value.len()).sum();
        match room.take(bytes) {
            true => Ok(reading),
            false => Err(no_room()),
        }
    }

    async fn scan_into(
        &self,
        ranges: Vec<KeyRange>,
        _: ScanOptions,
        _: Arc<dyn Room>,
    ) -> Result<Scan> {
        Ok(self.scan_all(&ranges))
    }

    async fn commit_numbered(
        &self,
        _: u64,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        self.commit(batch, options).await
    }

    // A stub: it remembers nothing, and takes what is known for the same.
    async fn repeat_numbered(&self, _: u64, fingerprint: Option<u64>) -> Result<Position> {
        self.passes(Hold::Commits).await;
        match fingerprint {
            Some(_) => Ok(self.position()),
            None => Err(StorageError::Closed {
                reason: "not known".to_owned(),
                outcome: Outcome::Unknown,
            }),
        }
    }
}

/// One item a page.
struct Pages(VecDeque<ScanItem>, watch::Receiver<Hold>);

#[async_trait]
impl ScanSource for Pages {
    async fn next_page(&mut self) -> Result<Option<Vec<ScanItem>>> {
        let _ = self.1.wait_for(|hold| *hold != Hold::Reads).await;
        Ok(self.0.pop_front().map(|item| vec![item]))
    }
}

struct Feed(Arc<Mutex<FeedState>>, Arc<Mutex<State>>);

impl WatchSource for Feed {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        let mut feed = self.0.lock().unwrap();
        match feed.events.pop_front() {
            Some(event) => Poll::Ready(Some(Ok(event))),
            None => {
                feed.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn request_progress(&mut self, token: u64) {
        let progress = self.1.lock().unwrap().progress(Some(token));
        let mut feed = self.0.lock().unwrap();
        feed.events.push_back(progress);
        feed.waker.take().inspect(|waker| waker.wake_by_ref());
    }

    // A stub: its events are few.
    fn park(&mut self) {}

    fn status(&self) -> WatchStatus {
        WatchStatus {
            state: WatchState::Live,
            position: MemoryEngine::position_of(&self.1.lock().unwrap()),
        }
    }
}

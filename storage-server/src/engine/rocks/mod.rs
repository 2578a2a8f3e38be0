//! The engine of a single server, on RocksDB.
//!
//! A commit's way: [`RocksSession::commit`] validates it and puts it into the [`queue`]; the [`committer`] evaluates
//! it with its group, writes the group with one synced write, publishes to the feed (which tells the watches) and answers. Reads go to RocksDB
//! directly, from memory on the caller's task, from disk on the read pool. [`layout`] is the disk format, [`open`] judges
//! a data folder, [`sessions`] knows what outlives a socket, [`log`] reads the WAL as the change log, [`catch_up`] does it
//! for all watches that fell behind, [`housekeeper`] does what is done beside requests.

mod catch_up;
mod clock;
mod committer;
mod disk;
mod housekeeper;
mod latest;
mod layout;
mod lease;
mod log;
mod mark;
mod metrics;
mod open;
mod pages;
mod queue;
mod reader;
mod sessions;
mod store;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::registry::Registry;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, Keyspace, Limit, Limits, Outcome, Position,
    Reading, Result, Revision, Scan, ScanItem, ScanOptions, ScanSource, SessionId, Storage,
    StorageError, UnixMillis, Watch, WatchEvent, WatchMode, WatchOptions, WatchStart, planted,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::catch_up::CatchUp;
#[doc(hidden)]
pub use self::clock::TestClock;
use self::committer::{Task, submit};
use self::disk::{Disk, Need};
use self::housekeeper::Alarm;
use self::latest::LatestWatch;
use self::layout::LifetimeRow;
use self::lease::{Leased, Leases};
use self::metrics::Metrics;
pub use self::open::OpenError;
use self::pages::{Pages, RESTS_BYTES_MAX, UNTAKEN_BYTES_MAX};
use self::queue::Queue;
use self::reader::ScanCursor;
use self::sessions::{Handle, SessionState, Sessions, Verdict};
use self::store::{KeyspaceState, Store};
use self::watch::EveryWatch;
use super::{Engine, Resumed, Room, Session, SessionStorage, fingerprint};
use crate::feed::{Feed, FeedCommit};

/// What is read from the log, an index or a scan at a time.
const PAGE_BYTES: usize = Scan::PAGE_BYTES;

/// The principal of the server's own commits: expiry, session clean-up, [`RocksEngine::storage`].
const SERVER: &str = "server";

/// When a commit is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Synced to disk before it is shown or acknowledged: survives power loss. The default.
    #[default]
    Sync,
    /// Handed to the operating system before it is acknowledged, synced in the background every second: survives a crash
    /// of the process. After a power loss the store may have lost its last second, and says so by a new epoch.
    Os,
}

/// How to open a store. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The data folder; made where it is missing.
    pub data: PathBuf,
    /// When a commit is durable.
    pub durability: Durability,
    /// The budget of block cache, blob cache and memtables: half for the cache, of which up to half is for memtables.
    /// Default 512 MiB.
    pub memory_bytes: usize,
    /// Commits that put anything are refused while less than this is free on disk, removals below a quarter of it; below one
    /// and a half of it the change log is dropped, oldest first. Default 512 MiB: two memtables, the log's last files and a
    /// compaction's start.
    pub disk_reserve_bytes: u64,
    /// The change log is kept up to this size. Default 10 GiB.
    pub log_bytes: u64,
    /// And up to this age. Default 24 h.
    pub log_age: Duration,
    /// Recent commits kept in memory for watches. Default 64 MiB.
    pub ring_bytes: usize,
    /// Keyspaces that the mwDB dialect serves, where they are yet to be made. Default `mwdb`.
    pub mwdb_keyspaces: Vec<Keyspace>,
    /// What requests may ask.
    pub limits: Limits,
    /// Open a store that lost synced commits, under a new epoch. Default no.
    pub accept_data_loss: bool,
    /// Fork the history at this start: for a folder that was put back in a way that nothing in it can tell (a snapshot of
    /// the whole machine or volume). Default no.
    pub new_epoch: bool,
    /// Commits that wait for the committer; those of one principal take at most half, or one commit. Default 256 MiB.
    pub commit_queue_bytes: usize,
    /// Reads from disk at once. Default 8.
    pub read_threads: usize,
    /// Table and blob files that RocksDB keeps open at once; up to 64 others (log files, manifest, locks) come beside.
    /// Default 1,024, and never less than 64. The process needs so many descriptors more than its connections.
    pub max_open_files: u32,
    /// Tombstones are kept for this long. Default 7 days.
    pub tombstone_age: Duration,
    /// And so many per keyspace. Default 10 million.
    pub tombstones_max: u64,
    /// Keys of a session stay for so long after its socket was lost (or the server started). Default 60 s. Looked at
    /// each second.
    pub session_grace: Duration,
    /// And the session can be resumed for so long. Default 24 h.
    pub session_kept: Duration,
    /// So many sessions without a socket are kept, and those within their grace. Of more, the longest lost one of the
    /// principal that has the most is forgotten first. Default 100,000.
    pub sessions_kept_max: usize,
    /// The machine's clock, with an offset that tests set.
    #[doc(hidden)]
    pub clock: TestClock,
    /// For measuring what the index by revision costs, and for nothing else: without it `Latest` tells nothing.
    #[doc(hidden)]
    pub danger_without_index: bool,
}

impl EngineOptions {
    /// The defaults, for a data folder.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            durability: Durability::Sync,
            memory_bytes: 512 << 20,
            disk_reserve_bytes: 512 << 20,
            log_bytes: 10 << 30,
            log_age: Duration::from_secs(24 * 3600),
            ring_bytes: 64 << 20,
            mwdb_keyspaces: Keyspace::new("mwdb").into_iter().collect(),
            limits: Limits::default(),
            accept_data_loss: false,
            new_epoch: false,
            commit_queue_bytes: 256 << 20,
            read_threads: 8,
            max_open_files: 1024,
            tombstone_age: Duration::from_secs(7 * 24 * 3600),
            tombstones_max: 10_000_000,
            session_grace: Duration::from_secs(60),
            session_kept: Duration::from_secs(24 * 3600),
            sessions_kept_max: 100_000,
            clock: TestClock::default(),
            danger_without_index: false,
        }
    }
}

/// What the engine's parts share.
#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    queue: Queue,
    feed: Arc<Feed>,
    sessions: Sessions,
    /// Whether what sessions of before the start left is removed.
    old_sessions_ended: AtomicBool,
    catch_up: CatchUp,
    leases: Arc<Leases>,
    alarm: Alarm,
    disk: Disk,
    metrics: Metrics,
    /// A place for each read from disk.
    readers: Arc<Semaphore>,
    /// Places, in KiB, for what the index told open scans.
    scan_rows: Arc<Semaphore>,
    /// A place for each page of a `Latest` watch that is read: fewer, so that other reads find some too.
    passes: Arc<Semaphore>,
    /// Pages that were read for `Latest` watches and not taken yet.
    pages: Arc<Pages<latest::Page>>,
    /// What `Latest` watches that are parked did not take of passes that were read to their end.
    rests: Arc<Pages<VecDeque<WatchEvent>>>,
}

/// What the index told all open scans together, in KiB; a scan that finds no place goes through its whole range.
const SCAN_ROWS_KIB_MAX: usize = 64 << 10;

/// The room of a caller that bounds what it reads itself.
#[derive(Debug)]
struct Unbounded;

impl Room for Unbounded {
    fn take(&self, _: usize) -> bool {
        true
    }

    fn give_back(&self, _: usize) {}
}

/// Ends a task that nobody waits for any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    /// Runs a read that may block on the read pool. One that is dropped before it has a place there is never begun.
    async fn on_pool<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut reading = AbortOnDrop(self.begin_on_pool(read));
        (&mut reading.0).await.unwrap_or_else(read_failed)
    }

    /// The same for what must happen whether its caller waits for it or not.
    async fn on_pool_to_the_end<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.begin_on_pool(work).await.unwrap_or_else(read_failed)
    }

    fn begin_on_pool<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let shared = self.clone();
        // On a task of its own: a place is waited for and given back by the read, never held by a caller that does not
        // look (a parked session, a watch dropped from a `select!`).
        tokio::spawn(async move {
            let place = shared.readers.clone().acquire_owned().await;
            let place = place.map_err(|_| closed())?;
            let read = move || {
                let _place = place;
                read(&shared)
            };
            tokio::task::spawn_blocking(read)
                .await
                .unwrap_or_else(read_failed)
        })
    }

    /// The internal session of a keyspace: its rows never deduplicate.
    fn server_session(&self, keyspace: &Arc<KeyspaceState>) -> Arc<SessionState> {
        let handle = Handle::engine();
        let state = SessionState::new(SessionId([0; 16]), SERVER, keyspace.clone(), handle);
        Arc::new(state)
    }
}

fn read_failed<T>(error: tokio::task::JoinError) -> Result<T> {
    Err(StorageError::Internal {
        message: format!("a read failed: {error}"),
        outcome: Outcome::NotExecuted,
    })
}

fn closed() -> StorageError {
    StorageError::Closed {
        reason: "the store is closed".to_owned(),
        outcome: Outcome::Unknown,
    }
}

/// A store on RocksDB in one data folder. Sessions of it keep it alive; [`RocksEngine::close`] ends it in order.
pub struct RocksEngine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl fmt::Debug for RocksEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksEngine")
            .field("store", &self.shared.store)
            .finish_non_exhaustive()
    }
}

impl RocksEngine {
    /// Opens (or makes) a store and starts its threads. Blocks: recovery reads what the last memtables held.
    ///
    /// # Errors
    /// [`OpenError`]: what is wrong with the folder. Nothing in it was changed then.
    pub fn open(options: EngineOptions) -> Result<Arc<Self>, OpenError> {
        let opened = open::open(&options)?;
        let store = Store::new(opened, options.clone())?;
        // The mark is up to a second older than the last commit, and the wall clock may have been set back.
        match log::last_time(&store) {
            Ok(_) if planted("clock-goes-back") => {}
            Ok(None) => {}
            Ok(Some(time)) => store.clock.was_told(time),
            Err(error) => tracing::warn!(%error, "the time of the last commit cannot be read"),
        }
        let store = Arc::new(store);
        let damaged = |error: StorageError| OpenError::Damaged {
            path: options.data.clone(),
            message: error.to_string(),
        };
        clock::load(&store).map_err(damaged)?;
        // Before the feed, which begins at the store's revision: rows that go take numbers too.
        let sessions = sessions::load(&store).map_err(damaged)?;
        let shared = Arc::new(Shared {
            queue: Queue::new(options.commit_queue_bytes),
            feed: Arc::new(Feed::new(options.ring_bytes, store.revision())),
            sessions,
            old_sessions_ended: AtomicBool::new(false),
            catch_up: CatchUp::default(),
            leases: Arc::default(),
            alarm: Alarm::default(),
            disk: Disk::new(&options),
            metrics: Metrics::default(),
            readers: Arc::new(Semaphore::new(options.read_threads.max(1))),
            scan_rows: Arc::new(Semaphore::new(SCAN_ROWS_KIB_MAX)),
            passes: Arc::new(Semaphore::new((options.read_threads / 2).max(1))),
            pages: Pages::new(UNTAKEN_BYTES_MAX),
            rests: Pages::new(RESTS_BYTES_MAX),
            store,
        });
        refill_ring(&shared);
        let engine = Arc::new(Self {
            shared: shared.clone(),
            threads: Mutex::default(),
        });
        engine.spawn("feed", shared.clone(), run_feed)?;
        engine.spawn("committer", shared.clone(), committer::run)?;
        match housekeeper::end_old_sessions(&shared) {
            // The expirer does it when there is room.
            Ok(()) | Err(StorageError::StorageFull { .. }) => {}
            Err(error) => return Err(damaged(error)),
        }
        engine.spawn("catch-up", shared.clone(), catch_up::run)?;
        engine.serving();
        engine.spawn("housekeeper", shared.clone(), housekeeper::run)?;
        engine.spawn("expirer", shared, housekeeper::run_expiry)?;
        Ok(engine)
    }

    fn spawn(
        &self,
        name: &'static str,
        shared: Arc<Shared>,
        run: fn(&Shared),
    ) -> Result<(), OpenError> {
        let run = move || {
            let poison = shared.clone();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&shared)));
            if outcome.is_err() {
                // What was half done is unknown: no more writes.
                poison.store.poison(&format!("the {name} panicked"));
                poison.queue.close();
                while !poison.queue.take().is_empty() {}
            }
        };
        let thread = thread::Builder::new()
            .name(format!("storage-{name}"))
            .spawn(run);
        let thread = thread.map_err(|source| OpenError::Io {
            action: "start a thread for",
            path: self.shared.store.options.data.clone(),
            source,
        })?;
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
        Ok(())
    }

    /// The engine as the server's own code uses it: principal `server`, never deduplicated.
    #[must_use]
    pub fn storage(&self, keyspace: &Keyspace) -> Arc<RocksSession> {
        let keyspace = self.shared.store.keyspace(keyspace);
        let state = self.shared.server_session(&keyspace);
        RocksSession::new(&self.shared, state, Handle::engine(), false)
    }

    /// The number of a revision's history: see [`Position`].
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.store.position()
    }

    /// Commits what is queued, syncs, marks the store as cleanly closed and stops the threads. Later commits fail; reads
    /// go on while handles live. Blocks. A second call does nothing.
    pub fn close(&self) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if threads.is_empty() {
            return;
        }
        self.shared.queue.close();
        self.shared.alarm.stop();
        self.shared.catch_up.stop();
        for thread in threads {
            // A panic of it was caught, told and poisoned the store.
            let _ = thread.join();
        }
        if let Err(error) = self.shared.store.db.flush_wal(true) {
            self.shared
                .store
                .poison(&format!("sync of the log: {error}"));
        }
        housekeeper::write_mark(&self.shared, true);
    }

    /// Takes all snapshots back that scans and watches have on loan, as if their 30 s were over. For tests and tools.
    pub fn expire_snapshots(&self) {
        self.shared
            .leases
            .expire(std::time::Instant::now() + lease::LEASE);
    }

    /// Forgets the tombstones that are over age or number now, instead of within ten minutes. Blocks; for tests and
    /// tools.
    ///
    /// # Errors
    /// As a commit's.
    pub fn forget_tombstones(&self, keyspace: &Keyspace) -> Result<()> {
        let keyspace = self.shared.store.keyspace(keyspace);
        while housekeeper::forget_of(&self.shared, &keyspace)? {}
        Ok(())
    }
}

impl Drop for RocksEngine {
    fn drop(&mut self) {
        self.close();
    }
}

/// The feed's thread. Should it panic, watches are to come to what is committed all the same, and it to what is published
/// until the committer ends; no more writes then, as after any panic.
fn run_feed(shared: &Shared) {
    let telling = std::panic::AssertUnwindSafe(|| shared.feed.run());
    if std::panic::catch_unwind(telling).is_err() {
        shared.store.poison("the feed panicked");
        shared.feed.run_untold();
    }
}

/// What of the ring's bytes is looked for in the log at the start, in numbers: bounds the time it takes.
const REFILL_NUMBERS: u64 = 100_000;

fn refill_ring(shared: &Shared) {
    let store = &shared.store;
    let last = store.revision();
    let recent = Revision(last.0.saturating_sub(REFILL_NUMBERS));
    let floor = log::oldest(store).map(|oldest| oldest.max(recent));
    if let Err(error) = floor.and_then(|floor| refill_from(shared, floor)) {
        // The ring begins empty then; the log says so again to who asks for it.
        tracing::warn!(%error, "recent commits cannot be read from the log");
        shared.feed.restart(last);
    }
}

/// Page by page, so that no more is held than the ring takes.
fn refill_from(shared: &Shared, floor: Revision) -> Result<()> {
    let keyspaces = shared.store.keyspaces().into_iter();
    let names: HashMap<_, _> = keyspaces
        .filter_map(|keyspace| Some((keyspace.id()?, keyspace.name.clone())))
        .collect();
    let mut reached = floor;
    shared.feed.restart(floor);
    while reached < shared.store.revision() {
        let page = log::read_after(&shared.store, reached, 4 << 20)?;
        reached = page.reached();
        shared.feed.refill(
            page.into_commits()
                .into_iter()
                .skip(usize::from(planted("refill-late")))
                .filter_map(|(id, record)| {
                    let keyspace = names.get(&id)?.clone();
                    Some(FeedCommit { keyspace, record })
                }),
        );
    }
    Ok(())
}

#[async_trait]
impl Engine for RocksEngine {
    fn open_session(&self, principal: &str, keyspace: &Keyspace) -> Arc<dyn Session> {
        let shared = &self.shared;
        let (state, handle) = shared.sessions.open(&shared.store, principal, keyspace);
        RocksSession::new(shared, state, handle, false)
    }

    async fn resume_session(
        &self,
        principal: &str,
        keyspace: &Keyspace,
        id: SessionId,
        incarnation: u64,
    ) -> Result<Resumed> {
        let shared = &self.shared;
        let found = shared.sessions.find(&shared.store, id, principal, keyspace);
        let Some(state) = found else {
            return Ok(Resumed::Gone);
        };
        if !state.is_loaded() {
            let state = state.clone();
            shared
                .on_pool(move |shared| sessions::read_executed(&shared.store, &state))
                .await?;
        }
        let handle = shared.sessions.handle();
        let verdict = Arc::new(OnceLock::new());
        let task = Task::Attach {
            handle: handle.clone(),
            incarnation,
            verdict: verdict.clone(),
        };
        let answer = submit(&shared.queue, &state, handle.number, task, 64)?;
        // Before the wait: who gives it up must not leave a session that nobody has and nobody lost.
        let attached = RocksSession::new(shared, state, handle, true);
        answer.await.map_err(|_| closed())??;
        Ok(match verdict.get() {
            Some(Verdict::Attached) => Resumed::Session(attached),
            Some(Verdict::Fenced) => Resumed::Fenced,
            Some(Verdict::Gone) | None => Resumed::Gone,
        })
    }

    fn position(&self) -> Position {
        self.position()
    }

    fn serving(&self) {
        // All that is lost now was lost before the start, which may have taken longer than the grace.
        if !planted("grace-before-listening") {
            let now = self.shared.store.now();
            let sessions = &self.shared.sessions;
            sessions.count_lost_from(UnixMillis::ZERO, now);
        }
    }

    fn check_writable(&self) -> Result<(), String> {
        let store = &self.shared.store;
        store.check_poison().map_err(|error| error.to_string())?;
        self.shared
            .disk
            .check(Need::Any, 0)
            .map_err(|error| error.to_string())
    }

    fn register_metrics(&self, registry: &mut Registry) {
        metrics::register(&self.shared, registry);
    }
}

/// A session's handle to one keyspace.
#[derive(Debug)]
pub struct RocksSession {
    shared: Arc<Shared>,
    state: Arc<SessionState>,
    handle: Handle,
    /// What is left of it when the handle goes is to be kept: it was resumed, or has numbered commits.
    outlives: AtomicBool,
    /// A place for each open scan and each watch of the session.
    scans: Arc<Semaphore>,
    watches: Arc<Semaphore>,
}

impl Drop for RocksSession {
    fn drop(&mut self) {
        self.lose();
    }
}

/// A place in one of the session's bounds, or the error that names it.
fn take_place(places: &Arc<Semaphore>, limit: Limit, max: usize) -> Result<OwnedSemaphorePermit> {
    let full = |_| StorageError::Overloaded {
        limit,
        max: max as u64,
    };
    places.clone().try_acquire_owned().map_err(full)
}

impl RocksSession {
    fn new(
        shared: &Arc<Shared>,
        state: Arc<SessionState>,
        handle: Handle,
        outlives: bool,
    ) -> Arc<Self> {
        let limits = &shared.store.options.limits;
        let places = |max: usize| Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self {
            shared: shared.clone(),
            state,
            handle,
            outlives: outlives.into(),
            scans: places(limits.scans_max),
            watches: places(limits.watches_max),
        })
    }

    /// Puts a task of this handle into the queue.
    fn queue(&self, task: Task, bytes: usize) -> Result<oneshot::Receiver<Result<Position>>> {
        let queue = &self.shared.queue;
        submit(queue, &self.state, self.handle.number, task, bytes)
    }

    /// The limits that hold in this keyspace: an mwDB keyspace takes whole graph saves.
    fn own_limits(&self) -> Limits {
        let limits = self.shared.store.options.limits.clone();
        if !self.state.keyspace.serves_mwdb() {
            return limits;
        }
        let keys = Limits::MWDB_KEYS;
        Limits {
            keys_per_get_max: keys,
            operations_per_commit_max: keys,
            ..limits
        }
    }

    fn check_keys(&self, keys: &[Key]) -> Result<()> {
        let limits = self.own_limits();
        if keys.len() > limits.keys_per_get_max {
            return Err(StorageError::limit(
                Limit::KeysPerGet,
                keys.len(),
                limits.keys_per_get_max,
            ));
        }
        match keys.iter().map(Key::len).max() {
            Some(longest) if longest > limits.key_bytes_max => Err(StorageError::limit(
                Limit::Key,
                longest,
                limits.key_bytes_max,
            )),
            _ => Ok(()),
        }
    }

    async fn submit(
        &self,
        number: Option<u64>,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        // A number that was executed (or refused) before is answered with that, whatever holds now.
        if let Some(number) = number
            && number <= self.state.executed.load(Ordering::Acquire)
        {
            return self
                .repeat(number, Some(fingerprint(&batch, &options)))
                .await;
        }
        let validate = || batch.validate(&options, &self.own_limits());
        if batch.checks.len() + batch.operations.len() > VALIDATE_INLINE {
            off_the_worker(validate)?;
        } else {
            validate()?;
        }
        self.shared.store.check_poison()?;
        let need = Need::of(&batch);
        self.shared.disk.check(need, 0)?;
        let fingerprint = number.map(|_| fingerprint(&batch, &options));
        let answer = {
            // Ordering: the number is taken and the work queued in one go, so that numbers are queued in order.
            let is_server = self.state.principal.as_ref() == SERVER;
            let number = match number {
                Some(number) => number,
                None if is_server => 0,
                None => self.state.numbered.fetch_add(1, Ordering::AcqRel) + 1,
            };
            let bytes = batch.bytes();
            let task = Task::Commit {
                number,
                fingerprint,
                batch,
                options,
            };
            self.queue(task, bytes)?
        };
        answer.await.map_err(|_| closed())?
    }

    /// Asks for the answer of a number that is not above the highest executed one.
    async fn repeat(&self, number: u64, fingerprint: Option<u64>) -> Result<Position> {
        let task = Task::Repeat {
            number,
            fingerprint,
        };
        // A queue that does not take it is closed: not executed by this one, but it was, or may have been, before.
        let answer = self.queue(task, 64).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// The revision that a watch or a scan asks from.
    fn resolve(&self, position: Position) -> Result<Revision> {
        self.shared.store.resolve(position)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Storage for RocksSession {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        self.get_into(keys, Arc::new(Unbounded)).await
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        self.scan_into(range, options, Arc::new(Unbounded)).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        self.submit(None, batch, options).await
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        let limits = &self.shared.store.options.limits;
        range.check_bounds(limits.key_bytes_max)?;
        let place = take_place(&self.watches, Limit::Watches, limits.watches_max)?;
        let keyspace = self.state.keyspace.clone();
        // Before it was made there is nothing of it to tell. Ordering: the revision first; see `get`.
        let present = self.shared.store.revision();
        let made = keyspace.row().map_or(present, |row| row.made);
        let every = options.mode == WatchMode::Every;
        let after = match options.start {
            WatchStart::Now => None,
            WatchStart::Beginning => Some(if every { made } else { Revision::ZERO }),
            WatchStart::After(position) => Some(self.resolve(position)?),
        };
        let from = after.map(|after| if every { after.max(made) } else { after });
        let (subscription, begun) = self.shared.feed.subscribe(&keyspace.name, range, from);
        // Ordering: attached first. A position that the ring holds now is in the log when it leaves the ring; one that it
        // does not hold is looked for from here on, so nothing can be purged between a look and the attaching.
        if let Some(after) = subscription.needs_log().filter(|_| every) {
            self.shared.catch_up.page_after(after).await?;
        }
        let start = self.shared.store.at(after.unwrap_or(begun));
        let shared = self.shared.clone();
        let source: Box<dyn storage_protocol::WatchSource> = match options.mode {
            WatchMode::Every => Box::new(EveryWatch::new(
                shared,
                keyspace,
                subscription,
                start.revision,
                place,
            )),
            WatchMode::Latest { min_interval } => {
                let fresh =
                    options.start == WatchStart::Beginning || start.revision == Revision::ZERO;
                Box::new(LatestWatch::new(
                    shared,
                    keyspace,
                    subscription,
                    begun,
                    fresh,
                    min_interval,
                    place,
                ))
            }
        };
        Ok(Watch::new(start, source))
    }

    async fn limits(&self) -> Result<Limits> {
        Ok(self.own_limits())
    }
}

/// A batch of more checks and operations (only an mwDB keyspace takes one by default) is validated while others have the
/// runtime's worker: a million keys are half a second.
const VALIDATE_INLINE: usize = 20_000;

/// Runs what takes long where it is, so that the order of commits stays, and lets others have the runtime's worker.
#[expect(
    clippy::disallowed_methods,
    reason = "it computes and waits for nothing; in the pool it would lose its place among the session's commits"
)]
fn off_the_worker<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // There is one thread, in tests.
        _ => work(),
    }
}

/// A get of more keys goes to the pool: 100 keys are about 200 us (performance notes), which others would wait for.
const READ_INLINE_KEYS: usize = 100;

#[async_trait]
impl Session for RocksSession {
    fn id(&self) -> SessionId {
        self.state.id
    }

    fn storage(self: Arc<Self>) -> Arc<dyn SessionStorage> {
        self
    }

    fn executed(&self) -> u64 {
        self.state.executed.load(Ordering::Acquire)
    }

    fn lapsed(&self) -> bool {
        self.state.is_lapsed() && !planted("lapse-not-told")
    }

    fn heed(&self) {
        if self.state.is_lapsed() {
            // A queue that is closed is that of a store which is: the client is told again then.
            let _ = self.queue(Task::Heed, 64);
        }
    }

    fn fenced(&self) -> CancellationToken {
        self.handle.fence.clone()
    }

    fn lose(&self) {
        if self.outlives.swap(false, Ordering::AcqRel) {
            // A queue that is closed is that of a store which is: at its next start all sessions count as lost.
            let _ = self.queue(Task::Lose, 64);
        }
    }

    async fn end(&self) -> Result<()> {
        // First no more commits, then what they left: the look at the keys finds everything that was let in.
        let answer = self.queue(Task::End, 64)?;
        self.outlives.store(false, Ordering::Release);
        answer.await.map_err(|_| closed())??;
        if !self.state.has_ended() {
            return Ok(());
        }
        let prefix = LifetimeRow::session_prefix(self.state.id);
        let all = |_| Some(Revision(u64::MAX));
        self.shared
            .on_pool_to_the_end(move |shared| housekeeper::end_sessions(shared, &prefix, all))
            .await
    }
}

#[async_trait]
impl SessionStorage for RocksSession {
    fn position(&self) -> Position {
        self.shared.store.position()
    }

    async fn get_into(
        &self,
        keys: &[Key],
        room: Arc<dyn Room>,
    ) -> Result<Reading<Vec<Option<Entry>>>> {
        self.check_keys(keys)?;
        let store = &self.shared.store;
        // Ordering: the position first. A keyspace is known before its first commit can be read, so one that is not known
        // after the look at the position had nothing then.
        let position = store.position();
        let Some(id) = self.state.keyspace.id() else {
            let value = vec![None; keys.len()];
            return Ok(Reading { position, value });
        };
        if keys.len() <= READ_INLINE_KEYS
            && let Ok(read) = reader::get_in_memory(store, id, keys, &*room)
            && let Some(reading) = read?
        {
            return Ok(reading);
        }
        let keys = keys.to_vec();
        self.shared
            .on_pool(move |shared| reader::get(&shared.store, id, &keys, &*room))
            .await
    }

    async fn scan_into(
        &self,
        range: KeyRange,
        options: ScanOptions,
        room: Arc<dyn Room>,
    ) -> Result<Scan> {
        let limits = &self.shared.store.options.limits;
        range.check_bounds(limits.key_bytes_max)?;
        let place = take_place(&self.scans, Limit::Scans, limits.scans_max)?;
        let newer_than = options
            .newer_than
            .map(|position| self.resolve(position))
            .transpose()?;
        let keyspace = self.state.keyspace.clone();
        let begin = move |shared: &Shared| {
            let snapshot = shared.leases.lend(&shared.store);
            // Ordering: after the snapshot; see the watches.
            let horizon = keyspace.horizon();
            if newer_than.is_some_and(|revision| revision < horizon) {
                return Err(StorageError::Compacted { oldest: horizon });
            }
            let Some(id) = keyspace.id() else {
                return Ok((snapshot, None));
            };
            let mut cursor = ScanCursor::new(id, &range, options, newer_than);
            snapshot.read(|snapshot| cursor.ask_index(snapshot, id, &shared.scan_rows))?;
            Ok((snapshot, Some(cursor)))
        };
        let (snapshot, cursor) = self.shared.on_pool(begin).await?;
        let position = self.shared.store.at(snapshot.revision());
        let shared = self.shared.clone();
        Ok(Scan::new(
            position,
            Box::new(RocksScan {
                shared,
                state: cursor.map(|cursor| (snapshot, cursor)),
                failure: None,
                place: Some(place),
                room,
            }),
        ))
    }

    async fn commit_numbered(
        &self,
        number: u64,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        self.outlives.store(true, Ordering::Release);
        self.submit(Some(number), batch, options).await
    }

    async fn repeat_numbered(&self, number: u64, fingerprint: Option<u64>) -> Result<Position> {
        self.outlives.store(true, Ordering::Release);
        self.repeat(number, fingerprint).await
    }
}

/// The pages of a scan.
struct RocksScan {
    shared: Arc<Shared>,
    /// `None` when it is over, or a page is read.
    state: Option<(Leased, ScanCursor)>,
    /// Set while a page is read, and left set where it did not come: what follows would have a hole.
    failure: Option<StorageError>,
    place: Option<OwnedSemaphorePermit>,
    /// Where its pages are counted.
    room: Arc<dyn Room>,
}

#[async_trait]
impl ScanSource for RocksScan {
    async fn next_page(&mut self) -> Result<Option<Vec<ScanItem>>> {
        if let Some(failure) = &self.failure
            && !planted("scan-ends-in-silence")
        {
            return Err(failure.clone());
        }
        let Some((snapshot, mut cursor)) = self.state.take() else {
            return Ok(None);
        };
        self.failure = Some(StorageError::invalid(
            "an earlier call for the next page was dropped, so that page is lost: start the scan again",
        ));
        let room = self.room.clone();
        let read = move |shared: &Shared| {
            let snapshot = if planted("scan-pages-drift") {
                shared.leases.lend(&shared.store)
            } else {
                snapshot
            };
            let page = snapshot.read(|snapshot| cursor.next_page(snapshot, PAGE_BYTES, &*room));
            Ok((page, snapshot, cursor))
        };
        let read = self.shared.on_pool(read).await;
        self.failure = read.as_ref().err().cloned();
        let (page, snapshot, cursor) = read?;
        let no_room = |error: &StorageError| {
            let limit = Limit::Outbox;
            matches!(error, StorageError::Overloaded { limit: of, .. } if *of == limit)
        };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                if no_room(&error) {
                    self.state = Some((snapshot, cursor));
                } else {
                    self.failure = Some(error.clone());
                }
                return Err(error);
            }
        };
        if page.is_empty() {
            self.place = None;
            return Ok(None);
        }
        if cursor.is_over() {
            self.place = None;
        } else {
            self.state = Some((snapshot, cursor));
        }
        Ok(Some(page))
    }

    fn is_over(&self) -> bool {
        self.state.is_none() && self.failure.is_none()
    }
}

#[cfg(test)]
mod tests;

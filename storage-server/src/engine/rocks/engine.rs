//! [`RocksEngine`]: opening a store, its threads, and its end.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use async_trait::async_trait;
use prometheus_client::registry::Registry;
use storage_protocol::{Keyspace, Position, Result, Revision, SessionId, StorageError, UnixMillis};
use tokio::sync::Semaphore;

use super::disk::{Disk, Need};
use super::metrics::Metrics;
use super::options::EngineOptions;
use super::session::RocksSession;
use crate::engine::rocks::commit::{Queue, Taken, Task, submit};
use crate::engine::rocks::housekeeping::{
    ExpiryTimer, end_old_sessions, forget_of, write_synced_file,
};
use crate::engine::rocks::log::{CatchUp, catch_up};
use crate::engine::rocks::open::OpenError;
use crate::engine::rocks::sessions::{Handle, Verdict};
use crate::engine::rocks::store::Store;
use crate::engine::rocks::watch::{Pages, RESTS_BYTES_MAX, UNTAKEN_BYTES_MAX};
use crate::engine::rocks::{
    EngineShared, clock, closed, commit, housekeeping, log, metrics, open, sessions,
};
use crate::engine::{Engine, Resumed, SNAPSHOT_IDLE_MAX, Session, StoredLimits, Usage};
use crate::feed::{Feed, FeedCommit};

/// What the index told all open scans together, in KiB; a scan that finds no place goes through its whole range.
const SCAN_ROWS_KIB_MAX: usize = 64 << 10;

/// A store on RocksDB in one data folder. Sessions of it keep it alive; [`RocksEngine::close`] ends it in order.
pub struct RocksEngine {
    pub(super) shared: Arc<EngineShared>,
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
        // `SYNCED` is up to a second older than the last commit, and the wall clock may have been set back.
        match log::last_time(&store) {
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
        // Before the feed, which begins at the store's revision: these rows, and those that go, take numbers too.
        store.load_usage().map_err(damaged)?;
        let sessions = sessions::load(&store).map_err(damaged)?;
        let shared = Arc::new(EngineShared {
            queue: Queue::new(options.commit_queue_bytes),
            feed: Arc::new(Feed::new(options.ring_bytes, store.revision())),
            sessions,
            old_sessions_ended: AtomicBool::new(false),
            catch_up: CatchUp::default(),
            replaced_left: AtomicBool::new(false),
            snapshots: Arc::default(),
            expiry_timer: ExpiryTimer::default(),
            disk: Disk::new(&options),
            stored_limits: RwLock::default(),
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
        engine.spawn("committer", shared.clone(), commit::run)?;
        match end_old_sessions(&shared) {
            // The expirer does it when there is room.
            Ok(()) | Err(StorageError::StorageFull { .. }) => {}
            Err(error) => return Err(damaged(error)),
        }
        engine.spawn("catch-up", shared.clone(), catch_up::run)?;
        engine.serving();
        engine.spawn("housekeeper", shared.clone(), housekeeping::run_housekeeper)?;
        engine.spawn("expirer", shared, housekeeping::run_expirer)?;
        Ok(engine)
    }

    fn spawn(
        &self,
        name: &'static str,
        shared: Arc<EngineShared>,
        run: fn(&EngineShared),
    ) -> Result<(), OpenError> {
        let run = move || {
            let poison = shared.clone();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&shared)));
            if outcome.is_err() {
                // What was half done is unknown: no more writes.
                poison.store.poison(&format!("the {name} panicked"));
                poison.queue.close();
                while poison.queue.wait() {
                    let mut all = Taken::new(Instant::now(), Duration::ZERO);
                    drop(poison.queue.take_share(&mut all));
                }
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

    /// The present position: epoch, and last revision.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.store.position()
    }

    /// Commits what is queued, syncs, marks the store as cleanly closed and stops the threads. Later commits fail;
    /// reads go on while handles live. Blocks. A second call does nothing.
    pub fn close(&self) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if threads.is_empty() {
            return;
        }
        self.shared.queue.close();
        self.shared.expiry_timer.stop();
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
        write_synced_file(&self.shared, true);
    }

    /// Releases all snapshots that scans and watches have pinned, as if their 30 s were over. For tests and tools.
    pub fn expire_snapshots(&self) {
        self.shared
            .snapshots
            .expire(Instant::now() + SNAPSHOT_IDLE_MAX);
    }

    /// Forgets the tombstones that are over age or number now, instead of within ten minutes. Blocks; for tests and
    /// tools.
    ///
    /// # Errors
    /// As a commit's.
    pub fn forget_tombstones(&self, keyspace: &Keyspace) -> Result<()> {
        let keyspace = self.shared.store.keyspace(keyspace);
        while forget_of(&self.shared, &keyspace)? {}
        Ok(())
    }
}

impl Drop for RocksEngine {
    fn drop(&mut self) {
        self.close();
    }
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
        generation: u64,
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
            generation,
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

    fn has_keyspace(&self, keyspace: &Keyspace) -> bool {
        self.shared.store.has_keyspace(keyspace)
    }

    fn usage(&self, keyspace: &Keyspace) -> Result<Usage> {
        let keyspace = self.shared.store.known_keyspace(keyspace);
        Ok(keyspace.map_or_else(Usage::default, |keyspace| keyspace.usage()))
    }

    fn set_stored_limits(&self, limits: Arc<dyn StoredLimits>) {
        let set = self.shared.stored_limits.write();
        *set.unwrap_or_else(PoisonError::into_inner) = Some(limits);
    }

    fn serving(&self) {
        // All that is lost now was lost before the start, which may have taken longer than the grace.
        let now = self.shared.store.now();
        let sessions = &self.shared.sessions;
        sessions.count_lost_from(UnixMillis::ZERO, now);
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

/// The feed's thread. Should it panic, watches are to come to what is committed all the same, and it to what is
/// published until the committer ends; no more writes then, as after any panic.
fn run_feed(shared: &EngineShared) {
    let delivering = std::panic::AssertUnwindSafe(|| shared.feed.run());
    if std::panic::catch_unwind(delivering).is_err() {
        shared.store.poison("the feed panicked");
        shared.feed.run_undelivered();
    }
}

/// At the start the ring is refilled from at most this many of the log's last sequence numbers: this bounds the time.
const REFILL_NUMBERS: u64 = 100_000;

fn refill_ring(shared: &EngineShared) {
    let store = &shared.store;
    let last = store.revision();
    let recent = Revision(last.0.saturating_sub(REFILL_NUMBERS));
    let floor = log::oldest(store).map(|oldest| oldest.max(recent));
    if let Err(error) = floor.and_then(|floor| refill_from(shared, floor)) {
        // The ring begins empty then; a watch that reads the log gets the error again.
        tracing::warn!(%error, "recent commits cannot be read from the log");
        shared.feed.restart(last);
    }
}

/// Refills the ring page by page, so that no more is held than the ring takes.
fn refill_from(shared: &EngineShared, floor: Revision) -> Result<()> {
    let keyspaces = shared.store.keyspaces().into_iter();
    let names: HashMap<_, _> = keyspaces
        .filter_map(|keyspace| Some((keyspace.id()?, keyspace.name.clone())))
        .collect();
    let mut reached = floor;
    shared.feed.restart(floor);
    while reached < shared.store.revision() {
        let page = log::read_after(&shared.store, reached, 4 << 20)?;
        reached = page.reached();
        shared
            .feed
            .refill(page.into_commits().into_iter().filter_map(|(id, record)| {
                let keyspace = names.get(&id)?.clone();
                Some(FeedCommit { keyspace, record })
            }));
    }
    Ok(())
}

//! [`RocksSession`]: one session as a gateway holds it, and what it reads and writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, Limit, Limits, Position, Reading, Result, Revision,
    Scan, ScanOptions, SessionId, Storage, StorageError, Watch, WatchMode, WatchOptions,
    WatchStart, begin_commit,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::disk::Need;
use crate::engine::rocks::commit::{Task, compact, submit};
use crate::engine::rocks::housekeeping::end_sessions;
use crate::engine::rocks::layout::LifetimeRow;
use crate::engine::rocks::read::{RocksScan, ScanCursor, get, get_in_memory};
use crate::engine::rocks::sessions::{Handle, SessionState};
use crate::engine::rocks::watch::{EveryWatch, LatestWatch};
use crate::engine::rocks::{EngineShared, SERVER, closed};
use crate::engine::{Room, Session, SessionStorage, Unbounded, fingerprint};

/// A session's handle to one keyspace.
#[derive(Debug)]
pub struct RocksSession {
    shared: Arc<EngineShared>,
    state: Arc<SessionState>,
    handle: Handle,
    /// The session can be resumed (it was resumed before, or has numbered commits): when the handle is dropped, the
    /// session is detached and not ended.
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
    pub(super) fn new(
        shared: &Arc<EngineShared>,
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

    /// The limits that hold in this keyspace.
    fn own_limits(&self) -> Limits {
        let limits = self.shared.store.options.limits.clone();
        match self.state.keyspace.rules().items_max {
            None => limits,
            Some(items) => Limits {
                keys_per_get_max: items.get() as usize,
                operations_per_commit_max: items.get() as usize,
                ..limits
            },
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
        mut batch: Batch,
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
        let bytes = batch.bytes();
        let is_long = batch.checks.len() + batch.operations.len() > PREPARE_INLINE;
        let mut prepare = || -> Result<()> {
            batch.validate(&options, &self.own_limits())?;
            compact(&mut batch, bytes);
            Ok(())
        };
        if is_long {
            off_the_worker(prepare)?;
        } else {
            prepare()?;
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
        self.scan_into(vec![range], options, Arc::new(Unbounded))
            .await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        self.submit(None, batch, options).await
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        begin_commit(self, batch, options);
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
        // Ordering: attached first. A position that the ring holds now is in the log when it leaves the ring; one that
        // it does not hold is looked for from here on, so nothing can be purged between a look and the attaching.
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

/// A batch of more checks and operations (only an mwDB keyspace takes one by default) is validated, and copied, while
/// others have the runtime's worker: a million keys are half a second.
const PREPARE_INLINE: usize = 20_000;

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

/// A get of more keys goes to the pool: 100 keys take about 200 us, for which others would wait.
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

    fn keys_expired(&self) -> bool {
        self.state.has_expired_keys()
    }

    fn acknowledge_expiry(&self) {
        if self.state.has_expired_keys() {
            // A queue that is closed is that of a store which is: the client is told again then.
            let _ = self.queue(Task::Acknowledge, 64);
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

    fn revoke(&self) {
        self.handle.fence.cancel();
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
            .on_pool_to_the_end(move |shared| end_sessions(shared, &prefix, all))
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
        // Ordering: the position first. A keyspace is known before its first commit can be read, so one that is not
        // known after the look at the position had nothing then.
        let position = store.position();
        let Some(id) = self.state.keyspace.id() else {
            let value = vec![None; keys.len()];
            return Ok(Reading { position, value });
        };
        if keys.len() <= READ_INLINE_KEYS
            && let Ok(read) = get_in_memory(store, id, keys, &*room)
            && let Some(reading) = read?
        {
            return Ok(reading);
        }
        let keys = keys.to_vec();
        self.shared
            .on_pool(move |shared| get(&shared.store, id, &keys, &*room))
            .await
    }

    async fn scan_into(
        &self,
        ranges: Vec<KeyRange>,
        options: ScanOptions,
        room: Arc<dyn Room>,
    ) -> Result<Scan> {
        let limits = &self.shared.store.options.limits;
        for range in &ranges {
            range.check_bounds(limits.key_bytes_max)?;
        }
        let place = take_place(&self.scans, Limit::Scans, limits.scans_max)?;
        let newer_than = options
            .newer_than
            .map(|position| self.resolve(position))
            .transpose()?;
        let keyspace = self.state.keyspace.clone();
        let begin = move |shared: &EngineShared| {
            let snapshot = shared.snapshots.pin(&shared.store);
            // Ordering: after the snapshot; see the watches.
            let compacted = keyspace.compacted();
            if newer_than.is_some_and(|revision| revision < compacted) {
                return Err(StorageError::Compacted { oldest: compacted });
            }
            let Some(id) = keyspace.id() else {
                return Ok((snapshot, None));
            };
            let mut cursor = ScanCursor::new(id, &ranges, options, newer_than);
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

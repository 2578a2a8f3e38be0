//! For tests: a storage in memory that counts its reads, and fails when it is to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, Keyspace, Limit, Limits, Position, Reading, Result,
    Scan, ScanOptions, Storage, StorageError, Watch, WatchOptions, WatchStart,
};

use crate::gateway::ServerHandle;
use crate::testing::{KEYSPACE, MemoryEngine, server};

/// See the module.
#[derive(Debug)]
pub(super) struct Faulty {
    inner: Arc<dyn Storage>,
    reads: AtomicU64,
    fails: AtomicBool,
    /// The read with this number fails, from 1 on.
    fails_at: AtomicU64,
    is_set_back: AtomicBool,
}

impl Faulty {
    /// One of its own.
    pub(super) fn new() -> Arc<Self> {
        let shared = server(&MemoryEngine::new(), |_| {});
        let keyspace = Keyspace::new(KEYSPACE).unwrap();
        Self::over(ServerHandle::new(&shared).own_storage(&keyspace))
    }

    /// One that is another one but for its faults.
    pub(super) fn over(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            reads: AtomicU64::new(0),
            fails: AtomicBool::new(false),
            fails_at: AtomicU64::new(0),
            is_set_back: AtomicBool::new(false),
        })
    }

    /// How often it was asked for entries.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Lets reads fail from now on, or not.
    pub(super) fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }

    /// Lets one read fail: the first after so many.
    pub(super) fn fail_once_after(&self, reads: u64) {
        let at = self.reads() + reads + 1;
        self.fails_at.store(at, Ordering::Relaxed);
    }

    /// Its history is another one than before from now on.
    pub(super) fn set_back(&self) {
        self.is_set_back.store(true, Ordering::Relaxed);
    }

    pub(super) async fn set(&self, key: &str, value: &str) -> Position {
        let batch = Batch::new().put(key.to_owned(), value.to_owned());
        self.commit(batch, CommitOptions::default()).await.unwrap()
    }

    fn read(&self) -> Result<()> {
        let number = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
        let fails = self.fails.load(Ordering::Relaxed);
        match fails || number == self.fails_at.load(Ordering::Relaxed) {
            true => Err(StorageError::Overloaded {
                limit: Limit::Outbox,
                max: 0,
            }),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Storage for Faulty {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        self.read()?;
        // So that those who ask at once are there at once.
        tokio::task::yield_now().await;
        self.inner.get(keys).await
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        self.read()?;
        tokio::task::yield_now().await;
        self.inner.scan(range, options).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        self.inner.commit(batch, options).await
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        self.inner.commit_unattended(batch, options);
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        match options.start {
            WatchStart::After(position) if self.is_set_back.load(Ordering::Relaxed) => {
                Err(StorageError::Compacted {
                    oldest: position.revision,
                })
            }
            _ => self.inner.watch(range, options).await,
        }
    }

    async fn limits(&self) -> Result<Limits> {
        self.inner.limits().await
    }
}

//! The storage that a gateway holds of a keyspace: a session that ends with it.

use std::sync::Arc;

use async_trait::async_trait;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, Limits, Position, Reading, Result, Scan,
    ScanOptions, Storage, StorageError, Watch, WatchOptions, begin_commit,
};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::{KeyspacePlace, Shared};
use crate::engine::{Session, SessionStorage};
use crate::metrics::Metrics;

/// See the module.
#[derive(Debug)]
pub(super) struct GatewayStorage {
    session: Arc<dyn Session>,
    storage: Arc<dyn SessionStorage>,
    /// Given back when the session has ended.
    place: Option<KeyspacePlace>,
    metrics: Arc<Metrics>,
    /// Of the server: a shutdown waits for the end of the session.
    tasks: TaskTracker,
}

impl GatewayStorage {
    pub(super) fn new(session: Arc<dyn Session>, place: KeyspacePlace, shared: &Shared) -> Self {
        let storage = session.clone().storage();
        Self {
            session,
            storage,
            place: Some(place),
            metrics: shared.metrics.clone(),
            tasks: shared.tasks.clone(),
        }
    }

    /// Counts what a quota refused.
    fn counted<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| self.metrics.quota_refused(error))
    }
}

/// What a gateway holds where no session may be opened: each call fails by this.
#[derive(Debug)]
pub(super) struct Refused(pub(super) StorageError);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Storage for Refused {
    async fn get(&self, _: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        Err(self.0.clone())
    }

    async fn scan(&self, _: KeyRange, _: ScanOptions) -> Result<Scan> {
        Err(self.0.clone())
    }

    async fn commit(&self, _: Batch, _: CommitOptions) -> Result<Position> {
        Err(self.0.clone())
    }

    fn commit_unattended(&self, _: Batch, _: CommitOptions) {}

    async fn watch(&self, _: KeyRange, _: WatchOptions) -> Result<Watch> {
        Err(self.0.clone())
    }

    async fn limits(&self) -> Result<Limits> {
        Err(self.0.clone())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Storage for GatewayStorage {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        self.storage.get(keys).await
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        self.storage.scan(range, options).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        self.counted(self.storage.commit(batch, options).await)
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        begin_commit(self, batch, options);
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        self.counted(self.storage.watch(range, options).await)
    }

    async fn limits(&self) -> Result<Limits> {
        self.storage.limits().await
    }
}

impl Drop for GatewayStorage {
    fn drop(&mut self) {
        let (session, place) = (self.session.clone(), self.place.take());
        let ending = async move {
            let _place = place;
            if let Err(error) = session.end().await {
                tracing::warn!(%error, "cannot end the session of a gateway");
            }
        };
        // Outside of a runtime its rows stay until the next start.
        if let Ok(runtime) = Handle::try_current() {
            self.tasks.spawn_on(ending, &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use storage_protocol::{Keyspace, Lifetime, StorageExt};

    use crate::auth::{Identity, Principal};
    use crate::shared::ServerHandle;
    use crate::testing::{KEYSPACE, MemoryEngine, server};

    use super::*;

    #[tokio::test]
    async fn what_lives_as_long_as_its_session_goes_with_the_last_handle() {
        let shared = server(&MemoryEngine::new(), |_| {});
        let server = ServerHandle::new(&shared);
        let user = Identity::vouched(Principal::user("ann").unwrap());
        let keyspace = Keyspace::new(KEYSPACE);
        let keyspace = keyspace.unwrap();
        let storage = server.storage_as(&user, &keyspace);
        let batch = Batch::new().put_with("here", "1", Lifetime::Session);
        storage
            .commit(batch, CommitOptions::default())
            .await
            .unwrap();
        let (again, reader) = (storage.clone(), server.storage_as(&user, &keyspace));
        drop(storage);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let is_there = async || reader.get_one("here".into()).await.unwrap().is_some();
        assert!(is_there().await, "one handle is left");
        drop(again);
        let gone = async {
            while is_there().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone)
            .await
            .unwrap();
        // And a shutdown waits for what ends.
        shared.tasks.close();
        drop(reader);
        tokio::time::timeout(Duration::from_secs(30), shared.tasks.wait())
            .await
            .unwrap();
    }
}

//! The RocksDB engine as a store to test, in a folder of its own.

use std::sync::Arc;

use async_trait::async_trait;
use storage_protocol::{Keyspace, Position, Storage};
use storage_server::engine::Engine;
use storage_server::engine::rocks::{EngineOptions, RocksEngine};
use tempfile::TempDir;

use crate::conformance::{Capability, EndSession, Fixture, Session};

/// An engine on a temporary folder.
#[derive(Debug)]
pub struct RocksFixture {
    engine: Arc<RocksEngine>,
    _folder: TempDir,
}

impl RocksFixture {
    /// A fresh store.
    ///
    /// # Panics
    /// If it cannot be opened.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = EngineOptions {
            disk_reserve_bytes: 0,
            ..EngineOptions::new(folder.path().join("data"))
        };
        let engine = RocksEngine::open(options).expect("a fresh store opens");
        Arc::new(Self {
            engine,
            _folder: folder,
        })
    }
}

#[async_trait]
impl Fixture for RocksFixture {
    async fn session(&self, keyspace: &str) -> Session {
        let keyspace = Keyspace::new(keyspace).expect("cases name their keyspaces well");
        let session = self.engine.open_session("cert:tester", &keyspace);
        let storage: Arc<dyn Storage> = session.clone().storage();
        let end: EndSession =
            Box::new(move || Box::pin(async move { session.end().await.expect("a session ends") }));
        Session {
            storage,
            end: Some(end),
        }
    }

    fn missing(&self, capability: Capability) -> Option<&'static str> {
        match capability {
            Capability::Expiry | Capability::EndSession => None,
            Capability::CompactLog => Some("its log is purged by size and age only; tested apart"),
            Capability::DropTombstones => {
                Some("its tombstones go by number and age only; tested apart")
            }
        }
    }

    async fn compact_log(&self, _to: Position) {}

    async fn drop_tombstones(&self, _keyspace: &str, _to: Position) {}

    async fn close(&self) {
        let engine = self.engine.clone();
        tokio::task::spawn_blocking(move || engine.close())
            .await
            .expect("closing does not panic");
    }
}

//! The remote client over mutual TLS, against a real server process, as a store to test.

use std::sync::Arc;

use async_trait::async_trait;
use storage_protocol::{Position, Storage};
use tempfile::TempDir;

use crate::conformance::{Capability, EndSession, Fixture, Session};
use crate::harness::{Certificates, ServerProcess, connect};

/// A server process of its own.
#[derive(Debug)]
pub struct RemoteFixture {
    server: ServerProcess,
    certificates: Certificates,
    _folder: TempDir,
}

impl RemoteFixture {
    /// A fresh server.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let certificates = Certificates::issue(&["tester"]);
        let server = ServerProcess::mutual(&certificates, &folder.path().join("data"), &[]);
        Arc::new(Self {
            server,
            certificates,
            _folder: folder,
        })
    }
}

#[async_trait]
impl Fixture for RemoteFixture {
    async fn session(&self, keyspace: &str) -> Session {
        let remote = connect(&self.server, &self.certificates, "tester", keyspace)
            .await
            .expect("the server is there");
        let ended = remote.clone();
        let end: EndSession = Box::new(move || Box::pin(async move { ended.close().await }));
        Session {
            storage: Arc::new(remote) as Arc<dyn Storage>,
            end: Some(end),
        }
    }

    fn missing(&self, capability: Capability) -> Option<&'static str> {
        match capability {
            Capability::Expiry | Capability::EndSession => None,
            Capability::CompactLog => Some("no way to ask for it from afar; tested apart"),
            Capability::DropTombstones => Some("no way to ask for it from afar; tested apart"),
        }
    }

    async fn compact_log(&self, _to: Position) {}

    async fn drop_tombstones(&self, _keyspace: &str, _to: Position) {}

    async fn close(&self) {}
}

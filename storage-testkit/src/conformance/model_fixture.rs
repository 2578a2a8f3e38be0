//! The model as a store to test: it must keep every promise, and it has every knob.
//!
//! A task of its own removes what is due, as the server's expiry does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use storage_protocol::{Keyspace, Position, UnixMillis};
use tokio::task::JoinHandle;

use super::{Capability, EndSession, Fixture, Session};
use crate::model::ModelStore;

/// A [`ModelStore`] with a clock that runs.
#[derive(Debug)]
pub struct ModelFixture {
    store: ModelStore,
    expiry: Mutex<Option<JoinHandle<()>>>,
}

impl ModelFixture {
    /// A fresh store. Must be called within a runtime.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let store = ModelStore::new();
        let expiry = tokio::spawn(expire_for_ever(store.clone()));
        let expiry = Mutex::new(Some(expiry));
        Arc::new(Self { store, expiry })
    }
}

async fn expire_for_ever(store: ModelStore) {
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    loop {
        ticks.tick().await;
        store.expire_due(UnixMillis::now());
    }
}

#[async_trait]
impl Fixture for ModelFixture {
    async fn session(&self, keyspace: &str) -> Session {
        let keyspace = Keyspace::new(keyspace).unwrap();
        let storage = self.store.storage(&keyspace);
        let ended = storage.clone();
        let end: EndSession = Box::new(move || Box::pin(async move { ended.end_session() }));
        Session {
            storage: Arc::new(storage),
            end: Some(end),
        }
    }

    fn missing(&self, _: Capability) -> Option<&'static str> {
        None
    }

    async fn compact_log(&self, to: Position) {
        self.store.compact_log(to.revision);
    }

    async fn drop_tombstones(&self, keyspace: &str, to: Position) {
        let keyspace = Keyspace::new(keyspace).unwrap();
        self.store.drop_tombstones(&keyspace, to.revision);
    }

    async fn close(&self) {
        if let Some(expiry) = self.expiry.lock().unwrap().take() {
            expiry.abort();
        }
    }
}

//! A connection, which reconnects by itself, and is made anew where it is over for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use storage_client::{ConnectOptions, ConnectionState, RemoteStorage};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::Shared;

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(10);

/// One connection, shared by its clones.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    options: ConnectOptions,
    present: Arc<Mutex<Option<RemoteStorage>>>,
    was_connected: Arc<AtomicBool>,
}

impl Client {
    pub(super) fn new(options: ConnectOptions, shared: Arc<Shared>) -> Self {
        Self {
            shared,
            options,
            present: Arc::default(),
            was_connected: Arc::default(),
        }
    }

    /// The present connection, or a new one, however long that takes.
    pub(super) async fn storage(&self) -> RemoteStorage {
        let mut present = self.present.lock().await;
        loop {
            if let Some(storage) = &*present
                && !matches!(*storage.state().borrow(), ConnectionState::Closed { .. })
            {
                return storage.clone();
            }
            if let Some(over) = present.take() {
                self.count(&over);
            }
            match RemoteStorage::connect(self.options.clone()).await {
                Ok(storage) => {
                    if self.was_connected.swap(true, Ordering::SeqCst) {
                        self.shared.connected_anew.fetch_add(1, Ordering::SeqCst);
                    }
                    *present = Some(storage);
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Closes it in order.
    pub(super) async fn close(&self) {
        if let Some(storage) = self.present.lock().await.take() {
            self.count(&storage);
            storage.close().await;
        }
    }

    fn count(&self, storage: &RemoteStorage) {
        let info = storage.session_info();
        let info = info.borrow();
        let Shared {
            reconnects,
            replaced,
            ..
        } = &*self.shared;
        reconnects.fetch_add(info.reconnects, Ordering::SeqCst);
        replaced.fetch_add(info.replaced, Ordering::SeqCst);
    }
}

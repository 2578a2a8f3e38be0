//! What the load asks of every system: one client is one connection.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::fanout::{Audience, Deliveries, Interest};
use crate::keys::Key;

/// A connection. Clones share it.
///
/// A call that succeeds was answered as it should be: a get found its key, a commit was done.
pub(crate) trait Client: Clone + Send + Sync + 'static {
    /// The length of the value at a key.
    fn get(&self, key: Key) -> impl Future<Output = Result<usize>> + Send;

    fn put(&self, key: Key, value: Bytes) -> impl Future<Output = Result<()>> + Send;

    /// Reads them together; the lengths of all values in sum.
    fn multi_get(&self, keys: Vec<Key>) -> impl Future<Output = Result<usize>> + Send;

    /// Puts them together.
    fn commit(&self, puts: Vec<(Key, Bytes)>) -> impl Future<Output = Result<()>> + Send;

    /// Reads so many entries from a key on; the lengths of all values in sum.
    fn scan(&self, start: Key, count: usize) -> impl Future<Output = Result<usize>> + Send;

    /// Puts a value if the key still is as `seen` tells; what is seen then. `None`: puts it in any case. The first 8 bytes
    /// of the value are the system's, where it has no revisions.
    fn compare_and_set(
        &self,
        key: Key,
        seen: Option<u64>,
        value: Bytes,
    ) -> impl Future<Output = Result<u64>> + Send;

    /// Delivers each event that is of interest to watcher `number`, until the task is aborted. Returns once nothing published from then on
    /// is missed.
    fn subscribe(
        &self,
        interest: Interest,
        deliveries: Arc<Deliveries>,
        number: u64,
    ) -> impl Future<Output = Result<JoinHandle<Result<()>>>> + Send;

    /// Publishes event `number` for its audience.
    fn publish(
        &self,
        audience: Audience,
        number: u64,
        value: Bytes,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Ends the connection, if this is its last clone.
    fn close(self) -> impl Future<Output = ()> + Send;
}

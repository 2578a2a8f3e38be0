//! Where commits become durable: the engine behind every gateway.
//!
//! [`Engine`] is what the server needs of one: sessions that implement [`Storage`], a position, and a word on its
//! health. [`rocks`] is the engine of a single server; a distributed one would stand beside it behind the same traits.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use storage_protocol::{Batch, CommitOptions, Keyspace, Position, Result, SessionId, Storage};

pub mod rocks;

/// A store that the server serves.
pub trait Engine: fmt::Debug + Send + Sync {
    /// A new session of `principal` in `keyspace`. The keyspace need not exist: the first commit makes it.
    fn open_session(&self, principal: &str, keyspace: &Keyspace) -> Arc<dyn SessionStorage>;

    /// The present position.
    fn position(&self) -> Position;

    /// Whether it takes writes; else why not (a failed write, a full disk).
    ///
    /// # Errors
    /// A text for operators.
    fn check_writable(&self) -> Result<(), String>;

    /// Its metrics in the Prometheus text format, appended.
    fn write_metrics(&self, out: &mut String);
}

/// One session's handle: [`Storage`], and what only the server does with a session. Its `commit` numbers its commits
/// itself; a peer that numbers them calls [`SessionStorage::commit_numbered`] instead. Not both on one session.
#[async_trait]
pub trait SessionStorage: Storage {
    /// The session's id.
    fn session(&self) -> SessionId;

    /// The present position.
    fn position(&self) -> Position;

    /// The highest commit number that was executed; 0 for none.
    fn executed(&self) -> u64;

    /// Whether the keyspace is (or would be made) one that the mwDB dialect serves.
    fn serves_mwdb(&self) -> bool;

    /// [`Storage::commit`] with the peer's number, which must be above all of this session before.
    ///
    /// # Errors
    /// As [`Storage::commit`].
    async fn commit_numbered(
        &self,
        number: u64,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position>;

    /// Ends the session: its keys with session lifetime are removed by a commit. Later commits are refused.
    ///
    /// # Errors
    /// As [`Storage::commit`].
    async fn end(&self) -> Result<()>;
}

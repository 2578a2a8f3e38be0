//! Where commits become durable: the engine behind every gateway.
//!
//! [`Engine`] is what the server needs of one: sessions, a position, and a word on its health. A [`Session`] is what
//! outlives sockets; what it reads and writes goes through the [`SessionStorage`] it has, so whatever stands between a
//! gateway and the data wraps that one trait. [`rocks`] is the engine of a single server; a distributed one would stand
//! beside it behind the same traits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::registry::Registry;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, Keyspace, Position, Reading, Result, Scan,
    ScanOptions, SessionId, Storage,
};
use tokio_util::sync::CancellationToken;

mod fingerprint;
pub mod rocks;

pub use self::fingerprint::fingerprint;

/// How long a pinned snapshot, such as a scan's, may rest from its last page on: then it is released, and the next page
/// fails with [`StorageError::SnapshotExpired`](storage_protocol::StorageError::SnapshotExpired).
pub const SNAPSHOT_IDLE_MAX: Duration = Duration::from_secs(30);

/// Where a read counts what it is about to hold for its answer.
///
/// A read that is refused ends with [`StorageError::Overloaded`] and [`Limit::Outbox`](storage_protocol::Limit), and
/// leaves nothing behind: it neither waits nor keeps its place among the readers, and can be made again.
pub trait Room: fmt::Debug + Send + Sync {
    /// Counts so many bytes more. False: there is no room for them, and they are not counted.
    fn take(&self, bytes: usize) -> bool;
    /// What was taken is not held after all.
    fn give_back(&self, bytes: usize);
}

/// The room of a caller that bounds what it reads itself.
#[derive(Debug)]
pub(crate) struct Unbounded;

impl Room for Unbounded {
    fn take(&self, _: usize) -> bool {
        true
    }

    fn give_back(&self, _: usize) {}
}

/// What a keyspace holds: the entries that are there, without removed ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// What a keyspace may hold. `None`: as much as there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredMax {
    /// At most so many entries.
    pub entries: Option<u64>,
    /// At most so many bytes of keys and values.
    pub bytes: Option<u64>,
}

/// The quotas of stored data, as the engine asks for them.
pub trait StoredLimits: fmt::Debug + Send + Sync {
    /// What this keyspace may hold. Asked for by the committer, so it must not wait for anything.
    fn stored_max(&self, keyspace: &Keyspace) -> StoredMax;
}

/// How an attempt to resume a session went.
#[derive(Debug)]
#[non_exhaustive]
pub enum Resumed {
    /// It goes on with this handle; no other one can commit any more.
    Session(Arc<dyn Session>),
    /// There is no such session of this principal in this keyspace and epoch (any more).
    Gone,
    /// A generation that is not below this one has it.
    Fenced,
}

/// A store that the server serves.
#[async_trait]
pub trait Engine: fmt::Debug + Send + Sync {
    /// A new session of `principal` in `keyspace`. The keyspace need not exist: the first commit makes it.
    fn open_session(&self, principal: &str, keyspace: &Keyspace) -> Arc<dyn Session>;

    /// The session of this id, taken over by a higher generation (a fencing token; the wire calls it `incarnation`):
    /// from the answer on no commit of a lower one is executed, and what the session has executed is final. It stands
    /// behind all that the lower one queued.
    ///
    /// # Errors
    /// The store cannot be read, cannot make the generation durable, or is closed; then nothing was resumed.
    async fn resume_session(
        &self,
        principal: &str,
        keyspace: &Keyspace,
        id: SessionId,
        generation: u64,
    ) -> Result<Resumed>;

    /// The present position.
    fn position(&self) -> Position;

    /// Whether there was a commit to this keyspace; then it stays. Does not block.
    fn has_keyspace(&self, keyspace: &Keyspace) -> bool;

    /// What this keyspace holds; nothing, if there is none of this name. True at the position that any answer told so
    /// far. Does not block.
    ///
    /// # Errors
    /// It is not known.
    fn usage(&self, keyspace: &Keyspace) -> Result<Usage>;

    /// From now on, commits that would raise what a keyspace holds above these limits are refused with
    /// [`StorageError::QuotaExceeded`](storage_protocol::StorageError::QuotaExceeded). Those that do not raise it, those
    /// of the server itself and those to the keyspaces `system` and `system.*` never are. May be called at any time;
    /// commits that wait are judged by the old limits or the new ones. At the start there are none.
    fn set_stored_limits(&self, limits: Arc<dyn StoredLimits>);

    /// Peers can come from now on: what sessions without a socket have left of their time begins now.
    fn serving(&self);

    /// Whether it takes writes; else why not (a failed write, a full disk).
    ///
    /// # Errors
    /// A text for operators.
    fn check_writable(&self) -> Result<(), String>;

    /// Registers its metrics, once for each server that serves it. What is registered is asked for at each look at
    /// `/metrics`: a collector must not block.
    fn register_metrics(&self, registry: &mut Registry);
}

/// One session of a principal in a keyspace, by the handle of one generation: its life, which outlives sockets.
#[async_trait]
pub trait Session: fmt::Debug + Send + Sync {
    /// The session's id.
    fn id(&self) -> SessionId;

    /// What it reads and writes through.
    fn storage(self: Arc<Self>) -> Arc<dyn SessionStorage>;

    /// The highest commit number that was executed; 0 for none.
    fn executed(&self) -> u64;

    /// Whether keys of the session were removed because it was without a socket for too long, and no client of it has
    /// [acknowledged](Session::acknowledge_expiry) that yet: as it was when this handle attached.
    fn keys_expired(&self) -> bool;

    /// Acknowledges: the client of this handle knows by now what [`Session::keys_expired`] said.
    fn acknowledge_expiry(&self);

    /// Cancelled when a newer generation took the session over: the socket of this handle is to be closed.
    fn fenced(&self) -> CancellationToken;

    /// The socket of this handle is lost: the session can be resumed for a while, and its keys stay for a shorter one.
    /// So it is when a handle with numbered commits is dropped. Does not wait.
    fn lose(&self);

    /// No commit of this handle is executed from now on, not even one that is queued, except one that the engine has
    /// begun: its peer may not do it any more. Does not wait.
    fn revoke(&self);

    /// Ends the session: its keys with session lifetime are removed by a commit. Later commits are refused. Of a handle
    /// that was fenced it does nothing.
    ///
    /// # Errors
    /// As [`Storage::commit`].
    async fn end(&self) -> Result<()>;
}

/// [`Storage`] as one session uses it: reads whose answers are counted, and commits that their sender numbers. `commit`
/// numbers its commits itself; a peer that numbers them calls [`SessionStorage::commit_numbered`] instead. Not both on
/// one session.
#[async_trait]
pub trait SessionStorage: Storage {
    /// The present position.
    fn position(&self) -> Position;

    /// [`Storage::get`], whose values are counted in `room` before they are held.
    ///
    /// # Errors
    /// As [`Storage::get`]; and see [`Room`].
    async fn get_into(
        &self,
        keys: &[Key],
        room: Arc<dyn Room>,
    ) -> Result<Reading<Vec<Option<Entry>>>>;

    /// [`Storage::scan`] over several ranges, which rise and do not overlap, at one revision. Each page is counted in
    /// `room` before it is held. A page that found no room can be asked for again.
    ///
    /// # Errors
    /// As [`Storage::scan`]; of its pages, see [`Room`].
    async fn scan_into(
        &self,
        ranges: Vec<KeyRange>,
        options: ScanOptions,
        room: Arc<dyn Room>,
    ) -> Result<Scan>;

    /// [`Storage::commit`] with the peer's number. One above [`Session::executed`] must be above all before; it is
    /// executed. One that is not above it is never executed (again), whatever comes with it:
    ///
    /// * if it was executed, the answer is its original position, also after a restart;
    /// * if another commit was executed under it (its [`fingerprint`] differs): `NumberReused`, *not executed*;
    /// * if it is 1,024 or more below, `Closed` with outcome *unknown*;
    /// * else it was refused before: `Closed`, *not executed*.
    ///
    /// # Errors
    /// As [`Storage::commit`]; `Closed` for a handle that was fenced.
    async fn commit_numbered(
        &self,
        number: u64,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position>;

    /// [`SessionStorage::commit_numbered`] for a number that is not above [`Session::executed`], without its batch:
    /// nothing is executed. `fingerprint` is of what came with it; `None` if that is not known.
    ///
    /// # Errors
    /// As `commit_numbered`; if the number was executed and the fingerprint is not known, `Closed` with outcome
    /// *unknown*.
    async fn repeat_numbered(&self, number: u64, fingerprint: Option<u64>) -> Result<Position>;
}

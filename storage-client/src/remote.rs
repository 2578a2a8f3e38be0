//! [`RemoteStorage`]: the `Storage` contract over one connection.
//!
//! Each call is judged by the server's announced limits, encoded, handed to the connection and its answer put into
//! the contract's terms. Nothing is retried here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use storage_protocol::native::{
    ClientMessage, Hello, Packet, ServerMessage, WatchRequest, Welcome,
};
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, Keyspace, Limit, Limits, Outcome, Position,
    Reading, Result, Revision, Scan, ScanOptions, SessionId, Storage, StorageError, Watch,
    WatchOptions,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ConnectOptions;
use crate::connection::{Answer, Call, Connection, ConnectionState, Expect, deadline_after};
use crate::dial::Dialer;
use crate::scan::RemoteScan;
use crate::watch::{RemoteWatch, WatchShared};

/// A keyspace of a server, as a [`Storage`].
///
/// Clones are cheap and share the connection; watches and scans keep it open too. When the last of them is dropped, the
/// connection is closed in the background; [`close`](Self::close) does the same and waits.
///
/// Every call fails by the [`request_timeout`](ConnectOptions::request_timeout) at the latest, with an error whose
/// [`outcome`](StorageError::outcome) tells what is certain: `NotExecuted` for whatever was not sent and for all
/// reads, `Unknown` for a commit that was sent and not answered. When the connection is lost, all calls in flight fail
/// at once, and so do later ones.
///
/// Commits are applied in the order in which their futures were first polled: each is numbered when it goes out, and
/// the server waits for a lower number that is still on its way. (A commit of more than 64 KiB travels in parts that
/// let smaller messages pass, so a later small commit may *arrive* first; it waits there.)
///
/// Values are slices of what was received: a small one kept for long keeps up to one frame (or one whole answer)
/// alive; copy it then.
#[derive(Clone)]
pub struct RemoteStorage {
    connection: Connection,
    settings: Arc<Settings>,
}

/// What outlives a connection.
struct Settings {
    dialer: Dialer,
    request_timeout: Duration,
    close_timeout: Duration,
    watch_credit_bytes: u64,
}

impl fmt::Debug for RemoteStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStorage")
            .field("url", &self.settings.dialer.endpoint.uri)
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

impl RemoteStorage {
    /// Connects, and returns when the server has said Welcome. Needs a tokio runtime, on which one task then runs.
    ///
    /// # Errors
    /// [`StorageError::ConnectFailed`], whose text names the URL and what went wrong: an option or a file, the
    /// look-up, TCP, TLS (what is wrong with which side's certificate), an HTTP status with its text, the
    /// subprotocol, or the close code and reason that came instead of Welcome.
    ///
    /// # Cancel safety
    /// Dropping the future drops the socket.
    pub async fn connect(options: ConnectOptions) -> Result<Self> {
        let dialer = Dialer::new(&options).await?;
        let hello = Hello::new(options.agent);
        let (socket, welcome) = dialer.dial(hello).await?;
        let connection = Connection::open(socket, welcome, options.queue_len_max);
        let settings = Settings {
            dialer,
            request_timeout: options.request_timeout,
            close_timeout: options.close_timeout,
            watch_credit_bytes: options.watch_credit_bytes.max(1),
        };
        Ok(Self {
            connection,
            settings: Arc::new(settings),
        })
    }

    /// What the connection is, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.connection.state()
    }

    /// What the server said at the start: limits, session, position, heartbeat.
    #[must_use]
    pub fn welcome(&self) -> Arc<Welcome> {
        self.connection.welcome().clone()
    }

    /// Who the server takes us for (`cert:NAME`, `anonymous`).
    #[must_use]
    pub fn principal(&self) -> String {
        self.connection.welcome().principal.clone()
    }

    /// The session. Who knows it may resume it: keep it secret.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.connection.welcome().session
    }

    /// The keyspace that the URL names.
    #[must_use]
    pub fn keyspace(&self) -> &Keyspace {
        &self.settings.dialer.endpoint.keyspace
    }

    /// The time to the server and back, through the same queues as any call.
    ///
    /// # Errors
    /// `DeadlineExceeded` or `Closed`, both not executed.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn ping(&self) -> Result<Duration> {
        let start = Instant::now();
        let (watch, token) = (None, 0);
        let call = Call::Send {
            packet: ClientMessage::Probe { watch, token }.encode(None),
            expect: Expect::Probed { token },
        };
        self.request(call).await?;
        Ok(start.elapsed())
    }

    /// Closes for all clones: takes no more calls, waits for those in flight (at most the
    /// [`close_timeout`](ConnectOptions::close_timeout); what is left then fails with `Closed`), says goodbye to the
    /// server and waits for the connection's task to end. Watches end with `Closed` behind the events they hold.
    /// Closing twice is fine.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing.
    pub async fn close(&self) {
        self.connection.close(self.settings.close_timeout).await;
    }

    pub(crate) async fn request(&self, call: Call) -> Result<Answer> {
        let deadline = deadline_after(Instant::now(), self.settings.request_timeout);
        self.connection.request(call, deadline).await
    }

    /// For an answer of the wrong type. The driver has matched them, so this is not seen.
    pub(crate) fn wrong_answer() -> StorageError {
        StorageError::PeerMisbehaved {
            message: "the answer is of the wrong type".into(),
            outcome: Outcome::Unknown,
        }
    }

    fn announced(&self) -> &Limits {
        &self.connection.welcome().limits
    }

    fn position(&self, revision: Revision) -> Position {
        let epoch = self.connection.welcome().position.epoch;
        Position { epoch, revision }
    }

    fn check_message(&self, packet: &Packet) -> Result<()> {
        let max = self.announced().message_bytes_max;
        check_max(Limit::Message, packet.payload.len(), max)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Storage for RemoteStorage {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        let limits = self.announced();
        check_max(Limit::KeysPerGet, keys.len(), limits.keys_per_get_max)?;
        for key in keys {
            check_max(Limit::Key, key.len(), limits.key_bytes_max)?;
        }
        let count = keys.len();
        let keys = keys.to_vec();
        let packet = ClientMessage::Get { keys }.encode(None);
        self.check_message(&packet)?;
        let expect = Expect::Values { keys: count };
        match self.request(Call::Send { packet, expect }).await?.message {
            ServerMessage::Values { revision, entries } => Ok(Reading {
                position: self.position(revision),
                value: entries,
            }),
            _ => Err(Self::wrong_answer()),
        }
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        let packet = ClientMessage::Scan { range, options }.encode(None);
        self.check_message(&packet)?;
        let expect = Expect::FirstPage;
        let answer = self.request(Call::Send { packet, expect }).await?;
        match answer.message {
            ServerMessage::Page {
                revision, items, ..
            } => {
                let source = RemoteScan::new(self.clone(), items, answer.scan);
                Ok(Scan::new(self.position(revision), Box::new(source)))
            }
            _ => Err(Self::wrong_answer()),
        }
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        batch.validate(&options, self.announced())?;
        match self.request(Call::Commit { batch, options }).await?.message {
            ServerMessage::Committed { revision } => Ok(self.position(revision)),
            _ => Err(Self::wrong_answer()),
        }
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        let credit = self.settings.watch_credit_bytes;
        let message = ClientMessage::Watch(WatchRequest {
            range,
            start: options.start,
            mode: options.mode,
            credit,
        });
        let packet = message.encode(None);
        self.check_message(&packet)?;
        let watch = Arc::new(WatchShared::new(credit));
        // Before the request: wherever this future is dropped or fails, the drop of `source` ends the watch.
        let source = RemoteWatch::new(self.connection.clone(), watch.clone());
        match self.request(Call::Watch { packet, watch }).await?.message {
            ServerMessage::Watching { revision } => {
                Ok(Watch::new(self.position(revision), Box::new(source)))
            }
            _ => Err(Self::wrong_answer()),
        }
    }

    async fn limits(&self) -> Result<Limits> {
        match self.connection.shared().refusal() {
            Some(closed) => Err(closed),
            None => Ok(self.announced().clone()),
        }
    }
}

fn check_max(limit: Limit, actual: usize, max: usize) -> Result<()> {
    if actual > max {
        return Err(StorageError::limit(limit, actual, max));
    }
    Ok(())
}

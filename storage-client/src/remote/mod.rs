//! [`RemoteStorage`]: the `Storage` contract over a connection.
//!
//! Each call is checked by the server's announced limits, encoded, handed to the connection and its answer put into
//! the contract's terms. What a lost socket means is the connection's matter.

mod scan;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use storage_protocol::native::{ClientMessage, Hello, Packet, ServerMessage, Welcome};
use storage_protocol::{
    Batch, CommitOptions, Entry, Epoch, Key, KeyRange, Keyspace, Limit, Limits, Position, Reading,
    Result, Revision, Scan, ScanOptions, SessionId, Storage, StorageError, Watch, WatchOptions,
    begin_commit,
};
use tokio::runtime::Handle;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use crate::ConnectOptions;
use crate::connection::{Connection, ConnectionState};
use crate::order::ScanOrder;
use crate::requests::{Answer, Call, Expect};
use crate::session::{SessionInfo, SessionState, incarnation_after};
use crate::transport::{Endpoint, ServerClock};
use crate::watch::WatchShared;
use scan::RemoteScan;
use watch::RemoteWatch;

/// A keyspace of a server, as a [`Storage`].
///
/// Clones are cheap and share the connection; watches and scans keep it open too. When the last of them is dropped, the
/// connection is closed in the background; [`close`](Self::close) does the same and waits.
///
/// Every call fails by the [`request_timeout`](ConnectOptions::request_timeout) at the latest, with an error whose
/// [`outcome`](StorageError::outcome) tells what is certain: `NotExecuted` for whatever was not sent and for all
/// reads, `Unknown` for a commit that was sent and not answered.
///
/// When the connection is lost, it is made anew (see [`ConnectOptions::give_up_after`]); calls wait for that within their
/// deadlines. Reads are asked again. A commit that was sent is sent again under its number and has *one* effect, also
/// over a restart or crash of the server: it returns the revision of the first. Where the server cannot prove that any
/// more (its session is gone: after 24 h by default), it fails as `Unknown` and is not repeated. One that the server
/// refused, and whose refusal was lost, fails as not executed, without the reason (a failed check, say). Watches go on from where
/// they were and say what the break meant ([`WatchEvent::Continuity`](storage_protocol::WatchEvent::Continuity)). Scans do
/// not outlive a socket: their next page fails with `SnapshotExpired`.
///
/// Some ends are for good: another process took the session over, the server said that the same is not to be repeated, or
/// it broke the protocol. What was in flight fails with its outcome and with what the server said; nothing that a server may
/// not send is handed over ([`PeerMisbehaved`](StorageError::PeerMisbehaved) names it).
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
    endpoint: Endpoint,
    clock: Arc<ServerClock>,
    close_timeout: Duration,
    watch_credit_bytes: u64,
}

impl fmt::Debug for RemoteStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStorage")
            .field("url", &self.settings.endpoint.uri)
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
    pub async fn connect(mut options: ConnectOptions) -> Result<Self> {
        let mut dialer = options.dialer().await?;
        let endpoint = dialer.endpoint().clone();
        let clock = dialer.clock();
        let mut hello = Hello::new(options.agent.clone());
        if let Some(saved) = options.resume.take() {
            saved
                .check()
                .map_err(|message| StorageError::ConnectFailed { message })?;
            hello.session = Some(saved.id);
            hello.incarnation = incarnation_after(saved.incarnation);
            hello.sent = saved.sent;
            hello.unanswered = saved.unanswered;
        }
        let (socket, welcome) = dialer.dial_any(&hello).await?;
        let session = SessionState::new(&hello, &welcome);
        let connection = Connection::open(&options, dialer, session, socket, welcome);
        let settings = Settings {
            endpoint,
            clock,
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
    pub fn state(&self) -> Receiver<ConnectionState> {
        self.connection.state()
    }

    /// What the server said at the start of the present (or last) connection: limits, session, position, heartbeat.
    #[must_use]
    pub fn welcome(&self) -> Arc<Welcome> {
        self.connection.welcome()
    }

    /// The session, now and from now on: each reconnect, and whether its keys expired or it was replaced meanwhile.
    #[must_use]
    pub fn session_info(&self) -> Receiver<SessionInfo> {
        self.connection.session()
    }

    /// [`Storage::commit`] under a number that the caller gives it: for programs that keep a journal of what they send, to
    /// go on after their own crash (see [`ConnectOptions::resume_session`]). The numbers of a session are consecutive from
    /// 1; such a program numbers all its commits, sends them in this order and calls `commit` never. What was answered, by
    /// an error too, has spent its number.
    ///
    /// # Errors
    /// As [`Storage::commit`]. A number that was refused before fails as not executed, one that the server does not
    /// remember as unknown.
    ///
    /// # Cancel safety
    /// As [`Storage::commit`].
    pub async fn commit_as(
        &self,
        number: u64,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        self.commit_with(Some(number), batch, options).await
    }

    async fn commit_with(
        &self,
        number: Option<u64>,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        batch.validate(&options, &self.announced().limits)?;
        let call = Call::Commit {
            number,
            batch,
            options,
        };
        let answer = self.request(call).await?;
        match answer.message {
            ServerMessage::Committed { revision } => Ok(at(answer.epoch, revision)),
            _ => Err(Answer::of_wrong_type()),
        }
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
        &self.settings.endpoint.keyspace
    }

    /// Milliseconds that the server's clock is ahead of this machine's (negative: behind), as its answer to the last
    /// upgrade told by its `Date`: to within half a second, and half the time that the upgrade took. `None` where no
    /// server told it. Of use for times of entries ([`EntryLifetime::Until`](storage_protocol::EntryLifetime::Until)), which
    /// are by the server's clock. A proxy in front may put its own time there.
    #[must_use]
    pub fn server_time_offset(&self) -> Option<i64> {
        self.settings.clock.offset()
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
        let timeout = self.settings.close_timeout;
        self.connection.close(timeout, false).await;
    }

    /// [`close`](Self::close), but the session stays: keys with its lifetime for the server's grace, its commit numbers for
    /// as long as the server keeps it. Another process (or this one, started again) can resume it:
    /// [`ConnectOptions::resume_session`].
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing.
    pub async fn leave(&self) {
        let timeout = self.settings.close_timeout;
        self.connection.close(timeout, true).await;
    }

    async fn request(&self, call: Call) -> Result<Answer> {
        self.connection.requests().request(call).await
    }

    fn announced(&self) -> Arc<Welcome> {
        self.connection.welcome()
    }

    fn check_message(&self, packet: &Packet) -> Result<()> {
        let max = self.announced().limits.message_bytes_max;
        check_max(Limit::Message, packet.payload.len(), max)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Storage for RemoteStorage {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        let welcome = self.announced();
        let limits = &welcome.limits;
        check_max(Limit::KeysPerGet, keys.len(), limits.keys_per_get_max)?;
        for key in keys {
            check_max(Limit::Key, key.len(), limits.key_bytes_max)?;
        }
        let count = keys.len();
        let keys = keys.to_vec();
        let packet = ClientMessage::Get { keys }.encode(None);
        self.check_message(&packet)?;
        let expect = Expect::Values { keys: count };
        let answer = self.request(Call::Send { packet, expect }).await?;
        match answer.message {
            ServerMessage::Values { revision, entries } => Ok(Reading {
                position: at(answer.epoch, revision),
                value: entries,
            }),
            _ => Err(Answer::of_wrong_type()),
        }
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        range.check_bounds(self.announced().limits.key_bytes_max)?;
        let order = ScanOrder::new(range.clone(), options);
        let packet = ClientMessage::Scan { range, options }.encode(None);
        let expect = Expect::FirstPage;
        let answer = self.request(Call::Send { packet, expect }).await?;
        let epoch = answer.epoch;
        let (revision, source) =
            RemoteScan::begin(self.connection.requests().clone(), order, answer)?;
        Ok(Scan::new(at(epoch, revision), Box::new(source)))
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        self.commit_with(None, batch, options).await
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        let Ok(runtime) = Handle::try_current() else {
            begin_commit(self, batch, options);
            return;
        };
        // The connection stays until this is answered, or its time is over.
        let storage = self.clone();
        runtime.spawn(async move {
            if let Err(error) = storage.commit(batch, options).await {
                tracing::debug!(%error, "a commit that nobody waits for was not done");
            }
        });
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        range.check_bounds(self.announced().limits.key_bytes_max)?;
        let credit = self.settings.watch_credit_bytes;
        let watch = Arc::new(WatchShared::new(range, options.mode, credit));
        let message = ClientMessage::Watch(watch.first_request(options));
        let packet = message.encode(None);
        // Before the request: wherever this future is dropped or fails, the drop of `source` ends the watch.
        let source = RemoteWatch::new(self.connection.requests().clone(), watch.clone());
        let answer = self.request(Call::Watch { packet, watch }).await?;
        match answer.message {
            ServerMessage::Watching { revision } => {
                Ok(Watch::new(at(answer.epoch, revision), Box::new(source)))
            }
            _ => Err(Answer::of_wrong_type()),
        }
    }

    async fn limits(&self) -> Result<Limits> {
        match self.connection.requests().refusal() {
            Some(closed) => Err(closed),
            None => Ok(self.announced().limits.clone()),
        }
    }
}

fn at(epoch: Epoch, revision: Revision) -> Position {
    Position { epoch, revision }
}

fn check_max(limit: Limit, actual: usize, max: usize) -> Result<()> {
    if actual > max {
        return Err(StorageError::limit(limit, actual, max));
    }
    Ok(())
}

//! Where to connect, as whom, and within which bounds.
//!
//! [`ConnectOptions`] only holds what was said; it is checked as a whole by
//! [`RemoteStorage::connect`](crate::RemoteStorage::connect), whose errors name the option that is wrong. A program that
//! has to tell wrong options from a server that is not there asks `keyspace` and `check_credentials` beforehand.
//! Invariant: each wait and each queue of a connection has its bound here, or in the server's Welcome.

use std::path::PathBuf;
use std::time::Duration;

use storage_protocol::{Keyspace, Result, StorageError};

use crate::session::SavedSession;
use crate::transport::{Credentials, Dialer, Endpoint, Login, Tls, TlsVersion, client_config};

/// How to connect. Each setter takes and returns the options, so that calls chain.
///
/// ```
/// use std::time::Duration;
/// use storage_client::ConnectOptions;
///
/// let options = ConnectOptions::new("wss://localhost:7443/storage/models")
///     .credentials_dir("certs/dev/alice")
///     .request_timeout(Duration::from_secs(5));
/// ```
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    pub(crate) urls: Vec<String>,
    pub(crate) plaintext: bool,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) login: Option<Login>,
    pub(crate) tls_min_version: TlsVersion,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) queue_len_max: usize,
    pub(crate) watch_credit_bytes: u64,
    pub(crate) agent: String,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) give_up_after: Option<Duration>,
    pub(crate) resume: Option<SavedSession>,
}

impl ConnectOptions {
    /// Options for `wss://HOST[:PORT]/storage/KEYSPACE`. Without a port it is 443, as in every `wss` URL. An IPv6
    /// address stands in brackets. `localhost`, and each name below it, is this machine's loopback (127.0.0.1, then
    /// ::1) without a look-up. Where the server's certificate is for a name, HOST has to be that name.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            plaintext: false,
            credentials: None,
            login: None,
            tls_min_version: TlsVersion::default(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            queue_len_max: 1_024,
            watch_credit_bytes: 1 << 20,
            agent: concat!("storage-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            give_up_after: None,
            resume: None,
        }
    }

    /// One more server that has the same keyspace, tried in turn with the others: at the start, and whenever the present
    /// one cannot be reached or goes away as planned. Default: none.
    #[must_use]
    pub fn also(mut self, url: impl Into<String>) -> Self {
        self.urls.push(url.into());
        self
    }

    /// Between attempts at a new connection it waits, twice as long each time, from `min` up to `max`, of which a random
    /// half is left out, so that many clients do not come at once. Default: 50 ms to 5 s.
    #[must_use]
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.backoff_min = min;
        self.backoff_max = max;
        self
    }

    /// Gives up for good when there was no connection for so long. Default: never. Zero: a lost connection is final: all
    /// calls in flight fail at once, and watches end, with their class. Whatever is set, a connection is over for good when
    /// the server says not to come again (see [`ConnectionState::Closed`](crate::ConnectionState::Closed)).
    #[must_use]
    pub fn give_up_after(mut self, without_connection: Duration) -> Self {
        self.give_up_after = Some(without_connection);
        self
    }

    /// Resumes a session of an earlier process instead of beginning a new one. Whether the server still had it shows in
    /// [`RemoteStorage::session_info`](crate::RemoteStorage::session_info) (`replaced`). Each of its `unanswered` numbers
    /// must then be sent again with [`RemoteStorage::commit_as`](crate::RemoteStorage::commit_as), before anything else is
    /// committed: the server waits for them. Default: a new session.
    #[must_use]
    pub fn resume_session(mut self, session: SavedSession) -> Self {
        self.resume = Some(session);
        self
    }

    /// Presents `cert.pem` with `key.pem` of this folder, and trusts servers that `ca.pem` vouches for. All three are
    /// PEM files; the key is not encrypted. They are read again for each connection, so a renewed certificate needs no
    /// restart. No default: a `wss` URL needs this or
    /// [`without_client_certificate`](Self::without_client_certificate); the later call of the two counts.
    #[must_use]
    pub fn credentials_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.credentials = Some(Credentials::Mutual { dir: dir.into() });
        self
    }

    /// Presents no certificate, and trusts servers that this PEM file vouches for. Only a server whose listener has
    /// `tls = "server"` takes such a client, which shows a [`token`](Self::token) or a [`password`](Self::password) unless
    /// the listener lets anybody in; others refuse the connection.
    #[must_use]
    pub fn without_client_certificate(mut self, ca: impl Into<PathBuf>) -> Self {
        self.credentials = Some(Credentials::ServerOnly { ca: ca.into() });
        self
    }

    /// Shows this token, which a server has minted, to a listener that takes tokens (its `auth` has `token`). Of this,
    /// [`token_file`](Self::token_file) and [`password`](Self::password) the last call counts. A certificate, where one is
    /// presented too, decides before it.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.login = Some(Login::Token(token.into()));
        self
    }

    /// The same with the token that this file has, which is read again for each connection: one that was renewed needs no
    /// restart.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.login = Some(Login::TokenFile(path.into()));
        self
    }

    /// Logs in as this user with this password, at a listener that takes passwords (its `auth` has `password`).
    #[must_use]
    pub fn password(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.login = Some(Login::Password {
            user: user.into(),
            password: password.into(),
        });
        self
    }

    /// Allows a `ws://` URL. Then nothing is encrypted and neither side knows who the other is: whoever sits between
    /// reads and changes everything. Default: refused. A `wss` URL is encrypted all the same.
    #[must_use]
    pub fn danger_plaintext(mut self) -> Self {
        self.plaintext = true;
        self
    }

    /// The lowest TLS version. Default: 1.3.
    #[must_use]
    pub fn tls_min_version(mut self, version: TlsVersion) -> Self {
        self.tls_min_version = version;
        self
    }

    /// The time from the look-up of the host to Welcome, for each attempt. Default 10 s; then it failed, and says how far
    /// it came.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The deadline of each call (each page of a scan is a call), waiting for room in the queue and for a lost connection
    /// to come back included. Default 30 s; then the call fails with `DeadlineExceeded`: not executed, or, for a commit that was sent, unknown.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long `close` waits for calls in flight. Default 5 s; those that are not answered then fail with `Closed`.
    #[must_use]
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// Requests that may wait to be sent, beyond those in flight (which the server bounds). Default 1,024, at least
    /// one; when it is full, callers wait for room within their deadline.
    #[must_use]
    pub fn queue_len_max(mut self, requests: usize) -> Self {
        self.queue_len_max = requests;
        self
    }

    /// Bytes of events that each watch may hold for an application that does not take them. Default 1 MiB, at least
    /// one byte; then the server holds that watch at its position until the application takes events. The memory of
    /// a watch is bounded by this and one message more.
    #[must_use]
    pub fn watch_credit_bytes(mut self, bytes: u64) -> Self {
        self.watch_credit_bytes = bytes;
        self
    }

    /// What the client calls itself in the server's log, at most 256 bytes. Default `storage-client/VERSION`.
    #[must_use]
    pub fn agent(mut self, agent: impl Into<String>) -> Self {
        self.agent = agent.into();
        self
    }

    /// The keyspace that the URLs name. Nothing is looked up or connected to.
    ///
    /// # Errors
    /// [`StorageError::ConnectFailed`], whose text begins with the URL that is wrong: it is malformed; it is not encrypted,
    /// and [`danger_plaintext`](Self::danger_plaintext) was not asked for; or its keyspace is not that of the first URL.
    pub fn keyspace(&self) -> Result<Keyspace> {
        // There is at least the URL that the options began with.
        Ok(self.endpoints()?.swap_remove(0).keyspace)
    }

    /// Reads the files of the credentials and checks them as [`connect`](crate::RemoteStorage::connect) will, without a
    /// server. Blocks on the disk. Without credentials there is nothing to check.
    ///
    /// # Errors
    /// [`StorageError::ConnectFailed`], whose text names the file that is wrong, and why.
    pub fn check_credentials(&self) -> Result<()> {
        let Some(credentials) = &self.credentials else {
            return Ok(());
        };
        match client_config(credentials, self.tls_min_version) {
            Ok(_) => Ok(()),
            Err(message) => Err(StorageError::ConnectFailed { message }),
        }
    }

    /// Checks the options and reads the credentials.
    pub(crate) async fn dialer(&self) -> Result<Dialer> {
        let endpoints = self.endpoints()?;
        let tls = if endpoints.iter().any(|endpoint| endpoint.tls) {
            let loaded = self.load_tls().await;
            Some(loaded.map_err(|what| StorageError::ConnectFailed {
                message: format!("{}: {what}", self.urls.join(", ")),
            })?)
        } else {
            None
        };
        Ok(Dialer::new(
            endpoints,
            tls,
            self.login.clone(),
            self.connect_timeout,
        ))
    }

    async fn load_tls(&self) -> std::result::Result<Tls, String> {
        let credentials = self.credentials.clone().ok_or(
            "there are no credentials: set credentials_dir, or without_client_certificate for a server that asks for none",
        )?;
        let min_version = self.tls_min_version;
        tokio::task::spawn_blocking(move || Tls::load(credentials, min_version))
            .await
            .unwrap_or_else(|_| Err("the runtime stopped while the credentials were read".into()))
    }

    /// What the URLs say, in their order; at least one. All of them name the same keyspace.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>> {
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(self.urls.len());
        for url in &self.urls {
            let failed = |what: String| StorageError::ConnectFailed {
                message: format!("{url}: {what}"),
            };
            let endpoint = Endpoint::new(url, self.plaintext).map_err(failed)?;
            if let Some(first) = endpoints.first()
                && first.keyspace != endpoint.keyspace
            {
                return Err(failed(format!(
                    "the keyspace is not that of the first URL, {:?}",
                    first.keyspace.as_str()
                )));
            }
            endpoints.push(endpoint);
        }
        Ok(endpoints)
    }
}

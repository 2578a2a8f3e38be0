//! From a URL to a session: look-up, TCP, TLS, WebSocket upgrade, Hello and Welcome, one behind the other.
//!
//! Every failure says how far it came. With TLS 1.3 a refused client certificate shows only at
//! the first read, so nothing counts as connected before Welcome.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use storage_protocol::native::{Hello, Welcome};
use storage_protocol::{Result, StorageError};
use tokio::time::Instant;

use super::clock::ServerClock;
use super::endpoint::Endpoint;
use super::failure::{DialError, explain_io, within};
use super::login::Login;
use super::socket::{Io, Socket};
use super::tcp::connect_tcp;
use super::tls::Tls;
use super::upgrade::upgrade;
use super::welcome::shake_hands;
use crate::sync::deadline_after;

/// Connects, as often as asked, to the servers in turn. The TLS configuration (and with it the session tickets) stays as
/// long as the credentials' files do.
#[derive(Clone)]
pub(crate) struct Dialer {
    endpoints: Vec<Endpoint>,
    /// The one to try first.
    next: usize,
    tls: Option<Tls>,
    login: Option<Login>,
    timeout: Duration,
    clock: Arc<ServerClock>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// For these servers, at least one, of which all have the same keyspace. `tls`: needed where one is encrypted.
    pub(crate) fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<Tls>,
        login: Option<Login>,
        timeout: Duration,
    ) -> Self {
        Self {
            endpoints,
            next: 0,
            tls,
            login,
            timeout,
            clock: Arc::default(),
        }
    }

    /// What the servers said about their time. Clones of the dialer share it.
    pub(crate) fn clock(&self) -> Arc<ServerClock> {
        self.clock.clone()
    }

    /// How many servers there are.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// The turn is the next server's: this one goes away.
    pub(crate) fn pass_over(&mut self) {
        self.next = (self.next + 1) % self.endpoints.len();
    }

    /// The first of the servers; all have the same keyspace.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        // There is at least one.
        &self.endpoints[0]
    }

    /// Tries each server once, beginning with the next in turn. The error names them all.
    pub(crate) async fn dial_any(&mut self, hello: &Hello) -> Result<(Socket, Welcome)> {
        let mut failures = Vec::new();
        for _ in 0..self.endpoints.len() {
            match self.dial_next(hello.clone()).await {
                Ok(session) => return Ok(session),
                Err(error) => failures.push(error.message),
            }
        }
        Err(StorageError::ConnectFailed {
            message: failures.join("; "),
        })
    }

    /// A socket on which the next server in turn has said Welcome. After a failure the turn is the one behind it.
    pub(crate) async fn dial_next(&mut self, hello: Hello) -> Result<(Socket, Welcome), DialError> {
        let endpoint = self.endpoints[self.next % self.endpoints.len()].clone();
        let deadline = deadline_after(Instant::now(), self.timeout);
        self.reload().await;
        let dialled = Box::pin(self.open(&endpoint, hello, deadline)).await;
        dialled.map_err(|error| {
            self.next = (self.next + 1) % self.endpoints.len();
            let message = format!("{}: {}", endpoint.uri, error.message);
            DialError { message, ..error }
        })
    }

    /// Reads the credentials again. Files that cannot be used (they are just being replaced, perhaps) leave the ones that
    /// were.
    async fn reload(&mut self) {
        let Some(tls) = self.tls.clone() else {
            return;
        };
        let reloaded = tokio::task::spawn_blocking(move || tls.reload()).await;
        match reloaded {
            Ok(Ok(tls)) => self.tls = Some(tls),
            Ok(Err(why)) => tracing::warn!(
                why,
                "the credentials cannot be read again; the old ones stay"
            ),
            Err(_) => {}
        }
    }

    /// TCP, and TLS where the URL says so.
    async fn connect(
        &self,
        endpoint: &Endpoint,
        deadline: Instant,
    ) -> Result<Box<dyn Io>, DialError> {
        let tcp = connect_tcp(endpoint, deadline).await?;
        Ok(match &self.tls {
            Some(tls) if endpoint.tls => {
                let name = ServerName::try_from(endpoint.host.clone())
                    .map_err(|_| "the URL's host is no name and no address".to_owned())?;
                let handshake = tls.connector().connect(name, tcp);
                let shaken = within(deadline, "the TLS handshake", handshake).await?;
                Box::new(shaken.map_err(|error| explain_io(&error, "the TLS handshake"))?)
            }
            _ => Box::new(tcp),
        })
    }

    /// A connection for HTTP to the first server that can be reached, and what it is called.
    pub(crate) async fn dial_http(&self) -> Result<(Box<dyn Io>, String)> {
        let mut failures = Vec::new();
        for endpoint in &self.endpoints {
            let deadline = deadline_after(Instant::now(), self.timeout);
            match self.connect(endpoint, deadline).await {
                Ok(io) => {
                    let authority = endpoint.uri.authority().map(ToString::to_string);
                    return Ok((io, authority.unwrap_or_default()));
                }
                Err(error) => failures.push(format!("{}: {}", endpoint.uri, error.message)),
            }
        }
        let message = failures.join("; ");
        Err(StorageError::ConnectFailed { message })
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        hello: Hello,
        deadline: Instant,
    ) -> Result<(Socket, Welcome), DialError> {
        let io = self.connect(endpoint, deadline).await?;
        let upgrade = upgrade(endpoint, io, self.login.as_ref(), &self.clock);
        let upgraded = within(deadline, "the WebSocket upgrade", upgrade).await?;
        let mut socket = upgraded?;
        let welcome = within(deadline, "Welcome", shake_hands(&mut socket, hello)).await??;
        Ok((socket, welcome))
    }
}

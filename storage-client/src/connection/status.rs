//! The state of a connection: written by its task, read by its handles.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use storage_protocol::native::Welcome;
use tokio::sync::watch;

use crate::session::SessionInfo;
use crate::sync::lock;

/// What a connection is at present.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Calls are carried out.
    Connected,
    /// There is no socket; the connection tries to get a new one. Calls wait for it, each up to its deadline.
    Disconnected {
        /// When the last socket was lost.
        since: std::time::Instant,
        /// Why it was lost, or why the last attempt at a new one failed.
        why: String,
    },
    /// The server is about to close: what is in flight is answered, new calls wait for the next connection. (Without
    /// reconnecting they are sent, and the server refuses them with `Closed`, not executed.)
    Draining {
        /// Why, as the server says.
        reason: String,
        /// When to connect again, as the server asks.
        retry_after: Duration,
    },
    /// Over for good: closed by its handles; given up after the configured time; the session taken over by another
    /// process (the server closed with 4003); the server closed with a code after which a new attempt would fail in the
    /// same way (1002, 1003, 1007, 1008, 1009); or the server broke the protocol. Every call fails with `Closed`.
    Closed {
        /// Why.
        why: String,
    },
}

/// Written by the connection's task, read by its handles.
pub(super) struct Status {
    /// The Welcome of the present (or last) socket.
    welcome: Mutex<Arc<Welcome>>,
    state: watch::Sender<ConnectionState>,
    session: watch::Sender<SessionInfo>,
}

impl Status {
    pub(super) fn new(welcome: Welcome, session: SessionInfo) -> Self {
        Self {
            welcome: Mutex::new(Arc::new(welcome)),
            state: watch::Sender::new(ConnectionState::Connected),
            session: watch::Sender::new(session),
        }
    }

    pub(super) fn welcome(&self) -> Arc<Welcome> {
        lock(&self.welcome).clone()
    }

    pub(super) fn set_welcome(&self, welcome: Arc<Welcome>) {
        *lock(&self.welcome) = welcome;
    }

    pub(super) fn session(&self) -> watch::Receiver<SessionInfo> {
        self.session.subscribe()
    }

    pub(super) fn set_session(&self, session: SessionInfo) {
        self.session.send_replace(session);
    }

    pub(super) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.subscribe()
    }

    pub(super) fn set_state(&self, state: ConnectionState) {
        self.state.send_replace(state);
    }
}

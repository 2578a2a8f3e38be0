//! Connections, as far as who they are may end: who is revoked or expires is out within seconds.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use storage_protocol::native::close_code;
use tokio_util::sync::CancellationToken;

use super::Identity;
use crate::audit::{Audit, Event, Outcome, Record};
use crate::metrics::ClosedLabel;
use crate::ws::Close;

/// Why a peer is not let in any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ended {
    #[error("certificate expired")]
    CertificateExpired,
    #[error("certificate revoked or not trusted any more")]
    CertificateRevoked,
    #[error("token expired")]
    TokenExpired,
    #[error("token revoked")]
    TokenRevoked,
    #[error("user disabled or removed")]
    UserGone,
    #[error("password changed")]
    PasswordChanged,
}

/// A connection that is open: who its peer is, and how to end it.
#[derive(Debug)]
pub(crate) struct LivePeer {
    identity: Mutex<Identity>,
    cut: CancellationToken,
    why: OnceLock<Ended>,
    audit: Arc<Audit>,
}

impl LivePeer {
    /// `cut`: closes the connection at once.
    pub(super) fn new(identity: Identity, cut: CancellationToken, audit: &Arc<Audit>) -> Arc<Self> {
        Arc::new(Self {
            identity: Mutex::new(identity),
            cut,
            why: OnceLock::new(),
            audit: audit.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn identity(&self) -> Identity {
        self.lock().clone()
    }

    /// Its peer has said who it is.
    pub(crate) fn set_identity(&self, identity: Identity) {
        *self.lock() = identity;
    }

    /// Cancelled when the connection is to be closed at once.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    pub(super) fn end(&self, why: Ended) {
        if self.why.set(why).is_ok() {
            let identity = self.identity();
            tracing::info!(principal = %identity, "closing a connection: {why}");
            let record = Record::new(Event::Denied, "close", Outcome::Denied).by(&identity);
            self.audit.put(record.reason(&why.to_string()));
        }
        self.cut.cancel();
    }

    /// How the server closes the connection when it is cut.
    pub(crate) fn close(&self) -> Close {
        self.ended().unwrap_or_else(Close::going_away)
    }

    /// How the server closes the connection of a peer that is not let in any more; `None`: it is. It goes before any other
    /// reason, which is only what follows from it, such as a fenced session.
    pub(crate) fn ended(&self) -> Option<Close> {
        let why = self.why.get()?;
        let (code, label) = (close_code::POLICY, ClosedLabel::Access);
        Some(Close::new(code, label, why.to_string()))
    }
}

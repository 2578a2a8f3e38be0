//! Who sent a request that nobody has let in yet: for gateways whose protocols have logins of their own.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use zeroize::Zeroizing;

use super::browser;
use super::caller::Caller;
use super::protocol::Origins;
use super::refusal::{challenges, refused};
use super::{Front, Refusal};
use crate::audit::{Event, Outcome, Record};
use crate::auth::passwords::LoginError;
use crate::auth::{AuthError, Identity, LivePeer, tokens};
use crate::config::AuthMethod;
use crate::shared::ServerHandle;

/// Who sent a request, before anybody has let it in: an extractor for the routes of gateways that have logins of their own
/// ([`Gateway::has_own_login`](crate::gateway::Gateway::has_own_login)).
#[derive(Clone)]
pub struct Guest {
    front: Arc<Front>,
    address: SocketAddr,
    /// By the certificate of its connection.
    certified: Option<Identity>,
    live: Arc<LivePeer>,
    server: ServerHandle,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("address", &self.address)
            .field("certified", &self.certified)
            .finish_non_exhaustive()
    }
}

/// What a peer shows to be let in.
#[derive(Clone)]
pub enum Credential {
    /// A token that this server minted.
    Token(Zeroizing<String>),
    /// A user of this server, and its password.
    Password {
        /// Its name.
        user: String,
        /// Its password.
        password: Zeroizing<String>,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(***)",
            Self::Password { .. } => "Password(***)",
        })
    }
}

impl Credential {
    /// What is behind the word `Basic` of an `Authorization` (RFC 7617); `None` if that is no user with a password: base64 of
    /// UTF-8 with a colon, 1 to 256 bytes before it and at most 1,024 behind it.
    #[must_use]
    pub fn basic(encoded: &str) -> Option<Self> {
        match tokens::basic(encoded).ok()? {
            tokens::Credential::Basic { user, password } => Some(Self::Password { user, password }),
            tokens::Credential::Bearer(_) => None,
        }
    }

    fn shown(&self) -> tokens::Credential<'_> {
        match self {
            Self::Token(token) => tokens::Credential::Bearer(token),
            Self::Password { user, password } => tokens::Credential::Basic {
                user: user.clone(),
                password: password.clone(),
            },
        }
    }
}

/// Why a peer is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NotLetIn {
    /// Which kind.
    pub kind: NotLetInKind,
    /// A text that is safe to show: it has no part of what was shown.
    pub reason: String,
    /// When to come again, if that may help.
    pub retry_after: Option<Duration>,
}

/// See [`NotLetIn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotLetInKind {
    /// It shows nothing, and the listener wants something.
    Missing,
    /// The listener takes no such credential.
    NotTaken,
    /// The token is none of this server's, or its time is over.
    Token,
    /// The token was revoked, or who minted it is not let in any more.
    Revoked,
    /// There is no such user, or its password is another one. It is not said which.
    Password,
    /// There were too many failed logins. Nothing was checked.
    TooMany,
    /// Too many logins are being checked.
    Busy,
    /// Users and tokens cannot be looked up.
    Unavailable,
}

impl From<AuthError> for NotLetIn {
    fn from(error: AuthError) -> Self {
        let Refusal {
            reason,
            retry_after,
            ..
        } = refused(&error);
        let kind = match error {
            AuthError::Missing(_) => NotLetInKind::Missing,
            AuthError::NotTaken { .. } | AuthError::Malformed(_) => NotLetInKind::NotTaken,
            AuthError::Token(_) => NotLetInKind::Token,
            AuthError::Ended { .. } => NotLetInKind::Revoked,
            AuthError::Login(LoginError::Refused) => NotLetInKind::Password,
            AuthError::Login(LoginError::TooMany { .. }) => NotLetInKind::TooMany,
            AuthError::Login(LoginError::Busy) => NotLetInKind::Busy,
            AuthError::Store(_) => NotLetInKind::Unavailable,
        };
        Self {
            kind,
            reason,
            retry_after,
        }
    }
}

impl Guest {
    pub(super) fn new(
        front: &Arc<Front>,
        address: SocketAddr,
        certified: Option<Identity>,
        live: &Arc<LivePeer>,
    ) -> Self {
        Self {
            server: ServerHandle::new(&front.shared),
            front: front.clone(),
            address,
            certified,
            live: live.clone(),
        }
    }

    /// The other end of the TCP connection.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server that was asked.
    #[must_use]
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// Whether the listener lets peers in by this.
    #[must_use]
    pub fn takes(&self, method: AuthMethod) -> bool {
        self.front.listener.auth().contains(&method)
    }

    /// How who shows nothing good is asked for a credential of the listener: the values of `WWW-Authenticate` in an answer
    /// with 401. None, where it takes none that can be asked for.
    pub fn challenges(&self) -> impl Iterator<Item = HeaderValue> + '_ {
        challenges(self.front.listener.auth())
    }

    /// Whether a request with an `Origin` is of a page that may have it sent: the server's own, or one of the listener's
    /// `allowed_origins`. For what changes something by a GET; other methods are judged before a handler is called.
    pub fn is_of_allowed_page(&self, parts: &Parts) -> bool {
        let request = Request::from_parts(parts.clone(), ());
        browser::check_origin(&request, &self.front.listener, Origins::Own).is_ok()
    }

    /// Whether the certificate of its connection says who it is.
    pub fn is_certified(&self) -> bool {
        self.certified.is_some()
    }

    /// Tells the log and the audit log of somebody whom a gateway does not let in, by itself. `by`: what was shown.
    pub(crate) fn tell_denied(&self, by: &'static str, reason: &str) {
        tracing::info!(reason, "a peer was not let in");
        let record = Record::new(Event::Denied, "log_in", Outcome::Denied);
        let record = record.address(self.address).claiming(by, None);
        self.front.shared.audit.put(record.reason(reason));
    }

    /// Who it is. The certificate of its connection decides, if it has one, whatever is shown; `None` is nothing, which is
    /// good for `anonymous` where the listener takes that. A failure is told to the audit log, and counts for its address
    /// and user. A first password costs a hash on purpose (tens of milliseconds), the same one again little.
    ///
    /// # Errors
    /// [`NotLetIn`].
    pub async fn let_in(&self, shown: Option<&Credential>) -> Result<Identity, NotLetIn> {
        if let Some(identity) = &self.certified {
            return Ok(identity.clone());
        }
        let shown = Ok(shown.map(Credential::shown));
        let identified = Box::pin(self.front.identify(&shown, self.address)).await;
        identified.map_err(|error| {
            let refusal = refused(&error);
            self.front.shared.metrics.refused(refusal.label);
            tracing::info!(reason = refusal.reason, "a peer was not let in");
            error.into()
        })
    }

    /// The same peer, let in as this identity: what it is allowed is judged by its storage.
    #[must_use]
    pub fn caller(&self, identity: Identity) -> Caller {
        self.live.set_identity(identity.clone());
        Caller {
            identity,
            address: self.address,
            server: self.server.clone(),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Guest {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let guest = parts.extensions.get::<Self>().cloned();
        guest.ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

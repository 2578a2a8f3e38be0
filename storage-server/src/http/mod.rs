//! HTTP on a listener's port: which path and subprotocol is which gateway, and the WebSocket upgrade.
//!
//! `/storage/<keyspace>` with subprotocol `storage-sync.v1` is native; `/` without a subprotocol is mwDB. What is
//! refused is refused here, in words, before a session exists. The router decides and takes the session's place; the
//! caller gets the stream back and runs the session. Who may ask from a browser is in [`browser`].

mod browser;
mod patient;
mod upgrade;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use storage_protocol::native::SUBPROTOCOL;
use storage_protocol::{Keyspace, Limit, StorageError};

use crate::auth::{IdentityError, Principal};
use crate::config::{ListenerConfig, TlsMode};
use crate::gateway::admin;
use crate::limits::budget::SessionSlot;
use crate::metrics::RefusedLabel;
use crate::shared::{Phase, Shared};

pub(crate) use self::patient::Patient;

pub(crate) type Body = Full<Bytes>;

/// The keyspace that mwDB clients are served from.
const MWDB_KEYSPACE: &str = "mwdb";
const NATIVE_PATH: &str = "/storage/";

/// Which dialect a session speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Native,
    Mwdb,
}

/// A session that was let in, to begin behind the answer to its upgrade request.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) kind: Kind,
    pub(crate) keyspace: Keyspace,
    pub(crate) slot: SessionSlot,
}

/// Answers the requests of one connection.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) shared: Arc<Shared>,
    pub(crate) listener: Arc<ListenerConfig>,
    /// A peer whose certificate names nobody is answered, so that it learns why it is not let in.
    pub(crate) principal: Result<Principal, IdentityError>,
    /// Set with the answer to an upgrade; then HTTP is over.
    pub(crate) admitted: Mutex<Option<Admitted>>,
}

/// A request that is not carried out.
struct Refusal {
    status: StatusCode,
    reason: String,
    label: RefusedLabel,
}

impl Refusal {
    fn new(status: StatusCode, label: RefusedLabel, reason: impl Into<String>) -> Self {
        Self {
            status,
            label,
            reason: reason.into(),
        }
    }
}

impl Router {
    pub(crate) fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let refusal = match self.decide(request) {
            Ok(response) => return response,
            Err(refusal) => refusal,
        };
        self.shared.metrics.refused(refusal.label);
        tracing::info!(
            status = refusal.status.as_u16(),
            reason = refusal.reason,
            "refused a request"
        );
        let mut response = text(refusal.status, format!("{}\n", refusal.reason));
        if refusal.status == StatusCode::UPGRADE_REQUIRED {
            upgrade::demand(&mut response);
        }
        response
    }

    fn decide<B>(&self, request: &Request<B>) -> Result<Response<Body>, Refusal> {
        browser::check_host_header(request)
            .map_err(|reason| http(StatusCode::BAD_REQUEST, reason))?;
        if let Err(error) = &self.principal {
            let (status, label) = (StatusCode::FORBIDDEN, RefusedLabel::Principal);
            return Err(Refusal::new(status, label, error.to_string()));
        }
        if self.listener.gateways.admin && admin::serves(request.uri().path()) {
            if self.listener.tls == TlsMode::Off {
                browser::check_host(request, &self.listener)
                    .map_err(|reason| http(StatusCode::MISDIRECTED_REQUEST, reason))?;
            }
            return Ok(admin::answer(&self.shared, request));
        }
        self.admit(request)
    }

    fn admit<B>(&self, request: &Request<B>) -> Result<Response<Body>, Refusal> {
        let path = request.uri().path();
        let name = path.strip_prefix(NATIVE_PATH);
        if !self.listener.gateways.storage || (path != "/" && name.is_none()) {
            return Err(http(StatusCode::NOT_FOUND, "there is nothing here"));
        }
        let Some(offer) = upgrade::Offer::of(request) else {
            return Err(http(
                StatusCode::UPGRADE_REQUIRED,
                "this is a WebSocket endpoint",
            ));
        };
        let offer = offer.map_err(|flaw| http(flaw.status(), flaw.reason()))?;
        let (kind, keyspace) = match name {
            Some(name) if offer.has_subprotocol(SUBPROTOCOL) => (Kind::Native, keyspace(name)?),
            Some(_) => {
                let reason =
                    format!("{NATIVE_PATH}<keyspace> speaks the subprotocol {SUBPROTOCOL}");
                return Err(http(StatusCode::BAD_REQUEST, reason));
            }
            None if offer.subprotocols.is_empty() => (Kind::Mwdb, self.mwdb_keyspace()?),
            None => {
                let reason = format!(
                    "/ serves mwDB clients, without a subprotocol; {SUBPROTOCOL} is at {NATIVE_PATH}<keyspace>"
                );
                return Err(http(StatusCode::BAD_REQUEST, reason));
            }
        };
        browser::check_origin(request, &self.listener, kind)
            .map_err(|reason| http(StatusCode::FORBIDDEN, reason))?;
        let slot = self.slot()?;
        *self.admitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Admitted {
            kind,
            keyspace,
            slot,
        });
        Ok(offer.accept((kind == Kind::Native).then_some(SUBPROTOCOL)))
    }

    fn mwdb_keyspace(&self) -> Result<Keyspace, Refusal> {
        let keyspace = keyspace(MWDB_KEYSPACE)?;
        let configured = self.shared.config.engine.mwdb_keyspaces.as_deref();
        if configured.is_some_and(|keyspaces| !keyspaces.contains(&keyspace)) {
            let reason = "the keyspace mwdb is not among engine.mwdb_keyspaces";
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                RefusedLabel::Keyspace,
                reason,
            ));
        }
        Ok(keyspace)
    }

    fn slot(&self) -> Result<SessionSlot, Refusal> {
        let unavailable =
            |label, reason| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, label, reason);
        if self.shared.phase() != Phase::Serving {
            return Err(unavailable(
                RefusedLabel::Draining,
                "the server is starting or shuts down".to_owned(),
            ));
        }
        let principal = self
            .principal
            .clone()
            .unwrap_or_else(|_| Principal::anonymous());
        self.shared.slots.take(principal.as_str()).map_err(|error| {
            let label = match error {
                StorageError::Overloaded {
                    limit: Limit::Sessions,
                    ..
                } => RefusedLabel::Sessions,
                _ => RefusedLabel::SessionsPerPrincipal,
            };
            unavailable(label, error.to_string())
        })
    }
}

fn http(status: StatusCode, reason: impl Into<String>) -> Refusal {
    Refusal::new(status, RefusedLabel::Http, reason)
}

fn keyspace(name: &str) -> Result<Keyspace, Refusal> {
    Keyspace::new(name).map_err(|error| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            RefusedLabel::Keyspace,
            error.to_string(),
        )
    })
}

/// A response in plain text.
pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

//! HTTP on a listener's port: which request is a WebSocket's, and which gateway answers the others.
//!
//! A request for an upgrade at the path of a [`protocol`] is checked here, before a session exists, and a refusal is an
//! HTTP answer with its reason. A slot among the sessions is taken before the answer that switches protocols; the
//! caller then gets the stream back and runs the connection. Every other request goes to the routers of the listener's
//! gateways, one after the other, and its connection takes a slot among the HTTP connections ([`slots`]). Requests from
//! browsers are checked in [`browser`], the opening handshake in [`upgrade`].

mod browser;
pub(crate) mod caller;
mod patient;
pub(crate) mod protocol;
mod slots;
mod upgrade;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode, Uri};
use storage_protocol::{Limit, StorageError};
use tower::ServiceExt;
use tower_http::timeout::TimeoutBody;

use crate::audit::{Event, Outcome, Record};
use crate::auth::passwords::LoginError;
use crate::auth::{AuthError, Identity, IdentityError, LivePeer, Principal, Proof, Shown, tokens};
use crate::config::{AuthMethod, ListenerConfig, TlsMode};
use crate::limits::budget::SessionSlot;
use crate::metrics::{Gauge, RefusedLabel};
use crate::net::admission::Place;
use crate::shared::{Phase, ServerHandle, Shared};
use caller::Caller;
use protocol::{Opening, Origins, UpgradeRequest, WebSocketProtocol};
use slots::{HttpSlot, HttpSlots};

pub(crate) use self::patient::Patient;

const NOT_FOUND: &str = "there is nothing here";

/// A request that is not carried out.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    reason: String,
    label: RefusedLabel,
    /// When the same may be tried again.
    retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, label: RefusedLabel, reason: impl Into<String>) -> Self {
        Self {
            status,
            label,
            reason: reason.into(),
            retry_after: None,
        }
    }

    /// There are as many sessions as there may be.
    pub(crate) fn no_session(error: &StorageError) -> Self {
        let label = match error {
            StorageError::Overloaded {
                limit: Limit::Sessions,
                ..
            } => RefusedLabel::Sessions,
            StorageError::Overloaded {
                limit: Limit::QuotaSessions,
                ..
            } => RefusedLabel::SessionsQuota,
            _ => RefusedLabel::SessionsPerPrincipal,
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, label, error.to_string())
    }

    pub(crate) fn http(status: StatusCode, reason: impl Into<String>) -> Self {
        Self::new(status, RefusedLabel::Http, reason)
    }
}

/// What a listener serves.
#[derive(Debug)]
pub(crate) struct Front {
    shared: Arc<Shared>,
    listener: ListenerConfig,
    routers: axum::Router,
    protocols: Vec<WebSocketProtocol>,
    slots: Arc<HttpSlots>,
}

/// A WebSocket that was admitted: it begins after the answer to its upgrade request.
pub(crate) struct Admitted {
    pub(crate) opening: Opening,
    pub(crate) identity: Identity,
    pub(crate) slot: SessionSlot,
    /// The gauge of open connections of its protocol.
    pub(crate) open: Gauge,
}

/// One connection while it speaks HTTP.
pub(crate) struct Visit {
    front: Arc<Front>,
    address: SocketAddr,
    /// By its certificate. A peer whose certificate names nobody is answered, so that it learns why it is not let in.
    certified: Result<Option<Identity>, IdentityError>,
    /// Closed when who asked last is not let in any more.
    live: Arc<LivePeer>,
    place: Arc<Place>,
    state: Mutex<VisitState>,
}

#[derive(Default)]
struct VisitState {
    /// Set with the answer to an upgrade; then HTTP is over.
    admitted: Option<Admitted>,
    /// From the first request for a route on.
    slot: Option<HttpSlot>,
}

impl Front {
    /// `routers`: the first that has a route for a path answers.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        listener: &ListenerConfig,
        routers: Vec<axum::Router>,
        protocols: Vec<WebSocketProtocol>,
    ) -> Arc<Self> {
        for protocol in &protocols {
            // So that `/metrics` shows 0 before the first.
            shared.metrics.sessions(protocol.label());
        }
        // A request for which one router has no route goes to the next.
        let nothing = axum::Router::new().fallback(async || NotFound);
        let routers = routers.into_iter().filter(axum::Router::has_routes);
        let routers = routers.rfold(nothing, |next, routes| routes.fallback_service(next));
        Arc::new(Self {
            // Most connections are left for sessions.
            slots: HttpSlots::new(
                shared
                    .config
                    .limits
                    .http_connections_max
                    .min(shared.connections.max() / 4)
                    .max(1),
            ),
            shared: shared.clone(),
            listener: listener.clone(),
            routers,
            protocols,
        })
    }

    pub(crate) fn visit(
        self: &Arc<Self>,
        address: SocketAddr,
        certified: Result<Option<Identity>, IdentityError>,
        live: &Arc<LivePeer>,
        place: &Arc<Place>,
    ) -> Arc<Visit> {
        Arc::new(Visit {
            front: self.clone(),
            address,
            certified,
            live: live.clone(),
            place: place.clone(),
            state: Mutex::default(),
        })
    }

    fn refuse(&self, refusal: Refusal, uri: &Uri) -> Response<Body> {
        self.shared.metrics.refused(refusal.label);
        tracing::info!(
            status = refusal.status.as_u16(),
            reason = refusal.reason,
            uri = %tokens::redact(&uri.to_string()),
            "refused a request"
        );
        let mut response = (refusal.status, format!("{}\n", refusal.reason)).into_response();
        if refusal.status == StatusCode::UPGRADE_REQUIRED {
            upgrade::demand(&mut response);
        } else if refusal.status == StatusCode::UNAUTHORIZED {
            let headers = response.headers_mut();
            for method in self.listener.auth() {
                if let Some(challenge) = challenge(*method) {
                    headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
                }
            }
        } else if let Some(retry_after) = refusal.retry_after {
            let seconds = HeaderValue::from(retry_after.as_secs().max(1));
            response.headers_mut().insert(RETRY_AFTER, seconds);
        } else if refusal.label == RefusedLabel::HttpConnections {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// A slot for a WebSocket's session.
    fn slot(&self, principal: &Principal) -> Result<SessionSlot, Refusal> {
        if self.shared.phase() != Phase::Serving {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                RefusedLabel::Draining,
                "the server is starting or shuts down",
            ));
        }
        let slot = self.shared.take_slot(principal);
        slot.map_err(|error| Refusal::no_session(&error))
    }
}

/// How a client without a credential is asked for one.
fn challenge(method: AuthMethod) -> Option<&'static str> {
    match method {
        AuthMethod::Token => Some("Bearer"),
        AuthMethod::Password => Some("Basic realm=\"storage-sync\", charset=\"UTF-8\""),
        AuthMethod::Certificate | AuthMethod::Anonymous => None,
    }
}

/// The answer to who is not let in for what it has shown.
fn refused(error: AuthError) -> Refusal {
    let reason = error.to_string();
    let (status, retry_after) = match &error {
        AuthError::Login(LoginError::TooMany { retry_after }) => {
            (StatusCode::TOO_MANY_REQUESTS, Some(*retry_after))
        }
        AuthError::Login(LoginError::Busy) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Some(Duration::from_secs(1)),
        ),
        AuthError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, None),
        AuthError::Malformed(_) => (StatusCode::BAD_REQUEST, None),
        _ => (StatusCode::UNAUTHORIZED, None),
    };
    Refusal {
        retry_after,
        ..Refusal::new(status, RefusedLabel::Credentials, reason)
    }
}

/// The answer of a listener that has no route for a path; told apart from a 404 of a gateway.
#[derive(Clone, Copy)]
struct NotFound;

impl IntoResponse for NotFound {
    fn into_response(self) -> Response<Body> {
        let mut response = StatusCode::NOT_FOUND.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl Visit {
    fn state(&self) -> std::sync::MutexGuard<'_, VisitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The WebSocket that HTTP ended with, if it did.
    pub(crate) fn admitted(&self) -> Option<Admitted> {
        self.state().admitted.take()
    }

    /// Answers a request.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let uri = request.uri().clone();
        let answered = self.answer_or_refuse(request).await;
        answered.unwrap_or_else(|refusal| self.front.refuse(refusal, &uri))
    }

    async fn answer_or_refuse(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        browser::check_host_header(&request)
            .map_err(|reason| Refusal::http(StatusCode::BAD_REQUEST, reason))?;
        let wanted = self.wanted(&request)?;
        let (parts, body) = request.into_parts();
        let protocol = wanted.as_ref().map(|(protocol, _)| *protocol);
        let identity = self.identify(&parts, protocol).await?;
        let identity = identity.at(Some(self.address));
        let request = Request::from_parts(parts, body);
        match wanted {
            Some((protocol, offer)) => self.admit(&request, protocol, &offer, identity),
            None => self.route(request, identity).await,
        }
    }

    /// Who sent a request. `protocol`: the one that it is for.
    async fn identify(
        &self,
        request: &Parts,
        protocol: Option<&WebSocketProtocol>,
    ) -> Result<Identity, Refusal> {
        let certified = self.certified.as_ref().map_err(|error| {
            let (status, label) = (StatusCode::FORBIDDEN, RefusedLabel::Principal);
            self.tell_denied(None, &error.to_string());
            Refusal::new(status, label, error.to_string())
        })?;
        if let Some(identity) = certified {
            return Ok(identity.clone());
        }
        let mut authorization = request.headers.get_all(AUTHORIZATION).iter();
        let authorization = match (authorization.next(), authorization.next()) {
            (None, _) => None,
            // What cannot be read is refused like what is none.
            (Some(value), None) => Some(value.to_str().unwrap_or_default()),
            (Some(_), Some(_)) => Some(""),
        };
        let offered = upgrade::subprotocols(&request.headers);
        let in_query = protocol.and_then(|protocol| {
            let query = request.uri.query()?;
            tokens::from_query(query, protocol.token_parameters())
        });
        let shown = Shown {
            authorization,
            token: tokens::from_subprotocols(&offered).or(in_query.as_deref()),
        };
        let says_nothing = authorization.is_none() && shown.token.is_none();
        if says_nothing && protocol.is_some_and(WebSocketProtocol::logs_in) {
            // It says who it is in the connection.
            return Ok(Identity::pending());
        }
        let (front, address) = (&self.front, self.address.ip());
        let identified = front
            .shared
            .access
            .identify(front.listener.auth(), shown, address);
        let identified = identified.await;
        self.tell_login(shown, &identified);
        identified.map_err(refused)
    }

    /// Tells the audit log who was let in by a token or a password, and who was not.
    fn tell_login(&self, shown: Shown<'_>, identified: &Result<Identity, AuthError>) {
        let shared = &self.front.shared;
        match identified {
            Ok(identity) if shared.audit.wants.session && !identity.principal().is_anonymous() => {
                let record = Record::new(Event::Session, "log_in", Outcome::Allowed);
                let identity = identity.clone().at(Some(self.address));
                shared.audit.put(record.by(&identity));
            }
            Err(error) if shared.audit.wants.denied => {
                let (by, claimed) = shared.access.claim(shown);
                let outcome = match error {
                    AuthError::Store(_) => Outcome::Failed,
                    _ => Outcome::Denied,
                };
                let record = Record::new(Event::Denied, "log_in", outcome);
                let record = record.address(self.address).claiming(by, claimed);
                let record = match error {
                    AuthError::Ended { id, .. } => record.token(id),
                    _ => record,
                };
                shared.audit.put(record.reason(&error.to_string()));
            }
            _ => {}
        }
    }

    /// Tells the audit log of a page, or a certificate, that is not let in.
    fn tell_denied(&self, identity: Option<&Identity>, reason: &str) {
        let record = Record::new(Event::Denied, "log_in", Outcome::Denied);
        let record = match identity {
            Some(identity) => record.by(identity),
            None => record.address(self.address).claiming("certificate", None),
        };
        self.front.shared.audit.put(record.reason(reason));
    }

    /// That a request with an `Origin` comes from a page that may send it.
    fn check_origin<B>(
        &self,
        request: &Request<B>,
        origins: Origins,
        identity: &Identity,
    ) -> Result<(), Refusal> {
        let checked = browser::check_origin(request, &self.front.listener, origins);
        checked.map_err(|reason| {
            self.tell_denied(Some(identity), &reason);
            Refusal::http(StatusCode::FORBIDDEN, reason)
        })
    }

    /// The WebSocket protocol that a request is for, if it is for one.
    fn wanted<B>(
        &self,
        request: &Request<B>,
    ) -> Result<Option<(&WebSocketProtocol, upgrade::Offer)>, Refusal> {
        let front = &self.front;
        let path = request.uri().path();
        let protocols = front.protocols.iter();
        let at_path: Vec<_> = protocols.filter(|protocol| protocol.is_at(path)).collect();
        if at_path.is_empty() {
            return Ok(None);
        }
        let Some(offer) = upgrade::Offer::of(request) else {
            return Ok(None);
        };
        let offer = offer.map_err(|flaw| Refusal::http(flaw.status(), flaw.reason()))?;
        let protocol = protocol::choose(&at_path, &offer.subprotocols)?;
        Ok(Some((protocol, offer)))
    }

    /// The answer to a request for a WebSocket.
    fn admit<B>(
        &self,
        request: &Request<B>,
        protocol: &WebSocketProtocol,
        offer: &upgrade::Offer,
        identity: Identity,
    ) -> Result<Response<Body>, Refusal> {
        let front = &self.front;
        let (uri, headers) = (request.uri().clone(), request.headers().clone());
        let opening = protocol.open(UpgradeRequest::new(identity.clone(), uri, headers))?;
        // Old clients say origins of their own making; it is their certificate that counts.
        let origins = match identity.proof() {
            Proof::Password { .. } => Origins::Own,
            Proof::Anonymous if front.listener.tls != TlsMode::Off => Origins::Own,
            _ => protocol.origins(),
        };
        self.check_origin(request, origins, &identity)?;
        let slot = front.slot(identity.principal())?;
        self.state().admitted = Some(Admitted {
            opening,
            identity,
            slot,
            open: front.shared.metrics.sessions(protocol.label()),
        });
        Ok(offer.accept(protocol.subprotocol()))
    }

    /// The answer of the gateway that has a route for it.
    async fn route(
        &self,
        request: Request<Incoming>,
        identity: Identity,
    ) -> Result<Response<Body>, Refusal> {
        let front = &self.front;
        if front.listener.tls == TlsMode::Off {
            browser::check_host(&request, &front.listener)
                .map_err(|reason| Refusal::http(StatusCode::MISDIRECTED_REQUEST, reason))?;
        }
        // A page of another site can send these with the user's certificate, although it cannot read the answer.
        if !request.method().is_safe() {
            self.check_origin(&request, Origins::Own, &identity)?;
        }
        self.settle(identity.principal())?;
        self.live.set_identity(identity.clone());
        let path = request.uri().path();
        let is_protocol = front.protocols.iter().any(|protocol| protocol.is_at(path));
        let patience = front.shared.config.timeouts.partial_message;
        let mut request = request.map(|body| Body::new(TimeoutBody::new(patience, body)));
        request.extensions_mut().insert(Caller {
            identity,
            address: self.address,
            server: ServerHandle::new(&front.shared),
        });
        let answered = front.routers.clone().oneshot(request).await;
        let response = answered.unwrap_or_else(|never| match never {});
        if response.extensions().get::<NotFound>().is_none() {
            Ok(response)
        } else if is_protocol {
            let reason = "this is a WebSocket endpoint";
            Err(Refusal::http(StatusCode::UPGRADE_REQUIRED, reason))
        } else {
            Err(Refusal::http(StatusCode::NOT_FOUND, NOT_FOUND))
        }
    }

    /// Counts the connection among the HTTP connections from here on, and gives its place among the handshakes back.
    fn settle(&self, principal: &Principal) -> Result<(), Refusal> {
        let mut state = self.state();
        if state.slot.is_none() {
            let slot = self.front.slots.take(principal, self.address.ip());
            state.slot = Some(slot.map_err(|full| {
                let (status, label) = (
                    StatusCode::SERVICE_UNAVAILABLE,
                    RefusedLabel::HttpConnections,
                );
                Refusal::new(status, label, full.to_string())
            })?);
            self.place.settle();
        }
        Ok(())
    }
}

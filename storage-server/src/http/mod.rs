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

use axum::body::Body;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response, StatusCode};
use storage_protocol::{Limit, StorageError};
use tower::ServiceExt;
use tower_http::timeout::TimeoutBody;

use crate::auth::{IdentityError, Principal};
use crate::config::{ListenerConfig, TlsMode};
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
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, label: RefusedLabel, reason: impl Into<String>) -> Self {
        Self {
            status,
            label,
            reason: reason.into(),
        }
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
    pub(crate) slot: SessionSlot,
    /// The gauge of open connections of its protocol.
    pub(crate) open: Gauge,
}

/// One connection while it speaks HTTP.
pub(crate) struct Visit {
    front: Arc<Front>,
    address: SocketAddr,
    /// A peer whose certificate names nobody is answered, so that it learns why it is not let in.
    principal: Result<Principal, IdentityError>,
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
        principal: Result<Principal, IdentityError>,
        place: &Arc<Place>,
    ) -> Arc<Visit> {
        Arc::new(Visit {
            front: self.clone(),
            address,
            principal,
            place: place.clone(),
            state: Mutex::default(),
        })
    }

    fn refuse(&self, refusal: Refusal) -> Response<Body> {
        self.shared.metrics.refused(refusal.label);
        tracing::info!(
            status = refusal.status.as_u16(),
            reason = refusal.reason,
            "refused a request"
        );
        let mut response = (refusal.status, format!("{}\n", refusal.reason)).into_response();
        if refusal.status == StatusCode::UPGRADE_REQUIRED {
            upgrade::demand(&mut response);
        } else if refusal.label == RefusedLabel::HttpConnections {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// A slot for a WebSocket's session.
    fn slot(&self, principal: &Principal) -> Result<SessionSlot, Refusal> {
        let unavailable =
            |label, reason| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, label, reason);
        if self.shared.phase() != Phase::Serving {
            return Err(unavailable(
                RefusedLabel::Draining,
                "the server is starting or shuts down".to_owned(),
            ));
        }
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

/// The answer of a listener that has no route for a path; distinct from a 404 of a gateway.
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
        let answered = match self.upgrade(&request) {
            Ok(Some(response)) => Ok(response),
            Ok(None) => self.route(request).await,
            Err(refusal) => Err(refusal),
        };
        answered.unwrap_or_else(|refusal| self.front.refuse(refusal))
    }

    fn principal(&self) -> Result<&Principal, Refusal> {
        self.principal.as_ref().map_err(|error| {
            let (status, label) = (StatusCode::FORBIDDEN, RefusedLabel::Principal);
            Refusal::new(status, label, error.to_string())
        })
    }

    /// The answer to a request for a WebSocket; `None` if it is for something else.
    fn upgrade<B>(&self, request: &Request<B>) -> Result<Option<Response<Body>>, Refusal> {
        browser::check_host_header(request)
            .map_err(|reason| Refusal::http(StatusCode::BAD_REQUEST, reason))?;
        let principal = self.principal()?;
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
        let (uri, headers) = (request.uri().clone(), request.headers().clone());
        let opening = protocol.open(UpgradeRequest::new(principal.clone(), uri, headers))?;
        browser::check_origin(request, &front.listener, protocol.origins())
            .map_err(|reason| Refusal::http(StatusCode::FORBIDDEN, reason))?;
        let slot = front.slot(principal)?;
        self.state().admitted = Some(Admitted {
            opening,
            slot,
            open: front.shared.metrics.sessions(protocol.label()),
        });
        Ok(Some(offer.accept(protocol.subprotocol())))
    }

    /// The answer of the gateway that has a route for it.
    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let front = &self.front;
        if front.listener.tls == TlsMode::Off {
            browser::check_host(&request, &front.listener)
                .map_err(|reason| Refusal::http(StatusCode::MISDIRECTED_REQUEST, reason))?;
        }
        // A page of another site can send these with the user's certificate, although it cannot read the answer.
        if !request.method().is_safe() {
            browser::check_origin(&request, &front.listener, Origins::Own)
                .map_err(|reason| Refusal::http(StatusCode::FORBIDDEN, reason))?;
        }
        let principal = self.principal()?.clone();
        self.settle(&principal)?;
        let path = request.uri().path();
        let is_protocol = front.protocols.iter().any(|protocol| protocol.is_at(path));
        let patience = front.shared.config.timeouts.partial_message;
        let mut request = request.map(|body| Body::new(TimeoutBody::new(patience, body)));
        request.extensions_mut().insert(Caller {
            principal,
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

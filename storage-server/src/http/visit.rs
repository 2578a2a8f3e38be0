//! One connection while it speaks HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::middleware::Next;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use tower::ServiceExt;

use super::caller::Caller;
use super::guest::Guest;
use super::pace::PacedBody;
use super::protocol::{self, Opening, Origins, UpgradeRequest, WebSocketProtocol};
use super::refusal::refused;
use super::slots::HttpSlot;
use super::{Front, Refusal, browser, upgrade};
use crate::audit::{Event, Outcome, Record};
use crate::auth::{Identity, IdentityError, LivePeer, Principal, Proof, shown_by, tokens};
use crate::config::TlsMode;
use crate::limits::budget::SessionSlot;
use crate::metrics::{Gauge, RefusedLabel};
use crate::net::admission::Place;
use crate::shared::ServerHandle;

const NOT_FOUND: &str = "there is nothing here";

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
    pub(super) front: Arc<Front>,
    pub(super) address: SocketAddr,
    /// By its certificate. A peer whose certificate names nobody is answered, so that it learns why it is not let in.
    pub(super) certified: Result<Option<Identity>, IdentityError>,
    /// Closed when who asked last is not let in any more.
    pub(super) live: Arc<LivePeer>,
    pub(super) place: Arc<Place>,
    pub(super) state: Mutex<VisitState>,
}

#[derive(Default)]
pub(super) struct VisitState {
    /// Set with the answer to an upgrade; then HTTP is over.
    admitted: Option<Admitted>,
    /// From the first request for a route on.
    slot: Option<HttpSlot>,
}

/// A request for a WebSocket.
struct Wanted<'a> {
    protocol: &'a WebSocketProtocol,
    /// A protocol of text messages at the same path, where `protocol` is one of binary messages.
    text: Option<&'a WebSocketProtocol>,
    offer: upgrade::Offer,
}

/// The value of `Authorization`. What cannot be read, and one of several, is refused like what is none.
fn authorization(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (None, _) => None,
        (Some(value), None) => Some(value.to_str().unwrap_or_default()),
        (Some(_), Some(_)) => Some(""),
    }
}

fn has_scheme(authorization: &str, scheme: &str) -> bool {
    let word = authorization.split_ascii_whitespace().next();
    word.is_some_and(|word| word.eq_ignore_ascii_case(scheme))
}

/// Whether the server itself knows what such an `Authorization` means.
fn is_standard(authorization: &str) -> bool {
    has_scheme(authorization, "basic") || has_scheme(authorization, "bearer")
}

/// Whether a request has a credential that a browser does not add by itself to what a page of another site sends, and that
/// such a page cannot make up unasked, as it can a token in the query.
fn shows_what_no_browser_adds<B>(request: &Request<B>) -> bool {
    let by_header = authorization(request.headers());
    by_header.is_some_and(|value| !has_scheme(value, "basic"))
}

/// The connection of a request.
pub(super) struct Of(Arc<Visit>);

impl<S: Sync> FromRequestParts<S> for Of {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let visit = parts.extensions.get::<Arc<Visit>>().cloned();
        visit.map(Self).ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// Around the routes of gateways whose requests are let in by the server.
pub(super) async fn as_caller(Of(visit): Of, request: Request<Body>, next: Next) -> Response<Body> {
    let uri = request.uri().clone();
    match visit.call(request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => visit.front.refuse(refusal, &uri),
    }
}

/// Around the routes of gateways that have logins of their own.
pub(super) async fn as_guest(Of(visit): Of, request: Request<Body>, next: Next) -> Response<Body> {
    let uri = request.uri().clone();
    match visit.receive(request) {
        Ok(request) => next.run(request).await,
        Err(refusal) => visit.front.refuse(refusal, &uri),
    }
}

/// Behind all routes. Who is not let in does not learn that either.
pub(super) async fn nowhere(Of(visit): Of, request: Request<Body>) -> Response<Body> {
    let uri = request.uri().clone();
    match visit.call(request).await {
        Ok(_) => NotFound.into_response(),
        Err(refusal) => visit.front.refuse(refusal, &uri),
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
    pub(crate) async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let uri = request.uri().clone();
        let answered = self.answer_or_refuse(request).await;
        answered.unwrap_or_else(|refusal| self.front.refuse(refusal, &uri))
    }

    async fn answer_or_refuse(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        browser::check_host_header(&request)
            .map_err(|reason| Refusal::http(StatusCode::BAD_REQUEST, reason))?;
        let Some(wanted) = self.wanted(&request)? else {
            return self.route(request).await;
        };
        match self.identify_for(&request, &wanted).await? {
            Ok(identity) => self.admit(&request, &wanted, identity),
            Err(answer) => Ok(answer),
        }
    }

    /// Who sent a request. `token`: one that stands elsewhere than in its `Authorization`.
    async fn identify(
        &self,
        headers: &HeaderMap,
        token: Option<&str>,
    ) -> Result<Identity, Refusal> {
        if let Some(identity) = self.certified()? {
            return Ok(identity.clone());
        }
        let shown = shown_by(authorization(headers), token);
        let identified = self.front.identify(&shown, self.address).await;
        identified.map_err(|error| refused(&error))
    }

    /// Who it is by its certificate.
    fn certified(&self) -> Result<Option<&Identity>, Refusal> {
        let certified = self.certified.as_ref().map_err(|error| {
            let (status, label) = (StatusCode::FORBIDDEN, RefusedLabel::Principal);
            self.tell_denied(None, &error.to_string());
            Refusal::new(status, label, error.to_string())
        })?;
        Ok(certified.as_ref())
    }

    fn guest(&self) -> Result<Guest, Refusal> {
        let certified = self.certified()?.cloned();
        Ok(Guest::new(&self.front, self.address, certified, &self.live))
    }

    /// Who asks for a WebSocket; else the answer.
    async fn identify_for(
        &self,
        request: &Request<Incoming>,
        wanted: &Wanted<'_>,
    ) -> Result<Result<Identity, Response<Body>>, Refusal> {
        let protocol = wanted.protocol;
        let headers = request.headers();
        let offered = upgrade::subprotocols(headers);
        let in_query = request.uri().query().and_then(|query| {
            let names = protocol.token_parameters();
            tokens::from_query(query, names)
        });
        let token = tokens::from_subprotocols(&offered).or(in_query.as_deref());
        let authorization = authorization(headers);
        // Where two protocols share the path, either's logins are good.
        let login = match wanted.text {
            Some(_) if authorization.is_some_and(is_standard) || token.is_some() => None,
            Some(text) => text.login(),
            None => protocol.login(),
        };
        if let Some(login) = login {
            let guest = self.guest()?;
            let (uri, headers) = (request.uri().clone(), headers.clone());
            let asked = UpgradeRequest::new(Identity::pending(), uri, headers);
            let judged = login(guest.clone(), asked.with_guest(guest)).await;
            let pending = || Identity::pending().at(Some(self.address));
            return Ok(judged.map(|identity| identity.unwrap_or_else(pending)));
        }
        let says_nothing = authorization.is_none() && token.is_none();
        if says_nothing && self.certified()?.is_none() && protocol.logs_in() {
            // It says who it is in the connection.
            return Ok(Ok(Identity::pending().at(Some(self.address))));
        }
        self.identify(headers, token).await.map(Ok)
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
    fn wanted<B>(&self, request: &Request<B>) -> Result<Option<Wanted<'_>>, Refusal> {
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
        let (protocol, text) = protocol::choose(&at_path, &offer.subprotocols)?;
        Ok(Some(Wanted {
            protocol,
            text,
            offer,
        }))
    }

    /// The answer to a request for a WebSocket.
    fn admit<B>(
        &self,
        request: &Request<B>,
        wanted: &Wanted<'_>,
        identity: Identity,
    ) -> Result<Response<Body>, Refusal> {
        let (front, protocol) = (&self.front, wanted.protocol);
        let (uri, headers) = (request.uri().clone(), request.headers().clone());
        let asked = UpgradeRequest::new(identity.clone(), uri, headers);
        let asked = asked.with_guest(self.guest()?);
        // Web pages may be let in by the one and not by the other.
        let text = wanted
            .text
            .filter(|text| browser::check_origin(request, &front.listener, text.origins()).is_ok());
        let opening = match text {
            Some(text) => {
                let beside = protocol.open_beside(asked.clone(), text);
                // The other one may be refused for reasons of its own.
                beside.or_else(|_| text.open(asked))?
            }
            None => protocol.open(asked)?,
        };
        // Old clients say origins of their own making; it is their certificate that counts.
        let origins = match identity.proof() {
            Proof::Password { .. } => Origins::Own,
            Proof::Anonymous | Proof::Pending if front.listener.tls != TlsMode::Off => Origins::Own,
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
        Ok(wanted.offer.accept(protocol.subprotocol()))
    }

    /// The answer of the gateway that has a route for it.
    async fn route(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let front = &self.front;
        let path = request.uri().path();
        let is_here =
            |protocol: &WebSocketProtocol| !protocol.takes_what_is_left() && protocol.is_at(path);
        let is_protocol = front.protocols.iter().any(is_here);
        let patience = front.shared.config.timeouts.partial_message;
        let mut request = request.map(|body| Body::new(PacedBody::new(body, patience)));
        request.extensions_mut().insert(self.clone());
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

    /// Lets whoever sent a request to its handler, and says who that is.
    async fn call(&self, mut request: Request<Body>) -> Result<Request<Body>, Refusal> {
        let identity = Box::pin(self.identify(request.headers(), None)).await?;
        self.check_host(&request)?;
        // A page of another site can send these with the user's certificate, although it cannot read the answer.
        if !request.method().is_safe() {
            self.check_origin(&request, Origins::Own, &identity)?;
        }
        self.settle(identity.principal())?;
        self.live.set_identity(identity.clone());
        request.extensions_mut().insert(Caller {
            identity,
            address: self.address,
            server: ServerHandle::new(&self.front.shared),
        });
        Ok(request)
    }

    /// The same for a handler that finds out itself who that is.
    fn receive(&self, mut request: Request<Body>) -> Result<Request<Body>, Refusal> {
        let guest = self.guest()?;
        self.check_host(&request)?;
        // A certificate is added by the browser, whatever is shown beside it.
        let is_certified = self.certified()?.is_some();
        let is_free = !is_certified && shows_what_no_browser_adds(&request);
        if !request.method().is_safe() && !is_free {
            let by = self.certified()?.cloned();
            let by = by.unwrap_or_else(|| Identity::anonymous().at(Some(self.address)));
            self.check_origin(&request, Origins::Own, &by)?;
        }
        self.settle(&Principal::anonymous())?;
        request.extensions_mut().insert(guest);
        Ok(request)
    }

    /// That a listener without TLS is called by a name that it has.
    fn check_host<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let listener = &self.front.listener;
        if listener.tls != TlsMode::Off {
            return Ok(());
        }
        let checked = browser::check_host(request, listener);
        checked.map_err(|reason| Refusal::http(StatusCode::MISDIRECTED_REQUEST, reason))
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

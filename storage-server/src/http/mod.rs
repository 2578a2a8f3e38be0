//! HTTP on a listener's port: which request is a WebSocket's, and which gateway answers the others.
//!
//! A request for an upgrade at the path of a [`protocol`] is checked here, before a session exists, and a refusal is an
//! HTTP answer with its reason. A slot among the sessions is taken before the answer that switches protocols; the
//! caller then gets the stream back and runs the connection. Every other request goes to the routers of the listener's
//! gateways, one after the other, and its connection takes a slot among the HTTP connections ([`slots`]). Who sent it is
//! found out before its handler is called ([`caller`]), or by the gateway itself, where its protocol has logins of its own
//! ([`guest`]). Requests from browsers are checked in [`browser`], the opening handshake in [`upgrade`].

mod browser;
pub(crate) mod caller;
pub(crate) mod guest;
pub(crate) mod held;
pub(crate) mod pace;
mod patient;
pub(crate) mod protocol;
mod refusal;
mod slots;
pub(crate) mod targets;
mod upgrade;
mod visit;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use hyper::header::{CONNECTION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode, Uri};

use crate::audit::{Event, Outcome, Record};
use crate::auth::{AuthError, Identity, IdentityError, LivePeer, Principal, Shown, tokens};
use crate::config::ListenerConfig;
use crate::limits::budget::SessionSlot;
use crate::metrics::RefusedLabel;
use crate::net::admission::Place;
use crate::shared::{Phase, Shared};
use protocol::WebSocketProtocol;
use refusal::challenges;
use slots::HttpSlots;
use visit::Visit;

pub(crate) use self::patient::Patient;
pub(crate) use self::refusal::Refusal;
pub(crate) use self::targets::Targets;
pub(crate) use self::visit::Admitted;

/// What a listener serves.
#[derive(Debug)]
pub(crate) struct Front {
    shared: Arc<Shared>,
    listener: ListenerConfig,
    routers: axum::Router,
    protocols: Vec<WebSocketProtocol>,
    slots: Arc<HttpSlots>,
    /// See [`targets`].
    pub(crate) takes_raw_targets: bool,
}

/// The routes of a gateway.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) router: axum::Router,
    /// Whether the gateway itself says who is let in: see [`guest`].
    pub(crate) own_login: bool,
}

impl Routes {
    /// They are called behind what is to be found out of whoever asks; only where one of them is asked for.
    fn guarded(self) -> axum::Router {
        match self.own_login {
            true => self.router.route_layer(from_fn(visit::as_guest)),
            false => self.router.route_layer(from_fn(visit::as_caller)),
        }
    }
}

impl Front {
    /// `routes`: the first that has a route for a path answers.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        listener: &ListenerConfig,
        routes: Vec<Routes>,
        protocols: Vec<WebSocketProtocol>,
        takes_raw_targets: bool,
    ) -> Arc<Self> {
        for protocol in &protocols {
            // So that `/metrics` shows 0 before the first.
            shared.metrics.sessions(protocol.label());
        }
        // A request for which one router has no route goes to the next.
        let nothing = axum::Router::new().fallback(visit::nowhere);
        let routers = routes.into_iter();
        let routers = routers.filter(|routes| routes.router.has_routes());
        let routers = routers.map(Routes::guarded);
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
            takes_raw_targets,
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

    /// Who shows this, from this address; told to the audit log.
    async fn identify(
        &self,
        shown: &Shown<'_>,
        address: SocketAddr,
    ) -> Result<Identity, AuthError> {
        let access = &self.shared.access;
        let identifying = access.identify(self.listener.auth(), shown, address.ip());
        let identified = identifying.await;
        let identified = identified.map(|identity| identity.at(Some(address)));
        self.tell_login(shown, address, &identified);
        identified
    }

    /// Tells the audit log who was let in by a token or a password, and who was not.
    fn tell_login(
        &self,
        shown: &Shown<'_>,
        address: SocketAddr,
        identified: &Result<Identity, AuthError>,
    ) {
        let shared = &self.shared;
        match identified {
            Ok(identity) if shared.audit.wants.session && !identity.principal().is_anonymous() => {
                let record = Record::new(Event::Session, "log_in", Outcome::Allowed);
                shared.audit.put(record.by(identity));
            }
            Err(error) if shared.audit.wants.denied => {
                let (by, claimed) = shared.access.claim(shown);
                let outcome = match error {
                    AuthError::Store(_) => Outcome::Failed,
                    _ => Outcome::Denied,
                };
                let record = Record::new(Event::Denied, "log_in", outcome);
                let record = record.address(address).claiming(by, claimed);
                let record = match error {
                    AuthError::Ended { id, .. } => record.token(id),
                    _ => record,
                };
                shared.audit.put(record.reason(&error.to_string()));
            }
            _ => {}
        }
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
            for challenge in challenges(self.listener.auth()) {
                headers.append(WWW_AUTHENTICATE, challenge);
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

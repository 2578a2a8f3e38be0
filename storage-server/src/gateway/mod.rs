//! The gateways: each speaks one protocol to its peers and only `Storage` to the inside.
//!
//! A [`Gateway`] brings HTTP routes, WebSocket protocols and metrics. A listener serves those that its `gateways` name:
//! their routes as one router, their protocols by path and subprotocol. What all have in common is done for them: TLS,
//! the principal, bounds, time-outs, the order of a shutdown. A program adds one by
//! [`ServerBuilder::gateway`](crate::ServerBuilder::gateway), or by [`crate::cli::main`] if it is to have the command line
//! of `storage-server` too; `tests/src/bin/echo-server` is the smallest that has one of each.
//!
//! * [`WebSocketProtocol`] and [`WebSocket`]: a protocol as a task that receives and sends messages.
//! * [`Caller`]: who asks, for a handler of a route.
//! * [`ServerHandle`]: what a gateway has of the server.

pub(crate) mod admin;
pub(crate) mod mwdb;
pub(crate) mod native;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use hyper::StatusCode;
use hyper::http::request::Parts;
use prometheus_client::registry::Registry;
use storage_protocol::{Keyspace, Limits, Storage};

use crate::shared::{Phase, Shared};

pub use crate::auth::{IdentityError, Principal};
pub use crate::http::protocol::{UpgradeRequest, WebSocketProtocol};
pub use crate::ws::socket::{
    LoginError, Message, Ping, SendError, SocketOptions, Utf8Bytes, WebSocket,
};
pub use crate::ws::{Close, close_code};
/// The router that a gateway's routes are made with.
pub use axum;
/// The metrics that a gateway registers are made with it.
pub use prometheus_client;

/// A protocol, or several that belong together, as a module of the server.
pub trait Gateway: fmt::Debug + Send + Sync {
    /// What the `gateways` of a listener call it. Several gateways may share a name: they are served together.
    fn name(&self) -> &'static str;

    /// The HTTP routes, for a listener that serves it. A route may be any that axum knows; a fallback of the router is not
    /// asked, `/{*path}` is. Where two gateways of a listener have routes for one path, the one that its `gateways` name
    /// first answers. Bodies may stream both ways: one that stands still, in either direction, ends its request (see
    /// `timeouts.partial_message` and `timeouts.slow_peer`); a request that is being answered at a shutdown has
    /// `timeouts.drain` to finish.
    fn routes(&self, _server: &ServerHandle) -> axum::Router {
        axum::Router::new()
    }

    /// The WebSocket protocols. A path may have several, if their subprotocols differ.
    fn protocols(&self, _server: &ServerHandle) -> Vec<WebSocketProtocol> {
        Vec::new()
    }

    /// Registers its metrics, once for each server that has it. A counter's name has no `_total`; `/metrics` adds that. What
    /// is registered is asked for at each look at `/metrics`: a collector must not block.
    fn register_metrics(&self, _registry: &mut Registry) {}
}

/// The gateways that each server has, in the order in which they are asked.
pub(crate) fn built_in() -> Vec<Arc<dyn Gateway>> {
    vec![
        Arc::new(native::NativeGateway),
        Arc::<mwdb::MwdbGateway>::default(),
        Arc::new(admin::Admin),
    ]
}

/// Names for the `gateways` of a listener, each once, in the order of the gateways.
pub(crate) fn names(gateways: &[Arc<dyn Gateway>]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for gateway in gateways {
        if !names.contains(&gateway.name()) {
            names.push(gateway.name());
        }
    }
    names
}

/// What a gateway has of the server that it is in. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle(Arc<Shared>);

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").finish_non_exhaustive()
    }
}

impl ServerHandle {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self(shared.clone())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// A keyspace, as this principal sees it: what it may not do is refused there, and nowhere else. A session of its own:
    /// its keys with session lifetime go when the last clone is dropped and the grace is over.
    #[must_use]
    pub fn storage_as(&self, principal: &Principal, keyspace: &Keyspace) -> Arc<dyn Storage> {
        let engine = &self.0.engine;
        engine.open_session(principal.as_str(), keyspace).storage()
    }

    /// What requests to storage may ask.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.0.announced
    }

    /// Whether the server takes requests: it has started, and does not shut down.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.0.phase() == Phase::Serving
    }
}

/// Who sent a request: an extractor for handlers of routes.
#[derive(Clone, Debug)]
pub struct Caller {
    /// By its certificate; `anonymous` where it has none.
    pub principal: Principal,
    /// The other end of the TCP connection.
    pub address: SocketAddr,
    pub(crate) server: ServerHandle,
}

impl Caller {
    /// A keyspace, as the caller sees it: see [`ServerHandle::storage_as`].
    #[must_use]
    pub fn storage(&self, keyspace: &Keyspace) -> Arc<dyn Storage> {
        self.server.storage_as(&self.principal, keyspace)
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

//! The gateways: each speaks one protocol to its peers and only `Storage` to the inside.
//!
//! A [`Gateway`] has HTTP routes, WebSocket protocols and metrics. A listener serves the gateways that its `gateways`
//! name: their routes as one router, their protocols by path and subprotocol. The server does for them what all have in
//! common: TLS, the principal, bounds, time-outs, the order of a shutdown. A program adds a gateway with
//! [`ServerBuilder::gateway`](crate::ServerBuilder::gateway), or with [`crate::cli::main`] if it is to have the command
//! line of `storage-server` too; `tests/src/bin/echo-server` is the smallest that has one of each.
//!
//! * [`WebSocketProtocol`] and [`WebSocket`]: a protocol as a task that receives and sends messages.
//! * [`Caller`]: who sent a request, for a handler of a route.
//! * [`ServerHandle`]: what a gateway may use of the server.

pub(crate) mod admin;
pub(crate) mod auth;
pub(crate) mod mwdb;
pub(crate) mod native;

use std::fmt;
use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::config::ListenerConfig;
use crate::http::Front;
use crate::shared::Shared;

pub use crate::auth::{Identity, IdentityError, Principal};
pub use crate::http::caller::Caller;
pub use crate::http::protocol::{UpgradeRequest, WebSocketProtocol};
pub use crate::shared::ServerHandle;
pub use crate::ws::socket::{
    LoginError, Message, Ping, SendError, SocketOptions, Utf8Bytes, WebSocket,
};
pub use crate::ws::{Close, close_code};
/// For a gateway's routes.
pub use axum;
/// For a gateway's metrics.
pub use prometheus_client;

/// A protocol, or several that belong together, as a module of the server.
pub trait Gateway: fmt::Debug + Send + Sync {
    /// What the `gateways` of a listener call it. Several gateways may share a name: they are served together.
    fn name(&self) -> &'static str;

    /// The HTTP routes, for a listener that serves it. A route may be any that axum knows; a fallback of the router is
    /// never called, a route `/{*path}` is. If two gateways of a listener have routes for one path, the one answers
    /// that was added to the server first. Bodies may stream both ways: one without progress, in either direction, ends
    /// its request (see `timeouts.partial_message` and `timeouts.slow_peer`); a request that is being answered at a
    /// shutdown has `timeouts.drain` to finish.
    fn routes(&self, _server: &ServerHandle) -> axum::Router {
        axum::Router::new()
    }

    /// The WebSocket protocols. A path may have several, if their subprotocols differ.
    fn protocols(&self, _server: &ServerHandle) -> Vec<WebSocketProtocol> {
        Vec::new()
    }

    /// Registers its metrics, once for each server that has it. A counter's name has no `_total`; `/metrics` adds that.
    /// The metrics are collected at each request for `/metrics`: a collector must not block.
    fn register_metrics(&self, _registry: &mut Registry) {}
}

/// The gateways that each server has, in the order in which they are asked.
pub(crate) fn built_in() -> Vec<Arc<dyn Gateway>> {
    vec![
        Arc::new(native::NativeGateway),
        Arc::<mwdb::MwdbGateway>::default(),
        Arc::new(auth::Auth),
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

/// What a listener serves: the routes and protocols of the gateways that it names.
pub(crate) fn front(
    gateways: &[Arc<dyn Gateway>],
    shared: &Arc<Shared>,
    listener: &ListenerConfig,
) -> Arc<Front> {
    let server = ServerHandle::new(shared);
    let is_named = |gateway: &&Arc<dyn Gateway>| {
        let name = gateway.name();
        listener.gateways.iter().any(|named| named == name)
    };
    let named = gateways.iter().filter(is_named);
    let (mut routers, mut protocols) = (Vec::new(), Vec::new());
    for gateway in named {
        routers.push(gateway.routes(&server));
        protocols.extend(gateway.protocols(&server));
    }
    Front::new(shared, listener, routers, protocols)
}

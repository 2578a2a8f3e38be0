//! The gateways: each speaks one protocol to its peers and only `Storage` to the inside.
//!
//! A [`Gateway`] has HTTP routes, WebSocket protocols and metrics. A listener serves the gateways that its `gateways`
//! name: their routes as one router, their protocols by path and subprotocol. The server does for them what all have in
//! common: TLS, the principal, bounds, time-outs, the order of a shutdown. A program adds a gateway with
//! [`ServerBuilder::gateway`](crate::ServerBuilder::gateway), or with [`crate::cli::main`] if it is to have the command
//! line of `storage-server` too; `tests/src/bin/echo-server` is the smallest that has one of each.
//!
//! * [`WebSocketProtocol`] and [`WebSocket`]: a protocol as a task that receives and sends messages.
//! * [`Caller`]: who sent a request, for a handler of a route; [`Guest`] for gateways with logins of their own.
//! * [`ServerHandle`]: what a gateway may use of the server.

pub(crate) mod admin;
pub(crate) mod auth;
pub(crate) mod events;
pub(crate) mod json;
pub(crate) mod mwdb;
pub(crate) mod native;
pub(crate) mod repository;
pub(crate) mod robots;
pub(crate) mod workspace;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::config::ListenerConfig;
use crate::http::{Front, Routes};
use crate::shared::Shared;

pub use self::auth::{MintError, Minted, TokenWish, UserError};
pub use crate::auth::{Identity, IdentityError, Principal};
pub use crate::config::AuthMethod;
pub use crate::http::caller::Caller;
pub use crate::http::guest::{Credential, Guest, NotLetIn, NotLetInKind};
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

    /// Whether its protocol has logins of its own, with answers of its own to who is not let in. Then its routes are called
    /// for everybody, with a [`Guest`] in place of a [`Caller`], and its WebSocket protocols have
    /// [`with_login`](WebSocketProtocol::with_login). Default: no; the server lets in who shows what the listener takes.
    fn has_own_login(&self) -> bool {
        false
    }

    /// Whether its routes take all paths that are left, so that it is asked behind all others. Default: no.
    fn takes_what_is_left(&self) -> bool {
        false
    }

    /// Whether its clients send request targets with characters that no URI has. On listeners that serve it these are
    /// percent-encoded before a request is parsed. Default: no; such a request is refused.
    fn takes_raw_targets(&self) -> bool {
        false
    }

    /// Makes its example users and objects, where they are missing, once at a start with `--demo` (which is for listeners on
    /// loopback alone), and says what it made, a line each. Default: none.
    fn demo(&self, _server: &ServerHandle) -> Demo {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Registers its metrics, once for each server that has it. A counter's name has no `_total`; `/metrics` adds that.
    /// The metrics are collected at each request for `/metrics`: a collector must not block.
    fn register_metrics(&self, _registry: &mut Registry) {}
}

/// The gateways of this crate that have logins of their own. A listener that serves one of them lets in nobody without a
/// credential, unless its `auth` says so.
pub const WITH_LOGINS: &[&str] = &["events", "repository", "robots", "workspace"];

/// What [`Gateway::demo`] does: the lines that say what it made, or why it could not.
pub type Demo = Pin<Box<dyn Future<Output = Result<Vec<String>, String>> + Send>>;

/// The gateways that each server has, in the order in which they are asked.
pub(crate) fn built_in() -> Vec<Arc<dyn Gateway>> {
    vec![
        Arc::new(native::NativeGateway),
        Arc::<mwdb::MwdbGateway>::default(),
        Arc::<events::Events>::default(),
        Arc::<workspace::WorkspaceGateway>::default(),
        Arc::new(auth::Auth),
        Arc::new(admin::Admin),
        Arc::<robots::Robots>::default(),
        // Its routes have an answer for every path, so it comes last.
        Arc::<repository::Repository>::default(),
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
    let mut named: Vec<_> = gateways.iter().filter(is_named).collect();
    named.sort_by_key(|gateway| gateway.takes_what_is_left());
    let (mut routes, mut protocols) = (Vec::new(), Vec::new());
    let mut takes_raw_targets = false;
    for gateway in named {
        routes.push(Routes {
            router: gateway.routes(&server),
            own_login: gateway.has_own_login(),
        });
        protocols.extend(gateway.protocols(&server));
        takes_raw_targets |= gateway.takes_raw_targets();
    }
    protocols.sort_by_key(WebSocketProtocol::takes_what_is_left);
    Front::new(shared, listener, routes, protocols, takes_raw_targets)
}

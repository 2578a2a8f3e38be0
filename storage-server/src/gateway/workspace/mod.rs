//! The gateway `workspace`: events of a tree, tasks, identities and activities, and chat, for clients of Pydio Cells.
//!
//! | path | |
//! | --- | --- |
//! | WebSocket `/ws`, `/event`, `/ws/event` | events of those who may see them ([`events`]) |
//! | WebSocket `/chat`, `/ws/chat` | rooms ([`chat`]) |
//! | `POST /workspace/events` | events of services that are no clients ([`ingest`]) |
//! | `POST /workspace/demo-token` | a token for an example user, with `--demo` ([`demo`]) |
//!
//! Upgrades need no credential: a peer says within the socket who it is ([`login`]). State is ordinary entries of one keyspace:
//! who has which workspaces ([`directory`]), nodes ([`tree`]), and rooms as `storage_protocol::rooms` has them. Events are its
//! change feed ([`hub`]), told to those who are found by an index ([`registry`]). What a peer reads and writes in rooms goes
//! through a storage of its own, with its token, bounds and quotas; whether a room is for it is said by its workspaces, and by no access rule.

mod chat;
mod coalesce;
mod comments;
mod demo;
mod directory;
mod events;
#[cfg(test)]
mod faulty;
pub(crate) mod frame;
pub(crate) mod html;
mod hub;
mod ingest;
mod linger;
mod login;
mod looking;
mod outbox;
mod rate;
mod records;
mod registry;
mod session;
mod tree;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::routing::post;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry as MetricsRegistry;

use self::chat::Channels;
use self::hub::Hub;
use self::linger::Lingering;
use self::rate::Makers;
use super::{Demo, Gateway, Ping, ServerHandle, SocketOptions, WebSocketProtocol};
use crate::auth::tokens::ForeignTokens;
use crate::config::WorkspaceConfig;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WorkspaceGateway {
    metrics: Metrics,
    state: OnceLock<Arc<State>>,
}

#[derive(Clone, Debug, Default)]
struct Metrics {
    rooms: Gauge,
    members: Gauge,
    messages: Counter,
    events: Counter,
    resyncs: Counter,
}

/// What all connections share.
#[derive(Debug)]
struct State {
    config: WorkspaceConfig,
    metrics: Metrics,
    foreign: Option<ForeignTokens>,
    hub: OnceLock<Arc<Hub>>,
    channels: Arc<Channels>,
    ids: AtomicU64,
    /// Its examples were made.
    demo: AtomicBool,
    lingering: Lingering,
    makers: Makers,
}

impl State {
    fn new(config: WorkspaceConfig, metrics: &Metrics, foreign: Option<ForeignTokens>) -> Self {
        Self {
            metrics: metrics.clone(),
            channels: Arc::new(Channels::new(metrics)),
            foreign,
            hub: OnceLock::new(),
            // Sockets of an earlier start may still be in rooms.
            ids: AtomicU64::new(rand::random::<u64>() >> 1),
            demo: AtomicBool::new(false),
            lingering: Lingering::default(),
            makers: Makers::default(),
            config,
        }
    }

    fn hub(&self, server: &ServerHandle) -> Arc<Hub> {
        let new = || {
            let own = server.own_storage(&self.config.keyspace);
            Arc::new(Hub::new(own, self.config.quiet, &self.metrics))
        };
        self.hub.get_or_init(new).clone()
    }

    /// A number for a socket.
    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    fn is_demo(&self) -> bool {
        self.demo.load(Ordering::Relaxed)
    }
}

impl WorkspaceGateway {
    fn state(&self, server: &ServerHandle) -> Arc<State> {
        let new = || {
            let config = server.config().workspace.clone();
            // Checked with the configuration. If it went since, none of these tokens is good.
            let foreign = config.jwt_secret().map_err(|error| error.to_string());
            let foreign = foreign.and_then(|secret| {
                let audience = config.jwt_audience.as_deref();
                let tokens =
                    secret.map(|(issuer, secret)| ForeignTokens::new(&issuer, audience, &secret));
                tokens.transpose().map_err(|error| error.to_string())
            });
            let foreign = foreign.unwrap_or_else(|error| {
                tracing::error!(error, "no tokens of another issuer are taken");
                None
            });
            Arc::new(State::new(config, &self.metrics, foreign))
        };
        self.state.get_or_init(new).clone()
    }
}

impl Gateway for WorkspaceGateway {
    fn name(&self) -> &'static str {
        "workspace"
    }

    fn routes(&self, server: &ServerHandle) -> Router {
        Router::new()
            .route("/workspace/events", post(ingest::post))
            .route("/workspace/demo-token", post(demo::token))
            .with_state(self.state(server))
    }

    fn protocols(&self, server: &ServerHandle) -> Vec<WebSocketProtocol> {
        let state = self.state(server);
        let options = SocketOptions {
            message_bytes_max: Some(session::MESSAGE_BYTES_MAX),
            ping: Some(Ping::Every(state.config.ping)),
            silence: Some(state.config.silence),
            login: true,
        };
        let (of_events, handle) = (state.clone(), server.clone());
        let serve = move |socket, request| {
            events::serve(socket, request, of_events.clone(), handle.clone())
        };
        let events = WebSocketProtocol::new("workspace", "/event", options.clone(), serve);
        let events = events.also_at("/ws").also_at("/ws/event");
        let handle = server.clone();
        let serve =
            move |socket, request| chat::serve(socket, request, state.clone(), handle.clone());
        let chat = WebSocketProtocol::new("workspace_chat", "/chat", options, serve);
        let chat = chat.also_at("/ws/chat");
        // Nobody has to say with the upgrade who it is.
        let said_within =
            |protocol: WebSocketProtocol| protocol.with_login(|_, _| async { Ok(None) });
        vec![said_within(events), said_within(chat)]
    }

    fn has_own_login(&self) -> bool {
        true
    }

    fn demo(&self, server: &ServerHandle) -> Demo {
        let (state, server) = (self.state(server), server.clone());
        Box::pin(async move {
            let made = demo::make(&state, &server).await?;
            state.demo.store(true, Ordering::Relaxed);
            Ok(made)
        })
    }

    fn register_metrics(&self, registry: &mut MetricsRegistry) {
        let Metrics {
            rooms,
            members,
            messages,
            events,
            resyncs,
        } = self.metrics.clone();
        registry.register(
            "storage_workspace_rooms",
            "Rooms of the gateway workspace that a socket of it is in",
            rooms,
        );
        registry.register(
            "storage_workspace_members",
            "Sockets in rooms, each counted for each of its rooms",
            members,
        );
        registry.register(
            "storage_workspace_messages",
            "Messages posted over its sockets",
            messages,
        );
        registry.register(
            "storage_workspace_events",
            "Events put in line for its sockets",
            events,
        );
        registry.register(
            "storage_workspace_resyncs",
            "Times that a socket was told to look again, or caught up from the store",
            resyncs,
        );
    }
}

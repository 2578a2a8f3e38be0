//! Events in the style of Digital Rebar Provision: objects over HTTP (`/api/v3/TYPE/KEY`), and a WebSocket
//! (`/api/v3/ws`) on which clients register for what happens to them: `register TYPE.ACTION.KEY`.
//!
//! State is ordinary entries of one keyspace: the key `TYPE/KEY` has the object as JSON. Events are its change feed, so
//! they are raised by whoever writes there, and who is told what is decided by the access rules.
//!
//! * [`filter`]: the commands, and which events a filter is for. [`event`]: what a change of the feed is to a client.
//! * [`socket`]: one connection; [`registrations`] and [`frames`] are its parts.
//! * [`objects`], [`list`], [`params`], [`post`], [`tokens`], [`info`]: the routes. [`login`]: who asks. [`body`],
//!   [`json`], [`patch`] and [`answer`]: what is sent, both ways.
//! * [`demo`]: what a fresh server of this kind has.

mod answer;
mod body;
mod demo;
mod event;
pub(crate) mod filter;
mod frames;
mod info;
mod json;
mod list;
mod login;
mod objects;
mod params;
mod patch;
mod post;
mod registrations;
mod socket;
mod tokens;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use hyper::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use self::answer::Fault;
use self::frames::Frames;
use self::login::Visitor;
use super::{Demo, Gateway, Ping, ServerHandle, SocketOptions, WebSocketProtocol};
use crate::config::EventsConfig;
use crate::limits::turns::Turns;

/// Below it are all routes.
const BASE: &str = "/api/v3";

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Events {
    metrics: Metrics,
    state: OnceLock<Arc<State>>,
}

#[derive(Clone, Debug, Default)]
struct Metrics {
    registrations: Gauge,
    events: Counter,
    replays: Counter,
    losses: Counter,
}

/// What all connections share.
#[derive(Debug)]
struct State {
    config: EventsConfig,
    metrics: Metrics,
    frames: Frames,
    /// A place for each list that is put together or taken.
    lists: Turns,
}

impl Events {
    fn state(&self, server: &ServerHandle) -> Arc<State> {
        let new = || {
            Arc::new(State {
                config: server.config().events.clone(),
                metrics: self.metrics.clone(),
                frames: Frames::default(),
                lists: Turns::new(list::LISTS_MAX),
            })
        };
        self.state.get_or_init(new).clone()
    }
}

impl Gateway for Events {
    fn name(&self) -> &'static str {
        "events"
    }

    fn routes(&self, server: &ServerHandle) -> Router {
        let routes = Router::new()
            .route("/info", get(info::info))
            .route("/ws", get(not_upgraded))
            .route("/events", post(post::post))
            .route("/users/{name}/token", get(tokens::token))
            .route("/{type}", get(list::list).post(objects::create))
            .route(
                "/{type}/{key}",
                get(objects::read)
                    .put(objects::replace)
                    .patch(objects::modify)
                    .delete(objects::remove),
            )
            .route(
                "/{type}/{key}/params",
                get(params::all)
                    .post(params::replace_all)
                    .patch(params::modify_all),
            )
            .route(
                "/{type}/{key}/params/{name}",
                get(params::one)
                    .post(params::set_one)
                    .delete(params::remove_one),
            )
            .method_not_allowed_fallback(no_route)
            .route("/", any(no_route))
            // Every other path, as far as a router takes it.
            .route("/{type}/{key}/{other}", any(no_route))
            .route("/{type}/{key}/{other}/{*rest}", any(no_route))
            .route("/{type}/{key}/params/{name}/{*rest}", any(no_route))
            .with_state(self.state(server));
        Router::new()
            .nest(BASE, routes)
            .route("/api/v3/", any(no_route))
            .layer(from_fn(answer::describe))
    }

    fn protocols(&self, server: &ServerHandle) -> Vec<WebSocketProtocol> {
        let state = self.state(server);
        let options = SocketOptions {
            message_bytes_max: Some(socket::MESSAGE_BYTES_MAX),
            ping: Some(Ping::Every(state.config.ping)),
            silence: Some(state.config.silence),
            ..SocketOptions::default()
        };
        let server = server.clone();
        let serve = move |socket, _| socket::serve(socket, state.clone(), server.clone());
        let protocol = WebSocketProtocol::new("events", "/api/v3/ws", options, serve);
        vec![protocol.with_login(|guest, request| async move {
            let identity = login::let_in(&guest, &request.headers, &request.uri).await;
            identity.map(Some)
        })]
    }

    fn has_own_login(&self) -> bool {
        true
    }

    fn demo(&self, server: &ServerHandle) -> Demo {
        let (state, server) = (self.state(server), server.clone());
        Box::pin(async move { demo::make(&state, &server).await })
    }

    fn register_metrics(&self, registry: &mut Registry) {
        let Metrics {
            registrations,
            events,
            replays,
            losses,
        } = self.metrics.clone();
        registry.register(
            "storage_events_registrations",
            "Registrations of the sockets of the gateway events",
            registrations,
        );
        registry.register("storage_events_sent", "Events sent to its sockets", events);
        registry.register(
            "storage_events_replays",
            "Registrations that began with a replay",
            replays,
        );
        registry.register(
            "storage_events_losses",
            "Times that the log did not reach back to where a socket was",
            losses,
        );
    }
}

async fn no_route() -> Fault {
    Fault::no_route()
}

/// Who is let in, and asks for no WebSocket.
async fn not_upgraded(_: Visitor) -> impl IntoResponse {
    Fault::new(
        StatusCode::BAD_REQUEST,
        "this is a WebSocket endpoint: ask for an upgrade",
    )
}

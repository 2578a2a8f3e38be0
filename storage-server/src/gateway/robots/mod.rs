//! The gateway `robots`: machines that connect by a WebSocket and are sent packages at scheduled times, for clients of the
//! Robot-MicroService of RPA.
//!
//! | request | does |
//! | --- | --- |
//! | WebSocket at any path | a robot says who it is, and is sent its packages |
//! | `POST /pkg`, `/api/robots/package` | schedules a package for a robot |
//! | `GET`, `POST /jobs/cancel/ID`, `/jobs/force/ID`, and below `/api` | one job |
//! | `GET /api/jobs/get/...`, `/api/robots/get/...`, `/api/home`, `/robots/NAME` | lists and counters |
//! | `DELETE /api/jobs/delete/ID`, `/api/robots/delete/ID` | removes one |
//!
//! Jobs are deliveries (`storage_protocol::deliveries`): the server's scheduler makes ready what is due, and each connection
//! ([`socket`]) hands over what is for its robot ([`packages`]). All state is ordinary keys ([`keys`]); in memory are only the connections.
//!
//! * [`frame`]: the frames, in both dialects. [`registry`]: robots. [`trigger`], [`jobs`], [`machines`]: the routes.
//! * [`house`]: what all share. [`live`], [`blocks`], [`ids`], [`logs`], [`room`]: parts of that.

mod answer;
mod blocks;
mod client_logs;
mod demo;
pub(crate) mod frame;
mod house;
mod ids;
mod jobs;
mod keys;
mod live;
mod login;
mod logs;
mod machines;
mod metrics;
mod packages;
mod registry;
mod room;
mod socket;
mod trigger;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue,
};
use prometheus_client::registry::Registry;

use self::answer::Fault;
use self::house::{House, TOKEN_PARAMETERS};
use self::metrics::Metrics;
use super::{Demo, Gateway, Ping, ServerHandle, SocketOptions, WebSocketProtocol};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Robots {
    metrics: Metrics,
    house: OnceLock<Arc<House>>,
}

impl Robots {
    fn house(&self, server: &ServerHandle) -> Arc<House> {
        let new = || Arc::new(House::new(server, &self.metrics));
        self.house.get_or_init(new).clone()
    }
}

/// Adds a route, with and without a slash at its end.
fn with(
    router: Router<Arc<House>>,
    path: &str,
    route: MethodRouter<Arc<House>>,
) -> Router<Arc<House>> {
    let route = route.options(|| async { hyper::StatusCode::NO_CONTENT });
    let router = router.route(path, route.clone());
    router.route(&format!("{path}/"), route)
}

impl Gateway for Robots {
    fn name(&self) -> &'static str {
        "robots"
    }

    fn routes(&self, server: &ServerHandle) -> Router {
        let cancel = || get(jobs::cancel).post(jobs::cancel);
        let force = || get(jobs::force).post(jobs::force);
        let mut router = Router::new();
        for (path, route) in [
            ("/pkg", post(trigger::trigger)),
            ("/api/robots/package", post(trigger::trigger)),
            ("/jobs/cancel/{id}", cancel()),
            ("/api/jobs/cancel/{id}", cancel()),
            ("/jobs/force/{id}", force()),
            ("/api/jobs/force/{id}", force()),
            ("/api/jobs/get/all", get(jobs::all)),
            ("/api/jobs/get/id/{id}", get(jobs::one)),
            ("/api/jobs/get/robot/{id}", get(jobs::of_robot)),
            ("/api/jobs/get", get(jobs::own)),
            ("/api/jobs/delete/{id}", delete(jobs::delete)),
            ("/api/robots/get/all", get(machines::all)),
            ("/api/robots/get/all/connected", get(machines::connected)),
            ("/api/robots/get/id/{id}", get(machines::by_number)),
            (
                "/api/robots/get/address/{address}",
                get(machines::by_address),
            ),
            ("/api/robots/get", get(machines::own)),
            ("/api/robots/delete/{id}", delete(machines::delete)),
            ("/api/home", get(jobs::home)),
            ("/robots/{name}", get(machines::by_name)),
        ] {
            router = with(router, path, route);
        }
        router
            .with_state(self.house(server))
            .layer(from_fn(for_pages))
    }

    fn protocols(&self, server: &ServerHandle) -> Vec<WebSocketProtocol> {
        let house = self.house(server);
        let options = SocketOptions {
            message_bytes_max: Some(socket::MESSAGE_BYTES_MAX),
            ping: Some(Ping::Every(house.config.ping)),
            silence: Some(house.config.silence),
            login: true,
        };
        let serving = house.clone();
        let serve = move |socket, request| socket::serve(serving.clone(), socket, request);
        let protocol = WebSocketProtocol::new("robots", "/", options, serve);
        let protocol = protocol
            .at_what_is_left()
            .with_token_parameters(TOKEN_PARAMETERS)
            .of_text();
        vec![protocol.with_login(move |guest, request| {
            let house = house.clone();
            async move {
                let identity = house.robot(&guest, &request.headers, &request.uri).await;
                identity.map_err(|error| Fault::from(error).respond(&request.headers))
            }
        })]
    }

    fn has_own_login(&self) -> bool {
        true
    }

    fn demo(&self, server: &ServerHandle) -> Demo {
        let (house, server) = (self.house(server), server.clone());
        Box::pin(async move { demo::make(&house, &server).await })
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}

/// Pages of any origin may read the answers, as clients of this protocol expect.
async fn for_pages(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    let methods = HeaderValue::from_static("GET,POST,DELETE");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    let allowed = HeaderValue::from_static("*, Authorization");
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    let exposed = HeaderValue::from_static("X-Job-Id, X-Next");
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    response
}

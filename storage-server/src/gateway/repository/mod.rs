//! The gateway `repository`: files with a metadata document each, and subscriptions to what is uploaded, for clients of the
//! PHANTOM Repository.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /`, `/servername`, `/verify_es_connection`, `/_flush` | says that it is there, and that storage answers |
//! | `GET /new_db`, `/drop_db` | makes the data base; removes all of it; from loopback, by who may write everything |
//! | `POST /signup`, `/update_user` | makes a user of the server, gives it another password; from loopback |
//! | `GET /login`, `/verifytoken`, `/private` | a token for 30 days; whether one is good |
//! | `POST /upload` | a file and its JSON, as a multipart body |
//! | `GET /download` | a file, or a range of it |
//! | `GET /query_metadata`, `/es_query_metadata` | documents by project, source, path and name; by a query in JSON |
//! | `POST /delete_metadata` | removes a file with its document |
//! | `GET /downloadlist`, `/downloadzip` | the files of a folder |
//! | `POST /new_log`, `GET /get_log_list` | a log of the clients' own |
//! | WebSocket `/` | subscriptions to projects and sources |
//!
//! A file's place is project, source, path and name ([`place`]), and its keys follow from that ([`keys`]). An upload is one
//! commit ([`upload`]), and the change feed is what subscribers are told ([`socket`]): there is no other bus, and no state
//! beside ordinary keys. What a caller may do is judged by its storage alone.

mod accounts;
mod answer;
mod cursor;
mod database;
mod download;
mod elastic;
mod form;
mod house;
mod index;
mod keys;
mod list;
mod logins;
mod logs;
pub(crate) mod metadata;
mod metrics;
pub(crate) mod multipart;
mod parameters;
pub(crate) mod place;
mod query;
mod ranges;
mod remove;
mod search;
mod socket;
pub(crate) mod subscribe;
mod subscriptions;
mod upload;
mod zip;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    HeaderValue,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use prometheus_client::registry::Registry;

use self::answer::{Answer, Refusal, json, text};
use self::house::{House, Places};
use self::logins::Logins;
use self::metrics::Metrics;
use super::{Caller, Demo, Gateway, Guest, ServerHandle, SocketOptions, WebSocketProtocol};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::{
    metadata::metadata_document,
    multipart::{Parser, Piece},
    place::Place,
    subscribe::{error_frame, parse_subscribe},
};

const NAME: &str = "PHANTOM Repository";

/// Parameters of a WebSocket's query that may have a token.
const TOKEN_PARAMETERS: &[&str] = &["token", "Token"];

/// The example users of `--demo`.
const USERS: [(&str, &str); 3] = [
    ("bob@abc.com", "1234"),
    ("alice@abc.com", "1234"),
    ("montana@abc.com", "new"),
];

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Repository {
    metrics: Metrics,
    logins: Arc<Logins>,
    places: Arc<Places>,
}

impl Repository {
    fn house(&self, server: &ServerHandle) -> Arc<House> {
        let house = House::new(server, &self.metrics, &self.logins, &self.places);
        Arc::new(house)
    }
}

impl Gateway for Repository {
    fn name(&self) -> &'static str {
        "repository"
    }

    fn routes(&self, server: &ServerHandle) -> Router {
        let house = self.house(server);
        let paths = Router::new().route("/", any(answer));
        paths.route("/{*path}", any(answer)).with_state(house)
    }

    fn protocols(&self, server: &ServerHandle) -> Vec<WebSocketProtocol> {
        let house = self.house(server);
        let options = SocketOptions {
            message_bytes_max: Some(socket::MESSAGE_BYTES_MAX),
            login: true,
            ..SocketOptions::default()
        };
        let serving = house.clone();
        let serve = move |socket, request| socket::serve(serving.clone(), socket, request);
        let protocol = WebSocketProtocol::new("repository", "/", options, serve);
        let protocol = protocol.with_token_parameters(TOKEN_PARAMETERS).of_text();
        vec![protocol.with_login(move |guest, request| {
            let house = house.clone();
            async move {
                let query = request.uri.query();
                house.subscriber(&guest, &request.headers, query).await
            }
        })]
    }

    fn has_own_login(&self) -> bool {
        true
    }

    fn takes_what_is_left(&self) -> bool {
        true
    }

    fn takes_raw_targets(&self) -> bool {
        true
    }

    fn demo(&self, server: &ServerHandle) -> Demo {
        let server = server.clone();
        Box::pin(async move {
            let mut made = Vec::new();
            for (name, password) in USERS {
                if server.demo_user(name, password).await? {
                    let noted = accounts::remember(&server, name).await;
                    noted.map_err(|error| error.to_string())?;
                    made.push(format!("user {name}, password {password}"));
                }
            }
            Ok(made)
        })
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}

/// Answers every request: what is at no path of the table is answered as the original does.
async fn answer(State(house): State<Arc<House>>, guest: Guest, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let answered = Box::pin(route(&house, &guest, &parts, body)).await;
    let mut response = answered.unwrap_or_else(IntoResponse::into_response);
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

async fn route(house: &House, guest: &Guest, parts: &Parts, body: Body) -> Answer {
    let path = parts.uri.path();
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let method = match &parts.method {
        &Method::HEAD => &Method::GET,
        method => method,
    };
    match (method, path) {
        (&Method::OPTIONS, _) => Ok(options()),
        (&Method::GET, "/") => Ok(welcome()),
        (&Method::GET, "/servername") => Ok(text(NAME)),
        (&Method::GET, "/verify_es_connection") => database::verify(house).await,
        (&Method::GET, "/_flush") => database::flush(house).await,
        (&Method::POST, "/signup") => accounts::sign_up(house, guest, parts, body).await,
        (&Method::POST, "/update_user") => accounts::update(house, guest, parts, body).await,
        (&Method::GET, "/login") => accounts::log_in(house, guest, parts, body).await,
        (&Method::GET, "/verifytoken") => {
            house.check_token(guest, &parts.headers).await?;
            Ok(text("The token is valid !!!.\n"))
        }
        (&Method::GET, "/private") => {
            house.check_token(guest, &parts.headers).await?;
            Ok(text("\n\nAccess to restricted content !!!.\n\n"))
        }
        (method, path) => with_token(house, guest, method, path, parts, body).await,
    }
}

/// What needs a token, unless the gateway is open.
async fn with_token(
    house: &House,
    guest: &Guest,
    method: &Method,
    path: &str,
    parts: &Parts,
    body: Body,
) -> Answer {
    const GETS: [&str; 8] = [
        "/download",
        "/query_metadata",
        "/es_query_metadata",
        "/downloadlist",
        "/downloadzip",
        "/get_log_list",
        "/new_db",
        "/drop_db",
    ];
    const POSTS: [&str; 3] = ["/upload", "/delete_metadata", "/new_log"];
    let is_there = match *method {
        Method::GET => GETS.contains(&path),
        Method::POST => POSTS.contains(&path),
        _ => false,
    };
    if !is_there {
        return Err(not_implemented(parts));
    }
    if matches!(path, "/new_db" | "/drop_db") {
        if parts.method == Method::HEAD {
            return Err(not_implemented(parts));
        }
        database::check_loopback(guest)?;
        accounts::check_no_page(parts)?;
    }
    let caller = house.caller(guest, &parts.headers).await?;
    for_caller(house, &caller, path, parts, body).await
}

async fn for_caller(
    house: &House,
    caller: &Caller,
    path: &str,
    parts: &Parts,
    body: Body,
) -> Answer {
    match path {
        "/upload" => Box::pin(upload::upload(house, caller, parts, body)).await,
        "/delete_metadata" => Box::pin(remove::remove(house, caller, parts, body)).await,
        "/download" => download::download(house, caller, parts, body).await,
        "/query_metadata" => query::query(house, caller, parts, body).await,
        "/es_query_metadata" => query::es_query(house, caller, parts, body).await,
        "/downloadlist" => list::list(house, caller, parts, body).await,
        "/downloadzip" => list::zip(house, caller, parts, body).await,
        "/new_log" => logs::add(house, caller, parts, body).await,
        "/get_log_list" => logs::list(house, caller, parts, body).await,
        "/new_db" => database::new(house, caller).await,
        "/drop_db" => database::drop_all(house, caller).await,
        _ => Err(not_implemented(parts)),
    }
}

fn not_implemented(parts: &Parts) -> Refusal {
    let (path, method) = (parts.uri.path(), &parts.method);
    Refusal::text(
        400,
        format!(
            "[ERROR]: the requested path: \"{path}\" for the method \"{method}\" is not implemented in the current version.\n"
        ),
    )
}

fn welcome() -> Response<Body> {
    let now = logs::date_now();
    json(format!(
        "{{\"message\":\"{NAME} server is up and running.\",\"versions\":[\"v1\"],\"current_time\":\"{now}\"}}"
    ))
}

/// Web pages of any origin may ask.
fn options() -> Response<Body> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET,HEAD,POST");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("*, Authorization"),
    );
    response
}

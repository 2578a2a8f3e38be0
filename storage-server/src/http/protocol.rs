//! Which WebSocket protocols a listener speaks, and what is run behind an upgrade.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::HeaderMap;
use hyper::{StatusCode, Uri};
use matchit::Router;

use super::Refusal;
use crate::auth::Principal;
use crate::net::stream::Stream;
use crate::shared::Shared;
use crate::ws::socket::{self, SocketOptions, WebSocket};
use crate::ws::{Close, Peer, driver};

/// Runs a connection behind its upgrade, from its first message to its end.
pub(crate) type Running = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Begins it: the stream, and what was read of it behind the upgrade request.
pub(crate) type Opening = Box<dyn FnOnce(Arc<Shared>, Peer, Stream, Bytes) -> Running + Send>;
/// Checks a request for an upgrade.
type Open = dyn Fn(UpgradeRequest) -> Result<Opening, Refusal> + Send + Sync;

/// Whose pages may open a WebSocket besides the server's own and the listener's `allowed_origins`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origins {
    /// Nobody's.
    Own,
    /// With TLS anybody's, without it those of the same host on whatever port: for mwDB clients, which say an origin of
    /// their own making; with TLS it is their certificate that counts.
    OfOldClients,
}

/// A request for an upgrade, as a protocol sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpgradeRequest {
    /// By the certificate; `anonymous` where there is none.
    pub principal: Principal,
    /// Path and query.
    pub uri: Uri,
    /// The headers.
    pub headers: HeaderMap,
    /// What stood in the places of the path, by their names.
    parameters: Vec<(String, String)>,
}

impl UpgradeRequest {
    pub(crate) fn new(principal: Principal, uri: Uri, headers: HeaderMap) -> Self {
        Self {
            principal,
            uri,
            headers,
            parameters: Vec::new(),
        }
    }

    /// What stood in a place of the path (`{name}`), not decoded; empty if the path has no such place.
    #[must_use]
    pub fn parameter(&self, name: &str) -> &str {
        let found = self.parameters.iter().find(|(place, _)| place == name);
        found.map_or("", |(_, text)| text.as_str())
    }
}

/// A WebSocket protocol at a path of a listener.
///
/// Whatever it is, the server sees to the opening handshake, pings, silent and slow peers, messages that do not become
/// whole, the number of connections of a principal and the close at a shutdown.
pub struct WebSocketProtocol {
    label: &'static str,
    path: &'static str,
    /// All paths that it is at.
    places: Router<()>,
    subprotocol: Option<&'static str>,
    origins: Origins,
    open: Box<Open>,
}

impl fmt::Debug for WebSocketProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketProtocol")
            .field("label", &self.label)
            .field("path", &self.path)
            .field("subprotocol", &self.subprotocol)
            .finish_non_exhaustive()
    }
}

impl WebSocketProtocol {
    /// One without a subprotocol that `handler` serves: called for each connection, and run as a task until its end (see
    /// [`WebSocket`] for how that comes).
    ///
    /// `label`: how its connections are counted in the metrics. `path`: as axum has it, `/chat` or `/rooms/{room}` or
    /// `/{*rest}`.
    ///
    /// # Panics
    /// If `path` is none.
    #[must_use]
    pub fn new<H, F>(
        label: &'static str,
        path: &'static str,
        options: SocketOptions,
        handler: H,
    ) -> Self
    where
        H: Fn(WebSocket, UpgradeRequest) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Close>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        Self::opened_by(label, path, move |request| {
            let (handler, options) = (handler.clone(), options.clone());
            let opening: Opening = Box::new(move |shared, peer, stream, early| {
                let start = |socket| Box::pin(handler(socket, request)) as socket::Handler;
                let dialect = socket::Task::new(&shared, &peer, options, start);
                Box::pin(driver::run(shared, peer, stream, early, dialect))
            });
            Ok(opening)
        })
    }

    /// One that checks each request for itself.
    pub(crate) fn opened_by(
        label: &'static str,
        path: &'static str,
        open: impl Fn(UpgradeRequest) -> Result<Opening, Refusal> + Send + Sync + 'static,
    ) -> Self {
        let mut places = Router::new();
        places.insert(path, ()).expect("a path of a route");
        Self {
            label,
            path,
            places,
            subprotocol: None,
            origins: Origins::Own,
            open: Box::new(open),
        }
    }

    /// The same at another path too, whose places it may lack.
    pub(crate) fn also_at(mut self, path: &'static str) -> Self {
        self.places.insert(path, ()).expect("a path of a route");
        self
    }

    /// The same for clients that ask for this subprotocol.
    #[must_use]
    pub fn with_subprotocol(mut self, name: &'static str) -> Self {
        self.subprotocol = Some(name);
        self
    }

    pub(crate) fn with_origins(mut self, origins: Origins) -> Self {
        self.origins = origins;
        self
    }

    pub(crate) fn label(&self) -> &'static str {
        self.label
    }

    pub(crate) fn subprotocol(&self) -> Option<&'static str> {
        self.subprotocol
    }

    pub(crate) fn origins(&self) -> Origins {
        self.origins
    }

    pub(crate) fn is_at(&self, path: &str) -> bool {
        self.places.at(path).is_ok()
    }

    /// What is to be run, or why nothing is.
    pub(crate) fn open(&self, mut request: UpgradeRequest) -> Result<Opening, Refusal> {
        if let Ok(found) = self.places.at(request.uri.path()) {
            let parameters = found.params.iter();
            let owned = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
            request.parameters = parameters.map(owned).collect();
        }
        (self.open)(request)
    }
}

/// Which of the protocols at a path is asked for, by its subprotocol; else what they are.
pub(crate) fn choose<'a>(
    at_path: &[&'a WebSocketProtocol],
    offered: &[String],
) -> Result<&'a WebSocketProtocol, Refusal> {
    let fits = |protocol: &&WebSocketProtocol| match protocol.subprotocol {
        Some(name) => offered.iter().any(|offered| offered == name),
        None => offered.is_empty(),
    };
    if let Some(protocol) = at_path.iter().copied().find(fits) {
        return Ok(protocol);
    }
    let spoken = at_path.iter().map(|protocol| match protocol.subprotocol {
        // The rest of a path has a star before its name.
        Some(name) => {
            let path = protocol.path.replace("{*", "{");
            format!("{path} speaks the subprotocol {name}")
        }
        None => format!("{} is served without a subprotocol", protocol.path),
    });
    let spoken: Vec<_> = spoken.collect();
    Err(Refusal::http(StatusCode::BAD_REQUEST, spoken.join("; ")))
}

//! The WebSocket protocols of a listener, and the futures that run their connections after the upgrade.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode, Uri};
use matchit::Router;

use super::Refusal;
use super::guest::Guest;
use crate::auth::{Identity, Proof, tokens};
use crate::config::AuthMethod;
use crate::net::stream::Stream;
use crate::shared::Shared;
use crate::ws::socket::{self, SocketOptions, Task as SocketTask, WebSocket};
use crate::ws::{Close, Peer, driver};

/// Runs a connection after its upgrade, from its first message to its end.
pub(crate) type Running = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Begins a connection, from its stream and the bytes that were read after the upgrade request.
pub(crate) type Opening = Box<dyn FnOnce(Arc<Shared>, Peer, Stream, Bytes) -> Running + Send>;
/// Checks a request for an upgrade.
type Open = dyn Fn(UpgradeRequest) -> Result<Opening, Refusal> + Send + Sync;

/// The task of a connection, of a protocol that is one.
type Handler = dyn Fn(WebSocket, UpgradeRequest) -> socket::Handler + Send + Sync;
/// Who asks for a WebSocket: `None`, it says so in the connection; an error is the answer.
type Judged = Pin<Box<dyn Future<Output = Result<Option<Identity>, Response<Body>>> + Send>>;
/// Judges who asks for a WebSocket, for a gateway with logins of its own.
type Login = dyn Fn(Guest, UpgradeRequest) -> Judged + Send + Sync;

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
#[derive(Clone)]
#[non_exhaustive]
pub struct UpgradeRequest {
    /// Who asks.
    pub identity: Identity,
    /// Path and query.
    pub uri: Uri,
    /// The headers.
    pub headers: HeaderMap,
    /// Who asks, for a login within the connection: see [`Guest::let_in`] and [`WebSocket::log_in`].
    pub guest: Option<Guest>,
    /// The values of the parameters in the path, by name.
    parameters: Vec<(String, String)>,
    /// What of the same path is to be served if the first message is of text.
    beside: Option<Task>,
    /// The protocol has said who asks, or that this is said in the connection.
    is_judged: bool,
}

/// What runs a connection of a protocol that is a task.
#[derive(Clone)]
pub(crate) struct Task {
    options: SocketOptions,
    handler: Arc<Handler>,
}

impl Task {
    pub(crate) fn start(
        self,
        shared: &Arc<Shared>,
        peer: &Peer,
        request: UpgradeRequest,
    ) -> SocketTask {
        let mut options = self.options;
        // Who has said so with the request need not say it again.
        if request.is_judged {
            options.login &= matches!(peer.identity.proof(), Proof::Pending);
        }
        let start = |socket| (self.handler)(socket, request);
        SocketTask::new(shared, peer, options, start)
    }
}

impl fmt::Debug for UpgradeRequest {
    /// Without query and headers, which may have a token or a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradeRequest")
            .field("identity", &self.identity)
            .field("path", &self.uri.path())
            .finish_non_exhaustive()
    }
}

impl UpgradeRequest {
    pub(crate) fn new(identity: Identity, uri: Uri, headers: HeaderMap) -> Self {
        Self {
            identity,
            uri,
            headers,
            guest: None,
            parameters: Vec::new(),
            beside: None,
            is_judged: false,
        }
    }

    pub(super) fn with_guest(mut self, guest: Guest) -> Self {
        self.guest = Some(guest);
        self
    }

    /// Who the peer is to a protocol that has no logins: one that may say so in the other protocol of its path is let in as
    /// `anonymous` where the listener lets such in, as it would be without that one.
    pub(crate) fn identity_without_login(&self, peer: &Peer) -> Identity {
        let takes_anonymous = |guest: &Guest| guest.takes(AuthMethod::Anonymous);
        match peer.identity.proof() {
            Proof::Pending if self.guest.as_ref().is_some_and(takes_anonymous) => {
                Identity::anonymous().at(peer.identity.address())
            }
            _ => peer.identity.clone(),
        }
    }

    /// What is to be served in place of the protocol if the first message is of text.
    pub(crate) fn take_beside(&mut self) -> Option<Task> {
        self.beside.take()
    }

    /// The value of a parameter of the path (`{name}`), not decoded; empty if the path has no such parameter.
    #[must_use]
    pub fn parameter(&self, name: &str) -> &str {
        let found = self.parameters.iter().find(|(place, _)| place == name);
        found.map_or("", |(_, text)| text.as_str())
    }
}

/// A WebSocket protocol at a path of a listener.
///
/// For every protocol the server does the opening handshake and pings, closes silent and slow peers and those whose
/// messages do not become whole, bounds the connections of a principal, and closes at a shutdown.
pub struct WebSocketProtocol {
    label: &'static str,
    path: &'static str,
    /// All its paths.
    places: Router<()>,
    subprotocol: Option<&'static str>,
    origins: Origins,
    /// Whether the peer says in the connection who it is.
    logs_in: bool,
    login: Option<Box<Login>>,
    /// What runs a connection, of a protocol that is a task.
    task: Option<Task>,
    /// It takes messages of text alone.
    text: bool,
    /// It takes messages of bytes alone, and can be served beside one of text.
    binary: bool,
    /// It is at all paths that no other one is at.
    takes_what_is_left: bool,
    /// Parameters of the query that may have a token.
    token_parameters: &'static [&'static str],
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
    /// A protocol without a subprotocol, served by `handler`: it is called for each connection, and its future runs
    /// until the connection's end (see [`WebSocket`]).
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
        let handler: Arc<Handler> =
            Arc::new(move |socket, request| Box::pin(handler(socket, request)) as socket::Handler);
        let logs_in = options.login;
        let task = Task { options, handler };
        let of_connection = task.clone();
        let protocol = Self::opened_by(label, path, move |request| {
            let task = of_connection.clone();
            let opening: Opening = Box::new(move |shared, peer, stream, early| {
                let dialect = task.start(&shared, &peer, request);
                Box::pin(driver::run(shared, peer, stream, early, dialect))
            });
            Ok(opening)
        });
        Self {
            logs_in,
            task: Some(task),
            ..protocol
        }
    }

    /// A protocol that checks each request itself.
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
            logs_in: false,
            login: None,
            task: None,
            text: false,
            binary: false,
            takes_what_is_left: false,
            token_parameters: &[],
            open: Box::new(open),
        }
    }

    /// The same at another path too, which may lack parameters.
    pub(crate) fn also_at(mut self, path: &'static str) -> Self {
        self.places.insert(path, ()).expect("a path of a route");
        self
    }

    /// The same at every path, behind all others that are at one: for clients that ask at any.
    #[must_use]
    pub fn at_what_is_left(mut self) -> Self {
        for path in ["/", "/{*path}"] {
            // The path that it has already is one of them.
            let _ = self.places.insert(path, ());
        }
        self.takes_what_is_left = true;
        self
    }

    pub(crate) fn takes_what_is_left(&self) -> bool {
        self.takes_what_is_left
    }

    /// The same for clients that ask for this subprotocol.
    #[must_use]
    pub fn with_subprotocol(mut self, name: &'static str) -> Self {
        self.subprotocol = Some(name);
        self
    }

    /// The same for clients that may have a token in the query, under one of these names. It is in no log then.
    #[must_use]
    pub fn with_token_parameters(mut self, names: &'static [&'static str]) -> Self {
        self.token_parameters = names;
        self
    }

    /// The same for a gateway with logins of its own: `login` says who asks for a WebSocket. `Ok(None)`: that is said in the
    /// connection, and in time where the protocol has [`SocketOptions::login`]. An error is the HTTP answer to the request.
    #[must_use]
    pub fn with_login<L, F>(mut self, login: L) -> Self
    where
        L: Fn(Guest, UpgradeRequest) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Option<Identity>, Response<Body>>> + Send + 'static,
    {
        self.login = Some(Box::new(move |guest, request| {
            Box::pin(login(guest, request)) as Judged
        }));
        self
    }

    /// The same for a protocol of text messages alone: where another one of the same path has binary messages alone, as
    /// mwDB's, the first message of a connection decides between them.
    #[must_use]
    pub fn of_text(mut self) -> Self {
        self.text = true;
        self
    }

    /// The same for one of binary messages: see [`UpgradeRequest::take_beside`].
    pub(crate) fn of_bytes(mut self) -> Self {
        self.binary = true;
        self
    }

    pub(super) fn login(&self) -> Option<&Login> {
        self.login.as_deref()
    }

    pub(crate) fn logs_in(&self) -> bool {
        self.logs_in
    }

    pub(crate) fn token_parameters(&self) -> &'static [&'static str] {
        self.token_parameters
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

    /// The same where a protocol of text is served at its path too.
    pub(super) fn open_beside(
        &self,
        mut request: UpgradeRequest,
        text: &Self,
    ) -> Result<Opening, Refusal> {
        request.beside.clone_from(&text.task);
        request.is_judged = text.login.is_some();
        self.open(request)
    }

    /// The connection that a request opens, or why it is refused.
    pub(crate) fn open(&self, mut request: UpgradeRequest) -> Result<Opening, Refusal> {
        if let Ok(found) = self.places.at(request.uri.path()) {
            let parameters = found.params.iter();
            let owned = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
            request.parameters = parameters.map(owned).collect();
        }
        request.is_judged |= self.login.is_some();
        (self.open)(request)
    }
}

/// Which of the protocols at a path is asked for, by its subprotocol; else what they are. Besides one of binary messages
/// also the one of text that is served there, if there is one.
pub(crate) fn choose<'a>(
    at_path: &[&'a WebSocketProtocol],
    offered: &[String],
) -> Result<(&'a WebSocketProtocol, Option<&'a WebSocketProtocol>), Refusal> {
    // An entry with a token is none of them, and is never chosen: the answer would show it.
    let names = || offered.iter().filter(|name| !tokens::is_token(name));
    let is_offered = names().next().is_some();
    let fits = |protocol: &&WebSocketProtocol| match protocol.subprotocol {
        Some(name) => names().any(|offered| offered == name),
        None => !is_offered,
    };
    let mut fitting = at_path.iter().copied().filter(fits);
    if let Some(protocol) = fitting.next() {
        let text = fitting.find(|other| protocol.binary && other.text);
        return Ok((protocol, text));
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

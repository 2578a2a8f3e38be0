//! From a URL to a session: look-up, TCP, TLS, WebSocket upgrade, Hello and Welcome.
//!
//! Every failure is `ConnectFailed` and says how far it came. With TLS 1.3 a refused client certificate shows only at
//! the first read, so nothing counts as connected before Welcome.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::ServerName;
use storage_protocol::native::{
    self, ClientMessage, Hello, Packet, SUBPROTOCOL, ServerMessage, Welcome, close_code,
};
use storage_protocol::{Limit, Limits, Result, SessionId, StorageError, UnixMillis};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::{DATE, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};

use super::clock::ServerClock;
use super::counted::Counted;
use super::endpoint::Endpoint;
use super::tls;
use crate::connection::SavedSession;
use crate::end::{End, EndKind, close_reason, close_text};
use crate::options::{ConnectOptions, Credentials, TlsVersion};
use crate::server_text::plain;
use crate::sync::deadline_after;

/// A byte stream, encrypted or not.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The socket that a driver owns.
pub(crate) type Socket = WebSocketStream<Counted<Box<dyn Io>>>;

/// Why there is no session.
#[derive(Debug)]
pub(crate) struct DialError {
    /// With the URL, for people.
    pub(crate) message: String,
    /// What is to come next.
    pub(crate) kind: EndKind,
}

impl From<String> for DialError {
    fn from(message: String) -> Self {
        Self {
            message,
            kind: EndKind::Lost,
        }
    }
}

/// The TLS configuration, and the files it was made of.
#[derive(Clone)]
struct Tls {
    credentials: Credentials,
    min_version: TlsVersion,
    files: Vec<Vec<u8>>,
    connector: TlsConnector,
}

/// Connects, as often as asked, to the servers in turn. The TLS configuration (and with it the session tickets) stays as
/// long as the credentials' files do.
#[derive(Clone)]
pub(crate) struct Dialer {
    endpoints: Vec<Endpoint>,
    /// The one to try first.
    next: usize,
    tls: Option<Tls>,
    timeout: Duration,
    clock: Arc<ServerClock>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// Checks the options and reads the credentials.
    pub(crate) async fn new(options: &ConnectOptions) -> Result<Self> {
        let endpoints = options.endpoints()?;
        let tls = if endpoints.iter().any(|endpoint| endpoint.tls) {
            let failed = |what| connect_failed(format!("{}: {what}", options.urls.join(", ")));
            Some(load_tls(options).await.map_err(failed)?)
        } else {
            None
        };
        Ok(Self {
            endpoints,
            next: 0,
            tls,
            timeout: options.connect_timeout,
            clock: Arc::default(),
        })
    }

    /// What the servers said about their time. Clones of the dialer share it.
    pub(crate) fn clock(&self) -> Arc<ServerClock> {
        self.clock.clone()
    }

    /// How many servers there are.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// The turn is the next server's: this one goes away.
    pub(crate) fn pass_over(&mut self) {
        self.next = (self.next + 1) % self.endpoints.len();
    }

    /// The first of the servers; all have the same keyspace.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        // There is at least the URL that the options began with.
        &self.endpoints[0]
    }

    /// Tries each server once, beginning with the next in turn. The error names them all.
    pub(crate) async fn dial_any(&mut self, hello: &Hello) -> Result<(Socket, Welcome)> {
        let mut failures = Vec::new();
        for _ in 0..self.endpoints.len() {
            match self.dial_next(hello.clone()).await {
                Ok(session) => return Ok(session),
                Err(error) => failures.push(error.message),
            }
        }
        Err(connect_failed(failures.join("; ")))
    }

    /// A socket on which the next server in turn has said Welcome. After a failure the turn is the one behind it.
    pub(crate) async fn dial_next(&mut self, hello: Hello) -> Result<(Socket, Welcome), DialError> {
        let endpoint = self.endpoints[self.next % self.endpoints.len()].clone();
        let deadline = deadline_after(Instant::now(), self.timeout);
        self.reload().await;
        let dialled = Box::pin(self.open(&endpoint, hello, deadline)).await;
        dialled.map_err(|error| {
            self.next = (self.next + 1) % self.endpoints.len();
            let message = format!("{}: {}", endpoint.uri, error.message);
            DialError { message, ..error }
        })
    }

    /// Reads the credentials again. Files that cannot be used (they are just being replaced, perhaps) leave the ones that
    /// were.
    async fn reload(&mut self) {
        let Some(tls) = self.tls.clone() else {
            return;
        };
        let reloaded = tokio::task::spawn_blocking(move || tls.reload()).await;
        match reloaded {
            Ok(Ok(tls)) => self.tls = Some(tls),
            Ok(Err(why)) => tracing::warn!(
                why,
                "the credentials cannot be read again; the old ones stay"
            ),
            Err(_) => {}
        }
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        hello: Hello,
        deadline: Instant,
    ) -> Result<(Socket, Welcome), DialError> {
        let tcp = connect_tcp(endpoint, deadline).await?;
        let io: Box<dyn Io> = match &self.tls {
            Some(tls) if endpoint.tls => {
                let name = ServerName::try_from(endpoint.host.clone())
                    .map_err(|_| "the URL's host is no name and no address".to_owned())?;
                let handshake = tls.connector.connect(name, tcp);
                let shaken = within(deadline, "the TLS handshake", handshake).await?;
                Box::new(shaken.map_err(|error| explain_io(&error, "the TLS handshake"))?)
            }
            _ => Box::new(tcp),
        };
        let upgrade = upgrade(endpoint, io, &self.clock);
        let upgraded = within(deadline, "the WebSocket upgrade", upgrade).await?;
        let mut socket = upgraded?;
        let welcome = within(deadline, "Welcome", shake_hands(&mut socket, hello)).await??;
        Ok((socket, welcome))
    }
}

impl Tls {
    /// Blocks on the disk.
    fn load(credentials: Credentials, min_version: TlsVersion) -> Result<Self, String> {
        // Ordering: the bytes first. If the files change in between, the next look sees it.
        let files = tls::files(&credentials);
        let config = tls::client_config(&credentials, min_version)?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            credentials,
            min_version,
            files,
        })
    }

    /// Blocks on the disk.
    fn reload(self) -> Result<Self, String> {
        if tls::files(&self.credentials) == self.files {
            return Ok(self);
        }
        Self::load(self.credentials, self.min_version)
    }
}

/// Whether a host is this machine by its name (RFC 6761, section 6.3). Such a name is not looked up: a machine without
/// /etc/hosts, as a minimal container is, would ask a name server for it, which may not answer or answer anything.
fn is_localhost(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let last = name.rsplit('.').next();
    last.is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
}

/// The addresses of a host, in the order in which they are tried.
async fn look_up(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, String> {
    if is_localhost(host) {
        return Ok(vec![
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ]);
    }
    let lookup = tokio::net::lookup_host((host, port));
    let found = within(deadline, "the look-up of the host", lookup).await?;
    match found {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(format!("the host {host:?} cannot be resolved: {error}")),
    }
}

/// So many addresses of a host have their failures told; a name server may give hundreds.
const FAILURES_TOLD_MAX: usize = 4;

/// Failures as one text: the first ones and the last.
fn told(mut failures: Vec<String>) -> String {
    if failures.len() > FAILURES_TOLD_MAX {
        let last = failures.len() - 1;
        let left_out = failures.drain(FAILURES_TOLD_MAX - 1..last).count();
        failures.push(format!("{left_out} more failed in between"));
    }
    failures.join("; ")
}

async fn connect_tcp(endpoint: &Endpoint, deadline: Instant) -> Result<TcpStream, String> {
    let Endpoint { host, port, .. } = endpoint;
    let addresses = look_up(host, *port, deadline).await?;
    // Each is told: the first may be the one that was meant, and the last the only one that answers.
    let mut failures = Vec::new();
    for (tried, address) in addresses.iter().enumerate() {
        // Each address gets its share of the time that is left, so that one that swallows packets does not
        // keep us from the next.
        let now = Instant::now();
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = deadline_after(now, deadline.saturating_duration_since(now) / left);
        match timeout_at(share, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                tcp.set_nodelay(true)
                    .map_err(|error| format!("TCP_NODELAY cannot be set: {error}"))?;
                return Ok(tcp);
            }
            Ok(Err(error)) => failures.push(format!("{address} cannot be reached: {error}")),
            Err(_) => failures.push(format!("{address} did not answer in time")),
        }
    }
    if failures.is_empty() {
        return Err(format!("the host {host:?} has no address"));
    }
    Err(told(failures))
}

async fn upgrade(
    endpoint: &Endpoint,
    io: Box<dyn Io>,
    clock: &ServerClock,
) -> Result<Socket, String> {
    let mut request = (&endpoint.uri)
        .into_client_request()
        .map_err(|error| format!("the URL cannot be asked for: {error}"))?;
    let protocol = HeaderValue::from_static(SUBPROTOCOL);
    request
        .headers_mut()
        .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    let config = Some(socket_config());
    let io = Counted::new(io);
    let asked = UnixMillis::now();
    let upgrade = tokio_tungstenite::client_async_with_config(request, io, config);
    match upgrade.await {
        Ok((socket, response)) => {
            let date = response
                .headers()
                .get(DATE)
                .and_then(|date| date.to_str().ok());
            clock.note(date, asked, UnixMillis::now());
            Ok(socket)
        }
        // Who answered in HTTP did not expect TLS.
        Err(error) if !endpoint.tls && !matches!(error, WsError::Http(_)) => Err(format!(
            "{}; if the port expects TLS, the URL begins with wss://",
            explain_upgrade(error)
        )),
        Err(error) => Err(explain_upgrade(error)),
    }
}

/// Sizes that are set, never default: the default read buffer zero-fills 128 KiB on every read, and the default
/// maxima would let the peer decide how much memory we take.
pub(crate) fn socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .write_buffer_size(128 * 1024)
        .max_write_buffer_size(1024 * 1024)
        .max_message_size(Some(Limits::FRAME_BYTES))
        .max_frame_size(Some(Limits::FRAME_BYTES))
}

/// Says Hello and waits for Welcome.
async fn shake_hands(socket: &mut Socket, hello: Hello) -> Result<Welcome, DialError> {
    let asked = hello.session;
    let hello = ClientMessage::Hello(hello).encode(None).to_frame();
    let sent = socket.send(Message::Binary(hello)).await;
    // A server that refuses us has sent its reason before our Hello fails: read it all the same.
    loop {
        match (socket.next().await, &sent) {
            (Some(Ok(Message::Ping(_) | Message::Pong(_))), _) => {}
            (Some(Ok(Message::Binary(frame))), _) => match read_welcome(frame, asked)? {
                Ok(welcome) => return Ok(welcome),
                Err(what) => return Err(leave(socket, close_code::PROTOCOL, what).await),
            },
            (Some(Ok(Message::Close(frame))), _) => {
                let code = frame.as_ref().map(|frame| frame.code.into());
                let (kind, meaning) = EndKind::of_close(code);
                let message = format!("{meaning} before Welcome: {}", close_text(frame));
                return Err(DialError { message, kind });
            }
            (Some(Ok(Message::Text(_) | Message::Frame(_))), _) => {
                let what = "the server sent a text frame instead of Welcome".to_owned();
                return Err(leave(socket, close_code::UNSUPPORTED_DATA, what).await);
            }
            (Some(Err(WsError::Io(error))), _) => return Err(explain_io(&error, "Welcome").into()),
            (Some(Err(error)), _) => {
                let end = End::of_read(&error);
                return Err(match end.close {
                    Some(code) => leave(socket, code, end.why).await,
                    None => format!("no Welcome came: {error}").into(),
                });
            }
            (None, Err(error)) => return Err(format!("Hello could not be sent: {error}").into()),
            (None, Ok(())) => {
                return Err("the server closed the connection before Welcome"
                    .to_owned()
                    .into());
            }
        }
    }
}

/// Leaves a server that broke the protocol, and tells it so.
async fn leave(socket: &mut Socket, code: u16, what: String) -> DialError {
    let (code, reason) = (code.into(), close_reason(&what).into());
    // The caller's deadline bounds it; a server that is gone needs no word.
    let _ = socket.close(Some(CloseFrame { code, reason })).await;
    DialError {
        message: what,
        kind: EndKind::Misbehaved,
    }
}

/// The server's Welcome; or, inside, how it broke the protocol. Outside: why there is none now.
fn read_welcome(
    frame: bytes::Bytes,
    asked: Option<SessionId>,
) -> Result<Result<Welcome, String>, DialError> {
    let message = Packet::from_frame(frame).and_then(ServerMessage::decode);
    Ok(match message {
        Err(error) => Err(format!("Welcome is unreadable: {error}")),
        Ok(ServerMessage::Welcome(welcome)) => check_welcome(welcome, asked),
        Ok(ServerMessage::GoAway {
            reason,
            retry_after,
        }) => {
            let reason = plain(&reason);
            return Err(DialError {
                message: format!(
                    "the server is going away: {reason} (come back in {retry_after:?})"
                ),
                kind: EndKind::Drained { retry_after },
            });
        }
        Ok(_) => Err("the server sent something else instead of Welcome".to_owned()),
    })
}

/// What a server may announce: nothing that cannot be kept, or that lies outside of the protocol's own bounds. `asked`: the
/// session to resume.
fn check_welcome(welcome: Welcome, asked: Option<SessionId>) -> Result<Welcome, String> {
    if welcome.version != native::VERSION {
        return Err(format!(
            "the server speaks version {} of {SUBPROTOCOL}, we speak {}",
            welcome.version,
            native::VERSION
        ));
    }
    if welcome.silence.is_zero() {
        return Err("Welcome announces a silence of 0 ms, which nothing can keep".to_owned());
    }
    let executed = welcome.executed;
    if executed > SavedSession::NUMBER_MAX {
        let max = SavedSession::NUMBER_MAX;
        return Err(format!(
            "Welcome says that commit {executed} was executed; no number is over {max}"
        ));
    }
    if executed > 0 && asked != Some(welcome.session) {
        return Err(format!(
            "Welcome says that commit {executed} of a new session was executed, and none was sent"
        ));
    }
    let limits = &welcome.limits;
    let message_max = Limits::MESSAGE_BYTES_CEILING;
    let (key, frame) = (1..=Limits::KEY_BYTES_CEILING, Limits::FRAME_BYTES);
    for (limit, announced, allowed) in [
        (Limit::Key, limits.key_bytes_max, key),
        (Limit::Value, limits.value_bytes_max, 0..=message_max),
        (Limit::Message, limits.message_bytes_max, 1..=message_max),
        (Limit::Frame, limits.frame_bytes_max, frame..=frame),
        (
            Limit::RequestsInFlight,
            limits.requests_in_flight_max,
            1..=usize::MAX,
        ),
        (
            Limit::BytesInFlight,
            limits.bytes_in_flight_max,
            1..=usize::MAX,
        ),
    ] {
        if !allowed.contains(&announced) {
            let (least, most) = (allowed.start(), allowed.end());
            return Err(format!(
                "Welcome announces a {limit} of {announced}; the protocol allows {least} to {most}"
            ));
        }
    }
    Ok(welcome)
}

async fn load_tls(options: &ConnectOptions) -> Result<Tls, String> {
    let credentials = options.credentials.clone().ok_or(
        "there are no credentials: set credentials_dir, or without_client_certificate for a server that asks for none",
    )?;
    let min_version = options.tls_min_version;
    tokio::task::spawn_blocking(move || Tls::load(credentials, min_version))
        .await
        .unwrap_or_else(|_| Err("the runtime stopped while the credentials were read".into()))
}

async fn within<T>(
    deadline: Instant,
    phase: &str,
    work: impl Future<Output = T>,
) -> Result<T, String> {
    timeout_at(deadline, work)
        .await
        .map_err(|_| format!("the connect timeout passed while waiting for {phase}"))
}

fn connect_failed(message: String) -> StorageError {
    StorageError::ConnectFailed { message }
}

fn explain_io(error: &io::Error, phase: &str) -> String {
    use io::ErrorKind as Kind;
    match tls::explain(error) {
        Some(text) => text,
        None if matches!(
            error.kind(),
            Kind::UnexpectedEof
                | Kind::ConnectionReset
                | Kind::BrokenPipe
                | Kind::ConnectionAborted
        ) =>
        {
            format!(
                "the server broke the connection off before {phase} ({error}); it may not speak this protocol, or not \
                 accept our certificate"
            )
        }
        None => format!("{phase} failed: {error}"),
    }
}

fn explain_upgrade(error: WsError) -> String {
    match error {
        WsError::Http(response) => explain_refusal(*response),
        WsError::Io(error) => explain_io(&error, "the WebSocket upgrade"),
        WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(
            SubProtocolError::NoSubProtocol | SubProtocolError::InvalidSubProtocol,
        )) => format!("the server does not speak the subprotocol {SUBPROTOCOL}"),
        WsError::Protocol(ProtocolError::HandshakeIncomplete) => {
            "the server closed the connection during the WebSocket upgrade; it may not accept our certificate".into()
        }
        error => format!("the WebSocket upgrade failed: {error}"),
    }
}

/// The status, and what came of the body with the headers: enough for a sentence, bounded for a page.
fn explain_refusal(response: Response) -> String {
    let status = response.status();
    let body = response.into_body().unwrap_or_default();
    let text = plain(&String::from_utf8_lossy(&body));
    match text.trim() {
        "" => format!("the server refused with HTTP status {status}"),
        text => format!("the server refused with HTTP status {status}: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_a_name_of_its_own_and_what_is_below_it() {
        for host in [
            "localhost",
            "LocalHost",
            "localhost.",
            "db.localhost",
            "a.b.localhost.",
        ] {
            assert!(is_localhost(host), "{host}");
        }
        for host in [
            "notlocalhost",
            "localhost.example.com",
            "localhost..",
            ".",
            "",
            "127.0.0.1",
        ] {
            assert!(!is_localhost(host), "{host}");
        }
    }

    #[test]
    fn the_failures_of_few_addresses_are_told_and_of_many_the_first_and_the_last() {
        let failures = |count: usize| (1..=count).map(|n| n.to_string()).collect();
        assert_eq!(told(failures(1)), "1");
        assert_eq!(told(failures(4)), "1; 2; 3; 4");
        assert_eq!(told(failures(9)), "1; 2; 3; 9; 5 more failed in between");
    }
}

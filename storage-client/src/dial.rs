//! From a URL to a session: look-up, TCP, TLS, WebSocket upgrade, Hello and Welcome.
//!
//! Every failure is `ConnectFailed` and says how far it came. With TLS 1.3 a refused client certificate shows only at
//! the first read, so nothing counts as connected before Welcome.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::ServerName;
use storage_protocol::native::{
    self, ClientMessage, Hello, Packet, SUBPROTOCOL, ServerMessage, Welcome,
};
use storage_protocol::{Limits, Result, StorageError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};

use crate::connection::deadline_after;
use crate::endpoint::Endpoint;
use crate::{ConnectOptions, tls};

/// A byte stream, encrypted or not.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The socket that a driver owns.
pub(crate) type Socket = WebSocketStream<Box<dyn Io>>;

/// Connects, as often as asked, with the same TLS configuration (and so with its session tickets).
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) endpoint: Endpoint,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// Checks the options and reads the credentials.
    pub(crate) async fn new(options: &ConnectOptions) -> Result<Self> {
        let failed = |what: String| connect_failed(&options.url, what);
        let endpoint = Endpoint::new(options).map_err(failed)?;
        let tls = if endpoint.tls {
            let config = load_tls(options).await.map_err(failed)?;
            let name = ServerName::try_from(endpoint.host.clone())
                .map_err(|_| failed("the URL's host is no name and no address".into()))?;
            Some((TlsConnector::from(Arc::new(config)), name))
        } else {
            None
        };
        Ok(Self {
            endpoint,
            tls,
            timeout: options.connect_timeout,
        })
    }

    /// A socket on which Welcome was received.
    pub(crate) async fn dial(&self, hello: Hello) -> Result<(Socket, Welcome)> {
        let url = self.endpoint.uri.to_string();
        let deadline = deadline_after(Instant::now(), self.timeout);
        let session = Box::pin(self.open(hello, deadline));
        session.await.map_err(|what| connect_failed(&url, what))
    }

    async fn open(&self, hello: Hello, deadline: Instant) -> Result<(Socket, Welcome), String> {
        let tcp = self.connect_tcp(deadline).await?;
        let io: Box<dyn Io> = match &self.tls {
            None => Box::new(tcp),
            Some((connector, name)) => {
                let handshake = connector.connect(name.clone(), tcp);
                let shaken = within(deadline, "the TLS handshake", handshake).await?;
                Box::new(shaken.map_err(|error| explain_io(&error, "the TLS handshake"))?)
            }
        };
        let upgraded = within(deadline, "the WebSocket upgrade", self.upgrade(io)).await?;
        let mut socket = upgraded?;
        let welcome = within(deadline, "Welcome", shake_hands(&mut socket, hello)).await??;
        Ok((socket, welcome))
    }

    async fn connect_tcp(&self, deadline: Instant) -> Result<TcpStream, String> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let lookup = tokio::net::lookup_host((host.as_str(), *port));
        let addresses: Vec<SocketAddr> = within(deadline, "the look-up of the host", lookup)
            .await?
            .map_err(|error| format!("the host {host:?} cannot be resolved: {error}"))?
            .collect();
        let mut failure = format!("the host {host:?} has no address");
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
                Ok(Err(error)) => failure = format!("{address} cannot be reached: {error}"),
                Err(_) => failure = format!("{address} did not answer in time"),
            }
        }
        Err(failure)
    }

    async fn upgrade(&self, io: Box<dyn Io>) -> Result<Socket, String> {
        let mut request = (&self.endpoint.uri)
            .into_client_request()
            .map_err(|error| format!("the URL cannot be asked for: {error}"))?;
        let protocol = HeaderValue::from_static(SUBPROTOCOL);
        request
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        let config = Some(socket_config());
        let upgrade = tokio_tungstenite::client_async_with_config(request, io, config);
        match upgrade.await {
            Ok((socket, _)) => Ok(socket),
            // Who answered in HTTP did not expect TLS.
            Err(error) if self.tls.is_none() && !matches!(error, WsError::Http(_)) => Err(format!(
                "{}; if the port expects TLS, the URL begins with wss://",
                explain_upgrade(error)
            )),
            Err(error) => Err(explain_upgrade(error)),
        }
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
async fn shake_hands(socket: &mut Socket, hello: Hello) -> Result<Welcome, String> {
    let hello = ClientMessage::Hello(hello).encode(None).to_frame();
    let sent = socket.send(Message::Binary(hello)).await;
    // A server that refuses us has sent its reason before our Hello fails: read it all the same.
    loop {
        match (socket.next().await, &sent) {
            (Some(Ok(Message::Ping(_) | Message::Pong(_))), _) => {}
            (Some(Ok(Message::Binary(frame))), _) => return read_welcome(frame),
            (Some(Ok(Message::Close(frame))), _) => {
                return Err(format!(
                    "the server closed before Welcome: {}",
                    close_text(frame)
                ));
            }
            (Some(Ok(Message::Text(_) | Message::Frame(_))), _) => {
                return Err("the server sent a text frame instead of Welcome".into());
            }
            (Some(Err(WsError::Io(error))), _) => return Err(explain_io(&error, "Welcome")),
            (Some(Err(error)), _) => return Err(format!("no Welcome came: {error}")),
            (None, Err(error)) => return Err(format!("Hello could not be sent: {error}")),
            (None, Ok(())) => return Err("the server closed the connection before Welcome".into()),
        }
    }
}

fn read_welcome(frame: bytes::Bytes) -> Result<Welcome, String> {
    let message = Packet::from_frame(frame).and_then(ServerMessage::decode);
    match message.map_err(|error| format!("Welcome is unreadable: {error}"))? {
        ServerMessage::Welcome(welcome) if welcome.version != native::VERSION => Err(format!(
            "the server speaks version {} of {SUBPROTOCOL}, we speak {}",
            welcome.version,
            native::VERSION
        )),
        ServerMessage::Welcome(welcome) if welcome.silence.is_zero() => {
            Err("Welcome announces a silence of 0 ms, which nothing can keep".into())
        }
        ServerMessage::Welcome(welcome) => Ok(welcome),
        ServerMessage::GoAway {
            reason,
            retry_after,
        } => Err(format!(
            "the server is going away: {reason} (come back in {retry_after:?})"
        )),
        _ => Err("the server sent something else instead of Welcome".into()),
    }
}

/// A close frame in words.
pub(crate) fn close_text(frame: Option<CloseFrame>) -> String {
    match frame {
        None => "without a code".to_owned(),
        Some(frame) if frame.reason.is_empty() => format!("code {}", u16::from(frame.code)),
        Some(frame) => format!("code {}, {}", u16::from(frame.code), frame.reason),
    }
}

async fn load_tls(options: &ConnectOptions) -> Result<rustls::ClientConfig, String> {
    let credentials = options.credentials.clone().ok_or(
        "there are no credentials: set credentials_dir, or without_client_certificate for a server that asks for none",
    )?;
    let min_version = options.tls_min_version;
    tokio::task::spawn_blocking(move || tls::client_config(&credentials, min_version))
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

fn connect_failed(url: &str, what: String) -> StorageError {
    StorageError::ConnectFailed {
        message: format!("{url}: {what}"),
    }
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
    let text: String = String::from_utf8_lossy(&body)
        .chars()
        .filter(|c| !c.is_control() || *c == ' ')
        .take(500)
        .collect();
    match text.trim() {
        "" => format!("the server refused with HTTP status {status}"),
        text => format!("the server refused with HTTP status {status}: {text}"),
    }
}

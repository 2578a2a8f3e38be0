//! A peer without manners: bytes, TLS and WebSocket frames as a test wants them, against a real server.
//!
//! [`Raw`] opens a WebSocket with headers of the test's choice and sends whatever it is told; every read has a
//! deadline, so a test that waits for nothing fails instead of hanging. [`tcp`], [`tls`] and [`http`] stop earlier on
//! the way. Nothing here knows the meaning of a message but [`Raw::say`] and [`Raw::hear`], which use the native codec.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use storage_protocol::native::{
    Class, ClientMessage, Hello, Outbox, Packet, Reassembler, RequestId, SUBPROTOCOL,
    ServerMessage, Welcome,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio_rustls::{TlsConnector, rustls};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::harness::{Certificates, ServerProcess};

/// How long anything may take before the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The longest message this peer takes.
const MESSAGE_BYTES_MAX: usize = 128 << 20;

/// A TLS connection to a server.
pub type Encrypted = TlsStream<TcpStream>;

/// What came from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A binary message.
    Binary(Bytes),
    /// A text message.
    Text(String),
    /// A ping; the library answers it.
    Ping,
    /// A pong, with what it carries.
    Pong(Bytes),
    /// A close frame. An empty one has code 1005, as the standard has it.
    Close(u16, String),
    /// The connection ended.
    Ended,
}

/// Runs `work` under [`PATIENCE`].
///
/// # Panics
/// If it takes longer; `what` says what it was.
pub async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// A TCP connection to the server's storage listener.
///
/// # Panics
/// If nobody listens.
pub async fn tcp(server: &ServerProcess) -> TcpStream {
    let (_, address) = server.url("storage").split_once("://").expect("a URL");
    let stream = in_time("TCP", TcpStream::connect(address))
        .await
        .expect("the server listens");
    stream.set_nodelay(true).expect("a socket option");
    stream
}

/// A TLS connection with the credentials of a client.
///
/// # Panics
/// If the handshake fails.
pub async fn tls(server: &ServerProcess, certificates: &Certificates, client: &str) -> Encrypted {
    let config = client_config(&certificates.dir().join(client));
    let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp(server).await);
    in_time("the TLS handshake", handshake)
        .await
        .expect("the server knows its clients")
}

/// A TLS connection without a client certificate.
///
/// # Panics
/// If the handshake fails.
pub async fn tls_without_certificate(
    server: &ServerProcess,
    certificates: &Certificates,
) -> Encrypted {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::pem_file_iter(certificates.dir().join("server/ca.pem"));
    for certificate in ca.expect("an authority lies there") {
        let certificate = certificate.expect("it is PEM");
        roots.add(certificate).expect("a trust anchor");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp(server).await);
    in_time("the TLS handshake", handshake)
        .await
        .expect("the server takes clients without a certificate")
}

fn client_config(folder: &Path) -> ClientConfig {
    let certificates = |file: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(folder.join(file))
            .expect("credentials lie there")
            .collect::<Result<_, _>>()
            .expect("they are PEM")
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca.pem") {
        roots.add(certificate).expect("a trust anchor");
    }
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).expect("a key lies there");
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("cert.pem"), key)
        .expect("the key fits")
}

/// How long the peer leaves a connection open, and what it said meanwhile.
///
/// # Panics
/// If it is open after [`PATIENCE`].
pub async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> (Duration, Vec<u8>) {
    let began = Instant::now();
    let mut said = Vec::new();
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        // A reset is an end as well.
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            said.extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
    };
    in_time("the server closes", reading).await;
    (began.elapsed(), said)
}

/// An answer in HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body, or what else came behind the head.
    pub body: Vec<u8>,
}

impl HttpAnswer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of the first header with this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        let mut pairs = lines.filter_map(|line| line.split_once(':'));
        let found = pairs.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }
}

/// The head of an upgrade request for `path`, with the usual headers and `more` (each line with its end).
#[must_use]
pub fn upgrade_request(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

/// Sends a request head and reads the answer; a body as long as the head says.
///
/// # Panics
/// If no answer comes.
pub async fn http(
    stream: &mut (impl AsyncRead + tokio::io::AsyncWrite + Unpin),
    request: &str,
) -> HttpAnswer {
    let exchange = async {
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the server reads");
        let mut read = Vec::new();
        let head = loop {
            let end = read.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                let body = read.split_off(end + 4);
                break String::from_utf8(std::mem::replace(&mut read, body)).expect("ASCII");
            }
            let count = stream.read_buf(&mut read).await.expect("an answer");
            assert_ne!(
                count,
                0,
                "the server closed after {:?}",
                read.escape_ascii().to_string()
            );
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        while read.len() < length.unwrap_or(0) {
            assert_ne!(
                stream.read_buf(&mut read).await.expect("a body"),
                0,
                "a short body"
            );
        }
        (head, read)
    };
    let (head, body) = in_time("an HTTP answer", exchange).await;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    HttpAnswer {
        status: status.expect("a status"),
        head,
        body,
    }
}

/// The value of a metric, `name` with its labels, by the admin listener. Absent is 0.
///
/// # Panics
/// If the server has no admin listener without TLS.
pub async fn metric(server: &ServerProcess, name: &str) -> f64 {
    metric_at(server.url("admin"), name).await
}

/// The same, by the URL of an admin listener.
///
/// # Panics
/// If there is none without TLS.
pub async fn metric_at(url: &str, name: &str) -> f64 {
    let (_, address) = url.split_once("://").expect("a URL");
    let mut stream = in_time("TCP", TcpStream::connect(address))
        .await
        .expect("the server listens");
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let text = http(&mut stream, request).await.text();
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .unwrap_or(0.0)
}

/// Waits until a metric is at least this.
///
/// # Panics
/// If it is not within [`PATIENCE`].
pub async fn metric_reaches(server: &ServerProcess, name: &str, least: f64) -> Duration {
    let began = Instant::now();
    while metric(server, name).await < least {
        assert!(
            began.elapsed() < PATIENCE,
            "{name} did not reach {least} in time"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// A WebSocket of which the test sees every message.
#[derive(Debug)]
pub struct Raw {
    socket: WebSocketStream<Encrypted>,
    reassembler: Reassembler,
}

impl Raw {
    /// Asks for a WebSocket at `path`; the answer if it is refused.
    ///
    /// # Errors
    /// What the server said instead of 101.
    ///
    /// # Panics
    /// If it does not come that far.
    pub async fn open(
        server: &ServerProcess,
        certificates: &Certificates,
        client: &str,
        request: &str,
    ) -> Result<Self, HttpAnswer> {
        Self::open_on(tls(server, certificates, client).await, request).await
    }

    /// The same on a connection that is there already.
    ///
    /// # Errors
    /// What the server said instead of 101.
    ///
    /// # Panics
    /// If no answer comes.
    pub async fn open_on(mut stream: Encrypted, request: &str) -> Result<Self, HttpAnswer> {
        let answer = http(&mut stream, request).await;
        if answer.status != 101 {
            return Err(answer);
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let socket =
            WebSocketStream::from_partially_read(stream, answer.body, Role::Client, Some(config))
                .await;
        Ok(Self {
            socket,
            reassembler: Reassembler::new(256 << 10, MESSAGE_BYTES_MAX),
        })
    }

    /// A WebSocket of the mwDB dialect.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn mwdb(server: &ServerProcess, certificates: &Certificates, client: &str) -> Self {
        let opened = Self::open(server, certificates, client, &upgrade_request("/", "")).await;
        opened.expect("the server takes mwDB clients")
    }

    /// A WebSocket of the native dialect; Hello was not said.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn mute(
        server: &ServerProcess,
        certificates: &Certificates,
        client: &str,
        keyspace: &str,
    ) -> Self {
        let protocol = format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n");
        let request = upgrade_request(&format!("/storage/{keyspace}"), &protocol);
        let opened = Self::open(server, certificates, client, &request).await;
        opened.expect("the server takes native clients")
    }

    /// A native session: Hello was said and Welcome heard.
    ///
    /// # Panics
    /// If another answer comes.
    pub async fn native(
        server: &ServerProcess,
        certificates: &Certificates,
        client: &str,
        keyspace: &str,
    ) -> (Self, Welcome) {
        let mut raw = Self::mute(server, certificates, client, keyspace).await;
        raw.say(None, &hello()).await;
        match raw.hear().await {
            (None, ServerMessage::Welcome(welcome)) => (raw, welcome),
            other => panic!("not Welcome: {other:?}"),
        }
    }

    /// Sends a message of the library's.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn send_message(&mut self, message: Message) {
        in_time("sending", self.socket.send(message))
            .await
            .expect("the connection is there");
    }

    /// Sends a text message.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn say_text(&mut self, text: &str) {
        self.send_message(Message::text(text)).await;
    }

    /// Sends a message, if the connection is there still.
    pub async fn try_send(&mut self, message: Message) -> bool {
        in_time("sending", self.socket.send(message)).await.is_ok()
    }

    /// Sends a message with those that follow, up to [`Raw::flush`].
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn feed(&mut self, message: Message) {
        in_time("sending", self.socket.feed(message))
            .await
            .expect("the connection is there");
    }

    /// Sends what was fed.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn flush(&mut self) {
        in_time("sending", self.socket.flush())
            .await
            .expect("the connection is there");
    }

    /// The code and reason with which the server has closed, if they arrived.
    pub async fn closed_if_told(&mut self) -> Option<(u16, String)> {
        loop {
            match self.receive().await {
                Received::Close(code, reason) => return Some((code, reason)),
                Received::Ended => return None,
                Received::Binary(_) | Received::Text(_) | Received::Ping | Received::Pong(_) => {}
            }
        }
    }

    /// Sends a binary message.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn send(&mut self, message: impl Into<Bytes>) {
        self.send_message(Message::Binary(message.into())).await;
    }

    /// Sends one binary message as WebSocket fragments, a ping between each two.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn send_fragments(&mut self, fragments: &[&[u8]]) {
        for (place, fragment) in fragments.iter().enumerate() {
            let opcode = if place == 0 {
                Data::Binary
            } else {
                Data::Continue
            };
            let last = place + 1 == fragments.len();
            let frame = Frame::message(fragment.to_vec(), OpCode::Data(opcode), last);
            self.send_message(Message::Frame(frame)).await;
            if !last {
                self.send_message(Message::Ping(Bytes::from_static(b"between")))
                    .await;
            }
        }
    }

    /// Writes bytes below the WebSocket.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn write_raw(&mut self, bytes: &[u8]) {
        let stream = self.socket.get_mut();
        let writing = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        in_time("writing", writing)
            .await
            .expect("the connection is there");
    }

    /// What comes next, if anything does within `patience`.
    pub async fn receive_within(&mut self, patience: Duration) -> Option<Received> {
        let message = timeout(patience, self.socket.next()).await.ok()?;
        Some(match message {
            Some(Ok(Message::Binary(bytes))) => Received::Binary(bytes),
            Some(Ok(Message::Text(text))) => Received::Text(text.to_string()),
            Some(Ok(Message::Ping(_))) => Received::Ping,
            Some(Ok(Message::Pong(bytes))) => Received::Pong(bytes),
            Some(Ok(Message::Close(Some(frame)))) => {
                Received::Close(frame.code.into(), frame.reason.to_string())
            }
            Some(Ok(Message::Close(None))) => Received::Close(1005, String::new()),
            Some(Ok(other)) => panic!("the server sent {other:?}"),
            Some(Err(_)) | None => Received::Ended,
        })
    }

    /// What comes next.
    ///
    /// # Panics
    /// If nothing does within [`PATIENCE`].
    pub async fn receive(&mut self) -> Received {
        self.receive_within(PATIENCE)
            .await
            .expect("the server says something in time")
    }

    /// The next binary message, past pings and pongs.
    ///
    /// # Panics
    /// If the connection closes instead.
    pub async fn binary(&mut self) -> Bytes {
        // One deadline for all of it: a server that only pings says nothing.
        let reading = async {
            loop {
                match self.receive().await {
                    Received::Binary(bytes) => return bytes,
                    Received::Ping | Received::Pong(_) => {}
                    other => panic!("not a binary message: {other:?}"),
                }
            }
        };
        in_time("a binary message", reading).await
    }

    /// The code and reason with which the server closes; what else comes before is passed over.
    ///
    /// # Panics
    /// If it ends without a close frame.
    pub async fn closed(&mut self) -> (u16, String) {
        let reading = async {
            loop {
                match self.receive().await {
                    Received::Close(code, reason) => return (code, reason),
                    Received::Ended => panic!("the connection ended without a close frame"),
                    Received::Binary(_)
                    | Received::Text(_)
                    | Received::Ping
                    | Received::Pong(_) => {}
                }
            }
        };
        in_time("the server closes", reading).await
    }

    /// Sends and reads at once until the server closes: for what is so long that it closes before the end.
    ///
    /// # Panics
    /// If it ends without a close frame.
    pub async fn send_until_closed(self, messages: Vec<Message>) -> (u16, String) {
        let Self {
            socket,
            reassembler,
        } = self;
        let (mut sink, stream) = socket.split();
        let (give_up, given_up) = tokio::sync::oneshot::channel::<()>();
        let sending = tokio::spawn(async move {
            let sending = async {
                for message in messages {
                    // The server need not take it to the end.
                    if sink.send(message).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! { () = sending => {} _ = given_up => {} }
            sink
        });
        let closing = async {
            let mut stream = stream;
            loop {
                match stream.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => {
                        break (u16::from(frame.code), frame.reason.to_string());
                    }
                    Some(Ok(_)) => {}
                    other => panic!("the connection ended without a close frame: {other:?}"),
                }
            }
        };
        let closed = in_time("the server closes", closing).await;
        drop((give_up, reassembler));
        drop(sending.await);
        closed
    }

    /// Closes with an empty close frame, as mwDB's client does, and waits for the server's and the end of the stream.
    ///
    /// # Panics
    /// If either does not come.
    pub async fn close(&mut self) -> Received {
        self.send_message(Message::Close(None)).await;
        let answer = loop {
            match self.receive().await {
                close @ (Received::Close(..) | Received::Ended) => break close,
                Received::Binary(_) | Received::Text(_) | Received::Ping | Received::Pong(_) => {}
            }
        };
        until_closed(self.socket.get_mut()).await;
        answer
    }

    /// Sends a native message, in parts where it is long.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn say(&mut self, id: Option<RequestId>, message: &ClientMessage) {
        let mut outbox = Outbox::new();
        outbox.push(Class::Control, message.encode(id));
        while let Some(frame) = outbox.pop() {
            self.send(frame).await;
        }
    }

    /// The native message that a frame completes, if it does.
    ///
    /// # Panics
    /// If it breaks the protocol.
    pub fn read(&mut self, frame: Bytes) -> Option<(Option<RequestId>, ServerMessage)> {
        let packet = self.reassembler.accept(frame, Instant::now());
        packet.expect("the server keeps the protocol").map(decode)
    }

    /// The next native message, put together from its parts.
    ///
    /// # Panics
    /// If something else comes.
    pub async fn hear(&mut self) -> (Option<RequestId>, ServerMessage) {
        loop {
            let frame = self.binary().await;
            if let Some(message) = self.read(frame) {
                return message;
            }
        }
    }

    /// The answer to a native request.
    ///
    /// # Panics
    /// If a message with another id comes.
    pub async fn ask(&mut self, id: RequestId, message: &ClientMessage) -> ServerMessage {
        self.say(Some(id), message).await;
        let (heard, answer) = self.hear().await;
        assert_eq!(heard, Some(id), "an answer to something else: {answer:?}");
        answer
    }
}

fn decode(packet: Packet) -> (Option<RequestId>, ServerMessage) {
    let id = packet.id;
    let message = ServerMessage::decode(packet).expect("the server keeps the protocol");
    (id, message)
}

/// A client's first message.
#[must_use]
pub fn hello() -> ClientMessage {
    ClientMessage::Hello(Hello::new("raw/1"))
}

//! A server that does what a test tells it, frame by frame.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::native::{
    Class, ClientMessage, Hello, Outbox, Reassembler, RequestId, SUBPROTOCOL, ServerMessage,
    VERSION, Welcome,
};
use storage_protocol::{Entry, EntryLifetime, Epoch, Limits, Position, Revision, SessionId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

pub(crate) const EPOCH: Epoch = Epoch(0xe);

/// Longer than anything here takes; a test that hangs fails by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Listener {
    tcp: TcpListener,
}

impl Listener {
    pub(crate) async fn bind() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { tcp }
    }

    pub(crate) fn url(&self, scheme: &str) -> String {
        let port = self.tcp.local_addr().unwrap().port();
        format!("{scheme}://localhost:{port}/storage/models")
    }

    /// [`Listener::url`] with another name for this machine.
    pub(crate) fn url_of(&self, host: &str) -> String {
        self.url("ws").replace("localhost", host)
    }

    /// Of a client that takes a lost connection for final; `reconnecting` is for those that do not.
    pub(crate) fn options(&self) -> ConnectOptions {
        self.reconnecting().give_up_after(Duration::ZERO)
    }

    pub(crate) fn reconnecting(&self) -> ConnectOptions {
        ConnectOptions::new(self.url("ws"))
            .danger_plaintext()
            .backoff(Duration::from_millis(5), Duration::from_millis(50))
    }

    pub(crate) async fn accept_tcp(&self) -> TcpStream {
        let accepted = tokio::time::timeout(PATIENCE, self.tcp.accept()).await;
        accepted.expect("nobody connects").unwrap().0
    }
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        version: VERSION,
        position: position(100),
        session: SessionId([7; 16]),
        executed: 0,
        lapsed: false,
        principal: "cert:tester".into(),
        heartbeat: Duration::from_secs(15),
        silence: Duration::from_secs(45),
        grace: Duration::from_secs(60),
        kept: Duration::from_secs(86_400),
        limits: Limits::default(),
    }
}

pub(crate) fn position(revision: u64) -> Position {
    let revision = Revision(revision);
    Position {
        epoch: EPOCH,
        revision,
    }
}

pub(crate) fn entry(value: impl Into<bytes::Bytes>) -> Entry {
    Entry {
        value: value.into(),
        revision: Revision(5),
        lifetime: EntryLifetime::Forever,
    }
}

pub(crate) fn values(entries: impl IntoIterator<Item = Option<Entry>>) -> ServerMessage {
    ServerMessage::Values {
        revision: Revision(100),
        entries: entries.into_iter().collect(),
    }
}

/// Negotiates the subprotocol.
#[expect(
    clippy::result_large_err,
    clippy::unnecessary_wraps,
    reason = "the signature is the library's"
)]
pub(crate) fn negotiate(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let headers = response.headers_mut();
    headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    Ok(response)
}

/// One accepted connection.
pub(crate) struct Peer<S = TcpStream> {
    pub(crate) ws: WebSocketStream<S>,
    reassembler: Reassembler,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Upgrades and reads Hello.
    pub(crate) async fn accept(io: S) -> (Self, Hello) {
        let ws = tokio_tungstenite::accept_hdr_async(io, negotiate)
            .await
            .unwrap();
        let reassembler = Reassembler::new(Limits::FRAME_BYTES, 64 << 20);
        let mut peer = Self { ws, reassembler };
        let (id, message) = peer.frame().await;
        assert_eq!(id, None);
        match message {
            ClientMessage::Hello(hello) => (peer, hello),
            other => panic!("{other:?} is no Hello"),
        }
    }

    async fn frame(&mut self) -> (Option<RequestId>, ClientMessage) {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.ws.next()).await;
            match message.expect("the client sent nothing").unwrap().unwrap() {
                Message::Binary(frame) => {
                    if let Some(packet) = self.reassembler.accept(frame, Instant::now()).unwrap() {
                        return (packet.id, ClientMessage::decode(packet).unwrap());
                    }
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?} is no frame"),
            }
        }
    }

    /// The next message.
    pub(crate) async fn receive(&mut self) -> (RequestId, ClientMessage) {
        let (id, message) = self.frame().await;
        (id.unwrap(), message)
    }

    pub(crate) async fn send(&mut self, id: RequestId, message: ServerMessage) {
        self.send_as(Some(id), message).await;
    }

    pub(crate) async fn send_as(&mut self, id: Option<RequestId>, message: ServerMessage) {
        let mut outbox = Outbox::new();
        outbox.push(Class::Answer, message.encode(id));
        while let Some(frame) = outbox.pop() {
            self.ws.feed(Message::Binary(frame)).await.unwrap();
        }
        self.ws.flush().await.unwrap();
    }

    /// Answers a probe, behind which everything the client has sent before is known to be here.
    pub(crate) async fn probed(&mut self, id: RequestId) {
        let (revision, token) = (Revision(100), 0);
        self.send(id, ServerMessage::Probed { revision, token })
            .await;
    }

    /// Reads up to the client's close frame, then to the end of the stream.
    pub(crate) async fn closed(&mut self) -> Option<CloseFrame> {
        let mut close = None;
        let reading = async {
            while let Some(Ok(message)) = self.ws.next().await {
                if let Message::Close(frame) = message {
                    close = frame;
                }
            }
        };
        // Of all of it: a client that stays says so again and again, by its pings.
        let read = tokio::time::timeout(PATIENCE, reading).await;
        read.expect("the client did not close");
        close
    }
}

/// A client and the server's end of its connection.
pub(crate) async fn connect() -> (RemoteStorage, Peer) {
    connect_with(welcome(), |options| options).await
}

pub(crate) async fn connect_with(
    welcome: Welcome,
    change: impl FnOnce(ConnectOptions) -> ConnectOptions,
) -> (RemoteStorage, Peer) {
    let listener = Listener::bind().await;
    let options = change(listener.options());
    let server = async {
        let (mut peer, _) = Peer::accept(listener.accept_tcp().await).await;
        peer.send_as(None, ServerMessage::Welcome(welcome)).await;
        peer
    };
    let (storage, peer) = tokio::join!(RemoteStorage::connect(options), server);
    (storage.unwrap(), peer)
}

/// A server that is connected to again and again.
pub(crate) struct Server {
    pub(crate) listener: Listener,
}

impl Server {
    pub(crate) async fn connect(
        change: impl FnOnce(ConnectOptions) -> ConnectOptions,
    ) -> (Self, RemoteStorage, Peer) {
        let server = Self {
            listener: Listener::bind().await,
        };
        let options = change(server.listener.reconnecting());
        let (storage, (peer, _)) =
            tokio::join!(RemoteStorage::connect(options), server.accept(welcome()));
        (server, storage.unwrap(), peer)
    }

    pub(crate) async fn accept(&self, welcome: Welcome) -> (Peer, Hello) {
        let accepting = async {
            let (mut peer, hello) = Peer::accept(self.listener.accept_tcp().await).await;
            peer.send_as(None, ServerMessage::Welcome(welcome)).await;
            (peer, hello)
        };
        tokio::time::timeout(PATIENCE, accepting)
            .await
            .expect("the client did not connect")
    }
}

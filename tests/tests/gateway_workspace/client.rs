//! A server with the gateway, and a client of it that knows HTTP, WebSockets and JSON, and nothing of ours.

use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::{Value, json};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::{Batch, CommitOptions, Storage};
use storage_testkit::entrance::{ask, mint_token};
use storage_testkit::harness::{Certificates, Launch, ServerProcess};
use storage_testkit::raw::{self, HttpAnswer, in_time};
use storage_testkit::served::ADMIN;
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

const PASSWORD: &str = "correct horse battery";

/// Users beside those of the examples: `eve` has no workspace, `ro` may read ws-7, `two` has two workspaces.
const USERS: [&str; 3] = ["eve", "ro", "two"];

pub(crate) struct House {
    pub(crate) server: ServerProcess,
    pub(crate) certificates: Certificates,
    _folder: TempDir,
    /// Of the gateway's listener: a port that a restart can have again.
    pub(crate) address: String,
}

impl House {
    /// A server with the examples, a short grace and little quiet.
    pub(crate) async fn new() -> Self {
        Self::configured("grace = \"1s\"\nquiet = \"50ms\"", "").await
    }

    /// `table`: what `[workspace]` has. `config`: before all tables.
    pub(crate) async fn configured(table: &str, config: &str) -> Self {
        let certificates = Certificates::issue(&["boss"]);
        let folder = tempfile::tempdir().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        drop(taken);
        let file = folder.path().join("server.toml");
        let text = format!(
            r#"
data = "{}"
certs = "{}"
durability = "os"

[workspace]
{table}

{config}

[[listener]]
address = "127.0.0.1:0"
tls = "server"
auth = ["certificate", "token", "password"]
gateways = ["storage"]

[[listener]]
address = "{address}"
tls = "off"
gateways = ["workspace"]

{ADMIN}"#,
            folder.path().join("data").display(),
            certificates.dir().display()
        );
        std::fs::write(&file, text).unwrap();
        let arguments = ["--demo", "--config", &file.display().to_string()];
        let launched = ServerProcess::launch(Launch {
            arguments: arguments.iter().map(ToString::to_string).collect(),
            ..Launch::default()
        });
        let server = launched.unwrap_or_else(|status| panic!("it does not listen: {status:?}"));
        let house = Self {
            server,
            certificates,
            _folder: folder,
            address,
        };
        house.fill().await;
        house
    }

    async fn fill(&self) {
        for name in USERS {
            let user = json!({ "password": PASSWORD, "new": true });
            let path = format!("users/{name}");
            let (status, body) = ask(&self.boss(), "PUT", &path, user).await;
            assert_eq!(status, 204, "{body}");
        }
        let batch = Batch::new()
            .put("users/eve", r#"{"uuid":"u-eve","roles":["none"]}"#)
            .put("users/ro", r#"{"uuid":"u-ro","roles":["readers"]}"#)
            .put("roles/readers", r#"{"workspaces":{"ws-7":"r"}}"#)
            .put("users/two", r#"{"uuid":"u-two","roles":["team","wide"]}"#)
            .put("roles/wide", r#"{"workspaces":{"ws-8":"rw"}}"#)
            .put("workspaces/ws-8", r#"{"slug":"wide","roots":["/data"]}"#);
        self.commit(batch).await;
    }

    /// How an administrator connects by its certificate.
    pub(crate) fn boss(&self) -> ConnectOptions {
        let url = format!("{}/storage/workspace", self.server.url("storage"));
        ConnectOptions::new(url).credentials_dir(self.certificates.dir().join("boss"))
    }

    /// A native client of the keyspace.
    pub(crate) async fn native(&self) -> RemoteStorage {
        let options = self.boss().give_up_after(Duration::ZERO);
        RemoteStorage::connect(options).await.unwrap()
    }

    pub(crate) async fn commit(&self, batch: Batch) {
        self.commit_with(batch, CommitOptions::default()).await;
    }

    pub(crate) async fn commit_with(&self, batch: Batch, options: CommitOptions) {
        self.native().await.commit(batch, options).await.unwrap();
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        let connected = in_time("TCP", TcpStream::connect(&self.address)).await;
        let stream = connected.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// The answer to a POST. `more`: headers, each with its end.
    pub(crate) async fn post(&self, path: &str, more: &str, body: &str) -> HttpAnswer {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        raw::http(&mut self.tcp().await, &request).await
    }

    /// A token of a user, of the examples or of this test.
    pub(crate) async fn token(&self, user: &str) -> String {
        if USERS.contains(&user) {
            let wish = json!({ "ttl": "1h" });
            return mint_token(&self.as_user(user), wish).await.1;
        }
        let path = format!("/workspace/demo-token?user={user}");
        let answer = self.post(&path, "", "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    /// How a user of this test connects.
    pub(crate) fn as_user(&self, user: &str) -> ConnectOptions {
        let url = format!("{}/storage/workspace", self.server.url("storage"));
        let ca = self.certificates.dir().join("ca.pem");
        ConnectOptions::new(url)
            .without_client_certificate(ca)
            .password(user, PASSWORD)
    }

    /// Tells an event as a service does.
    pub(crate) async fn tell(&self, event: Value) {
        let token = self.token("admin").await;
        self.tell_as(&token, &event).await;
    }

    pub(crate) async fn tell_as(&self, token: &str, event: &Value) {
        let bearer = format!("Authorization: Bearer {token}\r\n");
        let answer = self
            .post("/workspace/events", &bearer, &event.to_string())
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// A connection for which the system holds little that is not read.
    pub(crate) async fn narrow_tcp(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        let connecting = socket.connect(self.address.parse().unwrap());
        in_time("TCP", connecting).await.unwrap()
    }

    /// A socket that has said nothing.
    pub(crate) async fn open(&self, path: &str) -> Result<Socket, u16> {
        self.open_over(self.tcp().await, path).await
    }

    /// The same, over a connection that is there.
    pub(crate) async fn open_over(&self, stream: TcpStream, path: &str) -> Result<Socket, u16> {
        let uri = format!("ws://{}{path}", self.address);
        match in_time("an upgrade", client_async(uri, stream)).await {
            Ok((stream, _)) => Ok(Socket {
                stream,
                user: String::new(),
            }),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                Err(response.status().as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A socket of a user, which is live.
    pub(crate) async fn socket(&self, path: &str, user: &str) -> Socket {
        let token = self.token(user).await;
        let mut socket = self.open(path).await.unwrap();
        socket.subscribe(&token).await;
        socket.user = user.to_owned();
        socket
    }

    pub(crate) async fn chat(&self, user: &str) -> Socket {
        self.socket("/chat", user).await
    }

    pub(crate) async fn events(&self, user: &str) -> Socket {
        self.socket("/event", user).await
    }
}

/// The room of the node n-1, which is in ws-7.
pub(crate) fn node(object: &str) -> Value {
    json!({ "Type": "NODE", "RoomTypeObject": object })
}

pub(crate) struct Socket {
    pub(crate) stream: WebSocketStream<TcpStream>,
    pub(crate) user: String,
}

impl Socket {
    pub(crate) async fn say(&mut self, frame: Value) {
        self.say_text(&frame.to_string()).await;
    }

    pub(crate) async fn say_text(&mut self, text: &str) {
        let said = self.stream.send(Message::text(text));
        in_time("a message is sent", said).await.unwrap();
    }

    /// The next message, pings left out.
    pub(crate) async fn message(&mut self) -> Message {
        loop {
            let next = in_time("a message", self.stream.next()).await;
            match next.expect("the socket is open").expect("a message") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    /// The next frame.
    pub(crate) async fn frame(&mut self) -> Value {
        match self.message().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn subscribe(&mut self, token: &str) {
        self.say(json!({ "@type": "subscribe", "jwt": token, "ack": true }))
            .await;
        let frame = self.frame().await;
        assert_eq!(frame["@type"], "subscribed", "{frame}");
    }

    /// The next frame that is none of who is in a room.
    pub(crate) async fn frame_but_updates(&mut self) -> Value {
        loop {
            let frame = self.frame().await;
            if frame["@type"] != "ROOM_UPDATE" {
                return frame;
            }
        }
    }

    /// The next frame, which is of this type.
    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        let frame = self.frame().await;
        assert_eq!(frame["@type"], kind, "{frame}");
        frame
    }

    /// The next message of a room: its text.
    pub(crate) async fn text(&mut self) -> String {
        let frame = self.frame_but_updates().await;
        assert!(frame.get("@type").is_none(), "{frame}");
        frame["Message"].as_str().unwrap().to_owned()
    }

    /// Joins a room, and takes who is in it: its id.
    pub(crate) async fn join(&mut self, room: Value) -> String {
        self.say(json!({ "@type": "JOIN", "Room": room })).await;
        let update = self.expect("ROOM_UPDATE").await;
        let users = update["Room"]["Users"].as_array().unwrap();
        assert!(users.contains(&json!(self.user)), "{update}");
        update["Room"]["Uuid"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn post(&mut self, room: &str, text: &str) {
        self.say(json!({ "@type": "POST", "Message": { "RoomUuid": room, "Message": text } }))
            .await;
    }

    /// Waits until exactly these are in the room.
    pub(crate) async fn sees(&mut self, users: &[&str]) {
        loop {
            let frame = self.frame().await;
            if frame["@type"] == "ROOM_UPDATE" && frame["Room"]["Users"] == json!(users) {
                return;
            }
        }
    }

    /// The error that comes next, whatever else does.
    pub(crate) async fn error(&mut self) -> String {
        loop {
            let frame = self.frame().await;
            if frame["@type"] == "error" {
                return frame["error"].as_str().unwrap().to_owned();
            }
        }
    }

    /// That nothing has come by now.
    pub(crate) async fn has_nothing(&mut self, patience: Duration) {
        let waiting = tokio::time::timeout(patience, self.message()).await;
        assert!(waiting.is_err(), "{waiting:?}");
    }

    /// That no message is there already.
    pub(crate) fn is_silent(&mut self) {
        while let Some(next) = self.stream.next().now_or_never() {
            let next = next.unwrap().unwrap();
            assert!(matches!(next, Message::Ping(_)), "{next:?}");
        }
    }

    /// The code and the reason that the server closes with.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        loop {
            match in_time("a close", self.stream.next()).await {
                Some(Ok(Message::Close(Some(close)))) => {
                    return (close.code.into(), close.reason.as_str().to_owned());
                }
                Some(Ok(Message::Close(None))) => return (1005, String::new()),
                Some(Ok(_)) => {}
                Some(Err(error)) => panic!("{error}"),
                None => panic!("the connection ended without a close"),
            }
        }
    }
}

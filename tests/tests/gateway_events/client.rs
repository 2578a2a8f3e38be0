//! A server with the gateway, and a client of it that knows HTTP, WebSockets and JSON, and nothing of ours.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_testkit::entrance::ask;
use storage_testkit::harness::{Certificates, Launch, ServerProcess};
use storage_testkit::raw::{self, HttpAnswer, in_time};
use storage_testkit::served::ADMIN;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};

pub(crate) const USER: &str = "rocketskates";
pub(crate) const PASSWORD: &str = "r0cketsk8ts";

const LISTENERS: &str = r#"
[[listener]]
address = "127.0.0.1:0"
tls = "server"
auth = ["certificate", "token", "password"]
gateways = ["storage"]

[[listener]]
address = "127.0.0.1:0"
tls = "off"
gateways = ["events"]
"#;

/// The header `Authorization` for a user.
pub(crate) fn basic(user: &str, password: &str) -> String {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    format!("Authorization: Basic {encoded}\r\n")
}

pub(crate) fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// That of the user who may do everything, unless there are rules.
pub(crate) fn own() -> String {
    basic(USER, PASSWORD)
}

pub(crate) struct House {
    pub(crate) server: ServerProcess,
    pub(crate) certificates: Certificates,
    folder: TempDir,
}

impl House {
    /// A server without access rules, and its user.
    pub(crate) async fn new() -> Self {
        Self::configured("", &[]).await
    }

    pub(crate) async fn configured(config: &str, arguments: &[&str]) -> Self {
        let certificates = Certificates::issue(&["boss", "ann"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("server.toml");
        let text = format!(
            "data = \"{}\"\ncerts = \"{}\"\ndurability = \"os\"\n{config}\n{LISTENERS}{ADMIN}",
            folder.path().join("data").display(),
            certificates.dir().display()
        );
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        let given = ["--config", &file];
        let arguments = given.iter().chain(arguments).map(ToString::to_string);
        let launched = ServerProcess::launch(Launch {
            arguments: arguments.collect(),
            ..Launch::default()
        });
        let server = launched.unwrap_or_else(|status| panic!("it does not listen: {status:?}"));
        let house = Self {
            server,
            certificates,
            folder,
        };
        house.add_user(USER, PASSWORD).await;
        house
    }

    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    /// How an administrator connects by its certificate.
    pub(crate) fn boss(&self, keyspace: &str) -> ConnectOptions {
        let url = format!("{}/storage/{keyspace}", self.server.url("storage"));
        ConnectOptions::new(url).credentials_dir(self.certificates.dir().join("boss"))
    }

    pub(crate) async fn add_user(&self, name: &str, password: &str) {
        let user = json!({ "password": password, "new": true });
        let (status, body) = ask(&self.boss("events"), "PUT", &format!("users/{name}"), user).await;
        // At a start with --demo, or on data that has it, it is there.
        assert!(status == 204 || status == 409, "{status} {body}");
    }

    /// A native client of the keyspace.
    pub(crate) async fn native(&self) -> RemoteStorage {
        let options = self.boss("events").give_up_after(Duration::ZERO);
        RemoteStorage::connect(options).await.unwrap()
    }

    pub(crate) fn address(&self) -> &str {
        self.server.url("events").split_once("://").unwrap().1
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        let connected = in_time("TCP", TcpStream::connect(self.address())).await;
        let stream = connected.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A connection for requests, as the user.
    pub(crate) async fn http(&self) -> Http {
        self.http_as(&own()).await
    }

    pub(crate) async fn http_as(&self, credential: &str) -> Http {
        Http {
            stream: self.tcp().await,
            credential: credential.to_owned(),
        }
    }

    /// A socket, as the user.
    pub(crate) async fn socket(&self) -> Socket {
        self.socket_as("", &own()).await.unwrap()
    }

    /// A socket, or the status of its refusal. `query`: with its question mark. `header`: with its end of line.
    pub(crate) async fn socket_as(&self, query: &str, header: &str) -> Result<Socket, HttpAnswer> {
        let stream = self.tcp().await;
        let uri = format!("ws://{}/api/v3/ws{query}", self.address());
        let mut request = uri.into_client_request().unwrap();
        if let Some((name, value)) = header.trim().split_once(": ") {
            let name = name.parse::<hyper::header::HeaderName>().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        match in_time("an upgrade", client_async(request, stream)).await {
            Ok((stream, _)) => Ok(Socket { stream }),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let head = format!("{:?}", response.headers());
                let status = response.status().as_u16();
                let body = response.into_body().unwrap_or_default();
                Err(HttpAnswer { status, head, body })
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A connection for requests.
pub(crate) struct Http {
    stream: TcpStream,
    pub(crate) credential: String,
}

impl Http {
    /// The answer; `body` may be empty.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        more: &str,
        body: &str,
    ) -> HttpAnswer {
        let request = format!(
            "{method} /api/v3{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{}{more}Content-Length: {}\r\n\r\n{body}",
            self.credential,
            body.len()
        );
        raw::http(&mut self.stream, &request).await
    }

    /// Status and JSON of the answer.
    pub(crate) async fn ask(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let json = "Content-Type: application/json\r\n";
        let answer = self.send(method, path, json, &body).await;
        let value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        (answer.status, value)
    }

    /// The JSON of an answer that has to be a success.
    pub(crate) async fn good(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let (status, value) = self.ask(method, path, body).await;
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {value}"
        );
        value
    }

    pub(crate) async fn get(&mut self, path: &str) -> (u16, Value) {
        self.ask("GET", path, &Value::Null).await
    }

    pub(crate) async fn delete(&mut self, path: &str) -> (u16, Value) {
        self.ask("DELETE", path, &Value::Null).await
    }

    /// Makes a profile without parameters.
    pub(crate) async fn profile(&mut self, name: &str) -> Value {
        let profile = json!({ "Name": name, "Params": {} });
        self.good("POST", "/profiles", &profile).await
    }

    /// Posts an event that stands behind all that was done before.
    pub(crate) async fn mark(&mut self, key: &str) {
        let event = json!({ "Type": "mark", "Action": "set", "Key": key });
        self.good("POST", "/events", &event).await;
    }
}

pub(crate) struct Socket {
    pub(crate) stream: WebSocketStream<TcpStream>,
}

impl Socket {
    pub(crate) async fn say(&mut self, text: &str) {
        let said = self.stream.send(Message::text(text));
        in_time("a command is sent", said).await.unwrap();
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

    /// The text of the next frame.
    pub(crate) async fn frame(&mut self) -> String {
        match self.message().await {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn event(&mut self) -> Value {
        let frame = self.frame().await;
        serde_json::from_str(&frame).unwrap_or_else(|error| panic!("{error}: {frame}"))
    }

    /// The next event, as `TYPE.ACTION.KEY`.
    pub(crate) async fn hear(&mut self) -> String {
        name(&self.event().await)
    }

    pub(crate) async fn register(&mut self, filter: &str) {
        self.say(&format!("register {filter}")).await;
        assert_eq!(self.hear().await, format!("websocket.register.{filter}"));
    }

    pub(crate) async fn deregister(&mut self, filter: &str) {
        self.say(&format!("deregister {filter}")).await;
        assert_eq!(self.hear().await, format!("websocket.deregister.{filter}"));
    }

    /// The messages of the error that answers a command.
    pub(crate) async fn refused(&mut self, command: &str) -> String {
        self.say(command).await;
        let event = self.event().await;
        assert_eq!(event["Type"], "websocket", "{event}");
        assert_eq!(event["Action"], "error", "{event}");
        event["Object"]["Messages"][0].as_str().unwrap().to_owned()
    }

    /// All events up to the mark, as `TYPE.ACTION.KEY`. The socket is registered for `mark.*.*`.
    pub(crate) async fn until_mark(&mut self, key: &str) -> Vec<String> {
        let mark = format!("mark.set.{key}");
        let mut heard = Vec::new();
        loop {
            match self.hear().await {
                event if event == mark => return heard,
                event => heard.push(event),
            }
        }
    }

    /// The code that the server closes with.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            match in_time("a close", self.stream.next()).await {
                Some(Ok(Message::Close(Some(close)))) => return close.code.into(),
                Some(Ok(Message::Close(None))) => return CloseCode::Status.into(),
                Some(Ok(_)) => {}
                Some(Err(error)) => panic!("{error}"),
                None => panic!("the connection ended without a close"),
            }
        }
    }
}

/// An event as `TYPE.ACTION.KEY`.
pub(crate) fn name(event: &Value) -> String {
    let text = |field: &str| event[field].as_str().unwrap_or("?").to_owned();
    format!("{}.{}.{}", text("Type"), text("Action"), text("Key"))
}

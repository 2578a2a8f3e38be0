//! A server with all gateways on one port, and plain clients of it.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use storage_testkit::harness::{Launch, ServerProcess};
use storage_testkit::raw::{self, HttpAnswer, in_time};
use storage_testkit::served::ADMIN;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// All of them at one address.
pub(crate) const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\n\
    gateways = [\"storage\", \"events\", \"repository\"]\n";

pub(crate) struct House {
    pub(crate) server: ServerProcess,
    pub(crate) folder: TempDir,
}

impl House {
    pub(crate) fn new(config: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let launched = Self::launch(&folder, config, more);
        let log = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        let server = launched.unwrap_or_else(|status| panic!("{status:?}: {}", log()));
        Self { server, folder }
    }

    /// On the data of one before, if there is any in this folder.
    pub(crate) fn launch(
        folder: &TempDir,
        config: &str,
        more: &[&str],
    ) -> Result<ServerProcess, Option<std::process::ExitStatus>> {
        let (file, data) = (
            folder.path().join("server.toml"),
            folder.path().join("data"),
        );
        let text = format!(
            "data = \"{}\"\ndurability = \"os\"\n{config}\n{ADMIN}",
            data.display()
        );
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        let given = ["--config", &file];
        // What is freed goes back to the system at once.
        let at_once = ("MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0");
        ServerProcess::launch(Launch {
            arguments: given.iter().chain(more).map(ToString::to_string).collect(),
            log: Some(folder.path().join("log")),
            environment: vec![(at_once.0.to_owned(), at_once.1.to_owned())],
            ..Launch::default()
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        address(&self.server)
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        tcp(self.address()).await
    }

    pub(crate) async fn ask(
        &self,
        method: &str,
        target: &str,
        headers: &str,
        body: &str,
    ) -> HttpAnswer {
        ask(self.address(), method, target, headers, body).await
    }

    /// A WebSocket at this target.
    pub(crate) async fn socket(&self, target: &str) -> Socket {
        let url = format!("ws://{}{target}", self.address());
        let stream = self.tcp().await;
        let opened = in_time("a WebSocket", client_async(url, stream)).await;
        Socket(opened.unwrap().0)
    }
}

pub(crate) fn address(server: &ServerProcess) -> SocketAddr {
    let (_, address) = server.url("events").split_once("://").unwrap();
    address.parse().unwrap()
}

async fn tcp(address: SocketAddr) -> TcpStream {
    let stream = in_time("TCP", TcpStream::connect(address)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The answer to a request on a connection of its own.
pub(crate) async fn ask(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    body: &str,
) -> HttpAnswer {
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    raw::http(&mut tcp(address).await, &request).await
}

/// The header `Authorization` of a user.
pub(crate) fn basic(user: &str, password: &str) -> String {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    format!("Authorization: Basic {encoded}\r\n")
}

/// A WebSocket of text.
pub(crate) struct Socket(pub(crate) WebSocketStream<TcpStream>);

impl Socket {
    pub(crate) async fn say(&mut self, text: &str) {
        in_time("a frame is taken", self.0.send(Message::text(text)))
            .await
            .unwrap();
    }

    /// The next text, as JSON.
    pub(crate) async fn hear(&mut self) -> Value {
        loop {
            match in_time("a frame", self.0.next()).await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

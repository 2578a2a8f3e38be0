//! A server with the gateway, and clients of it that know nothing but HTTP, multipart bodies and WebSockets of text.

use std::path::{Path, PathBuf};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use storage_client::{ConnectOptions, RemoteStorage};
use storage_testkit::harness::{Launch, ServerProcess};
use storage_testkit::raw::{in_time, metric};
use storage_testkit::served::ADMIN;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// The example user that most requests are by.
pub(crate) const BOB: (&str, &str) = ("bob@abc.com", "1234");

/// The listener, secured as by default.
pub(crate) const LISTENER: &str =
    "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\ngateways = [\"repository\"]\n";

/// One more, for native clients.
pub(crate) const NATIVE: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\ngateways = [\"storage\"]\n\
    auth = [\"password\"]\n";

/// The same for everybody.
pub(crate) const OPEN: &str = "[repository]\nopen = true\n[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\n\
    gateways = [\"repository\"]\nauth = [\"anonymous\", \"token\", \"password\"]\n";

/// The server, with its example users.
pub(crate) struct House {
    pub(crate) server: ServerProcess,
    folder: TempDir,
}

impl House {
    /// One that is configured by this text, with a listener among it.
    pub(crate) fn new(config: &str) -> Self {
        Self::launched(config, &["--demo"], &[])
    }

    pub(crate) fn launched(config: &str, more: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (file, data) = (
            folder.path().join("server.toml"),
            folder.path().join("data"),
        );
        std::fs::write(&file, whole(&data, config)).unwrap();
        let mut arguments: Vec<_> = more.iter().map(ToString::to_string).collect();
        arguments.extend(["--config".to_owned(), file.display().to_string()]);
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let launched = ServerProcess::launch(Launch {
            arguments,
            log: Some(folder.path().join("log")),
            environment: environment.iter().map(pair).collect(),
            ..Launch::default()
        });
        let log = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        let server = launched.unwrap_or_else(|status| panic!("{status:?}: {}", log()));
        Self { server, folder }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Gives it another configuration, of which it reads by itself what may change while it runs.
    pub(crate) fn configure(&self, config: &str) {
        let next = self.folder.path().join("next.toml");
        std::fs::write(&next, whole(&self.data(), config)).unwrap();
        std::fs::rename(next, self.folder.path().join("server.toml")).unwrap();
    }

    /// Bob as a native client of the keyspace, where there is a listener for them ([`NATIVE`]).
    pub(crate) async fn native(&self) -> RemoteStorage {
        let url = format!("ws://{}/storage/repository", self.storage_address());
        let options = ConnectOptions::new(url).danger_plaintext();
        let options = options.password(BOB.0, BOB.1);
        RemoteStorage::connect(options).await.unwrap()
    }

    pub(crate) fn secured() -> Self {
        Self::new(LISTENER)
    }

    pub(crate) fn open() -> Self {
        Self::new(OPEN)
    }

    pub(crate) fn address(&self) -> &str {
        let url = self.server.url("repository");
        url.split_once("://").unwrap().1
    }

    /// The address of a listener for storage, where there is one.
    pub(crate) fn storage_address(&self) -> &str {
        let url = self.server.url("storage");
        url.split_once("://").unwrap().1
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        in_time("TCP", TcpStream::connect(self.address()))
            .await
            .unwrap()
    }

    /// Sends these bytes as they are, and reads the answer.
    pub(crate) async fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        // The server may answer and close before it has read all.
        let _ = stream.write_all(request).await;
        Answer::read(&mut stream).await
    }

    /// A request without a body.
    pub(crate) async fn ask(&self, method: &str, target: &str, headers: &str) -> Answer {
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n"
        );
        self.raw(request.as_bytes()).await
    }

    pub(crate) async fn get(&self, target: &str, token: &str) -> Answer {
        self.ask("GET", target, &oauth(token)).await
    }

    pub(crate) async fn post(&self, target: &str, token: &str) -> Answer {
        self.ask("POST", target, &oauth(token)).await
    }

    /// A multipart body.
    pub(crate) async fn post_form(&self, target: &str, token: &str, form: &Form) -> Answer {
        let mut request = form.head(target, &oauth(token)).into_bytes();
        request.extend(form.body());
        self.raw(&request).await
    }

    pub(crate) async fn login(&self, (email, password): (&str, &str)) -> String {
        let answer = self
            .get(&format!("/login?email={email}&pw={password}"), "")
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    /// Uploads a file with its JSON.
    pub(crate) async fn upload(&self, token: &str, query: &str, file: &[u8], json: &str) -> Answer {
        let form = Form::default()
            .file("UploadFile", file)
            .file("UploadJSON", json.as_bytes());
        self.post_form(&format!("/upload?{query}"), token, &form)
            .await
    }

    /// The same where it must succeed.
    pub(crate) async fn uploaded(&self, token: &str, query: &str, file: &[u8], json: &str) {
        let answer = self.upload(token, query, file, json).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "UPLOAD: succeed\n")
        );
    }

    /// A small file of this project, source and name.
    pub(crate) async fn note(&self, token: &str, project: &str, source: &str, name: &str) {
        let query = format!("project={project}&source={source}&Path=&DestFileName={name}");
        self.uploaded(token, &query, b"x", "{}").await;
    }

    /// A WebSocket at this target (`/?token=...`).
    pub(crate) async fn socket(&self, target: &str) -> Socket {
        let url = format!("ws://{}{target}", self.address());
        let stream = self.connect().await;
        let opened = in_time("a WebSocket", tokio_tungstenite::client_async(url, stream)).await;
        Socket(opened.unwrap().0)
    }

    /// One of this peer, with these subscriptions.
    pub(crate) async fn subscribed(&self, token: &str, frames: &[&str]) -> Socket {
        let mut socket = self.socket(&format!("/?token={token}")).await;
        for frame in frames {
            socket.say(frame).await;
            let told = socket.hear().await;
            assert!(told.contains("suscribed_to"), "{told}");
        }
        socket
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        metric(&self.server, name).await
    }
}

/// Keys of the whole come before the first table.
fn whole(data: &Path, config: &str) -> String {
    let data = data.display();
    format!("data = \"{data}\"\ndurability = \"os\"\n{config}\n{ADMIN}")
}

fn oauth(token: &str) -> String {
    match token.is_empty() {
        true => String::new(),
        false => format!("Authorization: OAuth {token}\r\n"),
    }
}

/// A multipart body, as clients make them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Form(Vec<u8>);

const BOUNDARY: &str = "*****";

impl Form {
    fn part(mut self, head: &str, data: &[u8]) -> Self {
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n");
        self.0.extend(head.bytes());
        self.0.extend(data);
        self.0.extend(b"\r\n");
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.part(&format!("name=\"{name}\"; filename=\"{name}.x\""), data)
    }

    pub(crate) fn field(self, name: &str, value: &str) -> Self {
        self.part(&format!("name=\"{name}\""), value.as_bytes())
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        [self.0.as_slice(), format!("--{BOUNDARY}--\r\n").as_bytes()].concat()
    }

    pub(crate) fn head(&self, target: &str, headers: &str) -> String {
        head(target, headers, self.body().len())
    }
}

/// The head of a multipart request.
pub(crate) fn head(target: &str, headers: &str, bytes: usize) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {bytes}\r\n\r\n"
    )
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads one to the end of the connection.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Self {
        let mut read = Vec::new();
        // A reset behind the answer is an end as well.
        let _ = in_time("an answer", stream.read_to_end(&mut read)).await;
        let end = read.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {:?}", read.escape_ascii().to_string()));
        let head = String::from_utf8(read[..end].to_vec()).unwrap_or_default();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let body = &read[end + 4..];
        let is_chunked = head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        Self {
            status: status.unwrap(),
            body: if is_chunked {
                unchunked(body)
            } else {
                body.to_vec()
            },
            head,
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Status and text.
    pub(crate) fn told(&self) -> (u16, String) {
        (self.status, self.text())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (other, value) = line.split_once(':')?;
            other.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A body whose last chunk is missing is no body.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body
            .windows(2)
            .position(|window| window == b"\r\n")
            .expect("a chunk");
        let length = std::str::from_utf8(&body[..end]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return whole;
        }
        whole.extend(&body[end + 2..end + 2 + length]);
        body = &body[end + 4 + length..];
    }
}

/// A WebSocket.
pub(crate) struct Socket(pub(crate) WebSocketStream<TcpStream>);

impl Socket {
    pub(crate) async fn say(&mut self, text: &str) {
        in_time("a frame is taken", self.0.send(Message::text(text)))
            .await
            .unwrap();
    }

    pub(crate) async fn send(&mut self, message: Message) {
        in_time("a frame is taken", self.0.send(message))
            .await
            .unwrap();
    }

    /// The next text.
    pub(crate) async fn hear(&mut self) -> String {
        loop {
            match in_time("a frame", self.0.next()).await {
                Some(Ok(Message::Text(text))) => return text.to_string(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn document(&mut self) -> Value {
        let text = self.hear().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The name of the file of the next document.
    pub(crate) async fn name(&mut self) -> String {
        let document = self.document().await;
        document["filename"]
            .as_str()
            .unwrap_or_else(|| panic!("{document}"))
            .to_owned()
    }

    /// The names of all that it is told up to one of this name.
    pub(crate) async fn names_up_to(&mut self, marker: &str) -> Vec<String> {
        let mut names = Vec::new();
        while names.last().is_none_or(|name| name != marker) {
            names.push(self.name().await);
        }
        names
    }

    /// The code of its close.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            match in_time("a close", self.0.next()).await {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

//! A server with the gateway, whose clock the test sets, and clients of it that know HTTP, WebSockets and JSON.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use storage_protocol::{Keyspace, Storage, UnixMillis};
use storage_server::config::{AuthMethod, Durability, ListenerConfig, ServerConfig, TlsMode};
use storage_server::{ListenerAddress, Server, WallClock};
use storage_testkit::raw::{self, HttpAnswer, in_time};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Monday, 30 November 2026, 12:00:00 UTC.
pub(crate) const NOON: UnixMillis = UnixMillis(1_796_040_000_000);

pub(crate) const ALERT_MISSING: &str = r#"{"Alert":"Package missing required data"}"#;
pub(crate) const ALERT_OTHER: &str = r#"{"Alert":"Package hasn't been received successfully"}"#;

pub(crate) struct House {
    /// Behind a lock, since a server may be moved from thread to thread and not shared.
    server: Mutex<Option<Server>>,
    addresses: Vec<ListenerAddress>,
    pub(crate) clock: WallClock,
    config: ServerConfig,
    is_demo: bool,
    folder: TempDir,
}

fn listener(gateways: &[&str], auth: &[AuthMethod]) -> ListenerConfig {
    ListenerConfig {
        tls: TlsMode::Off,
        auth: Some(auth.to_vec()),
        gateways: gateways.iter().map(ToString::to_string).collect(),
        ..ListenerConfig::new("127.0.0.1:0".parse().unwrap())
    }
}

impl House {
    /// One that lets anybody in.
    pub(crate) async fn open() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let all = [
            AuthMethod::Anonymous,
            AuthMethod::Token,
            AuthMethod::Password,
        ];
        Self::started(&[listener(&["robots"], &all)], false, change).await
    }

    /// The same, for pages of this site too.
    pub(crate) async fn of_pages(origin: &str) -> Self {
        let all = [
            AuthMethod::Anonymous,
            AuthMethod::Token,
            AuthMethod::Password,
        ];
        let listener = ListenerConfig {
            allowed_origins: vec![origin.to_owned()],
            ..listener(&["robots"], &all)
        };
        Self::started(&[listener], false, |_| {}).await
    }

    /// One whose users need a credential.
    pub(crate) async fn secured() -> Self {
        let auth = [AuthMethod::Token, AuthMethod::Password];
        Self::started(&[listener(&["robots"], &auth)], false, |_| {}).await
    }

    /// The same with the example users, which are those of other gateways too. Robots need no token there.
    pub(crate) async fn demo() -> Self {
        Self::demo_with(|_| {}).await
    }

    pub(crate) async fn demo_with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let auth = [AuthMethod::Token, AuthMethod::Password];
        let listeners = [
            listener(&["robots"], &auth),
            listener(&["repository", "events"], &auth),
        ];
        Self::started(&listeners, true, change).await
    }

    async fn started(
        listeners: &[ListenerConfig],
        is_demo: bool,
        change: impl FnOnce(&mut ServerConfig),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut config = ServerConfig::embedded(data, None, listeners.to_vec());
        config.durability = Durability::Os;
        config.robots.time_zone = "UTC".to_owned();
        config.robots.resend = Duration::from_millis(500);
        change(&mut config);
        let mut house = Self {
            server: Mutex::new(None),
            addresses: Vec::new(),
            clock: WallClock::standing(NOON),
            config,
            is_demo,
            folder,
        };
        house.start().await;
        house
    }

    pub(crate) async fn start(&mut self) {
        let builder = Server::builder(self.config.clone()).clock(self.clock.clone());
        let builder = match self.is_demo {
            true => builder.demo(),
            false => builder,
        };
        let server = builder.start().await.unwrap();
        self.addresses = server.addresses().to_vec();
        self.server = Mutex::new(Some(server));
    }

    /// Stops it, as an administrator does.
    pub(crate) async fn stop(&mut self) {
        let server = self.server.get_mut().unwrap().take().unwrap();
        server.shutdown().await;
    }

    pub(crate) fn address_of(&self, gateway: &str) -> SocketAddr {
        let addresses = self.addresses.iter();
        let mut named = addresses.filter(|one| one.gateways.iter().any(|name| name == gateway));
        named.next().unwrap().address
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address_of("robots")
    }

    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        let keyspace = Keyspace::new("robots").unwrap();
        let server = self.server.lock().unwrap();
        server.as_ref().unwrap().storage(&keyspace)
    }

    pub(crate) fn logs(&self) -> std::path::PathBuf {
        self.folder.path().join("data").join("robots")
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Puts the clock forward.
    pub(crate) fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> HttpAnswer {
        ask_at(self.address(), method, path, headers, body).await
    }

    /// Status and body of a request without a body.
    pub(crate) async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let answer = self.send(method, path, "", "").await;
        (answer.status, answer.text())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let answer = self.send("POST", path, "", &body.to_string()).await;
        (answer.status, answer.text())
    }

    /// Triggers a job; its number.
    pub(crate) async fn trigger(
        &self,
        address: &str,
        package: &str,
        date: &str,
        time: &str,
    ) -> u64 {
        let body = trigger(address, package, date, time).to_string();
        let answer = self.send("POST", "/pkg", "", &body).await;
        assert_eq!(answer.text(), "Server sent package to scheduler");
        assert_eq!(answer.status, 200);
        job_id(&answer)
    }

    pub(crate) async fn robots(&self) -> Vec<Value> {
        let list = self.get("/api/robots/get/all").await;
        list["Robots"].as_array().unwrap().clone()
    }

    /// The robot of an address as it is listed.
    pub(crate) async fn robot(&self, address: &str) -> Value {
        let robots = self.robots().await;
        let found = robots
            .into_iter()
            .find(|robot| robot["robotAddress"] == address);
        found.unwrap_or(Value::Null)
    }

    pub(crate) async fn job(&self, id: u64) -> Value {
        self.get(&format!("/api/jobs/get/id/{id}")).await["Job"].clone()
    }

    pub(crate) async fn status(&self, id: u64) -> String {
        self.job(id).await["status"]
            .as_str()
            .unwrap_or("none")
            .to_owned()
    }

    pub(crate) async fn comes_to(&self, id: u64, status: &str) {
        let comes = async || self.status(id).await == status;
        until(&format!("job {id} is {status}"), comes).await;
    }

    /// Until it is known that a package has arrived. A connection that ends before that is no proof that it has, and
    /// the robot's next one is sent the package again.
    pub(crate) async fn arrives(&self, id: u64) {
        let arrives = async || self.job(id).await["confirmed"] == true;
        until(&format!("the package of job {id} has arrived"), arrives).await;
    }

    /// A robot that has registered in the first dialect.
    pub(crate) async fn connected(&self, name: &str, address: &str) -> Robot {
        let robot = Robot::connect(self.address(), "/").await;
        robot.say(&metadata(name, address)).await;
        let comes = async || self.robot(address).await["socketID"].is_string();
        until("the robot is listed as connected", comes).await;
        robot
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(what, waiting).await;
}

pub(crate) async fn ask_at(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> HttpAnswer {
    let mut stream = in_time("TCP", TcpStream::connect(address)).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    raw::http(&mut stream, &request).await
}

pub(crate) fn trigger(address: &str, package: &str, date: &str, time: &str) -> Value {
    json!({
        "Package": { "package_name": package, "path": format!("store/{package}.std") },
        "Robot": { "robot_name": "LAB-PC-3", "robot_address": address },
        "Schedule": { "date": date, "time": time },
    })
}

pub(crate) fn job_id(answer: &HttpAnswer) -> u64 {
    let mut lines = answer.head.lines();
    let line = lines.find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("x-job-id: ")
            .map(str::to_owned)
    });
    line.expect("the answer has the job's id")
        .trim()
        .parse()
        .unwrap()
}

pub(crate) fn metadata(name: &str, address: &str) -> String {
    let value = json!({ "robotName": name, "robotAddress": address, "userID": 4 });
    json!({ "event": "client robot metaData", "value": value }).to_string()
}

/// The same in the second dialect.
pub(crate) fn later_metadata(name: &str, address: &str) -> String {
    let value = json!({ "robotName": name, "robotAddress": address, "uuid": "8c1f" });
    json!({ "_event": "client robot metaData", "value": value }).to_string()
}

/// The frame of a package, in the first dialect.
pub(crate) fn notification(package: &str) -> String {
    format!(
        r#"{{"event":"notification","value":{{"package_name":"{package}","path":"store/{package}.std"}}}}"#
    )
}

/// A robot, that reads all the time and answers pings, as WebSockets do.
pub(crate) struct Robot {
    out: tokio::sync::Mutex<SplitSink<WebSocketStream<TcpStream>, Message>>,
    heard: tokio::sync::Mutex<mpsc::Receiver<Heard>>,
    pub(crate) pings: Arc<AtomicUsize>,
    reading: tokio::task::JoinHandle<()>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Text(String),
    Closed(u16),
}

impl Drop for Robot {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Robot {
    pub(crate) async fn connect(address: SocketAddr, path: &str) -> Self {
        Self::try_connect(address, path, "").await.unwrap()
    }

    /// `header`: such as `Authorization: Bearer x`. An error is the status of the refusal.
    pub(crate) async fn try_connect(
        address: SocketAddr,
        path: &str,
        header: &str,
    ) -> Result<Self, u16> {
        let stream = in_time("TCP", TcpStream::connect(address)).await.unwrap();
        let uri = format!("ws://{address}{path}");
        let mut request = uri.into_client_request().unwrap();
        if let Some((name, value)) = header.split_once(": ") {
            let name = name.parse::<hyper::header::HeaderName>().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let stream = match in_time("an upgrade", client_async(request, stream)).await {
            Ok((stream, _)) => stream,
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                return Err(response.status().as_u16());
            }
            Err(error) => panic!("{error}"),
        };
        let (out, mut incoming) = stream.split();
        let (sender, heard) = mpsc::channel(1_000);
        let pings = Arc::new(AtomicUsize::new(0));
        let counted = pings.clone();
        let reading = tokio::spawn(async move {
            while let Some(Ok(message)) = incoming.next().await {
                let heard = match message {
                    Message::Text(text) => Heard::Text(text.as_str().to_owned()),
                    Message::Close(close) => {
                        Heard::Closed(close.map_or(1005, |close| close.code.into()))
                    }
                    Message::Ping(_) => {
                        counted.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    other => panic!("{other:?}"),
                };
                if sender.send(heard).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            out: tokio::sync::Mutex::new(out),
            heard: tokio::sync::Mutex::new(heard),
            pings,
            reading,
        })
    }

    pub(crate) async fn send(&self, message: Message) {
        let sent = async { self.out.lock().await.send(message).await };
        in_time("a frame is sent", sent).await.unwrap();
    }

    pub(crate) async fn say(&self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// What comes next, pings left out. `None`: the connection ended without a close.
    pub(crate) async fn hear(&self) -> Option<Heard> {
        let hearing = async { self.heard.lock().await.recv().await };
        in_time("a frame", hearing).await
    }

    pub(crate) async fn frame(&self) -> String {
        match self.hear().await {
            Some(Heard::Text(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    /// The code that the server closes with, behind whatever comes before.
    pub(crate) async fn closed(&self) -> u16 {
        loop {
            match self.hear().await {
                Some(Heard::Closed(code)) => return code,
                Some(Heard::Text(_)) => {}
                None => panic!("the connection ended without a close"),
            }
        }
    }

    /// Closes in order.
    pub(crate) async fn close(&self) {
        let closing = async { self.out.lock().await.close().await };
        let _ = in_time("a close", closing).await;
    }

    /// That nothing came before a package that is sent now.
    pub(crate) async fn has_heard_nothing(&self, house: &House, address: &str) {
        let mark = format!("mark-{}", rand::random::<u32>());
        let job = house.trigger(address, &mark, "31-12", "9:00").await;
        let (status, _) = house.ask("GET", &format!("/jobs/force/{job}")).await;
        assert_eq!(status, 200);
        assert_eq!(self.frame().await, notification(&mark));
        house.arrives(job).await;
    }
}

//! A gateway beside those that the server has: `echo-server`, with HTTP, a WebSocket of text and a watch.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]
#![expect(
    clippy::disallowed_methods,
    reason = "one waits for the end of a process, beside clients that go on"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use storage_protocol::native::{ClientMessage, ServerMessage};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Storage, StorageExt, WatchEvent, WatchOptions,
};
use storage_testkit::harness::{Certificates, Launch, ServerProcess, connect};
use storage_testkit::raw::{
    Raw, Received, http, in_time, metric, metric_reaches, tcp, tls, until_closed, upgrade_request,
};
use storage_testkit::served::ADMIN;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

const MIB: usize = 1 << 20;

type Body = BoxBody<Bytes, std::io::Error>;

struct House {
    server: ServerProcess,
    certificates: Certificates,
    folder: TempDir,
}

impl House {
    /// A server whose listener serves both, configured by this text.
    fn new(config: &str) -> Self {
        let certificates = Certificates::issue(&["ann", "bob"]);
        let folder = tempfile::tempdir().unwrap();
        let launch = Self::launch(folder.path(), &certificates.dir(), config);
        let server = ServerProcess::launch(launch);
        let server = server.unwrap_or_else(|status| panic!("it does not listen: {status:?}"));
        Self {
            server,
            certificates,
            folder,
        }
    }

    fn launch(folder: &Path, certificates: &Path, config: &str) -> Launch {
        let listener =
            "[[listener]]\naddress = \"127.0.0.1:0\"\ngateways = [\"storage\", \"echo\"]\n";
        let (data, certs) = (folder.join("data"), certificates.display());
        let file = folder.join("server.toml");
        let text = format!(
            "data = \"{}\"\ncerts = \"{certs}\"\ndurability = \"os\"\n{config}\n{listener}{ADMIN}",
            data.display()
        );
        std::fs::write(&file, text).unwrap();
        Launch {
            program: Some("echo-server"),
            arguments: vec!["--config".to_owned(), file.display().to_string()],
            log: Some(folder.join("log")),
            ..Launch::default()
        }
    }

    async fn http(&self, client: &str) -> SendRequest<Body> {
        let stream = tls(&self.server, &self.certificates, client).await;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn web_socket(&self, client: &str) -> Raw {
        let request = upgrade_request("/echo", "");
        let opened = Raw::open(&self.server, &self.certificates, client, &request).await;
        opened.unwrap_or_else(|answer| panic!("{answer:?}"))
    }

    /// One that has logged in.
    async fn logged_in(&self, client: &str, name: &str) -> Raw {
        let mut socket = self.web_socket(client).await;
        say(&mut socket, &format!("login {name}")).await;
        assert_eq!(hear(&mut socket).await, format!("user:{name}"));
        socket
    }
}

fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path);
    builder.header("Host", "127.0.0.1").body(body).unwrap()
}

async fn ask(sender: &mut SendRequest<Body>, request: Request<Body>) -> Response<Incoming> {
    in_time("a request is taken", sender.ready()).await.unwrap();
    let answer = sender.send_request(request);
    in_time("an answer", answer).await.unwrap()
}

async fn text(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = in_time("a body", response.into_body().collect()).await;
    let bytes = body.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn say(socket: &mut Raw, text: &str) {
    socket.send_message(Message::text(text)).await;
}

async fn hear(socket: &mut Raw) -> String {
    loop {
        match socket.receive().await {
            Received::Text(text) => return text,
            Received::Ping | Received::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Bytes of a note, such that none of its MiB is like another.
fn note(mib: usize) -> impl Iterator<Item = Bytes> {
    (0..mib).map(|n| Bytes::from(vec![u8::try_from(n % 251).unwrap(); MIB]))
}

fn streamed(mib: usize) -> Body {
    let frames = note(mib).map(|bytes| Ok(Frame::data(bytes)));
    BodyExt::boxed(StreamBody::new(stream::iter(frames)))
}

/// Reads a note, of which so many bytes were read, to its end; whether it is all of it.
async fn is_note(mut body: Incoming, mut read: usize, mib: usize) -> bool {
    while let Some(frame) = in_time("more of a note", body.frame()).await {
        let Ok(Ok(data)) = frame.map(Frame::into_data) else {
            return false;
        };
        let mut at = data.iter().zip(read..);
        if at.any(|(byte, at)| usize::from(*byte) != at / MIB % 251) {
            return false;
        }
        read += data.len();
    }
    read == mib * MIB
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notes_go_both_ways_whole_and_are_told_to_who_has_logged_in() {
    let house = House::new("");
    let native = connect(&house.server, &house.certificates, "bob", "echo")
        .await
        .unwrap();
    let mut watch = native
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    let mut socket = house.logged_in("ann", "anna").await;
    let mut http = house.http("ann").await;
    let kept = ask(&mut http, request(Method::POST, "/echo/long", streamed(5))).await;
    assert_eq!(text(kept).await, (200, "kept\n".to_owned()));
    assert_eq!(hear(&mut socket).await, "kept long");
    // The same connection is asked again.
    let answer = ask(&mut http, request(Method::GET, "/echo/long", nothing())).await;
    assert!(is_note(answer.into_body(), 0, 5).await);
    let kept = ask(&mut http, request(Method::POST, "/echo/b", whole("x"))).await;
    assert_eq!(text(kept).await.0, 200);
    assert_eq!(hear(&mut socket).await, "kept b");
    say(&mut socket, "a message").await;
    assert_eq!(hear(&mut socket).await, "a message");
    assert_eq!(metric(&house.server, "echo_messages_total").await, 3.0);
    assert_eq!(
        metric(&house.server, "storage_sessions{gateway=\"echo\"}").await,
        1.0
    );
    // By whom it was, as its certificate says.
    let event = in_time("an event", watch.next()).await.unwrap().unwrap();
    let WatchEvent::Commit(commit) = event else {
        panic!("{event:?}");
    };
    assert_eq!(&*commit.principal, "cert:ann");

    // A page of another site can send a request that changes something, and is refused by its origin.
    for (origin, status) in [("https://evil.example", 403), ("https://127.0.0.1", 200)] {
        let mut foreign = request(Method::POST, "/echo/foreign", whole("x"));
        foreign
            .headers_mut()
            .insert("origin", origin.parse().unwrap());
        let answer = ask(&mut http, foreign).await;
        assert_eq!(text(answer).await.0, status, "{origin}");
    }

    for (method, path, status, said) in [
        (Method::GET, "/echo/none", 404, "no note \"none\"\n"),
        (Method::GET, "/elsewhere", 404, "there is nothing here\n"),
        (Method::GET, "/metrics", 404, "there is nothing here\n"),
        (Method::GET, "/echo", 426, "this is a WebSocket endpoint\n"),
        (Method::DELETE, "/echo/b", 405, ""),
    ] {
        let answer = ask(&mut http, request(method, path, nothing())).await;
        assert_eq!(text(answer).await, (status, said.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn who_does_not_log_in_is_let_in_to_nothing() {
    let house = House::new("[timeouts]\nhandshake = \"500ms\"\n");
    let mut silent = house.web_socket("ann").await;
    let (code, reason) = silent.closed().await;
    assert_eq!((code, reason.as_str()), (1008, "no login in time"));
    for (first, reason) in [
        (Message::text("hello"), "the user's name is empty"),
        (Message::text("login a\u{202e}b"), "do not show"),
        (Message::binary(vec![1]), "the first message is: login NAME"),
    ] {
        let mut socket = house.web_socket("ann").await;
        socket.send_message(first).await;
        let (code, said) = socket.closed().await;
        assert!(code == 1008 && said.contains(reason), "{code} {said}");
    }
}

/// What each of them does when the server is asked to end: all that could finish did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_shutdown_each_protocol_ends_as_it_says_and_nothing_is_cut() {
    const EACH: usize = 10;
    const NOTE_MIB: usize = 50;
    let mut house = House::new("[timeouts]\ndrain = \"60s\"\n");
    let mut http = house.http("ann").await;
    let kept = request(Method::POST, "/echo/long", streamed(NOTE_MIB));
    let kept = ask(&mut http, kept).await;
    assert_eq!(text(kept).await.0, 200);
    let (mut natives, mut sockets, mut downloads) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..EACH {
        let session = Raw::native(&house.server, &house.certificates, "ann", "model").await;
        natives.push(session.0);
        sockets.push(house.logged_in("bob", &format!("bob{n}")).await);
        let mut http = house.http("ann").await;
        let mut answer = ask(&mut http, request(Method::GET, "/echo/long", nothing())).await;
        // It has begun, and the rest is more than all buffers on the way hold.
        let first = in_time("the first of it", answer.body_mut().frame()).await;
        let first = first.unwrap().unwrap().into_data().unwrap().len();
        assert!(first < NOTE_MIB * MIB / 2);
        downloads.push((http, answer.into_body(), first));
    }
    let idle = house.http("bob").await;
    for (n, native) in natives.iter_mut().enumerate() {
        let batch = Batch::new().put(format!("k{n}"), "v");
        let options = CommitOptions::default();
        let number = 1;
        let commit = ClientMessage::Commit {
            number,
            batch,
            options,
        };
        native.say(Some(7), &commit).await;
    }
    for socket in &mut sockets {
        say(socket, "the last").await;
    }
    // All of it was taken, and no answer of it was: what is on its way is sent before the end.
    let committed = "storage_requests_total{kind=\"commit\",outcome=\"ok\"}";
    metric_reaches(&house.server, committed, EACH as f64).await;
    metric_reaches(&house.server, "echo_messages_total", EACH as f64).await;
    house.server.signal(Signal::TERM);
    for mut native in natives {
        let mut heard = Vec::new();
        loop {
            match native.receive().await {
                Received::Binary(frame) => heard.extend(native.read(frame)),
                Received::Close(1001, _) => break,
                Received::Ping | Received::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
        let is_answer = |(id, message): &(Option<u32>, ServerMessage)| {
            *id == Some(7) && matches!(message, ServerMessage::Committed { .. })
        };
        let told =
            |(_, message): &(_, ServerMessage)| matches!(message, ServerMessage::GoAway { .. });
        assert!(
            heard.iter().any(is_answer) && heard.iter().any(told),
            "{heard:?}"
        );
    }
    for mut socket in sockets {
        assert_eq!(hear(&mut socket).await, "the last");
        assert_eq!(socket.closed().await.0, 1001);
    }
    in_time("the idle one is closed", async {
        while !idle.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // While they go on, nobody new is let in.
    let refused =
        tokio::net::TcpStream::connect(house.server.url("storage").split_once("://").unwrap().1);
    refused.await.unwrap_err();
    let reading = downloads.into_iter().map(|(http, body, first)| {
        tokio::spawn(async move {
            let whole = is_note(body, first, NOTE_MIB).await;
            drop(http);
            whole
        })
    });
    for whole in reading.collect::<Vec<_>>() {
        assert!(whole.await.unwrap());
    }
    // (A second signal would cut it.)
    let ended = tokio::task::block_in_place(|| house.server.wait(Duration::from_secs(30)));
    assert!(ended, "it ends by itself");
    let log = std::fs::read_to_string(house.folder.path().join("log")).unwrap();
    assert!(
        log.contains("stopped") && log.contains("connections cut: 0"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_http_are_bounded_apart_from_sessions_and_handshakes() {
    let limits = "[limits]\nhttp_connections_max = 4\nhandshakes_max = 2\n";
    let house = House::new(&format!("{limits}[timeouts]\nhttp_idle = \"1500ms\"\n"));
    let began = Instant::now();
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut http = house.http("ann").await;
        let answer = ask(&mut http, request(Method::GET, "/echo/none", nothing())).await;
        assert_eq!(text(answer).await.0, 404);
        open.push(http);
    }
    // No one has more than half, and is told so.
    let mut third = house.http("ann").await;
    let answer = ask(&mut third, request(Method::GET, "/echo/none", nothing())).await;
    let (status, said) = text(answer).await;
    assert_eq!(status, 503);
    assert!(
        said.contains("http_connections_max is reached (2)"),
        "{said}"
    );
    // Others have theirs, and sessions are another matter; more come than places to shake hands in.
    let mut other = house.http("bob").await;
    let answer = ask(&mut other, request(Method::GET, "/echo/none", nothing())).await;
    assert_eq!(text(answer).await.0, 404);
    for _ in 0..5 {
        let native = connect(&house.server, &house.certificates, "ann", "model")
            .await
            .unwrap();
        native.put("k".into(), "v".into()).await.unwrap();
    }
    // Who asks for nothing more makes room.
    in_time("idle ones are closed", async {
        while !open.iter().all(SendRequest::is_closed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(began.elapsed() >= Duration::from_millis(1500));
    let mut http = house.http("ann").await;
    let answer = ask(&mut http, request(Method::GET, "/echo/none", nothing())).await;
    assert_eq!(text(answer).await.0, 404);
}

#[tokio::test]
async fn an_upload_that_stands_still_ends_and_one_that_is_slow_does_not() {
    let house = House::new("[timeouts]\npartial_message = \"600ms\"\n");
    let mut stalled = tls(&house.server, &house.certificates, "ann").await;
    let head = "POST /echo/stalled HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nsome";
    stalled.write_all(head.as_bytes()).await.unwrap();
    let mut slow = tls(&house.server, &house.certificates, "ann").await;
    let head = "POST /echo/slow HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 6\r\n\r\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        slow.write_all(b"x").await.unwrap();
        slow.flush().await.unwrap();
    }
    let (_, said) = until_closed(&mut slow).await;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.starts_with("HTTP/1.1 200") && said.ends_with("kept\n"),
        "{said}"
    );
    let (_, said) = until_closed(&mut stalled).await;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.starts_with("HTTP/1.1 400") && said.contains("broken off"),
        "{said}"
    );
    let mut http = house.http("ann").await;
    let answer = ask(&mut http, request(Method::GET, "/echo/stalled", nothing())).await;
    assert_eq!(text(answer).await.0, 404);
}

/// As clients do that write a request before they read anything: a reset would end them before they have read why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_in_the_middle_of_an_upload_reads_why() {
    const BODY: usize = 32 * MIB;
    let house = House::new("");
    let mut stream = tls(&house.server, &house.certificates, "ann").await;
    let head = format!(
        "POST /echo/x HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example\r\nContent-Length: {BODY}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..BODY / (64 << 10) {
        stream.write_all(&[b'x'; 64 << 10]).await.unwrap();
    }
    let (_, said) = until_closed(&mut stream).await;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.starts_with("HTTP/1.1 403"), "{said:?}");
}

#[tokio::test]
async fn who_asked_for_a_route_before_has_its_time_for_a_session_all_the_same() {
    let house = House::new("[timeouts]\nhandshake = \"400ms\"\n");
    let mut stream = tls(&house.server, &house.certificates, "ann").await;
    let get = "GET /echo/none HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    assert_eq!(http(&mut stream, get).await.status, 404);
    tokio::time::sleep(Duration::from_millis(600)).await;
    let protocol = "Sec-WebSocket-Protocol: storage-sync.v1\r\n";
    let answer = http(&mut stream, &upgrade_request("/storage/model", protocol)).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    // Hello is waited for from here on, and not for longer.
    let (took, _) = until_closed(&mut stream).await;
    assert!(took >= Duration::from_millis(300), "{took:?}");
}

#[tokio::test]
async fn a_listener_serves_what_it_names_and_names_only_what_there_is() {
    let certificates = Certificates::issue(&["ann"]);
    let folder = tempfile::tempdir().unwrap();
    // The binary that has no such gateway.
    let mut launch = House::launch(folder.path(), &certificates.dir(), "");
    launch.program = None;
    let status = ServerProcess::launch(launch.clone()).unwrap_err().unwrap();
    assert_eq!(status.code(), Some(2));
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    let said = "listener[0].gateways = \"echo\": allowed are \"storage\", \"events\", \"workspace\", \"admin\", \"robots\", \"repository\"";
    assert!(log.contains(said), "{log}");
    // And one that has it, where it is not named.
    let config = std::fs::read_to_string(folder.path().join("server.toml")).unwrap();
    let config = config.replace(", \"echo\"", "");
    std::fs::write(folder.path().join("server.toml"), config).unwrap();
    launch.program = Some("echo-server");
    let server = ServerProcess::launch(launch).unwrap();
    let request = upgrade_request("/echo", "");
    let refused = Raw::open(&server, &certificates, "ann", &request)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (404, "there is nothing here\n")
    );
    drop(tcp(&server).await);
}

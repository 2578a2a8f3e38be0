//! The gateway `workspace`: from a post to its frame, with 500 members in the room.

use std::time::{Duration, Instant};

use storage_testkit::harness::{Certificates, Launch, ServerProcess};
use storage_testkit::raw::{Raw, Received, http, tls_without_certificate, upgrade_request};
use tokio::sync::mpsc;

const MEMBERS: usize = 500;
const POSTS: usize = 300;
/// Between two posts, so that each is measured alone.
const PAUSE: Duration = Duration::from_millis(20);
const ROOM: &str = r#"{"Type":"GLOBAL","RoomTypeObject":"bench"}"#;

pub(crate) async fn workspace() {
    println!("# workspace: from a post to its frame, {MEMBERS} members of the room, TLS");
    for durability in ["sync", "os"] {
        measure(durability).await;
    }
}

async fn measure(durability: &str) {
    let certificates = Certificates::issue(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    let text = format!(
        "data = \"{}\"\ncerts = \"{}\"\ndurability = \"{durability}\"\n[limits]\nsessions_per_principal_max = 4000\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"server\"\ngateways = [\"storage\", \"workspace\"]\n",
        folder.path().join("data").display(),
        certificates.dir().display()
    );
    std::fs::write(&file, text).unwrap();
    let arguments = ["--demo", "--config", &file.display().to_string()];
    let server = ServerProcess::launch(Launch {
        arguments: arguments.iter().map(ToString::to_string).collect(),
        ..Launch::default()
    });
    let server = server.unwrap_or_else(|status| panic!("{status:?}"));
    let mut stream = tls_without_certificate(&server, &certificates).await;
    let request = "POST /workspace/demo-token?user=ana HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n";
    let token = http(&mut stream, request).await.text();

    // When a message came, by its member.
    let (arrived, mut arrivals) = mpsc::channel(MEMBERS);
    let mut room = String::new();
    for _ in 0..MEMBERS {
        let mut socket = member(&server, &certificates, &token).await;
        room = joined(&mut socket).await;
        let arrived = arrived.clone();
        tokio::spawn(async move {
            loop {
                match socket.receive().await {
                    Received::Text(text) if !text.contains("@type") => {
                        arrived.send(Instant::now()).await.unwrap();
                    }
                    Received::Ended | Received::Close(..) => return,
                    _ => {}
                }
            }
        });
    }
    let mut poster = member(&server, &certificates, &token).await;
    joined(&mut poster).await;
    let (mut each, mut last) = (Vec::new(), Vec::new());
    for n in 0..POSTS {
        let post = format!(
            r#"{{"@type":"POST","Message":{{"RoomUuid":"{room}","Message":"message {n}"}}}}"#
        );
        let posted = Instant::now();
        poster.say_text(&post).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..MEMBERS {
            let arrived = arrivals.recv().await.unwrap();
            let took = arrived.saturating_duration_since(posted);
            slowest = slowest.max(took);
            each.push(took);
        }
        last.push(slowest);
        // Its own.
        while !matches!(poster.receive().await, Received::Text(text) if !text.contains("@type")) {}
        tokio::time::sleep(PAUSE).await;
    }
    each.sort();
    last.sort();
    let at = |all: &[Duration], percent: usize| all[(all.len() - 1) * percent / 100];
    println!(
        "durability {durability:>4}: each member p50 {:?}  p99 {:?}; the last of them p50 {:?}  p99 {:?}",
        at(&each, 50),
        at(&each, 99),
        at(&last, 50),
        at(&last, 99)
    );
}

async fn member(server: &ServerProcess, certificates: &Certificates, token: &str) -> Raw {
    let stream = tls_without_certificate(server, certificates).await;
    let mut socket = Raw::open_on(stream, &upgrade_request("/chat", ""))
        .await
        .unwrap();
    let subscribe = format!(r#"{{"@type":"subscribe","jwt":"{token}"}}"#);
    socket.say_text(&subscribe).await;
    socket
}

/// The id of the room, once the socket is in it.
async fn joined(socket: &mut Raw) -> String {
    socket
        .say_text(&format!(r#"{{"@type":"JOIN","Room":{ROOM}}}"#))
        .await;
    loop {
        let Received::Text(text) = socket.receive().await else {
            continue;
        };
        if let Some((_, rest)) = text.split_once("\"Uuid\":\"") {
            return rest.split('"').next().unwrap_or_default().to_owned();
        }
    }
}

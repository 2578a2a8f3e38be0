//! The gateway `events`: how long after the answer to a write its event is with each of a thousand listeners.

use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_testkit::harness::{Certificates, Launch, ServerProcess};
use storage_testkit::raw::{Raw, Received, http, tls_without_certificate, upgrade_request};
use tokio::sync::mpsc;

const LISTENERS: usize = 1_000;
const WRITES: usize = 300;
/// Between two writes, so that each is measured alone.
const PAUSE: Duration = Duration::from_millis(20);
const LOGIN: &str = "?token=rocketskates:r0cketsk8ts";

pub(crate) async fn events() {
    println!(
        "# events: from the answer to a write to its frame, {LISTENERS} listeners of the key, TLS, durability os"
    );
    let certificates = Certificates::issue(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    let text = format!(
        "data = \"{}\"\ncerts = \"{}\"\ndurability = \"os\"\n[limits]\nsessions_per_principal_max = 4000\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"server\"\ngateways = [\"storage\", \"events\"]\n",
        folder.path().join("data").display(),
        certificates.dir().display()
    );
    std::fs::write(&file, text).unwrap();
    let arguments = ["--demo", "--config", &file.display().to_string()];
    let server = ServerProcess::launch(Launch {
        arguments: arguments.iter().map(ToString::to_string).collect(),
        ..Launch::default()
    });
    let server = Arc::new(server.unwrap_or_else(|status| panic!("{status:?}")));
    let certificates = Arc::new(certificates);

    let (arrived, mut arrivals) = mpsc::channel(LISTENERS);
    for _ in 0..LISTENERS {
        let stream = tls_without_certificate(&server, &certificates).await;
        let request = upgrade_request(&format!("/api/v3/ws{LOGIN}"), "");
        let mut socket = Raw::open_on(stream, &request).await.unwrap();
        socket.say_text("register profiles.*.global").await;
        let arrived = arrived.clone();
        tokio::spawn(async move {
            loop {
                match socket.receive().await {
                    Received::Text(_) => arrived.send(Instant::now()).await.unwrap(),
                    Received::Ended | Received::Close(..) => return,
                    _ => {}
                }
            }
        });
        // Its ack.
        arrivals.recv().await.unwrap();
    }
    let mut stream = tls_without_certificate(&server, &certificates).await;
    let (mut each, mut last) = (Vec::new(), Vec::new());
    for n in 0..WRITES {
        let body = n.to_string();
        let request = format!(
            "POST /api/v3/profiles/global/params/n{LOGIN} HTTP/1.1\r\nHost: 127.0.0.1\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = http(&mut stream, &request).await;
        let answered = Instant::now();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut slowest = Duration::ZERO;
        for _ in 0..LISTENERS {
            let arrival = arrivals.recv().await.unwrap();
            let took = arrival.saturating_duration_since(answered);
            slowest = slowest.max(took);
            each.push(took);
        }
        last.push(slowest);
        tokio::time::sleep(PAUSE).await;
    }
    for (name, mut took) in [("each", each), ("the last of a write", last)] {
        took.sort();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!(
            "{name:<20} p50 {:>9.1?}   p99 {:>9.1?}   max {:>9.1?}",
            at(50),
            at(99),
            at(100)
        );
    }
}

//! The gateway `robots`: how late a thousand jobs come that are due in the same second, and what a hundred thousand cost that
//! are not due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::UnixMillis;
use storage_protocol::deliveries::{Deliveries, NewJob, Recipient};
use storage_testkit::harness::{Certificates, Launch, ServerProcess};
use storage_testkit::raw::{Raw, Received, tls_without_certificate, upgrade_request};
use tokio::sync::mpsc;

const ROBOTS: usize = 1_000;
const WAITING: usize = 100_000;
/// How long the server is looked at while nothing is due.
const IDLE: Duration = Duration::from_secs(10);

const CONFIG: &str = "[limits]\nsessions_per_principal_max = 4000\n\
    [[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"server\"\nauth = [\"certificate\", \"anonymous\"]\n\
    gateways = [\"storage\", \"robots\"]\n";

pub(crate) async fn robots() {
    println!("# robots: jobs that are due in the same second, TLS, durability os");
    let certificates = Certificates::issue(&["boss"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    let text = format!(
        "data = \"{}\"\ncerts = \"{}\"\ndurability = \"os\"\n{CONFIG}",
        folder.path().join("data").display(),
        certificates.dir().display()
    );
    std::fs::write(&file, text).unwrap();
    let server = ServerProcess::launch(Launch {
        arguments: vec!["--config".to_owned(), file.display().to_string()],
        ..Launch::default()
    });
    let server = server.unwrap_or_else(|status| panic!("{status:?}"));
    let url = format!("{}/storage/robots", server.url("storage"));
    let options = ConnectOptions::new(url).credentials_dir(certificates.dir().join("boss"));
    let storage = RemoteStorage::connect(options).await.unwrap();
    let deliveries = Deliveries::new(Arc::new(storage));

    let (arrived, mut arrivals) = mpsc::channel(ROBOTS);
    for n in 0..ROBOTS {
        let stream = tls_without_certificate(&server, &certificates).await;
        let request = upgrade_request("/api/robots/connect", "");
        let mut socket = Raw::open_on(stream, &request).await.unwrap();
        let metadata = format!(
            r#"{{"event":"client robot metaData","value":{{"robotName":"R{n}","robotAddress":"A{n}"}}}}"#
        );
        socket.say_text(&metadata).await;
        let arrived = arrived.clone();
        tokio::spawn(async move {
            loop {
                match socket.receive().await {
                    Received::Text(_) => arrived.send(UnixMillis::now()).await.unwrap(),
                    Received::Ended | Received::Close(..) => return,
                    _ => {}
                }
            }
        });
    }
    // The next whole second that leaves time to schedule.
    let due = UnixMillis((UnixMillis::now().0 / 1_000 + 6) * 1_000);
    schedule(&deliveries, ROBOTS, due, |n| format!("A{n}")).await;
    let mut late = Vec::new();
    for _ in 0..ROBOTS {
        let arrival = arrivals.recv().await.unwrap();
        assert!(arrival >= due, "none comes too soon");
        late.push(arrival.0 - due.0);
    }
    late.sort_unstable();
    let at = |percent: usize| late[(late.len() - 1) * percent / 100];
    println!(
        "{ROBOTS} robots, a job each   late p50 {} ms   p99 {} ms   max {} ms",
        at(50),
        at(99),
        at(100)
    );

    let before = server.resident_bytes();
    let far = UnixMillis::now().after(Duration::from_secs(30 * 24 * 3600));
    let began = Instant::now();
    schedule(&deliveries, WAITING, far, |n| format!("B{}", n % 5_000)).await;
    println!(
        "{WAITING} jobs scheduled for next month in {:.1?}",
        began.elapsed()
    );
    // What was written settles first.
    tokio::time::sleep(IDLE).await;
    let cpu = server.cpu_time();
    tokio::time::sleep(IDLE).await;
    println!(
        "{WAITING} jobs that wait, {ROBOTS} robots connected: {:?} of CPU in {IDLE:?}, {} MiB more memory",
        server.cpu_time() - cpu,
        server.resident_bytes().saturating_sub(before) >> 20
    );
}

async fn schedule(
    deliveries: &Deliveries,
    count: usize,
    due: UnixMillis,
    recipient: impl Fn(usize) -> String + Send + Sync,
) {
    let numbers: Vec<_> = (0..count).collect();
    for chunk in numbers.chunks(256) {
        let scheduling = chunk.iter().map(async |n| {
            let to = Recipient::new(&recipient(*n)).unwrap();
            let payload = r#"{"package_name":"p","path":"store/p.std"}"#;
            deliveries
                .schedule(&NewJob::new(to, due, payload))
                .await
                .unwrap();
        });
        join_all(scheduling).await;
    }
}

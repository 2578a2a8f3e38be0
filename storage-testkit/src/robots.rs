//! Robots and their jobs under fire: the server is killed and started again, and the network cuts, delays and swallows, while
//! jobs are triggered, forced and cancelled. At the end each job must have come to one end, and have been where it belongs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::UnixMillis;
use storage_protocol::deliveries::{
    Deliveries, JobFilter, JobId, NewJob, Policy, Recipient, StateKind, Stored,
};
use storage_schedule::Zone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::fault_proxy::{FaultPlan, FaultProxy};
use crate::harness::{Certificates, Launch, ServerProcess};

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Fire {
    /// What happens when.
    pub seed: u64,
    /// Robots.
    pub robots: usize,
    /// Jobs for them.
    pub jobs: usize,
    /// For so long there are faults, and jobs are triggered.
    pub length: Duration,
    /// So many times the server is killed.
    pub kills: u32,
}

/// What became of the jobs.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Jobs of each kind.
    pub of: BTreeMap<&'static str, usize>,
    /// Packages that robots were sent, repeats included.
    pub received: usize,
    /// Triggers whose answer was lost.
    pub unanswered: usize,
    /// What must not be, a sentence each.
    pub violations: Vec<String>,
}

const CONFIG: &str = r#"
[robots]
time_zone = "UTC"
window = "120s"
confirm = "2s"
resend = "50ms"
resends_max = 50
ping = "500ms"
silence = "1500ms"

[limits]
sessions_per_principal_max = 20000
handshakes_max = 20000

[[listener]]
address = "127.0.0.1:0"
gateways = ["storage"]

[[listener]]
address = "127.0.0.1:0"
tls = "off"
auth = ["anonymous"]
gateways = ["robots"]
"#;

/// How long an answer is waited for, and how long everything may take to come to its end.
const ANSWER: Duration = Duration::from_secs(5);
const END: Duration = Duration::from_secs(180);
/// As in [`CONFIG`] and in the jobs of native clients: what is not known to have arrived for so long is sent again.
const CONFIRM: Duration = Duration::from_secs(2);

/// What was seen, by all.
#[derive(Debug, Default)]
struct Ledger {
    received: Mutex<Vec<Received>>,
    /// Connections of robots, by the order of their beginning: so often each has declined something.
    declines: Mutex<Vec<usize>>,
    /// Jobs whose triggers were answered, and their packages.
    triggered: Mutex<BTreeMap<JobId, String>>,
    cancelled: Mutex<BTreeSet<JobId>>,
    unanswered: Mutex<usize>,
}

/// A notification.
#[derive(Clone, Debug)]
struct Received {
    robot: usize,
    package: String,
    connection: usize,
    at: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn address_of(server: &ServerProcess) -> SocketAddr {
    let url = server.url("robots");
    let address = url.split_once("://").expect("a URL").1;
    address.parse().expect("an address")
}

fn robot(n: usize) -> String {
    format!("ROBOT:{n:05}")
}

/// Which robot a package is for.
fn owner(package: &str) -> Option<usize> {
    package.split('-').nth(1)?.parse().ok()
}

/// Runs it.
///
/// # Panics
/// If the server does not start, or the jobs do not come to an end.
pub async fn under_fire(fire: Fire) -> Outcome {
    let certificates = Certificates::issue(&["boss"]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("server.toml");
    let text = format!(
        "data = \"{}\"\ncerts = \"{}\"\ndurability = \"os\"\n{CONFIG}",
        folder.path().join("data").display(),
        certificates.dir().display()
    );
    std::fs::write(&file, text).expect("a file");
    let launched = ServerProcess::launch(Launch {
        arguments: vec!["--config".to_owned(), file.display().to_string()],
        ..Launch::default()
    });
    let mut server = launched.unwrap_or_else(|status| panic!("it does not listen: {status:?}"));
    let proxy = FaultProxy::start(address_of(&server), fire.seed).await;
    let proxy = Arc::new(proxy.expect("a proxy"));
    let (place, direct) = watch::channel(address_of(&server));
    let ledger = Arc::new(Ledger::default());

    let mut robots = JoinSet::new();
    for n in 0..fire.robots {
        let (ledger, at) = (ledger.clone(), proxy.address());
        robots.spawn(async move { live(n, fire.seed, at, &ledger).await });
    }
    until_connected(&server, &certificates, fire.robots).await;
    let plan = FaultPlan::from_seed(fire.seed, fire.length, Duration::from_millis(400));
    let faults = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.run(&plan).await }
    });
    let triggering = tokio::spawn(trigger_all(fire, direct.clone(), ledger.clone()));
    let native = schedule_all(fire, &server, &certificates, &ledger);
    native.await;
    for _ in 0..fire.kills {
        sleep(fire.length / (fire.kills + 1)).await;
        server = restarted(server).await;
        proxy.set_upstream(address_of(&server));
        let _ = place.send(address_of(&server));
    }
    triggering.await.expect("triggers do not panic");
    faults.await.expect("faults do not panic");
    proxy.heal();
    let jobs = until_ended(&server, &certificates, fire.seed).await;
    robots.abort_all();
    judge(&ledger, &jobs)
}

async fn restarted(mut server: ServerProcess) -> ServerProcess {
    let restarting = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    restarting.await.expect("it starts again")
}

async fn deliveries(server: &ServerProcess, certificates: &Certificates) -> Deliveries {
    let url = format!("{}/storage/robots", server.url("storage"));
    let options = ConnectOptions::new(url).credentials_dir(certificates.dir().join("boss"));
    let storage = RemoteStorage::connect(options).await;
    Deliveries::new(Arc::new(storage.expect("a session")))
}

/// A robot: it connects again and again, and takes what it is sent; now and then it declines, or its process dies.
async fn live(n: usize, seed: u64, at: SocketAddr, ledger: &Ledger) {
    let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(n as u64));
    let value = json!({ "robotName": format!("R{n}"), "robotAddress": robot(n), "userID": n });
    let metadata = json!({ "event": "client robot metaData", "value": value }).to_string();
    loop {
        let connecting = async {
            let stream = TcpStream::connect(at).await.ok()?;
            let (mut socket, _) = client_async(format!("ws://{at}/"), stream).await.ok()?;
            socket.send(Message::text(metadata.as_str())).await.ok()?;
            Some(socket)
        };
        let Ok(Some(mut socket)) = timeout(ANSWER, connecting).await else {
            sleep(Duration::from_millis(random.random_range(20..200))).await;
            continue;
        };
        let connection = {
            let mut declines = lock(&ledger.declines);
            declines.push(0);
            declines.len() - 1
        };
        // A robot notices by the pings that it does not get.
        while let Ok(Some(Ok(message))) = timeout(Duration::from_secs(2), socket.next()).await {
            let Message::Text(text) = message else {
                continue;
            };
            let frame: Value = serde_json::from_str(&text).unwrap_or_default();
            let Some(package) = frame["value"]["package_name"].as_str() else {
                continue;
            };
            lock(&ledger.received).push(Received {
                robot: n,
                package: package.to_owned(),
                connection,
                at: Instant::now(),
            });
            match random.random_range(0..20) {
                // Gone, before it could answer a ping.
                0 => break,
                1 | 2 => {
                    if let Some(declines) = lock(&ledger.declines).get_mut(connection) {
                        *declines += 1;
                    }
                    let value = if random.random_bool(0.5) { package } else { "" };
                    let decline = json!({ "event": "decline pkg reception", "value": value });
                    if socket
                        .send(Message::text(decline.to_string()))
                        .await
                        .is_err()
                    {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
}

async fn until_connected(server: &ServerProcess, certificates: &Certificates, robots: usize) {
    let address = address_of(server);
    let began = Instant::now();
    loop {
        let answer = ask(address, "GET", "/api/robots/get/all/connected", "").await;
        let connected = answer.and_then(|(_, body)| {
            let value: Value = serde_json::from_str(&body).ok()?;
            Some(value["Robots"].as_array()?.len())
        });
        if connected == Some(robots) {
            return;
        }
        assert!(
            began.elapsed() < END,
            "{connected:?} of {robots} robots are connected; {certificates:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

/// Head and body of an answer; `None`: there is none.
async fn ask(at: SocketAddr, method: &str, path: &str, body: &str) -> Option<(String, String)> {
    let asking = async {
        let mut stream = TcpStream::connect(at).await.ok()?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let text = String::from_utf8(answer).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.to_ascii_lowercase(), body.to_owned()))
    };
    timeout(ANSWER, asking).await.ok().flatten()
}

/// Half of the jobs come over HTTP, over the length of the fire.
async fn trigger_all(fire: Fire, direct: watch::Receiver<SocketAddr>, ledger: Arc<Ledger>) {
    let mut random = StdRng::seed_from_u64(fire.seed);
    let count = fire.jobs / 2;
    let pause = fire.length / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    for n in 0..count {
        let of = random.random_range(0..fire.robots);
        let package = format!("http-{of}-{n}");
        let due = UnixMillis::now().after(Duration::from_millis(random.random_range(0..3_000)));
        let text = Zone::UTC.text(due);
        let (date, time) = text.split_once(' ').unwrap_or_default();
        let body = json!({
            "Package": { "package_name": package, "path": "store/x.std" },
            "Robot": { "robot_name": "R", "robot_address": robot(of) },
            "Schedule": { "date": date, "time": time },
        });
        let at = *direct.borrow();
        let answer = ask(at, "POST", "/pkg", &body.to_string()).await;
        let number = answer.as_ref().and_then(|(head, _)| {
            let line = head
                .lines()
                .find_map(|line| line.strip_prefix("x-job-id: "))?;
            line.trim().parse::<u64>().ok()
        });
        let Some(number) = number else {
            *lock(&ledger.unanswered) += 1;
            // A server that is starting.
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let id = JobId::new(&format!("{number:010}")).expect("an id");
        lock(&ledger.triggered).insert(id.clone(), package);
        match random.random_range(0..10) {
            0 => {
                let answer = ask(at, "POST", &format!("/jobs/cancel/{number}"), "").await;
                if answer.is_some_and(|(head, _)| head.starts_with("http/1.1 200")) {
                    lock(&ledger.cancelled).insert(id);
                }
            }
            1 => {
                ask(at, "POST", &format!("/jobs/force/{number}"), "").await;
            }
            _ => {}
        }
        sleep(pause / 2).await;
    }
}

/// The other half is scheduled by a native client, before the fire.
async fn schedule_all(
    fire: Fire,
    server: &ServerProcess,
    certificates: &Certificates,
    ledger: &Ledger,
) {
    let deliveries = deliveries(server, certificates).await;
    let mut random = StdRng::seed_from_u64(!fire.seed);
    let length = u64::try_from(fire.length.as_millis()).unwrap_or(u64::MAX);
    for n in fire.jobs / 2..fire.jobs {
        let of = random.random_range(0..fire.robots);
        let package = format!("native-{of}-{n}");
        let due = UnixMillis::now().after(Duration::from_millis(random.random_range(0..length)));
        let payload = json!({ "package_name": package, "path": "store/x.std" }).to_string();
        let new = NewJob {
            policy: Policy {
                attempts_max: 50,
                backoff: Duration::from_millis(50),
                ack: CONFIRM,
                ..Policy::default()
            },
            ..NewJob::new(Recipient::new(&robot(of)).expect("a name"), due, payload)
        };
        let (id, _) = deliveries.schedule(&new).await.expect("it is scheduled");
        lock(&ledger.triggered).insert(id, package);
    }
}

async fn until_ended(
    server: &ServerProcess,
    certificates: &Certificates,
    seed: u64,
) -> Vec<Stored> {
    let deliveries = deliveries(server, certificates).await;
    let began = Instant::now();
    loop {
        let counters = deliveries
            .count(&JobFilter::default())
            .await
            .expect("a count");
        let open = StateKind::ALL.into_iter().filter(|kind| kind.is_open());
        let open: u64 = open.map(|kind| counters.of(kind)).sum();
        if open == 0 {
            break;
        }
        assert!(
            began.elapsed() < END,
            "SEED={seed}: {open} jobs do not end: {counters:?}"
        );
        sleep(Duration::from_millis(100)).await;
    }
    let (mut jobs, mut after) = (Vec::new(), None);
    loop {
        let page = deliveries
            .list(&JobFilter::default(), after.as_ref(), 1_000)
            .await;
        let page = page.expect("a list");
        jobs.extend(page.jobs);
        after = page.next;
        if after.is_none() {
            return jobs;
        }
    }
}

/// What came again by one connection before the time for its confirmation was over: only a decline is a reason for that.
/// (By another connection it comes again if the one before has ended too soon.)
fn needless(received: &[Received], connection: usize) -> Vec<&str> {
    let mut last: BTreeMap<&str, Instant> = BTreeMap::new();
    let of_it = received.iter().filter(|one| one.connection == connection);
    let repeats = of_it.filter(|one| {
        let before = last.insert(&one.package, one.at);
        before.is_some_and(|before| one.at.duration_since(before) < CONFIRM / 2)
    });
    repeats.map(|one| one.package.as_str()).collect()
}

fn judge(ledger: &Ledger, jobs: &[Stored]) -> Outcome {
    let received = lock(&ledger.received).clone();
    let mut outcome = Outcome {
        received: received.len(),
        unanswered: *lock(&ledger.unanswered),
        ..Outcome::default()
    };
    let mut wrong = |text: String| outcome.violations.push(text);
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for Received { robot, package, .. } in &received {
        if owner(package) != Some(*robot) {
            wrong(format!("robot {robot} was sent {package}"));
        }
        *times.entry(package).or_default() += 1;
    }
    for (connection, declines) in lock(&ledger.declines).iter().enumerate() {
        let repeats = needless(&received, connection);
        if repeats.len() > *declines {
            wrong(format!(
                "a robot declined {declines} times, and was sent again by the same connection at once: {repeats:?}"
            ));
        }
    }
    let known: BTreeMap<&JobId, &Stored> = jobs.iter().map(|stored| (&stored.id, stored)).collect();
    for (id, package) in lock(&ledger.triggered).iter() {
        if !known.contains_key(id) {
            wrong(format!("job {id} ({package}) is lost"));
        }
    }
    let cancelled = lock(&ledger.cancelled);
    for stored in jobs {
        let (id, kind) = (&stored.id, stored.job.state.kind());
        *outcome.of.entry(kind.word()).or_default() += 1;
        let payload: Value = serde_json::from_slice(&stored.job.payload).unwrap_or_default();
        let own = payload["package_name"].as_str();
        let package = own.or_else(|| payload["Package"]["package_name"].as_str());
        let times = times.get(package.unwrap_or_default()).copied().unwrap_or(0);
        if kind == StateKind::Done && times == 0 {
            outcome.violations.push(format!(
                "job {id} ({package:?}) is done, and no robot was sent it"
            ));
        }
        if times > stored.job.attempts as usize {
            let attempts = stored.job.attempts;
            outcome.violations.push(format!(
                "job {id} ({package:?}) came {times} times in {attempts} attempts"
            ));
        }
        if cancelled.contains(id) != (kind == StateKind::Cancelled) && cancelled.contains(id) {
            outcome
                .violations
                .push(format!("job {id} was cancelled, and is {kind}"));
        }
    }
    outcome
}

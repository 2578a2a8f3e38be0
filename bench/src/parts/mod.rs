//! Parts: measurements of the server alone, each of which prints what it found: rates and latencies over mutual TLS, the
//! cost of the index by revision, memory per idle connection and of a server under full load, how small reads fare beside
//! big ones, what ten thousand watches cost, what a replica costs and gives, what access rules, the audit log, handshakes
//! and logins cost, how soon events are with a thousand listeners, what the gateway `repository` does, posts in a room of
//! 500 members, and how exact jobs of robots are. [`ALL`] names them.

#![expect(
    clippy::unwrap_used,
    reason = "a measurement that cannot be made ends here"
)]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod access;
mod events;
mod memory;
mod repository;
mod robots;
mod watches;
mod workspace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use storage_client::{ConnectOptions, RemoteStorage, Replica, ReplicaOptions};
use storage_protocol::{Batch, CommitOptions, Key, KeyRange, Keyspace, Storage, StorageExt};
use storage_server::engine::Engine;
use storage_server::engine::rocks::{Durability, EngineOptions, RocksEngine};
use storage_testkit::harness::{Certificates, ServerProcess, connect};

/// How long each cell is measured.
const CELL: Duration = Duration::from_secs(4);

/// Keys that rates spread over; in the cache.
const KEYS: u64 = 100_000;

/// The names of all parts, in the order in which they run.
pub(crate) const ALL: [&str; 12] = [
    "rates",
    "index",
    "idle",
    "memory",
    "fairness",
    "watches",
    "replica",
    "access",
    "events",
    "repository",
    "robots",
    "workspace",
];

/// Measures the parts with these names; all of them if there are none. `minutes`: of the mixed load of `memory`.
pub(crate) async fn run(parts: &[String], minutes: Option<u64>) {
    for part in ALL {
        if !parts.is_empty() && !parts.iter().any(|wanted| wanted == part) {
            continue;
        }
        match part {
            "rates" => rates().await,
            "index" => index().await,
            "idle" => idle().await,
            "memory" => memory::memory(minutes).await,
            "fairness" => {
                fairness().await;
                principals().await;
            }
            "watches" => watches::watches().await,
            "replica" => replica().await,
            "access" => access::access().await,
            "events" => events::events().await,
            "repository" => repository::repository().await,
            "robots" => robots::robots().await,
            "workspace" => workspace::workspace().await,
            _ => unreachable!("a part without a function"),
        }
    }
}

fn key(n: u64) -> Key {
    Key::from(format!(
        "bench/{:018}",
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS
    ))
}

fn value(bytes: usize) -> Bytes {
    // Random, so that compression does not help.
    (0..bytes)
        .map(|_| rand::random::<u8>())
        .collect::<Vec<u8>>()
        .into()
}

/// What a cell gave: requests a second, and latencies.
struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>9.0}/s   p50 {:>9.1?}   p99 {:>9.1?}",
            self.per_second, self.p50, self.p99
        )
    }
}

/// Keeps so many requests in flight on one storage for a cell's time.
async fn measure<S, F, R>(storage: &S, in_flight: u64, time: Duration, request: F) -> Figures
where
    S: Clone + Send + Sync + 'static,
    F: Fn(S, u64) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    let began = Instant::now();
    let loops = (0..in_flight).map(|lane| {
        let (storage, request) = (storage.clone(), request.clone());
        tokio::spawn(async move {
            let mut took = Vec::new();
            let mut n = lane;
            while began.elapsed() < time {
                let sent = Instant::now();
                request(storage.clone(), n).await;
                took.push(sent.elapsed());
                n += in_flight;
            }
            took
        })
    });
    let mut took: Vec<Duration> = join_all(loops)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .collect();
    let elapsed = began.elapsed();
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    Figures {
        per_second: took.len() as f64 / elapsed.as_secs_f64(),
        p50: at(50),
        p99: at(99),
    }
}

async fn rates() {
    println!(
        "# 1 KiB values over mutual TLS 1.3, one connection, server and client on this machine"
    );
    for durability in ["sync", "os"] {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::issue(&["bench"]);
        let data = folder.path().join("data");
        let server = ServerProcess::mutual(&certificates, &data, &["--durability", durability]);
        let storage = connect(&server, &certificates, "bench", "bench")
            .await
            .unwrap();
        for in_flight in [1, 64] {
            let bytes = value(1024);
            let put = move |storage: RemoteStorage, n| {
                let bytes = bytes.clone();
                async move {
                    storage.put(key(n), bytes).await.unwrap();
                }
            };
            let figures = measure(&storage, in_flight, CELL, put).await;
            println!("put  durability {durability:<4}  {in_flight:>2} in flight  {figures}");
        }
        for in_flight in [1, 64] {
            let get = |storage: RemoteStorage, n| async move {
                drop(storage.get_one(key(n)).await.unwrap())
            };
            let figures = measure(&storage, in_flight, CELL, get).await;
            println!("get  durability {durability:<4}  {in_flight:>2} in flight  {figures}");
        }
        storage.close().await;
    }
}

async fn index() {
    println!(
        "# the index by revision: puts of 1 KiB into the engine, in process, 64 in flight, durability os"
    );
    let folder = tempfile::tempdir().unwrap();
    // Interleaved, so that a drift of the machine's speed hits both.
    let mut sums = [0.0; 2];
    for round in 0..3 {
        for (place, without) in [false, true].into_iter().enumerate() {
            let mut options = EngineOptions::new(folder.path().join(format!("{round}-{without}")));
            options.durability = Durability::Os;
            options.danger_without_index = without;
            let engine = RocksEngine::open(options).unwrap();
            let session = engine
                .open_session("cert:bench", &Keyspace::new("bench").unwrap())
                .storage();
            let bytes = value(1024);
            let put = move |session: Arc<dyn storage_server::engine::SessionStorage>, n| {
                let bytes = bytes.clone();
                async move {
                    session.put(key(n), bytes).await.unwrap();
                }
            };
            let figures = measure(&session, 64, CELL, put).await;
            println!(
                "put  index {:<3}  {figures}",
                if without { "no" } else { "yes" }
            );
            sums[place] += figures.per_second;
            drop(session);
            tokio::task::spawn_blocking(move || engine.close())
                .await
                .unwrap();
        }
    }
    println!("with / without the index: {:.2}", sums[0] / sums[1]);
}

async fn idle() {
    const CONNECTIONS: u64 = 1000;
    println!("# {CONNECTIONS} idle connections");
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(&["bench"]);
    let server = ServerProcess::mutual(&certificates, &folder.path().join("data"), &[]);
    let warm = connect(&server, &certificates, "bench", "bench")
        .await
        .unwrap();
    warm.put("k".into(), "v".into()).await.unwrap();
    let before = server.resident_bytes();
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        // The default bound on sessions of one principal is 1,000: the first one is `warm`.
        match connect(&server, &certificates, "bench", "bench").await {
            Ok(storage) => open.push(storage),
            Err(error) => {
                println!("refused at {}: {error}", open.len());
                break;
            }
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let per_connection = (server.resident_bytes() - before) / open.len() as u64;
    println!(
        "{} connections: {} bytes of server memory each",
        open.len(),
        per_connection
    );
    // Do they still answer?
    let pings = join_all(open.iter().map(RemoteStorage::ping)).await;
    println!(
        "answer afterwards: {} of {}",
        pings.iter().filter(|ping| ping.is_ok()).count(),
        pings.len()
    );
}

async fn fairness() {
    println!("# small gets (100 B) of one session while another reads 10 MiB values without pause");
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(&["small", "big"]);
    let server = ServerProcess::mutual(&certificates, &folder.path().join("data"), &[]);
    let small = connect(&server, &certificates, "small", "bench")
        .await
        .unwrap();
    let url = format!("{}/storage/bench", server.url("storage"));
    let options = ConnectOptions::new(url).credentials_dir(certificates.dir().join("big"));
    let big = RemoteStorage::connect(options).await.unwrap();
    for n in 0..100 {
        small.put(key(n), value(100)).await.unwrap();
    }
    big.put("big".into(), value(10 << 20)).await.unwrap();
    let get = |storage: RemoteStorage, n| async move {
        drop(storage.get_one(key(n % 100)).await.unwrap())
    };
    println!("alone              {}", measure(&small, 1, CELL, get).await);
    for big_in_flight in [1, 4] {
        let reader = big.clone();
        let read_big = move |storage: RemoteStorage, _| async move {
            drop(storage.get_one("big".into()).await.unwrap());
        };
        let reading =
            tokio::spawn(async move { measure(&reader, big_in_flight, CELL, read_big).await });
        let figures = measure(&small, 1, CELL - Duration::from_millis(500), get).await;
        let big_figures = reading.await.unwrap();
        println!(
            "beside {big_in_flight} x 10 MiB    {figures}   (10 MiB gets: {:.1}/s)",
            big_figures.per_second
        );
    }
    // And on the very same connection.
    let reader = small.clone();
    let read_big = move |storage: RemoteStorage, _| async move {
        drop(storage.get_one("big".into()).await.unwrap())
    };
    let reading = tokio::spawn(async move { measure(&reader, 1, CELL, read_big).await });
    let figures = measure(&small, 1, CELL - Duration::from_millis(500), get).await;
    let big_figures = reading.await.unwrap();
    println!(
        "same connection    {figures}   (10 MiB gets: {:.1}/s)",
        big_figures.per_second
    );
}

/// Puts of several principals at once, as of a fleet.
async fn principals() {
    const NAMES: [&str; 8] = ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8"];
    println!("# puts of 100 B by eight principals, one connection each");
    for durability in ["sync", "os"] {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::issue(&NAMES);
        let data = folder.path().join("data");
        let server = ServerProcess::mutual(&certificates, &data, &["--durability", durability]);
        let mut sessions = Vec::new();
        for name in NAMES {
            let session = connect(&server, &certificates, name, "bench").await;
            sessions.push(session.unwrap());
        }
        for in_flight in [1, 16, 128] {
            let bytes = value(100);
            let put = move |storage: RemoteStorage, n| {
                let bytes = bytes.clone();
                async move {
                    storage.put(key(n), bytes).await.unwrap();
                }
            };
            let cells = sessions
                .iter()
                .map(|session| measure(session, in_flight, CELL, put.clone()));
            let cells = join_all(cells).await;
            let all: f64 = cells.iter().map(|cell| cell.per_second).sum();
            let p50 = cells.iter().map(|cell| cell.p50).max().unwrap();
            let p99 = cells.iter().map(|cell| cell.p99).max().unwrap();
            println!(
                "durability {durability:<4}  {in_flight:>3} in flight each  {all:>9.0}/s in all   the slowest: p50 \
                 {p50:>9.1?}   p99 {p99:>9.1?}"
            );
        }
    }
}

async fn replica() {
    const ENTRIES: u64 = 100_000;
    const VALUE_BYTES: usize = 100;
    println!("# a replica of {ENTRIES} entries of {VALUE_BYTES} bytes");
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(&["bench"]);
    let server = ServerProcess::mutual(&certificates, &folder.path().join("server"), &[]);
    let remote = connect(&server, &certificates, "bench", "bench").await;
    let remote: Arc<dyn Storage> = Arc::new(remote.unwrap());
    fill(&*remote, ENTRIES, VALUE_BYTES).await;
    for round in 1..=3 {
        let (before, began) = (resident_bytes(), Instant::now());
        let replica = Replica::start(remote.clone(), KeyRange::all(), ReplicaOptions::new()).await;
        let replica = replica.unwrap();
        replica.ready().await.unwrap();
        let took = began.elapsed();
        let grown = resident_bytes().saturating_sub(before);
        let status = replica.status();
        println!(
            "over TLS, round {round}: ready after {took:?}; counts {} bytes an entry, the process grew by {}",
            status.bytes as u64 / ENTRIES,
            grown / ENTRIES
        );
        replica.close().await.unwrap();
    }
    let options = ReplicaOptions::new().persist(folder.path().join("copy"), "bench");
    for round in ["fresh folder", "again"] {
        let began = Instant::now();
        let replica = Replica::start(remote.clone(), KeyRange::all(), options.clone()).await;
        let replica = replica.unwrap();
        replica.ready().await.unwrap();
        let ready = began.elapsed();
        replica.sync(CELL).await.unwrap();
        let proven = began.elapsed();
        let fetched = replica.status().states_fetched;
        let closing = Instant::now();
        replica.close().await.unwrap();
        let closed = closing.elapsed();
        println!(
            "{round}: ready after {ready:?}, proven after {proven:?}, {fetched} fetched, closed in {closed:?}"
        );
    }

    let engine = RocksEngine::open(EngineOptions::new(folder.path().join("engine"))).unwrap();
    let session = engine
        .open_session("cert:bench", &Keyspace::new("bench").unwrap())
        .storage();
    fill(&*session, ENTRIES, VALUE_BYTES).await;
    let inside: Arc<dyn Storage> = session.clone();
    let began = Instant::now();
    let replica = Replica::start(inside, KeyRange::all(), ReplicaOptions::new()).await;
    let replica = replica.unwrap();
    replica.ready().await.unwrap();
    println!("in the engine's process: ready after {:?}", began.elapsed());
    let (mut of_replica, mut of_engine) = (0.0, 0.0);
    for _ in 0..3 {
        let (mut reads, began) = (0u64, Instant::now());
        while began.elapsed() < CELL / 2 {
            for _ in 0..1_000 {
                let place = reads.wrapping_mul(7_919) % ENTRIES;
                assert!(replica.get(&entry_key(place)).unwrap().value.is_some());
                reads += 1;
            }
        }
        of_replica += reads as f64 / began.elapsed().as_secs_f64();
        let (mut reads, began) = (0u64, Instant::now());
        while began.elapsed() < CELL / 2 {
            for _ in 0..100 {
                let place = reads.wrapping_mul(7_919) % ENTRIES;
                assert!(session.get_one(entry_key(place)).await.unwrap().is_some());
                reads += 1;
            }
        }
        of_engine += reads as f64 / began.elapsed().as_secs_f64();
    }
    println!(
        "gets of one key by one task: replica {:.0}/s, engine in process {:.0}/s; ratio {:.1}",
        of_replica / 3.0,
        of_engine / 3.0,
        of_replica / of_engine
    );
    replica.close().await.unwrap();
    drop(session);
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .unwrap();
}

/// Unlike [`key`], each number has its own.
fn entry_key(n: u64) -> Key {
    Key::from(format!("bench/{n:018}"))
}

async fn fill(storage: &dyn Storage, entries: u64, value_bytes: usize) {
    for first in (0..entries).step_by(10_000) {
        let batch = (first..entries.min(first + 10_000)).fold(Batch::new(), |batch, n| {
            batch.put(entry_key(n), value(value_bytes))
        });
        let options = CommitOptions::default();
        storage.commit(batch, options).await.unwrap();
    }
}

/// Of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

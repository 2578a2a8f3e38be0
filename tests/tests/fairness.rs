//! A flood by one principal leaves the calls of another as quick as they were, within a factor.
//!
//! Each test measures the witness's gets and puts in one run: quiet, while another principal floods, and quiet again. What
//! is compared are medians of windows, and of the flooded windows the best one counts: a machine that does something else
//! for a moment, with client, flood and server on two cores, must not fail a test. A bound that is broken is broken in
//! every window.
//!
//! The flood runs in the test's process, on threads that give way to all others (nice 19). Its own work, which in the field
//! another machine does, then takes next to nothing from the witness or the server; what the server does for it does. It
//! sends as much as the server takes.
//!
//! What the server's memory grows by meanwhile is held against the sum of its bounds, with a fifth beside for what an
//! allocator leaves between.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::process::{Pid, setpriority_process};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use storage_client::RemoteStorage;
use storage_protocol::native::{
    Class, ClientMessage, Outbox, RequestId, SUBPROTOCOL, WatchRequest,
};
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, Storage, StorageExt, WatchMode, WatchStart,
};
use storage_testkit::harness::{Certificates, ServerProcess};
use storage_testkit::raw::{Encrypted, hello, http, tcp, tls, upgrade_request};
use storage_testkit::served::Served;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpSocket;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, MutexGuard, Semaphore};
use tokio_rustls::TlsConnector;

/// How many times its quiet latency the witness's may be.
const TIMES: u32 = 3;
/// And so much beside that. A quiet get takes a tenth of a millisecond: as long as the scheduler of a machine with two
/// cores lets another thread run before it looks again (up to 3 ms on Linux), which happens to every call beside anybody
/// who works at all.
const FLOOR: Duration = Duration::from_millis(3);

/// How long one median is of.
const WINDOW: Duration = Duration::from_millis(700);
/// So many windows of each phase.
const WINDOWS: usize = 4;

/// One test at a time: what is measured is the machine's too.
static ALONE: Mutex<()> = Mutex::const_new(());

const CONFIG: &str = r#"
[limits]
message_bytes_max = "4 MiB"
value_bytes_max = "1 MiB"
bytes_in_flight_total_max = "32 MiB"
partial_messages_bytes_max = "32 MiB"
commit_queue_bytes_max = "32 MiB"
outbox_bytes_max = "1 MiB"
outbox_bytes_total_max = "32 MiB"
watch_bytes_total_max = "32 MiB"
memory_bytes_max = "64 MiB"

[engine]
ring_bytes = "16 MiB"

[[listener]]
address = "127.0.0.1:0"
tls = "server"
auth = ["certificate", "password"]
"#;

/// What one principal may have the server hold by these limits, half of each of the five, and the engine besides; and for
/// 64 connections that are no sessions, or have nothing in flight, 64 KiB each.
const BOUNDS: u64 = (5 * 16 + 64 + 16 + 4) << 20;

/// The server, its witness and the flood's threads.
struct House {
    served: Arc<Served>,
    witness: RemoteStorage,
    flood: Option<Runtime>,
    /// How much the flood did: messages, handshakes, logins.
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    _alone: MutexGuard<'static, ()>,
}

/// Medians of what the witness did in one window.
#[derive(Clone, Copy, Debug)]
struct Latency {
    get: Duration,
    put: Duration,
}

impl Latency {
    fn best(windows: &[Self]) -> Self {
        Self {
            get: windows.iter().map(|window| window.get).min().unwrap(),
            put: windows.iter().map(|window| window.put).min().unwrap(),
        }
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// This thread gives way to all others.
fn give_way() {
    let thread = std::fs::read_link("/proc/thread-self").unwrap();
    let id = thread
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    setpriority_process(Pid::from_raw(id), 19).unwrap();
}

impl House {
    async fn new() -> Self {
        let alone = ALONE.lock().await;
        let served = Served::new(&["witness", "flood"], CONFIG);
        let witness = served.connect("witness", "model").await;
        for n in 0..1000 {
            let batch = Batch::new().put(format!("k/{n}"), vec![7; 100]);
            witness
                .commit(batch, CommitOptions::default())
                .await
                .unwrap();
        }
        let flood = Builder::new_multi_thread()
            .worker_threads(2)
            .on_thread_start(give_way)
            .enable_all()
            .build()
            .unwrap();
        Self {
            served: Arc::new(served),
            witness,
            flood: Some(flood),
            done: Arc::default(),
            stop: Arc::default(),
            _alone: alone,
        }
    }

    async fn window(&self) -> Latency {
        let began = Instant::now();
        let (mut gets, mut puts) = (Vec::new(), Vec::new());
        let mut n = 0;
        while began.elapsed() < WINDOW || puts.len() < 11 {
            n = (n + 1) % 1000;
            for _ in 0..4 {
                let asked = Instant::now();
                let entry = self.witness.get_one(format!("k/{n}").into()).await.unwrap();
                gets.push(asked.elapsed());
                assert!(entry.is_some());
            }
            let asked = Instant::now();
            let put = self
                .witness
                .put(format!("k/{n}").into(), vec![7; 100].into());
            put.await.unwrap();
            puts.push(asked.elapsed());
        }
        Latency {
            get: median(gets),
            put: median(puts),
        }
    }

    async fn windows(&self) -> Vec<Latency> {
        let mut windows = Vec::new();
        for _ in 0..WINDOWS {
            windows.push(self.window().await);
        }
        windows
    }

    /// Lets so many peers flood, and compares.
    async fn holds<F>(mut self, what: &str, peers: usize, least: u64, flood: impl Fn(Flood) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let before = Latency::best(&self.windows().await);
        let resident = self.served.server.resident_bytes();
        let runtime = self.flood.take().unwrap();
        let mut tasks = Vec::new();
        for number in 0..peers {
            let flood = flood(Flood {
                served: self.served.clone(),
                done: self.done.clone(),
                stop: self.stop.clone(),
                number,
            });
            tasks.push(runtime.spawn(flood));
        }
        // It is in full swing.
        self.window().await;
        let started = self.done.load(Ordering::Relaxed);
        let flooded = self.windows().await;
        let done = self.done.load(Ordering::Relaxed) - started;
        self.stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.abort();
            // One that panicked has found something.
            if let Err(error) = task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        runtime.shutdown_background();
        self.window().await;
        let after = Latency::best(&self.windows().await);
        let quiet = Latency {
            get: before.get.max(after.get),
            put: before.put.max(after.put),
        };
        let best = Latency::best(&flooded);
        let grown = self.served.server.peak_resident_bytes() - resident;
        let report = format!(
            "{what}: quiet {quiet:?}, flooded {best:?} of {flooded:?}, {done} times; memory {} MiB and up to {} more",
            resident >> 20,
            grown >> 20
        );
        println!("{report}");
        assert!(done >= least, "no flood: {report}");
        assert!(best.get <= TIMES * quiet.get + FLOOR, "{report}");
        assert!(best.put <= TIMES * quiet.put + FLOOR, "{report}");
        assert!(grown <= BOUNDS / 5 * 6, "{report}");
    }
}

/// What one flooding peer has.
struct Flood {
    served: Arc<Served>,
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    number: usize,
}

impl Flood {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, more: u64) {
        self.done.fetch_add(more, Ordering::Relaxed);
    }

    fn server(&self) -> &ServerProcess {
        &self.served.server
    }

    fn certificates(&self) -> &Certificates {
        &self.served.certificates
    }

    /// A session in which bytes are written below the WebSocket, and whatever comes is passed over: sending costs the
    /// flood as little as it can.
    async fn session(&self) -> Encrypted {
        let mut stream = tls(self.server(), self.certificates(), "flood").await;
        let protocol = format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n");
        let request = upgrade_request("/storage/model", &protocol);
        let answer = http(&mut stream, &request).await;
        assert_eq!(answer.status, 101, "{}", answer.text());
        stream.write_all(&frames(&[(None, hello())])).await.unwrap();
        stream.flush().await.unwrap();
        let mut welcome = [0; 4096];
        let read = stream.read(&mut welcome).await.unwrap();
        assert_ne!(read, 0, "no welcome");
        stream
    }
}

/// Native messages as masked frames (by zeros).
fn frames(messages: &[(Option<RequestId>, ClientMessage)]) -> Vec<u8> {
    let mut outbox = Outbox::new();
    let mut bytes = Vec::new();
    for (id, message) in messages {
        outbox.push(Class::Control, message.encode(*id));
        while let Some(payload) = outbox.pop() {
            put_frame(&mut bytes, &payload);
        }
    }
    bytes
}

fn put_frame(bytes: &mut Vec<u8>, payload: &[u8]) {
    bytes.push(0x82);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..126), _) => bytes.push(0x80 | length),
        (_, Ok(length)) => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
}

/// Requests of one session that wait for their answers: as many as a client may have, less one write.
const WINDOW_REQUESTS: usize = 900;

/// Writes, in one session after another, what `next` gives for the first write of a session, the second and so on, with how
/// many messages that is; and reads what comes. With `answered`, each message has one answer, and no more of them wait for
/// it than a client may send ahead.
async fn pour(flood: &Flood, answered: bool, next: impl Fn(u32) -> (Vec<u8>, usize) + Sync) {
    while flood.goes_on() {
        let (reader, mut writer) = tokio::io::split(flood.session().await);
        let room = Semaphore::new(WINDOW_REQUESTS);
        let reading = async {
            let mut reader = BufReader::with_capacity(256 << 10, reader);
            while pass_frame(&mut reader).await.is_ok() {
                room.add_permits(1);
            }
        };
        let writing = async {
            for nth in 0.. {
                let (bytes, count) = next(nth);
                if answered {
                    let count = u32::try_from(count).unwrap();
                    room.acquire_many(count).await.unwrap().forget();
                }
                if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                    break;
                }
                flood.count(count as u64);
            }
        };
        tokio::select! { () = reading => {} () = writing => {} }
    }
}

/// Reads a frame of the server, and passes over what is in it.
async fn pass_frame(reader: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<()> {
    let _ = reader.read_u8().await?;
    let mut length = match reader.read_u8().await? {
        126 => u64::from(reader.read_u16().await?),
        127 => reader.read_u64().await?,
        short => u64::from(short),
    };
    while length > 0 {
        let there = reader.fill_buf().await?.len() as u64;
        if there == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let passed = there.min(length);
        reader.consume(usize::try_from(passed).unwrap());
        length -= passed;
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_of_gets() {
    let house = House::new().await;
    house
        .holds("gets", 8, 10_000, |flood| async move {
            let next = |nth: u32| {
                let gets: Vec<_> = (0..100)
                    .map(|n| {
                        let keys = vec![Key::from(format!("k/{n}"))];
                        (Some(100 * nth + n), ClientMessage::Get { keys })
                    })
                    .collect();
                (frames(&gets), 100)
            };
            pour(&flood, true, next).await;
        })
        .await;
}

#[tokio::test]
async fn a_flood_of_commits() {
    let house = House::new().await;
    house
        .holds("commits", 8, 10_000, |flood| async move {
            let next = |nth: u32| {
                let commits: Vec<_> = (0..100)
                    .map(|n| {
                        let id = 100 * nth + n + 1;
                        let message = ClientMessage::Commit {
                            number: id.into(),
                            options: CommitOptions::default(),
                            batch: Batch::new().put(format!("f/{}/{n}", flood.number), "1"),
                        };
                        (Some(id), message)
                    })
                    .collect();
                (frames(&commits), 100)
            };
            pour(&flood, true, next).await;
        })
        .await;
}

#[tokio::test]
async fn a_flood_of_half_sent_messages() {
    let house = House::new().await;
    house
        .holds("half-sent messages", 8, 100, |flood| async move {
            let next = |nth: u32| {
                let id = nth + 1;
                // The first part of a commit of two.
                let mut outbox = Outbox::new();
                let value = vec![7; 300_000];
                let message = ClientMessage::Commit {
                    number: id.into(),
                    options: CommitOptions::default(),
                    batch: Batch::new().put("half", value),
                };
                outbox.push(Class::Control, message.encode(Some(id)));
                let mut bytes = Vec::new();
                put_frame(&mut bytes, &outbox.pop().unwrap());
                (bytes, 1)
            };
            pour(&flood, false, next).await;
        })
        .await;
}

#[tokio::test]
async fn a_flood_of_watches() {
    let house = House::new().await;
    house
        .holds("watches", 8, 1_000, |flood| async move {
            let next = |nth: u32| {
                // Opened, and ended at once; those of the whole keyspace are told what the witness puts.
                let mut messages = Vec::new();
                for id in (0..100).map(|n| 2 * (100 * nth + n)) {
                    let request = WatchRequest {
                        range: KeyRange::all(),
                        start: WatchStart::Beginning,
                        mode: WatchMode::Latest {
                            min_interval: Duration::ZERO,
                        },
                        credit: 1 << 20,
                    };
                    messages.push((Some(id), ClientMessage::Watch(request)));
                    messages.push((Some(id + 1), ClientMessage::Unwatch { watch: id }));
                }
                (frames(&messages), 100)
            };
            pour(&flood, false, next).await;
        })
        .await;
}

#[tokio::test]
async fn a_flood_of_handshakes() {
    let house = House::new().await;
    house
        .holds("handshakes", 32, 100, |flood| async move {
            while flood.goes_on() {
                drop(tls(flood.server(), flood.certificates(), "flood").await);
                flood.count(1);
            }
        })
        .await;
}

/// For a client without a certificate.
fn tls_config(certificates: &Certificates) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::pem_file_iter(certificates.dir().join("server/ca.pem"));
    for certificate in ca.unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// What a client sends first: the server answers it with a key exchange and a signature, and this peer does no more.
fn client_hello(certificates: &Certificates) -> Vec<u8> {
    let config = tls_config(certificates);
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// A connection from this address of the loopback; `None`: it was not made, say because there are too many.
async fn tls_from(
    flood: &Flood,
    config: &Arc<rustls::ClientConfig>,
    from: Ipv4Addr,
) -> Option<Encrypted> {
    let (_, address) = flood.server().url("storage").split_once("://").unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let stream = socket.connect(address.parse().unwrap()).await.ok()?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(config.clone())
        .connect(name, stream)
        .await
        .ok()
}

#[tokio::test]
async fn a_flood_of_handshakes_that_are_begun() {
    let house = House::new().await;
    let first = client_hello(&house.served.certificates);
    house
        .holds("begun handshakes", 64, 1_000, |flood| {
            let first = first.clone();
            async move {
                let mut answer = vec![0; 16 << 10];
                while flood.goes_on() {
                    let mut stream = tcp(flood.server()).await;
                    if stream.write_all(&first).await.is_ok()
                        && stream.read(&mut answer).await.is_ok_and(|read| read > 0)
                    {
                        flood.count(1);
                    }
                }
            }
        })
        .await;
}

#[tokio::test]
async fn a_flood_of_logins_with_wrong_passwords() {
    let house = House::new().await;
    house
        .holds("logins", 16, 20, |flood| async move {
            let config = tls_config(flood.certificates());
            let mut n = 0u16;
            while flood.goes_on() {
                n += 1;
                // From one address there are no more than 50 that are checked.
                let [high, low] = n.to_be_bytes();
                let place = u8::try_from(flood.number + 1).unwrap();
                let address = Ipv4Addr::new(127, place, high, low);
                let Some(mut stream) = tls_from(&flood, &config, address).await else {
                    continue;
                };
                for _ in 0..5 {
                    let login = BASE64_STANDARD.encode(format!("user{}-{n}:wrong", flood.number));
                    let request = format!(
                        "GET /-/auth/whoami HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {login}\r\n\r\n"
                    );
                    let answer = http(&mut stream, &request).await;
                    assert!([401, 429, 503].contains(&answer.status), "{}", answer.head);
                    flood.count(u64::from(answer.status == 401));
                }
            }
        })
        .await;
}

//! What access rules, the audit log, handshakes and logins cost.
//!
//! Cells that are compared run in turns, a second or so each, against servers that are there all the time, so that a drift of
//! the machine's speed hits all of them; their ratio is the mean of the rounds, with its standard error.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use storage_certs::Credentials;
use storage_client::http::request;
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::StorageExt;
use storage_testkit::served::Served;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{key, measure, value};

const ROUNDS: usize = 10;
const TURN: Duration = Duration::from_secs(1);
/// Entries that gets find.
const FILLED: u64 = 1_000;

pub(crate) async fn access() {
    rules().await;
    audit().await;
    handshakes().await;
    logins().await;
}

/// Rules that let `cert:bench` do everything, behind so many others.
fn some_rules(count: usize) -> String {
    let mut text = String::new();
    for number in 1..count {
        writeln!(
            text,
            "[[rule]]\nprincipal = \"cert:other-{number}\"\nkeyspace = \"bench\"\nprefix = \"tenant-{number}/\"\n\
             allow = [\"read\", \"write\"]"
        )
        .unwrap();
    }
    if count > 0 {
        text.push_str(
            "[[rule]]\nprincipal = \"cert:bench\"\nkeyspace = \"bench\"\nprefix = \"bench/\"\n\
             allow = [\"read\", \"write\"]\n[[rule]]\nprincipal = \"cert:bench\"\nkeyspace = \"bench\"\n\
             allow = [\"admin\"]\n",
        );
    }
    text
}

/// Mean and standard error of ratios.
fn summary(ratios: &[f64]) -> String {
    let n = ratios.len() as f64;
    let mean = ratios.iter().sum::<f64>() / n;
    let variance = ratios.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / (n - 1.0);
    format!("{mean:.3} (sem {:.3})", (variance / n).sqrt())
}

/// Servers that are compared with the first: a name and a configuration each.
type Against<'a> = &'a [(&'a str, String)];

async fn rules() {
    println!("# access rules: none against 1 and 1,000");
    let configs = [("none", 0), ("1 rule", 1), ("1,000 rules", 1_000)];
    gets_and_puts(&configs.map(|(name, count)| (name, some_rules(count)))).await;
}

/// The audit log: off, with what is on by default (which no allowed get or put is), and with a record of each call.
async fn audit() {
    println!("# audit log: off against the default, and against a record of each call");
    let on = |events: &str| format!("[audit]\nday_bytes_max = \"16 GiB\"\nevents = [{events}]\n");
    let each = "\"denied\", \"admin\", \"session\", \"write\", \"read\", \"watch\"";
    let configs = [
        ("off", on("")),
        ("default", String::new()),
        ("each call", on(each)),
    ];
    gets_and_puts(&configs).await;
}

async fn gets_and_puts(against: Against<'_>) {
    println!("1 KiB values, mutual TLS, durability os, {ROUNDS} rounds");
    let mut servers = Vec::new();
    for (_, config) in against {
        let config = format!("durability = \"os\"\n{config}");
        servers.push(Served::new(&["bench"], &config));
    }
    let mut sessions = Vec::new();
    for server in &servers {
        let session = server.connect("bench", "bench").await;
        let filling = (0..FILLED).map(|n| session.put(key(n), value(1024)));
        for put in join_all(filling).await {
            put.unwrap();
        }
        sessions.push(session);
    }
    let bytes = value(1024);
    let put = move |storage: RemoteStorage, n: u64| {
        let bytes = bytes.clone();
        async move {
            storage.put(key(n), bytes).await.unwrap();
        }
    };
    let get = |storage: RemoteStorage, n: u64| async move {
        drop(storage.get_one(key(n % FILLED)).await.unwrap());
    };
    for in_flight in [1, 64] {
        for what in ["get", "put"] {
            let mut rates = vec![Vec::new(); servers.len()];
            for _ in 0..ROUNDS {
                for (session, rates) in sessions.iter().zip(&mut rates) {
                    let figures = match what {
                        "get" => measure(session, in_flight, TURN, get).await,
                        _ => measure(session, in_flight, TURN, put.clone()).await,
                    };
                    rates.push(figures.per_second);
                }
            }
            let first = rates[0].iter().sum::<f64>() / rates[0].len() as f64;
            print!(
                "{what}  {in_flight:>2} in flight  {} {first:>8.0}/s",
                against[0].0
            );
            for ((name, _), with) in against.iter().zip(&rates).skip(1) {
                let pairs = with.iter().zip(&rates[0]);
                let ratios: Vec<_> = pairs.map(|(with, without)| with / without).collect();
                print!("   {name} {}", summary(&ratios));
            }
            println!();
        }
    }
}

/// A client's side of TLS that resumes, or not.
fn tls_client(served: &Served, resumption: Resumption) -> Arc<ClientConfig> {
    let own = Credentials::load(served.certificates.dir().join("bench")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for authority in &own.ca {
        roots.add(authority.clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(own.chain, own.key)
        .unwrap();
    config.resumption = resumption;
    Arc::new(config)
}

/// One connection, to the answer of a request. Whether it was resumed.
async fn shake_hands(address: &str, config: &Arc<ClientConfig>) -> bool {
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connector = TlsConnector::from(config.clone());
    let mut stream = connector.connect(name, tcp).await.unwrap();
    let request = "GET /storage/bench HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}

async fn handshakes() {
    println!(
        "# connections a second, to the answer of one request: full handshakes with client certificates, and resumed ones"
    );
    let served = Served::new(&["bench"], "");
    let (_, address) = served.server.url("storage").split_once("://").unwrap();
    let kinds = [
        ("full", tls_client(&served, Resumption::disabled())),
        (
            "resumed",
            tls_client(&served, Resumption::in_memory_sessions(64)),
        ),
    ];
    for lanes in [1, 8] {
        let (mut rates, mut resumed) = ([const { Vec::new() }; 2], [0, 0]);
        for _ in 0..ROUNDS {
            for (place, (_, config)) in kinds.iter().enumerate() {
                let began = Instant::now();
                let lane = || async {
                    let (mut all, mut resumed) = (0, 0);
                    while began.elapsed() < TURN {
                        resumed += usize::from(shake_hands(address, config).await);
                        all += 1;
                    }
                    (all, resumed)
                };
                let counts = join_all((0..lanes).map(|_| lane())).await;
                let all: usize = counts.iter().map(|(all, _)| all).sum();
                resumed[place] += counts.iter().map(|(_, resumed)| resumed).sum::<usize>();
                rates[place].push(all as f64 / began.elapsed().as_secs_f64());
            }
        }
        let mean = |place: usize| rates[place].iter().sum::<f64>() / ROUNDS as f64;
        let ratios: Vec<_> = rates[1].iter().zip(&rates[0]).map(|(r, f)| r / f).collect();
        println!(
            "{lanes} at once  full {:>6.0}/s ({} resumed)   resumed {:>6.0}/s ({} resumed)   ratio {}",
            mean(0),
            resumed[0],
            mean(1),
            resumed[1],
            summary(&ratios)
        );
    }
}

const LISTENER: &str = r#"
[[rule]]
principal = "cert:bench"
keyspace = "system"
allow = ["admin"]

[[listener]]
address = "127.0.0.1:0"
tls = "server"
auth = ["certificate", "password"]
"#;

async fn logins() {
    const USERS: usize = 40;
    println!("# logins with a password, over HTTP: the first of each user (Argon2id), and again");
    let served = Served::new(&["bench"], LISTENER);
    let url = format!("{}/storage/bench", served.server.url("storage"));
    let dir = served.certificates.dir();
    let boss = ConnectOptions::new(url.clone()).credentials_dir(dir.join("bench"));
    for number in 0..USERS {
        let body = br#"{ "password": "correct horse", "new": true }"#.to_vec();
        let path = format!("/-/auth/users/u{number}");
        let (status, _) = request(&boss, "PUT".parse().unwrap(), &path, Some(body))
            .await
            .unwrap();
        assert!(status.is_success(), "{status}");
    }
    let whoami = async |number: usize| {
        let options = ConnectOptions::new(url.clone())
            .without_client_certificate(dir.join("bench/ca.pem"))
            .password(format!("u{number}"), "correct horse");
        let answer = request(&options, "GET".parse().unwrap(), "/-/auth/whoami", None).await;
        assert!(answer.unwrap().0.is_success());
    };
    for round in ["first", "again"] {
        for (users, lanes) in [(0..USERS / 2, 1), (USERS / 2..USERS, 4)] {
            let users: Vec<_> = users.collect();
            let began = Instant::now();
            let lane = |lane: usize| {
                let mine: Vec<_> = users.iter().skip(lane).step_by(lanes).copied().collect();
                async move {
                    for user in mine {
                        whoami(user).await;
                    }
                }
            };
            join_all((0..lanes).map(lane)).await;
            println!(
                "{round}  {lanes} at once  {:>6.1}/s, each with a TLS handshake",
                users.len() as f64 / began.elapsed().as_secs_f64()
            );
        }
    }
}

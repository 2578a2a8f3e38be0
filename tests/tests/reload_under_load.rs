//! A thousand swaps of certificates, lists and access rules while a hundred clients work: nobody who may do something is
//! disturbed, and nobody does what is not allowed any more.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use storage_certs::{Request, server_name};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::{
    Continuity, KeyRange, Storage, StorageError, StorageExt, WatchEvent, WatchOptions,
};
use storage_server::Server;
use storage_server::auth::rules::Rule;
use storage_server::config::{Durability, ListenerConfig, ServerConfig};
use storage_testkit::harness::Certificates;
use storage_testkit::raw::in_time;

const CLIENTS: usize = 100;
const SWAPS: u64 = 1_000;
/// So many swaps has each who is to be revoked: a server takes no list back.
const VICTIM_SWAPS: u64 = 50;
const PRINCIPALS: [&str; 4] = ["ann", "bob", "cat", "dan"];

/// What holds: even numbers are settled, and say by their half whether `sometimes/` may be read (odd halves: yes); at odd
/// numbers a swap is under way.
#[derive(Debug, Default)]
struct State(AtomicU64);

impl State {
    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// What had to be the case all the time from then until now; `None`: there was a swap.
    fn held_since(&self, then: u64) -> Option<bool> {
        (self.now() == then && then.is_multiple_of(2)).then(|| is_allowed(then / 2))
    }
}

fn is_allowed(swaps: u64) -> bool {
    !swaps.is_multiple_of(2)
}

fn rule(json: &str) -> Rule {
    Rule::from_json(json.as_bytes()).unwrap()
}

fn rules(swaps: u64) -> Vec<Rule> {
    let mut rules = vec![
        rule(
            r#"{"principal":"cert:boss","keyspace":"*","allow":["read","write","watch","admin"]}"#,
        ),
        rule(r#"{"principal":"cert:boss","keyspace":"system","allow":["admin"]}"#),
        rule(
            r#"{"principal":"*","keyspace":"model","prefix":"always/","allow":["read","write","watch"]}"#,
        ),
    ];
    if is_allowed(swaps) {
        rules.push(rule(
            r#"{"principal":"*","keyspace":"model","prefix":"sometimes/","allow":["read"]}"#,
        ));
    }
    rules
}

fn victim(number: u64) -> String {
    format!("victim{number}")
}

struct House {
    server: Server,
    certificates: Certificates,
    config: Arc<Mutex<ServerConfig>>,
    url: String,
    _data: tempfile::TempDir,
}

impl House {
    async fn new() -> Self {
        let mut clients = PRINCIPALS.to_vec();
        let victims: Vec<_> = (0..=SWAPS / VICTIM_SWAPS).map(victim).collect();
        clients.push("boss");
        clients.extend(victims.iter().map(String::as_str));
        let certificates = Certificates::issue(&clients);
        let names = vec![server_name("127.0.0.1").unwrap()];
        certificates.add(&Request::server("next".parse().unwrap(), names));
        let data = tempfile::tempdir().unwrap();
        let listener = ListenerConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut config = ServerConfig::embedded(
            data.path().join("data"),
            Some(certificates.dir()),
            vec![listener],
        );
        config.durability = Durability::Os;
        config.rules = rules(0);
        let shared = Arc::new(Mutex::new(config.clone()));
        let source = shared.clone();
        let server = Server::builder(config)
            .config_source(None, move || Ok(source.lock().unwrap().clone()))
            .start()
            .await
            .unwrap();
        let url = format!("wss://{}/storage/model", server.addresses()[0].address);
        Self {
            server,
            certificates,
            config: shared,
            url,
            _data: data,
        }
    }

    fn options(&self, client: &str) -> ConnectOptions {
        let folder = self.certificates.dir().join(client);
        ConnectOptions::new(self.url.clone()).credentials_dir(folder)
    }
}

/// One client, until it is told to stop: how many calls it made.
async fn work(
    options: ConnectOptions,
    number: usize,
    state: Arc<State>,
    stop: Arc<AtomicBool>,
) -> u64 {
    let connect = || RemoteStorage::connect(options.clone());
    let mut session = connect().await.unwrap();
    let mut calls = 0_u64;
    let own = format!("always/{number}");
    while !stop.load(Ordering::Relaxed) {
        session
            .put(own.clone().into(), calls.to_string().into())
            .await
            .unwrap();
        let read = session.get_one(own.clone().into()).await.unwrap().unwrap();
        assert_eq!(read.value, calls.to_string());
        let then = state.now();
        let sometimes = session.get_one("sometimes/x".into()).await;
        match (&sometimes, state.held_since(then)) {
            (Ok(Some(_)), Some(true) | None) => {}
            (Err(StorageError::AccessDenied { .. }), Some(false) | None) => {}
            other => panic!("{other:?} at {then}"),
        }
        calls += 3;
        // Some come anew again and again, while the certificates change.
        if number.is_multiple_of(10) && calls.is_multiple_of(30) {
            session = connect().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    calls
}

/// Sees each commit below its prefix, and is never interrupted.
async fn watch(options: ConnectOptions, stop: Arc<AtomicBool>) -> u64 {
    let session = RemoteStorage::connect(options).await.unwrap();
    let range = KeyRange::prefix("always/");
    let mut watch = session.watch(range, WatchOptions::default()).await.unwrap();
    let mut seen = 0;
    while !stop.load(Ordering::Relaxed) {
        let next = tokio::time::timeout(Duration::from_millis(100), watch.next());
        let Ok(event) = next.await else {
            continue;
        };
        match event.unwrap().unwrap() {
            WatchEvent::Commit(_) => seen += 1,
            WatchEvent::Continuity(
                what @ (Continuity::Resynced { .. } | Continuity::Lost { .. }),
            ) => panic!("{what:?}"),
            _ => {}
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_swaps_disturb_nobody_and_let_nobody_through() {
    let house = House::new().await;
    let boss = RemoteStorage::connect(house.options("boss")).await.unwrap();
    boss.put("sometimes/x".into(), "1".into()).await.unwrap();
    let (state, stop) = (Arc::new(State::default()), Arc::new(AtomicBool::new(false)));
    let mut working = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let options = house.options(PRINCIPALS[number % PRINCIPALS.len()]);
        working.spawn(work(options, number, state.clone(), stop.clone()));
    }
    let watching = tokio::spawn(watch(house.options("ann"), stop.clone()));

    let dir = house.certificates.dir();
    let folders = ["server", "next"].map(|name| {
        ["cert.pem", "key.pem"].map(|file| fs::read(dir.join(name).join(file)).unwrap())
    });
    let mut open = None;
    for swap in 1..=SWAPS {
        // Half-way through its swaps a victim is revoked.
        let name = victim(swap / VICTIM_SWAPS);
        let is_revoked = swap % VICTIM_SWAPS >= VICTIM_SWAPS / 2;
        let victims = || house.options(&name).give_up_after(Duration::ZERO);
        let [cert, key] = &folders[usize::from(!swap.is_multiple_of(2))];
        fs::write(dir.join("server/cert.pem"), cert).unwrap();
        fs::write(dir.join("server/key.pem"), key).unwrap();
        if swap % VICTIM_SWAPS == VICTIM_SWAPS / 2 {
            house.certificates.revoke(&name);
        }
        state.0.fetch_add(1, Ordering::SeqCst);
        house.config.lock().unwrap().rules = rules(swap);
        let reloaded = house.server.reload().await;
        reloaded.certificates.unwrap();
        reloaded.rules.unwrap();
        state.0.fetch_add(1, Ordering::SeqCst);
        if is_revoked {
            if let Some(session) = open.take() {
                out(&session).await;
            }
            if swap % VICTIM_SWAPS == VICTIM_SWAPS / 2 {
                let refused = RemoteStorage::connect(victims()).await.unwrap_err();
                assert!(refused.to_string().contains("revoked"), "{refused}");
            }
        } else if open.is_none() {
            let session = RemoteStorage::connect(victims()).await.unwrap();
            session
                .put("always/victim".into(), "1".into())
                .await
                .unwrap();
            open = Some(session);
        }
        let ended = working.try_join_next();
        assert!(ended.is_none(), "a client has ended: {ended:?}");
    }
    stop.store(true, Ordering::Relaxed);
    let calls: u64 = in_time("the clients end", working.join_all())
        .await
        .iter()
        .sum();
    let seen = in_time("the watch ends", watching).await.unwrap();
    println!("{SWAPS} swaps, {calls} calls, {seen} commits watched");
    assert!(
        calls > SWAPS && seen > SWAPS / 10,
        "{calls} calls, {seen} seen"
    );
    house.server.shutdown().await;
}

/// Who is revoked is closed: no call succeeds any more, within the time that is promised.
async fn out(session: &RemoteStorage) {
    let ended = async {
        while session.get_one("always/victim".into()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let bound = Duration::from_secs(5);
    tokio::time::timeout(bound, ended)
        .await
        .expect("it is out in 5 s");
}

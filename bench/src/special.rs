//! Measurements that need a server of their own, new each time: right after a load, connections that come and go, what
//! rests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use storage_protocol::native::{ClientMessage, Hello, Packet, SUBPROTOCOL, ServerMessage};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::client::Client;
use crate::fanout::{Deliveries, Interest, Wanted};
use crate::keys::key;
use crate::load::{self, Data, Figures, Meter, Times};
use crate::stats::{Latencies, Recorder, Window};
use crate::systems::ours::Ours;
use crate::systems::{Running, Server, Started};
use crate::tls::{self, CLIENT};
use crate::work::{Cell, Work};

/// Idle connections that are opened.
const CONNECTIONS: usize = 1_000;

/// Watches that are opened, over [`WATCHING`] connections.
const WATCHES: u64 = 10_000;
const WATCHING: usize = 2;

/// What was allocated for the last ones may go back first.
const REST: Duration = Duration::from_secs(2);

/// Connections that are made at once in a storm.
const STORM: usize = 8;

/// What is measured on a new server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    /// Gets in the first second after all keys were put, and later.
    FirstSecond,
    /// Connections with one get each, with full handshakes or resumed ones.
    Storm { resumed: bool },
    /// Memory for each connection that rests.
    IdleConnections,
    /// Memory for each watch that rests.
    IdleWatches,
    /// Requests spread over so many keyspaces.
    Keyspaces { work: Work, count: usize },
}

impl Special {
    /// What is counted in bytes hardly differs from one round to the next.
    pub(crate) fn rounds(self, rounds: usize) -> usize {
        match self {
            Self::IdleConnections | Self::IdleWatches => rounds.min(1),
            Self::FirstSecond | Self::Storm { .. } | Self::Keyspaces { .. } => rounds,
        }
    }
}

/// The load of the first second.
const GETS: Cell = Cell {
    work: Work::Get,
    value: 1024,
    connections: 8,
    in_flight: 16,
};

/// Connections of the load over many keyspaces: as many as the most keyspaces.
pub(crate) const KEYSPACES: usize = 256;

impl std::fmt::Display for Special {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FirstSecond => f.write_str(FIRST),
            Self::Storm { resumed: false } => f.write_str("connect, get, close"),
            Self::Storm { resumed: true } => f.write_str("connect, get, close, resumed"),
            Self::IdleConnections => f.write_str("idle connection"),
            Self::IdleWatches => f.write_str("idle watch"),
            Self::Keyspaces { work, count } => {
                write!(
                    f,
                    "{} 1KiB c{KEYSPACES} i1 over {count} keyspaces",
                    work.name()
                )
            }
        }
    }
}

/// Names of what [`Special::FirstSecond`] measures.
pub(crate) const FIRST: &str = "first second after a load";
pub(crate) const WARM: &str = "the same, warm";

/// Measures it; what was found, by name.
pub(crate) async fn run(
    special: Special,
    running: &mut Running,
    times: Times,
    certificates: &Path,
) -> Result<Vec<(String, Figures)>> {
    let name = special.to_string();
    let figures = match special {
        Special::FirstSecond => return first_second(running, times).await,
        Special::Storm { resumed } => storm(running, times, resumed, certificates).await?,
        Special::IdleConnections => {
            crate::systems::with_server!(running, server => idle_connections(server).await?,
                _raw => bail!("RocksDB alone has no connections"))
        }
        Special::IdleWatches => {
            crate::systems::with_server!(running, server => idle_watches(server).await?,
                _raw => bail!("RocksDB alone has no watches"))
        }
        Special::Keyspaces { work, count } => keyspaces(running, times, work, count).await?,
    };
    Ok(vec![(name, figures)])
}

async fn first_second(running: &mut Running, times: Times) -> Result<Vec<(String, Figures)>> {
    let data = Data::new(Cell::keys(GETS.value), GETS.value);
    let at_once = Times {
        warm_up: Duration::ZERO,
        time: Duration::from_secs(1),
    };
    let later = Times {
        warm_up: Duration::from_secs(2),
        time: times.time,
    };
    let (first, warm) = crate::systems::with_server!(running, server => {
        let id = server.process().id();
        let clients = load::open(GETS.connections, || server.connect()).await?;
        let loader = clients.first().context("no client")?;
        load::preload(loader, &data).await?;
        let first = load::run(&clients, id, GETS, &data, at_once).await?;
        let warm = load::run(&clients, id, GETS, &data, later).await?;
        load::close(clients).await;
        (first, warm)
    }, _raw => bail!("RocksDB alone reads what it has loaded before it answers"));
    Ok(vec![(FIRST.to_owned(), first), (WARM.to_owned(), warm)])
}

/// Connections a second, each with one get.
async fn storm(
    running: &mut Running,
    times: Times,
    resumed: bool,
    certificates: &Path,
) -> Result<Figures> {
    let data = Data::new(1_000, 100);
    running.preload(&data).await?;
    if let Started::Ours(ours) = &running.started {
        let resumption = if resumed {
            Resumption::in_memory_sessions(64)
        } else {
            Resumption::disabled()
        };
        let config = tls::client(&certificates.join(CLIENT), resumption)?;
        let visits = Arc::new(AtomicU64::new(0));
        let visit = || {
            let (url, config) = (ours.url(), config.clone());
            let visits = visits.clone();
            async move {
                let was_resumed = visit(&url, config).await?;
                // Each lane's first one has nothing to resume.
                let first = visits.fetch_add(1, Ordering::Relaxed) < 4 * STORM as u64;
                ensure!(was_resumed == resumed || first, "resumed: {was_resumed}");
                Ok(())
            }
        };
        return visits_of(visit, ours.process().id(), times).await;
    }
    ensure!(!resumed, "its client does not say whether it resumes");
    crate::systems::with_server!(running, server => {
        let id = server.process().id();
        let server = &*server;
        let visit = || async {
            let client = server.connect().await?;
            ensure!(client.get(key(1)).await? > 0, "an empty value");
            client.close().await;
            Ok(())
        };
        visits_here(visit, id, times).await
    }, _raw => bail!("RocksDB alone has no connections"))
}

/// Makes connections from tasks of their own.
async fn visits_of<F, R>(visit: F, server: u32, times: Times) -> Result<Figures>
where
    F: Fn() -> R + Send + Sync,
    R: Future<Output = Result<()>> + Send + 'static,
{
    let window = Window::after(times.warm_up, times.time);
    let recorder = Recorder::new(window);
    let working = async {
        let mut at_work = JoinSet::new();
        let begin = |at_work: &mut JoinSet<Result<Instant>>| {
            let (visit, began) = (visit(), Instant::now());
            at_work.spawn(async move {
                visit.await?;
                Ok(began)
            });
        };
        for _ in 0..STORM {
            begin(&mut at_work);
        }
        while let Some(done) = at_work.join_next().await {
            if recorder.note(0, done??).1 {
                begin(&mut at_work);
            }
        }
        anyhow::Ok(())
    };
    let (used, done) = tokio::join!(Meter::over(window, server), working);
    done?;
    used?.figures(recorder.summary(), window)
}

/// The same from this task, for futures that borrow.
async fn visits_here<F, R>(visit: F, server: u32, times: Times) -> Result<Figures>
where
    F: Fn() -> R + Send + Sync,
    R: Future<Output = Result<()>> + Send,
{
    let window = Window::after(times.warm_up, times.time);
    let recorder = Recorder::new(window);
    let lane = |number: usize| {
        let (visit, recorder) = (&visit, &recorder);
        async move {
            loop {
                let began = Instant::now();
                visit().await?;
                if !recorder.note(number, began).1 {
                    return anyhow::Ok(());
                }
            }
        }
    };
    let lanes = futures_util::future::try_join_all((0..STORM).map(lane));
    let (used, done) = tokio::join!(Meter::over(window, server), lanes);
    done?;
    used?.figures(recorder.summary(), window)
}

/// A native session with one get, over TLS that was kept from the last one; whether it was resumed. `RemoteStorage` reads
/// its credentials anew for each connection, and so resumes only within one.
async fn visit(url: &str, config: Arc<ClientConfig>) -> Result<bool> {
    let address = url
        .split("://")
        .nth(1)
        .and_then(|rest| rest.split('/').next());
    let tcp = TcpStream::connect(address.context("no address")?).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("127.0.0.1")?;
    let stream = TlsConnector::from(config).connect(name, tcp).await?;
    let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
    let mut request = url.into_client_request()?;
    let protocol = HeaderValue::from_static(SUBPROTOCOL);
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", protocol);
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    let hello = ClientMessage::Hello(Hello::new("storage-bench"));
    let get = ClientMessage::Get {
        keys: vec![Bytes::copy_from_slice(&key(1))],
    };
    let ask = |message: &ClientMessage, id| Message::Binary(message.encode(id).to_frame());
    socket.send(ask(&hello, None)).await?;
    hear(socket.next().await, |message| {
        matches!(message, ServerMessage::Welcome(_))
    })?;
    socket.send(ask(&get, Some(0))).await?;
    hear(socket.next().await, |message| match message {
        ServerMessage::Values { entries, .. } => entries.iter().all(Option::is_some),
        _ => false,
    })?;
    let normal = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    socket.close(Some(normal)).await?;
    while let Some(Ok(_)) = socket.next().await {}
    Ok(resumed)
}

fn hear<E>(
    message: Option<Result<Message, E>>,
    is_due: impl Fn(&ServerMessage) -> bool,
) -> Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let message = message.context("the server has closed the connection")??;
    let Message::Binary(frame) = message else {
        bail!("the server said {message:?}");
    };
    let message = ServerMessage::decode(Packet::from_frame(frame)?)?;
    ensure!(is_due(&message), "the server said {message:?}");
    Ok(())
}

async fn idle_connections<S: Server>(server: &S) -> Result<Figures> {
    let warm = server.connect().await?;
    warm.put(key(0), Bytes::from_static(b"warm")).await?;
    tokio::time::sleep(REST / 4).await;
    let before = server.process().resident()?;
    let open = load::open(CONNECTIONS, || server.connect()).await?;
    tokio::time::sleep(REST).await;
    let after = server.process().resident()?;
    // They are still there.
    for client in &open {
        client.get(key(0)).await?;
    }
    load::close(open).await;
    warm.close().await;
    Ok(each(before, after, CONNECTIONS as u64))
}

async fn idle_watches<S: Server>(server: &S) -> Result<Figures> {
    const OPENING: usize = 64;
    let open = load::open(WATCHING, || server.connect()).await?;
    let warm = open.first().context("no client")?;
    warm.put(key(0), Bytes::from_static(b"warm")).await?;
    tokio::time::sleep(REST / 4).await;
    let before = server.process().resident()?;
    let deliveries = Arc::new(Deliveries::new(1));
    let opening = (0..WATCHES).zip(open.iter().cycle());
    let opening = opening.map(|(number, client)| {
        client.subscribe(
            Interest::of(Wanted::One, number),
            deliveries.clone(),
            number,
        )
    });
    let mut opening = stream::iter(opening).buffer_unordered(OPENING);
    let mut tasks = Vec::new();
    let patience = Duration::from_secs(120);
    let all = async {
        while let Some(task) = opening.next().await {
            tasks.push(task?);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(patience, all).await??;
    drop(opening);
    tokio::time::sleep(REST).await;
    let after = server.process().resident()?;
    for task in tasks {
        ensure!(!task.is_finished(), "a watch ended");
        task.abort();
    }
    load::close(open).await;
    Ok(each(before, after, WATCHES))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn each(before: u64, after: u64, count: u64) -> Figures {
    Figures {
        memory_each: Some(after.saturating_sub(before) as f64 / count as f64),
        server_memory: after,
        latency: Latencies::default(),
        ..Figures::default()
    }
}

/// The same load, of as many connections, on one keyspace or on many.
async fn keyspaces(
    running: &mut Running,
    times: Times,
    work: Work,
    count: usize,
) -> Result<Figures> {
    let Started::Ours(ours) = &running.started else {
        bail!("it has no keyspaces");
    };
    let ours: &Ours = ours;
    let all = Cell::keys(1024);
    let data = Data::new(all / count as u64, 1024);
    for number in 0..count {
        let client = ours.connect_to(&keyspace(number)).await?;
        load::preload(&client, &data).await?;
        load::warm(&client, &data).await?;
        client.close().await;
    }
    let next = AtomicU64::new(0);
    let clients = load::open(KEYSPACES, || {
        let number = next.fetch_add(1, Ordering::Relaxed) % count as u64;
        let name = keyspace(usize::try_from(number).unwrap_or_default());
        async move { ours.connect_to(&name).await }
    });
    let clients = clients.await?;
    let cell = Cell {
        work,
        value: 1024,
        connections: KEYSPACES,
        in_flight: 1,
    };
    let figures = load::run(&clients, ours.process().id(), cell, &data, times).await;
    load::close(clients).await;
    figures
}

fn keyspace(number: usize) -> String {
    format!("bench-{number}")
}

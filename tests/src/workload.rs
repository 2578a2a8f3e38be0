//! Concurrent clients on one keyspace of a real server, through a [`FaultProxy`], recorded and judged.
//!
//! A [`Stage`] is a server process that many runs share, each with a keyspace and a proxy of its own. [`run`] is one
//! run: for a while [`Settings::connections`] clients with two lanes each read, commit, compare and set, remove and
//! scan, while watchers follow, and a seeded plan of faults goes on; whoever holds the stage may kill the server
//! meanwhile. Then everything is healed, the watchers follow to the last commit, the store's log is read, and all is
//! judged.
//!
//! It is right with a client that reconnects by itself and with one that does not: a call that failed is taken as its
//! error says, and a client whose connection is over connects again.

mod client;
mod lane;
mod stage;
mod watcher;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage_protocol::{
    ChangeKind, CommitRecord, Epoch, KeyRange, Position, StorageExt, WatchEvent, WatchOptions,
    WatchStart,
};
use storage_protocol::{Result, Storage};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::fault_proxy::{FaultPlan, FaultProxy};
use crate::history::{
    History, Logged, Outcome, Promise, Range, Recorder, Told, Verdict, Violation, WatchStream,
    Write, judge,
};
use client::Client;
pub use stage::Stage;

/// How long watchers may take to the end once all is healed, and anything else of the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The keys of a keyspace. Few, so that clients meet.
const KEYS: [&str; 8] = ["a", "b/1", "b/2", "b/3", "c", "c/1", "d", "e"];

/// The size of a run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long clients work.
    pub length: Duration,
    /// Connections of clients, each used by two lanes at once.
    pub connections: u32,
    /// Connections of watchers.
    pub watchers: u32,
    /// The calls of a lane, at most.
    pub calls_max: u32,
    /// The time from fault to fault, about; none: no faults.
    pub pace: Option<Duration>,
}

impl Settings {
    /// What a test takes: a second, some hundred calls.
    #[must_use]
    pub fn short() -> Self {
        Self {
            length: Duration::from_secs(1),
            connections: 3,
            watchers: 3,
            calls_max: 200,
            pace: Some(Duration::from_millis(90)),
        }
    }
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Everything that was recorded.
    pub history: History,
    /// What the judges say.
    pub verdict: Verdict,
    /// Figures.
    pub figures: Figures,
}

/// Figures of one run, or of many.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Calls that were made.
    pub calls: u64,
    /// Commits that were acknowledged.
    pub committed: u64,
    /// Reads that were answered.
    pub read: u64,
    /// Commits that were refused by a check.
    pub refused: u64,
    /// Calls that had no effect.
    pub not_executed: u64,
    /// Commits of which nobody knows.
    pub unknown: u64,
    /// Of those, what the log has.
    pub unknown_in_effect: u64,
    /// Events that watches told (commits, states, marks).
    pub events: u64,
    /// Breaks of watches that the client mended by itself.
    pub continued: u64,
    /// Connections that were made again by the application.
    pub reconnects: u64,
    /// Keys whose search was given up.
    pub undecided: u64,
    /// Faults of the proxy by kind, and of the server.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Figures {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.committed += other.committed;
        self.read += other.read;
        self.refused += other.refused;
        self.not_executed += other.not_executed;
        self.unknown += other.unknown;
        self.unknown_in_effect += other.unknown_in_effect;
        self.events += other.events;
        self.continued += other.continued;
        self.reconnects += other.reconnects;
        self.undecided += other.undecided;
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }
}

/// What the clients of a run share.
#[derive(Debug)]
struct Shared {
    recorder: Recorder,
    /// The store's epoch; it has no reason to change.
    epoch: Mutex<Option<Epoch>>,
    strange: Mutex<Vec<Violation>>,
    reconnects: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// The revision of a position, whose epoch must be the store's.
    fn revision(&self, position: Position) -> u64 {
        let mut epoch = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *epoch.get_or_insert(position.epoch);
        drop(epoch);
        if first != position.epoch {
            let what = format!("the epoch was {first}, and {position} is of another");
            self.strange(Violation::new(Promise::ExactlyOnce, what));
        }
        position.revision.0
    }

    fn strange(&self, violation: Violation) {
        let mut strange = self.strange.lock().unwrap_or_else(PoisonError::into_inner);
        strange.push(violation);
    }
}

/// Makes one run and judges it. The keyspace must be new.
///
/// # Panics
/// If the server cannot be reached once all is healed.
pub async fn run(stage: &Stage, seed: u64, keyspace: &str, settings: Settings) -> Report {
    let mut random = StdRng::seed_from_u64(seed);
    let proxy = FaultProxy::start(stage.address(), random.random())
        .await
        .expect("a port for the proxy");
    let plan = match settings.pace {
        Some(pace) => FaultPlan::from_seed(seed, settings.length, pace),
        None => FaultPlan::quiet(),
    };
    let shared = Arc::new(Shared {
        recorder: Recorder::default(),
        epoch: Mutex::default(),
        strange: Mutex::default(),
        reconnects: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let client = || {
        let options = stage.options(proxy.address(), keyspace);
        Client::new(options, shared.clone())
    };
    let (finish, finishing) = watch::channel(None);
    let mut watchers = JoinSet::new();
    for number in 0..settings.watchers {
        let plan = watcher::Plan::from_random(number, &mut random);
        watchers.spawn(watcher::follow(client(), plan, finishing.clone()));
    }
    let mut lanes = JoinSet::new();
    for connection in 0..settings.connections {
        let client = client();
        for lane in [2 * connection, 2 * connection + 1] {
            let random = StdRng::seed_from_u64(random.random());
            lanes.spawn(lane::work(client.clone(), lane, random, settings.calls_max));
        }
    }
    let began = Instant::now();
    proxy.run(&plan).await;
    sleep(settings.length.saturating_sub(began.elapsed())).await;
    shared.stop.store(true, Ordering::SeqCst);
    proxy.heal();
    lanes.join_all().await;
    let log = finish_up(stage, keyspace, &shared, &finish, watchers);
    let (watches, log, log_end) = log.await;
    let history = History {
        seed,
        calls: shared.recorder.take(),
        watches,
        replica_reads: Vec::new(),
        log,
        log_end,
    };
    let figures = figures(&history, &proxy, &shared);
    let judging = tokio::task::spawn_blocking(move || (judge(&history), history));
    let (mut verdict, history) = judging.await.expect("the judges come to an end");
    let strange = std::mem::take(
        &mut *shared
            .strange
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
    );
    verdict.violations.extend(strange);
    let figures = Figures {
        undecided: verdict.undecided as u64,
        ..figures
    };
    Report {
        history,
        verdict,
        figures,
    }
}

/// Lets the watchers follow to the end, then reads the log, which so is complete for all that they told.
async fn finish_up(
    stage: &Stage,
    keyspace: &str,
    shared: &Arc<Shared>,
    finish: &watch::Sender<Option<u64>>,
    mut watchers: JoinSet<WatchStream>,
) -> (Vec<WatchStream>, Vec<Logged>, u64) {
    let direct = Client::new(stage.options(stage.address(), keyspace), shared.clone());
    let last = timeout(PATIENCE, async {
        loop {
            if let Ok(position) = direct.storage().await.sync().await {
                return shared.revision(position);
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let last = last.await.expect("the server is there again");
    finish.send_replace(Some(last));
    let mut streams = Vec::new();
    let all = async {
        while let Some(stream) = watchers.join_next().await {
            streams.push(stream.expect("a watcher comes to an end"));
        }
    };
    if timeout(PATIENCE, all).await.is_err() {
        let what = format!(
            "{} of the watchers did not come to revision {last} within {PATIENCE:?}",
            watchers.len()
        );
        shared.strange(Violation::new(Promise::Reliable, what));
    }
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    let reading = timeout(PATIENCE, async {
        loop {
            match read_log(&direct.storage().await, shared).await {
                Ok(log) => return log,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    });
    let (log, end) = reading.await.expect("the log can be read");
    direct.close().await;
    (streams, log, end)
}

/// All commits from the first on, and how far that is.
async fn read_log(storage: &impl Storage, shared: &Shared) -> Result<(Vec<Logged>, u64)> {
    let options = WatchOptions::every(WatchStart::Beginning);
    let mut watch = storage.watch(KeyRange::all(), options).await?;
    watch.request_progress(1);
    let mut log = Vec::new();
    while let Some(event) = watch.next().await? {
        match event {
            WatchEvent::Commit(record) => log.push(logged(&record)),
            WatchEvent::Progress {
                position,
                token: Some(1),
            } => return Ok((log, shared.revision(position))),
            // A break in the middle: what a watch does then is not for the log to tell.
            WatchEvent::Continuity(_) => break,
            _ => {}
        }
    }
    Err(storage_protocol::StorageError::invalid("the log broke off"))
}

fn figures(history: &History, proxy: &FaultProxy, shared: &Shared) -> Figures {
    let mut figures = Figures {
        calls: history.calls.len() as u64,
        reconnects: shared.reconnects.load(Ordering::SeqCst),
        faults: proxy.counts(),
        ..Figures::default()
    };
    for call in &history.calls {
        let count = match call.outcome {
            Outcome::Read { .. } => &mut figures.read,
            Outcome::Committed { .. } => &mut figures.committed,
            Outcome::Refused { .. } => &mut figures.refused,
            Outcome::NotExecuted { .. } => &mut figures.not_executed,
            Outcome::Unknown { .. } => &mut figures.unknown,
        };
        *count += 1;
    }
    let unknown = history
        .calls
        .iter()
        .filter(|call| matches!(call.outcome, Outcome::Unknown { .. }));
    let labels: std::collections::HashSet<String> =
        unknown.map(|call| call.id.to_string()).collect();
    let in_effect = history
        .log
        .iter()
        .filter(|commit| labels.contains(&commit.label));
    figures.unknown_in_effect = in_effect.count() as u64;
    for (_, told) in history.watches.iter().flat_map(|stream| &stream.events) {
        match told {
            Told::Commit(_) | Told::State { .. } | Told::Mark { .. } => figures.events += 1,
            Told::Continuous | Told::Resynced { .. } => figures.continued += 1,
            _ => {}
        }
    }
    figures
}

fn key_range(range: &Range) -> KeyRange {
    let start = range.from.clone();
    match &range.to {
        Some(to) => KeyRange::between(start, to.clone()),
        None => KeyRange {
            start: start.into(),
            end: None,
        },
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn logged(record: &CommitRecord) -> Logged {
    let change = |change: &storage_protocol::Change| {
        let write = match &change.kind {
            ChangeKind::Put { value, .. } => Write::Put(lane::from_stored(value)),
            ChangeKind::Removed { .. } => Write::Remove,
            ChangeKind::Signalled { bytes } => Write::Signal(text(bytes)),
        };
        (text(&change.key), write)
    };
    Logged {
        revision: record.revision.0,
        label: record.label.clone().unwrap_or_default(),
        changes: record.changes.iter().map(change).collect(),
    }
}

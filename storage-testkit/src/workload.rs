//! Concurrent clients on one keyspace of a real server, through a [`FaultProxy`], recorded and judged.
//!
//! A [`Stage`] is a server process that many runs share, each with a keyspace and a proxy of its own. [`run`] is one
//! run: for a while [`Settings::connections`] clients with two lanes each read, commit, compare and set, remove and
//! scan, while watchers follow, replicas are read and opened again, and a seeded plan of faults goes on; whoever holds
//! the stage may kill the server meanwhile. Then everything is healed, watchers and replicas follow to the last commit,
//! the store's log is read, and all is judged.
//!
//! The client reconnects by itself and repeats commits under their numbers, so a call fails where its deadline comes
//! first and nowhere else; and a break of a watch is told by the watch.

mod client;
mod copy;
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
use copy::{Copied, Copy};
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
    /// Replicas, each with a connection of its own.
    pub replicas: u32,
    /// The calls of a lane, at most.
    pub calls_max: u32,
    /// The time from fault to fault, about; none: no faults.
    pub pace: Option<Duration>,
    /// The deadline of each call. Where it is longer than all faults together, no call fails.
    pub deadline: Duration,
}

impl Settings {
    /// What a test takes: a second, some hundred calls.
    #[must_use]
    pub fn short() -> Self {
        Self {
            length: Duration::from_secs(1),
            connections: 3,
            watchers: 3,
            replicas: 2,
            calls_max: 200,
            pace: Some(Duration::from_millis(90)),
            deadline: Duration::from_millis(700),
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
    /// Breaks of watches over which nothing was missed.
    pub continuous: u64,
    /// Breaks of watches over which steps were left out.
    pub resynced: u64,
    /// Watches that ended with an error, and were opened again by the application.
    pub reopened: u64,
    /// Sockets that clients made by themselves after the first.
    pub reconnects: u64,
    /// Sessions that could not be resumed.
    pub replaced: u64,
    /// Connections that were over for good, and made again by the application.
    pub connected_anew: u64,
    /// Commits that came again and were answered with what they did the first time. Of a stage, not of a run.
    pub repeated: u64,
    /// Reads of replicas, and states at their changes.
    pub replica_reads: u64,
    /// Changes that replicas told.
    pub replica_batches: u64,
    /// Commits that were read from a replica after waiting for them.
    pub own_writes: u64,
    /// Replicas that were opened again from their folders.
    pub replicas_reopened: u64,
    /// Times that a replica went on from a position.
    pub replicas_resumed: u64,
    /// Times that a replica fetched everything.
    pub replica_full_passes: u64,
    /// Breaks of the watches of replicas.
    pub replica_breaks: u64,
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
        self.continuous += other.continuous;
        self.resynced += other.resynced;
        self.reopened += other.reopened;
        self.reconnects += other.reconnects;
        self.replaced += other.replaced;
        self.connected_anew += other.connected_anew;
        self.repeated += other.repeated;
        self.replica_reads += other.replica_reads;
        self.replica_batches += other.replica_batches;
        self.own_writes += other.own_writes;
        self.replicas_reopened += other.replicas_reopened;
        self.replicas_resumed += other.replicas_resumed;
        self.replica_full_passes += other.replica_full_passes;
        self.replica_breaks += other.replica_breaks;
        self.undecided += other.undecided;
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }

    /// Of the commits that had an effect or may have had one, in percent, those of which nobody knows.
    #[must_use]
    pub fn unknown_percent(&self) -> f64 {
        self.unknown as f64 * 100.0 / (self.committed + self.unknown).max(1) as f64
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
    replaced: AtomicU64,
    connected_anew: AtomicU64,
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

    fn epoch(&self) -> Option<Epoch> {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
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
        replaced: AtomicU64::new(0),
        connected_anew: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let client = || {
        let options = stage.options(proxy.address(), keyspace);
        Client::new(options.request_timeout(settings.deadline), shared.clone())
    };
    let (finish, finishing) = watch::channel(None);
    let mut watchers = JoinSet::new();
    for number in 0..settings.watchers {
        let plan = watcher::Plan::from_random(number, &mut random);
        watchers.spawn(watcher::follow(client(), plan, finishing.clone()));
    }
    let mut copies = JoinSet::new();
    for number in 0..settings.replicas {
        let copy = Copy::new(client(), number, keyspace, &mut random);
        copies.spawn(copy.work());
    }
    let mut lanes = JoinSet::new();
    let mut workers = Vec::new();
    for connection in 0..settings.connections {
        let client = client();
        workers.push(client.clone());
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
    let copies = copies.join_all().await;
    let ended = finish_up(stage, keyspace, &shared, &finish, watchers, copies);
    let (watches, copied, log, log_end) = ended.await;
    for worker in workers {
        worker.close().await;
    }
    let mut figures = Figures {
        faults: proxy.counts(),
        ..Figures::default()
    };
    let mut replica_reads = Vec::new();
    for copied in copied {
        figures.replica_batches += copied.batches;
        figures.own_writes += copied.own_writes;
        figures.replicas_reopened += copied.reopened;
        figures.replicas_resumed += copied.resumed;
        figures.replica_full_passes += copied.full_passes;
        figures.replica_breaks += copied.breaks;
        replica_reads.extend(copied.reads);
    }
    let history = History {
        seed,
        calls: shared.recorder.take(),
        watches,
        replica_reads,
        log,
        log_end,
    };
    let figures = with_counts(figures, &history, &shared);
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

/// Lets watchers and replicas follow to the end, then reads the log, which so is complete for all that they told.
async fn finish_up(
    stage: &Stage,
    keyspace: &str,
    shared: &Arc<Shared>,
    finish: &watch::Sender<Option<u64>>,
    mut watchers: JoinSet<WatchStream>,
    copies: Vec<Copy>,
) -> (Vec<WatchStream>, Vec<Copied>, Vec<Logged>, u64) {
    let direct = Client::new(stage.options(stage.address(), keyspace), shared.clone());
    let last = timeout(PATIENCE, async {
        loop {
            if let Ok(position) = direct.storage().await.sync().await {
                shared.revision(position);
                return position;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let end = last.await.expect("the server is there again");
    let last = end.revision.0;
    finish.send_replace(Some(last));
    let copies = copies.into_iter().map(|copy| copy.finish(end.epoch, last));
    let copied = futures_util::future::join_all(copies).await;
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
    (streams, copied, log, end)
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

fn with_counts(figures: Figures, history: &History, shared: &Shared) -> Figures {
    let mut figures = Figures {
        calls: history.calls.len() as u64,
        reconnects: shared.reconnects.load(Ordering::SeqCst),
        replaced: shared.replaced.load(Ordering::SeqCst),
        connected_anew: shared.connected_anew.load(Ordering::SeqCst),
        replica_reads: history.replica_reads.len() as u64,
        ..figures
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
            Told::Continuous => figures.continuous += 1,
            Told::Resynced { .. } => figures.resynced += 1,
            Told::Broke { .. } => figures.reopened += 1,
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

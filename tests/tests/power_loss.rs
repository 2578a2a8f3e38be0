//! Power loss: a real server under load is cut off at any moment, and what it had not synced is taken from its files.
//!
//! A [`Machine`] goes on over many cuts with one data folder. In each cycle writers commit and a watch is told, the power
//! fails, and the store that comes up again is judged: what is there must be a prefix of what was committed; with `sync`
//! durability all that anyone saw, with `os` all of it up to the last mark, and whoever saw more must be told.
//!
//! `POWER_LOSS_CYCLES` (default 50 for each durability) and `POWER_LOSS_SEED` (default random, printed) change a run; the
//! seed gives the same moments and cuts, as far as threads and disks do the same. `scripts/power-loss` runs more.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{FallocateFlags, fallocate};
use storage_client::RemoteStorage;
use storage_protocol::{
    Batch, CommitOptions, CommitRecord, Epoch, KeyRange, KeyState, Position, Revision, ScanOptions,
    Storage, StorageError, StorageExt, Watch, WatchEvent, WatchOptions, WatchStart,
};
use storage_testkit::harness::{Certificates, Launch, ServerProcess, connect};
use storage_testkit::power::{Cut, Disk, Names, Tail};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Commits in flight at once.
const WRITERS: u32 = 8;

/// Connections that they share.
const PRODUCERS: u32 = 2;

/// How long anything may take that only has to answer.
const PATIENCE: Duration = Duration::from_secs(20);

fn from_env<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn cycles() -> u32 {
    from_env("POWER_LOSS_CYCLES").unwrap_or(50)
}

fn seed() -> u64 {
    from_env("POWER_LOSS_SEED").unwrap_or_else(rand::random)
}

/// A commit by its place: cycle, writer, and the writer's number in the cycle.
type Name = (u32, u32, u32);

fn text((cycle, writer, number): Name) -> String {
    format!("c{cycle:05}/{writer}/{number:06}")
}

fn parse(text: &[u8]) -> Option<Name> {
    let text = std::str::from_utf8(text).ok()?.strip_prefix('c')?;
    let mut words = text.split('/');
    let mut number = || words.next()?.parse().ok();
    Some((number()?, number()?, number()?))
}

/// Two keys of its own, and one that all commits of a writer replace: an older state of it would show a hole.
fn batch(name: Name) -> Batch {
    let (_, writer, number) = name;
    let text = text(name);
    // Now and then one that RocksDB keeps in a blob.
    let length = if number % 50 == 7 { 6000 } else { 40 };
    let value = Bytes::from(vec![b'v'; length]);
    Batch::new()
        .put(format!("{text}/a"), value.clone())
        .put(format!("{text}/b"), value)
        .put(format!("head/{writer}"), text)
}

/// How a cycle ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Killed after so long.
    After(Duration),
    /// Killed before the n-th sync, rename or removal, or after so long.
    Before(u64, Duration),
    /// Killed after so long without a commit.
    Idle(Duration),
    /// Asked to end after so long, and killed before the n-th such call, if there is a number.
    Orderly(Duration, Option<u64>),
}

/// What was seen of a cycle.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: BTreeMap<Name, Position>,
    told: Told,
}

/// What a watch was told, of the present cycle.
#[derive(Debug, Default)]
struct Told {
    commits: BTreeMap<Name, Revision>,
    /// To go on from.
    position: Option<Position>,
    broken: Vec<String>,
}

impl Told {
    fn take(&mut self, record: &CommitRecord, epoch: Epoch) {
        let names: BTreeSet<_> = record
            .changes
            .iter()
            .filter_map(|c| parse(&c.key))
            .collect();
        let (Some(&name), 1, 3) = (names.first(), names.len(), record.changes.len()) else {
            self.broken
                .push(format!("a commit was told as {:?}", record.changes));
            return;
        };
        let revision = record.revision;
        if self.position.is_some_and(|last| revision <= last.revision) {
            let last = self.position;
            self.broken
                .push(format!("{name:?} was told at {revision}, after {last:?}"));
        }
        if self.commits.insert(name, revision).is_some() {
            self.broken.push(format!("{name:?} was told twice"));
        }
        self.position = Some(Position { epoch, revision });
    }
}

/// What a run found.
#[derive(Debug, Default)]
struct Findings {
    cycles: u32,
    cut_starts: u32,
    clean_ends: u32,
    acknowledged: usize,
    survived: usize,
    unanswered: usize,
    /// Commits that someone saw and that are gone.
    lost: usize,
    forks: u32,
    told_of_fork: u32,
    silent_forks: u32,
    cut: Cut,
    /// Broken promises, in words. With this many the run ends.
    broken: Vec<String>,
}

/// A mark as found after a cut.
#[derive(Clone, Copy, Debug)]
struct Mark {
    revision: Revision,
    os: bool,
    clean: bool,
}

impl Mark {
    /// Whether the next start must take it that something behind it may be lost.
    fn forks(&self) -> bool {
        self.os && !self.clean
    }
}

struct Machine {
    durability: &'static str,
    disk: Disk,
    folder: TempDir,
    certificates: Certificates,
    runtime: Runtime,
    rng: StdRng,
    boots: u32,
    lies: Option<&'static str>,
    /// Of the last process that listened.
    epoch: Option<Epoch>,
    /// Found after each cut since then.
    marks: Vec<Mark>,
    /// Everything that came through all cuts so far.
    history: BTreeMap<Name, Revision>,
    heads: BTreeMap<u32, Name>,
    seen: Arc<Mutex<Seen>>,
    findings: Findings,
}

impl Machine {
    fn new(durability: &'static str, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Each start fills the ring from the log: with the usual size, that soon is most of a cycle.
        let config = "[engine]\nring_bytes = '1 MiB'\n";
        fs::write(folder.path().join("server.toml"), config).unwrap();
        Self {
            durability,
            disk: Disk::new(folder.path()).unwrap(),
            folder,
            certificates: Certificates::issue(&["producer", "consumer"]),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            rng: StdRng::seed_from_u64(seed),
            boots: 0,
            lies: None,
            epoch: None,
            marks: Vec::new(),
            history: BTreeMap::new(),
            heads: BTreeMap::new(),
            seen: Arc::default(),
            findings: Findings::default(),
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("server.txt")
    }

    fn launch(&self) -> Launch {
        let certificates = self.certificates.dir().display().to_string();
        let data = self.disk.data().display().to_string();
        let config = self.folder.path().join("server.toml");
        let config = config.display().to_string();
        let arguments = [
            "--config",
            &config,
            "--listen",
            "127.0.0.1:0",
            "--certs",
            &certificates,
            "--data",
            &data,
            "--durability",
            self.durability,
        ];
        let mut environment = self.disk.environment();
        let lies = self.lies.map(str::to_owned);
        environment.extend(lies.map(|suffix| ("POWER_LOSS_LIES".to_owned(), suffix)));
        Launch {
            arguments: arguments.map(str::to_owned).to_vec(),
            environment,
            log: Some(self.log()),
            ..Launch::default()
        }
    }

    fn broken(&mut self, what: String) {
        self.findings.broken.push(what);
    }

    /// Runs so many cycles, or until a promise is found broken.
    fn run(&mut self, cycles: u32) {
        let runtime = self.runtime.handle().clone();
        let _entered = runtime.enter();
        let Some(mut server) = self.start() else {
            return;
        };
        for cycle in 0..cycles {
            let Some(watch) = self.judge(&server, cycle) else {
                return;
            };
            let end = self.plan();
            self.load(&mut server, cycle, end, watch);
            drop(server);
            self.cut();
            self.cut_a_start();
            let Some(again) = self.start() else {
                return;
            };
            server = again;
            self.findings.cycles += 1;
        }
        if self.judge(&server, cycles).is_some() {
            self.judge_all(&server);
        }
    }

    fn plan(&mut self) -> End {
        let rng = &mut self.rng;
        let short = Duration::from_millis(rng.random_range(30..=100));
        // Only after a second there is a mark in the middle of the load.
        let long = Duration::from_millis(rng.random_range(900..=1300));
        match rng.random_range(0..24) {
            0 => End::Orderly(short, None),
            1 => End::Orderly(short, Some(rng.random_range(1..=12))),
            2 => End::After(long),
            3 => End::Before(rng.random_range(1..=6), Duration::from_millis(2300)),
            4 => End::Idle(long),
            5..13 => End::Before(rng.random_range(1..=60), short),
            _ => End::After(short),
        }
    }

    /// Takes from the files what was not synced, and makes it another boot.
    fn cut(&mut self) {
        let tail = match self.rng.random_range(0..4) {
            0 => Tail::Prefix,
            1 => Tail::Torn,
            _ => Tail::Lost,
        };
        let names = match self.rng.random_range(0..4) {
            0 => Names::Present,
            _ => Names::AsSynced,
        };
        self.findings.cut += self.disk.cut(tail, names, &mut self.rng).unwrap();
        self.boots += 1;
        let path = self.disk.data().join("SYNCED");
        let Ok(text) = fs::read_to_string(&path) else {
            return;
        };
        let words: Vec<_> = text.trim_end().split(' ').collect();
        let [revision, time, durability, end, _boot, inode, birth] = words[..] else {
            // It is for the server to refuse this.
            return;
        };
        let boot = self.boots;
        fs::write(
            &path,
            format!("{revision} {time} {durability} {end} boot-{boot} {inode} {birth}\n"),
        )
        .unwrap();
        self.disk.settle().unwrap();
        self.marks.push(Mark {
            revision: Revision(revision.parse().unwrap()),
            os: durability == "os",
            clean: end == "clean",
        });
    }

    /// Now and then the power fails again while the server starts.
    fn cut_a_start(&mut self) {
        while self.rng.random_range(0..8) == 0 {
            self.disk.kill_at(self.rng.random_range(1..=60)).unwrap();
            drop(ServerProcess::launch(self.launch()));
            self.cut();
            self.findings.cut_starts += 1;
        }
    }

    /// Starts the server to stay.
    fn start(&mut self) -> Option<ServerProcess> {
        match ServerProcess::launch(self.launch()) {
            Ok(server) => Some(server),
            Err(status) => {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let said = log.lines().rev().take(3).collect::<Vec<_>>().join("\n");
                self.broken(format!("the server does not start ({status:?}): {said}"));
                None
            }
        }
    }

    /// Commits and is told, until the end.
    fn load(&mut self, server: &mut ServerProcess, cycle: u32, end: End, watch: Followed) {
        let (storage, mut watch) = watch;
        let epoch = self.epoch.unwrap_or_default();
        let mut tasks: Vec<JoinHandle<()>> = Vec::new();
        let mut producers = Vec::new();
        for _ in 0..PRODUCERS {
            let connecting = connect(server, &self.certificates, "producer", "model");
            producers.push(Arc::new(self.runtime.block_on(connecting).unwrap()));
        }
        let writers = match end {
            End::Idle(_) => 0,
            _ => WRITERS,
        };
        for writer in 0..writers {
            let producer = producers[(writer % PRODUCERS) as usize].clone();
            let seen = self.seen.clone();
            tasks.push(self.runtime.spawn(async move {
                for number in 0.. {
                    let name = (cycle, writer, number);
                    let Ok(position) = producer.commit(batch(name), CommitOptions::default()).await
                    else {
                        return;
                    };
                    seen.lock().unwrap().acknowledged.insert(name, position);
                }
            }));
        }
        let seen = self.seen.clone();
        tasks.push(self.runtime.spawn(async move {
            while let Ok(Some(event)) = watch.next().await {
                if let WatchEvent::Commit(record) = event {
                    seen.lock().unwrap().told.take(&record, epoch);
                }
            }
        }));
        match end {
            End::After(time) | End::Idle(time) => std::thread::sleep(time),
            End::Before(calls, time) => {
                self.disk.kill_at(calls).unwrap();
                server.wait(time);
            }
            End::Orderly(time, calls) => {
                std::thread::sleep(time);
                if let Some(calls) = calls {
                    self.disk.kill_at(calls).unwrap();
                }
                server.terminate();
                self.findings.clean_ends += 1;
            }
        }
        server.kill();
        // What was on its way when the power failed may still be read.
        std::thread::sleep(Duration::from_millis(5));
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            let _ = self.runtime.block_on(task);
        }
        drop((storage, producers));
    }

    /// Looks at what came up, with the cycles before this one behind it; a watch that is up to date.
    fn judge(&mut self, server: &ServerProcess, cycle: u32) -> Option<Followed> {
        let connecting = connect(server, &self.certificates, "consumer", "model");
        let storage = self.runtime.block_on(connecting).unwrap();
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        let (marks, epoch) = (std::mem::take(&mut self.marks), self.epoch);
        let mut verdict = Verdict {
            storage: &storage,
            durability: self.durability,
            last_cycle: cycle.checked_sub(1),
            epoch,
            marks,
            history: &mut self.history,
            heads: &mut self.heads,
            findings: &mut self.findings,
        };
        let judging = tokio::time::timeout(PATIENCE, verdict.find(seen));
        let found = self.runtime.block_on(judging);
        let (position, watch, told) = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                self.broken(format!("while judging: {error}"));
                return None;
            }
            Err(_) => {
                self.broken("judging hangs".to_owned());
                return None;
            }
        };
        self.epoch = Some(position.epoch);
        // The next cycle begins with what it has to go on from.
        self.seen.lock().unwrap().told.position = told.position;
        self.findings.broken.is_empty().then_some((storage, watch))
    }

    /// Everything, of all cycles.
    fn judge_all(&mut self, server: &ServerProcess) {
        let connecting = connect(server, &self.certificates, "consumer", "model");
        let storage = self.runtime.block_on(connecting).unwrap();
        let there = self.runtime.block_on(commits(&storage, "c"));
        match there {
            Ok((there, mut broken)) => {
                if there != self.history {
                    broken.push("what came through one cut is gone after another".to_owned());
                }
                self.findings.broken.extend(broken);
            }
            Err(error) => self.broken(format!("a scan of all: {error}")),
        }
    }

    fn report(&self, seed: u64, began: Instant) {
        let f = &self.findings;
        println!(
            "power loss, {}: {} cycles in {} s (and {} cut starts, {} orderly ends), seed {seed}; {} commits \
             acknowledged, {} survived ({} of them unanswered), {} seen and lost; {} forks, {} of which a watch was told, \
             {} silent; cut {} bytes ({} of RocksDB's log), {} files; spared {} bytes; brought back {} files",
            self.durability,
            f.cycles,
            began.elapsed().as_secs(),
            f.cut_starts,
            f.clean_ends,
            f.acknowledged,
            f.survived,
            f.unanswered,
            f.lost,
            f.forks,
            f.told_of_fork,
            f.silent_forks,
            f.cut.bytes,
            f.cut.log_bytes,
            f.cut.files,
            f.cut.spared_bytes,
            f.cut.restored,
        );
    }

    /// Fails if a promise was broken, and keeps the evidence then.
    fn check(mut self, seed: u64) {
        if self.findings.broken.is_empty() {
            return;
        }
        self.folder.disable_cleanup(true);
        panic!(
            "{}: cycle {}, POWER_LOSS_SEED={seed}, see {}: {:#?}",
            self.durability,
            self.findings.cycles,
            self.folder.path().display(),
            self.findings.broken
        );
    }
}

/// A watch, with the connection that it lives on.
type Followed = (RemoteStorage, Watch);

/// The commits whose keys begin so: each with both halves, at one revision; and what is wrong with others.
async fn commits(
    storage: &dyn Storage,
    prefix: &str,
) -> Result<(BTreeMap<Name, Revision>, Vec<String>), StorageError> {
    let range = KeyRange::prefix(prefix.to_owned());
    let options = ScanOptions {
        keys_only: true,
        ..ScanOptions::default()
    };
    let scan = storage.scan(range, options);
    let mut halves: BTreeMap<Name, Vec<Revision>> = BTreeMap::new();
    for item in scan.await?.collect().await? {
        if let (Some(name), KeyState::Live(entry)) = (parse(&item.key), item.state) {
            halves.entry(name).or_default().push(entry.revision);
        }
    }
    let mut whole = BTreeMap::new();
    let mut broken = Vec::new();
    for (name, revisions) in halves {
        match revisions[..] {
            [a, b] if a == b => drop(whole.insert(name, a)),
            _ => broken.push(format!("half a commit: {name:?} at {revisions:?}")),
        }
    }
    Ok((whole, broken))
}

/// The look at a store after a cut.
struct Verdict<'a> {
    storage: &'a RemoteStorage,
    durability: &'static str,
    last_cycle: Option<u32>,
    epoch: Option<Epoch>,
    marks: Vec<Mark>,
    history: &'a mut BTreeMap<Name, Revision>,
    heads: &'a mut BTreeMap<u32, Name>,
    findings: &'a mut Findings,
}

impl Verdict<'_> {
    async fn find(&mut self, seen: Seen) -> Result<(Position, Watch, Told), StorageError> {
        let Seen {
            acknowledged,
            mut told,
        } = seen;
        let mut broken = std::mem::take(&mut told.broken);
        let position = self.storage.sync().await?;
        let there = match self.last_cycle {
            Some(cycle) => {
                let prefix = format!("c{cycle:05}/");
                let (there, halves) = commits(self.storage, &prefix).await?;
                broken.extend(halves);
                there
            }
            None => BTreeMap::new(),
        };
        let fork = self.judge_epoch(position, &mut broken);

        // What someone saw and what is there.
        let mut saw: BTreeMap<Name, Revision> = told.commits.clone();
        for (name, position) in &acknowledged {
            let revision = position.revision;
            if Some(position.epoch) != self.epoch {
                broken.push(format!("{name:?} was acknowledged at {position}"));
            }
            if *saw.entry(*name).or_insert(revision) != revision {
                broken.push(format!("{name:?} was told and acknowledged differently"));
            }
        }
        let last = there.values().max().copied().unwrap_or(Revision::ZERO);
        let mut lost = Vec::new();
        for (name, revision) in &saw {
            match there.get(name) {
                Some(found) if found == revision => {}
                Some(found) => broken.push(format!("{name:?} was at {revision}, is at {found}")),
                None => lost.push((*name, *revision)),
            }
        }
        // Behind a mark that forks the history, those of later starts are of another one.
        let forks = self.marks.iter().position(Mark::forks);
        let own_marks = forks.map_or(&self.marks[..], |place| &self.marks[..=place]);
        for (name, revision) in &lost {
            if *revision < last {
                broken.push(format!(
                    "a hole: {name:?} at {revision} is gone, {last} is there"
                ));
            }
            if let Some(mark) = own_marks.iter().find(|mark| *revision <= mark.revision) {
                broken.push(format!("{name:?} at {revision} is gone, below {mark:?}"));
            }
        }
        if self.durability == "sync" && !lost.is_empty() {
            broken.push(format!("{} commits are lost: {lost:?}", lost.len()));
        }
        self.judge_order(&there, &mut broken).await?;
        self.findings.lost += lost.len();
        self.findings.acknowledged += acknowledged.len();
        self.findings.survived += there.len();
        self.findings.unanswered += there.keys().filter(|name| !saw.contains_key(name)).count();

        // Who saw what is lost, or is not sure to be kept, is told.
        if let (Some(fork), Some(epoch)) = (fork, self.epoch) {
            let ends = lost.first().into_iter().chain(lost.last());
            let beyond = there.values().filter(|revision| **revision > fork).max();
            for revision in ends.map(|(_, revision)| revision).chain(beyond) {
                let position = Position {
                    epoch,
                    revision: *revision,
                };
                self.expect_fork(position, fork, &mut broken).await;
            }
        } else if let (Some((name, revision)), "os") = (lost.first(), self.durability) {
            self.findings.silent_forks += 1;
            broken.push(format!("{name:?} at {revision} is lost, and no fork tells"));
        }

        // The watch goes on from where it was.
        let mut from = told.position;
        if let (Some(fork), Some(at)) = (fork, from)
            && at.revision > fork
        {
            if self.expect_fork(at, fork, &mut broken).await {
                self.findings.told_of_fork += 1;
            }
            told.commits.retain(|_, revision| *revision <= fork);
            let back = Position {
                revision: fork,
                ..at
            };
            (from, told.position) = (Some(back), Some(back));
        }
        let start = from.map_or(WatchStart::Beginning, WatchStart::After);
        let watching = self
            .storage
            .watch(KeyRange::all(), WatchOptions::every(start));
        let mut watch = watching.await?;
        watch.request_progress(1);
        loop {
            match watch.next().await? {
                Some(WatchEvent::Commit(record)) => told.take(&record, position.epoch),
                Some(WatchEvent::Progress {
                    position: mark,
                    token: Some(1),
                }) => {
                    told.position = Some(mark);
                    break;
                }
                // Nobody asked for it: it has caught up.
                Some(WatchEvent::Progress {
                    position: mark,
                    token: None,
                }) => told.position = Some(mark),
                other => {
                    broken.push(format!("a watch tells {other:?}"));
                    break;
                }
            }
        }
        broken.append(&mut told.broken);
        if told.commits != there {
            let differ = |(name, revision): &(&Name, &Revision)| there.get(name) != Some(revision);
            let more: Vec<_> = told.commits.iter().filter(differ).take(3).collect();
            let differ =
                |(name, revision): &(&Name, &Revision)| told.commits.get(name) != Some(revision);
            let less: Vec<_> = there.iter().filter(differ).take(3).collect();
            broken.push(format!(
                "the watch was told {more:?} and more, but not {less:?}"
            ));
        }
        self.history.extend(there);
        self.findings.broken.extend(broken);
        Ok((position, watch, told))
    }

    /// Whether the history forked where it must, and only then; where.
    fn judge_epoch(&mut self, position: Position, broken: &mut Vec<String>) -> Option<Revision> {
        let epoch = self.epoch?;
        let mut unsure = self.marks.iter().filter(|mark| mark.forks());
        let fork = unsure.next().map(|mark| mark.revision);
        if (position.epoch != epoch) != fork.is_some() {
            broken.push(format!(
                "the epoch was {epoch}, now {position}; marks {:?}",
                self.marks
            ));
        }
        self.findings.forks += u32::from(position.epoch != epoch);
        fork
    }

    /// Whether a position of the history before is refused as it must be.
    async fn expect_fork(
        &mut self,
        position: Position,
        fork: Revision,
        broken: &mut Vec<String>,
    ) -> bool {
        let options = WatchOptions::every(WatchStart::After(position));
        match self.storage.watch(KeyRange::all(), options).await {
            Err(StorageError::EpochChanged { fork: found, .. }) if found == fork => return true,
            Err(error) => broken.push(format!("{position} is beyond {fork}: {error}")),
            Ok(_) => {
                self.findings.silent_forks += 1;
                broken.push(format!("{position} is taken, beyond the fork at {fork}"));
            }
        }
        false
    }

    /// Each writer's commits are there from the first without a gap, and its head is the last of them.
    async fn judge_order(
        &mut self,
        there: &BTreeMap<Name, Revision>,
        broken: &mut Vec<String>,
    ) -> Result<(), StorageError> {
        for writer in 0..WRITERS {
            let mine = there.iter().filter(|((_, w, _), _)| *w == writer);
            let mine: Vec<_> = mine.collect();
            for (place, ((_, _, number), _)) in (0u32..).zip(&mine) {
                if *number != place {
                    broken.push(format!("writer {writer}: {number} is there, not {place}"));
                    break;
                }
            }
            if !mine.is_sorted_by_key(|(_, revision)| **revision) {
                broken.push(format!("writer {writer}: out of order"));
            }
            if let Some((name, _)) = mine.last() {
                self.heads.insert(writer, **name);
            }
            let head = self
                .storage
                .get_one(format!("head/{writer}").into())
                .await?;
            let found = head.as_ref().and_then(|head| parse(&head.value));
            let expected = self.heads.get(&writer).copied();
            if found != expected {
                broken.push(format!(
                    "the head of {writer} is {found:?}, not {expected:?}"
                ));
            }
            let revision = expected.and_then(|name| there.get(&name));
            if let (Some(head), Some(revision)) = (head, revision)
                && head.revision != *revision
            {
                broken.push(format!("the head of {writer} is not of its commit"));
            }
        }
        Ok(())
    }
}

#[test]
fn with_sync_durability_a_power_cut_loses_nothing_that_anyone_saw() {
    let (seed, began) = (seed(), Instant::now());
    let mut machine = Machine::new("sync", seed);
    machine.run(cycles());
    machine.report(seed, began);
    let found = &machine.findings;
    assert!(!found.broken.is_empty() || (found.lost == 0 && found.forks == 0));
    // The harness cuts for real: what was being written is gone.
    assert!(!found.broken.is_empty() || found.cycles < 50 || found.cut.log_bytes > 0);
    machine.check(seed);
}

#[test]
fn with_os_durability_a_power_cut_leaves_a_prefix_and_whoever_saw_more_is_told() {
    let (seed, began) = (seed(), Instant::now());
    let mut machine = Machine::new("os", seed);
    machine.run(cycles());
    machine.report(seed, began);
    let found = &machine.findings;
    assert!(!found.broken.is_empty() || found.cycles < 50 || (found.lost > 0 && found.forks > 0));
    machine.check(seed);
}

/// What the next test runs in a process of its own, with `power-loss` loaded into it.
#[test]
fn as_a_process_that_writes() {
    let Some(data) = std::env::var_os("POWER_LOSS_TEST_DATA").map(PathBuf::from) else {
        return;
    };
    let append = |name: &str, text: &str| {
        let file = File::options()
            .create(true)
            .append(true)
            .open(data.join(name));
        let mut file = file.unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    };
    let sync_names = |folder: &Path| File::open(folder).unwrap().sync_all().unwrap();
    // As RocksDB does: room beyond the length, which no one sees.
    let file = append("appended", "synced");
    let room = FallocateFlags::KEEP_SIZE;
    // Not every file system can.
    let _ = fallocate(&file, room, 0, 1 << 20);
    file.sync_data().unwrap();
    append("appended", " and more");
    append("nameless", "synced").sync_all().unwrap();
    append("never", "synced");
    append("replaced", "old").sync_all().unwrap();
    append("removed", "old").sync_all().unwrap();
    append("moved", "old").sync_all().unwrap();
    fs::create_dir(data.join("inner")).unwrap();
    fs::rename(data.join("nameless"), data.join("nameless.away")).unwrap();
    sync_names(&data);
    fs::rename(data.join("nameless.away"), data.join("nameless")).unwrap();
    append("fresh", "new").sync_all().unwrap();
    fs::rename(data.join("fresh"), data.join("replaced")).unwrap();
    fs::remove_file(data.join("removed")).unwrap();
    fs::rename(data.join("moved"), data.join("inner/moved")).unwrap();
    append("late", "synced, but not its name")
        .sync_all()
        .unwrap();
    std::process::abort();
}

#[test]
fn what_was_synced_is_kept_and_nothing_else() {
    for (tail, names) in [
        (Tail::Lost, Names::AsSynced),
        (Tail::Prefix, Names::AsSynced),
        (Tail::Lost, Names::Present),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path()).unwrap();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "as_a_process_that_writes"]);
        command.envs(disk.environment());
        command.env("POWER_LOSS_TEST_DATA", disk.data());
        let ended = command.output().unwrap();
        assert!(!ended.status.success(), "{ended:?}");
        let cut = disk
            .cut(tail, names, &mut StdRng::seed_from_u64(1))
            .unwrap();
        let read = |name: &str| fs::read_to_string(disk.data().join(name)).ok();
        let text = |text: &str| Some(text.to_owned());
        let appended = read("appended").unwrap();
        match tail {
            Tail::Lost => assert_eq!(appended, "synced"),
            Tail::Prefix | Tail::Torn => assert!("synced and more".starts_with(&appended)),
        }
        if names == Names::AsSynced {
            assert_eq!(read("nameless.away"), text("synced"));
            assert_eq!(read("nameless"), None);
            assert_eq!(read("replaced"), text("old"));
            assert_eq!(read("removed"), text("old"));
            assert_eq!((read("moved"), read("inner/moved")), (text("old"), None));
            assert_eq!((read("fresh"), read("late")), (None, None));
            // Two replaced or removed files are back, and the name of two new ones is gone.
            assert_eq!((cut.restored, cut.files), (2, 2));
        } else {
            assert_eq!((read("replaced"), read("removed")), (text("new"), None));
            assert_eq!(read("inner/moved"), text("old"));
            assert_eq!(read("late"), text("synced, but not its name"));
        }
        if tail == Tail::Lost {
            // The name was synced, the bytes were not.
            assert_eq!(read("never"), text(""));
            let new_files = "new".len() + "synced, but not its name".len();
            let gone = " and more".len() + "synced".len();
            let gone = gone
                + if names == Names::AsSynced {
                    new_files
                } else {
                    0
                };
            assert_eq!(cut.bytes, gone as u64);
        }
        // All that is left counts as on disk: nothing more can be cut.
        let again = disk.cut(Tail::Lost, Names::AsSynced, &mut StdRng::seed_from_u64(1));
        assert_eq!(again.unwrap(), Cut::default());
    }
}

/// A fork leaves rows of sessions to be forgotten at the start, before anything else is committed.
#[test]
fn what_a_start_forgets_is_on_disk_before_a_mark_counts_it() {
    let seed = seed();
    let mut machine = Machine::new("os", seed);
    let runtime = machine.runtime.handle().clone();
    let _entered = runtime.enter();
    // Behind a mark that counts what stands in the log by then, and another.
    let two_marks = Duration::from_millis(2_200);
    let mut server = machine.start().unwrap();
    let connecting = connect(&server, &machine.certificates, "producer", "model");
    let producer = runtime.block_on(connecting).unwrap();
    for number in 0..20 {
        let committing = producer.commit(batch((0, 0, number)), CommitOptions::default());
        runtime.block_on(committing).unwrap();
    }
    std::thread::sleep(two_marks);
    server.kill();
    machine.cut();
    machine.durability = "sync";
    let mut server = machine.start().unwrap();
    std::thread::sleep(two_marks);
    server.kill();
    let disk = &machine.disk;
    disk.cut(Tail::Lost, Names::AsSynced, &mut machine.rng)
        .unwrap();
    drop(machine.start());
    machine.check(seed);
}

#[test]
fn a_store_whose_folder_the_server_made_does_not_vanish_whole() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(folder.path()).unwrap();
    let certificates = Certificates::issue(&["producer"]);
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let start = || {
        let data = disk.data().join("of/a/program").display().to_string();
        let certificates = certificates.dir().display().to_string();
        let arguments = ["--listen", "127.0.0.1:0", "--certs", &certificates];
        let arguments = [&arguments[..], &["--data", &data]].concat();
        let launch = Launch {
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            environment: disk.environment(),
            ..Launch::default()
        };
        ServerProcess::launch(launch).unwrap()
    };
    let open = |server: &ServerProcess| {
        let connecting = connect(server, &certificates, "producer", "model");
        runtime.block_on(connecting).unwrap()
    };
    let mut server = start();
    let storage = open(&server);
    let putting = storage.put("k".into(), "v".into());
    let position = runtime.block_on(putting).unwrap();
    server.kill();
    disk.cut(
        Tail::Lost,
        Names::AsSynced,
        &mut StdRng::seed_from_u64(seed()),
    )
    .unwrap();
    let server = start();
    let found = runtime.block_on(open(&server).get_one("k".into())).unwrap();
    assert_eq!(
        found.map(|entry| entry.revision),
        Some(position.revision),
        "what was acknowledged is gone"
    );
}

#[test]
fn a_disk_that_only_says_that_it_synced_is_found_out() {
    let seed = seed();
    let mut machine = Machine::new("sync", seed);
    machine.lies = Some(".log");
    machine.run(20);
    // Teeth: acknowledged commits are gone, or the server itself found that they are.
    assert!(
        !machine.findings.broken.is_empty(),
        "seed {seed}: {:?}",
        machine.findings
    );
}

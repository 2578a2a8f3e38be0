//! Ten thousand watches: what they cost while they rest, how fast all of them resume, and one that was paused.
//!
//! Every watch checks that it is told its own commits, each once and in order; a cell that prints a figure was right.

use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_protocol::{
    ChangeKind, Epoch, KeyRange, Storage, StorageExt, WatchEvent, WatchOptions,
};
use storage_testkit::crowd::{Crowd, write};
use storage_testkit::harness::{Certificates, ServerProcess, connect};
use storage_testkit::raw::metric;
use tempfile::TempDir;

const WATCHES: u64 = 10_000;
/// Connections that the watches are spread over: none may have more than 10,000.
const CONNECTIONS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(120);
const MIB: f64 = (1 << 20) as f64;

/// A server with an admin listener, whose watches live in one keyspace.
struct Place {
    server: ServerProcess,
    certificates: Certificates,
    _folder: TempDir,
}

impl Place {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::issue(&["bench"]);
        let file = folder.path().join("server.toml");
        let admin = "address = \"127.0.0.1:0\"\ntls = \"off\"\ngateways = [\"admin\"]\n";
        std::fs::write(&file, format!("{config}\n[[listener]]\n{admin}")).unwrap();
        let (file, data) = (file.display().to_string(), folder.path().join("data"));
        let server = ServerProcess::mutual(&certificates, &data, &["--config", &file]);
        Self {
            server,
            certificates,
            _folder: folder,
        }
    }

    async fn connect(&self) -> Arc<dyn Storage> {
        let storage = connect(&self.server, &self.certificates, "bench", "bench");
        Arc::new(storage.await.unwrap())
    }

    async fn watchers(&self) -> Vec<Arc<dyn Storage>> {
        let mut watchers = Vec::new();
        for _ in 0..CONNECTIONS {
            watchers.push(self.connect().await);
        }
        watchers
    }

    async fn epoch(&self) -> Epoch {
        self.connect().await.sync().await.unwrap().epoch
    }

    fn resident_mib(&self) -> f64 {
        self.server.resident_bytes() as f64 / MIB
    }

    fn peak_mib(&self) -> f64 {
        self.server.peak_resident_bytes() as f64 / MIB
    }
}

pub(crate) async fn watches() {
    println!("# {WATCHES} watches on prefixes of their own, {CONNECTIONS} connections, mutual TLS");
    idle().await;
    for commits in [10_000, 100_000] {
        resume("", commits).await;
        resume("[engine]\nring_bytes = \"1 MiB\"\n", commits).await;
    }
    paused().await;
}

/// A steady load beside no watch and beside all of them.
async fn idle() {
    const RATE: u64 = 1_000;
    const SECONDS: u64 = 20;
    let place = Place::new("");
    let writer = place.connect().await;
    let mut crowd = Crowd::new(WATCHES);
    // So that each key and all caches are there.
    write(&writer, &crowd, 0..WATCHES, 200, 64, None).await;
    let mut alone = Crowd::new(WATCHES);
    let load = async |crowd: &Crowd, first: u64| {
        let before = place.server.cpu_time();
        let commits = RATE * SECONDS;
        write(&writer, crowd, first..first + commits, 200, 256, Some(RATE)).await;
        // With what it does afterwards.
        tokio::time::sleep(Duration::from_millis(500)).await;
        (place.server.cpu_time() - before).as_micros() as f64 / commits as f64
    };
    let without = load(&alone, 0).await;
    alone.leave().await;
    let before = place.server.resident_bytes();
    let began = Instant::now();
    let watchers = place.watchers().await;
    crowd.watch(&watchers, None).await;
    let opened = began.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let each = place.server.resident_bytes().saturating_sub(before) / WATCHES;
    let with = load(&crowd, 0).await;
    crowd.was_told(RATE * SECONDS, PATIENCE).await;
    println!("opened in {opened:.2?}; {each} bytes of server memory a watch");
    println!(
        "{RATE} commits/s for {SECONDS} s, all told once and in order; \
         server CPU a commit: {without:.0} us without watches, {with:.0} us with"
    );
}

/// All resume from one position at once, after a restart with `commits` commits behind it.
async fn resume(config: &str, commits: u64) {
    let mut place = Place::new(config);
    let mut crowd = Crowd::new(WATCHES);
    let watchers = place.watchers().await;
    crowd.watch(&watchers, None).await;
    crowd.leave().await;
    drop(watchers);
    let writer = place.connect().await;
    write(&writer, &crowd, 0..commits, 200, 64, None).await;
    let epoch = place.epoch().await;
    place.server.restart();
    let before = place.resident_mib();
    let watchers = place.watchers().await;
    let began = Instant::now();
    let cpu = place.server.cpu_time();
    crowd.watch(&watchers, Some(epoch)).await;
    let opened = began.elapsed();
    crowd.was_told(commits, PATIENCE).await;
    let live = began.elapsed();
    let cpu = place.server.cpu_time() - cpu;
    let pages = metric(&place.server, "storage_catch_up_pages_total").await;
    let ring = metric(&place.server, "storage_ring_oldest_revision").await;
    println!(
        "resume behind {commits} commits: opened in {opened:.2?}, all told in {live:.2?}, server CPU {cpu:.2?}; \
         {pages} pages of the log, ring from revision {ring}; \
         memory {before:.0} MiB before, {:.0} at most",
        place.peak_mib()
    );
}

/// One watch of all keys is not asked for a minute of full load.
async fn paused() {
    const PAUSE: Duration = Duration::from_secs(60);
    let place = Place::new("");
    let writer = place.connect().await;
    let reader = place.connect().await;
    let mut watch = reader
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    // One member, so that its numbers count all commits.
    let crowd = Crowd::new(1);
    let began = Instant::now();
    let (mut commits, mut start) = (0, 0.0);
    while began.elapsed() < PAUSE {
        write(&writer, &crowd, commits..commits + 2_000, 1_024, 64, None).await;
        commits += 2_000;
        if began.elapsed() < PAUSE / 6 {
            // Memtables, caches and the ring fill in the first seconds, watch or not.
            start = place.resident_mib();
        }
    }
    let rate = commits as f64 / began.elapsed().as_secs_f64();
    let before = place.resident_mib();
    let began = Instant::now();
    for due in 0..commits {
        let event = watch.next().await.unwrap().unwrap();
        let WatchEvent::Commit(commit) = event else {
            panic!("{event:?}")
        };
        let told = match &commit.changes[0].kind {
            ChangeKind::Put { value, .. } => value.starts_with(&due.to_be_bytes()),
            _ => false,
        };
        assert!(told, "{commit:?} was told instead of commit {due}");
    }
    let took = began.elapsed();
    let after = place.resident_mib();
    // The reader of the log gives back what it holds when nobody asks.
    tokio::time::sleep(Duration::from_secs(7)).await;
    println!(
        "paused for {PAUSE:?} under {rate:.0} commits/s of 1 KiB: {commits} commits caught up in {took:.2?}, \
         without gap or double; memory {start:.0} MiB after 10 s, {before:.0} before it went on, {after:.0} after, \
         {:.0} at rest, {:.0} at most",
        place.resident_mib(),
        place.peak_mib()
    );
}

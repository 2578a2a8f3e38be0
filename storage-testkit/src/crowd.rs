//! Many watches at once, each on a prefix of its own, each of which checks that it is told its commits once and in order.
//!
//! Commit `n` of a run concerns member `n % len` alone and carries how many came before it for that member, so that a
//! gap, a repetition and an event of somebody else's are all seen where they happen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use storage_protocol::{
    ChangeKind, Epoch, Key, KeyRange, Position, Revision, Storage, Watch, WatchEvent, WatchOptions,
    WatchStart,
};
use tokio::task::JoinSet;

/// Watches that are opened at once; below what a session may have in flight.
const OPENING: usize = 500;

/// One watch and what it was told, over all its connections.
#[derive(Debug, Default)]
struct Member {
    /// Commits it was told.
    told: AtomicU64,
    /// The last of them, or where it began.
    revision: AtomicU64,
}

#[derive(Debug, Default)]
struct Told {
    commits: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Told {
    fn fault(&self, fault: String) {
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(fault);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Crowd {
    members: Vec<Arc<Member>>,
    told: Arc<Told>,
    tasks: JoinSet<()>,
}

impl Crowd {
    /// So many members, of whom nobody watches yet.
    #[must_use]
    pub fn new(len: u64) -> Self {
        Self {
            members: (0..len).map(|_| Arc::default()).collect(),
            told: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    /// The key and the value of commit `n`, of at least so many bytes.
    #[must_use]
    pub fn commit(&self, n: u64, bytes: usize) -> (Key, Bytes) {
        let len = self.members.len() as u64;
        let mut value = (n / len).to_be_bytes().to_vec();
        value.resize(bytes.max(8), b'v');
        (Key::from(format!("{}key", prefix(n % len))), value.into())
    }

    /// Lets all members watch, spread over these storages: after what they were told last, or from now on.
    ///
    /// # Panics
    /// If a watch is refused.
    pub async fn watch(&mut self, storages: &[Arc<dyn Storage>], epoch: Option<Epoch>) {
        let members = self.members.iter().zip(0_u64..);
        let opening = members.zip(storages.iter().cycle());
        let opening = opening.map(|((member, place), storage)| async move {
            let revision = Revision(member.revision.load(Ordering::Relaxed));
            let start = epoch.map_or(WatchStart::Now, |epoch| {
                WatchStart::After(Position { epoch, revision })
            });
            let range = KeyRange::prefix(prefix(place));
            let watch = storage.watch(range, WatchOptions::every(start)).await;
            let watch = watch.unwrap_or_else(|error| panic!("watch {place}: {error}"));
            let begun = watch.start().revision;
            member.revision.store(begun.0, Ordering::Relaxed);
            (member.clone(), watch)
        });
        let mut opened = stream::iter(opening).buffer_unordered(OPENING);
        while let Some((member, watch)) = opened.next().await {
            self.tasks.spawn(listen(member, watch, self.told.clone()));
        }
    }

    /// Ends all watches. What they were told stays known.
    pub async fn leave(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Commits that were told so far.
    #[must_use]
    pub fn told(&self) -> u64 {
        self.told.commits.load(Ordering::Relaxed)
    }

    /// Waits until the first `commits` commits of the run were told, each once and in order, and how long that took.
    ///
    /// # Panics
    /// If anything else is told, or it takes longer than `patience`.
    pub async fn was_told(&self, commits: u64, patience: Duration) -> Duration {
        let began = Instant::now();
        loop {
            let faults = self
                .told
                .faults
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            assert!(
                faults.is_empty(),
                "{} faults, such as {}",
                faults.len(),
                faults[0]
            );
            let told = self.told();
            assert!(told <= commits, "{told} of {commits} commits were told");
            if told == commits {
                break;
            }
            assert!(
                began.elapsed() < patience,
                "{told} of {commits} commits were told in time"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = began.elapsed();
        let len = self.members.len() as u64;
        for (member, place) in self.members.iter().zip(0..) {
            let due = commits / len + u64::from(place < commits % len);
            let told = member.told.load(Ordering::Relaxed);
            assert_eq!(told, due, "commits that member {place} was told");
        }
        took
    }
}

fn prefix(place: u64) -> String {
    format!("crowd/{place:06}/")
}

async fn listen(member: Arc<Member>, mut watch: Watch, told: Arc<Told>) {
    loop {
        let commit = match watch.next().await {
            Ok(Some(WatchEvent::Commit(commit))) => commit,
            Ok(Some(WatchEvent::Progress { .. })) => continue,
            other => return told.fault(format!("a watch said {other:?}")),
        };
        let due = member.told.load(Ordering::Relaxed);
        match commit.changes.as_slice() {
            [change]
                if let ChangeKind::Put { value, .. } = &change.kind
                    && value.starts_with(&due.to_be_bytes()) => {}
            other => return told.fault(format!("{other:?} was told instead of commit {due}")),
        }
        let before = member.revision.swap(commit.revision.0, Ordering::Relaxed);
        if commit.revision.0 <= before {
            return told.fault(format!("{} came after {before}", commit.revision));
        }
        member.told.store(due + 1, Ordering::Relaxed);
        told.commits.fetch_add(1, Ordering::Relaxed);
    }
}

/// Commits of the run, `in_flight` of them at a time; with a `rate`, so many a second and no more.
///
/// # Panics
/// If one fails.
pub async fn write(
    storage: &Arc<dyn Storage>,
    crowd: &Crowd,
    commits: std::ops::Range<u64>,
    bytes: usize,
    in_flight: usize,
    rate: Option<u64>,
) {
    let (began, first) = (tokio::time::Instant::now(), commits.start);
    let writing = stream::iter(commits).map(|n| async move {
        if let Some(rate) = rate {
            let due = Duration::from_micros((n - first) * 1_000_000 / rate);
            tokio::time::sleep_until(began + due).await;
        }
        let (key, value) = crowd.commit(n, bytes);
        let batch = storage_protocol::Batch::new().put(key, value);
        let options = storage_protocol::CommitOptions::default();
        storage.commit(batch, options).await
    });
    let mut writing = std::pin::pin!(writing.buffered(in_flight));
    while let Some(position) = writing.next().await {
        position.unwrap_or_else(|error| panic!("a commit: {error}"));
    }
}

//! One replica over all its breaks and ends, what is read from it recorded.
//!
//! It is read while faults go on, commits are made and waited for, and one that has a folder is closed or dropped and
//! opened again. Each read is kept with what the replica says of it, and so is the state that its changes add up to, at
//! each of them; the judges compare both with the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use storage_client::replica::{Changes, Entries, Proof, ReplicaError, ReplicaEvent};
use storage_client::{Replica, ReplicaOptions};
use storage_protocol::{Continuity, Entry, Epoch, Key, Position, Revision};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::{KEYS, PATIENCE, key_range, lane, text};
use crate::history::{
    Call, Nanos, OpId, Outcome, Promise, Range, ReplicaRead, Request, Seen, Violation, Write,
};

/// Replicas are clients too: their numbers begin here.
pub(super) const FIRST_CLIENT: u32 = 1_000;

/// For a proof that is asked for, or a commit to show, while faults go on.
const SHORT_PATIENCE: Duration = Duration::from_millis(700);

/// What came of one.
#[derive(Debug, Default)]
pub(super) struct Copied {
    pub(super) reads: Vec<ReplicaRead>,
    /// Changes that were told, each with the state that it made.
    pub(super) batches: u64,
    /// Commits that were waited for and read.
    pub(super) own_writes: u64,
    /// Times that it was opened again from its folder.
    pub(super) reopened: u64,
    /// Times that it went on from a position.
    pub(super) resumed: u64,
    /// Times that everything was fetched.
    pub(super) full_passes: u64,
    /// Breaks of its watches.
    pub(super) breaks: u64,
}

/// A replica, and the reader of it.
#[derive(Debug)]
pub(super) struct Copy {
    client: Client,
    number: u32,
    range: Range,
    keyspace: String,
    folder: Option<TempDir>,
    random: StdRng,
    replica: Option<Replica>,
    changes: Option<Changes>,
    /// What the first state and its changes since make.
    state: BTreeMap<String, Seen>,
    /// The highest revision that this opening was proven at.
    proven: u64,
    calls: u32,
    copied: Copied,
}

impl Copy {
    /// The first copies everything and keeps it in memory, the second a prefix, with a folder; and so on.
    pub(super) fn new(client: Client, number: u32, keyspace: &str, random: &mut StdRng) -> Self {
        let (range, folder) = if number.is_multiple_of(2) {
            (Range::all(), None)
        } else {
            let folder = tempfile::tempdir().expect("a temporary folder");
            (Range::new("b/", Some("b0")), Some(folder))
        };
        Self {
            client,
            number,
            range,
            keyspace: keyspace.to_owned(),
            folder,
            random: StdRng::seed_from_u64(random.random()),
            replica: None,
            changes: None,
            state: BTreeMap::new(),
            proven: 0,
            calls: 0,
            copied: Copied::default(),
        }
    }

    /// Reads, commits, and opens it again, until the run is stopped.
    pub(super) async fn work(mut self) -> Self {
        while !self.client.shared.stopped() {
            let replica = self.opened().await;
            if self.changes.is_none() {
                // So short, since the run may be stopped meanwhile.
                if timeout(Duration::from_millis(20), replica.ready())
                    .await
                    .is_ok()
                {
                    self.subscribe(&replica);
                }
                continue;
            }
            match self.random.random_range(0..100) {
                0..50 => self.get(&replica),
                50..70 => self.scan(&replica),
                70..80 => self.sync(&replica).await,
                80..97 => self.commit(&replica).await,
                _ if self.folder.is_some() => {
                    drop(replica);
                    self.end().await;
                    continue;
                }
                _ => {}
            }
            self.take_changes();
            sleep(Duration::from_millis(self.random.random_range(1..8))).await;
        }
        self
    }

    /// Once all is healed it comes to the last revision, and is read a last time.
    pub(super) async fn finish(mut self, epoch: Epoch, last: u64) -> Copied {
        let replica = self.opened().await;
        let revision = Revision(last);
        let waited = replica
            .wait_for(Position { epoch, revision }, PATIENCE)
            .await;
        match waited {
            Ok(_) => {
                self.scan(&replica);
                self.get(&replica);
            }
            Err(error) => self.strange(
                Promise::ReplicaWait,
                format!("it did not come to {last}: {error}"),
            ),
        }
        self.take_changes();
        drop(replica);
        self.close().await;
        self.client.close().await;
        self.copied
    }

    async fn opened(&mut self) -> Replica {
        if let Some(replica) = &self.replica {
            return replica.clone();
        }
        let storage = Arc::new(self.client.storage().await);
        let mut options = ReplicaOptions::new()
            .probe_interval(Duration::from_millis(20))
            .backoff_max(Duration::from_millis(100))
            .save_interval(Duration::from_millis(20));
        if let Some(folder) = &self.folder {
            options = options.persist(folder.path().join("replica"), &self.keyspace);
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let range = key_range(&self.range);
            match Replica::start(storage.clone(), range, options.clone()).await {
                Ok(replica) => return self.replica.insert(replica).clone(),
                // One that was dropped writes its last state first.
                Err(ReplicaError::Folder { .. }) if Instant::now() < until => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("a replica does not start: {error}"),
            }
        }
    }

    fn subscribe(&mut self, replica: &Replica) {
        let at = self.now();
        if let Ok((read, changes)) = replica.scan_and_changes() {
            self.changes = Some(changes);
            self.state = seen(&read.value);
            let values = self.whole(&seen(&read.value));
            self.record(at, values, read.proof);
        }
    }

    /// In order, or by dropping the last handle.
    async fn end(&mut self) {
        self.take_changes();
        if self.random.random_bool(0.5) {
            self.close().await;
        } else {
            self.count();
            self.replica = None;
        }
        self.changes = None;
        self.proven = 0;
        self.copied.reopened += 1;
    }

    async fn close(&mut self) {
        self.count();
        if let Some(replica) = self.replica.take()
            && let Err(error) = replica.close().await
        {
            self.strange(Promise::ReplicaState, error.to_string());
        }
    }

    fn count(&mut self) {
        if let Some(replica) = &self.replica {
            let status = replica.status();
            self.copied.resumed += status.resumes;
            self.copied.full_passes += status.full_passes;
            self.copied.breaks += status.breaks;
        }
    }

    fn get(&mut self, replica: &Replica) {
        let mut keys = self.keys();
        if self.random.random_bool(0.7) {
            keys = keys.choose(&mut self.random).cloned().into_iter().collect();
        }
        let asked: Vec<Key> = keys.iter().map(|key| Key::from(key.clone())).collect();
        let at = self.now();
        if let Ok(read) = replica.get_many(&asked) {
            let values = read
                .value
                .iter()
                .map(|entry| entry.as_ref().map(lane::seen));
            self.record(at, keys.into_iter().zip(values).collect(), read.proof);
        }
    }

    fn scan(&mut self, replica: &Replica) {
        let at = self.now();
        if let Ok(read) = replica.scan(replica.range(), self.random.random_bool(0.5), None) {
            let values = self.whole(&seen(&read.value));
            self.record(at, values, read.proof);
        }
    }

    /// A proof holds what was acknowledged to anyone before it was asked for.
    async fn sync(&mut self, replica: &Replica) {
        let at = self.now();
        if let Ok(proof) = replica.sync(SHORT_PATIENCE).await {
            let asked = Proof {
                age: Some(Duration::ZERO),
                ..proof
            };
            self.record(at, Vec::new(), asked);
        }
    }

    /// Commits, waits for that commit and reads it.
    async fn commit(&mut self, replica: &Replica) {
        let id = self.next_id();
        let keys = self.keys();
        let Some(key) = keys.choose(&mut self.random).cloned() else {
            return;
        };
        let write = match self.random.random_bool(0.8) {
            true => Write::Put(format!("{id}@{key}")),
            false => Write::Remove,
        };
        let request = Request::Commit {
            checks: Vec::new(),
            writes: vec![(key.clone(), write)],
        };
        let storage = self.client.storage().await;
        let invoked = self.now();
        let outcome = lane::perform(&self.client, &storage, id, &request).await;
        let returned = self.now();
        let committed = match outcome {
            Outcome::Committed { revision } => Some(revision),
            _ => None,
        };
        self.client.shared.recorder.push(Call {
            id,
            request,
            invoked,
            returned,
            outcome,
        });
        let Some((revision, epoch)) = committed.zip(self.client.shared.epoch()) else {
            return;
        };
        let position = Position {
            epoch,
            revision: Revision(revision),
        };
        match replica.wait_for(position, SHORT_PATIENCE).await {
            Ok(_) => {}
            Err(ReplicaError::TimedOut { .. }) => return,
            Err(error) => {
                return self.strange(
                    Promise::ReplicaWait,
                    format!("it was not to be waited for: {error}"),
                );
            }
        }
        let at = self.now();
        match replica.get(key.as_bytes()) {
            Ok(read) if read.proof.position.revision.0 >= revision => {
                self.copied.own_writes += 1;
                let value = read.value.as_ref().map(lane::seen);
                self.record(at, vec![(key, value)], read.proof);
            }
            Ok(read) => {
                let proven = read.proof.position;
                let what =
                    format!("{id} at {revision} was waited for, and the read is of {proven}");
                self.strange(Promise::ReplicaWait, what);
            }
            Err(error) => self.strange(Promise::ReplicaWait, error.to_string()),
        }
    }

    /// Repeats what was told, and keeps the state at each step.
    fn take_changes(&mut self) {
        while let Some(changes) = &mut self.changes {
            let event = match changes.next().now_or_never() {
                None => return,
                Some(Ok(Some(event))) => event,
                Some(Ok(None) | Err(_)) => {
                    self.changes = None;
                    return;
                }
            };
            match event {
                ReplicaEvent::Changed(batch) => {
                    for change in &batch.changes {
                        let key = text(&change.key);
                        match &change.entry {
                            Some(entry) => self.state.insert(key, lane::seen(entry)),
                            None => self.state.remove(&key),
                        };
                    }
                    self.copied.batches += 1;
                    let values = self.whole(&self.state);
                    let id = self.next_id();
                    // When it was made is not told, so only the state is judged.
                    self.copied.reads.push(ReplicaRead {
                        id,
                        at: self.now(),
                        values,
                        proven: self.client.shared.revision(batch.position),
                        age: Nanos::MAX,
                    });
                }
                ReplicaEvent::Continuity(Continuity::Continuous) => {}
                // Nothing is purged in a run, and no history ends; and its reader is quick.
                other => self.strange(Promise::ReplicaState, format!("it told {other:?}")),
            }
        }
    }

    fn record(&mut self, at: Nanos, values: Vec<(String, Option<Seen>)>, proof: Proof) {
        let proven = self.client.shared.revision(proof.position);
        if proven < self.proven {
            let what = format!("it was proven at {}, and then at {proven}", self.proven);
            self.strange(Promise::ReplicaState, what);
        }
        self.proven = self.proven.max(proven);
        // From the folder, and not proven since: as old as can be.
        let age = proof.age.map_or(Nanos::MAX, |age| {
            Nanos::try_from(age.as_nanos()).unwrap_or(Nanos::MAX)
        });
        let id = self.next_id();
        self.copied.reads.push(ReplicaRead {
            id,
            at,
            values,
            proven,
            age,
        });
    }

    fn next_id(&mut self) -> OpId {
        self.calls += 1;
        OpId {
            client: FIRST_CLIENT + self.number,
            number: self.calls,
        }
    }

    fn now(&self) -> Nanos {
        self.client.shared.recorder.now()
    }

    /// The keys that it copies.
    fn keys(&self) -> Vec<String> {
        let inside = KEYS.iter().filter(|key| self.range.contains(key));
        inside.map(|key| (*key).to_owned()).collect()
    }

    /// Each key of the range, with what is absent, and whatever else is there.
    fn whole(&self, state: &BTreeMap<String, Seen>) -> Vec<(String, Option<Seen>)> {
        let absent = self.keys().into_iter().map(|key| (key, None));
        let mut whole: BTreeMap<String, Option<Seen>> = absent.collect();
        let present = state
            .iter()
            .map(|(key, seen)| (key.clone(), Some(seen.clone())));
        whole.extend(present);
        whole.into_iter().collect()
    }

    fn strange(&self, promise: Promise, what: String) {
        let what = format!("replica {} of {:?}: {what}", self.number, self.range);
        self.client.shared.strange(Violation::new(promise, what));
    }
}

fn seen(entries: &Entries) -> BTreeMap<String, Seen> {
    let seen = |(key, entry): &(Key, Entry)| (text(key), lane::seen(entry));
    entries.iter().map(seen).collect()
}

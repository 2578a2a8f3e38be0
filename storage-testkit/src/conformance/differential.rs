//! A random run of the candidate beside the model: every answer must be the same.
//!
//! Revisions differ between the two, so each answer is compared with its revisions replaced by their rank: the
//! number of commits that were acknowledged up to there. The run is repeated by its seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage_protocol::{
    Batch, ChangeKind, CommitOptions, CommitRecord, Entry, EntryLifetime, Epoch, Key, KeyRange,
    KeyState, Keyspace, Lifetime, Position, Result, Revision, ScanItem, ScanOptions, Storage,
    StorageError, Watch, WatchEvent, WatchOptions, WatchStart,
};

use super::support::{Handle, Mirror, bytes, commits_to_mark, next_of};
use super::{Context, cases};
use crate::model::{ModelStorage, ModelStore};

cases!["differential":
    a_fixed_run_answers_as_the_model,
    a_random_run_answers_as_the_model,
];

const STEPS: usize = 300;
const WATCHES_MAX: usize = 12;
const STAMPED: &str = "log/";

async fn a_fixed_run_answers_as_the_model(context: Context) {
    run(&context, 1).await;
}

async fn a_random_run_answers_as_the_model(context: Context) {
    println!("differential run with seed {}", context.seed);
    run(&context, context.seed).await;
}

async fn run(context: &Context, seed: u64) {
    let mut run = Run {
        candidate: context.open().await,
        model: ModelStore::new().storage(&Keyspace::new("model").unwrap()),
        ranks: Ranks::default(),
        watches: Vec::new(),
        followers: Vec::new(),
        rng: StdRng::seed_from_u64(seed),
        place: format!("seed {seed}"),
    };
    run.ranks.epochs = [run.candidate.get(&[]).await, run.model.get(&[]).await]
        .map(|reading| reading.unwrap().position.epoch);
    for step in 0..STEPS {
        run.place = format!("seed {seed}, step {step}");
        match run.rng.random_range(0..100) {
            0..55 => run.commit().await,
            55..68 => run.get().await,
            68..85 => run.scan().await,
            85..92 => run.open_watch().await,
            _ => run.follow().await,
        }
    }
    run.place = format!("seed {seed}, at the end");
    run.follow().await;
    run.compare_watches().await;
}

struct Run {
    candidate: Handle,
    model: ModelStorage,
    ranks: Ranks,
    /// Watches of every commit, the candidate's and the model's.
    watches: Vec<[Watch; 2]>,
    /// The candidate's watches of the latest states; the model tells what each mark must show.
    followers: Vec<Follower>,
    rng: StdRng,
    /// Where the run is, for messages.
    place: String,
}

struct Follower {
    watch: Watch,
    range: KeyRange,
    mirror: Mirror,
    /// The reader's state with ranks, which begins with the model's state at the start.
    state: BTreeMap<String, String>,
}

/// The revisions of both sides, commit by commit. Side 0 is the candidate, side 1 the model.
#[derive(Default)]
struct Ranks {
    epochs: [Epoch; 2],
    revisions: [Vec<Revision>; 2],
}

impl Ranks {
    fn len(&self) -> usize {
        self.revisions[0].len()
    }

    /// The number of commits up to a revision.
    fn up_to(&self, side: usize, revision: Revision) -> usize {
        self.revisions[side].partition_point(|r| *r <= revision)
    }

    /// The place of a revision, which must be a commit's.
    fn of(&self, side: usize, revision: Revision) -> String {
        let known = self.revisions[side].binary_search(&revision);
        known.map_or_else(
            |_| format!("unknown {revision}"),
            |rank| format!("#{}", rank + 1),
        )
    }

    /// The revision of a rank; zero for rank zero.
    fn revision(&self, side: usize, rank: usize) -> Revision {
        rank.checked_sub(1)
            .map_or(Revision::ZERO, |n| self.revisions[side][n])
    }

    fn position(&self, side: usize, rank: usize) -> Position {
        Position {
            epoch: self.epochs[side],
            revision: self.revision(side, rank),
        }
    }

    fn key(&self, side: usize, key: &[u8]) -> String {
        let stamp = key
            .strip_prefix(STAMPED.as_bytes())
            .and_then(|stamp| <[u8; 8]>::try_from(stamp).ok());
        match stamp {
            Some(stamp) => {
                let revision = Revision(u64::from_be_bytes(stamp));
                format!("{STAMPED}{}", self.of(side, revision))
            }
            None => key.escape_ascii().to_string(),
        }
    }

    fn entry(&self, side: usize, entry: &Entry) -> String {
        let lifetime = lifetime_word(&entry.lifetime);
        let revision = self.of(side, entry.revision);
        format!("{} {revision} {lifetime}", entry.value.escape_ascii())
    }

    fn item(&self, side: usize, item: &ScanItem) -> String {
        let key = self.key(side, &item.key);
        match &item.state {
            KeyState::Live(entry) => format!("{key}={}", self.entry(side, entry)),
            KeyState::Removed(at) => format!("{key} removed {}", self.of(side, *at)),
        }
    }

    fn error(&self, side: usize, error: &StorageError) -> String {
        match error {
            StorageError::CheckFailed { key, actual } => {
                let actual = actual.map(|revision| self.of(side, revision));
                format!("check of {} saw {actual:?}", self.key(side, key))
            }
            other => other.to_string(),
        }
    }

    fn record(&self, side: usize, record: &CommitRecord) -> String {
        let changes = record.changes.iter().map(|change| {
            let key = self.key(side, &change.key);
            match &change.kind {
                ChangeKind::Put {
                    value,
                    lifetime,
                    previous,
                } => format!(
                    "{key}={} {} was {previous:?}",
                    value.escape_ascii(),
                    lifetime_word(lifetime)
                ),
                ChangeKind::Removed { previous } => format!("{key} removed, was {previous:?}"),
                ChangeKind::Signalled { bytes } => format!("{key} signalled {bytes:?}"),
            }
        });
        let changes: Vec<String> = changes.collect();
        let revision = self.of(side, record.revision);
        format!("{revision} {:?}: {}", record.label, changes.join("; "))
    }
}

fn lifetime_word(lifetime: &EntryLifetime) -> &'static str {
    match lifetime {
        EntryLifetime::Forever => "for ever",
        EntryLifetime::Until(_) => "until some time",
        EntryLifetime::Session => "with its session",
    }
}

/// A check as it is planned for both sides: of which key, at which rank.
struct PlannedCheck {
    key: Key,
    rank: Option<usize>,
}

impl Run {
    // ---- steps

    async fn commit(&mut self) {
        let checks = self.plan_checks().await;
        let operations = self.plan_operations();
        let options = CommitOptions {
            label: self.chance(4).then(|| self.number(10).to_string()),
            with_previous: self.chance(3),
        };
        let [candidate, model] = [0, 1].map(|side| {
            let batch = checks.iter().fold(Batch::new(), |batch, check| {
                let key = check.key.clone();
                match check.rank {
                    Some(rank) => batch.check_revision(key, self.ranks.revision(side, rank)),
                    None => batch.check_absent(key),
                }
            });
            Batch {
                operations: operations.operations.clone(),
                ..batch
            }
        });
        let done = self.candidate.commit(candidate, options.clone()).await;
        let expected = self.model.commit(model, options).await;
        match (done, expected) {
            (Ok(done), Ok(expected)) => {
                self.ranks.revisions[0].push(done.revision);
                self.ranks.revisions[1].push(expected.revision);
                let grown = self.ranks.revisions[0].is_sorted_by(|a, b| a < b);
                assert!(grown, "{}: revision {done} did not grow", self.place);
            }
            (done, expected) => {
                let done = self.failure(0, done);
                assert_eq!(done, self.failure(1, expected), "{}: commit", self.place);
            }
        }
    }

    fn failure(&self, side: usize, result: Result<Position>) -> String {
        match result {
            Ok(position) => format!("done at {position}"),
            Err(error) => self.ranks.error(side, &error),
        }
    }

    async fn get(&mut self) {
        let keys: Vec<Key> = (0..self.number(8)).map(|_| self.key()).collect();
        let done = self.candidate.get(&keys).await.unwrap();
        let expected = self.model.get(&keys).await.unwrap();
        let show = |side, value: &[Option<Entry>]| -> Vec<Option<String>> {
            let each = value.iter();
            each.map(|e| e.as_ref().map(|e| self.ranks.entry(side, e)))
                .collect()
        };
        let place = &self.place;
        assert_eq!(
            show(0, &done.value),
            show(1, &expected.value),
            "{place}: get"
        );
        let seen = self.ranks.up_to(0, done.position.revision);
        assert_eq!(seen, self.ranks.len(), "{place}: the position of a get");
    }

    async fn scan(&mut self) {
        let range = self.range();
        let rank = self.chance(2).then(|| self.rank());
        let options = ScanOptions {
            reverse: self.chance(2),
            keys_only: self.chance(4),
            limit: self.chance(3).then(|| self.number(6) as u64),
            newer_than: None,
        };
        let at = |side| ScanOptions {
            newer_than: rank.map(|rank| self.ranks.position(side, rank)),
            ..options
        };
        let done = self.candidate.scan(range.clone(), at(0)).await.unwrap();
        let expected = self.model.scan(range.clone(), at(1)).await.unwrap();
        let show = |side, items: Vec<ScanItem>| -> Vec<String> {
            let each = items.iter();
            each.map(|item| self.ranks.item(side, item)).collect()
        };
        let done = show(0, done.collect().await.unwrap());
        let expected = show(1, expected.collect().await.unwrap());
        let place = &self.place;
        assert_eq!(
            done, expected,
            "{place}: scan {range:?} {options:?} newer than {rank:?}"
        );
    }

    async fn open_watch(&mut self) {
        let (range, rank) = (self.range(), self.rank());
        let follows = self.chance(2);
        let start = |side| WatchStart::After(self.ranks.position(side, rank));
        if follows && self.followers.len() < WATCHES_MAX {
            let options = WatchOptions::latest(start(0));
            let watch = self.candidate.watch(range.clone(), options).await.unwrap();
            let follower = Follower {
                mirror: Mirror::new(&watch, BTreeMap::new()),
                state: self.model_state(rank, &range),
                watch,
                range,
            };
            self.followers.push(follower);
        } else if !follows && self.watches.len() < WATCHES_MAX {
            let options = [0, 1].map(|side| WatchOptions::every(start(side)));
            let candidate = self.candidate.watch(range.clone(), options[0]).await;
            let model = self.model.watch(range, options[1]).await;
            self.watches.push([candidate.unwrap(), model.unwrap()]);
        }
    }

    /// Lets one reader of the latest states, or at the end each, come up to date; judges it at every mark.
    async fn follow(&mut self) {
        let mut followers = std::mem::take(&mut self.followers);
        let one = self.number(WATCHES_MAX);
        let at_end = self.place.ends_with("end");
        for (n, follower) in followers.iter_mut().enumerate() {
            if n == one || at_end {
                self.follow_one(follower).await;
            }
        }
        self.followers = followers;
    }

    async fn follow_one(&mut self, follower: &mut Follower) {
        follower.watch.request_progress(9);
        loop {
            let event = next_of(&mut follower.watch).await;
            if let WatchEvent::State { key, state } = &event {
                let key = self.ranks.key(0, key);
                match state {
                    KeyState::Live(e) => follower.state.insert(key, self.ranks.entry(0, e)),
                    KeyState::Removed(_) => follower.state.remove(&key),
                };
            }
            let Some((position, token)) = follower.mirror.apply(event) else {
                continue;
            };
            let rank = self.ranks.up_to(0, position.revision);
            let expected = self.model_state(rank, &follower.range);
            assert_eq!(follower.state, expected, "{}: mark #{rank}", self.place);
            if token == Some(9) {
                assert_eq!(rank, self.ranks.len(), "{}: the mark asked for", self.place);
                return;
            }
        }
    }

    async fn compare_watches(&mut self) {
        for [candidate, model] in &mut self.watches {
            let done = show_watch(&self.ranks, 0, candidate).await;
            let expected = show_watch(&self.ranks, 1, model).await;
            assert_eq!(done, expected, "{}: watch", self.place);
        }
    }

    fn model_state(&self, rank: usize, range: &KeyRange) -> BTreeMap<String, String> {
        let state = self.model.state_at(self.ranks.revision(1, rank));
        let inside = state.iter().filter(|(key, _)| range.contains(key));
        inside
            .map(|(key, entry)| (self.ranks.key(1, key), self.ranks.entry(1, entry)))
            .collect()
    }

    // ---- random things

    fn number(&mut self, below: usize) -> usize {
        self.rng.random_range(0..below)
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.number(one_in) == 0
    }

    fn rank(&mut self) -> usize {
        let commits = self.ranks.len();
        self.number(commits + 1)
    }

    fn key(&mut self) -> Key {
        const KEYS: [&[u8]; 12] = [
            b"a",
            b"a\0",
            b"a#",
            b"b",
            b"ba",
            b"bb",
            b"c",
            b"d",
            b"\xff",
            b"\xff\xff",
            b"\0",
            b"#",
        ];
        Key::from_static(KEYS[self.number(KEYS.len())])
    }

    /// Bounds that do not cut between stamps, which differ on both sides.
    fn range(&mut self) -> KeyRange {
        match self.number(5) {
            0 => KeyRange::prefix(self.key()),
            1 => KeyRange::between(self.key(), self.key()),
            2 => KeyRange::single(self.key()),
            3 => KeyRange::prefix(STAMPED),
            _ => KeyRange::all(),
        }
    }

    async fn plan_checks(&mut self) -> Vec<PlannedCheck> {
        let mut checks = Vec::new();
        if self.chance(2) {
            return checks;
        }
        for _ in 0..=self.number(2) {
            let key = self.key();
            let rank = match self.number(3) {
                0 => None,
                1 => Some(self.rank()),
                _ => self.present_rank(&key).await,
            };
            checks.push(PlannedCheck { key, rank });
        }
        checks
    }

    async fn present_rank(&mut self, key: &Key) -> Option<usize> {
        let reading = self.model.get(std::slice::from_ref(key)).await.unwrap();
        let entry = reading.value.into_iter().next().flatten()?;
        Some(self.ranks.up_to(1, entry.revision))
    }

    fn plan_operations(&mut self) -> Batch {
        let mut batch = Batch::new();
        for _ in 0..self.number(5) {
            let (key, value) = (self.key(), bytes(&self.number(1_000).to_string()));
            // Sometimes a key stands twice, which both must refuse; mostly it is left out.
            let taken = batch.operations.iter().any(|o| o.key() == &key);
            if taken && !self.chance(10) {
                continue;
            }
            let lifetime = match self.number(8) {
                0 => Lifetime::TimeToLive(Duration::from_secs(3600)),
                1 => Lifetime::Session,
                _ => Lifetime::Forever,
            };
            batch = match self.number(10) {
                0..5 => batch.put_with(key, value, lifetime),
                5..8 => batch.remove(key),
                8 => batch.signal(key, value),
                _ => batch.put_stamped(STAMPED, value, lifetime),
            };
        }
        batch
    }
}

async fn show_watch(ranks: &Ranks, side: usize, watch: &mut Watch) -> Vec<String> {
    let (commits, _): (Vec<Arc<CommitRecord>>, _) = commits_to_mark(watch, 5).await;
    let each = commits.iter();
    each.map(|record| ranks.record(side, record)).collect()
}

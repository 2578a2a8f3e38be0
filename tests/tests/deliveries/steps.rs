//! In the model: whatever happens in whatever order, each job ends in one way, none is handed over before its time, and the
//! rows are those that the records say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use storage_protocol::deliveries::{
    Deliveries, DeliveryError, Job, JobFilter, JobId, JobState, NewJob, NoRecurrence, Policy,
    Receiver, Recipient, Recurrence, StateKind, Step,
};
use storage_protocol::{
    Batch, KeyRange, KeyState, Keyspace, ScanOptions, Storage, StorageError, StorageExt, UnixMillis,
};
use storage_testkit::model::ModelStore;

const START: u64 = 1_700_000_000_000;
const RECIPIENTS: usize = 3;

struct World {
    storage: Arc<dyn Storage>,
    clock: Arc<AtomicU64>,
    deliveries: Deliveries,
    random: StdRng,
    /// Recipient and due time of each job.
    scheduled: BTreeMap<JobId, (Recipient, UnixMillis)>,
    /// How often each was handed over.
    handed_over: BTreeMap<JobId, u32>,
    cancelled: BTreeSet<JobId>,
    forced: BTreeSet<JobId>,
    /// Jobs that a recipient has: whose it is, and the holder.
    held: Vec<(JobId, String)>,
    receivers: Vec<(usize, Receiver)>,
    holders: u64,
}

fn recipient(n: usize) -> Recipient {
    Recipient::new(&format!("r{n}")).unwrap()
}

fn policy() -> Policy {
    Policy {
        attempts_max: 3,
        backoff: Duration::from_secs(1),
        backoff_max: Duration::from_secs(4),
        window: Duration::from_secs(60),
        ack: Duration::from_secs(5),
        ..Policy::default()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let keyspace = Keyspace::new("jobs").unwrap();
        let storage: Arc<dyn Storage> = Arc::new(ModelStore::new().storage(&keyspace));
        let clock = Arc::new(AtomicU64::new(START));
        let shown = clock.clone();
        let deliveries = Deliveries::new(storage.clone())
            .with_clock(Arc::new(move || UnixMillis(shown.load(Ordering::SeqCst))));
        Self {
            storage,
            clock,
            deliveries,
            random: StdRng::seed_from_u64(seed),
            scheduled: BTreeMap::new(),
            handed_over: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            forced: BTreeSet::new(),
            held: Vec::new(),
            receivers: Vec::new(),
            holders: 0,
        }
    }

    fn now(&self) -> UnixMillis {
        UnixMillis(self.clock.load(Ordering::SeqCst))
    }

    fn any_job(&mut self) -> Option<JobId> {
        let ids: Vec<_> = self.scheduled.keys().cloned().collect();
        ids.choose(&mut self.random).cloned()
    }

    fn receiver(&mut self, of: usize) -> Receiver {
        self.holders += 1;
        self.deliveries
            .receive(&recipient(of), &format!("h{}", self.holders))
    }

    async fn act(&mut self) {
        match self.random.random_range(0..12) {
            0 | 1 => self.schedule().await,
            // Of two servers, at once.
            2 => {
                let (one, other) = (self.deliveries.clone(), self.deliveries.clone());
                let runs = tokio::join!(
                    one.run_due(&NoRecurrence, UnixMillis::ZERO),
                    other.run_due(&NoRecurrence, UnixMillis::ZERO)
                );
                runs.0.unwrap();
                runs.1.unwrap();
            }
            3 => {
                // Forward, and sometimes back.
                let by = self.random.random_range(0..8_000);
                let now = self.now().0;
                let then = match self.random.random_range(0..8) {
                    0 => now.saturating_sub(by).max(START),
                    _ => now + by,
                };
                self.clock.store(then, Ordering::SeqCst);
            }
            4 => {
                let of = self.random.random_range(0..RECIPIENTS);
                let receiver = self.receiver(of);
                self.receivers.push((of, receiver));
            }
            // One is gone, with what it has.
            5 if !self.receivers.is_empty() => {
                let which = self.random.random_range(0..self.receivers.len());
                self.receivers.swap_remove(which);
            }
            6 | 7 => self.receive().await,
            8 | 9 => self.answer().await,
            10 => {
                if let Some(id) = self.any_job() {
                    match self.deliveries.cancel(&id).await {
                        Ok(_) => {
                            self.cancelled.insert(id);
                        }
                        Err(DeliveryError::Refused { state, .. }) => assert!(!state.is_open()),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            11 => {
                if let Some(id) = self.any_job()
                    && self.deliveries.force(&id).await.is_ok()
                {
                    self.forced.insert(id);
                }
            }
            _ => {}
        }
        self.check().await;
    }

    async fn schedule(&mut self) {
        let of = self.random.random_range(0..RECIPIENTS);
        let due = self
            .now()
            .after(Duration::from_millis(self.random.random_range(0..20_000)));
        let id = JobId::new(&format!("j{}", self.scheduled.len())).unwrap();
        let new = NewJob {
            id: Some(id.clone()),
            policy: policy(),
            attached: vec!["file".into()],
            ..NewJob::new(recipient(of), due, "payload")
        };
        let batch = Batch::new().put(self.deliveries.attached_key(&id, b"file"), "x");
        self.deliveries.schedule_with(&new, batch).await.unwrap();
        let again = self.deliveries.schedule(&new).await;
        assert_eq!(again, Err(DeliveryError::Exists(id.clone())));
        self.scheduled.insert(id, (recipient(of), due));
    }

    /// One of the receivers takes what is ready, if anything is.
    async fn receive(&mut self) {
        if self.receivers.is_empty() {
            return;
        }
        let which = self.random.random_range(0..self.receivers.len());
        let in_one = self.random.random_bool(0.5);
        let (of, receiver) = &mut self.receivers[which];
        let ready = tokio::time::timeout(Duration::ZERO, receiver.ready()).await;
        let Ok(ready) = ready else {
            return;
        };
        let id = ready.unwrap();
        assert_eq!(
            self.scheduled[&id].0,
            recipient(*of),
            "{id} is for somebody else"
        );
        let taken = match in_one {
            true => receiver.hand_over(&id, Batch::new()).await.unwrap(),
            false => receiver
                .claim(&id, Duration::from_secs(2), Batch::new())
                .await
                .unwrap(),
        };
        let Some(stored) = taken else {
            return;
        };
        let (JobState::Claimed { holder, .. } | JobState::Delivered { holder, .. }) =
            &stored.job.state
        else {
            panic!("{:?}", stored.job.state);
        };
        let holder = holder.clone();
        // The clock may have gone back since it became ready.
        *self.handed_over.entry(id.clone()).or_default() += 1;
        assert!(!self.cancelled.contains(&id), "{id} was cancelled");
        if !in_one {
            // It may die here.
            match self.random.random_range(0..3) {
                0 => return,
                1 => {
                    let step = Step::Release { holder };
                    self.deliveries.step(&id, &step).await.unwrap();
                    return;
                }
                _ => {
                    let step = Step::Delivered {
                        holder: holder.clone(),
                    };
                    self.deliveries.step(&id, &step).await.unwrap();
                }
            }
        }
        self.held.push((id, holder));
    }

    /// A recipient answers for something that it has, or had, in time or not.
    async fn answer(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let which = self.random.random_range(0..self.held.len());
        let (id, holder) = self.held.swap_remove(which);
        let step = match self.random.random_range(0..4) {
            0 => Step::Decline {
                reason: "no".to_owned(),
            },
            1 => Step::Release { holder },
            _ => Step::Acknowledge,
        };
        match self.deliveries.step(&id, &step).await {
            Ok(_) | Err(DeliveryError::Refused { .. }) => {}
            Err(error) => panic!("{step:?} of {id}: {error}"),
        }
    }

    async fn jobs(&self) -> Vec<(JobId, Job)> {
        let page = self
            .deliveries
            .list(&JobFilter::default(), None, 1_000)
            .await
            .unwrap();
        assert_eq!((page.unreadable, page.next), (0, None));
        page.jobs
            .into_iter()
            .map(|stored| (stored.id, stored.job))
            .collect()
    }

    async fn keys(&self, prefix: &str) -> BTreeMap<String, String> {
        let range = KeyRange::prefix(prefix.to_owned());
        let scan = self
            .storage
            .scan(range, ScanOptions::default())
            .await
            .unwrap();
        let items = scan.collect().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let pairs = items.into_iter().map(|item| match item.state {
            KeyState::Live(entry) => (text(&item.key), text(&entry.value)),
            KeyState::Removed(_) => panic!("a tombstone"),
        });
        pairs.collect()
    }

    /// What always holds.
    async fn check(&self) {
        let jobs = self.jobs().await;
        assert_eq!(jobs.len(), self.scheduled.len(), "no job is lost");
        let (mut due, mut to) = (BTreeSet::new(), BTreeMap::new());
        for (id, job) in &jobs {
            assert_eq!((job.recipient.clone(), job.due), self.scheduled[id]);
            assert!(job.attempts <= 3, "{id}: {job:?}");
            let kind = job.state.kind();
            if let Some(wake) = job.state.wake() {
                due.insert(format!("deliveries/due/{:012x}{id}", wake.0));
                let key = format!("deliveries/to/{}/{:012x}{id}", job.recipient, job.due.0);
                to.insert(key, kind.word()[..1].to_owned());
            }
            let attached = self
                .storage
                .get_one(self.deliveries.attached_key(id, b"file"))
                .await
                .unwrap();
            assert_eq!(attached.is_some(), kind.is_open(), "{id}: {kind}");
            assert_eq!(kind == StateKind::Cancelled, self.cancelled.contains(id));
            if kind == StateKind::Done {
                assert!(
                    self.handed_over.contains_key(id),
                    "{id} was handed to nobody"
                );
            }
        }
        let rows: BTreeSet<_> = self.keys("deliveries/due/").await.into_keys().collect();
        assert_eq!(rows, due);
        assert_eq!(self.keys("deliveries/to/").await, to);
        let next = self.deliveries.next_due().await.unwrap();
        assert_eq!(
            next,
            jobs.iter().filter_map(|(_, job)| job.state.wake()).min()
        );
    }

    /// With recipients that are there and acknowledge, everything comes to an end.
    async fn settle(&mut self) {
        self.receivers.clear();
        let mut receivers: Vec<_> = (0..RECIPIENTS).map(|of| self.receiver(of)).collect();
        for _ in 0..200 {
            self.clock.fetch_add(3_000, Ordering::SeqCst);
            self.deliveries
                .run_due(&NoRecurrence, UnixMillis::ZERO)
                .await
                .unwrap();
            for receiver in &mut receivers {
                while let Ok(next) = tokio::time::timeout(Duration::ZERO, receiver.next()).await {
                    let delivery = next.unwrap();
                    assert!(!self.cancelled.contains(delivery.id()));
                    *self.handed_over.entry(delivery.id().clone()).or_default() += 1;
                    delivery.acknowledge().await.unwrap();
                }
            }
            if self
                .jobs()
                .await
                .iter()
                .all(|(_, job)| !job.state.kind().is_open())
            {
                self.check().await;
                return;
            }
        }
        panic!("some never end: {:?}", self.jobs().await);
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..60).collect(),
    }
}

/// Replay one: `SEED=17 cargo test --release --workspace --test deliveries any_order`.
#[test]
fn any_order_of_steps_brings_each_job_to_one_end() {
    for seed in seeds() {
        // Polls are the only places where futures take turns, so a seed is always the same run.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        println!("SEED={seed}");
        runtime.block_on(async {
            let mut world = World::new(seed);
            for _ in 0..150 {
                world.act().await;
            }
            world.settle().await;
        });
    }
}

#[tokio::test]
async fn nothing_is_ready_before_its_time() {
    let world = World::new(0);
    let new = NewJob::new(recipient(0), UnixMillis(START + 1_000), "x");
    let (id, _) = world.deliveries.schedule(&new).await.unwrap();
    let state = async || {
        world
            .deliveries
            .get(&id)
            .await
            .unwrap()
            .unwrap()
            .job
            .state
            .kind()
    };
    for (time, kind) in [
        (START, StateKind::Pending),
        (START + 999, StateKind::Pending),
        (START + 1_000, StateKind::Ready),
    ] {
        world.clock.store(time, Ordering::SeqCst);
        let run = world
            .deliveries
            .run_due(&NoRecurrence, UnixMillis::ZERO)
            .await
            .unwrap();
        assert_eq!(state().await, kind);
        assert!(run.next.is_some());
    }
}

/// Whoever was not before leaves it as it is.
#[tokio::test]
async fn a_step_with_a_job_that_somebody_has_changed_is_not_done() {
    let world = World::new(0);
    let new = NewJob::new(recipient(0), UnixMillis(START), "x");
    let (id, _) = world.deliveries.schedule(&new).await.unwrap();
    let read = world.deliveries.get(&id).await.unwrap().unwrap();
    world.deliveries.cancel(&id).await.unwrap();
    let step = Step::Force;
    let done = world.deliveries.step_from(&read, &step, Batch::new()).await;
    assert!(
        matches!(
            done,
            Err(DeliveryError::Storage(StorageError::CheckFailed { .. }))
        ),
        "{done:?}"
    );
    let stored = world.deliveries.get(&id).await.unwrap().unwrap();
    assert_eq!(stored.job.state, JobState::Cancelled);
}

/// Every ten seconds.
struct Tens;

impl Recurrence for Tens {
    fn next(
        &self,
        text: &str,
        anchor: UnixMillis,
        after: UnixMillis,
    ) -> Result<Option<UnixMillis>, String> {
        if text != "tens" {
            return Err("what is that?".to_owned());
        }
        let times = (after.0 - anchor.0) / 10_000 + 1;
        Ok(Some(UnixMillis(anchor.0 + times * 10_000)))
    }
}

#[tokio::test]
async fn a_recurring_job_makes_a_job_at_each_of_its_times() {
    let world = World::new(0);
    let deliveries = &world.deliveries;
    let series = NewJob {
        id: Some("s".parse().unwrap()),
        recurrence: Some("tens".to_owned()),
        ..NewJob::new(recipient(0), UnixMillis(START + 10_000), "x")
    };
    let (id, _) = deliveries.schedule(&series).await.unwrap();
    let ids = async || {
        let jobs = world.jobs().await;
        jobs.into_iter()
            .map(|(id, job)| format!("{id} {}", job.state.kind()))
            .collect::<Vec<_>>()
    };
    let run = async |time: u64| {
        world.clock.store(START + time, Ordering::SeqCst);
        deliveries.run_due(&Tens, UnixMillis::ZERO).await.unwrap()
    };
    run(9_999).await;
    assert_eq!(ids().await, ["s pending"]);
    assert_eq!(run(10_000).await.next, Some(UnixMillis(START + 20_000)));
    let first = format!("s@{} ready", START + 10_000);
    assert_eq!(ids().await, ["s pending", &first]);
    // Three times passed while nobody looked: they are one.
    assert_eq!(run(45_000).await.next, Some(UnixMillis(START + 50_000)));
    assert_eq!(ids().await.len(), 3);
    // Forced: now, and not at its time.
    deliveries.force(&id).await.unwrap();
    run(46_000).await;
    assert_eq!(ids().await.len(), 4);
    run(50_000).await;
    assert_eq!(ids().await.len(), 4);
    run(60_000).await;
    assert_eq!(ids().await.len(), 5);
    deliveries.cancel(&id).await.unwrap();
    run(900_000).await;
    assert_eq!(ids().await.len(), 5);
    // What nobody understands is a dead letter.
    let bad = NewJob {
        id: Some("bad".parse().unwrap()),
        recurrence: Some("x".to_owned()),
        ..NewJob::new(recipient(0), UnixMillis(START), "x")
    };
    deliveries.schedule(&bad).await.unwrap();
    assert_eq!(run(900_001).await.failed, 1);
    let stored = deliveries
        .get(&"bad".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert!(
        matches!(stored.job.state, JobState::Failed { reason } if reason.contains("what is that?"))
    );
}

/// What waits for a recipient comes in the order in which it was due, however much it is.
#[tokio::test]
async fn what_waits_comes_in_the_order_in_which_it_was_due() {
    const JOBS: u64 = 600;
    let world = World::new(0);
    for n in (0..JOBS).rev() {
        let due = UnixMillis(START + n);
        let new = NewJob {
            id: Some(
                format!("{:x}", n.wrapping_mul(0x9e37_79b9) % 100_003)
                    .parse()
                    .unwrap(),
            ),
            ..NewJob::new(recipient(0), due, n.to_string())
        };
        world.deliveries.schedule(&new).await.unwrap();
    }
    world.clock.store(START + JOBS, Ordering::SeqCst);
    world
        .deliveries
        .run_due(&NoRecurrence, UnixMillis::ZERO)
        .await
        .unwrap();
    let mut receiver = world.deliveries.receive(&recipient(0), "h");
    for n in 0..JOBS {
        let delivery = receiver.next().await.unwrap();
        assert_eq!(delivery.payload(), n.to_string().as_bytes());
        delivery.acknowledge().await.unwrap();
    }
    assert!(
        tokio::time::timeout(Duration::ZERO, receiver.next())
            .await
            .is_err()
    );
}

/// Rows without a job, and jobs without their row, are put right or left alone, and hold nobody up.
#[tokio::test]
async fn rows_that_are_none_hold_nobody_up() {
    let world = World::new(0);
    let time = format!("{:012x}", START - 5);
    let stale = format!("deliveries/due/{time}gone");
    world
        .storage
        .put(stale.clone().into(), "".into())
        .await
        .unwrap();
    world
        .storage
        .put("deliveries/due/zzz".into(), "".into())
        .await
        .unwrap();
    world
        .storage
        .put("deliveries/jobs/odd".into(), "hello".into())
        .await
        .unwrap();
    world
        .storage
        .put(format!("deliveries/due/{time}odd").into(), "".into())
        .await
        .unwrap();
    let new = NewJob::new(recipient(0), UnixMillis(START - 1), "x");
    world.deliveries.schedule(&new).await.unwrap();
    let run = world
        .deliveries
        .run_due(&NoRecurrence, UnixMillis::ZERO)
        .await
        .unwrap();
    assert_eq!((run.moved, run.unreadable), (1, 2));
    assert!(world.storage.get_one(stale.into()).await.unwrap().is_none());
    let page = world
        .deliveries
        .list(&JobFilter::default(), None, 10)
        .await
        .unwrap();
    assert_eq!((page.jobs.len(), page.unreadable), (1, 1));
}

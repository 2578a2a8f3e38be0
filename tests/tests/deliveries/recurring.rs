//! Recurring jobs and clocks that are wrong: a recipient that is away finds one run, and a clock that was ahead leaves nothing
//! behind that lies years away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use storage_protocol::deliveries::{
    Deliveries, DeliveryError, JobFilter, JobId, JobState, NewJob, NoRecurrence, Policy, Recipient,
    StateKind,
};
use storage_protocol::{Keyspace, Storage, StorageExt, UnixMillis};
use storage_schedule::Calendar;
use storage_testkit::model::ModelStore;

const START: u64 = 1_700_000_000_000;
const SECOND: u64 = 1_000;
const YEAR: u64 = 365 * 24 * 3_600 * SECOND;

struct World {
    storage: Arc<dyn Storage>,
    clock: Arc<AtomicU64>,
    deliveries: Deliveries,
}

impl World {
    fn new() -> Self {
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
        }
    }

    async fn schedule(&self, id: &str, change: impl FnOnce(&mut NewJob)) -> JobId {
        let recipient = Recipient::new("r").unwrap();
        let mut new = NewJob {
            id: Some(id.parse().unwrap()),
            ..NewJob::new(recipient, UnixMillis(START + 10 * SECOND), "x")
        };
        change(&mut new);
        self.deliveries.schedule(&new).await.unwrap().0
    }

    async fn every(&self, id: &str, period: &str) -> JobId {
        let recurrence = Some(format!("every {period}"));
        self.schedule(id, |new| new.recurrence = recurrence).await
    }

    /// Looks at the clock, which shows this many milliseconds behind the start.
    async fn at(&self, time: u64) {
        self.clock.store(START + time, Ordering::SeqCst);
        let ran = self.deliveries.run_due(&Calendar, UnixMillis::ZERO).await;
        ran.unwrap();
    }

    async fn state(&self, id: &str) -> JobState {
        let stored = self.deliveries.get(&id.parse().unwrap()).await.unwrap();
        stored.unwrap().job.state
    }

    async fn due(&self, id: &JobId) -> u64 {
        let stored = self.deliveries.get(id).await.unwrap().unwrap();
        assert_eq!(stored.job.state.wake(), Some(stored.job.due));
        stored.job.due.0 - START
    }

    async fn open_runs(&self) -> Vec<String> {
        let filter = JobFilter::default();
        let page = self.deliveries.list(&filter, None, 1_000).await.unwrap();
        let runs = page.jobs.into_iter().filter(|stored| {
            let job = &stored.job;
            !job.is_recurring() && job.state.kind().is_open()
        });
        runs.map(|stored| stored.id.to_string()).collect()
    }
}

fn run(series: &str, time: u64) -> String {
    format!("{series}@{}", START + time)
}

#[tokio::test]
async fn a_recipient_that_is_away_finds_the_last_run_alone() {
    let world = World::new();
    world.every("s", "10s").await;
    for time in (10..=1_000).step_by(10) {
        world.at(time * SECOND).await;
        let open: Vec<_> = world.open_runs().await;
        assert_eq!(open, [run("s", time * SECOND)]);
    }
    let JobState::Failed { reason } = world.state(&run("s", 500 * SECOND)).await else {
        panic!("{:?}", world.state(&run("s", 500 * SECOND)).await);
    };
    assert!(reason.contains("when the next run was due"), "{reason}");
    // Whoever has one keeps it.
    let mut receiver = world.deliveries.receive(&Recipient::new("r").unwrap(), "h");
    let delivery = receiver.next().await.unwrap();
    assert_eq!(delivery.id().as_str(), run("s", 1_000 * SECOND));
    world.at(1_010 * SECOND).await;
    assert_eq!(world.open_runs().await.len(), 2);
    delivery.acknowledge().await.unwrap();
    assert_eq!(world.state(&run("s", 1_000 * SECOND)).await, JobState::Done);
    assert_eq!(world.open_runs().await, [run("s", 1_010 * SECOND)]);
}

/// The last run ends on its own account in the moment in which the next one is made.
#[tokio::test]
async fn a_run_that_ends_when_the_next_one_is_due_holds_up_nothing() {
    let world = World::new();
    world
        .schedule("s", |new| {
            new.recurrence = Some("every 10s".to_owned());
            new.policy = Policy {
                window: Duration::from_secs(10),
                ..Policy::default()
            };
        })
        .await;
    for time in (10..=100).step_by(10) {
        world.at(time * SECOND).await;
        assert_eq!(world.open_runs().await, [run("s", time * SECOND)]);
        let before = run("s", (time - 10) * SECOND).parse().unwrap();
        if let Some(before) = world.deliveries.get(&before).await.unwrap() {
            assert_eq!(before.job.state.kind(), StateKind::Failed);
        }
    }
}

#[tokio::test]
async fn a_clock_that_was_ahead_ends_no_series() {
    let world = World::new();
    let (every, night) = (world.every("s", "10s").await, "cron 0 3 * * *");
    let cron = world
        .schedule("n", |new| new.recurrence = Some(night.to_owned()))
        .await;
    world.at(10 * SECOND).await;
    let next_night = world.due(&cron).await;
    // Once, and then for several of its times.
    for (n, ahead) in [
        vec![7 * YEAR],
        vec![7 * YEAR, 7 * YEAR + 3 * 24 * 3_600 * SECOND],
    ]
    .into_iter()
    .enumerate()
    {
        for time in ahead {
            world.at(time).await;
        }
        assert!(world.due(&every).await >= 7 * YEAR);
        let now = 31 + 20 * n as u64;
        world.at(now * SECOND).await;
        // Both, and their runs, which wait.
        assert_eq!(world.deliveries.set_back(&Calendar).await.unwrap(), 4);
        let due = world.due(&every).await;
        assert_eq!(due, (now + 9) * SECOND);
        assert_eq!(world.due(&cron).await, next_night);
        // And then there is nothing more to do.
        assert_eq!(world.deliveries.set_back(&Calendar).await.unwrap(), 0);
        world.at(due).await;
        let ready = world.state(&run("s", due)).await;
        assert_eq!(ready.kind(), StateKind::Ready);
    }
}

#[tokio::test]
async fn a_time_that_had_its_run_has_no_second_one() {
    let world = World::new();
    let id = world.every("s", "10s").await;
    for time in [10, 20, 30] {
        world.at(time * SECOND).await;
    }
    let mut receiver = world.deliveries.receive(&Recipient::new("r").unwrap(), "h");
    let delivery = receiver.next().await.unwrap();
    assert_eq!(delivery.id().as_str(), run("s", 30 * SECOND));
    delivery.acknowledge().await.unwrap();
    // Half a minute back.
    world.at(2 * SECOND).await;
    assert_eq!(world.deliveries.set_back(&Calendar).await.unwrap(), 1);
    for time in [10, 20, 30, 40] {
        assert_eq!(world.due(&id).await, time * SECOND);
        world.at(time * SECOND).await;
    }
    assert_eq!(world.open_runs().await, [run("s", 40 * SECOND)]);
    assert_eq!(world.state(&run("s", 30 * SECOND)).await, JobState::Done);
}

/// Where a time has had its run already, nothing takes the place of one that waits.
#[tokio::test]
async fn only_a_run_that_is_made_takes_the_place_of_another() {
    let world = World::new();
    let id = world.every("s", "10s").await;
    for time in [10 * SECOND, 7 * YEAR, 7 * YEAR + 10 * SECOND] {
        world.at(time).await;
    }
    let waiting = world.open_runs().await;
    assert_eq!(waiting.len(), 1);
    world.at(12 * SECOND).await;
    world.deliveries.set_back(&Calendar).await.unwrap();
    assert_eq!(world.due(&id).await, 20 * SECOND);
    world.at(20 * SECOND).await;
    assert_eq!(world.open_runs().await, waiting);
    // This one is made.
    world.at(30 * SECOND).await;
    assert_eq!(world.open_runs().await, [run("s", 30 * SECOND)]);
}

#[tokio::test]
async fn a_job_that_has_the_id_of_a_run_does_not_give_way() {
    let world = World::new();
    let other = world.every(&run("s", 10 * SECOND), "1h").await;
    world.every("s", "10s").await;
    for time in [10, 20, 30] {
        world.at(time * SECOND).await;
    }
    let kind = world.state(other.as_str()).await.kind();
    assert_eq!(kind, StateKind::Pending);
    let runs = world.open_runs().await;
    assert_eq!(runs.len(), 2, "{runs:?}");
    assert!(runs.contains(&run("s", 30 * SECOND)), "{runs:?}");
}

#[tokio::test]
async fn the_first_time_that_somebody_wanted_stays() {
    const MONTH: u64 = 30 * 24 * 3_600 * SECOND;
    let world = World::new();
    let id = world
        .schedule("s", |new| {
            new.recurrence = Some("every 1d".to_owned());
            new.due = UnixMillis(START + MONTH);
        })
        .await;
    world.at(2 * YEAR).await;
    world.at(5 * SECOND).await;
    world.deliveries.set_back(&Calendar).await.unwrap();
    assert_eq!(world.due(&id).await, MONTH);
}

/// Somebody forces it before the scheduler has noticed that the clock is back.
#[tokio::test]
async fn who_forces_a_job_of_a_clock_that_was_ahead_does_not_keep_it_there() {
    let world = World::new();
    let id = world.every("s", "10s").await;
    world.at(10 * SECOND).await;
    world.at(7 * YEAR).await;
    world.clock.store(START + 15 * SECOND, Ordering::SeqCst);
    world.deliveries.force(&id).await.unwrap();
    world.at(15 * SECOND).await;
    // It stands for the time at 20 s.
    assert_eq!(world.due(&id).await, 30 * SECOND);
}

#[tokio::test]
async fn a_recurring_job_is_not_acknowledged() {
    let world = World::new();
    let id = world.every("s", "10s").await;
    world.at(10 * SECOND).await;
    let error = world.deliveries.acknowledge(&id).await.unwrap_err();
    assert!(matches!(error, DeliveryError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn times_that_were_reckoned_ahead_are_put_back_by_as_much() {
    let world = World::new();
    let policy = Policy {
        ack: Duration::from_secs(30),
        backoff: Duration::from_secs(4),
        window: Duration::from_secs(60),
        ..Policy::default()
    };
    for id in ["given", "declined", "waiting"] {
        world.schedule(id, |new| new.policy = policy).await;
    }
    let wanted = UnixMillis(START + 2 * YEAR);
    world.schedule("wanted", |new| new.due = wanted).await;
    world.clock.store(START + YEAR, Ordering::SeqCst);
    let ran = world
        .deliveries
        .run_due(&NoRecurrence, UnixMillis::ZERO)
        .await;
    ran.unwrap();
    // Something that is scheduled by the clock that is ahead stays as it is.
    let later = UnixMillis(START + YEAR + 5 * SECOND);
    world.schedule("later", |new| new.due = later).await;
    let step = storage_protocol::deliveries::Step::HandOver {
        holder: "h".to_owned(),
    };
    for id in ["given", "declined"] {
        world
            .deliveries
            .step(&id.parse().unwrap(), &step)
            .await
            .unwrap();
    }
    let declined = "declined".parse().unwrap();
    world.deliveries.decline(&declined, "no").await.unwrap();
    world.clock.store(START + 20 * SECOND, Ordering::SeqCst);
    assert_eq!(world.deliveries.set_back(&Calendar).await.unwrap(), 3);
    for (id, wake) in [
        ("given", START + 50 * SECOND),
        ("declined", START + 24 * SECOND),
        ("waiting", START + 80 * SECOND),
        ("wanted", wanted.0),
        ("later", later.0),
    ] {
        assert_eq!(world.state(id).await.wake(), Some(UnixMillis(wake)), "{id}");
    }
    assert_eq!(
        world.deliveries.next_due().await.unwrap(),
        Some(UnixMillis(START + 24 * SECOND))
    );
}

#[tokio::test]
async fn what_is_no_row_hides_no_time() {
    let world = World::new();
    for n in 0..200 {
        let key = format!("deliveries/due/!{n}");
        world.storage.put(key.into(), "".into()).await.unwrap();
    }
    assert_eq!(world.deliveries.next_due().await.unwrap(), None);
    world.schedule("a", |_| {}).await;
    assert_eq!(
        world.deliveries.next_due().await.unwrap(),
        Some(UnixMillis(START + 10 * SECOND))
    );
}

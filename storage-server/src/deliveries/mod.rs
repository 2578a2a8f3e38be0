//! Who looks at the clock for jobs: one task for each keyspace that is configured.
//!
//! It sleeps until the first of the rows of `deliveries/due/`, and a watch of these tells it of earlier ones. So it costs
//! nothing while nothing is due, however many jobs wait. When it begins, and when the clock is put back, it reads all jobs once, to
//! reckon anew what was reckoned by a clock that was ahead ([`Deliveries::set_back`]). What it does is [`Deliveries::run_due`]; any number of servers may do
//! so for one store.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use storage_protocol::deliveries::{DEFAULT_PREFIX, Deliveries};
use storage_protocol::{
    Batch, ChangeKind, CommitOptions, Keyspace, Lifetime, Result, Storage, StorageError,
    UnixMillis, Watch, WatchEvent, WatchOptions,
};
use storage_schedule::Calendar;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::WallClock;
use crate::shared::Shared;

/// A key that is there as long as somebody looks at the clock for the jobs of a keyspace.
const BEACON: &str = "scheduler";
/// After a failure of the store.
const RETRY: Duration = Duration::from_secs(1);
/// Until there may be room again.
const ROOM: Duration = Duration::from_secs(60);
/// When others had changed some of the jobs meanwhile.
const CONTENDED: Duration = Duration::from_millis(20);

/// What is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    moved: Counter,
    failed: Counter,
    lateness: Gauge,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "storage_deliveries_moved",
            "Jobs that were moved on since their time had come",
            self.moved.clone(),
        );
        registry.register(
            "storage_deliveries_failed",
            "Of these, dead letters",
            self.failed.clone(),
        );
        registry.register(
            "storage_deliveries_late_milliseconds",
            "How late the last of them were looked at",
            self.lateness.clone(),
        );
    }
}

/// Looks after the jobs of all keyspaces that are configured, until the server stops.
pub(crate) fn start(shared: &Shared, metrics: &Metrics) {
    for keyspace in shared.config.keyspaces_of_jobs() {
        let storage = shared.own_session(&keyspace).storage();
        let (clock, stop) = (shared.clock().clone(), shared.stop.clone());
        let running = run(storage, keyspace, clock, metrics.clone(), stop);
        shared.tasks.spawn(running);
    }
}

async fn run(
    storage: Arc<dyn Storage>,
    keyspace: Keyspace,
    clock: WallClock,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let deliveries = Deliveries::new(storage.clone()).with_clock(clock.of_deliveries());
    let mut scheduler = Scheduler {
        storage,
        deliveries,
        clock,
        metrics,
        floor: UnixMillis::ZERO,
        latest: UnixMillis::ZERO,
        set_back_at: Some(Instant::now()),
    };
    let running = async {
        loop {
            match scheduler.attend().await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%keyspace, %error, "cannot look after jobs; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        () = running => {}
        () = stop.cancelled() => {}
    }
}

struct Scheduler {
    storage: Arc<dyn Storage>,
    deliveries: Deliveries,
    clock: WallClock,
    metrics: Metrics,
    /// No row has an earlier time: those that are gone have left tombstones, which need not be passed again.
    floor: UnixMillis,
    /// The latest time that the clock has shown.
    latest: UnixMillis,
    /// All jobs are to be read then, to reckon anew what a clock has reckoned that was ahead.
    set_back_at: Option<Instant>,
}

impl Scheduler {
    /// Until the watch breaks off, which then begins anew.
    async fn attend(&mut self) -> Result<()> {
        self.latest = self.latest.max(self.clock.now());
        // Ordering: the watch first, so that no row is missed between the look and the watch.
        let options = WatchOptions::default();
        let mut watch = self
            .storage
            .watch(self.deliveries.due_range(), options)
            .await?;
        self.floor = UnixMillis::ZERO;
        let beacon = format!("{DEFAULT_PREFIX}{BEACON}");
        let batch = Batch::new().put_with(beacon, "", Lifetime::Session);
        let options = CommitOptions::labelled("scheduler begun");
        self.storage.commit(batch, options).await?;
        let mut next = Some(UnixMillis::ZERO);
        loop {
            let due = next;
            let waiting = async {
                match due {
                    Some(due) => self.clock.reaches(due).await,
                    None => std::future::pending().await,
                }
            };
            let set_back_at = self.set_back_at;
            let setting_back = async {
                match set_back_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = watch.next() => match self.hear(event)? {
                    Heard::Row(time) => next = Some(next.map_or(time, |next| next.min(time))),
                    Heard::Nothing => {}
                    Heard::Broken => return Ok(()),
                },
                () = self.clock.goes_back(&mut self.latest) => {
                    self.set_back_at = Some(Instant::now());
                }
                () = setting_back => {
                    self.set_back().await?;
                    (self.floor, next) = (UnixMillis::ZERO, Some(UnixMillis::ZERO));
                }
                () = waiting => {
                    match self.drain(&mut watch)? {
                        true => {}
                        false => return Ok(()),
                    }
                    next = self.look().await?;
                }
            }
        }
    }

    async fn set_back(&mut self) -> Result<()> {
        match self.deliveries.set_back(&Calendar).await {
            Ok(jobs) => {
                self.set_back_at = None;
                if jobs > 0 {
                    tracing::warn!(
                        jobs,
                        "the clock was ahead, and is back: times of jobs that were reckoned by it are reckoned anew"
                    );
                }
            }
            // What needs no room is moved on nevertheless.
            Err(
                error @ (StorageError::QuotaExceeded { .. } | StorageError::StorageFull { .. }),
            ) => {
                self.set_back_at = Some(Instant::now() + ROOM);
                tracing::warn!(%error, "times of jobs by a clock that was ahead cannot all be reckoned anew");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What has been told already is seen by the look that follows.
    fn drain(&mut self, watch: &mut Watch) -> Result<bool> {
        while let Some(event) = watch.next().now_or_never() {
            if let Heard::Broken = self.hear(event)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn hear(&mut self, event: Result<Option<WatchEvent>>) -> Result<Heard> {
        let commit = match event {
            Ok(Some(WatchEvent::Commit(commit))) => commit,
            Ok(Some(_)) => return Ok(Heard::Nothing),
            Err(StorageError::Compacted { .. } | StorageError::AccessChanged) => {
                return Ok(Heard::Broken);
            }
            Ok(None) => {
                return Err(StorageError::Closed {
                    reason: "the watch has ended".to_owned(),
                    outcome: storage_protocol::Outcome::NotExecuted,
                });
            }
            Err(error) => return Err(error),
        };
        let puts = commit
            .changes
            .iter()
            .filter(|change| matches!(change.kind, ChangeKind::Put { .. }));
        let first = puts
            .filter_map(|change| self.deliveries.time_of(&change.key))
            .min();
        Ok(match first {
            Some(time) => {
                self.floor = self.floor.min(time);
                Heard::Row(time)
            }
            None => Heard::Nothing,
        })
    }

    /// Moves on what is due; when to look again.
    async fn look(&mut self) -> Result<Option<UnixMillis>> {
        let began = self.clock.now();
        self.latest = self.latest.max(began);
        let run = self.deliveries.run_due(&Calendar, self.floor).await?;
        self.metrics.moved.inc_by(run.moved as u64);
        self.metrics.failed.inc_by(run.failed as u64);
        if run.unreadable > 0 {
            let keys = self.deliveries.due_range().start;
            tracing::warn!(
                jobs = run.unreadable,
                below = %keys.escape_ascii(),
                "jobs that are due cannot be read, or not be moved on; they are left as they are"
            );
        }
        if let Some(first) = run.first {
            let late = self.clock.now().0.saturating_sub(first.0);
            self.metrics
                .lateness
                .set(i64::try_from(late).unwrap_or(i64::MAX));
        }
        if run.is_contended {
            return Ok(Some(self.clock.now().after(CONTENDED)));
        }
        // What was put meanwhile, with whatever time, is told by the watch.
        self.floor = run.next.unwrap_or(began).min(began);
        Ok(run.next)
    }
}

enum Heard {
    /// Something is to be done at this time.
    Row(UnixMillis),
    Nothing,
    Broken,
}

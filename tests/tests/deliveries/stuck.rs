//! A job that the storage does not take as it would be: it is left behind, and holds up no other.

use std::sync::Arc;

use async_trait::async_trait;
use storage_protocol::deliveries::{
    Deliveries, JobId, JobState, NewJob, Recipient, Recurrence, StateKind,
};
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, Keyspace, Limit, Limits, Position, Reading, Result,
    Scan, ScanOptions, Storage, StorageError, StorageExt, UnixMillis, Watch, WatchOptions,
};
use storage_testkit::model::ModelStore;

const START: UnixMillis = UnixMillis(1_700_000_000_000);
/// Jobs that are looked at together.
const PAGE: usize = 64;

/// A storage with limits of its own.
#[derive(Debug)]
struct Narrow {
    inner: Arc<dyn Storage>,
    operations_max: usize,
    /// Entries of an answer.
    entries_max: usize,
    /// No commit may put this key.
    full: Option<Key>,
}

#[async_trait]
impl Storage for Narrow {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        self.check(Limit::Message, keys.len(), self.entries_max)?;
        self.inner.get(keys).await
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        self.inner.scan(range, options).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        let operations = batch.operations.len();
        self.check(Limit::OperationsPerCommit, operations, self.operations_max)?;
        let mut keys = batch.operations.iter().map(|operation| operation.key());
        if self
            .full
            .as_ref()
            .is_some_and(|full| keys.any(|key| key == full))
        {
            return Err(StorageError::QuotaExceeded {
                limit: Limit::KeyspaceBytes,
                max: 1,
            });
        }
        self.inner.commit(batch, options).await
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        self.inner.watch(range, options).await
    }

    async fn limits(&self) -> Result<Limits> {
        self.inner.limits().await
    }
}

impl Narrow {
    fn check(&self, limit: Limit, actual: usize, max: usize) -> Result<()> {
        match actual > max {
            true => Err(StorageError::LimitExceeded {
                limit,
                max: max as u64,
                actual: actual as u64,
            }),
            false => Ok(()),
        }
    }
}

/// Never again.
struct Once;

impl Recurrence for Once {
    fn next(
        &self,
        _: &str,
        _: UnixMillis,
        _: UnixMillis,
    ) -> std::result::Result<Option<UnixMillis>, String> {
        Ok(None)
    }
}

struct World {
    /// Without limits.
    all: Deliveries,
    storage: Arc<dyn Storage>,
}

impl World {
    fn new() -> Self {
        let keyspace = Keyspace::new("jobs").unwrap();
        let storage: Arc<dyn Storage> = Arc::new(ModelStore::new().storage(&keyspace));
        Self {
            all: Deliveries::new(storage.clone()).with_clock(Arc::new(|| START)),
            storage,
        }
    }

    fn narrow(&self, change: impl FnOnce(&mut Narrow)) -> Deliveries {
        let mut narrow = Narrow {
            inner: self.storage.clone(),
            operations_max: usize::MAX,
            entries_max: usize::MAX,
            full: None,
        };
        change(&mut narrow);
        Deliveries::new(Arc::new(narrow)).with_clock(Arc::new(|| START))
    }

    async fn schedule(&self, id: &str, change: impl FnOnce(&mut NewJob)) -> JobId {
        let mut new = NewJob {
            id: Some(id.parse().unwrap()),
            ..NewJob::new(Recipient::new("r").unwrap(), START, "x")
        };
        change(&mut new);
        self.all.schedule(&new).await.unwrap().0
    }

    async fn state(&self, id: &JobId) -> JobState {
        self.all.get(id).await.unwrap().unwrap().job.state
    }
}

#[tokio::test]
async fn commits_and_answers_are_as_large_as_the_storage_takes_them() {
    let world = World::new();
    let mut ids = Vec::new();
    for n in 0..PAGE + 9 {
        ids.push(world.schedule(&format!("j{n}"), |_| {}).await);
    }
    let narrow = world.narrow(|narrow| {
        narrow.operations_max = 10;
        narrow.entries_max = 5;
    });
    let run = narrow.run_due(&Once, UnixMillis::ZERO).await.unwrap();
    assert_eq!((run.moved, run.failed), (ids.len(), 0));
    for id in &ids {
        assert_eq!(world.state(id).await.kind(), StateKind::Ready);
    }
}

#[tokio::test]
async fn one_that_is_too_large_is_a_dead_letter_and_the_others_go_on() {
    let world = World::new();
    let window = |new: &mut NewJob| new.policy.window = std::time::Duration::from_secs(1);
    // It ends with more operations than are allowed.
    let large = world
        .schedule("large", |new| {
            window(new);
            new.attached = (0..8).map(|n| format!("{n}").into()).collect();
        })
        .await;
    let small = world.schedule("small", window).await;
    world.all.run_due(&Once, UnixMillis::ZERO).await.unwrap();
    let later = Arc::new(|| UnixMillis(START.0 + 5_000));
    let narrow = world
        .narrow(|narrow| narrow.operations_max = 8)
        .with_clock(later);
    let run = narrow.run_due(&Once, UnixMillis::ZERO).await.unwrap();
    assert_eq!((run.moved, run.failed, run.unreadable), (2, 2, 0));
    let JobState::Failed { reason } = world.state(&large).await else {
        panic!("{:?}", world.state(&large).await);
    };
    assert!(
        reason.contains("cannot be moved on: operations"),
        "{reason}"
    );
    assert!(
        matches!(world.state(&small).await, JobState::Failed { reason } if reason.contains("1000 ms"))
    );
}

/// A job has the id that the run of a recurring one would have, and both are due.
#[tokio::test]
async fn a_job_that_has_the_id_of_a_run_holds_up_neither() {
    let world = World::new();
    let run = world.schedule(&format!("s@{}", START.0), |_| {}).await;
    let series = world
        .schedule("s", |new| new.recurrence = Some("once".to_owned()))
        .await;
    let other = world.schedule("t", |_| {}).await;
    world.all.run_due(&Once, UnixMillis::ZERO).await.unwrap();
    assert_eq!(world.state(&run).await.kind(), StateKind::Ready);
    assert_eq!(world.state(&series).await, JobState::Done);
    assert_eq!(world.state(&other).await.kind(), StateKind::Ready);
}

/// No room for one is told, once all others have been moved; it is tried again, and no dead letter.
#[tokio::test]
async fn without_room_for_one_the_others_go_on() {
    let world = World::new();
    let full = world.schedule("b", |_| {}).await;
    let others = [
        world.schedule("a", |_| {}).await,
        world.schedule("c", |_| {}).await,
    ];
    let narrow = world.narrow(|narrow| narrow.full = Some("deliveries/jobs/b".into()));
    let error = narrow.run_due(&Once, UnixMillis::ZERO).await.unwrap_err();
    assert!(
        matches!(error, StorageError::QuotaExceeded { .. }),
        "{error}"
    );
    for id in &others {
        assert_eq!(world.state(id).await.kind(), StateKind::Ready);
    }
    assert_eq!(world.state(&full).await.kind(), StateKind::Pending);
    world.all.run_due(&Once, UnixMillis::ZERO).await.unwrap();
    assert_eq!(world.state(&full).await.kind(), StateKind::Ready);
}

/// Who may write jobs cannot have the server remove what it may not write itself.
#[tokio::test]
async fn no_record_has_keys_removed_that_are_not_its_own() {
    let world = World::new();
    let names: [&[u8]; 3] = [b"secret", b"../../secret", b"deliveries/jobs/other"];
    world
        .storage
        .put("secret".into(), "x".into())
        .await
        .unwrap();
    let other = world
        .schedule("other", |new| new.due = UnixMillis(START.0 + 1_000))
        .await;
    let thief = world
        .schedule("thief", |new| {
            new.attached = names
                .iter()
                .map(|name| Key::copy_from_slice(name))
                .collect();
        })
        .await;
    let own = world.all.attached_key(&thief, b"secret");
    assert_eq!(own, "deliveries/with/thief/secret");
    world.storage.put(own.clone(), "x".into()).await.unwrap();
    world.all.run_due(&Once, UnixMillis::ZERO).await.unwrap();
    world.all.fail(&thief, "over").await.unwrap();
    assert!(world.storage.get_one(own).await.unwrap().is_none());
    assert!(
        world
            .storage
            .get_one("secret".into())
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(world.state(&other).await.kind(), StateKind::Pending);
}

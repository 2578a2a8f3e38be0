//! [`Deliveries`]: the jobs in a storage, and what is done with them.

use std::fmt;
use std::sync::Arc;

use super::change::Before;
use super::keys::Place;
use super::{DEFAULT_PREFIX, DeliveryError, Job, JobId, NewJob, StateKind, Step};
use crate::{
    Batch, CommitOptions, Key, Outcome, Position, Revision, Storage, StorageError, StorageExt,
    UnixMillis,
};

/// Tells the time: the wall clock, unless a test has one of its own.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// So many times a step is tried that others get before.
const TRIES_MAX: usize = 64;

type Result<T> = std::result::Result<T, DeliveryError>;

/// A job as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: JobId,
    /// What it is.
    pub job: Job,
    /// The commit that made it so: a step that is to be done only if it still is checks that.
    pub revision: Revision,
}

/// The jobs of a storage, below a prefix. Cheap to clone. See the [module](super).
///
/// # Cancel safety
/// As that of [`Storage::commit`]: a call that was dropped may have been carried out, as a whole or not at all.
#[derive(Clone)]
pub struct Deliveries {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) place: Place,
    clock: Clock,
}

impl fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deliveries")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Deliveries {
    /// Those below `deliveries/`, by this machine's clock.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self {
            storage,
            place: Place::new(Key::from_static(DEFAULT_PREFIX.as_bytes())),
            clock: Arc::new(UnixMillis::now),
        }
    }

    /// Those below another prefix.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<Key>) -> Self {
        self.place = Place::new(prefix.into());
        self
    }

    /// By another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// What its clock says.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        (self.clock)()
    }

    /// The range of the rows that say when something is to be done; for who looks at the clock.
    #[must_use]
    pub fn due_range(&self) -> crate::KeyRange {
        self.place.all_due()
    }

    /// The range of a job's record alone; for who watches it.
    #[must_use]
    pub fn record_range(&self, id: &JobId) -> crate::KeyRange {
        crate::KeyRange::single(self.place.job(id))
    }

    /// The key of what goes with a job, by its name in [`Job::attached`].
    #[must_use]
    pub fn attached_key(&self, id: &JobId, name: &[u8]) -> Key {
        self.place.attached(id, name)
    }

    /// The time of a key of [`due_range`](Self::due_range).
    #[must_use]
    pub fn time_of(&self, key: &[u8]) -> Option<UnixMillis> {
        self.place.parse_due(key).map(|(time, _)| time)
    }

    /// Schedules a job; its id.
    ///
    /// # Errors
    /// [`DeliveryError::Exists`] if there is one of this id; [`DeliveryError::Invalid`]; [`DeliveryError::Storage`].
    pub async fn schedule(&self, new: &NewJob) -> Result<(JobId, Position)> {
        self.schedule_with(new, Batch::new()).await
    }

    /// The same, in one commit with changes of the caller's own.
    ///
    /// # Errors
    /// As [`Deliveries::schedule`]; a check of the caller's that fails is [`StorageError::CheckFailed`].
    pub async fn schedule_with(&self, new: &NewJob, batch: Batch) -> Result<(JobId, Position)> {
        let (id, batch) = self.schedule_into(new, batch)?;
        let options = CommitOptions::labelled("job scheduled");
        match self.storage.commit(batch, options).await {
            Ok(position) => Ok((id, position)),
            Err(StorageError::CheckFailed { key, .. }) if key == self.place.job(&id) => {
                Err(DeliveryError::Exists(id))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Adds to a batch what schedules a job, for a commit of the caller's own; with its id. The commit fails if there is a
    /// job of this id.
    ///
    /// # Errors
    /// [`DeliveryError::Invalid`].
    pub fn schedule_into(&self, new: &NewJob, batch: Batch) -> Result<(JobId, Batch)> {
        let job = new.begin(self.now())?;
        let id = match &new.id {
            Some(id) => id.clone(),
            None => random_id()?,
        };
        if job.is_recurring() {
            // So that it is found out now, and not at its first time.
            id.of_run(super::TIME_MAX)?;
        }
        let batch = self.place.moved(batch, &id, None, &job);
        Ok((id, batch))
    }

    /// A job as it is.
    ///
    /// # Errors
    /// [`DeliveryError::Storage`]; [`DeliveryError::Record`] for one that cannot be read.
    pub async fn get(&self, id: &JobId) -> Result<Option<Stored>> {
        let Some(entry) = self.storage.get_one(self.place.job(id)).await? else {
            return Ok(None);
        };
        self.stored(id, &entry.value, entry.revision).map(Some)
    }

    pub(super) fn stored(
        &self,
        id: &JobId,
        value: &crate::Value,
        revision: Revision,
    ) -> Result<Stored> {
        let job = Job::decode(value).map_err(|error| DeliveryError::Record {
            id: id.clone(),
            error,
        })?;
        Ok(Stored {
            id: id.clone(),
            job,
            revision,
        })
    }

    /// Does a step; the job behind it.
    ///
    /// # Errors
    /// [`DeliveryError::NoJob`]; [`DeliveryError::Refused`] where the job's state speaks against it;
    /// [`DeliveryError::Contended`]; [`DeliveryError::Storage`].
    pub async fn step(&self, id: &JobId, step: &Step) -> Result<Stored> {
        self.step_with(id, step, |_| Ok(()), Batch::new()).await
    }

    /// The same, if `judge` has nothing against the job as it is just before, and in one commit with changes of the caller's
    /// own. `judge` may be asked several times.
    ///
    /// # Errors
    /// As [`Deliveries::step`]; those of `judge`; a check of the caller's that fails is [`StorageError::CheckFailed`].
    pub async fn step_with(
        &self,
        id: &JobId,
        step: &Step,
        judge: impl Fn(&Job) -> Result<()> + Send,
        batch: Batch,
    ) -> Result<Stored> {
        for _ in 0..TRIES_MAX {
            let Some(stored) = self.get(id).await? else {
                return Err(DeliveryError::NoJob(id.clone()));
            };
            judge(&stored.job)?;
            match self.step_from(&stored, step, batch.clone()).await {
                Err(DeliveryError::Storage(StorageError::CheckFailed { key, .. }))
                    if key == self.place.job(id) => {}
                done => return done,
            }
        }
        Err(DeliveryError::Contended {
            id: id.clone(),
            tries: TRIES_MAX,
        })
    }

    /// Does a step with a job as it was read, if it still is like that, in one commit with changes of the caller's own.
    ///
    /// # Errors
    /// As [`Deliveries::step`]; [`StorageError::CheckFailed`] if somebody changed it meanwhile, or a check of the caller's
    /// fails.
    pub async fn step_from(&self, stored: &Stored, step: &Step, batch: Batch) -> Result<Stored> {
        let (id, now) = (&stored.id, self.now());
        let Ok(job) = stored.job.after(step, now) else {
            return Err(DeliveryError::Refused {
                id: id.clone(),
                state: stored.job.state.kind(),
                what: step.word(),
            });
        };
        let before = Before {
            job: &stored.job,
            revision: stored.revision,
        };
        let batch = self.place.moved(batch, id, Some(before), &job);
        let label = match job.state.kind() == StateKind::Failed {
            true => "job failed".to_owned(),
            false => format!("job {}", step.word()),
        };
        let options = CommitOptions::labelled(label);
        let position = self.storage.commit(batch, options).await?;
        Ok(Stored {
            id: id.clone(),
            job,
            revision: position.revision,
        })
    }

    /// The job is not to be delivered any more. One that was handed over already stays with its recipient.
    ///
    /// # Errors
    /// As [`Deliveries::step`].
    pub async fn cancel(&self, id: &JobId) -> Result<Stored> {
        self.step(id, &Step::Cancel).await
    }

    /// The job is due now, and not once more at its time.
    ///
    /// # Errors
    /// As [`Deliveries::step`].
    pub async fn force(&self, id: &JobId) -> Result<Stored> {
        self.step(id, &Step::Force).await
    }

    /// The recipient is through with it.
    ///
    /// # Errors
    /// As [`Deliveries::step`].
    pub async fn acknowledge(&self, id: &JobId) -> Result<Stored> {
        self.step(id, &Step::Acknowledge).await
    }

    /// The recipient does not take it as it is: it is tried again.
    ///
    /// # Errors
    /// As [`Deliveries::step`].
    pub async fn decline(&self, id: &JobId, reason: &str) -> Result<Stored> {
        let reason = reason.to_owned();
        self.step(id, &Step::Decline { reason }).await
    }

    /// It is a dead letter, whatever attempts are left.
    ///
    /// # Errors
    /// As [`Deliveries::step`].
    pub async fn fail(&self, id: &JobId, reason: &str) -> Result<Stored> {
        let reason = reason.to_owned();
        self.step(id, &Step::Fail { reason }).await
    }

    /// Removes a job with its record, whatever its state, if `judge` has nothing against it; what it was. One that is open is
    /// not delivered any more, but for one that was handed over already.
    ///
    /// # Errors
    /// As [`Deliveries::step_with`].
    pub async fn remove(
        &self,
        id: &JobId,
        judge: impl Fn(&Job) -> Result<()> + Send,
    ) -> Result<Stored> {
        for _ in 0..TRIES_MAX {
            let Some(stored) = self.get(id).await? else {
                return Err(DeliveryError::NoJob(id.clone()));
            };
            judge(&stored.job)?;
            let batch = self.place.removed(Batch::new(), &stored);
            let options = CommitOptions::labelled("job removed");
            match self.storage.commit(batch, options).await {
                Ok(_) => return Ok(stored),
                Err(StorageError::CheckFailed { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(DeliveryError::Contended {
            id: id.clone(),
            tries: TRIES_MAX,
        })
    }
}

fn random_id() -> Result<JobId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| StorageError::Internal {
        message: format!("no random bytes: {error}"),
        outcome: Outcome::NotExecuted,
    })?;
    let digits = id.iter().map(|byte| format!("{byte:02x}"));
    Ok(JobId::new(&digits.collect::<String>())?)
}

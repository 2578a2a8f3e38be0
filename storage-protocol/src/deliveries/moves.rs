//! What whoever looks at the clock does with one job, as parts of a commit.

use super::change::Before;
use super::keys::Place;
use super::{Job, JobId, JobState, Step, Stored};
use crate::{Batch, Key, Revision, StorageError, UnixMillis};

/// What is to be done with one row.
pub(super) struct Move {
    /// The record whose check may fail.
    pub(super) record: Key,
    /// Adds it to a commit.
    pub(super) parts: Vec<Part>,
    pub(super) row: Option<Key>,
    /// It was refused once, and is a dead letter for that.
    pub(super) is_given_up: bool,
}

impl Move {
    /// The job as it is to be, and nothing else.
    pub(super) fn of(place: &Place, before: Stored, job: Job) -> Self {
        let id = before.id.clone();
        Self {
            record: place.job(&id),
            parts: vec![Part::Job {
                id,
                before: Some(Box::new(before)),
                job: Box::new(job),
            }],
            row: None,
            is_given_up: false,
        }
    }

    /// The job that there was before it.
    fn known(&self) -> Option<(&JobId, &Stored)> {
        self.parts.iter().find_map(|part| match part {
            Part::Job {
                id,
                before: Some(stored),
                ..
            } => Some((id, &**stored)),
            Part::Job { before: None, .. } | Part::Stale { .. } => None,
        })
    }

    /// The recurring job that makes a run by it, as it was before.
    pub(super) fn series(&self) -> Option<&Job> {
        let makes_run = self.parts.iter().any(Part::is_new);
        let (_, before) = self.known()?;
        (makes_run && before.job.is_recurring()).then_some(&before.job)
    }

    /// Of a recurring job that makes a run by it, the run before that; not if that is of the same time.
    pub(super) fn last_run(&self) -> Option<JobId> {
        let last = self.series()?.handed_over?;
        let run = self.known()?.0.of_run(last).ok()?;
        let is_same = self.parts.iter().any(|part| match part {
            Part::Job { id, .. } => *id == run,
            Part::Stale { .. } => false,
        });
        (!is_same).then_some(run)
    }

    /// Leaves out what is about the record of a run, whose check has failed; whether there was anything. A run that is there
    /// already is not made, and none gives way to it. One that was handed over since does not give way.
    pub(super) fn leave_out(&mut self, place: &Place, record: &Key) -> bool {
        let is_about = |part: &Part| part.record(place).as_ref() == Some(record);
        if self.record == *record || !self.parts.iter().any(is_about) {
            return false;
        }
        let is_there = self
            .parts
            .iter()
            .any(|part| is_about(part) && part.is_new());
        match is_there {
            false => self.parts.retain(|part| !is_about(part)),
            true => {
                let own = self.record.clone();
                let is_own = |part: &Part| part.record(place).as_ref() == Some(&own);
                self.parts.retain(is_own);
                // What it made last stays what it made last.
                for part in &mut self.parts {
                    if let Part::Job {
                        before: Some(before),
                        job,
                        ..
                    } = part
                    {
                        job.handed_over = before.job.handed_over;
                        job.attempts = before.job.attempts;
                    }
                }
            }
        }
        true
    }

    /// The job as a dead letter, with nothing else: for one that the storage does not take as it would be. `None`: there is none,
    /// or it is that already.
    pub(super) fn given_up(&self, error: &StorageError, now: UnixMillis) -> Option<Self> {
        let (id, stored) = self.known()?;
        if self.is_given_up {
            return None;
        }
        let reason = format!("it cannot be moved on: {error}");
        let mut job = stored.job.after(&Step::Fail { reason }, now).ok()?;
        // What goes with it may be what is too much.
        job.attached.clear();
        Some(Self {
            record: self.record.clone(),
            parts: vec![Part::Job {
                id: id.clone(),
                before: Some(Box::new(stored.clone())),
                job: Box::new(job),
            }],
            row: None,
            is_given_up: true,
        })
    }
}

/// One change of a [`Move`].
pub(super) enum Part {
    Job {
        id: JobId,
        before: Option<Box<Stored>>,
        job: Box<Job>,
    },
    /// A row that no job has: nothing but a record of its own revision, or none, is checked.
    Stale { row: Key, before: Option<Revision> },
}

impl Part {
    pub(super) fn wake(&self) -> Option<UnixMillis> {
        match self {
            Self::Job { job, .. } => job.state.wake(),
            Self::Stale { .. } => None,
        }
    }

    /// The record that it checks and changes.
    fn record(&self, place: &Place) -> Option<Key> {
        match self {
            Self::Job { id, .. } => Some(place.job(id)),
            Self::Stale { .. } => None,
        }
    }

    fn is_new(&self) -> bool {
        matches!(self, Self::Job { before: None, .. })
    }

    pub(super) fn is_failure(&self) -> bool {
        match self {
            Self::Job { job, .. } => matches!(job.state, JobState::Failed { .. }),
            Self::Stale { .. } => false,
        }
    }

    pub(super) fn add(&self, place: &Place, batch: Batch) -> Batch {
        match self {
            Self::Job { id, before, job } => {
                let before = before.as_ref().map(|stored| Before {
                    job: &stored.job,
                    revision: stored.revision,
                });
                place.moved(batch, id, before, job)
            }
            Self::Stale { row, before } => {
                let id = place.parse_due(row).map(|(_, id)| place.job(&id));
                let batch = match (id, before) {
                    (Some(record), Some(revision)) => batch.check_revision(record, *revision),
                    (Some(record), None) => batch.check_absent(record),
                    (None, _) => batch,
                };
                batch.remove(row.clone())
            }
        }
    }
}

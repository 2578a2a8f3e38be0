//! A step as a commit: the record and its rows move together.

use super::keys::Place;
use super::{Job, JobId, Stored};
use crate::{Batch, Lifetime, Revision};

/// What of a job was before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before<'a> {
    pub(super) job: &'a Job,
    pub(super) revision: Revision,
}

impl Place {
    /// Adds to a batch what makes of a job, or of nothing, what it is from now on.
    pub(super) fn moved(
        &self,
        mut batch: Batch,
        id: &JobId,
        before: Option<Before<'_>>,
        job: &Job,
    ) -> Batch {
        let record = self.job(id);
        batch = match before {
            Some(before) => batch.check_revision(record.clone(), before.revision),
            None => batch.check_absent(record.clone()),
        };
        let is_open = job.state.kind().is_open();
        let lifetime = match is_open {
            true => Lifetime::Forever,
            false => Lifetime::TimeToLive(job.policy.keep),
        };
        batch = batch.put_with(record, job.encode(), lifetime);
        let row = |job: &Job| job.state.wake().map(|wake| self.due(wake, id));
        let (old, new) = (before.and_then(|before| row(before.job)), row(job));
        if old != new {
            batch = old.into_iter().fold(batch, Batch::remove);
            batch = new.into_iter().fold(batch, |batch, key| batch.put(key, ""));
        }
        let to = |job: &Job| {
            let kind = job.state.kind();
            let key = self.to(&job.recipient, job.due, id);
            kind.is_open().then(|| (key, kind.letter()))
        };
        let (old, new) = (before.and_then(|before| to(before.job)), to(job));
        if old != new {
            if let Some((key, _)) = old
                && new.as_ref().is_none_or(|(other, _)| *other != key)
            {
                batch = batch.remove(key);
            }
            if let Some((key, letter)) = new {
                batch = batch.put(key, letter);
            }
        }
        if !is_open && before.is_some_and(|before| before.job.state.kind().is_open()) {
            batch = self.without_attached(batch, id, job);
        }
        batch
    }

    /// Removes what belongs to the job alone: by names below a key of its own, so that no record has others' keys removed.
    fn without_attached(&self, batch: Batch, id: &JobId, job: &Job) -> Batch {
        let keys = job.attached.iter().map(|name| self.attached(id, name));
        keys.fold(batch, Batch::remove)
    }

    /// Adds to a batch what removes a job with all that is its own.
    pub(super) fn removed(&self, batch: Batch, stored: &Stored) -> Batch {
        let Stored { id, job, revision } = stored;
        let record = self.job(id);
        let mut batch = batch
            .check_revision(record.clone(), *revision)
            .remove(record);
        if let Some(wake) = job.state.wake() {
            batch = batch
                .remove(self.due(wake, id))
                .remove(self.to(&job.recipient, job.due, id));
            batch = self.without_attached(batch, id, job);
        }
        batch
    }
}

//! Lists of jobs, page by page, and how many there are of each kind.

use super::due::behind;
use super::{Deliveries, DeliveryError, Job, JobId, Recipient, StateKind, Stored};
use crate::{KeyState, ScanOptions, StorageError};

/// The most jobs of a page.
pub const LIST_MAX: usize = 1_000;

/// Jobs that are looked at for one page at most: with a filter that few pass, a page may be short, and not the last.
const LOOKED_AT_MAX: usize = 10_000;

/// Which jobs are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Of these kinds; none: of all.
    pub states: Vec<StateKind>,
    /// For this recipient.
    pub recipient: Option<Recipient>,
    /// Scheduled by this owner.
    pub owner: Option<String>,
}

impl JobFilter {
    /// Whether a job passes.
    #[must_use]
    pub fn passes(&self, job: &Job) -> bool {
        let is = |wanted: &Option<String>, text: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == text)
        };
        let recipient = self.recipient.as_ref();
        (self.states.is_empty() || self.states.contains(&job.state.kind()))
            && recipient.is_none_or(|wanted| *wanted == job.recipient)
            && is(&self.owner, &job.owner)
    }
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobPage {
    /// In the order of their ids.
    pub jobs: Vec<Stored>,
    /// Where the next page begins: behind this id; `None`: there is none.
    pub next: Option<JobId>,
    /// Records on the way that cannot be read.
    pub unreadable: usize,
}

/// How many jobs there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// All whose records are kept.
    pub all: u64,
    /// Of each kind, in the order of [`StateKind::ALL`].
    pub of: [u64; StateKind::ALL.len()],
}

impl Counters {
    /// Of one kind.
    #[must_use]
    pub fn of(&self, kind: StateKind) -> u64 {
        let mut counted = StateKind::ALL.into_iter().zip(self.of);
        counted
            .find(|(other, _)| *other == kind)
            .map_or(0, |(_, count)| count)
    }

    /// Counts one more.
    pub fn add(&mut self, kind: StateKind) {
        self.all += 1;
        for (other, count) in StateKind::ALL.into_iter().zip(&mut self.of) {
            *count += u64::from(other == kind);
        }
    }
}

impl Deliveries {
    /// A page of the jobs that pass, behind an id.
    ///
    /// # Errors
    /// As a scan.
    pub async fn list(
        &self,
        filter: &JobFilter,
        after: Option<&JobId>,
        limit: usize,
    ) -> Result<JobPage, DeliveryError> {
        let mut page = JobPage::default();
        let limit = limit.clamp(1, LIST_MAX);
        let mut range = self.place.jobs();
        if let Some(after) = after {
            range.start = behind(&self.place.job(after));
        }
        let mut scan = self.storage.scan(range, ScanOptions::default()).await?;
        let mut looked_at = 0;
        while let Some(items) = scan.next_page().await? {
            for item in items {
                let (Some(id), KeyState::Live(entry)) =
                    (self.place.id_of_job(&item.key), item.state)
                else {
                    continue;
                };
                looked_at += 1;
                match self.stored(&id, &entry.value, entry.revision) {
                    Ok(stored) if filter.passes(&stored.job) => page.jobs.push(stored),
                    Ok(_) => {}
                    Err(_) => page.unreadable += 1,
                }
                if page.jobs.len() >= limit || looked_at >= LOOKED_AT_MAX {
                    page.next = Some(id);
                    return Ok(page);
                }
            }
        }
        Ok(page)
    }

    /// The jobs for a recipient that are open, the first [`LIST_MAX`] of them, in the order of the times for which they were
    /// scheduled. Looks at no other job.
    ///
    /// # Errors
    /// As a scan.
    pub async fn open_for(&self, recipient: &Recipient) -> Result<Vec<JobId>, StorageError> {
        let keys = self
            .first_keys(self.place.all_to(recipient), LIST_MAX)
            .await?;
        let ids = keys
            .iter()
            .filter_map(|key| self.place.parse_to(recipient, key));
        Ok(ids.collect())
    }

    /// How many jobs pass: looks at all of them, a page of memory at a time.
    ///
    /// # Errors
    /// As a scan.
    pub async fn count(&self, filter: &JobFilter) -> Result<Counters, DeliveryError> {
        let mut counters = Counters::default();
        let mut scan = self
            .storage
            .scan(self.place.jobs(), ScanOptions::default())
            .await?;
        while let Some(items) = scan.next_page().await? {
            for item in items {
                if let KeyState::Live(entry) = item.state
                    && let Ok(job) = Job::decode(&entry.value)
                    && filter.passes(&job)
                {
                    counters.add(job.state.kind());
                }
            }
        }
        Ok(counters)
    }
}

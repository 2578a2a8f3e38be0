//! Who looks at the clock: what is due becomes ready, and what has waited for too long ends.
//!
//! What is due is found by one seek, and moved in commits of several jobs. A commit that fails on one job, since somebody else
//! was before, is tried again without that one. A commit that is not taken as it is, since it is larger than a limit allows for
//! instance, is made two, so that in the end only the job is left behind that it is about; that one is a dead letter then.

use super::change::Before;
use super::keys::Place;
use super::{Deliveries, Job, JobId, JobState, Step, Stored};
use crate::{
    Batch, CommitOptions, Entry, Key, KeyRange, Result, ScanOptions, StorageError, UnixMillis,
};

/// Jobs that are looked at, and moved, at once.
const JOBS_AT_ONCE: usize = 64;

/// Says when a recurring job recurs.
pub trait Recurrence: Send + Sync {
    /// The first time behind `after`, of a job that was first due at `anchor`; `None`: there is none any more. An error says
    /// what is wrong with the text: the job has failed then.
    ///
    /// # Errors
    /// What is wrong with the text.
    fn next(
        &self,
        text: &str,
        anchor: UnixMillis,
        after: UnixMillis,
    ) -> std::result::Result<Option<UnixMillis>, String>;
}

/// What [`Deliveries::run_due`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DueRun {
    /// Jobs that were moved on.
    pub moved: usize,
    /// Of these, dead letters now.
    pub failed: usize,
    /// The time of the first row that was due.
    pub first: Option<UnixMillis>,
    /// When something is due next; `None`: nothing is.
    pub next: Option<UnixMillis>,
    /// Somebody else changed some of the jobs meanwhile: look again soon.
    pub is_contended: bool,
    /// Rows whose jobs cannot be read, or not moved on in any way; they are left as they are.
    pub unreadable: usize,
}

/// A record that no answer may have.
struct TooLong;

/// What is to be done with one row.
struct Move {
    /// The record whose check may fail.
    record: Key,
    /// Adds it to a commit.
    parts: Vec<Part>,
    row: Option<Key>,
    fails: bool,
    /// It was refused once, and is a dead letter for that.
    is_given_up: bool,
}

impl Move {
    /// The job as a dead letter, with nothing else: for one that the storage does not take as it would be. `None`: there is none,
    /// or it is that already.
    fn given_up(&self, error: &StorageError, now: UnixMillis) -> Option<Self> {
        let (id, stored) = self.parts.iter().find_map(|part| match part {
            Part::Job {
                id,
                before: Some(stored),
                ..
            } => Some((id, stored)),
            Part::Job { before: None, .. } | Part::Stale { .. } => None,
        })?;
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
                before: Some(stored.clone()),
                job: Box::new(job),
            }],
            row: None,
            fails: true,
            is_given_up: true,
        })
    }
}

enum Part {
    Job {
        id: JobId,
        before: Option<Box<Stored>>,
        job: Box<Job>,
    },
    /// A row that no job has: nothing but a record of its own revision, or none, is checked.
    Stale {
        row: Key,
        before: Option<crate::Revision>,
    },
}

impl Deliveries {
    /// When something is to be done with a job next.
    ///
    /// # Errors
    /// As a scan.
    pub async fn next_due(&self) -> Result<Option<UnixMillis>> {
        let keys = self.due_keys(self.place.all_due(), 1).await?;
        Ok(keys.iter().find_map(|key| self.time_of(key)))
    }

    async fn due_keys(&self, range: KeyRange, limit: usize) -> Result<Vec<Key>> {
        let options = ScanOptions {
            keys_only: true,
            limit: Some(limit as u64),
            ..ScanOptions::default()
        };
        let items = self.storage.scan(range, options).await?.collect().await?;
        Ok(items.into_iter().map(|item| item.key).collect())
    }

    /// Moves on all that is due, of the rows from this time on: who has looked before need not pass again what is gone. 0 is
    /// always good.
    ///
    /// A job that the storage does not take as it would be, whatever is tried, has failed with the storage's reason.
    ///
    /// # Errors
    /// As scans, gets and commits. What was moved before stays so. Of [`StorageError::QuotaExceeded`] and
    /// [`StorageError::StorageFull`] only once all that needs no room was moved.
    pub async fn run_due(&self, recurrence: &dyn Recurrence, from: UnixMillis) -> Result<DueRun> {
        let mut run = DueRun::default();
        let mut range = self.place.due_from(from);
        let mut no_room = None;
        loop {
            let now = self.now();
            let keys = self.due_keys(range.clone(), JOBS_AT_ONCE).await?;
            let mut is_last = keys.len() < JOBS_AT_ONCE;
            let mut due = Vec::new();
            for key in keys {
                range.start = behind(&key);
                match self.place.parse_due(&key) {
                    Some((time, _)) if time > now => {
                        run.is_next(time);
                        is_last = true;
                        break;
                    }
                    Some((time, id)) => {
                        run.first = run.first.or(Some(time));
                        due.push((key, id));
                    }
                    // A key of somebody else's making.
                    None => run.unreadable += 1,
                }
            }
            if !due.is_empty() {
                let refused = self.move_on(due, recurrence, now, &mut run).await?;
                no_room = no_room.or(refused);
            }
            if is_last {
                return no_room.map_or(Ok(run), Err);
            }
        }
    }

    /// Moves on these. `Some`: there was no room for one of them.
    async fn move_on(
        &self,
        due: Vec<(Key, JobId)>,
        recurrence: &dyn Recurrence,
        now: UnixMillis,
        run: &mut DueRun,
    ) -> Result<Option<StorageError>> {
        let records: Vec<_> = due.iter().map(|(_, id)| self.place.job(id)).collect();
        let entries = self.read(&records).await?;
        let mut moves = Vec::with_capacity(due.len());
        for ((row, id), entry) in due.into_iter().zip(entries) {
            let stored = match entry {
                Err(TooLong) => {
                    run.unreadable += 1;
                    continue;
                }
                Ok(None) => None,
                Ok(Some(entry)) => match self.stored(&id, &entry.value, entry.revision) {
                    Ok(stored) => Some(stored),
                    Err(_) => {
                        run.unreadable += 1;
                        continue;
                    }
                },
            };
            moves.push(self.judge(row, id, stored, recurrence, now));
        }
        let mut no_room = None;
        // The first of them last.
        let mut groups = vec![moves];
        while let Some(mut moves) = groups.pop() {
            let Err(error) = self.commit(&mut moves, run).await else {
                continue;
            };
            let is_about_room = matches!(
                error,
                StorageError::QuotaExceeded { .. } | StorageError::StorageFull { .. }
            );
            let is_about_it = matches!(
                error,
                StorageError::LimitExceeded { .. }
                    | StorageError::InvalidArgument { .. }
                    | StorageError::Unsupported { .. }
            );
            if !is_about_room && !is_about_it {
                return Err(error);
            }
            if moves.len() > 1 {
                let behind = moves.split_off(moves.len() / 2);
                groups.extend([behind, moves]);
                continue;
            }
            let given_up = moves.iter().find_map(|one| one.given_up(&error, now));
            match given_up {
                // It is tried again when there may be room.
                _ if is_about_room => no_room = no_room.or(Some(error)),
                Some(one) => groups.push(vec![one]),
                None => run.unreadable += 1,
            }
        }
        Ok(no_room)
    }

    /// These records, as many at once as an answer may have.
    async fn read(
        &self,
        records: &[Key],
    ) -> Result<Vec<std::result::Result<Option<Entry>, TooLong>>> {
        let mut entries = Vec::with_capacity(records.len());
        let mut at_once = records.len();
        while entries.len() < records.len() {
            let part: Vec<_> = records
                .iter()
                .skip(entries.len())
                .take(at_once)
                .cloned()
                .collect();
            match self.storage.get(&part).await {
                Ok(read) => entries.extend(read.value.into_iter().map(Ok)),
                Err(StorageError::LimitExceeded { .. }) if part.len() > 1 => {
                    at_once = part.len() / 2
                }
                Err(StorageError::LimitExceeded { .. }) => entries.push(Err(TooLong)),
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// Makes these moves, but for those of jobs that somebody else has moved meanwhile.
    ///
    /// # Errors
    /// Those of a commit; then none of the moves that are left was made.
    async fn commit(&self, moves: &mut Vec<Move>, run: &mut DueRun) -> Result<()> {
        while !moves.is_empty() {
            let batch = moves.iter().fold(Batch::new(), |batch, one| {
                one.parts
                    .iter()
                    .fold(batch, |batch, part| part.add(&self.place, batch))
            });
            let options = CommitOptions::labelled("jobs due");
            match self.storage.commit(batch, options).await {
                Ok(_) => {
                    let is_job = |one: &&Move| one.row.is_none();
                    run.moved += moves.iter().filter(is_job).count();
                    run.failed += moves.iter().filter(|one| one.fails).count();
                    // Their new rows may lie behind all that was read.
                    let parts = moves.iter().flat_map(|one| &one.parts);
                    parts
                        .filter_map(Part::wake)
                        .for_each(|time| run.is_next(time));
                    return Ok(());
                }
                Err(StorageError::CheckFailed { key, .. }) => {
                    run.is_contended = true;
                    // A run that is there already need not be made; else all of the job is somebody else's now.
                    let made = |part: &Part| part.is_run_at(&self.place, &key);
                    if let Some(one) = moves.iter_mut().find(|one| one.parts.iter().any(made)) {
                        one.parts.retain(|part| !made(part));
                        continue;
                    }
                    let before = moves.len();
                    moves.retain(|one| one.record != key);
                    if moves.len() == before {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn judge(
        &self,
        row: Key,
        id: JobId,
        stored: Option<Stored>,
        recurrence: &dyn Recurrence,
        now: UnixMillis,
    ) -> Move {
        let record = self.place.job(&id);
        let stale = |stored: Option<Stored>| Move {
            record: record.clone(),
            parts: vec![Part::Stale {
                row: row.clone(),
                before: stored.map(|stored| stored.revision),
            }],
            row: Some(row.clone()),
            fails: false,
            is_given_up: false,
        };
        let Some(stored) = stored else {
            return stale(None);
        };
        let is_its_own = |wake| self.place.due(wake, &id) == row;
        if !stored.job.state.wake().is_some_and(is_its_own) {
            return stale(Some(stored));
        }
        let parts = match &stored.job.recurrence {
            Some(text) => run_of(&id, &stored, text, recurrence, now),
            None => match stored.job.after(&Step::Time, now) {
                Ok(job) => vec![Part::Job {
                    id,
                    before: Some(Box::new(stored)),
                    job: Box::new(job),
                }],
                Err(_) => return stale(Some(stored)),
            },
        };
        let fails = parts.iter().any(Part::is_failure);
        Move {
            record,
            parts,
            row: None,
            fails,
            is_given_up: false,
        }
    }
}

/// A recurring job at its time: a job of this time, and the next time.
fn run_of(
    id: &JobId,
    stored: &Stored,
    text: &str,
    recurrence: &dyn Recurrence,
    now: UnixMillis,
) -> Vec<Part> {
    let series = &stored.job;
    let mut next = series.clone();
    next.changed = now;
    let ended = |mut next: Job, state: JobState| {
        next.state = state;
        Part::Job {
            id: id.clone(),
            before: Some(Box::new(stored.clone())),
            job: Box::new(next),
        }
    };
    // One that was forced has had the run of its next time.
    let after = now.max(series.due);
    let following = match recurrence.next(text, series.due, after) {
        Ok(following) => following.filter(|next| *next > after),
        Err(error) => {
            let reason = super::job::cut(&format!("recurrence {text:?}: {error}"));
            return vec![ended(next, JobState::Failed { reason })];
        }
    };
    // The last of the times that have passed stands for all of them.
    let Ok(run_id) = id.of_run(series.due) else {
        let reason = "its id has no room for a time".to_owned();
        return vec![ended(next, JobState::Failed { reason })];
    };
    let mut run = Job {
        recurrence: None,
        attached: Vec::new(),
        attempts: 0,
        handed_over: None,
        created: now,
        state: JobState::Pending { at: now },
        ..series.clone()
    };
    if let Ok(ready) = run.after(&Step::Time, now) {
        run = ready;
    }
    let series = match following {
        Some(time) => {
            next.due = time;
            ended(next, JobState::Pending { at: time })
        }
        None => ended(next, JobState::Done),
    };
    let run = Part::Job {
        id: run_id,
        before: None,
        job: Box::new(run),
    };
    vec![series, run]
}

impl DueRun {
    fn is_next(&mut self, time: UnixMillis) {
        self.next = Some(self.next.map_or(time, |next| next.min(time)));
    }
}

impl Part {
    fn wake(&self) -> Option<UnixMillis> {
        match self {
            Self::Job { job, .. } => job.state.wake(),
            Self::Stale { .. } => None,
        }
    }

    /// Whether it makes a job with this record.
    fn is_run_at(&self, place: &Place, record: &Key) -> bool {
        match self {
            Self::Job { id, before, .. } => before.is_none() && place.job(id) == *record,
            Self::Stale { .. } => false,
        }
    }

    fn is_failure(&self) -> bool {
        match self {
            Self::Job { job, .. } => matches!(job.state, JobState::Failed { .. }),
            Self::Stale { .. } => false,
        }
    }

    fn add(&self, place: &Place, batch: Batch) -> Batch {
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

fn behind(key: &[u8]) -> Key {
    [key, &[0]].concat().into()
}

/// For who has no recurring jobs: each fails at its time.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRecurrence;

impl Recurrence for NoRecurrence {
    fn next(
        &self,
        _: &str,
        _: UnixMillis,
        _: UnixMillis,
    ) -> std::result::Result<Option<UnixMillis>, String> {
        Err("nobody here knows recurring jobs".to_owned())
    }
}

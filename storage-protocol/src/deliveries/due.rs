//! Who looks at the clock: what is due becomes ready, and what has waited for too long ends.
//!
//! What is due is found by one seek, and moved in commits of several jobs. A commit that fails on one job, since somebody else
//! was before, is tried again without that one. A commit that is not taken as it is, since it is larger than a limit allows for
//! instance, is made two, so that in the end only the job is left behind that it is about; that one is a dead letter then.

use std::collections::HashMap;

use super::moves::{Move, Part};
use super::{Deliveries, Job, JobId, JobState, Step, Stored, TIME_MAX};
use crate::{
    Batch, CommitOptions, Entry, Key, KeyRange, Result, ScanOptions, StorageError, UnixMillis,
};

/// Jobs that are looked at, and moved, at once.
pub(super) const JOBS_AT_ONCE: usize = 64;

/// Says when a recurring job recurs.
pub trait Recurrence: Send + Sync {
    /// The first time behind `after`, of a job that has `anchor` as one of its times, whichever of the two is earlier; `None`:
    /// there is none any more. An error says what is wrong with the text: the job has failed then.
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
pub(super) struct TooLong;

impl Deliveries {
    /// When something is to be done with a job next.
    ///
    /// # Errors
    /// As a scan.
    pub async fn next_due(&self) -> Result<Option<UnixMillis>> {
        let mut range = self.place.all_due();
        loop {
            // A key that is no row of a job is somebody else's, and passed over.
            let keys = self.first_keys(range.clone(), JOBS_AT_ONCE).await?;
            let found = keys.iter().find_map(|key| self.time_of(key));
            match keys.last() {
                Some(last) if found.is_none() => range.start = behind(last),
                _ => return Ok(found),
            }
        }
    }

    pub(super) async fn first_keys(&self, range: KeyRange, limit: usize) -> Result<Vec<Key>> {
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
            let keys = self.first_keys(range.clone(), JOBS_AT_ONCE).await?;
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
        self.supersede(&mut moves, &records, now).await?;
        self.carry_out(moves, now, run).await
    }

    /// Has each run that a recurring job makes take the place of its last one, if nobody was handed that. So a recipient that
    /// is away for long finds one run, and not all that were due meanwhile.
    async fn supersede(&self, moves: &mut [Move], records: &[Key], now: UnixMillis) -> Result<()> {
        // What is moved on its own account in the same commit is left alone by others.
        let is_free = |run: &JobId| !records.contains(&self.place.job(run));
        let last_runs = moves.iter().map(|one| one.last_run().filter(is_free));
        let last_runs: Vec<_> = last_runs.collect();
        let ids: Vec<_> = last_runs.iter().flatten().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = ids.iter().map(|id| self.place.job(id)).collect();
        let entries = self.read(&keys).await?;
        let mut found: HashMap<_, _> = ids.into_iter().zip(entries).collect();
        for (one, id) in moves.iter_mut().zip(&last_runs) {
            let Some(id) = id else { continue };
            let Some(Ok(Some(entry))) = found.remove(id) else {
                continue;
            };
            let Ok(stored) = self.stored(id, &entry.value, entry.revision) else {
                continue;
            };
            let waits = matches!(
                stored.job.state,
                JobState::Pending { .. } | JobState::Ready { .. }
            );
            // Somebody may have given another job the id of a run.
            let is_run = one.series().is_some_and(|series| {
                !stored.job.is_recurring()
                    && stored.job.recipient == series.recipient
                    && Some(stored.job.due) == series.handed_over
            });
            if waits
                && is_run
                && stored.job.attempts == 0
                && let Ok(job) = stored.job.after(&superseded(), now)
            {
                one.parts.push(Part::Job {
                    id: id.clone(),
                    before: Some(Box::new(stored)),
                    job: Box::new(job),
                });
            }
        }
        Ok(())
    }

    /// Makes these moves, as many at once as the storage takes. `Some`: there was no room for one of them.
    pub(super) async fn carry_out(
        &self,
        moves: Vec<Move>,
        now: UnixMillis,
        run: &mut DueRun,
    ) -> Result<Option<StorageError>> {
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
    pub(super) async fn read(
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
                    let parts = || moves.iter().flat_map(|one| &one.parts);
                    run.failed += parts().filter(|part| part.is_failure()).count();
                    // Their new rows may lie behind all that was read.
                    parts()
                        .filter_map(Part::wake)
                        .for_each(|time| run.is_next(time));
                    return Ok(());
                }
                Err(StorageError::CheckFailed { key, .. }) => {
                    run.is_contended = true;
                    // It is about one of the runs of a recurring job, or else all of the job is somebody else's now.
                    if moves.iter_mut().any(|one| one.leave_out(&self.place, &key)) {
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
        Move {
            record,
            parts,
            row: None,
            is_given_up: false,
        }
    }
}

/// What becomes of a run that waits when the next one is made.
fn superseded() -> Step {
    let reason = "nobody had been handed it when the next run was due".to_owned();
    Step::Fail { reason }
}

/// A recurring job at its time: a job of this time, and the next time.
fn run_of(
    id: &JobId,
    stored: &Stored,
    text: &str,
    recurrence: &dyn Recurrence,
    now: UnixMillis,
) -> Vec<Part> {
    // It may be due since somebody forced it, behind a clock that was ahead.
    let right = stored.job.set_back(now, recurrence);
    let series = right.as_ref().unwrap_or(&stored.job);
    let mut next = series.clone();
    next.changed = now;
    next.handed_over = Some(series.due);
    next.attempts = series.attempts.saturating_add(1);
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
        Ok(following) => following.filter(|next| *next > after && *next <= TIME_MAX),
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

pub(super) fn behind(key: &[u8]) -> Key {
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

//! A clock that was ahead, and is put back.
//!
//! While it was ahead, times were reckoned from it: when a recurring job is due next, until when a recipient may take a job or
//! acknowledge it, how long one is left alone after an attempt. These may lie years ahead of the right clock. What was said in absolute
//! terms, the time for which somebody scheduled a job, stays; and what has ended stays so, as a recurring job has that has no
//! time behind the one that the clock showed.

use super::due::{DueRun, JOBS_AT_ONCE, behind};
use super::moves::Move;
use super::{Deliveries, Job, JobState, Recurrence};
use crate::{Result, UnixMillis};

impl Deliveries {
    /// Reckons anew what was reckoned by a clock that was ahead of the one that is right now, of all jobs that are open; how
    /// many that were. It reads all of them, and changes those that were changed later than now. For who looks at the clock, when
    /// it begins, and when the clock goes back.
    ///
    /// A recurring job goes on with the first time that lies behind now, and makes no second run for a time for which it has
    /// made one whose record is still there. Any number of servers may do so at once.
    ///
    /// # Errors
    /// As [`run_due`](Self::run_due). What was changed before stays so.
    pub async fn set_back(&self, recurrence: &dyn Recurrence) -> Result<usize> {
        let mut run = DueRun::default();
        let mut range = self.place.all_due();
        let mut no_room = None;
        loop {
            let now = self.now();
            let rows = self.first_keys(range.clone(), JOBS_AT_ONCE).await?;
            let Some(last) = rows.last() else {
                return no_room.map_or(Ok(run.moved), Err);
            };
            range.start = behind(last);
            let due: Vec<_> = rows
                .iter()
                .filter_map(|row| Some((row, self.place.parse_due(row)?.1)))
                .collect();
            let records: Vec<_> = due.iter().map(|(_, id)| self.place.job(id)).collect();
            let entries = self.read(&records).await?;
            let mut moves = Vec::new();
            for ((row, id), entry) in due.into_iter().zip(entries) {
                // What cannot be read is told about by who moves it on, and so is a row that its job does not have.
                let Ok(Some(entry)) = entry else { continue };
                let Ok(stored) = self.stored(&id, &entry.value, entry.revision) else {
                    continue;
                };
                let is_its_own = |wake| self.place.due(wake, &id) == *row;
                if stored.job.state.wake().is_some_and(is_its_own)
                    && let Some(job) = stored.job.set_back(now, recurrence)
                {
                    moves.push(Move::of(&self.place, stored, job));
                }
            }
            let refused = self.carry_out(moves, now, &mut run).await?;
            no_room = no_room.or(refused);
        }
    }
}

impl Job {
    /// The job by a clock that shows this, if it was changed by one that was ahead of it.
    pub(super) fn set_back(&self, now: UnixMillis, recurrence: &dyn Recurrence) -> Option<Self> {
        let ahead = self.changed.0.checked_sub(now.0).filter(|by| *by > 0)?;
        let earlier = |time: UnixMillis| UnixMillis(time.0.saturating_sub(ahead)).max(now);
        let mut job = self.clone();
        job.changed = now;
        match &mut job.state {
            JobState::Pending { at } if self.is_recurring() => {
                let next = self.next_of(now, recurrence);
                job.due = next.map_or(self.due, |next| next.min(self.due));
                // One that was forced is due at once still.
                *at = match *at < self.due {
                    true => now.min(*at),
                    false => job.due,
                };
            }
            // As somebody wanted it.
            JobState::Pending { .. } if self.attempts == 0 => return None,
            JobState::Pending { at } => *at = earlier(*at),
            JobState::Ready { until }
            | JobState::Claimed { until, .. }
            | JobState::Delivered { until, .. } => *until = earlier(*until),
            JobState::Done | JobState::Failed { .. } | JobState::Cancelled => return None,
        }
        (job.state != self.state || job.due != self.due).then_some(job)
    }

    /// The first time of a recurring job behind now; `None`: there is none, or it has made no run yet, and is due when it was
    /// said to be.
    fn next_of(&self, now: UnixMillis, recurrence: &dyn Recurrence) -> Option<UnixMillis> {
        let (last, text) = (self.handed_over?, self.recurrence.as_deref()?);
        if self.attempts == 1 && last > now {
            // The first time that somebody wanted, which has yet to come.
            return Some(last);
        }
        let next = recurrence.next(text, self.due, now);
        next.ok()?.filter(|next| *next > now)
    }
}

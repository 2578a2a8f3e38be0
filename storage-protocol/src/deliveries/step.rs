//! The steps that a job takes: which are possible, and what it is then. Pure, so that there is one place to read, and to test.

use std::time::Duration;

use super::job::cut;
use super::{Job, JobState, Silence, StateKind, TIME_MAX};
use crate::UnixMillis;

/// What is to be done with a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its time has come: what is due is ready; what has waited for too long has failed, or is tried again.
    Time,
    /// It is ready before its time. Of a recurring job: its next run is due now, and not at its time.
    Force,
    /// It is to be handed over by this holder, who says within this time that it was.
    Claim {
        /// Who.
        holder: String,
        /// How long it is the holder's.
        hold: Duration,
    },
    /// The holder has handed it over.
    Delivered {
        /// Who.
        holder: String,
    },
    /// Both at once, by who has nothing to do in between: the job of somebody who receives it for itself.
    HandOver {
        /// Who.
        holder: String,
    },
    /// The recipient is through with it. Also of one that comes late, when it was to be tried again.
    Acknowledge,
    /// The recipient does not take it as it is: it is tried again, also if it counted as acknowledged.
    Decline {
        /// Why.
        reason: String,
    },
    /// The holder gives it back; it is ready for others. If it was not handed over, that was no attempt.
    Release {
        /// Who.
        holder: String,
    },
    /// It is not to be delivered any more.
    Cancel,
    /// It is a dead letter.
    Fail {
        /// Why.
        reason: String,
    },
}

impl Step {
    /// What is done with a job by it, as errors and the labels of commits have it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Time => "moved on",
            Self::Force => "forced",
            Self::Claim { .. } => "claimed",
            Self::Delivered { .. } | Self::HandOver { .. } => "delivered",
            Self::Acknowledge => "acknowledged",
            Self::Decline { .. } => "declined",
            Self::Release { .. } => "released",
            Self::Cancel => "cancelled",
            Self::Fail { .. } => "failed",
        }
    }
}

/// The step is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotPossible;

fn later(now: UnixMillis, by: Duration) -> UnixMillis {
    now.after(by).min(TIME_MAX)
}

impl Job {
    /// The job after a step at a time.
    pub(super) fn after(&self, step: &Step, now: UnixMillis) -> Result<Self, NotPossible> {
        let mut next = self.clone();
        // What a clock has reckoned that was ahead is known by this: a recurring job that is forced keeps its time.
        let keeps = matches!(step, Step::Force) && self.is_recurring();
        next.changed = if keeps { self.changed.max(now) } else { now };
        next.state = match step {
            Step::Time => self.on_time(now)?,
            Step::Force => self.forced(now)?,
            Step::Claim { .. } | Step::HandOver { .. } if self.is_recurring() => {
                return Err(NotPossible);
            }
            Step::Claim { holder, hold } => {
                self.only(StateKind::Ready)?;
                next.attempts = self.attempts.saturating_add(1);
                JobState::Claimed {
                    holder: cut(holder),
                    until: later(now, *hold),
                }
            }
            Step::HandOver { holder } => {
                self.only(StateKind::Ready)?;
                next.attempts = self.attempts.saturating_add(1);
                next.handed_over = Some(now);
                self.delivered_by(holder, now)
            }
            Step::Delivered { holder } => {
                self.held_by(holder, StateKind::Claimed)?;
                next.handed_over = Some(now);
                self.delivered_by(holder, now)
            }
            Step::Acknowledge => {
                let is_known =
                    self.attempts > 0 && self.state.kind().is_open() && !self.is_recurring();
                is_known.then_some(JobState::Done).ok_or(NotPossible)?
            }
            Step::Decline { reason } => match self.state.kind() {
                StateKind::Claimed | StateKind::Delivered | StateKind::Done => {
                    self.again(now, reason)
                }
                StateKind::Pending | StateKind::Ready => return Err(NotPossible),
                StateKind::Failed | StateKind::Cancelled => return Err(NotPossible),
            },
            Step::Release { holder } => {
                if self.held_by(holder, StateKind::Claimed).is_ok() {
                    next.attempts = self.attempts.saturating_sub(1);
                } else {
                    self.held_by(holder, StateKind::Delivered)?;
                    if self.attempts >= self.policy.attempts_max {
                        // Each attempt may be lost like this.
                        next.state = self.again(now, "lost on its way");
                        return Ok(next);
                    }
                }
                self.ready(now)
            }
            Step::Cancel => self.if_open(JobState::Cancelled)?,
            Step::Fail { reason } => {
                let reason = cut(reason);
                self.if_open(JobState::Failed { reason })?
            }
        };
        Ok(next)
    }

    fn only(&self, kind: StateKind) -> Result<(), NotPossible> {
        (self.state.kind() == kind).then_some(()).ok_or(NotPossible)
    }

    fn if_open(&self, state: JobState) -> Result<JobState, NotPossible> {
        let is_open = self.state.kind().is_open();
        is_open.then_some(state).ok_or(NotPossible)
    }

    fn held_by(&self, by: &str, kind: StateKind) -> Result<(), NotPossible> {
        self.only(kind)?;
        match &self.state {
            JobState::Claimed { holder, .. } | JobState::Delivered { holder, .. }
                if *holder == cut(by) =>
            {
                Ok(())
            }
            JobState::Claimed { .. } | JobState::Delivered { .. } => Err(NotPossible),
            JobState::Pending { .. } | JobState::Ready { .. } => Err(NotPossible),
            JobState::Done | JobState::Failed { .. } | JobState::Cancelled => Err(NotPossible),
        }
    }

    fn delivered_by(&self, holder: &str, now: UnixMillis) -> JobState {
        JobState::Delivered {
            holder: cut(holder),
            until: later(now, self.policy.ack),
        }
    }

    fn ready(&self, now: UnixMillis) -> JobState {
        JobState::Ready {
            until: later(now, self.policy.window),
        }
    }

    /// Behind an attempt that came to nothing.
    fn again(&self, now: UnixMillis, reason: &str) -> JobState {
        match self.attempts < self.policy.attempts_max {
            true => JobState::Pending {
                at: later(now, self.policy.backoff_after(self.attempts)),
            },
            false => JobState::Failed {
                reason: cut(&format!(
                    "{reason} (attempt {} of {})",
                    self.attempts, self.policy.attempts_max
                )),
            },
        }
    }

    fn on_time(&self, now: UnixMillis) -> Result<JobState, NotPossible> {
        if self.state.wake().is_none_or(|wake| wake > now) {
            return Err(NotPossible);
        }
        match &self.state {
            JobState::Pending { .. } if self.is_recurring() => Err(NotPossible),
            JobState::Pending { .. } => Ok(self.ready(now)),
            JobState::Ready { .. } => Ok(JobState::Failed {
                reason: format!(
                    "its recipient was not there for {} ms",
                    self.policy.window.as_millis()
                ),
            }),
            JobState::Claimed { .. } => Ok(match self.attempts < self.policy.attempts_max {
                true => self.ready(now),
                false => self.again(now, "who was to hand it over did not say that it had"),
            }),
            JobState::Delivered { .. } => Ok(match self.policy.silence {
                Silence::Done => JobState::Done,
                Silence::Retry => self.again(now, "it was not acknowledged in time"),
            }),
            JobState::Done | JobState::Failed { .. } | JobState::Cancelled => Err(NotPossible),
        }
    }

    fn forced(&self, now: UnixMillis) -> Result<JobState, NotPossible> {
        match &self.state {
            // Who looks at the clock makes the run.
            JobState::Pending { at } if self.is_recurring() => {
                Ok(JobState::Pending { at: now.min(*at) })
            }
            JobState::Pending { .. } => Ok(self.ready(now)),
            JobState::Ready { until } => Ok(JobState::Ready { until: *until }),
            JobState::Claimed { .. } | JobState::Delivered { .. } => Err(NotPossible),
            JobState::Done | JobState::Failed { .. } | JobState::Cancelled => Err(NotPossible),
        }
    }
}

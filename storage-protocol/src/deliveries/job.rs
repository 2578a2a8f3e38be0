//! What a job is.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::{
    ATTACHED_MAX, DeliveryError, JobId, PAYLOAD_BYTES_MAX, Recipient, TEXT_BYTES_MAX, TIME_MAX,
};
use crate::{Key, UnixMillis};

/// What is made of a recipient that neither acknowledges nor declines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Silence {
    /// It is tried again.
    #[default]
    Retry,
    /// It counts as acknowledged: for recipients that say something only if they are not content.
    Done,
}

/// How a job is delivered. Times are whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many times it is handed over at most, at least once. Default 5.
    pub attempts_max: u32,
    /// For so long it is left alone after the first attempt that failed; twice as long after each further one. Default 1 s.
    pub backoff: Duration,
    /// The longest of these. Default 5 min.
    pub backoff_max: Duration,
    /// For so long it waits for a recipient that is not there, each time that it is ready; then it has failed. At least 1 s,
    /// since one that is there takes a moment. Default 24 h.
    pub window: Duration,
    /// For so long the recipient may take to acknowledge it, at least 10 ms. Default 30 s.
    pub ack: Duration,
    /// What is made of one that does not. Default: it is tried again.
    pub silence: Silence,
    /// For so long its record is kept once it has ended, at least 1 s. Default 30 days.
    pub keep: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            attempts_max: 5,
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            window: DAY,
            ack: Duration::from_secs(30),
            silence: Silence::Retry,
            keep: 30 * DAY,
        }
    }
}

/// No policy has a longer time.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

impl Policy {
    /// # Errors
    /// The name of the first value that is not allowed.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let within = |duration: Duration, least: u64| {
            (Duration::from_millis(least)..=LONGEST).contains(&duration)
        };
        for (is_good, name) in [
            (self.attempts_max >= 1, "attempts_max: at least 1"),
            (within(self.backoff, 0), "backoff: at most 10 years"),
            (within(self.backoff_max, 0), "backoff_max: at most 10 years"),
            (within(self.window, 1_000), "window: 1 s to 10 years"),
            (within(self.ack, 10), "ack: 10 ms to 10 years"),
            (within(self.keep, 1_000), "keep: 1 s to 10 years"),
        ] {
            if !is_good {
                return Err(name);
            }
        }
        Ok(())
    }

    /// How long a job is left alone after so many attempts.
    pub(super) fn backoff_after(&self, attempts: u32) -> Duration {
        let doubled = 2u32.saturating_pow(attempts.saturating_sub(1));
        self.backoff.saturating_mul(doubled).min(self.backoff_max)
    }
}

/// Where a job is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Nothing happens before this time.
    Pending {
        /// When it is due, or due again.
        at: UnixMillis,
    },
    /// It is due, and waits for its recipient.
    Ready {
        /// Then it has failed.
        until: UnixMillis,
    },
    /// Somebody is handing it over.
    Claimed {
        /// Who.
        holder: String,
        /// Then it is tried again.
        until: UnixMillis,
    },
    /// The recipient has it, and has yet to acknowledge it.
    Delivered {
        /// By whom.
        holder: String,
        /// Then [`Policy::silence`] says what becomes of it.
        until: UnixMillis,
    },
    /// It was acknowledged.
    Done,
    /// It is a dead letter.
    Failed {
        /// Why.
        reason: String,
    },
    /// It was cancelled.
    Cancelled,
}

/// The kind of a [`JobState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StateKind {
    /// [`JobState::Pending`].
    Pending,
    /// [`JobState::Ready`].
    Ready,
    /// [`JobState::Claimed`].
    Claimed,
    /// [`JobState::Delivered`].
    Delivered,
    /// [`JobState::Done`].
    Done,
    /// [`JobState::Failed`].
    Failed,
    /// [`JobState::Cancelled`].
    Cancelled,
}

impl StateKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Ready,
        Self::Claimed,
        Self::Delivered,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its word: `pending`, `ready` and so on.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Claimed => "claimed",
            Self::Delivered => "delivered",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The kind of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// Whether something is still to be done with the job.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(
            self,
            Self::Pending | Self::Ready | Self::Claimed | Self::Delivered
        )
    }

    /// What the rows of recipients have.
    pub(super) fn letter(self) -> &'static [u8] {
        match self {
            Self::Pending => b"p",
            Self::Ready => b"r",
            Self::Claimed => b"c",
            Self::Delivered => b"d",
            Self::Done | Self::Failed | Self::Cancelled => b"e",
        }
    }
}

impl fmt::Display for StateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl JobState {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> StateKind {
        match self {
            Self::Pending { .. } => StateKind::Pending,
            Self::Ready { .. } => StateKind::Ready,
            Self::Claimed { .. } => StateKind::Claimed,
            Self::Delivered { .. } => StateKind::Delivered,
            Self::Done => StateKind::Done,
            Self::Failed { .. } => StateKind::Failed,
            Self::Cancelled => StateKind::Cancelled,
        }
    }

    /// When something is to be done with the job by whoever looks at the clock.
    #[must_use]
    pub fn wake(&self) -> Option<UnixMillis> {
        match self {
            Self::Pending { at } => Some(*at),
            Self::Ready { until } | Self::Claimed { until, .. } | Self::Delivered { until, .. } => {
                Some(*until)
            }
            Self::Done | Self::Failed { .. } | Self::Cancelled => None,
        }
    }
}

/// A job, as its record has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Job {
    /// Whom it is for.
    pub recipient: Recipient,
    /// What is handed over.
    pub payload: Bytes,
    /// Who scheduled it, as was said then: a label, and no proof.
    pub owner: String,
    /// When it is to be due, whatever became of that. Of a recurring job the next time.
    pub due: UnixMillis,
    /// When it was scheduled.
    pub created: UnixMillis,
    /// When it was changed last.
    pub changed: UnixMillis,
    /// When it was handed over last, if it was. Of a recurring job: the time for which it made its last run.
    pub handed_over: Option<UnixMillis>,
    /// Where it is on its way.
    pub state: JobState,
    /// So many times it was handed over, or began to be. Of a recurring job: the runs that it has made.
    pub attempts: u32,
    /// How it is delivered.
    pub policy: Policy,
    /// Of a recurring job when it recurs; what the text means is known to who looks at the clock: see
    /// [`Recurrence`](super::Recurrence).
    pub recurrence: Option<String>,
    /// What goes with it: names of keys below [`Deliveries::attached_key`](super::Deliveries::attached_key), which are removed
    /// with the commit that ends it.
    pub attached: Vec<Key>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("recipient", &self.recipient.as_str())
            .field("payload_bytes", &self.payload.len())
            .field("owner", &self.owner)
            .field("due", &self.due.0)
            .field("state", &self.state)
            .field("attempts", &self.attempts)
            .field("recurrence", &self.recurrence)
            .finish_non_exhaustive()
    }
}

/// A job that is to be scheduled.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its id; `None`: a random one. With an id of the caller's, scheduling it twice makes one job.
    pub id: Option<JobId>,
    /// Whom it is for.
    pub recipient: Recipient,
    /// What is handed over, at most [`PAYLOAD_BYTES_MAX`].
    pub payload: Bytes,
    /// When it is due, or for the first time. In the past: at once.
    pub due: UnixMillis,
    /// Who schedules it: a label.
    pub owner: String,
    /// How it is delivered.
    pub policy: Policy,
    /// When it recurs, if it does. It is not judged here.
    pub recurrence: Option<String>,
    /// What goes with it: names of keys below [`Deliveries::attached_key`](super::Deliveries::attached_key), which are removed
    /// with the commit that ends it. At most [`ATTACHED_MAX`], each once, of 1 to [`TEXT_BYTES_MAX`] bytes. (Not objects of several
    /// parts.) A recurring job's runs have none.
    pub attached: Vec<Key>,
}

impl NewJob {
    /// A job with a random id, by the default policy, that does not recur.
    #[must_use]
    pub fn new(recipient: Recipient, due: UnixMillis, payload: impl Into<Bytes>) -> Self {
        Self {
            id: None,
            recipient,
            payload: payload.into(),
            due,
            owner: String::new(),
            policy: Policy::default(),
            recurrence: None,
            attached: Vec::new(),
        }
    }

    /// The job at its beginning.
    ///
    /// # Errors
    /// [`DeliveryError::Invalid`], with what is wrong.
    pub(super) fn begin(&self, now: UnixMillis) -> Result<Job, DeliveryError> {
        let job = Job {
            recipient: self.recipient.clone(),
            payload: self.payload.clone(),
            owner: self.owner.clone(),
            due: self.due,
            created: now,
            changed: now,
            handed_over: None,
            state: JobState::Pending { at: self.due },
            attempts: 0,
            policy: self.policy,
            recurrence: self.recurrence.clone(),
            attached: self.attached.clone(),
        };
        match job.check() {
            Ok(()) => Ok(job),
            Err(what) => Err(DeliveryError::Invalid(what)),
        }
    }
}

impl Job {
    /// Whether it is one that recurs, which is not handed over itself.
    #[must_use]
    pub fn is_recurring(&self) -> bool {
        self.recurrence.is_some()
    }

    /// What every job keeps to.
    pub(super) fn check(&self) -> Result<(), String> {
        let bytes = self.payload.len();
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(format!(
                "a payload has at most {PAYLOAD_BYTES_MAX} bytes, this has {bytes}"
            ));
        }
        if self.due > TIME_MAX {
            return Err(format!(
                "a job is due at {} ms since 1970 at the latest",
                TIME_MAX.0
            ));
        }
        let recurrence = self.recurrence.as_deref().unwrap_or("x");
        for (name, text) in [("owner", self.owner.as_str()), ("recurrence", recurrence)] {
            if text.len() > TEXT_BYTES_MAX {
                let bytes = text.len();
                return Err(format!(
                    "{name}: at most {TEXT_BYTES_MAX} bytes, this has {bytes}"
                ));
            }
        }
        if recurrence.is_empty() {
            return Err("recurrence: at least one byte".to_owned());
        }
        let is_name = |name: &Key| (1..=TEXT_BYTES_MAX).contains(&name.len());
        let names: HashSet<_> = self.attached.iter().collect();
        if names.len() > ATTACHED_MAX
            || names.len() < self.attached.len()
            || !self.attached.iter().all(is_name)
        {
            return Err(format!(
                "attached: at most {ATTACHED_MAX} names, each once, of 1 to {TEXT_BYTES_MAX} bytes"
            ));
        }
        self.policy.check().map_err(str::to_owned)
    }
}

/// A text within its bound.
pub(super) fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    text.get(..end).unwrap_or(text).to_owned()
}

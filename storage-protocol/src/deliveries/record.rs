//! The record of a job: the value at `jobs/ID`.
//!
//! The magic, then numbers (the protocol's varints), and texts and bytes with their length before them: version, recipient,
//! payload, owner, due, created, changed, handed over (0 or 1 + time), attempts, attempts_max, back-off, longest back-off,
//! window, ack, silence (0 retry, 1 done), keep, recurrence (empty: none), the number of attached keys and these, the state's
//! number and what it has. Times and durations are milliseconds.

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::{ATTACHED_MAX, Job, JobError, JobState, Policy, Recipient, Silence, TEXT_BYTES_MAX};
use crate::native::{Reader, Writer};
use crate::{UnixMillis, Value};

/// What a record begins with, and no text does.
const MAGIC: &[u8] = b"\xffjob\0";

/// The version that this writes, and the only one that it reads.
const VERSION: u64 = 1;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Job {
    /// Its record.
    #[must_use]
    pub fn encode(&self) -> Value {
        let mut out = BytesMut::with_capacity(MAGIC.len() + self.payload.len() + 128);
        out.put_slice(MAGIC);
        out.number(VERSION);
        out.length_prefixed(self.recipient.as_str().as_bytes());
        out.length_prefixed(&self.payload);
        out.length_prefixed(self.owner.as_bytes());
        out.number(self.due.0);
        out.number(self.created.0);
        out.number(self.changed.0);
        out.number(self.handed_over.map_or(0, |time| time.0.saturating_add(1)));
        out.number(u64::from(self.attempts));
        let policy = &self.policy;
        out.number(u64::from(policy.attempts_max));
        for duration in [
            policy.backoff,
            policy.backoff_max,
            policy.window,
            policy.ack,
        ] {
            out.number(millis(duration));
        }
        out.number(u64::from(policy.silence == Silence::Done));
        out.number(millis(policy.keep));
        let recurrence = self.recurrence.as_deref().unwrap_or_default();
        out.length_prefixed(recurrence.as_bytes());
        out.number(self.attached.len() as u64);
        for key in &self.attached {
            out.length_prefixed(key);
        }
        self.encode_state(&mut out);
        out.freeze()
    }

    fn encode_state(&self, out: &mut BytesMut) {
        match &self.state {
            JobState::Pending { at } => {
                out.number(0);
                out.number(at.0);
            }
            JobState::Ready { until } => {
                out.number(1);
                out.number(until.0);
            }
            JobState::Claimed { holder, until } => {
                out.number(2);
                out.length_prefixed(holder.as_bytes());
                out.number(until.0);
            }
            JobState::Delivered { holder, until } => {
                out.number(3);
                out.length_prefixed(holder.as_bytes());
                out.number(until.0);
            }
            JobState::Done => out.number(4),
            JobState::Failed { reason } => {
                out.number(5);
                out.length_prefixed(reason.as_bytes());
            }
            JobState::Cancelled => out.number(6),
        }
    }

    /// The job of a record.
    ///
    /// # Errors
    /// [`JobError`].
    pub fn decode(value: &Value) -> Result<Self, JobError> {
        if !value.starts_with(MAGIC) {
            return Err(JobError::NoRecord);
        }
        let mut fields = Reader::new(value.slice(MAGIC.len()..));
        match fields.number("the record's version")? {
            VERSION => {}
            version => return Err(JobError::Version(version)),
        }
        let recipient = fields.text("the recipient")?;
        let job = Self {
            recipient: Recipient::new(&recipient).map_err(|_| JobError::Field("recipient"))?,
            payload: fields.bytes("the payload")?,
            owner: fields.text("the owner")?,
            due: UnixMillis(fields.number("due")?),
            created: UnixMillis(fields.number("created")?),
            changed: UnixMillis(fields.number("changed")?),
            handed_over: fields.number("handed over")?.checked_sub(1).map(UnixMillis),
            attempts: small(fields.number("attempts")?, "attempts")?,
            policy: policy(&mut fields)?,
            recurrence: Some(fields.text("the recurrence")?).filter(|text| !text.is_empty()),
            attached: attached(&mut fields)?,
            state: state(&mut fields)?,
        };
        fields.finish()?;
        match job.check() {
            Ok(()) => Ok(job),
            Err(_) => Err(JobError::Field("value")),
        }
    }
}

fn small(number: u64, field: &'static str) -> Result<u32, JobError> {
    u32::try_from(number).map_err(|_| JobError::Field(field))
}

fn policy(fields: &mut Reader) -> Result<Policy, JobError> {
    let attempts_max = small(fields.number("attempts_max")?, "attempts_max")?;
    let mut duration = |what| fields.number(what).map(Duration::from_millis);
    let (backoff, backoff_max) = (duration("the back-off")?, duration("the longest back-off")?);
    let (window, ack) = (duration("the window")?, duration("ack")?);
    let silence = match fields.number("silence")? {
        0 => Silence::Retry,
        1 => Silence::Done,
        _ => return Err(JobError::Field("silence")),
    };
    Ok(Policy {
        attempts_max,
        backoff,
        backoff_max,
        window,
        ack,
        silence,
        keep: Duration::from_millis(fields.number("keep")?),
    })
}

fn attached(fields: &mut Reader) -> Result<Vec<crate::Key>, JobError> {
    let count = fields.count(1, "attached keys")?;
    if count > ATTACHED_MAX {
        return Err(JobError::Field("number of attached keys"));
    }
    let keys = (0..count).map(|_| fields.bytes("an attached key"));
    Ok(keys.collect::<Result<_, _>>()?)
}

fn short(fields: &mut Reader, what: &'static str) -> Result<String, JobError> {
    let text = fields.text(what)?;
    match text.len() <= TEXT_BYTES_MAX {
        true => Ok(text),
        false => Err(JobError::Field(what)),
    }
}

fn state(fields: &mut Reader) -> Result<JobState, JobError> {
    Ok(match fields.number("the state")? {
        0 => JobState::Pending {
            at: UnixMillis(fields.number("at")?),
        },
        1 => JobState::Ready {
            until: UnixMillis(fields.number("until")?),
        },
        2 => JobState::Claimed {
            holder: short(fields, "holder")?,
            until: UnixMillis(fields.number("until")?),
        },
        3 => JobState::Delivered {
            holder: short(fields, "holder")?,
            until: UnixMillis(fields.number("until")?),
        },
        4 => JobState::Done,
        5 => JobState::Failed {
            reason: short(fields, "reason")?,
        },
        6 => JobState::Cancelled,
        _ => return Err(JobError::Field("state")),
    })
}

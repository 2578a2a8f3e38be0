//! Deliveries: something that is due at a time, and is handed to a named recipient at least once, through any
//! [`Storage`](crate::Storage).
//!
//! A [`Job`] has a payload, a recipient and an instant at which it is due. It is handed over, acknowledged or tried again,
//! and in the end it is done, failed (a dead letter, with its reason) or cancelled. Jobs are ordinary entries below a prefix,
//! `deliveries/` unless another one is given, so they survive restarts, and are watched, limited and governed by access rules
//! like all else. `docs/protocol.md`, *Deliveries*, is the normative text.
//!
//! ```text
//!                 due              claim             delivered              acknowledge
//!   pending ───────────▶ ready ───────────▶ claimed ───────────▶ delivered ─────────────▶ done
//!      ▲                   │ window over        │ expired, declined    │ declined, not acknowledged
//!      │                   ▼                    ▼                      ▼
//!      └───── back-off ── failed ◀───────── no attempt is left, or it is tried again
//! ```
//!
//! * **Each step is one commit.** It checks the revision of the job's record, and moves the record and its rows together: of
//!   two servers, or a server and its successor, each step is done by one. A step may be one commit with changes of the
//!   caller's own ([`Deliveries::schedule_with`]).
//! * **At least once.** Between the moment that a recipient has it and the commit that says so anything may break off; then
//!   it is handed over again. Who receives tells repeats by the job's id.
//! * **Somebody has to look at the clock.** [`Deliveries::run_due`] makes ready what is due, and ends what has waited for too
//!   long; a server does so for its configured keyspaces. It looks at what is due, however many jobs wait.
//! * **Claims end.** A claim has an end, behind which the job is ready again: nobody holds a job by having died with it.
//! * **Recurring jobs** never are handed over themselves: at each time a job of its own comes into being, `ID@TIME`. Times that
//!   passed while nobody looked at the clock become one, and a run that still waits for its recipient when the next one is made
//!   gives way to it.
//! * **Clocks may be wrong.** What was reckoned by a clock that was ahead is reckoned anew by [`Deliveries::set_back`].
//!
//! Who may write below the prefix may do everything with its jobs. Recipients that are not trusted so far are to be served by a
//! gateway, which acts for them.

mod change;
mod due;
mod error;
mod job;
mod keys;
mod list;
mod moves;
mod receive;
mod record;
mod set_back;
mod step;
mod store;
#[cfg(test)]
mod tests;

pub use self::due::{DueRun, NoRecurrence, Recurrence};
pub use self::error::{DeliveryError, JobError};
pub use self::job::{Job, JobState, NewJob, Policy, Silence, StateKind};
pub use self::keys::{DEFAULT_PREFIX, JobId, NAME_BYTES_MAX, NameError, Recipient, TIME_MAX};
pub use self::list::{Counters, JobFilter, JobPage, LIST_MAX};
pub use self::receive::{Delivery, Receiver};
pub use self::step::Step;
pub use self::store::{Clock, Deliveries, Stored};

/// The most bytes of a payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// The most bytes of a reason, of an owner, of a holder's name, of a recurrence and of the name of an attached key. What is longer is cut, or refused where it
/// says what to do.
pub const TEXT_BYTES_MAX: usize = 512;

/// The most keys that go with a job, by their names: see [`NewJob::attached`].
pub const ATTACHED_MAX: usize = 8;

//! Quotas: how much a principal, or all principals together in a keyspace, may store, send and hold open.
//!
//! A [`Quota`] is for principals or for keyspaces, and holds for each of them by itself. Quotas are of the configuration or
//! stored, like rules; a [`QuotaSet`] is made of all of them, and where several are for one principal the smallest number
//! of each kind holds.
//!
//! | kind | is counted by | over it |
//! | --- | --- | --- |
//! | bytes and entries that a keyspace holds | the engine, in the commit's own batch | `QuotaExceeded` |
//! | commits and their bytes, each second | [`meters`], a token bucket for each principal and keyspace | `Overloaded` |
//! | watches | [`meters`] | `Overloaded` |
//! | sessions | `limits::budget` for principals, [`meters`] for keyspaces | 503 at the upgrade |
//!
//! What is counted is there with and without a quota, so one that is set holds at once; only the buckets begin full then.
//! The server's own sessions and keyspaces have no quotas.

mod amount;
mod meters;
mod quota;
mod set;

pub use self::amount::{QuotaKind, QuotaLimits};
pub(crate) use self::meters::{Meters, Permit, SessionLimits, SessionMeters};
pub use self::quota::{Quota, QuotaTarget};
pub use self::set::QuotaSet;

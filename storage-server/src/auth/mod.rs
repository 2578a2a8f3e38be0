//! Who a peer is, and what it may do.
//!
//! An [`Identity`] has a [`Principal`] and says by what it was found out. What it may do is told by [`rules`], how much of
//! it by [`quotas`]; [`control`] has those that hold now. [`guard`] stands between gateways and engine and lets nothing
//! else through.

mod control;
mod credentials;
mod dead_tokens;
mod follow;
mod guard;
mod identity;
mod live;
mod lockout;
pub(crate) mod passwords;
mod pattern;
mod principal;
pub mod quotas;
pub mod rules;
mod secrets;
pub(crate) mod system;
pub(crate) mod text;
mod token_records;
pub(crate) mod tokens;

pub(crate) use self::control::{AccessControl, Verifier};
pub(crate) use self::credentials::{AuthError, Shown, now, shown_by};
pub(crate) use self::guard::{GuardedSession, Judged};
pub use self::identity::Identity;
pub(crate) use self::identity::Proof;
pub(crate) use self::live::LivePeer;
pub(crate) use self::lockout::Lockout;
pub use self::lockout::RulesRefused;
pub use self::pattern::{Pattern, PatternError};
pub use self::principal::{IdentityError, Principal};
pub(crate) use self::secrets::{Secrets, TOKEN_LIFE_MAX};
pub(crate) use self::system::Configured;

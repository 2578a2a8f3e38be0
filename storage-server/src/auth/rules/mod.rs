//! Access rules: which principal may read, write, watch and administer which keys of which keyspaces.
//!
//! A [`Rule`] gives [`Permissions`]; none takes any away. Rules are of the configuration or stored, and so are the
//! [`Role`]s that they may name. A [`RuleSet`] is made of all of them: it tells the [`Grants`] of a principal in a
//! keyspace, explains a decision, and warns of rules that give nothing.
//!
//! Without any rule every principal may do everything. With the first one, what no rule gives is denied. The server's
//! own [keyspaces](SYSTEM) are stricter, see [`KeyspacePattern`].
//!
//! Here nothing is read, stored or cached. Invariant: [`RuleSet::grants`] and [`RuleSet::explain`] both ask
//! [`Rule::gives`], so that what is explained is what is done.

mod error;
mod explain;
mod grants;
mod keyspaces;
mod overlap;
mod permission;
mod prefixes;
mod role;
mod rule;
mod set;
mod subject;
#[cfg(test)]
mod tests;
mod warnings;

pub use self::error::{RECORD_BYTES_MAX, RuleError};
pub(super) use self::error::{field, from_json};
pub use self::explain::Explanation;
pub use self::grants::Grants;
pub use self::keyspaces::{KeyspaceKind, KeyspacePattern, SECRETS, SYSTEM};
pub use self::permission::{Permission, Permissions};
pub use self::prefixes::{Cut, Prefixes};
pub use self::role::{Role, RoleName};
pub use self::rule::Rule;
pub use self::set::{Origin, RuleSet, RuleSetBuilder};
pub use self::subject::Subject;
pub(super) use self::subject::{matches_any_principal, matches_beside_users};
pub use self::warnings::Warning;

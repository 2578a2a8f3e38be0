//! Whether rules, roles and users may become what a change makes of them: somebody must be able to change them afterwards,
//! and the last rule does not go, since without one everybody may do everything.
//!
//! Asked for each commit to the keyspace `system`, and for each configuration that is read while the server runs. A start
//! takes what is there, and says what is wrong with it.

use storage_protocol::{Batch, Operation, Result, StorageError};

use super::pattern::Pattern;
use super::rules::{RuleSet, matches_beside_users};
use super::system::{Configured, Named, Records, check_operation, user_of};

/// Whether a commit is made although nobody could change the rules afterwards, or everybody could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lockout {
    Refused,
    /// Asked for: nothing else is let through by it.
    Forced,
}

/// Why access rules do not take the place of those before. Shown as of a configuration that is read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RulesRefused {
    /// Nobody could change them any more.
    #[error(
        "with these access rules nobody could change them any more: let one give \"admin\" of the keyspace \"system\" to \
         somebody (a user that there is and that is not disabled, or a certificate)"
    )]
    LockedOut,
    /// There were some, and there would be none.
    #[error(
        "without any access rule every peer that is let in could do everything: leave one, or restart the server to go on \
         without any"
    )]
    Opened,
}

impl RulesRefused {
    /// The same of a commit, for its sender.
    fn of_commit(self) -> StorageError {
        StorageError::invalid(match self {
            Self::LockedOut => {
                "with this commit nobody could change the access rules any more: first let a rule give \"admin\" of the \
                 keyspace \"system\" to somebody (a user that there is and that is not disabled, or a certificate), or ask \
                 for it by force"
            }
            Self::Opened => {
                "with this commit there would be no access rule any more, and every peer that is let in could do \
                 everything: leave one, or ask for it by force"
            }
        })
    }
}

impl Records {
    /// Whether a peer's commit may be made to this state.
    ///
    /// # Errors
    /// [`StorageError::InvalidArgument`], which names the record and what is wrong with it.
    pub(crate) fn check(
        &self,
        batch: &Batch,
        configured: &Configured,
        lockout: Lockout,
    ) -> Result<()> {
        let mut is_judged = false;
        for operation in &batch.operations {
            check_operation(operation)?;
            is_judged |= self.may_lock_out(operation);
        }
        if !is_judged || lockout == Lockout::Forced {
            return Ok(());
        }
        let mut after = self.clone();
        for operation in &batch.operations {
            let named = Named::of(operation.key());
            if let Some(Named::Rule(_) | Named::Role(_) | Named::User(_)) = named {
                after.apply(operation.key(), value_of(operation));
            }
        }
        let (old, new) = (self.rule_set(configured), after.rule_set(configured));
        let checked = after.check_rules(&old, &new);
        checked.map_err(RulesRefused::of_commit)
    }

    /// Whether these rules, with the users that there are here, may take the place of those before.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_rules(
        &self,
        before: &RuleSet,
        after: &RuleSet,
    ) -> std::result::Result<(), RulesRefused> {
        if before.has_rules() && !after.has_rules() {
            return Err(RulesRefused::Opened);
        }
        match self.has_administrator(after) {
            true => Ok(()),
            false => Err(RulesRefused::LockedOut),
        }
    }

    /// Whether these rules let anybody change them. Which certificates there are is not known, so any name of one counts;
    /// users count that there are here and that may log in.
    pub(crate) fn has_administrator(&self, rules: &RuleSet) -> bool {
        rules.has_system_admin_among(|pattern| self.is_anybody(pattern))
    }

    fn is_anybody(&self, pattern: &Pattern) -> bool {
        let mut users = self.users().filter(|(_, user)| !user.disabled);
        matches_beside_users(pattern)
            || users.any(|(name, _)| pattern.matches(&format!("user:{name}")))
    }

    /// Whether an operation can take an administrator away, or the last rule. Of users, which are many, only one that is
    /// put out can.
    fn may_lock_out(&self, operation: &Operation) -> bool {
        match Named::of(operation.key()) {
            Some(Named::Rule(_) | Named::Role(_)) => true,
            Some(Named::User(name)) => {
                let stays = value_of(operation)
                    .is_some_and(|json| user_of(json).is_ok_and(|user| !user.disabled));
                !stays && self.user(name).is_some_and(|user| !user.disabled)
            }
            _ => false,
        }
    }
}

fn value_of(operation: &Operation) -> Option<&[u8]> {
    match operation {
        Operation::Put { value, .. } => Some(value.as_ref()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::Key;

    use super::*;
    use crate::auth::rules::Rule;

    const ADMIN: &str = r#"{"principal":"cert:boss","keyspace":"system","allow":["admin"]}"#;
    const OTHER: &str = r#"{"principal":"cert:a","keyspace":"model","allow":["read"]}"#;
    const NOBODY: &str = "nobody could change";
    const NO_RULE: &str = "no access rule any more";

    fn none() -> Configured {
        Configured::default()
    }

    fn rule(json: &str) -> Batch {
        Batch::new().put("access/one", json.to_owned())
    }

    fn admin(principal: &str) -> String {
        ADMIN.replace("cert:boss", principal)
    }

    fn with(batch: &Batch) -> Records {
        let mut records = Records::default();
        for operation in &batch.operations {
            records.apply(operation.key(), Some(operation.value()));
        }
        records
    }

    /// Refused for this reason; by force it is made.
    #[track_caller]
    fn refused(records: &Records, batch: &Batch, why: &str) {
        let error = records
            .check(batch, &none(), Lockout::Refused)
            .expect_err("it is refused");
        assert!(matches!(error, StorageError::InvalidArgument { .. }));
        assert!(error.to_string().contains(why), "{error}");
        records.check(batch, &none(), Lockout::Forced).unwrap();
    }

    #[track_caller]
    fn made(records: &Records, batch: &Batch) {
        records.check(batch, &none(), Lockout::Refused).unwrap();
    }

    #[test]
    fn nobody_is_locked_out_unless_somebody_is_left_who_can_let_them_in() {
        let open = Records::default();
        refused(&open, &rule(OTHER), NOBODY);
        made(&open, &rule(ADMIN));
        let kept = with(&rule(ADMIN).put("access/two", OTHER));
        let last = Batch::new().remove("access/one");
        refused(&kept, &last, NOBODY);
        refused(&kept, &rule(OTHER), NOBODY);
        // One of the configuration stays.
        let configured = Configured {
            rules: vec![Rule::from_json(ADMIN.as_bytes()).unwrap()],
            ..none()
        };
        kept.check(&last, &configured, Lockout::Refused).unwrap();
        // What is no record is refused by force too.
        let wrong = Batch::new().put(format!("access/{}", "x".repeat(257)), OTHER);
        kept.check(&wrong, &none(), Lockout::Forced).unwrap_err();
    }

    #[test]
    fn the_last_rule_stays_unless_it_is_asked_for() {
        let kept = with(&rule(ADMIN).put("access/two", OTHER));
        let all = Batch::new().remove("access/one").remove("access/two");
        refused(&kept, &all, NO_RULE);
        made(&kept, &all.put("access/three", ADMIN));
        // One that cannot be read is one: it closes what was open, and its end would open it again.
        let mut unreadable = Records::default();
        unreadable.apply(&Key::from_static(b"access/newer"), Some(b"{\"newer\":1}"));
        refused(&unreadable, &Batch::new().remove("access/newer"), NO_RULE);
        refused(&unreadable, &rule(OTHER), NOBODY);
        // Where there was none there may be none.
        let open = with(
            &Batch::new()
                .put("users/ann", "{}")
                .put("roles/a", r#"{"members":[]}"#),
        );
        made(&open, &Batch::new().remove("roles/a"));
        made(&open, &Batch::new().remove("users/ann"));
    }

    #[test]
    fn a_user_counts_as_administrator_while_it_is_there_and_enabled() {
        let disabled = r#"{"disabled":true}"#;
        let out = [
            Batch::new().put("users/ann", disabled),
            Batch::new().remove("users/ann"),
        ];
        for principal in ["user:ann", "user:a*", "user:*", "role:ops"] {
            let members = r#"{"members":["user:ann","user:gone"]}"#;
            let records = with(
                &rule(&admin(principal))
                    .put("users/ann", "{}")
                    .put("users/off", disabled)
                    .put("roles/ops", members),
            );
            for out in out.clone() {
                refused(&records, &out, NOBODY);
                // Not where another one comes in by the same commit, or a certificate may.
                made(&records, &out.clone().put("access/cert", ADMIN));
                made(
                    &records,
                    &out.put("users/amy", "{}")
                        .put("access/amy", admin("user:amy")),
                );
            }
            // A new password, or a user who was out before, changes nothing.
            made(
                &records,
                &Batch::new().put("users/ann", r#"{"password_set":7}"#),
            );
            made(&records, &Batch::new().remove("users/off"));
        }
        // Of nobody who could come in.
        let records = with(&rule(ADMIN).put("users/off", disabled));
        for principal in ["user:gone", "user:off", "user:o*", "role:ops"] {
            let batch = rule(&admin(principal)).put("roles/ops", r#"{"members":["user:off"]}"#);
            refused(&records, &batch, NOBODY);
        }
        // Certificates are not known, and count.
        for principal in ["cert:gone", "*", "anonymous"] {
            made(&records, &rule(&admin(principal)));
        }
    }
}

//! Tokens that are good for nothing for good, before their time is over: their user was disabled, removed or given another
//! password, or a token before them is gone. Their records are removed, so that nothing makes them good again.
//!
//! Invariant: when a commit to users is made, the records of tokens that the users before it have put an end to are gone from
//! the store. So who is disabled and let in again has none of its tokens any more, whatever happens in between.

use std::collections::BTreeSet;

use storage_protocol::{Batch, CommitOptions, Outcome, Position, Result, StorageError};

use super::control::AccessControl;
use super::follow::{PAUSE, SystemRecords};
use super::system::{Records, is_user_key, token_key};
use crate::engine::SessionStorage;

/// Whether a commit adds, changes or removes users.
pub(super) fn changes_users(batch: &Batch) -> bool {
    let mut operations = batch.operations.iter();
    operations.any(|operation| is_user_key(operation.key()))
}

impl SystemRecords {
    /// Waits until the records of tokens that were ended are removed.
    ///
    /// # Errors
    /// `Internal`, *not executed*: it takes too long.
    pub(super) async fn tokens_are_removed(&self) -> Result<()> {
        let mut dead = self.dead_tokens.subscribe();
        let removed = dead.wait_for(BTreeSet::is_empty);
        match tokio::time::timeout(self.patience, removed).await {
            Ok(_) => Ok(()),
            Err(_) => Err(StorageError::Internal {
                message: "the tokens of users who were put out cannot be removed, and would be good again by this commit; \
                          see the server's log"
                    .to_owned(),
                outcome: Outcome::NotExecuted,
            }),
        }
    }
}

impl AccessControl {
    /// Finds the tokens that these users have put an end to, for [`AccessControl::tidy`]. To be asked where users and tokens
    /// are known of the same moment.
    pub(super) fn find_dead_tokens(&self, records: &Records) {
        let dead = self.dead_tokens(records);
        if !dead.is_empty() {
            self.system()
                .dead_tokens
                .send_modify(|all| all.extend(dead));
        }
    }

    fn dead_tokens(&self, records: &Records) -> Vec<String> {
        let tokens = self.tokens(None).into_iter();
        let dead = tokens.filter(|(_, record)| self.check_minter_among(records, record).is_err());
        dead.map(|(id, _)| id).collect()
    }

    /// Removes the records of tokens that are good for nothing, which would count for those who minted them until their
    /// time is over; for as long as it is polled.
    pub(super) async fn tidy(&self, storage: &dyn SessionStorage) {
        let system = self.system();
        let mut found = system.dead_tokens.subscribe();
        let mut fails = false;
        while found.wait_for(|dead| !dead.is_empty()).await.is_ok() {
            let dead: Vec<String> = found.borrow().iter().cloned().collect();
            let removed = self.remove_tokens(storage, &dead, "dead tokens").await;
            if let Err(error) = removed {
                // Tried again, and told once.
                if !std::mem::replace(&mut fails, true) {
                    tracing::warn!(%error, tokens = dead.len(), "cannot remove dead tokens; trying again");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            fails = false;
            let remove = |all: &mut BTreeSet<String>| {
                for id in &dead {
                    all.remove(id);
                }
            };
            system.dead_tokens.send_modify(remove);
        }
    }

    /// Removes the records of tokens, in as many commits as it takes, and returns the position of the last one when that
    /// holds. `storage` is the server's own.
    ///
    /// # Errors
    /// Those of a commit; some may be removed then.
    pub(crate) async fn remove_tokens(
        &self,
        storage: &dyn SessionStorage,
        ids: &[String],
        label: &str,
    ) -> Result<Position> {
        let mut position = storage.position();
        let most = storage.limits().await?.operations_per_commit_max.max(1);
        for ids in ids.chunks(most) {
            let remove = |batch: Batch, id: &String| batch.remove(token_key(id));
            let options = CommitOptions {
                label: Some(label.to_owned()),
                ..CommitOptions::default()
            };
            let batch = ids.iter().fold(Batch::new(), remove);
            position = storage.commit(batch, options).await?;
            self.wait_for(position.revision).await?;
        }
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Audit;
    use crate::auth::Configured;
    use crate::auth::system::user_key;

    #[test]
    fn tokens_are_dead_whose_user_is_gone_or_that_lack_one_they_were_minted_with() {
        let access = AccessControl::new(Configured::default(), Audit::off()).unwrap();
        let keep = |id: &str, principal: &str, more: &str| {
            let json =
                format!(r#"{{"principal":"{principal}","issued":1,"expires":99999999999{more}}}"#);
            access.keep_token(id, json.as_bytes());
        };
        keep("good", "cert:a", "");
        keep("child", "cert:a", r#","parent":"good""#);
        keep("orphan", "cert:a", r#","parent":"gone""#);
        keep("grandchild", "cert:a", r#","parent":"orphan""#);
        keep("of nobody", "user:eve", r#","password_set":1"#);
        let mut dead = access.dead_tokens(&Records::default());
        dead.sort();
        assert_eq!(dead, ["grandchild", "of nobody", "orphan"]);
        // Of a user who is disabled, too: it may be let in again, and they are not.
        keep("of eve", "user:eve", r#","password_set":1"#);
        let mut records = Records::default();
        records.apply(&user_key("eve"), Some(br#"{"password_set":1}"#));
        assert_eq!(access.dead_tokens(&records).len(), 2);
        let disabled = br#"{"disabled":true,"password_set":1}"#;
        records.apply(&user_key("eve"), Some(disabled));
        let dead = access.dead_tokens(&records);
        assert_eq!(dead.len(), 4);
        assert!(dead.contains(&"of eve".to_owned()));
    }
}

//! Keeps the rules in step with the keyspace `system`: at the start, and by a watch from then on.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use storage_protocol::{
    Batch, KeyRange, KeyState, Position, Result, Revision, Storage, WatchEvent, WatchOptions,
    WatchStart,
};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::control::AccessControl;
use super::rules::RuleSet;
use super::system::{Applies, Configured, Records, User, token_id};

/// Between two attempts to watch, where the store fails.
const PAUSE: Duration = Duration::from_secs(1);
/// Who has expired is looked for so often.
const LOOK: Duration = Duration::from_secs(1);
/// How long the answer to a commit waits for its rules to hold. Only where the store fails do they take longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The records of `system`, and who waits for them.
#[derive(Debug, Default)]
pub(super) struct SystemRecords {
    configured: RwLock<Arc<Configured>>,
    /// Those of the configuration and those that are stored become one set of rules: one at a time, or one of two changes
    /// would be lost.
    joining: std::sync::Mutex<()>,
    /// What holds, up to which revision.
    applied: watch::Sender<Applied>,
    /// Somebody waits.
    asked: Notify,
    /// Commits of peers are made one after another, so that each is checked against what the one before left.
    committing: Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Applied {
    records: Records,
    upto: Revision,
    /// Whether what is stored is known.
    loaded: bool,
}

impl SystemRecords {
    pub(super) fn new(configured: Configured) -> Self {
        Self {
            configured: RwLock::new(Arc::new(configured)),
            ..Self::default()
        }
    }

    pub(super) fn configured(&self) -> Arc<Configured> {
        let configured = self.configured.read();
        configured.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what the configuration has now, if `swap` takes the rules that follow.
    pub(super) fn reconfigure<E>(
        &self,
        configured: Configured,
        swap: impl FnOnce(RuleSet) -> Result<(), E>,
    ) -> Result<(), E> {
        let _one = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = self.applied.borrow().records.rule_set(&configured);
        swap(rules)?;
        let mut known = self
            .configured
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *known = Arc::new(configured);
        Ok(())
    }

    /// Makes a peer's commit, if the keyspace may hold what it leaves. When it is answered, its rules hold.
    ///
    /// # Errors
    /// Those of `commit`; `InvalidArgument` for what may not be.
    pub(super) async fn checked(
        &self,
        batch: &Batch,
        present: Position,
        commit: impl Future<Output = Result<Position>>,
    ) -> Result<Position> {
        let _one = self.committing.lock().await;
        // A commit whose sender went away is made all the same: this one is checked against what it left.
        self.wait_for(present.revision).await;
        let known = self.applied.borrow().records.clone();
        known.check(batch, &self.configured())?;
        let position = commit.await?;
        self.wait_for(position.revision).await;
        Ok(position)
    }

    pub(super) fn user(&self, name: &str) -> Option<User> {
        self.applied.borrow().records.user(name).cloned()
    }

    /// All users, by name.
    pub(super) fn users(&self) -> Vec<(String, User)> {
        let applied = self.applied.borrow();
        let users = applied.records.users();
        users
            .map(|(name, user)| (name.clone(), user.clone()))
            .collect()
    }

    /// Waits until what was committed up to there holds.
    pub(super) async fn wait_for(&self, revision: Revision) {
        let mut applied = self.applied.subscribe();
        self.asked.notify_one();
        let holds = applied.wait_for(|applied| applied.upto >= revision);
        if tokio::time::timeout(PATIENCE, holds).await.is_err() {
            tracing::error!(revision = revision.0, "the access rules are not followed");
        }
    }
}

impl AccessControl {
    /// Waits until the stored rules are known. Before that nobody must be let in.
    pub(crate) async fn loaded(&self) {
        let mut applied = self.system().applied.subscribe();
        // The sender lives as long as self.
        let _ = applied.wait_for(|applied| applied.loaded).await;
    }

    /// Follows the keyspace for as long as it is polled; `storage` is the server's own.
    pub(crate) async fn follow(&self, storage: &dyn Storage) {
        loop {
            if let Err(error) = self.follow_one_watch(storage).await {
                // What was known holds on: to forget rules would let everybody in.
                tracing::error!(%error, "cannot follow the access rules; trying again");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow_one_watch(&self, storage: &dyn Storage) -> Result<()> {
        let options = WatchOptions::latest(WatchStart::Beginning);
        let mut watch = storage.watch(KeyRange::all(), options).await?;
        // From the beginning, everything comes before the first mark.
        let mut records = Records::default();
        // The tokens likewise; until then those that were known hold on.
        let mut tokens = Some(HashMap::new());
        let (mut changed, mut ended) = (true, true);
        let mut tick = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                () = self.system().asked.notified() => {
                    watch.request_progress(0);
                    continue;
                }
                _ = tick.tick() => {
                    self.sweep();
                    continue;
                }
            };
            match event {
                None => return Ok(()),
                Some(WatchEvent::State { key, state }) => {
                    let value = match &state {
                        KeyState::Live(entry) => Some(entry.value.as_ref()),
                        KeyState::Removed(_) => None,
                    };
                    match token_id(&key) {
                        Some(id) => self.set_token(id, value, tokens.as_mut()),
                        None => {
                            let what = records.apply(&key, value);
                            changed |= what == Applies::Rules;
                            ended |= what == Applies::Users;
                        }
                    }
                    ended |= value.is_none();
                }
                Some(WatchEvent::Reset) => {
                    records = Records::default();
                    tokens = Some(HashMap::new());
                    (changed, ended) = (true, true);
                }
                Some(WatchEvent::Progress { position, .. }) => {
                    if let Some(tokens) = tokens.take() {
                        self.swap_tokens(tokens);
                    }
                    let rules_changed = std::mem::take(&mut changed);
                    self.apply(&records, position.revision, rules_changed);
                    if std::mem::take(&mut ended) {
                        self.sweep();
                    }
                    if rules_changed {
                        self.warn();
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// From now on this holds, which is stored up to that revision.
    fn apply(&self, records: &Records, upto: Revision, rules_changed: bool) {
        let system = self.system();
        let _one = system
            .joining
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if rules_changed {
            self.swap(records.rule_set(&system.configured()));
        }
        system.applied.send_replace(Applied {
            records: records.clone(),
            upto,
            loaded: true,
        });
    }
}

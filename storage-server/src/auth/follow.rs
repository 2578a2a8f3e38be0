//! Keeps the rules in step with the keyspace `system`: at the start, and by a watch from then on.
//!
//! Three tasks do it: one follows the keyspace, one puts those out whose time is over, one removes dead tokens. None may end before
//! the server does: one that panics is started again, and as long as the keyspace is not followed the server is not ready.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use storage_protocol::{
    Batch, CommitOptions, KeyRange, KeyState, Outcome, Position, Result, Revision, Storage,
    StorageError, WatchEvent, WatchOptions, WatchStart,
};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::control::AccessControl;
use super::dead_tokens::changes_users;
use super::lockout::{Lockout, RulesRefused};
use super::quotas::QuotaSet;
use super::rules::{Origin, Role, RoleName, RuleSet};
use super::system::{Applies, Configured, Records, User, token_id};
use super::token_records::TokenRecords;
use crate::config::NamedRole;
use crate::engine::{Engine, SessionStorage};

/// Between two attempts to watch, where the store fails; and before a task that failed is started again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// Who has expired is looked for so often.
const LOOK: Duration = Duration::from_secs(1);
/// How long the answer to a commit waits for its rules to hold. Only where the store fails do they take longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The records of `system`, and who waits for them.
#[derive(Debug)]
pub(super) struct SystemRecords {
    configured: RwLock<Arc<Configured>>,
    /// Those of the configuration and those that are stored become one set of rules: one at a time, or one of two changes
    /// would be lost.
    joining: std::sync::Mutex<()>,
    /// [`PATIENCE`], but in tests.
    pub(super) patience: Duration,
    /// What holds, up to which revision.
    applied: watch::Sender<Applied>,
    /// Somebody waits.
    asked: Notify,
    /// Commits of peers are made one after another, so that each is checked against what the one before left.
    committing: Mutex<()>,
    /// Whether there is a watch that tells of changes.
    followed: AtomicBool,
    /// Tokens that are good for nothing for good, and whose records are still there.
    pub(super) dead_tokens: watch::Sender<BTreeSet<String>>,
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
            joining: std::sync::Mutex::default(),
            patience: PATIENCE,
            applied: watch::Sender::default(),
            asked: Notify::new(),
            committing: Mutex::default(),
            followed: AtomicBool::new(false),
            dead_tokens: watch::Sender::default(),
        }
    }

    pub(super) fn configured(&self) -> Arc<Configured> {
        let configured = self.configured.read();
        configured.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what the configuration has now, if that may be; `swap` takes the rules that follow.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn reconfigure(
        &self,
        configured: Configured,
        swap: impl FnOnce(RuleSet, QuotaSet),
    ) -> std::result::Result<(), RulesRefused> {
        let _one = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let records = self.records();
        let rules = records.rule_set(&configured);
        records.check_rules(&records.rule_set(&self.configured()), &rules)?;
        let quotas = records.quota_set(&configured, &rules);
        swap(rules, quotas);
        let mut known = self
            .configured
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *known = Arc::new(configured);
        Ok(())
    }

    /// What holds now.
    pub(super) fn records(&self) -> Records {
        self.applied.borrow().records.clone()
    }

    /// Whether these rules let anybody change them.
    pub(super) fn has_administrator(&self, rules: &RuleSet) -> bool {
        self.records().has_administrator(rules)
    }

    /// Whether the keyspace may hold what a commit leaves.
    ///
    /// # Errors
    /// As of [`Records::check`].
    pub(super) fn check(&self, batch: &Batch, lockout: Lockout) -> Result<()> {
        self.records().check(batch, &self.configured(), lockout)
    }

    /// Makes a peer's commit, if the keyspace may hold what it leaves. When it is answered without an error, its rules
    /// hold.
    ///
    /// # Errors
    /// Those of `commit`; `InvalidArgument` for what may not be; `Internal`: *not executed* where what holds before it is
    /// not known, *unknown* where it was made and its rules do not hold yet, see [`SystemRecords::wait_for`].
    pub(super) async fn checked(
        &self,
        batch: &Batch,
        lockout: Lockout,
        present: Position,
        commit: impl Future<Output = Result<Position>>,
    ) -> Result<Position> {
        let _one = self.committing.lock().await;
        // A commit whose sender went away is made all the same: this one is checked against what it left.
        if !self.holds(present.revision).await {
            return Err(StorageError::Internal {
                message: "the access rules are not followed, so what this commit would leave cannot be checked; see the \
                          server's log"
                    .to_owned(),
                outcome: Outcome::NotExecuted,
            });
        }
        self.check(batch, lockout)?;
        if changes_users(batch) {
            self.tokens_are_removed().await?;
        }
        let position = commit.await?;
        self.wait_for(position.revision).await?;
        Ok(position)
    }

    pub(super) fn user(&self, name: &str) -> Option<User> {
        self.applied.borrow().records.user(name).cloned()
    }

    /// All roles with where they are from, those of the configuration first. Where both have one of a name its members are
    /// those of both.
    pub(super) fn roles(&self) -> Vec<(Origin, RoleName, Role)> {
        let configured = self.configured();
        let configured = configured.roles.iter().enumerate();
        let configured = configured.map(|(place, NamedRole { name, role })| {
            (Origin::Config(place), name.clone(), role.clone())
        });
        let applied = self.applied.borrow();
        let stored = applied.records.roles().map(|(name, role)| {
            let origin = Origin::Stored(name.to_string());
            (origin, name.clone(), role.clone())
        });
        configured.chain(stored).collect()
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
    ///
    /// # Errors
    /// `Internal` with outcome *unknown*: it was committed, but after [`PATIENCE`] it does not hold on this server yet. It
    /// must not be taken for done: who was revoked by it may still be in.
    pub(super) async fn wait_for(&self, revision: Revision) -> Result<()> {
        match self.holds(revision).await {
            true => Ok(()),
            false => Err(StorageError::Internal {
                message: format!(
                    "committed at revision {revision}, but not in force on this server after {} s: it still goes by the \
                     access rules, users and tokens of before; see its log",
                    self.patience.as_secs()
                ),
                outcome: Outcome::Unknown,
            }),
        }
    }

    /// Whether what was committed up to there holds, now or soon.
    async fn holds(&self, revision: Revision) -> bool {
        let mut applied = self.applied.subscribe();
        self.asked.notify_one();
        let holds = applied.wait_for(|applied| applied.upto >= revision);
        let in_time = tokio::time::timeout(self.patience, holds).await.is_ok();
        if !in_time {
            tracing::error!(revision = revision.0, "the access rules are not followed");
        }
        in_time
    }
}

/// Says that the keyspace is followed, until it is dropped.
struct Followed<'a>(&'a AtomicBool);

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Runs a task until `stop`. One that ends before, be it by a panic, is started again.
async fn supervise<F>(what: &'static str, stop: CancellationToken, mut task: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    while !stop.is_cancelled() {
        let running = tokio::spawn(stop.clone().run_until_cancelled_owned(task()));
        // A panic was logged with its place already, but not what it means.
        if let Err(error) = running.await {
            tracing::error!(%error, "the task that is to {what} failed, and is started again");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

impl AccessControl {
    /// Follows the keyspace and puts those out whose time is over, until `stop`. `storage` is the server's own.
    pub(crate) fn start(
        self: &Arc<Self>,
        storage: &Arc<dyn SessionStorage>,
        engine: &Arc<dyn Engine>,
        stop: &CancellationToken,
    ) {
        let (access, own, engine) = (self.clone(), storage.clone(), engine.clone());
        let follow = move || {
            let (access, storage, engine) = (access.clone(), own.clone(), engine.clone());
            async move { access.follow(&*storage, &*engine).await }
        };
        let (access, own) = (self.clone(), storage.clone());
        let tidy = move || {
            let (access, storage) = (access.clone(), own.clone());
            async move { access.tidy(&*storage).await }
        };
        let access = self.clone();
        let look = move || {
            let access = access.clone();
            async move { access.look().await }
        };
        // Not among those that a shutdown waits for: rules hold as long as anybody is there.
        tokio::spawn(supervise("follow the access rules", stop.clone(), follow));
        tokio::spawn(supervise("remove dead tokens", stop.clone(), tidy));
        tokio::spawn(supervise("put out whose time is over", stop.clone(), look));
    }

    /// A commit to `system` although nobody could change the rules afterwards, or everybody could; all else is checked as of any commit.
    /// `storage` is the server's own.
    ///
    /// # Errors
    /// As of [`SystemRecords::checked`].
    pub(crate) async fn commit_by_force(
        &self,
        storage: &dyn SessionStorage,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        let commit = storage.commit(batch.clone(), options);
        let (forced, present) = (Lockout::Forced, storage.position());
        let committed = self.system().checked(&batch, forced, present, commit).await;
        if committed.is_ok() {
            self.tell_who_administers();
        }
        committed
    }

    /// Whether changes of the stored rules come to hold here.
    ///
    /// # Errors
    /// What to tell an operator.
    pub(crate) fn check_followed(&self) -> std::result::Result<(), String> {
        match self.system().followed.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("changes of access rules, users and tokens are not followed".to_owned()),
        }
    }

    /// Puts those out whose time is over, for as long as it is polled.
    async fn look(&self) {
        let mut tick = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.sweep();
        }
    }

    /// Waits until the stored rules are known. Before that nobody must be let in.
    pub(crate) async fn loaded(&self) {
        let mut applied = self.system().applied.subscribe();
        // The sender lives as long as self.
        let _ = applied.wait_for(|applied| applied.loaded).await;
    }

    /// Follows the keyspace for as long as it is polled; `storage` is the server's own. The engine is told what keyspaces may
    /// hold.
    async fn follow(&self, storage: &dyn Storage, engine: &dyn Engine) {
        loop {
            if let Err(error) = self.follow_one_watch(storage, engine).await {
                // What was known holds on: to forget rules would let everybody in.
                tracing::error!(%error, "cannot follow the access rules; trying again");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow_one_watch(&self, storage: &dyn Storage, engine: &dyn Engine) -> Result<()> {
        let options = WatchOptions::latest(WatchStart::Beginning);
        let mut watch = storage.watch(KeyRange::all(), options).await?;
        // From the beginning, everything comes before the first mark.
        let mut records = Records::default();
        // The tokens likewise; until then those that were known hold on.
        let mut tokens = Some(TokenRecords::default());
        let (mut changed, mut ended, mut users) = (true, true, true);
        let followed = Followed(&self.system().followed);
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                () = self.system().asked.notified() => {
                    watch.request_progress(0);
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
                            users |= what == Applies::Users;
                        }
                    }
                    ended |= value.is_none();
                }
                Some(WatchEvent::Reset) => {
                    records = Records::default();
                    tokens = Some(TokenRecords::default());
                    (changed, ended, users) = (true, true, true);
                }
                Some(WatchEvent::Progress { position, .. }) => {
                    if let Some(tokens) = tokens.take() {
                        self.swap_tokens(tokens);
                    }
                    let rules_changed = std::mem::take(&mut changed);
                    let users_changed = std::mem::take(&mut users);
                    if users_changed {
                        // Here, where users and tokens are those of one revision; and before anybody learns that they
                        // are known, who could then let a user in again.
                        self.find_dead_tokens(&records);
                    }
                    // Before anybody learns that they are known.
                    followed.0.store(true, Ordering::Relaxed);
                    self.apply(&records, position.revision, rules_changed, engine);
                    if std::mem::take(&mut ended) || users_changed {
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
    fn apply(&self, records: &Records, upto: Revision, rules_changed: bool, engine: &dyn Engine) {
        let system = self.system();
        let _one = system
            .joining
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if rules_changed {
            let configured = system.configured();
            let rules = records.rule_set(&configured);
            let quotas = records.quota_set(&configured, &rules);
            self.swap(rules, quotas, engine);
        }
        system.applied.send_replace(Applied {
            records: records.clone(),
            upto,
            loaded: true,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use storage_protocol::Epoch;

    use super::*;

    #[tokio::test]
    async fn a_server_that_does_not_follow_the_rules_any_more_is_not_ready() {
        let shared = crate::testing::server(&crate::testing::MemoryEngine::new(), |_| {});
        let (access, stop) = (&shared.access, CancellationToken::new());
        let system = storage_protocol::Keyspace::new(crate::auth::rules::SYSTEM).unwrap();
        assert!(access.check_followed().is_err());
        let engine: Arc<dyn Engine> = crate::testing::MemoryEngine::new();
        access.start(&shared.own_session(&system).storage(), &engine, &stop);
        access.loaded().await;
        access.check_followed().unwrap();
        stop.cancel();
        let ended = async {
            while access.check_followed().is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let patience = Duration::from_secs(30);
        tokio::time::timeout(patience, ended).await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_panics_is_started_again_until_the_end() {
        let (stop, runs) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let (task_stop, task_runs) = (stop.clone(), runs.clone());
        let task = move || {
            let run = task_runs.fetch_add(1, Ordering::Relaxed);
            let stop = task_stop.clone();
            async move {
                assert!(run > 0, "the first one panics");
                stop.cancel();
                std::future::pending::<()>().await;
            }
        };
        let supervised = supervise("be started twice", stop, task);
        let patience = Duration::from_secs(30);
        tokio::time::timeout(patience, supervised).await.unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }

    fn at(revision: u64) -> Position {
        Position {
            epoch: Epoch(1),
            revision: Revision(revision),
        }
    }

    fn not_followed() -> SystemRecords {
        SystemRecords {
            patience: Duration::from_millis(20),
            ..SystemRecords::new(Configured::default())
        }
    }

    #[tokio::test]
    async fn a_commit_whose_rules_do_not_hold_in_time_is_not_answered_with_success() {
        let records = not_followed();
        let batch = Batch::new().remove("users/eve");
        let made = records
            .checked(&batch, Lockout::Refused, at(0), async { Ok(at(5)) })
            .await;
        let error = made.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown);
        let text = error.to_string();
        assert!(text.contains("committed at revision 5"), "{text}");
        assert!(text.contains("not in force"), "{text}");
    }

    #[tokio::test]
    async fn a_commit_that_cannot_be_checked_is_not_made() {
        let records = not_followed();
        let batch = Batch::new().remove("users/eve");
        let commit = async { panic!("it is made") };
        let error = records
            .checked(&batch, Lockout::Refused, at(5), commit)
            .await
            .unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotExecuted);
    }
}

//! The rules and quotas that hold now, who goes by them, and who is let in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use rustls::server::danger::ClientCertVerifier;
use storage_protocol::{Batch, Keyspace, Revision};
use tokio_util::sync::CancellationToken;

use super::credentials::chain_of;
use super::follow::SystemRecords;
use super::guard::Guard;
use super::live::LivePeer;
use super::lockout::{Lockout, RulesRefused};
use super::passwords::{LoginLimits, Logins, PasswordError};
use super::quotas::{Meters, QuotaSet, SessionLimits};
use super::rules::{Grants, Origin, Role, RoleName, RuleSet};
use super::secrets::Secrets;
use super::system::{Configured, Records, TokenRecord, User};
use super::token_records::{TokenRecords, TokenUsage};
use super::tokens::{Claims, TokenError, UnixSeconds};
use super::{Identity, Proof};
use crate::audit::Audit;
use crate::engine::Engine;
use crate::ws::Close;

/// The rules and quotas that hold now. They are swapped as a whole, never changed: who asks sees those before or those
/// after.
///
/// Sessions keep what they were granted and what it is limited to, with the version that it is of, and ask again when the version has risen; those
/// that have watches are woken for that. Invariant: the version rises behind the swap, so grants of a version are never
/// older than it.
#[derive(Debug)]
pub(crate) struct AccessControl {
    rules: RwLock<Arc<RuleSet>>,
    /// Swapped with the rules.
    quotas: RwLock<Arc<QuotaSet>>,
    version: AtomicU64,
    /// What is used of what has quotas.
    meters: Meters,
    /// Where the stored rules and the users come from.
    system: SystemRecords,
    /// The tokens that were minted and are good, by their ids.
    tokens: RwLock<TokenRecords>,
    /// Signing keys and passwords; not before the store was read.
    secrets: OnceLock<Secrets>,
    logins: Logins,
    /// What client certificates are verified with; `None`: none is taken.
    verifier: RwLock<Option<Verifier>>,
    /// Rises behind each change of it, before those who are connected are looked at.
    verifier_version: AtomicU64,
    /// Sessions, for their watches.
    guards: Mutex<Alive<Guard>>,
    peers: Mutex<Alive<LivePeer>>,
    audit: Arc<Audit>,
}

/// What client certificates are verified with.
#[derive(Clone, Debug)]
pub(crate) struct Verifier(pub(crate) Arc<dyn ClientCertVerifier>);

impl std::ops::Deref for Verifier {
    type Target = dyn ClientCertVerifier;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// Those of many that are still there. The others are swept out when there are twice as many as at the last sweep.
#[derive(Debug)]
struct Alive<T> {
    all: Vec<Weak<T>>,
    sweep_at: usize,
}

/// So many are kept before the first sweep.
const SWEEP_MIN: usize = 64;

impl<T> Default for Alive<T> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            sweep_at: SWEEP_MIN,
        }
    }
}

impl<T> Alive<T> {
    fn add(&mut self, one: &Arc<T>) {
        if self.all.len() >= self.sweep_at {
            self.all.retain(|one| one.strong_count() > 0);
            self.sweep_at = (2 * self.all.len()).max(SWEEP_MIN);
        }
        self.all.push(Arc::downgrade(one));
    }

    fn present(&self) -> Vec<Arc<T>> {
        self.all.iter().filter_map(Weak::upgrade).collect()
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl AccessControl {
    /// Until the stored rules are [loaded](AccessControl::loaded), those of the configuration hold alone.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(crate) fn new(
        configured: Configured,
        audit: Arc<Audit>,
    ) -> Result<Arc<Self>, PasswordError> {
        let records = Records::default();
        let rules = records.rule_set(&configured);
        let quotas = records.quota_set(&configured, &rules);
        Ok(Arc::new(Self {
            rules: RwLock::new(Arc::new(rules)),
            quotas: RwLock::new(Arc::new(quotas)),
            meters: Meters::default(),
            version: AtomicU64::new(0),
            system: SystemRecords::new(configured),
            tokens: RwLock::default(),
            secrets: OnceLock::new(),
            logins: Logins::new(&LoginLimits::default())?,
            verifier: RwLock::default(),
            verifier_version: AtomicU64::new(0),
            guards: Mutex::default(),
            peers: Mutex::default(),
            audit,
        }))
    }

    pub(crate) fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    pub(super) fn system(&self) -> &SystemRecords {
        &self.system
    }

    pub(crate) fn logins(&self) -> &Logins {
        &self.logins
    }

    pub(crate) fn rules(&self) -> Arc<RuleSet> {
        read(&self.rules).clone()
    }

    /// Rises with each change.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn quotas(&self) -> Arc<QuotaSet> {
        read(&self.quotas).clone()
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.meters
    }

    /// What a session of this peer in this keyspace may have, by the present quotas.
    pub(crate) fn limits(&self, identity: &Identity, keyspace: &Keyspace) -> SessionLimits {
        let quotas = self.quotas();
        SessionLimits {
            principal: quotas.of_principal(identity.principal().as_str()),
            keyspace: quotas.of_keyspace(keyspace),
        }
    }

    /// From the return on every call goes by these rules and quotas.
    pub(super) fn swap(&self, rules: RuleSet, quotas: QuotaSet, engine: &dyn Engine) {
        let quotas = Arc::new(quotas);
        *write(&self.rules) = Arc::new(rules);
        *write(&self.quotas) = quotas.clone();
        engine.set_stored_limits(quotas);
        self.version.fetch_add(1, Ordering::AcqRel);
        for guard in self.guards() {
            guard.wake_watches();
        }
    }

    /// What a peer may do in a keyspace, by the present rules.
    pub(crate) fn grants(&self, identity: &Identity, keyspace: &Keyspace) -> Grants {
        let all = self.rules().grants(identity.principal().as_str(), keyspace);
        Self::within_token(identity, keyspace, all)
    }

    /// What is left of some grants by the tokens that a peer has shown.
    pub(super) fn within_token(identity: &Identity, keyspace: &Keyspace, all: Grants) -> Grants {
        let principal = identity.principal().as_str();
        match identity.proof() {
            Proof::Pending => Grants::none(),
            Proof::Token(bearer) => bearer.rules.iter().fold(all, |all, rules| {
                all.intersect(&rules.grants(principal, keyspace))
            }),
            _ => all,
        }
    }

    /// Whether it is the grants of a token, or of one before it, that do not allow what its principal may do or not.
    pub(crate) fn token_denies(
        &self,
        identity: &Identity,
        keyspace: &Keyspace,
        is_allowed: impl Fn(&Grants) -> bool,
    ) -> bool {
        let principal = identity.principal().as_str();
        let denies = |rules: &RuleSet| !is_allowed(&rules.grants(principal, keyspace));
        matches!(identity.proof(), Proof::Token(bearer) if bearer.rules.iter().any(denies))
    }

    pub(super) fn add(&self, guard: &Arc<Guard>) {
        let mut guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        guards.add(guard);
    }

    fn guards(&self) -> Vec<Arc<Guard>> {
        let guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        guards.present()
    }

    /// A connection of this peer, which is closed when it is not let in any more: by a change from here on, or at the next
    /// look if that was a moment before. `cut`: closes it at once.
    pub(crate) fn connected(&self, identity: Identity, cut: CancellationToken) -> Arc<LivePeer> {
        let peer = LivePeer::new(identity, cut, &self.audit);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.add(&peer);
        drop(peers);
        peer
    }

    /// Rises when certificates are verified with something else.
    pub(crate) fn verifier_version(&self) -> u64 {
        self.verifier_version.load(Ordering::Acquire)
    }

    /// Closes those who would not be let in any more, and refuses what they have queued.
    pub(super) fn sweep(&self) {
        let peers = {
            let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.present()
        };
        // Ordering: who is to be fenced is found first, then connections are told why, then sessions are fenced. So a
        // fence is never seen before the reason, also if a time is over between the looks.
        let guards = self.guards().into_iter();
        let fenced = guards.filter(|guard| self.check(guard.identity()).is_err());
        let fenced: Vec<_> = fenced.collect();
        for peer in peers {
            if let Err(why) = self.check(&peer.identity()) {
                peer.end(why);
            }
        }
        for guard in fenced {
            guard.revoke();
        }
    }

    /// How the connection of a peer that is not let in any more is closed, whoever saw that first; `None`: it still is.
    pub(crate) fn why_ended(&self, peer: &LivePeer) -> Option<Close> {
        if let Err(why) = self.check(&peer.identity()) {
            peer.end(why);
        }
        peer.ended()
    }

    pub(super) fn verifier(&self) -> Option<Verifier> {
        read(&self.verifier).clone()
    }

    /// From now on client certificates are verified so. Those who came with one that is not good any more are closed, and no
    /// call of theirs is carried out from the return on. Takes as long as it takes to verify each that is connected: 0.1 ms
    /// or so.
    pub(crate) fn set_verifier(&self, verifier: Option<Verifier>) {
        *write(&self.verifier) = verifier;
        self.verifier_version.fetch_add(1, Ordering::AcqRel);
        self.sweep();
    }

    /// When the first certificate of those who are connected ends, in seconds since 1970.
    pub(crate) fn first_certificate_ends(&self) -> Option<u64> {
        let peers = {
            let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.present()
        };
        let ends = peers
            .iter()
            .filter_map(|peer| match peer.identity().proof() {
                Proof::Certificate { until, .. } => Some(*until),
                _ => None,
            });
        ends.min()
    }

    /// Rules, roles and quotas of the configuration are these from the return on; the engine is told what keyspaces may hold.
    ///
    /// # Errors
    /// With them nobody could change the access rules any more, or everybody; those before hold on.
    pub(crate) fn set_configured(
        &self,
        configured: Configured,
        engine: &dyn Engine,
    ) -> Result<(), RulesRefused> {
        self.system.reconfigure(configured, |rules, quotas| {
            self.swap(rules, quotas, engine);
        })?;
        self.warn();
        Ok(())
    }

    /// Says it where nobody can change the rules, or everybody may do everything: at a start, which takes what is there, and
    /// behind a change that was forced.
    pub(crate) fn tell_who_administers(&self) {
        let rules = self.rules();
        if !rules.has_rules() {
            tracing::warn!(
                "there are no access rules: every peer that is let in may do everything"
            );
        } else if !self.system.has_administrator(&rules) {
            tracing::warn!(
                "no access rule gives \"admin\" of the keyspace \"system\" to anybody (users that there are not, or that are \
                 disabled, do not count): nobody can change rules, roles, users and quotas. Start the server with \
                 --grant-admin PRINCIPAL to make an administrator"
            );
        }
    }

    /// Whether a peer's commit to `system` would be refused for what it leaves.
    ///
    /// # Errors
    /// As of [`Records::check`].
    pub(crate) fn check_records(
        &self,
        batch: &Batch,
        lockout: Lockout,
    ) -> storage_protocol::Result<()> {
        self.system.check(batch, lockout)
    }

    pub(super) fn warn(&self) {
        for warning in self.rules().warnings() {
            tracing::warn!("access rules: {warning}");
        }
        for warning in self.quotas().warnings() {
            tracing::warn!("quotas: {warning}");
        }
    }

    /// The tokens that were minted with a certificate which is not good any more. None where certificates are not asked
    /// for: then nobody can say.
    pub(crate) fn tokens_of_ended_certificates(&self) -> Vec<String> {
        if self.verifier().is_none() {
            return Vec::new();
        }
        let tokens = read(&self.tokens);
        let of_certificates = tokens.iter().filter(|(_, record)| {
            let chain = chain_of(record);
            !chain.is_empty() && self.check_chain(&chain).is_err()
        });
        of_certificates.map(|(id, _)| id.clone()).collect()
    }

    pub(crate) fn token(&self, id: &str) -> Option<Arc<TokenRecord>> {
        read(&self.tokens).get(id).cloned()
    }

    pub(crate) fn tokens_len(&self) -> usize {
        read(&self.tokens).all().tokens
    }

    /// How many tokens there are: of this principal, and in all.
    pub(crate) fn token_usage(&self, principal: &str) -> (TokenUsage, TokenUsage) {
        let tokens = read(&self.tokens);
        (tokens.of(principal), tokens.all())
    }

    /// The tokens of a principal, or all, by their ids.
    pub(crate) fn tokens(&self, principal: Option<&str>) -> Vec<(String, Arc<TokenRecord>)> {
        let tokens = read(&self.tokens);
        let is_of = |record: &TokenRecord| principal.is_none_or(|name| record.principal == name);
        let found = tokens.iter().filter(|(_, record)| is_of(record));
        found
            .map(|(id, record)| (id.clone(), record.clone()))
            .collect()
    }

    /// Takes the record of a token; `None`: it is gone. Into those that are collected, if any are.
    pub(super) fn set_token(
        &self,
        id: &str,
        json: Option<&[u8]>,
        collected: Option<&mut TokenRecords>,
    ) {
        match collected {
            Some(tokens) => tokens.set(id, json),
            None => write(&self.tokens).set(id, json),
        }
    }

    /// [`AccessControl::set_token`], for tests of others.
    #[cfg(test)]
    pub(crate) fn keep_token(&self, id: &str, json: &[u8]) {
        self.set_token(id, Some(json), None);
    }

    pub(super) fn swap_tokens(&self, tokens: TokenRecords) {
        *write(&self.tokens) = tokens;
    }

    /// All roles with where they are from, each entry by itself.
    pub(crate) fn roles(&self) -> Vec<(Origin, RoleName, Role)> {
        self.system.roles()
    }

    /// All users, by name.
    pub(crate) fn users(&self) -> Vec<(String, User)> {
        self.system.users()
    }

    /// Waits until what was committed to `system` up to there holds.
    ///
    /// # Errors
    /// `Internal` with outcome *unknown*: it was committed, and does not hold yet.
    pub(crate) async fn wait_for(&self, revision: Revision) -> storage_protocol::Result<()> {
        self.system.wait_for(revision).await
    }

    /// The user of this name, whether it may log in or not.
    pub(crate) fn user(&self, name: &str) -> Option<User> {
        self.system.user(name)
    }

    pub(crate) fn secrets(&self) -> Option<&Secrets> {
        self.secrets.get()
    }

    pub(crate) fn set_secrets(&self, secrets: Secrets) {
        // Once, at the start.
        let _ = self.secrets.set(secrets);
    }

    /// What a token says, if it is one of ours and its time is not over.
    pub(super) fn verify_token(&self, token: &str) -> Result<Claims, TokenError> {
        let secrets = self.secrets.get().ok_or(TokenError::UnknownKey)?;
        secrets.verify(token, UnixSeconds(super::credentials::now()))
    }

    /// The stored hash of a user's password.
    pub(super) async fn password_of(&self, user: &str) -> Result<Option<(u64, String)>, String> {
        match self.secrets.get() {
            Some(secrets) => secrets.password_of(user).await,
            None => Ok(None),
        }
    }
}

//! What stands between every gateway and the engine: a session's storage, cut to what its peer may do.
//!
//! Nobody comes to the engine past it: [`Shared`](crate::shared::Shared) opens sessions behind a [`Guard`] and gives no
//! other ones away, and the compiler sees to it that no method of [`Storage`] is forgotten.
//!
//! | call | needs |
//! | --- | --- |
//! | get | `read` of every key; else the call is refused, whether the keys are there or not |
//! | scan | `read`: cut to the keys that may be read; refused if that is none of the range |
//! | commit | `write` of every key that is put, removed or signalled, of the prefix of a stamped one; `read` of checked keys, and of all if it asks for previous values; the commit that makes a keyspace, where there are rules, `admin` of it |
//! | watch | `watch`: cut to the keys that may be watched; refused if that is none of the range |
//!
//! What is allowed is then counted against the quotas, where there are any: commits by their number and bytes, watches while
//! they are open. A commit that comes again and was executed is not counted again.
//!
//! Watches and scans go by the grants they began with. When these change for their range they end with
//! [`StorageError::AccessChanged`]: what was told is not to be trusted any more, and their reader begins anew.
//!
//! What is refused, and if it is asked for what is done, is told to the audit log ([`audited`]).

mod audited;
mod streams;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use async_trait::async_trait;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, Keyspace, Limits, Operation, Position, Reading,
    Result, Scan, ScanOptions, SessionId, Storage, StorageError, Watch, WatchOptions, begin_commit,
};
use tokio_util::sync::CancellationToken;

use self::streams::{GuardedScan, GuardedWatch};
use super::Identity;
use super::control::AccessControl;
use super::lockout::Lockout;
use super::quotas::{SessionLimits, SessionMeters};
use super::rules::{Cut, Grants, Permission, SYSTEM};
use super::text::quoted_key;
use crate::audit::{self, Audit, SessionHash};
use crate::engine::{Engine, Room, Session, SessionStorage, Unbounded};

/// A session of a peer, whose storage is guarded.
#[derive(Debug)]
pub(crate) struct GuardedSession {
    session: Arc<dyn Session>,
    guard: Arc<Guard>,
}

/// See the module. One for each session, shared by its watches.
#[derive(Debug)]
pub(crate) struct Guard {
    control: Arc<AccessControl>,
    engine: Arc<dyn Engine>,
    session: Arc<dyn Session>,
    storage: Arc<dyn SessionStorage>,
    identity: Identity,
    keyspace: Keyspace,
    audit: Arc<Audit>,
    /// The session, as the audit log has it.
    session_hash: SessionHash,
    /// Its peer is not let in any more.
    revoked: AtomicBool,
    judged: Judged,
    /// Whether it is the keyspace of the rules themselves.
    is_system: bool,
    /// Whether the keyspace was seen to be there: it stays.
    exists: AtomicBool,
    known: Mutex<Known>,
    /// Where its commits and watches count.
    meters: SessionMeters,
    watches: Mutex<Watches>,
}

/// By whom it is judged what a peer may do. Whether it is let in, its token and its quotas count in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// By the access rules.
    ByRules,
    /// By a gateway, before it asks: for what only its own protocol can tell apart.
    ByGateway,
}

/// What the peer may do, and how much of it, by the rules and quotas of one version.
#[derive(Clone, Debug)]
struct Known {
    version: u64,
    grants: Arc<Grants>,
    /// `None`: nothing of it is limited.
    limits: Option<Arc<SessionLimits>>,
}

/// Who is to look again when the rules change.
#[derive(Debug, Default)]
struct Watches {
    next_id: u64,
    wakers: HashMap<u64, Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GuardedSession {
    pub(crate) fn new(
        control: &Arc<AccessControl>,
        engine: &Arc<dyn Engine>,
        session: Arc<dyn Session>,
        identity: &Identity,
        keyspace: &Keyspace,
        judged: Judged,
    ) -> Arc<Self> {
        let known = Known::now(control, identity, keyspace, judged);
        let meters = SessionMeters {
            principal: control.meters().of_principal(identity.principal().as_str()),
            keyspace: control.meters().of_keyspace(keyspace),
        };
        let guard = Arc::new(Guard {
            control: control.clone(),
            engine: engine.clone(),
            storage: session.clone().storage(),
            session: session.clone(),
            identity: identity.clone(),
            keyspace: keyspace.clone(),
            audit: control.audit().clone(),
            session_hash: SessionHash::of(session.id()),
            revoked: AtomicBool::new(false),
            judged,
            is_system: keyspace.as_str() == SYSTEM,
            exists: AtomicBool::new(false),
            known: Mutex::new(known),
            meters,
            watches: Mutex::default(),
        });
        control.add(&guard);
        Arc::new(Self { session, guard })
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Session for GuardedSession {
    fn id(&self) -> SessionId {
        self.session.id()
    }

    fn storage(self: Arc<Self>) -> Arc<dyn SessionStorage> {
        Arc::new(Guarded(self.guard.clone()))
    }

    fn executed(&self) -> u64 {
        self.session.executed()
    }

    fn keys_expired(&self) -> bool {
        self.session.keys_expired()
    }

    fn acknowledge_expiry(&self) {
        self.session.acknowledge_expiry();
    }

    fn fenced(&self) -> CancellationToken {
        self.session.fenced()
    }

    fn lose(&self) {
        self.guard.tell_session("lose", &Ok(()));
        self.session.lose();
    }

    fn revoke(&self) {
        self.session.revoke();
    }

    async fn end(&self) -> Result<()> {
        let ended = self.session.end().await;
        self.guard.tell_session("end", &ended);
        ended
    }
}

impl Known {
    fn now(
        control: &AccessControl,
        identity: &Identity,
        keyspace: &Keyspace,
        judged: Judged,
    ) -> Self {
        // Ordering: the version first, see `AccessControl`.
        let version = control.version();
        let limits = control.limits(identity, keyspace);
        let grants = match judged {
            Judged::ByRules => control.grants(identity, keyspace),
            Judged::ByGateway => AccessControl::within_token(identity, keyspace, Grants::all()),
        };
        Self {
            version,
            grants: Arc::new(grants),
            limits: (!limits.is_empty()).then(|| Arc::new(limits)),
        }
    }
}

impl Guard {
    /// What the peer may do now.
    ///
    /// # Errors
    /// Nothing: it is not let in any more.
    fn grants(&self) -> Result<Arc<Grants>> {
        Ok(self.known()?.grants)
    }

    fn known(&self) -> Result<Known> {
        self.control.check(&self.identity).map_err(|why| {
            let message = format!("{} is not let in any more: {why}", self.identity);
            StorageError::AccessDenied { message }
        })?;
        let mut known = lock(&self.known);
        if known.version != self.control.version() {
            let (control, identity) = (&self.control, &self.identity);
            let mut now = Known::now(control, identity, &self.keyspace, self.judged);
            // Those who keep them compare by address first.
            if now.grants == known.grants {
                now.grants = known.grants.clone();
            }
            *known = now;
        }
        Ok(known.clone())
    }

    /// `is_allowed` tells whether grants allow it: those of a token may not where its principal's do.
    fn denied(
        &self,
        permission: Permission,
        what: &str,
        is_allowed: impl Fn(&Grants) -> bool,
    ) -> StorageError {
        let message = format!(
            "{} may not {permission} {what} of the keyspace {}{}",
            self.identity,
            self.keyspace,
            self.by_its_token(is_allowed)
        );
        tracing::debug!(%message, "access denied");
        StorageError::AccessDenied { message }
    }

    /// The end of a denial that comes of a token's grants, so that nobody looks for it among the rules.
    fn by_its_token(&self, is_allowed: impl Fn(&Grants) -> bool) -> &'static str {
        let control = &self.control;
        match control.token_denies(&self.identity, &self.keyspace, is_allowed) {
            true => " with this token, whose grants do not allow it",
            false => "",
        }
    }

    fn check(&self, grants: &Grants, permission: Permission, key: &[u8]) -> Result<()> {
        let is_allowed = |grants: &Grants| grants.allows(permission, key);
        match is_allowed(grants) {
            true => Ok(()),
            false => {
                let key = format!("the key {}", quoted_key(key));
                Err(self.denied(permission, &key, is_allowed))
            }
        }
    }

    fn check_reads(&self, keys: &[Key]) -> Result<()> {
        let grants = self.grants()?;
        let mut keys = keys.iter();
        match grants.read.is_all() {
            true => Ok(()),
            false => keys.try_for_each(|key| self.check(&grants, Permission::Read, key)),
        }
    }

    fn check_get(&self, keys: &[Key]) -> Result<()> {
        let checked = self.check_reads(keys);
        checked.inspect_err(|error| self.tell_denied_get(keys, error))
    }

    /// What may be read of ranges. One without keys stays as it is, whatever may be read.
    fn cut_reads(&self, ranges: &[KeyRange]) -> Result<Vec<KeyRange>> {
        let read = &self.grants()?.read;
        let parts = |range: &KeyRange| match range.is_empty() || read.is_all() {
            true => vec![range.clone()],
            false => read.cut(range).parts().to_vec(),
        };
        Ok(ranges.iter().flat_map(parts).collect())
    }

    async fn scan(
        self: &Arc<Self>,
        ranges: Vec<KeyRange>,
        options: ScanOptions,
        room: Arc<dyn Room>,
    ) -> Result<Scan> {
        // Ordering: the version first. A change from here on is seen by the scan.
        let version = self.control.version();
        let parts = self.cut_reads(&ranges);
        let parts = parts.inspect_err(|error| self.tell_denied_scan(&ranges, error))?;
        // A range without keys is refused to nobody.
        let is_nothing = |ranges: &[KeyRange]| ranges.iter().all(KeyRange::is_empty);
        if is_nothing(&parts) && !is_nothing(&ranges) {
            let may =
                |range: &KeyRange, grants: &Grants| !grants.read.cut(range).parts().is_empty();
            let is_allowed = |grants: &Grants| ranges.iter().any(|range| may(range, grants));
            let error = self.denied(Permission::Read, "any key of this range", is_allowed);
            self.tell_denied_scan(&ranges, &error);
            return Err(error);
        }
        let inner = self.storage.scan_into(parts.clone(), options, room).await;
        self.tell_scan(&ranges, &inner);
        let inner = inner?;
        let guarded = GuardedScan {
            guard: self.clone(),
            ranges,
            parts,
            version,
            position: inner.position(),
            inner,
        };
        Ok(Scan::new(guarded.position, Box::new(guarded)))
    }

    /// Whether the commit is allowed, and within the quotas of rates, from which it is taken then.
    fn check_commit(&self, batch: &Batch, options: &CommitOptions) -> Result<()> {
        let checked = self.check_commit_untold(batch, options);
        checked.inspect_err(|error| self.tell_denied_commit(batch, error))
    }

    fn check_commit_untold(&self, batch: &Batch, options: &CommitOptions) -> Result<()> {
        let Known { grants, limits, .. } = self.known()?;
        if !grants.write.is_all() {
            for operation in &batch.operations {
                self.check(&grants, Permission::Write, written(operation))?;
            }
        }
        // Behind the rights to its keys: who has none does not learn whether the keyspace is there.
        if !grants.admin && self.creates_keyspace() && self.control.rules().has_rules() {
            let message = format!(
                "the keyspace {} is not there, and {} may not create it{}: that needs \"admin\" of it",
                self.keyspace,
                self.identity,
                self.by_its_token(|grants| grants.admin)
            );
            return Err(StorageError::AccessDenied { message });
        }
        if !grants.read.is_all() {
            for check in &batch.checks {
                self.check(&grants, Permission::Read, &check.key)?;
            }
            if options.with_previous {
                for operation in &batch.operations {
                    self.check(&grants, Permission::Read, written(operation))?;
                }
            }
        }
        match limits {
            None => Ok(()),
            Some(limits) => self.meters.take_commit(&limits, content_bytes(batch)),
        }
    }

    fn creates_keyspace(&self) -> bool {
        if self.exists.load(Ordering::Relaxed) {
            return false;
        }
        let exists = self.engine.has_keyspace(&self.keyspace);
        self.exists.store(exists, Ordering::Relaxed);
        !exists
    }

    /// The answer to a commit that was made before: of one to `system`, when its rules hold, as at the first time.
    async fn in_force(&self, position: Position) -> Result<Position> {
        if self.is_system {
            self.control.wait_for(position.revision).await?;
        }
        Ok(position)
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The peer is not let in any more: what it has queued is not executed.
    pub(super) fn revoke(&self) {
        if !self.revoked.swap(true, Ordering::AcqRel) {
            self.session.revoke();
            self.wake_watches();
        }
    }

    fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// The rules have changed.
    pub(super) fn wake_watches(&self) {
        let wakers = std::mem::take(&mut lock(&self.watches).wakers);
        for (_, waker) in wakers {
            waker.wake();
        }
    }

    async fn watch(self: &Arc<Self>, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        // Ordering: the version first. A change from here on is seen by the watch.
        let version = self.control.version();
        let known = self.known();
        let Known { grants, limits, .. } =
            known.inspect_err(|error| self.tell_denied_watch(&range, error))?;
        let cut = match range.is_empty() {
            true => Cut::One(range.clone()),
            false => grants.watch.cut(&range),
        };
        let Some(hull) = cut.hull().cloned() else {
            let is_allowed = |grants: &Grants| grants.watch.cut(&range).hull().is_some();
            let error = self.denied(Permission::Watch, "any key of this range", is_allowed);
            self.tell_denied_watch(&range, &error);
            return Err(error);
        };
        let places = self
            .meters
            .take_watch(&limits.as_deref().copied().unwrap_or_default())?;
        let inner = self.storage.watch(hull, options).await;
        self.tell_watch(&range, &inner);
        let inner = inner?;
        let start = inner.start();
        let id = {
            let mut watches = lock(&self.watches);
            watches.next_id += 1;
            watches.next_id
        };
        let guarded = GuardedWatch {
            inner,
            guard: self.clone(),
            id,
            range,
            cut,
            version,
            changed: false,
            _places: places,
        };
        Ok(Watch::new(start, Box::new(guarded)))
    }
}

/// What has to be writable: of a stamped key, all keys that it can become.
fn written(operation: &Operation) -> &[u8] {
    // For a stamped key this is its prefix. A grant's prefix that begins it begins all of them.
    operation.key()
}

/// What counts for a quota on bytes: what the peer sends to be read or kept, without what a message adds.
fn content_bytes(batch: &Batch) -> usize {
    let checks = batch.checks.iter().map(|check| check.key.len());
    let operations = batch.operations.iter();
    let operations = operations.map(|operation| operation.key().len() + operation.value().len());
    checks.chain(operations).sum()
}

/// The storage of a session, as its peer may use it.
#[derive(Debug)]
struct Guarded(Arc<Guard>);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Storage for Guarded {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        self.0.check_get(keys)?;
        let read = self.0.storage.get(keys).await;
        self.0.tell_get(keys, &read);
        read
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        self.0.scan(vec![range], options, Arc::new(Unbounded)).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        self.0.check_commit(&batch, &options)?;
        let noted = self.0.begin_commit(&batch);
        let storage = &self.0.storage;
        let committed = match self.0.is_system {
            false => storage.commit(batch, options).await,
            true => {
                let commit = storage.commit(batch.clone(), options);
                let system = self.0.control.system();
                system
                    .checked(&batch, Lockout::Refused, storage.position(), commit)
                    .await
            }
        };
        audit::committed(noted, &committed).await;
        committed
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        begin_commit(self, batch, options);
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        self.0.watch(range, options).await
    }

    async fn limits(&self) -> Result<Limits> {
        self.0.storage.limits().await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SessionStorage for Guarded {
    fn position(&self) -> Position {
        self.0.storage.position()
    }

    async fn get_into(
        &self,
        keys: &[Key],
        room: Arc<dyn Room>,
    ) -> Result<Reading<Vec<Option<Entry>>>> {
        self.0.check_get(keys)?;
        let read = self.0.storage.get_into(keys, room).await;
        self.0.tell_get(keys, &read);
        read
    }

    async fn scan_into(
        &self,
        ranges: Vec<KeyRange>,
        options: ScanOptions,
        room: Arc<dyn Room>,
    ) -> Result<Scan> {
        self.0.scan(ranges, options, room).await
    }

    async fn commit_numbered(
        &self,
        number: u64,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        // What was executed is answered with what it did, whatever is allowed by now; nothing is executed for it.
        let is_repeated = number <= self.0.session.executed();
        let storage = &self.0.storage;
        if is_repeated {
            let position = storage.commit_numbered(number, batch, options).await?;
            return self.0.in_force(position).await;
        }
        self.0.check_commit(&batch, &options)?;
        let noted = self.0.begin_commit(&batch);
        let committed = match self.0.is_system {
            false => storage.commit_numbered(number, batch, options).await,
            true => {
                let commit = storage.commit_numbered(number, batch.clone(), options);
                let system = self.0.control.system();
                system
                    .checked(&batch, Lockout::Refused, storage.position(), commit)
                    .await
            }
        };
        audit::committed(noted, &committed).await;
        committed
    }

    async fn repeat_numbered(&self, number: u64, fingerprint: Option<u64>) -> Result<Position> {
        let position = self.0.storage.repeat_numbered(number, fingerprint).await?;
        self.0.in_force(position).await
    }
}

#[cfg(test)]
mod tests;

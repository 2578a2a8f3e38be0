//! What all connections of a server share: the engine, the bounds, the metrics, the state of the server.

mod outer;
mod storage;

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use prometheus_client::registry::Registry;
use storage_protocol::{Keyspace, Limits, Result, SessionId, Storage};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{self, Audit, Event, Outcome, Record, SessionHash};
use crate::auth::passwords::PasswordError;
use crate::auth::quotas::{self, QuotaKind};
use crate::auth::rules::SYSTEM;
use crate::auth::system::token_key;
use crate::auth::{
    AccessControl, Configured, GuardedSession, Identity, Judged, Principal, RulesRefused,
};
use crate::clock::WallClock;
use crate::config::ServerConfig;
use crate::engine::{Engine, Resumed, Session, SessionStorage, Usage};
use crate::limits::budget::{Budgets, Permit, SessionSlot, SessionSlots};
use crate::metrics::Metrics;
use crate::net::admission::Connections;
use crate::net::certificate::Certificates;

use self::outer::Outer;
use self::storage::{GatewayStorage, Refused};

/// The principal of storage that is used from inside.
const SERVER: &str = "server";

/// A session counts in its keyspace until this is dropped.
pub(crate) type KeyspacePlace = quotas::Permit;

/// How far the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Starting = 0,
    Serving = 1,
    Draining = 2,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: ServerConfig,
    /// What of the limits each session is told.
    pub(crate) announced: Limits,
    /// Reached by the methods below alone, so that nobody comes to it past what they see to.
    engine: Arc<dyn Engine>,
    pub(crate) access: Arc<AccessControl>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) metrics: Arc<Metrics>,
    /// These, and those of the engine and the gateways.
    pub(crate) registry: Registry,
    pub(crate) slots: Arc<SessionSlots>,
    /// Connections of all kinds.
    pub(crate) connections: Arc<Connections>,
    pub(crate) certificates: Arc<Certificates>,
    /// The bounds of all sessions together. The server itself has them by way of `slots`.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) budgets: Arc<Budgets>,
    /// Every task of this server; shutdown waits for them.
    pub(crate) tasks: TaskTracker,
    /// Listeners stop.
    pub(crate) stop: CancellationToken,
    /// Sessions take no more requests.
    pub(crate) drain: CancellationToken,
    /// Sessions are closed.
    pub(crate) cut: CancellationToken,
    phase: AtomicU8,
    /// Set before anybody asks for it, if it is not this machine's.
    clock: OnceLock<WallClock>,
}

impl Shared {
    /// `register`: the metrics of the gateways.
    pub(crate) fn new(
        config: ServerConfig,
        register: impl FnOnce(&mut Registry),
        configured: Configured,
        engine: Arc<dyn Engine>,
        audit: Arc<Audit>,
    ) -> std::result::Result<Arc<Self>, PasswordError> {
        let limits = &config.limits;
        let budgets = Budgets::new(limits);
        let connections_max = limits.connections_max.unwrap_or(usize::MAX);
        let connections = Connections::new(connections_max, config.listeners.len());
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let access = AccessControl::new(configured, audit.clone())?;
        let certificates = Arc::new(Certificates::default());
        registry.register_collector(Box::new(Outer {
            access: access.clone(),
            connections: connections.clone(),
            budgets: budgets.clone(),
            certificates: certificates.clone(),
        }));
        audit.register(&mut registry);
        register(&mut registry);
        engine.register_metrics(&mut registry);
        Ok(Arc::new(Self {
            access,
            audit,
            engine,
            metrics,
            registry,
            connections,
            certificates,
            slots: SessionSlots::new(
                limits.sessions_max,
                limits.sessions_per_principal_max,
                &budgets,
            ),
            #[cfg(any(test, feature = "fuzzing"))]
            budgets,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
            phase: AtomicU8::new(Phase::Starting as u8),
            clock: OnceLock::new(),
            announced: limits.announced(),
            config,
        }))
    }

    /// Another clock than this machine's; only before anybody has asked for one.
    pub(crate) fn set_clock(&self, clock: WallClock) {
        let _ = self.clock.set(clock);
    }

    /// The clock that jobs go by.
    pub(crate) fn clock(&self) -> &WallClock {
        self.clock.get_or_init(WallClock::system)
    }

    /// Begins to keep rules and quotas in step with the keyspace `system`, of which this is the server's own storage.
    pub(crate) fn start_following(&self, system: &Arc<dyn SessionStorage>) {
        self.access.start(system, &self.engine, &self.cut);
    }

    /// See [`AccessControl::set_configured`].
    pub(crate) fn set_configured(
        &self,
        configured: Configured,
    ) -> std::result::Result<(), RulesRefused> {
        self.access.set_configured(configured, &*self.engine)
    }

    /// What a keyspace holds: see [`Engine::usage`].
    pub(crate) fn usage(&self, keyspace: &Keyspace) -> Result<Usage> {
        self.engine.usage(keyspace)
    }

    /// A slot for a connection of this principal; else the error says which limit, or which quota, is reached.
    pub(crate) fn take_slot(&self, principal: &Principal) -> Result<SessionSlot> {
        let quota = self.sessions_quota(principal);
        let slot = self.slots.take_within(principal.as_str(), quota);
        slot.inspect_err(|error| self.metrics.quota_refused(error))
    }

    /// The same for one that has a place among all already: its peer turned out to be this principal.
    pub(crate) fn move_slot(
        &self,
        principal: &Principal,
        all: &Arc<Permit>,
    ) -> Result<SessionSlot> {
        let quota = self.sessions_quota(principal);
        let slot = self.slots.take_with(principal.as_str(), quota, all);
        slot.inspect_err(|error| self.metrics.quota_refused(error))
    }

    fn sessions_quota(&self, principal: &Principal) -> Option<u64> {
        let limits = self.access.quotas().of_principal(principal.as_str());
        limits.get(QuotaKind::Sessions)
    }

    /// A place for a session in this keyspace, to be held as long as that; else the error says which quota is reached.
    pub(crate) fn enter(&self, keyspace: &Keyspace) -> Result<KeyspacePlace> {
        let limits = self.access.quotas().of_keyspace(keyspace);
        let meter = self.access.meters().of_keyspace(keyspace);
        let place = meter.take(QuotaKind::Sessions, &limits);
        place.inspect_err(|error| self.metrics.quota_refused(error))
    }

    /// A session of this peer in a keyspace: see [`Engine::open_session`].
    pub(crate) fn open_session(
        &self,
        identity: &Identity,
        keyspace: &Keyspace,
    ) -> Arc<dyn Session> {
        self.open_session_judged(identity, keyspace, Judged::ByRules)
    }

    fn open_session_judged(
        &self,
        identity: &Identity,
        keyspace: &Keyspace,
        judged: Judged,
    ) -> Arc<dyn Session> {
        let principal = identity.principal().as_str();
        let session = self.engine.open_session(principal, keyspace);
        self.tell_session("open", session.id(), identity, keyspace);
        self.guarded(session, identity, keyspace, judged)
    }

    fn tell_session(
        &self,
        operation: &'static str,
        id: SessionId,
        identity: &Identity,
        keyspace: &Keyspace,
    ) {
        if self.audit.wants.session {
            let record = Record::new(Event::Session, operation, Outcome::Allowed).by(identity);
            let record = record.session(SessionHash::of(id)).keyspace(keyspace);
            self.audit.put(record);
        }
    }

    fn guarded(
        &self,
        session: Arc<dyn Session>,
        identity: &Identity,
        keyspace: &Keyspace,
        judged: Judged,
    ) -> Arc<dyn Session> {
        let (access, engine) = (&self.access, &self.engine);
        GuardedSession::new(access, engine, session, identity, keyspace, judged)
    }

    /// See [`Engine::resume_session`].
    pub(crate) async fn resume_session(
        &self,
        identity: &Identity,
        keyspace: &Keyspace,
        id: SessionId,
        generation: u64,
    ) -> Result<Resumed> {
        let principal = identity.principal().as_str();
        let resumed = self
            .engine
            .resume_session(principal, keyspace, id, generation);
        Ok(match resumed.await? {
            Resumed::Session(session) => {
                self.tell_session("resume", session.id(), identity, keyspace);
                Resumed::Session(self.guarded(session, identity, keyspace, Judged::ByRules))
            }
            other => other,
        })
    }

    /// A session of the server itself, which may do everything.
    pub(crate) fn own_session(&self, keyspace: &Keyspace) -> Arc<dyn Session> {
        self.engine.open_session(SERVER, keyspace)
    }

    /// Removes the tokens that were minted with a certificate which is not good any more.
    pub(crate) async fn end_tokens_of_ended_certificates(&self) -> Result<()> {
        let ended = self.access.tokens_of_ended_certificates();
        if ended.is_empty() {
            return Ok(());
        }
        let system = Keyspace::new(SYSTEM).expect("the name follows the rule");
        let storage = self.own_session(&system).storage();
        let label = "tokens of certificates that are not good any more";
        let noted = self.audit.begin(Event::Admin, || {
            let keys: Vec<_> = ended.iter().map(|id| token_key(id)).collect();
            let record = Record::new(Event::Admin, "revoke tokens", Outcome::Allowed);
            let record = record.by_server().keyspace(&system).keys(keys.iter());
            record
                .reason("the certificates that these tokens were minted with are not good any more")
        });
        let removed = self.access.remove_tokens(&*storage, &ended, label).await;
        audit::committed(noted, &removed).await;
        removed.map(drop)
    }

    /// See [`Engine::check_writable`].
    pub(crate) fn check_writable(&self) -> std::result::Result<(), String> {
        self.engine.check_writable()
    }

    /// Peers can come from now on.
    pub(crate) fn serving(&self) {
        self.set_phase(Phase::Serving);
        self.engine.serving();
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }
}

/// What a gateway has of the server that it is in. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle(Arc<Shared>);

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").finish_non_exhaustive()
    }
}

impl ServerHandle {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self(shared.clone())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// A keyspace, as this peer sees it: what it may not do is refused there, and nowhere else. A session of its own,
    /// which ends when the last clone is dropped: its keys with session lifetime go then, at once. To be held for as long
    /// as something is done with it, not made for each call. Where a quota allows no more sessions in the keyspace, every
    /// call to it is refused.
    #[must_use]
    pub fn storage_as(&self, identity: &Identity, keyspace: &Keyspace) -> Arc<dyn Storage> {
        self.storage_judged(identity, keyspace, Judged::ByRules)
    }

    /// The same for what the gateway judges by itself before it asks: access rules do not count, so users need none for it.
    /// What the peer's token was minted for, its quotas, and the end of its token do, and it is the author of its commits.
    pub(crate) fn storage_on_behalf_of(
        &self,
        identity: &Identity,
        keyspace: &Keyspace,
    ) -> Arc<dyn Storage> {
        self.storage_judged(identity, keyspace, Judged::ByGateway)
    }

    fn storage_judged(
        &self,
        identity: &Identity,
        keyspace: &Keyspace,
        judged: Judged,
    ) -> Arc<dyn Storage> {
        let place = match self.0.enter(keyspace) {
            Ok(place) => place,
            Err(error) => return Arc::new(Refused(error)),
        };
        let session = self.0.open_session_judged(identity, keyspace, judged);
        Arc::new(GatewayStorage::new(session, place, &self.0))
    }

    /// A keyspace, for a gateway's own work: as principal `server`, which may do everything.
    #[must_use]
    pub fn own_storage(&self, keyspace: &Keyspace) -> Arc<dyn Storage> {
        self.0.own_session(keyspace).storage()
    }

    /// The configuration that the server was started with.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// What requests to storage may ask.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.0.announced
    }

    /// Whether the server takes requests: it has started, and does not shut down.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.0.phase() == Phase::Serving
    }
}

//! What all connections and requests of the gateway share, and who is let in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Query;
use hyper::Uri;
use hyper::header::{AUTHORIZATION, HeaderMap};
use storage_protocol::deliveries::{Deliveries, Policy, Silence};
use storage_protocol::{Keyspace, Storage, UnixMillis};
use storage_schedule::Zone;

use super::blocks::Blocks;
use super::ids::Ids;
use super::live::Live;
use super::logs::Logs;
use super::metrics::Metrics;
use super::room::Room;
use crate::clock::WallClock;
use crate::config::RobotsConfig;
use crate::gateway::{Caller, Credential, Guest, Identity, NotLetIn, ServerHandle};
use crate::limits::turns::{NoTurn, Turn, Turns};

/// Parameters of a request's query that may have a token.
pub(super) const TOKEN_PARAMETERS: &[&str] = &["token"];

/// Lists at a time, half of them for one peer: each may read all jobs and robots, and have some megabytes.
const LISTS_MAX: usize = 8;
/// So long a list waits for its place.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct House {
    pub(super) server: ServerHandle,
    pub(super) config: RobotsConfig,
    pub(super) keyspace: Keyspace,
    pub(super) zone: Zone,
    pub(super) clock: WallClock,
    pub(super) metrics: Metrics,
    /// The keyspace, as the server itself.
    pub(super) own: Arc<dyn Storage>,
    /// The jobs in it.
    pub(super) deliveries: Deliveries,
    pub(super) ids: Ids,
    pub(super) live: Arc<Live>,
    pub(super) blocks: Blocks,
    pub(super) logs: Logs,
    pub(super) room: Arc<Room>,
    /// Places for lists, which are read and answered as a whole.
    lists: Turns,
    /// A demonstration: robots need no token.
    open: AtomicBool,
}

impl House {
    pub(super) fn new(server: &ServerHandle, metrics: &Metrics) -> Self {
        let config = server.config().robots.clone();
        // A configuration that was checked has one that there is.
        let zone = Zone::named(&config.time_zone).unwrap_or(Zone::UTC);
        let (keyspace, clock) = (config.keyspace.clone(), server.shared().clock().clone());
        let own = server.own_storage(&keyspace);
        let dropped = metrics.dropped_lines.clone();
        Self {
            logs: Logs::start(&config, &server.config().data, zone.clone(), dropped),
            deliveries: Deliveries::new(own.clone()).with_clock(clock.of_deliveries()),
            server: server.clone(),
            room: Room::new(config.robots_max),
            config,
            keyspace,
            zone,
            clock,
            metrics: metrics.clone(),
            own,
            ids: Ids::default(),
            live: Arc::default(),
            blocks: Blocks::default(),
            lists: Turns::new(LISTS_MAX),
            open: AtomicBool::new(false),
        }
    }

    /// Robots need no token from now on.
    pub(super) fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// A place among the lists, to be held until one is taken.
    ///
    /// # Errors
    /// There is none for too long.
    pub(super) async fn list_place(&self, caller: &Caller) -> Result<Turn, NoTurn> {
        self.lists.take(&caller.peer_name(), TURN_PATIENCE).await
    }

    /// A line of the daily log.
    pub(super) fn note(&self, text: impl Into<String>) {
        self.logs.server(self.now(), text);
    }

    /// The jobs, as the server itself, with bounds of its own for watches and scans: for one connection.
    pub(super) fn jobs(&self) -> Deliveries {
        let storage = self.server.own_storage(&self.keyspace);
        Deliveries::new(storage).with_clock(self.clock.of_deliveries())
    }

    /// The jobs, as a caller may see and change them.
    pub(super) fn jobs_of(&self, caller: &Caller) -> Deliveries {
        let storage = caller.storage(&self.keyspace);
        Deliveries::new(storage).with_clock(self.clock.of_deliveries())
    }

    /// How packages are delivered. A robot does not acknowledge; its connection does, and what it has not is sent again.
    pub(super) fn policy(&self) -> Policy {
        Policy {
            attempts_max: self.config.resends_max.saturating_add(1),
            backoff: self.config.resend,
            backoff_max: self.config.resend.saturating_mul(64),
            window: self.config.window,
            ack: self.config.confirm,
            silence: Silence::Retry,
            keep: self.config.keep,
        }
    }

    /// Who asks: by a token or a password in `Authorization`, a token in the query, or a certificate; or anybody, where the
    /// listener takes that.
    ///
    /// # Errors
    /// Nobody who is let in.
    pub(super) async fn let_in(
        &self,
        guest: &Guest,
        headers: &HeaderMap,
        uri: &Uri,
    ) -> Result<Identity, NotLetIn> {
        let shown = credential(headers, uri);
        guest.let_in(shown.as_ref()).await
    }

    /// The same for a robot: `None`, if it may say so with its metadata.
    ///
    /// # Errors
    /// It has shown something that is not good.
    pub(super) async fn robot(
        &self,
        guest: &Guest,
        headers: &HeaderMap,
        uri: &Uri,
    ) -> Result<Option<Identity>, NotLetIn> {
        let shown = credential(headers, uri);
        let says_nothing = shown.is_none() && !guest.is_certified();
        if says_nothing && self.open.load(Ordering::Relaxed) {
            return Ok(Some(Identity::anonymous()));
        }
        match guest.let_in(shown.as_ref()).await {
            Ok(identity) => Ok(Some(identity)),
            Err(_) if shown.is_none() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Who shows this token with its metadata.
    ///
    /// # Errors
    /// Why it is not let in.
    pub(super) async fn by_token(guest: &Guest, token: &str) -> Result<Identity, String> {
        let shown = Credential::Token(token.to_owned().into());
        let identified = guest.let_in(Some(&shown)).await;
        identified.map_err(|error| error.reason)
    }
}

/// What is shown. What cannot be read is a bad token.
fn credential(headers: &HeaderMap, uri: &Uri) -> Option<Credential> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let text = value.to_str().unwrap_or_default();
        let (scheme, rest) = text.split_once(' ').unwrap_or(("", text));
        let basic = scheme
            .eq_ignore_ascii_case("basic")
            .then(|| Credential::basic(rest.trim()));
        let token = || Credential::Token(rest.trim().to_owned().into());
        return Some(basic.flatten().unwrap_or_else(token));
    }
    let Query(fields) = Query::<Vec<(String, String)>>::try_from_uri(uri).ok()?;
    let is_token = |(name, _): &&(String, String)| TOKEN_PARAMETERS.contains(&name.as_str());
    let (_, token) = fields.iter().find(is_token)?;
    Some(Credential::Token(token.clone().into()))
}

//! The server as a library: start, storage from inside, shutdown.
//!
//! [`Server::start`] opens the engine, binds every listener, and only then accepts: nobody is answered by half a
//! server. All tasks belong to one tracker, which [`Server::shutdown`] waits for.

pub(crate) mod access;
mod demo;
mod tls;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use storage_protocol::{Keyspace, Storage, StorageError};
use tokio_util::sync::CancellationToken;

use self::access::{RULES_PATIENCE, follow_access_in_time};
use self::tls::{LoadedTls, load_tls, read_tls};
use crate::audit::Audit;
use crate::auth::text::date;
use crate::auth::{Configured, Principal, Verifier};
use crate::clock::WallClock;
use crate::config::{ConfigError, EngineConfig, ListenerConfig, ServerConfig, TlsMode};
use crate::deliveries;
use crate::engine::Engine;
use crate::engine::rocks::{EngineOptions, KeyspaceRules, OpenError, RocksEngine};
use crate::gateway::{self, Gateway};
use crate::listener::Listener;
use crate::logging::warn_if_open_to_others;
use crate::net::admission::Handshakes;
use crate::net::certificate;
use crate::net::descriptors::{self, Shares};
use crate::net::tls::{Dates, LiveTls, TlsError};
use crate::reload::{self, ConfigSource, Reloaded, Reloader};
use crate::shared::Shared;
use crate::shutdown::{self, Closer, ShutdownReport};

/// Why a server did not start. The texts are complete by themselves.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store cannot be opened.
    #[error(transparent)]
    Engine(#[from] OpenError),
    /// A listener's address cannot be had (taken, say).
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The process may have too few open files.
    #[error(
        "the limit of open files is {limit}: this server needs {needed} (ulimit -n, or LimitNOFILE of its unit)"
    )]
    TooFewDescriptors {
        /// What it is.
        limit: u64,
        /// What it would have to be, with the listeners that are configured.
        needed: u64,
    },
    /// A listener is to serve a gateway that there is not.
    #[error("there is no gateway {name:?}; there are {}", .known.join(", "))]
    NoGateway {
        /// Its name.
        name: String,
        /// Those that there are.
        known: Vec<&'static str>,
    },
    /// The examples of a demonstration are for listeners on loopback alone.
    #[error(
        "--demo makes users whose passwords are known to everybody, so it needs listeners on loopback alone, and one is on {address}"
    )]
    Demo {
        /// The address that others can reach.
        address: SocketAddr,
    },
    /// The folder of the audit log cannot be used.
    #[error(
        "cannot write the audit log in {}: {source}; audit.folder is another one, audit.events = [] does without",
        folder.display()
    )]
    Audit {
        /// Which folder.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The store could not be read, or the system lacks something.
    #[error("cannot open the store: {0}")]
    Failed(String),
    /// What the store says of who may do what could not be read, or not within a minute.
    #[error("the access rules cannot be read: {0}")]
    AccessRules(String),
    /// It was stopped before it served anybody; the store is closed.
    #[error("stopped while starting")]
    Stopped,
}

impl StartError {
    fn from_access(error: StorageError) -> Self {
        Self::AccessRules(error.to_string())
    }
}

/// Where a listener listens, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerAddress {
    /// With the port that port 0 became.
    pub address: SocketAddr,
    /// How it is secured.
    pub tls: TlsMode,
    /// The gateways that it serves.
    pub gateways: Vec<String>,
}

impl std::fmt::Display for ListenerAddress {
    /// `wss://127.0.0.1:7443 storage`, as the line on standard output has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let serves_storage = self.gateways.iter().any(|name| name == "storage");
        let scheme = match (self.tls == TlsMode::Off, serves_storage) {
            (true, true) => "ws",
            (false, true) => "wss",
            (true, false) => "http",
            (false, false) => "https",
        };
        let gateways = self.gateways.join(",");
        write!(f, "{scheme}://{} {gateways}", self.address)
    }
}

/// A running server. Dropping it without [`Server::shutdown`] leaves its tasks to the runtime.
pub struct Server {
    shared: Arc<Shared>,
    addresses: Vec<ListenerAddress>,
    reloader: Arc<Reloader>,
    closer: Closer,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// How a server is started: see [`Server::builder`].
#[derive(Debug)]
pub struct ServerBuilder {
    config: ServerConfig,
    gateways: Vec<Arc<dyn Gateway>>,
    engine: Option<Arc<dyn Engine>>,
    source: Option<ConfigSource>,
    start: HowToStart,
}

/// What counts for the start alone.
#[derive(Debug, Default)]
struct HowToStart {
    stop: CancellationToken,
    grant_admin: Option<Principal>,
    demo: bool,
    clock: Option<WallClock>,
}

impl ServerBuilder {
    /// Adds a gateway, for listeners whose `gateways` name it. It comes behind those that the server has.
    #[must_use]
    pub fn gateway(mut self, gateway: Arc<dyn Gateway>) -> Self {
        self.gateways.push(gateway);
        self
    }

    /// Serves an engine of the caller's, who closes it behind [`Server::shutdown`]: for tests and for other engines.
    /// Default: the store in the folder that the configuration names.
    #[must_use]
    pub fn engine(mut self, engine: Arc<dyn Engine>) -> Self {
        self.engine = Some(engine);
        self
    }

    /// Where the configuration is read anew while the server runs: for its access rules, roles and quotas; what else has changed
    /// there holds from the next start on. It is read when `file` changes, and for [`Server::reload`]; `read` may block.
    /// Default: nowhere.
    #[must_use]
    pub fn config_source(
        mut self,
        file: Option<PathBuf>,
        read: impl Fn() -> Result<ServerConfig, ConfigError> + Send + Sync + 'static,
    ) -> Self {
        let read = Arc::new(read);
        self.source = Some(ConfigSource { file, read });
        self
    }

    /// Stops the start when `stop` is cancelled before the server is ready: a store that is being opened then is opened and
    /// closed in order, and the end is [`StartError::Stopped`].
    #[must_use]
    pub fn stop(mut self, stop: CancellationToken) -> Self {
        self.start.stop = stop;
        self
    }

    /// Makes a principal an administrator at the start, whatever the access rules say: by a stored rule, `grant-admin`,
    /// that gives it `admin` of the keyspace `system`. One that is an administrator already changes nothing, so without
    /// any rule nobody does.
    #[must_use]
    pub fn grant_admin(mut self, principal: Principal) -> Self {
        self.start.grant_admin = Some(principal);
        self
    }

    /// Makes the example users and objects of the gateways that are served, where they are missing. Only where all listeners
    /// are on loopback, since everybody knows the passwords. A later start without it removes the users that still have
    /// them.
    #[must_use]
    pub fn demo(mut self) -> Self {
        self.start.demo = true;
        self
    }

    /// The clock that jobs and gateways go by, for tests. Default: this machine's. Lifetimes and sessions go by the store's own.
    #[must_use]
    pub fn clock(mut self, clock: WallClock) -> Self {
        self.start.clock = Some(clock);
        self
    }

    /// Opens the store and serves it.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind then.
    pub async fn start(self) -> Result<Server, StartError> {
        let Self {
            mut config,
            gateways,
            engine,
            source,
            start,
        } = self;
        check_gateways(&config, &gateways)?;
        if start.demo
            && let Some(address) = demo::reachable(&config)
        {
            return Err(StartError::Demo { address });
        }
        let fixed = reload::fixed(&config);
        let shares = share_descriptors(&mut config)?;
        let (tls, looks) = load_tls(&config, source.clone()).await?;
        let has_folder = engine.is_none();
        let (engine, closer) = match engine {
            Some(engine) => (engine, Box::new(|| ()) as Closer),
            None => open_store(&config, shares).await?,
        };
        if start.stop.is_cancelled() {
            let _ = tokio::task::spawn_blocking(closer).await;
            return Err(StartError::Stopped);
        }
        // Behind the store: its folder must be empty where it is made.
        let audit = match start_audit(&config, has_folder).await {
            Ok(audit) => audit,
            Err(error) => {
                let _ = tokio::task::spawn_blocking(closer).await;
                return Err(error);
            }
        };
        let reload = |shared: &_, listeners| Reloader::new(shared, listeners, source, fixed, looks);
        let opened = Opened {
            engine,
            audit,
            closer,
        };
        Server::serve(config, tls, gateways, opened, start, reload).await
    }
}

/// What is open on the disk.
struct Opened {
    engine: Arc<dyn Engine>,
    audit: Arc<Audit>,
    closer: Closer,
}

fn check_gateways(config: &ServerConfig, gateways: &[Arc<dyn Gateway>]) -> Result<(), StartError> {
    let known = gateway::names(gateways);
    let names = config
        .listeners
        .iter()
        .flat_map(|listener| &listener.gateways);
    match names
        .into_iter()
        .find(|name| !known.contains(&name.as_str()))
    {
        None => Ok(()),
        Some(name) => Err(StartError::NoGateway {
            name: name.clone(),
            known,
        }),
    }
}

async fn open_store(
    config: &ServerConfig,
    shares: Shares,
) -> Result<(Arc<dyn Engine>, Closer), StartError> {
    let mut options = engine_options(config);
    options.max_open_files = shares.engine_files;
    let opening = tokio::task::spawn_blocking(move || {
        if options.data.exists() {
            warn_if_open_to_others(&options.data, "the data folder");
        }
        RocksEngine::open(options)
    });
    let opened = opening.await;
    let engine = opened.map_err(|error| StartError::Failed(error.to_string()))??;
    let closing = engine.clone();
    Ok((engine, Box::new(move || closing.close())))
}

/// `has_folder`: the data folder is the server's own. Without one, and where none is named, there is no audit log.
async fn start_audit(config: &ServerConfig, has_folder: bool) -> Result<Arc<Audit>, StartError> {
    if !has_folder && config.audit.folder.is_none() {
        return Ok(Audit::off());
    }
    let folder = Audit::folder(&config.audit, &config.data);
    let (config, data) = (config.audit.clone(), config.data.clone());
    let starting = tokio::task::spawn_blocking(move || Audit::start(&config, &data));
    let started = starting.await;
    let started = started.map_err(|error| StartError::Failed(error.to_string()))?;
    started.map_err(|source| StartError::Audit { folder, source })
}

impl Server {
    /// A server of this configuration, to be added to and started.
    #[must_use]
    pub fn builder(config: ServerConfig) -> ServerBuilder {
        ServerBuilder {
            config,
            gateways: gateway::built_in(),
            engine: None,
            source: None,
            start: HowToStart::default(),
        }
    }

    /// Opens the store and serves it, with the gateways that every server has.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind then.
    pub async fn start(config: ServerConfig) -> Result<Self, StartError> {
        Self::builder(config).start().await
    }

    /// Reads the certificates, as a start would. Blocks.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn check(config: &ServerConfig) -> Result<(), TlsError> {
        read_tls(config).map(|_| ())
    }

    /// What is odd about the access rules and roles of the configuration, a sentence each: rules that can never match, or
    /// give nothing beyond others, roles without members, and that nobody can change them. Those that are stored are not
    /// known here.
    #[must_use]
    pub fn warnings(config: &ServerConfig) -> Vec<String> {
        let rules = Configured::of(config).rule_set();
        let warnings = rules.warnings().into_iter();
        let mut warnings: Vec<_> = warnings.map(|warning| warning.to_string()).collect();
        if !rules.has_system_admin() {
            warnings.push(
                "no rule gives \"admin\" of the keyspace \"system\": unless a stored one does, nobody can change rules, \
                 roles, users and quotas, and a reload of this file is refused"
                    .to_owned(),
            );
        }
        warnings
    }

    async fn serve(
        config: ServerConfig,
        tls: LoadedTls,
        gateways: Vec<Arc<dyn Gateway>>,
        opened: Opened,
        start: HowToStart,
        reloader: impl FnOnce(&Arc<Shared>, Vec<(ListenerConfig, Arc<LiveTls>)>) -> Arc<Reloader>,
    ) -> Result<Self, StartError> {
        let LoadedTls {
            dates, listeners, ..
        } = tls;
        let Opened {
            engine,
            audit,
            closer,
        } = opened;
        let verifier = listeners
            .iter()
            .flatten()
            .find_map(|tls| tls.now().verifier.clone());
        let with_tls = config.listeners.iter().zip(&listeners);
        let with_tls = with_tls.filter_map(|(config, tls)| Some((config.clone(), tls.clone()?)));
        let with_tls: Vec<_> = with_tls.collect();
        let loaded = listeners;
        let mut listeners = Vec::with_capacity(loaded.len());
        for (listener, tls) in config.listeners.iter().zip(loaded) {
            match Listener::bind(listener, tls).await {
                Ok(bound) => listeners.push(bound),
                Err(source) => {
                    // The store was opened in vain; it is closed in order all the same.
                    let _ = tokio::task::spawn_blocking(closer).await;
                    return Err(StartError::Bind {
                        address: listener.address,
                        source,
                    });
                }
            }
        }
        let configured = Configured::of(&config);
        let known = gateway::names(&gateways);
        let addresses = config
            .listeners
            .iter()
            .zip(&listeners)
            .map(|(config, bound)| ListenerAddress {
                address: bound.address,
                tls: config.tls,
                gateways: in_order(&known, &config.gateways),
            });
        let addresses: Vec<_> = addresses.collect();
        tell_start(&config, &addresses, engine.as_ref(), dates);
        let handshakes_max = config.limits.handshakes_max;
        let jobs = deliveries::Metrics::default();
        let register = |registry: &mut _| {
            for gateway in &gateways {
                gateway.register_metrics(registry);
            }
            jobs.register(registry);
        };
        let shared = async {
            let shared = Shared::new(config, register, configured, engine, audit)
                .map_err(|error| StartError::Failed(error.to_string()))?;
            if let Some(clock) = &start.clock {
                shared.set_clock(clock.clone());
            }
            dates
                .into_iter()
                .for_each(|dates| shared.certificates.set(dates));
            shared.access.set_verifier(verifier.map(Verifier));
            let followed = follow_access_in_time(&shared, &start, RULES_PATIENCE).await;
            followed.inspect_err(|_| shared.cut.cancel())?;
            let examples = match start.demo {
                true => demo::make(&shared, &gateways).await,
                false => demo::end(&shared).await.map_err(StartError::from_access),
            };
            examples.inspect_err(|_| shared.cut.cancel())?;
            Ok(shared)
        };
        let shared = match shared.await {
            Ok(shared) => shared,
            Err(error) => {
                let _ = tokio::task::spawn_blocking(closer).await;
                return Err(error);
            }
        };
        shared.serving();
        let configs = shared.config.listeners.iter();
        for (number, (listener, config)) in listeners.into_iter().zip(configs).enumerate() {
            let handshakes = Handshakes::new(handshakes_max, &shared.connections, number);
            let front = gateway::front(&gateways, &shared, config);
            let serving = listener.run(shared.clone(), front, handshakes);
            shared.tasks.spawn(serving);
        }
        deliveries::start(&shared, &jobs);
        let (certificates, stop) = (shared.certificates.clone(), shared.stop.clone());
        shared.tasks.spawn(certificate::remind(certificates, stop));
        let reloader = reloader(&shared, with_tls);
        shared.tasks.spawn(reloader.clone().run());
        Ok(Self {
            shared,
            addresses,
            reloader,
            closer,
        })
    }

    /// Where it listens, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[ListenerAddress] {
        &self.addresses
    }

    /// A keyspace, from inside: the same handle that gateways use, as principal `server`. It sees what peers write
    /// at once, with the same watches.
    #[must_use]
    pub fn storage(&self, keyspace: &Keyspace) -> Arc<dyn Storage> {
        self.shared.own_session(keyspace).storage()
    }

    /// Reads certificates, revocation lists and the access rules and quotas of the configuration anew, now; by itself the
    /// server does so within two seconds after their files have changed. From the return on, whose certificate is not good
    /// any more is not let in, and is about to be closed. What cannot be read, or is not good, leaves everything as it
    /// was; the other part is read all the same.
    ///
    /// Not cancel-safe: dropped, it may be carried out or not.
    pub fn reload(&self) -> impl Future<Output = Reloaded> + Send + use<> {
        let reloader = self.reloader.clone();
        async move { reloader.reload().await }
    }

    /// Stops in phases, each with its time-out, and tells what was cut. Acknowledged commits are on the disk then.
    pub async fn shutdown(self) -> ShutdownReport {
        shutdown::run(&self.shared, self.closer).await
    }
}

/// The names that a listener has, each once, in the order in which the gateways are asked.
fn in_order(known: &[&str], names: &[String]) -> Vec<String> {
    let is_named = |known: &&&str| names.iter().any(|name| name == *known);
    known
        .iter()
        .filter(is_named)
        .map(ToString::to_string)
        .collect()
}

/// One line with what an operator looks for first.
fn tell_start(
    config: &ServerConfig,
    addresses: &[ListenerAddress],
    engine: &dyn Engine,
    dates: Option<Dates>,
) {
    let position = engine.position();
    let listeners: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data = %config.data.display(),
        durability = ?config.durability,
        epoch = %position.epoch,
        revision = position.revision.0,
        certificate_expires = dates.map(|dates| date(dates.own.until)),
        connections_max = config.limits.connections_max,
        listeners = listeners.join(", "),
        "serving"
    );
}

/// What of the process's descriptors is the engine's; the rest becomes `limits.connections_max`.
fn share_descriptors(config: &mut ServerConfig) -> Result<Shares, StartError> {
    let limit = descriptors::limit();
    let listeners = config.listeners.len();
    let needed = Shares::needed(listeners);
    let shares =
        Shares::of(limit, listeners).ok_or(StartError::TooFewDescriptors { limit, needed })?;
    let limits = &mut config.limits;
    let shares = shares.bounded(limit, limits.connections_max);
    limits.connections_max = Some(shares.connections);
    Ok(shares)
}

fn rules_of_keyspaces(engine: &EngineConfig) -> HashMap<Keyspace, KeyspaceRules> {
    let mwdb = engine.mwdb_keyspaces.iter();
    mwdb.map(|name| (name.clone(), gateway::mwdb::KEYSPACE_RULES))
        .collect()
}

fn engine_options(config: &ServerConfig) -> EngineOptions {
    let (engine, limits) = (&config.engine, &config.limits);
    EngineOptions {
        durability: config.durability,
        accept_data_loss: config.accept_data_loss,
        new_epoch: config.new_epoch,
        limits: limits.announced(),
        session_grace: config.timeouts.session_grace,
        session_kept: config.timeouts.session_kept,
        sessions_kept_max: limits.sessions_kept_max,
        memory_bytes: limits.memory_bytes_max,
        commit_queue_bytes: limits.commit_queue_bytes_max,
        disk_reserve_bytes: engine.disk_reserve_bytes,
        log_bytes: engine.log_bytes,
        log_age: engine.log_age,
        ring_bytes: engine.ring_bytes,
        read_threads: engine.read_threads,
        tombstone_age: engine.tombstone_age,
        tombstones_max: engine.tombstones_max,
        keyspaces: rules_of_keyspaces(engine),
        ..EngineOptions::new(&config.data)
    }
}

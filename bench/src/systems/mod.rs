//! The systems that are measured, each started here with data of its own, and asked by the client that its users have.

pub(crate) mod echo;
pub(crate) mod etcd;
pub(crate) mod nats;
pub(crate) mod ours;
pub(crate) mod raw;
pub(crate) mod redis;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::client::Client;
use crate::fanout::{self, FanOut};
use crate::load::{self, Data, Figures, Times};
use crate::process::Process;
use crate::work::{Cell, Work};

/// A system that clients connect to.
pub(crate) trait Server: Sync {
    type Client: Client;

    fn process(&self) -> &Process;

    fn connect(&self) -> impl Future<Output = Result<Self::Client>> + Send;
}

impl<S: Server + Send> Server for Box<S> {
    type Client = S::Client;

    fn process(&self) -> &Process {
        (**self).process()
    }

    fn connect(&self) -> impl Future<Output = Result<Self::Client>> + Send {
        (**self).connect()
    }
}

/// Where a system keeps its files: a folder that goes with it.
#[derive(Debug)]
pub(crate) struct Place {
    folder: TempDir,
    certificates: PathBuf,
}

impl Place {
    /// Below `root`, with the certificates of this folder.
    pub(crate) fn new(root: &Path, certificates: &Path) -> Result<Self> {
        let folder = TempDir::new_in(root)?;
        std::fs::create_dir(folder.path().join("data"))?;
        Ok(Self {
            folder,
            certificates: certificates.to_owned(),
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder().join("log")
    }

    /// The folder of the authority: `server` and the clients are below it.
    pub(crate) fn certificates(&self) -> &Path {
        &self.certificates
    }

    /// The end of the system's log, for an error.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        format!("the end of its log: {}", lines.join(" | "))
    }
}

/// A binary of this server, with the name that it has in the figures.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    /// `None`: the only one, or the first.
    pub(crate) name: Option<String>,
    pub(crate) path: PathBuf,
}

/// Binaries of all systems.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) builds: Vec<Build>,
    pub(crate) redis: String,
    pub(crate) nats: String,
    pub(crate) etcd: String,
}

/// What a system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// This server: `sync` or `os`.
    Ours {
        build: usize,
        durability: &'static str,
    },
    /// Redis, with this fsync.
    Redis(&'static str),
    /// NATS with JetStream, over TLS or wss, with each write synced or not.
    Nats {
        wss: bool,
        always: bool,
    },
    Etcd,
    /// Messages of the right size and nothing else, on the same stack.
    Echo,
    /// RocksDB in a process of its own, without a server.
    Raw {
        sync: bool,
    },
}

/// A system, by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct System {
    pub(crate) name: String,
    /// The same without the name of a build: what plans have.
    pub(crate) plain: &'static str,
    pub(crate) kind: Kind,
}

impl System {
    /// All of them, with these builds of this server.
    pub(crate) fn all(builds: &[Build]) -> Vec<Self> {
        let mut all = Vec::new();
        for (build, of) in builds.iter().enumerate() {
            for durability in ["sync", "os"] {
                let name = match &of.name {
                    Some(name) => format!("{name}/{durability}"),
                    None => durability.to_owned(),
                };
                let kind = Kind::Ours { build, durability };
                all.push(Self {
                    name,
                    plain: durability,
                    kind,
                });
            }
        }
        let others = [
            ("redis-everysec", Kind::Redis("everysec")),
            ("redis-always", Kind::Redis("always")),
            (
                "nats-tls",
                Kind::Nats {
                    wss: false,
                    always: false,
                },
            ),
            (
                "nats-tls-always",
                Kind::Nats {
                    wss: false,
                    always: true,
                },
            ),
            (
                "nats-wss",
                Kind::Nats {
                    wss: true,
                    always: false,
                },
            ),
            (
                "nats-wss-always",
                Kind::Nats {
                    wss: true,
                    always: true,
                },
            ),
            ("etcd", Kind::Etcd),
            ("echo", Kind::Echo),
            ("raw", Kind::Raw { sync: false }),
            ("raw-sync", Kind::Raw { sync: true }),
        ];
        all.extend(others.map(|(name, kind)| Self {
            name: name.to_owned(),
            plain: name,
            kind,
        }));
        all
    }

    /// Why it is left out of some work; `None` if it is not.
    pub(crate) fn leaves_out(&self, work: Work) -> Option<&'static str> {
        match (self.kind, work) {
            (Kind::Redis(_), Work::Scan) => Some("Redis has no keys in order"),
            (Kind::Nats { .. }, Work::Scan) => Some("NATS does not read ranges of keys"),
            (Kind::Echo, Work::CompareAndSet) => Some("the echo server keeps nothing"),
            _ => None,
        }
    }

    /// Starts it.
    pub(crate) async fn start(
        &self,
        programs: &Programs,
        place: Place,
        memory: Option<u64>,
    ) -> Result<Running> {
        let started = match self.kind {
            Kind::Ours { build, durability } => {
                let build = programs.builds.get(build).context("no such build")?;
                ours::Ours::start(&place, &build.path, durability, memory).map(Started::Ours)
            }
            Kind::Redis(fsync) => redis::Redis::start(&place, &programs.redis, fsync)
                .await
                .map(|redis| Started::Redis(Box::new(redis))),
            Kind::Nats { wss, always } => nats::Nats::start(&place, &programs.nats, wss, always)
                .await
                .map(|nats| Started::Nats(Box::new(nats))),
            Kind::Etcd => etcd::Etcd::start(&place, &programs.etcd)
                .await
                .map(|etcd| Started::Etcd(Box::new(etcd))),
            Kind::Echo => echo::Echo::start(&place).map(Started::Echo),
            Kind::Raw { sync } => raw::Raw::start(&place, sync, memory).map(Started::Raw),
        };
        let started = started.with_context(|| format!("{} does not start", self.name))?;
        Ok(Running {
            started,
            _place: place,
        })
    }
}

/// A system that runs. It ends, and its data goes, when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) started: Started,
    // After the process.
    _place: Place,
}

#[derive(Debug)]
pub(crate) enum Started {
    Ours(ours::Ours),
    Redis(Box<redis::Redis>),
    Nats(Box<nats::Nats>),
    Etcd(Box<etcd::Etcd>),
    Echo(echo::Echo),
    Raw(raw::Raw),
}

/// Runs the body with the server that is there, of whatever type; with the second body if it is none.
macro_rules! with_server {
    ($running:expr, $server:ident => $body:expr, $raw:ident => $other:expr) => {
        match &mut $running.started {
            $crate::systems::Started::Ours($server) => $body,
            $crate::systems::Started::Redis($server) => $body,
            $crate::systems::Started::Nats($server) => $body,
            $crate::systems::Started::Etcd($server) => $body,
            $crate::systems::Started::Echo($server) => $body,
            $crate::systems::Started::Raw($raw) => $other,
        }
    };
}
pub(crate) use with_server;

impl Running {
    /// Puts all keys, and reads them.
    pub(crate) async fn preload(&mut self, data: &Data) -> Result<()> {
        if let Started::Echo(echo) = &mut self.started {
            echo.value = data.values.bytes();
        }
        let synced = match &mut self.started {
            Started::Nats(nats) if nats.always => {
                nats.restart(false).await?;
                true
            }
            _ => false,
        };
        with_server!(self, server => {
            let client = server.connect().await?;
            load::preload(&client, data).await?;
            client.close().await;
        }, raw => raw.preload(data)?);
        if let (Started::Nats(nats), true) = (&mut self.started, synced) {
            nats.restart(true).await?;
        }
        with_server!(self, server => {
            let client = server.connect().await?;
            load::warm(&client, data).await?;
            client.close().await;
        }, _raw => {});
        Ok(())
    }

    /// Runs a cell, with connections of its own.
    pub(crate) async fn cell(&mut self, cell: Cell, data: &Data, times: Times) -> Result<Figures> {
        if let Started::Echo(echo) = &mut self.started {
            echo.value = cell.value;
        }
        with_server!(self, server => {
            let clients = load::open(cell.connections, || server.connect()).await?;
            let figures = load::run(&clients, server.process().id(), cell, data, times).await;
            load::close(clients).await;
            figures
        }, raw => raw.cell(cell, data, times))
    }

    /// Runs a fan-out, with connections of its own.
    pub(crate) async fn fan_out(&mut self, cell: FanOut, times: Times) -> Result<Figures> {
        with_server!(self, server => {
            // The first one writes.
            let clients = load::open(1 + cell.connections(), || server.connect()).await?;
            let figures = fanout::run(&clients, server.process().id(), cell, times).await;
            load::close(clients).await;
            figures
        }, _raw => bail!("RocksDB alone has no watches"))
    }

    pub(crate) fn process(&mut self) -> &Process {
        with_server!(self, server => server.process(), raw => raw.process())
    }
}

//! A TCP proxy between client and server that makes the faults of a network; TLS passes through it as bytes.
//!
//! [`FaultProxy::start`] listens on a port of its own and connects each client to the upstream address, which may
//! change. A [`Fault`] is done to one connection or to all ([`Scope`]), by hand ([`FaultProxy::apply`]) or by a seeded
//! [`FaultPlan`] ([`FaultProxy::run`]); each is counted by its kind. [`FaultProxy::heal`] ends all that goes on:
//! connections that lost bytes are reset (no network delivers the rest of a stream without its middle), the others
//! go on.
//!
//! Dropping the proxy ends its tasks and resets its connections. Nothing is buffered but one piece of 16 KiB for each
//! direction, so a slow reader is felt by the sender as on a wire.

mod link;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

pub use link::{Cut, Mode};
pub use plan::{FaultPlan, Step};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What a network can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Each piece comes this much later, and up to `jitter` more.
    Delay {
        /// At least.
        by: Duration,
        /// At most so much more.
        jitter: Duration,
    },
    /// So many bytes a second, each way.
    Throttle {
        /// How many.
        bytes_per_second: u32,
    },
    /// Nothing moves until the next heal; nothing is lost.
    Pause,
    /// Ended in order (FIN), both ways.
    Cut,
    /// Ended at once (RST), both ways.
    Reset,
    /// Both sides believe it is up, and all bytes are swallowed.
    HalfOpen,
    /// The same for one direction.
    Drop(Direction),
    /// The next bytes of the client reach the server, then it is cut: a request is carried out and its answer lost.
    CutAfterRequest,
    /// Cut when the next bytes of the server come, before they are passed on.
    CutBeforeAnswer,
    /// For so long every connection is reset as soon as it comes.
    Refuse {
        /// How long.
        during: Duration,
    },
}

impl Fault {
    /// The name that it is counted by.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Delay { .. } => "delay",
            Self::Throttle { .. } => "throttle",
            Self::Pause => "pause",
            Self::Cut => "cut",
            Self::Reset => "reset",
            Self::HalfOpen => "half-open",
            Self::Drop(Direction::Up) => "drop-up",
            Self::Drop(Direction::Down) => "drop-down",
            Self::CutAfterRequest => "cut-after-request",
            Self::CutBeforeAnswer => "cut-before-answer",
            Self::Refuse { .. } => "refuse",
        }
    }
}

/// Whom a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every connection that is open, and of lasting faults every new one, until the heal.
    All,
    /// One that is open, chosen by the seed.
    One,
}

/// A running proxy.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: watch::Sender<SocketAddr>,
    passed: Arc<AtomicU64>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// What new connections begin with.
    mode: Mode,
    refusing_until: Option<Instant>,
    /// Those that may be open. Ended ones go when the next one comes.
    links: Vec<watch::Sender<Mode>>,
    counts: BTreeMap<&'static str, u64>,
    random: StdRng,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// None is to be had.
    pub async fn start(upstream: SocketAddr, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: watch::Sender::new(upstream),
            passed: Arc::default(),
            inner: Mutex::new(Inner {
                mode: Mode::default(),
                refusing_until: None,
                links: Vec::new(),
                counts: BTreeMap::new(),
                random: StdRng::seed_from_u64(seed),
            }),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self {
            address,
            shared,
            accepting,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where new connections go from now on.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        self.shared.upstream.send_replace(upstream);
    }

    /// Makes a fault now. One that meets nobody (no connection is open) is not counted.
    pub fn apply(&self, fault: Fault, scope: Scope) {
        let mut inner = self.shared.lock();
        let Inner { links, random, .. } = &mut *inner;
        links.retain(|link| !link.is_closed());
        let met = match scope {
            Scope::All => links.as_slice(),
            Scope::One if links.is_empty() => &[],
            Scope::One => {
                let one = random.random_range(0..links.len());
                links.get(one..=one).unwrap_or_default()
            }
        };
        for link in met {
            link.send_modify(|mode| mode.take(fault));
        }
        let mut counted = !met.is_empty();
        if let Fault::Refuse { during } = fault {
            inner.refusing_until = Some(Instant::now() + during);
            counted = true;
        } else if scope == Scope::All && Mode::lasts(fault) {
            inner.mode.take(fault);
        }
        if counted {
            *inner.counts.entry(fault.kind()).or_default() += 1;
        }
    }

    /// Ends all faults that last.
    pub fn heal(&self) {
        let mut inner = self.shared.lock();
        inner.mode = Mode::default();
        inner.refusing_until = None;
        for link in &inner.links {
            link.send_modify(Mode::heal);
        }
    }

    /// Resets every connection, so that each side learns of it.
    pub fn reset_all(&self) {
        self.apply(Fault::Reset, Scope::All);
    }

    /// Carries out a plan, from now on, and heals at its end.
    pub async fn run(&self, plan: &FaultPlan) {
        let began = Instant::now();
        for (at, step) in &plan.steps {
            sleep_until(began + *at).await;
            match step {
                Step::Make(fault, scope) => self.apply(*fault, *scope),
                Step::Heal => self.heal(),
            }
        }
        self.heal();
    }

    /// How many of each kind were made.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.shared.lock().counts.clone()
    }

    /// The bytes that were passed on, both ways together.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        let inner = self.shared.lock();
        inner.links.iter().filter(|link| !link.is_closed()).count()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // Its set of connections goes with it.
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut links = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors, say.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        while links.try_join_next().is_some() {}
        let (mode, seed) = {
            let mut inner = shared.lock();
            let refusing = inner.refusing_until;
            if refusing.is_some_and(|until| Instant::now() < until) {
                drop(inner);
                // Without it the drop would be a FIN; no connection of ours depends on which.
                let _ = client.set_zero_linger();
                continue;
            }
            let mode = watch::Sender::new(inner.mode);
            let watched = mode.subscribe();
            inner.links.retain(|link| !link.is_closed());
            inner.links.push(mode);
            (watched, inner.random.random())
        };
        let upstream = *shared.upstream.borrow();
        let passed = shared.passed.clone();
        links.spawn(async move {
            if let Ok(server) = TcpStream::connect(upstream).await {
                link::run(client, server, mode, passed, seed).await;
            } else {
                let _ = client.set_zero_linger();
            }
        });
    }
}

//! The end of a server in named phases, each with its time-out, so that a hang has a name.
//!
//! Stop accepting; tell peers and let what is in flight finish; close what is left; flush and close the engine; write
//! the rest of the audit log. The report says how long each took and what was cut.

use std::fmt;
use std::time::{Duration, Instant};

use crate::shared::{Phase, Shared};

/// Flushes and closes the engine; blocks.
pub(crate) type Closer = Box<dyn FnOnce() + Send>;

/// How long the engine may take to close, before that is reported as a failure.
const ENGINE_CLOSE_PATIENCE: Duration = Duration::from_secs(60);
/// How long the audit log may take to be written.
const AUDIT_CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// For closing handshakes, once sessions are told to close at once.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// One phase of a shutdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseReport {
    /// Which.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Whether it was through before its time-out.
    pub completed: bool,
}

/// How a shutdown went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownReport {
    /// The phases, in order.
    pub phases: Vec<PhaseReport>,
    /// Connections whose requests did not finish in time.
    pub connections_cut: usize,
    /// Whether the engine flushed and closed in time.
    pub engine_closed: bool,
}

impl ShutdownReport {
    /// Whether nothing was cut.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.connections_cut == 0 && self.engine_closed
    }
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for phase in &self.phases {
            let outcome = if phase.completed { "" } else { " (timed out)" };
            write!(
                f,
                "{}: {} ms{outcome}; ",
                phase.name,
                phase.took.as_millis()
            )?;
        }
        write!(f, "connections cut: {}", self.connections_cut)
    }
}

pub(crate) async fn run(shared: &Shared, closer: Closer) -> ShutdownReport {
    let mut phases = Vec::new();
    let mut record = |name, start: Instant, completed| {
        let phase = PhaseReport {
            name,
            took: start.elapsed(),
            completed,
        };
        tracing::info!(
            phase = name,
            completed,
            millis = phase.took.as_millis(),
            "shutdown"
        );
        phases.push(phase);
    };

    let start = Instant::now();
    shared.set_phase(Phase::Draining);
    shared.stop.cancel();
    shared.tasks.close();
    record("stop accepting", start, true);

    let start = Instant::now();
    shared.drain.cancel();
    let drained = tokio::time::timeout(shared.config.timeouts.drain, shared.tasks.wait())
        .await
        .is_ok();
    let connections_cut = shared.tasks.len();
    record("finish requests in flight", start, drained);

    let start = Instant::now();
    shared.cut.cancel();
    let closed = tokio::time::timeout(CLOSE_PATIENCE, shared.tasks.wait())
        .await
        .is_ok();
    record("close connections", start, closed);

    let start = Instant::now();
    let closing = tokio::task::spawn_blocking(closer);
    let engine_closed = matches!(
        tokio::time::timeout(ENGINE_CLOSE_PATIENCE, closing).await,
        Ok(Ok(()))
    );
    record("close the engine", start, engine_closed);

    let start = Instant::now();
    let audit = shared.audit.clone();
    let closing = tokio::task::spawn_blocking(move || audit.close());
    let closed = tokio::time::timeout(AUDIT_CLOSE_PATIENCE, closing)
        .await
        .is_ok();
    record("close the audit log", start, closed);

    ShutdownReport {
        phases,
        connections_cut,
        engine_closed,
    }
}

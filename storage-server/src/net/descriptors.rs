//! File descriptors: how many the process may have, and how they are shared out.
//!
//! Connections and the engine use the same descriptors, and an engine that cannot open its next log file fails a write.
//! So the engine's share is set aside first, and connections are bounded by what is left: with too many connections new
//! ones are refused, and the store goes on.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A server does not start with fewer; with many listeners it needs more.
const DESCRIPTORS_MIN: u64 = 256;
/// With fewer, the start logs for how many connections they suffice.
const DESCRIPTORS_FEW: u64 = 4096;

/// Standard streams, the runtime, the log's file, and what is open for moments.
const OWN: u64 = 24;
/// Of each listener: its socket, a connection that waits for a place, and those that are being refused with an answer.
const OF_LISTENER: u64 = 2 + REFUSALS_MAX as u64;
/// Connections of a listener that are refused with an answer at a time; others are closed without one.
pub(crate) const REFUSALS_MAX: usize = 4;
/// Files that RocksDB opens beside its tables and blobs: logs (those read for watches too), manifest, locks, folders.
const ENGINE_BESIDE: u64 = 64;
const ENGINE_FILES_MIN: u64 = 64;
const ENGINE_FILES_MAX: u64 = 1024;
/// The fewest connections that are left.
const CONNECTIONS_MIN: u64 = 64;

/// Raises the soft limit of open files to the hard one, as far as the system lets us: the soft one is small by default
/// for the sake of programs that use `select`, which nothing here does.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, soft = limit.current, hard = limit.maximum, "cannot raise the limit of open files");
    }
}

/// The limit of open files that holds now.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How a process's descriptors are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Table and blob files of the engine.
    pub(crate) engine_files: u32,
    /// Connections of all kinds, on all listeners.
    pub(crate) connections: usize,
}

impl Shares {
    /// How many a server with so many listeners needs.
    pub(crate) fn needed(listeners: usize) -> u64 {
        let own = OWN + OF_LISTENER * listeners as u64;
        DESCRIPTORS_MIN.max(own + ENGINE_BESIDE + ENGINE_FILES_MIN + CONNECTIONS_MIN)
    }

    /// `None` if `limit` is less than what is [needed](Self::needed).
    pub(crate) fn of(limit: u64, listeners: usize) -> Option<Self> {
        if limit < Self::needed(listeners) {
            return None;
        }
        let shared = limit - OF_LISTENER * listeners as u64;
        let engine_files = (shared / 4).clamp(ENGINE_FILES_MIN, ENGINE_FILES_MAX);
        let connections = shared - engine_files - ENGINE_BESIDE - OWN;
        Some(Self {
            engine_files: u32::try_from(engine_files).unwrap_or(u32::MAX),
            connections: usize::try_from(connections).unwrap_or(usize::MAX),
        })
    }

    /// Bounds the connections by the configured `limits.connections_max`; logs it if there cannot be so many.
    pub(crate) fn bounded(self, limit: u64, wanted: Option<usize>) -> Self {
        let connections = self.connections.min(wanted.unwrap_or(usize::MAX));
        if wanted.is_some_and(|wanted| wanted > connections) {
            tracing::warn!(
                descriptors = limit,
                wanted,
                connections_max = connections,
                "limits.connections_max is more than the limit of open files allows (ulimit -n, LimitNOFILE): lowered"
            );
        } else if limit < DESCRIPTORS_FEW {
            tracing::warn!(
                descriptors = limit,
                connections_max = connections,
                engine_files = self.engine_files,
                "few connections are possible, by the limit of open files (ulimit -n, LimitNOFILE)"
            );
        }
        Self {
            connections,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_never_exceed_the_limit() {
        for listeners in [1, 2, 8, 30, 1_000] {
            let needed = Shares::needed(listeners);
            assert_eq!(Shares::of(needed - 1, listeners), None);
            let more = [needed + 1, 20_000, 1 << 20, u64::MAX];
            for limit in [needed].into_iter().chain(more) {
                let shares = Shares::of(limit, listeners).unwrap();
                let own = OWN + listeners as u64 * (2 + REFUSALS_MAX as u64);
                let engine = u64::from(shares.engine_files) + ENGINE_BESIDE;
                let connections = shares.connections as u64;
                assert!(
                    own + engine + connections <= limit && connections >= CONNECTIONS_MIN,
                    "{listeners} listeners, {limit}: {shares:?}"
                );
            }
        }
        assert_eq!(Shares::needed(2), DESCRIPTORS_MIN);
        assert_eq!(Shares::of(20_000, 2).unwrap().engine_files, 1024);
    }

    #[test]
    fn what_is_configured_only_lowers_it() {
        let shares = Shares::of(1024, 2).unwrap();
        assert_eq!(shares.bounded(1024, Some(10)).connections, 10);
        assert_eq!(shares.bounded(1024, Some(100_000)), shares);
        assert_eq!(shares.bounded(1024, None), shares);
    }
}

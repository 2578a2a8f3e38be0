//! The gateway's metrics.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// See the module. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    pub(super) connected: Gauge<u64, AtomicU64>,
    pub(super) notifications: Counter,
    pub(super) confirmed: Counter,
    pub(super) declined: Counter,
    pub(super) refused: Counter,
    pub(super) dropped_lines: Counter,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "storage_robots_connected",
            "Robots that are connected",
            self.connected.clone(),
        );
        for (name, help, counter) in [
            (
                "storage_robots_notifications",
                "Packages that were sent to robots",
                &self.notifications,
            ),
            (
                "storage_robots_confirmed",
                "Of these, those that arrived",
                &self.confirmed,
            ),
            (
                "storage_robots_declined",
                "Packages that robots want again",
                &self.declined,
            ),
            (
                "storage_robots_refused",
                "Metadata that were refused",
                &self.refused,
            ),
            (
                "storage_robots_log_lines_dropped",
                "Lines of the logs of robots that could not be written in time",
                &self.dropped_lines,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}

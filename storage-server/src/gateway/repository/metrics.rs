//! The gateway's metrics.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// See the module. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    pub(super) uploads: Counter,
    pub(super) bytes_in: Counter,
    pub(super) bytes_out: Counter,
    pub(super) pushes: Counter,
    pub(super) subscriptions: Gauge<u64, AtomicU64>,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "storage_repository_uploads",
            "Files that were uploaded.",
            self.uploads.clone(),
        );
        registry.register(
            "storage_repository_bytes_in",
            "Bytes of files that were uploaded.",
            self.bytes_in.clone(),
        );
        registry.register(
            "storage_repository_bytes_out",
            "Bytes of files that were downloaded.",
            self.bytes_out.clone(),
        );
        registry.register(
            "storage_repository_pushes",
            "Documents that were sent to subscribers.",
            self.pushes.clone(),
        );
        registry.register(
            "storage_repository_subscriptions",
            "Subscriptions of open sockets.",
            self.subscriptions.clone(),
        );
    }
}

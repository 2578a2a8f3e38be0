//! Every metric of the server by its name, unit and labels; the engine and the gateways register theirs beside it.
//!
//! What is counted on the way of a request is a handle that is held, so it costs one relaxed addition. What others know is
//! asked for at a look, by a collector. Labels are fixed sets: nothing a peer sends becomes one.

use std::array::from_fn;
use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Metric, Registry};
use storage_protocol::{Limit, Outcome, StorageError};

/// A number that goes up and down.
pub(crate) type Gauge = prometheus_client::metrics::gauge::Gauge<u64, AtomicU64>;

/// Names and values of `N` labels.
pub(crate) type Labels<const N: usize> = [(&'static str, &'static str); N];

/// A set of label values: a fieldless enum, its variants in order.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),* }
        impl $name {
            const TEXTS: &[&str] = &[$($text),*];
            const COUNT: usize = Self::TEXTS.len();
        }
    };
}

labels! {
    /// Label `kind` of a request.
    RequestLabel {
        Get = "get", Scan = "scan", ScanNext = "scan_next", Commit = "commit", Watch = "watch", Remove = "remove",
        Prefix = "prefix", Probe = "probe",
    }
}
labels! {
    /// Label `outcome` of a request.
    OutcomeLabel { Ok = "ok", Refused = "refused", NotExecuted = "not_executed", Unknown = "unknown" }
}
labels! {
    /// Label `reason` of a connection that was refused or closed before its session began.
    RefusedLabel {
        Tls = "tls", Timeout = "timeout", Http = "http", Sessions = "sessions_max",
        SessionsPerPrincipal = "sessions_per_principal_max", Draining = "draining", Keyspace = "keyspace",
        Principal = "principal", Connections = "connections_max", Handshakes = "handshakes_max", Unused = "unused",
        SessionsQuota = "quota_sessions_max",
        HttpConnections = "http_connections_max", Credentials = "credentials",
    }
}
labels! {
    /// Label `reason` of a session that the server closed.
    ClosedLabel {
        Protocol = "protocol", Silent = "silent", Slow = "slow", Hello = "hello_timeout", Shutdown = "shutdown",
        Failed = "failed", Fenced = "fenced", Overloaded = "overloaded",
        Gateway = "gateway", Access = "access",
    }
}

labels! {
    /// Label `what` of what is read anew while the server runs.
    ReloadLabel { Certificates = "certificates", Rules = "rules" }
}
labels! {
    /// Label `quota` of what a quota refused.
    QuotaLabel {
        KeyspaceBytes = "keyspace_bytes", KeyspaceEntries = "keyspace_entries",
        CommitRate = "commits_per_second", CommitByteRate = "commit_bytes_per_second",
        Sessions = "sessions", Watches = "watches",
    }
}

impl QuotaLabel {
    /// `None` for limits that are no quotas.
    fn of(limit: Limit) -> Option<Self> {
        Some(match limit {
            Limit::KeyspaceBytes => Self::KeyspaceBytes,
            Limit::KeyspaceEntries => Self::KeyspaceEntries,
            Limit::CommitRate => Self::CommitRate,
            Limit::CommitByteRate => Self::CommitByteRate,
            Limit::QuotaSessions => Self::Sessions,
            Limit::QuotaWatches => Self::Watches,
            _ => return None,
        })
    }
}

impl ReloadLabel {
    /// As metrics and the audit log have it.
    pub(crate) fn text(self) -> &'static str {
        Self::TEXTS[self as usize]
    }
}

impl OutcomeLabel {
    pub(crate) fn of<T>(result: &Result<T, StorageError>) -> Self {
        match result.as_ref().map_err(StorageError::outcome) {
            Ok(_) => Self::Ok,
            Err(Outcome::Refused) => Self::Refused,
            Err(Outcome::NotExecuted) => Self::NotExecuted,
            Err(Outcome::Unknown) => Self::Unknown,
        }
    }
}

/// All that the server itself counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Open WebSockets of each protocol.
    sessions: Family<Labels<1>, Gauge>,
    requests: [[Counter; OutcomeLabel::COUNT]; RequestLabel::COUNT],
    refused: [Counter; RefusedLabel::COUNT],
    closed: [Counter; ClosedLabel::COUNT],
    /// By what, and whether it failed.
    reloads: [[Counter; 2]; ReloadLabel::COUNT],
    /// 1 while the last attempt failed.
    reload_failing: [Gauge; ReloadLabel::COUNT],
    quota_refused: [Counter; QuotaLabel::COUNT],
    /// Accepted TCP connections.
    pub(crate) accepted: Counter,
    /// TLS handshakes that resumed an earlier session.
    pub(crate) resumed: Counter,
    /// Bytes of WebSocket traffic from peers, after TLS.
    pub(crate) received_bytes: Counter,
    /// Bytes of WebSocket traffic to peers, before TLS.
    pub(crate) sent_bytes: Counter,
    /// Watches of native sessions.
    pub(crate) watches: Gauge,
    /// Open scans of native sessions.
    pub(crate) scans: Gauge,
}

impl Metrics {
    /// Registers them all.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let requests: Family<Labels<2>, Counter> =
            registered(registry, "storage_requests", "Requests answered");
        let request = |kind: usize, outcome: usize| {
            requests.get_or_create_owned(&[
                ("kind", RequestLabel::TEXTS[kind]),
                ("outcome", OutcomeLabel::TEXTS[outcome]),
            ])
        };
        let reloads: Family<Labels<2>, Counter> = registered(
            registry,
            "storage_reloads",
            "Certificates, or rules of the configuration, read anew",
        );
        let reload = |what: usize, failed: usize| {
            reloads.get_or_create_owned(&[
                ("what", ReloadLabel::TEXTS[what]),
                ("outcome", ["ok", "failed"][failed]),
            ])
        };
        let failing: Family<Labels<1>, Gauge> = registered(
            registry,
            "storage_reload_failing",
            "1 while what was to be read anew is not good, and what was before holds on",
        );
        Self {
            reloads: from_fn(|what| from_fn(|failed| reload(what, failed))),
            reload_failing: from_fn(|what| {
                failing.get_or_create_owned(&[("what", ReloadLabel::TEXTS[what])])
            }),
            sessions: registered(registry, "storage_sessions", "Open sessions"),
            requests: from_fn(|kind| from_fn(|outcome| request(kind, outcome))),
            refused: by_label(
                registry,
                "storage_connections_refused",
                "Connections refused before a session began",
                "reason",
                RefusedLabel::TEXTS,
            ),
            closed: by_label(
                registry,
                "storage_sessions_closed",
                "Sessions closed by the server",
                "reason",
                ClosedLabel::TEXTS,
            ),
            quota_refused: by_label(
                registry,
                "storage_quota_refused",
                "Refusals by quotas",
                "quota",
                QuotaLabel::TEXTS,
            ),
            accepted: registered(
                registry,
                "storage_connections_accepted",
                "TCP connections accepted",
            ),
            resumed: registered(
                registry,
                "storage_tls_resumed",
                "TLS handshakes that resumed a session",
            ),
            received_bytes: registered(
                registry,
                "storage_received_bytes",
                "WebSocket bytes from peers",
            ),
            sent_bytes: registered(registry, "storage_sent_bytes", "WebSocket bytes to peers"),
            watches: registered(registry, "storage_watches", "Watches of native sessions"),
            scans: registered(registry, "storage_scans", "Open scans of native sessions"),
        }
    }

    /// How many WebSockets of a protocol are open.
    pub(crate) fn sessions(&self, protocol: &'static str) -> Gauge {
        self.sessions.get_or_create_owned(&[("gateway", protocol)])
    }

    /// Counts the request, and if a quota refused it, that.
    pub(crate) fn request<T>(&self, kind: RequestLabel, result: &Result<T, StorageError>) {
        if let Err(error) = result {
            self.quota_refused(error);
        }
        self.request_outcome(kind, OutcomeLabel::of(result));
    }

    pub(crate) fn request_outcome(&self, kind: RequestLabel, outcome: OutcomeLabel) {
        self.requests[kind as usize][outcome as usize].inc();
    }

    pub(crate) fn refused(&self, reason: RefusedLabel) {
        self.refused[reason as usize].inc();
    }

    pub(crate) fn reload(&self, what: ReloadLabel, is_ok: bool) {
        self.reloads[what as usize][usize::from(!is_ok)].inc();
        self.reload_failing[what as usize].set(u64::from(!is_ok));
    }

    /// A refusal, if it is a quota's. [`Metrics::request`] counts those of requests.
    pub(crate) fn quota_refused(&self, error: &StorageError) {
        let (StorageError::QuotaExceeded { limit, .. } | StorageError::Overloaded { limit, .. }) =
            error
        else {
            return;
        };
        if let Some(quota) = QuotaLabel::of(*limit) {
            self.quota_refused[quota as usize].inc();
        }
    }

    pub(crate) fn closed(&self, reason: ClosedLabel) {
        self.closed[reason as usize].inc();
    }
}

/// A new metric, and the registry's handle of it. A counter's name comes without `_total`.
fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn by_label<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    texts: &[&'static str],
) -> [Counter; N] {
    let family: Family<Labels<1>, Counter> = registered(registry, name, help);
    from_fn(|place| family.get_or_create_owned(&[(label, texts[place])]))
}

/// Encodes metrics whose values are computed at a look.
#[derive(Debug)]
pub(crate) struct Look<'a>(pub(crate) DescriptorEncoder<'a>);

impl Look<'_> {
    pub(crate) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        value: impl EncodeGaugeValue,
    ) -> fmt::Result {
        self.metric(name, help, &ConstGauge::new(value))
    }

    /// `name` comes without the `_total` that its line has.
    pub(crate) fn counter(
        &mut self,
        name: &str,
        help: &str,
        value: impl EncodeCounterValue,
    ) -> fmt::Result {
        self.metric(name, help, &ConstCounter::new(value))
    }

    pub(crate) fn metric(
        &mut self,
        name: &str,
        help: &str,
        metric: &impl EncodeMetric,
    ) -> fmt::Result {
        let kind = metric.metric_type();
        metric.encode(self.0.encode_descriptor(name, help, None, kind)?)
    }
}

/// The text that `/metrics` answers with.
pub(crate) fn encoded(registry: &Registry) -> String {
    let mut out = String::with_capacity(16 * 1024);
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::prometheus_text::encode(&mut out, registry);
    out
}

//! Every metric of the server by its name, unit and labels; the engine adds its own.
//!
//! Plain atomics, written as Prometheus text when asked. Labels are fixed sets: nothing a peer sends becomes one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use storage_protocol::{Outcome, StorageError};

use crate::logging::LogCounts;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

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
        HttpConnections = "http_connections_max",
    }
}
labels! {
    /// Label `reason` of a session that the server closed.
    ClosedLabel {
        Protocol = "protocol", Silent = "silent", Slow = "slow", Hello = "hello_timeout", Shutdown = "shutdown",
        Failed = "failed", Fenced = "fenced", Overloaded = "overloaded",
        Gateway = "gateway",
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

/// What is counted elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outer {
    /// Open connections of all kinds, and how many there can be.
    pub(crate) connections: usize,
    pub(crate) connections_max: usize,
    /// When the server's certificate ends, in seconds since 1970; `None` without TLS.
    pub(crate) certificate_expires: Option<u64>,
    pub(crate) log: LogCounts,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Open WebSockets of each protocol; short sections only.
    sessions: Mutex<BTreeMap<&'static str, Arc<Gauge>>>,
    requests: [[Counter; OutcomeLabel::COUNT]; RequestLabel::COUNT],
    refused: [Counter; RefusedLabel::COUNT],
    closed: [Counter; ClosedLabel::COUNT],
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
    /// How many WebSockets of a protocol are open.
    pub(crate) fn sessions(&self, protocol: &'static str) -> Arc<Gauge> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.entry(protocol).or_default().clone()
    }

    pub(crate) fn request<T>(&self, kind: RequestLabel, result: &Result<T, StorageError>) {
        self.request_outcome(kind, OutcomeLabel::of(result));
    }

    pub(crate) fn request_outcome(&self, kind: RequestLabel, outcome: OutcomeLabel) {
        self.requests[kind as usize][outcome as usize].increment();
    }

    pub(crate) fn refused(&self, reason: RefusedLabel) {
        self.refused[reason as usize].increment();
    }

    pub(crate) fn closed(&self, reason: ClosedLabel) {
        self.closed[reason as usize].increment();
    }

    /// Appends all of them in the Prometheus text format. `budgets`: name and bytes in use of each shared budget.
    pub(crate) fn write(&self, out: &mut String, budgets: &[(&str, usize)], outer: &Outer) {
        outer.write(out);
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<_> = sessions.keys().copied().collect();
        let values: Vec<_> = sessions.values().map(|gauge| gauge.value()).collect();
        drop(sessions);
        family(
            out,
            "storage_sessions",
            "gauge",
            "Open sessions",
            "gateway",
            &names,
            values,
        );
        head(
            out,
            "storage_requests_total",
            "counter",
            "Requests answered",
        );
        for (kind, outcomes) in RequestLabel::TEXTS.iter().zip(&self.requests) {
            for (outcome, counter) in OutcomeLabel::TEXTS.iter().zip(outcomes) {
                let value = counter.value();
                put(
                    out,
                    format_args!(
                        "storage_requests_total{{kind=\"{kind}\",outcome=\"{outcome}\"}} {value}\n"
                    ),
                );
            }
        }
        let refused = self.refused.iter().map(Counter::value);
        let help = "Connections refused before a session began";
        family(
            out,
            "storage_connections_refused_total",
            "counter",
            help,
            "reason",
            RefusedLabel::TEXTS,
            refused,
        );
        let closed = self.closed.iter().map(Counter::value);
        let help = "Sessions closed by the server";
        family(
            out,
            "storage_sessions_closed_total",
            "counter",
            help,
            "reason",
            ClosedLabel::TEXTS,
            closed,
        );
        for (name, help, counter) in [
            (
                "storage_connections_accepted_total",
                "TCP connections accepted",
                &self.accepted,
            ),
            (
                "storage_tls_resumed_total",
                "TLS handshakes that resumed a session",
                &self.resumed,
            ),
            (
                "storage_received_bytes_total",
                "WebSocket bytes from peers",
                &self.received_bytes,
            ),
            (
                "storage_sent_bytes_total",
                "WebSocket bytes to peers",
                &self.sent_bytes,
            ),
        ] {
            single(out, name, "counter", help, counter.value());
        }
        single(
            out,
            "storage_watches",
            "gauge",
            "Watches of native sessions",
            self.watches.value(),
        );
        single(
            out,
            "storage_scans",
            "gauge",
            "Open scans of native sessions",
            self.scans.value(),
        );
        let (names, values): (Vec<_>, Vec<_>) = budgets
            .iter()
            .map(|(name, used)| (*name, *used as u64))
            .unzip();
        family(
            out,
            "storage_budget_used_bytes",
            "gauge",
            "Bytes in use of shared budgets",
            "budget",
            &names,
            values,
        );
    }
}

impl Outer {
    fn write(&self, out: &mut String) {
        for (name, help, value) in [
            (
                "storage_connections",
                "Open connections of all kinds",
                self.connections,
            ),
            (
                "storage_connections_max",
                "As many there can be",
                self.connections_max,
            ),
        ] {
            single(out, name, "gauge", help, value as u64);
        }
        if let Some(expires) = self.certificate_expires {
            single(
                out,
                "storage_certificate_expires_seconds",
                "gauge",
                "When the certificate of the server ends, in seconds since 1970",
                expires,
            );
        }
        for (name, help, value) in [
            (
                "storage_log_lines_dropped_total",
                "Lines of the log that could not be written in time",
                self.log.dropped,
            ),
            (
                "storage_log_lines_suppressed_total",
                "Lines of the log that were one of too many of their kind",
                self.log.suppressed,
            ),
        ] {
            single(out, name, "counter", help, value);
        }
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    put(
        out,
        format_args!("# HELP {name} {help}.\n# TYPE {name} {kind}\n"),
    );
}

/// Appends one counter.
pub(crate) fn write_counter(out: &mut String, name: &str, help: &str, value: u64) {
    single(out, name, "counter", help, value);
}

fn single(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(out, name, kind, help);
    put(out, format_args!("{name} {value}\n"));
}

fn family(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    label: &str,
    texts: &[&str],
    values: impl IntoIterator<Item = u64>,
) {
    head(out, name, kind, help);
    for (text, value) in texts.iter().zip(values) {
        put(out, format_args!("{name}{{{label}=\"{text}\"}} {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_sample_or_a_comment() {
        let metrics = Metrics::default();
        metrics.request::<()>(RequestLabel::Commit, &Err(StorageError::Cancelled));
        metrics.refused(RefusedLabel::Tls);
        let mut out = String::new();
        metrics.write(&mut out, &[("outbox", 7)], &Outer::default());
        assert!(
            out.contains("storage_requests_total{kind=\"commit\",outcome=\"not_executed\"} 1\n")
        );
        assert!(out.contains("storage_connections_refused_total{reason=\"tls\"} 1\n"));
        assert!(out.contains("storage_budget_used_bytes{budget=\"outbox\"} 7\n"));
        for line in out.lines() {
            let sample = line
                .rsplit_once(' ')
                .is_some_and(|(_, value)| value.parse::<u64>().is_ok());
            assert!(line.starts_with("# ") || sample, "{line}");
        }
    }
}

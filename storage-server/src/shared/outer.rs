//! Metrics of what others of the server know: asked for at a look.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::family::Family;

use crate::auth::AccessControl;
use crate::limits::budget::Budgets;
use crate::logging;
use crate::metrics::{Gauge, Labels, Look};
use crate::net::admission::Connections;
use crate::net::tls::Validity;

/// See the module.
#[derive(Debug)]
pub(super) struct Outer {
    /// Open connections of all kinds.
    pub(super) connections: Arc<Connections>,
    /// What all sessions share.
    pub(super) budgets: Arc<Budgets>,
    /// Of the server's certificate; `None` without TLS.
    pub(super) certificate: Option<Validity>,
    pub(super) access: Arc<AccessControl>,
}

impl Collector for Outer {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut look = Look(encoder);
        look.gauge(
            "storage_connections",
            "Open connections of all kinds.",
            self.connections.open(),
        )?;
        look.gauge(
            "storage_connections_max",
            "As many there can be.",
            self.connections.max(),
        )?;
        if let Some(validity) = self.certificate {
            look.gauge(
                "storage_certificate_expires_seconds",
                "When the certificate of the server ends, in seconds since 1970.",
                validity.until,
            )?;
        }
        let access = &self.access;
        look.gauge(
            "storage_tokens",
            "Tokens that are good.",
            access.tokens_len(),
        )?;
        look.gauge(
            "storage_access_rules",
            "Access rules, of the configuration and stored.",
            access.rules().rules().count(),
        )?;
        let logins = access.logins();
        look.counter(
            "storage_login_hashes",
            "Passwords that were hashed to check a login.",
            logins.hashes_run(),
        )?;
        look.gauge(
            "storage_login_keys",
            "Users and addresses that are remembered for the limits of failed logins.",
            logins.keys(),
        )?;
        let log = logging::counts();
        look.counter(
            "storage_log_lines_dropped",
            "Lines of the log that could not be written in time.",
            log.dropped,
        )?;
        look.counter(
            "storage_log_lines_suppressed",
            "Lines of the log that were one of too many of their kind.",
            log.suppressed,
        )?;
        let used = Family::<Labels<1>, Gauge>::default();
        for (name, budget) in [
            ("bytes_in_flight", &self.budgets.in_flight),
            ("partial_messages", &self.budgets.partial),
            ("outbox", &self.budgets.outbox),
            ("watches", &self.budgets.watches),
        ] {
            let gauge = used.get_or_create_owned(&[("budget", name)]);
            gauge.set(budget.used() as u64);
        }
        look.metric(
            "storage_budget_used_bytes",
            "Bytes in use of shared budgets.",
            &used,
        )
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use storage_protocol::StorageError;

    use super::*;
    use crate::auth::Configured;
    use crate::config::ServerLimits;
    use crate::metrics::{Metrics, RefusedLabel, RequestLabel, encoded};

    #[test]
    fn each_line_is_a_sample_or_a_comment() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.request::<()>(RequestLabel::Commit, &Err(StorageError::Cancelled));
        metrics.refused(RefusedLabel::Tls);
        let budgets = Budgets::new(&ServerLimits::default());
        let _seven = budgets.outbox.take(7).unwrap();
        let outer = Outer {
            connections: Connections::new(1, 1),
            budgets,
            certificate: None,
            access: AccessControl::new(Configured::default()).unwrap(),
        };
        registry.register_collector(Box::new(outer));
        let out = encoded(&registry);
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

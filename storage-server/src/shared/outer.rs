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
use crate::net::certificate::Certificates;

/// See the module.
#[derive(Debug)]
pub(super) struct Outer {
    /// Open connections of all kinds.
    pub(super) connections: Arc<Connections>,
    /// What all sessions share.
    pub(super) budgets: Arc<Budgets>,
    pub(super) certificates: Arc<Certificates>,
    pub(super) access: Arc<AccessControl>,
}

impl Outer {
    fn encode_certificates(&self, look: &mut Look<'_>) -> fmt::Result {
        let expires = Family::<Labels<1>, Gauge>::default();
        let dates = self.certificates.dates();
        for (name, until) in [
            ("server", dates.map(|dates| dates.own.until)),
            ("server_chain", dates.and_then(|dates| dates.between)),
            ("authority", dates.and_then(|dates| dates.authority)),
            ("client", self.access.first_certificate_ends()),
        ] {
            if let Some(until) = until {
                let gauge = expires.get_or_create_owned(&[("certificate", name)]);
                gauge.set(until);
            }
        }
        look.metric(
            "storage_certificate_expires_seconds",
            "When a certificate in use ends, in seconds since 1970: of several the first.",
            &expires,
        )?;
        if let Some(due) = dates.and_then(|dates| dates.lists) {
            look.gauge(
                "storage_revocation_list_due_seconds",
                "When the first of the revocation lists should be replaced, in seconds since 1970.",
                due,
            )?;
        }
        Ok(())
    }
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
        self.encode_certificates(&mut look)?;
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
    use storage_protocol::{Limit, StorageError};

    use super::*;
    use crate::audit::Audit;
    use crate::auth::Configured;
    use crate::config::ServerLimits;
    use crate::metrics::{Metrics, RefusedLabel, RequestLabel, encoded};

    #[test]
    fn each_line_is_a_sample_or_a_comment() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.request::<()>(RequestLabel::Commit, &Err(StorageError::Cancelled));
        metrics.refused(RefusedLabel::Tls);
        for (limit, max) in [(Limit::KeyspaceBytes, 9), (Limit::CommitQueue, 9)] {
            let refused = StorageError::QuotaExceeded { limit, max };
            metrics.request::<()>(RequestLabel::Watch, &Err(refused));
            let refused = StorageError::Overloaded { limit, max };
            metrics.request::<()>(RequestLabel::Watch, &Err(refused));
        }
        let budgets = Budgets::new(&ServerLimits::default());
        let _seven = budgets.outbox.take(7).unwrap();
        let outer = Outer {
            connections: Connections::new(1, 1),
            budgets,
            certificates: Arc::default(),
            access: AccessControl::new(Configured::default(), Audit::off()).unwrap(),
        };
        registry.register_collector(Box::new(outer));
        let out = encoded(&registry);
        assert!(
            out.contains("storage_requests_total{kind=\"commit\",outcome=\"not_executed\"} 1\n")
        );
        assert!(out.contains("storage_connections_refused_total{reason=\"tls\"} 1\n"));
        assert!(out.contains("storage_quota_refused_total{quota=\"keyspace_bytes\"} 2\n"));
        assert!(out.contains("storage_quota_refused_total{quota=\"watches\"} 0\n"));
        assert!(out.contains("storage_budget_used_bytes{budget=\"outbox\"} 7\n"));
        for line in out.lines() {
            let sample = line
                .rsplit_once(' ')
                .is_some_and(|(_, value)| value.parse::<u64>().is_ok());
            assert!(line.starts_with("# ") || sample, "{line}");
        }
    }
}

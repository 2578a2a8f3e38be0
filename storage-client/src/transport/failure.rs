//! How connecting failed, in words for people.

use std::io;

use tokio::time::{Instant, timeout_at};

use super::tls;
use crate::end::EndKind;

/// Why there is no session.
#[derive(Debug)]
pub(crate) struct DialError {
    /// With the URL, for people.
    pub(crate) message: String,
    /// What is to come next.
    pub(crate) kind: EndKind,
}

impl From<String> for DialError {
    fn from(message: String) -> Self {
        Self {
            message,
            kind: EndKind::Lost,
        }
    }
}

/// Waits for one phase of connecting, up to the deadline.
pub(super) async fn within<T>(
    deadline: Instant,
    phase: &str,
    work: impl Future<Output = T>,
) -> Result<T, String> {
    timeout_at(deadline, work)
        .await
        .map_err(|_| format!("the connect timeout passed while waiting for {phase}"))
}

/// Why this phase failed: what TLS says of it, if it was that.
pub(super) fn explain_io(error: &io::Error, phase: &str) -> String {
    use io::ErrorKind as Kind;
    match tls::explain(error) {
        Some(text) => text,
        None if matches!(
            error.kind(),
            Kind::UnexpectedEof
                | Kind::ConnectionReset
                | Kind::BrokenPipe
                | Kind::ConnectionAborted
        ) =>
        {
            format!(
                "the server broke the connection off before {phase} ({error}); it may not speak this protocol, or not \
                 accept our certificate"
            )
        }
        None => format!("{phase} failed: {error}"),
    }
}

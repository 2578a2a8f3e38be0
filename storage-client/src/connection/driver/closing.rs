//! Notes whether the handles or the server want the socket to end, and whether another one follows.
//!
//! What is still to be done before the end is in [`end`](super::end).

use std::time::Duration;

use storage_protocol::native::close_code;
use tokio::time::Instant;

use crate::end::{End, EndKind};
use crate::requests::Ending;

/// See the module.
pub(super) struct Closing {
    /// Whether another socket follows if this one is lost.
    reconnects: bool,
    ending: Option<Ending>,
    /// The server shuts down: why, and after which time the client may connect again.
    draining: Option<(String, Duration)>,
    /// Requests in flight were failed or put back, and the closing handshake is over.
    over: bool,
}

impl Closing {
    pub(super) fn new(reconnects: bool) -> Self {
        Self {
            reconnects,
            ending: None,
            draining: None,
            over: false,
        }
    }

    pub(super) fn reconnects(&self) -> bool {
        self.reconnects
    }

    /// Whether another socket follows after this end.
    pub(super) fn follows(&self, end: &End) -> bool {
        self.reconnects && !end.is_final()
    }

    /// Notes the end that the handles want, if they do.
    pub(super) fn note_ending(&mut self, ending: Option<Ending>) {
        self.ending = ending.or(self.ending);
    }

    pub(super) fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// The latest time of the end that the handles want.
    pub(super) fn until(&self) -> Option<Instant> {
        match self.ending {
            Some(Ending::Graceful { until, .. } | Ending::Abandoned { until }) => Some(until),
            None => None,
        }
    }

    /// The end that the handles asked for. Closed with 1000, the session ends; with 1001, it stays.
    pub(super) fn end_ours(&self, why: &str) -> End {
        let mut end = End::ours(why);
        if let Some(Ending::Graceful { leave: true, .. }) = self.ending {
            end.close = Some(close_code::GOING_AWAY);
        }
        end
    }

    /// The server shuts down.
    pub(super) fn drain(&mut self, reason: String, retry_after: Duration) {
        self.draining = Some((reason, retry_after));
    }

    /// Whether no new requests are sent, since the server shuts down and another socket follows.
    pub(super) fn is_leaving(&self) -> bool {
        self.draining.is_some() && self.reconnects
    }

    /// The end of a socket whose server shuts down and has answered what it still had to; `None` if no other socket
    /// follows.
    pub(super) fn end_drained(&self) -> Option<End> {
        let (reason, retry_after) = self.draining.as_ref().filter(|_| self.reconnects)?;
        Some(End {
            kind: EndKind::Drained {
                retry_after: *retry_after,
            },
            close: Some(close_code::GOING_AWAY),
            ..End::lost(format!("the server goes away: {reason}"))
        })
    }

    pub(super) fn set_over(&mut self) {
        self.over = true;
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

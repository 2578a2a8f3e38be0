//! The end of a socket: which requests are answered first, and which are kept for the next one.

use storage_protocol::Outcome;

use super::Driver;
use crate::end::{End, EndKind};
use crate::requests::Ending;

impl Driver<'_> {
    /// Ends the socket if the handles want to close and their requests are done, or if the server shuts down and has
    /// answered what it still had to.
    pub(super) fn check_ending(&mut self) -> Result<(), End> {
        let done = match self.closing.ending() {
            None => false,
            Some(Ending::Abandoned { .. }) => self.wire.outbox_is_empty(),
            Some(Ending::Graceful { .. }) => {
                let intake = self.queue.intake();
                let queue_empty = intake.queue.is_empty() && intake.again.is_empty();
                queue_empty
                    && !self.in_flight.has_kept()
                    && self.wire.outbox_is_empty()
                    && !self.in_flight.is_awaited()
            }
        };
        if done {
            return Err(self.closing.end_ours("closed by this client"));
        }
        if self.closing.is_leaving()
            && self.wire.outbox_is_empty()
            && !self.in_flight.is_awaited()
            && let Some(end) = self.closing.end_drained()
        {
            return Err(end);
        }
        Ok(())
    }

    /// The socket is gone. If another follows, requests in flight are put back in their order; else they fail.
    pub(super) fn requeue_calls(&mut self, end: &End) {
        let follows = self.closing.follows(end);
        let again = self.in_flight.finish(end, follows);
        self.detach_watches(end, follows);
        let mut intake = self.queue.intake();
        self.outgoing.put_back(again, &mut intake);
    }

    /// Watches go on with the next socket, or end with this one.
    fn detach_watches(&mut self, end: &End, follows: bool) {
        let since = std::time::Instant::now();
        let opening = &mut self.session.watches;
        self.watches.drain_into(opening);
        for watch in opening {
            let error = end.error(Outcome::NotExecuted);
            if follows {
                watch.lose(since);
            } else if self.closing.reconnects() && end.kind != EndKind::Ours {
                watch.end_unresumed(error, self.welcome.position);
            } else {
                watch.end(error);
            }
        }
    }
}

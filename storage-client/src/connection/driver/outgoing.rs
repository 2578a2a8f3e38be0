//! What was taken from the queue and is not sent yet.
//!
//! It is empty between two polls, except for controls if the driver has just let other tasks run; what is left at the
//! socket's end goes back to the queue.

use std::collections::VecDeque;

use storage_protocol::native::COMMIT_WINDOW;

use super::in_flight::InFlight;
use crate::requests::{Call, Control, Intake, Submission};

/// See the module.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Sent before the requests. Bounded like those of the intake.
    pub(super) controls: Vec<Control>,
    /// Requests just taken from the queue; a field so that its allocation is reused.
    pub(super) requests: Vec<Submission>,
    /// Other tasks just had their turn: do not yield again.
    pub(super) yielded: bool,
}

impl Outgoing {
    /// Takes requests: at most as many as there is room for, and only as far as they fit, with those in flight, into
    /// the bound on bytes and the window of commit numbers after `sent`. Returns how many slots of the queue that
    /// frees.
    pub(super) fn take_requests(
        &mut self,
        intake: &mut Intake,
        room: usize,
        bytes_max: usize,
        in_flight: &InFlight,
        sent: u64,
    ) -> usize {
        let mut bytes = in_flight.bytes();
        let mut places = 0;
        let (mut first, mut next_number) = (in_flight.lowest_number(), sent + 1);
        while self.requests.len() < room {
            let from_queue = intake.again.is_empty();
            let line = if from_queue {
                &mut intake.queue
            } else {
                &mut intake.again
            };
            let Some(next) = line.front() else {
                break;
            };
            // A request that is larger than the whole bound is sent alone.
            if bytes > 0 && bytes + next.call.bytes() > bytes_max {
                break;
            }
            match next.call {
                Call::Repeat { number, .. } => {
                    first = Some(first.map_or(number, |first| first.min(number)));
                }
                // The server remembers this many commit numbers from the first that may be retried on.
                Call::Commit { .. } => {
                    if first.is_some_and(|first| next_number - first >= COMMIT_WINDOW) {
                        break;
                    }
                    first.get_or_insert(next_number);
                    next_number += 1;
                }
                Call::Send { .. } | Call::Watch { .. } => {}
            }
            bytes += next.call.bytes();
            places += usize::from(from_queue);
            self.requests.extend(line.pop_front());
        }
        places
    }

    /// The socket is gone: puts back the requests that are to be sent `again`, after them those that were not sent yet,
    /// all before what waits in the queue.
    pub(super) fn put_back(&mut self, mut again: VecDeque<Submission>, intake: &mut Intake) {
        again.extend(self.requests.drain(..));
        again.append(&mut intake.again);
        intake.again = again;
        // Watches that their applications dropped meanwhile.
        let dropped = self.controls.drain(..);
        let dropped = dropped.filter(|control| matches!(control, Control::Unwatch { .. }));
        intake.control.extend(dropped);
    }
}

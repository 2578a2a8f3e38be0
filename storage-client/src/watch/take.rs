//! The application's side of a watch: takes events out of the queue, requests progress, reads the status.

use std::task::{Context, Poll};

use storage_protocol::{
    Limit, Position, Result, StorageError, WatchEvent, WatchState, WatchStatus,
};

use super::events::Waiting;
use super::queue::{Gap, Life, Link, Stage};
use super::{MARKS_MAX, WatchShared};
use crate::sync::lock;

impl WatchShared {
    /// The next event, and how many bytes are to be granted to the server with it (0: none yet).
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(WatchEvent, u64)>>> {
        let mut queue = lock(&self.queue);
        let Some(Waiting {
            event,
            bytes,
            epoch,
        }) = queue.events.pop_first()
        else {
            if let Life::Ended(error) = &mut queue.life {
                return Poll::Ready(error.take().map(Err));
            }
            queue.application = Some(cx.waker().clone());
            return Poll::Pending;
        };
        match &event {
            WatchEvent::Commit(record) => {
                queue.told = Position {
                    epoch,
                    revision: record.revision,
                };
            }
            WatchEvent::State { .. } => queue.handed_over = true,
            WatchEvent::Progress { position, .. } => {
                queue.told = *position;
                queue.handed_over = false;
            }
            _ => {}
        }
        queue.consumed += i128::from(bytes);
        let mut granted = 0;
        if queue.link == Link::Open && !queue.is_over() {
            granted = queue.take_grant((self.window / 2).max(1));
        }
        Poll::Ready(Some(Ok((event, granted))))
    }

    /// Notes that the application requests a progress event. False: the watch is over, and nothing is to be sent.
    pub(crate) fn ask_mark(&self, token: u64) -> bool {
        let mut queue = lock(&self.queue);
        if queue.is_over() {
            return false;
        }
        if queue.asked.len() == MARKS_MAX {
            drop(queue);
            self.end(StorageError::Overloaded {
                limit: Limit::RequestsInFlight,
                max: MARKS_MAX as u64,
            });
            return false;
        }
        queue.asked.push_back((token, false));
        true
    }

    /// The status of the watch for the application.
    pub(crate) fn status(&self) -> WatchStatus {
        let queue = lock(&self.queue);
        let is_empty = queue.events.is_empty();
        let state = match queue.link {
            _ if queue.is_over() && is_empty => WatchState::Ended,
            Link::Lost { since } => WatchState::Disconnected { since },
            Link::Open if is_empty && queue.stage == Stage::Own && queue.gap != Gap::Undecided => {
                WatchState::Live
            }
            Link::Open | Link::Opening => WatchState::CatchingUp,
        };
        WatchStatus {
            state,
            position: queue.told,
        }
    }
}

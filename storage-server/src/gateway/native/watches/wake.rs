//! Which watches were woken: noted by wakers on any thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

use futures_util::task::AtomicWaker;
use storage_protocol::native::RequestId;

/// Ids of watches that were woken; filled by wakers on any thread, drained by the session's task.
#[derive(Debug, Default)]
pub(super) struct WokenWatches {
    pub(super) ids: Mutex<Vec<RequestId>>,
    pub(super) task: AtomicWaker,
}

#[derive(Debug)]
pub(super) struct WatchWaker {
    pub(super) id: RequestId,
    /// Whether the id is already in the line, in `WokenWatches`, or waits for a message in parts.
    pub(super) queued: AtomicBool,
    pub(super) woken: Arc<WokenWatches>,
}

impl Wake for WatchWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.woken
                .ids
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(self.id);
            self.woken.task.wake();
        }
    }
}

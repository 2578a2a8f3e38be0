//! A remote watch: its queue between the driver and the application, and its credit.
//!
//! The driver puts events in and never waits; the application takes them out at its leisure. The bytes of a message
//! are given back to the server when its last event is consumed, in portions of half the window. Marks cost nothing;
//! a plain mark right behind another replaces it, so that they do not pile up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use storage_protocol::native::RequestId;
use storage_protocol::{
    Limit, Position, Result, StorageError, WatchEvent, WatchSource, WatchState, WatchStatus,
};

use crate::connection::{Connection, Control, lock};

/// Unanswered marks of one watch; asking for more ends it.
const MARKS_MAX: usize = 1_024;

/// The queue of one watch.
pub(crate) struct WatchShared {
    /// Set by the driver when the request goes out.
    pub(crate) id: OnceLock<RequestId>,
    /// The bytes that the server was granted at first.
    window: u64,
    queue: Mutex<Queue>,
}

struct Queue {
    /// Filled by the driver, emptied by the application. Each event with the bytes that consuming it gives back.
    /// Bounded by the credit: the server may overdraw it by one message, and is thrown out if it goes far beyond.
    events: VecDeque<(WatchEvent, u64)>,
    /// What the server may still send, as we count it.
    balance: i128,
    /// Consumed and not yet given back.
    consumed: u64,
    /// Marks that were asked for and did not come.
    marks: usize,
    /// Why the watch is over; told after the events.
    end: Option<StorageError>,
    ended: bool,
    application: Option<Waker>,
    /// The last commit or mark that the application took.
    told: Position,
}

impl WatchShared {
    pub(crate) fn new(window: u64) -> Self {
        Self {
            id: OnceLock::new(),
            window,
            queue: Mutex::new(Queue {
                events: VecDeque::new(),
                balance: i128::from(window),
                consumed: 0,
                marks: 0,
                end: None,
                ended: false,
                application: None,
                told: Position::default(),
            }),
        }
    }

    /// Takes the events of one message of so many bytes.
    ///
    /// # Errors
    /// The server has sent far more than it was granted.
    pub(crate) fn push(
        &self,
        events: impl ExactSizeIterator<Item = WatchEvent>,
        bytes: u64,
    ) -> Result<(), String> {
        let mut queue = lock(&self.queue);
        if queue.ended {
            return Ok(());
        }
        if queue.balance < -i128::from(self.window) {
            let max = self.window;
            return Err(format!(
                "it sent events far beyond the credit of a watch (its window is {max} bytes)"
            ));
        }
        queue.balance -= i128::from(bytes);
        let last = events.len().saturating_sub(1);
        for (place, event) in events.enumerate() {
            queue
                .events
                .push_back((event, if place == last { bytes } else { 0 }));
        }
        wake(queue);
        Ok(())
    }

    /// Takes a mark, or a reset.
    ///
    /// # Errors
    /// It has a token, and none was asked for.
    pub(crate) fn push_mark(&self, event: WatchEvent) -> Result<(), String> {
        let mut queue = lock(&self.queue);
        match &event {
            WatchEvent::Progress { token: Some(_), .. } => {
                queue.marks = queue
                    .marks
                    .checked_sub(1)
                    .ok_or("it sent a mark with a token that nobody asked for")?;
                queue.events.push_back((event, 0));
            }
            // Of several in a row without events between them, the last says it all.
            _ => match queue.events.back_mut() {
                Some((last, _)) if is_plain_mark(last) && is_plain_mark(&event) => *last = event,
                _ => queue.events.push_back((event, 0)),
            },
        }
        wake(queue);
        Ok(())
    }

    /// Ends the watch: after the queued events comes `error`.
    pub(crate) fn end(&self, error: StorageError) {
        let mut queue = lock(&self.queue);
        if !queue.ended {
            queue.ended = true;
            queue.end = Some(error);
        }
        wake(queue);
    }
}

fn is_plain_mark(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Progress { token: None, .. })
}

fn wake(mut queue: std::sync::MutexGuard<'_, Queue>) {
    let application = queue.application.take();
    drop(queue);
    if let Some(application) = application {
        application.wake();
    }
}

/// The application's end of a watch. Dropping it ends the watch at the server, also before the server has answered.
pub(crate) struct RemoteWatch {
    /// Keeps the connection open as long as the watch lives.
    connection: Connection,
    shared: Arc<WatchShared>,
}

impl RemoteWatch {
    pub(crate) fn new(connection: Connection, shared: Arc<WatchShared>) -> Self {
        Self { connection, shared }
    }

    fn control(&self, control: Control) {
        self.connection.shared().control(control);
    }
}

impl WatchSource for RemoteWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        let mut queue = lock(&self.shared.queue);
        let Some((event, bytes)) = queue.events.pop_front() else {
            if queue.ended {
                return Poll::Ready(queue.end.take().map(Err));
            }
            queue.application = Some(cx.waker().clone());
            return Poll::Pending;
        };
        queue.consumed += bytes;
        match &event {
            WatchEvent::Commit(record) => queue.told.revision = record.revision,
            WatchEvent::Progress { position, .. } => queue.told = *position,
            _ => {}
        }
        let mut granted = 0;
        if queue.consumed >= (self.shared.window / 2).max(1) && !queue.ended {
            granted = std::mem::take(&mut queue.consumed);
            queue.balance += i128::from(granted);
        }
        drop(queue);
        if granted > 0 {
            let watch = self.shared.clone();
            self.control(Control::Credit {
                watch,
                bytes: granted,
            });
        }
        Poll::Ready(Some(Ok(event)))
    }

    fn request_progress(&mut self, token: u64) {
        let mut queue = lock(&self.shared.queue);
        if queue.ended {
            return;
        }
        if queue.marks == MARKS_MAX {
            drop(queue);
            return self.shared.end(StorageError::Overloaded {
                limit: Limit::RequestsInFlight,
                max: MARKS_MAX as u64,
            });
        }
        queue.marks += 1;
        drop(queue);
        let watch = self.shared.clone();
        self.control(Control::Probe { watch, token });
    }

    // What is buffered is bounded by the credit, and the server does not send it again.
    fn park(&mut self) {}

    fn status(&self) -> WatchStatus {
        let queue = lock(&self.shared.queue);
        let state = match (
            queue.ended && queue.events.is_empty(),
            queue.events.is_empty(),
        ) {
            (true, _) => WatchState::Ended,
            (false, true) => WatchState::Live,
            (false, false) => WatchState::CatchingUp,
        };
        WatchStatus {
            state,
            position: queue.told,
        }
    }
}

impl Drop for RemoteWatch {
    fn drop(&mut self) {
        let watch = self.shared.clone();
        self.control(Control::Unwatch { watch });
    }
}

//! A remote watch, as the application holds it.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use storage_protocol::{Result, WatchEvent, WatchSource, WatchStatus};

use crate::requests::{Control, Requests};
use crate::watch::WatchShared;

/// The application's end of a watch. Dropping it ends the watch at the server, also before the server has answered.
pub(super) struct RemoteWatch {
    /// Keeps the connection open as long as the watch lives.
    requests: Requests,
    shared: Arc<WatchShared>,
}

impl RemoteWatch {
    pub(super) fn new(requests: Requests, shared: Arc<WatchShared>) -> Self {
        Self { requests, shared }
    }
}

impl WatchSource for RemoteWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        let taken = ready!(self.shared.poll_take(cx));
        let Some(Ok((event, granted))) = taken else {
            return Poll::Ready(taken.map(|taken| taken.map(|(event, _)| event)));
        };
        if granted > 0 {
            self.requests.control(Control::Credit {
                watch: self.shared.clone(),
                bytes: granted,
            });
        }
        Poll::Ready(Some(Ok(event)))
    }

    fn request_progress(&mut self, token: u64) {
        if self.shared.ask_mark(token) {
            let watch = self.shared.clone();
            self.requests.control(Control::Probe { watch, token });
        }
    }

    // What is buffered is bounded by the credit, and the server does not send it again.
    fn park(&mut self) {}

    fn status(&self) -> WatchStatus {
        self.shared.status()
    }
}

impl Drop for RemoteWatch {
    fn drop(&mut self) {
        let watch = self.shared.clone();
        self.requests.control(Control::Unwatch { watch });
    }
}

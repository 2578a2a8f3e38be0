//! Scans and watches, as far as their peer may see: they end with [`StorageError::AccessChanged`] when that changes.

use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use async_trait::async_trait;
use futures_util::Stream;
use storage_protocol::{
    KeyRange, Position, Result, Scan, ScanItem, ScanSource, StorageError, Watch, WatchEvent,
    WatchSource, WatchStatus,
};

use super::{Guard, lock};
use crate::auth::quotas::Permit;
use crate::auth::rules::Cut;

/// A scan as far as its peer may read.
pub(super) struct GuardedScan {
    pub(super) inner: Scan,
    pub(super) guard: Arc<Guard>,
    /// What was asked for.
    pub(super) ranges: Vec<KeyRange>,
    /// What is read of it.
    pub(super) parts: Vec<KeyRange>,
    /// Of the rules that the parts are by.
    pub(super) version: u64,
    pub(super) position: Position,
}

#[async_trait]
impl ScanSource for GuardedScan {
    async fn next_page(&mut self) -> Result<Option<Vec<ScanItem>>> {
        let version = self.guard.control.version();
        if version != self.version || self.guard.is_revoked() {
            if self.guard.cut_reads(&self.ranges)? != self.parts {
                return Err(StorageError::AccessChanged);
            }
            self.version = version;
        }
        self.inner.next_page().await
    }

    fn is_over(&self) -> bool {
        self.inner.is_over()
    }
}

/// A watch as far as its peer may see.
pub(super) struct GuardedWatch {
    pub(super) inner: Watch,
    pub(super) guard: Arc<Guard>,
    pub(super) id: u64,
    /// What was asked for.
    pub(super) range: KeyRange,
    /// What is told of it.
    pub(super) cut: Cut,
    /// Of the rules that the cut is by.
    pub(super) version: u64,
    /// It has ended by a change of the grants.
    pub(super) changed: bool,
    /// It counts for its principal and its keyspace.
    pub(super) _places: [Permit; 2],
}

impl GuardedWatch {
    /// Whether other keys may be watched than those that it tells.
    fn has_changed(&mut self) -> bool {
        if self.guard.is_revoked() {
            return true;
        }
        let version = self.guard.control.version();
        if version != self.version && !self.changed {
            self.version = version;
            let grants = self.guard.grants();
            let now = grants.map(|grants| grants.watch.cut(&self.range));
            self.changed = now.as_ref() != Ok(&self.cut) && !self.range.is_empty();
        }
        self.changed
    }

    /// The part of an event that may be seen.
    fn visible(&self, event: WatchEvent) -> Option<WatchEvent> {
        if !matches!(self.cut, Cut::Several { .. }) {
            return Some(event);
        }
        match event {
            WatchEvent::Commit(record) => {
                let changes = record.changes.iter().enumerate();
                let inside = changes.filter(|(_, change)| self.cut.contains(&change.key));
                let places: Vec<_> = inside.map(|(place, _)| place).collect();
                record.pick(&places).map(WatchEvent::Commit)
            }
            WatchEvent::State { key, .. } if !self.cut.contains(&key) => None,
            event => Some(event),
        }
    }

    /// It is woken when the rules change.
    fn register(&self, waker: &Waker) {
        let mut watches = lock(&self.guard.watches);
        match watches.wakers.get_mut(&self.id) {
            Some(known) => known.clone_from(waker),
            None => {
                watches.wakers.insert(self.id, waker.clone());
            }
        }
    }
}

impl WatchSource for GuardedWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        loop {
            if self.has_changed() {
                return Poll::Ready(Some(Err(StorageError::AccessChanged)));
            }
            let polled = std::pin::Pin::new(&mut self.inner).poll_next(cx);
            if polled.is_pending() {
                self.register(cx.waker());
                // Ordering: registered first. A change before that is seen here, one behind it wakes.
                if !self.has_changed() {
                    return Poll::Pending;
                }
                continue;
            }
            match ready!(polled) {
                Some(Ok(event)) => {
                    if let Some(event) = self.visible(event) {
                        return Poll::Ready(Some(Ok(event)));
                    }
                }
                ended => return Poll::Ready(ended),
            }
        }
    }

    fn request_progress(&mut self, token: u64) {
        self.inner.request_progress(token);
    }

    fn park(&mut self) {
        self.inner.park();
    }

    fn status(&self) -> WatchStatus {
        self.inner.status()
    }
}

impl Drop for GuardedWatch {
    fn drop(&mut self) {
        lock(&self.guard.watches).wakers.remove(&self.id);
    }
}

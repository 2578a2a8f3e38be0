//! A scan as its caller holds it: pages, read one at a time from one snapshot.

use std::sync::Arc;

use async_trait::async_trait;
use storage_protocol::{Limit, Result, ScanItem, ScanSource, StorageError};
use tokio::sync::OwnedSemaphorePermit;

use super::cursor::ScanCursor;
use super::snapshots::PinnedSnapshot;
use crate::engine::Room;
use crate::engine::rocks::{EngineShared, PAGE_BYTES};

/// The pages of a scan.
pub(crate) struct RocksScan {
    pub(crate) shared: Arc<EngineShared>,
    /// `None` when the scan is over, or while a page is read.
    pub(crate) state: Option<(PinnedSnapshot, ScanCursor)>,
    /// Set while a page is read, and left set if the page was lost: the pages after it would follow on a hole.
    pub(crate) failure: Option<StorageError>,
    pub(crate) place: Option<OwnedSemaphorePermit>,
    /// Where its pages are counted.
    pub(crate) room: Arc<dyn Room>,
}

#[async_trait]
impl ScanSource for RocksScan {
    async fn next_page(&mut self) -> Result<Option<Vec<ScanItem>>> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let Some((snapshot, mut cursor)) = self.state.take() else {
            return Ok(None);
        };
        self.failure = Some(StorageError::invalid(
            "an earlier call for the next page was dropped, so that page is lost: start the scan again",
        ));
        let room = self.room.clone();
        let read = move |_: &EngineShared| {
            let page = snapshot.read(|snapshot| cursor.next_page(snapshot, PAGE_BYTES, &*room));
            Ok((page, snapshot, cursor))
        };
        let read = self.shared.on_pool(read).await;
        self.failure = read.as_ref().err().cloned();
        let (page, snapshot, cursor) = read?;
        let no_room = |error: &StorageError| {
            let limit = Limit::Outbox;
            matches!(error, StorageError::Overloaded { limit: of, .. } if *of == limit)
        };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                if no_room(&error) {
                    self.state = Some((snapshot, cursor));
                } else {
                    self.failure = Some(error.clone());
                }
                return Err(error);
            }
        };
        if page.is_empty() {
            self.place = None;
            return Ok(None);
        }
        if cursor.is_over() {
            self.place = None;
        } else {
            self.state = Some((snapshot, cursor));
        }
        Ok(Some(page))
    }

    fn is_over(&self) -> bool {
        self.state.is_none() && self.failure.is_none()
    }
}

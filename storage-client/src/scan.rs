//! A remote scan: the pages after the first, asked for one by one.
//!
//! The server holds the snapshot until the last page, until the scan is dropped, or until the socket is lost: a scan does
//! not outlive it (`SnapshotExpired`), since no other snapshot would be at its revision. A page that may have got lost (a
//! failed or a dropped call) ends the scan: what follows would have a hole.

use async_trait::async_trait;
use storage_protocol::native::{ClientMessage, ServerMessage};
use storage_protocol::{Result, ScanItem, ScanSource, StorageError};

use crate::connection::{Call, Expect, OpenScan};
use crate::remote::RemoteStorage;

/// See the module.
pub(crate) struct RemoteScan {
    storage: RemoteStorage,
    first: Option<Vec<ScanItem>>,
    /// `None`: there is no more.
    open: Option<OpenScan>,
    /// Set while a page is asked for, and left set where it did not come.
    failure: Option<StorageError>,
}

impl RemoteScan {
    pub(crate) fn new(
        storage: RemoteStorage,
        first: Vec<ScanItem>,
        open: Option<OpenScan>,
    ) -> Self {
        Self {
            storage,
            first: Some(first),
            open,
            failure: None,
        }
    }

    async fn ask(&mut self, scan: u64, socket: u64) -> Result<Vec<ScanItem>> {
        let call = Call::Send {
            packet: ClientMessage::ScanNext { scan }.encode(None),
            expect: Expect::NextPage { scan, socket },
        };
        match self.storage.request(call).await?.message {
            ServerMessage::Page {
                scan: more, items, ..
            } => {
                if more.is_none()
                    && let Some(open) = self.open.take()
                {
                    open.finished();
                }
                Ok(items)
            }
            _ => Err(RemoteStorage::wrong_answer()),
        }
    }
}

#[async_trait]
impl ScanSource for RemoteScan {
    async fn next_page(&mut self) -> Result<Option<Vec<ScanItem>>> {
        if let Some(items) = self.first.take()
            && !items.is_empty()
        {
            return Ok(Some(items));
        }
        loop {
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
            let Some((scan, socket)) = self.open.as_ref().map(|open| (open.number, open.socket))
            else {
                return Ok(None);
            };
            self.failure = Some(StorageError::invalid(
                "an earlier call for the next page was dropped, so that page is lost: start the scan again",
            ));
            let page = self.ask(scan, socket).await;
            self.failure = page.as_ref().err().cloned();
            let items = page?;
            if !items.is_empty() {
                return Ok(Some(items));
            }
        }
    }
}

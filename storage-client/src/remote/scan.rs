//! A remote scan: the pages after the first, asked for one by one.
//!
//! The server holds the snapshot until the last page, until the scan is dropped, or until the socket is lost: a scan does
//! not outlive it (`SnapshotExpired`), since no other snapshot would be at its revision. A page that may have got lost (a
//! failed or a dropped call) ends the scan: what follows would have a hole.

use async_trait::async_trait;
use storage_protocol::native::{ClientMessage, ServerMessage};
use storage_protocol::{Result, Revision, ScanItem, ScanSource, StorageError};

use crate::order::ScanOrder;
use crate::requests::{Answer, Call, Expect, OpenScan, Requests};

/// See the module.
pub(super) struct RemoteScan {
    requests: Requests,
    order: ScanOrder,
    first: Option<Vec<ScanItem>>,
    /// `None`: there is no more.
    open: Option<OpenScan>,
    /// Set while a page is asked for, and left set where it did not come.
    failure: Option<StorageError>,
}

impl RemoteScan {
    /// The scan, with the answer to its first request, and the revision it is at.
    pub(super) fn begin(
        requests: Requests,
        order: ScanOrder,
        answer: Answer,
    ) -> Result<(Revision, Self)> {
        let mut scan = Self {
            requests,
            order,
            first: None,
            open: None,
            failure: None,
        };
        let (revision, first) = scan.take(answer)?;
        scan.first = Some(first);
        Ok((revision, scan))
    }

    async fn ask(&mut self, scan: u64, socket: u64) -> Result<Vec<ScanItem>> {
        let call = Call::Send {
            packet: ClientMessage::ScanNext { scan }.encode(None),
            expect: Expect::NextPage { scan, socket },
        };
        let answer = self.requests.request(call).await?;
        Ok(self.take(answer)?.1)
    }

    /// The items of a page, if they are what may come next.
    fn take(&mut self, answer: Answer) -> Result<(Revision, Vec<ScanItem>)> {
        let Answer {
            message,
            socket,
            scan,
            ..
        } = answer;
        let ServerMessage::Page {
            revision,
            scan: more,
            items,
        } = message
        else {
            return Err(Answer::of_wrong_type());
        };
        // Of the first page only.
        self.open = scan.or_else(|| self.open.take());
        if more.is_none()
            && let Some(open) = self.open.take()
        {
            open.finished();
        }
        self.order
            .page(revision, &items, more.is_some())
            .map_err(|what| self.requests.misbehaved(what, socket))?;
        Ok((revision, items))
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
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let Some((scan, socket)) = self.open.as_ref().map(|open| (open.number, open.socket)) else {
            return Ok(None);
        };
        self.failure = Some(StorageError::invalid(
            "an earlier call for the next page was dropped, so that page is lost: start the scan again",
        ));
        let page = self.ask(scan, socket).await;
        self.failure = page.as_ref().err().cloned();
        // An empty page is the last one.
        Ok(Some(page?).filter(|items| !items.is_empty()))
    }
}

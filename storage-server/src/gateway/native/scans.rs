//! The open scans of a session, by number, and how long they may be idle.
//!
//! While a page is being read its scan is in that request's future; if the request fails or is given up, the scan ends.
//! What an open scan holds besides its snapshot is small: its range, and the keys that the index gave it, which the
//! engine bounds. Its pages are counted in a room of its own, one at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use storage_protocol::native::ServerMessage;
use storage_protocol::{Scan, ScanItem, StorageError};

use crate::engine::SNAPSHOT_IDLE_MAX;
use crate::limits::room::{AnswerRoom, Reach};
use crate::metrics::Metrics;

type Result<T> = std::result::Result<T, StorageError>;

/// A scan with the room that its pages are counted in.
#[derive(Debug)]
pub(super) struct OpenScan {
    pub(super) scan: Scan,
    pub(super) room: AnswerRoom,
}

/// A page, and the scan after it. The page is counted until this is dropped, or the scan's next page begins.
pub(super) struct Turn {
    items: Vec<ScanItem>,
    open: OpenScan,
    is_last: bool,
}

#[derive(Debug)]
struct ScanSlot {
    /// `None`: a page is being read.
    rest: Option<OpenScan>,
    used: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Scans {
    open: HashMap<u64, ScanSlot>,
    next: u64,
    metrics: Arc<Metrics>,
}

impl Scans {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            open: HashMap::new(),
            next: 0,
            metrics,
        }
    }

    /// A number for a scan that is being opened; `None` at `max` open ones.
    pub(super) fn open(&mut self, max: usize) -> Option<u64> {
        if self.open.len() >= max {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.open.insert(
            number,
            ScanSlot {
                rest: None,
                used: Instant::now(),
            },
        );
        self.metrics.scans.inc();
        Some(number)
    }

    /// Takes a scan out for its next page.
    pub(super) fn take(&mut self, number: u64) -> Result<OpenScan> {
        match self.open.get_mut(&number) {
            Some(slot) => slot.rest.take().ok_or_else(|| {
                StorageError::invalid(format!("a page of scan {number} is on its way already"))
            }),
            None if number < self.next => Err(StorageError::SnapshotExpired),
            None => Err(StorageError::invalid(format!("there is no scan {number}"))),
        }
    }

    /// Puts back a scan whose page was not read.
    pub(super) fn put_back(&mut self, number: u64, open: OpenScan) {
        if let Some(slot) = self.open.get_mut(&number) {
            slot.rest = Some(open);
        }
    }

    /// The message of a page; keeps the scan if there is more.
    pub(super) fn page(&mut self, number: u64, turn: Turn, now: Instant) -> ServerMessage {
        let Turn {
            items,
            open,
            is_last,
        } = turn;
        let revision = open.scan.position().revision;
        // Its items are counted in the message from here on.
        open.room.begin(Reach::Within);
        let slot = self.open.get_mut(&number).filter(|_| !is_last);
        let scan = match slot {
            Some(slot) => {
                *slot = ScanSlot {
                    rest: Some(open),
                    used: now,
                };
                Some(number)
            }
            // The last page, or the scan was closed meanwhile.
            None => {
                self.remove(number);
                None
            }
        };
        ServerMessage::Page {
            revision,
            scan,
            items,
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        if self.open.remove(&number).is_some() {
            self.metrics.scans.dec();
        }
    }

    pub(super) fn clear(&mut self) {
        self.metrics.scans.dec_by(self.open.len() as u64);
        self.open.clear();
    }

    /// When the first scan will have been idle for too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let resting = self.open.values().filter(|slot| slot.rest.is_some());
        resting.map(|slot| slot.used + SNAPSHOT_IDLE_MAX).min()
    }

    /// Closes the scans that were idle for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let stale = |slot: &ScanSlot| {
            let rested = now.saturating_duration_since(slot.used);
            slot.rest.is_some() && rested >= SNAPSHOT_IDLE_MAX
        };
        let numbers: Vec<_> = self
            .open
            .iter()
            .filter(|(_, slot)| stale(slot))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.remove(number);
        }
    }
}

impl Drop for Scans {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How the attempt to read a page went.
pub(super) enum PageRead {
    Read(Turn),
    /// There was no room for it; the scan stays where it was.
    NoRoom(OpenScan),
}

/// The next page of a scan.
pub(super) async fn read_page(mut open: OpenScan) -> Result<PageRead> {
    match open.scan.next_page().await {
        Ok(items) => {
            let is_last = items.is_none() || open.scan.is_over();
            Ok(PageRead::Read(Turn {
                items: items.unwrap_or_default(),
                open,
                is_last,
            }))
        }
        Err(_) if open.room.was_refused() => Ok(PageRead::NoRoom(open)),
        Err(error) => Err(error),
    }
}

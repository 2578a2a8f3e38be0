//! The open scans of a session: by number, with their lease.
//!
//! While a page is on its way its scan is in that request's future; a request that fails or is given up takes the
//! scan with it. A short page is followed at once by a look at what comes behind it, so that the last page says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use storage_protocol::native::ServerMessage;
use storage_protocol::{KeyState, Revision, Scan, ScanItem, StorageError};

use crate::metrics::Metrics;

/// How long a scan may rest: the engine's lease.
const LEASE: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, StorageError>;

/// A page, and where the scan stands behind it.
pub(super) struct Turn {
    revision: Revision,
    items: Vec<ScanItem>,
    /// The scan, and the page behind this one if it was looked at; `None`: this was the last page.
    rest: Option<(Scan, Option<Vec<ScanItem>>)>,
}

#[derive(Debug)]
struct Slot {
    /// `None`: a page is on its way.
    rest: Option<(Scan, Option<Vec<ScanItem>>)>,
    used: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Scans {
    open: HashMap<u64, Slot>,
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
            Slot {
                rest: None,
                used: Instant::now(),
            },
        );
        self.metrics.scans.add(1);
        Some(number)
    }

    /// Takes a scan out for its next page.
    pub(super) fn take(&mut self, number: u64) -> Result<(Scan, Option<Vec<ScanItem>>)> {
        match self.open.get_mut(&number) {
            Some(slot) => slot.rest.take().ok_or_else(|| {
                StorageError::invalid(format!("a page of scan {number} is on its way already"))
            }),
            None if number < self.next => Err(StorageError::SnapshotExpired),
            None => Err(StorageError::invalid(format!("there is no scan {number}"))),
        }
    }

    /// The message of a page; keeps the scan if there is more.
    pub(super) fn page(&mut self, number: Option<u64>, turn: Turn, now: Instant) -> ServerMessage {
        let Turn {
            revision,
            items,
            rest,
        } = turn;
        let slot = number.and_then(|number| Some((number, self.open.get_mut(&number)?)));
        let scan = match (slot, rest) {
            (Some((number, slot)), Some(rest)) => {
                *slot = Slot {
                    rest: Some(rest),
                    used: now,
                };
                Some(number)
            }
            // The last page, or the scan was closed meanwhile.
            _ => {
                number.inspect(|number| self.remove(*number));
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
            self.metrics.scans.subtract(1);
        }
    }

    pub(super) fn clear(&mut self) {
        self.metrics.scans.subtract(self.open.len() as u64);
        self.open.clear();
    }

    /// When the lease of the first one ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let resting = self.open.values().filter(|slot| slot.rest.is_some());
        resting.map(|slot| slot.used + LEASE).min()
    }

    /// Frees the scans that rested too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let stale =
            |slot: &Slot| slot.rest.is_some() && now.saturating_duration_since(slot.used) >= LEASE;
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

/// The next page of a scan; `ahead`: the one that was looked at already.
pub(super) async fn read_page(mut scan: Scan, ahead: Option<Vec<ScanItem>>) -> Result<Turn> {
    let revision = scan.position().revision;
    let items = match ahead {
        Some(items) => Some(items),
        None => scan.next_page().await?,
    };
    let Some(items) = items else {
        return Ok(Turn {
            revision,
            items: Vec::new(),
            rest: None,
        });
    };
    if page_bytes(&items) >= Scan::PAGE_BYTES / 2 {
        return Ok(Turn {
            revision,
            items,
            rest: Some((scan, None)),
        });
    }
    let ahead = scan.next_page().await?;
    let rest = ahead.map(|ahead| (scan, Some(ahead)));
    Ok(Turn {
        revision,
        items,
        rest,
    })
}

fn page_bytes(items: &[ScanItem]) -> usize {
    let value = |item: &ScanItem| match &item.state {
        KeyState::Live(entry) => Bytes::len(&entry.value),
        KeyState::Removed(_) => 0,
    };
    items.iter().map(|item| item.key.len() + value(item)).sum()
}

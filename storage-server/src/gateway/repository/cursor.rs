//! A walk over keys that goes on behind a snapshot that expired, for answers that are sent as slowly as they are taken.

use std::collections::VecDeque;
use std::sync::Arc;

use storage_protocol::{Key, KeyRange, Result, Scan, ScanItem, ScanOptions, Storage, StorageError};

/// See the module. Each key comes once, in order; what changes meanwhile may be seen or not.
#[derive(Debug)]
pub(super) struct Cursor {
    storage: Arc<dyn Storage>,
    /// What is left.
    range: KeyRange,
    scan: Option<Scan>,
    page: VecDeque<ScanItem>,
}

impl Cursor {
    pub(super) fn new(storage: &Arc<dyn Storage>, range: KeyRange) -> Self {
        Self {
            storage: storage.clone(),
            range,
            scan: None,
            page: VecDeque::new(),
        }
    }

    /// The next key.
    pub(super) async fn next(&mut self) -> Result<Option<Key>> {
        loop {
            if let Some(item) = self.page.pop_front() {
                self.range.start = behind(&item.key);
                return Ok(Some(item.key));
            }
            let scan = match &mut self.scan {
                Some(scan) => scan,
                None if self.range.is_empty() => return Ok(None),
                None => {
                    let options = ScanOptions {
                        keys_only: true,
                        ..ScanOptions::default()
                    };
                    let scan = self.storage.scan(self.range.clone(), options).await?;
                    self.scan.insert(scan)
                }
            };
            match scan.next_page().await {
                Ok(Some(page)) => self.page = page.into(),
                Ok(None) => return Ok(None),
                Err(StorageError::SnapshotExpired) => self.scan = None,
                Err(error) => return Err(error),
            }
        }
    }
}

/// The first key that is behind this one.
fn behind(key: &[u8]) -> Key {
    [key, &[0]].concat().into()
}

/// The first key of a range.
pub(super) async fn first(storage: &dyn Storage, range: KeyRange) -> Result<Option<Key>> {
    if range.is_empty() {
        return Ok(None);
    }
    let options = ScanOptions {
        keys_only: true,
        limit: Some(1),
        ..ScanOptions::default()
    };
    let mut scan = storage.scan(range, options).await?;
    let page = scan.next_page().await?.unwrap_or_default();
    Ok(page.into_iter().next().map(|item| item.key))
}

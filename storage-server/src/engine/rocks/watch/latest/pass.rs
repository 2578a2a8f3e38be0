//! Reads the pages of a `Latest` watch's pass: on the read pool, from a pinned snapshot, and from a newer one if that
//! was released meanwhile.

use std::sync::Arc;

use storage_protocol::{KeyRange, Result, Revision, ScanItem, StorageError};
use tokio_util::task::AbortOnDropHandle;

use super::super::pages::Ticket;
use crate::blocking;
use crate::engine::rocks::read::{ChangesCursor, ChangesPage, PinnedSnapshot, read_failed};
use crate::engine::rocks::store::KeyspaceState;
use crate::engine::rocks::{EngineShared, PAGE_BYTES, closed};

/// From where the next page of a pass is read.
#[derive(Clone, Debug)]
pub(super) enum NextPage {
    /// The first page: what changed after a revision; with `fresh` everything there is, without tombstones.
    Mark { progress: Revision, fresh: bool },
    /// From the pass's snapshot, unless it was released.
    Snapshot(PinnedSnapshot, ChangesCursor),
    /// From a new snapshot: the pass has none any more.
    Cursor(ChangesCursor),
}

/// A page that was read.
#[derive(Debug)]
pub(crate) struct LatestPage {
    pub(super) snapshot: PinnedSnapshot,
    /// After this page; `None` if the keyspace has no entries yet.
    pub(super) cursor: Option<ChangesCursor>,
    /// What was delivered before is to be forgotten.
    pub(super) reset: bool,
    pub(super) items: Vec<ScanItem>,
    pub(super) is_last: bool,
}

/// Reads a page on the pool, when it is the pass's turn there.
pub(super) async fn read_page(
    shared: Arc<EngineShared>,
    keyspace: Arc<KeyspaceState>,
    range: KeyRange,
    from: NextPage,
) -> Result<Ticket<LatestPage>> {
    // On a task of its own, so that no permit is ever held by a watch that is not polled; the task ends with the watch.
    let reading = tokio::spawn(async move {
        let pass = shared.passes.clone().acquire_owned().await;
        let place = shared.readers.clone().acquire_owned().await;
        let places = (pass.map_err(|_| closed())?, place.map_err(|_| closed())?);
        let read = move || {
            let _places = places;
            let (page, bytes) = from.page(&shared, &keyspace, range)?;
            Ok(shared.pages.keep(page, bytes))
        };
        blocking::read(read).await.unwrap_or_else(read_failed)
    });
    AbortOnDropHandle::new(reading)
        .await
        .unwrap_or_else(read_failed)
}

impl NextPage {
    /// Reads the page; with its size in bytes. Blocks.
    fn page(
        self,
        shared: &EngineShared,
        keyspace: &KeyspaceState,
        range: KeyRange,
    ) -> Result<(LatestPage, usize)> {
        let (snapshot, cursor, reset) = match self {
            Self::Snapshot(snapshot, mut cursor) => {
                match snapshot.read(|snapshot| cursor.next_page(snapshot, PAGE_BYTES)) {
                    Err(StorageError::SnapshotExpired) => renew(shared, keyspace, range, cursor),
                    page => return Ok(LatestPage::new(snapshot, Some(cursor), false, Some(page?))),
                }
            }
            Self::Cursor(cursor) => renew(shared, keyspace, range, cursor),
            Self::Mark { progress, fresh } => begin(shared, keyspace, range, progress, fresh),
        };
        let Some(mut cursor) = cursor else {
            return Ok(LatestPage::new(snapshot, None, reset, None));
        };
        // Just pinned, so not released yet.
        let page = snapshot.read(|snapshot| cursor.next_page(snapshot, PAGE_BYTES))?;
        Ok(LatestPage::new(snapshot, Some(cursor), reset, Some(page)))
    }
}

/// The snapshot of a pass; the cursor over it, if there is anything in the keyspace; whether the pass is one over
/// everything, after a `Reset`.
type Begun = (PinnedSnapshot, Option<ChangesCursor>, bool);

fn begin(
    shared: &EngineShared,
    keyspace: &KeyspaceState,
    range: KeyRange,
    progress: Revision,
    fresh: bool,
) -> Begun {
    let snapshot = shared.snapshots.pin(&shared.store);
    // Ordering: after the snapshot. The compacted revision is raised before tombstones are removed, so if the snapshot
    // lacks tombstones, the compacted revision read here shows it.
    let reset = !fresh && progress < keyspace.compacted();
    let (after, tombstones_after) = match fresh || reset {
        true => (
            if reset { Revision::ZERO } else { progress },
            snapshot.revision(),
        ),
        false => (progress, Revision::ZERO),
    };
    let cursor = |id| ChangesCursor::new(id, range, after, tombstones_after);
    let cursor = keyspace.id().map(cursor);
    (snapshot, cursor, reset)
}

/// The same pass with a newer snapshot.
fn renew(
    shared: &EngineShared,
    keyspace: &KeyspaceState,
    range: KeyRange,
    cursor: ChangesCursor,
) -> Begun {
    let snapshot = shared.snapshots.pin(&shared.store);
    // Ordering: as above.
    if cursor.needs_tombstones_after() >= keyspace.compacted() {
        return (snapshot, Some(cursor), false);
    }
    let all = |id| ChangesCursor::new(id, range, Revision::ZERO, snapshot.revision());
    let cursor = keyspace.id().map(all);
    (snapshot, cursor, true)
}

impl LatestPage {
    fn new(
        snapshot: PinnedSnapshot,
        cursor: Option<ChangesCursor>,
        reset: bool,
        page: Option<ChangesPage>,
    ) -> (Self, usize) {
        let page = page.unwrap_or(ChangesPage {
            items: Vec::new(),
            bytes: 0,
            is_last: true,
        });
        let bytes = size_of::<Self>() + page.bytes + page.items.len() * size_of::<ScanItem>();
        let page = Self {
            snapshot,
            cursor,
            reset,
            items: page.items,
            is_last: page.is_last,
        };
        (page, bytes)
    }
}

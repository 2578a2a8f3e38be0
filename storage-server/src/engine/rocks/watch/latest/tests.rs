//! Passes that are held up, and watches that keep up.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, KeyState, Keyspace, Position, Revision, Scan, ScanOptions,
    Storage, StorageExt, Watch, WatchEvent, WatchOptions, WatchStart,
};

use crate::engine::rocks::watch::{RESTS_BYTES_MAX, UNTAKEN_BYTES_MAX};
use crate::engine::rocks::{EngineOptions, RocksEngine, RocksSession};

struct House {
    engine: Arc<RocksEngine>,
    storage: Arc<RocksSession>,
    name: Keyspace,
    _folder: tempfile::TempDir,
}

impl House {
    fn new(change: impl FnOnce(&mut EngineOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = EngineOptions {
            disk_reserve_bytes: 0,
            durability: crate::engine::rocks::Durability::Os,
            ..EngineOptions::new(folder.path().join("data"))
        };
        change(&mut options);
        let engine = RocksEngine::open(options).unwrap();
        let name = Keyspace::new("model").unwrap();
        let storage = engine.storage(&name);
        Self {
            engine,
            storage,
            name,
            _folder: folder,
        }
    }

    /// So many keys of 1 KB: five pages for each thousand.
    async fn fill(&self, keys: u32) -> Position {
        let batch = (0..keys).fold(Batch::new(), |batch, n| {
            batch.put(key(n), vec![b'v'; 1_000])
        });
        let options = CommitOptions::default();
        self.storage.commit(batch, options).await.unwrap()
    }

    async fn latest(&self, start: WatchStart) -> Watch {
        let options = WatchOptions::latest(start);
        self.storage.watch(KeyRange::all(), options).await.unwrap()
    }

    async fn entries(&self) -> BTreeMap<Key, Bytes> {
        let scan: Scan = self
            .storage
            .scan(KeyRange::all(), ScanOptions::default())
            .await
            .unwrap();
        let items = scan.collect().await.unwrap();
        items
            .into_iter()
            .filter_map(|item| match item.state {
                KeyState::Live(entry) => Some((item.key, entry.value)),
                KeyState::Removed(_) => None,
            })
            .collect()
    }
}

fn key(n: u32) -> Bytes {
    Bytes::from(format!("{n:06}"))
}

/// What a reader makes of a watch.
#[derive(Default)]
struct Reader {
    entries: BTreeMap<Key, Bytes>,
    /// Keys that came since the last progress event, with their revisions.
    pass: BTreeMap<Key, Revision>,
    /// Keys that came again within a pass.
    again: usize,
    resets: usize,
}

impl Reader {
    fn take(&mut self, event: WatchEvent) -> Option<Position> {
        match event {
            WatchEvent::State { key, state } => {
                let revision = state.revision();
                if let Some(before) = self.pass.insert(key.clone(), revision) {
                    assert!(before < revision, "a key came again, and no newer");
                    self.again += 1;
                }
                match state {
                    KeyState::Live(entry) => drop(self.entries.insert(key, entry.value)),
                    KeyState::Removed(_) => drop(self.entries.remove(&key)),
                }
                None
            }
            WatchEvent::Reset => {
                self.entries.clear();
                self.pass.clear();
                self.resets += 1;
                None
            }
            WatchEvent::Progress { position, .. } => {
                self.pass.clear();
                Some(position)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn states(&mut self, watch: &mut Watch, count: usize) {
        for _ in 0..count {
            let event = watch.next().await.unwrap().unwrap();
            assert!(self.take(event).is_none(), "the pass is longer");
        }
    }

    async fn read_to_mark(&mut self, watch: &mut Watch) -> Position {
        loop {
            let event = watch.next().await.unwrap().unwrap();
            if let Some(progress) = self.take(event) {
                return progress;
            }
        }
    }
}

/// Holds a pass from the beginning up while much of what it told, and was about to tell, changes.
async fn hold_up(house: &House, park: bool, forget: bool) -> Reader {
    house.fill(3_000).await;
    let (mut watch, mut reader) = (house.latest(WatchStart::Beginning).await, Reader::default());
    reader.states(&mut watch, 500).await;
    if park {
        watch.park();
    }
    let batch = Batch::new()
        .put(key(1), "changed")
        .remove(key(2))
        .put(key(2_900), "changed")
        .remove(key(2_901))
        .put("new", "new");
    let last = house
        .storage
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
    if forget {
        // The tombstones are gone before the pass goes on.
        house.storage.put(key(3), "later".into()).await.unwrap();
        let (engine, name) = (house.engine.clone(), house.name.clone());
        tokio::task::spawn_blocking(move || engine.forget_tombstones(&name).unwrap())
            .await
            .unwrap();
    }
    house.engine.expire_snapshots();
    let progress = reader.read_to_mark(&mut watch).await;
    assert!(progress.revision >= last.revision);
    assert_eq!(reader.entries, house.entries().await);
    reader
}

#[tokio::test]
async fn a_pass_that_is_held_up_beyond_its_snapshot_goes_on_behind_what_it_told() {
    for park in [false, true] {
        let house = House::new(|_| {});
        let reader = hold_up(&house, park, false).await;
        // The page at hand is older; the changed and the removed one come again.
        assert_eq!((reader.again, reader.resets), (2, 0), "parked: {park}");
    }
}

#[tokio::test]
async fn a_held_up_pass_begins_anew_where_the_tombstones_of_what_it_told_are_gone() {
    let house = House::new(|options| options.tombstones_max = 0);
    let reader = hold_up(&house, true, true).await;
    assert_eq!(reader.resets, 1);
}

#[tokio::test]
async fn a_watch_that_keeps_up_is_told_without_a_snapshot() {
    let house = House::new(|_| {});
    let start = house.fill(10).await;
    let (mut watch, mut reader) = (
        house.latest(WatchStart::After(start)).await,
        Reader::default(),
    );
    reader.entries = house.entries().await;
    reader.read_to_mark(&mut watch).await;
    for n in 0..200 {
        let batch = Batch::new()
            .put(key(n % 7), n.to_string())
            .remove(key(7 + n % 3));
        let batch = batch.signal("bell", "ring");
        let at = house
            .storage
            .commit(batch, CommitOptions::default())
            .await
            .unwrap();
        if n % 5 == 0 {
            // Several commits are one pass: each key comes once.
            while reader.read_to_mark(&mut watch).await.revision < at.revision {}
            assert_eq!(reader.entries, house.entries().await);
            assert_eq!(reader.again, 0);
        }
    }
    assert_eq!(house.engine.shared.snapshots.len(), 0);
}

#[tokio::test]
async fn pages_that_nobody_takes_make_room_and_are_read_again() {
    let house = House::new(|_| {});
    house.fill(600).await;
    // Each has a page of 192 KiB in waiting: more than there is room for.
    let count = UNTAKEN_BYTES_MAX / (150 * 1_000);
    let mut watches = Vec::new();
    for _ in 0..count {
        watches.push(house.latest(WatchStart::Beginning).await);
    }
    for watch in &mut watches {
        let mut first = std::pin::pin!(watch.next());
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(first.as_mut().poll(cx)));
        assert!(polled.await.is_pending());
    }
    let pages = house.engine.shared.pages.clone();
    while pages.kept().0 < count as u64 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(pages.bytes() <= UNTAKEN_BYTES_MAX);
    assert!(pages.kept().1 > 0, "all fitted: this shows nothing");
    for watch in &mut watches {
        let mut reader = Reader::default();
        reader.read_to_mark(watch).await;
        assert_eq!(reader.entries.len(), 600);
    }
    assert_eq!(pages.bytes(), 0);
}

#[tokio::test]
async fn rests_of_parked_passes_take_no_room_of_live_watches_and_make_room_for_others() {
    let house = House::new(|_| {});
    house.fill(150).await;
    let count = RESTS_BYTES_MAX / (149 * 1_000) + 10;
    let (mut watches, shared) = (Vec::new(), house.engine.shared.clone());
    for _ in 0..count {
        let (mut watch, mut reader) =
            (house.latest(WatchStart::Beginning).await, Reader::default());
        // One page, of which all but one state is left.
        reader.states(&mut watch, 1).await;
        watch.park();
        watches.push((watch, reader));
    }
    assert!(shared.rests.bytes() <= RESTS_BYTES_MAX);
    assert!(shared.rests.kept().1 > 0, "all fitted: this shows nothing");
    // Nothing is queued for a parked watch, whether its rest was kept or not.
    let mut live = house.latest(WatchStart::Now).await;
    let last = house.storage.put("new".into(), "v".into()).await.unwrap();
    while Reader::default().read_to_mark(&mut live).await.revision < last.revision {}
    assert_eq!(shared.feed.figures().queued_bytes, 0);
    for (mut watch, mut reader) in watches {
        watch.park();
        watch.request_progress(1);
        while reader.read_to_mark(&mut watch).await.revision < last.revision {}
        assert_eq!((reader.entries.len(), reader.resets), (151, 0));
    }
    assert_eq!(shared.rests.bytes(), 0);
}

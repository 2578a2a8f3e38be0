//! What many cases need: short calls, expected errors, and readers of watches.
//!
//! [`Mirror`] is the reader of a `Latest` watch: it builds the state from what it is told and judges, at each event,
//! the promises that hold for every such watch.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all, maybe_done, poll_fn};
use storage_protocol::{
    Batch, Change, ChangeKind, CommitOptions, CommitRecord, Entry, Key, KeyRange, KeyState, Limit,
    Limits, Outcome, Position, Reading, Result, Revision, Scan, ScanItem, ScanOptions, Storage,
    StorageError, StorageExt, Value, Watch, WatchEvent, WatchOptions, WatchStart, begin_commit,
};
use tokio::task::coop::consume_budget;

pub(super) type Handle = Arc<dyn Storage>;

/// Makes every call give way now and then, so that a loop over a store that is always ready meets the deadline.
pub(super) fn giving_way(storage: Handle) -> Handle {
    Arc::new(GivingWay(storage))
}

/// See [`giving_way`]. It gives way behind the call: before it, the order of first polls would be lost.
#[derive(Debug)]
struct GivingWay(Handle);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Storage for GivingWay {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        let done = self.0.get(keys).await;
        consume_budget().await;
        done
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        let done = self.0.scan(range, options).await;
        consume_budget().await;
        done
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        let done = self.0.commit(batch, options).await;
        consume_budget().await;
        done
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        begin_commit(self, batch, options);
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        let done = self.0.watch(range, options).await;
        consume_budget().await;
        done
    }

    async fn limits(&self) -> Result<Limits> {
        self.0.limits().await
    }
}

// ---- calls

pub(super) async fn put(storage: &Handle, key: &str, value: &str) -> Position {
    commit(storage, Batch::new().put(bytes(key), bytes(value))).await
}

pub(super) async fn remove(storage: &Handle, key: &str) -> Position {
    storage.remove(bytes(key)).await.unwrap()
}

pub(super) async fn commit(storage: &Handle, batch: Batch) -> Position {
    let done = storage.commit(batch, CommitOptions::default()).await;
    done.unwrap()
}

/// A commit that must be refused.
pub(super) async fn refused(storage: &Handle, batch: Batch) -> StorageError {
    match storage.commit(batch, CommitOptions::default()).await {
        Ok(position) => panic!("a commit that must be refused was done at {position}"),
        Err(error) => error,
    }
}

pub(super) async fn entry(storage: &Handle, key: &str) -> Option<Entry> {
    storage.get_one(bytes(key)).await.unwrap()
}

pub(super) async fn value(storage: &Handle, key: &str) -> Option<String> {
    let entry = entry(storage, key).await?;
    Some(String::from_utf8(entry.value.to_vec()).unwrap())
}

pub(super) async fn scan(storage: &Handle, range: KeyRange, options: ScanOptions) -> Vec<ScanItem> {
    let scan = storage.scan(range, options).await.unwrap();
    scan.collect().await.unwrap()
}

/// The keys of a scan, as text, in its order.
pub(super) async fn keys(storage: &Handle, range: KeyRange, options: ScanOptions) -> Vec<String> {
    let items = scan(storage, range, options).await;
    items.iter().map(|item| text(&item.key)).collect()
}

/// Everything that is there, and where it was read.
pub(super) async fn full_state(storage: &Handle) -> (Position, BTreeMap<Key, Entry>) {
    let all: Scan = storage
        .scan(KeyRange::all(), ScanOptions::default())
        .await
        .unwrap();
    let position = all.position();
    let items = all.collect().await.unwrap();
    let entries = items.into_iter().map(|item| match item.state {
        KeyState::Live(entry) => (item.key, entry),
        KeyState::Removed(_) => panic!("a plain scan told the tombstone of {:?}", item.key),
    });
    (position, entries.collect())
}

/// Polls all futures once in their order before any of them goes on, then awaits them: as a caller that does not wait
/// for answers.
pub(super) async fn in_quick_succession<T: Send>(futures: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(maybe_done).collect();
    poll_fn(|cx| {
        for future in &mut futures {
            // What is ready is kept by `maybe_done`.
            let _ready = future.poll_unpin(cx).is_ready();
        }
        Poll::Ready(())
    })
    .await;
    join_all(&mut futures).await;
    let outputs = futures.iter_mut().map(|f| Pin::new(f).take_output());
    outputs.map(Option::unwrap).collect()
}

/// Commits the batches one behind the other, without waiting for answers.
pub(super) async fn pipeline(storage: &Handle, batches: Vec<Batch>) -> Vec<Result<Position>> {
    let futures = batches
        .into_iter()
        .map(|batch| storage.commit(batch, CommitOptions::default()));
    in_quick_succession(futures.collect()).await
}

// ---- values

pub(super) fn bytes(text: &str) -> Key {
    Key::copy_from_slice(text.as_bytes())
}

pub(super) fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

pub(super) fn plain() -> ScanOptions {
    ScanOptions::default()
}

pub(super) fn newer_than(position: Position) -> ScanOptions {
    ScanOptions {
        newer_than: Some(position),
        ..ScanOptions::default()
    }
}

/// A position of a history that the store does not know.
pub(super) fn of_unknown_epoch(mut position: Position) -> Position {
    position.epoch.0 ^= 0x5555;
    position
}

/// A position that the store has not reached.
pub(super) fn beyond_head(mut position: Position) -> Position {
    position.revision.0 += 1_000_000;
    position
}

// ---- expected errors

pub(super) fn assert_limit(error: &StorageError, expected: Limit, expected_max: usize) {
    match error {
        StorageError::LimitExceeded { limit, max, actual } => {
            assert_eq!(*limit, expected, "the error names the limit");
            assert_eq!(*max, expected_max as u64, "the error tells the limit");
            assert!(actual > max, "the error tells what was asked: {error}");
        }
        other => panic!("expected {expected} to be exceeded, got: {other}"),
    }
    assert_eq!(error.outcome(), Outcome::NotExecuted);
}

pub(super) fn assert_invalid(error: &StorageError) {
    assert!(
        matches!(error, StorageError::InvalidArgument { .. }),
        "expected an invalid argument, got: {error:?}"
    );
    assert_eq!(error.outcome(), Outcome::NotExecuted);
}

pub(super) fn assert_check_failed(error: &StorageError, key: &str, actual: Option<Revision>) {
    let expected = StorageError::CheckFailed {
        key: bytes(key),
        actual,
    };
    assert_eq!(error, &expected);
    assert_eq!(error.outcome(), Outcome::Refused);
}

pub(super) fn assert_unknown_epoch(error: &StorageError, position: Position) {
    let expected = StorageError::EpochChanged {
        epoch: position.epoch,
        fork: Revision::ZERO,
    };
    assert_eq!(error, &expected);
}

// ---- watches

pub(super) async fn watch_every(storage: &Handle, range: KeyRange, start: WatchStart) -> Watch {
    let options = WatchOptions::every(start);
    storage.watch(range, options).await.unwrap()
}

pub(super) async fn watch_latest(storage: &Handle, range: KeyRange, start: WatchStart) -> Watch {
    let options = WatchOptions::latest(start);
    storage.watch(range, options).await.unwrap()
}

/// The next event that is not a mark nobody asked for.
pub(super) async fn next_event(watch: &mut Watch) -> WatchEvent {
    loop {
        match next_of(watch).await {
            WatchEvent::Progress { token: None, .. } => {}
            event => return event,
        }
    }
}

/// The next event of any kind. It gives way now and then, so that a watch which tells without end meets the deadline.
pub(super) async fn next_of(watch: &mut Watch) -> WatchEvent {
    consume_budget().await;
    let event = watch.next().await.unwrap();
    event.expect("the watch goes on")
}

pub(super) async fn next_commit(watch: &mut Watch) -> Arc<CommitRecord> {
    match next_event(watch).await {
        WatchEvent::Commit(record) => record,
        other => panic!("expected a commit, got {other:?}"),
    }
}

/// Asks for a mark and takes all commits before it.
pub(super) async fn commits_to_mark(
    watch: &mut Watch,
    token: u64,
) -> (Vec<Arc<CommitRecord>>, Position) {
    watch.request_progress(token);
    let mut commits = Vec::new();
    loop {
        match next_event(watch).await {
            WatchEvent::Commit(record) => {
                let last = commits.last();
                let last = last.map_or(Revision::ZERO, |c: &Arc<CommitRecord>| c.revision);
                let at = record.revision;
                assert!(at > last, "revision {at} was told behind {last}");
                commits.push(record);
            }
            WatchEvent::Progress { position, token: t } => {
                assert_eq!(t, Some(token), "the mark carries the token it answers");
                return (commits, position);
            }
            other => panic!("a watch of every commit told {other:?}"),
        }
    }
}

/// What a watch told, in short lines: `put a=1`, `remove b`, `signal c=x`.
pub(super) fn told(changes: &[Change]) -> Vec<String> {
    let line = |change: &Change| {
        let key = text(&change.key);
        match &change.kind {
            ChangeKind::Put { value, .. } => format!("put {key}={}", text(value)),
            ChangeKind::Removed { .. } => format!("remove {key}"),
            ChangeKind::Signalled { bytes } => format!("signal {key}={}", text(bytes)),
        }
    };
    changes.iter().map(line).collect()
}

pub(super) fn previous(change: &Change) -> Option<&Value> {
    match &change.kind {
        ChangeKind::Put { previous, .. } | ChangeKind::Removed { previous } => previous.as_ref(),
        ChangeKind::Signalled { .. } => None,
    }
}

/// The reader of a `Latest` watch.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    /// What the reader knows; the state at `mark` right after a mark.
    pub(super) entries: BTreeMap<Key, Entry>,
    /// The last mark, or where the watch began.
    pub(super) mark: Revision,
    /// States that were told in all.
    pub(super) states: usize,
    pub(super) tombstones: usize,
    pub(super) resets: usize,
    /// What was told since the last mark.
    keys_since_mark: BTreeSet<Key>,
    newest: Revision,
    /// After a reset, states older than the last mark are due.
    oldest: Revision,
}

impl Mirror {
    /// A reader that knows `entries`, as they are at the watch's start.
    pub(super) fn new(watch: &Watch, entries: BTreeMap<Key, Entry>) -> Self {
        let mark = watch.start().revision;
        Self {
            entries,
            mark,
            oldest: mark,
            ..Self::default()
        }
    }

    /// Takes one event in; the mark, if it is one.
    pub(super) fn apply(&mut self, event: WatchEvent) -> Option<(Position, Option<u64>)> {
        match event {
            WatchEvent::State { key, state } => {
                self.take_state(key, state);
                None
            }
            WatchEvent::Progress { position, token } => {
                let at = position.revision;
                assert!(at >= self.mark, "mark {at} is older than {}", self.mark);
                assert!(
                    self.newest <= at,
                    "a state of revision {} stands before the mark {at}",
                    self.newest
                );
                self.keys_since_mark.clear();
                (self.mark, self.newest, self.oldest) = (at, Revision::ZERO, at);
                Some((position, token))
            }
            WatchEvent::Reset => {
                assert!(self.keys_since_mark.is_empty(), "a reset behind a state");
                self.entries.clear();
                self.resets += 1;
                self.oldest = Revision::ZERO;
                None
            }
            other => panic!("a watch of the latest states told {other:?}"),
        }
    }

    fn take_state(&mut self, key: Key, state: KeyState) {
        let revision = state.revision();
        assert!(
            revision > self.oldest,
            "{key:?} at {revision} was told again after the mark {}",
            self.oldest
        );
        assert!(
            revision >= self.newest,
            "{key:?} at {revision} was told behind revision {}",
            self.newest
        );
        assert!(
            self.keys_since_mark.insert(key.clone()),
            "{key:?} was told twice between two marks"
        );
        self.newest = revision;
        self.states += 1;
        match state {
            KeyState::Live(entry) => {
                self.entries.insert(key, entry);
            }
            KeyState::Removed(_) => {
                self.tombstones += 1;
                self.entries.remove(&key);
            }
        }
    }

    /// Takes events in up to the next mark of any kind.
    pub(super) async fn until_next_mark(&mut self, watch: &mut Watch) -> Position {
        loop {
            let event = next_of(watch).await;
            if let Some((position, _)) = self.apply(event) {
                return position;
            }
        }
    }

    /// Asks for a mark and takes events in up to it.
    pub(super) async fn until_mark(&mut self, watch: &mut Watch, token: u64) -> Position {
        watch.request_progress(token);
        loop {
            let event = next_of(watch).await;
            if let Some((position, Some(answered))) = self.apply(event) {
                assert_eq!(answered, token, "the mark carries the token it answers");
                return position;
            }
        }
    }

    /// Takes events in until the state at a mark is no older than `position`.
    pub(super) async fn until_position(&mut self, watch: &mut Watch, position: Position) {
        while self.mark < position.revision {
            self.until_next_mark(watch).await;
        }
    }
}

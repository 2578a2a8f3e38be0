//! Watches: what a subscriber asks for and what it is told.
//!
//! One call, two modes, one resume. A [`Watch`] is a stream; every engine and the remote client feed it through
//! [`WatchSource`]. An event is never dropped in silence: a watch that cannot go on ends with an error.

mod key_order;

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_core::Stream;

use crate::{
    EntryLifetime, Epoch, Key, KeyState, Position, Result, Revision, StorageError, UnixMillis,
    Value,
};

/// Which changes a watch tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// Each commit that touches the range, in revision order, unsplit, exactly once.
    Every,
    /// The present state of each key that changed, conflated to what the reader takes: bounded by the number of keys
    /// changed, whatever happened meanwhile. Between two marks a key comes at most once; at mark `r` the reader's
    /// state *is* the state at `r`.
    ///
    /// A pass whose reader holds it up (for over 30 s, or while there is no room to keep what is left of it) goes on over
    /// a newer state: a key that was told in it may come again, with a higher revision.
    Latest {
        /// The shortest time between the starts of two passes. Zero: as fast as the reader takes them. A pass that is
        /// asked for ([`Watch::request_progress`]) does not wait for it.
        min_interval: Duration,
    },
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStart {
    /// With what is committed after the call; [`Watch::start`] tells the position.
    Now,
    /// With what came after this position.
    After(Position),
    /// With the very first commit (`Every`: as long as the log still has it), or with the present state (`Latest`).
    Beginning,
}

/// How to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    /// Where to begin. Default: now.
    pub start: WatchStart,
    /// Which changes. Default: every.
    pub mode: WatchMode,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            start: WatchStart::Now,
            mode: WatchMode::Every,
        }
    }
}

impl WatchOptions {
    /// `Every`, from `start`.
    #[must_use]
    pub fn every(start: WatchStart) -> Self {
        Self {
            start,
            mode: WatchMode::Every,
        }
    }

    /// `Latest` without an interval, from `start`.
    #[must_use]
    pub fn latest(start: WatchStart) -> Self {
        Self {
            start,
            mode: WatchMode::Latest {
                min_interval: Duration::ZERO,
            },
        }
    }
}

/// What happened to one key in a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key (of a stamped put: the whole key).
    pub key: Key,
    /// What happened to it.
    pub kind: ChangeKind,
}

impl Change {
    /// The bytes of its key and values.
    fn bytes(&self) -> usize {
        let value = match &self.kind {
            ChangeKind::Put {
                value, previous, ..
            } => value.len() + previous.as_ref().map_or(0, Bytes::len),
            ChangeKind::Removed { previous } => previous.as_ref().map_or(0, Bytes::len),
            ChangeKind::Signalled { bytes } => bytes.len(),
        };
        self.key.len() + value
    }

    /// Copies key and values out of the message they came in, which they otherwise keep alive as a whole.
    pub fn detach(&mut self) {
        let copy = |bytes: &mut Bytes| *bytes = Bytes::copy_from_slice(bytes);
        copy(&mut self.key);
        match &mut self.kind {
            ChangeKind::Put {
                value, previous, ..
            } => {
                copy(value);
                previous.iter_mut().for_each(copy);
            }
            ChangeKind::Removed { previous } => previous.iter_mut().for_each(copy),
            ChangeKind::Signalled { bytes } => copy(bytes),
        }
    }
}

/// See [`Change`].
#[derive(Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// It has this value now.
    Put {
        /// The value.
        value: Value,
        /// How long it lives.
        lifetime: EntryLifetime,
        /// The value before, if the commit asked for it and there was one.
        previous: Option<Value>,
    },
    /// It has no value any more.
    Removed {
        /// The value before, if the commit asked for it.
        previous: Option<Value>,
    },
    /// Its watchers are told this; nothing is stored.
    Signalled {
        /// What they are told.
        bytes: Value,
    },
}

impl fmt::Debug for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put {
                value,
                lifetime,
                previous,
            } => f
                .debug_struct("Put")
                .field("value_bytes", &value.len())
                .field("lifetime", lifetime)
                .field("previous_bytes", &previous.as_ref().map(Bytes::len))
                .finish(),
            Self::Removed { previous } => f
                .debug_struct("Removed")
                .field("previous_bytes", &previous.as_ref().map(Bytes::len))
                .finish(),
            Self::Signalled { bytes } => f
                .debug_struct("Signalled")
                .field("bytes", &bytes.len())
                .finish(),
        }
    }
}

/// A commit as watchers see it: its changes in the order of its operations, cut to the watch's range.
#[derive(Clone, Debug)]
pub struct CommitRecord {
    /// The commit's revision.
    pub revision: Revision,
    /// When it was committed, by the server's clock.
    pub time: UnixMillis,
    /// Its label.
    pub label: Option<String>,
    /// Who committed it, as the server knows them (`cert:NAME`, ...).
    pub principal: String,
    /// What it changed. Never empty in an event.
    pub changes: Vec<Change>,
    /// The record in wire form, made by the first watcher that needs it and shared by all.
    encoded: OnceLock<Bytes>,
    /// The places of the changes by their keys, made by the first who needs it.
    key_order: OnceLock<Box<[u32]>>,
    /// What [`CommitRecord::bytes`] tells, counted once.
    bytes: OnceLock<usize>,
}

impl PartialEq for CommitRecord {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision
            && self.time == other.time
            && self.label == other.label
            && self.principal == other.principal
            && self.changes == other.changes
    }
}

impl Eq for CommitRecord {}

impl CommitRecord {
    /// A record.
    #[must_use]
    pub fn new(
        revision: Revision,
        time: UnixMillis,
        label: Option<String>,
        principal: String,
        changes: Vec<Change>,
    ) -> Self {
        Self {
            revision,
            time,
            label,
            principal,
            changes,
            encoded: OnceLock::new(),
            key_order: OnceLock::new(),
            bytes: OnceLock::new(),
        }
    }

    /// The part of this commit that these changes are, given by their places in rising order: itself (shared) where that
    /// is all of them, `None` where it is none. For who knows the places already: it costs as much as the part is long.
    #[must_use]
    pub fn pick(self: &Arc<Self>, places: &[usize]) -> Option<Arc<Self>> {
        if places.is_empty() {
            return None;
        }
        if places.len() == self.changes.len() {
            return Some(self.clone());
        }
        let inside = places.iter().filter_map(|place| self.changes.get(*place));
        let mut changes: Vec<Change> = inside.cloned().collect();
        let part: usize = changes.iter().map(Change::bytes).sum();
        // A small part must not keep the whole commit's buffer alive in some watch's queue. As much of the commit is looked
        // at as shows it: each of a large one's many watches comes by here.
        let mut seen = 0;
        let is_small = self.changes.iter().any(|change| {
            seen += change.bytes();
            seen > 2 * part
        });
        if is_small {
            changes.iter_mut().for_each(Change::detach);
        }
        Some(Arc::new(Self::new(
            self.revision,
            self.time,
            self.label.clone(),
            self.principal.clone(),
            changes,
        )))
    }

    /// The bytes of its keys and values, by which rings and queues are bounded.
    #[must_use]
    pub fn bytes(&self) -> usize {
        *self.bytes.get_or_init(|| {
            let changes = self
                .changes
                .iter()
                .map(|change| change.bytes() + size_of::<Change>());
            size_of::<Self>() + changes.sum::<usize>()
        })
    }

    /// The most memory it takes: [`CommitRecord::bytes`], who committed it, its wire form and the order of its keys,
    /// whether these were made yet or not.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let names = self.principal.len() + self.label.as_ref().map_or(0, String::len);
        2 * (self.bytes() + names) + self.changes.len() * size_of::<u32>()
    }

    /// Its wire form (see [`native`](crate::native)), made once.
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        self.encoded
            .get_or_init(|| crate::native::encode_commit_record(self))
    }
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchEvent {
    /// Mode `Every`: a commit that touches the range.
    Commit(Arc<CommitRecord>),
    /// Mode `Latest`: a key's present state, newer than the last mark and not newer than the next.
    State {
        /// The key.
        key: Key,
        /// What it is now.
        state: KeyState,
    },
    /// A mark. `Every`: nothing else happened in the range up to here. `Latest`: the reader's state is the state at
    /// this position. A good position to resume from.
    Progress {
        /// Everything up to here was told.
        position: Position,
        /// The token of the [`Watch::request_progress`] that this answers, if one.
        token: Option<u64>,
    },
    /// Keys that are not told from here to the next mark are gone, also those told since the last one. Before any state of a
    /// pass, or within one that its reader held up. In mode `Latest` because the tombstones do not reach back to the start;
    /// in either mode behind a [`Continuity::Resynced`] that cannot tell what was removed.
    Reset,
    /// What a break meant. Only a watch that outlives its connection tells it: the remote client's.
    Continuity(Continuity),
}

/// What a break (a lost connection, a restarted server) meant for a watch: always told, never to be inferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Continuity {
    /// Nothing was missed and nothing comes twice.
    Continuous,
    /// Some steps will not be told. The present state of what changed meanwhile follows as `State` events (behind a
    /// `Reset`, where removals cannot be told), then a mark; at that mark the reader's state is right again, and the watch
    /// goes on in its own mode.
    Resynced {
        /// Why the steps are not known any more.
        why: ResyncReason,
    },
    /// The last word of a watch that cannot be repaired: what happened in between is not told. The error that ended it
    /// follows.
    Lost {
        /// Everything up to here was told.
        from: Position,
        /// The server's position when it was found out.
        to: Position,
    },
}

/// Why a watch could not go on step by step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResyncReason {
    /// The log (mode `Every`) or the tombstones (mode `Latest`) do not reach back to where the watch stood.
    Compacted {
        /// The oldest position that could have been resumed from; zero where it is not known.
        oldest: Revision,
    },
    /// The store forked its history: commits after `fork` that this watch told are no more.
    EpochChanged {
        /// The present history.
        epoch: Epoch,
        /// Up to here what was told still holds; zero: nothing is known to.
        fork: Revision,
    },
    /// What this watch may be told has changed. The present state of what it may be told now follows, behind a `Reset`.
    AccessChanged,
}

/// What a watch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchStatus {
    /// What it is doing.
    pub state: WatchState,
    /// What was last handed to the application: the last commit (mode `Every`) or mark. Everything up to here was told.
    pub position: Position,
}

/// See [`WatchStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchState {
    /// It waits for changes; all that was known when it was last asked has been handed over.
    Live,
    /// Events are ready or being read.
    CatchingUp,
    /// There is no connection; it resumes when there is one.
    Disconnected {
        /// Since then.
        since: Instant,
    },
    /// It has ended.
    Ended,
}

/// What feeds a [`Watch`]. Implemented by engines and by the remote client.
pub trait WatchSource: Send {
    /// The next event; `None` after the watch ended. Errors are final.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>>;

    /// See [`Watch::request_progress`].
    fn request_progress(&mut self, token: u64);

    /// See [`Watch::park`].
    fn park(&mut self);

    /// See [`Watch::status`].
    fn status(&self) -> WatchStatus;
}

/// A subscription. Dropping it ends it.
///
/// It is a [`Stream`] of events; an error is its last item. `poll_next` is cancel-safe: no event is lost when a
/// `next()` future is dropped.
pub struct Watch {
    start: Position,
    source: Option<Box<dyn WatchSource>>,
    /// How far it had come when it ended.
    last: Position,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// For engines: a watch that tells what came after `start`.
    #[must_use]
    pub fn new(start: Position, source: Box<dyn WatchSource>) -> Self {
        Self {
            start,
            source: Some(source),
            last: start,
        }
    }

    /// The position it began at. Everything after it is told, also what was committed before this call returned.
    #[must_use]
    pub fn start(&self) -> Position {
        self.start
    }

    /// Asks for a mark: after the events that are due, a `Progress` with this token and a revision no older than this
    /// call comes through the watch's own queue.
    pub fn request_progress(&mut self, token: u64) {
        if let Some(source) = &mut self.source {
            source.request_progress(token);
        }
    }

    /// Says that nobody will ask for a while: what is buffered is dropped where the source can tell it again. No event is
    /// lost or told twice; the next call goes on where this watch was.
    pub fn park(&mut self) {
        if let Some(source) = &mut self.source {
            source.park();
        }
    }

    /// What it is doing and how far it has come, without waiting.
    #[must_use]
    pub fn status(&self) -> WatchStatus {
        match &self.source {
            Some(source) => source.status(),
            None => WatchStatus {
                state: WatchState::Ended,
                position: self.last,
            },
        }
    }

    /// The next event; `None` when the watch has ended. Cancel-safe.
    ///
    /// # Errors
    /// Why the watch ended. What to do: `Closed` – watch again after the last commit or mark; `Compacted` – watch
    /// `Latest` instead; `EpochChanged` – re-read what is newer than the fork.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
            .await
            .transpose()
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent, StorageError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(source) = &mut self.source else {
            return Poll::Ready(None);
        };
        let item = std::task::ready!(source.poll_next(cx));
        if !matches!(item, Some(Ok(_))) {
            self.last = source.status().position;
            self.source = None;
        }
        Poll::Ready(item)
    }
}

//! The contract: the [`Storage`] trait, and [`StorageExt`] with what can be built on it.
//!
//! Few methods, and but one default, which is good enough for a wrapper that forgets it. The `BTreeMap` model in `tests/` is this
//! page in executable form; one conformance suite holds all implementations to it.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;

use crate::objects::{
    self, ObjectInfo, ObjectOptions, ObjectReader, ObjectRemoved, ObjectWriter, ObjectWritten,
    Swept,
};
use crate::{
    Batch, CommitOptions, Entry, Key, KeyRange, KeyState, Lifetime, Limit, Limits, Position,
    Reading, Result, Revision, StorageError, Value, Watch, WatchOptions,
};

/// An ordered map of binary keys to binary values: one keyspace of a store.
///
/// Handles are cheap to clone (`Arc<dyn Storage>` is a `Storage`) and share their state. The server's engine is
/// linearizable: a call sees every commit that was acknowledged, to anyone, before the call began. Nothing (read,
/// scan, watch, refusal) shows a commit before it is durable.
///
/// # Cancel safety
/// Dropping the future of a read gives the read up. Dropping the future of a commit that was polled does *not* undo
/// or stop it; its outcome is then unknown to the caller.
#[async_trait]
pub trait Storage: fmt::Debug + Send + Sync {
    /// Reads many keys at *one* revision, which is returned; absent keys are `None`. In the order asked; a key may be
    /// asked twice. No key at all is a cheap way to learn the present position.
    ///
    /// # Errors
    /// `LimitExceeded` for more than [`Limits::keys_per_get_max`] keys, a key over the limit, or an answer over
    /// [`Limits::message_bytes_max`].
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>>;

    /// Scans a range in key order (or in reverse), at one revision for all of its pages.
    ///
    /// The snapshot is held by a lease of 30 s from the last page; then the next page fails with `SnapshotExpired`.
    ///
    /// # Errors
    /// `LimitExceeded` for a bound of the range over [`Limits::key_bytes_max`] and one byte; `Overloaded` at
    /// [`Limits::scans_max`] open scans; `Compacted` where `newer_than` lies below the tombstones'
    /// horizon; `EpochChanged` where it is no position of this history.
    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan>;

    /// Commits a batch atomically and returns its position. Durable before it returns, at the server's durability:
    /// with the default (`sync`) it survives power loss.
    ///
    /// Checks are evaluated against the state just before it. Commits whose futures are first polled in some order
    /// through one handle are applied in that order.
    ///
    /// # Errors
    /// `CheckFailed` (nothing written) names the key and its actual revision; `QuotaExceeded` (nothing written) the quota
    /// that it would exceed; `LimitExceeded` and `InvalidArgument` as [`Batch::validate`]; `Overloaded`, `StorageFull`,
    /// `ReadOnly`: not executed; any error whose [`outcome`](StorageError::outcome) is `Unknown`: it may have happened.
    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position>;

    /// Commits a batch for whom nobody waits, such as a `Drop`: returns at once, and its outcome is told to nobody. Best
    /// effort: it may be lost.
    ///
    /// Default: as [`begin_commit`]. The remote client, which gives up what nobody waits for, waits in the background, where
    /// it is called within a runtime; outside of one it does as the default.
    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        begin_commit(self, batch, options);
    }

    /// Subscribes to the changes of a range; see [`WatchMode`](crate::WatchMode) for the two modes.
    ///
    /// When this returns the watch is attached: everything after [`Watch::start`] will be told, in revision order.
    ///
    /// # Errors
    /// `LimitExceeded` for a bound of the range over [`Limits::key_bytes_max`] and one byte, `Compacted` where the log
    /// does not reach back to the start (`Every` only), `EpochChanged` where the start is no position of this history,
    /// `Overloaded` at [`Limits::watches_max`].
    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch>;

    /// What this engine takes.
    ///
    /// # Errors
    /// Remote: `Closed` when the connection is over for good; while it is merely lost, what the server said last.
    async fn limits(&self) -> Result<Limits>;
}

/// How to scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// From the last key to the first. Default no.
    pub reverse: bool,
    /// Leave values out (they come empty). Default no.
    pub keys_only: bool,
    /// Stop after this many items. Default none.
    pub limit: Option<u64>,
    /// Only what was written after this position, *tombstones included*. Default: everything that is there, and no
    /// tombstones.
    pub newer_than: Option<Position>,
}

/// One item of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanItem {
    /// The key.
    pub key: Key,
    /// What it is; `Removed` only where the scan asked for `newer_than`.
    pub state: KeyState,
}

/// The pages of a scan. Implemented by engines and by the remote client.
#[async_trait]
pub trait ScanSource: Send {
    /// The next page: at most about 256 KiB, or one item where that is larger, never empty; `None` at the end.
    async fn next_page(&mut self) -> Result<Option<Vec<ScanItem>>>;

    /// Whether it is known already that no page comes any more. Default: it is not.
    fn is_over(&self) -> bool {
        false
    }
}

/// A running scan. Dropping it frees its snapshot.
pub struct Scan {
    position: Position,
    source: Box<dyn ScanSource>,
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Scan {
    /// The size that engines cut pages at, in bytes of keys and values.
    pub const PAGE_BYTES: usize = 192 * 1024;

    /// For engines.
    #[must_use]
    pub fn new(position: Position, source: Box<dyn ScanSource>) -> Self {
        Self { position, source }
    }

    /// The position that all pages are read at.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next page, in the scan's order; `None` at the end. Not cancel-safe: a dropped call may lose its page.
    ///
    /// # Errors
    /// `SnapshotExpired` when the lease ran out; `Closed` when the engine or the connection did.
    pub async fn next_page(&mut self) -> Result<Option<Vec<ScanItem>>> {
        self.source.next_page().await
    }

    /// Whether it is known already that no page comes any more. If not, the next may still be `None`.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.source.is_over()
    }

    /// All items that are left, in memory.
    ///
    /// # Errors
    /// As [`Scan::next_page`].
    pub async fn collect(mut self) -> Result<Vec<ScanItem>> {
        let mut items = Vec::new();
        while let Some(page) = self.next_page().await? {
            items.extend(page);
        }
        Ok(items)
    }
}

/// What prefix reservation hands out: 0 to 32,767 (mwDB reads a prefix as a 16 bit signed number).
pub const PREFIX_NUMBER_MAX: u16 = 0x7fff;

/// Conveniences on every [`Storage`].
#[async_trait]
pub trait StorageExt: Storage {
    /// Puts one value that lives for ever.
    ///
    /// # Errors
    /// As [`Storage::commit`].
    async fn put(&self, key: Key, value: Value) -> Result<Position> {
        self.commit(Batch::new().put(key, value), CommitOptions::default())
            .await
    }

    /// Removes one key; removing an absent one is no error.
    ///
    /// # Errors
    /// As [`Storage::commit`].
    async fn remove(&self, key: Key) -> Result<Position> {
        self.commit(Batch::new().remove(key), CommitOptions::default())
            .await
    }

    /// Reads one key.
    ///
    /// # Errors
    /// As [`Storage::get`].
    async fn get_one(&self, key: Key) -> Result<Option<Entry>> {
        Ok(self.get(&[key]).await?.value.pop().flatten())
    }

    /// Puts one value where there is none. `CheckFailed` tells the revision of the one that is there.
    ///
    /// # Errors
    /// As [`Storage::commit`].
    async fn put_if_absent(&self, key: Key, value: Value) -> Result<Position> {
        self.commit(
            Batch::new().check_absent(key.clone()).put(key, value),
            CommitOptions::default(),
        )
        .await
    }

    /// A position that holds every commit acknowledged before this call.
    ///
    /// # Errors
    /// As [`Storage::get`].
    async fn sync(&self) -> Result<Position> {
        Ok(self.get(&[]).await?.position)
    }

    /// Reserves the lowest number that no other session holds under `base`: a key with the session's lifetime, so it
    /// is free again when the session ends or calls [`StorageExt::release_prefix`].
    ///
    /// # Errors
    /// `Overloaded` (`prefixes_max`) when all 32,768 are taken; else as [`Storage::commit`].
    async fn reserve_prefix(&self, base: Key) -> Result<u16> {
        loop {
            let scan = self
                .scan(
                    KeyRange::prefix(base.clone()),
                    ScanOptions {
                        keys_only: true,
                        ..ScanOptions::default()
                    },
                )
                .await?;
            let items = scan.collect().await?;
            let taken = items
                .iter()
                .filter_map(|item| prefix_of_key(&base, &item.key));
            // The keys come in order, so the lowest free number is the first that is not in its own place.
            let number = taken.fold(
                0u16,
                |free, number| if number == free { free + 1 } else { free },
            );
            if number > PREFIX_NUMBER_MAX {
                let max = u64::from(PREFIX_NUMBER_MAX) + 1;
                return Err(StorageError::Overloaded {
                    limit: Limit::Prefixes,
                    max,
                });
            }
            let key = prefix_key(&base, number);
            let batch = Batch::new().check_absent(key.clone()).put_with(
                key,
                Bytes::new(),
                Lifetime::Session,
            );
            match self
                .commit(batch, CommitOptions::labelled("prefix reserved"))
                .await
            {
                Ok(_) => return Ok(number),
                // Someone took it meanwhile: there is one fewer, so this ends.
                Err(StorageError::CheckFailed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives a reserved number back.
    ///
    /// # Errors
    /// As [`Storage::commit`].
    async fn release_prefix(&self, base: Key, number: u16) -> Result<()> {
        let batch = Batch::new().remove(prefix_key(&base, number));
        self.commit(batch, CommitOptions::labelled("prefix released"))
            .await?;
        Ok(())
    }

    /// The revision of each of `keys`, `None` where absent, at one revision: what compare-and-set starts from.
    ///
    /// # Errors
    /// As [`Storage::get`].
    async fn revisions(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Revision>>>> {
        let reading = self.get(keys).await?;
        let value = reading
            .value
            .into_iter()
            .map(|entry| Some(entry?.revision))
            .collect();
        Ok(Reading {
            position: reading.position,
            value,
        })
    }

    /// Writes an object of any size: what `content` gives, in chunks of any size. For more than that see
    /// [`ObjectWriter`].
    ///
    /// Dropped, it leaves what was there before, or has been done; see [`objects`].
    ///
    /// # Errors
    /// The first error of `content`; else as [`ObjectWriter::write`] and [`ObjectWriter::finish`]. On each of them nothing
    /// is left of it, unless the outcome is unknown.
    async fn put_object<C>(
        &self,
        key: Key,
        content: C,
        options: ObjectOptions,
    ) -> Result<ObjectWritten>
    where
        C: Stream<Item = Result<Bytes>> + Send,
    {
        let mut content = std::pin::pin!(content);
        let mut writer = ObjectWriter::new(self, key, options).await?;
        while let Some(chunk) = poll_fn(|cx| content.as_mut().poll_next(cx)).await {
            match chunk {
                Ok(chunk) => writer.write(chunk).await?,
                Err(error) => {
                    // Best effort: what is left, the server removes.
                    let _ = writer.abort().await;
                    return Err(error);
                }
            }
        }
        writer.finish().await
    }

    /// The object at a key, to be read chunk by chunk; `None`: there is none. For a reader that owns its storage see
    /// [`ObjectReader::open`].
    ///
    /// # Errors
    /// As [`ObjectReader::open`].
    async fn read_object(&self, key: Key) -> Result<Option<ObjectReader<'_>>> {
        ObjectReader::open(self, key).await
    }

    /// What the object at a key is; `None`: there is none.
    ///
    /// # Errors
    /// As [`ObjectReader::open`].
    async fn object_info(&self, key: Key) -> Result<Option<ObjectInfo>> {
        objects::object_info(&self, &key).await
    }

    /// Removes the object at a key, whatever its size; an absent one is no error.
    ///
    /// # Errors
    /// As [`objects::remove_object_with`].
    async fn remove_object(&self, key: Key) -> Result<ObjectRemoved> {
        let options = CommitOptions::default();
        objects::remove_object_with(&self, key, None, Batch::new(), options).await
    }

    /// Removes parts in a range that belong to no object: what a plain put or remove over an object leaves. Safe beside
    /// writers of objects.
    ///
    /// # Errors
    /// As [`Storage::scan`] and [`Storage::commit`]; what was removed before stays removed.
    async fn sweep_objects(&self, range: KeyRange) -> Result<Swept> {
        objects::sweep_objects(&self, range).await
    }
}

impl<S: Storage + ?Sized> StorageExt for S {}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Storage + ?Sized> Storage for &S {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        (**self).get(keys).await
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        (**self).scan(range, options).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        (**self).commit(batch, options).await
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        (**self).commit_unattended(batch, options);
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        (**self).watch(range, options).await
    }

    async fn limits(&self) -> Result<Limits> {
        (**self).limits().await
    }
}

/// Polls a commit once, and leaves it: enough where it is handed over when its future is first polled.
pub fn begin_commit(storage: &(impl Storage + ?Sized), batch: Batch, options: CommitOptions) {
    let mut sending = storage.commit(batch, options);
    let _ = sending
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
}

fn prefix_key(base: &[u8], number: u16) -> Key {
    [base, &number.to_be_bytes()].concat().into()
}

fn prefix_of_key(base: &[u8], key: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(key.strip_prefix(base)?.try_into().ok()?))
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Storage + ?Sized> Storage for Arc<S> {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        (**self).get(keys).await
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        (**self).scan(range, options).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        (**self).commit(batch, options).await
    }

    fn commit_unattended(&self, batch: Batch, options: CommitOptions) {
        (**self).commit_unattended(batch, options);
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        (**self).watch(range, options).await
    }

    async fn limits(&self) -> Result<Limits> {
        (**self).limits().await
    }
}

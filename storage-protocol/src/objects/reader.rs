//! [`ObjectReader`]: an object, or a range of it, chunk by chunk.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;

use super::keys::{PartKey, parts_from};
use super::replace::Found;
use super::{Manifest, ObjectInfo};
use crate::{
    Key, KeyRange, KeyState, Outcome, Result, Scan, ScanItem, ScanOptions, Storage, StorageError,
    Value,
};

/// An object, to be read in order: chunks of at most a part (1 MiB), of which one more is fetched ahead.
///
/// The parts are read from one snapshot, so a reader that goes on reading reads to the end, also if the object is replaced
/// meanwhile. One that pauses for longer than the snapshot lasts (30 s) goes on as long as the object is there.
///
/// It holds a scan open while it reads, of which a session has [`Limits::scans_max`](crate::Limits::scans_max).
///
/// It is a `Stream` of `Result<Bytes>` as well. After an error, and after the end, nothing more comes.
///
/// # Cancel safety
/// A dropped call of [`next`](Self::next) loses nothing.
pub struct ObjectReader<'s> {
    source: Source,
    info: ObjectInfo,
    /// What of it is left to be told.
    left: Range<u64>,
    fetching: Option<BoxFetch<'s>>,
    scan: Option<Scan>,
    fetched: VecDeque<Value>,
    /// Of the part that was fetched ahead.
    failure: Option<StorageError>,
    storage: Arc<dyn Storage + 's>,
    is_over: bool,
}

enum Source {
    Plain(Value),
    Parts { key: Key, manifest: Manifest },
}

type BoxFetch<'s> = Pin<Box<dyn Future<Output = Result<(Scan, Vec<Value>)>> + Send + 's>>;

impl fmt::Debug for ObjectReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectReader")
            .field("info", &self.info)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl<'s> ObjectReader<'s> {
    /// Looks up the object at a key; `None`: there is none. `storage` is kept: an `Arc`, a clone of a client, or a
    /// reference.
    ///
    /// # Errors
    /// `Unsupported` for a manifest that this version does not know; else as [`Storage::get`].
    pub async fn open(storage: impl Storage + 's, key: Key) -> Result<Option<ObjectReader<'s>>> {
        let found = Found::look(&storage, &key).await?;
        let (Some(info), Some(entry)) = (found.info(), found.entry) else {
            return Ok(None);
        };
        let source = match Manifest::decode(&entry.value)? {
            Some(manifest) => Source::Parts { key, manifest },
            None => Source::Plain(entry.value),
        };
        Ok(Some(Self {
            source,
            left: 0..info.size,
            info,
            fetching: None,
            scan: None,
            fetched: VecDeque::new(),
            failure: None,
            storage: Arc::new(storage),
            is_over: false,
        }))
    }

    /// What the object is.
    #[must_use]
    pub fn info(&self) -> &ObjectInfo {
        &self.info
    }

    /// Reads these bytes only, counted from 0. To be called before anything is read.
    ///
    /// # Errors
    /// `InvalidArgument` for a range that is not within the object.
    pub fn read_range(mut self, range: Range<u64>) -> Result<Self> {
        let size = self.info.size;
        if range.start > range.end || range.end > size {
            return Err(StorageError::invalid(format!(
                "bytes {} to {} are not within the object, which has {size}",
                range.start, range.end
            )));
        }
        self.left = range;
        Ok(self)
    }

    /// The next bytes, never none of them; `None` at the end.
    ///
    /// # Errors
    /// `SnapshotExpired` where the object was replaced or removed before all of it was read: begin again. `Internal` where
    /// parts of it are missing otherwise: it is damaged. Else as [`Storage::scan`] and [`Scan::next_page`].
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let chunk = match self.is_over || self.left.is_empty() {
            true => Poll::Ready(Ok(None)),
            false => self.poll_more(cx),
        };
        if let Poll::Ready(Ok(None) | Err(_)) = chunk {
            self.is_over = true;
            self.fetching = None;
            self.scan = None;
        }
        chunk
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let (key, manifest) = match &self.source {
            Source::Plain(value) => {
                let chunk = slice(value, 0, &self.left);
                self.left.start = self.left.end;
                return Poll::Ready(chunk.map(Some));
            }
            Source::Parts { key, manifest } => (key.clone(), *manifest),
        };
        loop {
            if let Some(part) = self.fetched.pop_front() {
                let number = number_at(&manifest, self.left.start)?;
                let before = u64::from(number) * manifest.part_bytes;
                let chunk = slice(&part, before, &self.left)?;
                self.left.start += chunk.len() as u64;
                if self.fetched.is_empty() && !self.left.is_empty() {
                    // One ahead: asked for now, taken with the next call.
                    self.fetch(&key, manifest)?;
                    if let Poll::Ready(Err(error)) = self.poll_fetch(cx) {
                        self.failure = Some(error);
                    }
                }
                return Poll::Ready(Ok(Some(chunk)));
            }
            if let Some(error) = self.failure.take() {
                return Poll::Ready(Err(error));
            }
            if self.fetching.is_none() {
                self.fetch(&key, manifest)?;
            }
            match self.poll_fetch(cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_fetch(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(fetching) = &mut self.fetching else {
            return Poll::Ready(Ok(()));
        };
        let Poll::Ready(done) = fetching.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        self.fetching = None;
        let (scan, parts) = done?;
        self.scan = Some(scan);
        self.fetched = parts.into();
        Poll::Ready(Ok(()))
    }

    fn fetch(&mut self, key: &Key, manifest: Manifest) -> Result<()> {
        let fetch = Fetch {
            storage: self.storage.clone(),
            key: key.clone(),
            manifest,
            first: number_at(&manifest, self.left.start)?,
            last: number_at(&manifest, self.left.end - 1)?,
        };
        let scan = self.scan.take();
        self.fetching = Some(Box::pin(async move { fetch.run(scan).await }));
        Ok(())
    }
}

impl Stream for ObjectReader<'_> {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_chunk(cx).map(Result::transpose)
    }
}

/// A look for the next parts.
struct Fetch<'s> {
    storage: Arc<dyn Storage + 's>,
    key: Key,
    manifest: Manifest,
    first: u32,
    last: u32,
}

impl Fetch<'_> {
    /// The next parts, at least one: by the scan as far as its snapshot lasts, else by a new one.
    async fn run(&self, scan: Option<Scan>) -> Result<(Scan, Vec<Value>)> {
        if let Some(mut scan) = scan {
            match scan.next_page().await {
                Err(StorageError::SnapshotExpired) => {}
                page => {
                    let parts = self.parts(page?.unwrap_or_default()).await?;
                    return Ok((scan, parts));
                }
            }
        }
        let mut range: KeyRange = parts_from(&self.key, self.manifest.id, self.first);
        if let Some(behind) = self.last.checked_add(1) {
            range.end = Some(PartKey::part(&self.key, self.manifest.id, behind));
        }
        let mut scan = self.storage.scan(range, ScanOptions::default()).await?;
        let page = scan.next_page().await?;
        let parts = self.parts(page.unwrap_or_default()).await?;
        Ok((scan, parts))
    }

    /// The values of a page, if they are the parts that come next.
    async fn parts(&self, page: Vec<ScanItem>) -> Result<Vec<Value>> {
        let mut parts = Vec::with_capacity(page.len());
        for (item, number) in page.into_iter().zip(self.first..=self.last) {
            let ScanItem {
                key,
                state: KeyState::Live(entry),
            } = item
            else {
                break;
            };
            let is_next = key == PartKey::part(&self.key, self.manifest.id, number)
                && entry.value.len() as u64 == self.manifest.part_len(number);
            if !is_next {
                break;
            }
            parts.push(entry.value);
        }
        match parts.is_empty() {
            true => Err(self.missing().await),
            false => Ok(parts),
        }
    }

    async fn missing(&self) -> StorageError {
        match Found::look(&*self.storage, &self.key).await {
            Ok(found) if found.names(self.manifest.id) => StorageError::Internal {
                message: format!(
                    "the object at \"{}\" is damaged: its part {} is missing, or has another length",
                    self.key.escape_ascii(),
                    self.first
                ),
                outcome: Outcome::NotExecuted,
            },
            Ok(_) => StorageError::SnapshotExpired,
            Err(error) => error,
        }
    }
}

/// The part that this byte is in.
fn number_at(manifest: &Manifest, at: u64) -> Result<u32> {
    let number = at.checked_div(manifest.part_bytes).unwrap_or(u64::MAX);
    u32::try_from(number).map_err(|_| StorageError::invalid("the object has too many parts"))
}

/// What of a part, which begins at `before`, is in the range.
fn slice(part: &Value, before: u64, range: &Range<u64>) -> Result<Bytes> {
    let from = usize::try_from(range.start - before);
    let len = part.len();
    let to = usize::try_from(range.end - before).map_or(len, |to| to.min(len));
    match from {
        Ok(from) if from < to => Ok(part.slice(from..to)),
        _ => Err(StorageError::Internal {
            message: "a part of the object has another length".to_owned(),
            outcome: Outcome::NotExecuted,
        }),
    }
}

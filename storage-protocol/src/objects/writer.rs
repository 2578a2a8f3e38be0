//! [`ObjectWriter`]: an object as it is being written.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::keys::{self, PartKey};
use super::replace::{Found, Intent, Replacement, clear_parts};
use super::{
    MAGIC, Manifest, ObjectId, ObjectInfo, ObjectOptions, ObjectWritten, PART_BYTES, patience,
};
use crate::{
    Batch, CommitOptions, Key, Lifetime, Limit, Limits, Outcome, Position, Result, Revision,
    Storage, StorageError, Value,
};

/// Parts on their way at once; with the one that is being filled, 4 MiB.
const IN_FLIGHT_MAX: usize = 3;

/// What a part's commit takes beside the part, and its key and its intent's.
const COMMIT_BYTES: usize = Batch::BASE_BYTES + 2 * Batch::ITEM_BYTES;

/// What is left of an object that nobody writes any more is removed when this is over: at once.
const AT_ONCE: Duration = Duration::from_millis(1);

type BoxCommit<'s> = Pin<Box<dyn Future<Output = Result<Position>> + Send + 's>>;

/// An object that is being written: [`write`](Self::write) what it is made of, then [`finish`](Self::finish).
///
/// Nothing is seen of it at its key until then. It holds at most 4 MiB, and sends parts while more is written.
///
/// If it is dropped, the server removes what was sent soon, by [`Storage::commit_unattended`]: of a remote client where the
/// drop is within a runtime, and the connection lasts. At the latest it goes when the session is over.
/// [`abort`](Self::abort) removes it before it returns.
///
/// # Cancel safety
/// A dropped call of `write` leaves it unknown what of the bytes was taken, so all later calls fail. A dropped call of
/// `finish` may have been done, as with any commit; no parts are left over either way.
pub struct ObjectWriter<'s> {
    storage: Arc<dyn Storage + 's>,
    key: Key,
    options: ObjectOptions,
    part_bytes: usize,
    key_bytes_max: usize,
    /// The bytes that are in no part yet.
    buffer: BytesMut,
    size: u64,
    /// Once there are parts.
    upload: Option<Upload>,
    in_flight: VecDeque<BoxCommit<'s>>,
    state: State,
}

#[derive(Debug)]
struct Upload {
    id: ObjectId,
    /// That of the intent, once its commit was answered.
    revision: Option<Revision>,
    /// How many parts were sent.
    parts: u32,
}

#[derive(Debug)]
enum State {
    Open,
    /// A call is at work; seen by another call, it was dropped.
    Busy,
    Failed(StorageError),
    Finished,
}

impl fmt::Debug for ObjectWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("key", &self.key.escape_ascii().to_string())
            .field("size", &self.size)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<'s> ObjectWriter<'s> {
    /// Begins to write the object at a key. `storage` is kept: an `Arc`, a clone of a client, or a reference.
    ///
    /// # Errors
    /// `InvalidArgument` for a key that is empty, or that of a part of another object; else as [`Storage::limits`].
    pub async fn new(
        storage: impl Storage + 's,
        key: Key,
        options: ObjectOptions,
    ) -> Result<ObjectWriter<'s>> {
        if key.is_empty() {
            return Err(StorageError::invalid("a key has at least one byte"));
        }
        if keys::is_part(&key) {
            return Err(StorageError::invalid(format!(
                "the key \"{}\" is that of a part of another object",
                key.escape_ascii()
            )));
        }
        let limits = storage.limits().await?;
        Ok(Self {
            part_bytes: part_bytes(&key, &limits),
            key_bytes_max: limits.key_bytes_max,
            storage: Arc::new(storage),
            key,
            options,
            buffer: BytesMut::new(),
            size: 0,
            upload: None,
            in_flight: VecDeque::new(),
            state: State::Open,
        })
    }

    /// The object's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// How many bytes were written.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds bytes, of any number; they are copied. Waits until there is room for them. After an error what was sent is
    /// removed, as far as that can be done now, and each later call fails by the same error.
    ///
    /// # Errors
    /// `LimitExceeded` with [`Limit::ObjectBytes`] for more than [`ObjectOptions::max_bytes`]; `InvalidArgument` for a key
    /// that leaves no room for those of parts; `CheckFailed` of the intent where the session's keys were removed meanwhile;
    /// else as [`Storage::commit`].
    pub async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.begin()?;
        let written = self.take(chunk).await;
        self.end(written).await
    }

    /// Shows the object, and tells what was there before.
    ///
    /// # Errors
    /// As [`ObjectWriter::finish_with`].
    pub async fn finish(mut self) -> Result<ObjectWritten> {
        let done = self
            .finish_with(Batch::new(), CommitOptions::default())
            .await;
        self.unless_failed(done).await
    }

    /// Shows the object in one commit together with other checks and operations, none of which may be on the object's key.
    ///
    /// If it is refused, or not executed, the writer is as before: it may be called again with another batch, or be dropped.
    ///
    /// # Errors
    /// As [`Storage::commit`]. `CheckFailed` of the object's key only where [`ObjectOptions::expected`], or a check of
    /// `batch`, demands something of it (or where it changes all the time); of the intent where the session's keys were
    /// removed meanwhile. After that one, and after an error whose outcome is unknown, each later call fails by the same.
    pub async fn finish_with(
        &mut self,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<ObjectWritten> {
        self.begin()?;
        let sent = self.send_rest().await;
        self.end(sent).await?;
        self.state = State::Busy;
        match self.show(&batch, &options).await {
            Ok(written) => {
                self.upload = None;
                self.state = State::Finished;
                Ok(written)
            }
            Err(error) if self.is_final(&error) => self.end(Err(error)).await,
            Err(error) => {
                self.state = State::Open;
                Err(error)
            }
        }
    }

    /// Gives the object up, and removes what was sent of it.
    ///
    /// # Errors
    /// As [`Storage::commit`]; then the server removes it.
    pub async fn abort(mut self) -> Result<()> {
        self.clear().await
    }

    /// On an error, removes what was sent.
    pub(super) async fn unless_failed<T>(&mut self, done: Result<T>) -> Result<T> {
        if done.is_err() {
            // Best effort: what is left, the server removes.
            let _ = self.clear().await;
        }
        done
    }

    fn begin(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Busy) {
            State::Open => Ok(()),
            State::Busy => {
                let error = "an earlier call of the object's writer was dropped, so what it wrote is not known: begin again";
                self.state = State::Failed(StorageError::invalid(error));
                Err(StorageError::invalid(error))
            }
            State::Failed(error) => {
                self.state = State::Failed(error.clone());
                Err(error)
            }
            State::Finished => {
                self.state = State::Finished;
                Err(StorageError::invalid("the object is finished"))
            }
        }
    }

    async fn end<T>(&mut self, done: Result<T>) -> Result<T> {
        match &done {
            Ok(_) => self.state = State::Open,
            Err(error) => {
                self.state = State::Failed(error.clone());
                let _ = self.clear().await;
            }
        }
        done
    }

    async fn take(&mut self, mut chunk: Bytes) -> Result<()> {
        let size = self.size.saturating_add(chunk.len() as u64);
        let max = self.bytes_max();
        if size > max {
            return Err(StorageError::LimitExceeded {
                limit: Limit::ObjectBytes,
                max,
                actual: size,
            });
        }
        self.size = size;
        while !chunk.is_empty() {
            // Only when more comes: an object of one part is a plain value.
            if self.buffer.len() >= self.part_bytes {
                self.send_part().await?;
            }
            let room = self.part_bytes - self.buffer.len();
            let taken = chunk.split_to(room.min(chunk.len()));
            // The buffer grows to a part, and no further.
            let wanted = self.part_bytes.min(2 * (self.buffer.len() + taken.len()));
            if self.buffer.capacity() < self.buffer.len() + taken.len() {
                self.buffer.reserve(wanted - self.buffer.len());
            }
            self.buffer.extend_from_slice(&taken);
        }
        Ok(())
    }

    fn bytes_max(&self) -> u64 {
        let of_parts = (self.part_bytes as u64).saturating_mul(u64::from(u32::MAX));
        self.options.max_bytes.unwrap_or(of_parts).min(of_parts)
    }

    /// Sends what is in the buffer as the next part.
    async fn send_part(&mut self) -> Result<()> {
        let (id, revision) = self.intent().await?;
        let Some(upload) = &mut self.upload else {
            return Err(StorageError::invalid("the object is finished"));
        };
        let number = upload.parts;
        upload.parts += 1;
        let part = std::mem::take(&mut self.buffer).freeze();
        let batch = Batch::new()
            .check_revision(PartKey::intent(&self.key, id), revision)
            .put(PartKey::part(&self.key, id, number), part);
        let (storage, wait) = (self.storage.clone(), self.options.wait);
        self.in_flight.push_back(Box::pin(async move {
            let options = CommitOptions::labelled("object part");
            patience::commit(&*storage, batch, options, wait).await
        }));
        self.drive(IN_FLIGHT_MAX).await
    }

    /// The id, and the intent's revision; puts the intent if that is not done.
    async fn intent(&mut self) -> Result<(ObjectId, Revision)> {
        if let Some(Upload {
            id,
            revision: Some(revision),
            ..
        }) = self.upload
        {
            return Ok((id, revision));
        }
        keys::check_room(&self.key, self.key_bytes_max)?;
        if self.part_bytes == 0 {
            let max = self.storage.limits().await?.message_bytes_max;
            return Err(StorageError::limit(Limit::Message, COMMIT_BYTES, max));
        }
        let id = random_id()?;
        // Ordering: before the commit, so that a writer that is dropped meanwhile has it removed.
        self.upload = Some(Upload {
            id,
            revision: None,
            parts: 0,
        });
        let intent = PartKey::intent(&self.key, id);
        let batch = Batch::new().put_with(intent, Value::new(), Lifetime::Session);
        let options = CommitOptions::labelled("object begun");
        let wait = self.options.wait;
        let begun = patience::commit(&*self.storage, batch, options, wait).await?;
        let revision = begun.revision;
        self.upload = Some(Upload {
            id,
            revision: Some(revision),
            parts: 0,
        });
        Ok((id, revision))
    }

    /// Waits until at most so many parts are on their way.
    async fn drive(&mut self, max: usize) -> Result<()> {
        poll_fn(|cx| self.poll_in_flight(cx, max)).await
    }

    fn poll_in_flight(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<()>> {
        let mut failed = None;
        // All of them, also those behind one that waits: in the order in which they were sent.
        self.in_flight
            .retain_mut(|commit| match commit.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(done) => {
                    let error = done.err();
                    failed = failed.take().or(error);
                    false
                }
            });
        match failed {
            Some(error) => Poll::Ready(Err(error)),
            None if self.in_flight.len() <= max => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    /// Sends what is left, and waits for all of it. A small object stays in the buffer: it is a plain value.
    async fn send_rest(&mut self) -> Result<()> {
        let is_plain = self.upload.is_none() && !self.buffer.starts_with(MAGIC);
        if !is_plain && !self.buffer.is_empty() {
            self.send_part().await?;
        }
        self.drive(0).await
    }

    async fn show(&mut self, batch: &Batch, options: &CommitOptions) -> Result<ObjectWritten> {
        let storage = self.storage.clone();
        let manifest = self.upload.as_ref().map(|upload| Manifest {
            id: upload.id,
            size: self.size,
            part_bytes: self.part_bytes as u64,
        });
        let replacement = Replacement {
            key: &self.key,
            value: Some(match manifest {
                Some(manifest) => manifest.encode(),
                None => Bytes::copy_from_slice(&self.buffer),
            }),
            intent: self.sent(),
            expected: self.options.expected,
            wait: self.options.wait,
        };
        let done = replacement.commit(&*storage, batch, options).await;
        let (written, old) = match (done, manifest) {
            (Ok((position, old)), _) => (position, old.info()),
            // The id is this writing's alone, so it tells whether it was done. What was there before is not known then.
            (Err(error), Some(manifest)) if error.outcome() == Outcome::Unknown => {
                let Ok(found) = Found::look(&*storage, &self.key).await else {
                    return Err(error);
                };
                match found.info() {
                    Some(info) if info.id == Some(manifest.id) => (info.written, None),
                    _ => return Err(error),
                }
            }
            (Err(error), _) => return Err(error),
        };
        Ok(ObjectWritten {
            info: ObjectInfo {
                size: self.size,
                written,
                id: manifest.map(|manifest| manifest.id),
                lifetime: crate::EntryLifetime::Forever,
            },
            previous: old,
        })
    }

    fn sent(&self) -> Option<Intent> {
        let upload = self.upload.as_ref()?;
        Some(Intent {
            id: upload.id,
            revision: upload.revision?,
        })
    }

    /// Whether nothing can be done any more after an attempt to finish.
    fn is_final(&self, error: &StorageError) -> bool {
        let intent = self
            .upload
            .as_ref()
            .map(|upload| PartKey::intent(&self.key, upload.id));
        if let StorageError::CheckFailed { key, .. } = error {
            return Some(key) == intent.as_ref();
        }
        error.outcome() == Outcome::Unknown
    }

    /// Removes what was sent. Commits of one handle are applied in the order in which they are sent, so no part, and no
    /// manifest, comes behind.
    async fn clear(&mut self) -> Result<()> {
        // Whatever becomes of them.
        while self.drive(0).await.is_err() {}
        let Some(upload) = &self.upload else {
            return Ok(());
        };
        let (id, parts) = (upload.id, upload.parts);
        match self.sent() {
            Some(intent) => clear_parts(&*self.storage, &self.key, intent, parts).await?,
            None => {
                let batch = Batch::new().remove(PartKey::intent(&self.key, id));
                let options = CommitOptions::labelled("object cleared");
                self.storage.commit(batch, options).await?;
            }
        }
        self.upload = None;
        Ok(())
    }
}

impl Drop for ObjectWriter<'_> {
    /// Has the server remove what was sent, by a commit that nobody waits for. If that fails, the parts go with the session.
    fn drop(&mut self) {
        let Some(upload) = self.upload.take() else {
            return;
        };
        let intent = PartKey::intent(&self.key, upload.id);
        let batch = match upload.revision {
            Some(revision) => Batch::new().check_revision(intent.clone(), revision),
            None => Batch::new(),
        };
        let batch = batch.put_with(intent, Value::new(), Lifetime::TimeToLive(AT_ONCE));
        let options = CommitOptions::labelled("object given up");
        // Parts that were not handed over yet are given up before it is, and those that were come before it: either way none
        // comes behind.
        self.in_flight.clear();
        self.storage.commit_unattended(batch, options);
    }
}

/// The most bytes of a part. 0: not even one fits into a message.
fn part_bytes(key: &Key, limits: &Limits) -> usize {
    let keys = PartKey::part(key, ObjectId([0; 16]), 0).len() * 2;
    let in_message = limits.message_bytes_max.saturating_sub(COMMIT_BYTES + keys);
    PART_BYTES.min(limits.value_bytes_max).min(in_message)
}

fn random_id() -> Result<ObjectId> {
    let mut id = [0; 16];
    let filled = getrandom::fill(&mut id);
    filled.map_err(|error| StorageError::Internal {
        message: format!("no random bytes: {error}"),
        outcome: Outcome::NotExecuted,
    })?;
    Ok(ObjectId(id))
}

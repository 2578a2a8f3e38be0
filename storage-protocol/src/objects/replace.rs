//! The commit that puts or removes an object, and what it makes unneeded.

use std::time::Duration;

use super::keys::PartKey;
use super::sweep::sweep_object;
use super::{Manifest, ObjectId, ObjectInfo, ObjectRemoved, PARTS_PER_REMOVAL, Wait, patience};
use crate::{
    Batch, CommitOptions, Entry, Expected, Key, Lifetime, Position, Result, Revision, Storage,
    StorageError, Value,
};

/// How often a commit is repeated because the object changed meanwhile. Each time somebody else's was done.
const ATTEMPTS: u32 = 64;

/// So long after an object was replaced its parts are there at most, if the client that replaced it does not remove them.
pub(super) const CLEAR_WITHIN: Duration = Duration::from_secs(60);

/// What is at a key.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) position: Position,
    pub(super) entry: Option<Entry>,
}

impl Found {
    pub(super) async fn look(storage: &dyn Storage, key: &Key) -> Result<Self> {
        let reading = storage.get(std::slice::from_ref(key)).await?;
        Ok(Self {
            position: reading.position,
            entry: reading.value.into_iter().next().flatten(),
        })
    }

    pub(super) fn revision(&self) -> Option<Revision> {
        Some(self.entry.as_ref()?.revision)
    }

    /// The manifest that is there. A value that only begins like one has no parts that could be known.
    pub(super) fn manifest(&self) -> Option<Manifest> {
        Manifest::decode(&self.entry.as_ref()?.value).ok()?
    }

    pub(super) fn names(&self, id: ObjectId) -> bool {
        self.manifest().is_some_and(|manifest| manifest.id == id)
    }

    pub(super) fn info(&self) -> Option<ObjectInfo> {
        let entry = self.entry.as_ref()?;
        let manifest = self.manifest();
        Some(ObjectInfo {
            size: manifest.map_or(entry.value.len() as u64, |manifest| manifest.size),
            written: Position {
                revision: entry.revision,
                ..self.position
            },
            id: manifest.map(|manifest| manifest.id),
            lifetime: entry.lifetime,
        })
    }

    /// Demands that it is still so.
    pub(super) fn checked(&self, batch: Batch, key: &Key) -> Batch {
        match self.revision() {
            Some(revision) => batch.check_revision(key.clone(), revision),
            None => batch.check_absent(key.clone()),
        }
    }
}

/// Parts under an id, and the revision of the intent that says that they belong to no object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intent {
    pub(super) id: ObjectId,
    pub(super) revision: Revision,
}

/// What is to become of the object at a key.
#[derive(Debug)]
pub(super) struct Replacement<'a> {
    pub(super) key: &'a Key,
    /// `None`: it is removed.
    pub(super) value: Option<Value>,
    /// Of the parts that the value names.
    pub(super) intent: Option<Intent>,
    pub(super) expected: Option<Expected>,
    pub(super) wait: Option<Wait>,
}

impl Replacement<'_> {
    /// Commits it together with the caller's checks and operations, and tells what was there just before. Waits until
    /// what the old object leaves is removed, as far as that can be done now.
    ///
    /// # Errors
    /// As [`Storage::commit`]. `CheckFailed` for this key only where the caller demands something of it.
    pub(super) async fn commit(
        &self,
        storage: &dyn Storage,
        batch: &Batch,
        options: &CommitOptions,
    ) -> Result<(Position, Found)> {
        let mut attempts = 0;
        let (position, old, said) = loop {
            attempts += 1;
            let old = Found::look(storage, self.key).await?;
            self.check_expected(&old)?;
            let mut said = old.manifest();
            let whole = self.batch(&old, batch, said);
            let mut done = patience::commit(storage, whole, options.clone(), self.wait).await;
            // A full disk takes nothing that puts, not even the small key that says which parts are to go.
            if let Err(StorageError::StorageFull { .. }) = done
                && self.value.is_none()
                && said.take().is_some()
            {
                let whole = self.batch(&old, batch, None);
                done = storage.commit(whole, options.clone()).await;
            }
            match done {
                Ok(position) => break (position, old, said),
                Err(StorageError::CheckFailed { key, .. })
                    if key == *self.key && attempts < ATTEMPTS && !self.is_callers(batch) => {}
                Err(error) => return Err(error),
            }
        };
        clear_old(storage, self.key, said, position.revision).await;
        Ok((position, old))
    }

    fn check_expected(&self, old: &Found) -> Result<()> {
        let actual = old.revision();
        let holds = match self.expected {
            None => true,
            Some(Expected::Absent) => actual.is_none(),
            Some(Expected::At(revision)) => actual == Some(revision),
        };
        match holds {
            true => Ok(()),
            false => Err(StorageError::CheckFailed {
                key: self.key.clone(),
                actual,
            }),
        }
    }

    /// Whether the caller is to hear of it when the object changed.
    fn is_callers(&self, batch: &Batch) -> bool {
        self.expected.is_some() || batch.checks.iter().any(|check| check.key == *self.key)
    }

    /// `goes`: the manifest whose parts are said to belong to no object any more.
    fn batch(&self, old: &Found, callers: &Batch, goes: Option<Manifest>) -> Batch {
        let mut batch = Batch::new();
        if let Some(Intent { id, revision }) = self.intent {
            let intent = PartKey::intent(self.key, id);
            batch = batch
                .check_revision(intent.clone(), revision)
                .remove(intent);
        }
        batch = old.checked(batch, self.key);
        batch = match &self.value {
            Some(value) => batch.put(self.key.clone(), value.clone()),
            None => batch.remove(self.key.clone()),
        };
        batch = says_gone(batch, self.key, goes);
        batch.checks.extend(callers.checks.iter().cloned());
        batch.operations.extend(callers.operations.iter().cloned());
        batch
    }
}

/// Removes what an object left that was replaced or removed at this revision, where `said` is the manifest whose intent was
/// put. What cannot be removed now, the server removes later, or the next writer of the object does.
async fn clear_old(storage: &dyn Storage, key: &Key, said: Option<Manifest>, revision: Revision) {
    match said {
        Some(manifest) => {
            let intent = Intent {
                id: manifest.id,
                revision,
            };
            let _ = clear_parts(storage, key, intent, manifest.parts()).await;
        }
        // Whoever put a manifest has looked. Behind a plain value, or none, an object may have been; and parts that there
        // was no room to say of are found in the same way.
        None => {
            let _ = sweep_object(storage, key).await;
        }
    }
}

/// Removes the parts of an id, those below a number, and then the intent, while this has its revision. It only removes, so
/// that it is taken also where the disk, or a quota, is full.
///
/// # Errors
/// `CheckFailed` where the intent has another revision: then nothing more is removed. Else as [`Storage::commit`].
pub(super) async fn clear_parts(
    storage: &dyn Storage,
    key: &Key,
    Intent { id, revision }: Intent,
    parts: u32,
) -> Result<()> {
    let intent = PartKey::intent(key, id);
    // One more for the intent.
    let max = storage.limits().await?.operations_per_commit_max - 1;
    let step = u32::try_from(max.clamp(1, PARTS_PER_REMOVAL)).unwrap_or(1);
    let mut first = 0u32;
    loop {
        let last = first.saturating_add(step).min(parts);
        let mut batch = Batch::new().check_revision(intent.clone(), revision);
        for number in first..last {
            batch = batch.remove(PartKey::part(key, id, number));
        }
        if last == parts {
            batch = batch.remove(intent.clone());
        }
        let label = CommitOptions::labelled("object cleared");
        storage.commit(batch, label).await?;
        if last == parts {
            return Ok(());
        }
        first = last;
    }
}

/// What is at a key, as an object; `None`: nothing.
pub(crate) async fn object_info(storage: &dyn Storage, key: &Key) -> Result<Option<ObjectInfo>> {
    let found = Found::look(storage, key).await?;
    let value = found.entry.as_ref().map_or(&[][..], |entry| &entry.value);
    Manifest::decode(value)?;
    Ok(found.info())
}

/// Removes the object at a key, whatever its size, in one commit together with other checks and operations, none of which may
/// be on the key itself; then what it leaves. An absent one is no error.
///
/// As durable as the commit. If the call is dropped, or fails, behind the commit, the server removes the parts.
///
/// # Errors
/// As [`Storage::commit`]; `CheckFailed` of the key itself only where `expected`, or a check of `batch`, demands something of
/// it.
pub async fn remove_object_with(
    storage: &dyn Storage,
    key: Key,
    expected: Option<Expected>,
    batch: Batch,
    options: CommitOptions,
) -> Result<ObjectRemoved> {
    let replacement = Replacement {
        key: &key,
        value: None,
        intent: None,
        expected,
        wait: None,
    };
    let (position, old) = replacement.commit(storage, &batch, &options).await?;
    Ok(ObjectRemoved {
        position,
        previous: old.info(),
    })
}

/// Removes the objects at several keys, whatever their sizes, in one commit together with other checks and operations, none
/// of which may be on the keys themselves; then what they leave. Absent ones are no error. Each key is read by itself, and
/// takes one operation and one check of the commit, an object one operation more.
///
/// As durable as the commit. If the call is dropped, or fails, behind the commit, the server removes the parts.
///
/// # Errors
/// As [`Storage::commit`]; `CheckFailed` of one of the keys only where a check of `batch` demands something of it, or where
/// one of them changes all the time.
pub async fn remove_objects_with(
    storage: &dyn Storage,
    keys: &[Key],
    batch: Batch,
    options: CommitOptions,
) -> Result<Position> {
    let mut attempts = 0;
    let mut has_room = true;
    loop {
        attempts += 1;
        let mut whole = Batch::new();
        let mut gone = Vec::with_capacity(keys.len());
        for key in keys {
            let old = Found::look(storage, key).await?;
            let said = old.manifest().filter(|_| has_room);
            whole = old.checked(whole, key).remove(key.clone());
            whole = says_gone(whole, key, said);
            gone.push((key, said));
        }
        whole.checks.extend(batch.checks.iter().cloned());
        whole.operations.extend(batch.operations.iter().cloned());
        match storage.commit(whole, options.clone()).await {
            Ok(position) => {
                for (key, said) in gone {
                    clear_old(storage, key, said, position.revision).await;
                }
                return Ok(position);
            }
            // As of one object: the keys that say which parts are to go are left out.
            Err(StorageError::StorageFull { .. })
                if gone.iter().any(|(_, said)| said.is_some()) =>
            {
                has_room = false;
            }
            Err(StorageError::CheckFailed { key, .. })
                if keys.contains(&key)
                    && attempts < ATTEMPTS
                    && !batch.checks.iter().any(|check| check.key == key) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Says that the parts of a manifest belong to no object any more.
fn says_gone(batch: Batch, key: &Key, goes: Option<Manifest>) -> Batch {
    let Some(manifest) = goes else {
        return batch;
    };
    let intent = PartKey::intent(key, manifest.id);
    batch.put_with(intent, Value::new(), Lifetime::TimeToLive(CLEAR_WITHIN))
}

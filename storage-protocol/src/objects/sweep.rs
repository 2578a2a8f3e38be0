//! Parts that belong to no object and have no intent: left by a plain put or remove over an object, or by an import.
//!
//! Safe beside running writers. Parts of an id come into being under its intent only, and the commit that shows them as an
//! object takes the intent away: an id that was seen with parts, and afterwards with neither intent nor manifest, gets no
//! object any more. The commit that removes the parts checks both once more, for those who put a manifest back (an import).

use super::keys::{PartKey, has_room, parts_from, parts_range};
use super::replace::Found;
use super::{ObjectId, PARTS_PER_REMOVAL};
use crate::{Batch, CommitOptions, Key, KeyRange, Result, ScanOptions, Storage, StorageError};

/// Ids of one object that are looked at when it is written: others wait for a later look.
const IDS_PER_OBJECT: usize = 1000;

/// Keys of one scan where the last one met parts, and where many scans met none. The server reads the values of all of
/// them, and parts have large ones.
const KEYS_MIN: u64 = 16;
const KEYS_MAX: u64 = 1024;

/// What [`sweep_objects`](crate::StorageExt::sweep_objects) removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Ids with parts that belonged to no object.
    pub objects: u64,
    /// Parts of these.
    pub parts: u64,
}

/// Removes the parts that belong to no object, in a range.
pub(crate) async fn sweep_objects(storage: &dyn Storage, range: KeyRange) -> Result<Swept> {
    let mut swept = Swept::default();
    let mut left = range;
    let mut limit = KEYS_MIN;
    loop {
        let keys = keys(storage, &left, limit).await?;
        let parts = keys.iter().find_map(|key| PartKey::parse(key));
        match (parts, keys.last()) {
            (Some(PartKey { object, id, number }), _) => {
                if number.is_some() {
                    swept.add(sweep_id(storage, &object, id).await?);
                }
                // Behind all parts of the id, whatever became of them.
                let Some(end) = parts_from(&object, id, 0).end else {
                    return Ok(swept);
                };
                left.start = end;
                limit = KEYS_MIN;
            }
            (None, Some(last)) if keys.len() as u64 == limit => {
                left.start = behind(last);
                limit = KEYS_MAX.min(2 * limit);
            }
            (None, _) => return Ok(swept),
        }
    }
}

impl Swept {
    fn add(&mut self, parts: u64) {
        self.objects += u64::from(parts > 0);
        self.parts += parts;
    }
}

/// Removes those of one object.
pub(super) async fn sweep_object(storage: &dyn Storage, key: &Key) -> Result<()> {
    if !has_room(key, storage.limits().await?.key_bytes_max) {
        return Ok(());
    }
    let mut left = parts_range(key);
    for _ in 0..IDS_PER_OBJECT {
        let Some(first) = keys(storage, &left, 1).await?.pop() else {
            return Ok(());
        };
        left.start = match PartKey::parse(&first) {
            Some(PartKey { object, id, number }) if object == *key => {
                if number.is_some() {
                    sweep_id(storage, key, id).await?;
                }
                match parts_from(key, id, 0).end {
                    Some(end) => end,
                    None => return Ok(()),
                }
            }
            _ => behind(&first),
        };
    }
    Ok(())
}

/// Removes the parts of an id that was seen with some, if they belong to no object; how many.
async fn sweep_id(storage: &dyn Storage, object: &Key, id: ObjectId) -> Result<u64> {
    let intent = PartKey::intent(object, id);
    let read = [object.clone(), intent.clone()];
    let reading = storage.get(&read).await?;
    let mut entries = reading.value.into_iter();
    let found = Found {
        position: reading.position,
        entry: entries.next().flatten(),
    };
    if found.names(id) || entries.next().flatten().is_some() {
        return Ok(0);
    }
    let operations = storage.limits().await?.operations_per_commit_max;
    let step = operations.clamp(1, PARTS_PER_REMOVAL) as u64;
    let mut range = parts_from(object, id, 0);
    let mut removed = 0;
    loop {
        let keys = keys(storage, &range, step).await?;
        let Some(last) = keys.last() else {
            return Ok(removed);
        };
        range.start = behind(last);
        let mut batch = found
            .checked(Batch::new(), object)
            .check_absent(intent.clone());
        let before = keys.len() as u64;
        for key in keys {
            batch = batch.remove(key);
        }
        let options = CommitOptions::labelled("object swept");
        match storage.commit(batch, options).await {
            Ok(_) => removed += before,
            // Somebody else is at it, and removes what is left or leaves it for a later look.
            Err(StorageError::CheckFailed { .. }) => return Ok(removed),
            Err(error) => return Err(error),
        }
    }
}

async fn keys(storage: &dyn Storage, range: &KeyRange, limit: u64) -> Result<Vec<Key>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let options = ScanOptions {
        keys_only: true,
        limit: Some(limit),
        ..ScanOptions::default()
    };
    let items = storage
        .scan(range.clone(), options)
        .await?
        .collect()
        .await?;
    Ok(items.into_iter().map(|item| item.key).collect())
}

fn behind(key: &[u8]) -> Key {
    [key, &[0]].concat().into()
}

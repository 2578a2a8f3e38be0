//! Objects: values of any size, written and read as streams through any [`Storage`](crate::Storage), never held in memory.
//!
//! An object at key K is the entry at K. What fits into one part ([`PART_BYTES`]) is a plain value there. Anything larger
//! is a small [`Manifest`] at K, and *parts* under keys that begin with K; see [`PartKey`]. `docs/protocol.md`, *Objects*, is
//! the normative text.
//!
//! * **One commit shows an object.** Parts are put before it in commits of their own, under an id that is drawn for this one
//!   writing; the commit of the manifest makes all of them the object, and takes the one before away. It is as durable as
//!   any commit, and all parts are durable before it is sent.
//! * **Last writer wins.** Of two writers of one key each ends whole or not at all, and the later commit stands, unless
//!   [`ObjectOptions::expected`] says what must be there.
//! * **Nothing is left over.** While parts belong to no object, an *intent* says so: a key with the lifetime of the writer's
//!   session. When the server removes it, it removes the parts first: a writer that fails cleans up itself, one that is gone leaves that to the server. Each part's commit, and the manifest's, checks that the
//!   intent is there, so there are no parts without it, and no object without its parts.
//! * **An object that is read is one object.** If it is replaced meanwhile and its parts are gone, the reader fails with
//!   [`SnapshotExpired`](crate::StorageError::SnapshotExpired): begin again.
//!
//! Scans, watches and replicas of a range see parts and intents as the entries they are; [`is_part`] tells them apart. Who
//! writes or removes an object needs to read and write all keys that begin with K, who reads it to read them; quotas count
//! parts as what they are, so that replacing an object needs room for both.
//!
//! A plain put or remove of K by somebody who knows nothing of objects leaves parts without an intent. The next writer or
//! remover of the object at K removes them, and [`sweep_objects`](crate::StorageExt::sweep_objects) does so for a range. Do
//! not put a lifetime on a manifest, for the same reason.

mod keys;
mod manifest;
mod patience;
mod reader;
mod replace;
mod sweep;
mod writer;

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

pub use self::keys::{PartKey, is_part, parts_range};
pub use self::manifest::{MAGIC, Manifest, ManifestError};
pub use self::reader::ObjectReader;
pub(crate) use self::replace::object_info;
pub use self::replace::{remove_object_with, remove_objects_with};
pub use self::sweep::Swept;
pub(crate) use self::sweep::sweep_objects;
pub use self::writer::ObjectWriter;
use crate::{EntryLifetime, Expected, Position};

/// The most bytes of a part, and of an object that is a plain value. Less where [`Limits::value_bytes_max`] or
/// [`Limits::message_bytes_max`] is smaller.
///
/// [`Limits::value_bytes_max`]: crate::Limits::value_bytes_max
/// [`Limits::message_bytes_max`]: crate::Limits::message_bytes_max
pub const PART_BYTES: usize = 1 << 20;

/// Parts removed in one commit: the server looks at each value that goes, and other commits wait for that.
pub const PARTS_PER_REMOVAL: usize = 32;

/// The id of one writing of an object: 16 random bytes. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u8; 16]);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({self})")
    }
}

/// Waits for so long: what the runtime of the writer has for that.
pub type Wait = fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// How an object is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct ObjectOptions {
    /// The most bytes it may have; more is refused with [`Limit::ObjectBytes`](crate::Limit::ObjectBytes). Default: what
    /// 2³² - 1 parts hold.
    pub max_bytes: Option<u64>,
    /// What must be at the key just before the commit that shows the object; else that fails with `CheckFailed`. Default:
    /// anything.
    pub expected: Option<Expected>,
    /// How to wait where a commit is refused as `Overloaded`, by a quota of commits or bytes per second for instance: each
    /// is then sent again for up to 30 s. Default: it fails.
    pub wait: Option<Wait>,
}

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its bytes.
    pub size: u64,
    /// The commit that put it, which is the revision of the entry at its key.
    pub written: Position,
    /// The id of its parts; `None`: it is a plain value.
    pub id: Option<ObjectId>,
    /// How long the entry at its key lives.
    pub lifetime: EntryLifetime,
}

impl ObjectInfo {
    /// A text without spaces that differs between any two contents that the object had: the id, or the position of a plain
    /// value.
    #[must_use]
    pub fn etag(&self) -> String {
        match self.id {
            Some(id) => id.to_string(),
            None => self.written.to_string(),
        }
    }
}

/// What [`ObjectWriter::finish`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectWritten {
    /// The object as it is now.
    pub info: ObjectInfo,
    /// What was there just before.
    pub previous: Option<ObjectInfo>,
}

/// What [`remove_object_with`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRemoved {
    /// The position of the commit.
    pub position: Position,
    /// What was there just before.
    pub previous: Option<ObjectInfo>,
}

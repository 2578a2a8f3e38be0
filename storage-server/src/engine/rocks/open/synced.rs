//! The file `SYNCED` beside the store: the last revision known to be on disk, and how the server last ended.
//!
//! RocksDB's recovery takes a damaged record in the WAL for its torn end and drops what follows without an error. With
//! this file, written each second after a sync, a start notices. It never names a revision that is not synced.
//!
//! It names its own file too, so that a copy of the folder can be told from the original: see [`Origin`].

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use storage_protocol::{Revision, UnixMillis};

use super::error::OpenError;
use crate::engine::rocks::options::Durability;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyncedFile {
    pub(crate) revision: Revision,
    /// The boot of the machine in which it was written.
    pub(crate) boot: String,
    pub(crate) durability: Durability,
    /// Whether the server ended in order, with everything synced.
    pub(crate) clean: bool,
    /// The engine's clock when it was written: the clock never goes back behind this.
    pub(crate) time: UnixMillis,
}

/// Whether the file that was found is the one that a server wrote, or a copy of it. If it is a copy, the folder was
/// copied or put back, and a server on the other folder gives (or gave) the same revisions to other commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Original,
    Copy,
    /// It was written by a version that did not name the file.
    Unknown,
}

/// What tells a file from its copies: inode and time of birth. A file that is moved within its file system keeps both.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileId {
    inode: u64,
    birth: Birth,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Birth {
    /// Nanoseconds since 1970.
    Time(u128),
    /// On a file system that keeps no times of birth: its device. This is weaker, since the inode number of a removed
    /// file may be used again.
    Device(u64),
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> Self {
        let born = metadata.created().ok();
        let born = born.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let birth = match born {
            Some(time) if !time.is_zero() => Birth::Time(time.as_nanos()),
            _ => Birth::Device(metadata.dev()),
        };
        let inode = metadata.ino();
        Self { inode, birth }
    }

    /// From its two words.
    fn parse(inode: &str, birth: &str) -> Option<Self> {
        let inode = inode.strip_prefix("inode=")?.parse().ok()?;
        let birth = match birth.strip_prefix("born=") {
            Some(time) => Birth::Time(time.parse().ok()?),
            None => Birth::Device(birth.strip_prefix("device=")?.parse().ok()?),
        };
        Some(Self { inode, birth })
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode={} ", self.inode)?;
        match self.birth {
            Birth::Time(time) => write!(f, "born={time}"),
            Birth::Device(device) => write!(f, "device={device}"),
        }
    }
}

impl SyncedFile {
    const FILE: &str = "SYNCED";

    pub(crate) fn read(folder: &Path) -> Result<Option<(Self, Origin)>, OpenError> {
        let path = folder.join(Self::FILE);
        let read = || -> io::Result<(String, fs::Metadata)> {
            let mut file = File::open(&path)?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok((text, file.metadata()?))
        };
        let (text, metadata) = match read() {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(OpenError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        let Some((mark, named)) = Self::parse(&text) else {
            let what = format!("SYNCED says {text:?}");
            return Err(OpenError::NotAStore {
                path: folder.to_owned(),
                what,
            });
        };
        let origin = match named {
            None => Origin::Unknown,
            // With a second name (`cp --link`) another folder may have the same file.
            Some(named) if named == FileId::of(&metadata) && metadata.nlink() == 1 => {
                Origin::Original
            }
            Some(_) => Origin::Copy,
        };
        Ok(Some((mark, origin)))
    }

    fn parse(text: &str) -> Option<(Self, Option<FileId>)> {
        let mut words = text.trim_end_matches('\n').split(' ');
        let mark = Self {
            revision: Revision(words.next()?.parse().ok()?),
            time: UnixMillis(words.next()?.parse().ok()?),
            durability: match words.next()? {
                "sync" => Durability::Sync,
                "os" => Durability::Os,
                _ => return None,
            },
            clean: match words.next()? {
                "clean" => true,
                "running" => false,
                _ => return None,
            },
            boot: words.next()?.to_owned(),
        };
        let named = match (words.next(), words.next()) {
            (None, _) => None,
            (Some(inode), birth) => Some(FileId::parse(inode, birth?)?),
        };
        words.next().is_none().then_some((mark, named))
    }

    /// Replaces `SYNCED` on disk, durably.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), OpenError> {
        let path = folder.join(Self::FILE);
        let durability = match self.durability {
            Durability::Sync => "sync",
            Durability::Os => "os",
        };
        let end = if self.clean { "clean" } else { "running" };
        let text = |file: &File| {
            let id = FileId::of(&file.metadata()?);
            let text = format!(
                "{} {} {durability} {end} {} {id}\n",
                self.revision, self.time.0, self.boot
            );
            Ok(text.into_bytes())
        };
        write_durably(&path, text).map_err(|source| OpenError::Io {
            action: "write",
            path,
            source,
        })
    }
}

/// Writes a file so that after a crash there is either the old content or the new, whole. The content may depend on the
/// file that it is written to.
pub(crate) fn write_durably(
    path: &Path,
    content: impl FnOnce(&File) -> io::Result<Vec<u8>>,
) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    let content = content(&file)?;
    file.write_all(&content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// The id of this boot of the machine; `unknown` if the system does not provide it (then every unclean end of a store
/// with `os` durability counts as a power loss).
pub(crate) fn boot_id() -> String {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) if !id.trim().is_empty() => id.trim().to_owned(),
        _ => format!("unknown-{}", rand::random::<u64>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip_and_damage_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(SyncedFile::read(folder.path()).unwrap(), None);
        let mark = SyncedFile {
            revision: Revision(7),
            boot: boot_id(),
            durability: Durability::Os,
            clean: true,
            time: UnixMillis(5),
        };
        mark.write(folder.path()).unwrap();
        let found = SyncedFile::read(folder.path()).unwrap();
        assert_eq!(found, Some((mark, Origin::Original)));
        for damaged in [
            "7 5 os",
            "7 5 os clean b inode=1",
            "7 5 os clean b born=1 inode=1",
        ] {
            fs::write(folder.path().join(SyncedFile::FILE), damaged).unwrap();
            assert!(SyncedFile::read(folder.path()).is_err(), "{damaged}");
        }
    }

    #[test]
    fn a_copy_of_a_mark_is_told_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (folder.path().join("here"), folder.path().join("there"));
        fs::create_dir(&here).unwrap();
        let mark = SyncedFile {
            revision: Revision(7),
            boot: boot_id(),
            durability: Durability::Sync,
            clean: true,
            time: UnixMillis(5),
        };
        mark.write(&here).unwrap();
        let file = here.join(SyncedFile::FILE);
        let origin = |folder: &Path| SyncedFile::read(folder).unwrap().unwrap().1;
        fs::rename(&here, &there).unwrap();
        assert_eq!(origin(&there), Origin::Original, "moved");
        fs::create_dir(&here).unwrap();
        fs::copy(there.join(SyncedFile::FILE), &file).unwrap();
        assert_eq!(origin(&here), Origin::Copy);
        // Put back in place: the file is a later one that a server wrote, its content is the old one.
        mark.write(&here).unwrap();
        fs::copy(there.join(SyncedFile::FILE), &file).unwrap();
        assert_eq!(origin(&here), Origin::Copy, "put back in place");
        fs::remove_file(&file).unwrap();
        fs::hard_link(there.join(SyncedFile::FILE), &file).unwrap();
        assert_eq!(origin(&there), Origin::Copy, "two names");
        // What wrote no name, and a file system without times of birth.
        fs::remove_file(&file).unwrap();
        fs::write(&file, "7 5 sync clean boot\n").unwrap();
        assert_eq!(origin(&here), Origin::Unknown);
        let metadata = fs::metadata(&file).unwrap();
        for (device, expected) in [(metadata.dev(), true), (metadata.dev() + 1, false)] {
            let text = format!("inode={} device={device}", metadata.ino());
            let (inode, birth) = text.split_once(' ').unwrap();
            let named = FileId::parse(inode, birth).unwrap();
            assert_eq!(named.to_string(), text);
            let without_birth = FileId {
                birth: Birth::Device(metadata.dev()),
                ..FileId::of(&metadata)
            };
            assert_eq!(named == without_birth, expected);
        }
    }
}

//! The mark beside the store: the last revision known to be on disk, and how the server last ended.
//!
//! RocksDB's recovery takes a damaged record in the WAL for its torn end and drops what follows without a word. The
//! mark, written each second after a sync, is what notices. It never names a revision that is not synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use storage_protocol::{Revision, UnixMillis, planted};

use super::Durability;
use super::open::OpenError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) revision: Revision,
    /// The boot of the machine that it was written in.
    pub(super) boot: String,
    pub(super) durability: Durability,
    /// Whether the server ended in order, with everything synced.
    pub(super) clean: bool,
    /// The engine's clock then: it never goes back behind this.
    pub(super) time: UnixMillis,
}

impl Mark {
    const FILE: &str = "SYNCED";

    pub(super) fn read(folder: &Path) -> Result<Option<Self>, OpenError> {
        let path = folder.join(Self::FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(OpenError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        match Self::parse(&text) {
            Some(mark) => Ok(Some(mark)),
            None => {
                let what = format!("SYNCED says {text:?}");
                Err(OpenError::NotAStore {
                    path: folder.to_owned(),
                    what,
                })
            }
        }
    }

    fn parse(text: &str) -> Option<Self> {
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
        words.next().is_none().then_some(mark)
    }

    /// Replaces the mark on disk, durably.
    pub(super) fn write(&self, folder: &Path) -> Result<(), OpenError> {
        let path = folder.join(Self::FILE);
        let durability = match self.durability {
            Durability::Sync => "sync",
            Durability::Os => "os",
        };
        let end = if self.clean { "clean" } else { "running" };
        let text = format!(
            "{} {} {durability} {end} {}\n",
            self.revision, self.time.0, self.boot
        );
        write_durably(&path, text.as_bytes()).map_err(|source| OpenError::Io {
            action: "write",
            path,
            source,
        })
    }
}

/// Writes a file so that after a crash there is the old content or the new, whole.
pub(super) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(content)?;
    if !planted("mark-not-synced") {
        file.sync_all()?;
    }
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// The id of this boot of the machine; `unknown` where the system does not tell (then every unclean end of a store
/// with `os` durability counts as a power loss).
pub(super) fn boot_id() -> String {
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
        assert_eq!(Mark::read(folder.path()).unwrap(), None);
        let mark = Mark {
            revision: Revision(7),
            boot: boot_id(),
            durability: Durability::Os,
            clean: true,
            time: UnixMillis(5),
        };
        mark.write(folder.path()).unwrap();
        assert_eq!(Mark::read(folder.path()).unwrap(), Some(mark));
        fs::write(folder.path().join(Mark::FILE), "7 5 os").unwrap();
        assert!(Mark::read(folder.path()).is_err());
    }
}

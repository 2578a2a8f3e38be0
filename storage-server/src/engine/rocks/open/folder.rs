//! The data folder itself: creates it durably, or checks that it is one and that its files belong together.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::error::OpenError;
use super::synced::write_durably;
use crate::engine::rocks::layout::FORMAT;

/// Refuses a folder in which log files of a later state are beside those of a copy that was put back: RocksDB would
/// replay them over it, or take them for its history. The log is archived in order, so in a sound folder each archived
/// file is older than those in use.
pub(super) fn check_unmixed(path: &Path) -> Result<(), OpenError> {
    let numbers = |folder: &Path| -> Result<Vec<u64>, OpenError> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => {
                return Err(OpenError::Io {
                    action: "list",
                    path: folder.to_owned(),
                    source,
                });
            }
        };
        let number = |entry: io::Result<fs::DirEntry>| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_suffix(".log")?.parse().ok()
        };
        Ok(entries.filter_map(number).collect())
    };
    let in_use = numbers(&path.join("db"))?.into_iter().min();
    let archived = numbers(&path.join("db/archive"))?.into_iter().max();
    match (in_use, archived) {
        (Some(in_use), Some(archived)) if archived >= in_use => Err(OpenError::Mixed {
            path: path.to_owned(),
            what: format!(
                "db/archive/{archived:06}.log is no older than db/{in_use:06}.log, which is in use"
            ),
        }),
        _ => Ok(()),
    }
}

pub(super) fn prepare_folder(path: &Path) -> Result<(), OpenError> {
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io {
            action,
            path,
            source,
        }
    };
    create_durably(path).map_err(io_error("create the data folder", path))?;
    let store = path.join("STORE");
    match fs::read_to_string(&store) {
        Ok(text) => match text
            .trim()
            .strip_prefix("storage-sync store, format ")
            .map(str::parse::<u32>)
        {
            Some(Ok(found)) if found <= FORMAT => Ok(()),
            Some(Ok(found)) => Err(OpenError::NewerFormat {
                path: path.to_owned(),
                found,
            }),
            _ => Err(OpenError::NotAStore {
                path: path.to_owned(),
                what: format!("STORE says {text:?}"),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut entries = fs::read_dir(path).map_err(io_error("list", path))?;
            if entries.next().is_some() {
                let what = "it is not empty and has no file STORE".to_owned();
                return Err(OpenError::NotAStore {
                    path: path.to_owned(),
                    what,
                });
            }
            write_durably(&store, |_| {
                Ok(format!("storage-sync store, format {FORMAT}\n").into_bytes())
            })
            .map_err(io_error("write", &store))
        }
        Err(source) => Err(OpenError::Io {
            action: "read",
            path: store,
            source,
        }),
    }
}

/// Creates a folder, and those above it that are missing, and syncs their names: if a folder's name is not on disk, a
/// power loss takes the folder with everything that was synced in it.
fn create_durably(path: &Path) -> io::Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let made: Vec<_> = path.ancestors().take_while(is_missing).collect();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    let sync_name = |folder: &Path| {
        let above = folder
            .parent()
            .filter(|above| !above.as_os_str().is_empty());
        File::open(above.unwrap_or_else(|| Path::new(".")))?.sync_all()
    };
    if made.is_empty() {
        // A start that was killed may have created it without syncing its name. If somebody else created it, the folder
        // above need not be readable for us.
        let _ = sync_name(path);
    }
    made.into_iter().try_for_each(sync_name)
}

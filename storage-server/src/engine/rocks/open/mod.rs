//! Opening a data folder: what is checked before the first request, and the settings of RocksDB.
//!
//! A folder holds `STORE` (the format's version, readable without RocksDB), `SYNCED` (see [`synced`]) and `db/`. A
//! folder with any fault is refused with its path and the reason; nothing is ever repaired in silence.

mod database;
mod error;
mod folder;
mod synced;

use std::path::Path;

use rocksdb::{Cache, DB};
use storage_protocol::{Epoch, Revision, UnixMillis};

pub(crate) use self::database::BLOB_BYTES_MIN;
use self::database::{open_db, read_epochs, write_epochs};
pub use self::error::OpenError;
use self::folder::{check_unmixed, prepare_folder};
use self::synced::Origin;
pub(crate) use self::synced::{SyncedFile, boot_id};
use crate::engine::rocks::disk;
use crate::engine::rocks::options::{Durability, EngineOptions};

/// An opened store, before the engine's threads start.
pub(crate) struct Opened {
    pub(crate) db: DB,
    /// All histories, oldest first; the last is the present one.
    pub(crate) epochs: Vec<(Epoch, Revision)>,
    pub(crate) mark: SyncedFile,
}

/// Free disk that a start needs: recovery writes what the log in use holds into tables.
const START_BYTES: u64 = 256 << 20;

pub(crate) fn open(options: &EngineOptions) -> Result<Opened, OpenError> {
    match open_once(options) {
        // Nobody else uses the folder, or it would have been refused for that. A store that can be read is worth more
        // than the log's history.
        Err(error) if error.is_full() && disk::drop_log(&options.data, START_BYTES) > 0 => {
            open_once(options)
        }
        opened => opened,
    }
}

fn open_once(options: &EngineOptions) -> Result<Opened, OpenError> {
    let path = &options.data;
    prepare_folder(path)?;
    if let Some((_, Origin::Copy)) = SyncedFile::read(path)? {
        check_unmixed(path)?;
    }
    let cache = Cache::new_hyper_clock_cache(options.memory_bytes / 3, 0);
    let db = open_db(path, options, &cache)?;
    let recovered = Revision(db.latest_sequence_number());
    let (mark, origin) = SyncedFile::read(path)?.unzip();
    let mut epochs = read_epochs(&db, path)?;
    // An empty database is a new store only if nothing was ever synced (`is_new` below): else everything is lost.
    if let Some(mark) = mark.as_ref().filter(|mark| !mark.clean) {
        tracing::info!(
            revision = recovered.0,
            synced = mark.revision.0,
            "the store was not ended in order: it was recovered from its log"
        );
    }
    let is_new = recovered == Revision::ZERO
        && mark
            .as_ref()
            .is_none_or(|mark| mark.revision == Revision::ZERO);
    let fork = if is_new {
        Some(Revision::ZERO)
    } else {
        let lost = check_tail(path, options, mark.as_ref(), recovered)?;
        if let (Some(mark), Some(Origin::Copy)) = (&mark, origin)
            && mark.clean
            && recovered > mark.revision
        {
            let what = format!(
                "SYNCED tells of an orderly end at revision {}, and there are commits up to {recovered}",
                mark.revision
            );
            return Err(OpenError::Mixed {
                path: path.to_owned(),
                what,
            });
        }
        let again = check_origin(path, options, origin).then_some(recovered);
        lost.or(again)
            .or_else(|| epochs.is_empty().then_some(recovered))
    };
    if let Some(fork) = fork {
        let epoch = Epoch(rand::random());
        if is_new {
            // Before the epoch: a crash between the two then leaves a new store, not one whose `SYNCED` is missing.
            fresh_mark(options).write(path)?;
        } else {
            tracing::warn!(%epoch, revision = fork.0, "the store goes on under a new epoch, which forks at this revision");
        }
        epochs.push((epoch, fork));
        write_epochs(&db, path, &epochs)?;
    }
    let time = mark.map(|mark| mark.time).unwrap_or_default();
    let mark = SyncedFile {
        revision: Revision(db.latest_sequence_number()),
        time,
        ..fresh_mark(options)
    };
    // From here on the store is in use: after a crash `SYNCED` must not say that it ended cleanly.
    mark.write(path)?;
    Ok(Opened { db, epochs, mark })
}

fn fresh_mark(options: &EngineOptions) -> SyncedFile {
    SyncedFile {
        revision: Revision::ZERO,
        boot: boot_id(),
        durability: options.durability,
        clean: false,
        time: UnixMillis::ZERO,
    }
}

/// Whether commits are missing at the log's end: refused if synced ones are, else `Some(fork)` if the history forks.
fn check_tail(
    path: &Path,
    options: &EngineOptions,
    mark: Option<&SyncedFile>,
    recovered: Revision,
) -> Result<Option<Revision>, OpenError> {
    let Some(mark) = mark else {
        let what = "its SYNCED mark is missing, so lost commits could not be noticed";
        if options.accept_data_loss {
            return Ok(Some(recovered));
        }
        return Err(OpenError::NotAStore {
            path: path.to_owned(),
            what: what.to_owned(),
        });
    };
    if recovered < mark.revision {
        if options.accept_data_loss {
            return Ok(Some(recovered));
        }
        let path = path.to_owned();
        return Err(OpenError::DataLost {
            path,
            synced: mark.revision,
            recovered,
        });
    }
    // Writes that the operating system had not brought to disk are lost if the machine went down, and only then.
    let may_have_lost = mark.durability == Durability::Os && !mark.clean && mark.boot != boot_id();
    if may_have_lost {
        tracing::warn!("the machine ended without syncing: the store may have lost its tail");
    }
    Ok(may_have_lost.then_some(mark.revision))
}

/// Whether the history is to fork: because another copy of the folder may be in use too, and give the same next
/// revisions to other commits; or because a new epoch is asked for.
fn check_origin(path: &Path, options: &EngineOptions, origin: Option<Origin>) -> bool {
    let data = path.display();
    if origin == Some(Origin::Copy) {
        tracing::warn!(%data, "the data folder was copied or put back: its file SYNCED is not the one that a server wrote");
        return true;
    }
    if origin == Some(Origin::Unknown) {
        tracing::info!(%data, "SYNCED is of a version that did not name its file: the data folder is taken for no copy");
    }
    if options.new_epoch {
        tracing::warn!("a new epoch is asked for");
    }
    options.new_epoch
}

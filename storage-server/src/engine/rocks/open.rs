//! Opening a data folder: what is judged before the first request, and how RocksDB is set.
//!
//! A folder holds `STORE` (the format's version, readable without RocksDB), `SYNCED` (see [`mark`](super::mark)) and
//! `db/`. Whatever is wrong is refused with the path and the reason; nothing is ever repaired in silence.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    Options, WriteBatch, WriteBufferManager, WriteOptions,
};
use storage_protocol::{Epoch, Revision, UnixMillis, planted};

use super::disk;
use super::layout::{self, FORMAT, Table};
use super::mark::{Mark, Origin, boot_id};
use super::{Durability, EngineOptions};

/// With fewer open files than this, reads would open one for each block.
const OPEN_FILES_MIN: u32 = 64;

/// Why a data folder was not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file system said no.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("the data folder {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A newer version wrote it.
    #[error(
        "the data folder {} has format {found}; this version reads up to {FORMAT}: use a newer storage-server",
        path.display()
    )]
    NewerFormat {
        /// The folder.
        path: PathBuf,
        /// What `STORE` says.
        found: u32,
    },
    /// There is something else in it.
    #[error("{} is no storage-sync data folder: {what}", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// What speaks against it.
        what: String,
    },
    /// Commits that were durable are gone.
    #[error(
        "the data folder {} is damaged: commits up to revision {synced} were synced, but only those up to \
         {recovered} could be read. Restore a backup, or start with --accept-data-loss to go on from {recovered} \
         under a new epoch",
        path.display()
    )]
    DataLost {
        /// The folder.
        path: PathBuf,
        /// The last revision known to have been synced.
        synced: Revision,
        /// The last that was read.
        recovered: Revision,
    },
    /// A copy was put back over the files of a later state.
    #[error(
        "the data folder {} was put back over files of a later state: {what}. Empty the folder, then put the whole copy \
         back",
        path.display()
    )]
    Mixed {
        /// The folder.
        path: PathBuf,
        /// What shows it.
        what: String,
    },
    /// RocksDB cannot read it.
    #[error("the data folder {} cannot be read: {message}", path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What RocksDB says.
        message: String,
    },
}

/// An opened store, before the engine's threads start.
pub(super) struct Opened {
    pub(super) db: DB,
    /// All histories, oldest first; the last is the present one.
    pub(super) epochs: Vec<(Epoch, Revision)>,
    pub(super) mark: Mark,
}

impl OpenError {
    /// Whether the disk was full.
    fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Damaged { message, .. } => message.contains(NO_SPACE),
            _ => false,
        }
    }
}

/// What RocksDB says of a full disk.
const NO_SPACE: &str = "No space left on device";

/// What a start needs: recovery writes what the log in use holds into tables.
const START_BYTES: u64 = 256 << 20;

pub(super) fn open(options: &EngineOptions) -> Result<Opened, OpenError> {
    match open_once(options) {
        // Nobody else has it, or it would have been refused for that. Reads are worth more than history.
        Err(error) if error.is_full() && disk::drop_log(&options.data, START_BYTES) > 0 => {
            open_once(options)
        }
        opened => opened,
    }
}

fn open_once(options: &EngineOptions) -> Result<Opened, OpenError> {
    let path = &options.data;
    prepare_folder(path)?;
    if let Some((_, Origin::Copy)) = Mark::read(path)? {
        check_unmixed(path)?;
    }
    let cache = Cache::new_hyper_clock_cache(options.memory_bytes / 2, 0);
    let db = open_db(path, options, &cache)?;
    let recovered = Revision(db.latest_sequence_number());
    let (mark, origin) = Mark::read(path)?.unzip();
    let mut epochs = read_epochs(&db, path)?;
    // An empty database is a new store only where nothing was ever synced: else everything is lost.
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
        let lost = judge_tail(path, options, mark.as_ref(), recovered)?;
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
        let again = judge_origin(path, options, origin).then_some(recovered);
        lost.or(again)
            .or_else(|| epochs.is_empty().then_some(recovered))
    };
    if let Some(fork) = fork {
        let epoch = Epoch(rand::random());
        if is_new {
            // Before the epoch, so that a crash between the two leaves a new store and not one without its mark.
            fresh_mark(options).write(path)?;
        } else {
            tracing::warn!(%epoch, revision = fork.0, "the store goes on under a new epoch, which forks at this revision");
        }
        epochs.push((epoch, fork));
        write_epochs(&db, path, &epochs)?;
    }
    let time = mark.map(|mark| mark.time).unwrap_or_default();
    let mark = Mark {
        revision: Revision(db.latest_sequence_number()),
        time,
        ..fresh_mark(options)
    };
    // From here the store is in use: an unclean end must not find the mark of a clean one.
    mark.write(path)?;
    Ok(Opened { db, epochs, mark })
}

fn fresh_mark(options: &EngineOptions) -> Mark {
    Mark {
        revision: Revision::ZERO,
        boot: boot_id(),
        durability: options.durability,
        clean: false,
        time: UnixMillis::ZERO,
    }
}

/// What an unclean end means: `Some(fork)` if the history forks.
fn judge_tail(
    path: &Path,
    options: &EngineOptions,
    mark: Option<&Mark>,
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
    // What the operating system had and did not write is gone with its boot, and only then.
    let may_have_lost = mark.durability == Durability::Os && !mark.clean && mark.boot != boot_id();
    let may_have_lost = may_have_lost && !planted("fork-unnoticed");
    if may_have_lost {
        tracing::warn!("the machine ended without syncing: the store may have lost its tail");
    }
    Ok(may_have_lost.then_some(mark.revision))
}

/// Whether the history is to fork since others may go on from the same state, and give its next revisions to other commits.
fn judge_origin(path: &Path, options: &EngineOptions, origin: Option<Origin>) -> bool {
    let data = path.display();
    if origin == Some(Origin::Copy) && !planted("copy-unnoticed") {
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

/// Whether log files of a later state are beside those of a copy that was put back: RocksDB would replay them over it, or
/// take them for its history. The log is archived in order, so no archived file is as new as one that is in use.
fn check_unmixed(path: &Path) -> Result<(), OpenError> {
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

fn prepare_folder(path: &Path) -> Result<(), OpenError> {
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
            super::mark::write_durably(&store, |_| {
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

/// Makes a folder, and those above it that are missing. Their names are on disk then: whatever is synced in a folder
/// without a name is gone with it in a power cut.
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
    if planted("folder-not-synced") {
        return Ok(());
    }
    if made.is_empty() {
        // It may be of a start that was killed just behind making it. If somebody else made it, the folder above it
        // need not be readable for us.
        let _ = sync_name(path);
    }
    made.into_iter().try_for_each(sync_name)
}

fn open_db(path: &Path, options: &EngineOptions, cache: &Cache) -> Result<DB, OpenError> {
    let db_path = path.join("db");
    let families = Table::ALL
        .map(|table| ColumnFamilyDescriptor::new(table.name(), table_options(table, cache)));
    DB::open_cf_descriptors(&db_options(options, cache), &db_path, families).map_err(|error| {
        let message = error.to_string();
        if message.contains("lock") && message.contains("LOCK") {
            OpenError::InUse(path.to_owned())
        } else {
            OpenError::Damaged {
                path: path.to_owned(),
                message,
            }
        }
    })
}

fn db_options(options: &EngineOptions, cache: &Cache) -> Options {
    let mut db = Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    db.set_paranoid_checks(true);
    db.set_track_and_verify_wals_in_manifest(true);
    // The WAL is the change log: kept by age and size, never recycled (specs: a recycled file has no history).
    db.set_wal_ttl_seconds(options.log_age.as_secs());
    db.set_wal_size_limit_mb((options.log_bytes >> 20).max(1));
    db.set_recycle_log_file_num(0);
    // All tables are flushed together, so that no old WAL file is held back by an idle table.
    db.set_atomic_flush(true);
    db.set_max_total_wal_size(256 << 20);
    let memtables = (options.memory_bytes / 4).max(16 << 20);
    db.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        memtables,
        false,
        cache.clone(),
    ));
    db.set_max_background_jobs(2);
    db.set_max_open_files(
        i32::try_from(options.max_open_files.max(OPEN_FILES_MIN)).unwrap_or(i32::MAX),
    );
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(16 << 20);
    db
}

fn table_options(table: Table, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_format_version(6);
    let mut options = Options::default();
    options.set_write_buffer_size(64 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    if table == Table::Entries {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(4 * 1024);
        options.set_enable_blob_gc(true);
        options.set_blob_cache(cache);
    }
    options.set_block_based_table_factory(&blocks);
    options
}

fn read_epochs(db: &DB, path: &Path) -> Result<Vec<(Epoch, Revision)>, OpenError> {
    let damaged = |message: String| OpenError::Damaged {
        path: path.to_owned(),
        message,
    };
    let meta = db
        .cf_handle(Table::Meta.name())
        .ok_or_else(|| damaged("no table meta".to_owned()))?;
    match db
        .get_cf(meta, layout::EPOCHS_KEY)
        .map_err(|error| damaged(error.to_string()))?
    {
        None => Ok(Vec::new()),
        Some(row) => layout::decode_epochs(&row).map_err(|error| damaged(error.to_string())),
    }
}

fn write_epochs(db: &DB, path: &Path, epochs: &[(Epoch, Revision)]) -> Result<(), OpenError> {
    let damaged = |message: String| OpenError::Damaged {
        path: path.to_owned(),
        message,
    };
    let meta = db
        .cf_handle(Table::Meta.name())
        .ok_or_else(|| damaged("no table meta".to_owned()))?;
    let mut batch = WriteBatch::default();
    batch.put_cf(meta, layout::EPOCHS_KEY, layout::encode_epochs(epochs));
    let mut sync = WriteOptions::default();
    sync.set_sync(!planted("epoch-not-synced"));
    db.write_opt(batch, &sync)
        .map_err(|error| damaged(error.to_string()))
}

//! RocksDB's settings, and the epochs that the database holds.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    Options, WriteBatch, WriteBufferManager, WriteOptions,
};
use storage_protocol::{Epoch, Revision};

use super::error::OpenError;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::Table;
use crate::engine::rocks::options::EngineOptions;

/// Rows of entries from this length on are kept as blobs, beside the tables.
pub(crate) const BLOB_BYTES_MIN: usize = 4 * 1024;

/// Memtables take at most this part of the memory budget, which is charged to the cache of blocks.
const MEMTABLES_PART: usize = 8;

/// A memtable of this size is flushed. With 16, 64 and 128 MiB puts and commits take the same processor time; a large one
/// leaves as much memory to the allocator when it is given up.
const WRITE_BUFFER_BYTES: usize = 32 << 20;

/// With fewer open files than this, reads would open one for each block.
const OPEN_FILES_MIN: u32 = 64;

pub(super) fn open_db(
    path: &Path,
    options: &EngineOptions,
    cache: &Cache,
) -> Result<DB, OpenError> {
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
    // The WAL is the change log: kept by age and size, never recycled (a recycled file would have no history).
    db.set_wal_ttl_seconds(options.log_age.as_secs());
    db.set_wal_size_limit_mb((options.log_bytes >> 20).max(1));
    db.set_recycle_log_file_num(0);
    // All tables are flushed together, so that no old WAL file is held back by an idle table.
    db.set_atomic_flush(true);
    db.set_max_total_wal_size(256 << 20);
    let memtables = (options.memory_bytes / MEMTABLES_PART).max(16 << 20);
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
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_compression_type(DBCompressionType::Lz4);
    if table == Table::Entries {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN as u64);
        options.set_enable_blob_gc(true);
        options.set_blob_cache(cache);
    }
    options.set_block_based_table_factory(&blocks);
    options
}

pub(super) fn read_epochs(db: &DB, path: &Path) -> Result<Vec<(Epoch, Revision)>, OpenError> {
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

pub(super) fn write_epochs(
    db: &DB,
    path: &Path,
    epochs: &[(Epoch, Revision)],
) -> Result<(), OpenError> {
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
    sync.set_sync(true);
    db.write_opt(batch, &sync)
        .map_err(|error| damaged(error.to_string()))
}

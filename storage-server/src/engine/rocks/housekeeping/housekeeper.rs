//! The housekeeper's thread. Each second it writes `SYNCED`, releases idle pinned snapshots, looks at the disk, and
//! lets the committer look at the clock.

use std::time::{Duration, Instant};

use crate::engine::rocks::disk::Need;
use crate::engine::rocks::layout::Table;
use crate::engine::rocks::open::{SyncedFile, boot_id};
use crate::engine::rocks::options::Durability;
use crate::engine::rocks::{EngineShared, clock, disk};

/// How often the log in use is made droppable at a full disk, and from which size on.
const FLUSH_INTERVAL: Duration = Duration::from_secs(10);

const FLUSH_BYTES_MIN: u64 = 4 << 20;

/// How many rounds there are between two looks at how far the log reaches back, which reads its folder.
const LOG_ROUNDS: u32 = 10;

/// The housekeeper: runs until the expiry timer is stopped.
pub(crate) fn run_housekeeper(shared: &EngineShared) {
    let (mut rounds, mut flushed) = (0, None);
    loop {
        shared.metrics.look_at_memory(&shared.store);
        if rounds % LOG_ROUNDS == 0 {
            shared.metrics.look_at_log(&shared.store);
        }
        rounds = rounds.wrapping_add(1);
        if !shared.expiry_timer.wait_for_round() {
            return;
        }
        write_synced_file(shared, false);
        shared.snapshots.expire(Instant::now());
        shared.disk.look();
        make_room(shared, &mut flushed);
        clock::look(shared);
    }
}

/// Makes the log in use droppable when only the disk reserve is left. The remaining log files belong to what is not in
/// tables yet. Once that is flushed into tables, the files are archived and can be dropped. Not repeated before they
/// could be.
fn make_room(shared: &EngineShared, flushed: &mut Option<Instant>) {
    let store = &shared.store;
    let is_full = shared.disk.check(Need::Any, 0).is_err();
    if !is_full || flushed.is_some_and(|at| at.elapsed() < FLUSH_INTERVAL) {
        return;
    }
    let in_use = disk::log_bytes_in_use(&store.options.data);
    // The tables need room before that, about as much as the log has.
    if in_use < FLUSH_BYTES_MIN || shared.disk.available() < in_use.saturating_mul(2) {
        return;
    }
    *flushed = Some(Instant::now());
    tracing::info!(
        bytes = in_use,
        "what the log in use holds is written into tables, to make room"
    );
    let mut options = rocksdb::FlushOptions::default();
    options.set_wait(false);
    let tables = Table::ALL.map(|table| store.table(table));
    if let Err(error) = store.db.flush_cfs_opt(&tables, &options) {
        tracing::warn!(%error, "cannot make room");
    }
}

/// Writes `SYNCED`: in `os` durability after a sync of the log.
pub(crate) fn write_synced_file(shared: &EngineShared, clean: bool) {
    let store = &shared.store;
    let revision = store.revision();
    if store.options.durability == Durability::Os
        && let Err(error) = store.db.flush_wal(true)
    {
        store.poison(&format!("sync of the log: {error}"));
    }
    if store.check_poison().is_err() {
        return;
    }
    let durability = store.options.durability;
    let mark = SyncedFile {
        revision,
        boot: boot_id(),
        durability,
        clean,
        time: store.now(),
    };
    if let Err(error) = mark.write(&store.options.data) {
        tracing::error!(%error, "cannot write the mark of what is synced");
    }
}

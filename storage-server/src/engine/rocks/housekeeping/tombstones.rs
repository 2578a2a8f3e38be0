//! Forgets tombstones that are too old or too many, oldest first, and raises the keyspace's compacted revision.

use std::sync::Arc;

use storage_protocol::{Result, Revision};

use super::expirer::expire_if_due;
use super::{BATCH, BATCHES_PER_TICK, behind, wait_for};
use crate::engine::rocks::commit::{Task, submit};
use crate::engine::rocks::disk::Need;
use crate::engine::rocks::layout::{Head, KeyspaceId, LifetimeRow, Stored, Table, entry_key};
use crate::engine::rocks::store::{KeyspaceState, internal};
use crate::engine::rocks::{EngineShared, layout};

/// After counting this many tombstones the expirer removes entries that are due.
const COUNTED_AT_ONCE: u64 = 64 * 1024;

/// Forgets the tombstones of all keyspaces that are too old or too many, for a tick; true while there is more.
pub(super) fn forget_tombstones(shared: &EngineShared) -> Result<bool> {
    let mut more = false;
    for keyspace in shared.store.keyspaces() {
        more |= forget_of(shared, &keyspace)?;
    }
    Ok(more)
}

/// Forgets the tombstones of a keyspace that are too old or too many, oldest first, for a tick; true while there is
/// more.
pub(crate) fn forget_of(shared: &EngineShared, keyspace: &Arc<KeyspaceState>) -> Result<bool> {
    let store = &shared.store;
    let Some(id) = keyspace.id() else {
        return Ok(false);
    };
    let prefix = LifetimeRow::tombstone_prefix(id);
    let mut surplus = count(shared, &prefix)?.saturating_sub(store.options.tombstones_max);
    let age = u64::try_from(store.options.tombstone_age.as_millis()).unwrap_or(u64::MAX);
    let oldest = store.now().0.saturating_sub(age);
    let mut start = prefix.clone();
    for _ in 0..BATCHES_PER_TICK {
        let mut batch = Vec::new();
        let mut rows = store.iterate_prefix(Table::Lifetimes, &prefix, &start);
        while let Some(row) = rows.key()
            && batch.len() < BATCH
        {
            let LifetimeRow::Tombstone(_, revision, key) = LifetimeRow::parse(row)? else {
                break;
            };
            if surplus == 0 && !is_older(shared, id, &key, revision, oldest)? {
                break;
            }
            surplus = surplus.saturating_sub(1);
            batch.push((key, revision));
            start = behind(row);
            rows.next();
        }
        rows.status()
            .map_err(|error| internal("read of tombstones", &error))?;
        drop(rows);
        let Some((_, compacted)) = batch.last().cloned() else {
            return Ok(false);
        };
        shared.disk.check(Need::Removal, 0)?;
        let bytes = batch.iter().map(|(key, _)| key.len() + 64).sum();
        let session = shared.server_session(keyspace);
        let task = Task::Forget {
            tombstones: batch,
            compacted,
        };
        wait_for(vec![submit(&shared.queue, &session, 0, task, bytes)?])?;
    }
    Ok(true)
}

/// How many rows begin with this. Entries that are due are removed in between, and the cache is left to readers.
fn count(shared: &EngineShared, prefix: &[u8]) -> Result<u64> {
    let end = storage_protocol::KeyRange::prefix(prefix.to_vec()).end;
    let mut start = prefix.to_vec();
    let mut count = 0;
    loop {
        let mut rows = shared
            .store
            .iterate_beside_cache(Table::Lifetimes, &start, end.as_deref());
        let mut steps = 0;
        while let Some(row) = rows.key()
            && steps < COUNTED_AT_ONCE
        {
            steps += 1;
            if steps == COUNTED_AT_ONCE {
                start = behind(row);
            }
            rows.next();
        }
        rows.status()
            .map_err(|error| internal("count of tombstones", &error))?;
        count += steps;
        if steps < COUNTED_AT_ONCE {
            return Ok(count);
        }
        drop(rows);
        expire_if_due(shared)?;
    }
}

/// Whether a tombstone was written before this time, or is none any more (then its row is stale, and is removed too).
fn is_older(
    shared: &EngineShared,
    id: KeyspaceId,
    key: &[u8],
    revision: Revision,
    time: u64,
) -> Result<bool> {
    let Some(row) = shared.store.row(Table::Entries, &entry_key(id, key))? else {
        return Ok(true);
    };
    Ok(match layout::parse_entry_value(&row)?.0 {
        Head {
            stored: Stored::Tombstone(made),
            ..
        } => shared.store.clock.no_later_than(revision, made).0 < time,
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use storage_protocol::{Batch, CommitOptions, Keyspace, Storage, StorageExt, UnixMillis};

    use super::*;
    use crate::engine::Engine;
    use crate::engine::rocks::{EngineOptions, RocksEngine, TestClock, clock};

    fn fresh() -> (tempfile::TempDir, Arc<RocksEngine>) {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions {
            disk_reserve_bytes: 0,
            ..EngineOptions::new(folder.path().join("data"))
        };
        (folder, RocksEngine::open(options).unwrap())
    }

    #[tokio::test]
    async fn tombstones_are_counted_beside_the_cache() {
        const COUNT: u64 = 70_000;
        let (_folder, engine) = fresh();
        let storage = engine.storage(&Keyspace::new("model").unwrap());
        let numbers: Vec<_> = (0..COUNT).collect();
        for numbers in numbers.chunks(10_000) {
            let put = |batch: Batch, n: &u64| batch.put(n.to_string(), "v");
            let remove = |batch: Batch, n: &u64| batch.remove(n.to_string());
            for batch in [
                numbers.iter().fold(Batch::new(), put),
                numbers.iter().fold(Batch::new(), remove),
            ] {
                let options = CommitOptions::default();
                storage.commit(batch, options).await.unwrap();
            }
        }
        let store = &engine.shared.store;
        let tables = Table::ALL.map(|table| store.table(table));
        let flush = rocksdb::FlushOptions::default();
        store.db.flush_cfs_opt(&tables, &flush).unwrap();
        let cached = || {
            let usage = store.db.property_int_value("rocksdb.block-cache-usage");
            usage.unwrap().unwrap()
        };
        let before = cached();
        let prefix = LifetimeRow::tombstone_prefix(KeyspaceId(1));
        assert_eq!(count(&engine.shared, &prefix).unwrap(), COUNT);
        let grown = cached().saturating_sub(before);
        assert!(grown < 200_000, "{grown} bytes for {COUNT} rows");
    }

    #[tokio::test]
    async fn tombstones_of_a_wrong_clock_are_as_old_as_its_way_back() {
        const HOUR: i64 = 3_600_000;
        const YEAR: i64 = 365 * 24 * HOUR;
        let folder = tempfile::tempdir().unwrap();
        let name = Keyspace::new("model").unwrap();
        let open = |offset_ms| {
            let clock = TestClock::held_for(Duration::ZERO);
            clock.set_offset(offset_ms);
            let engine = RocksEngine::open(EngineOptions {
                disk_reserve_bytes: 0,
                tombstone_age: Duration::from_secs(3600),
                clock: clock.clone(),
                ..EngineOptions::new(folder.path().join("data"))
            })
            .unwrap();
            (engine, clock)
        };
        let (engine, clock) = open(0);
        let storage = engine.storage(&name);
        let remove = async |key: &'static str| {
            storage.put(key.into(), "v".into()).await.unwrap();
            let batch = Batch::new().remove(key);
            let options = CommitOptions::default();
            storage.commit(batch, options).await.unwrap()
        };
        let forget = async |engine: &Arc<RocksEngine>| {
            let shared = engine.shared.clone();
            let keyspace = shared.store.keyspace(&name);
            let forgetting = move || {
                while forget_of(&shared, &keyspace).unwrap() {}
                let prefix = LifetimeRow::tombstone_prefix(keyspace.id().unwrap());
                count(&shared, &prefix).unwrap()
            };
            tokio::task::spawn_blocking(forgetting).await.unwrap()
        };
        remove("before").await;
        clock.set_offset(YEAR);
        let wrong = remove("under the wrong clock").await;
        clock.set_offset(0);
        remove("after").await;
        let time = engine.shared.store.now();
        assert!(
            time.0 < UnixMillis::now().0 + 60_000,
            "it is back: {time:?}"
        );
        // Its lifetimes are corrected, and what the jump was is still known.
        let shared = engine.shared.clone();
        let correcting = move || clock::correct(&shared);
        let corrected = tokio::task::spawn_blocking(correcting).await.unwrap();
        corrected.unwrap();
        assert_eq!(forget(&engine).await, 3, "they are young");
        drop(storage);
        drop(engine);
        let (engine, _) = open(HOUR / 2);
        assert_eq!(forget(&engine).await, 3, "they are half as old");
        drop(engine);
        let (engine, _) = open(2 * HOUR);
        assert_eq!(forget(&engine).await, 0);
        let compacted = engine.shared.store.keyspace(&name).compacted();
        assert!(compacted > wrong.revision);
    }

    #[tokio::test]
    async fn a_keyspace_that_was_only_named_is_not_kept() {
        let (_folder, engine) = fresh();
        let store = &engine.shared.store;
        let name = |n: u32| Keyspace::new(&format!("named-{n}")).unwrap();
        let made = engine.storage(&name(0));
        made.put("a".into(), "b".into()).await.unwrap();
        drop(made);
        let in_use = engine.open_session("cert:a", &name(1)).storage();
        for n in 2..20_000 {
            // By a session that reads and goes.
            let session = engine.open_session("cert:a", &name(n)).storage();
            assert!(session.get_one("a".into()).await.unwrap().is_none());
        }
        let left = store.keyspaces().len();
        assert!(left < 5_000, "{left} are kept");
        // What is used stays the same, also for others that name it.
        in_use.put("c".into(), "d".into()).await.unwrap();
        for (n, key) in [(0, "a"), (1, "c")] {
            let session = engine.open_session("cert:b", &name(n)).storage();
            assert!(session.get_one(key.into()).await.unwrap().is_some());
        }
    }
}

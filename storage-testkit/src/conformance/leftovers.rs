//! What is left of objects that nobody finished, or that were replaced by plain puts: nothing, in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures_util::stream::iter;
use storage_protocol::objects::{ObjectOptions, ObjectWriter, PART_BYTES, PartKey, Swept};
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, Lifetime, Limits, Operation, Outcome, Position,
    Reading, Result, Scan, ScanOptions, Storage, StorageError, StorageExt, Watch, WatchOptions,
    WatchStart,
};

use super::objects::{assert_same, content, part_keys, read, write};
use super::support::{Handle, Mirror, bytes, commit, entry, put, remove, value, watch_latest};
use super::{Context, cases};

cases!["leftovers":
    an_aborted_writer_leaves_nothing,
    a_stream_that_fails_leaves_nothing,
    a_dropped_writer_leaves_nothing [EndSession, Expiry],
    a_dropped_call_of_a_writer_fails_it,
    an_ended_session_takes_its_parts_with_it [EndSession, Expiry],
    an_intent_that_is_over_takes_its_parts_with_it [Expiry],
    the_intent_of_a_whole_object_takes_nothing_with_it [Expiry],
    a_writer_without_its_intent_is_refused,
    a_put_over_an_object_leaves_parts_to_the_next_writer,
    a_removed_manifest_leaves_parts_to_the_next_remover,
    an_object_that_changes_in_between_leaves_nothing,
    an_object_is_removed_also_where_nothing_can_be_put,
    a_sweep_removes_what_belongs_to_no_object,
    a_sweep_leaves_objects_and_writers_alone,
];

const PART: usize = PART_BYTES;

async fn writer(storage: &Handle, key: &str, len: usize) -> ObjectWriter<'static> {
    let options = ObjectOptions::default();
    let mut writer = ObjectWriter::new(storage.clone(), bytes(key), options)
        .await
        .unwrap();
    writer.write(content(1, len)).await.unwrap();
    writer
}

/// Waits until nothing that begins with this is left.
async fn until_gone(storage: &Handle, prefix: &str) {
    let range = KeyRange::prefix(bytes(prefix));
    let mut watch = watch_latest(storage, range, WatchStart::Beginning).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    mirror.until_next_mark(&mut watch).await;
    while !mirror.entries.is_empty() {
        mirror.until_next_mark(&mut watch).await;
    }
}

async fn an_aborted_writer_leaves_nothing(context: Context) {
    let storage = context.open().await;
    for len in [10, 2 * PART, 40 * PART] {
        let writer = writer(&storage, "object", len).await;
        assert_eq!(part_keys(&storage).await.is_empty(), len < PART);
        writer.abort().await.unwrap();
        assert!(part_keys(&storage).await.is_empty());
        assert!(entry(&storage, "object").await.is_none());
    }
}

async fn a_stream_that_fails_leaves_nothing(context: Context) {
    let storage = context.open().await;
    put(&storage, "object", "before").await;
    let why = StorageError::invalid("the disk of the sender");
    let chunks = [
        Ok(content(1, 3 * PART)),
        Err(why.clone()),
        Ok(content(1, 1)),
    ];
    let writing = storage.put_object(bytes("object"), iter(chunks), ObjectOptions::default());
    assert_eq!(writing.await, Err(why));
    assert!(part_keys(&storage).await.is_empty());
    assert_eq!(value(&storage, "object").await.as_deref(), Some("before"));
}

async fn a_dropped_writer_leaves_nothing(context: Context) {
    let (session, storage) = (context.session().await, context.open().await);
    // One that was dropped before it sent anything.
    drop(writer(&session.storage, "object", 10).await);
    assert!(part_keys(&storage).await.is_empty());
    // More parts than one commit removes. At the latest they go with the session.
    drop(writer(&session.storage, "object", 70 * PART).await);
    (session.end.unwrap())().await;
    until_gone(&storage, "object").await;
}

async fn a_dropped_call_of_a_writer_fails_it(context: Context) {
    let storage = context.open().await;
    let mut writer = writer(&storage, "object", 10).await;
    {
        let call = std::pin::pin!(writer.write(content(1, 20 * PART)));
        let waker = std::task::Waker::noop();
        let mut cx = std::task::Context::from_waker(waker);
        if call.poll(&mut cx).is_ready() {
            // A store that is never waited for: nothing was dropped.
            return;
        }
    }
    let error = writer.write(bytes("more")).await.unwrap_err();
    assert!(error.to_string().contains("dropped"), "{error}");
    let error = writer.finish().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotExecuted);
    assert!(entry(&storage, "object").await.is_none());
}

async fn an_ended_session_takes_its_parts_with_it(context: Context) {
    let (session, storage) = (context.session().await, context.open().await);
    put(&storage, "object", "before").await;
    let whole = write(&session.storage, "object/whole", &content(2, 3 * PART)).await;
    // It is not dropped, as by a peer that is gone.
    let left = writer(&session.storage, "object/begun", 40 * PART).await;
    assert!(part_keys(&storage).await.len() > 3);
    (session.end.unwrap())().await;
    until_gone(&storage, "object/begun").await;
    drop(left);
    assert_eq!(value(&storage, "object").await.as_deref(), Some("before"));
    assert_same(&read(&storage, "object/whole").await, &content(2, 3 * PART));
    assert!(whole.info.id.is_some());
    assert_eq!(part_keys(&storage).await.len(), 3);
}

async fn an_intent_that_is_over_takes_its_parts_with_it(context: Context) {
    let storage = context.open().await;
    let whole = write(&storage, "object", &content(3, 2 * PART)).await;
    let id = whole.info.id.unwrap();
    // As a client that removes an object does, and then is gone.
    let short = Lifetime::TimeToLive(std::time::Duration::from_millis(1));
    let intent = PartKey::intent(b"object", id);
    commit(
        &storage,
        Batch::new().remove("object").put_with(intent, "", short),
    )
    .await;
    until_gone(&storage, "object").await;
}

async fn the_intent_of_a_whole_object_takes_nothing_with_it(context: Context) {
    let storage = context.open().await;
    let whole = write(&storage, "object", &content(4, 2 * PART)).await;
    let intent = PartKey::intent(b"object", whole.info.id.unwrap());
    let short = Lifetime::TimeToLive(std::time::Duration::from_millis(1));
    let key = String::from_utf8(intent.to_vec()).unwrap();
    let range = KeyRange::single(intent.clone());
    let mut watch = watch_latest(&storage, range, WatchStart::Now).await;
    let mut mirror = Mirror::new(&watch, BTreeMap::new());
    commit(&storage, Batch::new().put_with(intent, "", short)).await;
    while mirror.states == 0 || !mirror.entries.is_empty() {
        mirror.until_next_mark(&mut watch).await;
        if entry(&storage, &key).await.is_none() {
            break;
        }
    }
    assert_same(&read(&storage, "object").await, &content(4, 2 * PART));
}

async fn a_writer_without_its_intent_is_refused(context: Context) {
    let storage = context.open().await;
    for late in [false, true] {
        let mut writer = writer(&storage, "object", 3 * PART).await;
        let intents = part_keys(&storage).await;
        let intent = intents.first().unwrap();
        assert_eq!(PartKey::parse(intent).unwrap().number, None);
        commit(&storage, Batch::new().remove(intent.clone())).await;
        let error = match late {
            // The next part is refused, so that there are no parts without an intent.
            false => writer.write(content(1, 9 * PART)).await.unwrap_err(),
            true => {
                let finished = writer.finish_with(Batch::new(), CommitOptions::default());
                finished.await.unwrap_err()
            }
        };
        let refused = |key| StorageError::CheckFailed { key, actual: None };
        assert_eq!(error, refused(intent.clone()));
        assert_eq!(writer.finish().await, Err(error), "it stays so");
        assert!(entry(&storage, "object").await.is_none());
        storage.sweep_objects(KeyRange::all()).await.unwrap();
        assert!(part_keys(&storage).await.is_empty());
    }
}

async fn a_put_over_an_object_leaves_parts_to_the_next_writer(context: Context) {
    let storage = context.open().await;
    for len in [10, 2 * PART] {
        write(&storage, "object", &content(5, 40 * PART)).await;
        put(
            &storage,
            "object",
            "by somebody who knows nothing of objects",
        )
        .await;
        assert_eq!(part_keys(&storage).await.len(), 40);
        let written = content(6, len);
        write(&storage, "object", &written).await;
        assert_eq!(part_keys(&storage).await.len(), len / PART);
        assert_same(&read(&storage, "object").await, &written);
    }
}

async fn a_removed_manifest_leaves_parts_to_the_next_remover(context: Context) {
    let storage = context.open().await;
    for again in [true, false] {
        write(&storage, "object", &content(7, 2 * PART)).await;
        remove(&storage, "object").await;
        if again {
            put(&storage, "object", "small").await;
        }
        storage.remove_object(bytes("object")).await.unwrap();
        assert!(part_keys(&storage).await.is_empty());
        assert!(entry(&storage, "object").await.is_none());
    }
}

/// A store in which something comes between.
#[derive(Debug)]
enum Odd {
    /// Its disk is at its reserve: it takes what only removes.
    Full(Handle),
    /// Somebody else writes the object just before the commit that shows or removes it, once.
    Overtaken(Handle, AtomicBool),
}

impl Odd {
    fn inner(&self) -> &Handle {
        match self {
            Self::Full(inner) | Self::Overtaken(inner, _) => inner,
        }
    }
}

#[async_trait]
impl Storage for Odd {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        self.inner().get(keys).await
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        self.inner().scan(range, options).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        let removes = |operation: &Operation| matches!(operation, Operation::Remove { .. });
        match self {
            Self::Full(_) if !batch.operations.iter().all(removes) => {
                let (available, reserve) = (1, 2);
                return Err(StorageError::StorageFull { available, reserve });
            }
            Self::Overtaken(inner, was)
                if batch.operations.iter().any(|o| o.key() == "object")
                    && !was.swap(true, Ordering::Relaxed) =>
            {
                write(inner, "object", &content(77, 5 * PART)).await;
            }
            Self::Full(_) | Self::Overtaken(..) => {}
        }
        self.inner().commit(batch, options).await
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        self.inner().watch(range, options).await
    }

    async fn limits(&self) -> Result<Limits> {
        self.inner().limits().await
    }
}

async fn an_object_that_changes_in_between_leaves_nothing(context: Context) {
    let storage = context.open().await;
    for len in [10, 3 * PART] {
        write(&storage, "object", &content(8, 2 * PART)).await;
        let overtaken = || Arc::new(Odd::Overtaken(storage.clone(), AtomicBool::new(false)));
        let handle: Handle = overtaken();
        let done = write(&handle, "object", &content(9, len)).await;
        assert_eq!(
            done.previous.map(|before| before.size),
            Some(5 * PART as u64)
        );
        assert_same(&read(&storage, "object").await, &content(9, len));
        assert_eq!(part_keys(&storage).await.len(), len / PART);
        let removed = overtaken().remove_object(bytes("object")).await.unwrap();
        assert_eq!(
            removed.previous.map(|before| before.size),
            Some(5 * PART as u64)
        );
        assert!(part_keys(&storage).await.is_empty());
    }
}

async fn an_object_is_removed_also_where_nothing_can_be_put(context: Context) {
    let storage = context.open().await;
    write(&storage, "object", &content(8, 40 * PART)).await;
    Odd::Full(storage.clone())
        .remove_object(bytes("object"))
        .await
        .unwrap();
    assert!(entry(&storage, "object").await.is_none());
    assert!(part_keys(&storage).await.is_empty());
}

async fn a_sweep_removes_what_belongs_to_no_object(context: Context) {
    let storage = context.open().await;
    for key in ["a/1", "a/2", "b/1"] {
        write(&storage, key, &content(8, 34 * PART)).await;
        put(&storage, key, "plain").await;
    }
    for n in 0..40 {
        put(&storage, &format!("a/1/{n}"), "between").await;
    }
    let swept = storage.sweep_objects(KeyRange::prefix("a/")).await;
    let expected = Swept {
        objects: 2,
        parts: 68,
    };
    assert_eq!(swept, Ok(expected));
    assert_eq!(part_keys(&storage).await.len(), 34);
    let swept = storage.sweep_objects(KeyRange::all()).await.unwrap();
    assert_eq!(swept.parts, 34);
    assert!(part_keys(&storage).await.is_empty());
    assert_eq!(value(&storage, "a/1").await.as_deref(), Some("plain"));
    assert_eq!(value(&storage, "a/1/39").await.as_deref(), Some("between"));
}

async fn a_sweep_leaves_objects_and_writers_alone(context: Context) {
    let (storage, other) = (context.open().await, context.open().await);
    write(&storage, "whole", &content(9, 3 * PART)).await;
    // So many that some are there: three may be on their way.
    let mut running = writer(&other, "running", 6 * PART).await;
    let part = |keys: Vec<Key>| {
        let is_part = |key: &Key| {
            key.starts_with(b"running") && PartKey::parse(key).unwrap().number.is_some()
        };
        keys.into_iter().find(is_part).unwrap()
    };
    let inside = KeyRange {
        start: part(part_keys(&storage).await),
        end: None,
    };
    // Also from behind the intent.
    for range in [KeyRange::all(), inside] {
        let swept = storage.sweep_objects(range).await;
        assert_eq!(swept, Ok(Swept::default()));
    }
    running.write(content(1, PART)).await.unwrap();
    running.finish().await.unwrap();
    let storage: Arc<dyn Storage> = storage;
    assert_eq!(read(&storage, "running").await.unwrap().len(), 7 * PART);
    assert_same(&read(&storage, "whole").await, &content(9, 3 * PART));
}

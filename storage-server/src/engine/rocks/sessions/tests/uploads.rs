//! Objects whose writer's session is lost, and may come back.

use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use storage_protocol::objects::{ObjectOptions, ObjectWriter, PartKey, is_part};
use storage_protocol::{
    Entry, Key, KeyRange, Limits, Reading, Scan, ScanOptions, Storage, Watch, WatchOptions,
};

use super::*;

/// A part of an object, so small that many are written quickly.
const PART: usize = 1024;

fn small_parts(options: &mut EngineOptions) {
    options.limits.value_bytes_max = PART;
}

/// What a client has: its session, as it was attached last.
#[derive(Debug)]
struct Client(Mutex<Arc<dyn SessionStorage>>);

impl Client {
    fn of(session: &Reopened) -> Arc<Self> {
        Arc::new(Self(Mutex::new(session.storage.clone())))
    }

    fn attach(&self, session: &Reopened) {
        *self.0.lock().unwrap() = session.storage.clone();
    }

    fn now(&self) -> Arc<dyn SessionStorage> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Storage for Client {
    async fn get(&self, keys: &[Key]) -> Result<Reading<Vec<Option<Entry>>>> {
        self.now().get(keys).await
    }

    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Scan> {
        self.now().scan(range, options).await
    }

    async fn commit(&self, batch: Batch, options: CommitOptions) -> Result<Position> {
        self.now().commit(batch, options).await
    }

    async fn watch(&self, range: KeyRange, options: WatchOptions) -> Result<Watch> {
        self.now().watch(range, options).await
    }

    async fn limits(&self) -> Result<Limits> {
        self.now().limits().await
    }
}

async fn writer(storage: impl Storage + 'static, parts: usize) -> ObjectWriter<'static> {
    let options = ObjectOptions::default();
    let mut writer = ObjectWriter::new(storage, "object".into(), options)
        .await
        .unwrap();
    let content = Bytes::from(vec![b'x'; parts * PART + 1]);
    writer.write(content).await.unwrap();
    writer
}

async fn parts(storage: &dyn SessionStorage) -> Vec<Key> {
    let options = ScanOptions {
        keys_only: true,
        ..ScanOptions::default()
    };
    let scan = storage.scan(KeyRange::all(), options).await.unwrap();
    let items = scan.collect().await.unwrap().into_iter();
    items
        .map(|item| item.key)
        .filter(|key| is_part(key))
        .collect()
}

#[tokio::test]
async fn a_writer_that_comes_back_after_its_grace_shows_no_object() {
    let (_folder, engine) = fresh(|options| {
        small_parts(options);
        options.session_grace = Duration::from_millis(200);
    });
    let session = open(&engine);
    put(&session, 1, "makes it outlive its socket")
        .await
        .unwrap();
    let client = Client::of(&session);
    let mut writer = writer(client.clone(), 100).await;
    let intent = parts(&*session.storage).await.remove(0);
    let id = session.id();
    session.lose();
    // Already when the first parts go it is too late for the writer.
    let reader = open(&engine);
    let begun = reader
        .storage
        .get_one(intent.clone())
        .await
        .unwrap()
        .unwrap();
    until("the intent is over", async || {
        let now = reader.storage.get_one(intent.clone()).await.unwrap();
        now.is_none_or(|now| now.revision != begun.revision)
    })
    .await;
    let session = resume(&engine, id, 1).await;
    client.attach(&session);
    let options = CommitOptions::default();
    let refused = writer.finish_with(Batch::new(), options).await.unwrap_err();
    assert!(
        matches!(&refused, StorageError::CheckFailed { key, .. } if *key == intent),
        "{refused}"
    );
    assert_eq!(session.storage.get_one("object".into()).await, Ok(None));
    until("the parts go", async || {
        parts(&*reader.storage).await.is_empty()
    })
    .await;
    drop(writer);
    until("it stays so", async || {
        parts(&*reader.storage).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_writer_that_comes_back_within_its_grace_shows_its_object() {
    let (_folder, engine) = fresh(small_parts);
    let session = open(&engine);
    put(&session, 1, "makes it outlive its socket")
        .await
        .unwrap();
    let client = Client::of(&session);
    let writer = writer(client.clone(), 100).await;
    let id = session.id();
    session.lose();
    let session = resume(&engine, id, 1).await;
    client.attach(&session);
    writer.finish().await.unwrap();
    // The keys of the session that are removed now have nothing to do with it.
    session.end().await.unwrap();
    let reader = open(&engine);
    assert_eq!(parts(&*reader.storage).await.len(), 101);
    let mut object = reader
        .storage
        .read_object("object".into())
        .await
        .unwrap()
        .unwrap();
    let mut bytes = 0;
    while let Some(chunk) = object.next().await.unwrap() {
        bytes += chunk.len();
    }
    assert_eq!(bytes, 100 * PART + 1);
}

#[tokio::test]
async fn a_writer_that_is_dropped_has_its_parts_removed_while_its_session_goes_on() {
    let (_folder, engine) = fresh(small_parts);
    let session = open(&engine);
    drop(writer(session.storage.clone(), 100).await);
    until("the parts go", async || {
        parts(&*session.storage).await.is_empty()
    })
    .await;
    // So has one that is dropped while it puts its intent.
    let options = ObjectOptions::default();
    let mut begun = ObjectWriter::new(session.storage.clone(), "object".into(), options)
        .await
        .unwrap();
    {
        let content = Bytes::from(vec![b'x'; 2 * PART]);
        let call = std::pin::pin!(begun.write(content));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(call.poll(&mut cx).is_pending());
    }
    drop(begun);
    session.storage.sync().await.unwrap();
    until("the intent goes", async || {
        parts(&*session.storage).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_removal_of_parts_that_was_cut_short_is_finished_at_the_next_start() {
    let (folder, engine) = fresh(small_parts);
    let session = open(&engine);
    // Far more than is removed between two looks.
    let writer = writer(session.storage.clone(), 4_000).await;
    let before = parts(&*session.storage).await;
    // A few may still be on their way.
    assert!(before.len() > 3_900);
    session.end().await.unwrap();
    let reader = open(&engine);
    let intent = before[0].clone();
    assert_eq!(PartKey::parse(&intent).unwrap().number, None);
    until("some parts are gone", async || {
        reader
            .storage
            .get_one(before[1].clone())
            .await
            .unwrap()
            .is_none()
    })
    .await;
    let left = parts(&*reader.storage).await;
    drop((writer, reader, session));
    let folder = closed(&folder, engine).await;
    let mut options = options(folder.path());
    small_parts(&mut options);
    let engine = reopened(options).await;
    let reader = open(&engine);
    let found = parts(&*reader.storage).await;
    // Parts, and so the intent: it goes last. (All are gone where the machine was slow to ask.)
    assert!(left.is_empty() || left[0] == intent);
    assert!(found.is_empty() || found[0] == intent);
    until("the rest is gone", async || {
        parts(&*reader.storage).await.is_empty()
    })
    .await;
}

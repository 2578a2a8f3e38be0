//! Objects: values of any size come back whole, in any range, whoever replaces them meanwhile.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use futures_util::future::join;
use futures_util::stream::iter;
use storage_protocol::objects::{
    MAGIC, ObjectInfo, ObjectOptions, ObjectReader, ObjectRemoved, ObjectWriter, ObjectWritten,
    PART_BYTES, is_part, parts_range, remove_object_with,
};
use storage_protocol::{
    Batch, CommitOptions, Expected, Key, Limit, Result, Revision, ScanOptions, StorageError,
    StorageExt,
};

use super::support::{
    Handle, assert_check_failed, assert_invalid, bytes, commit, entry, put, remove, scan, value,
};
use super::{Context, cases};

cases!["objects":
    objects_of_every_size_come_back,
    what_fits_into_a_part_is_a_plain_value,
    what_begins_like_a_manifest_comes_back,
    an_unknown_manifest_is_not_taken_for_a_value,
    every_range_is_what_was_written,
    chunks_may_have_any_size,
    nothing_is_seen_before_the_end,
    a_replaced_object_leaves_nothing,
    a_removed_object_leaves_nothing,
    an_object_is_removed_together_with_other_keys,
    a_reader_reads_the_object_it_began_with,
    an_object_that_went_before_it_was_read_is_an_error,
    a_damaged_object_is_told_as_such,
    of_two_writers_the_later_commit_stands,
    what_is_expected_is_checked,
    an_object_is_shown_together_with_other_keys,
    an_object_that_is_too_large_is_refused_and_leaves_nothing,
    a_key_without_room_takes_small_objects_only,
];

const PART: usize = PART_BYTES;

/// Bytes that differ from place to place, and from seed to seed.
pub(super) fn content(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(len + 8);
    while content.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(len);
    content.into()
}

pub(super) async fn write(storage: &Handle, key: &str, content: &Bytes) -> ObjectWritten {
    let chunks = iter([Ok(content.clone())]);
    let written = storage.put_object(bytes(key), chunks, ObjectOptions::default());
    written.await.unwrap()
}

async fn collect(mut reader: ObjectReader<'_>) -> Result<Bytes> {
    let mut content = Vec::new();
    while let Some(chunk) = reader.next().await? {
        assert!(!chunk.is_empty() && chunk.len() <= PART);
        content.extend_from_slice(&chunk);
    }
    assert_eq!(reader.next().await?, None, "the end stays the end");
    Ok(content.into())
}

pub(super) async fn read(storage: &Handle, key: &str) -> Option<Bytes> {
    let reader = storage.read_object(bytes(key)).await.unwrap()?;
    Some(collect(reader).await.unwrap())
}

/// The keys of parts and intents, of all objects.
pub(super) async fn part_keys(storage: &Handle) -> Vec<Key> {
    let options = ScanOptions {
        keys_only: true,
        ..ScanOptions::default()
    };
    let items = scan(storage, storage_protocol::KeyRange::all(), options).await;
    let keys = items.into_iter().map(|item| item.key);
    keys.filter(|key| is_part(key)).collect()
}

/// Not `assert_eq`, which would print all of it.
pub(super) fn assert_same(found: &Option<Bytes>, written: &Bytes) {
    let found = found.as_ref().expect("the object is there");
    assert_eq!(found.len(), written.len());
    let differs = found.iter().zip(written).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
}

async fn objects_of_every_size_come_back(context: Context) {
    let storage = context.open().await;
    for (seed, len) in (1..).zip([
        0,
        1,
        PART - 1,
        PART,
        PART + 1,
        3 * PART + PART / 2,
        4 * PART,
    ]) {
        let key = format!("object/{len}");
        let written = content(seed, len);
        let done = write(&storage, &key, &written).await;
        assert_eq!(done.previous, None);
        assert_eq!(done.info.size, len as u64);
        assert_eq!(
            entry(&storage, &key).await.unwrap().revision,
            done.info.written.revision
        );
        let info: Option<ObjectInfo> = storage.object_info(bytes(&key)).await.unwrap();
        let info = info.unwrap();
        assert_eq!((info.size, info.id), (len as u64, done.info.id));
        assert_eq!(info.etag(), done.info.etag());
        assert_same(&read(&storage, &key).await, &written);
    }
    assert_eq!(storage.object_info(bytes("object/none")).await, Ok(None));
    assert!(read(&storage, "object/none").await.is_none());
}

async fn what_fits_into_a_part_is_a_plain_value(context: Context) {
    let storage = context.open().await;
    let small = content(1, PART);
    let done = write(&storage, "small", &small).await;
    assert_eq!(done.info.id, None);
    assert!(part_keys(&storage).await.is_empty());
    assert_same(&Some(entry(&storage, "small").await.unwrap().value), &small);
    // And the other way round.
    put(&storage, "put", "a plain value").await;
    assert_eq!(read(&storage, "put").await.unwrap(), "a plain value");
    let large = write(&storage, "large", &content(2, PART + 1)).await;
    let id = large.info.id.expect("it has parts");
    let keys = part_keys(&storage).await;
    let expected: Vec<_> = [0, 1]
        .map(|number| storage_protocol::objects::PartKey::part(b"large", id, number))
        .into();
    assert_eq!(keys, expected);
    let manifest = entry(&storage, "large").await.unwrap().value;
    assert!(manifest.starts_with(MAGIC) && manifest.len() < 100);
}

async fn what_begins_like_a_manifest_comes_back(context: Context) {
    let storage = context.open().await;
    for len in [0, 50, 2 * PART] {
        let written: Bytes = [MAGIC, &content(3, len)[..]].concat().into();
        let done = write(&storage, "tricky", &written).await;
        assert!(done.info.id.is_some());
        assert_same(&read(&storage, "tricky").await, &written);
    }
    // What an object's manifest says, as an object of its own.
    write(&storage, "other", &content(4, 2 * PART)).await;
    let manifest = entry(&storage, "other").await.unwrap().value;
    write(&storage, "tricky", &manifest).await;
    assert_same(&read(&storage, "tricky").await, &manifest);
}

async fn an_unknown_manifest_is_not_taken_for_a_value(context: Context) {
    let storage = context.open().await;
    for rest in ["02", "not digits"] {
        let value = [MAGIC, rest.as_bytes()].concat();
        commit(&storage, Batch::new().put("newer", value)).await;
        let error = storage.read_object(bytes("newer")).await.unwrap_err();
        assert!(matches!(error, StorageError::Unsupported { .. }), "{error}");
        assert!(storage.object_info(bytes("newer")).await.is_err());
    }
    // It can be replaced all the same.
    write(&storage, "newer", &bytes("known")).await;
    assert_eq!(read(&storage, "newer").await.unwrap(), "known");
}

async fn every_range_is_what_was_written(context: Context) {
    let storage = context.open().await;
    for (key, len) in [("small", 1000), ("large", 2 * PART + 1000)] {
        let written = content(5, len);
        write(&storage, key, &written).await;
        let ends = [0, 1, 999, PART - 1, PART, PART + 1, 2 * PART, len - 1, len];
        let mut pairs = Vec::new();
        for start in ends {
            pairs.extend(ends.map(|end| (start, end)));
        }
        for (start, end) in pairs {
            let range: Range<u64> = start as u64..end as u64;
            let reader = storage.read_object(bytes(key)).await.unwrap().unwrap();
            match reader.read_range(range) {
                Ok(reader) => {
                    let found = collect(reader).await.unwrap();
                    assert_same(&Some(found), &written.slice(start..end));
                }
                Err(error) => {
                    assert!(start > end || end > len, "{start}..{end} of {len}: {error}");
                    assert_invalid(&error);
                }
            }
        }
    }
}

async fn chunks_may_have_any_size(context: Context) {
    let storage = context.open().await;
    let written = content(6, 2 * PART + 77);
    for len in [1000, PART / 3, PART, PART + 1, 3 * PART] {
        let chunks = written
            .chunks(len)
            .flat_map(|chunk| [Bytes::new(), Bytes::copy_from_slice(chunk), Bytes::new()]);
        let chunks: Vec<_> = chunks.map(Ok).collect();
        let options = ObjectOptions::default();
        let done = storage.put_object(bytes("chunks"), iter(chunks), options);
        assert_eq!(done.await.unwrap().info.size, written.len() as u64);
        assert_same(&read(&storage, "chunks").await, &written);
    }
}

async fn nothing_is_seen_before_the_end(context: Context) {
    let storage = context.open().await;
    put(&storage, "object", "before").await;
    let options = ObjectOptions::default();
    let mut writer = ObjectWriter::new(storage.clone(), bytes("object"), options)
        .await
        .unwrap();
    writer.write(content(7, 3 * PART)).await.unwrap();
    assert_eq!(value(&storage, "object").await.as_deref(), Some("before"));
    let done = writer.finish().await.unwrap();
    assert_eq!(done.previous.unwrap().size, 6);
    assert_same(&read(&storage, "object").await, &content(7, 3 * PART));
}

async fn a_replaced_object_leaves_nothing(context: Context) {
    let storage = context.open().await;
    let mut before: Option<ObjectInfo> = None;
    // 40 parts are more than one commit removes.
    for (seed, len) in (1..).zip([2 * PART, 3 * PART, 10, 0, 40 * PART, 2 * PART]) {
        let written = content(seed, len);
        let done = write(&storage, "object", &written).await;
        let before = before.replace(done.info.clone());
        assert_eq!(done.previous, before);
        assert_same(&read(&storage, "object").await, &written);
        let parts = if len > PART { len / PART } else { 0 };
        assert_eq!(part_keys(&storage).await.len(), parts, "behind {len} bytes");
    }
}

async fn a_removed_object_leaves_nothing(context: Context) {
    let storage = context.open().await;
    for len in [5, 3 * PART] {
        let done = write(&storage, "object", &content(8, len)).await;
        put(&storage, "object beside", "stays").await;
        let removed: ObjectRemoved = storage.remove_object(bytes("object")).await.unwrap();
        assert_eq!(removed.previous, Some(done.info));
        assert!(entry(&storage, "object").await.is_none());
        assert!(part_keys(&storage).await.is_empty());
        assert!(entry(&storage, "object beside").await.is_some());
        let again = storage.remove_object(bytes("object")).await.unwrap();
        assert_eq!(again.previous, None);
    }
}

async fn an_object_is_removed_together_with_other_keys(context: Context) {
    let storage = context.open().await;
    write(&storage, "object", &content(9, 2 * PART)).await;
    let at = put(&storage, "index", "1").await.revision;
    let removing = |expected, batch| {
        let options = CommitOptions::default();
        remove_object_with(&storage, bytes("object"), expected, batch, options)
    };
    let other = Batch::new().check_revision("index", Revision(at.0 - 1));
    let error = removing(None, other.remove("index")).await.unwrap_err();
    assert_check_failed(&error, "index", Some(at));
    let error = removing(Some(Expected::Absent), Batch::new())
        .await
        .unwrap_err();
    let actual = entry(&storage, "object").await.map(|entry| entry.revision);
    assert_check_failed(&error, "object", actual);
    assert_same(&read(&storage, "object").await, &content(9, 2 * PART));
    let batch = Batch::new().check_revision("index", at).remove("index");
    let expected = actual.map(Expected::At);
    removing(expected, batch).await.unwrap();
    assert!(entry(&storage, "index").await.is_none());
    assert!(part_keys(&storage).await.is_empty());
}

async fn a_reader_reads_the_object_it_began_with(context: Context) {
    let storage = context.open().await;
    let written = content(10, 5 * PART);
    write(&storage, "object", &written).await;
    let reader = storage.read_object(bytes("object")).await.unwrap();
    let mut reader = reader.unwrap();
    let mut found = reader.next().await.unwrap().unwrap().to_vec();
    write(&storage, "object", &content(11, 2 * PART)).await;
    storage.remove_object(bytes("object")).await.unwrap();
    while let Some(chunk) = reader.next().await.unwrap() {
        found.extend_from_slice(&chunk);
    }
    assert_same(&Some(found.into()), &written);
}

async fn an_object_that_went_before_it_was_read_is_an_error(context: Context) {
    let storage = context.open().await;
    for replaced in [true, false] {
        write(&storage, "object", &content(12, 3 * PART)).await;
        let mut reader = storage.read_object(bytes("object")).await.unwrap().unwrap();
        if replaced {
            write(&storage, "object", &content(13, 3 * PART)).await;
        } else {
            storage.remove_object(bytes("object")).await.unwrap();
        }
        assert_eq!(reader.next().await, Err(StorageError::SnapshotExpired));
        assert_eq!(
            reader.next().await,
            Ok(None),
            "nothing comes behind an error"
        );
    }
}

async fn a_damaged_object_is_told_as_such(context: Context) {
    let storage = context.open().await;
    let written = write(&storage, "object", &content(14, 3 * PART)).await;
    let id = written.info.id.unwrap();
    let part = storage_protocol::objects::PartKey::part(b"object", id, 1);
    for batch in [
        Batch::new().put(part.clone(), "short"),
        Batch::new().remove(part.clone()),
    ] {
        commit(&storage, batch).await;
        let mut reader = storage.read_object(bytes("object")).await.unwrap().unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap().len(), PART);
        let error = reader.next().await.unwrap_err();
        assert!(error.to_string().contains("its part 1"), "{error}");
    }
}

async fn of_two_writers_the_later_commit_stands(context: Context) {
    let (one, two) = (context.open().await, context.open().await);
    let mut seen = BTreeSet::new();
    for seed in 20..24 {
        let (a, b) = (content(seed, 3 * PART), content(seed + 100, 4 * PART + 1));
        let (done_a, done_b) = join(write(&one, "object", &a), write(&two, "object", &b)).await;
        let (a_at, b_at) = (done_a.info.written.revision, done_b.info.written.revision);
        let (last, first) = match a_at > b_at {
            true => (&a, (&done_a, &done_b)),
            false => (&b, (&done_b, &done_a)),
        };
        let (later, earlier) = first;
        assert_eq!(later.previous.as_ref(), Some(&earlier.info));
        assert_same(&read(&one, "object").await, last);
        let parts = last.len().div_ceil(PART);
        assert_eq!(part_keys(&one).await.len(), parts, "nothing of the other");
        seen.insert(a_at);
    }
    assert_eq!(seen.len(), 4);
}

async fn what_is_expected_is_checked(context: Context) {
    let storage = context.open().await;
    let at = put(&storage, "object", "there").await.revision;
    for len in [3, 2 * PART] {
        let writing = |expected| {
            let options = ObjectOptions {
                expected: Some(expected),
                ..ObjectOptions::default()
            };
            storage.put_object(bytes("object"), iter([Ok(content(1, len))]), options)
        };
        for expected in [Expected::Absent, Expected::At(Revision(at.0 - 1))] {
            let error = writing(expected).await.unwrap_err();
            assert_check_failed(&error, "object", Some(at));
            assert_eq!(value(&storage, "object").await.as_deref(), Some("there"));
            assert!(part_keys(&storage).await.is_empty());
        }
    }
    let options = ObjectOptions {
        expected: Some(Expected::At(at)),
        ..ObjectOptions::default()
    };
    let chunks = iter([Ok(content(1, 2 * PART))]);
    let done = storage.put_object(bytes("object"), chunks, options).await;
    done.unwrap();
}

async fn an_object_is_shown_together_with_other_keys(context: Context) {
    let storage = context.open().await;
    for len in [100, 2 * PART] {
        let index = put(&storage, "index", "0").await.revision;
        let options = ObjectOptions::default();
        let mut writer = ObjectWriter::new(storage.clone(), bytes("object"), options)
            .await
            .unwrap();
        writer.write(content(15, len)).await.unwrap();
        let with = |revision| {
            Batch::new()
                .check_revision("index", revision)
                .put("index", "1")
                .put("metadata", format!("{len}"))
        };
        // Refused, it can be tried again, without the bytes being sent again.
        let wrong = writer.finish_with(with(Revision(index.0 - 1)), CommitOptions::default());
        assert_check_failed(&wrong.await.unwrap_err(), "index", Some(index));
        assert_eq!(value(&storage, "index").await.as_deref(), Some("0"));
        let done = writer.finish_with(with(index), CommitOptions::labelled("all of it"));
        let at = done.await.unwrap().info.written.revision;
        for key in ["index", "metadata", "object"] {
            assert_eq!(entry(&storage, key).await.unwrap().revision, at);
        }
        let again = writer.finish_with(Batch::new(), CommitOptions::default());
        assert_invalid(&again.await.unwrap_err());
        drop(writer);
        assert_same(&read(&storage, "object").await, &content(15, len));
        remove(&storage, "metadata").await;
    }
}

async fn an_object_that_is_too_large_is_refused_and_leaves_nothing(context: Context) {
    let storage = context.open().await;
    let options = ObjectOptions {
        max_bytes: Some(2 * PART as u64),
        ..ObjectOptions::default()
    };
    let writing = |len| {
        storage.put_object(
            bytes("object"),
            iter([1, len].map(|len| Ok(content(1, len)))),
            options,
        )
    };
    let error = writing(2 * PART).await.unwrap_err();
    let expected = StorageError::limit(Limit::ObjectBytes, 2 * PART + 1, 2 * PART);
    assert_eq!(error, expected);
    assert!(error.to_string().contains("object_bytes_max"), "{error}");
    assert!(part_keys(&storage).await.is_empty());
    let mut writer = ObjectWriter::new(storage.clone(), bytes("object"), options)
        .await
        .unwrap();
    writer.write(content(1, 2 * PART)).await.unwrap();
    assert_eq!(writer.write(bytes("x")).await, Err(expected.clone()));
    assert!(
        part_keys(&storage).await.is_empty(),
        "it removes what it sent"
    );
    assert_eq!(writer.write(bytes("")).await, Err(expected));
    assert!(entry(&storage, "object").await.is_none());
    writing(2 * PART - 1).await.unwrap();
}

async fn a_key_without_room_takes_small_objects_only(context: Context) {
    let storage = context.open().await;
    let max = storage.limits().await.unwrap().key_bytes_max;
    let key = Key::from(vec![b'k'; max - 45]);
    let writing = |key: &Key, len| {
        storage.put_object(
            key.clone(),
            iter([Ok(content(1, len))]),
            ObjectOptions::default(),
        )
    };
    let error = writing(&key, PART + 1).await.unwrap_err();
    assert_invalid(&error);
    assert!(error.to_string().contains("key_bytes_max"), "{error}");
    writing(&key, PART).await.unwrap();
    writing(&key.slice(1..), PART + 1).await.unwrap();
    storage.remove_object(key.slice(1..)).await.unwrap();
    storage.remove_object(key).await.unwrap();
    // A part of another object is none.
    let id = write(&storage, "object", &content(1, PART + 1))
        .await
        .info
        .id;
    let part = storage_protocol::objects::PartKey::part(b"object", id.unwrap(), 0);
    assert!(parts_range(b"object").contains(&part));
    assert_invalid(&writing(&part, 1).await.unwrap_err());
    assert_invalid(&writing(&Key::new(), 1).await.unwrap_err());
}

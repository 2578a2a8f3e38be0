//! What `get` promises: all keys at one revision, in the order asked, nothing acknowledged left out.

use std::collections::BTreeSet;

use storage_protocol::{
    Batch, EntryLifetime, Key, Lifetime, Revision, Storage, StorageExt, UnixMillis,
};

use super::support::{bytes, commit, entry, full_state, put, remove, value};
use super::{Context, cases};

cases!["reads":
    answers_come_in_the_order_asked,
    a_key_may_be_asked_twice,
    absent_and_removed_keys_are_none,
    no_key_tells_the_position,
    a_keyspace_without_commits_is_empty,
    an_entry_tells_its_revision,
    an_entry_tells_its_lifetime,
    many_keys_are_read_at_one_revision,
    a_read_sees_every_acknowledged_commit,
    positions_never_go_backwards,
    a_position_covers_what_was_read,
    empty_values_are_not_absent,
    any_byte_may_stand_in_a_key,
    any_byte_may_stand_in_a_value,
    keys_that_begin_alike_are_distinct,
    large_values_come_back_whole,
    keyspaces_are_isolated,
    revisions_grow_across_keyspaces,
    the_epoch_is_the_same_everywhere,
];

async fn answers_come_in_the_order_asked(context: Context) {
    let storage = context.open().await;
    commit(
        &storage,
        Batch::new().put("a", "1").put("b", "2").put("c", "3"),
    )
    .await;
    let keys = ["c", "x", "a", "b"].map(Key::from);
    let reading = storage.get(&keys).await.unwrap();
    let values = reading
        .value
        .iter()
        .map(|e| e.as_ref().map(|e| &e.value[..]));
    let values: Vec<_> = values.collect();
    assert_eq!(values, [Some(&b"3"[..]), None, Some(b"1"), Some(b"2")]);
}

async fn a_key_may_be_asked_twice(context: Context) {
    let storage = context.open().await;
    put(&storage, "a", "1").await;
    let keys = ["a", "b", "a", "b", "a"].map(Key::from);
    let reading = storage.get(&keys).await.unwrap();
    let there: Vec<bool> = reading.value.iter().map(Option::is_some).collect();
    assert_eq!(there, [true, false, true, false, true]);
    assert_eq!(reading.value[0], reading.value[4]);
}

async fn absent_and_removed_keys_are_none(context: Context) {
    let storage = context.open().await;
    put(&storage, "gone", "1").await;
    remove(&storage, "gone").await;
    let keys = ["gone", "never", ""].map(Key::from);
    let reading = storage.get(&keys).await.unwrap();
    assert_eq!(reading.value, [None, None, None]);
}

async fn no_key_tells_the_position(context: Context) {
    let storage = context.open().await;
    let committed = put(&storage, "a", "1").await;
    let reading = storage.get(&[]).await.unwrap();
    assert!(reading.value.is_empty());
    assert!(reading.position.revision >= committed.revision);
    assert_eq!(reading.position.epoch, committed.epoch);
}

async fn a_keyspace_without_commits_is_empty(context: Context) {
    let storage = context.open().await;
    assert_eq!(entry(&storage, "a").await, None);
    assert!(full_state(&storage).await.1.is_empty());
}

async fn an_entry_tells_its_revision(context: Context) {
    let storage = context.open().await;
    let first = put(&storage, "a", "1").await;
    let second = put(&storage, "b", "1").await;
    assert_eq!(entry(&storage, "a").await.unwrap().revision, first.revision);
    assert_eq!(
        entry(&storage, "b").await.unwrap().revision,
        second.revision
    );
    let third = put(&storage, "a", "1").await;
    assert_eq!(entry(&storage, "a").await.unwrap().revision, third.revision);
}

async fn an_entry_tells_its_lifetime(context: Context) {
    let storage = context.open().await;
    let hour = std::time::Duration::from_secs(3600);
    let batch = Batch::new()
        .put("for ever", "")
        .put_with("for an hour", "", Lifetime::TimeToLive(hour))
        .put_with("with the session", "", Lifetime::Session);
    commit(&storage, batch).await;
    let lifetime = async |key| entry(&storage, key).await.unwrap().lifetime;
    assert_eq!(lifetime("for ever").await, EntryLifetime::Forever);
    assert_eq!(lifetime("with the session").await, EntryLifetime::Session);
    let EntryLifetime::Until(due) = lifetime("for an hour").await else {
        panic!("a time to live is stored as the time it is due");
    };
    // The server's clock is this machine's, but nobody promises how far both were apart at the call.
    let expected = UnixMillis::now().after(hour);
    assert!(due.0.abs_diff(expected.0) < 60_000, "due in {due:?}");
}

/// A writer sets all keys to the same number; no reader may see two numbers.
async fn many_keys_are_read_at_one_revision(context: Context) {
    let keys: Vec<Key> = (0..20).map(|n| bytes(&format!("key{n:02}"))).collect();
    let (writer, reader) = (context.open().await, context.open().await);
    let all = keys.clone();
    let writing = tokio::spawn(async move {
        for round in 0..100 {
            let batch = all.iter().fold(Batch::new(), |batch, key| {
                batch.put(key.clone(), round.to_string())
            });
            commit(&writer, batch).await;
        }
    });
    let mut reads = 0;
    while !writing.is_finished() || reads < 5 {
        let reading = reader.get(&keys).await.unwrap();
        let revisions: BTreeSet<Option<Revision>> = reading
            .value
            .iter()
            .map(|entry| entry.as_ref().map(|entry| entry.revision))
            .collect();
        assert_eq!(revisions.len(), 1, "one get saw commits {revisions:?}");
        reads += 1;
        tokio::task::yield_now().await;
    }
    writing.await.unwrap();
}

async fn a_read_sees_every_acknowledged_commit(context: Context) {
    let (writer, reader) = (context.open().await, context.open().await);
    for round in 0..50 {
        let committed = put(&writer, "a", &round.to_string()).await;
        let seen = entry(&reader, "a").await.unwrap();
        assert_eq!(seen.revision, committed.revision, "round {round}");
        let read = reader.sync().await.unwrap();
        assert!(read.revision >= committed.revision);
    }
}

async fn positions_never_go_backwards(context: Context) {
    let (writer, reader) = (context.open().await, context.open().await);
    let writing = tokio::spawn(async move {
        for round in 0..100 {
            put(&writer, "a", &round.to_string()).await;
        }
    });
    let (mut position, mut revision) = (Revision::ZERO, Revision::ZERO);
    while !writing.is_finished() {
        let reading = reader.get(&[bytes("a")]).await.unwrap();
        assert!(reading.position.revision >= position);
        position = reading.position.revision;
        if let Some(entry) = &reading.value[0] {
            assert!(entry.revision >= revision);
            revision = entry.revision;
        }
        tokio::task::yield_now().await;
    }
    writing.await.unwrap();
}

async fn a_position_covers_what_was_read(context: Context) {
    let storage = context.open().await;
    for round in 0..20 {
        let committed = put(&storage, "a", &round.to_string()).await;
        let reading = storage.get(&[bytes("a")]).await.unwrap();
        let revision = reading.value[0].as_ref().unwrap().revision;
        assert_eq!(revision, committed.revision);
        assert!(reading.position.revision >= revision);
    }
}

async fn empty_values_are_not_absent(context: Context) {
    let storage = context.open().await;
    put(&storage, "empty", "").await;
    assert_eq!(value(&storage, "empty").await.as_deref(), Some(""));
    assert_eq!(value(&storage, "absent").await, None);
}

async fn any_byte_may_stand_in_a_key(context: Context) {
    let storage = context.open().await;
    let mut keys: Vec<Key> = (0..=255u8).map(|byte| Key::from(vec![byte])).collect();
    let odd: [&[u8]; 6] = [b"\0\0", b"a\0", b"a#b", b"##", b"\xff\xff", b"#\xff\0#"];
    keys.extend(odd.map(Key::from_static));
    let batch = keys.iter().fold(Batch::new(), |batch, key| {
        batch.put(key.clone(), key.clone())
    });
    commit(&storage, batch).await;
    let reading = storage.get(&keys).await.unwrap();
    for (key, entry) in keys.iter().zip(reading.value) {
        assert_eq!(entry.map(|entry| entry.value).as_ref(), Some(key));
    }
    let (_, state) = full_state(&storage).await;
    keys.sort();
    assert!(state.keys().eq(keys.iter()), "a scan tells each of them");
}

async fn any_byte_may_stand_in_a_value(context: Context) {
    let storage = context.open().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let values = [
        every_byte,
        b"#".to_vec(),
        b"a#b#".to_vec(),
        vec![0, 0, 0xff],
    ];
    for (n, value) in values.iter().enumerate() {
        let key = bytes(&n.to_string());
        storage
            .put(key.clone(), value.clone().into())
            .await
            .unwrap();
        let entry = storage.get_one(key).await.unwrap().unwrap();
        assert_eq!(&entry.value[..], &value[..]);
    }
}

async fn keys_that_begin_alike_are_distinct(context: Context) {
    let storage = context.open().await;
    let keys: [&[u8]; 5] = [b"a", b"a\0", b"a\0\0", b"aa", b"a\xff"];
    for (n, key) in keys.iter().enumerate() {
        let value = bytes(&n.to_string());
        storage.put(Key::from_static(key), value).await.unwrap();
    }
    let reading = storage.get(&keys.map(Key::from_static)).await.unwrap();
    for (n, entry) in reading.value.into_iter().enumerate() {
        assert_eq!(entry.unwrap().value, bytes(&n.to_string()));
    }
    storage.remove(Key::from_static(keys[1])).await.unwrap();
    assert_eq!(full_state(&storage).await.1.len(), 4);
}

async fn large_values_come_back_whole(context: Context) {
    let storage = context.open().await;
    let value_max = storage.limits().await.unwrap().value_bytes_max;
    for size in [1 << 20, 10 << 20].map(|size: usize| size.min(value_max)) {
        let value: Vec<u8> = (0..=250).cycle().take(size).collect();
        let value = Key::from(value);
        storage.put(bytes("large"), value.clone()).await.unwrap();
        let entry = entry(&storage, "large").await.unwrap();
        assert!(entry.value == value, "{size} bytes came back changed");
    }
}

async fn keyspaces_are_isolated(context: Context) {
    let (one, other) = (context.open().await, context.open_other("x").await);
    put(&one, "a", "one").await;
    put(&other, "a", "other").await;
    put(&other, "b", "other").await;
    assert_eq!(value(&one, "a").await.as_deref(), Some("one"));
    assert_eq!(value(&one, "b").await, None);
    remove(&one, "a").await;
    assert_eq!(value(&other, "a").await.as_deref(), Some("other"));
    assert!(full_state(&one).await.1.is_empty());
    let batch = Batch::new().check_absent("b").put("b", "one");
    commit(&one, batch).await;
}

async fn revisions_grow_across_keyspaces(context: Context) {
    let (one, other) = (context.open().await, context.open_other("x").await);
    let mut last = Revision::ZERO;
    for round in 0..10 {
        for storage in [&one, &other] {
            let committed = put(storage, "a", &round.to_string()).await;
            assert!(committed.revision > last, "{committed} after {last}");
            last = committed.revision;
        }
    }
    assert!(one.sync().await.unwrap().revision >= last);
}

async fn the_epoch_is_the_same_everywhere(context: Context) {
    let (one, other) = (context.open().await, context.open_other("x").await);
    let committed = put(&one, "a", "1").await;
    assert_eq!(one.sync().await.unwrap().epoch, committed.epoch);
    assert_eq!(full_state(&other).await.0.epoch, committed.epoch);
    assert_eq!(put(&other, "a", "1").await.epoch, committed.epoch);
}

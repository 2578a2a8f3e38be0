//! What prefix reservation promises: the lowest free number, held by one session, free again after it.

use std::collections::BTreeSet;

use storage_protocol::{EntryLifetime, KeyRange, StorageExt};

use super::support::{bytes, full_state, keys, plain};
use super::{Context, cases};

cases!["prefixes":
    the_lowest_free_number_is_given,
    a_released_number_is_given_again,
    bases_do_not_share_numbers,
    concurrent_reservations_are_distinct,
    a_reservation_lives_as_long_as_its_session,
    an_ended_session_frees_its_numbers [EndSession],
];

async fn the_lowest_free_number_is_given(context: Context) {
    let (one, other) = (context.open().await, context.open().await);
    for expected in 0..6 {
        let storage = if expected % 2 == 0 { &one } else { &other };
        let number = storage.reserve_prefix(bytes("base/")).await.unwrap();
        assert_eq!(number, expected);
    }
}

async fn a_released_number_is_given_again(context: Context) {
    let storage = context.open().await;
    for _ in 0..5 {
        storage.reserve_prefix(bytes("base/")).await.unwrap();
    }
    for freed in [3, 1] {
        storage.release_prefix(bytes("base/"), freed).await.unwrap();
    }
    for expected in [1, 3, 5] {
        let number = storage.reserve_prefix(bytes("base/")).await.unwrap();
        assert_eq!(number, expected);
    }
}

async fn bases_do_not_share_numbers(context: Context) {
    let storage = context.open().await;
    for base in ["a/", "b/", "a/b/"] {
        assert_eq!(storage.reserve_prefix(bytes(base)).await.unwrap(), 0);
    }
    assert_eq!(storage.reserve_prefix(bytes("a/")).await.unwrap(), 1);
}

async fn concurrent_reservations_are_distinct(context: Context) {
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let storage = context.open().await;
        tasks.push(tokio::spawn(async move {
            let mut numbers = Vec::new();
            for _ in 0..4 {
                numbers.push(storage.reserve_prefix(bytes("base/")).await.unwrap());
            }
            // The handle is kept, so that the session is there until all are done.
            (storage, numbers)
        }));
    }
    let (mut given, mut held) = (BTreeSet::new(), Vec::new());
    for task in tasks {
        let (storage, numbers) = task.await.unwrap();
        held.push(storage);
        for number in numbers {
            assert!(given.insert(number), "{number} was given twice");
        }
    }
    assert!(given.iter().copied().eq(0..32), "{given:?} has a gap");
}

async fn a_reservation_lives_as_long_as_its_session(context: Context) {
    let storage = context.open().await;
    storage.reserve_prefix(bytes("base/")).await.unwrap();
    let (_, state) = full_state(&storage).await;
    assert_eq!(state.len(), 1);
    for entry in state.values() {
        assert_eq!(entry.lifetime, EntryLifetime::Session);
    }
    storage.release_prefix(bytes("base/"), 0).await.unwrap();
    let left = keys(&storage, KeyRange::all(), plain()).await;
    assert!(left.is_empty());
}

async fn an_ended_session_frees_its_numbers(context: Context) {
    let (session, storage) = (context.session().await, context.open().await);
    let held = session.storage.reserve_prefix(bytes("base/")).await;
    assert_eq!(held.unwrap(), 0);
    assert_eq!(storage.reserve_prefix(bytes("base/")).await.unwrap(), 1);
    let mut watch = super::support::watch_every(
        &storage,
        KeyRange::prefix("base/"),
        storage_protocol::WatchStart::Now,
    )
    .await;
    (session.end.unwrap())().await;
    let record = super::support::next_commit(&mut watch).await;
    assert_eq!(record.label.as_deref(), Some("session ended"));
    assert_eq!(storage.reserve_prefix(bytes("base/")).await.unwrap(), 0);
    assert_eq!(storage.reserve_prefix(bytes("base/")).await.unwrap(), 2);
}

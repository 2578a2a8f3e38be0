//! What watches cost those who commit, and what a peer is told of them, byte by byte over a real connection.

use std::time::Duration;

use bytes::Bytes;
use storage_protocol::native::{ClientMessage, RequestId, ServerMessage, WatchRequest};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Lifetime, Position, Storage, StorageError, StorageExt,
    WatchMode, WatchStart,
};
use storage_testkit::raw::in_time;
use storage_testkit::served::Served;

const MIB: u64 = 1 << 20;
fn served(config: &str) -> Served {
    let config = format!("durability = \"os\"\n{config}");
    Served::measured(&["watcher", "writer"], &config)
}

fn watch(range: KeyRange, start: WatchStart, mode: WatchMode, credit: u64) -> ClientMessage {
    ClientMessage::Watch(WatchRequest {
        range,
        start,
        mode,
        credit,
    })
}

fn latest() -> WatchMode {
    WatchMode::Latest {
        min_interval: Duration::ZERO,
    }
}

/// Puts of one commit, with keys of eight bytes.
fn puts(count: u32) -> Batch {
    (0..count).fold(Batch::new(), |batch, n| batch.put(format!("{n:08}"), "v"))
}

/// As many watches as a session may have, each on everything, and a commit of as many operations as one may have. Before,
/// the pairs of both were counted one by one: half a minute of work, and 1 GiB, while nobody else was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_commit_that_ten_thousand_watches_see_holds_nobody_up() {
    const WATCHES: u32 = 10_000;
    const OPERATIONS: u32 = 10_000;
    /// An outbox, the feed's queues, and what the commit itself takes.
    const GROWTH_MAX: u64 = 128 * MIB;
    let fixture = served("");
    let mut peer = fixture.native("watcher", "shared").await;
    // One byte of credit each: it is live, and what it is told parks it.
    for id in 0..WATCHES {
        let message = watch(KeyRange::all(), WatchStart::Now, WatchMode::Every, 1);
        peer.say(Some(id), &message).await;
    }
    for _ in 0..WATCHES {
        assert!(matches!(
            peer.hear().await.1,
            ServerMessage::Watching { .. }
        ));
    }
    let (writer, other) = (
        fixture.connect("writer", "shared").await,
        fixture.connect("writer", "other").await,
    );
    other.put("a".into(), "1".into()).await.unwrap();
    let before = fixture.server.resident_bytes();
    let used = fixture.server.cpu_time();
    let options = CommitOptions::default;
    writer.commit(puts(OPERATIONS), options()).await.unwrap();
    // Others are answered while the watches are told.
    for n in 0..20 {
        other.put("a".into(), n.to_string().into()).await.unwrap();
        other.get_one("a".into()).await.unwrap();
    }
    let used = fixture.server.cpu_time() - used;
    let grown = fixture.server.resident_bytes().saturating_sub(before);
    assert!(
        grown < GROWTH_MAX,
        "resident memory grew by {} MiB",
        grown / MIB
    );
    // In processor time, which a busy machine does not stretch much: 32 s before.
    assert!(used < Duration::from_secs(5), "{used:?} of processor time");
    assert!(fixture.metric("storage_feed_queued_bytes").await <= (64 * MIB) as f64);
    // And they are told: the whole commit, though the credit was for one byte of it.
    let (id, message) = in_time("an event", peer.hear()).await;
    let ServerMessage::Changes { commits } = message else {
        panic!("{id:?} {message:?}")
    };
    assert_eq!(commits[0].changes.len(), OPERATIONS as usize);
}

/// The largest commits that are taken, of each shape: what watchers are told of them is a message that may be sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_of_the_largest_commit_is_no_longer_than_a_message() {
    let message_max: usize = 1 << 20;
    let config = "[limits]\nmessage_bytes_max = \"1 MiB\"\nvalue_bytes_max = \"512 KiB\"\n";
    let fixture = served(config);
    let mut peer = fixture.native("watcher", "shared").await;
    let message = watch(
        KeyRange::all(),
        WatchStart::Now,
        WatchMode::Every,
        u64::MAX >> 2,
    );
    let answer = peer.ask(1, &message).await;
    assert!(
        matches!(answer, ServerMessage::Watching { .. }),
        "{answer:?}"
    );
    let writer = fixture.connect("writer", "shared").await;
    let ttl = Lifetime::TimeToLive(Duration::from_millis(1 << 62));
    let label = "l".repeat(256);
    let options = || CommitOptions::labelled(label.clone());
    // As many puts as the measure lets through, with small values and with larger ones, over values before.
    for (value, previous) in [(0, false), (40, false), (40, true), (900, true)] {
        let value = Bytes::from(vec![b'v'; value]);
        let per_put = 8 + value.len() + Batch::ITEM_BYTES + if previous { value.len() } else { 0 };
        let count = ((message_max - Batch::BASE_BYTES) / per_put).min(10_000);
        let batch = (0..count).fold(Batch::new(), |batch, n| {
            batch.put_with(format!("{n:08}"), value.clone(), ttl)
        });
        if previous {
            writer.commit(batch.clone(), options()).await.unwrap();
        }
        let options = if previous {
            options().with_previous()
        } else {
            options()
        };
        writer.commit(batch, options).await.unwrap();
        // The peer refuses, as any would, a message over the maximum.
        for _ in 0..=usize::from(previous) {
            let told = in_time("an event", peer.hear()).await.1;
            let ServerMessage::Changes { commits } = &told else {
                panic!("{told:?}")
            };
            assert_eq!(commits[0].changes.len(), count);
            let bytes = told.encode(Some(1)).payload.len();
            assert!(bytes <= message_max, "{bytes} bytes");
        }
    }
}

/// All states fit into the credit: they come without another grant.
#[tokio::test]
async fn a_latest_watch_goes_on_while_its_balance_is_above_zero() {
    let fixture = served("");
    let writer = fixture.connect("writer", "shared").await;
    let batch = (0..150).fold(Batch::new(), |batch, n| batch.put(format!("{n:09}"), "v"));
    writer
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
    let mut peer = fixture.native("watcher", "shared").await;
    let message = watch(KeyRange::all(), WatchStart::Beginning, latest(), 3_000);
    peer.say(Some(1), &message).await;
    let mut told = 0;
    loop {
        match in_time("states and a mark", peer.hear()).await.1 {
            ServerMessage::Watching { .. } => {}
            ServerMessage::States { states } => told += states.len(),
            ServerMessage::Progress { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, 150);
}

/// A watch that the log has to be read for, ended before it is answered.
#[tokio::test]
async fn done_comes_behind_the_answer_to_a_watch_that_is_ended_at_once() {
    let fixture = served("[engine]\nring_bytes = \"64 KiB\"\n");
    let writer = fixture.connect("writer", "shared").await;
    let start: Position = writer.put("first".into(), "1".into()).await.unwrap();
    for n in 0..40 {
        let value = Bytes::from(vec![b'v'; 256 << 10]);
        writer.put(format!("{n}").into(), value).await.unwrap();
    }
    let mut peer = fixture.native("watcher", "shared").await;
    for round in 0..20_u32 {
        let (id, unwatch): (RequestId, RequestId) = (3 * round, 3 * round + 1);
        let start = WatchStart::After(start);
        let message = watch(KeyRange::prefix("none"), start, WatchMode::Every, 1_000);
        peer.say(Some(id), &message).await;
        peer.say(Some(unwatch), &ClientMessage::Unwatch { watch: id })
            .await;
        let (answered, message) = in_time("the watch's answer", peer.hear()).await;
        assert_eq!(answered, Some(id), "{message:?}");
        assert!(
            matches!(
                message,
                ServerMessage::Watching { .. } | ServerMessage::Error(StorageError::Cancelled)
            ),
            "{message:?}"
        );
        loop {
            match in_time("the end", peer.hear()).await {
                (Some(done), ServerMessage::Done) if done == unwatch => break,
                (Some(of), ServerMessage::Progress { .. }) if of == id => {}
                other => panic!("{other:?}"),
            }
        }
        let get = ClientMessage::Get {
            keys: vec!["first".into()],
        };
        let answer = peer.ask(id, &get).await;
        assert!(matches!(answer, ServerMessage::Values { .. }), "{answer:?}");
    }
}

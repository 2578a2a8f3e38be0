//! Memory that peers made the server take goes back to the system once they have left.
//!
//! What is looked at is the resident size, as a ratio of what the peers had added to it; how long it takes is bounded
//! only so that a test that fails ends.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use storage_client::RemoteStorage;
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Storage, StorageExt, WatchOptions, WatchStart,
};
use storage_testkit::harness::{Certificates, ServerProcess, connect};

const MIB: u64 = 1 << 20;
/// Longer than the allocator keeps what was freed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections of one burst.
const CONNECTIONS: usize = 40;
/// Big commits that each has in flight.
const COMMITS: usize = 2;
const COMMIT_BYTES: usize = 6 << 20;
/// Watches of each, with ranges of two keys of so many bytes.
const WATCHES: usize = 200;
const KEY_BYTES: usize = 1 << 10;

/// Many connections with watches, small reads and writes, and big commits that are refused, so that the store and its
/// caches keep nothing of them. All are open at once.
async fn burst(server: &ServerProcess, certificates: &Certificates) {
    let value = Bytes::from(vec![b'v'; COMMIT_BYTES]);
    let one = async |n: usize| {
        let storage = connect(server, certificates, ["a", "b"][n % 2], "burst")
            .await
            .unwrap();
        let mut watches = Vec::new();
        for place in 0..WATCHES {
            let key = format!("{n}/{place}/{}", "k".repeat(KEY_BYTES));
            let range = KeyRange::prefix(key);
            let options = WatchOptions::every(WatchStart::Now);
            watches.push(storage.watch(range, options).await.unwrap());
        }
        let big = (0..COMMITS).map(|_| refused(&storage, value.clone()));
        let small =
            (0..WATCHES).map(|place| storage.put(format!("{n}/{place}").into(), "v".into()));
        let (_, small) = tokio::join!(join_all(big), join_all(small));
        assert!(small.into_iter().all(|put| put.is_ok()));
        (storage, watches)
    };
    let open = join_all((0..CONNECTIONS).map(one)).await;
    for (storage, watches) in open {
        drop(watches);
        storage.close().await;
    }
}

async fn refused(storage: &RemoteStorage, value: Bytes) {
    let batch = Batch::new().check_absent("k").put("big", value);
    let options = CommitOptions::default();
    storage.commit(batch, options).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_peers_made_it_take_goes_back_once_they_have_left() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(&["a", "b"]);
    let data = folder.path().join("data");
    let server = ServerProcess::mutual(&certificates, &data, &["--durability", "os"]);
    let warm = connect(&server, &certificates, "a", "burst").await.unwrap();
    warm.put("k".into(), "v".into()).await.unwrap();
    let rest = server.resident_bytes();
    burst(&server, &certificates).await;
    let peak = server.peak_resident_bytes();
    let added = peak - rest;
    assert!(
        added > 100 * MIB,
        "the burst added only {} MiB",
        added / MIB
    );
    let began = Instant::now();
    let kept = loop {
        // What a server does that is at rest, but for its peers' questions.
        warm.ping().await.unwrap();
        let kept = server.resident_bytes().saturating_sub(rest);
        if kept < added / 4 || began.elapsed() > PATIENCE {
            break kept;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    println!(
        "at rest {} MiB, with the burst {}, {:?} later {}; {:?} of CPU",
        rest / MIB,
        peak / MIB,
        began.elapsed(),
        (rest + kept) / MIB,
        server.cpu_time()
    );
    assert!(
        kept < added / 4,
        "of {} MiB that the burst added, {} are still there",
        added / MIB,
        kept / MIB
    );
}

//! A process that is stopped for a while (SIGSTOP, a paused machine) and goes on: nothing that it was asked for is lost.

use std::time::Duration;

use rustix::process::Signal;
use storage_protocol::{Continuity, KeyRange, Storage, StorageExt, WatchEvent, WatchOptions};
use storage_testkit::harness::{Certificates, ServerProcess, connect};
use storage_testkit::raw::in_time;
use tempfile::TempDir;

/// How long the server may be silent, in these tests.
const SILENCE: Duration = Duration::from_secs(1);

struct Fixture {
    server: ServerProcess,
    certificates: Certificates,
    _folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let certificates = Certificates::issue(&["user"]);
        let config = "[timeouts]\nheartbeat = \"300ms\"\nsilence = \"1s\"\n";
        let (server, folder) = ServerProcess::configured(&certificates, config);
        Self {
            server,
            certificates,
            _folder: folder,
        }
    }
}

#[tokio::test]
async fn what_a_frozen_server_was_asked_for_is_done_once_when_it_goes_on() {
    let fixture = Fixture::new();
    let (server, certificates) = (&fixture.server, &fixture.certificates);
    let storage = connect(server, certificates, "user", "model")
        .await
        .unwrap();
    let every = WatchOptions::default();
    let mut watch = storage.watch(KeyRange::all(), every).await.unwrap();
    storage.put("before".into(), "1".into()).await.unwrap();
    server.signal(Signal::STOP);
    let going_on = async {
        // The client leaves a server that is silent for so long, and comes back until it is there.
        tokio::time::sleep(2 * SILENCE).await;
        server.signal(Signal::CONT);
    };
    let put = storage.put("meanwhile".into(), "2".into());
    let (put, ()) = in_time("the put", async { tokio::join!(put, going_on) }).await;
    put.unwrap();
    let (mut told, mut continuous) = (Vec::new(), 0);
    let telling = async {
        while told.len() < 2 {
            match watch.next().await.unwrap().unwrap() {
                WatchEvent::Commit(record) => {
                    told.extend(record.changes.iter().map(|change| change.key.clone()));
                }
                WatchEvent::Continuity(Continuity::Continuous) => continuous += 1,
                WatchEvent::Progress { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    };
    in_time("the watch", telling).await;
    assert_eq!(told, ["before", "meanwhile"]);
    assert!(continuous > 0, "the break was not told");
}

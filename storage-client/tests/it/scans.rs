//! Scans: pages, the end, and giving up.

use futures_util::future::join;
use storage_client::RemoteStorage;
use storage_protocol::native::{ClientMessage, ServerMessage};
use storage_protocol::{
    KeyRange, KeyState, Revision, Scan, ScanItem, ScanOptions, Storage, StorageError,
};

use crate::fake::{Peer, connect, entry, position};

fn page(scan: Option<u64>, keys: &[&'static str]) -> ServerMessage {
    let item = |key: &&'static str| ScanItem {
        key: (*key).into(),
        state: KeyState::Live(entry("v")),
    };
    ServerMessage::Page {
        revision: Revision(100),
        scan,
        items: keys.iter().map(item).collect(),
    }
}

async fn open(storage: &RemoteStorage, peer: &mut Peer, first: ServerMessage) -> Scan {
    let server = async {
        let (id, message) = peer.receive().await;
        assert!(matches!(message, ClientMessage::Scan { .. }), "{message:?}");
        peer.send(id, first).await;
    };
    let scan = storage.scan(KeyRange::all(), ScanOptions::default());
    join(scan, server).await.0.unwrap()
}

#[tokio::test]
async fn pages_come_one_by_one_to_the_last() {
    let (storage, mut peer) = connect().await;
    let scan = open(&storage, &mut peer, page(Some(4), &["a", "b"])).await;
    assert_eq!(scan.position(), position(100));
    let server = async {
        for (more, keys) in [(Some(4), &["c"][..]), (None, &["d"])] {
            let (id, message) = peer.receive().await;
            assert_eq!(message, ClientMessage::ScanNext { scan: 4 });
            peer.send(id, page(more, keys)).await;
        }
        // The last page has closed it: no ScanClose comes.
        let (id, message) = peer.receive().await;
        assert!(
            matches!(message, ClientMessage::Probe { .. }),
            "{message:?}"
        );
        peer.probed(id).await;
    };
    let client = async {
        let keys: Vec<_> = scan
            .collect()
            .await
            .unwrap()
            .into_iter()
            .map(|item| item.key)
            .collect();
        assert_eq!(keys, ["a", "b", "c", "d"]);
        storage.ping().await.unwrap();
    };
    join(client, server).await;
}

#[tokio::test]
async fn a_dropped_scan_is_closed() {
    let (storage, mut peer) = connect().await;
    drop(open(&storage, &mut peer, page(Some(4), &["a"])).await);
    let (id, message) = peer.receive().await;
    assert_eq!(message, ClientMessage::ScanClose { scan: 4 });
    peer.send(id, ServerMessage::Done).await;
}

#[tokio::test]
async fn a_scan_given_up_before_its_first_page_is_closed_when_it_comes() {
    let (storage, mut peer) = connect().await;
    let (id, _) = tokio::select! {
        _ = storage.scan(KeyRange::all(), ScanOptions::default()) => panic!("answered by nobody"),
        asked = peer.receive() => asked,
    };
    assert_eq!(peer.receive().await, (id, ClientMessage::Cancel));
    peer.send(id, page(Some(9), &["a"])).await;
    assert_eq!(peer.receive().await.1, ClientMessage::ScanClose { scan: 9 });
}

#[tokio::test]
async fn a_scan_does_not_go_on_behind_a_lost_page() {
    let (storage, mut peer) = connect().await;
    let mut scan = open(&storage, &mut peer, page(Some(4), &["a"])).await;
    scan.next_page().await.unwrap();
    tokio::select! {
        _ = scan.next_page() => panic!("answered by nobody"),
        _ = peer.receive() => {}
    }
    let error = scan.next_page().await.unwrap_err();
    assert!(error.to_string().contains("page is lost"), "{error}");

    let mut scan = open_second(&storage, &mut peer).await;
    scan.next_page().await.unwrap();
    let server = async {
        loop {
            let (id, message) = peer.receive().await;
            if message == (ClientMessage::ScanNext { scan: 5 }) {
                return peer
                    .send(id, ServerMessage::Error(StorageError::SnapshotExpired))
                    .await;
            }
        }
    };
    let (expired, ()) = join(scan.next_page(), server).await;
    assert_eq!(expired.unwrap_err(), StorageError::SnapshotExpired);
    assert_eq!(
        scan.next_page().await.unwrap_err(),
        StorageError::SnapshotExpired
    );
}

/// Opens a scan while the first one's cancellation is on its way.
async fn open_second(storage: &RemoteStorage, peer: &mut Peer) -> Scan {
    let server = async {
        loop {
            let (id, message) = peer.receive().await;
            if matches!(message, ClientMessage::Scan { .. }) {
                return peer.send(id, page(Some(5), &["a"])).await;
            }
        }
    };
    let scan = storage.scan(KeyRange::all(), ScanOptions::default());
    join(scan, server).await.0.unwrap()
}

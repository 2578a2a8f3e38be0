//! Gets and scans, and how small answers pass large ones.

use super::*;

#[tokio::test]
async fn a_scan_ends_with_a_page_that_says_so() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    for (number, key) in (1..).zip(["a", "b", "c"]) {
        send(client, Some(1), commit(number, key)).await;
        receive(client).await;
    }
    let scan = ClientMessage::Scan {
        range: KeyRange::all(),
        options: ScanOptions::default(),
    };
    send(client, Some(1), scan).await;
    let mut keys = Vec::new();
    let mut next = 2;
    loop {
        let (_, ServerMessage::Page { scan, items, .. }) = receive(client).await else {
            panic!("no page")
        };
        keys.extend(items.into_iter().map(|item| item.key));
        let Some(scan) = scan else { break };
        send(client, Some(next), ClientMessage::ScanNext { scan }).await;
        next += 1;
    }
    assert_eq!(keys, ["a", "b", "c"]);
    send(client, Some(1), ClientMessage::ScanNext { scan: 0 }).await;
    assert_eq!(
        receive(client).await.1,
        ServerMessage::Error(StorageError::SnapshotExpired)
    );
}

#[tokio::test]
async fn a_second_page_of_a_scan_is_refused_while_one_is_on_its_way() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    for (number, key) in (1..).zip(["a", "b", "c"]) {
        send(client, Some(1), commit(number, key)).await;
        receive(client).await;
    }
    let scan = ClientMessage::Scan {
        range: KeyRange::all(),
        options: ScanOptions::default(),
    };
    send(client, Some(1), scan).await;
    let (
        _,
        ServerMessage::Page {
            scan: Some(scan), ..
        },
    ) = receive(client).await
    else {
        panic!("no open scan")
    };
    running.engine.hold(Hold::Reads);
    for id in [2, 3] {
        send(client, Some(id), ClientMessage::ScanNext { scan }).await;
    }
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("not refused")
    };
    assert_eq!(id, Some(3));
    assert!(
        matches!(error, StorageError::InvalidArgument { .. }),
        "{error}"
    );
    running.engine.hold(Hold::Nothing);
    let (
        id,
        ServerMessage::Page {
            scan: Some(scan),
            items,
            ..
        },
    ) = receive(client).await
    else {
        panic!("the scan goes on")
    };
    assert_eq!((id, items[0].key.as_ref()), (Some(2), &b"b"[..]));
    send(client, Some(4), ClientMessage::ScanNext { scan }).await;
    assert!(matches!(
        receive(client).await,
        (Some(4), ServerMessage::Page { .. })
    ));
}

#[tokio::test]
async fn a_small_answer_overtakes_large_ones_that_wait() {
    let mut running = running(|config| config.limits.outbox_bytes_max = 64 << 10);
    open(&mut running).await;
    fill(&mut running).await;
    let client = &mut running.client;
    for id in 0..20 {
        send(client, Some(id), get("large")).await;
    }
    send(client, Some(99), get("small")).await;
    let mut reassembler = Reassembler::new(256 << 10, 1 << 20);
    let (mut before, mut ids) = (0, Vec::new());
    loop {
        let (id, _, bytes) = receive_parts(client, &mut reassembler).await;
        ids.extend(id);
        if id == Some(99) {
            break;
        }
        before += bytes;
    }
    // What is in the socket and in the buffers above it, and one that had begun.
    assert!(before < 600_000, "{before} bytes came before it");
    while ids.len() < 21 {
        let (id, answer, _) = receive_parts(client, &mut reassembler).await;
        assert!(matches!(answer, ServerMessage::Values { .. }));
        ids.extend(id);
    }
    ids.sort_unstable();
    assert_eq!(ids[..20], (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_read_and_not_taken_is_counted_with_the_outbox() {
    const OUTBOX: usize = 300_000;
    let mut running = running(|config| config.limits.outbox_bytes_max = OUTBOX);
    open(&mut running).await;
    fill(&mut running).await;
    running.engine.hold(Hold::Reads);
    let client = &mut running.client;
    for id in 0..50 {
        send(client, Some(id), get("large")).await;
    }
    // All are read at once, and nobody takes them.
    running.engine.hold(Hold::Nothing);
    let outbox = running.shared.budgets.outbox.clone();
    let mut most = 0;
    for _ in 0..1_000 {
        most = most.max(outbox.used());
        tokio::task::yield_now().await;
    }
    assert!((200_000..OUTBOX + 210_000).contains(&most), "{most} bytes");
    let mut reassembler = Reassembler::new(256 << 10, 1 << 20);
    for _ in 0..50 {
        receive_parts(client, &mut reassembler).await;
        most = most.max(outbox.used());
    }
    assert!(most < OUTBOX + 210_000, "{most} bytes");
}

#[tokio::test]
async fn who_finds_the_others_room_full_waits_for_it() {
    let mut running = running(|config| {
        config.limits.outbox_bytes_total_max = 500_000;
        config.limits.message_bytes_max = 400_000;
    });
    open(&mut running).await;
    fill(&mut running).await;
    let others = running.shared.budgets.outbox.take(400_000).unwrap();
    let client = &mut running.client;
    send(client, Some(1), get("large")).await;
    // A small one does not wait.
    send(client, Some(2), get("small")).await;
    assert_eq!(receive(client).await.0, Some(2));
    drop(others);
    let mut reassembler = Reassembler::new(256 << 10, 1 << 20);
    let (id, answer, _) = receive_parts(client, &mut reassembler).await;
    assert_eq!(id, Some(1));
    assert!(matches!(answer, ServerMessage::Values { .. }));
}

#[tokio::test]
async fn a_small_get_does_not_wait_for_the_others_room_though_it_is_the_first() {
    let mut running = running(|config| {
        config.limits.outbox_bytes_total_max = 500_000;
        config.limits.message_bytes_max = 250_000;
    });
    open(&mut running).await;
    fill(&mut running).await;
    let others = running.shared.budgets.outbox.take(500_000).unwrap();
    let client = &mut running.client;
    send(client, Some(1), get("small")).await;
    ping(client, 2).await;
    assert_eq!(receive(client).await.0, Some(1));
    expect_ping(client, 2).await;
    // A large one waits.
    send(client, Some(3), get("large")).await;
    ping(client, 4).await;
    expect_ping(client, 4).await;
    drop(others);
    let mut reassembler = Reassembler::new(256 << 10, 1 << 20);
    let (id, answer, _) = receive_parts(client, &mut reassembler).await;
    assert_eq!(id, Some(3));
    assert!(matches!(answer, ServerMessage::Values { .. }));
}

//! Bounds on what is asked for, and on what is not taken.

use super::*;

#[tokio::test]
async fn requests_over_the_bound_are_refused_by_its_name() {
    let mut running = running(|config| config.limits.requests_in_flight_max = 2);
    open(&mut running).await;
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    for (id, number) in (1..=3).zip(1..) {
        send(client, Some(id), commit(number, "a")).await;
    }
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("no error")
    };
    assert_eq!(id, Some(3));
    assert!(
        error
            .to_string()
            .contains("requests_in_flight_max is reached (2)"),
        "{error}"
    );
    running.engine.hold(Hold::Nothing);
    receive(client).await;
    receive(client).await;
    send(client, Some(3), commit(4, "b")).await;
    assert!(matches!(
        receive(client).await,
        (Some(3), ServerMessage::Committed { .. })
    ));
}

#[tokio::test]
async fn a_small_outbox_closes_nobody_who_takes_his_answers() {
    let mut running = running(|config| config.limits.outbox_bytes_max = 64);
    open(&mut running).await;
    let client = &mut running.client;
    for number in 1..=100 {
        let message = commit(number, "a").encode(u32::try_from(number).ok());
        client
            .feed(Message::Binary(message.to_frame()))
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    for _ in 0..100 {
        let (_, ServerMessage::Committed { .. }) = receive(client).await else {
            panic!("not committed")
        };
    }
}

#[tokio::test]
async fn a_request_with_too_many_items_is_refused_before_it_waits() {
    let mut running = running(|config| {
        config.limits.keys_per_get_max = 3;
        config.limits.operations_per_commit_max = 3;
    });
    open(&mut running).await;
    running.engine.hold(Hold::Reads);
    let client = &mut running.client;
    let refused = async |client: &mut Client, id| match receive(client).await {
        (answered, ServerMessage::Error(error)) if answered == Some(id) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let keys = vec!["a".into(); 4];
    send(client, Some(1), ClientMessage::Get { keys }).await;
    ping(client, 9).await;
    let reason = refused(client, 1).await;
    assert!(reason.contains("keys_per_get_max is 3, this has 4"));
    expect_ping(client, 9).await;
    // Number 1 is not here yet, so these wait; or would.
    send(client, Some(2), removals(2, 4)).await;
    let checks = (0..4).fold(Batch::new(), |batch, n| batch.check_absent(format!("{n}")));
    let checking = ClientMessage::Commit {
        number: 3,
        options: CommitOptions::default(),
        batch: checks,
    };
    send(client, Some(3), checking).await;
    ping(client, 9).await;
    for id in [2, 3] {
        let reason = refused(client, id).await;
        assert!(reason.contains("operations_per_commit_max is 3, this has 4"));
    }
    expect_ping(client, 9).await;
    // Their numbers are skipped.
    for number in [4, 1] {
        send(client, Some(number), removals(number.into(), 3)).await;
    }
    for id in [1, 4] {
        let (answered, answer) = receive(client).await;
        assert!(matches!(answer, ServerMessage::Committed { .. }));
        assert_eq!(answered, Some(id));
    }
}

#[tokio::test]
async fn what_waits_decoded_is_counted_at_what_it_takes() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Reads);
    let in_flight = running.shared.budgets.in_flight.clone();
    let client = &mut running.client;
    let keys = vec![Bytes::new(); 1_000];
    let get = ClientMessage::Get { keys };
    let payload = get.encode(Some(1)).payload.len();
    send(client, Some(1), get).await;
    ping(client, 9).await;
    expect_ping(client, 9).await;
    let keys = 1_000 * size_of::<storage_protocol::Key>();
    assert_eq!(in_flight.used(), payload + keys);
    // Number 1 is missing.
    let commit = removals(2, 100);
    let commit_payload = commit.encode(Some(2)).payload.len();
    send(client, Some(2), commit).await;
    ping(client, 9).await;
    expect_ping(client, 9).await;
    let operations = 100 * size_of::<storage_protocol::Operation>();
    let all = payload + keys + commit_payload + operations;
    assert_eq!(in_flight.used(), all);
    send(client, Some(3), removals(1, 1)).await;
    for _ in 0..2 {
        receive(client).await;
    }
    running.engine.hold(Hold::Nothing);
    receive(client).await;
    assert_eq!(in_flight.used(), 0);
}

#[tokio::test]
async fn one_message_of_many_items_fits_into_the_smallest_bounds() {
    const MESSAGE: usize = 4_000;
    let mut running = running(|config| {
        config.limits.message_bytes_max = MESSAGE;
        config.limits.bytes_in_flight_max = MESSAGE;
        config.limits.bytes_in_flight_total_max = 2 * MESSAGE;
    });
    open(&mut running).await;
    let client = &mut running.client;
    let commit = removals(1, 500);
    let payload = commit.encode(Some(1)).payload.len();
    assert!((3_000..MESSAGE).contains(&payload), "{payload}");
    send(client, Some(1), commit).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
}

/// A session whose principal has no room for answers left: other sessions of it have all.
struct Crowded {
    running: Running,
    _another: crate::limits::budget::SessionSlot,
    _held: crate::limits::budget::Permit,
    before: usize,
}

impl Crowded {
    async fn new() -> Self {
        const ALL: usize = 64 << 20;
        let mut running = running(|config| {
            config.limits.outbox_bytes_total_max = ALL;
            config.limits.message_bytes_max = ALL / 2;
        });
        open(&mut running).await;
        let another = running.shared.slots.take("anonymous").unwrap();
        let held = another.budgets().outbox.take(ALL / 2).unwrap();
        let before = running.shared.budgets.outbox.used();
        Self {
            running,
            _another: another,
            _held: held,
            before,
        }
    }

    /// What is counted for the session.
    fn used(&self) -> usize {
        self.running.shared.budgets.outbox.used() - self.before
    }

    /// Whether it was closed as slow.
    fn is_closed(&self) -> bool {
        let metrics = encoded(&self.running.shared.registry);
        metrics.contains("storage_sessions_closed_total{reason=\"slow\"} 1")
    }
}

/// What a session may hold that is counted and not in its outbox: what was handed to its socket.
const IN_THE_SOCKET: usize = 192 << 10;

#[tokio::test]
async fn who_takes_no_small_answers_is_closed_at_little_where_there_is_no_room() {
    let mut crowded = Crowded::new().await;
    let (mut asked, mut most) = (0_u32, 0);
    while !crowded.is_closed() {
        assert!(
            asked < 100_000,
            "{most} bytes are held, and it is not closed"
        );
        for _ in 0..100 {
            let probe = ClientMessage::Probe {
                watch: None,
                token: u64::MAX,
            };
            let message = Message::Binary(probe.encode(Some(asked)).to_frame());
            // Closed meanwhile.
            if crowded.running.client.feed(message).await.is_err() {
                break;
            }
            asked += 1;
        }
        if crowded.running.client.flush().await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
        most = most.max(crowded.used());
    }
    assert!(most < (64 << 10) + IN_THE_SOCKET, "{most} bytes");
}

#[tokio::test]
async fn who_takes_its_small_answers_is_not_closed_where_there_is_no_room() {
    let mut crowded = Crowded::new().await;
    let client = &mut crowded.running.client;
    for round in 0..20_u32 {
        let ids = 1_000 * round..1_000 * (round + 1);
        for id in ids.clone() {
            let ping = ClientMessage::ScanClose { scan: 0 }.encode(Some(id));
            let message = Message::Binary(ping.to_frame());
            client.feed(message).await.unwrap();
        }
        client.flush().await.unwrap();
        for id in ids {
            expect_ping(client, id).await;
        }
    }
}

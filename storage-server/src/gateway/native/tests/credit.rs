//! The credit of watches.

use super::*;

#[tokio::test]
async fn a_watch_stops_without_credit_and_goes_on_with_it() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    send(client, Some(1), watch(1)).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Watching { .. })
    ));
    send(client, Some(2), commit(1, "a")).await;
    receive(client).await;
    let (id, ServerMessage::Changes { commits }) = receive(client).await else {
        panic!("no changes")
    };
    assert_eq!((id, commits.len()), (Some(1), 1));
    for number in 2..=4 {
        send(client, Some(2), commit(number, "b")).await;
        assert!(matches!(
            receive(client).await,
            (Some(2), ServerMessage::Committed { .. })
        ));
    }
    send(client, Some(1), ClientMessage::Credit { bytes: 10_000 }).await;
    let (_, ServerMessage::Changes { commits }) = receive(client).await else {
        panic!("no changes")
    };
    assert_eq!(commits.len(), 3, "what waited comes in one message");
    assert!(
        matches!(
            receive(client).await,
            (Some(1), ServerMessage::Progress { token: None, .. })
        ),
        "and a mark says that it has caught up"
    );
    send(
        client,
        Some(3),
        ClientMessage::Probe {
            watch: Some(1),
            token: 9,
        },
    )
    .await;
    let (id, ServerMessage::Progress { token, .. }) = receive(client).await else {
        panic!("no mark")
    };
    assert_eq!((id, token), (Some(1), Some(9)));
    send(client, Some(3), ClientMessage::Unwatch { watch: 1 }).await;
    assert_eq!(receive(client).await, (Some(3), ServerMessage::Done));
    send(client, Some(1), get("a")).await;
    assert!(
        matches!(
            receive(client).await,
            (Some(1), ServerMessage::Values { .. })
        ),
        "the id is free"
    );
}

#[tokio::test]
async fn a_mark_comes_without_credit_unless_events_are_before_it() {
    let mut running = running(|_| {});
    open(&mut running).await;
    let client = &mut running.client;
    send(client, Some(1), watch(0)).await;
    receive(client).await;
    send(
        client,
        Some(2),
        ClientMessage::Probe {
            watch: Some(1),
            token: 5,
        },
    )
    .await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Progress { token: Some(5), .. })
    ));
    send(client, Some(2), commit(1, "a")).await;
    receive(client).await;
    send(
        client,
        Some(3),
        ClientMessage::Probe {
            watch: Some(1),
            token: 6,
        },
    )
    .await;
    send(client, Some(4), get("a")).await;
    assert!(
        matches!(receive(client).await, (Some(4), _)),
        "no event and no mark before it"
    );
    send(client, Some(1), ClientMessage::Credit { bytes: 1 }).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Changes { .. })
    ));
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Progress { token: Some(6), .. })
    ));
}

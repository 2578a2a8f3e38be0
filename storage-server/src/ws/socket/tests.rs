//! A handler over an in-memory stream.

use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::*;
use crate::auth::Principal;
use crate::config::ServerConfig;
use crate::testing::{MemoryEngine, Running, start};

/// For what is to happen at all; nothing is measured.
const PATIENCE: Duration = Duration::from_secs(30);

fn serve<F>(
    change: impl FnOnce(&mut ServerConfig),
    options: SocketOptions,
    handler: impl FnOnce(WebSocket) -> F,
) -> Running
where
    F: Future<Output = Result<(), Close>> + Send + 'static,
{
    start(MemoryEngine::new(), change, |shared, peer| {
        Task::new(shared, peer, options, |socket| Box::pin(handler(socket)))
    })
}

async fn next(running: &mut Running) -> Frame {
    let next = tokio::time::timeout(PATIENCE, running.client.next()).await;
    next.expect("in time").expect("not the end").unwrap()
}

async fn closed(running: &mut Running) -> (u16, String) {
    loop {
        match next(running).await {
            Frame::Close(Some(CloseFrame { code, reason })) => {
                return (code.into(), reason.to_string());
            }
            Frame::Close(None) => return (1005, String::new()),
            _ => {}
        }
    }
}

/// Sends back what comes until the peer says `end`, or is gone.
async fn echo(socket: WebSocket) -> Result<(), Close> {
    while let Some(message) = socket.receive().await {
        if message == Message::text("end") {
            return Ok(());
        }
        if socket.send(message).await.is_err() {
            break;
        }
    }
    let _ = socket.send(Message::text("good-bye")).await;
    Ok(())
}

/// Sends a message and a probe, and then says which probes were answered.
async fn probing(socket: WebSocket) -> Result<(), Close> {
    let mut last = 0;
    for expected in 1..=2 {
        let sent = socket.send(Message::text("sent")).await;
        assert_eq!(sent, Ok(()));
        assert_eq!(socket.probe().await, Ok(expected));
        last = socket.answered(last).await;
        let told = socket.send(Message::text(last.to_string())).await;
        assert_eq!(told, Ok(()));
    }
    Ok(())
}

#[tokio::test]
async fn a_probe_is_answered_behind_what_was_sent_before_it_and_by_nothing_else() {
    let mut running = serve(|_| {}, SocketOptions::default(), probing);
    assert_eq!(next(&mut running).await, Frame::text("sent"));
    // Answers to what was not asked prove nothing.
    for made_up in [vec![], vec![0; 8], vec![0xff; 8], vec![1]] {
        running
            .client
            .send(Frame::Pong(made_up.into()))
            .await
            .unwrap();
    }
    let number = |n: u64| Frame::Ping(n.to_be_bytes().to_vec().into());
    assert_eq!(next(&mut running).await, number(1));
    // The library has answered it by now.
    assert_eq!(next(&mut running).await, Frame::text("1"));
    assert_eq!(next(&mut running).await, Frame::text("sent"));
    assert_eq!(next(&mut running).await, number(2));
    assert_eq!(next(&mut running).await, Frame::text("2"));
    assert_eq!(closed(&mut running).await, (1000, String::new()));
}

#[tokio::test]
async fn messages_go_both_ways_in_their_order_until_the_handler_ends() {
    let mut running = serve(|_| {}, SocketOptions::default(), echo);
    for n in 0..200 {
        running
            .client
            .send(Frame::text(n.to_string()))
            .await
            .unwrap();
    }
    running.client.send(Frame::binary(vec![7])).await.unwrap();
    running.client.send(Frame::text("end")).await.unwrap();
    for n in 0..200 {
        assert_eq!(next(&mut running).await, Frame::text(n.to_string()));
    }
    assert_eq!(next(&mut running).await, Frame::binary(vec![7]));
    assert_eq!(closed(&mut running).await, (1000, String::new()));
    running.session.await.unwrap();
}

#[tokio::test]
async fn a_handler_closes_with_a_code_of_its_own_behind_what_it_sent() {
    let mut running = serve(
        |_| {},
        SocketOptions::default(),
        async |socket| {
            socket.send(Message::text("no")).await.unwrap();
            Err(Close::because(4321, "not here"))
        },
    );
    assert_eq!(next(&mut running).await, Frame::text("no"));
    assert_eq!(closed(&mut running).await, (4321, "not here".to_owned()));
}

#[tokio::test]
async fn who_takes_nothing_makes_the_handler_wait() {
    const BOUND: usize = 256 << 10;
    let (told, mut heard) = mpsc::channel(1_000);
    let small = |config: &mut ServerConfig| config.limits.outbox_bytes_max = BOUND;
    let mut running = serve(small, SocketOptions::default(), async move |socket| {
        for n in 0..1_000 {
            let message = vec![0; 16 << 10];
            if socket.send(Message::Binary(message.into())).await.is_err() {
                break;
            }
            told.try_send(n).unwrap();
        }
        Ok(())
    });
    // What the socket has for it, and the bound.
    let mut sent = 0;
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(200), heard.recv()).await {
        sent += 1;
    }
    assert!((16..64).contains(&sent), "{sent}");
    assert!(running.shared.budgets.outbox.used() <= 2 * BOUND);
    for _ in 0..1_000 {
        assert_eq!(next(&mut running).await.len(), 16 << 10);
    }
    closed(&mut running).await;
    running.session.await.unwrap();
    assert_eq!(running.shared.budgets.outbox.used(), 0);
}

#[tokio::test]
async fn a_handler_that_takes_nothing_holds_its_peer_back() {
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let mut running = serve(
        |_| {},
        SocketOptions::default(),
        async |socket| {
            let _ = released.await;
            let mut bytes = 0;
            while let Some(Message::Binary(message)) = socket.receive().await {
                bytes += message.len();
            }
            socket.send(Message::text(bytes.to_string())).await.unwrap();
            Ok(())
        },
    );
    let mut sent = 0;
    loop {
        let message = Frame::binary(vec![0; 4 << 10]);
        match tokio::time::timeout(Duration::from_millis(200), running.client.send(message)).await {
            Ok(done) => done.unwrap(),
            Err(_) => break,
        }
        sent += 1;
        assert!(sent < 1_000, "the peer is held back");
    }
    assert!(running.shared.budgets.in_flight.used() <= INBOX_BYTES_MAX + (8 << 10));
    release.send(()).unwrap();
    running.client.flush().await.unwrap();
    running
        .client
        .send(Frame::text("end of them"))
        .await
        .unwrap();
    assert_eq!(
        next(&mut running).await,
        // The one that did not go at once went after all.
        Frame::text(((sent + 1) * (4 << 10)).to_string())
    );
}

#[tokio::test]
async fn who_does_not_log_in_is_closed_and_who_does_counts_as_who_it_is() {
    let options = SocketOptions {
        login: true,
        ..SocketOptions::default()
    };
    let quick = |config: &mut ServerConfig| {
        config.timeouts.handshake = Duration::from_millis(100);
        config.limits.sessions_per_principal_max = 1;
    };
    let mut silent = serve(quick, options.clone(), echo);
    let (code, reason) = closed(&mut silent).await;
    assert_eq!((code, reason.as_str()), (1008, "no login in time"));

    let mut running = serve(quick, options, async |socket| {
        while let Some(Message::Text(name)) = socket.receive().await {
            let identity = Identity::vouched(Principal::user(&name).unwrap());
            let answer = match socket.log_in(identity) {
                Ok(()) => socket.identity().to_string(),
                Err(error) => error.to_string(),
            };
            socket.send(Message::text(answer)).await.unwrap();
        }
        Ok(())
    });
    let slots = running.shared.slots.clone();
    running.client.send(Frame::text("ann")).await.unwrap();
    assert_eq!(next(&mut running).await, Frame::text("user:ann"));
    // The place of nobody in particular is free again, and hers is not.
    drop(slots.take("anonymous").unwrap());
    assert!(slots.take("user:ann").is_err());
    // Another name, whose place is taken.
    let bob = slots.take("user:bob").unwrap();
    running.client.send(Frame::text("bob")).await.unwrap();
    let refused = next(&mut running).await.to_string();
    assert!(refused.contains("sessions_per_principal_max"), "{refused}");
    assert!(slots.take("user:ann").is_err(), "she stays");
    drop(bob);
    running.client.close(None).await.unwrap();
    running.session.await.unwrap();
    slots.take("user:ann").unwrap();
}

#[tokio::test]
async fn at_a_shutdown_the_handler_says_what_it_has_to_say() {
    let mut running = serve(|_| {}, SocketOptions::default(), echo);
    running.client.send(Frame::text("a")).await.unwrap();
    assert_eq!(next(&mut running).await, Frame::text("a"));
    running.shared.drain.cancel();
    assert_eq!(next(&mut running).await, Frame::text("good-bye"));
    assert_eq!(closed(&mut running).await.0, 1001);
}

#[tokio::test]
async fn what_a_peer_asked_for_before_it_closed_is_answered() {
    let mut running = serve(|_| {}, SocketOptions::default(), echo);
    running.client.send(Frame::text("last")).await.unwrap();
    running.client.close(None).await.unwrap();
    assert_eq!(next(&mut running).await, Frame::text("last"));
    assert_eq!(next(&mut running).await, Frame::text("good-bye"));
    closed(&mut running).await;
    running.session.await.unwrap();
}

#[tokio::test]
async fn a_handler_whose_peer_is_gone_is_told_and_does_not_stay() {
    let (told, heard) = tokio::sync::oneshot::channel();
    let short = |config: &mut ServerConfig| config.timeouts.drain = Duration::from_millis(50);
    let running = serve(short, SocketOptions::default(), async move |socket| {
        assert_eq!(socket.receive().await, None);
        let sent = socket.send(Message::text("?")).await;
        told.send(sent).unwrap();
        std::future::pending().await
    });
    drop(running.client);
    assert_eq!(heard.await.unwrap(), Err(SendError::Disconnected));
    tokio::time::timeout(PATIENCE, running.session)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn pings_of_a_protocol_come_though_the_peer_speaks() {
    let options = SocketOptions {
        ping: Some(Ping::Every(Duration::from_millis(50))),
        ..SocketOptions::default()
    };
    let mut running = serve(|_| {}, options, echo);
    let mut pings = 0;
    for n in 0.. {
        running
            .client
            .send(Frame::text(n.to_string()))
            .await
            .unwrap();
        while let Frame::Ping(_) = next(&mut running).await {
            pings += 1;
        }
        if pings == 3 {
            break;
        }
        assert!(n < 100_000, "no pings");
    }
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_either_way() {
    let options = SocketOptions {
        message_bytes_max: Some(100),
        ..SocketOptions::default()
    };
    let small = |config: &mut ServerConfig| config.limits.message_bytes_max = 1_000;
    let mut running = serve(small, options, async |socket| {
        let sent = socket.send(Message::Binary(vec![0; 1_001].into())).await;
        let max = 1_000;
        assert_eq!(sent, Err(SendError::TooLong { bytes: 1_001, max }));
        socket.send(Message::text("go on")).await.unwrap();
        while socket.receive().await.is_some() {}
        Ok(())
    });
    assert_eq!(next(&mut running).await, Frame::text("go on"));
    running
        .client
        .send(Frame::binary(vec![0; 101]))
        .await
        .unwrap();
    let (code, reason) = closed(&mut running).await;
    assert_eq!(code, 1009, "{reason}");
}

#[tokio::test]
async fn what_a_handler_sent_last_comes_whole_to_a_peer_that_is_slow() {
    const LAST: usize = 4 << 20;
    let mut running = serve(
        |_| {},
        SocketOptions::default(),
        async |socket| {
            let message = Message::Binary(vec![7; LAST].into());
            socket.send(message).await.unwrap();
            Ok(())
        },
    );
    // Longer than a close may take.
    tokio::time::sleep(crate::ws::driver::CLOSE_PATIENCE + Duration::from_millis(500)).await;
    assert_eq!(next(&mut running).await.len(), LAST);
    assert_eq!(closed(&mut running).await.0, 1000);
}

#[tokio::test]
async fn a_message_without_room_closes_its_own_connection() {
    let small = |config: &mut ServerConfig| {
        config.limits.message_bytes_max = 100_000;
        config.limits.bytes_in_flight_total_max = 200_000;
    };
    let mut running = serve(small, SocketOptions::default(), async |socket| {
        // It takes nothing.
        std::future::pending::<()>().await;
        drop(socket);
        Ok(())
    });
    // The others of the principal have its half.
    let others = running.shared.slots.take("anonymous").unwrap();
    let _all = others.budgets().in_flight.take(99_000).unwrap();
    running
        .client
        .send(Frame::binary(vec![0; 2_000]))
        .await
        .unwrap();
    let (code, reason) = closed(&mut running).await;
    assert_eq!(code, 1013, "{reason}");
    assert!(reason.contains("bytes_in_flight_total_max"), "{reason}");
}

#[tokio::test]
async fn behind_the_end_of_a_drain_nothing_comes_any_more() {
    let (told, heard) = tokio::sync::oneshot::channel();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let mut running = serve(
        |_| {},
        SocketOptions::default(),
        async move |socket| {
            let first = socket.receive().await.unwrap();
            socket.send(first).await.unwrap();
            assert_eq!(socket.receive().await, None);
            told.send(()).unwrap();
            let _ = released.await;
            assert_eq!(socket.receive().await, None);
            socket.send(Message::text("done")).await.unwrap();
            Ok(())
        },
    );
    running.client.send(Frame::text("first")).await.unwrap();
    assert_eq!(next(&mut running).await, Frame::text("first"));
    running.shared.drain.cancel();
    heard.await.unwrap();
    for _ in 0..200 {
        running.client.send(Frame::text("more")).await.unwrap();
    }
    release.send(()).unwrap();
    assert_eq!(next(&mut running).await, Frame::text("done"));
    assert_eq!(closed(&mut running).await.0, 1001);
}

#[tokio::test]
async fn what_another_task_sends_and_takes_goes_on_at_once() {
    let mut running = serve(
        |_| {},
        SocketOptions::default(),
        async |socket| {
            let socket = Arc::new(socket);
            let beside = socket.clone();
            let other = tokio::spawn(async move {
                // When the connection rests.
                tokio::time::sleep(Duration::from_millis(200)).await;
                beside.send(Message::text("from beside")).await.unwrap();
                beside.receive().await
            });
            assert_eq!(other.await.unwrap(), Some(Message::text("to beside")));
            Ok(())
        },
    );
    let told = tokio::time::timeout(Duration::from_secs(5), next(&mut running)).await;
    assert_eq!(
        told.expect("before the next ping"),
        Frame::text("from beside")
    );
    running.client.send(Frame::text("to beside")).await.unwrap();
    assert_eq!(closed(&mut running).await.0, 1000);
}

#[tokio::test]
async fn a_login_needs_no_second_place() {
    let options = SocketOptions {
        login: true,
        ..SocketOptions::default()
    };
    let full = |config: &mut ServerConfig| {
        config.limits.sessions_max = 1;
        config.limits.sessions_per_principal_max = 1;
    };
    let mut running = serve(full, options, async |socket| {
        for _ in 0..2 {
            socket.receive().await.unwrap();
            let identity = Identity::vouched(Principal::user("ann").unwrap());
            let answer = socket.log_in(identity).map_err(|error| error.to_string());
            let answer = Message::text(format!("{answer:?}"));
            socket.send(answer).await.unwrap();
        }
        Ok(())
    });
    let slots = running.shared.slots.clone();
    for _ in 0..2 {
        running.client.send(Frame::text("I am ann")).await.unwrap();
        assert_eq!(next(&mut running).await, Frame::text("Ok(())"));
        assert!(slots.take("user:bob").is_err(), "it has a place still");
    }
    assert_eq!(closed(&mut running).await.0, 1000);
    running.session.await.unwrap();
    slots.take("user:bob").unwrap();
}

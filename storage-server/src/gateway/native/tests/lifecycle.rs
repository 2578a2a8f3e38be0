//! From Hello to the close: resuming, fencing, ending, shutdown.

use super::*;
use crate::auth::{Identity, Principal, Proof};
use crate::testing::{server, start_in};

#[tokio::test]
async fn no_hello_in_time_closes() {
    let mut running = running(|config| config.timeouts.handshake = Duration::from_millis(100));
    assert_eq!(closed(&mut running.client).await.0, 4000);
}

#[tokio::test]
async fn a_silent_peer_is_pinged_and_then_closed() {
    let mut running = running(|config| {
        config.timeouts.heartbeat = Duration::from_millis(50);
        config.timeouts.silence = Duration::from_millis(150);
    });
    open(&mut running).await;
    // The client's library answers pings only when it is polled, so its stream is read raw from here.
    let mut raw = Vec::new();
    let stream = running.client.get_mut();
    tokio::io::AsyncReadExt::read_to_end(stream, &mut raw)
        .await
        .unwrap();
    assert_eq!(raw[..2], [0x89, 0], "a ping");
    assert_eq!(raw[2], 0x88, "a close frame");
    assert_eq!(u16::from_be_bytes([raw[4], raw[5]]), 4001);
}

#[tokio::test]
async fn shutdown_lets_commits_finish() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    send(client, Some(1), commit(1, "a")).await;
    send(client, Some(2), get("a")).await;
    receive(client).await;
    running.shared.drain.cancel();
    assert!(matches!(
        receive(client).await,
        (None, ServerMessage::GoAway { .. })
    ));
    send(client, Some(2), get("a")).await;
    let (_, ServerMessage::Error(error)) = receive(client).await else {
        panic!("no error")
    };
    assert!(matches!(error, StorageError::Closed { .. }));
    running.engine.hold(Hold::Nothing);
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
    assert_eq!(closed(client).await.0, 1001);
}

#[tokio::test]
async fn a_session_is_resumed_beside_the_heartbeat_and_fences_its_old_socket() {
    let mut old = running(|_| {});
    open(&mut old).await;
    let engine = old.engine.clone();
    engine.hold(Hold::Resumes);
    let mut new = beside(&engine, |config| {
        config.timeouts.heartbeat = Duration::from_millis(50);
    });
    say_resume(&mut new.client, 1, 0, &[]).await;
    let first = new.client.next().await.unwrap().unwrap();
    assert!(
        matches!(first, Message::Ping(_)),
        "{first:?} while it waits"
    );
    engine.hold(Hold::Nothing);
    let welcome = welcomed(&mut new.client).await;
    assert_eq!(welcome.session, SessionId([1; 16]));
    let (code, reason) = closed(&mut old.client).await;
    assert!(code == 4003 && reason.contains("newer"), "{reason}");
    send(&mut new.client, Some(1), commit(1, "a")).await;
    assert!(matches!(
        receive(&mut new.client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
    let mut late = beside(&engine, |_| {});
    say_resume(&mut late.client, 1, 0, &[]).await;
    let (code, reason) = closed(&mut late.client).await;
    assert!(code == 4003 && reason.contains("incarnation 1"), "{reason}");
}

/// A user that there is not (any more), in a server that knows no users.
fn removed_user() -> Identity {
    let proof = Proof::Password {
        user: "eve".to_owned(),
        password_set: 1,
    };
    Identity::new(Principal::user("eve").unwrap(), proof)
}

#[tokio::test]
async fn who_is_not_let_in_any_more_is_told_that_and_not_what_follows_from_it() {
    let engine = MemoryEngine::new();
    let connected = |identity: Identity| {
        let shared = server(&engine, |_| {});
        start_in(shared, engine.clone(), identity, |shared, peer| {
            Native::new(shared, peer, Keyspace::new(KEYSPACE).unwrap())
        })
    };
    let mut old = connected(removed_user());
    send(&mut old.client, None, hello(VERSION)).await;
    welcomed(&mut old.client).await;
    // Its session is fenced, and nobody has looked yet for who is to be put out.
    let mut new = connected(removed_user());
    say_resume(&mut new.client, 1, 0, &[]).await;
    welcomed(&mut new.client).await;
    let (code, reason) = closed(&mut old.client).await;
    assert_eq!((code, reason.as_str()), (1008, "user disabled or removed"));
}

#[tokio::test]
async fn nothing_is_taken_between_hello_and_welcome() {
    let mut old = running(|_| {});
    open(&mut old).await;
    let engine = old.engine.clone();
    engine.hold(Hold::Resumes);
    for (message, id, why) in [
        (get("a"), Some(1), "between Hello and Welcome"),
        (hello(VERSION), None, "Hello was said before"),
    ] {
        let mut new = beside(&engine, |_| {});
        say_resume(&mut new.client, 1, 0, &[]).await;
        send(&mut new.client, id, message).await;
        let (code, reason) = closed(&mut new.client).await;
        assert!(code == 1002 && reason.contains(why), "{code}: {reason}");
    }
    let mut new = beside(&engine, |config| {
        config.timeouts.handshake = Duration::from_millis(100);
    });
    say_resume(&mut new.client, 1, 0, &[]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    engine.hold(Hold::Nothing);
    let welcome = welcomed(&mut new.client).await;
    assert_eq!(welcome.session, SessionId([1; 16]), "however long it takes");
    engine.hold(Hold::Resumes);
    let mut new = beside(&engine, |config| {
        config.timeouts.heartbeat = Duration::from_millis(50);
        config.timeouts.silence = Duration::from_millis(150);
    });
    say_resume(&mut new.client, 2, 0, &[]).await;
    // The library answers pings only when it is polled.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(closed(&mut new.client).await.0, 4001, "but not in silence");
}

#[tokio::test]
async fn a_close_with_1000_before_welcome_ends_the_session_too() {
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    let mut old = running(|_| {});
    open(&mut old).await;
    let engine = old.engine.clone();
    engine.hold(Hold::Resumes);
    let mut new = beside(&engine, |_| {});
    say_resume(&mut new.client, 1, 0, &[]).await;
    let frame = CloseFrame {
        code: 1000.into(),
        reason: "".into(),
    };
    new.client.close(Some(frame)).await.unwrap();
    while let Some(Ok(_)) = new.client.next().await {}
    engine.hold(Hold::Nothing);
    new.session.await.unwrap();
    let mut again = beside(&engine, |_| {});
    say_resume(&mut again.client, 2, 0, &[]).await;
    assert_ne!(
        welcomed(&mut again.client).await.session,
        SessionId([1; 16])
    );
}

#[tokio::test]
async fn a_close_with_1000_ends_the_session_and_a_lost_socket_does_not() {
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    for (code, stays) in [(1000, false), (1001, true)] {
        let mut running = running(|_| {});
        open(&mut running).await;
        let frame = CloseFrame {
            code: code.into(),
            reason: "".into(),
        };
        running.client.close(Some(frame)).await.unwrap();
        running.session.await.unwrap();
        let mut again = beside(&running.engine, |_| {});
        say_resume(&mut again.client, 1, 0, &[]).await;
        let welcome = welcomed(&mut again.client).await;
        assert_eq!(welcome.session == SessionId([1; 16]), stays, "{code}");
    }
}

#[tokio::test]
async fn what_was_asked_before_a_close_is_answered_before_it_is() {
    let mut running = running(|_| {});
    open(&mut running).await;
    running.engine.hold(Hold::Commits);
    let client = &mut running.client;
    send(client, Some(1), watch(1 << 20)).await;
    send(client, Some(2), commit(1, "a")).await;
    // It waits for number 2, which never comes.
    send(client, Some(3), commit(3, "b")).await;
    client.close(None).await.unwrap();
    running.engine.hold(Hold::Nothing);
    let mut answered = Vec::new();
    let code = loop {
        match client.next().await.unwrap().unwrap() {
            Message::Binary(frame) => answered.push(Packet::from_frame(frame).unwrap().id),
            Message::Close(Some(frame)) => break u16::from(frame.code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((answered, code), (vec![Some(1), Some(2)], 1000));
    running.session.await.unwrap();
}

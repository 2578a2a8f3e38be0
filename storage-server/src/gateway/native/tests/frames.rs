//! What is no message, or no whole one yet.

use super::*;

#[tokio::test]
async fn what_breaks_the_protocol_is_named() {
    let opened = |message: ClientMessage, id: Option<u32>| async move {
        let mut running = running(|_| {});
        open(&mut running).await;
        running.engine.hold(Hold::Commits);
        send(&mut running.client, Some(1), commit(1, "a")).await;
        send(&mut running.client, id, message).await;
        closed(&mut running.client).await
    };
    let (code, reason) = opened(get("a"), Some(1)).await;
    assert_eq!(code, 1002);
    assert!(reason.contains("id 1 is in flight"), "{reason}");
    let (_, reason) = opened(commit(1, "b"), Some(2)).await;
    assert!(reason.contains("commit number 1 came before"), "{reason}");
    let (_, reason) = opened(hello(VERSION), None).await;
    assert!(reason.contains("Hello was said"), "{reason}");

    let first = |message: Message| async move {
        let mut running = running(|_| {});
        running.client.send(message).await.unwrap();
        closed(&mut running.client).await
    };
    let (_, reason) = first(Message::Binary(get("a").encode(Some(1)).to_frame())).await;
    assert!(reason.contains("must be Hello"), "{reason}");
    let (_, reason) = first(Message::Binary(hello(9).encode(None).to_frame())).await;
    assert!(
        reason.contains("version 9") && reason.contains("speaks version 1"),
        "{reason}"
    );
    assert_eq!(first(Message::text("hi")).await.0, 1003);
    assert_eq!(
        first(Message::Binary(Bytes::from(vec![0; 300_000])))
            .await
            .0,
        1009
    );
    let (_, reason) = first(Message::Binary(Bytes::from_static(b"nonsense"))).await;
    assert!(reason.contains("without separator"), "{reason}");
}

#[tokio::test]
async fn parts_beyond_the_bound_are_refused_and_the_socket_goes_on() {
    let mut running = running(|config| config.limits.partial_messages_bytes_max = 100_000);
    open(&mut running).await;
    let client = &mut running.client;
    let batch = Batch::new().put("big", vec![7; 300_000]);
    let message = ClientMessage::Commit {
        number: 1,
        options: CommitOptions::default(),
        batch,
    };
    let mut outbox = storage_protocol::native::Outbox::new();
    outbox.push(
        storage_protocol::native::Class::Answer,
        message.encode(Some(1)),
    );
    let mut parts = 0;
    while let Some(frame) = outbox.pop() {
        parts += 1;
        client.send(Message::Binary(frame)).await.unwrap();
    }
    assert!(parts > 3);
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("no error")
    };
    assert_eq!(id, Some(1));
    assert!(
        error.to_string().contains("partial_messages_bytes_max"),
        "{error}"
    );
    send(client, Some(1), commit(2, "small")).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
    // Nothing is held of the parts that came behind the refusal.
    assert_eq!(running.shared.budgets.partial.used(), 0);
    send(client, Some(1), get("big")).await;
    let (_, ServerMessage::Values { entries, .. }) = receive(client).await else {
        panic!("no values")
    };
    assert_eq!(entries, [None]);
    send(client, Some(1), commit(1, "again")).await;
    let (_, reason) = closed(client).await;
    assert!(
        reason.contains("number 1 came before"),
        "the number is spent: {reason}"
    );
}

/// A part with these bytes, whatever they are.
fn part(inner: u8, id: Option<u32>, bytes: &[u8]) -> Message {
    let payload = [&[inner, 100, 0][..], bytes].concat().into();
    let packet = Packet {
        kind: storage_protocol::native::kind::PART,
        id,
        payload,
    };
    Message::Binary(packet.to_frame())
}

#[tokio::test]
async fn a_message_in_parts_is_judged_by_its_first() {
    use storage_protocol::native::kind;
    let begun = part(kind::GET, Some(5), b"x");
    let whole = |message: ClientMessage, id| Message::Binary(message.encode(Some(id)).to_frame());
    let number = |number: u8| [number, 0, 0];
    for (why, messages) in [
        ("unknown frame type 2", vec![part(2, Some(1), b"x")]),
        (
            "unknown frame type 19",
            vec![part(kind::VALUES, Some(1), b"x")],
        ),
        ("unknown frame type 35", vec![part(35, Some(1), b"x")]),
        ("unknown frame type 200", vec![part(200, Some(1), b"x")]),
        ("an id is missing", vec![part(kind::GET, None, b"x")]),
        ("do not come in parts", vec![part(kind::HELLO, None, b"x")]),
        ("id 5 is in flight", vec![begun.clone(), whole(get("a"), 5)]),
        (
            "id 5 is in flight",
            vec![begun, part(kind::COMMIT, Some(5), &number(1))],
        ),
        (
            "does not hold its number",
            vec![part(kind::COMMIT, Some(1), &[0x80])],
        ),
        (
            "commit number 1 came before",
            vec![
                part(kind::COMMIT, Some(1), &number(1)),
                whole(commit(1, "a"), 2),
            ],
        ),
        (
            "commit number 0",
            vec![part(kind::COMMIT, Some(1), &number(0))],
        ),
    ] {
        let mut running = running(|_| {});
        open(&mut running).await;
        for message in messages {
            running.client.send(message).await.unwrap();
        }
        let (code, reason) = closed(&mut running.client).await;
        assert_eq!(code, 1002, "{why}");
        assert!(reason.contains(why), "{reason:?} does not say {why:?}");
    }
}

#[tokio::test]
async fn a_late_part_of_a_refused_message_is_nobody_elses() {
    use storage_protocol::native::{Class, Outbox};
    let mut running = running(|config| {
        config.limits.partial_messages_bytes_max = 200_000;
        config.limits.message_bytes_max = 100_000;
    });
    open(&mut running).await;
    let partial = running.shared.budgets.partial.clone();
    let client = &mut running.client;
    let frames = |message: ClientMessage| {
        let mut outbox = Outbox::new();
        outbox.push(Class::Answer, message.encode(Some(1)));
        std::iter::from_fn(|| outbox.pop()).collect::<Vec<_>>()
    };
    let batch = Batch::new().put("late", vec![7; 80_000]);
    let commit_parts = frames(ClientMessage::Commit {
        number: 1,
        options: CommitOptions::default(),
        batch,
    });
    let keys = vec![vec![7; 80_000].into()];
    let get_parts = frames(ClientMessage::Get { keys });
    let [first, late] = &commit_parts[..] else {
        panic!("{} parts", commit_parts.len())
    };
    let say = async |client: &mut Client, frame: &Bytes| {
        client.send(Message::Binary(frame.clone())).await.unwrap();
    };
    // There is no room for the first part of the commit.
    let mut others = partial.count();
    others.resize(200_000);
    say(client, first).await;
    let (id, ServerMessage::Error(error)) = receive(client).await else {
        panic!("not refused")
    };
    assert_eq!(id, Some(1));
    assert!(error.to_string().contains("partial_messages"), "{error}");
    // The id is free. While the get under it is on its way, the rest of the commit comes, and there is no room again.
    others.resize(0);
    say(client, &get_parts[0]).await;
    ping(client, 2).await;
    expect_ping(client, 2).await;
    others.resize(200_000);
    say(client, late).await;
    ping(client, 2).await;
    expect_ping(client, 2).await;
    others.resize(0);
    say(client, &get_parts[1]).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Values { .. })
    ));
    // Number 1 was skipped once.
    send(client, Some(1), commit(2, "a")).await;
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
}

#[tokio::test]
async fn an_unfinished_frame_is_counted_and_ends() {
    let mut running = running(|config| {
        config.timeouts.partial_message = Duration::from_millis(200);
    });
    open(&mut running).await;
    let stream = running.client.get_mut();
    // A masked binary frame of 200,000 bytes, of which 100,000 come.
    let mut bytes = vec![0x82, 0xff, 0, 0, 0, 0, 0, 3, 13, 64, 0, 0, 0, 0];
    bytes.resize(100_000, 7);
    tokio::io::AsyncWriteExt::write_all(stream, &bytes)
        .await
        .unwrap();
    let partial = &running.shared.budgets.partial;
    while partial.used() < 90_000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (code, reason) = closed(&mut running.client).await;
    assert_eq!(code, 4001);
    assert!(reason.contains("stands unfinished at"), "{reason}");
    drop(running.client);
    running.session.await.unwrap();
    assert_eq!(running.shared.budgets.partial.used(), 0);
}

/// A message that takes longer than the silence, and a part of another that takes longer than any may rest.
#[tokio::test]
async fn a_slow_link_is_no_silence() {
    let mut running = running(|config| {
        config.timeouts.heartbeat = Duration::from_millis(100);
        config.timeouts.silence = Duration::from_millis(400);
        config.timeouts.partial_message = Duration::from_millis(300);
    });
    open(&mut running).await;
    let client = &mut running.client;
    let packet = large(1, "slow").encode(Some(1));
    let mut outbox = storage_protocol::native::Outbox::new();
    outbox.push(storage_protocol::native::Class::Answer, packet);
    while let Some(frame) = outbox.pop() {
        // The WebSocket frame by hand, so that it can come in pieces: masked with zeros.
        let length = u16::try_from(frame.len()).ok();
        let mut bytes = match length {
            Some(length) => {
                let [high, low] = length.to_be_bytes();
                vec![0x82, 0xfe, high, low, 0, 0, 0, 0]
            }
            None => {
                let length = (frame.len() as u64).to_be_bytes();
                [&[0x82, 0xff][..], &length, &[0; 4]].concat()
            }
        };
        bytes.extend_from_slice(&frame);
        for piece in bytes.chunks(bytes.len().div_ceil(10)) {
            let stream = client.get_mut();
            tokio::io::AsyncWriteExt::write_all(stream, piece)
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }
    assert!(matches!(
        receive(client).await,
        (Some(1), ServerMessage::Committed { .. })
    ));
}

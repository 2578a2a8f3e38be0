//! What is left of much that waits for one who reads nothing, when it is not for that one any more.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use storage_client::RemoteStorage;
use storage_protocol::Batch;
use storage_protocol::rooms::{Draft, RoomKey, Rooms};
use storage_testkit::entrance::mint_token;

use crate::client::{House, Socket, node};

/// 16 MB: more than sockets keep for one who reads nothing.
const MESSAGES: usize = 2_000;
const TEXT_BYTES: usize = 8 << 10;

/// Fills the room of n-1; the id of the first message.
async fn filled(house: &House) -> String {
    let rooms: Rooms<RemoteStorage> = Rooms::new(house.native().await);
    let key = RoomKey::new("NODE", "n-1").unwrap();
    let room = rooms.open_or_create(&key, "").await.unwrap().0;
    let first = Draft::new("boss", "first").unwrap();
    let first = rooms.post(&room, &first).await.unwrap();
    let text = "y".repeat(TEXT_BYTES);
    for _ in 0..MESSAGES / 100 {
        let drafts: Vec<_> = (0..100)
            .map(|_| Draft::new("boss", text.as_str()).unwrap())
            .collect();
        let posts = drafts.iter().map(|draft| rooms.post(&room, draft));
        for posted in join_all(posts).await {
            posted.unwrap();
        }
    }
    first.id.to_string()
}

/// Lets a socket ask for all behind a message of the room of n-1, without reading any.
async fn ask(socket: &mut Socket, first: &str) {
    let after = json!({ "Uuid": first });
    socket
        .say(json!({ "@type": "JOIN", "Room": node("n-1"), "Message": after }))
        .await;
    socket.expect("ROOM_UPDATE").await;
}

#[tokio::test]
async fn who_loses_the_right_is_sent_no_more_of_a_backlog() {
    let house = House::new().await;
    let mut reader = house.chat("ro").await;
    // Tells when the server has taken notice.
    let mut events = house.events("ro").await;
    let first = filled(&house).await;
    ask(&mut reader, &first).await;
    house.commit(Batch::new().put("roles/readers", "{}")).await;
    // The posts were events, too.
    while events.frame().await["@type"] != "idm" {}
    let mut told = 0;
    let refused = loop {
        let frame = reader.frame().await;
        match frame.get("@type") {
            None => told += 1,
            Some(Value::String(kind)) if kind == "error" => break frame,
            Some(_) => {}
        }
        assert!(0 < told && told < MESSAGES, "{told} of it");
    };
    assert!(refused["error"].as_str().unwrap().contains("room is of a"));
    // Nor anything behind that: a task of hers is, on the other socket.
    house.commit(Batch::new().put("roles/other", "{}")).await;
    loop {
        let Ok(message) = tokio::time::timeout(Duration::from_millis(300), reader.frame()).await
        else {
            break;
        };
        assert!(message.get("@type").is_some(), "{message}");
    }
}

#[tokio::test]
async fn a_token_that_ends_ends_a_backlog() {
    let house = House::new().await;
    let first = filled(&house).await;
    // Minted last, so that it needs to be good no longer than for what follows here.
    let (_, token) = mint_token(&house.as_user("ro"), json!({ "ttl": "3s" })).await;
    let mut reader = house.open("/chat").await.unwrap();
    let mut witness = house.open("/chat").await.unwrap();
    for socket in [&mut reader, &mut witness] {
        socket.subscribe(&token).await;
    }
    ask(&mut reader, &first).await;
    // Ends when the token does, which both have shown.
    let ended = witness.closed().await;
    assert_eq!(ended, (1008, "token expired".to_owned()));
    let mut told = 0;
    loop {
        match reader.message().await {
            tokio_tungstenite::tungstenite::Message::Text(_) => told += 1,
            tokio_tungstenite::tungstenite::Message::Close(Some(close)) => {
                let (code, reason) = (u16::from(close.code), close.reason.as_str());
                assert_eq!((code, reason), (1008, "token expired"));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(0 < told && told < MESSAGES, "{told} of it");
}

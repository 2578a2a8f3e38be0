//! Rooms that are not for everybody.

use std::time::Duration;

use serde_json::json;
use storage_client::RemoteStorage;
use storage_protocol::rooms::{DeletedBy, HistoryWish, RoomKey, Rooms};
use storage_protocol::{Batch, StorageError};
use storage_testkit::entrance::mint_token;

use crate::client::{House, node};

#[tokio::test]
async fn item_17_who_has_not_joined_or_may_only_read_posts_nothing() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    let mut bob = house.chat("bob").await;
    bob.post(&room, "not joined").await;
    assert!(bob.error().await.contains("JOIN the room first"));
    let mut reader = house.chat("ro").await;
    reader.join(node("n-1")).await;
    reader.post(&room, "read-only").await;
    assert!(reader.error().await.contains("not write"));
    ana.post(&room, "hello").await;
    assert_eq!(ana.text().await, "hello");
    assert_eq!(reader.text().await, "hello");
}

#[tokio::test]
async fn item_25_a_room_of_a_node_is_for_those_who_may_read_it() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    ana.post(&room, "secret").await;
    assert_eq!(ana.text().await, "secret");
    let mut eve = house.chat("eve").await;
    for op in ["JOIN", "HISTORY"] {
        for said in [node("n-1"), json!({ "Uuid": room })] {
            eve.say(json!({ "@type": op, "Room": said })).await;
            let frame = eve.frame().await;
            assert_eq!(frame["@type"], "error", "{frame}");
            assert!(!frame.to_string().contains("secret"), "{frame}");
        }
    }
    // Nor of one outside of all workspaces, of one that nobody knows, and of another workspace.
    for said in [
        node("n-2"),
        node("n-404"),
        json!({ "Type": "WORKSPACE", "RoomTypeObject": "ws-7" }),
    ] {
        eve.say(json!({ "@type": "JOIN", "Room": said })).await;
        assert!(eve.error().await.contains("room is of a"), "{said}");
    }
    let mut reader = house.chat("ro").await;
    reader
        .join(json!({ "Type": "WORKSPACE", "RoomTypeObject": "ws-7" }))
        .await;
}

#[tokio::test]
async fn who_loses_the_right_is_out_before_the_next_message() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    let mut reader = house.chat("ro").await;
    // Her own socket for events tells when the server has taken notice of what she is given. What she loses is not waited for.
    let mut events = house.events("ro").await;
    // Rights and messages come by two feeds, whose order is that of the commits all the same.
    for round in 0..10 {
        let readers = r#"{"workspaces":{"ws-7":"r"}}"#;
        house
            .commit(Batch::new().put("roles/readers", readers))
            .await;
        assert_eq!(events.frame().await["@type"], "idm");
        reader.join(node("n-1")).await;
        ana.sees(&["ana", "ro"]).await;
        house.commit(Batch::new().put("roles/readers", "{}")).await;
        let secret = format!("not for ro {round}");
        ana.post(&room, &secret).await;
        let frame = reader.frame_but_updates().await;
        assert_eq!(frame["@type"], "error", "{frame}");
        assert_eq!(events.frame().await["@type"], "idm");
        assert_eq!(ana.text().await, secret);
        // So that the next one who joins is not sent it by right.
        let rooms: Rooms<RemoteStorage> = Rooms::new(house.native().await);
        let id = room.parse().unwrap();
        let page = rooms.history(id, HistoryWish::default()).await.unwrap();
        for message in page.messages {
            let deleted = rooms.delete(id, message.id, DeletedBy::Anyone).await;
            deleted.unwrap();
        }
        assert_eq!(ana.frame_but_updates().await["@type"], "DELETE_MSG");
    }
    reader.has_nothing(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn users_need_no_rule_for_rooms_and_have_none() {
    let rules = r#"
[[rule]]
principal = "cert:boss"
keyspace = "*"
allow = ["read", "write", "watch", "admin"]

[[rule]]
principal = "cert:boss"
keyspace = "system"
allow = ["admin"]
"#;
    let house = House::configured("", rules).await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    ana.post(&room, "hello").await;
    assert_eq!(ana.text().await, "hello");
    let mut eve = house.chat("eve").await;
    eve.say(json!({ "@type": "HISTORY", "Room": node("n-1") }))
        .await;
    assert!(eve.error().await.contains("room is of a"));
    // By the native protocol there is nothing, for nobody.
    for user in ["eve", "two"] {
        if let Ok(storage) = RemoteStorage::connect(house.as_user(user)).await {
            let found = Rooms::new(storage).get(room.parse().unwrap()).await;
            assert!(
                matches!(found, Err(StorageError::AccessDenied { .. })),
                "{found:?}"
            );
        }
    }
    // A token is good for what it was minted for.
    let grants = json!([{ "keyspace": "workspace", "prefix": "rooms/", "allow": ["read"] }]);
    let wish = json!({ "ttl": "1h", "grants": grants });
    let (_, token) = mint_token(&house.as_user("two"), wish).await;
    let mut two = house.open("/chat").await.unwrap();
    two.subscribe(&token).await;
    two.say(json!({ "@type": "HISTORY", "Room": node("n-1") }))
        .await;
    assert_eq!(two.text().await, "hello");
    two.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    assert!(two.error().await.contains("with this token"));
    // And so for no events.
    let mut two = house.open("/event").await.unwrap();
    two.say(json!({ "@type": "subscribe", "jwt": token })).await;
    assert!(two.error().await.contains("with this token"));
    assert_eq!(two.closed().await.0, 1008);
}

#[tokio::test]
async fn a_room_that_a_socket_may_not_join_is_not_made() {
    const MAX: usize = 64;
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let global = |n: usize| json!({ "Type": "GLOBAL", "RoomTypeObject": format!("g{n}") });
    for n in 0..MAX {
        ana.join(global(n)).await;
    }
    ana.say(json!({ "@type": "JOIN", "Room": global(MAX) }))
        .await;
    let frame = ana.frame_but_updates().await;
    assert!(
        frame["error"].as_str().unwrap().contains("64 rooms"),
        "{frame}"
    );
    let rooms: Rooms<RemoteStorage> = Rooms::new(house.native().await);
    let key = |n: usize| RoomKey::new("GLOBAL", format!("g{n}")).unwrap();
    assert!(rooms.open(&key(0)).await.unwrap().is_some());
    assert!(rooms.open(&key(MAX)).await.unwrap().is_none());
}

//! Rooms that are not for everybody.

use std::time::Duration;

use serde_json::json;
use storage_protocol::Batch;

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
    reader.join(node("n-1")).await;
    ana.sees(&["ana", "ro"]).await;
    // Her own socket for events tells when the server has taken notice.
    let mut events = house.events("ro").await;
    house.commit(Batch::new().put("roles/readers", "{}")).await;
    assert_eq!(events.frame().await["@type"], "idm");
    ana.post(&room, "not for ro").await;
    let frame = reader.frame_but_updates().await;
    assert_eq!(frame["@type"], "error", "{frame}");
    ana.sees(&["ana"]).await;
    reader.has_nothing(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn access_rules_hold_in_rooms_too() {
    let rules = r#"
[[rule]]
principal = "cert:boss"
keyspace = "*"
allow = ["read", "write", "watch", "admin"]

[[rule]]
principal = "cert:boss"
keyspace = "system"
allow = ["admin"]

[[rule]]
principal = "user:ana"
keyspace = "workspace"
prefix = "rooms/"
allow = ["read", "write", "watch"]

[[rule]]
principal = "user:bob"
keyspace = "workspace"
prefix = "rooms/"
allow = ["read"]
"#;
    let house = House::configured("", rules).await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    ana.post(&room, "hello").await;
    assert_eq!(ana.text().await, "hello");
    let mut bob = house.chat("bob").await;
    bob.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    assert!(bob.error().await.contains("access denied"));
    bob.say(json!({ "@type": "HISTORY", "Room": node("n-1") }))
        .await;
    assert_eq!(bob.text().await, "hello");
    let mut admin = house.chat("admin").await;
    admin
        .say(json!({ "@type": "HISTORY", "Room": node("n-1") }))
        .await;
    assert!(admin.error().await.contains("access denied"));
}

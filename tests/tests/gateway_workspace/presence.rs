//! Who is in a room when sockets come and go.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{House, node};

#[tokio::test]
async fn item_20_a_closed_socket_is_out_after_the_grace_and_a_ping_stays() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    ana.join(node("n-1")).await;
    let mut bob = house.chat("bob").await;
    bob.join(node("n-1")).await;
    ana.sees(&["ana", "bob"]).await;
    drop(bob);
    let closed = Instant::now();
    ana.sees(&["ana"]).await;
    let after = closed.elapsed();
    assert!(after >= Duration::from_millis(900), "{after:?}");
    assert!(after < Duration::from_secs(25), "{after:?}");
    // Whoever is there stays there, and is not told so.
    let ping = json!({ "@type": "JOIN", "Room": node("n-1"), "Message": { "Message": "PING" } });
    for _ in 0..5 {
        ana.say(ping.clone()).await;
    }
    // Of a room that is not there: ignored, and not made.
    ana.say(json!({ "@type": "JOIN", "Room": { "Type": "USER", "RoomTypeObject": "x" }, "Message": { "Message": "PING" } }))
        .await;
    ana.has_nothing(Duration::from_millis(1_500)).await;
    let mut bob = house.chat("bob").await;
    bob.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    bob.sees(&["ana", "bob"]).await;
}

#[tokio::test]
async fn a_user_with_two_sockets_is_there_once_until_the_last_is_gone() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    let mut tabs = [house.chat("bob").await, house.chat("bob").await];
    for tab in &mut tabs {
        tab.join(node("n-1")).await;
    }
    ana.sees(&["ana", "bob"]).await;
    let [mut first, mut second] = tabs;
    first
        .say(json!({ "@type": "LEAVE", "Room": node("n-1") }))
        .await;
    ana.post(&room, "still there").await;
    assert_eq!(second.text().await, "still there");
    // The other one has not left.
    let mut admin = house.chat("admin").await;
    admin
        .say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    admin.sees(&["admin", "ana", "bob"]).await;
    second
        .say(json!({ "@type": "LEAVE", "Room": node("n-1") }))
        .await;
    admin.sees(&["admin", "ana"]).await;
}

#[tokio::test]
async fn who_comes_back_within_the_grace_was_never_out() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    ana.join(node("n-1")).await;
    let mut bob = house.chat("bob").await;
    bob.join(node("n-1")).await;
    ana.sees(&["ana", "bob"]).await;
    let mut next = house.chat("bob").await;
    drop(bob);
    // As a browser comes back: by a ping.
    next.say(json!({ "@type": "JOIN", "Room": node("n-1"), "Message": { "Message": "PING" } }))
        .await;
    next.sees(&["ana", "bob"]).await;
    ana.has_nothing(Duration::from_millis(2_000)).await;
}

#[tokio::test]
async fn nobody_is_there_for_ever_after_a_kill() {
    let mut house = House::configured("grace = \"1s\"", "[timeouts]\nsession_grace = \"1s\"").await;
    let mut bob = house.chat("bob").await;
    bob.join(node("n-1")).await;
    house.server.restart();
    let mut ana = house.chat("ana").await;
    ana.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    ana.sees(&["ana"]).await;
}

//! Many members, and one who does not read.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use storage_testkit::raw::{metric, metric_reaches};

use crate::client::{House, Socket, node};

pub(crate) const MANY: &str = "[limits]\nsessions_per_principal_max = 4000\nhandshakes_max = 4000\nhttp_connections_max = 4000";

/// So many sockets of these users, in the room.
pub(crate) async fn members(house: &House, users: &[&str], count: usize) -> (Vec<Socket>, String) {
    let mut tokens = Vec::new();
    for user in users {
        tokens.push(house.token(user).await);
    }
    let mut sockets = Vec::new();
    let mut room = String::new();
    for batch in 0..count.div_ceil(50) {
        let open = async |n: usize| {
            let mut socket = house.open("/chat").await.unwrap();
            socket.subscribe(&tokens[n % users.len()]).await;
            socket.user = users[n % users.len()].to_owned();
            let room = socket.join(node("n-1")).await;
            (socket, room)
        };
        let range = batch * 50..count.min(batch * 50 + 50);
        for (socket, id) in join_all(range.map(open)).await {
            sockets.push(socket);
            room = id;
        }
    }
    (sockets, room)
}

fn number(text: &str) -> usize {
    text.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn item_24_each_of_500_members_gets_each_message_once_beside_one_who_stalls() {
    const MEMBERS: usize = 500;
    const POSTS: usize = 40;
    let house = House::configured("", MANY).await;
    let (mut sockets, room) = members(&house, &["ana", "bob"], MEMBERS).await;
    assert_eq!(
        metric(&house.server, "storage_workspace_members").await,
        500.0
    );
    assert_eq!(metric(&house.server, "storage_workspace_rooms").await, 1.0);
    let mut stalled = sockets.pop().unwrap();
    let mut poster = house.chat("ana").await;
    poster.join(node("n-1")).await;
    let began = Instant::now();
    for n in 0..POSTS {
        poster.post(&room, &n.to_string()).await;
        assert_eq!(poster.text().await, n.to_string());
    }
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    let hear = async |socket: &mut Socket| {
        for n in 0..POSTS {
            assert_eq!(socket.text().await, n.to_string());
        }
    };
    join_all(sockets.iter_mut().map(hear)).await;
    hear(&mut stalled).await;
    poster.post(&room, "the end").await;
    for socket in sockets.iter_mut().chain([&mut stalled]) {
        assert_eq!(socket.text().await, "the end");
        socket.is_silent();
    }
}

#[tokio::test]
async fn who_does_not_read_delays_nobody_and_has_all_of_it_later() {
    // More than is held for one who does not read, by the server and by the system.
    const POSTS: usize = 3_000;
    let house = House::configured("", "[timeouts]\nslow_peer = \"5m\"").await;
    let mut stalled = house.chat("bob").await;
    stalled.join(node("n-1")).await;
    let mut poster = house.chat("ana").await;
    let room = poster.join(node("n-1")).await;
    let filling = "x".repeat(8_000);
    let (mut posted, mut heard) = (0, 0);
    while heard < POSTS {
        // Some at once.
        while posted < POSTS && posted < heard + 50 {
            poster.post(&room, &format!("{posted} {filling}")).await;
            posted += 1;
        }
        assert_eq!(number(&poster.text().await), heard);
        heard += 1;
    }
    assert!(metric(&house.server, "storage_workspace_resyncs_total").await < 1.0);
    for n in 0..POSTS {
        assert_eq!(number(&text_but_hints(&mut stalled).await), n);
    }
    assert!(metric(&house.server, "storage_workspace_resyncs_total").await >= 1.0);
    poster.post(&room, "the end").await;
    assert_eq!(text_but_hints(&mut stalled).await, "the end");
}

/// The next message; one who was behind is told to look for what was deleted, too.
pub(crate) async fn text_but_hints(socket: &mut Socket) -> String {
    loop {
        let frame = socket.frame_but_updates().await;
        match frame["@type"].as_str() {
            None => return frame["Message"].as_str().unwrap().to_owned(),
            Some("resync") => {}
            Some(other) => panic!("{other}: {frame}"),
        }
    }
}

#[tokio::test]
async fn rooms_that_nobody_is_in_are_not_followed() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    for n in 0..64 {
        ana.join(json!({ "Type": "USER", "RoomTypeObject": n.to_string() }))
            .await;
    }
    assert_eq!(metric(&house.server, "storage_workspace_rooms").await, 64.0);
    ana.say(json!({ "@type": "JOIN", "Room": { "Type": "USER", "RoomTypeObject": "65" } }))
        .await;
    assert!(ana.error().await.contains("64 rooms"));
    drop(ana);
    let waiting = async {
        while metric(&house.server, "storage_workspace_rooms").await > 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap();
    metric_reaches(&house.server, "storage_sessions", 0.0).await;
}

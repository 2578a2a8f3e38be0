//! Many members, and one who does not read.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::json;
use storage_client::RemoteStorage;
use storage_protocol::rooms::{Draft, RoomKey, Rooms};
use storage_testkit::raw::{in_time, metric, metric_reaches};

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

/// More than is held for one who reads nothing over a narrow connection: 4 MB by the system of the server, and little over 1 MiB
/// by the server.
const HELD_BYTES_MAX: usize = 16 << 20;
const TEXT_BYTES: usize = 8 << 10;

/// Lets so much be said to a member that reads nothing that its socket takes no more of it. It is said in another room that it is
/// in, so that the others need not read it.
async fn stall(house: &House, stalled: &mut Socket) {
    let object = json!({ "Type": "USER", "RoomTypeObject": "stalled" });
    stalled.join(object).await;
    let rooms: Rooms<RemoteStorage> = Rooms::new(house.native().await);
    let key = RoomKey::new("USER", "stalled").unwrap();
    let (room, _) = rooms.open_or_create(&key, "").await.unwrap();
    let text = "x".repeat(TEXT_BYTES);
    for _ in 0..HELD_BYTES_MAX / TEXT_BYTES / 64 {
        let drafts: Vec<_> = (0..64)
            .map(|_| Draft::new("boss", text.as_str()).unwrap())
            .collect();
        let posts = drafts.iter().map(|draft| rooms.post(&room, draft));
        for posted in join_all(posts).await {
            posted.unwrap();
        }
    }
}

#[tokio::test]
async fn item_24_each_of_500_members_gets_each_message_once_beside_one_who_stalls() {
    const MEMBERS: usize = 500;
    const POSTS: usize = 40;
    // Whose connection takes nothing for so long is cut off.
    let slow_peer = Duration::from_secs(15);
    let config = format!("{MANY}\noutbox_bytes_max = 262144\n\n[timeouts]\nslow_peer = \"15s\"");
    let house = House::configured("grace = \"0s\"", &config).await;
    let (mut sockets, room) = members(&house, &["ana", "bob"], MEMBERS).await;
    let mut poster = house.chat("ana").await;
    poster.join(node("n-1")).await;
    let narrow = house.narrow_tcp().await;
    let mut stalled = house.open_over(narrow, "/chat").await.unwrap();
    stalled.subscribe(&house.token("ro").await).await;
    stalled.user = "ro".to_owned();
    stalled.join(node("n-1")).await;
    for socket in sockets.iter_mut().chain([&mut poster]) {
        socket.sees(&["ana", "bob", "ro"]).await;
    }
    stall(&house, &mut stalled).await;
    let began = Instant::now();
    let text = |n: usize| format!("{n} {}", "y".repeat(TEXT_BYTES - 8));
    for n in 0..POSTS {
        poster.post(&room, &text(n)).await;
        assert_eq!(number(&poster.text().await), n);
    }
    let hear = async |socket: &mut Socket| {
        for n in 0..POSTS {
            // Nothing else comes, and nobody is out.
            let frame = socket.frame().await;
            assert_eq!(number(frame["Message"].as_str().unwrap()), n);
        }
    };
    join_all(sockets.iter_mut().map(hear)).await;
    // So it was not by its end that they were told.
    assert!(began.elapsed() < slow_peer, "{:?}", began.elapsed());
    // It ends, and is out at once.
    for socket in sockets.iter_mut().chain([&mut poster]) {
        let out = socket.expect("ROOM_UPDATE").await;
        assert_eq!(out["Room"]["Users"], json!(["ana", "bob"]));
    }
    // What the system holds for it is left, and then the connection is cut: it has not been told all of it.
    let mut told = 0;
    while let Some(Ok(message)) = in_time("what is left", stalled.stream.next()).await {
        told += message.len();
    }
    assert!((1..HELD_BYTES_MAX).contains(&told), "{told}");
    poster.post(&room, "the end").await;
    for socket in sockets.iter_mut().chain([&mut poster]) {
        assert_eq!(socket.text().await, "the end");
        socket.is_silent();
    }
    // It has all that it missed when it comes back.
    let mut again = house.chat("ro").await;
    let first = json!({ "Uuid": "0".repeat(32) });
    again
        .say(json!({ "@type": "JOIN", "Room": node("n-1"), "Message": first }))
        .await;
    for n in 0..POSTS {
        assert_eq!(number(&again.text().await), n);
    }
    assert_eq!(again.text().await, "the end");
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

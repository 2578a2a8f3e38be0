//! The messages of a room, by pages and after a restart.

use serde_json::{Value, json};

use crate::client::{House, Socket, node};

async fn page(socket: &mut Socket, offset: u64, limit: u64) -> (Vec<String>, Option<Value>) {
    let wish = json!({ "Offset": offset, "Limit": limit }).to_string();
    socket
        .say(json!({ "@type": "HISTORY", "Room": node("n-1"), "Message": { "Message": wish } }))
        .await;
    socket.expect("ROOM_UPDATE").await;
    // The answer to the next one stands behind all of this one.
    socket
        .say(json!({ "@type": "POST", "Message": { "Message": "nowhere" } }))
        .await;
    let (mut texts, mut more) = (Vec::new(), None);
    loop {
        let frame = socket.frame().await;
        match frame["@type"].as_str() {
            Some("error") => return (texts, more),
            Some("MAY_HAVE_MORE") => more = Some(frame),
            Some(other) => panic!("{other}"),
            None => texts.push(frame["Message"].as_str().unwrap().to_owned()),
        }
    }
}

#[tokio::test]
async fn item_15_a_history_comes_by_pages_from_the_newest_on() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    for text in ["1", "2", "3", "4", "5"] {
        ana.post(&room, text).await;
        assert_eq!(ana.text().await, text);
    }
    // Without having joined.
    let mut bob = house.chat("bob").await;
    let (texts, more) = page(&mut bob, 0, 2).await;
    assert_eq!(texts, ["4", "5"]);
    let more = more.unwrap();
    assert_eq!((&more["Offset"], &more["Limit"]), (&json!(2), &json!(2)));
    assert_eq!(more["RoomUuid"], json!(room));
    assert!(more["Timestamp"].is_number(), "{more}");
    let (texts, more) = page(&mut bob, 2, 2).await;
    assert_eq!(
        (texts.as_slice(), more.is_some()),
        (&["2".to_owned(), "3".to_owned()][..], true)
    );
    assert_eq!(page(&mut bob, 4, 2).await, (vec!["1".to_owned()], None));
    assert_eq!(
        page(&mut bob, 3, 2).await,
        (vec!["1".to_owned(), "2".to_owned()], None)
    );
    assert_eq!(page(&mut bob, 5, 2).await, (vec![], None));
}

#[tokio::test]
async fn item_23_messages_survive_a_restart_in_their_order() {
    let mut house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    let mut before = Vec::new();
    for n in 0..10 {
        ana.post(&room, &n.to_string()).await;
        before.push(ana.frame_but_updates().await);
    }
    house.server.restart();
    let mut ana = house.chat("ana").await;
    ana.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    for message in &before {
        assert_eq!(ana.frame_but_updates().await, *message);
    }
    // And from one of them on.
    let mut bob = house.chat("bob").await;
    let last = json!({ "Uuid": before[6]["Uuid"] });
    bob.say(json!({ "@type": "JOIN", "Room": node("n-1"), "Message": last }))
        .await;
    bob.expect("ROOM_UPDATE").await;
    for message in &before[7..] {
        assert_eq!(bob.frame_but_updates().await, *message);
    }
}

//! Peers without manners.

use futures_util::SinkExt;
use serde_json::json;
use storage_testkit::raw::in_time;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{House, node};

#[tokio::test]
async fn item_22_nothing_that_is_said_ends_the_server_or_disturbs_others() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    let mut rude = house.chat("bob").await;
    let long = "x".repeat(3_000);
    for said in [
        r#"{"@type":"JOIN"}"#.to_owned(),
        r#"{"@type":"POST"}"#.to_owned(),
        r#"{"@type":"HISTORY"}"#.to_owned(),
        r#"{"@type":"LEAVE"}"#.to_owned(),
        r#"{"@type":"DELETE_MSG"}"#.to_owned(),
        r#"{"@type":"DELETE_MSG","Message":{"Uuid":"x","RoomUuid":"y"}}"#.to_owned(),
        r#"{"@type":"JOIN","Room":{"Type":"ANY"}}"#.to_owned(),
        r#"{"@type":"JOIN","Room":{"Type":"USER","RoomTypeObject":"a\u0000b"}}"#.to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "{".to_owned(),
        long.clone(),
        json!({ "@type": "POST", "Message": { "RoomUuid": room, "Message": long } }).to_string(),
        "[".repeat(50_000),
    ] {
        rude.say_text(&said).await;
    }
    let sent = rude.stream.send(Message::binary(vec![0xff; 100]));
    in_time("bytes", sent).await.unwrap();
    // Behind whatever was told of all that.
    rude.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    rude.sees(&["ana", "bob"]).await;
    rude.post(&room, &"y".repeat(8 << 10)).await;
    assert_eq!(rude.text().await.len(), 8 << 10);
    assert_eq!(ana.text().await.len(), 8 << 10);
    rude.post(&room, &"y".repeat((8 << 10) + 1)).await;
    assert!(rude.error().await.contains("8192"));
    // On the endpoint for events, what is no JSON ends the socket; other JSON does not.
    let mut events = house.events("bob").await;
    for said in [
        "null",
        "[]",
        "7",
        r#"{"@type":"JOIN","Room":{}}"#,
        r#"{"@type":"other"}"#,
    ] {
        events.say_text(said).await;
    }
    events.say_text("{").await;
    assert_eq!(events.error().await, "the message is not JSON");
    assert_eq!(events.closed().await.0, 1008);
    // Text that is none.
    let mut broken = house.chat("bob").await;
    let frame = tokio_tungstenite::tungstenite::protocol::frame::Frame::message(
        vec![0xc3, 0x28],
        tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode::Data(
            tokio_tungstenite::tungstenite::protocol::frame::coding::Data::Text,
        ),
        true,
    );
    in_time("bad text", broken.stream.send(Message::Frame(frame)))
        .await
        .unwrap();
    assert_eq!(broken.closed().await.0, 1007);
    let mut huge = house.chat("bob").await;
    huge.say_text(&"x".repeat((64 << 10) + 1)).await;
    assert_eq!(huge.closed().await.0, 1009);
    ana.post(&room, "all is well").await;
    assert_eq!(ana.text().await, "all is well");
}

//! Rooms: who is in them, what is said.

use serde_json::{Value, json};
use storage_client::RemoteStorage;
use storage_protocol::Batch;
use storage_protocol::rooms::{Deleted, DeletedBy, Draft, Room, RoomKey, Rooms};

use crate::client::{House, node};

#[tokio::test]
async fn item_13_two_who_join_make_one_room_and_see_each_other() {
    let house = House::new().await;
    let (mut ana, mut bob) = tokio::join!(house.chat("ana"), house.chat("bob"));
    let (of_ana, of_bob) = tokio::join!(ana.join(node("n-1")), bob.join(node("n-1")));
    assert_eq!(of_ana, of_bob);
    // By whichever update comes last.
    ana.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    bob.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    ana.sees(&["ana", "bob"]).await;
    bob.sees(&["ana", "bob"]).await;
}

#[tokio::test]
async fn item_14_who_joins_is_sent_the_room_and_then_its_messages() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    for text in ["one", "two", "three"] {
        ana.post(&room, text).await;
        assert_eq!(ana.text().await, text);
    }
    let mut bob = house.chat("bob").await;
    bob.say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    let update = bob.frame().await;
    assert_eq!(update["@type"], "ROOM_UPDATE");
    assert_eq!(update["Room"]["Type"], "NODE");
    assert_eq!(update["Room"]["RoomTypeObject"], "n-1");
    assert_eq!(update["Room"]["Users"], json!(["ana", "bob"]));
    for text in ["one", "two", "three"] {
        let frame = bob.frame_but_updates().await;
        assert_eq!(
            (&frame["Message"], &frame["RoomUuid"]),
            (&json!(text), &json!(room))
        );
    }
}

#[tokio::test]
async fn item_16_a_post_is_told_to_all_as_the_server_has_it() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    let mut bob = house.chat("bob").await;
    bob.join(node("n-1")).await;
    ana.say(json!({ "@type": "POST", "Room": { "Uuid": room }, "Message": {
        "RoomUuid": room, "Message": "<b>hi</b> <script>x</script>", "Author": "bob", "Timestamp": "1", "Uuid": "forged",
        "Info": { "k": "v" } } })).await;
    let of_ana = ana.frame_but_updates().await;
    let of_bob = bob.frame_but_updates().await;
    assert_eq!(of_ana, of_bob);
    assert_eq!(of_ana["Author"], "ana");
    assert_eq!(of_ana["RoomUuid"], json!(room));
    assert_eq!(of_ana["Message"], "<b>hi</b> ");
    assert_eq!(of_ana["Info"], json!({ "k": "v" }));
    assert_eq!(of_ana["Uuid"].as_str().unwrap().len(), 32);
    let time: u64 = of_ana["Timestamp"].as_str().unwrap().parse().unwrap();
    assert!(time > 1_700_000_000, "{time}");
}

#[tokio::test]
async fn item_18_a_message_is_deleted_by_its_author_and_by_administrators() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    let mut bob = house.chat("bob").await;
    bob.join(node("n-1")).await;
    ana.post(&room, "mine").await;
    let message = ana.frame_but_updates().await;
    assert_eq!(bob.frame_but_updates().await, message);
    let delete = |message: &Value| json!({ "@type": "DELETE_MSG", "Message": message });
    bob.say(delete(&message)).await;
    assert!(bob.error().await.contains("somebody else"));
    let mut forged = message.clone();
    forged["Author"] = "bob".into();
    bob.say(delete(&forged)).await;
    assert!(bob.error().await.contains("somebody else"));
    bob.say(json!({ "@type": "HISTORY", "Room": node("n-1") }))
        .await;
    assert_eq!(bob.text().await, "mine");
    ana.say(delete(&message)).await;
    for socket in [&mut ana, &mut bob] {
        let told = socket.frame_but_updates().await;
        assert_eq!(told, json!({ "@type": "DELETE_MSG", "Message": message }));
    }
    ana.say(delete(&message)).await;
    assert!(ana.error().await.contains("no such message"));
    bob.post(&room, "of bob").await;
    let of_bob = bob.frame_but_updates().await;
    let mut admin = house.chat("admin").await;
    admin.join(node("n-1")).await;
    assert_eq!(admin.text().await, "of bob");
    admin.say(delete(&of_bob)).await;
    assert_eq!(bob.frame_but_updates().await["@type"], "DELETE_MSG");
}

#[tokio::test]
async fn item_19_who_leaves_is_out() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    let mut bob = house.chat("bob").await;
    bob.join(node("n-1")).await;
    ana.sees(&["ana", "bob"]).await;
    bob.say(json!({ "@type": "LEAVE", "Room": { "Uuid": room, "Type": "NODE", "RoomTypeObject": "n-1" } }))
        .await;
    ana.sees(&["ana"]).await;
    ana.post(&room, "alone").await;
    assert_eq!(ana.text().await, "alone");
    // An answer that comes behind whatever else there was.
    bob.post(&room, "from outside").await;
    let frame = bob.frame_but_updates().await;
    assert_eq!(frame["@type"], "error", "{frame}");
}

#[tokio::test]
async fn item_21_operations_have_names_numbers_and_two_places() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let room = ana.join(node("n-1")).await;
    for post in [
        json!({ "@type": "POST", "Message": { "RoomUuid": room, "Message": "1" } }),
        json!({ "@type": 2, "Message": { "RoomUuid": room, "Message": "2" } }),
        json!({ "Type": "POST", "Message": { "RoomUuid": room, "Message": "3" } }),
        json!({ "Type": 2, "Message": { "RoomUuid": room, "Message": "4" } }),
        json!({ "@type": "DANCE", "Message": { "RoomUuid": room, "Message": "never" } }),
        json!({ "@type": 77, "Message": { "RoomUuid": room, "Message": "never" } }),
        json!({ "@type": "POST", "Message": { "RoomUuid": room, "Message": "never" }, "Extra": 1 }),
        json!({ "@type": "POST", "Message": { "RoomUuid": room, "Message": "5" } }),
    ] {
        ana.say(post).await;
    }
    for text in ["1", "2", "3", "4", "5"] {
        assert_eq!(ana.text().await, text);
    }
    // Absent, it is the first one.
    ana.say(json!({ "Room": node("n-1") })).await;
    ana.sees(&["ana"]).await;
}

#[tokio::test]
async fn item_26_what_the_browser_says_works_as_it_says_it() {
    let house = House::new().await;
    let token = house.token("ana").await;
    let mut ana = house.open("/ws/chat").await.unwrap();
    let room = r#"{"Type":"NODE","RoomTypeObject":"n-1"}"#;
    ana.say_text(&format!(r#"{{"@type":"subscribe","jwt":"{token}"}}"#))
        .await;
    ana.say_text(&format!(r#"{{"@type":"JOIN","Room":{room}}}"#))
        .await;
    let history = format!(
        r#"{{"@type":"HISTORY","Room":{room},"Message":{{"Message":"{{\"Offset\":0,\"Limit\":40}}"}}}}"#
    );
    ana.say_text(&history).await;
    let update = ana.expect("ROOM_UPDATE").await;
    let uuid = update["Room"]["Uuid"].as_str().unwrap().to_owned();
    ana.say_text(&history).await;
    ana.say_text(&format!(
        r#"{{"@type":"POST","Room":{{"Uuid":"{uuid}","Type":"NODE","RoomTypeObject":"n-1","Users":["ana"]}},"Message":{{"RoomUuid":"{uuid}","Message":"hi"}}}}"#
    ))
    .await;
    assert_eq!(ana.text().await, "hi");
    ana.say_text(&format!(
        r#"{{"@type":"JOIN","Room":{room},"Message":{{"Message":"PING"}}}}"#
    ))
    .await;
    ana.say_text(&format!(r#"{{"@type":"LEAVE","Room":{room}}}"#))
        .await;
    ana.say(json!({ "@type": "subscribe", "jwt": token, "ack": true }))
        .await;
    while ana.frame().await["@type"] != "subscribed" {}
    // Posting in the room of a node is an event of the node.
    let mut events = house.events("bob").await;
    let mut other = house.chat("ana").await;
    let uuid = other.join(node("n-1")).await;
    other.post(&uuid, "again").await;
    let told = events.frame().await;
    assert_eq!(told["Type"], "UPDATE_USER_META", "{told}");
    assert_eq!(told["Target"]["Path"], "team/a.txt");
    // This one counts, too.
    assert_eq!(told["Target"]["MetaStore"]["has_comments"], "2", "{told}");
}

#[tokio::test]
async fn a_post_is_an_event_of_its_node_whoever_makes_it() {
    let house = House::configured("quiet = \"2s\"", "").await;
    let mut events = house.events("ana").await;
    let rooms: Rooms<RemoteStorage> = Rooms::new(house.native().await);
    let of = async |object: &str| {
        let key = RoomKey::new("NODE", object).unwrap();
        rooms.open_or_create(&key, "").await.unwrap().0
    };
    let (room, beside) = (of("n-9").await, of("n-2").await);
    let post = async |room: &Room, text: &str| {
        let draft = Draft::new("robot", text).unwrap();
        rooms.post(room, &draft).await.unwrap().id
    };
    // It waits for quiet about the node; comments do not, and come behind it all the same.
    let new = json!({ "Uuid": "n-9", "Type": "LEAF", "Etag": "e" }).to_string();
    let batch = Batch::new()
        .put("nodes/data/team/x", new)
        .put("node-ids/n-9", "/data/team/x");
    house.commit(batch).await;
    let first = post(&room, "one").await;
    let created = events.frame().await;
    assert_eq!(created.get("Type"), None, "{created}");
    assert_eq!(created["Target"]["Path"], "team/x");
    let mut comments = async |path: &str| {
        let told = events.frame().await;
        assert_eq!(told["Type"], "UPDATE_USER_META", "{told}");
        assert_eq!(told["Target"]["Uuid"], "n-9", "{told}");
        assert_eq!(told["Target"]["Path"], path, "{told}");
        told["Target"]["MetaStore"]["has_comments"].clone()
    };
    assert_eq!(comments("team/x").await, "1");
    // Of a node that she has not she is told nothing.
    post(&beside, "not for ana").await;
    for (text, count) in [("two", "2"), ("three", "3")] {
        post(&room, text).await;
        assert_eq!(comments("team/x").await, count);
    }
    let deleted = rooms.delete(room.id, first, DeletedBy::Anyone).await;
    assert!(matches!(deleted.unwrap(), Deleted::Done(..)));
    post(&room, "four").await;
    assert_eq!(comments("team/x").await, "3");
    house
        .commit(Batch::new().put("node-ids/n-9", "/data/team/y"))
        .await;
    post(&room, "five").await;
    assert_eq!(comments("team/y").await, "4");
}

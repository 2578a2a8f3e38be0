//! Endpoints, and who a peer is.

use std::time::Duration;

use serde_json::json;
use storage_testkit::entrance::mint_token;

use crate::client::{House, node};

/// What ana is told if she is told anything: a task of hers.
fn task(id: &str) -> serde_json::Value {
    json!({ "TaskUpdated": { "ID": id, "Status": "Running", "TriggerOwner": "ana" } })
}

#[tokio::test]
async fn item_01_the_endpoints_upgrade_without_a_credential_and_others_are_not_there() {
    let house = House::new().await;
    for path in ["/ws", "/event", "/ws/event", "/chat", "/ws/chat"] {
        assert!(house.open(path).await.is_ok(), "{path}");
    }
    for path in ["/", "/events", "/ws/other", "/chat/x"] {
        let status = house.open(path).await.err();
        assert!(matches!(status, Some(401 | 404)), "{path}: {status:?}");
    }
}

#[tokio::test]
async fn item_02_who_has_not_subscribed_is_told_nothing() {
    let house = House::new().await;
    let mut silent = [
        house.open("/event").await.unwrap(),
        house.open("/chat").await.unwrap(),
    ];
    silent[1]
        .say(json!({ "@type": "JOIN", "Room": node("n-1") }))
        .await;
    let mut events = house.events("ana").await;
    let mut chat = house.chat("ana").await;
    let room = chat.join(node("n-1")).await;
    chat.post(&room, "hi").await;
    assert_eq!(chat.text().await, "hi");
    house.tell(task("t")).await;
    while events.frame().await.get("TaskUpdated").is_none() {}
    let [events, chat] = &mut silent;
    let patience = Duration::from_secs(3);
    tokio::join!(events.has_nothing(patience), chat.has_nothing(patience));
    // One that stays nobody is closed in the end.
    assert_eq!(
        silent[0].closed().await,
        (1008, "no login in time".to_owned())
    );
}

#[tokio::test]
async fn item_03_a_good_token_is_enough_and_a_bad_one_is_told() {
    let house = House::new().await;
    let token = house.token("ana").await;
    let said = [
        json!({ "@type": "subscribe", "jwt": token }).to_string(),
        json!({ "@type": "register", "jwt": token }).to_string(),
        format!("register:{token}"),
    ];
    for (n, said) in said.iter().enumerate() {
        let mut socket = house.open("/ws").await.unwrap();
        socket.say_text(said).await;
        // There is no answer to that. Said once more, with one, so that what follows is behind it.
        socket.subscribe(&token).await;
        house.tell(task(&format!("t{n}"))).await;
        assert_eq!(socket.frame().await["TaskUpdated"]["ID"], format!("t{n}"));
    }
    for (path, empty) in [("/ws", "empty jwt"), ("/chat", "Empty JWT")] {
        for (jwt, why) in [
            ("", empty),
            ("a.b.c", "token"),
            (&"x".repeat(20_000), "16384"),
        ] {
            let mut socket = house.open(path).await.unwrap();
            socket
                .say(json!({ "@type": "subscribe", "jwt": jwt }))
                .await;
            let frame = socket.expect("error").await;
            assert_eq!(frame["jwt"], "");
            let told = frame["error"].as_str().unwrap().to_owned();
            assert!(told.contains(why), "{told}");
            let (code, reason) = socket.closed().await;
            assert_eq!((code, reason.as_str()), (1008, told.as_str()));
        }
    }
    house.events("ana").await;
}

#[tokio::test]
async fn item_04_a_token_ends_what_it_began() {
    let house = House::new().await;
    let (_, token) = mint_token(&house.as_user("eve"), json!({ "ttl": "2s" })).await;
    let mut events = house.open("/event").await.unwrap();
    let mut chat = house.open("/chat").await.unwrap();
    events.subscribe(&token).await;
    chat.subscribe(&token).await;
    for socket in [&mut events, &mut chat] {
        let (code, reason) = socket.closed().await;
        assert_eq!((code, reason.as_str()), (1008, "token expired"));
    }
    let mut late = house.open("/event").await.unwrap();
    late.say(json!({ "@type": "subscribe", "jwt": token }))
        .await;
    let error = late.error().await;
    assert!(error.contains("expired"), "{error}");
    assert_eq!(late.closed().await.0, 1008);
}

#[tokio::test]
async fn item_05_unsubscribed_is_silent_and_open_and_can_subscribe_again() {
    let house = House::new().await;
    let mut events = house.events("ana").await;
    let mut chat = house.chat("ana").await;
    let room = chat.join(node("n-1")).await;
    let mut witness = house.events("ana").await;
    let mut bob = house.chat("bob").await;
    bob.join(node("n-1")).await;
    chat.sees(&["ana", "bob"]).await;
    for socket in [&mut events, &mut chat] {
        socket.say(json!({ "@type": "unsubscribe" })).await;
    }
    // She is out of the room by that.
    bob.sees(&["bob"]).await;
    house.tell(task("t1")).await;
    assert_eq!(witness.frame().await["TaskUpdated"]["ID"], "t1");
    bob.post(&room, "to nobody").await;
    assert_eq!(bob.text().await, "to nobody");
    let token = house.token("ana").await;
    events.subscribe(&token).await;
    chat.subscribe(&token).await;
    house.tell(task("t2")).await;
    assert_eq!(events.frame().await["TaskUpdated"]["ID"], "t2");
    chat.user = "ana".to_owned();
    chat.join(node("n-1")).await;
    assert_eq!(chat.text().await, "to nobody");
}

#[tokio::test]
async fn who_subscribes_as_another_has_what_that_one_has() {
    let house = House::new().await;
    let mut socket = house.events("ana").await;
    let eve = house.token("eve").await;
    socket.subscribe(&eve).await;
    let gone = json!({ "Type": "DELETE", "Source": { "Uuid": "z", "Path": "/data/team/x" } });
    house.tell(gone.clone()).await;
    house.tell(task("t1")).await;
    let ana = house.token("ana").await;
    socket.subscribe(&ana).await;
    house.tell(gone).await;
    assert_eq!(socket.frame().await["Source"]["Path"], "team/x");
    house.tell(task("t2")).await;
    assert_eq!(socket.frame().await["TaskUpdated"]["ID"], "t2");
}

#[tokio::test]
async fn who_has_unsubscribed_takes_no_place_of_those_who_come() {
    let limits = "[limits]\nsessions_per_principal_max = 4";
    let house = House::configured("", limits).await;
    let token = house.token("ana").await;
    let mut unsubscribed = Vec::new();
    for _ in 0..4 {
        let mut socket = house.open("/chat").await.unwrap();
        socket.subscribe(&token).await;
        socket.say(json!({ "@type": "unsubscribe" })).await;
        // Behind it, so that it has been heard.
        socket.subscribe(&token).await;
        socket.say(json!({ "@type": "unsubscribe" })).await;
        unsubscribed.push(socket);
    }
    for path in ["/chat", "/event"] {
        house.socket(path, "bob").await;
    }
    // Nor are there more of hers than she may have.
    let mut fifth = house.open("/chat").await.unwrap();
    fifth
        .say(json!({ "@type": "subscribe", "jwt": token }))
        .await;
    assert!(fifth.error().await.contains("sessions_per_principal_max"));
}

//! Commands: acks, filters, errors, bounds.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use storage_testkit::raw::{in_time, metric};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::client::{House, name};

#[tokio::test]
async fn item_04_an_ack_comes_before_any_event() {
    let house = House::new().await;
    let mut http = house.http().await;
    http.profile("before").await;
    let mut socket = house.socket().await;
    socket.say("register profiles.*.*").await;
    let ack = socket.event().await;
    assert_eq!(ack["Type"], "websocket");
    assert_eq!(ack["Action"], "register");
    assert_eq!(ack["Key"], "profiles.*.*");
    assert_eq!(
        (&ack["Object"], &ack["Original"]),
        (&Value::Null, &Value::Null)
    );
    http.profile("rack7").await;
    assert_eq!(socket.hear().await, "profiles.create.rack7");
    // While others write without a pause.
    let writing = async {
        let mut http = house.http().await;
        for n in 0..200 {
            http.mark(&n.to_string()).await;
        }
    };
    let listening = async {
        for _ in 0..20 {
            let mut socket = house.socket().await;
            socket.say("register mark.*.*").await;
            assert_eq!(socket.hear().await, "websocket.register.mark.*.*");
        }
    };
    tokio::join!(writing, listening);
}

#[tokio::test]
async fn item_05_a_registration_twice_is_acknowledged_twice_and_tells_once() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.register("profiles.*.*").await;
    socket.register("profiles.*.*").await;
    socket.register("mark.*.*").await;
    http.profile("rack7").await;
    http.mark("end").await;
    assert_eq!(socket.until_mark("end").await, ["profiles.create.rack7"]);
}

#[tokio::test]
async fn item_06_after_deregister_no_more_events_and_the_others_live_on() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    for filter in ["profiles.*.*", "machines.*.*", "mark.*.*"] {
        socket.register(filter).await;
    }
    socket.deregister("profiles.*.*").await;
    http.profile("rack7").await;
    http.good("POST", "/machines", &json!({"Uuid": "m1"})).await;
    http.mark("end").await;
    assert_eq!(socket.until_mark("end").await, ["machines.create.m1"]);
}

#[tokio::test]
async fn item_07_deregister_of_what_is_unknown_is_acknowledged_and_changes_nothing() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.register("profiles.*.*").await;
    socket.register("mark.*.*").await;
    socket.deregister("*.*.*").await;
    socket.deregister("profiles.*.rack7").await;
    http.profile("rack7").await;
    http.mark("end").await;
    assert_eq!(socket.until_mark("end").await, ["profiles.create.rack7"]);
}

/// What a socket with this filter is told of a few changes.
async fn told(house: &House, filter: &str) -> Vec<String> {
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.register(filter).await;
    socket.register("mark.*.*").await;
    for (kind, key) in [
        ("profiles", "rack7"),
        ("profiles", "a.b.c"),
        ("params", "rack7"),
        ("params", "x,y"),
    ] {
        http.good("POST", &format!("/{kind}"), &json!({ "Name": key }))
            .await;
        http.good("DELETE", &format!("/{kind}/{key}"), &Value::Null)
            .await;
    }
    http.mark("end").await;
    socket.until_mark("end").await
}

#[tokio::test]
async fn item_10_a_filter_sees_its_actions_and_keys_alone() {
    let house = House::new().await;
    let creations = told(&house, "*.create.*").await;
    assert_eq!(
        creations,
        [
            "profiles.create.rack7",
            "profiles.create.a.b.c",
            "params.create.rack7",
            "params.create.x,y"
        ]
    );
    assert_eq!(
        told(&house, "profiles.*.rack7").await,
        ["profiles.create.rack7", "profiles.delete.rack7"]
    );
    assert!(told(&house, "PROFILES.*.*").await.is_empty());
    // The word of the protocol's text for what its servers call delete.
    assert_eq!(
        told(&house, "profiles.destroy.*").await,
        ["profiles.delete.rack7", "profiles.delete.a.b.c"]
    );
}

#[tokio::test]
async fn item_11_keys_with_dots_lists_and_escapes_match() {
    let house = House::new().await;
    assert_eq!(
        told(&house, "profiles.*.a.b.c").await,
        ["profiles.create.a.b.c", "profiles.delete.a.b.c"]
    );
    assert_eq!(
        told(&house, "profiles,params.create.rack7").await,
        ["profiles.create.rack7", "params.create.rack7"]
    );
    assert_eq!(told(&house, r"*.create.x\2y").await, ["params.create.x,y"]);
    assert!(told(&house, "*.create.x,y").await.is_empty());
    assert_eq!(
        told(&house, r"profiles.delete.a\1b\1c").await,
        ["profiles.delete.a.b.c"]
    );
}

#[tokio::test]
async fn item_12_overlapping_filters_deliver_one_frame() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    for filter in [
        "*.*.*",
        "profiles.*.*",
        "*.create.*",
        "profiles.create.rack7",
    ] {
        socket.register(filter).await;
    }
    http.profile("rack7").await;
    http.mark("end").await;
    assert_eq!(socket.until_mark("end").await, ["profiles.create.rack7"]);
}

#[tokio::test]
async fn item_13_bad_commands_are_answered_and_later_ones_work() {
    let house = House::new().await;
    let mut socket = house.socket().await;
    for command in [
        "register *",
        "register",
        "hello",
        " ",
        "",
        "register a.b",
        "REGISTER a.b.c",
        "deregister",
    ] {
        let why = socket.refused(command).await;
        assert!(!why.is_empty(), "{command:?}");
    }
    let binary = Message::binary(b"register \xff\xfe.*.*".to_vec());
    socket.stream.send(binary).await.unwrap();
    let event = socket.event().await;
    assert_eq!(event["Action"], "error", "{event}");
    socket.register("profiles.*.*").await;
    // Text that is none breaks the protocol of WebSockets: that socket ends, with its code, and no other.
    let mut other = house.socket().await;
    let frame = Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Text), true);
    other.stream.send(Message::Frame(frame)).await.unwrap();
    assert_eq!(other.closed().await, 1007);
    house.http().await.profile("rack7").await;
    assert_eq!(socket.hear().await, "profiles.create.rack7");
}

#[tokio::test]
async fn item_14_white_space_around_a_command_does_not_count() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.say("  \r\n register profiles.*.* \t\n").await;
    assert_eq!(socket.hear().await, "websocket.register.profiles.*.*");
    http.profile("rack7").await;
    assert_eq!(socket.hear().await, "profiles.create.rack7");
}

#[tokio::test]
async fn item_26_no_ack_is_lost_in_floods_of_commands() {
    const COMMANDS: usize = 4_000;
    let house = House::new().await;
    let flood = async |peer: usize| {
        let (mut write, mut read) = house.socket().await.stream.split();
        let saying = async {
            for n in 0..COMMANDS {
                let verb = ["register", "deregister"][n % 2];
                let command = format!("{verb} profiles.*.{peer}.{}", n / 2 % 700);
                write.send(Message::text(command)).await.unwrap();
            }
        };
        let hearing = async {
            let mut acks = 0;
            while acks < COMMANDS {
                let message = in_time("an ack", read.next()).await.unwrap().unwrap();
                let Message::Text(text) = message else {
                    continue;
                };
                let event: Value = serde_json::from_str(&text).unwrap();
                let expected = ["register", "deregister"][acks % 2];
                let expected = format!("websocket.{expected}.profiles.*.{peer}.{}", acks / 2 % 700);
                assert_eq!(name(&event), expected);
                acks += 1;
            }
        };
        tokio::join!(saying, hearing);
    };
    tokio::join!(flood(0), flood(1), flood(2));
}

#[tokio::test]
async fn registrations_are_bounded_by_name_and_what_is_removed_makes_room() {
    let house = House::new().await;
    let mut socket = house.socket().await;
    for n in 0..1_000 {
        socket.register(&format!("profiles.*.{n}")).await;
    }
    let count = "storage_events_registrations";
    assert_eq!(metric(&house.server, count).await, 1_000.0);
    let why = socket.refused("register profiles.*.more").await;
    assert!(why.contains("1000 registrations"), "{why}");
    socket.deregister("profiles.*.7").await;
    socket.register("profiles.*.more").await;
    house.http().await.profile("more").await;
    assert_eq!(socket.hear().await, "profiles.create.more");
    drop(socket);
    in_time("the registrations go with their socket", async {
        while metric(&house.server, count).await > 0.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_long_list_is_taken_and_a_longer_one_refused_by_name() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    let names: Vec<_> = (0..6_000).map(|n| format!("rack{n:05}")).collect();
    let filter = format!("profiles.*.{}", names.join(","));
    assert!(filter.len() > 60_000);
    socket.register(&filter).await;
    http.profile("rack05999").await;
    assert_eq!(socket.hear().await, "profiles.create.rack05999");
    // 1 MiB: read, and refused; the socket stays.
    let long = format!("register profiles.*.{}", "x".repeat(1 << 20));
    let why = socket.refused(&long).await;
    assert!(why.contains("command_bytes_max"), "{why}");
    http.profile("rack00000").await;
    assert_eq!(socket.hear().await, "profiles.create.rack00000");
    // A frame that nobody would send: closed, before it is read.
    socket.say(&"x".repeat(3 << 20)).await;
    assert_eq!(socket.closed().await, 1009);
}

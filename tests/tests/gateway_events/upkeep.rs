//! What goes on beside the events: pings, an ordinary shutdown, the demo's objects, clients of the protocol as they are.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use storage_testkit::raw::in_time;
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{House, PASSWORD, USER, own};

#[tokio::test]
async fn item_22_the_conversation_of_the_usual_clients_works() {
    let house = House::configured("", &["--demo"]).await;
    // What a fresh server has.
    let mut http = house.http().await;
    let (_, global) = http.get("/profiles/global").await;
    assert_eq!(
        (&global["Meta"]["icon"], &global["Meta"]["color"]),
        (&json!("world"), &json!("blue"))
    );
    // The command line: a token by password, one that lasts longer by it, and the rest with that.
    let (_, first) = http.get(&format!("/users/{USER}/token")).await;
    let credential = format!(
        "Authorization: Bearer {}\r\n",
        first["Token"].as_str().unwrap()
    );
    let mut http = house.http_as(&credential).await;
    assert_eq!(http.get("/info").await.0, 200);
    let (_, second) = http.get(&format!("/users/{USER}/token?ttl=7200")).await;
    let credential = format!(
        "Authorization: Bearer {}\r\n",
        second["Token"].as_str().unwrap()
    );
    let mut http = house.http_as(&credential).await;
    // `events watch`: one filter, and the ack is waited for.
    let mut watch = house.socket_as("", &credential).await.unwrap();
    watch.register("*.*.*").await;
    // `profiles wait global Description ready`: two filters, the object after each event, and both taken back.
    let mut wait = house.socket_as("", &credential).await.unwrap();
    wait.register("profiles.update.global").await;
    wait.register("profiles.save.global").await;
    let patch = json!([{ "op": "replace", "path": "/Description", "value": "ready" }]);
    http.good("PATCH", "/profiles/global", &patch).await;
    assert_eq!(wait.hear().await, "profiles.update.global");
    assert_eq!(http.get("/profiles/global").await.1["Description"], "ready");
    wait.deregister("profiles.update.global").await;
    wait.deregister("profiles.save.global").await;
    assert_eq!(watch.hear().await, "profiles.update.global");
    // The page and the script of the manual: the credentials in the query.
    let query = format!("?token={USER}:{PASSWORD}");
    let mut page = house.socket_as(&query, "").await.unwrap();
    page.register("*.*.*").await;
    http.good("POST", "/profiles/global/params/bar", &json!("blatz"))
        .await;
    assert_eq!(page.hear().await, "profiles.save.global");
}

#[tokio::test]
async fn item_23_an_idle_socket_stays_while_it_answers_pings_and_is_dropped_when_it_does_not() {
    let house = House::configured("[events]\nping = \"500ms\"\nsilence = \"3s\"", &[]).await;
    let mut idle = house.socket().await;
    idle.register("profiles.*.*").await;
    // Answered by the library as they are read, for longer than a silent peer is given.
    let mut pings = 0;
    let reading = async {
        // Three times as long as one that answers nothing is given.
        while pings < 18 {
            match idle.stream.next().await.unwrap().unwrap() {
                Message::Ping(_) => pings += 1,
                other => panic!("{other:?}"),
            }
        }
    };
    in_time("pings", reading).await;
    house.http().await.profile("rack7").await;
    assert_eq!(idle.hear().await, "profiles.create.rack7");
    // One that reads, and answers nothing.
    let mut stream = house.tcp().await;
    let request = storage_testkit::raw::upgrade_request("/api/v3/ws", &own());
    let answer = storage_testkit::raw::http(&mut stream, &request).await;
    assert_eq!(answer.status, 101);
    let (took, _) = storage_testkit::raw::until_closed(&mut stream).await;
    // Its silence, and what the check of it may be late by on a busy machine.
    let expected = Duration::from_millis(2_500)..Duration::from_secs(15);
    assert!(expected.contains(&took), "{took:?}");
    let _ = stream.read(&mut [0]).await;
}

#[tokio::test]
async fn sockets_are_closed_in_order_when_the_server_ends() {
    let mut house = House::new().await;
    let mut socket = house.socket().await;
    socket.register("*.*.*").await;
    let mut idle = house.socket().await;
    house.server.signal(rustix::process::Signal::TERM);
    assert_eq!(socket.closed().await, 1001);
    assert_eq!(idle.closed().await, 1001);
    assert!(house.server.wait(Duration::from_secs(20)));
}

#[tokio::test]
async fn garbage_harms_nobody() {
    let house = House::new().await;
    let mut watch = house.socket().await;
    watch.register("profiles.*.*").await;
    let mut socket = house.socket().await;
    for n in 0..200_u32 {
        let garbage: String = (0..n)
            .map(|m| char::from_u32((n * 7919 + m * 104_729) % 0xd7ff).unwrap_or('x'))
            .collect();
        for text in [
            garbage.clone(),
            format!("register {garbage}"),
            format!("register a.{garbage}.b since={garbage}"),
        ] {
            socket.say(&text).await;
            let event = socket.event().await;
            assert_eq!(event["Type"], "websocket", "{event}");
        }
    }
    let mut http = house.http().await;
    for path in [
        "/%ff/%00",
        "/profiles/%ff",
        "/profiles/..%2f..",
        "/profiles?%ff=%ff&sort=%00",
        "/profiles/x/params/%ff",
    ] {
        let (status, _) = http.ask("GET", path, &Value::Null).await;
        assert!((200..500).contains(&status), "{path}: {status}");
    }
    let deep = "[".repeat(500_000);
    let json = "Content-Type: application/json\r\n";
    for (method, path) in [
        ("POST", "/profiles"),
        ("POST", "/events"),
        ("PATCH", "/profiles/x"),
    ] {
        let answer = http.send(method, path, json, &deep).await;
        assert!(
            (400..500).contains(&answer.status),
            "{method} {path}: {}",
            answer.status
        );
    }
    http.profile("rack7").await;
    assert_eq!(watch.hear().await, "profiles.create.rack7");
}

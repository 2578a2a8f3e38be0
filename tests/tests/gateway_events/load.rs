//! Many events, many sockets, and those who do not read.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use storage_testkit::raw::{in_time, metric};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{House, basic, bearer, name};
use crate::login::good_token;

#[tokio::test]
async fn item_20_ten_thousand_updates_arrive_in_order_beside_a_reader_that_stalls() {
    const UPDATES: u64 = 10_000;
    const OBJECTS: u64 = 10;
    let house = House::new().await;
    for n in 0..OBJECTS {
        house.http().await.profile(&format!("p{n}")).await;
    }
    let mut stalled = house.socket().await;
    stalled.register("profiles.*.*").await;
    let mut reader = house.socket().await;
    reader.register("profiles.*.*").await;
    let write = async |object: u64| {
        let mut http = house.http().await;
        let filling = "x".repeat(1_000);
        for n in 0..UPDATES / OBJECTS {
            let name = format!("p{object}");
            let profile = json!({ "Name": name, "N": n, "Filling": filling });
            http.good("PUT", &format!("/profiles/{name}"), &profile)
                .await;
        }
    };
    let hear = async |socket: &mut crate::client::Socket| {
        let mut next = vec![0; usize::try_from(OBJECTS).unwrap()];
        for _ in 0..UPDATES {
            let event = socket.event().await;
            let object: usize = event["Key"].as_str().unwrap()[1..].parse().unwrap();
            assert_eq!(event["Object"]["N"], next[object], "{}", name(&event));
            next[object] += 1;
        }
    };
    tokio::join!(join_all((0..OBJECTS).map(write)), hear(&mut reader));
    // The other reads now: nothing was dropped.
    hear(&mut stalled).await;
}

#[tokio::test]
async fn item_21_the_events_of_a_request_are_there_within_a_second_of_its_answer() {
    let house = House::new().await;
    let mut http = house.http().await;
    http.profile("global").await;
    let mut socket = house.socket().await;
    socket.register("*.*.*").await;
    for n in 0..50 {
        http.good("POST", "/profiles/global/params/n", &json!(n))
            .await;
        let answered = Instant::now();
        let event = socket.event().await;
        assert!(
            answered.elapsed() < Duration::from_secs(1),
            "{:?}",
            answered.elapsed()
        );
        assert_eq!(event["Object"]["Params"]["n"], n);
    }
}

#[tokio::test]
async fn item_24_two_thousand_sockets_get_one_frame_each_for_their_keys() {
    const SOCKETS: usize = 2_000;
    let config = "[limits]\nsessions_per_principal_max = 4000\nhandshakes_max = 4000\nhttp_connections_max = 4000";
    let house = House::configured(config, &[]).await;
    // Passwords are checked slowly on purpose.
    let credential = bearer(&good_token(&house).await);
    let mut sockets = Vec::new();
    for batch in 0..SOCKETS / 100 {
        let open = async |n: usize| {
            let socket = house.socket_as("", &credential).await;
            let mut socket = socket.unwrap();
            socket.register(&format!("machines.*.{n}")).await;
            socket
        };
        let opened = (0..100).map(|n| open(batch * 100 + n));
        sockets.extend(join_all(opened).await);
    }
    assert_eq!(
        metric(&house.server, "storage_events_registrations").await,
        2_000.0
    );
    let mut http = house.http().await;
    for n in 0..SOCKETS {
        let machine = json!({ "Uuid": n.to_string() });
        http.good("POST", "/machines", &machine).await;
    }
    for (n, socket) in sockets.iter_mut().enumerate() {
        assert_eq!(socket.hear().await, format!("machines.create.{n}"));
        // One, and nothing behind it but what is asked for now.
        socket.register("x.*.*").await;
    }
    assert_eq!(
        metric(&house.server, "storage_events_sent_total").await,
        2_000.0
    );
}

#[tokio::test]
async fn a_reader_that_stalls_behind_large_events_is_told_all_of_them_later() {
    let house = House::new().await;
    let mut http = house.http().await;
    http.profile("global").await;
    let mut stalled = house.socket().await;
    stalled.register("profiles.*.*").await;
    let filling = "x".repeat(900 << 10);
    // Far more than its outbox and the system's buffers hold.
    for n in 0..60 {
        let profile = json!({ "Name": "global", "N": n, "Filling": filling });
        http.good("PUT", "/profiles/global", &profile).await;
    }
    for n in 0..60 {
        let event = in_time("an event", stalled.event()).await;
        assert_eq!(event["Object"]["N"], n);
        let original = if n == 0 { Value::Null } else { json!(n - 1) };
        assert_eq!(event["Original"]["N"], original);
    }
}

#[tokio::test]
async fn lists_that_one_peer_does_not_take_keep_no_other_from_its_list() {
    let house = House::new().await;
    house.add_user("ann", "a-password-of-hers").await;
    let mut http = house.http().await;
    let filling = "x".repeat(500 << 10);
    for n in 0..30 {
        let profile = json!({ "Name": format!("p{n}"), "Filling": filling });
        http.good("POST", "/profiles", &profile).await;
    }
    // More than there are places for, each larger than what the systems of both sides buffer.
    let request = format!(
        "GET /api/v3/profiles HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n",
        http.credential
    );
    let mut untaken = Vec::new();
    for _ in 0..20 {
        let mut stream = house.tcp().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        untaken.push(stream);
    }
    // These have begun, and so they hold their places.
    for stream in &mut untaken[..4] {
        in_time("an answer begins", stream.read_exact(&mut [0; 12]))
            .await
            .unwrap();
    }
    let ann = basic("ann", "a-password-of-hers");
    let mut others = house.http_as(&ann).await;
    let (status, list) = others.get("/profiles?limit=2").await;
    assert_eq!((status, list.as_array().map(Vec::len)), (200, Some(2)));
    // Its own next one has to wait, and is told why.
    let (status, why) = http.get("/profiles").await;
    assert_eq!(status, 503, "{why}");
    assert!(
        why["Messages"][0].as_str().unwrap().contains("lists_max"),
        "{why}"
    );
    drop(untaken);
    let (status, _) = http.get("/profiles?limit=2").await;
    assert_eq!(status, 200);
}

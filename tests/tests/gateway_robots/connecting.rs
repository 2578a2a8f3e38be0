//! Robots connect, are lost, and come again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::house::{House, Robot, later_metadata, metadata, notification, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_01_a_websocket_is_at_every_path_that_nothing_else_is_at() {
    let house = House::open().await;
    for (n, path) in ["/", "/api/robots/connect", "/any/other", "/x?a=b"]
        .into_iter()
        .enumerate()
    {
        let robot = Robot::connect(house.address(), path).await;
        let address = format!("A{n}");
        robot.say(&metadata("LAB", &address)).await;
        until("it is registered", async || {
            house.robot(&address).await["connected"] == true
        })
        .await;
    }
    let (status, body) = house.ask("GET", "/any/other").await;
    assert_eq!(status, 404, "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_02_metadata_register_a_robot_in_both_dialects_without_an_answer() {
    let house = House::open().await;
    let object = r#"{"robotName":"LAB-PC-3","robotAddress":"AA","userID":4}"#;
    let text = serde_json::to_string(&object.replace("AA", "BB")).unwrap();
    let frames = [
        format!(r#"{{"event":"client robot metaData","value":{object}}}"#),
        format!(r#"{{"event":"client robot metaData","value":{text}}}"#),
        later_metadata("LAB-PC-3", "CC"),
    ];
    let mut robots = Vec::new();
    for (frame, address) in frames.iter().zip(["AA", "BB", "CC"]) {
        let robot = Robot::connect(house.address(), "/").await;
        robot.say(frame).await;
        until("it is connected", async || {
            house.robot(address).await["connected"] == true
        })
        .await;
        robots.push(robot);
    }
    let listed = house.robot("AA").await;
    assert_eq!(listed["robotName"], "LAB-PC-3");
    assert_eq!(listed["userID"], 4);
    assert_eq!(house.robot("CC").await["userID"], "8c1f");
    assert!(listed["id"].is_u64() && listed["createdAt"].is_string());
    let by_id = house
        .get(&format!("/api/robots/get/id/{}", listed["id"]))
        .await;
    assert_eq!(by_id["Robot"], listed);
    assert_eq!(
        house.get("/api/robots/get/address/AA").await["Robot"],
        listed
    );
    assert_eq!(
        house.get("/api/robots/get/address/XX").await["Robot"],
        json!([])
    );
    robots[0].has_heard_nothing(&house, "AA").await;
    robots[1].has_heard_nothing(&house, "BB").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_03_a_robot_that_comes_again_is_the_same_one() {
    let house = House::open().await;
    let robot = house.connected("LAB", "AA").await;
    let before = house.robot("AA").await;
    let began = std::time::Instant::now();
    robot.close().await;
    until("it is disconnected", async || {
        house.robot("AA").await["connected"] == false
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert!(house.robot("AA").await["socketID"].is_null());
    let _again = house.connected("LAB", "AA").await;
    let after = house.robot("AA").await;
    assert_eq!(after["id"], before["id"]);
    assert_eq!(after["createdAt"], before["createdAt"]);
    assert_ne!(after["socketID"], before["socketID"]);
    let counters = &house.get("/api/robots/get/").await["counters"];
    assert_eq!(
        *counters,
        json!({ "robots": 1, "connected": 1, "disconnectedRobots": 0 })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_04_robots_are_pinged_and_one_that_does_not_answer_is_disconnected() {
    let house = House::with(|config| {
        config.robots.ping = Duration::from_millis(100);
        // Long enough for those that answer, on a machine that is busy.
        config.robots.silence = Duration::from_secs(3);
    })
    .await;
    let one = house.connected("ONE", "AA").await;
    let other = Robot::connect(house.address(), "/").await;
    other.say(&later_metadata("OTHER", "BB")).await;
    for robot in [&one, &other] {
        let before = robot.pings.load(Ordering::SeqCst);
        until("pings arrive", async || {
            robot.pings.load(Ordering::SeqCst) >= before + 3
        })
        .await;
    }
    // One that reads nothing, so answers no ping.
    let stream = TcpStream::connect(house.address()).await.unwrap();
    let uri = format!("ws://{}/", house.address());
    let (mut deaf, _) = client_async(uri, stream).await.unwrap();
    deaf.send(Message::text(metadata("DEAF", "CC")))
        .await
        .unwrap();
    until("it is connected", async || {
        house.robot("CC").await["connected"] == true
    })
    .await;
    until("it is disconnected", async || {
        house.robot("CC").await["connected"] == false
    })
    .await;
    // Those that answer stay.
    assert_eq!(house.robot("AA").await["connected"], true);
    assert_eq!(house.robot("BB").await["connected"], true);
    // As shipped, a ping comes within 10 s, and who answers none is gone within 30 s.
    let shipped = storage_server::config::RobotsConfig::default();
    assert!(shipped.ping < Duration::from_secs(10) && shipped.silence < Duration::from_secs(30));
    assert!(shipped.silence >= 2 * shipped.ping);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_23_the_newest_connection_of_an_address_has_the_robot() {
    let house = House::open().await;
    let old = house.connected("LAB", "AA").await;
    let first = house.robot("AA").await["socketID"].clone();
    let new = Robot::connect(house.address(), "/").await;
    new.say(&metadata("LAB", "AA")).await;
    until("the newer one has it", async || {
        house.robot("AA").await["socketID"] != first
    })
    .await;
    new.has_heard_nothing(&house, "AA").await;
    let job = house.trigger("AA", "one", "30-11", "12:00:10").await;
    house.pass(10);
    assert_eq!(new.frame().await, notification("one"));
    house.arrives(job).await;
    old.close().await;
    // It has ended for the server too once it answers the close.
    assert_eq!(old.hear().await, Some(crate::house::Heard::Closed(1000)));
    new.has_heard_nothing(&house, "AA").await;
    assert_eq!(house.robot("AA").await["connected"], true);
}

/// What the published client sends, byte for byte, and when it comes again: every 20 s where it has seen no ping.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_27_the_frames_of_the_published_client_work() {
    let house = House::open().await;
    let frame = r#"{"_event":"client robot metaData","value":{"robotName":"DESKTOP-1","robotAddress":"0A1B2C3D4E5F","uuid":"5b8e6b0e-0000-4000-8000-000000000001"}}"#;
    let mut ids = Vec::new();
    for n in 0..3 {
        let robot = Robot::connect(house.address(), "/api/robots/connect").await;
        robot.say(frame).await;
        until("it is connected", async || {
            house.robot("0A1B2C3D4E5F").await["connected"] == true
        })
        .await;
        ids.push(house.robot("0A1B2C3D4E5F").await["id"].clone());
        robot.say(r#"{"_event":"client robot message","value":{"logType":"INFO","message":"started"}}"#).await;
        let job = house
            .trigger("0A1B2C3D4E5F", &format!("p{n}"), "2026-11-30", "13:00:00")
            .await;
        house.ask("POST", &format!("/api/jobs/force/{job}")).await;
        let sent = robot.frame().await;
        let expected = format!(
            r#"{{"_event":"notification","value":"{{\"package_name\":\"p{n}\",\"path\":\"store/p{n}.std\"}}"}}"#
        );
        assert_eq!(sent, expected);
        robot
            .say(r#"{"_event":"Decline pkg reception","value":""}"#)
            .await;
        until("it waits to be sent again", async || {
            house.status(job).await == "Pending"
        })
        .await;
        house.pass(1);
        assert_eq!(robot.frame().await, expected);
        house.arrives(job).await;
        // It goes without a word.
        drop(robot);
        until("it is disconnected", async || {
            house.robot("0A1B2C3D4E5F").await["connected"] == false
        })
        .await;
        house.pass(20);
    }
    assert_eq!(ids[0], ids[2]);
}

/// A robot may say its metadata at any time. What is on its way to it meanwhile is not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_said_again_on_the_same_socket_double_no_package() {
    let house = House::open().await;
    let stream = TcpStream::connect(house.address()).await.unwrap();
    let (mut robot, _) = client_async(format!("ws://{}/", house.address()), stream)
        .await
        .unwrap();
    // It reads nothing for a while, so that the ping behind the package is not answered.
    let said = |name: &str| Message::text(metadata(name, "AA"));
    robot.send(said("LAB")).await.unwrap();
    until("it is connected", async || {
        house.robot("AA").await["connected"] == true
    })
    .await;
    let job = house.trigger("AA", "one", "31-12", "9:00").await;
    let (status, _) = house.ask("GET", &format!("/jobs/force/{job}")).await;
    assert_eq!(status, 200);
    house.comes_to(job, "Executed").await;
    robot.send(said("LAB-2")).await.unwrap();
    until("it has said so again", async || {
        house.robot("AA").await["robotName"] == "LAB-2"
    })
    .await;
    // One of the new name, behind which a double would not come any more.
    let mark = house.trigger("AA", "mark", "31-12", "9:00").await;
    let (status, _) = house.ask("GET", &format!("/jobs/force/{mark}")).await;
    assert_eq!(status, 200);
    let mut packages = Vec::new();
    while packages.last() != Some(&notification("mark")) {
        let message = storage_testkit::raw::in_time("a frame", robot.next()).await;
        if let Message::Text(text) = message.unwrap().unwrap() {
            packages.push(text.as_str().to_owned());
        }
    }
    assert_eq!(packages, [notification("one"), notification("mark")]);
    assert_eq!(house.job(job).await["attempts"], 1);
}

//! Robots without manners.

use std::time::Duration;

use tokio_tungstenite::tungstenite::Message;

use crate::house::{Heard, House, Robot, later_metadata, metadata, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_21_frames_that_are_none_harm_nobody() {
    let house = House::open().await;
    let good = house.connected("GOOD", "AA").await;
    let bad = Robot::connect(house.address(), "/").await;
    let long = "x".repeat(1 << 20);
    for text in [
        "hello",
        "null",
        "[]",
        "7",
        "{",
        "\"x\"",
        r#"{"event":7}"#,
        r#"{"event":"no such","value":1}"#,
        &long,
    ] {
        bad.say(text).await;
    }
    bad.send(Message::binary(vec![0, 159, 146, 150])).await;
    bad.say(&format!("{}1{}", "[".repeat(30_000), "]".repeat(30_000)))
        .await;
    // It is heard all the same.
    bad.say(&metadata("BAD", "BB")).await;
    until("it is connected", async || {
        house.robot("BB").await["connected"] == true
    })
    .await;
    bad.has_heard_nothing(&house, "BB").await;
    good.has_heard_nothing(&house, "AA").await;
    // A message beyond what is read at all ends the connection, and no other one.
    bad.say(&"x".repeat((2 << 20) + 1)).await;
    assert_eq!(bad.closed().await, 1009);
    good.has_heard_nothing(&house, "AA").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_24_with_too_many_refusals_a_robot_is_blocked_for_a_while() {
    let delay = Duration::from_millis(1);
    let house = House::with(|config| {
        config.robots.refusal_delay = delay;
        config.robots.blocked = Duration::from_secs(600);
    })
    .await;
    let other = house.connected("OTHER", "BB").await;
    let robot = Robot::connect(house.address(), "/").await;
    let bad = r#"{"event":"client robot metaData","value":{"robotAddress":"AA"}}"#;
    let began = std::time::Instant::now();
    for n in 1..=10 {
        robot.say(bad).await;
        assert_eq!(robot.frame().await, "decline metadata reception", "{n}");
    }
    // 0, 1, 2, 4 and so on.
    assert!(began.elapsed() >= 511 * delay, "{:?}", began.elapsed());
    robot.say(bad).await;
    assert_eq!(robot.hear().await, Some(Heard::Closed(1008)));
    let again = Robot::connect(house.address(), "/").await;
    again.say(&metadata("LAB", "AA")).await;
    assert_eq!(again.hear().await, Some(Heard::Closed(1008)));
    assert!(house.robot("AA").await.is_null());
    other.has_heard_nothing(&house, "BB").await;
    house.pass(600);
    let again = house.connected("LAB", "AA").await;
    again.has_heard_nothing(&house, "AA").await;
}

/// As with a client that connects anew after each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_one_robot_count_over_its_connections() {
    let house = House::with(|config| {
        config.robots.refusal_delay = Duration::from_millis(1);
        config.robots.refusals_max = 3;
    })
    .await;
    let bad = r#"{"event":"client robot metaData","value":{"robotAddress":"AA"}}"#;
    let hears = async |frame: &str| {
        let robot = Robot::connect(house.address(), "/").await;
        robot.say(frame).await;
        robot.hear().await
    };
    let refused = Some(Heard::Text("decline metadata reception".to_owned()));
    for _ in 1..=3 {
        assert_eq!(hears(bad).await, refused);
    }
    // Once it is let in they are forgotten.
    drop(house.connected("LAB", "AA").await);
    for _ in 1..=3 {
        assert_eq!(hears(bad).await, refused);
    }
    assert_eq!(hears(bad).await, Some(Heard::Closed(1008)));
    assert_eq!(
        hears(&metadata("LAB", "AA")).await,
        Some(Heard::Closed(1008))
    );
    let _other = house.connected("OTHER", "BB").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_in_the_robots_dialect() {
    let house = House::open().await;
    let robot = Robot::connect(house.address(), "/").await;
    robot
        .say(r#"{"_event":"client robot metaData","value":{"robotName":"x"}}"#)
        .await;
    let refusal = r#"{"_event":"Decline metaData reception","value":" "}"#;
    assert_eq!(robot.frame().await, refusal);
    // It says that it reads JSON, so it learns of what is none.
    robot.say("hello").await;
    assert_eq!(robot.frame().await, refusal);
    robot.say(&later_metadata("x", "AA")).await;
    until("it is connected", async || {
        house.robot("AA").await["connected"] == true
    })
    .await;
}

/// Its pauses are longer than it would be blocked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_do_not_let_refusals_be_forgotten() {
    let house = House::with(|config| {
        config.robots.refusal_delay = Duration::from_millis(1);
        config.robots.refusals_max = 3;
        config.robots.blocked = Duration::from_secs(10);
    })
    .await;
    let robot = Robot::connect(house.address(), "/").await;
    let bad = r#"{"event":"client robot metaData","value":{"robotAddress":"AA"}}"#;
    for _ in 1..=3 {
        robot.say(bad).await;
        assert_eq!(robot.frame().await, "decline metadata reception");
        house.pass(20);
    }
    robot.say(bad).await;
    assert_eq!(robot.hear().await, Some(Heard::Closed(1008)));
    let again = Robot::connect(house.address(), "/").await;
    again.say(&metadata("LAB", "AA")).await;
    assert_eq!(again.hear().await, Some(Heard::Closed(1008)));
}

//! Logs on the disk.

use std::fs;

use crate::house::{House, Robot, metadata, notification, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_19_what_a_robot_says_is_in_its_log_and_what_others_say_is_not() {
    let house = House::open().await;
    let stranger = Robot::connect(house.address(), "/").await;
    stranger
        .say(r#"{"event":"client robot message","value":"of a stranger"}"#)
        .await;
    let robot = house.connected("LAB-PC-3", "AA").await;
    let socket = house.robot("AA").await["socketID"]
        .as_str()
        .unwrap()
        .to_owned();
    robot
        .say(r#"{"event":"client robot message","value":{"state":"done","n":7}}"#)
        .await;
    robot
        .say("{\"event\":\"client robot message\",\"value\":\"two\\nlines\"}")
        .await;
    let path = house.logs().join("ClientLogs/LAB-PC-3");
    let text = || fs::read_to_string(&path).unwrap_or_default();
    until("both are written", async || text().contains("two\\nlines")).await;
    let expected = format!(
        "[Machine-name]: LAB-PC-3\n[Machine Connected from socket-id]: {socket}\n[Message-Content]: {{\"state\":\"done\",\"n\":7}}\n\
         [Message Received Date]: 2026-11-30T12:00:00.000Z\n\n"
    );
    assert!(text().starts_with(&expected), "{}", text());
    let files: Vec<_> = fs::read_dir(house.logs().join("ClientLogs"))
        .unwrap()
        .collect();
    assert_eq!(files.len(), 1);
    assert!(!text().contains("stranger"));
    let shown = house.get("/robots/LAB-PC-3").await;
    assert_eq!(shown["robotLogs"], text());
    assert_eq!(shown["robot"]["robotAddress"], "AA");
    assert_eq!(
        house.get("/robots/nobody").await["alert"],
        "Robot doesn't exist"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_20_each_day_has_a_log_of_its_own() {
    let house = House::open().await;
    let robot = house.connected("LAB", "AA").await;
    let day = |day: &str| {
        fs::read_to_string(house.logs().join(format!("ServerLogs/{day}.txt"))).unwrap_or_default()
    };
    until("the connection is noted", async || {
        day("2026-11-30").contains("robot LAB (AA): registered")
    })
    .await;
    house.trigger("AA", "one", "1-12", "0:00:01").await;
    until("the trigger is noted", async || {
        day("2026-11-30").contains("package one for robot LAB")
    })
    .await;
    assert!(day("2026-12-01").is_empty());
    house.pass(12 * 3600 + 1);
    assert_eq!(robot.frame().await, notification("one"));
    until("the next day has its own", async || {
        day("2026-12-01").contains("package one to robot LAB")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_22_a_name_makes_no_file_elsewhere() {
    let house = House::open().await;
    let robot = Robot::connect(house.address(), "/").await;
    robot.say(&metadata("../../x", "AA")).await;
    until("it is connected", async || {
        house.robot("AA").await["connected"] == true
    })
    .await;
    robot
        .say(r#"{"event":"client robot message","value":"hello"}"#)
        .await;
    let folder = house.logs().join("ClientLogs");
    until("it is written", async || {
        fs::read_dir(&folder).is_ok_and(|mut files| files.next().is_some())
    })
    .await;
    let names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert_eq!(names, ["%2E.%2F..%2Fx"]);
    let outside: Vec<_> = fs::read_dir(house.folder())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert_eq!(outside, ["data"]);
    assert!(!house.folder().join("data/x").exists());
}

//! What one connection, and all of them, may have the server remember.

use futures_util::future::join_all;

use crate::house::{Heard, House, Robot, metadata, until};

const REFUSED: &str = "decline metadata reception";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_does_not_fill_the_table_of_robots() {
    let house = House::open().await;
    let robot = Robot::connect(house.address(), "/").await;
    let known = async |address: &str| house.robot(address).await["connected"] == true;
    for n in 1..=16 {
        let address = format!("A{n}");
        robot.say(&metadata("LAB", &address)).await;
        until("it is connected", async || known(&address).await).await;
    }
    robot.say(&metadata("LAB", "A17")).await;
    assert_eq!(robot.frame().await, REFUSED);
    assert!(house.robot("A17").await.is_null());
    // One that is known is taken all the same, and another connection may make more known.
    robot.say(&metadata("LAB", "A3")).await;
    until("it is connected", async || known("A3").await).await;
    let other = house.connected("LAB", "A17").await;
    other.has_heard_nothing(&house, "A17").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_robots_are_remembered_than_there_may_be() {
    const MAX: usize = 5;
    let house = House::with(|config| config.robots.robots_max = MAX as u64).await;
    let registering = (0..4 * MAX).map(async |n| {
        let robot = Robot::connect(house.address(), "/").await;
        robot.say(&metadata("LAB", &format!("A{n}"))).await;
        robot
    });
    let robots = join_all(registering).await;
    let all = async || house.get("/api/robots/get/all").await["Robots"].clone();
    until("as many are known as may be", async || {
        all().await.as_array().unwrap().len() == MAX
    })
    .await;
    let addresses: Vec<_> = all().await.as_array().unwrap().to_vec();
    let is_known = |n: usize| {
        let address = format!("A{n}");
        addresses
            .iter()
            .any(|robot| robot["robotAddress"] == address.as_str())
    };
    for (n, robot) in robots.iter().enumerate() {
        if !is_known(n) {
            assert_eq!(robot.hear().await, Some(Heard::Text(REFUSED.to_owned())));
        }
    }
    assert_eq!(all().await.as_array().unwrap().len(), MAX);
    // Where one is forgotten, there is room for one.
    let first = addresses[0]["id"].clone();
    let path = format!("/api/robots/delete/{first}");
    assert_eq!(house.ask("DELETE", &path).await.0, 200);
    let late = house.connected("LATE", "B").await;
    late.has_heard_nothing(&house, "B").await;
    assert_eq!(all().await.as_array().unwrap().len(), MAX);
}

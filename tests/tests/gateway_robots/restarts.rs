//! Jobs survive restarts of the server.

use std::time::Duration;

use crate::house::{House, notification, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_16_jobs_survive_a_restart_and_can_be_cancelled_before_their_robot_is_back() {
    let mut house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    let kept = house.trigger("AA", "kept", "30-11", "13:00:00").await;
    let cancelled = house.trigger("AA", "cancelled", "30-11", "13:00:00").await;
    let forced = house.trigger("AA", "forced", "30-11", "14:00:00").await;
    house.stop().await;
    assert_eq!(robot.closed().await, 1001);
    house.start().await;
    until("nobody is connected", async || {
        house.robot("AA").await["connected"] == false
    })
    .await;
    assert_eq!(
        house
            .ask("GET", &format!("/jobs/cancel/{cancelled}"))
            .await
            .0,
        200
    );
    assert_eq!(
        house.ask("GET", &format!("/jobs/force/{forced}")).await.0,
        200
    );
    let robot = house.connected("ONE", "AA").await;
    assert_eq!(robot.frame().await, notification("forced"));
    house.arrives(forced).await;
    house.pass(3600);
    assert_eq!(robot.frame().await, notification("kept"));
    house.arrives(kept).await;
    house.pass(3600);
    robot.has_heard_nothing(&house, "AA").await;
    assert_eq!(house.status(cancelled).await, "Cancelled");
    // Numbers go on.
    assert!(house.trigger("AA", "next", "30-11", "23:00").await > forced);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_17_what_came_due_while_the_server_was_down_is_delivered_or_has_failed() {
    let mut house = House::with(|config| config.robots.window = Duration::from_secs(600)).await;
    let _one = house.connected("ONE", "AA").await;
    let _two = house.connected("TWO", "BB").await;
    let delivered = house.trigger("AA", "delivered", "30-11", "13:00:00").await;
    let failed = house.trigger("BB", "failed", "30-11", "13:00:00").await;
    house.stop().await;
    house.pass(2 * 3600);
    house.start().await;
    let robot = house.connected("ONE", "AA").await;
    assert_eq!(robot.frame().await, notification("delivered"));
    house.arrives(delivered).await;
    until("it waits", async || {
        crate::jobs::is_ready(&house, failed).await
    })
    .await;
    house.pass(600);
    house.comes_to(failed, "Failed").await;
}

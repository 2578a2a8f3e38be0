//! What is done with jobs, and what becomes of them.

use std::time::Duration;

use serde_json::json;
use storage_protocol::deliveries::{Deliveries, JobId, NewJob, Recipient};

use crate::house::{House, NOON, Robot, later_metadata, notification, until};

const CANCEL_ALERT: &str = r#"{"Alert":"Failed to cancel job"}"#;
const FORCE_ALERT: &str = r#"{"Alert":"Failed to force job"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_11_a_job_is_executed_once() {
    let house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    let job = house.trigger("AA", "one", "30-11", "12:00:05").await;
    assert_eq!(house.status(job).await, "Pending");
    house.pass(5);
    assert_eq!(robot.frame().await, notification("one"));
    assert_eq!(house.status(job).await, "Executed");
    house.arrives(job).await;
    assert!(house.job(job).await["deliveredAt"].is_string());
    // Neither later, nor in a year, nor to the robot's next connection.
    house.pass(3600);
    house.pass(366 * 24 * 3600);
    robot.has_heard_nothing(&house, "AA").await;
    robot.close().await;
    until("it is disconnected", async || {
        house.robot("AA").await["connected"] == false
    })
    .await;
    let robot = house.connected("ONE", "AA").await;
    robot.has_heard_nothing(&house, "AA").await;
    assert_eq!(house.job(job).await["attempts"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_12_a_job_that_is_cancelled_does_not_come() {
    let house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    let job = house.trigger("AA", "one", "30-11", "12:00:05").await;
    let done = format!(r#"{{"Job":"{job}","Status":"Cancelled Job successfully"}}"#);
    assert_eq!(
        house.ask("GET", &format!("/jobs/cancel/{job}/")).await,
        (200, done)
    );
    assert_eq!(house.status(job).await, "Cancelled");
    house.pass(10);
    robot.has_heard_nothing(&house, "AA").await;
    for path in [
        format!("/jobs/cancel/{job}/"),
        "/jobs/cancel/999999".to_owned(),
        "/jobs/cancel/x%20y".to_owned(),
    ] {
        assert_eq!(
            house.ask("GET", &path).await,
            (500, CANCEL_ALERT.to_owned()),
            "{path}"
        );
    }
    // One that was executed cannot be cancelled either.
    let job = house.trigger("AA", "two", "30-11", "12:00:15").await;
    house.pass(5);
    assert_eq!(robot.frame().await, notification("two"));
    assert_eq!(
        house.ask("GET", &format!("/jobs/cancel/{job}")).await,
        (500, CANCEL_ALERT.to_owned())
    );
    let accept = "Accept: application/problem+json\r\n";
    let answer = house
        .send("POST", &format!("/jobs/cancel/{job}"), accept, "")
        .await;
    assert_eq!(answer.status, 409);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_13_a_job_that_is_forced_comes_now_and_not_again() {
    let house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    let job = house.trigger("AA", "one", "30-11", "12:00:05").await;
    let done = format!(r#"{{"Job":"{job}","Status":"Forced to be executed successfully"}}"#);
    assert_eq!(
        house.ask("GET", &format!("/jobs/force/{job}/")).await,
        (200, done)
    );
    assert_eq!(robot.frame().await, notification("one"));
    assert_eq!(house.status(job).await, "Executed");
    house.arrives(job).await;
    house.pass(10);
    robot.has_heard_nothing(&house, "AA").await;
    for id in [job, 999_999] {
        assert_eq!(
            house.ask("GET", &format!("/jobs/force/{id}")).await,
            (500, FORCE_ALERT.to_owned())
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_14_a_slash_an_alias_and_a_post_are_the_same() {
    let house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    for prefix in ["/jobs", "/api/jobs"] {
        for slash in ["", "/"] {
            for method in ["GET", "POST"] {
                let job = house.trigger("AA", "one", "31-12", "9:00").await;
                let path = format!("{prefix}/cancel/{job}{slash}");
                assert_eq!(house.ask(method, &path).await.0, 200, "{method} {path}");
                assert_eq!(house.status(job).await, "Cancelled");
                let job = house.trigger("AA", "two", "31-12", "9:00").await;
                let path = format!("{prefix}/force/{job}{slash}");
                assert_eq!(house.ask(method, &path).await.0, 200, "{method} {path}");
                assert_eq!(robot.frame().await, notification("two"));
            }
        }
    }
    assert_eq!(house.ask("DELETE", "/jobs/cancel/1").await.0, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_15_a_job_whose_robot_is_absent_waits_and_then_has_failed() {
    let house = House::with(|config| config.robots.window = Duration::from_secs(60)).await;
    let robot = house.connected("ONE", "AA").await;
    robot.close().await;
    until("it is disconnected", async || {
        house.robot("AA").await["connected"] == false
    })
    .await;
    let late = house.trigger("AA", "late", "30-11", "12:00:05").await;
    house.pass(10);
    assert_eq!(house.status(late).await, "Pending");
    let robot = house.connected("ONE", "AA").await;
    assert_eq!(robot.frame().await, notification("late"));
    house.arrives(late).await;
    robot.close().await;
    until("it is disconnected", async || {
        house.robot("AA").await["connected"] == false
    })
    .await;
    let never = house.trigger("AA", "never", "30-11", "12:00:15").await;
    house.pass(5);
    until("it waits", async || is_ready(&house, never).await).await;
    house.pass(60);
    house.comes_to(never, "Failed").await;
    let reason = house.job(never).await["reason"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(reason.contains("not there for 60000 ms"), "{reason}");
    let listed = house.get("/api/jobs/get/").await;
    assert_eq!(
        listed["counters"],
        json!({ "jobs": 2, "pending": 0, "executed": 1, "failed": 1, "cancelled": 0 })
    );
    let robot = house.connected("ONE", "AA").await;
    robot.has_heard_nothing(&house, "AA").await;
}

/// Whether a job is due, and waits for its robot.
pub(crate) async fn is_ready(house: &House, job: u64) -> bool {
    let id = JobId::new(&format!("{job:010}")).unwrap();
    let stored = Deliveries::new(house.storage())
        .get(&id)
        .await
        .unwrap()
        .unwrap();
    stored.job.state.kind() == storage_protocol::deliveries::StateKind::Ready
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_18_a_package_that_is_declined_is_sent_again_five_times_at_most() {
    let house = House::open().await;
    let plain = house.connected("ONE", "AA").await;
    let later = Robot::connect(house.address(), "/").await;
    later.say(&later_metadata("OTHER", "BB")).await;
    until("it is connected", async || {
        house.robot("BB").await["connected"] == true
    })
    .await;
    // By its name: the first of two.
    let one = house.trigger("AA", "one", "30-11", "12:00:01").await;
    let two = house.trigger("AA", "two", "30-11", "12:00:02").await;
    house.pass(1);
    assert_eq!(plain.frame().await, notification("one"));
    house.pass(1);
    assert_eq!(plain.frame().await, notification("two"));
    plain
        .say(r#"{"event":"decline pkg reception","value":"one"}"#)
        .await;
    until("it is declined", async || {
        house.status(one).await == "Pending"
    })
    .await;
    house.pass(1);
    assert_eq!(plain.frame().await, notification("one"));
    // Without a name: the last one, which is the first of the two now.
    plain.say(r#"{"event":"decline pkg reception"}"#).await;
    until("it is declined", async || {
        house.status(one).await == "Pending"
    })
    .await;
    house.pass(2);
    assert_eq!(plain.frame().await, notification("one"));
    plain
        .say(r#"{"event":"decline pkg reception","value":"two"}"#)
        .await;
    until("it is declined", async || {
        house.status(two).await == "Pending"
    })
    .await;
    house.pass(1);
    assert_eq!(plain.frame().await, notification("two"));
    // What is not confirmed is sent again when its time is over, as it is here soon.
    until("both are confirmed", async || {
        house.job(one).await["confirmed"] == true && house.job(two).await["confirmed"] == true
    })
    .await;
    // A name that it was not sent, and one of nobody.
    plain
        .say(r#"{"event":"decline pkg reception","value":"three"}"#)
        .await;
    let job = house.trigger("BB", "last", "30-11", "12:00:10").await;
    house.pass(6);
    let first = later.frame().await;
    for n in 1..=5 {
        later
            .say(r#"{"_event":"Decline pkg reception","value":""}"#)
            .await;
        until("it is declined", async || {
            house.status(job).await == "Pending"
        })
        .await;
        house.pass(60);
        assert_eq!(later.frame().await, first, "{n}");
    }
    later
        .say(r#"{"_event":"Decline pkg reception","value":""}"#)
        .await;
    house.comes_to(job, "Failed").await;
    assert_eq!(
        house.job(job).await["reason"],
        "declined by the robot (attempt 6 of 6)"
    );
    house.pass(3600);
    plain.has_heard_nothing(&house, "AA").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_have_parts_and_what_is_deleted_is_gone() {
    let house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    let other = house.connected("OTHER", "BB").await;
    let mut jobs = Vec::new();
    for n in 0..5 {
        jobs.push(house.trigger("AA", &format!("p{n}"), "31-12", "9:00").await);
    }
    let one = house.trigger("BB", "p0", "31-12", "9:00").await;
    let ids = |list: &serde_json::Value| -> Vec<u64> {
        let jobs = list["Jobs"].as_array().unwrap();
        jobs.iter().map(|job| job["id"].as_u64().unwrap()).collect()
    };
    let list = house.get("/api/jobs/get/all?limit=2").await;
    assert_eq!(ids(&list), jobs[..2]);
    let list = house
        .get(&format!("/api/jobs/get/all/?after={}&limit=3", jobs[1]))
        .await;
    assert_eq!(ids(&list), jobs[2..]);
    let number = house.robot("BB").await["id"].clone();
    assert_eq!(
        ids(&house.get(&format!("/api/jobs/get/robot/{number}")).await),
        [one]
    );
    assert_eq!(
        house.get("/api/jobs/get/id/999999").await,
        json!({ "Job": [] })
    );
    assert_eq!(house.get("/api/home").await["packages"], 5);
    // The package of a job is there as long as the job is open.
    let storage = house.storage();
    let package = format!("deliveries/with/{:010}/p0_{}", jobs[0], jobs[0]);
    let is_there = async || {
        use storage_protocol::StorageExt;
        storage
            .get_one(package.clone().into())
            .await
            .unwrap()
            .is_some()
    };
    assert!(is_there().await);
    let gone = format!(r#"{{"jobID":"{}","status":"Deleted"}}"#, jobs[0]);
    assert_eq!(
        house
            .ask("DELETE", &format!("/api/jobs/delete/{}", jobs[0]))
            .await,
        (200, gone)
    );
    assert!(!is_there().await);
    assert_eq!(
        house.get(&format!("/api/jobs/get/id/{}", jobs[0])).await,
        json!({ "Job": [] })
    );
    house.pass(40 * 24 * 3600);
    for n in 1..5 {
        assert_eq!(robot.frame().await, notification(&format!("p{n}")));
    }
    let (status, _) = house
        .ask("DELETE", &format!("/api/robots/delete/{number}"))
        .await;
    assert_eq!(status, 200);
    assert_eq!(other.closed().await, 1000);
    assert!(house.robot("BB").await.is_null());
}

/// Native programs schedule for robots, and receive what is scheduled here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_native_programs_are_jobs_like_all_others() {
    let house = House::open().await;
    let robot = house.connected("ONE", "0A:1B").await;
    let deliveries = Deliveries::new(house.storage());
    let to = Recipient::new("0A:1B").unwrap();
    let good = NewJob::new(
        to.clone(),
        NOON.after(Duration::from_secs(5)),
        r#"{"package_name":"n","path":"store/n.std"}"#,
    );
    deliveries
        .schedule(&NewJob {
            id: Some("nightly".parse().unwrap()),
            ..good
        })
        .await
        .unwrap();
    let bad = NewJob::new(to, NOON, "hello");
    let (bad, _) = deliveries.schedule(&bad).await.unwrap();
    house.pass(5);
    assert_eq!(robot.frame().await, notification("n"));
    let listed = house.get("/api/jobs/get/id/nightly").await;
    assert_eq!(listed["Job"]["packageName"], "n");
    until("what is no package has failed", async || {
        let stored = deliveries.get(&bad).await.unwrap().unwrap();
        matches!(
            stored.job.state,
            storage_protocol::deliveries::JobState::Failed { .. }
        )
    })
    .await;
}

/// The clock is put years ahead, as on a machine whose battery is empty, and back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recurring_job_outlives_a_clock_that_was_ahead() {
    let house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    let deliveries = Deliveries::new(house.storage());
    let new = NewJob {
        recurrence: Some("every 10s".to_owned()),
        ..NewJob::new(
            Recipient::new("AA").unwrap(),
            NOON.after(Duration::from_secs(10)),
            r#"{"package_name":"n","path":"store/n.std"}"#,
        )
    };
    let (series, _) = deliveries.schedule(&new).await.unwrap();
    let years = Duration::from_secs(7 * 366 * 24 * 3600);
    for time in [Duration::from_secs(10), years] {
        house.clock.set(NOON.after(time));
        assert_eq!(robot.frame().await, notification("n"));
    }
    house.clock.set(NOON.after(Duration::from_secs(25)));
    until("it is due soon again", async || {
        let stored = deliveries.get(&series).await.unwrap().unwrap();
        stored.job.due == NOON.after(Duration::from_secs(30))
    })
    .await;
    house.pass(5);
    assert_eq!(robot.frame().await, notification("n"));
}

//! Jobs are triggered, and come at their time.

use serde_json::json;

use crate::house::{
    ALERT_MISSING, ALERT_OTHER, House, Robot, later_metadata, notification, trigger, until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_05_a_package_comes_at_its_time_to_its_robot_alone() {
    let house = House::open().await;
    let one = house.connected("ONE", "AA").await;
    let other = house.connected("OTHER", "BB").await;
    let body = trigger("AA", "invoice-7", "30-11", "12:00:03");
    let (status, text) = house.post("/pkg", &body).await;
    assert_eq!(
        (status, text.as_str()),
        (200, "Server sent package to scheduler")
    );
    one.has_heard_nothing(&house, "AA").await;
    house.pass(2);
    one.has_heard_nothing(&house, "AA").await;
    house.pass(1);
    let began = std::time::Instant::now();
    assert_eq!(one.frame().await, notification("invoice-7"));
    assert!(began.elapsed().as_secs() < 1, "{:?}", began.elapsed());
    other.has_heard_nothing(&house, "BB").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_06_a_notification_is_an_object_for_one_dialect_and_a_text_for_the_other() {
    let house = House::open().await;
    let one = house.connected("ONE", "AA").await;
    let other = Robot::connect(house.address(), "/").await;
    other.say(&later_metadata("OTHER", "BB")).await;
    until("it is connected", async || {
        house.robot("BB").await["connected"] == true
    })
    .await;
    for address in ["AA", "BB"] {
        house
            .trigger(address, "invoice-7", "30-11", "12:00:01")
            .await;
    }
    house.pass(1);
    assert_eq!(
        one.frame().await,
        r#"{"event":"notification","value":{"package_name":"invoice-7","path":"store/invoice-7.std"}}"#
    );
    assert_eq!(
        other.frame().await,
        r#"{"_event":"notification","value":"{\"package_name\":\"invoice-7\",\"path\":\"store/invoice-7.std\"}"}"#
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_07_dates_with_a_year_work_and_so_does_every_weekday() {
    let house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    // It is Monday.
    let days = [
        "2026-12-01",
        "2-12",
        "2026-12-03",
        "4-12",
        "5-12-2026",
        "2026-12-06",
        "7-12",
    ];
    let mut jobs = Vec::new();
    for (n, date) in days.iter().enumerate() {
        let job = house.trigger("AA", &format!("p{n}"), date, "9:00").await;
        let expected = format!("2026-12-0{}T09:00:00.000Z", n + 1);
        assert_eq!(house.job(job).await["due"], expected);
        jobs.push(job);
    }
    house.pass(21 * 3600);
    for (n, job) in jobs.into_iter().enumerate() {
        assert_eq!(robot.frame().await, notification(&format!("p{n}")));
        house.arrives(job).await;
        house.pass(24 * 3600);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_08_a_trigger_that_lacks_something_is_an_alert_and_no_job() {
    let house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    let good = trigger("AA", "invoice-7", "30-11", "12:00:05");
    for (object, fields) in [
        ("Package", ["package_name", "path"]),
        ("Robot", ["robot_name", "robot_address"]),
        ("Schedule", ["date", "time"]),
    ] {
        for field in fields {
            let mut body = good.clone();
            body[object][field] = json!("");
            let answer = house.post("/pkg", &body).await;
            assert_eq!(answer, (200, ALERT_MISSING.to_owned()), "{field}");
            body[object].as_object_mut().unwrap().remove(field);
            let answer = house.post("/api/robots/package", &body).await;
            assert_eq!(answer, (200, ALERT_MISSING.to_owned()), "{field}");
        }
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(object);
        assert_eq!(
            house.post("/pkg", &body).await,
            (200, ALERT_OTHER.to_owned()),
            "{object}"
        );
    }
    assert_eq!(house.get("/api/jobs/get/all").await, json!({ "Jobs": [] }));
    house.pass(10);
    robot.has_heard_nothing(&house, "AA").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_09_a_robot_that_nobody_knows_is_an_alert() {
    let house = House::open().await;
    let body = trigger("XX", "invoice-7", "30-11", "12:00:05");
    assert_eq!(
        house.post("/pkg", &body).await,
        (200, ALERT_OTHER.to_owned())
    );
    // Who asks for it gets the status, and the reason.
    let accept = "Accept: application/problem+json\r\n";
    let answer = house.send("POST", "/pkg", accept, &body.to_string()).await;
    assert_eq!(answer.status, 404);
    assert!(
        answer.text().contains("no robot has the address XX"),
        "{}",
        answer.text()
    );
    assert_eq!(house.get("/api/jobs/get/all").await, json!({ "Jobs": [] }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_10_dates_that_there_are_not_are_an_alert_and_no_job() {
    let house = House::open().await;
    let _robot = house.connected("ONE", "AA").await;
    for (date, time) in [
        ("31-2", "9:00:00"),
        ("15-13", "9:00:00"),
        ("15-7", "25:00:00"),
        ("abc", "9:00:00"),
        ("15-7", "abc"),
        ("undefined-7", "9:00:00"),
        ("2020-01-01", "9:00:00"),
    ] {
        let body = trigger("AA", "invoice-7", date, time);
        assert_eq!(
            house.post("/pkg", &body).await,
            (200, ALERT_OTHER.to_owned()),
            "{date} {time}"
        );
    }
    assert_eq!(house.get("/api/jobs/get/all").await, json!({ "Jobs": [] }));
}

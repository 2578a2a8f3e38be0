//! Who may do what.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use storage_testkit::raw::in_time;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::house::{
    Heard, House, Robot, ask_at, job_id, later_metadata, metadata, notification, trigger, until,
};

const UNAUTHORIZED: &str = r#"{"error":"unauthorized"}"#;

fn basic(user: &str, password: &str) -> String {
    format!(
        "Authorization: Basic {}\r\n",
        STANDARD.encode(format!("{user}:{password}"))
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_26_without_a_credential_nothing_is_done_and_nothing_of_others() {
    let house = House::demo().await;
    let robot = Robot::connect(house.address(), "/").await;
    robot.say(&metadata("LAB", "AA")).await;
    let studio = basic("studio", "st0d10");
    let body = trigger("AA", "one", "31-12", "9:00").to_string();
    let listed = async |header: &str| {
        let answer = house.send("GET", "/api/robots/get/all", header, "").await;
        serde_json::from_slice::<Value>(&answer.body).unwrap()["Robots"]
            .as_array()
            .unwrap()
            .len()
    };
    until("the robot is registered", async || {
        listed(&studio).await == 1
    })
    .await;
    for (method, path) in [
        ("POST", "/pkg"),
        ("POST", "/api/robots/package"),
        ("GET", "/jobs/cancel/1"),
        ("POST", "/jobs/force/1/"),
        ("GET", "/api/jobs/get/all"),
        ("GET", "/api/robots/get/all"),
        ("DELETE", "/api/jobs/delete/1"),
    ] {
        let answer = house.send(method, path, "", &body).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (401, UNAUTHORIZED),
            "{method} {path}"
        );
    }
    // Each of these is a failed login, of which there may not be many.
    for header in ["Authorization: Bearer x\r\n", &basic("studio", "wrong")] {
        let answer = house.send("POST", "/pkg", header, &body).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (401, UNAUTHORIZED),
            "{header}"
        );
    }
    let answer = house.send("POST", "/pkg", &studio, &body).await;
    assert_eq!(answer.text(), "Server sent package to scheduler");
    let job = job_id(&answer);
    // Of a page of another site: a browser adds the password of its own accord.
    let of_page = format!("Origin: https://evil.example\r\n{studio}");
    let path = format!("/jobs/cancel/{job}");
    assert_eq!(house.send("GET", &path, &of_page, "").await.status, 403);
    // Of somebody else.
    let bob = basic("bob@abc.com", "1234");
    for (path, alert) in [
        ("cancel", "Failed to cancel job"),
        ("force", "Failed to force job"),
    ] {
        let answer = house
            .send("GET", &format!("/jobs/{path}/{job}"), &bob, "")
            .await;
        assert_eq!(answer.status, 500);
        assert_eq!(answer.text(), json!({ "Alert": alert }).to_string());
    }
    assert_eq!(
        house
            .send("DELETE", &format!("/api/jobs/delete/{job}"), &bob, "")
            .await
            .status,
        500
    );
    let own = house.send("GET", "/api/jobs/get/", &bob, "").await;
    assert!(own.text().contains(r#""jobs":0"#), "{}", own.text());
    let answer = house
        .send("GET", &format!("/jobs/cancel/{job}"), &studio, "")
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_robot_needs_a_token_where_nobody_is_let_in_without() {
    let house = House::secured().await;
    let robot = Robot::connect(house.address(), "/").await;
    robot.say(&later_metadata("LAB", "AA")).await;
    let refusal = r#"{"_event":"Decline metaData reception","value":" "}"#;
    assert_eq!(robot.frame().await, refusal);
    let with_token = r#"{"_event":"client robot metaData","value":{"robotName":"x","robotAddress":"AA","token":"none"}}"#;
    let robot = Robot::connect(house.address(), "/").await;
    robot.say(with_token).await;
    assert_eq!(robot.frame().await, refusal);
    let refused = Robot::try_connect(house.address(), "/", "Authorization: Bearer none").await;
    assert_eq!(refused.err(), Some(401));
    let refused = Robot::try_connect(house.address(), "/?token=none", "").await;
    assert_eq!(refused.err(), Some(401));
    let (status, body) = house.ask("GET", "/api/robots/get/all").await;
    assert_eq!((status, body.as_str()), (401, UNAUTHORIZED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_belongs_to_whoever_has_registered_it_by_name() {
    let house = House::demo().await;
    let login = basic("studio", "st0d10");
    let events = house.address_of("events");
    let answer = ask_at(events, "GET", "/api/v3/users/studio/token", &login, "").await;
    let token: Value = serde_json::from_slice(&answer.body).unwrap();
    let token = token["Token"].as_str().unwrap();
    let owned = json!({ "_event": "client robot metaData", "value": { "robotName": "LAB", "robotAddress": "AA", "token": token } });
    let robot = Robot::connect(house.address(), "/").await;
    robot.say(&owned.to_string()).await;
    let own = async || {
        let answer = house.send("GET", "/api/robots/get/", &login, "").await;
        serde_json::from_slice::<Value>(&answer.body).unwrap()["counters"]["connected"].clone()
    };
    until("it is the user's", async || own().await == 1).await;
    // A demonstration lets robots in without a token, but not as this one.
    let thief = Robot::connect(house.address(), "/").await;
    thief.say(&metadata("LAB", "AA")).await;
    assert_eq!(
        thief.hear().await,
        Some(Heard::Text("decline metadata reception".to_owned()))
    );
    // Nor is it deleted by somebody else, which would let anybody register it anew.
    let number = house.send("GET", "/api/robots/get/", &login, "").await;
    let number = serde_json::from_slice::<Value>(&number.body).unwrap()["robots"][0]["id"].clone();
    let path = format!("/api/robots/delete/{number}");
    let bob = basic("bob@abc.com", "1234");
    let refused = house.send("DELETE", &path, &bob, "").await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert_eq!(own().await, 1);
    // By the header too.
    let socket = async || {
        let answer = house.send("GET", "/api/robots/get/", &login, "").await;
        serde_json::from_slice::<Value>(&answer.body).unwrap()["robots"][0]["socketID"].clone()
    };
    let first = socket().await;
    let again = Robot::try_connect(
        house.address(),
        "/",
        &format!("Authorization: Bearer {token}"),
    )
    .await;
    let again = again.unwrap_or_else(|status| panic!("{status}"));
    again.say(&metadata("LAB", "AA")).await;
    until("it has the robot", async || socket().await != first).await;
    let deleted = house.send("DELETE", &path, &login, "").await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    assert_eq!(again.closed().await, 1000);
}

/// A page of another site can have a browser send a GET, without knowing what it is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_of_another_site_changes_nothing() {
    let house = House::of_pages("https://studio.example").await;
    let _robot = house.connected("LAB", "AA").await;
    let job = house.trigger("AA", "one", "31-12", "9:00").await;
    for header in [
        "Origin: https://evil.example\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
    ] {
        for path in [
            format!("/jobs/cancel/{job}"),
            format!("/api/jobs/force/{job}/"),
        ] {
            let answer = house.send("GET", &path, header, "").await;
            assert_eq!(answer.status, 403, "{path} {header}");
            // As good as a GET, but for a body.
            let head = format!("HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n");
            let mut stream = TcpStream::connect(house.address()).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut status = [0; 12];
            in_time("an answer", stream.read_exact(&mut status))
                .await
                .unwrap();
            assert_eq!(&status, b"HTTP/1.1 403", "{path} {header}");
        }
    }
    let origin = "Origin: https://evil.example\r\n";
    assert_eq!(
        house
            .send("POST", &format!("/jobs/cancel/{job}"), origin, "")
            .await
            .status,
        403
    );
    assert_eq!(house.status(job).await, "Pending");
    // One of a site that may, and reads which job it is.
    let answer = house
        .send(
            "GET",
            &format!("/jobs/cancel/{job}"),
            "Origin: https://studio.example\r\n",
            "",
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(house.status(job).await, "Cancelled");
}

/// What was meant for one robot does not come to another that has its address later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_registers_the_address_of_a_deleted_robot_gets_none_of_its_jobs() {
    let house = House::open().await;
    let robot = house.connected("ONE", "AA").await;
    let job = house.trigger("AA", "secret", "31-12", "9:00").await;
    let number = house.robot("AA").await["id"].clone();
    let path = format!("/api/robots/delete/{number}");
    assert_eq!(house.ask("DELETE", &path).await.0, 200);
    assert_eq!(robot.closed().await, 1000);
    assert_eq!(house.status(job).await, "Failed");
    let reason = house.job(job).await["reason"].clone();
    assert_eq!(reason, "its robot was deleted");
    let other = house.connected("TWO", "AA").await;
    house.pass(40 * 24 * 3600);
    other.has_heard_nothing(&house, "AA").await;
}

/// Who may not delete a robot does nothing to its jobs by trying.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_robot_that_is_not_deleted_keeps_its_jobs() {
    let rule = |principal: &str, allow: &[&str]| {
        let rule = json!({ "principal": principal, "keyspace": "robots", "allow": allow });
        serde_json::from_value(rule).unwrap()
    };
    let house = House::demo_with(|config| {
        let all = ["read", "write", "watch"];
        config.rules = vec![
            rule("anonymous", &all),
            rule("user:studio", &all),
            rule("user:bob@abc.com", &["read"]),
        ];
    })
    .await;
    let (studio, bob) = (basic("studio", "st0d10"), basic("bob@abc.com", "1234"));
    let robot = Robot::connect(house.address(), "/").await;
    robot.say(&metadata("LAB", "AA")).await;
    let listed = async || {
        let answer = house.send("GET", "/api/robots/get/all", &bob, "").await;
        serde_json::from_slice::<Value>(&answer.body).unwrap()["Robots"].clone()
    };
    until("it is there", async || {
        listed().await[0]["connected"] == true
    })
    .await;
    let body = trigger("AA", "one", "31-12", "9:00").to_string();
    let job = job_id(&house.send("POST", "/pkg", &studio, &body).await);
    let path = format!("/api/robots/delete/{}", listed().await[0]["id"]);
    let refused = house.send("DELETE", &path, &bob, "").await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    let answer = house
        .send("GET", &format!("/jobs/force/{job}"), &studio, "")
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(robot.frame().await, notification("one"));
}

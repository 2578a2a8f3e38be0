//! Who is told what, and what ends with a credential.

use serde_json::{Value, json};
use storage_testkit::entrance::ask;
use storage_testkit::raw::in_time;

use crate::client::{House, PASSWORD, USER, basic, bearer};

const RULES: &str = r#"
[[rule]]
principal = "cert:boss"
keyspace = "*"
allow = ["read", "write", "watch", "admin"]

[[rule]]
principal = "cert:boss"
keyspace = "system"
allow = ["admin"]

[[rule]]
principal = "user:rocketskates"
keyspace = "events"
allow = ["read", "write", "watch", "admin"]

[[rule]]
principal = "user:fred"
keyspace = "events"
prefix = "profiles/"
allow = ["read", "watch"]

[[rule]]
principal = "user:rack7"
keyspace = "events"
prefix = "machines/rack7"
allow = ["watch"]
"#;

async fn house() -> House {
    let house = House::configured(RULES, &[]).await;
    for user in ["fred", "rack7", "nobody"] {
        house.add_user(user, PASSWORD).await;
    }
    house
}

#[tokio::test]
async fn item_17_a_limited_user_is_told_of_what_it_may_watch_alone() {
    let house = house().await;
    let mut http = house.http().await;
    let mut sockets = Vec::new();
    for user in ["fred", "rack7", "nobody"] {
        let mut socket = house.socket_as("", &basic(user, PASSWORD)).await.unwrap();
        // Whether it may be told anything or not.
        socket.register("*.*.*").await;
        socket.register("machines.*.rack8").await;
        sockets.push(socket);
    }
    for n in 0..3 {
        http.profile(&format!("p{n}")).await;
        http.good(
            "POST",
            "/machines",
            &json!({ "Uuid": format!("rack7-{n}") }),
        )
        .await;
        http.good(
            "POST",
            "/machines",
            &json!({ "Uuid": format!("rack8-{n}") }),
        )
        .await;
        http.mark("x").await;
    }
    for n in 0..3 {
        assert_eq!(sockets[0].hear().await, format!("profiles.create.p{n}"));
        assert_eq!(
            sockets[1].hear().await,
            format!("machines.create.rack7-{n}")
        );
    }
    // Nothing else: the next thing that each hears is an ack.
    for socket in &mut sockets {
        socket.register("x.*.*").await;
    }
}

#[tokio::test]
async fn what_is_not_allowed_is_not_there_to_see_and_forbidden_to_do() {
    let house = house().await;
    let mut http = house.http().await;
    http.profile("rack7").await;
    http.good("POST", "/machines", &json!({ "Uuid": "m1" }))
        .await;
    let mut fred = house.http_as(&basic("fred", PASSWORD)).await;
    assert_eq!(fred.get("/profiles/rack7").await.0, 200);
    assert_eq!(fred.get("/profiles").await.1.as_array().unwrap().len(), 1);
    let (status, error) = fred.get("/machines/m1").await;
    assert_eq!((status, &error["Type"]), (404, &json!("GET")), "{error}");
    assert_eq!(error["Messages"], json!(["Not Found"]));
    for (method, path, body) in [
        ("GET", "/machines", Value::Null),
        ("POST", "/profiles", json!({ "Name": "x" })),
        ("PUT", "/profiles/rack7", json!({ "Name": "rack7" })),
        (
            "PATCH",
            "/profiles/rack7",
            json!([{ "op": "add", "path": "/a", "value": 1 }]),
        ),
        ("DELETE", "/profiles/rack7", Value::Null),
        ("POST", "/profiles/rack7/params/a", json!(1)),
        (
            "POST",
            "/events",
            json!({ "Type": "profiles", "Action": "x", "Key": "rack7" }),
        ),
    ] {
        let (status, error) = fred.ask(method, path, &body).await;
        assert_eq!(
            (status, &error["Type"]),
            (403, &json!("AUTH")),
            "{method} {path}: {error}"
        );
    }
    assert_eq!(
        http.get("/profiles/rack7").await.1,
        json!({ "Name": "rack7", "Params": {} })
    );
}

#[tokio::test]
async fn who_is_allowed_to_watch_later_is_told_from_then_on() {
    let house = house().await;
    let mut http = house.http().await;
    let mut socket = house
        .socket_as("", &basic("nobody", PASSWORD))
        .await
        .unwrap();
    socket.register("profiles.*.*").await;
    http.profile("before").await;
    let rule = json!({ "principal": "user:nobody", "keyspace": "events", "prefix": "profiles/", "allow": ["watch"] });
    let (status, body) = ask(&house.boss("events"), "PUT", "rules/late", rule).await;
    assert_eq!(status, 204, "{body}");
    // All that it has missed since it registered: the feed has it still.
    assert_eq!(socket.hear().await, "profiles.create.before");
    http.profile("after").await;
    assert_eq!(socket.hear().await, "profiles.create.after");
    // And it ends with the rule.
    let (status, _) = ask(&house.boss("events"), "DELETE", "rules/late", Value::Null).await;
    assert_eq!(status, 204);
    http.profile("later").await;
    socket.register("machines.*.*").await;
}

#[tokio::test]
async fn a_socket_ends_with_its_token() {
    let house = house().await;
    let mut http = house.http().await;
    let path = format!("/users/{USER}/token");
    let (_, minted) = http.get(&path).await;
    let token = minted["Token"].as_str().unwrap();
    let mut socket = house.socket_as("", &bearer(token)).await.unwrap();
    socket.register("profiles.*.*").await;
    // One whose time is over.
    let (_, short) = http.get(&format!("{path}?ttl=2")).await;
    let short = short["Token"].as_str().unwrap();
    let mut ends = house
        .socket_as(&format!("?Token={short}"), "")
        .await
        .unwrap();
    ends.register("profiles.*.*").await;
    assert_eq!(ends.closed().await, 1008);
    // One that is revoked.
    let (_, tokens) = ask(&house.boss("events"), "GET", "tokens", Value::Null).await;
    let tokens = tokens
        .as_array()
        .or_else(|| tokens["tokens"].as_array())
        .unwrap()
        .clone();
    for token in tokens {
        let id = token["id"].as_str().unwrap();
        ask(
            &house.boss("events"),
            "DELETE",
            &format!("tokens/{id}"),
            Value::Null,
        )
        .await;
    }
    assert_eq!(socket.closed().await, 1008);
    let refused = house.socket_as("", &bearer(token)).await.err().unwrap();
    assert_eq!(refused.status, 403);
    let error: Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(
        error,
        json!({ "Model": "", "Key": "", "Type": "AUTH", "Messages": ["Validation failed"], "Code": 403 })
    );
}

#[tokio::test]
async fn a_socket_ends_with_its_user() {
    let house = house().await;
    let mut socket = house.socket_as("", &basic("fred", PASSWORD)).await.unwrap();
    socket.register("profiles.*.*").await;
    let (status, body) = ask(&house.boss("events"), "DELETE", "users/fred", Value::Null).await;
    assert_eq!(status, 204, "{body}");
    assert_eq!(socket.closed().await, 1008);
    let again = in_time("a refusal", house.socket_as("", &basic("fred", PASSWORD))).await;
    assert_eq!(again.err().unwrap().status, 403);
}

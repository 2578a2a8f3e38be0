//! Who gets in, and by what.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{House, PASSWORD, USER, basic, bearer, own};

pub(crate) async fn token(house: &House, query: &str) -> (u16, Value) {
    let mut http = house.http().await;
    http.get(&format!("/users/{USER}/token{query}")).await
}

pub(crate) async fn good_token(house: &House) -> String {
    let (status, answer) = token(house, "").await;
    assert_eq!(status, 200, "{answer}");
    answer["Token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn item_01_without_a_credential_401_and_with_a_wrong_password_403() {
    let house = House::new().await;
    // An upgrade, and a plain request.
    let refused = house.socket_as("", "").await.err().unwrap();
    assert_eq!(refused.status, 401);
    assert!(refused.head.contains("dr-provision"), "{}", refused.head);
    assert!(refused.body.is_empty());
    let mut http = house.http_as("").await;
    for path in ["/ws", "/info", "/profiles", "/users/x/token"] {
        let answer = http.send("GET", path, "", "").await;
        assert_eq!(answer.status, 401, "{path}");
        let head = answer.head.to_lowercase();
        assert!(
            head.contains("www-authenticate: dr-provision\r\n"),
            "{head}"
        );
        assert!(answer.body.is_empty(), "{path}");
    }
    for (query, header) in [
        ("", basic(USER, "wrong")),
        ("", basic("nobody", PASSWORD)),
        ("?token=rocketskates:wrong", String::new()),
    ] {
        let refused = house.socket_as(query, &header).await.err().unwrap();
        assert_eq!(refused.status, 403, "{query} {header}");
        assert!(refused.body.is_empty());
    }
    // What cannot be read is no credential.
    for header in ["Authorization: basic abc", "Authorization: Basic ???"] {
        let refused = house.socket_as("", header).await.err().unwrap();
        assert_eq!(refused.status, 401, "{header}");
    }
    let refused = house
        .socket_as("", &bearer("abc.def.ghi"))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.status, 403);
    assert!(refused.head.contains("dr-provision"), "{}", refused.head);
}

#[tokio::test]
async fn item_02_every_way_to_show_a_credential_opens_a_socket_and_the_header_wins() {
    let house = House::new().await;
    let token = good_token(&house).await;
    let pair = format!("{USER}:{PASSWORD}");
    for (query, header) in [
        (format!("?token={pair}"), String::new()),
        (format!("?Token={pair}"), String::new()),
        (format!("?token={token}"), String::new()),
        (format!("?Token={token}"), String::new()),
        (String::new(), own()),
        (String::new(), bearer(&token)),
        ("?token=nobody:wrong".to_owned(), own()),
    ] {
        let mut socket = house.socket_as(&query, &header).await.unwrap();
        socket.register("*.*.*").await;
    }
    // A wrong header is not mended by a good query.
    let header = basic(USER, "wrong");
    let refused = house.socket_as(&format!("?token={token}"), &header).await;
    assert_eq!(refused.err().unwrap().status, 403);
}

#[tokio::test]
async fn item_03_a_token_is_minted_and_ends_with_its_time() {
    let house = House::new().await;
    let (status, answer) = token(&house, "").await;
    assert_eq!(status, 200);
    assert!(answer["Token"].is_string(), "{answer}");
    assert!(answer["Info"]["version"].is_string(), "{answer}");
    let mut http = house
        .http_as(&bearer(answer["Token"].as_str().unwrap()))
        .await;
    assert_eq!(http.get("/info").await.0, 200);
    // A token mints one too, for its own user.
    let path = format!("/users/{USER}/token");
    assert_eq!(http.get(&path).await.0, 200);
    let (status, denied) = http.get("/users/ann/token").await;
    assert_eq!((status, &denied["Type"]), (403, &json!("AUTH")), "{denied}");

    let (_, short) = token(&house, "?ttl=1").await;
    let short = bearer(short["Token"].as_str().unwrap());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut http = house.http_as(&short).await;
    let refused = http.send("GET", "/info", "", "").await;
    assert_eq!(refused.status, 403);
    assert_eq!(house.socket_as("", &short).await.err().unwrap().status, 403);

    let (status, error) = token(&house, "?ttl=x").await;
    assert_eq!(status, 400);
    assert_eq!(error["Model"], "users", "{error}");
    assert_eq!(error["Code"], 400);
    for ttl in ["0", "-5", "99999999999"] {
        let (status, _) = token(&house, &format!("?ttl={ttl}")).await;
        assert_eq!(status, 400, "{ttl}");
    }
}

#[tokio::test]
async fn a_token_is_narrowed_to_a_type_to_reading_and_to_keys() {
    let house = House::new().await;
    let mut all = house.http().await;
    all.profile("rack7").await;
    all.good("POST", "/machines", &json!({"Uuid": "m1"})).await;
    let narrowed = async |query: &str| {
        let (status, answer) = token(&house, query).await;
        assert_eq!(status, 200, "{query}: {answer}");
        house
            .http_as(&bearer(answer["Token"].as_str().unwrap()))
            .await
    };
    let mut reads = narrowed("?scope=profiles&action=get,list").await;
    assert_eq!(reads.get("/profiles/rack7").await.0, 200);
    assert_eq!(reads.get("/machines/m1").await.0, 404);
    let (status, denied) = reads.ask("POST", "/profiles", &json!({"Name": "x"})).await;
    assert_eq!((status, &denied["Type"]), (403, &json!("AUTH")), "{denied}");
    assert_eq!(reads.delete("/profiles/rack7").await.0, 403);
    let mut one = narrowed("?scope=profiles&specific=rack7").await;
    assert_eq!(one.get("/profiles/rack7").await.0, 200);
    let patch = json!([{"op": "add", "path": "/Meta", "value": {}}]);
    assert_eq!(one.ask("PATCH", "/profiles/rack7", &patch).await.0, 200);
    assert_eq!(
        one.ask("POST", "/profiles", &json!({"Name": "x"})).await.0,
        403
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_path_is_told() {
    let house = House::new().await;
    let mut http = house.http().await;
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/a/b/c"),
        ("GET", "/events"),
        ("POST", "/info"),
        ("PUT", "/profiles"),
        ("GET", "/websocket/x"),
        ("GET", "/a.b/x"),
    ] {
        let (status, error) = http.ask(method, path, &json!({})).await;
        assert_eq!(status, 404, "{method} {path}: {error}");
        assert_eq!(error["Messages"], json!(["No route"]), "{method} {path}");
    }
    // Let in, and no upgrade asked for.
    assert_eq!(http.get("/ws").await.0, 400);
}

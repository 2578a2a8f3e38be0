//! Objects over HTTP, and the events that they raise.

use serde_json::{Value, json};

use crate::client::{House, name};

#[tokio::test]
async fn item_08_each_write_of_a_profile_raises_its_event() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.register("profiles.*.*").await;
    let first = json!({ "Name": "rack7", "Description": "first", "Params": {} });
    let (status, created) = http.ask("POST", "/profiles", &first).await;
    assert_eq!((status, &created), (201, &first));
    let second = json!({ "Name": "rack7", "Description": "second", "Params": {} });
    assert_eq!(
        http.ask("PUT", "/profiles/rack7", &second).await,
        (200, second.clone())
    );
    let patch = json!([
        { "op": "test", "path": "/Description", "value": "second" },
        { "op": "replace", "path": "/Description", "value": "third" },
    ]);
    let third = json!({ "Name": "rack7", "Description": "third", "Params": {} });
    assert_eq!(
        http.ask("PATCH", "/profiles/rack7", &patch).await,
        (200, third.clone())
    );
    assert_eq!(http.delete("/profiles/rack7").await, (200, third.clone()));
    for (action, object, original) in [
        ("create", &first, &Value::Null),
        ("update", &second, &first),
        ("update", &third, &second),
        ("delete", &third, &Value::Null),
    ] {
        let event = socket.event().await;
        assert_eq!(name(&event), format!("profiles.{action}.rack7"));
        assert_eq!(event["Principal"], "user:rocketskates");
        assert_eq!(
            (&event["Object"], &event["Original"]),
            (object, original),
            "{action}"
        );
    }
}

#[tokio::test]
async fn item_09_the_two_writes_of_a_parameter_are_saves() {
    let house = House::new().await;
    let mut http = house.http().await;
    http.profile("global").await;
    let mut socket = house.socket().await;
    socket.register("profiles.*.global").await;
    // What waits for an update of a profile is told of its parameters too.
    let mut waits = house.socket().await;
    waits.register("profiles.update.global").await;
    let path = "/profiles/global/params/bar";
    assert_eq!(
        http.ask("POST", path, &json!("blatz")).await,
        (200, json!("blatz"))
    );
    assert_eq!(http.get(path).await, (200, json!("blatz")));
    assert_eq!(http.delete(path).await, (200, json!("blatz")));
    assert_eq!(http.get(path).await, (200, Value::Null));
    for socket in [&mut socket, &mut waits] {
        let (first, second) = (socket.event().await, socket.event().await);
        assert_eq!(name(&first), "profiles.save.global");
        assert_eq!(first["Object"]["Params"]["bar"], "blatz");
        assert_eq!(first["Original"]["Params"], json!({}));
        assert_eq!(name(&second), "profiles.save.global");
        assert_eq!(second["Object"]["Params"], json!({}));
    }
}

#[tokio::test]
async fn writes_of_parameters_are_updates_where_the_configuration_says_so() {
    let house = House::configured("[events]\nparams_action = \"update\"", &[]).await;
    let mut http = house.http().await;
    http.profile("global").await;
    let mut socket = house.socket().await;
    socket.register("profiles.*.*").await;
    http.good("POST", "/profiles/global/params/bar", &json!(1))
        .await;
    assert_eq!(socket.hear().await, "profiles.update.global");
}

#[tokio::test]
async fn item_15_a_posted_event_is_told_with_its_time_and_who_posted_it() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.register("beeblebrox.*.*").await;
    let event = json!({ "Type": "beeblebrox", "Action": "created", "Key": "foo", "Principal": "user:zaphod" });
    let json = "Content-Type: application/json\r\n";
    let answer = http.send("POST", "/events", json, &event.to_string()).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    // The command line takes no answer that does not say what it is.
    let head = answer.head.to_lowercase();
    assert!(head.contains("content-type: application/json"), "{head}");
    let told = socket.event().await;
    assert_eq!(name(&told), "beeblebrox.created.foo");
    assert_eq!(told["Principal"], "user:rocketskates");
    time(&told);
    // What it says is passed on.
    let time = "2024-05-04T10:00:03.123456789+02:00";
    let event = json!({ "Time": time, "Type": "beeblebrox", "Action": "x", "Key": "", "Object": [1.5], "Original": {"a": null} });
    http.good("POST", "/events", &event).await;
    let told = socket.event().await;
    for field in ["Time", "Type", "Action", "Key", "Object", "Original"] {
        assert_eq!(told[field], event[field], "{field}");
    }
    // Nothing is stored.
    assert_eq!(http.get("/beeblebrox/foo").await.0, 404);
    for (event, status) in [
        (json!({ "Type": "a", "Key": "b" }), 422),
        (json!({ "Action": "a", "Key": "b" }), 422),
        (json!({ "Type": "a/b", "Action": "c", "Key": "d" }), 422),
        (
            json!({ "Type": "websocket", "Action": "register", "Key": "*.*.*" }),
            422,
        ),
        (json!({ "Type": "a", "Action": "b", "Time": "noon" }), 400),
        (json!([1]), 400),
    ] {
        let (told, error) = http.ask("POST", "/events", &event).await;
        assert_eq!(told, status, "{event}: {error}");
    }
    let event = json!({ "Type": "a", "Action": "b", "Key": "x".repeat(5_000) });
    assert_eq!(http.ask("POST", "/events", &event).await.0, 413);
}

#[tokio::test]
async fn item_16_an_event_that_is_no_json_is_refused_with_the_error_of_the_protocol() {
    let house = House::new().await;
    let mut http = house.http().await;
    let event = r#"{"Type":"a","Action":"b","Key":"c"}"#;
    let answer = http
        .send("POST", "/events", "Content-Type: text/plain\r\n", event)
        .await;
    assert_eq!(answer.status, 400);
    let error: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        (&error["Model"], &error["Type"], &error["Code"]),
        (&json!("events"), &json!("POST"), &json!(400))
    );
    assert!(
        error["Messages"][0]
            .as_str()
            .unwrap()
            .contains("text/plain"),
        "{error}"
    );
    let fields: Vec<_> = answer.text().match_indices('"').map(|(at, _)| at).collect();
    assert!(
        answer.text().starts_with("{\"Model\":"),
        "{}, {fields:?}",
        answer.text()
    );
}

#[tokio::test]
async fn item_18_no_event_of_an_account_has_its_secrets() {
    let house = House::new().await;
    let mut http = house.http().await;
    let native = house.native().await;
    let mut socket = house.socket().await;
    socket.register("users.*.*").await;
    let account = json!({ "Name": "fred", "Secret": "s3cret", "PasswordHash": "s3cret", "Password": "s3cret", "Roles": [] });
    let created = http.good("POST", "/users", &account).await;
    assert_eq!(created, json!({ "Name": "fred", "Roles": [] }));
    http.good("PUT", "/users/fred", &account).await;
    use storage_protocol::StorageExt;
    let stored = native.get_one("users/fred".into()).await.unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&stored.value).contains("s3cret"));
    // By whatever means they come there.
    native
        .put("users/fred".into(), account.to_string().into())
        .await
        .unwrap();
    assert_eq!(http.get("/users/fred").await.1, created);
    assert_eq!(http.get("/users").await.1, json!([created]));
    http.good("DELETE", "/users/fred", &Value::Null).await;
    let posted = json!({ "Type": "users", "Action": "x", "Key": "fred", "Object": account, "Original": account });
    http.good("POST", "/events", &posted).await;
    for expected in ["create", "update", "save", "delete", "x"] {
        let frame = socket.frame().await;
        assert!(!frame.contains("s3cret"), "{frame}");
        let event: Value = serde_json::from_str(&frame).unwrap();
        assert_eq!(name(&event), format!("users.{expected}.fred"));
        assert_eq!(event["Object"], created, "{expected}");
    }
}

/// That a time is one as in RFC 3339.
fn time(event: &Value) {
    let text = event["Time"].as_str().unwrap();
    let parsed = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    let age = time::OffsetDateTime::now_utc() - parsed.unwrap();
    assert!(age.abs() < time::Duration::minutes(5), "{text}");
}

#[tokio::test]
async fn item_19_the_fields_of_an_event_come_in_their_order() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.say("register *.*.*").await;
    let mut frames = vec![socket.frame().await];
    http.profile("rack7").await;
    http.mark("x").await;
    frames.extend([socket.frame().await, socket.frame().await]);
    for frame in frames {
        let places: Vec<_> = [
            "Time",
            "Type",
            "Action",
            "Key",
            "Principal",
            "Object",
            "Original",
        ]
        .iter()
        .map(|field| frame.find(&format!("\"{field}\":")))
        .collect();
        assert!(places.iter().all(Option::is_some), "{frame}");
        assert!(places.is_sorted(), "{frame}");
        let event: Value = serde_json::from_str(&frame).unwrap();
        assert_eq!(event.as_object().unwrap().len(), 7, "{frame}");
        time(&event);
    }
}

#[tokio::test]
async fn item_25_the_removal_of_a_parameter_that_is_not_set_is_404_and_no_event() {
    let house = House::new().await;
    let mut http = house.http().await;
    http.profile("global").await;
    let mut socket = house.socket().await;
    socket.register("*.*.*").await;
    let (status, error) = http.delete("/profiles/global/params/bar").await;
    assert_eq!(status, 404);
    assert_eq!(
        error,
        json!({ "Model": "profiles", "Key": "global", "Type": "DELETE", "Messages": ["Not Found"], "Code": 404 })
    );
    assert_eq!(http.delete("/profiles/other/params/bar").await.0, 404);
    http.mark("end").await;
    assert!(socket.until_mark("end").await.is_empty());
}

#[tokio::test]
async fn what_is_wrong_with_an_object_is_told_and_changes_nothing() {
    let house = House::new().await;
    let mut http = house.http().await;
    http.profile("rack7").await;
    let mut socket = house.socket().await;
    socket.register("*.*.*").await;
    let patch = |operation: Value| json!([operation]);
    for (method, path, body, status) in [
        ("POST", "/profiles", json!({ "Name": "rack7" }), 409),
        ("POST", "/profiles", json!({ "Name": "" }), 400),
        ("POST", "/profiles", json!({ "Description": "x" }), 400),
        ("POST", "/profiles", json!(["x"]), 400),
        ("POST", "/profiles", json!({ "Name": "a/b" }), 422),
        (
            "POST",
            "/profiles",
            json!({ "Name": "x".repeat(5_000) }),
            413,
        ),
        (
            "POST",
            "/profiles",
            json!({ "Name": "x", "Description": "y".repeat(2 << 20) }),
            413,
        ),
        ("PUT", "/profiles/rack7", json!({ "Name": "rack8" }), 400),
        ("PUT", "/profiles/rack7", json!({}), 400),
        ("PUT", "/profiles/rack9", json!({ "Name": "rack9" }), 404),
        ("PATCH", "/profiles/rack9", json!([]), 404),
        ("PATCH", "/profiles/rack7", json!({}), 400),
        (
            "PATCH",
            "/profiles/rack7",
            patch(json!({ "op": "test", "path": "/Name", "value": "x" })),
            409,
        ),
        (
            "PATCH",
            "/profiles/rack7",
            patch(json!({ "op": "remove", "path": "/Nothing" })),
            406,
        ),
        (
            "PATCH",
            "/profiles/rack7",
            patch(json!({ "op": "replace", "path": "/Name", "value": "x" })),
            400,
        ),
        (
            "PATCH",
            "/profiles/rack7",
            patch(json!({ "op": "replace", "path": "", "value": 1 })),
            422,
        ),
        ("DELETE", "/profiles/rack9", Value::Null, 404),
        ("GET", "/profiles/rack9", Value::Null, 404),
        ("GET", "/profiles?limit=x", Value::Null, 400),
        ("POST", "/profiles/rack7/params", json!([1]), 400),
        ("GET", "/profiles/rack9/params", Value::Null, 404),
    ] {
        let (told, error) = http.ask(method, path, &body).await;
        assert_eq!(told, status, "{method} {path}: {error}");
        assert_eq!(error["Code"], status, "{method} {path}: {error}");
        assert_eq!(error["Type"], method, "{error}");
    }
    let broken = http
        .send(
            "POST",
            "/profiles",
            "Content-Type: application/json\r\n",
            "{\"Name\":",
        )
        .await;
    assert_eq!(broken.status, 400);
    http.mark("end").await;
    assert!(socket.until_mark("end").await.is_empty());
}

#[tokio::test]
async fn objects_are_listed_filtered_sorted_and_cut() {
    let house = House::new().await;
    let mut http = house.http().await;
    for (name, seats) in [("N3", 2), ("N1", 179), ("N2", 55), ("N4", 55)] {
        let plane = json!({ "Name": name, "Seats": seats, "Params": { "a": 1 }, "Meta": {} });
        http.good("POST", "/planes", &plane).await;
    }
    let mut names = async |query: &str| {
        let answer = http.send("GET", &format!("/planes{query}"), "", "").await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        let list: Vec<Value> = serde_json::from_slice(&answer.body).unwrap();
        let header = |name: &str| {
            let head = answer.head.to_lowercase();
            let (_, rest) = head.split_once(&format!("{name}: ")).unwrap();
            rest.split("\r\n").next().unwrap().parse::<usize>().unwrap()
        };
        assert_eq!(header("x-drp-list-count"), list.len(), "{query}");
        let names: Vec<_> = list
            .iter()
            .map(|plane| plane["Name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(header("x-drp-list-total-count"), 4, "{query}");
        (names.join(" "), header("x-drp-list-filter-count"))
    };
    for (query, expected, matching) in [
        ("", "N1 N2 N3 N4", 4),
        ("?reverse=true", "N4 N3 N2 N1", 4),
        ("?limit=2", "N1 N2", 4),
        ("?limit=2&offset=1", "N2 N3", 4),
        ("?offset=9", "", 4),
        ("?limit=0", "", 4),
        ("?sort=Seats", "N3 N2 N4 N1", 4),
        ("?sort=Seats&reverse=true&limit=2", "N1 N4", 4),
        ("?sort=Seats,Name&offset=1&limit=2", "N2 N4", 4),
        ("?Seats=55", "N2 N4", 2),
        ("?Seats=Gt(55)", "N1", 1),
        ("?Seats=Lt(100)&Name=Ne(N3)&limit=1", "N2", 2),
        ("?Nothing=1", "", 0),
    ] {
        assert_eq!(
            names(query).await,
            (expected.to_owned(), matching),
            "{query}"
        );
    }
    let (_, slim) = http.get("/planes?slim=Params,Meta&limit=1").await;
    assert_eq!(slim, json!([{ "Name": "N1", "Seats": 179 }]));
    assert_eq!(http.get("/nothing").await, (200, json!([])));
    // HEAD tells the same without the objects.
    for path in ["/planes?limit=1", "/planes/N1"] {
        let head = head(&house, path).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
    }
    assert!(
        head(&house, "/planes")
            .await
            .to_lowercase()
            .contains("x-drp-list-total-count: 4")
    );
    assert!(head(&house, "/planes/N9").await.starts_with("HTTP/1.1 404"));
}

/// All that comes as the answer to a HEAD.
async fn head(house: &House, path: &str) -> String {
    use tokio::io::AsyncWriteExt;
    let mut stream = house.tcp().await;
    let request = format!(
        "HEAD /api/v3{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{}Connection: close\r\n\r\n",
        crate::client::own()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let (_, said) = storage_testkit::raw::until_closed(&mut stream).await;
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn parameters_are_read_and_written_one_by_one_and_all_together() {
    let house = House::new().await;
    let mut http = house.http().await;
    http.profile("global").await;
    let path = "/profiles/global/params";
    assert_eq!(http.get(path).await, (200, json!({})));
    let all = json!({ "a": 1, "b/c": { "d": [1.5] } });
    assert_eq!(http.ask("POST", path, &all).await, (200, all.clone()));
    assert_eq!(http.get(path).await, (200, all));
    assert_eq!(
        http.get("/profiles/global/params/b%2Fc").await,
        (200, json!({ "d": [1.5] }))
    );
    let patch =
        json!([{ "op": "remove", "path": "/b~1c" }, { "op": "add", "path": "/e", "value": null }]);
    assert_eq!(
        http.ask("PATCH", path, &patch).await,
        (200, json!({ "a": 1, "e": null }))
    );
    // One that is null is set.
    assert_eq!(
        http.delete("/profiles/global/params/e").await,
        (200, Value::Null)
    );
    assert_eq!(http.delete("/profiles/global/params/e").await.0, 404);
    // An object without Params has none, and gets them.
    http.good("POST", "/machines", &json!({ "Uuid": "m1" }))
        .await;
    assert_eq!(http.get("/machines/m1/params").await, (200, json!({})));
    http.good("POST", "/machines/m1/params/a", &json!([true]))
        .await;
    assert_eq!(
        http.get("/machines/m1").await.1,
        json!({ "Uuid": "m1", "Params": { "a": [true] } })
    );
}

#[tokio::test]
async fn a_machine_that_is_made_without_a_uuid_gets_one() {
    let house = House::new().await;
    let mut http = house.http().await;
    for uuid in [json!({}), json!({ "Uuid": "" }), json!({ "Uuid": null })] {
        let made = http.good("POST", "/machines", &uuid).await;
        assert_eq!(made["Uuid"].as_str().unwrap().len(), 36, "{uuid}");
    }
    let made = http
        .good("POST", "/machines", &json!({ "Name": "rack7.example.com" }))
        .await;
    let uuid = made["Uuid"].as_str().unwrap();
    assert_eq!(
        http.get(&format!("/machines/{uuid}")).await,
        (200, made.clone())
    );
}

#[tokio::test]
async fn no_writer_of_one_object_undoes_what_another_was_answered_for() {
    const WRITERS: usize = 8;
    const WRITES: usize = 20;
    let house = House::new().await;
    house.http().await.profile("global").await;
    let write = async |writer: usize| {
        let mut http = house.http().await;
        for n in 0..WRITES {
            let (method, path, body) = match n % 2 {
                0 => (
                    "POST",
                    format!("/profiles/global/params/{writer}-{n}"),
                    json!(n),
                ),
                _ => {
                    let operation =
                        json!({ "op": "add", "path": format!("/Params/{writer}-{n}"), "value": n });
                    ("PATCH", "/profiles/global".to_owned(), json!([operation]))
                }
            };
            // Who is told that it lost, begins again.
            loop {
                match http.ask(method, &path, &body).await {
                    (200, _) => break,
                    (409, _) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    };
    futures_util::future::join_all((0..WRITERS).map(write)).await;
    let (_, params) = house.http().await.get("/profiles/global/params").await;
    assert_eq!(params.as_object().unwrap().len(), WRITERS * WRITES);
}

#[tokio::test]
async fn info_says_what_the_server_is() {
    let house = House::new().await;
    let (status, info) = house.http().await.get("/info").await;
    assert_eq!(status, 200);
    for field in ["id", "version"] {
        assert!(!info[field].as_str().unwrap().is_empty(), "{info}");
    }
    assert!(
        info["features"].is_array() && info["scopes"]["profiles"].is_object(),
        "{info}"
    );
}

//! What is written by other means than this gateway's.

use std::time::Duration;

use serde_json::{Value, json};
use storage_protocol::{Batch, CommitOptions, Lifetime, Storage, StorageExt};

use crate::client::{House, name};

#[tokio::test]
async fn writes_of_a_native_client_raise_events_with_what_is_known() {
    let house = House::new().await;
    let native = house.native().await;
    let mut socket = house.socket().await;
    socket.register("machines.*.*").await;
    let options = || CommitOptions::labelled("update").with_previous();
    let put = |value: &'static str| Batch::new().put("machines/m1", value);
    native
        .commit(put("{\"Uuid\": \"m1\"}"), CommitOptions::default())
        .await
        .unwrap();
    native.commit(put("not JSON"), options()).await.unwrap();
    native
        .commit(
            Batch::new().put("machines/m1", vec![0xff, 0]),
            CommitOptions::default(),
        )
        .await
        .unwrap();
    native.remove("machines/m1".into()).await.unwrap();
    let signal = Batch::new().signal("machines/m2", "ping");
    native
        .commit(signal, CommitOptions::default())
        .await
        .unwrap();
    // One commit, many events, in the order of its operations.
    let many = Batch::new()
        .put("machines/b", "1")
        .put("machines/a", "2")
        .put("other/c", "3");
    native.commit(many, CommitOptions::default()).await.unwrap();
    for (expected, object, original) in [
        ("machines.save.m1", json!({ "Uuid": "m1" }), Value::Null),
        (
            "machines.save.m1",
            json!("not JSON"),
            json!({ "Uuid": "m1" }),
        ),
        ("machines.save.m1", json!({ "base64": "/wA=" }), Value::Null),
        ("machines.delete.m1", Value::Null, Value::Null),
        ("machines.signal.m2", json!("ping"), Value::Null),
        ("machines.save.b", json!(1), Value::Null),
        ("machines.save.a", json!(2), Value::Null),
    ] {
        let event = socket.event().await;
        assert_eq!(name(&event), expected);
        assert_eq!(event["Principal"], "cert:boss");
        assert_eq!(
            (&event["Object"], &event["Original"]),
            (&object, &original),
            "{event}"
        );
    }
}

#[tokio::test]
async fn what_expires_is_deleted_and_an_update_does_not_make_it_last() {
    let house = House::new().await;
    let native = house.native().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.register("leases.*.*").await;
    let ttl = Lifetime::TimeToLive(Duration::from_secs(2));
    let lease = Batch::new().put_with("leases/10.0.0.1", "{\"Addr\":\"10.0.0.1\"}", ttl);
    native
        .commit(lease, CommitOptions::default())
        .await
        .unwrap();
    let patch = json!([{ "op": "add", "path": "/State", "value": "ACK" }]);
    http.good("PATCH", "/leases/10.0.0.1", &patch).await;
    assert_eq!(socket.hear().await, "leases.save.10.0.0.1");
    assert_eq!(socket.hear().await, "leases.update.10.0.0.1");
    let event = socket.event().await;
    assert_eq!(name(&event), "leases.delete.10.0.0.1");
    assert_eq!(event["Principal"], "server");
    assert_eq!(http.get("/leases/10.0.0.1").await.0, 404);
}

#[tokio::test]
async fn objects_of_other_writers_are_read_and_changed_as_far_as_they_are_objects() {
    let house = House::new().await;
    let native = house.native().await;
    let mut http = house.http().await;
    let put = Batch::new()
        .put("t/object", "{ \"Z\" : 12345678901234567890123, \"A\": 1 }")
        .put("t/text", "hello")
        .put("t/bytes", vec![0xff])
        .put("t/huge", format!("\"{}\"", "x".repeat(2 << 20)));
    native.commit(put, CommitOptions::default()).await.unwrap();
    let read = http.send("GET", "/t/object", "", "").await;
    assert_eq!(read.text(), r#"{"Z":12345678901234567890123,"A":1}"#);
    assert_eq!(http.get("/t/text").await, (200, json!("hello")));
    assert_eq!(
        http.get("/t/bytes").await,
        (200, json!({ "base64": "/w==" }))
    );
    assert_eq!(http.get("/t/huge").await.1.as_str().unwrap().len(), 2 << 20);
    // Nothing but the parameter is touched.
    http.good("POST", "/t/object/params/p", &json!(1)).await;
    let read = http.send("GET", "/t/object", "", "").await;
    assert_eq!(
        read.text(),
        r#"{"Z":12345678901234567890123,"A":1,"Params":{"p":1}}"#
    );
    assert_eq!(http.ask("POST", "/t/text/params/p", &json!(1)).await.0, 422);
    assert_eq!(http.ask("POST", "/t/huge/params/p", &json!(1)).await.0, 413);
    let (_, list) = http.get("/t?limit=3").await;
    assert_eq!(list.as_array().unwrap().len(), 3);
}

//! Services, native clients, and tokens of another issuer.

use hyper::StatusCode;
use serde_json::{Value, json};
use storage_client::RemoteStorage;
use storage_protocol::WatchStart;
use storage_protocol::rooms::{Draft, HistoryWish, RoomEvent, RoomKey, Rooms};
use storage_testkit::raw::in_time;

use crate::client::{House, node};

/// A token of another issuer, as its own library makes it.
fn foreign(secret: &[u8], claims: &Value) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE;
    use sha2::{Digest, Sha256};
    let head = BASE.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let text = format!("{head}.{}", BASE.encode(claims.to_string()));
    // HMAC, by its definition (RFC 2104), of a key that is no longer than a block.
    let padded = |with: u8| -> Vec<u8> {
        let byte = |at: usize| secret.get(at).copied().unwrap_or(0) ^ with;
        (0..64).map(byte).collect()
    };
    let inner = Sha256::digest([&padded(0x36)[..], text.as_bytes()].concat());
    let outer = Sha256::digest([&padded(0x5c)[..], &inner].concat());
    format!("{text}.{}", BASE.encode(outer))
}

#[tokio::test]
async fn tokens_of_another_issuer_say_who_it_is() {
    let secret = b"a secret of thirty-two bytes at least";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [&secret[..], b"\n"].concat()).unwrap();
    let table = format!(
        "quiet = \"50ms\"\njwt_issuer = \"cells\"\njwt_secret_file = \"{}\"",
        file.path().display()
    );
    let house = House::configured(&table, "").await;
    let claims = |exp: u64, name: &str| json!({ "iss": "cells", "exp": exp, "name": name, "sub": "u-zoe", "roles": "team,other", "profile": "standard" });
    let far = 4_000_000_000;
    let mut zoe = house.open("/event").await.unwrap();
    zoe.subscribe(&foreign(secret, &claims(far, "zoe"))).await;
    house
        .tell(json!({ "Type": "DELETE", "Source": { "Uuid": "z", "Path": "/data/team/x" } }))
        .await;
    assert_eq!(zoe.frame().await["Source"]["Path"], "team/x");
    let mut chat = house.open("/chat").await.unwrap();
    chat.subscribe(&foreign(secret, &claims(far, "zoe"))).await;
    chat.user = "zoe".to_owned();
    chat.join(node("n-1")).await;
    for (bad, why) in [
        (
            foreign(b"another secret of thirty-two bytes.", &claims(far, "zoe")),
            "signature",
        ),
        (foreign(secret, &claims(1, "zoe")), "expired"),
        (foreign(secret, &claims(far, "")), "name"),
    ] {
        let mut socket = house.open("/event").await.unwrap();
        socket
            .say(json!({ "@type": "subscribe", "jwt": bad }))
            .await;
        let error = socket.error().await;
        assert!(error.contains(why), "{error}");
    }
    // And it ends when the token does.
    let soon = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let mut brief = house.open("/event").await.unwrap();
    brief
        .subscribe(&foreign(secret, &claims(soon.as_secs() + 2, "zoe")))
        .await;
    assert_eq!(brief.closed().await, (1008, "token expired".to_owned()));
    // Such a token is good for telling events, too; our own go on being good.
    house
        .tell_as(&foreign(secret, &claims(far, "zoe")), &json!([]))
        .await;
    house.events("ana").await;
}

#[tokio::test]
async fn a_token_of_another_issuer_is_for_the_audience_that_is_configured() {
    let secret = b"a secret of thirty-two bytes at least";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), secret).unwrap();
    let table = format!(
        "jwt_issuer = \"cells\"\njwt_audience = \"storage\"\njwt_secret_file = \"{}\"",
        file.path().display()
    );
    let house = House::configured(&table, "").await;
    let token = |aud: Value| {
        let claims = json!({ "iss": "cells", "exp": 4_000_000_000_u64, "name": "zoe", "aud": aud });
        foreign(secret, &claims)
    };
    for good in [json!("storage"), json!(["other", "storage"])] {
        let mut socket = house.open("/event").await.unwrap();
        socket.subscribe(&token(good)).await;
    }
    for other in [json!("other"), json!(["other"]), Value::Null] {
        let mut socket = house.open("/event").await.unwrap();
        let jwt = token(other);
        socket
            .say(json!({ "@type": "subscribe", "jwt": jwt }))
            .await;
        let error = socket.error().await;
        assert!(error.contains("another audience"), "{error}");
        assert_eq!(socket.closed().await.0, 1008);
    }
    house.events("ana").await;
}

#[tokio::test]
async fn events_of_services_ask_for_a_credential_and_a_good_one_is_not_asked_for_again() {
    let secret = b"a secret of thirty-two bytes at least";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), secret).unwrap();
    let table = format!(
        "jwt_issuer = \"cells\"\njwt_secret_file = \"{}\"",
        file.path().display()
    );
    let rules = r#"
[[rule]]
principal = "cert:boss"
keyspace = "*"
allow = ["read", "write", "watch", "admin"]

[[rule]]
principal = "cert:boss"
keyspace = "system"
allow = ["admin"]

[[rule]]
principal = "user:admin"
keyspace = "workspace"
allow = ["write"]
"#;
    let house = House::configured(&table, rules).await;
    let event = json!({ "Type": "DELETE", "Source": { "Uuid": "z", "Path": "/data/team/x" } });
    let event = event.to_string();
    let answer = async |more: &str| house.post("/workspace/events", more, &event).await;
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let claims = |exp: u64, name: &str| json!({ "iss": "cells", "exp": exp, "name": name });
    let far = 4_000_000_000;
    let another = b"another secret of thirty-two bytes.";
    let ended = bearer(&foreign(secret, &claims(1, "zoe")));
    let forged = bearer(&foreign(another, &claims(far, "zoe")));
    let nameless = bearer(&foreign(secret, &claims(far, "")));
    for (not_good, more) in [
        ("nothing", ""),
        ("no token", "Authorization: Bearer x.y.z\r\n"),
        ("an empty one", "Authorization: Bearer \r\n"),
        ("a word", "Authorization: Bearer\r\n"),
        ("another scheme", "Authorization: Digest a\r\n"),
        ("no password", "Authorization: Basic ???\r\n"),
        // eve:wrong
        ("a wrong one", "Authorization: Basic ZXZlOndyb25n\r\n"),
        ("one that has ended", &ended),
        ("one with a wrong signature", &forged),
        ("one without a name", &nameless),
        (
            "two",
            "Authorization: Bearer a\r\nAuthorization: Bearer a\r\n",
        ),
    ] {
        let refused = answer(more).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{not_good}");
        let asked = refused.header("WWW-Authenticate").unwrap_or_default();
        assert!(asked.starts_with("Bearer"), "{not_good}: {asked}");
        assert!(refused.text().contains("error"), "{not_good}");
    }
    // Whoever that is is known, and may not.
    let good = bearer(&foreign(secret, &claims(far, "zoe")));
    for more in [&good, &bearer(&house.token("ana").await)] {
        let refused = answer(more).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert_eq!(refused.header("WWW-Authenticate"), None);
    }
    let admin = bearer(&house.token("admin").await);
    assert_eq!(answer(&admin).await.status, StatusCode::OK);
    // A body that cannot be read is not one that is too long.
    let request = format!(
        "POST /workspace/events HTTP/1.1\r\nHost: 127.0.0.1\r\n{}Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        bearer(&foreign(secret, &claims(far, "admin")))
    );
    let answer = storage_testkit::raw::http(&mut house.tcp().await, &request).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
}

#[tokio::test]
async fn events_of_services_need_sense() {
    let house = House::new().await;
    let status = async |more: &str, body: &str| {
        let answer = house.post("/workspace/events", more, body).await;
        (answer.status, answer.text())
    };
    let bearer = format!("Authorization: Bearer {}\r\n", house.token("ana").await);
    for (body, why) in [
        ("{", "not JSON"),
        ("7", "a JSON object"),
        (r#"{"Type":"READ"}"#, "allowed are CREATE"),
        (r#"[{"Type":"DELETE"}]"#, "event 0: DELETE has a Source"),
        (r#"{"@type":"other"}"#, "allowed are"),
        (r#"{"TaskUpdated":{}}"#, "an ID"),
        (&json!(vec![json!({}); 101]).to_string(), "at most 100"),
    ] {
        let (code, text) = status(&bearer, body).await;
        assert_eq!(code, 400, "{body}: {text}");
        assert!(text.contains(why), "{text}");
    }
    assert_eq!(status(&bearer, &"x".repeat((1 << 20) + 1)).await.0, 413);
    assert_eq!(
        status(&bearer, "[]").await,
        (200, r#"{"told":0}"#.to_owned())
    );
    for path in ["/workspace/demo-token", "/workspace/demo-token?user=boss"] {
        assert_eq!(house.post(path, "", "").await.status, 400, "{path}");
    }
}

#[tokio::test]
async fn a_native_client_is_in_the_same_rooms() {
    let house = House::new().await;
    let mut ana = house.chat("ana").await;
    let id = ana.join(node("n-1")).await;
    let rooms: Rooms<RemoteStorage> = Rooms::new(house.native().await);
    let key = RoomKey::new("NODE", "n-1").unwrap();
    let (room, is_new) = rooms.open_or_create(&key, "").await.unwrap();
    assert!(!is_new);
    assert_eq!(room.id.to_string(), id);
    let mut feed = rooms.follow(room.id, WatchStart::Now).await.unwrap();
    let draft = Draft::new("robot", "beep").unwrap();
    rooms.post(&room, &draft).await.unwrap();
    let frame = ana.frame_but_updates().await;
    assert_eq!(
        (&frame["Author"], &frame["Message"]),
        (&json!("robot"), &json!("beep"))
    );
    ana.post(&id, "hello, robot").await;
    assert_eq!(ana.text().await, "hello, robot");
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let event = in_time("an event", feed.next()).await.unwrap().unwrap();
        if let RoomEvent::Message(message) = event {
            heard.push(message.text);
        }
    }
    assert_eq!(heard, ["beep", "hello, robot"]);
    let page = rooms
        .history(room.id, HistoryWish::default())
        .await
        .unwrap();
    assert_eq!(page.messages.len(), 2);
    // A room that is removed is empty, and its object can have another one.
    assert!(rooms.remove(room.id).await.unwrap());
    ana.sees(&[]).await;
    ana.post(&id, "too late").await;
    assert!(ana.error().await.contains("removed"));
    let next = ana.join(node("n-1")).await;
    assert_ne!(next, id);
}

//! Peers without manners: what they send costs nobody else anything, and leaves nothing behind.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::house::{Answer, BOB, House, LISTENER, head};

const PROJECT: &str = r#"{"user":"u","project":"p"}"#;

#[tokio::test]
async fn item_14_bad_frames_are_answered_and_the_others_are_told() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let mut other = house.subscribed(&token, &[PROJECT]).await;
    let mut bad = house.subscribed(&token, &[PROJECT]).await;
    let mebibyte = "x".repeat(1 << 20);
    let deep = "[".repeat(50_000);
    for frame in [
        "hello",
        "null",
        "[]",
        "[1,2]",
        "\"x\"",
        "{",
        "",
        &mebibyte,
        &deep,
        r#"{"since":"x"}"#,
    ] {
        bad.say(frame).await;
        let told = bad.document().await;
        assert!(told["error"].is_string(), "{told}");
    }
    bad.send(Message::binary(vec![1, 2, 3])).await;
    assert!(bad.document().await["error"].is_string());
    // It lives, and is subscribed as before.
    house.note(&token, "p", "s", "n").await;
    assert_eq!(bad.name().await, "n");
    assert_eq!(other.name().await, "n");
    // One that is too long for any message is closed, alone.
    bad.say(&"x".repeat(3 << 20)).await;
    assert_eq!(bad.closed().await, 1009);
    house.note(&token, "p", "s", "m").await;
    assert_eq!(other.name().await, "m");
}

#[tokio::test]
async fn a_flood_of_subscriptions_meets_its_bound() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let mut socket = house.socket(&format!("/?token={token}")).await;
    for n in 0..1_000 {
        socket
            .say(&format!(r#"{{"user":"u","project":"p{n}"}}"#))
            .await;
        assert!(socket.hear().await.contains("suscribed_to_project"));
    }
    socket.say(r#"{"user":"u","project":"one more"}"#).await;
    let told = socket.document().await;
    assert!(
        told["error"].as_str().unwrap().contains("at most 1000"),
        "{told}"
    );
    house.note(&token, "p7", "s", "n").await;
    assert_eq!(socket.name().await, "n");
    assert_eq!(
        house.metric("storage_repository_subscriptions").await,
        1_000.0
    );
    drop(socket);
    while house.metric("storage_repository_subscriptions").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_upload_that_does_not_go_on_is_ended_and_leaves_nothing() {
    let storage = "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\nauth = [\"anonymous\", \"token\"]\n";
    let config = format!("[timeouts]\npartial_message = \"500ms\"\n{LISTENER}{storage}");
    let house = House::new(&config);
    let token = house.login(BOB).await;
    let target = "/upload?project=p&source=s&Path=&DestFileName=slow";
    let headers = format!("Authorization: OAuth {token}\r\n");
    let start =
        "--*****\r\nContent-Disposition: form-data; name=\"UploadFile\"; filename=\"f\"\r\n\r\n";
    let begin = async |bytes: usize| {
        let mut stream = house.connect().await;
        stream
            .write_all(head(target, &headers, 64 << 20).as_bytes())
            .await
            .unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        stream.write_all(&vec![1; bytes]).await.unwrap();
        stream
    };
    assert_eq!(house.get("/new_db", &token).await.status, 200);
    let before = entries(&house, &token).await;
    let mut slow = begin(6 << 20).await;
    let told = Answer::read(&mut slow).await;
    assert_eq!(told.status, 408, "{}", told.text());
    // So is one of a byte now and then.
    let mut drops = begin(0).await;
    let (mut reader, mut writer) = drops.split();
    let told = tokio::select! {
        told = Answer::read(&mut reader) => told,
        () = async {
            while writer.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            std::future::pending().await
        } => unreachable!(),
    };
    assert_eq!(told.status, 408, "{}", told.text());
    // And one whose peer is gone in the middle.
    drop(begin(6 << 20).await);
    // A head that never ends, and garbage in place of a body.
    let mut endless = house.connect().await;
    endless
        .write_all(head(target, &headers, 64 << 20).as_bytes())
        .await
        .unwrap();
    endless
        .write_all(format!("--*****\r\na: {}", "x".repeat(100_000)).as_bytes())
        .await
        .unwrap();
    assert_eq!(Answer::read(&mut endless).await.status, 400);
    let garbage: Vec<u8> = (0..200_000_u32)
        .map(|n| u8::try_from(n * 7 % 256).unwrap())
        .collect();
    let mut request = head(target, &headers, garbage.len()).into_bytes();
    request.extend(&garbage);
    assert_eq!(house.raw(&request).await.status, 400);
    assert_eq!(house.get("/downloadlist", &token).await.text(), "");
    while entries(&house, &token).await > before {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn uploads_that_one_peer_does_not_end_keep_no_other_from_its_own() {
    // Longer than others wait for their turn: what is begun here does not end by itself.
    let house = House::new(&format!("[timeouts]\npartial_message = \"5m\"\n{LISTENER}"));
    let (bob, alice) = (
        house.login(BOB).await,
        house.login(("alice@abc.com", "1234")).await,
    );
    let headers = format!("Authorization: OAuth {bob}\r\n");
    let mut begun = Vec::new();
    for n in 0..80 {
        let target = format!("/upload?project=p&source=s&Path=&DestFileName=f{n}");
        let mut stream = house.connect().await;
        let head = head(&target, &headers, 1 << 20);
        stream.write_all(head.as_bytes()).await.unwrap();
        begun.push(stream);
    }
    house.note(&alice, "p", "s", "hers").await;
    let other = house
        .upload(&bob, "project=p&source=s&Path=&DestFileName=g", b"x", "{}")
        .await;
    assert_eq!(other.status, 503, "{}", other.text());
    assert!(other.text().contains("uploads"), "{}", other.text());
    drop(begun);
    house.note(&bob, "p", "s", "his").await;
}

/// How many entries the keyspace has, parts of files included.
async fn entries(house: &House, token: &str) -> u64 {
    let headers = format!("Authorization: Bearer {token}\r\n");
    let request = format!(
        "GET /-/auth/usage?keyspace=repository HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    );
    let mut stream = tokio::net::TcpStream::connect(house.storage_address())
        .await
        .unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let usage = Answer::read(&mut stream).await;
    assert_eq!(usage.status, 200, "{}", usage.text());
    usage.json()["usage"]["entries"].as_u64().unwrap()
}

#[tokio::test]
async fn garbage_in_place_of_requests_harms_nobody() {
    let house = House::secured();
    let token = house.login(BOB).await;
    for request in [
        &b"GET /query_metadata?project=\"\x00 HTTP/1.1\r\n\r\n"[..],
        b"GET /download?project=\xff\xfe&source=s&filepath=/&filename=x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"\"\"\"\"\r\n\r\n",
        b"GET /{[\"|^`]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ] {
        let mut stream = house.connect().await;
        let _ = stream.write_all(request).await;
        let mut read = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut read).await;
        assert!(!read.starts_with(b"HTTP/1.1 2"), "{:?}", read.escape_ascii().to_string());
    }
    // A name that looks like a header, and one that looks like a key of ours.
    for name in ["a%0d%0aX-Evil: 1", "%00meta", "%00part%00x"] {
        let name = name.replace(' ', "%20");
        let query = format!("project=p&source=s&Path=&DestFileName={name}");
        house.uploaded(&token, &query, b"x", "{}").await;
        let answer = house
            .get(
                &format!("/download?project=p&source=s&filepath=/&filename={name}"),
                &token,
            )
            .await;
        assert_eq!((answer.status, answer.header("x-evil")), (200, None));
    }
    let found = house.get("/query_metadata?project=p", &token).await.json();
    assert_eq!(found.as_array().unwrap().len(), 3);
    let list = house.get("/downloadlist?project=p", &token).await.text();
    assert!(list.contains("p/s/\0meta\n"), "{list:?}");
}

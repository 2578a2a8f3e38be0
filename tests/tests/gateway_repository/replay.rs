//! What a socket missed: nothing without asking, and all of it with `since`; over restarts and kills too.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use storage_testkit::data_folder::set_boot;
use tokio::io::AsyncWriteExt;

use crate::house::{BOB, Form, House, LISTENER, Socket, head};

const PROJECT: &str = r#"{"user":"u","project":"p"}"#;

fn since(revision: u64) -> String {
    format!(r#"{{"user":"u","project":"p","since":{revision}}}"#)
}

async fn with_revision(socket: &mut Socket) -> (String, u64) {
    let document = socket.document().await;
    let name = document["filename"]
        .as_str()
        .unwrap_or_else(|| panic!("{document}"));
    (name.to_owned(), document["revision"].as_u64().unwrap())
}

#[tokio::test]
async fn item_16_what_was_missed_comes_in_order_to_who_asks_for_it_and_to_nobody_else() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let mut first = house.subscribed(&token, &[&since(0)]).await;
    house.note(&token, "p", "s", "seen").await;
    let (name, revision) = with_revision(&mut first).await;
    assert_eq!(name, "seen");
    drop(first);
    for name in ["a", "b", "a", "c"] {
        house.note(&token, "p", "s", name).await;
        house.note(&token, "other", "s", name).await;
    }
    // Connected again, and not subscribed: nothing. Subscribed: what comes from then on, without a field more.
    let mut silent = house.socket(&format!("/?token={token}")).await;
    let mut plain = house.subscribed(&token, &[PROJECT]).await;
    let mut again = house.subscribed(&token, &[&since(revision)]).await;
    for name in ["a", "b", "a", "c"] {
        assert_eq!(with_revision(&mut again).await.0, name);
    }
    house.note(&token, "p", "s", "last").await;
    assert_eq!(with_revision(&mut again).await.0, "last");
    let document = plain.document().await;
    assert_eq!(
        (&document["filename"], &document["revision"]),
        (&Value::from("last"), &Value::Null)
    );
    silent.say(PROJECT).await;
    assert!(silent.hear().await.contains("suscribed_to_project"));
    // In the first place where both are asked for: by project from the start, by source from now on.
    let mut both = house
        .subscribed(&token, &[r#"{"user":"u","source":"s"}"#, &since(0)])
        .await;
    for name in ["seen", "a", "b", "a", "c", "last"] {
        assert_eq!(with_revision(&mut both).await.0, name);
    }
    house.note(&token, "p", "s", "once").await;
    house.note(&token, "other", "s", "once-more").await;
    assert_eq!(with_revision(&mut both).await.0, "once");
    assert_eq!(with_revision(&mut both).await.0, "once-more");
    let mut future = house.socket(&format!("/?token={token}")).await;
    future.say(&since(1 << 40)).await;
    assert!(
        future.document().await["error"]
            .as_str()
            .unwrap()
            .starts_with("since")
    );
}

#[tokio::test]
async fn a_restart_in_the_middle_loses_nothing_and_doubles_nothing() {
    let mut house = House::secured();
    let mut told = Vec::new();
    let mut last = 0;
    for round in 0..3 {
        let token = house.login(BOB).await;
        let mut socket = house.subscribed(&token, &[&since(last)]).await;
        for n in 0..10 {
            house.note(&token, "p", "s", &format!("{round}-{n}")).await;
            // Some of them are told before the server is gone, and some are not.
            if n < 7 {
                let (name, revision) = with_revision(&mut socket).await;
                told.push(name);
                last = revision;
            }
        }
        house.server.restart();
    }
    let token = house.login(BOB).await;
    let mut socket = house.subscribed(&token, &[&since(last)]).await;
    while told.len() < 30 {
        told.push(with_revision(&mut socket).await.0);
    }
    let expected: Vec<_> = (0..30).map(|n| format!("{}-{}", n / 10, n % 10)).collect();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_25_a_killed_server_has_told_of_nothing_that_is_not_stored() {
    let mut house = House::secured();
    let token = house.login(BOB).await;
    let mut socket = house.subscribed(&token, &[PROJECT]).await;
    // Uploads without end, of which the server is killed in the middle of some.
    let address = house.address().to_owned();
    let form = |n: usize| {
        let file = vec![7; 300_000 + n];
        Form::default()
            .file("UploadFile", &file)
            .file("UploadJSON", b"{}")
    };
    let uploading: Vec<_> = (0..4)
        .map(|who| {
            let (address, token) = (address.clone(), token.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0.. {
                    let name = format!("{who}-{n}");
                    let target = format!("/upload?project=p&source=s&Path=&DestFileName={name}");
                    let headers = format!("Authorization: OAuth {token}\r\n");
                    let mut request = form(n).head(&target, &headers).into_bytes();
                    request.extend(form(n).body());
                    let Ok(mut stream) = tokio::net::TcpStream::connect(&address).await else {
                        return acknowledged;
                    };
                    let _ = stream.write_all(&request).await;
                    let mut answer = Vec::new();
                    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
                    match answer.starts_with(b"HTTP/1.1 200") {
                        true => acknowledged.push(name),
                        false => return acknowledged,
                    }
                }
                acknowledged
            })
        })
        .collect();
    // And one of several parts, whose end never comes.
    let target = "/upload?project=p&source=s&Path=&DestFileName=half";
    let headers = format!("Authorization: OAuth {token}\r\n");
    let mut half = house.connect().await;
    half.write_all(head(target, &headers, 100 << 20).as_bytes())
        .await
        .unwrap();
    let start =
        "--*****\r\nContent-Disposition: form-data; name=\"UploadFile\"; filename=\"f\"\r\n\r\n";
    half.write_all(start.as_bytes()).await.unwrap();
    half.write_all(&vec![1; 5 << 20]).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 25 {
        told.push(socket.name().await);
    }
    house.server.kill();
    let mut acknowledged = Vec::new();
    for one in uploading {
        acknowledged.extend(one.await.unwrap());
    }
    house.server.restart();
    let token = house.login(BOB).await;
    let list = house.get("/downloadlist", &token).await.text();
    for name in told.iter().chain(&acknowledged) {
        let found = house
            .get(
                &format!("/query_metadata?project=p&filename={name}"),
                &token,
            )
            .await
            .json();
        assert_eq!(found.as_array().unwrap().len(), 1, "{name}");
        assert!(list.contains(&format!("p/s/{name}\n")), "{name}");
    }
    // Each file that is seen has its document, and all of its bytes.
    for line in list.lines() {
        let name = line.strip_prefix("p/s/").unwrap();
        let found = house
            .get(
                &format!("/query_metadata?project=p&filename={name}"),
                &token,
            )
            .await
            .json();
        assert_eq!(found.as_array().unwrap().len(), 1, "{line}");
        let n: usize = name.split_once('-').unwrap().1.parse().unwrap();
        let read = format!("/download?project=p&source=s&filepath=/&filename={name}");
        assert_eq!(house.get(&read, &token).await.body.len(), 300_000 + n);
    }
    assert!(!list.contains("half"), "{list}");
}

#[tokio::test]
async fn where_the_log_does_not_reach_back_the_newest_document_of_each_file_comes() {
    let small = "[limits]\nmemory_bytes_max = \"16 MiB\"\n[engine]\nlog_bytes = \"1 MiB\"\nring_bytes = \"64 KiB\"\n";
    let config = format!("{small}{LISTENER}");
    let mut house = House::new(&config);
    let token = house.login(BOB).await;
    let mut first = house.subscribed(&token, &[&since(0)]).await;
    house.note(&token, "p", "s", "seen").await;
    let (_, revision) = with_revision(&mut first).await;
    drop(first);
    for name in ["a", "b", "a"] {
        house.note(&token, "p", "s", name).await;
    }
    // More than the log may have; what is over its bound is purged at the next start.
    let file = vec![3; 8 << 20];
    for n in 0..12 {
        let query = format!("project=bulk&source=s&Path=&DestFileName=n{}", n % 2);
        house.uploaded(&token, &query, &file, "{}").await;
    }
    house.server.terminate();
    house.server.restart();
    let token = house.login(BOB).await;
    let mut socket = house.socket(&format!("/?token={token}")).await;
    socket.say(&since(revision)).await;
    assert!(socket.hear().await.contains("suscribed_to_project"));
    let told = socket.document().await;
    assert!(
        told["error"]
            .as_str()
            .unwrap()
            .contains("does not reach back"),
        "{told}"
    );
    assert_eq!(with_revision(&mut socket).await.0, "b");
    assert_eq!(with_revision(&mut socket).await.0, "a");
    house.note(&token, "p", "s", "live").await;
    assert_eq!(with_revision(&mut socket).await.0, "live");
}

/// Who subscribes with `since` is told the position, and may give it, or one of the same epoch, the next time.
#[tokio::test]
async fn since_takes_a_position_and_says_when_the_history_is_another_one() {
    let mut house = House::secured();
    let token = house.login(BOB).await;
    let subscribe = |since: &str| format!(r#"{{"user":"u","project":"p","since":"{since}"}}"#);
    let mut socket = house.subscribed(&token, &[PROJECT]).await;
    house.note(&token, "p", "s", "before").await;
    assert_eq!(socket.name().await, "before");
    socket.say(&since(0)).await;
    let told = socket.document().await;
    let position = told["position"].as_str().unwrap().to_owned();
    let expected = json!({"user":"u","suscribed_to_project":"p","position":position});
    assert_eq!(told, expected);
    assert_eq!(with_revision(&mut socket).await.0, "before");
    house.note(&token, "p", "s", "behind").await;
    assert_eq!(with_revision(&mut socket).await.0, "behind");
    let mut again = house.subscribed(&token, &[&subscribe(&position)]).await;
    assert_eq!(with_revision(&mut again).await.0, "behind");
    // Of another store: nothing is subscribed to.
    again
        .say(r#"{"user":"u","source":"s","since":"00000000000000ab:1"}"#)
        .await;
    let told = again.document().await;
    let error = told["error"].as_str().unwrap();
    let epoch = position.split_once(':').unwrap().0.to_owned();
    assert!(
        error.contains("another store") && error.contains(&epoch),
        "{error}"
    );
    house.note(&token, "other", "s", "source").await;
    house.note(&token, "p", "s", "project").await;
    assert_eq!(with_revision(&mut again).await.0, "project");
    // The machine went down, and what it had not written out may be lost: the history is another one from there on.
    house.note(&token, "p", "s", "last").await;
    let (name, revision) = with_revision(&mut again).await;
    assert_eq!(name, "last");
    house.server.kill();
    set_boot(&house.data(), "another-boot");
    house.server.restart();
    let token = house.login(BOB).await;
    let mut socket = house.socket(&format!("/?token={token}")).await;
    socket.say(&subscribe(&format!("{epoch}:{revision}"))).await;
    let told = socket.document().await;
    let error = told["error"].as_str().unwrap();
    assert!(error.contains("another history"), "{error}");
    // It says what is to be asked for instead.
    let fork = error.rsplit('"').nth(1).unwrap();
    assert!(!fork.starts_with(&epoch), "{error}");
    socket.say(&subscribe(fork)).await;
    assert!(socket.hear().await.contains("suscribed_to_project"));
    house.note(&token, "p", "s", "anew").await;
    let names = socket.names_up_to("anew").await;
    assert!(names.contains(&"last".to_owned()), "{names:?}");
}

/// Removes the log that is not in use any more, once there is some.
async fn purge(house: &House) {
    let archive = house.data().join("db/archive");
    let began = Instant::now();
    loop {
        let files: Vec<_> = std::fs::read_dir(&archive).into_iter().flatten().collect();
        for file in &files {
            std::fs::remove_file(file.as_ref().unwrap().path()).unwrap();
        }
        if !files.is_empty() {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "nothing was archived"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_subscription_with_nothing_to_tell_does_not_fall_behind_the_log() {
    let small = "[limits]\nmemory_bytes_max = \"16 MiB\"\n[engine]\nring_bytes = 1\n[timeouts]\nidle_mark = \"100ms\"\n";
    let house = House::new(&format!("{small}{LISTENER}"));
    let token = house.login(BOB).await;
    let mut socket = house.subscribed(&token, &[PROJECT]).await;
    let file = vec![3; 8 << 20];
    for _ in 0..8 {
        let query = "project=bulk&source=s&Path=&DestFileName=n";
        house.uploaded(&token, query, &file, "{}").await;
    }
    // Many times as long as it takes to be told how far the log is.
    tokio::time::sleep(Duration::from_secs(2)).await;
    purge(&house).await;
    // Another subscription needs another watch, which begins where the first one is.
    socket.say(r#"{"user":"u","project":"q"}"#).await;
    assert!(socket.hear().await.contains("suscribed_to_project"));
    house.note(&token, "p", "s", "quiet").await;
    assert_eq!(socket.name().await, "quiet");
}

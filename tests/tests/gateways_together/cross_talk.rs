//! Two thousand sockets of three protocols on one port: each is told what it asked for and may see, and nothing else.

use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::{KeyRange, Storage, StorageExt, Watch, WatchEvent, WatchOptions};
use storage_testkit::raw::in_time;

use crate::house::{House, LISTENER, Socket, basic};

/// Of each protocol.
const SOCKETS: usize = 600;
/// Sockets of who may see little and asks for everything.
const CURIOUS: usize = 100;
/// What is opened, or written, at once.
const AT_ONCE: usize = 32;
/// What the system and the allocator may add.
const SLACK: f64 = 1.2;

/// `boss` may do everything; `guest` sees machines, one project and nothing else.
const RULES: &str = r#"
[limits]
sessions_per_principal_max = 5000
handshakes_max = 5000
http_connections_max = 2000

[[rule]]
principal = "user:rocketskates"
keyspace = "*"
allow = ["read", "write", "watch", "admin"]

[[rule]]
principal = "user:rocketskates"
keyspace = "system"
allow = ["admin"]

[[rule]]
principal = "user:bob@abc.com"
keyspace = "events"
prefix = "machines/"
allow = ["read", "watch"]

[[rule]]
principal = "user:bob@abc.com"
keyspace = "repository"
prefix = "open/"
allow = ["read", "watch"]
"#;

const BOSS: (&str, &str) = ("rocketskates", "r0cketsk8ts");
const GUEST: (&str, &str) = ("bob@abc.com", "1234");

/// A token of a user, which the file repository hands out.
async fn token(house: &House, (user, password): (&str, &str)) -> String {
    let login = format!("/login?email={user}&pw={password}");
    let answer = house.ask("GET", &login, "", "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

async fn listening(house: &House, user: (&str, &str), filter: &str) -> Socket {
    let (name, password) = user;
    let mut socket = house
        .socket(&format!("/api/v3/ws?token={name}:{password}"))
        .await;
    socket.say(&format!("register {filter}")).await;
    assert_eq!(socket.hear().await["Key"], filter);
    socket
}

async fn subscribed(house: &House, token: &str, projects: &[&str]) -> Socket {
    let mut socket = house.socket(&format!("/?token={token}")).await;
    for project in projects {
        socket
            .say(&json!({ "user": "u", "project": project }).to_string())
            .await;
        let told = socket.hear().await;
        assert_eq!(told["suscribed_to_project"], *project, "{told}");
    }
    socket
}

/// A native session with one watch.
async fn watching(house: &House, n: usize) -> (RemoteStorage, Watch) {
    let url = format!("ws://{}/storage/model", house.address());
    let options = ConnectOptions::new(url)
        .danger_plaintext()
        .password(BOSS.0, BOSS.1);
    let storage = in_time("a session", RemoteStorage::connect(options))
        .await
        .unwrap();
    let watch = storage.watch(KeyRange::prefix(format!("{n}/")), WatchOptions::default());
    let watch = watch.await.unwrap();
    (storage, watch)
}

async fn each<T>(work: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    stream::iter(work).buffered(AT_ONCE).collect().await
}

async fn post(house: &House, kind: &str, object: Value) {
    let headers = basic(BOSS.0, BOSS.1) + "Content-Type: application/json\r\n";
    let answer = house
        .ask(
            "POST",
            &format!("/api/v3/{kind}"),
            &headers,
            &object.to_string(),
        )
        .await;
    assert_eq!(answer.status, 201, "{}", answer.text());
}

async fn upload(house: &House, token: &str, project: &str, name: &str) {
    let part = |name: &str, data: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n{data}\r\n"
        )
    };
    let body = format!(
        "{}{}--b--\r\n",
        part("UploadFile", "x"),
        part("UploadJSON", "{}")
    );
    let target = format!("/upload?project={project}&source=s&Path=&DestFileName={name}");
    let headers = format!(
        "Authorization: OAuth {token}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    );
    let answer = house.ask("POST", &target, &headers, &body).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "UPLOAD: succeed\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_sockets_are_told_what_they_asked_for_and_may_see_and_nothing_else() {
    let house = House::new(&format!("{LISTENER}{RULES}"), &["--demo"]);
    let (own, others) = (token(&house, BOSS).await, token(&house, GUEST).await);
    // The first logins are hashed; from here on it is the sockets that count.
    drop(watching(&house, 0).await);
    let before = house.server.resident_bytes();

    let house_ref = &house;
    let machines = each(
        (0..SOCKETS)
            .map(|n| async move { listening(house_ref, BOSS, &format!("machines.*.m{n}")).await }),
    );
    let mut machines = machines.await;
    let curious = each((0..CURIOUS).map(|_| listening(&house, GUEST, "*.*.*")));
    let mut curious = curious.await;
    let projects = each((0..SOCKETS).map(|n| {
        let (house, own) = (&house, &own);
        async move { subscribed(house, own, &[&format!("p{n}")]).await }
    }));
    let mut projects = projects.await;
    let nosy = each((0..CURIOUS).map(|_| async {
        let mut socket = subscribed(&house, &others, &["open"]).await;
        let closed = json!({ "user": "u", "project": "closed" });
        socket.say(&closed.to_string()).await;
        let told = socket.hear().await;
        assert!(
            told["error"].as_str().unwrap().contains("may not watch"),
            "{told}"
        );
        socket
    }));
    let mut nosy = nosy.await;
    let mut natives = each((0..SOCKETS).map(|n| watching(&house, n))).await;
    // These two read nothing from here on.
    let stalled = listening(&house, BOSS, "*.*.*").await;
    let stuck = subscribed(&house, &own, &["open", "closed"]).await;
    let sockets = machines.len() + curious.len() + projects.len() + nosy.len() + natives.len() + 2;
    assert_eq!(sockets, 2_002);
    let opened = house.server.resident_bytes();

    let model = natives[0].0.clone();
    each((0..SOCKETS).map(|n| {
        let (house, own, model) = (&house, &own, &model);
        async move {
            post(house, "machines", json!({ "Uuid": format!("m{n}") })).await;
            upload(house, own, &format!("p{n}"), "f").await;
            model
                .put(format!("{n}/k").into(), "v".into())
                .await
                .unwrap();
        }
    }))
    .await;
    post(&house, "profiles", json!({ "Name": "secret" })).await;
    upload(&house, &own, "closed", "secret").await;
    upload(&house, &own, "open", "told").await;

    // Each its own, and behind it nothing but what it asks for now.
    for (n, socket) in machines.iter_mut().enumerate() {
        let event = socket.hear().await;
        assert_eq!(
            (&event["Type"], &event["Key"]),
            (&json!("machines"), &json!(format!("m{n}")))
        );
        socket.say("register x.*.*").await;
        assert_eq!(socket.hear().await["Key"], "x.*.*");
    }
    for socket in &mut curious {
        let mut keys = Vec::new();
        for _ in 0..SOCKETS {
            let event = socket.hear().await;
            assert_eq!(event["Type"], "machines", "{event}");
            keys.push(event["Key"].as_str().unwrap().to_owned());
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), SOCKETS);
        socket.say("register x.*.*").await;
        assert_eq!(socket.hear().await["Key"], "x.*.*");
    }
    for (n, socket) in projects.iter_mut().enumerate() {
        assert_eq!(socket.hear().await["project"], format!("p{n}"));
        socket.say("{\"user\":\"u\"}").await;
        assert_eq!(socket.hear().await, json!({ "user": "u" }));
    }
    for socket in &mut nosy {
        let document = socket.hear().await;
        assert_eq!(
            (&document["project"], &document["filename"]),
            (&json!("open"), &json!("told"))
        );
        socket.say("{\"user\":\"u\"}").await;
        assert_eq!(socket.hear().await, json!({ "user": "u" }));
    }
    for (n, (_, watch)) in natives.iter_mut().enumerate() {
        const TOKEN: u64 = 7;
        watch.request_progress(TOKEN);
        let mut told = Vec::new();
        loop {
            match in_time("an event of a watch", watch.next())
                .await
                .unwrap()
                .unwrap()
            {
                WatchEvent::Commit(commit) => {
                    told.extend(commit.changes.iter().map(|change| change.key.clone()));
                }
                WatchEvent::Progress {
                    token: Some(TOKEN), ..
                } => break,
                WatchEvent::Progress { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(told, [format!("{n}/k")]);
    }

    // Nobody waited for those who read nothing, and they hold no more than an outbox each.
    let after = house.server.resident_bytes();
    let each_one = opened.saturating_sub(before) / sockets as u64;
    println!(
        "memory: {each_one} bytes a socket; {} KiB more behind all of it",
        after.saturating_sub(opened) / 1024
    );
    let outboxes = 2.0 * f64::from(8 << 20);
    // A socket has what the library holds (two buffers of 8 and 64 KiB at most), its task and its watch.
    let bound = (sockets as f64 * f64::from(96 << 10) + outboxes) * SLACK;
    assert!(
        ((after.saturating_sub(before)) as f64) < bound,
        "{before} {opened} {after}"
    );
    drop((stalled, stuck));
}

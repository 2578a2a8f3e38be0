//! Who may do what with a project: one rule with its prefix says it, for files, documents and what is told of them.

use std::time::Duration;

use crate::house::{BOB, Form, House, LISTENER};

const ALICE: (&str, &str) = ("alice@abc.com", "1234");

/// Bob may everything, and change who may what; Alice may read and watch the project `open`, and write nothing.
const RULES: &str = r#"
[[rule]]
principal = "user:bob@abc.com"
keyspace = "system"
allow = ["admin"]

[[rule]]
principal = "user:bob@abc.com"
keyspace = "repository"
allow = ["read", "write", "watch"]

[[rule]]
principal = "user:alice@abc.com"
keyspace = "repository"
prefix = "open/"
allow = ["read", "watch"]

[[rule]]
principal = "user:montana@abc.com"
keyspace = "repository"
prefix = "own/"
allow = ["read", "write", "watch"]
"#;

#[tokio::test]
async fn a_rule_with_its_prefix_grants_a_project_and_no_other() {
    let house = House::new(&format!("{RULES}{LISTENER}"));
    let (bob, alice) = (house.login(BOB).await, house.login(ALICE).await);
    let montana = house.login(("montana@abc.com", "new")).await;
    for project in ["closed", "open", "open2"] {
        house.note(&bob, project, "s", "n").await;
    }
    let read =
        |project: &str| format!("/download?project={project}&source=s&filepath=/&filename=n");
    assert_eq!(house.get(&read("open"), &alice).await.text(), "x");
    for project in ["closed", "open2"] {
        let denied = house.get(&read(project), &alice).await;
        assert_eq!(denied.status, 403);
        assert!(
            denied.text().starts_with("Access DENY"),
            "{}",
            denied.text()
        );
        assert_eq!(
            house
                .get(&format!("/downloadlist?project={project}"), &alice)
                .await
                .status,
            403
        );
        assert_eq!(
            house
                .get(&format!("/downloadzip?project={project}"), &alice)
                .await
                .status,
            403
        );
    }
    // What is not named is cut to what may be read.
    assert_eq!(
        house.get("/downloadlist", &alice).await.text(),
        "open/s/n\n"
    );
    for query in ["", "?source=s", "?filename=n"] {
        let found = house
            .get(&format!("/query_metadata{query}"), &alice)
            .await
            .json();
        assert_eq!(found.as_array().unwrap().len(), 1, "{query}");
        assert_eq!(found[0]["project"], "open");
    }
    assert_eq!(
        house
            .get("/query_metadata?project=closed", &alice)
            .await
            .text(),
        "[]"
    );
    let query = "project=open&source=s&Path=&DestFileName=m";
    assert_eq!(house.upload(&alice, query, b"x", "{}").await.status, 403);
    let delete = "/delete_metadata?project=open&source=s&Path=&DestFileName=n";
    assert_eq!(house.post(delete, &alice).await.status, 403);
    assert_eq!(house.get("/drop_db", &alice).await.status, 403);
    assert_eq!(house.get("/new_db", &alice).await.status, 403);
    assert_eq!(house.get("/get_log_list", &alice).await.status, 403);
    assert_eq!(
        house
            .get("/downloadlist", &bob)
            .await
            .text()
            .lines()
            .count(),
        3
    );
    // Who may write a project needs no more, although nobody has made the keyspace by hand.
    house.note(&montana, "own", "s", "n").await;
    assert_eq!(house.upload(&montana, query, b"x", "{}").await.status, 403);
    assert_eq!(
        house.get("/downloadlist", &montana).await.text(),
        "own/s/n\n"
    );
}

#[tokio::test]
async fn who_may_write_a_project_alone_makes_the_first_upload_of_all() {
    let house = House::new(&format!("{RULES}{LISTENER}"));
    let montana = house.login(("montana@abc.com", "new")).await;
    house.note(&montana, "own", "s", "n").await;
    assert_eq!(
        house
            .get("/query_metadata?project=own", &montana)
            .await
            .json()[0]["filename"],
        "n"
    );
}

#[tokio::test]
async fn nobody_is_told_of_a_project_that_they_may_not_watch() {
    let house = House::new(&format!("{RULES}{LISTENER}"));
    let (bob, alice) = (house.login(BOB).await, house.login(ALICE).await);
    house.note(&bob, "open", "s", "before").await;
    // A source of all projects: those that may be watched.
    let mut socket = house
        .subscribed(&alice, &[r#"{"user":"u","source":"s"}"#])
        .await;
    socket.say(r#"{"user":"u","project":"closed"}"#).await;
    let told = socket.document().await;
    assert!(
        told["error"].as_str().unwrap().contains("may not watch"),
        "{told}"
    );
    socket.say(r#"{"user":"u","source":"s","since":0}"#).await;
    assert!(socket.hear().await.contains("suscribed_to_source"));
    assert_eq!(socket.name().await, "before");
    house.note(&bob, "closed", "s", "secret").await;
    house.note(&bob, "open2", "s", "secret").await;
    house.note(&bob, "open", "s", "told").await;
    assert_eq!(socket.name().await, "told");
    let mut nobody = house.socket("/?token=").await;
    nobody.say(r#"{"user":"u","source":"s"}"#).await;
    assert!(nobody.document().await["error"].is_string());
}

#[tokio::test]
async fn a_page_of_another_site_does_not_come_in_by_a_token_that_is_none() {
    let house = House::open();
    let form = Form::default()
        .file("UploadFile", b"x")
        .file("UploadJSON", b"{}");
    let upload = async |headers: &str| {
        let target = "/upload?project=p&source=s&Path=&DestFileName=n";
        let mut request = form.head(target, headers).into_bytes();
        request.extend(form.body());
        house.raw(&request).await.status
    };
    let page = "Origin: https://evil.example\r\n";
    assert_eq!(upload(page).await, 403);
    assert_eq!(
        upload(&format!("{page}Authorization: OAuth junk\r\n")).await,
        401
    );
    // Programs send what they have, and a page with a good token is who it says.
    assert_eq!(upload("Authorization: OAuth junk\r\n").await, 200);
    let token = house.login(BOB).await;
    assert_eq!(
        upload(&format!("{page}Authorization: OAuth {token}\r\n")).await,
        200
    );
}

/// What Alice may in addition, from some time on.
const WIDER: &str = r#"
[[rule]]
principal = "user:alice@abc.com"
keyspace = "repository"
prefix = "closed/"
allow = ["read", "watch"]
"#;

/// Until Alice may read the project `closed`.
async fn is_wider(house: &House, alice: &str) {
    let query = "/query_metadata?project=closed";
    for _ in 0..600 {
        if house.get(query, alice).await.text() != "[]" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the wider rights do not come");
}

#[tokio::test]
async fn what_rights_have_hidden_is_told_to_who_asks_for_it_when_they_are_wider() {
    let house = House::new(&format!("{RULES}{LISTENER}"));
    let (bob, alice) = (house.login(BOB).await, house.login(ALICE).await);
    house.note(&bob, "open", "s", "seen").await;
    house.note(&bob, "closed", "s", "hidden").await;
    house.note(&bob, "open", "s", "seen-too").await;
    let mut socket = house
        .subscribed(&alice, &[r#"{"user":"u","source":"s","since":0}"#])
        .await;
    assert_eq!(socket.name().await, "seen");
    assert_eq!(socket.name().await, "seen-too");
    house.configure(&format!("{RULES}{WIDER}{LISTENER}"));
    is_wider(&house, &alice).await;
    socket
        .say(r#"{"user":"u","project":"closed","since":0}"#)
        .await;
    assert!(socket.hear().await.contains("suscribed_to_project"));
    assert_eq!(socket.name().await, "hidden");
    // And once.
    for name in ["marker", "marker-2"] {
        house.note(&bob, "closed", "s", name).await;
    }
    assert_eq!(socket.names_up_to("marker-2").await, ["marker", "marker-2"]);
}

/// Behind a log that does not reach back, too.
#[tokio::test]
async fn catching_up_goes_on_when_the_rights_change_meanwhile() {
    const FILES: usize = 40;
    let small = "[limits]\nmemory_bytes_max = \"16 MiB\"\n[engine]\nlog_bytes = \"1 MiB\"\nring_bytes = \"64 KiB\"\n";
    let mut house = House::new(&format!("{small}{RULES}{LISTENER}"));
    let bob = house.login(BOB).await;
    house.note(&bob, "closed", "s", "hidden").await;
    // More than the buffers on the way to a socket hold.
    let json = format!("{{\"long\":\"{}\"}}", "x".repeat(900_000));
    for n in 0..FILES {
        let query = format!("project=open&source=s&Path=&DestFileName=n{n}");
        house.uploaded(&bob, &query, b"x", &json).await;
    }
    let file = vec![3; 8 << 20];
    for n in 0..12 {
        let query = format!("project=bulk&source=s&Path=&DestFileName=n{}", n % 2);
        house.uploaded(&bob, &query, &file, "{}").await;
    }
    house.server.terminate();
    house.server.restart();
    let (bob, alice) = (house.login(BOB).await, house.login(ALICE).await);
    let mut socket = house.socket(&format!("/?token={alice}")).await;
    socket.say(r#"{"user":"u","source":"s","since":1}"#).await;
    assert!(socket.hear().await.contains("suscribed_to_source"));
    let told = socket.document().await;
    let told = told["error"].as_str().unwrap();
    assert!(told.contains("does not reach back"), "{told}");
    assert_eq!(socket.name().await, "n0");
    // It stands in the middle, since nobody reads.
    house.configure(&format!("{small}{RULES}{WIDER}{LISTENER}"));
    is_wider(&house, &alice).await;
    let expected: Vec<_> = (1..FILES).map(|n| format!("n{n}")).collect();
    let names = socket.names_up_to(&format!("n{}", FILES - 1)).await;
    assert_eq!(names, expected);
    house.note(&bob, "closed", "s", "live").await;
    assert_eq!(socket.name().await, "live");
}

#[tokio::test]
async fn a_subscription_that_is_refused_in_part_is_refused_in_all() {
    let house = House::new(&format!("{RULES}{LISTENER}"));
    let (bob, alice) = (house.login(BOB).await, house.login(ALICE).await);
    let mut socket = house.socket(&format!("/?token={alice}")).await;
    socket
        .say(r#"{"user":"u","project":"closed","source":"s"}"#)
        .await;
    assert!(socket.document().await["error"].is_string());
    // One place is left, and two are asked for.
    for n in 0..999 {
        socket
            .say(&format!(r#"{{"user":"u","source":"s{n}"}}"#))
            .await;
        assert!(socket.hear().await.contains("suscribed_to_source"));
    }
    socket
        .say(r#"{"user":"u","project":"open","source":"s"}"#)
        .await;
    let told = socket.document().await;
    let told = told["error"].as_str().unwrap();
    assert!(told.contains("at most 1000"), "{told}");
    house.note(&bob, "open", "s", "refused").await;
    house.note(&bob, "open", "s7", "subscribed").await;
    assert_eq!(socket.name().await, "subscribed");
    assert_eq!(
        house.metric("storage_repository_subscriptions").await,
        999.0
    );
    socket.say(r#"{"user":"u","project":"open"}"#).await;
    assert!(socket.hear().await.contains("suscribed_to_project"));
}

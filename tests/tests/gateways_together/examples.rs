//! `--demo`: users whose passwords everybody knows, on loopback alone, and only as long as it is said.

use crate::house::{House, LISTENER, address, ask, basic};

const USERS: [(&str, &str); 4] = [
    ("rocketskates", "r0cketsk8ts"),
    ("bob@abc.com", "1234"),
    ("alice@abc.com", "1234"),
    ("montana@abc.com", "new"),
];

async fn status_of(house: &House, (user, password): (&str, &str)) -> u16 {
    let info = house
        .ask("GET", "/api/v3/info", &basic(user, password), "")
        .await;
    info.status
}

#[tokio::test]
async fn example_users_are_there_with_demo_alone_unless_they_have_passwords_of_their_own() {
    let mut house = House::new(LISTENER, &["--demo"]);
    for user in USERS {
        assert_eq!(status_of(&house, user).await, 200, "{user:?}");
    }
    // A second start with it finds them there, with the passwords that they have by then.
    let changed = "/update_user?email=alice@abc.com&pw=hers";
    let answer = house.ask("POST", changed, "", "").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "Succceed\n"));
    house.server.terminate();
    house.server = House::launch(&house.folder, LISTENER, &["--demo"]).unwrap();
    assert_eq!(status_of(&house, ("bob@abc.com", "1234")).await, 200);
    // One that is given its example password again is what it was.
    for password in ["hers", "new"] {
        let target = format!("/update_user?email=montana@abc.com&pw={password}");
        assert_eq!(house.ask("POST", &target, "", "").await.status, 200);
    }
    assert_eq!(status_of(&house, ("alice@abc.com", "1234")).await, 403);
    assert_eq!(status_of(&house, ("alice@abc.com", "hers")).await, 200);
    // Without it those are removed that everybody can log in as.
    house.server.terminate();
    house.server = House::launch(&house.folder, LISTENER, &[]).unwrap();
    for user in USERS {
        assert_eq!(status_of(&house, user).await, 403, "{user:?}");
    }
    assert_eq!(status_of(&house, ("alice@abc.com", "hers")).await, 200);
    let log = std::fs::read_to_string(house.folder.path().join("log")).unwrap();
    assert!(log.contains("removed an example user"), "{log}");
}

#[tokio::test]
async fn no_example_users_are_made_where_others_can_reach_them() {
    let folder = tempfile::tempdir().unwrap();
    let reachable = LISTENER.replace("127.0.0.1:0", "0.0.0.0:0")
        + "danger_plaintext = true\nauth = [\"token\", \"password\"]\n";
    let ended = House::launch(&folder, &reachable, &["--demo"]).unwrap_err();
    assert_eq!(ended.unwrap().code(), Some(1));
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("--demo") && log.contains("0.0.0.0:0"), "{log}");
    // It left nothing that a start without it would serve.
    let server = House::launch(&folder, &reachable, &[]).unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], address(&server).port()));
    for (user, password) in USERS {
        let answer = ask(address, "GET", "/api/v3/info", &basic(user, password), "").await;
        assert_eq!(answer.status, 403);
    }
}

/// What runs on the machine may make users and change those that it made, and nothing else; a web page may do neither.
#[tokio::test]
async fn programs_on_the_machine_change_no_password_that_the_repository_did_not_set() {
    let house = House::new(LISTENER, &["--demo"]);
    let said = async |target: &str, headers: &str| {
        let answer = house.ask("POST", target, headers, "").await;
        (answer.status, answer.text())
    };
    // An example of the other gateway, and so a user from elsewhere.
    let taken = "/update_user?email=rocketskates&pw=mine";
    let (status, text) = said(taken, "").await;
    assert!(
        status == 403 && text.contains("not set here"),
        "{status} {text}"
    );
    assert_eq!(
        status_of(&house, ("rocketskates", "r0cketsk8ts")).await,
        200
    );
    let succeed = "Succeed\n".to_owned();
    assert_eq!(
        said("/signup?email=ana@x.org&pw=one", "").await,
        (200, succeed)
    );
    let change = "/update_user?email=ana@x.org&pw=two";
    for page in [
        "Origin: https://evil.example",
        "Sec-Fetch-Site: cross-site",
        "Referer: http://localhost/",
    ] {
        for target in [
            change,
            "/signup?email=eve@x.org&pw=one",
            "/update_user?email=ana@x.org&pw=two&token=x",
        ] {
            let (status, _) = said(target, &format!("{page}\r\n")).await;
            assert_eq!(status, 403, "{page} {target}");
        }
        let dropped = house
            .ask("GET", "/drop_db", &format!("{page}\r\n"), "")
            .await;
        assert_eq!(dropped.status, 403, "{page}");
    }
    assert_eq!(said(change, "").await, (200, "Succceed\n".to_owned()));
    assert_eq!(status_of(&house, ("ana@x.org", "two")).await, 200);
    assert_eq!(status_of(&house, ("eve@x.org", "one")).await, 403);
}

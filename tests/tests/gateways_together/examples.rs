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
    let reachable = LISTENER.replace("127.0.0.1:0", "0.0.0.0:0") + "danger_plaintext = true\n";
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

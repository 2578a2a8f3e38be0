//! Rooms by the command line, and between real processes.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

mod processes;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use processes::{Ran, run};
use serde_json::Value;
use storage_client::RemoteStorage;
use storage_protocol::rooms::{Draft, HistoryWish, RoomKey, Rooms};
use storage_protocol::{Batch, CommitOptions, Lifetime, Storage, StorageError};
use storage_testkit::entrance::BOSS;
use storage_testkit::harness::binary;
use storage_testkit::raw::in_time;
use storage_testkit::served::Served;

fn command(served: &Served, client: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("storage"));
    command.env_clear();
    command.arg("--url").arg(served.url("model"));
    command.arg("--certs").arg(served.certificates.dir());
    command.args(["--identity", client]).args(arguments);
    command
}

fn storage(served: &Served, arguments: &[&str]) -> Ran {
    run(&mut command(served, "ann", arguments), b"")
}

fn lines(ran: &Ran) -> Vec<String> {
    let ran = ran.clone().expect(0);
    ran.text().lines().map(str::to_owned).collect()
}

fn texts(ran: &Ran) -> Vec<String> {
    let field = |line: &String| line.split('\t').nth(3).unwrap().to_owned();
    lines(ran).iter().map(field).collect()
}

#[test]
fn the_command_line_posts_lists_and_looks_back() {
    let served = Served::new(&["ann", "bob"], "");
    assert!(lines(&storage(&served, &["room", "list"])).is_empty());
    let missing = storage(&served, &["room", "history", "NODE", "n-1"]);
    missing.expect(1).says(&["there is no room of NODE n-1"]);
    let posted = storage(&served, &["--json", "room", "post", "NODE", "n-1", "one"]);
    let posted: Value = serde_json::from_slice(&posted.stdout).unwrap();
    assert_eq!(
        (&posted["text"], &posted["author"]),
        (&Value::from("one"), &Value::from("cert:ann"))
    );
    for text in ["two", "three\nlines"] {
        lines(&storage(
            &served,
            &["room", "post", "NODE", "n-1", text, "--author", "robot"],
        ));
    }
    let all = storage(&served, &["room", "history", "NODE", "n-1", "--all"]);
    assert_eq!(texts(&all), ["one", "two", "three\\nlines"]);
    let newest = storage(&served, &["room", "history", "NODE", "n-1", "--limit", "2"]);
    assert_eq!(texts(&newest), ["two", "three\\nlines"]);
    let before = lines(&newest)[0].split('\t').next().unwrap().to_owned();
    let older = ["room", "history", "NODE", "n-1", "--before", &before];
    assert_eq!(texts(&storage(&served, &older)), ["one"]);
    lines(&storage(&served, &["room", "post", "GLOBAL", "", "hello"]));
    lines(&storage(
        &served,
        &["room", "--prefix", "other/", "post", "NODE", "n-9", "x"],
    ));
    let rooms = lines(&storage(&served, &["room", "list"]));
    let objects: Vec<_> = rooms
        .iter()
        .map(|line| line.split_once('\t').unwrap().1)
        .collect();
    assert_eq!(objects, ["GLOBAL\t", "NODE\tn-1"]);
    let bad = storage(&served, &["room", "post", "NO/DE", "n-1", "x"]);
    bad.expect(2).says(&["the type of a room"]);
}

#[test]
fn who_follows_a_room_has_each_message_once_from_where_it_was() {
    let mut served = Served::new(&["ann"], "");
    for n in 0..5 {
        lines(&storage(
            &served,
            &["room", "post", "NODE", "n-1", &n.to_string()],
        ));
    }
    let first = lines(&storage(&served, &["room", "history", "NODE", "n-1"]))[1].clone();
    let after = first.split('\t').next().unwrap();
    let following = [
        "room", "follow", "NODE", "n-1", "--after", after, "--count", "6",
    ];
    let mut following = command(&served, "ann", &following);
    following.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut following = following.spawn().unwrap();
    let mut told = BufReader::new(following.stderr.take().unwrap()).lines();
    assert!(told.next().unwrap().unwrap().starts_with("following "));
    lines(&storage(&served, &["room", "post", "NODE", "n-1", "5"]));
    // It outlives the server.
    served.server.restart();
    for n in 6..8 {
        lines(&storage(
            &served,
            &["room", "post", "NODE", "n-1", &n.to_string()],
        ));
    }
    let output = following.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let heard: Vec<_> = text
        .lines()
        .map(|line| line.split('\t').nth(3).unwrap())
        .collect();
    assert_eq!(heard, ["2", "3", "4", "5", "6", "7"]);
}

#[tokio::test]
async fn a_rule_is_for_one_room() {
    let served = Served::new(&["boss", "ann"], BOSS);
    let boss: Rooms<RemoteStorage> = Rooms::new(served.connect("boss", "model").await);
    let open = boss
        .open_or_create(&RoomKey::new("NODE", "open").unwrap(), "")
        .await
        .unwrap()
        .0;
    let closed = boss
        .open_or_create(&RoomKey::new("NODE", "closed").unwrap(), "")
        .await
        .unwrap()
        .0;
    let hidden = Draft::new("boss", "hidden").unwrap();
    boss.post(&closed, &hidden).await.unwrap();
    let grant = format!(
        "{BOSS}\n[[rule]]\nprincipal = \"cert:ann\"\nkeyspace = \"model\"\nprefix = \"rooms/{}/\"\nallow = [\"read\", \"write\", \"watch\"]\n",
        open.id
    );
    served.configure(&grant);
    let ann = Rooms::new(served.connect("ann", "model").await);
    let posting = async {
        loop {
            match ann.post(&open, &Draft::new("ann", "hi").unwrap()).await {
                Err(StorageError::AccessDenied { .. }) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                posted => return posted.unwrap(),
            }
        }
    };
    let posted = in_time("the rule holds", posting).await;
    let page = ann.history(open.id, HistoryWish::default()).await.unwrap();
    assert_eq!(page.messages, [posted]);
    let refused = ann.get(closed.id).await;
    assert!(
        matches!(refused, Err(StorageError::AccessDenied { .. })),
        "{refused:?}"
    );
    let refused = ann.history(closed.id, HistoryWish::default()).await;
    assert!(
        matches!(refused, Err(StorageError::AccessDenied { .. })),
        "{refused:?}"
    );
    let refused = ann.post(&closed, &Draft::new("ann", "hi").unwrap()).await;
    assert!(
        matches!(refused, Err(StorageError::AccessDenied { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_room_that_was_half_removed_is_removed_by_the_next() {
    let served = Served::new(&["ann"], "");
    let storage = served.connect("ann", "model").await;
    let rooms = Rooms::new(storage.clone());
    let key = RoomKey::new("NODE", "n-1").unwrap();
    let room = rooms.open_or_create(&key, "").await.unwrap().0;
    rooms
        .post(&room, &Draft::new("ann", "hi").unwrap())
        .await
        .unwrap();
    rooms
        .join(&room, "ann", "1", Lifetime::Session)
        .await
        .unwrap();
    // As a process leaves it that was killed behind the first commit.
    let record = storage_protocol::rooms::RoomRecord {
        key: key.clone(),
        label: String::new(),
        created: room.created,
        closed: true,
    };
    let prefix = rooms.range(room.id).start;
    let batch = Batch::new()
        .put([&prefix[..], b"room"].concat(), record.encode())
        .remove("rooms/-/NODE/n-1");
    storage
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
    assert_eq!(rooms.open(&key).await.unwrap(), None);
    assert!(rooms.remove(room.id).await.unwrap());
    assert!(rooms.members(room.id).await.unwrap().value.is_empty());
    assert_eq!(rooms.count(room.id, 10).await.unwrap().value, 0);
}

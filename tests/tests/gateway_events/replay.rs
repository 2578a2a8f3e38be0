//! `since=`: what happened meanwhile, over a reconnection and over a restart.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use storage_protocol::StorageExt;
use storage_testkit::raw::{PATIENCE, metric};

use crate::client::{House, Http, Socket, name};

/// Posts so many numbers.
async fn post(http: &mut Http, numbers: std::ops::Range<u64>) {
    for n in numbers {
        http.mark(&n.to_string()).await;
    }
}

/// The next marks of a socket with revisions, which are these numbers; the last revision.
async fn hear(socket: &mut Socket, numbers: std::ops::Range<u64>) -> u64 {
    let mut last = 0;
    for n in numbers {
        let event = socket.event().await;
        assert_eq!(name(&event), format!("mark.set.{n}"));
        let revision = event["Revision"].as_u64().unwrap();
        assert!(revision > last, "{event}");
        last = revision;
    }
    last
}

async fn register_since(socket: &mut Socket, filter: &str, since: impl std::fmt::Display) {
    socket
        .say(&format!("register {filter} since={since}"))
        .await;
    assert_eq!(socket.hear().await, format!("websocket.register.{filter}"));
}

#[tokio::test]
async fn a_replay_has_all_that_was_missed_and_goes_over_into_what_is_live() {
    let house = House::new().await;
    let mut http = house.http().await;
    let start = house.native().await.sync().await.unwrap();
    let mut socket = house.socket().await;
    register_since(&mut socket, "mark.*.*", start.revision).await;
    post(&mut http, 0..50).await;
    let seen = hear(&mut socket, 0..30).await;
    drop(socket);
    post(&mut http, 50..80).await;
    // While others go on writing.
    let mut socket = house.socket().await;
    let resume = async {
        register_since(&mut socket, "mark.*.*", seen).await;
        hear(&mut socket, 30..300).await;
    };
    tokio::join!(resume, post(&mut http, 80..300));
    // By a position too, whose epoch is named.
    let mut socket = house.socket().await;
    register_since(&mut socket, "mark.*.*", start).await;
    hear(&mut socket, 0..300).await;
    assert!(metric(&house.server, "storage_events_replays_total").await >= 3.0);
}

#[tokio::test]
async fn nothing_is_lost_and_nothing_doubled_over_a_restart_in_the_middle() {
    let mut house = House::new().await;
    let mut http = house.http().await;
    let start = house.native().await.sync().await.unwrap().revision.0;
    let mut socket = house.socket().await;
    register_since(&mut socket, "profiles.*.*", start).await;
    for n in 0..40 {
        http.profile(&format!("p{n:03}")).await;
    }
    let mut seen = 0;
    for n in 0..25 {
        let event = socket.event().await;
        assert_eq!(name(&event), format!("profiles.create.p{n:03}"));
        seen = event["Revision"].as_u64().unwrap();
    }
    house.server.restart();
    let mut http = house.http().await;
    for n in 40..60 {
        http.profile(&format!("p{n:03}")).await;
    }
    let mut socket = house.socket().await;
    register_since(&mut socket, "profiles.*.*", seen).await;
    for n in 25..60 {
        assert_eq!(socket.hear().await, format!("profiles.create.p{n:03}"));
    }
    // A change of an object, too, is told as it was, with what was before.
    http.good("PUT", "/profiles/p001", &json!({ "Name": "p001", "x": 1 }))
        .await;
    house.server.restart();
    let mut socket = house.socket().await;
    let event = async |socket: &mut Socket| {
        register_since(socket, "profiles.update.*", seen).await;
        socket.event().await
    };
    let event = event(&mut socket).await;
    assert_eq!(name(&event), "profiles.update.p001");
    assert_eq!(event["Object"]["x"], 1);
    assert_eq!(event["Original"], json!({ "Name": "p001", "Params": {} }));
    assert_eq!(event["Principal"], "user:rocketskates");
}

#[tokio::test]
async fn a_replay_disturbs_no_other_registration_of_its_socket() {
    let house = House::new().await;
    let mut http = house.http().await;
    let start = house.native().await.sync().await.unwrap().revision;
    let mut socket = house.socket().await;
    socket.register("profiles.*.*").await;
    post(&mut http, 0..5).await;
    http.profile("one").await;
    let event = socket.event().await;
    assert_eq!(name(&event), "profiles.create.one");
    // No client that did not ask for it sees a field more.
    assert!(event.get("Revision").is_none(), "{event}");
    register_since(&mut socket, "mark.*.*", start).await;
    hear(&mut socket, 0..5).await;
    http.profile("two").await;
    assert_eq!(socket.hear().await, "profiles.create.two");
    // The same again: it begins anew, and is still one.
    register_since(&mut socket, "mark.*.*", start).await;
    hear(&mut socket, 0..5).await;
    post(&mut http, 5..6).await;
    assert_eq!(socket.hear().await, "mark.set.5");
    socket.deregister("mark.*.*").await;
    post(&mut http, 6..7).await;
    http.profile("three").await;
    assert_eq!(socket.hear().await, "profiles.create.three");
}

#[tokio::test]
async fn what_a_live_filter_has_told_a_replay_beside_it_does_not_tell_again() {
    let house = House::new().await;
    let mut http = house.http().await;
    let start = house.native().await.sync().await.unwrap().revision;
    http.profile("before").await;
    post(&mut http, 0..1).await;
    let mut socket = house.socket().await;
    socket.register("profiles.*.*").await;
    http.profile("live").await;
    assert_eq!(socket.hear().await, "profiles.create.live");
    post(&mut http, 1..2).await;
    register_since(&mut socket, "*.*.*", start).await;
    for expected in ["profiles.create.before", "mark.set.0", "mark.set.1"] {
        assert_eq!(socket.hear().await, expected);
    }
    // All of that was told by the widest one.
    register_since(&mut socket, "*.create.live,x", start).await;
    http.profile("behind").await;
    assert_eq!(socket.hear().await, "profiles.create.behind");
    // What is not registered any more has told nothing, and the same again begins anew.
    socket.deregister("*.*.*").await;
    socket.deregister("*.create.live,x").await;
    for _ in 0..2 {
        register_since(&mut socket, "profiles.*.*", start).await;
        for expected in ["before", "live", "behind"] {
            assert_eq!(socket.hear().await, format!("profiles.create.{expected}"));
        }
    }
}

#[tokio::test]
async fn a_bad_since_is_an_error_and_changes_nothing() {
    let house = House::new().await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.register("mark.*.*").await;
    for (since, expected) in [
        ("x", "EPOCH:REVISION"),
        ("", "EPOCH:REVISION"),
        ("-1", "EPOCH:REVISION"),
        ("18446744073709551615", "future"),
        ("0123456789abcdef:1", "epoch"),
    ] {
        let why = socket
            .refused(&format!("register mark.*.* since={since}"))
            .await;
        assert!(why.contains(expected), "{since}: {why}");
    }
    http.mark("0").await;
    let event = socket.event().await;
    assert_eq!(name(&event), "mark.set.0");
    assert_eq!(event.get("Revision"), None::<&Value>);
    http.mark("1").await;
    assert_eq!(socket.hear().await, "mark.set.1");
}

/// Takes away what the log has archived, as its age or size would.
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
        assert!(began.elapsed() < PATIENCE, "nothing was archived");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_replay_of_what_the_log_has_lost_is_refused_with_the_oldest_that_there_is() {
    // Nothing is left in memory either.
    let mut house = House::configured("[engine]\nring_bytes = 1", &[]).await;
    let start = house.native().await.sync().await.unwrap().revision;
    post(&mut house.http().await, 0..20).await;
    assert!(house.server.terminate().success());
    house.server.restart();
    purge(&house).await;
    let mut http = house.http().await;
    let mut socket = house.socket().await;
    socket.register("profiles.*.*").await;
    let why = socket
        .refused(&format!("register mark.*.* since={start}"))
        .await;
    assert!(why.contains("compacted"), "{why}");
    let oldest = why
        .split(' ')
        .find_map(|word| word.parse::<u64>().ok())
        .unwrap();
    assert!(oldest > start.0, "{why}");
    // What is named can be served, and the socket goes on as it was.
    http.mark("20").await;
    http.profile("rack7").await;
    assert_eq!(socket.hear().await, "profiles.create.rack7");
    register_since(&mut socket, "mark.*.*", oldest).await;
    hear(&mut socket, 20..21).await;
}

#[tokio::test]
async fn a_socket_that_the_log_has_left_behind_is_told_how_much_it_missed_at_most() {
    const WRITES: u64 = 100;
    let config = "[limits]\nmemory_bytes_max = \"16 MiB\"\n[engine]\nring_bytes = 1";
    let house = House::configured(config, &[]).await;
    let mut http = house.http().await;
    http.profile("global").await;
    let mut stalled = house.socket().await;
    stalled.register("profiles.*.*").await;
    let filling = "x".repeat(900 << 10);
    for n in 0..WRITES {
        let profile = json!({ "Name": "global", "N": n, "Filling": filling });
        http.good("PUT", "/profiles/global", &profile).await;
    }
    purge(&house).await;
    let (mut due, mut lost) = (0, 0);
    while due < WRITES {
        let event = stalled.event().await;
        if event["Type"] == "websocket" {
            assert_eq!(event["Action"], "lost", "{event}");
            let at_most: u64 = event["Key"].as_str().unwrap().parse().unwrap();
            let n = |field: &str| {
                let position = event["Object"][field].as_str().unwrap();
                position.split(':').nth(1).unwrap().parse::<u64>().unwrap()
            };
            assert_eq!(n("To") - n("From"), at_most, "{event}");
            lost += at_most;
            continue;
        }
        let n = event["Object"]["N"].as_u64().unwrap();
        assert!(
            n >= due && (n == due || lost >= n - due),
            "{n} came for {due}, {lost} are said to be lost"
        );
        due = n + 1;
    }
    assert!(lost > 0, "nothing was lost: this test would show nothing");
    assert!(metric(&house.server, "storage_events_losses_total").await >= 1.0);
    http.mark("x").await;
    http.profile("rack7").await;
    assert_eq!(stalled.hear().await, "profiles.create.rack7");
}

#[tokio::test]
async fn a_registration_with_nothing_to_tell_does_not_fall_behind_the_log() {
    let config = "[limits]\nmemory_bytes_max = \"16 MiB\"\n[engine]\nring_bytes = 1\n[timeouts]\nidle_mark = \"100ms\"";
    let house = House::configured(config, &[]).await;
    let mut http = house.http().await;
    http.profile("global").await;
    let mut socket = house.socket().await;
    socket.register("machines.*.quiet").await;
    let filling = "x".repeat(900 << 10);
    for n in 0..60 {
        let profile = json!({ "Name": "global", "N": n, "Filling": filling });
        http.good("PUT", "/profiles/global", &profile).await;
    }
    // Many times as long as it takes to be told how far the log is.
    tokio::time::sleep(Duration::from_secs(2)).await;
    purge(&house).await;
    // A wider range needs another watch, which begins where the first one is.
    socket.register("machines.*.*").await;
    http.good("POST", "/machines", &json!({ "Uuid": "quiet" }))
        .await;
    assert_eq!(socket.hear().await, "machines.create.quiet");
}

#[tokio::test]
async fn who_asked_for_revisions_is_told_once_when_its_events_begin_to_come_late() {
    let house = House::new().await;
    let mut http = house.http().await;
    http.profile("global").await;
    let start = house.native().await.sync().await.unwrap().revision;
    let mut plain = house.socket().await;
    plain.register("profiles.*.*").await;
    let mut asked = house.socket().await;
    register_since(&mut asked, "profiles.*.*", start).await;
    let filling = "x".repeat(900 << 10);
    for n in 0..40 {
        let profile = json!({ "Name": "global", "N": n, "Filling": filling });
        http.good("PUT", "/profiles/global", &profile).await;
    }
    // Nobody reads for longer than an event may be late.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut notices = 0;
    let mut due = 0;
    while due < 40 {
        let event = asked.event().await;
        if event["Type"] == "websocket" {
            assert_eq!(event["Action"], "lag", "{event}");
            let millis: u64 = event["Key"].as_str().unwrap().parse().unwrap();
            assert!(millis >= 4_000, "{event}");
            notices += 1;
            continue;
        }
        assert_eq!(event["Object"]["N"], due);
        due += 1;
    }
    assert_eq!(notices, 1);
    for n in 0..40 {
        assert_eq!(plain.event().await["Object"]["N"], n);
    }
}

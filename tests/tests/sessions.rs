//! Sessions of a real server, over lost sockets and restarts, by peers that speak the protocol by hand.
//!
//! What an application sees of it is the client's; what the engine does with each case is tested there. Here the bytes
//! are: Hello, Welcome, the numbers, and the codes that the server closes with.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_protocol::native::{ClientMessage, Hello, ServerMessage, Welcome};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Keyspace, Lifetime, Outcome, Revision, ScanOptions, SessionId,
    Storage, StorageError, StorageExt,
};
use storage_server::engine::rocks::{EngineOptions, RocksEngine};
use storage_server::engine::{Engine, Resumed, SessionStorage};
use storage_testkit::harness::{Certificates, ServerProcess, connect};
use storage_testkit::raw::{PATIENCE, Raw, Received, metric};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

struct Fixture {
    server: ServerProcess,
    certificates: Certificates,
    _folder: TempDir,
}

/// How a Hello was answered.
type Answer = Result<(Raw, Welcome), (u16, String)>;

impl Fixture {
    /// With these lines under `[timeouts]`.
    fn with_timeouts(timeouts: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::issue(&["producer", "other"]);
        let mut config = format!("certs = {:?}\n[timeouts]\n{timeouts}\n", certificates.dir());
        for (address, gateway) in [("127.0.0.1:0", "storage"), ("127.0.0.1:0", "admin")] {
            writeln!(
                config,
                "[[listener]]\naddress = {address:?}\ngateways = [{gateway:?}]"
            )
            .unwrap();
            if gateway == "admin" {
                config.push_str("tls = 'off'\n");
            }
        }
        let file = folder.path().join("server.toml");
        std::fs::write(&file, config).unwrap();
        let data = folder.path().join("data").display().to_string();
        let file = file.display().to_string();
        let server = ServerProcess::start(&["--config", &file, "--data", &data]);
        Self {
            server,
            certificates,
            _folder: folder,
        }
    }

    fn new() -> Self {
        Self::with_timeouts("")
    }

    async fn hello(&self, client: &str, keyspace: &str, hello: Hello) -> Answer {
        let mut raw = Raw::mute(&self.server, &self.certificates, client, keyspace).await;
        raw.say(None, &ClientMessage::Hello(hello)).await;
        loop {
            match raw.receive().await {
                Received::Close(code, reason) => return Err((code, reason)),
                Received::Binary(frame) => match raw.read(frame) {
                    Some((None, ServerMessage::Welcome(welcome))) => return Ok((raw, welcome)),
                    other => panic!("not Welcome: {other:?}"),
                },
                Received::Ping | Received::Pong(_) => {}
                other => panic!("the connection ended without a word: {other:?}"),
            }
        }
    }

    async fn open(&self) -> (Raw, SessionId) {
        let (raw, welcome) = self
            .hello("producer", "model", Hello::new("raw/1"))
            .await
            .unwrap();
        assert_eq!((welcome.executed, welcome.lapsed), (0, false));
        (raw, welcome.session)
    }

    async fn resume(
        &self,
        session: SessionId,
        incarnation: u64,
        sent: u64,
        unanswered: &[u64],
    ) -> Answer {
        let hello = resuming(session, incarnation, sent, unanswered);
        self.hello("producer", "model", hello).await
    }

    /// Whether a key is there, by another session.
    async fn has(&self, key: &'static str) -> bool {
        let storage = connect(&self.server, &self.certificates, "other", "model")
            .await
            .unwrap();
        let found = storage.get_one(key.into()).await.unwrap();
        storage.close().await;
        found.is_some()
    }

    async fn wait_until_gone(&self, key: &'static str) {
        let began = Instant::now();
        while self.has(key).await {
            assert!(began.elapsed() < PATIENCE, "{key} stays");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How often commits of [`stamp`] were executed.
    async fn stamps(&self) -> usize {
        let storage = connect(&self.server, &self.certificates, "other", "model")
            .await
            .unwrap();
        let range = KeyRange::prefix("stamp/");
        let scan = storage.scan(range, ScanOptions::default()).await.unwrap();
        let items = scan.collect().await.unwrap();
        storage.close().await;
        items.len()
    }
}

fn resuming(session: SessionId, incarnation: u64, sent: u64, unanswered: &[u64]) -> Hello {
    Hello {
        session: Some(session),
        incarnation,
        sent,
        unanswered: unanswered.to_vec(),
        ..Hello::new("raw/1")
    }
}

fn commit(number: u64, batch: Batch) -> ClientMessage {
    ClientMessage::Commit {
        number,
        options: CommitOptions::default(),
        batch,
    }
}

/// A commit that leaves a key of its own each time that it is executed.
fn stamp(number: u64) -> ClientMessage {
    let batch = Batch::new().put_stamped("stamp/", format!("{number}"), Lifetime::Forever);
    commit(number, batch)
}

fn session_key(number: u64, key: &'static str) -> ClientMessage {
    commit(
        number,
        Batch::new().put_with(key, "mine", Lifetime::Session),
    )
}

async fn done(raw: &mut Raw, id: u32, message: &ClientMessage) -> Revision {
    match raw.ask(id, message).await {
        ServerMessage::Committed { revision } => revision,
        other => panic!("not committed: {other:?}"),
    }
}

async fn closed_answer(raw: &mut Raw, id: u32, message: &ClientMessage) -> Outcome {
    match raw.ask(id, message).await {
        ServerMessage::Error(StorageError::Closed { outcome, .. }) => outcome,
        other => panic!("not Closed: {other:?}"),
    }
}

#[tokio::test]
async fn a_commit_that_comes_again_has_one_effect_and_its_first_revision() {
    let mut fixture = Fixture::new();
    let (mut raw, session) = fixture.open().await;
    let first = done(&mut raw, 1, &stamp(1)).await;
    let second = done(&mut raw, 2, &stamp(2)).await;
    drop(raw);
    for (incarnation, between) in (1..).zip(["a lost socket", "a restart", "kill -9"]) {
        match between {
            "a restart" => {
                assert!(fixture.server.terminate().success());
                fixture.server.restart();
            }
            "kill -9" => fixture.server.restart(),
            _ => {}
        }
        let resumed = fixture.resume(session, incarnation, 2, &[1, 2]).await;
        let (mut raw, welcome) = resumed.unwrap();
        assert_eq!(
            (welcome.session, welcome.executed),
            (session, 2),
            "{between}"
        );
        assert_eq!(done(&mut raw, 1, &stamp(1)).await, first, "{between}");
        assert_eq!(done(&mut raw, 2, &stamp(2)).await, second, "{between}");
        assert_eq!(fixture.stamps().await, 2, "{between}");
        let repeated = metric(&fixture.server, "storage_commits_repeated_total").await;
        assert!(repeated >= 2.0, "{between}: {repeated}");
        assert!(metric(&fixture.server, "storage_sessions_resumed_total").await >= 1.0);
    }
    // Then it goes on behind them.
    let (mut raw, _) = fixture.resume(session, 9, 2, &[]).await.unwrap();
    assert!(done(&mut raw, 1, &stamp(3)).await > second);
    assert_eq!(fixture.stamps().await, 3);
}

#[tokio::test]
async fn commits_that_were_on_their_way_at_a_kill_are_executed_once() {
    let mut fixture = Fixture::new();
    for round in 0..5 {
        let before = fixture.stamps().await;
        let (mut raw, session) = fixture.open().await;
        for number in 1..=200 {
            raw.say(Some(u32::try_from(number).unwrap()), &stamp(number))
                .await;
        }
        // Some are answered, some executed, some not.
        let mut answered = std::collections::HashMap::new();
        for _ in 0..20 * round {
            if let (Some(id), ServerMessage::Committed { revision }) = raw.hear().await {
                answered.insert(u64::from(id), revision);
            }
        }
        fixture.server.restart();
        drop(raw);
        let unanswered: Vec<_> = (1..=200).filter(|n| !answered.contains_key(n)).collect();
        let resumed = fixture.resume(session, 1, 200, &unanswered).await;
        let (mut raw, welcome) = resumed.unwrap();
        assert_eq!(welcome.session, session);
        let executed = welcome.executed;
        assert!(answered.keys().all(|number| *number <= executed));
        for number in unanswered {
            done(&mut raw, 1, &stamp(number)).await;
        }
        let count = fixture.stamps().await - before;
        assert_eq!(count, 200, "{executed} were executed before the kill");
    }
}

#[tokio::test]
async fn a_refused_number_is_not_executed_later() {
    let fixture = Fixture::new();
    let (mut raw, session) = fixture.open().await;
    let refused = |number| commit(number, Batch::new().check_absent("a").put("late", "late"));
    done(&mut raw, 1, &commit(1, Batch::new().put("a", "a"))).await;
    let ServerMessage::Error(StorageError::CheckFailed { .. }) = raw.ask(2, &refused(2)).await
    else {
        panic!("the check holds")
    };
    done(&mut raw, 3, &commit(3, Batch::new().remove("a"))).await;
    let ServerMessage::Error(_) = raw.ask(4, &commit(4, Batch::new().put("", ""))).await else {
        panic!("an empty key was taken")
    };
    // 2 was refused below the highest executed number; 4 above it, so it is as if it came for the first time.
    let (mut raw, welcome) = fixture.resume(session, 1, 4, &[2, 4]).await.unwrap();
    assert_eq!(welcome.executed, 3);
    let outcome = closed_answer(&mut raw, 1, &refused(2)).await;
    assert_eq!(outcome, Outcome::NotExecuted);
    assert!(!fixture.has("late").await);
    done(&mut raw, 2, &commit(4, Batch::new().put("again", "x"))).await;
    assert!(fixture.has("again").await);
}

#[tokio::test]
async fn a_number_outside_the_window_is_unknown() {
    let fixture = Fixture::new();
    let (mut raw, session) = fixture.open().await;
    let mut number = 0;
    while number < 1030 {
        let batch: Vec<u64> = (number + 1..=number + 103).collect();
        for number in &batch {
            raw.say(Some(u32::try_from(*number).unwrap()), &stamp(*number))
                .await;
        }
        for _ in &batch {
            assert!(matches!(
                raw.hear().await.1,
                ServerMessage::Committed { .. }
            ));
        }
        number += 103;
    }
    // A client that remembers little: what it sent was 7, and much was executed since.
    let (mut raw, welcome) = fixture.resume(session, 1, 7, &[6, 7]).await.unwrap();
    assert_eq!(welcome.executed, 1030);
    assert_eq!(
        closed_answer(&mut raw, 1, &stamp(6)).await,
        Outcome::Unknown
    );
    done(&mut raw, 2, &stamp(7)).await;
    done(&mut raw, 3, &stamp(1031)).await;
    assert_eq!(fixture.stamps().await, 1031);
}

#[tokio::test]
async fn a_higher_incarnation_fences_the_one_before() {
    let mut fixture = Fixture::new();
    let (mut old, session) = fixture.open().await;
    done(&mut old, 1, &stamp(1)).await;
    let (mut new, welcome) = fixture.resume(session, 5, 1, &[]).await.unwrap();
    assert_eq!((welcome.session, welcome.executed), (session, 1));
    // Whether it is read before the close or not: it is not executed.
    old.say(Some(2), &stamp(2)).await;
    let (code, reason) = old.closed().await;
    assert!(
        code == 4003 && reason.contains("newer incarnation"),
        "{code}: {reason}"
    );
    for incarnation in [5, 4, 0] {
        let (code, reason) = fixture
            .resume(session, incarnation, 1, &[])
            .await
            .unwrap_err();
        assert!(
            code == 4003 && reason.contains("not higher"),
            "{code}: {reason}"
        );
    }
    done(&mut new, 2, &stamp(2)).await;
    assert_eq!(fixture.stamps().await, 2);
    // The incarnation is remembered over a restart.
    fixture.server.restart();
    let (code, _) = fixture.resume(session, 5, 2, &[]).await.unwrap_err();
    assert_eq!(code, 4003);
    fixture.resume(session, 6, 2, &[]).await.unwrap();
}

/// Without a gateway, which closes the older socket: here nothing but the engine holds its commits back.
#[tokio::test]
async fn an_older_incarnation_executes_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(EngineOptions {
        disk_reserve_bytes: 0,
        ..EngineOptions::new(folder.path().join("data"))
    });
    let (engine, keyspace) = (engine.unwrap(), Keyspace::new("model").unwrap());
    let put = async |session: &Arc<dyn SessionStorage>, number, key: &'static str| {
        let batch = Batch::new().put(key, "v");
        let options = CommitOptions::default();
        session.commit_numbered(number, batch, options).await
    };
    let session = engine.open_session("cert:a", &keyspace);
    let (id, old) = (session.id(), session.storage());
    put(&old, 1, "first").await.unwrap();
    let resumed = engine.resume_session("cert:a", &keyspace, id, 1);
    let Resumed::Session(new) = resumed.await.unwrap() else {
        panic!("the session is there");
    };
    let new = new.storage();
    let late = put(&old, 2, "late").await;
    // It was not executed, and the newer incarnation may still bring the same number.
    let unknown = Outcome::Unknown;
    assert!(
        matches!(&late, Err(StorageError::Closed { outcome, .. }) if *outcome == unknown),
        "{late:?}"
    );
    put(&new, 2, "second").await.unwrap();
    let found = new.get(&["late".into(), "second".into()]).await.unwrap();
    let there: Vec<_> = found.value.iter().map(Option::is_some).collect();
    assert_eq!(there, [false, true]);
}

/// Two processes have one saved session: A's link is half-open while B resumes and commits under the number that A sent.
#[tokio::test]
async fn who_sends_another_commit_under_a_used_number_is_not_told_its_revision() {
    let mut fixture = Fixture::new();
    let (mut a, session) = fixture.open().await;
    done(&mut a, 1, &stamp(1)).await;
    // A's number 2 is on its way, and its link is dead from here on. B goes on from what was saved.
    let put = |number, key| commit(number, Batch::new().put(key, "v"));
    let (mut b, welcome) = fixture.resume(session, 1_000, 1, &[]).await.unwrap();
    assert_eq!(welcome.executed, 1);
    let of_b = done(&mut b, 1, &put(2, "b")).await;
    // A's link returns, on the same socket: that one was fenced.
    a.say(Some(2), &put(2, "a")).await;
    assert_eq!(a.closed().await.0, 4003);
    // And on a new one, one incarnation later: fenced as well.
    let (code, _) = fixture.resume(session, 1, 2, &[2]).await.unwrap_err();
    assert_eq!(code, 4003);
    // One that takes an incarnation it has no right to is attached, and its commits are other ones.
    for between in ["at once", "a restart"] {
        let incarnation = if between == "at once" { 2_000 } else { 3_000 };
        let resumed = fixture.resume(session, incarnation, 2, &[2]).await;
        let (mut a, welcome) = resumed.unwrap();
        assert_eq!((welcome.session, welcome.executed), (session, 2));
        let ServerMessage::Error(error) = a.ask(1, &put(2, "a")).await else {
            panic!("{between}: told what another commit did, at {of_b}")
        };
        assert_eq!(error, StorageError::NumberReused { number: 2 }, "{between}");
        assert_eq!(error.outcome(), Outcome::NotExecuted);
        assert!(!fixture.has("a").await && fixture.has("b").await);
        let reused = metric(&fixture.server, "storage_commit_numbers_reused_total").await;
        assert!(reused >= 1.0, "{between}");
        fixture.server.restart();
    }
    // The commit itself, and only it, is answered with what it did.
    let (mut b, _) = fixture.resume(session, 4_000, 2, &[2]).await.unwrap();
    assert_eq!(done(&mut b, 1, &put(2, "b")).await, of_b);
}

#[tokio::test]
async fn nobody_else_resumes_a_session() {
    let fixture = Fixture::new();
    let (mut raw, session) = fixture.open().await;
    done(&mut raw, 1, &stamp(1)).await;
    for (client, keyspace) in [("other", "model"), ("producer", "elsewhere")] {
        let hello = resuming(session, 9, 1, &[1]);
        let (mut theirs, welcome) = fixture.hello(client, keyspace, hello).await.unwrap();
        assert_ne!(welcome.session, session, "{client} in {keyspace}");
        assert_eq!((welcome.executed, welcome.lapsed), (0, false));
        // It is a new session: its numbers begin at 1.
        done(&mut theirs, 1, &commit(1, Batch::new().put("new", "new"))).await;
    }
    done(&mut raw, 2, &stamp(2)).await;
    let (_, welcome) = fixture.resume(session, 1, 2, &[]).await.unwrap();
    assert_eq!(welcome.session, session, "nor was it harmed");
}

#[tokio::test]
async fn keys_of_a_session_are_there_while_its_socket_is_lost() {
    let fixture = Fixture::new();
    let (mut raw, session) = fixture.open().await;
    done(&mut raw, 1, &session_key(1, "mine")).await;
    drop(raw);
    let began = Instant::now();
    while metric(&fixture.server, "storage_sessions_kept").await < 1.0 {
        assert!(began.elapsed() < PATIENCE, "the loss is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The server looks after lost sessions each second.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(fixture.has("mine").await, "the grace is a minute");
    let (_, welcome) = fixture.resume(session, 1, 1, &[]).await.unwrap();
    assert!(!welcome.lapsed);
}

#[tokio::test]
async fn a_client_whose_keys_were_removed_is_told() {
    let fixture = Fixture::with_timeouts("session_grace = '100ms'");
    let (mut raw, session) = fixture.open().await;
    done(&mut raw, 1, &session_key(1, "mine")).await;
    drop(raw);
    fixture.wait_until_gone("mine").await;
    let (_, welcome) = fixture.resume(session, 1, 1, &[]).await.unwrap();
    assert!(welcome.lapsed && welcome.session == session);
}

#[tokio::test]
async fn keys_of_a_session_stay_for_the_grace_and_not_longer() {
    let fixture = Fixture::with_timeouts("session_grace = '2s'");
    let (mut raw, session) = fixture.open().await;
    done(&mut raw, 1, &session_key(1, "mine")).await;
    drop(raw);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (mut raw, welcome) = fixture.resume(session, 1, 1, &[]).await.unwrap();
    assert!(!welcome.lapsed);
    assert_eq!(welcome.grace, Duration::from_secs(2));
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(fixture.has("mine").await, "it was resumed within the grace");
    done(&mut raw, 1, &session_key(2, "more")).await;
    assert!(metric(&fixture.server, "storage_sessions_kept").await < 1.0);
    drop(raw);
    fixture.wait_until_gone("mine").await;
    fixture.wait_until_gone("more").await;
    assert!(metric(&fixture.server, "storage_sessions_kept").await >= 1.0);
    // Told until the client goes on.
    for incarnation in [2, 3] {
        let (_, welcome) = fixture.resume(session, incarnation, 2, &[]).await.unwrap();
        assert!(welcome.lapsed, "incarnation {incarnation}");
    }
    let (mut raw, welcome) = fixture.resume(session, 4, 2, &[]).await.unwrap();
    assert!(welcome.lapsed);
    done(&mut raw, 1, &session_key(3, "mine")).await;
    let (_raw, welcome) = fixture.resume(session, 5, 3, &[]).await.unwrap();
    assert!(!welcome.lapsed);
    assert!(fixture.has("mine").await);
}

/// By the engine alone: a start that takes its time cannot be had of a server.
#[tokio::test]
async fn the_grace_after_a_start_counts_from_when_peers_can_come() {
    const GRACE: Duration = Duration::from_secs(2);
    let folder = tempfile::tempdir().unwrap();
    let keyspace = Keyspace::new("model").unwrap();
    let open = async || {
        let options = EngineOptions {
            disk_reserve_bytes: 0,
            session_grace: GRACE,
            ..EngineOptions::new(folder.path().join("data"))
        };
        let opening = tokio::task::spawn_blocking(|| RocksEngine::open(options));
        opening.await.unwrap().unwrap()
    };
    let engine = open().await;
    let session = engine.open_session("cert:a", &keyspace).storage();
    let batch = Batch::new().put_with("mine", "mine", Lifetime::Session);
    let options = CommitOptions::default();
    session.commit_numbered(1, batch, options).await.unwrap();
    drop(session);
    tokio::task::spawn_blocking(move || drop(engine))
        .await
        .unwrap();
    let engine = open().await;
    // Certificates, ports.
    tokio::time::sleep(GRACE.mul_f64(0.7)).await;
    let began = Instant::now();
    engine.serving();
    let reader = engine.open_session("cert:r", &keyspace).storage();
    while reader.get_one("mine".into()).await.unwrap().is_some() {
        assert!(began.elapsed() < PATIENCE, "it stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gone = began.elapsed();
    assert!(gone >= GRACE, "gone after {gone:?}");
}

#[tokio::test]
async fn after_a_restart_the_grace_counts_from_the_start() {
    let mut fixture = Fixture::with_timeouts("session_grace = '3s'");
    let (mut raw, session) = fixture.open().await;
    let (mut lost, _) = fixture.open().await;
    done(&mut raw, 1, &session_key(1, "mine")).await;
    done(&mut lost, 1, &session_key(1, "theirs")).await;
    // An orderly end takes no keys along, and closes with a code that says "come again".
    assert!(fixture.server.terminate().success());
    assert_eq!(raw.closed().await.0, 1001);
    drop(lost);
    fixture.server.restart();
    assert!(fixture.has("mine").await && fixture.has("theirs").await);
    let (_raw, welcome) = fixture.resume(session, 1, 1, &[]).await.unwrap();
    assert!(!welcome.lapsed && welcome.session == session);
    fixture.wait_until_gone("theirs").await;
    assert!(fixture.has("mine").await);
}

#[tokio::test]
async fn a_session_without_commits_is_resumed_over_a_restart() {
    let mut fixture = Fixture::new();
    let (raw, session) = fixture.open().await;
    drop(raw);
    let (raw, welcome) = fixture.resume(session, 1, 0, &[]).await.unwrap();
    assert_eq!(welcome.session, session);
    drop(raw);
    fixture.server.restart();
    // Its first commit was sent, and never came.
    let (mut raw, welcome) = fixture.resume(session, 2, 1, &[1]).await.unwrap();
    assert_eq!((welcome.session, welcome.executed), (session, 0));
    done(&mut raw, 1, &stamp(1)).await;
    fixture.server.restart();
    let (mut raw, welcome) = fixture.resume(session, 3, 1, &[1]).await.unwrap();
    assert_eq!((welcome.session, welcome.executed), (session, 1));
    done(&mut raw, 1, &stamp(1)).await;
    assert_eq!(fixture.stamps().await, 1);
}

#[tokio::test]
async fn a_session_that_was_kept_long_enough_is_gone() {
    let mut fixture = Fixture::with_timeouts("session_grace = '200ms'\nsession_kept = '500ms'");
    let (mut raw, session) = fixture.open().await;
    done(&mut raw, 1, &session_key(1, "mine")).await;
    drop(raw);
    fixture.wait_until_gone("mine").await;
    let began = Instant::now();
    while metric(&fixture.server, "storage_sessions_kept").await > 0.0 {
        assert!(began.elapsed() < PATIENCE, "it is kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for restart in [false, true] {
        if restart {
            fixture.server.restart();
        }
        // What it asks to repeat was forgotten with it: that is not executed, and not expected.
        let (mut raw, welcome) = fixture.resume(session, 1, 1, &[1]).await.unwrap();
        assert_ne!(welcome.session, session);
        assert_eq!((welcome.executed, welcome.lapsed), (0, false));
        done(&mut raw, 1, &stamp(1)).await;
    }
}

#[tokio::test]
async fn a_close_with_1000_ends_the_session_at_once() {
    let fixture = Fixture::new();
    let leave = async |code: Option<u16>| {
        let (mut raw, session) = fixture.open().await;
        done(&mut raw, 1, &session_key(1, "mine")).await;
        let frame = code.map(|code| CloseFrame {
            code: CloseCode::from(code),
            reason: "".into(),
        });
        raw.send_message(Message::Close(frame)).await;
        raw.closed().await;
        session
    };
    let session = leave(Some(1000)).await;
    fixture.wait_until_gone("mine").await;
    let (raw, welcome) = fixture.resume(session, 1, 1, &[]).await.unwrap();
    assert_ne!(welcome.session, session);
    drop(raw);
    for code in [Some(1001), Some(4001), None] {
        let session = leave(code).await;
        let (_, welcome) = fixture.resume(session, 1, 1, &[]).await.unwrap();
        assert_eq!(welcome.session, session, "{code:?} is a lost connection");
        assert!(fixture.has("mine").await, "{code:?}");
    }
}

#[tokio::test]
async fn a_hello_that_contradicts_itself_closes_with_1002() {
    let fixture = Fixture::new();
    let (mut raw, session) = fixture.open().await;
    done(&mut raw, 1, &stamp(1)).await;
    for (sent, unanswered, why) in [
        (1, &[2][..], "with 1 sent"),
        (3, &[0, 3], "0 to 3"),
        (2000, &[976], "977 to 2000"),
        (u64::MAX, &[], "none is above"),
    ] {
        let (code, reason) = fixture
            .resume(session, 1, sent, unanswered)
            .await
            .unwrap_err();
        assert!(code == 1002 && reason.contains(why), "{code}: {reason}");
    }
    let of_new = Hello {
        sent: 1,
        ..Hello::new("raw/1")
    };
    let (code, _) = fixture
        .hello("producer", "model", of_new)
        .await
        .unwrap_err();
    assert_eq!(code, 1002);
    // None of them took the session over.
    done(&mut raw, 2, &stamp(2)).await;
    // Numbers that Hello did not name.
    for (number, why) in [(2, "not to come again"), (5, "not to come again")] {
        let (mut raw, _) = fixture
            .resume(session, number * 10, 5, &[1, 3])
            .await
            .unwrap();
        raw.say(Some(1), &stamp(number)).await;
        let (code, reason) = raw.closed().await;
        assert!(code == 1002 && reason.contains(why), "{code}: {reason}");
    }
}

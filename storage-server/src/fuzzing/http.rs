//! A connection from behind TLS on, with any bytes: HTTP, the routes of all gateways, WebSockets of both dialects.
//!
//! Each input has a server of its own with an engine in memory, so that what it finds is found again. Its first byte says
//! who the peer is and how it goes away, the second in how many pieces the rest arrives; all the rest is what it sends.

use std::sync::Arc;
use std::time::Duration;

use storage_protocol::{Batch, CommitOptions, Keyspace};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::audit::Audit;
use crate::auth::rules::{SECRETS, SYSTEM};
use crate::auth::system::token_key;
use crate::auth::{Configured, Identity, IdentityError, Principal};
use crate::config::{AuthMethod, ListenerConfig, ServerConfig, TlsMode};
use crate::engine::Engine;
use crate::fuzzing::tokens::Lasting;
use crate::gateway;
use crate::listener::serve_in_memory;
use crate::server::access::follow_access;
use crate::shared::Shared;
use crate::testing::MemoryEngine;

/// How long a connection may stay when its peer has gone away, and what it began. Nothing here waits for a time-out; the
/// longest work is to hash passwords.
const END_PATIENCE: Duration = Duration::from_secs(8);
/// The most bytes that are answered to an input. A page of metrics, the longest answer, has some 20 KiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// An answer that takes more steps of the other tasks than this waits for something else than them.
const QUIET_STEPS: usize = 64;
/// The same for one behind the hash of a password, which is computed beside the other tasks.
const HASHED_PATIENCE: Duration = Duration::from_millis(50);
/// What the system would hold of a connection, each way.
const BUFFER_BYTES: usize = 64 << 10;

/// Who the peer is, by the listener that it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Nobody, and such are let in; and there is a token that is good.
    Anonymous,
    /// By its certificate one who may do everything.
    Administrator,
    /// Nobody who is known: the listener takes tokens, or passwords too, and none of either is good.
    Stranger,
    /// By its certificate nobody, so nothing at all is allowed.
    Nameless,
}

/// How an input is sent.
struct Sent<'a> {
    who: Who,
    takes_passwords: bool,
    /// It does not wait for answers.
    leaves: bool,
    piece: usize,
    bytes: &'a [u8],
}

impl<'a> Sent<'a> {
    /// Digits, so that a seed can be read: `0` and `0` are an anonymous peer that waits, and all in one piece.
    fn of(input: &'a [u8]) -> Option<Self> {
        let [how, piece, bytes @ ..] = input else {
            return None;
        };
        Some(Self {
            who: match how & 3 {
                0 => Who::Anonymous,
                1 => Who::Administrator,
                2 => Who::Stranger,
                _ => Who::Nameless,
            },
            leaves: how & 4 != 0,
            // Rarely: each login costs 40 ms.
            takes_passwords: how & 0xf8 == 0x70,
            piece: match piece & 15 {
                0 => usize::MAX,
                bytes => usize::from(bytes),
            },
            bytes,
        })
    }
}

/// See the module.
///
/// # Panics
/// If the connection does not end soon after its peer went away, leaves something behind, or a stranger got something.
pub fn check(input: &[u8]) {
    let _ = answers(input);
}

/// The same, with what the peer was sent.
fn answers(input: &[u8]) -> Vec<u8> {
    let Some(sent) = Sent::of(input) else {
        return Vec::new();
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    let in_time = async { tokio::time::timeout(END_PATIENCE, visit(&sent)).await };
    let answers = runtime.block_on(in_time);
    answers.expect("a connection ends when its peer has gone away")
}

async fn visit(sent: &Sent<'_>) -> Vec<u8> {
    let listener = listener(sent);
    let config = ServerConfig::embedded("unused", None, vec![listener.clone()]);
    let engine = MemoryEngine::new();
    let shared = Shared::new(
        config,
        |_| {},
        Configured::default(),
        engine.clone(),
        Audit::off(),
    );
    let shared = shared.expect("random bytes");
    store_token(&shared, sent.who).await;
    let followed = follow_access(&shared).await;
    followed.expect("the engine in memory does not fail");
    shared.serving();
    let front = gateway::front(&gateway::built_in(), &shared, &listener);
    let before = engine.position();
    let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
    let certified = match sent.who {
        Who::Administrator => Principal::user("boss").map(|name| Some(Identity::vouched(name))),
        Who::Anonymous | Who::Stranger => Ok(None),
        Who::Nameless => Err(IdentityError::Nameless),
    };
    let serving = serve_in_memory(&shared, &front, certified, ours);
    let ((), answers) = tokio::join!(serving, peer(&shared, sent, theirs));
    nothing_is_left(&shared).await;
    if matches!(sent.who, Who::Stranger | Who::Nameless) {
        let shown = String::from_utf8_lossy(&answers);
        assert_eq!(engine.position(), before, "a stranger wrote: {shown}");
        assert!(!has_success(&answers), "a stranger was let in: {shown}");
    }
    shared.cut.cancel();
    answers
}

/// A token that seeds have. Of a stranger's server it was revoked.
async fn store_token(shared: &Arc<Shared>, who: Who) {
    let token = Lasting::new();
    let keys = Batch::new()
        .put("keys", token.keys)
        .put("instance", token.instance);
    let record = match who {
        Who::Stranger => Batch::new(),
        _ => Batch::new().put(token_key(&token.id), token.record),
    };
    for (keyspace, batch) in [(SECRETS, keys), (SYSTEM, record)] {
        let keyspace = Keyspace::new(keyspace).expect("a name");
        let storage = shared.own_session(&keyspace).storage();
        let stored = storage.commit(batch, CommitOptions::default()).await;
        stored.expect("the engine in memory does not fail");
    }
}

fn listener(sent: &Sent<'_>) -> ListenerConfig {
    let mut listener = ListenerConfig::new(([127, 0, 0, 1], 0).into());
    listener.gateways.push("admin".to_owned());
    let mut auth = vec![AuthMethod::Token];
    match sent.who {
        Who::Administrator | Who::Nameless => return listener,
        Who::Anonymous => auth.push(AuthMethod::Anonymous),
        Who::Stranger => {}
    }
    if sent.takes_passwords {
        auth.push(AuthMethod::Password);
    }
    listener.auth = Some(auth);
    // So that `Host` is looked at.
    listener.tls = TlsMode::Off;
    listener
}

/// Sends it all; goes away at once, or takes what is answered and goes away when there is nothing more.
async fn peer(shared: &Shared, sent: &Sent<'_>, mut stream: DuplexStream) -> Vec<u8> {
    let mut answers = Vec::new();
    for piece in sent.bytes.chunks(sent.piece) {
        // The server may have closed.
        if stream.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    if sent.leaves {
        return answers;
    }
    let mut has_ended = false;
    loop {
        // A request is dropped when its peer ends what it sends, so that comes behind the answers.
        let quiet = async {
            for _ in 0..QUIET_STEPS {
                tokio::task::yield_now().await;
            }
            while shared.access.logins().is_hashing() {
                tokio::time::sleep(HASHED_PATIENCE).await;
            }
        };
        tokio::select! {
            biased;
            read = stream.read_buf(&mut answers) => match read {
                Ok(0) | Err(_) => return answers,
                Ok(_) => assert!(answers.len() <= ANSWER_BYTES_MAX, "endless answers"),
            },
            () = quiet, if !has_ended => {
                has_ended = true;
                let _ = stream.shutdown().await;
            }
        }
    }
}

/// Waits until the connection is counted nowhere any more; sessions end behind their connections.
async fn nothing_is_left(shared: &Arc<Shared>) {
    shared.tasks.close();
    shared.tasks.wait().await;
    let budgets = &shared.budgets;
    let all = [
        &budgets.in_flight,
        &budgets.partial,
        &budgets.outbox,
        &budgets.watches,
    ];
    let used = || all.map(|budget| budget.used());
    while shared.connections.open() > 0 || used() != [0; 4] {
        tokio::task::yield_now().await;
    }
}

/// Whether one of the answers is a success or an upgrade.
fn has_success(answers: &[u8]) -> bool {
    let statuses = answers.windows(12).enumerate();
    let mut statuses = statuses.filter(|(place, window)| {
        let starts_line = *place == 0 || answers[place - 1] == b'\n';
        starts_line && window.starts_with(b"HTTP/1.")
    });
    statuses.any(|(_, window)| window[9] == b'2' || window[9..] == *b"101")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::tests::seeds;

    #[test]
    fn each_seed_is_answered_as_its_name_says() {
        for (name, seed) in seeds("http") {
            let answers = answers(&seed);
            let shown = String::from_utf8_lossy(&answers);
            let answers = shown.split("HTTP/1.").skip(1);
            let found: Vec<_> = answers.map(|answer| &answer[2..5]).collect();
            let (expected, _) = name.split_once('-').unwrap();
            // Nothing for who gets no answer.
            assert_eq!(
                found.join("+"),
                expected.replace("none", ""),
                "{name}: {shown}"
            );
        }
    }

    #[test]
    fn the_seeds_have_the_token_that_is_good() {
        // A change of tokens changes the seeds with it: fuzz/examples/seeds.
        let token = Lasting::new().token;
        let has_it = |(_, seed): &(String, Vec<u8>)| {
            let text = String::from_utf8_lossy(seed);
            text.contains(&token)
        };
        assert!(seeds("http").iter().any(has_it), "{token}");
    }

    #[test]
    fn an_answer_that_is_a_success_is_seen_wherever_it_stands() {
        for answers in [
            &b"HTTP/1.1 200 OK\r\n"[..],
            b"HTTP/1.1 401 U\r\nA: b\r\n\r\nwhy\nHTTP/1.0 204 N\r\n",
            b"HTTP/1.1 101 S\r\n",
        ] {
            assert!(has_success(answers));
        }
        assert!(!has_success(
            b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 404 N HTTP/1.1 200"
        ));
    }
}

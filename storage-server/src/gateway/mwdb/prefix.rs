//! The prefix of a connection: leased when it is first asked for, the same at every further question.
//!
//! The lease is a key with the lifetime of a session of its own in `mwdb.prefixes`; that session ends with the
//! connection, behind its last PUT. While no prefix can be given, the answer is held back: the client would take any
//! number, -1 included, for its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use storage_protocol::{Key, Keyspace, StorageExt};

use crate::engine::{Engine, SessionStorage};

/// Where the leases are.
const KEYSPACE: &str = "mwdb.prefixes";
/// What their keys begin with.
const BASE: &[u8] = b"p";
/// Between two attempts: the first and the longest pause.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Questions that may wait; a client has one.
const ASKED_MAX: usize = 1_024;

type Reserving = Pin<Box<dyn Future<Output = i16> + Send>>;

enum State {
    /// Not asked for.
    Idle,
    Reserving(Reserving),
    Held(i16),
}

/// See the module.
pub(super) struct Prefix {
    engine: Arc<dyn Engine>,
    principal: String,
    /// The session that holds the lease.
    session: Option<Arc<dyn SessionStorage>>,
    state: State,
    /// Questions that wait for the answer, at most [`ASKED_MAX`].
    asked: Vec<Bytes>,
}

impl Prefix {
    pub(super) fn new(engine: Arc<dyn Engine>, principal: &str) -> Self {
        Self {
            engine,
            principal: principal.to_owned(),
            session: None,
            state: State::Idle,
            asked: Vec::new(),
        }
    }

    /// Takes a question; an error if absurdly many wait already.
    pub(super) fn ask(&mut self, id: Bytes) -> Result<(), ()> {
        if self.asked.len() >= ASKED_MAX {
            return Err(());
        }
        self.asked.push(id);
        if matches!(self.state, State::Idle) {
            let keyspace = Keyspace::new(KEYSPACE).expect("the name follows the rule");
            let session = self.engine.open_session(&self.principal, &keyspace);
            self.session = Some(session.clone());
            self.state = State::Reserving(Box::pin(reserve(session)));
        }
        Ok(())
    }

    /// The prefix and the ids to answer it to, once there is something to answer.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<(i16, Vec<Bytes>)> {
        if let State::Reserving(reserving) = &mut self.state {
            let Poll::Ready(prefix) = reserving.as_mut().poll(cx) else {
                return None;
            };
            self.state = State::Held(prefix);
        }
        match &self.state {
            State::Held(prefix) if !self.asked.is_empty() => {
                Some((*prefix, std::mem::take(&mut self.asked)))
            }
            _ => None,
        }
    }

    /// Gives the lease back.
    pub(super) async fn release(&mut self) {
        // A reservation that is on its way may still happen; ending the session frees it as well.
        self.state = State::Idle;
        if let Some(session) = self.session.take()
            && let Err(error) = session.end().await
        {
            tracing::warn!(%error, "cannot free the prefix");
        }
    }
}

async fn reserve(session: Arc<dyn SessionStorage>) -> i16 {
    let (mut pause, longest) = PAUSE;
    let mut warned = false;
    loop {
        match session.reserve_prefix(Key::from_static(BASE)).await {
            Ok(number) => match i16::try_from(number) {
                Ok(prefix) => return prefix,
                Err(_) => tracing::error!(number, "a prefix of more than 15 bits"),
            },
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(%error, "no prefix can be given; the peer waits");
            }
            Err(_) => {}
        }
        // Jitter: peers that wait together should not ask together.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(longest);
    }
}

//! The prefix of a connection: reserved at the first request for it, and the same at every further one.
//!
//! The reservation is a key in `mwdb.prefixes` with the lifetime of a session of its own; that session ends with the
//! connection, after its last PUT. While no prefix can be given, the answer is held back: the client would take any
//! number, -1 included, for its own. These requests count like others until they are answered.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use storage_protocol::{Key, Keyspace, StorageExt};

use crate::auth::Identity;
use crate::engine::{Session, SessionStorage};
use crate::limits::budget::Permit;
use crate::shared::Shared;

/// Where the reservations are.
const KEYSPACE: &str = "mwdb.prefixes";
/// What their keys begin with.
const BASE: &[u8] = b"p";
/// Between two attempts: the first and the longest pause.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

type Reserving = Pin<Box<dyn Future<Output = i16> + Send>>;

enum State {
    /// Not requested.
    Idle,
    Reserving(Reserving),
    Held(i16),
}

/// A request for the prefix that waits for its answer.
pub(super) struct Asked {
    pub(super) id: Bytes,
    _permit: Permit,
}

/// See the module.
pub(super) struct Prefix {
    shared: Arc<Shared>,
    identity: Identity,
    /// The session that holds the lease.
    session: Option<Arc<dyn Session>>,
    state: State,
    asked: VecDeque<Asked>,
}

impl Prefix {
    pub(super) fn new(shared: &Arc<Shared>, identity: &Identity) -> Self {
        Self {
            shared: shared.clone(),
            identity: identity.clone(),
            session: None,
            state: State::Idle,
            asked: VecDeque::new(),
        }
    }

    /// Takes a request. `permit` is given back when it is answered.
    pub(super) fn ask(&mut self, id: Bytes, permit: Permit) {
        self.asked.push_back(Asked {
            id,
            _permit: permit,
        });
        if matches!(self.state, State::Idle) {
            let keyspace = Keyspace::new(KEYSPACE).expect("the name follows the rule");
            let session = self.shared.open_session(&self.identity, &keyspace);
            self.session = Some(session.clone());
            self.state = State::Reserving(Box::pin(reserve(session.storage())));
        }
    }

    /// The prefix, once it can be given.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<i16> {
        if let State::Reserving(reserving) = &mut self.state {
            let Poll::Ready(prefix) = reserving.as_mut().poll(cx) else {
                return None;
            };
            self.state = State::Held(prefix);
        }
        match &self.state {
            State::Held(prefix) => Some(*prefix),
            _ => None,
        }
    }

    /// The request to answer next.
    pub(super) fn next(&mut self) -> Option<Asked> {
        self.asked.pop_front()
    }

    /// Whether there are requests that can be answered.
    pub(super) fn is_due(&self) -> bool {
        matches!(self.state, State::Held(_)) && !self.asked.is_empty()
    }

    /// Gives the prefix back.
    pub(super) async fn release(&mut self) {
        // A reservation that is under way may still be made; ending the session frees it as well.
        self.state = State::Idle;
        if let Some(session) = self.session.take()
            && let Err(error) = session.end().await
        {
            tracing::warn!(%error, "cannot free the prefix");
        }
    }
}

async fn reserve(storage: Arc<dyn SessionStorage>) -> i16 {
    let (mut pause, longest) = PAUSE;
    let mut warned = false;
    loop {
        match storage.reserve_prefix(Key::from_static(BASE)).await {
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

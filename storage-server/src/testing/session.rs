//! A session under test, over a stream in memory.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::MemoryEngine;
use crate::audit::Audit;
use crate::auth::{Configured, Identity};
use crate::config::ServerConfig;
use crate::shared::Shared;
use crate::ws::{Dialect, Peer, driver};

/// The peer's end of a session under test.
pub(crate) type Client = WebSocketStream<DuplexStream>;

/// The keyspace of sessions under test.
pub(crate) const KEYSPACE: &str = "test";

/// A session under test.
pub(crate) struct Running {
    pub(crate) client: Client,
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) shared: Arc<Shared>,
    /// Ends when the session has ended.
    pub(crate) session: JoinHandle<()>,
}

/// Starts a session of this dialect over an in-memory stream, in a server of its own.
pub(crate) fn start<D: Dialect + 'static>(
    engine: Arc<MemoryEngine>,
    change: impl FnOnce(&mut ServerConfig),
    dialect: impl FnOnce(&Arc<Shared>, &Peer) -> D,
) -> Running {
    let shared = server(&engine, change);
    start_in(shared, engine, Identity::anonymous(), dialect)
}

/// What the sessions of one server share.
pub(crate) fn server(
    engine: &Arc<MemoryEngine>,
    change: impl FnOnce(&mut ServerConfig),
) -> Arc<Shared> {
    let mut config = ServerConfig::embedded("unused", None, Vec::new());
    change(&mut config);
    let (configured, audit) = (Configured::default(), Audit::off());
    Shared::new(config, |_| {}, configured, engine.clone(), audit).unwrap()
}

/// Starts a session of this principal in a server that may have others.
pub(crate) fn start_in<D: Dialect + 'static>(
    shared: Arc<Shared>,
    engine: Arc<MemoryEngine>,
    identity: Identity,
    dialect: impl FnOnce(&Arc<Shared>, &Peer) -> D,
) -> Running {
    let deadline = Instant::now() + shared.config.timeouts.handshake;
    let peer = Peer {
        slot: shared.slots.take(identity.principal().as_str()).unwrap(),
        live: shared
            .access
            .connected(identity.clone(), shared.cut.child_token()),
        identity,
        deadline,
        open: shared.metrics.sessions("test"),
        drain: shared.drain.child_token(),
    };
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let dialect = dialect(&shared, &peer);
    let session = driver::run(shared.clone(), peer, ours, Bytes::new(), dialect);
    let session = tokio::spawn(session);
    let from_raw = WebSocketStream::from_raw_socket(theirs, Role::Client, None);
    let client = from_raw.now_or_never().unwrap();
    Running {
        client,
        engine,
        shared,
        session,
    }
}

//! A session over its sockets: what applications see of it and may save ([`SessionInfo`], [`SavedSession`]), and the
//! state that its connection keeps.

mod state;

use std::time::Duration;

use storage_protocol::SessionId;

pub(crate) use state::{SessionState, incarnation_after};

/// The session of a connection, over its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its id. A process that knows it, and has the same principal, may resume the session: keep it secret.
    pub id: SessionId,
    /// The highest incarnation that was tried, whether the server was reached with it or not; 0 for a session that was
    /// opened by this connection and never lost its socket. To be saved with the session.
    pub incarnation: u64,
    /// The highest commit number that was sent or found executed, as of the last attempt to connect or the last
    /// Welcome.
    pub sent: u64,
    /// How many sockets after the first were welcomed.
    pub reconnects: u64,
    /// How long there was no connection before the present (or last) socket was welcomed; `None`: it is the first.
    pub last_outage: Option<Duration>,
    /// How often the server reported an expiry of session keys: keys with the lifetime of this session were removed
    /// while it was without a socket. When this grows, put them (and reserve prefixes) again.
    pub expirations: u64,
    /// How often the session could not be resumed and a new one began: its keys are gone, and commits that were sent
    /// and not answered failed as unknown.
    pub replaced: u64,
}

/// A session that another process (or this one, before its end) left: see
/// [`ConnectOptions::resume_session`](crate::ConnectOptions::resume_session).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSession {
    /// Its id.
    pub id: SessionId,
    /// The highest incarnation that was used in it.
    pub incarnation: u64,
    /// The highest commit number that was sent in it.
    pub sent: u64,
    /// The commit numbers up to `sent` that were not answered, ascending: each has to be retried, first and in this
    /// order, with [`RemoteStorage::commit_as`](crate::RemoteStorage::commit_as).
    pub unanswered: Vec<u64>,
}

impl SavedSession {
    /// The highest valid `sent` and `incarnation`; no session comes near it. With higher ones the saved session is
    /// damaged, and [`RemoteStorage::connect`](crate::RemoteStorage::connect) refuses it.
    pub const NUMBER_MAX: u64 = (1 << 63) - 1;

    /// Checks its numbers; the error says which one is invalid.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        for (name, number) in [("an incarnation", self.incarnation), ("a sent", self.sent)] {
            if number > Self::NUMBER_MAX {
                let max = Self::NUMBER_MAX;
                return Err(format!(
                    "the session to resume has {name} of {number}; {max} is the most"
                ));
            }
        }
        Ok(())
    }
}

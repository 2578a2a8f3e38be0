//! A session over its sockets: what applications see of it and may save, and what its connection keeps in step.

mod state;

use std::time::Duration;

use storage_protocol::SessionId;

pub(crate) use state::{SessionState, incarnation_after};

/// The session of a connection, over its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its id. Who knows it, and has the same principal, may resume it: keep it secret.
    pub id: SessionId,
    /// The highest incarnation that was asked for, whether the server was reached with it or not; 0 for a session that was
    /// opened by this connection and never lost its socket. To be saved with the session.
    pub incarnation: u64,
    /// The highest commit number that was sent or found executed when a socket was last asked for, or welcomed.
    pub sent: u64,
    /// How many sockets after the first were welcomed.
    pub reconnects: u64,
    /// How long there was no connection before the present (or last) socket was welcomed; `None`: it is the first.
    pub last_outage: Option<Duration>,
    /// How often the server said that keys with the lifetime of this session were removed meanwhile. When it grows, put
    /// them (and reserve prefixes) again.
    pub expirations: u64,
    /// How often the session could not be resumed and a new one began: its keys are gone, and commits that were sent and
    /// not answered failed as unknown.
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
    /// The numbers up to `sent` that were not answered, ascending: each has to be sent again, first and in this order,
    /// with [`RemoteStorage::commit_as`](crate::RemoteStorage::commit_as).
    pub unanswered: Vec<u64>,
}

impl SavedSession {
    /// The highest `sent` that there is, and more incarnations than any session has. Numbers above are damage, and
    /// [`RemoteStorage::connect`](crate::RemoteStorage::connect) refuses them.
    pub const NUMBER_MAX: u64 = (1 << 63) - 1;

    /// What in it cannot be.
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

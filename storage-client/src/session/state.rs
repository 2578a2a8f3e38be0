//! What a connection keeps of its session from one socket to the next.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use storage_protocol::SessionId;
use storage_protocol::native::{Hello, Welcome};

use super::SessionInfo;
use crate::order::CommitOrder;
use crate::watch::WatchShared;

/// The state of a session, which outlives its sockets: the driver of each socket borrows it, the supervisor keeps it in
/// between.
pub(crate) struct SessionState {
    id: SessionId,
    incarnation: u64,
    /// The highest commit number that was sent.
    pub(crate) sent: u64,
    /// Counts the sockets: the number of the present one.
    pub(crate) socket: u64,
    /// Commit numbers of a saved session that its owner has yet to retry.
    pub(crate) promised: BTreeSet<u64>,
    /// The revisions that the session's commits were answered with.
    pub(crate) committed: CommitOrder,
    /// Watches whose next stream is to be opened.
    pub(crate) watches: VecDeque<Arc<WatchShared>>,
    reconnects: u64,
    last_outage: Option<Duration>,
    expirations: u64,
    replaced: u64,
}

impl SessionState {
    /// The state after the first socket was welcomed, for a session that this `hello` asked for.
    pub(crate) fn new(hello: &Hello, welcome: &Welcome) -> Self {
        let resumed = hello.session == Some(welcome.session);
        Self {
            id: welcome.session,
            incarnation: if resumed { hello.incarnation } else { 0 },
            sent: if resumed {
                hello.sent.max(welcome.executed)
            } else {
                0
            },
            promised: if resumed {
                hello.unanswered.iter().copied().collect()
            } else {
                BTreeSet::new()
            },
            expirations: u64::from(welcome.lapsed),
            replaced: u64::from(hello.session.is_some() && !resumed),
            socket: 0,
            committed: CommitOrder::default(),
            watches: VecDeque::new(),
            reconnects: 0,
            last_outage: None,
        }
    }

    pub(crate) fn info(&self) -> SessionInfo {
        SessionInfo {
            id: self.id,
            incarnation: self.incarnation,
            sent: self.sent,
            reconnects: self.reconnects,
            last_outage: self.last_outage,
            expirations: self.expirations,
            replaced: self.replaced,
        }
    }

    /// Called before each attempt to connect.
    pub(crate) fn raise_incarnation(&mut self) {
        // Never by the clock, not even the first time: if another process resumed the session while this one was cut
        // off, it took the clock, and this one must come back with a lower incarnation. Raised for each attempt, since
        // the server counts one whose Welcome was lost.
        self.incarnation += 1;
    }

    /// Hello for the next socket. `repeats`: the numbers of the commits that will be retried.
    pub(crate) fn hello(&self, agent: String, repeats: impl IntoIterator<Item = u64>) -> Hello {
        let mut unanswered = self.promised.clone();
        unanswered.extend(repeats);
        Hello {
            session: Some(self.id),
            incarnation: self.incarnation,
            sent: self.sent,
            unanswered: unanswered.into_iter().collect(),
            ..Hello::new(agent)
        }
    }

    /// The next socket was welcomed; `outage` is the time since the last was lost. False: the session is gone, and a
    /// new one began.
    pub(crate) fn welcomed(&mut self, welcome: &Welcome, outage: Duration) -> bool {
        self.last_outage = Some(outage);
        self.reconnects += 1;
        self.expirations += u64::from(welcome.lapsed);
        let resumed = welcome.session == self.id;
        if resumed {
            self.sent = self.sent.max(welcome.executed);
        } else {
            self.replaced += 1;
            self.id = welcome.session;
            self.incarnation = 0;
            self.sent = 0;
            self.promised.clear();
            self.committed = CommitOrder::default();
        }
        resumed
    }

    /// The next watch whose stream is to be opened; skips those that were dropped meanwhile.
    pub(crate) fn next_watch(&mut self) -> Option<Arc<WatchShared>> {
        loop {
            let watch = self.watches.pop_front()?;
            if !watch.is_dropped() {
                return Some(watch);
            }
        }
    }
}

/// The incarnation for a process that resumes the session of an earlier one: the wall clock in milliseconds, and above
/// the last known incarnation of the earlier one. So it fences the earlier process, which only counts up from where it
/// began, and is fenced by the next.
pub(crate) fn incarnation_after(before: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(0));
    millis.max(before + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incarnations_grow_also_where_the_clock_does_not() {
        let first = incarnation_after(0);
        assert!(first > 1_600_000_000_000);
        let far = first + 1_000_000;
        assert_eq!(incarnation_after(far), far + 1);
    }
}

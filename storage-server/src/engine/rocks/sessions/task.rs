//! The committer's tasks on sessions: retried commits, new generations, expiry of session keys, and the ends of
//! sessions.
//!
//! The committer alone changes a session, so each change has its place in the order of the session's commits. A change
//! takes effect for the later work of its group at once, and for everyone else when the group is written. If the write
//! fails, the store is poisoned and executes nothing more.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use storage_protocol::{Outcome, Position, Result, StorageError, UnixMillis};

use super::ENDED_MAX;
use super::state::{Handle, SessionState, Verdict};
use crate::engine::rocks::commit::Group;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{CommitRow, SESSION_WINDOW, SessionHorizon, Table};

impl Group<'_> {
    /// Refuses what a fenced handle sends, and everything after the session's end.
    pub(crate) fn check_session(
        &self,
        session: &SessionState,
        handle: u64,
        number: u64,
        repeatable: bool,
    ) -> Result<()> {
        let is_fenced = !session.is_attached(handle);
        let reason = if is_fenced {
            "fenced: a newer incarnation of the session took over"
        } else if session.is_revoked() {
            "its peer is not let in any more"
        } else if session.has_ended() {
            "the session has ended"
        } else {
            return Ok(());
        };
        // If its number was executed, it may be the commit that was. And a commit that was sent on a fenced socket may
        // be retried on the newer one, and be executed there.
        let may_come_again = (is_fenced || session.is_revoked()) && repeatable;
        let was_executed = number <= session.executed.load(Ordering::Acquire);
        let outcome = if may_come_again || was_executed {
            Outcome::Unknown
        } else {
            Outcome::NotExecuted
        };
        let reason = reason.to_owned();
        Err(StorageError::Closed { reason, outcome })
    }

    /// The answer to a commit whose number is not above the highest executed one: the result of the first time, if it
    /// is the same commit. Without a fingerprint that is not known.
    pub(crate) fn repeat(
        &mut self,
        session: &SessionState,
        number: u64,
        fingerprint: Option<u64>,
    ) -> Result<Position> {
        let closed = |reason: &str, outcome| {
            let reason = reason.to_owned();
            Err(StorageError::Closed { reason, outcome })
        };
        let record = match self.executed.get(&(session.id, number)) {
            Some(record) => Some(*record),
            None => {
                let key = layout::session_key(session.id, number);
                let found = self.store.row(Table::Commits, &key).and_then(|row| {
                    let record = row.map(|row| CommitRow::decode_number(&row)).transpose()?;
                    Ok(record.filter(|record| record.number == number))
                });
                match found {
                    Ok(record) => record,
                    // Logged where it happened. The commit may have been executed.
                    Err(_) => {
                        return closed("the session cannot be read", Outcome::Unknown);
                    }
                }
            }
        };
        if let Some(record) = record {
            return match (record.fingerprint, fingerprint) {
                // A record without a fingerprint, of an older version, counts as the same commit.
                (Some(first), Some(now)) if first != now => {
                    self.shared.metrics.number_reused();
                    Err(StorageError::NumberReused { number })
                }
                (_, None) => closed(
                    "it did not come whole, so whether it is the commit that was executed under its number is not known",
                    Outcome::Unknown,
                ),
                (_, Some(_)) => {
                    self.shared.metrics.repeated();
                    Ok(self.store.at(record.revision))
                }
            };
        }
        let executed = session.executed.load(Ordering::Acquire);
        if number.saturating_add(SESSION_WINDOW) <= executed {
            return closed(
                "the number is too old: what it did is forgotten",
                Outcome::Unknown,
            );
        }
        // After a failed write, what is executed and what is on disk may differ.
        if self.store.check_poison().is_err() {
            return closed("the store takes no more writes", Outcome::Unknown);
        }
        closed(
            "it was refused before and will not be executed under this number",
            Outcome::NotExecuted,
        )
    }

    /// Whether the session has no row yet: it is written with the session's first commit.
    pub(crate) fn is_unstored(session: &SessionState) -> bool {
        !session.stored.load(Ordering::Acquire)
    }

    pub(crate) fn put_session_row(&mut self, session: &SessionState) {
        let row = session.row(self.store).encode();
        self.put(Table::Meta, &layout::session_row_key(session.id), &row);
        session.stored.store(true, Ordering::Release);
    }

    /// Writes the row again, if the session has one. Not after a failed write: nothing is executed then.
    fn update_session_row(&mut self, session: &SessionState) {
        if !Self::is_unstored(session) && self.store.check_poison().is_ok() {
            self.put_session_row(session);
        }
    }

    pub(crate) fn attach(
        &mut self,
        session: &SessionState,
        handle: Handle,
        generation: u64,
        verdict: &OnceLock<Verdict>,
    ) -> Result<Position> {
        let decided = if session.has_ended() {
            Verdict::Gone
        } else if generation <= session.generation.load(Ordering::Acquire) {
            Verdict::Fenced
        } else {
            session.generation.store(generation, Ordering::Release);
            let before = std::mem::replace(&mut *session.attached(), handle);
            // Cancelled when the new generation is durable: the owner of the fenced handle must not resume again.
            self.fenced.push(before.fence);
            self.shared.sessions.registry().unlose(session);
            self.update_session_row(session);
            self.shared.metrics.resumed();
            Verdict::Attached
        };
        // The task has one verdict.
        let _ = verdict.set(decided);
        self.here()
    }

    /// The socket of a handle was lost.
    pub(crate) fn lose(&self, session: &Arc<SessionState>, handle: u64) -> Result<Position> {
        // A session that never committed leaves nothing behind; it can be resumed all the same.
        let kept =
            session.is_attached(handle) && !session.has_ended() && !Self::is_unstored(session);
        if kept {
            let mut registry = self.shared.sessions.registry();
            registry.unlose(session);
            registry.lose(session, self.now);
        }
        self.here()
    }

    /// The client knows that keys of its session were removed.
    pub(crate) fn acknowledge(&mut self, session: &SessionState, handle: u64) -> Result<Position> {
        if session.is_attached(handle) && session.keys_expired.swap(false, Ordering::AcqRel) {
            self.update_session_row(session);
        }
        self.here()
    }

    /// Begins the expiry of a session's keys: those that it has now are to be removed, unless it was resumed.
    pub(crate) fn expire_keys(
        &mut self,
        session: &Arc<SessionState>,
        since: UnixMillis,
    ) -> Result<Position> {
        self.store.check_poison()?;
        if session.is_lost_since(since) {
            let last = self.base + self.sequence_numbers;
            let mut registry = self.shared.sessions.registry();
            let expiring = (since, session.clone());
            registry.expiring.insert(session.id, expiring);
            drop(registry);
            session.expired_up_to.store(last, Ordering::Release);
            session.keys_expired.store(true, Ordering::Release);
            self.update_session_row(session);
        }
        self.here()
    }

    /// Forgets a session, unless it was resumed.
    pub(crate) fn forget_session(
        &mut self,
        session: &SessionState,
        since: UnixMillis,
        records: &[Vec<u8>],
    ) -> Result<Position> {
        self.store.check_poison()?;
        if session.is_lost_since(since) {
            let sessions = &self.shared.sessions;
            // Ordering: before the session leaves the registry, since from then on its id is compared with the horizon.
            sessions.raise_horizon(session.id);
            let opened = sessions.horizon();
            session.ended.store(true, Ordering::Release);
            sessions.registry().unlose(session);
            let epoch = self.store.epoch();
            let horizon = SessionHorizon { opened, epoch };
            self.put(Table::Meta, layout::SESSION_HORIZON_KEY, &horizon.encode());
            self.delete(Table::Meta, &layout::session_row_key(session.id));
            for record in records {
                self.delete(Table::Commits, record);
            }
        }
        self.here()
    }

    /// Ends the session: it takes no more commits; its row and its records are removed. Does nothing for a handle that
    /// was fenced.
    pub(crate) fn end(&mut self, session: &SessionState, handle: u64) -> Result<Position> {
        if !session.is_attached(handle) || session.ended.swap(true, Ordering::AcqRel) {
            return self.here();
        }
        let sessions = &self.shared.sessions;
        {
            let mut registry = sessions.registry();
            registry.unlose(session);
            registry.ended.insert(session.id);
            registry.ended_order.push_back(session.id);
            if registry.ended_order.len() > ENDED_MAX
                && let Some(oldest) = registry.ended_order.pop_front()
            {
                // Ordering: before it is forgotten, as above.
                sessions.raise_horizon(oldest);
                registry.ended.remove(&oldest);
            }
        }
        self.store.check_poison()?;
        if !Self::is_unstored(session) {
            self.delete(Table::Meta, &layout::session_row_key(session.id));
            let opened = layout::opened_at(session.id);
            let before = sessions.ended.fetch_max(opened.0, Ordering::AcqRel);
            if opened.0 > before {
                let epoch = self.store.epoch();
                let row = SessionHorizon { opened, epoch }.encode();
                self.put(Table::Meta, layout::SESSION_ENDED_KEY, &row);
            }
        }
        let executed = session.executed.load(Ordering::Acquire);
        for number in executed.saturating_sub(SESSION_WINDOW) + 1..=executed {
            self.delete(Table::Commits, &layout::session_key(session.id, number));
        }
        self.here()
    }
}

//! Messages in parts: checked by their first part, counted while parts arrive, refused if no more arrive.

use std::time::Instant;

use storage_protocol::native::{ClientMessage, RequestId, kind};
use storage_protocol::{Limit, Outcome, StorageError};

use super::order::{Commit, Content};
use super::{InFlight, Native, RequestState};
use crate::metrics::RequestLabel;
use crate::ws::Close;

impl Native {
    /// Checks a message in parts by its first one.
    pub(super) fn begin_fragments(
        &mut self,
        kind: u8,
        id: Option<RequestId>,
    ) -> std::result::Result<(), Close> {
        ClientMessage::check_head(kind, id).map_err(Close::protocol)?;
        let Some(id) = id.filter(|_| is_request(kind)) else {
            return Ok(());
        };
        self.check_id(id)?;
        let mut number = None;
        if kind == kind::COMMIT {
            let head = self
                .incoming
                .reassembler
                .head(kind, Some(id))
                .unwrap_or_default();
            let first = ClientMessage::commit_number(head).ok_or_else(|| {
                Close::protocol("the first part of a commit does not hold its number")
            })?;
            self.check_number(first)?;
            number = Some(first);
        }
        self.incoming.fragments.begin(id, number);
        Ok(())
    }

    /// Counts what a part left in the reassembler; its message is refused if that is too much.
    pub(super) fn bound_partial(
        &mut self,
        kind: u8,
        id: Option<RequestId>,
    ) -> std::result::Result<(), Close> {
        self.incoming
            .counted
            .resize(self.incoming.reassembler.cost());
        let session_max = self.limits().bytes_in_flight_max;
        let error = if let Some(bound) = self.incoming.counted.budget().over() {
            bound.overloaded()
        } else if self.incoming.reassembler.bytes() > session_max {
            StorageError::Overloaded {
                limit: Limit::BytesInFlight,
                max: session_max as u64,
            }
        } else {
            return Ok(());
        };
        // A late part of a message that was refused before: nothing of it is held, and its id may be another request's
        // by now.
        if !self.incoming.reassembler.discard(kind, id) {
            return Ok(());
        }
        self.incoming
            .counted
            .resize(self.incoming.reassembler.cost());
        self.refuse_fragments(kind, id, error)
    }

    /// Answers a request whose message never became whole. The number of a commit is skipped; if it was executed
    /// before, it is unknown whether this is the same commit.
    pub(super) fn refuse_fragments(
        &mut self,
        kind: u8,
        id: Option<RequestId>,
        error: StorageError,
    ) -> std::result::Result<(), Close> {
        // CREDIT and CANCEL are not answered; the request that they are about goes on without them.
        let Some(id) = id.filter(|id| self.incoming.fragments.has_begun(*id)) else {
            return Ok(());
        };
        self.incoming.fragments.end(id);
        if kind != kind::COMMIT {
            self.refuse(id, label_of(kind), error);
            return Ok(());
        }
        let head = self
            .incoming
            .reassembler
            .head(kind, Some(id))
            .unwrap_or_default();
        let number = ClientMessage::commit_number(head).ok_or_else(|| {
            Close::protocol("the first part of a commit does not hold its number")
        })?;
        if number <= self.executed() {
            self.repeat(id, number, None);
        } else {
            self.commits.order.skip(number);
            self.refuse(id, RequestLabel::Commit, error);
        }
        Ok(())
    }

    /// Takes a retry of a commit that is not executed again, whatever its content. No bound refuses it: the refusal
    /// would say that it was not executed. Only the fingerprint of its content is kept, so that many need little
    /// memory; there are no more of them than Hello named.
    pub(super) fn repeat(&mut self, id: RequestId, number: u64, fingerprint: Option<u64>) {
        let in_flight = InFlight {
            state: RequestState::Committing,
            _permits: None,
        };
        self.in_flight.insert(id, in_flight);
        self.commits.order.push(Commit {
            id,
            number,
            content: Content::Retry(fingerprint),
        });
    }

    /// Checks what is on its way: messages in parts without progress are refused. If a commit that later ones wait for
    /// does not arrive, the connection is closed, since what waits takes room in the bounds of all.
    pub(super) fn check_fragments(&mut self, now: Instant) -> std::result::Result<(), Close> {
        if !self.incoming.fragments.is_due(now) {
            return Ok(());
        }
        let patience = self.shared.config.timeouts.partial_message;
        let dropped = self
            .incoming
            .reassembler
            .expire(self.incoming.fragments.clock.at(now), patience);
        self.incoming
            .counted
            .resize(self.incoming.reassembler.cost());
        for (kind, id) in dropped {
            let outcome = Outcome::NotExecuted;
            self.refuse_fragments(kind, id, StorageError::DeadlineExceeded { outcome })?;
        }
        self.watch_fragments(now);
        match self.incoming.fragments.missing_for(patience, now) {
            Some(number) => Err(Close::protocol(format!(
                "commit number {number} is missing for {}, and later ones wait for it",
                humantime::format_duration(patience)
            ))),
            None => Ok(()),
        }
    }

    /// Notes what is on its way, after anything arrived or was done.
    pub(super) fn watch_fragments(&mut self, now: Instant) {
        let patience = self.shared.config.timeouts.partial_message;
        self.incoming
            .fragments
            .note_gap(self.commits.order.gap(), now);
        self.incoming
            .fragments
            .watch(self.incoming.reassembler.bytes() > 0, patience, now);
    }
}

/// Whether a message of this type is a request, with an id of its own.
pub(super) fn is_request(kind: u8) -> bool {
    !matches!(kind, kind::CREDIT | kind::CANCEL)
}

/// How requests of a type are counted.
pub(super) fn label_of(kind: u8) -> RequestLabel {
    match kind {
        kind::COMMIT => RequestLabel::Commit,
        kind::SCAN => RequestLabel::Scan,
        kind::SCAN_NEXT => RequestLabel::ScanNext,
        kind::WATCH => RequestLabel::Watch,
        _ => RequestLabel::Get,
    }
}

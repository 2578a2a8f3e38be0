//! Requests that are being carried out: polls them, and puts their answers and the events of watches into the outbox,
//! while it has room.

use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::StreamExt;
use storage_protocol::Watch;
use storage_protocol::native::{Class, RequestId, ServerMessage};

use super::order::{Commit, Content};
use super::watches::Terms;
use super::{FinishedRequest, InFlight, Native, Output, RequestState, Running, is_full};
use super::{reads, requests};
use crate::metrics::RequestLabel;
use crate::ws::turn_is_over;

impl Native {
    /// Answers a finished request and frees its id; a read that found no room waits again.
    pub(super) fn complete(&mut self, finished: FinishedRequest, now: Instant) {
        let FinishedRequest {
            id,
            label,
            lane,
            scan,
            result,
        } = finished;
        if let Some(lane) = lane {
            self.reads.end(lane);
        }
        let result = match (result, lane) {
            (Ok(Output::NoRoom(read)), Some(lane)) => {
                if let Some(in_flight) = self.in_flight.get_mut(&id) {
                    in_flight.state = RequestState::Waiting;
                }
                return self.reads.wait_again(id, read, lane, now);
            }
            (result, _) => result,
        };
        self.in_flight.remove(&id);
        self.metrics().request(label, &result);
        let unwatching = match label {
            RequestLabel::Watch => self.watching.opening.remove(&id).flatten(),
            _ => None,
        };
        // Kept until the answer is counted in the outbox.
        let mut counted = None;
        let message = match result {
            Err(error) => {
                if let Some(scan) = scan {
                    self.scans.remove(scan);
                }
                ServerMessage::Error(error)
            }
            Ok(Output::Values { reading, room }) => {
                counted = Some(room);
                ServerMessage::Values {
                    revision: reading.position.revision,
                    entries: reading.value,
                }
            }
            Ok(Output::Committed(position)) => ServerMessage::Committed {
                revision: position.revision,
            },
            Ok(Output::Page(turn)) => self.scans.page(scan.unwrap_or_default(), turn, now),
            Ok(Output::Watching { watch, terms }) => self.watch_opened(id, watch, terms),
            // Only reads find no room.
            Ok(Output::NoRoom(_)) => return,
        };
        let class = match message {
            ServerMessage::Values { .. } | ServerMessage::Page { .. } => Class::Read,
            _ => Class::Answer,
        };
        self.outgoing.outbox.push(class, message.encode(Some(id)));
        self.count_outbox();
        drop(counted);
        if let Some(request) = unwatching {
            // It was not polled yet, so it has delivered nothing.
            self.watching.watches.remove(id);
            self.end_watch(id, request);
        }
    }

    /// Registers a watch that was opened; returns the answer to its request.
    fn watch_opened(&mut self, id: RequestId, watch: Watch, terms: Terms) -> ServerMessage {
        let revision = watch.start().revision;
        let in_flight = InFlight {
            state: RequestState::Watching,
            _permits: None,
        };
        self.in_flight.insert(id, in_flight);
        let now = self.storage().map(|storage| storage.position());
        let is_behind = now.is_some_and(|now| revision < now.revision);
        self.watching.watches.insert(id, watch, terms, is_behind);
        ServerMessage::Watching { revision }
    }

    /// Begins reads that wait for room and polls those that run, while there is room for their answers. Small ones are
    /// always polled.
    pub(super) fn poll_reads(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        self.reads.on_time(now);
        while !(moved && turn_is_over(now))
            && let Some(finished) = self.reads.poll_small(cx)
        {
            self.complete(finished, now);
            moved = true;
        }
        // One at least, also where the small ones took the turn.
        let mut moved_large = false;
        loop {
            if self.outbox_is_full() || (moved_large && turn_is_over(now)) {
                break;
            }
            let has_room = self.has_room_beside();
            if let Some(storage) = self.storage()
                && let Some((waiting, lane)) = self.reads.next(has_room)
            {
                requests::Request {
                    native: self,
                    storage,
                    id: waiting.id,
                    now,
                }
                .read(cx, waiting.read, lane);
            } else if let Some(finished) = self.reads.poll_running(cx) {
                self.complete(finished, now);
            } else {
                break;
            }
            moved_large = true;
        }
        moved || moved_large
    }

    pub(super) fn poll_openings(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        loop {
            let is_over = moved && turn_is_over(now);
            if is_over || self.outbox_is_full() {
                break;
            }
            let Poll::Ready(Some(finished)) = self.watching.openings.poll_next_unpin(cx) else {
                break;
            };
            self.complete(finished, now);
            moved = true;
        }
        moved
    }

    /// Hands the commits whose turn it is to the engine.
    ///
    /// Ordering: the first poll queues a commit, so commits are applied in the order of these polls.
    pub(super) fn start_commits(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(storage) = self.storage() else {
            return false;
        };
        let mut moved = false;
        while let Some(Commit {
            id,
            number,
            content,
        }) = self.commits.order.pop()
        {
            moved = true;
            let storage = storage.clone();
            let mut running: Running = Box::pin(async move {
                let result = match content {
                    Content::New(batch, options) => {
                        storage.commit_numbered(number, batch, options).await
                    }
                    Content::Retry(fingerprint) => {
                        storage.repeat_numbered(number, fingerprint).await
                    }
                };
                let result = result.map(Output::Committed);
                FinishedRequest {
                    id,
                    label: RequestLabel::Commit,
                    lane: None,
                    scan: None,
                    result,
                }
            });
            match running.as_mut().poll(cx) {
                Poll::Ready(finished) => self.complete(finished, now),
                Poll::Pending => self.commits.running.push(running),
            }
        }
        moved
    }

    pub(super) fn poll_commits(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        while !(moved && turn_is_over(now))
            && let Poll::Ready(Some(finished)) = self.commits.running.poll_next_unpin(cx)
        {
            self.complete(finished, now);
            moved = true;
        }
        moved
    }

    pub(super) fn poll_watches(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.closing {
            self.watching.watches.clear();
        }
        let outbox = &mut self.outgoing.outbox;
        let watching = |(watch, _): &(RequestId, RequestId)| outbox.has_bulk(*watch);
        let (unwatching, done) = std::mem::take(&mut self.watching.unwatching)
            .into_iter()
            .partition(watching);
        self.watching.unwatching = unwatching;
        for (watch, request) in done {
            self.end_watch(watch, request);
        }
        let (shared, budget) = (&self.shared, &self.outgoing.budget);
        // While the shared bounds are full, one message for each session would add up. So only one for each principal
        // goes on, if nothing else of that principal waits.
        let waits_for_others = budget.shared_is_full() && !budget.is_alone();
        let turn = self
            .watching
            .watches
            .poll(cx, &mut self.outgoing.outbox, now, |outbox| {
                waits_for_others || is_full(shared, budget, outbox.bytes())
            });
        // Nothing wakes this session when others give room back.
        let retries_later = waits_for_others && self.watching.watches.wait_for_turn();
        self.watching.retry_at = retries_later.then(|| now + reads::PAUSE);
        for probe in self.watching.watches.answered() {
            self.in_flight.remove(&probe);
        }
        for (id, error) in turn.ended {
            self.in_flight.remove(&id);
            // After the events that are queued.
            self.outgoing
                .outbox
                .push(Class::Change, ServerMessage::Error(error).encode(Some(id)));
        }
        turn.moved
    }

    /// Ends a watch for an Unwatch: both ids are free, and the answer follows on the watch's last event.
    pub(super) fn end_watch(&mut self, watch: RequestId, request: RequestId) {
        for probe in self.watching.watches.answered() {
            self.in_flight.remove(&probe);
        }
        self.in_flight.remove(&watch);
        self.in_flight.remove(&request);
        self.outgoing
            .outbox
            .push(Class::Change, ServerMessage::Done.encode(Some(request)));
    }
}

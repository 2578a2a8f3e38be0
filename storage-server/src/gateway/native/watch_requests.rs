//! The requests about watches: WATCH, UNWATCH, CREDIT and PROBE.

use std::task::Context;

use bytes::Bytes;
use storage_protocol::native::{Class, RequestId, ServerMessage, WatchRequest};
use storage_protocol::{KeyRange, Limit, Storage, StorageError, WatchMode, WatchOptions};

use super::requests::{Request, Size};
use super::watches::{Terms, WATCH_BYTES};
use super::{InFlight, Output, RequestState, Result};
use crate::limits::budget::Permit;
use crate::metrics::RequestLabel;

impl Request<'_> {
    pub(super) fn watch(&mut self, cx: &mut Context<'_>, request: WatchRequest, bytes: usize) {
        let memory = match self.watch_memory(&request.range) {
            Ok(memory) => memory,
            Err(error) => return self.native.refuse(self.id, RequestLabel::Watch, error),
        };
        let Some(permits) = self.admit(RequestLabel::Watch, Size::of(bytes)) else {
            return;
        };
        let in_flight = InFlight {
            state: RequestState::Reading(None),
            _permits: Some(permits),
        };
        self.native.in_flight.insert(self.id, in_flight);
        self.native.watching.opening.insert(self.id, None);
        let storage = self.storage.clone();
        let WatchRequest {
            range,
            start,
            mode,
            credit,
        } = request;
        // Copied out of its message, which it would keep alive.
        let range = KeyRange {
            start: Bytes::copy_from_slice(&range.start),
            end: range.end.map(|end| Bytes::copy_from_slice(&end)),
        };
        let every = mode == WatchMode::Every;
        let opening = async move {
            let watch = storage.watch(range, WatchOptions { start, mode }).await?;
            let terms = Terms {
                credit,
                every,
                memory,
            };
            Ok(Output::Watching { watch, terms })
        };
        self.start(cx, RequestLabel::Watch, None, None, opening);
    }

    /// Room for one more watch of this range.
    pub(super) fn watch_memory(&self, range: &KeyRange) -> Result<Permit> {
        let session = &*self.native;
        let limits = session.limits();
        range.check_bounds(limits.key_bytes_max)?;
        if session.watching.watches.len() + session.watching.opening.len() >= limits.watches_max {
            return Err(StorageError::Overloaded {
                limit: Limit::Watches,
                max: limits.watches_max as u64,
            });
        }
        let bounds = range.start.len() + range.end.as_ref().map_or(0, Bytes::len);
        session.watching.budget.take(WATCH_BYTES + bounds)
    }

    pub(super) fn unwatch(&mut self, watch: RequestId) {
        // Only one Unwatch waits for the opening, so that they are bounded.
        let is_opening = self.native.watching.opening.get(&watch) == Some(&None);
        if !is_opening && !self.native.watching.watches.remove(watch) {
            // The watch ended meanwhile, or another Unwatch ends it; there is nothing to wait for.
            return self.native.answer(self.id, &ServerMessage::Done);
        }
        let in_flight = InFlight {
            state: RequestState::Watching,
            _permits: None,
        };
        self.native.in_flight.insert(self.id, in_flight);
        if is_opening {
            // The WATCH is answered first, and then this.
            self.native.watching.opening.insert(watch, Some(self.id));
            self.abort(watch);
        } else if self.native.outgoing.outbox.has_bulk(watch) {
            self.native.watching.unwatching.push((watch, self.id));
        } else {
            self.native.end_watch(watch, self.id);
        }
    }

    pub(super) fn probe(&mut self, watch: Option<RequestId>, token: u64, bytes: usize) {
        let message = match watch {
            None => {
                let revision = self.storage.position().revision;
                ServerMessage::Probed { revision, token }
            }
            Some(watch) if self.native.watching.watches.contains(watch) => {
                // In flight until its progress event is delivered.
                if let Some(permits) = self.admit(RequestLabel::Probe, Size::of(bytes)) {
                    let in_flight = InFlight {
                        state: RequestState::Probing,
                        _permits: Some(permits),
                    };
                    self.native.in_flight.insert(self.id, in_flight);
                    self.native
                        .watching
                        .watches
                        .request_progress(watch, token, self.id);
                }
                return;
            }
            Some(watch) => {
                ServerMessage::Error(StorageError::invalid(format!("there is no watch {watch}")))
            }
        };
        self.native
            .outgoing
            .outbox
            .push(Class::Control, message.encode(Some(self.id)));
    }
}

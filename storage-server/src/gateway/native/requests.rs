//! One message of a client, carried out: which bound it is judged by, which future it becomes.
//!
//! A request that is refused is answered at once and never in flight. One that is taken keeps its id and its permits
//! in `in_flight` until its answer is in the outbox.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::AbortHandle;
use futures_util::future::Abortable;
use storage_protocol::native::{Class, ClientMessage, RequestId, ServerMessage, WatchRequest};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Limit, Outcome, ScanOptions, Storage, StorageError, WatchMode,
    WatchOptions, planted,
};

use super::order::Commit;
use super::scans::{Turn, read_page};
use super::watches::{Terms, WATCH_BYTES, WatchMemory};
use super::{Finished, InFlight, Native, Output, Permits, Result, Running, State};
use crate::engine::SessionStorage;
use crate::metrics::RequestLabel;
use crate::session::Close;

/// A message with what it needs to be carried out.
pub(super) struct Request<'a> {
    pub(super) session: &'a mut Native,
    pub(super) storage: Arc<dyn SessionStorage>,
    pub(super) id: RequestId,
    pub(super) now: Instant,
}

impl Request<'_> {
    /// Takes a message of `bytes` bytes.
    pub(super) fn take(
        &mut self,
        cx: &mut Context<'_>,
        message: ClientMessage,
        bytes: usize,
    ) -> std::result::Result<(), Close> {
        let id = self.id;
        // These two are about another id's request.
        match message {
            ClientMessage::Cancel => {
                self.cancel();
                return Ok(());
            }
            ClientMessage::Credit { bytes } => {
                self.session.watches.grant(id, bytes);
                return Ok(());
            }
            _ => {}
        }
        if self.session.in_flight.contains_key(&id) {
            return Err(Close::protocol(format!(
                "request id {id} is in flight already"
            )));
        }
        match message {
            ClientMessage::Get { .. } => self.queue(cx, RequestLabel::Get, message, bytes),
            ClientMessage::Scan { .. } => self.queue(cx, RequestLabel::Scan, message, bytes),
            ClientMessage::ScanNext { .. } => {
                self.queue(cx, RequestLabel::ScanNext, message, bytes)
            }
            ClientMessage::ScanClose { scan } => {
                self.session.scans.remove(scan);
                self.session.answer(id, &ServerMessage::Done);
            }
            ClientMessage::Commit {
                number,
                options,
                batch,
            } => return self.commit(cx, number, batch, options, bytes),
            ClientMessage::Watch(request) => self.watch(cx, request, bytes),
            ClientMessage::Unwatch { watch } => self.unwatch(watch),
            ClientMessage::Probe { watch, token } => self.probe(watch, token, bytes),
            ClientMessage::Hello(_) | ClientMessage::Cancel | ClientMessage::Credit { .. } => {}
        }
        Ok(())
    }

    /// A place among the work in progress; `None`: the request was answered with the bound it met.
    fn admit(&mut self, label: RequestLabel, bytes: usize) -> Option<Permits> {
        let session = &mut *self.session;
        let take = || -> Result<Permits> {
            if session.draining {
                return Err(StorageError::Closed {
                    reason: "the server shuts down".to_owned(),
                    outcome: Outcome::NotExecuted,
                });
            }
            Ok(Permits {
                _requests: session.requests.take(1)?,
                _bytes: session.request_bytes.take(bytes)?,
                _total: session.shared.in_flight.take(bytes)?,
            })
        };
        match take() {
            Ok(permits) => Some(permits),
            Err(error) => {
                session.refuse(self.id, label, error);
                None
            }
        }
    }

    /// A read: carried out now, or when the outbox has room.
    fn queue(
        &mut self,
        cx: &mut Context<'_>,
        label: RequestLabel,
        message: ClientMessage,
        bytes: usize,
    ) {
        let Some(permits) = self.admit(label, bytes) else {
            return;
        };
        let in_flight = InFlight {
            state: State::Waiting,
            _permits: Some(permits),
        };
        self.session.in_flight.insert(self.id, in_flight);
        if self.session.waiting.is_empty() && !self.session.outbox_is_full() {
            self.read(cx, message);
        } else {
            self.session.waiting.push_back((self.id, message));
        }
    }

    pub(super) fn read(&mut self, cx: &mut Context<'_>, message: ClientMessage) {
        let storage = self.storage.clone();
        match message {
            ClientMessage::Get { keys } => {
                let values = async move { storage.get(&keys).await.map(Output::Values) };
                self.start(cx, RequestLabel::Get, None, values);
            }
            ClientMessage::Scan { range, options } => self.scan(cx, range, options),
            ClientMessage::ScanNext { scan } => match self.session.scans.take(scan) {
                Ok((open, ahead)) => {
                    let page = async move { read_page(open, ahead).await.map(Output::Page) };
                    self.start(cx, RequestLabel::ScanNext, Some(scan), page);
                }
                Err(error) => self.finish(RequestLabel::ScanNext, Err(error)),
            },
            // Nothing else waits for room.
            _ => {}
        }
    }

    fn finish(&mut self, label: RequestLabel, result: Result<Output>) {
        let finished = Finished {
            id: self.id,
            label,
            scan: None,
            result,
        };
        self.session.complete(finished, self.now);
    }

    fn scan(&mut self, cx: &mut Context<'_>, range: KeyRange, options: ScanOptions) {
        let max = self.session.limits().scans_max;
        let Some(number) = self.session.scans.open(max) else {
            let error = StorageError::Overloaded {
                limit: Limit::Scans,
                max: max as u64,
            };
            return self.finish(RequestLabel::Scan, Err(error));
        };
        let storage = self.storage.clone();
        let first = async move {
            let scan = storage.scan(range, options).await?;
            let turn: Turn = read_page(scan, None).await?;
            Ok(Output::Page(turn))
        };
        self.start(cx, RequestLabel::Scan, Some(number), first);
    }

    /// Polls a read once where it is; what is not ready goes on beside the others, and can be cancelled.
    fn start(
        &mut self,
        cx: &mut Context<'_>,
        label: RequestLabel,
        scan: Option<u64>,
        work: impl Future<Output = Result<Output>> + Send + 'static,
    ) {
        let id = self.id;
        let mut work = Box::pin(work);
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            let finished = Finished {
                id,
                label,
                scan,
                result,
            };
            return self.session.complete(finished, self.now);
        }
        let (abort, registration) = AbortHandle::new_pair();
        if let Some(in_flight) = self.session.in_flight.get_mut(&id) {
            in_flight.state = State::Reading(Some(abort));
        }
        let running: Running = Box::pin(async move {
            let result = Abortable::new(work, registration).await;
            let result = result.unwrap_or(Err(StorageError::Cancelled));
            Finished {
                id,
                label,
                scan,
                result,
            }
        });
        self.session.reads.push(running);
    }

    /// Takes a commit; it is carried out at once, if those before it are here.
    fn commit(
        &mut self,
        cx: &mut Context<'_>,
        number: u64,
        batch: Batch,
        options: CommitOptions,
        bytes: usize,
    ) -> std::result::Result<(), Close> {
        self.session.order.check(number)?;
        if number <= self.session.executed {
            self.session.repeat(self.id, number);
            self.session.start_commits(cx, self.now);
            return Ok(());
        }
        match self.admit(RequestLabel::Commit, bytes) {
            None => self.session.order.spend(number),
            Some(permits) => {
                let in_flight = InFlight {
                    state: State::Committing,
                    _permits: Some(permits),
                };
                self.session.in_flight.insert(self.id, in_flight);
                self.session.order.push(Commit {
                    id: self.id,
                    number,
                    batch,
                    options,
                });
            }
        }
        self.session.start_commits(cx, self.now);
        Ok(())
    }

    fn watch(&mut self, cx: &mut Context<'_>, request: WatchRequest, bytes: usize) {
        let memory = match self.watch_memory(&request.range) {
            Ok(memory) => memory,
            Err(error) => return self.session.refuse(self.id, RequestLabel::Watch, error),
        };
        let Some(permits) = self.admit(RequestLabel::Watch, bytes) else {
            return;
        };
        let in_flight = InFlight {
            state: State::Reading(None),
            _permits: Some(permits),
        };
        self.session.in_flight.insert(self.id, in_flight);
        self.session.opening.insert(self.id, Vec::new());
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
        self.start(cx, RequestLabel::Watch, None, opening);
    }

    /// Room for one more watch of this range.
    fn watch_memory(&self, range: &KeyRange) -> Result<WatchMemory> {
        let session = &*self.session;
        let limits = session.limits();
        range.check_bounds(limits.key_bytes_max)?;
        if session.watches.len() + session.opening.len() >= limits.watches_max {
            return Err(StorageError::Overloaded {
                limit: Limit::Watches,
                max: limits.watches_max as u64,
            });
        }
        let bounds = range.start.len() + range.end.as_ref().map_or(0, Bytes::len);
        let bytes = WATCH_BYTES + bounds;
        Ok(WatchMemory {
            _session: session.watch_bytes.take(bytes)?,
            _total: session.shared.watch_bytes.take(bytes)?,
        })
    }

    fn unwatch(&mut self, watch: RequestId) {
        let is_opening = self.session.opening.contains_key(&watch);
        if !is_opening && !self.session.watches.remove(watch) {
            // It ended meanwhile; there is nothing to wait for.
            return self.session.answer(self.id, &ServerMessage::Done);
        }
        let in_flight = InFlight {
            state: State::Watching,
            _permits: None,
        };
        self.session.in_flight.insert(self.id, in_flight);
        if is_opening && !planted("unwatch-before-answer") {
            // The WATCH is answered first, and then this.
            if let Some(unwatching) = self.session.opening.get_mut(&watch) {
                unwatching.push(self.id);
            }
            self.abort(watch);
        } else if self.session.outbox.has_bulk(watch) {
            self.session.unwatching.push((watch, self.id));
        } else {
            self.session.end_watch(watch, self.id);
        }
    }

    fn probe(&mut self, watch: Option<RequestId>, token: u64, bytes: usize) {
        let message = match watch {
            None => {
                let revision = self.storage.position().revision;
                ServerMessage::Probed { revision, token }
            }
            Some(watch) if self.session.watches.contains(watch) => {
                // In flight until its mark comes.
                if let Some(permits) = self.admit(RequestLabel::Probe, bytes) {
                    let in_flight = InFlight {
                        state: State::Probing,
                        _permits: Some(permits),
                    };
                    self.session.in_flight.insert(self.id, in_flight);
                    self.session.watches.request_progress(watch, token, self.id);
                }
                return;
            }
            Some(watch) => {
                ServerMessage::Error(StorageError::invalid(format!("there is no watch {watch}")))
            }
        };
        self.session
            .outbox
            .push(Class::Control, message.encode(Some(self.id)));
    }

    fn cancel(&mut self) {
        let waiting = &mut self.session.waiting;
        if let Some(place) = waiting.iter().position(|(id, _)| *id == self.id) {
            let message = waiting.remove(place);
            let label = match message {
                Some((_, ClientMessage::Scan { .. })) => RequestLabel::Scan,
                Some((_, ClientMessage::ScanNext { .. })) => RequestLabel::ScanNext,
                _ => RequestLabel::Get,
            };
            return self.finish(label, Err(StorageError::Cancelled));
        }
        self.abort(self.id);
    }

    /// Gives a read up, if it is one; it is answered when it is noticed. Commits are never given up.
    fn abort(&mut self, id: RequestId) {
        if let Some(InFlight {
            state: State::Reading(Some(abort)),
            ..
        }) = self.session.in_flight.get(&id)
        {
            abort.abort();
        }
    }
}

//! Takes one message of a client: checks it by the bounds, and starts the future that carries it out.
//!
//! A request that is refused is answered at once and is never in flight. One that is admitted keeps its id and its
//! permits in `in_flight` until its answer is in the outbox.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::AbortHandle;
use futures_util::future::Abortable;
use storage_protocol::native::{ClientMessage, RequestId, ServerMessage};
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, Limit, Outcome, ScanOptions, StorageError,
};

use super::order::{Commit, Content};
use super::reads::{Lane, Read};
use super::scans::{OpenScan, PageRead, read_page};
use super::{FinishedRequest, InFlight, Native, Output, Permits, RequestState, Result, Running};
use crate::engine::SessionStorage;
use crate::limits::room::AnswerRoom;
use crate::metrics::RequestLabel;
use crate::ws::Close;

/// How much a request counts while it is in flight, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Its payload, which its keys and values keep alive.
    bytes: usize,
    /// The list that it was decoded into, which for short items is many times the payload.
    items: usize,
}

impl Size {
    /// The size of a request without a list.
    pub(super) fn of(bytes: usize) -> Self {
        Self { bytes, items: 0 }
    }
}

impl Native {
    /// How much a request counts beside its payload, in the bounds that sessions share. Both together count at most as
    /// much as the longest message, so that one message always fits.
    fn beside(&self, size: Size) -> usize {
        let max = self.limits().message_bytes_max;
        size.items.min(max.saturating_sub(size.bytes))
    }
}

fn check_max(limit: Limit, actual: usize, max: usize) -> Result<()> {
    match actual <= max {
        true => Ok(()),
        false => Err(StorageError::limit(limit, actual, max)),
    }
}

/// A message with what it needs to be carried out.
pub(super) struct Request<'a> {
    pub(super) native: &'a mut Native,
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
                self.native.watching.watches.grant(id, bytes);
                return Ok(());
            }
            _ => {}
        }
        self.native.check_id(id)?;
        match message {
            ClientMessage::Get { keys } => self.get(cx, keys, bytes),
            ClientMessage::Scan { range, options } => {
                self.queue(cx, Read::Scan { range, options }, bytes);
            }
            ClientMessage::ScanNext { scan } => self.scan_next(cx, scan, bytes),
            ClientMessage::ScanClose { scan } => {
                self.native.scans.remove(scan);
                self.native.answer(id, &ServerMessage::Done);
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

    /// Permits for a request in flight; `None`: the request was refused, with the bound that is reached.
    pub(super) fn admit(&mut self, label: RequestLabel, size: Size) -> Option<Permits> {
        let session = &mut *self.native;
        let items = session.beside(size);
        let take = || -> Result<Permits> {
            if session.draining {
                return Err(StorageError::Closed {
                    reason: "the server shuts down".to_owned(),
                    outcome: Outcome::NotExecuted,
                });
            }
            let requests = session.bounds.requests.take(1)?;
            let bytes = session.bounds.bytes.take(size.bytes)?;
            Ok(Permits {
                _requests: requests,
                _bytes: bytes,
                _items: session.bounds.items.take(items)?,
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

    /// The same, and one request at a time may go beyond the session's own bounds.
    fn admit_beyond(&mut self, label: RequestLabel, size: Size) -> Option<Permits> {
        let session = &*self.native;
        let mut requests = session.bounds.requests.count();
        let mut request_bytes = session.bounds.bytes.count();
        let items = session.bounds.items.take(session.beside(size));
        let is_within = session.bounds.requests.used() <= session.limits().requests_in_flight_max
            && session.bounds.bytes.used() <= session.limits().bytes_in_flight_max;
        let items = items.ok().filter(|_| !session.draining && is_within);
        let items = items.filter(|_| request_bytes.grow_beyond(size.bytes));
        let Some(items) = items else {
            return self.admit(label, size);
        };
        requests.resize(1);
        Some(Permits {
            _requests: requests,
            _bytes: request_bytes,
            _items: items,
        })
    }

    /// Takes a get. One of too many keys is refused before it waits.
    fn get(&mut self, cx: &mut Context<'_>, keys: Vec<Key>, bytes: usize) {
        let max = self.native.limits().keys_per_get_max;
        if let Err(error) = check_max(Limit::KeysPerGet, keys.len(), max) {
            return self.native.refuse(self.id, RequestLabel::Get, error);
        }
        self.queue(cx, Read::Get { keys }, bytes);
    }

    /// A read: carried out now, or when there is room for its answer.
    fn queue(&mut self, cx: &mut Context<'_>, read: Read, bytes: usize) {
        let items = match &read {
            Read::Get { keys } => size_of_val(&keys[..]),
            Read::Scan { .. } | Read::Page { .. } => 0,
        };
        let Some(permits) = self.admit(read.label(), Size { bytes, items }) else {
            // The scan stays where it was.
            if let Read::Page { number, open, .. } = read {
                self.native.scans.put_back(number, open);
            }
            return;
        };
        self.native.in_flight.insert(
            self.id,
            InFlight {
                state: RequestState::Waiting,
                _permits: Some(permits),
            },
        );
        let session = &mut *self.native;
        let lane = if session.outbox_is_full() {
            None
        } else {
            session.reads.lane_of_new(session.has_room_beside())
        };
        match lane {
            Some(lane) => self.read(cx, read, lane),
            None if matches!(read, Read::Get { .. }) && session.takes_small() => {
                self.read(cx, read, Lane::Small);
            }
            None => session.reads.wait(self.id, read),
        }
    }

    /// Takes a request for the next page of a scan. Another one before this is answered fails.
    fn scan_next(&mut self, cx: &mut Context<'_>, number: u64, bytes: usize) {
        match self.native.scans.take(number) {
            Ok(open) => {
                let label = RequestLabel::ScanNext;
                let read = Read::Page {
                    label,
                    number,
                    open,
                };
                self.queue(cx, read, bytes);
            }
            Err(error) => self.native.refuse(self.id, RequestLabel::ScanNext, error),
        }
    }

    /// Begins a read.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, read: Read, lane: Lane) {
        let storage = self.storage.clone();
        let label = read.label();
        match read {
            Read::Get { keys } => {
                let room = AnswerRoom::new(&self.native.outgoing.budget, lane.reach());
                let values = async move {
                    let mut read = storage.get_into(&keys, room.room()).await;
                    // The bounds that sessions share have no room. A small answer is sent all the same, or small
                    // answers of later reads would overtake this one.
                    if lane == Lane::First && read.is_err() && room.was_refused() {
                        room.begin(Lane::Small.reach());
                        read = storage.get_into(&keys, room.room()).await;
                    }
                    match read {
                        Err(_) if room.was_refused() => Ok(Output::NoRoom(Read::Get { keys })),
                        read => read.map(|reading| Output::Values { reading, room }),
                    }
                };
                self.start(cx, label, Some(lane), None, values);
            }
            Read::Scan { range, options } => self.scan(cx, range, options, lane),
            Read::Page { number, open, .. } => {
                open.room.begin(lane.reach());
                let page = page(label, number, open);
                self.start(cx, label, Some(lane), Some(number), page);
            }
        }
    }

    fn finish(&mut self, label: RequestLabel, scan: Option<u64>, result: Result<Output>) {
        let finished = FinishedRequest {
            id: self.id,
            label,
            lane: None,
            scan,
            result,
        };
        self.native.complete(finished, self.now);
    }

    fn scan(&mut self, cx: &mut Context<'_>, range: KeyRange, options: ScanOptions, lane: Lane) {
        let max = self.native.limits().scans_max;
        let Some(number) = self.native.scans.open(max) else {
            let error = StorageError::Overloaded {
                limit: Limit::Scans,
                max: max as u64,
            };
            return self.finish(RequestLabel::Scan, None, Err(error));
        };
        let storage = self.storage.clone();
        let room = AnswerRoom::new(&self.native.outgoing.budget, lane.reach());
        let first = async move {
            let scan = storage.scan_into(vec![range], options, room.room()).await?;
            page(RequestLabel::Scan, number, OpenScan { scan, room }).await
        };
        self.start(cx, RequestLabel::Scan, Some(lane), Some(number), first);
    }

    /// Polls a read once at once; if it is not ready it goes on beside the others, and can be cancelled. `lane`: `None`
    /// for the opening of a watch, whose answer is never large.
    pub(super) fn start(
        &mut self,
        cx: &mut Context<'_>,
        label: RequestLabel,
        lane: Option<Lane>,
        scan: Option<u64>,
        work: impl Future<Output = Result<Output>> + Send + 'static,
    ) {
        let id = self.id;
        if let Some(lane) = lane {
            self.native.reads.begin(lane);
        }
        let finished = move |result| FinishedRequest {
            id,
            label,
            lane,
            scan,
            result,
        };
        let mut work = Box::pin(work);
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            return self.native.complete(finished(result), self.now);
        }
        let (abort, registration) = AbortHandle::new_pair();
        if let Some(in_flight) = self.native.in_flight.get_mut(&id) {
            in_flight.state = RequestState::Reading(Some(abort));
        }
        let running: Running = Box::pin(async move {
            let result = Abortable::new(work, registration).await;
            finished(result.unwrap_or(Err(StorageError::Cancelled)))
        });
        match lane {
            Some(lane) => self.native.reads.push(lane, running),
            None => self.native.watching.openings.push(running),
        }
    }

    /// Takes a commit; it is executed at once if those before it have arrived.
    fn commit(
        &mut self,
        cx: &mut Context<'_>,
        number: u64,
        batch: Batch,
        options: CommitOptions,
        bytes: usize,
    ) -> std::result::Result<(), Close> {
        let session = &mut *self.native;
        session.check_number(number)?;
        if number <= session.executed() {
            let fingerprint = crate::engine::fingerprint(&batch, &options);
            session.repeat(self.id, number, Some(fingerprint));
            session.start_commits(cx, self.now);
            return Ok(());
        }
        // One of too many is refused before it waits.
        let max = session.limits().operations_per_commit_max;
        let longest = batch.operations.len().max(batch.checks.len());
        let items = size_of_val(&batch.operations[..]) + size_of_val(&batch.checks[..]);
        let size = Size { bytes, items };
        let permits = match check_max(Limit::OperationsPerCommit, longest, max) {
            Err(error) => {
                session.refuse(self.id, RequestLabel::Commit, error);
                None
            }
            // A commit that later ones wait for is admitted beyond the session's bounds: its own followers may have
            // filled them, and it would be refused for that.
            Ok(()) if session.commits.order.gap() == Some(number) => {
                self.admit_beyond(RequestLabel::Commit, size)
            }
            Ok(()) => self.admit(RequestLabel::Commit, size),
        };
        let session = &mut *self.native;
        match permits {
            None => session.commits.order.skip(number),
            Some(permits) => {
                let in_flight = InFlight {
                    state: RequestState::Committing,
                    _permits: Some(permits),
                };
                session.in_flight.insert(self.id, in_flight);
                session.commits.order.push(Commit {
                    id: self.id,
                    number,
                    content: Content::New(batch, options),
                });
            }
        }
        session.start_commits(cx, self.now);
        Ok(())
    }

    fn cancel(&mut self) {
        match self.native.reads.remove(self.id) {
            Some(read) => self.finish(read.label(), read.scan(), Err(StorageError::Cancelled)),
            None => self.abort(self.id),
        }
    }

    /// Gives a request up if it is a read; it is answered when that is noticed. Commits are never given up.
    pub(super) fn abort(&mut self, id: RequestId) {
        if let Some(InFlight {
            state: RequestState::Reading(Some(abort)),
            ..
        }) = self.native.in_flight.get(&id)
        {
            abort.abort();
        }
    }
}

/// Reads a page, for the answer to a request of this kind.
async fn page(label: RequestLabel, number: u64, open: OpenScan) -> Result<Output> {
    Ok(match read_page(open).await? {
        PageRead::Read(turn) => Output::Page(turn),
        PageRead::NoRoom(open) => Output::NoRoom(Read::Page {
            label,
            number,
            open,
        }),
    })
}

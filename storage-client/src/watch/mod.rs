//! A remote watch: its queue between the connection's task and the application, its credit, and how it goes on after a
//! break.
//!
//! The task puts events in and never waits; the application takes them out at its leisure. The bytes of a message
//! are given back to the server when its last event is consumed, in portions of half the window. Marks cost nothing;
//! a plain mark right behind another replaces it, so that they do not pile up.
//!
//! There is one way to go on, whatever the break and the mode: `Every` is asked for again from the last commit or mark
//! that was received, `Latest` from the last mark. Where the server cannot go on from there, a `Latest` stage repairs the
//! state up to its first mark, and `Every` goes on from that.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use storage_protocol::native::{RequestId, WatchRequest};
use storage_protocol::{
    CommitRecord, Continuity, Epoch, Key, KeyRange, KeyState, Limit, Outcome, Position, Result,
    ResyncReason, Revision, StorageError, WatchEvent, WatchMode, WatchOptions, WatchSource,
    WatchStart, WatchState, WatchStatus, planted,
};

use crate::order::{Broken, StreamOrder};
use crate::requests::{Control, Requests};
use crate::sync::lock;

/// Unanswered marks of one watch; asking for more ends it.
const MARKS_MAX: usize = 1_024;

/// Marks, resets and words about breaks that wait for the application: they cost no credit. With more the watch ends.
const FREE_EVENTS_MAX: usize = 4 * MARKS_MAX;

/// The queue of one watch.
pub(crate) struct WatchShared {
    /// Of the stream that feeds it on the present socket, plus one; 0 for none. Written by the connection's task.
    id: AtomicU64,
    /// The bytes that the server was granted at first.
    window: u64,
    range: KeyRange,
    mode: WatchMode,
    queue: Mutex<Queue>,
}

/// What feeds a watch at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its own mode.
    Own,
    /// A repair of an `Every`: `Latest` up to the first mark.
    Repair,
}

/// Whether a stream is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// It was asked for.
    Opening,
    Open,
    Lost {
        since: Instant,
    },
}

struct Queue {
    /// Filled by the task, emptied by the application. Bounded by the credit (the server may overdraw it by one message,
    /// and is thrown out if it goes far beyond), and by [`FREE_EVENTS_MAX`].
    events: Events,
    /// What the present stream asked for, and what it told.
    start: WatchStart,
    order: StreamOrder,
    /// How often a stream ended without having told anything, one after the other. What a repair tells does not count: it
    /// may go well each time, and the watch come no further.
    failures: u32,
    /// What the server may still send, as we count it.
    balance: i128,
    /// Consumed and not yet given back. Below zero: what was buffered beyond the window when the stream was opened.
    consumed: i128,
    /// The tokens of the marks that were asked for and did not come, each with whether the present stream was asked.
    asked: VecDeque<(u64, bool)>,
    /// Why the watch is over; told after the events.
    end: Option<StorageError>,
    ended: bool,
    application: Option<Waker>,
    stage: Stage,
    link: Link,
    /// Where it goes on: the last commit (`Every`) or mark that was received.
    received: Position,
    /// The last commit or mark that the application took.
    told: Position,
    /// Whether states were handed over that no mark has closed yet.
    handed_over: bool,
    /// The stream broke off, and what that means was not told yet.
    broken: bool,
    /// A stream `Latest` goes on; its first event tells whether that is without a gap.
    undecided: bool,
    /// The next event is to stand behind a `Reset`.
    reset_due: bool,
    /// The application let it go.
    dropped: bool,
}

/// An event that waits for the application.
struct Waiting {
    event: WatchEvent,
    /// What consuming it gives back.
    bytes: u64,
    /// The history it belongs to.
    epoch: Epoch,
}

/// What the connection's task is to do about a watch whose stream ended with an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// Ask again, now.
    Again,
    /// Ask again a little later.
    Later,
    /// It has ended.
    None,
}

impl WatchShared {
    pub(crate) fn new(range: KeyRange, mode: WatchMode, window: u64) -> Self {
        Self {
            id: AtomicU64::new(0),
            window,
            range,
            mode,
            queue: Mutex::new(Queue {
                events: Events::default(),
                start: WatchStart::Now,
                order: StreamOrder::new(false, Revision::ZERO, false),
                failures: 0,
                balance: i128::from(window),
                consumed: 0,
                asked: VecDeque::new(),
                end: None,
                ended: false,
                application: None,
                stage: Stage::Own,
                link: Link::Opening,
                received: Position::default(),
                told: Position::default(),
                handed_over: false,
                broken: false,
                undecided: false,
                reset_due: false,
                dropped: false,
            }),
        }
    }

    /// The first request for it.
    pub(crate) fn first_request(&self, options: WatchOptions) -> WatchRequest {
        lock(&self.queue).start = options.start;
        WatchRequest {
            range: self.range.clone(),
            start: options.start,
            mode: options.mode,
            credit: self.window,
        }
    }

    /// The id of its stream, if it has one.
    pub(crate) fn id(&self) -> Option<RequestId> {
        let id = self.id.load(Ordering::Acquire).checked_sub(1)?;
        RequestId::try_from(id).ok()
    }

    pub(crate) fn set_id(&self, id: Option<RequestId>) {
        let id = id.map_or(0, |id| u64::from(id) + 1);
        self.id.store(id, Ordering::Release);
    }

    fn is_latest(&self, queue: &Queue) -> bool {
        queue.stage == Stage::Repair || self.mode != WatchMode::Every
    }

    /// The first stream is attached: the watch begins after `start`.
    ///
    /// # Errors
    /// That is not where it was to begin.
    pub(crate) fn begin(&self, start: Position) -> Result<(), Broken> {
        let mut queue = lock(&self.queue);
        queue.order = self.order_from(&queue, start.revision)?;
        queue.link = Link::Open;
        queue.received = start;
        queue.told = start;
        Ok(())
    }

    /// The order of a stream that the server says to begin after `attached`.
    fn order_from(&self, queue: &Queue, attached: Revision) -> Result<StreamOrder, Broken> {
        let latest = self.is_latest(queue);
        let anew = latest && queue.start == WatchStart::Beginning;
        let asked = match queue.start {
            WatchStart::After(asked) => asked.revision,
            WatchStart::Beginning if latest => Revision::ZERO,
            // Where that is, only the server knows.
            WatchStart::Now | WatchStart::Beginning => attached,
        };
        // Nor may it be earlier: it is where the next stream would go on.
        if attached != asked {
            return Err(format!(
                "it attached a watch after revision {attached} that was to begin after {asked}"
            ));
        }
        Ok(StreamOrder::new(latest, attached, anew))
    }

    /// Its stream is gone. What the application did not take of a pass without its mark is dropped: it comes again.
    pub(crate) fn lose(&self, since: Instant) {
        self.set_id(None);
        let mut queue = lock(&self.queue);
        if !matches!(queue.link, Link::Lost { .. }) {
            queue.link = Link::Lost { since };
        }
        queue.broken = true;
        queue.drop_open_pass();
        queue.forget_probes();
    }

    /// The request for the next stream.
    pub(crate) fn next_request(&self) -> WatchRequest {
        let mut queue = lock(&self.queue);
        queue.drop_open_pass();
        let buffered = queue.events.bytes();
        let credit = self.window.saturating_sub(buffered);
        queue.balance = i128::from(credit);
        queue.consumed = (i128::from(self.window) - i128::from(buffered)).min(0);
        let is_latest = self.is_latest(&queue);
        queue.undecided = is_latest && queue.stage == Stage::Own && queue.broken;
        // From the beginning only what is there comes: what was handed over of an open pass and is not there any more
        // must go.
        let afresh = is_latest && queue.received.revision == Revision::ZERO;
        queue.reset_due |= afresh && queue.handed_over && !planted("pass-without-reset");
        let start = match queue.received {
            Position {
                revision: Revision::ZERO,
                ..
            } if afresh => WatchStart::Beginning,
            mut position => {
                position.revision.0 += u64::from(planted("resumes-one-late"));
                WatchStart::After(position)
            }
        };
        let mode = match (queue.stage, self.mode) {
            (Stage::Repair, _) => WatchMode::Latest {
                min_interval: Duration::ZERO,
            },
            (Stage::Own, mode) => mode,
        };
        queue.start = start;
        let range = self.range.clone();
        WatchRequest {
            range,
            start,
            mode,
            credit,
        }
    }

    /// The stream that [`next_request`](Self::next_request) asked for is open. Gives the tokens of the marks that are to
    /// be asked for on it, and the bytes to grant: of what was consumed since the request.
    ///
    /// # Errors
    /// It does not begin where it was to.
    pub(crate) fn resume(&self, attached: Revision) -> Result<(Vec<u64>, u64), Broken> {
        let mut queue = lock(&self.queue);
        queue.order = self.order_from(&queue, attached)?;
        queue.link = Link::Open;
        if !self.is_latest(&queue) && queue.broken {
            queue.tell(Continuity::Continuous);
        }
        let asked = if queue.stage == Stage::Own {
            queue.asked.iter().map(|(token, _)| *token).collect()
        } else {
            Vec::new()
        };
        let granted = queue.take_grant(0);
        wake(queue);
        Ok((asked, granted))
    }

    /// Whether this mark is to be asked for now: there is a stream, and it was not asked yet. (Else it is when the next
    /// one is open.)
    pub(crate) fn claim_probe(&self, token: u64) -> bool {
        let mut queue = lock(&self.queue);
        if queue.stage != Stage::Own || queue.link != Link::Open {
            return false;
        }
        let waiting = queue
            .asked
            .iter_mut()
            .find(|asked| **asked == (token, false));
        waiting.map(|asked| asked.1 = true).is_some()
    }

    /// The application let it go: no further stream is to be opened.
    pub(crate) fn set_dropped(&self) {
        lock(&self.queue).dropped = true;
    }

    pub(crate) fn is_dropped(&self) -> bool {
        lock(&self.queue).dropped
    }

    /// Its stream ended with an error, or could not be opened. `server` is the server's position.
    pub(crate) fn repair(&self, error: StorageError, server: Position) -> Repair {
        self.set_id(None);
        let mut queue = lock(&self.queue);
        if queue.ended {
            return Repair::None;
        }
        queue.drop_open_pass();
        queue.forget_probes();
        if queue.link == Link::Open {
            queue.link = Link::Opening;
        }
        queue.failures += 1;
        // The first time there is no reason to wait. A server that says the same again and again is not asked all the time.
        let again = match queue.failures {
            0..=2 => Repair::Again,
            _ => Repair::Later,
        };
        let repair = match &error {
            // A `Latest` cannot be told so.
            StorageError::Compacted { oldest }
                if self.mode == WatchMode::Every && queue.stage == Stage::Own =>
            {
                queue.stage = Stage::Repair;
                let why = ResyncReason::Compacted { oldest: *oldest };
                queue.tell(Continuity::Resynced { why });
                again
            }
            StorageError::EpochChanged { epoch, fork } => {
                if self.mode == WatchMode::Every {
                    queue.stage = Stage::Repair;
                }
                let (epoch, fork) = (*epoch, *fork);
                let why = ResyncReason::EpochChanged { epoch, fork };
                queue.tell(Continuity::Resynced { why });
                // What the lost history removed or put is not known: everything comes anew.
                queue.received = Position::default();
                queue.reset_due = true;
                again
            }
            // A pass that its reader left lying: from its last mark again.
            StorageError::SnapshotExpired => {
                queue.broken = true;
                again
            }
            StorageError::Overloaded { .. } | StorageError::Closed { .. } => Repair::Later,
            _ => {
                queue.tell_lost(server);
                queue.ended = true;
                queue.end = Some(error);
                Repair::None
            }
        };
        wake(queue);
        repair
    }

    /// Takes the commits of one message of so many bytes.
    ///
    /// # Errors
    /// They are not what may come next, or the server has sent far more than it was granted.
    pub(crate) fn push_commits(
        &self,
        commits: Vec<Arc<CommitRecord>>,
        bytes: u64,
        epoch: Epoch,
    ) -> Result<(), Broken> {
        let mut queue = lock(&self.queue);
        queue
            .order
            .commits(&self.range, commits.iter().map(|commit| &**commit))?;
        if let Some(last) = commits.last() {
            queue.received = Position {
                epoch,
                revision: last.revision,
            };
        }
        let events = commits.into_iter().map(WatchEvent::Commit);
        self.push(queue, events, bytes, epoch)
    }

    /// Takes the states of one message of so many bytes.
    ///
    /// # Errors
    /// As [`push_commits`](Self::push_commits).
    pub(crate) fn push_states(
        &self,
        states: Vec<(Key, KeyState)>,
        bytes: u64,
        epoch: Epoch,
    ) -> Result<(), Broken> {
        let mut queue = lock(&self.queue);
        queue.order.states(&self.range, &states)?;
        let event = |(key, state)| WatchEvent::State { key, state };
        self.push(queue, states.into_iter().map(event), bytes, epoch)
    }

    fn push(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        events: impl ExactSizeIterator<Item = WatchEvent>,
        bytes: u64,
        epoch: Epoch,
    ) -> Result<(), Broken> {
        if queue.ended {
            return Ok(());
        }
        if queue.balance < -i128::from(self.window) {
            let max = self.window;
            return Err(format!(
                "it sent events far beyond the credit of a watch (its window is {max} bytes)"
            ));
        }
        queue.comes_further();
        queue.decide();
        queue.balance -= i128::from(bytes);
        let last = events.len().saturating_sub(1);
        for (place, event) in events.enumerate() {
            let bytes = if place == last { bytes } else { 0 };
            queue.events.push(Waiting {
                event,
                bytes,
                epoch,
            });
        }
        wake(queue);
        Ok(())
    }

    /// Takes a mark. True: it closes a repair, and the watch is to go on in its own mode.
    ///
    /// # Errors
    /// It goes back; or it has a token, and none was asked for.
    pub(crate) fn push_mark(&self, position: Position, token: Option<u64>) -> Result<bool, Broken> {
        let mut queue = lock(&self.queue);
        queue.order.mark(position.revision)?;
        if queue.ended {
            return Ok(false);
        }
        queue.comes_further();
        if let Some(token) = token {
            let place = queue.asked.iter().position(|asked| *asked == (token, true));
            let place = place.ok_or("it sent a mark with a token that nobody asked for")?;
            queue.asked.remove(place);
        }
        queue.decide();
        queue.received = position;
        let event = WatchEvent::Progress { position, token };
        // Of several in a row without events between them, the last says it all; breaks between them too.
        if token.is_none() {
            queue.drop_marks_before_break();
        }
        if token.is_none() && queue.events.last().is_some_and(is_plain_mark) {
            queue.events.pop_last();
        }
        queue.add(event, position.epoch);
        let repaired = queue.stage == Stage::Repair;
        if repaired {
            queue.stage = Stage::Own;
            queue.link = Link::Opening;
        }
        wake(queue);
        Ok(repaired)
    }

    /// Takes a reset.
    ///
    /// # Errors
    /// None may come on this watch.
    pub(crate) fn push_reset(&self, epoch: Epoch) -> Result<(), Broken> {
        let mut queue = lock(&self.queue);
        // Ordering: before it is passed over. The server need not know of the end, and what comes next is judged by this.
        queue.order.reset()?;
        if queue.ended {
            return Ok(());
        }
        queue.reset_due = false;
        if queue.undecided {
            queue.undecided = false;
            let why = ResyncReason::Compacted {
                oldest: Revision::ZERO,
            };
            queue.tell(Continuity::Resynced { why });
        }
        // A mark with nothing before it but a reset says that there was nothing: this reset says it anew.
        let is_reset = |event: Option<&WatchEvent>| event == Some(&WatchEvent::Reset);
        if queue.events.last().is_some_and(is_plain_mark) && is_reset(queue.events.before_last(1)) {
            queue.events.pop_last();
        }
        if !is_reset(queue.events.last()) {
            queue.add(WatchEvent::Reset, epoch);
        }
        wake(queue);
        Ok(())
    }

    /// Ends the watch: after the queued events comes `error`.
    pub(crate) fn end(&self, error: StorageError) {
        let mut queue = lock(&self.queue);
        if !queue.ended {
            queue.ended = true;
            queue.end = Some(error);
        }
        wake(queue);
    }

    /// The end of a watch that would have gone on, but its connection is over for good: what is not known any more is said.
    pub(crate) fn end_unresumed(&self, error: StorageError, server: Position) {
        let mut queue = lock(&self.queue);
        if !queue.ended {
            queue.tell_lost(server);
        }
        drop(queue);
        self.end(error);
    }
}

impl Queue {
    /// Puts an event that costs no credit.
    fn add(&mut self, event: WatchEvent, epoch: Epoch) {
        if self.events.free >= FREE_EVENTS_MAX && !self.ended {
            self.ended = true;
            self.end = Some(StorageError::Closed {
                reason: format!(
                    "{FREE_EVENTS_MAX} marks, resets and breaks wait for an application that takes none of them"
                ),
                outcome: Outcome::NotExecuted,
            });
        }
        if !self.ended {
            self.events.push(Waiting {
                event,
                bytes: 0,
                epoch,
            });
        }
    }

    fn tell(&mut self, continuity: Continuity) {
        self.broken = false;
        let continuity = match continuity {
            Continuity::Resynced { .. } if planted("break-untold") => Continuity::Continuous,
            continuity => continuity,
        };
        let event = WatchEvent::Continuity(continuity);
        // Of several breaks without an event between them, one word is enough: the last, of those that mean a gap.
        let is_gap = |event: &WatchEvent| {
            matches!(event, WatchEvent::Continuity(Continuity::Resynced { .. }))
        };
        if is_gap(&event) && self.events.last().is_some_and(is_gap) {
            self.events.pop_last();
        }
        if self.events.last() != Some(&event) {
            let epoch = self.received.epoch;
            self.add(event, epoch);
        }
    }

    /// What happens from here on is not told. `server`: where the server was, as far as is known.
    fn tell_lost(&mut self, server: Position) {
        let (from, mut to) = (self.received, server);
        if to.epoch == from.epoch {
            to.revision = to.revision.max(from.revision);
        }
        self.tell(Continuity::Lost { from, to });
    }

    /// Its stream told something.
    fn comes_further(&mut self) {
        if self.stage == Stage::Own {
            self.failures = 0;
        }
    }

    /// Before the first event of a stream: what was still open is said.
    fn decide(&mut self) {
        if std::mem::take(&mut self.undecided) {
            self.tell(Continuity::Continuous);
        }
        if std::mem::take(&mut self.reset_due) {
            let epoch = self.received.epoch;
            self.add(WatchEvent::Reset, epoch);
        }
    }

    /// The present stream is gone, and with it the marks it was asked for: the next one is asked.
    fn forget_probes(&mut self) {
        for asked in &mut self.asked {
            asked.1 = false;
        }
    }

    /// What is to be granted, if it is at least so much.
    fn take_grant(&mut self, least: u64) -> u64 {
        let granted = u64::try_from(self.consumed).unwrap_or(0);
        if granted == 0 || granted < least {
            return 0;
        }
        self.consumed = 0;
        self.balance += i128::from(granted);
        granted
    }

    /// A plain mark before a break without an event behind either is outdone by the mark that comes now.
    fn drop_marks_before_break(&mut self) {
        let continuous = WatchEvent::Continuity(Continuity::Continuous);
        if self.events.last() == Some(&continuous)
            && self.events.before_last(1).is_some_and(is_plain_mark)
        {
            self.events.pop_last();
            self.events.pop_last();
            if self.events.last() != Some(&continuous) {
                let epoch = self.received.epoch;
                self.add(continuous, epoch);
            }
        }
    }

    /// Drops the states behind the last mark that the application did not take: they come again.
    fn drop_open_pass(&mut self) {
        while let Some(WatchEvent::State { .. } | WatchEvent::Reset) = self.events.last() {
            let last = self.events.pop_last();
            self.reset_due |= last.is_some_and(|last| last.event == WatchEvent::Reset);
        }
    }
}

/// What waits for the application, and how many of it cost no credit.
#[derive(Default)]
struct Events {
    waiting: VecDeque<Waiting>,
    free: usize,
}

impl Events {
    fn push(&mut self, waiting: Waiting) {
        self.free += usize::from(is_free(&waiting.event));
        self.waiting.push_back(waiting);
    }

    fn pop_first(&mut self) -> Option<Waiting> {
        let first = self.waiting.pop_front()?;
        self.free -= usize::from(is_free(&first.event));
        Some(first)
    }

    fn pop_last(&mut self) -> Option<Waiting> {
        let last = self.waiting.pop_back()?;
        self.free -= usize::from(is_free(&last.event));
        Some(last)
    }

    fn last(&self) -> Option<&WatchEvent> {
        self.before_last(0)
    }

    /// The event that so many stand behind.
    fn before_last(&self, behind: usize) -> Option<&WatchEvent> {
        let place = self.waiting.len().checked_sub(behind + 1)?;
        Some(&self.waiting.get(place)?.event)
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What consuming all of it gives back.
    fn bytes(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.bytes).sum()
    }
}

fn is_free(event: &WatchEvent) -> bool {
    !matches!(event, WatchEvent::Commit(_) | WatchEvent::State { .. })
}

fn is_plain_mark(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Progress { token: None, .. })
}

fn wake(mut queue: MutexGuard<'_, Queue>) {
    let application = queue.application.take();
    drop(queue);
    if let Some(application) = application {
        application.wake();
    }
}

/// The application's end of a watch. Dropping it ends the watch at the server, also before the server has answered.
pub(crate) struct RemoteWatch {
    /// Keeps the connection open as long as the watch lives.
    requests: Requests,
    shared: Arc<WatchShared>,
}

impl RemoteWatch {
    pub(crate) fn new(requests: Requests, shared: Arc<WatchShared>) -> Self {
        Self { requests, shared }
    }

    fn control(&self, control: Control) {
        self.requests.control(control);
    }
}

impl WatchSource for RemoteWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        let mut queue = lock(&self.shared.queue);
        let Some(Waiting {
            event,
            bytes,
            epoch,
        }) = queue.events.pop_first()
        else {
            if queue.ended {
                return Poll::Ready(queue.end.take().map(Err));
            }
            queue.application = Some(cx.waker().clone());
            return Poll::Pending;
        };
        match &event {
            WatchEvent::Commit(record) => {
                queue.told = Position {
                    epoch,
                    revision: record.revision,
                };
            }
            WatchEvent::State { .. } => queue.handed_over = true,
            WatchEvent::Progress { position, .. } => {
                queue.told = *position;
                queue.handed_over = false;
            }
            _ => {}
        }
        queue.consumed += i128::from(bytes);
        let mut granted = 0;
        if queue.link == Link::Open && !queue.ended {
            granted = queue.take_grant((self.shared.window / 2).max(1));
        }
        drop(queue);
        if granted > 0 {
            let watch = self.shared.clone();
            self.control(Control::Credit {
                watch,
                bytes: granted,
            });
        }
        Poll::Ready(Some(Ok(event)))
    }

    fn request_progress(&mut self, token: u64) {
        let mut queue = lock(&self.shared.queue);
        if queue.ended {
            return;
        }
        if queue.asked.len() == MARKS_MAX {
            drop(queue);
            return self.shared.end(StorageError::Overloaded {
                limit: Limit::RequestsInFlight,
                max: MARKS_MAX as u64,
            });
        }
        queue.asked.push_back((token, false));
        drop(queue);
        let watch = self.shared.clone();
        self.control(Control::Probe { watch, token });
    }

    // What is buffered is bounded by the credit, and the server does not send it again.
    fn park(&mut self) {}

    fn status(&self) -> WatchStatus {
        let queue = lock(&self.shared.queue);
        let is_empty = queue.events.is_empty();
        let state = match queue.link {
            _ if queue.ended && is_empty => WatchState::Ended,
            Link::Lost { since } => WatchState::Disconnected { since },
            Link::Open if is_empty && queue.stage == Stage::Own && !queue.undecided => {
                WatchState::Live
            }
            Link::Open | Link::Opening => WatchState::CatchingUp,
        };
        WatchStatus {
            state,
            position: queue.told,
        }
    }
}

impl Drop for RemoteWatch {
    fn drop(&mut self) {
        let watch = self.shared.clone();
        self.control(Control::Unwatch { watch });
    }
}

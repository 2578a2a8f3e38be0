//! The watches of a session: polled only when they were woken, have credit, and the outbox has room.
//!
//! The peer is told marks that it did not ask for: one when a watch `Every` has caught up, and one when it was told
//! nothing for long while the store went on. They are asked of the watch like those of probes.
//!
//! Each watch has a waker of its own that notes its id, so 10,000 resting watches cost a wake nothing. An id stands at
//! most once in the line of those to be polled. A watch without credit leaves the line until it is granted more; one
//! with a message in parts on its way, until that has left. Credit counts the payload bytes of changes and states; marks
//! are free, so a watch that was asked for one is polled without credit, and keeps the event that it meets instead. That
//! is counted with the memory of watches.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use storage_protocol::native::{Class, Outbox, PART_BYTES, RequestId, ServerMessage};
use storage_protocol::{
    CommitRecord, Key, KeyState, Outcome, Revision, StorageError, Watch, WatchEvent, WatchState,
    planted,
};

use crate::limits::budget::Permit;
use crate::metrics::Metrics;

/// What one watch may put into the outbox before the others get a turn.
const TURN_BYTES: usize = 4 * PART_BYTES;

/// Watches that get a turn before the session's requests, and other sessions, do: of thousands that were woken at once a
/// peer's own commit must not wait for all.
const TURNS_PER_POLL: usize = 64;

/// What a watch takes in memory beside the bounds of its range, about: here, in the engine and in the feed.
pub(super) const WATCH_BYTES: usize = 2 * 1024;

/// What a watch was opened with.
#[derive(Debug)]
pub(super) struct Terms {
    /// The first grant.
    pub(super) credit: u64,
    /// Mode `Every`.
    pub(super) every: bool,
    /// What it takes in memory.
    pub(super) memory: Permit,
}

/// Ids of watches that were woken; filled by wakers on any thread, drained by the session's task.
#[derive(Debug, Default)]
struct Woken {
    ids: Mutex<Vec<RequestId>>,
    task: AtomicWaker,
}

#[derive(Debug)]
struct WatchWaker {
    id: RequestId,
    /// Whether the id stands in the line (or in `Woken`, or behind a message in parts) already.
    queued: AtomicBool,
    woken: Arc<Woken>,
}

impl Wake for WatchWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.woken
                .ids
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(self.id);
            self.woken.task.wake();
        }
    }
}

struct Slot {
    watch: Watch,
    /// Bytes it may still send; below zero after an event that was longer than what was left.
    credit: i64,
    every: bool,
    /// Marks that were asked for and did not come yet, in their order: the probe of each that the peer asked for.
    marks_due: VecDeque<Option<RequestId>>,
    /// It was behind, and is to be told a mark when it is not.
    catching_up: bool,
    /// It was told nothing since the watches were looked at for that.
    quiet: bool,
    /// The last commit or mark that it was told.
    told: Revision,
    memory: Permit,
    /// An event that was met without credit for it, and what it is counted with. Boxed: few watches have one.
    kept: Option<Box<(WatchEvent, Permit)>>,
    state: Arc<WatchWaker>,
}

/// See the module.
pub(super) struct Watches {
    slots: HashMap<RequestId, Slot>,
    woken: Arc<Woken>,
    line: VecDeque<RequestId>,
    behind_bulk: Vec<RequestId>,
    /// Probes that are in flight no more: their marks came, or their watches ended.
    answered: Vec<RequestId>,
    metrics: Arc<Metrics>,
}

/// What a turn did.
#[derive(Default)]
pub(super) struct Polled {
    pub(super) moved: bool,
    /// Watches that ended, and why.
    pub(super) ended: Vec<(RequestId, StorageError)>,
}

/// Why a watch's turn is over.
enum Rest {
    /// It waits for events, or has no credit.
    Parked,
    /// There is more.
    Again,
    BehindBulk,
    Ended(StorageError),
}

impl Watches {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            slots: HashMap::new(),
            woken: Arc::default(),
            line: VecDeque::new(),
            behind_bulk: Vec::new(),
            answered: Vec::new(),
            metrics,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether one stands in line.
    pub(super) fn wait_for_turn(&self) -> bool {
        !self.line.is_empty() && !self.slots.is_empty()
    }

    pub(super) fn contains(&self, id: RequestId) -> bool {
        self.slots.contains_key(&id)
    }

    /// Takes a watch; `is_behind`: there is something before it already.
    pub(super) fn insert(&mut self, id: RequestId, watch: Watch, terms: Terms, is_behind: bool) {
        let state = Arc::new(WatchWaker {
            id,
            queued: AtomicBool::new(false),
            woken: self.woken.clone(),
        });
        let slot = Slot {
            told: watch.start().revision,
            watch,
            credit: to_credit(terms.credit),
            every: terms.every,
            marks_due: VecDeque::new(),
            catching_up: is_behind && terms.every,
            quiet: false,
            memory: terms.memory,
            kept: None,
            state,
        };
        if self.slots.insert(id, slot).is_none() {
            self.metrics.watches.inc();
        }
        self.enqueue(id);
    }

    pub(super) fn remove(&mut self, id: RequestId) -> bool {
        let Some(slot) = self.slots.remove(&id) else {
            return false;
        };
        self.answered.extend(slot.marks_due.into_iter().flatten());
        self.metrics.watches.dec();
        true
    }

    /// The probes that are in flight no more since this was last asked.
    pub(super) fn answered(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.answered)
    }

    /// Asks for a mark of each watch `Every` that was told nothing since the last time, if the store went on to `present`
    /// since. One without credit is parked, and is not looked for.
    pub(super) fn mark_idle(&mut self, present: Revision) {
        for (id, slot) in &mut self.slots {
            let was_quiet = std::mem::replace(&mut slot.quiet, true);
            if slot.every
                && was_quiet
                && slot.credit > 0
                && slot.marks_due.is_empty()
                && slot.told < present
            {
                slot.ask_unasked();
                if !slot.state.queued.swap(true, Ordering::AcqRel) {
                    self.line.push_back(*id);
                }
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.metrics.watches.dec_by(self.slots.len() as u64);
        self.slots.clear();
    }

    /// Credit for a watch that ended meanwhile is nothing wrong: the two messages crossed.
    pub(super) fn grant(&mut self, id: RequestId, bytes: u64) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.credit = slot.credit.saturating_add(to_credit(bytes));
            self.enqueue(id);
        }
    }

    /// Asks for a mark for the peer, whose request is `probe`.
    pub(super) fn request_progress(&mut self, id: RequestId, token: u64, probe: RequestId) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.watch.request_progress(token);
            slot.marks_due.push_back(Some(probe));
            self.enqueue(id);
        }
    }

    fn enqueue(&mut self, id: RequestId) {
        if let Some(slot) = self.slots.get(&id)
            && !slot.state.queued.swap(true, Ordering::AcqRel)
        {
            self.line.push_back(id);
        }
    }

    /// Polls the watches in line, while the outbox has room.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        outbox: &mut Outbox,
        is_full: impl Fn(&Outbox) -> bool,
    ) -> Polled {
        // Ordering: register, then look; a wake in between is seen or wakes the task.
        self.woken.task.register(cx.waker());
        self.line.extend(
            self.woken
                .ids
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .drain(..),
        );
        for id in std::mem::take(&mut self.behind_bulk) {
            // It counts as queued all the time.
            if outbox.has_bulk(id) {
                self.behind_bulk.push(id)
            } else {
                self.line.push_back(id)
            }
        }
        let mut polled = Polled::default();
        for turn in 0.. {
            if is_full(outbox) {
                break;
            }
            if turn == TURNS_PER_POLL && !self.line.is_empty() {
                // The others come at once, behind what else there is to do.
                polled.moved = true;
                break;
            }
            let Some(id) = self.line.pop_front() else {
                break;
            };
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            slot.state.queued.store(false, Ordering::Release);
            let before = outbox.bytes();
            let rest = slot.take_turn(id, outbox, &mut self.answered);
            polled.moved |= outbox.bytes() != before;
            match rest {
                Rest::Parked => {}
                Rest::Again => self.enqueue(id),
                Rest::BehindBulk => slot.wait_behind_bulk(&mut self.behind_bulk),
                Rest::Ended(error) => {
                    self.remove(id);
                    polled.moved = true;
                    polled.ended.push((id, error));
                }
            }
        }
        polled
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Slot {
    /// A watch that was woken meanwhile stands in the line, and comes here again.
    fn wait_behind_bulk(&self, waiting: &mut Vec<RequestId>) {
        if !self.state.queued.swap(true, Ordering::AcqRel) {
            waiting.push(self.state.id);
        }
    }

    /// Asks for a mark that the peer did not ask for.
    fn ask_unasked(&mut self) {
        self.watch.request_progress(0);
        self.marks_due.push_back(None);
    }

    /// Room for an event of so many bytes beside what its watch takes. One event may go beyond the session's bound: a
    /// commit may be as long as that, and its watch would end at each probe.
    fn room_to_keep(&self, bytes: usize) -> Result<Permit, StorageError> {
        let budget = self.memory.budget();
        let mut permit = budget.count();
        let is_within = budget.over().is_none();
        if planted("kept-event-uncounted") {
            return Ok(permit);
        }
        if is_within && permit.grow_beyond(bytes) {
            return Ok(permit);
        }
        permit.try_grow(bytes)?;
        Ok(permit)
    }

    /// A mark came: whom it answers. The token of one that the peer did not ask for is not the peer's matter.
    fn mark_came(&mut self, token: &mut Option<u64>, answered: &mut Vec<RequestId>) {
        if token.is_none() {
            return;
        }
        match self.marks_due.pop_front() {
            Some(Some(probe)) => answered.push(probe),
            _ => *token = None,
        }
    }

    fn take_turn(
        &mut self,
        id: RequestId,
        outbox: &mut Outbox,
        answered: &mut Vec<RequestId>,
    ) -> Rest {
        // The same each time as far as those who keep a copy can tell; kept in the slot it would be 16 bytes of each watch.
        let waker = Waker::from(self.state.clone());
        let start = outbox.bytes();
        let mut sender = Sender {
            id,
            outbox,
            events: Events::None,
            sent: 0,
        };
        loop {
            if sender.outbox.has_bulk(id) {
                self.credit -= sender.sent;
                return Rest::BehindBulk;
            }
            let estimated = to_credit(sender.events.bytes() as u64);
            if self.credit <= sender.sent.saturating_add(estimated)
                && self.credit > sender.sent
                && !planted("credit-by-estimate")
            {
                // What goes out counts, and that is known once it is sent: it may leave credit for more.
                sender.flush();
                continue;
            }
            let has_credit = self.credit > sender.sent.saturating_add(estimated);
            if !has_credit && (self.kept.is_some() || self.marks_due.is_empty()) {
                self.watch.park();
                self.catching_up |= self.every;
                break self.settle(sender, Rest::Parked);
            }
            if let Some(kept) = self.kept.take() {
                let (event, _) = *kept;
                sender.take(event);
                continue;
            }
            if sender.outbox.bytes() - start >= TURN_BYTES {
                break self.settle(sender, Rest::Again);
            }
            match Pin::new(&mut self.watch).poll_next(&mut Context::from_waker(&waker)) {
                Poll::Pending => {
                    if self.catching_up && self.watch.status().state == WatchState::Live {
                        self.catching_up = false;
                        // A mark that is due says it too, and a watch answers only so many.
                        if self.marks_due.is_empty() || planted("mark-asked-twice") {
                            self.ask_unasked();
                            continue;
                        }
                    }
                    break self.settle(sender, Rest::Parked);
                }
                Poll::Ready(Some(Ok(mut event))) => {
                    self.quiet = false;
                    match &mut event {
                        WatchEvent::Commit(record) => self.told = record.revision,
                        WatchEvent::Progress { position, token } => {
                            self.told = position.revision;
                            self.mark_came(token, answered);
                        }
                        _ => {}
                    }
                    match charged_bytes(&event).filter(|_| !has_credit) {
                        None => sender.take(event),
                        Some(bytes) => match self.room_to_keep(bytes) {
                            Ok(permit) => self.kept = Some(Box::new((event, permit))),
                            Err(error) => break self.settle(sender, Rest::Ended(error)),
                        },
                    }
                }
                Poll::Ready(Some(Err(error))) => break self.settle(sender, Rest::Ended(error)),
                Poll::Ready(None) => {
                    let error = StorageError::Closed {
                        reason: "the watch has ended".to_owned(),
                        outcome: Outcome::NotExecuted,
                    };
                    break self.settle(sender, Rest::Ended(error));
                }
            }
        }
    }

    fn settle(&mut self, mut sender: Sender<'_>, rest: Rest) -> Rest {
        sender.flush();
        self.credit -= sender.sent;
        rest
    }
}

/// Events that go into one message.
enum Events {
    None,
    Commits(Vec<Arc<CommitRecord>>, usize),
    States(Vec<(Key, KeyState)>, usize),
}

impl Events {
    fn bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Commits(_, bytes) | Self::States(_, bytes) => *bytes,
        }
    }
}

/// Collects the events of one watch into messages of about a part.
struct Sender<'a> {
    id: RequestId,
    outbox: &'a mut Outbox,
    events: Events,
    sent: i64,
}

impl Sender<'_> {
    fn take(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Commit(record) => {
                let bytes = record.encoded().len();
                self.make_room(bytes, |events| matches!(events, Events::Commits(..)));
                match &mut self.events {
                    Events::Commits(records, sum) => {
                        records.push(record);
                        *sum += bytes;
                    }
                    other => *other = Events::Commits(vec![record], bytes),
                }
            }
            WatchEvent::State { key, state } => {
                let bytes = state_bytes(&key, &state);
                self.make_room(bytes, |events| matches!(events, Events::States(..)));
                match &mut self.events {
                    Events::States(states, sum) => {
                        states.push((key, state));
                        *sum += bytes;
                    }
                    other => *other = Events::States(vec![(key, state)], bytes),
                }
            }
            WatchEvent::Progress { position, token } => {
                self.flush();
                self.send(&ServerMessage::Progress {
                    revision: position.revision,
                    token,
                });
            }
            WatchEvent::Reset => {
                self.flush();
                self.send(&ServerMessage::Reset);
            }
            // An event that this version of the dialect cannot say does not exist in this version of the server.
            other => {
                tracing::error!(event = ?other, "an event that the native dialect cannot carry")
            }
        }
        // A message that goes in parts must be the last one until it has left.
        if self.events.bytes() > PART_BYTES {
            self.flush();
        }
    }

    /// Sends what is collected if an event of this size does not fit to it.
    fn make_room(&mut self, bytes: usize, same_kind: impl Fn(&Events) -> bool) {
        if !same_kind(&self.events) || self.events.bytes() + bytes > PART_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        match std::mem::replace(&mut self.events, Events::None) {
            Events::None => {}
            Events::Commits(commits, _) => {
                self.sent += self.send(&ServerMessage::Changes { commits })
            }
            Events::States(states, _) => self.sent += self.send(&ServerMessage::States { states }),
        }
    }

    /// Tells the length of the payload.
    fn send(&mut self, message: &ServerMessage) -> i64 {
        let packet = message.encode(Some(self.id));
        let bytes = to_credit(packet.payload.len() as u64);
        self.outbox.push(Class::Change, packet);
        bytes
    }
}

fn to_credit(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What an event takes in memory, if it needs credit.
fn charged_bytes(event: &WatchEvent) -> Option<usize> {
    match event {
        WatchEvent::Commit(record) => Some(record.memory_bytes()),
        WatchEvent::State { key, state } => Some(state_bytes(key, state)),
        _ => None,
    }
}

fn state_bytes(key: &Key, state: &KeyState) -> usize {
    let value = match state {
        KeyState::Live(entry) => entry.value.len(),
        KeyState::Removed(_) => 0,
    };
    key.len() + value + 32
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use prometheus_client::registry::Registry;
    use storage_protocol::{
        Entry, EntryLifetime, Limit, Position, Result, WatchSource, WatchStatus,
    };

    use super::*;
    use crate::limits::budget::Budget;

    /// Tells what it was given, then rests, live, and answers what it is asked, unless that is withheld.
    #[derive(Default)]
    struct Fake {
        events: VecDeque<WatchEvent>,
        tokens: VecDeque<u64>,
        withholds: bool,
        /// How many marks it was asked for.
        asked: Arc<AtomicUsize>,
    }

    impl WatchSource for Fake {
        fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.withholds {
                return Poll::Pending;
            }
            let Some(token) = self.tokens.pop_front() else {
                return Poll::Pending;
            };
            let position = self.status().position;
            let token = Some(token);
            Poll::Ready(Some(Ok(WatchEvent::Progress { position, token })))
        }

        fn request_progress(&mut self, token: u64) {
            self.tokens.push_back(token);
            self.asked.fetch_add(1, Ordering::Relaxed);
        }

        fn park(&mut self) {}

        fn status(&self) -> WatchStatus {
            WatchStatus {
                state: WatchState::Live,
                position: Position::default(),
            }
        }
    }

    fn state(n: usize) -> WatchEvent {
        WatchEvent::State {
            key: format!("key-{n:05}").into(),
            state: KeyState::Live(Entry {
                value: "v".into(),
                revision: Revision(n as u64),
                lifetime: EntryLifetime::Forever,
            }),
        }
    }

    fn open(events: impl Iterator<Item = WatchEvent>, credit: u64, every: bool) -> Watches {
        let source = Fake {
            events: events.collect(),
            ..Fake::default()
        };
        let memory = Budget::new(Limit::WatchBytes, 1 << 20);
        let terms = Terms {
            credit,
            every,
            memory: memory.take(1).unwrap(),
        };
        open_source(source, terms)
    }

    fn open_source(source: Fake, terms: Terms) -> Watches {
        let mut watches = Watches::new(Arc::new(Metrics::new(&mut Registry::default())));
        let watch = Watch::new(Position::default(), Box::new(source));
        watches.insert(1, watch, terms, true);
        watches
    }

    fn large_state(bytes: usize) -> WatchEvent {
        WatchEvent::State {
            key: "large".into(),
            state: KeyState::Live(Entry {
                value: vec![7; bytes].into(),
                revision: Revision(1),
                lifetime: EntryLifetime::Forever,
            }),
        }
    }

    fn poll(watches: &mut Watches, outbox: &mut Outbox) -> Polled {
        watches.poll(&mut Context::from_waker(Waker::noop()), outbox, |_| false)
    }

    /// The messages that come without another word of the peer's.
    fn messages(watches: &mut Watches) -> Vec<ServerMessage> {
        let mut outbox = Outbox::new();
        let mut cx = Context::from_waker(Waker::noop());
        let mut said = Vec::new();
        loop {
            watches.poll(&mut cx, &mut outbox, |_| false);
            let Some(frame) = outbox.pop() else {
                return said;
            };
            let packet = storage_protocol::native::Packet::from_frame(frame).unwrap();
            said.push(ServerMessage::decode(packet).unwrap());
        }
    }

    #[test]
    fn states_are_sent_as_long_as_the_balance_is_above_zero() {
        let all = 150;
        let mut watches = open((0..all).map(state), 3_000, false);
        let (mut told, mut bytes) = (0, 0);
        for message in messages(&mut watches) {
            bytes += message.encode(Some(1)).payload.len();
            let ServerMessage::States { states } = message else {
                panic!("{message:?}")
            };
            told += states.len();
        }
        assert!(bytes < 3_000, "there was credit for all");
        assert_eq!(told, all);
    }

    #[test]
    fn credit_is_overdrawn_by_one_state_at_most() {
        let mut watches = open((0..10_000).map(state), 3_000, false);
        let lengths = messages(&mut watches);
        let bytes: usize = lengths
            .iter()
            .map(|message| message.encode(Some(1)).payload.len())
            .sum();
        assert!((3_000..3_100).contains(&bytes), "{bytes} bytes for 3,000");
    }

    #[test]
    fn a_mark_says_that_a_watch_has_caught_up() {
        let record = CommitRecord::new(
            Revision(7),
            storage_protocol::UnixMillis(0),
            None,
            "t".into(),
            vec![storage_protocol::Change {
                key: "k".into(),
                kind: storage_protocol::ChangeKind::Removed { previous: None },
            }],
        );
        let commit = WatchEvent::Commit(Arc::new(record));
        let mut watches = open(std::iter::once(commit), 1_000, true);
        let said = messages(&mut watches);
        assert!(
            matches!(
                said[..],
                [
                    ServerMessage::Changes { .. },
                    ServerMessage::Progress { token: None, .. }
                ]
            ),
            "{said:?}"
        );
        assert!(messages(&mut watches).is_empty());
    }
    /// What all share, and what a session has of it.
    fn memory(all: usize, session: usize) -> (Arc<Budget>, Arc<Budget>) {
        let all = Budget::new(Limit::WatchBytesTotal, all);
        let session = Budget::within(&all, Limit::WatchBytes, session);
        (all, session)
    }

    /// A watch without credit whose next event is so long, and who is asked for a mark.
    fn probed_without_credit(memory: &Arc<Budget>, bytes: usize) -> Watches {
        let source = Fake {
            events: std::iter::once(large_state(bytes)).collect(),
            ..Fake::default()
        };
        let terms = Terms {
            credit: 0,
            every: false,
            memory: memory.take(WATCH_BYTES).unwrap(),
        };
        let mut watches = open_source(source, terms);
        watches.request_progress(1, 7, 2);
        watches
    }

    #[test]
    fn an_event_that_is_kept_for_want_of_credit_is_counted() {
        let (all, session) = memory(1 << 20, 1 << 20);
        let mut watches = probed_without_credit(&session, 10_000);
        assert!(messages(&mut watches).is_empty());
        assert!(all.used() > WATCH_BYTES + 10_000, "{} bytes", all.used());
        watches.grant(1, 1 << 20);
        let said = messages(&mut watches);
        assert!(
            matches!(
                said[..],
                [
                    ServerMessage::States { .. },
                    ServerMessage::Progress { token: Some(7), .. }
                ]
            ),
            "{said:?}"
        );
        assert_eq!(all.used(), WATCH_BYTES);
    }

    #[test]
    fn one_event_is_kept_beyond_the_sessions_bound_and_none_beyond_the_shared() {
        let (all, session) = memory(1 << 20, 10_000);
        let mut one = probed_without_credit(&session, 20_000);
        let mut another = probed_without_credit(&session, 20_000);
        assert!(poll(&mut one, &mut Outbox::new()).ended.is_empty());
        assert!(all.used() > 20_000);
        let ended = poll(&mut another, &mut Outbox::new()).ended;
        assert!(
            matches!(
                ended[..],
                [(
                    1,
                    StorageError::Overloaded {
                        limit: Limit::WatchBytes,
                        ..
                    }
                )]
            ),
            "{ended:?}"
        );
        // What it was asked for is not due any more.
        assert_eq!(another.answered(), [2]);

        let (_, session) = memory(10_000, 1 << 20);
        let mut watches = probed_without_credit(&session, 20_000);
        let ended = poll(&mut watches, &mut Outbox::new()).ended;
        assert!(
            matches!(
                ended[..],
                [(
                    1,
                    StorageError::Overloaded {
                        limit: Limit::WatchBytesTotal,
                        ..
                    }
                )]
            ),
            "{ended:?}"
        );
    }

    #[test]
    fn a_watch_stands_behind_its_message_in_parts_once() {
        let events = [
            large_state(3 * PART_BYTES),
            large_state(3 * PART_BYTES),
            state(1),
        ];
        let mut watches = open(events.into_iter(), 1 << 20, false);
        let mut outbox = Outbox::new();
        poll(&mut watches, &mut outbox);
        assert!(outbox.has_bulk(1));
        for _ in 0..100 {
            let waker = Waker::from(watches.slots[&1].state.clone());
            waker.wake();
            watches.grant(1, 1);
            poll(&mut watches, &mut outbox);
            assert!(watches.behind_bulk.len() + watches.line.len() <= 1);
        }
        // Nothing is lost by that.
        let mut frames = 0;
        while let Some(frame) = outbox.pop() {
            frames += frame.len();
            poll(&mut watches, &mut outbox);
        }
        assert!(frames > 6 * PART_BYTES);
        assert!(watches.behind_bulk.is_empty());
        watches.request_progress(1, 7, 2);
        assert_eq!(messages(&mut watches).len(), 1, "only the mark");
    }

    #[test]
    fn a_watch_that_owes_a_mark_is_asked_for_no_other_when_it_has_caught_up() {
        let asked = Arc::new(AtomicUsize::new(0));
        let source = Fake {
            withholds: true,
            asked: asked.clone(),
            ..Fake::default()
        };
        let (_, session) = memory(1 << 20, 1 << 20);
        let terms = Terms {
            credit: 1_000,
            every: true,
            memory: session.take(WATCH_BYTES).unwrap(),
        };
        let mut watches = open_source(source, terms);
        for probe in 2..5 {
            watches.request_progress(1, probe.into(), probe);
        }
        assert!(messages(&mut watches).is_empty());
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }
}

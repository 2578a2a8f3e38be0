//! A session's watches over a source of made-up events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use prometheus_client::registry::Registry;
use storage_protocol::native::{Outbox, PART_BYTES, ServerMessage};
use storage_protocol::{
    CommitRecord, Entry, EntryLifetime, KeyState, Limit, Position, Result, Revision, StorageError,
    Watch, WatchEvent, WatchSource, WatchState, WatchStatus,
};

use super::{Polled, Terms, WATCH_BYTES, Watches};
use crate::limits::budget::Budget;
use crate::metrics::Metrics;

/// Tells what it was given, then rests, live, and answers what it is asked, unless that is withheld.
#[derive(Default)]
struct Fake {
    events: VecDeque<WatchEvent>,
    tokens: VecDeque<u64>,
    withholds: bool,
    /// How many progress events it was asked for.
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
    watches.poll(
        &mut Context::from_waker(Waker::noop()),
        outbox,
        Instant::now(),
        |_| false,
    )
}

/// The messages that come without another word of the peer's.
fn messages(watches: &mut Watches) -> Vec<ServerMessage> {
    let mut outbox = Outbox::new();
    let mut cx = Context::from_waker(Waker::noop());
    let mut said = Vec::new();
    loop {
        watches.poll(&mut cx, &mut outbox, Instant::now(), |_| false);
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
    let (mut delivered, mut bytes) = (0, 0);
    for message in messages(&mut watches) {
        bytes += message.encode(Some(1)).payload.len();
        let ServerMessage::States { states } = message else {
            panic!("{message:?}")
        };
        delivered += states.len();
    }
    assert!(bytes < 3_000, "there was credit for all");
    assert_eq!(delivered, all);
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

/// A watch without credit whose next event is so long, and who is asked for a progress event.
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
        assert!(watches.behind_large.len() + watches.line.len() <= 1);
    }
    // Nothing is lost by that.
    let mut frames = 0;
    while let Some(frame) = outbox.pop() {
        frames += frame.len();
        poll(&mut watches, &mut outbox);
    }
    assert!(frames > 6 * PART_BYTES);
    assert!(watches.behind_large.is_empty());
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

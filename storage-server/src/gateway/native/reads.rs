//! The reads of a session: which run, and which wait for room.
//!
//! The answer of a read is counted while it is read (see [`crate::limits::room`]). At most [`RUNNING_MAX`] reads run at
//! once, and one of them, the first, may go beyond the session's bound. A read that found no room waits and then runs
//! as the first; none that waits behind it begins earlier. While the outbox is full, reads wait; but a get is tried in
//! case its answer is small, so that a small answer does not wait for large ones. So is the first read if the bounds
//! that sessions share have no room for it.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use storage_protocol::native::{PART_BYTES, RequestId};
use storage_protocol::{Key, KeyRange, ScanOptions};

use super::scans::OpenScan;
use super::{FinishedRequest, Running};
use crate::limits::room::Reach;
use crate::metrics::RequestLabel;

/// Reads of one session that run at once: as many as the read pool has threads by default.
pub(super) const RUNNING_MAX: usize = 8;
/// The longest answer that counts as small, and may overtake the reads that wait.
pub(super) const SMALL_BYTES: usize = PART_BYTES - 64;
/// With so many bytes of small answers in the outbox, no more of them overtake the reads that wait.
pub(super) const SMALL_WAITING_MAX: usize = 4 * PART_BYTES;
/// When to try again if all sessions together, or those of the principal, have no room.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// What is read.
pub(super) enum Read {
    Get {
        keys: Vec<Key>,
    },
    Scan {
        range: KeyRange,
        options: ScanOptions,
    },
    /// A page of an open scan.
    Page {
        label: RequestLabel,
        number: u64,
        open: OpenScan,
    },
}

impl Read {
    pub(super) fn label(&self) -> RequestLabel {
        match self {
            Self::Get { .. } => RequestLabel::Get,
            Self::Scan { .. } => RequestLabel::Scan,
            Self::Page { label, .. } => *label,
        }
    }

    /// The scan that ends if this read fails or is given up.
    pub(super) fn scan(&self) -> Option<u64> {
        match self {
            Self::Page { number, .. } => Some(*number),
            Self::Get { .. } | Self::Scan { .. } => None,
        }
    }
}

/// How a read runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// The one that may go beyond the session's bound.
    First,
    Beside,
    Small,
}

impl Lane {
    pub(super) fn reach(self) -> Reach {
        match self {
            Self::First => Reach::Beyond,
            Self::Beside => Reach::Within,
            Self::Small => Reach::Small(SMALL_BYTES),
        }
    }
}

/// A read that waits.
pub(super) struct Waiting {
    pub(super) id: RequestId,
    pub(super) read: Read,
    /// It found no room beside others, and is to run as the first.
    alone: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Reads {
    /// Bounded by the permits of their ids.
    waiting: VecDeque<Waiting>,
    running: FuturesUnordered<Running>,
    small: FuturesUnordered<Running>,
    /// How many run (or are just polled for the first time), and whether the first is among them.
    running_len: usize,
    small_len: usize,
    has_first: bool,
    /// No read is begun before this time.
    paused_until: Option<Instant>,
}

impl Reads {
    /// How a read that just arrived, or the next that waits, would run; `None`: it is to wait. `has_room`: whether
    /// there is room for reads beside the first.
    fn lane(&self, alone: bool, has_room: bool) -> Option<Lane> {
        if self.paused_until.is_some() || self.running_len >= RUNNING_MAX {
            None
        } else if !self.has_first {
            Some(Lane::First)
        } else {
            (has_room && !alone).then_some(Lane::Beside)
        }
    }

    /// The same for one that just arrived.
    pub(super) fn lane_of_new(&self, has_room: bool) -> Option<Lane> {
        self.waiting
            .is_empty()
            .then(|| self.lane(false, has_room))
            .flatten()
    }

    /// Whether another small one may run.
    pub(super) fn takes_small(&self) -> bool {
        self.small_len < RUNNING_MAX
    }

    /// The next that waits, if it is its turn.
    pub(super) fn next(&mut self, has_room: bool) -> Option<(Waiting, Lane)> {
        let lane = self.lane(self.waiting.front()?.alone, has_room)?;
        Some((self.waiting.pop_front()?, lane))
    }

    pub(super) fn wait(&mut self, id: RequestId, read: Read) {
        let alone = false;
        self.waiting.push_back(Waiting { id, read, alone });
    }

    /// Takes one back that found no room.
    pub(super) fn wait_again(&mut self, id: RequestId, read: Read, lane: Lane, now: Instant) {
        match lane {
            Lane::Small => return self.wait(id, read),
            // The bounds that sessions share have no room; nothing wakes this session when they have.
            Lane::First => self.paused_until = Some(now + PAUSE),
            Lane::Beside => {}
        }
        let alone = true;
        self.waiting.push_front(Waiting { id, read, alone });
    }

    /// Takes one out that waits.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<Read> {
        let place = self.waiting.iter().position(|waiting| waiting.id == id)?;
        self.waiting.remove(place).map(|waiting| waiting.read)
    }

    pub(super) fn begin(&mut self, lane: Lane) {
        match lane {
            Lane::Small => self.small_len += 1,
            Lane::First | Lane::Beside => self.running_len += 1,
        }
        self.has_first |= lane == Lane::First;
    }

    pub(super) fn end(&mut self, lane: Lane) {
        match lane {
            Lane::Small => self.small_len -= 1,
            Lane::First | Lane::Beside => self.running_len -= 1,
        }
        self.has_first &= lane != Lane::First;
    }

    pub(super) fn push(&mut self, lane: Lane, running: Running) {
        match lane {
            Lane::Small => self.small.push(running),
            Lane::First | Lane::Beside => self.running.push(running),
        }
    }

    pub(super) fn poll_small(&mut self, cx: &mut Context<'_>) -> Option<FinishedRequest> {
        match self.small.poll_next_unpin(cx) {
            Poll::Ready(finished) => finished,
            Poll::Pending => None,
        }
    }

    pub(super) fn poll_running(&mut self, cx: &mut Context<'_>) -> Option<FinishedRequest> {
        match self.running.poll_next_unpin(cx) {
            Poll::Ready(finished) => finished,
            Poll::Pending => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    pub(super) fn on_time(&mut self, now: Instant) {
        self.paused_until = self.paused_until.filter(|until| now < *until);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.small.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.running.clear();
        self.small.clear();
    }
}

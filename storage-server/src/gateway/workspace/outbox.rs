//! What waits for one socket: bounded, so that a peer that reads slowly delays nobody and takes no more memory than this.
//!
//! Frames are shared between sockets. When there is no room, nothing is dropped in silence: the outbox is *behind* from then on,
//! takes nothing more, and says so when what it holds was taken. Its socket then finds out by itself what is missing, or tells
//! its client to look again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use storage_protocol::Revision;
use storage_protocol::rooms::RoomId;
use tokio::sync::Notify;

use super::directory::Looked;
use crate::gateway::Utf8Bytes;

/// The most frames that wait for a socket.
const FRAMES_MAX: usize = 256;
/// The most bytes that they have, each counted for itself although it is shared.
const BYTES_MAX: usize = 1 << 20;

/// A frame that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) what: What,
    pub(super) text: Utf8Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// An event of the tree, a task, an identity or an activity.
    Event,
    /// Who is in a room: a newer one takes the place of one that still waits.
    Members(RoomId),
    /// A message of a room, of this revision.
    Message(RoomId, Revision),
    /// That the message of this revision was deleted, with what it was.
    Deleted(RoomId, Revision),
}

/// What is taken from an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Frame(Frame),
    /// Frames are missing from here on; from now on it takes new ones again.
    Behind,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// There was no room for a frame: none is taken until all that wait are sent.
    behind: bool,
    /// Something is missing that was never pushed; frames are taken all the same.
    lacks: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// For its socket, which alone waits.
    arrived: Notify,
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a frame; false: it is behind, and did not take it.
    pub(super) fn push(&self, frame: Frame) -> bool {
        let mut state = self.state();
        let taken = state.push(frame);
        drop(state);
        self.arrived.notify_one();
        taken
    }

    /// Says that something is missing that was never pushed.
    pub(super) fn lack(&self) {
        self.state().lacks = true;
        self.arrived.notify_one();
    }

    /// It is known what its peer has now; `before`: what it had, `None` if that was not known.
    pub(super) fn judged_anew(&self, before: Option<&Looked>, now: &Looked) {
        match before {
            Some(before) if before.rights == now.rights => {}
            Some(_) => self.withdraw(),
            // What was told meanwhile it has not been told.
            None => self.lack(),
        }
    }

    /// Takes back what waits, since it may not be for the peer any more; who is told less is told to look again.
    pub(super) fn withdraw(&self) {
        let mut state = self.state();
        if !state.frames.is_empty() {
            *state = State {
                lacks: true,
                ..State::default()
            };
        }
    }

    /// Forgets what waits.
    pub(super) fn clear(&self) {
        *self.state() = State::default();
    }

    /// The next frame, as soon as there is one. Cancel-safe; for one task at a time.
    pub(super) async fn take(&self) -> Taken {
        loop {
            if let Some(taken) = self.state().take() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }
}

impl State {
    fn push(&mut self, frame: Frame) -> bool {
        if let What::Members(_) = frame.what
            && let Some(waiting) = self
                .frames
                .iter_mut()
                .find(|other| other.what == frame.what)
        {
            self.bytes = self.bytes - waiting.text.len() + frame.text.len();
            *waiting = frame;
            return true;
        }
        let fits = self.frames.len() < FRAMES_MAX && self.bytes + frame.text.len() <= BYTES_MAX;
        // One frame of any length does.
        if self.behind || (!fits && !self.frames.is_empty()) {
            self.behind = true;
            return false;
        }
        self.bytes += frame.text.len();
        self.frames.push_back(frame);
        true
    }

    fn take(&mut self) -> Option<Taken> {
        match self.frames.pop_front() {
            Some(frame) => {
                self.bytes -= frame.text.len();
                Some(Taken::Frame(frame))
            }
            None if self.behind || self.lacks => {
                (self.behind, self.lacks) = (false, false);
                Some(Taken::Behind)
            }
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const ROOM: RoomId = RoomId([1; 16]);

    fn frame(n: u64, text: &str) -> Frame {
        Frame {
            what: What::Message(ROOM, Revision(n)),
            text: text.into(),
        }
    }

    fn taken(outbox: &Outbox) -> Option<Taken> {
        outbox.take().now_or_never()
    }

    #[test]
    fn what_finds_no_room_is_told_behind_what_did() {
        let outbox = Outbox::default();
        for n in 0..FRAMES_MAX as u64 {
            assert!(outbox.push(frame(n, "x")));
        }
        assert!(!outbox.push(frame(1_000, "x")));
        assert_eq!(taken(&outbox), Some(Taken::Frame(frame(0, "x"))));
        // There is room, but one is missing already.
        assert!(!outbox.push(frame(1_001, "x")));
        for n in 1..FRAMES_MAX as u64 {
            assert_eq!(taken(&outbox), Some(Taken::Frame(frame(n, "x"))));
        }
        assert_eq!(taken(&outbox), Some(Taken::Behind));
        assert_eq!(taken(&outbox), None);
        assert!(outbox.push(frame(1_002, "x")));
        assert_eq!(taken(&outbox), Some(Taken::Frame(frame(1_002, "x"))));
    }

    #[test]
    fn what_is_taken_back_is_a_hint() {
        let outbox = Outbox::default();
        outbox.withdraw();
        assert_eq!(taken(&outbox), None);
        assert!(outbox.push(frame(1, "x")));
        outbox.withdraw();
        assert_eq!(taken(&outbox), Some(Taken::Behind));
        assert_eq!(taken(&outbox), None);
    }

    #[test]
    fn what_was_never_pushed_keeps_nothing_out() {
        let outbox = Outbox::default();
        outbox.lack();
        assert!(outbox.push(frame(1, "x")));
        assert_eq!(taken(&outbox), Some(Taken::Frame(frame(1, "x"))));
        assert_eq!(taken(&outbox), Some(Taken::Behind));
        assert_eq!(taken(&outbox), None);
    }

    #[test]
    fn bytes_are_bounded_and_one_frame_always_fits() {
        let outbox = Outbox::default();
        let long = "x".repeat(BYTES_MAX + 1);
        assert!(outbox.push(frame(0, &long)));
        assert!(!outbox.push(frame(1, "x")));
    }

    #[test]
    fn only_the_newest_members_of_a_room_wait() {
        let outbox = Outbox::default();
        let members = |room, text: &str| Frame {
            what: What::Members(room),
            text: text.into(),
        };
        let other = RoomId([2; 16]);
        outbox.push(members(ROOM, "old"));
        outbox.push(frame(1, "x"));
        outbox.push(members(other, "other"));
        outbox.push(members(ROOM, "new"));
        let all: Vec<_> = std::iter::from_fn(|| taken(&outbox)).collect();
        let expected = [members(ROOM, "new"), frame(1, "x"), members(other, "other")];
        assert_eq!(all, expected.map(Taken::Frame));
    }
}

//! What waits to be sent on one connection, in its order: control, answers, changes, bulk parts.
//!
//! A message longer than a part waits as bulk and leaves in parts, turn by turn with the other bulk messages, so that
//! a big value never stands before a small answer. The outbox only orders and counts; its owner bounds it (by
//! [`Outbox::bytes`]) and keeps the order within a watch (by not giving it more while a bulk message of it waits).

use std::collections::VecDeque;

use bytes::Bytes;

use super::frame::{Packet, RequestId};
use super::reassembly::part_frame;

/// The bytes of a message that one part carries; a longer message than this travels in parts. Small, so that a small
/// answer waits for little: 64 KiB are 0.5 ms at 1 Gbit/s.
pub const PART_BYTES: usize = 64 * 1024;

/// How many messages in parts take turns; those behind them wait. Were it all of them, each would make so little
/// progress on a slow link that its receiver gave it up.
pub const BULK_TURNS: usize = 8;

/// What kind of message it is, which decides its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Hello, Welcome, credit, probes, GoAway.
    Control,
    /// Requests and answers.
    Answer,
    /// Answers to reads: their turn is that of the other answers, but who sends them can hold them back, so they are
    /// counted apart.
    Read,
    /// Events of watches.
    Change,
}

#[derive(Debug)]
struct Bulk {
    packet: Packet,
    sent: usize,
}

/// The sending end of a connection: packets in, frames out.
#[derive(Debug, Default)]
pub struct Outbox {
    control: VecDeque<Bytes>,
    /// With whether it is one to a read.
    answers: VecDeque<(Bytes, bool)>,
    changes: VecDeque<Bytes>,
    bulk: VecDeque<Bulk>,
    bytes: usize,
    /// Of these, what waits as bulk.
    bulk_bytes: usize,
    /// Of these, control messages and answers that are none to reads.
    answers_bytes: usize,
}

impl Outbox {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a packet into its queue.
    pub fn push(&mut self, class: Class, packet: Packet) {
        if packet.payload.len() > PART_BYTES {
            self.bytes += packet.payload.len();
            self.bulk_bytes += packet.payload.len();
            self.bulk.push_back(Bulk { packet, sent: 0 });
            return;
        }
        let frame = packet.into_frame();
        self.bytes += frame.len();
        if matches!(class, Class::Control | Class::Answer) {
            self.answers_bytes += frame.len();
        }
        match class {
            Class::Control => self.control.push_back(frame),
            Class::Answer => self.answers.push_back((frame, false)),
            Class::Read => self.answers.push_back((frame, true)),
            Class::Change => self.changes.push_back(frame),
        }
    }

    /// Whether a message in parts waits under this id.
    #[must_use]
    pub fn has_bulk(&self, id: RequestId) -> bool {
        self.bulk.iter().any(|bulk| bulk.packet.id == Some(id))
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that wait as whole frames, bulk parts left out: what no reader of answers lets grow.
    #[must_use]
    pub fn frames_bytes(&self) -> usize {
        self.bytes - self.bulk_bytes
    }

    /// Of these, control messages and answers that are none to reads: what its owner cannot hold back.
    #[must_use]
    pub fn answers_bytes(&self) -> usize {
        self.answers_bytes
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The next of those that are no bulk.
    fn pop_frame(&mut self) -> Option<Bytes> {
        let control = self.control.pop_front().map(|frame| (frame, false));
        let Some((frame, is_read)) = control.or_else(|| self.answers.pop_front()) else {
            return self.changes.pop_front();
        };
        if !is_read {
            self.answers_bytes -= frame.len();
        }
        Some(frame)
    }

    /// The next frame to send.
    pub fn pop(&mut self) -> Option<Bytes> {
        if let Some(frame) = self.pop_frame() {
            self.bytes -= frame.len();
            return Some(frame);
        }
        let mut bulk = self.bulk.pop_front()?;
        let length = PART_BYTES.min(bulk.packet.payload.len() - bulk.sent);
        let frame = part_frame(&bulk.packet, bulk.sent, length);
        bulk.sent += length;
        self.bytes -= length;
        self.bulk_bytes -= length;
        if bulk.sent < bulk.packet.payload.len() {
            // Behind the others that have begun: they share what is left of the link.
            let turn = self.bulk.len().min(BULK_TURNS - 1);
            self.bulk.insert(turn, bulk);
        }
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::frame::{ProtocolError, kind};
    use super::super::reassembly::{
        Incoming, PARTIAL_MESSAGE_COST, PARTIAL_MESSAGES_MAX, Reassembler,
    };
    use super::*;

    fn packet(id: u32, length: usize) -> Packet {
        Packet {
            kind: kind::VALUES,
            id: Some(id),
            payload: Bytes::from(vec![id.to_le_bytes()[0]; length]),
        }
    }

    fn receive(
        reassembler: &mut Reassembler,
        frame: Bytes,
    ) -> Result<Option<Packet>, ProtocolError> {
        reassembler.accept(frame, Instant::now())
    }

    #[test]
    fn small_answers_overtake_bulk_and_bulk_alternates() {
        let mut outbox = Outbox::new();
        outbox.push(Class::Answer, packet(1, 3 * PART_BYTES));
        outbox.push(Class::Answer, packet(2, 3 * PART_BYTES));
        let mut reassembler = Reassembler::new(256 * 1024, 1 << 20);
        assert_eq!(
            receive(&mut reassembler, outbox.pop().unwrap()).unwrap(),
            None
        );
        outbox.push(Class::Change, packet(3, 10));
        outbox.push(Class::Answer, packet(4, 10));
        outbox.push(Class::Control, packet(5, 10));
        let mut order = Vec::new();
        while let Some(frame) = outbox.pop() {
            if let Some(packet) = receive(&mut reassembler, frame).unwrap() {
                order.push(packet.id.unwrap());
            }
        }
        assert_eq!(order, [5, 4, 3, 1, 2]);
        assert!(outbox.is_empty());
        assert_eq!(reassembler.bytes(), 0);
    }

    #[test]
    fn answers_to_reads_keep_their_turn_and_are_counted_apart() {
        let mut outbox = Outbox::new();
        for (id, class) in [
            (1, Class::Change),
            (2, Class::Read),
            (3, Class::Answer),
            (4, Class::Control),
        ] {
            outbox.push(class, packet(id, 100));
        }
        outbox.push(Class::Answer, packet(5, 2 * PART_BYTES));
        let frame = packet(1, 100).to_frame().len();
        assert_eq!(outbox.answers_bytes(), 2 * frame);
        let mut reassembler = Reassembler::new(256 * 1024, 1 << 20);
        let mut next = |outbox: &mut Outbox| {
            let frame = outbox.pop().unwrap();
            let packet = receive(&mut reassembler, frame).unwrap().unwrap();
            (packet.id.unwrap(), outbox.answers_bytes())
        };
        assert_eq!(next(&mut outbox), (4, frame));
        assert_eq!(next(&mut outbox), (2, frame));
        assert_eq!(next(&mut outbox), (3, 0));
        assert_eq!(next(&mut outbox), (1, 0));
    }

    #[test]
    fn bulk_takes_turns_in_small_groups() {
        let mut outbox = Outbox::new();
        let count = 3 * u32::try_from(BULK_TURNS).unwrap();
        for id in 0..count {
            outbox.push(Class::Answer, packet(id, 3 * PART_BYTES));
        }
        let mut reassembler = Reassembler::new(256 * 1024, 1 << 20);
        let (mut whole, mut begun_max) = (Vec::new(), 0);
        while let Some(frame) = outbox.pop() {
            whole.extend(receive(&mut reassembler, frame).unwrap());
            begun_max = begun_max.max(reassembler.pending().count());
        }
        assert_eq!(begun_max, BULK_TURNS);
        let order: Vec<_> = whole.into_iter().filter_map(|packet| packet.id).collect();
        assert_eq!(order, (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let part = |offset, length| part_frame(&packet(1, 100), offset, length);
        let fresh = || Reassembler::new(1024, 100);
        assert!(
            receive(&mut fresh(), part(10, 10)).is_err(),
            "began in the middle"
        );
        assert!(
            receive(&mut Reassembler::new(1024, 99), part(0, 10)).is_err(),
            "too long"
        );
        assert!(
            receive(&mut Reassembler::new(20, 100), part(0, 50)).is_err(),
            "frame too long"
        );
        let mut reassembler = fresh();
        receive(&mut reassembler, part(0, 10)).unwrap();
        assert!(receive(&mut reassembler, part(20, 10)).is_err(), "a gap");
        let mut reassembler = fresh();
        receive(&mut reassembler, part(0, 10)).unwrap();
        assert!(
            receive(&mut reassembler, part(0, 10)).is_err(),
            "began twice"
        );
    }

    #[test]
    fn parts_without_progress_are_dropped() {
        let start = Instant::now();
        let mut reassembler = Reassembler::new(1024, 100);
        reassembler
            .accept(part_frame(&packet(1, 100), 0, 60), start)
            .unwrap();
        assert_eq!(reassembler.bytes(), 60);
        let patience = Duration::from_secs(10);
        assert!(
            reassembler
                .expire(start + Duration::from_secs(9), patience)
                .is_empty()
        );
        let dropped = reassembler.expire(start + Duration::from_secs(10), patience);
        assert_eq!(dropped, [(kind::VALUES, Some(1))]);
        assert_eq!(reassembler.bytes(), 0);
        assert_eq!(reassembler.pending().count(), 0);
        let later = start + Duration::from_secs(30);
        assert!(reassembler.expire(later, patience).is_empty(), "told twice");
        // The rest is passed over, and the id can be used again.
        let rest = part_frame(&packet(1, 100), 60, 40);
        assert_eq!(reassembler.accept(rest, later), Ok(None));
        let again = reassembler.accept(part_frame(&packet(1, 100), 0, 100), later);
        assert_eq!(again, Ok(Some(packet(1, 100))));
    }

    #[test]
    fn a_byte_now_and_then_is_no_progress() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let patience = Duration::from_secs(10);
        let mut reassembler = Reassembler::new(256 * 1024, 64 << 20);
        let (long, short) = (packet(1, 64 << 20), packet(2, 640));
        for (packet, offset, length, at) in [
            (&long, 0, 1, 0),
            (&short, 0, 1, 0),
            (&long, 1, 1, 6),
            (&short, 1, 10, 6),
        ] {
            let part = part_frame(packet, offset, length);
            reassembler.accept(part, after(at)).unwrap();
        }
        let expired = reassembler.expire(after(10), patience);
        assert_eq!(expired, [(kind::VALUES, Some(1))]);
        assert!(reassembler.expire(after(15), patience).is_empty());
        let expired = reassembler.expire(after(16), patience);
        assert_eq!(expired, [(kind::VALUES, Some(2))]);
    }

    #[test]
    fn what_parts_cost_is_counted() {
        let mut reassembler = Reassembler::new(1024, 1000);
        for id in 0..10 {
            receive(&mut reassembler, part_frame(&packet(id, 1000), 0, 1)).unwrap();
        }
        assert_eq!(reassembler.bytes(), 10);
        assert_eq!(reassembler.cost(), 10 + 10 * PARTIAL_MESSAGE_COST);
        // One that is refused is remembered until its parts have passed.
        reassembler.discard(kind::VALUES, Some(3));
        assert_eq!(reassembler.cost(), 9 + 10 * PARTIAL_MESSAGE_COST);
        receive(&mut reassembler, part_frame(&packet(3, 1000), 1, 999)).unwrap();
        assert_eq!(reassembler.cost(), 9 + 9 * PARTIAL_MESSAGE_COST);
    }

    #[test]
    fn a_first_part_is_told_and_hello_has_no_parts() {
        let mut reassembler = Reassembler::new(1024, 100);
        let (kind, id) = (kind::VALUES, Some(1));
        let now = Instant::now();
        let mut part =
            |offset, length| reassembler.receive(part_frame(&packet(1, 100), offset, length), now);
        assert_eq!(part(0, 10), Ok(Incoming::Began { kind, id }));
        assert_eq!(part(10, 10), Ok(Incoming::Part { kind, id }));
        assert_eq!(part(20, 80), Ok(Incoming::Completed(packet(1, 100))));
        let hello = Packet {
            kind: super::super::frame::kind::HELLO,
            id: None,
            ..packet(1, 100)
        };
        let refused = receive(&mut reassembler, part_frame(&hello, 0, 100));
        assert!(matches!(refused, Err(ProtocolError::BadPart(_))));
    }

    #[test]
    fn a_message_may_begin_in_place_of_a_refused_one() {
        let mut reassembler = Reassembler::new(1024, 100);
        receive(&mut reassembler, part_frame(&packet(1, 100), 0, 60)).unwrap();
        assert_eq!(reassembler.head(kind::VALUES, Some(1)), Some(&[1; 10][..]));
        reassembler.discard(kind::VALUES, Some(1));
        reassembler.discard(kind::VALUES, Some(1));
        assert_eq!(reassembler.bytes(), 0);
        assert_eq!(reassembler.head(kind::VALUES, Some(1)), Some(&[1; 10][..]));
        assert_eq!(reassembler.head(kind::VALUES, Some(2)), None);
        receive(&mut reassembler, part_frame(&packet(1, 80), 0, 60)).unwrap();
        assert_eq!(reassembler.bytes(), 60);
        let whole = receive(&mut reassembler, part_frame(&packet(1, 80), 60, 20));
        assert_eq!(whole, Ok(Some(packet(1, 80))));
    }

    #[test]
    fn a_sender_may_give_up_any_number_of_refused_messages() {
        let mut reassembler = Reassembler::new(1024, 100);
        let max = u32::try_from(PARTIAL_MESSAGES_MAX).unwrap();
        for id in 0..max + 10 {
            receive(&mut reassembler, part_frame(&packet(id, 100), 0, 60)).unwrap();
            reassembler.discard(kind::VALUES, Some(id));
        }
        // So many are remembered, so that what still comes of them is passed over.
        assert_eq!(
            reassembler.cost(),
            PARTIAL_MESSAGES_MAX * PARTIAL_MESSAGE_COST
        );
        for id in [10, max + 9] {
            let rest = receive(&mut reassembler, part_frame(&packet(id, 100), 60, 40));
            assert_eq!(rest, Ok(None));
        }
        let forgotten = receive(&mut reassembler, part_frame(&packet(9, 100), 60, 40));
        assert!(forgotten.is_err());
        // As many as ever may be on their way beside them, and no more.
        for id in 0..max {
            let first = part_frame(&packet(1_000_000 + id, 100), 0, 1);
            receive(&mut reassembler, first).unwrap();
        }
        let another = receive(&mut reassembler, part_frame(&packet(9, 100), 0, 1));
        let max = PARTIAL_MESSAGES_MAX;
        assert_eq!(another, Err(ProtocolError::TooManyPartial { max }));
    }

    #[test]
    fn messages_on_their_way_are_bounded() {
        let mut reassembler = Reassembler::new(1024, 100);
        let max = PARTIAL_MESSAGES_MAX;
        let next = u32::try_from(max).unwrap();
        for id in 0..next {
            receive(&mut reassembler, part_frame(&packet(id, 100), 0, 1)).unwrap();
        }
        let another = receive(&mut reassembler, part_frame(&packet(next, 100), 0, 1));
        assert_eq!(another, Err(ProtocolError::TooManyPartial { max }));
    }
}

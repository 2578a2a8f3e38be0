//! Puts parts together again, within bounds.
//!
//! A part's payload: the message's type (1 byte), its total length, the part's offset (numbers), then the bytes.
//! Parts of one message come in order; parts of several messages may alternate, told apart by type and id. What is
//! held grows with what was received, never with what was announced. A message makes progress where a good part of it
//! comes, not by a byte now and then.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{Packet, ProtocolError, RequestId, kind};
use super::wire::{Reader, Writer};

/// The most messages that may be on their way in parts on one connection. Each costs the receiver more than the bytes
/// it holds, and a part may be as small as one byte. Of those that were refused, whose sender may send on or stop, the
/// last so many are remembered beside them.
pub const PARTIAL_MESSAGES_MAX: usize = 16 * 1024;

/// What a message in parts costs its receiver besides its bytes: its entry in a table, the allocations. Measured at 215
/// bytes with one byte each.
pub const PARTIAL_MESSAGE_COST: usize = 256;

/// So much is progress of any message in parts; of one that is shorter than 64 KiB, a 64th of it.
const PROGRESS_BYTES: usize = 1024;

/// Type and id.
type Key = (u8, Option<RequestId>);

#[derive(Debug)]
struct Partial {
    total: usize,
    received: usize,
    bytes: BytesMut,
    /// Refused, and which one of them: its parts are counted, so that the stream stays in step, and not kept.
    discarded: Option<u64>,
    /// When it made progress last, and how far it had come.
    progress: (Instant, usize),
}

/// What a frame brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A whole message in one frame.
    Whole(Packet),
    /// The part that completes a message.
    Completed(Packet),
    /// The first part of a message that is not whole yet, which the receiver can check by its head already.
    Began {
        /// The message's type.
        kind: u8,
        /// Its id, if it has one.
        id: Option<RequestId>,
    },
    /// A further part; or one of a message that was refused.
    Part {
        /// The message's type.
        kind: u8,
        /// Its id, if it has one.
        id: Option<RequestId>,
    },
}

/// The receiving end of a connection: frames in, whole packets out.
#[derive(Debug)]
pub struct Reassembler {
    message_bytes_max: usize,
    frame_bytes_max: usize,
    partial: HashMap<Key, Partial>,
    bytes: usize,
    /// The refused ones among them, oldest first. Nobody tells whether more comes of one.
    discarded: BTreeMap<u64, Key>,
    /// How many were refused.
    refused: u64,
}

impl Reassembler {
    /// What is kept of a refused message: the longest number.
    pub const HEAD_BYTES: usize = 10;

    /// One that takes frames and messages up to these lengths.
    #[must_use]
    pub fn new(frame_bytes_max: usize, message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            frame_bytes_max,
            partial: HashMap::new(),
            bytes: 0,
            discarded: BTreeMap::new(),
            refused: 0,
        }
    }

    /// Bytes held of messages that are not whole yet.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What they cost: their bytes, and [`PARTIAL_MESSAGE_COST`] each, refused ones included.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.bytes + self.partial.len() * PARTIAL_MESSAGE_COST
    }

    /// Takes a frame; gives the packet that it completes, if it does.
    ///
    /// # Errors
    /// The frame is too long or unreadable, or its part does not fit: the connection cannot go on.
    pub fn accept(&mut self, frame: Bytes, now: Instant) -> Result<Option<Packet>, ProtocolError> {
        Ok(match self.receive(frame, now)? {
            Incoming::Whole(packet) | Incoming::Completed(packet) => Some(packet),
            Incoming::Began { .. } | Incoming::Part { .. } => None,
        })
    }

    /// Takes a frame, and tells what it brought.
    ///
    /// # Errors
    /// The frame is too long or unreadable, or its part does not fit: the connection cannot go on.
    pub fn receive(&mut self, frame: Bytes, now: Instant) -> Result<Incoming, ProtocolError> {
        if frame.len() > self.frame_bytes_max {
            let max = self.frame_bytes_max;
            return Err(ProtocolError::FrameTooLong {
                bytes: frame.len(),
                max,
            });
        }
        let packet = Packet::from_frame(frame)?;
        if packet.kind != kind::PART {
            return Ok(Incoming::Whole(packet));
        }
        let mut reader = Reader::new(packet.payload);
        let inner = reader.byte("the part's type")?;
        let total = reader.number("the part's total length")?;
        let offset = reader.number("the part's offset")?;
        let chunk = reader.rest();
        if inner == kind::PART {
            return Err(ProtocolError::BadPart("a part of a part"));
        }
        if matches!(inner, kind::HELLO | kind::WELCOME | kind::GO_AWAY) {
            return Err(ProtocolError::BadPart(
                "HELLO, WELCOME and GOAWAY do not come in parts",
            ));
        }
        if chunk.is_empty() {
            return Err(ProtocolError::BadPart("an empty part"));
        }
        let total = match usize::try_from(total) {
            Ok(total) if total <= self.message_bytes_max => total,
            _ => {
                let max = self.message_bytes_max;
                return Err(ProtocolError::MessageTooLong { bytes: total, max });
            }
        };
        let key = (inner, packet.id);
        if offset == 0 {
            let bytes = BytesMut::new();
            let fresh = Partial {
                total,
                received: 0,
                bytes,
                discarded: None,
                progress: (now, 0),
            };
            if let Some(before) = self.partial.insert(key, fresh) {
                // The sender gave the refused one up, as it may.
                let Some(place) = before.discarded else {
                    return Err(ProtocolError::BadPart(
                        "a second message of this id began before the first was whole",
                    ));
                };
                self.discarded.remove(&place);
            }
            if self.partial.len() - self.discarded.len() > PARTIAL_MESSAGES_MAX {
                let max = PARTIAL_MESSAGES_MAX;
                return Err(ProtocolError::TooManyPartial { max });
            }
        }
        let Some(partial) = self.partial.get_mut(&key) else {
            return Err(ProtocolError::BadPart(
                "a part of a message that did not begin",
            ));
        };
        if partial.total != total {
            return Err(ProtocolError::BadPart("the announced total changed"));
        }
        if partial.received as u64 != offset {
            return Err(ProtocolError::BadPart(
                "an offset that is not the end of what came before",
            ));
        }
        if partial.received + chunk.len() > total {
            return Err(ProtocolError::BadPart("more bytes than announced"));
        }
        partial.advance(chunk.len(), now);
        if partial.discarded.is_none() {
            partial.bytes.extend_from_slice(&chunk);
            self.bytes += chunk.len();
        }
        let (kind, id) = key;
        if partial.received < total {
            return Ok(match offset {
                0 => Incoming::Began { kind, id },
                _ => Incoming::Part { kind, id },
            });
        }
        match self.partial.remove(&key) {
            Some(whole) if whole.discarded.is_none() => {
                self.bytes -= whole.bytes.len();
                Ok(Incoming::Completed(Packet {
                    kind: inner,
                    id: packet.id,
                    payload: whole.bytes.freeze(),
                }))
            }
            refused => {
                let place = refused.and_then(|refused| refused.discarded);
                place.map(|place| self.discarded.remove(&place));
                Ok(Incoming::Part { kind, id })
            }
        }
    }

    /// Refuses the message of this type and id, if parts of it are held: what is held is freed, the parts still to
    /// come are passed over. A new message may begin in its place. Tells whether it was: not, if it had been before.
    pub fn discard(&mut self, kind: u8, id: Option<RequestId>) -> bool {
        let key = (kind, id);
        let Some(partial) = self.partial.get_mut(&key) else {
            return false;
        };
        if partial.discarded.is_some() {
            return false;
        }
        let place = self.refused;
        self.refused += 1;
        self.bytes -= partial.discard(place);
        self.discarded.insert(place, key);
        if self.discarded.len() > PARTIAL_MESSAGES_MAX
            && let Some((_, oldest)) = self.discarded.pop_first()
        {
            self.partial.remove(&oldest);
        }
        true
    }

    /// The first bytes, at most [`Reassembler::HEAD_BYTES`], of a message whose parts are on their way, refused or not.
    /// A commit begins with its number there, which counts even if the rest is never read.
    #[must_use]
    pub fn head(&self, kind: u8, id: Option<RequestId>) -> Option<&[u8]> {
        let held = &self.partial.get(&(kind, id))?.bytes;
        Some(held.get(..Self::HEAD_BYTES).unwrap_or(held))
    }

    /// The messages that are not whole yet and not refused, by type and id.
    pub fn pending(&self) -> impl Iterator<Item = (u8, Option<RequestId>)> + '_ {
        self.partial
            .iter()
            .filter(|(_, partial)| partial.discarded.is_none())
            .map(|(key, _)| *key)
    }

    /// Refuses messages that made no progress for `patience`, as [`Reassembler::discard`] does, and tells their type and
    /// id: their requests are to be answered with an error. Progress is 1 KiB of it, or a 64th of a message that is
    /// shorter than 64 KiB.
    pub fn expire(&mut self, now: Instant, patience: Duration) -> Vec<(u8, Option<RequestId>)> {
        let late = |partial: &Partial| {
            let waited = now.saturating_duration_since(partial.progress.0);
            partial.discarded.is_none() && waited >= patience
        };
        let expired: Vec<_> = self
            .partial
            .iter()
            .filter(|(_, partial)| late(partial))
            .map(|(key, _)| *key)
            .collect();
        for (kind, id) in &expired {
            self.discard(*kind, *id);
        }
        expired
    }
}

impl Partial {
    fn advance(&mut self, bytes: usize, now: Instant) {
        self.received += bytes;
        let least = (self.total / 64).clamp(1, PROGRESS_BYTES);
        let (_, before) = self.progress;
        if self.received - before >= least {
            self.progress = (now, self.received);
        }
    }

    /// Frees what is held but its head, tells how much was held. (It is called once: what is refused is not counted.)
    fn discard(&mut self, place: u64) -> usize {
        let held = self.bytes.len();
        let head = self.bytes.get(..Reassembler::HEAD_BYTES);
        self.bytes = BytesMut::from(head.unwrap_or(&self.bytes));
        self.discarded = Some(place);
        held
    }
}

/// The frame of one part.
pub(super) fn part_frame(packet: &Packet, offset: usize, length: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(length + 32);
    out.put_u8(packet.kind);
    out.number(packet.payload.len() as u64);
    out.number(offset as u64);
    out.extend_from_slice(
        packet
            .payload
            .get(offset..offset + length)
            .unwrap_or_default(),
    );
    super::frame::put_trailer(&mut out, kind::PART, packet.id);
    out.freeze()
}

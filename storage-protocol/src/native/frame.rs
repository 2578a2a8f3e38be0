//! One frame: `payload '#' type id`, and what makes it unreadable.
//!
//! Any byte may occur in the payload: a reader cuts at the *last* separator, since neither an id nor a type has one.

use bytes::{BufMut, Bytes, BytesMut};

use crate::number;

/// The byte between a frame's payload and its trailer.
pub const SEPARATOR: u8 = b'#';

/// The id that a client gives a request and its answers carry: 0 to 2^31-1 (making a frame of a larger one panics),
/// unique among those in flight.
pub type RequestId = u32;

/// The type bytes of this dialect. Even: client to server, odd: server to client; `PART` both. 35 is the separator.
pub mod kind {
    /// First message of a client.
    pub const HELLO: u8 = 16;
    /// Answer to HELLO.
    pub const WELCOME: u8 = 17;
    /// Read keys.
    pub const GET: u8 = 18;
    /// Answer to GET.
    pub const VALUES: u8 = 19;
    /// Open a scan.
    pub const SCAN: u8 = 20;
    /// Answer to SCAN and SCAN_NEXT.
    pub const PAGE: u8 = 21;
    /// Ask for the next page.
    pub const SCAN_NEXT: u8 = 22;
    /// Answer to SCAN_CLOSE, UNWATCH: done.
    pub const DONE: u8 = 23;
    /// Give a scan up.
    pub const SCAN_CLOSE: u8 = 24;
    /// Answer to COMMIT.
    pub const COMMITTED: u8 = 25;
    /// Commit a batch.
    pub const COMMIT: u8 = 26;
    /// Answer to WATCH.
    pub const WATCHING: u8 = 27;
    /// Open a watch.
    pub const WATCH: u8 = 28;
    /// Commits, on a watch `Every`.
    pub const CHANGES: u8 = 29;
    /// Grant a watch more bytes.
    pub const CREDIT: u8 = 30;
    /// States, on a watch `Latest`.
    pub const STATES: u8 = 31;
    /// End a watch.
    pub const UNWATCH: u8 = 32;
    /// A mark, on a watch.
    pub const PROGRESS: u8 = 33;
    /// Give a request up.
    pub const CANCEL: u8 = 34;
    /// Ask for a mark, or for an answer.
    pub const PROBE: u8 = 36;
    /// States before the first mark replace everything, on a watch `Latest`.
    pub const RESET: u8 = 37;
    /// Answer to PROBE of no watch.
    pub const PROBED: u8 = 39;
    /// A request failed, or a watch ended.
    pub const ERROR: u8 = 41;
    /// The server is about to close.
    pub const GO_AWAY: u8 = 43;
    /// A part of a message that is longer than a frame.
    pub const PART: u8 = 48;
}

/// What is wrong with received bytes. Any of these closes the socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// No `#` in the frame.
    #[error("a frame without separator")]
    NoSeparator,
    /// Nothing behind the separator.
    #[error("a frame without a type")]
    NoType,
    /// The id is not canonical Base64 of 0 to 2^31-1.
    #[error("a frame's id is unreadable: {0}")]
    BadId(number::IdError),
    /// A type that this side does not take.
    #[error("unknown frame type {0}")]
    UnknownType(u8),
    /// A message that needs an id has none, or the other way round.
    #[error("frame type {kind}: an id is {}", if *.expected { "missing" } else { "not expected" })]
    IdMismatch {
        /// The type.
        kind: u8,
        /// Whether one belongs there.
        expected: bool,
    },
    /// The payload ends inside a field.
    #[error("the payload ends inside {what}")]
    Truncated {
        /// Which field.
        what: &'static str,
    },
    /// A declared length or count goes beyond the payload.
    #[error("{what} declares {declared}, {left} bytes are left")]
    LengthBeyondFrame {
        /// Which field.
        what: &'static str,
        /// What it says.
        declared: u64,
        /// What there is.
        left: usize,
    },
    /// A number that is too large or longer than it need be.
    #[error("{what} is no canonical number in range")]
    BadNumber {
        /// Which field.
        what: &'static str,
    },
    /// A tag outside its table.
    #[error("{what} has the unknown tag {tag}")]
    BadTag {
        /// Which field.
        what: &'static str,
        /// What it says.
        tag: u64,
    },
    /// A text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// Which field.
        what: &'static str,
    },
    /// Bytes behind the last field.
    #[error("{bytes} bytes behind the last field")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// A frame over its maximum.
    #[error("frame_bytes_max is {max}, this frame has {bytes}")]
    FrameTooLong {
        /// Its length.
        bytes: usize,
        /// The maximum.
        max: usize,
    },
    /// Parts that announce more than a message may have.
    #[error("message_bytes_max is {max}, parts announce {bytes}")]
    MessageTooLong {
        /// The announced length.
        bytes: u64,
        /// The maximum.
        max: usize,
    },
    /// Lists with more items than a message may have.
    #[error("a message has at most {max} items in all its lists")]
    TooManyItems {
        /// The maximum.
        max: usize,
    },
    /// More messages begun than may be on their way in parts.
    #[error("{max} messages are on their way in parts, another began")]
    TooManyPartial {
        /// The maximum.
        max: usize,
    },
    /// A Hello of a version that this side does not speak.
    #[error("this side speaks version {spoken} of storage-sync, the peer asks for version {asked}")]
    UnknownVersion {
        /// What Hello says.
        asked: u64,
        /// The version spoken here.
        spoken: u64,
    },
    /// Parts that do not fit together.
    #[error("parts out of order: {0}")]
    BadPart(&'static str),
}

/// A whole message: what frames carry, alone or in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The type byte, one of [`kind`].
    pub kind: u8,
    /// The request or watch it belongs to, if one.
    pub id: Option<RequestId>,
    /// What it says.
    pub payload: Bytes,
}

impl Packet {
    /// The longest trailer: separator, type and six digits of id.
    pub const TRAILER_BYTES_MAX: usize = 8;

    /// A shorter payload is copied sooner than it is taken over, which takes two small allocations.
    const UNCOPIED_BYTES_MIN: usize = 2 * 1024;

    /// The frame: payload, separator, type, id.
    #[must_use]
    pub fn to_frame(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.payload.len() + Self::TRAILER_BYTES_MAX);
        out.extend_from_slice(&self.payload);
        put_trailer(&mut out, self.kind, self.id);
        out.freeze()
    }

    /// The same. A long payload that nobody else has, and that has room behind it but not much more, is not copied.
    #[must_use]
    pub fn into_frame(self) -> Bytes {
        if self.payload.len() < Self::UNCOPIED_BYTES_MIN {
            return self.to_frame();
        }
        let Self { kind, id, payload } = self;
        match payload.try_into_mut() {
            Ok(mut out) => {
                let room = out.capacity() - out.len();
                if (Self::TRAILER_BYTES_MAX..=out.len() / 4).contains(&room) {
                    put_trailer(&mut out, kind, id);
                    return out.freeze();
                }
                let payload = out.freeze();
                Self { kind, id, payload }.to_frame()
            }
            Err(payload) => Self { kind, id, payload }.to_frame(),
        }
    }

    /// Reads a frame; the payload is a slice of it.
    ///
    /// # Errors
    /// No separator, no type, an unreadable id. (Whether the type is known is the message's matter.)
    pub fn from_frame(frame: Bytes) -> Result<Self, ProtocolError> {
        let cut = frame
            .iter()
            .rposition(|b| *b == SEPARATOR)
            .ok_or(ProtocolError::NoSeparator)?;
        let mut payload = frame;
        let trailer = payload.split_off(cut);
        let (kind, id) = match trailer.get(1..) {
            Some([kind, id @ ..]) => (*kind, id),
            _ => return Err(ProtocolError::NoType),
        };
        let id = match id {
            [] => None,
            text => Some(number::decode_id(text).map_err(ProtocolError::BadId)?),
        };
        Ok(Self { kind, id, payload })
    }
}

pub(super) fn put_trailer(out: &mut BytesMut, kind: u8, id: Option<RequestId>) {
    out.put_u8(SEPARATOR);
    out.put_u8(kind);
    if let Some(id) = id {
        number::encode_id(id, out).expect("request ids are made, and were read, at most ID_MAX");
    }
}

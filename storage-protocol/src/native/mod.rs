//! The native dialect, `storage-sync.v1`: sans-IO codec for both sides.
//!
//! The way of a message: [`ClientMessage`] or [`ServerMessage`] → [`Packet`] (payload, type, id) → [`Outbox`], which
//! orders by class and cuts what is long into parts → one WebSocket message per frame; and back: frame →
//! [`Reassembler`] → `Packet` → message. `docs/protocol.md` is the normative text, its golden bytes are checked
//! against this module.

mod frame;
mod message;
mod outbox;
mod reassembly;
mod wire;

pub use frame::{Packet, ProtocolError, RequestId, SEPARATOR, kind};
pub use message::{
    ClientMessage, ErrorCode, Hello, ServerMessage, ValuesLength, WatchRequest, Welcome,
    encode_commit_record,
};
pub use outbox::{BULK_TURNS, Class, Outbox, PART_BYTES};
pub use reassembly::{Incoming, PARTIAL_MESSAGE_COST, PARTIAL_MESSAGES_MAX, Reassembler};
pub use wire::ITEMS_MAX;
pub(crate) use wire::{Reader, Writer};

/// The WebSocket subprotocol of this dialect.
pub const SUBPROTOCOL: &str = "storage-sync.v1";

/// The version that Hello asks for and Welcome confirms.
pub const VERSION: u64 = 1;

/// How many commit numbers of a session are remembered: number *n* is sent only once *n* - 1,024 was answered, and a
/// repeated one within this window gets its first answer.
pub const COMMIT_WINDOW: u64 = 1024;

/// WebSocket close codes that this protocol uses.
pub mod close_code {
    /// The session is over as planned.
    pub const NORMAL: u16 = 1000;
    /// The server (or client) shuts down: connect again, elsewhere or later.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke the protocol; the reason says how.
    pub const PROTOCOL: u16 = 1002;
    /// The peer sent a text frame.
    pub const UNSUPPORTED_DATA: u16 = 1003;
    /// A text message or a close reason is not UTF-8.
    pub const INVALID_PAYLOAD: u16 = 1007;
    /// Refused by identity or rules.
    pub const POLICY: u16 = 1008;
    /// A message or frame was over its maximum.
    pub const TOO_BIG: u16 = 1009;
    /// The server failed inside.
    pub const INTERNAL: u16 = 1011;
    /// A bound on sessions is reached: connect again later.
    pub const TRY_AGAIN: u16 = 1013;
    /// No Hello in time.
    pub const HELLO_TIMEOUT: u16 = 4000;
    /// The peer was silent longer than the announced time.
    pub const SILENT: u16 = 4001;
    /// The peer did not take its answers for too long.
    pub const SLOW: u16 = 4002;
    /// A newer incarnation of the session took over: do not connect again with this one.
    pub const FENCED: u16 = 4003;
}

//! Counts the bytes that the WebSocket library holds of a message that is not whole, and notes whether they grow.

use std::time::Instant;

use storage_protocol::{Limits, StorageError};

use super::driver::READ_BUFFER_BYTES;
use crate::limits::budget::Permit;

/// An unfinished message makes progress when it grows by this many bytes.
pub(super) const PROGRESS_BYTES: usize = 1024;

/// A message of the peer that is not whole yet.
pub(super) struct Unfinished {
    /// Bytes read in all when the last message was whole.
    whole_at: u64,
    /// Bytes of control frames read since then.
    pub(super) control_bytes: u64,
    /// What is held beyond the read buffer that each connection has, in the budget of the principal.
    pub(super) permit: Permit,
    /// Since when there is an unfinished message, when it last made progress, and how long it was then.
    pub(super) receiving: Option<(Instant, Instant, usize)>,
}

impl Unfinished {
    /// Nothing is held yet; what will be is counted in this permit.
    pub(super) fn new(permit: Permit) -> Self {
        Self {
            whole_at: 0,
            control_bytes: 0,
            permit,
            receiving: None,
        }
    }

    /// A message is whole, and nothing is held of it.
    pub(super) fn end(&mut self, read: u64) {
        self.whole_at = read;
        self.control_bytes = 0;
        self.permit.resize(0);
    }

    /// Counts what is held, after `read` bytes were read in all; an error if a bound has no room for it. There is
    /// always room for a message of up to one frame of the native protocol.
    pub(super) fn count(&mut self, read: u64, now: Instant) -> Result<(), StorageError> {
        let data = (read - self.whole_at).saturating_sub(self.control_bytes);
        let held = usize::try_from(data).unwrap_or(usize::MAX);
        let counted = if held > READ_BUFFER_BYTES { held } else { 0 };
        let fits = match counted.checked_sub(self.permit.amount()) {
            Some(more) if counted > Limits::FRAME_BYTES => match more > READ_BUFFER_BYTES {
                true => self.permit.try_grow(more),
                // It may be messages that were read and not taken yet, pings say: they would close a peer that has all
                // its room.
                false => Ok(()),
            },
            _ => {
                self.permit.resize(counted);
                Ok(())
            }
        };
        self.receiving = match self.receiving {
            _ if held == 0 => None,
            None => Some((now, now, held)),
            Some((since, _, before)) if held >= before.saturating_add(PROGRESS_BYTES) => {
                Some((since, now, held))
            }
            going_on => going_on,
        };
        fits
    }
}

//! Collects the events of one watch into messages.

use std::sync::Arc;

use storage_protocol::native::{Class, Outbox, PART_BYTES, RequestId, ServerMessage};
use storage_protocol::{CommitRecord, Key, KeyState, WatchEvent};

/// Events that go into one message.
pub(super) enum Events {
    None,
    Commits(Vec<Arc<CommitRecord>>, usize),
    States(Vec<(Key, KeyState)>, usize),
}

impl Events {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Commits(_, bytes) | Self::States(_, bytes) => *bytes,
        }
    }
}

/// Collects the events of one watch into messages of about a part.
pub(super) struct Sender<'a> {
    pub(super) id: RequestId,
    pub(super) outbox: &'a mut Outbox,
    pub(super) events: Events,
    pub(super) sent: i64,
}

impl Sender<'_> {
    pub(super) fn take(&mut self, event: WatchEvent) {
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
            // This version of the server has no event that this version of the dialect cannot carry.
            other => {
                tracing::error!(event = ?other, "an event that the native dialect cannot carry")
            }
        }
        // After a message that is sent in parts nothing may be queued for this watch until it has left.
        if self.events.bytes() > PART_BYTES {
            self.flush();
        }
    }

    /// Sends what is collected if an event of this size and kind does not fit to it.
    fn make_room(&mut self, bytes: usize, same_kind: impl Fn(&Events) -> bool) {
        if !same_kind(&self.events) || self.events.bytes() + bytes > PART_BYTES {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        match std::mem::replace(&mut self.events, Events::None) {
            Events::None => {}
            Events::Commits(commits, _) => {
                self.sent += self.send(&ServerMessage::Changes { commits })
            }
            Events::States(states, _) => self.sent += self.send(&ServerMessage::States { states }),
        }
    }

    /// Queues a message; returns the length of its payload.
    fn send(&mut self, message: &ServerMessage) -> i64 {
        let packet = message.encode(Some(self.id));
        let bytes = to_credit(packet.payload.len() as u64);
        self.outbox.push(Class::Change, packet);
        bytes
    }
}

pub(super) fn to_credit(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What an event takes in memory, if it needs credit.
pub(super) fn charged_bytes(event: &WatchEvent) -> Option<usize> {
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

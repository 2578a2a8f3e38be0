//! Every limit by its name, with its default.
//!
//! The protocol's own constants (what no configuration may exceed) and the announced [`Limits`] of one server.

use std::fmt;

/// The name of a limit, as errors, the configuration and `docs/protocol.md` spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum Limit {
    /// A limit that this version does not know by name.
    Other = 0,
    /// Bytes of a key.
    Key = 1,
    /// Bytes of a value.
    Value = 2,
    /// Bytes of a whole message.
    Message = 3,
    /// Bytes of one native frame.
    Frame = 4,
    /// Keys of one get.
    KeysPerGet = 5,
    /// Operations, and checks, of one commit.
    OperationsPerCommit = 6,
    /// Requests in flight of one session.
    RequestsInFlight = 7,
    /// Bytes of requests in flight of one session.
    BytesInFlight = 8,
    /// Bytes of requests in flight of all sessions.
    BytesInFlightTotal = 9,
    /// Watches of one session.
    Watches = 10,
    /// Open scans of one session.
    Scans = 11,
    /// Sessions of the server.
    Sessions = 12,
    /// Sessions of one principal.
    SessionsPerPrincipal = 13,
    /// Bytes of a commit's label.
    Label = 14,
    /// Bytes of a keyspace's name.
    KeyspaceName = 15,
    /// Bytes of partly received messages, of all sessions.
    PartialMessages = 16,
    /// Commits that wait for the committer.
    CommitQueue = 17,
    /// Keys of one mwDB message.
    MwdbKeys = 18,
    /// Bytes that wait to be sent to one session.
    Outbox = 19,
    /// Numbers that prefix reservation can hand out.
    Prefixes = 20,
    /// Bytes of the memory budget.
    Memory = 21,
    /// Memory of the watches of one session.
    WatchBytes = 22,
    /// Memory of the watches of all sessions.
    WatchBytesTotal = 23,
    /// Quota: bytes of the keys and values that a keyspace holds.
    KeyspaceBytes = 24,
    /// Quota: entries that a keyspace holds.
    KeyspaceEntries = 25,
    /// Quota: commits per second, of a principal or into a keyspace.
    CommitRate = 26,
    /// Quota: bytes of commits per second, of a principal or into a keyspace.
    CommitByteRate = 27,
    /// Quota: sessions, of a principal or in a keyspace.
    QuotaSessions = 28,
    /// Quota: watches, of a principal or in a keyspace.
    QuotaWatches = 29,
    /// Bytes of an object.
    ObjectBytes = 30,
}

impl Limit {
    /// All of them, in the order of their wire numbers.
    pub const ALL: [Self; 31] = [
        Self::Other,
        Self::Key,
        Self::Value,
        Self::Message,
        Self::Frame,
        Self::KeysPerGet,
        Self::OperationsPerCommit,
        Self::RequestsInFlight,
        Self::BytesInFlight,
        Self::BytesInFlightTotal,
        Self::Watches,
        Self::Scans,
        Self::Sessions,
        Self::SessionsPerPrincipal,
        Self::Label,
        Self::KeyspaceName,
        Self::PartialMessages,
        Self::CommitQueue,
        Self::MwdbKeys,
        Self::Outbox,
        Self::Prefixes,
        Self::Memory,
        Self::WatchBytes,
        Self::WatchBytesTotal,
        Self::KeyspaceBytes,
        Self::KeyspaceEntries,
        Self::CommitRate,
        Self::CommitByteRate,
        Self::QuotaSessions,
        Self::QuotaWatches,
        Self::ObjectBytes,
    ];

    /// Its name in errors, configuration and documentation.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Key => "key_bytes_max",
            Self::Value => "value_bytes_max",
            Self::Message => "message_bytes_max",
            Self::Frame => "frame_bytes_max",
            Self::KeysPerGet => "keys_per_get_max",
            Self::OperationsPerCommit => "operations_per_commit_max",
            Self::RequestsInFlight => "requests_in_flight_max",
            Self::BytesInFlight => "bytes_in_flight_max",
            Self::BytesInFlightTotal => "bytes_in_flight_total_max",
            Self::Watches => "watches_max",
            Self::Scans => "scans_max",
            Self::Sessions => "sessions_max",
            Self::SessionsPerPrincipal => "sessions_per_principal_max",
            Self::Label => "label_bytes_max",
            Self::KeyspaceName => "keyspace_name_bytes_max",
            Self::PartialMessages => "partial_messages_bytes_max",
            Self::CommitQueue => "commit_queue_bytes_max",
            Self::MwdbKeys => "mwdb_keys_max",
            Self::Outbox => "outbox_bytes_max",
            Self::Prefixes => "prefixes_max",
            Self::Memory => "memory_bytes_max",
            Self::WatchBytes => "watch_bytes_max",
            Self::WatchBytesTotal => "watch_bytes_total_max",
            Self::KeyspaceBytes => "quota_keyspace_bytes_max",
            Self::KeyspaceEntries => "quota_keyspace_entries_max",
            Self::CommitRate => "quota_commits_per_second_max",
            Self::CommitByteRate => "quota_commit_bytes_per_second_max",
            Self::QuotaSessions => "quota_sessions_max",
            Self::QuotaWatches => "quota_watches_max",
            Self::ObjectBytes => "object_bytes_max",
        }
    }

    /// Its number on the wire.
    #[must_use]
    pub fn wire(self) -> u16 {
        self as u16
    }

    /// The limit of a wire number; [`Limit::Other`] for one this version does not know.
    #[must_use]
    pub fn from_wire(number: u64) -> Self {
        usize::try_from(number)
            .ok()
            .and_then(|number| Self::ALL.get(number).copied())
            .unwrap_or(Self::Other)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an engine takes, as [`Storage::limits`](crate::Storage::limits) tells and Welcome announces. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest key. Default 4 KiB, at most [`Limits::KEY_BYTES_CEILING`].
    pub key_bytes_max: usize,
    /// Longest value. Default 16 MiB.
    pub value_bytes_max: usize,
    /// Longest message, all parts together; bounds a commit and the answer to a get. Default 64 MiB.
    pub message_bytes_max: usize,
    /// Longest native frame; what is longer travels in parts. 256 KiB, fixed by the protocol.
    pub frame_bytes_max: usize,
    /// Keys of one get. Default 10,000.
    pub keys_per_get_max: usize,
    /// Operations of one commit, and checks of one commit. Default 10,000.
    pub operations_per_commit_max: usize,
    /// Requests a session may have in flight. Default 1,024.
    pub requests_in_flight_max: usize,
    /// Bytes of requests a session may have in flight. Default 64 MiB, at least one message.
    pub bytes_in_flight_max: usize,
    /// Watches of one session. Default 10,000.
    pub watches_max: usize,
    /// Open scans of one session. Default 16.
    pub scans_max: usize,
}

impl Limits {
    /// The longest native frame, trailer included. Fixed: a receiver rejects a longer one before it reads it.
    pub const FRAME_BYTES: usize = 256 * 1024;
    /// No configuration takes longer messages.
    pub const MESSAGE_BYTES_CEILING: usize = 1 << 30;
    /// No configuration takes longer keys.
    pub const KEY_BYTES_CEILING: usize = 64 * 1024;
    /// The longest label of a commit.
    pub const LABEL_BYTES: usize = 256;
    /// Keys of one message of the mwDB dialect.
    pub const MWDB_KEYS: usize = 1_000_000;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes_max: 4 * 1024,
            value_bytes_max: 16 << 20,
            message_bytes_max: 64 << 20,
            frame_bytes_max: Self::FRAME_BYTES,
            keys_per_get_max: 10_000,
            operations_per_commit_max: 10_000,
            requests_in_flight_max: 1_024,
            bytes_in_flight_max: 64 << 20,
            watches_max: 10_000,
            scans_max: 16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_numbers_are_the_places_in_all() {
        for (place, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(limit.wire()), place);
            assert_eq!(Limit::from_wire(place as u64), limit);
        }
        assert_eq!(Limit::from_wire(9_999), Limit::Other);
    }
}

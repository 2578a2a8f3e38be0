//! The messages of the native dialect and their payloads, field by field.
//!
//! One checked conversion each way: past [`ClientMessage::decode`] and [`ServerMessage::decode`] nothing of the shape
//! needs checking again. (Limits that depend on the server's configuration are the receiver's matter.) `docs/protocol.md`
//! names the fields in the same order. Here are the messages; the fields they share, and the bodies that are longer than
//! a few lines, have files of their own below.

mod error;
mod fields;
mod record;
mod request;
mod values;
mod welcome;

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

pub use self::error::ErrorCode;
use self::error::{put_error, read_error};
use self::fields::{
    finish, millis, put_entry, put_flags, put_position, put_range, put_state, read_entry,
    read_flags, read_id, read_position, read_range, read_revision, read_session, read_states,
    read_unanswered, read_version, require_id, state_bytes, to_id,
};
pub use self::record::encode_commit_record;
use self::record::read_commit_record;
use self::request::{put_commit, put_watch, read_commit, read_watch};
pub use self::values::ValuesLength;
use self::welcome::{put_welcome, read_welcome};
use super::frame::{Packet, ProtocolError, RequestId, kind};
use super::wire::{Reader, Writer};
use crate::{
    Batch, CommitOptions, CommitRecord, Entry, Key, KeyRange, KeyState, Limits, Position, Revision,
    ScanItem, ScanOptions, SessionId, StorageError, WatchMode, WatchStart,
};

type Result<T> = std::result::Result<T, ProtocolError>;

/// The first message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol version it speaks, [`VERSION`](super::VERSION).
    pub version: u64,
    /// The session to resume; `None` begins a new one.
    pub session: Option<SessionId>,
    /// Grows with each connection of a session: a higher one fences those below it. 0 for a new session, above 0 to
    /// resume one.
    pub incarnation: u64,
    /// The highest commit number that was sent in this session; 0 for none. The numbers that follow on this connection
    /// begin behind it, or behind [`Welcome::executed`] where that is higher.
    pub sent: u64,
    /// The numbers up to `sent` whose commits have no answer and come again on this connection, ascending. At most
    /// [`COMMIT_WINDOW`](super::COMMIT_WINDOW).
    pub unanswered: Vec<u64>,
    /// What the client is, for the server's log (`storage-client/0.1.0`). At most 256 bytes are kept.
    pub agent: String,
}

impl Hello {
    /// Asks for a new session.
    #[must_use]
    pub fn new(agent: impl Into<String>) -> Self {
        Self {
            version: super::VERSION,
            session: None,
            incarnation: 0,
            sent: 0,
            unanswered: Vec::new(),
            agent: agent.into(),
        }
    }
}

/// The answer to Hello: the session is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version that both speak from here.
    pub version: u64,
    /// The present position. Every position of this connection has this epoch.
    pub position: Position,
    /// The session: the one that Hello named if it was resumed, else a new one.
    pub session: SessionId,
    /// The highest commit number of this session that was executed; 0 for none. Final: what an older incarnation left
    /// unsent or queued beyond it is never executed.
    pub executed: u64,
    /// Whether the session's keys with session lifetime were removed since a Welcome of it was last heeded.
    pub lapsed: bool,
    /// Who the server takes the client for (`cert:NAME`).
    pub principal: String,
    /// The server pings when it heard nothing for this long.
    pub heartbeat: Duration,
    /// Either side closes when it heard nothing for this long.
    pub silence: Duration,
    /// How long the keys with the lifetime of this session stay after its socket is lost.
    pub grace: Duration,
    /// How long the session can be resumed after its socket is lost.
    pub kept: Duration,
    /// What the server takes.
    pub limits: Limits,
}

/// The body of a Watch message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRequest {
    /// Which keys.
    pub range: KeyRange,
    /// From where.
    pub start: WatchStart,
    /// Which changes.
    pub mode: WatchMode,
    /// The bytes of events the server may send before it is granted more.
    pub credit: u64,
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// Open the session. No id.
    Hello(Hello),
    /// Read keys; answered by `Values`.
    Get {
        /// The keys, in the order of the answer.
        keys: Vec<Key>,
    },
    /// Open a scan; answered by its first `Page`.
    Scan {
        /// Which keys.
        range: KeyRange,
        /// How.
        options: ScanOptions,
    },
    /// The next page; answered by `Page`.
    ScanNext {
        /// The scan's number, from its first page.
        scan: u64,
    },
    /// Give a scan up; answered by `Done`.
    ScanClose {
        /// The scan's number.
        scan: u64,
    },
    /// Commit; answered by `Committed`.
    Commit {
        /// The session's number of this commit: 1, 2, ...; a repeated one has its first effect only.
        number: u64,
        /// Label and the like.
        options: CommitOptions,
        /// Checks and operations.
        batch: Batch,
    },
    /// Open a watch; answered by `Watching`. Its id stays in use until it ends.
    Watch(WatchRequest),
    /// Grant the watch of this id more bytes. Not answered.
    Credit {
        /// How many more.
        bytes: u64,
    },
    /// End a watch; answered by `Done`, after which the watch's id is free.
    Unwatch {
        /// The watch's id.
        watch: RequestId,
    },
    /// The client gives the request of this id up; it is answered all the same. Not answered itself.
    Cancel,
    /// Ask for a sign. With a watch: a `Progress` with the token, behind that watch's events, is the answer. Without:
    /// `Probed`.
    Probe {
        /// Which watch.
        watch: Option<RequestId>,
        /// Comes back in the answer.
        token: u64,
    },
}

/// What a server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// The session is open. No id.
    Welcome(Welcome),
    /// Answer to `Get`.
    Values {
        /// Read at this revision.
        revision: Revision,
        /// In the order of the keys.
        entries: Vec<Option<Entry>>,
    },
    /// Answer to `Scan` and `ScanNext`.
    Page {
        /// The revision of the whole scan.
        revision: Revision,
        /// The scan's number while there is more; `None`: this is the last page and the scan is closed.
        scan: Option<u64>,
        /// The items.
        items: Vec<ScanItem>,
    },
    /// Answer to `ScanClose` and `Unwatch`.
    Done,
    /// Answer to `Commit`.
    Committed {
        /// The commit's revision.
        revision: Revision,
    },
    /// Answer to `Watch`: attached.
    Watching {
        /// Everything after this is told.
        revision: Revision,
    },
    /// Commits on a watch `Every`.
    Changes {
        /// At least one, in revision order.
        commits: Vec<Arc<CommitRecord>>,
    },
    /// States on a watch `Latest`.
    States {
        /// At least one, in revision order.
        states: Vec<(Key, KeyState)>,
    },
    /// A mark on a watch.
    Progress {
        /// Everything up to here was told.
        revision: Revision,
        /// The token of the probe it answers.
        token: Option<u64>,
    },
    /// On a watch `Latest`, before any state: what is not told before the first mark is gone.
    Reset,
    /// Answer to `Probe` of no watch.
    Probed {
        /// No older than the probe.
        revision: Revision,
        /// The probe's.
        token: u64,
    },
    /// The request of this id failed, or the watch of this id ended.
    Error(StorageError),
    /// The server is about to close. No id.
    GoAway {
        /// Connect again after this.
        retry_after: Duration,
        /// Why.
        reason: String,
    },
}

impl ClientMessage {
    /// The packet that carries this message.
    #[must_use]
    pub fn encode(&self, id: Option<RequestId>) -> Packet {
        let mut out = BytesMut::with_capacity(self.size_hint() + Packet::TRAILER_BYTES_MAX);
        let kind = match self {
            Self::Hello(hello) => {
                out.number(hello.version);
                out.length_prefixed(hello.session.as_ref().map_or(&[][..], |session| &session.0));
                out.number(hello.incarnation);
                out.number(hello.sent);
                out.number(hello.unanswered.len() as u64);
                hello
                    .unanswered
                    .iter()
                    .for_each(|number| out.number(*number));
                out.length_prefixed(hello.agent.as_bytes());
                kind::HELLO
            }
            Self::Get { keys } => {
                out.number(keys.len() as u64);
                keys.iter().for_each(|key| out.length_prefixed(key));
                kind::GET
            }
            Self::Scan { range, options } => {
                put_range(&mut out, range);
                let flags = [
                    options.reverse,
                    options.keys_only,
                    options.limit.is_some(),
                    options.newer_than.is_some(),
                ];
                put_flags(&mut out, flags);
                if let Some(limit) = options.limit {
                    out.number(limit);
                }
                if let Some(position) = options.newer_than {
                    put_position(&mut out, position);
                }
                kind::SCAN
            }
            Self::ScanNext { scan } => {
                out.number(*scan);
                kind::SCAN_NEXT
            }
            Self::ScanClose { scan } => {
                out.number(*scan);
                kind::SCAN_CLOSE
            }
            Self::Commit {
                number,
                options,
                batch,
            } => {
                put_commit(&mut out, *number, options, batch);
                kind::COMMIT
            }
            Self::Watch(request) => {
                put_watch(&mut out, request);
                kind::WATCH
            }
            Self::Credit { bytes } => {
                out.number(*bytes);
                kind::CREDIT
            }
            Self::Unwatch { watch } => {
                out.number(u64::from(*watch));
                kind::UNWATCH
            }
            Self::Cancel => kind::CANCEL,
            Self::Probe { watch, token } => {
                out.number(watch.map_or(0, |watch| u64::from(watch) + 1));
                out.number(*token);
                kind::PROBE
            }
        };
        Packet {
            kind,
            id,
            payload: out.freeze(),
        }
    }

    /// Reads a packet. Bytes in the message are slices of it.
    ///
    /// # Errors
    /// What is wrong with it; the connection cannot go on.
    pub fn decode(packet: Packet) -> Result<Self> {
        let Packet { kind, id, payload } = packet;
        Self::check_head(kind, id)?;
        let mut from = Reader::new(payload);
        let from = &mut from;
        let message = match kind {
            kind::HELLO => Self::Hello(Hello {
                version: read_version(from)?,
                session: read_session(from)?,
                incarnation: from.number("the incarnation")?,
                sent: from.number("the highest number sent")?,
                unanswered: read_unanswered(from)?,
                agent: from.text("the agent")?,
            }),
            kind::GET => {
                let count = from.count(1, "the number of keys")?;
                let mut keys = Vec::with_capacity(count);
                for _ in 0..count {
                    keys.push(from.bytes("a key")?);
                }
                Self::Get { keys }
            }
            kind::SCAN => {
                let range = read_range(from)?;
                let [reverse, keys_only, limit, newer_than] = read_flags(from, "the scan's flags")?;
                let limit = if limit {
                    Some(from.number("the limit")?)
                } else {
                    None
                };
                let newer_than = if newer_than {
                    Some(read_position(from)?)
                } else {
                    None
                };
                Self::Scan {
                    range,
                    options: ScanOptions {
                        reverse,
                        keys_only,
                        limit,
                        newer_than,
                    },
                }
            }
            kind::SCAN_NEXT => Self::ScanNext {
                scan: from.number("the scan")?,
            },
            kind::SCAN_CLOSE => Self::ScanClose {
                scan: from.number("the scan")?,
            },
            kind::COMMIT => read_commit(from)?,
            kind::WATCH => Self::Watch(read_watch(from)?),
            kind::CREDIT => Self::Credit {
                bytes: from.number("the credit")?,
            },
            kind::UNWATCH => Self::Unwatch {
                watch: read_id(from, "the watch")?,
            },
            kind::CANCEL => Self::Cancel,
            kind::PROBE => Self::Probe {
                watch: match from.number("the watch")? {
                    0 => None,
                    number => Some(to_id(number - 1, "the watch")?),
                },
                token: from.number("the token")?,
            },
            other => return Err(ProtocolError::UnknownType(other)),
        };
        finish(from, message)
    }

    /// Whether a client may send a message of this type with this id (or without one): what can be said of one in parts
    /// when it begins.
    ///
    /// # Errors
    /// A type that is not a client's, an id that is missing or not expected.
    pub fn check_head(kind: u8, id: Option<RequestId>) -> Result<()> {
        if !matches!(
            kind,
            kind::HELLO
                | kind::GET
                | kind::SCAN
                | kind::SCAN_NEXT
                | kind::SCAN_CLOSE
                | kind::COMMIT
                | kind::WATCH
                | kind::CREDIT
                | kind::UNWATCH
                | kind::CANCEL
                | kind::PROBE
        ) {
            return Err(ProtocolError::UnknownType(kind));
        }
        require_id(kind, id, kind != kind::HELLO)
    }

    /// The number of a commit whose payload begins with `head`: all that a receiver needs of one that it refuses before
    /// it is whole, since the session's numbers go on behind it.
    #[must_use]
    pub fn commit_number(head: &[u8]) -> Option<u64> {
        let mut from = Reader::new(Bytes::copy_from_slice(head));
        from.number("the commit's number").ok()
    }

    fn size_hint(&self) -> usize {
        match self {
            Self::Get { keys } => 8 + keys.iter().map(|key| key.len() + 5).sum::<usize>(),
            Self::Commit { batch, .. } => 64 + batch.bytes(),
            Self::Watch(WatchRequest { range, .. }) | Self::Scan { range, .. } => {
                64 + range.start.len() + range.end.as_ref().map_or(0, Bytes::len)
            }
            Self::Hello(hello) => 64 + hello.agent.len(),
            Self::ScanNext { .. }
            | Self::ScanClose { .. }
            | Self::Credit { .. }
            | Self::Unwatch { .. }
            | Self::Cancel
            | Self::Probe { .. } => 16,
        }
    }
}

impl ServerMessage {
    /// The packet that carries this message.
    #[must_use]
    pub fn encode(&self, id: Option<RequestId>) -> Packet {
        if let Self::Changes { commits } = self
            && let [commit] = commits.as_slice()
        {
            // Shared by all who are told this commit, however large it is.
            return Packet {
                kind: kind::CHANGES,
                id,
                payload: commit.encoded().clone(),
            };
        }
        let mut out = BytesMut::with_capacity(self.size_hint() + Packet::TRAILER_BYTES_MAX);
        let kind = match self {
            Self::Welcome(welcome) => {
                put_welcome(&mut out, welcome);
                kind::WELCOME
            }
            Self::Values { revision, entries } => {
                out.number(revision.0);
                out.number(entries.len() as u64);
                for entry in entries {
                    match entry {
                        None => out.put_u8(0),
                        Some(entry) => put_entry(&mut out, entry),
                    }
                }
                kind::VALUES
            }
            Self::Page {
                revision,
                scan,
                items,
            } => {
                out.number(revision.0);
                out.number(scan.map_or(0, |scan| scan.saturating_add(1)));
                out.number(items.len() as u64);
                items
                    .iter()
                    .for_each(|item| put_state(&mut out, &item.key, &item.state));
                kind::PAGE
            }
            Self::Done => kind::DONE,
            Self::Committed { revision } => {
                out.number(revision.0);
                kind::COMMITTED
            }
            Self::Watching { revision } => {
                out.number(revision.0);
                kind::WATCHING
            }
            Self::Changes { commits } => {
                commits
                    .iter()
                    .for_each(|commit| out.extend_from_slice(commit.encoded()));
                kind::CHANGES
            }
            Self::States { states } => {
                out.number(states.len() as u64);
                states
                    .iter()
                    .for_each(|(key, state)| put_state(&mut out, key, state));
                kind::STATES
            }
            Self::Progress { revision, token } => {
                out.number(revision.0);
                put_flags(&mut out, [token.is_some()]);
                if let Some(token) = token {
                    out.number(*token);
                }
                kind::PROGRESS
            }
            Self::Reset => kind::RESET,
            Self::Probed { revision, token } => {
                out.number(revision.0);
                out.number(*token);
                kind::PROBED
            }
            Self::Error(error) => {
                put_error(&mut out, error);
                kind::ERROR
            }
            Self::GoAway {
                retry_after,
                reason,
            } => {
                out.number(millis(*retry_after));
                out.length_prefixed(reason.as_bytes());
                kind::GO_AWAY
            }
        };
        Packet {
            kind,
            id,
            payload: out.freeze(),
        }
    }

    /// Reads a packet. Bytes in the message are slices of it.
    ///
    /// # Errors
    /// What is wrong with it; the connection cannot go on.
    pub fn decode(packet: Packet) -> Result<Self> {
        let Packet { kind, id, payload } = packet;
        let mut from = Reader::new(payload);
        let from = &mut from;
        let message = match kind {
            kind::WELCOME => Self::Welcome(read_welcome(from)?),
            kind::VALUES => {
                let revision = read_revision(from)?;
                let count = from.count(1, "the number of values")?;
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    entries.push(match from.byte("a value's tag")? {
                        0 => None,
                        tag => Some(read_entry(from, tag)?),
                    });
                }
                Self::Values { revision, entries }
            }
            kind::PAGE => {
                let revision = read_revision(from)?;
                let scan = from.number("the scan")?.checked_sub(1);
                let items = read_states(from)?;
                let items = items
                    .into_iter()
                    .map(|(key, state)| ScanItem { key, state })
                    .collect();
                Self::Page {
                    revision,
                    scan,
                    items,
                }
            }
            kind::DONE => Self::Done,
            kind::COMMITTED => Self::Committed {
                revision: read_revision(from)?,
            },
            kind::WATCHING => Self::Watching {
                revision: read_revision(from)?,
            },
            kind::CHANGES => {
                let mut commits = Vec::new();
                while commits.is_empty() || !from.is_empty() {
                    from.take_items(1)?;
                    commits.push(Arc::new(read_commit_record(from)?));
                }
                Self::Changes { commits }
            }
            kind::STATES => Self::States {
                states: read_states(from)?,
            },
            kind::PROGRESS => {
                let revision = read_revision(from)?;
                let [token] = read_flags(from, "the mark's flags")?;
                let token = if token {
                    Some(from.number("the token")?)
                } else {
                    None
                };
                Self::Progress { revision, token }
            }
            kind::RESET => Self::Reset,
            kind::PROBED => Self::Probed {
                revision: read_revision(from)?,
                token: from.number("the token")?,
            },
            kind::ERROR => Self::Error(read_error(from)?),
            kind::GO_AWAY => Self::GoAway {
                retry_after: Duration::from_millis(from.number("the delay")?),
                reason: from.text("the reason")?,
            },
            other => return Err(ProtocolError::UnknownType(other)),
        };
        require_id(kind, id, !matches!(kind, kind::WELCOME | kind::GO_AWAY))?;
        finish(from, message)
    }

    fn size_hint(&self) -> usize {
        match self {
            Self::Values { entries, .. } => {
                let bytes = |entry: &Option<Entry>| {
                    entry.as_ref().map_or(1, |entry| entry.value.len() + 24)
                };
                16 + entries.iter().map(bytes).sum::<usize>()
            }
            Self::Page { items, .. } => {
                24 + items
                    .iter()
                    .map(|item| state_bytes(&item.key, &item.state))
                    .sum::<usize>()
            }
            Self::States { states } => {
                8 + states
                    .iter()
                    .map(|(key, state)| state_bytes(key, state))
                    .sum::<usize>()
            }
            Self::Changes { commits } => commits.iter().map(|commit| commit.encoded().len()).sum(),
            Self::Welcome(_) | Self::Error(_) | Self::GoAway { .. } => 256,
            Self::Done
            | Self::Committed { .. }
            | Self::Watching { .. }
            | Self::Progress { .. }
            | Self::Reset
            | Self::Probed { .. } => 24,
        }
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;

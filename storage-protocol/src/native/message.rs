//! The messages of the native dialect and their payloads, field by field.
//!
//! One checked conversion each way: past [`ClientMessage::decode`] and [`ServerMessage::decode`] nothing of the shape
//! needs checking again. (Limits that depend on the server's configuration are the receiver's matter.) `docs/protocol.md`
//! names the fields in the same order.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::VERSION;
use super::frame::{Packet, ProtocolError, RequestId, kind};
use super::wire::{Reader, Writer};
use crate::{
    Batch, Change, ChangeKind, Check, CommitOptions, CommitRecord, Entry, EntryLifetime, Epoch,
    Expected, Key, KeyRange, KeyState, Lifetime, Limit, Limits, Operation, Outcome, Position,
    Revision, ScanItem, ScanOptions, SessionId, StorageError, UnixMillis, Value, WatchMode,
    WatchStart,
};

type Result<T> = std::result::Result<T, ProtocolError>;

/// The first message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol version it speaks, [`VERSION`](super::VERSION).
    pub version: u64,
    /// The session to resume; `None` begins a new one.
    pub session: Option<SessionId>,
    /// Grows with each incarnation of a resumed session: a new one fences the old one. 0 for a new session.
    pub incarnation: u64,
    /// What the client is, for the server's log (`storage-client/0.1.0`). At most 256 bytes are kept.
    pub agent: String,
}

/// The answer to Hello: the session is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version that both speak from here.
    pub version: u64,
    /// The present position. Every position of this connection has this epoch.
    pub position: Position,
    /// The session.
    pub session: SessionId,
    /// The highest commit number of this session that was executed; 0 for none.
    pub executed: u64,
    /// Whether the session's keys with session lifetime lapsed since it was last seen.
    pub lapsed: bool,
    /// Who the server takes the client for (`cert:NAME`).
    pub principal: String,
    /// The server pings when it heard nothing for this long.
    pub heartbeat: Duration,
    /// Either side closes when it heard nothing for this long.
    pub silence: Duration,
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
        let mut out = BytesMut::with_capacity(self.size_hint());
        let kind = match self {
            Self::Hello(hello) => {
                out.number(hello.version);
                out.length_prefixed(hello.session.as_ref().map_or(&[][..], |session| &session.0));
                out.number(hello.incarnation);
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
        require_id(kind, id, kind != kind::HELLO)?;
        let mut from = Reader::new(payload);
        let from = &mut from;
        let message = match kind {
            kind::HELLO => Self::Hello(Hello {
                version: read_version(from)?,
                session: read_session(from)?,
                incarnation: from.number("the incarnation")?,
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
        let mut out = BytesMut::with_capacity(self.size_hint());
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

fn finish<T>(from: &mut Reader, message: T) -> Result<T> {
    std::mem::replace(from, Reader::new(Bytes::new())).finish()?;
    Ok(message)
}

fn require_id(kind: u8, id: Option<RequestId>, expected: bool) -> Result<()> {
    if id.is_some() == expected {
        Ok(())
    } else {
        Err(ProtocolError::IdMismatch { kind, expected })
    }
}

fn to_id(number: u64, what: &'static str) -> Result<RequestId> {
    match u32::try_from(number) {
        Ok(id) if id <= crate::number::ID_MAX => Ok(id),
        _ => Err(ProtocolError::BadNumber { what }),
    }
}

fn read_id(from: &mut Reader, what: &'static str) -> Result<RequestId> {
    to_id(from.number(what)?, what)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Up to eight flags in one byte, the first lowest; a bit without a meaning is an error.
fn put_flags<const N: usize>(out: &mut BytesMut, flags: [bool; N]) {
    out.put_u8(
        flags
            .into_iter()
            .rev()
            .fold(0, |byte, flag| byte << 1 | u8::from(flag)),
    );
}

fn read_flags<const N: usize>(from: &mut Reader, what: &'static str) -> Result<[bool; N]> {
    let byte = from.byte(what)?;
    if u32::from(byte) >> N != 0 {
        return Err(ProtocolError::BadTag {
            what,
            tag: u64::from(byte),
        });
    }
    let mut place = 0;
    Ok([(); N].map(|()| {
        let flag = byte >> place & 1 == 1;
        place += 1;
        flag
    }))
}

fn read_revision(from: &mut Reader) -> Result<Revision> {
    Ok(Revision(from.number("a revision")?))
}

fn put_position(out: &mut BytesMut, position: Position) {
    out.put_u64(position.epoch.0);
    out.number(position.revision.0);
}

fn read_position(from: &mut Reader) -> Result<Position> {
    let epoch = Epoch(u64::from_be_bytes(from.array("an epoch")?));
    Ok(Position {
        epoch,
        revision: read_revision(from)?,
    })
}

/// The version comes first in every version of Hello, so that another one is named before its fields are misread.
fn read_version(from: &mut Reader) -> Result<u64> {
    match from.number("the version")? {
        VERSION => Ok(VERSION),
        asked => Err(ProtocolError::UnknownVersion {
            asked,
            spoken: VERSION,
        }),
    }
}

fn read_session(from: &mut Reader) -> Result<Option<SessionId>> {
    let bytes = from.bytes("the session")?;
    if bytes.is_empty() {
        return Ok(None);
    }
    match <[u8; 16]>::try_from(bytes.as_ref()) {
        Ok(id) => Ok(Some(SessionId(id))),
        Err(_) => Err(ProtocolError::BadNumber {
            what: "the session's length",
        }),
    }
}

fn put_range(out: &mut BytesMut, range: &KeyRange) {
    out.length_prefixed(&range.start);
    put_optional(out, range.end.as_ref());
}

fn read_range(from: &mut Reader) -> Result<KeyRange> {
    Ok(KeyRange {
        start: from.bytes("the range's start")?,
        end: read_optional(from, "the range's end")?,
    })
}

fn put_optional(out: &mut BytesMut, bytes: Option<&Bytes>) {
    put_flags(out, [bytes.is_some()]);
    if let Some(bytes) = bytes {
        out.length_prefixed(bytes);
    }
}

fn read_optional(from: &mut Reader, what: &'static str) -> Result<Option<Bytes>> {
    let [present] = read_flags(from, what)?;
    if present {
        Ok(Some(from.bytes(what)?))
    } else {
        Ok(None)
    }
}

// Entries: a tag (1 for ever, 2 until a time, 3 session; 0 where an entry may be absent), the time where there is
// one, revision, value.

fn put_entry(out: &mut BytesMut, entry: &Entry) {
    put_entry_lifetime(out, entry.lifetime);
    out.number(entry.revision.0);
    out.length_prefixed(&entry.value);
}

fn read_entry(from: &mut Reader, tag: u8) -> Result<Entry> {
    let lifetime = read_entry_lifetime(from, tag)?;
    Ok(Entry {
        lifetime,
        revision: read_revision(from)?,
        value: from.bytes("a value")?,
    })
}

fn put_entry_lifetime(out: &mut BytesMut, lifetime: EntryLifetime) {
    match lifetime {
        EntryLifetime::Forever => out.put_u8(1),
        EntryLifetime::Until(time) => {
            out.put_u8(2);
            out.number(time.0);
        }
        EntryLifetime::Session => out.put_u8(3),
    }
}

fn read_entry_lifetime(from: &mut Reader, tag: u8) -> Result<EntryLifetime> {
    match tag {
        1 => Ok(EntryLifetime::Forever),
        2 => Ok(EntryLifetime::Until(UnixMillis(from.number("a time")?))),
        3 => Ok(EntryLifetime::Session),
        tag => Err(ProtocolError::BadTag {
            what: "an entry",
            tag: tag.into(),
        }),
    }
}

fn put_state(out: &mut BytesMut, key: &Key, state: &KeyState) {
    out.length_prefixed(key);
    match state {
        KeyState::Live(entry) => put_entry(out, entry),
        KeyState::Removed(revision) => {
            out.put_u8(0);
            out.number(revision.0);
        }
    }
}

fn state_bytes(key: &Key, state: &KeyState) -> usize {
    let value = match state {
        KeyState::Live(entry) => entry.value.len(),
        KeyState::Removed(_) => 0,
    };
    key.len() + value + 32
}

fn read_states(from: &mut Reader) -> Result<Vec<(Key, KeyState)>> {
    // A key's length, a tag and a revision: no state has fewer bytes.
    let count = from.count(3, "the number of states")?;
    let mut states = Vec::with_capacity(count);
    for _ in 0..count {
        let key = from.bytes("a key")?;
        let state = match from.byte("a state's tag")? {
            0 => KeyState::Removed(read_revision(from)?),
            tag => KeyState::Live(read_entry(from, tag)?),
        };
        states.push((key, state));
    }
    Ok(states)
}

mod op {
    pub(super) const PUT: u8 = 1;
    pub(super) const REMOVE: u8 = 2;
    pub(super) const PUT_STAMPED: u8 = 3;
    pub(super) const SIGNAL: u8 = 4;
}

fn put_lifetime(out: &mut BytesMut, lifetime: Lifetime) {
    match lifetime {
        Lifetime::Forever => out.put_u8(1),
        Lifetime::TimeToLive(duration) => {
            out.put_u8(2);
            out.number(millis(duration));
        }
        Lifetime::Session => out.put_u8(3),
    }
}

fn read_lifetime(from: &mut Reader) -> Result<Lifetime> {
    match from.byte("a lifetime")? {
        1 => Ok(Lifetime::Forever),
        2 => Ok(Lifetime::TimeToLive(Duration::from_millis(
            from.number("a time to live")?,
        ))),
        3 => Ok(Lifetime::Session),
        tag => Err(ProtocolError::BadTag {
            what: "a lifetime",
            tag: tag.into(),
        }),
    }
}

fn put_commit(out: &mut BytesMut, number: u64, options: &CommitOptions, batch: &Batch) {
    out.number(number);
    put_flags(out, [options.with_previous, options.label.is_some()]);
    if let Some(label) = &options.label {
        out.length_prefixed(label.as_bytes());
    }
    out.number(batch.checks.len() as u64);
    for check in &batch.checks {
        out.length_prefixed(&check.key);
        match check.expected {
            Expected::Absent => put_flags(out, [false]),
            Expected::At(revision) => {
                put_flags(out, [true]);
                out.number(revision.0);
            }
        }
    }
    out.number(batch.operations.len() as u64);
    for operation in &batch.operations {
        match operation {
            Operation::Put {
                key,
                value,
                lifetime,
            } => {
                out.put_u8(op::PUT);
                out.length_prefixed(key);
                put_lifetime(out, *lifetime);
                out.length_prefixed(value);
            }
            Operation::Remove { key } => {
                out.put_u8(op::REMOVE);
                out.length_prefixed(key);
            }
            Operation::PutStamped {
                prefix,
                value,
                lifetime,
            } => {
                out.put_u8(op::PUT_STAMPED);
                out.length_prefixed(prefix);
                put_lifetime(out, *lifetime);
                out.length_prefixed(value);
            }
            Operation::Signal { key, bytes } => {
                out.put_u8(op::SIGNAL);
                out.length_prefixed(key);
                out.length_prefixed(bytes);
            }
        }
    }
}

fn read_commit(from: &mut Reader) -> Result<ClientMessage> {
    let number = from.number("the commit's number")?;
    let [with_previous, label] = read_flags(from, "the commit's flags")?;
    let label = if label {
        Some(from.text("the label")?)
    } else {
        None
    };
    let count = from.count(2, "the number of checks")?;
    let mut checks = Vec::with_capacity(count);
    for _ in 0..count {
        let key = from.bytes("a key")?;
        let [present] = read_flags(from, "a check")?;
        let expected = if present {
            Expected::At(read_revision(from)?)
        } else {
            Expected::Absent
        };
        checks.push(Check { key, expected });
    }
    let count = from.count(2, "the number of operations")?;
    let mut operations = Vec::with_capacity(count);
    for _ in 0..count {
        let tag = from.byte("an operation")?;
        let key = from.bytes("a key")?;
        operations.push(match tag {
            op::PUT => {
                let lifetime = read_lifetime(from)?;
                Operation::Put {
                    key,
                    lifetime,
                    value: from.bytes("a value")?,
                }
            }
            op::REMOVE => Operation::Remove { key },
            op::PUT_STAMPED => {
                let lifetime = read_lifetime(from)?;
                Operation::PutStamped {
                    prefix: key,
                    lifetime,
                    value: from.bytes("a value")?,
                }
            }
            op::SIGNAL => Operation::Signal {
                key,
                bytes: from.bytes("a signal")?,
            },
            tag => {
                return Err(ProtocolError::BadTag {
                    what: "an operation",
                    tag: tag.into(),
                });
            }
        });
    }
    let options = CommitOptions {
        label,
        with_previous,
    };
    Ok(ClientMessage::Commit {
        number,
        options,
        batch: Batch { checks, operations },
    })
}

fn put_watch(out: &mut BytesMut, request: &WatchRequest) {
    put_range(out, &request.range);
    match request.start {
        WatchStart::Now => out.put_u8(0),
        WatchStart::After(position) => {
            out.put_u8(1);
            put_position(out, position);
        }
        WatchStart::Beginning => out.put_u8(2),
    }
    match request.mode {
        WatchMode::Every => out.put_u8(0),
        WatchMode::Latest { min_interval } => {
            out.put_u8(1);
            out.number(millis(min_interval));
        }
    }
    out.number(request.credit);
}

fn read_watch(from: &mut Reader) -> Result<WatchRequest> {
    let range = read_range(from)?;
    let start = match from.byte("the watch's start")? {
        0 => WatchStart::Now,
        1 => WatchStart::After(read_position(from)?),
        2 => WatchStart::Beginning,
        tag => {
            return Err(ProtocolError::BadTag {
                what: "the watch's start",
                tag: tag.into(),
            });
        }
    };
    let mode = match from.byte("the watch's mode")? {
        0 => WatchMode::Every,
        1 => WatchMode::Latest {
            min_interval: Duration::from_millis(from.number("the interval")?),
        },
        tag => {
            return Err(ProtocolError::BadTag {
                what: "the watch's mode",
                tag: tag.into(),
            });
        }
    };
    Ok(WatchRequest {
        range,
        start,
        mode,
        credit: from.number("the credit")?,
    })
}

fn put_welcome(out: &mut BytesMut, welcome: &Welcome) {
    out.number(welcome.version);
    put_position(out, welcome.position);
    out.extend_from_slice(&welcome.session.0);
    out.number(welcome.executed);
    put_flags(out, [welcome.lapsed]);
    out.length_prefixed(welcome.principal.as_bytes());
    out.number(millis(welcome.heartbeat));
    out.number(millis(welcome.silence));
    let limits = limit_pairs(&welcome.limits);
    out.number(limits.len() as u64);
    for (limit, value) in limits {
        out.number(u64::from(limit.wire()));
        out.number(value as u64);
    }
}

fn read_welcome(from: &mut Reader) -> Result<Welcome> {
    let version = from.number("the version")?;
    let position = read_position(from)?;
    let session = SessionId(from.array("the session")?);
    let executed = from.number("the highest executed number")?;
    let [lapsed] = read_flags(from, "Welcome's flags")?;
    let principal = from.text("the principal")?;
    let heartbeat = Duration::from_millis(from.number("the heartbeat")?);
    let silence = Duration::from_millis(from.number("the silence")?);
    let mut limits = Limits::default();
    for _ in 0..from.count(2, "the number of limits")? {
        let limit = Limit::from_wire(from.number("a limit")?);
        let value = usize::try_from(from.number("a limit's value")?).unwrap_or(usize::MAX);
        // One that this version does not know is passed over: a newer server may announce more.
        if let Some(field) = limit_field(&mut limits, limit) {
            *field = value;
        }
    }
    Ok(Welcome {
        version,
        position,
        session,
        executed,
        lapsed,
        principal,
        heartbeat,
        silence,
        limits,
    })
}

fn limit_pairs(limits: &Limits) -> [(Limit, usize); 10] {
    [
        (Limit::Key, limits.key_bytes_max),
        (Limit::Value, limits.value_bytes_max),
        (Limit::Message, limits.message_bytes_max),
        (Limit::Frame, limits.frame_bytes_max),
        (Limit::KeysPerGet, limits.keys_per_get_max),
        (Limit::OperationsPerCommit, limits.operations_per_commit_max),
        (Limit::RequestsInFlight, limits.requests_in_flight_max),
        (Limit::BytesInFlight, limits.bytes_in_flight_max),
        (Limit::Watches, limits.watches_max),
        (Limit::Scans, limits.scans_max),
    ]
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a limit without a field here is passed over"
)]
fn limit_field(limits: &mut Limits, limit: Limit) -> Option<&mut usize> {
    Some(match limit {
        Limit::Key => &mut limits.key_bytes_max,
        Limit::Value => &mut limits.value_bytes_max,
        Limit::Message => &mut limits.message_bytes_max,
        Limit::Frame => &mut limits.frame_bytes_max,
        Limit::KeysPerGet => &mut limits.keys_per_get_max,
        Limit::OperationsPerCommit => &mut limits.operations_per_commit_max,
        Limit::RequestsInFlight => &mut limits.requests_in_flight_max,
        Limit::BytesInFlight => &mut limits.bytes_in_flight_max,
        Limit::Watches => &mut limits.watches_max,
        Limit::Scans => &mut limits.scans_max,
        _ => return None,
    })
}

mod change {
    pub(super) const PUT: u8 = 1;
    pub(super) const REMOVED: u8 = 2;
    pub(super) const SIGNALLED: u8 = 3;
}

/// The wire form of a commit record: what a `Changes` message is a row of.
#[must_use]
pub fn encode_commit_record(record: &CommitRecord) -> Bytes {
    let mut out = BytesMut::with_capacity(record.bytes());
    out.number(record.revision.0);
    out.number(record.time.0);
    put_flags(&mut out, [record.label.is_some()]);
    if let Some(label) = &record.label {
        out.length_prefixed(label.as_bytes());
    }
    out.length_prefixed(record.principal.as_bytes());
    out.number(record.changes.len() as u64);
    for Change { key, kind } in &record.changes {
        match kind {
            ChangeKind::Put {
                value,
                lifetime,
                previous,
            } => {
                out.put_u8(change::PUT);
                out.length_prefixed(key);
                put_entry_lifetime(&mut out, *lifetime);
                out.length_prefixed(value);
                put_optional(&mut out, previous.as_ref());
            }
            ChangeKind::Removed { previous } => {
                out.put_u8(change::REMOVED);
                out.length_prefixed(key);
                put_optional(&mut out, previous.as_ref());
            }
            ChangeKind::Signalled { bytes } => {
                out.put_u8(change::SIGNALLED);
                out.length_prefixed(key);
                out.length_prefixed(bytes);
            }
        }
    }
    out.freeze()
}

fn read_commit_record(from: &mut Reader) -> Result<CommitRecord> {
    let revision = read_revision(from)?;
    let time = UnixMillis(from.number("a time")?);
    let [label] = read_flags(from, "a commit's flags")?;
    let label = if label {
        Some(from.text("the label")?)
    } else {
        None
    };
    let principal = from.text("the principal")?;
    let count = from.count(3, "the number of changes")?;
    let mut changes = Vec::with_capacity(count);
    for _ in 0..count {
        let tag = from.byte("a change")?;
        let key: Key = from.bytes("a key")?;
        let kind = match tag {
            change::PUT => {
                let tag = from.byte("a lifetime")?;
                let lifetime = read_entry_lifetime(from, tag)?;
                let value: Value = from.bytes("a value")?;
                let previous = read_optional(from, "the value before")?;
                ChangeKind::Put {
                    value,
                    lifetime,
                    previous,
                }
            }
            change::REMOVED => ChangeKind::Removed {
                previous: read_optional(from, "the value before")?,
            },
            change::SIGNALLED => ChangeKind::Signalled {
                bytes: from.bytes("a signal")?,
            },
            tag => {
                return Err(ProtocolError::BadTag {
                    what: "a change",
                    tag: tag.into(),
                });
            }
        };
        changes.push(Change { key, kind });
    }
    Ok(CommitRecord::new(revision, time, label, principal, changes))
}

/// The stable code of an error on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is the `StorageError` variant of the same name"
)]
#[repr(u8)]
pub enum ErrorCode {
    CheckFailed = 1,
    LimitExceeded = 2,
    InvalidArgument = 3,
    Compacted = 4,
    EpochChanged = 5,
    SnapshotExpired = 6,
    Overloaded = 7,
    StorageFull = 8,
    ReadOnly = 9,
    AccessDenied = 10,
    Cancelled = 11,
    DeadlineExceeded = 12,
    Closed = 13,
    PeerMisbehaved = 14,
    Unsupported = 15,
    Internal = 16,
}

// An error: code, outcome (0 not executed, 1 refused, 2 unknown), a text for people, then what the code calls for.

fn put_error(out: &mut BytesMut, error: &StorageError) {
    let code = match error {
        StorageError::CheckFailed { .. } => ErrorCode::CheckFailed,
        StorageError::LimitExceeded { .. } => ErrorCode::LimitExceeded,
        StorageError::InvalidArgument { .. } => ErrorCode::InvalidArgument,
        StorageError::Compacted { .. } => ErrorCode::Compacted,
        StorageError::EpochChanged { .. } => ErrorCode::EpochChanged,
        StorageError::SnapshotExpired => ErrorCode::SnapshotExpired,
        StorageError::Overloaded { .. } => ErrorCode::Overloaded,
        StorageError::StorageFull { .. } => ErrorCode::StorageFull,
        StorageError::ReadOnly { .. } => ErrorCode::ReadOnly,
        StorageError::AccessDenied { .. } => ErrorCode::AccessDenied,
        StorageError::Cancelled => ErrorCode::Cancelled,
        StorageError::DeadlineExceeded { .. } => ErrorCode::DeadlineExceeded,
        StorageError::Closed { .. } | StorageError::ConnectFailed { .. } => ErrorCode::Closed,
        StorageError::PeerMisbehaved { .. } => ErrorCode::PeerMisbehaved,
        StorageError::Unsupported { .. } => ErrorCode::Unsupported,
        StorageError::Internal { .. } => ErrorCode::Internal,
    };
    out.number(code as u64);
    out.put_u8(match error.outcome() {
        Outcome::NotExecuted => 0,
        Outcome::Refused => 1,
        Outcome::Unknown => 2,
    });
    out.length_prefixed(error_text(error).as_bytes());
    match error {
        StorageError::CheckFailed { key, actual } => {
            out.length_prefixed(key);
            put_flags(out, [actual.is_some()]);
            if let Some(revision) = actual {
                out.number(revision.0);
            }
        }
        StorageError::LimitExceeded { limit, max, actual } => {
            out.number(u64::from(limit.wire()));
            out.number(*max);
            out.number(*actual);
        }
        StorageError::Overloaded { limit, max } => {
            out.number(u64::from(limit.wire()));
            out.number(*max);
        }
        StorageError::Compacted { oldest } => out.number(oldest.0),
        StorageError::EpochChanged { epoch, fork } => {
            put_position(
                out,
                Position {
                    epoch: *epoch,
                    revision: *fork,
                },
            );
        }
        StorageError::StorageFull { available, reserve } => {
            out.number(*available);
            out.number(*reserve);
        }
        StorageError::InvalidArgument { .. }
        | StorageError::SnapshotExpired
        | StorageError::ReadOnly { .. }
        | StorageError::AccessDenied { .. }
        | StorageError::Cancelled
        | StorageError::DeadlineExceeded { .. }
        | StorageError::Closed { .. }
        | StorageError::ConnectFailed { .. }
        | StorageError::PeerMisbehaved { .. }
        | StorageError::Unsupported { .. }
        | StorageError::Internal { .. } => {}
    }
}

/// The text that travels: the variant's own, without the words that the receiver's `Display` adds again.
fn error_text(error: &StorageError) -> String {
    match error {
        StorageError::InvalidArgument { message }
        | StorageError::AccessDenied { message }
        | StorageError::ConnectFailed { message }
        | StorageError::PeerMisbehaved { message, .. }
        | StorageError::Internal { message, .. } => message.clone(),
        StorageError::ReadOnly { reason } | StorageError::Closed { reason, .. } => reason.clone(),
        StorageError::Unsupported { what } => what.clone(),
        StorageError::CheckFailed { .. }
        | StorageError::LimitExceeded { .. }
        | StorageError::Compacted { .. }
        | StorageError::EpochChanged { .. }
        | StorageError::SnapshotExpired
        | StorageError::Overloaded { .. }
        | StorageError::StorageFull { .. }
        | StorageError::Cancelled
        | StorageError::DeadlineExceeded { .. } => error.to_string(),
    }
}

fn read_error(from: &mut Reader) -> Result<StorageError> {
    let code = from.number("the error's code")?;
    let tag = from.byte("the outcome")?;
    let outcome = match tag {
        0 => Outcome::NotExecuted,
        1 => Outcome::Refused,
        2 => Outcome::Unknown,
        tag => {
            return Err(ProtocolError::BadTag {
                what: "the outcome",
                tag: tag.into(),
            });
        }
    };
    let message = from.text("the error's text")?;
    let read_limit = |from: &mut Reader| Ok(Limit::from_wire(from.number("a limit")?));
    let error = match code {
        1 => {
            let key = from.bytes("a key")?;
            let [present] = read_flags(from, "the actual revision")?;
            let actual = if present {
                Some(read_revision(from)?)
            } else {
                None
            };
            StorageError::CheckFailed { key, actual }
        }
        2 => StorageError::LimitExceeded {
            limit: read_limit(from)?,
            max: from.number("the limit's value")?,
            actual: from.number("the actual value")?,
        },
        3 => StorageError::InvalidArgument { message },
        4 => StorageError::Compacted {
            oldest: read_revision(from)?,
        },
        5 => {
            let Position { epoch, revision } = read_position(from)?;
            StorageError::EpochChanged {
                epoch,
                fork: revision,
            }
        }
        6 => StorageError::SnapshotExpired,
        7 => StorageError::Overloaded {
            limit: read_limit(from)?,
            max: from.number("the limit's value")?,
        },
        8 => StorageError::StorageFull {
            available: from.number("the free bytes")?,
            reserve: from.number("the reserve")?,
        },
        9 => StorageError::ReadOnly { reason: message },
        10 => StorageError::AccessDenied { message },
        11 => StorageError::Cancelled,
        12 => StorageError::DeadlineExceeded { outcome },
        13 => StorageError::Closed {
            reason: message,
            outcome,
        },
        14 => StorageError::PeerMisbehaved { message, outcome },
        15 => StorageError::Unsupported { what: message },
        16 => StorageError::Internal { message, outcome },
        // A newer server's code: its class is what matters, so it is kept, with the text; what else it says is not
        // for us to read.
        code => {
            std::mem::replace(from, Reader::new(Bytes::new())).rest();
            StorageError::Internal {
                message: format!("{message} (error code {code})"),
                outcome,
            }
        }
    };
    // Most codes have one outcome. Were another one passed over here, "unknown" could become "safe to repeat".
    if error.outcome() == outcome {
        Ok(error)
    } else {
        Err(ProtocolError::BadTag {
            what: "the outcome of this error code",
            tag: tag.into(),
        })
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;

//! The bodies of Commit and Watch.

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::super::frame::ProtocolError;
use super::super::wire::{Reader, Writer};
use super::fields::{
    millis, put_flags, put_lifetime, put_position, put_range, read_flags, read_lifetime,
    read_position, read_range, read_revision,
};
use super::{ClientMessage, Result, WatchRequest};
use crate::{Batch, Check, CommitOptions, Expected, Operation, WatchMode, WatchStart};

mod op {
    pub(super) const PUT: u8 = 1;
    pub(super) const REMOVE: u8 = 2;
    pub(super) const PUT_STAMPED: u8 = 3;
    pub(super) const SIGNAL: u8 = 4;
}

pub(super) fn put_commit(out: &mut BytesMut, number: u64, options: &CommitOptions, batch: &Batch) {
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

pub(super) fn read_commit(from: &mut Reader) -> Result<ClientMessage> {
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

pub(super) fn put_watch(out: &mut BytesMut, request: &WatchRequest) {
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

pub(super) fn read_watch(from: &mut Reader) -> Result<WatchRequest> {
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

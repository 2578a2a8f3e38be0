//! The body of Welcome, limits included.

use std::time::Duration;

use bytes::BytesMut;

use super::super::wire::{Reader, Writer};
use super::fields::{millis, put_flags, put_position, read_flags, read_position};
use super::{Result, Welcome};
use crate::{Limit, Limits, SessionId};

pub(super) fn put_welcome(out: &mut BytesMut, welcome: &Welcome) {
    out.number(welcome.version);
    put_position(out, welcome.position);
    out.extend_from_slice(&welcome.session.0);
    out.number(welcome.executed);
    put_flags(out, [welcome.lapsed]);
    out.length_prefixed(welcome.principal.as_bytes());
    out.number(millis(welcome.heartbeat));
    out.number(millis(welcome.silence));
    out.number(millis(welcome.grace));
    out.number(millis(welcome.kept));
    let limits = limit_pairs(&welcome.limits);
    out.number(limits.len() as u64);
    for (limit, value) in limits {
        out.number(u64::from(limit.wire()));
        out.number(value as u64);
    }
}

pub(super) fn read_welcome(from: &mut Reader) -> Result<Welcome> {
    let version = from.number("the version")?;
    let position = read_position(from)?;
    let session = SessionId(from.array("the session")?);
    let executed = from.number("the highest executed number")?;
    let [lapsed] = read_flags(from, "Welcome's flags")?;
    let principal = from.text("the principal")?;
    let heartbeat = Duration::from_millis(from.number("the heartbeat")?);
    let silence = Duration::from_millis(from.number("the silence")?);
    let grace = Duration::from_millis(from.number("the grace")?);
    let kept = Duration::from_millis(from.number("the time a session is kept")?);
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
        grace,
        kept,
        limits,
    })
}

pub(super) fn limit_pairs(limits: &Limits) -> [(Limit, usize); 10] {
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
pub(super) fn limit_field(limits: &mut Limits, limit: Limit) -> Option<&mut usize> {
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

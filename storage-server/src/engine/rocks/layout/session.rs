//! The rows about sessions themselves, in the table `meta`. (Their commits' records are in `sessions`, where the replay
//! of the log takes every row for a commit.)

use bytes::{Buf, BufMut, Bytes, BytesMut};
use storage_protocol::{Epoch, Keyspace, Revision, SessionId, UnixMillis};

use super::{Damaged, get_bytes, put_bytes};

/// What the rows of sessions begin with.
pub(crate) const SESSION_PREFIX: &[u8] = b"msession/";

/// See [`SessionHorizon`].
pub(crate) const SESSION_HORIZON_KEY: &[u8] = b"msession-horizon";

/// The same for sessions that their clients ended, in a row of its own: it becomes part of the horizon at the next
/// start. While the server runs it knows them by their ids.
pub(crate) const SESSION_ENDED_KEY: &[u8] = b"msession-ended";

pub(crate) fn session_row_key(session: SessionId) -> Vec<u8> {
    [SESSION_PREFIX, &session.0].concat()
}

/// The session of a row's key.
pub(crate) fn parse_session_row_key(key: &[u8]) -> Result<SessionId, Damaged> {
    let id = key.strip_prefix(SESSION_PREFIX);
    let id = id.and_then(|id| <[u8; 16]>::try_from(id).ok());
    id.map(SessionId).ok_or(Damaged {
        table: "meta",
        what: "a session's key of another length",
    })
}

/// A session id that tells when it was made: 6 bytes of milliseconds, then 10 that nobody guesses.
pub(crate) fn new_session_id(now: UnixMillis) -> SessionId {
    let mut id: [u8; 16] = rand::random();
    let [_, _, time @ ..] = now.0.to_be_bytes();
    id[..6].copy_from_slice(&time);
    SessionId(id)
}

/// When a session with this id was opened.
pub(crate) fn opened_at(session: SessionId) -> UnixMillis {
    let [a, b, c, d, e, f, ..] = session.0;
    UnixMillis(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

/// A session that has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionRow {
    pub(crate) epoch: Epoch,
    /// The highest one that attached, as far as it is known on disk.
    pub(crate) generation: u64,
    /// Keys of it were removed since its client last heard of that.
    pub(crate) keys_expired: bool,
    /// Its keys up to here are gone, or were to go when the server ended.
    pub(crate) expired_up_to: Revision,
    pub(crate) principal: String,
    pub(crate) keyspace: Keyspace,
}

impl SessionRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = BytesMut::with_capacity(64 + self.principal.len());
        out.put_u64(self.epoch.0);
        out.put_u64(self.generation);
        out.put_u8(u8::from(self.keys_expired));
        out.put_u64(self.expired_up_to.0);
        put_bytes(&mut out, self.principal.as_bytes());
        put_bytes(&mut out, self.keyspace.as_str().as_bytes());
        out.into()
    }

    pub(crate) fn decode(row: &[u8]) -> Result<Self, Damaged> {
        let mut from = Bytes::copy_from_slice(row);
        let text = |from: &mut Bytes| String::from_utf8(get_bytes(from)?.into()).ok();
        let parse = |from: &mut Bytes| -> Option<Self> {
            Some(Self {
                epoch: Epoch(from.try_get_u64().ok()?),
                generation: from.try_get_u64().ok()?,
                keys_expired: from.try_get_u8().ok()? == 1,
                expired_up_to: Revision(from.try_get_u64().ok()?),
                principal: text(from)?,
                keyspace: Keyspace::new(&text(from)?).ok()?,
            })
        };
        parse(&mut from).ok_or(Damaged {
            table: "meta",
            what: "a short session",
        })
    }
}

/// Rows of sessions opened up to this time may be gone; an id that is newer and has no row never committed. Holds for
/// one epoch: in another, sessions that committed may be lost with its tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionHorizon {
    pub(crate) opened: UnixMillis,
    pub(crate) epoch: Epoch,
}

impl SessionHorizon {
    pub(crate) fn encode(self) -> Vec<u8> {
        [self.opened.0.to_be_bytes(), self.epoch.0.to_be_bytes()].concat()
    }

    pub(crate) fn decode(row: &[u8]) -> Result<Self, Damaged> {
        let (pairs, []) = row.as_chunks::<8>() else {
            return Err(damaged_horizon());
        };
        let [opened, epoch] = pairs else {
            return Err(damaged_horizon());
        };
        Ok(Self {
            opened: UnixMillis(u64::from_be_bytes(*opened)),
            epoch: Epoch(u64::from_be_bytes(*epoch)),
        })
    }
}

fn damaged_horizon() -> Damaged {
    Damaged {
        table: "meta",
        what: "a horizon of sessions of another length",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_rows_round_trip() {
        let row = SessionRow {
            epoch: Epoch(7),
            generation: 3,
            keys_expired: true,
            expired_up_to: Revision(9),
            principal: "cert:a".into(),
            keyspace: Keyspace::new("model").unwrap(),
        };
        let encoded = row.encode();
        assert_eq!(SessionRow::decode(&encoded).unwrap(), row);
        for cut in 0..encoded.len() {
            assert!(SessionRow::decode(&encoded[..cut]).is_err(), "cut at {cut}");
        }
        let horizon = SessionHorizon {
            opened: UnixMillis(5),
            epoch: Epoch(7),
        };
        assert_eq!(SessionHorizon::decode(&horizon.encode()).unwrap(), horizon);
        assert!(SessionHorizon::decode(b"short").is_err());
        let id = SessionId([5; 16]);
        assert_eq!(parse_session_row_key(&session_row_key(id)).unwrap(), id);
    }

    #[test]
    fn an_id_tells_when_it_was_made_and_nothing_else() {
        let now = UnixMillis(1_763_742_000_123);
        let (one, two) = (new_session_id(now), new_session_id(now));
        assert_eq!((opened_at(one), opened_at(two)), (now, now));
        assert_ne!(one, two);
    }
}

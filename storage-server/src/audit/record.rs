//! What a record of the audit log says, and what it never does.
//!
//! A record is one JSON object on one line. It has names: of principals, keyspaces, keys, tokens' ids. It has no values, no
//! passwords and no tokens, since nothing here is ever given one; and no id of a session, which is a secret (who has it may
//! resume the session), but a hash of it. What a peer can choose is escaped and cut, so that a record is bounded.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use storage_protocol::{
    Batch, Key, KeyRange, Keyspace, Operation, Revision, SessionId, StorageError,
};

use crate::auth::text::{escaped, shown_key};
use crate::auth::{Identity, Proof};

/// The longest record, in bytes, with its end of line. Keys, reason and names are cut so that it holds.
pub(super) const RECORD_BYTES_MAX: usize = 16 << 10;
/// The most keys that a record names.
pub(super) const KEYS_MAX: usize = 16;
/// The longest part of a key that is shown, in bytes; the same of the ends of a range.
pub(super) const KEY_BYTES_MAX: usize = 256;
/// With so many characters of keys, no more are named.
const KEYS_CHARS_MAX: usize = 4 << 10;
/// The longest reason, in characters.
const REASON_CHARS_MAX: usize = 300;
/// The bytes of a session's hash.
const SESSION_HASH_BYTES: usize = 8;

/// What a record is about: the words that the configuration has for them, and one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Event {
    /// Somebody was not let in, or may not do something.
    Denied,
    /// Who may do what was changed.
    Admin,
    /// Somebody was let in; a session began or ended.
    Session,
    Write,
    Read,
    Watch,
    /// About the audit log itself: what is missing in it. Always on.
    Audit,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Allowed,
    /// By who it is, or by the access rules.
    Denied,
    /// For another reason; nothing was done.
    Failed,
    /// Nobody waited for the end, or the store does not know: it may have been done.
    Unknown,
}

impl Outcome {
    pub(crate) fn of(error: &StorageError) -> Self {
        match (error, error.outcome()) {
            (StorageError::AccessDenied { .. }, _) => Self::Denied,
            (_, storage_protocol::Outcome::Unknown) => Self::Unknown,
            _ => Self::Failed,
        }
    }
}

/// What stands for a session: the same for each of its sockets, and of no use to resume it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionHash([u8; SESSION_HASH_BYTES]);

impl SessionHash {
    pub(crate) fn of(id: SessionId) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, &id.0);
        let mut hash = [0; SESSION_HASH_BYTES];
        for (to, from) in hash.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(hash)
    }
}

impl Serialize for SessionHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&hex::encode(self.0))
    }
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    /// RFC 3339 in UTC, to the millisecond. Set when it is put.
    time: String,
    event: Event,
    operation: &'static str,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    /// By what it was found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'static str>,
    /// The id of the token that was shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// Who somebody said to be and did not prove. Of a login only ever a user that there is, since a name that nobody has may
    /// be a password in the wrong field; of a certificate that was refused whatever it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    claimed: Option<String>,
    /// Of a certificate that was refused: its serial number, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionHash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keyspace: Option<String>,
    /// Of a request over HTTP: its method, and its route as the server calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    /// What is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<String>>,
    /// What is written: `put KEY`, `remove KEY` and so on.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<String>>,
    /// How many keys there are, those that are not named too.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<usize>,
    /// The first key of a range.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// The key behind the last one; without it the range has no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// How many more of the same kind this one stands for, itself included.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeated: Option<u64>,
}

/// Of whom denials are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Group {
    operation: &'static str,
    principal: Option<String>,
    claimed: Option<String>,
    address: Option<IpAddr>,
    keyspace: Option<String>,
}

impl Record {
    pub(crate) fn new(event: Event, operation: &'static str, outcome: Outcome) -> Self {
        Self {
            time: String::new(),
            event,
            operation,
            outcome,
            principal: None,
            by: None,
            token: None,
            claimed: None,
            serial: None,
            address: None,
            session: None,
            keyspace: None,
            route: None,
            keys: None,
            changes: None,
            total: None,
            from: None,
            to: None,
            revision: None,
            reason: None,
            repeated: None,
        }
    }

    /// Who did it, by what that is known, and from where.
    pub(crate) fn by(mut self, identity: &Identity) -> Self {
        self.principal = Some(identity.principal().to_string());
        self.by = Some(identity.proof().name());
        self.address = identity.address();
        if let Proof::Token(bearer) = identity.proof() {
            self.token = Some(bearer.id.clone());
        }
        self
    }

    /// The server itself did it.
    pub(crate) fn by_server(mut self) -> Self {
        self.principal = Some("server".to_owned());
        self
    }

    /// Of somebody of whom nothing else is known.
    pub(crate) fn address(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// `by`: what was shown. `claimed`: a principal that there is, or what a certificate says.
    pub(crate) fn claiming(mut self, by: &'static str, claimed: Option<String>) -> Self {
        (self.by, self.claimed) = (Some(by), claimed);
        self
    }

    /// Of a certificate that was refused.
    pub(crate) fn serial(mut self, serial: &str) -> Self {
        self.serial = Some(serial.to_owned());
        self
    }

    /// The token with this id was shown, or is what this is about.
    pub(crate) fn token(mut self, id: &str) -> Self {
        self.token = Some(id.to_owned());
        self
    }

    pub(crate) fn session(mut self, session: SessionHash) -> Self {
        self.session = Some(session);
        self
    }

    pub(crate) fn keyspace(mut self, keyspace: &Keyspace) -> Self {
        self.keyspace = Some(keyspace.to_string());
        self
    }

    /// `route` has no part that a peer chose.
    pub(crate) fn route(mut self, route: String) -> Self {
        self.route = Some(route);
        self
    }

    /// What is read.
    pub(crate) fn keys<'a>(mut self, keys: impl ExactSizeIterator<Item = &'a Key>) -> Self {
        let total = keys.len();
        let shown = keys.map(|key| shown_key(key, KEY_BYTES_MAX));
        self.keys = Some(listed(shown));
        self.total = Some(total);
        self
    }

    /// What is written. Values are not looked at.
    pub(crate) fn changes(mut self, batch: &Batch) -> Self {
        let shown = batch.operations.iter().map(|operation| {
            let word = match operation {
                Operation::Put { .. } => "put",
                Operation::PutStamped { .. } => "put_stamped",
                Operation::Remove { .. } => "remove",
                Operation::Signal { .. } => "signal",
            };
            format!("{word} {}", shown_key(operation.key(), KEY_BYTES_MAX))
        });
        self.changes = Some(listed(shown));
        self.total = Some(batch.operations.len());
        self
    }

    /// One range, or the hull of several.
    pub(crate) fn ranges(mut self, ranges: &[KeyRange]) -> Self {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return self;
        };
        self.from = Some(shown_key(&first.start, KEY_BYTES_MAX));
        let end = last.end.as_ref();
        self.to = end.map(|end| shown_key(end, KEY_BYTES_MAX));
        self
    }

    pub(crate) fn revision(mut self, revision: Revision) -> Self {
        self.revision = Some(revision.0);
        self
    }

    pub(crate) fn reason(mut self, reason: &str) -> Self {
        self.reason = Some(escaped(reason, REASON_CHARS_MAX));
        self
    }

    /// Why it failed, and how that ended. What an error says of a commit that is none may have parts of its values, so that
    /// is left out: of an administrative act, what is quoted of the record; else all of it.
    pub(crate) fn error(self, error: &StorageError) -> Self {
        let record = self.outcome(Outcome::of(error));
        match error {
            StorageError::InvalidArgument { .. } if record.event == Event::Admin => {
                record.reason(without_values(&error.to_string()))
            }
            StorageError::InvalidArgument { .. } => record.reason("not valid"),
            error => record.reason(&error.to_string()),
        }
    }

    /// How it ended after all.
    pub(super) fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    pub(super) fn event(&self) -> Event {
        self.event
    }

    pub(super) fn repeated(mut self, times: u64) -> Self {
        self.repeated = Some(times);
        self
    }

    pub(super) fn at(mut self, time: SystemTime) -> Self {
        self.time = written(time);
        self
    }

    pub(super) fn group(&self) -> Group {
        // What a certificate says that was refused is its bearer's to choose: with another name each time it would be told
        // without end.
        let claimed = self.claimed.as_ref().filter(|_| self.serial.is_none());
        Group {
            operation: self.operation,
            principal: self.principal.clone(),
            claimed: claimed.cloned(),
            address: self.address.map(|address| address.ip()),
            keyspace: self.keyspace.clone(),
        }
    }

    /// The same for two of one group that tell the same, but for their times, ports and sessions.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let read = (&self.keys, &self.changes, self.total, &self.from, &self.to);
        let who = (&self.claimed, &self.serial, &self.token);
        let how = (self.by, who, &self.route, &self.reason);
        (read, how).hash(&mut hasher);
        hasher.finish()
    }

    /// Its line, with the end of it.
    pub(super) fn line(&self) -> Vec<u8> {
        // It has neither maps nor types of others, so this does not fail.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        debug_assert!(line.len() <= RECORD_BYTES_MAX, "a record is bounded");
        line
    }
}

/// Of a text such as `key "access/x": unknown field ...` what comes before anything that is quoted from the value. A text that
/// names no key has nothing of a value.
fn without_values(text: &str) -> &str {
    let Some(rest) = text.split_once("key \"").map(|(_, rest)| rest) else {
        return text;
    };
    let mut is_escaped = false;
    let closes = |c: char| {
        let closes = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        closes
    };
    let behind_key = rest.find(closes).and_then(|end| rest.get(end + 1..));
    let Some(behind_key) = behind_key else {
        return "not valid";
    };
    let said = behind_key.find(['"', '`']).unwrap_or(behind_key.len());
    let end = text.len() - behind_key.len() + said;
    text.get(..end).unwrap_or_default().trim_end()
}

/// The first of these, up to the bounds.
fn listed(shown: impl Iterator<Item = String>) -> Vec<String> {
    let mut chars = 0;
    let fitting = shown.take(KEYS_MAX).take_while(|text| {
        let fits = chars < KEYS_CHARS_MAX;
        chars += text.len();
        fits
    });
    fitting.collect()
}

/// The latest time that is written as it is: the end of the year 9999.
const TIME_MAX: Duration = Duration::from_secs(253_402_300_799);

/// RFC 3339, in UTC, to the millisecond.
pub(super) fn written(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    humantime::format_rfc3339_millis(UNIX_EPOCH + since.min(TIME_MAX)).to_string()
}

/// The day of a time, as the name of its file has it: `2026-11-30`.
pub(super) fn day(time: SystemTime) -> String {
    let mut day = written(time);
    day.truncate("2026-11-30".len());
    day
}

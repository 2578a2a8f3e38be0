//! Rooms: messages in order, and who is present, on top of any [`Storage`](crate::Storage).
//!
//! A room belongs to an object of some type ("NODE", "WORKSPACE", ...) and has an opaque id. All of it are ordinary entries,
//! so rooms are watched, limited, backed up and governed by access rules as everything else is; `docs/protocol.md`, *Rooms*,
//! is the normative text of their layout.
//!
//! * **One room for each object.** An index row leads from type and object to the id. Whoever opens a room that is not there
//!   makes both in one commit that checks that the row is absent, so two at once make one room.
//! * **The order of messages is that of their commits.** The key of a message ends with the revision of its commit, so a
//!   scan, a watch and a page of the history all have one order, and a revision is the place to go on from.
//! * **A message has an id without an index.** [`MessageId`] is its revision, which leads to its key, and eight random bytes
//!   that its value has too. The latter keep it unique where a store has lost its tail and gives a revision a second time.
//! * **Presence ends by itself.** A key for each user and socket has the lifetime of the session that put it. A user with
//!   several sockets is present once, until the last of them is gone; who is killed is gone when its session has expired.
//! * **Nothing is posted to a room that is removed.** Each post, and each join, checks the revision of the room's record.
//!
//! ```
//! # use storage_protocol::rooms::{Draft, Rooms, RoomKey};
//! # async fn example(storage: &dyn storage_protocol::Storage) -> storage_protocol::Result<()> {
//! let rooms = Rooms::new(storage);
//! let (room, _) = rooms.open_or_create(&RoomKey::new("NODE", "n-1")?, "").await?;
//! rooms.post(&room, &Draft::new("ana", "hello")?).await?;
//! let page = rooms.history(room.id, Default::default()).await?;
//! assert_eq!(page.messages.last().unwrap().text, "hello");
//! # Ok(())
//! # }
//! ```

mod feed;
mod history;
mod keys;
mod library;
mod members;
mod record;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

pub use self::feed::{RoomEvent, RoomFeed};
pub use self::history::{HistoryPage, HistoryWish};
pub use self::keys::{PlaceKind, RoomPlace};
pub use self::library::{Deleted, DeletedBy, Rooms};
pub use self::members::Member;
pub use self::record::{MessageRecord, RecordError, RoomRecord};
use crate::{Outcome, Result, Revision, StorageError, UnixMillis};

/// Where rooms are unless something else is said: keys that begin with this.
pub const PREFIX: &str = "rooms/";
/// The longest prefix, in bytes.
pub const PREFIX_BYTES_MAX: usize = 256;
/// The longest type, in bytes.
pub const TYPE_BYTES_MAX: usize = 32;
/// The longest object, label, user or author, in bytes.
pub const NAME_BYTES_MAX: usize = 1024;
/// The longest name of a socket, in bytes.
pub const SOCKET_BYTES_MAX: usize = 64;
/// The most pairs of [`Draft::info`].
pub const INFO_PAIRS_MAX: usize = 64;
/// The most messages of a page.
pub const PAGE_MESSAGES_MAX: usize = 1_000;
/// A page ends behind the message with which it has so many bytes.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
/// The most presence keys of a room that are looked at.
pub const MEMBERS_MAX: usize = 100_000;

/// The id of a room: 16 random bytes, shown and parsed as 32 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(pub [u8; 16]);

impl RoomId {
    pub(crate) fn random() -> Result<Self> {
        random().map(Self)
    }
}

impl fmt::Display for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoomId({self})")
    }
}

impl FromStr for RoomId {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self> {
        let id = digits(text).map(|value: u128| Self(value.to_be_bytes()));
        id.ok_or_else(|| {
            StorageError::invalid("the id of a room has 32 lowercase hexadecimal digits")
        })
    }
}

/// The id of a message: the revision of its commit and eight random bytes, shown and parsed as 16 lowercase hexadecimal
/// digits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Of its commit: its place among the messages of its room.
    pub revision: Revision,
    /// Tells it from one that another history of the store had at this revision.
    pub nonce: [u8; 8],
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.revision.0)?;
        self.nonce
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for MessageId {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = digits(text).map(|value: u128| {
            let nonce = value & u128::from(u64::MAX);
            Self {
                revision: Revision(u64::try_from(value >> 64).unwrap_or_default()),
                nonce: u64::try_from(nonce).unwrap_or_default().to_be_bytes(),
            }
        });
        parsed.ok_or_else(|| {
            StorageError::invalid("the id of a message has 32 lowercase hexadecimal digits")
        })
    }
}

/// 32 digits, none of them uppercase.
fn digits(text: &str) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_good = text.len() == 32 && text.bytes().all(is_digit);
    is_good.then(|| u128::from_str_radix(text, 16).ok())?
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = getrandom::fill(&mut bytes);
    filled.map_err(|error| StorageError::Internal {
        message: format!("no random bytes: {error}"),
        outcome: Outcome::NotExecuted,
    })?;
    Ok(bytes)
}

/// What a room belongs to, which tells it from all others: a type and an object of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomKey {
    kind: String,
    object: String,
}

impl RoomKey {
    /// Checks both: a type has 1 to [`TYPE_BYTES_MAX`] letters, digits, `_` and `-`; an object at most [`NAME_BYTES_MAX`]
    /// bytes of text without control characters, and may be empty.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the rule that is broken.
    pub fn new(kind: impl Into<String>, object: impl Into<String>) -> Result<Self> {
        let (kind, object) = (kind.into(), object.into());
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if kind.is_empty() || kind.len() > TYPE_BYTES_MAX || !kind.bytes().all(is_word) {
            return Err(StorageError::invalid(format!(
                "the type of a room has 1 to {TYPE_BYTES_MAX} letters, digits, '_' and '-'"
            )));
        }
        check_name("the object of a room", &object, 0)?;
        Ok(Self { kind, object })
    }

    /// The type.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The object of that type.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }
}

/// Control characters would part names from what stands beside them in a key.
fn check_name(what: &str, name: &str, bytes_min: usize) -> Result<()> {
    check_bytes(what, name, bytes_min, NAME_BYTES_MAX)
}

fn check_bytes(what: &str, name: &str, bytes_min: usize, bytes_max: usize) -> Result<()> {
    if !(bytes_min..=bytes_max).contains(&name.len()) {
        return Err(StorageError::invalid(format!(
            "{what} has {bytes_min} to {bytes_max} bytes, this has {}",
            name.len()
        )));
    }
    if name.chars().any(char::is_control) {
        return Err(StorageError::invalid(format!(
            "{what} has no control characters"
        )));
    }
    Ok(())
}

/// A room that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its id.
    pub id: RoomId,
    /// What it belongs to.
    pub key: RoomKey,
    /// What it is called; may be empty.
    pub label: String,
    /// When it was made, by the clock of whoever made it.
    pub created: UnixMillis,
    /// Of the commit that wrote its record: what posts and joins check.
    pub revision: Revision,
}

/// A message that is to be posted. It has the random part of its id, so a draft that is posted twice can be told as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The random part of its id.
    pub nonce: [u8; 8],
    /// Who says it: at most [`NAME_BYTES_MAX`] bytes, without control characters.
    pub author: String,
    /// When, by the clock of whoever posts it.
    pub time: UnixMillis,
    /// What is said.
    pub text: String,
    /// Whatever else belongs to it, by name: at most [`INFO_PAIRS_MAX`] pairs.
    pub info: BTreeMap<String, String>,
}

impl Draft {
    /// A message of this author, now.
    ///
    /// # Errors
    /// `InvalidArgument` for an author without a name, or with a bad one; `Internal` where the system has no random bytes.
    pub fn new(author: impl Into<String>, text: impl Into<String>) -> Result<Self> {
        let author = author.into();
        check_name("the author of a message", &author, 1)?;
        Ok(Self {
            nonce: random()?,
            author,
            time: UnixMillis::now(),
            text: text.into(),
            info: BTreeMap::new(),
        })
    }

    /// The message that it is once the commit with this revision is done.
    #[must_use]
    pub fn posted(&self, revision: Revision) -> Message {
        Message {
            id: MessageId {
                revision,
                nonce: self.nonce,
            },
            author: self.author.clone(),
            time: self.time,
            text: self.text.clone(),
            info: self.info.clone(),
        }
    }
}

/// A message that was posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id, with its place in the order.
    pub id: MessageId,
    /// Who said it.
    pub author: String,
    /// When, by the clock of whoever posted it.
    pub time: UnixMillis,
    /// What was said.
    pub text: String,
    /// Whatever else belongs to it, by name.
    pub info: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_from_their_texts() {
        let room = RoomId([0x0f; 16]);
        assert_eq!(room.to_string(), "0f".repeat(16));
        assert_eq!(room.to_string().parse::<RoomId>().unwrap(), room);
        let message = MessageId {
            revision: Revision(0x1_0000_0007),
            nonce: [0xab; 8],
        };
        assert_eq!(
            message.to_string(),
            format!("0000000100000007{}", "ab".repeat(8))
        );
        assert_eq!(message.to_string().parse::<MessageId>().unwrap(), message);
        for bad in [
            "",
            "0f",
            &"0F".repeat(16),
            &"+f".repeat(16),
            &"0".repeat(33),
        ] {
            assert!(bad.parse::<RoomId>().is_err(), "{bad}");
            assert!(bad.parse::<MessageId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_room_belongs_to_is_checked() {
        assert!(RoomKey::new("NODE", "").is_ok());
        assert!(RoomKey::new("NODE", "a/b c").is_ok());
        for (kind, object) in [
            ("", "a"),
            ("A/B", "a"),
            (&"k".repeat(33), "a"),
            ("A", "a\0b"),
        ] {
            assert!(RoomKey::new(kind, object).is_err(), "{kind:?} {object:?}");
        }
        assert!(RoomKey::new("A", "o".repeat(1025)).is_err());
        assert!(Draft::new("", "text").is_err());
        assert!(Draft::new("a\nb", "text").is_err());
    }
}

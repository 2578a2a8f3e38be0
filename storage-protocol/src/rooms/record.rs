//! The values of rooms: a version, and then what there is to say, in the protocol's varints and length-prefixed bytes.
//!
//! Not JSON: this crate has no reader of it, and another language reads these from ten lines of the protocol's page.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Draft, INFO_PAIRS_MAX, Message, MessageId, Room, RoomId, RoomKey};
use crate::native::{ProtocolError, Reader, Writer};
use crate::{Revision, StorageError, UnixMillis, Value};

/// The version that this writes, and the only one that it reads.
const VERSION: u64 = 1;

/// What the record of a room says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomRecord {
    /// What it belongs to.
    pub key: RoomKey,
    /// What it is called.
    pub label: String,
    /// When it was made.
    pub created: UnixMillis,
    /// It is being removed: nobody may post there or join.
    pub closed: bool,
}

/// What the value of a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRecord(pub Draft);

/// Why a value is no record of a room or a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A newer one.
    #[error("record of a room of version {0}")]
    Version(u64),
    /// Not the fields that it has.
    #[error("value in the place of a room's record: {0}")]
    Malformed(#[from] ProtocolError),
    /// A field that says what none may.
    #[error("value in the place of a room's record: {0}")]
    Field(String),
}

impl From<RecordError> for StorageError {
    fn from(error: RecordError) -> Self {
        Self::Unsupported {
            what: error.to_string(),
        }
    }
}

fn field(error: &StorageError) -> RecordError {
    RecordError::Field(error.to_string())
}

fn check_version(fields: &mut Reader) -> Result<(), RecordError> {
    match fields.number("the record's version")? {
        VERSION => Ok(()),
        version => Err(RecordError::Version(version)),
    }
}

impl RoomRecord {
    /// The value.
    #[must_use]
    pub fn encode(&self) -> Value {
        let mut fields = BytesMut::new();
        fields.number(VERSION);
        fields.number(u64::from(self.closed));
        fields.number(self.created.0);
        for text in [self.key.kind(), self.key.object(), &self.label] {
            fields.length_prefixed(text.as_bytes());
        }
        fields.freeze()
    }

    /// What a value says.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(value: &Bytes) -> Result<Self, RecordError> {
        let mut fields = Reader::new(value.clone());
        check_version(&mut fields)?;
        let closed = match fields.number("whether the room is closed")? {
            0 => false,
            1 => true,
            other => return Err(RecordError::Field(format!("closed is 0 or 1, not {other}"))),
        };
        let created = UnixMillis(fields.number("when the room was made")?);
        let kind = fields.text("the room's type")?;
        let object = fields.text("the room's object")?;
        let label = fields.text("the room's label")?;
        fields.finish()?;
        let key = RoomKey::new(kind, object).map_err(|error| field(&error))?;
        super::check_name("the label of a room", &label, 0).map_err(|error| field(&error))?;
        Ok(Self {
            key,
            label,
            created,
            closed,
        })
    }

    pub(super) fn room(self, id: RoomId, revision: Revision) -> Room {
        Room {
            id,
            key: self.key,
            label: self.label,
            created: self.created,
            revision,
        }
    }
}

impl MessageRecord {
    /// The value.
    #[must_use]
    pub fn encode(&self) -> Value {
        let draft = &self.0;
        let mut fields = BytesMut::with_capacity(draft.text.len() + draft.author.len() + 32);
        fields.number(VERSION);
        fields.put_slice(&draft.nonce);
        fields.number(draft.time.0);
        fields.length_prefixed(draft.author.as_bytes());
        fields.length_prefixed(draft.text.as_bytes());
        fields.number(draft.info.len() as u64);
        for (name, text) in &draft.info {
            fields.length_prefixed(name.as_bytes());
            fields.length_prefixed(text.as_bytes());
        }
        fields.freeze()
    }

    /// What a value says.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(value: &Bytes) -> Result<Self, RecordError> {
        let mut fields = Reader::new(value.clone());
        check_version(&mut fields)?;
        let nonce = fields.array("the message's nonce")?;
        let time = UnixMillis(fields.number("the message's time")?);
        let author = fields.text("the message's author")?;
        let text = fields.text("the message's text")?;
        let pairs = fields.count(2, "the message's info")?;
        if pairs > INFO_PAIRS_MAX {
            let why = format!("info has at most {INFO_PAIRS_MAX} pairs, this has {pairs}");
            return Err(RecordError::Field(why));
        }
        let mut info = BTreeMap::new();
        for _ in 0..pairs {
            let name = fields.text("a name in the message's info")?;
            let text = fields.text("a text in the message's info")?;
            // In their order and each once, so that there is one value for each message.
            if info.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(RecordError::Field("info is not in order".to_owned()));
            }
            info.insert(name, text);
        }
        fields.finish()?;
        super::check_name("the author of a message", &author, 1).map_err(|error| field(&error))?;
        Ok(Self(Draft {
            nonce,
            author,
            time,
            text,
            info,
        }))
    }

    pub(super) fn message(self, revision: Revision) -> Message {
        let Draft {
            nonce,
            author,
            time,
            text,
            info,
        } = self.0;
        Message {
            id: MessageId { revision, nonce },
            author,
            time,
            text,
            info,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn room() -> RoomRecord {
        RoomRecord {
            key: RoomKey::new("NODE", "n-1").unwrap(),
            label: "plans".to_owned(),
            created: UnixMillis(1_714_800_000_000),
            closed: false,
        }
    }

    #[test]
    fn what_is_no_record_is_told() {
        let value = room().encode();
        assert_eq!(RoomRecord::decode(&value).unwrap(), room());
        for cut in 0..value.len() {
            assert!(RoomRecord::decode(&value.slice(..cut)).is_err(), "{cut}");
        }
        let mut newer = value.to_vec();
        newer.splice(0..1, [2]);
        assert_eq!(
            RoomRecord::decode(&newer.into()),
            Err(RecordError::Version(2))
        );
        let longer = Bytes::from([&value[..], b"x"].concat());
        assert!(RoomRecord::decode(&longer).is_err());
        assert!(MessageRecord::decode(&value).is_err());
    }

    proptest! {
        #[test]
        fn messages_come_back(
            nonce: [u8; 8], time: u64, author in "[a-z]{1,9}", text in ".{0,60}",
            info in prop::collection::btree_map(".{0,5}", ".{0,9}", 0..4),
        ) {
            let record = MessageRecord(Draft { nonce, author, time: UnixMillis(time), text, info });
            prop_assert_eq!(MessageRecord::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn whatever_is_taken_is_written_the_same(rest in prop::collection::vec(any::<u8>(), 0..80)) {
            let value = Bytes::from([&[1u8][..], &rest].concat());
            if let Ok(record) = RoomRecord::decode(&value) {
                prop_assert_eq!(record.encode(), value.clone());
            }
            if let Ok(record) = MessageRecord::decode(&value) {
                prop_assert_eq!(record.encode(), value);
            }
        }
    }
}

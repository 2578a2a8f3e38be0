//! The keys of rooms.

use super::{NAME_BYTES_MAX, RoomId, RoomKey, SOCKET_BYTES_MAX};
use crate::{Key, KeyRange, Revision};

/// Stands in the place of an id before the index rows. No id is so short.
const INDEX: &[u8] = b"-/";
/// Behind an id: its record, its messages, who is present.
const RECORD: &[u8] = b"/room";
const MESSAGES: &[u8] = b"/m/";
const PRESENCE: &[u8] = b"/p/";
/// Between user and socket: no name has it.
const DIVIDER: u8 = 0;
const ID_DIGITS: usize = 32;

/// What a key of a room is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomPlace {
    /// The room.
    pub room: RoomId,
    /// What of it.
    pub kind: PlaceKind,
}

/// See [`RoomPlace`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceKind {
    /// Its record.
    Record,
    /// The message of the commit with this revision.
    Message(Revision),
    /// A socket of a user who is present.
    Presence {
        /// The user.
        user: String,
        /// The socket.
        socket: String,
    },
}

/// The keys below a prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: Key,
}

impl Keys {
    pub(super) fn new(prefix: Key) -> Self {
        Self { prefix }
    }

    pub(super) fn index(&self, key: &RoomKey) -> Key {
        let (kind, object) = (key.kind().as_bytes(), key.object().as_bytes());
        [&self.prefix[..], INDEX, kind, b"/", object]
            .concat()
            .into()
    }

    pub(super) fn index_range(&self) -> KeyRange {
        KeyRange::prefix([&self.prefix[..], INDEX].concat())
    }

    pub(super) fn parse_index(&self, key: &[u8]) -> Option<RoomKey> {
        let rest = key.strip_prefix(&self.prefix[..])?.strip_prefix(INDEX)?;
        let (kind, object) = std::str::from_utf8(rest).ok()?.split_once('/')?;
        RoomKey::new(kind, object).ok()
    }

    fn of(&self, room: RoomId, rest: &[u8]) -> Vec<u8> {
        [&self.prefix[..], room.to_string().as_bytes(), rest].concat()
    }

    pub(super) fn record(&self, room: RoomId) -> Key {
        self.of(room, RECORD).into()
    }

    /// What a stamped put of a message begins with.
    pub(super) fn messages(&self, room: RoomId) -> Key {
        self.of(room, MESSAGES).into()
    }

    pub(super) fn message(&self, room: RoomId, revision: Revision) -> Key {
        let mut key = self.of(room, MESSAGES);
        key.extend_from_slice(&revision.0.to_be_bytes());
        key.into()
    }

    pub(super) fn presence(&self, room: RoomId, user: &str, socket: &str) -> Key {
        let mut key = self.of(room, PRESENCE);
        key.extend_from_slice(user.as_bytes());
        key.push(DIVIDER);
        key.extend_from_slice(socket.as_bytes());
        key.into()
    }

    pub(super) fn presence_range(&self, room: RoomId) -> KeyRange {
        KeyRange::prefix(self.of(room, PRESENCE))
    }

    /// All messages before this revision; `None`: all.
    pub(super) fn messages_before(&self, room: RoomId, before: Option<Revision>) -> KeyRange {
        let all = KeyRange::prefix(self.messages(room));
        match before {
            None => all,
            Some(before) => KeyRange::between(all.start, self.message(room, before)),
        }
    }

    /// All messages behind this revision.
    pub(super) fn messages_after(&self, room: RoomId, after: Revision) -> KeyRange {
        let all = KeyRange::prefix(self.messages(room));
        KeyRange {
            start: self.message(room, Revision(after.0.saturating_add(1))),
            end: all.end,
        }
    }

    /// All that belongs to a room but its index row.
    pub(super) fn room_range(&self, room: RoomId) -> KeyRange {
        KeyRange::prefix(self.of(room, b"/"))
    }

    pub(super) fn parse(&self, key: &[u8]) -> Option<RoomPlace> {
        let rest = key.strip_prefix(&self.prefix[..])?;
        let (id, rest) = rest.split_at_checked(ID_DIGITS)?;
        let room = std::str::from_utf8(id).ok()?.parse().ok()?;
        let kind = if rest == RECORD {
            PlaceKind::Record
        } else if let Some(revision) = rest.strip_prefix(MESSAGES) {
            PlaceKind::Message(Revision(u64::from_be_bytes(revision.try_into().ok()?)))
        } else {
            let (user, socket) = parse_member(rest.strip_prefix(PRESENCE)?)?;
            PlaceKind::Presence { user, socket }
        };
        Some(RoomPlace { room, kind })
    }
}

fn parse_member(rest: &[u8]) -> Option<(String, String)> {
    let at = rest.iter().position(|byte| *byte == DIVIDER)?;
    let (user, socket) = rest.split_at_checked(at)?;
    let socket = socket.get(1..)?;
    let is_good = (1..=NAME_BYTES_MAX).contains(&user.len())
        && (1..=SOCKET_BYTES_MAX).contains(&socket.len())
        && !socket.contains(&DIVIDER);
    let text = |bytes: &[u8]| Some(std::str::from_utf8(bytes).ok()?.to_owned());
    is_good.then(|| Some((text(user)?, text(socket)?)))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> Keys {
        Keys::new(Key::from("rooms/"))
    }

    #[test]
    fn keys_are_what_the_protocol_says() {
        let room = RoomId([0xab; 16]);
        let id = "ab".repeat(16);
        let (keys, text) = (keys(), |key: Key| key.escape_ascii().to_string());
        let node = RoomKey::new("NODE", "a/b").unwrap();
        assert_eq!(text(keys.index(&node)), "rooms/-/NODE/a/b");
        assert_eq!(text(keys.record(room)), format!("rooms/{id}/room"));
        assert_eq!(
            text(keys.message(room, Revision(258))),
            format!("rooms/{id}/m/\\x00\\x00\\x00\\x00\\x00\\x00\\x01\\x02")
        );
        assert_eq!(
            text(keys.presence(room, "ana", "1")),
            format!("rooms/{id}/p/ana\\x001")
        );
        assert_eq!(keys.parse_index(b"rooms/-/NODE/a/b"), Some(node));
        assert_eq!(keys.parse(b"rooms/-/NODE/a/b"), None);
        assert_eq!(keys.parse_index(&keys.record(room)), None);
    }

    #[test]
    fn ranges_hold_what_they_are_for() {
        let (keys, room) = (keys(), RoomId([1; 16]));
        let at = |revision| keys.message(room, Revision(revision));
        assert!(keys.messages_before(room, None).contains(&at(u64::MAX)));
        assert!(
            !keys
                .messages_before(room, Some(Revision(7)))
                .contains(&at(7))
        );
        assert!(
            keys.messages_before(room, Some(Revision(7)))
                .contains(&at(6))
        );
        assert!(!keys.messages_after(room, Revision(7)).contains(&at(7)));
        assert!(keys.messages_after(room, Revision(7)).contains(&at(8)));
        for key in [at(1), keys.record(room), keys.presence(room, "u", "s")] {
            assert!(keys.room_range(room).contains(&key));
            assert!(!keys.room_range(RoomId([2; 16])).contains(&key));
        }
    }

    proptest! {
        #[test]
        fn any_key_is_parsed_as_what_it_would_be_written_as(rest in prop::collection::vec(any::<u8>(), 0..60), id: [u8; 16]) {
            let (keys, room) = (keys(), RoomId(id));
            for middle in [&b"/room"[..], b"/m/", b"/p/", b""] {
                let key = keys.of(room, &[middle, &rest[..]].concat());
                let Some(place) = keys.parse(&key) else { continue };
                let again = match place.kind {
                    PlaceKind::Record => keys.record(place.room),
                    PlaceKind::Message(revision) => keys.message(place.room, revision),
                    PlaceKind::Presence { user, socket } => keys.presence(place.room, &user, &socket),
                };
                prop_assert_eq!(&again[..], &key[..]);
            }
        }
    }
}

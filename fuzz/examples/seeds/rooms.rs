//! Seeds of the target `rooms`: records of a room and of a message.

use storage_protocol::UnixMillis;
use storage_protocol::rooms::{Draft, MessageRecord, RoomKey, RoomRecord};

use crate::Seeds;

pub(crate) fn write(seeds: &Seeds) {
    let rooms = |name: &str, bytes: &[u8]| seeds.write("rooms", name, bytes);
    let room = RoomRecord {
        key: RoomKey::new("NODE", "n-1").expect("a good key"),
        label: "plans".to_owned(),
        created: UnixMillis(1_714_800_000_123),
        closed: false,
    };
    let closed = RoomRecord {
        closed: true,
        ..room.clone()
    };
    let info = [("a", "1"), ("b", "2")].map(|(name, text)| (name.to_owned(), text.to_owned()));
    let message = MessageRecord(Draft {
        nonce: [0xab; 8],
        author: "ana".to_owned(),
        time: UnixMillis(1_714_800_003_123),
        text: "hi".to_owned(),
        info: info.into(),
    });
    rooms("room", &room.encode());
    rooms("closed", &closed.encode());
    rooms("message", &message.encode());
    rooms("without-version", &message.encode()[1..]);
}

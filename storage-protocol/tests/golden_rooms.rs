//! Keys and values of rooms, byte for byte, against `golden/rooms.jsonl` and `docs/protocol.md`: what is stored by one client is
//! read by others, of other ages and in other languages.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use storage_protocol::UnixMillis;
use storage_protocol::rooms::{Draft, MessageRecord, RoomKey, RoomRecord};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    record: String,
    room: Option<Room>,
    message: Option<Message>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Room {
    closed: bool,
    created: u64,
    r#type: String,
    object: String,
    label: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    nonce: String,
    time: u64,
    author: String,
    text: String,
    info: BTreeMap<String, String>,
}

fn read(path: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(folder.join(path)).expect("a file of this repository")
}

fn lines() -> Vec<Line> {
    let golden = read("tests/golden/rooms.jsonl");
    let lines = golden
        .lines()
        .map(|line| serde_json::from_str(line).expect("a golden line"));
    lines.collect()
}

#[test]
fn records_are_the_golden_ones() {
    let lines = lines();
    assert!(lines.len() >= 4);
    for line in lines {
        let value = hex::decode(&line.record).unwrap().into();
        match (line.room, line.message) {
            (Some(room), None) => {
                let record = RoomRecord {
                    key: RoomKey::new(room.r#type, room.object).unwrap(),
                    label: room.label,
                    created: UnixMillis(room.created),
                    closed: room.closed,
                };
                assert_eq!(hex::encode(record.encode()), line.record);
                assert_eq!(RoomRecord::decode(&value), Ok(record));
            }
            (None, Some(message)) => {
                let record = MessageRecord(Draft {
                    nonce: hex::decode(message.nonce).unwrap().try_into().unwrap(),
                    author: message.author,
                    time: UnixMillis(message.time),
                    text: message.text,
                    info: message.info,
                });
                assert_eq!(hex::encode(record.encode()), line.record);
                assert_eq!(MessageRecord::decode(&value), Ok(record));
            }
            _ => panic!("a room or a message"),
        }
    }
}

#[test]
fn the_document_shows_the_golden_records() {
    let document: String = read("../docs/protocol.md").split_whitespace().collect();
    let lines = lines();
    for line in [&lines[0], &lines[2]] {
        assert!(document.contains(&line.record), "{}", line.record);
    }
}

//! Manifests of objects, byte for byte, against `golden/objects.jsonl` and `docs/protocol.md`: data that is stored by one
//! client is read by others, of other ages and in other languages.

use std::path::PathBuf;

use serde::Deserialize;
use storage_protocol::objects::{Manifest, ObjectId};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    manifest: String,
    id: String,
    size: u64,
    part_size: u64,
    parts: u32,
}

fn read(path: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(folder.join(path)).expect("a file of this repository")
}

#[test]
fn the_manifest_is_the_golden_one() {
    let golden = read("tests/golden/objects.jsonl");
    assert!(golden.lines().count() >= 2);
    for line in golden.lines() {
        let line: Line = serde_json::from_str(line).unwrap();
        let manifest = Manifest {
            id: ObjectId(hex::decode(&line.id).unwrap().try_into().unwrap()),
            size: line.size,
            part_bytes: line.part_size,
        };
        assert_eq!(hex::encode(manifest.encode()), line.manifest);
        assert_eq!(manifest.parts(), line.parts);
        let value = hex::decode(&line.manifest).unwrap();
        assert_eq!(Manifest::decode(&value), Ok(Some(manifest)));
    }
}

#[test]
fn the_document_shows_the_golden_manifest() {
    let golden = read("tests/golden/objects.jsonl");
    let first: Line = serde_json::from_str(golden.lines().next().unwrap()).unwrap();
    let document = read("../docs/protocol.md");
    let digits: String = document.split_whitespace().collect();
    assert!(digits.contains(&first.manifest));
}

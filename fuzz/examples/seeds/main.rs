//! Writes `seeds/TARGET/NAME`, so that fuzzing begins where the formats are: those of both wire dialects from the golden
//! vectors, the others from texts here. Run in this folder after either changed: `cargo run --example seeds`.
//!
//! Nothing in `seeds/` is written by hand. The tests of `storage-server` run the seeds of its targets, and tell of those
//! that are not what their names say any more.

mod access;
mod gateways;
mod http;
mod jobs;
mod objects;
mod rooms;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    name: String,
    direction: String,
    hex: String,
}

/// Frames longer than this teach a fuzzer little.
const FRAME_BYTES_MAX: usize = 400;

/// The folder of all of them.
struct Seeds(PathBuf);

impl Seeds {
    fn write(&self, target: &str, name: &str, bytes: &[u8]) {
        let folder = self.0.join(target);
        fs::create_dir_all(&folder).expect("make the folder of the seeds");
        fs::write(folder.join(name), bytes).expect("write a seed");
    }
}

fn main() {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let seeds = fuzz.join("seeds");
    if seeds.exists() {
        fs::remove_dir_all(&seeds).expect("remove the old seeds");
    }
    let seeds = Seeds(seeds);
    let write = |target: &str, name: &str, bytes: &[u8]| {
        if bytes.len() <= FRAME_BYTES_MAX {
            seeds.write(target, name, bytes);
        }
    };
    let native = read(&fuzz, "native.jsonl");
    let mwdb = read(&fuzz, "frames.jsonl");
    access::write(&seeds);
    gateways::write(&seeds);
    jobs::write(&seeds);
    objects::write(&seeds);
    rooms::write(&seeds);
    http::write(&seeds, &native, &mwdb);
    for golden in &native {
        let name = golden.name.replace('/', "-");
        let frame = hex::decode(&golden.hex).expect("hex");
        // Opcode 0 of native_frames: a frame behind its length.
        if let Ok(length) = u8::try_from(frame.len()) {
            let step = [&[0, length], &frame[..]].concat();
            write("native_frames", &name, &step);
        }
        match golden.direction.as_str() {
            "client" => write("native_client", &name, &frame),
            "server" => write("native_server", &name, &frame),
            _ => {
                write("native_client", &name, &frame);
                write("native_server", &name, &frame);
            }
        }
        if name.starts_with("commit-") {
            let cut = frame.iter().rposition(|byte| *byte == b'#');
            write("batch_validate", &name, &frame[..cut.expect("a frame")]);
        }
    }
    for golden in &mwdb {
        let message = hex::decode(&golden.hex).expect("hex");
        match golden.direction.as_str() {
            "request" => write("mwdb_request", &golden.name, &message),
            // The first byte is the number of keys asked for.
            _ => write("mwdb_answer", &golden.name, &[&[4], &message[..]].concat()),
        }
    }
    for (place, text) in [
        "A",
        "B",
        "D",
        "+",
        "BA",
        "HoSA",
        "D////+",
        "8AAAAB",
        "////////9",
        "////////+",
        "A=A",
    ]
    .into_iter()
    .enumerate()
    {
        write("number", &place.to_string(), text.as_bytes());
    }
    for (place, text) in [
        "a",
        "mwdb.prefixes",
        "a-b_c.d",
        "0000000000000abc:77",
        "0123456789abcdef:18446744073709551615",
    ]
    .into_iter()
    .enumerate()
    {
        write("texts", &place.to_string(), text.as_bytes());
    }
}

fn read(fuzz: &Path, file: &str) -> Vec<Golden> {
    let path = fuzz.join("../storage-protocol/tests/golden").join(file);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a golden line"))
        .collect()
}

//! Files of any size: put, get, rm, scan, export and sweep of objects.

use storage_protocol::objects::PART_BYTES;

use crate::fake::Server;
use crate::run::with_stdin;

fn content(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n ^ (n >> 8) ^ (n >> 16)).to_le_bytes()[0])
        .collect()
}

#[test]
fn a_large_file_goes_and_comes_as_an_object() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let (file, got) = (folder.path().join("file"), folder.path().join("got"));
    // All parts are of one length: a shorter one would overtake those before it, and this server executes what it has.
    for len in [PART_BYTES, 2 * PART_BYTES, 5 * PART_BYTES] {
        let bytes = content(len);
        std::fs::write(&file, &bytes).unwrap();
        let at_file = format!("@{}", file.display());
        let ran = server.run(&["put", "big", &at_file]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(ran.out.contains(':'), "a position");
        let out = got.display().to_string();
        let ran = server.run(&["get", "big", "--out", &out]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(std::fs::read(&got).unwrap() == bytes, "{len} bytes");
        let keys = server.run(&["scan", "--keys-only", "--parts"]).out;
        let parts = if len > PART_BYTES {
            len.div_ceil(PART_BYTES)
        } else {
            0
        };
        assert_eq!(keys.lines().count(), 1 + parts);
        let shown = server.run(&["scan", "--keys-only"]);
        assert_eq!(shown.out, "big\n");
        assert_eq!(shown.err.contains("not shown"), parts > 0);
    }
    let piped = with_stdin(
        server.command(&["put", "big", "-"]),
        &content(3 * PART_BYTES),
    );
    assert_eq!(piped.code, 0, "{}", piped.err);
    let keys = server.run(&["scan", "--keys-only", "--parts"]).out;
    assert_eq!(keys.lines().count(), 4, "nothing of the ones before");
    assert_eq!(server.run(&["rm", "big"]).code, 0);
    assert_eq!(server.run(&["scan", "--parts"]).out, "");
}

#[test]
fn get_of_an_object_is_for_one_key_and_bytes() {
    let server = Server::start();
    let command = server.command(&["put", "big", "-"]);
    assert_eq!(with_stdin(command, &content(2 * PART_BYTES)).code, 0);
    server.run(&["put", "small", "x"]);
    for arguments in [
        &["get", "big", "small"][..],
        &["--json", "get", "big"],
        &["--hex", "get", "626967"],
    ] {
        let ran = server.run(arguments);
        assert_eq!(ran.code, 2);
        assert!(
            ran.err.contains("an object of 2097152 bytes"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn a_plain_put_over_an_object_takes_its_parts() {
    let server = Server::start();
    for after in [&["put", "big", "plain"][..], &["rm", "big"]] {
        let command = server.command(&["put", "big", "-"]);
        assert_eq!(with_stdin(command, &content(2 * PART_BYTES)).code, 0);
        assert_eq!(server.run(after).code, 0);
        let keys = server.run(&["scan", "--keys-only", "--parts"]).out;
        assert!(keys.lines().count() <= 1, "{keys}");
    }
    let ran = server.run(&["--json", "sweep"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "{\"parts\":0,\"objects\":0}\n")
    );
}

#[test]
fn a_value_with_an_end_is_no_object() {
    let server = Server::start();
    let command = server.command(&["put", "big", "-", "--ttl", "1h"]);
    assert_eq!(with_stdin(command, &content(2 * PART_BYTES)).code, 0);
    let keys = server.run(&["scan", "--keys-only", "--parts"]).out;
    assert_eq!(keys, "big\n");
}

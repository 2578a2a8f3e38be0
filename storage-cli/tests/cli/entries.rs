//! Commands on single entries and on ranges: put, get, rm, scan, commit, digest, ping.

use std::io::Read;
use std::process::Stdio;

use crate::fake::{Fault, Server};
use crate::run::{self, with_stdin};
use storage_protocol::{EntryLifetime, StorageError, UnixMillis};

const POSITION: &str = "000000000000000e:101\n";

#[test]
fn put_prints_the_position_and_get_the_value() {
    let server = Server::start();
    let ran = server.run(&["put", "greeting", "hällo"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, POSITION, "")
    );
    let ran = server.run(&["get", "greeting"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "hällo\n", "")
    );
    let exact = server.run(&["get", "greeting", "--no-newline"]);
    assert_eq!(exact.out, "hällo");
    let json = server.run(&["--json", "put", "greeting", "-5"]);
    assert_eq!(
        json.out,
        "{\"epoch\":\"000000000000000e\",\"revision\":102}\n"
    );
    let json = server.run(&["get", "greeting", "--json"]);
    assert_eq!(
        json.out,
        "{\"key\":\"greeting\",\"value\":\"-5\",\"revision\":102}\n"
    );
    server.run(&["put", "short", "1", "--ttl", "1s 500ms"]);
    let json = server.run(&["get", "short", "--json"]);
    assert!(
        json.out.contains("\"expires_ms\":1700000001500}"),
        "{}",
        json.out
    );
}

#[test]
fn values_come_from_files_stdin_and_hex() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("value");
    std::fs::write(&file, "from a file\n").unwrap();
    let at_file = format!("@{}", file.display());
    assert_eq!(server.run(&["put", "a", &at_file]).code, 0);
    assert_eq!(
        with_stdin(server.command(&["put", "b", "-"]), b"piped").code,
        0
    );
    assert_eq!(server.run(&["put", "c", "@@x"]).code, 0);
    assert_eq!(server.run(&["--hex", "put", "64", "00FF"]).code, 0);
    let scan = server.run(&["scan"]);
    assert_eq!(
        scan.out,
        "a\tfrom a file\\n\nb\tpiped\nc\t@x\nd\t\\x00\\xff\n"
    );
    let hex = server.run(&["scan", "--hex", "--from", "63"]);
    assert_eq!(hex.out, "63\t4078\n64\t00ff\n");
    let json = server.run(&["get", "d", "--json"]);
    assert_eq!(
        json.out,
        "{\"key\":\"d\",\"value_b64\":\"AP8=\",\"revision\":104}\n"
    );
    let twice = with_stdin(server.command(&["put", "-", "-"]), b"x");
    assert_eq!(twice.code, 2);
    assert!(
        twice.err.contains("VALUE: - (stdin) can stand only once"),
        "{twice:?}"
    );
}

#[test]
fn a_missing_key_is_told_and_the_others_are_printed() {
    let server = Server::with(&[("a", "1"), ("c", "3")]);
    let ran = server.run(&["get", "a", "b", "c"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (1, "a\t1\nc\t3\n", "not found: b\n")
    );
    let ran = server.run(&["get", "b"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
}

#[test]
fn rm_removes_all_keys_in_one_commit() {
    let server = Server::with(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let ran = server.run(&["rm", "a", "c", "absent"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "000000000000000e:102\n"));
    assert_eq!(server.entries(), [("b".to_owned(), "2".to_owned())]);
    let twice = server.run(&["rm", "a", "a"]);
    assert_eq!(twice.code, 2);
    assert!(
        twice.err.contains("stands twice") && !twice.err.contains("outcome:"),
        "{twice:?}"
    );
}

#[test]
fn scans_take_ranges_limits_and_directions() {
    let server = Server::with(&[
        ("a", "1"),
        ("b/1", "2"),
        ("b/2", "3"),
        ("b/3", "4"),
        ("b/4", "5"),
        ("c", "6"),
    ]);
    let scan = |arguments: &[&str]| {
        let ran = server.run(&[&["scan"], arguments].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        ran.out
    };
    assert_eq!(
        scan(&["--prefix", "b/", "--keys-only"]),
        "b/1\nb/2\nb/3\nb/4\n"
    );
    assert_eq!(scan(&["--from", "b/4", "--to", "c"]), "b/4\t5\n");
    assert_eq!(scan(&["--from", "b/4"]), "b/4\t5\nc\t6\n");
    assert_eq!(scan(&["--reverse", "--limit", "2"]), "c\t6\nb/4\t5\n");
    assert_eq!(
        scan(&["--to", "b", "--json"]),
        "{\"key\":\"a\",\"value\":\"1\",\"revision\":101}\n"
    );
    assert_eq!(
        scan(&["--to", "b", "--json", "--keys-only"]),
        "{\"key\":\"a\",\"revision\":101}\n"
    );
    assert_eq!(scan(&["--prefix", "z"]), "");
    let both = server.run(&["scan", "--prefix", "a", "--from", "b"]);
    assert_eq!(both.code, 2);
}

#[test]
fn commit_is_atomic_and_a_failed_check_refuses_it() {
    let server = Server::with(&[("a", "1")]);
    let file = "{\"check\":{\"key\":\"a\",\"revision\":101}}\n{\"check\":{\"key\":\"b\",\"revision\":null}}\n\
                {\"put\":{\"key\":\"b\",\"value_b64\":\"AP8=\"}}\n{\"remove\":{\"key\":\"a\"}}\n";
    let ran = with_stdin(server.command(&["commit", "--file", "-"]), file.as_bytes());
    assert_eq!((ran.code, ran.out.as_str()), (0, "000000000000000e:102\n"));
    let ran = with_stdin(server.command(&["commit", "--file", "-"]), file.as_bytes());
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(
        ran.err.contains("check failed: key \"a\" is absent"),
        "{ran:?}"
    );
    assert!(ran.err.contains("outcome: refused"), "{ran:?}");
    assert_eq!(server.run(&["--hex", "get", "62"]).out, "00ff\n");
    let bad = with_stdin(
        server.command(&["commit", "--file", "-"]),
        b"\n{\"put\":{\"key\":\"a\"}}",
    );
    assert_eq!(bad.code, 2);
    assert!(bad.err.contains("-:2: neither \"value\""), "{bad:?}");
    assert_eq!(server.revision(), 102);
}

#[test]
fn a_digest_is_over_the_entries_only() {
    // printf '\0\0\0\0\0\0\0\1a\0\0\0\0\0\0\0\0011\0\0\0\0\0\0\0\2bc\0\0\0\0\0\0\0\0' | sha256sum
    let hash = "77b8430865f5a10949e87e246f0e0b05a1d4ab263c415369eda4588dfd43c7a4";
    let server = Server::with(&[("bc", ""), ("a", "1")]);
    let ran = server.run(&["digest"]);
    assert_eq!(
        (ran.code, ran.out, ran.err.as_str()),
        (0, format!("{hash} 101 2\n"), "")
    );
    server.run(&["put", "other", "x"]);
    server.run(&["rm", "other"]);
    server.run(&["put", "a", "1"]);
    assert_eq!(server.run(&["digest"]).out, format!("{hash} 104 2\n"));
    let json = format!(
        "{{\"sha256\":\"{hash}\",\"epoch\":\"000000000000000e\",\"revision\":104,\"count\":2}}\n"
    );
    assert_eq!(server.run(&["digest", "--json"]).out, json);
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(
        server.run(&["digest", "--prefix", "z"]).out,
        format!("{nothing} 104 0\n")
    );
}

#[test]
fn ping_prints_each_time_and_a_summary() {
    let server = Server::start();
    let ran = server.run(&["ping", "--count", "3"]);
    let lines = ran.lines();
    assert_eq!(lines.len(), 4);
    assert!(
        lines[0].starts_with("1: ") && lines[0].ends_with(" ms"),
        "{ran:?}"
    );
    assert!(lines[3].starts_with("min/avg/max "), "{ran:?}");
    let ran = server.run(&["ping", "--count", "1", "--json"]);
    let lines = ran.lines();
    assert!(lines[0].starts_with("{\"ping\":1,\"ms\":"), "{ran:?}");
    assert!(lines[1].starts_with("{\"count\":1,\"min_ms\":"), "{ran:?}");
}

#[test]
fn completions_and_help_need_no_server() {
    let ran = run::storage(&["completions", "bash"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("_storage()"));
    for command in [
        "put",
        "get",
        "rm",
        "scan",
        "commit",
        "import",
        "export",
        "watch",
        "digest",
        "ping",
        "completions",
    ] {
        let help = run::storage(&[command, "--help"]);
        assert_eq!(help.code, 0);
        assert!(help.out.contains("Examples:"), "{command}");
        assert!(
            help.out.contains(&format!("storage {command}")) || command == "commit",
            "{command}"
        );
    }
    assert!(run::storage(&["--help"]).out.contains("Exit codes:"));
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let server = Server::start();
    for n in 0..60 {
        let key = format!("{n:02}");
        let value = "x".repeat(10_000);
        server.insert(
            key.leak().as_bytes(),
            value.leak().as_bytes(),
            EntryLifetime::Forever,
        );
    }
    let mut child = server
        .command(&["scan"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 2];
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut first).unwrap();
    drop(pipe);
    assert_eq!(&first, b"00");
    let ran = run::finish(child);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn an_entry_shows_its_lifetime() {
    let server = Server::start();
    server.insert(b"a", b"1", EntryLifetime::Until(UnixMillis(5)));
    server.insert(b"b", b"2", EntryLifetime::Session);
    let expected = "{\"key\":\"a\",\"value\":\"1\",\"revision\":100,\"expires_ms\":5}\n\
                    {\"key\":\"b\",\"value\":\"2\",\"revision\":100,\"session\":true}\n";
    assert_eq!(server.run(&["scan", "--json"]).out, expected);
}

#[test]
fn what_the_server_refuses_keeps_its_words_and_its_code() {
    let server = Server::start();
    let full = StorageError::StorageFull {
        available: 1,
        reserve: 2,
    };
    for (error, code, words, outcome) in [
        (
            full,
            3,
            "storage full: 1 bytes are free",
            "outcome: not executed",
        ),
        (
            StorageError::AccessDenied {
                message: "read only".into(),
            },
            3,
            "access denied: read only",
            "outcome: not executed",
        ),
        (
            StorageError::invalid("no"),
            2,
            "error: no",
            // It would be refused again.
            "no\n",
        ),
    ] {
        server.fault(Fault::Error(error));
        let ran = server.run(&["put", "a", "1"]);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""));
        assert!(
            ran.err.contains(words) && ran.err.contains(outcome),
            "{ran:?}"
        );
    }
}

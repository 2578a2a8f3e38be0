//! What reaches a terminal: escaped, unambiguous, and never what disturbs it; and what is told about outages.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::io::Errno;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use storage_protocol::{EntryLifetime, StorageError};

use crate::fake::{Fault, Server, Whim};
use crate::run::{self, with_stdin};

/// Lines of `commit`.
fn commit(server: &Server, lines: &str) {
    let ran = with_stdin(server.command(&["commit", "--file", "-"]), lines.as_bytes());
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn different_keys_and_values_are_different_lines() {
    let server = Server::start();
    for key in [
        &b"a\x00"[..],
        b"a\\x00",
        b"b\tc",
        b"b\\tc",
        b"d\xff",
        b"d\\xff",
        "e\u{202e}\u{2066}\u{200b}".as_bytes(),
    ] {
        server.insert(key, b"v", EntryLifetime::Forever);
    }
    let scan = server.run(&["scan", "--keys-only"]);
    let expected = [
        "a\\x00",
        "a\\\\x00",
        "b\\tc",
        "b\\\\tc",
        "d\\\\xff",
        "d\\xff",
        "e\\u{202e}\\u{2066}\\u{200b}",
    ];
    assert_eq!(scan.lines(), expected);
}

#[test]
fn a_watched_commit_cannot_pose_as_another() {
    let server = Server::start();
    commit(
        &server,
        "{\"put\":{\"key\":\"k\",\"value\":\"1 remove other\"}}",
    );
    commit(
        &server,
        "{\"put\":{\"key\":\"k\",\"value\":\"1\"}}\n{\"remove\":{\"key\":\"other\"}}",
    );
    commit(&server, "{\"put\":{\"key\":\"k=1\",\"value\":\"\"}}");
    commit(
        &server,
        "{\"put\":{\"key\":\"k\",\"value\":\"{\\\"n\\\":1}\"}}",
    );
    let ran = server.run(&["watch", "--beginning", "--count", "4"]);
    assert_eq!(
        ran.lines(),
        [
            "101 put k=\"1 remove other\"",
            "102 put k=1",
            "103 put \"k=1\"=\"\"",
            "104 put k={\"n\":1}"
        ]
    );
}

#[test]
fn json_escapes_what_a_terminal_would_act_on() {
    let server = Server::start();
    server.insert(
        "k\u{202e}".as_bytes(),
        "\u{9b}31m\u{7f}".as_bytes(),
        EntryLifetime::Forever,
    );
    let escaped = "\"key\":\"k\\u202e\",\"value\":\"\\u009b31m\\u007f\"";
    for arguments in [
        &["scan", "--json"][..],
        &["export"],
        &["get", "--json", "k\u{202e}"],
    ] {
        let ran = server.run(arguments);
        assert!(ran.out.contains(escaped), "{ran:?}");
    }
}

#[test]
fn the_words_of_a_peer_stay_on_their_line() {
    let server = Server::start();
    server.fault(Fault::Error(StorageError::invalid(
        "\u{1b}[2Jgone\nerror: \\x1b \u{202e}",
    )));
    let ran = server.run(&["put", "a", "1"]);
    assert_eq!(ran.code, 2);
    // The library takes out what does not print; the command escapes what is left.
    assert_eq!(ran.err, "error: \u{fffd}[2Jgone error: \\\\x1b \u{fffd}\n");
    let ran = server.run(&["get", "no\u{1b}[2J"]);
    assert_eq!(ran.err, "not found: no\\x1b[2J\n");
}

/// A terminal; `None` where there are none, as in a container or chroot without /dev/pts.
fn terminal() -> Option<OwnedFd> {
    match openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) {
        Ok(terminal) => Some(terminal),
        Err(Errno::NODEV | Errno::NOENT) => None,
        Err(error) => panic!("no terminal: {error}"),
    }
}

/// What a command writes to a terminal, and how it ends.
fn on_a_terminal(server: &Server, arguments: &[&str]) -> (i32, String, String) {
    let terminal = terminal().unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let ours = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let child = server
        .command(arguments)
        .stdout(Stdio::from(OwnedFd::from(ours)))
        .spawn()
        .unwrap();
    // Every handle on the other side is the child's: the reading ends with it.
    let ran = run::finish(child);
    let mut shown = Vec::new();
    let _ = File::from(terminal).read_to_end(&mut shown);
    (
        ran.code,
        String::from_utf8_lossy(&shown).into_owned(),
        ran.err,
    )
}

#[test]
fn bytes_that_would_disturb_a_terminal_are_not_sent_to_one() {
    if terminal().is_none() {
        eprintln!("not tried: this machine has no terminals (/dev/pts is not mounted)");
        return;
    }
    let server = Server::start();
    server.insert(
        b"text",
        "grün\tund\nzwei".as_bytes(),
        EntryLifetime::Forever,
    );
    for (key, value) in [
        (&b"binary"[..], &b"\x00\xff\x1b[2J"[..]),
        (b"escape", b"\x1b[2J"),
        (b"turn", "\u{202e}".as_bytes()),
    ] {
        server.insert(key, value, EntryLifetime::Forever);
        let key = str::from_utf8(key).unwrap();
        let (code, shown, err) = on_a_terminal(&server, &["get", key]);
        assert_eq!((code, shown.as_str()), (2, ""), "{key}");
        assert!(
            err.contains("--out FILE") && err.contains("--force"),
            "{err}"
        );
    }
    let (code, shown, _) = on_a_terminal(&server, &["get", "text"]);
    assert_eq!((code, shown.as_str()), (0, "grün\tund\r\nzwei\r\n"));
    let (code, shown, _) = on_a_terminal(&server, &["get", "--force", "escape"]);
    assert_eq!((code, shown.as_str()), (0, "\u{1b}[2J\r\n"));
    // A pipe takes everything, and so does a file.
    assert_eq!(server.run(&["get", "escape"]).out, "\u{1b}[2J\n");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("value");
    let ran = server.run(&["get", "binary", "--out", file.to_str().unwrap()]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert_eq!(std::fs::read(file).unwrap(), b"\x00\xff\x1b[2J");
    assert_eq!(server.run(&["get", "a", "b", "--out", "x"]).code, 2);
}

#[test]
fn an_outage_is_told_while_it_lasts_and_at_its_end() {
    let server = Server::start();
    for (command, begin) in [("watch", "watching from "), ("replica", "ready at ")] {
        let mut child = server.command(&[command]).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut next = || lines.next().unwrap().unwrap();
        let told = next();
        assert!(told.starts_with(begin), "{told}");
        server.cut();
        let told = next();
        assert!(
            told.starts_with("disconnected (") && told.ends_with("), retrying..."),
            "{told}"
        );
        let mut told = next();
        while told.starts_with("disconnected (") {
            told = next();
        }
        assert!(told.starts_with("reconnected after "), "{told}");
        assert!(next().starts_with("continuous"));
        run::signal(&child, Signal::INT);
        assert_eq!(run::finish(child).code, 0);
    }
}

#[test]
fn a_command_keeps_to_its_timeout_with_a_server_that_says_nothing_new() {
    let server = Server::with(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]);
    server.whim(Whim::SilentPages);
    for command in ["scan", "digest", "export"] {
        let ran = server.run(&[command, "--timeout", "2s"]);
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(ran.err.contains("deadline exceeded"), "{ran:?}");
    }
    server.whim(Whim::SilentWatches);
    for arguments in [
        &["replica", "--timeout", "2s"][..],
        &["replica", "--once", "--timeout", "2s"],
    ] {
        let ran = server.run(arguments);
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(ran.err.contains("no state came within 2s"), "{ran:?}");
    }
}

//! Usage, configuration, the way to the server, and what is left when an answer does not come.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::Instant;

use rustix::process::Signal;
use storage_protocol::{EntryLifetime, StorageError};

use crate::fake::{Fault, Server};
use crate::run::{self, storage};

const URL: &str = "wss://127.0.0.1:1/storage/models";

#[test]
fn wrong_usage_and_configuration_exit_with_2_and_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().to_str().unwrap();
    let put = ["put", "a", "1"];
    for (options, why) in [
        (&[][..], "STORAGE_URL"),
        (&["--url", URL][..], "STORAGE_CERTS"),
        (&["--url", URL, "--certs", certs], "STORAGE_IDENTITY"),
        (
            &["--url", URL, "--certs", certs, "--identity", "nobody"],
            "nobody/cert.pem cannot be read",
        ),
        (
            &["--url", URL, "--certs", certs, "--identity", "../x"],
            "no name of a folder",
        ),
        (
            &["--url", URL, "--ca", "ca.pem", "--identity", "me"],
            "which of the two?",
        ),
        (
            &["--url", URL, "--ca", "/no/ca.pem"],
            "/no/ca.pem cannot be read",
        ),
        (
            &["--url", "ws://127.0.0.1:1/storage/models"],
            "--danger-plaintext",
        ),
        (
            &["--url", "wss://127.0.0.1:1/models"],
            "expected wss://HOST[:PORT]/storage/KEYSPACE",
        ),
        (&["--timeout", "soon"], "--timeout"),
        (&["--hex"], "KEY: \"a\" is not hexadecimal"),
        (&["--nonsense"], "--nonsense"),
    ] {
        let ran = storage(&[options, &put].concat());
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        assert!(ran.err.contains(why), "{why}: {ran:?}");
    }
    assert_eq!(storage(&[]).code, 2);
    assert_eq!(storage(&["get"]).code, 2);
}

#[test]
fn a_server_that_is_not_there_exits_with_3() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let url = format!("ws://127.0.0.1:{port}/storage/models");
    let ran = storage(&["--danger-plaintext", "--url", &url, "put", "a", "1"]);
    assert_eq!((ran.code, ran.out.as_str()), (3, ""));
    assert!(ran.err.contains("cannot connect"), "{ran:?}");
    // Nothing was sent whose outcome there would be.
    assert!(!ran.err.contains("outcome:"), "{ran:?}");
}

#[test]
fn a_server_that_does_not_answer_the_upgrade_exits_with_3_after_the_timeout() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/storage/models", listener.local_addr().unwrap());
    let ran = storage(&[
        "--danger-plaintext",
        "--url",
        &url,
        "--timeout",
        "50ms",
        "get",
        "a",
    ]);
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("timeout"), "{ran:?}");
}

#[test]
fn a_lost_answer_to_a_commit_exits_with_4() {
    let server = Server::start();
    server.fault(Fault::Lost);
    let ran = server.run(&["put", "a", "1", "--give-up-after", "0s"]);
    assert_eq!((ran.code, ran.out.as_str()), (4, ""));
    assert!(ran.err.contains("outcome: unknown"), "{ran:?}");
    assert_eq!(server.entries().len(), 1);
    server.fault(Fault::Silent);
    let ran = server.run(&["put", "a", "2", "--timeout", "2s"]);
    assert_eq!(ran.code, 4);
    assert!(
        ran.err.contains("deadline exceeded") && ran.err.contains("outcome: unknown"),
        "{ran:?}"
    );
}

#[test]
fn an_interrupted_command_says_what_is_certain() {
    let server = Server::start();
    server.fault(Fault::Silent);
    // That the commit is on its way shows when the fault is taken.
    let child = server
        .command(&["put", "a", "1", "--timeout", "1m"])
        .spawn()
        .unwrap();
    server.wait_for_faults();
    run::signal(&child, Signal::INT);
    let ran = run::finish(child);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.err.contains("interrupted") && ran.err.contains("outcome: unknown"),
        "{ran:?}"
    );
}

#[test]
fn an_interrupted_import_finishes_what_is_on_its_way() {
    let server = Server::start();
    let mut child = server
        .command(&["import", "-", "--batch", "1"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for n in 0..3 {
        writeln!(stdin, "{{\"put\":{{\"key\":\"{n}\",\"value\":\"\"}}}}").unwrap();
    }
    server.wait_for_revision(103);
    run::signal(&child, Signal::TERM);
    // Stdin stays open: the command ends without it.
    let ran = run::finish(child);
    drop(stdin);
    assert_eq!((ran.code, ran.out.as_str()), (130, ""));
    assert_eq!(
        ran.err,
        "error: interrupted after 3 rows (kept); the same command again begins with the first row (with --session-file \
         it would continue)\n"
    );
}

#[test]
fn a_watch_ends_with_0_when_it_is_interrupted() {
    let server = Server::start();
    let mut child = server.command(&["watch"]).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert_eq!(line, "watching from 000000000000000e:100\n");
    run::signal(&child, Signal::INT);
    assert_eq!(run::finish(child).code, 0);
}

#[test]
fn an_interrupted_import_with_a_session_file_says_that_it_continues() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let (rows, session) = (
        folder.path().join("rows.csv"),
        folder.path().join("session"),
    );
    let mut fifo_like = String::from("n\n");
    (0..200_000).for_each(|n| fifo_like.push_str(&format!("{n}\n")));
    std::fs::write(&rows, fifo_like).unwrap();
    let arguments = [
        "import",
        rows.to_str().unwrap(),
        "--key",
        "{n}",
        "--batch",
        "1",
        "--session-file",
    ];
    let child = server.command(&arguments).arg(&session).spawn().unwrap();
    server.wait_for_revision(110);
    run::signal(&child, Signal::INT);
    let ran = run::finish(child);
    assert_eq!(ran.code, 130, "{ran:?}");
    assert!(ran.err.starts_with("error: interrupted after "), "{ran:?}");
    assert!(
        ran.err
            .ends_with(" rows (kept); run the same command again to continue\n"),
        "{ran:?}"
    );
}

#[test]
fn an_import_that_is_interrupted_does_not_wait_for_a_frozen_server() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.csv");
    std::fs::write(&rows, "n\n1\n2\n").unwrap();
    server.fault(Fault::None);
    server.fault(Fault::Silent);
    // The run's patience is far less than this.
    let arguments = [
        "import",
        rows.to_str().unwrap(),
        "--key",
        "{n}",
        "--batch",
        "1",
        "--timeout",
        "10m",
    ];
    let child = server.command(&arguments).spawn().unwrap();
    server.wait_for_faults();
    run::signal(&child, Signal::INT);
    let ran = run::finish(child);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.err.contains("from row 2 on (") && ran.err.contains("1 rows were committed before"),
        "{ran:?}"
    );
    assert!(
        ran.err.contains("interrupted before the answer came"),
        "{ran:?}"
    );
}

#[test]
fn a_second_signal_ends_what_is_blocked() {
    let server = Server::start();
    // Far more than a pipe holds.
    let value = "x".repeat(1 << 20);
    server.insert(b"a", value.leak().as_bytes(), EntryLifetime::Forever);
    let mut child = server.command(&["scan"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 1];
    out.read_exact(&mut first).unwrap();
    // Nobody reads on: it stands in the write of that value.
    run::signal(&child, Signal::INT);
    // Two that come at once are one, so it is asked until it hears the second.
    let deadline = Instant::now() + run::PATIENCE;
    let ended = loop {
        run::signal(&child, Signal::INT);
        match child.try_wait().unwrap() {
            Some(ended) => break ended,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("the command hangs");
            }
            None => {}
        }
    };
    assert_eq!(ended.code(), Some(130));
    drop(out);
}

#[test]
fn a_commit_whose_position_cannot_be_printed_is_told_all_the_same() {
    let server = Server::start();
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let put = server
        .command(&["put", "x", "1"])
        .stdout(full())
        .spawn()
        .unwrap();
    let ran = run::finish(put);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .contains("committed at 000000000000000e:101: stdout cannot be written"),
        "{ran:?}"
    );
    let mut import = server.command(&["import", "-"]);
    import.stdout(full());
    let ran = run::with_stdin(import, b"{\"put\":{\"key\":\"y\",\"value\":\"\"}}\n");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .contains("1 rows were committed, at 000000000000000e:102"),
        "{ran:?}"
    );
}

#[test]
fn the_outcome_is_told_of_writes_that_were_sent_and_of_nothing_else() {
    let server = Server::start();
    let outcome = |arguments: &[&str]| server.run(arguments).err.contains("outcome:");
    assert!(!outcome(&["put", "", "x"]), "it fails for ever");
    assert!(!outcome(&["--hex", "get", "xx"]));
    assert!(!outcome(&["watch", "--after", "000000000000000f:1"]));
    let full = || StorageError::StorageFull {
        available: 0,
        reserve: 1,
    };
    server.fault(Fault::Error(full()));
    assert!(outcome(&["put", "a", "x"]));
    server.fault(Fault::Silent);
    assert!(outcome(&["put", "a", "x", "--timeout", "2s"]));
}

#[test]
fn what_is_wrong_with_urls_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    for (url, why) in [
        (
            "ws://127.0.0.1:1/storage/a,ws://127.0.0.1:1/storage/b",
            "the keyspace is not that of the first URL, \"a\"",
        ),
        ("wss://127.1:1/storage/a", "host \"127.1\""),
        (
            "ws://127.0.0.1:0/storage/a",
            "port is no number from 1 to 65535",
        ),
        ("ws://127.0.0.1:1/storage/a,", "URL"),
    ] {
        let ran = storage(&[
            "--danger-plaintext",
            "--url",
            url,
            "--ca",
            folder.path().to_str().unwrap(),
            "ping",
        ]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.contains(why), "{ran:?}");
    }
}

/// A folder of certificates in which these have some. (They are no certificates: nothing gets that far.)
fn certificates(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        for file in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::write(folder.path().join(name).join(file), "").unwrap();
        }
    }
    folder
}

#[test]
fn an_identity_is_the_only_one_or_is_asked_for_with_those_there_are() {
    let told = |names: &[&str], identity: Option<&str>| {
        let folder = certificates(names);
        let mut command = run::command(&["--url", URL, "ping"]);
        command.env("STORAGE_CERTS", folder.path());
        if let Some(identity) = identity {
            command.env("STORAGE_IDENTITY", identity);
        }
        let ran = run::finish(command.spawn().unwrap());
        assert_eq!(ran.code, 2, "{ran:?}");
        ran.err
    };
    let only = told(&["alice", "server"], None);
    assert!(only.contains("alice/"), "{only}");
    // A variable that is set to nothing is none.
    assert!(told(&["alice"], Some("")).contains("alice/"));
    let which = told(&["bob", "alice", "server"], None);
    assert!(
        which.contains("whose certificate?") && which.contains("there are: alice, bob\n"),
        "{which}"
    );
    let wrong = told(&["alice"], Some("carol"));
    assert!(
        wrong.contains("carol/cert.pem cannot be read") && wrong.contains("there are: alice\n"),
        "{wrong}"
    );
    let mut command = run::command(&["--url", URL, "--ca", "/no/ca.pem", "ping"]);
    let ran = run::finish(
        command
            .env("STORAGE_IDENTITY", "")
            .env("STORAGE_CERTS", "")
            .spawn()
            .unwrap(),
    );
    assert!(ran.err.contains("/no/ca.pem cannot be read"), "{ran:?}");
}

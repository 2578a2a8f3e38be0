//! Usage, configuration, the way to the server, and what is left when an answer does not come.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use rustix::process::Signal;

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
    assert!(ran.err.contains("outcome: not executed"), "{ran:?}");
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
    let ran = server.run(&["put", "a", "2", "--timeout", "100ms"]);
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
    assert!(
        ran.err.contains("3 rows were committed: interrupted"),
        "{ran:?}"
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

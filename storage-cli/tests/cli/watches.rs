//! Watches: their lines, their start, and their end.

use std::io::{BufRead, BufReader};
use std::process::Child;

use crate::fake::Server;
use crate::run;

/// Starts a watch and waits until it is attached.
fn attached(server: &Server, arguments: &[&str]) -> Child {
    let mut child = server.command(arguments).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert!(
        line.starts_with("watching from 000000000000000e:"),
        "{line}"
    );
    child
}

#[test]
fn each_commit_is_a_line() {
    let server = Server::with(&[("a", "0")]);
    let text = attached(&server, &["watch", "--prefix", "a", "--count", "2"]);
    let json = attached(&server, &["watch", "--json", "--count", "1"]);
    server.run(&["put", "a", "1"]);
    server.run(&["put", "b", "2"]);
    server.run(&["rm", "a"]);
    assert_eq!(run::finish(text).lines(), ["102 put a=1", "104 remove a"]);
    let expected = "{\"revision\":102,\"epoch\":\"000000000000000e\",\"time_ms\":1700000000000,\"label\":null,\
                    \"principal\":\"cert:writer\",\"changes\":[{\"put\":{\"key\":\"a\",\"value\":\"1\"}}]}";
    assert_eq!(run::finish(json).lines(), [expected]);
}

#[test]
fn a_watch_goes_on_after_a_position() {
    let server = Server::with(&[("a", "0")]);
    server.run(&["put", "a", "1"]);
    server.run(&["put", "b", "2"]);
    let ran = server.run(&["watch", "--after", "000000000000000e:101", "--count", "2"]);
    assert_eq!(ran.lines(), ["102 put a=1", "103 put b=2"]);
    assert_eq!(ran.err, "watching from 000000000000000e:101\n");
    let ran = server.run(&["watch", "--beginning", "--count", "1"]);
    assert_eq!(ran.lines(), ["101 put a=0"]);
}

#[test]
fn a_position_of_another_history_is_refused() {
    let server = Server::start();
    let ran = server.run(&["watch", "--after", "000000000000000f:1"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(
        ran.err,
        "error: this position is from another store (the epoch of this one is 000000000000000e)\n"
    );
    let ran = server.run(&["watch", "--after", "7"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("expected EPOCH:REVISION"), "{ran:?}");
}

#[test]
fn latest_tells_keys_and_in_json_marks() {
    let server = Server::with(&[("a", "0"), ("b", "1")]);
    let ran = server.run(&["watch", "--latest", "--beginning", "--count", "2"]);
    assert_eq!(ran.lines(), ["101 put a=0", "101 put b=1"]);
    assert!(ran.err.contains("reset"), "{ran:?}");
    let arguments = [
        "--json",
        "watch",
        "--latest",
        "--beginning",
        "--prefix",
        "a",
        "--interval",
        "1ms",
        "--count",
        "2",
    ];
    let child = attached(&server, &arguments);
    server.run(&["rm", "a"]);
    let expected = [
        "{\"reset\":true}",
        "{\"put\":{\"key\":\"a\",\"value\":\"0\",\"revision\":101}}",
        "{\"progress\":\"000000000000000e:101\"}",
        "{\"removed\":{\"key\":\"a\",\"revision\":102}}",
    ];
    assert_eq!(run::finish(child).lines(), expected);
    let ran = server.run(&["watch", "--interval", "1s"]);
    assert_eq!(ran.code, 2, "an interval without --latest says nothing");
}

#[test]
fn a_watch_ends_when_its_reader_is_gone_though_nothing_happens() {
    let server = Server::with(&[("a", "0")]);
    let mut watch = attached(&server, &["watch"]);
    drop(watch.stdout.take());
    assert_eq!(run::wait(&mut watch).code(), Some(0));
    let mut replica = server.command(&["replica"]).spawn().unwrap();
    let mut err = BufReader::new(replica.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert!(line.starts_with("ready at "), "{line}");
    drop(replica.stdout.take());
    assert_eq!(run::wait(&mut replica).code(), Some(0));
}

//! Who logs in: what is shown to the server, where it comes from, and what does not go together.

use std::process::{Command, Stdio};

use crate::fake_http::HttpServer;
use crate::run::{self, Ran, storage, with_stdin};

const WHOAMI: &str =
    r#"{"principal":"user:ann","by":"token","expires":1900000000,"administrator":false}"#;

fn server() -> HttpServer {
    HttpServer::with(&[("GET /-/auth/whoami", 200, WHOAMI)])
}

/// What the one request showed.
#[track_caller]
fn shown(server: &HttpServer, ran: &Ran) -> Option<String> {
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut asked = server.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    asked.remove(0).authorization
}

/// A folder with a file of this content, and the file's path.
fn file(content: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn whoami_tells_it_line_by_line_or_as_json() {
    let server = server();
    let ran = server.run(&["whoami"]);
    assert_eq!(
        ran.lines(),
        [
            "principal: user:ann",
            "by: token",
            "until: 2030-03-17T17:46:40Z",
            "administrator: no"
        ]
    );
    let ran = server.run(&["--json", "whoami"]);
    let json =
        r#"{"administrator":false,"by":"token","expires":1900000000,"principal":"user:ann"}"#;
    assert_eq!(ran.lines(), [json]);
    assert_eq!(server.asked()[0].authorization, None);
    let hostile =
        r#"{"principal":"cert:\u001b[2J\u202e","by":"a\nb","expires":null,"administrator":true}"#;
    server.answer("GET /-/auth/whoami", 200, hostile);
    let ran = server.run(&["whoami"]);
    assert_eq!(
        ran.lines(),
        [
            "principal: cert:\\x1b[2J\\u{202e}",
            "by: a\\nb",
            "administrator: yes"
        ]
    );
    let ran = server.run(&["--json", "whoami"]);
    assert!(ran.out.contains("\"cert:\\u001b[2J\\u202e\""), "{ran:?}");
}

#[test]
fn a_token_is_from_a_file_or_a_variable() {
    let server = server();
    let (_folder, path) = file("abc.def\n");
    let ran = server.run(&["whoami", "--token-file", &path]);
    assert_eq!(shown(&server, &ran).as_deref(), Some("Bearer abc.def"));
    let mut command = server.command(&["whoami"]);
    let ran = run::finish(command.env("STORAGE_TOKEN_FILE", &path).spawn().unwrap());
    assert_eq!(shown(&server, &ran).as_deref(), Some("Bearer abc.def"));
    // A variable that is set to nothing is none.
    let mut command = server.command(&["whoami"]);
    let ran = run::finish(command.env("STORAGE_TOKEN_FILE", "").spawn().unwrap());
    assert_eq!(shown(&server, &ran), None);
}

#[test]
fn a_token_may_come_from_a_pipe() {
    let server = server();
    let whoami = server.command(&["whoami", "--token-file", "/dev/fd/3"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo abc.def | \"$@\" 3<&0 < /dev/null", "sh"]);
    shell.arg(whoami.get_program()).args(whoami.get_args());
    shell.env_remove("STORAGE_TOKEN_FILE").stdin(Stdio::null());
    shell.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = run::finish(shell.spawn().unwrap());
    assert_eq!(shown(&server, &ran).as_deref(), Some("Bearer abc.def"));
}

#[test]
fn a_password_is_from_a_file_or_stdin_without_the_newline_at_its_end() {
    let server = server();
    let (_folder, path) = file("se:cret \r\n");
    let ran = server.run(&["whoami", "--user", "ann", "--password-file", &path]);
    // ann:se:cret<space>
    assert_eq!(
        shown(&server, &ran).as_deref(),
        Some("Basic YW5uOnNlOmNyZXQg")
    );
    let ran = with_stdin(server.command(&["whoami", "--user", "ann"]), b"se:cret \n");
    assert_eq!(
        shown(&server, &ran).as_deref(),
        Some("Basic YW5uOnNlOmNyZXQg")
    );
    let ran = server.run(&["whoami", "--user", "ann"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("the password of --user is empty") && ran.err.contains("--password-file"),
        "{ran:?}"
    );
}

#[test]
fn commands_that_store_log_in_too() {
    let server = server();
    let (_folder, path) = file("abc.def\n");
    let ran = server.run(&["get", "a", "--token-file", &path]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let asked = server.asked();
    assert_eq!(asked[0].what, "GET /storage/models");
    assert_eq!(asked[0].authorization.as_deref(), Some("Bearer abc.def"));
}

#[test]
fn stdin_is_a_password_or_something_else() {
    let server = server();
    for arguments in [
        &["put", "a", "-"][..],
        &["commit", "--file", "-"],
        &["import", "-"],
        &["user", "add", "bob"],
    ] {
        let mut command = server.command(arguments);
        command.args(["--user", "ann"]);
        let ran = with_stdin(command, b"{\"put\":{\"key\":\"a\",\"value\":\"\"}}\n");
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.contains("stdin can be read only once"), "{ran:?}");
        assert!(ran.err.contains("password-file FILE"), "{ran:?}");
    }
    assert_eq!(server.asked(), []);
}

#[test]
fn what_does_not_go_together_is_wrong_usage() {
    let (_folder, path) = file("abc\n");
    let (_other, empty) = file(" \n");
    let (plain, tls) = (
        "ws://127.0.0.1:1/storage/models",
        "wss://127.0.0.1:1/storage/models",
    );
    for (url, options, why) in [
        (
            plain,
            &["--token-file", &path, "--user", "ann"][..],
            "which of the two?",
        ),
        (plain, &["--password-file", &path], "needs --user"),
        (
            plain,
            &["--token-file", &path, "--password-file", &path],
            "needs --user",
        ),
        (
            plain,
            &["--user", "user:ann"],
            "a name with a colon cannot log in",
        ),
        (plain, &["--user", ""], "--user is empty"),
        (
            plain,
            &["--token-file", "/no/token"],
            "/no/token cannot be read",
        ),
        (plain, &["--token-file", &empty], "the token is empty"),
        (
            plain,
            &["--user", "ann", "--password-file", "/no/pw"],
            "/no/pw cannot be read",
        ),
        (tls, &["--token-file", &path], "--ca FILE"),
        (tls, &["--user", "ann", "--certs", "certs"], "--ca FILE"),
        (
            tls,
            &["--token-file", &path, "--ca", "ca.pem", "--identity", "me"],
            "which of the two?",
        ),
        (
            tls,
            &["--user", "ann", "--ca", "/no/ca.pem"],
            "/no/ca.pem cannot be read",
        ),
    ] {
        for command in [&["whoami"][..], &["get", "a"]] {
            let ran = storage(&[command, &["--danger-plaintext", "--url", url], options].concat());
            assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
            assert!(ran.err.contains(why), "{why}: {ran:?}");
        }
    }
    // Nothing takes a password as an argument.
    assert_eq!(storage(&["--password", "x", "whoami"]).code, 2);
}

#[test]
fn who_is_not_let_in_or_not_served_is_told_why_and_when_to_come_again() {
    let server = server();
    for (status, body, code, text) in [
        (
            401,
            "the token was revoked\n",
            3,
            "not let in: the token was revoked\n",
        ),
        (
            403,
            r#"{"error":"no administrator"}"#,
            3,
            "not allowed: no administrator\n",
        ),
        (
            429,
            "too many failed logins, try again in 7 s\n",
            3,
            "not served now: too many failed logins, try again in 7 s\n",
        ),
        (
            503,
            "busy\n",
            3,
            "not served now: busy; try again in some seconds\n",
        ),
        (
            503,
            r#"{"error":"it is full"}"#,
            3,
            "not served now: it is full\n",
        ),
        (500, r#"{"error":"a\u001b[2J\\b"}"#, 3, "a\\x1b[2J\\\\b\n"),
        (
            400,
            r#"{"error":"no\nerror: so"}"#,
            2,
            "error: no\\nerror: so\n",
        ),
        (404, r#"{"error":"no such"}"#, 1, "error: no such\n"),
        (
            404,
            "there is nothing here\n",
            3,
            "does not serve the gateway \"storage\"",
        ),
        (
            200,
            "{\"principal\":7}",
            3,
            "the answer is not what it should be",
        ),
        (200, "<html>", 3, "the answer is not what it should be"),
    ] {
        server.answer("GET /-/auth/whoami", status, body);
        let ran = server.run(&["whoami"]);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{status} {ran:?}");
        assert!(ran.err.contains(text), "{status} {ran:?}");
        assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
    }
}

#[test]
fn a_lost_answer_leaves_a_change_unknown_and_a_question_not_executed() {
    let server = HttpServer::with(&[
        ("GET /-/auth/whoami", crate::fake_http::LOST, ""),
        ("POST /-/auth/keys", crate::fake_http::LOST, ""),
        ("DELETE /-/auth/tokens/a", 500, r#"{"error":"the disk"}"#),
    ]);
    let ran = server.run(&["whoami"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(!ran.err.contains("outcome:"), "{ran:?}");
    for arguments in [&["token", "rotate-keys"][..], &["token", "revoke", "a"]] {
        let ran = server.run(arguments);
        assert_eq!(ran.code, 4, "{ran:?}");
        assert!(ran.err.contains("outcome: unknown"), "{ran:?}");
    }
    let unreachable = [
        "--danger-plaintext",
        "--url",
        "ws://127.0.0.1:1/storage/models",
    ];
    let ran = storage(&[&unreachable[..], &["token", "rotate-keys"]].concat());
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(!ran.err.contains("outcome:"), "{ran:?}");
}

#[test]
fn a_server_that_does_not_answer_is_waited_for_no_longer_than_the_timeout() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/storage/models", listener.local_addr().unwrap());
    let options = ["--danger-plaintext", "--url", &url, "--timeout", "50ms"];
    let ran = storage(&[&["whoami"], &options[..]].concat());
    assert_eq!(ran.code, 3, "{ran:?}");
    let ran = storage(&[&["token", "rotate-keys"], &options[..]].concat());
    assert_eq!(ran.code, 4, "{ran:?}");
}

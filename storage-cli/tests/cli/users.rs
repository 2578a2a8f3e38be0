//! `user` and `token`: what is asked of the server, what is printed, and what is typed at a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::json;

use crate::fake_http::HttpServer;
use crate::run::{self, PATIENCE, with_stdin};

const USERS: &str = r#"{"users": [
    {"name": "ann", "disabled": false, "password_set": 1900000000123},
    {"name": "b\u001b\tb", "disabled": true, "password_set": 0}
]}"#;

fn server() -> HttpServer {
    HttpServer::with(&[
        ("GET /-/auth/users", 200, USERS),
        ("PUT /-/auth/users/ann", 204, ""),
        ("PUT /-/auth/users/bob", 204, ""),
        (
            "GET /-/auth/rules",
            200,
            r#"{"rules":[],"roles":[],"warnings":[]}"#,
        ),
        ("PUT /-/auth/roles/ops", 204, ""),
    ])
}

#[test]
fn users_are_listed() {
    let server = server();
    let ran = server.run(&["user", "list"]);
    assert_eq!(
        ran.lines(),
        [
            "ann\tenabled\t2030-03-17T17:46:40Z",
            "b\\x1b\\tb\tdisabled\t1970-01-01T00:00:00Z"
        ]
    );
    let ran = server.run(&["user", "list", "--json"]);
    assert_eq!(
        ran.lines()[0],
        r#"{"disabled":false,"name":"ann","password_set":1900000000123}"#
    );
}

#[test]
fn a_new_user_has_a_password_from_stdin_or_a_file_and_roles() {
    let server = server();
    let ran = with_stdin(
        server.command(&["user", "add", "bob", "--role", "ops"]),
        b"pass word\n",
    );
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert_eq!(
        server.changes(),
        [
            (
                "PUT /-/auth/users/bob".to_owned(),
                json!({ "password": "pass word", "new": true })
            ),
            (
                "PUT /-/auth/roles/ops".to_owned(),
                json!({ "members": ["user:bob"] })
            ),
        ]
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "other\r\n").unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(
        server
            .run(&["user", "add", "bob", "--new-password-file", path])
            .code,
        0
    );
    assert_eq!(server.changes()[0].1["password"], "other");
    let ran = server.run(&["user", "add", "bob"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("the new password is empty"), "{ran:?}");
    let taken = r#"{"error":"there is a user bob already"}"#;
    server.answer("PUT /-/auth/users/bob", 409, taken);
    let ran = with_stdin(
        server.command(&["user", "add", "bob", "--role", "ops"]),
        b"x",
    );
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "error: there is a user bob already\n")
    );
    assert_eq!(server.changes().len(), 1);
}

#[test]
fn a_password_that_no_server_takes_is_refused_with_the_bound_before_anything_is_sent() {
    let server = server();
    for (password, why) in [
        (String::new(), "the new password is empty"),
        ("\n".to_owned(), "the new password is empty"),
        ("x".repeat(1025), "longer than 1024 bytes"),
        ("x".repeat(10_000), "longer than 1024 bytes"),
        // Cut within a character where it is read.
        (format!("x{}", "ä".repeat(5_000)), "longer than 1024 bytes"),
    ] {
        let command = server.command(&["user", "add", "bob"]);
        let ran = with_stdin(command, password.as_bytes());
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.contains(why), "{why}: {ran:?}");
    }
    assert_eq!(server.changes(), []);
    let longest = "x".repeat(1024);
    let command = server.command(&["user", "add", "bob"]);
    assert_eq!(
        with_stdin(command, format!("{longest}\n").as_bytes()).code,
        0
    );
    assert_eq!(server.changes()[0].1["password"], longest);
}

#[test]
fn a_password_of_two_lines_is_refused_before_it_is_set() {
    let server = server();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "one\ntwo\n").unwrap();
    let path = file.path().to_str().unwrap();
    let why = "the new password has more than one line";
    for sub_command in ["add", "passwd"] {
        let ran = server.run(&["user", sub_command, "ann", "--new-password-file", path]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.contains(&format!("{path}: {why}")), "{ran:?}");
        let ran = with_stdin(server.command(&["user", sub_command, "ann"]), b"one\n\n");
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.contains(why), "{ran:?}");
    }
    assert_eq!(server.changes(), []);
    for sub_command in ["add", "passwd"] {
        let help = run::storage(&["user", sub_command, "--help"]).out;
        assert!(help.contains("1 to 1,024 bytes, on one line"), "{help}");
    }
}

#[test]
fn a_user_that_gets_no_role_is_told_to_be_there() {
    let server = server();
    server.answer("PUT /-/auth/roles/ops", 400, r#"{"error":"no"}"#);
    let ran = with_stdin(
        server.command(&["user", "add", "bob", "--role", "ops"]),
        b"x",
    );
    assert_eq!(ran.code, 2);
    assert_eq!(
        ran.err,
        "error: the user was added, but not to the role ops: no\n"
    );
}

#[test]
fn users_that_are_not_there_are_not_made_by_mistake() {
    let server = server();
    for arguments in [
        &["user", "passwd", "nobody"][..],
        &["user", "disable", "nobody"],
        &["user", "enable", "nobody"],
    ] {
        let ran = with_stdin(server.command(arguments), b"x\n");
        assert_eq!(
            (ran.code, ran.err.as_str()),
            (1, "there is no user nobody\n")
        );
    }
    assert_eq!(server.changes(), []);
    for (arguments, body) in [
        (["user", "passwd", "ann"], json!({ "password": "x" })),
        (["user", "disable", "ann"], json!({ "disabled": true })),
        (["user", "enable", "ann"], json!({ "disabled": false })),
    ] {
        let ran = with_stdin(server.command(&arguments), b"x\n");
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(
            server.changes(),
            [("PUT /-/auth/users/ann".to_owned(), body)]
        );
    }
    server.answer("DELETE /-/auth/users/a%20b%3F", 204, "");
    assert_eq!(server.run(&["user", "rm", "a b?"]).code, 0);
}

#[test]
fn who_may_not_see_the_users_changes_its_own_password() {
    let server = server();
    server.answer("GET /-/auth/users", 403, r#"{"error":"no administrator"}"#);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "old").unwrap();
    let path = file.path().to_str().unwrap();
    let passwd = [
        "--user",
        "ann",
        "--password-file",
        path,
        "user",
        "passwd",
        "ann",
    ];
    assert_eq!(with_stdin(server.command(&passwd), b"new\n").code, 0);
    let asked = server.asked().pop().unwrap();
    assert_eq!(asked.body, json!({ "password": "new" }));
    assert_eq!(asked.authorization.as_deref(), Some("Basic YW5uOm9sZA=="));
}

/// A command whose stdin is a terminal, and what it shows there: stderr is the terminal too.
struct Typed {
    child: Child,
    terminal: File,
    ours: File,
    shown: String,
}

impl Typed {
    /// `None` where there are no terminals, as in a container or chroot without /dev/pts.
    fn start(server: &HttpServer, arguments: &[&str]) -> Option<Self> {
        let Ok(terminal) = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) else {
            println!("SKIPPED: this machine has no terminals (/dev/pts is not mounted)");
            return None;
        };
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let mut open = File::options();
        let ours = open
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let side = || Stdio::from(OwnedFd::from(ours.try_clone().unwrap()));
        let child = server
            .command(arguments)
            .stdin(side())
            .stderr(side())
            .spawn();
        Some(Self {
            child: child.unwrap(),
            terminal: File::from(terminal),
            ours,
            shown: String::new(),
        })
    }

    fn wait_for(&mut self, text: &str) {
        while !self.shown.ends_with(text) {
            let readable = &mut [PollFd::new(&self.terminal, PollFlags::IN)];
            let waited = poll(readable, Some(&PATIENCE.try_into().unwrap())).unwrap();
            assert_eq!(waited, 1, "{text} does not come: {}", self.shown);
            let mut bytes = [0; 256];
            let read = self.terminal.read(&mut bytes).unwrap();
            self.shown.push_str(str::from_utf8(&bytes[..read]).unwrap());
        }
    }

    fn type_line(&mut self, line: &str) {
        self.terminal
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.ours)
            .unwrap()
            .local_modes
            .contains(LocalModes::ECHO)
    }

    /// Its exit code and all that was to be seen.
    fn end(mut self) -> (i32, String) {
        let code = run::wait(&mut self.child).code().unwrap_or(-1);
        assert!(self.echoes(), "what is typed next does not show");
        // With the last handle on the other side the reading ends.
        drop(self.ours);
        let mut rest = Vec::new();
        let _ = self.terminal.read_to_end(&mut rest);
        self.shown.push_str(str::from_utf8(&rest).unwrap());
        (code, self.shown)
    }
}

#[test]
fn what_is_typed_as_a_password_does_not_show() {
    let server = server();
    let arguments = ["--user", "boss", "user", "add", "bob"];
    let Some(mut typed) = Typed::start(&server, &arguments) else {
        return;
    };
    typed.wait_for("Password of boss: ");
    assert!(!typed.echoes());
    typed.type_line("old secret");
    typed.wait_for("New password of bob: ");
    typed.type_line("new secret");
    typed.wait_for("The same once more: ");
    typed.type_line("new secret");
    let (code, shown) = typed.end();
    assert_eq!(code, 0, "{shown}");
    assert!(!shown.contains("secret"), "{shown}");
    let asked = server.asked().pop().unwrap();
    assert_eq!(asked.body["password"], "new secret");
    // boss:old secret
    assert_eq!(
        asked.authorization.as_deref(),
        Some("Basic Ym9zczpvbGQgc2VjcmV0")
    );
}

#[test]
fn two_that_differ_change_nothing() {
    let server = server();
    let Some(mut typed) = Typed::start(&server, &["user", "passwd", "ann"]) else {
        return;
    };
    typed.wait_for("New password of ann: ");
    typed.type_line("one");
    typed.wait_for("The same once more: ");
    typed.type_line("two");
    let (code, shown) = typed.end();
    assert_eq!(code, 2, "{shown}");
    assert!(shown.contains("the two passwords differ"), "{shown}");
    assert_eq!(server.changes(), []);
}

#[test]
fn an_interrupted_question_leaves_the_terminal_as_it_was() {
    let server = server();
    for arguments in [
        &["whoami", "--user", "ann"][..],
        &["watch", "--user", "ann"],
    ] {
        let Some(mut typed) = Typed::start(&server, arguments) else {
            return;
        };
        typed.wait_for("Password of ann: ");
        run::signal(&typed.child, Signal::INT);
        let (code, shown) = typed.end();
        assert_eq!(code, 130, "{shown}");
    }
}

const MINTED: &str =
    r#"{"id":"1a2b","token":"abc.def","principal":"cert:me","expires":1900000000}"#;

#[test]
fn a_token_is_printed_alone() {
    let server = HttpServer::with(&[("POST /-/auth/tokens", 201, MINTED)]);
    let ran = server.run(&["token", "mint"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("abc.def\n", ""));
    assert_eq!(server.changes()[0].1, json!({}));
    let ran = server.run(&[
        "token",
        "mint",
        "--json",
        "--ttl",
        "90m",
        "--name",
        "c i",
        "--grant",
        "models:a:b/:write,read",
        "--grant",
        "logs:read",
    ]);
    let json = r#"{"expires":1900000000,"id":"1a2b","principal":"cert:me","token":"abc.def"}"#;
    assert_eq!(ran.lines(), [json]);
    assert_eq!(
        server.changes()[0].1,
        json!({
            "ttl": "1h 30m",
            "name": "c i",
            "grants": [
                { "keyspace": "models", "prefix": "a:b/", "allow": ["read", "write"] },
                { "keyspace": "logs", "prefix": "", "allow": ["read"] },
            ],
        })
    );
}

#[test]
fn a_token_in_a_file_is_for_its_owner_alone() {
    let server = HttpServer::with(&[("POST /-/auth/tokens", 201, MINTED)]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let out = path.to_str().unwrap();
    std::fs::write(&path, "of yesterday").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    for _ in 0..2 {
        let ran = server.run(&["token", "mint", "--out", out]);
        assert_eq!((ran.code, ran.out.as_str()), (0, ""));
        assert_eq!(
            ran.err,
            "token 1a2b of cert:me, good until 2030-03-17T17:46:40Z\n"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abc.def\n");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        std::fs::remove_file(&path).unwrap();
    }
    let ran = server.run(&["token", "mint", "--json", "--out", out]);
    let json = r#"{"expires":1900000000,"id":"1a2b","principal":"cert:me"}"#;
    assert_eq!(ran.lines(), [json]);
    server.asked();
    // Before there is one that would be lost.
    let ran = server.run(&["token", "mint", "--out", "/no/folder/token"]);
    assert_eq!((ran.code, server.asked().len()), (2, 0), "{ran:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_token_that_cannot_be_told_can_be_revoked() {
    let server = HttpServer::with(&[("POST /-/auth/tokens", 201, MINTED)]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mint = server.command(&["token", "mint"]).stdout(full).spawn();
    let ran = run::finish(mint.unwrap());
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err.contains("`storage token revoke 1a2b` ends"),
        "{ran:?}"
    );
}

#[test]
fn tokens_are_listed_and_revoked() {
    let tokens = r#"{"tokens": [
        {"id": "1a2b", "principal": "user:ann", "name": "c\ti", "issued": 0, "expires": 1900000000, "parent": null, "ended": "user disabled\u001b",
         "grants": [{"principal": "*", "keyspace": "m", "prefix": "a b", "allow": ["read", "watch"]},
                    {"principal": "*", "keyspace": "n", "allow": ["admin"]}]},
        {"id": "3c", "principal": "cert:me\u202e", "name": null, "issued": 1, "expires": 99999999999999, "grants": [], "ended": null},
        {"id": "4d", "principal": "user:ann", "name": null, "issued": 1, "expires": 1900000000, "parent": "1a2b", "ended": null,
         "grants": [{"principal": "*", "keyspace": "*", "allow": ["read"]}]}
    ]}"#;
    let server = HttpServer::with(&[
        ("GET /-/auth/tokens", 200, tokens),
        ("DELETE /-/auth/tokens/1a2b", 204, ""),
        ("POST /-/auth/keys", 204, ""),
        (
            "DELETE /-/auth/tokens/other",
            404,
            r#"{"error":"there is no such token of yours"}"#,
        ),
    ]);
    let ran = server.run(&["token", "list"]);
    assert_eq!(
        ran.lines(),
        [
            "1a2b\tuser:ann\tc\\ti\t1970-01-01T00:00:00Z\t2030-03-17T17:46:40Z\t\"m:a b:read,watch\" n:admin\tuser disabled\\x1b",
            "3c\tcert:me\\u{202e}\t\t1970-01-01T00:00:01Z\tnever\tall\tgood",
            "4d\tuser:ann\t\t1970-01-01T00:00:01Z\t2030-03-17T17:46:40Z\t*:read\tgood\t1a2b",
        ]
    );
    let ran = server.run(&["token", "list", "--json"]);
    assert!(
        ran.lines()[1].contains(r#""principal":"cert:me\u202e""#),
        "{ran:?}"
    );
    for arguments in [&["token", "revoke", "1a2b"][..], &["token", "rotate-keys"]] {
        let ran = server.run(arguments);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    }
    server.answer("DELETE /-/auth/tokens", 200, r#"{"revoked":3}"#);
    let ran = server.run(&["token", "revoke", "--all"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, "revoked 3 tokens\n"));
    let ran = server.run(&["token", "revoke", "--all", "--json"]);
    assert_eq!(ran.lines(), [r#"{"revoked":3}"#]);
    server.asked();
    for wrong in [
        &["token", "revoke"][..],
        &["token", "revoke", "--all", "1a2b"],
    ] {
        assert_eq!(server.run(wrong).code, 2, "{wrong:?}");
    }
    assert_eq!(server.changes(), []);
    let ran = server.run(&["token", "revoke", "other"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "error: there is no such token of yours\n")
    );
}

#[test]
fn completions_have_all_of_it() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run::storage(&["completions", shell]);
        assert_eq!(ran.code, 0);
        for word in [
            "rotate-keys",
            "whoami",
            "explain",
            "token-file",
            "new-password-file",
        ] {
            assert!(ran.out.contains(word), "{shell}: {word}");
        }
    }
}

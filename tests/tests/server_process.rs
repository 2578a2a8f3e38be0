//! The server as a process: its command line, its configuration, its start, its end, and what it tells meanwhile.
//!
//! All of it from outside, by arguments, signals, exit codes, standard output and error, HTTP and the client. What is
//! refused comes before what works.

#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]
#![expect(
    clippy::future_not_send,
    reason = "what holds a process stays on its test's thread"
)]

mod processes;

#[path = "server_process/front_door.rs"]
mod front_door;
#[path = "server_process/locked_out.rs"]
mod locked_out;
#[path = "server_process/log.rs"]
mod log;
#[path = "server_process/start_and_signals.rs"]
mod start_and_signals;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use processes::{Ran, run, wait};
use rustix::process::{Pid, Signal, kill_process};
use storage_client::{ConnectOptions, ConnectionState, RemoteStorage};
use storage_protocol::native::{ClientMessage, Hello, Packet, SUBPROTOCOL, ServerMessage};
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, Outcome, Position, ScanOptions, Storage, StorageError,
    StorageExt, WatchOptions, WatchStart,
};
use storage_testkit::harness::{Certificates, ServerProcess, binary};
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;

/// For each single wait.
const PATIENCE: Duration = Duration::from_secs(30);

const PLAIN: &str = "[[listener]]\naddress = '127.0.0.1:0'\ntls = 'off'\n";
const MUTUAL: &str = "[[listener]]\naddress = '127.0.0.1:0'\n";
const ADMIN: &str = "[[listener]]\naddress = '127.0.0.1:0'\ntls = 'off'\ngateways = ['admin']\n";

/// The binary, without what the environment of the test may say.
fn server(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("storage-server"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STORAGE_SERVER_")) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

fn ran(arguments: &[&str]) -> Ran {
    run(&mut server(arguments), b"")
}

/// A folder with a configuration file.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Writes `server.toml`: the data folder, then this text.
    fn config(&self, text: &str) -> String {
        let path = self.dir.path().join("server.toml");
        fs::write(&path, format!("data = {:?}\n{text}", self.data())).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// A server whose output is read, killed when dropped.
struct Serving {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    /// The first lines of standard output, one per listener.
    lines: Vec<String>,
}

impl Serving {
    fn start(arguments: &[&str], listeners: usize) -> Self {
        let mut child = server(&["serve"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        let mut serving = Self {
            child,
            stdout,
            stderr,
            lines: Vec::new(),
        };
        for _ in 0..listeners {
            let line = serving.stdout.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no line: {:?}", serving.log()));
            serving.lines.push(line);
        }
        serving
    }

    /// `127.0.0.1:PORT` of this listener.
    fn address(&self, listener: usize) -> &str {
        let line = &self.lines[listener];
        let (_, rest) = line.split_once("://").unwrap();
        rest.split_once(' ').unwrap().0
    }

    fn url(&self, listener: usize) -> String {
        let line = self.lines[listener].strip_prefix("listening ").unwrap();
        format!("{}/storage/model", line.split_once(' ').unwrap().0)
    }

    async fn plain(&self, listener: usize) -> RemoteStorage {
        let options = ConnectOptions::new(self.url(listener)).danger_plaintext();
        RemoteStorage::connect(options).await.unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for a line on standard error with this text.
    fn wait_for_log(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.stderr.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("no {text:?} in the log"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// What is left of standard error; ends when the process did.
    fn log(&self) -> Vec<String> {
        self.stderr.iter().collect()
    }

    fn end(&mut self, within: Duration) -> Option<i32> {
        wait(&mut self.child, within)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Status and body of an HTTP request in plain text.
fn http(address: &str, method: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

fn get(address: &str, path: &str) -> (u16, String) {
    http(address, "GET", path, "")
}

// The configuration.

#[test]
fn a_typo_ends_with_2_and_names_the_key_and_the_place() {
    let folder = Folder::new();
    for (text, place, key) in [
        (
            "certs = 'c'\ndurabillity = 'os'\n",
            "server.toml:3",
            "durabillity",
        ),
        (
            "[limits]\nkey_byte_max = 9\n",
            "server.toml:3",
            "key_byte_max",
        ),
        ("[timeouts]\n\nslience = '1s'\n", "server.toml:4", "slience"),
        ("[engine]\nring_byte = 9\n", "server.toml:3", "ring_byte"),
        ("[log]\nformt = 'json'\n", "server.toml:3", "formt"),
        (
            "[[listener]]\nadress = '127.0.0.1:0'\n",
            "server.toml:3",
            "adress",
        ),
        ("[listner]\n", "server.toml:2", "listner"),
    ] {
        let config = folder.config(text);
        for command in [&["serve"][..], &["config", "check"], &["config", "print"]] {
            let done = ran(&[command, &["--config", &config]].concat());
            let done = done.expect(2).says(&[place, key]);
            assert!(done.stdout.is_empty(), "{done:?}");
        }
    }
    assert!(!folder.data().exists(), "nothing was begun");
}

#[test]
fn a_value_that_is_not_allowed_is_refused_by_the_name_of_its_key() {
    let folder = Folder::new();
    let listener = |line: &str| format!("[[listener]]\naddress = '127.0.0.1:0'\n{line}\n");
    let cases = [
        (
            "durability = 'maybe'".to_owned(),
            "durability",
            "\"sync\", \"os\"",
        ),
        (
            "[log]\nformat = 'xml'".to_owned(),
            "log.format",
            "\"text\", \"json\"",
        ),
        ("[log]\nfilter = 'a=b=c'".to_owned(), "log.filter", "a=b=c"),
        (listener("tls = 'yes'"), "listener[0].tls", "\"mutual\""),
        (
            listener("tls_min_version = '1.1'"),
            "tls_min_version",
            "\"1.2\"",
        ),
        (listener("gateways = ['telnet']"), "gateways", "telnet"),
        (listener("gateways = []"), "gateways", "at least one"),
        (
            "[[listener]]\naddress = 'here'".to_owned(),
            "address",
            "here",
        ),
        ("[[listener]]\ntls = 'off'".to_owned(), "address", "not set"),
        (
            "[limits]\nkey_bytes_max = 1".to_owned(),
            "limits.key_bytes_max",
            "16",
        ),
        (
            "[limits]\nkey_bytes_max = '1 GiB'".to_owned(),
            "limits.key_bytes_max",
            "allowed",
        ),
        (
            "[limits]\nmessage_bytes_max = '1 KiB'".to_owned(),
            "message_bytes_max",
            "65536",
        ),
        (
            "[limits]\nvalue_bytes_max = '64 MiB'".to_owned(),
            "value_bytes_max",
            "message",
        ),
        (
            "[limits]\nbytes_in_flight_max = '1 MiB'".to_owned(),
            "bytes_in_flight_max",
            "message",
        ),
        (
            "[limits]\nsessions_max = 0".to_owned(),
            "limits.sessions_max",
            "1 to",
        ),
        (
            "[limits]\nwatches_max = -1".to_owned(),
            "server.toml:4",
            "-1",
        ),
        (
            "[limits]\nwatches_max = '5 apples'".to_owned(),
            "server.toml:4",
            "5 apples",
        ),
        (
            "[timeouts]\nhandshake = '1ms'".to_owned(),
            "timeouts.handshake",
            "100ms",
        ),
        (
            "[timeouts]\nsilence = '20s'".to_owned(),
            "timeouts.silence",
            "heartbeat",
        ),
        ("[timeouts]\ndrain = 10".to_owned(), "server.toml:4", "10"),
        (
            "[engine]\nread_threads = 0".to_owned(),
            "engine.read_threads",
            "at least 1",
        ),
        (
            "[engine]\nmwdb_keyspaces = ['..']".to_owned(),
            "mwdb_keyspaces",
            "..",
        ),
        ("accept_data_loss = 'no'".to_owned(), "server.toml:3", "no"),
    ];
    for (text, key, allowed) in cases {
        let config = folder.config(&format!("certs = 'c'\n{text}\n"));
        for command in [&["serve"][..], &["config", "check"]] {
            ran(&[command, &["--config", &config]].concat())
                .expect(2)
                .says(&[key, allowed]);
        }
    }
    // The same by flag and by environment.
    ran(&["serve", "--certs", "c", "--durability", "maybe"])
        .expect(2)
        .says(&["durability", "maybe"]);
    ran(&["serve", "--certs", "c", "--listen", "localhost"])
        .expect(2)
        .says(&["--listen", "localhost"]);
    let mut command = server(&["config", "check", "--certs", "c"]);
    command.env("STORAGE_SERVER_LOG_FORMAT", "xml");
    run(&mut command, b"")
        .expect(2)
        .says(&["log.format", "xml"]);
    ran(&["serve"]).expect(2).says(&["certs", "storage-certs"]);
    ran(&["serve", "--config", "/no/such.toml"])
        .expect(2)
        .says(&["/no/such.toml"]);
    ran(&["serve", "--colour"]).expect(2).says(&["--colour"]);
    ran(&[]).expect(2);
}

#[test]
fn a_check_warns_of_rules_that_give_nothing_and_is_good_all_the_same() {
    let folder = Folder::new();
    let config = folder.config(&format!(
        "{PLAIN}\
         [[rule]]\nprincipal = 'boss'\nkeyspace = '*'\nallow = ['read']\n\
         [[rule]]\nprincipal = 'cert:*'\nkeyspace = 'Model'\nallow = ['read']\n\
         [[rule]]\nprincipal = 'role:ops'\nkeyspace = 'a'\nallow = ['read']\n\
         [[rule]]\nprincipal = 'cert:*'\nkeyspace = 'b'\nallow = ['read', 'write']\n\
         [[rule]]\nprincipal = 'cert:*'\nkeyspace = 'b'\nprefix = 'k/'\nallow = ['read']\n\
         [[role]]\nname = 'ops'\nmembers = []\n"
    ));
    let checked = ran(&["config", "check", "--config", &config]).expect(0);
    assert_eq!(checked.text(), "the configuration is good\n");
    checked.says(&[
        "warning: rule[0] of the configuration: principal \"boss\" matches nobody",
        "warning: rule[1] of the configuration: keyspace \"Model\" matches none",
        "warning: rule[2] of the configuration: nobody has role \"ops\"",
        "warning: rule[4] of the configuration: it gives nothing beyond rule[3]",
        "warning: role \"ops\" of the configuration: it has no members",
        "stored are not looked at",
    ]);
    let good = "[[rule]]\nprincipal = 'cert:x'\nkeyspace = 'b'\nallow = ['read']\n";
    let config = folder.config(&format!("{PLAIN}{good}"));
    ran(&["config", "check", "--config", &config])
        .expect(0)
        .says(&["no rule gives \"admin\" of the keyspace \"system\": unless a stored one does"]);
    let admin = "[[rule]]\nprincipal = 'user:x'\nkeyspace = 'system'\nallow = ['admin']\n";
    let config = folder.config(&format!("{PLAIN}{good}{admin}"));
    let checked = ran(&["config", "check", "--config", &config]).expect(0);
    assert!(!format!("{checked:?}").contains("warning"), "{checked:?}");
}

#[test]
fn what_print_prints_is_a_configuration_that_prints_the_same() {
    let folder = Folder::new();
    let config = folder.config(
        "certs = 'c'\ndurability = 'os'\n\
         [limits]\nkey_bytes_max = '1 KiB'\nmemory_bytes_max = '64 MiB'\n\
         [timeouts]\nhandshake = '7s'\n\
         [engine]\nlog_age = '2h'\nmwdb_keyspaces = ['mwdb', 'graph']\n\
         [[listener]]\naddress = '127.0.0.1:1'\ntls_min_version = '1.2'\n\
         [[listener]]\naddress = '[::1]:2'\ntls = 'off'\ngateways = ['storage', 'admin']\n\
         [[listener]]\naddress = '0.0.0.0:3'\ntls = 'off'\ndanger_plaintext = true\nauth = ['anonymous', 'token']\n\
         [[rule]]\nprincipal = 'role:ops'\nkeyspace = '*'\nallow = ['read']\n\
         [[role]]\nname = 'ops'\nmembers = ['cert:*']\n",
    );
    let print = |config: &str| ran(&["config", "print", "--config", config]).expect(0);
    let first = print(&config);
    for told in [
        "key_bytes_max = 1024",
        "handshake = \"7s\"",
        "[::1]:2",
        "graph",
        "silence",
    ] {
        assert!(first.text().contains(told), "{told}: {}", first.text());
    }
    let again = folder.dir.path().join("again.toml");
    fs::write(&again, &first.stdout).unwrap();
    let again = again.to_str().unwrap();
    assert_eq!(print(again).text(), first.text());
    let certificates = Certificates::issue(&[]);
    let certs = certificates.dir().display().to_string();
    let good = ran(&["config", "check", "--config", again, "--certs", &certs]).expect(0);
    assert!(good.text().contains("good"), "{good:?}");
    assert!(!folder.data().exists(), "looking changes nothing");
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let folder = Folder::new();
    let config = folder.config(
        "certs = 'file'\ndurability = 'sync'\n\
         [log]\nformat = 'text'\ndir = 'file'\nfilter = 'error'\n\
         [[listener]]\naddress = '127.0.0.1:1'\n",
    );
    for (flag, variable, key, values) in [
        ("--data", "STORAGE_SERVER_DATA", "data", ["", "env", "flag"]),
        (
            "--certs",
            "STORAGE_SERVER_CERTS",
            "certs",
            ["file", "env", "flag"],
        ),
        (
            "--durability",
            "STORAGE_SERVER_DURABILITY",
            "durability",
            ["sync", "os", "sync"],
        ),
        (
            "--log-format",
            "STORAGE_SERVER_LOG_FORMAT",
            "format",
            ["text", "json", "text"],
        ),
        (
            "--log-dir",
            "STORAGE_SERVER_LOG_DIR",
            "dir",
            ["file", "env", "flag"],
        ),
        (
            "--log",
            "STORAGE_SERVER_LOG",
            "filter",
            ["error", "warn", "debug"],
        ),
        (
            "--listen",
            "STORAGE_SERVER_LISTEN",
            "address",
            ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"],
        ),
    ] {
        let printed = |environment: bool, by_flag: bool| {
            let mut command = server(&["config", "print", "--config", &config]);
            if environment {
                command.env(variable, values[1]);
            }
            if by_flag {
                command.args([flag, values[2]]);
            }
            run(&mut command, b"").expect(0).text().to_owned()
        };
        let says = |text: &str, value: &str| {
            let line = format!("{key} = \"{value}\"");
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        };
        let from_file = match key {
            "data" => folder.data().display().to_string(),
            _ => values[0].to_owned(),
        };
        says(&printed(false, false), &from_file);
        says(&printed(true, false), values[1]);
        says(&printed(true, true), values[2]);
    }
}

#[test]
fn help_shows_how_it_is_done() {
    for arguments in [&["--help"][..], &["serve", "--help"]] {
        let help = ran(arguments).expect(0);
        for part in ["Examples:", "storage-server serve --certs", "Exit codes"] {
            assert!(help.text().contains(part), "{part}: {}", help.text());
        }
    }
    let help = ran(&["serve", "--help"]).expect(0);
    for part in [
        "--config",
        "--data",
        "--listen",
        "STORAGE_SERVER_DURABILITY",
    ] {
        assert!(help.text().contains(part), "{part}: {}", help.text());
    }
    assert!(
        ran(&["--version"])
            .expect(0)
            .text()
            .starts_with("storage-server ")
    );
}

// The start.

#[test]
fn a_taken_port_ends_with_1_and_names_the_address() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = folder.config(PLAIN);
    let done = ran(&["serve", "--config", &config, "--listen", &address]);
    let done = done.expect(1).says(&["cannot listen", &address]);
    assert!(done.stdout.is_empty(), "it does not listen: {done:?}");
    // Nothing is left behind that would be in the way of the next start.
    drop(taken);
    let serving = Serving::start(&["--config", &config, "--listen", &address], 1);
    assert_eq!(serving.address(0), address);
}

#[test]
fn a_data_folder_that_cannot_be_had_ends_with_1_and_says_why() {
    let folder = Folder::new();
    let config = folder.config(PLAIN);
    let serving = Serving::start(&["--config", &config], 1);
    let name = folder.data().display().to_string();
    ran(&["serve", "--config", &config])
        .expect(1)
        .says(&["in use by another process", &name]);
    assert_eq!(
        get(serving.address(0), "/storage/model").0,
        426,
        "the first goes on"
    );
    drop(serving);

    let newer = Folder::new();
    fs::create_dir(newer.data()).unwrap();
    fs::write(
        newer.data().join("STORE"),
        "storage-sync store, format 999\n",
    )
    .unwrap();
    ran(&["serve", "--config", &newer.config(PLAIN)])
        .expect(1)
        .says(&["format 999", "newer"]);

    // A file where a folder should be: also the superuser, whom permissions do not stop, cannot read it.
    let unreadable = Folder::new();
    fs::write(unreadable.data(), "").unwrap();
    let name = unreadable.data().display().to_string();
    ran(&["serve", "--config", &unreadable.config(PLAIN)])
        .expect(1)
        .says(&[&name]);

    let foreign = Folder::new();
    fs::create_dir(foreign.data()).unwrap();
    fs::write(foreign.data().join("thesis.txt"), "years of work").unwrap();
    ran(&["serve", "--config", &foreign.config(PLAIN)])
        .expect(1)
        .says(&["no storage-sync data folder"]);
}

#[test]
fn certificates_that_are_not_there_end_it_with_1_and_are_named() {
    let folder = Folder::new();
    let config = folder.config(&format!("certs = {:?}\n{MUTUAL}", folder.dir.path()));
    let name = folder.dir.path().join("server").display().to_string();
    ran(&["serve", "--config", &config])
        .expect(1)
        .says(&[&name]);
}

#[tokio::test]
async fn the_first_lines_tell_each_listener_and_nothing_else_is_printed() {
    let folder = Folder::new();
    let certificates = Certificates::issue(&["caller"]);
    let listener = |tls: &str, gateways: &str| {
        let auth = if tls == "server" {
            "auth = ['anonymous']\n"
        } else {
            ""
        };
        let what = format!("tls = '{tls}'\n{auth}gateways = [{gateways}]\n");
        format!("[[listener]]\naddress = '127.0.0.1:0'\n{what}")
    };
    let config = folder.config(&format!(
        "certs = {:?}\n{}{}{}{}",
        certificates.dir(),
        listener("mutual", "'storage'"),
        listener("off", "'admin'"),
        listener("server", "'admin', 'storage'"),
        listener("off", "'storage', 'admin'"),
    ));
    let mut serving = Serving::start(&["--config", &config], 4);
    let expected = [
        "wss storage",
        "http admin",
        "wss storage,admin",
        "ws storage,admin",
    ];
    for (line, expected) in serving.lines.iter().zip(expected) {
        let (scheme, gateways) = expected.split_once(' ').unwrap();
        let port = line
            .strip_prefix(&format!("listening {scheme}://127.0.0.1:"))
            .and_then(|rest| rest.strip_suffix(&format!(" {gateways}")));
        let port = port.and_then(|port| port.parse::<u16>().ok());
        assert!(port.is_some_and(|port| port > 0), "{line}");
    }
    // Each is what its line says, for the same store.
    let mutual =
        ConnectOptions::new(serving.url(0)).credentials_dir(certificates.dir().join("caller"));
    let anonymous = ConnectOptions::new(serving.url(2))
        .without_client_certificate(certificates.dir().join("ca.pem"));
    let mutual = RemoteStorage::connect(mutual).await.unwrap();
    let anonymous = RemoteStorage::connect(anonymous).await.unwrap();
    let plain = serving.plain(3).await;
    mutual.put("k".into(), "v".into()).await.unwrap();
    for storage in [&anonymous, &plain] {
        assert_eq!(
            storage.get_one("k".into()).await.unwrap().unwrap().value,
            "v"
        );
    }
    for listener in [1, 3] {
        assert_eq!(
            get(serving.address(listener), "/healthz"),
            (200, "alive\n".into())
        );
    }
    serving.signal(Signal::TERM);
    assert_eq!(serving.end(PATIENCE), Some(0));
    let more: Vec<String> = serving.stdout.iter().collect();
    assert!(more.is_empty(), "{more:?}");
}

// The admin gateway.

#[test]
fn a_gateway_is_served_only_where_it_was_configured() {
    let folder = Folder::new();
    let serving = Serving::start(&["--config", &folder.config(&format!("{PLAIN}{ADMIN}"))], 2);
    let (storage, admin) = (serving.address(0), serving.address(1));
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: storage-sync.v1\r\n";
    for path in ["/storage/model", "/"] {
        assert_eq!(get(admin, path).0, 404, "{path}");
        assert_eq!(http(admin, "GET", path, upgrade).0, 404, "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(storage, path).0, 404, "{path}");
        assert_eq!(get(admin, path).0, 200, "{path}");
        assert_eq!(http(admin, "POST", path, "").0, 405, "{path}");
    }
    assert_eq!(get(storage, "/storage/model").0, 426);
    assert_eq!(get(storage, "/elsewhere").0, 404);
    assert_eq!(get(admin, "/elsewhere").0, 404);
}

/// Reads the Prometheus text format strictly: the value of each series.
fn prometheus(text: &str) -> BTreeMap<String, f64> {
    let is_name = |name: &str| {
        let mut bytes = name.bytes();
        bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
    };
    assert!(text.ends_with('\n'), "the last line is whole");
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeMap::new());
    let mut series = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(helped.insert(name.to_owned()), "described twice: {line}");
            family = name.to_owned();
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            assert_eq!(name, family, "TYPE stands behind its HELP: {line}");
            assert!(
                typed.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{line}"
            );
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            continue;
        }
        let (id, value) = line.rsplit_once(' ').expect(line);
        let (name, labels) = match id.split_once('{') {
            None => (id, None),
            Some((name, labels)) => (name, Some(labels.strip_suffix('}').expect(line))),
        };
        assert!(
            is_name(name) && name == family && typed.contains_key(name),
            "{line}"
        );
        for label in labels.iter().flat_map(|labels| labels.split(',')) {
            let (label, value) = label.split_once('=').expect(line);
            let quoted = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'));
            assert!(
                is_name(label) && quoted.is_some_and(|v| !v.contains('"')),
                "{line}"
            );
        }
        let value: f64 = value.parse().expect(line);
        assert!(value >= 0.0, "{line}");
        assert!(
            series.insert(id.to_owned(), value).is_none(),
            "twice: {line}"
        );
    }
    assert_eq!(helped.len(), typed.len());
    series
}

#[tokio::test]
async fn metrics_are_prometheus_text_and_grow_with_use() {
    let folder = Folder::new();
    let serving = Serving::start(&["--config", &folder.config(&format!("{PLAIN}{ADMIN}"))], 2);
    let read = || {
        let (status, text) = get(serving.address(1), "/metrics");
        assert_eq!(status, 200);
        prometheus(&text)
    };
    let before = read();
    let storage = serving.plain(0).await;
    for n in 0..10 {
        storage
            .put(format!("{n}").into(), "v".into())
            .await
            .unwrap();
    }
    for n in 0..5 {
        storage.get_one(format!("{n}").into()).await.unwrap();
    }
    let refused = storage.put_if_absent("1".into(), "v".into()).await;
    assert_eq!(refused.unwrap_err().outcome(), Outcome::Refused);
    let watch = storage.watch(KeyRange::all(), WatchOptions::every(WatchStart::Now));
    let _watch = watch.await.unwrap();
    assert_eq!(get(serving.address(0), "/elsewhere").0, 404);
    let after = read();
    let names = |series: &BTreeMap<String, f64>| series.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&before),
        names(&after),
        "series come at the start and stay"
    );
    let grown = |id: &str| after[id] - before[id];
    for (id, by) in [
        (
            "storage_requests_total{kind=\"commit\",outcome=\"ok\"}",
            10.0,
        ),
        (
            "storage_requests_total{kind=\"commit\",outcome=\"refused\"}",
            1.0,
        ),
        ("storage_requests_total{kind=\"get\",outcome=\"ok\"}", 5.0),
        ("storage_requests_total{kind=\"watch\",outcome=\"ok\"}", 1.0),
        ("storage_sessions{gateway=\"native\"}", 1.0),
        ("storage_watches", 1.0),
        ("storage_connections_refused_total{reason=\"http\"}", 1.0),
        // The session, the refused request and this reading itself.
        ("storage_connections_accepted_total", 3.0),
    ] {
        assert!((grown(id) - by).abs() < 0.5, "{id} grew by {}", grown(id));
    }
    for id in [
        "storage_received_bytes_total",
        "storage_sent_bytes_total",
        "storage_commits_total",
    ] {
        assert!(grown(id) >= 10.0, "{id} grew by {}", grown(id));
    }
    for (id, before) in before.iter().filter(|(id, _)| id.contains("_total")) {
        assert!(after[id] >= *before, "{id} went back");
    }
}

// The end.

struct Producer {
    acknowledged: Vec<(Key, Position)>,
    error: StorageError,
    state: ConnectionState,
}

/// Pushes without pause until the connection is over.
async fn push(storage: RemoteStorage, number: usize, count: Arc<AtomicU32>) -> Producer {
    let mut acknowledged = Vec::new();
    let mut n = 0;
    let error = loop {
        let key = Key::from(format!("{number}/{n:06}"));
        match storage.put(key.clone(), vec![b'v'; 500].into()).await {
            Ok(position) => acknowledged.push((key, position)),
            Err(error) => break error,
        }
        count.fetch_add(1, Ordering::Relaxed);
        n += 1;
    };
    let mut states = storage.state();
    let closed = states.wait_for(|state| matches!(state, ConnectionState::Closed { .. }));
    let state = tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("the connection is over soon")
        .unwrap()
        .clone();
    Producer {
        acknowledged,
        error,
        state,
    }
}

async fn a_push_survives(signal: Signal) {
    let folder = Folder::new();
    let certificates = Certificates::issue(&["producer"]);
    let config = folder.config(&format!("certs = {:?}\n{MUTUAL}", certificates.dir()));
    let mut serving = Serving::start(&["--config", &config], 1);
    let connect = |serving: &Serving| {
        let own = certificates.dir().join("producer");
        // What the server says at its end is looked at, so the client must not go on to the next one.
        let options = ConnectOptions::new(serving.url(0)).credentials_dir(own);
        RemoteStorage::connect(options.give_up_after(Duration::ZERO))
    };
    let counts: Vec<Arc<AtomicU32>> = (0..8).map(|_| Arc::default()).collect();
    let mut pushing = Vec::new();
    for (number, count) in counts.iter().enumerate() {
        let storage = connect(&serving).await.unwrap();
        pushing.push(tokio::spawn(push(storage, number, count.clone())));
    }
    let under_way = async {
        while counts
            .iter()
            .any(|count| count.load(Ordering::Relaxed) < 20)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, under_way)
        .await
        .expect("the push is under way");
    serving.signal(signal);
    // Ten seconds for what is in flight, five to close: it needs nothing of the kind.
    let ending = tokio::task::spawn_blocking(move || serving.end(Duration::from_secs(10)));
    assert_eq!(ending.await.unwrap(), Some(0));
    let mut acknowledged = Vec::new();
    for producer in pushing {
        let producer = tokio::time::timeout(PATIENCE, producer)
            .await
            .unwrap()
            .unwrap();
        let ConnectionState::Closed { why } = &producer.state else {
            panic!("{:?}", producer.state)
        };
        assert!(why.contains("1001") && why.contains("shuts down"), "{why}");
        // Refused by the server before it closed, or cut off when it did: told apart by the outcome.
        let StorageError::Closed { reason, .. } = &producer.error else {
            panic!("{:?}", producer.error)
        };
        assert!(reason.contains("the server shuts down"), "{reason}");
        acknowledged.extend(producer.acknowledged);
    }
    let serving = Serving::start(&["--config", &config], 1);
    let storage = connect(&serving).await.unwrap();
    let scan = storage
        .scan(KeyRange::all(), ScanOptions::default())
        .await
        .unwrap();
    let there: BTreeMap<Key, _> = scan
        .collect()
        .await
        .unwrap()
        .into_iter()
        .map(|item| (item.key, item.state.revision()))
        .collect();
    for (key, position) in &acknowledged {
        assert_eq!(there.get(key), Some(&position.revision), "lost: {key:?}");
    }
    assert!(acknowledged.len() >= 8 * 20 && there.len() <= acknowledged.len() + 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_nothing_that_was_acknowledged() {
    a_push_survives(Signal::TERM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigint_under_load_loses_nothing_that_was_acknowledged() {
    a_push_survives(Signal::INT).await;
}

type Raw = WebSocketStream<tokio::net::TcpStream>;

/// A session whose frames the test reads itself, or does not.
async fn raw_session(address: &str) -> Raw {
    let socket = TcpSocket::new_v4().unwrap();
    // Small, so that who does not read is noticed.
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let stream = socket.connect(address.parse().unwrap()).await.unwrap();
    let mut request = format!("ws://{address}/storage/model")
        .into_client_request()
        .unwrap();
    let protocol = SUBPROTOCOL.parse().unwrap();
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", protocol);
    let (mut raw, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    let hello = Hello::new("raw");
    let frame = ClientMessage::Hello(hello).encode(None).to_frame();
    raw.send(Message::Binary(frame)).await.unwrap();
    assert!(matches!(next(&mut raw).await, ServerMessage::Welcome(_)));
    raw
}

async fn message(raw: &mut Raw) -> Message {
    let next = tokio::time::timeout(PATIENCE, raw.next());
    next.await.expect("a message comes soon").unwrap().unwrap()
}

async fn next(raw: &mut Raw) -> ServerMessage {
    match message(raw).await {
        Message::Binary(frame) => {
            ServerMessage::decode(Packet::from_frame(frame).unwrap()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_idle_peer_is_told_before_it_is_closed() {
    let folder = Folder::new();
    let mut serving = Serving::start(&["--config", &folder.config(PLAIN)], 1);
    let mut raw = raw_session(serving.address(0)).await;
    serving.signal(Signal::TERM);
    let ServerMessage::GoAway {
        reason,
        retry_after,
    } = next(&mut raw).await
    else {
        panic!("GoAway comes first")
    };
    assert!(
        reason.contains("shuts down") && !retry_after.is_zero(),
        "{reason}"
    );
    let Message::Close(Some(frame)) = message(&mut raw).await else {
        panic!("then it is closed")
    };
    assert_eq!(u16::from(frame.code), 1001);
    assert_eq!(serving.end(PATIENCE), Some(0));
}

/// A server with a session that asked for more than the sockets hold, and does not read it.
async fn with_a_peer_that_does_not_read(folder: &Folder, drain: &str) -> (Serving, Raw) {
    let text = format!("[timeouts]\ndrain = '{drain}'\n{PLAIN}{ADMIN}");
    let serving = Serving::start(&["--config", &folder.config(&text)], 2);
    let storage = serving.plain(0).await;
    storage
        .put("large".into(), vec![b'v'; 15 << 20].into())
        .await
        .unwrap();
    storage.close().await;
    let mut raw = raw_session(serving.address(0)).await;
    let keys = vec![Key::from("large")];
    let frame = ClientMessage::Get { keys }.encode(Some(1)).to_frame();
    raw.send(Message::Binary(frame)).await.unwrap();
    let stuck = async {
        let waiting = || prometheus(&get(serving.address(1), "/metrics").1)["storage_budget_used_bytes{budget=\"outbox\"}"];
        while waiting() < 1.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stuck)
        .await
        .expect("the answer waits");
    (serving, raw)
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_when_the_time_to_drain_is_over() {
    let folder = Folder::new();
    let (mut serving, _raw) = with_a_peer_that_does_not_read(&folder, "1s").await;
    let began = Instant::now();
    serving.signal(Signal::TERM);
    assert_eq!(serving.end(Duration::from_secs(15)), Some(0));
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "it was given its time"
    );
    let log = serving.log().join("\n");
    assert!(
        log.contains("timed out") && log.contains("connections cut: 1"),
        "{log}"
    );
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_not_in_order() {
    let folder = Folder::new();
    let (mut serving, _raw) = with_a_peer_that_does_not_read(&folder, "1h").await;
    serving.signal(Signal::TERM);
    serving.wait_for_log("a second signal ends at once");
    serving.signal(Signal::INT);
    assert_eq!(serving.end(Duration::from_secs(10)), Some(1));
    // What was acknowledged is there all the same.
    let serving = Serving::start(&["--config", &folder.config(PLAIN)], 1);
    let storage = serving.plain(0).await;
    let large = storage.get_one("large".into()).await.unwrap().unwrap();
    assert_eq!(large.value.len(), 15 << 20);
}

// The log.

const SECRET_KEY: &str = "key-7f3a91";
const SECRET_VALUE: &str = "value-c04d55";

/// Does all that a client can, with a key and a value that can be recognised.
async fn use_with_secrets(storage: &RemoteStorage) {
    let key = || Key::from(SECRET_KEY);
    let watch = WatchOptions::every(WatchStart::Now);
    let mut watch = storage
        .watch(KeyRange::prefix(SECRET_KEY), watch)
        .await
        .unwrap();
    storage.put(key(), SECRET_VALUE.into()).await.unwrap();
    watch.next().await.unwrap().unwrap();
    storage.get_one(key()).await.unwrap().unwrap();
    let scan = storage.scan(KeyRange::prefix(SECRET_KEY), ScanOptions::default());
    assert_eq!(scan.await.unwrap().collect().await.unwrap().len(), 1);
    let batch = Batch::new().check_absent(key()).put(key(), SECRET_VALUE);
    let refused = storage
        .commit(batch, CommitOptions::labelled("no").with_previous())
        .await;
    assert!(refused.unwrap_err().to_string().contains(SECRET_KEY));
    storage.remove(key()).await.unwrap();
    storage.close().await;
}

#[tokio::test]
async fn a_json_log_is_one_object_a_line_with_the_principal_and_without_keys_or_values() {
    let certificates = Certificates::issue(&["producer"]);
    let folder = Folder::new();
    let config = folder.config(&format!("certs = {:?}\n{MUTUAL}", certificates.dir()));
    let logs = folder.dir.path().join("logs");
    let mut arguments = vec!["--config", &config, "--log-format", "json"];
    arguments.extend(["--log", "info,storage_server=trace"]);
    arguments.extend(["--log-dir", logs.to_str().unwrap()]);
    let mut serving = Serving::start(&arguments, 1);
    let options =
        ConnectOptions::new(serving.url(0)).credentials_dir(certificates.dir().join("producer"));
    use_with_secrets(&RemoteStorage::connect(options.clone()).await.unwrap()).await;
    serving.signal(Signal::TERM);
    assert_eq!(serving.end(PATIENCE), Some(0));

    let log = serving.log();
    let mut principals = BTreeSet::new();
    for line in &log {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        for field in ["timestamp", "level", "target", "fields"] {
            assert!(object.get(field).is_some(), "{field}: {line}");
        }
        for span in object["spans"].as_array().into_iter().flatten() {
            principals.extend(span["principal"].as_str().map(str::to_owned));
        }
        for secret in [SECRET_KEY, SECRET_VALUE] {
            assert!(!line.contains(secret), "{line}");
        }
    }
    assert!(
        principals.contains("cert:producer"),
        "{principals:?}: {log:#?}"
    );
    // The file of the day says the same.
    let files: Vec<PathBuf> = fs::read_dir(&logs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [file] = files.as_slice() else {
        panic!("{files:?}")
    };
    let name = file.file_name().unwrap().to_str().unwrap();
    let date = name
        .strip_prefix("storage-server.")
        .and_then(|rest| rest.strip_suffix(".log"));
    assert!(
        date.is_some_and(|date| date.len() == "2000-01-01".len()),
        "{name}"
    );
    let kept = fs::read_to_string(file).unwrap();
    let messages = |lines: &mut dyn Iterator<Item = &str>| -> Vec<String> {
        lines
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["fields"].to_string()
            })
            .collect()
    };
    assert_eq!(
        messages(&mut kept.lines()),
        messages(&mut log.iter().map(String::as_str))
    );
}

#[tokio::test]
async fn a_refusal_is_logged_with_its_reason_and_the_principal_at_the_usual_level() {
    let certificates = Certificates::issue(&["producer"]);
    let folder = Folder::new();
    let config = folder.config(&format!(
        "certs = {:?}\n[limits]\nsessions_per_principal_max = 1\n{MUTUAL}",
        certificates.dir()
    ));
    let serving = Serving::start(&["--config", &config], 1);
    let nobody = ConnectOptions::new(serving.url(0))
        .without_client_certificate(certificates.dir().join("ca.pem"));
    RemoteStorage::connect(nobody).await.unwrap_err();
    let line = serving.wait_for_log("refused a connection");
    assert!(line.contains("certificate"), "{line}");

    let options =
        ConnectOptions::new(serving.url(0)).credentials_dir(certificates.dir().join("producer"));
    let first = RemoteStorage::connect(options.clone()).await.unwrap();
    let text = RemoteStorage::connect(options)
        .await
        .unwrap_err()
        .to_string();
    assert!(text.contains("503") && text.contains("principal"), "{text}");
    let line = serving.wait_for_log("refused a request");
    for part in ["503", "principal=\"cert:producer\""] {
        assert!(line.contains(part), "{part}: {line}");
    }
    first.put("k".into(), "v".into()).await.unwrap();
}

// Poison.

#[tokio::test]
async fn after_a_failed_write_nothing_is_written_and_everything_acknowledged_is_read() {
    let folder = Folder::new();
    let config = folder.config(&format!("[engine]\ndisk_reserve_bytes = 0\n{PLAIN}{ADMIN}"));
    let arguments = vec!["--config".to_owned(), config.clone()];
    // The system refuses what would make a file larger than a few MiB: the log, in the middle of a commit.
    let shell = "trap '' XFSZ; ulimit -f 8192; exec \"$@\"";
    let mut server = ServerProcess::start_in_shell(Some(shell), arguments);
    let connect = |url: &str| {
        let url = format!("{url}/storage/model");
        RemoteStorage::connect(ConnectOptions::new(url).danger_plaintext())
    };
    let admin = server.url("admin").replace("http://", "");
    assert_eq!(get(&admin, "/readyz"), (200, "ready\n".into()));
    let storage = connect(server.url("storage")).await.unwrap();
    let mut acknowledged: Vec<(Key, Position)> = Vec::new();
    let value = |n: usize| vec![u8::try_from(n % 251).unwrap(); 64 * 1024];
    let failed = loop {
        let n = acknowledged.len();
        assert!(n < 1_000, "the limit is reached");
        let key = Key::from(format!("{n:04}"));
        match storage.put(key.clone(), value(n).into()).await {
            Ok(position) => acknowledged.push((key, position)),
            Err(error) => break error,
        }
    };
    assert!(acknowledged.len() > 10, "{failed}");
    assert_eq!(failed.outcome(), Outcome::Unknown, "{failed:?}");

    let check = async |storage: &RemoteStorage| {
        for (n, (key, position)) in acknowledged.iter().enumerate() {
            let entry = storage.get_one(key.clone()).await.unwrap().unwrap();
            assert!(
                entry.value == value(n) && entry.revision == position.revision,
                "{key:?}"
            );
        }
    };
    let other = connect(server.url("storage")).await.unwrap();
    for storage in [&storage, &other] {
        let refused = storage.put("later".into(), "v".into()).await.unwrap_err();
        assert!(
            matches!(refused, StorageError::ReadOnly { .. }),
            "{refused:?}"
        );
        assert_eq!(refused.outcome(), Outcome::NotExecuted);
        let text = refused.to_string();
        assert!(
            text.contains("refused until the store is reopened"),
            "{text}"
        );
        assert!(
            text.to_lowercase().contains("too large"),
            "the system's reason: {text}"
        );
        check(storage).await;
    }
    let (status, reason) = get(&admin, "/readyz");
    assert_eq!(status, 503, "{reason}");
    assert!(
        reason.contains("not ready") && reason.contains("reopened"),
        "{reason}"
    );
    assert_eq!(get(&admin, "/healthz").0, 200, "it is alive");
    let writable = prometheus(&get(&admin, "/metrics").1)["storage_writable"];
    assert!(writable < 0.5);

    server.terminate();
    let server = ServerProcess::start(&["--config", &config]);
    let storage = connect(server.url("storage")).await.unwrap();
    check(&storage).await;
    storage.put("later".into(), "v".into()).await.unwrap();
    let position = storage.sync().await.unwrap();
    let last = acknowledged.last().unwrap().1;
    assert!(position.epoch == last.epoch && position.revision > last.revision);
}

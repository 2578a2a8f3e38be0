//! The whole command line that others script against: `storage` and `storage-certs` against a real server over
//! mutual TLS, by exit codes, standard output and error.
//!
//! What each sub-command does to its arguments is tested beside it, against a small server; here the parts are the
//! ones that are shipped, and the data is real.

#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]

mod processes;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use processes::{Ran, finish, run, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use storage_testkit::harness::{Certificates, ServerProcess, binary};
use tempfile::TempDir;

/// For each single wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server, and the credentials of `alice`.
struct House {
    server: ServerProcess,
    certificates: Certificates,
    folder: TempDir,
}

impl House {
    fn new() -> Self {
        let certificates = Certificates::issue(&["alice"]);
        let folder = tempfile::tempdir().unwrap();
        let server = ServerProcess::mutual(&certificates, &folder.path().join("data"), &[]);
        Self {
            server,
            certificates,
            folder,
        }
    }

    fn command_in(&self, keyspace: &str, arguments: &[&str]) -> Command {
        let mut command = bare(&[]);
        command
            .arg("--url")
            .arg(format!("{}/storage/{keyspace}", self.server.url("storage")))
            .arg("--certs")
            .arg(self.certificates.dir())
            .args(["--identity", "alice"])
            .args(arguments);
        command
    }

    #[track_caller]
    fn in_keyspace(&self, keyspace: &str, arguments: &[&str]) -> Ran {
        run(&mut self.command_in(keyspace, arguments), b"")
    }

    #[track_caller]
    fn storage(&self, arguments: &[&str]) -> Ran {
        self.in_keyspace("model", arguments)
    }

    #[track_caller]
    fn with_stdin(&self, arguments: &[&str], stdin: &[u8]) -> Ran {
        run(&mut self.command_in("model", arguments), stdin)
    }

    /// Puts a text and gives its revision.
    #[track_caller]
    fn put(&self, key: &str, value: &str) -> u64 {
        let position = self.storage(&["put", key, value]).expect(0);
        let (_, revision) = position.text().trim().split_once(':').unwrap();
        revision.parse().unwrap()
    }

    fn file(&self, name: &str, contents: &[u8]) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, contents).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// `storage`, without what the environment of the test may say.
fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("storage"));
    for name in ["STORAGE_URL", "STORAGE_CERTS", "STORAGE_IDENTITY"] {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

fn certs(arguments: &[&str]) -> Ran {
    run(Command::new(binary("storage-certs")).args(arguments), b"")
}

fn flights(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("../data/nycflights13").join(name);
    path.to_str().unwrap().to_owned()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// The digest by its rule, from an export: SHA-256 over each key, then each value, with its length before it.
fn digest_of_export(export: &str) -> (String, usize) {
    let mut hash = Sha256::new();
    let lines = json_lines(export);
    for line in &lines {
        for field in ["key", "value"] {
            let put = &line["put"];
            let bytes = match put[field].as_str() {
                Some(text) => text.as_bytes().to_vec(),
                None => BASE64_STANDARD
                    .decode(put[format!("{field}_b64")].as_str().unwrap())
                    .unwrap(),
            };
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(&bytes);
        }
    }
    (hex::encode(hash.finalize()), lines.len())
}

/// HEX and COUNT of `digest`.
#[track_caller]
fn digest(ran: Ran) -> (String, usize) {
    let ran = ran.expect(0);
    let [hex, revision, count] = ran.text().split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{ran:?}")
    };
    assert!(revision.parse::<u64>().unwrap() > 0 && hex.len() == 64);
    (hex.to_owned(), count.parse().unwrap())
}

/// A command that goes on, with its lines as they come; killed when dropped.
struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        Self {
            child,
            stdout,
            stderr,
        }
    }

    fn line(&self) -> String {
        self.stdout
            .recv_timeout(PATIENCE)
            .expect("a line comes soon")
    }

    /// Waits for a line on standard error that begins with this.
    fn told(&self, start: &str) -> String {
        loop {
            let line = self.stderr.recv_timeout(PATIENCE).expect(start);
            if let Some(rest) = line.strip_prefix(start) {
                return rest.trim().to_owned();
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
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

#[test]
fn credentials_are_made_given_out_and_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ca");
    let at = dir.to_str().unwrap();
    let names = ["--server-name", "localhost", "--server-name", "127.0.0.1"];
    certs(&["init", "--dir", at])
        .expect(2)
        .says(&["--server-name"]);
    certs(&["issue", "early", "--dir", at])
        .expect(1)
        .says(&[at]);
    certs(&[&["init", "--dir", at], &names[..]].concat()).expect(0);
    certs(&[&["init", "--dir", at], &names[..]].concat())
        .expect(1)
        .says(&["never replaced"]);
    let uri = "spiffe://example/alice";
    certs(&[
        "issue",
        "alice",
        "--dir",
        at,
        "--days",
        "7",
        "--san-uri",
        uri,
    ])
    .expect(0);
    certs(&["issue", "thief", "--dir", at]).expect(0);
    let password = folder.path().join("password");
    fs::write(&password, "changeit\n").unwrap();
    let password = password.to_str().unwrap();
    let second = [
        "issue",
        "db2",
        "--dir",
        at,
        "--server",
        "--password-file",
        password,
    ];
    certs(&second).expect(0);
    certs(&["issue", "alice", "--dir", at])
        .expect(1)
        .says(&["--force"]);
    certs(&["issue", "../alice", "--dir", at]).expect(2);
    certs(&["issue", "bob", "--dir", at, "--days", "0"])
        .expect(2)
        .says(&["--days"]);
    certs(&["revoke", "nobody", "--dir", at])
        .expect(1)
        .says(&["nobody"]);
    certs(&["revoke", "thief", "--dir", at]).expect(0);
    for file in ["ca.pem", "ca-key.pem", "crl.pem"] {
        assert!(dir.join(file).is_file(), "{file}");
    }
    for name in ["server", "alice", "thief", "db2"] {
        for file in [
            "ca.pem",
            "cert.pem",
            "key.pem",
            "keystore.p12",
            "truststore.p12",
        ] {
            assert!(dir.join(name).join(file).is_file(), "{name}/{file}");
        }
        let key = fs::metadata(dir.join(name).join("key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600, "{name}");
    }

    let data = folder.path().join("data");
    let arguments = [
        "--listen",
        "127.0.0.1:0",
        "--certs",
        at,
        "--data",
        data.to_str().unwrap(),
    ];
    let server = ServerProcess::start(&arguments);
    let url = format!("{}/storage/model", server.url("storage"));
    let as_peer = |name: &str, arguments: &[&str]| {
        let common = ["--url", &url, "--certs", at, "--identity", name];
        run(&mut bare(&[&common, arguments].concat()), b"")
    };
    as_peer("thief", &["put", "k", "v"])
        .expect(3)
        .says(&["our certificate is revoked"]);
    as_peer("db2", &["put", "k", "v"])
        .expect(3)
        .says(&["not accept our certificate"]);
    as_peer("alice", &["put", "k", "v"]).expect(0);
    let told = as_peer("alice", &["--json", "watch", "--beginning", "--count", "1"]).expect(0);
    assert_eq!(
        json_lines(told.text())[0]["principal"],
        format!("cert:{uri}")
    );
}

#[test]
fn values_are_put_got_scanned_and_removed() {
    let house = House::new();
    house
        .storage(&["get", "a"])
        .expect(1)
        .says(&["not found: a"]);
    let first = house.put("a/1", "one");
    for (key, value) in [("a/2", "two"), ("a/3", "drei\t3"), ("b", ""), ("ü", "ö")] {
        house.put(key, value);
    }
    assert_eq!(house.storage(&["get", "a/1"]).expect(0).text(), "one\n");
    assert_eq!(
        house
            .storage(&["get", "--no-newline", "ü"])
            .expect(0)
            .text(),
        "ö"
    );
    let some = house.storage(&["get", "a/1", "nothing", "b"]).expect(1);
    assert_eq!(some.text(), "a/1\tone\nb\t\n");
    let one = house.storage(&["--json", "get", "a/1"]).expect(0);
    let expected = json!({"key": "a/1", "value": "one", "revision": first});
    assert_eq!(json_lines(one.text()), [expected]);

    let keys = |arguments: &[&str]| -> Vec<String> {
        let command = [&["scan", "--keys-only"], arguments].concat();
        let ran = house.storage(&command).expect(0);
        ran.text().lines().map(str::to_owned).collect()
    };
    assert_eq!(keys(&[]), ["a/1", "a/2", "a/3", "b", "ü"]);
    assert_eq!(keys(&["--prefix", "a/"]), ["a/1", "a/2", "a/3"]);
    assert_eq!(keys(&["--from", "a/2", "--to", "b"]), ["a/2", "a/3"]);
    assert_eq!(keys(&["--from", "a/3"]), ["a/3", "b", "ü"]);
    assert_eq!(keys(&["--to", "a/2"]), ["a/1"]);
    assert_eq!(keys(&["--reverse", "--limit", "2"]), ["ü", "b"]);
    assert_eq!(keys(&["--prefix", "nothing"]), [""; 0]);
    let scan = house
        .storage(&["scan", "--prefix", "a/", "--limit", "3"])
        .expect(0);
    assert_eq!(scan.text(), "a/1\tone\na/2\ttwo\na/3\tdrei\\t3\n");
    let scan = house
        .storage(&["--json", "scan", "--from", "a/3", "--to", "b"])
        .expect(0);
    assert_eq!(json_lines(scan.text())[0]["value"], "drei\t3");
    house
        .storage(&["scan", "--prefix", "a", "--from", "b"])
        .expect(2);
    house.storage(&["scan", "--limit", "0"]).expect(2);

    house.storage(&["rm", "a/1", "a/2", "absent"]).expect(0);
    assert_eq!(keys(&[]), ["a/3", "b", "ü"]);
    house.storage(&["rm"]).expect(2);

    // A short life ends, and is seen to end.
    let watch = ["watch", "--json", "--prefix", "brief", "--count", "2"];
    let watch = Running::start(&mut house.command_in("model", &watch));
    watch.told("watching from");
    house
        .storage(&["put", "brief", "v", "--ttl", "300ms"])
        .expect(0);
    let put: Value = serde_json::from_str(&watch.line()).unwrap();
    assert!(put["changes"][0]["put"]["expires_ms"].is_u64(), "{put}");
    let end: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(
        (&end["label"], &end["changes"][0]["remove"]["key"]),
        (&json!("expired"), &json!("brief"))
    );
    house.storage(&["get", "brief"]).expect(1);
    house.storage(&["put", "k", "v", "--ttl", "soon"]).expect(2);
}

#[test]
fn bytes_go_in_and_out_in_every_form() {
    let house = House::new();
    let bytes = [0, 255, b'\n', b'#', 0xc3];
    let file = house.file("bytes", &bytes);
    house.storage(&["--hex", "put", "00ff", "0aC3"]).expect(0);
    assert_eq!(
        house.storage(&["--hex", "get", "00ff"]).expect(0).text(),
        "0ac3\n"
    );
    house
        .storage(&["put", "from-file", &format!("@{file}")])
        .expect(0);
    house
        .with_stdin(&["put", "from-stdin", "-"], &bytes)
        .expect(0);
    house
        .with_stdin(&["put", "-", "key-from-stdin"], &bytes)
        .expect(0);
    house.storage(&["put", "@@at", "@@sign"]).expect(0);
    for key in ["from-file", "from-stdin"] {
        let got = house.storage(&["get", "--no-newline", key]).expect(0);
        assert_eq!(got.stdout, bytes, "{key}");
    }
    assert_eq!(
        house
            .storage(&["get", &format!("@{file}")])
            .expect(0)
            .text(),
        "key-from-stdin\n"
    );
    assert_eq!(house.storage(&["get", "@@at"]).expect(0).text(), "@sign\n");
    house
        .storage(&["put", "k", "@/no/such"])
        .expect(2)
        .says(&["/no/such"]);
    house.storage(&["put", "-", "-"]).expect(2).says(&["stdin"]);
    house
        .storage(&["--hex", "get", "0g"])
        .expect(2)
        .says(&["hexadecimal"]);

    // What is no text is standard Base64 in JSON, both ways.
    let scan = house.storage(&["--json", "scan"]).expect(0);
    let all = json_lines(scan.text());
    assert!(
        all.iter()
            .any(|entry| entry["key_b64"] == "AP8=" && entry["value_b64"] == "CsM="),
        "{all:?}"
    );
    assert!(
        all.iter()
            .any(|entry| entry["key"] == "from-file" && entry["value_b64"] == "AP8KI8M=")
    );
    let change = b"{\"put\":{\"key_b64\":\"/wA=\",\"value_b64\":\"AAD/\"}}\n{\"remove\":{\"key_b64\":\"AP8=\"}}\n";
    let change = house.file("change.jsonl", change);
    house.storage(&["commit", "--file", &change]).expect(0);
    assert_eq!(
        house.storage(&["--hex", "get", "ff00"]).expect(0).text(),
        "0000ff\n"
    );
    house.storage(&["--hex", "get", "00ff"]).expect(1);

    // And all of it survives a restore.
    let export = house.storage(&["export"]).expect(0);
    let copied = run(
        &mut house.command_in("copy", &["import", "-"]),
        &export.stdout,
    );
    copied.expect(0);
    let (own, count) = digest(house.storage(&["digest"]));
    assert_eq!(
        digest(house.in_keyspace("copy", &["digest"])),
        (own.clone(), count)
    );
    assert_eq!(digest_of_export(export.text()), (own, count));
}

#[test]
fn a_file_is_committed_whole_or_refused() {
    let house = House::new();
    let revision = house.put("a", "1");
    let commit = |text: &str| {
        let file = house.file("commit.jsonl", text.as_bytes());
        house.storage(&["commit", "--file", &file])
    };
    let check = |key: &str, revision: &str| {
        format!("{{\"check\":{{\"key\":\"{key}\",\"revision\":{revision}}}}}\n")
    };
    let put = |key: &str, value: &str| {
        format!("{{\"put\":{{\"key\":\"{key}\",\"value\":\"{value}\"}}}}\n")
    };
    // Refused: and nothing of it happened.
    commit(&(check("a", "null") + &put("b", "2")))
        .expect(1)
        .says(&["check failed", "\"a\""]);
    let wrong = (revision + 1).to_string();
    commit(&(put("b", "2") + &check("a", &wrong)))
        .expect(1)
        .says(&["check failed"]);
    commit(&(check("b", &revision.to_string()) + &put("b", "2")))
        .expect(1)
        .says(&["absent"]);
    house.storage(&["get", "b"]).expect(1);
    // Wrong: and nothing was sent.
    commit("{\"put\":{\"key\":\"b\"}}\n")
        .expect(2)
        .says(&["commit.jsonl:1", "value"]);
    commit("\n{\"put\":\n").expect(2).says(&["commit.jsonl:2"]);
    commit("{\"putt\":{\"key\":\"b\",\"value\":\"1\"}}\n")
        .expect(2)
        .says(&["putt"]);
    commit("").expect(2).says(&["nothing to commit"]);
    commit(&(put("b", "1") + &put("b", "2"))).expect(2);
    house
        .storage(&["commit", "--file", "/no/such"])
        .expect(2)
        .says(&["/no/such"]);
    house.storage(&["commit"]).expect(2).says(&["--file"]);
    house.storage(&["get", "b"]).expect(1);

    let lines = check("a", &revision.to_string())
        + &check("b", "null")
        + &put("b", "2")
        + "{\"put\":{\"key\":\"c\",\"value\":\"3\",\"ttl_ms\":3600000}}\n{\"remove\":{\"key\":\"a\"}}\n";
    let done = commit(&lines).expect(0);
    assert!(done.text().contains(':'), "{done:?}");
    house.storage(&["get", "a"]).expect(1);
    let now = house.storage(&["--json", "get", "b", "c"]).expect(0);
    let now = json_lines(now.text());
    assert_eq!(now[0]["revision"], now[1]["revision"], "one commit");
    assert!(now[1]["expires_ms"].is_u64());
    let by_stdin = house.with_stdin(&["commit", "--file", "-"], put("d", "4").as_bytes());
    by_stdin.expect(0);
    assert_eq!(house.storage(&["get", "d"]).expect(0).text(), "4\n");
}

#[test]
fn the_flights_go_in_and_a_copy_of_them_is_the_same() {
    let house = House::new();
    let mut total = 0;
    for (file, template, rows) in [
        ("weather.csv.gz", "weather/{origin}/{time_hour}", 26_115),
        ("airports.csv", "airport/{faa}", 1_458),
        ("airlines.csv", "airline/{carrier}", 16),
        ("planes.csv", "plane/{tailnum}", 3_322),
    ] {
        let imported = house
            .storage(&["--json", "import", &flights(file), "--key", template])
            .expect(0);
        let summary = &json_lines(imported.text())[0];
        assert_eq!(summary["rows"], rows, "{file}: {summary}");
        total += rows;
    }
    let row = house.storage(&["get", "airline/UA"]).expect(0);
    let row: Value = serde_json::from_str(row.text()).unwrap();
    assert_eq!(
        row,
        json!({"carrier": "UA", "name": "United Air Lines Inc."})
    );

    let export = house.folder.path().join("export.jsonl");
    let export_path = export.to_str().unwrap();
    house
        .storage(&["export", "--out", export_path])
        .expect(0)
        .says(&["entries at"]);
    let export = fs::read_to_string(&export).unwrap();
    let (own, count) = digest(house.storage(&["digest"]));
    // Two hours of the weather repeat each autumn night: the later row stays.
    let weather = digest(house.storage(&["digest", "--prefix", "weather/"])).1;
    assert!((26_110..=26_115).contains(&weather), "{weather}");
    assert_eq!(count, total - 26_115 + weather);
    assert_eq!(digest_of_export(&export), (own.clone(), count));

    house
        .in_keyspace("copy", &["import", export_path, "--batch", "1000"])
        .expect(0);
    assert_eq!(
        digest(house.in_keyspace("copy", &["digest"])),
        (own.clone(), count)
    );
    // A packed part, by a pipe, with lines as they are.
    let part = house.storage(&["export", "--prefix", "airline/"]).expect(0);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&part.stdout).unwrap();
    let packed = packed.finish().unwrap();
    run(&mut house.command_in("part", &["import", "-"]), &packed).expect(0);
    let airlines = digest(house.storage(&["digest", "--prefix", "airline/"]));
    assert_eq!(digest(house.in_keyspace("part", &["digest"])), airlines);
    assert_eq!(airlines.1, 16);

    // One entry less, and one changed: other digests.
    house.in_keyspace("copy", &["rm", "airline/UA"]).expect(0);
    assert_eq!(digest(house.in_keyspace("copy", &["digest"])).1, count - 1);
    house.storage(&["put", "airline/UA", "changed"]).expect(0);
    assert_ne!(digest(house.storage(&["digest"])).0, own);
}

#[test]
fn a_server_tells_its_time_and_a_lifetime_survives_a_round_trip() {
    let house = House::new();
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::try_from(now.unwrap().as_millis()).unwrap()
    };
    let end = |keyspace: &str| {
        let got = house
            .in_keyspace(keyspace, &["--json", "get", "k"])
            .expect(0);
        json_lines(got.text())[0]["expires_ms"].as_u64().unwrap()
    };
    house.storage(&["put", "k", "v", "--ttl", "1h"]).expect(0);
    let before = now();
    let export = house.storage(&["export"]).expect(0);
    assert!(
        !export.stderr.contains("does not tell its time"),
        "{export:?}"
    );
    run(
        &mut house.command_in("copy", &["import", "-"]),
        &export.stdout,
    )
    .expect(0);
    let took = now() - before;
    // What is left of a life goes on from the import.
    let (first, second) = (end("model"), end("copy"));
    assert!(
        (first - 1_000..=first + took + 1_000).contains(&second),
        "{first}, then {second} after {took} ms"
    );
}

#[test]
fn rows_of_json_lines_get_their_keys_from_a_template() {
    let house = House::new();
    let file = house.file(
        "rows.jsonl",
        b"{\"id\":7,\"name\":\"a\"}\n\n{\"id\":8,\"name\":\"b\"}\n",
    );
    house
        .storage(&["import", &file, "--key", "row/{id}"])
        .expect(0);
    assert_eq!(
        house.storage(&["get", "row/7"]).expect(0).text(),
        "{\"id\":7,\"name\":\"a\"}\n"
    );
    // A bad one is named with its line, and what was committed before is told.
    let bad = house.file("bad.jsonl", b"{\"id\":9}\n{\"id\":\n{\"id\":10}\n");
    let batch = ["import", &bad, "--key", "row/{id}", "--batch", "1"];
    house
        .storage(&batch)
        .expect(2)
        .says(&["bad.jsonl:2", "1 rows were committed"]);
    house.storage(&["get", "row/9"]).expect(0);
    house.storage(&["get", "row/10"]).expect(1);
    house
        .storage(&["import", &file, "--key", "{nothing}"])
        .expect(2)
        .says(&["nothing"]);
    let airlines = flights("airlines.csv");
    house
        .storage(&["import", &airlines, "--key", "{nothing}"])
        .expect(2)
        .says(&["carrier"]);
    house
        .storage(&["import", &airlines])
        .expect(2)
        .says(&["--key"]);
    house
        .storage(&["import", &airlines, "--key", "a{"])
        .expect(2);
    house
        .storage(&["import", "/no/such.csv", "--key", "{a}"])
        .expect(2)
        .says(&["/no/such.csv"]);
    house
        .storage(&["import", &airlines, "--key", "{name}", "--batch", "100001"])
        .expect(2);
    let as_csv = house.file("rows", b"a,b\n1,2\n");
    house
        .storage(&["import", &as_csv, "--format", "csv", "--key", "csv/{a}"])
        .expect(0);
    assert_eq!(
        house.storage(&["get", "csv/1"]).expect(0).text(),
        "{\"a\":\"1\",\"b\":\"2\"}\n"
    );
}

#[test]
fn a_watch_tells_each_commit_and_ends_after_so_many() {
    let house = House::new();
    house.put("w/0", "before");
    let watch = ["watch", "--json", "--prefix", "w/", "--count", "2"];
    let mut watch = Running::start(&mut house.command_in("model", &watch));
    let from = watch.told("watching from");
    house.put("elsewhere", "not seen");
    let first = house.put("w/1", "one");
    house.storage(&["rm", "w/1"]).expect(0);
    let put: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(
        (&put["revision"], &put["principal"]),
        (&json!(first), &json!("cert:alice"))
    );
    assert_eq!(
        put["changes"],
        json!([{"put": {"key": "w/1", "value": "one"}}])
    );
    let removed: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(removed["changes"], json!([{"remove": {"key": "w/1"}}]));
    assert_eq!(
        wait(&mut watch.child, PATIENCE),
        Some(0),
        "it ends by itself"
    );

    // Once more from where it began: the same commits, told for people.
    let again = house.storage(&["watch", "--prefix", "w/", "--after", &from, "--count", "2"]);
    let again = again.expect(0);
    let removed = removed["revision"].to_string();
    assert_eq!(
        again.text(),
        format!("{first} put w/1=one\n{removed} remove w/1\n")
    );
    // The present state by keys, tombstones of what was seen before included.
    let latest = [
        "watch", "--json", "--latest", "--prefix", "w/", "--after", &from, "--count", "1",
    ];
    let state = house.storage(&latest).expect(0);
    assert!(
        json_lines(state.text())
            .iter()
            .any(|line| line["removed"]["key"] == "w/1"),
        "{state:?}"
    );
    let latest = [
        "watch",
        "--latest",
        "--interval",
        "10ms",
        "--beginning",
        "--count",
        "2",
    ];
    let state = house.storage(&latest).expect(0);
    let keys: Vec<_> = state
        .text()
        .lines()
        .map(|line| line.split_once(' ').unwrap().1)
        .collect();
    assert_eq!(keys, ["put w/0=before", "put elsewhere=\"not seen\""]);

    house
        .storage(&["watch", "--after", "yesterday"])
        .expect(2)
        .says(&["EPOCH:REVISION"]);
    house.storage(&["watch", "--count", "0"]).expect(2);
    house
        .storage(&["watch", "--interval", "1s"])
        .expect(2)
        .says(&["--latest"]);
    // A position of another store: refused by the state of this one.
    house
        .storage(&["watch", "--after", "00000000000000e1:1"])
        .expect(1)
        .says(&["epoch"]);
    // Ctrl-C is the usual end of a watch.
    let mut watch = Running::start(&mut house.command_in("model", &["watch"]));
    watch.told("watching from");
    watch.signal(Signal::INT);
    assert_eq!(wait(&mut watch.child, PATIENCE), Some(0));
}

#[test]
fn pings_are_counted_and_summed_up() {
    let house = House::new();
    let pings = house.storage(&["ping", "--count", "3"]).expect(0);
    let lines: Vec<_> = pings.text().lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[3].starts_with("min/avg/max "), "{lines:?}");
    let pings = house.storage(&["--json", "ping", "--count", "2"]).expect(0);
    let pings = json_lines(pings.text());
    assert_eq!(pings[2]["count"], 2);
    assert!(pings[0]["ms"].as_f64().unwrap() > 0.0);
    house.storage(&["ping", "--count", "0"]).expect(2);
}

#[test]
fn what_is_wrong_with_the_command_line_is_told_apart_from_what_is_wrong_with_the_way() {
    let house = House::new();
    let url = format!("{}/storage/model", house.server.url("storage"));
    let dir = house.certificates.dir();
    let dir = dir.to_str().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&[], 2, "Usage"),
        (&["frobnicate"], 2, "frobnicate"),
        (&["ping"], 2, "--url"),
        (&["--url", &url, "ping"], 2, "--certs"),
        (
            &[
                "--url",
                &url,
                "--certs",
                dir,
                "--identity",
                "nobody",
                "ping",
            ],
            2,
            "nobody",
        ),
        (
            &["--url", &url, "--certs", dir, "--identity", "../x", "ping"],
            2,
            "../x",
        ),
        (
            &["--url", "ws://127.0.0.1:1/storage/m", "ping"],
            2,
            "--danger-plaintext",
        ),
        (&["--url", "https://127.0.0.1:1/", "ping"], 2, "https"),
        (
            &[
                "--url",
                "wss://127.0.0.1:1/storage/..",
                "--certs",
                dir,
                "--identity",
                "alice",
                "ping",
            ],
            2,
            "..",
        ),
        (
            &[
                "--url",
                &url,
                "--certs",
                dir,
                "--identity",
                "alice",
                "put",
                "",
                "v",
            ],
            2,
            "key",
        ),
        // Nobody listens there.
        (
            &[
                "--url",
                "wss://127.0.0.1:1/storage/m",
                "--certs",
                dir,
                "--identity",
                "alice",
                "ping",
            ],
            3,
            "cannot be reached",
        ),
        // No certificate.
        (
            &["--url", &url, "--ca", &format!("{dir}/ca.pem"), "ping"],
            3,
            "demands a client certificate",
        ),
    ];
    for (arguments, code, text) in cases {
        run(&mut bare(arguments), b"").expect(*code).says(&[text]);
    }
    // Another CA's, by its own folder.
    let other = Certificates::issue(&["alice"]);
    let mut foreign = bare(&["--url", &url, "--identity", "alice", "ping", "--certs"]);
    run(foreign.arg(other.dir()), b"")
        .expect(3)
        .says(&["the server's certificate"]);
    // The same by the environment.
    let mut command = bare(&["put", "k", "v"]);
    command
        .env("STORAGE_URL", &url)
        .env("STORAGE_CERTS", dir)
        .env("STORAGE_IDENTITY", "alice");
    run(&mut command, b"").expect(0);
    // Too large for the server: the limit is named.
    let long = "k".repeat(5_000);
    house
        .storage(&["put", &long, "v"])
        .expect(2)
        .says(&["4096"]);
}

#[test]
fn a_commit_without_an_answer_ends_with_4() {
    let house = House::new();
    let import = [
        "--timeout",
        "2s",
        "import",
        "-",
        "--batch",
        "1",
        "--key",
        "{id}",
    ];
    let mut import = Running::start(&mut house.command_in("model", &import));
    let mut rows = import.child.stdin.take().unwrap();
    rows.write_all(b"{\"id\":\"first\"}\n").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while house.storage(&["get", "first"]).code != Some(0) {
        assert!(Instant::now() < deadline, "the first row is committed soon");
    }
    // The server is held, not gone: what is sent now arrives nowhere, and no answer comes.
    let server = Pid::from_raw(i32::try_from(house.server.id()).unwrap()).unwrap();
    kill_process(server, Signal::STOP).unwrap();
    rows.write_all(b"{\"id\":\"second\"}\n").unwrap();
    let code = wait(&mut import.child, PATIENCE);
    kill_process(server, Signal::CONT).unwrap();
    assert_eq!(code, Some(4));
    let told: Vec<String> = import.stderr.iter().collect();
    let told = told.join("\n");
    for text in ["unknown", "row 2", "1 rows were committed"] {
        assert!(told.contains(text), "{text}: {told}");
    }
    drop(rows);
}

#[test]
fn a_reader_that_left_is_no_failure() {
    let house = House::new();
    let airports = flights("airports.csv");
    house
        .storage(&["import", &airports, "--key", "{faa}"])
        .expect(0);
    let mut scan = house
        .command_in("model", &["scan"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // `| head`: the pipe is closed while there is more to say.
    drop(scan.stdout.take());
    let done = finish(scan);
    assert_eq!(done.stderr, "");
    done.expect(0);
}

#[test]
fn completions_and_help_are_there_for_every_sub_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&mut bare(&["completions", shell]), b"").expect(0);
        for word in ["import", "digest", "keys-only", "danger-plaintext"] {
            assert!(script.text().contains(word), "{shell}: {word}");
        }
    }
    run(&mut bare(&["completions", "csh-of-old"]), b"").expect(2);
    let help = run(&mut bare(&["--help"]), b"").expect(0);
    assert!(help.text().contains("Examples:") && help.text().contains("Exit codes:"));
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
        let own = run(&mut bare(&[command, "--help"]), b"").expect(0);
        assert!(own.text().contains("Examples:"), "{command}");
        assert!(help.text().contains(command), "{command}");
    }
    let bash = run(&mut bare(&["completions", "bash"]), b"").expect(0);
    let checked = run(Command::new("bash").arg("-n"), &bash.stdout);
    checked.expect(0);
}

//! `storage replica` against a real server: lines, one-time prints, its folder and its exit codes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use storage_testkit::harness::{Certificates, ServerProcess, binary};
use tempfile::TempDir;

use crate::support::PATIENCE;

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

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("storage"));
        command
            .arg("--url")
            .arg(format!("{}/storage/model", self.server.url("storage")))
            .arg("--certs")
            .arg(self.certificates.dir())
            .args(["--identity", "alice"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Its standard output, if it went well.
    #[track_caller]
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn put(&self, key: &str, value: &str) -> u64 {
        let position = self.text(&["put", key, value]);
        position.trim().split_once(':').unwrap().1.parse().unwrap()
    }
}

/// A command that goes on; killed when dropped.
struct Running {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = lines(child.stdout.take().unwrap());
        let err = lines(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out.recv_timeout(PATIENCE).unwrap()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(pipe: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn replica_tells_when_it_is_ready_and_each_batch() {
    let house = House::new();
    house.put("w/a", "1");
    let text = Running::start(house.command(&["replica", "--prefix", "w/"]));
    let json = Running::start(house.command(&["--json", "replica", "--prefix", "w/"]));
    let ready = text.err.recv_timeout(PATIENCE).unwrap();
    assert!(
        ready.starts_with("ready at ") && ready.contains(", 1 entries, "),
        "{ready}"
    );
    assert_eq!(json.json()["ready"]["entries"], 1);
    house.put("elsewhere", "not told");
    let put = house.put("w/b", "2");
    let line = text.out.recv_timeout(PATIENCE).unwrap();
    assert_eq!(line, format!("{put} put w/b=2"));
    let batch = json.json();
    assert_eq!(batch["revision"], put);
    let entry = json!({"key": "w/b", "value": "2", "revision": put});
    assert_eq!(batch["changes"], json!([{ "put": entry }]));
    house.text(&["rm", "w/a"]);
    let line = text.out.recv_timeout(PATIENCE).unwrap();
    assert!(line.ends_with(" removed w/a"), "{line}");
    assert_eq!(json.json()["changes"], json!([{"removed": {"key": "w/a"}}]));
    for mut running in [text, json] {
        kill_process(Pid::from_child(&running.child), Signal::TERM).unwrap();
        assert_eq!(running.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn replica_once_prints_the_state_with_its_proof_and_the_same_digest() {
    let house = House::new();
    house.put("a", "1");
    let last = house.put("b", "2");
    let output = house.run(&["replica", "--once"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        house.text(&["scan"])
    );
    let proof = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        proof.starts_with("at ") && proof.contains(", 2 entries, proven "),
        "{proof}"
    );
    let text = house.text(&["--json", "replica", "--once"]);
    let proof: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(proof["proof"]["revision"].as_u64().unwrap() >= last);
    assert!(proof["proof"]["age_ms"].as_u64().unwrap() < 10_000);
    let digest = |arguments: &[&str]| {
        let line = house.text(arguments);
        line.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(
        digest(&["replica", "--once", "--digest"]),
        digest(&["digest"])
    );
}

#[test]
fn replica_keeps_its_folder_and_refuses_that_of_another_range() {
    let house = House::new();
    house.put("w/a", "1");
    let dir = house.folder.path().join("copy");
    let dir = dir.to_str().unwrap();
    let arguments = ["replica", "--prefix", "w/", "--dir", dir, "--once"];
    assert_eq!(house.text(&arguments), "w/a\t1\n");
    house.put("w/b", "2");
    assert_eq!(house.text(&arguments), "w/a\t1\nw/b\t2\n");
    let refused = house.run(&["replica", "--dir", dir, "--once"]);
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("copy of the range [w/..w0)"), "{text}");
    let live =
        Running::start(house.command(&["--json", "replica", "--prefix", "w/", "--dir", dir]));
    assert_eq!(live.json()["ready"]["entries"], 2);
    let refused = house.run(&arguments);
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("in use by another replica"), "{text}");
}

#[test]
fn replica_over_its_memory_fails_and_names_the_limit() {
    let house = House::new();
    let file = house.folder.path().join("big");
    std::fs::write(&file, vec![b'x'; 2 << 20]).unwrap();
    house.put("big", &format!("@{}", file.display()));
    for arguments in [
        &["replica", "--memory", "1"][..],
        &["replica", "--memory", "1", "--once"],
    ] {
        let output = house.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("memory_bytes_max is 1048576"), "{text}");
    }
}

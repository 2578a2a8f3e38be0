//! What the server says of itself: that it never waits for a reader, and that nobody can fill it.

use std::io::{PipeReader, PipeWriter, pipe};
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{OFlags, fcntl_setfl};

use super::*;

/// A pipe that takes nothing more, and its other end.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (read, write) = pipe().unwrap();
    fcntl_setfl(&write, OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&write, &[b'.'; 4096]).is_ok() {}
    while rustix::io::write(&write, b".").is_ok() {}
    fcntl_setfl(&write, OFlags::empty()).unwrap();
    (read, write)
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn of(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn ends_in_order(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert_eq!(wait(&mut self.0, PATIENCE), Some(0));
    }
}

/// A port that was free a moment ago.
fn free_port() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().to_string()
}

/// Waits until it is served there.
fn answers(address: &str) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "it listens at {address}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(get(address, "/healthz").0, 200);
}

fn count_of(address: &str, id: &str) -> f64 {
    prometheus(&get(address, "/metrics").1)[id]
}

const BOTH: &str =
    "[[listener]]\naddress = '127.0.0.1:0'\ntls = 'off'\ngateways = ['storage', 'admin']\n";

/// The log is full and nobody reads it: everything goes on, sessions and the end too.
#[tokio::test]
async fn a_log_that_nobody_reads_costs_lines_and_nothing_else() {
    let folder = Folder::new();
    let certificates = Certificates::issue(&[]);
    let config = folder.config(&format!("certs = {:?}\n{MUTUAL}{BOTH}", certificates.dir()));
    let (read, stderr) = full_pipe();
    let mut command = server(&["serve", "--config", &config, "--log", "debug"]);
    let mut running = Running::of(command.stdout(Stdio::piped()).stderr(stderr));
    // It holds the write end of the pipe.
    drop(command);
    let stdout = lines(running.0.stdout.take().unwrap());
    let address = || {
        let line = stdout.recv_timeout(PATIENCE).expect("it listens");
        let (_, rest) = line.split_once("://").unwrap();
        rest.split_once(' ').unwrap().0.to_owned()
    };
    let (secure, plain) = (address(), address());
    let url = format!("ws://{plain}/storage/model");
    let storage = RemoteStorage::connect(ConnectOptions::new(url).danger_plaintext());
    let storage = storage.await.unwrap();
    let dropped = || count_of(&plain, "storage_log_lines_dropped_total");
    let mut n = 0;
    while dropped() < 1.0 {
        assert!(n < 1_000, "the queue is full some day");
        storage
            .put(format!("{n}").into(), "v".into())
            .await
            .unwrap();
        // Each is a line of some 200 bytes.
        for _ in 0..100 {
            drop(TcpStream::connect(&secure).unwrap());
        }
        n += 1;
    }
    assert_eq!(
        storage.get_one("0".into()).await.unwrap().unwrap().value,
        "v"
    );
    // Read again, it goes on and says what is missing.
    let log = lines(read);
    let told = |text: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = log
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    };
    let line = told("lines of the log were dropped");
    assert!(
        line.contains("lines=") && line.contains("standard error"),
        "{line}"
    );
    storage.close().await;
    running.ends_in_order();
    told("stopped");
}

#[test]
fn neither_a_full_standard_output_nor_a_full_log_holds_up_the_end() {
    let folder = Folder::new();
    let config = folder.config(BOTH);
    let (_read_out, stdout) = full_pipe();
    let (_read_err, stderr) = full_pipe();
    let address = free_port();
    let mut command = server(&["serve", "--config", &config, "--listen", &address]);
    let running = Running::of(command.stdout(stdout).stderr(stderr));
    answers(&address);
    running.ends_in_order();
    // Nor does one that ends before it began.
    let (_read_err, stderr) = full_pipe();
    let mut command = server(&["serve", "--config", &config, "--durability", "no"]);
    let mut running = Running::of(command.stdout(Stdio::null()).stderr(stderr));
    assert_eq!(wait(&mut running.0, PATIENCE), Some(2));
}

#[test]
fn a_log_whose_reader_went_away_is_nobodys_problem() {
    let folder = Folder::new();
    let (read, stderr) = pipe().unwrap();
    drop(read);
    let address = free_port();
    let mut command = server(&[
        "serve",
        "--config",
        &folder.config(BOTH),
        "--listen",
        &address,
    ]);
    let running = Running::of(command.stdout(Stdio::null()).stderr(stderr));
    answers(&address);
    assert_eq!(get(&address, "/elsewhere").0, 404);
    // They are dropped where they would be written, by a thread of their own.
    let deadline = Instant::now() + PATIENCE;
    while count_of(&address, "storage_log_lines_dropped_total") < 1.0 {
        assert!(Instant::now() < deadline, "what nobody takes is counted");
    }
    running.ends_in_order();
}

/// One connection asks for what is not there, again and again, without waiting for answers.
#[test]
fn a_peer_cannot_fill_the_log() {
    const REQUESTS: usize = 20_000;
    let folder = Folder::new();
    let mut serving = Serving::start(&["--config", &folder.config(BOTH)], 1);
    let mut stream = TcpStream::connect(serving.address(0)).unwrap();
    let mut reading = stream.try_clone().unwrap();
    let answers = std::thread::spawn(move || {
        let mut answers = Vec::new();
        reading.read_to_end(&mut answers).unwrap();
        String::from_utf8(answers)
            .unwrap()
            .matches("HTTP/1.1 404")
            .count()
    });
    let request = "GET /a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    for _ in 1..REQUESTS {
        stream.write_all(request.as_bytes()).unwrap();
    }
    let last = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    stream.write_all(last.as_bytes()).unwrap();
    assert_eq!(answers.join().unwrap(), REQUESTS);
    let suppressed = count_of(serving.address(0), "storage_log_lines_suppressed_total");
    // Another kind of line is told all the same.
    assert!(suppressed > 0.75 * REQUESTS as f64, "{suppressed}");
    let line = serving.wait_for_log("too many lines of a kind were left out");
    assert!(
        line.contains("refused a request") && line.contains("lines="),
        "{line}"
    );
    serving.signal(Signal::TERM);
    assert_eq!(serving.end(PATIENCE), Some(0));
    assert!(serving.log().join("\n").contains("stopped"));
}

#[tokio::test]
async fn however_detailed_the_log_is_it_tells_no_keys_and_values() {
    let certificates = Certificates::issue(&["producer"]);
    let folder = Folder::new();
    let config = folder.config(&format!("certs = {:?}\n{MUTUAL}", certificates.dir()));
    let mut serving = Serving::start(&["--config", &config, "--log", "trace"], 1);
    let options =
        ConnectOptions::new(serving.url(0)).credentials_dir(certificates.dir().join("producer"));
    use_with_secrets(&RemoteStorage::connect(options).await.unwrap()).await;
    serving.signal(Signal::TERM);
    assert_eq!(serving.end(PATIENCE), Some(0));
    let log = serving.log();
    assert!(
        log.iter().any(|line| line.contains("DEBUG")),
        "details are there"
    );
    for line in &log {
        // Frames hold them in ways that are not looked for here, such as numbers.
        for secret in [SECRET_KEY, SECRET_VALUE, "tungstenite", "frame"] {
            assert!(!line.contains(secret), "{line}");
        }
    }
}

#[test]
fn daily_files_are_for_the_owner_and_old_ones_are_deleted() {
    let folder = Folder::new();
    let logs = folder.dir.path().join("logs");
    let arguments = [
        "--config",
        &folder.config(&format!("[log]\nkeep = 3\n{PLAIN}")),
    ];
    let directory = ["--log-dir", logs.to_str().unwrap()];
    let mut serving = Serving::start(&[&arguments[..], &directory[..]].concat(), 1);
    serving.signal(Signal::TERM);
    assert_eq!(serving.end(PATIENCE), Some(0));
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let files = || -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(&logs).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    assert_eq!(mode(&logs), 0o700);
    let today = files();
    assert_eq!(
        today.iter().map(|file| mode(file)).collect::<Vec<_>>(),
        [0o600]
    );
    for day in 1..=9 {
        fs::write(logs.join(format!("storage-server.2020-01-0{day}.log")), "").unwrap();
    }
    fs::write(logs.join("notes.txt"), "mine").unwrap();
    fs::set_permissions(&logs, fs::Permissions::from_mode(0o755)).unwrap();
    let mut serving = Serving::start(&[&arguments[..], &directory[..]].concat(), 1);
    serving.wait_for_log("the folder of the log");
    serving.signal(Signal::TERM);
    assert_eq!(serving.end(PATIENCE), Some(0));
    let left = files();
    let logs_left = left
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "log"));
    assert_eq!(logs_left.count(), 3, "{left:?}");
    assert!(left.contains(&logs.join("notes.txt")));
}

#[test]
fn the_start_is_told_in_one_line() {
    let folder = Folder::new();
    let certificates = Certificates::issue(&[]);
    let config = folder.config(&format!(
        "certs = {:?}\n{MUTUAL}{ADMIN}",
        certificates.dir()
    ));
    let serving = Serving::start(&["--config", &config], 2);
    let line = serving.wait_for_log("serving");
    let data = folder.data().display().to_string();
    for part in [
        concat!("version=\"", env!("CARGO_PKG_VERSION")),
        &data,
        "durability=",
        "epoch=",
        "certificate_expires=\"20",
        serving.address(0),
        serving.address(1),
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn a_recovery_after_an_unclean_end_is_told() {
    let folder = Folder::new();
    let config = folder.config(PLAIN);
    let mut serving = Serving::start(&["--config", &config], 1);
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    let serving = Serving::start(&["--config", &config], 1);
    let line = serving.wait_for_log("was not ended in order");
    assert!(line.contains("revision="), "{line}");
}

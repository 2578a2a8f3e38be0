//! Who comes in through the door, and what a crowd in front of it costs those inside.

use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use storage_certs::{AuthorityDir, Request, Validity, server_name};
use storage_testkit::harness::Launch;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Connections that say nothing, open as long as this is kept.
fn crowd(address: &str, count: usize) -> Vec<TcpStream> {
    (0..count)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect()
}

/// Status line and all that follows of the answer to these bytes.
fn raw(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = stream.read(&mut piece).unwrap();
        assert!(
            read > 0,
            "an answer: {:?}",
            String::from_utf8_lossy(&answer)
        );
        answer.extend_from_slice(&piece[..read]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn metric(serving: &Serving, admin: usize, id: &str) -> f64 {
    prometheus(&get(serving.address(admin), "/metrics").1)[id]
}

fn refused(serving: &Serving, admin: usize, reason: &str) -> f64 {
    let id = format!("storage_connections_refused_total{{reason=\"{reason}\"}}");
    metric(serving, admin, &id)
}

// Places in front of a session.

/// One hour for a handshake: whoever waits for those that say nothing fails by the test's own patience.
#[tokio::test]
async fn those_that_say_nothing_make_room_for_who_does() {
    let folder = Folder::new();
    let certificates = Certificates::issue(&["caller"]);
    let config = folder.config(&format!(
        "certs = {:?}\n[limits]\nhandshakes_max = 8\n[timeouts]\nhandshake = '1h'\n{MUTUAL}{ADMIN}",
        certificates.dir()
    ));
    let serving = Serving::start(&["--config", &config], 2);
    let crowd = crowd(serving.address(0), 64);
    // The other listener has nothing to do with it.
    assert_eq!(get(serving.address(1), "/healthz"), (200, "alive\n".into()));
    let options =
        ConnectOptions::new(serving.url(0)).credentials_dir(certificates.dir().join("caller"));
    let storage = RemoteStorage::connect(options).await.unwrap();
    storage.put("k".into(), "v".into()).await.unwrap();
    // All but the last eight, and one for the client's place.
    assert!(refused(&serving, 1, "handshakes_max") >= 56.0);
    drop(crowd);
}

#[tokio::test]
async fn connections_of_all_kinds_have_a_bound_and_each_listener_a_share() {
    let folder = Folder::new();
    let text = format!("[limits]\nconnections_max = 20\n{PLAIN}{ADMIN}");
    let serving = Serving::start(&["--config", &folder.config(&text)], 2);
    let mut sessions = Vec::new();
    for _ in 0..18 {
        sessions.push(raw_session(serving.address(0)).await);
    }
    // Two are the admin listener's.
    let (code, reason) = get(serving.address(0), "/storage/model");
    assert_eq!(code, 503);
    assert!(reason.contains("all connections"), "{reason}");
    serving.wait_for_log("there are as many as there can be");
    assert_eq!(get(serving.address(1), "/healthz").0, 200);
    assert!(refused(&serving, 1, "connections_max") >= 1.0);
    assert!(metric(&serving, 1, "storage_connections_max") < 20.5);
    drop(sessions.pop());
    let again = async {
        while metric(&serving, 1, "storage_sessions{gateway=\"native\"}") > 17.5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    sessions.push(raw_session(serving.address(0)).await);
}

// Descriptors.

fn in_shell(shell: &str, config: &str) -> ServerProcess {
    let arguments = vec!["--config".to_owned(), config.to_owned()];
    ServerProcess::start_in_shell(Some(shell), arguments)
}

fn open_files_limit(server: &ServerProcess) -> (u64, u64) {
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut numbers = line.unwrap().split_whitespace().skip(3);
    let mut next = || numbers.next().unwrap().parse().unwrap();
    (next(), next())
}

#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let folder = Folder::new();
    let server = in_shell(
        "ulimit -Sn 512; ulimit -Hn 2048; exec \"$@\"",
        &folder.config(PLAIN),
    );
    assert_eq!(open_files_limit(&server), (2048, 2048));
}

#[test]
fn too_few_open_files_are_refused_and_few_are_said_so() {
    let folder = Folder::new();
    let config = folder.config(PLAIN);
    let start = |limit: u32| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"]);
        command.arg(binary("storage-server"));
        command.args(["serve", "--config", &config]);
        command
    };
    run(&mut start(200), b"")
        .expect(1)
        .says(&["limit of open files is 200", "256"]);
    assert!(!folder.data().exists(), "nothing was begun");
    let mut child = start(256)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = lines(child.stderr.take().unwrap());
    let line = log
        .iter()
        .find(|line| line.contains("few connections are possible"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.unwrap().contains("descriptors=256"));
}

/// A flood takes all the connections there can be, and the engine goes on to open its files.
async fn a_flood_costs_no_commit(shell: &str, flood: usize) {
    let folder = Folder::new();
    let text = "[limits]\nmemory_bytes_max = '16 MiB'\n[engine]\nlog_bytes = '16 MiB'\ndisk_reserve_bytes = 0\n[timeouts]\nhandshake = '1h'\n";
    let config = folder.config(&format!("{text}{PLAIN}"));
    let server = in_shell(shell, &config);
    let url = format!("{}/storage/model", server.url("storage"));
    let connect = || RemoteStorage::connect(ConnectOptions::new(&url).danger_plaintext());
    let storage = connect().await.unwrap();
    let address = server
        .url("storage")
        .split_once("://")
        .unwrap()
        .1
        .to_owned();
    let crowd = crowd(&address, flood);
    let value = |n: u32| [&n.to_be_bytes()[..], &vec![b'v'; 120 << 10]].concat();
    // Over several memtables and logs.
    for n in 0..700 {
        let put = storage.put(format!("{n:04}").into(), value(n).into()).await;
        put.unwrap_or_else(|error| panic!("put {n}: {error}"));
    }
    for n in 0..700 {
        let entry = storage.get_one(format!("{n:04}").into()).await.unwrap();
        assert!(entry.unwrap().value == value(n), "{n}");
    }
    // And whoever says something comes in beside those who do not.
    let other = connect().await.unwrap();
    other.put("other".into(), "v".into()).await.unwrap();
    drop(crowd);
}

#[tokio::test]
async fn a_flood_of_connections_costs_no_commit_under_a_small_soft_limit() {
    a_flood_costs_no_commit("ulimit -Sn 256; ulimit -Hn 4096; exec \"$@\"", 400).await;
}

#[tokio::test]
async fn a_flood_of_connections_costs_no_commit_under_a_small_hard_limit() {
    a_flood_costs_no_commit("ulimit -n 256; exec \"$@\"", 400).await;
}

// HTTP.

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A request for a native session, with these lines instead of those that begin alike, or besides.
fn upgrade(address: &str, lines: &[&str]) -> String {
    let host = format!("Host: {address}");
    let key = format!("Sec-WebSocket-Key: {KEY}");
    let usual = [
        &host,
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        &key,
        "Sec-WebSocket-Protocol: storage-sync.v1",
    ];
    let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let is_replaced = |line: &str| lines.iter().any(|other| name(other) == name(line));
    let kept = usual.iter().filter(|line| !is_replaced(line)).copied();
    // A line that is only a name leaves it out.
    let more = lines.iter().filter(|line| line.contains(':')).copied();
    let head: String = kept.chain(more).map(|line| format!("{line}\r\n")).collect();
    format!("GET /storage/model HTTP/1.1\r\n{head}\r\n")
}

#[test]
fn an_upgrade_that_the_standards_refuse_is_refused() {
    let folder = Folder::new();
    let serving = Serving::start(&["--config", &folder.config(&format!("{PLAIN}{ADMIN}"))], 2);
    let address = serving.address(0);
    let answer = |lines: &[&str]| raw(address, upgrade(address, lines).as_bytes());
    assert_eq!(status(&answer(&[])), 101);
    let two_keys = format!("Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Key: {KEY}");
    for (lines, expected, named) in [
        (&["Host"][..], 400, "Host"),
        (&["Host: a\r\nHost: a"], 400, "Host"),
        (&["Host: a b"], 400, "Host"),
        (&["Sec-WebSocket-Key"], 400, "Sec-WebSocket-Key"),
        (&["Sec-WebSocket-Key: "], 400, "Sec-WebSocket-Key"),
        (&["Sec-WebSocket-Key: x"], 400, "Sec-WebSocket-Key"),
        (&[&two_keys], 400, "Sec-WebSocket-Key"),
        (&["Content-Length: 4"], 400, "body"),
        (&["Transfer-Encoding: chunked"], 400, "body"),
        (&["Connection: close"], 400, "Connection"),
        (
            &["Sec-WebSocket-Version: 8"],
            426,
            "Sec-WebSocket-Version: 13",
        ),
        (&["Sec-WebSocket-Version"], 426, "Sec-WebSocket-Version: 13"),
        (&["Sec-WebSocket-Protocol: other"], 400, "storage-sync.v1"),
        (&["Sec-WebSocket-Protocol"], 400, "storage-sync.v1"),
    ] {
        let answer = answer(lines);
        assert_eq!(status(&answer), expected, "{lines:?}: {answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(body.contains(named), "{lines:?}: {answer}");
        if expected == 426 {
            let head = answer.to_ascii_lowercase();
            assert!(
                head.contains("\r\nsec-websocket-version: 13\r\n"),
                "{answer}"
            );
        }
    }
    // Names in any case, and what a recipient may take: a line that ends with LF alone.
    let lower = upgrade(address, &[])
        .to_ascii_lowercase()
        .replace("get /", "GET /");
    let lower = lower
        .replace("http/1.1", "HTTP/1.1")
        .replace(&KEY.to_ascii_lowercase(), KEY);
    assert_eq!(status(&raw(address, lower.as_bytes())), 101);
    let bare = upgrade(address, &[]).replace("\r\n", "\n");
    assert_eq!(status(&raw(address, bare.as_bytes())), 101);
    // A bare CR is no line's end, and other requests need a host too.
    assert_eq!(
        status(&raw(address, b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n")),
        400
    );
    for path in ["/storage/model", "/healthz"] {
        let bare = format!("GET {path} HTTP/1.1\r\n\r\n");
        assert_eq!(
            status(&raw(serving.address(1), bare.as_bytes())),
            400,
            "{path}"
        );
    }
}

#[test]
fn a_head_that_is_too_large_is_told_from_what_is_no_http() {
    let folder = Folder::new();
    let serving = Serving::start(&["--config", &folder.config(PLAIN)], 1);
    let address = serving.address(0);
    let large = format!("X: {}", "x".repeat(20_000));
    assert_eq!(
        status(&raw(address, upgrade(address, &[&large]).as_bytes())),
        431
    );
    serving.wait_for_log("its head is too large");
    let many = "X: y\r\n".repeat(1_000);
    assert_eq!(
        status(&raw(
            address,
            upgrade(address, &[many.trim_end()]).as_bytes()
        )),
        431
    );
    serving.wait_for_log("its head is too large");
    for other in [
        &b"SSH-2.0-x\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(other).unwrap();
        serving.wait_for_log("no HTTP/1.1");
    }
    // Two readers would see two requests here.
    let smuggled = upgrade(
        address,
        &["Content-Length: 4", "Transfer-Encoding: chunked"],
    );
    assert_eq!(status(&raw(address, smuggled.as_bytes())), 400);
}

#[test]
fn pages_of_other_sites_open_no_sessions() {
    let folder = Folder::new();
    let certificates = Certificates::issue(&[]);
    let more = "[[listener]]\naddress = '127.0.0.1:0'\ntls = 'off'\ngateways = ['storage', 'admin']\n\
         allowed_origins = ['https://app.example']\nallowed_hosts = ['storage']\n\
         [[listener]]\naddress = '127.0.0.1:0'\n";
    let config = folder.config(&format!(
        "certs = {:?}\n{PLAIN}{ADMIN}{more}",
        certificates.dir()
    ));
    let serving = Serving::start(&["--config", &config], 4);
    let (plain, admin, open) = (serving.address(0), serving.address(1), serving.address(2));
    let from = |address: &str, host: &str, origin: &str| {
        let lines = [format!("Host: {host}"), format!("Origin: {origin}")];
        let request = upgrade(address, &[&lines[0], &lines[1]]);
        let answer = raw(address, request.as_bytes());
        let mwdb = request
            .replace("/storage/model", "/")
            .replace("Sec-WebSocket-Protocol: storage-sync.v1\r\n", "");
        let mwdb = raw(address, mwdb.as_bytes());
        (status(&answer), status(&mwdb))
    };
    assert_eq!(from(plain, plain, &format!("http://{plain}")), (101, 101));
    // As mwDB's client says it: without the port.
    assert_eq!(from(plain, plain, "http://127.0.0.1"), (403, 101));
    assert_eq!(from(plain, plain, "https://evil.example"), (403, 403));
    assert_eq!(from(plain, plain, "null"), (403, 403));
    // A name of theirs that was made to lead here.
    assert_eq!(
        from(plain, "evil.example:80", "http://evil.example"),
        (403, 403)
    );
    assert_eq!(from(open, open, "https://app.example"), (101, 101));
    assert_eq!(from(open, open, "https://evil.example"), (403, 403));
    // Collectors call the admin listener by an address, localhost, or a name that was configured.
    let asked = |address: &str, host: &str| {
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        status(&raw(address, request.as_bytes()))
    };
    assert_eq!(asked(admin, "localhost:9464"), 200);
    assert_eq!(asked(admin, "127.0.0.1"), 200);
    assert_eq!(asked(admin, "evil.example"), 421);
    assert_eq!(asked(admin, "storage:9464"), 421);
    assert_eq!(asked(open, "storage:9464"), 200);
}

// Certificates.

/// `certs/server` with a certificate of this time.
fn serve_with(certificates: &Certificates, from: SystemTime, to: SystemTime) {
    let names = ["localhost", "127.0.0.1"].map(|name| server_name(name).unwrap());
    let request = Request::server("other".parse().unwrap(), names.to_vec());
    certificates.add(&request.validity(Validity::between(from, to)));
    for file in ["cert.pem", "key.pem"] {
        let (from, to) = (
            certificates.dir().join("other"),
            certificates.dir().join("server"),
        );
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn a_certificate_of_the_server_that_is_no_good_is_said_loudly() {
    let now = SystemTime::now();
    for (from, to, told, ready) in [
        (
            now - 2 * DAY,
            now - DAY,
            "the server's certificate expired at",
            false,
        ),
        (
            now + DAY,
            now + 2 * DAY,
            "the server's certificate is not valid before",
            false,
        ),
        (
            now - DAY,
            now + 3 * DAY,
            "the server's certificate expires soon",
            true,
        ),
        (now - DAY, now + 100 * DAY, "", true),
    ] {
        let folder = Folder::new();
        let certificates = Certificates::issue(&[]);
        serve_with(&certificates, from, to);
        let config = folder.config(&format!(
            "certs = {:?}\n{MUTUAL}{ADMIN}",
            certificates.dir()
        ));
        let mut serving = Serving::start(&["--config", &config], 2);
        if !told.is_empty() {
            serving.wait_for_log(told);
        }
        let (code, text) = get(serving.address(1), "/readyz");
        assert_eq!(code == 200, ready, "{told}: {text}");
        assert!(ready || text.contains(told), "{told}: {text}");
        let expires = metric(
            &serving,
            1,
            "storage_certificate_expires_seconds{certificate=\"server\"}",
        );
        let to = to
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!((expires - to).abs() < 2.0, "{expires} {to}");
        serving.signal(Signal::TERM);
        assert_eq!(serving.end(PATIENCE), Some(0));
        let log = serving.log().join("\n");
        assert!(!told.is_empty() || !log.contains("expires soon"), "{log}");
    }
}

#[tokio::test]
async fn a_certificate_that_names_nobody_is_answered_in_words() {
    let folder = Folder::new();
    let certificates = Certificates::issue(&[]);
    let uri = format!("urn:{}", "x".repeat(300)).parse().unwrap();
    certificates.add(&Request::client("nameless".parse().unwrap()).uri(uri));
    let config = folder.config(&format!(
        "certs = {:?}\n{MUTUAL}{ADMIN}",
        certificates.dir()
    ));
    let serving = Serving::start(&["--config", &config], 2);
    let own = certificates.dir().join("nameless");
    let options = ConnectOptions::new(serving.url(0)).credentials_dir(own);
    let error = RemoteStorage::connect(options)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("403") && error.contains("longer than 256 bytes"),
        "{error}"
    );
    let line = serving.wait_for_log("refused a request");
    assert!(line.contains("longer than 256 bytes"), "{line}");
    assert!((refused(&serving, 1, "principal") - 1.0).abs() < 0.5);
}

#[test]
fn files_that_others_can_read_and_a_missing_list_are_said_at_the_start() {
    let folder = Folder::new();
    let certificates = Certificates::issue(&[]);
    let set =
        |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // Without a rule it would warn of that.
    let rule = "[[rule]]\nprincipal = 'cert:boss'\nkeyspace = 'system'\nallow = ['admin']\n";
    let config = folder.config(&format!("certs = {:?}\n{MUTUAL}{rule}", certificates.dir()));
    let end = |mut serving: Serving| {
        serving.signal(Signal::TERM);
        assert_eq!(serving.end(PATIENCE), Some(0));
        serving.log().join("\n")
    };
    let log = end(Serving::start(&["--config", &config], 1));
    assert!(!log.contains("WARN") && !log.contains("crl.pem"), "{log}");
    set(folder.data(), 0o777);
    set(certificates.dir().join("server/key.pem"), 0o644);
    fs::remove_file(certificates.dir().join("crl.pem")).unwrap();
    let log = end(Serving::start(&["--config", &config], 1));
    for told in [
        "the data folder",
        "mode 777",
        "chmod 700",
        "the server's key",
        "mode 644",
        "chmod 600",
        "crl.pem: no client certificate counts as revoked",
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }
    drop(AuthorityDir::open(certificates.dir()));
}

// Probes.

/// Three hours of a probe each second, of both kinds.
#[test]
fn health_checks_for_hours_cost_nothing() {
    const CHECKS: usize = 3 * 3600;
    let folder = Folder::new();
    let certificates = Certificates::issue(&[]);
    let text = format!("certs = {:?}\n{MUTUAL}{ADMIN}", certificates.dir());
    let log = folder.dir.path().join("log");
    let launched = ServerProcess::launch(Launch {
        arguments: vec!["--config".into(), folder.config(&text)],
        log: Some(log.clone()),
        ..Launch::default()
    });
    let server = launched.unwrap();
    let address = |gateway| server.url(gateway).split_once("://").unwrap().1.to_owned();
    let (storage, admin) = (address("storage"), address("admin"));
    let round = |count: usize| {
        for _ in 0..count {
            drop(TcpStream::connect(&storage).unwrap());
            assert_eq!(get(&admin, "/healthz").0, 200);
        }
    };
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", server.id()))
            .unwrap()
            .count()
    };
    let unused = || {
        let metrics = prometheus(&get(&admin, "/metrics").1);
        metrics["storage_connections_refused_total{reason=\"unused\"}"]
    };
    let settled = |count: usize| {
        let deadline = Instant::now() + PATIENCE;
        while unused() < count as f64 {
            assert!(Instant::now() < deadline, "{} of {count}", unused());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    round(CHECKS / 4);
    settled(CHECKS / 4);
    let (memory, files) = (server.resident_bytes(), descriptors());
    round(CHECKS - CHECKS / 4);
    settled(CHECKS);
    let metrics = prometheus(&get(&admin, "/metrics").1);
    for reason in ["tls", "timeout", "http"] {
        let id = format!("storage_connections_refused_total{{reason=\"{reason}\"}}");
        assert!(metrics[&id] < 0.5, "nothing to alert on: {id}");
    }
    assert!(descriptors() <= files + 8, "{} {files}", descriptors());
    let grown = server.resident_bytes().saturating_sub(memory);
    assert!(grown < 8 << 20, "grew by {grown}");
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.lines().count() < 10,
        "the log says nothing of them: {log}"
    );
}

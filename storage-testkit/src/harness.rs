//! A real server process with a throw-away CA, on a port the system gives, that can be killed and started again.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use storage_certs::{AuthorityDir, InitOptions, IssueOptions, Request, Revoked, server_name};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::Result;
use tempfile::TempDir;

/// How long a server may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The path of a binary of this workspace, beside the test that runs.
///
/// # Panics
/// If it was not built: `cargo build --release --bins` does.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().expect("a test lies in a folder");
    let in_deps = folder.file_name().is_some_and(|name| name == "deps");
    let folder = if in_deps {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    };
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo build --release --bins` first",
        path.display()
    );
    path
}

/// A CA with a server and as many clients as were asked for, in a folder that goes with this.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Issues server credentials for localhost and 127.0.0.1, and client credentials for each name.
    ///
    /// # Panics
    /// If issuing fails.
    #[must_use]
    pub fn issue(clients: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = ["localhost", "127.0.0.1"].map(|name| server_name(name).expect("a good name"));
        let options = InitOptions::new(names.to_vec());
        drop(AuthorityDir::init(folder.path().join("certs"), &options).expect("a fresh CA"));
        let certificates = Self { folder };
        for name in clients {
            certificates.add(&Request::client(name.parse().expect("a good name")));
        }
        certificates
    }

    /// Issues one more.
    ///
    /// # Panics
    /// If issuing fails.
    pub fn add(&self, request: &Request) {
        let authority = AuthorityDir::open(self.dir()).expect("the CA opens");
        authority
            .issue(request, &IssueOptions::default())
            .expect("credentials are issued");
    }

    /// Revokes a client's certificate: the list is another one at the return.
    ///
    /// # Panics
    /// If it was revoked before, or revoking fails.
    pub fn revoke(&self, client: &str) {
        let authority = AuthorityDir::open(self.dir()).expect("the CA opens");
        let revoked = authority.revoke(&client.parse().expect("a good name"));
        assert!(matches!(revoked, Ok(Revoked::Now { .. })), "{revoked:?}");
    }

    /// The folder as `--certs` takes it.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("certs")
    }
}

/// How to start a `storage-server`.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// Which binary; `storage-server` by default.
    pub program: Option<&'static str>,
    /// Behind `serve`.
    pub arguments: Vec<String>,
    /// Shell text that starts it (`exec "$@"` at its end), say with limits set.
    pub shell: Option<String>,
    /// More for its environment.
    pub environment: Vec<(String, String)>,
    /// Where its log goes, behind what is there; nowhere by default, unless `SERVER_LOG` is set.
    pub log: Option<PathBuf>,
}

impl Launch {
    /// How many addresses it will say that it listens on; `None` where the arguments do not tell.
    fn listeners(&self) -> Option<usize> {
        // A file may name more of them.
        if self.arguments.iter().any(|argument| argument == "--config") {
            return None;
        }
        let behind = self.arguments.iter().skip(1).zip(&self.arguments);
        let addresses = behind.filter(|(_, flag)| *flag == "--listen");
        let mut count = 0;
        for (address, _) in addresses {
            address.parse::<std::net::SocketAddr>().ok()?;
            count += 1;
        }
        (count > 0).then_some(count)
    }
}

/// A running `storage-server`. Killed when dropped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    launch: Launch,
    /// As printed: scheme and address, with the gateways.
    pub listeners: Vec<(String, String)>,
}

impl ServerProcess {
    /// Starts `storage-server serve` with these arguments and waits until it listens.
    ///
    /// # Panics
    /// If it ends before.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in_shell(
            None,
            arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect(),
        )
    }

    /// The same, with the server started by this shell text (`exec "$@"` at its end), say with limits set.
    ///
    /// # Panics
    /// If it ends before.
    #[must_use]
    pub fn start_in_shell(shell: Option<&str>, arguments: Vec<String>) -> Self {
        let shell = shell.map(str::to_owned);
        let launched = Self::launch(Launch {
            arguments,
            shell,
            ..Launch::default()
        });
        launched.unwrap_or_else(|status| panic!("the server does not listen: {status:?}"))
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// How it ended, if it did before; `None` if it neither ended nor listens.
    ///
    /// # Panics
    /// If it cannot be started at all.
    pub fn launch(launch: Launch) -> std::result::Result<Self, Option<ExitStatus>> {
        let program = binary(launch.program.unwrap_or("storage-server"));
        let mut command = match &launch.shell {
            None => Command::new(program),
            Some(shell) => {
                let mut command = Command::new("sh");
                command.args(["-c", shell, "sh"]).arg(program);
                command
            }
        };
        command.arg("serve").args(&launch.arguments);
        command.envs(launch.environment.iter().cloned());
        command.stdout(Stdio::piped()).stdin(Stdio::null());
        if let Some(log) = &launch.log {
            let log = File::options().create(true).append(true).open(log);
            command.stderr(log.expect("the log can be written"));
        } else if std::env::var_os("SERVER_LOG").is_none() {
            command.stderr(Stdio::null());
        }
        let mut child = command.spawn().expect("the server starts");
        let stdout = child.stdout.take().expect("its output is piped");
        let (lines, read) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout)
                .lines()
                .map_while(std::result::Result::ok)
            {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        let mut listeners = Vec::new();
        let expected = launch.listeners();
        // The first line may take a recovery; the others come with it.
        while let Ok(line) = read.recv_timeout(if listeners.is_empty() {
            PATIENCE
        } else {
            Duration::from_millis(200)
        }) {
            if let Some(("listening", rest)) = line.split_once(' ')
                && let Some((url, gateways)) = rest.split_once(' ')
            {
                listeners.push((url.to_owned(), gateways.to_owned()));
            }
            if Some(listeners.len()) == expected {
                break;
            }
        }
        if listeners.is_empty() {
            // Its output is closed by its end, or it is stuck.
            let stuck = child.try_wait().ok().flatten().is_none();
            std::thread::sleep(Duration::from_millis(if stuck { 200 } else { 0 }));
            let status = child.try_wait().ok().flatten();
            let _ = child.kill();
            let _ = child.wait();
            return Err(status);
        }
        Ok(Self {
            child,
            launch,
            listeners,
        })
    }

    /// The usual: mutual TLS, one listener, data in `data`.
    #[must_use]
    pub fn mutual(certificates: &Certificates, data: &Path, more: &[&str]) -> Self {
        Self::start_in_shell(None, Self::usual(certificates, data, more))
    }

    fn usual(certificates: &Certificates, data: &Path, more: &[&str]) -> Vec<String> {
        let (certs, data) = (certificates.dir(), data.display().to_string());
        let certs = certs.display().to_string();
        let usual = [
            "--listen",
            "127.0.0.1:0",
            "--certs",
            &certs,
            "--data",
            &data,
        ];
        usual.iter().chain(more).map(ToString::to_string).collect()
    }

    /// The usual, configured by this text, for tests that look at its resident memory: what is freed goes back to the
    /// system at once. File and data lie in a folder that goes with what is given beside it.
    ///
    /// # Panics
    /// As [`ServerProcess::start`]; or if the file cannot be written.
    #[must_use]
    pub fn configured(certificates: &Certificates, config: &str) -> (Self, TempDir) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("server.toml");
        std::fs::write(&file, config).expect("a file");
        let (file, data) = (file.display().to_string(), folder.path().join("data"));
        // jemalloc would keep it for up to ten seconds, see tests/memory.rs.
        let at_once = "dirty_decay_ms:0,muzzy_decay_ms:0";
        let launched = Self::launch(Launch {
            arguments: Self::usual(certificates, &data, &["--config", &file]),
            environment: vec![("MALLOC_CONF".to_owned(), at_once.to_owned())],
            ..Launch::default()
        });
        let server = launched.unwrap_or_else(|status| panic!("it does not listen: {status:?}"));
        (server, folder)
    }

    /// `wss://127.0.0.1:PORT` of the first listener with this gateway.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn url(&self, gateway: &str) -> &str {
        let found = self
            .listeners
            .iter()
            .find(|(_, gateways)| gateways.split(',').any(|g| g == gateway));
        &found.expect("a listener with this gateway").0
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is not there any more.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it can be signalled");
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a chance to do anything (kill -9).
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// Waits until it ended by itself, for so long; whether it did.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn wait(&mut self, patience: Duration) -> bool {
        let began = Instant::now();
        loop {
            if self
                .child
                .try_wait()
                .expect("it can be waited for")
                .is_some()
            {
                return true;
            }
            if began.elapsed() >= patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks it to end (SIGTERM) and waits until it did.
    ///
    /// # Panics
    /// If it does not within a minute.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "the server did not end on SIGTERM"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again as it was, on the same address.
    pub fn restart(&mut self) {
        self.kill();
        // `--listen` is of the first that serves storage; others come from a file.
        let storage = |(_, gateways): &&(String, String)| gateways.contains("storage");
        let listener = self.listeners.iter().find(storage);
        let listener = listener.or_else(|| self.listeners.first());
        let address = listener.and_then(|(url, _)| url.split("://").nth(1));
        let mut launch = self.launch.clone();
        let arguments = &mut launch.arguments;
        if let Some(place) = arguments.iter().position(|argument| argument == "--listen")
            && let (Some(listen), Some(address)) = (arguments.get_mut(place + 1), address)
        {
            *listen = address.to_owned();
        }
        *self = Self::launch(launch)
            .unwrap_or_else(|status| panic!("the server does not listen again: {status:?}"));
    }

    /// Resident memory, in bytes.
    ///
    /// # Panics
    /// Where `/proc` does not tell.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most resident memory that it had since it was started, in bytes.
    ///
    /// # Panics
    /// Where `/proc` does not tell.
    #[must_use]
    pub fn peak_resident_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("/proc tells");
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("it has a resident size");
        let kib = line
            .split_whitespace()
            .nth(1)
            .and_then(|number| number.parse::<u64>().ok());
        kib.expect("a number of KiB") * 1024
    }

    /// The processor time it has taken, of all threads, in steps of 10 ms.
    ///
    /// # Panics
    /// Where `/proc` does not tell.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("/proc tells");
        // Behind the name, which may hold anything, come the fields from the third on; times are the 14th and 15th.
        let fields = stat.rsplit(')').next().expect("it has fields");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks = ticks.map(|ticks| ticks.parse::<u64>().expect("a number of ticks"));
        Duration::from_millis(10 * ticks.sum::<u64>())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects with the credentials of a client.
///
/// # Errors
/// As [`RemoteStorage::connect`].
pub async fn connect(
    server: &ServerProcess,
    certificates: &Certificates,
    name: &str,
    keyspace: &str,
) -> Result<RemoteStorage> {
    let url = format!("{}/storage/{keyspace}", server.url("storage"));
    let options = ConnectOptions::new(url).credentials_dir(certificates.dir().join(name));
    RemoteStorage::connect(options).await
}

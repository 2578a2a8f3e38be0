//! The server process that runs share, on a port that stays.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use storage_client::ConnectOptions;
use tempfile::TempDir;

use crate::harness::{Certificates, ServerProcess};
use crate::raw::metric_at;

/// Ports below those that systems give to outgoing connections: while the server is down, one of the proxy's attempts
/// to connect could otherwise be given the server's own port, connect to itself and keep the server out.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// One more listener, for the metrics.
const ADMIN: &str =
    "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\ngateways = [\"admin\"]\n";

/// A server process that can be killed and started again under runs.
#[derive(Clone, Debug)]
pub struct Stage {
    address: SocketAddr,
    certificates: Arc<Certificates>,
    server: Arc<Mutex<ServerProcess>>,
    /// What the metric told of processes that have ended.
    repeated: Arc<AtomicU64>,
    _folder: Arc<TempDir>,
}

impl Stage {
    /// Starts a server on an empty folder.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let certificates = Certificates::issue(&["worker"]);
        let address = free_address();
        let (certs, data) = (certificates.dir(), folder.path().join("data"));
        let config = folder.path().join("server.toml");
        std::fs::write(&config, ADMIN).expect("the folder can be written to");
        let server = ServerProcess::start(&[
            "--config",
            &config.display().to_string(),
            "--listen",
            &address.to_string(),
            "--certs",
            &certs.display().to_string(),
            "--data",
            &data.display().to_string(),
        ]);
        Self {
            address,
            certificates: Arc::new(certificates),
            server: Arc::new(Mutex::new(server)),
            repeated: Arc::default(),
            _folder: Arc::new(folder),
        }
    }

    /// Where the server listens, for good.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// kill -9, and a new start on the same folder and port.
    ///
    /// # Panics
    /// If it does not start again.
    pub async fn kill(&self) {
        self.restart(false).await;
    }

    /// SIGTERM, and a new start when it has ended.
    ///
    /// # Panics
    /// If it does not start again.
    pub async fn terminate(&self) {
        self.restart(true).await;
    }

    async fn restart(&self, in_order: bool) {
        let repeated = self.repeated_by_present().await;
        self.repeated.fetch_add(repeated, Ordering::SeqCst);
        let server = self.server.clone();
        let restarting = tokio::task::spawn_blocking(move || {
            let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
            if in_order {
                server.terminate();
            }
            server.restart();
        });
        restarting.await.expect("the server starts again");
    }

    /// Commits that came again and were answered with what they did the first time, but for a few at each end.
    pub async fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::SeqCst) + self.repeated_by_present().await
    }

    #[expect(clippy::cast_possible_truncation, reason = "a counter, far below 2^53")]
    async fn repeated_by_present(&self) -> u64 {
        let admin = {
            let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
            server.url("admin").to_owned()
        };
        metric_at(&admin, "storage_commits_repeated_total").await as u64
    }

    /// Resident memory of the server, in bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.resident_bytes()
    }

    /// How a client connects, by the proxy or directly.
    #[must_use]
    pub fn options(&self, address: SocketAddr, keyspace: &str) -> ConnectOptions {
        ConnectOptions::new(format!("wss://{address}/storage/{keyspace}"))
            .credentials_dir(self.certificates.dir().join("worker"))
            .connect_timeout(Duration::from_millis(1_500))
            // A lost socket is to be followed by the next one, and not by the end of the run.
            .backoff(Duration::from_millis(10), Duration::from_millis(150))
            .close_timeout(Duration::from_millis(200))
            // Small, so that watches are held by their credit now and then.
            .watch_credit_bytes(16 << 10)
    }
}

fn free_address() -> SocketAddr {
    loop {
        let port = rand::random_range(PORTS);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

//! The server process that runs share, on a port that stays.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use storage_client::ConnectOptions;
use tempfile::TempDir;

use crate::harness::{Certificates, ServerProcess};

/// Ports below those that systems give to outgoing connections: while the server is down, one of the proxy's attempts
/// to connect could otherwise be given the server's own port, connect to itself and keep the server out.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A server process that can be killed and started again under runs.
#[derive(Clone, Debug)]
pub struct Stage {
    address: SocketAddr,
    certificates: Arc<Certificates>,
    server: Arc<Mutex<ServerProcess>>,
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
        let server = ServerProcess::start(&[
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

    /// Resident memory of the server, in bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.resident_bytes()
    }

    /// How a client connects, by the proxy or directly. Deadlines are short, so that a run under faults goes on.
    #[must_use]
    pub fn options(&self, address: SocketAddr, keyspace: &str) -> ConnectOptions {
        ConnectOptions::new(format!("wss://{address}/storage/{keyspace}"))
            .credentials_dir(self.certificates.dir().join("worker"))
            .connect_timeout(Duration::from_millis(1_500))
            .request_timeout(Duration::from_millis(700))
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

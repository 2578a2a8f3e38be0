//! A server of a test's own, over mutual TLS, with a listener for its metrics.

use std::path::PathBuf;
use std::time::Duration;

use storage_client::{ConnectOptions, RemoteStorage};
use tempfile::TempDir;

use crate::harness::{Certificates, ServerProcess, connect};
use crate::raw::{Raw, in_time, metric};

/// A listener for health and metrics on a free port, as a configuration has it.
pub const ADMIN: &str =
    "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"off\"\ngateways = [\"admin\"]\n";

const CONFIG: &str = "server.toml";

/// The server, and credentials for its clients; all of it goes when this is dropped.
#[derive(Debug)]
pub struct Served {
    /// The process.
    pub server: ServerProcess,
    /// Its authority, with the clients' credentials.
    pub certificates: Certificates,
    folder: TempDir,
}

impl Served {
    /// Starts one as it is shipped that is configured by this text, with credentials for these clients.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn new(clients: &[&str], config: &str) -> Self {
        let certificates = Certificates::issue(clients);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join(CONFIG);
        std::fs::write(&file, format!("{config}\n{ADMIN}")).expect("a file");
        let (file, data) = (file.display().to_string(), folder.path().join("data"));
        let server = ServerProcess::mutual(&certificates, &data, &["--config", &file]);
        Self {
            server,
            certificates,
            folder,
        }
    }

    /// The same for a test of what the server holds: what is freed goes back to the system at once, see
    /// [`ServerProcess::configured`].
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn measured(clients: &[&str], config: &str) -> Self {
        let certificates = Certificates::issue(clients);
        let config = format!("{config}\n{ADMIN}");
        let (server, folder) = ServerProcess::configured(&certificates, &config);
        Self {
            server,
            certificates,
            folder,
        }
    }

    /// Gives a server that was started by [`Served::new`] another configuration, which it reads by itself.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn configure(&self, config: &str) {
        let next = self.folder.path().join("next.toml");
        std::fs::write(&next, format!("{config}\n{ADMIN}")).expect("a file");
        std::fs::rename(next, self.folder.path().join(CONFIG)).expect("in its place");
    }

    /// The server's data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Where clients find a keyspace, at the first listener for them.
    #[must_use]
    pub fn url(&self, keyspace: &str) -> String {
        format!("{}/storage/{keyspace}", self.server.url("storage"))
    }

    /// How a client connects by its certificate.
    #[must_use]
    pub fn certified(&self, client: &str, keyspace: &str) -> ConnectOptions {
        let folder = self.certificates.dir().join(client);
        ConnectOptions::new(self.url(keyspace)).credentials_dir(folder)
    }

    /// How one connects that has no certificate.
    #[must_use]
    pub fn bare(&self, keyspace: &str) -> ConnectOptions {
        let ca = self.certificates.dir().join("ca.pem");
        ConnectOptions::new(self.url(keyspace)).without_client_certificate(ca)
    }

    /// A session of the client library.
    ///
    /// # Panics
    /// If there is none.
    pub async fn connect(&self, client: &str, keyspace: &str) -> RemoteStorage {
        let connected = connect(&self.server, &self.certificates, client, keyspace).await;
        connected.expect("a session")
    }

    /// A session of which the test sees each frame.
    ///
    /// # Panics
    /// If there is none.
    pub async fn native(&self, client: &str, keyspace: &str) -> Raw {
        Raw::native(&self.server, &self.certificates, client, keyspace)
            .await
            .0
    }

    /// A connection of an mwDB client.
    ///
    /// # Panics
    /// If there is none.
    pub async fn mwdb(&self, client: &str) -> Raw {
        Raw::mwdb(&self.server, &self.certificates, client).await
    }

    /// What a metric is now.
    ///
    /// # Panics
    /// If there is none of this name.
    pub async fn metric(&self, name: &str) -> f64 {
        metric(&self.server, name).await
    }

    /// What a bound in bytes has in use.
    ///
    /// # Panics
    /// If there is none of this name.
    pub async fn used(&self, budget: &str) -> f64 {
        self.metric(&format!("storage_budget_used_bytes{{budget=\"{budget}\"}}"))
            .await
    }

    /// Waits until a metric is 0.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn comes_to_nothing(&self, name: &str) {
        let waiting = async {
            while self.metric(name).await > 0.0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        in_time(name, waiting).await;
    }

    /// Waits until nothing is counted in a bound any more: a connection ends a moment after its peer is gone.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn all_is_given_back(&self, budget: &str) {
        let name = format!("storage_budget_used_bytes{{budget=\"{budget}\"}}");
        self.comes_to_nothing(&name).await;
    }
}

//! A server with two ways in: one listener that takes certificates, tokens and passwords, and one for mutual TLS alone.

use std::path::PathBuf;

use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::{Batch, CommitOptions, Storage};
pub(crate) use storage_testkit::entrance::ask;
use storage_testkit::entrance::{BOSS, LISTENER};
use storage_testkit::harness::{Certificates, ServerProcess};
use tempfile::TempDir;

/// Everybody may use `model`; and a second listener.
const CONFIG: &str = r#"
[[rule]]
principal = "*"
keyspace = "model"
allow = ["read", "write", "watch"]
"#;

const MUTUAL: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";

/// The server, its authority, and an administrator, `boss`.
pub(crate) struct House {
    pub(crate) server: ServerProcess,
    pub(crate) certificates: Certificates,
    _folder: TempDir,
}

/// One of the two ways in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// The listener for all kinds of credentials.
    Any,
    /// The one for mutual TLS.
    Mutual,
}

impl House {
    /// With a keyspace `model` of one key, and credentials for these clients.
    pub(crate) async fn new(clients: &[&str]) -> Self {
        let certificates = Certificates::issue(&[&["boss"], clients].concat());
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        std::fs::write(&config, format!("{BOSS}{CONFIG}{LISTENER}{MUTUAL}")).unwrap();
        let config = config.display().to_string();
        let data = folder.path().join("data");
        let server = ServerProcess::mutual(&certificates, &data, &["--config", &config]);
        let house = Self {
            server,
            certificates,
            _folder: folder,
        };
        let boss = RemoteStorage::connect(house.certified("boss", Door::Mutual, "model")).await;
        let batch = Batch::new().put("there", "1");
        let put = boss.unwrap().commit(batch, CommitOptions::default()).await;
        put.unwrap();
        house
    }

    /// Address and port.
    pub(crate) fn address(&self, door: Door) -> String {
        let listeners = self.server.listeners.iter();
        let mut urls = listeners.filter(|(_, gateways)| gateways.contains("storage"));
        let (url, _) = urls.nth(usize::from(door == Door::Mutual)).unwrap();
        url.split_once("://").unwrap().1.to_owned()
    }

    pub(crate) fn url(&self, door: Door, keyspace: &str) -> String {
        format!("wss://{}/storage/{keyspace}", self.address(door))
    }

    /// Where the credentials of a client lie.
    pub(crate) fn credentials(&self, client: &str) -> PathBuf {
        self.certificates.dir().join(client)
    }

    /// With the certificate of a client.
    pub(crate) fn certified(&self, client: &str, door: Door, keyspace: &str) -> ConnectOptions {
        ConnectOptions::new(self.url(door, keyspace)).credentials_dir(self.credentials(client))
    }
}

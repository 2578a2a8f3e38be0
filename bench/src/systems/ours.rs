//! This server, as it is shipped, and its own client.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::{
    Batch, ChangeKind, CommitOptions, KeyRange, KeyState, Revision, ScanOptions, Storage,
    WatchEvent, WatchOptions, WatchStart,
};
use tokio::task::JoinHandle;

use super::{Place, Server};
use crate::client::Client;
use crate::fanout::{Audience, Deliveries, Interest};
use crate::keys::{Key, end};
use crate::process::{PATIENCE, Process};
use crate::tls::CLIENT;

/// Bounds that a load of thousands of connections of one principal needs.
const LIMITS: &str = "[limits]\nsessions_per_principal_max = 20000\nsessions_max = 40000\n";

/// A running server.
#[derive(Debug)]
pub(crate) struct Ours {
    process: Process,
    address: String,
    credentials: PathBuf,
}

impl Ours {
    /// `program`: the binary. `memory`: what its cache may take, if not the default.
    pub(crate) fn start(
        place: &Place,
        program: &Path,
        durability: &str,
        memory: Option<u64>,
    ) -> Result<Self> {
        let config = place.folder().join("server.toml");
        let memory = memory.map(|bytes| format!("memory_bytes_max = {bytes}\n"));
        std::fs::write(&config, format!("{LIMITS}{}", memory.unwrap_or_default()))?;
        let mut command = Command::new(program);
        command
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--durability",
                durability,
            ])
            .arg("--config")
            .arg(&config)
            .arg("--certs")
            .arg(place.certificates())
            .arg("--data")
            .arg(place.data());
        let mut process = Process::start("storage-server", &mut command, &place.log(), true)?;
        let line = process.line(PATIENCE).with_context(|| place.last_words())?;
        let address = line
            .strip_prefix("listening ")
            .and_then(|rest| rest.split_whitespace().next());
        let address = address.with_context(|| format!("the server said {line:?}"))?;
        Ok(Self {
            process,
            address: address.to_owned(),
            credentials: place.certificates().join(CLIENT),
        })
    }

    /// Where the keyspace of the load is.
    pub(crate) fn url(&self) -> String {
        format!("{}/storage/bench", self.address)
    }

    /// A connection to a keyspace.
    pub(crate) async fn connect_to(&self, keyspace: &str) -> Result<RemoteStorage> {
        let url = format!("{}/storage/{keyspace}", self.address);
        let options = ConnectOptions::new(url).credentials_dir(&self.credentials);
        Ok(RemoteStorage::connect(options).await?)
    }
}

impl Server for Ours {
    type Client = RemoteStorage;

    fn process(&self) -> &Process {
        &self.process
    }

    async fn connect(&self) -> Result<RemoteStorage> {
        self.connect_to("bench").await
    }
}

fn key_of(key: Key) -> Bytes {
    Bytes::copy_from_slice(&key)
}

fn at_once() -> CommitOptions {
    CommitOptions::default()
}

impl Client for RemoteStorage {
    async fn get(&self, key: Key) -> Result<usize> {
        let mut found = Storage::get(self, &[key_of(key)]).await?.value;
        let entry = found.pop().flatten().context("a key was not found")?;
        Ok(entry.value.len())
    }

    async fn put(&self, key: Key, value: Bytes) -> Result<()> {
        let batch = Batch::new().put(key_of(key), value);
        Storage::commit(self, batch, at_once()).await?;
        Ok(())
    }

    async fn multi_get(&self, keys: Vec<Key>) -> Result<usize> {
        let keys: Vec<Bytes> = keys.into_iter().map(key_of).collect();
        let found = Storage::get(self, &keys).await?.value;
        let lengths = found.into_iter().map(|one| one.map(|one| one.value.len()));
        lengths
            .sum::<Option<usize>>()
            .context("a key was not found")
    }

    async fn commit(&self, puts: Vec<(Key, Bytes)>) -> Result<()> {
        let puts = puts.into_iter();
        let batch = puts.fold(Batch::new(), |batch, (key, value)| {
            batch.put(key_of(key), value)
        });
        Storage::commit(self, batch, at_once()).await?;
        Ok(())
    }

    async fn scan(&self, start: Key, count: usize) -> Result<usize> {
        let options = ScanOptions {
            limit: Some(count as u64),
            ..ScanOptions::default()
        };
        let range = KeyRange::between(key_of(start), end());
        let items = Storage::scan(self, range, options).await?.collect().await?;
        ensure!(items.len() == count, "{} of {count} entries", items.len());
        let lengths = items.into_iter().map(|item| match item.state {
            KeyState::Live(entry) => entry.value.len(),
            KeyState::Removed(_) => 0,
        });
        Ok(lengths.sum())
    }

    async fn compare_and_set(&self, key: Key, seen: Option<u64>, value: Bytes) -> Result<u64> {
        let mut batch = Batch::new().put(key_of(key), value);
        if let Some(seen) = seen {
            batch = batch.check_revision(key_of(key), Revision(seen));
        }
        let position = Storage::commit(self, batch, at_once()).await?;
        Ok(position.revision.0)
    }

    async fn subscribe(
        &self,
        interest: Interest,
        deliveries: Arc<Deliveries>,
        number: u64,
    ) -> Result<JoinHandle<Result<()>>> {
        let range = KeyRange::prefix(interest.prefix());
        let options = WatchOptions::every(WatchStart::Now);
        let mut watch = Storage::watch(self, range, options).await?;
        Ok(tokio::spawn(async move {
            loop {
                let commit = match watch.next().await? {
                    Some(WatchEvent::Commit(commit)) => commit,
                    Some(WatchEvent::Progress { .. }) => continue,
                    other => bail!("a watch said {other:?}"),
                };
                for change in &commit.changes {
                    if let ChangeKind::Put { value, .. } = &change.kind {
                        deliveries.deliver(number, value)?;
                    }
                }
            }
        }))
    }

    async fn publish(&self, audience: Audience, number: u64, value: Bytes) -> Result<()> {
        let batch = Batch::new().put(audience.key(number), value);
        Storage::commit(self, batch, at_once()).await?;
        Ok(())
    }

    async fn close(self) {
        RemoteStorage::close(&self).await;
    }
}

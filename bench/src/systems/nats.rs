//! NATS with JetStream: a bucket of its key-value store in files, over mutual TLS or wss.
//!
//! It has no request for several keys: those of a multi-get or a commit are sent at once, and are that many requests, not
//! one that is done or not.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_nats::ConnectOptions;
use async_nats::jetstream::kv::{Config, Store};
use async_nats::jetstream::{self, stream::StorageType};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use tokio::task::JoinHandle;

use super::{Place, Server};
use crate::client::Client;
use crate::fanout::{Audience, Deliveries, Interest};
use crate::keys::{Key, text};
use crate::process::{Process, free_port, until_ready};
use crate::tls::CLIENT;

const BUCKET: &str = "bench";

/// A running server.
#[derive(Debug)]
pub(crate) struct Nats {
    process: Process,
    url: String,
    credentials: PathBuf,
    program: String,
    folder: PathBuf,
    log: PathBuf,
    /// All of its configuration but how often it syncs.
    config: String,
    /// Each write is synced; by default every two minutes.
    pub(crate) always: bool,
}

impl Nats {
    /// `wss`: over WebSockets. `always`: each write is synced.
    pub(crate) async fn start(
        place: &Place,
        program: &str,
        wss: bool,
        always: bool,
    ) -> Result<Self> {
        let (port, web_port) = (free_port()?, free_port()?);
        let server = place.certificates().join("server");
        let file = |name: &str| server.join(name).display().to_string();
        let tls = format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\n",
            file("cert.pem"),
            file("key.pem"),
            file("ca.pem")
        );
        let mut config = format!("listen: \"127.0.0.1:{port}\"\nmax_payload: 8MB\n{tls}");
        if wss {
            let _ = writeln!(
                config,
                "websocket {{ listen: \"127.0.0.1:{web_port}\"\n{tls}}}"
            );
        }
        let url = if wss {
            format!("wss://127.0.0.1:{web_port}")
        } else {
            format!("tls://127.0.0.1:{port}")
        };
        let (folder, log) = (place.folder().to_owned(), place.log());
        let mut nats = Self {
            process: launch(program, &folder, &log, &config, always)?,
            url,
            credentials: place.certificates().join(CLIENT),
            program: program.to_owned(),
            folder,
            log,
            config,
            always,
        };
        let ready = nats.ready().await;
        ready.with_context(|| place.last_words())?;
        Ok(nats)
    }

    /// Starts it again with the same data: to load a hundred thousand keys with a sync for each takes minutes.
    pub(crate) async fn restart(&mut self, always: bool) -> Result<()> {
        self.process.terminate().await?;
        self.process = launch(&self.program, &self.folder, &self.log, &self.config, always)?;
        self.ready().await
    }

    /// Waits until its bucket is there.
    async fn ready(&mut self) -> Result<()> {
        let (options, url) = (self.options(), self.url.clone());
        let ready = until_ready(&mut self.process, || async {
            let context = jetstream::new(options.clone().connect(&url).await?);
            let bucket = Config {
                bucket: BUCKET.to_owned(),
                history: 1,
                storage: StorageType::File,
                ..Config::default()
            };
            context.create_key_value(bucket).await?;
            Ok(())
        });
        ready.await
    }

    fn options(&self) -> ConnectOptions {
        let file = |name: &str| self.credentials.join(name);
        ConnectOptions::new()
            .add_root_certificates(file("ca.pem"))
            .add_client_certificate(file("cert.pem"), file("key.pem"))
            .require_tls(true)
    }
}

fn launch(program: &str, folder: &Path, log: &Path, config: &str, always: bool) -> Result<Process> {
    let sync = if always {
        "sync_interval: always\n"
    } else {
        ""
    };
    let store = folder.join("data");
    let path = folder.join("nats.conf");
    let config = format!("{config}\njetstream {{ store_dir: {store:?}\n{sync}}}\n");
    std::fs::write(&path, config)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&path);
    Process::start("nats-server", &mut command, log, false)
}

impl Server for Nats {
    type Client = Connection;

    fn process(&self) -> &Process {
        &self.process
    }

    async fn connect(&self) -> Result<Connection> {
        let client = self.options().connect(&self.url).await?;
        let store = jetstream::new(client.clone()).get_key_value(BUCKET).await?;
        Ok(Connection {
            client,
            store: Arc::new(store),
        })
    }
}

/// A connection, with its bucket.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    client: async_nats::Client,
    store: Arc<Store>,
}

impl Client for Connection {
    async fn get(&self, key: Key) -> Result<usize> {
        let found = self.store.get(text(&key)).await?;
        Ok(found.context("a key was not found")?.len())
    }

    async fn put(&self, key: Key, value: Bytes) -> Result<()> {
        self.store.put(text(&key), value).await?;
        Ok(())
    }

    async fn multi_get(&self, keys: Vec<Key>) -> Result<usize> {
        let gets = keys.into_iter().map(|key| self.get(key));
        Ok(try_join_all(gets).await?.into_iter().sum())
    }

    async fn commit(&self, puts: Vec<(Key, Bytes)>) -> Result<()> {
        let puts = puts.into_iter().map(|(key, value)| self.put(key, value));
        try_join_all(puts).await?;
        Ok(())
    }

    async fn scan(&self, _: Key, _: usize) -> Result<usize> {
        bail!("NATS does not read ranges of keys")
    }

    async fn compare_and_set(&self, key: Key, seen: Option<u64>, value: Bytes) -> Result<u64> {
        let key = text(&key);
        Ok(match seen {
            Some(seen) => self.store.update(key, value, seen).await?,
            None => self.store.put(key, value).await?,
        })
    }

    async fn subscribe(
        &self,
        interest: Interest,
        deliveries: Arc<Deliveries>,
        number: u64,
    ) -> Result<JoinHandle<Result<()>>> {
        let keys = format!("{}.>", interest.channel());
        let mut watch = self.store.watch(keys).await?;
        Ok(tokio::spawn(async move {
            while let Some(entry) = watch.next().await {
                deliveries.deliver(number, &entry?.value)?;
            }
            bail!("NATS ended a watch")
        }))
    }

    async fn publish(&self, audience: Audience, number: u64, value: Bytes) -> Result<()> {
        let key = audience.key(number).replace('/', ".");
        self.store.put(key, value).await?;
        Ok(())
    }

    async fn close(self) {
        let _ = self.client.drain().await;
    }
}

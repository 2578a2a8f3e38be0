//! Redis over mutual TLS, with the crate `redis`: one multiplexed connection for each client.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ClientTlsConfig, TlsCertificates, Value};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::{Place, Server};
use crate::client::Client;
use crate::fanout::{Audience, Deliveries, Interest};
use crate::keys::Key;
use crate::process::{Process, free_port, until_ready};
use crate::tls::CLIENT;

/// Sets a key if the first 8 bytes of its value are those that were seen.
const COMPARE_AND_SET: &str = "if redis.call('GETRANGE', KEYS[1], 0, 7) == ARGV[1] then \
     redis.call('SET', KEYS[1], ARGV[2]); return 1 else return 0 end";

/// A running server.
#[derive(Debug)]
pub(crate) struct Redis {
    process: Process,
    client: redis::Client,
}

impl Redis {
    /// `fsync`: `everysec` or `always`.
    pub(crate) async fn start(place: &Place, program: &str, fsync: &str) -> Result<Self> {
        let port = free_port()?;
        let server = place.certificates().join("server");
        let mut command = Command::new(program);
        command
            .args(["--port", "0", "--tls-port", &port.to_string()])
            .args(["--bind", "127.0.0.1", "--tls-auth-clients", "yes"])
            .args(["--save", "", "--appendonly", "yes", "--appendfsync", fsync])
            .arg("--tls-cert-file")
            .arg(server.join("cert.pem"))
            .arg("--tls-key-file")
            .arg(server.join("key.pem"))
            .arg("--tls-ca-cert-file")
            .arg(server.join("ca.pem"))
            .arg("--dir")
            .arg(place.data());
        let mut process = Process::start("redis-server", &mut command, &place.log(), false)?;
        let own = place.certificates().join(CLIENT);
        let read = |file: &str| std::fs::read(own.join(file));
        let client = redis::Client::build_with_tls(
            format!("rediss://127.0.0.1:{port}/"),
            TlsCertificates {
                client_tls: Some(ClientTlsConfig {
                    client_cert: read("cert.pem")?,
                    client_key: read("key.pem")?,
                }),
                root_cert: Some(read("ca.pem")?),
            },
        )?;
        let ready = until_ready(&mut process, || async {
            Connection::open(&client).await.map(drop)
        });
        ready.await.with_context(|| place.last_words())?;
        Ok(Self { process, client })
    }
}

impl Server for Redis {
    type Client = Connection;

    fn process(&self) -> &Process {
        &self.process
    }

    async fn connect(&self) -> Result<Connection> {
        Connection::open(&self.client).await
    }
}

/// A connection, and the client that it is from: subscriptions need connections of their own.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    client: redis::Client,
    multiplexed: MultiplexedConnection,
    /// The name of [`COMPARE_AND_SET`], once it is loaded.
    script: Arc<OnceCell<String>>,
}

impl Connection {
    async fn open(client: &redis::Client) -> Result<Self> {
        // Its own default is half a second, which a full load may take.
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(Duration::from_secs(30)))
            .set_connection_timeout(Some(Duration::from_secs(30)));
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        Ok(Self {
            client: client.clone(),
            multiplexed: opening.await?,
            script: Arc::default(),
        })
    }

    /// Loads the script when it is needed first.
    async fn script(&self) -> Result<&String> {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(COMPARE_AND_SET);
        let loading = self.script.get_or_try_init(|| async {
            match self.ask(&load).await? {
                Value::BulkString(name) => Ok(String::from_utf8(name)?),
                other => bail!("Redis answered {other:?}"),
            }
        });
        loading.await
    }

    async fn ask(&self, command: &redis::Cmd) -> Result<Value> {
        let mut connection = self.multiplexed.clone();
        Ok(command.query_async(&mut connection).await?)
    }

    async fn done(&self, command: &redis::Cmd) -> Result<()> {
        match self.ask(command).await? {
            Value::Okay => Ok(()),
            other => bail!("Redis answered {other:?}"),
        }
    }
}

fn length(value: &Value) -> Result<usize> {
    match value {
        Value::BulkString(value) => Ok(value.len()),
        Value::Nil => bail!("a key was not found"),
        other => bail!("Redis answered {other:?}"),
    }
}

impl Client for Connection {
    async fn get(&self, key: Key) -> Result<usize> {
        let mut command = redis::cmd("GET");
        command.arg(&key);
        length(&self.ask(&command).await?)
    }

    async fn put(&self, key: Key, value: Bytes) -> Result<()> {
        let mut command = redis::cmd("SET");
        command.arg(&key).arg(&value[..]);
        self.done(&command).await
    }

    async fn multi_get(&self, keys: Vec<Key>) -> Result<usize> {
        let mut command = redis::cmd("MGET");
        for key in &keys {
            command.arg(key);
        }
        match self.ask(&command).await? {
            Value::Array(values) => values.iter().map(length).sum(),
            other => bail!("Redis answered {other:?}"),
        }
    }

    async fn commit(&self, puts: Vec<(Key, Bytes)>) -> Result<()> {
        let mut command = redis::cmd("MSET");
        for (key, value) in &puts {
            command.arg(key).arg(&value[..]);
        }
        self.done(&command).await
    }

    async fn scan(&self, _: Key, _: usize) -> Result<usize> {
        bail!("Redis has no keys in order")
    }

    async fn compare_and_set(&self, key: Key, seen: Option<u64>, value: Bytes) -> Result<u64> {
        let next = seen.unwrap_or_default() + 1;
        let mut versioned = next.to_be_bytes().to_vec();
        versioned.extend_from_slice(value.get(8..).unwrap_or_default());
        let Some(seen) = seen else {
            let mut command = redis::cmd("SET");
            command.arg(&key).arg(&versioned);
            self.done(&command).await?;
            return Ok(next);
        };
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.script().await?).arg(1).arg(&key);
        command.arg(&seen.to_be_bytes()).arg(&versioned);
        let answer = self.ask(&command).await?;
        ensure!(answer == Value::Int(1), "Redis answered {answer:?}");
        Ok(next)
    }

    async fn subscribe(
        &self,
        interest: Interest,
        deliveries: Arc<Deliveries>,
        number: u64,
    ) -> Result<JoinHandle<Result<()>>> {
        // What is multiplexed cannot subscribe in the older protocol, and this is what the crate offers for it.
        let mut subscription = self.client.get_async_pubsub().await?;
        subscription.subscribe(interest.channel()).await?;
        Ok(tokio::spawn(async move {
            let mut messages = subscription.into_on_message();
            while let Some(message) = messages.next().await {
                deliveries.deliver(number, message.get_payload_bytes())?;
            }
            bail!("Redis ended a subscription")
        }))
    }

    async fn publish(&self, audience: Audience, number: u64, value: Bytes) -> Result<()> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(audience.of(number).channel()).arg(&value[..]);
        let reached = self.ask(&command).await?;
        ensure!(
            matches!(reached, Value::Int(1..)),
            "nobody heard: {reached:?}"
        );
        Ok(())
    }

    async fn close(self) {}
}

//! etcd, one member, over mutual TLS and gRPC (tonic), which is what the crate etcd-client is made of.
//!
//! The few messages that are needed are written down here, by `rpc.proto` of etcd 3.4, with the numbers of their fields:
//! to generate them, each build of the workspace would need `protoc`.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::stream;
use prost::Message;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::{Place, Server};
use crate::client::Client;
use crate::fanout::{Audience, Deliveries, Interest};
use crate::keys::{Key, end};
use crate::process::{Process, free_port, until_ready};
use crate::tls::CLIENT;

/// A running server.
#[derive(Debug)]
pub(crate) struct Etcd {
    process: Process,
    endpoint: Endpoint,
}

impl Etcd {
    pub(crate) async fn start(place: &Place, program: &str) -> Result<Self> {
        let (port, peer) = (free_port()?, free_port()?);
        let (url, peer) = (
            format!("https://127.0.0.1:{port}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let server = place.certificates().join("server");
        let mut command = Command::new(program);
        command
            .args(["--name", "bench", "--log-level", "error"])
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("bench={peer}")])
            .args(["--quota-backend-bytes", "8589934592"])
            .args(["--max-request-bytes", "16777216", "--client-cert-auth"])
            .arg("--cert-file")
            .arg(server.join("cert.pem"))
            .arg("--key-file")
            .arg(server.join("key.pem"))
            .arg("--trusted-ca-file")
            .arg(server.join("ca.pem"))
            .arg("--data-dir")
            .arg(place.data());
        let process = Process::start("etcd", &mut command, &place.log(), false)?;
        let own = place.certificates().join(CLIENT);
        let read = |file: &str| std::fs::read(own.join(file));
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")?))
            .identity(Identity::from_pem(read("cert.pem")?, read("key.pem")?))
            .domain_name("127.0.0.1");
        let endpoint = Endpoint::from_shared(url)?
            .tls_config(tls)?
            .tcp_nodelay(true);
        let mut etcd = Self { process, endpoint };
        let endpoint = etcd.endpoint.clone();
        let ready = until_ready(&mut etcd.process, || async {
            let connection = Connection::open(&endpoint).await?;
            let answer = connection.range(b"ready".to_vec(), Vec::new(), 0).await?;
            ensure!(answer.kvs.is_empty(), "an empty store");
            Ok(())
        });
        ready.await.with_context(|| place.last_words())?;
        Ok(etcd)
    }
}

impl Server for Etcd {
    type Client = Connection;

    fn process(&self) -> &Process {
        &self.process
    }

    async fn connect(&self) -> Result<Connection> {
        Connection::open(&self.endpoint).await
    }
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    limit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, Message)]
struct RequestOp {
    #[prost(message, optional, tag = "1")]
    range: Option<RangeRequest>,
    #[prost(message, optional, tag = "2")]
    put: Option<PutRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseOp {
    #[prost(message, optional, tag = "1")]
    range: Option<RangeResponse>,
}

/// That the key's last revision is this: `result` EQUAL is 0, `target` MOD is 2.
#[derive(Clone, PartialEq, Message)]
struct Compare {
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(int64, optional, tag = "6")]
    mod_revision: Option<i64>,
}

const TARGET_MOD: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, Message)]
struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(bool, tag = "2")]
    succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    responses: Vec<ResponseOp>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(message, optional, tag = "2")]
    kv: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(bool, tag = "4")]
    canceled: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

/// A connection of HTTP/2.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    channel: Channel,
}

/// The first key behind all that begin with this.
fn behind(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // Prefixes here end with '/'.
        *last += 1;
    }
    end
}

impl Connection {
    async fn open(endpoint: &Endpoint) -> Result<Self> {
        let channel = endpoint.connect().await?;
        Ok(Self { channel })
    }

    fn grpc(&self) -> Grpc<Channel> {
        const LONGEST: usize = 64 << 20;
        Grpc::new(self.channel.clone()).max_decoding_message_size(LONGEST)
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready().await?;
        let path = PathAndQuery::from_static(method);
        let codec = ProstCodec::default();
        let answer = grpc.unary(Request::new(request), path, codec).await?;
        Ok(answer.into_inner())
    }

    async fn range(&self, key: Vec<u8>, range_end: Vec<u8>, limit: i64) -> Result<RangeResponse> {
        let request = RangeRequest {
            key,
            range_end,
            limit,
        };
        self.call("/etcdserverpb.KV/Range", request).await
    }

    async fn put_bytes(&self, key: Vec<u8>, value: Bytes) -> Result<u64> {
        let request = PutRequest { key, value };
        let answer: PutResponse = self.call("/etcdserverpb.KV/Put", request).await?;
        revision(answer.header.as_ref())
    }

    async fn transact(&self, compare: Vec<Compare>, ops: Vec<RequestOp>) -> Result<TxnResponse> {
        let request = TxnRequest {
            compare,
            success: ops,
        };
        let answer: TxnResponse = self.call("/etcdserverpb.KV/Txn", request).await?;
        ensure!(answer.succeeded, "a transaction was refused");
        Ok(answer)
    }
}

fn revision(header: Option<&Header>) -> Result<u64> {
    Ok(u64::try_from(header.context("no header")?.revision)?)
}

fn only(kvs: &[KeyValue]) -> Result<usize> {
    let [found] = kvs else {
        bail!("{} keys were found", kvs.len());
    };
    Ok(found.value.len())
}

fn put_op(key: Vec<u8>, value: Bytes) -> RequestOp {
    RequestOp {
        range: None,
        put: Some(PutRequest { key, value }),
    }
}

impl Client for Connection {
    async fn get(&self, key: Key) -> Result<usize> {
        only(&self.range(key.to_vec(), Vec::new(), 0).await?.kvs)
    }

    async fn put(&self, key: Key, value: Bytes) -> Result<()> {
        self.put_bytes(key.to_vec(), value).await?;
        Ok(())
    }

    async fn multi_get(&self, keys: Vec<Key>) -> Result<usize> {
        let ops = keys.iter().map(|key| RequestOp {
            range: Some(RangeRequest {
                key: key.to_vec(),
                range_end: Vec::new(),
                limit: 0,
            }),
            put: None,
        });
        let answer = self.transact(Vec::new(), ops.collect()).await?;
        ensure!(answer.responses.len() == keys.len(), "too few answers");
        let found = answer.responses.iter().map(|response| {
            let range = response
                .range
                .as_ref()
                .context("an answer of another kind")?;
            only(&range.kvs)
        });
        found.sum()
    }

    async fn commit(&self, puts: Vec<(Key, Bytes)>) -> Result<()> {
        let ops = puts.into_iter();
        let ops = ops.map(|(key, value)| put_op(key.to_vec(), value));
        self.transact(Vec::new(), ops.collect()).await?;
        Ok(())
    }

    async fn scan(&self, start: Key, count: usize) -> Result<usize> {
        let range = self.range(start.to_vec(), end().to_vec(), i64::try_from(count)?);
        let found = range.await?.kvs;
        ensure!(found.len() == count, "{} of {count} entries", found.len());
        Ok(found.iter().map(|kv| kv.value.len()).sum())
    }

    async fn compare_and_set(&self, key: Key, seen: Option<u64>, value: Bytes) -> Result<u64> {
        let Some(seen) = seen else {
            return self.put_bytes(key.to_vec(), value).await;
        };
        let compare = Compare {
            target: TARGET_MOD,
            key: key.to_vec(),
            mod_revision: Some(i64::try_from(seen)?),
        };
        let ops = vec![put_op(key.to_vec(), value)];
        revision(self.transact(vec![compare], ops).await?.header.as_ref())
    }

    async fn subscribe(
        &self,
        interest: Interest,
        deliveries: Arc<Deliveries>,
        number: u64,
    ) -> Result<JoinHandle<Result<()>>> {
        let prefix = interest.prefix();
        let request = WatchRequest {
            create: Some(WatchCreateRequest {
                range_end: behind(&prefix),
                key: prefix.into_bytes(),
            }),
        };
        let mut grpc = self.grpc();
        grpc.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        // The stream of requests stays open: etcd ends the watches with it.
        let requests = stream::StreamExt::chain(stream::iter([request]), stream::pending());
        let codec = ProstCodec::default();
        let opening = grpc.streaming(Request::new(requests), path, codec);
        let mut events: Streaming<WatchResponse> = opening.await?.into_inner();
        let first = events.message().await?.context("etcd ended a watch")?;
        ensure!(first.created, "etcd did not begin a watch");
        Ok(tokio::spawn(async move {
            while let Some(response) = events.message().await? {
                ensure!(!response.canceled, "etcd ended a watch");
                for event in response.events {
                    let kv = event.kv.context("an event without a key")?;
                    deliveries.deliver(number, &kv.value)?;
                }
            }
            bail!("etcd ended a watch")
        }))
    }

    async fn publish(&self, audience: Audience, number: u64, value: Bytes) -> Result<()> {
        let key = audience.key(number).into_bytes();
        self.put_bytes(key, value).await?;
        Ok(())
    }

    async fn close(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_bytes_that_etcd_reads() {
        let request = PutRequest {
            key: b"k".to_vec(),
            value: Bytes::from_static(b"v"),
        };
        assert_eq!(request.encode_to_vec(), b"\x0a\x01k\x12\x01v");
        let compare = Compare {
            target: TARGET_MOD,
            key: b"k".to_vec(),
            mod_revision: Some(5),
        };
        assert_eq!(compare.encode_to_vec(), b"\x10\x02\x1a\x01k\x30\x05");
        assert_eq!(behind("event/3/"), b"event/30");
    }
}

//! The ceiling: a server on the same stack, which answers each message with one of the size that was asked for, or with
//! one to all who have subscribed, and does nothing else; and a client that collects requests before it flushes, as this
//! project's does.
//!
//! A request is a kind, the length of its answer, and whatever makes it as long as the request that it stands for.

use std::collections::VecDeque;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::{Place, Server};
use crate::client::Client;
use crate::fanout::{Audience, Deliveries, Interest};
use crate::keys::{KEY_BYTES, Key};
use crate::process::{PATIENCE, Process};
use crate::tls;
use crate::work::SCANNED;

/// Answered to who asks.
const ASK: u8 = 0;
/// From now on everything that is published is sent to who asks.
const SUBSCRIBE: u8 = 1;
/// Sent to all who have subscribed, and answered.
const PUBLISH: u8 = 2;

/// Kind and length.
const HEAD_BYTES: usize = 5;

/// What this server's messages have besides keys and values: frame, kind, id, revision and lengths.
const FRAME_BYTES: usize = 16;
/// And besides each key or value.
const ITEM_BYTES: usize = 12;

/// Messages between two flushes, as in this server.
const ROUND: usize = 128;

/// Events that wait for a subscriber. The load keeps fewer on their way.
const EVENTS: usize = 64 * 1024;

/// As in this server; `write`: bytes that are collected before a write.
fn config(write: usize) -> WebSocketConfig {
    const LONGEST: usize = 4 << 20;
    WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .write_buffer_size(write)
        .max_write_buffer_size((1 << 20) + 2 * LONGEST)
        .max_message_size(Some(LONGEST))
        .max_frame_size(Some(LONGEST))
}

/// Serves until the end of the process. Prints its address.
pub(crate) async fn serve(credentials: &Path) -> Result<()> {
    let acceptor = TlsAcceptor::from(tls::server(credentials)?);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?);
    let (events, _) = broadcast::channel(EVENTS);
    loop {
        let (tcp, _) = listener.accept().await?;
        let (acceptor, events) = (acceptor.clone(), events.clone());
        tokio::spawn(async move {
            tcp.set_nodelay(true)?;
            let stream = acceptor.accept(tcp).await?;
            let config = Some(config(64 * 1024));
            let socket = tokio_tungstenite::accept_async_with_config(stream, config).await?;
            converse(socket, events).await
        });
    }
}

async fn converse<S>(mut socket: WebSocketStream<S>, events: broadcast::Sender<Bytes>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Answers are cut from it.
    let zeroes = Bytes::from(vec![0; 2 << 20]);
    let mut subscription: Option<broadcast::Receiver<Bytes>> = None;
    loop {
        let event = async {
            match &mut subscription {
                Some(subscription) => subscription.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = socket.next() => {
                // Reads all that is there, answers all of it, flushes once.
                let mut next = Some(message);
                for _ in 0..ROUND {
                    let Some(message) = next else { break };
                    let Some(message) = message else { return Ok(()) };
                    let request = match message? {
                        Message::Binary(request) => request,
                        Message::Close(_) => return Ok(()),
                        _ => Bytes::new(),
                    };
                    if let Some(answer) = answer(&request, &zeroes, &events, &mut subscription) {
                        socket.feed(Message::Binary(answer)).await?;
                    }
                    next = socket.next().now_or_never();
                }
                socket.flush().await?;
            }
            event = event => {
                socket.feed(Message::Binary(event?)).await?;
                if let Some(subscription) = &mut subscription {
                    for _ in 0..ROUND {
                        let Ok(event) = subscription.try_recv() else { break };
                        socket.feed(Message::Binary(event)).await?;
                    }
                }
                socket.flush().await?;
            }
        }
    }
}

fn answer(
    request: &Bytes,
    zeroes: &Bytes,
    events: &broadcast::Sender<Bytes>,
    subscription: &mut Option<broadcast::Receiver<Bytes>>,
) -> Option<Bytes> {
    let (head, rest) = request.split_first_chunk::<HEAD_BYTES>()?;
    let [kind, length @ ..] = *head;
    match kind {
        SUBSCRIBE => *subscription = Some(events.subscribe()),
        PUBLISH => drop(events.send(request.slice_ref(rest))),
        _ => {}
    }
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    Some(zeroes.slice(..length.min(zeroes.len())))
}

/// The server, in a process of its own.
#[derive(Debug)]
pub(crate) struct Echo {
    process: Process,
    address: String,
    config: Arc<rustls::ClientConfig>,
    /// Answers are as if values had so many bytes: it has none.
    pub(crate) value: usize,
}

impl Echo {
    pub(crate) fn start(place: &Place) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("echo").arg(place.certificates().join("server"));
        let mut process = Process::start("echo", &mut command, &place.log(), true)?;
        let address = process.line(PATIENCE).with_context(|| place.last_words())?;
        let folder = place.certificates().join(tls::CLIENT);
        let config = tls::client(&folder, Resumption::disabled())?;
        Ok(Self {
            process,
            address,
            config,
            value: 0,
        })
    }
}

impl Server for Echo {
    type Client = EchoClient;

    fn process(&self) -> &Process {
        &self.process
    }

    async fn connect(&self) -> Result<EchoClient> {
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1")?;
        let connector = TlsConnector::from(self.config.clone());
        let stream = connector.connect(name, tcp).await?;
        let url = format!("wss://{}/", self.address);
        let config = Some(config(128 * 1024));
        let opening = tokio_tungstenite::client_async_with_config(url, stream, config);
        let (socket, _) = opening.await?;
        let (requests, queue) = mpsc::channel(1024);
        tokio::spawn(drive(socket, queue));
        Ok(EchoClient {
            requests,
            value: self.value,
        })
    }
}

/// A request that waits to be sent.
struct Request {
    message: Bytes,
    reply: Reply,
}

enum Reply {
    Once(oneshot::Sender<Bytes>),
    /// And all that comes from then on that is no answer.
    Events(mpsc::Sender<Bytes>),
}

/// A connection. Its task ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct EchoClient {
    requests: mpsc::Sender<Request>,
    value: usize,
}

/// Owns the socket: sends what waits, hands answers to who waits for them, in order.
async fn drive<S>(mut socket: WebSocketStream<S>, mut queue: mpsc::Receiver<Request>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut waiting: VecDeque<oneshot::Sender<Bytes>> = VecDeque::new();
    let mut events: Option<mpsc::Sender<Bytes>> = None;
    let mut arrived: Vec<Bytes> = Vec::new();
    let mut yielded = false;
    loop {
        let step = std::future::poll_fn(|cx: &mut Task<'_>| {
            let mut socket = Pin::new(&mut socket);
            while let Poll::Ready(message) = socket.as_mut().poll_next(cx) {
                let Some(message) = message else {
                    return Poll::Ready(Ok(Step::Over));
                };
                if let Message::Binary(bytes) = message? {
                    match waiting.pop_front() {
                        Some(reply) => drop(reply.send(bytes)),
                        None => arrived.push(bytes),
                    }
                }
            }
            if !arrived.is_empty() {
                return Poll::Ready(Ok(Step::Events));
            }
            // With others in flight, those that were just answered may add theirs before this is sent.
            if !waiting.is_empty() && !yielded && !queue.is_empty() {
                return Poll::Ready(Ok(Step::Yield));
            }
            yielded = false;
            loop {
                match socket.as_mut().poll_ready(cx) {
                    Poll::Pending => break,
                    Poll::Ready(ready) => ready?,
                }
                match queue.poll_recv(cx) {
                    Poll::Pending => break,
                    Poll::Ready(None) => return Poll::Ready(Ok(Step::Over)),
                    Poll::Ready(Some(request)) => {
                        match request.reply {
                            Reply::Once(reply) => waiting.push_back(reply),
                            Reply::Events(sender) => events = Some(sender),
                        }
                        socket
                            .as_mut()
                            .start_send(Message::Binary(request.message))?;
                    }
                }
            }
            if let Poll::Ready(flushed) = socket.as_mut().poll_flush(cx) {
                flushed?;
            }
            Poll::Pending::<Result<Step>>
        });
        match step.await? {
            Step::Over => {
                let _ = socket.close(None).await;
                return Ok(());
            }
            Step::Yield => {
                yielded = true;
                tokio::task::yield_now().await;
            }
            Step::Events => {
                for event in arrived.drain(..) {
                    if let Some(events) = &events {
                        let _ = events.send(event).await;
                    }
                }
            }
        }
    }
}

enum Step {
    Yield,
    Events,
    Over,
}

fn request(kind: u8, bytes: usize, answer: usize) -> Result<BytesMut> {
    let mut message = BytesMut::with_capacity(bytes.max(HEAD_BYTES));
    message.put_u8(kind);
    message.put_u32(u32::try_from(answer)?);
    message.resize(bytes.max(HEAD_BYTES), 0);
    Ok(message)
}

impl EchoClient {
    async fn ask(&self, message: BytesMut, answer: usize) -> Result<()> {
        let (reply, answered) = oneshot::channel();
        let request = Request {
            message: message.freeze(),
            reply: Reply::Once(reply),
        };
        let sent = self.requests.send(request).await;
        ensure!(sent.is_ok(), "the echo server has closed the connection");
        let received = answered.await.context("the echo server has closed")?;
        ensure!(received.len() == answer, "{} for {answer}", received.len());
        Ok(())
    }

    /// A request with so many bytes besides the frame, answered by so many.
    async fn ask_sized(&self, bytes: usize, answer: usize) -> Result<()> {
        let answer = FRAME_BYTES + answer;
        let message = request(ASK, FRAME_BYTES + bytes, answer)?;
        self.ask(message, answer).await
    }
}

impl Client for EchoClient {
    async fn get(&self, _: Key) -> Result<usize> {
        let value = self.value;
        self.ask_sized(KEY_BYTES, ITEM_BYTES + value).await?;
        Ok(value)
    }

    async fn put(&self, key: Key, value: Bytes) -> Result<()> {
        self.commit(vec![(key, value)]).await
    }

    async fn multi_get(&self, keys: Vec<Key>) -> Result<usize> {
        let value = self.value;
        let (asked, answered) = (KEY_BYTES + 1, ITEM_BYTES + value);
        self.ask_sized(keys.len() * asked, keys.len() * answered)
            .await?;
        Ok(keys.len() * value)
    }

    async fn commit(&self, puts: Vec<(Key, Bytes)>) -> Result<()> {
        let answer = FRAME_BYTES;
        let bytes: usize = puts.iter().map(|(_, value)| value.len()).sum();
        let all = FRAME_BYTES + bytes + puts.len() * (KEY_BYTES + 4);
        let mut message = BytesMut::with_capacity(all);
        message.put_u8(ASK);
        message.put_u32(u32::try_from(answer)?);
        for (key, value) in &puts {
            message.put_slice(key);
            message.put_slice(value);
        }
        message.resize(all, 0);
        self.ask(message, answer).await
    }

    async fn scan(&self, _: Key, count: usize) -> Result<usize> {
        debug_assert!(count == SCANNED);
        let value = self.value;
        let each = KEY_BYTES + ITEM_BYTES + value;
        self.ask_sized(2 * KEY_BYTES, count * each).await?;
        Ok(count * value)
    }

    async fn compare_and_set(&self, _: Key, _: Option<u64>, _: Bytes) -> Result<u64> {
        bail!("the echo server keeps nothing")
    }

    async fn subscribe(
        &self,
        _: Interest,
        deliveries: Arc<Deliveries>,
        number: u64,
    ) -> Result<JoinHandle<Result<()>>> {
        let (sender, mut events) = mpsc::channel(1024);
        let request = Request {
            message: request(SUBSCRIBE, HEAD_BYTES, 1)?.freeze(),
            reply: Reply::Events(sender),
        };
        let sent = self.requests.send(request).await;
        ensure!(sent.is_ok(), "the echo server has closed the connection");
        let subscribed = events.recv().await;
        subscribed.context("the echo server has closed the connection")?;
        Ok(tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                deliveries.deliver(number, &event)?;
            }
            bail!("the echo server ended a subscription")
        }))
    }

    async fn publish(&self, _: Audience, _: u64, value: Bytes) -> Result<()> {
        let mut message = request(PUBLISH, HEAD_BYTES, FRAME_BYTES)?;
        message.put_slice(&value);
        self.ask(message, FRAME_BYTES).await
    }

    async fn close(self) {}
}

//! A native session over an in-memory stream, against the stub engine.

mod bounds;
mod commits;
mod credit;
mod frames;
mod lifecycle;
mod reads;
mod watching;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use storage_protocol::native::{
    ClientMessage, Hello, Packet, Reassembler, RequestId, ServerMessage, VERSION, WatchRequest,
    Welcome,
};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Keyspace, Outcome, ScanOptions, SessionId, StorageError,
    StorageExt, WatchMode, WatchStart,
};
use tokio_tungstenite::tungstenite::Message;

use super::Native;
use crate::config::ServerConfig;
use crate::engine::Engine;
use crate::metrics::encoded;
use crate::testing::{Client, Hold, KEYSPACE, MemoryEngine, Running, start};

fn running(change: impl FnOnce(&mut ServerConfig)) -> Running {
    start(MemoryEngine::new(), change, |shared, peer| {
        Native::new(shared, peer, Keyspace::new(KEYSPACE).unwrap())
    })
}

/// Another connection to an engine.
fn beside(engine: &Arc<MemoryEngine>, change: impl FnOnce(&mut ServerConfig)) -> Running {
    start(engine.clone(), change, |shared, peer| {
        Native::new(shared, peer, Keyspace::new(KEYSPACE).unwrap())
    })
}

/// Asks for the engine's first session.
async fn say_resume(client: &mut Client, incarnation: u64, sent: u64, unanswered: &[u64]) {
    let hello = Hello {
        session: Some(SessionId([1; 16])),
        incarnation,
        sent,
        unanswered: unanswered.to_vec(),
        ..Hello::new("test")
    };
    send(client, None, ClientMessage::Hello(hello)).await;
}

async fn welcomed(client: &mut Client) -> Welcome {
    match receive(client).await {
        (None, ServerMessage::Welcome(welcome)) => welcome,
        other => panic!("not Welcome: {other:?}"),
    }
}

async fn send(client: &mut Client, id: Option<RequestId>, message: ClientMessage) {
    client
        .send(Message::Binary(message.encode(id).to_frame()))
        .await
        .unwrap();
}

async fn receive(client: &mut Client) -> (Option<RequestId>, ServerMessage) {
    loop {
        match client.next().await.unwrap().unwrap() {
            Message::Binary(frame) => {
                let packet = Packet::from_frame(frame).unwrap();
                return (packet.id, ServerMessage::decode(packet).unwrap());
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The code and reason that the server closes with, whatever comes before.
async fn closed(client: &mut Client) -> (u16, String) {
    while let Some(Ok(message)) = client.next().await {
        if let Message::Close(Some(frame)) = message {
            return (frame.code.into(), frame.reason.to_string());
        }
    }
    panic!("the socket ended without a close frame");
}

fn hello(version: u64) -> ClientMessage {
    ClientMessage::Hello(Hello {
        version,
        ..Hello::new("test")
    })
}

async fn open(running: &mut Running) {
    send(&mut running.client, None, hello(VERSION)).await;
    let (id, welcome) = receive(&mut running.client).await;
    assert!(id.is_none());
    assert!(matches!(welcome, ServerMessage::Welcome(welcome) if welcome.principal == "anonymous"));
}

fn commit(number: u64, key: &'static str) -> ClientMessage {
    let batch = Batch::new().put(key, "value");
    ClientMessage::Commit {
        number,
        options: CommitOptions::default(),
        batch,
    }
}

fn get(key: &'static str) -> ClientMessage {
    ClientMessage::Get {
        keys: vec![key.into()],
    }
}

fn watch(credit: u64) -> ClientMessage {
    let range = KeyRange::all();
    ClientMessage::Watch(WatchRequest {
        range,
        start: WatchStart::Now,
        mode: WatchMode::Every,
        credit,
    })
}

fn large(number: u64, key: &'static str) -> ClientMessage {
    let batch = Batch::new().put(key, vec![7; 200_000]);
    ClientMessage::Commit {
        number,
        options: CommitOptions::default(),
        batch,
    }
}

/// Puts a value of 200,000 bytes and a small one.
async fn fill(running: &mut Running) {
    let client = &mut running.client;
    send(client, Some(1), large(1, "large")).await;
    send(client, Some(2), commit(2, "small")).await;
    for _ in 0..2 {
        receive(client).await;
    }
}

/// The next whole message, put together from its parts, and how many bytes came for it.
async fn receive_parts(
    client: &mut Client,
    reassembler: &mut Reassembler,
) -> (Option<RequestId>, ServerMessage, usize) {
    let mut bytes = 0;
    loop {
        let Message::Binary(frame) = client.next().await.unwrap().unwrap() else {
            continue;
        };
        bytes += frame.len();
        let now = std::time::Instant::now();
        if let Some(packet) = reassembler.accept(frame, now).unwrap() {
            let id = packet.id;
            return (id, ServerMessage::decode(packet).unwrap(), bytes);
        }
    }
}

/// What is answered at once, behind the answers that are there.
async fn ping(client: &mut Client, id: RequestId) {
    send(client, Some(id), ClientMessage::ScanClose { scan: 0 }).await;
}

async fn expect_ping(client: &mut Client, id: RequestId) {
    assert_eq!(receive(client).await, (Some(id), ServerMessage::Done));
}

fn removals(number: u64, count: usize) -> ClientMessage {
    let batch = (0..count).fold(Batch::new(), |batch, n| batch.remove(format!("{n:04}")));
    let options = CommitOptions::default();
    ClientMessage::Commit {
        number,
        options,
        batch,
    }
}

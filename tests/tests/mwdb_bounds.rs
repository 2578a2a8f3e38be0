//! What mwDB clients cost is bounded, and what is sent to them is what mwDB's own client can take.
//!
//! The dialect has no word for "overloaded" and none for a gap: what is bounded waits, and what the client would tear is
//! cut or left out.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use storage_protocol::StorageExt;
use storage_protocol::mwdb::{
    ForceReload, ServerMessage, get_request, prefix_request, put_request,
};
use storage_testkit::raw::{Raw, metric_reaches};
use storage_testkit::served::Served;

const MIB: usize = 1 << 20;
/// What mwDB's own client takes for a message of its own, wherever it ends.
const CLIENT_BUFFER_BYTES: usize = MIB;
fn served(config: &str) -> Served {
    Served::measured(&["graph", "native"], config)
}

/// A peer that has its prefix, and so is pushed to.
async fn graph(fixture: &Served) -> Raw {
    let mut peer = fixture.mwdb("graph").await;
    peer.send(prefix_request(b"A")).await;
    peer.binary().await;
    peer
}

/// The next pushes, until they held this key.
async fn pushed_to(peer: &mut Raw, last: &[u8]) -> Vec<(Bytes, Bytes)> {
    let mut pairs = Vec::new();
    loop {
        let message = peer.binary().await;
        assert!(message.len() < CLIENT_BUFFER_BYTES, "{}", message.len());
        let parsed = ServerMessage::parse(message).unwrap();
        let ServerMessage::ForceReload(ForceReload { pairs: more, .. }) = parsed else {
            panic!("not a push: {parsed:?}");
        };
        pairs.extend(more);
        if pairs.iter().any(|(key, _)| key == last) {
            return pairs;
        }
    }
}

/// A client that waits for a GET with id 1 takes what a longer push has there, at its byte 1,048,576, for the answer.
#[tokio::test]
async fn a_save_of_many_mib_is_pushed_in_messages_that_the_client_does_not_tear() {
    let fixture = served("");
    let (mut writer, mut reader) = (graph(&fixture).await, graph(&fixture).await);
    let torn = (&b"k"[..], vec![b'v'; 1_048_567]);
    let mut pairs = vec![torn, (b"\x01;A;A;C", b"ZZZ".to_vec())];
    let keys: Vec<String> = (0..60).map(|n| format!("key/{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        // On both sides of the buffer's size, with a small one behind each.
        let length = [100_000, 400_000, 524_000, 524_288, 1_000_000][n % 5];
        pairs.push((
            key.as_bytes(),
            vec![b'a' + u8::try_from(n % 26).unwrap(); length],
        ));
    }
    pairs.push((b"last", b"1".to_vec()));
    let all = || pairs.iter().map(|(key, value)| (*key, value.as_slice()));
    writer.send(put_request(all(), b"E").unwrap()).await;
    assert_eq!(writer.binary().await[..], *b"\x01#\x03E");
    let pushed = pushed_to(&mut reader, b"last").await;
    assert_eq!(pushed.len(), pairs.len());
    for ((key, value), (pushed_key, pushed_value)) in all().zip(&pushed) {
        assert_eq!(pushed_key, key);
        assert!(pushed_value == value, "{}", key.escape_ascii());
    }

    // A pair that fits into no such message is left out, and counted; those beside it come.
    let large = vec![b'v'; CLIENT_BUFFER_BYTES];
    let pairs = [(&b"a"[..], &b"1"[..]), (b"large", &large), (b"z", b"2")];
    writer.send(put_request(pairs, b"G").unwrap()).await;
    assert_eq!(writer.binary().await[..], *b"\x01#\x03G");
    let pushed = pushed_to(&mut reader, b"z").await;
    let keys: Vec<&[u8]> = pushed.iter().map(|(key, _)| &key[..]).collect();
    assert_eq!(keys, [&b"a"[..], b"z"]);
    let left_out = fixture.metric("storage_mwdb_pairs_left_out_total").await;
    assert_eq!(left_out, 1.0);
}

#[tokio::test]
async fn peers_that_read_no_answer_hold_the_bound_and_one_answer_each() {
    const PEERS: usize = 16;
    const GETS: u32 = 20;
    const VALUE_BYTES: usize = 4 * MIB;
    /// Half of the total, for one principal.
    const BOUND: usize = 16 * MIB;
    /// What each has beyond it: an answer, its copy in the library's buffer, and what was on its way.
    const EACH: usize = 3 * VALUE_BYTES;
    let fixture = served(
        "[limits]\nmessage_bytes_max = \"16 MiB\"\nvalue_bytes_max = \"8 MiB\"\noutbox_bytes_total_max = \"32 MiB\"\nmemory_bytes_max = \"64 MiB\"\n",
    );
    let native = fixture.connect("native", "mwdb").await;
    let value = vec![b'v'; VALUE_BYTES];
    native.put("k".into(), value.into()).await.unwrap();
    let request = |id: u32| get_request([&b"k"[..]], format!("{id}").as_bytes()).unwrap();
    // What one answer costs by itself, caches included, is no matter of those who read none.
    let mut witness = fixture.mwdb("graph").await;
    for id in 0..10 {
        witness.send(request(id)).await;
        witness.binary().await;
    }
    let before = fixture.server.resident_bytes();
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        let mut peer = fixture.mwdb("graph").await;
        for id in 0..GETS {
            peer.send(request(id)).await;
        }
        peers.push(peer);
    }
    let used = "storage_budget_used_bytes{budget=\"outbox\"}";
    metric_reaches(&fixture.server, used, (BOUND / 2) as f64).await;
    // Others are served meanwhile, and it has time to go wrong in.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        native.get_one("k".into()).await.unwrap().unwrap();
    }
    let grown = fixture.server.peak_resident_bytes().saturating_sub(before);
    let grown = usize::try_from(grown).unwrap();
    println!("grew by {} MiB", grown / MIB);
    assert!(grown < BOUND + PEERS * EACH, "{} MiB", grown / MIB);
    // Nothing is lost: when they read, they get all, each answer under its id. All at once, since they share the bound.
    let reading = peers.into_iter().map(|mut peer| {
        tokio::spawn(async move {
            let mut answered = Vec::new();
            for _ in 0..GETS {
                let answer = peer.binary().await;
                let (value, id) = answer.split_at(VALUE_BYTES);
                assert!(value.iter().all(|byte| *byte == b'v') && id.starts_with(b"#\x01"));
                answered.push(String::from_utf8(id[2..].to_vec()).unwrap());
            }
            answered.sort();
            answered
        })
    });
    let mut asked: Vec<String> = (0..GETS).map(|id| id.to_string()).collect();
    asked.sort();
    for answered in reading.collect::<Vec<_>>() {
        assert_eq!(answered.await.unwrap(), asked);
    }
}

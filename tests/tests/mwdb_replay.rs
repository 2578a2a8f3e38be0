//! Existing mwDB clients are served as mwDB served them: recorded vectors, and each promise of the dialect.
//!
//! The vectors in `storage-protocol/tests/golden` are what mwDB itself answered; the differences that are allowed are
//! those of `docs/protocol.md`, section 13: REMOVE says 1, the writer gets no push, prefixes are distinct. Every test
//! has a server process of its own and speaks through a WebSocket that shows each message.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use storage_client::RemoteStorage;
use storage_protocol::mwdb::{get_request, prefix_request, put_request, remove_request};
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, Operation, ScanOptions, Storage, StorageError, StorageExt,
};
use storage_testkit::raw::{
    PATIENCE, Raw, Received, in_time, metric, metric_reaches, tls, upgrade_request,
};
use storage_testkit::served::Served;
use tokio_tungstenite::tungstenite::protocol::Message;

fn served() -> Served {
    Served::new(&["graph", "native"], "")
}

/// A peer whose PREFIX (with id 0, as the original client asks) was answered.
async fn graph(fixture: &Served) -> Raw {
    let mut peer = fixture.mwdb("graph").await;
    prefix_of(&mut peer, b"A").await;
    peer
}

fn get(keys: &[&str], id: &str) -> Bytes {
    get_request(keys.iter().map(|key| key.as_bytes()), id.as_bytes()).unwrap()
}

fn put(pairs: &[(&str, &str)], id: &str) -> Bytes {
    let pairs = pairs.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes()));
    put_request(pairs, id.as_bytes()).unwrap()
}

async fn ask(peer: &mut Raw, request: impl Into<Bytes>) -> Bytes {
    peer.send(request).await;
    peer.binary().await
}

async fn prefix_of(peer: &mut Raw, id: &[u8]) -> i32 {
    let answer = ask(peer, prefix_request(id)).await;
    let text = answer
        .strip_suffix(&[b"#\x07", id].concat()[..])
        .expect("an answer to PREFIX");
    storage_protocol::number::decode_int(text).unwrap()
}

/// The connection lives, and nothing came before the answer to this request: requests are answered in order.
async fn nothing_came(peer: &mut Raw) {
    let answer = ask(peer, get(&["no such key"], "zz")).await;
    assert_eq!(answer, Bytes::from_static(b"#\x01zz"));
}

fn lines(file: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../storage-protocol/tests/golden");
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn bytes_of(value: &Value) -> Bytes {
    hex::decode(value.as_str().unwrap()).unwrap().into()
}

fn is_push(message: &[u8]) -> bool {
    message.ends_with(b"#\x05")
}

fn is_prefix(message: &[u8]) -> bool {
    matches!(message.rsplit(|byte| *byte == b'#').next(), Some([7, ..]))
}

/// One recorded message.
struct Step {
    from_client: bool,
    bytes: Bytes,
}

fn session(file: &str) -> Vec<Step> {
    let step = |line: &Value| Step {
        from_client: line["dir"] == "c2s",
        bytes: bytes_of(&line["hex"]),
    };
    lines(file).iter().map(step).collect()
}

/// Plays steps of a session: after the requests of a run, as many messages as were recorded. Answers may come in any
/// order, so the two lists are compared at the end, as sets: each answer has an id of its own.
async fn play(peer: &mut Raw, steps: &[Step], name: &str) {
    let (mut expected, mut received) = (Vec::new(), Vec::new());
    for step in steps {
        if step.from_client {
            peer.send(step.bytes.clone()).await;
        } else if !is_push(&step.bytes) {
            let answer = peer.binary().await;
            // The number is the connection's own.
            assert_eq!(
                is_prefix(&answer),
                is_prefix(&step.bytes),
                "{name}: {answer:?}"
            );
            if !is_prefix(&answer) {
                expected.push(step.bytes.clone());
                received.push(answer);
            }
        }
    }
    assert!(!expected.is_empty(), "{name}: nothing was played");
    nothing_came(peer).await;
    expected.sort();
    received.sort();
    assert_eq!(expected, received, "{name}");
}

#[tokio::test]
async fn each_recorded_request_gets_the_answer_of_the_original() {
    let fixture = served();
    let mut peer = fixture.mwdb("graph").await;
    let mut compared = 0;
    for line in lines("original-answers.jsonl") {
        let name = line["name"].as_str().unwrap();
        peer.send(bytes_of(&line["request"])).await;
        let answers = line["answers"].as_array().unwrap();
        let expected: Vec<Bytes> = answers
            .iter()
            .map(bytes_of)
            .filter(|answer| !is_push(answer))
            .collect();
        for expected in expected {
            let received = peer.binary().await;
            compared += 1;
            if name.starts_with("remove-") {
                let done = [b"\x01", &expected[1..]].concat();
                assert_eq!(
                    received,
                    Bytes::from(done),
                    "{name}: REMOVE tells that it removed"
                );
            } else {
                // The first connection of an empty store has prefix 0, as recorded.
                assert_eq!(received, expected, "{name}");
            }
        }
        // What was not expected shows up here.
        nothing_came(&mut peer).await;
    }
    assert_eq!(compared, 51, "all that the original answered");
}

#[tokio::test]
async fn a_recorded_graph_is_saved_and_read_back() {
    let fixture = served();
    let mut producer = fixture.mwdb("graph").await;
    play(
        &mut producer,
        &session("session-producer.jsonl"),
        "producer",
    )
    .await;
    assert_eq!(producer.close().await, Received::Close(1000, String::new()));
    let mut consumer = fixture.mwdb("graph").await;
    play(
        &mut consumer,
        &session("session-consumer.jsonl"),
        "consumer",
    )
    .await;
    consumer.close().await;

    // The reload sessions: a reader that stays, while a writer modifies the node that it read.
    let reload = session("session-reload-consumer.jsonl");
    let (read, push) = reload.split_at(reload.len() - 1);
    let push = &push[0].bytes;
    assert!(is_push(push));
    let mut reader = fixture.mwdb("graph").await;
    play(&mut reader, read, "reload reader").await;
    let mut writer = fixture.mwdb("graph").await;
    play(
        &mut writer,
        &session("session-reload-writer.jsonl"),
        "reload writer",
    )
    .await;
    assert_eq!(
        &reader.binary().await,
        push,
        "the push of the recorded save"
    );
    nothing_came(&mut reader).await;
}

#[tokio::test]
async fn the_upgrade_is_taken_as_old_clients_ask_for_it() {
    let fixture = served();
    let request = "GET / HTTP/1.1\r\nHost: 127.0.0.1:7443\r\nupgrade: websocket\r\nConnection: upgrade\r\n\
                   Origin: https://127.0.0.1\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let (server, certificates) = (&fixture.server, &fixture.certificates);
    let mut stream = tls(server, certificates, "graph").await;
    let answer = storage_testkit::raw::http(&mut stream, request).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    let head = answer.head.to_ascii_lowercase();
    assert!(head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    for unasked in ["sec-websocket-extensions", "sec-websocket-protocol"] {
        assert!(!head.contains(unasked), "{head}");
    }
    for origin in ["null", "https://elsewhere.example", "http://127.0.0.1"] {
        let request = upgrade_request("/", &format!("Origin: {origin}\r\n"));
        let mut peer = Raw::open(server, certificates, "graph", &request)
            .await
            .unwrap();
        nothing_came(&mut peer).await;
    }
}

/// `docs/protocol.md` promises the path `/`, where the original takes any: other paths are other services.
#[tokio::test]
async fn paths_other_than_the_root_are_refused_in_words() {
    let fixture = served();
    for (path, status, reason) in [
        ("/ws", 404, "there is nothing here"),
        ("/mwdb", 404, "there is nothing here"),
        ("/storage/mwdb", 400, "storage-sync.v1"),
    ] {
        let request = upgrade_request(path, "");
        let (server, certificates) = (&fixture.server, &fixture.certificates);
        let refused = Raw::open(server, certificates, "graph", &request).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.status, status, "{path}");
        assert!(refused.text().contains(reason), "{path}: {refused:?}");
    }
}

#[tokio::test]
async fn text_and_unknown_types_are_passed_over_and_the_connection_lives() {
    let fixture = served();
    let mut peer = graph(&fixture).await;
    assert_eq!(
        ask(&mut peer, put(&[("k", "v")], "C")).await[..],
        *b"\x01#\x03C"
    );
    peer.send_message(Message::text("k#\u{0}E")).await;
    for kind in (0..=255u8).filter(|kind| !matches!(kind, 0 | 2 | 3 | 6 | b'#')) {
        peer.send([b"k#w#", &[kind][..], b"E"].concat()).await;
    }
    for malformed in [&b""[..], b"#", b"k##", b"###"] {
        peer.send(malformed).await;
    }
    nothing_came(&mut peer).await;
    assert_eq!(ask(&mut peer, get(&["k"], "G")).await[..], *b"v#\x01G");
    let ignored = metric(&fixture.server, "storage_mwdb_messages_ignored_total").await;
    assert_eq!(ignored, f64::from(1 + 251 + 4), "each is counted");
}

#[tokio::test]
async fn messages_are_taken_whole_however_long_or_fragmented() {
    let fixture = served();
    let mut peer = graph(&fixture).await;
    // 20 MiB in one PUT, with values on both sides of the original's 16 KiB buffer and its client's 1 MiB buffer.
    let lengths = [15 << 10, 16 << 10, (16 << 10) + 1, 1 << 20, (1 << 20) - 1];
    let mut pairs: Vec<(String, Vec<u8>)> = (0u8..)
        .zip(lengths.into_iter().cycle())
        .scan(0, |sum, (n, length)| {
            *sum += length;
            (*sum < 20 << 20).then(|| (format!("k{n}"), vec![b'a' + n % 26; length]))
        })
        .collect();
    pairs.push(("last".to_owned(), vec![b'z'; 4 << 20]));
    let all = pairs.iter().map(|(k, v)| (k.as_bytes(), v.as_slice()));
    let message = put_request(all, b"C").unwrap();
    assert!(message.len() > 20 << 20);
    assert_eq!(ask(&mut peer, message).await[..], *b"\x01#\x03C");
    for (key, value) in &pairs {
        let answer = ask(&mut peer, get(&[key], "E")).await;
        assert_eq!(answer.len(), value.len() + 3, "{key}");
        assert!(answer.starts_with(value), "{key}");
    }
    // One message in three fragments, with pings between them, cut inside the key, then inside the trailer.
    peer.send_fragments(&[b"frag", b"ment#whole#", b"\x02G"])
        .await;
    assert_eq!(peer.binary().await[..], *b"\x01#\x03G");
    peer.send_fragments(&[b"", b"fragment", b"#", b"\x00", b"", b"I"])
        .await;
    assert_eq!(peer.binary().await[..], *b"whole#\x01I");
}

#[tokio::test]
async fn the_item_rules_of_the_original_hold() {
    let fixture = served();
    let mut peer = fixture.mwdb("graph").await;
    for (request, answer) in [
        (&b"\x06A"[..], &b"A#\x07A"[..]),
        (b"#\x06C", b"A#\x07C"),
        (b"#\x02E", b"\x01#\x03E"),
        (b"a#1#b#2#a#3#c#\x02G", b"\x01#\x03G"),
        (b"b#a##x#c##\x00I", b"2#3####\x01I"),
        (b"####\x00K", b"###\x01K"),
        (b"#\x00M", b"#\x01M"),
        (b"#\x00", b"#\x01"),
        (b"a#\x00a very odd id", b"3#\x01a very odd id"),
        (b"a#\x00\xff\xfe", b"3#\x01\xff\xfe"),
        (b"a#\x00Q#", b"3#\x01Q"),
        (b"a#b#a#nothing#\x03S", b"\x01#\x04S"),
        (b"a#b#c#\x00U", b"###\x01U"),
        (b"\x00W", b"#\x01W"),
        (b"\x02Y", b"\x00#\x03Y"),
        (b"\x02a#", b"\x01#\x03a"),
        (b"\x03c", b"\x01#\x04c"),
    ] {
        let received = ask(&mut peer, request).await;
        assert_eq!(
            received.escape_ascii().to_string(),
            answer.escape_ascii().to_string(),
            "{}",
            request.escape_ascii()
        );
    }
}

#[tokio::test]
async fn a_put_that_cannot_be_stored_is_answered_with_0_and_stores_nothing() {
    let fixture = served();
    let mut peer = graph(&fixture).await;
    let mut other = graph(&fixture).await;
    let long_key = "k".repeat(4097);
    let refused = ask(&mut peer, put(&[("a", "1"), (&long_key, "2")], "C")).await;
    assert_eq!(refused[..], *b"\x00#\x03C");
    let long_value = "v".repeat((16 << 20) + 1);
    let refused = ask(&mut peer, put(&[("a", "1"), ("b", &long_value)], "E")).await;
    assert_eq!(refused[..], *b"\x00#\x03E");
    assert_eq!(
        ask(&mut peer, get(&["a", &long_key, "b"], "G")).await[..],
        *b"###\x01G"
    );
    nothing_came(&mut other).await;
    let longest = "v".repeat(16 << 20);
    assert_eq!(
        ask(&mut peer, put(&[("a", &longest)], "I")).await[..],
        *b"\x01#\x03I"
    );
}

#[tokio::test]
async fn a_put_with_an_empty_key_is_answered_with_0_and_stores_nothing() {
    let fixture = served();
    let mut peer = graph(&fixture).await;
    let mut other = graph(&fixture).await;
    for payload in ["#v", "a#1##v", "##v#a#1", "#", "##", "a#1###", "#v#a#1##w"] {
        let request = format!("{payload}#\x02C");
        let answer = ask(&mut peer, request).await;
        assert_eq!(answer[..], *b"\x00#\x03C", "{payload}");
        let stored = ask(&mut peer, get(&["a"], "E")).await;
        assert_eq!(stored[..], *b"#\x01E", "{payload}");
    }
    nothing_came(&mut other).await;
}

#[tokio::test]
async fn a_remove_of_keys_that_cannot_be_there_is_answered_with_1() {
    let fixture = served();
    let mut peer = graph(&fixture).await;
    let saved = ask(&mut peer, put(&[("a", "1"), ("b", "2")], "C")).await;
    assert_eq!(saved[..], *b"\x01#\x03C");
    let long_key = "k".repeat(4097);
    for (case, keys) in [
        ("a long key and another", format!("{long_key}#a")),
        ("an empty key and another", "#b".to_owned()),
        ("a long key", long_key),
    ] {
        let answer = ask(&mut peer, format!("{keys}#\x03E")).await;
        assert_eq!(answer[..], *b"\x01#\x04E", "{case}");
    }
    let gone = ask(&mut peer, get(&["a", "b"], "G")).await;
    assert_eq!(gone[..], *b"##\x01G");
}

#[tokio::test]
async fn prefixes_are_distinct_stable_and_freed_by_the_close() {
    let fixture = served();
    let mut peers = Vec::new();
    for expected in 0..5 {
        let mut peer = fixture.mwdb("graph").await;
        assert_eq!(prefix_of(&mut peer, b"A").await, expected);
        peers.push(peer);
    }
    for (expected, peer) in (0..).zip(&mut peers) {
        assert_eq!(prefix_of(peer, b"A").await, expected, "asked twice");
        assert_eq!(prefix_of(peer, b"other").await, expected, "asked thrice");
    }
    peers[1].close().await;
    // Without a close: it is gone all the same.
    drop(peers.remove(3));
    let freed = async {
        let mut found = Vec::new();
        while found.len() < 2 {
            let mut peer = fixture.mwdb("graph").await;
            let prefix = prefix_of(&mut peer, b"A").await;
            if prefix < 5 {
                found.push((prefix, peer));
            } else {
                peer.close().await;
            }
        }
        found.iter().map(|(prefix, _)| *prefix).collect::<Vec<_>>()
    };
    let mut freed = in_time("prefixes become free", freed).await;
    freed.sort_unstable();
    assert_eq!(freed, [1, 3]);
}

#[tokio::test]
async fn a_put_is_pushed_to_every_other_peer_that_has_its_prefix() {
    let fixture = served();
    let (mut writer, mut one, mut two) = (
        graph(&fixture).await,
        graph(&fixture).await,
        graph(&fixture).await,
    );
    let mut never_asked = fixture.mwdb("graph").await;
    nothing_came(&mut never_asked).await;
    let save = put(&[("b", "2"), ("a", "1"), ("b", "3"), ("e", "")], "C");
    assert_eq!(ask(&mut writer, save).await[..], *b"\x01#\x03C");
    for peer in [&mut one, &mut two] {
        assert_eq!(
            peer.binary().await[..],
            *b"a#1#b#3#e##\x05",
            "in order, the later of two"
        );
    }
    // Neither a removal nor a PUT of nothing nor one that fails is pushed; the writer never hears of its own.
    assert_eq!(ask(&mut writer, &b"a#\x03E"[..]).await[..], *b"\x01#\x04E");
    assert_eq!(ask(&mut writer, &b"#\x02G"[..]).await[..], *b"\x01#\x03G");
    let failed = put(&[(&"k".repeat(5000), "v")], "I");
    assert_eq!(ask(&mut writer, failed).await[..], *b"\x00#\x03I");
    // Pushes come in the order of commits, each once, from writers that take turns.
    for n in 0..100 {
        let key = format!("n{n}");
        let turn = if n % 2 == 0 { &mut writer } else { &mut one };
        turn.send(put(&[(&key, "v")], "M")).await;
        loop {
            let heard = turn.binary().await;
            if heard[..] == *b"\x01#\x03M" {
                break;
            }
            assert!(is_push(&heard), "{heard:?}");
        }
    }
    for n in 0..100 {
        let expected = format!("n{n}#v#\x05");
        assert_eq!(two.binary().await, Bytes::from(expected));
    }
    for peer in [&mut two, &mut never_asked] {
        nothing_came(peer).await;
    }
}

#[tokio::test]
async fn a_native_clients_puts_are_pushed_and_its_removals_are_not() {
    let fixture = served();
    let mut peer = graph(&fixture).await;
    let native = fixture.connect("native", "mwdb").await;
    native.put("n".into(), "1".into()).await.unwrap();
    assert_eq!(peer.binary().await[..], *b"n#1#\x05");
    native.remove("n".into()).await.unwrap();
    let signal = Batch::new().signal("n", "ring");
    native
        .commit(signal, CommitOptions::default())
        .await
        .unwrap();
    let mixed = Batch::new().put("b", "2").remove("n").put("a", "1");
    native
        .commit(mixed, CommitOptions::default())
        .await
        .unwrap();
    assert_eq!(peer.binary().await[..], *b"b#2#a#1#\x05");
    fixture
        .connect("native", "other")
        .await
        .put("n".into(), "1".into())
        .await
        .unwrap();
    nothing_came(&mut peer).await;
    // And the other way: what the peer puts is there for the native client.
    assert_eq!(
        ask(&mut peer, put(&[("p", "3")], "C")).await[..],
        *b"\x01#\x03C"
    );
    let entry = native.get_one("p".into()).await.unwrap().unwrap();
    assert_eq!(entry.value[..], *b"3");
}

#[tokio::test]
async fn what_the_dialect_cannot_carry_is_refused_from_native_clients_with_the_reason() {
    let fixture = served();
    let mut peer = graph(&fixture).await;
    let native = fixture.connect("native", "mwdb").await;
    for (batch, what) in [
        (Batch::new().put("k", "a#b"), "this value contains '#'"),
        (Batch::new().put("a#b", "v"), "this key contains '#'"),
        (
            Batch::new().put("fine", "v").put("k", "#"),
            "this value contains '#'",
        ),
        (
            Batch::new().put_stamped("k", "v", storage_protocol::Lifetime::Forever),
            "stamped",
        ),
    ] {
        let error = native
            .commit(batch, CommitOptions::default())
            .await
            .unwrap_err();
        assert!(
            matches!(error, StorageError::InvalidArgument { .. }),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains(what) && text.contains("clients of this keyspace"),
            "{text}"
        );
    }
    let all = native
        .scan(KeyRange::all(), ScanOptions::default())
        .await
        .unwrap();
    assert!(
        all.collect().await.unwrap().is_empty(),
        "nothing of a refused batch is there"
    );
    nothing_came(&mut peer).await;
}

/// Takes every prefix, by the keys that are the leases.
async fn take_all_prefixes(native: &RemoteStorage) -> Vec<Key> {
    let key = |number: u16| Key::from([b"p", &number.to_be_bytes()[..]].concat());
    let keys: Vec<Key> = (0..=32_767).map(key).collect();
    for some in keys.chunks(8_000) {
        let operations = some.iter().map(|key| Operation::Put {
            key: key.clone(),
            value: Bytes::new(),
            lifetime: storage_protocol::Lifetime::Forever,
        });
        let batch = Batch {
            checks: Vec::new(),
            operations: operations.collect(),
        };
        native
            .commit(batch, CommitOptions::default())
            .await
            .unwrap();
    }
    keys
}

/// While no prefix is free the answer to PREFIX waits, so pushes have every chance to come too early.
#[tokio::test]
async fn no_push_comes_before_the_answer_to_prefix() {
    let fixture = served();
    let leases = fixture.connect("native", "mwdb.prefixes").await;
    let keys = take_all_prefixes(&leases).await;
    let native = fixture.connect("native", "mwdb").await;
    for id in ["A", "C"] {
        let mut peer = fixture.mwdb("graph").await;
        peer.send(prefix_request(id.as_bytes())).await;
        // Answered behind the question, and once there is a watch: nothing that is put from here on is missed.
        peer.send(get(&["absent"], "E")).await;
        peer.binary().await;
        for n in 0..20 {
            native
                .put(format!("n{n}").into(), "v".into())
                .await
                .unwrap();
            nothing_came(&mut peer).await;
        }
        leases.remove(keys[32_767].clone()).await.unwrap();
        let answer = peer.binary().await;
        assert_eq!(
            answer,
            Bytes::from(format!("P/+#\x07{id}")),
            "32,767, the one that is free"
        );
        for n in 0..20 {
            assert_eq!(peer.binary().await, Bytes::from(format!("n{n}#v#\x05")));
        }
        peer.close().await;
        let taken_again = async {
            while let Err(error) = leases
                .put_if_absent(keys[32_767].clone(), Bytes::new())
                .await
            {
                assert!(matches!(error, StorageError::CheckFailed { .. }), "{error}");
            }
        };
        in_time("the prefix is free again", taken_again).await;
    }
}

/// What came before the answer to a large GET under this id, while others put; and how many puts were done by then.
async fn pushes_before_a_slow_answer(fixture: &Served, id: &str) -> (usize, usize) {
    let mut peer = fixture.mwdb("graph").await;
    prefix_of(&mut peer, b"first").await;
    let native = fixture.connect("native", "mwdb").await;
    // Long enough in the making that commits happen meanwhile.
    let keys: Vec<String> = (0..900_000).map(|n| format!("absent{n}")).collect();
    let request = get_request(keys.iter().map(String::as_bytes), id.as_bytes()).unwrap();
    let bytes = request.len() as f64;
    peer.send(request).await;
    // From here on the server has the whole request, and no push may be on its way any more.
    let in_flight = "storage_budget_used_bytes{budget=\"bytes_in_flight\"}";
    metric_reaches(&fixture.server, in_flight, bytes).await;
    let began = Instant::now();
    let mut puts = 0;
    let mut early = Vec::new();
    let answer = loop {
        assert!(began.elapsed() < PATIENCE, "the answer did not come");
        native
            .put(format!("n{puts}").into(), "v".into())
            .await
            .unwrap();
        puts += 1;
        match peer.receive_within(Duration::from_millis(1)).await {
            Some(Received::Binary(bytes)) if is_push(&bytes) => early.push(bytes),
            Some(Received::Binary(bytes)) => break bytes,
            None => {}
            Some(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(answer.len(), 899_999 + 2 + id.len());
    let mut pushes = early.clone();
    while pushes.len() < puts {
        pushes.push(peer.binary().await);
    }
    for (n, push) in pushes.iter().enumerate() {
        assert_eq!(
            *push,
            Bytes::from(format!("n{n}#v#\x05")),
            "in the order of commits"
        );
    }
    (early.len(), puts)
}

#[tokio::test]
async fn no_push_comes_while_a_request_with_id_zero_is_unanswered() {
    let fixture = served();
    let (early, puts) = pushes_before_a_slow_answer(&fixture, "A").await;
    assert_eq!(early, 0, "of {puts} puts");
    assert!(
        puts > 1,
        "no put was done while the request was unanswered: nothing was tested"
    );
    // Under any other id the same situation does let pushes through, so it is the id that holds them back.
    let (early, puts) = pushes_before_a_slow_answer(&fixture, "B").await;
    assert!(early > 0, "of {puts} puts");
}

#[tokio::test]
async fn a_close_is_answered_and_what_was_put_before_it_is_there() {
    let fixture = served();
    let mut peer = graph(&fixture).await;
    peer.send(put(&[("k", "v")], "C")).await;
    assert_eq!(peer.close().await, Received::Close(1000, String::new()));
    let native = fixture.connect("native", "mwdb").await;
    let stored = async {
        // The close may overtake the commit, which happens all the same.
        while native.get_one("k".into()).await.unwrap().is_none() {}
    };
    in_time("what was received happens", stored).await;
}

/// All of it in one write, so that the close lies behind the requests before the first of them is carried out.
#[tokio::test]
async fn requests_with_a_close_right_behind_them_are_answered() {
    let fixture = served();
    let request = |text: &str| {
        // A binary frame, masked with zeros.
        let length = 0x80 | u8::try_from(text.len()).unwrap();
        [&[0x82, length, 0, 0, 0, 0][..], text.as_bytes()].concat()
    };
    let empty_close: &[u8] = &[0x88, 0x80, 0, 0, 0, 0];
    for round in 0..20 {
        let mut peer = graph(&fixture).await;
        let put = request(&format!("k#v{round}#\x02C"));
        let get = request("k#\x00E");
        peer.write_raw(&[&put[..], &get, empty_close].concat())
            .await;
        assert_eq!(peer.binary().await[..], *b"\x01#\x03C", "{round}");
        let value = peer.binary().await;
        assert_eq!(value, format!("v{round}#\x01E"), "{round}");
        assert_eq!(peer.receive().await, Received::Close(1000, String::new()));
        assert_eq!(peer.receive().await, Received::Ended);
    }
}

#[tokio::test]
async fn a_text_message_that_is_not_utf_8_closes_with_1007() {
    let fixture = served();
    for frame in [
        &b"\x81\x82\0\0\0\0\xff\xfe"[..],
        // In two fragments, the second of which is wrong.
        b"\x01\x81\0\0\0\0a\x80\x81\0\0\0\0\xff",
    ] {
        let mut peer = graph(&fixture).await;
        peer.write_raw(frame).await;
        let (code, reason) = peer.closed().await;
        assert_eq!(code, 1007, "{reason}");
        assert!(reason.contains("not UTF-8"), "{reason}");
    }
}

#[tokio::test]
async fn a_million_keys_are_answered_and_one_more_closes_with_1009() {
    let fixture = served();
    let mut witness = graph(&fixture).await;
    let mut peer = graph(&fixture).await;
    let keys: Vec<String> = (0..=1_000_000).map(|n| format!("{n:x}")).collect();
    let bytes = |keys: &[String]| -> Vec<Vec<u8>> {
        keys.iter().map(|key| key.clone().into_bytes()).collect()
    };
    let many = bytes(&keys[..1_000_000]);
    let pairs = many.iter().map(|key| (&key[..], &b"v"[..]));
    let saved = ask(&mut peer, put_request(pairs, b"C").unwrap()).await;
    assert_eq!(saved[..], *b"\x01#\x03C");
    // In pushes that its client takes in one piece each, cut between pairs.
    let mut told = Vec::new();
    while told.len() < 2_000_000 {
        let push = witness.binary().await;
        assert!(is_push(&push) && push.len() < 1 << 20, "{}", push.len());
        let payload = &push[..push.len() - 2];
        told.extend(payload.split(|byte| *byte == b'#').map(<[u8]>::to_vec));
    }
    let saved = many.iter().flat_map(|key| [key.clone(), b"v".to_vec()]);
    assert!(saved.eq(told), "each pair once, in their order");
    let request = get_request(many.iter().map(Vec::as_slice), b"E").unwrap();
    let answer = ask(&mut peer, request).await;
    assert_eq!(answer.len(), 1_000_000 + 999_999 + 3);
    assert!(answer.starts_with(b"v#v#v#") && answer.ends_with(b"#v#\x01E"));

    let too_many = bytes(&keys);
    let ids = || too_many.iter().map(Vec::as_slice);
    let pairs = ids().map(|key| (key, &b"new"[..]));
    for (name, request) in [
        ("GET", get_request(ids(), b"G").unwrap()),
        ("PUT", put_request(pairs, b"G").unwrap()),
        ("REMOVE", remove_request(ids(), b"G").unwrap()),
    ] {
        let mut peer = graph(&fixture).await;
        peer.send(request).await;
        let (code, reason) = peer.closed().await;
        assert_eq!(code, 1009, "{name}: {reason}");
        assert!(reason.contains("1000001 keys"), "{name}: {reason}");
    }
    nothing_came(&mut witness).await;
    assert_eq!(
        ask(&mut witness, get(&["f4240", "f423f"], "I")).await[..],
        *b"#v#\x01I"
    );
}

#[tokio::test]
async fn a_message_over_64_mib_closes_with_1009() {
    let fixture = served();
    let mut witness = graph(&fixture).await;
    let sized = |bytes: usize| {
        let mut message = b"k#".to_vec();
        message.resize(bytes - 3, b'v');
        message.extend_from_slice(b"#\x02C");
        Bytes::from(message)
    };
    // At the limit it is taken: its value is over the limit of values, which is answered.
    let mut peer = graph(&fixture).await;
    assert_eq!(ask(&mut peer, sized(64 << 20)).await[..], *b"\x00#\x03C");
    let peer = graph(&fixture).await;
    let one_more = Message::Binary(sized((64 << 20) + 1));
    let (code, reason) = peer.send_until_closed(vec![one_more]).await;
    assert_eq!(code, 1009, "{reason}");
    assert!(
        reason.contains("67108865") && reason.contains("67108864"),
        "{reason}"
    );
    nothing_came(&mut witness).await;
}

#[tokio::test]
async fn an_answer_over_64_mib_closes_with_1009() {
    let fixture = served();
    let mut peer = graph(&fixture).await;
    let value = "v".repeat(16 << 20);
    assert_eq!(
        ask(&mut peer, put(&[("k", &value)], "C")).await[..],
        *b"\x01#\x03C"
    );
    let three = ask(&mut peer, get(&["k", "k", "k"], "E")).await;
    assert_eq!(three.len(), 3 * (16 << 20) + 2 + 3);
    peer.send(get(&["k", "k", "k", "k", "k"], "G")).await;
    let (code, reason) = peer.closed().await;
    assert_eq!(code, 1009, "{reason}");
    assert!(reason.contains("message_bytes_max"), "{reason}");
    let mut peer = graph(&fixture).await;
    assert_eq!(ask(&mut peer, get(&["k"], "C")).await.len(), (16 << 20) + 3);
}

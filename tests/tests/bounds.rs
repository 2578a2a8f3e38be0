//! What peers ask for and do not take, or begin and do not end, costs what is counted, and nobody else is refused for it.
//!
//! Each test does to a real server what a client could, and reads from the server's metrics what is counted, from `/proc`
//! what it costs, and with a client of another principal what others notice. Limits are small where that makes a test
//! short; their relations are those of the defaults.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::native::{ClientMessage, Packet, ServerMessage, close_code, kind};
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, Limit, Outcome, ScanOptions, Storage, StorageError,
    StorageExt,
};
use storage_testkit::fault_proxy::{Fault, FaultProxy, Scope};
use storage_testkit::raw::{PATIENCE, Raw, in_time, metric_at};
use storage_testkit::served::Served;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The engine's own buffers, kept out of what is measured.
const SMALL_ENGINE: &str = "[limits]\nmemory_bytes_max = \"64 MiB\"\n";
/// What the allocator keeps, and copies on their way.
const SLACK: u64 = 64 << 20;

fn served(config: &str) -> Served {
    Served::measured(&["greedy", "modest"], config)
}

/// Somebody else, who puts and reads all the time and is refused nothing.
struct Witness {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(u64, Duration)>,
}

impl Witness {
    fn of(storage: RemoteStorage) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut rounds, mut slowest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let put = storage.put("witness".into(), "v".into());
                in_time("a witness's put", put).await.unwrap();
                let get = storage.get_one("witness".into());
                assert!(in_time("a witness's get", get).await.unwrap().is_some());
                slowest = slowest.max(began.elapsed());
                rounds += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (rounds, slowest)
        });
        Self { stop, task }
    }

    /// How often it was served, and the longest it waited.
    async fn leave(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

const PIECES: usize = 112;
const PIECE_BYTES: usize = 448 * KIB;

/// 49 MiB in so many keys that a get of them never runs where it came in, but in the read pool.
async fn write_49_mib(storage: &RemoteStorage) -> Vec<Key> {
    let keys: Vec<Key> = (0..PIECES)
        .map(|n| format!("piece/{n:03}").into())
        .collect();
    for keys in keys.chunks(16) {
        let batch = keys.iter().fold(Batch::new(), |batch, key| {
            batch.put(key.clone(), vec![b'v'; PIECE_BYTES])
        });
        in_time("a commit", storage.commit(batch, CommitOptions::default()))
            .await
            .unwrap();
    }
    keys
}

#[tokio::test]
async fn unread_answers_hold_the_sessions_bound_and_one_answer() {
    const OUTBOX: usize = 8 * MIB;
    const ANSWER: usize = PIECES * (PIECE_BYTES + 32);
    let fixture = served(SMALL_ENGINE);
    let keys = write_49_mib(&fixture.connect("modest", "shared").await).await;
    // What one answer costs by itself is no matter of those that are not read.
    let get = ClientMessage::Get { keys };
    let mut peer = fixture.native("greedy", "shared").await;
    let answer = peer.ask(0, &get).await;
    assert!(matches!(answer, ServerMessage::Values { .. }));
    drop(answer);
    let before = fixture.server.resident_bytes();
    let witness = Witness::of(fixture.connect("modest", "shared").await);
    for id in 1..=1_000 {
        peer.say(Some(id), &get).await;
    }
    let (began, mut counted, mut most) = (Instant::now(), 0.0_f64, 0);
    while began.elapsed() < Duration::from_secs(5) {
        counted = counted.max(fixture.used("outbox").await);
        most = most.max(fixture.server.resident_bytes());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grown = most.saturating_sub(before);
    let (rounds, slowest) = witness.leave().await;
    println!(
        "counted {} MiB, resident memory grew by {} MiB; others waited {slowest:?} at most in {rounds} rounds",
        counted / MIB as f64,
        grown >> 20
    );
    let bound = (OUTBOX + ANSWER) as f64;
    assert!(counted <= bound, "{counted} bytes are counted");
    // The answer once more, encoded, while it goes from the one to the other.
    let bound = (OUTBOX + 2 * ANSWER) as u64 + SLACK;
    assert!(grown < bound, "grew by {} MiB", grown >> 20);
    // They come, all of them, to one who reads.
    let mut heard = 0;
    while heard < 20 {
        let (_, answer) = peer.hear().await;
        assert!(matches!(answer, ServerMessage::Values { .. }), "{answer:?}");
        heard += 1;
    }
}

#[tokio::test]
async fn reads_that_are_given_up_leave_nothing_running() {
    const PAIRS: u32 = 10_000;
    let fixture = served(SMALL_ENGINE);
    let modest = fixture.connect("modest", "shared").await;
    let keys = write_49_mib(&modest).await;
    let get = ClientMessage::Get { keys };
    let mut peer = fixture.native("greedy", "shared").await;
    for id in 0..PAIRS {
        let (get, cancel) = (get.encode(Some(id)), ClientMessage::Cancel.encode(Some(id)));
        for packet in [get, cancel] {
            peer.feed(Message::Binary(packet.to_frame())).await;
        }
    }
    let began = Instant::now();
    peer.flush().await;
    let cpu = fixture.server.cpu_time();
    // Each is answered: with Cancelled, or as if nothing had been said.
    for _ in 0..PAIRS {
        peer.hear().await;
    }
    // A get of the other, which needs a place in the pool too, waits for a handful of reads at most.
    let absent: Vec<Key> = (0..200).map(|n| format!("absent/{n}").into()).collect();
    let asked = Instant::now();
    in_time("a get", modest.get(&absent)).await.unwrap();
    let waited = asked.elapsed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (rest, quiet) = (fixture.server.cpu_time() - cpu, fixture.server.cpu_time());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = fixture.server.cpu_time() - quiet;
    println!(
        "{PAIRS} pairs in {:?}; another's get waited {waited:?}; {rest:?} of processor time, then {after:?} in 1 s",
        began.elapsed()
    );
    assert!(
        waited < Duration::from_secs(5),
        "another's get waited {waited:?}"
    );
    assert!(
        after < Duration::from_millis(500),
        "{after:?} in a second of rest"
    );
    fixture.all_is_given_back("bytes_in_flight").await;
    fixture.all_is_given_back("outbox").await;
}

#[tokio::test]
async fn a_range_with_long_bounds_is_refused_and_not_kept() {
    let fixture = served(SMALL_ENGINE);
    let mut peer = fixture.native("greedy", "shared").await;
    let before = fixture.server.resident_bytes();
    for id in 0..15 {
        let scan = ClientMessage::Scan {
            range: KeyRange::between("a", vec![b'z'; 30 * MIB]),
            options: ScanOptions::default(),
        };
        let answer = peer.ask(id, &scan).await;
        let ServerMessage::Error(StorageError::LimitExceeded { limit, max, .. }) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!((limit, max), (Limit::Key, 4 * 1024 + 1));
    }
    let grown = fixture.server.resident_bytes().saturating_sub(before);
    println!("resident memory grew by {} MiB", grown >> 20);
    assert!(grown < 2 * 30 * (MIB as u64) + SLACK);
}

/// Small enough for a principal to fill its half, with the relations of the defaults.
const SMALL_BOUNDS: &str = "[limits]\nvalue_bytes_max = \"256 KiB\"\nmessage_bytes_max = \"1 MiB\"\n\
    bytes_in_flight_max = \"4 MiB\"\nbytes_in_flight_total_max = \"32 MiB\"\n\
    [timeouts]\npartial_message = \"2s\"\n";

#[tokio::test]
async fn commits_behind_a_missing_number_end_their_sessions_and_refuse_nobody_else() {
    const SESSIONS: usize = 18;
    let fixture = served(SMALL_BOUNDS);
    let witness = Witness::of(fixture.connect("modest", "shared").await);
    let mut peers = Vec::new();
    for _ in 0..SESSIONS {
        peers.push(fixture.native("greedy", "shared").await);
    }
    let began = Instant::now();
    for peer in &mut peers {
        for (number, id) in (2..66).zip(0..) {
            let commit = ClientMessage::Commit {
                number,
                options: CommitOptions::default(),
                batch: Batch::new().put("greedy", vec![b'v'; 60_000]),
            };
            peer.feed(Message::Binary(commit.encode(Some(id)).to_frame()))
                .await;
        }
        peer.flush().await;
    }
    let held = fixture.used("bytes_in_flight").await;
    for peer in &mut peers {
        let (code, reason) = peer.closed().await;
        assert_eq!(code, close_code::PROTOCOL, "{reason}");
        assert!(
            reason.contains("commit number 1 is missing for 2s"),
            "{reason}"
        );
    }
    let took = began.elapsed();
    let (rounds, slowest) = witness.leave().await;
    println!(
        "held {held} bytes for {took:?}; others waited {slowest:?} at most in {rounds} rounds"
    );
    assert!(held <= (16 * MIB) as f64, "more than half: {held}");
    assert!(took > Duration::from_secs(2));
    fixture.all_is_given_back("bytes_in_flight").await;
}

/// A commit that is long on its way is not missing, and a small one behind it waits.
#[tokio::test]
async fn a_commit_whose_parts_are_coming_is_not_missing() {
    let fixture = served(SMALL_BOUNDS);
    let mut peer = fixture.native("greedy", "shared").await;
    let first = ClientMessage::Commit {
        number: 1,
        options: CommitOptions::default(),
        batch: Batch::new().put("long", vec![b'v'; 100_000]),
    };
    let payload = first.encode(Some(1)).payload;
    let mut parts = payload.chunks(20_000);
    peer.send(part(
        kind::COMMIT,
        payload.len(),
        0,
        parts.next().unwrap(),
        1,
    ))
    .await;
    let second = ClientMessage::Commit {
        number: 2,
        options: CommitOptions::default(),
        batch: Batch::new().put("short", "v"),
    };
    peer.say(Some(2), &second).await;
    let mut offset = 20_000;
    for chunk in parts {
        tokio::time::sleep(Duration::from_millis(900)).await;
        peer.send(part(kind::COMMIT, payload.len(), offset, chunk, 1))
            .await;
        offset += chunk.len();
    }
    for _ in 0..2 {
        let (_, answer) = peer.hear().await;
        assert!(
            matches!(answer, ServerMessage::Committed { .. }),
            "{answer:?}"
        );
    }
}

fn part(inner: u8, total: usize, offset: usize, bytes: &[u8], id: u32) -> Bytes {
    let mut payload = vec![inner];
    for mut value in [total, offset] {
        while value >= 0x80 {
            payload.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        payload.push(value.to_le_bytes()[0]);
    }
    payload.extend_from_slice(bytes);
    let packet = Packet {
        kind: kind::PART,
        id: Some(id),
        payload: payload.into(),
    };
    packet.to_frame()
}

fn fragment(first: bool, bytes: usize) -> Message {
    let opcode = if first { Data::Binary } else { Data::Continue };
    Message::Frame(Frame::message(
        vec![b'v'; bytes],
        OpCode::Data(opcode),
        false,
    ))
}

#[tokio::test]
async fn an_unfinished_message_is_counted_and_pings_do_not_keep_it() {
    const PEERS: usize = 6;
    let config = "[limits]\nmemory_bytes_max = \"64 MiB\"\npartial_messages_bytes_max = \"256 MiB\"\n\
        [timeouts]\npartial_message = \"2s\"\n";
    let fixture = served(config);
    let witness = Witness::of(fixture.connect("modest", "shared").await);
    let before = fixture.server.resident_bytes();
    let url = fixture.server.url("admin").to_owned();
    let name = "storage_budget_used_bytes{budget=\"partial_messages\"}";
    let most = Arc::new(std::sync::Mutex::new(0.0_f64));
    let seen = most.clone();
    let watching = tokio::spawn(async move {
        loop {
            let used = metric_at(&url, name).await;
            {
                let mut seen = seen.lock().unwrap();
                *seen = seen.max(used);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // 50 MiB of a message of the mwDB dialect each, and no end of it. Half of the bound is 128 MiB: two fit, and are closed
    // for their silence; the others come when these have all of theirs, and find no room.
    let mut attacks = Vec::new();
    for n in 0..PEERS {
        let began = Instant::now();
        while n == 2 && *most.lock().unwrap() < (100 * MIB) as f64 {
            assert!(began.elapsed() < PATIENCE, "the first two are not counted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut peer = Raw::mwdb(&fixture.server, &fixture.certificates, "greedy").await;
        attacks.push(tokio::spawn(async move {
            for n in 0..50 {
                if !peer.try_send(fragment(n == 0, MIB)).await {
                    break;
                }
            }
            let began = Instant::now();
            // Pings are answered, and are no progress.
            loop {
                if !peer
                    .try_send(Message::Ping(Bytes::from_static(b"still here")))
                    .await
                {
                    break peer.closed_if_told().await;
                }
                match peer.receive_within(Duration::from_millis(100)).await {
                    Some(storage_testkit::raw::Received::Close(code, reason)) => {
                        break Some((code, reason));
                    }
                    Some(storage_testkit::raw::Received::Ended) => break None,
                    _ => assert!(began.elapsed() < PATIENCE, "it is held for ever"),
                }
            }
        }));
    }
    let mut codes = Vec::new();
    for attack in attacks {
        codes.push(attack.await.unwrap().map(|(code, reason)| {
            let word = match code {
                close_code::TRY_AGAIN => "partial_messages_bytes_max is reached (134217728)",
                _ => "stands unfinished at",
            };
            assert!(reason.contains(word), "{code} {reason}");
            code
        }));
    }
    watching.abort();
    let counted = *most.lock().unwrap();
    let grown = fixture.server.peak_resident_bytes().saturating_sub(before);
    let (rounds, slowest) = witness.leave().await;
    println!(
        "counted {} MiB, grew by {} MiB, closed with {codes:?}; others waited {slowest:?} at most in {rounds} rounds",
        counted / MIB as f64,
        grown >> 20
    );
    assert!(codes.contains(&Some(close_code::TRY_AGAIN)), "{codes:?}");
    assert!(codes.contains(&Some(close_code::SILENT)), "{codes:?}");
    assert!(
        counted > (40 * MIB) as f64 && counted <= (130 * MIB) as f64,
        "{counted}"
    );
    assert!(grown < 160 * (MIB as u64) + SLACK, "{} MiB", grown >> 20);
    fixture.all_is_given_back("partial_messages").await;

    // A native one likewise; what it may hold is a frame.
    let mut peer = fixture.native("greedy", "shared").await;
    peer.send_message(fragment(true, 200 * KIB)).await;
    let began = Instant::now();
    let (code, reason) = peer.closed().await;
    assert_eq!(code, close_code::SILENT, "{reason}");
    assert!(reason.contains("stands unfinished at"), "{reason}");
    assert!(began.elapsed() >= Duration::from_millis(1_900));
}

#[tokio::test]
async fn parts_are_counted_at_what_they_cost_and_a_byte_is_no_progress() {
    const MESSAGES: u32 = 16_384;
    let fixture = served("[timeouts]\npartial_message = \"3s\"\n");
    let mut peer = fixture.native("greedy", "shared").await;
    let before = fixture.server.resident_bytes();
    for id in 0..MESSAGES {
        peer.feed(Message::Binary(part(kind::GET, 64 * MIB, 0, b"x", id)))
            .await;
    }
    peer.flush().await;
    // Everything that was sent was taken, as the answer to this shows.
    peer.ask(MESSAGES, &ClientMessage::Get { keys: Vec::new() })
        .await;
    let counted = fixture.used("partial_messages").await;
    let grown = fixture.server.resident_bytes().saturating_sub(before);
    println!("{counted} bytes are counted, resident memory grew by {grown}");
    assert!(
        counted >= grown as f64 * 0.7,
        "{counted} counted, {grown} grown"
    );
    // One byte more of each, in time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for id in 0..MESSAGES {
        peer.feed(Message::Binary(part(kind::GET, 64 * MIB, 1, b"x", id)))
            .await;
    }
    peer.flush().await;
    let began = Instant::now();
    for _ in 0..MESSAGES {
        let (_, answer) = peer.hear().await;
        let outcome = Outcome::NotExecuted;
        let late = ServerMessage::Error(StorageError::DeadlineExceeded { outcome });
        assert_eq!(answer, late);
    }
    assert!(
        began.elapsed() < Duration::from_millis(2_900),
        "{:?}",
        began.elapsed()
    );
}

/// A get and a commit that take several times the silence, on a link of 40 KB a second.
#[tokio::test]
async fn a_slow_link_is_no_silence_either_way() {
    let config = "[timeouts]\nheartbeat = \"500ms\"\nsilence = \"2s\"\nslow_peer = \"2s\"\n\
        partial_message = \"1s\"\n";
    let fixture = served(config);
    let (_, address) = fixture.server.url("storage").split_once("://").unwrap();
    let proxy = FaultProxy::start(address.parse().unwrap(), 1)
        .await
        .unwrap();
    let url = format!("wss://{}/storage/shared", proxy.address());
    let credentials = fixture.certificates.dir().join("greedy");
    let options = ConnectOptions::new(url)
        .credentials_dir(credentials)
        .request_timeout(Duration::from_secs(60));
    let slow = RemoteStorage::connect(options).await.unwrap();
    let session = slow.session_info();
    let modest = fixture.connect("modest", "shared").await;
    let value = vec![b'v'; 200_000];
    modest
        .put("large".into(), value.clone().into())
        .await
        .unwrap();
    let bytes_per_second = 20_000;
    proxy.apply(Fault::Throttle { bytes_per_second }, Scope::All);
    let began = Instant::now();
    let read = slow.get_one("large".into()).await.unwrap().unwrap();
    assert_eq!(read.value, value);
    let down = began.elapsed();
    slow.put("up".into(), vec![b'v'; 60_000].into())
        .await
        .unwrap();
    let up = began.elapsed() - down;
    println!("down {down:?}, up {up:?}");
    assert!(down > Duration::from_secs(4) && up > Duration::from_secs(2));
    assert!(!session.has_changed().unwrap(), "it was connected again");
}

/// Bulk is asked for, then something small: how much of the bulk comes before it, to one who reads at a fair pace.
#[tokio::test]
async fn a_small_answer_waits_for_little_of_the_bulk_before_it() {
    let fixture = served("");
    let modest = fixture.connect("modest", "shared").await;
    modest
        .put("large".into(), vec![b'v'; 8 * MIB].into())
        .await
        .unwrap();
    modest.put("small".into(), "v".into()).await.unwrap();
    let mut peer = fixture.native("greedy", "shared").await;
    let get = |key: &str| ClientMessage::Get {
        keys: vec![Key::copy_from_slice(key.as_bytes())],
    };
    for id in 0..8 {
        peer.say(Some(id), &get("large")).await;
    }
    // The bulk flows, at about 20 MB a second.
    for _ in 0..64 {
        let frame = peer.binary().await;
        peer.read(frame);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    peer.say(Some(99), &get("small")).await;
    let mut bytes = 0;
    loop {
        let frame = peer.binary().await;
        let length = frame.len();
        if let Some((Some(99), _)) = peer.read(frame) {
            break;
        }
        bytes += length;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    println!("{} KiB came before the small answer", bytes / KIB);
    // What the peer's own system holds for it is beyond the server's reach.
    assert!(bytes < 7 * MIB, "{bytes} bytes came before it");
}

//! What a request costs where no clock is needed to tell: Rust's allocations, and for `tests/tests/costs.rs`, which runs
//! this under valgrind, instructions.
//!
//! `request-costs CASE COUNT` carries out a case's request so often, and prints how many allocations one takes. Each case
//! begins with as many requests that are not counted, so that buffers have grown and caches are full.

#![expect(
    clippy::unwrap_used,
    reason = "a case that cannot be measured ends here"
)]

use std::alloc::System;
use std::process::ExitCode;
use std::sync::Arc;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use storage_protocol::native::{
    Class, ClientMessage, Incoming, Outbox, Reassembler, ServerMessage,
};
use storage_protocol::{
    Batch, CommitOptions, Entry, EntryLifetime, Key, KeyRange, Keyspace, Limits, Revision, Storage,
    Watch, WatchOptions, WatchStart,
};
use storage_server::engine::rocks::{Durability, EngineOptions, RocksEngine};
use storage_server::engine::{Engine, SessionStorage};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CASES: [&str; 8] = [
    "decode-get-1",
    "decode-commit-64",
    "encode-values-64",
    "get-1",
    "get-64",
    "commit-1",
    "commit-64",
    "commit-1-beside-1000-watches",
];

/// Keys that requests spread over.
const KEYS: u64 = 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (case, count) = match arguments.as_slice() {
        [case, count] if CASES.contains(&case.as_str()) => (case.as_str(), count.parse()),
        _ => {
            eprintln!(
                "usage: request-costs CASE COUNT\ncases: {}",
                CASES.join(" ")
            );
            return ExitCode::from(2);
        }
    };
    let Ok(count) = count else {
        eprintln!("COUNT is a number");
        return ExitCode::from(2);
    };
    let allocations = run(case, count);
    println!("{allocations}");
    ExitCode::SUCCESS
}

/// Allocations of a request, rounded.
fn run(case: &str, count: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    match case {
        "decode-get-1" => decode(&ClientMessage::Get { keys: keys(0, 1) }, count),
        "decode-commit-64" => {
            let message = ClientMessage::Commit {
                number: 1,
                options: CommitOptions::default(),
                batch: batch(0, 64),
            };
            decode(&message, count)
        }
        "encode-values-64" => encode(count),
        "get-1" => Fixture::new().gets(&runtime, 1, count),
        "get-64" => Fixture::new().gets(&runtime, 64, count),
        "commit-1" => Fixture::new().commits(&runtime, 1, count),
        "commit-64" => Fixture::new().commits(&runtime, 64, count),
        _ => {
            let fixture = Fixture::new();
            let watches = runtime.block_on(fixture.watches(1000));
            let allocations = fixture.commits(&runtime, 1, count);
            drop(watches);
            allocations
        }
    }
}

/// Runs it so often, twice, and counts the second time.
fn counted(count: u64, mut request: impl FnMut(u64)) -> u64 {
    (0..count).for_each(&mut request);
    let region = Region::new(ALLOCATOR);
    (count..2 * count).for_each(&mut request);
    let change = region.change();
    let all = (change.allocations + change.reallocations) as u64;
    (all + count / 2) / count
}

fn key(n: u64) -> Key {
    // As far apart as can be: neighbours are found faster.
    format!("bench/{:018}", n.wrapping_mul(0x9e37_79b9) % KEYS).into()
}

fn keys(from: u64, count: u64) -> Vec<Key> {
    (from..from + count).map(key).collect()
}

fn batch(from: u64, count: u64) -> Batch {
    let value = vec![b'v'; 100];
    keys(from, count)
        .into_iter()
        .fold(Batch::new(), |batch, key| batch.put(key, value.clone()))
}

fn decode(message: &ClientMessage, count: u64) -> u64 {
    let limits = Limits::default();
    let mut reassembler = Reassembler::new(limits.frame_bytes_max, limits.message_bytes_max);
    let mut outbox = Outbox::new();
    outbox.push(Class::Answer, message.encode(Some(1)));
    let frame = outbox.pop().unwrap();
    let now = std::time::Instant::now();
    counted(count, |_| {
        let received = reassembler.receive(frame.clone(), now);
        let Ok(Incoming::Whole(packet)) = received else {
            panic!("{received:?}");
        };
        ClientMessage::decode(packet).unwrap();
    })
}

fn encode(count: u64) -> u64 {
    let entry = Entry {
        value: vec![b'v'; 100].into(),
        revision: Revision(7),
        lifetime: EntryLifetime::Forever,
    };
    let message = ServerMessage::Values {
        revision: Revision(9),
        entries: vec![Some(entry); 64],
    };
    let mut outbox = Outbox::new();
    counted(count, |_| {
        outbox.push(Class::Read, message.encode(Some(1)));
        outbox.pop().unwrap();
    })
}

/// A store with all keys in it.
struct Fixture {
    storage: Arc<dyn SessionStorage>,
    _engine: Arc<RocksEngine>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = EngineOptions::new(folder.path().join("data"));
        options.durability = Durability::Os;
        let engine = RocksEngine::open(options).unwrap();
        let keyspace = Keyspace::new("bench").unwrap();
        let storage = engine.open_session("cert:bench", &keyspace).storage();
        Self {
            storage,
            _engine: engine,
            _folder: folder,
        }
    }

    fn commits(&self, runtime: &tokio::runtime::Runtime, keys: u64, count: u64) -> u64 {
        let commit = |n: u64| {
            let committed = self
                .storage
                .commit(batch(n * keys, keys), CommitOptions::default());
            runtime.block_on(committed).unwrap();
        };
        counted(count, commit)
    }

    fn gets(&self, runtime: &tokio::runtime::Runtime, count_of_keys: u64, count: u64) -> u64 {
        for n in 0..KEYS / 64 {
            let committed = self
                .storage
                .commit(batch(n * 64, 64), CommitOptions::default());
            runtime.block_on(committed).unwrap();
        }
        let all = keys(0, KEYS);
        counted(count, |n| {
            let from = usize::try_from(n * count_of_keys % KEYS).unwrap();
            let to = from + usize::try_from(count_of_keys).unwrap();
            let reading = runtime.block_on(self.storage.get(&all[from..to])).unwrap();
            assert!(reading.value.iter().all(Option::is_some), "all are there");
        })
    }

    /// Watches of prefixes that nothing is put under.
    async fn watches(&self, count: usize) -> Vec<Watch> {
        let mut watches = Vec::new();
        for n in 0..count {
            let range = KeyRange::prefix(format!("other/{n}/"));
            let options = WatchOptions::every(WatchStart::Now);
            watches.push(self.storage.watch(range, options).await.unwrap());
        }
        watches
    }
}

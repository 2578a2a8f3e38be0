//! Files that were damaged behind the store's back never make it tell what nobody put; and what it writes is for its
//! owner only.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, KeyState, Keyspace, ScanOptions, Storage,
};
use storage_server::engine::Engine;
use storage_server::engine::rocks::{EngineOptions, RocksEngine};
use storage_testkit::data_folder::copy;
use storage_testkit::harness::{Certificates, Launch, ServerProcess};
use storage_testkit::raw::{Raw, http, tls, upgrade_request};

fn open(folder: &Path) -> Option<Arc<RocksEngine>> {
    RocksEngine::open(EngineOptions {
        disk_reserve_bytes: 0,
        ..EngineOptions::new(folder)
    })
    .ok()
}

async fn close(engine: Arc<RocksEngine>) {
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .unwrap();
}

fn keyspace() -> Keyspace {
    Keyspace::new("model").unwrap()
}

/// Small values lie in tables, large ones in blob files.
fn value(n: u32) -> Bytes {
    let length = if n.is_multiple_of(20) { 20_000 } else { 200 };
    let mut random = StdRng::seed_from_u64(u64::from(n));
    (0..length).map(|_| random.random::<u8>()).collect()
}

fn data_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join("db")).unwrap();
    let mut files: Vec<PathBuf> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "sst" || e == "blob"))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn no_flipped_bit_in_a_file_of_the_store_makes_a_wrong_value() {
    const COUNT: u32 = 1_000;
    const FLIPS: usize = 24;
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let engine = open(&whole).unwrap();
    let session = engine.open_session("cert:w", &keyspace()).storage();
    let mut batch = Batch::new();
    for n in 0..COUNT {
        batch = batch.put(format!("{n:04}"), value(n));
    }
    let options = CommitOptions::default();
    session.commit(batch, options).await.unwrap();
    drop(session);
    close(engine).await;
    // At its next start it writes what the log holds into tables and blob files.
    close(open(&whole).unwrap()).await;
    let files = data_files(&whole);
    for kind in ["sst", "blob"] {
        let is_kind = |path: &PathBuf| path.extension().is_some_and(|e| e == kind);
        assert!(files.iter().any(is_kind), "no .{kind}: {files:?}");
    }
    let mut random = StdRng::seed_from_u64(0xf11b);
    let (mut told, mut right) = (0, 0);
    for flip in 0..FLIPS {
        let damaged = folder.path().join(format!("damaged-{flip}"));
        copy(&whole, &damaged);
        let files = data_files(&damaged);
        let file = &files[random.random_range(0..files.len())];
        let mut bytes = fs::read(file).unwrap();
        let bit = random.random_range(0..bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(file, bytes).unwrap();
        // It may refuse to start, or to read; what it reads is what was put.
        let Some(engine) = open(&damaged) else {
            told += 1;
            continue;
        };
        let session = engine.open_session("cert:r", &keyspace()).storage();
        for n in 0..COUNT {
            match session.get(&[Key::from(format!("{n:04}"))]).await {
                Ok(reading) => {
                    let entry = reading.value.into_iter().next().flatten();
                    let found = entry.map(|entry| entry.value);
                    assert_eq!(found, Some(value(n)), "flip {flip} in {}", file.display());
                    right += 1;
                }
                Err(_) => told += 1,
            }
        }
        if let Ok(scan) = session.scan(KeyRange::all(), ScanOptions::default()).await
            && let Ok(items) = scan.collect().await
        {
            for (n, item) in (0..).zip(items) {
                let KeyState::Live(entry) = item.state else {
                    panic!("flip {flip}: {:?} is no entry", item.key);
                };
                assert_eq!(
                    (item.key, entry.value),
                    (format!("{n:04}").into(), value(n))
                );
            }
        }
        drop(session);
        close(engine).await;
        fs::remove_dir_all(&damaged).unwrap();
    }
    assert!(told > 0, "no flip was noticed");
    assert!(right > 0, "nothing was read");
}

#[tokio::test]
async fn the_data_folder_is_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let certificates = Certificates::issue(&["peer"]);
    let server = ServerProcess::mutual(&certificates, &data, &[]);
    let mode = fs::metadata(&data).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
    drop(server);
}

#[tokio::test]
async fn what_a_peer_calls_itself_cannot_write_into_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (data, log) = (folder.path().join("data"), folder.path().join("log"));
    let certificates = Certificates::issue(&["peer"]);
    let arguments = [
        "--listen",
        "127.0.0.1:0",
        "--certs",
        &certificates.dir().display().to_string(),
        "--data",
        &data.display().to_string(),
        "--log",
        "debug",
    ];
    let mut server = ServerProcess::launch(Launch {
        arguments: arguments.map(str::to_owned).to_vec(),
        log: Some(log.clone()),
        ..Launch::default()
    })
    .unwrap();
    let agent = "\u{1b}[31mred\nFORGED a line of its own\r\u{9b}2J";
    let mut raw = Raw::mute(&server, &certificates, "peer", "model").await;
    let hello = storage_protocol::native::Hello::new(agent);
    raw.say(None, &storage_protocol::native::ClientMessage::Hello(hello))
        .await;
    raw.hear().await;
    let mut stream = tls(&server, &certificates, "peer").await;
    let protocol = "Sec-WebSocket-Protocol: storage-sync.v1\r\n";
    let request = upgrade_request("/storage/%1b[31m%0aFORGED", protocol);
    assert_eq!(http(&mut stream, &request).await.status, 400);
    server.terminate();
    let log = fs::read(&log).unwrap();
    let text = String::from_utf8_lossy(&log);
    assert!(text.contains("FORGED"), "the agent is logged: {text}");
    let control = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(control), "{}", text.escape_debug());
    let forged = text.lines().find(|line| line.starts_with("FORGED"));
    assert_eq!(forged, None);
}

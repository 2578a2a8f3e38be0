//! Objects between real processes: what is left of them when one is killed, refused or slow; how much memory they take.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

mod processes;

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::iter;
use processes::{Ran, finish, run};
use storage_client::RemoteStorage;
use storage_protocol::objects::{
    MAGIC, Manifest, ObjectOptions, ObjectWriter, PART_BYTES, PartKey, is_part,
};
use storage_protocol::{
    Batch, ChangeKind, CommitOptions, CommitRecord, KeyRange, Limit, ScanOptions, Storage,
    StorageError, StorageExt, WatchEvent, WatchOptions, WatchStart,
};
use storage_testkit::harness::binary;
use storage_testkit::served::Served;

const PART: usize = PART_BYTES;
const MIB: u64 = 1 << 20;

/// For each single wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the memory of a process may grow by while an object goes through it, whatever its size: the writer's 4 MiB, buffers
/// of sockets and pipes, what the allocator keeps; in the server also memtables and caches of their own bounds.
const CLIENT_GROWTH: u64 = 48 * MIB;
const SERVER_MEMORY: u64 = 1_024 * MIB;

fn content(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n ^ (n >> 8) ^ (n >> 16)).to_le_bytes()[0])
        .collect()
}

async fn parts(storage: &RemoteStorage) -> usize {
    let options = ScanOptions {
        keys_only: true,
        ..ScanOptions::default()
    };
    let scan = storage.scan(KeyRange::all(), options).await.unwrap();
    let items = scan.collect().await.unwrap();
    items.iter().filter(|item| is_part(&item.key)).count()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn command(served: &Served, client: &str, keyspace: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("storage"));
    command.env_clear();
    command.arg("--url").arg(served.url(keyspace));
    command.arg("--certs").arg(served.certificates.dir());
    command.args(["--identity", client]).args(arguments);
    command
}

fn storage(served: &Served, arguments: &[&str]) -> Ran {
    run(&mut command(served, "ann", "model", arguments), b"")
}

/// A `put` of stdin that has been given this much, and waits for more.
fn begin_put(served: &Served, key: &str, bytes: &[u8]) -> Child {
    let mut putting = command(served, "ann", "model", &["put", key, "-"]);
    let mut child = putting
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    child
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_ends_are_both_killed_leaves_nothing() {
    let mut served = Served::new(&["ann"], "[timeouts]\nsession_grace = \"200ms\"");
    let whole = content(5 * PART + 1);
    let ann = served.connect("ann", "model").await;
    let chunks = iter([Ok(Bytes::from(whole.clone()))]);
    let written = ann.put_object("whole".into(), chunks, ObjectOptions::default());
    written.await.unwrap();
    let mut child = begin_put(&served, "begun", &content(40 * PART));
    until("parts come", async || parts(&ann).await > 20).await;
    drop(ann);
    served.server.kill();
    child.kill().unwrap();
    child.wait().unwrap();
    served.server.restart();
    let ann = served.connect("ann", "model").await;
    until("the parts go", async || parts(&ann).await == 6).await;
    assert_eq!(ann.get_one("begun".into()).await.unwrap(), None);
    let got = storage(&served, &["get", "whole", "--out", "-"]).expect(0);
    assert!(got.stdout == whole, "what was acknowledged is whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_over_a_kill_of_the_server() {
    let mut served = Served::new(&["ann"], "");
    let ann = served.connect("ann", "model").await;
    let written = content(12 * PART + 5);
    let mut writer = ObjectWriter::new(ann.clone(), "object".into(), ObjectOptions::default())
        .await
        .unwrap();
    let (before, behind) = written.split_at(6 * PART + 100);
    writer.write(Bytes::copy_from_slice(before)).await.unwrap();
    served.server.kill();
    served.server.restart();
    writer.write(Bytes::copy_from_slice(behind)).await.unwrap();
    let done = writer.finish().await.unwrap();
    assert_eq!(done.info.size, written.len() as u64);
    let got = storage(&served, &["get", "object", "--out", "-"]).expect(0);
    assert!(got.stdout == written);
    assert_eq!(parts(&ann).await, 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_a_quota_refuses_leaves_nothing() {
    let quota = "[[quota]]\nkeyspace = \"model\"\nbytes = \"8 MiB\"";
    let served = Served::new(&["ann"], quota);
    let ann = served.connect("ann", "model").await;
    ann.put("object".into(), "before".into()).await.unwrap();
    let chunks = (0..20).map(|_| Ok(Bytes::from(content(PART))));
    let writing = ann.put_object("object".into(), iter(chunks), ObjectOptions::default());
    let error = writing.await.unwrap_err();
    let limit = Limit::KeyspaceBytes;
    assert!(
        matches!(error, StorageError::QuotaExceeded { limit: found, .. } if found == limit),
        "{error}"
    );
    assert_eq!(parts(&ann).await, 0);
    assert_eq!(
        ann.get_one("object".into()).await.unwrap().unwrap().value,
        "before"
    );
    // The room is there again.
    let chunks = iter([Ok(Bytes::from(content(6 * PART)))]);
    let written = ann.put_object("object".into(), chunks, ObjectOptions::default());
    written.await.unwrap();
    // The command says so, by its exit code.
    let putting = &mut command(&served, "ann", "model", &["put", "other", "-"]);
    run(putting, &content(6 * PART))
        .expect(1)
        .says(&["quota_keyspace_bytes_max"]);
    assert_eq!(parts(&ann).await, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_waits_where_a_rate_is_reached() {
    let quota = "[[quota]]\nprincipal = \"cert:ann\"\ncommits_per_second = 4";
    let served = Served::new(&["ann"], quota);
    let putting = &mut command(&served, "ann", "model", &["put", "object", "-"]);
    let written = content(12 * PART);
    run(putting, &written).expect(0);
    let got = storage(&served, &["get", "object", "--out", "-"]).expect(0);
    assert!(got.stdout == written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_puts_gets_moves_and_removes_objects() {
    let served = Served::new(&["ann"], "");
    let folder = tempfile::tempdir().unwrap();
    let (file, got) = (folder.path().join("big"), folder.path().join("got"));
    let written = content(4 * PART + 321);
    std::fs::write(&file, &written).unwrap();
    let at_file = format!("@{}", file.display());
    storage(&served, &["put", "big", &at_file]).expect(0);
    storage(&served, &["put", "small", "x"]).expect(0);
    let out = got.display().to_string();
    storage(&served, &["get", "big", "--out", &out]).expect(0);
    assert!(std::fs::read(&got).unwrap() == written);
    // Parts are shown on request.
    let scanned = storage(&served, &["scan", "--keys-only"]).expect(0);
    assert_eq!(scanned.text(), "big\nsmall\n");
    let scanned = scanned.says(&["5 parts of objects are not shown"]);
    assert_eq!(scanned.code, Some(0));
    let all = storage(&served, &["scan", "--keys-only", "--parts"]).expect(0);
    assert_eq!(all.text().lines().count(), 7);
    storage(&served, &["get", "big", "small"])
        .expect(2)
        .says(&["get it alone"]);
    // One that is being written is no part of an export.
    let mut running = begin_put(&served, "running", &content(3 * PART));
    let ann = served.connect("ann", "model").await;
    until("parts come", async || parts(&ann).await > 6).await;
    let exported = storage(&served, &["export"]).expect(0);
    let exported = exported.says(&["7 entries at", "being written or removed"]);
    let importing = &mut command(&served, "ann", "copy", &["import", "-"]);
    run(importing, &exported.stdout).expect(0);
    let getting = &mut command(&served, "ann", "copy", &["get", "big", "--out", "-"]);
    assert!(run(getting, b"").expect(0).stdout == written);
    drop(running.stdin.take());
    let ran = finish(running).expect(0);
    assert!(ran.text().contains(':'), "a position");
    // A plain put over an object, and a removal, take the parts with them.
    storage(&served, &["put", "running", "plain"]).expect(0);
    assert_eq!(parts(&ann).await, 5);
    storage(&served, &["rm", "big", "small"]).expect(0);
    assert_eq!(parts(&ann).await, 0);
    // What knows nothing of objects leaves parts.
    storage(&served, &["put", "big", &at_file]).expect(0);
    ann.remove("big".into()).await.unwrap();
    let swept = storage(&served, &["sweep", "--prefix", "b"]).expect(0);
    assert_eq!(swept.text(), "5 parts of 1 objects\n");
    assert_eq!(
        storage(&served, &["sweep"]).expect(0).text(),
        "0 parts of 0 objects\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_upload_leaves_nothing() {
    let served = Served::new(&["ann"], "");
    let ann = served.connect("ann", "model").await;
    let child = begin_put(&served, "object", &content(9 * PART));
    until("parts come", async || parts(&ann).await > 3).await;
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert_eq!(finish(child).code, Some(130));
    until("the parts go", async || parts(&ann).await == 0).await;
    assert_eq!(ann.get_one("object".into()).await.unwrap(), None);
}

/// The size in MiB is 256; `OBJECTS_MIB` changes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_the_object() {
    let mib: u64 = std::env::var("OBJECTS_MIB").map_or(256, |text| text.parse().unwrap());
    let served = Served::measured(&["ann"], "");
    let mut putting = command(&served, "ann", "model", &["put", "big", "-"]);
    let mut child = putting
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let chunk = content(1 << 20);
    let (mut first, mut most) = (None, 0);
    let began = Instant::now();
    for n in 0..mib {
        child.stdin.as_mut().unwrap().write_all(&chunk).unwrap();
        if n % 8 == 7 {
            let now = resident(&child);
            most = most.max(now);
            first.get_or_insert(now);
        }
    }
    drop(child.stdin.take());
    finish(child).expect(0);
    let wrote = began.elapsed();
    let grown = most - first.unwrap();
    let mut getting = command(&served, "ann", "model", &["get", "big", "--out", "-"]);
    let began = Instant::now();
    let mut child = getting
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (mut found, mut read) = (vec![0; 1 << 20], 0);
    let mut most_read = 0;
    while read < mib {
        stdout.read_exact(&mut found).unwrap();
        assert!(found == chunk, "the chunk {read}");
        read += 1;
        if read % 8 == 0 {
            most_read = most_read.max(resident(&child));
        }
    }
    assert_eq!(stdout.read(&mut found).unwrap(), 0);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let server = served.server.peak_resident_bytes();
    println!(
        "{mib} MiB: written in {wrote:?}, the client grew by {} MiB; read in {:?}, the client had {} MiB; the server at most {} MiB",
        grown / MIB,
        began.elapsed(),
        most_read / MIB,
        server / MIB
    );
    assert!(grown < CLIENT_GROWTH, "{grown} bytes");
    assert!(most_read < 2 * CLIENT_GROWTH, "{most_read} bytes");
    assert!(server < SERVER_MEMORY, "{server} bytes");
}

fn resident(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_to_a_prefix_are_rights_to_the_parts_below_it() {
    let rules = "[[rule]]\nprincipal = \"cert:boss\"\nkeyspace = \"*\"\nallow = [\"admin\", \"read\", \"write\", \"watch\"]\n\
                 [[rule]]\nprincipal = \"cert:ann\"\nkeyspace = \"model\"\nprefix = \"ann/\"\nallow = [\"read\", \"write\"]\n";
    let served = Served::new(&["boss", "ann"], rules);
    let boss = served.connect("boss", "model").await;
    boss.put("made".into(), "".into()).await.unwrap();
    let ann = served.connect("ann", "model").await;
    let put = |storage: RemoteStorage, key: &'static str| async move {
        let chunks = iter([Ok(Bytes::from(content(3 * PART)))]);
        let written = storage.put_object(key.into(), chunks, ObjectOptions::default());
        written.await
    };
    put(ann.clone(), "ann/object").await.unwrap();
    let id = put(boss.clone(), "boss/object")
        .await
        .unwrap()
        .info
        .id
        .unwrap();
    let denied = put(ann.clone(), "boss/object").await.unwrap_err();
    assert!(
        matches!(denied, StorageError::AccessDenied { .. }),
        "{denied}"
    );
    let part = PartKey::part(b"boss/object", id, 0);
    let denied = ann.get_one(part.clone()).await.unwrap_err();
    assert!(
        matches!(denied, StorageError::AccessDenied { .. }),
        "{denied}"
    );
    let batch = Batch::new().remove(part);
    let denied = ann
        .commit(batch, CommitOptions::default())
        .await
        .unwrap_err();
    assert!(
        matches!(denied, StorageError::AccessDenied { .. }),
        "{denied}"
    );
    ann.remove_object("ann/object".into()).await.unwrap();
}

/// All commits of a keyspace, up to now.
async fn history(storage: &RemoteStorage) -> Vec<std::sync::Arc<CommitRecord>> {
    let options = WatchOptions::every(WatchStart::Beginning);
    let mut watch = storage.watch(KeyRange::all(), options).await.unwrap();
    watch.request_progress(7);
    let mut commits = Vec::new();
    loop {
        match watch.next().await.unwrap().unwrap() {
            WatchEvent::Commit(commit) => commits.push(commit),
            WatchEvent::Progress { token: Some(7), .. } => return commits,
            _ => {}
        }
    }
}

async fn put_object(storage: &RemoteStorage, key: &str, bytes: Vec<u8>) {
    let chunks = iter([Ok(Bytes::from(bytes))]);
    let key = key.to_owned().into();
    let written = storage.put_object(key, chunks, ObjectOptions::default());
    written.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_shows_each_object_when_its_parts_are_there() {
    let served = Served::new(&["ann"], "");
    let ann = served.connect("ann", "model").await;
    // Also one whose key is between another one and its parts.
    for (key, parts) in [("a", 3), ("a\0b", 2), ("b", 12), ("z", 2)] {
        put_object(&ann, key, content(parts * PART - 7)).await;
    }
    ann.put("c".into(), "plain".into()).await.unwrap();
    let exported = storage(&served, &["export"]).expect(0);
    // A file that has a part alone, and one whose parts it has not: all of it goes in all the same.
    let lines: Vec<_> = exported
        .stdout
        .split_inclusive(|byte| *byte == b'\n')
        .collect();
    let torn = [lines[0], lines[lines.len() - 1]].concat();
    for (keyspace, file, batch, objects) in [
        ("copy", &exported.stdout, "500", 4),
        ("slow", &exported.stdout, "1", 4),
        ("torn", &torn, "1", 1),
    ] {
        let arguments = ["import", "-", "--batch", batch];
        run(&mut command(&served, "ann", keyspace, &arguments), file).expect(0);
        let copy = served.connect("ann", keyspace).await;
        let mut there = std::collections::HashSet::new();
        let mut shown = 0;
        for commit in history(&copy).await {
            for change in &commit.changes {
                let ChangeKind::Put { value, .. } = &change.kind else {
                    panic!("{change:?}");
                };
                if let Ok(Some(manifest)) = Manifest::decode(value) {
                    shown += 1;
                    let has =
                        |number| there.contains(&PartKey::part(&change.key, manifest.id, number));
                    assert!(
                        keyspace == "torn" || (0..manifest.parts()).all(has),
                        "{} is shown without its parts",
                        change.key.escape_ascii()
                    );
                }
                there.insert(change.key.clone());
            }
        }
        assert_eq!(shown, objects, "{keyspace}");
    }
    let getting = &mut command(&served, "ann", "copy", &["get", "b", "--out", "-"]);
    assert!(run(getting, b"").expect(0).stdout == content(12 * PART - 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_says_in_its_commit_which_parts_are_to_go() {
    let served = Served::new(&["ann"], "");
    let ann = served.connect("ann", "model").await;
    for key in ["one", "two"] {
        put_object(&ann, key, content(3 * PART)).await;
    }
    ann.put("plain".into(), "x".into()).await.unwrap();
    let removed = storage(&served, &["rm", "two", "plain", "absent", "one"]).expect(0);
    let position: storage_protocol::Position = removed.text().trim().parse().unwrap();
    let commits = history(&ann).await;
    let commit = commits
        .iter()
        .find(|commit| commit.revision == position.revision);
    let mut keys = Vec::new();
    for change in &commit.unwrap().changes {
        match (&change.kind, PartKey::parse(&change.key)) {
            (ChangeKind::Removed { .. }, None) => keys.push(change.key.clone()),
            (
                ChangeKind::Put { .. },
                Some(PartKey {
                    object,
                    number: None,
                    ..
                }),
            ) => {
                keys.push(object);
            }
            _ => panic!("{change:?}"),
        }
    }
    keys.sort_unstable();
    assert_eq!(keys, ["one", "one", "plain", "two", "two"]);
    until("the parts go", async || parts(&ann).await == 0).await;
    let left = ann
        .scan(KeyRange::all(), ScanOptions::default())
        .await
        .unwrap();
    assert_eq!(left.collect().await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_write_and_not_read_is_told_what_may_be_left() {
    let rules = "[[rule]]\nprincipal = \"cert:boss\"\nkeyspace = \"*\"\nallow = [\"admin\", \"read\", \"write\", \"watch\"]\n\
                 [[rule]]\nprincipal = \"cert:ann\"\nkeyspace = \"model\"\nallow = [\"write\"]\n";
    let served = Served::new(&["boss", "ann"], rules);
    let boss = served.connect("boss", "model").await;
    for key in ["put", "removed", "other"] {
        put_object(&boss, key, content(2 * PART)).await;
    }
    let told = ["some of its parts may be left", "storage sweep"];
    storage(&served, &["put", "put", "plain"])
        .expect(0)
        .says(&told);
    let removed = storage(&served, &["rm", "removed", "other"]).expect(0);
    removed.says(&told).says(&["other (and 1 more)"]);
    assert_eq!(parts(&boss).await, 6);
    let sweeping = &mut command(&served, "boss", "model", &["sweep"]);
    assert_eq!(
        run(sweeping, b"").expect(0).text(),
        "6 parts of 3 objects\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_of_a_newer_version_is_not_taken_for_a_value() {
    let served = Served::new(&["ann"], "");
    let ann = served.connect("ann", "model").await;
    ann.put("newer".into(), [MAGIC, b"02aa"].concat().into())
        .await
        .unwrap();
    ann.put("value".into(), [MAGIC, b"no digits"].concat().into())
        .await
        .unwrap();
    for arguments in [
        &["get", "newer"][..],
        &["get", "newer", "--out", "-"],
        &["--json", "get", "newer"],
        &["get", "newer", "value"],
    ] {
        let got = storage(&served, arguments).expect(2);
        assert_eq!(got.text(), "", "{arguments:?}");
        got.says(&[
            "newer is an object",
            "newer version",
            "manifest of version 2",
        ]);
    }
    let got = storage(&served, &["get", "value", "--out", "-"]).expect(2);
    assert_eq!(got.text(), "");
    got.says(&["value is an object that is damaged"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_dropped_is_cleared_while_its_session_goes_on() {
    let served = Served::new(&["ann"], "");
    let ann = served.connect("ann", "model").await;
    let options = ObjectOptions::default();
    let mut writer = ObjectWriter::new(ann.clone(), "dropped".into(), options)
        .await
        .unwrap();
    writer.write(content(9 * PART).into()).await.unwrap();
    assert!(parts(&ann).await > 3);
    drop(writer);
    until("the parts go", async || parts(&ann).await == 0).await;
    // Nor does one that was given up in the middle of a call.
    let mut writer = ObjectWriter::new(ann.clone(), "dropped".into(), options)
        .await
        .unwrap();
    let writing = writer.write(content(30 * PART).into());
    let _ = tokio::time::timeout(Duration::from_millis(30), writing).await;
    drop(writer);
    until("the parts go", async || parts(&ann).await == 0).await;
    assert_eq!(ann.get_one("dropped".into()).await.unwrap(), None);
}

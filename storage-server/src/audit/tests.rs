use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use storage_protocol::{Batch, Key, KeyRange, Keyspace, Lifetime, SessionId};

use super::queue::QUEUE_BYTES_MAX;
use super::record::{KEY_BYTES_MAX, KEYS_MAX, RECORD_BYTES_MAX};
use super::repeats::{GROUPS_MAX, WRITTEN_MAX};
use super::*;
use crate::auth::{Identity, Principal};

/// 2026-11-30T12:00:00Z.
const NOON: u64 = 1_796_040_000;
const DAY: u64 = 24 * 3600;
/// A place in which nothing is written by accident.
const SECRET: &str = "s3cr3t-marker";

/// A clock that is set.
#[derive(Clone)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    fn at(seconds: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seconds)))
    }

    fn go(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    fn clock(&self) -> Clock {
        let hands = self.0.clone();
        Arc::new(move || UNIX_EPOCH + Duration::from_secs(hands.load(Ordering::Relaxed)))
    }
}

/// An audit log whose writer runs when the test says so.
struct Bench {
    audit: Arc<Audit>,
    writer: Writer,
    folder: tempfile::TempDir,
    hands: Hands,
}

fn everything() -> Vec<AuditEvent> {
    use AuditEvent::{Admin, Denied, Read, Session, Watch, Write};
    vec![Denied, Admin, Session, Write, Read, Watch]
}

impl Bench {
    fn new(config: AuditConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hands = Hands::at(NOON);
        let place = folder.path().join("audit");
        let (days, bytes) = (config.days, config.day_bytes_max);
        let files = Files::prepare(place, days, bytes, (hands.clock())()).unwrap();
        let audit = Arc::new(Audit::new(Wants::of(&config.events), hands.clock()));
        let writer = Writer::new(audit.core.clone(), files);
        Self {
            audit,
            writer,
            folder,
            hands,
        }
    }

    fn of_everything() -> Self {
        Self::new(AuditConfig {
            events: everything(),
            ..AuditConfig::default()
        })
    }

    /// Writes what waits, without an end of a second.
    fn write(&mut self) {
        let (items, _) = self.audit.core.queue.next(std::time::Instant::now());
        self.writer.write(items);
    }

    fn end_second(&mut self) {
        self.write();
        self.writer.round();
    }

    fn path(&self, day: &str) -> PathBuf {
        let name = format!("audit/audit-{day}.jsonl");
        self.folder.path().join(name)
    }

    fn text(&self, day: &str) -> String {
        std::fs::read_to_string(self.path(day)).unwrap_or_default()
    }

    fn lines(&self, day: &str) -> Vec<Value> {
        let text = self.text(day);
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn today(&self) -> Vec<Value> {
        self.lines("2026-11-30")
    }

    fn dropped(&self, why: Dropped) -> u64 {
        self.audit.core.dropped[why as usize].get()
    }
}

fn who() -> Identity {
    let address: SocketAddr = "192.0.2.7:4711".parse().unwrap();
    Identity::vouched(Principal::user("ann").unwrap()).at(Some(address))
}

fn denial(key: &str) -> Record {
    let record = Record::new(Event::Denied, "get", Outcome::Denied).by(&who());
    record.keys([Key::from(key.to_owned())].iter()).reason("no")
}

fn read(key: &[u8]) -> Record {
    let record = Record::new(Event::Read, "get", Outcome::Allowed).by(&who());
    record.keys([Key::copy_from_slice(key)].iter())
}

#[test]
fn a_record_says_who_did_what_to_which_keys_when_and_with_what_end() {
    let mut bench = Bench::of_everything();
    let keyspace = Keyspace::new("model").unwrap();
    let batch = Batch::new()
        .put("a\u{7f}", "1")
        .remove("b")
        .signal("c", "2")
        .put_stamped("d/", "3", Lifetime::Forever);
    let record = Record::new(Event::Write, "commit", Outcome::Allowed)
        .by(&who())
        .session(SessionHash::of(SessionId([7; 16])))
        .keyspace(&keyspace)
        .changes(&batch)
        .revision(Revision(42));
    bench.audit.put(record);
    let range = KeyRange::prefix("p/");
    let scan = Record::new(Event::Read, "scan", Outcome::Failed)
        .ranges(&[range])
        .reason("closed\u{202e}\n");
    bench.audit.put(scan);
    bench.write();
    let lines = bench.today();
    assert_eq!(
        lines[0],
        serde_json::json!({
            "time": "2026-11-30T12:00:00.000Z", "event": "write", "operation": "commit", "outcome": "allowed",
            "principal": "user:ann", "by": "gateway", "address": "192.0.2.7:4711",
            "session": hex::encode(&ring::digest::digest(&ring::digest::SHA256, &[7; 16]).as_ref()[..8]),
            "keyspace": "model",
            "changes": ["put a\\x7f", "remove b", "signal c", "put_stamped d/"], "total": 4, "revision": 42,
        })
    );
    assert_eq!(
        lines[1],
        serde_json::json!({
            "time": "2026-11-30T12:00:00.000Z", "event": "read", "operation": "scan", "outcome": "failed",
            "from": "p/", "to": "p0", "reason": "closed\\u{202e}\\n",
        })
    );
}

#[test]
fn a_refused_record_of_system_is_told_as_it_was_answered_but_for_what_it_says() {
    let told = |event, text: &str| {
        let error = StorageError::invalid(text);
        let record = Record::new(event, "commit", Outcome::Allowed).error(&error);
        let line: Value = serde_json::from_slice(&record.line()).unwrap();
        line["reason"].as_str().unwrap().to_owned()
    };
    let locked_out = "let a rule give \"admin\" of the keyspace \"system\" to somebody";
    assert!(told(Event::Admin, locked_out).ends_with(locked_out));
    assert_eq!(told(Event::Write, locked_out), "not valid");
    let secret = format!("`{SECRET}`");
    for (text, expected) in [
        (
            format!("key \"users/x\": unknown field {secret}"),
            "key \"users/x\": unknown field",
        ),
        (
            format!("key \"a\\\": \"… (300 bytes): type \"{SECRET}\""),
            "key \"a\\\": \"… (300 bytes): type",
        ),
        (
            "key \"access/x\": EOF while parsing".to_owned(),
            "key \"access/x\": EOF while parsing",
        ),
        (format!("key \"never closed {SECRET}"), "not valid"),
    ] {
        let told = told(Event::Admin, &text);
        assert!(told.ends_with(expected) && !told.contains(SECRET), "{told}");
    }
}

#[test]
fn a_record_is_bounded_whatever_a_peer_sends() {
    let long = vec![0xff; 4096];
    let mut batch = Batch::new();
    for number in 0..10_000_u32 {
        let key = [&number.to_be_bytes()[..], &long].concat();
        batch = batch.put_stamped(key, "", Lifetime::Forever);
    }
    let name = "\"".repeat(250);
    let ends = KeyRange {
        start: Key::from(long.clone()),
        end: Some(Key::from(long)),
    };
    let record = Record::new(Event::Write, "commit", Outcome::Failed)
        .by(&Identity::vouched(Principal::user(&name).unwrap()).at(who().address()))
        .claiming("password", Some(format!("user:{name}")))
        .keyspace(&Keyspace::new(&"k".repeat(63)).unwrap())
        .changes(&batch)
        .ranges(&[ends])
        .reason(&"\u{10ffff}".repeat(10_000));
    let line = record.line();
    assert!(line.len() <= RECORD_BYTES_MAX, "{}", line.len());
    let json: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(json["total"], 10_000);
    // Short ones are named up to their number, and with their length where they are cut.
    let keys: Vec<Key> = (0..100).map(|n| Key::from(format!("k{n}"))).collect();
    let line = read(b"").keys(keys.iter()).line();
    let json: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(json["keys"].as_array().unwrap().len(), KEYS_MAX);
    assert_eq!(json["total"], 100);
    let line = read(&[b'k'; KEY_BYTES_MAX + 1]).line();
    let json: Value = serde_json::from_slice(&line).unwrap();
    let shown = format!("{}… (257 bytes)", "k".repeat(KEY_BYTES_MAX));
    assert_eq!(json["keys"][0], shown);
}

#[test]
fn neither_values_nor_the_ids_of_sessions_are_in_a_record() {
    let id: [u8; 16] = SECRET.repeat(2).as_bytes()[..16].try_into().unwrap();
    let batch = Batch::new()
        .put("a", SECRET)
        .signal("b", SECRET)
        .put_stamped("c", SECRET, Lifetime::Forever);
    let record = Record::new(Event::Write, "commit", Outcome::Allowed)
        .session(SessionHash::of(SessionId(id)))
        .changes(&batch);
    let text = String::from_utf8(record.line()).unwrap();
    assert!(
        !text.contains(SECRET) && !text.contains(&hex::encode(id)),
        "{text}"
    );
    assert!(!text.contains(&hex::encode(SECRET)), "{text}");
    // What is no rule is quoted to who sent it, and to nobody else.
    let error = StorageError::invalid(format!("key \"access/x\": unknown field `{SECRET}`"));
    let record = Record::new(Event::Admin, "commit", Outcome::Allowed).error(&error);
    let text = String::from_utf8(record.line()).unwrap();
    assert!(text.contains("failed") && !text.contains(SECRET), "{text}");
}

#[test]
fn a_day_has_its_file_and_those_that_are_too_old_are_removed() {
    let mut bench = Bench::new(AuditConfig {
        events: everything(),
        days: 3,
        ..AuditConfig::default()
    });
    let other = bench.folder.path().join("audit/audit-notes.jsonl");
    std::fs::write(&other, "kept").unwrap();
    for number in 0..4 {
        bench.audit.put(read(format!("day {number}").as_bytes()));
        bench.end_second();
        bench.hands.go(DAY);
    }
    assert!(!bench.path("2026-11-30").exists());
    for (day, key) in [
        ("2026-12-01", "day 1"),
        ("2026-12-02", "day 2"),
        ("2026-12-03", "day 3"),
    ] {
        let lines = bench.lines(day);
        assert_eq!((lines.len(), &lines[0]["keys"][0]), (1, &Value::from(key)));
    }
    // Without any record too.
    bench.end_second();
    assert!(!bench.path("2026-12-01").exists() && bench.path("2026-12-02").exists());
    assert!(other.exists(), "what is none of its files is left alone");
    // And at a start.
    let later = UNIX_EPOCH + Duration::from_secs(NOON + 30 * DAY);
    let folder = bench.folder.path().join("audit");
    Files::prepare(folder, 3, 1 << 20, later).unwrap();
    assert!(!bench.path("2026-12-03").exists());
}

#[test]
fn files_are_for_their_owner_alone() {
    let mut bench = Bench::of_everything();
    bench.audit.put(read(b"a"));
    bench.write();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.folder.path().join("audit")), 0o700);
    assert_eq!(mode(&bench.path("2026-11-30")), 0o600);
}

#[test]
fn a_day_is_bounded_and_what_is_worth_more_has_more_of_it() {
    let mut bench = Bench::new(AuditConfig {
        events: everything(),
        day_bytes_max: 1 << 20,
        ..AuditConfig::default()
    });
    let size = |bench: &Bench| bench.text("2026-11-30").len();
    let told = |bench: &Bench, what: &str| {
        let lines = bench.today();
        let bounds = lines.iter().filter(|line| line["operation"] == "bound");
        bounds
            .filter(|line| line["reason"].as_str().unwrap().contains(what))
            .count()
    };
    for number in 0..10_000 {
        bench.audit.put(read(format!("{number}").as_bytes()));
        bench.write();
    }
    let reads = size(&bench);
    assert!((700 << 10..=769 << 10).contains(&reads), "{reads}");
    let left_out = bench.dropped(Dropped::Bound);
    assert!(left_out > 0);
    assert_eq!(told(&bench, "reads, writes"), 1);
    // Denials have the rest, each second some.
    for number in 0..10_000 {
        bench.audit.put(denial(&format!("{number}")));
        if number % WRITTEN_MAX == 0 {
            bench.end_second();
        }
    }
    bench.end_second();
    let denials = size(&bench);
    assert!((1000 << 10..=1025 << 10).contains(&denials), "{denials}");
    assert_eq!(told(&bench, "denials"), 1);
    let dropped = bench.dropped(Dropped::Bound);
    assert!(dropped > left_out);
    // And administrative acts are written all the same.
    let act = Record::new(Event::Admin, "rotate keys", Outcome::Allowed);
    bench.audit.put(act);
    bench.write();
    assert_eq!(bench.today().last().unwrap()["event"], "admin");
    assert_eq!(bench.dropped(Dropped::Bound), dropped);
    // The next day begins anew.
    bench.hands.go(DAY);
    bench.audit.put(read(b"tomorrow"));
    bench.write();
    assert_eq!(bench.lines("2026-12-01").len(), 1);
    // A start counts what is there.
    let now = (bench.hands.clock())() - Duration::from_secs(DAY);
    let folder = bench.folder.path().join("audit");
    let mut again = Files::prepare(folder, 30, 1 << 20, now).unwrap();
    again.open(now).unwrap();
    assert!(!again.has_room(Level::Ordinary, 100));
    assert!(again.has_room(Level::Admin, 100));
}

#[test]
fn a_flood_of_denials_is_counted_and_hides_nothing_of_others() {
    let mut bench = Bench::of_everything();
    let count = |lines: &[Value]| -> u64 {
        lines
            .iter()
            .map(|line| line["repeated"].as_u64().unwrap_or(1))
            .sum()
    };
    // The same again and again.
    for _ in 0..1000 {
        bench.audit.put(denial("a"));
    }
    bench.end_second();
    let lines = bench.today();
    assert_eq!((lines.len(), count(&lines)), (2, 1000));
    assert_eq!(lines[1]["repeated"], 999);
    assert_eq!(lines[1]["keys"][0], "a");
    // Different ones.
    for number in 0..1000 {
        bench.audit.put(denial(&format!("{number}")));
    }
    let bob = Identity::vouched(Principal::user("bob").unwrap());
    let other = Record::new(Event::Denied, "get", Outcome::Denied).by(&bob);
    bench.audit.put(other);
    bench.end_second();
    let lines = &bench.today()[2..];
    assert_eq!(lines.len(), WRITTEN_MAX + 2);
    assert_eq!(count(lines), 1001);
    assert_eq!(lines[WRITTEN_MAX]["principal"], "user:bob");
    // Of certificates with a new name each, which whoever makes them chooses.
    let before = bench.today().len();
    for number in 0..1000 {
        let record = Record::new(Event::Denied, "log_in", Outcome::Denied);
        let claimed = Some(format!("cert:{number}"));
        let record = record.claiming("certificate", claimed).serial("01");
        bench.audit.put(record.address(([10, 0, 0, 1], 1).into()));
    }
    bench.end_second();
    let lines = &bench.today()[before..];
    assert_eq!((lines.len(), count(lines)), (WRITTEN_MAX + 1, 1000));
    assert_eq!(lines[0]["claimed"], "cert:0");
    // Those of ever new addresses.
    let before = bench.today().len();
    for number in 0..2 * u16::try_from(GROUPS_MAX).unwrap() {
        let [high, low] = number.to_be_bytes();
        let address = SocketAddr::from(([10, 0, high, low], 1));
        let record = Record::new(Event::Denied, "log_in", Outcome::Denied);
        bench
            .audit
            .put(record.address(address).reason("the token was revoked"));
    }
    bench.end_second();
    let lines = &bench.today()[before..];
    assert_eq!(count(lines), 2 * GROUPS_MAX as u64);
    assert!(
        lines.len() <= GROUPS_MAX + WRITTEN_MAX + 1,
        "{}",
        lines.len()
    );
    // Nothing is left over.
    let before = bench.today().len();
    bench.end_second();
    assert_eq!(bench.today().len(), before);
}

#[test]
fn nobody_waits_for_a_writer_that_stands_still_and_what_is_missing_is_told() {
    let mut bench = Bench::of_everything();
    let line = read(&[b'k'; 200]).at(UNIX_EPOCH).line().len();
    let fitting = QUEUE_BYTES_MAX / 2 / line;
    for _ in 0..fitting + 10 {
        bench.audit.put(read(&[b'k'; 200]));
    }
    assert_eq!(bench.dropped(Dropped::Queue), 10);
    // There is room for a denial yet.
    bench.audit.put(denial("a"));
    assert_eq!(bench.dropped(Dropped::Queue), 10);
    bench.end_second();
    let lines = bench.today();
    assert_eq!(lines.len(), fitting + 2);
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["operation"], &last["repeated"]),
        (&"lost".into(), &10.into())
    );
    bench.end_second();
    assert_eq!(bench.today().len(), fitting + 2, "it is told once");
}

#[test]
fn a_line_that_a_crash_has_cut_does_not_spoil_the_next_one() {
    let mut bench = Bench::of_everything();
    std::fs::write(bench.path("2026-11-30"), "{\"time\":\"2026-").unwrap();
    bench.audit.put(read(b"a"));
    bench.write();
    let text = bench.text("2026-11-30");
    let last = text.lines().last().unwrap();
    let json: Value = serde_json::from_str(last).unwrap();
    assert_eq!(json["keys"][0], "a");
}

#[test]
fn a_disk_that_fails_stops_nobody_and_what_is_missing_is_told() {
    let mut bench = Bench::of_everything();
    // A folder in the place of the file: it cannot be opened.
    std::fs::create_dir(bench.path("2026-11-30")).unwrap();
    bench.audit.put(read(b"a"));
    bench.end_second();
    assert_eq!(bench.dropped(Dropped::Disk), 1);
    assert!(bench.audit.core.write_errors.get() > 0);
    std::fs::remove_dir(bench.path("2026-11-30")).unwrap();
    bench.audit.put(read(b"b"));
    bench.end_second();
    bench.end_second();
    let lines = bench.today();
    assert_eq!(lines[0]["keys"][0], "b");
    assert!(
        lines.iter().any(|line| line["operation"] == "lost"),
        "{lines:?}"
    );
}

#[test]
fn a_file_that_is_taken_away_is_made_anew() {
    let mut bench = Bench::of_everything();
    bench.audit.put(read(b"a"));
    bench.end_second();
    let archived = bench.folder.path().join("archived");
    std::fs::rename(bench.path("2026-11-30"), archived).unwrap();
    bench.end_second();
    bench.audit.put(read(b"b"));
    bench.end_second();
    let lines = bench.today();
    assert_eq!((lines.len(), &lines[0]["keys"][0]), (1, &"b".into()));
}

/// One with its own thread.
fn running(events: Vec<AuditEvent>) -> (Arc<Audit>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = AuditConfig {
        events,
        ..AuditConfig::default()
    };
    let place = folder.path().join("audit");
    let audit = Audit::start_with(&config, place, Hands::at(NOON).clock()).unwrap();
    (audit, folder)
}

fn written(folder: &tempfile::TempDir) -> Vec<Value> {
    let path = folder.path().join("audit/audit-2026-11-30.jsonl");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn an_administrative_act_is_in_the_file_before_it_is_answered() {
    let (audit, folder) = running(vec![AuditEvent::Admin]);
    for number in 1..=100_u64 {
        let record = Record::new(Event::Admin, "commit", Outcome::Allowed);
        audit
            .administrative(record.revision(Revision(number)))
            .await;
        assert_eq!(written(&folder).last().unwrap()["revision"], number);
    }
    audit.reloaded("certificates", Err("no such file")).await;
    let last = written(&folder).pop().unwrap();
    assert_eq!(
        (&last["operation"], &last["outcome"]),
        (&"reload".into(), &"failed".into())
    );
    assert_eq!(last["reason"], "certificates: no such file");
}

#[tokio::test]
async fn more_acts_than_there_are_places_wait_and_none_is_lost() {
    let (audit, folder) = running(vec![AuditEvent::Admin]);
    let acts = (0..10 * ADMIN_LEN_MAX as u64).map(|number| {
        let record = Record::new(Event::Admin, "commit", Outcome::Allowed);
        audit.administrative(record.revision(Revision(number)))
    });
    futures_util::future::join_all(acts).await;
    let mut revisions: Vec<_> = written(&folder)
        .iter()
        .map(|line| line["revision"].as_u64().unwrap())
        .collect();
    revisions.sort_unstable();
    assert_eq!(
        revisions,
        (0..10 * ADMIN_LEN_MAX as u64).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn what_is_off_is_not_written_and_an_end_writes_the_rest() {
    let (audit, folder) = running(vec![AuditEvent::Denied]);
    audit.put(read(b"a"));
    audit
        .administrative(Record::new(Event::Admin, "commit", Outcome::Allowed))
        .await;
    assert!(audit.begin(Event::Write, || read(b"a")).is_none());
    for _ in 0..3 {
        audit.put(denial("a"));
    }
    audit.close();
    let lines = written(&folder);
    let repeated: Vec<_> = lines.iter().map(|line| line["repeated"].as_u64()).collect();
    assert_eq!(repeated, [None, Some(2)]);
    audit.put(denial("late"));
    assert_eq!(written(&folder).len(), 2);
}

#[tokio::test]
async fn what_nobody_waited_for_is_written_as_unknown() {
    let (audit, folder) = running(vec![AuditEvent::Admin]);
    let record = || Record::new(Event::Admin, "commit", Outcome::Allowed);
    drop(audit.begin(Event::Admin, record));
    let noted = audit.begin(Event::Admin, record);
    let refused = Err(StorageError::Cancelled);
    committed(noted, &refused).await;
    let lines = written(&folder);
    let outcomes: Vec<_> = lines.iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["unknown", "failed"]);
    assert_eq!(lines[1]["reason"], "cancelled");
}

#[test]
fn nothing_is_made_where_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let config = AuditConfig {
        events: Vec::new(),
        ..AuditConfig::default()
    };
    let audit = Audit::start(&config, folder.path()).unwrap();
    audit.put(denial("a"));
    audit.close();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

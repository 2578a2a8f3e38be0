//! Log files: one of the gateway for each day, `ServerLogs/2026-11-30.txt`, and one for each robot
//! ([`client_logs`](super::client_logs)).
//!
//! A thread of its own writes them. What it cannot write in time is dropped and counted, and so is what a robot says beyond its
//! rate. A file that has reached its bound is renamed to `NAME.1`, in place of the one before.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use storage_protocol::UnixMillis;
use storage_schedule::Zone;

use super::client_logs::{self, ClientLogs};
use crate::config::RobotsConfig;

/// Lines that wait to be written, and their bytes.
const LINES_MAX: usize = 4_096;
const WAITING_BYTES_MAX: usize = 8 << 20;
/// What a robot may have written to its log in a second, and at once, in bytes.
const ROBOT_BYTES_PER_SECOND: usize = 64 << 10;
const ROBOT_BYTES_AT_ONCE: usize = 1 << 20;
/// So many robots are remembered at least that have said something lately.
const TALKERS: usize = 1_024;
/// The longest line of the daily log, and the longest entry of a robot's, in bytes.
const LINE_BYTES_MAX: usize = 2 << 10;
const ENTRY_BYTES_MAX: usize = super::frame::FRAME_BYTES_MAX + (4 << 10);
/// What is shown of a robot's log.
const SHOWN_BYTES_MAX: u64 = 64 << 10;
/// The longest name of a file, in bytes.
const NAME_BYTES_MAX: usize = 200;

const DAY: Duration = Duration::from_secs(24 * 3600);

enum Line {
    Server {
        at: UnixMillis,
        text: String,
    },
    Client {
        robot: u64,
        name: String,
        text: String,
    },
}

impl Line {
    fn bytes(&self) -> usize {
        match self {
            Self::Server { text, .. } | Self::Client { text, .. } => text.len(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Logs {
    lines: SyncSender<Line>,
    waiting_bytes: Arc<AtomicUsize>,
    talkers: Mutex<Talkers>,
    dropped: Counter,
    folder: PathBuf,
}

/// What a robot has said.
#[derive(Debug)]
pub(super) struct Said<'a> {
    pub(super) number: u64,
    pub(super) robot: &'a str,
    pub(super) socket: &'a str,
    pub(super) message: &'a str,
    pub(super) at: String,
}

impl Logs {
    /// Starts the thread, which ends with this.
    pub(super) fn start(config: &RobotsConfig, data: &Path, zone: Zone, dropped: Counter) -> Self {
        let folder = config.logs.clone().unwrap_or_else(|| data.join("robots"));
        let (lines, taken) = sync_channel(LINES_MAX);
        let mut files = Files {
            folder: folder.clone(),
            zone,
            days: config.log_days,
            bytes_max: config.log_bytes_max,
            clients: ClientLogs::new(&folder, config.log_bytes_max, config.robot_logs_bytes_max),
            today: String::new(),
            failed: false,
        };
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let waiting = waiting_bytes.clone();
        let thread = std::thread::Builder::new().name("robots-log".to_owned());
        if let Err(error) = thread.spawn(move || files.run(&taken, &waiting)) {
            tracing::error!(%error, "the logs of robots are not written");
        }
        Self {
            lines,
            waiting_bytes,
            talkers: Mutex::default(),
            dropped,
            folder,
        }
    }

    fn put(&self, line: Line) {
        let bytes = line.bytes();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes > WAITING_BYTES_MAX || self.lines.try_send(line).is_err() {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.dropped.inc();
        }
    }

    /// A line of the daily log.
    pub(super) fn server(&self, at: UnixMillis, text: impl Into<String>) {
        let text = text.into();
        self.put(Line::Server { at, text });
    }

    /// An entry of a robot's log.
    pub(super) fn client(&self, said: &Said<'_>) {
        let text = format!(
            "[Machine-name]: {}\n[Machine Connected from socket-id]: {}\n[Message-Content]: {}\n[Message Received Date]: {}\n\n",
            one_line(said.robot),
            said.socket,
            one_line(said.message),
            said.at
        );
        let mut talkers = self.talkers.lock().unwrap_or_else(PoisonError::into_inner);
        let may_talk = talkers.take(said.number, text.len(), Instant::now());
        drop(talkers);
        if !may_talk {
            self.dropped.inc();
            return;
        }
        self.put(Line::Client {
            robot: said.number,
            name: said.robot.to_owned(),
            text,
        });
    }

    /// The end of a robot's log. Blocks.
    pub(super) fn of_robot(&self, robot: u64) -> io::Result<String> {
        let path = self.folder.join(client_logs::LOGS).join(robot.to_string());
        let mut file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error),
        };
        let from = file.metadata()?.len().saturating_sub(SHOWN_BYTES_MAX);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(SHOWN_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

const SERVER: &str = "ServerLogs";

/// What robots may still have written, by their numbers. Those that have said nothing for a while are forgotten.
#[derive(Debug, Default)]
struct Talkers {
    left: HashMap<u64, (usize, Instant)>,
    /// With so many it is looked for those that can be forgotten.
    look_at: usize,
}

impl Talkers {
    /// Whether the robot may say so many bytes now.
    fn take(&mut self, robot: u64, bytes: usize, now: Instant) -> bool {
        let refilled = |left: usize, then: Instant| {
            let millis = now.saturating_duration_since(then).as_millis();
            let millis = usize::try_from(millis).unwrap_or(usize::MAX);
            let more = millis.saturating_mul(ROBOT_BYTES_PER_SECOND) / 1_000;
            left.saturating_add(more).min(ROBOT_BYTES_AT_ONCE)
        };
        if self.left.len() >= self.look_at.max(TALKERS) {
            self.left
                .retain(|_, (left, then)| refilled(*left, *then) < ROBOT_BYTES_AT_ONCE);
            self.look_at = 2 * self.left.len();
        }
        let (left, then) = self.left.entry(robot).or_insert((ROBOT_BYTES_AT_ONCE, now));
        let has = refilled(*left, *then);
        match has.checked_sub(bytes) {
            Some(rest) => {
                (*left, *then) = (rest, now);
                true
            }
            None => false,
        }
    }
}

/// The name of a file for a robot: whatever the robot is called, it is a file of its folder.
pub(super) fn file_name(robot: &str) -> String {
    let mut name = super::keys::encoded(robot);
    if name.starts_with('.') {
        name.replace_range(..1, "%2E");
    }
    // Escapes are ASCII, so any place is one between characters.
    name.truncate(NAME_BYTES_MAX);
    name
}

/// Without line ends and other control characters, which could make lines of their own.
fn one_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect()
}

struct Files {
    folder: PathBuf,
    zone: Zone,
    days: usize,
    bytes_max: u64,
    clients: ClientLogs,
    /// The day of the last line.
    today: String,
    /// The last line could not be written, and that was told.
    failed: bool,
}

impl Files {
    fn run(&mut self, lines: &Receiver<Line>, waiting_bytes: &AtomicUsize) {
        while let Ok(line) = lines.recv() {
            waiting_bytes.fetch_sub(line.bytes(), Ordering::Relaxed);
            match self.write(line) {
                Ok(()) => self.failed = false,
                Err(error) if !self.failed => {
                    self.failed = true;
                    let folder = self.folder.display();
                    tracing::error!(%error, %folder, "cannot write the logs of robots");
                }
                Err(_) => {}
            }
        }
    }

    fn write(&mut self, line: Line) -> io::Result<()> {
        match line {
            Line::Server { at, text } => {
                let folder = made(&self.folder, SERVER)?;
                let day = self.zone.day(at);
                if day != self.today {
                    self.today.clone_from(&day);
                    self.remove_old(&folder, at)?;
                }
                let text = one_line(&text);
                let end = text.floor_char_boundary(LINE_BYTES_MAX);
                let line = format!("[{}] {}\n", self.zone.text(at), &text[..end]);
                append(&folder.join(format!("{day}.txt")), &line, self.bytes_max)
            }
            Line::Client { robot, name, text } => {
                let end = text.floor_char_boundary(ENTRY_BYTES_MAX);
                self.clients.write(robot, &name, &text[..end])
            }
        }
    }

    fn remove_old(&self, folder: &Path, now: UnixMillis) -> io::Result<()> {
        let kept = DAY.saturating_mul(u32::try_from(self.days - 1).unwrap_or(u32::MAX));
        let kept = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
        let oldest = self.zone.day(UnixMillis(now.0.saturating_sub(kept)));
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let day = name.to_str().and_then(|name| name.split_once(".txt"));
            let is_old = day.is_some_and(|(day, _)| is_day(day) && day < oldest.as_str());
            if is_old {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// A folder of the logs, which is there then.
pub(super) fn made(logs: &Path, name: &str) -> io::Result<PathBuf> {
    let folder = logs.join(name);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)?;
    Ok(folder)
}

/// Where a file goes when it has reached its bound.
pub(super) fn before(path: &Path) -> PathBuf {
    let mut before = path.as_os_str().to_owned();
    before.push(".1");
    before.into()
}

pub(super) fn append(path: &Path, text: &str, bytes_max: u64) -> io::Result<()> {
    let held = fs::metadata(path).map_or(0, |metadata| metadata.len());
    if held > 0 && held + text.len() as u64 > bytes_max {
        fs::rename(path, before(path))?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

fn is_day(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(place, byte)| match place {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_robot_has_a_file_of_its_folder_whatever_it_is_called() {
        for (robot, expected) in [
            ("LAB-PC-3", "LAB-PC-3"),
            ("../../x", "%2E.%2F..%2Fx"),
            ("..", "%2E."),
            (".", "%2E"),
            ("/etc/passwd", "%2Fetc%2Fpasswd"),
            ("a\0b", "a%00b"),
        ] {
            assert_eq!(file_name(robot), expected);
        }
        assert_eq!(file_name(&"ä".repeat(100)).len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_robot_that_says_too_much_is_not_written_and_others_are() {
        let (mut talkers, now) = (Talkers::default(), Instant::now());
        assert!(talkers.take(1, ROBOT_BYTES_AT_ONCE, now));
        assert!(!talkers.take(1, 1, now));
        assert!(talkers.take(2, 1, now));
        let later = now + Duration::from_secs(2);
        assert!(talkers.take(1, 2 * ROBOT_BYTES_PER_SECOND, later));
        assert!(!talkers.take(1, 1, later));
        for robot in 0..3 * TALKERS as u64 {
            let then = later + Duration::from_secs(60 * robot);
            assert!(talkers.take(robot, 1, then));
            assert!(talkers.left.len() <= TALKERS);
        }
    }

    #[test]
    fn files_are_bounded_and_days_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files {
            folder: folder.path().to_owned(),
            zone: Zone::UTC,
            days: 2,
            bytes_max: 100,
            clients: ClientLogs::new(folder.path(), 100, 100),
            today: String::new(),
            failed: false,
        };
        let day = 24 * 3_600_000;
        let names = || {
            let entries = fs::read_dir(folder.path().join(SERVER)).unwrap();
            let mut names: Vec<_> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        for n in 0..3 {
            let at = UnixMillis(day + n);
            files
                .write(Line::Server {
                    at,
                    text: format!("line {n}\nforged"),
                })
                .unwrap();
        }
        assert_eq!(names(), ["1970-01-02.txt", "1970-01-02.txt.1"]);
        let text = fs::read_to_string(folder.path().join(SERVER).join("1970-01-02.txt.1")).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.starts_with("[1970-01-02 00:00:00] line 0 forged\n"),
            "{text}"
        );
        files
            .write(Line::Server {
                at: UnixMillis(2 * day),
                text: "x".into(),
            })
            .unwrap();
        files
            .write(Line::Server {
                at: UnixMillis(3 * day),
                text: "x".into(),
            })
            .unwrap();
        assert_eq!(names(), ["1970-01-03.txt", "1970-01-04.txt"]);
    }
}

//! Log files: one of the gateway for each day, `ServerLogs/2026-11-30.txt`, and one for each robot, `ClientLogs/NAME`.
//!
//! A thread of its own writes them. What it cannot write in time is dropped and counted. A file that has reached its bound is
//! renamed to `NAME.1`, in place of the one before.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use storage_protocol::UnixMillis;
use storage_schedule::Zone;

use crate::config::RobotsConfig;

/// Lines that wait to be written.
const LINES_MAX: usize = 4_096;
/// The longest line of the daily log, and the longest entry of a robot's, in bytes.
const LINE_BYTES_MAX: usize = 2 << 10;
const ENTRY_BYTES_MAX: usize = super::frame::FRAME_BYTES_MAX + (4 << 10);
/// What is shown of a robot's log.
const SHOWN_BYTES_MAX: u64 = 64 << 10;
/// The longest name of a file, in bytes.
const NAME_BYTES_MAX: usize = 200;

const DAY: Duration = Duration::from_secs(24 * 3600);

enum Line {
    Server { at: UnixMillis, text: String },
    Client { robot: String, text: String },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Logs {
    lines: SyncSender<Line>,
    dropped: Counter,
    folder: PathBuf,
}

/// What a robot has said.
#[derive(Debug)]
pub(super) struct Said<'a> {
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
            today: String::new(),
            failed: false,
        };
        let thread = std::thread::Builder::new().name("robots-log".to_owned());
        if let Err(error) = thread.spawn(move || files.run(&taken)) {
            tracing::error!(%error, "the logs of robots are not written");
        }
        Self {
            lines,
            dropped,
            folder,
        }
    }

    fn put(&self, line: Line) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.lines.try_send(line)
        {
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
        let robot = said.robot.to_owned();
        self.put(Line::Client { robot, text });
    }

    /// The end of a robot's log. Blocks.
    pub(super) fn of_robot(&self, robot: &str) -> io::Result<String> {
        let path = self.folder.join(CLIENTS).join(file_name(robot));
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
const CLIENTS: &str = "ClientLogs";

/// The name of a robot's file: whatever the robot is called, it is a file of its folder.
fn file_name(robot: &str) -> String {
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
    /// The day of the last line.
    today: String,
    /// The last line could not be written, and that was told.
    failed: bool,
}

impl Files {
    fn run(&mut self, lines: &Receiver<Line>) {
        while let Ok(line) = lines.recv() {
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
                let folder = self.made(SERVER)?;
                let day = self.zone.day(at);
                if day != self.today {
                    self.today.clone_from(&day);
                    self.remove_old(&folder, at)?;
                }
                let text = one_line(&text);
                let end = text.floor_char_boundary(LINE_BYTES_MAX);
                let line = format!("[{}] {}\n", self.zone.text(at), &text[..end]);
                self.append(&folder.join(format!("{day}.txt")), &line)
            }
            Line::Client { robot, text } => {
                let folder = self.made(CLIENTS)?;
                let end = text.floor_char_boundary(ENTRY_BYTES_MAX);
                self.append(&folder.join(file_name(&robot)), &text[..end])
            }
        }
    }

    fn made(&self, name: &str) -> io::Result<PathBuf> {
        let folder = self.folder.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        Ok(folder)
    }

    fn append(&self, path: &Path, text: &str) -> io::Result<()> {
        let held = fs::metadata(path).map_or(0, |metadata| metadata.len());
        if held > 0 && held + text.len() as u64 > self.bytes_max {
            let mut before = path.as_os_str().to_owned();
            before.push(".1");
            fs::rename(path, before)?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(text.as_bytes())
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
    fn files_are_bounded_and_days_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files {
            folder: folder.path().to_owned(),
            zone: Zone::UTC,
            days: 2,
            bytes_max: 100,
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

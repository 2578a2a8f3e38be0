//! The logs of robots: `RobotLogs/NUMBER` for each robot, by its number, and `ClientLogs/NAME` as a link to that of the first robot
//! of this name, for those who look for it by the name. So robots of one name, which may belong to different principals, have
//! logs of their own.
//!
//! All of them together are bounded: the log that was written longest ago goes. So are the links: a robot has one at most.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::logs::{append, before, file_name, made};

/// Where the logs are, and the links.
pub(super) const LOGS: &str = "RobotLogs";
const LINKS: &str = "ClientLogs";
/// What a file takes of the disk at least, in bytes: it is counted in these.
const BLOCK: u64 = 4 << 10;

/// See the module. It belongs to the thread that writes.
#[derive(Debug)]
pub(super) struct ClientLogs {
    folder: PathBuf,
    /// Bytes of a file, and of all.
    bytes_max: u64,
    all_bytes_max: u64,
    /// What is there; `None`: nobody has looked yet.
    index: Option<Index>,
}

#[derive(Debug, Default)]
struct Index {
    logs: HashMap<u64, Log>,
    /// The numbers of robots, by when their log was written last.
    order: BTreeMap<u64, u64>,
    /// Writes so far.
    writes: u64,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Log {
    bytes: u64,
    written: u64,
    /// The name that it has a link for, or that was another robot's when it was to have one.
    name: Option<String>,
}

impl ClientLogs {
    pub(super) fn new(folder: &Path, bytes_max: u64, all_bytes_max: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            bytes_max,
            all_bytes_max,
            index: None,
        }
    }

    fn log(&self, number: u64) -> PathBuf {
        self.folder.join(LOGS).join(number.to_string())
    }

    pub(super) fn write(&mut self, number: u64, name: &str, text: &str) -> io::Result<()> {
        made(&self.folder, LOGS)?;
        made(&self.folder, LINKS)?;
        let mut index = match self.index.take() {
            Some(index) => index,
            None => self.look()?,
        };
        let path = self.log(number);
        let done =
            append(&path, text, self.bytes_max).and_then(|()| self.name(&mut index, number, name));
        index.note(number, size(&path) + size(&before(&path)));
        let room = self.make_room(&mut index, number);
        self.index = Some(index);
        done.and(room)
    }

    /// What was there before this server.
    fn look(&self) -> io::Result<Index> {
        let mut found: BTreeMap<(SystemTime, u64), u64> = BTreeMap::new();
        for entry in fs::read_dir(self.folder.join(LOGS))? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
            let Some(number) = number else {
                continue;
            };
            let path = self.log(number);
            let written = entry.metadata()?.modified()?;
            found.insert((written, number), size(&path) + size(&before(&path)));
        }
        let mut index = Index::default();
        for ((_, number), bytes) in found {
            index.note(number, bytes);
        }
        for entry in fs::read_dir(self.folder.join(LINKS))? {
            let path = entry?.path();
            let Some(number) = linked(&path) else {
                continue;
            };
            let name = path.file_name().and_then(|name| name.to_str());
            match (index.logs.get_mut(&number), name) {
                (Some(log), Some(name)) if log.name.is_none() => log.name = Some(name.to_owned()),
                // Of a log that is gone.
                _ => fs::remove_file(&path)?,
            }
        }
        Ok(index)
    }

    /// The robot has this name from now on.
    fn name(&self, index: &mut Index, number: u64, name: &str) -> io::Result<()> {
        let name = file_name(name);
        let log = index.logs.entry(number).or_default();
        if log.name.as_ref() == Some(&name) {
            return Ok(());
        }
        if let Some(old) = log.name.replace(name.clone()) {
            self.unlink(&old, number)?;
        }
        let link = self.folder.join(LINKS).join(name);
        match symlink(Path::new("..").join(LOGS).join(number.to_string()), link) {
            // It is the first one's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    fn unlink(&self, file_name: &str, number: u64) -> io::Result<()> {
        let link = self.folder.join(LINKS).join(file_name);
        match linked(&link) == Some(number) {
            true => fs::remove_file(link),
            false => Ok(()),
        }
    }

    /// Removes the oldest logs but this one, until there is room.
    fn make_room(&self, index: &mut Index, but: u64) -> io::Result<()> {
        while index.bytes > self.all_bytes_max {
            let Some(oldest) = index.order.values().copied().find(|number| *number != but) else {
                return Ok(());
            };
            let path = self.log(oldest);
            for path in [before(&path), path] {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            if let Some(name) = index.forget(oldest) {
                self.unlink(&name, oldest)?;
            }
        }
        Ok(())
    }
}

impl Index {
    /// The log was written, and has so many bytes now.
    fn note(&mut self, number: u64, bytes: u64) {
        self.writes += 1;
        let log = self.logs.entry(number).or_default();
        self.order.remove(&log.written);
        self.order.insert(self.writes, number);
        self.bytes = self.bytes.saturating_sub(log.bytes).saturating_add(bytes);
        (log.written, log.bytes) = (self.writes, bytes);
    }

    /// The log is gone; the name it had.
    fn forget(&mut self, number: u64) -> Option<String> {
        let log = self.logs.remove(&number)?;
        self.order.remove(&log.written);
        self.bytes = self.bytes.saturating_sub(log.bytes);
        log.name
    }
}

/// Of the disk, in bytes; 0 for what is not there.
fn size(path: &Path) -> u64 {
    let length = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    length.div_ceil(BLOCK) * BLOCK
}

/// The robot whose log a link leads to.
fn linked(link: &Path) -> Option<u64> {
    let target = fs::read_link(link).ok()?;
    target.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn robots_of_one_name_have_logs_of_their_own_and_the_first_has_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let logs = || ClientLogs::new(folder.path(), 1 << 20, 1 << 30);
        let read = |path: &str| fs::read_to_string(folder.path().join(path)).unwrap();
        let mut first = logs();
        first.write(1, "LAB", "one\n").unwrap();
        first.write(2, "LAB", "two\n").unwrap();
        // Also when the server has started again.
        let mut again = logs();
        again.write(2, "LAB", "more\n").unwrap();
        assert_eq!(read("ClientLogs/LAB"), "one\n");
        assert_eq!(read("RobotLogs/2"), "two\nmore\n");
        // Another name: there is one link for a robot at any time.
        for n in 0..9 {
            again.write(1, &format!("N{n}"), "x").unwrap();
        }
        assert_eq!(names(&folder.path().join(LINKS)), ["N8"]);
        again.write(3, "LAB", "three\n").unwrap();
        assert_eq!(read("ClientLogs/LAB"), "three\n");
        again.write(4, "../../x", "x").unwrap();
        assert_eq!(names(folder.path()), [LINKS, LOGS]);
        assert!(folder.path().join("ClientLogs/%2E.%2F..%2Fx").exists());
    }

    #[test]
    fn all_logs_are_bounded_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let logs = || ClientLogs::new(folder.path(), 1 << 10, 3 * BLOCK);
        let mut first = logs();
        for number in 1..=3 {
            first.write(number, &format!("R{number}"), "x").unwrap();
        }
        first.write(1, "R1", "x").unwrap();
        first.write(4, "R4", "x").unwrap();
        assert_eq!(names(&folder.path().join(LOGS)), ["1", "3", "4"]);
        assert_eq!(names(&folder.path().join(LINKS)), ["R1", "R3", "R4"]);
        // The one before counts as well. What was there before a start is found.
        let mut again = logs();
        for _ in 0..5 {
            again.write(9, "R9", &"x".repeat(1_000)).unwrap();
        }
        let left = names(&folder.path().join(LOGS));
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(left.contains(&"9".to_owned()) && left.contains(&"9.1".to_owned()));
        assert_eq!(names(&folder.path().join(LINKS)).len(), 2);
    }
}

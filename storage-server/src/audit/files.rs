//! The files of the audit log: one for each day (UTC), `audit-2026-11-30.jsonl`, of mode 0600 in a folder of mode 0700.
//!
//! They are appended to and never changed. What is older than the days that are kept is removed. How much is written in a
//! day is bounded, so that whoever makes records cannot fill the disk; what is worth more may take more of it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Level;
use super::record::day;

const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// What administrative acts may take of a day beyond its bound, in bytes: about 100,000 of them.
pub(super) const ADMIN_BYTES: u64 = 64 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    /// How many days are kept, today included.
    days: u64,
    day_bytes_max: u64,
    today: Option<Today>,
}

/// The file of a day.
#[derive(Debug)]
struct Today {
    day: String,
    file: File,
    bytes: u64,
    /// Something was written that is not synced.
    dirty: bool,
}

impl Files {
    /// Makes the folder and removes what is too old.
    ///
    /// # Errors
    /// The folder cannot be made or written to.
    pub(super) fn prepare(
        folder: PathBuf,
        days: usize,
        day_bytes_max: u64,
        now: SystemTime,
    ) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::access(&folder, access)?;
        let files = Self {
            folder,
            days: days as u64,
            day_bytes_max,
            today: None,
        };
        files.remove_old(now)?;
        Ok(files)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens the file of this day, if it is not. True: another one was open.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(&mut self, now: SystemTime) -> io::Result<bool> {
        let day = day(now);
        if self.today.as_ref().is_some_and(|today| today.day == day) {
            return Ok(false);
        }
        if let Err(error) = self.sync() {
            tracing::error!(%error, "cannot sync the audit log of the day that ended");
        }
        self.today = None;
        let path = self.folder.join(format!("{PREFIX}{day}{SUFFIX}"));
        let is_new = !path.exists();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(&path)?;
        if is_new {
            // A file whose name is not on disk is gone after a power cut.
            File::open(&self.folder)?.sync_all()?;
        }
        let mut bytes = file.metadata()?.len();
        if bytes > 0 && !ends_a_line(&mut file)? {
            // A crash or a full disk has cut the last one: the next begins on a line of its own.
            file.write_all(b"\n")?;
            bytes += 1;
        }
        self.today = Some(Today {
            day,
            file,
            bytes,
            dirty: true,
        });
        Ok(true)
    }

    /// Whether so many bytes more of this level may be written today.
    pub(super) fn has_room(&self, level: Level, bytes: usize) -> bool {
        let max = match level {
            Level::Ordinary => self.day_bytes_max / 4 * 3,
            Level::Denial => self.day_bytes_max,
            Level::Admin => self.day_bytes_max.saturating_add(ADMIN_BYTES),
        };
        let written = self.today.as_ref().map_or(0, |today| today.bytes);
        written.saturating_add(bytes as u64) <= max
    }

    /// Writes whole lines into the file that is open.
    ///
    /// # Errors
    /// The system's; the file is closed then, and opened anew for the next lines.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let Some(today) = &mut self.today else {
            return Err(io::Error::other("no file is open"));
        };
        match today.file.write_all(lines) {
            Ok(()) => {
                today.bytes += lines.len() as u64;
                today.dirty = true;
                Ok(())
            }
            Err(error) => {
                self.today = None;
                Err(error)
            }
        }
    }

    /// What is written is on the disk at the return.
    ///
    /// # Errors
    /// The system's; then it is not known what is, and the file is opened anew.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        match &mut self.today {
            Some(today) if today.dirty => {
                let synced = today.file.sync_data();
                today.dirty = false;
                if synced.is_err() {
                    self.today = None;
                }
                synced
            }
            _ => Ok(()),
        }
    }

    /// Lets a file go that was moved to another folder or removed: the next record makes a new one.
    pub(super) fn let_go_of_what_is_gone(&mut self) {
        let path = |today: &Today| self.folder.join(format!("{PREFIX}{}{SUFFIX}", today.day));
        let is_there = |today: &Today| {
            let (ours, named) = (today.file.metadata(), fs::metadata(path(today)));
            matches!((ours, named), (Ok(ours), Ok(named)) if ours.ino() == named.ino() && ours.dev() == named.dev())
        };
        if self.today.as_ref().is_some_and(|today| !is_there(today)) {
            self.today = None;
        }
    }

    /// Removes the files of days that are not kept any more.
    ///
    /// # Errors
    /// The folder cannot be read, or one of the files not be removed.
    pub(super) fn remove_old(&self, now: SystemTime) -> io::Result<()> {
        let kept = DAY.saturating_mul(u32::try_from(self.days - 1).unwrap_or(u32::MAX));
        let oldest = day(now.checked_sub(kept).unwrap_or(UNIX_EPOCH));
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(of) = name.to_str().and_then(day_of) else {
                continue;
            };
            if of < oldest.as_str() {
                fs::remove_file(entry.path())?;
                tracing::info!(day = of, "removed the audit log of a day that is over");
            }
        }
        Ok(())
    }
}

/// The day that a file of this name is of; `None`: it is none of ours.
fn day_of(name: &str) -> Option<&str> {
    let day = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let is_shaped = day.len() == "2026-11-30".len()
        && day.bytes().enumerate().all(|(place, byte)| match place {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    is_shaped.then_some(day)
}

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

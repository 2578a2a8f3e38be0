//! What a power cut would leave of a process's files: a library to preload (`LD_PRELOAD`, Linux) that notes what is on
//! the disk for certain.
//!
//! It stands before libc's `fsync`, `fdatasync`, `rename`, `unlink` and `open`, and is idle unless `POWER_LOSS_FOLDER`
//! names a folder. Then it looks at the files below `FOLDER/data`, and appends a line to `FOLDER/log` for each fact:
//!
//! * `file DEVICE INODE LENGTH PATH`: so much of the file is on disk. The length was taken before the sync, and the line
//!   is written after it succeeded: never too much. A file that was opened to be overwritten has length 0.
//! * `folder PATH NAME=INODE...`: these names are on disk. Again listed before the folder's sync, written after it.
//!
//! The words are separated by tabs. What a removed or replaced file held is kept as `FOLDER/kept/INODE`, since its removal
//! may not be on disk yet. Cutting the files is the work of `storage-testkit` (`power`), after the process was killed: what
//! was written and not synced is still in the files then.
//!
//! A number N in `FOLDER/kill-at` kills the process right before the N-th such call from when the file is there, so that
//! any moment can be had, also those that last microseconds. `POWER_LOSS_LIES=SUFFIX` passes over the syncs of files whose names end so, as a disk does that
//! says "done" too early.
//!
//! Not seen: writes into what was synced before (RocksDB and the marks only ever append or replace), and changes by
//! `mmap`, `O_SYNC` or io_uring.
//!
//! Invariant: the process's own calls do what they would do without this; nothing here fails them.
//!
//! This is the one crate of the workspace with `unsafe`.

use std::ffi::{CStr, OsStr, c_char, c_int, c_long};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The notes of a process.
struct Notes {
    log: File,
    data: PathBuf,
    kept: PathBuf,
    lies: Option<String>,
    kill_at: PathBuf,
    /// Calls left until the process is killed; zero: no end is known.
    left: AtomicU64,
}

/// `None`: nothing is to be noted.
fn notes() -> Option<&'static Notes> {
    static NOTES: OnceLock<Option<Notes>> = OnceLock::new();
    NOTES.get_or_init(Notes::from_env).as_ref()
}

impl Notes {
    fn from_env() -> Option<Self> {
        let folder = PathBuf::from(std::env::var_os("POWER_LOSS_FOLDER")?);
        let log = OpenOptions::new().append(true).open(folder.join("log"));
        Some(Self {
            log: log.ok()?,
            data: folder.join("data"),
            kept: folder.join("kept"),
            lies: std::env::var("POWER_LOSS_LIES").ok(),
            kill_at: folder.join("kill-at"),
            left: AtomicU64::new(0),
        })
    }

    /// One write, so that the lines of several threads do not mix.
    fn write(&self, line: &str) {
        if (&self.log).write_all(line.as_bytes()).is_err() {
            // Without its line a sync counts as not done, which would accuse the process of a loss.
            std::process::abort();
        }
    }

    /// Counts a call about to be made; the last one is not made any more.
    fn count(&self) {
        if self.left.load(Ordering::SeqCst) == 0 {
            let number = fs::read_to_string(&self.kill_at);
            let number = number.ok().and_then(|text| text.trim().parse().ok());
            let Some(number @ 1..) = number else {
                return;
            };
            // Another thread may be here too; then its number is as good.
            let _ = self
                .left
                .compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst);
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            loop {
                // SAFETY: no memory is involved.
                unsafe { libc::raise(libc::SIGKILL) };
            }
        }
    }

    /// The line that a sync of this descriptor is worth just now, if it is one of the data's.
    fn look_at(&self, descriptor: c_int) -> Option<String> {
        let link = format!("/proc/self/fd/{descriptor}");
        let path = fs::read_link(&link).ok()?;
        if !path.starts_with(&self.data) {
            return None;
        }
        self.count();
        // Through the link: the open file, whatever has its name by now.
        let file = fs::metadata(&link).ok()?;
        if file.is_dir() {
            return self.list(&path);
        }
        if let Some(suffix) = &self.lies
            && path.as_os_str().as_bytes().ends_with(suffix.as_bytes())
        {
            return None;
        }
        Some(file_line(&file, file.len(), &path))
    }

    fn list(&self, folder: &Path) -> Option<String> {
        let mut line = format!("folder\t{}", folder.display());
        for entry in fs::read_dir(folder).ok()? {
            let entry = entry.ok()?;
            let name = entry.file_name();
            write!(line, "\t{}={}", name.to_string_lossy(), entry.ino()).ok()?;
        }
        line.push('\n');
        Some(line)
    }

    /// Keeps what this name stands for, which is about to go.
    fn keep(&self, path: &Path) {
        if let Some(file) = self.file_at(path) {
            // It may be kept already, under another of its names.
            let _ = fs::hard_link(path, self.kept.join(file.ino().to_string()));
        }
    }

    fn file_at(&self, path: &Path) -> Option<fs::Metadata> {
        if !path.starts_with(&self.data) {
            return None;
        }
        fs::symlink_metadata(path)
            .ok()
            .filter(fs::Metadata::is_file)
    }
}

fn file_line(file: &fs::Metadata, length: u64, path: &Path) -> String {
    let (device, inode) = (file.dev(), file.ino());
    format!("file\t{device}\t{inode}\t{length}\t{}\n", path.display())
}

/// The path that a caller of libc gave.
///
/// # Safety
/// As libc asks: null, or a string that ends with a zero byte and lives while this is used.
unsafe fn path_of<'a>(path: *const c_char) -> Option<&'a Path> {
    if path.is_null() {
        return None;
    }
    // SAFETY: not null, and a string as the caller says.
    let path = unsafe { CStr::from_ptr(path) };
    Some(Path::new(OsStr::from_bytes(path.to_bytes())))
}

/// What a system call answers: an `int` in all that are used here.
fn as_int(answer: c_long) -> c_int {
    c_int::try_from(answer).unwrap_or(-1)
}

fn sync(descriptor: c_int, call: c_long) -> c_int {
    let line = notes().and_then(|notes| Some((notes, notes.look_at(descriptor)?)));
    // SAFETY: both calls take a descriptor and touch no memory.
    let answer = as_int(unsafe { libc::syscall(call, descriptor) });
    if answer == 0
        && let Some((notes, line)) = line
    {
        notes.write(&line);
    }
    answer
}

/// libc's, noted.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(descriptor: c_int) -> c_int {
    sync(descriptor, libc::SYS_fsync)
}

/// libc's, noted.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    sync(descriptor, libc::SYS_fdatasync)
}

/// libc's; what it replaces is kept.
///
/// # Safety
/// As libc asks: two paths, each ending with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: a path, as libc asks of our caller.
    let path = unsafe { path_of(to) };
    if let (Some(notes), Some(path)) = (notes(), path)
        && path.starts_with(&notes.data)
    {
        notes.count();
        notes.keep(path);
    }
    let here = libc::AT_FDCWD;
    // SAFETY: two paths, as libc asks of our caller.
    as_int(unsafe { libc::syscall(libc::SYS_renameat2, here, from, here, to, 0) })
}

/// libc's; what it removes is kept.
///
/// # Safety
/// As libc asks: a path that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: a path, as libc asks of our caller.
    let name = unsafe { path_of(path) };
    if let (Some(notes), Some(name)) = (notes(), name)
        && name.starts_with(&notes.data)
    {
        notes.count();
        notes.keep(name);
    }
    // SAFETY: a path, as libc asks of our caller.
    as_int(unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) })
}

/// libc's; a file that it empties has nothing on disk from here.
///
/// # Safety
/// As libc asks: a path that ends with a zero byte. (`mode` is variadic there: it comes in the same register.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: a path, as libc asks of our caller.
    let emptied = unsafe { emptied(path, flags) };
    // SAFETY: a path, as libc asks of our caller.
    let answer =
        as_int(unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) });
    if answer >= 0
        && let Some((notes, line)) = emptied
    {
        notes.write(&line);
    }
    answer
}

/// libc's, as [`open`].
///
/// # Safety
/// As [`open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: the same conditions.
    unsafe { open(path, flags, mode) }
}

/// The line for a file that opening empties.
///
/// # Safety
/// As [`path_of`].
unsafe fn emptied(path: *const c_char, flags: c_int) -> Option<(&'static Notes, String)> {
    if flags & libc::O_TRUNC == 0 {
        return None;
    }
    let notes = notes()?;
    // SAFETY: as our caller says.
    let path = unsafe { path_of(path) }?;
    let file = notes.file_at(path)?;
    Some((notes, file_line(&file, 0, path)))
}

//! The file that `--out` names: replaced in one step where that is what it is for, and written to where it is something
//! else.
//!
//! * A regular file, or none yet: everything goes to a file of another name in the same folder, which takes its place when
//!   it is whole and on the disk. Links are followed, mode and owner stay. Dropped before, it leaves nothing behind.
//! * A FIFO, a device, a socket: written to as it is. So is what somebody has opened already (`/dev/fd/3`, and all that lies
//!   below `/proc`), whatever it is.
//! * `-`, `/dev/stdout`, `/dev/fd/1`: stdout.
//!
//! Invariant: nothing but a regular file is ever replaced, and none that could not have been written to.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::failure::usage;
use crate::output::Output;

/// As many as Linux follows.
const LINKS_MAX: usize = 40;

/// See the module.
pub(crate) enum Target {
    /// Written to as it is.
    Direct(Output),
    /// To take the place of `path`.
    Whole {
        output: Output,
        temporary: NamedTempFile,
        path: PathBuf,
    },
}

impl Target {
    /// Opens it; what was there is untouched. Opening a FIFO waits for its reader.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        Self::open_for(path, Readers::Usual)
    }

    /// The same for what its owner alone may read: the file has mode 0600, also where one was there before.
    pub(crate) fn open_private(path: &Path) -> anyhow::Result<Self> {
        Self::open_for(path, Readers::Owner)
    }

    fn open_for(path: &Path, readers: Readers) -> anyhow::Result<Self> {
        let name = path.display();
        let failed = |error: io::Error| usage(format!("{name} cannot be written: {error}"));
        let path = follow(path).map_err(failed)?;
        match opened_already(&path) {
            // Not opened once more: it would have a place in the file of its own, and what is said there behind us would
            // begin where we began.
            Some(true) => return Ok(Self::Direct(Output::stdout())),
            Some(false) => return Self::direct(&path).map_err(failed),
            None => {}
        }
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                // Who may not write to it may not replace it either.
                OpenOptions::new().write(true).open(&path).map_err(failed)?;
                Self::whole(path, Some(&metadata), readers).map_err(failed)
            }
            Ok(_) => Self::direct(&path).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::whole(path, None, readers).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn direct(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self::Direct(Output::file(file, path.display().to_string())))
    }

    fn whole(path: PathBuf, was: Option<&Metadata>, readers: Readers) -> io::Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("it names no file"))?;
        let folder = folder_of(&path);
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".part");
        let temporary = readers.set(&mut builder).tempfile_in(folder)?;
        if let Some(was) = was {
            take_over(temporary.as_file(), was, readers)?;
        }
        let file = temporary.as_file().try_clone()?;
        Ok(Self::Whole {
            output: Output::file(file, path.display().to_string()),
            temporary,
            path,
        })
    }

    pub(crate) fn output(&mut self) -> &mut Output {
        match self {
            Self::Direct(output) | Self::Whole { output, .. } => output,
        }
    }

    /// Says that it is whole. Ordering: the bytes are on the disk before the name says that they are.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Direct(mut output) => output.flush(),
            Self::Whole {
                mut output,
                temporary,
                path,
            } => {
                output.flush()?;
                let named = temporary
                    .as_file()
                    .sync_all()
                    .and_then(|()| temporary.persist(&path).map_err(|error| error.error))
                    .and_then(|_| sync_folder(&path));
                named.map_err(|error| {
                    usage(format!("{} cannot be written: {error}", path.display()))
                })
            }
        }
    }
}

/// So that a file's name outlives a power cut, like its content.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(windows) {
        // A folder cannot be opened there.
        return Ok(());
    }
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."))
}

/// Of `/dev/fd/3` and the like, to which `/dev/stdout` leads, whether it is our stdout. Such may be regular files, but they
/// are somebody's: opened, not named. `None`: it is something else.
fn opened_already(path: &Path) -> Option<bool> {
    let folder = folder_of(path).canonicalize().ok()?;
    let ours = Path::new("/dev/fd").canonicalize().ok();
    let is_ours = ours.is_some_and(|ours| ours == folder);
    if is_ours && path.file_name() == Some("1".as_ref()) {
        return Some(true);
    }
    (is_ours || folder.starts_with("/proc")).then_some(false)
}

/// Where links lead, also to a file that is not there yet; not beyond what was opened already.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() && opened_already(&path).is_none() => {
                let next = std::fs::read_link(&path)?;
                path = folder_of(&path).join(next);
            }
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Who may read the file. From its beginning: who has opened it once reads what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readers {
    /// As the shell's `>` makes it: what the umask leaves of 0666; or as it was.
    Usual,
    /// Its owner alone.
    Owner,
}

impl Readers {
    #[cfg(unix)]
    fn set<'a, 'b, 'c>(
        self,
        builder: &'a mut tempfile::Builder<'b, 'c>,
    ) -> &'a mut tempfile::Builder<'b, 'c> {
        use std::os::unix::fs::PermissionsExt;
        let mode = match self {
            Self::Usual => 0o666,
            Self::Owner => 0o600,
        };
        builder.permissions(std::fs::Permissions::from_mode(mode))
    }

    #[cfg(not(unix))]
    fn set<'a, 'b, 'c>(
        self,
        builder: &'a mut tempfile::Builder<'b, 'c>,
    ) -> &'a mut tempfile::Builder<'b, 'c> {
        builder
    }
}

/// Owner, group and mode of the file that is to be replaced; not the mode where others are not to read it.
#[cfg(unix)]
fn take_over(file: &File, was: &Metadata, readers: Readers) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let is = file.metadata()?;
    if (is.uid(), is.gid()) != (was.uid(), was.gid()) {
        fchown(file, Some(was.uid()), Some(was.gid())).map_err(|error| {
            let (uid, gid) = (was.uid(), was.gid());
            io::Error::new(
                error.kind(),
                format!("its owner {uid}:{gid} cannot be kept ({error}); remove it first, or write to stdout"),
            )
        })?;
    }
    // Ordering: the owner first, since a change of it takes bits of the mode away.
    match readers {
        Readers::Usual => file.set_permissions(was.permissions()),
        Readers::Owner => Ok(()),
    }
}

#[cfg(not(unix))]
fn take_over(_: &File, _: &Metadata, _: Readers) -> io::Result<()> {
    Ok(())
}

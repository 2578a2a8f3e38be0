//! Writing files so that a secret is never readable by others and nothing is half written.
//!
//! New files are created with their final mode and never replace anything; a file that must change
//! is written beside itself and renamed. Both are on disk when the call returns.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use crate::{Error, Result};

/// Who may read a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// The owner only: mode 0600.
    Owner,
    /// Everyone, as far as the folder lets them: mode 0644.
    Everyone,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Everyone => 0o644,
        }
    }

    /// What stays allowed when a file is replaced, whatever the umask says.
    fn kept(self) -> u32 {
        match self {
            Self::Owner => 0o040,
            Self::Everyone => 0o044,
        }
    }
}

/// Creates a file; an existing one is an error and stays as it is.
pub(crate) fn create(path: &Path, bytes: &[u8], access: Access) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(access.mode())
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists {
                path: path.to_owned(),
                advice: "it is never overwritten; move it away or use another folder",
            },
            _ => Error::io("create", path)(source),
        })?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", path))
}

/// Puts new content in place of a file, or makes the file: readers see the old or the new whole.
///
/// Whoever could read the file before can read it then, but for others and secrets: files are often
/// written by an administrator and read by a service.
pub(crate) fn replace(path: &Path, bytes: &[u8], access: Access) -> Result<()> {
    let folder = parent(path);
    let mut file = tempfile::Builder::new()
        .prefix(".storage-certs.")
        .permissions(fs::Permissions::from_mode(access.mode()))
        .tempfile_in(folder)
        .map_err(Error::io("create a file in", folder))?;
    match (access, keep_readers(file.as_file(), path, access)) {
        // Revoking must not fail because the list is somebody else's: everyone may read it.
        (_, Ok(())) | (Access::Everyone, Err(_)) => {}
        (Access::Owner, Err(error)) => return Err(Error::io("keep the owner of", path)(error)),
    }
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(Error::io("write", path))?;
    file.persist(path)
        .map_err(|error| Error::io("replace", path)(error.error))?;
    sync_dir(folder)
}

fn keep_readers(file: &File, path: &Path, access: Access) -> io::Result<()> {
    // A link is replaced, not its target: whose that is does not matter.
    let before = fs::symlink_metadata(path).ok();
    let Some(before) = before.filter(fs::Metadata::is_file) else {
        return Ok(());
    };
    let now = file.metadata()?;
    if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
        fchown(file, Some(before.uid()), Some(before.gid()))?;
    }
    // Ordering: after the change of the group, so that no other one can read it.
    let mode = now.mode() & 0o777;
    let kept = mode | (before.mode() & access.kept());
    if kept != mode {
        file.set_permissions(fs::Permissions::from_mode(kept))?;
    }
    Ok(())
}

/// Creates a folder for its owner only (mode 0700), and its parents as the umask has it.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(parent(path)).map_err(Error::io("create", parent(path)))?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(Error::io("create", path)),
    }
}

/// Makes renames and new files in a folder survive a loss of power.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync", path))
}

/// Whether anything at all has this name, a dangling link included.
pub(crate) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::malformed(path, "there is no such file"),
        _ => Error::io("read", path)(source),
    })
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_leaves_an_existing_file_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        create(&path, b"first", Access::Owner).unwrap();
        let error = create(&path, b"second", Access::Owner).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn replace_takes_the_place_of_a_link_not_of_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "mine").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        replace(&link, b"new", Access::Owner).unwrap();
        assert_eq!(fs::read(&link).unwrap(), b"new");
        assert_eq!(fs::read(&target).unwrap(), b"mine");
        let mode = fs::symlink_metadata(&link).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

//! A power cut for a server process: what of its files was not synced is gone.
//!
//! A [`Disk`] gives the environment that loads `power-loss` into a process, whose notes say what is on disk for certain
//! (see that crate for their form). After the process was killed, [`Disk::cut`] makes the data folder what a power cut
//! could have left, at the worst or with some of the rest, by chance.
//!
//! The model of the file system: a file has on disk what was there at its last sync, a folder the names it had at its
//! last sync, and nothing else. One thing is taken as given, since every journal does it: a rename is one change, so a
//! file that was moved to another folder is on disk in one of the two.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rand::Rng;

/// What a disk writes at once: a file torn in its last block ends with zeros from somewhere within it.
const BLOCK: u64 = 4096;

/// What becomes of the bytes behind a file's last sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// They are gone.
    Lost,
    /// Some are there, up to anywhere.
    Prefix,
    /// Some are there, and the last block of those is zeros from somewhere on.
    Torn,
}

/// What becomes of names that came, went or changed after their folder's last sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// They are as they were then.
    AsSynced,
    /// They are as they are.
    Present,
}

/// What a cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Bytes that were not synced, and are gone.
    pub bytes: u64,
    /// Of those, from files of RocksDB's write-ahead log.
    pub log_bytes: u64,
    /// Bytes that were not synced, and were left all the same.
    pub spared_bytes: u64,
    /// Files whose only names were not synced: gone.
    pub files: u64,
    /// Files that were removed or replaced, and are back.
    pub restored: u64,
}

impl std::ops::AddAssign for Cut {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.log_bytes += other.log_bytes;
        self.spared_bytes += other.spared_bytes;
        self.files += other.files;
        self.restored += other.restored;
    }
}

/// A data folder whose syncs are noted.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
}

/// What the notes say is on disk, by inode.
#[derive(Debug, Default)]
struct Synced {
    lengths: HashMap<u64, u64>,
    names: HashMap<PathBuf, HashMap<OsString, u64>>,
    /// The folders in which something ever had a name on disk.
    named: HashMap<u64, HashSet<PathBuf>>,
}

/// A file of the folder as it is.
#[derive(Debug)]
struct Present {
    path: PathBuf,
    inode: u64,
    is_folder: bool,
}

impl Disk {
    /// A new one in this folder, which must be there; the data folder itself is on disk, and empty.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let folder = folder.canonicalize()?;
        let disk = Self { folder };
        fs::create_dir_all(disk.data())?;
        fs::create_dir_all(disk.folder.join("kept"))?;
        disk.settle()?;
        Ok(disk)
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What a process needs in its environment to be noted.
    ///
    /// # Panics
    /// If the library was not built; cargo does it with the tests.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let test = std::env::current_exe().expect("a test has a path");
        let library = test.with_file_name("libpower_loss.so");
        assert!(library.exists(), "{} is not there", library.display());
        let text = |path: &Path| path.display().to_string();
        vec![
            ("LD_PRELOAD".to_owned(), text(&library)),
            ("POWER_LOSS_FOLDER".to_owned(), text(&self.folder)),
        ]
    }

    /// Starts the notes anew: everything that is there is on disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn settle(&self) -> io::Result<()> {
        let mut notes = String::new();
        let mut folders = vec![self.data()];
        while let Some(folder) = folders.pop() {
            let mut line = format!("folder\t{}", folder.display());
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let _ = write!(line, "\t{}={}", name.to_string_lossy(), entry.ino());
                let metadata = entry.metadata()?;
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else {
                    let (device, length) = (metadata.dev(), metadata.len());
                    let path = entry.path();
                    let (inode, path) = (entry.ino(), path.display());
                    let _ = writeln!(notes, "file\t{device}\t{inode}\t{length}\t{path}");
                }
            }
            notes.push_str(&line);
            notes.push('\n');
        }
        fs::write(self.folder.join("log"), notes)
    }

    /// Kills the process right before its `calls`-th sync, rename or removal from now, or of a process yet to start.
    ///
    /// # Errors
    /// What the file system says.
    pub fn kill_at(&self, calls: u64) -> io::Result<()> {
        let fresh = self.folder.join("kill-at.new");
        fs::write(&fresh, calls.to_string())?;
        fs::rename(fresh, self.folder.join("kill-at"))
    }

    /// Cuts the power: makes the data folder what is on disk for certain, and of the rest what is asked for. The process
    /// must be dead. Afterwards everything that is there counts as on disk.
    ///
    /// # Errors
    /// What the file system says, or that the notes make no sense.
    pub fn cut(&self, tail: Tail, names: Names, rng: &mut impl Rng) -> io::Result<Cut> {
        match fs::remove_file(self.folder.join("kill-at")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let synced = self.synced()?;
        let present = list(&self.data())?;
        let kept = list(&self.folder.join("kept"))?;
        let next = self.folder.join("next");
        fs::create_dir(&next)?;
        let mut cut = Cut::default();
        let mut placed: HashMap<u64, PathBuf> = HashMap::new();
        for (relative, inode) in self.surviving(&synced, &present, names) {
            let source = present
                .iter()
                .find(|file| file.inode == inode && !file.is_folder)
                .map(|file| file.path.clone())
                .or_else(|| {
                    cut.restored += 1;
                    let kept = kept.iter();
                    let mut kept = kept.filter(|file| has_name(&file.path, inode));
                    kept.next().map(|file| file.path.clone())
                });
            let Some(source) = source else {
                let text = format!("{} (inode {inode}) was not kept", relative.display());
                return Err(io::Error::other(text));
            };
            let target = next.join(&relative);
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::hard_link(source, &target)?;
            placed.insert(inode, target);
        }
        for file in &present {
            // A folder's own name says nothing here: an empty one is made again by who needs it.
            if !file.is_folder && !placed.contains_key(&file.inode) {
                cut.files += 1;
                cut.bytes += fs::metadata(&file.path)?.len();
            }
        }
        // In a fixed order, so that a seed gives the same cuts.
        let mut placed: Vec<_> = placed.into_iter().collect();
        placed.sort();
        for (inode, path) in placed {
            let durable = synced.lengths.get(&inode).copied().unwrap_or(0);
            cut_file(&path, durable, tail, rng, &mut cut)?;
        }
        fs::remove_dir_all(self.data())?;
        fs::remove_dir_all(self.folder.join("kept"))?;
        fs::create_dir(self.folder.join("kept"))?;
        fs::rename(next, self.data())?;
        self.settle()?;
        Ok(cut)
    }

    /// The files whose names are left, by their paths within the data folder.
    fn surviving(&self, synced: &Synced, present: &[Present], names: Names) -> Vec<(PathBuf, u64)> {
        let data = self.data();
        let within = |path: &Path| path.strip_prefix(&data).unwrap_or(path).to_owned();
        let files = present.iter().filter(|file| !file.is_folder);
        if names == Names::Present {
            return files.map(|file| (within(&file.path), file.inode)).collect();
        }
        let mut found = Vec::new();
        let mut folders = vec![data.clone()];
        let mut on_disk = HashSet::new();
        while let Some(folder) = folders.pop() {
            // A folder that was never synced has no names on disk.
            for (name, inode) in synced.names.get(&folder).into_iter().flatten() {
                let path = folder.join(name);
                let is_this = |file: &&Present| file.inode == *inode && file.is_folder;
                if present.iter().any(|file| is_this(&file)) {
                    folders.push(path);
                } else {
                    found.push((within(&path), *inode));
                }
            }
            on_disk.insert(folder);
        }
        let reached: HashSet<u64> = found.iter().map(|(_, inode)| *inode).collect();
        // Moved away from a folder that was synced since, to one that was not.
        let was_on_disk = |inode: &u64| {
            let mut folders = synced.named.get(inode).into_iter().flatten();
            folders.any(|folder| on_disk.contains(folder))
        };
        let moved = files.filter(|file| was_on_disk(&file.inode) && !reached.contains(&file.inode));
        found.extend(moved.map(|file| (within(&file.path), file.inode)));
        found.sort();
        found
    }

    fn synced(&self) -> io::Result<Synced> {
        let mut synced = Synced::default();
        let text = fs::read_to_string(self.folder.join("log"))?;
        for line in text.lines() {
            let bad = || io::Error::other(format!("the notes say {line:?}"));
            let mut words = line.split('\t');
            match words.next() {
                Some("file") => {
                    let _device = words.next().ok_or_else(bad)?;
                    let mut number = || words.next()?.parse::<u64>().ok();
                    let inode = number().ok_or_else(bad)?;
                    let length = number().ok_or_else(bad)?;
                    synced.lengths.insert(inode, length);
                }
                Some("folder") => {
                    let folder = PathBuf::from(words.next().ok_or_else(bad)?);
                    let mut names = HashMap::new();
                    for word in words {
                        let (name, inode) = word.rsplit_once('=').ok_or_else(bad)?;
                        let inode = inode.parse().map_err(|_| bad())?;
                        let named = synced.named.entry(inode).or_default();
                        named.insert(folder.clone());
                        names.insert(OsString::from(name), inode);
                    }
                    synced.names.insert(folder, names);
                }
                _ => return Err(bad()),
            }
        }
        Ok(synced)
    }
}

fn has_name(path: &Path, inode: u64) -> bool {
    path.file_name().and_then(|name| name.to_str()) == Some(inode.to_string().as_str())
}

/// Everything below a folder.
fn list(folder: &Path) -> io::Result<Vec<Present>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let is_folder = entry.file_type()?.is_dir();
            let (path, inode) = (entry.path(), entry.ino());
            if is_folder {
                folders.push(path.clone());
            }
            found.push(Present {
                path,
                inode,
                is_folder,
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Takes from a file what was not synced, or some of it.
fn cut_file(
    path: &Path,
    durable: u64,
    tail: Tail,
    rng: &mut impl Rng,
    cut: &mut Cut,
) -> io::Result<()> {
    // The length that counts is what was written: RocksDB's preallocation lies beyond it (FALLOC_FL_KEEP_SIZE).
    let length = fs::metadata(path)?.len();
    let unsynced = length.saturating_sub(durable);
    let file = OpenOptions::new().write(true).open(path)?;
    if unsynced == 0 {
        // Gives that room back. A killed server leaves 70 MiB of it behind each log file, which fills a disk in a few
        // hundred cycles.
        return file.set_len(length);
    }
    let spared = match tail {
        Tail::Lost => 0,
        Tail::Prefix | Tail::Torn => rng.random_range(0..=unsynced),
    };
    file.set_len(durable + spared)?;
    if tail == Tail::Torn && spared > 0 {
        let torn = rng.random_range(1..=spared.min(BLOCK));
        let zeros = vec![0; usize::try_from(torn).unwrap_or(0)];
        file.write_all_at(&zeros, durable + spared - torn)?;
    }
    cut.bytes += unsynced - spared;
    cut.spared_bytes += spared;
    if path.extension().is_some_and(|extension| extension == "log") {
        cut.log_bytes += unsynced - spared;
    }
    Ok(())
}

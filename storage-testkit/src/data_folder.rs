//! Data folders as files: copied, and their mark changed, as crashes, restores and other machines would.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Where the words of `SYNCED` are.
const TIME: usize = 1;
const BOOT: usize = 4;
const WORDS: usize = 5;

/// Copies a folder's files into another one, over what is there.
///
/// # Panics
/// If a file cannot be read or written.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a file");
        }
    }
}

/// Copies a data folder as if it were the original, of which nobody else has a copy.
///
/// # Panics
/// As [`copy`].
pub fn copy_as_original(from: &Path, to: &Path) {
    copy(from, to);
    change_mark(to, |_| {});
}

/// Sets the boot of the machine that the mark was written in.
///
/// # Panics
/// If there is no mark.
pub fn set_boot(folder: &Path, boot: &str) {
    change_mark(folder, |words| boot.clone_into(&mut words[BOOT]));
}

/// Sets the clock in the mark, in milliseconds since 1970.
///
/// # Panics
/// If there is no mark.
pub fn set_time(folder: &Path, time: u64) {
    change_mark(folder, |words| words[TIME] = time.to_string());
}

/// Changes the mark's words, and makes it name the file that it is in.
fn change_mark(folder: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let path = folder.join("SYNCED");
    let text = fs::read_to_string(&path).expect("a mark");
    let mut words: Vec<_> = text.trim_end().split(' ').map(str::to_owned).collect();
    words.truncate(WORDS);
    change(&mut words);
    let file = fs::metadata(&path).expect("a mark");
    words.push(format!("inode={}", file.ino()));
    words.push(match file.created() {
        Ok(born) => {
            let born = born.duration_since(UNIX_EPOCH).expect("born after 1970");
            format!("born={}", born.as_nanos())
        }
        Err(_) => format!("device={}", file.dev()),
    });
    fs::write(path, words.join(" ") + "\n").expect("a mark");
}

//! Where `--out` writes: what is replaced, what is written to, and what becomes of it when it goes wrong.

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::fake::{Server, Whim};
use crate::run;

const LINE: &str = "{\"put\":{\"key\":\"a\",\"value\":\"1\"}}\n";

fn export(server: &Server, path: &Path) -> run::Ran {
    server.run(&["export", "--out", path.to_str().unwrap()])
}

/// The names in a folder.
fn names(folder: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_link_is_followed_and_the_mode_of_a_file_stays() {
    let server = Server::with(&[("a", "1")]);
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    std::fs::write(&file, "old").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    symlink("file", &link).unwrap();
    assert_eq!(export(&server, &link).code, 0);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), LINE);
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    // A link to nothing makes what it names.
    let dangling = folder.path().join("dangling");
    symlink(folder.path().join("made"), &dangling).unwrap();
    assert_eq!(export(&server, &dangling).code, 0);
    assert!(std::fs::symlink_metadata(&dangling).unwrap().is_symlink());
    assert_eq!(
        std::fs::read_to_string(folder.path().join("made")).unwrap(),
        LINE
    );
    // A new file has the mode that any new file has.
    std::fs::write(folder.path().join("usual"), "").unwrap();
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().mode();
    assert_eq!(mode("made"), mode("usual"));
    let around = folder.path().join("around");
    symlink("around", &around).unwrap();
    assert_eq!(export(&server, &around).code, 2);
    assert_eq!(
        names(&folder),
        ["around", "dangling", "file", "link", "made", "usual"]
    );
}

#[test]
fn what_is_no_regular_file_is_written_to_and_stays() {
    let server = Server::with(&[("a", "1")]);
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let child = server
        .command(&["export", "--out", fifo.to_str().unwrap()])
        .spawn()
        .unwrap();
    let read = std::thread::spawn({
        let fifo = fifo.clone();
        move || {
            let mut text = String::new();
            std::fs::File::open(fifo)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text
        }
    });
    let ran = run::finish(child);
    // Where it was replaced the reader would wait for ever.
    assert!(
        std::fs::metadata(&fifo).unwrap().file_type().is_fifo(),
        "{ran:?}"
    );
    assert_eq!((ran.code, read.join().unwrap().as_str()), (0, LINE));
    assert_eq!(export(&server, Path::new("/dev/null")).code, 0);
    assert!(
        std::fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    let full = export(&server, Path::new("/dev/full"));
    assert_eq!(full.code, 2);
    assert!(full.err.contains("/dev/full cannot be written"), "{full:?}");
    let ran = export(&server, folder.path());
    assert_eq!(ran.code, 2, "{ran:?}");
    assert_eq!(names(&folder), ["fifo"]);
}

#[test]
fn a_minus_and_what_the_shell_has_opened_are_stdout() {
    let server = Server::with(&[("a", "1")]);
    let folder = tempfile::tempdir().unwrap();
    let ran = run::finish(
        server
            .command(&["export", "--out", "-"])
            .current_dir(folder.path())
            .spawn()
            .unwrap(),
    );
    assert_eq!((ran.code, ran.out.as_str()), (0, LINE));
    assert_eq!(names(&folder), [""; 0]);
    let path = folder.path().join("log");
    std::fs::write(&path, "before\n").unwrap();
    let log = std::fs::File::options().append(true).open(&path).unwrap();
    let inode = log.metadata().unwrap().ino();
    let child = server
        .command(&["export", "--out", "/dev/stdout"])
        .stdout(Stdio::from(log))
        .spawn();
    assert_eq!(run::finish(child.unwrap()).code, 0);
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        format!("before\n{LINE}")
    );
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
}

/// What a shell does with the command, and then says itself, into a file that it opened for both.
#[test]
fn what_the_shell_says_behind_it_overwrites_nothing() {
    let server = Server::with(&[("a", "1")]);
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    symlink("/dev/stdout", &link).unwrap();
    for out in ["/dev/stdout", "/dev/fd/1", link.to_str().unwrap()] {
        let path = folder.path().join("log");
        std::fs::write(&path, "what was there before is gone").unwrap();
        let log = std::fs::File::create(&path).unwrap();
        let inode = log.metadata().unwrap().ino();
        let export = server.command(&["export", "--out", out]);
        let mut shell = Command::new("sh");
        shell.args(["-c", "\"$@\" && echo after", "sh"]);
        shell.arg(export.get_program()).args(export.get_args());
        for (name, value) in export.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.stdin(Stdio::null()).stdout(Stdio::from(log));
        let ran = run::finish(shell.stderr(Stdio::piped()).spawn().unwrap());
        assert_eq!(ran.code, 0, "{out}: {ran:?}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{LINE}after\n"), "{out}");
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode, "{out}");
    }
}

/// It is a disk in memory, whatever it is called.
#[test]
fn a_file_below_dev_is_replaced_like_any_other() {
    let server = Server::with(&[("a", "1")]);
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        println!("SKIPPED: there is no /dev/shm");
        return;
    };
    let file = folder.path().join("file");
    for was in [None, Some("longer than what takes its place: ".repeat(9))] {
        if let Some(was) = was {
            std::fs::write(&file, was).unwrap();
        }
        let ran = export(&server, &file);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), LINE);
    }
    assert_eq!(names(&folder), ["file"]);
}

#[test]
fn exports_to_one_file_at_once_do_not_mix() {
    let server = Server::with(&[
        ("a/1", "1"),
        ("a/2", "1"),
        ("a/3", "1"),
        ("a/4", "1"),
        ("b/1", "2"),
        ("b/2", "2"),
        ("b/3", "2"),
        ("b/4", "2"),
        ("b/5", "2"),
    ]);
    server.whim(Whim::HeldPages);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let start = |prefix| {
        let arguments = [
            "export",
            "--prefix",
            prefix,
            "--out",
            file.to_str().unwrap(),
        ];
        server.command(&arguments).spawn().unwrap()
    };
    // Both have opened what they write to when the first page is there.
    let (a, b) = (start("a/"), start("b/"));
    server.let_pages_go(2);
    for ran in [run::finish(a), run::finish(b)] {
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let of = |letter: char| {
        text.lines()
            .filter(|line| line.contains(&format!("\"{letter}/")))
            .count()
    };
    assert!([(4, 0), (0, 5)].contains(&(of('a'), of('b'))), "{text}");
    assert_eq!(names(&folder), ["file"]);
}

#[test]
fn a_file_that_may_not_be_written_is_not_replaced() {
    let server = Server::with(&[("a", "1")]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
    if std::fs::File::options().write(true).open(&file).is_ok() {
        println!("SKIPPED: this user may write to everything");
        return;
    }
    let ran = export(&server, &file);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

//! Imports that the server has no room for at times: what it refuses comes again, and the file's last row of each key stays.

use rustix::process::Signal;
use storage_protocol::{Limit, StorageError};

use crate::fake::{Fault, Server};
use crate::run;

fn overloaded() -> StorageError {
    let (limit, max) = (Limit::CommitRate, 1);
    StorageError::Overloaded { limit, max }
}

struct Rows(tempfile::TempDir);

impl Rows {
    /// Rows of these keys, whose values are their places.
    fn of(keys: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let line = |(place, key): (usize, &&str)| {
            format!("{{\"put\":{{\"key\":\"{key}\",\"value\":\"{place}\"}}}}\n")
        };
        let lines: String = keys.iter().enumerate().map(line).collect();
        std::fs::write(folder.path().join("rows.jsonl"), lines).unwrap();
        Self(folder)
    }

    fn import(&self, server: &Server, options: &[&str]) -> std::process::Child {
        let file = self.path("rows.jsonl");
        let mut command = server.command(&["import", &file, "--batch", "1"]);
        command.args(options).spawn().unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
}

fn entries(server: &Server) -> String {
    let entries = server.entries().into_iter();
    let entries: Vec<_> = entries
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    entries.join(" ")
}

#[test]
fn what_a_quota_refuses_comes_again_and_the_last_row_of_each_key_stays() {
    let server = Server::start();
    // The first is refused when those behind it are on their way, and two of these are refused too; then each once more.
    server.fault(Fault::LateError(overloaded()));
    server.fault(Fault::None);
    server.fault(Fault::Error(overloaded()));
    server.fault(Fault::None);
    server.fault(Fault::Error(overloaded()));
    server.fault(Fault::None);
    server.fault(Fault::Error(overloaded()));
    server.fault(Fault::Error(overloaded()));
    let rows = Rows::of(&["a", "a", "b", "c", "c", "d", "e", "b", "f", "a"]);
    let ran = run::finish(rows.import(&server, &[]));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(entries(&server), "a=9 b=7 c=4 d=5 e=6 f=8");
    assert!(ran.out.starts_with("10 rows in 9 commits, "), "{ran:?}");
    assert_eq!(
        ran.err.matches("slowed down by the server: ").count(),
        1,
        "{ran:?}"
    );
    // Of the row with the first `a` nothing was left: the second was on its way, and taken.
    assert_eq!(server.commits().len(), 9);
}

#[test]
fn an_import_that_nothing_is_taken_of_ends_after_the_time_out() {
    let server = Server::start();
    server.fault(Fault::None);
    (0..100).for_each(|_| server.fault(Fault::Error(overloaded())));
    let rows = Rows::of(&["a", "b", "c"]);
    let ran = run::finish(rows.import(&server, &["--timeout", "1s"]));
    assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{ran:?}");
    assert!(
        ran.err.contains("rows 2 to 2 (from ")
            && ran
                .err
                .contains("were not committed; 1 rows were committed before"),
        "{ran:?}"
    );
    assert_eq!(entries(&server), "a=0");
}

#[test]
fn an_import_that_waits_for_a_quota_is_interrupted_as_any() {
    let server = Server::start();
    server.fault(Fault::None);
    (0..100).for_each(|_| server.fault(Fault::Error(overloaded())));
    let rows = Rows::of(&["a", "b", "c"]);
    let child = rows.import(&server, &[]);
    server.wait_for_revision(101);
    std::thread::sleep(std::time::Duration::from_millis(300));
    run::signal(&child, Signal::INT);
    let ran = run::finish(child);
    assert_eq!((ran.code, ran.out.as_str()), (130, ""), "{ran:?}");
    assert!(
        ran.err.contains("interrupted after 1 rows (kept)"),
        "{ran:?}"
    );
}

#[test]
fn with_a_session_file_it_comes_again_unless_a_later_row_of_its_key_was_taken() {
    let server = Server::start();
    server.fault(Fault::LateError(overloaded()));
    server.fault(Fault::None);
    server.fault(Fault::Error(overloaded()));
    let rows = Rows::of(&["a", "b", "c", "d", "c"]);
    let session = rows.path("session");
    let ran = run::finish(rows.import(&server, &["--session-file", &session]));
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.err.contains("rows 3 to 3 (from ") || ran.err.contains("rows 1 to 1 (from "),
        "{ran:?}"
    );
    // Another run does what it can, as before, and says so.
    let ran = run::finish(rows.import(&server, &["--session-file", &session]));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("this older row stays"), "{ran:?}");

    let server = Server::start();
    server.fault(Fault::LateError(overloaded()));
    server.fault(Fault::None);
    server.fault(Fault::Error(overloaded()));
    let rows = Rows::of(&["a", "b", "c", "d", "e"]);
    let session = rows.path("session");
    let ran = run::finish(rows.import(&server, &["--session-file", &session]));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.err.contains("this older row stays"), "{ran:?}");
    assert_eq!(entries(&server), "a=0 b=1 c=2 d=3 e=4");
    assert_eq!(server.commits().len(), 5);
    let ran = run::finish(rows.import(&server, &["--session-file", &session]));
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (0, "all 5 rows were committed before\n")
    );
}

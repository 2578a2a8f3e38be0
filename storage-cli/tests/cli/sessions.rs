//! `import --session-file`: for which store it holds, and which files it leaves alone.

use std::process::{Command, Stdio};

use storage_protocol::Epoch;

use crate::fake::{Fault, Server};
use crate::run::{self, Ran};

struct Import {
    folder: tempfile::TempDir,
}

impl Import {
    fn of(rows: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let line = |n| format!("{{\"put\":{{\"key\":\"k{n}\",\"value\":\"\"}}}}\n");
        let lines: String = (0..rows).map(line).collect();
        std::fs::write(folder.path().join("rows.jsonl"), lines).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn run_on(&self, server: &Server) -> Ran {
        let (file, session) = (self.path("rows.jsonl"), self.path("session"));
        server.run(&["import", &file, "--batch", "2", "--session-file", &session])
    }
}

#[test]
fn what_was_committed_before_is_asked_of_the_server() {
    let (server, import) = (Server::start(), Import::of(5));
    let ran = import.run_on(&server);
    assert!(ran.out.starts_with("5 rows in 3 commits"), "{ran:?}");
    let ran = import.run_on(&server);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (0, "all 5 rows were committed before\n")
    );
    let (file, session) = (import.path("rows.jsonl"), import.path("session"));
    let gone = [
        "--url",
        "ws://127.0.0.1:1/storage/models",
        "import",
        &file,
        "--batch",
        "2",
        "--session-file",
        &session,
    ];
    let ran = server.run(&gone);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(!ran.err.contains("committed before"), "{ran:?}");
}

#[test]
fn a_session_file_of_another_store_is_refused_finished_or_not() {
    let (server, other) = (Server::start(), Server::of_epoch(Epoch(0xf)));
    let finished = Import::of(4);
    assert_eq!(finished.run_on(&server).code, 0);
    let half = Import::of(4);
    server.fault(Fault::None);
    server.fault(Fault::Error(storage_protocol::StorageError::StorageFull {
        available: 0,
        reserve: 1,
    }));
    let ran = half.run_on(&server);
    assert_eq!(ran.code, 3, "{ran:?}");
    for import in [finished, half] {
        let before = std::fs::read(import.path("session")).unwrap();
        let ran = import.run_on(&other);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        assert!(
            ran.err.contains("tells of an import into another store"),
            "{ran:?}"
        );
        assert!(
            ran.err.contains("000000000000000e") && ran.err.contains("000000000000000f"),
            "{ran:?}"
        );
        assert_eq!(other.entries().len(), 0);
        assert_eq!(std::fs::read(import.path("session")).unwrap(), before);
        // Where it was removed, as told, everything goes in.
        std::fs::remove_file(import.path("session")).unwrap();
        assert_eq!(import.run_on(&other).code, 0);
        assert_eq!(other.entries().len(), 4);
        other.clear();
    }
}

#[test]
fn a_store_that_lost_commits_without_knowing_is_refused_too() {
    let (server, import) = (Server::start(), Import::of(4));
    assert_eq!(import.run_on(&server).code, 0);
    let restored = Server::start();
    let ran = import.run_on(&restored);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("so it lost commits"), "{ran:?}");
}

impl Import {
    /// With room for so many bytes in any file, as on a disk that is full then.
    fn run_with_room(&self, server: &Server, blocks: u32) -> Ran {
        let (file, session) = (self.path("rows.jsonl"), self.path("session"));
        let import = server.command(&[
            "import",
            &file,
            "--batch",
            "2",
            "--session-file",
            &session,
            "--timeout",
            "2s",
        ]);
        // What is ignored stays ignored in the command: writing fails, as on a full disk.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script, "sh"])
            .arg(import.get_program());
        command.args(import.get_args());
        for (name, value) in import.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run::finish(command.spawn().unwrap())
    }
}

/// A block is 512 bytes: the head of the file, and a few commits.
#[test]
fn a_session_file_that_cannot_be_written_leaves_no_row_untold() {
    let (server, import) = (Server::start(), Import::of(40));
    let ran = import.run_with_room(&server, 1);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
    assert!(ran.err.contains("session cannot be written"), "{ran:?}");
    let rows = server.entries().len();
    assert!((2..40).contains(&rows), "{rows}");
    assert!(
        ran.err.contains(&format!("{rows} rows were committed")),
        "{ran:?}"
    );
    // What is there is whole: the same command goes on.
    let ran = import.run_on(&server);
    assert_eq!((ran.code, server.entries().len()), (0, 40), "{ran:?}");

    // What is unknown counts for more than what went wrong with the file.
    let (server, import) = (Server::start(), Import::of(40));
    server.fault(Fault::Silent);
    let ran = import.run_with_room(&server, 1);
    assert_eq!(ran.code, 4, "{ran:?}");
    for told in [
        "session cannot be written",
        "from row 1 on",
        "outcome: unknown",
    ] {
        assert!(ran.err.contains(told), "{told}: {ran:?}");
    }
    let ran = import.run_on(&server);
    assert_eq!((ran.code, server.entries().len()), (0, 40), "{ran:?}");
}

/// Else a clock that was set back would offer the next run's server an incarnation that it has seen.
#[test]
fn a_session_file_tells_of_the_incarnations_of_its_own_run() {
    let (server, import) = (Server::start(), Import::of(8));
    server.fault(Fault::None);
    server.fault(Fault::Lost);
    let ran = import.run_on(&server);
    assert_eq!(ran.code, 0, "{ran:?}");
    let text = std::fs::read_to_string(import.path("session")).unwrap();
    let sessions: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("{\"session\":"))
        .collect();
    let of = |incarnation: u64| format!("\"incarnation\":{incarnation},");
    assert!(
        sessions.len() == 2 && sessions[0].contains(&of(0)) && !sessions[1].contains(&of(0)),
        "{text}"
    );
}

#[test]
fn a_file_that_was_never_a_session_file_is_left_as_it_is() {
    let (server, import) = (Server::start(), Import::of(4));
    for foreign in [
        "one line, and no newline",
        "lines\nand lines\n",
        "{\"import\":{}}\n{",
    ] {
        std::fs::write(import.path("session"), foreign).unwrap();
        let ran = import.run_on(&server);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(
            ran.err
                .contains("no session file of an import, and was left as it is"),
            "{ran:?}"
        );
        assert_eq!(
            std::fs::read_to_string(import.path("session")).unwrap(),
            foreign
        );
    }
    assert_eq!(server.revision(), 100);
}

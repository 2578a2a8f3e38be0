//! `import --session-file`: for which store it holds, and which files it leaves alone.

use storage_protocol::Epoch;

use crate::fake::{Fault, Server};
use crate::run::Ran;

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

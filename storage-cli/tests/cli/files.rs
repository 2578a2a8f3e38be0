//! Import and export: what goes in, how it is cut, what comes out, and what is said when it breaks off.

use std::io::Write;
use std::path::PathBuf;

use storage_protocol::{EntryLifetime, StorageError, UnixMillis};
use tempfile::TempDir;

use crate::fake::{Fault, Server, TIME};
use crate::run::{self, with_stdin};

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and gives its path.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Rows `k0`, `k1`, ...
fn lines(count: usize) -> String {
    let line = |n| format!("{{\"put\":{{\"key\":\"k{n}\",\"value\":\"{n}\"}}}}\n");
    (0..count).map(line).collect()
}

fn entry(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn csv_rows_become_objects_under_keys_from_a_template() {
    let server = Server::start();
    let folder = Folder::new();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed
        .write_all(b"origin,hour,temp\nJFK,1,\"7,5\"\nEWR,2,\n")
        .unwrap();
    let file = folder.file("weather.csv.gz", packed.finish().unwrap());
    let ran = server.run(&["import", &file, "--key", "w/{origin}/{hour}"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("2 rows in 1 commits, 0."), "{ran:?}");
    assert!(
        ran.out.ends_with(" s, at 000000000000000e:101\n"),
        "{ran:?}"
    );
    assert_eq!(ran.err, "");
    let expected = [
        entry(
            "w/EWR/2",
            "{\"origin\":\"EWR\",\"hour\":\"2\",\"temp\":\"\"}",
        ),
        entry(
            "w/JFK/1",
            "{\"origin\":\"JFK\",\"hour\":\"1\",\"temp\":\"7,5\"}",
        ),
    ];
    assert_eq!(server.entries(), expected);
}

#[test]
fn rows_are_cut_into_commits_in_order() {
    let server = Server::start();
    let folder = Folder::new();
    let text = lines(50)
        + "{\"put\":{\"key\":\"k49\",\"value\":\"later\"}}\n{\"remove\":{\"key\":\"k0\"}}\n";
    let file = folder.file("rows.jsonl", text);
    let ran = server.run(&["--json", "import", &file, "--batch", "4"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out
            .starts_with("{\"rows\":52,\"commits\":13,\"duplicates\":2,\"seconds\":0."),
        "{ran:?}"
    );
    assert!(
        ran.out
            .ends_with(",\"epoch\":\"000000000000000e\",\"revision\":113}\n"),
        "{ran:?}"
    );
    let commits = server.commits();
    let keys: Vec<_> = commits.concat();
    let expected: Vec<_> = (0..50).map(|n| format!("k{n}")).collect();
    assert_eq!(keys[..50], expected[..], "in the file's order");
    assert_eq!(
        commits[12],
        ["k48", "k49", "k0"],
        "four rows, of which two have one key"
    );
    assert_eq!(server.entries().len(), 49);
    assert!(server.entries().contains(&entry("k49", "later")));
}

#[test]
fn lines_with_a_template_are_kept_and_no_rows_are_fine() {
    let server = Server::start();
    let folder = Folder::new();
    let file = folder.file("events.txt", "{\"id\": 7, \"x\":[1]}\r\n");
    assert_eq!(
        server.run(&["import", &file, "--key", "e/{id}"]).code,
        2,
        "no format"
    );
    let ran = server.run(&["import", &file, "--format", "jsonl", "--key", "e/{id}"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(server.entries(), [entry("e/7", "{\"id\": 7, \"x\":[1]}")]);
    let ran = with_stdin(server.command(&["import", "-"]), b"");
    assert!(
        ran.out.starts_with("0 rows in 0 commits") && ran.out.contains(":101\n"),
        "{ran:?}"
    );
}

#[test]
fn a_template_is_judged_before_anything_is_written() {
    let server = Server::start();
    let folder = Folder::new();
    let file = folder.file("rows.csv", "a,b\n1,2\n");
    for (arguments, why) in [
        (&["import", &file][..], "give a template"),
        (
            &["import", &file, "--key", "{a}/{c}"],
            "the column \"c\"; there are: a, b",
        ),
        (&["import", &file, "--key", "{a"], "without its }"),
        (
            &["import", "/no/such.csv", "--key", "{a}"],
            "/no/such.csv cannot be read",
        ),
        (
            &["import", &file, "--key", "{a}", "--batch", "20000"],
            "operations_per_commit_max is 10000",
        ),
        (
            &["import", &file, "--key", "{a}", "--batch", "0"],
            "--batch",
        ),
    ] {
        let ran = server.run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        assert!(ran.err.contains(why), "{why}: {ran:?}");
    }
    assert_eq!(server.revision(), 100);
}

#[test]
fn a_bad_row_is_named_and_the_rows_before_are_counted() {
    let server = Server::start();
    let folder = Folder::new();
    let file = folder.file("rows.csv", "a,b\n1,2\n3,4\n5,6\n7\n8,9\n");
    let ran = server.run(&["import", &file, "--key", "{a}", "--batch", "2"]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    let why = "rows.csv:5: the row has 1 columns, the header 2; 2 rows were committed before";
    assert!(ran.err.contains(why), "{ran:?}");
    assert_eq!(server.entries().len(), 2);
    server.limits(|limits| limits.value_bytes_max = 3);
    let file = folder.file("rows.jsonl", "{\"put\":{\"key\":\"x\",\"value\":\"1234\"}}");
    let ran = server.run(&["import", &file]);
    assert_eq!(ran.code, 2);
    let why = "rows.jsonl:1: value_bytes_max is 3, this has 4; 0 rows were committed before";
    assert!(ran.err.contains(why), "{ran:?}");
}

#[test]
fn an_import_whose_connection_is_lost_says_from_which_row_on_it_is_unknown() {
    let server = Server::start();
    let folder = Folder::new();
    let file = folder.file("rows.jsonl", lines(10));
    server.fault(Fault::None);
    server.fault(Fault::Lost);
    let ran = server.run(&["import", &file, "--batch", "3", "--give-up-after", "0s"]);
    assert_eq!((ran.code, ran.out.as_str()), (4, ""), "{ran:?}");
    assert!(ran.err.contains("from row 4 on ("), "{ran:?}");
    assert!(
        ran.err.contains(
            "rows.jsonl:4) it is unknown what was committed; 3 rows were committed before"
        ),
        "{ran:?}"
    );
    assert!(ran.err.contains("outcome: unknown"), "{ran:?}");
}

#[test]
fn a_refused_commit_stops_an_import_and_later_ones_that_were_on_their_way_are_counted() {
    let server = Server::start();
    let folder = Folder::new();
    let file = folder.file("rows.jsonl", lines(100));
    let (available, reserve) = (1, 2);
    server.fault(Fault::None);
    server.fault(Fault::Error(StorageError::StorageFull {
        available,
        reserve,
    }));
    let ran = server.run(&["import", &file, "--batch", "2"]);
    assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{ran:?}");
    assert!(ran.err.contains("rows 3 to 4 (from "), "{ran:?}");
    assert!(
        ran.err
            .contains("rows.jsonl:3 on) were not committed; 2 rows were committed before"),
        "{ran:?}"
    );
    let behind = server.entries().len() - 2;
    assert!(
        behind < 2 * 10,
        "nothing new is sent after a failure: {behind}"
    );
    if behind > 0 {
        assert!(
            ran.err
                .contains(&format!("and {behind} rows that were on their way")),
            "{ran:?}"
        );
    }
    // Of some rows that would be wrong.
    assert!(!ran.err.contains("outcome:"), "{ran:?}");
}

#[test]
fn an_export_restores_what_it_was_made_of() {
    let server = Server::with(&[("a", "1"), ("b", "ü\n\""), ("p/1", ""), ("p/2", "2")]);
    server.insert(&[0, 255], &[254], EntryLifetime::Forever);
    server.insert(b"session", b"mine", EntryLifetime::Session);
    server.insert(b"due", b"old", EntryLifetime::Until(UnixMillis(5)));
    let folder = Folder::new();
    let out = folder.path("backup.jsonl");
    let ran = server.run(&["export", "--out", out.to_str().unwrap()]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert_eq!(
        ran.err,
        "6 entries at 000000000000000e:101\n1 entries that live as long as a session were left out\n"
    );
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 1);
    let text = std::fs::read_to_string(&out).unwrap();
    let expected = "{\"put\":{\"key_b64\":\"AP8=\",\"value_b64\":\"/g==\"}}\n\
                    {\"put\":{\"key\":\"a\",\"value\":\"1\"}}\n\
                    {\"put\":{\"key\":\"b\",\"value\":\"ü\\n\\\"\"}}\n\
                    {\"put\":{\"key\":\"due\",\"value\":\"old\",\"ttl_ms\":1}}\n\
                    {\"put\":{\"key\":\"p/1\",\"value\":\"\"}}\n\
                    {\"put\":{\"key\":\"p/2\",\"value\":\"2\"}}\n";
    assert_eq!(text, expected);
    let other = Server::start();
    assert_eq!(other.run(&["import", out.to_str().unwrap()]).code, 0);
    server.run(&["rm", "session"]);
    let hash = |server: &Server| {
        server
            .run(&["digest"])
            .out
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(hash(&server), hash(&other));
    let part = server.run(&["export", "--prefix", "p/"]);
    assert_eq!(part.out.lines().count(), 2);
    assert_eq!(part.err, "2 entries at 000000000000000e:102\n");
}

#[test]
fn an_export_that_fails_leaves_no_file() {
    let server = Server::start();
    let folder = Folder::new();
    let file = folder.path("x");
    let ran = server.run(&["export", "--out", folder.path("no/x").to_str().unwrap()]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("no/x cannot be written"), "{ran:?}");
    let url = "ws://127.0.0.1:1/storage/models";
    let ran = server.run(&["--url", url, "export", "--out", file.to_str().unwrap()]);
    assert_eq!(ran.code, 3);
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 0);
}

#[test]
fn several_commits_are_on_their_way_at_once() {
    let server = Server::start();
    let folder = Folder::new();
    let file = folder.file("rows.jsonl", lines(20));
    server.fault(Fault::Silent);
    let ran = server.run(&["import", &file, "--batch", "1", "--timeout", "500ms"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("from row 1 on"), "{ran:?}");
    // Eight, of which the first is never answered.
    assert_eq!(server.entries().len(), 7);
}

#[test]
fn what_is_left_of_a_life_is_by_the_servers_clock() {
    let server = Server::start();
    server.insert(
        b"k",
        b"v",
        EntryLifetime::Until(UnixMillis(TIME.0 + 3_600_000)),
    );
    let ran = server.run(&["export"]);
    let (_, left) = ran.out.split_once("\"ttl_ms\":").unwrap();
    let left: u64 = left.trim_end_matches("}}\n").parse().unwrap();
    // Its clock stands, and tells whole seconds; what the export took is a little less of them.
    assert!((3_600_000 - 20_000..=3_601_000).contains(&left), "{left}");
    assert_eq!(ran.err, "1 entries at 000000000000000e:100\n");
}

#[test]
fn malformed_quotes_are_refused_with_their_line() {
    let server = Server::start();
    let folder = Folder::new();
    for (text, rows, why) in [
        (
            "n,a,b\n1,x,y\n2,x,y\"z\n3,x,y\n4,x,y\n5,x,y\n",
            1,
            "rows.csv:3: a quote (\") stands within a field",
        ),
        ("n,a,b\"\n1,x,y\n2,x,y\n", 0, "rows.csv:1: a quote (\")"),
        (
            "n,a\n1,\"12 inch\" screen\n",
            0,
            "rows.csv:2: there is text between the closing quote",
        ),
        (
            "n,\"a\n1,x\n2,x\n",
            0,
            "rows.csv:1: a quoted field begins here",
        ),
    ] {
        let file = folder.file("rows.csv", text);
        let ran = server.run(&["import", &file, "--key", "{n}", "--batch", "1"]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        assert!(ran.err.contains(why), "{ran:?}");
        assert_eq!(server.entries().len(), rows);
        server.clear();
    }
}

#[test]
fn what_editors_and_tapes_add_is_no_part_of_the_rows() {
    let server = Server::start();
    let folder = Folder::new();
    let file = folder.file("rows.jsonl", format!("\u{feff}{}", lines(1)));
    assert_eq!(server.run(&["import", &file]).code, 0);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(lines(2).as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let file = folder.file("rows.jsonl.gz", [&packed[..], &[0; 1_000]].concat());
    let ran = server.run(&["import", &file]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(server.entries().len(), 2);
    let file = folder.file("rows.jsonl.gz", [&packed[..], b"garbage"].concat());
    let ran = server.run(&["import", &file]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("behind the packed data"), "{ran:?}");
    let commit = format!("\u{feff}{}", lines(1));
    let ran = with_stdin(
        server.command(&["commit", "--file", "-"]),
        commit.as_bytes(),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn headers_are_the_files_or_given_and_an_empty_file_is_no_rows() {
    let server = Server::start();
    let folder = Folder::new();
    let file = folder.file("rows.csv", "7,x\n");
    for (arguments, value) in [
        (
            &["--header", "id,name", "--key", "{id}"][..],
            "{\"id\":\"7\",\"name\":\"x\"}",
        ),
        (
            &["--no-header", "--key", "{1}"],
            "{\"1\":\"7\",\"2\":\"x\"}",
        ),
    ] {
        let ran = server.run(&[&["import", &file], arguments].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(server.entries(), [entry("7", value)]);
    }
    let both = [
        "import",
        &file,
        "--key",
        "{1}",
        "--no-header",
        "--header",
        "a,b",
    ];
    assert_eq!(server.run(&both).code, 2);
    for name in ["empty.csv", "empty.jsonl"] {
        let file = folder.file(name, "");
        let ran = server.run(&["import", &file, "--key", "{id}"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.out.starts_with("0 rows in 0 commits"), "{ran:?}");
    }
    let file = folder.file("sheet.csv", "id,name,,\n1,x,,\n");
    let ran = server.run(&["import", &file, "--key", "{id}"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err
            .contains("sheet.csv:1: of 4 columns these have no name: 3, 4"),
        "{ran:?}"
    );
}

#[test]
fn rows_with_equal_keys_are_counted_or_refused_and_take_no_commits_of_their_own() {
    let server = Server::start();
    let folder = Folder::new();
    let text: String = (0..2_000)
        .map(|n| format!("{{\"put\":{{\"key\":\"k\",\"value\":\"{n}\"}}}}\n"))
        .collect();
    let file = folder.file("rows.jsonl", text);
    let ran = server.run(&["import", &file]);
    assert!(ran.out.starts_with("2000 rows in 4 commits"), "{ran:?}");
    assert!(
        ran.out
            .contains("; 1999 rows have the key of an earlier row"),
        "{ran:?}"
    );
    assert_eq!(server.entries(), [entry("k", "1999")]);
    let ran = server.run(&["import", &file, "--duplicates", "refuse"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err
            .contains("rows.jsonl:2: an earlier row has the key \"k\" too"),
        "{ran:?}"
    );
}

#[test]
fn a_nested_field_makes_a_key_and_a_file_may_have_any_name() {
    use std::os::unix::ffi::OsStrExt;
    let server = Server::start();
    let folder = Folder::new();
    let name = std::ffi::OsStr::from_bytes(b"\xff.jsonl");
    let path = folder.0.path().join(name);
    std::fs::write(&path, "{\"_id\":{\"$oid\":\"5f\"}}\n").unwrap();
    let mut command = server.command(&["import", "--key", "{_id.$oid}"]);
    let ran = run::finish(command.arg(&path).spawn().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        server.entries(),
        [entry("5f", "{\"_id\":{\"$oid\":\"5f\"}}")]
    );
}

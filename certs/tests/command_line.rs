//! The command as scripts use it: exit codes, texts, files and their modes, and what is never
//! overwritten. Refusals come first.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

#[path = "support/command.rs"]
mod command;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use command::Certs;
use storage_certs::{AuthorityDir, Credentials, Revocations, Serial, load_crls};

/// Every file below a folder with its content, to see that nothing changed.
fn snapshot(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            files.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    files
}

fn crl(certs: &Certs) -> Revocations {
    let crls = load_crls(certs.path("crl.pem")).unwrap();
    assert_eq!(crls.len(), 1);
    Revocations::from_der(&crls[0]).unwrap()
}

fn serial(certs: &Certs, name: &str) -> Serial {
    Serial::of(&Credentials::load(certs.path(name)).unwrap().chain[0]).unwrap()
}

#[test]
fn init_refuses_to_replace_any_part_of_a_ca() {
    let init = ["init", "--server-name", "localhost"];
    for part in ["ca.pem", "ca-key.pem", "crl.pem", "server"] {
        let certs = Certs::empty();
        fs::create_dir(&certs.dir).unwrap();
        fs::write(certs.path(part), "mine").unwrap();
        let before = snapshot(&certs.dir);

        let run = certs.run(init);

        assert_eq!(run.code, 1, "{part}");
        assert!(run.err.contains(part), "{}", run.err);
        assert!(run.err.contains("never replaced"), "{}", run.err);
        assert_eq!(snapshot(&certs.dir), before, "{part}");
    }
}

#[test]
fn init_has_no_force() {
    let certs = Certs::initialised();
    let before = snapshot(&certs.dir);
    assert_eq!(certs.run(["init", "--server-name", "x"]).code, 1);
    assert_eq!(certs.run(["init", "--server-name", "x", "--force"]).code, 2);
    assert_eq!(snapshot(&certs.dir), before);
}

#[test]
fn issue_refuses_an_existing_name_and_says_how_to_go_on() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let before = snapshot(&certs.dir);
    for name in ["laptop", "server"] {
        let run = certs.run(["issue", name]);
        assert_eq!(run.code, 1);
        let path = certs.path(name).display().to_string();
        assert!(run.err.contains(&path), "{}", run.err);
        assert!(run.err.contains("--force"), "{}", run.err);
    }
    assert_eq!(snapshot(&certs.dir), before);
}

#[test]
fn even_force_replaces_neither_the_ca_nor_a_foreign_folder() {
    let certs = Certs::initialised();
    fs::create_dir(certs.path("photos")).unwrap();
    fs::write(certs.path("photos/cat.jpg"), "cat").unwrap();
    fs::write(certs.path("notes"), "mine").unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", certs.path("link")).unwrap();
    let before = snapshot(&certs.path("photos"));
    let key = fs::read(certs.path("ca-key.pem")).unwrap();
    for name in ["ca.pem", "ca-key.pem", "crl.pem", "notes", "photos", "link"] {
        let run = certs.run(["issue", name, "--force"]);
        assert_eq!(run.code, 1, "{name}: {}", run.err);
        assert!(run.err.contains("choose another name"), "{}", run.err);
    }
    assert_eq!(snapshot(&certs.path("photos")), before);
    assert_eq!(fs::read(certs.path("ca-key.pem")).unwrap(), key);
    assert_eq!(fs::read(certs.path("notes")).unwrap(), b"mine");
}

#[test]
fn bad_input_is_exit_code_2_with_the_rule() {
    let certs = Certs::initialised();
    let before = snapshot(&certs.dir);
    let cases: [(&[&str], &str); 14] = [
        (&["issue", "../x"], "1 to 63 letters"),
        (&["issue", ".."], "1 to 63 letters"),
        (&["issue", "a/b"], "1 to 63 letters"),
        (&["issue", ""], "1 to 63 letters"),
        (&["revoke", "../x"], "1 to 63 letters"),
        (&["issue", "a", "--days", "0"], "1..=3650"),
        (&["issue", "a", "--days", "3651"], "1..=3650"),
        (&["issue", "a", "--san-uri", "no-scheme"], "scheme:rest"),
        (&["issue", "a", "--server-name", "b"], "--server"),
        (
            &["issue", "a", "--server", "--server-name", "*.b"],
            "host name",
        ),
        (&["issue", "a..b", "--server"], "host name"),
        (&["issue", "a", "--password-file", "/no/such"], "/no/such"),
        (&["issue", "a", "--password", "secret"], "--password"),
        (&["init"], "--server-name"),
    ];
    for (args, text) in cases {
        let run = certs.run(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.err);
        assert!(run.err.contains(text), "{args:?}: {}", run.err);
    }
    assert_eq!(snapshot(&certs.dir), before);
}

#[test]
fn a_password_file_needs_a_usable_first_line() {
    let certs = Certs::initialised();
    let file = certs.path("password");
    for bad in ["", "\nsecond line", "short", "pässword"] {
        fs::write(&file, bad).unwrap();
        let run = certs.run(["issue", "a", "--password-file", file.to_str().unwrap()]);
        assert_eq!(run.code, 2, "{bad:?}");
        assert!(run.err.contains("6 to 128"), "{}", run.err);
        assert!(bad.is_empty() || !run.err.contains(bad), "{}", run.err);
    }
    assert!(!certs.path("a").exists());
}

#[test]
fn nothing_works_without_a_ca() {
    let certs = Certs::empty();
    for command in ["issue", "revoke"] {
        let run = certs.run([command, "laptop"]);
        assert_eq!(run.code, 1);
        assert!(run.err.contains("storage-certs init"), "{}", run.err);
    }
    assert!(!certs.dir.exists());
}

#[test]
fn a_ca_key_of_another_ca_is_refused() {
    let certs = Certs::initialised();
    let other = Certs::initialised();
    fs::copy(other.path("ca-key.pem"), certs.path("ca-key.pem")).unwrap();
    let run = certs.run(["issue", "laptop"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("does not belong"), "{}", run.err);
}

#[test]
fn revoke_refuses_an_unknown_name() {
    let certs = Certs::initialised();
    let before = snapshot(&certs.dir);
    for name in ["nobody", "ca.pem"] {
        let run = certs.run(["revoke", name]);
        assert_eq!(run.code, 1);
        assert!(run.err.contains("is unknown"), "{}", run.err);
    }
    assert_eq!(snapshot(&certs.dir), before);
}

#[test]
fn revoke_refuses_a_certificate_or_a_crl_of_another_ca() {
    let certs = Certs::initialised();
    let other = Certs::initialised();
    certs.done("issue laptop");
    other.done("issue laptop");

    let own = fs::read(certs.path("laptop/cert.pem")).unwrap();
    fs::copy(other.path("laptop/cert.pem"), certs.path("laptop/cert.pem")).unwrap();
    let run = certs.run(["revoke", "laptop"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("was not issued by"), "{}", run.err);

    fs::write(certs.path("laptop/cert.pem"), own).unwrap();
    fs::copy(other.path("crl.pem"), certs.path("crl.pem")).unwrap();
    let run = certs.run(["revoke", "laptop"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("was not signed by the CA"), "{}", run.err);

    fs::remove_file(certs.path("crl.pem")).unwrap();
    let run = certs.run(["revoke", "laptop"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("no such file"), "{}", run.err);
}

#[test]
fn secrets_are_for_the_owner_only() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    certs.done("issue laptop --force");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&certs.dir), 0o700);
    assert_eq!(mode(&certs.path("ca-key.pem")), 0o600);
    for folder in ["server", "laptop"] {
        assert_eq!(mode(&certs.path(folder)), 0o700);
        for secret in [
            "key.pem",
            "keystore.p12",
            "truststore.p12",
            "keystore-password",
        ] {
            let path = certs.path(folder).join(secret);
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
        for public in ["ca.pem", "cert.pem"] {
            // The umask may take bits away, and nothing adds any.
            assert_eq!(mode(&certs.path(folder).join(public)) & !0o644, 0);
        }
    }
}

#[test]
fn the_report_names_every_file_and_nothing_is_left_beside_them() {
    let certs = Certs::empty();
    let mut report = certs.done("init --server-name localhost --server-name 127.0.0.1");
    report += &certs.done("issue laptop --days 7");
    let files = snapshot(&certs.dir);
    assert_eq!(files.len(), 3 + 6 + 6);
    for path in files.keys() {
        assert!(report.contains(path), "{path}");
    }
    assert!(report.contains("server for localhost, 127.0.0.1"));
    assert_eq!(fs::read_dir(&certs.dir).unwrap().count(), 5);
}

#[test]
fn a_given_password_is_not_written_down() {
    let certs = Certs::initialised();
    let file = certs.path("password");
    fs::write(&file, "correct horse\r\nnot this\n").unwrap();
    let args = ["issue", "a", "--password-file", file.to_str().unwrap()];
    let run = certs.run(args);
    assert_eq!(run.code, 0);
    assert!(!run.out.contains("correct horse"));
    assert!(!certs.path("a/keystore-password").exists());

    // A password that was generated before goes when a given one takes its place.
    certs.done("issue b");
    assert!(certs.path("b/keystore-password").exists());
    let args = ["issue", "b", "--force", "--password-file"];
    assert_eq!(
        certs
            .run(args.iter().map(|a| a.as_ref()).chain([file.as_os_str()]))
            .code,
        0
    );
    assert!(!certs.path("b/keystore-password").exists());
}

#[test]
fn force_issues_again_and_keeps_what_else_is_in_the_folder() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    fs::write(certs.path("laptop/notes"), "mine").unwrap();
    let first = serial(&certs, "laptop");

    let report = certs.done("issue laptop --force");

    let second = serial(&certs, "laptop");
    assert_ne!(first, second);
    assert!(report.contains(&format!("stays valid until it expires, serial {first}")));
    assert_eq!(fs::read(certs.path("laptop/notes")).unwrap(), b"mine");
}

#[test]
fn revoke_adds_the_serial_and_keeps_older_ones() {
    let certs = Certs::initialised();
    certs.done("issue a");
    certs.done("issue b");
    assert_eq!((crl(&certs).number(), crl(&certs).len()), (1, 0));

    let told = certs.done("revoke a");
    assert!(
        told.contains("give it to every server"),
        "each has its own: {told}"
    );
    assert_eq!((crl(&certs).number(), crl(&certs).len()), (2, 1));
    certs.done("revoke b");

    assert_eq!((crl(&certs).number(), crl(&certs).len()), (3, 2));
    assert!(crl(&certs).contains(&serial(&certs, "a")));
    assert!(crl(&certs).contains(&serial(&certs, "b")));
    assert!(!crl(&certs).contains(&serial(&certs, "server")));
}

#[test]
fn revoking_twice_says_so_and_changes_nothing() {
    let certs = Certs::initialised();
    certs.done("issue a");
    certs.done("revoke a");
    let before = snapshot(&certs.dir);
    assert!(certs.done("revoke a").contains("already revoked"));
    assert_eq!(snapshot(&certs.dir), before);
}

#[test]
fn a_name_issued_again_after_revocation_is_not_revoked() {
    let certs = Certs::initialised();
    certs.done("issue a");
    certs.done("revoke a");
    let report = certs.done("issue a --force");
    assert!(!report.contains("stays valid"), "{report}");
    assert!(!crl(&certs).contains(&serial(&certs, "a")));
}

#[test]
fn revoke_covers_the_certificates_a_name_had_before() {
    let certs = Certs::initialised();
    let mut serials = vec![];
    for args in ["issue a", "issue a --force", "issue a --force"] {
        certs.done(args);
        serials.push(serial(&certs, "a"));
    }
    let report = certs.done("revoke a");
    for serial in &serials {
        assert!(crl(&certs).contains(serial));
        assert!(report.contains(&serial.to_string()));
    }
    assert_eq!((crl(&certs).number(), crl(&certs).len()), (2, 3));
}

#[test]
fn revocations_at_once_lose_nothing() {
    let certs = Certs::initialised();
    let names: Vec<String> = (0..8).map(|i| format!("peer{i}")).collect();
    for name in &names {
        certs.done(&format!("issue {name}"));
    }
    std::thread::scope(|scope| {
        for name in &names {
            let certs = &certs;
            scope.spawn(move || certs.done(&format!("revoke {name}")));
        }
    });
    assert_eq!((crl(&certs).number(), crl(&certs).len()), (9, 8));
}

#[test]
fn of_several_init_at_once_one_makes_a_whole_ca() {
    let certs = Certs::empty();
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let init = || certs.run(["init", "--server-name", "localhost"]).code;
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(init)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1);
    assert_eq!(codes.iter().filter(|code| **code == 1).count(), 3);
    certs.done("issue laptop");
    certs.done("revoke server");
}

#[test]
fn an_open_folder_is_locked_until_dropped() {
    let certs = Certs::initialised();
    let key = fs::File::open(certs.path("ca-key.pem")).unwrap();
    let open = AuthorityDir::open(&certs.dir).unwrap();
    assert!(matches!(key.try_lock(), Err(fs::TryLockError::WouldBlock)));
    drop(open);
    // It waits, as a process that another test is starting may hold a copy until its exec.
    key.lock().unwrap();
}

#[test]
fn help_has_examples() {
    let certs = Certs::empty();
    let run = certs.run(["--help"]);
    assert_eq!(run.code, 0);
    assert!(run.out.contains("storage-certs revoke laptop --dir certs"));
    assert!(run.out.contains("Exit codes"));
}

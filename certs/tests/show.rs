//! `storage-certs show`: what it says of good folders, what it finds in bad ones, its exit codes,
//! and that no key is ever in what it prints.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

#[path = "support/command.rs"]
mod command;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, Issuer,
    KeyIdMethod, KeyPair, SerialNumber,
};
use serde_json::{Value, json};

use command::{Certs, Run};
use storage_certs::{AuthorityDir, Credentials, IssueOptions, Request, Serial, Validity};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn show(path: &Path, options: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_storage-certs"))
        .arg("show")
        .arg(path)
        .args(options)
        .output()
        .unwrap();
    let run = Run::from(output);
    assert!(!run.out.contains("PRIVATE KEY"), "{}", run.out);
    run
}

/// What it prints as JSON, after a look at the table of the same, and its exit code.
#[track_caller]
fn shown(path: &Path, code: i32) -> Value {
    let table = show(path, &[]);
    assert_eq!(table.code, code, "{}{}", table.out, table.err);
    let run = show(path, &["--json"]);
    assert_eq!(run.code, code, "{}{}", run.out, run.err);
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(value["usable"], json!(code == 0));
    // Each finding is in the table too.
    for finding in all_findings(&value) {
        let text = finding["text"].as_str().unwrap();
        assert!(table.out.contains(text), "{text}\n{}", table.out);
    }
    value
}

fn all_findings(value: &Value) -> Vec<Value> {
    let mut all = value["findings"].as_array().unwrap().clone();
    for credential in value["credentials"].as_array().unwrap() {
        all.extend(credential["findings"].as_array().unwrap().iter().cloned());
    }
    all
}

/// The findings as "level code".
fn codes(value: &Value) -> Vec<String> {
    let word = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let codes = all_findings(value);
    let codes = codes.iter();
    codes
        .map(|finding| format!("{} {}", word(finding, "level"), word(finding, "code")))
        .collect()
}

fn names(value: &Value) -> Vec<&str> {
    let credentials = value["credentials"].as_array().unwrap();
    let names = credentials.iter().map(|one| one["name"].as_str().unwrap());
    names.collect()
}

fn find<'a>(value: &'a Value, name: &str) -> &'a Value {
    let mut credentials = value["credentials"].as_array().unwrap().iter();
    credentials.find(|one| one["name"] == name).unwrap()
}

fn issue(certs: &Certs, name: &str, validity: Validity) {
    let request = Request::client(name.parse().unwrap()).validity(validity);
    let ca = AuthorityDir::open(&certs.dir).unwrap();
    ca.issue(&request, &IssueOptions::default()).unwrap();
}

fn serial(certs: &Certs, name: &str) -> String {
    let own = Credentials::load(certs.path(name)).unwrap();
    Serial::of(&own.chain[0]).unwrap().to_string()
}

fn truncate(path: &Path) {
    let whole = fs::read(path).unwrap();
    fs::write(path, &whole[..whole.len() / 2]).unwrap();
}

#[test]
fn a_path_that_is_not_there_or_has_no_certificates_is_bad_input() {
    let certs = Certs::initialised();
    let empty = certs.path("empty");
    fs::create_dir(&empty).unwrap();
    let garbage = certs.path("garbage.pem");
    fs::write(&garbage, "hello").unwrap();
    let short = certs.path("short.pem");
    fs::copy(certs.path("ca.pem"), &short).unwrap();
    truncate(&short);
    for (path, reason) in [
        (certs.path("nowhere"), "there is no such file or folder"),
        (empty, "no ca.pem, and no folder with a cert.pem"),
        (garbage, "it is not PEM text"),
        (short, "no END line"),
        (certs.path("ca-key.pem"), "there is no certificate in it"),
        (certs.path("crl.pem"), "there is no certificate in it"),
    ] {
        for options in [&[][..], &["--json"]] {
            let run = show(&path, options);
            assert_eq!(run.code, 2, "{}", run.out);
            assert!(run.err.contains(&path.display().to_string()), "{}", run.err);
            assert!(run.err.contains(reason), "{}", run.err);
            assert_eq!(run.out, "");
        }
    }
}

#[test]
fn a_folder_of_good_certificates_is_shown_whole() {
    let certs = Certs::initialised();
    certs.done("issue laptop --san-uri urn:storage:laptop");
    certs.done("issue a_b --days 31");

    let value = shown(&certs.dir, 0);

    assert_eq!(names(&value), ["ca", "server", "a_b", "laptop"]);
    assert_eq!(codes(&value), [""; 0]);
    let who = |name: &str| {
        let one = find(&value, name);
        let fields = ["kind", "principal", "subject", "alternative_names", "key"];
        Value::from_iter(fields.map(|field| one[field].clone()))
    };
    assert_eq!(
        who("ca"),
        json!(["authority", null, "CN=storage-sync CA", [], "matches"])
    );
    let names = ["DNS:localhost", "IP:127.0.0.1"];
    assert_eq!(
        who("server"),
        json!(["server", null, "CN=server", names, "matches"])
    );
    let principal = "cert:urn:storage:laptop";
    let names = ["DNS:laptop", "URI:urn:storage:laptop"];
    assert_eq!(
        who("laptop"),
        json!(["client", principal, "CN=laptop", names, "matches"])
    );
    assert_eq!(
        who("a_b"),
        json!(["client", "cert:a_b", "CN=a_b", [], "matches"])
    );
    let laptop = find(&value, "laptop");
    assert_eq!(laptop["serial"], serial(&certs, "laptop"));
    assert_eq!(laptop["issuer"], "CN=storage-sync CA");
    assert_eq!(laptop["days_left"], 364);
    assert_eq!(laptop["revoked"], false);
    assert_eq!(laptop["older_valid"], json!([]));
    let list = &value["revocation_lists"][0];
    assert_eq!((&list["number"], &list["revoked"]), (&json!(1), &json!(0)));

    let table = show(&certs.dir, &[]).out;
    let row = table.lines().find(|line| line.starts_with("laptop"));
    let row = row.unwrap();
    let until = laptop["valid_until"].as_str().unwrap();
    for cell in [principal, &until[..10], &serial(&certs, "laptop")] {
        assert!(row.contains(cell), "{row}");
    }
}

#[test]
fn times_are_those_of_the_certificate_as_rfc_3339() {
    let certs = Certs::initialised();
    let epoch = SystemTime::UNIX_EPOCH;
    let from = epoch + Duration::from_secs(1_000_000_000);
    issue(&certs, "a", Validity::between(from, from + DAY));
    let value = shown(&certs.path("a"), 1);
    let a = find(&value, "a");
    assert_eq!(a["valid_from"], "2001-09-09T01:46:40Z");
    assert_eq!(a["valid_until"], "2001-09-10T01:46:40Z");
    assert!(a["days_left"].as_i64().unwrap() < -9_000, "{a}");
    assert_eq!(codes(&value), ["error expired"]);
}

#[test]
fn dates_decide_between_good_warning_and_error() {
    let certs = Certs::initialised();
    let (now, hour) = (SystemTime::now(), DAY / 24);
    for (name, from, until, code, expected) in [
        ("good", now - hour, now + DAY * 30 + hour, 0, ""),
        (
            "soon",
            now - hour,
            now + DAY * 30 - hour,
            0,
            "warning expires_soon",
        ),
        ("today", now - hour, now + hour, 0, "warning expires_soon"),
        ("over", now - DAY, now - hour, 1, "error expired"),
        (
            "early",
            now + hour,
            now + DAY * 40,
            1,
            "error not_yet_valid",
        ),
    ] {
        issue(&certs, name, Validity::between(from, until));
        let value = shown(&certs.path(name), code);
        let expected: Vec<_> = expected.split_terminator(';').collect();
        assert_eq!(codes(&value), expected, "{name}");
    }
    let value = shown(&certs.dir, 1);
    assert_eq!(find(&value, "today")["days_left"], 0);
    assert_eq!(find(&value, "over")["days_left"], -1);
    assert_eq!(codes(&value).len(), 4);
}

#[test]
fn a_revoked_one_counts_only_if_it_was_asked_for_by_itself() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let now = SystemTime::now();
    issue(&certs, "old", Validity::between(now - DAY * 2, now - DAY));
    for name in ["laptop", "old"] {
        certs.done(&format!("revoke {name}"));
        let value = shown(&certs.path(name), 1);
        assert_eq!(codes(&value), ["error revoked"]);
        let value = shown(&certs.path(name).join("cert.pem"), 1);
        assert_eq!(codes(&value), ["error revoked"]);
    }
    let value = shown(&certs.dir, 0);
    assert_eq!(codes(&value), [""; 0]);
    for name in ["laptop", "old"] {
        assert_eq!(find(&value, name)["revoked"], true);
        let at = find(&value, name)["revoked_at"].as_str().unwrap();
        let table = show(&certs.dir, &[]).out;
        let row = table.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(row.contains(&at[..10]), "{row}");
    }
    assert_eq!(find(&value, "server")["revoked"], false);
    assert_eq!(value["revocation_lists"][0]["revoked"], 2);
}

#[test]
fn a_key_that_is_of_another_certificate_broken_or_gone_is_told() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let key = certs.path("laptop/key.pem");
    let own = fs::read(&key).unwrap();
    let state = |code: i32| {
        let value = shown(&certs.dir, code);
        let state = find(&value, "laptop")["key"].as_str().unwrap().to_owned();
        (state, codes(&value))
    };
    let expected = |key: &str, finding: &str| (key.to_owned(), vec![finding.to_owned()]);

    fs::copy(certs.path("server/key.pem"), &key).unwrap();
    assert_eq!(state(1), expected("differs", "error key_differs"));
    fs::write(&key, &own[..own.len() / 2]).unwrap();
    assert_eq!(state(1), expected("broken", "error key_broken"));
    let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    fs::write(&key, garbage).unwrap();
    assert_eq!(state(1), expected("broken", "error key_broken"));
    fs::write(&key, [own.as_slice(), b"\n", &own].concat()).unwrap();
    assert_eq!(state(0), expected("matches", "warning renewal_unfinished"));
    fs::remove_file(&key).unwrap();
    assert_eq!(state(0), expected("missing", "warning key_missing"));

    // The CA's is best kept elsewhere; a wrong one is not the CA's.
    fs::write(&key, own).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::copy(&key, certs.path("ca-key.pem")).unwrap();
    let value = shown(&certs.dir, 1);
    assert_eq!(find(&value, "ca")["key"], "differs");
    fs::remove_file(certs.path("ca-key.pem")).unwrap();
    let value = shown(&certs.dir, 0);
    assert_eq!(find(&value, "ca")["key"], "missing");
    assert_eq!(codes(&value), [""; 0]);
}

#[test]
fn one_broken_file_does_not_hide_the_others() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    certs.done("issue phone");
    truncate(&certs.path("laptop/cert.pem"));
    truncate(&certs.path("phone/ca.pem"));

    let value = shown(&certs.dir, 1);

    assert_eq!(names(&value), ["ca", "server", "phone", "laptop"]);
    let laptop = find(&value, "laptop");
    assert_eq!(laptop["findings"][0]["code"], "certificate_unreadable");
    assert_eq!(laptop.get("serial"), None);
    let text = laptop["findings"][0]["text"].as_str().unwrap();
    assert!(text.contains("laptop/cert.pem"), "{text}");
    assert!(text.contains("no END line"), "{text}");
    let phone = find(&value, "phone");
    assert_eq!(phone["findings"][0]["code"], "trust_unreadable");
    assert_eq!(phone["serial"], serial_of_file(&certs, "phone"));
    shown(&certs.path("laptop"), 1);

    truncate(&certs.path("ca.pem"));
    let value = shown(&certs.dir, 1);
    assert_eq!(find(&value, "server")["revoked"], false);
    let ca = &find(&value, "ca")["findings"][0];
    assert_eq!(ca["code"], "certificate_unreadable");
}

fn serial_of_file(certs: &Certs, name: &str) -> String {
    let chain = storage_certs::load_certificates(certs.path(name).join("cert.pem")).unwrap();
    Serial::of(&chain[0]).unwrap().to_string()
}

#[test]
fn a_crl_that_is_truncated_foreign_overdue_or_gone_is_told() {
    let certs = Certs::initialised();
    let other = Certs::initialised();
    certs.done("issue laptop");
    certs.done("revoke laptop");
    let crl = certs.path("crl.pem");
    let laptop = |value: &Value| find(value, "laptop")["revoked"].clone();

    truncate(&crl);
    let value = shown(&certs.dir, 1);
    assert_eq!(codes(&value), ["error crl_unreadable"]);
    assert_eq!(laptop(&value), Value::Null);
    let value = shown(&certs.path("laptop"), 1);
    assert_eq!(codes(&value), ["error crl_unreadable"]);

    fs::copy(other.path("crl.pem"), &crl).unwrap();
    let value = shown(&certs.dir, 1);
    assert_eq!(codes(&value), ["error crl_foreign"]);
    assert_eq!(laptop(&value), Value::Null);

    overdue(&certs);
    let value = shown(&certs.dir, 0);
    assert_eq!(codes(&value), ["warning crl_overdue"]);
    assert_eq!(laptop(&value), false);

    fs::remove_file(&crl).unwrap();
    let value = shown(&certs.dir, 0);
    assert_eq!(codes(&value), ["warning crl_missing"]);
    assert_eq!(laptop(&value), Value::Null);
    assert_eq!(codes(&shown(&certs.path("laptop"), 0)), [""; 0]);
}

/// A list of the CA, whose next one was due a day ago.
fn overdue(certs: &Certs) {
    let ca = AuthorityDir::open(&certs.dir).unwrap();
    let key = KeyPair::from_pem(&ca.authority().key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_der(ca.authority().certificate(), key).unwrap();
    let list = CertificateRevocationListParams {
        this_update: (SystemTime::now() - DAY * 9).into(),
        next_update: (SystemTime::now() - DAY).into(),
        crl_number: SerialNumber::from(7),
        issuing_distribution_point: None,
        revoked_certs: vec![],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list.signed_by(&issuer).unwrap().pem().unwrap();
    fs::write(certs.path("crl.pem"), pem).unwrap();
}

#[test]
fn secrets_that_others_can_read_are_warned_of() {
    let certs = Certs::initialised();
    let secrets = [
        "ca-key.pem",
        "server/key.pem",
        "server/keystore.p12",
        "server/keystore-password",
    ];
    for secret in secrets {
        let mode = fs::Permissions::from_mode(0o640);
        fs::set_permissions(certs.path(secret), mode).unwrap();
    }
    let value = shown(&certs.dir, 0);
    assert_eq!(codes(&value), ["warning secret_exposed"; 4]);
    for (finding, secret) in all_findings(&value).iter().zip(secrets) {
        let text = finding["text"].as_str().unwrap();
        assert!(text.contains(secret) && text.contains("0640"), "{text}");
    }
}

#[test]
fn older_certificates_that_still_let_a_name_in_are_told() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let first = serial(&certs, "laptop");
    certs.done("renew laptop");
    let value = shown(&certs.dir, 0);
    let older = &find(&value, "laptop")["older_valid"];
    assert_eq!(older[0]["serial"], first);
    assert_eq!(older.as_array().unwrap().len(), 1);
    assert!(show(&certs.dir, &[]).out.contains(&first));

    certs.done("renew laptop --revoke-old");
    let value = shown(&certs.dir, 0);
    assert_eq!(find(&value, "laptop")["older_valid"], json!([]));
}

#[test]
fn a_servers_copy_without_the_ca_is_shown_too() {
    let certs = Certs::initialised();
    certs.done("revoke server");
    for file in ["ca.pem", "ca-key.pem"] {
        fs::remove_file(certs.path(file)).unwrap();
    }
    let value = shown(&certs.dir, 0);
    assert_eq!(names(&value), ["server"]);
    assert_eq!(find(&value, "server")["revoked"], true);
}

#[test]
fn each_certificate_of_a_file_is_shown() {
    let certs = Certs::initialised();
    let file = certs.path("chain.pem");
    let mut text = fs::read(certs.path("server/cert.pem")).unwrap();
    text.extend(fs::read(certs.path("ca.pem")).unwrap());
    // A key beside them stays what it is: secret.
    text.extend(fs::read(certs.path("server/key.pem")).unwrap());
    fs::write(&file, text).unwrap();
    let value = shown(&file, 0);
    assert_eq!(names(&value), ["chain.pem", "chain.pem:2"]);
    assert_eq!(find(&value, "chain.pem")["kind"], "server");
    assert_eq!(find(&value, "chain.pem")["key"], "unknown");
    assert_eq!(find(&value, "chain.pem:2")["kind"], "authority");
}

#[test]
fn certificates_that_others_made_are_judged_as_the_server_does() {
    let certs = Certs::initialised();
    let make = |name: &str, change: &dyn Fn(&mut CertificateParams)| {
        let folder = certs.path(name);
        fs::create_dir(&folder).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_after = (SystemTime::now() + DAY * 99).into();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        fs::write(folder.join("cert.pem"), own.pem()).unwrap();
        fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(folder.join("key.pem"), mode).unwrap();
        fs::copy(certs.path("ca.pem"), folder.join("ca.pem")).unwrap();
        shown(&folder, i32::from(name != "stranger"))
    };
    let value = make("nobody", &|_| {});
    assert_eq!(codes(&value), ["error no_name", "warning issuer_unknown"]);
    let value = make("turned", &|params| {
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "\u{202e}nimda\u{1b}[2J");
    });
    assert_eq!(codes(&value), ["error no_name", "warning issuer_unknown"]);
    let subject = find(&value, "turned")["subject"].as_str().unwrap();
    assert_eq!(subject, "CN=\u{202e}nimda\u{1b}[2J");
    for options in [&[][..], &["--json"]] {
        let text = show(&certs.path("turned"), options).out;
        assert!(!text.contains(['\u{202e}', '\u{1b}']), "{text}");
    }
    let value = make("coder", &|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    });
    assert_eq!(codes(&value), ["error wrong_use", "warning issuer_unknown"]);
    let value = make("stranger", &|params| {
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "stranger");
    });
    assert_eq!(codes(&value), ["warning issuer_unknown"]);
    assert_eq!(find(&value, "stranger")["kind"], "server-and-client");
    assert_eq!(find(&value, "stranger")["principal"], "cert:stranger");
    assert_eq!(find(&value, "stranger")["revoked"], Value::Null);
}

#[test]
fn what_an_issue_left_that_was_cut_short_is_not_shown() {
    let certs = Certs::initialised();
    let left = certs.path(".storage-certs.x");
    fs::create_dir(&left).unwrap();
    fs::copy(certs.path("server/cert.pem"), left.join("cert.pem")).unwrap();
    assert_eq!(names(&shown(&certs.dir, 0)), ["ca", "server"]);
}

#[test]
fn no_part_of_a_key_is_printed() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let mut secrets = vec![];
    for file in ["ca-key.pem", "server/key.pem", "laptop/key.pem"] {
        let pem = fs::read_to_string(certs.path(file)).unwrap();
        secrets.extend(pem.lines().map(ToOwned::to_owned));
    }
    let password = fs::read_to_string(certs.path("laptop/keystore-password")).unwrap();
    secrets.push(password.trim_end().to_owned());
    // Swapped, cut and in the place of a certificate.
    fs::copy(certs.path("ca-key.pem"), certs.path("laptop/cert.pem")).unwrap();
    truncate(&certs.path("server/key.pem"));
    fs::copy(certs.path("laptop/key.pem"), certs.path("crl.pem")).unwrap();
    for options in [&[][..], &["--json"]] {
        let run = show(&certs.dir, options);
        assert_eq!(run.code, 1);
        for secret in &secrets {
            let part = secret.get(..secret.len().min(20)).unwrap();
            assert!(!run.out.contains(part), "{}", run.out);
            assert!(!run.err.contains(part), "{}", run.err);
        }
    }
}

//! `storage-certs renew`: what is new and what stays, what is refused, and that a refusal changes
//! nothing.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

#[path = "support/command.rs"]
mod command;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use p12_keystore::{KeyStore, KeyStoreEntry};
use rcgen::{
    CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use command::Certs;
use storage_certs::{
    Authority, AuthorityDir, Credentials, IssueOptions, Request, Revocations, Serial, Validity,
    load_certificates, load_crls,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn own(certs: &Certs, name: &str) -> Credentials {
    Credentials::load(certs.path(name)).unwrap()
}

fn serial(certs: &Certs, name: &str) -> Serial {
    Serial::of(&own(certs, name).chain[0]).unwrap()
}

fn revoked(certs: &Certs, serial: &Serial) -> bool {
    let crls = load_crls(certs.path("crl.pem")).unwrap();
    Revocations::from_der(&crls[0]).unwrap().contains(serial)
}

fn bytes(certs: &Certs, path: &str) -> Vec<u8> {
    fs::read(certs.path(path)).unwrap()
}

/// All that a renewal may not change, as text.
fn identity(certs: &Certs, name: &str) -> String {
    let chain = own(certs, name).chain;
    let (_, parsed) = X509Certificate::from_der(&chain[0]).unwrap();
    let names = parsed.subject_alternative_name().unwrap();
    let usage = parsed.extended_key_usage().unwrap();
    let constraints = parsed.basic_constraints().unwrap();
    format!(
        "{} {:?} {:?} {:?} {:?} {:?}",
        parsed.subject(),
        names.map(|names| &names.value.general_names),
        usage.map(|usage| usage.value),
        parsed.key_usage().unwrap().map(|usage| usage.value.flags),
        constraints.map(|constraints| constraints.value),
        parsed.issuer(),
    )
}

fn days_left(certs: &Certs, name: &str) -> u64 {
    let end = own(certs, name).expires_at().unwrap();
    // Whole days are reached only by a clock that stands still.
    let left = end.duration_since(SystemTime::now()).unwrap() + DAY / 2;
    left.as_secs() / DAY.as_secs()
}

/// Everything below a folder, to see that nothing changed.
fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            files.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

#[track_caller]
fn refused<const N: usize>(certs: &Certs, args: [&str; N], code: i32, text: &str) {
    let before = snapshot(&certs.dir);
    let run = certs.run(args);
    assert_eq!(run.code, code, "{}", run.err);
    assert!(run.err.contains(text), "{}", run.err);
    assert!(!run.err.contains("PRIVATE KEY"), "{}", run.err);
    assert_eq!(snapshot(&certs.dir), before, "a refusal writes nothing");
}

/// Puts a certificate of this CA that `issue` would not make into the folder "odd".
fn odd(certs: &Certs, change: impl FnOnce(&mut CertificateParams)) {
    let ca = AuthorityDir::open(&certs.dir).unwrap();
    let ca_key = KeyPair::from_pem(&ca.authority().key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_der(ca.authority().certificate(), ca_key).unwrap();
    let mut params = CertificateParams::new(vec!["odd".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "odd");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = SystemTime::now().into();
    params.not_after = (SystemTime::now() + DAY * 30).into();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let folder = certs.path("odd");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    fs::copy(certs.path("ca.pem"), folder.join("ca.pem")).unwrap();
}

#[test]
fn names_and_use_stay_and_serial_dates_and_key_are_new() {
    let certs = Certs::initialised();
    certs.done("issue laptop --days 10 --san-uri urn:storage:laptop");
    for (name, kind) in [("server", "server"), ("laptop", "client")] {
        let (before, who) = (own(&certs, name), identity(&certs, name));

        let report = certs.done(&format!("renew {name}"));

        let after = own(&certs, name);
        assert_eq!(identity(&certs, name), who);
        assert_ne!(after.chain, before.chain);
        assert_ne!(after.key.secret_der(), before.key.secret_der());
        assert!(report.contains(&format!("renewed {kind} {name} with a new key")));
        assert!(
            report.contains(&serial(&certs, name).to_string()),
            "{report}"
        );
    }
    let report = certs.done("renew server");
    assert!(report.contains("DNS:localhost, IP:127.0.0.1"), "{report}");
    assert!(report.contains("within seconds"), "{report}");
}

#[test]
fn it_lasts_as_long_as_the_one_before_or_as_asked() {
    let certs = Certs::initialised();
    certs.done("issue laptop --days 10");
    certs.done("renew laptop");
    assert_eq!(days_left(&certs, "laptop"), 10);
    certs.done("renew laptop --days 20");
    assert_eq!(days_left(&certs, "laptop"), 20);
    certs.done("renew laptop");
    assert_eq!(days_left(&certs, "laptop"), 20);
    certs.done("renew server");
    assert_eq!(days_left(&certs, "server"), 365);
}

#[test]
fn an_expired_certificate_can_be_renewed() {
    let certs = Certs::initialised();
    let now = SystemTime::now();
    let request = Request::client("late".parse().unwrap())
        .validity(Validity::between(now - DAY * 9, now - DAY * 2));
    let ca = AuthorityDir::open(&certs.dir).unwrap();
    ca.issue(&request, &IssueOptions::default()).unwrap();
    drop(ca);
    let report = certs.done("renew late");
    assert_eq!(days_left(&certs, "late"), 7);
    assert!(!report.contains("stays valid"), "{report}");
}

#[test]
fn reuse_key_keeps_the_key_and_needs_it_only_for_a_keystore() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let (key, before) = (bytes(&certs, "laptop/key.pem"), own(&certs, "laptop"));

    let report = certs.done("renew laptop --reuse-key");

    assert!(report.contains("with the same key"), "{report}");
    assert!(!report.contains("key.pem"), "{report}");
    assert_eq!(bytes(&certs, "laptop/key.pem"), key);
    assert_ne!(own(&certs, "laptop").chain, before.chain);

    // Handed over and removed here: the certificate has all that is needed.
    fs::remove_file(certs.path("laptop/key.pem")).unwrap();
    let args = ["renew", "laptop", "--reuse-key"];
    refused(&certs, args, 2, "there is no key.pem to take it from");
    fs::remove_file(certs.path("laptop/keystore.p12")).unwrap();
    certs.done("renew laptop --reuse-key");
    assert!(!certs.path("laptop/key.pem").exists());
    fs::write(certs.path("laptop/key.pem"), &key).unwrap();
    assert_eq!(own(&certs, "laptop").key, before.key);
}

#[test]
fn reuse_key_refuses_the_key_of_another_certificate() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    fs::copy(certs.path("server/key.pem"), certs.path("laptop/key.pem")).unwrap();
    let args = ["renew", "laptop", "--reuse-key"];
    refused(&certs, args, 2, "does not belong to the certificate");
    // A new key puts it right.
    certs.done("renew laptop");
    own(&certs, "laptop");
}

#[test]
fn the_keystore_is_renewed_under_its_password() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let stays = ["ca.pem", "truststore.p12", "keystore-password"];
    let before = stays.map(|file| bytes(&certs, &format!("laptop/{file}")));

    certs.done("renew laptop");

    let after = stays.map(|file| bytes(&certs, &format!("laptop/{file}")));
    assert_eq!(after, before);
    let password = String::from_utf8(bytes(&certs, "laptop/keystore-password")).unwrap();
    let store = bytes(&certs, "laptop/keystore.p12");
    let store = KeyStore::from_pkcs12(&store, password.trim_end()).unwrap();
    let Some(KeyStoreEntry::PrivateKeyChain(entry)) = store.entry("laptop") else {
        panic!("{store:?}");
    };
    let pair = own(&certs, "laptop");
    assert_eq!(entry.key(), pair.key.secret_der());
    assert_eq!(entry.chain()[0].as_der(), &*pair.chain[0]);
}

#[test]
fn a_keystore_without_its_password_is_not_left_behind_with_the_old_certificate() {
    let certs = Certs::initialised();
    let (right, wrong) = (certs.path("right"), certs.path("wrong"));
    fs::write(&right, "correct horse\n").unwrap();
    fs::write(&wrong, "correct donkey\n").unwrap();
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());
    let issue = ["issue", "laptop", "--password-file", right];
    assert_eq!(certs.run(issue).code, 0);

    let hint = "--password-file";
    refused(&certs, ["renew", "laptop"], 2, hint);
    let args = ["renew", "laptop", "--password-file", wrong];
    refused(&certs, args, 2, "does not open it");

    let args = ["renew", "laptop", "--password-file", right];
    let run = certs.run(args);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(!certs.path("laptop/keystore-password").exists());
    KeyStore::from_pkcs12(&bytes(&certs, "laptop/keystore.p12"), "correct horse").unwrap();

    fs::write(certs.path("laptop/keystore.p12"), "damaged").unwrap();
    let args = ["renew", "laptop", "--password-file", right];
    refused(&certs, args, 2, "or it is damaged");
    fs::remove_file(certs.path("laptop/keystore.p12")).unwrap();
    let args = ["renew", "laptop", "--password-file", right];
    refused(&certs, args, 2, "leave the password out");
    certs.done("renew laptop");
    assert!(!certs.path("laptop/keystore.p12").exists());
}

#[test]
fn the_old_certificate_stays_valid_and_known() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let first = serial(&certs, "laptop");

    let report = certs.done("renew laptop");

    let stays = format!("stays valid until it expires, serial {first}");
    assert!(report.contains(&stays), "{report}");
    assert!(!revoked(&certs, &first));
    certs.done("revoke laptop");
    assert!(revoked(&certs, &first));
    assert!(revoked(&certs, &serial(&certs, "laptop")));
}

#[test]
fn revoke_old_revokes_all_but_the_new_one() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let first = serial(&certs, "laptop");
    certs.done("renew laptop");
    let second = serial(&certs, "laptop");

    let report = certs.done("renew laptop --revoke-old");

    for old in [&first, &second] {
        assert!(revoked(&certs, old));
        assert!(report.contains(&format!("revoked the older certificate, serial {old}")));
    }
    assert!(!revoked(&certs, &serial(&certs, "laptop")));
    assert!(report.contains("CRL number 2"), "{report}");
    assert!(!report.contains("stays valid"), "{report}");
}

#[test]
fn the_ca_behind_the_own_certificate_stays_there_and_is_not_revoked() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let mut chain = bytes(&certs, "laptop/cert.pem");
    chain.extend(bytes(&certs, "ca.pem"));
    fs::write(certs.path("laptop/cert.pem"), chain).unwrap();

    certs.done("renew laptop --revoke-old");

    let ca = load_certificates(certs.path("ca.pem")).unwrap();
    assert_eq!(own(&certs, "laptop").chain[1..], ca);
    assert!(!revoked(&certs, &Serial::of(&ca[0]).unwrap()));
}

#[test]
fn what_else_is_in_the_folder_stays() {
    let certs = Certs::initialised();
    let mut anchors = bytes(&certs, "server/ca.pem");
    anchors.extend(Authority::generate().unwrap().certificate_pem().bytes());
    fs::write(certs.path("server/ca.pem"), &anchors).unwrap();
    fs::write(certs.path("server/notes"), "mine").unwrap();
    certs.done("renew server");
    assert_eq!(bytes(&certs, "server/ca.pem"), anchors);
    assert_eq!(bytes(&certs, "server/notes"), b"mine");
}

#[test]
fn who_could_read_the_key_can_read_the_new_one_and_nobody_else() {
    let certs = Certs::initialised();
    let key = certs.path("server/key.pem");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    certs.done("renew server");
    assert_eq!(mode(&key), 0o600);
    // A group may be let in, others may not.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    certs.done("renew server");
    assert_eq!(mode(&key), 0o640);
    // A strict umask is no reason to lock the service out of what is not secret.
    let cert = certs.path("server/cert.pem");
    fs::set_permissions(&cert, fs::Permissions::from_mode(0o644)).unwrap();
    let strict = Command::new("sh")
        .args(["-c", r#"umask 077 && "$0" renew server --dir "$1""#])
        .arg(env!("CARGO_BIN_EXE_storage-certs"))
        .arg(&certs.dir)
        .output()
        .unwrap();
    assert!(strict.status.success(), "{strict:?}");
    assert_eq!((mode(&key), mode(&cert)), (0o640, 0o644));
    // Only root can give a file away, as it does to the user that a service has.
    if fs::metadata(&key).unwrap().uid() == 0 {
        for path in [&key, &cert] {
            chown(path, Some(12_345), Some(23_456)).unwrap();
        }
        certs.done("renew server");
        for path in [&key, &cert] {
            let after = fs::metadata(path).unwrap();
            assert_eq!((after.uid(), after.gid()), (12_345, 23_456));
        }
    }
}

#[test]
fn what_is_unknown_or_revoked_is_refused() {
    let certs = Certs::initialised();
    certs.done("issue laptop");
    fs::create_dir(certs.path("photos")).unwrap();
    for name in ["nobody", "photos", "ca.pem"] {
        refused(&certs, ["renew", name], 1, "is unknown");
    }
    refused(&certs, ["renew", "../server"], 2, "1 to 63 letters");
    refused(&certs, ["renew", "laptop", "--days", "0"], 2, "1..=3650");
    certs.done("revoke laptop");
    refused(&certs, ["renew", "laptop"], 1, "issue laptop --force");
}

#[test]
fn without_the_cas_key_the_refusal_names_it() {
    let certs = Certs::initialised();
    fs::remove_file(certs.path("ca-key.pem")).unwrap();
    refused(&certs, ["renew", "server"], 1, "ca-key.pem is not here");
    fs::remove_file(certs.path("ca.pem")).unwrap();
    refused(&certs, ["renew", "server"], 1, "there is no CA");
}

#[test]
fn a_certificate_that_would_outlive_the_ca_is_refused_with_the_days_that_fit() {
    let certs = Certs::initialised();
    let args = ["renew", "server", "--days", "3650"];
    refused(&certs, args, 1, "take --days 3649 at most");
    certs.done("renew server --days 3649");

    // One of a CA with an hour left.
    let now = SystemTime::now();
    let hour = Duration::from_secs(60 * 60);
    let ca = Authority::generate_for(Validity::between(now - hour, now + hour)).unwrap();
    fs::write(certs.path("ca.pem"), ca.certificate_pem()).unwrap();
    fs::write(certs.path("ca-key.pem"), ca.key_pem()).unwrap();
    let crl = ca.sign_crl(&Revocations::new()).unwrap();
    fs::write(certs.path("crl.pem"), crl).unwrap();
    let request = Request::client("short".parse().unwrap());
    fs::create_dir(certs.path("short")).unwrap();
    let issued = ca.issue(&request).unwrap();
    fs::write(certs.path("short/cert.pem"), issued.certificate_pem).unwrap();
    refused(&certs, ["renew", "short"], 1, "make a new CA");
}

#[test]
fn broken_files_and_those_of_another_ca_are_refused_by_name() {
    let certs = Certs::initialised();
    let other = Certs::initialised();
    certs.done("issue laptop");
    let args = ["renew", "laptop"];
    for (file, reason) in [
        ("laptop/cert.pem", "no END line"),
        ("crl.pem", "no END line"),
        ("ca.pem", "no END line"),
        ("ca-key.pem", "no END line"),
    ] {
        let whole = bytes(&certs, file);
        fs::write(certs.path(file), &whole[..whole.len() / 2]).unwrap();
        refused(&certs, args, 2, file);
        refused(&certs, args, 2, reason);
        fs::write(certs.path(file), whole).unwrap();
    }
    let whole = bytes(&certs, "crl.pem");
    fs::copy(other.path("crl.pem"), certs.path("crl.pem")).unwrap();
    refused(&certs, args, 2, "was not signed by the CA");
    fs::write(certs.path("crl.pem"), whole).unwrap();
    fs::copy(other.path("server/cert.pem"), certs.path("laptop/cert.pem")).unwrap();
    refused(&certs, args, 2, "was not issued by");
}

#[test]
fn a_certificate_with_what_a_renewal_would_lose_is_refused() {
    let certs = Certs::initialised();
    let args = ["renew", "odd"];
    odd(&certs, |params| {
        let name = &mut params.distinguished_name;
        name.push(DnType::OrganizationName, "us");
    });
    refused(&certs, args, 2, "beside the common name");
    odd(&certs, |params| {
        let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999], vec![5, 0]);
        params.custom_extensions.push(extension);
    });
    refused(&certs, args, 2, "its extension 1.3.6.1.4.1.99999");
    odd(&certs, |params| {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::CodeSigning);
    });
    refused(&certs, args, 2, "neither to serve nor to dial");
    odd(&certs, |params| params.extended_key_usages.clear());
    refused(&certs, args, 2, "whether its peer serves or dials");

    // What has a place is kept, though `issue` does not make it.
    odd(&certs, |params| {
        let uses = &mut params.extended_key_usages;
        uses.push(ExtendedKeyUsagePurpose::ServerAuth);
        uses.reverse();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let mail = "a@example.com".try_into().unwrap();
        params.subject_alt_names.push(SanType::Rfc822Name(mail));
        let address = "fe80::1".parse().unwrap();
        params.subject_alt_names.push(SanType::IpAddress(address));
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    });
    let who = identity(&certs, "odd");
    let report = certs.done("renew odd");
    assert_eq!(identity(&certs, "odd"), who);
    assert!(report.contains("DNS:odd, email:a@example.com, IP:fe80::1"));
}

#[test]
fn a_reader_that_loads_all_the_time_never_meets_a_broken_file() {
    let certs = Certs::initialised();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut loads, mut apart) = (0_u32, 0_u32);
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                match Credentials::load(certs.path("server")) {
                    Ok(_) => loads += 1,
                    // Certificate and key are two files: a whole renewal may lie between the reads.
                    Err(error) if error.to_string().contains("does not belong") => apart += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            (loads, apart)
        });
        for _ in 0..20 {
            certs.done("renew server");
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        let (loads, apart) = reader.join().unwrap();
        assert!(loads > apart, "{loads} loads, {apart} apart");
    });
}

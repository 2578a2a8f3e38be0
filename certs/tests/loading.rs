//! Loading of credentials and CRLs: each thing that can be wrong with a file is named with the
//! file, then what is right is loaded.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

use std::fs;
use std::path::Path;

use storage_certs::{
    Authority, AuthorityDir, CredentialPaths, Credentials, InitOptions, IssueOptions, Request,
    load_crls, server_name,
};
use tempfile::TempDir;

/// A CA's folder with the server and a client "laptop".
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    let names = vec![server_name("localhost").unwrap()];
    let done = AuthorityDir::init(dir.path(), &InitOptions::new(names)).unwrap();
    let request = Request::client("laptop".parse().unwrap());
    let options = IssueOptions::default();
    done.authority_dir.issue(&request, &options).unwrap();
    dir
}

fn refusal(dir: &Path) -> String {
    Credentials::load(dir).unwrap_err().to_string()
}

#[test]
fn a_file_that_is_missing_empty_or_something_else_is_named() {
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for file in ["ca.pem", "cert.pem"] {
        for (content, reason) in [
            (None, "there is no such file"),
            (Some(""), "the file is empty"),
            (Some(" \n"), "the file is empty"),
            (
                Some("hello"),
                "there is no certificate in it (it is not PEM",
            ),
            (Some(key), "there is no certificate in it"),
            (Some(garbage), "certificate 1 in it is no valid X.509"),
            (Some("-----BEGIN CERTIFICATE-----\nAAAA\n"), "no END line"),
        ] {
            let dir = folder();
            let path = dir.path().join("laptop").join(file);
            match content {
                None => fs::remove_file(&path).unwrap(),
                Some(content) => fs::write(&path, content).unwrap(),
            }
            let text = refusal(&dir.path().join("laptop"));
            assert!(text.starts_with(&path.display().to_string()), "{text}");
            assert!(text.contains(reason), "{text}");
        }
    }
}

#[test]
fn a_key_that_cannot_be_used_is_named() {
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----";
    let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let dir = folder();
    let path = dir.path().join("laptop/key.pem");
    let foreign = fs::read_to_string(dir.path().join("server/key.pem")).unwrap();
    let certificate = fs::read_to_string(dir.path().join("laptop/cert.pem")).unwrap();
    for (content, reason) in [
        (encrypted, "is encrypted"),
        (&certificate, "there is no private key in it"),
        (garbage, "the key cannot be used for TLS"),
        (&foreign, "does not belong to the certificate in"),
    ] {
        fs::write(&path, content).unwrap();
        let text = refusal(&dir.path().join("laptop"));
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        assert!(text.contains(reason), "{text}");
        assert!(!text.contains("MIG"), "{text}");
    }
}

#[test]
fn of_several_keys_in_a_file_the_certificates_is_taken() {
    let dir = folder();
    let path = dir.path().join("laptop/key.pem");
    let own = fs::read_to_string(&path).unwrap();
    let before = Credentials::load(dir.path().join("laptop")).unwrap();
    let foreign = fs::read_to_string(dir.path().join("server/key.pem")).unwrap();
    for both in [format!("{own}\n{foreign}"), format!("{foreign}\n{own}")] {
        fs::write(&path, both).unwrap();
        let after = Credentials::load(dir.path().join("laptop")).unwrap();
        assert_eq!(after.key, before.key);
    }
    fs::write(&path, format!("{foreign}\n{foreign}")).unwrap();
    let text = refusal(&dir.path().join("laptop"));
    assert!(
        text.contains("does not belong to the certificate"),
        "{text}"
    );
}

#[test]
fn a_crl_that_is_none_is_named() {
    let dir = folder();
    let path = dir.path().join("crl.pem");
    let garbage = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let certificate = fs::read_to_string(dir.path().join("ca.pem")).unwrap();
    for (content, reason) in [
        ("", "the file is empty"),
        (&*certificate, "no certificate revocation list in it"),
        (garbage, "no valid certificate revocation list"),
    ] {
        fs::write(&path, content).unwrap();
        let text = load_crls(&path).unwrap_err().to_string();
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn a_whole_folder_loads_and_its_debug_shows_no_key() {
    let dir = folder();
    let own = Credentials::load(dir.path().join("laptop")).unwrap();
    assert_eq!((own.ca.len(), own.chain.len()), (1, 1));
    assert!(own.expires_at().unwrap() > std::time::SystemTime::now());
    assert_eq!(
        format!("{own:?}"),
        r#"Credentials { ca: 1, chain: 1, key: "[masked]" }"#
    );
    assert_eq!(load_crls(dir.path().join("crl.pem")).unwrap().len(), 1);
}

#[test]
fn several_trust_anchors_and_files_elsewhere_load() {
    let dir = folder();
    let more = Authority::generate().unwrap();
    let mut anchors = fs::read_to_string(dir.path().join("ca.pem")).unwrap();
    anchors += more.certificate_pem();
    let mut paths = CredentialPaths::in_dir(dir.path().join("server"));
    paths.ca = dir.path().join("anchors.pem");
    fs::write(&paths.ca, anchors).unwrap();
    let own = Credentials::load_files(&paths).unwrap();
    assert_eq!(own.ca.len(), 2);
    assert_eq!(own.ca[1], *more.certificate());
}

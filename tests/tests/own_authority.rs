//! Certificates that `storage-certs` did not make: an authority with an intermediate one, and names that only an attacker
//! would give.

#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::StorageExt;
use storage_testkit::harness::ServerProcess;
use tempfile::TempDir;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A root, an authority below it that signs all others, and the folders that server and clients are given.
struct House {
    root: Issuer,
    below: Issuer,
    folder: TempDir,
}

impl House {
    fn new() -> Self {
        let key = || KeyPair::generate().unwrap();
        let root = Issuer::self_signed(authority("root"), key()).unwrap();
        let below = Issuer::signed_by(authority("below"), key(), &root).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let house = Self {
            root,
            below,
            folder,
        };
        let mut server = named("server");
        server.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        house.write("server", &server, true);
        house
    }

    /// Makes credentials; `chain`: with the intermediate certificate, which verifies them up to the root.
    fn write(&self, folder: &str, params: &CertificateParams, chain: bool) -> PathBuf {
        let dir = self.folder.path().join("certs").join(folder);
        fs::create_dir_all(&dir).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut pem = params.signed_by(&key, &self.below).unwrap().pem();
        if chain {
            pem += &self.below.as_ref().pem();
        }
        fs::write(dir.join("cert.pem"), pem).unwrap();
        fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        fs::write(dir.join("ca.pem"), self.root.as_ref().pem()).unwrap();
        dir
    }

    fn client(&self, folder: &str, name: &str, chain: bool) -> PathBuf {
        let mut params = named(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(
            folder.bytes().map(u64::from).sum::<u64>(),
        ));
        self.write(folder, &params, chain)
    }

    fn start(&self) -> ServerProcess {
        let (certs, data) = (self.folder.path().join("certs"), self.folder.path());
        let data = data.join("data");
        ServerProcess::start(&[
            "--listen",
            "127.0.0.1:0",
            "--certs",
            certs.to_str().unwrap(),
            "--data",
            data.to_str().unwrap(),
        ])
    }
}

async fn connect(
    server: &ServerProcess,
    credentials: &Path,
) -> storage_protocol::Result<RemoteStorage> {
    let url = format!("{}/storage/model", server.url("storage"));
    let options = ConnectOptions::new(url).credentials_dir(credentials);
    RemoteStorage::connect(options).await
}

async fn refusal(server: &ServerProcess, credentials: &Path) -> String {
    match connect(server, credentials).await {
        Ok(storage) => panic!("{} was let in", storage.principal()),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn an_intermediate_authority_is_trusted_by_who_brings_its_certificate() {
    let house = House::new();
    let server = house.start();
    let whole = connect(&server, &house.client("a", "alice", true)).await;
    let whole = whole.unwrap();
    assert_eq!(whole.principal(), "cert:alice");
    whole.put("k".into(), "v".into()).await.unwrap();
    // Nothing leads from this one to the root.
    let text = refusal(&server, &house.client("b", "bob", false)).await;
    assert!(text.contains("does not trust the issuer"), "{text}");
    assert!(whole.get_one("k".into()).await.unwrap().is_some());
}

#[tokio::test]
async fn where_there_are_lists_an_intermediate_authority_stands_among_the_authorities_with_its_own()
{
    let house = House::new();
    let (alice, bob) = (
        house.client("a", "alice", true),
        house.client("b", "bob", true),
    );
    let now = time::OffsetDateTime::now_utc();
    let list = |issuer: &Issuer, revoked: &[&str]| {
        let revoked = revoked.iter().map(|folder| RevokedCertParams {
            serial_number: SerialNumber::from(folder.bytes().map(u64::from).sum::<u64>()),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::days(1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(issuer).unwrap().pem().unwrap()
    };
    let crl = house.folder.path().join("certs/crl.pem");
    // The root says nothing of those that it did not sign: they may be revoked.
    fs::write(&crl, list(&house.root, &[])).unwrap();
    let mut server = house.start();
    let text = refusal(&server, &alice).await;
    assert!(text.contains("does not trust the issuer"), "{text}");
    assert!(server.terminate().success());

    let authorities = house.root.as_ref().pem() + &house.below.as_ref().pem();
    let trusted = house.folder.path().join("certs/server/ca.pem");
    fs::write(trusted, authorities).unwrap();
    // A serial number counts for its own issuer only.
    let both = list(&house.root, &["a"]) + &list(&house.below, &["b"]);
    fs::write(&crl, both).unwrap();
    let server = house.start();
    let text = refusal(&server, &bob).await;
    assert!(text.contains("revoked"), "{text}");
    connect(&server, &alice).await.unwrap();
}

#[tokio::test]
async fn names_that_only_an_attacker_would_give_are_refused_and_cost_nobody_else_anything() {
    let house = House::new();
    let server = house.start();
    let witness = connect(&server, &house.client("a", "alice", true)).await;
    let witness = witness.unwrap();
    // Names that C would cut in two, that move the cursor, that read like another, and that nearly fill a handshake message.
    let long = "x".repeat(60_000);
    let names = ["alice\0.example", "al\u{1b}[2Jice", "\u{202e}ecila", &long];
    for (place, name) in names.iter().enumerate() {
        let credentials = house.client(&format!("odd{place}"), name, true);
        let text = refusal(&server, &credentials).await;
        assert!(
            text.contains("403")
                && text.contains("has control characters or ones that do not show"),
            "{text}"
        );
        witness.put("k".into(), "v".into()).await.unwrap();
    }
}

//! Who gets in, over an in-memory stream: the refusals first.

use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use storage_certs::{AuthorityDir, InitOptions, IssueOptions, Name, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;

struct Folder {
    dir: tempfile::TempDir,
    authority: AuthorityDir,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca");
        let names = vec![ServerName::try_from("localhost").unwrap()];
        AuthorityDir::init(&path, &InitOptions::new(names)).unwrap();
        let authority = AuthorityDir::open(&path).unwrap();
        Self { dir, authority }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    fn issue(&self, name: &str) -> Credentials {
        let request = Request::client(name.parse::<Name>().unwrap());
        self.authority
            .issue(&request, &IssueOptions::default())
            .unwrap();
        Credentials::load(self.path().join(name)).unwrap()
    }

    fn tls(&self, mode: TlsMode, oldest: TlsVersion) -> Tls {
        let files = TlsFiles::read(&self.path()).unwrap();
        Tls::new(&files, &listener(mode, oldest)).unwrap()
    }

    fn mutual(&self) -> Tls {
        self.tls(TlsMode::Mutual, TlsVersion::Tls13)
    }
}

fn listener(mode: TlsMode, oldest: TlsVersion) -> ListenerConfig {
    let mut listener = ListenerConfig::new(crate::config::DEFAULT_ADDRESS);
    (listener.tls, listener.tls_min_version) = (mode, oldest);
    listener
}

/// A client that trusts the folder's authority; it keeps its tickets.
fn client(folder: &Folder, own: Option<Credentials>, version: TlsVersion) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(folder.authority.authority().certificate().clone())
        .unwrap();
    let versions: &[_] = match version {
        TlsVersion::Tls12 => &[&rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match own {
        Some(own) => builder.with_client_auth_cert(own.chain, own.key).unwrap(),
        None => builder.with_no_client_auth(),
    })
}

/// The principal, and whether the session was resumed; or why the server refused.
async fn handshake(tls: &Tls, client: &Arc<ClientConfig>) -> Result<(String, bool), String> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(client.clone());
    let peer = tokio::spawn(async move {
        let name = ServerName::try_from("localhost").unwrap();
        let Ok(mut stream) = connector.connect(name, theirs).await else {
            return;
        };
        // Tickets come with the first data.
        let _ = stream.read_u8().await;
        let connection: &ClientConnection = stream.get_ref().1;
        assert!(connection.protocol_version().is_some());
    });
    match tls.accept(ours, 0).await {
        Ok(mut accepted) => {
            let _ = accepted.stream.write_u8(1).await;
            let _ = accepted.stream.flush().await;
            peer.await.unwrap();
            Ok((
                accepted
                    .identity
                    .unwrap()
                    .map_or_else(|| "anonymous".to_owned(), |identity| identity.to_string()),
                accepted.resumed,
            ))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// A certificate whose end is the first day of this year.
fn ending(name: &str, year: i32) -> CertificateDer<'static> {
    let mut params = rcgen::CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().clone()
}

#[test]
fn a_peer_is_let_in_until_the_first_certificate_of_its_chain_ends() {
    let until = |own: i32, between: &[i32]| {
        let between = between.iter().map(|year| ending("between", *year));
        let between: Vec<_> = between.collect();
        identity_of(&ending("own", own), &between, 0)
            .unwrap()
            .until()
    };
    let alone = |year: i32| until(year, &[]).unwrap();
    assert_eq!(until(2090, &[2095, 2080]), Some(alone(2080)));
    assert_eq!(until(2080, &[2095, 2090]), Some(alone(2080)));
    // One that was over before the chain was verified is no part of it.
    assert_eq!(until(2090, &[2010, 2095]), Some(alone(2090)));
}

#[tokio::test]
async fn a_client_without_certificate_or_of_another_authority_is_refused() {
    let (folder, other) = (Folder::new(), Folder::new());
    let tls = folder.mutual();
    let nobody = client(&folder, None, TlsVersion::Tls13);
    assert!(
        handshake(&tls, &nobody)
            .await
            .unwrap_err()
            .contains("no certificates")
    );
    let stranger = client(&folder, Some(other.issue("stranger")), TlsVersion::Tls13);
    let error = handshake(&tls, &stranger).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let known = client(&folder, Some(folder.issue("known")), TlsVersion::Tls13);
    assert_eq!(
        handshake(&tls, &known).await.unwrap(),
        ("cert:known".to_owned(), false)
    );
}

#[tokio::test]
async fn a_revoked_client_is_refused() {
    let folder = Folder::new();
    let (revoked, kept) = (folder.issue("revoked"), folder.issue("kept"));
    folder
        .authority
        .revoke(&"revoked".parse().unwrap())
        .unwrap();
    let tls = folder.mutual();
    let error = handshake(&tls, &client(&folder, Some(revoked), TlsVersion::Tls13)).await;
    assert!(error.unwrap_err().contains("Revoked"));
    let kept = client(&folder, Some(kept), TlsVersion::Tls13);
    assert!(handshake(&tls, &kept).await.is_ok());
}

#[tokio::test]
async fn a_resumed_session_of_a_client_that_was_revoked_meanwhile_is_refused() {
    let folder = Folder::new();
    let mut tls = folder.tls(TlsMode::Mutual, TlsVersion::Tls12);
    let peer = client(&folder, Some(folder.issue("robot")), TlsVersion::Tls13);
    assert!(
        !handshake(&tls, &peer).await.unwrap().1,
        "the first is whole"
    );
    let resumed = handshake(&tls, &peer).await.unwrap();
    assert_eq!(resumed, ("cert:robot".to_owned(), true));
    folder.authority.revoke(&"robot".parse().unwrap()).unwrap();
    // The tickets stay good; what is known of the client is not.
    tls.verifier = folder.mutual().verifier;
    let error = handshake(&tls, &peer).await.unwrap_err();
    assert!(
        error.contains("resumed") && error.contains("Revoked"),
        "{error}"
    );
}

#[tokio::test]
async fn tls_1_2_gets_no_tickets() {
    let folder = Folder::new();
    let tls = folder.tls(TlsMode::Mutual, TlsVersion::Tls12);
    let peer = client(&folder, Some(folder.issue("old")), TlsVersion::Tls12);
    for _ in 0..2 {
        let whole = handshake(&tls, &peer).await.unwrap();
        assert_eq!(whole, ("cert:old".to_owned(), false));
    }
}

#[tokio::test]
async fn a_newest_version_is_held_to() {
    let folder = Folder::new();
    let mut listener = listener(TlsMode::Mutual, TlsVersion::Tls12);
    listener.tls_max_version = TlsVersion::Tls12;
    let tls = Tls::new(&TlsFiles::read(&folder.path()).unwrap(), &listener).unwrap();
    let new = Some(folder.issue("new"));
    assert!(
        handshake(&tls, &client(&folder, new, TlsVersion::Tls13))
            .await
            .is_err()
    );
    let old = Some(folder.issue("old"));
    assert!(
        handshake(&tls, &client(&folder, old, TlsVersion::Tls12))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn without_client_certificates_everybody_is_anonymous() {
    let folder = Folder::new();
    let tls = folder.tls(TlsMode::Server, TlsVersion::Tls13);
    let with_one = client(&folder, Some(folder.issue("known")), TlsVersion::Tls13);
    assert_eq!(handshake(&tls, &with_one).await.unwrap().0, "anonymous");
}

#[tokio::test]
async fn tls_1_2_must_be_asked_for() {
    let folder = Folder::new();
    let old = client(&folder, Some(folder.issue("old")), TlsVersion::Tls12);
    assert!(handshake(&folder.mutual(), &old).await.is_err());
    let tls = folder.tls(TlsMode::Mutual, TlsVersion::Tls12);
    assert_eq!(handshake(&tls, &old).await.unwrap().0, "cert:old");
}

#[test]
fn a_list_of_another_authority_is_refused_at_start() {
    let (folder, other) = (Folder::new(), Folder::new());
    // The two have the same name, so only the signature tells them apart.
    std::fs::copy(other.path().join("crl.pem"), folder.path().join("crl.pem")).unwrap();
    let loaded = Tls::new(
        &TlsFiles::read(&folder.path()).unwrap(),
        &listener(TlsMode::Mutual, TlsVersion::Tls13),
    );
    assert!(
        matches!(loaded, Err(TlsError::ForeignCrl { .. })),
        "{loaded:?}"
    );
}

#[tokio::test]
async fn older_versions_and_early_data_are_not_taken() {
    let folder = Folder::new();
    let tls = folder.tls(TlsMode::Mutual, TlsVersion::Tls12);
    assert_eq!(tls.acceptor.config().max_early_data_size, 0);
    // A ClientHello with nothing in it but its version: SSL 3, TLS 1.0 and 1.1.
    for minor in 0..=2 {
        let body = [
            &[3, minor][..],
            &[7; 32],
            &[0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 0],
        ]
        .concat();
        let length = |len: usize| u8::try_from(len).unwrap();
        let handshake = [&[1, 0, 0, length(body.len())][..], &body].concat();
        let record = [&[22, 3, 1, 0, length(handshake.len())][..], &handshake].concat();
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(&record).await.unwrap();
        let refused = tls
            .accept(ours, 0)
            .await
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(refused.starts_with("TLS:"), "{refused}");
        let mut alert = [0; 7];
        theirs.read_exact(&mut alert).await.unwrap();
        assert_eq!((alert[0], alert[5]), (21, 2), "a fatal alert");
    }
}

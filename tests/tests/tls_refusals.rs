//! Who is not let in, by real processes over real sockets: the refusals first, then the successes.
//!
//! Each refusal is told to the client in words that name its cause. Beside each, a witness that was connected before
//! goes on as if nothing had happened: the server stays up, and nobody else notices.

#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]

mod processes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use processes::run;
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore};
use rustls_pki_types::ServerName;
use storage_certs::{AuthorityDir, Credentials, Request, Revoked, Validity, server_name};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::{StorageError, StorageExt};
use storage_testkit::harness::{Certificates, ServerProcess, binary, connect};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// For each wait on the server; nothing here takes long.
const PATIENCE: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A server, its CA, and a client that was there before the refused one and stays.
struct House {
    server: ServerProcess,
    certificates: Certificates,
    witness: RemoteStorage,
    folder: TempDir,
    puts: u32,
}

impl House {
    /// With mutual TLS, and what `prepare` does to the CA before the start.
    async fn new(prepare: impl FnOnce(&Certificates)) -> Self {
        let certificates = Certificates::issue(&["witness"]);
        prepare(&certificates);
        let folder = tempfile::tempdir().unwrap();
        let server = ServerProcess::mutual(&certificates, &folder.path().join("data"), &[]);
        Self::with(server, certificates, folder).await
    }

    /// With one listener as the lines in `listener` say.
    async fn with_listener(listener: &str) -> Self {
        let certificates = Certificates::issue(&["witness"]);
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        let (data, certs) = (folder.path().join("data"), certificates.dir());
        let text = format!("data = {data:?}\ncerts = {certs:?}\n[[listener]]\n{listener}\n");
        fs::write(&config, text).unwrap();
        let server = ServerProcess::start(&["--config", config.to_str().unwrap()]);
        Self::with(server, certificates, folder).await
    }

    async fn with(server: ServerProcess, certificates: Certificates, folder: TempDir) -> Self {
        let witness = connect(&server, &certificates, "witness", "model")
            .await
            .unwrap();
        Self {
            server,
            certificates,
            witness,
            folder,
            puts: 0,
        }
    }

    fn port(&self) -> u16 {
        let url = self.server.url("storage");
        url.rsplit(':').next().unwrap().parse().unwrap()
    }

    fn url(&self) -> String {
        format!("{}/storage/model", self.server.url("storage"))
    }

    fn credentials(&self, name: &str) -> PathBuf {
        self.certificates.dir().join(name)
    }

    /// Connects with `options`, which must fail; gives the text.
    async fn refusal(&mut self, options: ConnectOptions) -> String {
        let connecting = tokio::time::timeout(PATIENCE, RemoteStorage::connect(options));
        let error = match connecting.await.expect("a refusal comes soon") {
            Ok(storage) => panic!("{} was let in", storage.principal()),
            Err(error) => error,
        };
        assert!(
            matches!(error, StorageError::ConnectFailed { .. }),
            "{error:?}"
        );
        self.nobody_else_noticed().await;
        error.to_string()
    }

    async fn refusal_of(&mut self, credentials: &Path) -> String {
        let options = ConnectOptions::new(self.url()).credentials_dir(credentials);
        self.refusal(options).await
    }

    /// The witness writes and reads on its old connection.
    async fn nobody_else_noticed(&mut self) {
        self.puts += 1;
        let value = self.puts.to_string();
        let work = async {
            let put = self.witness.put("seen".into(), value.clone().into()).await;
            put.unwrap();
            self.witness.get_one("seen".into()).await.unwrap().unwrap()
        };
        let entry = tokio::time::timeout(PATIENCE, work)
            .await
            .expect("the witness is served");
        assert_eq!(entry.value, value);
    }
}

fn names(what: &str, text: &str, causes: &[&str]) {
    for cause in causes {
        assert!(text.contains(cause), "{what}: {cause:?} is not in: {text}");
    }
}

/// Credentials of `theirs`, who trust the CA of `ours`: what an intruder would bring along.
fn smuggle(theirs: &Path, ours: &Path, into: &Path) -> PathBuf {
    fs::create_dir_all(into).unwrap();
    for name in ["cert.pem", "key.pem"] {
        fs::copy(theirs.join(name), into.join(name)).unwrap();
    }
    fs::copy(ours.join("ca.pem"), into.join("ca.pem")).unwrap();
    into.to_owned()
}

/// A rustls client of its own, where `RemoteStorage` does not do what is to be refused.
fn raw_client(
    ca: &Path,
    own: Option<&Path>,
    version: &'static rustls::SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    raw_client_of(ca, own, &[version])
}

fn raw_client_of(
    ca: &Path,
    own: Option<&Path>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in storage_certs::load_certificates(ca).unwrap() {
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some(dir) => {
            let own = Credentials::load(dir).unwrap();
            builder.with_client_auth_cert(own.chain, own.key).unwrap()
        }
    })
}

/// What a TLS client got: the HTTP status line of the answer, the version, and whether the session was resumed.
type Answer = (String, ProtocolVersion, bool);

/// Shakes hands and asks for the endpoint in plain HTTP, to the end of the answer.
async fn ask(port: u16, config: &Arc<ClientConfig>) -> Result<Answer, String> {
    let work = async {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = TlsConnector::from(config.clone())
            .connect(name, tcp)
            .await
            .map_err(|error| error.to_string())?;
        let request = "GET /storage/model HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        // A refusal may come before this is sent; then reading tells why.
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .await
            .map_err(|error| error.to_string())?;
        let connection = stream.get_ref().1;
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let status = String::from_utf8_lossy(&answer)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        Ok((status, connection.protocol_version().unwrap(), resumed))
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("an answer or a refusal comes soon")
}

/// What the server says to an HTTP request that asks for no upgrade: behind TLS, so the peer was let in.
const LET_IN: &str = "HTTP/1.1 426 Upgrade Required";

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mut house = House::new(|_| ()).await;
    let ca = house.certificates.dir().join("ca.pem");
    let options = ConnectOptions::new(house.url()).without_client_certificate(ca);
    let text = house.refusal(options).await;
    names("no certificate", &text, &["demands a client certificate"]);
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused_and_refuses_the_server() {
    let mut house = House::new(|_| ()).await;
    let other = Certificates::issue(&["stranger"]);
    let stranger = other.dir().join("stranger");
    let text = house.refusal_of(&stranger).await;
    names("their CA", &text, &["the server's certificate", "issuer"]);

    let own = house.credentials("witness");
    let smuggled = smuggle(&stranger, &own, &house.folder.path().join("smuggled"));
    let text = house.refusal_of(&smuggled).await;
    names("a foreign CA", &text, &["issuer of our certificate"]);
}

#[tokio::test]
async fn a_certificate_outside_of_its_time_is_refused() {
    let now = SystemTime::now();
    let periods = [
        ("expired", now - 2 * DAY, now - DAY),
        ("early", now + DAY, now + 2 * DAY),
    ];
    let mut house = House::new(|certificates| {
        for (name, from, to) in periods {
            let request = Request::client(name.parse().unwrap());
            certificates.add(&request.validity(Validity::between(from, to)));
        }
    })
    .await;
    let expired = house.credentials("expired");
    let text = house.refusal_of(&expired).await;
    names("expired", &text, &["our certificate", "expired"]);
    let early = house.credentials("early");
    let text = house.refusal_of(&early).await;
    names(
        "not yet valid",
        &text,
        &["our certificate", "not yet valid"],
    );
}

#[tokio::test]
async fn a_client_that_was_revoked_before_the_start_is_refused() {
    let mut house = House::new(|certificates| {
        certificates.add(&Request::client("thief".parse().unwrap()));
        certificates.add(&Request::client("kept".parse().unwrap()));
        let authority = AuthorityDir::open(certificates.dir()).unwrap();
        let revoked = authority.revoke(&"thief".parse().unwrap()).unwrap();
        assert!(matches!(revoked, Revoked::Now { .. }));
    })
    .await;
    let thief = house.credentials("thief");
    let text = house.refusal_of(&thief).await;
    names("revoked", &text, &["our certificate is revoked"]);
    let kept = connect(&house.server, &house.certificates, "kept", "model").await;
    assert_eq!(kept.unwrap().principal(), "cert:kept");
}

#[tokio::test]
async fn a_certificate_for_the_other_role_is_refused_both_ways() {
    let mut house = House::new(|_| ()).await;
    // The server's own credentials, used to dial.
    let server = house.credentials("server");
    let text = house.refusal_of(&server).await;
    names("server as client", &text, &["not accept our certificate"]);

    // And a client's, used to serve: a thief of them cannot pose as the server.
    let certificates = Certificates::issue(&["thief", "caller"]);
    let (thief, served) = (
        certificates.dir().join("thief"),
        certificates.dir().join("server"),
    );
    smuggle(&thief, &thief, &served);
    let folder = tempfile::tempdir().unwrap();
    let impostor = ServerProcess::mutual(&certificates, &folder.path().join("data"), &[]);
    let text = connect(&impostor, &certificates, "caller", "model")
        .await
        .unwrap_err()
        .to_string();
    names("client as server", &text, &["the server's certificate"]);
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let certificates = Certificates::issue(&["caller"]);
    // Dialled by 127.0.0.1, and its certificate is for elsewhere.example.
    let elsewhere = vec![server_name("elsewhere.example").unwrap()];
    certificates.add(&Request::server("elsewhere".parse().unwrap(), elsewhere));
    let other = certificates.dir().join("elsewhere");
    smuggle(&other, &other, &certificates.dir().join("server"));
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::mutual(&certificates, &folder.path().join("data"), &[]);
    let text = connect(&server, &certificates, "caller", "model")
        .await
        .unwrap_err()
        .to_string();
    let causes = [
        "the server's certificate is for another name",
        "elsewhere.example",
    ];
    names("wrong name", &text, &causes);
}

#[tokio::test]
async fn tls_1_2_is_refused_until_the_listener_allows_it_by_name() {
    let mut house = House::new(|_| ()).await;
    let ca = house.certificates.dir().join("ca.pem");
    let own = house.credentials("witness");
    let old = raw_client(&ca, Some(&own), &rustls::version::TLS12);
    let text = ask(house.port(), &old).await.unwrap_err();
    names("TLS 1.2", &text, &["ProtocolVersion"]);
    house.nobody_else_noticed().await;
    let new = raw_client(&ca, Some(&own), &rustls::version::TLS13);
    let (status, version, _) = ask(house.port(), &new).await.unwrap();
    assert_eq!(
        (status.as_str(), version),
        (LET_IN, ProtocolVersion::TLSv1_3)
    );

    let listener = "address = '127.0.0.1:0'\ntls_min_version = '1.2'";
    let mut house = House::with_listener(listener).await;
    let ca = house.certificates.dir().join("ca.pem");
    let nobody = raw_client(&ca, None, &rustls::version::TLS12);
    let text = ask(house.port(), &nobody).await.unwrap_err();
    names("TLS 1.2, no certificate", &text, &["alert"]);
    house.nobody_else_noticed().await;
    let own = house.credentials("witness");
    for (version, expected) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let client = raw_client(&ca, Some(&own), version);
        let (status, version, _) = ask(house.port(), &client).await.unwrap();
        assert_eq!((status.as_str(), version), (LET_IN, expected));
    }
}

#[tokio::test]
async fn plain_text_to_a_tls_port_is_refused_and_says_so() {
    let mut house = House::new(|_| ()).await;
    let url = format!("ws://127.0.0.1:{}/storage/model", house.port());
    let options = ConnectOptions::new(url).danger_plaintext();
    let text = house.refusal(options).await;
    names("plain to TLS", &text, &["TLS", "wss"]);

    // And the other way round.
    let listener = "address = '127.0.0.1:0'\ntls = 'off'";
    let certificates = Certificates::issue(&["caller"]);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("server.toml");
    let data = folder.path().join("data");
    fs::write(
        &config,
        format!("data = {data:?}\n[[listener]]\n{listener}\n"),
    )
    .unwrap();
    let server = ServerProcess::start(&["--config", config.to_str().unwrap()]);
    let url = server.url("storage").replace("ws://", "wss://");
    let options = ConnectOptions::new(format!("{url}/storage/model"))
        .credentials_dir(certificates.dir().join("caller"));
    let text = RemoteStorage::connect(options)
        .await
        .unwrap_err()
        .to_string();
    names("TLS to plain", &text, &["TLS"]);
}

#[tokio::test]
async fn a_ticket_does_not_outlive_the_revocation_of_its_owner() {
    let listener = "address = '127.0.0.1:0'\ntls_min_version = '1.2'";
    let mut house = House::with_listener(listener).await;
    house
        .certificates
        .add(&Request::client("robot".parse().unwrap()));
    let (ca, own) = (
        house.certificates.dir().join("ca.pem"),
        house.credentials("robot"),
    );
    let robot = raw_client(&ca, Some(&own), &rustls::version::TLS13);
    let port = house.port();
    // The ticket is good: the second handshake is resumed.
    assert!(!ask(port, &robot).await.unwrap().2);
    let (status, _, resumed) = ask(port, &robot).await.unwrap();
    assert_eq!((status.as_str(), resumed), (LET_IN, true));

    let authority = AuthorityDir::open(house.certificates.dir()).unwrap();
    authority.revoke(&"robot".parse().unwrap()).unwrap();
    drop(authority);
    // The same address, so that the client offers its ticket.
    house.server.kill();
    let config = house.folder.path().join("server.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")),
    )
    .unwrap();
    house.server = ServerProcess::start(&["--config", config.to_str().unwrap()]);
    assert_eq!(house.port(), port);
    let text = ask(port, &robot).await.unwrap_err();
    names("revoked, with a ticket", &text, &["CertificateRevoked"]);
    let text = house_refusal_after_restart(&house, "robot").await;
    names("revoked", &text, &["our certificate is revoked"]);
    let witness = connect(&house.server, &house.certificates, "witness", "model").await;
    assert_eq!(witness.unwrap().principal(), "cert:witness");
}

/// Clients of mwDB's age stall when a ticket comes in one segment with the server's last handshake message.
#[tokio::test]
async fn tls_1_2_gets_no_tickets_and_is_not_resumed() {
    let listener = "address = '127.0.0.1:0'\ntls_min_version = '1.2'";
    let house = House::with_listener(listener).await;
    let (ca, own) = (
        house.certificates.dir().join("ca.pem"),
        house.credentials("witness"),
    );
    // It offers to take tickets, and would use what it gets.
    let client = raw_client(&ca, Some(&own), &rustls::version::TLS12);
    for _ in 0..2 {
        let (status, version, resumed) = ask(house.port(), &client).await.unwrap();
        assert_eq!((status.as_str(), resumed), (LET_IN, false));
        assert_eq!(version, ProtocolVersion::TLSv1_2);
    }
}

#[tokio::test]
async fn tls_1_3_is_left_out_where_a_listener_says_so() {
    let listener = "address = '127.0.0.1:0'\ntls_min_version = '1.2'\ntls_max_version = '1.2'\n\
                    [[listener]]\naddress = '127.0.0.1:0'";
    let certificates = Certificates::issue(&["witness"]);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("server.toml");
    let (data, certs) = (folder.path().join("data"), certificates.dir());
    let text = format!("data = {data:?}\ncerts = {certs:?}\n[[listener]]\n{listener}\n");
    fs::write(&config, text).unwrap();
    let server = ServerProcess::start(&["--config", config.to_str().unwrap()]);
    let port = server
        .url("storage")
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let (ca, own) = (certs.join("ca.pem"), certs.join("witness"));
    let new = raw_client(&ca, Some(&own), &rustls::version::TLS13);
    let text = ask(port, &new).await.unwrap_err();
    names("TLS 1.3", &text, &["ProtocolVersion"]);
    // What a client that offers both gets, as Java does by default.
    let both = raw_client_of(&ca, Some(&own), rustls::ALL_VERSIONS);
    let (status, version, _) = ask(port, &both).await.unwrap();
    assert_eq!(
        (status.as_str(), version),
        (LET_IN, ProtocolVersion::TLSv1_2)
    );
}

/// As [`House::refusal_of`], behind a restart that ended the witness's connection too.
async fn house_refusal_after_restart(house: &House, name: &str) -> String {
    match connect(&house.server, &house.certificates, name, "model").await {
        Ok(storage) => panic!("{} was let in", storage.principal()),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn the_principal_is_the_uri_else_the_dns_name_else_the_common_name() {
    let house = House::new(|certificates| {
        let uri = "spiffe://example/robots/7".parse().unwrap();
        certificates.add(&Request::client("robot".parse().unwrap()).uri(uri));
        certificates.add(&Request::client("robot.example".parse().unwrap()));
        // No host name, so it is in the common name only.
        certificates.add(&Request::client("robot_8".parse().unwrap()));
    })
    .await;
    for (name, principal) in [
        ("robot", "cert:spiffe://example/robots/7"),
        ("robot.example", "cert:robot.example"),
        ("robot_8", "cert:robot_8"),
        ("witness", "cert:witness"),
    ] {
        let storage = connect(&house.server, &house.certificates, name, "model").await;
        assert_eq!(storage.unwrap().principal(), principal);
    }
}

#[tokio::test]
async fn a_listener_that_asks_for_no_certificate_takes_everybody_as_anonymous() {
    let mut house =
        House::with_listener("address = '127.0.0.1:0'\ntls = 'server'\nauth = ['anonymous']").await;
    // The server still has to be the right one.
    let other = Certificates::issue(&[]);
    let options =
        ConnectOptions::new(house.url()).without_client_certificate(other.dir().join("ca.pem"));
    let text = house.refusal(options).await;
    names("their CA", &text, &["the server's certificate", "issuer"]);

    let ca = house.certificates.dir().join("ca.pem");
    let options = ConnectOptions::new(house.url()).without_client_certificate(ca);
    let nobody = RemoteStorage::connect(options).await.unwrap();
    assert_eq!(nobody.principal(), "anonymous");
    nobody.put("k".into(), "v".into()).await.unwrap();
    assert_eq!(house.witness.principal(), "anonymous");
}

#[tokio::test]
async fn plain_text_is_for_loopback_unless_it_was_asked_for_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("server.toml");
    let data = folder.path().join("data");
    let write = |listener: &str| {
        let text = format!("data = {data:?}\n[[listener]]\n{listener}\n");
        fs::write(&config, text).unwrap();
    };
    write("address = '0.0.0.0:0'\ntls = 'off'");
    let mut command = Command::new(binary("storage-server"));
    let causes = ["tls", "off", "danger_plaintext", "0.0.0.0"];
    let refused = run(command.args(["serve", "--config"]).arg(&config), b"");
    let refused = refused.expect(2).says(&causes);
    assert_eq!(refused.text(), "", "it does not listen");

    for listener in [
        "address = '127.0.0.1:0'\ntls = 'off'",
        "address = '0.0.0.0:0'\ntls = 'off'\ndanger_plaintext = true\nauth = ['anonymous']",
    ] {
        write(listener);
        let server = ServerProcess::start(&["--config", config.to_str().unwrap()]);
        let port = server.url("storage").rsplit(':').next().unwrap();
        let url = format!("ws://127.0.0.1:{port}/storage/model");
        // The client, too, wants to be asked by name.
        let careful = RemoteStorage::connect(ConnectOptions::new(&url)).await;
        let text = careful.unwrap_err().to_string();
        names("ws", &text, &["danger_plaintext"]);
        let options = ConnectOptions::new(&url).danger_plaintext();
        let storage = RemoteStorage::connect(options).await.unwrap();
        assert_eq!(storage.principal(), "anonymous");
    }
}

//! What stands in the way of a connection, and what the error says; over TLS, refusals first, then success.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::SinkExt;
use futures_util::future::join;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::PrivateKeyDer;
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::native::ServerMessage;
use storage_protocol::{StorageError, StorageExt};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::fake::{Listener, Peer, welcome};

fn text<T>(result: Result<T, StorageError>) -> String {
    match result.err().unwrap() {
        StorageError::ConnectFailed { message } => message,
        other => panic!("{other:?} is not ConnectFailed"),
    }
}

#[tokio::test]
async fn wrong_options_are_named() {
    let connect = |options| async { text(RemoteStorage::connect(options).await) };
    let bad_keyspace = ConnectOptions::new("wss://localhost:1/storage/Models");
    assert!(
        connect(bad_keyspace)
            .await
            .contains("keyspace name \"Models\"")
    );
    let plain = ConnectOptions::new("ws://localhost:1/storage/models");
    assert!(connect(plain).await.contains("danger_plaintext"));
    let bare = ConnectOptions::new("wss://localhost:1/storage/models");
    assert!(connect(bare.clone()).await.contains("credentials_dir"));
    let missing = connect(bare.credentials_dir("/nowhere")).await;
    assert!(
        missing.contains("/nowhere/cert.pem cannot be read"),
        "{missing}"
    );
}

#[tokio::test]
async fn names_of_this_machine_are_not_looked_up() {
    // Most machines have no such names in /etc/hosts; some do not even have the first.
    for host in ["localhost", "db.localhost", "LOCALHOST."] {
        let listener = Listener::bind().await;
        let options = ConnectOptions::new(listener.url_of(host)).danger_plaintext();
        let server = async {
            let (mut peer, _) = Peer::accept(listener.accept_tcp().await).await;
            peer.send_as(None, ServerMessage::Welcome(welcome())).await;
            peer
        };
        let (storage, _peer) = join(RemoteStorage::connect(options), server).await;
        storage.unwrap();
    }
}

#[tokio::test]
async fn an_unknown_host_and_a_closed_port_are_told_apart() {
    let url = "ws://no-such-host.invalid:1/storage/models";
    let unknown = RemoteStorage::connect(ConnectOptions::new(url).danger_plaintext()).await;
    assert!(text(unknown).contains("cannot be resolved"));
    let listener = Listener::bind().await;
    let options = listener.options();
    drop(listener);
    let refused = text(RemoteStorage::connect(options).await);
    assert!(
        refused.contains("refused") && refused.contains("127.0.0.1") && refused.contains("; [::1]"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = Listener::bind().await;
    let options = listener
        .options()
        .connect_timeout(Duration::from_millis(200));
    let connect = RemoteStorage::connect(options);
    let (result, _tcp) = join(connect, listener.accept_tcp()).await;
    assert!(text(result).contains("waiting for the WebSocket upgrade"));
}

#[tokio::test]
async fn an_http_refusal_is_told_with_its_text() {
    let listener = Listener::bind().await;
    let server = async {
        let mut tcp = listener.accept_tcp().await;
        let mut request = [0; 4096];
        assert!(tcp.read(&mut request).await.unwrap() > 0);
        let answer = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 16\r\n\r\nsessions_max: 20";
        tcp.write_all(answer.as_bytes()).await.unwrap();
        tcp
    };
    let (result, _) = join(RemoteStorage::connect(listener.options()), server).await;
    let text = text(result);
    assert!(
        text.contains("429") && text.contains("sessions_max: 20"),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_of_another_protocol_is_refused() {
    let listener = Listener::bind().await;
    let server = async {
        let tcp = listener.accept_tcp().await;
        tokio_tungstenite::accept_async(tcp).await
    };
    let (result, _) = join(RemoteStorage::connect(listener.options()), server).await;
    assert!(text(result).contains("subprotocol storage-sync.v1"));
}

#[tokio::test]
async fn a_close_instead_of_welcome_is_told_with_code_and_reason() {
    let listener = Listener::bind().await;
    let server = async {
        let (mut peer, hello) = Peer::accept(listener.accept_tcp().await).await;
        assert_eq!(hello.agent, "tester");
        let frame = CloseFrame {
            code: 1013.into(),
            reason: "sessions_max".into(),
        };
        peer.ws.send(Message::Close(Some(frame))).await.unwrap();
    };
    let connect = RemoteStorage::connect(listener.options().agent("tester"));
    let text = text(join(connect, server).await.0);
    assert!(
        text.contains("1013") && text.contains("sessions_max"),
        "{text}"
    );
}

#[tokio::test]
async fn something_else_instead_of_welcome_is_refused() {
    let mut other_version = welcome();
    other_version.version = 2;
    let go_away = ServerMessage::GoAway {
        retry_after: Duration::from_secs(9),
        reason: "restart".into(),
    };
    for (message, why) in [
        (ServerMessage::Welcome(other_version), "version 2"),
        (go_away, "going away: restart"),
    ] {
        let listener = Listener::bind().await;
        let server = async {
            let (mut peer, _) = Peer::accept(listener.accept_tcp().await).await;
            peer.send_as(None, message).await;
            peer
        };
        let text = text(
            join(RemoteStorage::connect(listener.options()), server)
                .await
                .0,
        );
        assert!(text.contains(why), "{text}");
    }
}

/// An authority that signs what a test needs.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
    der: rustls_pki_types::CertificateDer<'static>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self {
            params,
            key,
            pem,
            der,
        }
    }

    fn issue(&self, name: &str, expired: bool) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        (params.signed_by(&key, &issuer).unwrap(), key)
    }

    /// A client's folder, which trusts this authority, with a certificate of `own`.
    fn folder(&self, own: &Self, expired: bool) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = own.issue("client", expired);
        let write = |name: &str, text: String| {
            std::fs::write(Path::new(dir.path()).join(name), text).unwrap();
        };
        write("ca.pem", self.pem.clone());
        write("cert.pem", certificate.pem());
        write("key.pem", key.serialize_pem());
        dir
    }

    /// A server's acceptor, which demands client certificates of this authority.
    fn acceptor(&self, name: &str, expired: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let (certificate, key) = self.issue(name, expired);
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Connects through TLS; a server that gets through says Welcome.
async fn connect_tls(
    acceptor: TlsAcceptor,
    credentials: impl FnOnce(ConnectOptions) -> ConnectOptions,
) -> Result<RemoteStorage, StorageError> {
    let listener = Listener::bind().await;
    let options = credentials(ConnectOptions::new(listener.url("wss")));
    let server = async {
        let tls = acceptor.accept(listener.accept_tcp().await).await.ok()?;
        let (mut peer, _) = Peer::accept(tls).await;
        peer.send_as(None, ServerMessage::Welcome(welcome())).await;
        Some(peer)
    };
    let (storage, peer) = join(RemoteStorage::connect(options), server).await;
    if let Ok(storage) = &storage {
        assert!(peer.is_some());
        assert_eq!(storage.principal(), "cert:tester");
    }
    storage
}

#[tokio::test]
async fn tls_refusals_say_whose_certificate_is_wrong() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let good = ours.folder(&ours, false);
    let with = |dir: &TempDir| {
        let dir = dir.path().to_owned();
        move |options: ConnectOptions| options.credentials_dir(dir)
    };
    let expired = connect_tls(ours.acceptor("localhost", true), with(&good)).await;
    assert!(text(expired).contains("the server's certificate is expired"));
    let unknown = connect_tls(foreign.acceptor("localhost", false), with(&good)).await;
    assert!(text(unknown).contains("the server's certificate comes from an unknown issuer"));
    let renamed = connect_tls(ours.acceptor("elsewhere", false), with(&good)).await;
    assert!(text(renamed).contains("the server's certificate is for another name"));

    let ca = good.path().join("ca.pem");
    let bare = connect_tls(ours.acceptor("localhost", false), |options| {
        options.without_client_certificate(ca)
    });
    let bare = text(bare.await);
    assert!(bare.contains("demands a client certificate"), "{bare}");
    let stranger = ours.folder(&foreign, false);
    let stranger = text(connect_tls(ours.acceptor("localhost", false), with(&stranger)).await);
    assert!(stranger.contains("issuer of our certificate"), "{stranger}");
    let late = ours.folder(&ours, true);
    let late = text(connect_tls(ours.acceptor("localhost", false), with(&late)).await);
    assert!(late.contains("our certificate is expired"), "{late}");

    connect_tls(ours.acceptor("localhost", false), with(&good))
        .await
        .unwrap();
}

/// Sends this, then more of it for as long as anybody reads.
async fn answer_with(listener: &Listener, start: &[u8], more: &[u8], pause: Duration) {
    let mut tcp = listener.accept_tcp().await;
    let mut request = [0; 4_096];
    let _ = tcp.read(&mut request).await;
    let _ = tcp.write_all(start).await;
    while !more.is_empty() && tcp.write_all(more).await.is_ok() {
        tokio::time::sleep(pause).await;
    }
    // The client is to go by itself.
    let _ = tcp.read(&mut request).await;
}

#[tokio::test]
async fn whatever_answers_in_place_of_a_server_is_told_in_time_and_in_few_words() {
    let page = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n{}",
        "<p>".repeat(400_000)
    );
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\n";
    let upgrade_head = format!("{upgrade}x: ");
    let at_once = Duration::ZERO;
    /// Who it is, what it says first, what it says again and again, how often, and what is told of it.
    type Case<'a> = (&'a str, &'a [u8], &'a [u8], Duration, &'a str);
    let cases: [Case<'_>; 7] = [
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n", b"", at_once, "upgrade"),
        (
            "a redirect",
            b"HTTP/1.1 302 Found\r\nlocation: https://portal.example/\r\ncontent-length: 0\r\n\r\n",
            b"",
            at_once,
            "HTTP status 302",
        ),
        (
            "a captive portal",
            page.as_bytes(),
            b"",
            at_once,
            "HTTP status 200",
        ),
        (
            "a page without an end",
            page.as_bytes(),
            b"<p>",
            at_once,
            "HTTP status 200",
        ),
        (
            "headers without an end",
            upgrade.as_bytes(),
            b"x: y\r\n",
            at_once,
            "upgrade",
        ),
        (
            "one header without an end",
            upgrade.as_bytes(),
            b"xxxxxxxx",
            at_once,
            "upgrade",
        ),
        (
            "a byte at a time",
            upgrade_head.as_bytes(),
            b"y",
            Duration::from_millis(20),
            "connect timeout",
        ),
    ];
    for (what, start, more, pause, expected) in cases {
        let listener = Listener::bind().await;
        let options = listener
            .options()
            .connect_timeout(Duration::from_millis(400));
        let connect = tokio::time::timeout(crate::fake::PATIENCE, RemoteStorage::connect(options));
        let told = tokio::select! {
            told = connect => text(told.expect("it has no end")),
            () = answer_with(&listener, start, more, pause) => panic!("{what}: the client went"),
        };
        assert!(told.contains(expected), "{what}: {told:.200}");
        assert!(told.len() < 1_000, "{what}: {} bytes", told.len());
    }
}

/// A message that never ends, in fragments: it is no reason to wait beyond a deadline, or to hold more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_without_an_end_hold_up_no_deadline() {
    let listener = Listener::bind().await;
    let options = listener
        .options()
        .request_timeout(Duration::from_millis(300));
    let server = async {
        let (mut peer, _) = Peer::accept(listener.accept_tcp().await).await;
        peer.send_as(None, ServerMessage::Welcome(welcome())).await;
        peer
    };
    let (storage, peer) = join(RemoteStorage::connect(options), server).await;
    let (storage, mut tcp) = (storage.unwrap(), peer.ws.into_inner());
    let flood = async {
        // A binary frame without FIN, then continuations without one, all empty.
        tcp.write_all(&[0x02, 0]).await.unwrap();
        let fragments = [0, 0].repeat(4_096);
        while tcp.write_all(&fragments).await.is_ok() {}
    };
    let put = storage.put("k".into(), "v".into());
    let told = tokio::select! {
        told = tokio::time::timeout(crate::fake::PATIENCE, put) => told.expect("no deadline"),
        () = flood => panic!("the client left before its deadline"),
    };
    let error = told.unwrap_err();
    assert!(
        matches!(error, StorageError::DeadlineExceeded { .. }),
        "{error:?}"
    );
}

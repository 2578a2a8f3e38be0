//! What a TLS stack makes of the certificates: whom it refuses, then whom it lets in.
//!
//! Both ends are rustls, in memory, so a handshake takes no sockets and no waiting.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

#[path = "support/tls.rs"]
mod tls;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, ServerConnection, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateRevocationListDer, ServerName};

use storage_certs::{Authority, Credentials, Request, Revocations, Validity, server_name};
use tls::{Result, roots, server};

const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::TLSv1_3, ProtocolVersion::TLSv1_2];
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn client(own: &Credentials, version: ProtocolVersion) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots(&own.ca)?, Arc::clone(&provider))
            .build()?;
    let versions: Vec<&'static SupportedProtocolVersion> = rustls::ALL_VERSIONS
        .iter()
        .copied()
        .filter(|supported| supported.version == version)
        .collect();
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(own.chain.clone(), own.key.clone_key())?;
    Ok(Arc::new(config))
}

/// Runs a handshake to its end; the text of an error says which side refused what.
fn handshake(
    server_own: &Credentials,
    client_own: &Credentials,
    crls: Vec<CertificateRevocationListDer<'static>>,
    dialled: &str,
    version: ProtocolVersion,
) -> std::result::Result<(), String> {
    let dialled = ServerName::try_from(dialled.to_owned()).unwrap();
    let mut server = ServerConnection::new(server(server_own, crls).unwrap()).unwrap();
    let mut client = ClientConnection::new(client(client_own, version).unwrap(), dialled).unwrap();
    // One more round than a handshake needs: a refusal of TLS 1.3 shows at the first read.
    for _ in 0..4 {
        let mut wire = vec![];
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            server.read_tls(&mut unread).unwrap();
            server
                .process_new_packets()
                .map_err(|error| format!("server: {error}"))?;
        }
        let mut wire = vec![];
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread).unwrap();
            client
                .process_new_packets()
                .map_err(|error| format!("client: {error}"))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(client.protocol_version(), Some(version));
    Ok(())
}

fn server_request() -> Request {
    let names = ["localhost", "127.0.0.1", "::1"].map(|name| server_name(name).unwrap());
    Request::server("server".parse().unwrap(), names.to_vec())
}

fn client_request() -> Request {
    Request::client("laptop".parse().unwrap())
}

fn issue(authority: &Authority, request: &Request) -> Credentials {
    authority.issue(request).unwrap().credentials
}

fn expired() -> Validity {
    let now = SystemTime::now();
    Validity::between(now - DAY * 3, now - DAY)
}

fn crl(pem: &str) -> CertificateRevocationListDer<'static> {
    CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// The refusal in both protocol versions.
fn refusal(server: &Credentials, client: &Credentials, dialled: &str) -> [String; 2] {
    VERSIONS.map(|version| handshake(server, client, vec![], dialled, version).unwrap_err())
}

#[test]
fn a_client_of_a_foreign_ca_is_refused() {
    let (ours, theirs) = (
        Authority::generate().unwrap(),
        Authority::generate().unwrap(),
    );
    let mut client = issue(&theirs, &client_request());
    client.ca = vec![ours.certificate().clone()];
    for text in refusal(&issue(&ours, &server_request()), &client, "localhost") {
        assert!(text.contains("server: invalid peer certificate"), "{text}");
    }
}

#[test]
fn a_server_of_a_foreign_ca_is_refused() {
    let (ours, theirs) = (
        Authority::generate().unwrap(),
        Authority::generate().unwrap(),
    );
    let server = issue(&theirs, &server_request());
    for text in refusal(&server, &issue(&ours, &client_request()), "localhost") {
        assert!(text.contains("client: invalid peer certificate"), "{text}");
    }
}

#[test]
fn an_expired_client_is_refused() {
    let ca = Authority::generate().unwrap();
    let client = issue(&ca, &client_request().validity(expired()));
    for text in refusal(&issue(&ca, &server_request()), &client, "localhost") {
        assert!(
            text.contains("server: invalid peer certificate: certificate expired"),
            "{text}"
        );
    }
}

#[test]
fn an_expired_server_is_refused() {
    let ca = Authority::generate().unwrap();
    let server = issue(&ca, &server_request().validity(expired()));
    for text in refusal(&server, &issue(&ca, &client_request()), "localhost") {
        assert!(
            text.contains("client: invalid peer certificate: certificate expired"),
            "{text}"
        );
    }
}

#[test]
fn a_name_that_the_server_does_not_have_is_refused() {
    let ca = Authority::generate().unwrap();
    let (server, client) = (issue(&ca, &server_request()), issue(&ca, &client_request()));
    for dialled in ["example.com", "server", "127.0.0.2"] {
        for text in refusal(&server, &client, dialled) {
            assert!(text.contains("not valid for"), "{text}");
        }
    }
}

#[test]
fn a_client_cannot_pose_as_a_server_nor_a_server_as_a_client() {
    let ca = Authority::generate().unwrap();
    let (server, client) = (issue(&ca, &server_request()), issue(&ca, &client_request()));
    for text in refusal(&client, &client, "laptop") {
        assert!(
            text.starts_with("client: invalid peer certificate"),
            "{text}"
        );
        assert!(
            text.contains("purpose") || text.contains("key usage"),
            "{text}"
        );
    }
    for text in refusal(&server, &server, "localhost") {
        assert!(
            text.starts_with("server: invalid peer certificate"),
            "{text}"
        );
        assert!(
            text.contains("purpose") || text.contains("key usage"),
            "{text}"
        );
    }
}

#[test]
fn a_client_cannot_sign_for_others() {
    let ca = Authority::generate().unwrap();
    let laptop = issue(&ca, &client_request());
    // A certificate under the client's own: the chain leads to the CA, through no CA.
    let key = rcgen::KeyPair::try_from(&laptop.key).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(&laptop.chain[0], key).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["admin".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate().unwrap();
    // rcgen refuses nothing here: only the verifier stands between.
    let forged = params.signed_by(&key, &issuer).unwrap();
    let mut client = laptop.clone();
    client.chain.insert(0, forged.der().clone());
    client.key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    for text in refusal(&issue(&ca, &server_request()), &client, "localhost") {
        assert!(text.contains("server: invalid peer certificate"), "{text}");
    }
}

#[test]
fn a_revoked_client_is_refused_and_the_others_are_not() {
    let ca = Authority::generate().unwrap();
    let server = issue(&ca, &server_request());
    let (lost, kept) = (
        ca.issue(&client_request()).unwrap(),
        ca.issue(&client_request()).unwrap(),
    );
    let mut list = Revocations::new();
    for version in VERSIONS {
        let crls = vec![crl(&ca.sign_crl(&Revocations::new()).unwrap())];
        handshake(&server, &lost.credentials, crls, "localhost", version).unwrap();
    }

    assert!(list.revoke(lost.serial.clone(), SystemTime::now()));
    assert!(!list.revoke(lost.serial.clone(), SystemTime::now()));

    let crls = vec![crl(&ca.sign_crl(&list).unwrap())];
    for version in VERSIONS {
        let text = handshake(
            &server,
            &lost.credentials,
            crls.clone(),
            "localhost",
            version,
        )
        .unwrap_err();
        assert!(
            text.contains("server: invalid peer certificate: Revoked"),
            "{text}"
        );
        handshake(
            &server,
            &kept.credentials,
            crls.clone(),
            "localhost",
            version,
        )
        .unwrap();
    }
}

#[test]
fn no_certificate_outlives_the_ca() {
    let now = SystemTime::now();
    let ca = Authority::generate_for(Validity::between(now - DAY, now + DAY)).unwrap();
    let issued = ca.issue(&client_request()).unwrap();
    assert_eq!(issued.not_after, ca.not_after());
}

#[test]
fn issued_credentials_are_accepted_under_every_name() {
    let ca = Authority::generate().unwrap();
    let (server, client) = (issue(&ca, &server_request()), issue(&ca, &client_request()));
    for version in VERSIONS {
        for dialled in ["localhost", "127.0.0.1", "::1"] {
            handshake(&server, &client, vec![], dialled, version).unwrap();
        }
    }
}

#[test]
fn a_client_carries_its_name_as_host_name_only_if_it_is_one() {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let ca = Authority::generate().unwrap();
    let names = |name: &str, uri: Option<&str>| {
        let mut request = Request::client(name.parse().unwrap());
        if let Some(uri) = uri {
            request = request.uri(uri.parse().unwrap());
        }
        let issued = ca.issue(&request).unwrap();
        let (_, parsed) = X509Certificate::from_der(&issued.credentials.chain[0]).unwrap();
        assert_eq!(parsed.subject().to_string(), format!("CN={name}"));
        assert!((15..=17).contains(&parsed.raw_serial().len()));
        let sans = parsed.subject_alternative_name().unwrap();
        sans.map_or_else(Vec::new, |sans| {
            let text = |name: &GeneralName<'_>| match name {
                GeneralName::DNSName(name) => format!("dns {name}"),
                GeneralName::URI(uri) => format!("uri {uri}"),
                other => format!("unexpected {other}"),
            };
            sans.value.general_names.iter().map(text).collect()
        })
    };
    assert!(names("lap_top", None).is_empty());
    assert!(names("10.0.0.1", None).is_empty());
    assert_eq!(names("laptop", None), ["dns laptop"]);
    assert_eq!(
        names("laptop", Some("urn:a:b")),
        ["dns laptop", "uri urn:a:b"]
    );
    assert_eq!(names("lap_top", Some("urn:a:b")), ["uri urn:a:b"]);
}

/// Of the original's procedure: version 3, no extensions, its own trust anchor.
#[test]
fn a_self_signed_client_is_accepted_once_it_is_trusted_itself() {
    let ca = Authority::generate().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.not_after = (SystemTime::now() + DAY).into();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let mut client = issue(&ca, &client_request());
    client.chain = vec![certificate.clone()];
    client.key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut server = issue(&ca, &server_request());
    for text in refusal(&server, &client, "localhost") {
        assert!(text.contains("UnknownIssuer"), "{text}");
    }

    server.ca.push(certificate);
    let crls = vec![crl(&ca.sign_crl(&Revocations::new()).unwrap())];
    for version in VERSIONS {
        handshake(&server, &client, vec![], "localhost", version).unwrap();
        // No list speaks for it, so a verifier that has any list must be told to allow that.
        let text = handshake(&server, &client, crls.clone(), "localhost", version).unwrap_err();
        assert!(text.contains("UnknownRevocationStatus"), "{text}");
    }
}

#[test]
fn a_server_whose_name_has_an_underscore_is_verified() {
    let ca = Authority::generate().unwrap();
    let names = ["my_db", "_db.lan_1"].map(|name| server_name(name).unwrap());
    let server = issue(
        &ca,
        &Request::server("server".parse().unwrap(), names.to_vec()),
    );
    let client = issue(&ca, &client_request());
    for version in VERSIONS {
        for name in ["my_db", "_db.lan_1"] {
            handshake(&server, &client, vec![], name, version).unwrap();
        }
        handshake(&server, &client, vec![], "my_dc", version).unwrap_err();
    }
}

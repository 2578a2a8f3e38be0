//! What Java makes of the PKCS#12 stores: `keytool` lists them and a JDK TLS client connects.
//!
//! Where there is no JDK these tests print that they are skipped; a CI that must not skip sets
//! `STORAGE_CERTS_JDK=required`.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

#[path = "support/command.rs"]
mod command;
#[path = "support/tls.rs"]
mod tls;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};

use command::Certs;
use storage_certs::{Credentials, load_crls};

/// Longer than any handshake takes on a busy machine, shorter than a stuck test run.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether there is a JDK; says so if not.
fn jdk(test: &str) -> bool {
    let found = ["java", "keytool"]
        .iter()
        .all(|tool| Command::new(tool).arg("-help").output().is_ok());
    if !found {
        assert!(
            std::env::var_os("STORAGE_CERTS_JDK").is_none_or(|value| value != "required"),
            "there is no JDK, and STORAGE_CERTS_JDK says that there must be one"
        );
        // Not println!, which the test harness keeps to itself when a test passes.
        let _ = writeln!(io::stderr(), "SKIPPED {test}: there is no JDK");
    }
    found
}

fn keytool(store: &Path, password: &Path) -> Output {
    Command::new("keytool")
        .args([
            "-J-Duser.language=en",
            "-list",
            "-v",
            "-storetype",
            "PKCS12",
            "-keystore",
        ])
        .arg(store)
        .arg("-storepass:file")
        .arg(password)
        .output()
        .unwrap()
}

/// Serves one connection with one line; the error text if it refused it.
fn serve_one(listener: &TcpListener, certs: &Certs) -> Result<String, String> {
    let own = Credentials::load(certs.path("server")).unwrap();
    let crls = load_crls(certs.path("crl.pem")).unwrap();
    let (socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(SOCKET_TIMEOUT)).unwrap();
    let connection = ServerConnection::new(tls::server(&own, crls).unwrap()).unwrap();
    exchange(StreamOwned::new(connection, socket)).map_err(|error| error.to_string())
}

fn exchange(stream: StreamOwned<ServerConnection, TcpStream>) -> io::Result<String> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let stream = reader.get_mut();
    stream.write_all(b"hello from Rust\n")?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(line)
}

/// A JDK client with this folder's stores, and what the server saw of it.
fn connect(
    certs: &Certs,
    folder: &Path,
    host: &str,
    protocol: &str,
) -> (Output, Result<String, String>) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/java/TlsPeer.java");
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    thread::scope(|scope| {
        let server = scope.spawn(|| serve_one(&listener, certs));
        let output = Command::new("java")
            .arg(program)
            .args([host, &port])
            .arg(folder)
            .arg(folder.join("keystore-password"))
            .arg(protocol)
            .output()
            .unwrap();
        // A client that never came must not leave the server waiting.
        drop(TcpStream::connect(listener.local_addr().unwrap()));
        (output, server.join().unwrap())
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn keytool_refuses_a_wrong_password_and_lists_with_the_right_one() {
    if !jdk("keytool_refuses_a_wrong_password_and_lists_with_the_right_one") {
        return;
    }
    let certs = Certs::initialised();
    certs.done("issue laptop");
    let wrong = certs.path("wrong");
    fs::write(&wrong, "not the password\n").unwrap();
    let right = certs.path("laptop/keystore-password");
    for (store, entries) in [
        (
            "laptop/keystore.p12",
            ["Alias name: laptop", "PrivateKeyEntry", "chain length: 2"],
        ),
        (
            "laptop/truststore.p12",
            [
                "Alias name: storage-ca",
                "trustedCertEntry",
                "CN=storage-sync CA",
            ],
        ),
    ] {
        let refused = keytool(&certs.path(store), &wrong);
        assert!(!refused.status.success(), "{store}");
        assert!(text(&refused.stdout).contains("password was incorrect"));

        let listed = keytool(&certs.path(store), &right);
        let out = text(&listed.stdout);
        assert!(listed.status.success(), "{out}");
        assert!(out.contains("Your keystore contains 1 entry"), "{out}");
        for entry in entries {
            assert!(out.contains(entry), "{store}: {entry}: {out}");
        }
    }
}

#[test]
fn a_jdk_client_refuses_a_foreign_server_and_is_refused_when_revoked() {
    if !jdk("a_jdk_client_refuses_a_foreign_server_and_is_refused_when_revoked") {
        return;
    }
    let (certs, foreign) = (Certs::initialised(), Certs::initialised());
    foreign.done("issue laptop");
    certs.done("issue laptop");

    let (client, server) = connect(&certs, &foreign.path("laptop"), "localhost", "TLSv1.3");
    assert!(!client.status.success());
    assert!(
        text(&client.stderr).contains("PKIX path"),
        "{}",
        text(&client.stderr)
    );
    assert!(server.is_err());

    certs.done("revoke laptop");
    let (client, server) = connect(&certs, &certs.path("laptop"), "localhost", "TLSv1.2");
    assert!(!client.status.success());
    let error = server.unwrap_err();
    assert!(error.contains("Revoked"), "{error}");
}

#[test]
fn a_jdk_client_connects_with_tls_1_3_and_1_2() {
    if !jdk("a_jdk_client_connects_with_tls_1_3_and_1_2") {
        return;
    }
    let certs = Certs::initialised();
    certs.done("issue laptop");
    for (protocol, host) in [("TLSv1.3", "localhost"), ("TLSv1.2", "127.0.0.1")] {
        let (client, server) = connect(&certs, &certs.path("laptop"), host, protocol);
        let (out, err) = (text(&client.stdout), text(&client.stderr));
        assert_eq!(out, format!("{protocol} hello from Rust\n"), "{err}");
        assert_eq!(server.as_deref(), Ok("hello from Java\n"));
    }
}

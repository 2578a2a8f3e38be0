//! Who gets in: each credential that is not good, in each way that a peer can try it.
//!
//! A row of the table is a credential, a column is what is tried with it. What is refused at the door is refused in each
//! column, in the same words. A credential that ends while its peer is there is tried in sessions that are open when it
//! ends: calls and watches fail, sockets and kept connections are closed, and nobody comes again. Rows with good
//! credentials show that what the columns try works.
//!
//! `--nocapture` prints the words that a client sees, cell by cell.

#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]
#![expect(clippy::future_not_send, reason = "a row is tried by one task")]

mod entrance;
mod processes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use entrance::{Door, House, ask};
use processes::run;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use storage_certs::{AuthorityDir, Credentials, Request, Validity};
use storage_client::http::{Method, request};
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::native::{SUBPROTOCOL, ServerMessage, close_code};
use storage_protocol::{
    KeyRange, ScanOptions, Storage, StorageError, StorageExt, Watch, WatchOptions,
};
use storage_testkit::entrance::mint;
use storage_testkit::raw::{
    Encrypted, Raw, hello, http, tls, tls_without_certificate, until_closed, upgrade_request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Within this everybody whose credential has ended is out.
const BOUND: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Connect,
    Get,
    Scan,
    Commit,
    Watch,
    LiveWatch,
    Http,
}

const COLUMNS: [Column; 7] = [
    Column::Connect,
    Column::Get,
    Column::Scan,
    Column::Commit,
    Column::Watch,
    Column::LiveWatch,
    Column::Http,
];

/// What a credential comes to.
#[derive(Clone, Copy, Debug)]
enum Comes {
    /// It gets in.
    In,
    /// TLS is ended, in these words.
    Tls(&'static str),
    /// The request is answered with this status, in these words.
    Answer(u16, &'static str),
    /// The client itself does not try, in these words.
    NotTried(&'static str),
}

/// How one cell went.
#[derive(Debug)]
enum Cell {
    In,
    /// There is no connection.
    NotConnected(StorageError),
    /// There is one, and this is not done.
    NotDone(StorageError),
    /// The answer in HTTP.
    Answered(u16, String),
}

/// What is done over a session, and its watch if it is about one.
async fn act(storage: &RemoteStorage, column: Column) -> Result<Option<Watch>, StorageError> {
    match column {
        Column::Connect | Column::Http => {}
        Column::Get => drop(storage.get_one("there".into()).await?),
        Column::Scan => {
            let scan = storage.scan(KeyRange::all(), ScanOptions::default());
            drop(scan.await?.collect().await?);
        }
        Column::Commit => drop(storage.put("mine".into(), "1".into()).await?),
        Column::Watch => drop(live_watch(storage).await?),
        Column::LiveWatch => {
            let mut watch = live_watch(storage).await?;
            watch.request_progress(1);
            watch.next().await?.expect("a mark");
            return Ok(Some(watch));
        }
    }
    Ok(None)
}

async fn live_watch(storage: &RemoteStorage) -> Result<Watch, StorageError> {
    storage
        .watch(KeyRange::all(), WatchOptions::default())
        .await
}

async fn cell(options: ConnectOptions, column: Column) -> Cell {
    let trying = async {
        if column == Column::Http {
            let asked = request(&options, Method::GET, "/-/auth/whoami", None).await;
            return match asked {
                Ok((status, body)) => {
                    let body = String::from_utf8_lossy(&body).trim().to_owned();
                    Cell::Answered(status.as_u16(), body)
                }
                Err(error) => Cell::NotConnected(error),
            };
        }
        match RemoteStorage::connect(options).await {
            Err(error) => Cell::NotConnected(error),
            Ok(storage) => match act(&storage, column).await {
                Ok(_) => Cell::In,
                Err(error) => Cell::NotDone(error),
            },
        }
    };
    let tried = tokio::time::timeout(PATIENCE, trying).await;
    tried.unwrap_or_else(|_| panic!("{column:?}: nothing comes"))
}

/// Fails unless the cell went as it should.
fn judge(row: &str, column: Column, cell: &Cell, comes: Comes) {
    println!("{row} | {column:?} | {cell:?}");
    let is_right = match (comes, cell) {
        (Comes::In, Cell::In) => column != Column::Http,
        (Comes::In, Cell::Answered(200, _)) => column == Column::Http,
        (Comes::Tls(why) | Comes::NotTried(why), Cell::NotConnected(error)) => {
            matches!(error, StorageError::ConnectFailed { .. }) && error.to_string().contains(why)
        }
        (Comes::Answer(status, why), Cell::NotConnected(error)) => {
            let text = error.to_string();
            column != Column::Http
                && matches!(error, StorageError::ConnectFailed { .. })
                && text.contains(&format!("HTTP status {status}"))
                && text.contains(why)
        }
        (Comes::Answer(status, why), Cell::Answered(answered, text)) => {
            column == Column::Http && *answered == status && text.contains(why)
        }
        (_, Cell::NotDone(error)) => panic!("{row}, {column:?}: connected, and then: {error}"),
        _ => false,
    };
    assert!(is_right, "{row}, {column:?}: {cell:?}, expected: {comes:?}");
}

/// A credential that was there before, tried in each column.
struct Row {
    name: String,
    credential: Box<dyn Fn(Column) -> ConnectOptions>,
    comes: Comes,
}

impl Row {
    fn new(
        name: impl Into<String>,
        comes: Comes,
        credential: impl Fn(Column) -> ConnectOptions + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            credential: Box::new(credential),
            comes,
        }
    }

    async fn try_all(&self) {
        for column in COLUMNS {
            let went = cell((self.credential)(column), column).await;
            judge(&self.name, column, &went, self.comes);
        }
    }
}

/// Status and body of what the administrator asks.
async fn boss(house: &House, method: &str, path: &str, body: Value) -> (u16, Value) {
    let boss = house.certified("boss", Door::Mutual, "model");
    ask(&boss, method, path, body).await
}

/// With no certificate.
fn bare(house: &House, door: Door) -> ConnectOptions {
    let ca = house.credentials("boss").join("ca.pem");
    ConnectOptions::new(house.url(door, "model")).without_client_certificate(ca)
}

async fn with_user(house: &House, name: &str) {
    let user = json!({ "password": "correct horse", "new": true });
    let (status, body) = boss(house, "PUT", &format!("users/{name}"), user).await;
    assert_eq!(status, 204, "{body}");
}

fn logged_in(house: &House, name: &str) -> ConnectOptions {
    bare(house, Door::Any).password(name, "correct horse")
}

/// Id, text and end of a token that is minted by these credentials.
async fn minted(by: &ConnectOptions, ttl: &str) -> (String, String, u64) {
    let body = mint(by, json!({ "ttl": ttl })).await;
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    (text("id"), text("token"), body["expires"].as_u64().unwrap())
}

/// Waits until the time of a token is over.
async fn expiry(until: u64) {
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap();
    while now() < Duration::from_secs(until) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A token with another header.
fn with_header(token: &str, change: impl FnOnce(&mut Value)) -> String {
    let (header, rest) = token.split_once('.').unwrap();
    let mut header: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    change(&mut header);
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
}

/// Credentials of `theirs`, who trust the CA of `ours`.
fn smuggle(theirs: &Path, ours: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    for name in ["cert.pem", "key.pem"] {
        fs::copy(theirs.join(name), into.join(name)).unwrap();
    }
    fs::copy(ours.join("ca.pem"), into.join("ca.pem")).unwrap();
}

fn revoke(house: &House, name: &str) {
    let authority = AuthorityDir::open(house.certificates.dir()).unwrap();
    authority.revoke(&name.parse().unwrap()).unwrap();
}

#[tokio::test]
async fn each_credential_that_is_good_gets_in_everywhere() {
    let house = House::new(&["ann"]).await;
    with_user(&house, "eve").await;
    let ann = house.certified("ann", Door::Any, "model");
    let (_, token, _) = minted(&ann, "1h").await;
    let by_token = bare(&house, Door::Any).token(token);
    let by_password = logged_in(&house, "eve");
    let mutual = house.certified("ann", Door::Mutual, "model");
    for (name, options) in [
        ("certificate", ann),
        ("certificate, mutual TLS", mutual),
        ("token", by_token),
        ("password", by_password),
    ] {
        let row = Row::new(name, Comes::In, move |_| options.clone());
        row.try_all().await;
    }
}

#[tokio::test]
async fn no_certificate_that_is_not_good_gets_in_anywhere() {
    let mut house = House::new(&["ann", "thief"]).await;
    let now = SystemTime::now();
    for (name, from, to) in [
        ("expired", now - 2 * DAY, now - DAY),
        ("early", now + DAY, now + 2 * DAY),
    ] {
        let request = Request::client(name.parse().unwrap());
        let validity = Validity::between(from, to);
        house.certificates.add(&request.validity(validity));
    }
    // Revoked before the server is there.
    revoke(&house, "thief");
    house.server.restart();
    let ours = house.credentials("ann");
    let stranger = storage_testkit::harness::Certificates::issue(&["stranger"]);
    let foreign = stranger.dir().join("stranger");
    smuggle(&foreign, &ours, &house.credentials("foreign"));

    let mut rows = Vec::new();
    for door in [Door::Any, Door::Mutual] {
        for (what, client, why) in [
            (
                "foreign CA",
                "foreign",
                "does not trust the issuer of our certificate",
            ),
            ("expired", "expired", "our certificate is expired"),
            ("not yet valid", "early", "or not yet valid"),
            ("revoked before", "thief", "our certificate is revoked"),
            (
                "a server's certificate",
                "server",
                "does not accept our certificate",
            ),
        ] {
            let options = house.certified(client, door, "model");
            let name = format!("{what}, {door:?}");
            rows.push(Row::new(name, Comes::Tls(why), move |_| options.clone()));
        }
    }
    let nothing = bare(&house, Door::Mutual);
    let comes = Comes::Tls("demands a client certificate");
    rows.push(Row::new("no certificate", comes, move |_| nothing.clone()));
    // Neither a token nor a password is taken for one.
    let (_, token, _) = minted(&house.certified("ann", Door::Any, "model"), "1h").await;
    let instead = bare(&house, Door::Mutual).token(token);
    rows.push(Row::new("a token for a certificate", comes, move |_| {
        instead.clone()
    }));

    // A server that shows a client's certificate: who has stolen one cannot pose as the server.
    let impostor = House::new(&["ann", "thief"]).await;
    let options = impostor.certified("ann", Door::Any, "model");
    let (thief, place) = (
        impostor.credentials("thief"),
        impostor.credentials("server"),
    );
    let mut impostor = impostor;
    smuggle(&thief, &thief, &place);
    impostor.server.restart();
    let comes = Comes::Tls("the server's certificate is not accepted");
    rows.push(Row::new(
        "a client's certificate, served",
        comes,
        move |_| options.clone(),
    ));

    for row in &rows {
        row.try_all().await;
    }
}

/// Runs `openssl`; `None` where there is none.
fn openssl(folder: &Path, arguments: &[&str], input: &[u8]) -> Option<processes::Ran> {
    let mut command = Command::new("openssl");
    let is_there = Command::new("openssl").arg("version").output().is_ok();
    is_there.then(|| run(command.current_dir(folder).args(arguments), input))
}

/// Credentials with an RSA key of so many bits, by the authority of the house.
fn with_rsa_key(house: &House, bits: u32) -> Option<PathBuf> {
    let folder = house.credentials(&format!("rsa-{bits}"));
    fs::create_dir_all(&folder).unwrap();
    fs::copy(
        house.credentials("ann").join("ca.pem"),
        folder.join("ca.pem"),
    )
    .unwrap();
    fs::write(folder.join("usage"), "extendedKeyUsage = clientAuth\n").unwrap();
    let key = format!("rsa:{bits}");
    let ask = [
        "req",
        "-new",
        "-newkey",
        &key,
        "-nodes",
        "-keyout",
        "key.pem",
        "-subj",
        "/CN=weak",
        "-out",
        "request.pem",
    ];
    openssl(&folder, &ask, b"")?.expect(0);
    let sign = [
        "x509",
        "-req",
        "-in",
        "request.pem",
        "-CA",
        "../ca.pem",
        "-CAkey",
        "../ca-key.pem",
        "-days",
        "2",
        "-extfile",
        "usage",
        "-out",
        "cert.pem",
    ];
    openssl(&folder, &sign, b"")?.expect(0);
    Some(folder)
}

#[tokio::test]
async fn a_key_that_is_too_weak_does_not_get_in() {
    let house = House::new(&["ann"]).await;
    let (Some(weak), Some(strong)) = (with_rsa_key(&house, 1024), with_rsa_key(&house, 2048))
    else {
        println!("SKIPPED: there is no openssl");
        return;
    };
    let name = weak.file_name().unwrap().to_str().unwrap();
    let options = house.certified(name, Door::Mutual, "model");
    let row = Row::new(
        "RSA key of 1024 bits",
        Comes::NotTried("cannot be used"),
        move |_| options.clone(),
    );
    row.try_all().await;
    // Our client does not even try, so another one does.
    for (folder, is_let_in) in [(&strong, true), (&weak, false)] {
        for door in [Door::Any, Door::Mutual] {
            let address = house.address(door);
            let ask = [
                "s_client",
                "-connect",
                &address,
                "-CAfile",
                "ca.pem",
                "-cert",
                "cert.pem",
                "-key",
                "key.pem",
                "-cipher",
                "DEFAULT@SECLEVEL=0",
                "-quiet",
            ];
            let request =
                b"GET /-/auth/whoami HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
            let ran = openssl(folder, &ask, request).unwrap();
            println!("{folder:?}, {door:?} | {}", ran.stderr);
            if is_let_in {
                assert!(ran.expect(0).text().starts_with("HTTP/1.1 200 OK"));
            } else {
                assert_eq!(ran.says(&["alert decrypt error"]).text(), "");
            }
        }
    }
}

#[tokio::test]
async fn no_token_that_is_not_good_gets_in_anywhere() {
    let mut house = House::new(&["ann", "gone"]).await;
    let ann = house.certified("ann", Door::Any, "model");
    let (_, good, _) = minted(&ann, "1h").await;
    let (_, short, until) = minted(&ann, "1s").await;
    let (revoked_id, revoked, _) = minted(&ann, "1h").await;
    let gone = house.certified("gone", Door::Any, "model");
    let (_, of_gone, _) = minted(&gone, "1h").await;
    with_user(&house, "eve").await;
    let (_, of_eve, _) = minted(&logged_in(&house, "eve"), "1h").await;
    let parent = bare(&house, Door::Any).token(&revoked);
    let (_, of_revoked, _) = minted(&parent, "1h").await;
    let other = House::new(&["ann"]).await;
    let (_, foreign, _) = minted(&other.certified("ann", Door::Any, "model"), "1h").await;
    let foreign_kid = {
        let (header, _) = foreign.split_once('.').unwrap();
        let header = URL_SAFE_NO_PAD.decode(header).unwrap();
        serde_json::from_slice::<Value>(&header).unwrap()["kid"].clone()
    };
    assert_eq!(
        boss(&house, "DELETE", "users/eve", Value::Null).await.0,
        204
    );
    let path = format!("tokens/{revoked_id}");
    assert_eq!(ask(&ann, "DELETE", &path, Value::Null).await.0, 204);
    revoke(&house, "gone");
    house.server.restart();
    expiry(until).await;

    let no_alg = with_header(&good, |header| header["alg"] = json!("none"));
    let unsigned = format!("{}.", no_alg.rsplit_once('.').unwrap().0);
    let another_kid = with_header(&good, |header| header["kid"] = foreign_kid);
    let unknown = "signing key is unknown here";
    let tokens = [
        ("garbage", "garbage".to_owned(), "cannot be read"),
        ("of another server", foreign, unknown),
        ("alg none, signed", no_alg, "not signed with HS256"),
        ("alg none, unsigned", unsigned, "not signed with HS256"),
        ("a foreign kid", another_kid, unknown),
        ("expired", short, "the token expired at"),
        ("revoked", revoked, "the token was revoked"),
        (
            "minted with a revoked token",
            of_revoked,
            "the token was revoked",
        ),
        (
            "of a user who was removed",
            of_eve,
            "the token is not good any more: user disabled or removed",
        ),
        (
            "of a certificate that was revoked",
            of_gone,
            "the token was revoked",
        ),
    ];
    let mut rows: Vec<Row> = Vec::new();
    for (what, token, why) in tokens {
        let options = bare(&house, Door::Any).token(token);
        let name = format!("token {what}");
        rows.push(Row::new(name, Comes::Answer(401, why), move |_| {
            options.clone()
        }));
    }
    let nothing = bare(&house, Door::Any);
    let why = "this listener takes certificates, tokens or passwords, and the request has none";
    rows.push(Row::new("no token", Comes::Answer(401, why), move |_| {
        nothing.clone()
    }));
    for row in &rows {
        row.try_all().await;
    }
    // What these were made of is good itself.
    let options = bare(&house, Door::Any).token(good);
    let row = Row::new("token good", Comes::In, move |_| options.clone());
    row.try_all().await;
}

#[tokio::test]
async fn no_password_that_is_not_good_gets_in_anywhere() {
    let house = House::new(&[]).await;
    // One for each column: of one, the limit of failed logins would be told after a few.
    for column in COLUMNS {
        for kind in ["wrong", "disabled"] {
            with_user(&house, &format!("{kind}-{column:?}")).await;
        }
        let path = format!("users/disabled-{column:?}");
        assert_eq!(
            boss(&house, "PUT", &path, json!({ "disabled": true }))
                .await
                .0,
            204
        );
    }
    let comes = Comes::Answer(401, "the user or the password is wrong");
    let nobody = bare(&house, Door::Any);
    let (wrong, disabled) = (nobody.clone(), nobody.clone());
    for row in [
        Row::new("wrong password", comes, move |column| {
            wrong
                .clone()
                .password(format!("wrong-{column:?}"), "battery staple")
        }),
        Row::new("disabled user", comes, move |column| {
            disabled
                .clone()
                .password(format!("disabled-{column:?}"), "correct horse")
        }),
        Row::new("unknown user", comes, move |column| {
            nobody
                .clone()
                .password(format!("unknown-{column:?}"), "correct horse")
        }),
    ] {
        row.try_all().await;
    }
}

/// What a socket of a test's own shows.
enum Shown {
    Certificate(&'static str),
    Authorization(String),
}

impl Shown {
    fn bearer(token: &str) -> Self {
        Self::Authorization(format!("Bearer {token}"))
    }

    fn basic(user: &str) -> Self {
        let encoded = STANDARD.encode(format!("{user}:correct horse"));
        Self::Authorization(format!("Basic {encoded}"))
    }

    async fn connect(&self, house: &House) -> (Encrypted, String) {
        match self {
            Self::Certificate(client) => (
                tls(&house.server, &house.certificates, client).await,
                String::new(),
            ),
            Self::Authorization(value) => (
                tls_without_certificate(&house.server, &house.certificates).await,
                format!("Authorization: {value}\r\n"),
            ),
        }
    }
}

/// A peer with all that it can have open, whose credential is about to end.
struct Inside {
    name: &'static str,
    options: ConnectOptions,
    /// One session for each of the columns that need one, with what was begun in it.
    sessions: Vec<(Column, RemoteStorage, Option<Watch>)>,
    /// A session whose frames are seen.
    socket: Raw,
    /// A connection of HTTP that is kept.
    kept: Encrypted,
}

impl Inside {
    async fn new(house: &House, name: &'static str, options: ConnectOptions, shown: Shown) -> Self {
        let mut sessions = Vec::new();
        for column in COLUMNS {
            if column != Column::Http && column != Column::Connect {
                let storage = RemoteStorage::connect(options.clone()).await.unwrap();
                let begun = act(&storage, column).await.unwrap();
                sessions.push((column, storage, begun));
            }
        }
        let (stream, header) = shown.connect(house).await;
        let more = format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n{header}");
        let upgrade = upgrade_request("/storage/model", &more);
        let mut socket = Raw::open_on(stream, &upgrade).await.unwrap();
        socket.say(None, &hello()).await;
        assert!(matches!(socket.hear().await.1, ServerMessage::Welcome(_)));
        let (mut kept, header) = shown.connect(house).await;
        let whoami = format!("GET /-/auth/whoami HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n");
        assert_eq!(http(&mut kept, &whoami).await.status, 200);
        Self {
            name,
            options,
            sessions,
            socket,
            kept,
        }
    }

    /// The credential has ended just now. It is out everywhere for this reason, and does not come in again.
    async fn comes_out(mut self, why: &str, again: Comes) {
        let began = Instant::now();
        let name = self.name;
        for (column, storage, watch) in &mut self.sessions {
            let failing = async {
                if let Some(watch) = watch {
                    return loop {
                        match watch.next().await {
                            Ok(event) => assert!(event.is_some(), "it ends with its reason"),
                            Err(error) => break error,
                        }
                    };
                }
                loop {
                    match act(storage, *column).await {
                        Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                        Err(error) => break error,
                    }
                }
            };
            let failed = tokio::time::timeout(BOUND, failing).await;
            let error = failed.unwrap_or_else(|_| panic!("{name}, {column:?}: it goes on"));
            println!("{name} | {column:?} | {error}");
            assert!(
                error.to_string().contains(why),
                "{name}, {column:?}: {error}"
            );
        }
        let (code, reason) = self.socket.closed().await;
        println!("{name} | the socket | {code}, {reason}");
        assert_eq!((code, reason.as_str()), (close_code::POLICY, why), "{name}");
        until_closed(&mut self.kept).await;
        let took = began.elapsed();
        println!("{name} | all of it | {took:?}");
        assert!(took < BOUND, "{name}: out after {took:?}");
        // Not all columns: after five failed logins of one user the sixth is told to wait.
        for column in [Column::Connect, Column::Get, Column::Commit, Column::Http] {
            let went = cell(self.options.clone(), column).await;
            judge(&format!("{name}, again"), column, &went, again);
        }
    }
}

#[tokio::test]
async fn who_is_put_out_while_it_is_there_is_out_everywhere() {
    let house = House::new(&["ann"]).await;
    let wrong = Comes::Answer(401, "the user or the password is wrong");
    let gone = "the token is not good any more: user disabled or removed";
    for (name, body, why, told) in [
        (
            "user-removed",
            Value::Null,
            "user disabled or removed",
            gone,
        ),
        (
            "user-disabled",
            json!({ "disabled": true }),
            "user disabled or removed",
            gone,
        ),
        (
            "password-changed",
            json!({ "password": "another" }),
            "password changed",
            "the token was revoked",
        ),
    ] {
        with_user(&house, name).await;
        let by_password = logged_in(&house, name);
        let (_, token, _) = minted(&by_password, "1h").await;
        let by_token = bare(&house, Door::Any).token(&token);
        let user = Inside::new(&house, name, by_password, Shown::basic(name)).await;
        let token = Shown::bearer(&token);
        let bearer = Inside::new(&house, "a token of it", by_token, token).await;
        let method = if body.is_null() { "DELETE" } else { "PUT" };
        let (status, answer) = boss(&house, method, &format!("users/{name}"), body).await;
        assert_eq!(status, 204, "{answer}");
        user.comes_out(why, wrong).await;
        bearer.comes_out(why, Comes::Answer(401, told)).await;
    }
}

#[tokio::test]
async fn a_token_that_ends_while_its_bearer_is_there_ends_everywhere() {
    let house = House::new(&["ann"]).await;
    let ann = house.certified("ann", Door::Any, "model");
    let (id, token, _) = minted(&ann, "1h").await;
    let options = bare(&house, Door::Any).token(&token);
    let bearer = Inside::new(&house, "token revoked", options, Shown::bearer(&token)).await;
    let path = format!("tokens/{id}");
    assert_eq!(ask(&ann, "DELETE", &path, Value::Null).await.0, 204);
    let again = Comes::Answer(401, "the token was revoked");
    bearer.comes_out("token revoked", again).await;

    // Long enough to come in with it.
    let (_, token, until) = minted(&ann, "3s").await;
    let options = bare(&house, Door::Any).token(&token);
    let bearer = Inside::new(&house, "token expired", options, Shown::bearer(&token)).await;
    expiry(until).await;
    let again = Comes::Answer(401, "the token expired at");
    bearer.comes_out("token expired", again).await;
}

/// A TLS client that keeps its tickets.
fn ticket_keeper(house: &House, client: &str) -> Arc<ClientConfig> {
    let own = Credentials::load(house.credentials(client)).unwrap();
    let mut roots = RootCertStore::empty();
    for certificate in own.ca {
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let builder = builder.with_root_certificates(roots);
    Arc::new(builder.with_client_auth_cert(own.chain, own.key).unwrap())
}

/// The answer to a request on a connection of its own, and whether TLS was resumed.
async fn asked_with(config: &Arc<ClientConfig>, address: &str) -> Result<(String, bool), String> {
    let asking = async {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = TlsConnector::from(config.clone())
            .connect(name, tcp)
            .await?;
        let whoami = "GET /-/auth/whoami HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
        // A refusal may come before this is sent; then reading tells why.
        let _ = stream.write_all(whoami.as_bytes()).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let kind = stream.get_ref().1.handshake_kind();
        Ok((answer, kind == Some(HandshakeKind::Resumed)))
    };
    let asked = tokio::time::timeout(PATIENCE, asking).await;
    asked
        .expect("an answer or a refusal")
        .map_err(|error: std::io::Error| error.to_string())
}

#[tokio::test]
async fn a_certificate_that_is_revoked_while_its_peer_is_there_ends_everywhere() {
    let house = House::new(&["ann"]).await;
    let ann = house.certified("ann", Door::Any, "model");
    let (_, token, _) = minted(&ann, "1h").await;
    let options = bare(&house, Door::Any).token(&token);
    let bearer = Shown::bearer(&token);
    let bearer = Inside::new(&house, "a token of a revoked certificate", options, bearer).await;
    let shown = Shown::Certificate("ann");
    let peer = Inside::new(&house, "certificate revoked", ann, shown).await;
    let mut keepers = Vec::new();
    for door in [Door::Any, Door::Mutual] {
        let keeper = ticket_keeper(&house, "ann");
        for is_resumed in [false, true] {
            let asked = asked_with(&keeper, &house.address(door)).await.unwrap();
            assert!(asked.0.starts_with("HTTP/1.1 200 OK"), "{}", asked.0);
            assert_eq!(asked.1, is_resumed);
        }
        keepers.push((door, keeper));
    }
    revoke(&house, "ann");
    let again = Comes::Tls("our certificate is revoked");
    let why = "certificate revoked or not trusted any more";
    peer.comes_out(why, again).await;
    let again = Comes::Answer(401, "the token was revoked");
    bearer.comes_out("token revoked", again).await;
    // The ticket that each still has is good for nothing.
    for (door, keeper) in keepers {
        let refused = asked_with(&keeper, &house.address(door)).await.unwrap_err();
        println!("a ticket of before, {door:?} | {refused}");
        assert!(
            refused.contains("CertificateRevoked"),
            "{door:?}: {refused}"
        );
    }
}

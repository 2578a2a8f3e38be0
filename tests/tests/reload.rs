//! Certificates, revocation lists and access rules that change while the server runs, and who is put out by it.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use storage_certs::{Request, Validity, load_certificates, server_name};
use storage_client::RemoteStorage;
use storage_protocol::native::{ClientMessage, WatchRequest};
use storage_protocol::{
    KeyRange, Outcome, Storage, StorageError, StorageExt, WatchEvent, WatchMode, WatchOptions,
    WatchStart,
};
use storage_testkit::entrance::{BOSS, LISTENER, mint_token};
use storage_testkit::raw::{http, in_time, tls};
use storage_testkit::served::Served;

/// What is revoked is out before that: the acceptance of a security review, not a figure of speed.
const BOUND: Duration = Duration::from_secs(5);

const OPEN: &str = "";

const ANN: &str = r#"
[[rule]]
principal = "cert:ann"
keyspace = "model"
prefix = "a/"
allow = ["read"]
"#;

/// Waits until it holds, and for how long that took.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time(what, waiting).await;
    began.elapsed()
}

fn reloads(what: &str, outcome: &str) -> String {
    format!("storage_reloads_total{{what=\"{what}\",outcome=\"{outcome}\"}}")
}

fn failing(what: &str) -> String {
    format!("storage_reload_failing{{what=\"{what}\"}}")
}

#[tokio::test]
async fn who_is_revoked_while_it_watches_is_out_in_seconds_and_nobody_else_notices() {
    let served = Served::new(&["producer", "consumer", "other"], OPEN);
    let producer = served.connect("producer", "model").await;
    let other = served.connect("other", "model").await;
    let mut witness = other
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    let mut consumer = served.native("consumer", "model").await;
    let watch = ClientMessage::Watch(WatchRequest {
        range: KeyRange::prefix("quiet/"),
        start: WatchStart::Now,
        mode: WatchMode::Every,
        credit: 1 << 20,
    });
    consumer.say(Some(1), &watch).await;
    consumer.hear().await;
    // A connection of HTTP that is kept, too.
    let mut kept = tls(&served.server, &served.certificates, "consumer").await;
    let asked = "GET /-/auth/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(http(&mut kept, asked).await.status, 200);

    let began = Instant::now();
    served.certificates.revoke("consumer");
    let putting = async {
        let mut puts = 0_u32;
        loop {
            producer
                .put(format!("n/{puts}").into(), "1".into())
                .await
                .unwrap();
            puts += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let closed = async {
        let closed = consumer.closed().await;
        storage_testkit::raw::until_closed(&mut kept).await;
        closed
    };
    let (code, reason) = tokio::select! {
        closed = closed => closed,
        () = putting => unreachable!("it puts for as long as it can"),
    };
    let took = began.elapsed();
    println!("closed {} ms after the list was written", took.as_millis());
    assert!(took < BOUND, "{took:?}");
    assert_eq!(code, 1008);
    assert!(reason.contains("certificate revoked"), "{reason}");

    let last = producer.put("last".into(), "1".into()).await.unwrap();
    loop {
        let event = in_time("an event", witness.next()).await.unwrap().unwrap();
        match event {
            WatchEvent::Commit(commit) if commit.revision == last.revision => break,
            WatchEvent::Commit(_) | WatchEvent::Progress { .. } => {}
            other => panic!("the witness noticed: {other:?}"),
        }
    }
    let again = storage_testkit::harness::connect(
        &served.server,
        &served.certificates,
        "consumer",
        "model",
    )
    .await
    .unwrap_err();
    assert!(again.to_string().contains("revoked"), "{again}");
    let name = "storage_sessions_closed_total{reason=\"access\"}";
    assert_eq!(served.metric(name).await, 1.0);
}

#[tokio::test]
async fn a_token_ends_with_the_certificate_that_it_was_minted_with() {
    let served = Served::new(&["ann", "bob"], LISTENER);
    let token_of = async |client: &str| {
        let by = served.certified(client, "model");
        mint_token(&by, json!({ "ttl": "1h" })).await.1
    };
    let bearer = async |token: &str| {
        let options = served.bare("model").token(token);
        RemoteStorage::connect(options.give_up_after(Duration::ZERO)).await
    };
    let (anns, bobs) = (token_of("ann").await, token_of("bob").await);
    let (by_ann, by_bob) = (bearer(&anns).await.unwrap(), bearer(&bobs).await.unwrap());
    by_ann.put("a".into(), "1".into()).await.unwrap();
    served.certificates.revoke("ann");
    let took = until("the end of the token", async || {
        by_ann.get_one("a".into()).await.is_err()
    })
    .await;
    assert!(took < BOUND, "{took:?}");
    let refused = bearer(&anns).await.unwrap_err();
    assert!(refused.to_string().contains("revoked"), "{refused}");
    by_bob.get_one("a".into()).await.unwrap();
    bearer(&bobs).await.unwrap();
}

#[tokio::test]
async fn rules_of_the_configuration_hold_when_it_has_changed_and_stay_when_it_is_not_good() {
    let served = Served::new(&["boss", "ann"], BOSS);
    let boss = served.connect("boss", "model").await;
    boss.put("a/1".into(), "1".into()).await.unwrap();
    let ann = served.connect("ann", "model").await;
    let may = async || ann.get_one("a/1".into()).await.is_ok();
    assert!(!may().await);
    served.configure(&format!("{BOSS}{ANN}"));
    let took = until("the grant", may).await;
    assert!(took < BOUND, "{took:?}");

    // Not good: what was there holds on, and it is told.
    for (broken, count) in [
        ("[[rule]]\nprincipal = \"cert:ann\"\n".to_owned(), 1.0),
        (ANN.to_owned(), 2.0),
    ] {
        served.configure(&broken);
        until("the failure", async || {
            served.metric(&reloads("rules", "failed")).await >= count
        })
        .await;
        assert!(may().await);
        assert_eq!(served.metric(&failing("rules")).await, 1.0);
    }

    served.configure(BOSS);
    served.server.signal(Signal::HUP);
    let took = until("the end of the grant", async || !may().await).await;
    assert!(took < BOUND, "{took:?}");
    // It is told a moment after it holds.
    served.comes_to_nothing(&failing("rules")).await;
    boss.get_one("a/1".into()).await.unwrap();
}

/// The server's certificate, as somebody who connects sees it.
async fn shown(served: &Served) -> Vec<u8> {
    let stream = tls(&served.server, &served.certificates, "ann").await;
    let certificates = stream.get_ref().1.peer_certificates().unwrap();
    certificates[0].to_vec()
}

/// Makes files that are not good.
type Spoil<'a> = Box<dyn Fn() + 'a>;

fn server_files(served: &Served, folder: &str) -> [PathBuf; 2] {
    let folder = served.certificates.dir().join(folder);
    [folder.join("cert.pem"), folder.join("key.pem")]
}

#[tokio::test]
async fn a_renewed_certificate_is_served_and_one_that_is_not_good_is_not() {
    let served = Served::new(&["ann"], OPEN);
    let ann = served.connect("ann", "model").await;
    ann.put("a".into(), "1".into()).await.unwrap();
    let names = || vec![server_name("127.0.0.1").unwrap()];
    let day = Duration::from_secs(24 * 3600);
    let now = std::time::SystemTime::now();
    let past = Validity::between(now - 2 * day, now - day);
    for request in [
        Request::server("next".parse().unwrap(), names()),
        Request::server("past".parse().unwrap(), names()).validity(past),
    ] {
        served.certificates.add(&request);
    }
    let first = shown(&served).await;
    let [cert, key] = server_files(&served, "server");
    let old = [&cert, &key].map(|path| fs::read(path).unwrap());
    let put_back = || {
        fs::write(&cert, &old[0]).unwrap();
        fs::write(&key, &old[1]).unwrap();
    };
    let crl = served.certificates.dir().join("crl.pem");
    let list = fs::read(&crl).unwrap();

    // Each is told once, and everybody comes in as before.
    let mut failures = 0.0;
    let [next_cert, next_key] = server_files(&served, "next");
    let [past_cert, past_key] = server_files(&served, "past");
    let spoilt: [(&str, Spoil<'_>); 4] = [
        (
            "the key of another one",
            Box::new(|| drop(fs::copy(&next_key, &key))),
        ),
        (
            "a certificate of the past",
            Box::new(|| {
                fs::copy(&past_cert, &cert).unwrap();
                fs::copy(&past_key, &key).unwrap();
            }),
        ),
        ("no file", Box::new(|| fs::remove_file(&cert).unwrap())),
        (
            "half a list",
            Box::new(|| fs::write(&crl, &list[..list.len() / 2]).unwrap()),
        ),
    ];
    for (what, spoil) in spoilt {
        spoil();
        until(what, async || {
            served.metric(&reloads("certificates", "failed")).await > failures
        })
        .await;
        failures = served.metric(&reloads("certificates", "failed")).await;
        assert_eq!(shown(&served).await, first, "{what}");
        served.connect("ann", "model").await;
        assert_eq!(served.metric(&failing("certificates")).await, 1.0);
        put_back();
        fs::write(&crl, &list).unwrap();
        until("the end of it", async || {
            served.metric(&failing("certificates")).await == 0.0
        })
        .await;
    }

    fs::copy(&next_cert, &cert).unwrap();
    fs::copy(&next_key, &key).unwrap();
    let next = load_certificates(&next_cert).unwrap()[0].to_vec();
    let took = until("the new certificate", async || shown(&served).await == next).await;
    assert!(took < BOUND, "{took:?}");
    // Who was there stays.
    assert_eq!(ann.get_one("a".into()).await.unwrap().unwrap().value, "1");
}

#[tokio::test]
async fn what_a_revoked_peer_has_queued_is_refused() {
    let served = Served::new(&["ann", "boss"], OPEN);
    let boss = served.connect("boss", "model").await;
    let ann = served.connect("ann", "model").await;
    ann.put("a".into(), "0".into()).await.unwrap();
    served.certificates.revoke("ann");
    let mut acknowledged = 0_u64;
    let error = loop {
        let next = (acknowledged + 1).to_string();
        match ann.put("a".into(), next.into()).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(
            error,
            StorageError::AccessDenied { .. }
                | StorageError::ConnectFailed { .. }
                | StorageError::Closed { .. }
        ),
        "{error:?}"
    );
    // The last one is either not executed, as its error says, or was being executed; none comes behind it.
    let last = match error.outcome() {
        Outcome::NotExecuted => acknowledged,
        _ => acknowledged + 1,
    };
    for _ in 0..20 {
        let there = boss.get_one("a".into()).await.unwrap().unwrap();
        let there: u64 = std::str::from_utf8(&there.value).unwrap().parse().unwrap();
        assert!((acknowledged..=last).contains(&there), "{there}, {error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_configuration_without_any_rule_takes_the_place_of_none_that_has_some() {
    let mut served = Served::new(&["boss", "ann"], BOSS);
    let boss = served.connect("boss", "model").await;
    boss.put("a".into(), "1".into()).await.unwrap();
    let ann = served.connect("ann", "model").await;
    ann.get_one("a".into()).await.unwrap_err();
    served.configure(OPEN);
    until("the failure", async || {
        served.metric(&reloads("rules", "failed")).await == 1.0
    })
    .await;
    assert_eq!(served.metric(&failing("rules")).await, 1.0);
    ann.get_one("a".into()).await.unwrap_err();
    boss.get_one("a".into()).await.unwrap();
    ann.close().await;
    boss.close().await;
    // A restart takes it.
    served.server.restart();
    let ann = served.connect("ann", "model").await;
    assert!(ann.get_one("a".into()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_revocation_list_that_is_gone_or_older_takes_nobody_in_again() {
    let mut served = Served::new(&["ann", "eve"], OPEN);
    let crl = served.certificates.dir().join("crl.pem");
    let older = fs::read(&crl).unwrap();
    served.certificates.revoke("eve");
    let refused = async |served: &Served| {
        let folder = served.certified("eve", "model");
        let connected = RemoteStorage::connect(folder.give_up_after(Duration::ZERO)).await;
        connected.is_err_and(|error| error.to_string().contains("revoked"))
    };
    until("the revocation", async || refused(&served).await).await;
    let newer = fs::read(&crl).unwrap();
    let mut failures = 0.0;
    let spoilt: [(&str, Spoil<'_>); 2] = [
        ("no list", Box::new(|| fs::remove_file(&crl).unwrap())),
        (
            "an older list",
            Box::new(|| fs::write(&crl, &older).unwrap()),
        ),
    ];
    for (what, spoil) in spoilt {
        spoil();
        until(what, async || {
            served.metric(&reloads("certificates", "failed")).await > failures
        })
        .await;
        failures = served.metric(&reloads("certificates", "failed")).await;
        assert_eq!(served.metric(&failing("certificates")).await, 1.0);
        assert!(refused(&served).await, "{what}");
        served.connect("ann", "model").await;
        fs::write(&crl, &newer).unwrap();
        until("the end of it", async || {
            served.metric(&failing("certificates")).await == 0.0
        })
        .await;
    }
    // Somebody who means it restarts.
    fs::remove_file(&crl).unwrap();
    served.server.restart();
    served.connect("eve", "model").await;
}

//! Nobody may change the access rules any more, and how one is let in again.

use storage_client::http::{Method, request};

use super::*;

/// What only one who may do nothing else could have meant.
const LOCKED: &str = "[[rule]]\nprincipal = 'cert:nobody'\nkeyspace = 'model'\nallow = ['read']\n";

/// The status of what is for administrators.
async fn asks_for_rules(serving: &Serving, certificates: &Certificates, client: &str) -> u16 {
    let options =
        ConnectOptions::new(serving.url(0)).credentials_dir(certificates.dir().join(client));
    let asked = request(&options, Method::GET, "/-/auth/rules", None).await;
    asked.unwrap().0.as_u16()
}

#[tokio::test]
async fn an_operator_makes_an_administrator_where_there_is_none() {
    let certificates = Certificates::issue(&["boss", "ann"]);
    let folder = Folder::new();
    let config = folder.config(&format!(
        "certs = {:?}\n{MUTUAL}{LOCKED}",
        certificates.dir()
    ));
    let start = |more: &[&str]| Serving::start(&[&["--config", &config], more].concat(), 1);
    let end = |mut serving: Serving| {
        serving.signal(Signal::TERM);
        assert_eq!(serving.end(PATIENCE), Some(0));
    };

    let checked = ran(&["config", "check", "--config", &config]).expect(0);
    checked.says(&[
        "warning",
        "no rule gives \"admin\" of the keyspace \"system\"",
    ]);
    let serving = start(&[]);
    let line = serving.wait_for_log("no access rule gives");
    for part in ["WARN", "nobody can change rules", "--grant-admin PRINCIPAL"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(asks_for_rules(&serving, &certificates, "boss").await, 403);
    end(serving);

    let serving = start(&["--grant-admin", "cert:boss"]);
    let line = serving.wait_for_log("it is an administrator from now on");
    for part in ["WARN", "cert:boss", "grant-admin"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(asks_for_rules(&serving, &certificates, "boss").await, 200);
    assert_eq!(asks_for_rules(&serving, &certificates, "ann").await, 403);
    // It gives what is needed to let everybody else in.
    let url = serving.url(0).replace("/storage/model", "/storage/system");
    let boss = ConnectOptions::new(url).credentials_dir(certificates.dir().join("boss"));
    let boss = RemoteStorage::connect(boss).await.unwrap();
    let ann = r#"{"principal":"cert:ann","keyspace":"model","allow":["read","write","admin"]}"#;
    boss.put("access/ann".into(), ann.into()).await.unwrap();
    let options =
        ConnectOptions::new(serving.url(0)).credentials_dir(certificates.dir().join("ann"));
    let ann = RemoteStorage::connect(options).await.unwrap();
    ann.put("k".into(), "v".into()).await.unwrap();
    let before = boss.get_one("access/grant-admin".into()).await.unwrap();
    end(serving);

    // The rule stays without the flag, and the flag changes nothing where it stands.
    let serving = start(&[]);
    assert_eq!(asks_for_rules(&serving, &certificates, "boss").await, 200);
    end(serving);
    let serving = start(&["--grant-admin", "cert:boss"]);
    serving.wait_for_log("it is an administrator already");
    let again = ConnectOptions::new(serving.url(0).replace("/storage/model", "/storage/system"))
        .credentials_dir(certificates.dir().join("boss"));
    let again = RemoteStorage::connect(again).await.unwrap();
    assert_eq!(
        again.get_one("access/grant-admin".into()).await.unwrap(),
        before
    );
    end(serving);
}

#[test]
fn without_any_rule_the_flag_closes_nothing() {
    let folder = Folder::new();
    let config = folder.config(PLAIN);
    let mut serving = Serving::start(&["--config", &config, "--grant-admin", "cert:boss"], 1);
    serving.wait_for_log("it is an administrator already");
    let line = serving.wait_for_log("there are no access rules");
    assert!(
        line.contains("WARN") && line.contains("may do everything"),
        "{line}"
    );
    serving.signal(Signal::TERM);
    assert_eq!(serving.end(PATIENCE), Some(0));
}

#[test]
fn an_administrator_is_one_principal_and_no_setting() {
    let folder = Folder::new();
    let config = folder.config(PLAIN);
    for bad in ["boss", "cert:*", "role:ops", "user:a\nb", ""] {
        ran(&["serve", "--config", &config, "--grant-admin", bad])
            .expect(2)
            .says(&["--grant-admin", "cert:NAME"]);
    }
    ran(&[
        "config",
        "check",
        "--config",
        &config,
        "--grant-admin",
        "cert:a",
    ])
    .expect(2)
    .says(&["--grant-admin"]);
    let config = folder.config(&format!("grant_admin = 'cert:boss'\n{PLAIN}"));
    ran(&["serve", "--config", &config])
        .expect(2)
        .says(&["grant_admin"]);
    let help = ran(&["serve", "--help"]).expect(0);
    assert!(help.text().contains("--grant-admin"), "{help:?}");
    assert!(!folder.data().exists(), "nothing was begun");
}

//! Peers without a certificate: users with passwords, tokens, and how they are put out again.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use storage_protocol::{KeyRange, ScanOptions, Storage, StorageError, StorageExt, WatchOptions};
use storage_testkit::entrance::{Entrance, ask, mint_token};
use storage_testkit::raw::{Raw, http, tcp, tls, upgrade_request};
use storage_testkit::served::Served;

fn refused(error: &StorageError, status: &str) {
    let text = error.to_string();
    assert!(text.contains(status), "{text}");
}

#[tokio::test]
async fn a_user_logs_in_with_its_password_and_nobody_without_one() {
    let house = Entrance::new("").await;
    house.with_user("eve", "correct horse").await;
    let eve = house
        .connect(house.bare("model").password("eve", "correct horse"))
        .await
        .unwrap();
    assert_eq!(eve.welcome().principal, "user:eve");
    assert!(eve.get_one("open/a".into()).await.unwrap().is_some());
    let denied = eve.get_one("closed/a".into()).await.unwrap_err();
    assert!(
        matches!(denied, StorageError::AccessDenied { .. }),
        "{denied}"
    );

    let nobody = house.connect(house.bare("model")).await.unwrap_err();
    refused(&nobody, "401");
    assert!(
        nobody
            .to_string()
            .contains("certificates, tokens or passwords"),
        "{nobody}"
    );
    let wrong = house
        .connect(house.bare("model").password("eve", "wrong"))
        .await
        .unwrap_err();
    let unknown = house
        .connect(house.bare("model").password("nobody", "wrong"))
        .await
        .unwrap_err();
    refused(&wrong, "401");
    assert_eq!(wrong, unknown, "which of both is wrong is not said");
    for password in [String::new(), "x".repeat(1024)] {
        let error = house
            .connect(house.bare("model").password("eve", password))
            .await
            .unwrap_err();
        refused(&error, "401");
    }
    let long = house.bare("model").password("eve", "x".repeat(10_000));
    refused(&house.connect(long).await.unwrap_err(), "400");
    // A certificate goes before.
    let both = house
        .certified("ann", "model")
        .password("eve", "correct horse");
    assert_eq!(
        house.connect(both).await.unwrap().welcome().principal,
        "cert:ann"
    );
}

#[tokio::test]
async fn who_is_disabled_or_removed_or_has_another_password_is_out() {
    let house = Entrance::new("").await;
    let boss = house.certified("boss", "model");
    for (change, why) in [
        (json!({ "disabled": true }), "user disabled or removed"),
        (json!({ "password": "another" }), "password changed"),
        (Value::Null, "user disabled or removed"),
    ] {
        house.with_user("eve", "correct horse").await;
        let eve = house.bare("model").password("eve", "correct horse");
        let (_, token) = mint_token(&eve, json!({})).await;
        let by_password = house
            .connect(eve.clone().give_up_after(Duration::ZERO))
            .await
            .unwrap();
        let by_token = house
            .bare("model")
            .token(token)
            .give_up_after(Duration::ZERO);
        let by_token = house.connect(by_token).await.unwrap();
        let began = Instant::now();
        let (method, body) = match &change {
            Value::Null => ("DELETE", Value::Null),
            change => ("PUT", change.clone()),
        };
        let (status, answer) = ask(&boss, method, "users/eve", body).await;
        assert_eq!(status, 204, "{answer}");
        for session in [&by_password, &by_token] {
            // Each call that is made from now on fails, and within a moment since the connection is closed.
            let error = loop {
                match session.get_one("open/a".into()).await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(error) => break error,
                }
                assert!(began.elapsed() < Duration::from_secs(5), "still in");
            };
            assert!(error.to_string().contains(why), "{error}");
        }
        refused(&house.connect(eve).await.unwrap_err(), "401");
        if change != Value::Null {
            assert_eq!(ask(&boss, "DELETE", "users/eve", Value::Null).await.0, 204);
        }
    }
}

#[tokio::test]
async fn a_token_does_what_it_was_minted_for_and_never_more_than_its_minter() {
    let house = Entrance::new("").await;
    let ann = house.certified("ann", "model");
    let grants = json!([{ "keyspace": "model", "prefix": "open/", "allow": ["read"] },
        { "keyspace": "model", "prefix": "closed/", "allow": ["read"] }]);
    let (id, token) = mint_token(
        &ann,
        json!({ "grants": grants, "ttl": "1h", "name": "page" }),
    )
    .await;
    let bearer = house.bare("model").token(&token);
    let page = house
        .connect(bearer.clone().give_up_after(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(page.welcome().principal, "cert:ann");
    assert!(page.get_one("open/a".into()).await.unwrap().is_some());
    for denied in [
        page.get_one("closed/a".into()).await.map(drop),
        page.put("open/a".into(), "2".into()).await.map(drop),
    ] {
        assert!(
            matches!(denied, Err(StorageError::AccessDenied { .. })),
            "{denied:?}"
        );
    }
    // What it mints is no wider, and ends with it.
    let (_, inner) = mint_token(&bearer, json!({ "ttl": "10h" })).await;
    let inner = house
        .bare("model")
        .token(inner)
        .give_up_after(Duration::ZERO);
    let child = house.connect(inner.clone()).await.unwrap();
    assert!(child.put("open/a".into(), "2".into()).await.is_err());

    let (status, listed) = ask(&ann, "GET", "tokens", Value::Null).await;
    assert_eq!(
        (status, listed["tokens"].as_array().unwrap().len()),
        (200, 2)
    );
    assert!(
        !listed.to_string().contains(&token),
        "a token is shown once"
    );
    // Another's is not to be seen, nor revoked.
    house.with_user("eve", "correct horse").await;
    let eve = house.bare("model").password("eve", "correct horse");
    assert_eq!(
        ask(&eve, "DELETE", &format!("tokens/{id}"), Value::Null)
            .await
            .0,
        404
    );
    assert_eq!(
        ask(&ann, "DELETE", &format!("tokens/{id}"), Value::Null)
            .await
            .0,
        204
    );
    let began = Instant::now();
    for session in [&page, &child] {
        while session.get_one("open/a".into()).await.is_ok() {
            assert!(began.elapsed() < Duration::from_secs(5), "still in");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for gone in [bearer, inner] {
        refused(&house.connect(gone).await.unwrap_err(), "401");
    }
}

#[tokio::test]
async fn a_token_ends_when_its_time_is_over() {
    let house = Entrance::new("").await;
    let ann = house.certified("ann", "model");
    let (_, token) = mint_token(&ann, json!({ "ttl": "2s" })).await;
    let request = upgrade_request(
        "/storage/model",
        &format!("Sec-WebSocket-Protocol: storage-sync.v1, bearer.{token}\r\n"),
    );
    // A browser's way: the token among the subprotocols, which the answer does not show.
    let mut stream = bare_tls(&house).await;
    let answer = http(&mut stream, &request).await;
    assert_eq!(answer.status, 101, "{}", answer.text());
    assert!(!answer.head.contains("bearer"), "{}", answer.head);
    let session = house
        .bare("model")
        .token(&token)
        .give_up_after(Duration::ZERO);
    let session = house.connect(session).await.unwrap();
    let began = Instant::now();
    let error = loop {
        match session.get_one("open/a".into()).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => break error,
        }
        assert!(began.elapsed() < Duration::from_secs(7), "still in");
    };
    assert!(error.to_string().contains("token expired"), "{error}");
    let error = house
        .connect(house.bare("model").token(&token))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
}

async fn bare_tls(
    house: &Entrance,
) -> impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + use<> {
    storage_testkit::raw::tls_without_certificate(&house.server, &house.certificates).await
}

#[tokio::test]
async fn tokens_that_are_none_are_refused_and_never_shown() {
    let house = Entrance::new("").await;
    let other = Entrance::new("").await;
    let (_, foreign) = mint_token(&other.certified("ann", "model"), json!({})).await;
    let (_, good) = mint_token(&house.certified("ann", "model"), json!({})).await;
    let parts: Vec<_> = good.split('.').collect();
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    for bad in [
        "garbage".to_owned(),
        foreign,
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.{}", parts[0], parts[1], "A".repeat(43)),
        "x".repeat(4096),
    ] {
        let error = house
            .connect(house.bare("model").token(&bad))
            .await
            .unwrap_err();
        refused(&error, "401");
        assert!(!error.to_string().contains(&bad), "{error}");
    }
    // Keys are rotated without anybody being put out.
    let boss = house.certified("boss", "model");
    assert_eq!(ask(&boss, "POST", "keys", Value::Null).await.0, 204);
    house
        .connect(house.bare("model").token(&good))
        .await
        .unwrap();
    let ann = house.certified("ann", "model");
    assert_eq!(ask(&ann, "POST", "keys", Value::Null).await.0, 403);
}

#[tokio::test]
async fn what_is_asked_wrongly_is_answered_with_what_is_wrong() {
    let house = Entrance::new("").await;
    let boss = house.certified("boss", "model");
    let ann = house.certified("ann", "model");
    for (options, method, path, body, status, what) in [
        (
            &ann,
            "PUT",
            "users/x",
            json!({ "password": "a" }),
            403,
            "no administrator",
        ),
        (
            &boss,
            "PUT",
            "users/x",
            json!({ "password": "", "new": true }),
            400,
            "empty",
        ),
        (
            &boss,
            "PUT",
            "users/x",
            json!({ "password": "x".repeat(10_000), "new": true }),
            400,
            "1024",
        ),
        (
            &boss,
            "PUT",
            "users/x",
            json!({ "new": true }),
            400,
            "needs a password",
        ),
        (
            &boss,
            "PUT",
            "users/evee",
            json!({ "password": "a" }),
            404,
            "there is no user evee",
        ),
        (
            &boss,
            "PUT",
            "users/evee",
            json!({ "disabled": true }),
            404,
            "there is no user evee",
        ),
        (
            &boss,
            "PUT",
            "users/x",
            json!({ "pasword": "a" }),
            400,
            "pasword",
        ),
        (
            &boss,
            "PUT",
            "users/a%0Ab",
            json!({ "password": "a" }),
            400,
            "control characters",
        ),
        (&boss, "DELETE", "users/nobody", Value::Null, 404, "no such"),
        (
            &boss,
            "PUT",
            "rules/x",
            json!({ "principal": "a", "keyspace": "b", "allow": ["reed"] }),
            400,
            "reed",
        ),
        (
            &ann,
            "PUT",
            "rules/x",
            json!({ "principal": "a", "keyspace": "b", "allow": ["read"] }),
            403,
            "may not",
        ),
        (&boss, "DELETE", "rules/x", Value::Null, 404, "no such"),
        (
            &boss,
            "PUT",
            "roles/Big",
            json!({ "members": [] }),
            400,
            "Big",
        ),
        (
            &ann,
            "POST",
            "tokens",
            json!({ "ttl": "soon" }),
            400,
            "soon",
        ),
        (
            &ann,
            "POST",
            "tokens",
            json!({ "ttl": "500d" }),
            400,
            "400 days",
        ),
        (
            &ann,
            "POST",
            "tokens",
            json!({ "grants": [{ "principal": "x" }] }),
            400,
            "principal",
        ),
        (
            &ann,
            "POST",
            "tokens",
            json!({ "grants": vec![json!({ "keyspace": "m", "prefix": "x".repeat(4000), "allow": ["read"] }); 5] }),
            400,
            "allowed are 16384",
        ),
        (
            &ann,
            "GET",
            "explain?keyspace=model&permission=fly",
            Value::Null,
            400,
            "fly",
        ),
        (
            &ann,
            "GET",
            "explain?principal=cert:boss&keyspace=model&permission=read",
            Value::Null,
            403,
            "no administrator",
        ),
        (&ann, "GET", "rules", Value::Null, 403, "no administrator"),
    ] {
        let (answered, body) = ask(options, method, path, body).await;
        assert_eq!(answered, status, "{method} {path}: {body}");
        let error = body["error"].as_str().unwrap_or_default();
        assert!(error.contains(what), "{method} {path}: {error}");
    }
    let (_, who) = ask(&ann, "GET", "whoami", Value::Null).await;
    assert_eq!(
        (who["principal"].as_str(), who["by"].as_str()),
        (Some("cert:ann"), Some("certificate"))
    );
    let (_, why) = ask(
        &ann,
        "GET",
        "explain?keyspace=model&key=closed/a&permission=read",
        Value::Null,
    )
    .await;
    assert_eq!(why["allowed"], json!(false), "{why}");
    // A key that is no text.
    for (key, allowed) in [("open/%00%ff", true), ("%ffopen/", false)] {
        let path = format!("explain?keyspace=model&key={key}&permission=read");
        let (status, why) = ask(&ann, "GET", &path, Value::Null).await;
        assert_eq!((status, &why["allowed"]), (200, &json!(allowed)), "{why}");
    }
    let (_, why) = ask(
        &ann,
        "GET",
        "explain?keyspace=model&key=open/a&permission=read",
        Value::Null,
    )
    .await;
    assert_eq!(
        (why["allowed"].clone(), why["origin"].clone()),
        (json!(true), json!("rule[2] of the configuration"))
    );
}

#[tokio::test]
async fn a_change_that_locks_all_out_is_made_by_force_alone_and_force_does_nothing_else() {
    let house = Entrance(Served::new(&["boss", "ann"], ""));
    let boss = house.certified("boss", "model");
    let admin = json!({ "principal": "cert:boss", "keyspace": "system", "allow": ["admin"] });
    let ann = json!({ "principal": "cert:ann", "keyspace": "model", "allow": ["read"] });
    assert_eq!(ask(&boss, "PUT", "rules/boss", admin).await.0, 204);
    let put = ask(&boss, "PUT", "rules/ann", ann.clone()).await;
    assert_eq!(put.0, 204, "{}", put.1);
    let (status, why) = ask(&boss, "DELETE", "rules/boss", Value::Null).await;
    assert_eq!(status, 400);
    assert!(why.to_string().contains("nobody could change"), "{why}");
    // Who may not change rules does not by force, and what is no rule's name is none.
    let certified = house.certified("ann", "model");
    let path = "rules/boss?force=true";
    assert_eq!(ask(&certified, "DELETE", path, Value::Null).await.0, 403);
    let long = format!("rules/{}?force=true", "x".repeat(257));
    let (status, why) = ask(&boss, "PUT", &long, ann).await;
    assert_eq!(status, 400, "{why}");
    assert!(why.to_string().contains("1 to 256 bytes"), "{why}");
    assert_eq!(ask(&boss, "DELETE", path, Value::Null).await.0, 204);
    assert_eq!(ask(&boss, "GET", "rules", Value::Null).await.0, 403);
}

#[tokio::test]
async fn a_name_with_which_nobody_could_log_in_is_refused_when_the_user_is_added() {
    let house = Entrance::new("").await;
    let boss = house.certified("boss", "model");
    let long = "x".repeat(300);
    for (name, why) in [
        ("a%3Ab", "colon"),
        ("a%2Fb", "\"/\""),
        ("a%0Ab", "control characters"),
        ("a%E2%80%AEb", "do not show"),
        (long.as_str(), "longer than 256 bytes"),
        ("%2A", "stands for any characters"),
        ("ann%2A", "stands for any characters"),
        ("%2E", "which paths leave out"),
        ("%2E%2E", "which paths leave out"),
    ] {
        let user = json!({ "password": "a", "new": true });
        let (status, body) = ask(&boss, "PUT", &format!("users/{name}"), user).await;
        assert_eq!(status, 400, "{name}: {body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(why), "{name}: {error}");
    }
    // Names that look odd and are none of these.
    house.with_user("Zo%C3%AB%20M.@x", "a").await;
    let user = house.bare("model").password("Zoë M.@x", "a");
    let connected = house.connect(user).await.unwrap();
    assert_eq!(connected.welcome().principal, "user:Zoë M.@x");
}

#[tokio::test]
async fn all_tokens_of_everybody_end_at_once_when_an_administrator_says_so() {
    let house = Entrance::new("").await;
    house.with_user("eve", "correct horse").await;
    let (ann, eve) = (
        house.certified("ann", "model"),
        house.bare("model").password("eve", "correct horse"),
    );
    let (_, of_ann) = mint_token(&ann, json!({})).await;
    let (_, of_eve) = mint_token(&eve, json!({})).await;
    let session = house.bare("model").token(&of_ann);
    let session = house
        .connect(session.give_up_after(Duration::ZERO))
        .await
        .unwrap();
    for not_an_administrator in [&ann, &eve] {
        let asked = ask(not_an_administrator, "DELETE", "tokens", Value::Null);
        assert_eq!(asked.await.0, 403);
    }
    let boss = house.certified("boss", "model");
    let (status, body) = ask(&boss, "DELETE", "tokens", Value::Null).await;
    assert_eq!((status, body), (200, json!({ "revoked": 2 })));
    let began = Instant::now();
    while session.get_one("open/a".into()).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(5), "still in");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for gone in [of_ann, of_eve] {
        let error = house
            .connect(house.bare("model").token(gone))
            .await
            .unwrap_err();
        // Not by its record alone: its key is gone too, so a forged one is refused as well.
        assert!(
            error.to_string().contains("signing key is unknown"),
            "{error}"
        );
    }
    let (_, again) = mint_token(&ann, json!({})).await;
    house
        .connect(house.bare("model").token(again))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_web_page_of_another_site_changes_nothing_with_the_login_that_its_browser_keeps() {
    let house = Entrance::new("").await;
    house.with_user("eve", "correct horse").await;
    // eve:correct horse
    let login = "Authorization: Basic ZXZlOmNvcnJlY3QgaG9yc2U=";
    let host = house.server.url("storage").replace("wss://", "");
    let own = format!("https://{host}");
    let json = "application/json";
    for (origin, content_type, status) in [
        (Some("https://evil.example"), json, 403),
        (Some("null"), json, 403),
        (Some("https://evil.example"), "text/plain", 403),
        (None, "text/plain", 415),
        (None, "application/x-www-form-urlencoded", 415),
        (None, "", 415),
        (Some(own.as_str()), json, 201),
        (None, "application/JSON; charset=utf-8", 201),
    ] {
        let origin = origin.map_or_else(String::new, |origin| format!("Origin: {origin}\r\n"));
        let content_type = match content_type {
            "" => String::new(),
            kind => format!("Content-Type: {kind}\r\n"),
        };
        let request = format!(
            "POST /-/auth/tokens HTTP/1.1\r\nHost: {host}\r\n{login}\r\n{origin}{content_type}Content-Length: 2\r\n\r\n{{}}"
        );
        let answer = http(&mut bare_tls(&house).await, &request).await;
        assert_eq!(answer.status, status, "{request}\n{}", answer.text());
    }
    let (_, listed) = ask(
        &house.certified("boss", "model"),
        "GET",
        "tokens",
        Value::Null,
    )
    .await;
    assert_eq!(listed["tokens"].as_array().unwrap().len(), 2, "{listed}");
}

#[tokio::test]
async fn what_is_of_the_configuration_is_told_from_what_is_stored_and_is_not_removed() {
    let role = "[[role]]\nname = \"ops\"\nmembers = [\"cert:a\"]\n\
        [[role]]\nname = \"fixed\"\nmembers = [\"cert:b\"]\n";
    let house = Entrance::new(role).await;
    let boss = house.certified("boss", "model");
    let stored = json!({ "members": ["user:eve"] });
    assert_eq!(ask(&boss, "PUT", "roles/ops", stored).await.0, 204);
    let rule = json!({ "principal": "role:ops", "keyspace": "model", "allow": ["read"] });
    assert_eq!(ask(&boss, "PUT", "rules/ops", rule).await.0, 204);
    let (_, listed) = ask(&boss, "GET", "rules", Value::Null).await;
    assert_eq!(
        listed["roles"],
        json!([
            { "from": { "config": 0 }, "name": "ops", "members": ["cert:a"] },
            { "from": { "config": 1 }, "name": "fixed", "members": ["cert:b"] },
            { "from": { "name": "ops" }, "name": "ops", "members": ["user:eve"] },
        ])
    );
    let from = listed["rules"].as_array().unwrap().iter();
    let from: Vec<_> = from.map(|rule| rule["from"].clone()).collect();
    assert_eq!(
        from,
        [
            json!({ "config": 0 }),
            json!({ "config": 1 }),
            json!({ "config": 2 }),
            json!({ "name": "ops" })
        ]
    );
    for (path, status, why) in [
        ("roles/ops", 204, ""),
        ("roles/ops", 409, "one of the configuration"),
        ("roles/fixed", 409, "one of the configuration"),
        ("roles/none", 404, "no such role"),
        ("rules/rule%5B0%5D", 404, "changed there"),
    ] {
        let (answered, body) = ask(&boss, "DELETE", path, Value::Null).await;
        assert_eq!(answered, status, "{path}: {body}");
        assert!(body.to_string().contains(why), "{path}: {body}");
    }
}

#[tokio::test]
async fn of_two_who_set_a_password_at_once_one_is_told_and_the_others_holds() {
    let house = Entrance::new("").await;
    house.with_user("eve", "old").await;
    let boss = house.certified("boss", "model");
    for round in 0..4 {
        let passwords = [format!("one {round}"), format!("two {round}")];
        let set = |n: usize| {
            ask(
                &boss,
                "PUT",
                "users/eve",
                json!({ "password": passwords[n] }),
            )
        };
        let (first, second) = tokio::join!(set(0), set(1));
        let statuses = [first.0, second.0];
        let holds = match statuses {
            [204, 409] => vec![0],
            [409, 204] => vec![1],
            // One after the other: the later one holds, which is not told here.
            [204, 204] => vec![0, 1],
            statuses => panic!("{statuses:?}"),
        };
        let mut lets_in = 0;
        for n in holds {
            let eve = house.bare("model").password("eve", &passwords[n]);
            lets_in += usize::from(house.connect(eve).await.is_ok());
        }
        assert_eq!(lets_in, 1, "round {round}: {statuses:?}");
    }
}

#[tokio::test]
async fn tokens_that_are_good_for_nothing_are_marked_or_removed() {
    let house = Entrance::new("").await;
    house.with_user("eve", "correct horse").await;
    let boss = house.certified("boss", "model");
    let eve = house.bare("model").password("eve", "correct horse");
    let (id, token) = mint_token(&eve, json!({})).await;
    let (child, _) = mint_token(&house.bare("model").token(&token), json!({})).await;
    let (of_ann, by_ann) = mint_token(&house.certified("ann", "model"), json!({})).await;
    mint_token(&house.bare("model").token(&by_ann), json!({})).await;
    let listed = async || {
        let (_, body) = ask(&boss, "GET", "tokens", Value::Null).await;
        let tokens = body["tokens"].as_array().unwrap().iter();
        let text = |token: &Value, name: &str| token[name].as_str().map(str::to_owned);
        let tokens = tokens.map(|token| (text(token, "id").unwrap(), text(token, "ended")));
        tokens.collect::<Vec<_>>()
    };
    assert!(listed().await.iter().all(|(_, ended)| ended.is_none()));
    // Those of a user who is disabled are not good again with the user.
    for disabled in [true, false] {
        let change = json!({ "disabled": disabled });
        assert_eq!(ask(&boss, "PUT", "users/eve", change).await.0, 204);
        let left = async || {
            let tokens = listed().await;
            for (name, why) in &tokens {
                let ended = (*name == id || *name == child).then_some("user disabled or removed");
                assert_eq!(why.as_deref(), ended, "{name}");
            }
            tokens.len()
        };
        let began = Instant::now();
        while left().await != 2 {
            assert!(disabled && began.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let bearer = house.bare("model").token(&token);
        let error = house.connect(bearer).await.unwrap_err();
        refused(&error, "401");
        let why = match disabled {
            true => "the token is not good any more: user disabled or removed",
            false => "the token was revoked",
        };
        assert!(error.to_string().contains(why), "{error}");
    }
    let eve = house.bare("model").password("eve", "correct horse");
    mint_token(&eve, json!({})).await;
    // With a token those go that were minted with it; with another password all of its user's.
    let path = format!("tokens/{of_ann}");
    assert_eq!(ask(&boss, "DELETE", &path, Value::Null).await.0, 204);
    assert_eq!(listed().await.len(), 1);
    let change = json!({ "password": "another" });
    assert_eq!(ask(&boss, "PUT", "users/eve", change).await.0, 204);
    let began = Instant::now();
    while !listed().await.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn one_who_guesses_is_held_up_and_others_are_not() {
    let house = Entrance::new("").await;
    house.with_user("eve", "correct horse").await;
    let eve = house.bare("model").password("eve", "correct horse");
    house.connect(eve.clone()).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..8 {
        let error = house
            .connect(house.bare("model").password("bob", "wrong"))
            .await
            .unwrap_err();
        seen.push(error.to_string());
    }
    assert!(
        seen[7].contains("429") && seen[7].contains("try again in"),
        "{}",
        seen[7]
    );
    // The same address, another user.
    house.connect(eve).await.unwrap();
}

#[tokio::test]
async fn a_listener_takes_what_it_says_and_nothing_else() {
    let served = Served::new(&["ann"], "");
    // Mutual TLS: a certificate, whatever else is shown.
    let mut stream = tls(&served.server, &served.certificates, "ann").await;
    let request = upgrade_request(
        "/storage/model",
        "Authorization: Bearer x\r\nSec-WebSocket-Protocol: storage-sync.v1\r\n",
    );
    assert_eq!(http(&mut stream, &request).await.status, 101);
    let raw = Raw::open(&served.server, &served.certificates, "ann", &request).await;
    drop(raw.unwrap());
    drop(tcp(&served.server).await);
}

#[tokio::test]
async fn a_token_that_does_not_allow_it_is_told_from_a_user_who_may_not() {
    let house = Entrance::new("").await;
    house.with_user("eve", "correct horse").await;
    let (boss, eve) = (
        house.certified("boss", "model"),
        house.bare("model").password("eve", "correct horse"),
    );
    let grants = json!([{ "keyspace": "model", "prefix": "open/a", "allow": ["read"] }]);
    let (_, token) = mint_token(&eve, json!({ "grants": grants })).await;
    let bearer = house.bare("model").token(&token);
    let page = house.connect(bearer.clone()).await.unwrap();
    assert!(page.get_one("open/a".into()).await.unwrap().is_some());
    let by_grants = "with this token, whose grants do not allow it";
    let range = || KeyRange::prefix("open/b");
    for denied in [
        page.get_one("open/b".into()).await.map(drop),
        page.put("open/a".into(), "2".into()).await.map(drop),
        page.scan(range(), ScanOptions::default()).await.map(drop),
        page.watch(range(), WatchOptions::default()).await.map(drop),
    ] {
        let error = denied.unwrap_err().to_string();
        assert!(
            error.contains("user:eve may not") && error.contains(by_grants),
            "{error}"
        );
    }
    let user = house.connect(eve.clone()).await.unwrap();
    let error = user.get_one("closed/a".into()).await.unwrap_err();
    assert!(!error.to_string().contains("token"), "{error}");
    // An administrator's token is none, where its grants do not say so.
    let (_, narrow) = mint_token(&boss, json!({ "grants": grants })).await;
    let narrow = house.bare("model").token(&narrow);
    let (status, body) = ask(&narrow, "GET", "rules", Value::Null).await;
    assert_eq!(status, 403);
    assert!(body.to_string().contains(by_grants), "{body}");
    // One's own password is not set with a token: who has stolen one would keep its owner out.
    let another = json!({ "password": "another" });
    let (status, body) = ask(&bearer, "PUT", "users/eve", another).await;
    assert_eq!(status, 403);
    let error = body["error"].as_str().unwrap();
    assert!(error.contains("log in with the password"), "{error}");
    // Of tokens that there are not.
    let gone = format!("tokens/{}", "0".repeat(32));
    let by_boss = ask(&boss, "DELETE", &gone, Value::Null).await;
    let by_eve = ask(&eve, "DELETE", &gone, Value::Null).await;
    assert_eq!((by_boss.0, by_eve.0), (404, 404));
    assert!(by_eve.1.to_string().contains("no such token of yours"));
    let error = by_boss.1["error"].as_str().unwrap();
    assert!(error.starts_with("there is no such token:"), "{error}");
}

//! Users, logins and tokens, and what needs none.

use std::net::{IpAddr, UdpSocket};

use crate::house::{BOB, House, LISTENER};

#[tokio::test]
async fn item_01_the_server_says_what_it_is() {
    let house = House::secured();
    let welcome = house.get("/", "").await;
    assert_eq!(welcome.status, 200);
    let welcome = welcome.json();
    assert_eq!(welcome["versions"], serde_json::json!(["v1"]));
    assert!(
        welcome["message"]
            .as_str()
            .unwrap()
            .starts_with("PHANTOM Repository")
    );
    assert_eq!(welcome["current_time"].as_str().unwrap().len(), 23);
    let name = house.get("/servername", "").await;
    assert_eq!(name.told(), (200, "PHANTOM Repository".to_owned()));
    assert_eq!(name.body.len(), 18);
    let answer = house.get("/verify_es_connection", "").await;
    assert_eq!(answer.told(), (200, "200".to_owned()));
    let answer = house.get("/_flush", "").await;
    assert_eq!(answer.told(), (200, "200 Succeed\n".to_owned()));
    // Shell scripts ask like this.
    let headers = "Content-Type: multipart/form-data\r\n";
    assert_eq!(
        house.ask("GET", "/servername", headers).await.text(),
        "PHANTOM Repository"
    );
    let head = house.ask("HEAD", "/servername", "").await;
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, Some("18"))
    );
    assert!(head.body.is_empty());
}

/// An address of this machine that is not loopback's.
fn other_address() -> IpAddr {
    // Nothing is sent: the system says from where it would be.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .connect("192.0.2.1:9")
        .expect("this machine has an address besides loopback's");
    socket.local_addr().unwrap().ip()
}

#[tokio::test]
async fn item_02_users_sign_up_from_this_machine_alone() {
    let reachable = "[[listener]]\naddress = \"0.0.0.0:0\"\ntls = \"off\"\ndanger_plaintext = true\nallowed_hosts = [\"*\"]\n\
        auth = [\"token\", \"password\"]\ngateways = [\"repository\"]\n";
    let house = House::launched(reachable, &[], &[]);
    let port = house.address().rsplit_once(':').unwrap().1;
    let ask = async |address: &str, target: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
            .await
            .unwrap();
        crate::house::Answer::read(&mut stream).await.told()
    };
    let here = format!("127.0.0.1:{port}");
    let there = format!("{}:{port}", other_address());
    let signup = "/signup?email=ana@x.org&pw=secret-1&userid=Ana";
    let forbidden = (
        403,
        "\n403: FORBIDDEN access from external IP.\n".to_owned(),
    );
    assert_eq!(ask(&there, signup).await, forbidden);
    assert_eq!(ask(&here, signup).await, (200, "Succeed\n".to_owned()));
    let again = "409: Bad Request Could not register an existing user.\n\n";
    assert_eq!(ask(&here, signup).await, (409, again.to_owned()));
    for (target, told) in [
        (
            "/signup?email=a@b.c",
            "\n400: SIGNUP Bad Request, missing Passwd.\n",
        ),
        (
            "/signup?email=a@b.c&pw=",
            "\n400: SIGNUP Bad Request, empty Passwd.\n",
        ),
        ("/signup?pw=1", "\n400: Bad Request, missing Email.\n"),
        ("/signup?pw=1&email=", "\n400: Bad Request, Empty Email.\n"),
    ] {
        // What is missing is told before from where it comes.
        for from in [&here, &there] {
            assert_eq!(ask(from, target).await, (400, told.to_owned()));
        }
    }
    let update = "/update_user?email=ana@x.org&pw=secret-2";
    assert_eq!(ask(&there, update).await, forbidden);
    assert_eq!(ask(&here, update).await, (200, "Succceed\n".to_owned()));
    let none = "/update_user?email=none@x.org&pw=secret-2";
    let told = "updateuser: Bad Request User don't found.\n\n";
    assert_eq!(ask(&here, none).await, (409, told.to_owned()));
    house.login(("ana@x.org", "secret-2")).await;
}

#[tokio::test]
async fn signing_up_can_be_switched_off() {
    let house = House::new(&format!("[repository]\nsignup = \"off\"\n{LISTENER}"));
    let answer = house.post("/signup?email=a@b.c&pw=1", "").await;
    assert_eq!(answer.status, 403, "{}", answer.text());
    house.login(BOB).await;
}

#[tokio::test]
async fn item_03_a_login_returns_a_token_in_one_line() {
    let house = House::secured();
    for user in [BOB, ("alice@abc.com", "1234"), ("montana@abc.com", "new")] {
        let token = house.login(user).await;
        assert!(
            (100..=200).contains(&token.len()),
            "{} characters",
            token.len()
        );
        assert!(!token.contains(char::is_whitespace));
    }
    // In quotes the shell took away, in a form, and in a JSON body.
    for (content_type, body) in [
        (
            "application/x-www-form-urlencoded",
            "email=bob%40abc.com&pw=1234",
        ),
        ("application/json", r#"{"email":"bob@abc.com","pw":"1234"}"#),
    ] {
        let request = format!(
            "GET /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(house.raw(request.as_bytes()).await.status, 200);
    }
    let wrong = "401 (Unauthorized) Autentication failed, incorrect user  or passwd \n";
    for (target, status, told) in [
        ("/login?email=bob@abc.com&pw=wrong", 401, wrong),
        ("/login?email=nobody@abc.com&pw=1234", 401, wrong),
        (
            "/login?email=bob@abc.com",
            400,
            "400: Bad Request, missing Passwd\n",
        ),
        ("/login?pw=1234", 400, "400: Bad Request, missing Email\n"),
        (
            "/login?email=bob@abc.com&pw=",
            400,
            "400: Bad Request, Empty Passwd\n",
        ),
    ] {
        assert_eq!(
            house.get(target, "").await.told(),
            (status, told.to_owned()),
            "{target}"
        );
    }
}

#[tokio::test]
async fn item_04_a_token_is_verified_whatever_the_scheme_is_called() {
    let house = House::secured();
    let token = house.login(BOB).await;
    let missing = house.get("/verifytoken", "").await;
    assert_eq!(missing.status, 403);
    assert_eq!(
        missing.text(),
        r#"{"message":"Missing authetication header"}"#
    );
    for scheme in ["OAuth", "JWT", "Bearer"] {
        let headers = format!("Authorization: {scheme} {token}\r\n");
        let good = house.ask("GET", "/verifytoken", &headers).await;
        assert_eq!(good.told(), (200, "The token is valid !!!.\n".to_owned()));
        assert_eq!(house.ask("GET", "/private", &headers).await.status, 200);
    }
    let mut other = token.clone();
    other.replace_range(token.len() - 4.., "AAAA");
    for bad in ["garbage", &other] {
        let answer = house.get("/verifytoken", bad).await;
        assert_eq!(answer.told(), (401, "Invalid token\n".to_owned()));
    }
    let headers = "Authorization: OAuth\r\n";
    assert_eq!(house.ask("GET", "/private", headers).await.status, 401);
}

#[tokio::test]
async fn item_22_an_unknown_path_is_answered_with_the_fixed_sentence() {
    let house = House::secured();
    let token = house.login(BOB).await;
    for (method, target, path) in [
        ("GET", "/nothing?x=1", "/nothing"),
        ("POST", "/a/b", "/a/b"),
        ("POST", "/download", "/download"),
        ("DELETE", "/upload", "/upload"),
        ("PUT", "/", "/"),
    ] {
        let told = format!(
            "[ERROR]: the requested path: \"{path}\" for the method \"{method}\" is not implemented in the current version.\n"
        );
        for token in ["", &token] {
            let headers = match token.is_empty() {
                true => String::new(),
                false => format!("Authorization: OAuth {token}\r\n"),
            };
            assert_eq!(
                house.ask(method, target, &headers).await.told(),
                (400, told.clone())
            );
        }
    }
    let options = house.ask("OPTIONS", "/upload", "").await;
    assert_eq!(options.header("access-control-allow-origin"), Some("*"));
    assert_eq!(
        house
            .get("/nothing", "")
            .await
            .header("access-control-allow-origin"),
        Some("*")
    );
}

#[tokio::test]
async fn the_data_base_is_made_and_dropped_by_who_may_write_all_of_it() {
    let house = House::secured();
    let token = house.login(BOB).await;
    assert_eq!(house.get("/new_db", "").await.status, 403);
    assert_eq!(house.get("/drop_db", "x").await.status, 401);
    assert_eq!(house.get("/drop_db", &token).await.status, 400);
    let done = (200, " {\"acknowledged\":true}\n".to_owned());
    assert_eq!(house.get("/new_db", &token).await.told(), done);
    let again = house.get("/new_db", &token).await;
    assert_eq!(again.status, 400);
    assert!(
        again
            .text()
            .starts_with("\n400: Bad Request when creating DB ")
    );
    // More than goes into one commit, with a file in parts.
    house.note(&token, "p", "s", "n").await;
    let file = vec![7; 40 << 20];
    let query = "project=p&source=s&Path=&DestFileName=large";
    house.uploaded(&token, query, &file, "{}").await;
    assert_eq!(house.get("/drop_db", &token).await.told(), done);
    assert_eq!(house.get("/query_metadata", &token).await.text(), "[]");
    assert_eq!(
        house.get("/downloadlist", &token).await.told(),
        (200, String::new())
    );
    assert_eq!(house.get("/drop_db", &token).await.status, 400);
    // It is made again by the first upload.
    house.note(&token, "p", "s", "n").await;
    assert_eq!(house.get("/downloadlist", &token).await.text(), "p/s/n\n");
}

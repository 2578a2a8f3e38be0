//! A server that lets in by certificate, token or password, and what is asked of it over HTTP.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use serde_json::{Value, json};
use storage_client::http::request;
use storage_client::{ConnectOptions, RemoteStorage};
use storage_protocol::{Batch, CommitOptions, Result, Storage};

use crate::served::Served;

/// `cert:boss` may do everything.
pub const BOSS: &str = r#"
[[rule]]
principal = "cert:boss"
keyspace = "system"
allow = ["admin"]

[[rule]]
principal = "cert:boss"
keyspace = "*"
allow = ["read", "write", "watch", "admin"]
"#;

/// A listener for all credentials.
pub const LISTENER: &str = r#"
[[listener]]
address = "127.0.0.1:0"
tls = "server"
auth = ["certificate", "token", "password"]
"#;

const OPEN: &str = r#"
[[rule]]
principal = "*"
keyspace = "model"
prefix = "open/"
allow = ["read", "write", "watch"]
"#;

/// The server. Its keyspace `model` has `open/a` for everybody and `closed/a` for `boss`; there are credentials for `boss` and
/// `ann`.
#[derive(Debug)]
pub struct Entrance(pub Served);

impl Deref for Entrance {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

impl DerefMut for Entrance {
    fn deref_mut(&mut self) -> &mut Served {
        &mut self.0
    }
}

impl Entrance {
    /// Starts one, with this configuration besides.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn new(config: &str) -> Self {
        let config = format!("{config}\n{BOSS}{OPEN}{LISTENER}");
        let entrance = Self(Served::new(&["boss", "ann"], &config));
        let boss = entrance.connect(entrance.certified("boss", "model")).await;
        let batch = Batch::new().put("open/a", "1").put("closed/a", "secret");
        let options = CommitOptions::default();
        let filled = boss.expect("a session").commit(batch, options).await;
        filled.expect("an administrator may");
        entrance
    }

    /// Adds a user.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn with_user(&self, name: &str, password: &str) {
        let boss = self.certified("boss", "model");
        let user = json!({ "password": password, "new": true });
        let (status, body) = ask(&boss, "PUT", &format!("users/{name}"), user).await;
        assert_eq!(status, 204, "{body}");
    }

    /// A session of the client library, of which a lost connection is the end.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect(&self, options: ConnectOptions) -> Result<RemoteStorage> {
        RemoteStorage::connect(options.give_up_after(Duration::ZERO)).await
    }
}

/// Status and body of a request below `/-/auth/` by these credentials.
///
/// # Panics
/// If there is no answer.
pub async fn ask(options: &ConnectOptions, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = (!body.is_null()).then(|| body.to_string().into_bytes());
    let path = format!("/-/auth/{path}");
    let asked = request(options, method.parse().expect("a method"), &path, body).await;
    let (status, body) = asked.expect("an answer");
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    (status.as_u16(), json)
}

/// The answer to a token that is minted by these credentials, with its `id`, `token` and `expires`.
///
/// # Panics
/// If it is refused.
pub async fn mint(options: &ConnectOptions, wanted: Value) -> Value {
    let (status, body) = ask(options, "POST", "tokens", wanted).await;
    assert_eq!(status, 201, "{body}");
    body
}

/// Id and text of a token that is minted by these credentials.
///
/// # Panics
/// If it is refused.
pub async fn mint_token(options: &ConnectOptions, wanted: Value) -> (String, String) {
    let minted = mint(options, wanted).await;
    let text = |name: &str| minted[name].as_str().expect("a text").to_owned();
    (text("id"), text("token"))
}

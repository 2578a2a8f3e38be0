//! Users of the repository are users of the server: `POST /signup`, `POST /update_user`, `GET /login`.

use std::time::Duration;

use axum::body::Body;
use hyper::http::request::Parts;
use storage_protocol::StorageError;
use zeroize::Zeroizing;

use super::answer::{Answer, Refusal, text};
use super::database::check_loopback;
use super::house::House;
use super::parameters::Parameters;
use crate::config::Signup;
use crate::gateway::{
    Credential, Guest, MintError, NotLetInKind, ServerHandle, TokenWish, UserError,
};

/// How long a token of a login is good.
const TOKEN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The names and the password of a request. `told`: how a missing or empty one is told.
async fn credentials(
    parts: &Parts,
    body: Body,
    told: impl Fn(&str, &str) -> String,
) -> Result<(String, Zeroizing<String>), Refusal> {
    let parameters = Parameters::read(parts, body).await?;
    let of = |name: &str, label: &str| match parameters.get(name) {
        None => Err(Refusal::text(400, told("missing", label))),
        Some("") => Err(Refusal::text(400, told("Empty", label))),
        Some(value) => Ok(value.to_owned()),
    };
    let password = Zeroizing::new(of("pw", "Passwd")?);
    Ok((of("email", "Email")?, password))
}

/// Whether a peer may make and change users.
fn check_may_sign_up(house: &House, guest: &Guest) -> Result<(), Refusal> {
    check_loopback(guest)?;
    match house.signup {
        Signup::Loopback => Ok(()),
        Signup::Off => Err(Refusal::text(
            403,
            "\n403: FORBIDDEN users are made by an administrator of the server.\n",
        )),
    }
}

fn told_of_sign_up(what: &str, label: &str) -> String {
    match label {
        "Passwd" => format!(
            "\n400: SIGNUP Bad Request, {} {label}.\n",
            what.to_lowercase()
        ),
        _ => format!("\n400: Bad Request, {what} {label}.\n"),
    }
}

pub(super) async fn sign_up(house: &House, guest: &Guest, parts: &Parts, body: Body) -> Answer {
    let (email, password) = credentials(parts, body, told_of_sign_up).await?;
    check_may_sign_up(house, guest)?;
    check_no_page(parts)?;
    match guest.add_user(&email, password).await {
        Ok(()) => {
            remember(guest.server(), &email).await?;
            Ok(text("Succeed\n"))
        }
        Err(UserError::Exists) => Err(Refusal::text(
            409,
            "409: Bad Request Could not register an existing user.\n\n",
        )),
        Err(error) => Err(Refusal::text(400, format!("400: Bad Request {error}\n"))),
    }
}

pub(super) async fn update(house: &House, guest: &Guest, parts: &Parts, body: Body) -> Answer {
    let (email, password) = credentials(parts, body, told_of_sign_up).await?;
    check_may_sign_up(house, guest)?;
    check_no_page(parts)?;
    check_own(guest.server(), &email).await?;
    match guest.set_password(&email, password).await {
        Ok(()) => {
            remember(guest.server(), &email).await?;
            Ok(text("Succceed\n"))
        }
        Err(UserError::Missing) => Err(Refusal::text(
            409,
            "updateuser: Bad Request User don't found.\n\n",
        )),
        Err(error) => Err(Refusal::text(
            400,
            format!("updateuser: Bad Request {error}\n"),
        )),
    }
}

fn password_set(server: &ServerHandle, email: &str) -> Option<u64> {
    let user = server.shared().access.user(email)?;
    Some(user.password_set)
}

/// Notes that the password that a user has now was set by this gateway.
pub(super) async fn remember(server: &ServerHandle, email: &str) -> Result<(), StorageError> {
    let secrets = server.shared().access.secrets();
    if let (Some(secrets), Some(set)) = (secrets, password_set(server, email)) {
        secrets.mark_gateway_user(email, set).await?;
    }
    Ok(())
}

/// That the password of a user was last set by this gateway. Every program on this machine may ask it for another one, which
/// must not be the way to an administrator, or to any user that the server has from elsewhere.
async fn check_own(server: &ServerHandle, email: &str) -> Result<(), Refusal> {
    let Some(set) = password_set(server, email) else {
        return Ok(());
    };
    let noted = match server.shared().access.secrets() {
        Some(secrets) => secrets.gateway_user(email).await?,
        None => None,
    };
    match noted == Some(set) {
        true => Ok(()),
        false => Err(Refusal::text(
            403,
            "updateuser: FORBIDDEN the password was not set here: an administrator of the server changes it.\n\n",
        )),
    }
}

/// That no web page asks: its browser runs on this machine, and the page may be anybody's.
pub(super) fn check_no_page(parts: &Parts) -> Result<(), Refusal> {
    let by_a_browser = ["origin", "referer", "sec-fetch-site"];
    match by_a_browser
        .iter()
        .any(|name| parts.headers.contains_key(*name))
    {
        true => Err(Refusal::text(
            403,
            "\n403: FORBIDDEN access from a web page.\n",
        )),
        false => Ok(()),
    }
}

pub(super) async fn log_in(house: &House, guest: &Guest, parts: &Parts, body: Body) -> Answer {
    let told = |what: &str, label: &str| format!("400: Bad Request, {what} {label}\n");
    let (user, password) = credentials(parts, body, told).await?;
    let shown = Credential::Password { user, password };
    let identity = guest.let_in(Some(&shown)).await.map_err(|error| {
        let seconds = error.retry_after.map(|wait| wait.as_secs());
        match error.kind {
            NotLetInKind::TooMany => Refusal::for_now(429, &error.reason, seconds),
            NotLetInKind::Busy | NotLetInKind::Unavailable => {
                Refusal::for_now(503, &error.reason, seconds)
            }
            // Two blanks behind the user, as ever.
            NotLetInKind::Password => Refusal::text(
                401,
                "401 (Unauthorized) Autentication failed, incorrect user  or passwd \n",
            ),
            _ => Refusal::text(401, format!("401 (Unauthorized) {}\n", error.reason)),
        }
    })?;
    let principal = identity.principal().as_str().to_owned();
    if let Some(token) = recent(house, guest, &principal).await {
        return Ok(text(token));
    }
    let wish = TokenWish {
        ttl: TOKEN_LIFE,
        name: Some("repository login".to_owned()),
        grants: Vec::new(),
        short: true,
    };
    match guest.caller(identity).mint(wish).await {
        Ok(minted) => {
            house.logins.remember(&principal, &minted.token);
            Ok(text(minted.token))
        }
        Err(error @ (MintError::NotAllowed(_) | MintError::Wish(_))) => {
            Err(Refusal::text(401, format!("401 (Unauthorized) {error}\n")))
        }
        Err(MintError::Full(reason)) => Err(Refusal::text(409, format!("409: {reason}\n"))),
        Err(MintError::Storage(error)) => Err(error.into()),
        Err(error) => Err(Refusal::for_now(503, &error.to_string(), None)),
    }
}

/// The token of the user's last login, if it is not long ago and the token is still good.
async fn recent(house: &House, guest: &Guest, principal: &str) -> Option<String> {
    let token = house.logins.recent(principal)?;
    let shown = Credential::Token(token.clone());
    let identity = guest.let_in(Some(&shown)).await.ok()?;
    // By a certificate it would be good whatever the token is.
    let is_its_own = identity.principal().as_str() == principal && principal.starts_with("user:");
    is_its_own.then(|| token.to_string())
}

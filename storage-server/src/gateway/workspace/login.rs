//! Who a peer is: by the token in its first message.
//!
//! A token of this server is looked at as everywhere else, and the user's record says the rest. One of the issuer that the
//! configuration names says by itself who it is (`name`), and may say its `profile`, `roles` and `workspaces`.

use std::hash::{Hash, Hasher};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde::Deserialize;
use serde_json::Value;

use super::State;
use super::directory::Claims;
use super::frame::JWT_BYTES_MAX;
use crate::auth::now;
use crate::auth::tokens::UnixSeconds;
use crate::config::AuthMethod;
use crate::gateway::{Credential, Guest, Identity, NotLetIn, NotLetInKind, Principal};

/// A peer that has said who it is.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) identity: Identity,
    pub(super) claims: Claims,
    /// From when on its token is good for nothing, in seconds since 1970.
    pub(super) until: Option<u64>,
    /// Tells one token from another.
    pub(super) token: u64,
}

impl Who {
    pub(super) fn is_same_user(&self, other: &Self) -> bool {
        self.identity.principal() == other.identity.principal()
    }
}

/// What a token of another issuer says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ForeignClaims {
    name: String,
    sub: String,
    profile: String,
    roles: Value,
    workspaces: Value,
}

/// A list, or a text with commas; of objects their `uuid`.
fn names(value: &Value) -> Vec<String> {
    let texts: Vec<&str> = match value {
        Value::String(text) => text.split(',').collect(),
        Value::Array(items) => {
            let of = |item: &'_ Value| item.as_str().is_some() || item.get("uuid").is_some();
            let items = items.iter().filter(|item| of(item));
            items
                .filter_map(|item| item.as_str().or_else(|| item["uuid"].as_str()))
                .collect()
        }
        _ => Vec::new(),
    };
    let trimmed = texts.into_iter().map(str::trim);
    trimmed
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect()
}

impl From<ForeignClaims> for Claims {
    fn from(foreign: ForeignClaims) -> Self {
        let some = |text: String| (!text.is_empty()).then_some(text);
        Self {
            login: foreign.name,
            uuid: some(foreign.sub),
            profile: some(foreign.profile),
            roles: names(&foreign.roles),
            workspaces: names(&foreign.workspaces),
        }
    }
}

/// Why a peer is nobody here; safe to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Nobody {
    /// What it shows is not good.
    #[error(transparent)]
    NotLetIn(#[from] NotLetIn),
    /// What it shows is good, and nothing that it may use here.
    #[error("{0}")]
    Forbidden(String),
}

impl Nobody {
    /// Of a token that is not good.
    fn token(kind: NotLetInKind, reason: impl Into<String>) -> Self {
        Self::NotLetIn(NotLetIn {
            kind,
            reason: reason.into(),
            retry_after: None,
        })
    }
}

fn token(jwt: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    jwt.hash(&mut hasher);
    hasher.finish()
}

/// The login of a principal: the name of a user; of others all of it. Neither passes for the other, since a user whose name has
/// a colon has none.
fn login_of(principal: &Principal) -> Result<&str, Nobody> {
    let text = principal.as_str();
    match text.strip_prefix("user:") {
        Some(name) if name.contains(':') => Err(Nobody::Forbidden(format!(
            "the name of a user has no ':' here, this is {name:?}"
        ))),
        Some(name) => Ok(name),
        None => Ok(text),
    }
}

impl State {
    /// Who shows a token.
    ///
    /// # Errors
    /// Why it is nobody.
    pub(super) async fn who(&self, guest: &Guest, jwt: &str) -> Result<Who, Nobody> {
        if jwt.len() > JWT_BYTES_MAX {
            let why = format!(
                "jwt: a token has at most {JWT_BYTES_MAX} bytes, this has {}",
                jwt.len()
            );
            return Err(Nobody::token(NotLetInKind::Token, why));
        }
        if let Some(foreign) = &self.foreign
            && foreign.claims_to_be(jwt)
        {
            if !guest.takes(AuthMethod::Token) {
                let why = "this listener does not take tokens";
                return Err(Nobody::token(NotLetInKind::NotTaken, why));
            }
            let bad = |why: String| {
                guest.tell_denied("token", &why);
                Nobody::token(NotLetInKind::Token, why)
            };
            let good = foreign.verify::<ForeignClaims>(jwt, UnixSeconds(now()));
            let good = good.map_err(|error| bad(error.to_string()))?;
            let principal = Principal::user(&good.claims.name);
            let principal =
                principal.map_err(|_| bad("the token has no name that is one".to_owned()))?;
            login_of(&principal)?;
            return Ok(Who {
                identity: Identity::vouched(principal).at(Some(guest.address())),
                claims: good.claims.into(),
                until: Some(good.exp.0),
                token: token(jwt),
            });
        }
        let shown = Credential::Token(jwt.to_owned().into());
        let identity = guest.let_in(Some(&shown)).await?;
        Ok(Who {
            claims: Claims {
                login: login_of(identity.principal())?.to_owned(),
                ..Claims::default()
            },
            until: identity.until(),
            token: token(jwt),
            identity,
        })
    }

    /// Who sends a request for a route: by its header `Authorization`, or its certificate.
    ///
    /// # Errors
    /// The answer: 401, which asks for a credential, where none is shown or one that is not good.
    pub(super) async fn let_in(
        &self,
        guest: &Guest,
        headers: &HeaderMap,
    ) -> Result<Identity, Response<Body>> {
        let let_in = match shown(headers) {
            // Those of the other issuer are good here, too.
            Some(Credential::Token(jwt)) => {
                let who = self.who(guest, &jwt).await;
                who.map(|who| who.identity)
            }
            shown => guest.let_in(shown.as_ref()).await.map_err(Nobody::from),
        };
        let_in.map_err(|why| refused(guest, &why))
    }
}

/// What a request shows. What cannot be read is shown too, as a token that is not good: it is not the same as nothing.
fn shown(headers: &HeaderMap) -> Option<Credential> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?;
    let only = value.to_str().ok().filter(|_| values.next().is_none());
    let credential = only.and_then(|value| match value.split_once(' ')? {
        (word, token) if word.eq_ignore_ascii_case("bearer") => {
            Some(Credential::Token(token.trim().to_owned().into()))
        }
        (word, encoded) if word.eq_ignore_ascii_case("basic") => Credential::basic(encoded.trim()),
        _ => None,
    });
    Some(credential.unwrap_or_else(|| Credential::Token(String::new().into())))
}

fn refused(guest: &Guest, why: &Nobody) -> Response<Body> {
    let problem = super::ingest::problem(&why.to_string());
    let why = match why {
        Nobody::NotLetIn(why) => why,
        Nobody::Forbidden(_) => return (StatusCode::FORBIDDEN, problem).into_response(),
    };
    let status = match why.kind {
        NotLetInKind::TooMany => StatusCode::TOO_MANY_REQUESTS,
        NotLetInKind::Busy | NotLetInKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::UNAUTHORIZED,
    };
    let mut answer = (status, problem).into_response();
    let headers = answer.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        for challenge in guest.challenges() {
            headers.append(WWW_AUTHENTICATE, challenge);
        }
    }
    if let Some(after) = why.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    answer
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_another_issuer_says_is_read_in_each_of_its_forms() {
        let claims =
            |value: Value| Claims::from(serde_json::from_value::<ForeignClaims>(value).unwrap());
        let lists = claims(json!({
            "name": "ana", "sub": "u-1", "profile": "admin", "roles": "a, b,", "workspaces": ["ws-7"], "email": "x",
        }));
        assert_eq!(
            lists,
            Claims {
                login: "ana".to_owned(),
                uuid: Some("u-1".to_owned()),
                profile: Some("admin".to_owned()),
                roles: vec!["a".to_owned(), "b".to_owned()],
                workspaces: vec!["ws-7".to_owned()],
            }
        );
        let objects = claims(json!({ "name": "ana", "roles": [{ "uuid": "a" }, 7, "b"] }));
        assert_eq!(objects.roles, ["a", "b"]);
        assert_eq!(objects.uuid, None);
    }

    #[test]
    fn no_certificate_passes_for_a_user_and_no_user_for_one() {
        let login = |text: &str| login_of(&Principal::parse(text).unwrap()).map(str::to_owned);
        assert_eq!(login("user:ana"), Ok("ana".to_owned()));
        assert_eq!(login("cert:ana"), Ok("cert:ana".to_owned()));
        assert!(matches!(login("user:cert:ana"), Err(Nobody::Forbidden(_))));
    }

    #[test]
    fn what_cannot_be_read_is_not_nothing() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            shown(&headers).map(|shown| match shown {
                Credential::Token(token) => format!("token {}", *token),
                Credential::Password { user, .. } => user,
            })
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["bearer  abc"]), some("token abc"));
        assert_eq!(of(&["Basic YW5uOnA6dw=="]), some("ann"));
        for bad in [
            &["Bearer"][..],
            &["Basic ???"],
            &["abc"],
            &["Digest a"],
            &["Bearer abc", "Bearer abc"],
        ] {
            assert_eq!(of(bad), some("token "), "{bad:?}");
        }
    }
}

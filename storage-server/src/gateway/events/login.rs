//! Who asks: a header `Authorization`, or `token` or `Token` in the query, which has a token or `USER:PASSWORD`.
//!
//! The header wins. Who shows nothing, or what cannot be read, is asked for a credential with 401; who shows one that is
//! not good gets 403. The bodies are empty, as clients of this protocol know it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Query};
use axum::response::{IntoResponse, Response};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::{StatusCode, Uri};
use storage_protocol::Storage;
use zeroize::Zeroizing;

use super::State;
use super::answer::{AUTH, json};
use crate::gateway::{Caller, Credential, Guest, Identity, NotLetIn, NotLetInKind};

/// Whom a client asks for a credential as.
const CHALLENGE: HeaderValue = HeaderValue::from_static("dr-provision");
/// The names of the parameter of the query, the usual one first.
pub(super) const PARAMETERS: [&str; 2] = ["token", "Token"];

/// Who sent a request for a route, with its storage: an extractor.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) caller: Caller,
    /// The keyspace of the objects, as it may use it.
    pub(super) storage: Arc<dyn Storage>,
    pub(super) state: Arc<State>,
}

impl FromRequestParts<Arc<State>> for Visitor {
    type Rejection = Response<Body>;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> Result<Self, Self::Rejection> {
        let guest = Guest::from_request_parts(parts, state).await;
        let guest = guest.map_err(IntoResponse::into_response)?;
        let identity = let_in(&guest, &parts.headers, &parts.uri).await?;
        let caller = guest.caller(identity);
        Ok(Self {
            storage: caller.storage(&state.config.keyspace),
            caller,
            state: state.clone(),
        })
    }
}

/// Who asks, or the answer to who is not let in.
pub(super) async fn let_in(
    guest: &Guest,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Identity, Response<Body>> {
    let shown = credential(headers, uri).map_err(|Malformed| ask_for_one())?;
    let identity = guest.let_in(shown.as_ref()).await;
    identity.map_err(|why| refused(&why))
}

/// Something is shown that is no credential.
#[derive(Debug, PartialEq, Eq)]
struct Malformed;

fn credential(headers: &HeaderMap, uri: &Uri) -> Result<Option<Credential>, Malformed> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (None, _) => from_query(uri),
        (Some(value), None) => from_header(value).map(Some),
        (Some(_), Some(_)) => Err(Malformed),
    }
}

/// The word before the credential is exact, as this protocol has it.
fn from_header(value: &HeaderValue) -> Result<Credential, Malformed> {
    let value = value.to_str().map_err(|_| Malformed)?;
    match value.split_once(' ') {
        Some(("Basic", encoded)) => Credential::basic(encoded.trim()).ok_or(Malformed),
        Some(("Bearer", token)) if !token.trim().is_empty() => {
            Ok(Credential::Token(token.trim().to_owned().into()))
        }
        _ => Err(Malformed),
    }
}

fn from_query(uri: &Uri) -> Result<Option<Credential>, Malformed> {
    let Ok(Query(fields)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
        return Err(Malformed);
    };
    let named = |wanted: &&str| fields.iter().find(|(name, _)| name == wanted);
    let Some((_, value)) = PARAMETERS.iter().find_map(named) else {
        return Ok(None);
    };
    match value.split_once(':') {
        Some((user, password)) if !user.is_empty() => Ok(Some(Credential::Password {
            user: user.to_owned(),
            password: Zeroizing::new(password.to_owned()),
        })),
        None if !value.is_empty() => Ok(Some(Credential::Token(value.clone().into()))),
        _ => Err(Malformed),
    }
}

fn ask_for_one() -> Response<Body> {
    challenged(StatusCode::UNAUTHORIZED)
}

fn challenged(status: StatusCode) -> Response<Body> {
    (status, [(WWW_AUTHENTICATE, CHALLENGE)]).into_response()
}

fn refused(why: &NotLetIn) -> Response<Body> {
    let mut response = match why.kind {
        NotLetInKind::Missing | NotLetInKind::NotTaken => ask_for_one(),
        NotLetInKind::Token => challenged(StatusCode::FORBIDDEN),
        NotLetInKind::Revoked => {
            let text = format!(
                "{{\"Model\":\"\",\"Key\":\"\",\"Type\":\"{AUTH}\",\"Messages\":[\"Validation failed\"],\"Code\":403}}"
            );
            json(StatusCode::FORBIDDEN, text)
        }
        NotLetInKind::Password => StatusCode::FORBIDDEN.into_response(),
        NotLetInKind::TooMany => StatusCode::TOO_MANY_REQUESTS.into_response(),
        NotLetInKind::Busy | NotLetInKind::Unavailable => {
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    };
    if let Some(after) = why.retry_after {
        let seconds = HeaderValue::from(after.as_secs().max(1));
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a request shows, as text.
    fn shown(header: Option<&str>, query: &str) -> Result<Option<String>, Malformed> {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(AUTHORIZATION, header.parse().unwrap());
        }
        let uri = format!("/api/v3/ws{query}").parse().unwrap();
        let text = |credential| match credential {
            Credential::Token(token) => format!("token {}", *token),
            Credential::Password { user, password } => format!("{user} {}", *password),
        };
        Ok(credential(&headers, &uri)?.map(text))
    }

    #[test]
    fn a_credential_is_in_the_header_or_in_the_query_and_the_header_wins() {
        let some = |text: &str| Ok(Some(text.to_owned()));
        let basic = Some("Basic YW5uOnA6dw==");
        assert_eq!(shown(basic, ""), some("ann p:w"));
        assert_eq!(shown(Some("Bearer abc"), ""), some("token abc"));
        assert_eq!(shown(None, "?token=ann:p:w"), some("ann p:w"));
        assert_eq!(shown(None, "?Token=ann%3Ap%20w"), some("ann p w"));
        assert_eq!(shown(None, "?a=b&token=abc"), some("token abc"));
        assert_eq!(shown(None, "?Token=abc"), some("token abc"));
        assert_eq!(shown(basic, "?token=abc"), some("ann p:w"));
        assert_eq!(shown(None, ""), Ok(None));
        assert_eq!(shown(None, "?TOKEN=abc"), Ok(None));
    }

    #[test]
    fn what_cannot_be_read_is_no_credential() {
        for header in [
            "basic YW5uOnA6dw==",
            "bearer abc",
            "Basic",
            "Basic ???",
            "Bearer ",
            "abc",
            "OAuth abc",
        ] {
            assert_eq!(
                shown(Some(header), "?token=abc"),
                Err(Malformed),
                "{header}"
            );
        }
        for query in ["?token=", "?Token=:password"] {
            assert_eq!(shown(None, query), Err(Malformed), "{query}");
        }
    }
}

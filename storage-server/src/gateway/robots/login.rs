//! Who sent a request for a route: extractors.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use hyper::header::{AUTHORIZATION, HeaderMap, ORIGIN};
use hyper::http::request::Parts;

use super::answer::{Answer, Fault};
use super::house::House;
use crate::gateway::{Caller, Guest};
use crate::http::held::held;
use crate::limits::turns::Turn;

/// See the module.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) caller: Caller,
}

impl FromRequestParts<Arc<House>> for Visitor {
    type Rejection = Response<Body>;

    async fn from_request_parts(
        parts: &mut Parts,
        house: &Arc<House>,
    ) -> Result<Self, Self::Rejection> {
        let guest = Guest::from_request_parts(parts, house).await;
        let guest = guest.map_err(IntoResponse::into_response)?;
        let identity = house.let_in(&guest, &parts.headers, &parts.uri).await;
        let identity = identity.map_err(|error| Fault::from(error).respond(&parts.headers))?;
        if is_change_by_page(&guest, parts) {
            let why = "a web page of another site, which is none of allowed_origins, may change nothing without a token in \
                       Authorization";
            return Err(Fault::forbidden(why).respond(&parts.headers));
        }
        Ok(Self {
            caller: guest.caller(identity),
        })
    }
}

/// Somebody who asks for a list, with a place for it.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) visitor: Visitor,
    place: Turn,
}

impl FromRequestParts<Arc<House>> for Reader {
    type Rejection = Response<Body>;

    async fn from_request_parts(
        parts: &mut Parts,
        house: &Arc<House>,
    ) -> Result<Self, Self::Rejection> {
        let visitor = Visitor::from_request_parts(parts, house).await?;
        let place = house.list_place(&visitor.caller).await;
        let place =
            place.map_err(|why| Fault::for_now(format!("lists: {why}")).respond(&parts.headers))?;
        Ok(Self { visitor, place })
    }
}

impl Reader {
    /// The answer, which keeps the place until it is taken. `headers`: those of the request.
    pub(super) async fn respond(self, answer: Answer, headers: &HeaderMap) -> Response<Body> {
        let response = answer.unwrap_or_else(|fault| fault.respond(headers));
        let (parts, body) = response.into_parts();
        // It is in memory already.
        let body = axum::body::to_bytes(body, usize::MAX)
            .await
            .unwrap_or_default();
        Response::from_parts(parts, held(body, self.place))
    }
}

/// Whether a page of another site has a browser change something by a GET or a HEAD, which are not judged by their origin elsewhere.
fn is_change_by_page(guest: &Guest, parts: &Parts) -> bool {
    let path = parts.uri.path();
    let is_change = path.contains("/jobs/cancel/") || path.contains("/jobs/force/");
    let site = parts.headers.get("sec-fetch-site");
    let is_foreign = site.is_some_and(|site| site == "cross-site" || site == "same-site");
    // What a browser adds of its own accord proves nothing; a token a page has to know.
    let has_token = parts.headers.get(AUTHORIZATION).is_some_and(|value| {
        let scheme = value.as_bytes().split(|byte| *byte == b' ').next();
        scheme.is_some_and(|scheme| !scheme.eq_ignore_ascii_case(b"basic"))
    });
    parts.method.is_safe()
        && is_change
        && !has_token
        && match parts.headers.contains_key(ORIGIN) {
            true => !guest.is_of_allowed_page(parts),
            false => is_foreign,
        }
}

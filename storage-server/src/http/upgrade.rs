//! The WebSocket opening handshake (RFC 6455, section 4.2). All that the RFC demands is checked. What old clients vary
//! within it is accepted: names and tokens in upper or lower case. Offered extensions are ignored.

use axum::body::Body;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// The only version of the protocol.
const VERSION: HeaderValue = HeaderValue::from_static("13");
/// Base64 of the 16 random bytes of a key: 22 digits and padding.
const KEY_DIGITS: usize = 22;

/// What is wrong with a request for an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Another version is asked for; the answer names ours.
    Version,
    /// Anything else.
    Bad(&'static str),
}

impl Flaw {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Bad(_) => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Version => "a WebSocket upgrade needs the header Sec-WebSocket-Version: 13",
            Self::Bad(reason) => reason,
        }
    }
}

/// A request for an upgrade, checked.
#[derive(Debug)]
pub(super) struct Offer {
    accept: String,
    pub(super) subprotocols: Vec<String>,
}

impl Offer {
    /// `None` if the request is not for an upgrade; an error if it is for one and is invalid.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Result<Self, Flaw>> {
        let headers = request.headers();
        if request.method() != Method::GET || !has_token(headers, &UPGRADE, "websocket") {
            return None;
        }
        Some(Self::checked(request.version(), headers))
    }

    fn checked(version: Version, headers: &HeaderMap) -> Result<Self, Flaw> {
        if version < Version::HTTP_11 {
            return Err(Flaw::Bad("a WebSocket upgrade needs HTTP/1.1"));
        }
        if !has_token(headers, &CONNECTION, "upgrade") {
            return Err(Flaw::Bad(
                "a WebSocket upgrade needs the header Connection: Upgrade",
            ));
        }
        // What follows the request would be body to one reader and frames to another.
        let is_empty = headers
            .get_all(CONTENT_LENGTH)
            .iter()
            .all(|length| length == "0");
        if headers.contains_key(TRANSFER_ENCODING) || !is_empty {
            return Err(Flaw::Bad("a WebSocket upgrade has no body"));
        }
        if one(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
            return Err(Flaw::Version);
        }
        let Some(key) = one(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes()))
        else {
            return Err(Flaw::Bad(
                "a WebSocket upgrade needs one header Sec-WebSocket-Key: 16 bytes in base64",
            ));
        };
        Ok(Self {
            accept: derive_accept_key(key.as_bytes()),
            subprotocols: subprotocols(headers),
        })
    }

    /// The answer that switches protocols.
    pub(super) fn accept(&self, subprotocol: Option<&'static str>) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, WEBSOCKET);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(name) = subprotocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        }
        response
    }
}

/// Adds the headers that say to a client of plain HTTP which protocol is spoken here.
pub(super) fn demand(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(UPGRADE, WEBSOCKET);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_VERSION, VERSION);
}

/// The subprotocols that are offered.
pub(super) fn subprotocols(headers: &HeaderMap) -> Vec<String> {
    let offered = tokens(headers, &SEC_WEBSOCKET_PROTOCOL);
    offered.map(str::to_owned).collect()
}

/// The value of a header that stands there once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn is_key(key: &[u8]) -> bool {
    let is_digit = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    key.split_at_checked(KEY_DIGITS)
        .is_some_and(|(digits, rest)| digits.iter().all(is_digit) && rest == b"==")
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(headers: &[(&str, &str)]) -> Option<Result<Offer, Flaw>> {
        let builder = headers
            .iter()
            .fold(Request::builder(), |builder, (name, value)| {
                builder.header(*name, *value)
            });
        Offer::of(&builder.body(()).unwrap())
    }

    const GOOD: [(&str, &str); 4] = [
        ("Upgrade", "websocket"),
        ("Connection", "keep-alive, upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn the_sample_of_the_standard_is_accepted() {
        let offer = offer(&GOOD).unwrap().unwrap();
        assert_eq!(offer.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(offer.subprotocols.is_empty());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(offer(&GOOD[1..]).is_none());
        for (left_out, named) in [(1, "Connection"), (2, "Version"), (3, "Key")] {
            let headers: Vec<_> = GOOD
                .iter()
                .enumerate()
                .filter(|(n, _)| *n != left_out)
                .map(|(_, h)| *h)
                .collect();
            assert!(
                offer(&headers)
                    .unwrap()
                    .unwrap_err()
                    .reason()
                    .contains(named)
            );
        }
    }

    #[test]
    fn what_must_be_refused_is() {
        for (name, value) in [
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", "13"),
            ("Content-Length", "5"),
            ("Transfer-Encoding", "chunked"),
        ] {
            let headers = [&GOOD[..], &[(name, value)]].concat();
            offer(&headers).unwrap().unwrap_err();
        }
        let with = |at: usize, value| {
            let mut headers = GOOD;
            headers[at].1 = value;
            offer(&headers).unwrap()
        };
        for key in [
            "",
            "x",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZS4u",
            "dGhlIHNhbXBsZSBub25j?Q==",
        ] {
            assert_eq!(
                with(3, key).unwrap_err().status(),
                StatusCode::BAD_REQUEST,
                "{key}"
            );
        }
        for version in ["8", "", "13, 8"] {
            assert_eq!(with(2, version).unwrap_err(), Flaw::Version, "{version}");
        }
        offer(&[&GOOD[..], &[("Content-Length", "0")]].concat())
            .unwrap()
            .unwrap();
    }

    #[test]
    fn subprotocols_may_be_several() {
        let several = ("Sec-WebSocket-Protocol", "a, storage-sync.v1");
        let headers = [&GOOD[..], &[several]].concat();
        let offered = offer(&headers).unwrap().unwrap().subprotocols;
        assert_eq!(offered, ["a", "storage-sync.v1"]);
    }
}

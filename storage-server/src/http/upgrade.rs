//! The WebSocket opening handshake (RFC 6455, section 4.2), lenient where old clients need it: names in any case, any
//! `Origin`, no extensions.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Body;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// A request for an upgrade, checked.
#[derive(Debug)]
pub(super) struct Offer {
    accept: String,
    pub(super) subprotocols: Vec<String>,
}

impl Offer {
    /// `None` if the request is for no upgrade at all; an error if it is for one that cannot be.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Result<Self, &'static str>> {
        let headers = request.headers();
        if request.method() != Method::GET || !has_token(headers, &UPGRADE, "websocket") {
            return None;
        }
        Some(Self::checked(request.version(), headers))
    }

    fn checked(version: Version, headers: &HeaderMap) -> Result<Self, &'static str> {
        if version < Version::HTTP_11 {
            return Err("a WebSocket upgrade needs HTTP/1.1");
        }
        if !has_token(headers, &CONNECTION, "upgrade") {
            return Err("a WebSocket upgrade needs the header Connection: Upgrade");
        }
        if headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_none_or(|version| version != "13")
        {
            return Err("a WebSocket upgrade needs the header Sec-WebSocket-Version: 13");
        }
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
            return Err("a WebSocket upgrade needs the header Sec-WebSocket-Key");
        };
        Ok(Self {
            accept: derive_accept_key(key.as_bytes()),
            subprotocols: tokens(headers, &SEC_WEBSOCKET_PROTOCOL)
                .map(str::to_owned)
                .collect(),
        })
    }

    pub(super) fn has_subprotocol(&self, name: &str) -> bool {
        self.subprotocols.iter().any(|offered| offered == name)
    }

    /// The answer that switches protocols.
    pub(super) fn accept(&self, subprotocol: Option<&'static str>) -> Response<Body> {
        let mut response = Response::new(Full::new(Bytes::new()));
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

/// Tells a client that speaks plain HTTP what is spoken here.
pub(super) fn demand(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(UPGRADE, WEBSOCKET);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
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

    fn offer(headers: &[(&str, &str)]) -> Option<Result<Offer, &'static str>> {
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
            assert!(offer(&headers).unwrap().unwrap_err().contains(named));
        }
    }

    #[test]
    fn subprotocols_may_be_several() {
        let headers = [
            &GOOD[..],
            &[("Sec-WebSocket-Protocol", "a, storage-sync.v1")],
        ]
        .concat();
        assert!(
            offer(&headers)
                .unwrap()
                .unwrap()
                .has_subprotocol("storage-sync.v1")
        );
    }
}

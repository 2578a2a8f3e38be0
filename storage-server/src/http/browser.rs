//! Keeps web pages out. A browser sends requests for any page, with the user's certificate and from inside of the
//! user's network; its headers `Origin` and `Host` say for which page.
//!
//! A page of another site is refused by its `Origin`. A page whose own host name was made to resolve to this server
//! (DNS rebinding) has the right origin and the wrong `Host`; with TLS the handshake fails anyhow, without it `Host` is
//! checked. Programs that are not browsers send what headers they like, and are not kept out by this; certificates do
//! that.

use std::net::IpAddr;

use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Request, Version};

use super::protocol::Origins;
use crate::config::{ListenerConfig, TlsMode};

/// So many bytes of a peer's header are quoted, in an answer and in the log.
const QUOTED_BYTES_MAX: usize = 100;

/// Allows every origin or host.
const ANY: &str = "*";

/// Checks that there is one `Host`, and a valid one (RFC 9112, section 3.2). Only HTTP/1.0 may leave it out.
pub(super) fn check_host_header<B>(request: &Request<B>) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() < Version::HTTP_11 => Ok(()),
        (None, _) => Err("a request needs the header Host"),
        (Some(_), Some(_)) => Err("a request has one header Host"),
        (Some(host), None) => match host.to_str().ok().and_then(authority) {
            Some(_) => Ok(()),
            None => Err("the header Host is no host name or address, with or without a port"),
        },
    }
}

/// Checks the host of a request to a listener without TLS: an address, `localhost`, or one of `allowed_hosts`.
pub(super) fn check_host<B>(request: &Request<B>, listener: &ListenerConfig) -> Result<(), String> {
    let Some((host, _)) = called(request) else {
        return Ok(());
    };
    // Any address is allowed, loopback or not: a page of DNS rebinding always has a name.
    let is_address = host.parse::<IpAddr>().is_ok();
    let is_allowed = |allowed: &String| allowed == ANY || allowed.eq_ignore_ascii_case(&host);
    if is_address
        || host.eq_ignore_ascii_case("localhost")
        || listener.allowed_hosts.iter().any(is_allowed)
    {
        return Ok(());
    }
    Err(format!(
        "this listener is not called {}: allowed are addresses, localhost and its allowed_hosts",
        quoted(&host)
    ))
}

/// Whether a session may be opened for a page of this origin. Requests without an origin are not from a page.
pub(super) fn check_origin<B>(
    request: &Request<B>,
    listener: &ListenerConfig,
    origins: Origins,
) -> Result<(), String> {
    let is_free = origins == Origins::OfOldClients && listener.tls != TlsMode::Off;
    for origin in request.headers().get_all(ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        let is_allowed = |allowed: &String| allowed == ANY || allowed.eq_ignore_ascii_case(&origin);
        if is_free || listener.allowed_origins.iter().any(is_allowed) {
            continue;
        }
        if !is_same_host(&origin, request, listener, origins) {
            return Err(format!(
                "pages of the origin {} may open no sessions: allowed are the server's own and its allowed_origins",
                quoted(&origin)
            ));
        }
        if listener.tls == TlsMode::Off && listener.address.ip().is_loopback() {
            check_host(request, listener)?;
        }
    }
    Ok(())
}

fn is_same_host<B>(
    origin: &str,
    request: &Request<B>,
    listener: &ListenerConfig,
    origins: Origins,
) -> bool {
    let Some((scheme, rest)) = origin.split_once("://") else {
        return false;
    };
    let (Some((host, port)), Some((called, called_port))) = (authority(rest), called(request))
    else {
        return false;
    };
    let default_port = |secure: bool| if secure { 443 } else { 80 };
    let port = port.unwrap_or_else(|| default_port(matches!(scheme, "https" | "wss")));
    let called_port = called_port.unwrap_or_else(|| default_port(listener.tls != TlsMode::Off));
    // mwDB clients leave the port out of their origin.
    let any_port = origins == Origins::OfOldClients;
    host.eq_ignore_ascii_case(&called) && (port == called_port || any_port)
}

/// Host and port that a request is for.
fn called<B>(request: &Request<B>) -> Option<(String, Option<u16>)> {
    if let Some(target) = request.uri().authority() {
        return authority(target.as_str());
    }
    one(request.headers(), &HOST).and_then(authority)
}

/// With escapes, and cut where it is long.
fn quoted(text: &str) -> String {
    let mut end = QUOTED_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let dots = if end < text.len() { "..." } else { "" };
    format!("{:?}{dots}", &text[..end])
}

fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Parses `host`, `host:port`, `[v6]` or `[v6]:port`; returns an IPv6 address without its brackets.
fn authority(text: &str) -> Option<(String, Option<u16>)> {
    if text.contains('@') {
        return None;
    }
    let authority: Authority = text.parse().ok()?;
    let host = authority.host();
    let port = authority.port_u16();
    let has_port = text.len() > host.len();
    if host.is_empty() || has_port != port.is_some() {
        return None;
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULT_ADDRESS;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let builder = Request::builder().uri("/");
        let with = |builder: hyper::http::request::Builder, (name, value): &(&str, &str)| {
            builder.header(*name, *value)
        };
        headers.iter().fold(builder, with).body(()).unwrap()
    }

    fn plain() -> ListenerConfig {
        let mut listener = ListenerConfig::new(DEFAULT_ADDRESS);
        listener.tls = TlsMode::Off;
        listener
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for (text, expected) in [
            ("example.com", ("example.com", None)),
            ("my_db:80", ("my_db", Some(80))),
            ("127.0.0.1:7443", ("127.0.0.1", Some(7443))),
            ("[::1]:7443", ("::1", Some(7443))),
            ("[::1]", ("::1", None)),
        ] {
            assert_eq!(
                authority(text),
                Some((expected.0.to_owned(), expected.1)),
                "{text}"
            );
        }
        for text in [
            "",
            "a b",
            "a/b",
            "user@host",
            "host:port",
            "host:",
            "host:99999",
            "::1",
            "http://x",
        ] {
            assert_eq!(authority(text), None, "{text}");
        }
    }

    #[test]
    fn there_is_one_host() {
        let check = |headers: &[(&str, &str)]| check_host_header(&request(headers));
        check(&[("Host", "x")]).unwrap();
        check(&[]).unwrap_err();
        check(&[("Host", "x"), ("Host", "x")]).unwrap_err();
        check(&[("Host", "x y")]).unwrap_err();
        let mut old = request(&[]);
        *old.version_mut() = Version::HTTP_10;
        check_host_header(&old).unwrap();
    }

    #[test]
    fn a_listener_without_tls_has_few_names() {
        let mut listener = plain();
        let check =
            |listener: &ListenerConfig, host| check_host(&request(&[("Host", host)]), listener);
        for good in [
            "localhost:9464",
            "LOCALHOST",
            "127.0.0.1",
            "[::1]:1",
            "10.0.0.7:9464",
        ] {
            check(&listener, good).unwrap();
        }
        assert!(
            check(&listener, "evil.example")
                .unwrap_err()
                .contains("allowed_hosts")
        );
        assert!(check(&listener, "localhost.evil.example").is_err());
        listener.allowed_hosts = vec!["storage".to_owned()];
        check(&listener, "Storage:9464").unwrap();
        check(&listener, "evil.example").unwrap_err();
        listener.allowed_hosts = vec!["*".to_owned()];
        check(&listener, "evil.example").unwrap();
    }

    #[test]
    fn only_pages_of_the_server_itself_may_open_sessions() {
        let secure = ListenerConfig::new(DEFAULT_ADDRESS);
        let check = |listener: &ListenerConfig, origins, host, origin| {
            check_origin(
                &request(&[("Host", host), ("Origin", origin)]),
                listener,
                origins,
            )
        };
        let native =
            |listener: &ListenerConfig, host, origin| check(listener, Origins::Own, host, origin);
        check_origin(&request(&[("Host", "db")]), &secure, Origins::Own).unwrap();
        native(&secure, "db.example", "https://db.example").unwrap();
        native(&secure, "db.example:7443", "https://DB.example:7443").unwrap();
        for (host, origin) in [
            ("db.example", "https://evil.example"),
            ("db.example:7443", "https://db.example"),
            ("db.example", "http://db.example"),
            ("db.example", "null"),
            ("db.example", ""),
            ("db.example", "https://db.example.evil.example"),
            ("db.example", "https://user@db.example"),
        ] {
            let refused = native(&secure, host, origin).unwrap_err();
            assert!(refused.contains("allowed_origins"), "{origin}: {refused}");
        }
        let mut open = secure.clone();
        open.allowed_origins = vec!["https://evil.example".to_owned()];
        native(&open, "db.example", "https://evil.example").unwrap();
        native(&open, "db.example", "https://other.example").unwrap_err();
        // mwDB: with TLS anything goes; without, the host that was called, and on loopback by no foreign name.
        check(&secure, Origins::OfOldClients, "db.example", "null").unwrap();
        check(
            &plain(),
            Origins::OfOldClients,
            "127.0.0.1:7443",
            "http://127.0.0.1",
        )
        .unwrap();
        check(
            &plain(),
            Origins::OfOldClients,
            "localhost:7443",
            "https://evil.example",
        )
        .unwrap_err();
        check(
            &plain(),
            Origins::OfOldClients,
            "evil.example:7443",
            "http://evil.example",
        )
        .unwrap_err();
        native(&plain(), "evil.example:7443", "http://evil.example:7443").unwrap_err();
        native(&plain(), "localhost:7443", "http://localhost:7443").unwrap();
        let mut reachable = plain();
        reachable.address = "0.0.0.0:7443".parse().unwrap();
        check(
            &reachable,
            Origins::OfOldClients,
            "db.lan:7443",
            "http://db.lan",
        )
        .unwrap();
    }
}

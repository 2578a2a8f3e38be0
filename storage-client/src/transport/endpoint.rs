//! The URL of a keyspace, taken apart and checked once.
//!
//! Everything after works with an [`Endpoint`]; nothing looks at the text again but messages for people.

use rustls_pki_types::ServerName;
use storage_protocol::Keyspace;
use tokio_tungstenite::tungstenite::http::Uri;

/// What a URL says.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// The URL as it is asked for in the upgrade.
    pub(crate) uri: Uri,
    /// Whether the connection is encrypted.
    pub(crate) tls: bool,
    /// A name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) keyspace: Keyspace,
}

impl Endpoint {
    /// Reads a URL; the error says what is wrong and what would be right.
    pub(crate) fn new(url: &str, plaintext: bool) -> Result<Self, String> {
        const FORM: &str = "expected wss://HOST[:PORT]/storage/KEYSPACE";
        let uri: Uri = url
            .parse()
            .map_err(|error| format!("the URL is invalid ({error}); {FORM}"))?;
        let tls = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") if plaintext => false,
            Some("ws") => {
                return Err(
                    "the URL is not encrypted (ws://), and danger_plaintext was not asked for"
                        .into(),
                );
            }
            _ => return Err(format!("the URL's scheme is not wss; {FORM}")),
        };
        let authority = uri
            .authority()
            .ok_or_else(|| format!("the URL names no host; {FORM}"))?;
        if authority.as_str().contains('@') {
            return Err(format!(
                "the URL has a user in it, which nothing reads; {FORM}"
            ));
        }
        let host = authority.host();
        let port = match authority.as_str().strip_prefix(host) {
            Some("") if tls => 443,
            Some("") => 80,
            rest => rest
                .and_then(|rest| rest.strip_prefix(':')?.parse().ok())
                .filter(|&port| port > 0)
                .ok_or_else(|| format!("the URL's port is no number from 1 to 65535; {FORM}"))?,
        };
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() {
            return Err(format!("the URL names no host; {FORM}"));
        }
        if tls && ServerName::try_from(host.as_str()).is_err() {
            return Err(format!(
                "the URL's host {host:?} is no name and no address that a certificate can be for; {FORM}"
            ));
        }
        let name = uri
            .path()
            .strip_prefix("/storage/")
            .filter(|_| uri.query().is_none())
            .ok_or_else(|| format!("the URL's path is not /storage/KEYSPACE; {FORM}"))?;
        let keyspace = Keyspace::new(name).map_err(|error| error.to_string())?;
        Ok(Self {
            tls,
            host,
            port,
            keyspace,
            uri,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Endpoint, String> {
        Endpoint::new(url, false)
    }

    #[test]
    fn a_url_is_taken_apart() {
        let endpoint = parse("wss://[::1]:7443/storage/a.b").unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("::1", 7443));
        assert_eq!(endpoint.keyspace.as_str(), "a.b");
        assert!(endpoint.tls);
        assert_eq!(parse("wss://host/storage/a").unwrap().port, 443);
    }

    #[test]
    fn errors_say_what_is_wrong_with_a_url() {
        for (url, why) in [
            ("wss://host:1/storage/A", "keyspace name \"A\""),
            ("wss://host:1/storage/", "keyspace name \"\""),
            ("wss://host:1/storage/a/b", "keyspace name \"a/b\""),
            ("wss://host:1/store/a", "path is not /storage/KEYSPACE"),
            ("wss://host:1/storage/a?x", "path is not /storage/KEYSPACE"),
            ("https://host:1/storage/a", "scheme is not wss"),
            ("host:1", "scheme is not wss"),
            ("ws://host:1/storage/a", "danger_plaintext"),
            ("wss://me@host:1/storage/a", "user"),
            ("wss://host:99999/storage/a", "port"),
            ("wss://host:0/storage/a", "port"),
            ("wss://127.1:7443/storage/a", "host \"127.1\""),
            ("wss:///storage/a", "URL"),
            ("", "URL is invalid"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(why), "{url}: {error}");
        }
    }
}

//! Listeners: `[[listener]]`.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::text;
use crate::gateway::WITH_LOGINS;

/// Where the server listens if nothing says otherwise.
pub const DEFAULT_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7443);

/// How a listener is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// TLS with client certificates: who has none is not let in.
    Mutual,
    /// TLS. Client certificates are asked for where [`AuthMethod::Certificate`] lets peers in, and not demanded.
    Server,
    /// No TLS.
    Off,
}

/// By what a listener lets peers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// A client certificate.
    Certificate,
    /// A token that the server minted.
    Token,
    /// A user and a password.
    Password,
    /// Nothing at all: such peers are `anonymous`.
    Anonymous,
}

impl AuthMethod {
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Certificate => "certificates",
            Self::Token => "tokens",
            Self::Password => "passwords",
            Self::Anonymous => "anonymous peers",
        }
    }
}

/// A TLS version, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

/// One listener: `[[listener]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerConfig {
    /// Where; port 0 takes a free one. A file must give it.
    #[serde(deserialize_with = "text::address")]
    pub address: SocketAddr,
    /// How it is secured. Default `mutual`.
    pub tls: TlsMode,
    /// By what it lets peers in, whichever they have. Default: with mutual TLS certificates, which it takes alone; without
    /// that, where a gateway with logins of its own is served ([`WITH_LOGINS`](crate::gateway::WITH_LOGINS)), all that
    /// it can be shown; without TLS on loopback else anybody. In every other case it must be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Vec<AuthMethod>>,
    /// The gateways that it serves, by their names; at least one. Default `storage`.
    pub gateways: Vec<String>,
    /// The oldest TLS version. Default 1.3.
    pub tls_min_version: TlsVersion,
    /// The newest TLS version; not below the oldest. Default 1.3.
    pub tls_max_version: TlsVersion,
    /// Web pages of these origins (`https://example.com`) may open sessions, besides the server's own; `*`: all.
    pub allowed_origins: Vec<String>,
    /// Without TLS: what it is called by browsers and collectors, besides `localhost` and addresses; `*`: anything.
    pub allowed_hosts: Vec<String>,
    /// Whether plaintext on an address that others can reach was asked for.
    pub danger_plaintext: bool,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self::new(DEFAULT_ADDRESS)
    }
}

impl ListenerConfig {
    /// Mutual TLS, gateway `storage`.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            tls: TlsMode::Mutual,
            auth: None,
            gateways: vec!["storage".to_owned()],
            tls_min_version: TlsVersion::Tls13,
            tls_max_version: TlsVersion::Tls13,
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            danger_plaintext: false,
        }
    }

    /// By what it lets peers in.
    #[must_use]
    pub fn auth(&self) -> &[AuthMethod] {
        match (&self.auth, self.tls) {
            (Some(methods), _) => methods,
            (None, TlsMode::Mutual) => &[AuthMethod::Certificate],
            (None, TlsMode::Server) if self.has_logins() => &[
                AuthMethod::Certificate,
                AuthMethod::Token,
                AuthMethod::Password,
            ],
            (None, TlsMode::Server) => &[],
            (None, TlsMode::Off) if self.has_logins() => &[AuthMethod::Token, AuthMethod::Password],
            (None, TlsMode::Off) => &[AuthMethod::Anonymous],
        }
    }

    /// Whether a gateway is served whose protocol has logins of its own.
    #[must_use]
    pub(crate) fn has_logins(&self) -> bool {
        let has_logins = |name: &String| WITH_LOGINS.contains(&name.as_str());
        self.gateways.iter().any(has_logins)
    }

    /// No TLS, gateway `admin`: what probes use. (On loopback only.)
    #[must_use]
    pub fn admin(address: SocketAddr) -> Self {
        Self {
            tls: TlsMode::Off,
            gateways: vec!["admin".to_owned()],
            ..Self::new(address)
        }
    }
}

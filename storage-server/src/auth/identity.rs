//! Who a peer is and by what it was found out: what its session, its access and its audit go by.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustls_pki_types::CertificateDer;

use super::Principal;
use super::rules::RuleSet;

/// Who a peer is, and by what. Decided once for a connection (for each request of HTTP, which carries its credential with
/// it) and passed on from there; cheap to clone.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
    /// Where it came from, for the audit log; nothing is decided by it.
    address: Option<SocketAddr>,
}

struct Inner {
    principal: Principal,
    proof: Proof,
}

/// By what a peer was found to be who it is.
pub(crate) enum Proof {
    /// It proved nothing, and the listener lets such in.
    Anonymous,
    /// Nothing yet: it is to say in the connection who it is. Until then it may do nothing.
    Pending,
    /// A client certificate that was verified: it and those between it and the authority.
    Certificate {
        chain: Vec<CertificateDer<'static>>,
        /// Until when it is valid, in seconds since 1970.
        until: u64,
        /// With which version of the verifier it was last found good.
        verified: AtomicU64,
    },
    /// A user and its password.
    Password {
        user: String,
        /// That of its record then, in ms since 1970.
        password_set: u64,
    },
    /// A token that the server minted.
    Token(Bearer),
    /// A gateway's protocol, which vouches for it.
    Gateway,
}

/// The bearer of a token.
pub(crate) struct Bearer {
    pub(crate) id: String,
    /// From when on it is good for nothing, in seconds since 1970.
    pub(crate) until: u64,
    /// What it may do of what its minter may: what each of these allows.
    pub(crate) rules: Vec<RuleSet>,
}

impl Proof {
    /// The word for it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Pending => "nothing yet",
            Self::Certificate { .. } => "certificate",
            Self::Password { .. } => "password",
            Self::Token(_) => "token",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Debug for Identity {
    /// Never with what would let another one in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("principal", &self.inner.principal.as_str())
            .field("by", &self.inner.proof.name())
            .finish()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.principal.fmt(f)
    }
}

impl Identity {
    pub(crate) fn new(principal: Principal, proof: Proof) -> Self {
        Self {
            inner: Arc::new(Inner { principal, proof }),
            address: None,
        }
    }

    /// The same one, who came from there.
    pub(crate) fn at(self, address: Option<SocketAddr>) -> Self {
        Self { address, ..self }
    }

    /// Where it came from; `None` if that is not known.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// A peer that proved nothing.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(Principal::anonymous(), Proof::Anonymous)
    }

    /// A peer that is to say in the connection who it is.
    pub(crate) fn pending() -> Self {
        Self::new(Principal::anonymous(), Proof::Pending)
    }

    /// A peer whose principal a gateway's protocol found out by its own means, which the gateway vouches for.
    #[must_use]
    pub fn vouched(principal: Principal) -> Self {
        Self::new(principal, Proof::Gateway)
    }

    /// Who it is.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.inner.principal
    }

    pub(crate) fn proof(&self) -> &Proof {
        &self.inner.proof
    }

    /// From when on it is good for nothing, in seconds since 1970.
    pub(crate) fn until(&self) -> Option<u64> {
        match self.proof() {
            Proof::Certificate { until, .. } => Some(*until),
            Proof::Token(bearer) => Some(bearer.until),
            _ => None,
        }
    }

    /// Whether it is this user by its password. A token is not enough: who has stolen one would keep its owner out.
    pub(crate) fn may_change_password_of(&self, user: &Principal) -> bool {
        matches!(self.proof(), Proof::Password { .. }) && self.principal() == user
    }
}

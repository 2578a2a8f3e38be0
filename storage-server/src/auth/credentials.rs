//! From what a request shows to who sent it, and whether that still holds.
//!
//! A certificate decides before anything else. Then, of those that the listener takes: a token (in `Authorization`, in the
//! list of subprotocols as `bearer.TOKEN`, or where a gateway's protocol has it), a user with a password, and at last
//! nobody at all. A credential that is shown and is not good is refused, never passed over for a lesser one.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::control::AccessControl;
use super::identity::Bearer;
use super::live::Ended;
use super::passwords::LoginError;
use super::rules::Origin;
use super::rules::RuleSet;
use super::system::{Records, TokenRecord};
use super::tokens::{Credential, CredentialError, TokenError, UnixSeconds, from_authorization};
use super::{Identity, Principal, Proof};
use crate::config::AuthMethod;

/// What a request shows of who sent it: nothing, a credential, or an `Authorization` that has none.
pub(crate) type Shown<'a> = Result<Option<Credential<'a>>, CredentialError>;

/// What is shown by the value of `Authorization`, and by a token from elsewhere in the request, which counts without one.
pub(crate) fn shown_by<'a>(authorization: Option<&'a str>, token: Option<&'a str>) -> Shown<'a> {
    match authorization.map(from_authorization) {
        None => Ok(token.map(Credential::Bearer)),
        Some(credential) => credential.map(Some),
    }
}

/// Why nobody is let in for what a request shows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    /// Nothing was shown, and the listener wants something.
    #[error("this listener takes {0}, and the request has none")]
    Missing(String),
    /// It is shown where it is not taken.
    #[error("this listener does not take {what}: it takes {taken}")]
    NotTaken { what: &'static str, taken: String },
    #[error(transparent)]
    Malformed(#[from] CredentialError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("{}", told(*.why))]
    Ended {
        /// Of the token; it is no secret.
        id: String,
        why: Ended,
    },
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error("users and tokens cannot be looked up: {0}")]
    Store(String),
}

/// Why a token is good for nothing before its time is over.
fn told(why: Ended) -> String {
    match why {
        Ended::TokenRevoked => "the token was revoked".to_owned(),
        why => format!("the token is not good any more: {why}"),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// As in a sentence: "certificates, tokens or passwords".
fn list(taken: &[AuthMethod]) -> String {
    let words: Vec<_> = taken.iter().map(|method| method.plural()).collect();
    match words.split_last() {
        None => "nobody".to_owned(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

impl AccessControl {
    /// Who sent a request without a certificate.
    pub(crate) async fn identify(
        &self,
        taken: &[AuthMethod],
        shown: &Shown<'_>,
        address: IpAddr,
    ) -> Result<Identity, AuthError> {
        let takes = |method| taken.contains(&method);
        let not_taken = |what| {
            let taken = list(taken);
            Err(AuthError::NotTaken { what, taken })
        };
        match shown.as_ref().map_err(|error| *error)? {
            Some(Credential::Bearer(token)) if takes(AuthMethod::Token) => self.bearer(token),
            Some(Credential::Bearer(_)) => not_taken("tokens"),
            Some(Credential::Basic { user, password }) if takes(AuthMethod::Password) => {
                self.log_in(user, password.as_bytes(), address).await
            }
            Some(Credential::Basic { .. }) => not_taken("passwords"),
            None if takes(AuthMethod::Anonymous) => Ok(Identity::anonymous()),
            None => Err(AuthError::Missing(list(taken))),
        }
    }

    /// What is shown, and who is said to be by that, if there is such a user: for the audit log. A name that nobody has
    /// is not given back, since it may be a password in the wrong field.
    pub(crate) fn claim(&self, shown: &Shown<'_>) -> (&'static str, Option<String>) {
        match shown {
            Ok(Some(Credential::Basic { user, .. })) => {
                let claimed = self.user(user).map(|_| format!("user:{user}"));
                ("password", claimed)
            }
            Ok(Some(Credential::Bearer(_))) => ("token", None),
            Err(_) => ("authorization", None),
            Ok(None) => ("nothing", None),
        }
    }

    /// Who has this token.
    pub(crate) fn bearer(&self, token: &str) -> Result<Identity, AuthError> {
        let claims = self.verify_token(token)?;
        let id = claims.jti.as_str();
        let ended = |why| AuthError::Ended {
            id: id.to_owned(),
            why,
        };
        let record = self.token(id);
        let record = record.ok_or_else(|| ended(self.why_gone(&claims.sub)))?;
        let principal = Principal::stored(&record.principal);
        let bearer = Bearer {
            id: id.to_owned(),
            until: record.expires.min(claims.exp.0),
            rules: self.rules_of(&record),
        };
        let identity = Identity::new(principal, Proof::Token(bearer));
        match self.check(&identity) {
            Ok(()) => Ok(identity),
            Err(Ended::TokenExpired) => Err(AuthError::Token(TokenError::Expired {
                at: UnixSeconds(record.expires),
            })),
            Err(why) => Err(ended(why)),
        }
    }

    /// Why a token of this principal has no record any more, as far as that is known: those of a user go with it.
    fn why_gone(&self, principal: &str) -> Ended {
        let is_out = |name| self.user(name).is_none_or(|user| user.disabled);
        match principal.strip_prefix("user:").is_some_and(is_out) {
            true => Ended::UserGone,
            false => Ended::TokenRevoked,
        }
    }

    /// Who logs in as this user with this password.
    pub(crate) async fn log_in(
        &self,
        user: &str,
        password: &[u8],
        address: IpAddr,
    ) -> Result<Identity, AuthError> {
        let known = self.user(user).filter(|user| !user.disabled);
        // Looked up for those that there are not, too, so that both take the same time.
        let stored = self.password_of(user).await.map_err(AuthError::Store)?;
        // Of another password than the record's, where only one of both was written: nobody logs in with that.
        let password_set = known.as_ref().map(|user| user.password_set);
        let stored = stored.filter(|(set, _)| Some(*set) == password_set);
        let stored = stored.map(|(_, hash)| hash);
        self.logins()
            .check(user, address, password, stored.as_deref())
            .await?;
        let (Some(known), Ok(principal)) = (known, Principal::user(user)) else {
            return Err(LoginError::Refused.into());
        };
        let proof = Proof::Password {
            user: user.to_owned(),
            password_set: known.password_set,
        };
        Ok(Identity::new(principal, proof))
    }

    /// Whether a peer would still be let in. A certificate is verified again, for 0.1 ms or so, if that is done with something
    /// else since it was found good.
    pub(crate) fn check(&self, identity: &Identity) -> Result<(), Ended> {
        match identity.proof() {
            Proof::Anonymous | Proof::Pending | Proof::Gateway => Ok(()),
            Proof::Certificate {
                chain,
                until,
                verified,
            } => {
                if now() > *until {
                    return Err(Ended::CertificateExpired);
                }
                // Ordering: the version first, so that a change from here on is seen the next time.
                let version = self.verifier_version();
                if verified.load(Ordering::Relaxed) != version {
                    self.check_chain(chain)?;
                    verified.store(version, Ordering::Relaxed);
                }
                Ok(())
            }
            Proof::Password { user, password_set } => {
                let user = self.user(user).filter(|user| !user.disabled);
                match user.ok_or(Ended::UserGone)?.password_set == *password_set {
                    true => Ok(()),
                    false => Err(Ended::PasswordChanged),
                }
            }
            Proof::Token(bearer) => {
                if now() >= bearer.until {
                    return Err(Ended::TokenExpired);
                }
                let record = self.token(&bearer.id).ok_or(Ended::TokenRevoked)?;
                self.check_minter(&record)
            }
        }
    }

    /// Whether the bearer of a token would be let in, as far as its record tells. A certificate that it was minted with is
    /// not looked at.
    pub(crate) fn check_token(&self, record: &TokenRecord) -> Result<(), Ended> {
        match now() >= record.expires {
            true => Err(Ended::TokenExpired),
            false => self.check_minter(record),
        }
    }

    /// Whether those that a token depends on would still be let in.
    fn check_minter(&self, record: &TokenRecord) -> Result<(), Ended> {
        self.check_minter_among(&self.system().records(), record)
    }

    /// The same with the users that are there.
    pub(super) fn check_minter_among(
        &self,
        records: &Records,
        record: &TokenRecord,
    ) -> Result<(), Ended> {
        if let Some(name) = record.principal.strip_prefix("user:") {
            let user = records.user(name).filter(|user| !user.disabled);
            if Some(user.ok_or(Ended::UserGone)?.password_set) != record.password_set {
                return Err(Ended::PasswordChanged);
            }
        }
        match &record.parent {
            Some(parent) => match self.token(parent) {
                Some(parent) => self.check_minter_among(records, &parent),
                None => Err(Ended::TokenRevoked),
            },
            None => Ok(()),
        }
    }

    /// What a token and those that it was minted with may do: all of these, at once.
    fn rules_of(&self, record: &TokenRecord) -> Vec<RuleSet> {
        let mut rules = Vec::new();
        if !record.grants.is_empty() {
            let mut set = RuleSet::builder();
            for (place, rule) in record.grants.iter().enumerate() {
                set.add_rule(Origin::Config(place), rule.clone());
            }
            rules.push(set.build());
        }
        match record.parent.as_ref().map(|id| self.token(id)) {
            None => {}
            Some(Some(parent)) => rules.extend(self.rules_of(&parent)),
            Some(None) => {
                // What it was minted with is gone, and so is all that it may do.
                let mut nothing = RuleSet::builder();
                nothing.add_unreadable_rule(Origin::Config(0), "the token before it is gone");
                rules.push(nothing.build());
            }
        }
        rules
    }

    /// Whether a token is this one, or was minted with it or with one that was.
    pub(crate) fn is_of(&self, id: &str, ancestor: &str) -> bool {
        let parent = || self.token(id).and_then(|record| record.parent.clone());
        id == ancestor || parent().is_some_and(|parent| self.is_of(&parent, ancestor))
    }

    /// How many tokens one after the other were minted with one another, up to this one.
    pub(crate) fn generations(&self, id: &str) -> usize {
        let parent = self.token(id).and_then(|record| record.parent.clone());
        1 + parent.map_or(0, |parent| self.generations(&parent))
    }

    /// Whether a chain of certificates would be let in now.
    pub(super) fn check_chain(&self, chain: &[CertificateDer<'_>]) -> Result<(), Ended> {
        let (Some(verifier), [own, between @ ..]) = (self.verifier(), chain) else {
            return Err(Ended::CertificateRevoked);
        };
        match verifier.verify_client_cert(own, between, UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(_) => Err(Ended::CertificateRevoked),
        }
    }
}

/// The certificates that a token was minted with.
pub(super) fn chain_of(record: &TokenRecord) -> Vec<CertificateDer<'static>> {
    let decoded = record.certificates.iter();
    let decoded = decoded.filter_map(|text| STANDARD.decode(text).ok());
    decoded.map(CertificateDer::from).collect()
}

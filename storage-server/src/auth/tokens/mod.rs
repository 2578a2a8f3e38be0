//! Bearer tokens: what a peer without a certificate shows, made and checked by this server alone.
//!
//! A token is a signed JWT (RFC 7519) by HMAC-SHA-256, or, for clients that take no long ones, the same in a [`short`] form. It says who minted it and until when it is good. What it allows
//! is stored under its id by the server, so it can be revoked, and the token stays short. [`SigningKeys`] has the
//! secrets, [`Tokens`] signs and verifies, [`request`] finds a token in a request, and [`redact()`] keeps it out of
//! logs. Nothing here reads a clock, and no error has the text of a token.

mod foreign;
mod hs256;
mod keys;
mod redact;
pub(crate) mod request;
mod short;

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Validation};
use serde::{Deserialize, Serialize};

use super::text::date;

pub(crate) use self::foreign::{ForeignTokens, SECRET_BYTES_MIN};
pub(crate) use self::keys::SigningKeys;
pub(crate) use self::redact::redact;
pub(crate) use self::request::{
    Credential, CredentialError, basic, from_authorization, from_query, from_subprotocols, is_token,
};

/// The longest token, in bytes. Ours have about 300. Many proxies take no more than 8 KiB of headers, in all.
pub(crate) const TOKEN_BYTES_MAX: usize = 4096;

/// Who says so (`iss`): the same for all servers of this kind.
const ISSUER: &str = "storage-sync";
/// The longest principal (`sub`) and id of a store (`aud`), in bytes.
const NAME_BYTES_MAX: usize = 256;
const ID_BYTES: usize = 16;

/// A time in seconds since 1970, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// This time and `duration`, which counts in whole seconds.
    #[must_use]
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()))
    }
}

impl fmt::Display for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&date(self.0))
    }
}

/// The id of a token (`jti`): 16 random bytes as 32 hexadecimal digits. It is no secret, and not the token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct TokenId(String);

impl TokenId {
    fn random() -> Result<Self, TokenError> {
        let mut bytes = [0; ID_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| TokenError::Random(error.to_string()))?;
        Ok(Self(hex::encode(bytes)))
    }

    /// As text.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TokenId {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match text.len() == 2 * ID_BYTES && text.bytes().all(is_digit) {
            true => Ok(Self(text)),
            false => Err(TokenError::Malformed("its id is not 32 hexadecimal digits")),
        }
    }
}

/// What a token says. Whose server it is for is added when it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The token's id, under which the server keeps what it allows.
    pub jti: TokenId,
    /// The principal that minted it, such as `cert:producer` or `user:ann`: 1 to 256 bytes.
    pub sub: String,
    /// When it was minted.
    pub iat: UnixSeconds,
    /// From when on it is good for nothing.
    pub exp: UnixSeconds,
}

impl Claims {
    /// Those of a new token that `minter` mints now, good for `life`, which counts in whole seconds.
    ///
    /// # Errors
    /// [`TokenError::Claims`] if the minter has no name or a very long one, or the life is under a second or endless;
    /// [`TokenError::Random`].
    pub(crate) fn new(minter: &str, now: UnixSeconds, life: Duration) -> Result<Self, TokenError> {
        let claims = Self {
            jti: TokenId::random()?,
            sub: minter.to_owned(),
            iat: now,
            exp: now.after(life),
        };
        claims.check().map_err(TokenError::Claims)?;
        Ok(claims)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.sub.is_empty() || self.sub.len() > NAME_BYTES_MAX {
            return Err("the principal that minted it has 1 to 256 bytes");
        }
        if self.exp <= self.iat {
            return Err("it is good for a second at least");
        }
        if self.exp == UnixSeconds(u64::MAX) {
            return Err("its end is no time");
        }
        Ok(())
    }
}

/// Why a token is not taken, or not made. No text of it has any part of the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TokenError {
    /// It is no token that this server could have made.
    #[error("the token cannot be read: {0}")]
    Malformed(&'static str),
    /// It asks for another algorithm than HS256, or for none.
    #[error("the token is not signed with HS256")]
    Algorithm,
    /// Its signing key is not among this server's: dropped since, or another server's.
    #[error("the token's signing key is unknown here: replaced since, or of another server")]
    UnknownKey,
    /// Its signature is not this key's.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// The key is this server's, but the token is for another.
    #[error("the token is of another server")]
    OtherServer,
    /// It is of another issuer whose tokens are taken, and not for this server.
    #[error("the token is for another audience")]
    Audience,
    /// Its time is over.
    #[error("the token expired at {at}")]
    Expired {
        /// Its `exp`.
        at: UnixSeconds,
    },
    /// A token with such claims is not made.
    #[error("no token can be made: {0}")]
    Claims(&'static str),
    /// The token could not be signed.
    #[error("the token could not be signed: {0}")]
    Signing(String),
    /// The system has no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}

/// Signs and verifies the tokens of one store.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    keys: SigningKeys,
    instance: String,
    validation: Validation,
}

/// The payload. Nothing else is in it: a member that this release does not know might take something back.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    iss: String,
    aud: String,
    jti: TokenId,
    sub: String,
    iat: UnixSeconds,
    exp: UnixSeconds,
}

/// The header of a token, ours or not. Ours have all three, and nothing else.
#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

impl Tokens {
    /// The tokens of the store with the id `instance`, 1 to 256 bytes. Other stores' tokens are refused, even if they
    /// share a key, as a copy of a store does.
    ///
    /// # Errors
    /// [`TokenError::Claims`] if `instance` is empty or too long.
    pub(crate) fn new(keys: SigningKeys, instance: String) -> Result<Self, TokenError> {
        if instance.is_empty() || instance.len() > NAME_BYTES_MAX {
            return Err(TokenError::Claims("the id of a store has 1 to 256 bytes"));
        }
        hs256::install();
        // The times are judged here, by the caller's clock and without leeway; issuer and audience by texts of ours.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Ok(Self {
            keys,
            instance,
            validation,
        })
    }

    /// The id of the store.
    #[must_use]
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The secrets.
    #[must_use]
    pub(crate) fn keys(&self) -> &SigningKeys {
        &self.keys
    }

    /// The token with these claims, signed with the current secret.
    ///
    /// # Errors
    /// [`TokenError::Claims`] if a token cannot have them; [`TokenError::Signing`].
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        claims.check().map_err(TokenError::Claims)?;
        let key = self.keys.current();
        let mut header = jsonwebtoken::Header::new(Algorithm::HS256);
        header.kid = Some(key.kid().to_owned());
        let payload = Payload {
            iss: ISSUER.to_owned(),
            aud: self.instance.clone(),
            jti: claims.jti.clone(),
            sub: claims.sub.clone(),
            iat: claims.iat,
            exp: claims.exp,
        };
        let signed = EncodingKey::from_secret(key.secret())
            .and_then(|secret| jsonwebtoken::encode(&header, &payload, &secret));
        let token = signed.map_err(|error| TokenError::Signing(error.to_string()))?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Claims("it would be longer than 4096 bytes"));
        }
        Ok(token)
    }

    /// What a token says, if it is good now.
    ///
    /// # Errors
    /// All of [`TokenError`] but [`TokenError::Claims`], [`TokenError::Signing`] and [`TokenError::Random`]. An expired
    /// token is [`TokenError::Expired`] only if all else is right.
    pub(crate) fn verify(&self, token: &str, now: UnixSeconds) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed("it is longer than 4096 bytes"));
        }
        let claims = match short::is_short(token) {
            true => self.short_claims(token)?,
            false => self.jwt_claims(token)?,
        };
        if now >= claims.exp {
            return Err(TokenError::Expired { at: claims.exp });
        }
        Ok(claims)
    }

    fn jwt_claims(&self, token: &str) -> Result<Claims, TokenError> {
        let kid = kid_of(token)?;
        let key = self.keys.find(&kid).ok_or(TokenError::UnknownKey)?;
        let payload = self.payload(token, key.secret())?;
        if payload.iss != ISSUER || payload.aud != self.instance {
            return Err(TokenError::OtherServer);
        }
        let claims = Claims {
            jti: payload.jti,
            sub: payload.sub,
            iat: payload.iat,
            exp: payload.exp,
        };
        claims.check().map_err(TokenError::Malformed)?;
        Ok(claims)
    }

    fn payload(&self, token: &str, secret: &[u8]) -> Result<Payload, TokenError> {
        let decoded = DecodingKey::from_secret(secret)
            .and_then(|key| jsonwebtoken::decode::<Payload>(token, &key, &self.validation));
        let decoded = decoded.map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => TokenError::BadSignature,
            ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => TokenError::Algorithm,
            ErrorKind::Json(_) => TokenError::Malformed("its claims are not those of a token"),
            _ => TokenError::Malformed("it is not base64 throughout"),
        })?;
        Ok(decoded.claims)
    }
}

/// The id of the key that a token names. Read before the signature is checked, so it only chooses among our keys.
fn kid_of(token: &str) -> Result<String, TokenError> {
    let parts: Vec<_> = token.splitn(4, '.').collect();
    let [header, _, _] = parts[..] else {
        return Err(TokenError::Malformed("it has not three parts"));
    };
    let header = URL_SAFE_NO_PAD.decode(header);
    let header = header.map_err(|_| TokenError::Malformed("its header is not base64"))?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|_| TokenError::Malformed("its header is not that of a token"))?;
    if header.alg != "HS256" {
        return Err(TokenError::Algorithm);
    }
    match (header.typ.as_deref(), header.kid, header.others.is_empty()) {
        (Some("JWT"), Some(kid), true) => Ok(kid),
        _ => Err(TokenError::Malformed(
            "its header is not one of this server",
        )),
    }
}

#[cfg(test)]
mod tests;

//! Tokens in a short form, for clients that take no longer ones: `sst1.KEY.ID.EXPIRES.SIGNATURE`, 109 bytes.
//!
//! KEY is the id of the signing key, ID the token's id, EXPIRES its end in seconds since 1970, SIGNATURE the HMAC-SHA-256 of what is
//! before it and of the store's id, in base64url. Who minted it is in the token's record, as is what it allows.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use super::{Claims, TokenError, TokenId, Tokens, UnixSeconds};

/// What such a token begins with; a JWT begins with `eyJ`.
pub(super) const PREFIX: &str = "sst1.";
/// Until the year 9999.
const EXPIRES_MAX: u64 = 253_402_300_799;

pub(super) fn is_short(token: &str) -> bool {
    token.starts_with(PREFIX)
}

impl Tokens {
    /// The token with these claims in the short form, signed with the current secret.
    ///
    /// # Errors
    /// [`TokenError::Claims`] if a token cannot have them.
    pub(crate) fn sign_short(&self, claims: &Claims) -> Result<String, TokenError> {
        claims.check().map_err(TokenError::Claims)?;
        if claims.exp.0 > EXPIRES_MAX {
            return Err(TokenError::Claims("its end is no time"));
        }
        let key = self.keys.current();
        let signed = format!("{PREFIX}{}.{}.{}", key.kid(), claims.jti, claims.exp.0);
        let signature = hmac::sign(&self.short_key(key.secret()), signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(signature);
        Ok(format!("{signed}.{signature}"))
    }

    /// What such a token says, if its signature is right; `sub` and `iat`, which are in its record alone, are empty.
    pub(super) fn short_claims(&self, token: &str) -> Result<Claims, TokenError> {
        let malformed = |what| move || TokenError::Malformed(what);
        let parts = "it has not five parts";
        let (signed, signature) = token.rsplit_once('.').ok_or_else(malformed(parts))?;
        let fields = signed.strip_prefix(PREFIX).ok_or_else(malformed(parts))?;
        let mut fields = fields.split('.');
        let (Some(kid), Some(id), Some(expires), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(malformed(parts)());
        };
        let key = self.keys.find(kid).ok_or(TokenError::UnknownKey)?;
        let signature = URL_SAFE_NO_PAD.decode(signature);
        let signature = signature.map_err(|_| malformed("its signature is not base64")())?;
        // In constant time.
        hmac::verify(&self.short_key(key.secret()), signed.as_bytes(), &signature)
            .map_err(|_| TokenError::BadSignature)?;
        let expires = expires.parse().ok().filter(|at| *at <= EXPIRES_MAX);
        Ok(Claims {
            jti: TokenId::try_from(id.to_owned())?,
            sub: String::new(),
            iat: UnixSeconds(0),
            exp: UnixSeconds(expires.ok_or_else(malformed("its end is no time"))?),
        })
    }

    /// The key for this form and this store: what is signed as a JWT, or by a copy of the store under another id, is nothing
    /// here.
    fn short_key(&self, secret: &[u8]) -> hmac::Key {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let of_store = format!("storage-sync short token\n{}", self.instance);
        let derived = hmac::sign(&key, of_store.as_bytes());
        hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::tokens::SigningKeys;

    const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

    fn tokens(instance: &str, keys: &SigningKeys) -> Tokens {
        Tokens::new(keys.clone(), instance.to_owned()).unwrap()
    }

    #[test]
    fn a_short_token_is_as_good_as_a_long_one_and_no_better() {
        let keys = SigningKeys::generate(NOW).unwrap();
        let ours = tokens("a", &keys);
        let claims = Claims::new("user:ann", NOW, Duration::from_secs(60)).unwrap();
        let token = ours.sign_short(&claims).unwrap();
        assert_eq!(token.len(), 109, "{token}");
        let read = ours.verify(&token, NOW).unwrap();
        assert_eq!((read.jti, read.exp), (claims.jti.clone(), claims.exp));
        let at = claims.exp;
        assert_eq!(ours.verify(&token, at), Err(TokenError::Expired { at }));
        // A rotated key is still good; another store's, and another key, are not.
        let rotated = keys.rotate(NOW, Duration::from_secs(3600)).unwrap();
        tokens("a", &rotated).verify(&token, NOW).unwrap();
        assert_eq!(
            tokens("b", &keys).verify(&token, NOW),
            Err(TokenError::BadSignature)
        );
        let others = SigningKeys::generate(NOW).unwrap();
        assert_eq!(
            tokens("a", &others).verify(&token, NOW),
            Err(TokenError::UnknownKey)
        );
    }

    #[test]
    fn whatever_is_changed_in_it_makes_it_bad() {
        let ours = tokens("a", &SigningKeys::generate(NOW).unwrap());
        let claims = Claims::new("user:ann", NOW, Duration::from_secs(60)).unwrap();
        let token = ours.sign_short(&claims).unwrap();
        for place in PREFIX.len()..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[place] = if changed[place] == b'1' { b'2' } else { b'1' };
            let changed = String::from_utf8(changed).unwrap();
            ours.verify(&changed, NOW).unwrap_err();
        }
        for cut in 0..token.len() {
            ours.verify(&token[..cut], NOW).unwrap_err();
        }
        ours.verify(&format!("{token}."), NOW).unwrap_err();
        ours.verify(&format!("{token}A"), NOW).unwrap_err();
    }
}

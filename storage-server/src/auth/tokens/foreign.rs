//! Tokens of another issuer: JWTs with HS256, by a secret that both know. Only a gateway whose configuration names issuer and
//! secret takes them, and it says what the claims mean.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{TokenError, UnixSeconds, hs256};

/// The shortest secret, in bytes: what RFC 7518, section 3.2, asks of a key for HS256.
pub(crate) const SECRET_BYTES_MIN: usize = 32;

/// The tokens of one issuer.
#[derive(Clone)]
pub(crate) struct ForeignTokens {
    issuer: String,
    /// For whom they have to be; `None`: for anybody.
    audience: Option<String>,
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for ForeignTokens {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignTokens")
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

/// What each of them must say, and what else it says.
#[derive(Debug, Deserialize)]
pub(crate) struct Foreign<C> {
    iss: String,
    /// From when on it is good for nothing.
    pub(crate) exp: UnixSeconds,
    nbf: Option<UnixSeconds>,
    #[serde(default)]
    aud: Value,
    #[serde(flatten)]
    pub(crate) claims: C,
}

impl<C> Foreign<C> {
    /// Whether it is for this audience: `aud` is a text, or a list of texts (RFC 7519, section 4.1.3). Without one it is for
    /// nobody in particular.
    fn is_for(&self, audience: &str) -> bool {
        match &self.aud {
            Value::Array(all) => all.iter().any(|one| one == audience),
            one => one == audience,
        }
    }
}

/// What is read before the signature is checked: it only chooses who checks it.
#[derive(Deserialize, Serialize)]
struct Unchecked {
    iss: Option<String>,
}

impl ForeignTokens {
    /// Those of `issuer`, and of these those that are for `audience`; `None`: all of them. The secret has [`SECRET_BYTES_MIN`]
    /// bytes at least, which the caller has seen to.
    pub(crate) fn new(
        issuer: &str,
        audience: Option<&str>,
        secret: &[u8],
    ) -> Result<Self, TokenError> {
        hs256::install();
        // As for our own: the times are judged here, by the caller's clock and without leeway; and so is the audience.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let key = DecodingKey::from_secret(secret)
            .map_err(|error| TokenError::Signing(error.to_string()))?;
        Ok(Self {
            issuer: issuer.to_owned(),
            audience: audience.map(str::to_owned),
            key,
            validation,
        })
    }

    /// Whether a token says that it is of this issuer. Whether that is true is not known yet.
    pub(crate) fn claims_to_be(&self, token: &str) -> bool {
        let payload = token.split('.').nth(1);
        let payload = payload.and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
        let unchecked = payload.and_then(|json| serde_json::from_slice::<Unchecked>(&json).ok());
        unchecked.and_then(|unchecked| unchecked.iss).as_deref() == Some(&self.issuer)
    }

    /// What a token says, if it is good now.
    ///
    /// # Errors
    /// [`TokenError`] without any part of the token.
    pub(crate) fn verify<C: DeserializeOwned + Clone>(
        &self,
        token: &str,
        now: UnixSeconds,
    ) -> Result<Foreign<C>, TokenError> {
        let decoded = jsonwebtoken::decode::<Value>(token, &self.key, &self.validation);
        let decoded = decoded.map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => TokenError::BadSignature,
            ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => TokenError::Algorithm,
            _ => TokenError::Malformed("it is no JWT"),
        })?;
        let foreign: Foreign<C> = serde_json::from_value(decoded.claims).map_err(|_| {
            TokenError::Malformed("its claims lack iss or exp, or have one of another type")
        })?;
        if foreign.iss != self.issuer {
            return Err(TokenError::OtherServer);
        }
        let audience = self.audience.as_deref();
        if audience.is_some_and(|audience| !foreign.is_for(audience)) {
            return Err(TokenError::Audience);
        }
        if foreign.nbf.is_some_and(|from| now < from) {
            return Err(TokenError::Malformed("it is not good yet"));
        }
        match now >= foreign.exp {
            true => Err(TokenError::Expired { at: foreign.exp }),
            false => Ok(foreign),
        }
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    use super::*;

    const SECRET: &[u8] = &[7; 32];

    fn signed(algorithm: Algorithm, secret: &[u8], claims: &Value) -> String {
        hs256::install();
        let key = EncodingKey::from_secret(secret).unwrap();
        jsonwebtoken::encode(&Header::new(algorithm), claims, &key).unwrap()
    }

    #[test]
    fn a_token_is_good_by_its_signature_its_issuer_and_its_times() {
        let tokens = ForeignTokens::new("cells", None, SECRET).unwrap();
        let verify = |token: &str| tokens.verify::<Value>(token, UnixSeconds(100));
        let token = |claims: Value| signed(Algorithm::HS256, SECRET, &claims);
        let good = token(json!({ "iss": "cells", "exp": 101, "name": "ana" }));
        assert!(tokens.claims_to_be(&good));
        let foreign = verify(&good).unwrap();
        assert_eq!(foreign.exp, UnixSeconds(101));
        assert_eq!(foreign.claims["name"], "ana");
        let expired = token(json!({ "iss": "cells", "exp": 100 }));
        assert!(matches!(verify(&expired), Err(TokenError::Expired { .. })));
        let early = token(json!({ "iss": "cells", "exp": 200, "nbf": 101 }));
        assert!(verify(&early).is_err());
        let other = token(json!({ "iss": "other", "exp": 101 }));
        assert!(!tokens.claims_to_be(&other));
        assert_eq!(verify(&other).unwrap_err(), TokenError::OtherServer);
        let endless = token(json!({ "iss": "cells" }));
        assert!(verify(&endless).is_err());
        let stolen = signed(
            Algorithm::HS256,
            &[8; 32],
            &json!({ "iss": "cells", "exp": 101 }),
        );
        assert!(tokens.claims_to_be(&stolen));
        assert_eq!(verify(&stolen).unwrap_err(), TokenError::BadSignature);
        for bad in ["", "a", "a.b.c", &good[..good.len() - 1]] {
            assert!(verify(bad).is_err(), "{bad}");
        }
        let none = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
            URL_SAFE_NO_PAD.encode(r#"{"iss":"cells","exp":101}"#)
        );
        assert!(verify(&none).is_err());
    }

    #[test]
    fn a_token_is_for_the_audience_that_is_asked_for() {
        let of = |audience: Option<&str>| ForeignTokens::new("cells", audience, SECRET).unwrap();
        let verify = |tokens: &ForeignTokens, aud: Value| {
            let claims = json!({ "iss": "cells", "exp": 101, "aud": aud });
            let token = signed(Algorithm::HS256, SECRET, &claims);
            tokens.verify::<Value>(&token, UnixSeconds(100)).map(drop)
        };
        let ours = of(Some("storage"));
        for good in [json!("storage"), json!(["other", "storage"])] {
            assert_eq!(verify(&ours, good), Ok(()));
        }
        let others = [
            json!("other"),
            json!(["other"]),
            json!([]),
            json!(""),
            json!("storage2"),
            json!({ "storage": "storage" }),
            json!(7),
            Value::Null,
        ];
        for other in &others {
            let refused = verify(&ours, other.clone());
            assert_eq!(refused, Err(TokenError::Audience), "{other}");
        }
        let absent = signed(
            Algorithm::HS256,
            SECRET,
            &json!({ "iss": "cells", "exp": 101 }),
        );
        let refused = ours.verify::<Value>(&absent, UnixSeconds(100));
        assert_eq!(refused.unwrap_err(), TokenError::Audience);
        // Where none is asked for it is not looked at.
        for any in others {
            assert_eq!(verify(&of(None), any), Ok(()));
        }
    }
}

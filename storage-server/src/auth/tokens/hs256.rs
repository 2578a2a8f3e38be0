//! HS256 for the crate `jsonwebtoken`, by ring's HMAC.
//!
//! `jsonwebtoken` brings cryptography only as features: `rust_crypto` with RSA and the elliptic curves, or `aws_lc_rs`
//! with a second C library. HMAC-SHA-256 is all that is needed, and rustls has ring already. A provider is set for the
//! whole process, so [`install`] leaves alone one that the program has chosen: HS256 is the same by any of them.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, new_error};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey};
use ring::hmac;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory,
    verifier_factory,
    // JSON Web Keys are not used.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes sure that `jsonwebtoken` can do HS256. Costs next to nothing when it can already.
pub(super) fn install() {
    if CryptoProvider::try_get_default().is_none() {
        // Another thread may have been faster. Then there is a provider, too.
        let _ = PROVIDER.install_default();
    }
}

struct Hs256(hmac::Key);

impl Hs256 {
    /// Any other algorithm is refused here, whatever the caller allows.
    fn new(algorithm: Algorithm, family: AlgorithmFamily, secret: &[u8]) -> Result<Self, Error> {
        if algorithm != Algorithm::HS256 || family != AlgorithmFamily::Hmac {
            return Err(new_error(ErrorKind::UnsupportedAlgorithm));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }
}

fn signer_factory(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    Ok(Box::new(Hs256::new(
        *algorithm,
        key.family(),
        key.as_bytes(),
    )?))
}

fn verifier_factory(
    algorithm: &Algorithm,
    key: &DecodingKey,
) -> Result<Box<dyn JwtVerifier>, Error> {
    let secret = key.try_get_as_bytes()?;
    Ok(Box::new(Hs256::new(*algorithm, key.family(), secret)?))
}

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    /// In constant time.
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        hmac::verify(&self.0, message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 2.
    #[test]
    fn signs_as_the_standard_says() {
        let key = Hs256::new(Algorithm::HS256, AlgorithmFamily::Hmac, b"Jefe").unwrap();
        let message = b"what do ya want for nothing?";
        let signature = key.try_sign(message).unwrap();
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex::encode(&signature), expected);
        assert!(key.verify(message, &signature).is_ok());
        assert!(key.verify(b"what do ya want", &signature).is_err());
    }

    #[test]
    fn no_other_algorithm_can_be_made() {
        let key = EncodingKey::from_secret(b"Jefe").unwrap();
        let check = DecodingKey::from_secret(b"Jefe").unwrap();
        for other in [Algorithm::HS384, Algorithm::RS256, Algorithm::EdDSA] {
            assert!(signer_factory(&other, &key).is_err());
            assert!(verifier_factory(&other, &check).is_err());
        }
        let public = DecodingKey::from_rsa_der(b"a public key, as bytes");
        assert!(verifier_factory(&Algorithm::HS256, &public).is_err());
    }
}

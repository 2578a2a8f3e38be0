//! The secrets that tokens are signed with: made, replaced in time, and stored as JSON.
//!
//! A set has one current secret, which signs, and older ones, which only verify. It is kept under a key of the store,
//! so that tokens survive a restart. Neither `Debug` nor an error shows a secret.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::UnixSeconds;

/// The length of a secret: as long as HMAC-SHA-256's output, the least that RFC 7518, section 3.2, allows.
const SECRET_BYTES: usize = 32;
/// The length of a key's random id. It only tells keys apart.
const KID_BYTES: usize = 8;
/// The most keys in one set. Enough for a rotation a day with tokens of four months.
const KEYS_MAX: usize = 128;
/// The most bytes of a stored set. One key takes less than 150.
const JSON_BYTES_MAX: usize = 64 * 1024;
/// The only format of a stored set.
const VERSION: u32 = 1;

/// A set of secrets for tokens. One is current and signs; all verify.
#[derive(Clone)]
pub(crate) struct SigningKeys {
    /// Never empty, oldest first; the last is the current one.
    keys: Vec<SigningKey>,
}

#[derive(Clone)]
pub(super) struct SigningKey {
    kid: String,
    made: UnixSeconds,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

/// Why a set of keys cannot be made or read. The text never holds what was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KeysError {
    /// The system has no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    /// It is not the JSON of a set.
    #[error("the signing keys cannot be read: wrong JSON at line {line}, column {column}")]
    Json {
        /// Counted from 1.
        line: usize,
        /// Counted from 1; 0 is before the first.
        column: usize,
    },
    /// It is longer than 64 KiB.
    #[error("the signing keys cannot be read: {bytes} bytes, at most 65536 are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Another release wrote it.
    #[error("the signing keys cannot be read: format {found}, this release reads format 1")]
    Version {
        /// The format it says.
        found: u32,
    },
    /// A key in it is wrong.
    #[error("the signing keys cannot be read: key number {number} {reason}")]
    Key {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It has no key.
    #[error("the signing keys cannot be read: there is none")]
    Empty,
    /// It has more than 128 keys, or would have.
    #[error("there would be more than 128 signing keys")]
    TooMany,
}

#[derive(Serialize)]
struct StoredOut<'a> {
    version: u32,
    keys: Vec<StoredKeyOut<'a>>,
}

#[derive(Serialize)]
struct StoredKeyOut<'a> {
    kid: &'a str,
    made: UnixSeconds,
    secret: Zeroizing<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    keys: Vec<StoredKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    kid: String,
    made: UnixSeconds,
    secret: Zeroizing<String>,
}

impl SigningKeys {
    /// A set with one new secret. Tokens of any other set are [`UnknownKey`](super::TokenError::UnknownKey) to it, so
    /// this is also what to do after secrets have leaked.
    ///
    /// # Errors
    /// [`KeysError::Random`].
    pub(crate) fn generate(now: UnixSeconds) -> Result<Self, KeysError> {
        let keys = vec![SigningKey::generate(now)?];
        Ok(Self { keys })
    }

    /// The same with a new secret that is current from now on. Older ones still verify. A secret is left out when no
    /// token of it can be good any more: when it was replaced `longest_life` ago or before, the longest time that a
    /// token is good for.
    ///
    /// # Errors
    /// [`KeysError::Random`]; [`KeysError::TooMany`] if the set would have more than 128 secrets.
    pub(crate) fn rotate(
        &self,
        now: UnixSeconds,
        longest_life: Duration,
    ) -> Result<Self, KeysError> {
        // The order of the times must hold, also when the clock was set back.
        let newest = self.keys.last().map_or(now, |key| key.made.max(now));
        let replaced = self.keys.iter().skip(1).map(|key| key.made);
        let replaced = replaced.chain([newest]);
        let is_needed = |replaced: UnixSeconds| now < replaced.after(longest_life);
        let kept = self.keys.iter().zip(replaced);
        let kept = kept.filter(|(_, replaced)| is_needed(*replaced));
        let mut keys: Vec<_> = kept.map(|(key, _)| key.clone()).collect();
        if keys.len() >= KEYS_MAX {
            return Err(KeysError::TooMany);
        }
        keys.push(SigningKey::generate(newest)?);
        Ok(Self { keys })
    }

    /// When the current secret was made.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn current_made(&self) -> UnixSeconds {
        self.current().made
    }

    /// How many secrets there are.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.keys.len()
    }

    /// As it is stored. It holds the secrets.
    #[must_use]
    pub(crate) fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let keys = self.keys.iter().map(|key| StoredKeyOut {
            kid: &key.kid,
            made: key.made,
            secret: Zeroizing::new(STANDARD.encode(key.secret.as_slice())),
        });
        let stored = StoredOut {
            version: VERSION,
            keys: keys.collect(),
        };
        Zeroizing::new(serde_json::to_vec(&stored).expect("texts and numbers are JSON"))
    }

    /// A set as [`SigningKeys::to_json`] wrote it.
    ///
    /// # Errors
    /// All of [`KeysError`] but [`KeysError::Random`].
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, KeysError> {
        if json.len() > JSON_BYTES_MAX {
            return Err(KeysError::TooLong { bytes: json.len() });
        }
        // Not the text of the error: it quotes what it found, which may be a secret in the wrong place.
        let stored: Stored = serde_json::from_slice(json).map_err(|error| KeysError::Json {
            line: error.line(),
            column: error.column(),
        })?;
        if stored.version != VERSION {
            return Err(KeysError::Version {
                found: stored.version,
            });
        }
        if stored.keys.is_empty() {
            return Err(KeysError::Empty);
        }
        if stored.keys.len() > KEYS_MAX {
            return Err(KeysError::TooMany);
        }
        let mut keys: Vec<SigningKey> = Vec::with_capacity(stored.keys.len());
        for (number, key) in stored.keys.into_iter().enumerate() {
            let wrong = |reason| KeysError::Key {
                number: number + 1,
                reason,
            };
            let key = SigningKey::from_stored(key).map_err(wrong)?;
            if keys.iter().any(|other| other.kid == key.kid) {
                return Err(wrong("has the id of another"));
            }
            if keys.last().is_some_and(|before| before.made > key.made) {
                return Err(wrong("is older than the one before it"));
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }

    pub(super) fn current(&self) -> &SigningKey {
        self.keys.last().expect("a set is never empty")
    }

    pub(super) fn find(&self, kid: &str) -> Option<&SigningKey> {
        self.keys.iter().find(|key| key.kid == kid)
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.keys).finish()
    }
}

impl SigningKey {
    fn generate(made: UnixSeconds) -> Result<Self, KeysError> {
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        let mut kid = [0; KID_BYTES];
        getrandom::fill(secret.as_mut_slice())
            .and_then(|()| getrandom::fill(&mut kid))
            .map_err(|error| KeysError::Random(error.to_string()))?;
        let kid = hex::encode(kid);
        Ok(Self { kid, made, secret })
    }

    fn from_stored(stored: StoredKey) -> Result<Self, &'static str> {
        let is_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if stored.kid.len() != 2 * KID_BYTES || !stored.kid.bytes().all(is_hex) {
            return Err("has an id that is not 16 hexadecimal digits");
        }
        let bytes = STANDARD.decode(stored.secret.as_bytes());
        let bytes = Zeroizing::new(bytes.map_err(|_| "has a secret that is not base64")?);
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        if bytes.len() != SECRET_BYTES {
            return Err("has a secret that is not 32 bytes long");
        }
        secret.copy_from_slice(&bytes);
        Ok(Self {
            kid: stored.kid,
            made: stored.made,
            secret,
        })
    }

    pub(super) fn kid(&self) -> &str {
        &self.kid
    }

    pub(super) fn secret(&self) -> &[u8] {
        self.secret.as_slice()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn kids(keys: &SigningKeys) -> Vec<&str> {
        keys.keys.iter().map(SigningKey::kid).collect()
    }

    #[test]
    fn a_set_survives_its_json() {
        let keys = SigningKeys::generate(UnixSeconds(100)).unwrap();
        let keys = keys.rotate(UnixSeconds(200), DAY).unwrap();
        let again = SigningKeys::from_json(&keys.to_json()).unwrap();
        assert_eq!(kids(&again), kids(&keys));
        assert_eq!(again.current_made(), UnixSeconds(200));
        for (one, other) in keys.keys.iter().zip(&again.keys) {
            assert_eq!(one.secret, other.secret);
            assert_ne!(*one.secret, [0; SECRET_BYTES]);
        }
        assert_ne!(keys.keys[0].secret, keys.keys[1].secret);
    }

    #[test]
    fn a_secret_is_dropped_a_tokens_life_after_it_was_replaced() {
        let life = Duration::from_secs(1000);
        let first = SigningKeys::generate(UnixSeconds(0)).unwrap();
        // As old as it is: until now it has signed tokens that are good for 1,000 s.
        let second = first.rotate(UnixSeconds(5000), life).unwrap();
        assert_eq!(kids(&second)[0], kids(&first)[0]);
        let third = second.rotate(UnixSeconds(5999), life).unwrap();
        assert_eq!(third.count(), 3);
        let fourth = second.rotate(UnixSeconds(6000), life).unwrap();
        assert_eq!(kids(&fourth)[0], kids(&second)[1]);
        assert_eq!(fourth.count(), 2);
    }

    #[test]
    fn a_clock_that_was_set_back_drops_nothing_and_keeps_the_order() {
        let life = Duration::from_secs(1000);
        let keys = SigningKeys::generate(UnixSeconds(5000)).unwrap();
        let keys = keys.rotate(UnixSeconds(10), life).unwrap();
        assert_eq!(keys.count(), 2);
        assert_eq!(keys.current_made(), UnixSeconds(5000));
        assert!(SigningKeys::from_json(&keys.to_json()).is_ok());
    }

    #[test]
    fn the_number_of_secrets_is_bounded() {
        let mut keys = SigningKeys::generate(UnixSeconds(0)).unwrap();
        for second in 1..KEYS_MAX as u64 {
            keys = keys.rotate(UnixSeconds(second), DAY).unwrap();
        }
        assert_eq!(keys.count(), KEYS_MAX);
        assert!(keys.to_json().len() < JSON_BYTES_MAX);
        let error = keys.rotate(UnixSeconds(1000), DAY).unwrap_err();
        assert_eq!(error, KeysError::TooMany);
        assert_eq!(keys.rotate(UnixSeconds(90_000), DAY).unwrap().count(), 2);
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut keys = SigningKeys::generate(UnixSeconds(7)).unwrap();
        keys.keys[0].kid = "0011223344556677".to_owned();
        keys.keys[0].secret = Zeroizing::new([0xab; SECRET_BYTES]);
        let shown = format!("{keys:?} {keys:#?}");
        assert!(shown.contains(kids(&keys)[0]), "{shown}");
        for secret in [STANDARD.encode([0xab; 32]).as_str(), "171", "abab"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn garbage_is_refused_with_its_reason_and_without_its_text() {
        let good = String::from_utf8(
            SigningKeys::generate(UnixSeconds(7))
                .unwrap()
                .to_json()
                .to_vec(),
        );
        let good = good.unwrap();
        let secret = good.split('"').find(|part| part.len() == 44).unwrap();
        let kid = good.split('"').find(|part| part.len() == 16).unwrap();
        let doubled = good.replace("}]", &format!("}},{}]", between(&good)));
        let cases = [
            (String::new(), "line 1, column 0"),
            ("nonsense".to_owned(), "line 1, column 2"),
            ("[]".to_owned(), "wrong JSON"),
            (good.replace("\"version\":1", "\"version\":2"), "format 2"),
            (good.replace(kid, "../../etc"), "key number 1 has an id"),
            (good.replace(kid, &kid.to_uppercase()), ""),
            (
                good.replace(secret, "c2hvcnQ="),
                "key number 1 has a secret that is not 32 bytes",
            ),
            (good.replace(secret, "%%%"), "is not base64"),
            (
                good.replace("\"made\":7", &format!("\"made\":\"{secret}\"")),
                "wrong JSON",
            ),
            (
                good.replace("\"kid\"", &format!("\"{secret}\"")),
                "wrong JSON",
            ),
            (
                good.replace("\"version\"", "\"more\":1,\"version\""),
                "wrong JSON",
            ),
            ("{\"version\":1,\"keys\":[]}".to_owned(), "there is none"),
            (doubled, "key number 2 has the id of another"),
            (
                format!("{good}{}", " ".repeat(JSON_BYTES_MAX)),
                "at most 65536",
            ),
        ];
        for (json, reason) in cases {
            if json == good {
                continue; // An id without letters has no upper case.
            }
            let error = SigningKeys::from_json(json.as_bytes()).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(reason), "{json}: {text}");
            assert!(!text.contains(secret), "{text}");
        }
        let older = good
            .replace("\"made\":7", "\"made\":6")
            .replace(kid, "00112233445566ff");
        let backwards = good.replace("}]", &format!("}},{}]", between(&older)));
        let error = SigningKeys::from_json(backwards.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("older than the one before"));
    }

    /// The key of a set of one.
    fn between(json: &str) -> &str {
        let start = json.find('[').unwrap() + 1;
        &json[start..json.find(']').unwrap()]
    }
}

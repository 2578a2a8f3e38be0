//! Passwords: hashed with Argon2id, and checked without letting anybody guess or exhaust the server.
//!
//! [`hash`] makes the text that is stored (PHC string format), [`verify`] compares with it; both take 20 to 40 ms of
//! CPU and 19 MiB. [`Logins`] stands before them for peers: a bounded number of hashes at once, limits of failed
//! logins, the same answer and work for an unknown user as for a wrong password. Nothing of a password is logged, shown
//! or kept.

mod failures;
mod logins;
mod recent;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use argon2::password_hash::phc::{Output, PasswordHash, Salt};
use argon2::password_hash::{self, PasswordHasher};
use argon2::{ARGON2ID_IDENT, Algorithm, Argon2, Params, Version};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub(crate) use self::logins::{LoginError, LoginLimits, Logins};

/// The longest password, in bytes.
pub(crate) const PASSWORD_BYTES_MAX: usize = 1024;

/// Memory of a new hash, in KiB. These three: OWASP's Password Storage Cheat Sheet, Argon2id, "m=19456 (19 MiB), t=2,
/// p=1"; the one of its equivalent settings that it names first as the minimum.
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over the memory.
const PASSES: u32 = 2;
/// Lanes. Ours are computed one after the other.
const LANES: u32 = 1;
const SALT_BYTES: usize = 16;
const OUTPUT_BYTES: usize = 32;

/// What a stored hash may ask for, so that none can exhaust the server. All three at once take less than a second.
const MEMORY_KIB_MAX: u32 = 64 * 1024;
const PASSES_MAX: u32 = 8;
const LANES_MAX: u32 = 4;
/// Shorter outputs are too easily hit by chance.
const OUTPUT_BYTES_MIN: usize = 16;
/// The longest text of a stored hash: twice of what the longest salt and output need.
const STORED_BYTES_MAX: usize = 512;
/// The version 1.3, the only one since 2016.
const VERSION: u32 = 0x13;

const OTHER_PARAMETERS: PasswordError =
    PasswordError::Unreadable("its parameters are not m, t and p");

/// Why a password cannot be hashed, or not be compared with what is stored. No text has any part of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PasswordError {
    /// It has no byte.
    #[error("the password is empty")]
    Empty,
    /// It has more than 1024 bytes.
    #[error("the password has {bytes} bytes, at most 1024 are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// What is stored is no hash of Argon2id as a PHC string.
    #[error("the stored hash cannot be read: {0}")]
    Unreadable(&'static str),
    /// What is stored asks for more work or memory than is allowed.
    #[error("the stored hash asks for too much: {parameter}={found}, at most {max} is allowed")]
    TooCostly {
        /// `m` (KiB), `t` (passes) or `p` (lanes).
        parameter: &'static str,
        /// What it asks for.
        found: u32,
        /// What is allowed.
        max: u32,
    },
    /// The system has no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// There is no memory for it.
    #[error("the hash could not be computed")]
    Failed,
}

/// The text to store for a password: Argon2id in the PHC string format, with a random salt. Blocks for 20 to 40 ms.
///
/// # Errors
/// [`PasswordError::Empty`], [`PasswordError::TooLong`], [`PasswordError::Random`], [`PasswordError::Failed`].
pub(crate) fn hash(password: &[u8]) -> Result<String, PasswordError> {
    hash_with(password, MEMORY_KIB, PASSES)
}

fn hash_with(password: &[u8], memory_kib: u32, passes: u32) -> Result<String, PasswordError> {
    check_length(password)?;
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(|_| PasswordError::Random)?;
    let argon2 = argon2(memory_kib, passes, LANES, OUTPUT_BYTES)?;
    let hashed = argon2.hash_password_with_salt(password, &salt);
    Ok(hashed.map_err(|_| PasswordError::Failed)?.to_string())
}

/// Whether this is the password of a stored hash. Blocks for 20 to 40 ms; a hash with other parameters than ours may
/// take longer, but less than a second.
///
/// # Errors
/// All of [`PasswordError`] but [`PasswordError::Random`]. [`PasswordError::Unreadable`] and
/// [`PasswordError::TooCostly`] are for the log; for the peer it is a wrong password.
pub(crate) fn verify(password: &[u8], stored: &str) -> Result<bool, PasswordError> {
    check_length(password)?;
    Stored::parse(stored)?.matches(password, &AtomicU64::new(0))
}

fn check_length(password: &[u8]) -> Result<(), PasswordError> {
    match password.len() {
        0 => Err(PasswordError::Empty),
        1..=PASSWORD_BYTES_MAX => Ok(()),
        bytes => Err(PasswordError::TooLong { bytes }),
    }
}

fn argon2(
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    output_bytes: usize,
) -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(memory_kib, passes, lanes, Some(output_bytes));
    let params =
        params.map_err(|_| PasswordError::Unreadable("its parameters do not fit together"))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// A stored hash that was read, with parameters that are within the bounds.
#[derive(Clone)]
struct Stored {
    argon2: Argon2<'static>,
    salt: Salt,
    output: Output,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored")
            .field("params", self.argon2.params())
            .finish_non_exhaustive()
    }
}

impl Stored {
    /// Reads a stored hash, and does nothing that it asks for.
    fn parse(text: &str) -> Result<Self, PasswordError> {
        let unreadable = PasswordError::Unreadable;
        if text.len() > STORED_BYTES_MAX {
            return Err(unreadable("it is longer than 512 bytes"));
        }
        let parsed =
            PasswordHash::new(text).map_err(|_| unreadable("it is no hash in the PHC format"))?;
        if parsed.algorithm != ARGON2ID_IDENT || parsed.version != Some(VERSION) {
            return Err(unreadable("it is not of Argon2id, version 19"));
        }
        let (Some(salt), Some(output)) = (parsed.salt, parsed.hash) else {
            return Err(unreadable("it has no salt or no output"));
        };
        if output.len() < OUTPUT_BYTES_MIN {
            return Err(unreadable("its output is shorter than 16 bytes"));
        }
        // No parameter but these, each of them once.
        if parsed.params.iter().count() != 3 {
            return Err(OTHER_PARAMETERS);
        }
        let bounded = |parameter: &'static str, max: u32| {
            let found = parsed.params.get_decimal(parameter);
            let found = found.ok_or(OTHER_PARAMETERS)?;
            match found <= max {
                true => Ok(found),
                false => Err(PasswordError::TooCostly {
                    parameter,
                    found,
                    max,
                }),
            }
        };
        let memory_kib = bounded("m", MEMORY_KIB_MAX)?;
        let (passes, lanes) = (bounded("t", PASSES_MAX)?, bounded("p", LANES_MAX)?);
        let argon2 = argon2(memory_kib, passes, lanes, output.len())?;
        Ok(Self {
            argon2,
            salt,
            output,
        })
    }

    /// With our parameters, of no password: what an unknown user's password is compared with. Its output is no hash,
    /// and the answer is not used.
    fn of_nobody() -> Result<Self, PasswordError> {
        let unreadable = |_: password_hash::phc::Error| PasswordError::Failed;
        Ok(Self {
            argon2: argon2(MEMORY_KIB, PASSES, LANES, OUTPUT_BYTES)?,
            salt: Salt::new(&[0; SALT_BYTES]).map_err(unreadable)?,
            output: Output::new(&[0; OUTPUT_BYTES]).map_err(unreadable)?,
        })
    }

    /// Computes the hash, counts that, and compares in constant time.
    fn matches(&self, password: &[u8], hashes_run: &AtomicU64) -> Result<bool, PasswordError> {
        hashes_run.fetch_add(1, Ordering::Relaxed);
        let mut computed = Zeroizing::new(vec![0; self.output.len()]);
        let done = self
            .argon2
            .hash_password_into(password, &self.salt, &mut computed);
        done.map_err(|_| PasswordError::Failed)?;
        Ok(computed.ct_eq(self.output.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZSBzYWx0IQ$\
        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    #[test]
    fn a_password_matches_its_hash_alone() {
        let stored = hash(b"correct horse").unwrap();
        assert!(
            stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{stored}"
        );
        assert_eq!(verify(b"correct horse", &stored), Ok(true));
        assert_eq!(verify(b"correct horsf", &stored), Ok(false));
        let again = hash_with(b"a", 8, 1).unwrap();
        assert_ne!(again, hash_with(b"a", 8, 1).unwrap());
    }

    /// Made by the reference implementation, phc-winner-argon2: from its test.c.
    #[test]
    fn a_hash_of_another_implementation() {
        let stored = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$\
            CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert_eq!(verify(b"password", stored), Ok(true));
        assert_eq!(verify(b"Password", stored), Ok(false));
    }

    #[test]
    fn the_length_of_a_password_is_bounded() {
        let quick = |password: &[u8]| hash_with(password, 8, 1);
        let stored = quick(&[0xff; 1024]).unwrap();
        assert_eq!(verify(&[0xff; 1024], &stored), Ok(true));
        assert_eq!(verify(&quick(b"\0").map(|_| [0]).unwrap(), GOOD), Ok(false));
        for (password, error) in [
            (vec![], PasswordError::Empty),
            (vec![b'x'; 1025], PasswordError::TooLong { bytes: 1025 }),
            (vec![b'x'; 10_000], PasswordError::TooLong { bytes: 10_000 }),
        ] {
            assert_eq!(hash(&password), Err(error));
            assert_eq!(verify(&password, &stored), Err(error));
        }
        let text = PasswordError::TooLong { bytes: 10_000 }.to_string();
        assert_eq!(
            text,
            "the password has 10000 bytes, at most 1024 are allowed"
        );
    }

    #[test]
    fn a_stored_hash_cannot_ask_for_too_much() {
        assert!(Stored::parse(GOOD).is_ok());
        let with = |params: &str| Stored::parse(&GOOD.replace("m=8,t=1,p=1", params)).map(drop);
        assert!(with("m=65536,t=8,p=4").is_ok());
        for (params, parameter, found, max) in [
            ("m=65537,t=1,p=1", "m", 65_537, 65_536),
            ("m=4294967295,t=1,p=1", "m", u32::MAX, 65_536),
            ("m=8,t=9,p=1", "t", 9, 8),
            ("m=8,t=4294967295,p=1", "t", u32::MAX, 8),
            ("m=65536,t=1,p=5", "p", 5, 4),
        ] {
            let error = PasswordError::TooCostly {
                parameter,
                found,
                max,
            };
            assert_eq!(with(params), Err(error), "{params}");
        }
    }

    #[test]
    fn what_is_no_hash_is_unreadable() {
        let cases = [
            String::new(),
            "$".to_owned(),
            "garbage".to_owned(),
            "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW".to_owned(),
            GOOD.replace("argon2id", "argon2i"),
            GOOD.replace("argon2id", "scrypt"),
            GOOD.replace("v=19", "v=16"),
            GOOD.replace("$v=19", ""),
            GOOD.replace("m=8,", ""),
            GOOD.replace("m=8,t=1,p=1", "m=8,t=1,p=1,keyid=AAAA"),
            GOOD.replace("m=8,t=1,p=1", "m=8,t=1,x=1"),
            GOOD.replace("m=8", "m=99999999999"),
            GOOD.replace("m=8", "m=-8"),
            GOOD.replace("m=8", "m=7"),
            GOOD.replace("t=1", "t=0"),
            GOOD.replace("p=1", "p=0"),
            GOOD.replace("m=8,t=1,p=1", "m=8,t=1,p=4"),
            GOOD.replace("$c29tZSBzYWx0IQ", ""),
            GOOD.replace("c29tZSBzYWx0IQ", "c29t"),
            GOOD.replace(
                "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                "AAAAAAAAAAAAAAAAAAAA",
            ),
            GOOD.rsplit_once('$').unwrap().0.to_owned(),
            format!("{GOOD}$x"),
            format!("{GOOD}{}", "A".repeat(50)),
        ];
        for stored in cases {
            let read = Stored::parse(&stored).map(drop);
            assert!(
                matches!(read, Err(PasswordError::Unreadable(_))),
                "{stored}: {read:?}"
            );
            assert_eq!(verify(b"x", &stored).map(drop), read);
        }
        let long = Stored::parse(&format!("{GOOD}{}", "A".repeat(512))).map(drop);
        let too_long = PasswordError::Unreadable("it is longer than 512 bytes");
        assert_eq!(long, Err(too_long));
    }

    #[test]
    fn nobodys_hash_costs_what_a_new_one_does() {
        let nobody = Stored::of_nobody().unwrap();
        let new = Stored::parse(&hash(b"x").unwrap()).unwrap();
        assert_eq!(nobody.argon2.params(), new.argon2.params());
        assert_eq!(nobody.salt.len(), new.salt.len());
        assert_eq!(nobody.output.len(), new.output.len());
        assert!(!format!("{new:?}").contains("output: "));
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_what_is_read_is_bounded(
            text in concat!(
                "\\PC*|\\$argon2id\\$v=19\\$m=[0-9]{1,11},t=[0-9]{1,3},p=[0-9]",
                "\\$[A-Za-z0-9+/]{0,90}\\$[A-Za-z0-9+/]{0,90}",
            ),
            at in 0..GOOD.len(), byte in "[ -~]",
        ) {
            let mut mutated = GOOD.to_owned();
            mutated.replace_range(at..=at, &byte);
            for text in [text, mutated] {
                if let Ok(stored) = Stored::parse(&text) {
                    let params = stored.argon2.params();
                    prop_assert!(params.m_cost() <= MEMORY_KIB_MAX);
                    prop_assert!(params.t_cost() <= PASSES_MAX && params.p_cost() <= LANES_MAX);
                }
            }
        }
    }
}

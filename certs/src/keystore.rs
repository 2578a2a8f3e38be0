//! PKCS#12 stores for Java peers, and the password that protects them.
//!
//! AES-256 with PBKDF2 and a SHA-256 MAC, as current Java writes it; Java 8u301 and 11.0.12 are
//! the oldest that can read it. The trusted certificate carries Oracle's trusted-key-usage
//! attribute, without which Java sees an empty truststore.

use std::fmt;
use std::path::Path;

use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, PrivateKeyChain};

use crate::load::Credentials;
use crate::names::Name;
use crate::{Error, Result, files};

/// Alias of the CA certificate in a truststore.
const CA_ALIAS: &str = "storage-ca";
/// PBKDF2 and MAC rounds: Java's own default since 8u301.
const ITERATIONS: u64 = 10_000;
/// Characters a password must have: `keytool` refuses to work with fewer.
const PASSWORD_LEN_MIN: usize = 6;
const PASSWORD_LEN_MAX: usize = 128;

/// The password of the PKCS#12 stores. `Debug` is masked.
///
/// Printable ASCII only: the encoding of anything else differs between Java versions.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    /// A random one: 128 bits as 32 hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the system has no random numbers.
    pub fn generate() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(Error::crypto("generate a password"))?;
        Ok(Self(format!("{:032x}", u128::from_be_bytes(bytes))))
    }

    /// The first line of a file, without its line ending.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the file is missing or the line is not 6 to 128 printable ASCII
    /// characters; [`Error::Io`] if the system refuses to read it. The text never has the password.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = files::read(path)?;
        let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let printable = line.iter().all(|b| b.is_ascii_graphic() || *b == b' ');
        match std::str::from_utf8(line) {
            Ok(text)
                if printable && (PASSWORD_LEN_MIN..=PASSWORD_LEN_MAX).contains(&text.len()) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(Error::malformed(
                path,
                "the first line must be a password of 6 to 128 printable ASCII characters",
            )),
        }
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password([masked])")
    }
}

/// The key with its chain up to the CA, under the alias `name`.
pub(crate) fn keystore(name: &Name, own: &Credentials, password: &Password) -> Result<Vec<u8>> {
    let chain = own
        .chain
        .iter()
        .chain(&own.ca)
        .map(|certificate| Certificate::from_der(certificate))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(Error::crypto("encode the keystore"))?;
    let entry = PrivateKeyChain::new(own.key.secret_der(), name.as_str(), chain);
    encode(
        name.as_str(),
        KeyStoreEntry::PrivateKeyChain(entry),
        password,
    )
    .map_err(Error::crypto("encode the keystore"))
}

/// The CA certificate as a trusted certificate.
pub(crate) fn truststore(own: &Credentials, password: &Password) -> Result<Vec<u8>> {
    let action = "encode the truststore";
    let ca = own
        .ca
        .first()
        .ok_or_else(|| Error::crypto(action)("there is no CA certificate"))?;
    let ca = Certificate::from_der(ca).map_err(Error::crypto(action))?;
    encode(CA_ALIAS, KeyStoreEntry::Certificate(ca), password).map_err(Error::crypto(action))
}

/// Whether a keystore can be written anew with this password: it opens it, and nothing would be
/// lost.
///
/// # Errors
/// A text that says what is wrong, for the caller to put beside the file's name.
pub(crate) fn check_renewable(
    store: &[u8],
    password: &Password,
) -> std::result::Result<(), &'static str> {
    let store = KeyStore::from_pkcs12(store, password.expose()).map_err(|_| {
        "the password does not open it, or it is damaged; \
         give the right one with --password-file, or remove the keystore to renew without it"
    })?;
    let mut entries = store.entries();
    match (entries.next(), entries.next()) {
        (Some((_, KeyStoreEntry::PrivateKeyChain(_))), None) => Ok(()),
        _ => Err(
            "it holds something else than one key with its certificate, which a renewal would lose",
        ),
    }
}

fn encode(alias: &str, entry: KeyStoreEntry, password: &Password) -> p12_keystore::Result<Vec<u8>> {
    let mut store = KeyStore::new();
    store.add_entry(alias, entry);
    store
        .writer(password.expose())
        .encryption_iterations(ITERATIONS)
        .mac_iterations(ITERATIONS)
        .write()
}

//! Renewal: a new certificate with the names of the one that is there, in the same folder.
//!
//! Only what depends on the certificate is written: trust anchors, the truststore and whatever else
//! is in the folder stay as they are.
//! Invariant: after each single write the folder has a pair that loads, the old or the new one.

use std::path::{Path, PathBuf};

use rcgen::{Certificate, KeyPair, SubjectPublicKeyInfo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    AuthorityDir, CA_FILE, CERT_FILE, IssuedFolder, KEY_FILE, KEYSTORE_FILE, PASSWORD_FILE,
    Revoked, SUPERSEDED_FILE,
};
use crate::files::{self, Access};
use crate::keystore::{self, Password};
use crate::load::{self, CredentialPaths, Credentials};
use crate::names::Name;
use crate::revocations::Serial;
use crate::template::Template;
use crate::validity::{Validity, date};
use crate::{Error, Result, inspect};

const END_CERTIFICATE: &str = "-----END CERTIFICATE-----";

/// How [`AuthorityDir::renew`] renews. Default: as long as before, a new key, the old certificate
/// stays valid, the stores' password is in `keystore-password`.
#[derive(Clone, Debug, Default)]
pub struct RenewOptions {
    /// Days the new certificate is good for. Default: as many as the one before.
    pub days: Option<u32>,
    /// What becomes of the key.
    pub key: KeyChoice,
    /// What becomes of the certificates that the name had before.
    pub older: Older,
    /// Password of the PKCS#12 stores, which stays theirs. Default: that of `keystore-password`.
    pub password: Option<Password>,
}

/// What becomes of the key at a renewal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyChoice {
    /// A new one is made: a copy of the old one that somebody has is of no use after the old
    /// certificate's end.
    #[default]
    New,
    /// The new certificate is for the old key. The key itself need not be in the folder.
    Reuse,
}

/// What becomes of the older certificates at a renewal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Older {
    /// They stay valid until they expire.
    #[default]
    Keep,
    /// They are added to the CRL once the new one is written.
    Revoke,
}

/// What [`AuthorityDir::renew`] did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Renewed {
    /// The new certificate, and the files that were written. With [`Older::Revoke`] nothing in it
    /// is still valid but the new one.
    pub folder: IssuedFolder,
    /// Whether the peer may serve.
    pub is_server: bool,
    /// The alternative names, as in the certificate before: `DNS:db.example.com`.
    pub names: Vec<String>,
    /// With [`Older::Revoke`]: what became of the CRL.
    pub revoked: Option<Revoked>,
}

/// One file to replace.
pub(super) type Write = (&'static str, Vec<u8>, Access);

impl AuthorityDir {
    /// Issues a new certificate for a name that has one, with the same names and use.
    ///
    /// The certificate before stays known in `superseded.pem`, so that a later revocation covers
    /// it. The files are replaced one by one, each in one step. While they are, `key.pem` holds both
    /// keys, so a crash or a power loss at any moment leaves a pair that [`Credentials::load`]
    /// takes; a repeated renewal then cleans up.
    ///
    /// # Errors
    /// [`Error::UnknownName`]; [`Error::Revoked`]; [`Error::AuthorityExpired`] or
    /// [`Error::AuthorityEndsFirst`] if the new certificate would outlive the CA;
    /// [`Error::Malformed`] if the certificate is not this CA's, has something that a renewal would
    /// lose, does not match the key that is to be reused, or if the password does not open the
    /// keystore. Then nothing was written.
    pub fn renew(&self, name: &Name, options: &RenewOptions) -> Result<Renewed> {
        let folder = self.folder(name);
        let paths = CredentialPaths::in_dir(&folder);
        if !paths.cert.is_file() {
            return Err(Error::UnknownName {
                name: name.clone(),
                path: paths.cert,
            });
        }
        let older = self.certificates_of(name)?;
        let chain = load::load_certificates(&paths.cert)?;
        let current = chain
            .first()
            .ok_or_else(|| Error::malformed(&paths.cert, "there is no certificate in it"))?;
        let serial = Serial::of(current)?;
        let revocations = self.revocations()?;
        if revocations.contains(&serial) {
            return Err(Error::Revoked {
                name: name.clone(),
                serial: serial.to_string(),
            });
        }
        let malformed = |reason| Error::malformed(&paths.cert, reason);
        let template = Template::of_certificate(current).map_err(malformed)?;
        let validity = match options.days {
            Some(days) => Validity::days(days)?,
            None => Validity::as_long_as(current)?,
        };
        self.check_outlives(validity)?;
        let password = store_password(&folder, options.password.as_ref())?;
        let still_valid = match options.older {
            Older::Keep => self.still_valid(&older, &revocations)?,
            Older::Revoke => vec![],
        };

        let pair = self.new_pair(&paths, &chain, &template, validity, options.key)?;
        let mut writes = vec![(
            SUPERSEDED_FILE,
            super::superseded(&folder)?,
            Access::Everyone,
        )];
        let cert_pem = pair.chain_pem(&paths)?;
        writes.extend(pair_writes(&paths, pair.new_key_pem(), &cert_pem)?);
        // Ordering: last, so that every certificate in it is in the PEM files, where a revocation
        // looks for it.
        if let Some(password) = password {
            let keystore = keystore::keystore(name, &pair.credentials(self)?, &password)?;
            writes.push((KEYSTORE_FILE, keystore, Access::Owner));
        }
        let written = replace_all(&folder, &writes)?;
        // Ordering: only once the new certificate is there, or a crash would leave none.
        let revoked = match options.older {
            Older::Keep => None,
            Older::Revoke => Some(self.revoke_all(&older)?),
        };
        let own = pair.certificate.der();
        Ok(Renewed {
            folder: IssuedFolder {
                path: folder,
                files: written,
                serial: Serial::of(own)?,
                not_after: load::expires_at(own)?,
                still_valid,
            },
            is_server: template.is_server(),
            names: inspect::alternative_names(own)?,
            revoked,
        })
    }

    /// Refuses a certificate that would outlive the CA: `issue` shortens it, but who renews by a
    /// timetable has to hear that the CA's end is near.
    fn check_outlives(&self, validity: Validity) -> Result<()> {
        self.check_not_expired()?;
        let end = self.authority.not_after();
        if validity.not_after <= end {
            return Ok(());
        }
        Err(Error::AuthorityEndsFirst {
            path: self.dir.join(CA_FILE),
            on: date(end),
            wanted: date(validity.not_after),
            days: Validity::days_until(end),
        })
    }

    fn new_pair(
        &self,
        paths: &CredentialPaths,
        chain: &[CertificateDer<'static>],
        template: &Template,
        validity: Validity,
        key: KeyChoice,
    ) -> Result<Pair> {
        let action = "issue the certificate";
        let (certificate, key) = match key {
            KeyChoice::New => {
                let key = KeyPair::generate().map_err(Error::crypto(action))?;
                let certificate = self.authority.sign(template, validity, &key)?;
                let key_pem = key.serialize_pem();
                let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
                (certificate, Key::New { key, key_pem })
            }
            KeyChoice::Reuse => {
                // It need not be here, but if one is, it must be the certificate's.
                let key = if files::exists(&paths.key) {
                    Some(load::load_key_of(chain, paths)?)
                } else {
                    None
                };
                let public = public_key(chain).map_err(Error::crypto(action))?;
                let certificate = self.authority.sign(template, validity, &public)?;
                (certificate, Key::Kept { key })
            }
        };
        Ok(Pair { certificate, key })
    }
}

/// The writes, in order, that put a pair in the place of the one in a folder. After each of them
/// the folder has a pair that loads, if it has one now.
pub(super) fn pair_writes(
    paths: &CredentialPaths,
    new_key_pem: Option<&str>,
    cert_pem: &str,
) -> Result<Vec<Write>> {
    let certificate = (CERT_FILE, super::text(cert_pem), Access::Everyone);
    let Some(key_pem) = new_key_pem else {
        return Ok(vec![certificate]);
    };
    let new_key = (KEY_FILE, super::text(key_pem), Access::Owner);
    let pair = load::load_certificates(&paths.cert).and_then(|own| load::load_key_of(&own, paths));
    if pair.is_err() {
        // There is none that could be lost.
        return Ok(vec![new_key, certificate]);
    }
    // The old one first: software that takes the first key must have the certificate's.
    let mut both = files::read(&paths.key)?;
    both.push(b'\n');
    both.extend(key_pem.as_bytes());
    Ok(vec![(KEY_FILE, both, Access::Owner), certificate, new_key])
}

/// Replaces files of a folder one by one; tells which, each once.
pub(super) fn replace_all(folder: &Path, writes: &[Write]) -> Result<Vec<PathBuf>> {
    let mut written: Vec<PathBuf> = vec![];
    for (file, bytes, access) in writes {
        let path = folder.join(file);
        files::replace(&path, bytes, *access)?;
        if !written.contains(&path) {
            written.push(path);
        }
    }
    Ok(written)
}

/// A new certificate, and its key.
struct Pair {
    certificate: Certificate,
    key: Key,
}

enum Key {
    New {
        key: PrivateKeyDer<'static>,
        key_pem: String,
    },
    /// `None`: it is not in the folder.
    Kept { key: Option<PrivateKeyDer<'static>> },
}

impl Pair {
    /// The content of `cert.pem`. What stands behind the own certificate there now is kept.
    fn chain_pem(&self, paths: &CredentialPaths) -> Result<String> {
        let mut pem = self.certificate.pem();
        let old = files::read(&paths.cert)?;
        if let Some((_, rest)) = String::from_utf8_lossy(&old).split_once(END_CERTIFICATE) {
            pem += rest.trim_start();
        }
        Ok(pem)
    }

    /// The key as PEM, if it is a new one.
    fn new_key_pem(&self) -> Option<&str> {
        match &self.key {
            Key::New { key_pem, .. } => Some(key_pem),
            Key::Kept { .. } => None,
        }
    }

    fn credentials(&self, by: &AuthorityDir) -> Result<Credentials> {
        let key = match &self.key {
            Key::New { key, .. } | Key::Kept { key: Some(key) } => key.clone_key(),
            Key::Kept { key: None } => {
                return Err(Error::Invalid {
                    what: "keeping the key of",
                    value: KEYSTORE_FILE.to_owned(),
                    rule: "the keystore holds the key, and there is no key.pem to take it from; \
                           put key.pem back, remove the keystore, or make a new key",
                });
            }
        };
        if !matches!(key, PrivateKeyDer::Pkcs8(_)) {
            return Err(Error::Invalid {
                what: "keeping the key of",
                value: KEYSTORE_FILE.to_owned(),
                rule: "the keystore takes a key in PKCS#8 only; \
                       convert key.pem (openssl pkcs8 -topk8 -nocrypt) or make a new key",
            });
        }
        Ok(Credentials {
            ca: vec![by.authority.certificate().clone()],
            chain: vec![self.certificate.der().clone()],
            key,
        })
    }
}

fn public_key(chain: &[CertificateDer<'_>]) -> std::result::Result<SubjectPublicKeyInfo, String> {
    let own = chain.first().ok_or("there is no certificate")?;
    let (_, parsed) = X509Certificate::from_der(own).map_err(|error| error.to_string())?;
    SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(|error| error.to_string())
}

/// The password that the keystore has and keeps. `None`: there is no keystore.
fn store_password(folder: &Path, given: Option<&Password>) -> Result<Option<Password>> {
    let store = folder.join(KEYSTORE_FILE);
    if !files::exists(&store) {
        return match given {
            Some(_) => Err(Error::malformed(
                &store,
                "there is no such file, but a password was given for it; leave the password out",
            )),
            None => Ok(None),
        };
    }
    let file = folder.join(PASSWORD_FILE);
    let password = match given {
        Some(password) => password.clone(),
        None if files::exists(&file) => Password::from_file(&file)?,
        None => {
            return Err(Error::malformed(
                &store,
                "its password is not in keystore-password beside it; \
                 give it with --password-file, or remove the keystore to renew without it",
            ));
        }
    };
    keystore::check_renewable(&files::read(&store)?, &password)
        .map_err(|reason| Error::malformed(&store, reason))?;
    Ok(Some(password))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::authority::Request;
    use crate::folder::{InitOptions, IssueOptions};
    use crate::names::server_name;

    fn serial(folder: &Path) -> Serial {
        let own = Credentials::load(folder).unwrap();
        Serial::of(&own.chain[0]).unwrap()
    }

    #[test]
    fn after_each_write_the_old_or_the_new_pair_loads_and_a_renewal_goes_on_from_there() {
        let names = vec![server_name("localhost").unwrap()];
        let dir = TempDir::new().unwrap();
        let by = AuthorityDir::init(dir.path(), &InitOptions::new(names)).unwrap();
        let by = by.authority_dir;
        for cut_after in 0..=3 {
            let name: Name = format!("peer{cut_after}").parse().unwrap();
            let request = Request::client(name.clone());
            let folder = by.issue(&request, &IssueOptions::default()).unwrap().path;
            let (old, new) = (serial(&folder), by.authority.issue(&request).unwrap());
            let paths = CredentialPaths::in_dir(&folder);
            let writes = pair_writes(&paths, Some(&new.key_pem), &new.certificate_pem).unwrap();
            assert_eq!(writes.len(), 3);

            replace_all(&folder, &writes[..cut_after]).unwrap();

            let first_key = load::load_private_key(&paths.key).unwrap();
            let now = serial(&folder);
            assert!([&old, &new.serial].contains(&&now), "{cut_after}");
            // Software that takes the first key only is cut off by no crash but one.
            if cut_after != 2 {
                assert_eq!(first_key, Credentials::load(&folder).unwrap().key);
            }
            let renewed = by.renew(&name, &RenewOptions::default()).unwrap();
            assert_eq!(serial(&folder), renewed.folder.serial);
            let keys = load::load_private_keys(&paths.key).unwrap();
            assert_eq!(keys.len(), 1, "{cut_after}");
        }
    }

    #[test]
    fn where_no_pair_can_be_lost_a_broken_key_is_not_carried_along() {
        let names = vec![server_name("localhost").unwrap()];
        let dir = TempDir::new().unwrap();
        let by = AuthorityDir::init(dir.path(), &InitOptions::new(names)).unwrap();
        let by = by.authority_dir;
        let paths = CredentialPaths::in_dir(dir.path().join("server"));
        let name = "server".parse().unwrap();
        for broken in [Some("-----BEGIN PRIVATE KEY-----\nAAAA"), None] {
            match broken {
                Some(text) => std::fs::write(&paths.key, text).unwrap(),
                None => std::fs::remove_file(&paths.key).unwrap(),
            }
            let writes = pair_writes(&paths, Some("new key"), "new certificate").unwrap();
            let files: Vec<_> = writes
                .iter()
                .map(|(file, text, _)| (*file, &**text))
                .collect();
            let expected: [(_, &[u8]); 2] =
                [(KEY_FILE, b"new key"), (CERT_FILE, b"new certificate")];
            assert_eq!(files, expected);
            by.renew(&name, &RenewOptions::default()).unwrap();
            Credentials::load(dir.path().join("server")).unwrap();
        }
    }
}

//! The CA's folder on disk: who has which files, and what may be replaced.
//!
//! ```text
//! DIR/ca.pem  DIR/ca-key.pem  DIR/crl.pem
//! DIR/NAME/   ca.pem cert.pem key.pem keystore.p12 truststore.p12
//!             keystore-password   unless the caller brought a password
//!             superseded.pem      after a renewal or re-issue: the older certificates
//! ```
//! Invariants: one process at a time changes a folder (a lock on ca-key.pem); the CA is never
//! replaced; the CRL only grows; a certificate that was replaced stays known until it expires, so
//! that revoking a name refuses every certificate the name ever had.

mod renew;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, ServerName};

use crate::authority::{Authority, Issued, Request};
use crate::files::{self, Access};
use crate::keystore::{self, Password};
use crate::load::{self, CA_FILE, CERT_FILE, CredentialPaths, KEY_FILE};
use crate::names::Name;
use crate::revocations::{Revocations, Serial};
use crate::validity::{DAYS_DEFAULT, Validity, date};
use crate::{Error, Result};

use renew::Write;

pub use renew::{KeyChoice, Older, RenewOptions, Renewed};

pub(crate) const CA_KEY_FILE: &str = "ca-key.pem";
pub(crate) const CRL_FILE: &str = "crl.pem";
pub(crate) const KEYSTORE_FILE: &str = "keystore.p12";
const TRUSTSTORE_FILE: &str = "truststore.p12";
pub(crate) const PASSWORD_FILE: &str = "keystore-password";
pub(crate) const SUPERSEDED_FILE: &str = "superseded.pem";
/// Name of the server that `init` issues.
const SERVER_NAME: &str = "server";

/// How [`AuthorityDir::init`] makes a CA's folder.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The names that clients will dial the first server by. At least one.
    pub server_names: Vec<ServerName<'static>>,
    /// Days the server's certificate is good for. Default: 365. The CA's are always 3650.
    pub server_days: u32,
    /// For the server's PKCS#12 stores. Default: a random one, kept in `server/keystore-password`.
    pub password: Option<Password>,
}

impl InitOptions {
    /// The defaults, for a server of these names.
    pub fn new(server_names: Vec<ServerName<'static>>) -> Self {
        Self {
            server_names,
            server_days: DAYS_DEFAULT,
            password: None,
        }
    }
}

/// How [`AuthorityDir::issue`] writes a peer's folder. Default: replace nothing, random password.
#[derive(Clone, Debug, Default)]
pub struct IssueOptions {
    /// For the PKCS#12 stores. Default: a random one, kept in `keystore-password` beside them.
    pub password: Option<Password>,
    /// What to do if the name was issued before.
    pub replace: Replace,
}

/// What to do if a name was issued before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replace {
    /// Refuse.
    #[default]
    Refuse,
    /// Issue again with a new key and serial number, and remember the older certificate.
    Reissue,
}

/// What [`AuthorityDir::init`] made.
#[derive(Debug)]
pub struct Initialised {
    /// The folder, open for issuing.
    pub authority_dir: AuthorityDir,
    /// The CA's own files.
    pub files: Vec<PathBuf>,
    /// When the CA expires.
    pub not_after: SystemTime,
    /// The first server.
    pub server: IssuedFolder,
}

/// What [`AuthorityDir::issue`] wrote.
#[derive(Debug)]
#[non_exhaustive]
pub struct IssuedFolder {
    /// The peer's folder.
    pub path: PathBuf,
    /// All files in it that were written.
    pub files: Vec<PathBuf>,
    /// The new certificate's serial number.
    pub serial: Serial,
    /// When the new certificate expires.
    pub not_after: SystemTime,
    /// Serial numbers of the name's older certificates that are neither expired nor revoked.
    pub still_valid: Vec<Serial>,
}

/// What [`AuthorityDir::revoke`] did.
#[derive(Debug)]
pub enum Revoked {
    /// The CRL was rewritten.
    Now {
        /// The CRL's path.
        crl: PathBuf,
        /// Its number.
        number: u64,
        /// The serial numbers that were added: the certificate's and those of older ones.
        serials: Vec<Serial>,
    },
    /// Every certificate of the name was in the CRL before; nothing was written.
    Already,
}

/// A folder with a CA, locked for this process until dropped.
#[derive(Debug)]
pub struct AuthorityDir {
    dir: PathBuf,
    authority: Authority,
    /// Holds the lock that keeps two revocations from losing one another's entry.
    _lock: File,
}

impl AuthorityDir {
    /// Makes a CA, an empty CRL and a first server named "server" in `dir`.
    ///
    /// # Errors
    /// [`Error::Exists`] if any of them is there; then, and on every other error, no new file
    /// stays behind.
    pub fn init(dir: impl AsRef<Path>, options: &InitOptions) -> Result<Initialised> {
        let dir = dir.as_ref();
        let server = SERVER_NAME.parse::<Name>()?;
        for name in [CA_FILE, CA_KEY_FILE, CRL_FILE, SERVER_NAME] {
            let path = dir.join(name);
            if files::exists(&path) {
                return Err(Error::Exists {
                    path,
                    advice: "a CA is never replaced; use `issue` for more peers, \
                             or another folder for another CA",
                });
            }
        }
        let authority = Authority::generate()?;
        let request = Request::server(server, options.server_names.clone())
            .validity(Validity::days(options.server_days)?);
        let issued = authority.issue(&request)?;
        let key_pem = authority.key_pem();
        let crl_pem = authority.sign_crl(&Revocations::new())?;

        files::create_dir(dir)?;
        let mut undo = Undo::default();
        // Ordering: the key first. It is the lock, and of two `init` at once one fails here.
        let contents = [
            (CA_KEY_FILE, key_pem.as_str(), Access::Owner),
            (CA_FILE, authority.certificate_pem(), Access::Everyone),
            (CRL_FILE, crl_pem.as_str(), Access::Everyone),
        ];
        for (name, text, access) in contents {
            let path = dir.join(name);
            files::create(&path, text.as_bytes(), access)?;
            undo.files.push(path);
        }
        let authority_dir = Self {
            dir: dir.to_owned(),
            authority,
            _lock: lock(&dir.join(CA_KEY_FILE))?,
        };
        let server = authority_dir.write_new(&request, &issued, options.password.as_ref())?;
        let mut files = undo.keep();
        files.sort();
        Ok(Initialised {
            files,
            not_after: authority_dir.authority.not_after(),
            authority_dir,
            server,
        })
    }

    /// Opens a folder that [`AuthorityDir::init`] made. Waits while another process works on it.
    ///
    /// # Errors
    /// [`Error::NoAuthority`] if `ca.pem` is missing, [`Error::NoAuthorityKey`] if `ca-key.pem` is,
    /// [`Error::Malformed`] if they are no CA.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let paths = CredentialPaths {
            ca: dir.join(CA_FILE),
            cert: dir.join(CA_FILE),
            key: dir.join(CA_KEY_FILE),
        };
        if !files::exists(&paths.cert) {
            return Err(Error::NoAuthority { path: paths.cert });
        }
        if !files::exists(&paths.key) {
            return Err(Error::NoAuthorityKey { path: paths.key });
        }
        let lock = lock(&paths.key)?;
        let chain = load::load_certificates(&paths.cert)?;
        let key = load::load_private_key(&paths.key)?;
        load::check_pair(&chain, &key, &paths)?;
        let pem = String::from_utf8(files::read(&paths.cert)?)
            .map_err(|_| Error::malformed(&paths.cert, "it is not text"))?;
        let authority = Authority::from_pem(pem, &key)
            .map_err(|error| Error::malformed(&paths.key, error.to_string()))?;
        Ok(Self {
            dir: dir.to_owned(),
            authority,
            _lock: lock,
        })
    }

    /// The CA.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Issues credentials into the folder of the request's name.
    ///
    /// A new folder appears whole or not at all. A re-issue replaces file by file, as
    /// [`AuthorityDir::renew`] does: a crash in between leaves a pair that works.
    ///
    /// # Errors
    /// [`Error::Exists`] if something of that name is there, unless it is a peer's folder and
    /// `options` say to re-issue; [`Error::AuthorityExpired`].
    pub fn issue(&self, request: &Request, options: &IssueOptions) -> Result<IssuedFolder> {
        self.check_not_expired()?;
        let folder = self.folder(request.name());
        let password = options.password.as_ref();
        if !files::exists(&folder) {
            return self.write_new(request, &self.authority.issue(request)?, password);
        }
        // A file or a foreign folder of that name is never replaced, whatever was asked.
        let is_peer = files::exists(&folder.join(CERT_FILE));
        if options.replace == Replace::Refuse || !is_peer {
            return Err(Error::Exists {
                path: folder,
                advice: if is_peer {
                    "use --force to issue it again with a new key, or choose another name"
                } else {
                    "it is no folder that was issued; choose another name"
                },
            });
        }
        self.write_again(request, &self.authority.issue(request)?, password)
    }

    /// Adds every certificate of a name to the CRL, older ones that were replaced included.
    ///
    /// The CRL is replaced in one step and is on disk when this returns. Servers refuse the name
    /// once they have loaded the new file.
    ///
    /// # Errors
    /// [`Error::UnknownName`] if there is no certificate of that name; [`Error::Malformed`] if
    /// the certificate or the CRL is not this CA's.
    pub fn revoke(&self, name: &Name) -> Result<Revoked> {
        let path = self.folder(name).join(CERT_FILE);
        if !path.is_file() {
            return Err(Error::UnknownName {
                name: name.clone(),
                path,
            });
        }
        self.revoke_all(&self.certificates_of(name)?)
    }

    /// What `crl.pem` holds now. A list that this CA did not sign is refused, not extended.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is missing, broken or not this CA's.
    pub fn revocations(&self) -> Result<Revocations> {
        let path = self.dir.join(CRL_FILE);
        let crls = load::load_crls(&path)?;
        let [crl] = crls.as_slice() else {
            return Err(Error::malformed(&path, "there is more than one CRL in it"));
        };
        if !self.authority.has_signed_crl(crl) {
            return Err(Error::malformed(
                &path,
                "the CRL was not signed by the CA beside it; restore it from a server or a backup",
            ));
        }
        Revocations::from_der(crl).map_err(|reason| Error::malformed(&path, reason))
    }

    fn check_not_expired(&self) -> Result<()> {
        if self.authority.not_after() > SystemTime::now() {
            return Ok(());
        }
        Err(Error::AuthorityExpired {
            path: self.dir.join(CA_FILE),
            on: date(self.authority.not_after()),
        })
    }

    fn revoke_all(&self, certificates: &[CertificateDer<'_>]) -> Result<Revoked> {
        let crl = self.dir.join(CRL_FILE);
        let mut revocations = self.revocations()?;
        let now = SystemTime::now();
        let mut serials = vec![];
        for certificate in certificates {
            let serial = Serial::of(certificate)?;
            if revocations.revoke(serial.clone(), now) {
                serials.push(serial);
            }
        }
        if serials.is_empty() {
            return Ok(Revoked::Already);
        }
        let pem = self.authority.sign_crl(&revocations)?;
        files::replace(&crl, pem.as_bytes(), Access::Everyone)?;
        Ok(Revoked::Now {
            crl,
            number: revocations.number() + 1,
            serials,
        })
    }

    /// Serial numbers of those that are neither expired nor revoked.
    fn still_valid(
        &self,
        certificates: &[CertificateDer<'_>],
        revocations: &Revocations,
    ) -> Result<Vec<Serial>> {
        let mut still_valid = vec![];
        for certificate in certificates {
            let serial = Serial::of(certificate)?;
            let expired = load::expires_at(certificate)? < SystemTime::now();
            if !expired && !revocations.contains(&serial) && !still_valid.contains(&serial) {
                still_valid.push(serial);
            }
        }
        Ok(still_valid)
    }

    fn folder(&self, name: &Name) -> PathBuf {
        self.dir.join(name.as_str())
    }

    /// The current certificate of a name and the older ones, all checked to be this CA's.
    fn certificates_of(&self, name: &Name) -> Result<Vec<CertificateDer<'static>>> {
        let folder = self.folder(name);
        let superseded = folder.join(SUPERSEDED_FILE);
        let mut paths = vec![folder.join(CERT_FILE)];
        if files::exists(&superseded) {
            paths.push(superseded);
        }
        let mut certificates = vec![];
        for path in paths {
            for certificate in load::load_certificates(&path)? {
                if !self.authority.has_issued(&certificate) {
                    return Err(Error::malformed(
                        &path,
                        format!("it was not issued by {}", self.dir.join(CA_FILE).display()),
                    ));
                }
                // Some software wants the CA behind the own certificate. It is not the peer's.
                if certificate != *self.authority.certificate() {
                    certificates.push(certificate);
                }
            }
        }
        Ok(certificates)
    }

    /// Writes a folder beside its place and renames it there.
    fn write_new(
        &self,
        request: &Request,
        issued: &Issued,
        password: Option<&Password>,
    ) -> Result<IssuedFolder> {
        let folder = self.folder(request.name());
        let staging = tempfile::Builder::new()
            .prefix(".storage-certs.")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&self.dir)
            .map_err(Error::io("create a folder in", &self.dir))?;
        let contents = self.contents(request.name(), issued, password)?;
        let mut written = vec![];
        for (name, bytes, access) in &contents {
            files::create(&staging.path().join(name), bytes, *access)?;
            written.push(folder.join(name));
        }
        files::sync_dir(staging.path())?;
        // A rename never replaces a file or a folder with something in it.
        fs::rename(staging.path(), &folder).map_err(Error::io("create", &folder))?;
        // It is no longer there to be removed.
        let _ = staging.keep();
        files::sync_dir(&self.dir)?;
        Ok(IssuedFolder {
            path: folder,
            files: written,
            serial: issued.serial.clone(),
            not_after: issued.not_after,
            still_valid: vec![],
        })
    }

    /// Replaces the files of a folder, whatever else is in it stays.
    fn write_again(
        &self,
        request: &Request,
        issued: &Issued,
        password: Option<&Password>,
    ) -> Result<IssuedFolder> {
        let folder = self.folder(request.name());
        let older = self.certificates_of(request.name())?;
        let still_valid = self.still_valid(&older, &self.revocations()?)?;
        let contents = self.contents(request.name(), issued, password)?;
        // Ordering: the older certificates are safe before one of them is replaced, or a later
        // revocation could not find them.
        let mut writes = vec![(SUPERSEDED_FILE, superseded(&folder)?, Access::Everyone)];
        let paths = CredentialPaths::in_dir(&folder);
        let (key_pem, cert_pem) = (&issued.key_pem, &issued.certificate_pem);
        writes.extend(renew::pair_writes(&paths, Some(key_pem), cert_pem)?);
        let pair = [KEY_FILE, CERT_FILE];
        writes.extend(
            contents
                .into_iter()
                .filter(|(name, ..)| !pair.contains(name)),
        );
        let written = renew::replace_all(&folder, &writes)?;
        let stale = folder.join(PASSWORD_FILE);
        if password.is_some() && files::exists(&stale) {
            fs::remove_file(&stale).map_err(Error::io("remove", &stale))?;
        }
        Ok(IssuedFolder {
            path: folder,
            files: written,
            serial: issued.serial.clone(),
            not_after: issued.not_after,
            still_valid,
        })
    }

    fn contents(
        &self,
        name: &Name,
        issued: &Issued,
        password: Option<&Password>,
    ) -> Result<Vec<Write>> {
        let generated = match password {
            Some(_) => None,
            None => Some(Password::generate()?),
        };
        let mut contents = vec![
            (KEY_FILE, text(&issued.key_pem), Access::Owner),
            (CERT_FILE, text(&issued.certificate_pem), Access::Everyone),
            (
                CA_FILE,
                text(self.authority.certificate_pem()),
                Access::Everyone,
            ),
        ];
        if let Some(password) = password.or(generated.as_ref()) {
            let own = &issued.credentials;
            let keystore = keystore::keystore(name, own, password)?;
            let truststore = keystore::truststore(own, password)?;
            contents.push((KEYSTORE_FILE, keystore, Access::Owner));
            contents.push((TRUSTSTORE_FILE, truststore, Access::Owner));
        }
        if let Some(password) = &generated {
            let line = format!("{}\n", password.expose());
            contents.push((PASSWORD_FILE, line.into_bytes(), Access::Owner));
        }
        Ok(contents)
    }
}

/// What `superseded.pem` is to hold once the certificate in the folder is replaced.
fn superseded(folder: &Path) -> Result<Vec<u8>> {
    let path = folder.join(SUPERSEDED_FILE);
    let mut older = files::read(&folder.join(CERT_FILE))?;
    if files::exists(&path) {
        older.extend(files::read(&path)?);
    }
    Ok(older)
}

/// Files to remove again unless kept: a CA is made whole or not at all.
#[derive(Default)]
struct Undo {
    files: Vec<PathBuf>,
}

impl Undo {
    fn keep(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.files)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for path in &self.files {
            // The error that brought us here is the one to report.
            let _ = fs::remove_file(path);
        }
    }
}

fn lock(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.lock().map_err(Error::io("lock", path))?;
    Ok(file)
}

fn text(pem: &str) -> Vec<u8> {
    pem.as_bytes().to_vec()
}

//! What is in a folder of certificates: who, until when, revoked or not, and what is wrong.
//!
//! It only reads, and needs no CA key, so it works on a server's copy too. Nothing stops at the
//! first broken file: that is one more finding.
//! Invariant: nothing of a private key gets into what is found, in whatever state its file is.

mod found;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{CertificateRevocationList, FromDer, GeneralName, X509Certificate};

use crate::folder::{CA_KEY_FILE, CRL_FILE, KEYSTORE_FILE, PASSWORD_FILE, SUPERSEDED_FILE};
use crate::load::{self, CA_FILE, CERT_FILE, CredentialPaths, KEY_FILE};
use crate::revocations::{Revocations, Serial};
use crate::template::address;
use crate::{Error, Result, files, peer};

use found::{Details, List, OlderValid, timestamp};

pub(crate) use found::{Credential, Finding, Inspection, KeyState, Kind, Level};

/// Less than this many days before its end a certificate is warned of.
const EXPIRY_WARNING_DAYS: i64 = 30;
const DAY_SECONDS: i64 = 24 * 60 * 60;
/// Whoever is not the owner.
const MODE_OTHERS: u32 = 0o077;

/// Looks at a folder of certificates, at the folder of one credential or at a PEM file.
///
/// # Errors
/// [`Error::Malformed`] if there is no such thing, or no certificate in it; [`Error::Io`].
pub(crate) fn inspect(path: &Path) -> Result<Inspection> {
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::malformed(path, "there is no such file or folder"),
        _ => Error::io("read", path)(source),
    })?;
    if !metadata.is_dir() {
        return of_file(path);
    }
    if files::exists(&path.join(CERT_FILE)) {
        return of_credential(path);
    }
    of_folder(path)
}

/// The alternative names of a certificate, with their kind: `DNS:db.example.com`.
///
/// # Errors
/// [`Error::Crypto`] if it is no X.509 certificate.
pub(crate) fn alternative_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(Error::crypto("read the certificate"))?;
    Ok(names_of(&parsed))
}

fn of_file(path: &Path) -> Result<Inspection> {
    let certificates = load::load_certificates(path)?;
    let folder = above(path);
    let mut authorities = certificates.clone();
    authorities.extend(load::load_certificates(folder.join(CA_FILE)).unwrap_or_default());
    let mut view = View::new(path, authorities, true);
    view.load_lists(&list_beside(&folder));
    let file = name_of(path);
    for (index, certificate) in certificates.iter().enumerate() {
        let name = numbered(&file, index);
        let mut credential = Credential::new(name, path);
        view.judge(&mut credential, certificate);
        view.credentials.push(credential);
    }
    Ok(view.finish())
}

fn of_credential(folder: &Path) -> Result<Inspection> {
    let above = above(folder);
    let mut authorities = load::load_certificates(folder.join(CA_FILE)).unwrap_or_default();
    authorities.extend(load::load_certificates(above.join(CA_FILE)).unwrap_or_default());
    let mut view = View::new(folder, authorities, true);
    view.load_lists(&list_beside(folder));
    view.look_at_peer(folder);
    Ok(view.finish())
}

fn of_folder(dir: &Path) -> Result<Inspection> {
    let mut folders = vec![];
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let is_peer = [CERT_FILE, KEY_FILE]
            .iter()
            .any(|file| files::exists(&path.join(file)));
        // What begins with a dot was left by an `issue` that was cut short.
        if is_peer && !name_of(&path).starts_with('.') {
            folders.push(path);
        }
    }
    folders.sort();
    let ca_path = dir.join(CA_FILE);
    let has_ca = files::exists(&ca_path);
    if !has_ca && folders.is_empty() {
        return Err(Error::malformed(
            dir,
            "there are no certificates in it: no ca.pem, and no folder with a cert.pem",
        ));
    }
    let own = has_ca.then(|| load::load_certificates(&ca_path));
    let mut authorities = match &own {
        Some(Ok(certificates)) => certificates.clone(),
        _ => vec![],
    };
    for folder in &folders {
        authorities.extend(load::load_certificates(folder.join(CA_FILE)).unwrap_or_default());
    }
    let mut view = View::new(dir, authorities, false);
    view.load_lists(&dir.join(CRL_FILE));
    match own {
        None => {}
        Some(Err(error)) => {
            let mut ca = Credential::new("ca".to_owned(), &ca_path);
            ca.unreadable(&error);
            view.credentials.push(ca);
        }
        Some(Ok(certificates)) => {
            for (index, certificate) in certificates.iter().enumerate() {
                let mut ca = Credential::new(numbered("ca", index), &ca_path);
                if index == 0 {
                    let paths = CredentialPaths {
                        ca: ca_path.clone(),
                        cert: ca_path.clone(),
                        key: dir.join(CA_KEY_FILE),
                    };
                    // It should not be where the certificates are used, so it may be missing.
                    ca.look_at_key(&certificates, &paths);
                    ca.findings.retain(|finding| finding.code != KEY_MISSING);
                    ca.look_at_modes(dir, &[CA_KEY_FILE]);
                }
                view.judge(&mut ca, certificate);
                view.credentials.push(ca);
            }
        }
    }
    for folder in &folders {
        view.look_at_peer(folder);
    }
    Ok(view.finish())
}

const KEY_MISSING: &str = "key_missing";

/// An inspection under way.
struct View {
    path: PathBuf,
    now: OffsetDateTime,
    /// Those whose signature counts.
    authorities: Vec<CertificateDer<'static>>,
    /// Whether one thing was asked for, which is then to be usable itself.
    is_alone: bool,
    lists: Vec<List>,
    credentials: Vec<Credential>,
    findings: Vec<Finding>,
}

impl View {
    fn new(path: &Path, authorities: Vec<CertificateDer<'static>>, is_alone: bool) -> Self {
        Self {
            path: path.to_owned(),
            now: OffsetDateTime::now_utc(),
            authorities,
            is_alone,
            lists: vec![],
            credentials: vec![],
            findings: vec![],
        }
    }

    fn load_lists(&mut self, path: &Path) {
        if !files::exists(path) {
            if !self.is_alone {
                self.findings.push(Finding::warning(
                    "crl_missing",
                    format!("there is no {}: nobody is revoked", path.display()),
                ));
            }
            return;
        }
        let crls = match load::load_crls(path) {
            Ok(crls) => crls,
            Err(error) => {
                let text = format!("{error}; whether something is revoked is not known");
                self.findings.push(Finding::error("crl_unreadable", text));
                return;
            }
        };
        for crl in &crls {
            match self.list(path, crl) {
                Some(list) => {
                    if let Some(due) = list.next_update.filter(|due| *due < self.now) {
                        let due = due.date();
                        let text = format!("{}: its next one was due on {due}", path.display());
                        self.findings.push(Finding::warning("crl_overdue", text));
                    }
                    self.lists.push(list);
                }
                None => self.findings.push(Finding::error(
                    "crl_foreign",
                    format!(
                        "{}: a list in it is by none of the authorities here, and revokes nobody",
                        path.display()
                    ),
                )),
            }
        }
    }

    /// None if it is by no authority here.
    fn list(&self, path: &Path, der: &[u8]) -> Option<List> {
        let (_, crl) = CertificateRevocationList::from_der(der).ok()?;
        let by = self.authorities.iter().find(|authority| {
            X509Certificate::from_der(authority).is_ok_and(|(_, authority)| {
                authority.subject().as_raw() == crl.issuer().as_raw()
                    && crl.verify_signature(authority.public_key()).is_ok()
            })
        })?;
        let entries = Revocations::from_der(der).ok()?;
        Some(List {
            file: path.display().to_string(),
            issuer: crl.issuer().to_string(),
            number: entries.number(),
            issued: crl.last_update().to_datetime(),
            next_update: crl.next_update().map(|time| time.to_datetime()),
            revoked: entries.len(),
            entries,
            by: by.clone(),
        })
    }

    fn look_at_peer(&mut self, folder: &Path) {
        let paths = CredentialPaths::in_dir(folder);
        let mut peer = Credential::new(name_of(folder), &paths.cert);
        match load::load_certificates(&paths.cert) {
            Err(error) => peer.unreadable(&error),
            Ok(chain) => {
                peer.look_at_key(&chain, &paths);
                if let [own, between @ ..] = chain.as_slice() {
                    self.judge_between(&mut peer, between);
                    self.authorities.extend(between.iter().cloned());
                    self.judge(&mut peer, own);
                }
            }
        }
        if let Err(error) = load::load_certificates(&paths.ca) {
            let error = Finding::error("trust_unreadable", error.to_string());
            peer.findings.push(error);
        }
        peer.look_at_modes(folder, &[KEY_FILE, KEYSTORE_FILE, PASSWORD_FILE]);
        self.look_at_older(&mut peer, &folder.join(SUPERSEDED_FILE));
        if !self.is_alone && peer.is_revoked() {
            // It was put out of use on purpose, and is no trouble any more.
            for finding in &mut peer.findings {
                finding.level = Level::Warning;
            }
        }
        self.credentials.push(peer);
    }

    /// Fills in the details of a certificate, and what is wrong with it.
    fn judge(&self, credential: &mut Credential, certificate: &CertificateDer<'static>) {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return;
        };
        let kind = kind_of(&parsed);
        let serial = Serial::from_bytes(parsed.raw_serial());
        let (from, until) = dates(&parsed);
        let (revoked, revoked_at) = self.revoked(certificate, &serial);
        let principal = match kind {
            Kind::Client | Kind::ServerAndClient => match peer::principal(certificate) {
                Ok(principal) => Some(principal),
                Err(reason) => {
                    let text = format!("servers refuse it: {reason}");
                    credential.findings.push(Finding::error("no_name", text));
                    None
                }
            },
            Kind::Authority | Kind::Server | Kind::Other => None,
        };
        let days_left = (until - self.now).whole_seconds().div_euclid(DAY_SECONDS);
        let findings = &mut credential.findings;
        if revoked == Some(true) {
            if self.is_alone {
                findings.push(Finding::error("revoked", "it is revoked"));
            }
        } else if until < self.now {
            let text = format!("it expired on {}", until.date());
            findings.push(Finding::error("expired", text));
        } else if days_left < EXPIRY_WARNING_DAYS {
            let text = format!("it expires on {}, in {days_left} days", until.date());
            findings.push(Finding::warning("expires_soon", text));
        }
        if self.now < from {
            let text = format!("it is not valid before {}", timestamp(from));
            findings.push(Finding::error("not_yet_valid", text));
        }
        if kind == Kind::Other {
            let text = "it is for neither serving nor dialling nor signing";
            findings.push(Finding::error("wrong_use", text));
        }
        if self.issuer_of(certificate).is_none() {
            findings.push(Finding::warning(
                "issuer_unknown",
                format!(
                    "none of the authorities here issued it, but {}",
                    parsed.issuer()
                ),
            ));
        }
        credential.details = Some(Details {
            kind,
            principal,
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            alternative_names: names_of(&parsed),
            serial: serial.to_string(),
            valid_from: from,
            valid_until: until,
            days_left,
            revoked,
            revoked_at,
        });
    }

    /// Those between the own certificate and the authority: the peer is refused without them.
    fn judge_between(&self, peer: &mut Credential, between: &[CertificateDer<'_>]) {
        for (index, certificate) in between.iter().enumerate() {
            let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
                continue;
            };
            let (_, until) = dates(&parsed);
            if until < self.now {
                let text = format!(
                    "certificate {} of its chain expired on {}",
                    index + 2,
                    until.date()
                );
                peer.findings.push(Finding::error("expired", text));
            }
        }
    }

    fn look_at_older(&self, peer: &mut Credential, path: &Path) {
        if !files::exists(path) {
            return;
        }
        let older = match load::load_certificates(path) {
            Ok(older) => older,
            Err(error) => {
                let text = format!("{error}; `revoke` needs it");
                let finding = Finding::warning("superseded_unreadable", text);
                peer.findings.push(finding);
                return;
            }
        };
        let current = peer.details.as_ref().map(|details| details.serial.clone());
        for certificate in &older {
            let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
                continue;
            };
            let serial = Serial::from_bytes(parsed.raw_serial());
            let (_, valid_until) = dates(&parsed);
            let (revoked, _) = self.revoked(certificate, &serial);
            let serial = serial.to_string();
            let known = current.as_ref() == Some(&serial)
                || peer.older_valid.iter().any(|older| older.serial == serial);
            if !known && !parsed.is_ca() && valid_until >= self.now && revoked != Some(true) {
                let older = OlderValid {
                    serial,
                    valid_until,
                };
                peer.older_valid.push(older);
            }
        }
    }

    /// Whether a certificate is revoked, as far as there is a list of its issuer, and since when.
    fn revoked(
        &self,
        certificate: &CertificateDer<'_>,
        serial: &Serial,
    ) -> (Option<bool>, Option<OffsetDateTime>) {
        let lists = self
            .lists
            .iter()
            .filter(|list| signed(&list.by, certificate));
        let mut revoked = None;
        for list in lists {
            if let Some(at) = list.entries.revoked_at(serial) {
                return (Some(true), Some(at));
            }
            revoked = Some(false);
        }
        (revoked, None)
    }

    fn issuer_of(&self, certificate: &CertificateDer<'_>) -> Option<&CertificateDer<'static>> {
        let mut authorities = self.authorities.iter();
        authorities.find(|authority| signed(authority, certificate))
    }

    fn finish(mut self) -> Inspection {
        let is_alone = self.is_alone;
        self.credentials.sort_by_key(|credential| {
            let rank = match &credential.details {
                None => 4,
                Some(details) => match details.kind {
                    Kind::Authority => 0,
                    Kind::Server | Kind::ServerAndClient => 1,
                    Kind::Client => 2,
                    Kind::Other => 3,
                },
            };
            // Those of a file stay in its order, as do trust anchors.
            (!is_alone).then(|| (rank, credential.name.clone()))
        });
        let of_credentials = self.credentials.iter().flat_map(|one| &one.findings);
        let mut findings = self.findings.iter().chain(of_credentials);
        let usable = !findings.any(|finding| finding.level == Level::Error);
        Inspection {
            path: self.path.display().to_string(),
            usable,
            credentials: self.credentials,
            revocation_lists: self.lists,
            findings: self.findings,
        }
    }
}

impl Credential {
    fn new(name: String, file: &Path) -> Self {
        Self {
            name,
            file: file.display().to_string(),
            details: None,
            key: KeyState::Unknown,
            older_valid: vec![],
            findings: vec![],
        }
    }

    fn is_revoked(&self) -> bool {
        let details = self.details.as_ref();
        details.is_some_and(|details| details.revoked == Some(true))
    }

    fn unreadable(&mut self, error: &Error) {
        let finding = Finding::error("certificate_unreadable", error.to_string());
        self.findings.push(finding);
    }

    fn look_at_key(&mut self, chain: &[CertificateDer<'static>], paths: &CredentialPaths) {
        if !files::exists(&paths.key) {
            self.key = KeyState::Missing;
            let text = format!("there is no {}", paths.key.display());
            self.findings.push(Finding::warning(KEY_MISSING, text));
            return;
        }
        let keys = match load::load_private_keys(&paths.key) {
            Ok(keys) => keys,
            Err(error @ Error::Io { .. }) => {
                self.key = KeyState::Unreadable;
                let text = format!("{error}; whether it is the certificate's is not known");
                self.findings.push(Finding::warning("key_unreadable", text));
                return;
            }
            Err(error) => {
                self.key = KeyState::Broken;
                let finding = Finding::error("key_broken", error.to_string());
                self.findings.push(finding);
                return;
            }
        };
        match load::load_key_of(chain, paths) {
            Ok(_) => {
                self.key = KeyState::Matches;
                if keys.len() > 1 {
                    self.findings.push(Finding::warning(
                        "renewal_unfinished",
                        format!(
                            "{} has {} keys, as after a renewal that was cut short: renew again",
                            paths.key.display(),
                            keys.len()
                        ),
                    ));
                }
            }
            Err(error) => {
                let differs = keys.iter().any(|key| load::is_of_another(chain, key));
                let (state, code) = if differs {
                    (KeyState::Differs, "key_differs")
                } else {
                    (KeyState::Broken, "key_broken")
                };
                self.key = state;
                self.findings.push(Finding::error(code, error.to_string()));
            }
        }
    }

    fn look_at_modes(&mut self, folder: &Path, secrets: &[&str]) {
        for secret in secrets {
            let path = folder.join(secret);
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            let mode = metadata.permissions().mode() & 0o777;
            if mode & MODE_OTHERS != 0 {
                self.findings.push(Finding::warning(
                    "secret_exposed",
                    format!(
                        "others than its owner have access to {} (mode {mode:04o}); \
                         chmod 600 it",
                        path.display()
                    ),
                ));
            }
        }
    }
}

fn kind_of(certificate: &X509Certificate<'_>) -> Kind {
    if certificate.is_ca() {
        return Kind::Authority;
    }
    match certificate.extended_key_usage() {
        // Without that extension it is good for everything.
        Ok(None) => Kind::ServerAndClient,
        Ok(Some(usage)) => match (usage.value.server_auth, usage.value.client_auth) {
            (true, true) => Kind::ServerAndClient,
            (true, false) => Kind::Server,
            (false, true) => Kind::Client,
            (false, false) => Kind::Other,
        },
        Err(_) => Kind::Other,
    }
}

fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return vec![];
    };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::RFC822Name(name) => format!("email:{name}"),
        GeneralName::IPAddress(bytes) => match address(bytes) {
            Some(address) => format!("IP:{address}"),
            None => name.to_string(),
        },
        other => other.to_string(),
    };
    extension.value.general_names.iter().map(text).collect()
}

fn dates(certificate: &X509Certificate<'_>) -> (OffsetDateTime, OffsetDateTime) {
    let dates = certificate.validity();
    (
        dates.not_before.to_datetime(),
        dates.not_after.to_datetime(),
    )
}

/// Whether an authority signed a certificate. Of several with one name only one did.
fn signed(authority: &CertificateDer<'_>, certificate: &CertificateDer<'_>) -> bool {
    let signed = || {
        let (_, authority) = X509Certificate::from_der(authority).ok()?;
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        (authority.subject().as_raw() == certificate.issuer().as_raw()).then_some(())?;
        let key = Some(authority.public_key());
        certificate.verify_signature(key).ok()
    };
    signed().is_some()
}

/// The lists for what is in a folder: in it, or in the folder above, as `init` lays them out.
fn list_beside(folder: &Path) -> PathBuf {
    let here = folder.join(CRL_FILE);
    if files::exists(&here) {
        here
    } else {
        above(folder).join(CRL_FILE)
    }
}

/// The folder that something is in; `..` is the one of `.`.
fn above(path: &Path) -> PathBuf {
    match (path.file_name(), path.parent()) {
        (Some(_), Some(above)) => above.to_owned(),
        _ => path.join(".."),
    }
}

/// The last part of a path, also of `.` and `..`.
fn name_of(path: &Path) -> String {
    let whole = || {
        fs::canonicalize(path)
            .ok()?
            .file_name()
            .map(ToOwned::to_owned)
    };
    let name = path.file_name().map(ToOwned::to_owned).or_else(whole);
    name.map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn numbered(name: &str, index: usize) -> String {
    match index {
        0 => name.to_owned(),
        index => format!("{name}:{}", index + 1),
    }
}

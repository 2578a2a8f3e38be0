//! What is read anew while the server runs: certificates, revocation lists, and the access rules, roles and quotas of the
//! configuration.
//!
//! The files are looked at twice a second, by their dates and inodes, and read when they have changed and were the same at
//! two looks; a SIGHUP, or [`Server::reload`](crate::Server::reload), reads them at once. What is read is checked as a whole
//! before it takes the place of what was there. If it is not good, everything stays as it was: that is logged once, counted,
//! and tried again when a file has changed.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::auth::text::date;
use crate::auth::{Configured, RulesRefused, Verifier};
use crate::config::{ConfigError, ListenerConfig, ServerConfig, TlsMode};
use crate::metrics::ReloadLabel;
use crate::net::revocation::ListsInUse;
use crate::net::tls::{LiveTls, Tls, TlsError, TlsFiles};
use crate::shared::Shared;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Where a configuration comes from, to be read anew.
#[derive(Clone)]
pub(crate) struct ConfigSource {
    /// It is read again when this file changes.
    pub(crate) file: Option<PathBuf>,
    pub(crate) read: Arc<dyn Fn() -> Result<ServerConfig, ConfigError> + Send + Sync>,
}

impl fmt::Debug for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSource")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Why something could not be read anew. What was there before holds on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// The certificates, their key, or a revocation list.
    #[error(transparent)]
    Certificates(#[from] TlsError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its access rules.
    #[error(transparent)]
    Rules(#[from] RulesRefused),
    /// It could not be read to its end.
    #[error("cannot read anew: {0}")]
    Failed(String),
}

/// What a reload did, part by part.
#[derive(Debug)]
#[non_exhaustive]
pub struct Reloaded {
    /// Certificates, their key, and revocation lists.
    pub certificates: Result<(), ReloadError>,
    /// Access rules, roles and quotas of the configuration.
    pub rules: Result<(), ReloadError>,
}

/// See the module.
pub(crate) struct Reloader {
    shared: Arc<Shared>,
    certs: Option<PathBuf>,
    /// Those that have TLS.
    listeners: Vec<(ListenerConfig, Arc<LiveTls>)>,
    source: Option<ConfigSource>,
    /// What the configuration says but for what is read anew.
    fixed: String,
    /// Held while something is read, so one at a time.
    looks: Mutex<Looks>,
    /// Tokens of ended certificates are yet to be removed.
    tokens_due: AtomicBool,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader")
            .field("certs", &self.certs)
            .finish_non_exhaustive()
    }
}

/// What the files were like.
#[derive(Debug)]
pub(crate) struct Looks {
    certificates: Files,
    /// The revocation lists that were last taken.
    pub(crate) lists: ListsInUse,
    config: Files,
}

impl Looks {
    /// To be taken before the files are read for the first time, so that no change is missed. Blocks.
    pub(crate) fn new(config: &ServerConfig, source: Option<&ConfigSource>) -> Self {
        let has_tls = config
            .listeners
            .iter()
            .any(|listener| listener.tls != TlsMode::Off);
        let certs = config.certs.as_deref().filter(|_| has_tls);
        let file = source.and_then(|source| source.file.clone());
        Self {
            lists: ListsInUse::default(),
            certificates: Files::new(certs.map_or(Vec::new(), |dir| TlsFiles::paths(dir).into())),
            config: Files::new(file.into_iter().collect()),
        }
    }
}

/// What tells one state of a file from another: device, inode, size, and times of change in nanoseconds. `None`: it is not
/// there.
type Stamp = Option<[i128; 5]>;

fn stamp(path: &Path) -> Stamp {
    let of = std::fs::metadata(path).ok()?;
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Some([
        of.dev().into(),
        of.ino().into(),
        of.size().into(),
        time(of.mtime(), of.mtime_nsec()),
        time(of.ctime(), of.ctime_nsec()),
    ])
}

/// Files that are read together.
#[derive(Debug)]
struct Files {
    paths: Vec<PathBuf>,
    /// When they were last read.
    read: Vec<Stamp>,
    /// At the last look.
    seen: Vec<Stamp>,
}

impl Files {
    fn new(paths: Vec<PathBuf>) -> Self {
        let seen: Vec<_> = paths.iter().map(|path| stamp(path)).collect();
        Self {
            paths,
            read: seen.clone(),
            seen,
        }
    }

    /// Whether they are to be read: they have changed, and whoever changes them seems to be done.
    fn look(&mut self) -> bool {
        let now: Vec<_> = self.paths.iter().map(|path| stamp(path)).collect();
        let is_settled = now == self.seen;
        self.seen = now;
        is_settled && self.seen != self.read
    }

    /// They are read from now on: a change behind this is another one.
    fn reading(&mut self) {
        self.seen = self.paths.iter().map(|path| stamp(path)).collect();
        self.read.clone_from(&self.seen);
    }
}

/// What of a configuration is not read anew.
pub(crate) fn fixed(config: &ServerConfig) -> String {
    let mut config = config.clone();
    config.rules.clear();
    config.roles.clear();
    config.quotas.clear();
    config.to_toml().unwrap_or_default()
}

impl Reloader {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        listeners: Vec<(ListenerConfig, Arc<LiveTls>)>,
        source: Option<ConfigSource>,
        fixed: String,
        looks: Looks,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: shared.clone(),
            certs: shared.config.certs.clone(),
            listeners,
            source,
            fixed,
            looks: Mutex::new(looks),
            tokens_due: AtomicBool::new(false),
        })
    }

    /// Looks until the server stops.
    pub(crate) async fn run(self: Arc<Self>) {
        let stop = self.shared.stop.clone();
        let looking = async {
            loop {
                tokio::time::sleep(LOOK).await;
                self.look().await;
            }
        };
        stop.run_until_cancelled(looking).await;
    }

    async fn look(self: &Arc<Self>) {
        let this = self.clone();
        // A folder on a network may answer late, so not on the runtime.
        let looking = tokio::task::spawn_blocking(move || {
            let mut looks = this.lock();
            let certificates = looks.certificates.look();
            let certificates = certificates.then(|| this.read_certificates(&mut looks));
            let config = looks.config.look();
            (certificates, config.then(|| this.read_rules(&mut looks)))
        });
        match looking.await {
            Ok((certificates, rules)) => {
                // What is not good is reported, and that is all.
                if let Some(read) = certificates {
                    let _ = self.report(ReloadLabel::Certificates, read).await;
                }
                if let Some(read) = rules {
                    let _ = self.report(ReloadLabel::Rules, read).await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot look for changes of certificates and configuration");
            }
        }
        self.end_tokens().await;
    }

    /// Reads all of it now, whether it has changed or not.
    pub(crate) async fn reload(self: &Arc<Self>) -> Reloaded {
        let this = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut looks = this.lock();
            let certificates = this.read_certificates(&mut looks);
            (certificates, this.read_rules(&mut looks))
        });
        let failed = |error: &dyn fmt::Display| Err(ReloadError::Failed(error.to_string()));
        let (certificates, rules) = reading
            .await
            .unwrap_or_else(|error| (failed(&error), failed(&error)));
        let reloaded = Reloaded {
            certificates: self.report(ReloadLabel::Certificates, certificates).await,
            rules: self.report(ReloadLabel::Rules, rules).await,
        };
        self.end_tokens().await;
        reloaded
    }

    fn lock(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn report(
        &self,
        what: ReloadLabel,
        result: Result<(), ReloadError>,
    ) -> Result<(), ReloadError> {
        self.shared.metrics.reload(what, result.is_ok());
        let text = result.as_ref().map_err(ToString::to_string);
        if let Err(error) = &text {
            tracing::error!("what was there before holds on: {error}");
        }
        let text = text.as_ref().map(|_| ()).map_err(String::as_str);
        self.shared.audit.reloaded(what.text(), text).await;
        result
    }

    fn read_certificates(&self, looks: &mut Looks) -> Result<(), ReloadError> {
        let Some(dir) = self.certs.as_ref().filter(|_| !self.listeners.is_empty()) else {
            return Ok(());
        };
        looks.certificates.reading();
        let files = TlsFiles::read(dir)?;
        files.check_dates()?;
        let dates = files.dates()?;
        files.check_lists(&looks.lists)?;
        let made: Result<Vec<_>, _> = self
            .listeners
            .iter()
            .map(|(config, _)| Tls::new(&files, config))
            .collect();
        let made = made?;
        let verifier = made.iter().find_map(|tls| tls.verifier.clone());
        for ((_, live), tls) in self.listeners.iter().zip(made) {
            live.replace(tls);
        }
        looks.lists = files.lists();
        self.shared.certificates.set(dates);
        // Ordering: behind the listeners. Who comes in by the TLS before is found by this, or looks itself.
        self.shared.access.set_verifier(verifier.map(Verifier));
        self.tokens_due.store(true, Ordering::Relaxed);
        tracing::info!(
            expires = %date(dates.own.until),
            "the certificates were read anew"
        );
        Ok(())
    }

    fn read_rules(&self, looks: &mut Looks) -> Result<(), ReloadError> {
        let Some(source) = &self.source else {
            return Ok(());
        };
        looks.config.reading();
        let config = (source.read)()?;
        if fixed(&config) != self.fixed {
            tracing::warn!(
                "the configuration differs in more than access rules, roles and quotas: the rest holds from the next start on"
            );
        }
        let rules = config.rules.len();
        let configured = Configured::of(&config);
        self.shared.set_configured(configured)?;
        tracing::info!(
            rules,
            "access rules, roles and quotas of the configuration were read anew"
        );
        Ok(())
    }

    /// Tokens that were minted with a certificate which is not good any more are removed; tried until it is done.
    async fn end_tokens(&self) {
        if !self.tokens_due.swap(false, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.shared.end_tokens_of_ended_certificates().await {
            self.tokens_due.store(true, Ordering::Relaxed);
            tracing::error!(%error, "cannot remove the tokens of revoked certificates; trying again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_when_they_have_changed_and_rest() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        std::fs::write(&one, "1").unwrap();
        let mut files = Files::new(vec![one.clone(), two.clone()]);
        assert!(!files.look(), "nothing has changed");
        std::fs::write(&two, "2").unwrap();
        assert!(!files.look(), "it may change further");
        assert!(files.look());
        files.reading();
        assert!(!files.look(), "it was read");
        // Of the same size, with the same date.
        let next = dir.path().join("next");
        std::fs::write(&next, "3").unwrap();
        let date = std::fs::metadata(&one).unwrap().modified().unwrap();
        let file = std::fs::File::options().write(true).open(&next).unwrap();
        file.set_modified(date).unwrap();
        std::fs::rename(&next, &one).unwrap();
        assert!(!files.look());
        assert!(files.look());
        std::fs::remove_file(&one).unwrap();
        assert!(!files.look());
        assert!(files.look(), "a file that is gone is a change");
    }
}

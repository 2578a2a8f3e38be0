//! TLS of all listeners, as it is read at the start.

use std::path::Path;
use std::sync::Arc;

use storage_certs::CredentialPaths;

use super::StartError;
use crate::config::{ListenerConfig, ServerConfig, TlsMode};
use crate::logging::warn_if_open_to_others;
use crate::net::revocation::ListsInUse;
use crate::net::tls::{CRL, Dates, LiveTls, Tls, TlsError, TlsFiles};
use crate::reload::{ConfigSource, Looks};

/// TLS of all listeners.
pub(super) struct LoadedTls {
    /// `None`: no listener has TLS.
    pub(super) dates: Option<Dates>,
    /// The revocation lists in it.
    pub(super) lists: ListsInUse,
    /// In the order of the configuration; `None`: without TLS.
    pub(super) listeners: Vec<Option<Arc<LiveTls>>>,
}

/// Files may be where it takes long to read them, so not on the runtime.
pub(super) async fn load_tls(
    config: &ServerConfig,
    source: Option<ConfigSource>,
) -> Result<(LoadedTls, Looks), StartError> {
    let config = config.clone();
    let loading = tokio::task::spawn_blocking(move || {
        let mut looks = Looks::new(&config, source.as_ref());
        let tls = read_tls(&config)?;
        looks.lists = tls.lists.clone();
        Ok::<_, TlsError>((tls, looks))
    });
    let loaded = loading.await;
    let loaded = loaded.map_err(|error| StartError::Failed(error.to_string()))?;
    Ok(loaded?)
}

pub(super) fn read_tls(config: &ServerConfig) -> Result<LoadedTls, TlsError> {
    let mut with_tls = config
        .listeners
        .iter()
        .filter(|listener| listener.tls != TlsMode::Off);
    let files = match (&config.certs, with_tls.next()) {
        (_, None) => None,
        (Some(dir), Some(_)) => Some(TlsFiles::read(dir)?),
        (None, Some(listener)) => {
            return Err(TlsError::NoCertificates {
                address: listener.address,
            });
        }
    };
    let load = |listener: &ListenerConfig| match (&files, listener.tls) {
        (None, _) | (_, TlsMode::Off) => Ok(None),
        (Some(files), _) => Tls::new(files, listener).map(|tls| Some(LiveTls::new(tls))),
    };
    let listeners = config
        .listeners
        .iter()
        .map(load)
        .collect::<Result<_, _>>()?;
    let dates = files.as_ref().map(TlsFiles::dates).transpose()?;
    let lists = files.as_ref().map(TlsFiles::lists).unwrap_or_default();
    if let Some(dir) = &config.certs {
        tell_about_files(dir, &config.listeners);
    }
    Ok(LoadedTls {
        dates,
        lists,
        listeners,
    })
}

fn tell_about_files(dir: &Path, listeners: &[ListenerConfig]) {
    let has = |mode: fn(TlsMode) -> bool| listeners.iter().any(|listener| mode(listener.tls));
    if has(|mode| mode != TlsMode::Off) {
        let key = CredentialPaths::in_dir(dir.join("server")).key;
        warn_if_open_to_others(&key, "the server's key");
    }
    let lists = dir.join(CRL);
    if has(|mode| mode == TlsMode::Mutual) && !lists.exists() {
        tracing::info!(
            "there is no {}: no client certificate counts as revoked",
            lists.display()
        );
    }
}

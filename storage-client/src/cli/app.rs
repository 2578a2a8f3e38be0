//! What every sub-command has: the program's options, the connection they lead to, and the signal to stop.
//!
//! The connection is made when a sub-command first asks for it, behind all checks of its arguments. What is wrong
//! with the options is found here, apart from what is wrong with the way to the server: their exit codes differ.

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{ArgAction, Args};
use storage_protocol::Outcome;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::failure::{Interrupted, usage};
use super::text::Form;
use crate::endpoint::Endpoint;
use crate::{ConnectOptions, RemoteStorage, SavedSession, tls};

/// Options of the program, before or behind the sub-command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection and form")]
pub(super) struct Globals {
    /// Keyspace: wss://HOST:PORT/storage/KEYSPACE; several servers that have it: URL,URL
    #[arg(long, value_name = "URL", env = "STORAGE_URL", global = true)]
    url: Option<String>,
    /// Folder of certificates: DIR/NAME/{ca,cert,key}.pem
    #[arg(long, value_name = "DIR", env = "STORAGE_CERTS", global = true)]
    certs: Option<PathBuf>,
    /// Whose certificate to present
    #[arg(long, value_name = "NAME", env = "STORAGE_IDENTITY", global = true)]
    identity: Option<String>,
    /// Present no certificate, and trust servers that FILE vouches for (for listeners with tls = "server")
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// Allow ws:// URLs: nothing is encrypted, and nobody knows who the other side is
    #[arg(long, global = true)]
    danger_plaintext: bool,
    /// How long to wait for the connection, and for each answer, such as 500ms or 1m [default: 10s and 30s]
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration, global = true)]
    timeout: Option<Duration>,
    /// End when there was no connection for so long [default: never; calls wait for it up to their --timeout]
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration, global = true)]
    give_up_after: Option<Duration>,
    /// Print JSON for machines, one object per line
    #[arg(long, action = ArgAction::SetTrue, global = true)]
    json: bool,
    /// Keys and values on the command line and in text output are hexadecimal
    #[arg(long, action = ArgAction::SetTrue, global = true)]
    hex: bool,
}

/// See the module. Clones share all of it.
#[derive(Clone)]
pub(super) struct App {
    globals: Arc<Globals>,
    storage: Arc<OnceLock<RemoteStorage>>,
    /// Set by the task that listens to signals.
    pub(super) interrupt: CancellationToken,
    /// That task; ended by [`App::close`].
    signals: Arc<OnceLock<AbortHandle>>,
    /// Set while a commit is on its way: an interruption leaves its outcome unknown.
    writes: Arc<AtomicBool>,
    keeps_session: Arc<AtomicBool>,
}

impl App {
    pub(super) fn new(globals: Globals) -> Self {
        Self {
            globals: Arc::new(globals),
            storage: Arc::default(),
            interrupt: CancellationToken::new(),
            signals: Arc::default(),
            writes: Arc::default(),
            keeps_session: Arc::default(),
        }
    }

    /// Whether to print for machines.
    pub(super) fn json(&self) -> bool {
        self.globals.json
    }

    /// How keys and values are written.
    pub(super) fn form(&self) -> Form {
        Form {
            hex: self.globals.hex,
        }
    }

    /// How long one answer may take.
    pub(super) fn timeout(&self) -> Duration {
        self.globals.timeout.unwrap_or(Duration::from_secs(30))
    }

    /// Connects; called once per run. From here on a signal ends the run in order; before, where an argument may be
    /// read from stdin, it has its usual effect.
    pub(super) async fn connect(&self) -> anyhow::Result<RemoteStorage> {
        self.connect_as(None).await
    }

    /// The same, with the session of an earlier run.
    pub(super) async fn connect_as(
        &self,
        saved: Option<SavedSession>,
    ) -> anyhow::Result<RemoteStorage> {
        let mut options = self.globals.connect_options()?;
        if let Some(saved) = saved {
            options = options.resume_session(saved);
        }
        self.listen_to_signals();
        let storage = RemoteStorage::connect(options).await?;
        Ok(self.storage.get_or_init(|| storage).clone())
    }

    /// The keyspace that the URL names.
    pub(super) fn keyspace(&self) -> anyhow::Result<String> {
        let options = self.globals.connect_options()?;
        let url = options.urls.first().map_or("", String::as_str);
        let endpoint =
            Endpoint::new(url, true).map_err(|what| usage(format!("--url {url}: {what}")))?;
        Ok(endpoint.keyspace.as_str().to_owned())
    }

    /// Says that a commit is about to be sent.
    pub(super) fn writing(&self) {
        self.writes.store(true, Ordering::Relaxed);
    }

    /// Says that its answer is here.
    pub(super) fn written(&self) {
        self.writes.store(false, Ordering::Relaxed);
    }

    /// Does `work`, or fails when a signal comes first.
    pub(super) async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.interrupt.cancelled() => {
                let outcome = match self.writes.load(Ordering::Relaxed) {
                    true => Outcome::Unknown,
                    false => Outcome::NotExecuted,
                };
                Err(Interrupted { outcome }.into())
            }
        }
    }

    /// Whether the session is to stay when the connection is closed.
    pub(super) fn keep_session(&self, keep: bool) {
        self.keeps_session.store(keep, Ordering::Relaxed);
    }

    /// Closes the connection, if there is one.
    pub(super) async fn close(&self) {
        if let Some(storage) = self.storage.get() {
            match self.keeps_session.load(Ordering::Relaxed) {
                true => storage.leave().await,
                false => storage.close().await,
            }
        }
        if let Some(signals) = self.signals.get() {
            signals.abort();
        }
    }

    /// Cancels [`App::interrupt`] at Ctrl-C or SIGTERM. Where signals cannot be listened to, they keep their effect.
    fn listen_to_signals(&self) {
        let interrupt = self.interrupt.clone();
        if let Ok(signalled) = signalled() {
            let task = tokio::spawn(async move {
                signalled.await;
                interrupt.cancel();
            });
            self.signals.get_or_init(|| task.abort_handle());
        }
    }
}

/// Listens from the call on, not only from the first poll.
#[cfg(unix)]
fn signalled() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(windows)]
fn signalled() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = tokio::signal::windows::ctrl_c()?;
    Ok(async move {
        interrupt.recv().await;
    })
}

impl Globals {
    /// Judges the options, files included, so that what still fails later lies with the way or the server.
    fn connect_options(&self) -> anyhow::Result<ConnectOptions> {
        let url = self.url.as_deref().ok_or_else(|| {
            usage("which keyspace? Give --url wss://HOST:PORT/storage/KEYSPACE, or set STORAGE_URL")
        })?;
        let mut urls = url.split(',');
        let first = urls.next().unwrap_or_default();
        let mut options =
            ConnectOptions::new(first).agent(concat!("storage/", env!("CARGO_PKG_VERSION")));
        options = urls.fold(options, ConnectOptions::also);
        if self.danger_plaintext {
            options = options.danger_plaintext();
        }
        if let Some(timeout) = self.timeout {
            options = options.connect_timeout(timeout).request_timeout(timeout);
        }
        if let Some(duration) = self.give_up_after {
            options = options.give_up_after(duration);
        }
        let mut tls = false;
        for url in url.split(',') {
            if url.starts_with("ws://") && !self.danger_plaintext {
                return Err(usage(format!(
                    "{url} is not encrypted; use wss://, or allow it with --danger-plaintext"
                )));
            }
            let endpoint = Endpoint::new(url, self.danger_plaintext)
                .map_err(|what| usage(format!("--url {url}: {what}")))?;
            tls |= endpoint.tls;
        }
        if !tls {
            return Ok(options);
        }
        options = self.with_credentials(options)?;
        if let Some(credentials) = &options.credentials {
            tls::client_config(credentials, options.tls_min_version)
                .map_err(|what| usage(format!("the certificates: {what}")))?;
        }
        Ok(options)
    }

    fn with_credentials(&self, options: ConnectOptions) -> anyhow::Result<ConnectOptions> {
        match (&self.ca, &self.certs, &self.identity) {
            (Some(ca), _, None) => Ok(options.without_client_certificate(ca)),
            (Some(_), _, Some(name)) => Err(usage(format!(
                "--ca is for no certificate at all, and --identity (or STORAGE_IDENTITY) is {name:?}: which of the two?"
            ))),
            (None, Some(certs), Some(name)) => {
                let mut components = Path::new(name).components();
                let plain = matches!(
                    (components.next(), components.next()),
                    (Some(Component::Normal(_)), None)
                );
                if !plain {
                    return Err(usage(format!(
                        "--identity {name:?} is no name of a folder in {}",
                        certs.display()
                    )));
                }
                Ok(options.credentials_dir(certs.join(name)))
            }
            (None, None, _) => Err(usage(
                "which certificates? Give --certs DIR and --identity NAME, or set STORAGE_CERTS and STORAGE_IDENTITY",
            )),
            (None, Some(_), None) => Err(usage(
                "whose certificate? Give --identity NAME, or set STORAGE_IDENTITY",
            )),
        }
    }
}

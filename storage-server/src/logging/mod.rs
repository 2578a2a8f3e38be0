//! Where log lines go: standard error, and daily files if asked for.
//!
//! Standard output is not for the log: its first lines tell where the server listens. Nobody who logs waits for either
//! (see [`queue`]), and no peer can fill them (see [`filter`]).

mod filter;
mod queue;

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, LazyLock, OnceLock, mpsc};
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::{ConfigError, LogConfig, LogFormat};
use filter::{Kinds, Lined};
use queue::{Lines, Queue};

/// How long the end of the process waits for lines that nobody takes.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is said what was left out.
const REPORT: Duration = Duration::from_secs(10);

static KINDS: LazyLock<Kinds> = LazyLock::new(Kinds::default);
/// Standard error first. Set once, by [`start`].
static QUEUES: OnceLock<Vec<Arc<Queue>>> = OnceLock::new();

/// What is missing in the log of this process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogCounts {
    /// Could not be written in time.
    pub(crate) dropped: u64,
    /// One of too many of their kind.
    pub(crate) suppressed: u64,
}

pub(crate) fn counts() -> LogCounts {
    LogCounts {
        dropped: QUEUES
            .get()
            .into_iter()
            .flatten()
            .map(|queue| queue.dropped())
            .sum(),
        suppressed: KINDS.suppressed(),
    }
}

/// Writes what is still queued when it is dropped, if that is taken within a second.
#[derive(Debug)]
#[must_use = "dropping it says that the process ends"]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        flush();
    }
}

/// Writes what is queued, if that is taken within a second. Blocks.
pub fn flush() {
    for queue in QUEUES.get().into_iter().flatten() {
        queue.flush(FLUSH_PATIENCE);
    }
}

/// Writes a text to standard error past the log, if that is taken within a second: what a user of a terminal is told
/// at the end of the process. Blocks.
pub fn say(text: &str) {
    let text = text.to_owned();
    in_time(move || {
        let _ = io::stderr().lock().write_all(text.as_bytes());
    });
}

/// Writes a text to standard output, if that is taken within a second; else when it is. Blocks for as long.
pub fn print(text: &str) {
    let text = text.to_owned();
    in_time(move || {
        let mut out = io::stdout().lock();
        // Whoever closed our standard output does not want to know.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    });
}

fn in_time(write: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let writer = std::thread::Builder::new().name("output".to_owned());
    let started = writer.spawn(move || {
        write();
        let _ = done.send(());
    });
    if started.is_ok() {
        let _ = is_done.recv_timeout(FLUSH_PATIENCE);
    }
}

/// Starts the log of this process.
///
/// # Errors
/// The folder cannot be used, the filter cannot be read, or a log was started before.
pub fn start(config: &LogConfig) -> Result<LogGuard, ConfigError> {
    let directives = EnvFilter::try_new(&config.filter).map_err(|error| {
        ConfigError::value(
            "log.filter",
            format!("{:?}", config.filter),
            error.to_string(),
        )
    })?;
    let no_thread = |error: io::Error| ConfigError::value("log", "(started)", error.to_string());
    let stderr = Queue::start("standard error", io::stderr(), REPORT, || KINDS.report());
    let mut queues = vec![stderr.map_err(no_thread)?];
    if let Some(dir) = &config.dir {
        let unusable = |error: &dyn std::fmt::Display| {
            ConfigError::value("log.dir", dir.display(), error.to_string())
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| unusable(&error))?;
        let files = tracing_appender::rolling::Builder::new()
            .rotation(tracing_appender::rolling::Rotation::DAILY)
            .filename_prefix("storage-server")
            .filename_suffix("log")
            .max_log_files(config.keep)
            .build(dir)
            .map_err(|error| unusable(&error))?;
        queues.push(Queue::start("log.dir", files, REPORT, || ()).map_err(no_thread)?);
    }
    let layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = queues
        .iter()
        .map(|queue| {
            let lines = fmt::layer()
                .with_writer(Lines(queue.clone()))
                .with_ansi(false);
            match config.format {
                LogFormat::Text => lines.boxed(),
                LogFormat::Json => lines.json().boxed(),
            }
        })
        .collect();
    let filter = Lined {
        directives,
        kinds: &KINDS,
    };
    Registry::default()
        .with(layers.with_filter(filter))
        .try_init()
        .map_err(|error| ConfigError::value("log", "(started)", error.to_string()))?;
    let _ = QUEUES.set(queues);
    std::panic::set_hook(Box::new(log_panic));
    if let Some(dir) = &config.dir {
        warn_if_open_to_others(dir, "the folder of the log");
    }
    Ok(LogGuard(()))
}

/// Instead of a print to standard error, for which a task of the runtime would wait.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let text = panic.payload_as_str().unwrap_or("(no text)");
    let place = panic
        .location()
        .map(ToString::to_string)
        .unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(thread, place, %backtrace, "panic: {text}");
}

/// Warns of a file or folder that others on this machine may read or change.
pub(crate) fn warn_if_open_to_others(path: &Path, what: &str) {
    let Ok(metadata) = std::fs::metadata(path) else {
        return;
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let good = mode & 0o700;
        tracing::warn!(
            "{what}, {}, has mode {mode:03o}: others on this machine have access to it; chmod {good:03o} ends that",
            path.display()
        );
    }
}

//! Where log lines go: standard error, and daily files if asked for.
//!
//! Standard output is not for the log: its first lines tell where the server listens.

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::{ConfigError, LogConfig, LogFormat};

/// Writes what is still queued for the file when it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the log file"]
pub struct LogGuard(#[expect(dead_code, reason = "kept for its drop")] Option<WorkerGuard>);

/// Starts the log of this process.
///
/// # Errors
/// The folder cannot be used, the filter cannot be read, or a log was started before.
pub fn start(config: &LogConfig) -> Result<LogGuard, ConfigError> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| {
        ConfigError::value(
            "log.filter",
            format!("{:?}", config.filter),
            error.to_string(),
        )
    })?;
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();
    let stderr = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    layers.push(match config.format {
        LogFormat::Text => stderr.boxed(),
        LogFormat::Json => stderr.json().boxed(),
    });
    let mut guard = None;
    if let Some(dir) = &config.dir {
        let files = tracing_appender::rolling::Builder::new()
            .rotation(tracing_appender::rolling::Rotation::DAILY)
            .filename_prefix("storage-server")
            .filename_suffix("log")
            .build(dir)
            .map_err(|error| ConfigError::value("log.dir", dir.display(), error.to_string()))?;
        let (writer, worker) = tracing_appender::non_blocking(files);
        guard = Some(worker);
        let file = fmt::layer().with_writer(writer).with_ansi(false);
        layers.push(match config.format {
            LogFormat::Text => file.boxed(),
            LogFormat::Json => file.json().boxed(),
        });
    }
    Registry::default()
        .with(layers.with_filter(filter))
        .try_init()
        .map_err(|error| ConfigError::value("log", "(started)", error.to_string()))?;
    Ok(LogGuard(guard))
}

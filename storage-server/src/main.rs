//! The binary: parse, run, exit code. All else is in the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use storage_server::cli::{Cli, Command, ConfigCommand, Settings};
use storage_server::config::{ConfigError, ServerConfig};
use storage_server::{Server, logging};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Failed to start or to run.
const FAILED: u8 = 1;
/// Wrong usage or configuration; also what clap exits with.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(settings) => configured(&settings, serve),
        Command::Config(ConfigCommand::Check(settings)) => {
            configured(&settings, |_| print("the configuration is good\n"))
        }
        Command::Config(ConfigCommand::Print(settings)) => {
            configured(&settings, |config| match config.to_toml() {
                Ok(text) => print(&text),
                Err(error) => fail(USAGE, &error),
            })
        }
    }
}

fn configured(settings: &Settings, run: impl FnOnce(ServerConfig) -> ExitCode) -> ExitCode {
    match settings.resolve() {
        Ok(config) => run(config),
        Err(error) => fail(USAGE, &error),
    }
}

fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("storage-server: {error}");
    ExitCode::from(code)
}

fn serve(config: ServerConfig) -> ExitCode {
    let _guard = match logging::start(&config.log) {
        Ok(guard) => guard,
        Err(error @ ConfigError::Value { .. }) => return fail(USAGE, &error),
        Err(error) => return fail(FAILED, &error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format!("cannot start the runtime: {error}")),
    };
    runtime.block_on(run(config))
}

async fn run(config: ServerConfig) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(FAILED, &format!("cannot listen for signals: {error}")),
    };
    let server = tokio::select! {
        started = Server::start(config) => match started {
            Ok(server) => server,
            Err(error) => return fail(FAILED, &error),
        },
        // Opening a store can take long; nothing was promised to anyone yet.
        () = signals.next() => return fail(FAILED, &"stopped while starting"),
    };
    let lines: String = server
        .addresses()
        .iter()
        .map(|address| format!("listening {address}\n"))
        .collect();
    // Whoever closed our standard output does not want to know.
    let _ = print(&lines);
    signals.next().await;
    tracing::info!("shutting down; a second signal ends at once");
    tokio::select! {
        report = server.shutdown() => {
            if report.is_clean() {
                tracing::info!(%report, "stopped");
                return ExitCode::SUCCESS;
            }
            tracing::warn!(%report, "stopped, not in order");
            if report.engine_closed { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        () = signals.next() => end_at_once(),
    }
}

/// Without waiting for the engine's threads, as returning from `main` would.
#[expect(clippy::exit, reason = "the second signal asks for exactly this")]
fn end_at_once() -> ExitCode {
    tracing::warn!("ended at once by a second signal");
    std::process::exit(i32::from(FAILED))
}

/// SIGTERM and Ctrl-C, from the first moment on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

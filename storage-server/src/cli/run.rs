//! From the command line to the exit code: `main` of the binary, and of those that add gateways.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Cli, Command, ConfigCommand, Serve, Settings};
use crate::blocking;
use crate::config::{ConfigError, ServerConfig};
use crate::gateway::{self, Gateway};
use crate::net::descriptors::raise_limit;
use crate::{Server, ServerBuilder, ShutdownReport, StartError, logging};

/// Failed to start or to run.
const FAILED: u8 = 1;
/// Wrong usage or configuration; also what clap exits with.
const USAGE: u8 = 2;

/// For threads of the runtime that are stuck when all is over.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(5);

/// What the binary `storage-server` does, with these gateways besides those that every server has. Reads the command line,
/// serves until a signal, and logs to standard error; a process calls it once.
#[must_use]
pub fn main(gateways: Vec<Arc<dyn Gateway>>) -> ExitCode {
    let cli = match Cli::from_command_line() {
        Ok(cli) => cli,
        Err(error) => return fail(USAGE, &error),
    };
    let all = [gateway::built_in(), gateways.clone()].concat();
    let known = gateway::names(&all);
    let configured = |settings: &Settings, run: &dyn Fn(ServerConfig) -> ExitCode| {
        let resolved = settings.resolve(&known);
        resolved.map_or_else(|error| fail(USAGE, &error), run)
    };
    match &cli.command {
        Command::Serve(Serve {
            settings,
            grant_admin,
            demo,
        }) => configured(settings, &|config| {
            let mut builder = gateways
                .iter()
                .fold(Server::builder(config.clone()), |builder, gateway| {
                    builder.gateway(gateway.clone())
                });
            if let Some(principal) = grant_admin {
                builder = builder.grant_admin(principal.clone());
            }
            if *demo {
                builder = builder.demo();
            }
            let (settings, known) = (settings.clone(), known.clone());
            let file = settings.config.clone();
            let builder = builder.config_source(file, move || settings.resolve(&known));
            serve(&config, builder)
        }),
        Command::Config(ConfigCommand::Check(settings)) => configured(settings, &check),
        Command::Config(ConfigCommand::Print(settings)) => {
            configured(settings, &|config| match config.to_toml() {
                Ok(text) => print(&text),
                Err(error) => fail(USAGE, &error),
            })
        }
    }
}

/// The certificates are looked at too: a configuration that names none is of no use.
fn check(config: ServerConfig) -> ExitCode {
    match Server::check(&config) {
        Ok(()) => {
            warn(&Server::warnings(&config));
            print("the configuration is good\n")
        }
        Err(error) => fail(USAGE, &error),
    }
}

/// What is allowed and can hardly be meant. A role that a rule lacks may be a stored one.
fn warn(warnings: &[String]) {
    for warning in warnings {
        logging::say(&format!("storage-server: warning: {warning}\n"));
    }
    if !warnings.is_empty() {
        logging::say("storage-server: rules and roles that are stored are not looked at\n");
    }
}

fn print(text: &str) -> ExitCode {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    logging::flush();
    logging::say(&format!("storage-server: {error}\n"));
    ExitCode::from(code)
}

fn serve(config: &ServerConfig, builder: ServerBuilder) -> ExitCode {
    // What the server makes, its log and its store, is for nobody else to read.
    umask(Mode::RWXG | Mode::RWXO);
    let guard = match logging::start(&config.log) {
        Ok(guard) => guard,
        Err(error @ ConfigError::Value { .. }) => return fail(USAGE, &error),
        Err(error) => return fail(FAILED, &error),
    };
    raise_limit();
    let readers = match blocking::give_way() {
        Ok(readers) => readers,
        Err(error) => {
            return fail(
                FAILED,
                &format!("cannot start the threads that read: {error}"),
            );
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format!("cannot start the runtime: {error}")),
    };
    let code = runtime.block_on(run(builder));
    runtime.shutdown_timeout(RUNTIME_PATIENCE);
    readers.shutdown_timeout(RUNTIME_PATIENCE);
    drop(guard);
    code
}

async fn run(builder: ServerBuilder) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(FAILED, &format!("cannot listen for signals: {error}")),
    };
    let stop = CancellationToken::new();
    let mut starting = Box::pin(builder.stop(stop.clone()).start());
    let started = tokio::select! {
        started = &mut starting => started,
        () = signals.end() => {
            // A store that is being recovered is recovered and closed, or the next start would have to do it again.
            tracing::info!("stopping as soon as the start is through; a second signal ends at once");
            stop.cancel();
            tokio::select! {
                started = &mut starting => started,
                () = signals.end() => end_at_once(),
            }
        }
    };
    let server = match started {
        Ok(server) => server,
        Err(error @ StartError::Stopped) => {
            tracing::info!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(FAILED, &error),
    };
    if !stop.is_cancelled() {
        let lines: String = server
            .addresses()
            .iter()
            .map(|address| format!("listening {address}\n"))
            .collect();
        // Whoever does not read them does not hold up the server.
        tokio::task::spawn_blocking(move || logging::print(&lines));
        while let Asked::Reload = signals.next().await {
            tracing::info!("SIGHUP: reading certificates and access rules anew");
            // What came of it is in the log.
            tokio::select! {
                _ = server.reload() => {}
                () = signals.end() => break,
            }
        }
        tracing::info!("shutting down; a second signal ends at once");
    }
    tokio::select! {
        report = server.shutdown() => code_of(&report),
        () = signals.end() => end_at_once(),
    }
}

fn code_of(report: &ShutdownReport) -> ExitCode {
    if report.is_clean() {
        tracing::info!(%report, "stopped");
        return ExitCode::SUCCESS;
    }
    tracing::warn!(%report, "stopped, not in order");
    if report.engine_closed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    }
}

/// Without waiting for the engine's threads, as returning from `main` would.
#[expect(clippy::exit, reason = "the second signal asks for exactly this")]
fn end_at_once() -> ! {
    tracing::warn!("ended at once by a second signal");
    logging::flush();
    std::process::exit(i32::from(FAILED))
}

/// What a signal asks for.
enum Asked {
    End,
    /// To read certificates and access rules anew.
    Reload,
}

/// SIGTERM and Ctrl-C, from the first moment on, and SIGHUP.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }

    /// The next one that asks for the end: while the server starts or ends, nothing is read anew.
    async fn end(&mut self) {
        while let Asked::Reload = self.next().await {
            tracing::info!("SIGHUP: nothing is read anew while the server starts or ends");
        }
    }
}

//! Measures this server beside its peers, and parts of it alone: see [`run`] and [`parts`].
//!
//! Servers and load share this machine, so figures are for comparing cells of one run, not for quoting. Run it by
//! `scripts/bench`, which builds the shipped profile first.

mod client;
mod compare;
mod docs;
mod fanout;
mod goals;
mod keys;
mod load;
mod parts;
mod plan;
mod plots;
mod process;
mod report;
mod run;
mod special;
mod stats;
mod systems;
mod tls;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

// As the server has it, so that the ceilings have it too.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures the server, beside its peers or alone.
#[derive(Debug, Parser)]
#[command(name = "storage-bench", version)]
enum Command {
    /// Measures the same work on this server and its peers, in turn.
    Compare(Box<compare::Options>),
    /// Measures parts of the server alone; all of them by default.
    Part {
        /// Their names.
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(parts::ALL))]
        names: Vec<String>,
        /// How long the part `memory` keeps its load up. Default 5.
        #[arg(long)]
        minutes: Option<u64>,
    },
    /// Writes performance.md, and its plots, from the results of a run.
    Docs {
        /// The file results.json of the run.
        results: PathBuf,
        /// The folder to write to.
        #[arg(default_value = "docs")]
        folder: PathBuf,
    },
    /// The echo server.
    #[command(hide = true)]
    Echo {
        /// The folder of its credentials.
        credentials: PathBuf,
    },
    /// RocksDB alone; takes orders from its input.
    #[command(hide = true)]
    Raw {
        /// Where its data are.
        folder: PathBuf,
        /// Bytes of its cache and memtables.
        #[arg(long)]
        memory: u64,
        /// Whether writes are synced.
        #[arg(long)]
        sync: bool,
    },
}

fn main() -> ExitCode {
    match obey(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storage-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(command: Command) -> Result<()> {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build()
    };
    // For clients that ask for the process's own.
    let provider = rustls::crypto::ring::default_provider();
    provider
        .install_default()
        .ok()
        .context("there is a provider")?;
    match command {
        Command::Compare(options) => runtime()?.block_on(async {
            // Everything that was started ends with the future.
            tokio::select! {
                done = compare::compare(*options) => done,
                signal = ended() => signal,
            }
        }),
        Command::Part { names, minutes } => {
            runtime()?.block_on(parts::run(&names, minutes));
            Ok(())
        }
        Command::Docs { results, folder } => docs::write(&results, &folder),
        Command::Echo { credentials } => runtime()?.block_on(systems::echo::serve(&credentials)),
        Command::Raw {
            folder,
            memory,
            sync,
        } => systems::raw::serve(&folder, sync, memory),
    }
}

/// Waits for a signal that asks for the end.
async fn ended() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ctrl_c = tokio::signal::ctrl_c() => ctrl_c?,
        _ = terminate.recv() => {}
    }
    anyhow::bail!("ended by a signal")
}

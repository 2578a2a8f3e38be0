//! Measures the server: see [`parts`].
//!
//! Server and client share this machine, so rates are for comparing cells of one run, not for quoting. Run it by
//! `scripts/bench`, which builds the shipped profile first.

mod parts;

use clap::Parser;

/// Measures the server.
#[derive(Debug, Parser)]
#[command(name = "storage-bench", version)]
enum Command {
    /// Measures parts of the server alone; all of them by default.
    Part {
        /// Their names.
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(parts::ALL))]
        names: Vec<String>,
    },
}

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match Command::parse() {
        Command::Part { names } => runtime.block_on(parts::run(&names)),
    }
    Ok(())
}

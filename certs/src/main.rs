//! The `storage-certs` command: parses, runs, reports, maps errors to exit codes.
//! Everything it does is in the library's `cli` module.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use storage_certs::cli::{self, Cli};

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(report) => {
            // A closed pipe must not turn finished work into a failure.
            let _ = std::io::stdout().write_all(report.text.as_bytes());
            ExitCode::from(report.exit_code)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(cli::exit_code(&error))
        }
    }
}

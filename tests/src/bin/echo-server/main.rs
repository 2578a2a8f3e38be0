//! `storage-server` with one gateway more: see [`echo`].

mod echo;

use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    storage_server::cli::main(vec![Arc::<echo::Echo>::default()])
}

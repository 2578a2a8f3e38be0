//! The `storage` command: a keyspace of a server from the command line.
//! Everything it does is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    storage_cli::main()
}

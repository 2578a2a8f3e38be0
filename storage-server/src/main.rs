//! The binary: the allocator, and all else from the library.

use std::process::ExitCode;

/// Gives memory that was freed back to the system, glibc's keeps most of it: see *Memory* in `docs/operations.md`.
#[cfg(all(target_os = "linux", feature = "jemalloc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    storage_server::cli::main(Vec::new())
}

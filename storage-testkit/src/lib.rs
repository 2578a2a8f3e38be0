//! What tests of all crates share: the executable model of the contract, the conformance suite, real processes, faults and
//! judges.
//!
//! * [`model`]: `Storage` in a `BTreeMap`, the specification one can run.
//! * [`power`]: what a power cut would leave of a server's files.
//! * [`data_folder`]: copies of data folders, and changed marks.
//! * [`conformance`]: one suite of promises, run against every implementation, with the differences as a table.
//! * [`harness`], [`served`], [`raw`]: real processes, a server with all that a test of it needs, and peers seen frame by
//!   frame.
//! * [`entrance`]: a server that lets in by certificate, token or password.
//! * [`workload`]: concurrent clients under faults, of which [`fault_proxy`] makes those of the network.
//! * [`robots`]: robots and their jobs under faults, and what became of them.
//! * [`history`]: what they did and saw, and the judges of it: linearizability, watches, replicas.
//!
//! Nothing here is shipped. The scenarios are in `tests/tests/`.

pub mod conformance;
pub mod crowd;
pub mod data_folder;
pub mod entrance;
pub mod fault_proxy;
pub mod harness;
pub mod history;
pub mod model;
pub mod power;
pub mod raw;
mod remote_fixture;
pub mod robots;
mod rocks_fixture;
pub mod served;
pub mod workload;

pub use remote_fixture::RemoteFixture;
pub use rocks_fixture::RocksFixture;

/// Keeps the README's example compiling.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[expect(missing_debug_implementations, reason = "for rustdoc only")]
pub struct Readme;

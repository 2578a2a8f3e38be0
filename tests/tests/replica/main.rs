//! The local replica: over the model, over the RocksDB engine and over mutual TLS; with faults, and through kills.
//!
//! * `coherence`: at each mark the copy is the state at that mark, whatever happens to the watch.
//! * `proofs`: how old what is read may be, and waiting for a position.
//! * `bounds`: memory, slow consumers, giving up.
//! * `folder`: what a process leaves to the next one.
//! * `command`: `storage replica`.

#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]

mod bounds;
mod coherence;
mod command;
mod folder;
mod proofs;
mod support;

//! The client against a scripted server in the same process: what goes over the wire, and what callers are told.
//!
//! The server side (`fake.rs`) speaks the native dialect with the protocol crate's own codec over loopback; each test
//! is its script. One binary, so that it is linked once.

#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]

mod calls;
mod connecting;
mod endings;
mod fake;
mod hostile;
mod lifecycle;
mod reconnect;
mod scans;
mod watches;

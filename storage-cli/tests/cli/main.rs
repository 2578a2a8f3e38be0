//! The `storage` command as scripts see it: stdout, stderr and exit code of each sub-command.
//!
//! The server is a small one in this process (`fake.rs`) that keeps entries in memory and speaks the native dialect
//! without TLS; faults are asked of it one by one. What goes over HTTP is answered by another (`fake_http.rs`), which says
//! what it is told to. One binary, so that it is linked once.

#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]

mod access;
mod entries;
mod failures;
mod fake;
mod fake_http;
mod files;
mod jobs;
mod logins;
mod objects;
mod refusals;
mod run;
mod sessions;
mod targets;
mod terminal;
mod users;
mod watches;

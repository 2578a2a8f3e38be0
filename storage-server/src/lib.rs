//! The storage-sync server as a library: [`engine`] makes commits durable, gateways speak to peers.
//!
//! [`Server`] opens a store and serves it. The binary `storage-server` is [`cli::main`]; a program that embeds a server
//! uses [`Server::start`] and [`Server::storage`], one that adds a protocol to it implements a [`gateway::Gateway`].

pub mod cli;
pub mod config;
pub mod engine;
pub mod gateway;
pub mod logging;

mod audit;
pub mod auth;
mod blocking;
mod clock;
mod deliveries;
mod feed;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod limits;
mod listener;
mod metrics;
mod net;
mod reload;
mod server;
mod shared;
mod shutdown;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), expect(dead_code, reason = "tests use more of it"))]
#[expect(
    clippy::unwrap_used,
    reason = "what fails is the finding, of a test and of fuzzing"
)]
mod testing;
mod ws;

pub use clock::WallClock;
pub use net::tls::TlsError;
pub use reload::{ReloadError, Reloaded};
pub use server::{ListenerAddress, Server, ServerBuilder, StartError};
pub use shutdown::{PhaseReport, ShutdownReport};

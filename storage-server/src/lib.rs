//! The storage-sync server as a library: [`engine`] makes commits durable, gateways speak to peers.
//!
//! [`Server`] opens a store and serves it. The binary `storage-server` is [`cli`], [`config`], [`logging`] and this;
//! programs that embed a server use [`Server::start`] and [`Server::storage`].

pub mod cli;
pub mod config;
pub mod engine;
pub mod logging;

mod auth;
mod feed;
mod gateway;
mod http;
mod limits;
mod metrics;
mod net;
mod server;
mod shared;
mod shutdown;
#[cfg(test)]
mod testing;
mod ws;

pub use net::descriptors::raise_limit;
pub use net::tls::TlsError;
pub use server::{ListenerAddress, Server, StartError};
pub use shutdown::{PhaseReport, ShutdownReport};

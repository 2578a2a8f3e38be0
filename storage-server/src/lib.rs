//! The storage-sync server as a library: [`engine`] makes commits durable, gateways speak to peers.
//!
//! [`Server`] opens a store and serves it. The binary `storage-server` is [`cli`], [`config`], [`logging`] and this;
//! programs that embed a server use [`Server::start`] and [`Server::storage`].

pub mod cli;
pub mod config;
pub mod engine;
pub mod logging;

mod admission;
mod certificate;
mod descriptors;
mod feed;
mod gateway;
mod http;
mod listener;
mod metrics;
mod server;
mod session;
mod shared;
mod shutdown;
#[cfg(test)]
mod testing;
mod tls;

pub use descriptors::raise_limit;
pub use server::{ListenerAddress, Server, StartError};
pub use shutdown::{PhaseReport, ShutdownReport};
pub use tls::TlsError;

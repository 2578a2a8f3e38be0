//! The way to a server: its URL, TCP, TLS, the WebSocket upgrade, Hello and Welcome. Not here: what is said after Welcome.

mod clock;
mod counted;
mod dial;
mod endpoint;
mod tls;

pub(crate) use clock::ServerClock;
pub(crate) use dial::{DialError, Dialer, Socket};
pub(crate) use endpoint::Endpoint;
pub(crate) use tls::client_config;

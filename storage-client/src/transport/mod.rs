//! The way to a server: its URL, TCP, TLS, the WebSocket upgrade, Hello and Welcome. Not here: what is said after Welcome.

mod clock;
mod dial;
mod endpoint;
mod failure;
mod login;
mod socket;
mod tcp;
mod tls;
mod upgrade;
mod welcome;

pub(crate) use clock::ServerClock;
pub(crate) use dial::Dialer;
pub(crate) use endpoint::Endpoint;
pub(crate) use failure::DialError;
pub(crate) use login::Login;
pub(crate) use socket::Socket;
pub use tls::TlsVersion;
pub(crate) use tls::{Credentials, Tls, client_config, refusal};

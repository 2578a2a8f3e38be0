//! From a TCP connection to an HTTP request: who may connect, and TLS.

pub(crate) mod admission;
pub(crate) mod certificate;
mod connection;
pub(crate) mod descriptors;
pub(crate) mod listener;
pub(crate) mod stream;
pub(crate) mod tls;

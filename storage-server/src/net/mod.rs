//! From a TCP connection to an HTTP request: who may connect, and TLS.

pub(crate) mod admission;
pub(crate) mod certificate;
pub(crate) mod descriptors;
pub(crate) mod listener;
pub(crate) mod tls;

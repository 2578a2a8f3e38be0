//! What comes before a protocol: who may connect, TLS, descriptors.

pub(crate) mod admission;
pub(crate) mod certificate;
pub(crate) mod claimed;
pub(crate) mod descriptors;
pub(crate) mod revocation;
pub(crate) mod stream;
pub(crate) mod tls;

//! The gateways: each speaks one protocol to its peers and only `Storage` to the inside.

pub(crate) mod admin;
pub(crate) mod mwdb;
pub(crate) mod native;

//! Certificates of storage-sync: issuing, renewing, revoking, showing and loading what mutual TLS
//! needs.
//!
//! Two audiences. Servers and clients call [`Credentials::load`] and [`load_crls`] on files they
//! were given. Operators (through the binary) and tests call [`AuthorityDir`], or [`Authority`]
//! where nothing should touch the disk.
//!
//! Not here: verification of a peer (expiry, revocation, names), which belongs to the TLS stack,
//! and the principal's name, which the server decides.
//! Invariant: a private key or a keystore is never readable by others, not for an instant (one that
//! is replaced stays readable by its group, if somebody made it so), and nothing existing is
//! replaced unless the caller asked for exactly that.

mod authority;
pub mod cli;
mod error;
mod files;
mod folder;
mod inspect;
mod keystore;
mod load;
mod names;
mod peer;
mod revocations;
mod template;
mod validity;

pub use authority::{Authority, Issued, Request, Role};
pub use error::Error;
pub use folder::{
    AuthorityDir, InitOptions, Initialised, IssueOptions, IssuedFolder, KeyChoice, Older,
    RenewOptions, Renewed, Replace, Revoked,
};
pub use keystore::Password;
pub use load::{
    CredentialPaths, Credentials, expires_at, load_certificates, load_crls, load_private_key,
};
pub use names::{Name, SanUri, server_name};
pub use revocations::{Revocations, Serial};
pub use validity::{DAYS_DEFAULT, DAYS_MAX, Validity};

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

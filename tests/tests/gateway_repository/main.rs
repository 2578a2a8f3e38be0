//! The gateway `repository`, as its clients see it: the items of its acceptance, and what clients and peers without manners
//! do beside them.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

mod access;
mod accounts;
mod files;
mod house;
mod listing;
mod load;
mod manners;
mod pushes;
mod replay;

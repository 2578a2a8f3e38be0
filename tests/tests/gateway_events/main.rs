//! The gateway `events`, by clients that know nothing of ours: HTTP, WebSockets and JSON over real sockets, against the
//! server as it is shipped. Tests named `item_NN` are the items of the protocol's acceptance checklist.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

mod access;
mod client;
mod commands;
mod load;
mod login;
mod objects;
mod others;
mod replay;
mod upkeep;

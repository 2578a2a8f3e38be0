//! The gateway `workspace`, by clients that know nothing of ours: WebSockets, HTTP and JSON over real sockets, against the
//! server as it is shipped. Tests named `item_NN` are the items of the protocol's acceptance checklist.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

mod backlog;
mod chat;
mod client;
mod events;
mod fire;
mod history;
mod load;
mod login;
mod manners;
mod others;
mod presence;
mod private;

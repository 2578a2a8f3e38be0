//! The gateway `robots`, by clients that know nothing of ours: HTTP, WebSockets and JSON over real sockets. Tests named
//! `item_NN` are the items of the protocol's acceptance checklist. Time is a clock that stands until a test sets it.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

mod access;
mod arrival;
mod bounds;
mod connecting;
mod house;
mod jobs;
mod load;
mod logs;
mod manners;
mod restarts;
mod triggers;

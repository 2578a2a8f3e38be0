//! Deliveries: any order of steps by two servers and their recipients, with crashes between them and a clock that jumps, in
//! the model of the contract; and the same over real servers in `deliveries/fire.rs`.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

#[path = "deliveries/fire.rs"]
mod fire;
#[path = "deliveries/recurring.rs"]
mod recurring;
#[expect(clippy::future_not_send, reason = "a run is one task on one thread")]
#[path = "deliveries/steps.rs"]
mod steps;
#[path = "deliveries/stuck.rs"]
mod stuck;

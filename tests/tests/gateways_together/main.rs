//! The gateways on one port, by clients that know nothing of our crates but for the native one: who is told what, and what
//! the examples of `--demo` leave behind.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

mod cross_talk;
mod examples;
mod house;

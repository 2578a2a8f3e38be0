//! What tests of sessions have in common: an engine in memory, and sessions over streams in memory.

mod engine;

#[cfg(test)]
mod session;

#[cfg(test)]
pub(crate) use self::engine::Hold;
pub(crate) use self::engine::MemoryEngine;
#[cfg(test)]
pub(crate) use self::session::{Client, KEYSPACE, Running, server, start, start_in};

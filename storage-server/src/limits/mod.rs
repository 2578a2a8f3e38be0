//! The bounds on what peers may take, as permits: [`budget`] counts it, [`room`] counts answers while they are read,
//! [`once`] counts once what many sessions hold, [`turns`] are places to be waited for, and [`address`] says what is one peer.

pub(crate) mod address;
pub(crate) mod budget;
pub(crate) mod once;
pub(crate) mod room;
pub(crate) mod turns;

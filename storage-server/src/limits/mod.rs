//! The bounds on what peers may take, as permits: [`budget`] counts it, [`room`] counts answers while they are read,
//! and [`once`] counts once what many sessions hold.

pub(crate) mod budget;
pub(crate) mod once;
pub(crate) mod room;

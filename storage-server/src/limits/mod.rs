//! What peers may take, as permits: [`budget`] counts it, [`room`] while an answer is read, [`once`] where many have the
//! same.

pub(crate) mod budget;
pub(crate) mod once;
pub(crate) mod room;

//! Who reads stdin: one of a run, since what it read is gone for all others.

use std::sync::OnceLock;

use crate::failure::usage;

/// Whom it is read for.
static TAKEN: OnceLock<String> = OnceLock::new();

/// Says that it is about to be read for this.
pub(crate) fn take(what: &str) -> anyhow::Result<()> {
    let mut is_first = false;
    let taken = TAKEN.get_or_init(|| {
        is_first = true;
        what.to_owned()
    });
    match is_first {
        true => Ok(()),
        false => Err(usage(format!(
            "{what}: stdin can be read only once, and it is {taken} already"
        ))),
    }
}

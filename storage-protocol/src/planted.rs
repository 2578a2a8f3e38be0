//! Deliberate bugs, to prove that the tests would notice: see `scripts/planted-bugs`.
//!
//! With the feature `planted-bugs` the environment variable `STORAGE_PLANTED_BUG` names the one to commit. Without it,
//! as everything is built that anybody runs, [`planted`] is false when it is compiled, and the variable is unknown.

/// Whether this bug is to be committed.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
#[inline(always)]
pub const fn planted(_bug: &str) -> bool {
    false
}

/// Whether this bug is to be committed.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn planted(bug: &str) -> bool {
    static PLANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let planted = PLANTED.get_or_init(|| std::env::var("STORAGE_PLANTED_BUG").ok());
    planted.as_deref() == Some(bug)
}

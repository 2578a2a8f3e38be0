//! What `fuzz/` runs: functions that take any bytes and panic if a promise of the server does not hold for them.
//!
//! They are here since what they look at is not public, and compiled with the tests, so that every test run tries the
//! seeds of `fuzz/seeds/`. Not a part of what this crate offers.

pub mod events;
pub mod http;
pub mod repository;
pub mod robots;
pub mod rules;
pub mod targets;
pub mod tokens;
pub mod workspace;

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The seeds of a target by their names; at least one.
    pub(super) fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
        let folder = folder.join(target);
        let files = std::fs::read_dir(&folder).unwrap().map(|file| {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            (name, std::fs::read(file.path()).unwrap())
        });
        let seeds: Vec<_> = files.collect();
        assert!(!seeds.is_empty(), "no seeds in {}", folder.display());
        seeds
    }
}

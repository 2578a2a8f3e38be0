//! `digest`: one hash over all entries of a range, at one revision.
//!
//! Two stores with the same entries have the same digest, whatever their revisions. Invariant: the bytes that are
//! hashed are a contract; each key and each value has its length (8 bytes, big-endian) before it, so that no two
//! different contents give the same bytes.

use std::ffi::OsString;

use clap::Args;
use sha2::{Digest as _, Sha256};
use storage_protocol::{KeyState, ScanOptions, Storage};

use crate::app::App;
use crate::failure::Exit;
use crate::json::Object;
use crate::output::{Output, progress};

const EXAMPLES: &str = "\
Examples:
  storage digest
  storage digest --prefix weather/

Prints HEX REVISION COUNT: the SHA-256 over all entries in key order (each key, then each value, each with its length
as 8 bytes, big-endian, before it), the revision they were read at, and how many there are.";

/// Prints a hash over a range
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Digest {
    /// Keys that begin with this [default: all]
    #[arg(long, value_name = "P")]
    prefix: Option<OsString>,
}

impl Digest {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let range = app.form().arguments().prefix(self.prefix.as_deref())?;
        let storage = app.connect().await?;
        let mut scan = storage.scan(range, ScanOptions::default()).await?;
        let bar = progress(None);
        let (mut entries, mut count) = (Entries::default(), 0u64);
        while let Some(page) = scan.next_page().await? {
            for item in page {
                if let KeyState::Live(entry) = item.state {
                    entries.add(&item.key, &entry.value);
                    count += 1;
                }
            }
            bar.set_message(format!("{count} entries"));
        }
        bar.finish_and_clear();
        let (hex, position) = (entries.finish(), scan.position());
        match app.json() {
            false => out.line(&format!("{hex} {} {count}", position.revision))?,
            true => out.line(
                &Object::new()
                    .text("sha256", &hex)
                    .position(position)
                    .number("count", count)
                    .finish(),
            )?,
        }
        Ok(Exit::Done)
    }
}

/// Entries that are being hashed, in key order.
#[derive(Default)]
pub(crate) struct Entries(Sha256);

impl Entries {
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        for bytes in [key, value] {
            self.0.update((bytes.len() as u64).to_be_bytes());
            self.0.update(bytes);
        }
    }

    pub(crate) fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_lengths_and_contents() {
        let mut entries = Entries::default();
        entries.add(b"a", b"1");
        entries.add(b"bc", b"");
        // Made with: printf '\0\0\0\0\0\0\0\1a\0\0\0\0\0\0\0\0011\0\0\0\0\0\0\0\2bc\0\0\0\0\0\0\0\0' | sha256sum
        let expected = "77b8430865f5a10949e87e246f0e0b05a1d4ab263c415369eda4588dfd43c7a4";
        assert_eq!(entries.finish(), expected);
        // The well-known hash of nothing.
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Entries::default().finish(), nothing);
    }
}

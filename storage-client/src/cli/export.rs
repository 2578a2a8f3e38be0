//! `export`: the entries of a range as JSON lines that `import` takes, all at one revision.
//!
//! A lifetime goes with its entry as the time that is left; entries of sessions belong to a session that the reader
//! of the file does not have, so they are counted and left out.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use storage_protocol::{
    Entry, EntryLifetime, Key, KeyState, Position, ScanItem, ScanOptions, Storage, UnixMillis,
};

use super::app::App;
use super::failure::Exit;
use super::json::Object;
use super::output::{Output, WholeFile, progress};
use super::tell;

const EXAMPLES: &str = "\
Examples:
  storage export --out backup.jsonl
  storage export --prefix weather/ | gzip > weather.jsonl.gz
  storage import backup.jsonl           # restores it

Prints {\"put\":{\"key\":...,\"value\":...}} lines, with ttl_ms (the time left) where an entry expires. Entries that
live as long as a session are left out. --out writes F.part first and renames it when it is whole.";

/// Writes a range as JSON lines for `import`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Export {
    /// Keys that begin with this [default: all]
    #[arg(long, value_name = "P")]
    prefix: Option<String>,
    /// File to write [default: stdout]
    #[arg(long, value_name = "F")]
    out: Option<PathBuf>,
}

#[derive(Default)]
struct Counts {
    entries: u64,
    of_sessions: u64,
}

impl Export {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let (counts, position) = match &self.out {
            None => {
                let done = self.write(app, out).await?;
                out.flush()?;
                done
            }
            Some(path) => {
                let mut file = WholeFile::create(path)?;
                let done = self.write(app, &mut file.output).await?;
                file.finish()?;
                done
            }
        };
        let Counts {
            entries,
            of_sessions,
        } = counts;
        tell(format_args!("{entries} entries at {position}"));
        if of_sessions > 0 {
            tell(format_args!(
                "{of_sessions} entries that live as long as a session were left out"
            ));
        }
        Ok(Exit::Done)
    }

    async fn write(&self, app: &App, out: &mut Output) -> anyhow::Result<(Counts, Position)> {
        let range = app.form().arguments().prefix(self.prefix.as_deref())?;
        let storage = app.connect().await?;
        let mut scan = storage.scan(range, ScanOptions::default()).await?;
        let bar = match self.out.is_none() && std::io::stdout().is_terminal() {
            true => ProgressBar::hidden(),
            false => progress(None),
        };
        let mut counts = Counts::default();
        while let Some(page) = scan.next_page().await? {
            let now = UnixMillis::now();
            for ScanItem { key, state } in page {
                let KeyState::Live(entry) = state else {
                    continue;
                };
                match line(&key, &entry, now) {
                    Some(line) => {
                        counts.entries += 1;
                        out.line(&line)?;
                    }
                    None => counts.of_sessions += 1,
                }
            }
            bar.set_message(format!("{} entries", counts.entries));
        }
        bar.finish_and_clear();
        Ok((counts, scan.position()))
    }
}

/// The line of an entry; `None` for one that lives as long as a session.
fn line(key: &Key, entry: &Entry, now: UnixMillis) -> Option<String> {
    let put = Object::new().bytes("key", key).bytes("value", &entry.value);
    let put = match entry.lifetime {
        EntryLifetime::Forever => put,
        // One that is due, or that our clock is ahead of, is there still, and gets the shortest life there is.
        EntryLifetime::Until(due) => put.number("ttl_ms", due.0.saturating_sub(now.0).max(1)),
        EntryLifetime::Session => return None,
    };
    Some(Object::new().object("put", put).finish())
}

#[cfg(test)]
mod tests {
    use storage_protocol::Revision;

    use super::*;

    #[test]
    fn a_lifetime_goes_with_its_entry_as_the_time_left() {
        let line = |lifetime| {
            let (value, revision) = ("v".into(), Revision(1));
            let entry = Entry {
                value,
                revision,
                lifetime,
            };
            line(&Key::from("k"), &entry, UnixMillis(1_000))
        };
        let plain = r#"{"put":{"key":"k","value":"v"}}"#;
        assert_eq!(line(EntryLifetime::Forever).as_deref(), Some(plain));
        let left = |due| line(EntryLifetime::Until(UnixMillis(due))).unwrap();
        assert_eq!(
            left(1_500),
            r#"{"put":{"key":"k","value":"v","ttl_ms":500}}"#
        );
        assert_eq!(left(900), r#"{"put":{"key":"k","value":"v","ttl_ms":1}}"#);
        assert_eq!(line(EntryLifetime::Session), None);
    }
}

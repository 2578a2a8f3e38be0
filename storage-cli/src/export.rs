//! `export`: the entries of a range as JSON lines that `import` takes, all at one revision.
//!
//! A lifetime goes with its entry as the time that is left, by the server's clock: it is the one that the end is told by,
//! and ours may be hours away. Entries of sessions belong to a session that the reader
//! of the file does not have, so they are counted and left out.
//!
//! Objects go as their manifests and their parts, which stand behind them: so they come back whole. Parts of objects that are
//! being written, or removed, stand behind an intent that says so, and are left out with it.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use storage_protocol::objects::{ObjectId, PartKey};
use storage_protocol::{
    Entry, EntryLifetime, Key, KeyState, Position, ScanItem, ScanOptions, Storage, UnixMillis,
};

use crate::app::App;
use crate::failure::Exit;
use crate::json::Object;
use crate::output::{Output, progress};
use crate::target::Target;
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage export --out backup.jsonl
  storage export --prefix weather/ | gzip > weather.jsonl.gz
  storage import backup.jsonl           # restores it

Prints {\"put\":{\"key\":...,\"value\":...}} lines, with ttl_ms (the time left) where an entry expires. Entries that
live as long as a session are left out, and objects that are not finished. --out F replaces a regular file when the export is whole, and keeps its mode and
owner; to a FIFO or a device it writes as it goes; - is stdout.";

/// Writes a range as JSON lines for `import`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Export {
    /// Keys that begin with this [default: all]
    #[arg(long, value_name = "P")]
    prefix: Option<OsString>,
    /// File to write; - for stdout [default: stdout]
    #[arg(long, value_name = "F")]
    out: Option<PathBuf>,
}

#[derive(Default)]
struct Counts {
    entries: u64,
    of_sessions: u64,
    /// Parts, and what says that they belong to no object.
    unfinished: u64,
    expiring: u64,
}

impl Export {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let file = self.out.as_deref().filter(|path| *path != Path::new("-"));
        let (counts, position) = match file {
            None => {
                let done = self.write(app, out, io::stdout().is_terminal()).await?;
                out.flush()?;
                done
            }
            Some(path) => {
                let mut target = Target::open(path)?;
                let done = self.write(app, target.output(), false).await?;
                target.finish()?;
                done
            }
        };
        let Counts {
            entries,
            of_sessions,
            unfinished,
            ..
        } = counts;
        tell(format_args!("{entries} entries at {position}"));
        if of_sessions > 0 {
            tell(format_args!(
                "{of_sessions} entries that live as long as a session were left out"
            ));
        }
        if unfinished > 0 {
            tell(format_args!(
                "{unfinished} entries of objects that are being written or removed were left out"
            ));
        }
        Ok(Exit::Done)
    }

    /// `quiet`: what is written would stand between the lines of the progress.
    async fn write(
        &self,
        app: &App,
        out: &mut Output,
        quiet: bool,
    ) -> anyhow::Result<(Counts, Position)> {
        let range = app.form().arguments().prefix(self.prefix.as_deref())?;
        let storage = app.connect().await?;
        let mut scan = storage.scan(range, ScanOptions::default()).await?;
        let mut unfinished = Unfinished::default();
        let bar = match quiet {
            true => ProgressBar::hidden(),
            false => progress(None),
        };
        let mut counts = Counts::default();
        let offset = storage.server_time_offset();
        while let Some(page) = scan.next_page().await? {
            let now = UnixMillis(
                UnixMillis::now()
                    .0
                    .saturating_add_signed(offset.unwrap_or(0)),
            );
            for ScanItem { key, state } in page {
                let KeyState::Live(entry) = state else {
                    continue;
                };
                if unfinished.has(&key) {
                    counts.unfinished += 1;
                    continue;
                }
                counts.expiring += u64::from(matches!(entry.lifetime, EntryLifetime::Until(_)));
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
        if offset.is_none() && counts.expiring > 0 {
            tell(format_args!(
                "the server does not tell its time: what {} entries have left to live is by this machine's clock",
                counts.expiring
            ));
        }
        Ok((counts, scan.position()))
    }
}

/// What a scan in key order has met of objects that are not finished: the intents whose parts may still come. Between the two
/// may be any other entry whose key begins with the intent's, also such of other objects.
#[derive(Default)]
struct Unfinished(Vec<Intent>);

struct Intent {
    key: Key,
    object: Key,
    id: ObjectId,
}

impl Unfinished {
    /// Whether an entry is an intent, or a part of an object whose intent came before.
    fn has(&mut self, key: &Key) -> bool {
        while self
            .0
            .pop_if(|intent| !key.starts_with(&intent.key))
            .is_some()
        {}
        let Some(PartKey { object, id, number }) = PartKey::parse(key) else {
            return false;
        };
        if number.is_none() {
            let key = key.clone();
            self.0.push(Intent { key, object, id });
            return true;
        }
        let mut intents = self.0.iter();
        intents.any(|intent| intent.object == object && intent.id == id)
    }
}

/// The line of an entry; `None` for one that lives as long as a session.
fn line(key: &Key, entry: &Entry, now: UnixMillis) -> Option<String> {
    let put = Object::new().bytes("key", key).bytes("value", &entry.value);
    let put = match entry.lifetime {
        EntryLifetime::Forever => put,
        // One that is due is there still, and gets the shortest life there is.
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
    fn parts_are_left_out_with_their_own_intent_alone() {
        let (id, other) = (ObjectId([0xab; 16]), ObjectId([0xcd; 16]));
        let intent = PartKey::intent(b"k", id);
        // Objects of their own, whose keys begin with the intent's: between it and its parts, and behind them.
        let (before, behind) = ([&intent[..], b"!"].concat(), [&intent[..], b"x"].concat());
        let entries = [
            (Key::from("k"), false),
            (intent, true),
            (Key::from(before.clone()), false),
            (PartKey::intent(&before, other), true),
            (PartKey::part(&before, other, 0), true),
            (PartKey::part(b"k", id, 0), true),
            (PartKey::part(b"k", id, 1), true),
            (Key::from(behind.clone()), false),
            (PartKey::part(&behind, other, 0), false),
            (PartKey::part(b"k", other, 0), false),
        ];
        assert!(entries.is_sorted_by(|(one, _), (next, _)| one < next));
        let mut unfinished = Unfinished::default();
        for (key, is) in &entries {
            assert_eq!(unfinished.has(key), *is, "{}", key.escape_ascii());
        }
    }

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

//! `scan`: the entries of a range in key order, all at one revision.
//!
//! Printed page by page as they come, so that memory does not grow with the range. Parts of objects are left out unless they
//! are asked for: they are not what people look for, and each is a line of a million bytes. They are read all the same, since
//! a scan is at one revision and has no gaps.

use std::ffi::OsString;

use clap::Args;
use storage_protocol::objects::is_part;
use storage_protocol::{Key, KeyRange, KeyState, ScanOptions, Storage};

use crate::app::App;
use crate::failure::Exit;
use crate::json::Object;
use crate::output::Output;
use crate::tell;
use crate::text::Arguments;

const EXAMPLES: &str = "\
Examples:
  storage scan --prefix weather/JFK/
  storage scan --from a --to b --limit 10 --reverse
  storage scan --keys-only | wc --lines
  storage --json scan

Prints KEY<TAB>VALUE lines. What does not show is escaped, so that nothing is ambiguous: \\\\ is a backslash, \\n \\r \\t \\x1b are
control characters, \\u{202e} is another character that does not show, \\xff a byte that is no UTF-8. Without a range: all keys.
An object is shown by the text that stands for it, and its parts only with --parts; stderr says how many there are.";

/// Prints a range of keys and values
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Scan {
    /// Keys that begin with this
    #[arg(long, value_name = "P", conflicts_with_all = ["from", "to"])]
    prefix: Option<OsString>,
    /// First key of the range
    #[arg(long, value_name = "A")]
    from: Option<OsString>,
    /// First key behind the range
    #[arg(long, value_name = "B")]
    to: Option<OsString>,
    /// Stop after N entries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Show the parts of objects too
    #[arg(long)]
    parts: bool,
}

impl Scan {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let range = self.range(&mut app.form().arguments())?;
        let options = ScanOptions {
            reverse: self.reverse,
            keys_only: self.keys_only,
            // Parts that are not shown do not count.
            limit: self.limit.filter(|_| self.parts),
            newer_than: None,
        };
        let mut scan = app.connect().await?.scan(range, options).await?;
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut hidden = 0u64;
        while left > 0
            && let Some(page) = scan.next_page().await?
        {
            for item in page {
                if !self.parts && is_part(&item.key) {
                    hidden += 1;
                } else if left > 0 {
                    left -= 1;
                    out.line(&self.show(app, &item.key, &item.state))?;
                }
            }
            out.flush()?;
        }
        if hidden > 0 {
            tell(format_args!(
                "{hidden} parts of objects are not shown (--parts)"
            ));
        }
        Ok(Exit::Done)
    }

    fn range(&self, arguments: &mut Arguments) -> anyhow::Result<KeyRange> {
        let mut range = arguments.prefix(self.prefix.as_deref())?;
        if let Some(from) = &self.from {
            range.start = arguments.bytes("--from", from)?;
        }
        if let Some(to) = &self.to {
            range.end = Some(arguments.bytes("--to", to)?);
        }
        Ok(range)
    }

    fn show(&self, app: &App, key: &Key, state: &KeyState) -> String {
        let form = app.form();
        match (state, app.json()) {
            (KeyState::Live(entry), true) if self.keys_only => Object::new()
                .bytes("key", key)
                .number("revision", entry.revision.0)
                .lifetime(entry.lifetime)
                .finish(),
            (KeyState::Live(entry), true) => Object::new().entry(key, entry).finish(),
            (KeyState::Live(entry), false) if !self.keys_only => {
                format!("{}\t{}", form.show(key), form.show(&entry.value))
            }
            (KeyState::Live(_) | KeyState::Removed(_), _) => form.show(key).into_owned(),
        }
    }
}

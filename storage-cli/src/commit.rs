//! `commit`: a file of JSON lines as one atomic commit.
//!
//! All checks hold and all operations happen, or nothing does. The whole file is in memory, as the commit is.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use storage_protocol::Batch;

use crate::app::App;
use crate::failure::{Exit, usage};
use crate::json::{self, Item};
use crate::output::Output;
use crate::put;
use crate::stdin;

const EXAMPLES: &str = "\
Lines:
  {\"check\":{\"key\":\"a\",\"revision\":7}}                  a was last written at revision 7 (null: a is absent)
  {\"put\":{\"key\":\"a\",\"value\":\"1\",\"ttl_ms\":60000}}      ttl_ms can be left out
  {\"remove\":{\"key\":\"b\"}}
  key_b64 and value_b64 (standard Base64) where a key or value is no UTF-8

Examples:
  storage commit --file change.jsonl
  echo '{\"put\":{\"key\":\"a\",\"value\":\"1\"}}' | storage commit --file -

Prints the commit's position, EPOCH:REVISION; a check that does not hold makes the exit code 1.";

/// Commits a file of checks, puts and removes atomically
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Commit {
    /// JSON lines; - for stdin
    #[arg(long, value_name = "F")]
    file: PathBuf,
}

impl Commit {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let name = self.file.display().to_string();
        let mut text = String::new();
        let is_stdin = self.file == Path::new("-");
        if is_stdin {
            stdin::take("--file")?;
        }
        let read = match is_stdin {
            true => std::io::stdin().lock().read_to_string(&mut text),
            false => File::open(&self.file).and_then(|mut file| file.read_to_string(&mut text)),
        };
        read.map_err(|error| usage(format!("{name} cannot be read: {error}")))?;
        // What marks UTF-8 is no part of the text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        put::commit(app, out, parse(&name, text)?, &[]).await
    }
}

fn parse(file: &str, text: &str) -> anyhow::Result<Batch> {
    let mut batch = Batch::new();
    for (line, text) in (1..).zip(text.lines()) {
        if text.trim().is_empty() {
            continue;
        }
        match json::parse(text).map_err(|what| usage(format!("{file}:{line}: {what}")))? {
            Item::Check(check) => batch.checks.push(check),
            Item::Operation(operation) => batch.operations.push(operation),
        }
    }
    if batch.checks.is_empty() && batch.operations.is_empty() {
        return Err(usage(format!("{file}: there is nothing to commit")));
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use storage_protocol::Revision;

    use super::*;

    #[test]
    fn a_file_is_one_batch_in_its_order() {
        let text = "{\"put\":{\"key\":\"a\",\"value\":\"1\"}}\r\n\n{\"check\":{\"key\":\"b\",\"revision\":7}}\n{\"remove\":{\"key\":\"c\"}}";
        let expected = Batch::new()
            .check_revision("b", Revision(7))
            .put("a", "1")
            .remove("c");
        assert_eq!(parse("f", text).unwrap(), expected);
    }

    #[test]
    fn errors_name_file_and_line() {
        let error = |text| parse("f", text).unwrap_err().to_string();
        assert!(error("\n{\"put\":{}}\n").contains("f:2: neither \"key\""));
        assert!(error(" \n").contains("f: there is nothing to commit"));
    }
}

//! `get`: values by key, all read at one revision.
//!
//! A missing key is told on stderr and makes the exit code 1; the others are printed all the same.

use clap::Args;
use storage_protocol::{Entry, Key, Storage};

use super::app::App;
use super::failure::Exit;
use super::json::Object;
use super::output::Output;
use super::tell;

const EXAMPLES: &str = "\
Examples:
  storage get greeting
  storage get weights/1 --no-newline > weights.bin
  storage get a b c                     # KEY<TAB>VALUE lines
  storage --json get greeting           # {\"key\":...,\"value\":...,\"revision\":...}

One key: its bytes as they are (with --hex hexadecimal), and a newline. A missing key makes the exit code 1.";

/// Prints the values of keys
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Get {
    /// Keys (text, @FILE or -)
    #[arg(value_name = "KEY", required = true, allow_negative_numbers = true)]
    keys: Vec<String>,
    /// Print the bytes of the one value, and nothing else
    #[arg(long, conflicts_with_all = ["json", "hex"])]
    no_newline: bool,
}

impl Get {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let mut arguments = app.form().arguments();
        let keys: Vec<Key> = self
            .keys
            .iter()
            .map(|key| arguments.bytes("KEY", key))
            .collect::<Result<_, _>>()?;
        let reading = app.connect().await?.get(&keys).await?;
        let mut exit = Exit::Done;
        for (key, entry) in keys.iter().zip(&reading.value) {
            match entry {
                Some(entry) => self.print(app, out, key, entry)?,
                None => {
                    exit = Exit::Refused;
                    tell(format_args!("not found: {}", app.form().show(key)));
                }
            }
        }
        Ok(exit)
    }

    fn print(&self, app: &App, out: &mut Output, key: &Key, entry: &Entry) -> anyhow::Result<()> {
        let form = app.form();
        let value = form.show(&entry.value);
        if app.json() {
            return out.line(&Object::new().entry(key, entry).finish());
        }
        match self.keys.len() {
            1 if form.hex => out.line(&value),
            1 => {
                out.bytes(&entry.value)?;
                out.bytes(if self.no_newline { b"" } else { b"\n" })
            }
            _ => out.line(&format!("{}\t{value}", form.show(key))),
        }
    }
}

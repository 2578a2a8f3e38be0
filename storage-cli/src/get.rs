//! `get`: values by key, all read at one revision; or one object, which is written as it comes.
//!
//! A missing key is told on stderr and makes the exit code 1; the others are printed all the same.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use storage_protocol::objects::{Manifest, ManifestError, ObjectReader};
use storage_protocol::{Entry, Key, Storage, StorageError, StorageExt};

use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::json::Object;
use crate::output::{Output, progress};
use crate::target::Target;
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage get greeting
  storage get weights/1 --out weights.bin
  storage get a b c                     # KEY<TAB>VALUE lines
  storage --json get greeting           # {\"key\":...,\"value\":...,\"revision\":...}

One key: its bytes as they are (with --hex hexadecimal), and a newline; what would disturb a terminal is not sent to one
without --force. Several: one line each, escaped as `scan` does. A missing key makes the exit code 1. What `put` made of a large
file comes as the bytes that it was, alone and without --json and --hex.";

/// Prints the values of keys
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Get {
    /// Keys (text, @FILE or -)
    #[arg(value_name = "KEY", required = true, allow_negative_numbers = true)]
    keys: Vec<OsString>,
    /// Print the bytes of the one value, and nothing else
    #[arg(long, conflicts_with_all = ["json", "hex"])]
    no_newline: bool,
    /// Write the bytes of the one value, and nothing else, to this file (- for stdout)
    #[arg(long, value_name = "F", conflicts_with_all = ["json", "hex"])]
    out: Option<PathBuf>,
    /// Print bytes to a terminal that are no text for it
    #[arg(long)]
    force: bool,
}

impl Get {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        if self.keys.len() > 1 && (self.no_newline || self.out.is_some()) {
            return Err(usage("--no-newline and --out are for one key"));
        }
        let mut arguments = app.form().arguments();
        let keys: Vec<Key> = self
            .keys
            .iter()
            .map(|key| arguments.bytes("KEY", key))
            .collect::<Result<_, _>>()?;
        let storage = app.connect().await?;
        let reading = storage.get(&keys).await?;
        for (key, entry) in keys.iter().zip(&reading.value) {
            check_version(app, key, entry.as_ref())?;
        }
        let mut objects = keys.iter().zip(&reading.value).filter_map(|(key, entry)| {
            let manifest = Manifest::decode(&entry.as_ref()?.value).ok()??;
            Some((key.clone(), manifest))
        });
        if let Some((key, manifest)) = objects.next() {
            if keys.len() > 1 || app.json() || app.form().hex {
                return Err(usage(format!(
                    "{} is an object of {} bytes: get it alone, and without --json and --hex",
                    app.form().show(&key),
                    manifest.size
                )));
            }
            // It may have been replaced since, or be gone.
            return match storage.read_object(key.clone()).await? {
                Some(reader) => {
                    self.stream(out, reader).await?;
                    Ok(Exit::Done)
                }
                None => {
                    tell(format_args!("not found: {}", app.form().show(&key)));
                    Ok(Exit::Refused)
                }
            };
        }
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
        let (form, value) = (app.form(), &entry.value);
        if app.json() {
            return out.line(&Object::new().entry(key, entry).finish());
        }
        match self.keys.len() {
            1 if form.hex => out.line(&form.show(value)),
            1 => self.print_bytes(out, value),
            _ => out.line(&format!("{}\t{}", form.show(key), form.show(value))),
        }
    }

    /// An object, as it comes. A file takes its place when it is whole.
    async fn stream(&self, out: &mut Output, mut reader: ObjectReader<'_>) -> anyhow::Result<()> {
        let size = reader.info().size;
        let bar = match self.out.is_some() || !io::stdout().is_terminal() {
            true => progress(Some(size)),
            false => ProgressBar::hidden(),
        };
        if let Some(path) = self.out.as_deref().filter(|path| *path != Path::new("-")) {
            let mut target = Target::open(path)?;
            copy(&mut reader, target.output(), &bar).await?;
            return target.finish();
        }
        if !self.force && io::stdout().is_terminal() {
            return Err(usage(format!(
                "the object has {size} bytes, which could disturb your terminal; write them to a file with --out FILE, or print \
                 them all the same with --force"
            )));
        }
        copy(&mut reader, out, &bar).await?;
        match self.no_newline || self.out.is_some() {
            true => Ok(()),
            false => out.bytes(b"\n"),
        }
    }

    fn print_bytes(&self, out: &mut Output, value: &[u8]) -> anyhow::Result<()> {
        if let Some(path) = self.out.as_deref().filter(|path| *path != Path::new("-")) {
            let mut target = Target::open(path)?;
            target.output().bytes(value)?;
            return target.finish();
        }
        if !self.force && io::stdout().is_terminal() && !escape::is_harmless(value) {
            return Err(usage(format!(
                "the value ({} bytes) is no plain text, and could disturb your terminal; write it to a file with --out FILE, \
                 see it with --hex or --json, or print it all the same with --force",
                value.len()
            )));
        }
        out.bytes(value)?;
        match self.no_newline || self.out.is_some() {
            true => Ok(()),
            false => out.bytes(b"\n"),
        }
    }
}

/// Fails for an object that this version cannot read, and for what only begins like one: no client takes that for a value.
fn check_version(app: &App, key: &Key, entry: Option<&Entry>) -> anyhow::Result<()> {
    let Some(Err(error)) = entry.map(|entry| Manifest::decode(&entry.value)) else {
        return Ok(());
    };
    let what = match error {
        ManifestError::Version(_) => {
            "is an object, written by a newer version of this program than this one"
        }
        _ => "is an object that is damaged, or was not written as one",
    };
    let what = format!("{} {what}", app.form().show(key));
    Err(anyhow::Error::new(StorageError::from(error)).context(what))
}

async fn copy(
    reader: &mut ObjectReader<'_>,
    out: &mut Output,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    while let Some(chunk) = reader.next().await? {
        out.bytes(&chunk)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

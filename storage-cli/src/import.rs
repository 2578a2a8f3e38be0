//! `import`: a file's rows into the keyspace, many to a commit and several commits on their way.
//!
//! Here: the options, the thread that reads and cuts batches, and the summary of what is certain. How they are sent, and
//! what becomes of each, is in [`crate::sending`].

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use clap::Args;
use storage_protocol::{
    Key, KeyRange, Limit, Outcome, Revision, ScanOptions, Storage, StorageError, StorageExt,
};
use tokio::sync::mpsc;

use crate::app::App;
use crate::batches::{Batches, Duplicates, Prepared};
use crate::failure::{Exit, Usage, usage};
use crate::journal::{Journal, Source, digest_of};
use crate::output::{Output, progress};
use crate::rows::{Format, Header, Reading, Rows};
use crate::sending::{Sender, Stopped, send_all};
use crate::tally::Tally;
use crate::tell;
use crate::template::Template;
use crate::unpack::open;
use storage_client::RemoteStorage;

const EXAMPLES: &str = "\
Examples:
  storage import weather.csv.gz --key 'weather/{origin}/{time_hour}'
  storage import events.jsonl --key 'event/{id}' --batch 100
  storage import backup.jsonl
  storage import big.jsonl --session-file big.session   # killed and started again, it goes on
  storage export | storage --url wss://other:7443/storage/models import -

Without --key, each line is {\"put\":{...}} or {\"remove\":{...}}, as `export` writes them.
A CSV row becomes a JSON object of strings; a row of JSON lines with --key is kept as it is, and {a.b} is the field b of its
object a. Of rows with equal keys in one commit only the last is sent; --batch 1 sends each.
Commits that the server refuses because a quota or its load leaves no room are sent again, one by one, for as long as it takes
one every 30 s (or --timeout); a word on stderr says so. Of equal keys the last row stays then too. With --session-file the
import stops instead where that could not be kept: where a later commit with one of the keys was taken already.
Objects come to be seen when all of their parts are in. Do not run `storage sweep` on their keys meanwhile: parts belong to no
object until then.";

/// Batches that were read and wait for room.
const READ_AHEAD: usize = 2;

/// Imports a file, or stdin (-)
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Import {
    /// File, as it is or packed with gzip; - for stdin
    file: PathBuf,
    /// Format [default: by the file's name; stdin: jsonl]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Key of each row, with {column} for a column's value ({{ and }} for braces)
    #[arg(long, value_name = "TEMPLATE")]
    key: Option<Template>,
    /// Names of the columns of a CSV file whose first line is a row already
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        conflicts_with = "no_header"
    )]
    header: Option<Vec<String>>,
    /// The first line of a CSV file is a row already; its columns are called 1, 2, 3
    #[arg(long)]
    no_header: bool,
    /// What to do with a row whose key an earlier row has
    #[arg(long, value_enum, default_value_t)]
    duplicates: Duplicates,
    /// Rows of one commit, at most; a commit also ends at 1 MiB
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Keep a journal in FILE: the same command again goes on where it was, and no row takes effect twice
    #[arg(long, value_name = "FILE")]
    session_file: Option<PathBuf>,
}

impl Import {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let start = Instant::now();
        let reading = self.reading()?;
        let mut journal = self.open_journal(app, &reading).await?;
        if let Some(journal) = &journal
            && let Some(rows) = journal.complete
        {
            let ask = async {
                let storage = app.connect().await?;
                check_history(journal, &storage).await
            };
            app.unless_interrupted(ask).await?;
            tell(format!("all {rows} rows were committed before"));
            return Ok(Exit::Done);
        }
        let total = std::fs::metadata(&self.file).map_or(0, |metadata| metadata.len());
        let bar = progress(Some(total));
        let rows = Rows::new(&self.file, open(&self.file, &bar)?, reading)?;
        let saved = journal.as_ref().and_then(Journal::saved);
        let storage = app.unless_interrupted(app.connect_as(saved)).await?;
        if let Some(journal) = &mut journal {
            // However this ends before its end: the session stays, so that the next run can ask it.
            app.keep_session(true);
            app.unless_interrupted(check_history(journal, &storage))
                .await?;
            begin_session(journal, &storage)?;
        }
        let limits = storage.limits().await?;
        let batch = self.batch as usize;
        if batch > limits.operations_per_commit_max {
            let max = limits.operations_per_commit_max;
            let error = StorageError::limit(Limit::OperationsPerCommit, batch, max);
            return Err(anyhow::Error::new(error).context("--batch"));
        }
        let mut reader = Reader::start(Batches::new(rows, batch, self.duplicates, limits));
        let mut tally = Tally::default();
        let mut sender = Sender {
            storage: storage.clone(),
            journal,
        };
        let stopped = send_all(&mut sender, &mut reader.batches, &mut tally, app, &bar).await;
        bar.finish_and_clear();
        if let Err(rows) = tally.outcome(&self.file.display().to_string()) {
            let error = match stopped {
                // What became of rows decides the exit code.
                Stopped::Failed(also) => rows.context(format!("{also:#}")),
                Stopped::End | Stopped::Interrupted => rows,
            };
            return Err(sender.explain(error));
        }
        match stopped {
            Stopped::Failed(error) => {
                let error = with_count(error, &tally.committed_text());
                return Err(sender.explain(error));
            }
            Stopped::Interrupted => return Err(sender.interrupted(&tally).into()),
            Stopped::End => reader
                .end()
                .await
                .map_err(|error| with_count(error, &tally.committed_text()))?,
        }
        if let Some(journal) = &mut sender.journal {
            journal
                .completed(tally.rows + tally.rows_before)
                .map_err(|error| with_count(error, &tally.committed_text()))?;
            app.keep_session(false);
        }
        let position = match tally.last {
            Some(position) => position,
            None => storage.sync().await?,
        };
        let summary = tally.summary(position, start.elapsed().as_secs_f64(), app.json());
        // Where the summary cannot be told there, it is told here: the rows are committed.
        let told = out.line(&summary).and_then(|()| out.flush());
        told.with_context(|| format!("{}, at {position}", tally.committed_text()))?;
        Ok(Exit::Done)
    }

    /// How the file is to be read.
    fn reading(&self) -> anyhow::Result<Reading> {
        let format = match self.format {
            Some(format) => format,
            None => Format::of(&self.file)?,
        };
        let header = match &self.header {
            Some(names) => Header::Given(names.clone()),
            None if self.no_header => Header::Numbered,
            None => Header::FirstLine,
        };
        let template = self.key.clone();
        Ok(Reading {
            format,
            header,
            template,
        })
    }

    async fn open_journal(&self, app: &App, reading: &Reading) -> anyhow::Result<Option<Journal>> {
        let Some(path) = self.session_file.clone() else {
            return Ok(None);
        };
        if self.file == Path::new("-") {
            return Err(usage(
                "--session-file goes with a file, not with stdin: what was read of that is gone",
            ));
        }
        // A FIFO, too, gives what it has once only.
        if std::fs::metadata(&self.file).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(usage(format!(
                "--session-file goes with a file that can be read again, and {} is none",
                self.file.display()
            )));
        }
        let (file, batch, keyspace) = (self.file.clone(), self.batch, app.keyspace()?);
        let key = reading.template.as_ref().map(Template::to_string);
        let format = match &reading.header {
            Header::FirstLine => format!("{:?}", reading.format),
            header => format!("{:?}, header {header:?}", reading.format),
        };
        // Rows are counted in another order than by a version that put them in as they came.
        let format = match reading.template {
            Some(_) => format,
            None => format!("{format}, manifests behind their parts"),
        };
        let opening = tokio::task::spawn_blocking(move || {
            let sha256 =
                digest_of(&file).map_err(|error| usage(format!("{}: {error}", file.display())))?;
            let source = Source {
                sha256,
                keyspace,
                key,
                format,
                batch,
            };
            Journal::open(&path, &source)
        });
        Ok(Some(opening.await??))
    }
}

/// Fails where the store that serves us is not the one that the journal tells of, or has lost what it tells of.
async fn check_history(journal: &Journal, storage: &RemoteStorage) -> anyhow::Result<()> {
    let Some(known) = journal.position() else {
        return Ok(());
    };
    let present = storage.welcome().position;
    if present.epoch == known.epoch && present.revision >= known.revision {
        return Ok(());
    }
    let name = journal.name();
    let refused = |why: String| {
        Err(usage(format!(
            "{name} tells of an import into another store: {why}. Give another --session-file, or remove this one to import \
             everything"
        )))
    };
    if present.epoch == known.epoch {
        return refused(format!(
            "it was at {known}, and the server is at {present}, so it lost commits"
        ));
    }
    // The store's history was forked, or it is another one: it knows.
    let range = KeyRange {
        start: Key::from_static(&[0]),
        end: Some(Key::from_static(&[0, 0])),
    };
    let options = ScanOptions {
        newer_than: Some(known),
        keys_only: true,
        limit: Some(1),
        ..ScanOptions::default()
    };
    match storage.scan(range, options).await {
        // What is asked for is only whether the position is one of this history.
        Ok(_) | Err(StorageError::Compacted { .. }) => Ok(()),
        Err(StorageError::EpochChanged {
            epoch,
            fork: Revision(0),
        }) => refused(format!(
            "its epoch was {}, and the server's is {epoch}",
            known.epoch
        )),
        Err(StorageError::EpochChanged { epoch, fork }) => refused(format!(
            "it was at {known}, and the server's history is now epoch {epoch}, which lost what was committed behind \
             revision {fork}"
        )),
        Err(error) => Err(error.into()),
    }
}

/// Notes the session that the server gave us. What an earlier one left without an answer can then never be known.
fn begin_session(journal: &mut Journal, storage: &RemoteStorage) -> anyhow::Result<()> {
    let info = *storage.session_info().borrow();
    let epoch = storage.welcome().position.epoch;
    let lost = journal.begin_session(info.id, info.incarnation, epoch)?;
    let Some(first) = lost.iter().map(|sent| sent.row).min() else {
        return Ok(());
    };
    let last = lost.iter().map(|sent| sent.row + sent.rows - 1).max();
    let last = last.unwrap_or(first);
    let error = StorageError::Closed {
        reason: "the server does not know the session any more".to_owned(),
        outcome: Outcome::Unknown,
    };
    Err(anyhow::Error::new(error).context(format!(
        "of rows {first} to {last} it is unknown what was committed. The same command again commits them (again)"
    )))
}

/// A bad row's error, and what was committed before it.
fn with_count(error: anyhow::Error, committed: &str) -> anyhow::Error {
    match error.downcast_ref::<Usage>() {
        Some(_) => usage(format!("{error}; {committed} before")),
        None => error.context(committed.to_owned()),
    }
}

/// The thread that reads.
struct Reader {
    batches: mpsc::Receiver<Prepared>,
    thread: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Reader {
    /// It ends at the end of the file, at a bad row, or when nobody takes its batches any more. A read of stdin that
    /// does not return is left behind when the process ends.
    fn start(mut batches: Batches) -> Self {
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(prepared) = batches.next()? {
                if sender.blocking_send(prepared).is_err() {
                    break;
                }
            }
            Ok(())
        });
        Self {
            batches: receiver,
            thread,
        }
    }

    /// How the reading went; called when there are no more batches.
    async fn end(self) -> anyhow::Result<()> {
        self.thread
            .await
            .map_err(|error| anyhow!("the reading thread failed: {error}"))?
    }
}

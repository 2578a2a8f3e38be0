//! `replica`: a coherent local copy, live: the state, then what changes at each mark, and what breaks meant.
//!
//! Each batch is flushed, so that a pipe sees it at once. It ends by a signal with exit code 0, and with an error only
//! where the copy cannot be held any more.

use std::ffi::OsString;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use storage_protocol::{Continuity, Entry, Key, KeyRange, Outcome, ResyncReason, StorageError};

use crate::app::App;
use crate::digest::Entries;
use crate::failure::{Exit, StdoutClosed, epoch_words, usage};
use crate::json::Object;
use crate::output::{Output, stdout_closed};
use crate::tell;
use crate::text::Form;
use storage_client::replica::{ChangeBatch, Changes, Proof, Proven, ReplicaError, ReplicaEvent};
use storage_client::{Replica, ReplicaOptions};

const EXAMPLES: &str = "\
Examples:
  storage replica --prefix weather/                     # live; Ctrl-C ends it
  storage replica --prefix weather/ --dir weather.copy  # goes on where it was when it is started again
  storage replica --prefix weather/ --once --digest     # as `storage digest`, through a replica
  storage --json replica --once > state.jsonl

Says `ready at EPOCH:REVISION, N entries` on stderr when it has a coherent state, and when the connection is lost and comes
back. Then one line per mark that changed
something: REVISION put KEY=VALUE removed KEY. After a break: `continuous`, or `resynced` and why, on stderr. With --json
all of it is on stdout, one object a line: {\"ready\":{...}}, {\"epoch\":..,\"revision\":..,\"changes\":[..]},
{\"continuity\":..}, {\"missed\":..} when this program was too slow (the state is taken anew, and `ready` follows).
With --once: the entries as `storage scan` prints them, then `at EPOCH:REVISION, N entries, proven D ago` on stderr, or
{\"proof\":{...}}.";

/// Holds a coherent copy of a range and prints what changes in it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReplicaCommand {
    /// Keys that begin with this [default: all]
    #[arg(long, value_name = "P")]
    prefix: Option<OsString>,
    /// Keep the copy in this folder too, and begin with what it holds
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print the state as it is now, and end
    #[arg(long)]
    once: bool,
    /// Print the state's digest (HEX REVISION COUNT, as `storage digest`) instead of its entries and changes
    #[arg(long)]
    digest: bool,
    /// The most memory for the copy, in MiB; over it the command fails
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    memory: u32,
    /// Tell changes at most this often, such as 1s
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    interval: Option<Duration>,
}

impl ReplicaCommand {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let range = app.form().arguments().prefix(self.prefix.as_deref())?;
        let open = self.open(app, range);
        let replica = app.unless_interrupted(open).await?;
        let done = match self.once {
            true => {
                app.unless_interrupted(self.print_once(&replica, app, out))
                    .await
            }
            false => self.print_live(&replica, app, out).await,
        };
        // What went wrong before says more than what went wrong at the end.
        let closed = replica.close().await.map_err(failure);
        done.and(closed).map(|()| Exit::Done)
    }

    async fn open(&self, app: &App, range: KeyRange) -> anyhow::Result<Replica> {
        let storage = app.connect().await?;
        app.tell_outages();
        let mut options = ReplicaOptions::new()
            .memory_bytes_max(usize::try_from(self.memory)?.saturating_mul(1 << 20))
            .min_interval(self.interval.unwrap_or_default());
        if let Some(dir) = &self.dir {
            options = options.persist(dir, storage.keyspace().as_str());
        }
        let replica = Replica::start(Arc::new(storage), range, options).await;
        replica.map_err(failure)
    }

    async fn print_once(
        &self,
        replica: &Replica,
        app: &App,
        out: &mut Output,
    ) -> anyhow::Result<()> {
        first_state(replica, app).await?;
        replica.sync(app.timeout()).await.map_err(failure)?;
        let read = replica
            .scan(replica.range(), false, None)
            .map_err(failure)?;
        if self.digest {
            return self.print_digest(&read, app, out);
        }
        for (key, entry) in &read.value {
            let form = app.form();
            match app.json() {
                true => out.line(&Object::new().entry(key, entry).finish())?,
                false => out.line(&format!("{}\t{}", form.show(key), form.show(&entry.value)))?,
            }
        }
        let (proof, entries) = (read.proof, read.value.len());
        match app.json() {
            true => {
                let object = proof_object(proof, entries);
                out.line(&Object::new().object("proof", object).finish())?;
            }
            false => tell(format_args!("at {}", proof_text(proof, entries))),
        }
        Ok(())
    }

    async fn print_live(
        &self,
        replica: &Replica,
        app: &App,
        out: &mut Output,
    ) -> anyhow::Result<()> {
        let mut closed = pin!(stdout_closed());
        tokio::select! {
            biased;
            () = app.interrupt.cancelled() => return Ok(()),
            () = closed.as_mut() => return Err(StdoutClosed.into()),
            ready = first_state(replica, app) => ready?,
        };
        let mut changes = self.print_ready(replica, app, out)?;
        loop {
            let event = tokio::select! {
                biased;
                () = app.interrupt.cancelled() => return Ok(()),
                () = closed.as_mut() => return Err(StdoutClosed.into()),
                event = changes.next() => event.map_err(failure)?,
            };
            match event {
                Some(ReplicaEvent::Changed(_)) if self.digest => {
                    let read = replica.scan(replica.range(), false, None);
                    self.print_digest(&read.map_err(failure)?, app, out)?;
                }
                Some(ReplicaEvent::Changed(batch)) if app.json() => {
                    out.line(&batch_object(&batch).finish())?;
                }
                Some(ReplicaEvent::Changed(batch)) => out.line(&batch_text(&batch, app.form()))?,
                Some(ReplicaEvent::Continuity(news)) => {
                    let (word, why) = continuity(&news);
                    let message = format!("{word}: {why}");
                    match app.json() {
                        true => out.line(
                            &Object::new()
                                .text("continuity", word)
                                .text("message", &message)
                                .finish(),
                        )?,
                        false => tell(message),
                    }
                }
                Some(ReplicaEvent::Missed { to, .. }) => {
                    let to = to.map_or_else(|| "now".to_owned(), |to| to.to_string());
                    match app.json() {
                        true => out.line(&Object::new().text("missed", &to).finish())?,
                        false => tell(format_args!(
                            "missed: changes up to {to} are not told; the state is taken anew"
                        )),
                    }
                    changes = self.print_ready(replica, app, out)?;
                }
                // Of a kind that this version does not know.
                Some(_) => {}
                // An error comes before the end.
                None => return Ok(()),
            }
            out.flush()?;
        }
    }

    /// Says that there is a state, and gives what changes after it.
    fn print_ready(
        &self,
        replica: &Replica,
        app: &App,
        out: &mut Output,
    ) -> anyhow::Result<Changes> {
        let (read, changes) = replica.scan_and_changes().map_err(failure)?;
        let (proof, entries) = (read.proof, read.value.len());
        match app.json() {
            true => {
                let object = proof_object(proof, entries);
                out.line(&Object::new().object("ready", object).finish())?;
            }
            false => tell(format_args!("ready at {}", proof_text(proof, entries))),
        }
        if self.digest {
            self.print_digest(&read, app, out)?;
        }
        out.flush()?;
        Ok(changes)
    }

    fn print_digest(
        &self,
        read: &Proven<Vec<(Key, Entry)>>,
        app: &App,
        out: &mut Output,
    ) -> anyhow::Result<()> {
        let mut entries = Entries::default();
        for (key, entry) in &read.value {
            entries.add(key, &entry.value);
        }
        let (hex, position) = (entries.finish(), read.proof.position);
        let count = read.value.len();
        match app.json() {
            false => out.line(&format!("{hex} {} {count}", position.revision)),
            true => out.line(
                &Object::new()
                    .text("sha256", &hex)
                    .position(position)
                    .number("count", count as u64)
                    .finish(),
            ),
        }
    }
}

/// Waits for the first coherent state: as long as some of it comes within the time that an answer may take, and while the
/// connection is away.
async fn first_state(replica: &Replica, app: &App) -> anyhow::Result<()> {
    let mut before = 0;
    loop {
        if let Ok(ready) = tokio::time::timeout(app.timeout(), replica.ready()).await {
            return ready.map(drop).map_err(failure);
        }
        let fetched = replica.status().states_fetched;
        if app.is_connected() && fetched == before {
            let outcome = Outcome::NotExecuted;
            let error = anyhow::Error::new(StorageError::DeadlineExceeded { outcome });
            let timeout = humantime::format_duration(app.timeout());
            return Err(error.context(format!("no state came within {timeout} (--timeout)")));
        }
        before = fetched;
    }
}

/// A folder that cannot be used is wrong usage; the rest is what the storage said.
fn failure(error: ReplicaError) -> anyhow::Error {
    match error {
        ReplicaError::TimedOut { .. } => {
            let text = error.to_string();
            let outcome = Outcome::NotExecuted;
            anyhow::Error::new(StorageError::DeadlineExceeded { outcome }).context(text)
        }
        ReplicaError::Folder { .. } | ReplicaError::NotSaved { .. } => usage(error.to_string()),
        error => error.into(),
    }
}

fn proof_text(proof: Proof, entries: usize) -> String {
    let age = match proof.age {
        Some(age) => format!(
            "proven {} ago",
            humantime::format_duration(whole_millis(age))
        ),
        None => "not proven yet".to_owned(),
    };
    format!("{}, {entries} entries, {age}", proof.position)
}

fn proof_object(proof: Proof, entries: usize) -> Object {
    let object = Object::new()
        .position(proof.position)
        .number("entries", entries as u64);
    match proof.age {
        Some(age) => {
            let millis = u64::try_from(whole_millis(age).as_millis());
            object.number("age_ms", millis.unwrap_or(u64::MAX))
        }
        None => object.raw("age_ms", "null"),
    }
}

/// Rounded up: an age may say too much, and never too little.
fn whole_millis(age: Duration) -> Duration {
    let millis = u64::try_from(age.as_nanos().div_ceil(1_000_000));
    Duration::from_millis(millis.unwrap_or(u64::MAX))
}

fn batch_text(batch: &ChangeBatch, form: Form) -> String {
    let mut text = batch.position.revision.to_string();
    for change in &batch.changes {
        let key = form.key_field(&change.key);
        text.push_str(&match &change.entry {
            Some(entry) => format!(" put {key}={}", form.value_field(&entry.value)),
            None => format!(" removed {key}"),
        });
    }
    text
}

fn batch_object(batch: &ChangeBatch) -> Object {
    let changes = batch.changes.iter().map(|change| match &change.entry {
        Some(entry) => Object::new().object("put", Object::new().entry(&change.key, entry)),
        None => Object::new().object("removed", Object::new().bytes("key", &change.key)),
    });
    Object::new()
        .position(batch.position)
        .list("changes", changes)
}

fn continuity(news: &Continuity) -> (&'static str, String) {
    match news {
        Continuity::Continuous => ("continuous", "nothing was missed".to_owned()),
        Continuity::Resynced {
            why: ResyncReason::EpochChanged { epoch, fork },
        } => ("resynced", epoch_words(*epoch, *fork)),
        Continuity::Resynced {
            why: ResyncReason::Compacted { .. },
        } => (
            "resynced",
            "removals are not known so far back; everything was fetched anew".to_owned(),
        ),
        Continuity::Resynced {
            why: ResyncReason::AccessChanged,
        } => (
            "resynced",
            "what may be watched has changed; everything was fetched anew".to_owned(),
        ),
        // A newer library may tell more.
        other => ("resynced", format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{EntryLifetime, Epoch, Position, Revision};

    use super::*;
    use storage_client::replica::KeyChange;

    #[test]
    fn a_batch_is_one_line() {
        let entry = Entry {
            value: "1".into(),
            revision: Revision(6),
            lifetime: EntryLifetime::Forever,
        };
        let change = |key: &'static str, entry| KeyChange {
            key: key.into(),
            entry,
        };
        let batch = ChangeBatch {
            position: Position {
                epoch: Epoch(0xe),
                revision: Revision(7),
            },
            changes: vec![change("a", Some(entry)), change("b\n", None)],
        };
        let text = Form { hex: false };
        assert_eq!(batch_text(&batch, text), "7 put a=1 removed b\\n");
        assert_eq!(
            batch_object(&batch).finish(),
            "{\"epoch\":\"000000000000000e\",\"revision\":7,\"changes\":[{\"put\":{\"key\":\"a\",\"value\":\"1\",\
             \"revision\":6}},{\"removed\":{\"key\":\"b\\n\"}}]}"
        );
    }

    #[test]
    fn an_age_is_rounded_up() {
        let proof = |age| Proof {
            position: Position::default(),
            age,
        };
        let old = proof(Some(Duration::from_micros(1_001)));
        assert_eq!(
            proof_text(old, 3),
            "0000000000000000:0, 3 entries, proven 2ms ago"
        );
        assert!(proof_text(proof(None), 3).ends_with("not proven yet"));
        let object = proof_object(old, 3).finish();
        assert!(object.ends_with("\"entries\":3,\"age_ms\":2}"), "{object}");
    }
}

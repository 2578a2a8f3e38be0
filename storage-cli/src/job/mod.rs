//! `job`: what is due at a time and handed to a recipient. One file per sub-command that has something to it.

mod add;
mod follow;
mod list;

use clap::{Args, Subcommand};
use storage_protocol::deliveries::{Deliveries, DeliveryError, JobId, JobState, Stored};
use storage_schedule::instant_text;

use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::json::Object;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage job add LAB-3 '{\"package_name\":\"a\",\"path\":\"store/a.std\"}' --at 'tomorrow 9:00'
  storage job add printer @page.ps --at 'in 10m' --id page-7
  storage job add backup now! --at 2:00 --zone Europe/Berlin --cron '0 2 * * MON-FRI'
  storage job list --state pending --to LAB-3
  storage job follow page-7
  storage job force page-7
  storage job cancel page-7

Jobs are entries below deliveries/ of the keyspace that the URL names. They become due by the clock of a server that has the
keyspace in deliveries.keyspaces, or serves it by the gateway robots. `storage deliver` is the receiving side.";

/// Schedules jobs, and looks after them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Job {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(add::Add),
    List(list::List),
    Follow(follow::Follow),
    /// Sees to it that a job is not delivered any more
    Cancel {
        /// Its id
        id: String,
    },
    /// Makes a job due now, and not again at its time
    Force {
        /// Its id
        id: String,
    },
    /// Removes a job with its record, whatever became of it
    Rm {
        /// Its id
        id: String,
    },
}

impl Job {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        match self.command {
            Command::Add(add) => add.run(app, out).await,
            Command::List(list) => list.run(app, out).await,
            Command::Follow(follow) => follow.run(app, out).await,
            Command::Cancel { id } => {
                let id = id_of(&id)?;
                let deliveries = open(app).await?;
                app.writing();
                let done = deliveries.cancel(&id).await;
                changed(app, out, done)
            }
            Command::Force { id } => {
                let id = id_of(&id)?;
                let deliveries = open(app).await?;
                app.writing();
                let done = deliveries.force(&id).await;
                changed(app, out, done)
            }
            Command::Rm { id } => {
                let id = id_of(&id)?;
                let deliveries = open(app).await?;
                app.writing();
                let removed = deliveries.remove(&id, |_| Ok(())).await;
                app.written();
                removed.map_err(error)?;
                Ok(Exit::Done)
            }
        }
    }
}

fn changed(
    app: &App,
    out: &mut Output,
    done: Result<Stored, DeliveryError>,
) -> anyhow::Result<Exit> {
    app.written();
    let stored = done.map_err(error)?;
    out.line(&show(app, &stored))?;
    Ok(Exit::Done)
}

pub(crate) async fn open(app: &App) -> anyhow::Result<Deliveries> {
    let storage = app.connect().await?;
    Ok(Deliveries::new(std::sync::Arc::new(storage)))
}

fn id_of(text: &str) -> anyhow::Result<JobId> {
    text.parse()
        .map_err(|error: storage_protocol::deliveries::NameError| usage(error.to_string()))
}

/// What the storage says keeps its exit code.
pub(crate) fn error(error: DeliveryError) -> anyhow::Error {
    match error {
        DeliveryError::Storage(error) => error.into(),
        DeliveryError::Invalid(text) => usage(text),
        error => error.into(),
    }
}

/// A job on one line.
fn show(app: &App, stored: &Stored) -> String {
    let Stored { id, job, revision } = stored;
    let state = job.state.kind().word();
    if !app.json() {
        let (to, due) = (&job.recipient, instant_text(job.due));
        let more = match &job.state {
            JobState::Failed { reason } => format!("\t{}", escape::text(reason.as_bytes())),
            _ => String::new(),
        };
        return format!("{id}\t{state}\t{to}\t{due}\t{}{more}", job.attempts);
    }
    let mut object = Object::new()
        .text("id", id.as_str())
        .text("state", state)
        .text("to", job.recipient.as_str())
        .number("due_ms", job.due.0)
        .text("due", &instant_text(job.due))
        .number("attempts", u64::from(job.attempts))
        .text("owner", &job.owner)
        .number("created_ms", job.created.0)
        .number("changed_ms", job.changed.0);
    if let Some(time) = job.handed_over {
        object = object.number("handed_over_ms", time.0);
    }
    if let Some(wake) = job.state.wake() {
        object = object.number("wake_ms", wake.0);
    }
    if let Some(recurrence) = &job.recurrence {
        object = object.text("recurrence", recurrence);
    }
    if let JobState::Failed { reason } = &job.state {
        object = object.text("reason", reason);
    }
    object
        .bytes("payload", &job.payload)
        .number("revision", revision.0)
        .finish()
}

//! `job add`: schedules one.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;
use storage_protocol::deliveries::{DEFAULT_PREFIX, NameError, NewJob, Policy, Recipient, Silence};
use storage_protocol::{StorageExt, UnixMillis};
use storage_schedule::{Recurring, ScheduleError, Zone, instant_text, parse_when};

use super::{error, id_of};
use crate::app::App;
use crate::failure::{Exit, usage};
use crate::json::Object;
use crate::output::Output;
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage job add LAB-3 hello --at now
  storage job add LAB-3 @order.json --at '2026-12-24 18:00' --zone Europe/Berlin --id order-7
  storage job add backup full --at 'in 1h' --every 6h
  storage job add backup full --at 'tomorrow 2:00' --cron '0 2 * * MON-FRI' --zone Europe/Berlin

WHEN is now, \"in 5m\", \"9:00\" (the next one), \"tomorrow 9:00\", \"2026-12-24 18:00\" or \"2026-12-24T17:00:00Z\".
Prints the id of the job. With --id the same command twice makes one job: the second is refused with exit code 1.";

/// Schedules a job
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Add {
    /// Whom it is for: a name, of a robot its address
    recipient: String,
    /// What is handed over (text, @FILE or -), at most 64 KiB
    payload: OsString,
    /// When it is due, or due first
    #[arg(long, value_name = "WHEN")]
    at: String,
    /// Its id [default: a random one]
    #[arg(long)]
    id: Option<String>,
    /// The time zone of WHEN and of --cron, such as Europe/Berlin or UTC
    #[arg(long, value_name = "ZONE", default_value = "system")]
    zone: String,
    /// It recurs at this distance
    #[arg(long, value_name = "D", conflicts_with = "cron")]
    every: Option<String>,
    /// It recurs at these times: minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
    /// Times that it is handed over at most
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
    /// The pause behind the first attempt that failed; each further one is twice as long, up to 5m
    #[arg(long, value_name = "D", default_value = "1s", value_parser = humantime::parse_duration)]
    backoff: Duration,
    /// How long it waits for a recipient that is not there
    #[arg(long, value_name = "D", default_value = "24h", value_parser = humantime::parse_duration)]
    window: Duration,
    /// How long the recipient may take to acknowledge it
    #[arg(long, value_name = "D", default_value = "30s", value_parser = humantime::parse_duration)]
    ack: Duration,
    /// It counts as acknowledged then, and is not tried again
    #[arg(long)]
    silence_is_done: bool,
    /// Who schedules it: a label. The gateway robots lets the user of this principal cancel and force it
    #[arg(long, value_name = "PRINCIPAL", default_value = "storage")]
    owner: String,
    /// How long its record is kept once it has ended
    #[arg(long, value_name = "D", default_value = "30d", value_parser = humantime::parse_duration)]
    keep: Duration,
}

fn wrong(error: ScheduleError) -> anyhow::Error {
    usage(error.to_string())
}

impl Add {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let zone = Zone::named(&self.zone).map_err(wrong)?;
        let due = parse_when(&self.at, &zone, UnixMillis::now()).map_err(wrong)?;
        let recurrence = self.recurrence(&zone)?;
        let recipient = Recipient::new(&self.recipient);
        let recipient = recipient.map_err(|error: NameError| usage(error.to_string()))?;
        let payload = app.form().arguments().bytes("PAYLOAD", &self.payload)?;
        let id = self.id.as_deref().map(id_of).transpose()?;
        let storage = app.connect().await?;
        let deliveries =
            storage_protocol::deliveries::Deliveries::new(std::sync::Arc::new(storage.clone()));
        let new = NewJob {
            id,
            recurrence,
            owner: self.owner,
            policy: Policy {
                attempts_max: self.attempts,
                backoff: self.backoff,
                window: self.window,
                ack: self.ack,
                silence: if self.silence_is_done {
                    Silence::Done
                } else {
                    Silence::Retry
                },
                keep: self.keep,
                ..Policy::default()
            },
            ..NewJob::new(recipient, due, payload)
        };
        let beacon = format!("{DEFAULT_PREFIX}scheduler");
        let looked_after = storage.get_one(beacon.into()).await;
        app.writing();
        let scheduled = deliveries.schedule(&new).await;
        app.written();
        let (id, position) = scheduled.map_err(error)?;
        match app.json() {
            true => {
                let object = Object::new().text("id", id.as_str());
                let object = object
                    .number("due_ms", due.0)
                    .text("due", &instant_text(due));
                out.line(&object.position(position).finish())?;
            }
            false => out.line(id.as_str())?,
        }
        if let Ok(None) = looked_after {
            tell(
                "warning: no server looks after the jobs of this keyspace, so it will not become due (see \
                 deliveries.keyspaces in the server's configuration)",
            );
        }
        Ok(Exit::Done)
    }

    /// As the server reads it.
    fn recurrence(&self, zone: &Zone) -> anyhow::Result<Option<String>> {
        let text = match (&self.every, &self.cron) {
            (None, None) => return Ok(None),
            (Some(every), _) => format!("every {every}"),
            (None, Some(cron)) if self.zone == "system" => {
                // The server may be in another zone.
                format!("cron {cron} in {}", named(zone)?)
            }
            (None, Some(cron)) => format!("cron {cron} in {}", self.zone),
        };
        text.parse::<Recurring>().map_err(wrong)?;
        Ok(Some(text))
    }
}

fn named(zone: &Zone) -> anyhow::Result<String> {
    match zone.to_string() {
        name if name == "system" => Err(usage(
            "this machine does not say which time zone it is in: name one with --zone",
        )),
        name => Ok(name),
    }
}

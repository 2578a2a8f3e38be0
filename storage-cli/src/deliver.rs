//! `deliver`: receives the jobs of a recipient, and acknowledges them.

use std::process::Stdio;

use clap::Args;
use storage_protocol::deliveries::{Delivery, DeliveryError, NameError, Recipient};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::app::App;
use crate::failure::{Exit, usage};
use crate::job;
use crate::json::Object;
use crate::output::Output;
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage deliver printer                          # prints payloads, a line each
  storage deliver printer --count 1 --json
  storage deliver printer -- lp -                  # runs a command for each, with the payload on its stdin

A job is acknowledged once it is printed, or once the command has ended with 0; else it is declined, and comes again behind a
pause as long as it has attempts left. A job may come more than once: JOB_ID, in the environment of the command, tells which it
is. Ends with Ctrl-C; what was handed over and not acknowledged comes again.";

/// Receives the jobs of a recipient
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Deliver {
    /// Whose jobs
    recipient: String,
    /// End after N jobs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// What is run for each job
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Deliver {
    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let recipient = Recipient::new(&self.recipient);
        let recipient = recipient.map_err(|error: NameError| usage(error.to_string()))?;
        let deliveries = job::open(app).await?;
        let holder = format!("storage:{}:{}", std::process::id(), deliveries.now().0);
        let mut receiver = deliveries.receive(&recipient, &holder);
        app.tell_outages();
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            let delivery = match receiver.next().await {
                Ok(delivery) => delivery,
                // It stays as it is.
                Err(error @ DeliveryError::Record { .. }) => {
                    tell(format_args!("{error}; it is passed over"));
                    continue;
                }
                Err(error) => return Err(job::error(error)),
            };
            app.writing();
            let done = self.carry_out(app, out, &delivery).await;
            app.written();
            done?;
            left -= 1;
        }
        Ok(Exit::Done)
    }

    async fn carry_out(
        &self,
        app: &App,
        out: &mut Output,
        delivery: &Delivery,
    ) -> anyhow::Result<()> {
        let Some((program, arguments)) = self.command.split_first() else {
            out.line(&show(app, delivery))?;
            out.flush()?;
            return settled(delivery, delivery.acknowledge().await);
        };
        match run(program, arguments, delivery).await {
            Ok(()) => settled(delivery, delivery.acknowledge().await),
            Err(why) => {
                tell(format_args!("job {}: {why}; it is declined", delivery.id()));
                settled(delivery, delivery.decline(&why).await)
            }
        }
    }
}

/// What became of an answer: somebody may have cancelled or removed the job meanwhile, which is no failure of this command's.
fn settled(delivery: &Delivery, done: Result<(), DeliveryError>) -> anyhow::Result<()> {
    match done {
        Ok(()) => Ok(()),
        Err(error @ (DeliveryError::Refused { .. } | DeliveryError::NoJob(_))) => {
            tell(format_args!("job {}: {error}", delivery.id()));
            Ok(())
        }
        Err(error) => Err(job::error(error)),
    }
}

fn show(app: &App, delivery: &Delivery) -> String {
    match app.json() {
        true => Object::new()
            .text("id", delivery.id().as_str())
            .number("attempt", u64::from(delivery.stored.job.attempts))
            .number("due_ms", delivery.stored.job.due.0)
            .bytes("payload", delivery.payload())
            .finish(),
        false => app.form().show(delivery.payload()).into_owned(),
    }
}

async fn run(program: &str, arguments: &[String], delivery: &Delivery) -> Result<(), String> {
    let spawned = Command::new(program)
        .args(arguments)
        .env("JOB_ID", delivery.id().as_str())
        .env("JOB_ATTEMPT", delivery.stored.job.attempts.to_string())
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|error| format!("{program} cannot be run: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it has its reasons.
        let _ = stdin.write_all(delivery.payload()).await;
    }
    let ended = child
        .wait()
        .await
        .map_err(|error| format!("{program}: {error}"))?;
    match ended.success() {
        true => Ok(()),
        false => Err(format!("{program}: {ended}")),
    }
}

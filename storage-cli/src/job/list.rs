//! `job list`: which jobs there are, and what became of them.

use clap::Args;
use storage_protocol::deliveries::{JobFilter, LIST_MAX, NameError, Recipient, StateKind};

use super::{error, id_of, open, show};
use crate::app::App;
use crate::failure::{Exit, usage};
use crate::json::Object;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage job list
  storage job list --state pending --state ready --to LAB-3
  storage job list --state failed --json
  storage job list --count

Prints ID<TAB>state<TAB>recipient<TAB>when it is due<TAB>attempts, a line for each; of one that failed the reason behind that.
States are pending, ready, claimed, delivered, done, failed and cancelled.";

/// Prints jobs
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct List {
    /// Of this state; may be given several times
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Vec<StateKind>,
    /// For this recipient
    #[arg(long, value_name = "RECIPIENT")]
    to: Option<String>,
    /// Scheduled by this owner
    #[arg(long)]
    owner: Option<String>,
    /// Behind this id
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Stop after N jobs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// How many there are of each state, and nothing else
    #[arg(long, conflicts_with_all = ["after", "limit"])]
    count: bool,
}

fn state(text: &str) -> Result<StateKind, String> {
    let words: Vec<_> = StateKind::ALL.iter().map(|kind| kind.word()).collect();
    StateKind::from_word(text).ok_or_else(|| format!("it is one of {}", words.join(", ")))
}

impl List {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let recipient = self.to.as_deref().map(Recipient::new).transpose();
        let filter = JobFilter {
            states: self.state,
            recipient: recipient.map_err(|error: NameError| usage(error.to_string()))?,
            owner: self.owner,
        };
        let mut after = self.after.as_deref().map(id_of).transpose()?;
        let deliveries = open(app).await?;
        if self.count {
            let counters = deliveries.count(&filter).await.map_err(error)?;
            match app.json() {
                true => {
                    let object = StateKind::ALL
                        .into_iter()
                        .fold(Object::new(), |object, kind| {
                            object.number(kind.word(), counters.of(kind))
                        });
                    out.line(&object.number("all", counters.all).finish())?;
                }
                false => {
                    for kind in StateKind::ALL {
                        out.line(&format!("{kind}\t{}", counters.of(kind)))?;
                    }
                    out.line(&format!("all\t{}", counters.all))?;
                }
            }
            return Ok(Exit::Done);
        }
        let mut left = self.limit.unwrap_or(u64::MAX);
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(LIST_MAX);
            let page = deliveries.list(&filter, after.as_ref(), wanted).await;
            let page = page.map_err(error)?;
            for stored in &page.jobs {
                out.line(&show(app, stored))?;
            }
            out.flush()?;
            left -= (page.jobs.len() as u64).min(left);
            if page.unreadable > 0 {
                crate::tell(format_args!(
                    "{} records of jobs cannot be read",
                    page.unreadable
                ));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(Exit::Done)
    }
}

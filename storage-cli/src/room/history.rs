//! `room history`.

use clap::Args;
use storage_protocol::Revision;
use storage_protocol::rooms::{HistoryWish, MessageId, PAGE_MESSAGES_MAX};

use super::{Which, connect, open, show};
use crate::app::App;
use crate::failure::Exit;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage room history NODE n-1
  storage room history NODE n-1 --limit 20 --before 00000000000000780123456789abcdef
  storage --json room history NODE n-1 --all

Prints ID<TAB>TIME<TAB>AUTHOR<TAB>TEXT lines, the oldest first; what does not show is escaped as `scan` does.";

/// Prints the newest messages of a room
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct History {
    #[command(flatten)]
    which: Which,
    /// At most N messages
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Only messages before the one with this id
    #[arg(long, value_name = "ID")]
    before: Option<MessageId>,
    /// All messages, from the first on
    #[arg(long, conflicts_with_all = ["limit", "before"])]
    all: bool,
}

impl History {
    pub(super) async fn run(
        self,
        app: &App,
        out: &mut Output,
        prefix: String,
    ) -> anyhow::Result<Exit> {
        let key = self.which.key()?;
        let rooms = connect(app, prefix).await?;
        let Some(room) = open(&rooms, &key).await? else {
            return Ok(Exit::Refused);
        };
        if self.all {
            let mut after = Revision::ZERO;
            loop {
                let page = rooms
                    .messages_after(room.id, after, PAGE_MESSAGES_MAX)
                    .await?;
                for message in &page.messages {
                    out.line(&show(app, message))?;
                }
                out.flush()?;
                match page.messages.last() {
                    Some(last) if page.more => after = last.id.revision,
                    _ => return Ok(Exit::Done),
                }
            }
        }
        // From the newest on, page by page, and told the other way round.
        let (mut messages, mut before) = (Vec::new(), self.before.map(|id| id.revision));
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        while messages.len() < limit {
            let wish = HistoryWish {
                before,
                offset: 0,
                limit: (limit - messages.len()).min(PAGE_MESSAGES_MAX),
            };
            let page = rooms.history(room.id, wish).await?;
            before = page.messages.first().map(|message| message.id.revision);
            messages.extend(page.messages.into_iter().rev());
            if !page.more {
                break;
            }
        }
        for message in messages.iter().rev() {
            out.line(&show(app, message))?;
        }
        Ok(Exit::Done)
    }
}

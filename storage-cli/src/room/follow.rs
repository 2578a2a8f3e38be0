//! `room follow`: what is said, line by line, as it happens.

use std::pin::pin;

use anyhow::anyhow;
use clap::Args;
use storage_protocol::rooms::{MessageId, PAGE_MESSAGES_MAX, RoomEvent};
use storage_protocol::{Continuity, Revision, WatchStart};

use super::{Which, connect, open, show};
use crate::app::App;
use crate::escape;
use crate::failure::{Exit, StdoutClosed};
use crate::json::Object;
use crate::output::{Output, stdout_closed};
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage room follow NODE n-1
  storage room follow NODE n-1 --beginning --count 10
  storage --json room follow NODE n-1 --after 00000000000000780123456789abcdef --members

Prints messages as `room history` does. With --after each message behind that one comes once, however long ago that was. With
--json a deleted message is {\"deleted\":REVISION}, and with --members {\"joined\":USER,\"socket\":SOCKET} and {\"left\":...}. Says
`following ROOM` on stderr when it is attached. Ctrl-C ends it.";

/// Prints messages as they come
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Follow {
    #[command(flatten)]
    which: Which,
    /// Begin behind the message with this id [default: now]
    #[arg(long, value_name = "ID")]
    after: Option<MessageId>,
    /// Begin with the first message
    #[arg(long, conflicts_with = "after")]
    beginning: bool,
    /// Tell who joins and leaves, too
    #[arg(long)]
    members: bool,
    /// End after N messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

impl Follow {
    pub(super) async fn run(
        self,
        app: &App,
        out: &mut Output,
        prefix: String,
    ) -> anyhow::Result<Exit> {
        let key = self.which.key()?;
        let opening = async {
            let rooms = connect(app, prefix).await?;
            let room = open(&rooms, &key).await?;
            Ok((rooms, room))
        };
        let (rooms, room) = app.unless_interrupted(opening).await?;
        let Some(room) = room else {
            return Ok(Exit::Refused);
        };
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut told = match (self.after, self.beginning) {
            (Some(after), _) => Some(after.revision),
            (None, true) => Some(Revision::ZERO),
            (None, false) => None,
        };
        let mut start = WatchStart::Now;
        // After a break that the log does not reach over, messages are told again.
        let mut last = told.unwrap_or(Revision::ZERO);
        while let Some(after) = told {
            let reading = async {
                Ok(rooms
                    .messages_after(room.id, after, PAGE_MESSAGES_MAX)
                    .await?)
            };
            let page = app.unless_interrupted(reading).await?;
            for message in page
                .messages
                .iter()
                .take(usize::try_from(left).unwrap_or(usize::MAX))
            {
                out.line(&show(app, message))?;
                last = last.max(message.id.revision);
                left -= 1;
            }
            out.flush()?;
            if left == 0 {
                return Ok(Exit::Done);
            }
            match page.messages.last() {
                Some(last) if page.more => told = Some(last.id.revision),
                _ => {
                    start = WatchStart::After(page.position);
                    break;
                }
            }
        }
        let following = async { Ok(rooms.follow(room.id, start).await?) };
        let mut feed = app.unless_interrupted(following).await?;
        app.tell_outages();
        let mut closed = pin!(stdout_closed());
        tell(format_args!("following {}", room.id));
        while left > 0 {
            let event = tokio::select! {
                biased;
                () = app.interrupt.cancelled() => break,
                () = closed.as_mut() => return Err(StdoutClosed.into()),
                event = feed.next() => event?.ok_or_else(|| anyhow!("the watch has ended"))?,
            };
            let is_message = match &event {
                RoomEvent::Message(message) if message.id.revision <= last => continue,
                RoomEvent::Message(message) => {
                    last = message.id.revision;
                    true
                }
                _ => false,
            };
            if matches!(event, RoomEvent::Removed) {
                tell("the room is removed");
                return Ok(Exit::Done);
            }
            if let Some(line) = self.line(app, &event) {
                out.line(&line)?;
                out.flush()?;
            }
            left -= u64::from(is_message);
        }
        Ok(Exit::Done)
    }

    /// The line of an event, if it has one.
    fn line(&self, app: &App, event: &RoomEvent) -> Option<String> {
        match event {
            RoomEvent::Message(message) => Some(show(app, message)),
            RoomEvent::Deleted { revision, .. } if app.json() => {
                Some(Object::new().number("deleted", revision.0).finish())
            }
            RoomEvent::Deleted { revision, .. } => Some(format!("deleted {:016x}", revision.0)),
            RoomEvent::Joined { user, socket } if self.members => {
                Some(member(app, "joined", user, socket))
            }
            RoomEvent::Left { user, socket } if self.members => {
                Some(member(app, "left", user, socket))
            }
            RoomEvent::Continuity(Continuity::Resynced { .. }) => {
                tell(
                    "the server's log does not reach back: what was deleted meanwhile is not told",
                );
                None
            }
            _ => None,
        }
    }
}

fn member(app: &App, what: &str, user: &str, socket: &str) -> String {
    match app.json() {
        true => Object::new()
            .text(what, user)
            .text("socket", socket)
            .finish(),
        false => {
            let (user, socket) = (
                escape::text(user.as_bytes()),
                escape::text(socket.as_bytes()),
            );
            format!("{what} {user} {socket}")
        }
    }
}

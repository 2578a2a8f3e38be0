//! `room`: messages in order, as the rooms of `storage_protocol::rooms` have them.
//!
//! The rooms are those of the keyspace that the URL names, under `rooms/` or another prefix; the gateway `workspace` has the
//! same ones.

mod follow;
mod history;
mod list;
mod post;

use clap::{Args, Subcommand};
use storage_client::RemoteStorage;
use storage_protocol::rooms::{Message, PREFIX, Room, RoomKey, Rooms};

use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::json::Object;
use crate::output::Output;
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  export STORAGE_URL=wss://localhost:7443/storage/workspace STORAGE_CERTS=certs/dev STORAGE_IDENTITY=alice
  storage room list
  storage room post NODE n-1 'the plans are ready'
  storage room history NODE n-1 --limit 20
  storage --json room follow NODE n-1 --after 00000000000000780123456789abcdef

A room belongs to an object of a type: GLOBAL, WORKSPACE, USER and NODE are those of the gateway workspace.";

/// Shows rooms, posts to them, and follows them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RoomCommand {
    /// Where the rooms are: what their keys begin with
    #[arg(long, value_name = "P", default_value = PREFIX, global = true)]
    prefix: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Post(post::Post),
    History(history::History),
    Follow(follow::Follow),
}

/// Which room.
#[derive(Clone, Debug, Args)]
struct Which {
    /// Type of what the room belongs to, such as NODE
    #[arg(value_name = "TYPE")]
    kind: String,
    /// What it belongs to; "" for the one of a type that has none
    object: String,
}

impl Which {
    fn key(&self) -> anyhow::Result<RoomKey> {
        let key = RoomKey::new(self.kind.as_str(), self.object.as_str());
        key.map_err(|error| usage(error.to_string()))
    }
}

type RemoteRooms = Rooms<RemoteStorage>;

impl RoomCommand {
    /// Whether it stops in order by itself.
    pub(crate) fn stops_in_order(&self) -> bool {
        matches!(self.command, Command::Follow(_))
    }

    pub(crate) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let prefix = self.prefix;
        match self.command {
            Command::List(list) => list.run(app, out, prefix).await,
            Command::Post(post) => post.run(app, out, prefix).await,
            Command::History(history) => history.run(app, out, prefix).await,
            Command::Follow(follow) => follow.run(app, out, prefix).await,
        }
    }
}

async fn connect(app: &App, prefix: String) -> anyhow::Result<RemoteRooms> {
    let storage = app.connect().await?;
    Ok(Rooms::under(storage, prefix)?)
}

/// The room; `None`: there is none, which has been told.
async fn open(rooms: &RemoteRooms, key: &RoomKey) -> anyhow::Result<Option<Room>> {
    let room = rooms.open(key).await?;
    if room.is_none() {
        let object = escape::field(key.object().as_bytes(), false);
        tell(format_args!("there is no room of {} {object}", key.kind()));
    }
    Ok(room)
}

/// A message on a line: ID<TAB>TIME<TAB>AUTHOR<TAB>TEXT, or a JSON object.
fn show(app: &App, message: &Message) -> String {
    let id = message.id.to_string();
    if app.json() {
        let info = message.info.iter();
        let info = info.fold(Object::new(), |info, (name, text)| info.text(name, text));
        return Object::new()
            .text("id", &id)
            .number("revision", message.id.revision.0)
            .number("time_ms", message.time.0)
            .text("author", &message.author)
            .text("text", &message.text)
            .object("info", info)
            .finish();
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(message.time.0);
    // Within what the calendar of the crate has.
    let time = match message.time.0 {
        millis if millis < 253_402_300_800_000 => {
            humantime::format_rfc3339_seconds(time).to_string()
        }
        millis => format!("{millis} ms"),
    };
    let (author, text) = (message.author.as_bytes(), message.text.as_bytes());
    format!(
        "{id}\t{time}\t{}\t{}",
        escape::text(author),
        escape::text(text)
    )
}

//! One socket: its commands, and the events for its registrations.
//!
//! The events are the change feed of the peer's own storage, so rights, catching up from the log and bounds are those of
//! any watch. While the peer takes nothing, sending waits and the watch falls behind; it catches up from the log by
//! itself, and if the log does not reach back any more the client is told how much is lost at most.
//!
//! A bad command is answered, never punished.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::json;
use storage_protocol::{
    CommitRecord, KeyRange, Position, Revision, Storage, StorageError, StorageExt, UnixMillis,
    Watch, WatchEvent, WatchOptions, WatchStart,
};

use super::State;
use super::event::{Event, object_of, own, with_revision};
use super::filter::{Command, Filter, Since, parse_command};
use super::registrations::Registrations;
use crate::auth::rules::RuleSet;
use crate::gateway::{Close, Message, SendError, ServerHandle, WebSocket, close_code};

/// The longest message that is read, in bytes; a longer one closes with 1009. Commands are shorter; what is too long for
/// one is told.
pub(super) const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// How much of a command its error has.
const SHOWN_BYTES_MAX: usize = 256;
/// So many commands that wait are taken before the watch is adjusted to them.
const COMMANDS_AT_ONCE: usize = 64;
/// So many events are sent before others of the runtime have their turn.
const EVENTS_AT_ONCE: u32 = 32;
/// How often one who may watch nothing looks whether the rules have changed.
const RULES_LOOK: Duration = Duration::from_secs(1);
/// After a watch that could not be opened.
const RETRY: Duration = Duration::from_secs(1);
/// So many times in a row; then the socket is closed, and its client knows.
const RETRIES_MAX: u32 = 30;
/// An event is late if it is sent so long after its commit, and in time again within a quarter of that.
const LAG: Duration = Duration::from_secs(4);

/// The peer is gone.
struct Gone;

impl From<SendError> for Gone {
    fn from(_: SendError) -> Self {
        Self
    }
}

/// Serves a socket until its end.
pub(super) async fn serve(
    socket: WebSocket,
    state: Arc<State>,
    server: ServerHandle,
) -> Result<(), Close> {
    let mut conversation = Conversation {
        registrations: Registrations::new(&state.metrics.registrations),
        key_bytes_max: server.limits().key_bytes_max,
        socket,
        state,
        server,
        storage: None,
        live: None,
        is_adjusted: true,
        rules: None,
        mark_due: Instant::now(),
        retry: Retry::None,
        failures: 0,
        revisions: false,
        live_from: Revision::ZERO,
        is_late: false,
        sent: 0,
    };
    match conversation.run().await {
        Err(End::Gone) => Ok(()),
        Err(End::Close(close)) => Err(close),
        Ok(()) => Ok(()),
    }
}

enum End {
    Gone,
    Close(Close),
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

struct Live {
    watch: Watch,
    range: KeyRange,
}

impl Live {
    /// All up to here was looked at.
    fn position(&self) -> Position {
        self.watch.status().position
    }
}

/// When to try again to open a watch.
enum Retry {
    None,
    At(Instant),
    /// When these rules are replaced, which do not let it watch anything.
    Rules(Arc<RuleSet>),
}

enum Step {
    Said(Option<Message>),
    Told(Result<Option<WatchEvent>, StorageError>),
    Mark,
    Retry,
}

struct Conversation {
    socket: WebSocket,
    state: Arc<State>,
    server: ServerHandle,
    /// From the first registration on.
    storage: Option<Arc<dyn Storage>>,
    registrations: Registrations,
    key_bytes_max: usize,
    live: Option<Live>,
    /// Whether the watch is the one for the registrations.
    is_adjusted: bool,
    /// Those that the watch was opened by, or older ones.
    rules: Option<Arc<RuleSet>>,
    /// When the watch is to say how far it has come. Without that, the position of one that has nothing to tell would fall
    /// behind the log, and no other one could begin there.
    mark_due: Instant,
    retry: Retry,
    failures: u32,
    /// It has asked for a replay: its events have their revision, and it is told when they are late.
    revisions: bool,
    /// Events up to here are replayed, so they are no sign of being late.
    live_from: Revision,
    is_late: bool,
    sent: u32,
}

impl Conversation {
    async fn run(&mut self) -> Result<(), End> {
        loop {
            if !self.is_adjusted {
                self.adjust().await?;
            }
            match self.step().await {
                Step::Said(None) => return Ok(()),
                Step::Said(Some(message)) => {
                    self.hear(message).await?;
                    for _ in 1..COMMANDS_AT_ONCE {
                        // Ready now, or not at all.
                        let Some(next) = self.socket.receive().now_or_never() else {
                            break;
                        };
                        let Some(message) = next else {
                            return Ok(());
                        };
                        self.hear(message).await?;
                    }
                }
                Step::Told(told) => self.tell(told).await?,
                Step::Mark => self.ask_for_mark(),
                Step::Retry => self.is_adjusted = false,
            }
        }
    }

    async fn step(&mut self) -> Step {
        let Self {
            socket,
            live,
            mark_due,
            retry,
            server,
            ..
        } = self;
        let is_live = live.is_some();
        let told = async {
            match live {
                Some(live) => live.watch.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            said = socket.receive() => Step::Said(said),
            told = told => Step::Told(told),
            () = tokio::time::sleep_until((*mark_due).into()), if is_live => Step::Mark,
            () = wait(retry, server) => Step::Retry,
        }
    }

    fn ask_for_mark(&mut self) {
        if let Some(live) = &mut self.live {
            live.watch.request_progress(0);
        }
        self.mark_due = Instant::now() + self.server.config().timeouts.idle_mark;
    }

    /// Takes a message.
    async fn hear(&mut self, message: Message) -> Result<(), Gone> {
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(bytes) => {
                let frame = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]);
                let why = "a command is a text message, this is a binary one";
                return self.refuse(&frame, why).await;
            }
        };
        match parse_command(&text) {
            Err(error) => self.refuse(&text, &error.to_string()).await,
            Ok(Command::Register { filter, since }) => self.register(&text, filter, since).await,
            Ok(Command::Deregister { filter }) => {
                if !self.acknowledge("deregister", &filter).await? {
                    return Ok(());
                }
                let removed = self.registrations.remove(filter.as_str());
                self.is_adjusted &= removed.is_none();
                Ok(())
            }
        }
    }

    /// Says what is wrong with a command.
    async fn refuse(&mut self, frame: &str, why: &str) -> Result<(), Gone> {
        let shown = &frame[..frame.floor_char_boundary(SHOWN_BYTES_MAX)];
        let object = json!({ "Messages": [why] }).to_string();
        self.send(own("error", shown, &object)).await
    }

    /// Whether that could be done: the ack has the filter in it, in which escapes may take more room than in the command.
    /// One that no message has room for is refused.
    async fn acknowledge(&mut self, action: &str, filter: &Filter) -> Result<bool, Gone> {
        let ack = own(action, filter.as_str(), "null");
        match self.socket.send(Message::text(ack)).await {
            Ok(()) => Ok(true),
            Err(SendError::Disconnected) => Err(Gone),
            Err(error @ SendError::TooLong { .. }) => {
                let why = format!("its ack: {error} (message_bytes_max)");
                self.refuse(filter.as_str(), &why).await?;
                Ok(false)
            }
        }
    }

    /// Sends a text of the gateway's own, which has a bounded part of what the client said.
    async fn send(&mut self, text: String) -> Result<(), Gone> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    fn storage(&mut self) -> Arc<dyn Storage> {
        let open = || self.socket.storage(&self.state.config.keyspace);
        self.storage.get_or_insert_with(open).clone()
    }

    async fn register(
        &mut self,
        frame: &str,
        filter: Filter,
        since: Option<Since>,
    ) -> Result<(), Gone> {
        if let Err(why) = self.registrations.check_room(&filter) {
            return self.refuse(frame, &why).await;
        }
        // All that is committed from here on is told, once the ack is on its way.
        let now = match self.storage().sync().await {
            Ok(now) => now,
            Err(error) => return self.refuse(frame, &error.to_string()).await,
        };
        match since {
            Some(since) => self.replay(frame, filter, since, now).await,
            None => {
                if self.acknowledge("register", &filter).await? {
                    self.is_adjusted &= !self.registrations.add(filter, now);
                }
                Ok(())
            }
        }
    }

    /// Registers for what came after a position in the past, and for what is to come.
    async fn replay(
        &mut self,
        frame: &str,
        filter: Filter,
        since: Since,
        now: Position,
    ) -> Result<(), Gone> {
        let after = match since {
            Since::Position(position) => position,
            Since::Revision(revision) => Position {
                epoch: now.epoch,
                revision: Revision(revision),
            },
        };
        if after.epoch == now.epoch && after.revision > now.revision {
            let why = format!("since= lies in the future: the position is {now}");
            return self.refuse(frame, &why).await;
        }
        self.settle();
        let before = self.registrations.replay(filter.clone(), after);
        // One that is opened has found its start in the log.
        let opened = match self.wanted() {
            Some((range, start)) => self.open(range, start).await,
            None => Ok(None),
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.registrations.restore(filter.as_str(), before);
                self.is_adjusted = false;
                return self.refuse(frame, &error.to_string()).await;
            }
        };
        if !self.acknowledge("register", &filter).await? {
            self.registrations.restore(filter.as_str(), before);
            self.is_adjusted = false;
            return Ok(());
        }
        self.state.metrics.replays.inc();
        self.revisions = true;
        self.live_from = self.live_from.max(now.revision);
        self.follow(opened);
        Ok(())
    }

    /// The registrations have what the watch has told so far.
    fn settle(&mut self) {
        if let Some(live) = &self.live {
            self.registrations.told_up_to(live.position());
        }
    }

    /// Which keys are to be watched, and from where on.
    fn wanted(&self) -> Option<(KeyRange, Position)> {
        let range = self.registrations.range(self.key_bytes_max)?;
        Some((range, self.registrations.start()?))
    }

    /// A watch for all registrations. `None`: the peer may watch none of it, until the rules change.
    async fn open(
        &mut self,
        range: KeyRange,
        start: Position,
    ) -> Result<Option<Live>, StorageError> {
        // Ordering: the rules first, so that no change of them is missed.
        let rules = self.server.shared().access.rules();
        // A watch ends by a change of rules, but one that is replaced does not live to say so.
        let known = self.rules.replace(rules.clone());
        if known.is_some_and(|known| !Arc::ptr_eq(&known, &rules)) {
            self.registrations.doubt_what_was_told();
        }
        let options = WatchOptions::every(WatchStart::After(start));
        match self.storage().watch(range.clone(), options).await {
            Ok(watch) => Ok(Some(Live { watch, range })),
            Err(StorageError::AccessDenied { .. }) => {
                self.retry = Retry::Rules(rules);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Goes on with a new watch, if there is one.
    fn follow(&mut self, opened: Option<Live>) {
        if opened.is_some() {
            self.registrations.cover();
            self.retry = Retry::None;
            self.failures = 0;
            self.mark_due = Instant::now() + self.server.config().timeouts.idle_mark;
        }
        self.live = opened;
        self.is_adjusted = true;
    }

    /// Sees to it that there is the watch that the registrations need: nothing is lost by the change of one for another,
    /// and nothing told twice.
    async fn adjust(&mut self) -> Result<(), End> {
        self.settle();
        let Some((range, start)) = self.wanted() else {
            self.retry = Retry::None;
            self.follow(None);
            return Ok(());
        };
        if let Some(live) = &self.live
            && live.range == range
            && self.registrations.begin_behind(live.position())
        {
            self.registrations.cover();
            self.is_adjusted = true;
            return Ok(());
        }
        match self.open(range, start).await {
            Ok(opened) => self.follow(opened),
            Err(error) => {
                self.live = None;
                self.is_adjusted = true;
                self.broken(start, error).await?;
            }
        }
        Ok(())
    }

    /// There is no watch any more, for this reason; all was told up to `from`.
    async fn broken(&mut self, from: Position, error: StorageError) -> Result<(), End> {
        match error {
            StorageError::AccessChanged => {
                self.registrations.doubt_what_was_told();
                self.is_adjusted = false;
                Ok(())
            }
            StorageError::Compacted { oldest } => {
                let to = Position {
                    epoch: from.epoch,
                    revision: oldest,
                };
                let why = "the log does not reach back so far";
                Ok(self.lose(from, to, why).await?)
            }
            StorageError::EpochChanged { .. } => match self.storage().sync().await {
                Ok(now) => {
                    let why = "the store has another history now";
                    Ok(self.lose(from, now, why).await?)
                }
                Err(error) => self.try_later(&error),
            },
            error => self.try_later(&error),
        }
    }

    /// Tells how much is lost at most, and goes on behind it.
    async fn lose(&mut self, from: Position, to: Position, why: &str) -> Result<(), Gone> {
        let at_most = to.revision.0.saturating_sub(from.revision.0);
        let object = json!({
            "From": from.to_string(),
            "To": to.to_string(),
            "Messages": [why],
        });
        self.state.metrics.losses.inc();
        self.registrations.skip_to(to);
        self.is_adjusted = false;
        self.send(own("lost", &at_most.to_string(), &object.to_string()))
            .await
    }

    fn try_later(&mut self, error: &StorageError) -> Result<(), End> {
        self.failures += 1;
        tracing::debug!(%error, failures = self.failures, "a watch for events could not be opened");
        if self.failures > RETRIES_MAX {
            let close = Close::because(close_code::TRY_AGAIN, error.to_string());
            return Err(End::Close(close));
        }
        self.retry = Retry::At(Instant::now() + RETRY);
        Ok(())
    }

    /// Sends what the watch tells.
    async fn tell(&mut self, told: Result<Option<WatchEvent>, StorageError>) -> Result<(), End> {
        let error = match told {
            Ok(Some(WatchEvent::Commit(commit))) => return Ok(self.deliver(&commit).await?),
            // Marks are kept by the watch's position; the others are of other watches.
            Ok(Some(_)) => return Ok(()),
            Ok(None) => StorageError::AccessChanged,
            Err(error) => error,
        };
        self.settle();
        let from = self.live.take().map(|live| live.position());
        self.broken(from.unwrap_or_default(), error).await
    }

    async fn deliver(&mut self, commit: &CommitRecord) -> Result<(), Gone> {
        for change in &commit.changes {
            // A posted event is read through to learn its action: not by those who do not ask for its key.
            let Some((kind, key)) = object_of(&change.key) else {
                continue;
            };
            if !self.registrations.may_want(kind, key) {
                continue;
            }
            let Some(event) = Event::of(commit, change) else {
                continue;
            };
            if !self.registrations.want(&event, commit.revision) {
                continue;
            }
            if self.revisions {
                self.say_how_late(commit).await?;
            }
            let frames = &self.state.frames;
            let frame = frames.of(commit.revision, &change.key, || event.to_json());
            let message = match self.revisions {
                true => Message::text(with_revision(&frame, commit.revision)),
                false => Message::Text(frame),
            };
            match self.socket.send(message).await {
                Ok(()) => {}
                Err(SendError::Disconnected) => return Err(Gone),
                Err(error @ SendError::TooLong { .. }) => {
                    let name = format!("{}.{}.{}", event.kind(), event.action(), event.key());
                    self.refuse(&name, &format!("{error} (message_bytes_max)"))
                        .await?;
                }
            }
            self.state.metrics.events.inc();
            self.sent = self.sent.wrapping_add(1);
            if self.sent.is_multiple_of(EVENTS_AT_ONCE) {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Tells when the events begin to come late, once.
    async fn say_how_late(&mut self, commit: &CommitRecord) -> Result<(), Gone> {
        if commit.revision <= self.live_from {
            return Ok(());
        }
        let late = UnixMillis::now().0.saturating_sub(commit.time.0);
        let late = Duration::from_millis(late);
        if self.is_late {
            self.is_late = late > LAG / 4;
            return Ok(());
        }
        if late < LAG {
            return Ok(());
        }
        self.is_late = true;
        let millis = late.as_millis().to_string();
        let why = format!("events come {millis} ms after their commits");
        let object = json!({ "Messages": [why] }).to_string();
        self.send(own("lag", &millis, &object)).await
    }
}

/// Until a watch is to be tried again.
async fn wait(retry: &Retry, server: &ServerHandle) {
    match retry {
        Retry::None => std::future::pending().await,
        Retry::At(time) => tokio::time::sleep_until((*time).into()).await,
        Retry::Rules(rules) => loop {
            tokio::time::sleep(RULES_LOOK).await;
            if !Arc::ptr_eq(rules, &server.shared().access.rules()) {
                return;
            }
        },
    }
}

//! The WebSocket at `/`: subscriptions, and the documents of what is uploaded.
//!
//! A socket has storage of its own, as its peer, and one watch in it, over the hull of its subscriptions. What the watch
//! tells is durable, in commit order, and what the peer may see; a document goes out once for each commit that puts it,
//! whichever of the subscriptions it is of. Removals are not told.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use storage_protocol::{
    ChangeKind, CommitRecord, Epoch, Key, KeyState, Outcome, Position, Revision, Storage,
    StorageError, StorageExt, Watch, WatchEvent, WatchOptions, WatchStart,
};

use super::house::House;
use super::keys;
use super::metadata::with_revision;
use super::place::Place;
use super::subscribe::{Subscribe, error_frame, parse_subscribe};
use super::subscriptions::{SUBSCRIPTIONS_MAX, Subscriptions, Topic};
use crate::auth::Proof;
use crate::auth::rules::RuleSet;
use crate::gateway::events::filter::Since;
use crate::gateway::{Close, Guest, Message, UpgradeRequest, WebSocket, close_code};

/// The longest message that a connection takes at all. One over this closes it; one that is merely too long for a
/// subscription is answered with an error.
pub(super) const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// What is told before the newest documents.
const NEWEST_ONLY: &str = "the log does not reach back to there: of each file the newest document follows, and those before it do not";

/// Serves a socket until its end.
pub(super) async fn serve(
    house: Arc<House>,
    socket: WebSocket,
    request: UpgradeRequest,
) -> Result<(), Close> {
    let is_known = !matches!(socket.identity().proof(), Proof::Pending);
    let mut listener = Listener {
        storage: is_known.then(|| socket.storage(&house.keyspace)),
        guest: request.guest.clone(),
        subscriptions: Subscriptions::default(),
        counted: 0,
        epoch: None,
        watch: None,
        mark_due: Instant::now(),
        rules: None,
        newest: Newest::default(),
        with_revisions: false,
        house,
        socket,
    };
    listener.run().await
}

/// One socket.
struct Listener {
    house: Arc<House>,
    socket: WebSocket,
    guest: Option<Guest>,
    /// As the peer; `None` until it has said who it is.
    storage: Option<Arc<dyn Storage>>,
    subscriptions: Subscriptions,
    /// So many of them are in the gauge.
    counted: u64,
    /// The history that the subscriptions' revisions are of: the one that was there at the first of them.
    epoch: Option<Epoch>,
    watch: Option<Watch>,
    /// When the watch is to say how far it has come. Without that, the position of one that has nothing to tell would fall
    /// behind the log, and no other one could begin there.
    mark_due: Instant,
    /// Those that the watch was opened by, or older ones.
    rules: Option<Arc<RuleSet>>,
    newest: Newest,
    /// Documents have their revision: the peer has asked for replay.
    with_revisions: bool,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.house.metrics.subscriptions.dec_by(self.counted);
    }
}

/// The peer is gone.
struct Gone;

type Told<T = ()> = Result<T, Gone>;

/// What was told of the commit that catching up has come to. Where that was broken off, the commit comes once more.
#[derive(Default)]
struct Newest {
    revision: Revision,
    keys: HashSet<Key>,
}

impl Newest {
    /// Whether it was not there before.
    fn is_new(&mut self, revision: Revision, key: Key) -> bool {
        if self.revision != revision {
            self.revision = revision;
            self.keys.clear();
        }
        self.keys.insert(key)
    }

    fn has(&self, revision: Revision, key: &Key) -> bool {
        self.revision == revision && self.keys.contains(key)
    }
}

/// What comes next.
enum Next {
    Message(Option<Message>),
    Mark,
    Event(Result<Option<WatchEvent>, StorageError>),
}

impl Listener {
    async fn run(&mut self) -> Result<(), Close> {
        loop {
            let (is_watching, mark_due) = (self.watch.is_some(), self.mark_due);
            let next = tokio::select! {
                message = self.socket.receive() => Next::Message(message),
                event = next_event(&mut self.watch) => Next::Event(event),
                () = tokio::time::sleep_until(mark_due.into()), if is_watching => Next::Mark,
            };
            let done = match next {
                Next::Message(None) => return Ok(()),
                Next::Message(Some(Message::Text(text))) => self.frame(&text).await,
                Next::Message(Some(Message::Binary(_))) => {
                    Ok(self.say_error("subscriptions are text messages").await)
                }
                Next::Mark => {
                    self.ask_for_mark();
                    Ok(Ok(()))
                }
                Next::Event(event) => self.event(event).await,
            };
            match done {
                Ok(Ok(())) => {}
                Ok(Err(Gone)) => return Ok(()),
                // With the server: that has a close of its own.
                Err(StorageError::Closed { .. }) => return Ok(()),
                Err(error) => return Err(close_for(&error)),
            }
        }
    }

    fn ask_for_mark(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.request_progress(0);
        }
        self.mark_due = Instant::now() + self.house.server.config().timeouts.idle_mark;
    }

    async fn say(&mut self, text: String) -> Told {
        self.socket
            .send(Message::text(text))
            .await
            .map_err(|_| Gone)
    }

    async fn say_error(&mut self, reason: &str) -> Told {
        self.say(error_frame(reason)).await
    }

    /// Takes a frame of the peer.
    ///
    /// # Errors
    /// The socket cannot go on.
    async fn frame(&mut self, text: &str) -> Result<Told, StorageError> {
        let subscribe = match parse_subscribe(text) {
            Ok(subscribe) => subscribe,
            Err(error) => return Ok(self.say_error(&error.to_string()).await),
        };
        if let Some(token) = &subscribe.token
            && let Err(reason) = self.log_in(token).await
        {
            return Ok(self.say_error(&reason).await);
        }
        let Some(storage) = self.storage.clone() else {
            let reason = "a token is needed: in the header Authorization, as ?token=, or as \"token\" in this frame";
            return Ok(self.say_error(reason).await);
        };
        let answer = match self.subscribe(&*storage, &subscribe).await? {
            Ok(now) => subscribe.acknowledgement(now),
            Err(reason) => error_frame(&reason),
        };
        if let Err(Gone) = self.say(answer).await {
            return Ok(Err(Gone));
        }
        self.follow(&*storage).await
    }

    /// The peer shows who it is, from now on.
    async fn log_in(&mut self, token: &str) -> Result<(), String> {
        let Some(guest) = &self.guest else {
            return Err("no token is taken here".to_owned());
        };
        let identity = House::by_token(guest, token).await?;
        let logged_in = self.socket.log_in(identity);
        logged_in.map_err(|error| error.to_string())?;
        self.storage = Some(self.socket.storage(&self.house.keyspace));
        // What it may see is another matter now.
        self.watch = None;
        self.subscriptions.forget_told();
        Ok(())
    }

    /// Notes all that is subscribed to, or nothing and the reason. Returns the position from which on it is told of what it
    /// does not ask for by `since`.
    async fn subscribe(
        &mut self,
        storage: &dyn Storage,
        subscribe: &Subscribe,
    ) -> Result<Result<Position, String>, StorageError> {
        let now = storage.sync().await?;
        let after = match subscribe.since {
            None => now,
            Some(Since::Position(position)) => position,
            Some(Since::Revision(revision)) => Position {
                epoch: now.epoch,
                revision: Revision(revision),
            },
        };
        if after.epoch == now.epoch && after.revision > now.revision {
            let reason = format!(
                "since: it lies in the future, or in a history that was lost: the position is {now}"
            );
            return Ok(Err(reason));
        }
        let project = subscribe.project.clone().map(Topic::Project);
        let source = subscribe.source.clone().map(Topic::Source);
        let topics = project.into_iter().chain(source);
        let asked: Vec<_> = topics
            .filter(|topic| subscribe.since.is_some() || !self.subscriptions.has(topic))
            .collect();
        let new = asked.iter().filter(|topic| !self.subscriptions.has(topic));
        if !self.subscriptions.has_room(new.count()) {
            let reason = format!("a socket has at most {SUBSCRIPTIONS_MAX} subscriptions");
            return Ok(Err(reason));
        }
        for topic in &asked {
            let options = WatchOptions::every(WatchStart::After(after));
            match storage.watch(Subscriptions::range(topic), options).await {
                // Where the log does not reach back so far, the newest documents follow.
                Ok(_) | Err(StorageError::Compacted { .. }) => {}
                Err(StorageError::AccessDenied { message }) => return Ok(Err(message)),
                Err(StorageError::EpochChanged { epoch, fork }) => {
                    return Ok(Err(other_history(after, epoch, fork)));
                }
                Err(error) => return Err(error),
            }
        }
        self.epoch.get_or_insert(now.epoch);
        // What was told may be for another one now, which is yet to be told it.
        self.newest = Newest::default();
        for topic in asked {
            self.subscriptions.add(topic, after.revision.0);
            // It has to begin earlier, or to hold more.
            self.watch = None;
        }
        self.with_revisions |= subscribe.since.is_some();
        let count = self.subscriptions.len() as u64;
        let more = count.saturating_sub(self.counted);
        self.house.metrics.subscriptions.inc_by(more);
        self.counted = count;
        Ok(Ok(now))
    }

    /// Sees to it that there is a watch, if there is a subscription.
    async fn follow(&mut self, storage: &dyn Storage) -> Result<Told, StorageError> {
        let mut was_told = false;
        while self.watch.is_none() {
            let hull = self.subscriptions.hull();
            let until = self.subscriptions.told_until();
            let (Some(range), Some(until), Some(epoch)) = (hull, until, self.epoch) else {
                return Ok(Ok(()));
            };
            self.look_at_rules();
            let start = WatchStart::After(Position {
                epoch,
                revision: Revision(until),
            });
            let every = WatchOptions::every(start);
            match storage.watch(range.clone(), every).await {
                Ok(watch) => {
                    self.watch = Some(watch);
                    self.mark_due = Instant::now() + self.house.server.config().timeouts.idle_mark;
                }
                Err(StorageError::Compacted { .. }) => {
                    if !std::mem::replace(&mut was_told, true)
                        && let Err(Gone) = self.say_error(NEWEST_ONLY).await
                    {
                        return Ok(Err(Gone));
                    }
                    let latest = WatchOptions::latest(start);
                    let catching_up = storage.watch(range, latest).await?;
                    match self.catch_up(catching_up).await {
                        Ok(Ok(())) => {}
                        Ok(Err(Gone)) => return Ok(Err(Gone)),
                        // It goes on with what may be seen now.
                        Err(StorageError::AccessChanged) => self.subscriptions.forget_told(),
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Ok(()))
    }

    /// Where the rules are others than those that the watch before was opened by, other documents may be seen. A watch ends
    /// by such a change, but one that is replaced does not live to say so.
    fn look_at_rules(&mut self) {
        // Ordering: before the watch is opened, so that no change is missed.
        let rules = self.house.server.shared().access.rules();
        if let Some(known) = self.rules.replace(rules.clone())
            && !Arc::ptr_eq(&known, &rules)
        {
            self.subscriptions.forget_told();
        }
    }

    /// The log does not reach back: the newest document of each file that has one since is told, in the order in which they
    /// were written.
    ///
    /// # Errors
    /// `AccessChanged`: what may be seen is another matter now, and the rest is to be asked for anew.
    async fn catch_up(&mut self, mut watch: Watch) -> Result<Told, StorageError> {
        while let Some(event) = watch.next().await? {
            match event {
                WatchEvent::State {
                    key,
                    state: KeyState::Live(entry),
                } => {
                    // They come in the order of their revisions: if this is broken off, it goes on with this commit.
                    self.subscriptions
                        .advance(entry.revision.0.saturating_sub(1));
                    let place = keys::place_of_metadata(&key);
                    if self.newest.is_new(entry.revision, key)
                        && let Some(place) = place
                        && let Err(Gone) = self.push(entry.revision.0, &place, &entry.value).await
                    {
                        return Ok(Err(Gone));
                    }
                }
                WatchEvent::Progress { position, .. } => {
                    self.subscriptions.advance(position.revision.0);
                    return Ok(Ok(()));
                }
                _ => {}
            }
        }
        Err(ended())
    }

    async fn event(
        &mut self,
        event: Result<Option<WatchEvent>, StorageError>,
    ) -> Result<Told, StorageError> {
        match event {
            Ok(Some(WatchEvent::Commit(commit))) => Ok(self.commit(&commit).await),
            Ok(Some(WatchEvent::Progress { position, .. })) => {
                self.subscriptions.advance(position.revision.0);
                Ok(Ok(()))
            }
            Ok(Some(_)) => Ok(Ok(())),
            // Begins anew where it was: what may be seen is cut anew, or the log was read too slowly.
            Err(error @ (StorageError::AccessChanged | StorageError::Compacted { .. })) => {
                self.watch = None;
                if error == StorageError::AccessChanged {
                    self.subscriptions.forget_told();
                }
                match self.storage.clone() {
                    Some(storage) => self.follow(&*storage).await,
                    None => Ok(Ok(())),
                }
            }
            Ok(None) => Err(ended()),
            Err(error) => Err(error),
        }
    }

    async fn commit(&mut self, commit: &CommitRecord) -> Told {
        let revision = commit.revision.0;
        for change in &commit.changes {
            if let ChangeKind::Put { value, .. } = &change.kind
                && !self.newest.has(commit.revision, &change.key)
                && let Some(place) = keys::place_of_metadata(&change.key)
            {
                self.push(revision, &place, value).await?;
            }
        }
        self.subscriptions.advance(revision);
        Ok(())
    }

    /// Tells a document, if one of the subscriptions wants it.
    async fn push(&mut self, revision: u64, place: &Place, document: &[u8]) -> Told {
        if !self.subscriptions.wants(revision, place) {
            return Ok(());
        }
        // Anybody who may write can put what is no text.
        let Ok(document) = std::str::from_utf8(document) else {
            return Ok(());
        };
        let text = match self.with_revisions && document.starts_with('{') {
            true => with_revision(document, revision),
            false => document.to_owned(),
        };
        self.say(text).await?;
        self.house.metrics.pushes.inc();
        Ok(())
    }
}

/// The next event of the watch; never, if there is none.
async fn next_event(watch: &mut Option<Watch>) -> Result<Option<WatchEvent>, StorageError> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// What is told to who asks for what came behind a position that this history does not have.
fn other_history(asked: Position, epoch: Epoch, fork: Revision) -> String {
    match fork {
        Revision(0) => format!(
            "since: {asked} is a position of another store, or of one that was wiped: the history here is {epoch}; ask since 0 for \
             all of it"
        ),
        fork => format!(
            "since: {asked} is a position of another history: the one here is {epoch} and left that one behind revision {fork}; \
             what came behind that is lost, and what came in its place is told since \"{epoch}:{fork}\""
        ),
    }
}

fn ended() -> StorageError {
    StorageError::Closed {
        reason: "the watch has ended".to_owned(),
        outcome: Outcome::NotExecuted,
    }
}

/// How a socket is closed that cannot go on: its peer connects again, and says since when.
fn close_for(error: &StorageError) -> Close {
    let code = match error {
        StorageError::AccessDenied { .. } => close_code::POLICY,
        StorageError::Overloaded { .. } | StorageError::QuotaExceeded { .. } => {
            close_code::TRY_AGAIN
        }
        _ => close_code::INTERNAL,
    };
    Close::because(code, error.to_string())
}

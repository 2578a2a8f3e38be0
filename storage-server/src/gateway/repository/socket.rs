//! The WebSocket at `/`: subscriptions, and the documents of what is uploaded.
//!
//! A socket has storage of its own, as its peer, and one watch in it, over the hull of its subscriptions. What the watch
//! tells is durable, in commit order, and what the peer may see; a document goes out once for each commit that puts it,
//! whichever of the subscriptions it is of. Removals are not told.

use std::sync::Arc;

use storage_protocol::{
    ChangeKind, CommitRecord, KeyState, Outcome, Position, Revision, Storage, StorageError,
    StorageExt, Watch, WatchEvent, WatchOptions, WatchStart,
};

use super::house::House;
use super::keys;
use super::metadata::with_revision;
use super::place::Place;
use super::subscribe::{Subscribe, error_frame, parse_subscribe};
use super::subscriptions::{SUBSCRIPTIONS_MAX, Subscriptions, Topic};
use crate::auth::Proof;
use crate::gateway::{Close, Guest, Message, UpgradeRequest, WebSocket, close_code};

/// The longest message that a connection takes at all. One over this closes it; one that is merely too long for a
/// subscription is answered with an error.
pub(super) const MESSAGE_BYTES_MAX: usize = 2 << 20;

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
        watch: None,
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
    watch: Option<Watch>,
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

/// What comes next.
enum Next {
    Message(Option<Message>),
    Event(Result<Option<WatchEvent>, StorageError>),
}

impl Listener {
    async fn run(&mut self) -> Result<(), Close> {
        loop {
            let next = tokio::select! {
                message = self.socket.receive() => Next::Message(message),
                event = next_event(&mut self.watch) => Next::Event(event),
            };
            let done = match next {
                Next::Message(None) => return Ok(()),
                Next::Message(Some(Message::Text(text))) => self.frame(&text).await,
                Next::Message(Some(Message::Binary(_))) => {
                    Ok(self.say_error("subscriptions are text messages").await)
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
            Ok(()) => subscribe.acknowledgement(),
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
        Ok(())
    }

    /// Notes what is subscribed to; a reason if it cannot be.
    async fn subscribe(
        &mut self,
        storage: &dyn Storage,
        subscribe: &Subscribe,
    ) -> Result<Result<(), String>, StorageError> {
        let now = storage.sync().await?;
        let since = subscribe.since;
        if since.is_some_and(|since| since > now.revision.0) {
            let reason = format!("since: the newest revision is {}", now.revision);
            return Ok(Err(reason));
        }
        let project = subscribe.project.clone().map(Topic::Project);
        let source = subscribe.source.clone().map(Topic::Source);
        for topic in project.into_iter().chain(source) {
            let is_known = self.subscriptions.has(&topic);
            if is_known && since.is_none() {
                continue;
            }
            if !is_known && !self.subscriptions.has_room() {
                let reason = format!("a socket has at most {SUBSCRIPTIONS_MAX} subscriptions");
                return Ok(Err(reason));
            }
            let range = Subscriptions::range(&topic);
            match storage.watch(range, WatchOptions::default()).await {
                Ok(_) => {}
                Err(StorageError::AccessDenied { message }) => return Ok(Err(message)),
                Err(error) => return Err(error),
            }
            self.subscriptions
                .add(topic, since.unwrap_or(now.revision.0));
            // It has to begin earlier, or to hold more.
            self.watch = None;
        }
        self.with_revisions |= since.is_some();
        let count = self.subscriptions.len() as u64;
        let more = count.saturating_sub(self.counted);
        self.house.metrics.subscriptions.inc_by(more);
        self.counted = count;
        Ok(Ok(()))
    }

    /// Sees to it that there is a watch, if there is a subscription.
    async fn follow(&mut self, storage: &dyn Storage) -> Result<Told, StorageError> {
        if self.watch.is_some() {
            return Ok(Ok(()));
        }
        let Some((range, until)) = self
            .subscriptions
            .hull()
            .zip(self.subscriptions.told_until())
        else {
            return Ok(Ok(()));
        };
        let epoch = storage.sync().await?.epoch;
        let start = |revision| {
            WatchStart::After(Position {
                epoch,
                revision: Revision(revision),
            })
        };
        let every = WatchOptions::every(start(until));
        match storage.watch(range.clone(), every).await {
            Ok(watch) => {
                self.watch = Some(watch);
                Ok(Ok(()))
            }
            Err(StorageError::Compacted { .. }) => {
                let latest = WatchOptions::latest(start(until));
                let catching_up = storage.watch(range.clone(), latest).await?;
                let position = match self.catch_up(catching_up).await? {
                    Ok(position) => position,
                    Err(Gone) => return Ok(Err(Gone)),
                };
                let every = WatchOptions::every(WatchStart::After(position));
                self.watch = Some(storage.watch(range, every).await?);
                Ok(Ok(()))
            }
            Err(error) => Err(error),
        }
    }

    /// The log does not reach back: the newest document of each file that has one since is told, in the order in which they
    /// were written.
    async fn catch_up(&mut self, mut watch: Watch) -> Result<Told<Position>, StorageError> {
        let reason = "the log does not reach back to there: of each file the newest document follows, and those before it do \
            not";
        if let Err(Gone) = self.say_error(reason).await {
            return Ok(Err(Gone));
        }
        while let Some(event) = watch.next().await? {
            match event {
                WatchEvent::State {
                    key,
                    state: KeyState::Live(entry),
                } => {
                    if let Some(place) = keys::place_of_metadata(&key)
                        && let Err(Gone) = self.push(entry.revision.0, &place, &entry.value).await
                    {
                        return Ok(Err(Gone));
                    }
                }
                WatchEvent::Progress { position, .. } => {
                    self.subscriptions.advance(position.revision.0);
                    return Ok(Ok(position));
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
            Err(StorageError::AccessChanged | StorageError::Compacted { .. }) => {
                self.watch = None;
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

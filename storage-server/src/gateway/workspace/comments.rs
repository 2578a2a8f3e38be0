//! Comments: a post in the room of a node, whoever makes it and by what means, is an event of that node, which tells how many
//! messages there are.
//!
//! The hub says what it sees of rooms, in the order of commits. What a room belongs to and how many messages it has is read at its
//! first post and counted from there on; a room of which anything else changes is read again. Reading is waited for by nobody:
//! what is posted meanwhile is told behind it.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::json;
use storage_protocol::rooms::{PlaceKind, RoomId, RoomKey, RoomPlace, Rooms};
use storage_protocol::{Change, ChangeKind, CommitRecord, Reading, Result, Revision, Storage};

use super::directory::{self, Place};
use super::frame::RoomKind;
use super::records::{Look, Records, may_pass};
use super::tree::{Kind, Node, TreeEvent};

/// The most messages that are counted.
const COUNT_MAX: u64 = 10_000;
/// The most rooms of which it is known how many messages they have; beyond that all are forgotten.
const ROOMS_MAX: usize = 10_000;
/// So many rooms are read at a time.
const READS_AT_ONCE: usize = 8;
/// So often a room is read again in which something else than posts happens meanwhile.
const AGAIN_MAX: u32 = 3;
/// After a read that failed.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Comments {
    rooms: Rooms<Arc<dyn Storage>>,
    records: Arc<Records>,
    known: HashMap<RoomId, Known>,
    reading: FuturesUnordered<BoxFuture<'static, (RoomId, Option<Found>)>>,
    /// Rooms that are to be read when others have been.
    waiting: VecDeque<RoomId>,
}

/// What is known of a room in which something was posted.
enum Known {
    /// It is being read, or waits for that.
    Unread {
        /// The posts that are to be told then: as many as are counted.
        posts: Vec<Revision>,
        /// What is read is not all.
        is_outdated: bool,
        /// So often that was so.
        again: u32,
    },
    /// It is no node's.
    Other,
    OfNode(Found),
}

/// A room of a node, as it is.
struct Found {
    node: String,
    place: Place,
    messages: Reading<u64>,
}

impl Comments {
    /// `own`: the server's own storage of the keyspace.
    pub(super) fn new(own: Arc<dyn Storage>, records: Arc<Records>) -> Self {
        Self {
            rooms: Rooms::new(own),
            records,
            known: HashMap::new(),
            reading: FuturesUnordered::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Takes notice of a commit; what is to be told of it by now.
    pub(super) fn note(&mut self, commit: &CommitRecord) -> Vec<TreeEvent> {
        let noted = commit.changes.iter().filter_map(|change| {
            let place = self.rooms.place(&change.key)?;
            Some((change, place))
        });
        let noted: Vec<(&Change, RoomPlace)> = noted.collect();
        let events = noted.into_iter().filter_map(|(change, place)| {
            let is_put = matches!(change.kind, ChangeKind::Put { .. });
            match place.kind {
                PlaceKind::Presence { .. } => None,
                PlaceKind::Message(revision) if is_put && revision == commit.revision => {
                    self.posted(place.room, revision)
                }
                PlaceKind::Message(_) | PlaceKind::Record => {
                    self.changed(place.room);
                    None
                }
            }
        });
        events.collect()
    }

    fn posted(&mut self, room: RoomId, revision: Revision) -> Option<TreeEvent> {
        match self.known.get_mut(&room) {
            Some(Known::Other) => return None,
            Some(Known::Unread { posts, .. }) => {
                // More are not counted.
                if (posts.len() as u64) < COUNT_MAX {
                    posts.push(revision);
                }
                return None;
            }
            Some(Known::OfNode(found)) if !found.is_stale() => return found.posted(revision),
            Some(Known::OfNode(_)) | None => {}
        }
        if !self.make_place() {
            return None;
        }
        let unread = Known::Unread {
            posts: vec![revision],
            is_outdated: false,
            again: 0,
        };
        self.known.insert(room, unread);
        self.read(room);
        None
    }

    /// Forgets what is known of a room: it is read at the next post.
    fn changed(&mut self, room: RoomId) {
        match self.known.get_mut(&room) {
            Some(Known::Unread { is_outdated, .. }) => *is_outdated = true,
            Some(Known::Other | Known::OfNode(_)) => {
                self.known.remove(&room);
            }
            None => {}
        }
    }

    /// Forgets what is known of all of them: the feed had a gap.
    pub(super) fn forget(&mut self) {
        let rooms: Vec<RoomId> = self.known.keys().copied().collect();
        rooms.into_iter().for_each(|room| self.changed(room));
    }

    /// Whether there is room for one more.
    fn make_place(&mut self) -> bool {
        if self.known.len() >= ROOMS_MAX {
            self.known
                .retain(|_, known| matches!(known, Known::Unread { .. }));
        }
        self.known.len() < ROOMS_MAX
    }

    fn read(&mut self, room: RoomId) {
        if self.reading.len() >= READS_AT_ONCE {
            self.waiting.push_back(room);
            return;
        }
        let (rooms, records) = (self.rooms.clone(), self.records.clone());
        self.reading.push(Box::pin(async move {
            loop {
                match find(&rooms, &records, room).await {
                    Ok(found) => return (room, found),
                    Err(error) if !may_pass(&error) => {
                        tracing::debug!(%room, %error, "a room cannot be read, and tells no comments");
                        return (room, None);
                    }
                    Err(error) => {
                        tracing::debug!(%room, %error, "a room cannot be read yet");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }));
    }

    /// What is to be told when a room has been read. Cancel-safe; never, while none is being read.
    pub(super) async fn next(&mut self) -> Vec<TreeEvent> {
        let Some((room, found)) = self.reading.next().await else {
            return pending().await;
        };
        if let Some(next) = self.waiting.pop_front() {
            self.read(next);
        }
        let Some(Known::Unread {
            posts,
            is_outdated,
            again,
        }) = self.known.remove(&room)
        else {
            return Vec::new();
        };
        // Where the node was does not do, however often it moves; and a count that is not quite right does in the end.
        let is_elsewhere = found.as_ref().is_some_and(Found::is_stale);
        if is_elsewhere || (is_outdated && again < AGAIN_MAX) {
            let unread = Known::Unread {
                posts,
                is_outdated: false,
                again: again.saturating_add(1),
            };
            self.known.insert(room, unread);
            self.read(room);
            return Vec::new();
        }
        let Some(mut found) = found else {
            self.known.insert(room, Known::Other);
            return Vec::new();
        };
        let events = posts.into_iter().filter_map(|post| found.posted(post));
        let events = events.collect();
        if !is_outdated {
            self.known.insert(room, Known::OfNode(found));
        }
        events
    }
}

impl Found {
    fn is_stale(&self) -> bool {
        let record = self.place.record.as_ref();
        record.is_some_and(|record| record.is_stale())
    }

    /// The event of a post; `None`: it is not known where the node is.
    fn posted(&mut self, revision: Revision) -> Option<TreeEvent> {
        let messages = &mut self.messages;
        // Counted already when the room was read.
        if revision > messages.position.revision {
            messages.value = (messages.value + 1).min(COUNT_MAX);
        }
        let path = self.place.path.as_ref()?;
        let node = Node::at(&self.node, path);
        Some(TreeEvent {
            kind: Kind::UpdateUserMeta,
            source: None,
            target: Some(node.with_meta("has_comments", &json!(messages.value))),
        })
    }
}

/// A room of a node; `None`: it is another one, or none.
async fn find(
    rooms: &Rooms<Arc<dyn Storage>>,
    records: &Records,
    id: RoomId,
) -> Result<Option<Found>> {
    let is_of_node = |key: &RoomKey| key.kind() == RoomKind::Node.name();
    let room = rooms.get(id).await?.filter(|room| is_of_node(&room.key));
    let Some(room) = room else {
        return Ok(None);
    };
    // Another room may say that it is of this node.
    let led_to = rooms.open(&room.key).await?;
    if led_to.is_none_or(|led_to| led_to.id != id) {
        return Ok(None);
    }
    let node = room.key.object().to_owned();
    Ok(Some(Found {
        place: directory::place_of_node(records, &node, Look::AsSeen).await?,
        messages: rooms.count(id, COUNT_MAX).await?,
        node,
    }))
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use storage_protocol::rooms::{Draft, Room};
    use storage_protocol::{Key, StorageExt, Watch, WatchEvent, WatchOptions, WatchStart};

    use super::super::faulty::Faulty;
    use super::*;

    struct House {
        own: Arc<Faulty>,
        records: Arc<Records>,
        comments: Comments,
        watch: Watch,
    }

    impl House {
        async fn new() -> Self {
            let own = Faulty::new();
            let records = Arc::new(Records::new(own.clone()));
            let options = WatchOptions::every(WatchStart::Now);
            let range = storage_protocol::KeyRange::all();
            Self {
                comments: Comments::new(own.clone(), records.clone()),
                watch: own.watch(range, options).await.unwrap(),
                own,
                records,
            }
        }

        fn rooms(&self) -> Rooms<Arc<dyn Storage>> {
            Rooms::new(self.own.clone())
        }

        async fn room(&mut self, node: &str) -> Room {
            let key = RoomKey::new(RoomKind::Node.name(), node).unwrap();
            self.rooms().open_or_create(&key, "").await.unwrap().0
        }

        async fn post(&mut self, room: &Room) {
            let draft = Draft::new("ana", "hello").unwrap();
            self.rooms().post(room, &draft).await.unwrap();
        }

        /// Takes notice of all commits up to now, as the hub does.
        async fn note(&mut self) -> Vec<String> {
            let mark = self.own.set("mark", "").await.revision;
            let mut events = Vec::new();
            loop {
                if let Some(WatchEvent::Commit(commit)) = self.watch.next().await.unwrap() {
                    commit
                        .changes
                        .iter()
                        .for_each(|change| self.records.changed(&change.key));
                    events.extend(self.comments.note(&commit));
                    if commit.revision == mark {
                        return shown(events);
                    }
                }
            }
        }

        /// What is told when what is being read has been read.
        async fn read(&mut self) -> Vec<String> {
            let next = tokio::time::timeout(Duration::from_secs(30), self.comments.next());
            shown(next.await.unwrap())
        }
    }

    fn shown(events: Vec<TreeEvent>) -> Vec<String> {
        let shown = events.iter().map(|event| {
            let paths: Vec<&str> = event.paths().collect();
            format!("{paths:?}")
        });
        shown.collect()
    }

    #[tokio::test]
    async fn a_node_that_moves_while_its_room_is_read_is_told_where_it_is() {
        let mut house = House::new().await;
        house.own.set("node-ids/n", "/a/x").await;
        let room = house.room("n").await;
        house.post(&room).await;
        assert!(house.note().await.is_empty());
        // Until the place is read (behind the room, and what leads to it) and the count is still to come.
        let before = house.own.reads();
        while house.own.reads() < before + 5 {
            assert!(poll!(std::pin::pin!(house.comments.next())).is_pending());
            tokio::task::yield_now().await;
        }
        house.own.set("node-ids/n", "/b/x").await;
        house.post(&room).await;
        assert!(house.note().await.is_empty());
        let mut told = Vec::new();
        while told.is_empty() {
            told = house.read().await;
        }
        assert_eq!(told, [r#"["b/x"]"#, r#"["b/x"]"#]);
        house.post(&room).await;
        assert_eq!(house.note().await, [r#"["b/x"]"#]);
    }

    #[tokio::test]
    async fn rooms_that_cannot_be_read_hold_up_no_others() {
        let mut house = House::new().await;
        for n in 0..2 * READS_AT_ONCE {
            let room = house.room(&format!("bad-{n}")).await;
            let range = house.rooms().range(room.id);
            let record: Key = [&range.start[..], b"room"].concat().into();
            assert!(house.own.get_one(record.clone()).await.unwrap().is_some());
            house.post(&room).await;
            house.own.put(record, "x".into()).await.unwrap();
        }
        house.own.set("node-ids/n", "/a/x").await;
        let room = house.room("n").await;
        house.post(&room).await;
        assert!(house.note().await.is_empty());
        let mut told = Vec::new();
        while told.is_empty() {
            told = house.read().await;
        }
        assert_eq!(told, [r#"["a/x"]"#]);
    }
}

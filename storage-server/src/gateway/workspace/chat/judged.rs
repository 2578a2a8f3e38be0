//! Whether a room is for the peer, now: what it has is looked up again when a record is changed that it goes by, and not for
//! those of others.
//!
//! Only an answer ends a membership. Where a record cannot be read, the peer stays in its rooms and is told nothing of them.

use storage_protocol::Revision;
use storage_protocol::rooms::{RoomId, RoomKey};

use super::super::directory;
use super::super::frame::{self, Op};
use super::super::records::Look;
use super::super::session::End;
use super::access::{Access, NoAccess, access};
use super::conversation::{Conversation, Done, Joined, Not};

impl Joined {
    fn is_unjudged(&self) -> bool {
        !self.is_judged || self.access.is_stale()
    }
}

impl Conversation {
    /// Finds out what the peer has now, and leaves rooms that are not for it any more.
    ///
    /// # Errors
    /// [`Not::Later`] where that cannot be read: it stays where it is, and is told nothing before this was done.
    pub(super) async fn look_again(&mut self, look: Look) -> Done {
        let Some(who) = &self.session.who else {
            return Ok(());
        };
        let records = self.hub.records().clone();
        // Ordering: this first, so that a change from here on is seen the next time.
        let version = records.version();
        if look == Look::Fresh || self.version.is_none() || self.looked.is_stale() {
            let looked = directory::rights(&records, &who.claims, look).await;
            self.looked = looked.map_err(Not::Later)?;
            for joined in self.joined.values_mut() {
                joined.is_judged = false;
            }
        }
        let node_rooms = self.session.state.config.node_rooms;
        let unjudged = self
            .joined
            .iter()
            .filter(|(_, joined)| joined.is_unjudged());
        let unjudged: Vec<RoomId> = unjudged.map(|(id, _)| *id).collect();
        for id in unjudged {
            let Some(joined) = self.joined.get_mut(&id) else {
                continue;
            };
            let (rights, key) = (&self.looked.rights, &joined.room.key);
            match access(&records, node_rooms, rights, key, Look::AsSeen).await {
                Ok(access) => (joined.access, joined.is_judged) = (access, true),
                Err(NoAccess::Unknown(error)) => return Err(Not::Later(error)),
                Err(NoAccess::Forbidden(why)) => {
                    self.leave(id).await;
                    self.session.send(frame::refused(Op::Join, why)).await?;
                }
            }
        }
        self.version = Some(version);
        Ok(())
    }

    /// Whether a record was changed that says what the peer has, or where the node of one of its rooms is.
    pub(super) fn is_out_of_date(&mut self) -> bool {
        let version = Some(self.hub.records().version());
        if self.version == version {
            return false;
        }
        let is_out_of_date = self.version.is_none()
            || self.looked.is_stale()
            || self.joined.values().any(Joined::is_unjudged);
        if !is_out_of_date {
            // It concerns others.
            self.version = version;
        }
        is_out_of_date
    }

    /// Waits until it is known who had what when a message was posted.
    pub(super) async fn rights_as_of(&self, revision: Revision) -> Result<(), End> {
        let shared = self.session.server.shared();
        tokio::select! {
            biased;
            end = self.session.expiry() => Err(end),
            () = self.hub.has_seen(revision) => Ok(()),
            // Nobody takes notice any more.
            () = shared.drain.cancelled() => Err(End::Gone),
        }
    }

    /// What the peer may do in the room of an object.
    pub(super) async fn access_to(&self, key: &RoomKey, look: Look) -> Result<Access, Not> {
        let (records, rights) = (self.hub.records(), &self.looked.rights);
        let node_rooms = self.session.state.config.node_rooms;
        Ok(access(records, node_rooms, rights, key, look).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::{SinkExt, StreamExt};
    use serde_json::{Value, json};
    use storage_protocol::Storage;
    use storage_protocol::rooms::{Draft, Room, Rooms};
    use tokio_tungstenite::tungstenite::Message;

    use super::super::super::faulty::Faulty;
    use super::super::super::hub::Hub;
    use super::super::super::outbox::{Frame, Outbox, What};
    use super::super::super::session::Session;
    use super::super::super::{Metrics, State};
    use super::*;
    use crate::gateway::{Identity, ServerHandle};
    use crate::testing::{MemoryEngine, Running, server, start_in};
    use crate::ws::socket::{SocketOptions, Task};

    const PATIENCE: Duration = Duration::from_secs(30);
    const RECORDS: [(&str, &str); 4] = [
        ("users/ana", r#"{"roles":["team"]}"#),
        ("roles/team", r#"{"workspaces":{"ws":"rw"}}"#),
        ("workspaces/ws", r#"{"roots":["/a"]}"#),
        ("node-ids/n-1", "/a/x"),
    ];

    /// Ana with a socket in the room of a node that she may read.
    struct House {
        running: Running,
        /// What the gateway reads.
        own: Arc<Faulty>,
        /// What she reads rooms with.
        hers: Arc<Faulty>,
        /// The same, without faults.
        rooms: Rooms<Arc<dyn Storage>>,
        hub: Arc<Hub>,
        outbox: Arc<Outbox>,
        room: Room,
    }

    impl House {
        async fn new() -> Self {
            let engine = MemoryEngine::new();
            let shared = server(&engine, |_| {});
            let handle = ServerHandle::new(&shared);
            let config = handle.config().workspace.clone();
            let plain = handle.own_storage(&config.keyspace);
            let own = Faulty::over(plain.clone());
            for (key, value) in RECORDS {
                own.set(key, value).await;
            }
            let hub = Hub::new(own.clone(), config.quiet, &Metrics::default());
            let state = Arc::new(State::new(config, &Metrics::default(), None));
            let hub = state.hub.get_or_init(|| Arc::new(hub)).clone();
            hub.start(&handle).await.unwrap();
            let outbox = Arc::<Outbox>::default();
            let rooms: Rooms<Arc<dyn Storage>> = Rooms::new(plain.clone());
            let hers = Faulty::over(plain);
            let serve = {
                let outbox = outbox.clone();
                let hers: Rooms<Arc<dyn Storage>> = Rooms::new(hers.clone());
                async move |socket| {
                    let mut session = Session::new_for_test(socket, state, handle, "ana");
                    session.outbox = outbox;
                    let mut conversation = Conversation::new(session);
                    conversation.rooms = Some(hers);
                    End::result(conversation.run().await)
                }
            };
            let running = start_in(shared, engine, Identity::anonymous(), |shared, peer| {
                let options = SocketOptions::default();
                Task::new(shared, peer, options, |socket| Box::pin(serve(socket)))
            });
            let key = RoomKey::new("NODE", "n-1").unwrap();
            let (room, _) = rooms.open_or_create(&key, "").await.unwrap();
            let mut house = Self {
                running,
                own,
                hers,
                rooms,
                hub,
                outbox,
                room,
            };
            house.say(join("")).await;
            assert_eq!(house.frame().await["@type"], "ROOM_UPDATE");
            house
        }

        async fn say(&mut self, frame: Value) {
            let said = self.running.client.send(Message::text(frame.to_string()));
            said.await.unwrap();
        }

        /// The next frame.
        async fn frame(&mut self) -> Value {
            let next = tokio::time::timeout(PATIENCE, self.running.client.next()).await;
            match next.expect("in time").expect("not the end").unwrap() {
                Message::Text(text) => serde_json::from_str(&text).unwrap(),
                other => panic!("{other:?}"),
            }
        }

        /// Changes a record, and lets something be told that was said behind that.
        async fn tell_behind(&self, key: &str, value: &str, text: &str) {
            let revision = self.own.set(key, value).await.revision;
            self.hub.has_seen(revision).await;
            let what = What::Message(self.room.id, revision);
            let text = json!({ "Message": text }).to_string().into();
            self.outbox.push(Frame { what, text });
        }

        async fn members(&self) -> Vec<String> {
            let members = self.rooms.members(self.room.id).await.unwrap().value;
            members.into_iter().map(|member| member.user).collect()
        }
    }

    fn join(after: &str) -> Value {
        let node = json!({ "Type": "NODE", "RoomTypeObject": "n-1" });
        json!({ "@type": "JOIN", "Room": node, "Message": { "Uuid": after } })
    }

    /// What is refused, so it is answered whatever can be read.
    fn post(text: &str) -> Value {
        json!({ "@type": "POST", "Message": { "RoomUuid": "none", "Message": text } })
    }

    #[tokio::test]
    async fn who_cannot_be_judged_stays_and_is_told_nothing_until_it_can() {
        let mut house = House::new().await;
        house.own.fail(true);
        let readers = r#"{"workspaces":{"ws":"r"}}"#;
        house.tell_behind("roles/team", readers, "one").await;
        for _ in 0..3 {
            house.say(post("x")).await;
            let refused = house.frame().await;
            assert_eq!(refused["@type"], "error", "{refused}");
            assert!(refused["error"].as_str().unwrap().contains("overloaded"));
        }
        assert_eq!(house.members().await, ["ana"]);
        house.own.fail(false);
        assert_eq!(house.frame().await["Message"], "one");
        // A node that cannot be looked up is the same.
        house.own.fail(true);
        house.tell_behind("node-ids/n-1", "/a/y", "two").await;
        house.say(post("x")).await;
        assert_eq!(house.frame().await["@type"], "error");
        house.own.fail(false);
        assert_eq!(house.frame().await["Message"], "two");
        assert_eq!(house.members().await, ["ana"]);
        // An answer ends it.
        house.tell_behind("node-ids/n-1", "/b/y", "three").await;
        let refused = house.frame().await;
        assert!(
            refused["error"].as_str().unwrap().contains("room is of a"),
            "{refused}"
        );
        house.say(post("x")).await;
        assert_eq!(house.frame().await["@type"], "error");
        assert!(house.members().await.is_empty());
    }

    #[tokio::test]
    async fn what_concerns_others_is_not_looked_at() {
        let mut house = House::new().await;
        let reads = house.own.reads();
        for (key, text) in [
            ("node-ids/n-2", "one"),
            ("users/bob", "two"),
            ("roles/other", "three"),
            ("idm/event", "four"),
        ] {
            house.tell_behind(key, "{}", text).await;
            assert_eq!(house.frame().await["Message"], text);
        }
        assert_eq!(house.own.reads(), reads);
        house.tell_behind("node-ids/n-1", "/a/y", "five").await;
        assert_eq!(house.frame().await["Message"], "five");
        assert_eq!(house.own.reads(), reads + 1);
    }

    /// Whichever read of it fails, she misses no message, has none twice, and each in its place.
    #[tokio::test]
    async fn a_join_that_breaks_off_leaves_no_gap() {
        const MESSAGES: usize = 5;
        for reads in 0.. {
            let mut house = House::new().await;
            let (rooms, room) = (house.rooms.clone(), house.room.clone());
            let post = async |text: &str| {
                let draft = Draft::new("bob", text).unwrap();
                rooms.post(&room, &draft).await.unwrap();
            };
            post("first").await;
            let first = loop {
                let frame = house.frame().await;
                if frame["Message"] == "first" {
                    break frame["Uuid"].as_str().unwrap().to_owned();
                }
            };
            let node = json!({ "Type": "NODE", "RoomTypeObject": "n-1" });
            house.say(json!({ "@type": "LEAVE", "Room": node })).await;
            // It is answered, so she has left.
            house
                .say(json!({ "@type": "POST", "Message": { "RoomUuid": "none", "Message": "x" } }))
                .await;
            while house.frame().await["@type"] != "error" {}
            for n in 0..MESSAGES {
                post(&format!("m{n}")).await;
            }
            let before = house.hers.reads();
            house.hers.fail_once_after(reads);
            house.say(join(&first)).await;
            let (mut told, mut last_uuid, mut is_posted) = (Vec::new(), first, false);
            while told.last().map(String::as_str) != Some("last") {
                let frame = house.frame().await;
                if let Some(text) = frame["Message"].as_str() {
                    told.push(text.to_owned());
                    last_uuid = frame["Uuid"].as_str().unwrap().to_owned();
                }
                let is_refused = frame["@type"] == "error";
                if !is_posted && (is_refused || told.len() == MESSAGES) {
                    is_posted = true;
                    post("last").await;
                }
                if is_refused {
                    house.say(join(&last_uuid)).await;
                }
            }
            let expected = (0..MESSAGES).map(|n| format!("m{n}"));
            let expected: Vec<_> = expected.chain(["last".to_owned()]).collect();
            assert_eq!(told, expected, "read {reads} failed");
            if house.hers.reads() - before < reads {
                return;
            }
        }
    }
}

//! The rooms that a socket of this server is in: each is followed once, from the first socket to the last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use storage_protocol::rooms::{Room, RoomId};
use storage_protocol::{Result, StorageError};
use tokio::sync::OnceCell;

use super::super::Metrics;
use super::super::outbox::Outbox;
use super::super::registry::ReceiverId;
use super::channel::{Channel, OwnRooms};
use crate::gateway::ServerHandle;

/// See the module.
#[derive(Debug)]
pub(in super::super) struct Channels {
    open: Mutex<HashMap<RoomId, Entry>>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Entry {
    channel: Arc<OnceCell<Arc<Channel>>>,
    /// So many wait for it, or are about to listen to it.
    attaching: usize,
}

/// A socket in a room. Dropped, it is out.
#[derive(Debug)]
pub(super) struct Attached {
    channels: Arc<Channels>,
    pub(super) channel: Arc<Channel>,
    id: ReceiverId,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.channels.metrics.members.dec();
        let mut open = self.channels.open();
        if !self.channel.remove(self.id) {
            self.channels
                .close_if_unused(&mut open, self.channel.room.id);
        }
    }
}

/// Counts one that is about to listen, also where it is dropped before.
struct Attaching<'a> {
    channels: &'a Channels,
    room: RoomId,
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        let mut open = self.channels.open();
        if let Some(entry) = open.get_mut(&self.room) {
            entry.attaching -= 1;
        }
        self.channels.close_if_unused(&mut open, self.room);
    }
}

impl Channels {
    pub(in super::super) fn new(metrics: &Metrics) -> Self {
        Self {
            open: Mutex::default(),
            metrics: metrics.clone(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<RoomId, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_if_unused(&self, open: &mut HashMap<RoomId, Entry>, room: RoomId) {
        let Some(entry) = open.get(&room) else {
            return;
        };
        let channel = entry.channel.get();
        if entry.attaching > 0 || channel.is_some_and(|channel| channel.has_listeners()) {
            return;
        }
        if let Some(channel) = channel {
            channel.stop();
            self.metrics.rooms.dec();
        }
        open.remove(&room);
    }

    /// Lets a socket listen to a room: all that happens there from now on is put into its outbox.
    pub(super) async fn attach(
        self: &Arc<Self>,
        server: &ServerHandle,
        rooms: &OwnRooms,
        room: &Room,
        id: ReceiverId,
        outbox: Arc<Outbox>,
    ) -> Result<Attached> {
        let cell = {
            let mut open = self.open();
            let entry = open.entry(room.id).or_default();
            entry.attaching += 1;
            entry.channel.clone()
        };
        let _attaching = Attaching {
            channels: self,
            room: room.id,
        };
        let opening = cell.get_or_try_init(|| async {
            let (channel, feed) = Channel::open(rooms, room.clone()).await?;
            let running = channel.clone().run(rooms.clone(), feed);
            let end = server.shared().cut.clone();
            server.shared().tasks.spawn(async move {
                tokio::select! {
                    () = running => {}
                    () = end.cancelled() => {}
                }
            });
            self.metrics.rooms.inc();
            Ok::<_, StorageError>(channel)
        });
        let channel = opening.await?.clone();
        channel.add(id, outbox);
        self.metrics.members.inc();
        Ok(Attached {
            channels: self.clone(),
            channel,
            id,
        })
    }
}

//! Who is present in a room.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    MEMBERS_MAX, PlaceKind, Room, RoomId, Rooms, SOCKET_BYTES_MAX, check_bytes, check_name,
};
use crate::{Batch, Lifetime, Position, Reading, Result, ScanOptions, Storage};

/// A user who is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The user.
    pub user: String,
    /// With these sockets; at least one.
    pub sockets: Vec<String>,
}

impl<S: Storage> Rooms<S> {
    /// A user is present with a socket, as long as `lifetime` says: by default as long as the session of the storage.
    /// A user with several sockets is present once. Joining again does no harm, and is a write.
    ///
    /// # Errors
    /// As [`Storage::commit`]; `CheckFailed` for the record of the room: it was removed or changed, open it again.
    /// `InvalidArgument` for a user or a socket without a name, or with a bad one.
    pub async fn join(
        &self,
        room: &Room,
        user: &str,
        socket: &str,
        lifetime: Lifetime,
    ) -> Result<Position> {
        check_name("a user of a room", user, 1)?;
        check_bytes("a socket of a room", socket, 1, SOCKET_BYTES_MAX)?;
        let key = self.keys.presence(room.id, user, socket);
        let batch = self
            .checked(Batch::new(), room)
            .put_with(key, Bytes::new(), lifetime);
        self.commit(batch, "joined").await
    }

    /// A socket of a user leaves; one that is not there is no error.
    ///
    /// # Errors
    /// As [`Storage::commit`].
    pub async fn leave(&self, room: RoomId, user: &str, socket: &str) -> Result<Position> {
        let key = self.keys.presence(room, user, socket);
        self.commit(Batch::new().remove(key), "left").await
    }

    /// Who is present, in the order of names; of the first [`MEMBERS_MAX`] sockets.
    ///
    /// # Errors
    /// As [`Storage::scan`].
    pub async fn members(&self, room: RoomId) -> Result<Reading<Vec<Member>>> {
        let options = ScanOptions {
            keys_only: true,
            limit: Some(MEMBERS_MAX as u64),
            ..ScanOptions::default()
        };
        let mut scan = self
            .storage
            .scan(self.keys.presence_range(room), options)
            .await?;
        let position = scan.position();
        let mut members = BTreeMap::<String, Vec<String>>::new();
        while let Some(items) = scan.next_page().await? {
            for item in items {
                let place = self.keys.parse(&item.key);
                if let Some(PlaceKind::Presence { user, socket }) = place.map(|place| place.kind) {
                    members.entry(user).or_default().push(socket);
                }
            }
        }
        let members = members.into_iter();
        Ok(Reading {
            position,
            value: members
                .map(|(user, sockets)| Member { user, sockets })
                .collect(),
        })
    }
}

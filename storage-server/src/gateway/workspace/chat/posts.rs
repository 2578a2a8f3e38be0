//! What is said in rooms, and taken back.

use storage_protocol::StorageError;
use storage_protocol::rooms::{Deleted, DeletedBy, Draft, MessageId, RoomId};

use super::super::frame::{SaidMessage, SaidRoom, TEXT_BYTES_MAX};
use super::conversation::{Conversation, Done, Joined, Not};

const NOT_JOINED: &str = "JOIN the room first";

impl Conversation {
    fn joined(&self, room: &str) -> Result<&Joined, Not> {
        let id: RoomId = room.parse().map_err(|_| Not::from(NOT_JOINED))?;
        self.joined.get(&id).ok_or_else(|| NOT_JOINED.into())
    }

    /// Posts a message. It comes back to this socket too, by way of the store.
    pub(super) async fn post(&mut self, room: Option<SaidRoom>, said: SaidMessage) -> Done {
        let name = match said.room.as_str() {
            "" => {
                let id = room.and_then(|room| self.joined_by(&room));
                id.map(|id| id.to_string()).unwrap_or_default()
            }
            name => name.to_owned(),
        };
        let joined = self.joined(&name)?;
        if !joined.access.writes {
            return Err("you may read here, and not write".into());
        }
        if said.text.is_empty() {
            return Err("Message.Message: a text".into());
        }
        if said.text.len() > TEXT_BYTES_MAX {
            return Err(format!(
                "Message.Message: a text has at most {TEXT_BYTES_MAX} bytes, this has {}",
                said.text.len()
            )
            .into());
        }
        // As it was said; it is made harmless on its way to pages.
        let mut draft = Draft::new(self.looked.rights.login.as_str(), said.text)?;
        draft.info = said.info;
        let rooms = self.rooms()?;
        match rooms.post(&joined.room, &draft).await {
            Ok(_) => {}
            Err(StorageError::CheckFailed { .. }) => {
                let gone = joined.room.id;
                self.leave(gone).await;
                return Err("the room was removed or changed: JOIN it again".into());
            }
            Err(error) => return Err(error.into()),
        }
        self.session.state.metrics.messages.inc();
        Ok(())
    }

    /// Deletes a message of its author; an administrator's of anybody. What the client says of the author means nothing.
    pub(super) async fn delete(&mut self, said: SaidMessage) -> Done {
        let joined = self.joined(&said.room)?;
        let id: MessageId = said.uuid.parse()?;
        let by = match self.looked.rights.is_admin {
            true => DeletedBy::Anyone,
            false => DeletedBy::Author(&self.looked.rights.login),
        };
        match self.rooms()?.delete(joined.room.id, id, by).await? {
            Deleted::Done(..) => Ok(()),
            Deleted::Missing => Err("there is no such message".into()),
            Deleted::OfAnother(_) => Err("the message is of somebody else".into()),
        }
    }
}

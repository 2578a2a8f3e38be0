//! What a room has had: its messages, for one who joins, who comes back, who asks, and who was too slow.

use storage_protocol::Revision;
use storage_protocol::rooms::{HistoryPage, HistoryWish, MessageId, PAGE_MESSAGES_MAX, Room};

use super::super::frame::{self, SaidRoom};
use super::super::records::Look;
use super::conversation::{Conversation, Done, Not};

/// Which part of a room's messages a page is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// What follows what was sent.
    Next,
    /// What was asked for.
    Asked,
}

impl Conversation {
    /// Tells one who has joined who is in the room, and then its messages: those behind one of them, or the newest.
    pub(super) async fn greet(&mut self, room: &Room, after: Option<MessageId>) -> Done {
        let Some(joined) = self.joined.get_mut(&room.id) else {
            return Ok(());
        };
        let update = joined
            .attached
            .channel
            .update_with(&self.looked.rights.login);
        joined.told = update.clone();
        self.session.send(update).await?;
        let is_known = match after {
            Some(after) => self.is_of_this_history(room, after).await?,
            None => false,
        };
        if let Some(after) = after
            && is_known
        {
            // What breaks off goes on behind this.
            self.has_sent(room, after.revision);
            return self.send_after(room, after.revision).await;
        }
        let limit = self.session.state.config.join_messages;
        let page = self.newest(room, 0, limit).await?;
        self.send_page(room, &page, Part::Next).await?;
        self.has_sent(room, page.position.revision);
        if page.more {
            let name = room.id.to_string();
            let text = frame::may_have_more(&name, page.messages.first(), page.rows, limit);
            self.session.send(text).await?;
        }
        if after.is_some() {
            // What came behind a message that is not of this history is not known.
            self.session.send(frame::resync()).await?;
        }
        Ok(())
    }

    /// Whether what is behind a message is what its reader has not seen: not if the store has another message there, or has not
    /// come so far, since it was set back. One that was deleted is where it was.
    async fn is_of_this_history(&self, room: &Room, id: MessageId) -> Result<bool, Not> {
        let before = Revision(id.revision.0.saturating_sub(1));
        let page = self.rooms()?.messages_after(room.id, before, 1).await?;
        let is_other = |found: &MessageId| found.revision == id.revision && *found != id;
        let found = page.messages.first().map(|message| message.id);
        Ok(id.revision <= page.position.revision && !found.as_ref().is_some_and(is_other))
    }

    /// So many of the newest messages but some, the oldest first.
    async fn newest(&self, room: &Room, offset: u64, limit: usize) -> Result<HistoryPage, Not> {
        let wish = HistoryWish {
            offset,
            limit: limit.min(PAGE_MESSAGES_MAX),
            before: None,
        };
        Ok(self.rooms()?.history(room.id, wish).await?)
    }

    /// Sends messages for as long as the room is for the peer, which is looked at before each of them.
    async fn send_page(&mut self, room: &Room, page: &HistoryPage, part: Part) -> Done {
        let name = room.id.to_string();
        let revisions = page.messages.iter().map(|message| message.id.revision);
        if let Some(newest) = revisions.max() {
            self.rights_as_of(newest).await?;
        }
        let mut access = self.access_to(&room.key, Look::AsSeen).await?;
        for message in &page.messages {
            if self.is_out_of_date() || access.is_stale() {
                Box::pin(self.look_again(Look::AsSeen)).await?;
                access = self.access_to(&room.key, Look::AsSeen).await?;
            }
            self.session
                .send(frame::message_frame(&name, message))
                .await?;
            if part == Part::Next {
                // What breaks off here goes on here.
                self.has_sent(room, message.id.revision);
            }
        }
        Ok(())
    }

    /// All messages of a room up to here were sent, as far as they were to be.
    fn has_sent(&mut self, room: &Room, revision: Revision) {
        if let Some(joined) = self.joined.get_mut(&room.id) {
            joined.last = joined.last.max(revision);
        }
    }

    /// Sends all messages behind a revision. What was sent before an error is not sent again.
    pub(super) async fn send_after(&mut self, room: &Room, after: Revision) -> Done {
        let rooms = self.rooms()?;
        let mut after = after;
        loop {
            let page = rooms.messages_after(room.id, after, PAGE_MESSAGES_MAX);
            let page = page.await?;
            self.send_page(room, &page, Part::Next).await?;
            after = match page.messages.last() {
                Some(last) if page.more => last.id.revision,
                _ => page.position.revision,
            };
            self.has_sent(room, after);
            if !page.more {
                return Ok(());
            }
        }
    }

    pub(super) async fn history(&mut self, said: &SaidRoom, wish: Option<&str>) -> Done {
        let key = self.key_of(said).await?;
        // Held, so that what it goes by is known.
        let _access = self.access_to(&key, Look::AsSeen).await?;
        let rooms = self.rooms()?;
        let Some(room) = rooms.open(&key).await? else {
            return Ok(());
        };
        let update = match self.joined.get(&room.id) {
            Some(joined) => joined
                .attached
                .channel
                .update_with(&self.looked.rights.login),
            None => {
                let members = rooms.members(room.id).await?.value;
                let users: Vec<&str> = members.iter().map(|member| member.user.as_str()).collect();
                frame::room_update(&room, &users, room.created.0)
            }
        };
        self.session.send(update).await?;
        let limit_max = self.session.state.config.join_messages;
        let limit_max = limit_max.min(PAGE_MESSAGES_MAX);
        let (offset, limit) = frame::history_wish(wish.unwrap_or_default(), limit_max);
        let page = self.newest(&room, offset, limit).await?;
        self.send_page(&room, &page, Part::Asked).await?;
        if page.more {
            let next = offset.saturating_add(page.rows);
            let name = room.id.to_string();
            let text = frame::may_have_more(&name, page.messages.first(), next, limit);
            self.session.send(text).await?;
        }
        Ok(())
    }
}

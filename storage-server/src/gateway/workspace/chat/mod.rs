//! A socket for chat: rooms, their messages, and who is in them.
//!
//! | operation | |
//! | --- | --- |
//! | `JOIN` | makes the room where it is missing; answered by `ROOM_UPDATE` and then the messages, the oldest first. `Message.Uuid`: only those behind that message. With the text `PING`: makes nothing, and is not answered where the socket is in the room |
//! | `HISTORY` | `ROOM_UPDATE`, a page of messages, and `MAY_HAVE_MORE` if there are more |
//! | `POST`, `DELETE_MSG` | told to all who are in the room, by way of the store |
//! | `LEAVE` | |
//!
//! A room is for those who may read what it belongs to, which is looked at for each operation and, when it may have changed,
//! before each frame. What is refused is told by a frame of the type `error`.

mod access;
mod channel;
mod channels;
mod conversation;
mod joins;
mod judged;
mod pages;
mod posts;

pub(super) use self::channels::Channels;
pub(super) use self::conversation::serve;

//! The history of a room, by pages.

use super::library::message_at;
use super::{Message, PAGE_BYTES_MAX, PAGE_MESSAGES_MAX, PlaceKind, RoomId, Rooms};
use crate::{
    Key, KeyRange, KeyState, Position, Reading, Result, Revision, ScanItem, ScanOptions, Storage,
};

/// Which page of a history. The default is the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryWish {
    /// Only messages before this revision. Default: all.
    pub before: Option<Revision>,
    /// So many of the newest are passed over. What is passed over is read, keys alone: `before` is the better way through a long
    /// history. Default 0.
    pub offset: u64,
    /// At most so many messages, of at most [`PAGE_MESSAGES_MAX`]. Default 100.
    pub limit: usize,
}

impl Default for HistoryWish {
    fn default() -> Self {
        Self {
            before: None,
            offset: 0,
            limit: 100,
        }
    }
}

/// A page of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// Its messages, the oldest first. What cannot be read is passed over.
    pub messages: Vec<Message>,
    /// How many entries it covers, also those that cannot be read: the next page of a history has this added to its offset.
    pub rows: u64,
    /// There are more: older ones, or newer ones of [`Rooms::messages_after`].
    pub more: bool,
    /// Where in the history of the store it was read.
    pub position: Position,
}

impl<S: Storage> Rooms<S> {
    /// A page of the newest messages, or of older ones. It ends before its limit where it would have more than
    /// [`PAGE_BYTES_MAX`] bytes, behind one message at least.
    ///
    /// # Errors
    /// As [`Storage::scan`].
    pub async fn history(&self, room: RoomId, wish: HistoryWish) -> Result<HistoryPage> {
        let mut range = self.keys.messages_before(room, wish.before);
        if wish.offset > 0 {
            range.end = match self.pass_over(range.clone(), wish.offset).await? {
                Some(last) => Some(last),
                None => {
                    let position = self.storage.get(&[]).await?.position;
                    return Ok(HistoryPage {
                        messages: Vec::new(),
                        rows: 0,
                        more: false,
                        position,
                    });
                }
            };
        }
        let mut page = self.page(range, true, wish.limit).await?;
        page.messages.reverse();
        Ok(page)
    }

    /// A page of the messages behind a revision, the oldest first: what one who was away has missed.
    ///
    /// # Errors
    /// As [`Rooms::history`].
    pub async fn messages_after(
        &self,
        room: RoomId,
        after: Revision,
        limit: usize,
    ) -> Result<HistoryPage> {
        let range = self.keys.messages_after(room, after);
        self.page(range, false, limit).await
    }

    /// How many messages there are, and where in the history of the store that is so; at most `max` are counted.
    ///
    /// # Errors
    /// As [`Storage::scan`].
    pub async fn count(&self, room: RoomId, max: u64) -> Result<Reading<u64>> {
        let options = ScanOptions {
            keys_only: true,
            limit: Some(max),
            ..ScanOptions::default()
        };
        let range = self.keys.messages_before(room, None);
        let mut scan = self.storage.scan(range, options).await?;
        let (position, mut value) = (scan.position(), 0);
        while let Some(page) = scan.next_page().await? {
            value += page.len() as u64;
        }
        Ok(Reading { position, value })
    }

    /// The key of the last entry that is passed over; `None`: there are no more.
    async fn pass_over(&self, range: KeyRange, count: u64) -> Result<Option<Key>> {
        let options = ScanOptions {
            reverse: true,
            keys_only: true,
            limit: Some(count),
            ..ScanOptions::default()
        };
        let mut scan = self.storage.scan(range, options).await?;
        let (mut passed, mut last) = (0, None);
        while let Some(page) = scan.next_page().await? {
            passed += page.len() as u64;
            last = page.last().map(|item| item.key.clone());
        }
        Ok(last.filter(|_| passed == count))
    }

    async fn page(&self, range: KeyRange, reverse: bool, limit: usize) -> Result<HistoryPage> {
        let limit = limit.clamp(1, PAGE_MESSAGES_MAX);
        let (mut messages, mut bytes, mut rows) = (Vec::new(), 0, 0);
        let (mut range, mut at) = (range, None);
        // As a rule once: more often where much cannot be read, since nobody can go on behind a page without messages.
        loop {
            // One more tells whether there are more.
            let asked = (limit - messages.len()) as u64 + 1;
            let options = ScanOptions {
                reverse,
                limit: Some(asked),
                ..ScanOptions::default()
            };
            let mut scan = self.storage.scan(range.clone(), options).await?;
            let position = *at.get_or_insert_with(|| scan.position());
            let (mut read, mut last) = (0, None);
            while let Some(items) = scan.next_page().await? {
                for ScanItem { key, state } in items {
                    if messages.len() == limit || bytes >= PAGE_BYTES_MAX {
                        return Ok(HistoryPage {
                            messages,
                            rows,
                            more: true,
                            position,
                        });
                    }
                    read += 1;
                    if let KeyState::Live(entry) = state
                        // What a later scan sees behind the first one is behind this page, too.
                        && entry.revision <= position.revision
                    {
                        rows += 1;
                        if let Some(place) = self.keys.parse(&key)
                            && let PlaceKind::Message(revision) = place.kind
                            && let Some(message) =
                                message_at(&entry.value, revision, entry.revision)
                        {
                            bytes += entry.value.len();
                            messages.push(message);
                        }
                    }
                    last = Some(key);
                }
            }
            match last {
                Some(last) if read == asked => match reverse {
                    true => range.end = Some(last),
                    false => range.start = [&last[..], b"\0"].concat().into(),
                },
                _ => {
                    return Ok(HistoryPage {
                        messages,
                        rows,
                        more: false,
                        position,
                    });
                }
            }
        }
    }
}

//! The connections of robots, by address: the newest of one address is its connection. Which one that is the store says, by the
//! revisions of the commits that made them so: two may come here in another order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use storage_protocol::Revision;
use tokio_util::sync::CancellationToken;

/// See the module. One entry for each connected robot.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<HashMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    socket: String,
    revision: Revision,
    superseded: CancellationToken,
    removed: CancellationToken,
}

/// A robot's place among them; it is given back when this is dropped, unless a newer connection has it.
#[derive(Debug)]
pub(super) struct Presence {
    live: Arc<Live>,
    address: String,
    revision: Revision,
    /// A newer connection has the address.
    pub(super) superseded: CancellationToken,
    /// The robot was removed.
    pub(super) removed: CancellationToken,
}

impl Live {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This socket is the connection of the address since this commit, unless one of a later commit is here already.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: &str,
        socket: &str,
        revision: Revision,
    ) -> Presence {
        let presence = Presence {
            live: self.clone(),
            address: address.to_owned(),
            revision,
            superseded: CancellationToken::new(),
            removed: CancellationToken::new(),
        };
        let entry = Entry {
            socket: socket.to_owned(),
            revision,
            superseded: presence.superseded.clone(),
            removed: presence.removed.clone(),
        };
        let mut all = self.all();
        match all.get(address) {
            Some(newer) if newer.revision > revision => presence.superseded.cancel(),
            before => {
                if let Some(before) = before.filter(|before| before.socket != socket) {
                    before.superseded.cancel();
                }
                all.insert(address.to_owned(), entry);
            }
        }
        drop(all);
        presence
    }

    /// The robot of this address is not known any more since this commit: its connection is closed, unless it is of a later one.
    pub(super) fn remove(&self, address: &str, since: Revision) {
        if let Some(entry) = self.all().get(address)
            && entry.revision <= since
        {
            entry.removed.cancel();
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut all = self.live.all();
        if all
            .get(&self.address)
            .is_some_and(|entry| entry.revision == self.revision)
        {
            all.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_has_the_address_whatever_becomes_of_the_older_one() {
        let live = Arc::new(Live::default());
        let old = live.enter("a", "1", Revision(1));
        let new = live.enter("a", "2", Revision(2));
        assert!(old.superseded.is_cancelled() && !new.superseded.is_cancelled());
        drop(old);
        // A removal before it is not its own.
        live.remove("a", Revision(1));
        assert!(!new.removed.is_cancelled());
        live.remove("a", Revision(2));
        assert!(new.removed.is_cancelled());
        drop(new);
        assert!(live.all().is_empty());
    }

    #[test]
    fn who_comes_late_with_an_older_commit_does_not_have_the_address() {
        let live = Arc::new(Live::default());
        let new = live.enter("a", "2", Revision(2));
        let old = live.enter("a", "1", Revision(1));
        assert!(old.superseded.is_cancelled() && !new.superseded.is_cancelled());
        drop(old);
        // The same socket again.
        let again = live.enter("a", "2", Revision(3));
        assert!(!new.superseded.is_cancelled() && !again.superseded.is_cancelled());
        drop(new);
        live.remove("a", Revision(4));
        assert!(again.removed.is_cancelled());
        drop(again);
        assert!(live.all().is_empty());
    }
}

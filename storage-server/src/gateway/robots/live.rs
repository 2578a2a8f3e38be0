//! The connections of robots, by address: the newest of one address is its connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// See the module. One entry for each connected robot.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<HashMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    socket: String,
    superseded: CancellationToken,
    removed: CancellationToken,
}

/// A robot's place among them; it is given back when this is dropped, unless a newer connection has it.
#[derive(Debug)]
pub(super) struct Presence {
    live: Arc<Live>,
    address: String,
    socket: String,
    /// A newer connection has the address.
    pub(super) superseded: CancellationToken,
    /// The robot was removed.
    pub(super) removed: CancellationToken,
}

impl Live {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This socket is the connection of the address from now on.
    pub(super) fn enter(self: &Arc<Self>, address: &str, socket: &str) -> Presence {
        let presence = Presence {
            live: self.clone(),
            address: address.to_owned(),
            socket: socket.to_owned(),
            superseded: CancellationToken::new(),
            removed: CancellationToken::new(),
        };
        let entry = Entry {
            socket: socket.to_owned(),
            superseded: presence.superseded.clone(),
            removed: presence.removed.clone(),
        };
        if let Some(before) = self.all().insert(address.to_owned(), entry)
            && before.socket != socket
        {
            before.superseded.cancel();
        }
        presence
    }

    /// The robot of this address is not known any more: its connection is closed.
    pub(super) fn remove(&self, address: &str) {
        if let Some(entry) = self.all().get(address) {
            entry.removed.cancel();
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut all = self.live.all();
        if all
            .get(&self.address)
            .is_some_and(|entry| entry.socket == self.socket)
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
        let old = live.enter("a", "1");
        let new = live.enter("a", "2");
        assert!(old.superseded.is_cancelled() && !new.superseded.is_cancelled());
        drop(old);
        live.remove("a");
        assert!(new.removed.is_cancelled());
        drop(new);
        assert!(live.all().is_empty());
    }
}

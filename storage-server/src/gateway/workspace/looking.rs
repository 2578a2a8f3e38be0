//! What those have who listen to events: looked up when they subscribe, and again when a record changes that they go by.
//!
//! The hub waits for that, since what follows a change of rights is told by the new ones. So equal claims are looked up once, those
//! that differ at once, records that did not change are not read, and there is an end to waiting: whoever could not be looked up
//! by then is told nothing until it could, and then to look for what it has missed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, StreamExt};
use storage_protocol::{Result, StorageError};
use tokio::time::{Instant, timeout, timeout_at};

use super::directory::{self, Claims, Looked};
use super::hub::Hub;
use super::records::Look;
use super::registry::{Receiver, ReceiverId, Registry};

/// So many claims are looked up at a time.
const LOOKUPS_AT_ONCE: usize = 64;
/// So long all that is told waits for lookups.
const PATIENCE: Duration = Duration::from_secs(2);

/// And so long a lookup may take that nothing waits for.
const PATIENCE_OF_NOBODY: Duration = Duration::from_secs(30);

/// Sockets with the same claims.
type Group = Vec<(ReceiverId, Arc<Receiver>)>;

impl Hub {
    /// Looks up what some of them have now. Of whom that cannot be read it is not known, which [`Hub::has_unknown`] tells.
    pub(super) async fn look_again(&self, ids: &HashSet<ReceiverId>) {
        let mut groups: Vec<(Claims, Group)> = self.groups(ids).into_iter().collect();
        let end = Instant::now() + PATIENCE;
        while !groups.is_empty() {
            let some = groups.split_off(groups.len().saturating_sub(LOOKUPS_AT_ONCE));
            let looking = some.into_iter().map(|(claims, group)| async move {
                let looking = directory::rights(self.records(), &claims, Look::AsSeen);
                let looked = timeout_at(end, looking).await;
                (group, looked.unwrap_or(Err(StorageError::Cancelled)))
            });
            let mut looking: FuturesUnordered<_> = looking.collect();
            while let Some((group, looked)) = looking.next().await {
                self.put(group, looked);
            }
        }
    }

    fn groups(&self, ids: &HashSet<ReceiverId>) -> HashMap<Claims, Group> {
        let registry = self.registry();
        let mut groups = HashMap::<Claims, Group>::new();
        for id in ids {
            if let Some((receiver, _)) = registry.get(*id) {
                let group = groups.entry(receiver.claims.clone()).or_default();
                group.push((*id, receiver));
            }
        }
        groups
    }

    fn put(&self, group: Group, looked: Result<Looked>) {
        let looked = match looked {
            Ok(looked) => Some(Arc::new(looked)),
            Err(error) => {
                tracing::warn!(%error, "rights of the gateway workspace cannot be looked up yet");
                None
            }
        };
        put(&mut self.registry(), group, looked.as_ref());
    }

    /// The same, unless it is known already that it is not so any more.
    fn put_current(&self, group: Group, looked: Looked) {
        // Ordering: a change is noted before it is looked whom it concerns, which asks for this lock.
        let mut registry = self.registry();
        if !looked.is_stale() {
            put(&mut registry, group, Some(&Arc::new(looked)));
        }
    }

    /// Whether there are some of whom it is not known what they have.
    pub(super) fn has_unknown(&self) -> bool {
        !self.registry().unknown().is_empty()
    }

    /// Looks those up again. Nobody waits for that, so it may take its time, and what changes meanwhile has them looked up
    /// once more.
    pub(super) async fn look_for_unknown(&self) {
        let unknown = self.registry().unknown();
        let looking = self.groups(&unknown).into_iter();
        let looking = looking.map(|(claims, group)| async move {
            let looking = directory::rights(self.records(), &claims, Look::AsSeen);
            (group, timeout(PATIENCE_OF_NOBODY, looking).await)
        });
        let mut looking = stream::iter(looking).buffer_unordered(LOOKUPS_AT_ONCE);
        while let Some((group, looked)) = looking.next().await {
            if let Ok(Ok(looked)) = looked {
                self.put_current(group, looked);
            }
        }
    }

    /// Registers a socket with what it has.
    ///
    /// # Errors
    /// As [`directory::rights`].
    pub(super) async fn subscribe(&self, id: ReceiverId, receiver: Receiver) -> Result<()> {
        let receiver = Arc::new(receiver);
        loop {
            let looked = directory::rights(self.records(), &receiver.claims, Look::Fresh).await?;
            let mut registry = self.registry();
            // A change in between would be missed.
            if !looked.is_stale() {
                if let Some((_, before)) = registry.get(id) {
                    receiver.outbox.judged_anew(before.as_deref(), &looked);
                }
                registry.put(id, receiver, Arc::new(looked));
                return Ok(());
            }
        }
    }
}

/// Puts what some of them have, `None` for what could not be looked up.
fn put(registry: &mut Registry, group: Group, looked: Option<&Arc<Looked>>) {
    for (id, receiver) in group {
        let Some((now, before)) = registry.get(id) else {
            continue;
        };
        // It may have subscribed anew meanwhile.
        if !Arc::ptr_eq(&now, &receiver) {
            continue;
        }
        match looked {
            Some(looked) => {
                receiver.outbox.judged_anew(before.as_deref(), looked);
                registry.put(id, receiver, looked.clone());
            }
            None => {
                receiver.outbox.withdraw();
                registry.put_unknown(id, receiver);
            }
        }
    }
}

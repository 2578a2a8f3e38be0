//! Places for works that take memory or time, such as uploads. Who finds none waits for its turn, but not for ever; and
//! nobody has more than half of them, so nobody can keep the others waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the module.
#[derive(Debug)]
pub(crate) struct Turns {
    max: usize,
    all: Arc<Semaphore>,
    /// The share of each peer that has a turn or waits for one; short sections only.
    shares: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _of_all: OwnedSemaphorePermit,
    _of_its_share: OwnedSemaphorePermit,
}

/// There was no place in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {0} places that there are, or all that one peer has, are taken")]
pub(crate) struct NoTurn(usize);

impl Turns {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            all: Arc::new(Semaphore::new(max)),
            shares: Mutex::default(),
        }
    }

    /// A place for a work of this peer, as [`peer_name`](super::address::peer_name) calls it. First come, first served,
    /// among the works of one peer and among the peers. Cancel-safe.
    ///
    /// # Errors
    /// There is none within `patience`.
    pub(crate) async fn take(&self, peer: &str, patience: Duration) -> Result<Turn, NoTurn> {
        let share = self.share(peer);
        let both = async {
            // The own share first: who waits for that is in nobody's way.
            let of_its_share = share.acquire_owned().await.ok()?;
            let of_all = self.all.clone().acquire_owned().await.ok()?;
            Some(Turn {
                _of_all: of_all,
                _of_its_share: of_its_share,
            })
        };
        let taken = tokio::time::timeout(patience, both).await;
        taken.ok().flatten().ok_or(NoTurn(self.max))
    }

    fn share(&self, peer: &str) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(peer).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.max.div_ceil(2)));
        shares.insert(peer.to_owned(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_has_more_than_half_and_places_come_back() {
        let turns = Turns::new(4);
        let at_once = Duration::ZERO;
        let take = async |peer: &str| turns.take(peer, at_once).await;
        let first = (take("a").await.unwrap(), take("a").await.unwrap());
        assert_eq!(take("a").await.unwrap_err(), NoTurn(4));
        let second = (take("b").await.unwrap(), take("b").await.unwrap());
        assert_eq!(take("c").await.unwrap_err(), NoTurn(4));
        drop(first);
        let third = take("c").await.unwrap();
        drop((second, third));
        drop(take("d").await.unwrap());
        // Nothing is left of who is gone.
        assert!(turns.shares.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    async fn who_waits_has_its_turn_when_one_ends() {
        let turns = Turns::new(2);
        let first = turns.take("a", Duration::ZERO).await.unwrap();
        let hour = Duration::from_secs(3600);
        let mut waits = Box::pin(turns.take("a", hour));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(first);
        waits.await.unwrap();
    }
}

//! Room for robots: how many are known, and how many are about to be. Together they are never more than may be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Others add and remove robots too: where there seems to be no room they are counted again after so long.
const COUNTED_AGAIN: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    max: u64,
    counts: Mutex<Counts>,
    /// Whoever counts, or removes one, which must not happen at once.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Counts {
    /// `None`: they have not been counted yet.
    known: Option<u64>,
    /// When they were counted.
    at: Instant,
    /// Places of robots that are about to be known.
    taken: u64,
    /// Robots that came to be known, ever.
    made: u64,
}

/// A place for one robot, which is given back when this is dropped, unless it was filled.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    is_filled: bool,
}

impl Room {
    pub(super) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self {
            max,
            counts: Mutex::new(Counts {
                known: None,
                at: Instant::now(),
                taken: 0,
                made: 0,
            }),
            counting: tokio::sync::Mutex::default(),
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if there is one. `count` says how many robots are known; it is asked where that is not known, or where there
    /// is no room by what is known.
    ///
    /// # Errors
    /// Those of `count`.
    pub(super) async fn take<E>(
        self: &Arc<Self>,
        count: impl Future<Output = Result<u64, E>>,
    ) -> Result<Option<Place>, E> {
        if let Some(place) = self.try_take() {
            return Ok(place);
        }
        let _counting = self.counting.lock().await;
        if let Some(place) = self.try_take() {
            return Ok(place);
        }
        let before = self.counts().made;
        let counted = count.await?;
        {
            let mut counts = self.counts();
            // Those that came meanwhile may be counted twice, but never less than once.
            counts.known = Some(counted.saturating_add(counts.made - before));
            counts.at = Instant::now();
        }
        Ok(self.try_take().flatten())
    }

    /// `None`: they have to be counted first.
    fn try_take(self: &Arc<Self>) -> Option<Option<Place>> {
        let mut counts = self.counts();
        let is_room = counts.known?.saturating_add(counts.taken) < self.max;
        if is_room {
            counts.taken += 1;
            return Some(Some(Place {
                room: self.clone(),
                is_filled: false,
            }));
        }
        (counts.at.elapsed() < COUNTED_AGAIN).then_some(None)
    }

    /// Does what removes a robot, if it does; its room is free then.
    pub(super) async fn freed_by<T>(&self, removing: impl Future<Output = Option<T>>) -> Option<T> {
        let _counting = self.counting.lock().await;
        let removed = removing.await;
        if removed.is_some()
            && let Some(known) = &mut self.counts().known
        {
            *known = known.saturating_sub(1);
        }
        removed
    }
}

impl Place {
    /// The robot is known.
    pub(super) fn fill(mut self) {
        self.is_filled = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.room.counts();
        counts.taken -= 1;
        if self.is_filled {
            counts.made += 1;
            counts.known = counts.known.map(|known| known + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    async fn take(room: &Arc<Room>, known: u64) -> Option<Place> {
        let counted = async { Ok::<_, Infallible>(known) };
        room.take(counted).await.unwrap()
    }

    #[tokio::test]
    async fn who_is_on_the_way_has_its_place() {
        let room = Room::new(3);
        let (one, two) = (take(&room, 1).await, take(&room, 1).await);
        assert!(one.is_some() && two.is_some());
        assert!(take(&room, 0).await.is_none());
        drop(one);
        let three = take(&room, 0).await.unwrap();
        three.fill();
        two.unwrap().fill();
        assert!(take(&room, 0).await.is_none());
        assert_eq!(room.freed_by(async { Some(7) }).await, Some(7));
        assert_eq!(room.freed_by(async { None::<()> }).await, None);
        assert!(take(&room, 0).await.is_some());
    }

    #[tokio::test]
    async fn who_comes_while_they_are_counted_is_not_forgotten() {
        let room = Room::new(2);
        let early = take(&room, 0).await.unwrap();
        room.counts().known = None;
        let counted = async {
            early.fill();
            // It was counted before that one came.
            Ok::<_, Infallible>(0)
        };
        let place = room.take(counted).await.unwrap();
        assert!(place.is_some());
        assert!(take(&room, 0).await.is_none());
    }

    #[tokio::test]
    async fn what_others_have_removed_is_noticed_in_time() {
        let room = Room::new(2);
        assert!(take(&room, 2).await.is_none());
        assert!(take(&room, 0).await.is_none());
        let long_ago = Instant::now().checked_sub(COUNTED_AGAIN).unwrap();
        room.counts().at = long_ago;
        assert!(take(&room, 1).await.is_some());
    }
}

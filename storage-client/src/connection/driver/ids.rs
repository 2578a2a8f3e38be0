//! Request ids: a counter that wraps around and skips ids that are in use.
//!
//! An id stays in use until its answer arrives, even if nobody waits for it any more, so a late answer is never
//! mistaken for another request's.

use storage_protocol::native::RequestId;
use storage_protocol::number::ID_MAX;

/// Hands out ids 0 to [`ID_MAX`].
#[derive(Debug, Default)]
pub(super) struct Ids {
    next: RequestId,
    wrapped: bool,
}

impl Ids {
    /// The next id that is not in use. At most a few thousand are (the server bounds them), so this ends.
    pub(super) fn take(&mut self, in_use: impl Fn(RequestId) -> bool) -> RequestId {
        loop {
            let id = self.next;
            if id == ID_MAX {
                self.next = 0;
                self.wrapped = true;
            } else {
                self.next = id + 1;
            }
            if !in_use(id) {
                return id;
            }
        }
    }

    /// Whether this id was handed out at some time.
    pub(super) fn was_taken(&self, id: RequestId) -> bool {
        self.wrapped || id < self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_wrap_and_pass_over_those_in_use() {
        let mut ids = Ids::default();
        assert!(!ids.was_taken(0));
        assert_eq!(ids.take(|_| false), 0);
        assert!(ids.was_taken(0) && !ids.was_taken(1));
        ids.next = ID_MAX - 1;
        let in_use = |id| id == ID_MAX || id == 0 || id == 2;
        let taken: Vec<_> = (0..3).map(|_| ids.take(in_use)).collect();
        assert_eq!(taken, [ID_MAX - 1, 1, 3]);
        assert!(ids.was_taken(ID_MAX));
    }
}

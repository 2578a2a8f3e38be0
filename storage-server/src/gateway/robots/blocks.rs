//! Robots that are not let in for a while, after too many refusals.
//!
//! By the address that they say and the one that they come from: else anybody could have any robot blocked. Refusals are counted
//! over connections, so that a new one for each does not help.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use storage_protocol::UnixMillis;

/// The most that are remembered; beyond that one is forgotten that is not blocked, or the block that would end first.
const REMEMBERED_MAX: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Blocks(Mutex<HashMap<(IpAddr, String), Remembered>>);

#[derive(Clone, Copy, Debug)]
struct Remembered {
    refusals: u32,
    is_blocked: bool,
    until: UnixMillis,
}

impl Blocks {
    fn all(&self) -> MutexGuard<'_, HashMap<(IpAddr, String), Remembered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a refusal; how many there were. With more than `refusals_max` it is blocked until then. Else it is remembered until
    /// then, and as long again as `pause`: what its connection waits before it may say more.
    pub(super) fn refused(
        &self,
        from: IpAddr,
        address: &str,
        refusals_max: u32,
        until: UnixMillis,
        pause: Duration,
        now: UnixMillis,
    ) -> u32 {
        let (mut all, key) = (self.all(), (from, address.to_owned()));
        let before = all.get(&key).filter(|before| before.until > now).copied();
        if before.is_none() && all.len() >= REMEMBERED_MAX {
            all.retain(|_, one| one.until > now);
            if all.len() >= REMEMBERED_MAX {
                let first = all
                    .iter()
                    .min_by_key(|(_, one)| (one.is_blocked, one.until));
                if let Some(first) = first.map(|(key, _)| key.clone()) {
                    all.remove(&first);
                }
            }
        }
        let refusals = before.map_or(0, |before| before.refusals).saturating_add(1);
        let is_blocked = refusals > refusals_max;
        let until = match is_blocked {
            true => until,
            false => until.after(pause),
        };
        all.insert(
            key,
            Remembered {
                refusals,
                is_blocked,
                until,
            },
        );
        refusals
    }

    pub(super) fn has(&self, from: IpAddr, address: &str, now: UnixMillis) -> bool {
        let mut all = self.all();
        let key = (from, address.to_owned());
        match all.get(&key) {
            Some(one) if one.until > now => one.is_blocked,
            Some(_) => {
                all.remove(&key);
                false
            }
            None => false,
        }
    }

    /// It was let in.
    pub(super) fn forget(&self, from: IpAddr, address: &str) {
        self.all().remove(&(from, address.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_end_and_are_bounded() {
        let (here, blocks) = (IpAddr::from([127, 0, 0, 1]), Blocks::default());
        let time = UnixMillis;
        let refused = |address: &str, until: u64| {
            blocks.refused(here, address, 1, time(until), Duration::ZERO, time(0))
        };
        assert_eq!(refused("a", 9), 1);
        assert!(!blocks.has(here, "a", time(0)));
        assert_eq!(refused("a", 10), 2);
        assert!(blocks.has(here, "a", time(9)));
        assert!(!blocks.has(IpAddr::from([127, 0, 0, 2]), "a", time(9)));
        assert!(!blocks.has(here, "b", time(9)));
        assert!(!blocks.has(here, "a", time(10)));
        // Refusals of long ago do not count, nor those before it was let in.
        assert_eq!(refused("c", 5), 1);
        assert_eq!(
            blocks.refused(here, "c", 1, time(20), Duration::ZERO, time(5)),
            1
        );
        blocks.forget(here, "c");
        assert_eq!(refused("c", 5), 1);
        for n in 0..REMEMBERED_MAX as u64 {
            refused(&n.to_string(), 100 + n);
            refused(&n.to_string(), 100 + n);
        }
        // One refusal has no block forgotten but the first.
        refused("once", 1_000_000);
        refused("more", 1_000_000);
        assert_eq!(blocks.all().len(), REMEMBERED_MAX);
        assert!(!blocks.has(here, "0", time(0)) && blocks.has(here, "5", time(0)));
    }
}

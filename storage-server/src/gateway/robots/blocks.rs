//! Robots that are not let in for a while, after too many refusals.
//!
//! By the address that they say and the one that they come from: else anybody could have any robot blocked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use storage_protocol::UnixMillis;

/// The most that are remembered; beyond that the one is forgotten that would be first.
const BLOCKED_MAX: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Blocks(Mutex<HashMap<(IpAddr, String), UnixMillis>>);

impl Blocks {
    fn all(&self) -> MutexGuard<'_, HashMap<(IpAddr, String), UnixMillis>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, from: IpAddr, address: &str, until: UnixMillis, now: UnixMillis) {
        let mut all = self.all();
        if all.len() >= BLOCKED_MAX {
            all.retain(|_, until| *until > now);
        }
        if all.len() >= BLOCKED_MAX {
            let first = all.iter().min_by_key(|(_, until)| **until);
            if let Some(first) = first.map(|(key, _)| key.clone()) {
                all.remove(&first);
            }
        }
        all.insert((from, address.to_owned()), until);
    }

    pub(super) fn has(&self, from: IpAddr, address: &str, now: UnixMillis) -> bool {
        let mut all = self.all();
        let key = (from, address.to_owned());
        match all.get(&key) {
            Some(until) if *until > now => true,
            Some(_) => {
                all.remove(&key);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_end_and_are_bounded() {
        let (here, blocks) = (IpAddr::from([127, 0, 0, 1]), Blocks::default());
        let time = UnixMillis;
        blocks.add(here, "a", time(10), time(0));
        assert!(blocks.has(here, "a", time(9)));
        assert!(!blocks.has(IpAddr::from([127, 0, 0, 2]), "a", time(9)));
        assert!(!blocks.has(here, "b", time(9)));
        assert!(!blocks.has(here, "a", time(10)));
        for n in 0..BLOCKED_MAX as u64 + 5 {
            blocks.add(here, &n.to_string(), time(100 + n), time(0));
        }
        assert_eq!(blocks.all().len(), BLOCKED_MAX);
        assert!(!blocks.has(here, "0", time(0)) && blocks.has(here, "5", time(0)));
    }
}

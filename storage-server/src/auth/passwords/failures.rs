//! Limits of failed logins: who may try now, and who has to wait.
//!
//! Three limits hold at the same time. They count failures alone.
//!
//! | what is counted | at once | then one each | in a day, at the most |
//! | --- | --- | --- | --- |
//! | one user from one address | 5 | 60 s | 1,445 |
//! | one user from all addresses | 100 | 10 s | 8,740 |
//! | one address for all users | 50 | 10 s | 8,690 |
//!
//! The first bounds guessing from one place. The second bounds what many addresses can do to one user. 100 is what NIST
//! SP 800-63B (section 5.2.2) names for failures in a row; beyond it we slow down and do not lock, since a lock is a
//! way to keep the user out. The third bounds how one address tries one password with many users, and leaves room for
//! an office behind one address.
//!
//! **A user cannot be locked out from elsewhere.** An address from which a user has logged in within the last 30 days
//! is *known* for this user. There only the first limit holds, and only failures at that address count in it. So
//! strangers who use up the user's limit do not stop the user, nor do neighbours who use up the address's. (OWASP's
//! device cookies work the same way, with a cookie for the address.)
//!
//! What remains: at a new address a user may have to wait while an attack goes on. There is one try each 10 s, and an
//! attacker may be faster. Ten seconds after the attack's end the first try is free. After a restart of the server no
//! address is known until a login from it. Somebody at the user's own address can use up the first limit.
//!
//! An address is an IPv4 address or an IPv6 network of 64 bits: the peer's own. Behind a proxy that hides it, all peers
//! are one.
//!
//! The limits are GCRA, a leaky bucket that is one point in time for each key. The crate `governor` has it, but can
//! neither ask without counting nor bound the number of its keys, and both are needed here.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

use crate::limits::address::Address;

/// For so long after a login an address is known for its user.
const KNOWN_FOR: Duration = Duration::from_hours(30 * 24);
/// The most addresses that are known for one user; the one of the oldest login is forgotten.
const KNOWN_PER_USER_MAX: usize = 16;

/// The longest time that one failure counts.
const THEN_EACH_MAX: Duration = Duration::from_hours(24);

/// How many failures are free, and how long one counts beyond that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Failures at once. At least 1.
    pub at_once: u32,
    /// After so long one more is free. Zero: there is no limit. At most a day.
    pub then_each: Duration,
}

/// A user, as a number that nobody outside can predict, so that a long name needs no more memory. Two users with one
/// number would share their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct User(u64);

/// The failed logins of all users and addresses, and the addresses that are known.
#[derive(Debug)]
pub(super) struct Failures {
    hasher: RandomState,
    of_pair: Limit<(User, Address)>,
    of_user: Limit<User>,
    of_address: Limit<Address>,
    known: Known,
}

impl Failures {
    /// At most `keys_max` keys for each limit, and users with known addresses.
    pub(super) fn new(
        pair: Allowance,
        user: Allowance,
        address: Allowance,
        keys_max: usize,
    ) -> Self {
        Self {
            hasher: RandomState::new(),
            of_pair: Limit::new(pair, keys_max),
            of_user: Limit::new(user, keys_max),
            of_address: Limit::new(address, keys_max),
            known: Known {
                users: HashMap::new(),
                users_max: keys_max,
            },
        }
    }

    pub(super) fn user(&self, name: &str) -> User {
        User(self.hasher.hash_one(name))
    }

    /// How long this user has to wait at this address; `None`: not at all. Counts nothing.
    pub(super) fn wait(&self, user: User, address: Address, now: Instant) -> Option<Duration> {
        let pair = self.of_pair.wait(&(user, address), now);
        if self.known.has(user, address, now) {
            return pair;
        }
        let others = self.of_user.wait(&user, now);
        pair.max(others).max(self.of_address.wait(&address, now))
    }

    pub(super) fn failed(&mut self, user: User, address: Address, now: Instant) {
        self.of_pair.count((user, address), now);
        if !self.known.has(user, address, now) {
            self.of_user.count(user, now);
            self.of_address.count(address, now);
        }
    }

    pub(super) fn succeeded(&mut self, user: User, address: Address, now: Instant) {
        self.known.add(user, address, now);
    }

    /// How many keys are kept, in all.
    pub(super) fn len(&self) -> usize {
        let known = self.known.users.values().map(Vec::len).sum::<usize>();
        self.of_pair.len() + self.of_user.len() + self.of_address.len() + known
    }
}

/// One limit, by key.
#[derive(Debug)]
struct Limit<K> {
    allowance: Allowance,
    keys_max: usize,
    /// When all failures of a key will be forgotten: each puts it off by `then_each`. A key that is not there has none.
    forgotten: HashMap<K, Instant>,
}

impl<K: Eq + Hash> Limit<K> {
    fn new(allowance: Allowance, keys_max: usize) -> Self {
        Self {
            allowance: Allowance {
                then_each: allowance.then_each.min(THEN_EACH_MAX),
                ..allowance
            },
            keys_max: keys_max.max(1),
            forgotten: HashMap::new(),
        }
    }

    fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let owed = self.forgotten.get(key)?.saturating_duration_since(now);
        let free = self.allowance.at_once.saturating_sub(1);
        let free = self.allowance.then_each.saturating_mul(free);
        // Just as much is still free.
        owed.checked_sub(free).filter(|wait| !wait.is_zero())
    }

    fn count(&mut self, key: K, now: Instant) {
        if self.forgotten.len() >= self.keys_max && !self.forgotten.contains_key(&key) {
            self.shed(now);
        }
        let forgotten = self.forgotten.entry(key).or_insert(now);
        *forgotten = (*forgotten).max(now) + self.allowance.then_each;
    }

    /// Makes room: without the keys that have no failures any more, else without the quarter that would be the first to
    /// have none. So a flood of new keys drives out itself, and not those that have to wait.
    fn shed(&mut self, now: Instant) {
        self.forgotten.retain(|_, forgotten| *forgotten > now);
        if self.forgotten.len() < self.keys_max {
            return;
        }
        let mut times: Vec<_> = self.forgotten.values().copied().collect();
        let quarter = times.len() / 4;
        let (_, bound, _) = times.select_nth_unstable(quarter);
        let (bound, mut more) = (*bound, quarter + 1);
        // Not all that are as near as the last of the quarter: they may be all there are.
        self.forgotten.retain(|_, forgotten| {
            let goes = *forgotten <= bound && more > 0;
            more -= usize::from(goes);
            !goes
        });
    }

    fn len(&self) -> usize {
        self.forgotten.len()
    }
}

/// The addresses from which users have logged in, each with the time of the last login.
#[derive(Debug)]
struct Known {
    users: HashMap<User, Vec<(Address, Instant)>>,
    users_max: usize,
}

impl Known {
    fn has(&self, user: User, address: Address, now: Instant) -> bool {
        let addresses = self.users.get(&user).into_iter().flatten();
        let mut good = addresses.filter(|(_, last)| now.duration_since(*last) < KNOWN_FOR);
        good.any(|(known, _)| *known == address)
    }

    /// Called for logins that succeeded alone, so only users that exist take memory.
    fn add(&mut self, user: User, address: Address, now: Instant) {
        if self.users.len() >= self.users_max && !self.users.contains_key(&user) {
            let last = |addresses: &Vec<(Address, Instant)>| addresses.last().map(|(_, at)| *at);
            let oldest = self.users.iter().min_by_key(|(_, list)| last(list));
            if let Some(oldest) = oldest.map(|(user, _)| *user) {
                self.users.remove(&oldest);
            }
        }
        let addresses = self.users.entry(user).or_default();
        addresses.retain(|(known, _)| *known != address);
        if addresses.len() >= KNOWN_PER_USER_MAX {
            addresses.remove(0);
        }
        addresses.push((address, now));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn failures(keys_max: usize) -> Failures {
        let allowance = |at_once, seconds: u32| Allowance {
            at_once,
            then_each: SECOND * seconds,
        };
        Failures::new(
            allowance(5, 60),
            allowance(100, 10),
            allowance(50, 10),
            keys_max,
        )
    }

    fn address(number: u32) -> Address {
        Address::from(IpAddr::from(number.to_be_bytes()))
    }

    /// How many failures are let through at one moment.
    fn tries(
        failures: &mut Failures,
        pairs: impl Iterator<Item = (User, Address)>,
        now: Instant,
    ) -> usize {
        let mut count = 0;
        for (user, address) in pairs {
            if failures.wait(user, address, now).is_none() {
                failures.failed(user, address, now);
                count += 1;
            }
        }
        count
    }

    #[test]
    fn one_user_from_one_address() {
        let (mut failures, now) = (failures(1000), Instant::now());
        let pair = (failures.user("ann"), address(1));
        let many = |count| std::iter::repeat_n(pair, count);
        assert_eq!(tries(&mut failures, many(20), now), 5);
        assert_eq!(failures.wait(pair.0, pair.1, now), Some(SECOND * 60));
        let almost = now + SECOND * 59;
        assert_eq!(failures.wait(pair.0, pair.1, almost), Some(SECOND));
        assert_eq!(tries(&mut failures, many(20), now + SECOND * 60), 1);
        // The user from elsewhere, and another user from there.
        assert_eq!(failures.wait(pair.0, address(2), now), None);
        assert_eq!(failures.wait(failures.user("bob"), pair.1, now), None);
        // All is forgotten after five minutes without failures, and no sooner.
        let later = now + SECOND * 60;
        assert_eq!(tries(&mut failures, many(20), later + SECOND * 240), 4);
        assert_eq!(tries(&mut failures, many(20), later + SECOND * 1000), 5);
    }

    #[test]
    fn one_user_from_many_addresses() {
        let (mut failures, now) = (failures(1000), Instant::now());
        let user = failures.user("ann");
        let pairs = || (0..200).map(|number| (user, address(number)));
        assert_eq!(tries(&mut failures, pairs(), now), 100);
        assert_eq!(failures.wait(user, address(999), now), Some(SECOND * 10));
        assert_eq!(tries(&mut failures, pairs(), now + SECOND * 10), 1);
        assert_eq!(tries(&mut failures, pairs(), now + SECOND * 60), 5);
    }

    #[test]
    fn many_users_from_one_address() {
        let (mut failures, now) = (failures(1000), Instant::now());
        let users: Vec<_> = (0..200)
            .map(|n| failures.user(&format!("user {n}")))
            .collect();
        let pairs = || users.iter().map(|user| (*user, address(1)));
        assert_eq!(tries(&mut failures, pairs(), now), 50);
        let other = failures.user("ann");
        assert_eq!(failures.wait(other, address(1), now), Some(SECOND * 10));
        assert_eq!(failures.wait(other, address(2), now), None);
    }

    #[test]
    fn strangers_cannot_lock_a_user_out_of_a_known_address() {
        let (mut failures, mut now) = (failures(1000), Instant::now());
        let (user, home) = (failures.user("ann"), address(999));
        failures.succeeded(user, home, now);
        let others: Vec<_> = (0..50)
            .map(|n| failures.user(&format!("user {n}")))
            .collect();
        for _ in 0..100 {
            // From everywhere for the user, and from the user's own address for everybody.
            tries(&mut failures, (0..200).map(|n| (user, address(n))), now);
            tries(
                &mut failures,
                others.iter().map(|other| (*other, home)),
                now,
            );
            assert!(failures.wait(user, address(1000), now).is_some());
            assert!(failures.wait(others[0], home, now).is_some());
            assert_eq!(failures.wait(user, home, now), None);
            now += SECOND;
        }
        // There the limit of the pair holds.
        assert_eq!(
            tries(&mut failures, std::iter::repeat_n((user, home), 20), now),
            5
        );
        // Elsewhere soon after the end of the attack.
        assert_eq!(failures.wait(user, address(1000), now + SECOND * 10), None);
        let later = now + KNOWN_FOR;
        tries(&mut failures, (0..200).map(|n| (user, address(n))), later);
        assert!(
            failures.wait(user, home, later).is_some(),
            "it was forgotten"
        );
    }

    #[test]
    fn failures_where_the_user_is_known_count_there_alone() {
        let (mut failures, now) = (failures(1000), Instant::now());
        let (user, home) = (failures.user("ann"), address(1));
        failures.succeeded(user, home, now);
        for _ in 0..200 {
            failures.failed(user, home, now);
        }
        assert!(failures.wait(user, home, now).is_some());
        assert_eq!(failures.wait(user, address(2), now), None);
        assert_eq!(failures.wait(failures.user("bob"), home, now), None);
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_frees_nobody_who_waits() {
        let (mut failures, now) = (failures(100), Instant::now());
        let (user, attacker) = (failures.user("ann"), address(u32::MAX));
        tries(&mut failures, std::iter::repeat_n((user, attacker), 5), now);
        for number in 0..10_000 {
            let other = failures.user(&format!("user {number}"));
            failures.failed(other, address(number), now);
            failures.succeeded(other, address(number), now);
            assert!(failures.len() <= 400, "{}", failures.len());
        }
        assert!(failures.wait(user, attacker, now).is_some());
        assert!(failures.of_pair.len() > 70, "no more go than a quarter");
        // Those that have no failures any more go first, and all of them.
        let later = now + SECOND * 301;
        for number in 0..50 {
            failures.failed(user, address(number), later);
        }
        assert_eq!(failures.of_pair.len(), 50);
    }

    #[test]
    fn any_allowance_is_taken() {
        let now = Instant::now();
        for (at_once, then_each) in [(0, Duration::MAX), (u32::MAX, Duration::MAX), (0, SECOND)] {
            let mut limit = Limit::new(Allowance { at_once, then_each }, 0);
            for key in 0..10 {
                limit.count(key, now);
                limit.count(key, now);
                assert_eq!(limit.wait(&key, now).is_some(), at_once == 0);
                assert_eq!(limit.len(), 1);
            }
        }
        let allowance = Allowance {
            at_once: 1,
            then_each: Duration::ZERO,
        };
        let mut limit = Limit::new(allowance, 1);
        limit.count(1, now);
        assert_eq!(limit.wait(&1, now), None);
    }

    #[test]
    fn known_addresses_are_bounded() {
        let (mut failures, now) = (failures(100), Instant::now());
        let user = failures.user("ann");
        for number in 0..1000 {
            failures.succeeded(user, address(number), now);
        }
        assert_eq!(failures.len(), KNOWN_PER_USER_MAX);
        assert!(failures.known.has(user, address(999), now));
        assert!(!failures.known.has(user, address(0), now));
        for _ in 0..100 {
            failures.succeeded(user, address(999), now);
        }
        assert!(failures.known.has(user, address(998), now));
        // The users with the oldest login go.
        for number in 0..100 {
            let other = failures.user(&format!("user {number}"));
            failures.succeeded(other, address(0), now + SECOND * (number + 1));
        }
        assert!(!failures.known.has(user, address(999), now + SECOND * 200));
        assert_eq!(failures.known.users.len(), 100);
    }
}

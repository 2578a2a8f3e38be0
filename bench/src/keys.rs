//! Keys and values of the load, and in which order keys are asked for.

use bytes::Bytes;
use rand::RngCore;

/// The length of every key.
pub(crate) const KEY_BYTES: usize = 24;

/// What keys begin with.
const PREFIX: &[u8; 6] = b"bench/";

/// As many as the digits behind it can tell apart.
const NUMBERS: u64 = 1_000_000_000_000_000_000;

/// A key.
pub(crate) type Key = [u8; KEY_BYTES];

/// A key as text, which every key is.
pub(crate) fn text(key: &Key) -> &str {
    std::str::from_utf8(key).unwrap_or_default()
}

/// The key with this number. Neighbours in numbers are none in the order of keys, so that a load is in no order.
pub(crate) fn key(number: u64) -> Key {
    spelled(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % NUMBERS)
}

/// Where a scan begins that is to find at least a fifth of all keys.
pub(crate) fn scan_start(random: u64) -> Key {
    spelled(random % (NUMBERS / 5 * 4))
}

/// The first key behind all others.
pub(crate) fn end() -> Bytes {
    Bytes::from_static(b"bench0")
}

fn spelled(mut number: u64) -> Key {
    let mut key = [b'0'; KEY_BYTES];
    let (prefix, digits) = key.split_at_mut(PREFIX.len());
    prefix.copy_from_slice(PREFIX);
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
    key
}

/// Random bytes that values are taken from, so that compression does not help anybody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Values {
    pool: &'static [u8],
    bytes: usize,
}

impl Values {
    /// Values of so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let mut pool = vec![0; bytes + POOL];
        rand::rng().fill_bytes(&mut pool);
        // Values are made of it until the program ends.
        let pool = Vec::leak(pool);
        Self { pool, bytes }
    }

    /// The length of each.
    pub(crate) fn bytes(self) -> usize {
        self.bytes
    }

    /// One of many.
    pub(crate) fn value(self, random: u64) -> Bytes {
        let start = usize::try_from(random % POOL as u64).unwrap_or_default();
        Bytes::from_static(self.pool.get(start..start + self.bytes).unwrap_or_default())
    }
}

/// Bytes that values may begin at.
const POOL: usize = 64 * 1024;

/// Random numbers that cost next to nothing (`SplitMix64`).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Each seed gives a sequence of its own.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to 1, without 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Which of some numbered keys is asked for next.
#[derive(Clone, Debug)]
pub(crate) enum Choice {
    /// All of them alike.
    Uniform(u64),
    /// Few of them often.
    Zipf(Zipf),
}

impl Choice {
    pub(crate) fn number(&self, random: &mut Random) -> u64 {
        match self {
            Self::Uniform(keys) => random.next() % keys,
            Self::Zipf(zipf) => zipf.number(random),
        }
    }
}

/// The k-th most frequent of some keys is asked for in proportion to 1/k^theta (Gray et al., "Quickly Generating
/// Billion-Record Synthetic Databases"; YCSB has the same generator).
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    keys: u64,
    theta: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

#[expect(clippy::cast_precision_loss, reason = "numbers of keys are small")]
impl Zipf {
    /// Over so many keys; `theta` lies between 0 and 1.
    pub(crate) fn new(keys: u64, theta: f64) -> Self {
        let zeta = |keys: u64| (1..=keys).map(|k| (k as f64).powf(-theta)).sum::<f64>();
        let (all, two) = (zeta(keys), zeta(2));
        let eta = (1.0 - (2.0 / keys as f64).powf(1.0 - theta)) / (1.0 - two / all);
        Self {
            keys,
            theta,
            zeta: all,
            alpha: 1.0 / (1.0 - theta),
            eta,
        }
    }

    /// From 0, the most frequent, up to the number of keys. Keys are in no order, so neighbours in frequency are none in
    /// the order of keys.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is the floor of a number between 0 and the number of keys"
    )]
    pub(crate) fn number(&self, random: &mut Random) -> u64 {
        let u = random.fraction();
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(self.theta) {
            return 1;
        }
        let place = self.keys as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        (place as u64).min(self.keys - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_are_told_apart_and_lie_between_start_and_end() {
        let keys: HashSet<Key> = (0..100_000).map(key).collect();
        assert_eq!(keys.len(), 100_000);
        for key in keys {
            assert!(key.starts_with(PREFIX) && key[..] < end()[..]);
            assert!(text(&key).len() == KEY_BYTES);
        }
    }

    #[test]
    fn a_scan_finds_enough_wherever_it_begins() {
        let mut keys: Vec<Key> = (0..10_000).map(key).collect();
        keys.sort_unstable();
        let mut random = Random::new(1);
        for _ in 0..1_000 {
            let start = scan_start(random.next());
            let found = keys.len() - keys.partition_point(|key| *key < start);
            assert!(found >= 1_000, "{found}");
        }
    }

    #[test]
    fn values_have_their_length_and_differ() {
        let values = Values::new(100);
        assert_eq!(values.value(1).len(), 100);
        assert_eq!(values.value(u64::MAX).len(), 100);
        assert_ne!(values.value(1), values.value(2));
    }

    #[test]
    fn zipf_asks_for_the_kth_key_in_proportion_to_its_power() {
        const DRAWS: usize = 1_000_000;
        let (keys, theta) = (1_000, 0.99);
        let zipf = Zipf::new(keys, theta);
        let mut random = Random::new(7);
        let mut counts = vec![0_u32; 1_000];
        for _ in 0..DRAWS {
            counts[usize::try_from(zipf.number(&mut random)).unwrap()] += 1;
        }
        let zeta: f64 = (1..=keys).map(|k| (k as f64).powf(-theta)).sum();
        let share =
            |from: usize, to: usize| f64::from(counts[from..to].iter().sum::<u32>()) / DRAWS as f64;
        let due = |from: usize, to: usize| {
            (from + 1..=to)
                .map(|k| (k as f64).powf(-theta))
                .sum::<f64>()
                / zeta
        };
        // The first two are exact, the others are the generator's approximation of a continuous distribution.
        for (from, to, tolerance) in [
            (0, 1, 0.01),
            (1, 2, 0.02),
            (2, 10, 0.2),
            (10, 100, 0.1),
            (100, 1_000, 0.1),
        ] {
            let (share, due) = (share(from, to), due(from, to));
            assert!(
                (share / due - 1.0).abs() < tolerance,
                "{from}..{to}: {share} for {due}"
            );
        }
    }

    #[test]
    fn uniform_draws_reach_all_keys() {
        let choice = Choice::Uniform(100);
        let mut random = Random::new(3);
        let drawn: HashSet<u64> = (0..10_000).map(|_| choice.number(&mut random)).collect();
        assert_eq!(drawn.len(), 100);
    }
}

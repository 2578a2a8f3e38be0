//! Sets of keys that are given by prefixes, and what they leave of a range.

use std::fmt;
use std::sync::Arc;

use storage_protocol::{Key, KeyRange};

use crate::auth::text::quoted_key;

/// How many prefixes `Debug` shows.
const SHOWN_MAX: usize = 4;

/// The keys that begin with one of some prefixes: none, some, or all of them (of an empty prefix).
///
/// Made with `collect`, in n log n steps; what is covered by a shorter prefix is left out, so two sets are equal if and
/// only if they have the same keys. Clones share it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Prefixes {
    /// In order; none of them is a prefix of another, so no key begins with two of them.
    sorted: Arc<[Key]>,
}

/// What is left of a range of keys. No part of it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Nothing,
    /// One range: the whole, if it is the same.
    One(KeyRange),
    /// Several ranges, with keys between them that are cut out.
    Several {
        /// From the start of the first to the end of the last.
        hull: KeyRange,
        /// In order, without touching one another; at least two.
        parts: Vec<KeyRange>,
    },
}

impl Prefixes {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        [Key::new()].into_iter().collect()
    }

    /// No key.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether every key is in it.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.sorted.first().is_some_and(Key::is_empty)
    }

    /// Whether no key is in it.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The prefixes in order; none of them is a prefix of another.
    #[must_use]
    pub fn as_slice(&self) -> &[Key] {
        &self.sorted
    }

    /// Whether `key` is in it: log n comparisons.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.holder(key).is_some()
    }

    /// The keys of the range that are in it: log n comparisons, and as many steps as prefixes lie in the range.
    #[must_use]
    pub fn cut(&self, range: &KeyRange) -> Cut {
        if range.is_empty() {
            return Cut::Nothing;
        }
        let first = self
            .holder(&range.start)
            .unwrap_or_else(|| self.sorted.partition_point(|prefix| *prefix < range.start));
        let mut parts: Vec<KeyRange> = Vec::new();
        for prefix in self.sorted.iter().skip(first) {
            if range.end.as_ref().is_some_and(|end| prefix >= end) {
                break;
            }
            let part = within(KeyRange::prefix(prefix.clone()), range);
            match parts.last_mut() {
                Some(last) if last.end.as_ref() == Some(&part.start) => last.end = part.end,
                _ => parts.push(part),
            }
        }
        Cut::of(parts)
    }

    /// The keys that are in both: as many steps as both have prefixes.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (
            self.sorted.iter().peekable(),
            other.sorted.iter().peekable(),
        );
        let mut both = Vec::new();
        while let (Some(our), Some(their)) = (ours.peek(), theirs.peek()) {
            // Of two that overlap, the longer one is in both. The shorter one stays: it may hold the next one too.
            if our.starts_with(their) {
                both.extend(ours.next().cloned());
            } else if their.starts_with(our) {
                both.extend(theirs.next().cloned());
            } else if our < their {
                ours.next();
            } else {
                theirs.next();
            }
        }
        Self {
            sorted: both.into(),
        }
    }

    /// The place of the prefix that `key` begins with.
    fn holder(&self, key: &[u8]) -> Option<usize> {
        // All that lies between a prefix and a key that begins with it begins with that prefix too, so no other prefix
        // lies there: it is the last one that is not behind the key, or none.
        let behind = self.sorted.partition_point(|prefix| prefix.as_ref() <= key);
        let place = behind.checked_sub(1)?;
        key.starts_with(self.sorted.get(place)?).then_some(place)
    }
}

impl FromIterator<Key> for Prefixes {
    fn from_iter<I: IntoIterator<Item = Key>>(prefixes: I) -> Self {
        let mut sorted: Vec<Key> = prefixes.into_iter().collect();
        sorted.sort_unstable();
        // Those that begin with one of them follow it at once.
        sorted.dedup_by(|longer, kept| longer.starts_with(kept));
        Self {
            sorted: sorted.into(),
        }
    }
}

impl fmt::Debug for Prefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("all");
        }
        let shown = self.sorted.iter().take(SHOWN_MAX);
        let shown: Vec<String> = shown.map(|prefix| quoted_key(prefix)).collect();
        let more = match self.sorted.len().saturating_sub(SHOWN_MAX) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        write!(f, "[{}{more}]", shown.join(", "))
    }
}

impl Cut {
    /// The one range that has all of it in it; `None`: there is nothing.
    #[must_use]
    pub fn hull(&self) -> Option<&KeyRange> {
        match self {
            Self::Nothing => None,
            Self::One(range) => Some(range),
            Self::Several { hull, .. } => Some(hull),
        }
    }

    /// Its ranges in order, without touching one another.
    #[must_use]
    pub fn parts(&self) -> &[KeyRange] {
        match self {
            Self::Nothing => &[],
            Self::One(range) => std::slice::from_ref(range),
            Self::Several { parts, .. } => parts,
        }
    }

    /// Whether `key` lies in one of its ranges: log n comparisons.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        let parts = self.parts();
        let behind = parts.partition_point(|part| part.start.as_ref() <= key);
        let last = behind.checked_sub(1).and_then(|place| parts.get(place));
        last.is_some_and(|part| part.contains(key))
    }

    /// Of ranges in order that do not touch one another.
    fn of(parts: Vec<KeyRange>) -> Self {
        match parts.as_slice() {
            [] => Self::Nothing,
            [one] => Self::One(one.clone()),
            [first, .., last] => {
                let hull = KeyRange {
                    start: first.start.clone(),
                    end: last.end.clone(),
                };
                Self::Several { hull, parts }
            }
        }
    }
}

/// What two ranges have in common.
fn within(part: KeyRange, range: &KeyRange) -> KeyRange {
    let end = match (part.end, &range.end) {
        (Some(end), Some(limit)) => Some(end.min(limit.clone())),
        (end, limit) => end.or_else(|| limit.clone()),
    };
    KeyRange {
        start: part.start.max(range.start.clone()),
        end,
    }
}
